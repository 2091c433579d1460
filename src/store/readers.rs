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
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
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
}

#[derive(Default)]
struct State {
    idle: Vec<Connection>,
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
        Ok(Self { path, state: Arc::new(Mutex::new(State { idle, ..State::default() })) })
    }

    fn read<T>(
        &self,
        operation: &'static str,
        query: impl FnOnce(&Connection) -> Result<T, rusqlite::Error>,
    ) -> Result<T, Error> {
        let idle = {
            let mut state = self.lock();
            if state.closed {
                return Err(Error::Closed);
            }
            state.idle.pop()
        };
        let failed = |source| Error::Read { operation, source };
        let connection = idle.map_or_else(|| file::reading(&self.path), Ok).map_err(failed)?;
        let answer = query(&connection).map_err(failed);
        let mut state = self.lock();
        if !state.closed && state.idle.len() < KEPT {
            state.idle.push(connection);
        }
        answer
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

    /// Ends the connections that nobody reads with; the others end with what they read.
    pub(super) async fn close(self) {
        let idle = {
            let mut state = self.lock();
            state.closed = true;
            std::mem::take(&mut state.idle)
        };
        file::aside(move || drop(idle)).await;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
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
