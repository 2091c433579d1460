//! What is removed from the ledger, and what stays.

use super::super::tests::{Opened, at, john, open};
use super::super::{Mark, Note, PushState, Update};

/// A message of a folder in some state since a second.
async fn received(opened: &Opened, folder: &str, uidvalidity: u32, uid: u32, state: PushState, second: i64) {
    let store = &opened.store;
    store.found(&john(), folder, Mark { uidvalidity, uid }, vec![uid], at(0)).await.unwrap();
    let note = Note { message_id: Some(format!("<{folder}.{uidvalidity}.{uid}@t>")), ..Note::default() };
    let update = Update { uid, state, note, next_try_at: at(second), at: at(second) };
    store.note_pushes(&john(), folder, uidvalidity, vec![update]).await.unwrap();
}

/// Which of them `once` still knows.
async fn known(opened: &Opened, ids: &[&str]) -> Vec<bool> {
    let mut known = Vec::new();
    for id in ids {
        known.push(opened.store.was_pushed(&john(), &format!("<{id}@t>")).await.unwrap());
    }
    known
}

#[tokio::test]
async fn only_what_is_done_with_long_ago_and_gone_is_removed_and_stays_counted() {
    use PushState::{Done, Gone, Moved, Pushed, Refused};
    let opened = open().await;
    received(&opened, "Old", 6, 1, Done, 10).await;
    received(&opened, "INBOX", 6, 1, Done, 10).await;
    received(&opened, "INBOX", 6, 2, Done, 30).await;
    for (uid, state, second) in [
        (1, Done, 10),
        (2, Done, 10),
        (3, Done, 30),
        (4, Pushed, 10),
        (5, Refused, 10),
        (6, Moved, 10),
        (7, Gone, 10),
        (8, Done, 10),
    ] {
        received(&opened, "INBOX", 7, uid, state, second).await;
    }
    let store = &opened.store;
    let counts = async || {
        let lines = store.inboxes().await.unwrap();
        lines.into_iter().map(|line| (line.folder, line.pushed, line.refused)).collect::<Vec<_>>()
    };
    let before = counts().await;
    assert_eq!(before, [("INBOX".to_owned(), 7, 2), ("Old".to_owned(), 1, 0)]);

    assert_eq!(store.done_before(&john(), "INBOX", 7, 0, at(20), 10).await.unwrap(), [1, 2, 8]);
    assert_eq!(store.done_before(&john(), "INBOX", 7, 1, at(20), 1).await.unwrap(), [2]);
    // 2 still lies in the folder; 4 to 6 could not go even if they were named.
    store.prune_received(&john(), "INBOX", 7, vec![1, 3, 4, 5, 6, 8], at(20)).await.unwrap();
    assert_eq!(counts().await, before, "what Odoo took does not become less");
    let ids = ["Old.6.1", "INBOX.6.1", "INBOX.6.2", "INBOX.7.1", "INBOX.7.2", "INBOX.7.3", "INBOX.7.8"];
    assert_eq!(known(&opened, &ids).await, [false, false, true, false, true, true, false]);
    assert_eq!(store.quarantined(None).await.unwrap().len(), 2);
    assert_eq!(store.to_push(&john(), "INBOX", 7, at(99), 10).await.unwrap().len(), 2);

    store.prune_received(&john(), "INBOX", 7, vec![1], at(20)).await.unwrap();
    assert_eq!(counts().await, before, "nor is anything counted twice");
    let opened = opened.reopen().await;
    assert_eq!(opened.store.inboxes().await.unwrap()[0].pushed, 7);
}

#[tokio::test]
async fn what_is_left_of_an_older_folder_goes_bit_by_bit() {
    let opened = open().await;
    let store = &opened.store;
    let uids: Vec<u32> = (1..=2500).collect();
    store.found(&john(), "INBOX", Mark { uidvalidity: 6, uid: 2500 }, uids.clone(), at(0)).await.unwrap();
    store.settle_received(&john(), "INBOX", 6, uids, PushState::Done, at(1), at(1)).await.unwrap();
    store.found(&john(), "INBOX", Mark { uidvalidity: 7, uid: 0 }, vec![], at(2)).await.unwrap();
    for left in [1500, 500, 0] {
        store.prune_received(&john(), "INBOX", 7, vec![], at(20)).await.unwrap();
        let old = store.done_before(&john(), "INBOX", 6, 0, at(20), 10_000).await.unwrap();
        assert_eq!(old.len(), left);
        assert_eq!(store.inboxes().await.unwrap()[0].pushed, 2500);
    }
}

#[tokio::test]
async fn bounces_are_counted_when_odoo_takes_them() {
    let opened = open().await;
    let store = &opened.store;
    store.found(&john(), "INBOX", Mark { uidvalidity: 7, uid: 2 }, vec![1, 2], at(0)).await.unwrap();
    for (uid, bounce) in [(1, true), (2, false)] {
        let note = Note { bounce, ..Note::default() };
        let update = Update { uid, state: PushState::Pushed, note, next_try_at: at(1), at: at(1) };
        store.note_pushes(&john(), "INBOX", 7, vec![update]).await.unwrap();
    }
    let opened = opened.reopen().await;
    let line = &opened.store.inboxes().await.unwrap()[0];
    assert_eq!((line.pushed, line.bounces), (2, 1));
}
