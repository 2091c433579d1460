//! Puts a backup in the store's place. The store before it is kept beside it, under a name that says when.

use super::backup::{check_room, failed, made_at, messages, single, stamp};
use super::check::{self, KeyHealth};
use super::error::opening;
use super::file::{aside, bare, beside, create_private, folder_of, is_ours, sync_folder};
use super::migrations::{NEWEST, version};
use super::sealed::truncate_log;
use super::{Config, Error, Store, owner, real};
use crate::clock;
use crate::sealing::Keyring;
use jiff::Timestamp;
use rusqlite::{Connection, ffi};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

/// What was put in the store's place.
#[derive(Clone, Debug)]
pub struct PutBack {
    /// The store.
    pub store: PathBuf,
    /// When the backup was made; `None`: it was not made by [`Store::backup`], and does not say.
    pub made_at: Option<Timestamp>,
    /// Messages in its queue.
    pub messages: u64,
    /// What was there before is kept as this file; `None`: nothing was there.
    pub before: Option<PathBuf>,
    /// Whether its tokens can be used.
    pub key: Key,
}

/// Whether the key at hand is a store's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Key {
    /// Every token opens; or there is none.
    Fits,
    /// Why tokens do not open.
    Other(Vec<String>),
}

impl Store {
    /// Puts a copy of the backup in the store's place. The caller holds the daemon's lock. A plain copy of a store's file is
    /// stamped as a backup, too.
    ///
    /// # Errors
    /// A backup that is none, damaged, or of a newer version; the disk's. Then the store is what it was.
    pub async fn restore(config: &Config, from: &Path) -> Result<PutBack, Error> {
        let (config, from) = (config.clone(), from.to_owned());
        aside(move || put_back(&config, &from)).await
    }
}

fn put_back(config: &Config, from: &Path) -> Result<PutBack, Error> {
    let store = real(&config.path);
    let unreadable = |source| Error::Unreadable { path: from.to_owned(), source };
    let backup = std::fs::metadata(from).map_err(unreadable)?;
    if !backup.is_file() {
        return Err(unreadable(ErrorKind::InvalidInput.into()));
    }
    if std::fs::metadata(&store).is_ok_and(|own| (own.dev(), own.ino()) == (backup.dev(), backup.ino())) {
        return Err(Error::Same { path: from.to_owned() });
    }
    let new = beside(&store, ".restoring");
    remove_all(&new);
    let prepared = prepare(from, &new, config);
    let (made_at, messages, key) = match prepared {
        Ok(prepared) => prepared,
        Err(error) => {
            remove_all(&new);
            return Err(error);
        }
    };
    // A key that was put back by hand is root's, and the daemon could not read it.
    owner::give_back(config)?;
    let before = set_aside(&store)?;
    std::fs::rename(&new, &store).map_err(failed(&store, "put in place"))?;
    sync_folder(&store).map_err(failed(&store, "sync its folder"))?;
    Ok(PutBack { store, made_at, messages, before, key })
}

/// Copies the backup to where the store is, looks whether it can be one, and stamps it.
fn prepare(from: &Path, new: &Path, config: &Config) -> Result<(Option<Timestamp>, u64, Key), Error> {
    let folder = folder_of(new);
    if !folder.exists() {
        let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder);
        made.map_err(|source| Error::Folder { path: folder.to_owned(), source })?;
    }
    let log = beside(from, "-wal");
    let size = |path: &Path| std::fs::metadata(path).map_or(0, |file| file.len());
    if size(from) == 0 {
        return Err(Error::Emptied { path: from.to_owned() });
    }
    check_room(new, size(from).saturating_add(size(&log)))?;
    copy(from, new)?;
    // A plain copy may have its last commits there.
    if size(&log) > 0 {
        copy(&log, &beside(new, "-wal"))?;
    }
    let connection = single(new).map_err(opening(from))?;
    is_ours(&connection, from)?;
    let found = check::damage(&connection).map_err(opening(from))?;
    if let Some(first) = found.first() {
        let damaged = ffi::Error::new(ffi::SQLITE_CORRUPT);
        return Err(opening(from)(rusqlite::Error::SqliteFailure(damaged, Some(first.clone()))));
    }
    let version = version(&connection).map_err(opening(from))?;
    if version > NEWEST {
        return Err(Error::Newer { path: from.to_owned(), version });
    }
    let prepared = stamped(&connection, &config.keyring()).map_err(opening(from))?;
    connection.close().map_err(|(_, source)| opening(from)(source))?;
    let file = std::fs::File::open(new).and_then(|file| file.sync_all());
    file.map_err(failed(new, "sync"))?;
    Ok(prepared)
}

fn stamped(
    connection: &Connection,
    keys: &Keyring,
) -> Result<(Option<Timestamp>, u64, Key), rusqlite::Error> {
    let made_at = made_at(connection)?;
    if made_at.is_none() {
        stamp(connection, clock::now())?;
    }
    let key = match check::key(connection, keys)? {
        KeyHealth::Unused | KeyHealth::Opens { .. } => Key::Fits,
        KeyHealth::Fails(why) => Key::Other(why),
    };
    Ok((made_at, messages(connection)?, key))
}

fn copy(from: &Path, to: &Path) -> Result<(), Error> {
    let mut source =
        std::fs::File::open(from).map_err(|source| Error::Unreadable { path: from.to_owned(), source })?;
    let mut file = create_private(to).map_err(failed(to, "create"))?;
    std::io::copy(&mut source, &mut file).map_err(failed(to, "write"))?;
    file.sync_all().map_err(failed(to, "sync"))
}

/// Keeps the store under another name, besides; what is in its log first goes into it. Whatever happens, one of the two is
/// there under the store's name.
fn set_aside(store: &Path) -> Result<Option<PathBuf>, Error> {
    if !store.exists() {
        remove(&beside(store, "-wal"))?;
        remove(&beside(store, "-shm"))?;
        return Ok(None);
    }
    // (Of an empty file SQLite would throw the log away.)
    if std::fs::metadata(store).is_ok_and(|file| file.len() > 0)
        && let Ok(connection) = bare(store)
        && matches!(truncate_log(&connection), Ok(false))
    {
        return Err(Error::Busy { path: store.to_owned() });
    }
    let name = format!(".before-{}", clock::now().strftime("%Y%m%dT%H%M%SZ"));
    let aside = beside(store, &name);
    if aside.exists() {
        return Err(Error::Exists { path: aside });
    }
    std::fs::hard_link(store, &aside).map_err(failed(&aside, "keep the store before"))?;
    // Of a damaged store; else it is gone.
    let log = beside(store, "-wal");
    if std::fs::metadata(&log).is_ok_and(|log| log.len() > 0) {
        let kept = beside(&aside, "-wal");
        std::fs::rename(&log, &kept).map_err(failed(&kept, "keep the log before"))?;
    }
    remove(&log)?;
    remove(&beside(store, "-shm"))?;
    sync_folder(store).map_err(failed(&aside, "sync its folder"))?;
    Ok(Some(aside))
}

fn remove(path: &Path) -> Result<(), Error> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(failed(path, "remove")(error)),
        _ => Ok(()),
    }
}

/// What an earlier try may have left.
fn remove_all(new: &Path) {
    for ending in ["", "-wal", "-shm", "-journal"] {
        drop(std::fs::remove_file(beside(new, ending)));
    }
}
