//! Invitations: a link that its mailbox's owner opens to consent, without any right in Odoo and without a password of ours.
//!
//! It names the mailbox, an end and a generation, under an HMAC-SHA256 (RFC 2104) whose random key the store keeps. Raising
//! the mailbox's generation revokes every link given out before; a consent does so too, so that a link works once.

use crate::address::Address;
use crate::failure::chain;
use crate::store::{self, Store};
use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::Timestamp;
use secrecy::{ExposeSecret, SecretSlice};

/// The key's length in bytes: as long as the hash (RFC 2104 section 3).
const KEY_BYTES: usize = 32;
/// Ours have some 150 characters; longer ones are not even decoded.
const MOST_CHARACTERS: usize = 1_024;
/// What the HMAC is for stands in what is signed: the key may one day sign something else as well.
const PURPOSE: &str = "outlook-relay invitation 1";

/// What a link says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invite {
    /// Whose mailbox may be connected.
    pub mailbox: Address,
    /// The mailbox's generation when it was given out.
    pub generation: i64,
    /// Until when it counts, in whole seconds.
    pub expires_at: Timestamp,
}

/// Why a link does not count.
#[derive(Debug, thiserror::Error)]
pub enum InviteError {
    /// Not what we gave out.
    #[error("this link is not one of this relay's, or a part of it is missing: copy the whole of it")]
    Invalid,
    /// Its time is over.
    #[error("this link has expired: ask your administrator for a new one")]
    Expired,
    /// Used, or revoked.
    #[error("this link was used already, or revoked: ask your administrator for a new one")]
    Revoked,
    /// Its mailbox was taken out of the configuration, or put in after the daemon started.
    #[error(
        "{0} is no mailbox of the running relay: tell your administrator, who restarts the relay if the mailbox was just \
         added to its configuration; then this link works"
    )]
    Unknown(Address),
    /// The store failed.
    #[error("the link could not be checked: {}", chain(.0))]
    Store(#[from] store::Error),
}

/// A link's token: letters, digits, `-`, `_` and a `.`, so it goes into a path as it is. Pure.
pub fn sign(key: &SecretSlice<u8>, invite: &Invite) -> String {
    let Invite { mailbox, generation, expires_at } = invite;
    let said = format!("{generation} {} {mailbox}", expires_at.as_second());
    let tag = hmac::sign(&hmac_key(key), signed(&said).as_bytes());
    format!("{}.{}", URL_SAFE_NO_PAD.encode(&said), URL_SAFE_NO_PAD.encode(tag))
}

/// Reads a token whose HMAC is ours and whose time is not over. Pure; nothing of it is looked at before the HMAC.
///
/// # Errors
/// [`InviteError::Invalid`] and [`InviteError::Expired`].
pub fn verify(key: &SecretSlice<u8>, token: &str, now: Timestamp) -> Result<Invite, InviteError> {
    let invite = authentic(key, token).ok_or(InviteError::Invalid)?;
    if now < invite.expires_at { Ok(invite) } else { Err(InviteError::Expired) }
}

fn authentic(key: &SecretSlice<u8>, token: &str) -> Option<Invite> {
    let (said, tag) = token.split_once('.').filter(|_| token.len() <= MOST_CHARACTERS)?;
    let said = String::from_utf8(URL_SAFE_NO_PAD.decode(said).ok()?).ok()?;
    let tag = URL_SAFE_NO_PAD.decode(tag).ok()?;
    hmac::verify(&hmac_key(key), signed(&said).as_bytes(), &tag).ok()?;
    let mut words = said.splitn(3, ' ');
    Some(Invite {
        generation: words.next()?.parse().ok()?,
        expires_at: Timestamp::from_second(words.next()?.parse().ok()?).ok()?,
        mailbox: Address::try_from(words.next()?).ok()?,
    })
}

fn hmac_key(key: &SecretSlice<u8>) -> hmac::Key {
    hmac::Key::new(hmac::HMAC_SHA256, key.expose_secret())
}

fn signed(said: &str) -> String {
    format!("{PURPOSE} {said}")
}

/// Gives out a token for `mailbox`. The first one of all makes the key.
///
/// # Errors
/// The store's.
pub async fn issue(store: &Store, mailbox: &Address, expires_at: Timestamp) -> Result<String, store::Error> {
    let key = match store.invite_key().await? {
        Some(key) => key,
        None => {
            let key = SecretSlice::from(rand::random::<[u8; KEY_BYTES]>().to_vec());
            // Whoever was first: its key counts.
            store.keep_invite_key(key.clone()).await?;
            store.invite_key().await?.unwrap_or(key)
        }
    };
    let generation = store.invite_generation(mailbox).await?;
    Ok(sign(&key, &Invite { mailbox: mailbox.clone(), generation, expires_at }))
}

/// Whom a token is for, if it counts.
///
/// # Errors
/// As in [`InviteError`].
pub async fn accept(store: &Store, token: &str, now: Timestamp) -> Result<Address, InviteError> {
    let key = store.invite_key().await?.ok_or(InviteError::Invalid)?;
    let invite = verify(&key, token, now)?;
    let generation = store.invite_generation(&invite.mailbox).await?;
    if generation == invite.generation { Ok(invite.mailbox) } else { Err(InviteError::Revoked) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn key(seed: u8) -> SecretSlice<u8> {
        SecretSlice::from(vec![seed; KEY_BYTES])
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap()
    }

    fn john() -> Invite {
        Invite { mailbox: Address::try_from("john@example.com").unwrap(), generation: 3, expires_at: at(100) }
    }

    #[test]
    fn a_link_says_what_was_signed_until_it_expires() {
        let token = sign(&key(1), &john());
        assert!(token.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b)), "{token}");
        assert_eq!(verify(&key(1), &token, at(99)).unwrap(), john());
        assert!(matches!(verify(&key(1), &token, at(100)), Err(InviteError::Expired)));
    }

    #[test]
    fn what_we_did_not_sign_is_nothing() {
        let token = sign(&key(1), &john());
        let (said, tag) = token.split_once('.').unwrap();
        let other =
            sign(&key(1), &Invite { mailbox: Address::try_from("eve@example.com").unwrap(), ..john() });
        let (_, other_tag) = other.split_once('.').unwrap();
        let long = format!("{said}.{}", "A".repeat(2_000));
        let cases = [
            "",
            ".",
            said,
            &format!("{said}."),
            &format!("{said}.{other_tag}"),
            &format!("{tag}.{tag}"),
            &long,
        ];
        for forged in cases {
            assert!(matches!(verify(&key(1), forged, at(0)), Err(InviteError::Invalid)), "{forged}");
        }
        assert!(matches!(verify(&key(2), &token, at(0)), Err(InviteError::Invalid)), "another relay's");
    }

    proptest! {
        #[test]
        fn no_changed_character_goes_unseen(place in 0usize..200, with in "[A-Za-z0-9_.-]") {
            let token = sign(&key(1), &john());
            let place = place % token.len();
            let mut changed = token.clone();
            changed.replace_range(place..=place, &with);
            prop_assume!(changed != token);
            prop_assert!(verify(&key(1), &changed, at(0)).is_err());
        }

        #[test]
        fn no_text_crashes_it(text in "\\PC{0,300}") {
            prop_assert!(verify(&key(1), &text, at(0)).is_err());
        }
    }
}
