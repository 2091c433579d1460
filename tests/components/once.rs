//! Each message once, whatever happens to the folder, to the ledger, or by a person's hand.

use super::world::{JOHN, World};
use crate::support::imap::Fault;
use crate::support::odoo::Answer;
use crate::support::script::Rule;
use crate::support::wait::{SOON, until};
use outlook_relay::address::Address;
use outlook_relay::clock;
use outlook_relay::store::{PushState, Quarantined};

const SETTINGS: &str = "poll = \"100ms\"\nidle = \"100ms\"\nnew_per_sender = 0\n";

impl World {
    async fn until_posted(&self, ids: &[&str]) {
        until(SOON, "all are pushed", || self.posted().len() >= ids.len()).await;
        assert_eq!(self.posted(), ids);
    }

    fn lies_in(&self, folder: &str) -> Vec<String> {
        let id = |raw: &[u8]| {
            let text = String::from_utf8_lossy(raw).into_owned();
            let (_, rest) = text.split_once("Message-Id: ").unwrap();
            rest.split_once("\r\n").unwrap().0.to_owned()
        };
        self.imap.messages(JOHN, folder).iter().map(|message| id(&message.raw)).collect()
    }
}

#[tokio::test]
async fn what_a_person_read_while_uids_began_anew_is_not_missed() {
    let world = World::new().await;
    let old = world.deliver(JOHN, "old@x.test");
    world.imap.set_flags(JOHN, "INBOX", old, &["\\Seen"]);
    let watching = world.start(&[JOHN]).await;
    let first = world.deliver(JOHN, "1@x.test");
    world.until_seen(JOHN, first).await;
    watching.stop().await;
    // While the relay is down: one comes, a person reads it, the mailbox is moved to another server.
    let second = world.deliver(JOHN, "2@x.test");
    world.imap.set_flags(JOHN, "INBOX", second, &["\\Seen"]);
    world.imap.set_uidvalidity(JOHN, "INBOX", 777);
    let watching = world.start(&[JOHN]).await;
    until(SOON, "it is pushed", || world.posted().iter().any(|id| id == "<2@x.test>")).await;
    let third = world.deliver(JOHN, "3@x.test");
    world.until_seen(JOHN, third).await;
    // What was read before the first start came within the quarter of an hour by which clocks may differ; Odoo has never
    // heard of it.
    let posted: Vec<_> = world.posted().into_iter().filter(|id| id != "<old@x.test>").collect();
    assert_eq!(posted, ["<1@x.test>", "<2@x.test>", "<3@x.test>"]);
    watching.stop().await;
}

#[tokio::test]
async fn a_renamed_folder_goes_on_where_it_was() {
    let world = World::new().await;
    let first = world.deliver(JOHN, "1@x.test");
    let watching = world.start(&[JOHN]).await;
    world.until_seen(JOHN, first).await;
    watching.stop().await;
    for (id, flags) in [("1@x.test", &["\\Seen"][..]), ("2@x.test", &["\\Seen"]), ("3@x.test", &[])] {
        let raw = crate::support::client::message("a@x.test", JOHN, id, "Grüße");
        let uid = world.imap.deliver(JOHN, "Anfragen f&APw-r uns", &raw);
        world.imap.set_flags(JOHN, "Anfragen f&APw-r uns", uid, flags);
    }
    let settings = format!("{SETTINGS}[[mailbox]]folder = \"Anfragen für uns\"\n");
    let watching = world.start_with(&[JOHN], &settings).await;
    world.until_posted(&["<1@x.test>", "<2@x.test>", "<3@x.test>"]).await;
    world.another_look().await;
    assert_eq!(world.posted().len(), 3);
    watching.stop().await;
}

#[tokio::test]
async fn an_older_backup_of_the_store_repeats_nothing() {
    for after in ["seen", "none"] {
        let world = World::new().await;
        let settings = format!("{SETTINGS}after = \"{after}\"\n");
        world.deliver(JOHN, "1@x.test");
        let watching = world.start_with(&[JOHN], &settings).await;
        world.until_posted(&["<1@x.test>"]).await;
        world.another_look().await;
        watching.stop().await;
        let store = world.folder.path().join("relay.db");
        let backup = world.folder.path().join("backup.db");
        std::fs::copy(&store, &backup).unwrap();
        // Odoo keeps nothing of a bounce, but for this test it does: what counts is whether it is asked.
        world.deliver(JOHN, "2@x.test");
        let watching = world.start_with(&[JOHN], &settings).await;
        world.until_posted(&["<1@x.test>", "<2@x.test>"]).await;
        world.another_look().await;
        watching.stop().await;
        for ending in ["-wal", "-shm"] {
            let _ = std::fs::remove_file(world.folder.path().join(format!("relay.db{ending}")));
        }
        std::fs::copy(&backup, &store).unwrap();
        world.deliver(JOHN, "3@x.test");
        let watching = world.start_with(&[JOHN], &settings).await;
        world.until_posted(&["<1@x.test>", "<2@x.test>", "<3@x.test>"]).await;
        world.another_look().await;
        assert_eq!(world.posted().len(), 3, "{after}");
        watching.stop().await;
    }
}

#[tokio::test]
async fn a_uid_that_is_none_moves_no_mark() {
    let world = World::new().await;
    let first = world.deliver(JOHN, "1@x.test");
    let watching = world.start(&[JOHN]).await;
    world.until_seen(JOHN, first).await;
    world.imap.script(Rule::new("UID SEARCH", Fault::untagged("SEARCH 4294967295")).times(3));
    until(SOON, "it was told", || world.imap.pending() == 0).await;
    let second = world.deliver(JOHN, "2@x.test");
    world.until_seen(JOHN, second).await;
    assert_eq!(world.posted(), ["<1@x.test>", "<2@x.test>"]);
    watching.stop().await;
}

#[tokio::test]
async fn a_mark_that_an_odd_uid_has_set_is_set_right() {
    let world = World::new().await;
    let first = world.deliver(JOHN, "1@x.test");
    let watching = world.start(&[JOHN]).await;
    world.until_seen(JOHN, first).await;
    let john = Address::normalise(JOHN).unwrap();
    let mark = watching.store.mark(&john, "INBOX").await.unwrap().unwrap();
    let mark = outlook_relay::store::Mark { uid: u32::MAX, ..mark };
    watching.store.found(&john, "INBOX", mark, vec![], clock::now()).await.unwrap();
    let second = world.deliver(JOHN, "2@x.test");
    world.until_seen(JOHN, second).await;
    assert_eq!(world.posted(), ["<1@x.test>", "<2@x.test>"]);
    watching.stop().await;
}

#[tokio::test]
async fn what_is_expunged_under_our_feet_holds_up_nobody() {
    let world = World::new().await;
    let leaving = world.deliver(JOHN, "leaving@x.test");
    let staying = world.deliver(JOHN, "staying@x.test");
    let last = world.deliver(JOHN, "last@x.test");
    // Odoo takes its time with the first; meanwhile the folder is emptied.
    world.odoo.set_delay(std::time::Duration::from_millis(300));
    let watching = world.start(&[JOHN]).await;
    until(SOON, "the push is under way", || {
        world.odoo.calls().iter().any(|call| call.contains("message_process"))
    })
    .await;
    world.imap.remove(JOHN, "INBOX", leaving);
    world.imap.remove(JOHN, "INBOX", staying);
    world.until_seen(JOHN, last).await;
    world.another_look().await;
    // What was fetched is pushed, though it is gone now.
    assert_eq!(world.posted(), ["<leaving@x.test>", "<staying@x.test>", "<last@x.test>"]);
    assert_eq!(watching.counts().await, (0, 0, 3));
    assert_eq!(watching.mailboxes[0].imap.lasting(), None);
    watching.stop().await;
}

#[tokio::test]
async fn afterwards_a_message_is_moved_deleted_or_left_alone() {
    for (after, without) in [
        ("move", None),
        ("move", Some("MOVE")),
        ("move", Some("MOVE UIDPLUS")),
        ("delete", None),
        ("delete", Some("UIDPLUS")),
        ("none", None),
    ] {
        let world = World::new().await;
        for word in without.unwrap_or_default().split_whitespace() {
            world.imap.drop_capability(word);
        }
        let settings = format!("{SETTINGS}after = \"{after}\"\nafter_folder = \"Nach Odoo übergeben\"\n");
        let theirs = world.deliver(JOHN, "theirs@x.test");
        world.imap.set_flags(JOHN, "INBOX", theirs, &["\\Deleted", "\\Seen"]);
        for id in ["1@x.test", "2@x.test"] {
            world.deliver(JOHN, id);
        }
        let watching = world.start_with(&[JOHN], &settings).await;
        let what = format!("{after} without {without:?}");
        until(SOON, &what, || world.odoo.posts().len() == 2).await;
        until(SOON, &what, || match after {
            "none" => true,
            _ => {
                world.imap.messages(JOHN, "INBOX").iter().skip(1).all(|left| left.flags.contains("\\Deleted"))
            }
        })
        .await;
        world.another_look().await;
        let moved = if after == "move" { vec!["<1@x.test>", "<2@x.test>"] } else { vec![] };
        assert_eq!(world.lies_in("Nach Odoo &APw-bergeben"), moved, "{what}");
        let mut left = vec!["<theirs@x.test>"];
        if after == "none" || without.is_some_and(|words| words.contains("UIDPLUS")) {
            left.extend(["<1@x.test>", "<2@x.test>"]);
        }
        assert_eq!(world.lies_in("INBOX"), left, "{what}");
        if after == "none" {
            assert!(world.imap.messages(JOHN, "INBOX")[1..].iter().all(|message| message.flags.is_empty()));
        }
        assert_eq!(world.posted(), ["<1@x.test>", "<2@x.test>"], "{what}");
        assert_eq!(watching.mailboxes[0].imap.lasting(), None, "{what}");
        watching.stop().await;
    }
}

#[tokio::test]
async fn what_odoo_refuses_is_quarantined_and_comes_back_when_a_person_wants_it() {
    let world = World::new().await;
    world.odoo.script(Rule::new((), Answer::NoRoute).only("<bad@x.test>").always());
    let settings = format!("{SETTINGS}quarantine_folder = \"Quarantäne\"\n");
    world.deliver(JOHN, "bad@x.test");
    let watching = world.start_with(&[JOHN], &settings).await;
    let john = Address::normalise(JOHN).unwrap();
    let store = watching.store.clone();
    let only = async || -> Quarantined {
        let mut all = store.quarantined(Some(&john)).await.unwrap();
        assert!(all.len() <= 1, "{all:?}");
        loop {
            if let Some(one) = all.pop() {
                return one;
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            all = store.quarantined(None).await.unwrap();
        }
    };
    // Its time comes four times, faster than it would by itself.
    while only().await.state != PushState::Moved {
        let Quarantined { folder, uidvalidity, uid, tries, .. } = only().await;
        let now = clock::now();
        let due = vec![uid];
        store.settle_received(&john, &folder, uidvalidity, due, PushState::Refused, now, now).await.unwrap();
        store.wake_all();
        let changed = |one: &Quarantined| one.tries > tries || one.state == PushState::Moved;
        while !changed(&only().await) {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    }
    assert_eq!(world.posted().len(), 4);
    assert_eq!(world.lies_in("Quarant&AOQ-ne"), ["<bad@x.test>"]);
    assert!(!world.imap.messages(JOHN, "Quarant&AOQ-ne")[0].flags.contains("\\Seen"), "it stays unread");
    assert_eq!(watching.counts().await, (0, 1, 0));
    assert!(only().await.reason.unwrap().contains("No possible route"));

    // The alias is there now.
    world.odoo.clear();
    assert!(store.retry_received(&only().await, clock::now()).await.unwrap());
    store.wake_all();
    until(SOON, "it is taken", || world.odoo.taken().len() == 1).await;
    until(SOON, "it is marked", || {
        world.imap.messages(JOHN, "INBOX").first().is_some_and(|message| message.flags.contains("\\Seen"))
    })
    .await;
    assert!(world.lies_in("Quarant&AOQ-ne").is_empty());
    world.another_look().await;
    assert_eq!(watching.counts().await, (0, 0, 1));
    drop(store);
    watching.stop().await;
}
