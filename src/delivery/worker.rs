//! A mailbox's worker: takes what is due, keeps the lanes busy, and leaves the mailbox alone while it is in trouble.

use super::attempt::{Context, Ended, Held};
use super::lanes::{Lanes, no_connection};
use super::{outcome, policy};
use crate::clock;
use crate::mailbox::{Mailbox, Trouble};
use crate::reports::Reporter;
use crate::store::{Due, QueueId, Store};
use crate::tokens::Tokens;
use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt};
use jiff::Timestamp;
use serde::Serialize;
use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::sleep;
use tokio_rustls::rustls::ClientConfig;
use tokio_util::sync::CancellationToken;

/// So many due messages are read from the store at a time: their envelopes, not their contents.
const BATCH: u32 = 64;
/// An idle connection is closed after so long; Exchange drops them after about five minutes.
const IDLE: Duration = Duration::from_secs(60);
/// A message that turned out not to be sendable now is not looked at again at once.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// While a mailbox is paused, its token is looked at so often; that costs nothing.
const LOOK_FOR_TOKEN: Duration = Duration::from_secs(2);
/// The worker looks at the wall clock at least so often, since that may be set while it sleeps.
const LONGEST_SLEEP: Duration = Duration::from_secs(60);

/// Delivers the mail of one mailbox.
pub struct Worker {
    context: Context,
    status: watch::Sender<Status>,
}

/// What a worker does right now.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Status {
    /// Attempts under way.
    pub sending: usize,
    /// The mailbox is left alone until then.
    pub paused_until: Option<Timestamp>,
}

/// The worker's state between two waits.
struct State<'a> {
    lanes: Lanes,
    /// Read from the store, longest due first.
    ready: VecDeque<Due>,
    /// Messages of which an attempt is under way.
    sending: HashSet<QueueId>,
    /// Open connections that nobody uses, newest last.
    idle: Vec<Held>,
    attempts: FuturesUnordered<BoxFuture<'a, Finished>>,
    goodbyes: FuturesUnordered<BoxFuture<'a, ()>>,
    /// When to look into the store next; `None`: nothing waits there.
    look_at: Option<Timestamp>,
    /// When to look next for mail to give up.
    give_up_at: Timestamp,
    /// When the mailbox's token was last renewed, at the time of the pause.
    token_renewed_at: Option<Timestamp>,
}

/// An attempt that ended.
struct Finished {
    id: QueueId,
    round: u32,
    held: Option<Held>,
    ended: Ended,
}

impl Worker {
    /// A worker for a mailbox; it does nothing before it is [run](Self::run).
    pub fn new(mailbox: Arc<Mailbox>, store: Store, tokens: Tokens, tls: Arc<ClientConfig>) -> Self {
        let store_trouble =
            Trouble::new("store failed", "store recovered", "delivery", mailbox.address().to_string());
        let timeouts = mailbox.config.delivery.timeouts();
        let context = Context { mailbox, store, tokens, tls, timeouts, store_trouble, reporter: None };
        Self { context, status: watch::Sender::default() }
    }

    /// From now on it has failures reported.
    pub fn report_with(&mut self, reporter: Reporter) {
        self.context.reporter = Some(reporter);
    }

    /// What it does, now and later.
    pub fn status(&self) -> watch::Receiver<Status> {
        self.status.subscribe()
    }

    /// Delivers until `soft` is cancelled; then finishes the messages in hand, each within its timeouts, and closes the
    /// connections. `hard` drops everything at once: what was in hand has an unknown outcome at the next start.
    pub async fn run(self, soft: CancellationToken, hard: CancellationToken) {
        let work = Box::pin(self.work(&soft));
        tokio::select! {
            biased;
            () = hard.cancelled() => {}
            () = work => {}
        }
    }

    async fn work(&self, soft: &CancellationToken) {
        let config = &self.context.mailbox.config.delivery;
        let arrivals = self.context.store.arrivals(self.context.mailbox.address());
        let mut woken = self.context.store.woken();
        let mut state = State {
            lanes: Lanes::new(config.connections, config.messages_per_minute),
            ready: VecDeque::new(),
            sending: HashSet::new(),
            idle: Vec::new(),
            attempts: FuturesUnordered::new(),
            goodbyes: FuturesUnordered::new(),
            look_at: Some(Timestamp::MIN),
            give_up_at: Timestamp::MIN,
            token_renewed_at: None,
        };
        while !soft.is_cancelled() {
            self.notice_new_token(&mut state);
            self.give_up(&mut state).await;
            self.fill(&mut state).await;
            self.report(&state);
            let wait = state.wait(clock::now(), config.retry_for);
            tokio::select! {
                () = soft.cancelled() => {}
                Some(finished) = state.attempts.next() => self.finish(&mut state, finished),
                Some(()) = state.goodbyes.next() => {}
                () = arrivals.notified() => state.look_at = Some(Timestamp::MIN),
                Ok(()) = woken.changed() => {
                    state.look_at = Some(Timestamp::MIN);
                    state.lanes.resume();
                }
                () = sleep(wait) => {}
            }
        }
        while let Some(finished) = state.attempts.next().await {
            self.finish(&mut state, finished);
            self.report(&state);
        }
        state.close(|_| true);
        while state.goodbyes.next().await.is_some() {}
    }

    /// Begins as many attempts as may be under way.
    async fn fill<'a>(&'a self, state: &mut State<'a>) {
        loop {
            let now = clock::now();
            if state.attempts.len() >= state.lanes.width(now) || state.lanes.open_at(now) > now {
                return;
            }
            if state.ready.is_empty() && state.look_at.is_some_and(|at| at <= now) {
                match self.look(state, now).await {
                    Ok(()) => {}
                    Err(error) => {
                        self.context.store_failed(&error);
                        state.lanes.store_failed(now);
                        return;
                    }
                }
            }
            let Some(due) = state.ready.pop_front() else {
                return;
            };
            state.lanes.pacing.note(now);
            state.sending.insert(due.id);
            let (held, round) = (state.idle.pop(), state.lanes.round());
            state.attempts.push(Box::pin(async move {
                let (held, ended) = self.context.attempt(&due, held).await;
                Finished { id: due.id, round, held, ended }
            }));
        }
    }

    /// Reads what is due, and when to look again.
    async fn look(&self, state: &mut State<'_>, now: Timestamp) -> Result<(), crate::store::Error> {
        let (store, mailbox) = (&self.context.store, self.context.mailbox.address());
        let due = store.due(mailbox, now, BATCH).await?;
        let is_all = u32::try_from(due.len()).unwrap_or(u32::MAX) < BATCH;
        state.ready = due.into_iter().filter(|due| !state.sending.contains(&due.id)).collect();
        state.look_at = if !state.ready.is_empty() {
            // The last of them, once taken, makes us look again.
            Some(Timestamp::MIN)
        } else if is_all {
            // What is due already is in hand, or was just taken from us.
            store.next_due(mailbox).await?.map(|at| at.max(clock::after(now, LOOK_AGAIN)))
        } else {
            Some(clock::after(now, LOOK_AGAIN))
        };
        // That it can be read says nothing about writing, which the next attempt does first.
        if state.ready.is_empty() && state.sending.is_empty() {
            state.lanes.store_works();
            self.context.store_trouble.well();
        }
        Ok(())
    }

    /// What the end of an attempt means for the mailbox.
    fn finish(&self, state: &mut State<'_>, finished: Finished) {
        let Finished { id, round, held, ended } = finished;
        let (now, mailbox) = (clock::now(), &self.context.mailbox);
        state.sending.remove(&id);
        state.idle.extend(held);
        state.look_at = Some(Timestamp::MIN);
        if matches!(ended, Ended::Settled(_) | Ended::Trouble(_)) {
            state.lanes.store_works();
        }
        let judgement = match ended {
            Ended::Settled(None) => {
                if state.lanes.works(round) {
                    mailbox.smtp.well();
                }
                return;
            }
            // The message has its schedule; a mailbox that was in trouble still is.
            Ended::Settled(Some(failure)) => match state.lanes.pause() {
                Some(_) => no_connection(failure),
                None => return,
            },
            Ended::Trouble(judgement) => judgement,
            Ended::NoToken(failure) => {
                // The token's own keeper says so in the log.
                state.lanes.pacing.take_back();
                state.lanes.no_token(round, failure, now);
                state.pause();
                return;
            }
            Ended::Skipped => {
                state.lanes.pacing.take_back();
                if state.ready.is_empty() {
                    state.look_at = Some(clock::after(now, LOOK_AGAIN));
                }
                return;
            }
            Ended::Store(error) => {
                state.lanes.pacing.take_back();
                self.context.store_failed(&error);
                state.lanes.store_failed(now);
                return;
            }
        };
        let failure = state.lanes.trouble(round, judgement, now, rand::random());
        mailbox.smtp.fail(&failure, now);
        state.token_renewed_at = self.token_renewed_at();
        state.pause();
    }

    /// A new token, perhaps of a new consent, may be what a pause waits for.
    fn notice_new_token(&self, state: &mut State<'_>) {
        let renewed_at = self.token_renewed_at();
        if state.lanes.pause().is_some() && renewed_at != state.token_renewed_at {
            state.token_renewed_at = renewed_at;
            state.lanes.resume();
        }
    }

    fn token_renewed_at(&self) -> Option<Timestamp> {
        self.context.tokens.state(self.context.mailbox.address())?.refreshed_at
    }

    /// Gives up what has waited for too long in a mailbox that does not work.
    async fn give_up(&self, state: &mut State<'_>) {
        let retry_for = self.context.mailbox.config.delivery.retry_for;
        let now = clock::now();
        let Some(pause) = state.lanes.pause().filter(|_| now >= state.give_up_at) else {
            return;
        };
        let Some(accepted_by) = policy::give_up_before(pause.since, now, retry_for) else {
            return;
        };
        let mailbox = self.context.mailbox.address();
        let old = match self.context.store.accepted_by(mailbox, accepted_by, BATCH).await {
            Ok(old) => old,
            Err(error) => return self.context.store_failed(&error),
        };
        // A full batch may not have been all of them: the next one comes with the next look.
        if u32::try_from(old.len()).unwrap_or(u32::MAX) < BATCH {
            state.give_up_at = clock::after(now, policy::give_up_every(retry_for));
        }
        for due in old.iter().filter(|due| !state.sending.contains(&due.id)) {
            let mut decision = outcome::give_up(due, &pause.failure, now);
            self.context.report(due, &mut decision).await;
            self.context.settle(&decision.settlement).await;
            self.context.log(due, &decision);
        }
    }

    fn report(&self, state: &State<'_>) {
        let now = clock::now();
        let status = Status {
            sending: state.attempts.len(),
            paused_until: state.lanes.pause().map(|pause| pause.until).filter(|&until| until > now),
        };
        self.status.send_if_modified(|before| {
            let changed = *before != status;
            *before = status;
            changed
        });
    }
}

impl State<'_> {
    /// How long nothing needs to be done; closes what was idle for too long.
    fn wait(&mut self, now: Timestamp, retry_for: Duration) -> Duration {
        self.close(|held| held.connection.used_at.elapsed() >= IDLE);
        let mut wait = LONGEST_SLEEP;
        if let Some(used_at) = self.idle.iter().map(|held| held.connection.used_at).min() {
            wait = wait.min(IDLE.saturating_sub(used_at.elapsed()));
        }
        if self.lanes.pause().is_some() {
            wait = wait.min(LOOK_FOR_TOKEN).min(policy::give_up_every(retry_for));
        }
        let next = if self.ready.is_empty() { self.look_at } else { Some(now) };
        if let Some(next) = next.filter(|_| self.attempts.len() < self.lanes.width(now)) {
            wait = wait.min(clock::until(now, next.max(self.lanes.open_at(now))));
        }
        // Never spin, whatever the clocks say.
        wait.max(Duration::from_millis(1))
    }

    /// A paused mailbox gets no connection held open, and what is due is read again afterwards.
    fn pause(&mut self) {
        self.ready.clear();
        self.close(|_| true);
    }

    /// Takes leave on those idle connections.
    fn close(&mut self, which: impl Fn(&Held) -> bool) {
        for held in self.idle.extract_if(.., |held| which(held)) {
            self.goodbyes.push(Box::pin(held.connection.quit()));
        }
    }
}

#[cfg(test)]
#[path = "worker_tests.rs"]
mod tests;
