//! Tokens at rest: what lies in the store's files, and what becomes of them when keys are lost, wrong or rotated.

use super::migrations::migrate;
use super::rotation::{Rotation, STEPS};
use super::*;
use crate::sealing;
use crate::sealing::Key;
use secrecy::{ExposeSecret, SecretBox, SecretString};
use std::os::unix::fs::PermissionsExt;

const TOKEN: &str = "1.AXoA-the-refresh-token-of";

struct Bed {
    config: Config,
    folder: tempfile::TempDir,
}

impl Bed {
    /// The whole file, with nothing left in its log: connections that end bring that in at a time of their own.
    async fn bytes(&self) -> Vec<u8> {
        sealed::truncate_log(&bare(&self.config.path).unwrap()).unwrap();
        std::fs::read(&self.config.path).unwrap()
    }

    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self { config: Config::at(folder.path().join("relay.db")), folder }
    }

    /// A store that holds john's and jane's tokens, closed.
    async fn filled() -> Self {
        let bed = Self::new();
        for name in ["john", "jane"] {
            bed.keep(name, &token(name)).await.unwrap();
        }
        bed
    }

    async fn keep(&self, name: &str, text: &str) -> Result<(), Error> {
        let (store, writer) = Store::open(&self.config).await?;
        let writing = tokio::spawn(writer.run());
        let kept = store.keep_token(&address(name), stored(text, 0)).await;
        store.close().await;
        writing.await.unwrap();
        kept
    }

    /// Opens the store anew, as a process that knows nothing does, and reads a token.
    async fn read(&self, name: &str) -> Result<String, Error> {
        let (store, _writer) = Store::open(&self.config).await?;
        let token = store.token(&address(name)).await?.unwrap();
        Ok(token.refresh_token.expose_secret().to_owned())
    }

    async fn both_are_there(&self) {
        for name in ["john", "jane"] {
            assert_eq!(self.read(name).await.unwrap(), token(name));
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn key(&self) -> String {
        std::fs::read_to_string(self.path("relay.key")).unwrap()
    }

    fn files(&self) -> Vec<String> {
        let names = std::fs::read_dir(self.folder.path()).unwrap();
        let mut names: Vec<String> =
            names.map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// Which of the store's files hold this text.
    fn holders(&self, text: &str) -> Vec<String> {
        let holds = |name: &String| {
            let bytes = std::fs::read(self.path(name)).unwrap();
            bytes.windows(text.len()).any(|part| part == text.as_bytes())
        };
        self.files().into_iter().filter(holds).collect()
    }

    fn sql(&self, sql: &str) {
        bare(&self.config.path).unwrap().execute_batch(sql).unwrap();
    }

    fn hide_key(&self) {
        std::fs::rename(self.path("relay.key"), self.path("hidden")).unwrap();
    }

    fn restore_key(&self) {
        std::fs::rename(self.path("hidden"), self.path("relay.key")).unwrap();
    }
}

fn address(name: &str) -> Address {
    Address::normalise(&format!("{name}@example.com")).unwrap()
}

fn token(name: &str) -> String {
    format!("{TOKEN}-{name}")
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + second).unwrap()
}

fn stored(text: &str, consented: i64) -> StoredToken {
    StoredToken {
        tenant: "t".to_owned(),
        client_id: "c".to_owned(),
        refresh_token: SecretString::from(text),
        consented_at: at(consented),
        refreshed_at: None,
    }
}

#[tokio::test]
async fn no_file_of_the_store_holds_a_token_in_clear() {
    let bed = Bed::new();
    let (store, writer) = Store::open(&bed.config).await.unwrap();
    let writing = tokio::spawn(writer.run());
    for number in 0..50 {
        store.keep_token(&address("john"), stored(&format!("{TOKEN}-{number}"), number)).await.unwrap();
    }
    assert!(bed.files().contains(&"relay.db-wal".to_owned()), "the log is looked at too: {:?}", bed.files());
    assert_eq!(bed.holders(TOKEN), [""; 0]);
    assert!(!bed.holders("john@example.com").is_empty(), "the search finds what is there");
    store.close().await;
    writing.await.unwrap();
    assert_eq!(bed.holders(TOKEN), [""; 0]);
    let mode = std::fs::metadata(bed.path("relay.key")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[tokio::test]
async fn tokens_of_a_version_that_did_not_seal_are_sealed_and_leave_no_trace() {
    let bed = Bed::new();
    create(&bed.config.path).unwrap();
    let mut old = bare(&bed.config.path).unwrap();
    old.pragma_update(None, "secure_delete", false).unwrap();
    old.pragma_update(None, "journal_mode", "WAL").unwrap();
    migrate(&mut old, &bed.config.path, 1).unwrap();
    // As the old version did: a row that is replaced again and again, which leaves its past in free parts of the file.
    for number in 0..60 {
        for name in ["john", "jane"] {
            let rest = "x".repeat(900 + number * 37 % 400);
            let sql = "INSERT INTO token VALUES (?1, 't', 'c', ?2, 7000, 8000) ON CONFLICT (mailbox) DO UPDATE SET \
                       refresh_token = excluded.refresh_token";
            let row = [format!("{name}@example.com"), format!("{}{rest}-{number}", token(name))];
            old.execute(sql, row).unwrap();
        }
    }
    // Killed: the log stays behind.
    std::mem::forget(old);
    assert!(!bed.holders(TOKEN).is_empty());

    let (store, writer) = Store::open(&bed.config).await.unwrap();
    let kept = store.token(&address("john")).await.unwrap().unwrap();
    assert!(kept.refresh_token.expose_secret().starts_with(&token("john")));
    assert!(kept.refresh_token.expose_secret().ends_with("-59"));
    assert_eq!((kept.tenant.as_str(), kept.client_id.as_str()), ("t", "c"));
    assert_eq!(kept.consented_at.as_millisecond(), 7000);
    assert_eq!(kept.refreshed_at.unwrap().as_millisecond(), 8000);
    assert_eq!(bed.holders(TOKEN), [""; 0]);
    drop((store, writer));
    assert!(bed.read("jane").await.unwrap().ends_with("-59"));
    assert_eq!(bed.holders(TOKEN), [""; 0]);
}

#[tokio::test]
async fn wiping_that_was_cut_short_is_made_up_for() {
    let bed = Bed::filled().await;
    bed.sql("CREATE TABLE litter AS SELECT 'litter-in-a-free-page' || zeroblob(9000) AS x");
    bed.sql("PRAGMA secure_delete = OFF; DROP TABLE litter; UPDATE sealing SET wiped = 0");
    assert!(!bed.holders("litter-in-a-free-page").is_empty());
    bed.both_are_there().await;
    assert_eq!(bed.holders("litter-in-a-free-page"), [""; 0]);
}

#[tokio::test]
async fn a_missing_key_is_an_error_that_changes_nothing() {
    let bed = Bed::filled().await;
    bed.hide_key();
    let before = bed.bytes().await;
    for _ in 0..2 {
        let error = bed.read("john").await.unwrap_err();
        assert!(matches!(error, Error::Key(sealing::Error::Missing { .. })), "{error:?}");
        let words = error.to_string();
        for part in ["relay.key", "is missing", "from a backup", "--lost", "Nothing was changed"] {
            assert!(words.contains(part), "{part}: {words}");
        }
        assert!(bed.keep("john", "another").await.is_err());
    }
    assert_eq!(bed.files().iter().filter(|name| name.contains("key")).count(), 0, "none was made");
    assert!(bed.bytes().await == before, "something was changed");
    // The queue can be looked at; whoever needs a token hears why not.
    let (store, writer) = Store::open_existing(&bed.config).await.unwrap();
    assert!(store.queued(None, 1).await.unwrap().is_empty());
    let error = store.token(&address("john")).await.unwrap_err();
    assert!(matches!(error, Error::Sealed { .. }), "{error:?}");
    drop((store, writer));
    bed.restore_key();
    bed.both_are_there().await;
}

#[tokio::test]
async fn a_wrong_key_is_an_error_that_changes_nothing() {
    let (bed, other) = (Bed::filled().await, Bed::filled().await);
    bed.hide_key();
    std::fs::copy(other.path("relay.key"), bed.path("relay.key")).unwrap();
    let error = bed.read("john").await.unwrap_err();
    assert!(matches!(error, Error::Key(sealing::Error::Other { .. })), "{error:?}");
    assert!(Store::rotate_key(&bed.config).await.is_err());
    assert_eq!(bed.key(), other.key(), "it is left where it is");
    bed.restore_key();
    bed.both_are_there().await;
}

#[tokio::test]
async fn no_new_key_is_made_over_sealed_tokens_even_without_the_note_of_theirs() {
    let bed = Bed::filled().await;
    bed.sql("DELETE FROM sealing");
    bed.hide_key();
    assert!(matches!(bed.read("john").await, Err(Error::Key(sealing::Error::Missing { .. }))));
    bed.restore_key();
    assert!(Store::open(&bed.config).await.is_ok());
}

#[tokio::test]
async fn a_store_without_tokens_takes_any_key() {
    let bed = Bed::new();
    drop(Store::open(&bed.config).await.unwrap());
    let first = bed.key();
    std::fs::remove_file(bed.path("relay.key")).unwrap();
    bed.keep("john", &token("john")).await.unwrap();
    assert_ne!(bed.key(), first);
    assert_eq!(bed.read("john").await.unwrap(), token("john"));
}

#[tokio::test]
async fn a_lost_key_costs_the_old_tokens_but_deletes_none() {
    let bed = Bed::filled().await;
    assert!(matches!(Store::replace_lost_key(&bed.config).await, Err(Error::KeyNotLost { .. })));
    bed.hide_key();
    Store::replace_lost_key(&bed.config).await.unwrap();
    let error = bed.read("john").await.unwrap_err();
    assert!(matches!(error, Error::Sealed { .. }), "{error:?}");
    bed.keep("john", "consented anew").await.unwrap();
    assert_eq!(bed.read("john").await.unwrap(), "consented anew");
    // A rotation leaves alone what it cannot read.
    assert_eq!(Store::rotate_key(&bed.config).await.unwrap().1, 1);
    assert_eq!(bed.read("john").await.unwrap(), "consented anew");
    // The old key is found after all: beside the new one it opens what is left of its tokens.
    std::fs::rename(bed.path("hidden"), bed.path("relay.key.old")).unwrap();
    assert_eq!(bed.read("jane").await.unwrap(), token("jane"));
    assert_eq!(bed.read("john").await.unwrap(), "consented anew");
}

#[tokio::test]
async fn a_row_that_was_moved_to_another_mailbox_does_not_open() {
    let bed = Bed::filled().await;
    bed.sql(
        "UPDATE token SET sealed = (SELECT sealed FROM token WHERE mailbox = 'jane@example.com') \
         WHERE mailbox = 'john@example.com'",
    );
    let error = bed.read("john").await.unwrap_err();
    let Error::Sealed { source, .. } = &error else { panic!("{error:?}") };
    assert!(matches!(source, sealing::Error::Tampered { .. }));
    assert_eq!(bed.read("jane").await.unwrap(), token("jane"));
    // A rotation would have to give it up: it does not.
    let key = bed.key();
    assert!(Store::rotate_key(&bed.config).await.is_err());
    assert_eq!(bed.key(), key);
    assert_eq!(bed.files().iter().filter(|name| name.contains(".key.")).count(), 0, "{:?}", bed.files());
}

#[tokio::test]
async fn a_row_of_no_mailbox_holds_up_no_consent() {
    let bed = Bed::filled().await;
    bed.sql("INSERT INTO token VALUES ('no address', 't', 'c', x'00', 1, 1)");
    let (store, _writer) = Store::open(&bed.config).await.unwrap();
    assert_eq!(store.consents().await.unwrap().len(), 2);
    assert_eq!(store.consent_ages().await.unwrap().len(), 2);
}

#[tokio::test]
async fn a_rotation_reseals_everything_and_leaves_nothing_of_the_old_key() {
    let bed = Bed::filled().await;
    let old = bed.key();
    let (id, resealed) = Store::rotate_key(&bed.config).await.unwrap();
    assert_eq!(resealed, 2);
    assert_ne!(bed.key(), old);
    bed.both_are_there().await;
    assert!(!bed.files().iter().any(|name| name.contains(".key.")), "{:?}", bed.files());
    assert_eq!(bed.holders(old.trim()), [""; 0]);
    let (store, _writer) = Store::open(&bed.config).await.unwrap();
    let sealed: Vec<(Vec<u8>,)> = store.rows("tokens", "SELECT sealed FROM token", ()).await.unwrap();
    assert!(sealed.iter().all(|(sealed,)| sealing::key_id(sealed) == Some(id)));
}

#[tokio::test]
async fn a_rotation_that_is_cut_short_behind_any_step_loses_nothing() {
    for done in 0..=STEPS.len() {
        let bed = Bed::filled().await;
        let old = bed.key();
        let (mut connection, keys) = connect(&bed.config).unwrap();
        sealed::establish(&bed.config, &mut connection, &keys).unwrap();
        let new = Key::new(SecretBox::new(Box::new([done as u8; 32])));
        let id = new.id();
        let mut rotation = Rotation { config: &bed.config, connection: &mut connection, keys: &keys, new };
        for step in &STEPS[..done] {
            rotation.step(*step).unwrap();
        }
        // As a kill leaves it: no handler runs, the connection is not closed.
        std::mem::forget(connection);

        bed.both_are_there().await;
        let leftovers: Vec<String> = bed.files().into_iter().filter(|name| name.contains(".key.")).collect();
        assert_eq!(leftovers, [""; 0], "after {done} steps, opening the store puts the files right");
        // Steps 1 and 2 prepare; from the third on the new key holds.
        assert_eq!(bed.key() == old, done < 3, "after {done} steps");
        let holds = Keyring::new(bed.path("relay.key"), true).on_file().unwrap();
        assert_eq!(holds == Some(id), done >= 3, "after {done} steps");
        // And it can be rotated anew.
        Store::rotate_key(&bed.config).await.unwrap();
        bed.both_are_there().await;
    }
}

#[tokio::test]
async fn whoever_has_the_store_open_goes_on_through_a_rotation() {
    let bed = Bed::filled().await;
    let (store, writer) = Store::open(&bed.config).await.unwrap();
    let writing = tokio::spawn(writer.run());
    for round in 1..=5 {
        Store::rotate_key(&bed.config).await.unwrap();
        assert!(store.token(&address("jane")).await.unwrap().is_some());
        store.keep_token(&address("john"), stored(&format!("{round}"), round)).await.unwrap();
        // Sealed under the new key: who opens the store now knows no other.
        assert_eq!(bed.read("john").await.unwrap(), format!("{round}"));
        assert_eq!(bed.read("jane").await.unwrap(), token("jane"));
    }
    store.close().await;
    writing.await.unwrap();
}

#[tokio::test]
async fn writes_and_rotations_at_the_same_time_lose_nothing() {
    let bed = Bed::filled().await;
    let (store, writer) = Store::open(&bed.config).await.unwrap();
    let writing = tokio::spawn(writer.run());
    let writes = async {
        for round in 1..=40 {
            store.keep_token(&address("john"), stored(&format!("{round}"), round)).await.unwrap();
            let read = store.token(&address("john")).await.unwrap().unwrap();
            assert_eq!(read.refresh_token.expose_secret(), &format!("{round}"));
        }
    };
    let rotations = async {
        for _ in 0..10 {
            Store::rotate_key(&bed.config).await.unwrap();
        }
    };
    tokio::join!(writes, rotations);
    assert_eq!(bed.read("john").await.unwrap(), "40");
    store.close().await;
    writing.await.unwrap();
}

#[tokio::test]
async fn several_processes_that_start_together_make_one_key() {
    let bed = Bed::new();
    create(&bed.config.path).unwrap();
    drop(connect(&bed.config).unwrap());
    let starts = (0..8).map(async |number| {
        let name = format!("m{number}");
        bed.keep(&name, &token(&name)).await.unwrap();
    });
    futures_util::future::join_all(starts).await;
    for number in 0..8 {
        let name = format!("m{number}");
        assert_eq!(bed.read(&name).await.unwrap(), token(&name));
    }
}

#[tokio::test]
async fn a_configured_key_is_used_and_rotated_where_it_lies() {
    let mut bed = Bed::new();
    let elsewhere = tempfile::tempdir().unwrap();
    let key = elsewhere.path().join("store-key");
    bed.config.key_file = Some(key.clone());
    let error = Store::open(&bed.config).await.unwrap_err();
    assert!(matches!(error, Error::Key(sealing::Error::File(_))), "{error:?}");
    std::fs::write(&key, "c2l4IHRpbWVzIGZpdmUgYW5kIHR3byBhcmUgMzIgISE=\n").unwrap();
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
    bed.keep("john", &token("john")).await.unwrap();
    assert!(!bed.path("relay.key").exists());
    Store::rotate_key(&bed.config).await.unwrap();
    assert_ne!(std::fs::read_to_string(&key).unwrap(), "c2l4IHRpbWVzIGZpdmUgYW5kIHR3byBhcmUgMzIgISE=\n");
    assert_eq!(bed.read("john").await.unwrap(), token("john"));
    assert!(!bed.path("relay.key").exists());
}

#[tokio::test]
async fn a_new_consent_counts_though_the_clock_went_back() {
    let bed = Bed::new();
    let (store, writer) = Store::open(&bed.config).await.unwrap();
    tokio::spawn(writer.run());
    let john = address("john");
    store.keep_token(&john, stored("consented at 300", 300)).await.unwrap();
    store.keep_token(&john, stored("consented later, at 0", 0)).await.unwrap();
    let kept = store.token(&john).await.unwrap().unwrap();
    assert_eq!(kept.refresh_token.expose_secret(), "consented later, at 0");
    assert!(kept.consented_at > at(300), "so that a running daemon sees that it is new");
    // What comes of the consent before is late.
    let late = StoredToken { refreshed_at: Some(at(301)), ..stored("rotated from the first", 300) };
    store.keep_token(&john, late).await.unwrap();
    let rotated = StoredToken { refreshed_at: Some(at(1)), ..kept };
    store
        .keep_token(&john, StoredToken { refresh_token: SecretString::from("rotated"), ..rotated })
        .await
        .unwrap();
    assert_eq!(store.token(&john).await.unwrap().unwrap().refresh_token.expose_secret(), "rotated");
}
