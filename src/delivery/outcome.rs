//! What an attempt came to, and what follows from it for the message, its recipients and its mailbox: pure.

use super::policy::{self, ONCE_MORE_WAIT};
use crate::address::Address;
use crate::clock;
use crate::failure::{Class, Failure};
use crate::microsoft::smtp_replies::{Judgement, Reply, Special, Step, judge};
use crate::store::{Due, Next, Recipient, RecipientState, SentBy, Settlement};
use jiff::Timestamp;
use std::time::Duration;

/// A mail transaction (RFC 5321 section 3.3), as far as it went.
#[derive(Debug)]
pub(super) struct Transaction {
    /// The answers to the RCPT commands, in the order of the recipients; shorter where it ended before all were sent.
    pub(super) recipients: Vec<Rcpt>,
    /// How it ended.
    pub(super) end: End,
}

/// The answer to a RCPT command.
#[derive(Debug)]
pub(super) enum Rcpt {
    /// 2yz.
    Accepted,
    /// 4yz or 5yz.
    Refused(Reply),
}

/// How a transaction ended.
#[derive(Debug)]
pub(super) enum End {
    /// The service took the message, for all accepted recipients.
    Taken(Reply),
    /// It refused the message at this step: MAIL, DATA or the final dot.
    Refused(Step, Reply),
    /// It refused every recipient, or one of them for a reason that is the mailbox's.
    NoRecipient,
    /// The connection was lost before the final dot was sent.
    Lost(Failure),
    /// The connection was lost behind the final dot: it may have been taken.
    Unknown(Failure),
    /// The message cannot be sent as it is; nothing was.
    Unsendable(Failure),
}

/// What follows from an attempt.
#[derive(Debug)]
pub(super) struct Decision {
    /// To be written down.
    pub(super) settlement: Settlement,
    /// Who it was sent to, in this attempt, and the reply to that.
    pub(super) sent: Option<(Vec<String>, Reply)>,
    /// Who it will never be sent to, and why.
    pub(super) failed: Vec<(String, Failure)>,
    /// Why the rest is tried again, where that is the message's own trouble.
    pub(super) deferred: Option<Failure>,
    /// The mailbox's trouble, if it is that.
    pub(super) mailbox: Option<Judgement>,
}

/// The circumstances of a decision.
#[derive(Clone, Copy, Debug)]
pub(super) struct Circumstances {
    /// When the outcome was known.
    pub(super) now: Timestamp,
    /// How long a message is tried.
    pub(super) retry_for: Duration,
    /// From 0 to 1.
    pub(super) random: f64,
}

/// Decides what follows from a transaction: see [`Decision`].
pub(super) fn decide(
    due: &Due,
    transaction: &Transaction,
    mailbox: &Address,
    when: Circumstances,
) -> Decision {
    let mut sorting = Sorting::new(due);
    let by = SentBy { mailbox: mailbox.clone(), attempt: due.attempts.saturating_add(1) };
    let waiting = due.recipients.iter().enumerate().filter(|(_, recipient)| waits(recipient));
    let mut answers = transaction.recipients.iter();
    for (index, _) in waiting {
        match answers.next() {
            Some(Rcpt::Refused(reply)) => sorting.refused(index, reply, judge(reply, Step::Rcpt, mailbox)),
            answer => sorting.ended(index, &transaction.end, answer.is_some(), &by),
        }
    }
    sorting.decide(due, &transaction.end, when)
}

/// What follows when the mailbox's trouble kept a booked attempt from even beginning: the message is due again as soon
/// as the mailbox works, in its old place, since it is not to blame.
pub(super) fn put_back(due: &Due, failure: &Failure, now: Timestamp) -> Settlement {
    let next = Next::Again { at: due.received_at.min(now), unknown: false };
    Settlement { paced: false, ..settlement(due, due.recipients.clone(), Some(failure), next, now) }
}

/// What follows when a message can no longer be sent: all who still wait fail for this reason.
pub(super) fn give_up(due: &Due, failure: &Failure, now: Timestamp) -> Decision {
    let when = Circumstances { now, retry_for: Duration::ZERO, random: 0.0 };
    let mut sorting = Sorting::new(due);
    sorting.fail_waiting(failure);
    sorting.decide(due, &End::Unsendable(failure.clone()), when)
}

/// The recipients as they are to be written down before the message is handed over, so that the next start knows whom an
/// attempt that was cut short may have reached; `answers` are those to RCPT. `None`: it will know without.
pub(super) fn handing_over(due: &Due, answers: &[Rcpt]) -> Option<Vec<Recipient>> {
    let mut recipients = due.recipients.clone();
    let mut answers = answers.iter();
    for recipient in recipients.iter_mut().filter(|recipient| waits(recipient)) {
        let answer = answers.next();
        let accepted = matches!(answer, Some(Rcpt::Accepted));
        recipient.state = if accepted { RecipientState::Unknown } else { RecipientState::Waiting };
        if let Some(Rcpt::Refused(reply)) = answer {
            recipient.reply = Some(reply.to_string());
        }
    }
    // As the store sees it: those known to be handed over, else all who wait.
    let is_unknown = |recipient: &Recipient| recipient.state == RecipientState::Unknown;
    let some_are = due.recipients.iter().any(is_unknown);
    let presumed = |before: &Recipient| if some_are { is_unknown(before) } else { waits(before) };
    let agrees = due.recipients.iter().map(presumed).eq(recipients.iter().map(is_unknown));
    (!agrees).then_some(recipients)
}

/// Whether it is still to be sent to a recipient, or sent again.
pub(super) fn waits(recipient: &Recipient) -> bool {
    matches!(recipient.state, RecipientState::Waiting | RecipientState::Unknown)
}

/// A decision in the making.
struct Sorting {
    recipients: Vec<Recipient>,
    sent: Vec<String>,
    failed: Vec<(String, Failure)>,
    deferred: Option<Failure>,
    mailbox: Option<Judgement>,
    once_more: bool,
    /// The message was handed over, and no answer came.
    unknown: bool,
    /// The service takes no more recipients at a time.
    split: Option<Failure>,
}

impl Sorting {
    fn new(due: &Due) -> Self {
        Self {
            recipients: due.recipients.clone(),
            sent: Vec::new(),
            failed: Vec::new(),
            deferred: None,
            mailbox: None,
            once_more: false,
            unknown: false,
            split: None,
        }
    }

    /// What the end of the transaction means for a recipient who was not refused; `asked`: whom RCPT named.
    fn ended(&mut self, index: usize, end: &End, asked: bool, by: &SentBy) {
        match end {
            End::Taken(reply) if asked => {
                if let Some(recipient) = self.recipients.get_mut(index) {
                    recipient.state = RecipientState::Sent;
                    recipient.reply = Some(reply.to_string());
                    recipient.sent_by = Some(by.clone());
                    self.sent.push(recipient.address.clone());
                }
            }
            End::Unknown(failure) if asked => {
                self.defer(index, failure);
                self.unknown = true;
                if let Some(recipient) = self.recipients.get_mut(index) {
                    recipient.state = RecipientState::Unknown;
                }
            }
            // Not named since the service took no more: they come next.
            End::Taken(_) | End::Unknown(_) | End::NoRecipient => {}
            End::Refused(step, reply) => {
                let judgement = judge(reply, *step, &by.mailbox);
                // What was refused of a portion's content says nothing final about those who were in none.
                let is_theirs = asked || self.split.is_none() || judgement.failure.class != Class::Message;
                if is_theirs {
                    self.refused(index, reply, judgement);
                }
            }
            End::Lost(failure) => self.defer(index, failure),
            End::Unsendable(failure) => self.fail(index, failure),
        }
    }

    fn refused(&mut self, index: usize, reply: &Reply, judgement: Judgement) {
        let seen_before = self.recipients.get(index).and_then(|recipient| recipient.reply.as_deref());
        let seen_before = seen_before.is_some_and(|before| before.starts_with(&reply.codes()));
        match (judgement.special, judgement.failure.class) {
            (_, class) if class.pauses_mailbox() => {
                self.reply(index, &judgement.failure);
                self.mailbox.get_or_insert(judgement);
            }
            (Special::Split, _) => {
                self.reply(index, &judgement.failure);
                self.split = Some(judgement.failure);
            }
            (Special::OnceMore, _) if !seen_before => {
                self.defer(index, &judgement.failure);
                self.once_more = true;
            }
            (_, Class::Message) => self.fail(index, &judgement.failure),
            _ => self.defer(index, &judgement.failure),
        }
    }

    fn defer(&mut self, index: usize, failure: &Failure) {
        self.reply(index, failure);
        self.deferred.get_or_insert_with(|| failure.clone());
    }

    fn fail(&mut self, index: usize, failure: &Failure) {
        let was_unknown =
            self.recipients.get(index).is_some_and(|recipient| recipient.state == RecipientState::Unknown);
        let failure = if was_unknown { perhaps_delivered(failure) } else { failure.clone() };
        self.reply(index, &failure);
        if let Some(recipient) = self.recipients.get_mut(index) {
            recipient.state = RecipientState::Failed;
            self.failed.push((recipient.address.clone(), failure));
        }
    }

    fn fail_waiting(&mut self, failure: &Failure) {
        for index in 0..self.recipients.len() {
            if self.recipients.get(index).is_some_and(waits) {
                self.fail(index, failure);
            }
        }
    }

    fn reply(&mut self, index: usize, failure: &Failure) {
        if let Some(recipient) = self.recipients.get_mut(index) {
            recipient.reply = Some(format!("{} {}", failure.code, failure.reply));
        }
    }

    fn decide(mut self, due: &Due, end: &End, when: Circumstances) -> Decision {
        let age = clock::until(due.tried_since, when.now);
        if self.sent.is_empty() && self.deferred.is_none() {
            // It does not even take one: that is why the message waits.
            self.deferred = self.split.clone();
        }
        let next = if self.recipients.iter().any(waits) {
            match self.wait(due, age, when) {
                Some(wait) => Next::Again { at: clock::after(when.now, wait), unknown: self.unknown },
                None => {
                    let failure = self.deferred.take().unwrap_or_else(too_many);
                    self.fail_waiting(&failure);
                    Next::Failed
                }
            }
        } else if self.recipients.iter().any(|recipient| recipient.state == RecipientState::Failed) {
            Next::Failed
        } else {
            Next::Done
        };
        let sent = match end {
            End::Taken(reply) => Some((self.sent, reply.clone())),
            _ => None,
        };
        let mailbox_failure = self.mailbox.as_ref().map(|judgement| &judgement.failure);
        let first_failed = self.failed.first().map(|(_, failure)| failure);
        let decisive = mailbox_failure.or(self.deferred.as_ref()).or(first_failed);
        Decision {
            settlement: settlement(due, self.recipients, decisive, next, when.now),
            sent,
            failed: self.failed,
            deferred: self.deferred.filter(|_| self.mailbox.is_none()),
            mailbox: self.mailbox,
        }
    }

    /// How long until those who wait are tried again; `None`: the time for that is over.
    fn wait(&self, due: &Due, age: Duration, when: Circumstances) -> Option<Duration> {
        let left = when.retry_for.checked_sub(age).filter(|left| !left.is_zero());
        let attempts = due.attempts.saturating_add(1);
        let asked = self.deferred.as_ref().and_then(|failure| failure.retry_after);
        if self.unknown {
            // Looked for at once, whatever its age: what becomes of it is decided then.
            Some(Duration::ZERO)
        } else if self.mailbox.is_some() {
            // Due as soon as the mailbox works: the mailbox's trouble gives up what waits for too long.
            Some(Duration::ZERO)
        } else if self.split.is_some() && !self.sent.is_empty() {
            // The service takes them in portions, and it took one.
            Some(Duration::ZERO)
        } else if self.once_more {
            left.map(|left| left.min(ONCE_MORE_WAIT))
        } else {
            policy::retry_after(attempts, age, when.retry_for, asked, when.random)
        }
    }
}

/// What is said of recipients whom the service never took, because of others, until the end.
fn too_many() -> Failure {
    Failure::new(Class::Transient, "452 4.5.3", "too many recipients, in every portion")
}

/// A failure of somebody who may have got the message from an attempt that nobody heard the end of.
fn perhaps_delivered(failure: &Failure) -> Failure {
    Failure {
        reply: format!(
            "it may have been delivered all the same, by an attempt whose end is unknown: {}",
            failure.reply
        ),
        advice: "look into the mailbox's folder of sent mail, or ask the recipient, before you send it again"
            .to_owned(),
        ..failure.clone()
    }
}

pub(super) fn settlement(
    due: &Due,
    recipients: Vec<Recipient>,
    failure: Option<&Failure>,
    next: Next,
    at: Timestamp,
) -> Settlement {
    Settlement {
        id: due.id,
        at,
        recipients,
        class: failure.map(|failure| failure.class),
        code: failure.map(|failure| failure.code.clone()).unwrap_or_default(),
        reply: failure.map(|failure| failure.reply.clone()).unwrap_or_default(),
        next,
        paced: true,
        report: None,
    }
}

#[cfg(test)]
#[path = "outcome_tests.rs"]
mod tests;
