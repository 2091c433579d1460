//! Mail that waits: how long still, that it is late, and the other way out.

use crate::company::{self, JOHN, NOTIFICATIONS};
use crate::support::client::message;
use crate::support::relay::Config;
use crate::support::script::Rule;
use crate::support::smtp::{Fault, Step};
use crate::support::wait::{SOON, until};
use crate::support::world::World;

const BOUNCE: &str = "bounce@example.com";

fn blocked() -> Rule<Step, Fault> {
    let refusal =
        "535 5.7.139 Authentication unsuccessful, SmtpClientAuthentication is disabled for the Mailbox.";
    Rule::new(Step::Auth, Fault::reply(refusal)).always().only(JOHN)
}

async fn john(config: &Config) -> serde_json::Value {
    let status: serde_json::Value =
        serde_json::from_str(&config.cli(&["status", "--json"]).await.stdout).unwrap();
    status.pointer("/mailboxes/1").unwrap().clone()
}

#[tokio::test]
async fn the_mail_of_a_blocked_mailbox_goes_out_as_the_notifications_address() {
    let world = World::start().await;
    let mut config = company::config(&world);
    config.text("delivery", "fallback_after", "1s");
    company::connect(&world, &config).await;
    let relay = config.start().await;
    world.smtp.script(blocked());
    for id in ["1@t", "2@t"] {
        relay.send(BOUNCE, &["a@x.test"], &message(JOHN, "a@x.test", id, "Hi")).await;
    }
    until(SOON, "both", || world.smtp.count() == 2).await;
    for mail in world.smtp.delivered() {
        assert_eq!(mail.mailbox, NOTIFICATIONS);
        assert!(mail.text().contains(NOTIFICATIONS) && !mail.text().contains(JOHN), "{}", mail.text());
    }
    let line = relay.wait_for_log("rerouted").await;
    assert!(line.contains("WARN") && line.contains(JOHN) && line.contains(NOTIFICATIONS), "{line}");
    assert_eq!(relay.count_log("rerouted"), 2);
}

#[tokio::test]
async fn late_mail_is_mentioned_once_and_its_mailbox_says_when_it_is_done() {
    let world = World::start().await;
    let mut config = company::config(&world);
    config.text("delivery", "delay_warning", "1s");
    config.raw("delivery", "messages_per_minute", "2");
    company::connect(&world, &config).await;
    let relay = config.start().await;
    for n in 0..4 {
        relay.send(BOUNCE, &["a@x.test"], &message(JOHN, "a@x.test", &format!("{n}@t"), "Hi")).await;
    }
    until(SOON, "two to be late", || relay.count_log("delayed") == 2).await;
    assert_eq!(world.smtp.count(), 2);
    assert!(john(&config).await["done_by"].is_string());
    world.smtp.script(blocked());
    relay.send(BOUNCE, &["a@x.test"], &message(JOHN, "a@x.test", "5@t", "Hi")).await;
    until(SOON, "the third", || relay.count_log("delayed") == 3).await;
    let status = john(&config).await;
    assert_eq!(status["queue"]["waiting"], 3, "{status:#}");
}

#[tokio::test]
async fn the_pace_outlives_a_kill() {
    let world = World::start().await;
    let mut config = company::config(&world);
    config.raw("delivery", "messages_per_minute", "3");
    company::connect(&world, &config).await;
    let mut relay = config.start().await;
    for n in 0..5 {
        relay.send(BOUNCE, &["a@x.test"], &message(JOHN, "a@x.test", &format!("{n}@t"), "Hi")).await;
    }
    until(SOON, "the first three", || relay.count_log(" sent") == 3).await;
    relay.kill9().await;
    relay = config.start().await;
    relay.send(BOUNCE, &["a@x.test"], &message(NOTIFICATIONS, "a@x.test", "other@t", "Hi")).await;
    until(SOON, "another mailbox's mail", || relay.count_log(" sent") == 1).await;
    assert_eq!(world.smtp.count(), 4, "none of the two more of John's");
}
