//! How the store is, for a person to look at: read only, also while the daemon works.

use super::backup::made_at;
use super::error::opening;
use super::file::{aside, beside, free, is_ours, read_only};
use super::migrations::{NEWEST, version};
use super::sealed::opened;
use super::sql;
use super::{Config, Error, Store, owner};
use crate::address::Address;
use crate::failure::chain;
use crate::sealing::{KeyId, Keyring, Owner, key_id};
use jiff::Timestamp;
use rusqlite::Connection;
use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

/// So many of the damages that SQLite finds are read: the first tell enough.
const MOST: u32 = 10;

/// What was seen of the store.
#[derive(Debug)]
pub struct Health {
    /// The size of its file, in bytes.
    pub bytes: u64,
    /// The size of its log, in bytes.
    pub log_bytes: u64,
    /// The permissions of its file.
    pub mode: u32,
    /// Files beside it, or itself, that belong to another than their folder does.
    pub strangers: Vec<PathBuf>,
    /// Bytes that are free on its disk; `None`: that could not be asked.
    pub free: Option<u64>,
    /// What is in it, or why it cannot be looked into.
    pub inside: Result<Inside, Error>,
}

/// What is in the file.
#[derive(Debug)]
pub struct Inside {
    /// What SQLite finds damaged, the first few; empty: nothing. Then the rest was looked at.
    pub damage: Vec<String>,
    /// The newest migration that it has seen.
    pub version: i64,
    /// The newest that this program knows.
    pub known: i64,
    /// Whether its tokens open.
    pub key: KeyHealth,
    /// Rows by what they are and their state.
    pub counts: BTreeMap<&'static str, BTreeMap<String, u64>>,
    /// Rows that belong to none, or lack a part: what, and how many.
    pub orphans: BTreeMap<&'static str, u64>,
    /// When it was made, if it is a backup that no daemon has started with yet.
    pub made_at: Option<Timestamp>,
}

/// Whether what is sealed in the store opens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyHealth {
    /// Nothing is sealed.
    Unused,
    /// All of it opens.
    Opens {
        /// Under these keys: more than one only where one was lost.
        keys: BTreeSet<String>,
        /// How many tokens.
        tokens: usize,
    },
    /// Why not.
    Fails(Vec<String>),
}

/// A table, and a query for its rows by state.
const COUNTS: [(&str, &str, &str); 3] = [
    ("messages", "message", "SELECT state, count(*) FROM message GROUP BY state"),
    ("reports", "report", "SELECT state, count(*) FROM report GROUP BY state"),
    ("received", "received", "SELECT state, count(*) FROM received GROUP BY state"),
];

/// What should not be there, and a query for how many.
const ORPHANS: [(&str, &str); 4] = [
    (
        "messages without their content",
        "SELECT count(*) FROM message WHERE NOT EXISTS (SELECT 1 FROM content WHERE content.message = message.id)",
    ),
    (
        "contents without their message",
        "SELECT count(*) FROM content WHERE NOT EXISTS (SELECT 1 FROM message WHERE message.id = content.message)",
    ),
    (
        "attempts without their message",
        "SELECT count(*) FROM attempt WHERE NOT EXISTS (SELECT 1 FROM message WHERE message.id = attempt.message)",
    ),
    (
        "messages whose recipients cannot be read",
        "SELECT count(*) FROM message WHERE NOT json_valid(recipients)",
    ),
];

impl Store {
    /// Looks at the store, and changes nothing.
    ///
    /// # Errors
    /// There is none.
    pub async fn check(config: &Config) -> Result<Health, Error> {
        let config = config.clone();
        aside(move || look(&config)).await
    }
}

fn look(config: &Config) -> Result<Health, Error> {
    let path = &config.path;
    let Ok(file) = std::fs::metadata(path) else {
        return Err(Error::Absent { path: path.clone() });
    };
    let inside = match file.len() {
        0 => Err(Error::Emptied { path: path.clone() }),
        _ => look_inside(config),
    };
    Ok(Health {
        bytes: file.len(),
        log_bytes: std::fs::metadata(beside(path, "-wal")).map_or(0, |log| log.len()),
        mode: file.permissions().mode() & 0o7777,
        strangers: owner::strangers(config),
        free: free(path),
        inside,
    })
}

fn look_inside(config: &Config) -> Result<Inside, Error> {
    let path = &config.path;
    let connection = read_only(path).map_err(opening(path))?;
    is_ours(&connection, path)?;
    let damage = damage(&connection).map_err(opening(path))?;
    let mut inside = Inside {
        damage,
        version: 0,
        known: NEWEST,
        key: KeyHealth::Unused,
        counts: BTreeMap::new(),
        orphans: BTreeMap::new(),
        made_at: None,
    };
    if inside.damage.is_empty() {
        look_at_rows(&connection, &config.keyring(), &mut inside).map_err(opening(path))?;
    }
    Ok(inside)
}

/// What SQLite finds wrong with the file, and with what refers to what. https://sqlite.org/pragma.html#pragma_integrity_check
pub(super) fn damage(connection: &Connection) -> Result<Vec<String>, rusqlite::Error> {
    let sql = "SELECT integrity_check FROM pragma_integrity_check LIMIT ?1";
    let found: Vec<(String,)> = sql::rows(connection, sql, [MOST])?;
    Ok(found.into_iter().map(|(line,)| line).filter(|line| line != "ok").collect())
}

fn look_at_rows(connection: &Connection, keys: &Keyring, inside: &mut Inside) -> Result<(), rusqlite::Error> {
    inside.version = version(connection)?;
    if inside.version == 0 || inside.version > inside.known {
        return Ok(());
    }
    for (what, table, sql) in COUNTS {
        if has_table(connection, table)? {
            let states: Vec<(String, i64)> = sql::rows(connection, sql, ())?;
            inside
                .counts
                .insert(what, states.into_iter().map(|(state, n)| (state, n.unsigned_abs())).collect());
        }
    }
    for (what, sql) in ORPHANS {
        let (count,): (i64,) = sql::one(connection, sql, ())?;
        if count > 0 {
            inside.orphans.insert(what, count.unsigned_abs());
        }
    }
    inside.key = key(connection, keys)?;
    inside.made_at = made_at(connection)?;
    Ok(())
}

/// Whether the key at hand opens what is sealed.
pub(super) fn key(connection: &Connection, keys: &Keyring) -> Result<KeyHealth, rusqlite::Error> {
    if !has_table(connection, "sealing")? {
        return Ok(KeyHealth::Unused);
    }
    let sealing: Option<(Vec<u8>,)> = sql::first(connection, "SELECT key_id FROM sealing", ())?;
    let tokens: Vec<(String, Vec<u8>)> =
        sql::rows(connection, "SELECT mailbox, CAST(sealed AS BLOB) FROM token ORDER BY mailbox", ())?;
    let mut own: Vec<(Vec<u8>,)> = Vec::new();
    if has_table(connection, "own_key")? && has_column(connection, "own_key", "sealed")? {
        own = sql::rows(connection, "SELECT CAST(sealed AS BLOB) FROM own_key", ())?;
    }
    let mut found = BTreeSet::new();
    let mut fails = Vec::new();
    // The row names the key that seals from now on; where nothing is sealed yet, opening the store makes another.
    if let Some(id) = sealing.and_then(|(id,)| KeyId::from_bytes(&id))
        && (!tokens.is_empty() || !own.is_empty())
    {
        match keys.key(id) {
            Ok(_) => drop(found.insert(id.to_string())),
            Err(error) => fails.push(chain(&error)),
        }
    }
    let mut open = |what: String, owner: Owner<'_>, sealed: &[u8]| match opened(keys, owner, sealed) {
        Ok(_) => found.extend(key_id(sealed).map(|id| id.to_string())),
        Err(error) => {
            let why = chain(&error);
            if !fails.iter().any(|known| known.ends_with(&why)) {
                fails.push(format!("{what}: {why}"));
            }
        }
    };
    for (mailbox, sealed) in &tokens {
        match Address::normalise(mailbox) {
            Some(address) => open(mailbox.clone(), Owner::Mailbox(&address), sealed),
            None => open(mailbox.clone(), Owner::Invitations, &[]),
        }
    }
    for (sealed,) in &own {
        open("invitations".to_owned(), Owner::Invitations, sealed);
    }
    Ok(match fails.is_empty() {
        false => KeyHealth::Fails(fails),
        true if found.is_empty() => KeyHealth::Unused,
        true => KeyHealth::Opens { keys: found, tokens: tokens.len() },
    })
}

pub(super) fn has_table(connection: &Connection, name: &str) -> Result<bool, rusqlite::Error> {
    let sql = "SELECT count(*) > 0 FROM sqlite_master WHERE type = 'table' AND name = ?1";
    sql::one(connection, sql, [name]).map(|(has,)| has)
}

fn has_column(connection: &Connection, table: &str, name: &str) -> Result<bool, rusqlite::Error> {
    let sql = "SELECT count(*) > 0 FROM pragma_table_info(?1) WHERE name = ?2";
    sql::one(connection, sql, [table, name]).map(|(has,)| has)
}
