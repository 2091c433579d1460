//! What opens and what does not; and the key's files.

use super::*;
use proptest::prelude::*;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

fn key(byte: u8) -> Key {
    Key::new(SecretBox::new(Box::new([byte; 32])))
}

fn random(byte: u8) -> SecretBox<[u8; 32]> {
    SecretBox::new(Box::new([byte; 32]))
}

fn john() -> Address {
    Address::normalise("john@example.com").unwrap()
}

fn sealed(token: &str) -> Vec<u8> {
    key(1).seal([7; 24], Owner::Mailbox(&john()), &SecretString::from(token)).unwrap()
}

#[test]
fn what_was_sealed_opens_for_its_mailbox_alone() {
    let sealed = sealed("a refresh token");
    assert_eq!(key(1).open(Owner::Mailbox(&john()), &sealed).unwrap().expose_secret(), "a refresh token");
    let jane = Address::normalise("jane@example.com").unwrap();
    let error = key(1).open(Owner::Mailbox(&jane), &sealed).unwrap_err().to_string();
    assert!(error.contains("jane@example.com") && error.contains("outlook-relay connect"), "{error}");
    assert!(key(2).open(Owner::Mailbox(&john()), &sealed).is_err(), "another key");
    assert!(key(1).open(Owner::Invitations, &sealed).is_err());
    assert!(!sealed.windows(7).any(|part| part == b"refresh"));
}

#[test]
fn every_flipped_bit_and_every_cut_is_refused() {
    let whole = sealed("token");
    for bit in 0..whole.len() * 8 {
        let mut flipped = whole.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        assert!(key(1).open(Owner::Mailbox(&john()), &flipped).is_err(), "bit {bit}");
    }
    for length in 0..whole.len() {
        assert!(key(1).open(Owner::Mailbox(&john()), &whole[..length]).is_err(), "{length} bytes");
    }
    // Even where the id is made to fit the other key.
    let mut foreign = whole;
    foreign[1..9].copy_from_slice(key(2).id().as_bytes());
    assert!(key(2).open(Owner::Mailbox(&john()), &foreign).is_err());
}

#[test]
fn the_form_does_not_change_between_versions() {
    // Computed by another implementation: HChaCha20 by hand, then OpenSSL's ChaCha20-Poly1305.
    let sealed = sealed("token");
    let hex: String = sealed.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(hex, KNOWN);
    assert_eq!(key_id(&sealed), Some(key(1).id()));
    assert_eq!(key_id(&sealed[..8]), None);
}

const KNOWN: &str = "01ea29a57ff69da440070707070707070707070707070707070707070707070707e943e38dd33d44073da49f2d4257cf3d10440827e4";

#[test]
fn nothing_shows_a_key() {
    let key = key(b'k');
    let shown = format!("{key:?} {:?}", Keyring::new("/k".into(), true));
    assert!(!shown.contains("107") && !shown.contains("kkkk"), "{shown}");
}

proptest! {
    #[test]
    fn any_text_comes_back(text in ".*", secret: [u8; 32], nonce: [u8; 24]) {
        let key = Key::new(SecretBox::new(Box::new(secret)));
        let sealed = key.seal(nonce, Owner::Mailbox(&john()), &SecretString::from(text.as_str())).unwrap();
        let opened = key.open(Owner::Mailbox(&john()), &sealed).unwrap();
        prop_assert_eq!(opened.expose_secret(), text.as_str());
        let read = Key::from_text(key.to_text().expose_secret()).unwrap();
        prop_assert_eq!(read.id(), key.id());
    }

    #[test]
    fn no_bytes_are_too_odd(bytes: Vec<u8>) {
        prop_assert!(key(1).open(Owner::Mailbox(&john()), &bytes).is_err());
    }
}

fn files(folder: &Path) -> Vec<String> {
    let names = std::fs::read_dir(folder).unwrap().map(|file| file.unwrap().file_name());
    let mut names: Vec<String> = names.map(|name| name.into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn the_first_key_is_made_once_and_private() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("relay.key");
    let keys = Keyring::new(path.clone(), true);
    keys.look().unwrap();
    let first = keys.first(random(1)).unwrap();
    assert_eq!(keys.first(random(2)).unwrap().id(), first.id());
    assert_eq!(files(folder.path()), ["relay.key"]);
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let again = Keyring::new(path, true);
    assert_eq!(again.key(first.id()).unwrap().id(), first.id());
}

#[test]
fn a_configured_key_is_never_made() {
    let folder = tempfile::tempdir().unwrap();
    let keys = Keyring::new(folder.path().join("store-key"), false);
    assert!(keys.first(random(1)).unwrap_err().to_string().contains("store-key, which is not there"));
    assert_eq!(files(folder.path()), [""; 0]);
}

#[test]
fn a_key_file_that_cannot_be_used_says_why() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("relay.key");
    let good = key(1).to_text();
    for (content, mode, words) in [
        (good.expose_secret(), 0o604, "everyone may read"),
        ("", 0o600, "rotate-key --lost"),
        ("not a key", 0o600, "rotate-key --lost"),
        ("AAAA", 0o600, "openssl rand -base64 32"),
    ] {
        std::fs::write(&path, content).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        let error = Keyring::new(path.clone(), true).look().unwrap_err().to_string();
        assert!(error.contains(words) && error.contains("relay.key"), "{error}");
        assert!(!error.contains(good.expose_secret()));
    }
}

#[test]
fn a_key_is_replaced_in_one_step_and_only_once_it_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let keys = Keyring::new(folder.path().join("relay.key"), true);
    let (one, two) = (keys.first(random(1)).unwrap(), key(2));
    keys.write_new(&two).unwrap();
    assert_eq!(keys.on_file().unwrap(), Some(one.id()));
    keys.put_in_place(two.id()).unwrap();
    assert_eq!(keys.on_file().unwrap(), Some(two.id()));
    assert_eq!(files(folder.path()), ["relay.key", "relay.key.old"]);
    // While the one before is kept, it is not overwritten by a third.
    keys.write_new(&key(3)).unwrap();
    assert!(keys.put_in_place(key(3).id()).is_err());
    keys.tidy(|id| id == one.id()).unwrap();
    assert_eq!(files(folder.path()), ["relay.key", "relay.key.old"]);
    keys.tidy(|_| false).unwrap();
    assert_eq!(files(folder.path()), ["relay.key"]);
    assert_eq!(keys.key(one.id()).unwrap().id(), one.id(), "this process still knows it");
    assert!(matches!(Keyring::new(keys.path().into(), true).key(one.id()), Err(Error::Other { .. })));
}

#[test]
fn a_new_key_that_was_cut_short_is_ignored_and_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let keys = Keyring::new(folder.path().join("relay.key"), true);
    let one = keys.first(random(1)).unwrap();
    let torn = folder.path().join("relay.key.new");
    std::fs::write(&torn, "AQEB").unwrap();
    let again = Keyring::new(keys.path().into(), true);
    again.look().unwrap();
    assert_eq!(again.key(one.id()).unwrap().id(), one.id());
    again.tidy(|_| true).unwrap();
    assert_eq!(files(folder.path()), ["relay.key"]);
    std::fs::write(&torn, "AQEB").unwrap();
    again.write_new(&key(2)).unwrap();
    again.put_in_place(key(2).id()).unwrap();
    assert_eq!(again.on_file().unwrap(), Some(key(2).id()));
}

#[test]
fn a_rotated_key_keeps_its_groups_right_to_read() {
    let folder = tempfile::tempdir().unwrap();
    let keys = Keyring::new(folder.path().join("relay.key"), true);
    keys.first(random(1)).unwrap();
    std::fs::set_permissions(keys.path(), std::fs::Permissions::from_mode(0o640)).unwrap();
    keys.write_new(&key(2)).unwrap();
    keys.put_in_place(key(2).id()).unwrap();
    assert_eq!(std::fs::metadata(keys.path()).unwrap().permissions().mode() & 0o777, 0o640);
}
