//! What each mailbox was made to send, by the minute: its pace survives a restart.

use super::sql::{one, run};
use super::{Error, QueueId, Store, millis, timestamp};
use crate::address::Address;
use jiff::Timestamp;
use rusqlite::{Connection, params};

const MINUTE: i64 = 60_000;
/// The service counts recipients over a day; what is older than this, in minutes, no longer counts.
const KEPT: i64 = 25 * 60;

/// What a mailbox was made to send in one minute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// When that minute began.
    pub minute: Timestamp,
    /// Messages.
    pub messages: u64,
    /// Their recipients.
    pub recipients: u64,
}

impl Store {
    /// What a mailbox was made to send since then, oldest minute first; the minute that `since` lies in counts whole.
    ///
    /// # Errors
    /// The disk's.
    pub async fn pace(&self, mailbox: &Address, since: Timestamp) -> Result<Vec<Pace>, Error> {
        let sql = "SELECT minute, messages, recipients FROM pace WHERE mailbox = ?1 AND minute >= ?2 ORDER BY minute";
        let values = (mailbox.to_string(), millis(since).div_euclid(MINUTE));
        let rows: Vec<(i64, i64, i64)> = self.rows("a mailbox's pace", sql, values).await?;
        let count = |n: i64| u64::try_from(n).unwrap_or_default();
        Ok(rows
            .into_iter()
            .map(|(minute, messages, recipients)| Pace {
                minute: timestamp(minute.saturating_mul(MINUTE)),
                messages: count(messages),
                recipients: count(recipients),
            })
            .collect())
    }
}

/// Counts an attempt that is being booked.
pub(super) fn count(
    id: QueueId,
    recipients: u32,
    now: Timestamp,
    connection: &Connection,
) -> Result<(), rusqlite::Error> {
    let minute = millis(now).div_euclid(MINUTE);
    let (messages,): (i64,) = one(
        connection,
        "INSERT INTO pace (mailbox, minute, messages, recipients) \
         SELECT mailbox, ?2, 1, ?3 FROM message WHERE id = ?1 \
         ON CONFLICT (mailbox, minute) DO UPDATE SET messages = messages + 1, recipients = recipients + ?3 \
         RETURNING messages",
        params![id.0, minute, recipients],
    )?;
    if messages == 1 {
        let sql =
            "DELETE FROM pace WHERE mailbox = (SELECT mailbox FROM message WHERE id = ?1) AND minute < ?2";
        run(connection, sql, params![id.0, minute - KEPT])?;
    }
    Ok(())
}

/// Takes back what the attempt that was booked last counted: the service was never asked to take the message.
pub(super) fn take_back(id: QueueId, connection: &Connection) -> Result<(), rusqlite::Error> {
    run(
        connection,
        "UPDATE pace SET messages = max(0, pace.messages - 1), recipients = max(0, pace.recipients - open.waiting) \
         FROM (SELECT m.mailbox AS mailbox, m.changed_at / 60000 AS minute, \
               (SELECT count(*) FROM json_each(m.recipients) WHERE json_extract(value, '$.state') IN ('waiting', 'unknown')) AS waiting \
               FROM message m WHERE m.id = ?1 AND m.state = 'sending') AS open \
         WHERE pace.mailbox = open.mailbox AND pace.minute = open.minute",
        [id.0],
    )
    .map(drop)
}
