//! What an operator does to the queue: look, have tried again, cancel.

use crate::company::{self, JANE, JOHN};
use crate::page::{PASSWORD, Visitor, with_password};
use crate::support::client::{SmtpClient, message};
use crate::support::relay::Config;
use crate::support::script::Rule;
use crate::support::smtp::{Fault, Step};
use crate::support::wait::{SOON, until};
use crate::support::world::World;
use serde_json::Value;
use tokio::time::Instant;

const BOUNCE: &str = "bounce@example.com";

/// The first message of the queue that is like that.
async fn queued(config: &Config, what: &str, like: impl Fn(&Value) -> bool) -> Value {
    let end = Instant::now() + SOON;
    loop {
        let queue = company::queue(config).await;
        if let Some(message) = queue.iter().find(|message| like(message)) {
            return message.clone();
        }
        assert!(Instant::now() < end, "not in time: {what}; last seen: {queue:#?}");
    }
}

#[tokio::test]
async fn a_deferred_message_is_shown_with_its_history_and_tried_again_at_once() {
    let world = World::start().await;
    let (config, relay) = company::start(&world).await;
    world.smtp.fail_next(Step::AfterDot, Fault::reply("451 4.7.500 Server busy. Please try again later"));
    let body = message(JOHN, "a@x.test", "again@t", "Hi");
    assert_eq!(relay.send(BOUNCE, &["a@x.test"], &body).await.code, 250);
    let waits = queued(&config, "a deferred message", |m| m["attempts"][0]["outcome"] == "deferred").await;
    let id = waits["id"].as_str().unwrap();

    let shown = config.cli(&["queue", "show", id]).await.success();
    for part in
        [id, "waiting until", JOHN, "rule: address", "<again@t>", "451 4.7.500", "Please try again later"]
    {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    let json: Value =
        serde_json::from_str(&config.cli(&["queue", "show", id, "--json"]).await.success()).unwrap();
    assert_eq!(json["attempts"][0]["code"], "451 4.7.500");
    let raw = config.cli(&["queue", "show", id, "--raw"]).await.success();
    assert_eq!(raw.as_bytes(), body);

    let jane = message(JANE, "b@x.test", "other@t", "Hi");
    assert_eq!(relay.send(BOUNCE, &["b@x.test"], &jane).await.code, 250);
    until(SOON, "another mailbox's mail", || world.smtp.count() == 1).await;
    let none = config.cli(&["queue", "retry", "--mailbox", JANE]).await.success();
    assert_eq!(none, "0 messages to be tried now.\n");
    let said = config.cli(&["queue", "retry", id]).await.success();
    assert_eq!(said, "1 message to be tried now.\n");
    until(SOON, "the retried mail", || world.smtp.count() == 2).await;
    until(SOON, "the log of it", || {
        relay.log().iter().any(|line| line.contains("sent") && line.contains("<again@t>"))
    })
    .await;
    let gone = config.cli(&["queue", "show", id]).await;
    assert!(gone.code == Some(1) && gone.stderr.contains("is not in the queue"), "{gone:?}");
}

#[tokio::test]
async fn what_failed_is_tried_again_once_its_cause_is_mended() {
    let world = World::start().await;
    let (config, relay) = company::start(&world).await;
    world.smtp.fail_next(Step::Rcpt, Fault::reply("550 5.1.10 RESOLVER.ADR.RecipientNotFound"));
    let body = message(JOHN, "late@x.test", "late@t", "Hi");
    assert_eq!(relay.send(BOUNCE, &["late@x.test"], &body).await.code, 250);
    let failed = queued(&config, "a failed message", |m| m["state"] == "failed").await;
    let shown = config.cli(&["queue", "show", failed["id"].as_str().unwrap()]).await.success();
    assert!(shown.contains("What to do: ") && shown.contains("correct the address"), "{shown}");
    let listed = config.cli(&["queue", "list", "--state", "waiting"]).await.success();
    assert_eq!(listed, "No message of the queue is like that.\n");
    let young =
        config.cli(&["queue", "retry", "--state", "failed", "--older-than", "1 hour"]).await.success();
    assert_eq!(young, "0 messages to be tried now.\n");
    let done = config.cli(&["queue", "retry", "--state", "failed", "--json"]).await.success();
    let done: Value = serde_json::from_str(&done).unwrap();
    assert_eq!(done, serde_json::json!([{"id": failed["id"], "done": true}]));
    until(SOON, "the mail", || world.smtp.count() == 1).await;
}

#[tokio::test]
async fn a_cancelled_message_is_never_sent_and_odoo_hears_of_it() {
    let world = World::start().await;
    let mut config = company::config(&world);
    config.text("odoo", "report_after", "1ms");
    company::connect(&world, &config).await;
    let relay = config.start().await;
    world.smtp.script(Rule::new(Step::Mail, Fault::reply("451 4.3.0 later")).always());
    for id in ["1@t", "2@t"] {
        assert_eq!(relay.send(BOUNCE, &["a@x.test"], &message(JOHN, "a@x.test", id, "Hi")).await.code, 250);
    }
    let first = queued(&config, "a message that waits", |m| {
        m["message_id"] == "<1@t>" && m["attempts"][0]["outcome"] == "deferred"
    })
    .await;
    queued(&config, "the other", |m| m["message_id"] == "<2@t>" && m["attempts"][0]["outcome"] == "deferred")
        .await;
    let id = first["id"].as_str().unwrap();
    assert_eq!(config.cli(&["queue", "cancel", id]).await.success(), "1 message cancelled.\n");
    let again = config.cli(&["queue", "cancel", id]).await;
    assert!(again.code == Some(1) && again.stderr.contains("no such message"), "{again:?}");
    until(SOON, "Odoo's word of it", || {
        world.odoo.bounces() == [("<1@t>".to_owned(), "a@x.test".to_owned())]
    })
    .await;
    world.smtp.clear();
    assert_eq!(config.cli(&["queue", "retry", "--all"]).await.success(), "1 message to be tried now.\n");
    until(SOON, "the other mail", || world.smtp.count() == 1).await;
    assert!(world.smtp.delivered()[0].text().contains("<2@t>"));
}

#[tokio::test]
async fn nothing_is_changed_unless_something_is_named() {
    let world = World::start().await;
    let (config, _relay) = company::start(&world).await;
    for words in [
        &["queue", "retry"][..],
        &["queue", "cancel"],
        &["queue", "cancel", "--all", "--mailbox", JOHN],
        &["queue", "list", "--state", "odd"],
    ] {
        assert_eq!(config.cli(words).await.code, Some(2), "{words:?}");
    }
    for (words, seen) in [
        (&["queue", "retry", "not/an/id"][..], "is not a queue id"),
        (&["queue", "show", "0"], "is not in the queue"),
        (&["queue", "list", "--older-than", "soon"], "is not a duration"),
        (&["queue", "cancel", "--mailbox", "nobody@example.com"], "not a mailbox of the configuration"),
    ] {
        let output = config.cli(words).await;
        assert!(output.code == Some(1) && output.stderr.contains(seen), "{output:?}");
    }
}

#[tokio::test]
async fn the_page_shows_the_queue_and_has_the_same_buttons() {
    let world = World::start().await;
    let mut config = company::config(&world);
    with_password(&mut config);
    company::connect(&world, &config).await;
    let relay = config.start().await;
    world.smtp.script(Rule::new(Step::AfterDot, Fault::reply("451 4.7.500 Server <busy>")).always());
    for id in ["1@t", "2@t"] {
        assert_eq!(relay.send(BOUNCE, &["a@x.test"], &message(JOHN, "a@x.test", id, "Hi")).await.code, 250);
    }
    let mut ids = Vec::new();
    for id in ["<1@t>", "<2@t>"] {
        let deferred = queued(&config, "a deferred message", |m| {
            m["message_id"] == id && m["attempts"][0]["outcome"] == "deferred"
        })
        .await;
        ids.push(deferred["id"].as_str().unwrap().to_owned());
    }
    let mut stranger = Visitor::new(&relay);
    for path in ["/queue", &format!("/queue/{}", ids[0])] {
        assert_eq!(stranger.get(path).await.header("location"), "/login", "{path}");
    }
    let mut visitor = Visitor::new(&relay);
    visitor.sign_in(PASSWORD).await;
    assert!(visitor.get("/").await.body.contains(&format!("/queue/{}", ids[0])));
    let list = visitor.get("/queue").await.body;
    assert!(ids.iter().all(|id| list.contains(id)) && list.contains("Server &lt;busy&gt;"), "{list}");
    let one = format!("/queue/{}", ids[0]);
    let shown = visitor.get(&one).await.body;
    for part in ["Tried again later", "451 4.7.500", "&lt;1@t&gt;", "a@x.test", "Try now", "Cancel it"] {
        assert!(shown.contains(part), "{part}: {shown}");
    }

    let (retry, cancel) = (format!("{one}/retry"), format!("{one}/cancel"));
    assert_eq!(visitor.post(&cancel, &[("csrf", "forged")]).await.status, 403);
    let csrf = visitor.csrf(&one).await;
    assert_eq!(stranger.post(&cancel, &[("csrf", &csrf)]).await.header("location"), "/login");
    assert_eq!(visitor.post(&cancel, &[("csrf", &csrf)]).await.header("location"), "/queue");
    for path in [&cancel, &retry] {
        let answer = visitor.post(path, &[("csrf", &csrf)]).await;
        assert!(answer.status == 409 && answer.body.contains("Nothing was changed"), "{answer:?}");
    }
    assert_eq!(visitor.get(&one).await.status, 404);
    for odd in ["/queue/not/cancel", "/queue/..%2f/cancel", "/queue/1/frobnicate"] {
        assert_eq!(visitor.post(odd, &[("csrf", &csrf)]).await.status, 404, "{odd}");
    }

    world.smtp.clear();
    let other = format!("/queue/{}", ids[1]);
    assert_eq!(visitor.post(&format!("{other}/retry"), &[("csrf", &csrf)]).await.header("location"), other);
    until(SOON, "the mail", || world.smtp.count() == 1).await;
    assert!(world.smtp.delivered()[0].text().contains("<2@t>"));
    until(SOON, "its settlement", || {
        relay.log().iter().any(|line| line.contains("sent") && line.contains("<2@t>"))
    })
    .await;
    assert!(visitor.get("/queue").await.body.contains("No message waits here."));
}

#[tokio::test]
async fn a_queue_of_several_pages_is_listed_whole_and_once() {
    const MESSAGES: usize = 1_003;
    let world = World::start().await;
    world.smtp.server.down().await;
    let (config, relay) = company::start(&world).await;
    let (mut client, _) = SmtpClient::connect(relay.submission).await;
    client.cmd("EHLO test").await;
    for number in 0..MESSAGES {
        let from = if number % 500 == 0 { JANE } else { JOHN };
        let body = message(from, "a@x.test", &format!("{number}@t"), "Hi");
        assert_eq!(client.send(BOUNCE, &["a@x.test"], &body).await.code, 250);
    }
    let queue = company::queue(&config).await;
    let ids: std::collections::BTreeSet<_> =
        queue.iter().map(|m| m["message_id"].as_str().unwrap()).collect();
    assert_eq!((queue.len(), ids.len()), (MESSAGES, MESSAGES));
    let table = config.cli(&["queue", "list"]).await.success();
    assert_eq!((table.lines().count(), table.matches("LAST REPLY").count()), (MESSAGES + 1, 1));
    let janes = config.cli(&["queue", "list", "--mailbox", JANE]).await.success();
    assert_eq!(janes.lines().count(), 1 + 3, "{janes}");
}
