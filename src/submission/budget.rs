//! The memory that the messages of all sessions may take together.
//!
//! A session takes its share bit by bit, as its message arrives, so what a client only announces costs nothing. Past
//! the budget it reads no further until others are done. Sessions that wait while each holds half a message could wait
//! for each other for ever: so at any time one of them may go past the budget, up to the end of its message. The bound
//! is thus the budget and one message more. What every session may have anyway, so that a small mail never waits behind
//! large ones, comes on top.

use std::future::pending;
use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

/// Octets that each message may take beside the budget: most mails are smaller.
const SMALL: usize = 64 * 1024;

/// How many wait for something, for those to know who could make room.
#[derive(Default)]
pub(super) struct Pressure(watch::Sender<usize>);

/// Counts as one that waits, until dropped.
pub(super) struct Waiting<'p>(&'p Pressure);

impl Pressure {
    pub(super) fn wait(&self) -> Waiting<'_> {
        self.0.send_modify(|waiting| *waiting += 1);
        Waiting(self)
    }

    /// Until somebody waits.
    pub(super) async fn felt(&self) {
        if self.0.subscribe().wait_for(|waiting| *waiting > 0).await.is_err() {
            // The sender is `self`, and lives.
            pending().await
        }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.0.send_modify(|waiting| *waiting = waiting.saturating_sub(1));
    }
}

/// The budget, shared by all sessions.
pub(super) struct Budget {
    octets: Arc<Semaphore>,
    /// The right to go past the budget.
    overdraft: Arc<Semaphore>,
    /// Those who wait for memory.
    pub(super) pressure: Pressure,
}

impl Budget {
    pub(super) fn new(octets: u64) -> Arc<Self> {
        let octets = usize::try_from(octets).unwrap_or(usize::MAX).min(Semaphore::MAX_PERMITS);
        Arc::new(Self {
            octets: Arc::new(Semaphore::new(octets)),
            overdraft: Arc::new(Semaphore::new(1)),
            pressure: Pressure::default(),
        })
    }

    /// A share of nothing, for a message that begins.
    pub(super) fn share(self: &Arc<Self>) -> Share {
        Share { budget: Arc::clone(self), small: SMALL, held: None, overdraft: None }
    }
}

/// What one message holds of the budget; given back when dropped.
pub(super) struct Share {
    budget: Arc<Budget>,
    /// What is left of [`SMALL`].
    small: usize,
    held: Option<OwnedSemaphorePermit>,
    overdraft: Option<OwnedSemaphorePermit>,
}

impl Share {
    /// Takes more octets, and waits for them if need be.
    pub(super) async fn grow(&mut self, octets: usize) {
        let octets = if let Some(left) = self.small.checked_sub(octets) {
            self.small = left;
            0
        } else {
            octets - std::mem::take(&mut self.small)
        };
        // Whoever is past the budget needs nothing more. No message is as long as the largest u32.
        let Some(octets) = u32::try_from(octets).ok().filter(|_| self.overdraft.is_none()) else { return };
        if octets == 0 {
            return;
        }
        let budget = Arc::clone(&self.budget);
        match Arc::clone(&budget.octets).try_acquire_many_owned(octets) {
            Ok(more) => self.hold(more),
            Err(_) => {
                let _waiting = budget.pressure.wait();
                tokio::select! {
                    biased;
                    more = Arc::clone(&budget.octets).acquire_many_owned(octets) => {
                        if let Ok(more) = more {
                            self.hold(more);
                        }
                    }
                    overdraft = Arc::clone(&budget.overdraft).acquire_owned() => self.overdraft = overdraft.ok(),
                }
            }
        }
    }

    /// Gives everything back, of a message that is not kept.
    pub(super) fn release(&mut self) {
        self.held = None;
        self.overdraft = None;
    }

    fn hold(&mut self, more: OwnedSemaphorePermit) {
        match &mut self.held {
            Some(held) => held.merge(more),
            None => self.held = Some(more),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures_util::future::join_all;
    use proptest::prelude::*;
    use tokio::time::timeout;

    use super::*;

    /// The share of a message that is not small any more.
    fn large(budget: &Arc<Budget>) -> Share {
        Share { small: 0, ..budget.share() }
    }

    async fn waits(share: &mut Share, octets: usize) -> bool {
        timeout(Duration::from_millis(1), share.grow(octets)).await.is_err()
    }

    #[tokio::test(start_paused = true)]
    async fn one_may_go_past_the_budget_and_the_others_wait() {
        let budget = Budget::new(10);
        let (mut one, mut two, mut three) = (large(&budget), large(&budget), large(&budget));
        one.grow(6).await;
        two.grow(4).await;
        assert!(!waits(&mut one, 100).await, "the first past the budget");
        assert!(!waits(&mut one, 100).await, "as far as it needs");
        assert!(waits(&mut two, 1).await);
        assert!(waits(&mut three, 1).await);
        drop(one);
        assert!(!waits(&mut two, 1).await);
        assert!(!waits(&mut three, 5).await);
        assert!(!waits(&mut two, 1).await, "past the budget again");
        assert!(waits(&mut three, 1).await);
        two.release();
        assert!(!waits(&mut three, 1).await);
        drop((two, three));
        assert_eq!((budget.octets.available_permits(), budget.overdraft.available_permits()), (10, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn who_gives_up_waiting_keeps_nothing_and_is_not_waited_for() {
        let budget = Budget::new(10);
        let (mut one, mut two) = (large(&budget), large(&budget));
        one.grow(11).await;
        assert!(waits(&mut two, 11).await);
        assert!(timeout(Duration::from_secs(1), budget.pressure.felt()).await.is_err());
        drop((one, two));
        assert_eq!((budget.octets.available_permits(), budget.overdraft.available_permits()), (10, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_small_message_never_waits() {
        let budget = Budget::new(10);
        let (mut one, mut two, mut small) = (large(&budget), large(&budget), budget.share());
        one.grow(10).await;
        two.grow(1).await;
        assert!(!waits(&mut small, SMALL - 1).await);
        assert!(waits(&mut small, 2).await);
    }

    proptest! {
        /// Whatever many messages take, and in whatever steps: all come to their end.
        #[test]
        fn nobody_waits_for_ever(budget in 1u64..200, steps in proptest::collection::vec(
            proptest::collection::vec(1usize..50, 1..10), 1..20,
        )) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
            let done = runtime.block_on(async {
                let budget = Budget::new(budget);
                let messages = steps.into_iter().map(|steps| {
                    let mut share = large(&budget);
                    async move {
                        for octets in steps {
                            share.grow(octets).await;
                            tokio::task::yield_now().await;
                        }
                    }
                });
                timeout(Duration::from_secs(1), join_all(messages)).await
            });
            prop_assert!(done.is_ok());
        }
    }
}
