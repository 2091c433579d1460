//! What Microsoft 365 does wrong now and then: nothing is lost by it.

use crate::company::{self, JANE, JOHN};
use crate::support::client::message;
use crate::support::relay::{Config, Relay};
use crate::support::script::Rule;
use crate::support::smtp::{Fault, Step};
use crate::support::store;
use crate::support::wait::{SOON, until};
use crate::support::world::World;
use serde_json::Value;
use std::time::Duration;

const BOUNCE: &str = "bounce@example.com";

/// A relay that tries a message again within seconds: what is tried last is tried when `retry_for` ends.
async fn impatient(world: &World) -> (Config, Relay) {
    let mut config = company::config(world);
    config.text("delivery", "retry_for", "4s");
    config.text("delivery", "sent_delay", "500ms");
    config.text("delivery", "reply_timeout", "1s");
    company::connect(world, &config).await;
    let relay = config.start().await;
    (config, relay)
}

/// A relay that gives up on a silent server within seconds, and on a message in two days.
async fn patient(world: &World) -> (Config, Relay) {
    let mut config = company::config(world);
    config.text("delivery", "reply_timeout", "1s");
    company::connect(world, &config).await;
    let relay = config.start().await;
    (config, relay)
}

async fn send(relay: &Relay, id: &str) {
    let reply = relay.send(BOUNCE, &["a@x.test"], &message(JOHN, "a@x.test", id, "Hi")).await;
    assert_eq!(reply.code, 250, "{reply:?}");
}

/// Waits until the one message in the queue has an attempt with an outcome; gives the message.
async fn attempted(config: &Config) -> Value {
    let end = tokio::time::Instant::now() + SOON;
    loop {
        let queue = company::queue(config).await;
        let settled =
            queue.iter().find(|m| m["attempts"].as_array().unwrap().iter().any(|a| !a["outcome"].is_null()));
        if let Some(message) = settled {
            return message.clone();
        }
        assert!(tokio::time::Instant::now() < end, "no attempt has an outcome: {queue:#?}");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn a_passing_refusal_is_tried_again_and_succeeds() {
    let world = World::start().await;
    let (config, relay) = impatient(&world).await;
    world
        .smtp
        .fail_next(Step::Mail, Fault::reply("451 4.7.0 Temporary server error. Please try again later."));
    send(&relay, "later@t").await;
    let line = relay.wait_for_log("deferred").await;
    assert!(line.contains("4.7.0") && line.contains("transient"), "{line}");
    until(SOON, "the second attempt", || world.smtp.count() == 1).await;
    until(SOON, "its log line", || relay.count_log(" sent ") > 0).await;
    assert_eq!(company::queue(&config).await, Vec::<Value>::new());
}

#[tokio::test]
async fn a_final_refusal_is_kept_as_failed_with_its_reply() {
    let world = World::start().await;
    let (config, relay) = impatient(&world).await;
    world.smtp.script(Rule::new(Step::AfterDot, Fault::reply("554 5.2.3 Message too large")).always());
    send(&relay, "never@t").await;
    let message = attempted(&config).await;
    assert_eq!(message["state"], "failed", "{message:#}");
    assert!(message["attempts"][0]["reply"].as_str().unwrap().contains("too large"), "{message:#}");
    let line = relay.wait_for_log("ERROR").await;
    assert!(line.contains("5.2.3") && line.contains(JOHN), "{line}");
    let table = config.cli(&["queue", "list"]).await.success();
    assert!(table.contains("failed") && table.contains("Message too large"), "{table}");
}

#[tokio::test]
async fn what_passes_for_too_long_is_given_up() {
    let world = World::start().await;
    let (config, relay) = impatient(&world).await;
    world.smtp.script(Rule::new(Step::Mail, Fault::reply("451 4.4.3 Temporary server error.")).always());
    send(&relay, "given-up@t").await;
    until(SOON, "giving up", || {
        relay.log().iter().any(|line| line.contains("ERROR") && line.contains("4.4.3"))
    })
    .await;
    let queue = company::queue(&config).await;
    assert_eq!(queue[0]["state"], "failed", "{queue:#?}");
    assert!(queue[0]["attempts"].as_array().unwrap().len() >= 2, "{queue:#?}");
}

#[tokio::test]
async fn a_connection_cut_inside_the_data_is_no_delivery_and_no_loss() {
    let world = World::start().await;
    let (config, relay) = impatient(&world).await;
    world.smtp.fail_next(Step::MidData, Fault::Cut);
    send(&relay, "cut@t").await;
    until(SOON, "the whole mail", || world.smtp.count() == 1).await;
    assert!(world.smtp.delivered()[0].text().ends_with("\r\n"));
    until(SOON, "an empty queue", || relay.count_log(" sent") > 0).await;
    assert_eq!(company::queue(&config).await, Vec::<Value>::new());
}

#[tokio::test]
async fn a_connection_cut_after_the_final_dot_has_an_unknown_outcome() {
    let world = World::start().await;
    let (config, relay) = patient(&world).await;
    world.smtp.fail_next(Step::AfterDot, Fault::Cut);
    send(&relay, "unknown@t").await;
    let message = attempted(&config).await;
    assert_eq!(message["attempts"][0]["outcome"], "unknown", "{message:#}");
    assert_eq!(message["recipients"][0]["state"], "unknown", "{message:#}");
    assert_eq!(message["state"], "waiting", "{message:#}");
    let line = relay.wait_for_log("deferred").await;
    assert!(line.contains("unknown=true") && line.contains("WARN"), "{line}");
}

#[tokio::test]
async fn a_server_that_goes_silent_is_given_up_at_every_step() {
    let steps = [
        Step::Connect,
        Step::Ehlo,
        Step::StartTls,
        Step::Handshake,
        Step::EhloTls,
        Step::Auth,
        Step::Mail,
        Step::Rcpt,
        Step::Data,
        Step::AfterDot,
    ];
    for step in steps {
        let world = World::start().await;
        let (config, relay) = patient(&world).await;
        world.smtp.script(Rule::new(step, Fault::Silence).always());
        send(&relay, "silence@t").await;
        let message = attempted(&config).await;
        assert_ne!(message["state"], "failed", "{step:?}: {message:#}");
        assert_ne!(message["attempts"][0]["outcome"], "sent", "{step:?}: {message:#}");
        assert_eq!(world.smtp.count(), 0, "{step:?}");
    }
}

#[tokio::test]
async fn one_mailbox_in_trouble_holds_up_no_other_and_logs_once() {
    let world = World::start().await;
    let (config, relay) = patient(&world).await;
    let disabled =
        "535 5.7.139 Authentication unsuccessful, SmtpClientAuthentication is disabled for the Mailbox.";
    world.smtp.script(Rule::new(Step::Auth, Fault::reply(disabled)).always().only(JOHN));
    for n in 0..10 {
        send(&relay, &format!("{n}@t")).await;
    }
    let line = relay.wait_for_log("mailbox paused").await;
    assert!(line.contains("ERROR") && line.contains("Set-CASMailbox john@example.com"), "{line}");
    relay.send(BOUNCE, &["a@x.test"], &message(JANE, "a@x.test", "jane@t", "Hi")).await;
    until(SOON, "the other mailbox's mail", || world.smtp.count() == 1).await;
    assert_eq!(world.smtp.delivered()[0].mailbox, JANE);
    assert_eq!(relay.count_log("mailbox paused"), 1, "{:#?}", relay.log());
    assert_eq!(company::queue(&config).await.len(), 10, "nothing is given up");
    assert_eq!(config.cli(&["status"]).await.code, Some(1));
}

#[tokio::test]
async fn a_store_that_cannot_be_written_is_said_once_and_in_the_status() {
    let world = World::start().await;
    let (config, relay) = patient(&world).await;
    let database = store::open(config.dir().join("relay.db"));
    let broken = "CREATE TRIGGER broken BEFORE UPDATE ON message WHEN NEW.state = 'sending' BEGIN SELECT raise(FAIL, 'disk is full'); END";
    database.execute_batch(broken).unwrap();
    send(&relay, "unbooked@t").await;
    relay.wait_for_log("store failed").await;
    // It takes some more tries meanwhile; the store can be read all the while.
    let end = tokio::time::Instant::now() + Duration::from_secs(4);
    let mut said = 0;
    while tokio::time::Instant::now() < end {
        let status = config.cli(&["status"]).await;
        said += usize::from(status.code == Some(1) && status.stdout.contains("disk is full"));
    }
    assert!(said > 0, "{:?}", config.cli(&["status"]).await);
    database.execute_batch("DROP TRIGGER broken").unwrap();
    until(SOON, "the mail", || world.smtp.count() == 1).await;
    relay.wait_for_log("store recovered").await;
    assert_eq!(
        (relay.count_log("store failed"), relay.count_log("store recovered")),
        (1, 1),
        "{:#?}",
        relay.log()
    );
    until(SOON, "an empty queue", || relay.count_log(" sent") > 0).await;
    config.cli(&["status"]).await.success();
}

#[tokio::test]
async fn garbage_and_endless_lines_do_no_harm() {
    for (step, fault) in [
        (Step::Banner, Fault::Garbage),
        (Step::Banner, Fault::EndlessLine),
        (Step::Ehlo, Fault::EndlessLine),
        (Step::StartTls, Fault::reply("220 2.0.0 go ahead\r\n250 2.1.0 injected")),
        (Step::Mail, Fault::Garbage),
        (Step::Mail, Fault::EndlessLine),
        (Step::AfterDot, Fault::EndlessLine),
    ] {
        let world = World::start().await;
        let (config, relay) = patient(&world).await;
        world.smtp.script(Rule::new(step, fault.clone()).always());
        send(&relay, "garbage@t").await;
        let message = attempted(&config).await;
        assert_ne!(message["state"], "failed", "{step:?} {fault:?}: {message:#}");
        let memory = std::fs::read_to_string(format!("/proc/{}/status", relay.pid().unwrap())).unwrap();
        let peak: u64 = memory
            .lines()
            .find_map(|line| line.strip_prefix("VmHWM:"))
            .unwrap()
            .trim()
            .trim_end_matches(" kB")
            .parse()
            .unwrap();
        assert!(peak < 200_000, "{step:?} {fault:?}: {peak} kB");
    }
}
