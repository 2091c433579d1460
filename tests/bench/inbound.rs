//! Received mail: N messages of 2 to 50 KB lie unread in a real Dovecot, and all of them go into Odoo's double. First by the
//! relay, then by a client that does what Odoo's own fetchmail does: SEARCH UNSEEN, and for each message, one after the
//! other, FETCH RFC822, STORE -FLAGS, `message_process`, STORE +FLAGS. Both are connected through the same proxy, which counts
//! round trips and can make each of them longer.
//!
//! Each message must arrive once, byte for byte. The client stands in the benchmark's own process, with the doubles; what it
//! takes itself is not told. Dovecot and Odoo's double take their share of the machine's processors from both.

use crate::process;
use crate::proxy::Proxy;
use crate::support::client::ImapClient;
use crate::support::dovecot::Dovecot;
use crate::support::http;
use crate::support::odoo::{DATABASE, PASSWORD};
use crate::support::world::World;
use crate::{AS_RELAY, Given, Result, number};
use outlook_relay::odoo::Intake;
use outlook_relay::odoo::xmlrpc::{self, Caller};
use std::collections::HashMap;
use std::time::{Duration, Instant};

const MAILBOX: &str = "inbox@example.com";
const PATIENCE: Duration = Duration::from_secs(1800);

struct Row {
    what: &'static str,
    took: Duration,
    turns: usize,
    cpu: Option<Duration>,
    peak: Option<f64>,
}

pub(crate) fn run(given: &Given) -> Result<()> {
    let messages = number(given, "--messages", 2_000)?;
    let delay = given.get("--delay").map_or("0ms", String::as_str);
    let delay = Duration::from_millis(delay.trim_end_matches("ms").parse()?);
    let mails: Vec<Vec<u8>> = (0..messages).map(mail).collect();
    let bytes: usize = mails.iter().map(Vec::len).sum();
    println!(
        "{messages} messages of 2 to 50 KB, {:.1} MB in all; {} ms more for each round trip",
        bytes as f64 / 1e6,
        delay.as_millis()
    );
    let runtime = tokio::runtime::Runtime::new()?;
    let rows = [runtime.block_on(by_relay(&mails, delay))?, runtime.block_on(by_fetchmail(&mails, delay))?];
    println!("                     messages/s  round trips/message  CPU ms/message  peak MiB");
    for row in rows {
        let each = |value: f64| value / messages as f64;
        let cpu = row.cpu.map_or("-".to_owned(), |cpu| format!("{:.2}", each(cpu.as_secs_f64() * 1e3)));
        println!(
            "{:20} {:10.0}  {:19.3}  {cpu:>14}  {:>8}",
            row.what,
            messages as f64 / row.took.as_secs_f64(),
            each(row.turns as f64),
            row.peak.map_or("-".to_owned(), |peak| format!("{peak:.0}"))
        );
    }
    Ok(())
}

/// A message of 2 to 50 KB, with lines as mail has them, and with more than ASCII.
fn mail(number: usize) -> Vec<u8> {
    let size = 2_000 + number * 7_919 % 48_000;
    let mut raw = format!(
        "From: Customer {number} <customer{number}@foreign.test>\r\nTo: {MAILBOX}\r\nMessage-Id: <{number}@bench>\r\n\
         Subject: bench {number}\r\nMIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\n\
         Content-Transfer-Encoding: 8bit\r\n\r\n"
    );
    while raw.len() < size {
        raw.push_str("Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich.\r\n");
    }
    raw.into_bytes()
}

/// Dovecot with all of it, and Odoo.
async fn world(mails: &[Vec<u8>], delay: Duration) -> (World, Dovecot, Proxy) {
    let world = World::start().await;
    let dovecot = Dovecot::start(&world.tls, &world.entra).await;
    for raw in mails {
        dovecot.deliver(MAILBOX, "INBOX", raw);
    }
    let proxy = Proxy::start(dovecot.imap_addr(), delay).await;
    // Dovecot reads the folder for the first time, for both.
    let token = world.entra.access_token(MAILBOX, 600);
    let mut client = ImapClient::login(dovecot.imap_addr(), &world.tls, MAILBOX, &token).await;
    client.cmd("SELECT INBOX").await;
    client.cmd("LOGOUT").await;
    (world, dovecot, proxy)
}

/// Waits until all are in Odoo and marked as read; each must be there once, and whole.
async fn until_done(world: &World, dovecot: &Dovecot, mails: &[Vec<u8>]) -> Result<()> {
    let end = Instant::now() + PATIENCE;
    let count =
        |world: &World| world.odoo.calls().iter().filter(|call| call.ends_with("message_process")).count();
    while count(world) < mails.len()
        || world.odoo.taken().len() < mails.len()
        || !dovecot.messages(MAILBOX, "INBOX").iter().all(|message| message.flags.contains('S'))
    {
        if Instant::now() > end {
            return Err(format!("only {} of {} arrived", world.odoo.taken().len(), mails.len()).into());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let posts = world.odoo.posts();
    let by_id: HashMap<_, _> = posts.iter().map(|post| (post.message_id.clone(), &post.raw)).collect();
    let whole = mails.iter().enumerate().all(|(number, raw)| {
        by_id.get(&Some(format!("<{number}@bench>"))).is_some_and(|posted| *posted.as_slice() == **raw)
    });
    if posts.len() != mails.len() || !whole {
        return Err(format!("{} posts of {} messages, whole: {whole}", posts.len(), mails.len()).into());
    }
    Ok(())
}

async fn by_relay(mails: &[Vec<u8>], delay: Duration) -> Result<Row> {
    let (world, dovecot, proxy) = world(mails, delay).await;
    let mut config = world.config();
    config.set_binary(&std::env::current_exe()?);
    config.env(AS_RELAY, "1");
    config.text("microsoft", "imap", &format!("localhost:{}", proxy.addr().port()));
    config.raw("fetch", "new_per_sender", "0");
    config.mailbox(MAILBOX, &[("inbox", "true")]);
    config.connect(MAILBOX, &world.entra.add_mailbox(MAILBOX)).await.success();
    let begun = Instant::now();
    let mut relay = config.start().await;
    let pid = relay.pid().ok_or("the relay has ended")?;
    until_done(&world, &dovecot, mails).await?;
    let (took, turns) = (begun.elapsed(), proxy.turns());
    let row = Row {
        what: "outlook-relay",
        took,
        turns,
        cpu: Some(process::cpu(pid)?),
        peak: Some(process::peak(pid)?),
    };
    relay.terminate(Duration::from_secs(30)).await;
    Ok(row)
}

async fn by_fetchmail(mails: &[Vec<u8>], delay: Duration) -> Result<Row> {
    let (world, dovecot, proxy) = world(mails, delay).await;
    let token = world.entra.access_token(MAILBOX, 6000);
    let begun = Instant::now();
    let mut client = ImapClient::login(proxy.addr(), &world.tls, MAILBOX, &token).await;
    client.cmd("SELECT INBOX").await;
    let found = client.cmd("SEARCH UNSEEN").await;
    let found = found.find("SEARCH").ok_or("no answer to SEARCH")?.to_owned();
    let caller = Caller { database: DATABASE, uid: 2, password: PASSWORD };
    for number in found.split_whitespace().skip(2) {
        let fetched = client.cmd(&format!("FETCH {number} (RFC822)")).await;
        let fetched = fetched.find("RFC822").ok_or("no message")?;
        let (head, rest) = fetched.split_once("\r\n").ok_or("no literal")?;
        let length = head.rsplit_once('{').and_then(|(_, length)| length.strip_suffix('}'));
        let raw = rest.get(..length.ok_or("no literal")?.parse()?).ok_or("a literal that is too short")?;
        client.cmd(&format!("STORE {number} -FLAGS (\\Seen)")).await;
        let call = xmlrpc::message_process(caller, "mail.thread", &Intake::default(), raw.as_bytes())?;
        let answer =
            http::post(world.odoo.server.addr(), "/xmlrpc/2/object", "text/xml", &[], call.as_bytes()).await;
        if answer.is_none_or(|(status, _)| status != 200) {
            return Err("Odoo did not answer".into());
        }
        client.cmd(&format!("STORE {number} +FLAGS (\\Seen)")).await;
    }
    until_done(&world, &dovecot, mails).await?;
    Ok(Row {
        what: "as Odoo's fetchmail",
        took: begun.elapsed(),
        turns: proxy.turns(),
        cpu: None,
        peak: None,
    })
}
