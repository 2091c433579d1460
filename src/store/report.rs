//! Reports of failed deliveries on their way into Odoo: kept until Odoo has taken them. And how long a message that
//! failed is kept itself.

use super::sql::{run, unencodable};
use super::writer::Write;
use super::{Error, QueueId, Recipient, Store, millis};
use crate::address::Address;
use bytes::Bytes;
use jiff::Timestamp;
use rusqlite::{Connection, params};
use serde::{Deserialize, Serialize};

/// The reports of one failure, to keep in the commit that settles it.
#[derive(Clone)]
pub struct NewReport {
    /// The Message-Id of the message that failed.
    pub message_id: Option<String>,
    /// Each address that it did not reach, with the report (RFC 3464) of that.
    pub reports: Vec<(String, Bytes)>,
    /// They are pushed no earlier.
    pub due_at: Timestamp,
}

impl std::fmt::Debug for NewReport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "NewReport({:?}, {} recipients)", self.message_id, self.reports.len())
    }
}

/// A report that waits for Odoo.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Its own id.
    pub id: i64,
    /// The queue id of the message that failed.
    pub message: QueueId,
    /// That message's Message-Id.
    pub message_id: Option<String>,
    /// The address that it did not reach.
    pub recipient: String,
    /// The last reply to that recipient; `None`: the message is no longer in the queue.
    pub reply: Option<String>,
    /// The mailbox that it was to go out through; likewise.
    pub mailbox: Option<String>,
    /// How often it was pushed.
    pub tries: u32,
    /// Whether the answer to the last push was lost: Odoo may have taken it.
    pub unclear: bool,
    /// What Odoo answered last.
    pub answer: Option<String>,
}

/// How many reports are where.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReportTotals {
    /// Still to be taken by Odoo.
    pub waiting: u64,
    /// Refused by Odoo, and no longer pushed.
    pub refused: u64,
}

/// What becomes of a report after a push.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AfterPush {
    /// Odoo has it: done.
    Taken,
    /// It is pushed again then.
    Again {
        /// When.
        at: Timestamp,
        /// What Odoo answered.
        answer: String,
        /// Odoo may have taken it.
        unclear: bool,
    },
    /// Odoo will not take it: it is kept, and no longer pushed.
    Refused {
        /// What Odoo answered.
        answer: String,
    },
}

#[derive(Debug)]
pub(super) enum ReportWrite {
    Book { id: i64, settled_at: Timestamp },
    Settle { id: i64, after: AfterPush },
    Tidy { messages: Vec<QueueId>, reports_before: Timestamp },
}

impl ReportWrite {
    pub(super) fn operation(&self) -> &'static str {
        match self {
            Self::Book { .. } => "book a report",
            Self::Settle { .. } => "settle a report",
            Self::Tidy { .. } => "delete what failed long ago",
        }
    }
}

impl Store {
    /// The reports whose time has come, oldest first.
    ///
    /// # Errors
    /// The disk's.
    pub async fn reports_due(&self, now: Timestamp, limit: u32) -> Result<Vec<Report>, Error> {
        let sql = "SELECT r.id, r.message, r.message_id, r.recipients, r.state, r.tries, r.answer, m.mailbox, CAST(m.recipients AS BLOB) \
                   FROM report r LEFT JOIN message m ON m.id = r.message \
                   WHERE r.state IN ('waiting', 'pushing') AND r.next_try_at <= ?1 ORDER BY r.id LIMIT ?2";
        let rows: Vec<Row> = self.rows("due reports", sql, (millis(now), limit)).await?;
        Ok(rows.into_iter().map(report_of).collect())
    }

    /// The reports that Odoo refused for good, oldest first.
    ///
    /// # Errors
    /// The disk's.
    pub async fn reports_refused(&self, limit: u32) -> Result<Vec<Report>, Error> {
        let sql = "SELECT r.id, r.message, r.message_id, r.recipients, r.state, r.tries, r.answer, m.mailbox, CAST(m.recipients AS BLOB) \
                   FROM report r LEFT JOIN message m ON m.id = r.message WHERE r.state = 'refused' ORDER BY r.id LIMIT ?1";
        let rows: Vec<Row> = self.rows("refused reports", sql, (limit,)).await?;
        Ok(rows.into_iter().map(report_of).collect())
    }

    /// How many reports wait, and how many were refused.
    ///
    /// # Errors
    /// The disk's.
    pub async fn report_totals(&self) -> Result<ReportTotals, Error> {
        let sql =
            "SELECT coalesce(sum(state <> 'refused'), 0), coalesce(sum(state = 'refused'), 0) FROM report";
        let (waiting, refused): (i64, i64) = self.sum("the reports' totals", sql, ()).await?;
        Ok(ReportTotals { waiting: waiting.unsigned_abs(), refused: refused.unsigned_abs() })
    }

    /// A report's bytes; `None`: there is no such report any more.
    ///
    /// # Errors
    /// The disk's.
    pub async fn report_content(&self, id: i64) -> Result<Option<Vec<u8>>, Error> {
        let sql = "SELECT raw FROM report WHERE id = ?1";
        let found: Option<(Vec<u8>,)> = self.first("a report's content", sql, (id,)).await?;
        Ok(found.map(|(raw,)| raw))
    }

    /// Books a push, before Odoo is called. If its outcome is never settled, it is unclear, and the report due again at
    /// `settled_at`, when Odoo can no longer be working on it.
    ///
    /// # Errors
    /// The disk's, and a report that is no longer there: then it must not be pushed.
    pub async fn book_report(&self, id: i64, settled_at: Timestamp) -> Result<(), Error> {
        self.write(Write::Report(ReportWrite::Book { id, settled_at })).await
    }

    /// Writes down what became of a push.
    ///
    /// # Errors
    /// The disk's; then the outcome counts as unclear.
    pub async fn settle_report(&self, id: i64, after: AfterPush) -> Result<(), Error> {
        self.write(Write::Report(ReportWrite::Settle { id, after })).await
    }

    /// Messages that were given up long ago, at most `limit`: before the time given for their mailbox, or before
    /// `otherwise`. Not those whose report still waits, and not those of which a damaged row does not say what failed.
    ///
    /// # Errors
    /// The disk's.
    pub async fn failed_long_ago(
        &self,
        before: &[(Address, Timestamp)],
        otherwise: Timestamp,
        limit: u32,
    ) -> Result<Vec<QueueId>, Error> {
        let before: serde_json::Map<String, serde_json::Value> =
            before.iter().map(|(mailbox, at)| (mailbox.to_string(), millis(*at).into())).collect();
        let sql = "SELECT id FROM message INDEXED BY message_unusual WHERE state = 'failed' AND state <> 'waiting' \
                   AND changed_at < coalesce((SELECT value FROM json_each(?1) WHERE key = mailbox), ?2) \
                   AND CASE WHEN json_valid(recipients) THEN EXISTS (SELECT 1 FROM json_each(recipients) \
                   WHERE CASE type WHEN 'object' THEN json_extract(value, '$.state') END = 'failed') ELSE 0 END \
                   AND NOT EXISTS (SELECT 1 FROM report WHERE report.message = message.id AND report.state <> 'refused') \
                   ORDER BY id LIMIT ?3";
        let values = (serde_json::Value::Object(before).to_string(), millis(otherwise), limit);
        let ids: Vec<(i64,)> = self.rows("messages that failed long ago", sql, values).await?;
        Ok(ids.into_iter().map(|(id,)| QueueId(id)).collect())
    }

    /// Deletes those of the messages that are still given up, with their reports; and whatever reports were refused
    /// whose message failed before then.
    ///
    /// # Errors
    /// The disk's.
    pub async fn tidy(&self, messages: Vec<QueueId>, reports_before: Timestamp) -> Result<(), Error> {
        self.write(Write::Report(ReportWrite::Tidy { messages, reports_before })).await
    }
}

pub(super) fn apply(write: &ReportWrite, connection: &Connection) -> Result<(), rusqlite::Error> {
    match write {
        ReportWrite::Book { id, settled_at } => book(*id, *settled_at, connection),
        ReportWrite::Settle { id, after } => settle(*id, after, connection),
        ReportWrite::Tidy { messages, reports_before } => tidy(messages, *reports_before, connection),
    }
}

/// Keeps reports. That of a message that came back with a backup may have been taken before: Odoo is asked first.
pub(super) fn insert(
    message: QueueId,
    new: &NewReport,
    now: Timestamp,
    connection: &Connection,
) -> Result<(), rusqlite::Error> {
    for (recipient, raw) in &new.reports {
        let recipients = serde_json::to_string(&[recipient]).map_err(unencodable)?;
        run(
            connection,
            "INSERT INTO report (id, message, message_id, recipients, created_at, state, tries, next_try_at, raw) \
             VALUES ((SELECT coalesce(max(id), 0) + 1 FROM report), ?1, ?2, ?3, ?4, \
             CASE WHEN EXISTS (SELECT 1 FROM backup WHERE ?1 / 1000 <= made_at) THEN 'pushing' ELSE 'waiting' END, \
             0, ?5, ?6)",
            params![message.0, new.message_id, recipients, millis(now), millis(new.due_at), raw.as_ref()],
        )?;
    }
    Ok(())
}

fn book(id: i64, settled_at: Timestamp, connection: &Connection) -> Result<(), rusqlite::Error> {
    let booked = run(
        connection,
        "UPDATE report SET state = 'pushing', tries = tries + 1, next_try_at = ?2 \
         WHERE id = ?1 AND state IN ('waiting', 'pushing')",
        [id, millis(settled_at)],
    )?;
    if booked == 0 { Err(rusqlite::Error::QueryReturnedNoRows) } else { Ok(()) }
}

fn settle(id: i64, after: &AfterPush, connection: &Connection) -> Result<(), rusqlite::Error> {
    let (state, at, answer) = match after {
        AfterPush::Taken => return run(connection, "DELETE FROM report WHERE id = ?1", [id]).map(drop),
        AfterPush::Again { at, answer, unclear: true } => ("pushing", Some(*at), answer),
        AfterPush::Again { at, answer, unclear: false } => ("waiting", Some(*at), answer),
        AfterPush::Refused { answer } => ("refused", None, answer),
    };
    let sql =
        "UPDATE report SET state = ?2, next_try_at = coalesce(?3, next_try_at), answer = ?4 WHERE id = ?1";
    run(connection, sql, params![id, state, at.map(millis), answer]).map(drop)
}

fn tidy(
    messages: &[QueueId],
    reports_before: Timestamp,
    connection: &Connection,
) -> Result<(), rusqlite::Error> {
    for id in messages {
        // Somebody may have had it sent again since.
        if run(connection, "DELETE FROM message WHERE id = ?1 AND state = 'failed'", [id.0])? > 0 {
            run(connection, "DELETE FROM report WHERE message = ?1 AND state = 'refused'", [id.0])?;
        }
    }
    let sql = "DELETE FROM report WHERE state = 'refused' AND created_at < ?1";
    run(connection, sql, [millis(reports_before)]).map(drop)
}

/// id, message, message_id, recipients, state, tries, answer; the message's mailbox and recipients, if it is there: these as
/// bytes, since what is damaged may not even be text.
type Row = (i64, i64, Option<String>, String, String, i64, Option<String>, Option<String>, Option<Vec<u8>>);

fn report_of(row: Row) -> Report {
    let (id, message, message_id, recipients, state, tries, answer, mailbox, known) = row;
    // What is damaged must hold up neither this report nor the others: it is pushed as it is.
    let recipients: Vec<String> = serde_json::from_str(&recipients).unwrap_or_default();
    let recipient = recipients.into_iter().next().unwrap_or_default();
    let known: Vec<Recipient> =
        known.and_then(|known| serde_json::from_slice(&known).ok()).unwrap_or_default();
    Report {
        id,
        message: QueueId(message),
        message_id,
        reply: known.into_iter().find(|known| known.address == recipient).and_then(|known| known.reply),
        recipient,
        mailbox,
        tries: u32::try_from(tries).unwrap_or(u32::MAX),
        unclear: state == "pushing",
        answer,
    }
}
