//! A failed delivery reaches Odoo as a report, once.

use crate::company::{self, JOHN};
use crate::support::client::message;
use crate::support::odoo::Answer;
use crate::support::relay::{Config, Relay};
use crate::support::script::Rule;
use crate::support::smtp::{Fault, Step};
use crate::support::store;
use crate::support::wait::{SOON, eventually, until};
use crate::support::world::World;
use rusqlite::Connection;
use std::time::Duration;
use tokio::time::Instant;

const BOUNCE: &str = "bounce@example.com";
const GONE: &str = "gone@x.test";
const UNKNOWN: &str = "550 5.1.10 RESOLVER.ADR.RecipientNotFound; Recipient not found";

/// The company, with an address that Microsoft does not know, and an Odoo that gives up after a second.
async fn company() -> (World, Config) {
    let world = World::start().await;
    world.smtp.script(Rule::new(Step::Rcpt, Fault::reply(UNKNOWN)).always().only(GONE));
    let mut config = company::config(&world);
    config.text("odoo", "timeout", "1s");
    config.text("odoo", "report_after", "1ms");
    company::connect(&world, &config).await;
    (world, config)
}

async fn fail(relay: &Relay, id: &str) {
    let reply = relay.send(BOUNCE, &[GONE], &message(JOHN, GONE, id, "Hi")).await;
    assert_eq!(reply.code, 250, "{reply:?}");
}

fn about(id: &str) -> (String, String) {
    (format!("<{id}>"), GONE.to_owned())
}

/// The relay's store, as it lies on disk.
fn database(config: &Config) -> Connection {
    store::open(config.dir().join("relay.db"))
}

/// The state of each report in the store, and how often it was pushed.
fn reports(config: &Config) -> Vec<(String, i64)> {
    let store = database(config);
    let mut reports = store.prepare("SELECT state, tries FROM report ORDER BY id").unwrap();
    let rows = reports.query_map([], |row| Ok((row.get("state")?, row.get("tries")?))).unwrap();
    rows.map(Result::unwrap).collect()
}

#[tokio::test]
async fn odoo_hears_of_the_one_recipient_who_is_not_there() {
    let (world, config) = company().await;
    let relay = config.start().await;
    let both = ["anna@x.test", GONE];
    let reply = relay.send(BOUNCE, &both, &message(JOHN, "anna@x.test", "one@t", "Hi")).await;
    assert_eq!(reply.code, 250, "{reply:?}");

    let line = relay.wait_for_log("bounced").await;
    for part in ["INFO", &format!("mailbox={JOHN}"), "message_id=\"<one@t>\"", GONE, "code=\"550 5.1.10\""] {
        assert!(line.contains(part), "{part}: {line}");
    }
    assert_eq!(world.odoo.bounces(), [about("one@t")]);
    let posts = world.odoo.posts();
    assert_eq!(posts.len(), 1);
    assert_eq!(posts[0].model, None, "never made a record of");
    let report = posts[0].text();
    for part in [
        "From: Mail Delivery System <MAILER-DAEMON@example.com>\r\n",
        "To: bounce@example.com\r\n",
        "Auto-Submitted: auto-replied\r\n",
        "Content-Type: multipart/report; report-type=delivery-status;\r\n",
        "The mail to gone@x.test was not delivered.\r\n",
        "Final-Recipient: rfc822; gone@x.test\r\n",
        "Status: 5.1.10\r\n",
        "Diagnostic-Code: smtp; 550 5.1.10 RESOLVER.ADR.RecipientNotFound; Recipient not found\r\n",
        "Message-Id: <one@t>\r\n",
    ] {
        assert!(report.contains(part), "{part}\n{report}");
    }
    assert!(!report.contains("Hello"), "the body is nobody's business");
    assert!(!report.contains("anna@x.test\r\nAction"), "{report}");

    let delivered = world.smtp.delivered();
    assert_eq!(delivered.len(), 1);
    assert_eq!(delivered[0].recipients, ["anna@x.test"]);
    let queue = company::queue(&config).await;
    assert_eq!(queue.len(), 1, "kept, to be looked at");
    assert_eq!(queue[0]["state"], "failed");
    until(SOON, "the report done with", || relay.count_log("bounced") == 1).await;
    assert_eq!(reports(&config), []);
    assert_eq!(relay.count_log("odoo_not_told"), 0);
}

#[tokio::test]
async fn each_of_several_recipients_has_a_report() {
    let (world, config) = company().await;
    world.smtp.script(Rule::new(Step::Rcpt, Fault::reply(UNKNOWN)).always().only("lost@x.test"));
    let relay = config.start().await;
    relay.send(BOUNCE, &[GONE, "lost@x.test"], &message(JOHN, GONE, "two@t", "Hi")).await;
    until(SOON, "both reports", || relay.count_log("bounced") == 2).await;
    let mut bounces = world.odoo.bounces();
    bounces.sort();
    assert_eq!(bounces, [about("two@t"), ("<two@t>".to_owned(), "lost@x.test".to_owned())]);
    assert_eq!(world.odoo.posts().len(), 2);
    assert_eq!(world.smtp.count(), 0);
}

#[tokio::test]
async fn odoo_is_given_time_to_commit_what_it_sent() {
    let (world, mut config) = company().await;
    config.text("odoo", "report_after", "2s");
    let relay = config.start().await;
    let began = Instant::now();
    fail(&relay, "early@t").await;
    until(SOON, "the failure", || relay.count_log(" failed ") == 1).await;
    relay.wait_for_log("bounced").await;
    assert!(began.elapsed() >= Duration::from_secs(2));
    assert_eq!(world.odoo.bounces(), [about("early@t")]);
}

#[tokio::test]
async fn a_report_waits_for_odoo_and_through_a_restart() {
    let (world, config) = company().await;
    world.odoo.server.down().await;
    let mut relay = config.start().await;
    fail(&relay, "late@t").await;
    relay.wait_for_log("odoo failed").await;
    relay.kill9().await;
    let relay = config.start().await;
    relay.wait_for_log("odoo failed").await;
    // Outgoing mail does not wait for Odoo.
    relay.send(BOUNCE, &["anna@x.test"], &message(JOHN, "anna@x.test", "good@t", "Hi")).await;
    until(SOON, "the other mail", || world.smtp.count() == 1).await;
    assert_eq!(reports(&config).len(), 1);
    world.odoo.server.up().await;
    relay.wait_for_log("bounced").await;
    assert_eq!(world.odoo.bounces(), [about("late@t")]);
    assert_eq!(world.odoo.posts().len(), 1);
    assert!(relay.count_log("odoo failed") <= 2, "not a line per try");
    until(SOON, "its end said", || relay.count_log("odoo recovered") == 1).await;
}

#[tokio::test]
async fn a_kill_in_the_middle_of_a_push_reports_once() {
    let (world, config) = company().await;
    world.odoo.set_delay(Duration::from_millis(500));
    let mut relay = config.start().await;
    fail(&relay, "killed@t").await;
    until(SOON, "a push under way", || world.odoo.max_in_flight() == 1).await;
    relay.kill9().await;
    assert_eq!(reports(&config), [("pushing".to_owned(), 1)]);
    until(SOON, "Odoo done with it", || world.odoo.posts().len() == 1).await;
    let relay = config.start().await;
    let line = relay.wait_for_log("bounced").await;
    assert!(line.contains("known"), "{line}");
    assert_eq!(world.odoo.posts().len(), 1);
    assert_eq!(world.odoo.bounces(), [about("killed@t")]);
    assert_eq!(reports(&config), []);
}

#[tokio::test]
async fn a_push_that_never_arrived_is_made_again_after_a_kill() {
    let (world, config) = company().await;
    world.odoo.answer_next(Answer::Silence);
    let mut relay = config.start().await;
    fail(&relay, "silent@t").await;
    until(SOON, "a push", || world.odoo.posts().len() == 1).await;
    relay.kill9().await;
    let relay = config.start().await;
    relay.wait_for_log("bounced").await;
    assert_eq!(world.odoo.posts().len(), 2);
    assert_eq!(world.odoo.bounces(), [about("silent@t")]);
}

#[tokio::test]
async fn after_a_lost_answer_odoo_is_asked_and_where_it_may_not_be_asked_it_hears_twice() {
    let (world, config) = company().await;
    let relay = config.start().await;
    for (answer, id) in [(Answer::TakenThenCut, "cut@t"), (Answer::TakenThenSilence, "quiet@t")] {
        world.odoo.answer_next(answer);
        fail(&relay, id).await;
        let line = eventually(SOON, id, || {
            let log = relay.log();
            let bounced = |line: &&String| line.contains("bounced") && line.contains(id);
            log.iter().find(bounced).cloned().ok_or(log)
        });
        assert!(line.await.contains("known"));
    }
    assert_eq!(world.odoo.bounces(), [about("cut@t"), about("quiet@t")]);

    world.odoo.set_unreadable("mail.notification");
    world.odoo.answer_next(Answer::TakenThenCut);
    let began = Instant::now();
    fail(&relay, "twice@t").await;
    until(SOON, "the third report", || relay.count_log("bounced") == 3).await;
    assert!(began.elapsed() >= Duration::from_secs(1), "not before Odoo has given up the first");
    assert_eq!(world.odoo.bounces()[2..], [about("twice@t"), about("twice@t")]);
}

#[tokio::test]
async fn a_report_that_odoo_refuses_is_kept_and_given_up() {
    let (world, config) = company().await;
    world.odoo.script(Rule::new((), Answer::Poison).always().only("<poison@t>"));
    let mut relay = config.start().await;
    fail(&relay, "poison@t").await;
    relay.wait_for_log("report deferred").await;
    fail(&relay, "good@t").await;
    relay.wait_for_log("bounced").await;
    assert_eq!(world.odoo.bounces(), [about("good@t")], "the next one has its turn");
    assert_eq!(world.odoo.posts().len(), 2, "not tried again at once");
    assert_eq!(reports(&config), [("waiting".to_owned(), 1)]);

    // Some hours and tries later.
    relay.terminate(SOON).await;
    database(&config).execute_batch("UPDATE report SET tries = 4, next_try_at = 0").unwrap();
    let relay = config.start().await;
    let line = relay.wait_for_log("report refused").await;
    for part in ["ERROR", "<poison@t>", GONE, "fault 1", "tell the sender"] {
        assert!(line.contains(part), "{part}: {line}");
    }
    until(SOON, "a last push", || world.odoo.posts().len() == 3).await;
    let states = reports(&config);
    assert_eq!(states, [("refused".to_owned(), 5)]);
}

#[tokio::test]
async fn nobody_is_told_of_a_bounce_that_failed() {
    let (world, config) = company().await;
    let relay = config.start().await;
    relay.send("", &[GONE], &message(JOHN, GONE, "null@t", "Hi")).await;
    let mut report = b"Content-Type: multipart/report; report-type=delivery-status\r\n".to_vec();
    report.extend(message(JOHN, GONE, "report@t", "Hi").into_iter());
    relay.send(BOUNCE, &[GONE], &report).await;
    until(SOON, "both failures", || relay.count_log("odoo_not_told") == 2).await;
    // Reports are pushed in their order: one that was kept for these would have come before.
    fail(&relay, "plain@t").await;
    relay.wait_for_log("bounced").await;
    assert_eq!(world.odoo.bounces(), [about("plain@t")]);
    assert_eq!(world.odoo.posts().len(), 1);
}

#[tokio::test]
async fn without_odoo_the_log_says_that_nobody_was_told() {
    let (_world, mut config) = company().await;
    for key in ["url", "database", "login", "password_file", "timeout", "report_after"] {
        config.unset("odoo", key);
    }
    config.mailbox(company::NOTIFICATIONS, &[("from_filter", "\"notifications@example.com\"")]);
    let relay = config.start().await;
    fail(&relay, "untold@t").await;
    let line = relay.wait_for_log("odoo_not_told").await;
    assert!(line.contains("ERROR") && line.contains("failed") && line.contains("[odoo]"), "{line}");
    assert_eq!(reports(&config), []);
}

#[tokio::test]
async fn what_failed_leaves_the_queue_after_its_time() {
    let (world, mut config) = company().await;
    config.text("delivery", "keep_failed", "1s");
    let mut relay = config.start().await;
    world.odoo.server.down().await;
    fail(&relay, "old@t").await;
    relay.wait_for_log("odoo failed").await;
    // Its time is over, and yet it stays: a report that Odoo has not taken is about it.
    tokio::time::sleep(Duration::from_secs(1)).await;
    relay.terminate(SOON).await;
    let mut relay = config.start().await;
    relay.wait_for_log("odoo failed").await;
    assert_eq!(company::queue(&config).await.len(), 1, "its report still waits");
    world.odoo.server.up().await;
    relay.wait_for_log("bounced").await;
    relay.terminate(SOON).await;
    let relay = config.start().await;
    relay.wait_for_log("keep_failed").await;
    assert_eq!(company::queue(&config).await.len(), 0);
}
