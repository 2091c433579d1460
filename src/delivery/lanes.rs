//! How much of a mailbox may be used right now: its pause, its connections, its pace. Pure.

use super::pacing::Pacing;
use super::policy;
use crate::clock;
use crate::failure::{Class, Failure};
use crate::microsoft::smtp_replies::{Judgement, Special};
use jiff::Timestamp;
use std::time::Duration;

/// How often a token is asked for again where there is none. Asking is cheap: the token's own keeper knows when to try.
const TOKEN_WAIT: Duration = Duration::from_secs(2);
/// A pause that a person may have ended by what they did still lasts for so long, lest a flood of changes becomes a
/// flood of sign-ins.
const SHORTEST_PAUSE: Duration = Duration::from_secs(10);
/// Of the connections given up for too many at a time, one is tried again whenever so much time has passed without
/// another complaint.
const RESTORE_EVERY: u64 = 20 * 60;

/// A store that fails is left alone for so long at most.
const LONGEST_STORE_WAIT: Duration = Duration::from_secs(30);

/// The lanes of one mailbox.
#[derive(Debug)]
pub(super) struct Lanes {
    connections: u32,
    /// Given up since the service said, then, that there are too many.
    fewer: u32,
    lowered_at: Timestamp,
    pub(super) pacing: Pacing,
    pause: Option<Pause>,
    /// Counts the pauses: an attempt from before a pause says nothing about the time after it.
    round: u32,
    store_failures: u32,
    store_until: Timestamp,
}

/// A mailbox is left alone; once that is over a single attempt finds out whether it works again.
#[derive(Clone, Debug)]
pub(super) struct Pause {
    /// When the trouble began.
    pub(super) since: Timestamp,
    /// When this pause did.
    began: Timestamp,
    pub(super) until: Timestamp,
    /// How many there were in a row, of this class.
    pauses: u32,
    /// Why.
    pub(super) failure: Failure,
}

impl Lanes {
    pub(super) fn new(connections: u32, pacing: Pacing) -> Self {
        Self {
            connections: connections.max(1),
            fewer: 0,
            lowered_at: Timestamp::MIN,
            pacing,
            pause: None,
            round: 0,
            store_failures: 0,
            store_until: Timestamp::MIN,
        }
    }

    pub(super) fn round(&self) -> u32 {
        self.round
    }

    pub(super) fn pause(&self) -> Option<&Pause> {
        self.pause.as_ref()
    }

    /// How many attempts may be under way at a time, once nothing else holds them up.
    pub(super) fn width(&self, now: Timestamp) -> usize {
        let width = if self.pause.is_some() { 1 } else { self.wanted(now) };
        usize::try_from(width).unwrap_or(1)
    }

    /// How many connections the service is thought to stand.
    fn wanted(&self, now: Timestamp) -> u32 {
        let back = clock::until(self.lowered_at, now).as_secs() / RESTORE_EVERY;
        let fewer = self.fewer.saturating_sub(u32::try_from(back).unwrap_or(u32::MAX));
        self.connections.saturating_sub(fewer).max(1)
    }

    /// When the next attempt may begin, but for the number of those under way.
    pub(super) fn open_at(&self, now: Timestamp) -> Timestamp {
        let paused = self.paused_until(now).unwrap_or(now);
        // Nobody waits longer than that, whatever the clock did.
        let store_until = self.store_until.min(clock::after(now, LONGEST_STORE_WAIT));
        self.pacing.can_send_at(now).max(paused).max(store_until)
    }

    /// Whether nothing but the pace keeps the next attempt from beginning.
    pub(super) fn is_open_but_for_pace(&self, now: Timestamp) -> bool {
        self.paused_until(now).is_none_or(|until| until <= now) && self.store_until <= now
    }

    /// Until when the mailbox is left alone, if it is. A pause that begins only later, by a clock that was set back since,
    /// is over.
    pub(super) fn paused_until(&self, now: Timestamp) -> Option<Timestamp> {
        self.pause.as_ref().filter(|pause| pause.began <= now).map(|pause| pause.until)
    }

    /// An attempt of `round` got through to the service. Returns whether that ends the trouble.
    pub(super) fn works(&mut self, round: u32) -> bool {
        let ends = round == self.round;
        if ends {
            self.pause = None;
        }
        ends
    }

    /// An attempt of `round` met the mailbox's trouble: pauses it. Returns the failure as it is to be reported.
    pub(super) fn trouble(
        &mut self,
        round: u32,
        judgement: Judgement,
        now: Timestamp,
        random: f64,
    ) -> Failure {
        let Judgement { failure, special } = judgement;
        let since = self.pause.as_ref().map_or(now, |pause| pause.since);
        let failure = policy::escalated(failure, special, since, now);
        if round != self.round {
            return failure;
        }
        let before = self.pause.as_ref().filter(|pause| pause.failure.class == failure.class);
        let pauses = before.map_or(0, |pause| pause.pauses).saturating_add(1);
        let wait = policy::pause_for(failure.class, pauses, failure.retry_after, random);
        if special == Special::FewerConnections {
            let fewer = self.wanted(now).saturating_sub(1).max(1);
            self.fewer = self.connections.saturating_sub(fewer);
            self.lowered_at = now;
        }
        self.begin(Pause {
            since,
            began: now,
            until: clock::after(now, wait),
            pauses,
            failure: failure.clone(),
        });
        failure
    }

    /// There is no token: it is asked for again in a moment. A trouble from before goes on.
    pub(super) fn no_token(&mut self, round: u32, failure: Failure, now: Timestamp) {
        if round == self.round {
            let (since, pauses) = self.pause.as_ref().map_or((now, 0), |pause| (pause.since, pause.pauses));
            self.begin(Pause { since, began: now, until: clock::after(now, TOKEN_WAIT), pauses, failure });
        }
    }

    fn begin(&mut self, pause: Pause) {
        self.pause = Some(pause);
        self.round = self.round.wrapping_add(1);
    }

    /// Somebody did something, perhaps what a pause waits for.
    pub(super) fn resume(&mut self) {
        if let Some(pause) = self.pause.as_mut().filter(|pause| pause.failure.class.needs_a_person()) {
            pause.until = pause.until.min(clock::after(pause.began, SHORTEST_PAUSE));
        }
    }

    /// The store failed: it is left alone for 1 s, 2 s, 4 s, … 30 s.
    pub(super) fn store_failed(&mut self, now: Timestamp) {
        let wait = Duration::from_secs(2u64.pow(self.store_failures.min(5))).min(LONGEST_STORE_WAIT);
        self.store_failures = self.store_failures.saturating_add(1);
        self.store_until = clock::after(now, wait);
    }

    /// The store works.
    pub(super) fn store_works(&mut self) {
        self.store_failures = 0;
    }
}

/// What a connection that is lost in the middle of a message says about the mailbox.
pub(super) fn no_connection(failure: Failure) -> Judgement {
    Judgement { failure: Failure { class: Class::Transient, ..failure }, special: Special::No }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: u64) -> Timestamp {
        clock::after(Timestamp::from_second(1_000_000).unwrap(), Duration::from_secs(second))
    }

    fn of(connections: u32) -> Lanes {
        Lanes::new(connections, Pacing::new(0, 0))
    }

    fn judgement(class: Class, special: Special) -> Judgement {
        Judgement { failure: Failure::new(class, "code", "reply"), special }
    }

    #[test]
    fn a_pause_ends_with_a_single_attempt() {
        let mut lanes = of(3);
        assert_eq!((lanes.width(at(0)), lanes.open_at(at(0))), (3, at(0)));
        let before = lanes.round();
        lanes.trouble(before, judgement(Class::Transient, Special::No), at(0), 0.5);
        assert_eq!((lanes.width(at(0)), lanes.open_at(at(0))), (1, at(5)));
        assert!(!lanes.works(before), "an attempt from before says nothing");
        lanes.trouble(before, judgement(Class::Administrator, Special::No), at(1), 0.5);
        assert_eq!(lanes.open_at(at(1)), at(5), "nor does a failed one");
        lanes.trouble(lanes.round(), judgement(Class::Transient, Special::No), at(5), 0.5);
        assert_eq!(lanes.open_at(at(5)), at(15), "the second pause is longer");
        assert_eq!(lanes.pause().unwrap().since, at(0));
        lanes.trouble(lanes.round(), judgement(Class::Administrator, Special::No), at(15), 0.5);
        assert_eq!(lanes.open_at(at(15)), at(315), "another class counts anew");
        assert!(lanes.works(lanes.round()));
        assert_eq!((lanes.width(at(16)), lanes.open_at(at(16))), (3, at(16)));
    }

    #[test]
    fn too_many_connections_become_fewer_and_come_back_one_by_one() {
        let mut lanes = of(3);
        for width in [2, 1, 1] {
            lanes.trouble(lanes.round(), judgement(Class::Rate, Special::FewerConnections), at(0), 0.5);
            lanes.works(lanes.round());
            assert_eq!(lanes.width(at(100)), width);
        }
        let widths = [1199, 1200, 2399, 2400, 9999].map(|second| lanes.width(at(second)));
        assert_eq!(widths, [1, 2, 2, 3, 3]);
        lanes.trouble(lanes.round(), judgement(Class::Rate, Special::FewerConnections), at(1300), 0.5);
        lanes.works(lanes.round());
        assert_eq!((lanes.width(at(1300)), lanes.width(at(2499)), lanes.width(at(2500))), (1, 1, 2));
    }

    #[test]
    fn only_the_pace_is_told_from_a_pause_and_from_a_store_that_fails() {
        let mut lanes = Lanes::new(1, Pacing::new(1, 0));
        lanes.pacing.note(at(0), 1);
        assert!(lanes.open_at(at(1)) > at(1) && lanes.is_open_but_for_pace(at(1)));
        lanes.store_failed(at(1));
        assert!(!lanes.is_open_but_for_pace(at(1)) && lanes.is_open_but_for_pace(at(2)));
        lanes.trouble(lanes.round(), judgement(Class::Transient, Special::No), at(2), 0.5);
        assert!(!lanes.is_open_but_for_pace(at(3)) && lanes.is_open_but_for_pace(at(7)));
    }

    #[test]
    fn a_clock_that_is_set_back_ends_a_pause() {
        let mut lanes = of(1);
        lanes.trouble(lanes.round(), judgement(Class::Administrator, Special::No), at(90_000), 0.5);
        lanes.store_failed(at(90_000));
        assert_eq!(lanes.open_at(at(90_001)), at(90_300));
        assert_eq!(lanes.open_at(at(3600)), at(3630));
    }

    #[test]
    fn a_person_ends_the_pauses_that_wait_for_one() {
        let mut lanes = of(1);
        lanes.trouble(lanes.round(), judgement(Class::Administrator, Special::No), at(0), 0.5);
        assert_eq!(lanes.open_at(at(1)), at(300));
        lanes.resume();
        assert_eq!(lanes.open_at(at(1)), at(10));
        let mut lanes = of(1);
        lanes.trouble(lanes.round(), judgement(Class::Rate, Special::No), at(0), 0.5);
        lanes.resume();
        assert_eq!(lanes.open_at(at(1)), at(45));
    }

    #[test]
    fn a_missing_token_is_asked_for_again_soon() {
        let mut lanes = of(2);
        for second in [0, 2, 4] {
            lanes.no_token(lanes.round(), Failure::new(Class::Consent, "no_token", ""), at(second));
            assert_eq!(lanes.open_at(at(second)), at(second + 2));
        }
        assert_eq!(lanes.pause().unwrap().since, at(0));
    }

    #[test]
    fn a_failing_store_is_not_asked_without_end() {
        let mut lanes = of(2);
        for (now, then) in [(0, 1), (1, 3), (3, 7), (7, 15), (15, 31), (31, 61), (61, 91)] {
            lanes.store_failed(at(now));
            assert_eq!(lanes.open_at(at(now)), at(then));
        }
        lanes.store_works();
        lanes.store_failed(at(100));
        assert_eq!(lanes.open_at(at(100)), at(101));
    }
}
