//! The queue's rows: accepted messages, their recipients, their attempts.

use super::message::{Attempt, Due, NewMessage, Next, Queued, QueuedState, Recipient, Settlement, Totals};
use super::sql::{run, unencodable};
use super::unknown::Seen;
use super::waiting::Stray;
use super::writer::Write;
use super::{Error, QueueId, Store, millis, pace, report, timestamp, unknown};
use crate::address::Address;
use crate::failure::{Class, chain};
use crate::routing::Rule;
use jiff::Timestamp;
use rusqlite::types::FromSql;
use rusqlite::{Connection, Row, params};

/// A query for messages as [`Due`] has them.
macro_rules! due {
    ($which:literal) => {
        concat!(
            "SELECT id, received_at, mail_from, recipients, smtputf8, eight_bit, new_from, message_id, size, attempts, \
             unknown_since, tried_since FROM message ",
            $which
        )
    };
}
pub(super) use due;

#[derive(Debug)]
pub(super) enum QueueWrite {
    Accept(Box<NewMessage>),
    Book { id: QueueId, recipients: u32, now: Timestamp },
    HandOver { id: QueueId, recipients: Vec<Recipient> },
    Settle(Box<Settlement>),
    Resolve(Box<Settlement>, Seen),
    Recover(Timestamp),
    SetAside(QueueId),
    Reroute { id: QueueId, mailbox: Address, rule: Rule, new_from: Option<String>, hold: bool },
}

impl QueueWrite {
    pub(super) fn operation(&self) -> &'static str {
        match self {
            Self::Accept(_) => "accept a message",
            Self::Book { .. } => "book an attempt",
            Self::HandOver { .. } => "write down who is handed over",
            Self::Settle(_) => "settle an attempt",
            Self::Resolve(..) => "resolve an unknown outcome",
            Self::Recover(_) => "take up interrupted attempts",
            Self::SetAside(_) => "set an unreadable message aside",
            Self::Reroute { .. } => "route a message anew",
        }
    }
}

impl Store {
    /// Accepts a message: it is on disk when this returns.
    ///
    /// # Errors
    /// The disk's, and where it is nearly full; then nothing was kept.
    pub async fn accept(&self, message: NewMessage) -> Result<(), Error> {
        let _room = self.check_room(message.content.len()).await?;
        let arrivals = self.arrivals(&message.mailbox);
        self.write(Write::Queue(QueueWrite::Accept(Box::new(message)))).await?;
        arrivals.notify_one();
        Ok(())
    }

    /// Books an attempt at so many recipients, before the network is touched; it counts in the mailbox's pace.
    ///
    /// # Errors
    /// The disk's; then the attempt must not be made.
    pub async fn book(&self, id: QueueId, recipients: u32, now: Timestamp) -> Result<(), Error> {
        self.write(Write::Queue(QueueWrite::Book { id, recipients, now })).await
    }

    /// Writes down the outcome of the attempt that was booked last.
    ///
    /// # Errors
    /// The disk's; then the outcome counts as unknown after the next start.
    pub async fn settle(&self, settlement: Settlement) -> Result<(), Error> {
        self.write(Write::Queue(QueueWrite::Settle(Box::new(settlement)))).await
    }

    /// Gives a message that is not being sent another mailbox: its own left the configuration, or cannot send. Where its
    /// outcome is unknown, nobody can look for it any more, least of all among what the other mailbox sent: it is due
    /// again, or with `hold` held for a person.
    ///
    /// # Errors
    /// The disk's.
    pub async fn reroute(
        &self,
        id: QueueId,
        mailbox: Address,
        rule: Rule,
        new_from: Option<String>,
        hold: bool,
    ) -> Result<(), Error> {
        self.write(Write::Queue(QueueWrite::Reroute { id, mailbox, rule, new_from, hold })).await
    }

    /// The messages of a mailbox that are to be sent now, longest due first.
    ///
    /// # Errors
    /// The disk's.
    pub async fn due(&self, mailbox: &Address, now: Timestamp, limit: u32) -> Result<Vec<Due>, Error> {
        let sql = due!(
            "WHERE state = 'waiting' AND mailbox = ?1 AND next_attempt_at <= ?2 AND unknown_since IS NULL \
             ORDER BY next_attempt_at, id LIMIT ?3"
        );
        let rows = self.read("due messages", due_rows(sql, mailbox, now, limit)).await?;
        self.readable(rows).await
    }

    /// The waiting messages of a mailbox that are tried since then or longer, oldest first, due or not; but for those
    /// whose outcome is unknown.
    ///
    /// # Errors
    /// The disk's.
    pub async fn accepted_by(
        &self,
        mailbox: &Address,
        then: Timestamp,
        limit: u32,
    ) -> Result<Vec<Due>, Error> {
        let sql = due!(
            "WHERE state = 'waiting' AND mailbox = ?1 AND coalesce(tried_since, received_at) <= ?2 AND unknown_since IS NULL \
             ORDER BY id LIMIT ?3"
        );
        // It may look at all that the mailbox has.
        let rows = self.read_aside("old messages", due_rows(sql, mailbox, then, limit)).await?;
        self.readable(rows).await
    }

    /// The messages of rows. One that makes no sense is kept as failed, so that it holds up no other's mail.
    pub(super) async fn readable(&self, rows: Vec<DueRow>) -> Result<Vec<Due>, Error> {
        let mut readable = Vec::with_capacity(rows.len());
        for (id, row) in rows {
            match row {
                Ok(due) => readable.push(due),
                Err(error) => {
                    self.set_aside(id).await?;
                    let advice = "its row in the store is damaged; its content is kept there";
                    tracing::error!(%id, error = %chain(&error), advice, "failed");
                }
            }
        }
        Ok(readable)
    }

    /// When the next message of a mailbox is due, to be sent or, where its outcome is `unknown`, to be looked for;
    /// `None`: none waits.
    ///
    /// # Errors
    /// The disk's.
    pub async fn next_due(&self, mailbox: &Address, unknown: bool) -> Result<Option<Timestamp>, Error> {
        // Each has an index of its own.
        let sql = if unknown {
            "SELECT min(next_attempt_at) FROM message INDEXED BY message_unknown \
             WHERE state = 'waiting' AND mailbox = ?1 AND unknown_since IS NOT NULL"
        } else {
            "SELECT min(next_attempt_at) FROM message INDEXED BY message_due \
             WHERE state = 'waiting' AND mailbox = ?1 AND unknown_since IS NULL"
        };
        let (at,): (Option<i64>,) = self.one("next due message", sql, [mailbox.as_str()]).await?;
        Ok(at.map(timestamp))
    }

    /// The queue, oldest first: at most `limit` messages after `after`, with their attempts.
    ///
    /// # Errors
    /// The disk's, and rows that make no sense.
    pub async fn queued(&self, after: Option<QueueId>, limit: u32) -> Result<Vec<Queued>, Error> {
        self.queued_between("the queue", after.map_or(-1, |id| id.0), i64::MAX, limit).await
    }

    /// Messages of the queue with their attempts: those behind `after`, and not behind `last`.
    pub(super) async fn queued_between(
        &self,
        operation: &'static str,
        after: i64,
        last: i64,
        limit: u32,
    ) -> Result<Vec<Queued>, Error> {
        let read = move |connection: &Connection| {
            let mut query = connection.prepare_cached(
                "SELECT id, received_at, mail_from, recipients, header_from, message_id, size, mailbox, rule, state, \
                 next_attempt_at FROM message WHERE id > ?1 AND id <= ?2 ORDER BY id LIMIT ?3",
            )?;
            let rows = query.query_map((after, last, limit), |row| {
                Ok((queued_of(row), attempts(connection, row.get("id")?)?))
            })?;
            rows.collect::<Result<Vec<_>, _>>()
        };
        let rows = self.read_aside(operation, read).await?;
        rows.into_iter().map(|(message, attempts)| Ok(Queued { attempts, ..message? })).collect()
    }

    /// A message's attempts, oldest first.
    ///
    /// # Errors
    /// The disk's.
    pub async fn attempts(&self, id: QueueId) -> Result<Vec<Attempt>, Error> {
        self.read("a message's attempts", |connection| attempts(connection, id.0)).await
    }

    /// How much waits and how much failed, for each mailbox that has any.
    ///
    /// # Errors
    /// The disk's, and rows that make no sense.
    pub async fn totals(&self) -> Result<Vec<(Address, Totals)>, Error> {
        let sql = "SELECT mailbox, waiting, failed, held, recipients, \
                   (SELECT received_at FROM message INDEXED BY message_mailbox \
                    WHERE message.mailbox = tally.mailbox AND state <> 'failed' ORDER BY id LIMIT 1) \
                   FROM tally WHERE waiting <> 0 OR failed <> 0 ORDER BY mailbox";
        let rows: Vec<(String, i64, i64, i64, i64, Option<i64>)> =
            self.rows("the queue's totals", sql, ()).await?;
        let count = |n: i64| u64::try_from(n).unwrap_or_default();
        rows.into_iter()
            .map(|(mailbox, waiting, failed, held, recipients, oldest)| {
                let totals = Totals {
                    waiting: count(waiting),
                    failed: count(failed),
                    held: count(held),
                    recipients: count(recipients),
                    oldest: oldest.map(timestamp),
                };
                Ok((address(&mailbox)?, totals))
            })
            .collect()
    }

    /// The messages of mailboxes that are not among `known`, those that were given up included: a person may have them
    /// tried again.
    ///
    /// # Errors
    /// The disk's.
    pub async fn strays(&self, known: &[Address]) -> Result<Vec<Stray>, Error> {
        let known: Vec<&str> = known.iter().map(Address::as_str).collect();
        let known = serde_json::to_string(&known).map_err(|error| Error::Row { what: error.to_string() })?;
        let sql = "SELECT id, mailbox, header_from, mail_from, state = 'waiting' AND unknown_since IS NOT NULL FROM message \
                   WHERE mailbox IN (SELECT mailbox FROM tally WHERE mailbox NOT IN (SELECT value FROM json_each(?1))) \
                   AND state <> 'sending' ORDER BY id";
        let rows: Vec<(i64, String, Option<String>, String, bool)> =
            self.rows("messages of unknown mailboxes", sql, (known,)).await?;
        Ok(rows
            .into_iter()
            .map(|(id, mailbox, from, mail_from, unknown)| Stray {
                id: QueueId(id),
                mailbox,
                from,
                mail_from,
                unknown,
            })
            .collect())
    }
}

pub(super) fn apply(write: &QueueWrite, connection: &Connection) -> Result<(), rusqlite::Error> {
    match write {
        QueueWrite::Accept(message) => accept(message, connection),
        QueueWrite::Book { id, recipients, now } => book(*id, *recipients, *now, connection),
        QueueWrite::HandOver { id, recipients } => unknown::hand_over(*id, recipients, connection),
        QueueWrite::Settle(settlement) => settle(settlement, connection),
        QueueWrite::Resolve(settlement, seen) => unknown::resolve(settlement, *seen, connection),
        QueueWrite::Recover(now) => unknown::recover(*now, connection),
        QueueWrite::SetAside(id) => {
            let sql = "UPDATE message SET state = 'failed' WHERE id = ?1 AND state = 'waiting'";
            run(connection, sql, [id.0]).map(drop)
        }
        QueueWrite::Reroute { id, mailbox, rule, new_from, hold } => run(
            connection,
            "UPDATE message SET mailbox = ?1, rule = ?2, new_from = ?3, \
             state = CASE WHEN state = 'waiting' AND unknown_since IS NOT NULL AND ?5 THEN 'held' ELSE state END, \
             unknown_since = CASE WHEN state = 'held' OR ?5 THEN unknown_since END \
             WHERE id = ?4 AND state <> 'sending'",
            params![mailbox.as_str(), rule.as_str(), new_from, id.0, hold],
        )
        .map(drop),
    }
}

fn accept(message: &NewMessage, connection: &Connection) -> Result<(), rusqlite::Error> {
    let recipients: Vec<Recipient> = message.envelope.recipients.iter().map(Recipient::waiting).collect();
    run(
        connection,
        "INSERT INTO message (id, received_at, mail_from, recipients, smtputf8, eight_bit, header_from, message_id, \
         size, mailbox, rule, new_from, state, attempts, next_attempt_at, changed_at) \
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, 'waiting', 0, ?2, ?2)",
        params![
            message.id.0,
            millis(message.received_at),
            message.envelope.mail_from,
            encode(&recipients)?,
            message.envelope.smtputf8,
            message.eight_bit,
            message.header_from,
            message.message_id,
            i64::try_from(message.content.len()).unwrap_or(i64::MAX),
            message.mailbox.as_str(),
            message.rule.as_str(),
            message.new_from,
        ],
    )?;
    let sql = "INSERT INTO content (message, raw) VALUES (?1, ?2)";
    run(connection, sql, params![message.id.0, message.content.as_ref()]).map(drop)
}

fn book(
    id: QueueId,
    recipients: u32,
    now: Timestamp,
    connection: &Connection,
) -> Result<(), rusqlite::Error> {
    let booked = run(
        connection,
        "UPDATE message SET state = 'sending', attempts = attempts + 1, changed_at = ?2 \
         WHERE id = ?1 AND state = 'waiting'",
        params![id.0, millis(now)],
    )?;
    if booked == 0 {
        return Err(rusqlite::Error::QueryReturnedNoRows);
    }
    pace::count(id, recipients, now, connection)
}

pub(super) fn settle(settlement: &Settlement, connection: &Connection) -> Result<(), rusqlite::Error> {
    let Settlement { id, at, .. } = settlement;
    if let Some(report) = &settlement.report {
        report::insert(*id, report, *at, connection)?;
    }
    if !settlement.paced {
        pace::take_back(*id, connection)?;
    }
    let (state, next_attempt_at, outcome) = match settlement.next {
        Next::Done => return run(connection, "DELETE FROM message WHERE id = ?1", [id.0]).map(drop),
        Next::Again { at, unknown: false } => ("waiting", at, "deferred"),
        Next::Again { at, unknown: true } => ("waiting", at, "unknown"),
        Next::Held => ("held", *at, "unknown"),
        Next::Failed => ("failed", *at, "failed"),
    };
    let class = settlement.class.map(Class::as_str);
    // Unless it was settled without one, the message's row is the attempt's until here.
    run(
        connection,
        "INSERT INTO attempt (message, number, started_at, ended_at, outcome, class, code, reply) \
         SELECT id, attempts, changed_at, ?2, ?3, ?4, ?5, ?6 FROM message WHERE id = ?1 AND state = 'sending'",
        params![id.0, millis(*at), outcome, class, settlement.code, settlement.reply],
    )?;
    let unknown = matches!(settlement.next, Next::Held | Next::Again { unknown: true, .. });
    let recipients = encode(&settlement.recipients)?;
    run(
        connection,
        "UPDATE message SET state = ?2, recipients = ?3, next_attempt_at = ?4, changed_at = ?5, \
         unknown_since = CASE WHEN ?6 THEN coalesce(unknown_since, ?5) END WHERE id = ?1",
        params![id.0, state, recipients, millis(next_attempt_at), millis(*at), unknown],
    )
    .map(drop)
}

pub(super) fn encode(recipients: &[Recipient]) -> Result<String, rusqlite::Error> {
    serde_json::to_string(recipients).map_err(unencodable)
}

/// A waiting message, or what is wrong with its row.
type DueRow = (QueueId, Result<Due, Error>);

/// The query for waiting messages of a mailbox, up to a time.
pub(super) fn due_rows(
    sql: &'static str,
    mailbox: &Address,
    until: Timestamp,
    limit: u32,
) -> impl FnOnce(&Connection) -> Result<Vec<DueRow>, rusqlite::Error> + use<> {
    let values = (mailbox.to_string(), millis(until), limit);
    move |connection| {
        let mut query = connection.prepare_cached(sql)?;
        let rows = query.query_map(values, |row| Ok((QueueId(row.get("id")?), due_of(row))))?;
        rows.collect()
    }
}

fn due_of(row: &Row<'_>) -> Result<Due, Error> {
    let received_at = timestamp(column(row, "received_at")?);
    Ok(Due {
        id: QueueId(column(row, "id")?),
        received_at,
        tried_since: column::<Option<i64>>(row, "tried_since")?.map_or(received_at, timestamp),
        mail_from: column(row, "mail_from")?,
        recipients: recipients(row)?,
        smtputf8: column::<i64>(row, "smtputf8")? != 0,
        eight_bit: column::<i64>(row, "eight_bit")? != 0,
        new_from: column(row, "new_from")?,
        message_id: column(row, "message_id")?,
        size: column::<i64>(row, "size")?.unsigned_abs(),
        attempts: u32::try_from(column::<i64>(row, "attempts")?).unwrap_or(u32::MAX),
        unknown_since: column::<Option<i64>>(row, "unknown_since")?.map(timestamp),
    })
}

fn queued_of(row: &Row<'_>) -> Result<Queued, Error> {
    let rule: String = column(row, "rule")?;
    let state: String = column(row, "state")?;
    Ok(Queued {
        id: QueueId(column(row, "id")?),
        state: match state.as_str() {
            "waiting" => QueuedState::Waiting,
            "sending" => QueuedState::Sending,
            "held" => QueuedState::Held,
            "failed" => QueuedState::Failed,
            _ => {
                return Err(Error::Row { what: format!("state {state:?}") });
            }
        },
        received_at: timestamp(column(row, "received_at")?),
        next_attempt_at: timestamp(column(row, "next_attempt_at")?),
        mail_from: column(row, "mail_from")?,
        from: column(row, "header_from")?,
        message_id: column(row, "message_id")?,
        mailbox: address(&column::<String>(row, "mailbox")?)?,
        rule: rule.parse().map_err(|_| Error::Row { what: format!("rule {rule:?}") })?,
        size: column::<i64>(row, "size")?.unsigned_abs(),
        // A damaged row must not hide the others.
        recipients: recipients(row).unwrap_or_default(),
        attempts: Vec::new(),
    })
}

fn attempts(connection: &Connection, id: i64) -> Result<Vec<Attempt>, rusqlite::Error> {
    let mut query = connection.prepare_cached(
        "SELECT number, started_at, ended_at, outcome, class, code, reply FROM attempt WHERE message = ?1 \
         UNION ALL SELECT attempts, changed_at, NULL, NULL, NULL, NULL, NULL FROM message \
         WHERE id = ?1 AND state = 'sending' ORDER BY 1",
    )?;
    query.query_map([id], attempt_of)?.collect()
}

fn attempt_of(row: &Row<'_>) -> Result<Attempt, rusqlite::Error> {
    Ok(Attempt {
        number: u32::try_from(row.get::<_, i64>("number")?).unwrap_or(u32::MAX),
        started_at: timestamp(row.get("started_at")?),
        ended_at: row.get::<_, Option<i64>>("ended_at")?.map(timestamp),
        outcome: row.get("outcome")?,
        class: row.get("class")?,
        code: row.get("code")?,
        reply: row.get("reply")?,
    })
}

fn recipients(row: &Row<'_>) -> Result<Vec<Recipient>, Error> {
    let json: String = column(row, "recipients")?;
    serde_json::from_str(&json).map_err(|error| Error::Row { what: format!("recipients: {error}") })
}

fn column<T: FromSql>(row: &Row<'_>, name: &'static str) -> Result<T, Error> {
    row.get(name).map_err(|source| Error::Read { operation: name, source })
}

pub(super) fn address(text: &str) -> Result<Address, Error> {
    Address::normalise(text).ok_or_else(|| Error::Row { what: format!("mailbox {text:?}") })
}
