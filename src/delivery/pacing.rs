//! How much a mailbox may send: messages a minute, and recipients a day. Pure. A burst up to the limit is let through at
//! once. It lives in memory; the store's counts, by the minute, give it back after a restart.

use crate::clock;
use crate::store::Pace;
use jiff::Timestamp;
use std::collections::VecDeque;
use std::time::Duration;

const MINUTE: Duration = Duration::from_secs(60);
pub(super) const DAY: Duration = Duration::from_secs(24 * 3600);
/// What was sent further ahead than this, by a clock that was set back since, is forgotten: that clock was wrong, and the
/// service, which counts as well, answers for itself. Anything nearer counts as sent now.
const SET_BACK: Duration = Duration::from_secs(3600);

/// What a mailbox sent in the last minute and in the last day.
#[derive(Debug)]
pub(super) struct Pacing {
    limit: usize,
    /// When, oldest first; at most `limit` of them.
    sent: VecDeque<Timestamp>,
    day: Day,
}

/// The recipients of a day.
#[derive(Debug)]
struct Day {
    /// 0: no limit.
    limit: u64,
    /// When, oldest first, and how many: one entry a minute.
    sent: VecDeque<(Timestamp, u64)>,
    used: u64,
    /// The limit was reached, and not enough is free again.
    is_full: bool,
}

impl Pacing {
    /// At most so many messages in any minute, and recipients in any day; 0: no limit. A message may begin while there
    /// is room for one recipient.
    pub(super) fn new(messages_per_minute: u32, recipients_per_day: u32) -> Self {
        let limit = usize::try_from(messages_per_minute).unwrap_or(usize::MAX);
        let day = Day { limit: recipients_per_day.into(), sent: VecDeque::new(), used: 0, is_full: false };
        Self { limit, sent: VecDeque::new(), day }
    }

    /// Adds what was sent before the start, oldest first; each message at the latest moment that its minute allows.
    pub(super) fn restore(&mut self, past: &[Pace], now: Timestamp) {
        for pace in past {
            let at = clock::after(pace.minute, MINUTE).min(now.max(pace.minute));
            let messages = usize::try_from(pace.messages).unwrap_or(usize::MAX);
            for _ in 0..messages.min(self.limit) {
                self.note_message(at);
            }
            self.day.note(at, pace.recipients);
        }
        self.tick(now);
    }

    /// Forgets what is too old, and what a clock that was set back makes to come.
    pub(super) fn tick(&mut self, now: Timestamp) {
        if self.sent.back().is_some_and(|&at| at > now) {
            self.sent.retain(|&at| at <= clock::after(now, SET_BACK));
            self.sent.iter_mut().for_each(|at| *at = (*at).min(now));
        }
        while self.sent.front().is_some_and(|&at| clock::after(at, MINUTE) <= now) {
            self.sent.pop_front();
        }
        self.day.tick(now);
    }

    /// When the next message may go: `now`, or once the oldest of a full minute is a minute old and the day has room.
    pub(super) fn can_send_at(&self, now: Timestamp) -> Timestamp {
        let minute = match self.sent.front() {
            Some(&oldest) if self.sent.len() >= self.limit => clock::after(oldest, MINUTE),
            _ => now,
        };
        minute.max(self.day_is_full_until().unwrap_or(now)).max(now)
    }

    /// Until when the day's recipients are used up, if they are: until a tenth of them is free again, so that the mailbox
    /// does not stop and go from then on.
    pub(super) fn day_is_full_until(&self) -> Option<Timestamp> {
        let mut left = self.day.used;
        let freed = self.day.sent.iter().find(|(_, recipients)| {
            left = left.saturating_sub(*recipients);
            left <= self.day.enough()
        });
        freed.filter(|_| self.day.is_full).map(|&(at, _)| clock::after(at, DAY))
    }

    /// How many recipients may still be sent to today; `None`: there is no limit.
    pub(super) fn left_today(&self) -> Option<u64> {
        (self.day.limit > 0).then(|| self.day.limit.saturating_sub(self.day.used))
    }

    /// Notes that a message goes, to so many recipients.
    pub(super) fn note(&mut self, now: Timestamp, recipients: u64) {
        self.note_message(now);
        self.day.note(now, recipients);
        self.day.judge();
    }

    fn note_message(&mut self, at: Timestamp) {
        if self.limit == 0 {
            return;
        }
        while self.sent.len() >= self.limit {
            self.sent.pop_front();
        }
        self.sent.push_back(at);
    }

    /// Takes back the newest note: that message did not go after all.
    pub(super) fn take_back(&mut self, recipients: u64) {
        self.sent.pop_back();
        self.day.take_back(recipients);
    }
}

impl Day {
    /// What may be used when sending goes on.
    fn enough(&self) -> u64 {
        self.limit - self.limit.div_ceil(10)
    }

    fn tick(&mut self, now: Timestamp) {
        if self.sent.back().is_some_and(|&(at, _)| at > now) {
            self.sent.retain(|&(at, _)| at <= clock::after(now, SET_BACK));
            self.sent.iter_mut().for_each(|(at, _)| *at = (*at).min(now));
        }
        while self.sent.front().is_some_and(|&(at, _)| clock::after(at, DAY) <= now) {
            self.sent.pop_front();
        }
        self.used = self.sent.iter().map(|(_, recipients)| recipients).sum();
        self.judge();
    }

    fn judge(&mut self) {
        self.is_full =
            self.limit > 0 && (self.used >= self.limit || self.is_full && self.used > self.enough());
    }

    fn note(&mut self, at: Timestamp, recipients: u64) {
        if self.limit == 0 || recipients == 0 {
            return;
        }
        self.used = self.used.saturating_add(recipients);
        match self.sent.back_mut() {
            Some((then, sum)) if clock::until(*then, at) < MINUTE => *sum = sum.saturating_add(recipients),
            _ => self.sent.push_back((at, recipients)),
        }
    }

    fn take_back(&mut self, mut recipients: u64) {
        self.used = self.used.saturating_sub(recipients);
        while let Some((_, sum)) = self.sent.back_mut() {
            if *sum > recipients {
                *sum -= recipients;
                break;
            }
            recipients -= *sum;
            self.sent.pop_back();
        }
        self.judge();
    }
}

#[cfg(test)]
#[path = "pacing_tests.rs"]
mod tests;
