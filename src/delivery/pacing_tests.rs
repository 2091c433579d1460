//! The pace, within a run and over a restart.

use super::*;
use proptest::prelude::*;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_200_000 + second).unwrap()
}

fn past(minute: i64, messages: u64, recipients: u64) -> Pace {
    Pace { minute: at(60 * minute), messages, recipients }
}

#[test]
fn a_burst_goes_at_once_and_the_rest_waits_for_the_minute() {
    let mut pacing = Pacing::new(3, 0);
    for second in [0, 1, 2] {
        assert_eq!(pacing.can_send_at(at(second)), at(second));
        pacing.note(at(second), 1);
    }
    assert_eq!(pacing.can_send_at(at(3)), at(60));
    assert_eq!(pacing.can_send_at(at(60)), at(60));
    pacing.note(at(60), 1);
    assert_eq!(pacing.can_send_at(at(60)), at(61));
    pacing.take_back(1);
    assert_eq!(pacing.can_send_at(at(60)), at(60));
}

#[test]
fn zero_is_no_limit() {
    let mut pacing = Pacing::new(0, 0);
    for _ in 0..1000 {
        pacing.note(at(0), 1000);
        assert_eq!(pacing.can_send_at(at(0)), at(0));
    }
    assert_eq!(pacing.left_today(), None);
}

#[test]
fn a_restart_forgets_nothing() {
    let mut pacing = Pacing::new(5, 1000);
    pacing.restore(&[past(-30, 9, 100), past(-1, 3, 20), past(0, 2, 10)], at(20));
    assert_eq!(pacing.can_send_at(at(20)), at(60), "those of the minute before may have gone at its end");
    assert_eq!(pacing.can_send_at(at(60)), at(60));
    assert_eq!(pacing.left_today(), Some(870));
    pacing.tick(at(60));
    for _ in 0..3 {
        pacing.note(at(60), 1);
    }
    assert_eq!(pacing.can_send_at(at(60)), at(80), "those of this minute may have gone just now");
}

#[test]
fn a_days_recipients_are_held_back_until_a_tenth_is_free() {
    let mut pacing = Pacing::new(0, 100);
    for minute in 0..10 {
        assert_eq!(pacing.day_is_full_until(), None);
        pacing.note(at(60 * minute), 9);
    }
    pacing.note(at(600), 40);
    assert_eq!((pacing.left_today(), pacing.can_send_at(at(600))), (Some(0), at(4 * 60) + DAY));
    pacing.tick(at(4 * 60) + DAY);
    assert_eq!(pacing.left_today(), Some(15), "130 less five times 9");
    pacing.take_back(40);
    assert_eq!((pacing.left_today(), pacing.day_is_full_until()), (Some(55), None));

    let mut pacing = Pacing::new(0, 10);
    pacing.note(at(0), 10);
    assert_eq!(pacing.day_is_full_until(), Some(at(0) + DAY));
    pacing.tick(at(0) + DAY);
    assert_eq!(pacing.can_send_at(at(1) + DAY), at(1) + DAY);
}

#[test]
fn one_message_to_very_many_goes_when_there_is_room_for_one() {
    let mut pacing = Pacing::new(0, 10);
    pacing.note(at(0), 9);
    assert_eq!(pacing.can_send_at(at(1)), at(1));
    pacing.note(at(1), 500);
    assert_eq!((pacing.left_today(), pacing.can_send_at(at(2))), (Some(0), at(0) + DAY));
}

#[test]
fn a_clock_that_is_set_back_holds_nothing_for_long() {
    let day = 24 * 3600;
    for (back, minute, left) in [(30, 60, Some(0)), (2 * 3600, 0, Some(10)), (day, 0, Some(10))] {
        let mut pacing = Pacing::new(2, 10);
        pacing.note(at(day), 5);
        pacing.note(at(day), 5);
        let now = at(day - back);
        pacing.tick(now);
        let mut per_minute = Pacing::new(2, 0);
        per_minute.restore(&[past(day / 60, 2, 10)], at(day));
        per_minute.tick(now);
        assert_eq!(per_minute.can_send_at(now), now + Duration::from_secs(minute), "{back} s back");
        assert_eq!(pacing.left_today(), left, "{back} s back");
    }
    let mut pacing = Pacing::new(2, 10);
    pacing.restore(&[past(2 * 24 * 60, 2, 10)], at(0));
    assert_eq!((pacing.can_send_at(at(0)), pacing.left_today()), (at(0), Some(10)), "over a restart, too");
}

proptest! {
    #[test]
    fn no_minute_and_no_day_ever_holds_more(
        limit in 1..20u32,
        a_day in 1..2000u32,
        gaps in proptest::collection::vec((0..2000i64, 1..30u64), 1..300),
    ) {
        let (mut pacing, mut now, mut sent) = (Pacing::new(limit, a_day), 0, Vec::new());
        for (gap, recipients) in gaps {
            now += if gap > 1900 { gap * 20 } else { gap / 100 };
            pacing.tick(at(now));
            let open = pacing.can_send_at(at(now));
            prop_assert!(open >= at(now) && open <= at(now) + DAY);
            if open == at(now) {
                pacing.note(at(now), recipients);
                sent.push((now, recipients));
            }
            let within = |seconds: i64| sent.iter().filter(move |(then, _)| *then > now - seconds);
            prop_assert!(within(60).count() <= usize::try_from(limit).unwrap());
            // One message may go over it; and entries of one minute count as the first of them.
            let (day, last) = (24 * 3600 - 60, sent.last().map_or(0, |(_, recipients)| *recipients));
            let used: u64 = within(day).map(|(_, recipients)| recipients).sum();
            prop_assert!(used < u64::from(a_day) + last.max(30));
        }
    }

    #[test]
    fn a_note_that_is_taken_back_leaves_nothing(notes in proptest::collection::vec((0..100i64, 1..50u64), 1..50), a_day in 1..500u32) {
        let mut pacing = Pacing::new(0, a_day);
        let mut now = 0;
        for (gap, recipients) in &notes {
            now += gap;
            pacing.note(at(now), *recipients);
        }
        for (_, recipients) in notes.iter().rev() {
            pacing.take_back(*recipients);
        }
        prop_assert_eq!(pacing.left_today(), Some(u64::from(a_day)));
        prop_assert_eq!(pacing.can_send_at(at(now)), at(now));
    }
}
