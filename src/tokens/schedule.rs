//! When a token is refreshed, and when it is tried again: pure. `random` is a number from 0 up to 1, drawn by the
//! caller: it spreads what would otherwise happen for all mailboxes at once.

use crate::clock;
use crate::failure::{Class, Failure};
use crate::microsoft::token_errors::Verdict;
use jiff::Timestamp;
use std::time::Duration;

/// The code of the failure "nobody connected this mailbox yet".
pub const NO_TOKEN: &str = "no_token";

/// Waits between tries, in seconds: transient failures. The last one goes on.
const BACK_OFF: [u64; 8] = [1, 2, 5, 10, 30, 60, 120, 300];
/// The wait between tries where a person has to act. A new consent is used at once, whatever this says.
const PERSON_WAIT: Duration = Duration::from_secs(30 * 60);
/// At most so long is waited because the endpoint asked for it (`Retry-After`).
pub const MOST_RETRY_AFTER: Duration = Duration::from_secs(60 * 60);
/// Refresh so long before the token expires: a high-volume endpoint refuses tokens that expire soon (SMTP 5.5.127).
const EARLY: Duration = Duration::from_secs(600);
/// An `invalid_grant` without a known reason counts after so many tries …
const DOUBTFUL_TRIES: u32 = 3;
/// … over at least so long.
const DOUBTFUL_FOR: Duration = Duration::from_secs(15 * 60);
/// The lifetime of a token whose answer does not say (RFC 6749 section 5.1); Microsoft's live 60 to 90 minutes.
const DEFAULT_LIFETIME: u64 = 3600;
/// The lifetime where the answer says zero or less.
const SHORT_LIFETIME: u64 = 60;
/// The longest lifetime that is believed.
const MOST_LIFETIME: u64 = 24 * 3600;

/// What an answer's `expires_in` is taken for: seconds, as a number or (as some servers write it) as a text.
pub fn lifetime(expires_in: Option<&serde_json::Value>) -> Duration {
    let seconds = expires_in.and_then(|value| match value {
        serde_json::Value::String(text) => text.trim().parse().ok(),
        value => value.as_f64(),
    });
    let seconds = match seconds.filter(|seconds: &f64| !seconds.is_nan()) {
        Some(seconds) if seconds < 1.0 => SHORT_LIFETIME,
        Some(seconds) if seconds >= MOST_LIFETIME as f64 => MOST_LIFETIME,
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "it lies between 1 and MOST_LIFETIME"
        )]
        Some(seconds) => seconds as u64,
        None => DEFAULT_LIFETIME,
    };
    Duration::from_secs(seconds)
}

/// When to refresh a token that was got `now`: ten to fifteen minutes before it expires, short ones after six to seven
/// tenths of their life.
pub fn next_refresh(now: Timestamp, expires_in: Duration, random: f64) -> Timestamp {
    let latest = expires_in.saturating_sub(EARLY).max(expires_in * 2 / 3);
    let jitter = (latest / 10).min(EARLY / 2);
    clock::after(now, latest - part(jitter, random))
}

/// Until when a token that was got `now` is handed out: a minute before it expires, short ones until five sixths of
/// their life. Always after [`next_refresh`].
pub fn usable_until(now: Timestamp, expires_in: Duration) -> Timestamp {
    let margin = (expires_in / 6).min(Duration::from_secs(60));
    clock::after(now, expires_in.saturating_sub(margin))
}

/// How long a keeper waits at the start, where `mailboxes` start together.
pub fn spread(mailboxes: usize, random: f64) -> Duration {
    let each = Duration::from_millis(200);
    let all = each.saturating_mul(u32::try_from(mailboxes.saturating_sub(1)).unwrap_or(u32::MAX));
    part(all.min(Duration::from_secs(20)), random)
}

/// How long to wait after the `tries`th failure in a row.
///
/// Transient: 1 s, 2 s, 5 s, 10 s, 30 s, 1 min, 2 min, then 5 min each, up to a fifth shorter by chance. A person has to
/// act: 27 to 30 min. Never shorter than the endpoint asked for (up to an hour), then up to a tenth longer.
pub fn retry_in(failure: &Failure, tries: u32, random: f64) -> Duration {
    let wait = if failure.class.needs_a_person() {
        PERSON_WAIT - part(PERSON_WAIT / 10, random)
    } else {
        let step = clock::nth(&BACK_OFF, tries);
        step - part(step / 5, random)
    };
    let asked = failure.retry_after.unwrap_or_default().min(MOST_RETRY_AFTER);
    wait.max(asked + part(asked / 10, random))
}

/// Failures in a row that we do not believe yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Doubt {
    tries: u32,
    since: Option<Timestamp>,
}

impl Doubt {
    /// What a verdict counts as. An outage has answered `invalid_grant` before: without a reason that we know it is
    /// [`Class::Transient`] until it came three times over 15 minutes or more.
    pub fn weigh(&mut self, verdict: Verdict, now: Timestamp) -> Failure {
        if verdict.certain {
            return verdict.failure;
        }
        let since = *self.since.get_or_insert(now);
        self.tries = self.tries.saturating_add(1);
        if self.tries >= DOUBTFUL_TRIES && now >= clock::after(since, DOUBTFUL_FOR) {
            return verdict.failure;
        }
        Failure { class: Class::Transient, advice: String::new(), ..verdict.failure }
    }
}

/// A part of `whole`: `random` of it.
fn part(whole: Duration, random: f64) -> Duration {
    if random.is_finite() { whole.mul_f64(random.clamp(0.0, 1.0)) } else { Duration::ZERO }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    const NOW: Timestamp = Timestamp::UNIX_EPOCH;

    fn seconds(at: Timestamp) -> f64 {
        at.duration_since(NOW).as_secs_f64()
    }

    #[test]
    fn tokens_are_refreshed_ahead_of_expiry() {
        // Lifetime; the latest and the earliest refresh; until when it is handed out: seconds.
        let cases = [
            (3, 2.0, 1.8, 2.5),
            (60, 40.0, 36.0, 50.0),
            (600, 400.0, 360.0, 540.0),
            (1800, 1200.0, 1080.0, 1740.0),
            (3600, 3000.0, 2700.0, 3540.0),
            (5400, 4800.0, 4500.0, 5340.0),
            (86_400, 85_800.0, 85_500.0, 86_340.0),
        ];
        for (lifetime, latest, earliest, usable) in cases {
            let lifetime = Duration::from_secs(lifetime);
            let refresh = |random| seconds(next_refresh(NOW, lifetime, random));
            assert!((refresh(0.0) - latest).abs() < 1e-6, "{lifetime:?}");
            assert!((refresh(1.0) - earliest).abs() < 1e-6, "{lifetime:?}");
            assert!((seconds(usable_until(NOW, lifetime)) - usable).abs() < 1e-6, "{lifetime:?}");
        }
    }

    #[test]
    fn lifetimes_are_bounded() {
        let cases = [
            (json!(3599), 3599),
            (json!(5), 5),
            (json!("3600"), 3600),
            (json!(3599.7), 3599),
            (json!(0), 60),
            (json!(-5), 60),
            (json!(1e300), 86_400),
            (json!(u64::MAX), 86_400),
            (json!("soon"), 3600),
            (json!("NaN"), 3600),
            (json!("-inf"), 60),
            (json!(null), 3600),
            (json!({}), 3600),
        ];
        for (value, expected) in cases {
            assert_eq!(lifetime(Some(&value)), Duration::from_secs(expected), "{value}");
        }
        assert_eq!(lifetime(None), Duration::from_secs(3600));
    }

    #[test]
    fn each_class_backs_off_in_its_way() {
        let failure = |class| Failure::new(class, "code", "reply");
        let transient: Vec<u64> =
            (1..=10).map(|tries| retry_in(&failure(Class::Transient), tries, 0.0).as_secs()).collect();
        assert_eq!(transient, [1, 2, 5, 10, 30, 60, 120, 300, 300, 300]);
        assert_eq!(retry_in(&failure(Class::Transient), u32::MAX, 1.0), Duration::from_secs(240));
        for class in [Class::Consent, Class::Administrator] {
            assert_eq!(retry_in(&failure(class), 1, 0.0), Duration::from_secs(1800));
            assert_eq!(retry_in(&failure(class), 9, 1.0), Duration::from_secs(1620));
        }
    }

    #[test]
    fn what_the_endpoint_asks_for_is_waited_within_bounds() {
        let asked = |seconds, random| {
            let failure = Failure::new(Class::Transient, "429", "").wait(Duration::from_secs(seconds));
            retry_in(&failure, 1, random).as_secs()
        };
        assert_eq!(asked(100, 0.0), 100);
        assert_eq!(asked(100, 1.0), 110);
        assert_eq!(asked(0, 0.0), 1);
        assert_eq!(asked(u64::MAX, 0.0), 3600);
    }

    #[test]
    fn a_start_is_spread_a_little() {
        assert_eq!(spread(1, 1.0), Duration::ZERO);
        assert_eq!(spread(6, 1.0), Duration::from_secs(1));
        assert_eq!(spread(usize::MAX, 1.0), Duration::from_secs(20));
    }

    #[test]
    fn an_invalid_grant_without_a_reason_counts_once_it_lasts() {
        use Class::{Consent, Transient};
        // Minutes of each try, and what it counts as.
        let cases: [&[(i64, Class)]; 4] = [
            &[(0, Transient), (1, Transient), (2, Transient), (15, Consent)],
            &[(0, Transient), (20, Transient), (40, Consent)],
            &[(0, Transient), (7, Transient), (14, Transient), (15, Consent), (16, Consent)],
            &[(0, Transient)],
        ];
        for case in cases {
            let mut doubt = Doubt::default();
            for &(minute, class) in case {
                let verdict = Verdict {
                    failure: Failure::new(Consent, "invalid_grant", "").advise("connect"),
                    certain: false,
                };
                let now = Timestamp::from_second(minute * 60).unwrap();
                let failure = doubt.weigh(verdict, now);
                assert_eq!(failure.class, class, "{case:?} at {minute}");
                assert_eq!(failure.advice.is_empty(), class == Transient);
            }
        }
        let certain = Verdict::from(Failure::new(Consent, "AADSTS700082", ""));
        assert_eq!(Doubt::default().weigh(certain, NOW).class, Consent, "a known reason counts at once");
    }

    proptest! {
        #[test]
        fn a_refresh_comes_before_the_token_is_withheld(lifetime in 1_u64..=86_400, random in 0.0..1.0) {
            let lifetime = Duration::from_secs(lifetime);
            let refresh = next_refresh(NOW, lifetime, random);
            prop_assert!(refresh > NOW);
            prop_assert!(refresh < usable_until(NOW, lifetime));
            prop_assert!(usable_until(NOW, lifetime) < clock::after(NOW, lifetime));
        }

        /// Refresh tokens die after 90 days without use. A keeper goes by this alone, whether anybody asks or not: so
        /// no mailbox, however idle, is refreshed less often than daily, whatever Microsoft says of the lifetime.
        #[test]
        fn every_mailbox_is_refreshed_at_least_daily(expires_in: i64, random in 0.0..1.0, tries: u32) {
            let day = Duration::from_secs(24 * 3600);
            let lifetime = lifetime(Some(&json!(expires_in)));
            prop_assert!(next_refresh(NOW, lifetime, random) <= clock::after(NOW, day));
            for class in [Class::Transient, Class::Rate, Class::Consent, Class::Administrator] {
                let failure = Failure::new(class, "", "").wait(Duration::MAX);
                prop_assert!(retry_in(&failure, tries, random) < day, "a failure puts it off by less than a day");
            }
        }
    }
}
