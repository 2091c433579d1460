//! The invitations' rows: the key that signs the links, and each mailbox's generation.

use super::writer::Write;
use super::{Error, Store};
use crate::address::Address;
use secrecy::{ExposeSecret, SecretSlice};
use sqlx::SqliteConnection;

/// Which of [`super::Store`]'s keys signs invitations.
const KEY: &str = "invitation";

/// What is written of invitations.
#[derive(Debug)]
pub(super) enum InviteWrite {
    Key(SecretSlice<u8>),
    Revoke(Address),
}

impl InviteWrite {
    pub(super) fn operation(&self) -> &'static str {
        match self {
            Self::Key(_) => "keep the invitations' key",
            Self::Revoke(_) => "revoke invitations",
        }
    }
}

impl Store {
    /// The key that signs invitations, once there is one.
    ///
    /// # Errors
    /// The disk's.
    pub async fn invite_key(&self) -> Result<Option<SecretSlice<u8>>, Error> {
        let key: Option<Vec<u8>> = sqlx::query_scalar("SELECT key FROM own_key WHERE name = $1")
            .bind(KEY)
            .fetch_optional(&self.readers)
            .await
            .map_err(|source| Error::Read { operation: "the invitations' key", source })?;
        Ok(key.map(SecretSlice::from))
    }

    /// Keeps a key to sign invitations with, unless there is one already.
    ///
    /// # Errors
    /// The disk's.
    pub async fn keep_invite_key(&self, key: SecretSlice<u8>) -> Result<(), Error> {
        self.write(Write::Invite(InviteWrite::Key(key))).await
    }

    /// How often the mailbox's invitations were revoked.
    ///
    /// # Errors
    /// The disk's.
    pub async fn invite_generation(&self, mailbox: &Address) -> Result<i64, Error> {
        let generation: Option<i64> =
            sqlx::query_scalar("SELECT generation FROM invitation WHERE mailbox = $1")
                .bind(mailbox.as_str())
                .fetch_optional(&self.readers)
                .await
                .map_err(|source| Error::Read { operation: "invitations", source })?;
        Ok(generation.unwrap_or_default())
    }

    /// Ends every invitation that was given out for the mailbox.
    ///
    /// # Errors
    /// The disk's.
    pub async fn revoke_invites(&self, mailbox: &Address) -> Result<(), Error> {
        self.write(Write::Invite(InviteWrite::Revoke(mailbox.clone()))).await
    }
}

pub(super) async fn apply(write: &InviteWrite, connection: &mut SqliteConnection) -> Result<(), sqlx::Error> {
    let query = match write {
        InviteWrite::Key(key) => {
            sqlx::query("INSERT INTO own_key (name, key) VALUES ($1, $2) ON CONFLICT (name) DO NOTHING")
                .bind(KEY)
                .bind(key.expose_secret())
        }
        InviteWrite::Revoke(mailbox) => sqlx::query(
            "INSERT INTO invitation (mailbox, generation) VALUES ($1, 1) \
             ON CONFLICT (mailbox) DO UPDATE SET generation = generation + 1",
        )
        .bind(mailbox.as_str()),
    };
    query.execute(connection).await.map(drop)
}
