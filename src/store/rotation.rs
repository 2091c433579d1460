//! Another key for the tokens: rotated, or in place of a lost one.

use super::file::aside;
use super::queue::address;
use super::sealed::{
    Tables, establish, first, lock, random_key, set_key, tokens, truncate_log, wholly, written,
};
use super::sql::run;
use super::{Config, Error, Store, connect, invites};
use crate::sealing::{self, Key, KeyId, Keyring, Owner, key_id};
use rusqlite::{Connection, params};
use std::time::Duration;

impl Store {
    /// Seals all tokens under a new key, which takes the place of the one before; also while others use the store.
    /// Returns the new key's id, and how many tokens were resealed.
    ///
    /// # Errors
    /// As [`Store::open_existing`]. Whatever happens, a key that opens the tokens stays on disk.
    pub async fn rotate_key(config: &Config) -> Result<(KeyId, usize), Error> {
        if !config.path.exists() {
            return Err(Error::Absent { path: config.path.clone() });
        }
        let config = config.clone();
        aside(move || {
            let (mut connection, keys) = connect(&config)?;
            establish(&config, &mut connection, &keys)?;
            let new = Key::new(random_key());
            let id = new.id();
            let rotation = Rotation { config: &config, connection: &mut connection, keys: &keys, new };
            Ok((id, rotation.run()?))
        })
        .await
    }

    /// Goes on under another key where the tokens' own is lost: that of the key file, else a new one. No token is
    /// deleted; each stays unreadable until its mailbox is connected anew, or its key comes back.
    ///
    /// # Errors
    /// As [`Store::open_existing`]; and a key that is not lost.
    pub async fn replace_lost_key(config: &Config) -> Result<KeyId, Error> {
        if !config.path.exists() {
            return Err(Error::Absent { path: config.path.clone() });
        }
        let config = config.clone();
        aside(move || {
            let (mut connection, keys) = connect(&config)?;
            replace_lost(&config, &mut connection, &keys)
        })
        .await
    }
}

/// Rotates the key, step by step: after a crash behind any of them, opening the store finds every token readable.
pub(super) struct Rotation<'r> {
    pub(super) config: &'r Config,
    pub(super) connection: &'r mut Connection,
    pub(super) keys: &'r Keyring,
    pub(super) new: Key,
}

/// A step of a rotation.
#[derive(Clone, Copy, Debug)]
pub(super) enum Step {
    /// The new key is on disk before anything is sealed with it.
    WriteNew,
    /// So that nothing is lost when the file is replaced.
    KeepOld,
    /// Every token and the invitations' key, in one transaction.
    Reseal,
    PutInPlace,
    /// The file as it now stands opens every token.
    Verify,
    DropOld,
}

/// In this order.
pub(super) const STEPS: [Step; 6] =
    [Step::WriteNew, Step::KeepOld, Step::Reseal, Step::PutInPlace, Step::Verify, Step::DropOld];

impl Rotation<'_> {
    /// Rotates; returns how many tokens were resealed.
    pub(super) fn run(mut self) -> Result<usize, Error> {
        let _lock = lock(self.config, Duration::ZERO)?;
        let rotated = self.steps();
        // Leave no key behind that nothing is sealed under; what cannot be tidied now, the next opening tidies.
        if rotated.is_err()
            && let Ok(tables) = Tables::read(self.connection)
        {
            drop(self.keys.tidy(|id| tables.needs(id)));
        }
        rotated
    }

    fn steps(&mut self) -> Result<usize, Error> {
        let mut resealed = 0;
        for step in STEPS {
            resealed += self.step(step)?;
        }
        Ok(resealed)
    }

    pub(super) fn step(&mut self, step: Step) -> Result<usize, Error> {
        match step {
            Step::WriteNew => {
                let current = Tables::read(self.connection)?.key;
                let on_file = self.keys.on_file()?;
                if let Some(id) = current.filter(|_| current != on_file) {
                    // Opening the store could not put it in place: replacing the file would lose a key.
                    let path = self.keys.path().to_owned();
                    let missing = sealing::Error::Missing { path: path.clone(), id };
                    return Err(on_file
                        .map_or(missing, |found| sealing::Error::Other { path, found, id })
                        .into());
                }
                self.keys.write_new(&self.new)?;
            }
            Step::KeepOld => self.keys.keep_old()?,
            Step::Reseal => return self.reseal(),
            Step::PutInPlace => self.keys.put_in_place(self.new.id())?,
            Step::Verify => {
                let fresh = Keyring::new(self.keys.path().to_owned(), false);
                for (mailbox, sealed) in tokens(self.connection)? {
                    let mailbox = address(&mailbox)?;
                    if key_id(&sealed) == Some(self.new.id()) {
                        fresh.key(self.new.id())?.open(Owner::Mailbox(&mailbox), &sealed)?;
                    }
                }
            }
            Step::DropOld => {
                let tables = Tables::read(self.connection)?;
                self.keys.tidy(|id| tables.needs(id))?;
                // What was sealed under the old key shall not linger; where somebody reads, SQLite does it later.
                drop(truncate_log(self.connection));
            }
        }
        Ok(0)
    }

    fn reseal(&mut self) -> Result<usize, Error> {
        let operation = "reseal the tokens";
        let (keys, new) = (self.keys, &self.new);
        self.connection.pragma_update(None, "secure_delete", true).map_err(written(operation))?;
        wholly(self.connection, operation, |connection| {
            let mut resealed = 0;
            for (mailbox, sealed) in tokens(connection)? {
                let owner = address(&mailbox)?;
                let tampered = || Owner::Mailbox(&owner).tampered();
                let old = match keys.key(key_id(&sealed).ok_or_else(tampered)?) {
                    Ok(old) => old,
                    // Under a lost key (`--lost`): nothing can be done with it, and nothing is.
                    Err(sealing::Error::Missing { .. } | sealing::Error::Other { .. }) => continue,
                    Err(error) => return Err(error.into()),
                };
                let owner = Owner::Mailbox(&owner);
                let anew = new.seal(rand::random(), owner, &old.open(owner, &sealed)?)?;
                let sql = "UPDATE token SET sealed = ?2 WHERE mailbox = ?1";
                run(connection, sql, params![mailbox, anew]).map_err(written(operation))?;
                resealed += 1;
            }
            invites::reseal(connection, keys, new)?;
            set_key(connection, new.id()).map_err(written(operation))?;
            Ok(resealed)
        })
    }
}

/// Takes the file's key, or a new one, where the one that sealed the tokens is lost. The tokens stay as they are.
pub(super) fn replace_lost(
    config: &Config,
    connection: &mut Connection,
    keys: &Keyring,
) -> Result<KeyId, Error> {
    let _lock = lock(config, Duration::ZERO)?;
    keys.look()?;
    if let Some(id) = Tables::read(connection)?.key
        && keys.key(id).is_ok()
    {
        return Err(Error::KeyNotLost { path: keys.path().to_owned() });
    }
    first(connection, keys)
}
