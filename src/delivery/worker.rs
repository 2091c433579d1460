//! A mailbox's worker: takes what is due, keeps the lanes busy, and leaves the mailbox alone while it is in trouble.

use super::attempt::{Context, Ended, Held};
use super::lanes::{Lanes, no_connection};
use super::outcome::{self, waits};
use super::upkeep::Mentioned;
use super::{policy, search};
use crate::clock;
use crate::failure::{Class, Failure};
use crate::health::patiently;
use crate::mailbox::{Mailbox, Trouble};
use crate::reports::Reporter;
use crate::routing::Routes;
use crate::store::{Due, QueueId, Store};
use crate::tokens::Tokens;
use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt};
use jiff::Timestamp;
use serde::Serialize;
use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, RwLock, watch};
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
    routes: Arc<RwLock<Routes>>,
    status: watch::Sender<Status>,
}

/// What a worker does right now.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Status {
    /// Attempts under way.
    pub sending: usize,
    /// The mailbox is left alone until then.
    pub paused_until: Option<Timestamp>,
    /// And nothing goes on before a person acts.
    pub needs_a_person: bool,
    /// How many recipients may still be sent to today; `None`: there is no limit.
    pub left_today: Option<u64>,
    /// How long mail waited for the mailbox's pace since the start.
    pub paced: Duration,
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
    /// When to reroute next what the mailbox cannot send.
    reroute_at: Timestamp,
    mentioned: Mentioned,
    /// Since when nothing but the pace keeps the next message from going.
    paced_since: Option<Timestamp>,
    /// See [`Status::paced`].
    paced: Duration,
    /// When the mailbox's token was last renewed, at the time of the pause.
    token_renewed_at: Option<Timestamp>,
}

/// An attempt that ended.
struct Finished {
    id: QueueId,
    /// How many recipients it was made for.
    recipients: u64,
    round: u32,
    held: Option<Held>,
    ended: Ended,
}

impl Worker {
    /// A worker for a mailbox; it does nothing before it is [run](Self::run).
    pub fn new(
        mailbox: Arc<Mailbox>,
        store: Store,
        tokens: Tokens,
        tls: Arc<ClientConfig>,
        routes: Arc<RwLock<Routes>>,
    ) -> Self {
        let store_trouble =
            Trouble::new("store failed", "store recovered", "delivery", mailbox.address().to_string());
        let timeouts = mailbox.config.delivery.timeouts();
        let unknown = Notify::new();
        let context =
            Context { mailbox, store, tokens, tls, timeouts, store_trouble, unknown, reporter: None };
        Self { context, routes, status: watch::Sender::default() }
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
        // What is unknown is looked for beside the sending: neither holds the other up.
        let search = Box::pin(search::run(&self.context, &soft));
        let work = Box::pin(async { tokio::join!(self.work(&soft), search) });
        tokio::select! {
            biased;
            () = hard.cancelled() => {}
            _ = work => {}
        }
    }

    async fn work(&self, soft: &CancellationToken) {
        let config = &self.context.mailbox.config.delivery;
        let arrivals = self.context.store.arrivals(self.context.mailbox.address());
        let mut woken = self.context.store.woken();
        let Some(pacing) = self.context.pacing(soft).await else {
            return;
        };
        let mut state = State {
            lanes: Lanes::new(config.connections, pacing),
            ready: VecDeque::new(),
            sending: HashSet::new(),
            idle: Vec::new(),
            attempts: FuturesUnordered::new(),
            goodbyes: FuturesUnordered::new(),
            look_at: Some(Timestamp::MIN),
            give_up_at: Timestamp::MIN,
            reroute_at: Timestamp::MIN,
            mentioned: Mentioned::new(&self.context, clock::now()),
            paced_since: None,
            paced: Duration::ZERO,
            token_renewed_at: None,
        };
        while !soft.is_cancelled() {
            self.notice_new_token(&mut state);
            self.give_up(&mut state).await;
            self.reroute(&mut state).await;
            self.context.mention_late(&mut state.mentioned, clock::now()).await;
            self.fill(&mut state).await;
            self.note_full_day(&mut state).await;
            self.report(&state);
            let wait = state.wait(clock::now(), config.retry_for).min(self.look_after(&state));
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
        // Each within the timeouts of its steps, which may be long ones.
        while let Some(finished) = patiently(state.attempts.next()).await {
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
            state.lanes.pacing.tick(now);
            if state.attempts.len() >= state.lanes.width(now) {
                return;
            }
            if state.lanes.open_at(now) > now {
                if state.lanes.is_open_but_for_pace(now) {
                    state.paced_since.get_or_insert(now);
                }
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
            let paced_since = state.paced_since.take();
            let Some(due) = state.ready.pop_front() else {
                return;
            };
            // It may have come only while the others waited.
            if let Some(since) = paced_since {
                state.paced += clock::until(since.max(due.tried_since), now);
            }
            let recipients = due.recipients.iter().filter(|recipient| waits(recipient)).count();
            let recipients = u64::try_from(recipients).unwrap_or(u64::MAX);
            state.lanes.pacing.note(now, recipients);
            state.sending.insert(due.id);
            let (held, round) = (state.idle.pop(), state.lanes.round());
            state.attempts.push(Box::pin(async move {
                let (held, ended) = self.context.attempt(&due, held).await;
                Finished { id: due.id, recipients, round, held, ended }
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
            store.next_due(mailbox, false).await?.map(|at| at.max(clock::after(now, LOOK_AGAIN)))
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
        let Finished { id, recipients, round, held, ended } = finished;
        let (now, mailbox) = (clock::now(), &self.context.mailbox);
        state.sending.remove(&id);
        state.idle.extend(held);
        state.look_at = Some(Timestamp::MIN);
        if matches!(ended, Ended::Settled(_) | Ended::Trouble { .. }) {
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
            Ended::Trouble { judgement, asked } => {
                if !asked {
                    state.lanes.pacing.take_back(recipients);
                }
                judgement
            }
            Ended::NoToken(failure) => {
                // The token's own keeper says so in the log.
                state.lanes.pacing.take_back(recipients);
                state.lanes.no_token(round, failure, now);
                state.pause();
                return;
            }
            Ended::Skipped => {
                state.lanes.pacing.take_back(recipients);
                if state.ready.is_empty() {
                    state.look_at = Some(clock::after(now, LOOK_AGAIN));
                }
                return;
            }
            Ended::Store(error) => {
                state.lanes.pacing.take_back(recipients);
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
            match self.context.store.resolve(due, decision.settlement.clone()).await {
                Ok(true) => self.context.log(due, &decision),
                // A person cancelled it, or had it tried anew, in this moment.
                Ok(false) => {}
                Err(error) => return self.context.store_failed(&error),
            }
        }
    }

    /// How long until mail is to be looked through for what waits too long.
    fn look_after(&self, state: &State<'_>) -> Duration {
        let config = &self.context.mailbox.config.delivery;
        let late = Some(config.delay_warning);
        let reroute = state.lanes.pause().map(|_| config.fallback_after);
        let waits = [late, reroute].into_iter().flatten().filter(|wait| !wait.is_zero());
        waits.map(policy::give_up_every).min().unwrap_or(LONGEST_SLEEP)
    }

    /// Gives the mail of a mailbox that cannot send, for a reason of its own, to another that can.
    async fn reroute(&self, state: &mut State<'_>) {
        let fallback_after = self.context.mailbox.config.delivery.fallback_after;
        let now = clock::now();
        let lasts = state.lanes.pause().is_some_and(|pause| {
            pause.failure.class.pauses_mailbox() && clock::until(pause.since, now) >= fallback_after
        });
        if fallback_after.is_zero() || !lasts || now < state.reroute_at {
            return;
        }
        state.reroute_at = clock::after(now, policy::give_up_every(fallback_after));
        // Held meanwhile: nothing goes to a mailbox that just leaves the configuration.
        let routes = self.routes.read().await;
        match self.context.reroute(&routes, &state.sending).await {
            Ok(0) => {}
            Ok(_) => {
                state.ready.clear();
                state.look_at = Some(Timestamp::MIN);
            }
            Err(error) => self.context.store_failed(&error),
        }
    }

    /// Says, where mail waits for that, that the day's recipients are used up. The first message that goes afterwards ends
    /// this trouble.
    async fn note_full_day(&self, state: &mut State<'_>) {
        let now = clock::now();
        let Some(until) = state.lanes.pacing.day_is_full_until() else {
            return;
        };
        let is_idle = state.attempts.is_empty() && state.lanes.pause().is_none();
        if !is_idle || state.look_at.is_none_or(|at| at > now) || self.look(state, now).await.is_err() {
            return;
        }
        if !state.ready.is_empty() {
            // They are read again when there is room.
            state.ready.clear();
            state.look_at = Some(clock::after(now, LONGEST_SLEEP));
            let limit = self.context.mailbox.config.delivery.recipients_per_day;
            let reply =
                format!("{limit} recipients in a day: the rest waits until {}", clock::to_second(until));
            let advice = "raise recipients_per_day if Microsoft 365 takes more, or spread the mail over more mailboxes";
            let failure = Failure::new(Class::Rate, "recipients_per_day", reply).advise(advice);
            self.context.mailbox.smtp.fail(&failure, now);
        }
    }

    fn report(&self, state: &State<'_>) {
        let now = clock::now();
        let full = state.lanes.pacing.day_is_full_until();
        let status = Status {
            sending: state.attempts.len(),
            paused_until: state.lanes.paused_until(now).max(full).filter(|&until| until > now),
            needs_a_person: state.lanes.pause().is_some_and(|pause| pause.failure.class.needs_a_person()),
            left_today: state.lanes.pacing.left_today(),
            paced: state.paced,
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
        self.paced_since = None;
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
