//! What the administrator's page shows besides the counts: how old each consent is, and what failed last.

use super::queue::address;
use super::{Error, QueueId, Store, timestamp};
use crate::address::Address;
use jiff::Timestamp;

/// The age of a mailbox's consent. Microsoft lets a refresh token live for 90 days and replaces it at every use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConsentAge {
    /// When its owner consented, or the token was taken over.
    pub consented_at: Timestamp,
    /// When the refresh token was last replaced; `None`: not since then.
    pub refreshed_at: Option<Timestamp>,
}

/// The last failure of a message that is still in the queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FailedMessage {
    /// Its id.
    pub id: QueueId,
    /// The mailbox that it goes out through.
    pub mailbox: Address,
    /// When it failed.
    pub at: Timestamp,
    /// When it is tried again; `None`: given up.
    pub next_attempt_at: Option<Timestamp>,
    /// The reply's code.
    pub code: Option<String>,
    /// The reply.
    pub reply: Option<String>,
}

/// A received message that Odoo refuses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RefusedMessage {
    /// Whose inbox holds it.
    pub mailbox: Address,
    /// Its Message-Id, where it has one.
    pub message_id: Option<String>,
    /// When it was last refused.
    pub at: Timestamp,
    /// What Odoo answered.
    pub answer: Option<String>,
}

impl Store {
    /// How old each mailbox's consent is.
    ///
    /// # Errors
    /// The disk's.
    pub async fn consent_ages(&self) -> Result<Vec<(Address, ConsentAge)>, Error> {
        let sql = "SELECT mailbox, consented_at, refreshed_at FROM token";
        let rows: Vec<(String, i64, Option<i64>)> = self.rows("the consents' ages", sql, ()).await?;
        Ok(rows
            .into_iter()
            .filter_map(|(mailbox, consented_at, refreshed_at)| {
                let age = ConsentAge {
                    consented_at: timestamp(consented_at),
                    refreshed_at: refreshed_at.map(timestamp),
                };
                Some((address(&mailbox).ok()?, age))
            })
            .collect())
    }

    /// The messages of the queue that failed last, given up or to be tried again, newest failure first.
    ///
    /// # Errors
    /// The disk's, and rows that make no sense.
    pub async fn last_failed(&self, limit: u32) -> Result<Vec<FailedMessage>, Error> {
        type Row = (i64, String, String, i64, i64, Option<String>, Option<String>);
        let sql = "SELECT m.id, m.mailbox, m.state, m.changed_at, m.next_attempt_at, a.code, a.reply \
                   FROM message m INDEXED BY message_tried \
                   JOIN attempt a ON a.message = m.id AND a.number = m.attempts \
                   WHERE m.attempts > 0 AND m.state <> 'sending' ORDER BY m.changed_at DESC, m.id DESC LIMIT ?1";
        let rows: Vec<Row> = self.rows("the last failures", sql, (limit,)).await?;
        rows.into_iter()
            .map(|(id, mailbox, state, at, next, code, reply)| {
                Ok(FailedMessage {
                    id: QueueId(id),
                    mailbox: address(&mailbox)?,
                    at: timestamp(at),
                    next_attempt_at: (state != "failed").then(|| timestamp(next)),
                    code,
                    reply,
                })
            })
            .collect()
    }

    /// The received messages that Odoo refuses, last refused first.
    ///
    /// # Errors
    /// The disk's, and rows that make no sense.
    pub async fn last_refused(&self, limit: u32) -> Result<Vec<RefusedMessage>, Error> {
        let sql = "SELECT mailbox, message_id, changed_at, answer FROM received WHERE state = 'refused' \
                   ORDER BY changed_at DESC LIMIT ?1";
        let rows: Vec<(String, Option<String>, i64, Option<String>)> =
            self.rows("the last refusals", sql, (limit,)).await?;
        rows.into_iter()
            .map(|(mailbox, message_id, at, answer)| {
                Ok(RefusedMessage { mailbox: address(&mailbox)?, message_id, at: timestamp(at), answer })
            })
            .collect()
    }
}
