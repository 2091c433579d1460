//! What a person does to the queue: picks messages, has them tried again, cancels them.

use super::queue::encode;
use super::sql::{one, run};
use super::writer::Write;
use super::{
    Error, NewReport, QueueId, Queued, QueuedState, Recipient, RecipientState, Store, millis, report,
};
use crate::address::Address;
use jiff::Timestamp;
use rusqlite::{Connection, params};

/// Which messages of the queue a person means; what is left open does not matter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// Only those that go out through this mailbox.
    pub mailbox: Option<Address>,
    /// Only those in this state.
    pub state: Option<QueuedState>,
    /// Only those that were accepted before.
    pub accepted_before: Option<Timestamp>,
}

impl Selection {
    /// Whether a message is meant.
    pub fn holds(&self, message: &Queued) -> bool {
        self.mailbox.as_ref().is_none_or(|mailbox| *mailbox == message.mailbox)
            && self.state.is_none_or(|state| state == message.state)
            && self.accepted_before.is_none_or(|then| message.received_at < then)
    }
}

#[derive(Debug)]
pub(super) enum ByHand {
    Retry(QueueId, Timestamp),
    Cancel { id: QueueId, attempts: i64, report: Option<NewReport>, now: Timestamp },
}

impl ByHand {
    pub(super) fn operation(&self) -> &'static str {
        match self {
            Self::Retry(..) => "have a message tried again",
            Self::Cancel { .. } => "cancel a message",
        }
    }
}

impl Store {
    /// One message of the queue with its attempts; `None`: it is not there.
    ///
    /// # Errors
    /// The disk's, and a row that makes no sense.
    pub async fn queued_one(&self, id: QueueId) -> Result<Option<Queued>, Error> {
        Ok(self.queued_between("a message", id.0.saturating_sub(1), id.0, 1).await?.pop())
    }

    /// Has a message tried now, and for as long as a new one: also one that was given up or is held, whose recipients
    /// it is sent to again. Returns whether it could be: not while an attempt is under way, or when it is gone.
    ///
    /// # Errors
    /// The disk's.
    pub async fn retry(&self, id: QueueId, now: Timestamp) -> Result<bool, Error> {
        self.by_hand(ByHand::Retry(id, now)).await
    }

    /// Takes a message out of the queue, and keeps a report of that for Odoo. Returns whether it could be: not while an
    /// attempt is under way, or when there was another since `message` was read.
    ///
    /// # Errors
    /// The disk's.
    pub async fn cancel(
        &self,
        message: &Queued,
        report: Option<NewReport>,
        now: Timestamp,
    ) -> Result<bool, Error> {
        let attempts = i64::try_from(message.attempts.len()).unwrap_or(i64::MAX);
        self.by_hand(ByHand::Cancel { id: message.id, attempts, report, now }).await
    }

    async fn by_hand(&self, what: ByHand) -> Result<bool, Error> {
        match self.write(Write::ByHand(what)).await {
            Ok(()) => Ok(true),
            Err(Error::Changed) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Counts what persons did to the queue, in this process or another.
    ///
    /// # Errors
    /// The disk's.
    pub async fn done_by_hand(&self) -> Result<i64, Error> {
        let sql = "SELECT coalesce(max(count), 0) FROM by_hand";
        let (count,): (i64,) = self.one("what was done by hand", sql, ()).await?;
        Ok(count)
    }
}

pub(super) fn apply(what: &ByHand, connection: &Connection) -> Result<(), rusqlite::Error> {
    match what {
        ByHand::Retry(id, now) => retry(*id, *now, connection)?,
        ByHand::Cancel { id, attempts, report, now } => {
            // As they were counted: a store of before may have lost one that never ended.
            let sql = "DELETE FROM message WHERE id = ?1 AND state <> 'sending' \
                       AND (SELECT count(*) FROM attempt WHERE message = ?1) = ?2";
            if run(connection, sql, params![id.0, attempts])? == 0 {
                return Err(rusqlite::Error::QueryReturnedNoRows);
            }
            if let Some(report) = report {
                report::insert(*id, report, *now, connection)?;
            }
        }
    }
    count(connection)
}

/// Counts one more deed, so that the daemon sees it.
pub(super) fn count(connection: &Connection) -> Result<(), rusqlite::Error> {
    let sql =
        "INSERT INTO by_hand (one, count) VALUES (1, 1) ON CONFLICT (one) DO UPDATE SET count = count + 1";
    run(connection, sql, []).map(drop)
}

fn retry(id: QueueId, now: Timestamp, connection: &Connection) -> Result<(), rusqlite::Error> {
    // As bytes: what is damaged may not even be text.
    let sql = "SELECT state, CAST(recipients AS BLOB) FROM message WHERE id = ?1 AND state <> 'sending'";
    let (state, recipients): (String, Vec<u8>) = one(connection, sql, [id.0])?;
    // One that only waits keeps what is known of it: whether it was sent is still to be found out.
    let recipients = match (state.as_str(), serde_json::from_slice::<Vec<Recipient>>(&recipients)) {
        ("held" | "failed", Ok(read)) => Some(encode(&anew(read))?),
        _ => None,
    };
    run(
        connection,
        "UPDATE message SET state = 'waiting', next_attempt_at = ?2, changed_at = ?2, tried_since = ?2, \
         recipients = coalesce(?3, recipients), \
         unknown_since = CASE WHEN state = 'waiting' THEN unknown_since END WHERE id = ?1",
        params![id.0, millis(now), recipients],
    )
    .map(drop)
}

/// All whom it did not surely reach are to be sent to again.
fn anew(mut recipients: Vec<Recipient>) -> Vec<Recipient> {
    for recipient in recipients.iter_mut().filter(|recipient| recipient.state != RecipientState::Sent) {
        recipient.state = RecipientState::Waiting;
    }
    recipients
}
