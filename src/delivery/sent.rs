//! What becomes of a message whose outcome is unknown, by what is found of it in the folder of sent mail, where the
//! service files all that it takes: pure.

use super::outcome::{self, Circumstances, Decision, waits};
use super::policy;
use super::{Config, OnUnknown};
use crate::address::Address;
use crate::clock;
use crate::failure::{Class, Failure};
use crate::message::{HeaderView, received_ids};
use crate::store::{Due, Next, Recipient, RecipientState, SentBy, Settlement};
use jiff::Timestamp;
use std::collections::BTreeSet;
use std::time::Duration;

/// A message that is not there at once is looked for again at these ages of its uncertainty, in seconds; and then when
/// `sent_delay` is over.
const LOOKS: [u64; 2] = [10, 30];
/// For so long the folder may be out of reach before the policy decides.
const PATIENCE: Duration = Duration::from_secs(3600);

/// What looking for a message came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Looked {
    /// It is in this folder.
    Found(String),
    /// It is not there.
    Missing,
    /// Nobody could look, which will pass.
    Failed(Failure),
    /// There is no token to look with. Nothing can be sent either.
    NoToken(Failure),
    /// Nobody can look: IMAP is off, there is no such folder, or the Message-ID cannot be searched for.
    Impossible(Failure),
}

/// What follows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It was sent.
    Sent(String),
    /// It is looked for again then.
    LookAgain(Timestamp),
    /// It is sent again then. `None`: it was not sent; else why nobody knows.
    SendAgain(Timestamp, Option<Failure>),
    /// A person decides.
    Hold(Failure),
    /// It is given up. `true`: it was not sent.
    GiveUp(Failure, bool),
}

/// Decides what follows from looking for a message.
pub(super) fn verdict(due: &Due, looked: Looked, config: &Config, when: Circumstances) -> Verdict {
    let now = when.now;
    let since = due.unknown_since.unwrap_or(now);
    let age = clock::until(since, now);
    let is_filed = age >= config.sent_delay;
    let again = |wait: Duration| Verdict::LookAgain(clock::after(now, wait));
    let before = clock::until(due.tried_since, since);
    let too_old = clock::until(due.tried_since, now) >= config.retry_for;
    let send_again = |why: Option<Failure>| {
        // At once the first time; then by the schedule, lest what cuts each attempt short is asked without end.
        let wait = match due.attempts.saturating_sub(1) {
            0 => None,
            before_this => policy::retry_after(before_this, before, config.retry_for, None, when.random),
        };
        Verdict::SendAgain(clock::after(since, wait.unwrap_or_default()).max(now), why)
    };
    match looked {
        Looked::Found(folder) => Verdict::Sent(folder),
        Looked::Missing if !is_filed => again(next_look(age, config.sent_delay)),
        Looked::Missing if too_old => Verdict::GiveUp(out_of_time(), true),
        Looked::Missing => send_again(None),
        Looked::NoToken(failure) if is_filed && too_old => Verdict::GiveUp(failure, false),
        Looked::NoToken(_) => again(back_off(age)),
        Looked::Failed(failure) if age < PATIENCE.max(config.sent_delay) => {
            again(back_off(age).max(failure.retry_after.unwrap_or_default().min(PATIENCE)))
        }
        Looked::Impossible(_) if !is_filed => again(config.sent_delay.saturating_sub(age)),
        Looked::Failed(failure) | Looked::Impossible(failure) => match config.on_unknown {
            OnUnknown::Hold => Verdict::Hold(failure),
            OnUnknown::Resend if too_old => Verdict::GiveUp(failure, false),
            OnUnknown::Resend => send_again(Some(failure)),
        },
    }
}

/// How long until a message that was not there at this age is looked for again.
fn next_look(age: Duration, sent_delay: Duration) -> Duration {
    let looks = LOOKS.map(Duration::from_secs);
    let next = looks.into_iter().find(|&look| look > age).unwrap_or(sent_delay).min(sent_delay);
    next.saturating_sub(age).max(Duration::from_millis(100))
}

/// How long to leave a folder alone that is out of reach for so long: 5 s, twice that and so on, up to 5 minutes.
fn back_off(age: Duration) -> Duration {
    age.clamp(Duration::from_secs(5), Duration::from_secs(300))
}

fn out_of_time() -> Failure {
    let reply = "its outcome was unknown, and in the end it was not among the sent messages";
    Failure::new(Class::Transient, "connection lost", reply)
}

/// What is to be written down; `None`: nothing but when to look next is known, which [`look_again`] writes.
pub(super) fn decision(due: &Due, verdict: &Verdict, mailbox: &Address, now: Timestamp) -> Decision {
    let becomes = |state: RecipientState, reply: Option<&str>| -> Vec<Recipient> {
        let mut recipients = due.recipients.clone();
        for recipient in recipients.iter_mut().filter(|r| r.state == RecipientState::Unknown) {
            recipient.state = state;
            if let Some(reply) = reply {
                recipient.reply = Some(reply.to_owned());
            }
        }
        recipients
    };
    let plain = |settlement: Settlement| Decision {
        settlement,
        sent: None,
        failed: Vec::new(),
        deferred: None,
        mailbox: None,
    };
    match verdict {
        Verdict::Sent(folder) => {
            let reply = format!("found in {folder}, by attempt {}", due.attempts);
            let mut recipients = becomes(RecipientState::Sent, Some(&reply));
            let by = SentBy { mailbox: mailbox.clone(), attempt: due.attempts };
            for (recipient, before) in recipients.iter_mut().zip(&due.recipients) {
                if before.state == RecipientState::Unknown {
                    recipient.sent_by = Some(by.clone());
                }
            }
            let next = if recipients.iter().any(waits) {
                Next::Again { at: now, unknown: false }
            } else if recipients.iter().any(|recipient| recipient.state == RecipientState::Failed) {
                Next::Failed
            } else {
                Next::Done
            };
            plain(outcome::settlement(due, recipients, None, next, now))
        }
        Verdict::LookAgain(at) => {
            let next = Next::Again { at: *at, unknown: true };
            plain(outcome::settlement(due, due.recipients.clone(), None, next, now))
        }
        Verdict::SendAgain(at, None) => {
            let next = Next::Again { at: *at, unknown: false };
            plain(outcome::settlement(due, becomes(RecipientState::Waiting, None), None, next, now))
        }
        // They stay unknown: should it fail in the end, they may have got it all the same.
        Verdict::SendAgain(at, Some(_)) => {
            let next = Next::Again { at: *at, unknown: false };
            plain(outcome::settlement(due, due.recipients.clone(), None, next, now))
        }
        Verdict::Hold(failure) => {
            plain(outcome::settlement(due, due.recipients.clone(), Some(failure), Next::Held, now))
        }
        Verdict::GiveUp(failure, true) => {
            let due = Due { recipients: becomes(RecipientState::Waiting, None), ..due.clone() };
            outcome::give_up(&due, failure, now)
        }
        Verdict::GiveUp(failure, false) => outcome::give_up(due, failure, now),
    }
}

/// What to look for in the folder of sent mail.
#[derive(Debug)]
pub(super) struct Sought {
    /// With angle brackets, mostly.
    pub(super) message_id: String,
    id: String,
    /// Who may have got it.
    recipients: Vec<Address>,
    /// So many copies are in this mailbox of portions of the message that are known to be sent.
    known: usize,
}

impl Sought {
    /// What to look for of a message in the given mailbox.
    pub(super) fn new(due: &Due, mailbox: &Address) -> Self {
        let in_state =
            |state: RecipientState| due.recipients.iter().filter(move |recipient| recipient.state == state);
        let id = due.id.to_string();
        // One that came without got this one on its way out.
        let own = || format!("<{id}@{}>", mailbox.domain());
        // By attempt, since the service may answer several portions of one message with the same words.
        let by: BTreeSet<_> =
            in_state(RecipientState::Sent).filter_map(|recipient| recipient.sent_by.as_ref()).collect();
        Self {
            message_id: due.message_id.clone().unwrap_or_else(own),
            recipients: in_state(RecipientState::Unknown)
                .filter_map(|recipient| Address::from_spec(&recipient.address))
                .collect(),
            known: by.iter().filter(|by| by.mailbox == *mailbox).count(),
            id,
        }
    }

    /// Whether so many copies are enough to hold that of the unknown transaction.
    pub(super) fn is_among(&self, copies: usize) -> bool {
        copies > self.known
    }

    /// Whether a message with the same Message-ID is of this transaction, by its header: Odoo sends several with one
    /// Message-ID, each to other people. The queue id in the relay's own Received field tells, else the recipients.
    pub(super) fn is_copy(&self, header: &[u8]) -> bool {
        let ids = received_ids(header);
        if !ids.is_empty() {
            return ids.contains(&self.id);
        }
        // The search finds every Message-ID that this one is a part of.
        let view = HeaderView::parse(header);
        if ![view.message_id(), view.original_message_id()]
            .into_iter()
            .flatten()
            .any(|id| id == self.message_id)
        {
            return false;
        }
        let named = Address::all(&recipients_of(header));
        let is_named = |recipient| named.iter().any(|(_, address)| address == recipient);
        !self.recipients.is_empty() && self.recipients.iter().all(is_named)
    }
}

/// The text of To, Cc and Bcc, in one list.
fn recipients_of(header: &[u8]) -> String {
    let header = String::from_utf8_lossy(header);
    let mut list = String::new();
    let mut wanted = false;
    for line in header.lines() {
        let mut value = line;
        if !line.starts_with([' ', '\t']) {
            let (name, rest) = line.split_once(':').unwrap_or_default();
            wanted = ["to", "cc", "bcc"].contains(&name.trim_end().to_ascii_lowercase().as_str());
            value = rest;
            if wanted && !list.is_empty() {
                list.push(',');
            }
        }
        if wanted {
            list.push_str(value);
        }
    }
    list
}

#[cfg(test)]
#[path = "sent_tests.rs"]
mod tests;
