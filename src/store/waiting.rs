//! What waits in a mailbox's queue, seen from outside of its attempts: for how long, and whether it may go another way.

use super::{Error, QueueId, Store};
use crate::address::Address;
use jiff::Timestamp;

/// A message that may go out through another mailbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reroutable {
    /// Its id.
    pub id: QueueId,
    /// Its From, decoded.
    pub from: Option<String>,
    /// The envelope's sender.
    pub mail_from: String,
}

/// A message whose mailbox is not there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stray {
    /// Its id.
    pub id: QueueId,
    /// The mailbox that it was to go out through.
    pub mailbox: String,
    /// Its From, decoded.
    pub from: Option<String>,
    /// The envelope's sender.
    pub mail_from: String,
    /// Whether that mailbox may have sent it, and it is still to be found out.
    pub unknown: bool,
}

impl Store {
    /// The messages of a mailbox after `after` that wait, and of which it is known that nobody has got them.
    ///
    /// # Errors
    /// The disk's.
    pub async fn reroutable(
        &self,
        mailbox: &Address,
        after: Option<QueueId>,
        limit: u32,
    ) -> Result<Vec<Reroutable>, Error> {
        let sql = "SELECT id, header_from, mail_from FROM message \
                   WHERE mailbox = ?1 AND state = 'waiting' AND unknown_since IS NULL AND id > ?2 ORDER BY id LIMIT ?3";
        let values = (mailbox.to_string(), after.map_or(-1, |id| id.0), limit);
        let rows: Vec<(i64, Option<String>, String)> = self.rows("messages to reroute", sql, values).await?;
        let message = |(id, from, mail_from)| Reroutable { id: QueueId(id), from, mail_from };
        Ok(rows.into_iter().map(message).collect())
    }

    /// The messages of a mailbox that were accepted between the two, the second included, and are not sent yet, oldest
    /// first: each with its Message-Id.
    ///
    /// # Errors
    /// The disk's.
    pub async fn waiting_since(
        &self,
        mailbox: &Address,
        after: Timestamp,
        until: Timestamp,
        limit: u32,
    ) -> Result<Vec<(QueueId, Option<String>)>, Error> {
        // An id is the microsecond of its arrival.
        let sql = "SELECT id, message_id FROM message \
                   WHERE id > ?2 AND id <= ?3 AND mailbox = ?1 AND state IN ('waiting', 'sending') ORDER BY id LIMIT ?4";
        let values = (mailbox.to_string(), after.as_microsecond(), until.as_microsecond(), limit);
        let rows: Vec<(i64, Option<String>)> = self.rows("messages that wait for long", sql, values).await?;
        Ok(rows.into_iter().map(|(id, message_id)| (QueueId(id), message_id)).collect())
    }
}
