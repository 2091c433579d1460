//! The tables: the steps that made them what they are. Those that a store has seen are noted in it, in the form that sqlx had
//! (the relay used it once): version, and SHA-384 of the step's text.

use super::Error;
use super::error::opening;
use super::sql::{one, rows, run};
use rusqlite::{Connection, TransactionBehavior, params};
use sha2::{Digest, Sha384};
use std::path::Path;

/// The schema's history; rows are only ever added to the list.
const MIGRATIONS: [(i64, &str, &str); 12] = [
    (1, "start", include_str!("migrations/0001_start.sql")),
    (2, "sealed tokens", include_str!("migrations/0002_sealed_tokens.sql")),
    (3, "invitations", include_str!("migrations/0003_invitations.sql")),
    (4, "delivery", include_str!("migrations/0004_delivery.sql")),
    (5, "sealed own keys", include_str!("migrations/0005_sealed_own_keys.sql")),
    (6, "inbox", include_str!("migrations/0006_inbox.sql")),
    (7, "backup", super::backup::TABLE),
    (8, "inbox counts", include_str!("migrations/0008_inbox_counts.sql")),
    (9, "refusals", include_str!("migrations/0009_refusals.sql")),
    (10, "narrower rows", include_str!("migrations/0010_narrower.sql")),
    (11, "tally", include_str!("migrations/0011_tally.sql")),
    (12, "due", include_str!("migrations/0012_due.sql")),
];

/// The newest that this program knows.
pub(super) const NEWEST: i64 = {
    let [.., (newest, ..)] = MIGRATIONS;
    newest
};

const TABLE: &str = "CREATE TABLE IF NOT EXISTS _sqlx_migrations (version BIGINT PRIMARY KEY, description TEXT NOT NULL, \
     installed_on TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP, success BOOLEAN NOT NULL, checksum BLOB NOT NULL, \
     execution_time BIGINT NOT NULL)";

/// The newest migration that a store has seen; 0: it has no tables.
pub(super) fn version(connection: &Connection) -> Result<i64, rusqlite::Error> {
    let sql = "SELECT count(*) FROM sqlite_master WHERE name = '_sqlx_migrations'";
    let (tables,): (i64,) = one(connection, sql, ())?;
    if tables == 0 {
        return Ok(0);
    }
    one(connection, "SELECT coalesce(max(version), 0) FROM _sqlx_migrations", ()).map(|(version,)| version)
}

/// Brings the tables to a version, each step of which is on disk wholly or not at all. Only tests want another than the
/// newest.
///
/// # Errors
/// The disk's, and a store that has seen other steps.
pub(super) fn migrate(connection: &mut Connection, path: &Path, to: i64) -> Result<(), Error> {
    let failed = opening(path);
    while seen(connection, path)? < to {
        let step = connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(&failed)?;
        // Another process may be at it as well.
        let seen = seen(&step, path)?;
        if let Some(&(next, name, sql)) = MIGRATIONS.iter().find(|(next, ..)| *next > seen) {
            step.execute_batch(TABLE).and_then(|()| step.execute_batch(sql)).map_err(&failed)?;
            let note = "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) \
                        VALUES (?1, ?2, TRUE, ?3, 0)";
            run(&step, note, params![next, name, checksum(sql)]).map_err(&failed)?;
        }
        step.commit().map_err(&failed)?;
    }
    Ok(())
}

/// The newest step that a store has seen; all that it has must be this program's.
fn seen(connection: &Connection, path: &Path) -> Result<i64, Error> {
    let seen = version(connection).map_err(opening(path))?;
    if seen == 0 {
        return Ok(0);
    }
    let sql = "SELECT version, checksum FROM _sqlx_migrations ORDER BY version";
    for (version, found) in rows::<(i64, Vec<u8>)>(connection, sql, ()).map_err(opening(path))? {
        match MIGRATIONS.iter().find(|(known, ..)| *known == version) {
            None => return Err(Error::Newer { path: path.to_owned(), version }),
            Some((.., sql)) if checksum(sql) != found => {
                return Err(Error::Migrated { path: path.to_owned(), version });
            }
            Some(_) => {}
        }
    }
    Ok(seen)
}

fn checksum(sql: &str) -> Vec<u8> {
    Sha384::digest(sql.as_bytes()).to_vec()
}

#[cfg(test)]
mod tests {
    use super::super::{Config, connect};
    use super::*;

    #[test]
    fn a_store_that_saw_other_steps_is_not_touched() {
        let folder = tempfile::tempdir().unwrap();
        let config = Config::at(folder.path().join("relay.db"));
        let (store, _) = connect(&config).unwrap();
        assert_eq!(version(&store).unwrap(), NEWEST);
        run(&store, "UPDATE _sqlx_migrations SET checksum = x'00' WHERE version = 9", ()).unwrap();
        let error = connect(&config).unwrap_err();
        assert!(matches!(error, Error::Migrated { version: 9, .. }), "{error}");
    }
}
