//! The SQLite file: how it is made, opened, and brought up to date.

use super::error::opening;
use super::{Config, Error, real};
use crate::sealing::Keyring;
use rusqlite::OpenFlags;
use sqlx::migrate::{MigrateError, Migration, MigrationType, Migrator};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};
use sqlx::{ConnectOptions, SqlSafeStr, SqliteConnection};
use std::fs::{File, TryLockError};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The command line writes as well, briefly.
const BUSY: Duration = Duration::from_secs(10);
/// While a backup reads, the log cannot begin anew: afterwards it does not stay as large as it became. In bytes.
const JOURNAL_LIMIT: i64 = 64 << 20;
/// After so many pages (of 4 KiB) the log is moved into the file, which one commit waits for. Fewer: it happens to more than
/// one message of a hundred. More: those that it happens to wait longer.
const CHECKPOINT: i64 = 2000;

/// The schema's history; rows are only ever added to the list.
pub(super) const MIGRATIONS: &[(i64, &str, &str)] = &[
    (1, "start", include_str!("migrations/0001_start.sql")),
    (2, "sealed tokens", include_str!("migrations/0002_sealed_tokens.sql")),
    (3, "invitations", include_str!("migrations/0003_invitations.sql")),
    (4, "delivery", include_str!("migrations/0004_delivery.sql")),
    (5, "sealed own keys", include_str!("migrations/0005_sealed_own_keys.sql")),
    (6, "inbox", include_str!("migrations/0006_inbox.sql")),
    (7, "backup", super::backup::TABLE),
    (8, "inbox counts", include_str!("migrations/0008_inbox_counts.sql")),
    (9, "refusals", include_str!("migrations/0009_refusals.sql")),
    (10, "narrower rows", include_str!("migrations/0010_narrower.sql")),
    (11, "tally", include_str!("migrations/0011_tally.sql")),
];

/// What brings the tables to a version; only tests want another than the newest.
pub(super) fn migrator(version: i64) -> Migrator {
    let migrations = MIGRATIONS.iter().filter(|(known, ..)| *known <= version);
    let migrations: Vec<_> = migrations
        .map(|&(version, name, sql)| {
            Migration::new(version, name.into(), MigrationType::Simple, sql.into_sql_str(), false)
        })
        .collect();
    Migrator::with_migrations(migrations)
}

/// A connection that may write, with the tables up to date; but not brought up to date under a daemon of an earlier
/// version, which would go on writing as if they were not.
pub(super) async fn connect(config: &Config) -> Result<(SqliteConnection, Keyring), Error> {
    let mut connection = open(config).await?;
    let path = &config.path;
    let found = version(&mut connection).await.map_err(opening(path))?;
    let newest = MIGRATIONS.iter().map(|(number, ..)| *number).max().unwrap_or_default();
    // One without tables is new.
    let _lock = if (1..newest).contains(&found) {
        let lock = lock(path).map_err(|source| Error::File { path: lock_file(path), source })?;
        Some(lock.ok_or_else(|| Error::Older { path: path.clone() })?)
    } else {
        None
    };
    migrate(config, connection).await
}

/// The same for the daemon, which holds the lock.
pub(super) async fn connect_locked(config: &Config) -> Result<(SqliteConnection, Keyring), Error> {
    migrate(config, open(config).await?).await
}

async fn open(config: &Config) -> Result<SqliteConnection, Error> {
    let path = &config.path;
    config.create()?;
    let mut connection = bare(path).connect().await.map_err(opening(path))?;
    // Before anything is written, the mode of the journal included.
    is_ours(&mut connection, path).await?;
    Ok(connection)
}

async fn migrate(
    config: &Config,
    mut connection: SqliteConnection,
) -> Result<(SqliteConnection, Keyring), Error> {
    let path = &config.path;
    sqlx::query("PRAGMA journal_mode = WAL").execute(&mut connection).await.map_err(opening(path))?;
    migrator(i64::MAX).run(&mut connection).await.map_err(|source| match source {
        MigrateError::VersionMissing(version) => Error::Newer { path: path.clone(), version },
        MigrateError::Execute(source) => opening(path)(source),
        source => Error::Migrate { path: path.clone(), source },
    })?;
    Ok((connection, config.keyring()))
}

/// Whether a database is a store, or has no tables yet.
pub(super) async fn is_ours(connection: &mut SqliteConnection, path: &Path) -> Result<(), Error> {
    let (tables, ours): (i64, i64) = sqlx::query_as(
        "SELECT count(*), coalesce(sum(name = '_sqlx_migrations'), 0) FROM sqlite_master WHERE type = 'table'",
    )
    .fetch_one(connection)
    .await
    .map_err(opening(path))?;
    if tables > 0 && ours == 0 { Err(Error::Foreign { path: path.to_owned() }) } else { Ok(()) }
}

/// The newest migration that a store has seen; 0: it has no tables.
pub(super) async fn version(connection: &mut SqliteConnection) -> Result<i64, sqlx::Error> {
    let tables: i64 =
        sqlx::query_scalar("SELECT count(*) FROM sqlite_master WHERE name = '_sqlx_migrations'")
            .fetch_one(&mut *connection)
            .await?;
    if tables == 0 {
        return Ok(0);
    }
    sqlx::query_scalar("SELECT coalesce(max(version), 0) FROM _sqlx_migrations").fetch_one(connection).await
}

/// SQLite's own recommendations for one writer and many readers: WAL, and a sync at each commit.
pub(super) fn options(path: &Path) -> SqliteConnectOptions {
    bare(path).journal_mode(SqliteJournalMode::Wal)
}

/// The connection of the writer, with the same options, on a store that is there and up to date.
pub(super) fn writing(path: &Path) -> Result<rusqlite::Connection, rusqlite::Error> {
    // Only the writer's thread has it: SQLite need not lock it.
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = rusqlite::Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(BUSY)?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "foreign_keys", true)?;
    connection.pragma_update(None, "secure_delete", "FAST")?;
    connection.pragma_update(None, "journal_size_limit", JOURNAL_LIMIT)?;
    connection.pragma_update(None, "wal_autocheckpoint", CHECKPOINT)?;
    connection.set_prepared_statement_cache_capacity(64);
    Ok(connection)
}

/// The same for a file that may be anything: opening it writes nothing.
pub(super) fn bare(path: &Path) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(false)
        .synchronous(SqliteSynchronous::Full)
        .foreign_keys(true)
        // A token that was replaced leaves nothing in its page. (ON would write each sent mail's pages once more.)
        .pragma("secure_delete", "FAST")
        .pragma("journal_size_limit", JOURNAL_LIMIT.to_string())
        .busy_timeout(BUSY)
        .disable_statement_logging()
}

impl Config {
    /// Makes the file where it is not there, with its folder.
    ///
    /// # Errors
    /// The disk's; and a file that was a store and holds nothing any more.
    pub fn create(&self) -> Result<(), Error> {
        let path = &self.path;
        // A first start that was cut short leaves an empty file, but no key yet. (A key that the configuration names
        // may be there before the store is.)
        let was_store = || {
            let key = self.key_file.is_none() && self.keyring().path().exists();
            key || std::fs::metadata(beside(path, "-wal")).is_ok_and(|log| log.len() > 0)
        };
        if std::fs::metadata(path).is_ok_and(|file| file.is_file() && file.len() == 0) && was_store() {
            return Err(Error::Emptied { path: path.clone() });
        }
        create(path)
    }
}

/// Makes the file, private from the start: SQLite gives its journal files the same mode.
pub(super) fn create(path: &Path) -> Result<(), Error> {
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty() && !folder.exists()) {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)
            .map_err(|source| Error::Folder { path: folder.to_owned(), source })?;
    }
    create_private(path).map(drop).map_err(|source| Error::File { path: path.to_owned(), source })
}

/// Opens a file for writing, making it where it is not there: private, and its folder's owner's.
pub(super) fn create_private(path: &Path) -> std::io::Result<File> {
    let new = !path.exists();
    let file = std::fs::OpenOptions::new()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .mode(0o600)
        .open(path)?;
    // `sudo outlook-relay connect` or `doctor` may come before the daemon's first start: the file belongs to whom the folder
    // belongs to. (SQLite does the same for the files that it adds.)
    if new && let Some(owner) = path.parent().and_then(|folder| std::fs::metadata(folder).ok()) {
        let mine = file.metadata()?;
        if mine.uid() == 0 && owner.uid() != 0 {
            std::os::unix::fs::fchown(&file, Some(owner.uid()), Some(owner.gid()))?;
        }
    }
    Ok(file)
}

/// The file that a daemon holds locked while it works on a store.
pub(crate) fn lock_file(store: &Path) -> PathBuf {
    real(store).with_extension("lock")
}

/// Takes a store's lock: only one daemon may work on it, by whatever name. `None`: one does already.
pub(crate) fn lock(store: &Path) -> std::io::Result<Option<File>> {
    let file = create_private(&lock_file(store))?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// A path with an ending more, like the `-wal` that SQLite keeps beside a database.
pub(super) fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    PathBuf::from(name)
}

/// The bytes that are free on the disk of a file or folder, where it can be asked.
pub(super) fn free(path: &Path) -> Option<u64> {
    rustix::fs::statvfs(path).ok().map(|disk| disk.f_bavail.saturating_mul(disk.f_frsize))
}

/// The folder that a file lies in.
pub(super) fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Has the names of a folder on the disk.
pub(super) fn sync_folder(path: &Path) -> std::io::Result<()> {
    std::fs::File::open(folder_of(path))?.sync_all()
}
