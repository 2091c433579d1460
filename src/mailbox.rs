//! Who a mailbox is (its section of the configuration), and the troubles it is in right now.

use crate::address::Address;
use crate::failure::Failure;
use crate::odoo::Intake;
use crate::routing::Candidate;
use crate::section::Section;
use crate::{clock, delivery, fetch, microsoft};
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use std::sync::{Arc, Mutex, PoisonError};

/// A `[[mailbox]]` of the configuration, with what it overrides of `[microsoft]`, `[delivery]` and `[fetch]` merged in.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The mailbox's address at Microsoft 365.
    pub address: Address,
    /// As in Odoo's outgoing mail server: a comma list of addresses and domains; absent: any From.
    pub from_filter: Option<String>,
    /// As in Odoo: the lowest is asked first.
    pub sequence: i64,
    /// Whether its inbox is pushed into Odoo.
    pub inbox: bool,
    /// The IMAP folder that is watched.
    pub folder: String,
    /// Who signs in for it, where that is not the mailbox itself: a shared mailbox, or a sign-in name of its own.
    pub sign_in_as: Option<Address>,
    /// What Odoo is to do with its mail.
    pub intake: Intake,
    /// How to reach Microsoft 365 for it.
    pub microsoft: microsoft::Config,
    /// How its mail goes out.
    pub delivery: delivery::Config,
    /// How its inbox is watched.
    pub fetch: fetch::Config,
}

impl Config {
    /// Reads one `[[mailbox]]`; what it does not say comes from the sections of the whole file.
    pub fn read(
        section: &mut Section<'_>,
        microsoft: &microsoft::Config,
        delivery: &delivery::Config,
        fetch: &fetch::Config,
    ) -> Option<Self> {
        let address = section.required::<Address>("address", "the mailbox's address at Microsoft 365");
        let mailbox = Self {
            from_filter: section.get("from_filter"),
            sequence: section.get_or("sequence", 10),
            inbox: section.get_or("inbox", false),
            folder: section.get_or("folder", "INBOX".to_owned()),
            sign_in_as: section.get("sign_in_as"),
            intake: Intake::read(section),
            microsoft: microsoft::Config::read(section, microsoft),
            delivery: delivery::Config::read(section, delivery),
            fetch: fetch::Config::read(section, fetch),
            address: address.clone()?,
        };
        if mailbox.folder.is_empty() {
            section.mistake("folder", "is empty: name the IMAP folder, for example \"INBOX\"");
        }
        if mailbox.inbox {
            mailbox.fetch.check(section, &mailbox.folder);
        }
        Some(mailbox)
    }

    /// The account that consents for it.
    pub fn expected_account(&self) -> &Address {
        self.sign_in_as.as_ref().unwrap_or(&self.address)
    }

    /// What the From-filter rule sees of it.
    pub fn candidate(&self) -> Candidate {
        Candidate { mailbox: self.address.clone(), sequence: self.sequence, filter: self.from_filter.clone() }
    }
}

/// A mailbox at work: its configuration, and its live troubles.
#[derive(Debug)]
pub struct Mailbox {
    /// Its configuration.
    pub config: Config,
    /// Trouble with its token.
    pub token: Trouble,
    /// Trouble with sending through it.
    pub smtp: Trouble,
    /// Trouble with watching its inbox.
    pub imap: Trouble,
}

impl Mailbox {
    /// A mailbox without any trouble yet.
    pub fn new(config: Config) -> Arc<Self> {
        let subject = config.address.to_string();
        Arc::new(Self {
            config,
            token: Trouble::new("token failed", "mailbox recovered", "token", subject.clone()),
            smtp: Trouble::new("mailbox paused", "mailbox recovered", "sending", subject.clone()),
            imap: Trouble::new("mailbox paused", "mailbox recovered", "inbox", subject),
        })
    }

    /// Its address.
    pub fn address(&self) -> &Address {
        &self.config.address
    }
}

/// A trouble that may last: one line when it begins, one reminder an hour, one INFO when it ends.
#[derive(Debug)]
pub struct Trouble {
    /// The event that is logged when it begins and on every reminder.
    begins: &'static str,
    /// The event that is logged when it ends.
    ends: &'static str,
    /// What is in trouble: `token`, `sending`, `inbox`, `odoo`.
    part: &'static str,
    /// Whose trouble it is; empty: the whole relay's.
    mailbox: String,
    now: Mutex<Option<Lasting>>,
}

/// A trouble that lasts, as `status` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lasting {
    /// Since when.
    pub since: Timestamp,
    /// The last failure of it.
    pub failure: Failure,
    #[serde(skip)]
    logged_at: Timestamp,
    /// Whether it needed a person at any time since it began.
    #[serde(skip)]
    severe: bool,
}

/// What a failure does to the log.
#[derive(Debug, PartialEq, Eq)]
enum Say {
    Begin,
    Remind,
    Nothing,
}

/// Reminders of a lasting trouble come this often.
const REMIND_EVERY: SignedDuration = SignedDuration::from_hours(1);

impl Trouble {
    /// No trouble, of the given part of the given mailbox (empty: of the whole relay).
    pub fn new(begins: &'static str, ends: &'static str, part: &'static str, mailbox: String) -> Self {
        Self { begins, ends, part, mailbox, now: Mutex::new(None) }
    }

    /// Something failed: logs when the trouble is new, got worse, or lasts another hour.
    pub fn fail(&self, failure: &Failure, now: Timestamp) {
        let mut lasting = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        let say = say(lasting.as_ref(), failure, now);
        let since = lasting.as_ref().map_or(now, |lasting| lasting.since);
        let logged_at = match (&say, lasting.as_ref()) {
            (Say::Nothing, Some(lasting)) => lasting.logged_at,
            _ => now,
        };
        let severe = failure.class.needs_a_person() || lasting.as_ref().is_some_and(|lasting| lasting.severe);
        *lasting = Some(Lasting { since, failure: failure.clone(), logged_at, severe });
        drop(lasting);
        if say == Say::Nothing {
            return;
        }
        let since = (say == Say::Remind).then(|| tracing::field::display(clock::to_second(since)));
        let mailbox = self.mailbox();
        let Failure { class, code, reply, advice, .. } = failure;
        // A trouble that passes by itself is a warning until it has lasted for an hour.
        if class.needs_a_person() || say == Say::Remind {
            tracing::error!(mailbox, part = self.part, %class, code, reply, advice, since, "{}", self.begins);
        } else {
            tracing::warn!(mailbox, part = self.part, %class, code, reply, advice, since, "{}", self.begins);
        }
    }

    /// It works: logs once if it did not before. Returns whether a trouble ended.
    pub fn well(&self) -> bool {
        let ended = self.now.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(lasting) = &ended {
            let since = clock::to_second(lasting.since);
            tracing::info!(mailbox = self.mailbox(), part = self.part, %since, "{}", self.ends);
        }
        ended.is_some()
    }

    /// As a log field; absent where it is nobody's in particular.
    fn mailbox(&self) -> Option<tracing::field::DisplayValue<&str>> {
        (!self.mailbox.is_empty()).then(|| tracing::field::display(self.mailbox.as_str()))
    }

    /// The trouble it is in right now, if any.
    pub fn lasting(&self) -> Option<Lasting> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Decides what to log: pure, so that "one line, one reminder an hour" can be tested without waiting.
fn say(lasting: Option<&Lasting>, failure: &Failure, now: Timestamp) -> Say {
    match lasting {
        None => Say::Begin,
        // It got worse: said once, though a failure that passes may come in between.
        Some(lasting) if failure.class.needs_a_person() && !lasting.severe => Say::Begin,
        Some(lasting) if now.duration_since(lasting.logged_at) >= REMIND_EVERY => Say::Remind,
        Some(_) => Say::Nothing,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::Class;

    #[test]
    fn a_lasting_trouble_is_said_once_and_hourly() {
        let at = |minute: i64| Timestamp::from_second(1_000_000 + 60 * minute).unwrap();
        let passing = Failure::new(Class::Transient, "timeout", "no answer");
        let severe = Failure::new(Class::Consent, "AADSTS700082", "expired");
        let lasting = |failure: &Failure, logged| Lasting {
            since: at(0),
            failure: failure.clone(),
            logged_at: at(logged),
            severe: failure.class.needs_a_person(),
        };

        assert_eq!(say(None, &passing, at(0)), Say::Begin);
        assert_eq!(say(Some(&lasting(&passing, 0)), &passing, at(59)), Say::Nothing);
        assert_eq!(say(Some(&lasting(&passing, 0)), &passing, at(60)), Say::Remind);
        assert_eq!(say(Some(&lasting(&passing, 0)), &severe, at(1)), Say::Begin, "it got worse");
        assert_eq!(say(Some(&lasting(&severe, 0)), &passing, at(1)), Say::Nothing);
    }

    #[test]
    fn a_trouble_that_gets_worse_is_said_once_whatever_comes_in_between() {
        let now = Timestamp::from_second(1_000_000).unwrap();
        let trouble =
            Trouble::new("mailbox paused", "mailbox recovered", "sending", "j@example.com".to_owned());
        let passing = Failure::new(Class::Transient, "timeout", "no answer");
        let severe = Failure::new(Class::Administrator, "535 5.7.139", "disabled");
        trouble.fail(&severe, now);
        trouble.fail(&passing, now);
        assert_eq!(say(trouble.lasting().as_ref(), &severe, now), Say::Nothing);
    }

    #[test]
    fn a_trouble_remembers_when_it_began_and_ends_once() {
        let start = Timestamp::from_second(1_000_000).unwrap();
        let trouble =
            Trouble::new("token failed", "mailbox recovered", "token", "john@example.com".to_owned());
        let failure = Failure::new(Class::Transient, "timeout", "no answer");
        trouble.fail(&failure, start);
        trouble.fail(&failure, start.checked_add(SignedDuration::from_hours(2)).unwrap());
        assert_eq!(trouble.lasting().unwrap().since, start);
        assert!(trouble.well());
        assert!(!trouble.well());
        assert_eq!(trouble.lasting(), None);
    }
}
