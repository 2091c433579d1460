//! How often a password may be tried: pure.

use crate::clock;
use jiff::Timestamp;
use std::time::Duration;

/// Wrong tries that may come at once …
const BURST: u32 = 5;
/// … and how long each of them counts: 2,880 tries a day, whatever is done in parallel.
const EACH: Duration = Duration::from_secs(30);

/// A leaky bucket: each try fills it, time empties it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Limiter {
    /// When it will be empty; `None`: it is.
    empty_at: Option<Timestamp>,
}

impl Limiter {
    /// Counts a try, before the password is looked at.
    ///
    /// # Errors
    /// One too many: how long to wait until the next one.
    pub(super) fn take(&mut self, now: Timestamp) -> Result<(), Duration> {
        let full = EACH * BURST;
        // What a clock that jumped left behind must not lock the page for longer than a full bucket does.
        let level = self.empty_at.map_or(Duration::ZERO, |at| clock::until(now, at)).min(full);
        if level + EACH > full {
            self.empty_at = Some(clock::after(now, level));
            return Err(level + EACH - full);
        }
        self.empty_at = Some(clock::after(now, level + EACH));
        Ok(())
    }

    /// The try was right: none of those before counts any more.
    pub(super) fn right(&mut self) {
        self.empty_at = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap()
    }

    #[test]
    fn five_at_once_then_one_each_thirty_seconds() {
        let mut limiter = Limiter::default();
        let taken: Vec<bool> = (0..8).map(|_| limiter.take(at(0)).is_ok()).collect();
        assert_eq!(taken, [true, true, true, true, true, false, false, false]);
        assert_eq!(limiter.take(at(10)), Err(Duration::from_secs(20)));
        assert_eq!(limiter.take(at(30)), Ok(()));
        assert!(limiter.take(at(31)).is_err());
        let day = (0..86_400).filter(|&second| limiter.take(at(100 + second)).is_ok()).count();
        assert!(day <= 2_885, "{day} tries in a day");
    }

    #[test]
    fn the_right_password_forgets_the_wrong_ones_and_a_jump_of_the_clock_locks_nobody_out() {
        let mut limiter = Limiter::default();
        while limiter.take(at(0)).is_ok() {}
        limiter.right();
        assert_eq!(limiter.take(at(0)), Ok(()));
        while limiter.take(at(1_000_000)).is_ok() {}
        assert!(limiter.take(at(0)).is_err_and(|wait| wait <= EACH));
        assert_eq!(limiter.take(at(31)), Ok(()));
    }
}
