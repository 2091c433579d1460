//! The tokens' rows: one refresh token, sealed, for each mailbox whose owner consented. No statement deletes one.

use super::queue::address;
use super::sql::{run, unencodable};
use super::writer::Write;
use super::{Error, Store, millis, sealed, timestamp};
use crate::address::Address;
use crate::sealing::{Keyring, Owner};
use jiff::Timestamp;
use rusqlite::{Connection, params};
use secrecy::SecretString;

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
    /// When it was last replaced by Microsoft; `None`: not since the consent.
    pub refreshed_at: Option<Timestamp>,
}

/// Tenant, client id, sealed token, consented at, refreshed at.
type Row = (String, String, Vec<u8>, i64, Option<i64>);

impl Store {
    /// Keeps a refresh token in place of the one before: it is on disk, sealed, when this returns.
    ///
    /// A new consent (`refreshed_at` is `None`) always replaces what is there, whatever the clock says: it then counts
    /// from just after the one before. A rotation replaces only the token of its own consent, never a newer one.
    ///
    /// # Errors
    /// The disk's; then the one before is still there, and the access token that came with the new one must not be used.
    pub async fn keep_token(&self, mailbox: &Address, token: StoredToken) -> Result<(), Error> {
        self.write(Write::Token(mailbox.clone(), token)).await
    }

    /// The refresh token of a mailbox.
    ///
    /// # Errors
    /// The disk's, and a token whose key is not there or that was changed ([`Error::Sealed`]).
    pub async fn token(&self, mailbox: &Address) -> Result<Option<StoredToken>, Error> {
        let sql = "SELECT tenant, client_id, CAST(sealed AS BLOB), consented_at, refreshed_at FROM token WHERE mailbox = ?1";
        let row: Option<Row> = self.first("a token", sql, [mailbox.as_str()]).await?;
        let Some((tenant, client_id, sealed, consented_at, refreshed_at)) = row else {
            return Ok(None);
        };
        let refresh_token = sealed::opened(&self.keys, Owner::Mailbox(mailbox), &sealed)
            .map_err(|source| Error::Sealed { mailbox: mailbox.clone(), source })?;
        Ok(Some(StoredToken {
            tenant,
            client_id,
            refresh_token,
            consented_at: timestamp(consented_at),
            refreshed_at: refreshed_at.map(timestamp),
        }))
    }

    /// When each mailbox's owner consented: what changes when somebody connects a mailbox. A row of no mailbox holds up no
    /// other.
    ///
    /// # Errors
    /// The disk's.
    pub async fn consents(&self) -> Result<Vec<(Address, Timestamp)>, Error> {
        let sql = "SELECT mailbox, consented_at FROM token";
        let rows: Vec<(String, i64)> = self.rows("consents", sql, ()).await?;
        Ok(rows
            .into_iter()
            .filter_map(|(mailbox, at)| Some((address(&mailbox).ok()?, timestamp(at))))
            .collect())
    }
}

pub(super) fn apply(
    mailbox: &Address,
    token: &StoredToken,
    connection: &Connection,
    keys: &Keyring,
) -> Result<(), rusqlite::Error> {
    let key = sealed::key(connection, keys)?;
    let sealed = key.seal(rand::random(), Owner::Mailbox(mailbox), &token.refresh_token);
    run(
        connection,
        "INSERT INTO token (mailbox, tenant, client_id, sealed, consented_at, refreshed_at) \
         VALUES (?1, ?2, ?3, ?4, ?5, ?6) ON CONFLICT (mailbox) DO UPDATE SET tenant = excluded.tenant, \
         client_id = excluded.client_id, sealed = excluded.sealed, refreshed_at = excluded.refreshed_at, \
         consented_at = CASE WHEN excluded.refreshed_at IS NULL AND excluded.consented_at <= token.consented_at \
         THEN token.consented_at + 1 ELSE excluded.consented_at END \
         WHERE excluded.refreshed_at IS NULL OR excluded.consented_at >= token.consented_at",
        params![
            mailbox.as_str(),
            token.tenant,
            token.client_id,
            sealed.map_err(unencodable)?,
            millis(token.consented_at),
            token.refreshed_at.map(millis),
        ],
    )
    .map(drop)
}
