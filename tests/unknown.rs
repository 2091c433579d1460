//! Whether a message was sent is looked up in the folder of sent mail, of a real IMAP server.

use crate::company::{self, JANE, JOHN};
use crate::support::client::message;
use crate::support::dovecot::Dovecot;
use crate::support::imap::Fault as ImapFault;
use crate::support::relay::{Config, Relay};
use crate::support::script::Rule;
use crate::support::smtp::{Fault, Step};
use crate::support::wait::{SOON, until};
use crate::support::world::World;
use std::time::Duration;

const BOUNCE: &str = "bounce@example.com";

/// What the scripted service takes lies in Dovecot's folder of sent mail.
async fn start(world: &World) -> (Dovecot, Config, Relay) {
    let dovecot = Dovecot::start(&world.tls, &world.entra).await;
    world.smtp.set_hook(dovecot.sent_items());
    let mut config = company::config(world);
    config.text("microsoft", "imap", &dovecot.imap_endpoint());
    config.text("delivery", "sent_delay", "1s");
    company::connect(world, &config).await;
    let relay = config.start().await;
    (dovecot, config, relay)
}

async fn send(relay: &Relay, to: &str, id: &str) {
    let reply = relay.send(BOUNCE, &[to], &message(JOHN, to, id, "Hi")).await;
    assert_eq!(reply.code, 250, "{reply:?}");
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

#[tokio::test]
async fn what_was_taken_is_found_and_what_was_not_is_sent_again() {
    let world = World::start().await;
    let (dovecot, config, relay) = start(&world).await;
    let odd = r#"a"b\c (d)@t"#;
    for id in ["1@t", odd] {
        world.smtp.fail_next(Step::AfterDot, Fault::KeepThenCut);
        send(&relay, "a@x.test", id).await;
        queue_is_empty(&config, &relay).await;
    }
    let line = relay.wait_for_log("found=").await;
    assert!(line.contains("INFO") && line.contains(" sent ") && line.contains("Sent"), "{line}");
    assert_eq!((relay.count_log("found="), world.smtp.count()), (2, 2));

    world.smtp.fail_next(Step::AfterDot, Fault::Cut);
    send(&relay, "a@x.test", "2@t").await;
    queue_is_empty(&config, &relay).await;
    assert_eq!((relay.count_log("found="), world.smtp.count()), (2, 3));
    assert_eq!(dovecot.messages(JOHN, "Sent").len(), 3);
    assert!(dovecot.messages(JOHN, "Sent").iter().all(|copy| !copy.flags.contains('S')), "only looked at");
}

#[tokio::test]
async fn of_two_transactions_with_one_message_id_the_one_that_was_not_taken_is_sent_again() {
    let world = World::start().await;
    let (dovecot, config, relay) = start(&world).await;
    world.smtp.script(Rule::new(Step::AfterDot, Fault::KeepThenCut).only("a@x.test"));
    world.smtp.script(Rule::new(Step::AfterDot, Fault::Cut).only("b@x.test"));
    send(&relay, "a@x.test", "one@t").await;
    send(&relay, "b@x.test", "one@t").await;
    queue_is_empty(&config, &relay).await;
    let mut to: Vec<_> = world.smtp.delivered().into_iter().flat_map(|mail| mail.recipients).collect();
    to.sort();
    assert_eq!(to, ["a@x.test", "b@x.test"]);
    assert_eq!(dovecot.messages(JOHN, "Sent").len(), 2);
}

#[tokio::test]
async fn a_kill_before_the_answer_is_written_down_costs_neither_a_loss_nor_a_duplicate() {
    let world = World::start().await;
    let (_dovecot, config, mut relay) = start(&world).await;
    for round in 0..6 {
        let taken = round % 2 == 0;
        let fault = if taken { Fault::KeepThenSilence } else { Fault::Silence };
        let before = world.smtp.count();
        world.smtp.fail_next(Step::AfterDot, fault);
        send(&relay, "a@x.test", &format!("{round}@t")).await;
        until(SOON, "the final dot", || world.smtp.pending() == 0).await;
        until(SOON, "it to be taken", || world.smtp.count() == before + usize::from(taken)).await;
        relay.kill9().await;
        relay = config.start().await;
        queue_is_empty(&config, &relay).await;
        assert_eq!(world.smtp.count(), before + 1, "round {round}");
        assert_eq!(relay.count_log("found="), usize::from(taken), "round {round}: {:#?}", relay.log());
    }
}

#[tokio::test]
async fn where_imap_is_off_the_policy_decides() {
    let world = World::start().await;
    let mut config = company::config(&world);
    config.text("delivery", "sent_delay", "1s");
    config.mailbox(JOHN, &[("from_filter", "\"john@example.com\""), ("on_unknown", "\"hold\"")]);
    config.mailbox(JANE, &[("from_filter", "\"jane@example.com\"")]);
    company::connect(&world, &config).await;
    let relay = config.start().await;
    let off = || ImapFault::no("AUTHENTICATE failed.");
    world.imap.script(Rule::new("AUTHENTICATE", off()).always());
    world.smtp.script(Rule::new(Step::AfterDot, Fault::KeepThenCut).times(2));
    for from in [JOHN, JANE] {
        relay.send(BOUNCE, &["a@x.test"], &message(from, "a@x.test", from, "Hi")).await;
    }
    until(SOON, "Jane's mail for the second time", || world.smtp.count() == 3).await;
    assert_eq!(world.smtp.delivered()[2].mailbox, JANE);
    let line = relay.wait_for_log(" held ").await;
    assert!(
        line.contains("ERROR") && line.contains("queue retry") && line.contains("queue cancel"),
        "{line}"
    );
    let queue = company::queue(&config).await;
    assert_eq!((queue.len(), &queue[0]["state"]), (1, &serde_json::json!("held")), "{queue:#?}");
    assert_eq!(queue[0]["recipients"][0]["state"], "unknown");
    assert_eq!(relay.count_log(" held "), 1);
    let status = config.cli(&["status"]).await;
    assert!(status.code == Some(1) && status.stdout.contains("nobody knows whether 1 message"), "{status:?}");
}
