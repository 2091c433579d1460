//! The inbox loop: IMAP in, Odoo out, each message once.

use super::world::{JOHN, MARY, World};
use crate::support::client::message;
use crate::support::entra;
use crate::support::imap::Fault;
use crate::support::odoo::Answer;
use crate::support::script::Rule;
use crate::support::store;
use crate::support::wait::{SOON, until};
use outlook_relay::address::Address;
use outlook_relay::clock;
use outlook_relay::failure::Class;
use outlook_relay::odoo::Intake;
use outlook_relay::store::{Mark, Note, PushState, Store, Update};

/// What the ledger says of a message of John's.
async fn note(store: &Store, uidvalidity: u32, uid: u32, state: PushState, message_id: Option<&str>) {
    let (john, now) = (Address::normalise(JOHN).unwrap(), clock::now());
    let note = Note { message_id: message_id.map(str::to_owned), ..Note::default() };
    let update = Update { uid, state, note, next_try_at: now, at: now };
    store.note_pushes(&john, "INBOX", uidvalidity, vec![update]).await.unwrap();
}

#[tokio::test]
async fn the_first_start_takes_what_is_unread_and_then_what_comes() {
    let world = World::new().await;
    let read = world.deliver(JOHN, "old@x.test");
    world.imap.set_flags(JOHN, "INBOX", read, &["\\Seen"]);
    let unread = world.deliver(JOHN, "unread@x.test");
    let watching = world.start(&[JOHN]).await;
    world.until_seen(JOHN, unread).await;
    let new = world.deliver(JOHN, "new@x.test");
    // A person reads it before the relay does: it is pushed nevertheless.
    world.imap.set_flags(JOHN, "INBOX", new, &["\\Seen"]);
    until(SOON, "the new one is pushed", || world.odoo.posts().len() == 2).await;
    world.another_look().await;
    assert_eq!(world.posted(), ["<unread@x.test>", "<new@x.test>"]);
    assert_eq!(
        world.odoo.posts()[0].text().into_bytes(),
        message("a@x.test", JOHN, "unread@x.test", "Grüße")
    );
    let bodies = world.imap.commands().iter().filter(|(_, line)| line.contains("BODY[")).count();
    assert_eq!(bodies, 0, "everything is fetched with PEEK");
    assert_eq!(watching.counts().await, (0, 0, 2));
    watching.stop().await;
    assert_eq!(world.imap.connections(), 1);
    assert_eq!(world.imap.commands().last().unwrap().1, "LOGOUT");
}

#[tokio::test]
async fn a_refused_message_blocks_nothing_and_stays_unread() {
    let world = World::new().await;
    world.odoo.script(Rule::new((), Answer::NoRoute).only("<bad@x.test>").always());
    let bad = world.deliver(JOHN, "bad@x.test");
    let good = world.deliver(JOHN, "good@x.test");
    let watching = world.start(&[JOHN]).await;
    world.until_seen(JOHN, good).await;
    world.another_look().await;
    assert!(!world.seen(JOHN, bad));
    assert_eq!(world.posted(), ["<bad@x.test>", "<good@x.test>"], "it waits before it is tried again");
    assert_eq!(watching.counts().await, (0, 1, 1));
    assert_eq!(watching.gateway.trouble(), None);
    watching.stop().await;
}

#[tokio::test]
async fn an_outage_of_odoo_delays_and_refuses_nothing() {
    let world = World::new().await;
    world.odoo.server.down().await;
    let first = world.deliver(JOHN, "1@x.test");
    let watching = world.start(&[JOHN]).await;
    until(SOON, "Odoo's trouble is seen", || watching.gateway.trouble().is_some()).await;
    world.odoo.server.up().await;
    world.odoo.answer_next(Answer::Status(503));
    world.until_seen(JOHN, first).await;
    assert_eq!(watching.gateway.trouble(), None);
    assert_eq!(world.odoo.taken().len(), 1);
    assert_eq!(watching.counts().await, (0, 0, 1));
    assert_eq!(watching.mailboxes[0].imap.lasting(), None, "IMAP was well all the time");
    watching.stop().await;
}

#[tokio::test]
async fn a_full_disk_of_the_database_refuses_nothing() {
    let world = World::new().await;
    let full = "Traceback (most recent call last):\n  File \"/odoo/sql_db.py\", line 1, in x\n\
                psycopg2.errors.DiskFull: could not extend file \"base/1/2\": No space left on device\n";
    world.odoo.script(Rule::new((), Answer::Fault(1, full.to_owned())).always());
    let uids = ["1", "2", "3", "4", "5"].map(|id| world.deliver(JOHN, &format!("{id}@x.test")));
    let watching = world.start(&[JOHN]).await;
    until(SOON, "it is tried again", || world.odoo.posts().len() >= 3).await;
    let trouble = watching.gateway.trouble().unwrap();
    assert!(trouble.failure.advice.contains("PostgreSQL"), "{}", trouble.failure);
    assert_eq!(watching.counts().await, (5, 0, 0));
    world.odoo.clear();
    for uid in uids {
        world.until_seen(JOHN, uid).await;
    }
    assert_eq!(watching.counts().await, (0, 0, 5));
    watching.stop().await;
}

#[tokio::test]
async fn an_answer_that_got_lost_makes_no_second_record() {
    let world = World::new().await;
    world.odoo.script(Rule::new((), Answer::TakenThenCut).only("<cut@x.test>"));
    world.odoo.script(Rule::new((), Answer::TakenThenSilence).only("<silent@x.test>"));
    let cut = world.deliver(JOHN, "cut@x.test");
    let silent = world.deliver(JOHN, "silent@x.test");
    let watching = world.start(&[JOHN]).await;
    world.until_seen(JOHN, cut).await;
    world.until_seen(JOHN, silent).await;
    assert_eq!(world.posted(), ["<cut@x.test>", "<silent@x.test>"]);
    assert!(world.odoo.calls().iter().any(|call| call.contains("search_count")));
    watching.stop().await;
}

#[tokio::test]
async fn what_a_crash_left_unknown_is_asked_for_first() {
    let world = World::new().await;
    let arrived = world.deliver(JOHN, "arrived@x.test");
    let lost = world.deliver(JOHN, "lost@x.test");
    let before = world.start(&[MARY]).await;
    let (store, john) = (before.store.clone(), Address::normalise(JOHN).unwrap());
    let raw = message("a@x.test", JOHN, "arrived@x.test", "Grüße");
    before.gateway.push(&raw, &Intake::default(), "<arrived@x.test>").await.unwrap();
    // As a crash during both pushes leaves it.
    let uidvalidity = uidvalidity(&world).await;
    let (mark, now) = (Mark { uidvalidity, uid: lost }, clock::now());
    store.found(&john, "INBOX", mark, vec![arrived, lost], now).await.unwrap();
    for (uid, id) in [(arrived, "<arrived@x.test>"), (lost, "<lost@x.test>")] {
        note(&store, uidvalidity, uid, PushState::Pushing, Some(id)).await;
    }
    drop(store);
    before.stop().await;
    let watching = world.start(&[JOHN]).await;
    world.until_seen(JOHN, arrived).await;
    world.until_seen(JOHN, lost).await;
    assert_eq!(world.posted(), ["<arrived@x.test>", "<lost@x.test>"]);
    watching.stop().await;
}

#[tokio::test]
async fn a_message_that_odoo_cannot_tell_of_blocks_nothing() {
    let world = World::new().await;
    world.odoo.set_broken("mail.message.search_count", "KeyError: 'message_id'");
    world.odoo.script(Rule::new((), Answer::TakenThenCut).only("<cut@x.test>"));
    world.deliver(JOHN, "cut@x.test");
    let good = world.deliver(JOHN, "good@x.test");
    let watching = world.start(&[JOHN]).await;
    world.until_seen(JOHN, good).await;
    assert_eq!(world.posted(), ["<cut@x.test>", "<good@x.test>"]);
    assert_eq!(watching.counts().await, (0, 1, 1));
    watching.stop().await;
}

/// The folder's UIDVALIDITY, as a client sees it.
async fn uidvalidity(world: &World) -> u32 {
    use crate::support::client::ImapClient;
    let token = world.entra.access_token(JOHN, 600);
    let mut client = ImapClient::login(world.imap.addr(), &world.tls, JOHN, &token).await;
    let selected = client.cmd("SELECT INBOX").await;
    let line = selected.find("UIDVALIDITY").unwrap().to_owned();
    let digits: String = line.chars().filter(char::is_ascii_digit).collect();
    digits.parse().unwrap()
}

#[tokio::test]
async fn uids_that_count_anew_push_nothing_twice() {
    let world = World::new().await;
    let first = world.deliver(JOHN, "1@x.test");
    let watching = world.start(&[JOHN]).await;
    world.until_seen(JOHN, first).await;
    world.imap.set_uidvalidity(JOHN, "INBOX", 777);
    world.imap.set_flags(JOHN, "INBOX", 1, &[]);
    world.until_seen(JOHN, 1).await;
    let second = world.deliver(JOHN, "2@x.test");
    world.until_seen(JOHN, second).await;
    assert_eq!(world.posted(), ["<1@x.test>", "<2@x.test>"]);
    watching.stop().await;
}

#[tokio::test]
async fn a_restart_pushes_nothing_twice_and_misses_nothing() {
    let world = World::new().await;
    let first = world.deliver(JOHN, "1@x.test");
    let watching = world.start(&[JOHN]).await;
    world.until_seen(JOHN, first).await;
    watching.stop().await;
    world.imap.set_flags(JOHN, "INBOX", first, &[]);
    let second = world.deliver(JOHN, "2@x.test");
    let watching = world.start(&[JOHN]).await;
    world.until_seen(JOHN, second).await;
    world.another_look().await;
    assert_eq!(world.posted(), ["<1@x.test>", "<2@x.test>"]);
    watching.stop().await;
}

#[tokio::test]
async fn the_session_survives_what_exchange_does() {
    let world = World::new().await;
    let watching = world.start(&[JOHN]).await;
    let faults = [
        ("SELECT", Fault::bye("Session invalidated - AccessTokenExpired")),
        ("UID SEARCH", Fault::no("Server Unavailable. 15")),
        ("UID SEARCH", Fault::Cut),
        ("UID FETCH", Fault::CutMidway),
        ("UID FETCH", Fault::bad("Command received in Invalid state.")),
        ("UID STORE", Fault::CutAfter),
        ("SELECT", Fault::untagged("OK [ALERT]ü")),
    ];
    let mut ids = Vec::new();
    for (number, (command, fault)) in faults.into_iter().enumerate() {
        world.another_look().await;
        world.imap.fail_next(command, fault);
        let uid = world.deliver(JOHN, &format!("{number}@x.test"));
        ids.push(format!("<{number}@x.test>"));
        world.until_seen(JOHN, uid).await;
    }
    assert_eq!(world.posted(), ids);
    assert_eq!(world.imap.pending(), 0);
    world.another_look().await;
    assert_eq!(watching.mailboxes[0].imap.lasting(), None);
    watching.stop().await;
}

#[tokio::test]
async fn a_refused_token_is_replaced_once_before_anybody_is_bothered() {
    let world = World::new().await;
    world.imap.fail_next("AUTHENTICATE", Fault::no("AUTHENTICATE failed."));
    let first = world.deliver(JOHN, "1@x.test");
    let watching = world.start(&[JOHN]).await;
    world.until_seen(JOHN, first).await;
    assert_eq!(world.entra.refreshes(JOHN), 2);
    assert_eq!(world.imap.connections(), 2);
    watching.stop().await;

    world.imap.script(Rule::new("AUTHENTICATE", Fault::no("AUTHENTICATE failed.")).always());
    let watching = world.start(&[JOHN]).await;
    until(SOON, "it is said", || watching.mailboxes[0].imap.lasting().is_some()).await;
    let failure = watching.mailboxes[0].imap.lasting().unwrap().failure;
    assert_eq!((failure.class, failure.code.as_str()), (Class::Administrator, "AUTHENTICATE failed"));
    watching.stop().await;
}

#[tokio::test]
async fn a_token_is_renewed_before_it_expires() {
    let world = World::new().await;
    // Within the margin from the start, so that each look is made with a new session.
    world.entra.set_expires_in(50);
    let watching = world.start(&[JOHN]).await;
    for number in 0..3 {
        let uid = world.deliver(JOHN, &format!("{number}@x.test"));
        world.until_seen(JOHN, uid).await;
    }
    assert!(world.imap.connections() >= 3, "{}", world.imap.connections());
    assert_eq!(world.odoo.taken().len(), 3);
    watching.stop().await;
}

#[tokio::test]
async fn a_message_that_cannot_be_fetched_blocks_nothing() {
    let world = World::new().await;
    let broken = world.deliver(JOHN, "broken@x.test");
    let cutting = world.deliver(JOHN, "cutting@x.test");
    let good = world.deliver(JOHN, "good@x.test");
    let body = |uid: u32| format!("{uid} (UID BODY");
    let converted = Fault::no("The message could not be converted.");
    // Asked for with others, each of them fails the whole command.
    let together = format!("{broken}:{good} (UID BODY");
    world.imap.script(Rule::new("UID FETCH", converted.clone()).only(&together).always());
    world.imap.script(Rule::new("UID FETCH", converted).only(&body(broken)).always());
    world.imap.script(Rule::new("UID FETCH", Fault::CutMidway).only(&body(cutting)).always());
    let watching = world.start(&[JOHN]).await;
    world.until_seen(JOHN, good).await;
    assert_eq!(world.posted(), ["<good@x.test>"]);
    assert_eq!(watching.counts().await, (0, 2, 1));
    watching.stop().await;
}

#[tokio::test]
async fn a_message_that_left_is_forgotten() {
    let world = World::new().await;
    world.odoo.script(Rule::new((), Answer::Status(503)).times(2));
    let leaving = world.deliver(JOHN, "leaving@x.test");
    let watching = world.start(&[JOHN]).await;
    until(SOON, "it was tried", || !world.odoo.posts().is_empty()).await;
    world.imap.remove(JOHN, "INBOX", leaving);
    until(SOON, "Odoo's trouble is over", || watching.gateway.trouble().is_none()).await;
    assert_eq!(watching.counts().await, (0, 0, 0));
    watching.stop().await;
}

#[tokio::test]
async fn a_folder_that_cannot_be_marked_is_still_pushed_once() {
    let world = World::new().await;
    world.imap.script(Rule::new("UID STORE", Fault::no("The folder is read-only.")).always());
    world.deliver(JOHN, "1@x.test");
    world.deliver(JOHN, "2@x.test");
    let watching = world.start(&[JOHN]).await;
    until(SOON, "both are pushed", || world.odoo.posts().len() == 2).await;
    world.another_look().await;
    assert_eq!(world.posted(), ["<1@x.test>", "<2@x.test>"]);
    let failure = watching.mailboxes[0].imap.lasting().unwrap().failure;
    assert_eq!(failure.class, Class::Administrator);
    watching.stop().await;
}

#[tokio::test]
async fn the_same_mail_in_two_mailboxes_makes_one_record() {
    let world = World::new().await;
    world.odoo.set_delay(std::time::Duration::from_millis(100));
    let raw = message("a@x.test", "both@foreign.test", "same@x.test", "Grüße");
    let johns = world.imap.deliver(JOHN, "INBOX", &raw);
    let marys = world.imap.deliver(MARY, "INBOX", &raw);
    let watching = world.start(&[JOHN, MARY]).await;
    world.until_seen(JOHN, johns).await;
    world.until_seen(MARY, marys).await;
    assert_eq!(world.odoo.taken().len(), 1);
    let texts: Vec<_> = world.odoo.posts().iter().map(|post| post.text()).collect();
    assert!(texts.iter().any(|text| text.starts_with("Delivered-To: john@example.com\r\n")));
    assert!(texts.iter().any(|text| text.starts_with("Delivered-To: mary@example.com\r\n")));
    watching.stop().await;
}

#[tokio::test]
async fn a_poisonous_message_that_breaks_odoo_is_set_aside() {
    let world = World::new().await;
    world.odoo.script(Rule::new((), Answer::Cut).only("<poison@x.test>").always());
    let poison = world.deliver(JOHN, "poison@x.test");
    // Odoo failed at it seven times already.
    let before = world.start(&[MARY]).await;
    let (john, uidvalidity, now) =
        (Address::normalise(JOHN).unwrap(), uidvalidity(&world).await, clock::now());
    let mark = Mark { uidvalidity, uid: poison };
    let store = before.store.clone();
    store.found(&john, "INBOX", mark, vec![poison], now).await.unwrap();
    for state in [PushState::Pushing, PushState::Waiting].repeat(7) {
        note(&store, uidvalidity, poison, state, None).await;
    }
    drop(store);
    before.stop().await;
    let good = world.deliver(JOHN, "good@x.test");
    let watching = world.start(&[JOHN]).await;
    world.until_seen(JOHN, good).await;
    assert_eq!(world.posted(), ["<poison@x.test>", "<good@x.test>"], "it gives way");
    assert_eq!(watching.counts().await, (1, 0, 1));
    // Odoo took another one since: the next time it is to blame.
    let (store, now) = (watching.store.clone(), clock::now());
    let due = vec![poison];
    store.settle_received(&john, "INBOX", uidvalidity, due, PushState::Waiting, now, now).await.unwrap();
    store.wake_all();
    drop(store);
    while watching.counts().await != (0, 1, 1) {
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    assert!(!world.seen(JOHN, poison));
    watching.stop().await;
}

#[tokio::test]
async fn an_outage_counts_against_no_message() {
    let world = World::new().await;
    let update = Answer::Fault(1, "psycopg2.errors.DeadlockDetected: a moment please\n".to_owned());
    world.odoo.script(Rule::new((), update));
    let first = world.deliver(JOHN, "first@x.test");
    let before = world.start(&[MARY]).await;
    let (john, uidvalidity, now) =
        (Address::normalise(JOHN).unwrap(), uidvalidity(&world).await, clock::now());
    let (mark, store) = (Mark { uidvalidity, uid: first }, before.store.clone());
    store.found(&john, "INBOX", mark, vec![first], now).await.unwrap();
    for state in [PushState::Pushing, PushState::Waiting].repeat(5) {
        note(&store, uidvalidity, first, state, None).await;
    }
    drop(store);
    before.stop().await;
    let second = world.deliver(JOHN, "second@x.test");
    let settings = "poll = \"100ms\"\nnew_per_sender = 0\nquarantine_folder = \"Quarantine\"\n";
    let watching = world.start_with(&[JOHN], settings).await;
    world.until_seen(JOHN, first).await;
    world.until_seen(JOHN, second).await;
    assert_eq!(world.posted(), ["<first@x.test>", "<first@x.test>", "<second@x.test>"]);
    watching.stop().await;
}

#[tokio::test]
async fn a_message_for_which_odoo_has_no_rights_holds_up_no_other_for_ever() {
    let world = World::new().await;
    world.odoo.script(Rule::new((), Answer::AccessError).only("<bad@x.test>").always());
    let bad = world.deliver(JOHN, "bad@x.test");
    let before = world.start(&[MARY]).await;
    let (john, uidvalidity, now) =
        (Address::normalise(JOHN).unwrap(), uidvalidity(&world).await, clock::now());
    let (mark, store) = (Mark { uidvalidity, uid: bad }, before.store.clone());
    store.found(&john, "INBOX", mark, vec![bad], now).await.unwrap();
    for state in [PushState::Pushing, PushState::Waiting].repeat(7) {
        note(&store, uidvalidity, bad, state, None).await;
    }
    drop(store);
    before.stop().await;
    let good = world.deliver(JOHN, "good@x.test");
    let watching = world.start(&[JOHN]).await;
    world.until_seen(JOHN, good).await;
    assert_eq!(world.posted(), ["<bad@x.test>", "<good@x.test>"]);
    assert_eq!(watching.counts().await, (1, 0, 1), "it is tried again");
    watching.stop().await;
}

#[tokio::test]
async fn a_mail_to_another_address_of_the_mailbox_makes_one_record() {
    let world = World::new().await;
    world.odoo.script(Rule::new((), Answer::NoRoute).only("<blind@x.test>"));
    for (id, to) in [("alias@x.test", "sales@example.com"), ("blind@x.test", "boss@example.com")] {
        world.imap.deliver(JOHN, "INBOX", &message("a@x.test", to, id, "Hi"));
    }
    let watching = world.start(&[JOHN]).await;
    world.until_seen(JOHN, 2).await;
    assert_eq!(world.posted(), ["<alias@x.test>", "<blind@x.test>", "<blind@x.test>"]);
    let named: Vec<_> = world
        .odoo
        .posts()
        .iter()
        .map(|post| post.text().starts_with("Delivered-To: john@example.com\r\n"))
        .collect();
    assert_eq!(named, [false, false, true], "only what has no route otherwise");
    watching.stop().await;
}

#[tokio::test]
async fn a_message_that_is_too_large_is_not_even_fetched() {
    let world = World::new().await;
    world.imap.set_size_error(121 << 20);
    world.deliver(JOHN, "large@x.test");
    let watching = world.start(&[JOHN]).await;
    until(SOON, "its size is asked for", || world.asked("RFC822.SIZE")).await;
    world.another_look().await;
    assert_eq!(watching.counts().await, (0, 1, 0));
    assert!(world.posted().is_empty() && !world.asked("BODY.PEEK"));
    watching.stop().await;
}

#[tokio::test]
async fn a_shutdown_finishes_the_message_in_hand_only() {
    let world = World::new().await;
    world.odoo.set_delay(std::time::Duration::from_millis(300));
    let first = world.deliver(JOHN, "1@x.test");
    let second = world.deliver(JOHN, "2@x.test");
    let watching = world.start(&[JOHN]).await;
    until(SOON, "the push is under way", || {
        world.odoo.calls().iter().any(|call| call.contains("message_process"))
    })
    .await;
    watching.stop().await;
    assert!(world.seen(JOHN, first) && !world.seen(JOHN, second));
    assert_eq!(world.posted(), ["<1@x.test>"]);
}

#[tokio::test]
async fn no_consent_is_no_trouble_of_imap() {
    let world = World::new().await;
    world.entra.script(
        Rule::new((), entra::Answer::error(400, "invalid_grant", 700_082, "The refresh token has expired"))
            .always(),
    );
    let watching = world.start(&[JOHN]).await;
    until(SOON, "the token's trouble is said", || watching.mailboxes[0].token.lasting().is_some()).await;
    assert_eq!(watching.mailboxes[0].imap.lasting(), None);
    assert_eq!(world.imap.connections(), 0);
    watching.stop().await;
}

#[tokio::test]
async fn nothing_is_pushed_that_cannot_be_booked() {
    let world = World::new().await;
    let watching = world.start(&[JOHN]).await;
    world.another_look().await;
    let database = store::open(world.folder.path().join("relay.db"));
    let first = world.deliver(JOHN, "1@x.test");
    world.until_seen(JOHN, first).await;
    let broken = format!(
        "CREATE TRIGGER broken BEFORE UPDATE ON received WHEN new.state = 'pushing' AND new.uid > {} \
         BEGIN SELECT raise(FAIL, 'disk is full'); END",
        first + 1
    );
    database.execute_batch(&broken).unwrap();
    let (second, _third) = (world.deliver(JOHN, "2@x.test"), world.deliver(JOHN, "3@x.test"));
    // What became of it is written down although the next one cannot be booked.
    world.until_seen(JOHN, second).await;
    world.another_look().await;
    assert_eq!(world.posted(), ["<1@x.test>", "<2@x.test>"]);
    database.execute_batch("DROP TRIGGER broken").unwrap();
    until(SOON, "the third", || world.odoo.posts().len() == 3).await;
    watching.stop().await;
    assert_eq!(world.posted(), ["<1@x.test>", "<2@x.test>", "<3@x.test>"]);
}
