//! The sign-ins under way: bounded, each counts once, for 10 minutes, and in the browser that began it.

use super::ConsentError;
use crate::address::Address;
use jiff::{SignedDuration, Timestamp};
use secrecy::{ExposeSecret, SecretString};
use std::collections::HashMap;

/// So long a sign-in may take.
pub(super) const LIFETIME: SignedDuration = SignedDuration::from_mins(10);
/// An expired one is remembered a little longer, to say that it has expired.
const REMEMBERED: SignedDuration = SignedDuration::from_mins(60);
/// So many at a time; with one more, the oldest ends. Nobody signs in a thousand times in the time that one takes.
const MOST: usize = 1_000;

/// A sign-in under way.
#[derive(Debug)]
pub(super) struct SignIn {
    pub(super) mailbox: Address,
    /// Known to one browser alone.
    pub(super) session: SecretString,
    /// PKCE's (RFC 7636 section 4.1).
    pub(super) verifier: SecretString,
    /// The same has to be said when the code is exchanged (RFC 6749 section 4.1.3).
    pub(super) redirect_uri: String,
    pub(super) begun_at: Timestamp,
}

/// All of them, by their `state`.
#[derive(Debug, Default)]
pub(super) struct Pending(HashMap<String, SignIn>);

impl Pending {
    pub(super) fn insert(&mut self, state: String, sign_in: SignIn, now: Timestamp) {
        self.0.retain(|_, sign_in| now.duration_since(sign_in.begun_at) < REMEMBERED);
        if self.0.len() >= MOST {
            let oldest = self.0.iter().min_by_key(|(_, sign_in)| sign_in.begun_at);
            if let Some(oldest) = oldest.map(|(state, _)| state.clone()) {
                self.0.remove(&oldest);
            }
        }
        self.0.insert(state, sign_in);
    }

    /// The sign-in of this `state`, which then is none any more: also a wrong session ends it.
    pub(super) fn take(
        &mut self,
        state: &str,
        session: &str,
        now: Timestamp,
    ) -> Result<SignIn, ConsentError> {
        let sign_in = self.0.remove(state).ok_or(ConsentError::UnknownState)?;
        // A clock that went back makes none of them younger.
        let age = now.duration_since(sign_in.begun_at).abs();
        if age > LIFETIME {
            return Err(ConsentError::Expired);
        }
        if sign_in.session.expose_secret() != session {
            return Err(ConsentError::OtherSession);
        }
        Ok(sign_in)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap()
    }

    fn sign_in(second: i64) -> SignIn {
        SignIn {
            mailbox: Address::try_from("john@example.com").unwrap(),
            session: SecretString::from("browser"),
            verifier: SecretString::from("verifier"),
            redirect_uri: "http://localhost:1".to_owned(),
            begun_at: at(second),
        }
    }

    #[test]
    fn a_sign_in_counts_once_for_ten_minutes_in_its_browser() {
        let mut pending = Pending::default();
        for (state, session, second, expected) in [
            ("a", "browser", 600, "ok"),
            ("a", "browser", 601, "longer than 10 minutes"),
            ("a", "browser", -601, "longer than 10 minutes"),
            ("a", "other", 1, "another browser"),
            ("a", "", 1, "another browser"),
            ("b", "browser", 1, "not known"),
        ] {
            pending.insert("a".to_owned(), sign_in(0), at(0));
            let taken = pending.take(state, session, at(second));
            let said = taken.map_or_else(|error| error.to_string(), |_| "ok".to_owned());
            assert!(said.contains(expected), "{state} {session} {second}: {said}");
            assert!(state != "a" || pending.take("a", "browser", at(1)).is_err(), "a second time");
        }
    }

    #[test]
    fn they_are_bounded_and_the_oldest_goes_first() {
        let mut pending = Pending::default();
        let most = i64::try_from(MOST).unwrap();
        for second in 0..=most {
            pending.insert(second.to_string(), sign_in(second), at(second));
        }
        assert_eq!(pending.0.len(), MOST);
        assert!(!pending.0.contains_key("0") && pending.0.contains_key("1"));
        pending.insert("late".to_owned(), sign_in(10_000), at(10_000));
        assert_eq!(pending.0.len(), 1, "what is long over is forgotten");
    }
}
