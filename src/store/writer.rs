//! The one writer. What tasks hand in while a commit runs goes into the next one together (group commit): the disk's
//! sync, which is what a durable queue waits for, is paid once for all of them.

use super::by_hand::ByHand;
use super::inbox::InboxWrite;
use super::invites::InviteWrite;
use super::queue::QueueWrite;
use super::report::ReportWrite;
use super::tokens::StoredToken;
use super::{Error, by_hand, future, inbox, invites, queue, report, restored, tokens};
use crate::address::Address;
use crate::sealing::Keyring;
use jiff::Timestamp;
use sqlx::SqliteConnection;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

/// At most so many writes in one commit: bounds how long the first of them waits.
const MOST_TOGETHER: usize = 256;

/// One thing to write.
#[derive(Debug)]
pub(super) enum Write {
    Queue(QueueWrite),
    Token(Address, StoredToken),
    Inbox(InboxWrite),
    Invite(InviteWrite),
    ByHand(ByHand),
    Future(Timestamp),
    Report(ReportWrite),
    Restored(Timestamp),
    /// Nothing: only to see that it comes back.
    Probe,
}

impl Write {
    fn operation(&self) -> &'static str {
        match self {
            Self::Queue(write) => write.operation(),
            Self::Token(..) => "keep a token",
            Self::Inbox(write) => write.operation(),
            Self::Invite(write) => write.operation(),
            Self::ByHand(write) => write.operation(),
            Self::Future(_) => "take up what a clock set back left in the future",
            Self::Report(write) => write.operation(),
            Self::Restored(_) => "take up a backup",
            Self::Probe => "try the store",
        }
    }

    async fn apply(&self, connection: &mut SqliteConnection, keys: &Keyring) -> Result<(), sqlx::Error> {
        match self {
            Self::Queue(write) => queue::apply(write, connection).await,
            Self::Token(mailbox, token) => tokens::apply(mailbox, token, connection, keys).await,
            Self::Inbox(write) => inbox::apply(write, connection).await,
            Self::Invite(write) => invites::apply(write, connection, keys).await,
            Self::ByHand(write) => by_hand::apply(write, connection).await,
            Self::Future(now) => future::apply(*now, connection).await,
            Self::Report(write) => report::apply(write, connection).await,
            Self::Restored(now) => restored::apply(*now, connection).await,
            Self::Probe => Ok(()),
        }
    }
}

/// A write, and who waits for it.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) write: Write,
    pub(super) done: oneshot::Sender<Result<(), Error>>,
}

/// What the writer did since the start: where the time of a durable queue goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Written {
    /// Commits, each of which waited for the disk.
    pub commits: u64,
    /// Writes, which share commits.
    pub writes: u64,
    /// Microseconds from the beginning of a commit's first write to its end.
    pub micros: u64,
}

/// [`Written`] while it is counted.
#[derive(Debug, Default)]
pub(super) struct Counted {
    commits: AtomicU64,
    writes: AtomicU64,
    micros: AtomicU64,
}

impl Counted {
    fn add(&self, writes: usize, since: Instant) {
        self.commits.fetch_add(1, Ordering::Relaxed);
        self.writes.fetch_add(u64::try_from(writes).unwrap_or_default(), Ordering::Relaxed);
        let micros = u64::try_from(since.elapsed().as_micros()).unwrap_or_default();
        self.micros.fetch_add(micros, Ordering::Relaxed);
    }

    pub(super) fn now(&self) -> Written {
        Written {
            commits: self.commits.load(Ordering::Relaxed),
            writes: self.writes.load(Ordering::Relaxed),
            micros: self.micros.load(Ordering::Relaxed),
        }
    }
}

/// Owns the only connection that writes.
#[derive(Debug)]
pub struct Writer {
    connection: SqliteConnection,
    keys: Arc<Keyring>,
    jobs: mpsc::Receiver<Job>,
    closing: CancellationToken,
    unwritable: Unwritable,
    counted: Arc<Counted>,
}

/// Why the last write failed, if it did: shared with every [`super::Store`].
pub(super) type Unwritable = Arc<Mutex<Option<String>>>;

impl Writer {
    pub(super) fn new(
        connection: SqliteConnection,
        keys: Arc<Keyring>,
        jobs: mpsc::Receiver<Job>,
        closing: CancellationToken,
        unwritable: Unwritable,
        counted: Arc<Counted>,
    ) -> Self {
        Self { connection, keys, jobs, closing, unwritable, counted }
    }

    /// Writes until the store is closed, or every [`super::Store`] dropped, and all that was handed in is on disk.
    pub async fn run(mut self) {
        let mut batch = Vec::with_capacity(MOST_TOGETHER);
        while self.next(&mut batch).await > 0 {
            let begun = Instant::now();
            if let Err(error) =
                commit(&mut self.connection, &self.keys, batch.iter().map(|job| &job.write)).await
            {
                tracing::debug!(error = %crate::failure::chain(&error), together = batch.len(), "commit failed");
                // One bad write must not fail the others: each gets a transaction, and an answer, of its own.
                for job in batch.drain(..) {
                    let operation = job.write.operation();
                    let written = commit(&mut self.connection, &self.keys, std::iter::once(&job.write)).await;
                    self.note(written.as_ref().err());
                    drop(job.done.send(written.map_err(|source| Error::Write { operation, source })));
                }
            } else {
                self.counted.add(batch.len(), begun);
                self.note(None);
            }
            // A waiter that went away no longer wants to know.
            batch.drain(..).for_each(|job| drop(job.done.send(Ok(()))));
        }
        if let Err(error) = sqlx::Connection::close(self.connection).await {
            tracing::warn!(error = crate::failure::chain(&error), "store not closed");
        }
    }

    /// Notes how the last write went. That there was no such row is the write's own affair.
    fn note(&self, failed: Option<&sqlx::Error>) {
        if !matches!(failed, Some(sqlx::Error::RowNotFound)) {
            let mut unwritable = self.unwritable.lock().unwrap_or_else(PoisonError::into_inner);
            *unwritable = failed.map(|error| crate::failure::chain(error));
        }
    }

    /// Waits for work; 0: there will be none any more.
    async fn next(&mut self, batch: &mut Vec<Job>) -> usize {
        tokio::select! {
            taken = self.jobs.recv_many(batch, MOST_TOGETHER) => return taken,
            () = self.closing.cancelled() => {}
        }
        // What was handed in before is still there.
        self.jobs.close();
        self.jobs.recv_many(batch, MOST_TOGETHER).await
    }
}

async fn commit<'w>(
    connection: &mut SqliteConnection,
    keys: &Keyring,
    writes: impl Iterator<Item = &'w Write>,
) -> Result<(), sqlx::Error> {
    sqlx::query("BEGIN IMMEDIATE").execute(&mut *connection).await?;
    let written = async {
        for write in writes {
            write.apply(connection, keys).await?;
        }
        sqlx::query("COMMIT").execute(&mut *connection).await.map(drop)
    }
    .await;
    if written.is_err() {
        // SQLite may have rolled back by itself (a full disk): then this fails, which is as good.
        drop(sqlx::query("ROLLBACK").execute(&mut *connection).await);
    }
    written
}
