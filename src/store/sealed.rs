//! The key of the store's tokens: which one it is, and what happens when the store is opened.
//!
//! The row in `sealing` says which key seals; the files may be ahead of it or behind it after a crash, and opening the
//! store puts them right. Whoever changes key files holds a lock on the store's folder.

use super::queue::address;
use super::writer::unencodable;
use super::{Config, Error, invites};
use crate::sealing::{self, Key, KeyId, Keyring, Owner, key_id};
use secrecy::{SecretBox, SecretString};
use sqlx::{Row, SqliteConnection};
use std::collections::BTreeSet;
use std::fs::File;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

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
    pub(super) async fn read(connection: &mut SqliteConnection) -> Result<Self, Error> {
        let failed = |source| Error::Read { operation: "the key of the tokens", source };
        let row: Option<(Vec<u8>, i64)> = sqlx::query_as("SELECT key_id, wiped FROM sealing")
            .fetch_optional(&mut *connection)
            .await
            .map_err(failed)?;
        let used: Vec<Vec<u8>> = sqlx::query_scalar("SELECT sealed FROM token")
            .fetch_all(&mut *connection)
            .await
            .map_err(failed)?;
        let used: BTreeSet<KeyId> = used.iter().filter_map(|sealed| key_id(sealed)).collect();
        let clear: i64 = sqlx::query_scalar("SELECT count(*) FROM clear_token")
            .fetch_one(connection)
            .await
            .map_err(failed)?;
        let (key, wiped) = match row {
            Some((key, wiped)) => (KeyId::from_bytes(&key), wiped != 0),
            None => (None, true),
        };
        // Without its row (nobody takes it out) the tokens' own word counts: never a new key over sealed tokens.
        Ok(Self { key: key.or(used.first().copied()), used, has_clear: clear > 0, wiped })
    }

    pub(super) fn needs(&self, id: KeyId) -> bool {
        self.key == Some(id) || self.used.contains(&id)
    }
}

/// The key that seals now, inside the transaction that writes with it.
pub(super) fn key(connection: &rusqlite::Connection, keys: &Keyring) -> Result<Arc<Key>, rusqlite::Error> {
    let id: Vec<u8> = connection.query_row("SELECT key_id FROM sealing", [], |row| row.get(0))?;
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
pub(super) async fn establish(
    config: &Config,
    connection: &mut SqliteConnection,
    keys: &Keyring,
) -> Result<(), Error> {
    // The files before the tables: a key that is rotated in between is looked for again.
    keys.look()?;
    let tables = Tables::read(connection).await?;
    if let Some(id) = tables.key
        && tables.wiped
        && !tables.has_clear
        && !keys.has_leftovers()
        && keys.key(id).is_ok()
    {
        return Ok(());
    }
    let _lock = lock(config, PATIENCE).await?;
    let tables = Tables::read(connection).await?;
    let id = match tables.key {
        Some(id) => match keys.key(id) {
            Ok(key) => key.id(),
            Err(error) if !tables.used.is_empty() => return Err(error.into()),
            Err(_) => first(connection, keys).await?,
        },
        None => first(connection, keys).await?,
    };
    keys.put_in_place(id)?;
    if tables.has_clear {
        seal_clear(connection, keys.key(id)?.as_ref()).await?;
    }
    if tables.has_clear || !tables.wiped {
        wipe(connection).await;
    }
    Ok(keys.tidy(|key| key == id || tables.needs(key))?)
}

/// Takes the file's key as the one that seals; makes one where there is none. Of the invitations' key only the links
/// depend, so it is not worth keeping where its own key is lost.
pub(super) async fn first(connection: &mut SqliteConnection, keys: &Keyring) -> Result<KeyId, Error> {
    let key = keys.first(random_key())?;
    let operation = "note the key";
    wholly(connection, operation, async |connection| {
        set_key(connection, key.id()).await.map_err(written(operation))?;
        invites::forget_others(connection, key.id()).await.map_err(written(operation))
    })
    .await?;
    Ok(key.id())
}

pub(super) async fn set_key(connection: &mut SqliteConnection, id: KeyId) -> Result<(), sqlx::Error> {
    sqlx::query(
        "INSERT INTO sealing (one, key_id, wiped) VALUES (1, $1, 1) \
         ON CONFLICT (one) DO UPDATE SET key_id = excluded.key_id",
    )
    .bind(id.as_bytes())
    .execute(connection)
    .await
    .map(drop)
}

/// Seals the tokens of a version that did not, in one transaction.
async fn seal_clear(connection: &mut SqliteConnection, key: &Key) -> Result<(), Error> {
    let operation = "seal the tokens";
    wholly(connection, operation, async |connection| {
        let rows =
            sqlx::query("SELECT mailbox, refresh_token FROM clear_token").fetch_all(&mut *connection).await;
        for row in rows.map_err(written(operation))? {
            let mailbox: String = row.try_get(0).map_err(written(operation))?;
            let token = SecretString::from(row.try_get::<String, _>(1).map_err(written(operation))?);
            let sealed = key.seal(rand::random(), Owner::Mailbox(&address(&mailbox)?), &token)?;
            sqlx::query(
                "INSERT INTO token (mailbox, tenant, client_id, sealed, consented_at, refreshed_at) \
                 SELECT mailbox, tenant, client_id, $2, consented_at, refreshed_at FROM clear_token \
                 WHERE mailbox = $1",
            )
            .bind(mailbox)
            .bind(sealed)
            .execute(&mut *connection)
            .await
            .map_err(written(operation))?;
        }
        run(connection, "DELETE FROM clear_token").await.map_err(written(operation))?;
        run(connection, "UPDATE sealing SET wiped = 0").await.map_err(written(operation))
    })
    .await
}

/// Rewrites the file, so that no free part of it, and no log, holds a token that once lay there in clear. Until it
/// succeeds each opening tries again.
async fn wipe(connection: &mut SqliteConnection) {
    let wiped = async {
        run(connection, "PRAGMA secure_delete = ON").await?;
        run(connection, "VACUUM").await?;
        if truncate_log(connection).await? {
            run(connection, "UPDATE sealing SET wiped = 1").await?;
        }
        run(connection, "PRAGMA secure_delete = FAST").await
    };
    if let Err(error) = wiped.await {
        tracing::warn!(
            error = crate::failure::chain(&error),
            reply = "the tokens are sealed, but free parts of the store's file may still hold older ones in clear",
            advice = "give the store's folder as much free space as the store is large; the next start tries again",
            "store not wiped"
        );
    }
}

/// Moves the log into the file and cuts it to nothing; `false`: somebody reads at the moment.
pub(super) async fn truncate_log(connection: &mut SqliteConnection) -> Result<bool, sqlx::Error> {
    // https://sqlite.org/pragma.html#pragma_wal_checkpoint: busy, pages in the log, pages moved.
    let (busy, ..): (i64, i64, i64) =
        sqlx::query_as("PRAGMA wal_checkpoint(TRUNCATE)").fetch_one(connection).await?;
    Ok(busy == 0)
}

pub(super) async fn rows(connection: &mut SqliteConnection) -> Result<Vec<(String, Vec<u8>)>, Error> {
    sqlx::query_as("SELECT mailbox, sealed FROM token ORDER BY mailbox")
        .fetch_all(connection)
        .await
        .map_err(|source| Error::Read { operation: "the tokens", source })
}

/// Runs `work` in one transaction.
pub(super) async fn wholly<T>(
    connection: &mut SqliteConnection,
    operation: &'static str,
    work: impl AsyncFnOnce(&mut SqliteConnection) -> Result<T, Error>,
) -> Result<T, Error> {
    run(connection, "BEGIN IMMEDIATE").await.map_err(written(operation))?;
    let done = match work(&mut *connection).await {
        Ok(done) => run(connection, "COMMIT").await.map_err(written(operation)).map(|()| done),
        Err(error) => Err(error),
    };
    if done.is_err() {
        // SQLite may have rolled back by itself: then this fails, which is as good.
        drop(run(connection, "ROLLBACK").await);
    }
    done
}

pub(super) async fn run(connection: &mut SqliteConnection, sql: &'static str) -> Result<(), sqlx::Error> {
    sqlx::query(sql).execute(connection).await.map(drop)
}

pub(super) fn written(operation: &'static str) -> impl Fn(sqlx::Error) -> Error + Copy {
    move |source| Error::Write { operation, source: source.into() }
}

/// Only one process at a time changes key files; the lock ends with the process. The store's folder carries it, since
/// SQLite's own locks on its files end as soon as somebody else of the process closes one.
pub(super) async fn lock(config: &Config, patience: Duration) -> Result<File, Error> {
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
            Err(std::fs::TryLockError::WouldBlock) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}
