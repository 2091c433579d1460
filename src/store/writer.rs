//! The one writer. What tasks hand in while a commit runs goes into the next one together (group commit): the disk's
//! sync, which is what a durable queue waits for, is paid once for all of them.

use super::by_hand::ByHand;
use super::inbox::InboxWrite;
use super::invites::InviteWrite;
use super::queue::QueueWrite;
use super::report::ReportWrite;
use super::sql::run;
use super::tokens::StoredToken;
use super::{Error, by_hand, future, inbox, invites, queue, report, restored, tokens};
use crate::address::Address;
use crate::sealing::Keyring;
use jiff::Timestamp;
use rusqlite::{Connection, ErrorCode};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;
use tokio::runtime::Handle;
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

    fn apply(&self, connection: &Connection, keys: &Keyring) -> Result<(), rusqlite::Error> {
        match self {
            Self::Queue(write) => queue::apply(write, connection),
            Self::Token(mailbox, token) => tokens::apply(mailbox, token, connection, keys),
            Self::Inbox(write) => inbox::apply(write, connection),
            Self::Invite(write) => invites::apply(write, connection, keys),
            Self::ByHand(write) => by_hand::apply(write, connection),
            Self::Future(now) => future::apply(*now, connection),
            Self::Report(write) => report::apply(write, connection),
            Self::Restored(now) => restored::apply(*now, connection),
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
    connection: Connection,
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
        connection: Connection,
        keys: Arc<Keyring>,
        jobs: mpsc::Receiver<Job>,
        closing: CancellationToken,
        unwritable: Unwritable,
        counted: Arc<Counted>,
    ) -> Self {
        Self { connection, keys, jobs, closing, unwritable, counted }
    }

    /// Writes until the store is closed, or every [`super::Store`] dropped, and all that was handed in is on disk. It does so
    /// in a thread of its own: a statement costs less than to wake one.
    pub async fn run(self) {
        let runtime = Handle::current();
        in_thread(move || self.work(&runtime)).await;
    }

    fn work(mut self, runtime: &Handle) {
        let mut batch = Vec::with_capacity(MOST_TOGETHER);
        while runtime.block_on(self.next(&mut batch)) > 0 {
            let begun = Instant::now();
            if let Err(error) = commit(&self.connection, &self.keys, batch.iter().map(|job| &job.write)) {
                tracing::debug!(error = %crate::failure::chain(&error), together = batch.len(), "commit failed");
                for job in batch.drain(..) {
                    let operation = job.write.operation();
                    let written = match &error {
                        // Somebody else keeps the store locked: each of them would wait for that as long again.
                        rusqlite::Error::SqliteFailure(code, text)
                            if code.code == ErrorCode::DatabaseBusy =>
                        {
                            Err(rusqlite::Error::SqliteFailure(*code, text.clone()))
                        }
                        // One bad write must not fail the others: each gets a transaction, and an answer, of its own.
                        _ => commit(&self.connection, &self.keys, std::iter::once(&job.write)),
                    };
                    self.note(written.as_ref().err());
                    drop(job.done.send(written.map_err(|source| match source {
                        rusqlite::Error::QueryReturnedNoRows => Error::Changed,
                        source => Error::Write { operation, source },
                    })));
                }
            } else {
                self.counted.add(batch.len(), begun);
                self.note(None);
            }
            // A waiter that went away no longer wants to know.
            batch.drain(..).for_each(|job| drop(job.done.send(Ok(()))));
        }
        if let Err((_, error)) = self.connection.close() {
            tracing::warn!(error = crate::failure::chain(&error), "store not closed");
        }
    }

    /// Notes how the last write went. That there was no such row is the write's own affair.
    fn note(&self, failed: Option<&rusqlite::Error>) {
        if !matches!(failed, Some(rusqlite::Error::QueryReturnedNoRows)) {
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

/// Does the work in a thread of its own; a panic there is one here.
async fn in_thread(work: impl FnOnce() + Send + 'static) {
    let (ended, end) = oneshot::channel::<()>();
    let thread = std::thread::Builder::new().name("store".to_owned()).spawn(move || {
        let _ended = ended;
        work();
    });
    match thread {
        Ok(thread) => {
            // It sends nothing: it ends, and so does the thread.
            drop(end.await);
            if let Err(panic) = thread.join() {
                std::panic::resume_unwind(panic);
            }
        }
        Err(error) => {
            let advice =
                "the system has no thread for the store's writer: look at its limits (TasksMax, ulimit -u)";
            tracing::error!(error = crate::failure::chain(&error), advice, "store failed");
        }
    }
}

fn commit<'w>(
    connection: &Connection,
    keys: &Keyring,
    writes: impl Iterator<Item = &'w Write>,
) -> Result<(), rusqlite::Error> {
    run(connection, "BEGIN IMMEDIATE", [])?;
    let mut written = Ok(());
    for write in writes {
        written = written.and_then(|()| write.apply(connection, keys));
    }
    let written = written.and_then(|()| run(connection, "COMMIT", []).map(drop));
    if written.is_err() {
        // SQLite may have rolled back by itself (a full disk): then this fails, which is as good.
        drop(run(connection, "ROLLBACK", []));
    }
    written
}

#[cfg(test)]
mod tests {
    use super::in_thread;

    #[tokio::test]
    async fn a_panic_of_the_thread_is_not_taken_for_its_end() {
        tokio::spawn(in_thread(|| {})).await.unwrap();
        assert!(tokio::spawn(in_thread(|| panic!("on purpose"))).await.unwrap_err().is_panic());
    }
}
