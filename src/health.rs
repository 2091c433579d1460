//! Whether every long-lived task still works, for systemd's watchdog (sd_watchdog_enabled(3)).
//!
//! A task is seen whenever the runtime polls it. Every loop waits by timers and within time limits, so each is polled again
//! within a time that is known: one that is not hangs, on something that never comes, and so does one whose poll does not
//! return. Trouble with a mailbox, with Microsoft or with Odoo is none of this: it ends in time limits, which go on.
//! Where a task rightly waits for long (for a client, for the server's news, for a time of day), it waits
//! [`patiently`].

use sd_notify::NotifyState;
use std::fmt;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

/// A task that waits patiently is seen this often.
pub const SEEN_EVERY: Duration = Duration::from_secs(20);
/// So long a task may be silent that waits patiently, for a store that syncs to its disk, or for a single step on the
/// network: each of these has a time limit below.
pub const SILENCE: Duration = Duration::from_secs(10 * 60);
/// So long a task may keep a thread of the runtime for itself.
const BLOCKED: Duration = Duration::from_secs(60);

/// All tasks that are watched; clones share them.
#[derive(Clone, Debug, Default)]
pub struct Health(Arc<Mutex<Vec<Arc<Pulse>>>>);

/// When one task was last seen.
#[derive(Debug)]
struct Pulse {
    task: &'static str,
    /// The mailbox that it is for; empty: all.
    mailbox: String,
    allowed: Duration,
    begun: Instant,
    /// Milliseconds after `begun`.
    seen: AtomicU64,
    /// Whether it runs right now.
    busy: AtomicBool,
}

impl Pulse {
    fn beat(&self, busy: bool) {
        let millis = u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.seen.store(millis, Ordering::Relaxed);
        self.busy.store(busy, Ordering::Relaxed);
    }

    fn silence(&self, now: Instant) -> Option<Duration> {
        let seen = self.begun + Duration::from_millis(self.seen.load(Ordering::Relaxed));
        let silent = now.saturating_duration_since(seen);
        let allowed = if self.busy.load(Ordering::Relaxed) { BLOCKED } else { self.allowed };
        (silent > allowed).then_some(silent)
    }
}

/// A task that hangs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hanging {
    /// Its name.
    pub task: &'static str,
    /// The mailbox that it is for; empty: all.
    pub mailbox: String,
    /// How long nothing was seen of it.
    pub silent: Duration,
}

impl Health {
    /// The task, watched from now on until it ends; it may be silent for so long.
    pub fn watch<F: Future>(
        &self,
        task: &'static str,
        mailbox: impl fmt::Display,
        allowed: Duration,
        future: F,
    ) -> Watched<F> {
        let pulse = Arc::new(Pulse {
            task,
            mailbox: mailbox.to_string(),
            allowed,
            begun: Instant::now(),
            seen: AtomicU64::new(0),
            busy: AtomicBool::new(false),
        });
        self.pulses().push(pulse.clone());
        Watched { future: Box::pin(future), pulse, health: self.clone() }
    }

    /// The tasks that hang.
    pub fn hanging(&self, now: Instant) -> Vec<Hanging> {
        let hanging = |pulse: &Arc<Pulse>| {
            let silent = pulse.silence(now)?;
            Some(Hanging { task: pulse.task, mailbox: pulse.mailbox.clone(), silent })
        };
        self.pulses().iter().filter_map(hanging).collect()
    }

    fn pulses(&self) -> std::sync::MutexGuard<'_, Vec<Arc<Pulse>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A task that is watched.
#[derive(Debug)]
pub struct Watched<F> {
    future: Pin<Box<F>>,
    pulse: Arc<Pulse>,
    health: Health,
}

impl<F: Future> Future for Watched<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        self.pulse.beat(true);
        let polled = self.future.as_mut().poll(context);
        self.pulse.beat(false);
        polled
    }
}

impl<F> Drop for Watched<F> {
    fn drop(&mut self) {
        self.health.pulses().retain(|pulse| !Arc::ptr_eq(pulse, &self.pulse));
    }
}

/// Waits for something that may rightly take long, or has a time limit of its own: meanwhile the task is seen.
pub async fn patiently<T>(wait: impl Future<Output = T>) -> T {
    let mut wait = std::pin::pin!(wait);
    loop {
        tokio::select! {
            biased;
            done = wait.as_mut() => return done,
            () = sleep(SEEN_EVERY) => {}
        }
    }
}

/// Feeds the watchdog, where there is one, while no task hangs. systemd restarts a service whose watchdog is not fed for
/// `WatchdogSec=`.
pub async fn feed(health: Health, soft: CancellationToken) {
    let Some(within) = sd_notify::watchdog_enabled() else {
        return patiently(soft.cancelled()).await;
    };
    let feed = || drop(sd_notify::notify(&[NotifyState::Watchdog]));
    feed_within(within, &health, &soft, feed).await;
}

async fn feed_within(within: Duration, health: &Health, soft: &CancellationToken, mut feed: impl FnMut()) {
    let mut said: Vec<Hanging> = Vec::new();
    loop {
        let hanging = health.hanging(Instant::now());
        if hanging.is_empty() {
            feed();
        }
        note(&mut said, hanging);
        tokio::select! {
            () = soft.cancelled() => return,
            () = sleep((within / 3).clamp(Duration::from_millis(10), SEEN_EVERY)) => {}
        }
    }
}

/// Says once of each task that it hangs, and that it does so no more.
fn note(said: &mut Vec<Hanging>, hanging: Vec<Hanging>) {
    let same = |one: &Hanging, other: &Hanging| one.task == other.task && one.mailbox == other.mailbox;
    for Hanging { task, mailbox, silent } in
        hanging.iter().filter(|hanging| !said.iter().any(|known| same(known, hanging)))
    {
        let advice = "a defect, or a disk that does not answer: the watchdog is no longer fed, so that systemd restarts \
                      the relay";
        tracing::error!(task, mailbox, seconds = silent.as_secs(), advice, "task hangs");
    }
    for Hanging { task, mailbox, .. } in
        said.iter().filter(|known| !hanging.iter().any(|hanging| same(known, hanging)))
    {
        tracing::info!(task, mailbox, "task works again");
    }
    *said = hanging;
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::pending;

    fn names(health: &Health) -> Vec<(&'static str, String)> {
        health.hanging(Instant::now()).into_iter().map(|hanging| (hanging.task, hanging.mailbox)).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_waits_for_what_never_comes_hangs_and_one_that_loops_does_not() {
        let health = Health::default();
        let looping = async {
            loop {
                sleep(Duration::from_secs(60)).await;
            }
        };
        tokio::spawn(health.watch("fetch", "a@x.test", SILENCE, looping));
        tokio::spawn(health.watch("submission", "", SILENCE, patiently(pending::<()>())));
        let (release, hung) = tokio::sync::oneshot::channel::<()>();
        let worker = tokio::spawn(health.watch("delivery", "b@x.test", SILENCE, hung));
        sleep(SILENCE - Duration::from_secs(1)).await;
        assert_eq!(names(&health), []);
        sleep(Duration::from_secs(10)).await;
        assert_eq!(names(&health), [("delivery", "b@x.test".to_owned())]);
        // It may come back, and one that has ended is not missed.
        release.send(()).unwrap();
        worker.await.unwrap().unwrap();
        sleep(SILENCE * 2).await;
        assert_eq!(names(&health), []);
    }

    #[tokio::test(start_paused = true)]
    async fn the_watchdog_is_fed_in_time_until_a_task_hangs_and_again_when_it_goes_on() {
        let (health, soft, fed) = (Health::default(), CancellationToken::new(), AtomicU64::new(0));
        let (release, hung) = tokio::sync::oneshot::channel::<()>();
        tokio::spawn(health.watch("fetch", "a@x.test", SILENCE, hung));
        let within = Duration::from_secs(120);
        let feeding = feed_within(within, &health, &soft, || {
            fed.fetch_add(1, Ordering::Relaxed);
        });
        let watching = async {
            let mut seen = 0;
            let mut more = || {
                let now = fed.load(Ordering::Relaxed);
                std::mem::replace(&mut seen, now) < now
            };
            for _ in 0..5 {
                sleep(within / 2).await;
                assert!(more());
            }
            sleep(SILENCE).await;
            more();
            sleep(SILENCE).await;
            assert!(!more());
            release.send(()).unwrap();
            sleep(within / 2).await;
            assert!(more());
            soft.cancel();
        };
        tokio::join!(feeding, watching);
    }

    #[tokio::test]
    async fn a_task_that_keeps_its_thread_hangs() {
        let health = Health::default();
        let (held, hold) = std::sync::mpsc::channel::<()>();
        let (begun, begins) = std::sync::mpsc::channel();
        let task = health.watch("reports", "", SILENCE, async move {
            begun.send(()).unwrap();
            hold.recv().unwrap_err();
        });
        let handle = tokio::runtime::Handle::current();
        let thread = std::thread::spawn(move || handle.block_on(task));
        begins.recv().unwrap();
        assert_eq!(health.hanging(Instant::now()), []);
        let later = Instant::now() + BLOCKED + Duration::from_secs(1);
        assert_eq!(health.hanging(later).first().map(|hanging| hanging.task), Some("reports"));
        drop(held);
        thread.join().unwrap();
        assert_eq!(health.hanging(later), []);
    }
}
