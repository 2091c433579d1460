//! The invitations' rows: the key that signs the links, sealed, and each mailbox's generation.

use super::sealed::{self, opened, written};
use super::sql::{first, run, unencodable};
use super::writer::Write;
use super::{Error, Store};
use crate::address::Address;
use crate::sealing::{Key, KeyId, Keyring, Owner};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rusqlite::{Connection, params};
use secrecy::{ExposeSecret, SecretSlice, SecretString};

/// Which of [`super::Store`]'s keys signs invitations.
const KEY: &str = "invitation";
const OWN_KEY: &str = "SELECT CAST(sealed AS BLOB) FROM own_key WHERE name = ?1";

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
    /// The disk's, and a key that does not open.
    pub async fn invite_key(&self) -> Result<Option<SecretSlice<u8>>, Error> {
        let row: Option<(Vec<u8>,)> = self.first("the invitations' key", OWN_KEY, [KEY]).await?;
        let Some((sealed,)) = row else {
            return Ok(None);
        };
        let text = opened(&self.keys, Owner::Invitations, &sealed)?;
        let key = STANDARD.decode(text.expose_secret());
        Ok(Some(SecretSlice::from(key.map_err(|_| Owner::Invitations.tampered())?)))
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
        let sql = "SELECT generation FROM invitation WHERE mailbox = ?1";
        let row: Option<(i64,)> = self.first("invitations", sql, [mailbox.as_str()]).await?;
        Ok(row.map_or(0, |(generation,)| generation))
    }

    /// Ends every invitation that was given out for the mailbox.
    ///
    /// # Errors
    /// The disk's.
    pub async fn revoke_invites(&self, mailbox: &Address) -> Result<(), Error> {
        self.write(Write::Invite(InviteWrite::Revoke(mailbox.clone()))).await
    }
}

/// Seals the key anew. One that does not open is of no use: the next invitation makes another.
pub(super) fn reseal(connection: &Connection, keys: &Keyring, new: &Key) -> Result<(), Error> {
    let written = written("reseal the invitations' key");
    let Some((sealed,)) = first::<(Vec<u8>,)>(connection, OWN_KEY, [KEY]).map_err(written)? else {
        return Ok(());
    };
    match opened(keys, Owner::Invitations, &sealed) {
        Ok(text) => {
            let anew = new.seal(rand::random(), Owner::Invitations, &text)?;
            run(connection, "UPDATE own_key SET sealed = ?2 WHERE name = ?1", params![KEY, anew])
        }
        Err(_) => run(connection, "DELETE FROM own_key WHERE name = ?1", [KEY]),
    }
    .map(drop)
    .map_err(written)
}

/// Drops what was sealed under another key than this one.
pub(super) fn forget_others(connection: &Connection, id: KeyId) -> Result<(), rusqlite::Error> {
    // See src/sealing.rs: the key's id stands behind one byte of version.
    run(connection, "DELETE FROM own_key WHERE substr(sealed, 2, 8) <> ?1", [id.as_bytes()]).map(drop)
}

pub(super) fn apply(
    write: &InviteWrite,
    connection: &Connection,
    keys: &Keyring,
) -> Result<(), rusqlite::Error> {
    match write {
        InviteWrite::Key(secret) => {
            let text = SecretString::from(STANDARD.encode(secret.expose_secret()));
            let sealed = sealed::key(connection, keys)?.seal(rand::random(), Owner::Invitations, &text);
            let sql = "INSERT INTO own_key (name, sealed) VALUES (?1, ?2) ON CONFLICT (name) DO NOTHING";
            run(connection, sql, params![KEY, sealed.map_err(unencodable)?])
        }
        InviteWrite::Revoke(mailbox) => run(
            connection,
            "INSERT INTO invitation (mailbox, generation) VALUES (?1, 1) \
             ON CONFLICT (mailbox) DO UPDATE SET generation = generation + 1",
            [mailbox.as_str()],
        ),
    }
    .map(drop)
}

#[cfg(test)]
mod tests {
    use super::super::migrations::migrate;
    use super::super::{Config, bare, connect, create};
    use super::*;

    const SECRET: &[u8; 32] = b"the key that signs invitations..";

    async fn with_store<T>(config: &Config, work: impl AsyncFnOnce(Store) -> T) -> T {
        let (store, writer) = Store::open(config).await.unwrap();
        let writing = tokio::spawn(writer.run());
        let done = work(store.clone()).await;
        store.close().await;
        writing.await.unwrap();
        done
    }

    async fn keep(config: &Config) {
        with_store(config, async |store| store.keep_invite_key(SecretSlice::from(SECRET.to_vec())).await)
            .await
            .unwrap();
    }

    async fn read(config: &Config) -> Result<Option<Vec<u8>>, Error> {
        let key = with_store(config, async |store| store.invite_key().await).await?;
        Ok(key.map(|key| key.expose_secret().to_vec()))
    }

    fn is_anywhere(folder: &std::path::Path, text: &[u8]) -> bool {
        std::fs::read_dir(folder).unwrap().any(|file| {
            let bytes = std::fs::read(file.unwrap().path()).unwrap();
            bytes.windows(text.len()).any(|part| part == text)
        })
    }

    #[tokio::test]
    async fn the_key_is_sealed_and_goes_along_with_each_rotation() {
        let folder = tempfile::tempdir().unwrap();
        let config = Config::at(folder.path().join("relay.db"));
        keep(&config).await;
        let encoded = STANDARD.encode(SECRET);
        for _ in 0..2 {
            assert_eq!(read(&config).await.unwrap().as_deref(), Some(&SECRET[..]));
            assert!(!is_anywhere(folder.path(), SECRET) && !is_anywhere(folder.path(), encoded.as_bytes()));
            Store::rotate_key(&config).await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_key_that_lay_in_clear_no_longer_counts() {
        let folder = tempfile::tempdir().unwrap();
        let config = Config::at(folder.path().join("relay.db"));
        create(&config.path).unwrap();
        let mut old = bare(&config.path).unwrap();
        migrate(&mut old, &config.path, 3).unwrap();
        old.execute("INSERT INTO own_key VALUES ('invitation', ?1)", [SECRET.as_slice()]).unwrap();
        drop(old);
        assert_eq!(read(&config).await.unwrap(), None);
        keep(&config).await;
        assert!(read(&config).await.unwrap().is_some());
    }

    #[tokio::test]
    async fn a_lost_or_damaged_key_costs_the_links_and_no_more() {
        let folder = tempfile::tempdir().unwrap();
        let config = Config::at(folder.path().join("relay.db"));
        keep(&config).await;
        // No token is sealed under it: nothing is worth stopping for.
        std::fs::remove_file(folder.path().join("relay.key")).unwrap();
        assert_eq!(read(&config).await.unwrap(), None);
        keep(&config).await;

        let (connection, _) = connect(&config).unwrap();
        connection.execute("UPDATE own_key SET sealed = sealed || x'00'", ()).unwrap();
        drop(connection);
        let error = read(&config).await.unwrap_err().to_string();
        assert!(error.contains("invitations") && error.contains("rotate-key"), "{error}");
        Store::rotate_key(&config).await.unwrap();
        assert_eq!(read(&config).await.unwrap(), None, "as the error said");
    }
}
