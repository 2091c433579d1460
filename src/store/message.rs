//! What the queue holds, as those see it who fill it, empty it and look at it.

use super::{NewReport, QueueId};
use crate::address::Address;
use crate::failure::Class;
use crate::message::Envelope;
use crate::microsoft::smtp_replies::judge_kept;
use crate::routing::Rule;
use bytes::Bytes;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// A message to accept.
#[derive(Clone)]
pub struct NewMessage {
    /// From [`Store::next_id`].
    pub id: QueueId,
    /// When its data ended.
    pub received_at: Timestamp,
    /// Who it is from and for.
    pub envelope: Envelope,
    /// Whether it holds bytes over 127.
    pub eight_bit: bool,
    /// Its From, decoded.
    pub header_from: Option<String>,
    /// Its Message-Id.
    pub message_id: Option<String>,
    /// The mailbox that it goes out through.
    pub mailbox: Address,
    /// By which rule.
    pub rule: Rule,
    /// The From that it gets on the way out; `None`: its own.
    pub new_from: Option<String>,
    /// Its bytes as they came.
    pub content: Bytes,
}

impl std::fmt::Debug for NewMessage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { id, mailbox, content, .. } = self;
        write!(f, "NewMessage({id} for {mailbox}, {} bytes)", content.len())
    }
}

/// What became of one recipient so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RecipientState {
    /// Still to be sent.
    Waiting,
    /// Handed to Microsoft 365, and the connection or the relay ended before the answer: it may have been taken.
    Unknown,
    /// Taken by Microsoft 365.
    Sent,
    /// Refused for good.
    Failed,
}

/// A recipient, as the envelope named it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recipient {
    /// Its address.
    pub address: String,
    /// What became of it.
    pub state: RecipientState,
    /// The last reply to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reply: Option<String>,
    /// What it was sent by, if it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sent_by: Option<SentBy>,
}

/// A transaction that the service took: it left one copy in that mailbox's folder of sent mail.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SentBy {
    /// The mailbox that it went out through: a message may change to another one half-way.
    pub mailbox: Address,
    /// The number of the attempt.
    pub attempt: u32,
}

impl Recipient {
    /// A recipient to send to.
    pub fn waiting(address: impl Into<String>) -> Self {
        Self { address: address.into(), state: RecipientState::Waiting, reply: None, sent_by: None }
    }
}

/// A message whose time has come.
#[derive(Clone, Debug)]
pub struct Due {
    /// Its id.
    pub id: QueueId,
    /// When it was accepted.
    pub received_at: Timestamp,
    /// From when on it is tried for `retry_for`: since it was accepted, or a person had it tried anew.
    pub tried_since: Timestamp,
    /// The envelope's sender as Odoo gave it.
    pub mail_from: String,
    /// All recipients; only those that wait are to be sent.
    pub recipients: Vec<Recipient>,
    /// Whether an address needs SMTPUTF8.
    pub smtputf8: bool,
    /// Whether the message needs 8BITMIME.
    pub eight_bit: bool,
    /// The From that the header gets; `None`: its own.
    pub new_from: Option<String>,
    /// The Message-Id, for the log.
    pub message_id: Option<String>,
    /// In bytes, as it came.
    pub size: u64,
    /// How many attempts were booked before.
    pub attempts: u32,
    /// Since when the outcome of the last one is unknown, if it is: for the recipients that are
    /// [`RecipientState::Unknown`].
    pub unknown_since: Option<Timestamp>,
}

/// The outcome of an attempt.
#[derive(Clone, Debug)]
pub struct Settlement {
    /// Of which message.
    pub id: QueueId,
    /// When it was known.
    pub at: Timestamp,
    /// All recipients, with what became of them.
    pub recipients: Vec<Recipient>,
    /// `None`: it went well.
    pub class: Option<Class>,
    /// The reply's code.
    pub code: String,
    /// The reply.
    pub reply: String,
    /// What comes next.
    pub next: Next,
    /// Whether the service was asked to take the message: else its place in the mailbox's pace is given back.
    pub paced: bool,
    /// For whom this failed for good: told to Odoo. It is kept in the same commit.
    pub report: Option<NewReport>,
}

/// What comes after an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// All sent: the message leaves the queue.
    Done,
    /// The rest is tried again then. `unknown`: the connection broke when the message may already have been taken.
    Again {
        /// When.
        at: Timestamp,
        /// Whether the outcome is unknown.
        unknown: bool,
    },
    /// Nobody knows whether it was sent: kept until a person decides.
    Held,
    /// Nothing more to try: kept as failed.
    Failed,
}

/// One attempt, from the message's history.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Attempt {
    /// From 1.
    pub number: u32,
    /// When it was booked.
    pub started_at: Timestamp,
    /// When its outcome was known; `None`: not yet.
    pub ended_at: Option<Timestamp>,
    /// `deferred`, `failed`, `unknown`; `None`: it is under way. Of a message that was sent nothing is kept.
    pub outcome: Option<String>,
    /// The class of its failure.
    pub class: Option<String>,
    /// The reply's code.
    pub code: Option<String>,
    /// The reply.
    pub reply: Option<String>,
}

/// Where a message is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum QueuedState {
    /// For its time to come.
    Waiting,
    /// An attempt is under way.
    Sending,
    /// Nobody knows whether it was sent, and a person decides whether it is sent again.
    Held,
    /// Given up.
    Failed,
}

/// A message in the queue, as lists show it.
#[derive(Clone, Debug, Serialize)]
pub struct Queued {
    /// Its id.
    pub id: QueueId,
    /// Where it is in its life.
    pub state: QueuedState,
    /// When it was accepted.
    pub received_at: Timestamp,
    /// When it is tried next (of those that wait).
    pub next_attempt_at: Timestamp,
    /// The envelope's sender as Odoo gave it.
    pub mail_from: String,
    /// Its From, decoded.
    pub from: Option<String>,
    /// Its Message-Id.
    pub message_id: Option<String>,
    /// The mailbox that it goes out through.
    pub mailbox: Address,
    /// Why that one.
    pub rule: Rule,
    /// In bytes.
    pub size: u64,
    /// Its recipients.
    pub recipients: Vec<Recipient>,
    /// Its attempts, oldest first.
    pub attempts: Vec<Attempt>,
}

/// How much of a mailbox's mail is where.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// Messages for which an attempt is still to come or under way, or that are held for a person.
    pub waiting: u64,
    /// Messages given up.
    pub failed: u64,
    /// Messages that are held, of those that wait.
    #[serde(default)]
    pub held: u64,
    /// Recipients of the messages that wait and are not held.
    #[serde(default)]
    pub recipients: u64,
    /// When the oldest that waits was accepted.
    pub oldest: Option<Timestamp>,
}

impl Attempt {
    /// What the service said to it, codes and text; `None`: nothing yet.
    pub fn said(&self) -> Option<String> {
        let reply = self.reply.as_deref()?;
        Some(format!("{} {reply}", self.code.as_deref().unwrap_or_default()).trim_start().to_owned())
    }
}

impl Queued {
    /// What a person can do about its last attempt's failure; `None`: nothing, or it has not failed.
    pub fn advice(&self) -> Option<String> {
        let last = self.attempts.last()?;
        let failure = judge_kept(last.code.as_deref()?, last.reply.as_deref()?, &self.mailbox)?;
        Some(failure.advice).filter(|advice| !advice.is_empty())
    }
}
