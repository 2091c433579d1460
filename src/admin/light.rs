//! How a mailbox's token does, at a glance: pure.

use super::status::MailboxStatus;
use crate::clock;
use crate::failure::Class;
use crate::tokens::State;
use jiff::Timestamp;
use std::time::Duration;

/// So long before a consent runs out its owner is asked for a new one. It only gets there when nothing could refresh it.
const CONSENT_SOON: Duration = Duration::from_secs(14 * 24 * 60 * 60);

/// A traffic light.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Light {
    /// It works.
    Green,
    /// It works or will by itself, but is worth a look.
    Amber,
    /// It does not go on before a person acts.
    Red,
}

impl Light {
    /// Its name, for the style sheet and for metrics.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Green => "green",
            Self::Amber => "amber",
            Self::Red => "red",
        }
    }

    /// A sign that differs in shape, for who does not see colours.
    pub(super) fn sign(self) -> &'static str {
        match self {
            Self::Green => "✓",
            Self::Amber => "!",
            Self::Red => "✕",
        }
    }
}

/// The light of a mailbox's token, and what it means in words.
pub(super) fn of_token(mailbox: &MailboxStatus, now: Timestamp) -> (Light, &'static str) {
    let Some(token) = &mailbox.token else {
        return (Light::Amber, "No token yet");
    };
    let class = token.failure.as_ref().map(|failure| failure.class);
    let usable = token.expires_at.is_some_and(|at| now < at);
    match (token.state, class) {
        (State::Missing, _) => (Light::Red, "Not connected"),
        (State::Failed, Some(Class::Consent)) => (Light::Red, "Must be connected anew"),
        (State::Failed, Some(Class::Administrator)) => (Light::Red, "An administrator must act"),
        (State::Failed, _) if usable => (Light::Amber, "Works, but cannot be refreshed right now"),
        (State::Failed, _) => (Light::Amber, "No token right now, tried again by itself"),
        (State::Refreshing, _) => (Light::Amber, "Being refreshed"),
        (State::Ok, _) if runs_out(mailbox, now) => (Light::Amber, "Consent runs out soon"),
        (State::Ok, _) => (Light::Green, "Outlook token valid"),
    }
}

fn runs_out(mailbox: &MailboxStatus, now: Timestamp) -> bool {
    mailbox.consent.as_ref().is_some_and(|consent| clock::until(now, consent.lasts_until) < CONSENT_SOON)
}

#[cfg(test)]
mod tests {
    use super::super::status::ConsentStatus;
    use super::*;
    use crate::failure::Failure;
    use crate::store::Totals;
    use crate::tokens::TokenState;
    use std::collections::BTreeMap;

    fn at(day: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + 86_400 * day).unwrap()
    }

    fn mailbox(state: State, class: Option<Class>, usable: bool, consent_days: i64) -> MailboxStatus {
        MailboxStatus {
            address: "john@example.com".to_owned(),
            token: Some(TokenState {
                state,
                expires_at: usable.then(|| at(1)),
                refreshed_at: None,
                failure: class.map(|class| Failure::new(class, "code", "reply")),
            }),
            consent: Some(ConsentStatus {
                consented_at: at(consent_days - 90),
                refreshed_at: None,
                lasts_until: at(consent_days),
            }),
            app_only: false,
            queue: Totals::default(),
            paced_seconds: 0.0,
            done_by: None,
            inbox: None,
            troubles: BTreeMap::new(),
        }
    }

    #[test]
    fn each_state_has_its_light_and_words() {
        let table = [
            (mailbox(State::Ok, None, true, 90), Light::Green, "valid"),
            (mailbox(State::Ok, None, true, 13), Light::Amber, "runs out"),
            (mailbox(State::Refreshing, None, false, 90), Light::Amber, "refreshed"),
            (mailbox(State::Missing, Some(Class::Consent), false, 90), Light::Red, "Not connected"),
            (mailbox(State::Failed, Some(Class::Consent), true, 90), Light::Red, "anew"),
            (mailbox(State::Failed, Some(Class::Administrator), false, 90), Light::Red, "administrator"),
            (mailbox(State::Failed, Some(Class::Transient), true, 90), Light::Amber, "Works"),
            (mailbox(State::Failed, Some(Class::Transient), false, 90), Light::Amber, "tried again"),
        ];
        for (mailbox, light, words) in table {
            let (seen, said) = of_token(&mailbox, at(0));
            assert_eq!(seen, light, "{mailbox:?}");
            assert!(said.contains(words), "{said}");
        }
    }
}
