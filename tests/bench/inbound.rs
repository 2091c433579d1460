//! Received mail: N messages of 2 to 50 KB lie unread in a real Dovecot, and all of them go into Odoo's double. First by the
//! relay, then by a client that does what Odoo's own fetchmail does: SEARCH UNSEEN, and for each message, one after the
//! other, FETCH RFC822, STORE -FLAGS, `message_process`, STORE +FLAGS. Both are connected through the same proxy, which counts
//! round trips and can make each of them longer.
//!
//! `cargo run --release --example bench -- inbound [--messages 2000] [--delay 40ms] [--gateway 50ms] [--inboxes 4] [--runs 3]`
//!
//! For each it prints messages a second (the median of the runs, and the lowest and highest), IMAP round trips, CPU time, the
//! most memory, what the gateway allows (it is asked for one message of each inbox at a time, since these go in order; for
//! four at most, which is the default of `odoo.parallel`), and the ratio of the rates. With a delay or a slow gateway the
//! client, whose rate does not depend on it, gets a tenth of the messages.
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

const PATIENCE: Duration = Duration::from_secs(1800);
/// The default of `odoo.parallel`.
const PARALLEL: usize = 4;
/// With a slower gateway the client is slow, too.
const FAST: Duration = Duration::from_millis(1);

/// What is measured.
struct Case {
    messages: usize,
    delay: Duration,
    gateway: Duration,
    inboxes: usize,
}

/// What one run showed.
struct Run {
    rate: f64,
    turns: f64,
    /// Of a process of its own: processor time per message, and the most memory in MiB.
    took: Option<(Duration, f64)>,
    /// How long the gateway took to answer, where the client looked.
    answered: Option<Duration>,
}

pub(crate) fn run(given: &Given) -> Result<()> {
    let time = |name: &str, otherwise: u64| -> Result<Duration> {
        let millis = given.get(name).map(|value| value.trim_end_matches("ms").parse()).transpose()?;
        Ok(Duration::from_millis(millis.unwrap_or(otherwise)))
    };
    let case = Case {
        messages: number(given, "--messages", 2_000)?,
        delay: time("--delay", 0)?,
        gateway: time("--gateway", 1)?,
        inboxes: number(given, "--inboxes", 1)?,
    };
    let runs = number(given, "--runs", 1)?;
    if case.messages < 10 * case.inboxes || case.inboxes == 0 || runs == 0 {
        return Err("--inboxes and --runs must be at least 1, --messages 10 for each inbox".into());
    }
    println!(
        "{} messages of 2 to 50 KB in {} inboxes; {} ms more for each round trip; a gateway of {} ms; the median of {runs} \
         runs [lowest, highest]",
        case.messages,
        case.inboxes,
        case.delay.as_millis(),
        case.gateway.as_millis()
    );
    let simple = case.delay.is_zero() && case.gateway <= FAST;
    let few = Case { messages: if simple { case.messages } else { case.messages / 10 }, ..case };
    let runtime = tokio::runtime::Runtime::new()?;
    let (mut relay, mut client) = (Vec::new(), Vec::new());
    for _ in 0..runs {
        relay.push(runtime.block_on(by_relay(&case))?);
        client.push(runtime.block_on(by_fetchmail(&few))?);
    }
    let (relay, client) = (median(relay), median(client));
    let answered = client.0.answered.unwrap_or_default().as_secs_f64();
    let allowed = case.inboxes.min(PARALLEL) as f64 / answered;
    println!(
        "                    messages/s               round trips/message  CPU ms/message  peak MiB  gateway allows  to the loop"
    );
    print_row("as Odoo's fetchmail", &client, &format!("{:14.0}", 1.0 / answered));
    let ratio = relay.0.rate / client.0.rate;
    print_row("outlook-relay", &relay, &format!("{allowed:14.0}  {ratio:11.1}"));
    Ok(())
}

/// The run in the middle, and the lowest and the highest rate.
fn median(mut runs: Vec<Run>) -> (Run, f64, f64) {
    runs.sort_by(|a, b| a.rate.total_cmp(&b.rate));
    let (lowest, highest) = (runs[0].rate, runs[runs.len() - 1].rate);
    (runs.swap_remove(runs.len() / 2), lowest, highest)
}

fn print_row(who: &str, (run, lowest, highest): &(Run, f64, f64), rest: &str) {
    let (cpu, peak) = run.took.map_or(("-".to_owned(), "-".to_owned()), |(cpu, peak)| {
        (format!("{:.2}", cpu.as_secs_f64() * 1e3), format!("{peak:.0}"))
    });
    println!(
        "{who:20}{:8.1} [{lowest:6.1}, {highest:6.1}]  {:19.3}  {cpu:>14}  {peak:>8}  {rest}",
        run.rate, run.turns
    );
}

fn mailbox(number: usize) -> String {
    format!("inbox{number}@example.com")
}

/// A message of 2 to 50 KB, with lines as mail has them, and with more than ASCII.
fn mail(number: usize) -> Vec<u8> {
    let size = 2_000 + number * 7_919 % 48_000;
    let mut raw = format!(
        "From: Customer {number} <customer{number}@foreign.test>\r\nTo: inbox@example.com\r\nMessage-Id: <{number}@bench>\r\n\
         Subject: bench {number}\r\nMIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\n\
         Content-Transfer-Encoding: 8bit\r\n\r\n"
    );
    while raw.len() < size {
        raw.push_str("Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich.\r\n");
    }
    raw.into_bytes()
}

/// Dovecot with all of it, and Odoo.
async fn world(case: &Case) -> (World, Dovecot, Proxy, Vec<Vec<u8>>) {
    let mails: Vec<Vec<u8>> = (0..case.messages).map(mail).collect();
    let world = World::start().await;
    world.odoo.set_delay(case.gateway);
    let dovecot = Dovecot::start(&world.tls, &world.entra).await;
    for (number, raw) in mails.iter().enumerate() {
        dovecot.deliver(&mailbox(number % case.inboxes), "INBOX", raw);
    }
    let proxy = Proxy::start(dovecot.imap_addr(), case.delay).await;
    // Dovecot reads the folder for the first time, for both.
    for mailbox in (0..case.inboxes).map(mailbox) {
        let token = world.entra.access_token(&mailbox, 600);
        let mut client = ImapClient::login(dovecot.imap_addr(), &world.tls, &mailbox, &token).await;
        client.cmd("SELECT INBOX").await;
        client.cmd("LOGOUT").await;
    }
    (world, dovecot, proxy, mails)
}

/// Waits until all are in Odoo and marked as read; each must be there once, and whole.
async fn until_done(world: &World, dovecot: &Dovecot, mails: &[Vec<u8>], inboxes: usize) -> Result<()> {
    let end = Instant::now() + PATIENCE;
    let count =
        |world: &World| world.odoo.calls().iter().filter(|call| call.ends_with("message_process")).count();
    while count(world) < mails.len()
        || world.odoo.taken().len() < mails.len()
        || !(0..inboxes)
            .flat_map(|number| dovecot.messages(&mailbox(number), "INBOX"))
            .all(|message| message.flags.contains('S'))
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

async fn by_relay(case: &Case) -> Result<Run> {
    let (world, dovecot, proxy, mails) = world(case).await;
    let mut config = world.config();
    config.set_binary(&std::env::current_exe()?);
    config.env(AS_RELAY, "1");
    config.text("microsoft", "imap", &format!("localhost:{}", proxy.addr().port()));
    config.raw("fetch", "new_per_sender", "0");
    for mailbox in (0..case.inboxes).map(mailbox) {
        config.mailbox(&mailbox, &[("inbox", "true")]);
        config.connect(&mailbox, &world.entra.add_mailbox(&mailbox)).await.success();
    }
    let begun = Instant::now();
    let mut relay = config.start().await;
    let pid = relay.pid().ok_or("the relay has ended")?;
    until_done(&world, &dovecot, &mails, case.inboxes).await?;
    let (took, turns) = (begun.elapsed(), proxy.turns());
    let (cpu, peak) = (process::cpu(pid)?, process::peak(pid)?);
    relay.terminate(Duration::from_secs(30)).await;
    Ok(Run {
        rate: case.messages as f64 / took.as_secs_f64(),
        turns: turns as f64 / case.messages as f64,
        took: Some((cpu.div_f64(case.messages as f64), peak)),
        answered: None,
    })
}

/// One inbox after the other, as Odoo does it.
async fn by_fetchmail(case: &Case) -> Result<Run> {
    let (world, dovecot, proxy, mails) = world(case).await;
    let caller = Caller { database: DATABASE, uid: 2, password: PASSWORD };
    let mut answered = Duration::ZERO;
    let begun = Instant::now();
    for mailbox in (0..case.inboxes).map(mailbox) {
        let token = world.entra.access_token(&mailbox, 6000);
        let mut client = ImapClient::login(proxy.addr(), &world.tls, &mailbox, &token).await;
        client.cmd("SELECT INBOX").await;
        let found = client.cmd("SEARCH UNSEEN").await;
        let found = found.find("SEARCH").ok_or("no answer to SEARCH")?.to_owned();
        for number in found.split_whitespace().skip(2) {
            let fetched = client.cmd(&format!("FETCH {number} (RFC822)")).await;
            let fetched = fetched.find("RFC822").ok_or("no message")?;
            let (head, rest) = fetched.split_once("\r\n").ok_or("no literal")?;
            let length = head.rsplit_once('{').and_then(|(_, length)| length.strip_suffix('}'));
            let raw =
                rest.get(..length.ok_or("no literal")?.parse()?).ok_or("a literal that is too short")?;
            client.cmd(&format!("STORE {number} -FLAGS (\\Seen)")).await;
            let asked = Instant::now();
            let call = xmlrpc::message_process(caller, "mail.thread", &Intake::default(), raw.as_bytes())?;
            let at = world.odoo.server.addr();
            let answer = http::post(at, "/xmlrpc/2/object", "text/xml", &[], call.as_bytes()).await;
            if answer.is_none_or(|(status, _)| status != 200) {
                return Err("Odoo did not answer".into());
            }
            answered += asked.elapsed();
            client.cmd(&format!("STORE {number} +FLAGS (\\Seen)")).await;
        }
    }
    until_done(&world, &dovecot, &mails, case.inboxes).await?;
    let took = begun.elapsed();
    Ok(Run {
        rate: case.messages as f64 / took.as_secs_f64(),
        turns: proxy.turns() as f64 / case.messages as f64,
        took: None,
        answered: Some(answered.div_f64(case.messages as f64)),
    })
}
