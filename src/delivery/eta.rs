//! When a mailbox's queue will be empty: pure.

use super::pacing::DAY;
use super::{Config, Status};
use crate::clock;
use crate::store::Totals;
use jiff::Timestamp;
use std::time::Duration;

/// What is not paced goes at about this rate over each connection.
const UNPACED_A_MINUTE: u64 = 60;

/// When the last message that waits in a mailbox will have gone, if nothing goes wrong: by its pace, the recipients that
/// are left of the day, and its pause. `None`: nothing waits, or it waits for a person.
pub fn done_by(queue: &Totals, config: &Config, status: &Status, now: Timestamp) -> Option<Timestamp> {
    let messages = queue.waiting.saturating_sub(queue.held);
    if messages == 0 || status.needs_a_person {
        return None;
    }
    let begin = status.paused_until.map_or(now, |until| until.max(now));
    let a_minute = match config.messages_per_minute {
        0 => UNPACED_A_MINUTE.saturating_mul(config.connections.into()),
        paced => paced.into(),
    };
    let seconds = messages.saturating_mul(60).div_ceil(a_minute.max(1));
    let by_pace = clock::after(begin, Duration::from_secs(seconds));
    let over = queue.recipients.saturating_sub(status.left_today.unwrap_or(u64::MAX));
    let days = over.div_ceil(u64::from(config.recipients_per_day).max(1));
    let by_day = clock::after(now, DAY.saturating_mul(u32::try_from(days).unwrap_or(u32::MAX)));
    Some(by_pace.max(by_day))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(second: u64) -> Timestamp {
        clock::after(Timestamp::from_second(1_000_000).unwrap(), Duration::from_secs(second))
    }

    fn queue(waiting: u64, held: u64, recipients: u64) -> Totals {
        Totals { waiting, held, recipients, ..Totals::default() }
    }

    fn seconds(queue: &Totals, per_minute: u32, status: &Status) -> Option<u64> {
        let config = Config {
            messages_per_minute: per_minute,
            recipients_per_day: 1000,
            connections: 2,
            ..Config::default()
        };
        done_by(queue, &config, status, at(0)).map(|by| clock::until(at(0), by).as_secs())
    }

    #[test]
    fn the_slowest_of_pace_day_and_pause_decides() {
        let idle = Status { left_today: Some(1000), ..Status::default() };
        let paused = |until| Status { paused_until: Some(at(until)), ..idle.clone() };
        let day = 24 * 3600;
        let table = [
            (queue(0, 0, 0), 30, idle.clone(), None),
            (queue(2, 2, 0), 30, idle.clone(), None),
            (queue(90, 0, 90), 30, idle.clone(), Some(180)),
            (queue(91, 1, 90), 30, idle.clone(), Some(180)),
            (queue(90, 0, 90), 0, idle.clone(), Some(45)),
            (queue(90, 0, 90), 30, paused(600), Some(780)),
            (queue(30, 0, 1001), 30, idle.clone(), Some(day)),
            (queue(30, 0, 2001), 30, idle.clone(), Some(2 * day)),
            (queue(30, 0, 30), 30, Status { left_today: Some(0), ..idle.clone() }, Some(day)),
            (queue(30, 0, 5000), 30, Status { left_today: None, ..idle.clone() }, Some(60)),
            (queue(30, 0, 30), 30, Status { needs_a_person: true, ..idle }, None),
        ];
        for (queue, per_minute, status, expected) in table {
            assert_eq!(seconds(&queue, per_minute, &status), expected, "{queue:?} {status:?}");
        }
    }

    proptest! {
        #[test]
        fn more_mail_is_never_done_sooner(
            waiting in 1..u64::MAX / 2, more in 0..1_000_000u64, recipients: u64, pace: u32, left: Option<u64>
        ) {
            let status = Status { left_today: left, ..Status::default() };
            let few = seconds(&queue(waiting, 0, recipients), pace, &status);
            let many = seconds(&queue(waiting + more, 0, recipients.saturating_add(more)), pace, &status);
            prop_assert!(few.is_some() && few <= many);
        }
    }
}
