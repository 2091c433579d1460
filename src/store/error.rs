//! What can go wrong with the store.

use super::RESERVE;
use crate::address::Address;
use crate::sealing;
use sqlx::migrate::MigrateError;
use std::path::PathBuf;

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
    #[error("{path}: the store cannot be opened")]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        source: sqlx::Error,
    },
    /// The tables could not be brought up to date.
    #[error("{path}: the store's tables cannot be brought up to date")]
    Migrate {
        /// The file.
        path: PathBuf,
        /// Why.
        source: MigrateError,
    },
    /// The file has tables that this version does not know.
    #[error(
        "{path}: a newer version of outlook-relay wrote this store (its migration {version}): install that version again"
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// The migration's number.
        version: i64,
    },
    /// A read failed.
    #[error("the store could not be read ({operation})")]
    Read {
        /// What was read.
        operation: &'static str,
        /// Why.
        source: sqlx::Error,
    },
    /// A write failed; nothing of it was kept.
    #[error("the store could not be written ({operation})")]
    Write {
        /// What was written.
        operation: &'static str,
        /// Why.
        source: sqlx::Error,
    },
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
}
