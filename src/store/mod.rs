//! The store: the one place where mail, tokens and the inbox ledger are kept, in one database.
//!
//! Reads have connections of their own; everything that is written goes through one [`Writer`], which commits what
//! many tasks hand in together. A write has happened, on disk, when its call returns.

mod backup;
mod by_hand;
mod check;
mod content;
mod error;
mod file;
mod future;
mod inbox;
mod invites;
mod message;
mod migrations;
mod overview;
mod owner;
mod pace;
mod prune;
mod quarantine;
mod queue;
mod readers;
mod received;
mod report;
mod restore;
mod restored;
mod rotation;
mod sealed;
mod sql;
mod tokens;
mod unknown;
mod waiting;
mod writer;

pub use backup::Backup;
pub use by_hand::Selection;
pub use check::{Health, Inside, KeyHealth};
pub use error::Error;
pub(crate) use file::{lock, lock_file};
pub use inbox::{InboxLine, Mark, Note, PushState, Received, Update};
pub use message::{
    Attempt, Due, NewMessage, Next, Queued, QueuedState, Recipient, RecipientState, SentBy, Settlement,
    Totals,
};
pub use overview::{ConsentAge, FailedMessage, RefusedMessage};
pub use pace::Pace;
pub use prune::KEPT;
pub use quarantine::{Quarantined, QuarantinedId};
pub use received::Pushes;
pub use report::{AfterPush, NewReport, Report, ReportTotals};
pub use restore::{Key, PutBack};
pub use restored::Restored;
pub use tokens::StoredToken;
pub use waiting::{Reroutable, Stray};
pub use writer::{Writer, Written};

use crate::address::Address;
use crate::sealing::{Keyring, check_key_file};
use crate::section::Section;
use file::{aside, connect, connect_locked};
use jiff::Timestamp;
use readers::Readers;
use rusqlite::Connection;
use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::{Notify, mpsc, watch};
use tokio_util::sync::CancellationToken;

/// Where the store lies when the file does not say.
const DEFAULT_PATH: &str = "/var/lib/outlook-relay/relay.db";

/// So many bytes of the disk are never filled with new mail: an attempt is booked, and what was sent is deleted, by
/// writing. So the queue drains, and the relay recovers by itself.
pub(crate) const RESERVE: u64 = 16 << 20;

/// The `[store]` section.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The SQLite file.
    pub path: PathBuf,
    /// The file of the key that seals the tokens; absent: one that the relay makes beside the SQLite file.
    pub key_file: Option<PathBuf>,
}

impl Config {
    /// A store at `path`, with a key of its own beside it.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), key_file: None }
    }

    /// Reads `[store]`; a relative path is taken from the configuration's folder.
    pub fn read(section: &mut Section<'_>) -> Self {
        let key_file = section.private_path("key_file");
        if let Some(Err(mistake)) = key_file.as_deref().map(check_key_file) {
            section.mistake("key_file", mistake);
        }
        let url: String = section.get_or("url", format!("sqlite://{DEFAULT_PATH}"));
        let path = url.strip_prefix("sqlite:").map(|rest| rest.strip_prefix("//").unwrap_or(rest));
        let Some(path) = path.filter(|path| !path.is_empty() && !path.contains('?')) else {
            let message = if url.starts_with("postgres") {
                "names PostgreSQL, which this version does not have yet: write sqlite:///path/to/relay.db"
            } else {
                "is not a store: write sqlite:///path/to/relay.db"
            };
            section.mistake("url", message);
            return Self::at(DEFAULT_PATH);
        };
        let path = section.folder().join(path);
        if path.extension().is_some_and(|ending| ending == "key" || ending == "lock") {
            section.mistake("url", "ends like the files beside the store: give it another ending, like .db");
        }
        Self { path, key_file }
    }

    /// The folder of the SQLite file.
    fn folder(&self) -> PathBuf {
        let path = real(&self.path);
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        folder.unwrap_or(Path::new(".")).to_owned()
    }

    fn keyring(&self) -> Keyring {
        let beside = || real(&self.path).with_extension("key");
        Keyring::new(self.key_file.clone().unwrap_or_else(beside), self.key_file.is_none())
    }
}

/// The store's real name, by whatever name it was opened: what lies beside it goes by that one. One that is not there yet
/// has no other.
pub(crate) fn real(path: &Path) -> PathBuf {
    path.canonicalize().unwrap_or_else(|_| path.to_owned())
}

/// A message's id in the queue: the microsecond of its arrival, moved on where two would share one, so that ids are
/// unique, ordered by arrival, and do not start anew with a new store. Shown in Crockford's base 32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct QueueId(pub i64);

/// Crockford's base 32: no I, L, O, U.
const DIGITS: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";

impl fmt::Display for QueueId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = self.0.unsigned_abs();
        let mut text: Vec<u8> = Vec::with_capacity(13);
        loop {
            text.extend(DIGITS.get((rest % 32) as usize));
            rest /= 32;
            if rest == 0 {
                break;
            }
        }
        text.iter().rev().try_for_each(|&digit| write!(f, "{}", char::from(digit)))
    }
}

impl FromStr for QueueId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || format!("{text:?} is not a queue id: `outlook-relay queue list` shows them");
        let mut id: i64 = 0;
        for byte in text.bytes() {
            let digit = DIGITS.iter().position(|&d| d == byte.to_ascii_uppercase()).ok_or_else(wrong)?;
            let digit = i64::try_from(digit).map_err(|_| wrong())?;
            id = id.checked_mul(32).and_then(|id| id.checked_add(digit)).ok_or_else(wrong)?;
        }
        if text.is_empty() { Err(wrong()) } else { Ok(Self(id)) }
    }
}

impl serde::Serialize for QueueId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A handle on the store; clones share it.
#[derive(Clone, Debug)]
pub struct Store {
    path: Arc<Path>,
    readers: Readers,
    keys: Arc<Keyring>,
    writes: mpsc::Sender<writer::Job>,
    closing: CancellationToken,
    last_id: Arc<AtomicI64>,
    /// Bytes that are being accepted and are not on the disk yet.
    arriving: Arc<AtomicU64>,
    arrivals: Arc<Mutex<HashMap<Address, Arc<Notify>>>>,
    woken: watch::Sender<()>,
    unwritable: writer::Unwritable,
    counted: Arc<writer::Counted>,
}

impl Store {
    /// Opens the store, creating it (mode 0600) with its folder (0700) and the tokens' key where absent, and brings its
    /// tables up to date. Nothing else is written until somebody runs the [`Writer`].
    ///
    /// # Errors
    /// A folder or file that cannot be made, that is no database, or that a newer version wrote; a key that is missing
    /// or another one than that of the stored tokens.
    pub async fn open(config: &Config) -> Result<(Self, Writer), Error> {
        let config = config.clone();
        aside(move || Self::open_on(&config, connect(&config)?)).await
    }

    /// The same for the daemon, which holds [`lock`]: only it may bring a store up to date that a daemon works on.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub async fn open_locked(config: &Config) -> Result<(Self, Writer), Error> {
        let config = config.clone();
        aside(move || Self::open_on(&config, connect_locked(&config)?)).await
    }

    /// Brings a store up to date, where there is one, for a command that holds [`lock`].
    ///
    /// # Errors
    /// As [`Store::open`], but for the key.
    pub async fn bring_up_to_date(config: &Config) -> Result<(), Error> {
        let config = config.clone();
        aside(move || if config.path.exists() { connect_locked(&config).map(drop) } else { Ok(()) }).await
    }

    fn open_on(
        config: &Config,
        (mut connection, keys): (Connection, Keyring),
    ) -> Result<(Self, Writer), Error> {
        sealed::establish(config, &mut connection, &keys)?;
        Self::on(config, &connection, keys)
    }

    /// Opens a store that must be there already. The queue can be looked at without the tokens' key: who needs a token
    /// hears of it then.
    ///
    /// # Errors
    /// As [`Store::open`], and where there is none.
    pub async fn open_existing(config: &Config) -> Result<(Self, Writer), Error> {
        let config = config.clone();
        aside(move || {
            if !config.path.exists() {
                return Err(Error::Absent { path: config.path });
            }
            let (mut connection, keys) = connect(&config)?;
            match sealed::establish(&config, &mut connection, &keys) {
                Ok(()) | Err(Error::Key(_)) => Self::on(&config, &connection, keys),
                Err(error) => Err(error),
            }
        })
        .await
    }

    /// The connection at hand stays open until others are: the last to close would end the log.
    fn on(config: &Config, connection: &Connection, keys: Keyring) -> Result<(Self, Writer), Error> {
        let path = Arc::<Path>::from(config.path.as_path());
        let opened = |source| Error::Open { path: config.path.clone(), source };
        let (last,): (Option<i64>,) =
            sql::one(connection, "SELECT max(id) FROM message", ()).map_err(opened)?;
        let readers = Readers::open(path.clone()).map_err(opened)?;
        let writing = file::writing(&path).map_err(opened)?;
        let (writes, jobs) = mpsc::channel(1024);
        let closing = CancellationToken::new();
        let unwritable = writer::Unwritable::default();
        let keys = Arc::new(keys);
        let counted = Arc::<writer::Counted>::default();
        let writer =
            Writer::new(writing, keys.clone(), jobs, closing.clone(), unwritable.clone(), counted.clone());
        let store = Self {
            path,
            readers,
            keys,
            writes,
            closing,
            last_id: Arc::new(AtomicI64::new(last.unwrap_or_default())),
            arriving: Arc::default(),
            arrivals: Arc::default(),
            woken: watch::Sender::default(),
            unwritable,
            counted,
        };
        Ok((store, writer))
    }

    /// Why the last write failed, if it did: a full disk, mostly.
    pub fn unwritable(&self) -> Option<String> {
        self.unwritable.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What was written since this process opened the store.
    pub fn written(&self) -> Written {
        self.counted.now()
    }

    /// Room for a message of `size` bytes, and for those that are being accepted at the same time, without touching the
    /// [`RESERVE`]; it is kept until the answer is dropped. A message is written twice: to the log of the database first.
    async fn check_room(&self, size: usize) -> Result<Room, Error> {
        let size = u64::try_from(size).unwrap_or(u64::MAX);
        let room = Room { arriving: self.arriving.clone(), size };
        let arriving = self.arriving.fetch_add(size, Ordering::Relaxed).saturating_add(size);
        // Where it cannot be asked, writing tells.
        let Some(mut free) = file::free(&self.path) else {
            return Ok(room);
        };
        let needed = arriving.saturating_mul(2).saturating_add(RESERVE);
        if free < needed {
            // What was sent left room in the file itself.
            let pages = "SELECT freelist_count * page_size FROM pragma_freelist_count, pragma_page_size";
            let (inside,): (i64,) = self.one("the room that is left", pages, ()).await?;
            free = free.saturating_add(inside.unsigned_abs());
        }
        if free >= needed { Ok(room) } else { Err(Error::Full { path: self.path.to_path_buf(), free }) }
    }

    /// A new id for a message that arrives `now`.
    pub fn next_id(&self, now: Timestamp) -> QueueId {
        let now = now.as_microsecond();
        let step = |last: i64| Some(now.max(last.saturating_add(1)));
        match self.last_id.fetch_update(Ordering::Relaxed, Ordering::Relaxed, step) {
            Ok(last) | Err(last) => QueueId(now.max(last.saturating_add(1))),
        }
    }

    /// Wakes whoever delivers for `mailbox` when mail arrives for it.
    pub fn arrivals(&self, mailbox: &Address) -> Arc<Notify> {
        let mut arrivals = self.arrivals.lock().unwrap_or_else(PoisonError::into_inner);
        arrivals.entry(mailbox.clone()).or_default().clone()
    }

    /// Changes when [`Store::wake_all`] is called: apart from the arrivals, since what a person did may end a pause, and
    /// a mail that arrives may not.
    pub fn woken(&self) -> watch::Receiver<()> {
        self.woken.subscribe()
    }

    /// Wakes everybody who delivers: a person changed the queue. Not for what this process itself writes, since it also
    /// cuts short the pauses that wait for a person.
    pub fn wake_all(&self) {
        self.woken.send_replace(());
        for arrivals in self.arrivals.lock().unwrap_or_else(PoisonError::into_inner).values() {
            arrivals.notify_one();
        }
    }

    /// Tells when somebody wrote to the store, other processes included.
    ///
    /// # Errors
    /// The disk's.
    pub async fn changes(&self) -> Result<Changes, Error> {
        let path = self.path.clone();
        let connection = aside(move || file::reading(&path)).await;
        let connection = connection.map_err(|source| Error::Read { operation: "changes", source })?;
        Ok(Changes { connection, version: 0 })
    }

    /// Ends the writer, once everything handed in so far is written. Whoever still holds a clone only gets
    /// [`Error::Closed`] from it, so that nobody can hold up a shutdown.
    pub async fn close(self) {
        // The writer last: of two that end at once, neither would move the log into the file.
        self.readers.close().await;
        self.closing.cancel();
    }

    /// Reads and writes without doing either: comes back when both work, or fail.
    ///
    /// # Errors
    /// The disk's.
    pub async fn probe(&self) -> Result<(), Error> {
        let _: (i64,) = self.one("try the store", "SELECT count(*) FROM sqlite_schema", ()).await?;
        self.write(writer::Write::Probe).await
    }

    async fn write(&self, write: writer::Write) -> Result<(), Error> {
        let (done, written) = tokio::sync::oneshot::channel();
        self.writes.send(writer::Job { write, done }).await.map_err(|_| Error::Closed)?;
        written.await.map_err(|_| Error::Closed)?
    }
}

/// Room on the disk for a message on its way there.
#[derive(Debug)]
struct Room {
    arriving: Arc<AtomicU64>,
    size: u64,
}

impl Drop for Room {
    fn drop(&mut self) {
        self.arriving.fetch_sub(self.size, Ordering::Relaxed);
    }
}

/// Sees that somebody wrote to the store.
#[derive(Debug)]
pub struct Changes {
    connection: Connection,
    version: i64,
}

impl Changes {
    /// Whether anything was written since the last call.
    ///
    /// # Errors
    /// The disk's.
    pub fn seen(&mut self) -> Result<bool, Error> {
        // https://sqlite.org/pragma.html#pragma_data_version: changes when another connection commits. This much lies in
        // memory: it needs no thread of its own.
        let (version,) = sql::one(&self.connection, "PRAGMA data_version", ())
            .map_err(|source| Error::Read { operation: "changes", source })?;
        Ok(std::mem::replace(&mut self.version, version) != version)
    }
}

fn millis(at: Timestamp) -> i64 {
    at.as_millisecond()
}

fn timestamp(millis: i64) -> Timestamp {
    Timestamp::from_millisecond(millis).unwrap_or(if millis < 0 { Timestamp::MIN } else { Timestamp::MAX })
}

#[cfg(test)]
use file::{bare, create};
#[cfg(test)]
mod queue_tests;
#[cfg(test)]
mod report_tests;
#[cfg(test)]
mod sealed_tests;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod waiting_tests;
