//! Messages whose outcome is unknown: the service may have taken them, and nobody heard. And those that cannot be read.

use super::message::{Due, Recipient, RecipientState, Settlement};
use super::queue::{QueueWrite, due, due_rows, encode, settle};
use super::sql::{one, rows, run};
use super::writer::Write;
use super::{Error, QueueId, Store, millis};
use crate::address::Address;
use jiff::Timestamp;
use rusqlite::{Connection, params};

/// The message as it was read: whoever decided on that must not overrule what happened to it since.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen {
    attempts: u32,
    tried_since: Timestamp,
    unknown: bool,
}

impl Store {
    /// Writes down, before DATA, to whom the attempt under way hands its message over, where that is not everybody who
    /// waits: those are [`RecipientState::Unknown`] from here on, should the relay stop in the middle.
    ///
    /// # Errors
    /// The disk's; then the message must not be handed over.
    pub async fn hand_over(&self, id: QueueId, recipients: Vec<Recipient>) -> Result<(), Error> {
        self.write(Write::Queue(QueueWrite::HandOver { id, recipients })).await
    }

    /// Writes down what becomes, without another attempt, of a message that waits: what is known now where its outcome
    /// was unknown, or that it is given up. Returns whether that was written: one that a person cancelled or had tried
    /// anew since `due` was read stays as it is.
    ///
    /// # Errors
    /// The disk's; then nothing has changed.
    pub async fn resolve(&self, due: &Due, settlement: Settlement) -> Result<bool, Error> {
        let Due { attempts, tried_since, unknown_since, .. } = due;
        let seen = Seen { attempts: *attempts, tried_since: *tried_since, unknown: unknown_since.is_some() };
        match self.write(Write::Queue(QueueWrite::Resolve(Box::new(settlement), seen))).await {
            Ok(()) => Ok(true),
            Err(Error::Changed) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Keeps a waiting message that cannot be read as failed, so that it holds up no other.
    ///
    /// # Errors
    /// The disk's.
    pub async fn set_aside(&self, id: QueueId) -> Result<(), Error> {
        self.write(Write::Queue(QueueWrite::SetAside(id))).await
    }

    /// At the start: attempts that a crash cut short have an unknown outcome, and their messages are due at once, to be
    /// looked for.
    ///
    /// # Errors
    /// The disk's.
    pub async fn recover(&self, now: Timestamp) -> Result<(), Error> {
        self.write(Write::Queue(QueueWrite::Recover(now))).await
    }

    /// The messages of a mailbox whose outcome is unknown and that are to be looked for now, longest due first.
    ///
    /// # Errors
    /// The disk's.
    pub async fn unknown(&self, mailbox: &Address, now: Timestamp, limit: u32) -> Result<Vec<Due>, Error> {
        let sql = due!(
            "INDEXED BY message_unknown \
             WHERE state = 'waiting' AND mailbox = ?1 AND next_attempt_at <= ?2 AND unknown_since IS NOT NULL \
             ORDER BY next_attempt_at, id LIMIT ?3"
        );
        let rows = self.read("messages with an unknown outcome", due_rows(sql, mailbox, now, limit)).await?;
        self.readable(rows).await
    }
}

pub(super) fn hand_over(
    id: QueueId,
    recipients: &[Recipient],
    connection: &Connection,
) -> Result<(), rusqlite::Error> {
    let sql = "UPDATE message SET recipients = ?2 WHERE id = ?1 AND state = 'sending'";
    run(connection, sql, params![id.0, encode(recipients)?]).map(drop)
}

pub(super) fn resolve(
    settlement: &Settlement,
    seen: Seen,
    connection: &Connection,
) -> Result<(), rusqlite::Error> {
    let _: (i64,) = one(
        connection,
        "SELECT id FROM message WHERE id = ?1 AND state = 'waiting' AND (unknown_since IS NOT NULL) = ?2 \
         AND attempts = ?3 AND coalesce(tried_since, received_at) = ?4",
        params![settlement.id.0, seen.unknown, seen.attempts, millis(seen.tried_since)],
    )?;
    settle(settlement, connection)
}

pub(super) fn recover(now: Timestamp, connection: &Connection) -> Result<(), rusqlite::Error> {
    run(
        connection,
        "INSERT INTO attempt (message, number, started_at, ended_at, outcome, reply) \
         SELECT id, attempts, changed_at, ?1, 'unknown', 'the relay stopped in the middle of it' \
         FROM message INDEXED BY message_unusual WHERE state = 'sending' AND state <> 'waiting' ON CONFLICT DO NOTHING",
        [millis(now)],
    )?;
    let sql = "SELECT id, CAST(recipients AS BLOB) FROM message INDEXED BY message_unusual \
               WHERE state = 'sending' AND state <> 'waiting'";
    for (id, recipients) in rows(connection, sql, [])? {
        is_unknown(id, recipients, interrupt, now, connection)?;
    }
    Ok(())
}

/// Whether a message that waits from now on was sent is not known, for those of its `recipients` that `who` says. These come as
/// bytes: what is damaged may not even be text.
pub(super) fn is_unknown(
    id: i64,
    recipients: Vec<u8>,
    who: fn(Vec<Recipient>) -> Vec<Recipient>,
    now: Timestamp,
    connection: &Connection,
) -> Result<(), rusqlite::Error> {
    // Of a damaged row nothing is known: it is found, and set aside, when it is due.
    let read = serde_json::from_slice(&recipients).ok();
    let recipients = read.map(|read| encode(&who(read))).transpose()?;
    run(
        connection,
        "UPDATE message SET state = 'waiting', next_attempt_at = ?2, changed_at = ?2, unknown_since = ?2, \
         recipients = coalesce(?3, recipients) WHERE id = ?1",
        params![id, millis(now), recipients],
    )
    .map(drop)
}

/// Whom an interrupted attempt may have reached: those who were written down as handed over, where only some could be
/// ([`RecipientState::Unknown`]); else all who waited.
fn interrupt(mut recipients: Vec<Recipient>) -> Vec<Recipient> {
    if !recipients.iter().any(|recipient| recipient.state == RecipientState::Unknown) {
        for recipient in recipients.iter_mut().filter(|r| r.state == RecipientState::Waiting) {
            recipient.state = RecipientState::Unknown;
        }
    }
    recipients
}
