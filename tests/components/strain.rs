//! What a server does at its worst: throttling at every step, lines without end, folders of any size.

use super::world::{JOHN, World};
use crate::support::imap::Fault;
use crate::support::script::Rule;
use crate::support::wait::{SOON, until};
use outlook_relay::address::Address;
use outlook_relay::clock;
use outlook_relay::failure::Class;
use outlook_relay::store::{Mark, PushState};
use std::time::Duration;

const SETTINGS: &str = "poll = \"100ms\"\nidle = \"100ms\"\nnew_per_sender = 0\n";
const MOVING: &str =
    "poll = \"100ms\"\nidle = \"100ms\"\nnew_per_sender = 0\nafter = \"move\"\nafter_folder = \"Done\"\n";
const THROTTLED: &str = "Request is throttled. Suggested Backoff Time: 90000 milliseconds";
const NOT_CONNECTED: &str = "User is authenticated but not connected.";
const EXPIRED: &str = "Session invalidated - AccessTokenExpired";
const COMMANDS: [&str; 9] = [
    "GREETING",
    "AUTHENTICATE",
    "CAPABILITY",
    "SELECT",
    "UID SEARCH",
    "UID FETCH",
    "UID STORE",
    "UID MOVE",
    "IDLE",
];

/// A message in a world whose IMAP fails once, at a command.
async fn failing(command: &'static str, fault: Fault) -> World {
    let world = World::new().await;
    world.deliver(JOHN, "1@x.test");
    world.imap.fail_next(command, fault);
    world
}

impl World {
    /// Waits until the message is with Odoo, and where it goes then; it was pushed once.
    async fn until_done(&self, what: &str) {
        until(SOON, what, || {
            self.imap.messages(JOHN, "INBOX").is_empty() && self.imap.messages(JOHN, "Done").len() == 1
        })
        .await;
        assert_eq!(self.posted(), ["<1@x.test>"], "{what}");
    }
}

#[tokio::test]
async fn a_server_that_asks_for_fewer_requests_gets_fewer_at_every_step() {
    let rounds = COMMANDS.into_iter().flat_map(|command| {
        [THROTTLED, NOT_CONNECTED].into_iter().flat_map(move |text| {
            [Fault::no(text), Fault::bad(text), Fault::bye(text)].map(|fault| (command, fault, text))
        })
    });
    let rounds = rounds.map(|(command, fault, text)| async move {
        // A greeting has no tag to refuse with.
        if command == "GREETING" && !matches!(fault, Fault::Bye(_)) {
            return;
        }
        let what = format!("{command} {fault:?}");
        let world = failing(command, fault).await;
        let watching = world.start_with(&[JOHN], MOVING).await;
        let trouble = || watching.mailboxes[0].imap.lasting();
        until(SOON, &what, || trouble().is_some_and(|lasting| lasting.failure.class == Class::Rate)).await;
        let failure = trouble().unwrap().failure;
        let (code, wait) = if text == THROTTLED { ("throttled", 90) } else { ("not connected", 300) };
        assert_eq!(
            (failure.code.as_str(), failure.retry_after),
            (code, Some(Duration::from_secs(wait))),
            "{what}"
        );
        // Meanwhile it says nothing at all.
        let (connections, commands) = (world.imap.connections(), world.imap.commands().len());
        tokio::time::sleep(Duration::from_millis(1500)).await;
        assert_eq!(
            (world.imap.connections(), world.imap.commands().len()),
            (connections, commands),
            "{what}"
        );
        // A person does not want to wait.
        watching.store.wake_all();
        world.until_done(&what).await;
        until(SOON, &format!("{what} is over"), || trouble().is_none()).await;
        watching.stop().await;
    });
    futures_util::future::join_all(rounds).await;
}

#[tokio::test]
async fn a_session_that_ends_for_a_planned_reason_is_begun_anew_at_once_at_every_step() {
    let rounds = COMMANDS.into_iter().flat_map(|command| {
        [Fault::bye(EXPIRED), Fault::no("Server Unavailable. 15"), Fault::bye("Server Unavailable. 15")]
            .map(|fault| (command, fault))
    });
    let rounds = rounds.map(|(command, fault)| async move {
        if command == "GREETING" && !matches!(fault, Fault::Bye(_)) {
            return;
        }
        let what = format!("{command} {fault:?}");
        let world = failing(command, fault.clone()).await;
        let watching = world.start_with(&[JOHN], MOVING).await;
        world.until_done(&what).await;
        until(SOON, &format!("{what} happened"), || world.imap.pending() == 0).await;
        world.another_look().await;
        assert_eq!(watching.mailboxes[0].imap.lasting(), None, "{what}");
        watching.stop().await;
    });
    futures_util::future::join_all(rounds).await;
}

#[tokio::test]
async fn a_line_without_end_ends_the_session_with_its_reason_and_the_mail_arrives() {
    // Of the one kind that may be long, and of any other; and one that really never ends.
    let long = |begin: &str, unit: &str| {
        Fault::untagged(&format!("{begin}{}", unit.repeat((10 << 20) / unit.len())))
    };
    let rows = [
        ("UID SEARCH", long("SEARCH", " 4000000000")),
        ("UID FETCH", long("1 FETCH (UID 1 FLAGS (", "\\Seen ")),
        ("SELECT", long("OK [ALERT] ", "x")),
        ("CAPABILITY", Fault::EndlessLine),
    ];
    let rounds = rows.map(|(command, fault)| async move {
        let world = World::new().await;
        let uid = world.deliver(JOHN, "1@x.test");
        world.imap.script(Rule::new(command, fault).times(2));
        let watching = world.start_with(&[JOHN], SETTINGS).await;
        let trouble = || watching.mailboxes[0].imap.lasting();
        until(SOON, command, || trouble().is_some()).await;
        let failure = trouble().unwrap().failure;
        let expected = (Class::Transient, "odd answer", "an endless line");
        assert_eq!((failure.class, failure.code.as_str(), failure.reply.as_str()), expected, "{command}");
        world.until_seen(JOHN, uid).await;
        assert_eq!(world.imap.connections(), 3, "{command}: each time a new connection");
        assert_eq!(world.posted(), ["<1@x.test>"], "{command}");
        watching.stop().await;
    });
    futures_util::future::join_all(rounds).await;
}

#[tokio::test]
async fn what_the_server_refuses_to_give_because_it_is_gone_is_forgotten() {
    let world = World::new().await;
    let good = world.deliver(JOHN, "good@x.test");
    let gone = good + 1;
    // It was there when its size was asked for.
    world.imap.script(
        Rule::new("UID FETCH", Fault::untagged("2 FETCH (UID 2 RFC822.SIZE 500)"))
            .only("2 (UID RFC822.SIZE")
            .times(2),
    );
    let refusal = Fault::no("[EXPUNGEISSUED] Some of the requested messages no longer exist.");
    world.imap.script(Rule::new("UID FETCH", refusal).only("2 (UID BODY").times(2));
    let before = world.start(&[super::world::MARY]).await;
    let (john, now) = (Address::normalise(JOHN).unwrap(), clock::now());
    let mark = Mark { uidvalidity: 14, uid: gone };
    before.store.found(&john, "INBOX", mark, vec![good, gone], now).await.unwrap();
    before.stop().await;
    let watching = world.start(&[JOHN]).await;
    world.until_seen(JOHN, good).await;
    world.another_look().await;
    let counts: Vec<_> = watching.store.inboxes().await.unwrap();
    let john = counts.iter().find(|line| line.mailbox == john).unwrap();
    assert_eq!((john.waiting, john.refused, john.pushed), (0, 0, 1));
    watching.stop().await;
}

#[tokio::test]
async fn what_left_the_folder_long_ago_is_forgotten_and_what_lies_in_it_is_not() {
    let world = World::new().await;
    let [staying, leaving, recent] =
        ["staying@x.test", "leaving@x.test", "recent@x.test"].map(|id| world.deliver(JOHN, id));
    let watching = world.start(&[JOHN]).await;
    world.until_seen(JOHN, recent).await;
    world.another_look().await;
    let john = Address::normalise(JOHN).unwrap();
    let (store, then) =
        (watching.store.clone(), clock::before(clock::now(), Duration::from_secs(91 * 86_400)));
    store
        .settle_received(&john, "INBOX", 14, vec![staying, leaving], PushState::Done, then, then)
        .await
        .unwrap();
    watching.stop().await;
    world.imap.remove(JOHN, "INBOX", leaving);
    world.imap.remove(JOHN, "INBOX", recent);
    let watching = world.start(&[JOHN]).await;
    world.another_look().await;
    let known = async |id: &str| watching.store.was_pushed(&john, id).await.unwrap();
    assert!(!known("<leaving@x.test>").await);
    assert!(known("<staying@x.test>").await && known("<recent@x.test>").await);
    assert_eq!(watching.counts().await, (0, 0, 3), "still counted");
    let asked = world.imap.commands().iter().filter(|(_, line)| *line == "UID SEARCH UID 1:2").count();
    assert_eq!(asked, 1, "and the server was asked once");
    drop(store);
    watching.stop().await;

    // What the ledger no longer knows comes back, and the UIDs count anew: Odoo is asked before anything is pushed.
    world.deliver(JOHN, "leaving@x.test");
    world.imap.set_received(JOHN, "INBOX", 4, clock::before(clock::now(), Duration::from_secs(100 * 86_400)));
    world.imap.set_uidvalidity(JOHN, "INBOX", 777);
    let watching = world.start(&[JOHN]).await;
    world.until_seen(JOHN, 2).await;
    assert_eq!(world.posted(), ["<staying@x.test>", "<leaving@x.test>", "<recent@x.test>"]);
    assert!(world.odoo.calls().iter().any(|call| call == "mail.message.search_count"));
    watching.stop().await;
}

#[tokio::test]
async fn bounces_are_counted_for_whoever_got_them() {
    let world = World::new().await;
    world.deliver(JOHN, "plain@x.test");
    let report = format!(
        "Return-Path: <>\r\nFrom: postmaster@x.test\r\nTo: {JOHN}\r\nMessage-Id: <ndr@x.test>\r\n\
         Content-Type: multipart/report; report-type=delivery-status; boundary=b\r\n\r\n--b--\r\n"
    );
    let uid = world.imap.deliver(JOHN, "INBOX", report.as_bytes());
    let watching = world.start(&[JOHN]).await;
    world.until_seen(JOHN, uid).await;
    world.another_look().await;
    let line = watching.store.inboxes().await.unwrap().remove(0);
    assert_eq!((line.pushed, line.bounces), (2, 1));
    watching.stop().await;
}
