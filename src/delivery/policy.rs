//! When to try again, and for how long to leave a mailbox alone: pure, `now` and randomness are arguments.

use crate::clock;
use crate::failure::{Class, Failure};
use crate::microsoft::smtp_replies::{ADMINISTRATOR_AFTER, Special};
use jiff::Timestamp;
use std::time::Duration;

const MINUTE: u64 = 60;

/// Seconds from an attempt that failed to the next one; the last entry repeats. A message that keeps being deferred is
/// tried after 30 s, 1.5 min, 3.5 min, 8.5 min, 18.5 min, 33.5 min, 1 h 3.5 min and then hourly, and last of all when
/// `retry_for` is over: 55 attempts in 2 days.
const SCHEDULE: [u64; 8] =
    [30, MINUTE, 2 * MINUTE, 5 * MINUTE, 10 * MINUTE, 15 * MINUTE, 30 * MINUTE, 60 * MINUTE];

/// How long to wait before what was [`Special::OnceMore`] is tried for the second time.
pub const ONCE_MORE_WAIT: Duration = Duration::from_secs(5 * MINUTE);

/// How long to wait after the given number of attempts (this one included) before the next one; `None`: the time for
/// trying is over. `asked` is what the service asked for; `random` is from 0 to 1, and spreads the waits by a fifth to
/// either side. The last attempt falls on the end of `retry_for`.
pub fn retry_after(
    attempts: u32,
    since_received: Duration,
    retry_for: Duration,
    asked: Option<Duration>,
    random: f64,
) -> Option<Duration> {
    let left = retry_for.checked_sub(since_received).filter(|left| !left.is_zero())?;
    let wait = spread(clock::nth(&SCHEDULE, attempts), random);
    Some(wait.max(asked.unwrap_or_default()).min(left))
}

/// How long a mailbox is left alone after the given number of pauses in a row (this one included), by class:
///
/// | class | pauses |
/// | --- | --- |
/// | transient (no connection) | 5 s, 10 s, 20 s, 40 s, 80 s, 160 s, then every 5 min |
/// | rate | 30 to 60 s, twice that, four times, … then every 15 min |
/// | consent, administrator | 5 min, 10 min, 20 min, then every 30 min |
///
/// or as long as the service asked for, where that is longer.
pub fn pause_for(class: Class, pauses: u32, asked: Option<Duration>, random: f64) -> Duration {
    let wait = match class {
        Class::Rate => {
            let first = 30.0 + 30.0 * random.clamp(0.0, 1.0);
            Duration::from_secs_f64((first * f64::from(2u32.pow(pauses.saturating_sub(1).min(5)))).min(900.0))
        }
        Class::Consent | Class::Administrator => spread(clock::nth(&[300, 600, 1200, 1800], pauses), random),
        Class::Transient | Class::Message => {
            spread(clock::nth(&[5, 10, 20, 40, 80, 160, 300], pauses), random)
        }
    };
    wait.max(asked.unwrap_or_default())
}

/// A failure that passes for transient only for so long becomes the administrator's, in a trouble that began at `since`.
pub fn escalated(mut failure: Failure, special: Special, since: Timestamp, now: Timestamp) -> Failure {
    if special == Special::Lasting && clock::until(since, now) >= ADMINISTRATOR_AFTER {
        failure.class = Class::Administrator;
    }
    failure
}

/// Up to when a message must have been accepted to be given up, unsent, in a mailbox that does not work since `since`;
/// `None`: no message yet. The trouble itself must have lasted for an hour (or half of `retry_for`): a relay that
/// starts after a long weekend, before the network does, must not fail all that waited.
pub fn give_up_before(since: Timestamp, now: Timestamp, retry_for: Duration) -> Option<Timestamp> {
    let lasted = clock::until(since, now);
    let hour = Duration::from_secs(60 * MINUTE);
    let back = jiff::SignedDuration::try_from(retry_for).ok()?;
    (lasted >= hour.min(retry_for / 2)).then(|| now.checked_sub(back).ok()).flatten()
}

/// How often a mailbox that does not work is looked through for messages to give up.
pub fn give_up_every(retry_for: Duration) -> Duration {
    (retry_for / 4).clamp(Duration::from_secs(1), Duration::from_secs(MINUTE))
}

/// A fifth to either side, so that mail deferred together does not come back together.
fn spread(wait: Duration, random: f64) -> Duration {
    wait.mul_f64(0.8 + 0.4 * random.clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DAYS: Duration = Duration::from_secs(2 * 24 * 3600);

    fn seconds(wait: Option<Duration>) -> Option<u64> {
        wait.map(|wait| wait.as_secs())
    }

    #[test]
    fn a_message_is_tried_by_the_schedule() {
        let table =
            [(1, 30), (2, 60), (3, 120), (4, 300), (5, 600), (6, 900), (7, 1800), (8, 3600), (60, 3600)];
        for (attempts, wait) in table {
            let found = retry_after(attempts, Duration::ZERO, DAYS, None, 0.5);
            assert_eq!(seconds(found), Some(wait), "after {attempts}");
        }
        assert_eq!(seconds(retry_after(1, Duration::ZERO, DAYS, None, 0.0)), Some(24));
        assert_eq!(seconds(retry_after(1, Duration::ZERO, DAYS, None, 1.0)), Some(36));
        let asked = Some(Duration::from_secs(900));
        assert_eq!(seconds(retry_after(1, Duration::ZERO, DAYS, asked, 0.5)), Some(900));
        assert_eq!(seconds(retry_after(8, Duration::ZERO, DAYS, asked, 0.5)), Some(3600));
    }

    #[test]
    fn the_last_attempt_falls_on_the_end() {
        let (mut at, mut attempts) = (Duration::ZERO, 1);
        while let Some(wait) = retry_after(attempts, at, DAYS, None, 0.5) {
            at += wait;
            attempts += 1;
        }
        assert_eq!((at, attempts), (DAYS, 55));
        assert_eq!(retry_after(1, DAYS + Duration::from_secs(1), DAYS, None, 0.5), None);
    }

    proptest! {
        #[test]
        fn waits_end_and_are_never_nothing(
            attempts: u32, since in 0..10_000_000u64, retry_for in 1..3_000_000u64, asked: Option<u32>, random in 0.0..=1.0f64
        ) {
            let (since, retry_for) = (Duration::from_secs(since), Duration::from_secs(retry_for));
            let asked = asked.map(|asked| Duration::from_secs(asked.into()));
            match retry_after(attempts, since, retry_for, asked, random) {
                Some(wait) => prop_assert!(!wait.is_zero() && since + wait <= retry_for),
                None => prop_assert!(since >= retry_for),
            }
        }

        #[test]
        fn pauses_grow_and_stay_bounded(pauses: u32, random in 0.0..=1.0f64) {
            for class in [Class::Transient, Class::Rate, Class::Consent, Class::Administrator, Class::Message] {
                let pause = pause_for(class, pauses, None, random);
                prop_assert!(pause >= Duration::from_secs(4) && pause <= Duration::from_secs(36 * 60));
                prop_assert!(pause <= pause_for(class, pauses.saturating_add(1), None, random));
            }
        }
    }

    #[test]
    fn a_mailbox_is_left_alone_by_class() {
        let table = [
            (Class::Transient, 1, 5),
            (Class::Transient, 7, 300),
            (Class::Transient, 100, 300),
            (Class::Rate, 1, 45),
            (Class::Rate, 2, 90),
            (Class::Rate, 50, 900),
            (Class::Consent, 1, 300),
            (Class::Administrator, 2, 600),
            (Class::Administrator, 9, 1800),
        ];
        for (class, pauses, wait) in table {
            assert_eq!(pause_for(class, pauses, None, 0.5), Duration::from_secs(wait), "{class} {pauses}");
        }
        let asked = Some(Duration::from_secs(3600));
        assert_eq!(pause_for(Class::Rate, 1, asked, 0.5), Duration::from_secs(3600));
    }

    #[test]
    fn what_lasts_becomes_the_administrators() {
        let since = Timestamp::from_second(1_000_000).unwrap();
        let failure = Failure::new(Class::Transient, "451 4.7.0", "PRX4");
        let class = |special, minutes: u64| {
            let now = clock::after(since, Duration::from_secs(60 * minutes));
            escalated(failure.clone(), special, since, now).class
        };
        assert_eq!(class(Special::Lasting, 29), Class::Transient);
        assert_eq!(class(Special::Lasting, 30), Class::Administrator);
        assert_eq!(class(Special::No, 300), Class::Transient);
    }

    #[test]
    fn only_a_lasting_trouble_gives_mail_up() {
        let now = Timestamp::from_second(10_000_000).unwrap();
        let ago = |seconds| now.checked_sub(jiff::SignedDuration::from_secs(seconds)).unwrap();
        let two_days = 2 * 24 * 3600;
        assert_eq!(give_up_before(ago(60), now, DAYS), None, "just started");
        assert_eq!(give_up_before(ago(3600), now, DAYS), Some(ago(two_days)));
        assert_eq!(give_up_before(ago(1), now, Duration::from_secs(4)), None);
        assert_eq!(give_up_before(ago(2), now, Duration::from_secs(4)), Some(ago(4)));
    }
}
