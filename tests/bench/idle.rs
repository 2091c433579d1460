//! Many inboxes that only wait (`idle`): their memory, and how long the start takes until SMTP is greeted, the first refresh
//! of all tokens, and the stop. And the memory of several that each hold a very large mail at once (`large`). The mail
//! server is the scripted one, in the benchmark's own process; what is told is the relay's alone.

use crate::process;
use crate::support::client::message;
use crate::support::entra::{CLIENT_ID, Entra};
use crate::support::relay::{Config, Relay};
use crate::support::world::World;
use crate::{AS_RELAY, Given, Result, number};
use outlook_relay::store::{Store, StoredToken};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(600);

fn names(count: usize) -> Vec<String> {
    (0..count).map(|number| format!("user{number}@example.com")).collect()
}

/// A relay that watches these inboxes, and how long it took to be ready.
async fn start(
    world: &World,
    names: &[String],
    change: impl Fn(&mut Config),
) -> Result<(Config, Relay, Duration)> {
    let mut config = world.config();
    config.set_binary(&std::env::current_exe()?);
    config.env(AS_RELAY, "1");
    config.env("RUST_LOG", "warn");
    change(&mut config);
    for name in names {
        config.mailbox(name, &[("inbox", "true")]);
    }
    consent(&config, &world.entra, names).await?;
    let begun = Instant::now();
    let relay = config.start().await;
    Ok((config, relay, begun.elapsed()))
}

/// Everybody has consented. Through the library: that many commands would take long.
async fn consent(config: &Config, entra: &Entra, names: &[String]) -> Result<()> {
    let loaded =
        outlook_relay::config::Config::load(&config.write()).map_err(|error| format!("{error:?}"))?;
    let (store, writer) = Store::open(&loaded.store).await?;
    let writer = tokio::spawn(writer.run());
    for (mailbox, name) in loaded.mailboxes.iter().zip(names) {
        let token = StoredToken {
            tenant: mailbox.microsoft.tenant.clone(),
            client_id: CLIENT_ID.to_owned(),
            refresh_token: entra.add_mailbox(name).into(),
            consented_at: outlook_relay::clock::now(),
            refreshed_at: None,
        };
        store.keep_token(&mailbox.address, token).await?;
    }
    store.close().await;
    writer.await?;
    Ok(())
}

async fn until(what: &str, condition: impl Fn() -> bool) -> Result<()> {
    let end = Instant::now() + PATIENCE;
    while !condition() {
        if Instant::now() > end {
            return Err(format!("not in time: {what}").into());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

pub(crate) fn run(given: &Given) -> Result<()> {
    let (inboxes, minutes) = (number(given, "--inboxes", 1_000)?, number(given, "--minutes", 10)?);
    tokio::runtime::Runtime::new()?.block_on(idle(inboxes, minutes))
}

async fn idle(inboxes: usize, minutes: usize) -> Result<()> {
    let names = names(inboxes);
    let one = World::start().await;
    let (_config, relay, _) = start(&one, names.get(..1).unwrap_or_default(), |_| ()).await?;
    let idling = |world: &World| names.iter().filter(|name| world.imap.idling(name) == 1).count();
    until("one idles", || idling(&one) == 1).await?;
    tokio::time::sleep(Duration::from_secs(5)).await;
    let pid = relay.pid().ok_or("the relay has ended")?;
    let alone = (process::resident(pid)?, process::proportional(pid)?);
    drop((relay, one));

    let world = World::start().await;
    let (_config, mut relay, ready) = start(&world, &names, |_| ()).await?;
    let begun = Instant::now();
    let pid = relay.pid().ok_or("the relay has ended")?;
    until("all idle", || idling(&world) == inboxes).await?;
    println!(
        "{inboxes} inboxes: ready (220) {:.2} s after the start, all of them idle {:.1} s later",
        ready.as_secs_f64(),
        begun.elapsed().as_secs_f64()
    );
    let show = |what: &str, of: &dyn Fn(u32) -> Result<f64>, alone: f64| -> Result<()> {
        let all = of(pid)?;
        let each = (all - alone) * 1024.0 / inboxes.saturating_sub(1).max(1) as f64;
        println!("  {what}: {all:.1} MiB; with one inbox {alone:.1} MiB; {each:.1} KiB for each more");
        Ok(())
    };
    show("RSS", &process::resident, alone.0)?;
    let (cpu, connections, commands) =
        (process::cpu(pid)?, world.imap.connections(), world.imap.commands().len());
    tokio::time::sleep(Duration::from_secs(60 * minutes as u64)).await;
    println!(
        "{minutes} minutes later: {:.2} s of CPU, {} commands, {} new connections, peak {:.1} MiB",
        (process::cpu(pid)? - cpu).as_secs_f64(),
        world.imap.commands().len() - commands,
        world.imap.connections() - connections,
        process::peak(pid)?
    );
    show("RSS", &process::resident, alone.0)?;
    show("PSS", &process::proportional, alone.1)?;
    let last = names.last().ok_or("no inbox")?;
    let sent = Instant::now();
    world.imap.deliver(last, "INBOX", &message("a@x.test", last, "1@bench", "Hi"));
    until("a mail to the last one", || {
        world.odoo.calls().iter().any(|call| call.ends_with("message_process"))
    })
    .await?;
    println!("a mail to the last of them is with Odoo after {:.0} ms", sent.elapsed().as_secs_f64() * 1e3);
    let stopping = Instant::now();
    let code = relay.terminate(PATIENCE).await;
    println!(
        "stopped {:.2} s after SIGTERM, with {inboxes} sessions open: exit code {code:?}",
        stopping.elapsed().as_secs_f64()
    );
    Ok(())
}

pub(crate) fn large(given: &Given) -> Result<()> {
    let (inboxes, megabytes) = (number(given, "--inboxes", 10)?, number(given, "--megabytes", 100)?);
    tokio::runtime::Runtime::new()?.block_on(all_large(inboxes, megabytes))
}

async fn all_large(inboxes: usize, megabytes: usize) -> Result<()> {
    let world = World::start().await;
    let mut names = names(inboxes);
    for (number, name) in names.iter().enumerate() {
        let mut raw = message("a@x.test", name, &format!("{number}@bench"), "large");
        let line = [&[b'x'; 76][..], b"\r\n"].concat();
        raw.extend(line.iter().cycle().take(megabytes * 1_000_000));
        world.imap.deliver(name, "INBOX", &raw);
    }
    // Another one, with small mail only.
    names.push("small@example.com".to_owned());
    let begun = Instant::now();
    let (_config, relay, _) =
        start(&world, &names, |config| config.raw("fetch", "new_per_sender", "0")).await?;
    let pid = relay.pid().ok_or("the relay has ended")?;
    let mut waits = Vec::new();
    let mut small = 0;
    // One after the other, as long as large ones are on their way.
    while world.odoo.taken().len() < inboxes + small {
        let sent = Instant::now();
        let raw = message("b@x.test", "small@example.com", &format!("small{small}@bench"), "small");
        let uid = world.imap.deliver("small@example.com", "INBOX", &raw);
        small += 1;
        until("a small mail", || {
            world.imap.flags("small@example.com", "INBOX", uid).is_some_and(|flags| flags.contains("\\Seen"))
        })
        .await?;
        waits.push(sent.elapsed());
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    waits.sort_unstable();
    println!(
        "{inboxes} inboxes with a mail of {megabytes} MB each: all in Odoo after {:.1} s; peak {:.0} MiB, afterwards {:.0} MiB",
        begun.elapsed().as_secs_f64(),
        process::peak(pid)?,
        process::resident(pid)?
    );
    println!(
        "  {small} small mails of another inbox meanwhile: median {:.0} ms, slowest {:.0} ms",
        waits.get(waits.len() / 2).map_or(0.0, |wait| wait.as_secs_f64() * 1e3),
        waits.last().map_or(0.0, |wait| wait.as_secs_f64() * 1e3)
    );
    Ok(())
}
