//! The inbox ledger, kept from growing for ever: rows that nothing can need any more are removed.
//!
//! What "once" needs of the row of a message that is done with:
//! - While UIDVALIDITY stays, the mark alone keeps a message from being found again: UIDs only grow (RFC 9051 section
//!   2.3.1.1).
//! - Where UIDs no longer tell (UIDVALIDITY changed, the folder was renamed, the mark was wrong), unread messages are found
//!   anew, however old, and known by the Message-Id of their row. So the row of a message stays for as long as the message
//!   lies in the folder. Such a look enters what is unread under its new UID, with its Message-Id: that row takes the older
//!   one's place.
//! - A message that left the folder may come back under a new UID, when a person moves it. It is known by its row for
//!   [`KEPT`] after it was done with; later Odoo is left to know it, which knows every message that it keeps. What it does
//!   not keep, a bounce say, would be fed in once more: the price for a table that ends.
//! - What is still to be done, or lies in the quarantine, has a row in any case; and who sent how many is asked for two
//!   hours only.

use super::inbox::{InboxWrite, narrow};
use super::sql::{rows, run, unencodable};
use super::writer::Write;
use super::{Error, Store, millis};
use crate::address::Address;
use jiff::Timestamp;
use rusqlite::{Connection, params};
use std::time::Duration;

/// How long the row of a message is kept that is done with.
pub const KEPT: Duration = Duration::from_secs(90 * 24 * 3600);
/// At most so many rows are removed at a time: SMTP must not be kept waiting.
const AT_A_TIME: u32 = 1000;

/// Rows to be removed.
#[derive(Debug)]
pub(super) struct Prune {
    pub(super) mailbox: Address,
    pub(super) folder: String,
    pub(super) uidvalidity: u32,
    /// These left the folder.
    pub(super) gone: Vec<u32>,
    pub(super) before: Timestamp,
}

impl Store {
    /// The UIDs above this one, in order, of messages of a folder that were done with `before` then. Those of them that
    /// are no longer in the folder may be pruned.
    ///
    /// # Errors
    /// The disk's.
    pub async fn done_before(
        &self,
        mailbox: &Address,
        folder: &str,
        uidvalidity: u32,
        above: u32,
        before: Timestamp,
        limit: u32,
    ) -> Result<Vec<u32>, Error> {
        let sql = "SELECT uid FROM received WHERE mailbox = ?1 AND folder = ?2 AND uidvalidity = ?3 AND uid > ?4 \
                   AND state = 'done' AND changed_at < ?5 ORDER BY uid LIMIT ?6";
        let values = (mailbox.to_string(), folder.to_owned(), uidvalidity, above, millis(before), limit);
        let uids: Vec<(i64,)> = self.rows("old received messages", sql, values).await?;
        uids.into_iter().map(|(uid,)| narrow(uid)).collect()
    }

    /// Removes the rows of a mailbox's messages that were done with `before` then: these that are `gone` from the folder,
    /// those that left it before they were fetched, and those of another UIDVALIDITY or another folder. Not all of the
    /// latter at once.
    ///
    /// # Errors
    /// The disk's.
    pub async fn prune_received(
        &self,
        mailbox: &Address,
        folder: &str,
        uidvalidity: u32,
        gone: Vec<u32>,
        before: Timestamp,
    ) -> Result<(), Error> {
        let (mailbox, folder) = (mailbox.clone(), folder.to_owned());
        let prune = Prune { mailbox, folder, uidvalidity, gone, before };
        self.write(Write::Inbox(InboxWrite::Prune(prune))).await
    }
}

impl Prune {
    pub(super) fn apply(&self, connection: &Connection) -> Result<(), rusqlite::Error> {
        let gone = serde_json::to_string(&self.gone).map_err(unencodable)?;
        let found: Vec<(i64,)> = rows(
            connection,
            "SELECT rowid FROM received WHERE mailbox = ?1 AND state IN ('done', 'gone') AND changed_at < ?5 \
             AND (state = 'gone' OR folder <> ?2 OR uidvalidity <> ?3 OR uid IN (SELECT value FROM json_each(?4))) \
             LIMIT ?6",
            params![
                self.mailbox.as_str(),
                self.folder,
                self.uidvalidity,
                gone,
                millis(self.before),
                AT_A_TIME
            ],
        )?;
        if found.is_empty() {
            return Ok(());
        }
        let found: Vec<i64> = found.into_iter().map(|(row,)| row).collect();
        let found = serde_json::to_string(&found).map_err(unencodable)?;
        run(
            connection,
            "UPDATE inbox SET pruned = pruned + (SELECT count(*) FROM received r WHERE r.mailbox = inbox.mailbox \
             AND r.folder = inbox.folder AND r.state = 'done' AND r.rowid IN (SELECT value FROM json_each(?2))) \
             WHERE mailbox = ?1",
            params![self.mailbox.as_str(), found],
        )?;
        run(connection, "DELETE FROM received WHERE rowid IN (SELECT value FROM json_each(?1))", [found])
            .map(drop)
    }
}

#[cfg(test)]
#[path = "prune_tests.rs"]
mod tests;
