//! The inbox ledger, many rows at a time: what became of messages, when some are due, who sent how many.

use super::inbox::{InboxWrite, PushState};
use super::sql::{one, rows, run, unencodable};
use super::writer::Write;
use super::{Error, Store, by_hand, millis, timestamp};
use crate::address::Address;
use jiff::Timestamp;
use rusqlite::{Connection, params};

/// What is written down about several messages of a folder at once.
#[derive(Debug)]
pub(super) enum Change {
    /// They are in this state now.
    Settled { state: PushState, next_try_at: Timestamp, at: Timestamp },
    /// Nobody knows whether those that wait were pushed already.
    Doubted { at: Timestamp },
    /// A person wants those that Odoo refuses tried again now.
    Retried { at: Timestamp },
}

impl Change {
    pub(super) fn apply(
        &self,
        mailbox: &Address,
        folder: &str,
        uidvalidity: u32,
        uids: &[u32],
        connection: &Connection,
    ) -> Result<(), rusqlite::Error> {
        let set = match self {
            // Only what was refused often is moved: where a person wanted it tried again meanwhile, it is to come back.
            Self::Settled { state: PushState::Moved, .. } => {
                "state = CASE refusals WHEN 0 THEN 'returning' ELSE ?5 END, next_try_at = ?6, changed_at = ?7"
            }
            Self::Settled { .. } => "state = ?5, next_try_at = ?6, changed_at = ?7",
            Self::Doubted { .. } => {
                "state = CASE state WHEN 'waiting' THEN ?5 ELSE state END, \
                 next_try_at = CASE state WHEN 'waiting' THEN ?6 ELSE next_try_at END, changed_at = ?7"
            }
            Self::Retried { .. } => {
                // It has its patience anew; but that it was pushed before stays known.
                "state = CASE state WHEN 'moved' THEN ?5 ELSE state END, next_try_at = ?6, changed_at = ?7, \
                 tries = min(tries, 1), refusals = 0"
            }
        };
        let (state, next_try_at, at) = match self {
            Self::Settled { state, next_try_at, at } => (*state, *next_try_at, *at),
            Self::Doubted { at } => (PushState::Pushing, *at, *at),
            Self::Retried { at } => (PushState::Returning, *at, *at),
        };
        let only =
            if matches!(self, Self::Retried { .. }) { "state IN ('refused', 'moved')" } else { "true" };
        let sql = format!(
            "UPDATE received SET {set} WHERE mailbox = ?1 AND folder = ?2 AND uidvalidity = ?3 \
             AND uid IN (SELECT value FROM json_each(?4)) AND {only}"
        );
        let uids = serde_json::to_string(uids).map_err(unencodable)?;
        let (mailbox, state) = (mailbox.as_str(), state.as_str());
        let values = params![mailbox, folder, uidvalidity, uids, state, millis(next_try_at), millis(at)];
        let done = run(connection, &sql, values)?;
        if matches!(self, Self::Retried { .. }) {
            if done == 0 {
                return Err(rusqlite::Error::QueryReturnedNoRows);
            }
            by_hand::count(connection)?;
        }
        Ok(())
    }
}

impl Store {
    /// Writes down the same of several messages of a folder; `next_try_at` matters for those that are not done with.
    ///
    /// # Errors
    /// The disk's.
    #[expect(clippy::too_many_arguments, reason = "ledger rows are their key and their new values")]
    pub async fn settle_received(
        &self,
        mailbox: &Address,
        folder: &str,
        uidvalidity: u32,
        uids: Vec<u32>,
        state: PushState,
        next_try_at: Timestamp,
        at: Timestamp,
    ) -> Result<(), Error> {
        let change = Change::Settled { state, next_try_at, at };
        self.change(mailbox, folder, uidvalidity, uids, change).await
    }

    /// Takes those of the messages that wait for such whose push nobody knows the outcome of: so Odoo is asked first.
    ///
    /// # Errors
    /// The disk's.
    pub async fn doubt_received(
        &self,
        mailbox: &Address,
        folder: &str,
        uidvalidity: u32,
        uids: Vec<u32>,
        at: Timestamp,
    ) -> Result<(), Error> {
        self.change(mailbox, folder, uidvalidity, uids, Change::Doubted { at }).await
    }

    pub(super) async fn change(
        &self,
        mailbox: &Address,
        folder: &str,
        uidvalidity: u32,
        uids: Vec<u32>,
        change: Change,
    ) -> Result<(), Error> {
        let (mailbox, folder) = (mailbox.clone(), folder.to_owned());
        self.write(Write::Inbox(InboxWrite::Some { mailbox, folder, uidvalidity, uids, change })).await
    }

    /// When the next of a folder's messages is to be brought to Odoo; `None`: none is open.
    ///
    /// # Errors
    /// The disk's.
    pub async fn next_push_at(
        &self,
        mailbox: &Address,
        folder: &str,
        uidvalidity: u32,
    ) -> Result<Option<Timestamp>, Error> {
        let sql = "SELECT min(next_try_at) FROM received WHERE mailbox = ?1 AND folder = ?2 AND uidvalidity = ?3 \
                   AND state <> 'done' AND state <> 'gone' AND state IN ('waiting', 'pushing', 'pushed', 'refused')";
        let values = (mailbox.to_string(), folder.to_owned(), uidvalidity);
        let (at,): (Option<i64>,) = self.sum("received messages", sql, values).await?;
        Ok(at.map(timestamp))
    }

    /// The lowest UID of a folder that waits and was never pushed; `None`: there is none.
    ///
    /// # Errors
    /// The disk's.
    pub async fn lowest_waiting(
        &self,
        mailbox: &Address,
        folder: &str,
        uidvalidity: u32,
    ) -> Result<Option<u32>, Error> {
        let sql = "SELECT min(uid) FROM received WHERE mailbox = ?1 AND folder = ?2 AND uidvalidity = ?3 \
                   AND state <> 'done' AND state <> 'gone' AND state = 'waiting'";
        let values = (mailbox.to_string(), folder.to_owned(), uidvalidity);
        let (lowest,): (Option<i64>,) = self.sum("received messages", sql, values).await?;
        lowest.map(super::inbox::narrow).transpose()
    }

    /// Since when a mailbox's mail may be missing from the ledger if UIDs no longer tell: when it was last looked
    /// through, or when the oldest message was found that is still to be pushed. `None`: it was never looked through.
    ///
    /// # Errors
    /// The disk's.
    pub async fn sure_until(&self, mailbox: &Address) -> Result<Option<Timestamp>, Error> {
        let sql = "SELECT (SELECT max(looked_at) FROM inbox WHERE mailbox = ?1), (SELECT min(found_at) FROM received \
                   WHERE mailbox = ?1 AND state <> 'done' AND state <> 'gone' AND state IN ('waiting', 'pushing', 'refused'))";
        let (looked, open): (Option<i64>, Option<i64>) =
            self.sum("when an inbox was looked through", sql, (mailbox.to_string(),)).await?;
        Ok(looked.map(|looked| timestamp(open.map_or(looked, |open| open.min(looked)))))
    }

    /// When messages of this sender, any mailbox's, were pushed that began a record, or may have, `since` then, oldest first.
    /// A message counts once, in however many mailboxes it came; what Odoo refused or had already began nothing.
    ///
    /// # Errors
    /// The disk's.
    pub async fn pushed_of(&self, sender: &str, since: Timestamp) -> Result<Vec<Timestamp>, Error> {
        self.read("what a sender sent", |connection| pushed_of(connection, sender, since)).await
    }

    /// What the ledger knows of pushes of this Message-Id, from any mailbox.
    ///
    /// # Errors
    /// The disk's.
    pub async fn pushes_of(&self, message_id: &str) -> Result<Pushes, Error> {
        self.read("the ledger", |connection| pushes_of(connection, message_id)).await
    }
}

fn pushed_of(
    connection: &Connection,
    sender: &str,
    since: Timestamp,
) -> Result<Vec<Timestamp>, rusqlite::Error> {
    let times: Vec<(i64,)> = rows(
        connection,
        "SELECT max(pushed_at) FROM received WHERE sender = ?1 AND pushed_at > ?2 \
         AND state NOT IN ('refused', 'moved', 'returning') \
         AND NOT (state IN ('pushed', 'done') AND coalesce(answer, 'taken') NOT LIKE 'taken%') \
         GROUP BY coalesce(message_id, rowid) ORDER BY 1",
        (sender, millis(since)),
    )?;
    Ok(times.into_iter().map(|(at,)| timestamp(at)).collect())
}

fn pushes_of(connection: &Connection, message_id: &str) -> Result<Pushes, rusqlite::Error> {
    let (tried, unclear): (bool, Option<i64>) = one(
        connection,
        "SELECT count(*) FILTER (WHERE tries > 0 AND state NOT IN ('pushed', 'done')) > 0, \
         max(pushed_at) FILTER (WHERE state IN ('pushing', 'gone')) FROM received WHERE message_id = ?1",
        [message_id],
    )?;
    Ok(Pushes { tried, unclear_since: unclear.map(timestamp) })
}

/// What is known of the pushes of one Message-Id, apart from those that Odoo took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pushes {
    /// There was one, so Odoo may have the message.
    pub tried: bool,
    /// When the last began whose outcome nobody knows.
    pub unclear_since: Option<Timestamp>,
}
