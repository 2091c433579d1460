//! A copy of the store as it is at one moment, also while the daemon writes: SQLite copies what one reader sees
//! (<https://sqlite.org/lang_vacuum.html#vacuuminto>), and readers hold up no writer.

use super::check::has_table;
use super::error::opening;
use super::file::{aside, bare, beside, free, is_ours, sync_folder};
use super::migrations::version;
use super::sql::{first, one, run};
use super::{Config, Error, RESERVE, Store, millis, timestamp};
use crate::clock;
use jiff::Timestamp;
use rusqlite::Connection;
use rustix::fs::RenameFlags;
use serde::Serialize;
use std::fs::{File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// The table of the stamp. A copy of a store of an earlier version gets it, too, and that version does not mind.
pub(super) const TABLE: &str = include_str!("migrations/0007_backup.sql");

/// A copy that was made.
#[derive(Clone, Debug, Serialize)]
pub struct Backup {
    /// The file.
    pub file: PathBuf,
    /// How large it is.
    pub bytes: u64,
    /// What it holds of the store is at most as old as this.
    pub made_at: Timestamp,
    /// Messages in its queue.
    pub messages: u64,
    /// The key that is needed besides.
    pub key_file: PathBuf,
}

impl Store {
    /// Copies the store into a new file, private, while others read and write it. The copy is stamped as one: the first start
    /// with it looks for what may have been sent since. The key of the tokens is not in it.
    ///
    /// # Errors
    /// A file that is there already, a disk without room for it, and the disk's own.
    pub async fn backup(config: &Config, to: &Path) -> Result<Backup, Error> {
        let (config, to) = (config.clone(), to.to_owned());
        aside(move || make(&config, &to)).await
    }
}

fn make(config: &Config, to: &Path) -> Result<Backup, Error> {
    if !config.path.exists() {
        return Err(Error::Absent { path: config.path.clone() });
    }
    if std::fs::metadata(&config.path).is_ok_and(|file| file.len() == 0) {
        return Err(Error::Emptied { path: config.path.clone() });
    }
    if to.symlink_metadata().is_ok() {
        return Err(Error::Exists { path: to.to_owned() });
    }
    let part = std::path::absolute(beside(to, ".part")).map_err(failed(to, "name"))?;
    let file = begin(&part)?;
    let made = write(config, &part, &file, to);
    if made.is_err() {
        // As good as nothing; what is in the way of removing it, the error tells.
        for leftover in [part.clone(), beside(&part, "-journal")] {
            drop(std::fs::remove_file(leftover));
        }
    }
    made
}

/// The file under its name for the time being, empty and private. One that was cut short is begun anew.
fn begin(part: &Path) -> Result<File, Error> {
    let nofollow = i32::try_from(rustix::fs::OFlags::NOFOLLOW.bits()).unwrap_or_default();
    let opened = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .custom_flags(nofollow)
        .open(part)
        .map_err(failed(part, "create"))?;
    match opened.try_lock() {
        Ok(()) => {}
        Err(std::fs::TryLockError::WouldBlock) => return Err(Error::Busy { path: part.to_owned() }),
        Err(std::fs::TryLockError::Error(source)) => return Err(failed(part, "lock")(source)),
    }
    opened.set_permissions(std::fs::Permissions::from_mode(0o600)).map_err(failed(part, "make private"))?;
    opened.set_len(0).map_err(failed(part, "empty"))?;
    Ok(opened)
}

fn write(config: &Config, part: &Path, file: &File, to: &Path) -> Result<Backup, Error> {
    let store = &config.path;
    let connection = bare(store).map_err(opening(store))?;
    is_ours(&connection, store)?;
    let pages = "SELECT (page_count - freelist_count) * page_size \
                 FROM pragma_page_count, pragma_freelist_count, pragma_page_size";
    let (bytes,): (i64,) = one(&connection, pages, ()).map_err(opening(store))?;
    check_room(part, bytes.unsigned_abs())?;
    let name = part.to_str().ok_or_else(|| failed(part, "name")(ErrorKind::InvalidFilename.into()))?;
    run(&connection, "VACUUM INTO ?1", [name]).map_err(opening(store))?;
    drop(connection);
    // Nothing in it is younger than that.
    let made_at = clock::now();
    let copy = single(part).map_err(opening(part))?;
    let messages = stamp(&copy, made_at).and_then(|()| messages(&copy)).map_err(opening(part))?;
    copy.close().map_err(|(_, source)| opening(part)(source))?;
    file.sync_all().map_err(failed(part, "sync"))?;
    place(part, to)?;
    sync_folder(to).map_err(failed(to, "sync its folder"))?;
    Ok(Backup {
        file: to.to_owned(),
        bytes: std::fs::metadata(to).map_err(failed(to, "look at"))?.len(),
        made_at,
        messages,
        key_file: config.keyring().path().to_owned(),
    })
}

/// When a copy was made, if it is one that no daemon has started with yet.
pub(super) fn made_at(copy: &Connection) -> Result<Option<Timestamp>, rusqlite::Error> {
    if !has_table(copy, "backup")? {
        return Ok(None);
    }
    let row: Option<(i64,)> = first(copy, "SELECT made_at FROM backup WHERE started_at IS NULL", ())?;
    Ok(row.map(|(made_at,)| timestamp(made_at)))
}

/// How many messages a copy holds.
pub(super) fn messages(copy: &Connection) -> Result<u64, rusqlite::Error> {
    if version(copy)? == 0 {
        return Ok(0);
    }
    let (messages,): (i64,) = one(copy, "SELECT count(*) FROM message", ())?;
    Ok(messages.unsigned_abs())
}

/// Says in a copy that it is one.
pub(super) fn stamp(copy: &Connection, made_at: Timestamp) -> Result<(), rusqlite::Error> {
    copy.execute_batch(TABLE)?;
    run(
        copy,
        "INSERT INTO backup (one, made_at) VALUES (1, ?1) \
         ON CONFLICT (one) DO UPDATE SET made_at = excluded.made_at, started_at = NULL",
        [millis(made_at)],
    )
    .map(drop)
}

/// Opens a copy, all of which is in one file.
pub(super) fn single(path: &Path) -> Result<Connection, rusqlite::Error> {
    let copy = bare(path)?;
    copy.pragma_update(None, "journal_mode", "DELETE")?;
    Ok(copy)
}

/// Whether the disk has room for a copy of so many bytes, with what the store there may need itself.
pub(super) fn check_room(path: &Path, bytes: u64) -> Result<(), Error> {
    let needed = bytes.saturating_add(RESERVE);
    match free(path) {
        Some(free) if free < needed => Err(Error::NoRoom { path: path.to_owned(), needed, free }),
        _ => Ok(()),
    }
}

/// Gives the file its name, unless there is one of that name.
fn place(part: &Path, to: &Path) -> Result<(), Error> {
    let cwd = rustix::fs::CWD;
    let placed = match rustix::fs::renameat_with(cwd, part, cwd, to, RenameFlags::NOREPLACE) {
        // A file system that cannot do that in one step.
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) if to.symlink_metadata().is_err() => {
            std::fs::rename(part, to)
        }
        placed => placed.map_err(Into::into),
    };
    placed.map_err(|source| match source.kind() {
        ErrorKind::AlreadyExists => Error::Exists { path: to.to_owned() },
        _ => failed(to, "name")(source),
    })
}

pub(super) fn failed(path: &Path, step: &'static str) -> impl Fn(std::io::Error) -> Error {
    move |source| Error::Copy { path: path.to_owned(), step, source }
}
