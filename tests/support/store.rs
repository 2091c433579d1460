//! The relay's store, as it lies on disk.

use rusqlite::{Connection, OpenFlags};
use std::path::Path;
use std::time::Duration;

/// A file that is there, which a daemon may be writing to.
pub fn open(path: impl AsRef<Path>) -> Connection {
    let store = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE).unwrap();
    store.busy_timeout(Duration::from_secs(10)).unwrap();
    store
}
