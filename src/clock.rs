//! The one wall clock. Everything that decides takes `now` as an argument; only the edges ask here.

use jiff::{SignedDuration, Timestamp};
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

/// The latest time that [`now`] gave, in milliseconds since 1970.
static LATEST: AtomicI64 = AtomicI64::new(i64::MIN);

/// The time now.
#[expect(clippy::disallowed_methods, reason = "this is the one place that reads the clock")]
pub fn now() -> Timestamp {
    let now = Timestamp::now();
    LATEST.fetch_max(now.as_millisecond(), Ordering::Relaxed);
    now
}

/// By how much the clock was set back since [`now`] gave the latest time, which is then forgotten; `None`: it was not. A
/// few seconds are none: time servers correct a clock by as much.
pub fn set_back() -> Option<Duration> {
    back(&LATEST, now())
}

fn back(latest: &AtomicI64, now: Timestamp) -> Option<Duration> {
    let before = latest.swap(now.as_millisecond(), Ordering::Relaxed);
    let back = until(now, Timestamp::from_millisecond(before).unwrap_or(now));
    (back >= Duration::from_secs(30)).then_some(back)
}

/// `at` moved on by `wait`; the end of time where that overflows.
pub fn after(at: Timestamp, wait: Duration) -> Timestamp {
    SignedDuration::try_from(wait).ok().and_then(|wait| at.checked_add(wait).ok()).unwrap_or(Timestamp::MAX)
}

/// `at` moved back by `age`; the beginning of time where that overflows.
pub fn before(at: Timestamp, age: Duration) -> Timestamp {
    SignedDuration::try_from(age).ok().and_then(|age| at.checked_sub(age).ok()).unwrap_or(Timestamp::MIN)
}

/// How long from `now` until `at`; zero when `at` has passed.
pub fn until(now: Timestamp, at: Timestamp) -> Duration {
    Duration::try_from(at.duration_since(now)).unwrap_or(Duration::ZERO)
}

/// The whole second of `at`: what logs and tables show.
pub fn to_second(at: Timestamp) -> Timestamp {
    Timestamp::from_second(at.as_second()).unwrap_or(at)
}

/// The nth wait (from 1) of a schedule in seconds, whose last one repeats.
pub fn nth(schedule: &[u64], times: u32) -> Duration {
    let index = usize::try_from(times.saturating_sub(1)).unwrap_or(usize::MAX);
    Duration::from_secs(schedule.get(index).or(schedule.last()).copied().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_schedule_ends_with_its_last_wait() {
        let waits = [0, 1, 2, 3, u32::MAX].map(|times| nth(&[5, 10], times).as_secs());
        assert_eq!(waits, [5, 5, 10, 10, 10]);
        assert_eq!(nth(&[], 1), Duration::ZERO);
    }

    #[test]
    fn only_a_clock_that_was_set_back_is_noticed() {
        let latest = AtomicI64::new(i64::MIN);
        let mut look = |second: i64| {
            back(&latest, Timestamp::from_second(1_000_000 + second).unwrap()).map(|back| back.as_secs())
        };
        assert_eq!([0, 5, -5, 86_400, 86_395].map(&mut look), [None; 5]);
        assert_eq!([0, 5, -86_395].map(&mut look), [Some(86_395), None, Some(86_400)]);
    }

    #[test]
    fn time_arithmetic_saturates() {
        let noon = Timestamp::from_second(1_000_000).unwrap();
        assert_eq!(after(noon, Duration::from_secs(5)), Timestamp::from_second(1_000_005).unwrap());
        assert_eq!(after(noon, Duration::MAX), Timestamp::MAX);
        assert_eq!(before(noon, Duration::from_secs(5)), Timestamp::from_second(999_995).unwrap());
        assert_eq!(before(noon, Duration::MAX), Timestamp::MIN);
        assert_eq!(until(noon, after(noon, Duration::from_secs(5))), Duration::from_secs(5));
        assert_eq!(until(after(noon, Duration::from_secs(5)), noon), Duration::ZERO);
    }
}
