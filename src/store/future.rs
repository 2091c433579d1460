//! What a clock that was set back left in the future: it must not wait for that.

use super::sql::run;
use super::writer::Write;
use super::{Error, Store, millis};
use jiff::Timestamp;
use rusqlite::Connection;

/// A minute in milliseconds, the unit of the pace.
const MINUTE: i64 = 60_000;
/// No report waits for longer than that for its next push, in milliseconds.
const LONGEST_WAIT: i64 = 24 * 60 * MINUTE;

impl Store {
    /// Has everything that was written after `now` due at once: the clock was set back since, by who knows how much.
    ///
    /// # Errors
    /// The disk's.
    pub async fn forget_future(&self, now: Timestamp) -> Result<(), Error> {
        self.write(Write::Future(now)).await
    }
}

pub(super) fn apply(now: Timestamp, connection: &Connection) -> Result<(), rusqlite::Error> {
    let (at, minute) = (millis(now), millis(now).div_euclid(MINUTE));
    for (sql, value) in [
        ("UPDATE message SET unknown_since = ?1 WHERE unknown_since > ?1", at),
        ("UPDATE message SET tried_since = ?1 WHERE coalesce(tried_since, received_at) > ?1", at),
        (
            "UPDATE message SET next_attempt_at = ?1, changed_at = ?1 WHERE state = 'waiting' AND changed_at > ?1",
            at,
        ),
        ("UPDATE received SET next_try_at = ?1, changed_at = ?1 WHERE changed_at > ?1", at),
        ("UPDATE received SET pushed_at = ?1 WHERE pushed_at > ?1", at),
        ("UPDATE inbox SET looked_at = ?1 WHERE looked_at > ?1", at),
        ("UPDATE report SET next_try_at = ?1, created_at = ?1 WHERE created_at > ?1", at),
        ("DELETE FROM pace WHERE minute > ?1", minute),
    ] {
        run(connection, sql, [value])?;
    }
    // An older report may have been pushed by that clock, too; it does not say when.
    let sql = "UPDATE report SET next_try_at = ?1 WHERE next_try_at > ?1 + ?2";
    run(connection, sql, [at, LONGEST_WAIT]).map(drop)
}
