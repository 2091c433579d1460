//! The tokens' rows: one refresh token for each mailbox whose owner consented. No statement deletes one.

use super::queue::address;
use super::writer::Write;
use super::{Error, Store, millis, timestamp};
use crate::address::Address;
use jiff::Timestamp;
use secrecy::{ExposeSecret, SecretString};
use sqlx::SqliteConnection;

/// What is kept of a consent. Tenant and client stand beside the refresh token: with others it would be refused.
#[derive(Clone, Debug)]
pub struct StoredToken {
    /// The tenant at the time of consent, as configured.
    pub tenant: String,
    /// The app's id at the time of consent.
    pub client_id: String,
    /// Replaced at every use.
    pub refresh_token: SecretString,
    /// When the owner consented, or the token was taken over. Tells a new consent from a rotation.
    pub consented_at: Timestamp,
    /// When it was last replaced by Microsoft.
    pub refreshed_at: Option<Timestamp>,
}

impl Store {
    /// Keeps a refresh token in place of the one before: it is on disk when this returns.
    ///
    /// # Errors
    /// The disk's; then the one before is still there, and the access token that came with the new one must not be used.
    pub async fn keep_token(&self, mailbox: &Address, token: StoredToken) -> Result<(), Error> {
        self.write(Write::Token(mailbox.clone(), token)).await
    }

    /// The refresh token of a mailbox.
    ///
    /// # Errors
    /// The disk's.
    pub async fn token(&self, mailbox: &Address) -> Result<Option<StoredToken>, Error> {
        let row: Option<(String, String, String, i64, Option<i64>)> = sqlx::query_as(
            "SELECT tenant, client_id, refresh_token, consented_at, refreshed_at FROM token WHERE mailbox = $1",
        )
        .bind(mailbox.as_str())
        .fetch_optional(&self.readers)
        .await
        .map_err(|source| Error::Read { operation: "a token", source })?;
        Ok(row.map(|(tenant, client_id, refresh_token, consented_at, refreshed_at)| StoredToken {
            tenant,
            client_id,
            refresh_token: SecretString::from(refresh_token),
            consented_at: timestamp(consented_at),
            refreshed_at: refreshed_at.map(timestamp),
        }))
    }

    /// When each mailbox's owner consented: what changes when somebody connects a mailbox.
    ///
    /// # Errors
    /// The disk's, and rows that make no sense.
    pub async fn consents(&self) -> Result<Vec<(Address, Timestamp)>, Error> {
        let rows: Vec<(String, i64)> = sqlx::query_as("SELECT mailbox, consented_at FROM token")
            .fetch_all(&self.readers)
            .await
            .map_err(|source| Error::Read { operation: "consents", source })?;
        rows.into_iter().map(|(mailbox, at)| Ok((address(&mailbox)?, timestamp(at)))).collect()
    }
}

pub(super) async fn apply(
    mailbox: &Address,
    token: &StoredToken,
    connection: &mut SqliteConnection,
) -> Result<(), sqlx::Error> {
    sqlx::query(
        "INSERT INTO token (mailbox, tenant, client_id, refresh_token, consented_at, refreshed_at) \
         VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (mailbox) DO UPDATE SET tenant = excluded.tenant, \
         client_id = excluded.client_id, refresh_token = excluded.refresh_token, \
         consented_at = excluded.consented_at, refreshed_at = excluded.refreshed_at \
         WHERE excluded.consented_at >= token.consented_at",
    )
    .bind(mailbox.as_str())
    .bind(&token.tenant)
    .bind(&token.client_id)
    .bind(token.refresh_token.expose_secret())
    .bind(millis(token.consented_at))
    .bind(token.refreshed_at.map(millis))
    .execute(connection)
    .await
    .map(drop)
}
