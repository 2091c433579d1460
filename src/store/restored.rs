//! The first start with a store that was put back from a backup: whatever was under way when the backup was made may have been
//! done since, and nothing is done twice.

use super::backup::made_at;
use super::sql::{rows, run};
use super::unknown::is_unknown;
use super::writer::Write;
use super::{Error, Recipient, RecipientState, Store, millis};
use crate::address::Address;
use jiff::Timestamp;
use rusqlite::Connection;

/// So many messages are read at a time.
const PAGE: i64 = 500;

/// What the first start with a backup found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Restored {
    /// When the backup was made.
    pub made_at: Timestamp,
    /// Messages that were to be sent: their outcome is unknown now.
    pub messages: u64,
    /// Messages that were held or given up: they stay so.
    pub others: u64,
    /// Reports that Odoo had not taken: it is asked first.
    pub reports: u64,
}

impl Store {
    /// At the start, once [`Store::recover`] is done: whether this is a backup that no daemon has started with yet. Then the
    /// outcome of every message that waits in it is unknown, and whatever Odoo had not taken it is asked for first. A
    /// message that one transaction reached only a part of since counts as sent when its copy is found.
    ///
    /// # Errors
    /// The disk's; then nothing has changed, and nothing may be sent.
    pub async fn take_up_backup(&self, now: Timestamp) -> Result<Option<Restored>, Error> {
        let operation = "whether it is a backup";
        let Some(made_at) = self.read(operation, made_at).await? else {
            return Ok(None);
        };
        let sql = "SELECT (SELECT count(*) FROM message WHERE state IN ('waiting', 'sending')), \
                   (SELECT count(*) FROM message WHERE state NOT IN ('waiting', 'sending')), \
                   (SELECT count(*) FROM report WHERE state <> 'refused')";
        let (messages, others, reports): (i64, i64, i64) = self.sum(operation, sql, ()).await?;
        self.write(Write::Restored(now)).await?;
        Ok(Some(Restored {
            made_at,
            messages: messages.unsigned_abs(),
            others: others.unsigned_abs(),
            reports: reports.unsigned_abs(),
        }))
    }

    /// Whether a folder may hold what was pushed and is not in the ledger, since that is an older one: it was not looked
    /// through since a daemon first started with it.
    ///
    /// # Errors
    /// The disk's.
    pub async fn is_older_ledger(&self, mailbox: &Address, folder: &str) -> Result<bool, Error> {
        let sql = "SELECT count(*) FROM backup WHERE started_at IS NOT NULL AND NOT EXISTS \
                   (SELECT 1 FROM inbox WHERE mailbox = ?1 AND folder = ?2 AND looked_at > started_at)";
        let values = (mailbox.to_string(), folder.to_owned());
        let (count,): (i64,) = self.one("whether it was a backup", sql, values).await?;
        Ok(count > 0)
    }
}

pub(super) fn apply(now: Timestamp, connection: &Connection) -> Result<(), rusqlite::Error> {
    let at = millis(now);
    let mut after = -1;
    loop {
        let page: Vec<(i64, Vec<u8>)> = rows(
            connection,
            "SELECT id, CAST(recipients AS BLOB) FROM message WHERE state IN ('waiting', 'sending') AND id > ?1 \
             ORDER BY id LIMIT ?2",
            [after, PAGE],
        )?;
        let Some((last, _)) = page.last() else {
            break;
        };
        after = *last;
        for (id, recipients) in page {
            is_unknown(id, recipients, doubt, now, connection)?;
        }
    }
    for sql in [
        // As one whose push has no known answer.
        "UPDATE report SET state = 'pushing', next_try_at = max(next_try_at, ?1) WHERE state = 'waiting'",
        "UPDATE received SET state = 'pushing', changed_at = ?1 WHERE state = 'waiting'",
        "UPDATE backup SET started_at = ?1",
    ] {
        run(connection, sql, [at])?;
    }
    // An invitation that was used or revoked since would count again.
    run(connection, "DELETE FROM own_key WHERE name = 'invitation'", []).map(drop)
}

/// Everybody who waited may have got it.
fn doubt(mut recipients: Vec<Recipient>) -> Vec<Recipient> {
    for recipient in recipients.iter_mut().filter(|recipient| recipient.state == RecipientState::Waiting) {
        recipient.state = RecipientState::Unknown;
    }
    recipients
}
