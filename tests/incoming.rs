//! Mail from Microsoft 365 to Odoo.

use crate::company::{self, NOTIFICATIONS};
use crate::support::client::message;
use crate::support::dovecot::Dovecot;
use crate::support::odoo::Answer;
use crate::support::script::Rule;
use crate::support::wait::{SOON, until};
use crate::support::world::World;
use std::borrow::Cow;
use std::collections::BTreeSet;
use std::time::Duration;

fn to_us(id: &str, subject: &str) -> Vec<u8> {
    message("customer@foreign.test", NOTIFICATIONS, id, subject)
}

#[tokio::test]
async fn a_mail_in_a_real_maildir_reaches_odoo_and_is_marked() {
    let world = World::start().await;
    let dovecot = Dovecot::start(&world.tls, &world.entra).await;
    let mut config = company::config(&world);
    config.text("microsoft", "imap", &dovecot.imap_endpoint());
    company::connect(&world, &config).await;
    let before = to_us("before@t", "there before the first start");
    dovecot.deliver(NOTIFICATIONS, "INBOX", &before);
    let relay = config.start().await;
    until(SOON, "the first mail in Odoo", || world.odoo.taken().len() == 1).await;

    let odd = b"From: customer@foreign.test\r\nTo: notifications@example.com\r\nMessage-Id: <odd@t>\r\n\
        Subject: caf\xe9\r\n\r\n\xff\xfe not any charset\r\n.\r\n\r\n";
    dovecot.deliver(NOTIFICATIONS, "INBOX", odd);
    until(SOON, "the second mail in Odoo", || world.odoo.taken().len() == 2).await;
    let taken = world.odoo.taken();
    assert_eq!(*taken[0].raw, before);
    assert_eq!(*taken[1].raw, odd, "byte for byte");
    until(SOON, "both marked as seen on the server", || {
        let messages = dovecot.messages(NOTIFICATIONS, "INBOX");
        messages.len() == 2 && messages.iter().all(|message| message.flags.contains('S'))
    })
    .await;
    until(SOON, "both logged", || relay.count_log("pushed") == 2).await;
    assert_eq!(world.odoo.posts().len(), 2, "each pushed once");
}

#[tokio::test]
async fn a_mail_that_a_person_read_first_still_arrives_and_old_read_mail_does_not() {
    let world = World::start().await;
    world.imap.deliver(NOTIFICATIONS, "INBOX", &to_us("old@t", "read long ago"));
    world.imap.set_flags(NOTIFICATIONS, "INBOX", 1, &["\\Seen"]);
    world.imap.deliver(NOTIFICATIONS, "INBOX", &to_us("waiting@t", "unread at the first start"));
    let (_config, _relay) = company::start(&world).await;
    until(SOON, "the unread one", || world.odoo.taken().len() == 1).await;
    assert!(world.odoo.taken()[0].text().contains("waiting@t"));

    // Arrives and is read in one moment, before any poll.
    world.imap.script(Rule::new("NOOP", crate::support::imap::Fault::no("busy")).times(1));
    let uid = world.imap.deliver(NOTIFICATIONS, "INBOX", &to_us("read@t", "a person was faster"));
    world.imap.set_flags(NOTIFICATIONS, "INBOX", uid, &["\\Seen"]);
    until(SOON, "the one that was read", || world.odoo.taken().len() == 2).await;
    assert!(world.odoo.taken()[1].text().contains("read@t"));
}

#[tokio::test]
async fn a_message_that_odoo_refuses_does_not_block_the_next() {
    let world = World::start().await;
    world.odoo.script(Rule::new((), Answer::NoRoute).always().only("poison@t"));
    let (config, relay) = company::start(&world).await;
    world.imap.deliver(NOTIFICATIONS, "INBOX", &to_us("poison@t", "nobody's"));
    world.imap.deliver(NOTIFICATIONS, "INBOX", &to_us("good@t", "somebody's"));
    until(SOON, "the good one", || world.odoo.taken().iter().any(|post| post.text().contains("good@t")))
        .await;
    let line = relay.wait_for_log("quarantined").await;
    assert!(line.contains("mail.alias") || line.contains("model"), "says what to do: {line}");
    until(SOON, "the good one marked", || {
        world.imap.flags(NOTIFICATIONS, "INBOX", 2).is_some_and(|flags| flags.contains("\\Seen"))
    })
    .await;
    assert!(
        !world.imap.flags(NOTIFICATIONS, "INBOX", 1).unwrap().contains("\\Seen"),
        "the refused one stays unread"
    );
    let status: serde_json::Value =
        serde_json::from_str(&config.cli(&["status", "--json"]).await.stdout).unwrap();
    assert_eq!(status["mailboxes"][0]["inbox"]["refused"], 1, "{status:#}");

    let listed: serde_json::Value =
        serde_json::from_str(&config.cli(&["inbox", "list", "--json"]).await.success()).unwrap();
    let id = listed[0]["id"].as_str().unwrap();
    assert_eq!((id, &listed[0]["message_id"]), ("notifications@example.com/1", &"<poison@t>".into()));
    assert!(listed[0]["reason"].as_str().unwrap().contains("No possible route"), "{listed:#}");
    let table = config.cli(&["inbox", "list", "--mailbox", NOTIFICATIONS]).await.success();
    assert!(table.contains(id) && table.contains("No possible route"), "{table}");
    assert_eq!(config.cli(&["inbox", "retry"]).await.code, Some(2), "of which?");
    assert_eq!(config.cli(&["inbox", "retry", "notifications@example.com/2"]).await.code, Some(1));
    world.odoo.clear();
    let retried = config.cli(&["inbox", "retry", id]).await.success();
    assert!(retried.contains("1 message"), "{retried}");
    until(SOON, "the refused one, tried again", || {
        world.odoo.taken().iter().any(|post| post.text().contains("poison@t"))
    })
    .await;
    let said = config.cli(&["inbox", "retry", "--all"]).await.success();
    assert!(said.contains("0 messages"), "{said}");
}

#[tokio::test]
async fn odoo_down_is_waited_for_and_everything_arrives_once_in_order() {
    let world = World::start().await;
    let (_config, relay) = company::start(&world).await;
    world.odoo.server.down().await;
    for n in 0..5 {
        world.imap.deliver(NOTIFICATIONS, "INBOX", &to_us(&format!("{n}@t"), "while Odoo is down"));
    }
    relay.wait_for_log("odoo failed").await;
    world.odoo.server.up().await;
    until(SOON, "all five", || world.odoo.taken().len() == 5).await;
    let ids: Vec<_> = world.odoo.taken().iter().map(|post| post.message_id.clone().unwrap()).collect();
    assert_eq!(ids, ["<0@t>", "<1@t>", "<2@t>", "<3@t>", "<4@t>"]);
    relay.wait_for_log("odoo recovered").await;
    assert_eq!(relay.count_log("quarantined"), 0);
}

#[tokio::test]
async fn a_restart_and_a_broken_connection_push_nothing_twice() {
    let world = World::start().await;
    let (config, mut relay) = company::start(&world).await;
    world.imap.deliver(NOTIFICATIONS, "INBOX", &to_us("1@t", "one"));
    until(SOON, "the first", || world.odoo.taken().len() == 1).await;
    world.imap.cut(NOTIFICATIONS);
    world.imap.deliver(NOTIFICATIONS, "INBOX", &to_us("2@t", "two"));
    until(SOON, "the second, over a new connection", || world.odoo.taken().len() == 2).await;
    relay.kill9().await;
    // Somebody marks everything as unread: the ledger knows better.
    world.imap.set_flags(NOTIFICATIONS, "INBOX", 1, &[]);
    world.imap.set_flags(NOTIFICATIONS, "INBOX", 2, &[]);
    world.imap.deliver(NOTIFICATIONS, "INBOX", &to_us("3@t", "three"));
    let _relay = config.start().await;
    until(SOON, "the third", || world.odoo.taken().len() == 3).await;
    assert_eq!(world.odoo.posts().len(), 3, "{:?}", world.odoo.posts());
}

#[tokio::test]
async fn the_answer_that_was_lost_is_asked_for_before_pushing_again() {
    let world = World::start().await;
    world.odoo.answer_next(Answer::TakenThenCut);
    let (_config, relay) = company::start(&world).await;
    world.imap.deliver(NOTIFICATIONS, "INBOX", &to_us("lost@t", "taken, but who knows"));
    until(SOON, "marked in the end", || {
        world.imap.flags(NOTIFICATIONS, "INBOX", 1).is_some_and(|flags| flags.contains("\\Seen"))
    })
    .await;
    let records: Vec<_> = world.odoo.posts().iter().filter_map(|post| post.record).collect();
    assert_eq!(records.len(), 1, "one record: {:?}\n{:#?}", world.odoo.posts(), relay.log());
}

#[tokio::test]
async fn over_json2_the_same_arrives_once_over_restarts_and_lost_answers() {
    let world = World::start().await;
    let mut config = company::config(&world);
    config.text("odoo", "protocol", "json2");
    let model = [("inbox", "true"), ("model", "\"crm.lead\""), ("custom_values", "{ team_id = 3 }")];
    config.mailbox(NOTIFICATIONS, &model);
    company::connect(&world, &config).await;
    world.odoo.answer_next(Answer::TakenThenCut);
    let mut latin = to_us("latin@t", "not UTF-8");
    latin.extend_from_slice(b"Gr\xfc\xdfe\r\n");
    let mails = [to_us("lost@t", "taken, but who knows"), latin, to_us("utf8@t", "Grüße")];
    let mut relay = config.start().await;
    for mail in &mails {
        world.imap.deliver(NOTIFICATIONS, "INBOX", mail);
    }
    until(SOON, "all of them", || world.odoo.taken().len() == mails.len()).await;
    relay.terminate(SOON).await;
    let relay = config.start().await;
    world.imap.deliver(NOTIFICATIONS, "INBOX", &to_us("last@t", "after the restart"));
    until(SOON, "the last", || world.odoo.taken().len() == mails.len() + 1).await;
    let taken = world.odoo.taken();
    let ids: BTreeSet<_> = taken.iter().map(|post| post.message_id.clone()).collect();
    assert_eq!(ids.len(), taken.len(), "each once: {:#?}", relay.log());
    assert!(taken.iter().all(|post| post.model.as_deref() == Some("crm.lead")));
    let texts: Vec<_> = mails.iter().map(|mail| outlook_relay::message::text(mail)).collect();
    assert!(matches!(texts[1], Cow::Owned(_)), "that one is not UTF-8");
    for text in texts {
        assert!(taken.iter().any(|post| post.raw.as_slice() == text.as_bytes()), "{text}");
    }
}

#[tokio::test]
async fn while_odoo_may_still_be_at_work_no_copy_of_the_message_is_pushed() {
    let world = World::start().await;
    let mut config = company::config(&world);
    config.text("odoo", "timeout", "3s");
    config.mailbox(company::JOHN, &[("inbox", "true")]);
    company::connect(&world, &config).await;
    world.odoo.answer_next(Answer::CutThenTaken(Duration::from_secs(2)));
    let _relay = config.start().await;
    let mail = message("customer@foreign.test", "everybody@foreign.test", "both@t", "to two mailboxes");
    for mailbox in [NOTIFICATIONS, company::JOHN] {
        world.imap.deliver(mailbox, "INBOX", &mail);
    }
    until(SOON, "both marked", || {
        let seen = |mailbox| world.imap.flags(mailbox, "INBOX", 1).unwrap().contains("\\Seen");
        seen(NOTIFICATIONS) && seen(company::JOHN)
    })
    .await;
    // The second copy may be pushed once Odoo shows the first: it recognises that one.
    assert_eq!(world.odoo.taken().len(), 1, "{:#?}", world.odoo.posts());
}

#[tokio::test]
async fn a_push_that_takes_its_time_does_not_hold_up_a_restart() {
    let world = World::start().await;
    let mut config = company::config(&world);
    config.text("odoo", "timeout", "60s");
    company::connect(&world, &config).await;
    world.odoo.answer_next(Answer::TakenThenSilence);
    let mut relay = config.start().await;
    world.imap.deliver(NOTIFICATIONS, "INBOX", &to_us("slow@t", "Odoo takes minutes"));
    until(SOON, "the push is under way", || world.odoo.posts().len() == 1).await;
    world.imap.deliver(NOTIFICATIONS, "INBOX", &to_us("next@t", "behind it"));
    relay.signal("TERM");
    relay.wait_for_log("stopping").await;
    // Odoo may send mail from inside that push.
    let from_inside = message(company::JOHN, "a@x.test", "inside@odoo", "sent by Odoo meanwhile");
    assert_eq!(relay.send("bounce@example.com", &["a@x.test"], &from_inside).await.code, 250);
    assert_eq!(relay.exit_code(Duration::from_secs(30)).await, Some(0));
    assert_eq!(world.odoo.posts().len(), 1, "nothing new is begun");
    let _relay = config.start().await;
    until(SOON, "the next", || world.odoo.posts().len() == 2).await;
    until(SOON, "the first is found", || {
        world.imap.flags(NOTIFICATIONS, "INBOX", 1).unwrap().contains("\\Seen")
    })
    .await;
    assert_eq!(world.odoo.posts().len(), 2, "{:#?}", world.odoo.posts());
}
