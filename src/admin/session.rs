//! Browsers: each has a random value in a cookie, from which the tokens of its forms follow (CSRF); those in which
//! somebody gave the password are remembered. Nothing is kept for the others, so strangers cannot fill the memory.

use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD as BASE64;
use jiff::{SignedDuration, Timestamp};
use secrecy::{ExposeSecret as _, SecretString};
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

/// How long a password counts.
const SIGNED_IN_FOR: SignedDuration = SignedDuration::from_hours(12);
/// Signed-in browsers at a time; with one more, the one that signed in first is signed out.
const MOST: usize = 100;

/// What tells one browser from another: 32 random octets, in base64.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct Visitor(String);

impl Visitor {
    /// A browser that has no cookie yet. `random` must come from a good source: whoever guesses it is the visitor.
    pub(super) fn new(random: [u8; 32]) -> Self {
        Self(BASE64.encode(random))
    }

    /// The visitor that a `Cookie` header names: the first value that has the form of one of ours. Another program on this
    /// machine may have set one of the same name, which the browser then sends as well, and first.
    pub(super) fn from_cookies(header: &str, name: &str) -> Option<Self> {
        let mut values = header.split(';').filter_map(|pair| {
            let (key, value) = pair.trim().split_once('=')?;
            (key == name).then_some(value)
        });
        let is_ours = |value: &&str| BASE64.decode(value).is_ok_and(|octets| octets.len() == 32);
        values.find(is_ours).map(|value| Self(value.to_owned()))
    }

    /// The cookie's value. Never to be logged.
    pub(super) fn value(&self) -> &str {
        &self.0
    }
}

/// What the daemon knows of browsers; a restart signs everybody out.
pub(super) struct Sessions {
    key: hmac::Key,
    signed_in: Mutex<HashMap<Visitor, Timestamp>>,
}

impl Sessions {
    /// Nobody is signed in. `random` is the key of the forms' tokens.
    pub(super) fn new(random: [u8; 32]) -> Self {
        Self { key: hmac::Key::new(hmac::HMAC_SHA256, &random), signed_in: Mutex::default() }
    }

    /// The token that every form in this browser has to carry: only a page that we sent to it can know it.
    pub(super) fn csrf(&self, visitor: &Visitor) -> String {
        BASE64.encode(hmac::sign(&self.key, visitor.value().as_bytes()))
    }

    /// Whether a form came from a page that we sent to this browser.
    pub(super) fn is_csrf(&self, visitor: &Visitor, token: &str) -> bool {
        let Ok(token) = BASE64.decode(token) else {
            return false;
        };
        hmac::verify(&self.key, visitor.value().as_bytes(), &token).is_ok()
    }

    /// Whether it is the password, in a time that tells nothing of it.
    pub(super) fn is_password(&self, given: &str, password: &SecretString) -> bool {
        let expected = hmac::sign(&self.key, password.expose_secret().as_bytes());
        hmac::verify(&self.key, given.as_bytes(), expected.as_ref()).is_ok()
    }

    /// The password was given in this browser. The visitor must be a new one: a value that somebody planted in the
    /// browser before must not become a signed-in one (session fixation).
    pub(super) fn sign_in(&self, visitor: Visitor, now: Timestamp) {
        let mut signed_in = self.signed_in.lock().unwrap_or_else(PoisonError::into_inner);
        signed_in.retain(|_, &mut at| is_fresh(at, now));
        if signed_in.len() >= MOST
            && let Some(first) =
                signed_in.iter().min_by_key(|(_, at)| **at).map(|(visitor, _)| visitor.clone())
        {
            signed_in.remove(&first);
        }
        signed_in.insert(visitor, now);
    }

    /// Whether the password was given in this browser.
    pub(super) fn is_signed_in(&self, visitor: &Visitor, now: Timestamp) -> bool {
        let signed_in = self.signed_in.lock().unwrap_or_else(PoisonError::into_inner);
        signed_in.get(visitor).is_some_and(|&at| is_fresh(at, now))
    }

    /// The password no longer counts in this browser.
    pub(super) fn sign_out(&self, visitor: &Visitor) {
        self.signed_in.lock().unwrap_or_else(PoisonError::into_inner).remove(visitor);
    }
}

/// A clock that went back makes nobody stay for longer.
fn is_fresh(at: Timestamp, now: Timestamp) -> bool {
    now.duration_since(at).abs() < SIGNED_IN_FOR
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(hour: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + 3_600 * hour).unwrap()
    }

    #[test]
    fn a_forms_token_counts_in_its_browser_only() {
        let (sessions, ours, theirs) = (Sessions::new([1; 32]), Visitor::new([2; 32]), Visitor::new([3; 32]));
        let token = sessions.csrf(&ours);
        assert!(sessions.is_csrf(&ours, &token));
        assert!(!sessions.is_csrf(&theirs, &token));
        assert!(!Sessions::new([9; 32]).is_csrf(&ours, &token), "nor after a restart");
        let mut shorter = token.clone();
        shorter.pop();
        for wrong in ["", "AAAA", "not base64!", ours.value(), &shorter] {
            assert!(!sessions.is_csrf(&ours, wrong), "{wrong}");
        }
    }

    #[test]
    fn only_cookies_of_ours_are_taken() {
        let ours = Visitor::new([7; 32]);
        let header = format!("a=b; relay={}; c", ours.value());
        assert!(Visitor::from_cookies(&header, "relay").is_some_and(|found| found == ours));
        let second = format!("relay=theirs; relay={}", ours.value());
        assert!(Visitor::from_cookies(&second, "relay").is_some_and(|found| found == ours));
        let long = format!("relay={}", "A".repeat(10_000));
        for wrong in ["", "relay=", "relay=x", "other=x", &long, &format!("elay={}", ours.value())] {
            assert!(Visitor::from_cookies(wrong, "relay").is_none(), "{wrong}");
        }
    }

    #[test]
    fn a_password_counts_for_twelve_hours_or_until_signed_out() {
        let (sessions, visitor) = (Sessions::new([1; 32]), Visitor::new([2; 32]));
        assert!(!sessions.is_signed_in(&visitor, at(0)));
        sessions.sign_in(visitor.clone(), at(0));
        assert!(sessions.is_signed_in(&visitor, at(11)));
        assert!(!sessions.is_signed_in(&visitor, at(12)) && !sessions.is_signed_in(&visitor, at(-12)));
        sessions.sign_out(&visitor);
        assert!(!sessions.is_signed_in(&visitor, at(1)));
        for n in 0..=255 {
            sessions.sign_in(Visitor::new([n; 32]), at(0));
        }
        assert_eq!(sessions.signed_in.lock().unwrap().len(), MOST);
    }

    #[test]
    fn the_password_is_compared_whole() {
        let (sessions, password) = (Sessions::new([1; 32]), SecretString::from("open sesame"));
        assert!(sessions.is_password("open sesame", &password));
        for wrong in ["", "open", "open sesame ", "Open sesame"] {
            assert!(!sessions.is_password(wrong, &password), "{wrong}");
        }
    }
}
