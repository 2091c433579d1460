//! The key of the store's tokens: which one it is, and what happens when the store is opened.
//!
//! The row in `sealing` says which key seals; the files may be ahead of it or behind it after a crash, and opening the
//! store puts them right. Whoever changes key files holds a lock on the store's folder.

use super::queue::address;
use super::sql::{one, run, unencodable};
use super::{Config, Error, invites, sql};
use crate::sealing::{self, Key, KeyId, Keyring, Owner, key_id};
use rusqlite::{Connection, TransactionBehavior, params};
use secrecy::{SecretBox, SecretString};
use std::collections::BTreeSet;
use std::fs::File;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// So long an opening waits for another process that changes the key: a rotation takes far less.
const PATIENCE: Duration = Duration::from_secs(30);

/// A key's worth of randomness.
pub(super) fn random_key() -> SecretBox<[u8; 32]> {
    SecretBox::new(Box::new(rand::random()))
}

/// What the tables say about keys.
pub(super) struct Tables {
    /// The key that seals.
    pub(super) key: Option<KeyId>,
    /// Every key that something is sealed under.
    used: BTreeSet<KeyId>,
    /// Tokens of a version that did not seal yet.
    has_clear: bool,
    /// Nothing of those is left in free parts of the file.
    wiped: bool,
}

impl Tables {
    pub(super) fn read(connection: &Connection) -> Result<Self, Error> {
        let failed = |source| Error::Read { operation: "the key of the tokens", source };
        let row: Option<(Vec<u8>, bool)> =
            sql::first(connection, "SELECT key_id, wiped FROM sealing", ()).map_err(failed)?;
        let used: Vec<(Vec<u8>,)> =
            sql::rows(connection, "SELECT CAST(sealed AS BLOB) FROM token", ()).map_err(failed)?;
        let used: BTreeSet<KeyId> = used.iter().filter_map(|(sealed,)| key_id(sealed)).collect();
        let (has_clear,) = one(connection, "SELECT count(*) > 0 FROM clear_token", ()).map_err(failed)?;
        let (key, wiped) = match row {
            Some((key, wiped)) => (KeyId::from_bytes(&key), wiped),
            None => (None, true),
        };
        // Without its row (nobody takes it out) the tokens' own word counts: never a new key over sealed tokens.
        Ok(Self { key: key.or(used.first().copied()), used, has_clear, wiped })
    }

    pub(super) fn needs(&self, id: KeyId) -> bool {
        self.key == Some(id) || self.used.contains(&id)
    }
}

/// The key that seals now, inside the transaction that writes with it.
pub(super) fn key(connection: &Connection, keys: &Keyring) -> Result<Arc<Key>, rusqlite::Error> {
    let (id,): (Vec<u8>,) = one(connection, "SELECT key_id FROM sealing", ())?;
    let id = KeyId::from_bytes(&id).ok_or(rusqlite::Error::QueryReturnedNoRows)?;
    keys.key(id).map_err(unencodable)
}

/// Opens what lies in a row, whichever key it was sealed with.
pub(super) fn opened(
    keys: &Keyring,
    owner: Owner<'_>,
    sealed: &[u8],
) -> Result<SecretString, sealing::Error> {
    let id = key_id(sealed).ok_or_else(|| owner.tampered())?;
    keys.key(id)?.open(owner, sealed)
}

/// Finds the key of the store, makes the first one, finishes what a crash cut short, and seals what was not.
///
/// # Errors
/// A key that is missing or another one, while tokens are sealed: then nothing was changed.
pub(super) fn establish(config: &Config, connection: &mut Connection, keys: &Keyring) -> Result<(), Error> {
    // The files before the tables: a key that is rotated in between is looked for again.
    keys.look()?;
    let tables = Tables::read(connection)?;
    if let Some(id) = tables.key
        && tables.wiped
        && !tables.has_clear
        && !keys.has_leftovers()
        && keys.key(id).is_ok()
    {
        return Ok(());
    }
    let _lock = lock(config, PATIENCE)?;
    let tables = Tables::read(connection)?;
    let id = match tables.key {
        Some(id) => match keys.key(id) {
            Ok(key) => key.id(),
            Err(error) if !tables.used.is_empty() => return Err(error.into()),
            Err(_) => first(connection, keys)?,
        },
        None => first(connection, keys)?,
    };
    keys.put_in_place(id)?;
    if tables.has_clear {
        seal_clear(connection, keys.key(id)?.as_ref())?;
    }
    if tables.has_clear || !tables.wiped {
        wipe(connection);
    }
    Ok(keys.tidy(|key| key == id || tables.needs(key))?)
}

/// Takes the file's key as the one that seals; makes one where there is none. Of the invitations' key only the links
/// depend, so it is not worth keeping where its own key is lost.
pub(super) fn first(connection: &mut Connection, keys: &Keyring) -> Result<KeyId, Error> {
    let key = keys.first(random_key())?;
    let operation = "note the key";
    wholly(connection, operation, |connection| {
        let written = written(operation);
        set_key(connection, key.id()).map_err(written)?;
        invites::forget_others(connection, key.id()).map_err(written)
    })?;
    Ok(key.id())
}

pub(super) fn set_key(connection: &Connection, id: KeyId) -> Result<(), rusqlite::Error> {
    run(
        connection,
        "INSERT INTO sealing (one, key_id, wiped) VALUES (1, ?1, 1) \
         ON CONFLICT (one) DO UPDATE SET key_id = excluded.key_id",
        [id.as_bytes()],
    )
    .map(drop)
}

/// Seals the tokens of a version that did not, in one transaction.
fn seal_clear(connection: &mut Connection, key: &Key) -> Result<(), Error> {
    let operation = "seal the tokens";
    wholly(connection, operation, |connection| {
        let written = written(operation);
        let sql = "SELECT mailbox, refresh_token FROM clear_token";
        let clear: Vec<(String, String)> = sql::rows(connection, sql, ()).map_err(written)?;
        let secret = |(mailbox, token)| (mailbox, SecretString::from(token));
        for (mailbox, token) in clear.into_iter().map(secret).collect::<Vec<_>>() {
            let owner = address(&mailbox)?;
            let sealed = key.seal(rand::random(), Owner::Mailbox(&owner), &token)?;
            run(
                connection,
                "INSERT INTO token (mailbox, tenant, client_id, sealed, consented_at, refreshed_at) \
                 SELECT mailbox, tenant, client_id, ?2, consented_at, refreshed_at FROM clear_token \
                 WHERE mailbox = ?1",
                params![mailbox, sealed],
            )
            .map_err(written)?;
        }
        run(connection, "DELETE FROM clear_token", ()).map_err(written)?;
        run(connection, "UPDATE sealing SET wiped = 0", ()).map(drop).map_err(written)
    })
}

/// Rewrites the file, so that no free part of it, and no log, holds a token that once lay there in clear. Until it
/// succeeds each opening tries again.
fn wipe(connection: &Connection) {
    let wiped = || {
        connection.pragma_update(None, "secure_delete", true)?;
        run(connection, "VACUUM", ())?;
        if truncate_log(connection)? {
            run(connection, "UPDATE sealing SET wiped = 1", ())?;
        }
        connection.pragma_update(None, "secure_delete", "FAST")
    };
    if let Err(error) = wiped() {
        tracing::warn!(
            error = crate::failure::chain(&error),
            reply = "the tokens are sealed, but free parts of the store's file may still hold older ones in clear",
            advice = "give the store's folder as much free space as the store is large; the next start tries again",
            "store not wiped"
        );
    }
}

/// Moves the log into the file and cuts it to nothing; `false`: somebody reads at the moment.
pub(super) fn truncate_log(connection: &Connection) -> Result<bool, rusqlite::Error> {
    // https://sqlite.org/pragma.html#pragma_wal_checkpoint: busy, pages in the log, pages moved.
    let (busy, ..): (i64, i64, i64) = one(connection, "PRAGMA wal_checkpoint(TRUNCATE)", ())?;
    Ok(busy == 0)
}

/// Every mailbox's token, sealed.
pub(super) fn tokens(connection: &Connection) -> Result<Vec<(String, Vec<u8>)>, Error> {
    sql::rows(connection, "SELECT mailbox, CAST(sealed AS BLOB) FROM token ORDER BY mailbox", ())
        .map_err(|source| Error::Read { operation: "the tokens", source })
}

/// Runs `work` in one transaction.
pub(super) fn wholly<T>(
    connection: &mut Connection,
    operation: &'static str,
    work: impl FnOnce(&Connection) -> Result<T, Error>,
) -> Result<T, Error> {
    let transaction =
        connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(written(operation))?;
    // Where it is not committed, it is rolled back.
    let done = work(&transaction)?;
    transaction.commit().map_err(written(operation))?;
    Ok(done)
}

pub(super) fn written(operation: &'static str) -> impl Fn(rusqlite::Error) -> Error + Copy {
    move |source| Error::Write { operation, source }
}

/// Only one process at a time changes key files; the lock ends with the process. The store's folder carries it, since
/// SQLite's own locks on its files end as soon as somebody else of the process closes one.
pub(super) fn lock(config: &Config, patience: Duration) -> Result<File, Error> {
    let folder = config.folder();
    let failed = |source| Error::Folder { path: folder.clone(), source };
    let file = File::open(&folder).map_err(failed)?;
    let deadline = Instant::now() + patience;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(std::fs::TryLockError::Error(error)) => return Err(failed(error)),
            Err(std::fs::TryLockError::WouldBlock) if Instant::now() >= deadline => {
                return Err(Error::KeyBusy);
            }
            Err(std::fs::TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}
