//! The connections that read.
//!
//! What a query of a few rows needs lies in memory almost always, and takes less time than to wake a thread for it: it runs
//! where it is asked. (A disk that hangs holds up everything then; without it no mail could be accepted or sent anyway.)
//! Whatever may take longer runs in a thread for such, of which a few read at a time.

use super::{Error, Store, file, sql};
use rusqlite::{Connection, Params, Row};
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use tokio::sync::oneshot;
use tokio::task::{coop, spawn_blocking};

/// So many longer queries run at a time.
const MOST: usize = 4;
/// So many connections stay open.
const KEPT: usize = 8;

type Job = Box<dyn FnOnce(&Readers) + Send>;

/// Connections that read; clones share them.
#[derive(Clone)]
pub(super) struct Readers {
    path: Arc<Path>,
    state: Arc<Mutex<State>>,
    /// The last query ended after the close.
    ended: Arc<Condvar>,
}

#[derive(Default)]
struct State {
    idle: Vec<Connection>,
    /// Connections that somebody reads with.
    lent: usize,
    /// Longer queries that nobody runs yet.
    jobs: VecDeque<Job>,
    /// Threads that run such.
    busy: usize,
    closed: bool,
}

impl std::fmt::Debug for Readers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Readers({})", self.path.display())
    }
}

impl Readers {
    /// Opens the first connection.
    pub(super) fn open(path: Arc<Path>) -> Result<Self, rusqlite::Error> {
        let idle = vec![file::reading(&path)?];
        let state = Arc::new(Mutex::new(State { idle, ..State::default() }));
        Ok(Self { path, state, ended: Arc::default() })
    }

    fn read<T>(
        &self,
        operation: &'static str,
        query: impl FnOnce(&Connection) -> Result<T, rusqlite::Error>,
    ) -> Result<T, Error> {
        let failed = |source| Error::Read { operation, source };
        let mut lent = self.lend()?;
        let connection = match lent.connection.take() {
            Some(connection) => connection,
            None => file::reading(&self.path).map_err(failed)?,
        };
        query(lent.connection.insert(connection)).map_err(failed)
    }

    fn lend(&self) -> Result<Lent<'_>, Error> {
        let mut state = self.lock();
        if state.closed {
            return Err(Error::Closed);
        }
        state.lent += 1;
        Ok(Lent { readers: self, connection: state.idle.pop() })
    }

    /// The same in a thread. It is handed over at once: who waits for the answer holds nothing that another needs.
    async fn read_aside<T: Send + 'static>(
        &self,
        operation: &'static str,
        query: impl FnOnce(&Connection) -> Result<T, rusqlite::Error> + Send + 'static,
    ) -> Result<T, Error> {
        let (done, answer) = oneshot::channel();
        self.hand_in(Box::new(move |readers| {
            // Nobody may want the answer any more.
            if !done.is_closed() {
                drop(done.send(catch_unwind(AssertUnwindSafe(|| readers.read(operation, query)))));
            }
        }));
        match answer.await {
            Ok(Ok(answer)) => answer,
            Ok(Err(panic)) => resume_unwind(panic),
            Err(_) => Err(Error::Closed),
        }
    }

    fn hand_in(&self, job: Job) {
        let mut state = self.lock();
        state.jobs.push_back(job);
        if state.busy < MOST {
            state.busy += 1;
            drop(state);
            let readers = self.clone();
            spawn_blocking(move || readers.work());
        }
    }

    fn work(&self) {
        while let Some(job) = self.next() {
            job(self);
        }
    }

    fn next(&self) -> Option<Job> {
        let mut state = self.lock();
        let job = state.jobs.pop_front();
        if job.is_none() {
            state.busy -= 1;
        }
        job
    }

    /// Ends the connections, once the queries under way have ended. (The last one to the file moves the log into it.)
    pub(super) async fn close(self) {
        file::aside(move || {
            let mut state = self.lock();
            state.closed = true;
            let idle = std::mem::take(&mut state.idle);
            while state.lent > 0 {
                state = self.ended.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            drop(state);
            drop(idle);
        })
        .await;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection that somebody reads with; given back when dropped.
struct Lent<'r> {
    readers: &'r Readers,
    connection: Option<Connection>,
}

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        let connection = self.connection.take();
        let mut state = self.readers.lock();
        if !state.closed && state.idle.len() < KEPT {
            state.idle.extend(connection);
        } else {
            drop(state);
            drop(connection);
            state = self.readers.lock();
        }
        state.lent -= 1;
        self.readers.ended.notify_all();
    }
}

impl Store {
    /// Runs a query of a few rows, or several of the same moment.
    ///
    /// # Errors
    /// The disk's.
    pub(super) async fn read<T>(
        &self,
        operation: &'static str,
        query: impl FnOnce(&Connection) -> Result<T, rusqlite::Error>,
    ) -> Result<T, Error> {
        // Who reads again and again lets others run in between.
        coop::consume_budget().await;
        self.readers.read(operation, query)
    }

    /// Runs a query of many rows or many bytes.
    ///
    /// # Errors
    /// The disk's.
    pub(super) async fn read_aside<T: Send + 'static>(
        &self,
        operation: &'static str,
        query: impl FnOnce(&Connection) -> Result<T, rusqlite::Error> + Send + 'static,
    ) -> Result<T, Error> {
        self.readers.read_aside(operation, query).await
    }

    /// All rows that a query finds; they may be many.
    pub(super) async fn rows<R>(
        &self,
        operation: &'static str,
        sql: &'static str,
        values: impl Params + Send + 'static,
    ) -> Result<Vec<R>, Error>
    where
        R: for<'r> TryFrom<&'r Row<'r>, Error = rusqlite::Error> + Send + 'static,
    {
        self.read_aside(operation, move |connection| sql::rows(connection, sql, values)).await
    }

    /// The one row of a query that looks at many.
    pub(super) async fn sum<R>(
        &self,
        operation: &'static str,
        sql: &'static str,
        values: impl Params + Send + 'static,
    ) -> Result<R, Error>
    where
        R: for<'r> TryFrom<&'r Row<'r>, Error = rusqlite::Error> + Send + 'static,
    {
        self.read_aside(operation, move |connection| sql::one(connection, sql, values)).await
    }

    /// The first row that a query finds, if there is one.
    pub(super) async fn first<R>(
        &self,
        operation: &'static str,
        sql: &'static str,
        values: impl Params,
    ) -> Result<Option<R>, Error>
    where
        R: for<'r> TryFrom<&'r Row<'r>, Error = rusqlite::Error>,
    {
        self.read(operation, |connection| sql::first(connection, sql, values)).await
    }

    /// The one row that a query always has.
    pub(super) async fn one<R>(
        &self,
        operation: &'static str,
        sql: &'static str,
        values: impl Params,
    ) -> Result<R, Error>
    where
        R: for<'r> TryFrom<&'r Row<'r>, Error = rusqlite::Error>,
    {
        self.read(operation, |connection| sql::one(connection, sql, values)).await
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Config, Error, Store};
    use std::time::Duration;

    const LONG: &str = "WITH RECURSIVE n (x) AS (VALUES (1) UNION ALL SELECT x + 1 FROM n WHERE x < 2000000) \
                        SELECT count(*) FROM n";

    #[tokio::test]
    async fn who_closes_the_store_waits_for_what_is_read_and_leaves_no_log() {
        let folder = tempfile::tempdir().unwrap();
        let config = Config::at(folder.path().join("relay.db"));
        let (store, writer) = Store::open(&config).await.unwrap();
        let writing = tokio::spawn(writer.run());
        store.probe().await.unwrap();
        let reader = store.clone();
        let reading = tokio::spawn(async move { reader.sum::<(i64,)>("a long query", LONG, ()).await });
        while store.readers.lock().lent == 0 && !reading.is_finished() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        store.clone().close().await;
        writing.await.unwrap();
        assert!(!folder.path().join("relay.db-wal").exists());
        assert_eq!(reading.await.unwrap().unwrap(), (2_000_000,));
        assert!(matches!(store.probe().await, Err(Error::Closed)));
    }

    #[tokio::test]
    async fn a_query_that_panics_takes_nothing_along() {
        let folder = tempfile::tempdir().unwrap();
        let (store, _writer) = Store::open(&Config::at(folder.path().join("relay.db"))).await.unwrap();
        for _ in 0..super::MOST * 2 {
            let reader = store.clone();
            let read = async move { reader.read_aside::<()>("nothing", |_| panic!("on purpose")).await };
            assert!(tokio::spawn(read).await.unwrap_err().is_panic());
        }
        assert_eq!(store.sum::<(i64,)>("messages", "SELECT count(*) FROM message", ()).await.unwrap(), (0,));
        store.close().await;
    }
}
