//! Waiting for new mail, and what goes wrong meanwhile.

use super::world::{JOHN, MARY, Watching, World};
use crate::support::client::message;
use crate::support::imap::Fault;
use crate::support::script::Rule;
use crate::support::wait::{SOON, until};
use outlook_relay::failure::Class;
use std::time::Duration;

/// Nothing happens by itself: only news of the server make the relay look.
const IDLE_ONLY: &str = "poll = \"1h\"\nnew_per_sender = 0\n";

impl World {
    async fn watch(&self) -> Watching {
        let watching = self.start_with(&[JOHN], IDLE_ONLY).await;
        self.until_idle().await;
        watching
    }

    async fn until_idle(&self) {
        until(SOON, "it idles", || self.imap.idling(JOHN) == 1).await;
    }

    async fn until_posts(&self, number: usize) {
        until(SOON, "the message is pushed", || self.odoo.posts().len() == number).await;
    }

    fn count(&self, command: &str) -> usize {
        self.imap.commands().iter().filter(|(_, line)| line.starts_with(command)).count()
    }
}

#[tokio::test]
async fn new_mail_is_pushed_when_the_server_tells_of_it() {
    let world = World::new().await;
    let watching = world.watch().await;
    for number in 0..3 {
        let uid = world.deliver(JOHN, &format!("{number}@x.test"));
        world.until_seen(JOHN, uid).await;
        world.until_idle().await;
    }
    assert_eq!(world.posted(), ["<0@x.test>", "<1@x.test>", "<2@x.test>"]);
    assert_eq!(world.imap.connections(), 1, "over one connection");
    assert!(world.count("IDLE") <= 7, "{:?}", world.imap.commands());
    watching.stop().await;
    assert_eq!(world.imap.commands().last().unwrap().1, "LOGOUT");
}

#[tokio::test]
async fn news_before_the_idle_is_accepted_count_too() {
    let world = World::new().await;
    world.imap.set_exists_before_idle(true);
    let watching = world.watch().await;
    for number in 0..5 {
        // Told of while the last one is worked on.
        let uid = world.deliver(JOHN, &format!("{number}@x.test"));
        world.until_seen(JOHN, uid).await;
    }
    assert_eq!(world.odoo.posts().len(), 5);
    watching.stop().await;
}

#[tokio::test]
async fn a_count_that_is_only_repeated_makes_nobody_look() {
    let world = World::new().await;
    // Once: after the delivery it would be news, of another count than SELECT's.
    world.imap.script(Rule::new("IDLE", Fault::untagged("0 EXISTS")));
    let watching = world.watch().await;
    for _ in 0..3 {
        world.imap.say(JOHN, "OK Still here");
        world.imap.say(JOHN, "0 EXISTS");
        world.imap.say(JOHN, "0 RECENT");
    }
    world.deliver(JOHN, "1@x.test");
    world.until_posts(1).await;
    assert!(world.count("UID SEARCH") <= 3, "{:?}", world.imap.commands());
    watching.stop().await;
}

#[tokio::test]
async fn an_idle_ends_in_time_and_the_folder_is_looked_through() {
    let world = World::new().await;
    let watching = world.start_with(&[JOHN], "poll = \"1h\"\nidle = \"100ms\"\n").await;
    until(SOON, "three idles", || world.count("IDLE") >= 3).await;
    assert!(world.count("UID SEARCH") >= 3);
    assert_eq!(world.imap.connections(), 1);
    assert_eq!(watching.mailboxes[0].imap.lasting(), None);
    watching.stop().await;
}

#[tokio::test]
async fn without_idle_the_inbox_is_polled() {
    for refusal in [None, Some(Fault::no("IDLE is off.")), Some(Fault::bad("Command Error. 10"))] {
        let world = World::new().await;
        match refusal {
            None => world.imap.drop_capability("IDLE"),
            Some(fault) => world.imap.script(Rule::new("IDLE", fault).always()),
        }
        let watching = world.start_with(&[JOHN], "poll = \"100ms\"\n").await;
        world.another_look().await;
        world.deliver(JOHN, "1@x.test");
        world.until_posts(1).await;
        assert!(world.count("IDLE") <= 1, "it is not asked again");
        assert_eq!(watching.mailboxes[0].imap.lasting(), None);
        watching.stop().await;
    }
}

#[tokio::test]
async fn an_idle_that_the_server_ends_is_begun_anew_without_a_word() {
    let world = World::new().await;
    let watching = world.watch().await;
    for (number, way) in ["bye", "expired", "cut"].into_iter().enumerate() {
        world.until_idle().await;
        match way {
            "bye" => world.imap.bye(JOHN, "Connection is closed. 13"),
            "expired" => world.imap.bye(JOHN, "Session invalidated - AccessTokenExpired"),
            _ => world.imap.cut(JOHN),
        }
        let uid = world.deliver(JOHN, &format!("{way}@x.test"));
        world.until_seen(JOHN, uid).await;
        assert_eq!(world.imap.connections(), number + 2);
        assert_eq!(watching.mailboxes[0].imap.lasting(), None, "{way}");
    }
    watching.stop().await;
}

#[tokio::test]
async fn idles_that_are_cut_again_and_again_make_no_storm() {
    for fault in [Fault::Cut, Fault::CutAfter, Fault::bye("Connection is closed. 13")] {
        let world = World::new().await;
        world.imap.script(Rule::new("IDLE", fault).always());
        let watching = world.start_with(&[JOHN], IDLE_ONLY).await;
        tokio::time::sleep(Duration::from_secs(3)).await;
        let connections = world.imap.connections();
        assert!((2..=4).contains(&connections), "{connections} connections in 3 s");
        assert_eq!(watching.mailboxes[0].imap.lasting(), None, "each of them serves for a look");
        // Mail comes through at the next look, and what serves for a message is no storm.
        let uid = world.deliver(JOHN, "1@x.test");
        world.until_seen(JOHN, uid).await;
        watching.stop().await;
    }
}

#[tokio::test]
async fn idles_that_the_server_ends_at_once_are_not_begun_for_ever() {
    for text in ["OK IDLE completed.", "NO Server Unavailable. 15", "BAD Command Error. 12"] {
        let world = World::new().await;
        world.imap.script(Rule::new("IDLE", Fault::ended(text)).always());
        let watching = world.start_with(&[JOHN], "poll = \"200ms\"\n").await;
        world.another_look().await;
        world.another_look().await;
        let idles = world.count("IDLE");
        assert!((1..=2).contains(&idles), "{text}: {idles} times");
        let uid = world.deliver(JOHN, "1@x.test");
        world.until_seen(JOHN, uid).await;
        assert_eq!((world.imap.connections(), world.count("IDLE")), (1, idles), "{text}: it is polled");
        watching.stop().await;
    }
}

#[tokio::test]
async fn a_connection_that_died_without_a_sign_is_noticed() {
    let world = World::new().await;
    world.imap.fail_next("IDLE", Fault::SilenceAfter);
    let watching = world.start_with(&[JOHN], "poll = \"1h\"\nidle = \"200ms\"\n").await;
    until(SOON, "the dead idle", || world.imap.pending() == 0).await;
    world.deliver(JOHN, "1@x.test");
    world.until_posts(1).await;
    assert_eq!(watching.mailboxes[0].imap.lasting(), None);
    watching.stop().await;
}

#[tokio::test]
async fn throttling_is_obeyed_and_shown() {
    let world = World::new().await;
    let text = "Request is throttled. Suggested Backoff Time: 1000 milliseconds";
    let watching = world.watch().await;
    world.imap.script(Rule::new("SELECT", Fault::bad(text)).times(1));
    world.deliver(JOHN, "1@x.test");
    until(SOON, "it is said", || watching.mailboxes[0].imap.lasting().is_some()).await;
    let failure = watching.mailboxes[0].imap.lasting().unwrap().failure;
    assert_eq!((failure.class, failure.code.as_str()), (Class::Rate, "throttled"));
    assert!(world.odoo.posts().is_empty());
    watching.stop().await;
}

/// Each command that the relay gives, each way in which it can go wrong: every message arrives, once.
#[tokio::test]
async fn whatever_goes_wrong_at_whichever_step_every_message_arrives_once() {
    let commands =
        ["GREETING", "AUTHENTICATE", "CAPABILITY", "SELECT", "UID SEARCH", "UID FETCH", "UID STORE", "IDLE"];
    let faults = [
        Fault::no("something new"),
        Fault::bad("Command Error. 10"),
        Fault::bye("Server Unavailable. 15"),
        Fault::Cut,
        Fault::CutAfter,
        Fault::CutMidway,
        Fault::Garbage,
        Fault::untagged("1 FETCH (UID 1 BODY[] {3}\r\nfar longer)"),
        Fault::untagged("1 FETCH (UID 1 BODY[] {4294967295}\r\nx)"),
        Fault::untagged("OK [ALERT]ü"),
        Fault::EndlessLine,
    ];
    let rounds = commands.map(|command| {
        let faults = faults.clone();
        async move {
            let world = World::new().await;
            let settings = "poll = \"100ms\"\nidle = \"100ms\"\nnew_per_sender = 0\n";
            let mut expected = Vec::new();
            for (number, fault) in faults.into_iter().enumerate() {
                // What a person has to do something about is tried again after minutes or hours.
                let lasting = match fault {
                    Fault::No(_) => ["SELECT", "UID STORE", "UID FETCH"].contains(&command),
                    // Before its `+`, the library takes this for the end, and waits until its time is up, for a minute.
                    Fault::Untagged(_) => ["GREETING", "AUTHENTICATE"].contains(&command),
                    _ => false,
                };
                if lasting {
                    continue;
                }
                let id = format!("{number}@x.test");
                world.imap.fail_next(command, fault.clone());
                let uid = world.deliver(JOHN, &id);
                let watching = world.start_with(&[JOHN], settings).await;
                let what = format!("{command} {fault:?}");
                until(SOON, &format!("{what} happened"), || world.imap.pending() == 0).await;
                until(SOON, &what, || world.seen(JOHN, uid)).await;
                expected.push(format!("<{id}>"));
                watching.stop().await;
                assert_eq!(world.posted(), expected, "{what}");
                for post in world.odoo.posts() {
                    assert!(post.text().ends_with("\r\n") && !post.text().contains("far "), "{what}");
                }
            }
        }
    });
    futures_util::future::join_all(rounds).await;
}

#[tokio::test]
async fn many_messages_take_few_commands() {
    let world = World::new().await;
    let uids: Vec<_> = (0..120).map(|number| world.deliver(JOHN, &format!("{number}@x.test"))).collect();
    let watching = world.start_with(&[JOHN], IDLE_ONLY).await;
    world.until_seen(JOHN, *uids.last().unwrap()).await;
    let expected: Vec<_> = (0..120).map(|number| format!("<{number}@x.test>")).collect();
    assert_eq!(world.posted(), expected, "in order");
    let commands = world.imap.commands().len();
    assert!(commands < 30, "{commands} commands for 120 messages");
    watching.stop().await;
}

#[tokio::test]
async fn a_sender_stays_under_odoos_loop_guard_and_holds_up_nobody() {
    let world = World::new().await;
    let settings = "poll = \"1h\"\nnew_per_sender = 2\n";
    let from = |from: &str, id: &str, more: &str| {
        let raw = format!("From: {from}\r\nTo: {JOHN}\r\nMessage-Id: <{id}>\r\n{more}\r\nText\r\n");
        world.imap.deliver(JOHN, "INBOX", raw.as_bytes())
    };
    for id in ["1@x", "2@x", "3@x"] {
        from("Shop <Robot@shop.test>", id, "");
    }
    // Odoo has never heard of the one, and made a record of the other.
    from("Shop <Robot@shop.test>", "4@x", "References: <sent@by.others>\r\n");
    from("robot@shop.test", "reply@x", "In-Reply-To: <1@x>\r\n");
    let last = from("ann@x.test", "ann@x", "");
    let watching = world.start_with(&[JOHN], settings).await;
    world.until_seen(JOHN, last).await;
    world.until_idle().await;
    let expected = ["<1@x>", "<2@x>", "<reply@x>", "<ann@x>"];
    assert_eq!(world.posted(), expected);
    assert_eq!(watching.counts().await, (2, 0, 4));
    watching.stop().await;
    // Nor after a restart; and those that wait are not fetched again to see that.
    let bodies = || world.imap.commands().iter().filter(|(_, line)| line.contains("BODY")).count();
    let before = bodies();
    let watching = world.start_with(&[JOHN], settings).await;
    world.until_idle().await;
    assert_eq!((world.posted().len(), bodies()), (4, before));
    watching.stop().await;
}

#[tokio::test]
async fn a_mail_to_many_mailboxes_counts_once_for_its_sender() {
    let world = World::new().await;
    let third = "third@example.com";
    for mailbox in [JOHN, MARY, third] {
        world.imap.deliver(mailbox, "INBOX", &message("ann@x.test", "all@x.test", "all@x", "to all"));
    }
    let watching = world.start_with(&[JOHN, MARY, third], "poll = \"1h\"\nnew_per_sender = 2\n").await;
    for mailbox in [JOHN, MARY, third] {
        world.until_seen(mailbox, 1).await;
    }
    let next = world.imap.deliver(JOHN, "INBOX", &message("ann@x.test", JOHN, "next@x", "to John"));
    world.until_seen(JOHN, next).await;
    watching.stop().await;
}

#[tokio::test]
async fn two_inboxes_do_not_wait_for_each_other() {
    let world = World::new().await;
    world.imap.script(Rule::new("SELECT", Fault::Silence).only(MARY).always());
    let watching = world.start_with(&[JOHN, MARY], IDLE_ONLY).await;
    world.until_idle().await;
    let uid = world.deliver(JOHN, "1@x.test");
    tokio::time::timeout(Duration::from_secs(5), world.until_seen(JOHN, uid)).await.unwrap();
    watching.soft.cancel();
    drop(watching);
}
