//! Statements on a connection, each prepared once.

use rusqlite::{Connection, OptionalExtension, Params, Row};

/// Runs a statement; returns how many rows it changed.
pub(super) fn run(connection: &Connection, sql: &str, values: impl Params) -> Result<usize, rusqlite::Error> {
    connection.prepare_cached(sql)?.execute(values)
}

/// All rows that a query finds.
pub(super) fn rows<R>(
    connection: &Connection,
    sql: &str,
    values: impl Params,
) -> Result<Vec<R>, rusqlite::Error>
where
    R: for<'r> TryFrom<&'r Row<'r>, Error = rusqlite::Error>,
{
    let mut query = connection.prepare_cached(sql)?;
    query.query_and_then(values, |row| R::try_from(row))?.collect()
}

/// The first of them, if there is one.
pub(super) fn first<R>(
    connection: &Connection,
    sql: &str,
    values: impl Params,
) -> Result<Option<R>, rusqlite::Error>
where
    R: for<'r> TryFrom<&'r Row<'r>, Error = rusqlite::Error>,
{
    one(connection, sql, values).optional()
}

/// The one row that a query always has.
pub(super) fn one<R>(connection: &Connection, sql: &str, values: impl Params) -> Result<R, rusqlite::Error>
where
    R: for<'r> TryFrom<&'r Row<'r>, Error = rusqlite::Error>,
{
    connection.prepare_cached(sql)?.query_row(values, |row| R::try_from(row))
}

/// A value that cannot be written as it should be.
pub(super) fn unencodable(error: impl std::error::Error + Send + Sync + 'static) -> rusqlite::Error {
    rusqlite::Error::ToSqlConversionFailure(Box::new(error))
}
