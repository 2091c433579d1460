//! The inbox ledger: up to where each inbox was looked through, and what became of each message found.
//!
//! A message is entered, in the same transaction that moves the mark past it, before it is pushed; so neither a crash
//! nor a refusal can make the relay forget it, and a message that is done is never pushed again.

use super::prune::Prune;
use super::queue::address;
use super::received::Change;
use super::sql::{one, run, unencodable};
use super::writer::Write;
use super::{Error, Store, millis, timestamp};
use crate::address::Address;
use jiff::Timestamp;
use rusqlite::{Connection, params};
use serde::Serialize;

/// Up to where an inbox was looked through (RFC 9051 section 2.3.1.1: UIDs only grow while UIDVALIDITY stays).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// The folder's UIDVALIDITY at that time.
    pub uidvalidity: u32,
    /// The highest UID that was seen.
    pub uid: u32,
}

/// A message found in an inbox that is not done with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Received {
    /// Its UID.
    pub uid: u32,
    /// Its Message-Id, once it was fetched.
    pub message_id: Option<String>,
    /// What became of it so far.
    pub state: PushState,
    /// How often it was pushed.
    pub tries: u32,
    /// How often Odoo itself refused it, or failed at it while it took others.
    pub refusals: u32,
    /// When it was last pushed.
    pub pushed_at: Option<Timestamp>,
    /// Who sent it, where it was fetched once and may begin a record in Odoo.
    pub sender: Option<String>,
}

/// What became of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PushState {
    /// Found, not pushed yet.
    Waiting,
    /// A push is under way; after a crash: its answer is unknown.
    Pushing,
    /// Odoo has it; the server has not been told yet (\Seen).
    Pushed,
    /// Odoo has it and the server knows.
    Done,
    /// Odoo refuses it; it is tried again later.
    Refused,
    /// It left the folder before it could be fetched.
    Gone,
    /// Odoo refuses it; it lies in the quarantine folder.
    Moved,
    /// A person wants it back from the quarantine folder.
    Returning,
}

impl PushState {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Pushing => "pushing",
            Self::Pushed => "pushed",
            Self::Done => "done",
            Self::Refused => "refused",
            Self::Gone => "gone",
            Self::Moved => "moved",
            Self::Returning => "returning",
        }
    }

    pub(super) fn parse(text: &str) -> Result<Self, Error> {
        let open = [Self::Waiting, Self::Pushing, Self::Pushed, Self::Refused];
        let others = [Self::Done, Self::Gone, Self::Moved, Self::Returning];
        open.into_iter()
            .chain(others)
            .find(|state| state.as_str() == text)
            .ok_or_else(|| Error::Row { what: format!("state {text:?}") })
    }
}

/// An inbox's counts, as `status` shows them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct InboxLine {
    /// Whose.
    pub mailbox: Address,
    /// Which folder.
    pub folder: String,
    /// When it was last looked through.
    pub looked_at: Timestamp,
    /// Messages still to push.
    pub waiting: u64,
    /// Messages that Odoo refuses.
    pub refused: u64,
    /// Messages that Odoo took.
    pub pushed: u64,
    /// When the oldest message that is still to push was found; `None`: there is none.
    pub oldest: Option<Timestamp>,
    /// Messages that Odoo took and that report a failed delivery.
    pub bounces: u64,
}

/// What a push has brought to light about a message; what is unknown stays as it was.
#[derive(Clone, Debug, Default)]
pub struct Note {
    /// Its Message-Id.
    pub message_id: Option<String>,
    /// What Odoo answered.
    pub answer: Option<String>,
    /// Who sent it, where it may begin a record in Odoo; an empty one: it may not any more.
    pub sender: Option<String>,
    /// Whether this counts as a refusal.
    pub refused: bool,
    /// Whether it reports a failed delivery, and Odoo took it just now: such are counted.
    pub bounce: bool,
}

#[derive(Debug)]
pub(super) enum InboxWrite {
    Found { mailbox: Address, folder: String, mark: Mark, uids: Vec<u32>, at: Timestamp },
    Push { mailbox: Address, folder: String, uidvalidity: u32, updates: Vec<Update> },
    Some { mailbox: Address, folder: String, uidvalidity: u32, uids: Vec<u32>, change: Change },
    Prune(Prune),
}

/// How a message's row changes.
#[derive(Clone, Debug)]
pub struct Update {
    /// Which message's.
    pub uid: u32,
    /// `Pushing` before a push, whose try it counts; then what became of it.
    pub state: PushState,
    /// What is known of it now.
    pub note: Note,
    /// When it is due again; it matters for those that are refused or wait.
    pub next_try_at: Timestamp,
    /// Now.
    pub at: Timestamp,
}

impl InboxWrite {
    pub(super) fn operation(&self) -> &'static str {
        match self {
            Self::Found { .. } => "enter received messages",
            Self::Push { .. } => "write down a push",
            Self::Some { .. } => "write down what became of received messages",
            Self::Prune(_) => "remove old rows of received messages",
        }
    }
}

impl Store {
    /// Up to where a folder was looked through; `None`: never.
    ///
    /// # Errors
    /// The disk's.
    pub async fn mark(&self, mailbox: &Address, folder: &str) -> Result<Option<Mark>, Error> {
        let sql = "SELECT uidvalidity, uid FROM inbox WHERE mailbox = ?1 AND folder = ?2";
        let row: Option<(i64, i64)> = self.first("an inbox's mark", sql, [mailbox.as_str(), folder]).await?;
        row.map(|(uidvalidity, uid)| Ok(Mark { uidvalidity: narrow(uidvalidity)?, uid: narrow(uid)? }))
            .transpose()
    }

    /// Enters the messages found, and moves the mark past them, together. Where the UIDVALIDITY is another than before,
    /// what was still to be done under the old one is closed.
    ///
    /// # Errors
    /// The disk's; then the mark stands where it was.
    pub async fn found(
        &self,
        mailbox: &Address,
        folder: &str,
        mark: Mark,
        uids: Vec<u32>,
        at: Timestamp,
    ) -> Result<(), Error> {
        let (mailbox, folder) = (mailbox.clone(), folder.to_owned());
        self.write(Write::Inbox(InboxWrite::Found { mailbox, folder, mark, uids, at })).await
    }

    /// What of a folder is still to be done now, oldest first: waiting, interrupted, pushed but not marked, and refused
    /// ones whose time has come. A row in a state that this version does not know holds up no other.
    ///
    /// # Errors
    /// The disk's, and rows that make no sense.
    pub async fn to_push(
        &self,
        mailbox: &Address,
        folder: &str,
        uidvalidity: u32,
        now: Timestamp,
        limit: u32,
    ) -> Result<Vec<Received>, Error> {
        type Row = (i64, Option<String>, String, i64, i64, Option<i64>, Option<String>);
        let sql = "SELECT uid, message_id, state, tries, refusals, pushed_at, sender FROM received WHERE mailbox = ?1 AND folder = ?2 \
                   AND uidvalidity = ?3 AND state <> 'done' AND state <> 'gone' AND next_try_at <= ?4 \
                   AND state IN ('waiting', 'pushing', 'pushed', 'refused') ORDER BY uid LIMIT ?5";
        let values = (mailbox.to_string(), folder.to_owned(), uidvalidity, millis(now), limit);
        let rows: Vec<Row> = self.rows("received messages", sql, values).await?;
        rows.into_iter()
            .map(|(uid, message_id, state, tries, refusals, pushed_at, sender)| {
                Ok(Received {
                    uid: narrow(uid)?,
                    message_id,
                    state: PushState::parse(&state)?,
                    tries: narrow(tries)?,
                    refusals: narrow(refusals)?,
                    pushed_at: pushed_at.map(timestamp),
                    sender,
                })
            })
            .collect()
    }

    /// Writes down what becomes of messages of a folder, in one commit: all of it is on disk then, or nothing.
    ///
    /// # Errors
    /// The disk's.
    pub async fn note_pushes(
        &self,
        mailbox: &Address,
        folder: &str,
        uidvalidity: u32,
        updates: Vec<Update>,
    ) -> Result<(), Error> {
        let (mailbox, folder) = (mailbox.clone(), folder.to_owned());
        self.write(Write::Inbox(InboxWrite::Push { mailbox, folder, uidvalidity, updates })).await
    }

    /// Whether Odoo already took a message with this Message-Id from this mailbox.
    ///
    /// # Errors
    /// The disk's.
    pub async fn was_pushed(&self, mailbox: &Address, message_id: &str) -> Result<bool, Error> {
        self.read("the ledger", |connection| was_pushed(connection, mailbox.as_str(), message_id)).await
    }

    /// The counts of every inbox that was ever looked through.
    ///
    /// # Errors
    /// The disk's, and rows that make no sense.
    pub async fn inboxes(&self) -> Result<Vec<InboxLine>, Error> {
        type Row = (String, String, i64, i64, i64, i64, Option<i64>, i64);
        let sql = "SELECT i.mailbox, i.folder, i.looked_at, \
                   count(*) FILTER (WHERE r.state IN ('waiting', 'pushing')), \
                   count(*) FILTER (WHERE r.state IN ('refused', 'moved', 'returning')), \
                   i.pruned + count(*) FILTER (WHERE r.state IN ('pushed', 'done')), \
                   min(r.found_at) FILTER (WHERE r.state IN ('waiting', 'pushing')), i.bounces \
                   FROM inbox i LEFT JOIN received r ON r.mailbox = i.mailbox AND r.folder = i.folder \
                   GROUP BY i.mailbox, i.folder, i.looked_at, i.pruned, i.bounces ORDER BY i.mailbox, i.folder";
        let rows: Vec<Row> = self.rows("the inboxes", sql, ()).await?;
        rows.into_iter()
            .map(|(mailbox, folder, looked_at, waiting, refused, pushed, oldest, bounces)| {
                Ok(InboxLine {
                    mailbox: address(&mailbox)?,
                    folder,
                    looked_at: timestamp(looked_at),
                    waiting: waiting.unsigned_abs(),
                    refused: refused.unsigned_abs(),
                    pushed: pushed.unsigned_abs(),
                    bounces: bounces.unsigned_abs(),
                    oldest: oldest.map(timestamp),
                })
            })
            .collect()
    }
}

fn was_pushed(connection: &Connection, mailbox: &str, message_id: &str) -> Result<bool, rusqlite::Error> {
    let sql = "SELECT count(*) FROM received WHERE message_id = ?1 AND mailbox = ?2 AND state IN ('pushed', 'done')";
    let (count,): (i64,) = one(connection, sql, [message_id, mailbox])?;
    Ok(count > 0)
}

pub(super) fn apply(write: &InboxWrite, connection: &Connection) -> Result<(), rusqlite::Error> {
    match write {
        InboxWrite::Found { mailbox, folder, mark, uids, at } => {
            let (mailbox, uidvalidity, at) = (mailbox.as_str(), mark.uidvalidity, millis(*at));
            run(
                connection,
                "INSERT INTO inbox (mailbox, folder, uidvalidity, uid, looked_at) VALUES (?1, ?2, ?3, ?4, ?5) \
                 ON CONFLICT (mailbox, folder) DO UPDATE SET uidvalidity = excluded.uidvalidity, \
                 uid = excluded.uid, looked_at = excluded.looked_at",
                params![mailbox, folder, uidvalidity, mark.uid, at],
            )?;
            // With another UIDVALIDITY, or in a folder that is no longer watched, nothing that is still to be done can be
            // found by its UID any more; what is still unread was found anew.
            run(
                connection,
                "UPDATE received SET state = 'gone', changed_at = ?4 WHERE mailbox = ?1 \
                 AND (folder <> ?2 OR uidvalidity <> ?3) AND state <> 'done' AND state <> 'gone' \
                 AND state IN ('waiting', 'pushing', 'refused')",
                params![mailbox, folder, uidvalidity, at],
            )?;
            // In one statement: an inbox with a hundred thousand unread messages must not keep SMTP waiting.
            let uids = serde_json::to_string(uids).map_err(unencodable)?;
            run(
                connection,
                "INSERT INTO received (mailbox, folder, uidvalidity, uid, state, tries, next_try_at, found_at, \
                 changed_at) SELECT ?1, ?2, ?3, value, 'waiting', 0, ?4, ?4, ?4 FROM json_each(?5) WHERE true \
                 ON CONFLICT DO NOTHING",
                params![mailbox, folder, uidvalidity, at, uids],
            )
            .map(drop)
        }
        InboxWrite::Push { mailbox, folder, uidvalidity, updates } => {
            for Update { uid, state, note, next_try_at, at } in updates {
                run(
                    connection,
                    "UPDATE received SET state = ?5, tries = tries + ?6, message_id = coalesce(?7, message_id), \
                     answer = coalesce(?8, answer), next_try_at = ?9, changed_at = ?10, \
                     sender = nullif(coalesce(?11, sender), ''), refusals = refusals + ?12, \
                     pushed_at = CASE ?6 WHEN 1 THEN ?10 ELSE pushed_at END \
                     WHERE mailbox = ?1 AND folder = ?2 AND uidvalidity = ?3 AND uid = ?4",
                    params![
                        mailbox.as_str(),
                        folder,
                        uidvalidity,
                        uid,
                        state.as_str(),
                        *state == PushState::Pushing,
                        note.message_id,
                        note.answer,
                        millis(*next_try_at),
                        millis(*at),
                        note.sender,
                        note.refused,
                    ],
                )?;
                if note.bounce {
                    let sql = "UPDATE inbox SET bounces = bounces + 1 WHERE mailbox = ?1 AND folder = ?2";
                    run(connection, sql, [mailbox.as_str(), folder])?;
                }
            }
            Ok(())
        }
        InboxWrite::Prune(prune) => prune.apply(connection),
        InboxWrite::Some { mailbox, folder, uidvalidity, uids, change } => {
            change.apply(mailbox, folder, *uidvalidity, uids, connection)
        }
    }
}

pub(super) fn narrow(number: i64) -> Result<u32, Error> {
    u32::try_from(number).map_err(|_| Error::Row { what: format!("number {number}") })
}
