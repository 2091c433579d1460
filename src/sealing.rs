//! Refresh tokens at rest, and the key that signs invitations: sealed with XChaCha20-Poly1305 under a key that lies apart
//! from the store. This file is pure; the [`Keyring`] knows where the key's file is. Nobody else sees a key.
//!
//! A sealed token is: one byte of version, the key's id, the nonce, then ciphertext and tag. Version, key id and the
//! mailbox's address are authenticated with it: a row that was copied to another mailbox does not open.

mod keyring;

pub use keyring::{Keyring, check_key_file};

use crate::address::Address;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use chacha20poly1305::aead::{Aead, Payload};
use chacha20poly1305::{KeyInit, XChaCha20Poly1305};
use secrecy::{ExposeSecret, SecretBox, SecretString};
use sha2::{Digest, Sha256};
use std::fmt;
use std::path::PathBuf;

/// A nonce of XChaCha20: long enough to be drawn at random, without counting.
pub type Nonce = [u8; 24];

/// The only form so far.
const VERSION: u8 = 1;
/// Version and key id.
const HEAD: usize = 1 + 8;
/// Where the ciphertext begins.
const BODY: usize = HEAD + 24;

/// What is wrong with a key, or with what it sealed. No variant ever destroys anything.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no key file, though tokens were sealed.
    #[error(
        "{path}: the key of the stored tokens (its id is {id}) is missing: put the file back from a backup. Only if it \
         is lost for good: stop the daemon, run `outlook-relay store rotate-key --lost`, and connect each mailbox anew. \
         Nothing was changed"
    )]
    Missing {
        /// Where it should be.
        path: PathBuf,
        /// Which.
        id: KeyId,
    },
    /// There is a key file, but the tokens were sealed under another key.
    #[error(
        "{path}: this key (its id is {found}) is not the one of the stored tokens (its id is {id}): put that one back \
         from a backup, or run `outlook-relay store rotate-key` again where it was cut short. Only if it is lost for \
         good: stop the daemon, run `outlook-relay store rotate-key --lost`, and connect each mailbox anew. Nothing was \
         changed"
    )]
    Other {
        /// The key file.
        path: PathBuf,
        /// The key in it.
        found: KeyId,
        /// The key that is needed.
        id: KeyId,
    },
    /// A key file that cannot be used; what is wrong with it, and what to do.
    #[error("[store] key_file (where it is not set: the key beside the store) {0}")]
    File(String),
    /// A key file, or a folder of one, that cannot be written.
    #[error("{path}: the store's key cannot be written ({step}): run as a user who may write there")]
    Write {
        /// What was to be written.
        path: PathBuf,
        /// Which step of it.
        step: &'static str,
        /// Why.
        source: std::io::Error,
    },
    /// The sealed bytes do not open under their own key for this mailbox.
    #[error(
        "the sealed token of {mailbox} was changed, damaged, or belongs to another mailbox: put the store back from a \
         backup, or run `outlook-relay connect {mailbox}`"
    )]
    Tampered {
        /// Whose it should be.
        mailbox: Address,
    },
    /// The same of the key that signs invitations.
    #[error(
        "the sealed key of the invitations was changed or damaged: put the store back from a backup, or run \
         `outlook-relay store rotate-key`, which makes a new one: the links given out before then no longer count"
    )]
    TamperedInvitations,
}

/// Whose secret is sealed.
#[derive(Clone, Copy, Debug)]
pub enum Owner<'a> {
    /// A mailbox's refresh token.
    Mailbox(&'a Address),
    /// The relay's key that signs invitations.
    Invitations,
}

impl Owner<'_> {
    /// That something does not open as this one's.
    pub fn tampered(self) -> Error {
        match self {
            Self::Mailbox(mailbox) => Error::Tampered { mailbox: mailbox.clone() },
            Self::Invitations => Error::TamperedInvitations,
        }
    }

    /// What is authenticated besides the secret.
    fn associated(self, head: &[u8]) -> Vec<u8> {
        match self {
            Self::Mailbox(mailbox) => {
                [b"outlook-relay refresh token\0", head, mailbox.as_str().as_bytes()].concat()
            }
            Self::Invitations => [b"outlook-relay invitations' key\0", head].concat(),
        }
    }
}

/// Names a key without telling anything about it: the first bytes of a hash of it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId([u8; 8]);

impl KeyId {
    /// As the store keeps it.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The id that [`KeyId::as_bytes`] gave.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl serde::Serialize for KeyId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A key: 32 random bytes, wiped from memory when it is dropped.
#[derive(Debug)]
pub struct Key {
    id: KeyId,
    secret: SecretBox<[u8; 32]>,
}

impl Key {
    /// A key of 32 bytes that were drawn at random.
    pub fn new(secret: SecretBox<[u8; 32]>) -> Self {
        let hash = Sha256::new().chain_update(b"outlook-relay key id\0").chain_update(secret.expose_secret());
        let mut id = [0; 8];
        id.iter_mut().zip(hash.finalize()).for_each(|(to, from)| *to = from);
        Self { id: KeyId(id), secret }
    }

    /// Which key it is.
    pub fn id(&self) -> KeyId {
        self.id
    }

    /// As it stands in its file: base64, as `openssl rand -base64 32` writes it.
    fn from_text(text: &str) -> Option<Self> {
        let bytes = SecretBox::new(Box::new(STANDARD.decode(text).ok()?));
        let mut secret = SecretBox::new(Box::new([0; 32]));
        if bytes.expose_secret().len() != 32 {
            return None;
        }
        secrecy::ExposeSecretMut::expose_secret_mut(&mut secret).copy_from_slice(bytes.expose_secret());
        Some(Self::new(secret))
    }

    fn to_text(&self) -> SecretString {
        SecretString::from(STANDARD.encode(self.secret.expose_secret()))
    }

    /// Seals a secret. `nonce` is drawn at random, anew each time.
    ///
    /// # Errors
    /// None in practice: a text too long for the cipher (256 GiB).
    pub fn seal(&self, nonce: Nonce, owner: Owner<'_>, secret: &SecretString) -> Result<Vec<u8>, Error> {
        let mut sealed = vec![VERSION];
        sealed.extend(self.id.0);
        let associated = owner.associated(&sealed);
        let payload = Payload { msg: secret.expose_secret().as_bytes(), aad: &associated };
        let body = self.cipher().encrypt(&nonce.into(), payload);
        sealed.extend(nonce);
        sealed.extend(body.map_err(|_| owner.tampered())?);
        Ok(sealed)
    }

    /// Opens what [`Key::seal`] made of this one's secret.
    ///
    /// # Errors
    /// Bytes that this key did not seal for this one.
    pub fn open(&self, owner: Owner<'_>, sealed: &[u8]) -> Result<SecretString, Error> {
        self.opened(owner, sealed).ok_or_else(|| owner.tampered())
    }

    fn opened(&self, owner: Owner<'_>, sealed: &[u8]) -> Option<SecretString> {
        let (head, nonce, body) = (sealed.get(..HEAD)?, sealed.get(HEAD..BODY)?, sealed.get(BODY..)?);
        let nonce = Nonce::try_from(nonce).ok()?;
        if head.first() != Some(&VERSION) || key_id(sealed) != Some(self.id) {
            return None;
        }
        let payload = Payload { msg: body, aad: &owner.associated(head) };
        let clear = self.cipher().decrypt(&nonce.into(), payload).ok()?;
        String::from_utf8(clear).ok().map(SecretString::from)
    }

    fn cipher(&self) -> XChaCha20Poly1305 {
        XChaCha20Poly1305::new(self.secret.expose_secret().into())
    }
}

/// The key under which a token was sealed; `None`: these bytes are no sealed token.
pub fn key_id(sealed: &[u8]) -> Option<KeyId> {
    sealed.get(1..HEAD).and_then(KeyId::from_bytes)
}

#[cfg(test)]
mod tests;
