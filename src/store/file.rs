//! The SQLite file: how it is made, opened, and brought up to date.

use super::error::opening;
use super::migrations::{NEWEST, migrate, version};
use super::sql::one;
use super::{Config, Error, real};
use crate::sealing::Keyring;
use rusqlite::{Connection, OpenFlags};
use std::fs::{File, TryLockError};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::task::JoinError;

/// The command line writes as well, briefly.
const BUSY: Duration = Duration::from_secs(10);
/// More than there are statements that one connection runs again and again.
const STATEMENTS: usize = 64;
/// While a backup reads, the log cannot begin anew: afterwards it does not stay as large as it became. In bytes.
const JOURNAL_LIMIT: i64 = 64 << 20;
/// After so many pages (of 4 KiB) the log is moved into the file, which one commit waits for. Fewer: it happens to more than
/// one message of a hundred. More: those that it happens to wait longer.
const CHECKPOINT: i64 = 2000;

/// A connection that may write, with the tables up to date; but not brought up to date under a daemon of an earlier
/// version, which would go on writing as if they were not.
pub(super) fn connect(config: &Config) -> Result<(Connection, Keyring), Error> {
    let connection = open(config)?;
    let path = &config.path;
    let found = version(&connection).map_err(opening(path))?;
    // One without tables is new.
    let _lock = if (1..NEWEST).contains(&found) {
        let lock = lock(path).map_err(|source| Error::File { path: lock_file(path), source })?;
        Some(lock.ok_or_else(|| Error::Older { path: path.clone() })?)
    } else {
        None
    };
    up_to_date(config, connection)
}

/// The same for the daemon, which holds the lock.
pub(super) fn connect_locked(config: &Config) -> Result<(Connection, Keyring), Error> {
    up_to_date(config, open(config)?)
}

fn open(config: &Config) -> Result<Connection, Error> {
    let path = &config.path;
    config.create()?;
    let connection = bare(path).map_err(opening(path))?;
    // Before anything is written, the mode of the journal included.
    is_ours(&connection, path)?;
    Ok(connection)
}

fn up_to_date(config: &Config, mut connection: Connection) -> Result<(Connection, Keyring), Error> {
    let path = &config.path;
    connection.pragma_update(None, "journal_mode", "WAL").map_err(opening(path))?;
    migrate(&mut connection, path, NEWEST)?;
    Ok((connection, config.keyring()))
}

/// Whether a database is a store, or has no tables yet.
pub(super) fn is_ours(connection: &Connection, path: &Path) -> Result<(), Error> {
    let (tables, ours): (i64, i64) = one(
        connection,
        "SELECT count(*), coalesce(sum(name = '_sqlx_migrations'), 0) FROM sqlite_master WHERE type = 'table'",
        (),
    )
    .map_err(opening(path))?;
    if tables > 0 && ours == 0 { Err(Error::Foreign { path: path.to_owned() }) } else { Ok(()) }
}

/// The connection of the writer, on a store that is there and up to date.
pub(super) fn writing(path: &Path) -> Result<Connection, rusqlite::Error> {
    let connection = bare(path)?;
    connection.pragma_update(None, "wal_autocheckpoint", CHECKPOINT)?;
    Ok(connection)
}

/// One that only reads, likewise.
pub(super) fn reading(path: &Path) -> Result<Connection, rusqlite::Error> {
    let connection = bare(path)?;
    connection.pragma_update(None, "query_only", true)?;
    Ok(connection)
}

/// A connection to a file that may be anything, with SQLite's own recommendations for one writer and many readers: opening it
/// writes nothing.
pub(super) fn bare(path: &Path) -> Result<Connection, rusqlite::Error> {
    with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE)
}

/// The same, that cannot write.
pub(super) fn read_only(path: &Path) -> Result<Connection, rusqlite::Error> {
    with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY)
}

fn with_flags(path: &Path, access: OpenFlags) -> Result<Connection, rusqlite::Error> {
    // Only one thread at a time has it: SQLite need not lock it.
    let connection = Connection::open_with_flags(path, access | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS);
    connection.busy_timeout(BUSY)?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "foreign_keys", true)?;
    // A token that was replaced leaves nothing in its page. (ON would write each sent mail's pages once more.)
    connection.pragma_update(None, "secure_delete", "FAST")?;
    connection.pragma_update(None, "journal_size_limit", JOURNAL_LIMIT)?;
    Ok(connection)
}

/// Does what waits for the disk in a thread where it holds up no task.
pub(super) async fn aside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await.map_err(JoinError::try_into_panic) {
        Ok(done) => done,
        Err(Ok(panic)) => std::panic::resume_unwind(panic),
        // The runtime ends, and with it whoever waits.
        Err(Err(_)) => std::future::pending().await,
    }
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
