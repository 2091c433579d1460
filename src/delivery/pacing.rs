//! How many messages a minute a mailbox may send: pure, in memory. A burst up to the limit is let through at once.

use crate::clock;
use jiff::Timestamp;
use std::collections::VecDeque;
use std::time::Duration;

const WINDOW: Duration = Duration::from_secs(60);

/// What a mailbox sent in the last minute.
#[derive(Debug)]
pub(super) struct Pacing {
    limit: usize,
    /// When, oldest first; at most `limit` of them.
    sent: VecDeque<Timestamp>,
}

impl Pacing {
    /// At most so many messages in any minute; 0: no limit.
    pub(super) fn new(messages_per_minute: u32) -> Self {
        Self { limit: usize::try_from(messages_per_minute).unwrap_or(usize::MAX), sent: VecDeque::new() }
    }

    /// When the next message may go: `now`, or once the oldest of a full minute is a minute old.
    pub(super) fn can_send_at(&self, now: Timestamp) -> Timestamp {
        match self.sent.front() {
            Some(&oldest) if self.sent.len() >= self.limit => clock::after(oldest, WINDOW).max(now),
            _ => now,
        }
    }

    /// Notes that a message goes.
    pub(super) fn note(&mut self, now: Timestamp) {
        if self.limit == 0 {
            return;
        }
        while self.sent.len() >= self.limit {
            self.sent.pop_front();
        }
        self.sent.push_back(now);
    }

    /// Takes back the newest note: that message did not go after all.
    pub(super) fn take_back(&mut self) {
        self.sent.pop_back();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_000_000 + second).unwrap()
    }

    #[test]
    fn a_burst_goes_at_once_and_the_rest_waits_for_the_minute() {
        let mut pacing = Pacing::new(3);
        for second in [0, 1, 2] {
            assert_eq!(pacing.can_send_at(at(second)), at(second));
            pacing.note(at(second));
        }
        assert_eq!(pacing.can_send_at(at(3)), at(60));
        assert_eq!(pacing.can_send_at(at(60)), at(60));
        pacing.note(at(60));
        assert_eq!(pacing.can_send_at(at(60)), at(61));
        pacing.take_back();
        assert_eq!(pacing.can_send_at(at(60)), at(60));
    }

    #[test]
    fn zero_is_no_limit() {
        let mut pacing = Pacing::new(0);
        for _ in 0..1000 {
            pacing.note(at(0));
            assert_eq!(pacing.can_send_at(at(0)), at(0));
        }
    }

    proptest! {
        #[test]
        fn no_minute_ever_holds_more(limit in 1..20u32, gaps in proptest::collection::vec(0..30i64, 1..200)) {
            let (mut pacing, mut now, mut sent) = (Pacing::new(limit), 0, Vec::new());
            for gap in gaps {
                now += gap;
                if pacing.can_send_at(at(now)) == at(now) {
                    pacing.note(at(now));
                    sent.push(now);
                }
                let recent = sent.iter().filter(|&&then| then > now - 60).count();
                prop_assert!(recent <= usize::try_from(limit).unwrap());
            }
        }
    }
}
