//! Reports of failed deliveries on their way into Odoo: kept until Odoo has taken them.

use super::{QueueId, millis};
use bytes::Bytes;
use jiff::Timestamp;
use sqlx::SqliteConnection;

/// A report to keep, in the commit that settles the failure.
#[derive(Clone)]
pub struct NewReport {
    /// The Message-Id of the message that failed.
    pub message_id: Option<String>,
    /// The addresses that it did not reach.
    pub recipients: Vec<String>,
    /// The report itself (RFC 3464).
    pub raw: Bytes,
}

impl std::fmt::Debug for NewReport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { message_id, recipients, raw } = self;
        write!(f, "NewReport({message_id:?}, {} recipients, {} bytes)", recipients.len(), raw.len())
    }
}

/// A report that is to be pushed.
#[derive(Clone)]
pub struct Report {
    /// Its own id.
    pub id: i64,
    /// The queue id of the message that failed.
    pub message: QueueId,
    /// What it says.
    pub new: NewReport,
    /// How often it was pushed.
    pub tries: u32,
    /// Whether the answer to the last push was lost: Odoo may have taken it.
    pub unclear: bool,
}

/// Keeps a report; it is due at once.
pub(super) async fn insert(
    message: QueueId,
    report: &NewReport,
    now: Timestamp,
    connection: &mut SqliteConnection,
) -> Result<(), sqlx::Error> {
    let recipients =
        serde_json::to_string(&report.recipients).map_err(|error| sqlx::Error::Encode(Box::new(error)))?;
    sqlx::query(
        "INSERT INTO report (id, message, message_id, recipients, created_at, state, tries, next_try_at, raw) \
         VALUES ((SELECT coalesce(max(id), 0) + 1 FROM report), $1, $2, $3, $4, 'waiting', 0, $4, $5)",
    )
    .bind(message.0)
    .bind(&report.message_id)
    .bind(recipients)
    .bind(millis(now))
    .bind(report.raw.as_ref())
    .execute(connection)
    .await
    .map(drop)
}
