//! The store on a real SQLite file.

use super::*;
use crate::message::Envelope;
use crate::routing::Rule;
use secrecy::{ExposeSecret, SecretString};
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;
use tokio::task::JoinHandle;

pub(super) struct Opened {
    pub(super) store: Store,
    writing: JoinHandle<()>,
    pub(super) config: Config,
    _folder: tempfile::TempDir,
}

pub(super) async fn open() -> Opened {
    let folder = tempfile::tempdir().unwrap();
    let config = Config::at(folder.path().join("deeper/relay.db"));
    let (store, writer) = Store::open(&config).await.unwrap();
    Opened { store, writing: tokio::spawn(writer.run()), config, _folder: folder }
}

impl Opened {
    /// Ends this process's use of the store, then opens it again.
    pub(super) async fn reopen(self) -> Self {
        self.store.close().await;
        self.writing.await.unwrap();
        let (store, writer) = Store::open(&self.config).await.unwrap();
        Self { store, writing: tokio::spawn(writer.run()), ..self }
    }

    /// Changes the database, as another program would.
    pub(super) fn sql(&self, sql: &str, values: impl rusqlite::Params) {
        bare(&self.config.path).unwrap().execute(sql, values).unwrap();
    }

    /// Makes a message's recipients bytes that are no text.
    pub(super) fn damage(&self, id: QueueId) {
        self.sql("UPDATE message SET recipients = CAST(x'5bff' AS TEXT) WHERE id = ?1", [id.0]);
    }
}

pub(super) fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + second).unwrap()
}

pub(super) fn john() -> Address {
    Address::normalise("john@example.com").unwrap()
}

pub(super) fn message(store: &Store, recipients: &[&str]) -> NewMessage {
    NewMessage {
        id: store.next_id(at(0)),
        received_at: at(0),
        envelope: Envelope {
            mail_from: "bounce@example.com".to_owned(),
            recipients: recipients.iter().map(ToString::to_string).collect(),
            smtputf8: false,
        },
        eight_bit: true,
        header_from: Some("John <john@example.com>".to_owned()),
        message_id: Some("<1@odoo>".to_owned()),
        mailbox: john(),
        rule: Rule::Address,
        new_from: None,
        content: bytes::Bytes::from_static(b"From: john\r\n\r\nbody\r\n"),
    }
}

#[tokio::test]
async fn the_file_is_private_and_its_folder_is_made() {
    let opened = open().await;
    opened.store.accept(message(&opened.store, &["a@x.test"])).await.unwrap();
    let folder = opened.config.path.parent().unwrap();
    assert_eq!(std::fs::metadata(folder).unwrap().permissions().mode() & 0o777, 0o700);
    let files: Vec<_> = std::fs::read_dir(folder).unwrap().map(Result::unwrap).collect();
    assert!(files.len() >= 3, "the database, its log and the key");
    for file in files {
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{:?}", file.path());
    }
}

#[tokio::test]
async fn one_bad_write_does_not_fail_the_others_of_its_commit() {
    let folder = tempfile::tempdir().unwrap();
    let config = Config::at(folder.path().join("relay.db"));
    let (store, writer) = Store::open(&config).await.unwrap();
    let twice = message(&store, &["a@x.test"]);
    let other = message(&store, &["b@x.test"]);
    // Handed in before the writer runs: so they share its first commit.
    let writes = tokio::spawn({
        let store = store.clone();
        async move { tokio::join!(store.accept(twice.clone()), store.accept(twice), store.accept(other)) }
    });
    while store.writes.capacity() > store.writes.max_capacity() - 3 {
        tokio::task::yield_now().await;
    }
    let writing = tokio::spawn(writer.run());
    let (first, second, third) = writes.await.unwrap();
    assert!(first.is_ok() && second.is_err() && third.is_ok(), "{first:?} {second:?} {third:?}");
    assert_eq!(store.due(&john(), at(0), 10).await.unwrap().len(), 2);
    store.close().await;
    writing.await.unwrap();
}

#[tokio::test]
async fn a_rotated_token_replaces_the_last_one_but_never_a_newer_consent() {
    let opened = open().await;
    let token = |secret: &str, consented: i64| StoredToken {
        tenant: "t".to_owned(),
        client_id: "c".to_owned(),
        refresh_token: SecretString::from(secret),
        consented_at: at(consented),
        refreshed_at: None,
    };
    let store = &opened.store;
    let mut changes = store.changes().await.unwrap();
    changes.seen().unwrap();
    assert!(!changes.seen().unwrap());
    store.keep_token(&john(), token("first", 0)).await.unwrap();
    assert!(changes.seen().unwrap());
    let rotated = |secret| StoredToken { refreshed_at: Some(at(1)), ..token(secret, 0) };
    store.keep_token(&john(), rotated("rotated")).await.unwrap();
    assert_eq!(store.token(&john()).await.unwrap().unwrap().refresh_token.expose_secret(), "rotated");
    store.keep_token(&john(), token("consented anew", 10)).await.unwrap();
    store.keep_token(&john(), rotated("rotation of the old one, late")).await.unwrap();
    let kept = store.token(&john()).await.unwrap().unwrap();
    assert_eq!(kept.refresh_token.expose_secret(), "consented anew");
    assert_eq!(store.consents().await.unwrap(), [(john(), at(10))]);
}

#[tokio::test]
async fn the_ledger_remembers_what_was_found_and_what_was_pushed() {
    let opened = open().await;
    let store = &opened.store;
    let mark = Mark { uidvalidity: 7, uid: 12 };
    assert_eq!(store.mark(&john(), "INBOX").await.unwrap(), None);
    store.found(&john(), "INBOX", mark, vec![12, 10], at(0)).await.unwrap();
    store.found(&john(), "INBOX", mark, vec![12], at(1)).await.unwrap();
    assert_eq!(store.mark(&john(), "INBOX").await.unwrap(), Some(mark));
    let open_uids = async |now| -> Vec<u32> {
        store
            .to_push(&john(), "INBOX", 7, now, 10)
            .await
            .unwrap()
            .iter()
            .map(|received| received.uid)
            .collect()
    };
    assert_eq!(open_uids(at(0)).await, [10, 12]);

    let id = Some("<m@x>".to_owned());
    let note = async |uid, state, next| {
        let note = Note { message_id: id.clone(), ..Note::default() };
        let update = Update { uid, state, note, next_try_at: next, at: at(2) };
        store.note_pushes(&john(), "INBOX", 7, vec![update]).await.unwrap();
    };
    note(10, PushState::Pushing, at(2)).await;
    let pushing = store.to_push(&john(), "INBOX", 7, at(2), 1).await.unwrap();
    assert_eq!((pushing[0].state, pushing[0].tries), (PushState::Pushing, 1));
    assert!(!store.was_pushed(&john(), "<m@x>").await.unwrap());
    note(10, PushState::Done, at(2)).await;
    assert!(store.was_pushed(&john(), "<m@x>").await.unwrap());
    note(12, PushState::Refused, at(100)).await;
    assert!(open_uids(at(99)).await.is_empty(), "a refused one waits for its time");
    assert_eq!(open_uids(at(100)).await, [12]);
    let line = &store.inboxes().await.unwrap()[0];
    assert_eq!((line.waiting, line.refused, line.pushed), (0, 1, 1));
}

#[tokio::test]
async fn an_outcome_and_the_next_booking_are_one_commit() {
    let opened = open().await;
    let store = &opened.store;
    store.found(&john(), "INBOX", Mark { uidvalidity: 7, uid: 11 }, vec![10, 11], at(0)).await.unwrap();
    let update = |uid, state, bounce| {
        let note = Note { message_id: Some(format!("<{uid}@x>")), bounce, ..Note::default() };
        Update { uid, state, note, next_try_at: at(1), at: at(1) }
    };
    let note = async |updates| store.note_pushes(&john(), "INBOX", 7, updates).await.unwrap();
    note(vec![update(10, PushState::Pushing, false)]).await;
    let before = store.written().commits;
    note(vec![update(10, PushState::Pushed, true), update(11, PushState::Pushing, false)]).await;
    assert_eq!(store.written().commits, before + 1);
    let rows = store.to_push(&john(), "INBOX", 7, at(1), 10).await.unwrap();
    let seen: Vec<_> = rows.iter().map(|row| (row.uid, row.state, row.tries)).collect();
    assert_eq!(seen, [(10, PushState::Pushed, 1), (11, PushState::Pushing, 1)]);
    assert!(store.was_pushed(&john(), "<10@x>").await.unwrap());
    assert_eq!(store.inboxes().await.unwrap()[0].bounces, 1);
}

#[tokio::test]
async fn a_store_that_cannot_be_made_says_which_and_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("file"), "x").unwrap();
    let config = Config::at(folder.path().join("file/relay.db"));
    let error = Store::open(&config).await.unwrap_err().to_string();
    assert!(error.contains("file/relay.db") && error.contains("[store] url"), "{error}");
    let text = folder.path().join("text.db");
    std::fs::write(&text, "this is no database, but long enough to be looked at as one".repeat(30)).unwrap();
    assert!(matches!(Store::open(&Config::at(text)).await, Err(Error::Damaged { .. })));
}

#[test]
fn queue_ids_read_back() {
    for id in [0, 31, 32, 1_800_000_000_000_000, i64::MAX] {
        assert_eq!(QueueId(id).to_string().parse(), Ok(QueueId(id)));
    }
    assert_eq!("1h7k".parse(), "1H7K".parse::<QueueId>());
    for wrong in ["", "U", "zzzzzzzzzzzzzzzzzzzz", "1-2", "ä"] {
        assert!(wrong.parse::<QueueId>().is_err(), "{wrong}");
    }
}

#[tokio::test]
async fn another_uidvalidity_closes_what_was_open_under_the_old_one() {
    let opened = open().await;
    let store = &opened.store;
    let (old, new) = (Mark { uidvalidity: 7, uid: 12 }, Mark { uidvalidity: 8, uid: 3 });
    store.found(&john(), "INBOX", old, vec![10, 11, 12], at(0)).await.unwrap();
    let note = Note { message_id: Some("<m@x>".to_owned()), ..Note::default() };
    let done = Update { uid: 10, state: PushState::Done, note, next_try_at: at(0), at: at(0) };
    store.note_pushes(&john(), "INBOX", 7, vec![done]).await.unwrap();
    store.found(&john(), "Other", old, vec![1], at(0)).await.unwrap();
    store.found(&john(), "INBOX", new, vec![2], at(1)).await.unwrap();
    let open = async |folder, uidvalidity| {
        store.to_push(&john(), folder, uidvalidity, at(1), 10).await.unwrap().len()
    };
    assert_eq!(open("INBOX", 7).await, 0);
    assert_eq!(open("INBOX", 8).await, 1);
    assert_eq!(open("Other", 7).await, 0, "one folder of a mailbox is watched");
    let line = &store.inboxes().await.unwrap()[0];
    assert_eq!((line.waiting, line.pushed), (1, 1));
    assert!(store.was_pushed(&john(), "<m@x>").await.unwrap());
}

#[tokio::test]
async fn a_closed_store_ends_its_writer_whoever_still_holds_it() {
    let opened = open().await;
    let clone = opened.store.clone();
    let accepted = message(&clone, &["a@x"]);
    clone.accept(accepted).await.unwrap();
    opened.store.close().await;
    tokio::time::timeout(Duration::from_secs(20), opened.writing)
        .await
        .expect("the end of the writer")
        .unwrap();
    let late = message(&clone, &["a@x"]);
    assert!(matches!(clone.accept(late).await, Err(Error::Closed)));
}

#[tokio::test]
async fn who_keeps_the_store_locked_is_waited_for_once_and_not_by_each() {
    let folder = tempfile::tempdir().unwrap();
    let config = Config::at(folder.path().join("relay.db"));
    let (store, writer) = Store::open(&config).await.unwrap();
    let other = bare(&config.path).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    // In one batch: nobody writes yet.
    let mut writes: Vec<_> = (0..3).map(|_| Box::pin(store.probe())).collect();
    for write in &mut writes {
        assert!(futures_util::poll!(write).is_pending());
    }
    tokio::spawn(writer.run());
    for write in writes {
        let error = write.await.unwrap_err();
        assert!(matches!(error, Error::Write { .. }), "{error:?}");
        if !other.is_autocommit() {
            other.execute_batch("ROLLBACK").unwrap();
        }
    }
    store.probe().await.unwrap();
}

#[tokio::test]
async fn a_newer_versions_store_is_said() {
    let opened = open().await;
    opened.sql("INSERT INTO _sqlx_migrations VALUES (99, 'later', '2030-01-01', 1, x'00', 1)", ());
    let Opened { store, writing, config, _folder } = opened;
    store.close().await;
    writing.await.unwrap();
    let error = Store::open(&config).await.map(drop).unwrap_err();
    assert!(matches!(error, Error::Newer { version: 99, .. }), "{error:?}");
}
