//! A store that was put back from a backup sends, pushes and reports nothing twice, and loses nothing.
#![expect(clippy::indexing_slicing, reason = "test code: a failure here must stop the test")]

use crate::company::{self, JOHN, NOTIFICATIONS};
use crate::support::client::message;
use crate::support::dovecot::Dovecot;
use crate::support::relay::{Config, Relay};
use crate::support::script::Rule;
use crate::support::smtp::{Fault, Step};
use crate::support::wait::{SOON, until};
use crate::support::world::World;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

const BOUNCE: &str = "bounce@example.com";
const GONE: &str = "gone@x.test";
const UNKNOWN: &str = "550 5.1.10 RESOLVER.ADR.RecipientNotFound; Recipient not found";

async fn send(relay: &Relay, to: &[&str], id: &str) {
    let reply = relay.send(BOUNCE, to, &message(JOHN, to[0], id, "Hi")).await;
    assert_eq!(reply.code, 250, "{reply:?}");
}

async fn backup(config: &Config) -> PathBuf {
    let file = config.dir().join("backup.db");
    config.cli(&["store", "backup", file.to_str().unwrap()]).await.success();
    file
}

/// How a store comes back.
#[derive(Clone, Copy, Debug)]
enum How {
    /// By `store restore`, of a file that `store backup` made.
    Restored,
    /// The same file, put in place by hand.
    ByHand,
    /// By `store restore`, of a plain copy of the store's file.
    PlainCopy,
}

async fn put_back(config: &Config, file: &Path, how: How) {
    match how {
        How::Restored | How::PlainCopy => {
            config.cli(&["store", "restore", file.to_str().unwrap()]).await.success();
        }
        How::ByHand => {
            let store = config.dir().join("relay.db");
            assert!(!store.with_extension("db-wal").exists(), "it was stopped in order");
            std::fs::copy(file, store).unwrap();
        }
    }
}

async fn queue_is_empty(config: &Config, relay: &Relay) {
    let end = tokio::time::Instant::now() + SOON;
    loop {
        let queue = company::queue(config).await;
        if queue.is_empty() {
            return;
        }
        assert!(tokio::time::Instant::now() < end, "{queue:#?}\n{}", relay.log().join("\n"));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// How often each message was taken by Microsoft, by its Message-Id.
fn sent(world: &World) -> BTreeMap<String, usize> {
    let mut sent = BTreeMap::new();
    for mail in world.smtp.delivered() {
        let id = mail.text().split("Message-Id: <").nth(1).unwrap().split('>').next().unwrap().to_owned();
        *sent.entry(id).or_default() += 1;
    }
    sent
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_sent_since_is_not_sent_again_and_what_was_not_is_sent_once() {
    for how in [How::Restored, How::ByHand, How::PlainCopy] {
        let world = World::start().await;
        let dovecot = Dovecot::start(&world.tls, &world.entra).await;
        world.smtp.set_hook(dovecot.sent_items());
        let mut config = company::config(&world);
        config.text("microsoft", "imap", &dovecot.imap_endpoint());
        config.text("delivery", "sent_delay", "1s");
        company::connect(&world, &config).await;
        let mut relay = config.start().await;
        world.smtp.script(Rule::new(Step::Mail, Fault::reply("451 4.3.0 Later")).always());
        for id in ["sent@t", "two@t", "unsent@t"] {
            send(&relay, &["a@x.test", "b@x.test"][..1 + usize::from(id == "two@t")], id).await;
        }
        until(SOON, "an attempt at each", || relay.count_log("deferred") >= 3).await;
        let mut file = backup(&config).await;
        if matches!(how, How::PlainCopy) {
            relay.terminate(SOON).await;
            file = config.dir().join("copy.db");
            std::fs::copy(config.dir().join("relay.db"), &file).unwrap();
            relay = config.start().await;
        }
        world.smtp.clear();
        world
            .smtp
            .script(Rule::new(Step::AfterDot, Fault::reply("451 4.3.0 Later")).always().only("unsent@t"));
        config.cli(&["queue", "retry", "--all"]).await.success();
        send(&relay, &["a@x.test"], "later@t").await;
        until(SOON, "all but one", || world.smtp.count() == 3).await;
        until(SOON, "that written down", || relay.count_log(" sent ") == 3).await;
        assert_eq!(relay.terminate(SOON).await, Some(0));

        put_back(&config, &file, how).await;
        world.smtp.clear();
        let mut relay = config.start().await;
        let line = relay.wait_for_log(" restored ").await;
        assert!(
            line.contains("WARN") && line.contains("messages=3") && line.contains("Sent Items"),
            "{line}"
        );
        queue_is_empty(&config, &relay).await;
        let ids = ["later@t", "sent@t", "two@t", "unsent@t"];
        assert_eq!(sent(&world), ids.map(|id| (id.to_owned(), 1)).into(), "{how:?}");
        assert_eq!(relay.count_log("found="), 2, "{:#?}", relay.log());

        // The next start is like any other.
        send(&relay, &["a@x.test"], "new@t").await;
        until(SOON, "new mail", || world.smtp.count() == 5).await;
        assert_eq!(relay.terminate(SOON).await, Some(0));
        let relay = config.start().await;
        relay.wait_for_log(" ready ").await;
        assert_eq!(relay.count_log(" restored "), 0);
    }
}

#[tokio::test]
async fn a_kill_at_the_first_start_with_a_backup_does_not_make_it_forget() {
    let world = World::start().await;
    let mut config = company::config(&world);
    config.text("delivery", "sent_delay", "1s");
    company::connect(&world, &config).await;
    let mut relay = config.start().await;
    world.smtp.server.down().await;
    for number in 0..20 {
        send(&relay, &["a@x.test"], &format!("{number}@t")).await;
    }
    let file = backup(&config).await;
    world.smtp.server.up().await;
    config.cli(&["queue", "retry", "--all"]).await.success();
    until(SOON, "all", || world.smtp.count() == 20).await;
    relay.kill9().await;
    put_back(&config, &file, How::Restored).await;
    for pause in 0..20 {
        let mut relay = config.spawn();
        tokio::time::sleep(Duration::from_millis(pause * 10)).await;
        relay.kill9().await;
    }
    let relay = config.start().await;
    queue_is_empty(&config, &relay).await;
    assert_eq!(world.smtp.count(), 20, "{:#?}", sent(&world));
}

#[tokio::test]
async fn where_nobody_can_look_the_policy_decides() {
    let world = World::start().await;
    let mut config = company::config(&world);
    config.text("delivery", "sent_delay", "1s");
    config.text("delivery", "on_unknown", "hold");
    company::connect(&world, &config).await;
    let mut relay = config.start().await;
    world.smtp.server.down().await;
    send(&relay, &["a@x.test"], "1@t").await;
    relay.wait_for_log("mailbox paused").await;
    let file = backup(&config).await;
    world.smtp.server.up().await;
    config.cli(&["queue", "retry", "--all"]).await.success();
    until(SOON, "it", || world.smtp.count() == 1).await;
    relay.terminate(SOON).await;
    put_back(&config, &file, How::Restored).await;
    world
        .imap
        .script(Rule::new("AUTHENTICATE", crate::support::imap::Fault::no("AUTHENTICATE failed.")).always());
    let relay = config.start().await;
    relay.wait_for_log(" held ").await;
    assert_eq!(company::queue(&config).await[0]["state"], "held");
    assert_eq!(world.smtp.count(), 1);
}

#[tokio::test]
async fn odoo_gets_nothing_twice() {
    let world = World::start().await;
    let mut config = company::config(&world);
    config.text("odoo", "report_after", "1ms");
    config.text("delivery", "sent_delay", "1s");
    company::connect(&world, &config).await;
    world.smtp.script(Rule::new(Step::Rcpt, Fault::reply(UNKNOWN)).always().only(GONE));
    let mut relay = config.start().await;
    let to_us = |id: &str| message("customer@foreign.test", NOTIFICATIONS, id, "Hi");
    world.imap.deliver(NOTIFICATIONS, "INBOX", &to_us("before@t"));
    until(SOON, "the one before", || world.odoo.taken().len() == 1).await;
    // At the time of the backup a report and a received message wait for Odoo, and a message that will fail for Microsoft.
    world.odoo.server.down().await;
    send(&relay, &[GONE], "reported@t").await;
    relay.wait_for_log(" failed ").await;
    world.imap.deliver(NOTIFICATIONS, "INBOX", &to_us("waiting@t"));
    relay.wait_for_log("odoo failed").await;
    world.smtp.server.down().await;
    send(&relay, &[GONE], "queued@t").await;
    let file = backup(&config).await;

    world.odoo.server.up().await;
    world.smtp.server.up().await;
    config.cli(&["queue", "retry", "--state", "waiting"]).await.success();
    world.imap.deliver(NOTIFICATIONS, "INBOX", &to_us("after@t"));
    until(SOON * 2, "what waited", || world.odoo.taken().len() == 3).await;
    until(SOON * 2, "both reports", || world.odoo.bounces().len() >= 2).await;
    until(SOON, "all marked", || {
        (1..=3).all(|uid| world.imap.flags(NOTIFICATIONS, "INBOX", uid).unwrap().contains("\\Seen"))
    })
    .await;
    relay.terminate(SOON).await;
    let posts = world.odoo.posts().len();
    // Somebody marks them unread: no mark tells any more that they were pushed.
    for uid in 1..=3 {
        world.imap.set_flags(NOTIFICATIONS, "INBOX", uid, &[]);
    }

    put_back(&config, &file, How::Restored).await;
    let relay = config.start().await;
    world.imap.deliver(NOTIFICATIONS, "INBOX", &to_us("new@t"));
    until(SOON, "new mail", || world.odoo.taken().len() == 4).await;
    let line = |id: &'static str| {
        let log = relay.log();
        move || log.iter().filter(|line| line.contains("bounced") && line.contains(id)).count()
    };
    until(SOON, "both reports known", || line("reported@t")() == 1 && line("queued@t")() == 1).await;
    assert!(relay.log().iter().filter(|line| line.contains("bounced")).all(|line| line.contains("known")));
    until(SOON, "the received ones known", || relay.count_log("answer=\"known\"") >= 4).await;
    assert_eq!(world.odoo.posts().len(), posts + 1, "{:#?}", relay.log());
    assert_eq!(world.odoo.bounces().len(), 2);
}

#[tokio::test]
async fn the_tokens_of_a_backup_still_work() {
    let world = World::start().await;
    world.entra.set_expires_in(3);
    let (config, mut relay) = company::start(&world).await;
    let file = backup(&config).await;
    until(SOON, "several rotations", || world.entra.refreshes(JOHN) >= 3).await;
    relay.terminate(SOON).await;
    put_back(&config, &file, How::Restored).await;
    let relay = config.start().await;
    send(&relay, &["a@x.test"], "1@t").await;
    until(SOON, "mail", || world.smtp.count() == 1).await;
    assert_eq!(relay.count_log("token failed"), 0, "{:#?}", relay.log());
}
