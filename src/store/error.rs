//! What can go wrong with the store.

use super::RESERVE;
use crate::address::Address;
use crate::sealing;
use std::path::{Path, PathBuf};

/// What went wrong with the store, by operation.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The folder could not be made.
    #[error(
        "{path}: the store's folder cannot be created: run as a user who may write there, or set [store] url"
    )]
    Folder {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file could not be made.
    #[error(
        "{path}: the store cannot be created or written: run as a user who may write there, or set [store] url"
    )]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not there, and the command would only read it.
    #[error("{path}: there is no store yet: the daemon creates it when it first runs")]
    Absent {
        /// The file.
        path: PathBuf,
    },
    /// The database could not be opened.
    #[error("{path}: the store cannot be opened: look at its folder's rights and free space")]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        source: rusqlite::Error,
    },
    /// The file is damaged, or never was a store.
    #[error(
        "{path}: this file is damaged, or no store: nothing was changed. `outlook-relay store check` says more; where there \
         is a backup, stop the daemon, run `outlook-relay store restore BACKUP`, and start it again"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Why.
        source: rusqlite::Error,
    },
    /// The file holds nothing any more.
    #[error(
        "{path}: this file is empty, and what lies beside it shows that it was a store. Nothing was changed: where there is a \
         backup, run `outlook-relay store restore BACKUP`; to begin with an empty store, move the file away"
    )]
    Emptied {
        /// The file.
        path: PathBuf,
    },
    /// The file is a database, but no store.
    #[error("{path}: this is another program's database. Nothing was changed: correct the path")]
    Foreign {
        /// The file.
        path: PathBuf,
    },
    /// The tables were made by other migrations than this program's of the same numbers.
    #[error(
        "{path}: migration {version} of this store is not this program's: another build of outlook-relay made it. Nothing was \
         changed. Install that one again, or put a backup in place (`outlook-relay store restore`)"
    )]
    Migrated {
        /// The file.
        path: PathBuf,
        /// The migration's number.
        version: i64,
    },
    /// The file has tables that this version does not know.
    #[error(
        "{path}: a newer version of outlook-relay wrote this store (its migration {version}): nothing was \
         changed. Install that version again, or put a backup from before in place (`outlook-relay store restore`)"
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// The migration's number.
        version: i64,
    },
    /// A daemon works on a store that an earlier version wrote.
    #[error(
        "{path}: an earlier version of outlook-relay wrote this store, and a daemon works on it: restart the daemon \
         (`systemctl restart outlook-relay`), which brings the store up to date, and try again. Nothing was changed"
    )]
    Older {
        /// The file.
        path: PathBuf,
    },
    /// A read failed.
    #[error("the store could not be read ({operation})")]
    Read {
        /// What was read.
        operation: &'static str,
        /// Why.
        source: rusqlite::Error,
    },
    /// A write failed; nothing of it was kept.
    #[error("the store could not be written ({operation})")]
    Write {
        /// What was written.
        operation: &'static str,
        /// Why.
        source: rusqlite::Error,
    },
    /// What was to be changed is not there any more, or not as it was.
    #[error("somebody else changed it meanwhile")]
    Changed,
    /// The disk is nearly full: a message more could keep those that wait from being sent.
    #[error(
        "{path}: only {} MiB are free on its disk; the last {} MiB are kept for sending what waits: free some space",
        free >> 20, RESERVE >> 20
    )]
    Full {
        /// The file.
        path: PathBuf,
        /// Bytes that are free.
        free: u64,
    },
    /// The writer has stopped: the daemon is shutting down.
    #[error("the store is closed: the daemon is shutting down")]
    Closed,
    /// The key of the tokens is missing, another one, or cannot be made.
    #[error(transparent)]
    Key(#[from] sealing::Error),
    /// A token cannot be opened.
    #[error("the refresh token of {mailbox} cannot be opened")]
    Sealed {
        /// Whose it is.
        mailbox: Address,
        /// Why.
        source: sealing::Error,
    },
    /// The key that is said to be lost is there.
    #[error("{path}: the key of the stored tokens is there: rotate it without --lost")]
    KeyNotLost {
        /// Its file.
        path: PathBuf,
    },
    /// Another process changes the key.
    #[error("another process changes the store's key at the moment: try again when it is done")]
    KeyBusy,
    /// A row does not make sense.
    #[error("the store holds a row that makes no sense ({what})")]
    Row {
        /// Which, and why.
        what: String,
    },
    /// A backup, or the store in its place, could not be written.
    #[error("{path}: cannot be written ({step}): look at its folder's rights and free space")]
    Copy {
        /// The file.
        path: PathBuf,
        /// Which step of it.
        step: &'static str,
        /// Why.
        source: std::io::Error,
    },
    /// There is a file of that name.
    #[error("{path}: is there already, and is not overwritten: name another file")]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// Somebody else is at it.
    #[error("{path}: another process works on it: try again when it is done")]
    Busy {
        /// The file.
        path: PathBuf,
    },
    /// The disk has no room for a copy.
    #[error("{path}: {} MiB are needed there, and {} MiB are free: name a file on another disk, or free some space", needed >> 20, free >> 20)]
    NoRoom {
        /// The copy.
        path: PathBuf,
        /// Bytes.
        needed: u64,
        /// Bytes.
        free: u64,
    },
    /// What should be put back is the store itself.
    #[error("{path}: is the store itself: name a backup")]
    Same {
        /// The file.
        path: PathBuf,
    },
    /// What should be put back cannot be read.
    #[error("{path}: cannot be read: name a file that `store backup` made")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

impl Error {
    /// Whether the file is damaged.
    pub fn is_damage(&self) -> bool {
        match self {
            Self::Damaged { .. } => true,
            Self::Open { source, .. } | Self::Write { source, .. } | Self::Read { source, .. } => {
                is_damage(source)
            }
            _ => false,
        }
    }
}

/// What was wrong when a file was opened.
pub(super) fn opening(path: &Path) -> impl Fn(rusqlite::Error) -> Error {
    move |source| {
        let path = path.to_owned();
        if is_damage(&source) { Error::Damaged { path, source } } else { Error::Open { path, source } }
    }
}

/// Whether SQLite says that a file is damaged or none of its own. https://sqlite.org/rescode.html: the low byte of
/// SQLITE_CORRUPT (11) and SQLITE_NOTADB (26).
fn is_damage(error: &rusqlite::Error) -> bool {
    error.sqlite_error().is_some_and(|error| matches!(error.extended_code & 0xff, 11 | 26))
}
