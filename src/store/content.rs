//! The messages' own bytes.

use super::{Error, QueueId, Store, sql};

/// A message of at most so many bytes is read where it is asked for: a few pages.
const SMALL: u32 = 32 << 10;

impl Store {
    /// A message's bytes as they came; `None`: it is not in the queue.
    ///
    /// # Errors
    /// The disk's.
    pub async fn content(&self, id: QueueId) -> Result<Option<Vec<u8>>, Error> {
        let operation = "a message's content";
        let sql = "SELECT CASE WHEN length(raw) <= ?2 THEN raw END FROM content WHERE message = ?1";
        match self.first(operation, sql, (id.0, SMALL)).await? {
            None => Ok(None),
            Some((Some(small),)) => Ok(Some(small)),
            Some((None,)) => {
                let sql = "SELECT raw FROM content WHERE message = ?1";
                let large = self.read_aside(operation, move |connection| sql::first(connection, sql, [id.0]));
                Ok(large.await?.map(|(raw,)| raw))
            }
        }
    }

    /// The first bytes of a message as it came, at most so many; `None`: it is not in the queue.
    ///
    /// # Errors
    /// The disk's.
    pub async fn beginning(&self, id: QueueId, most: u32) -> Result<Option<Vec<u8>>, Error> {
        let sql = "SELECT substr(raw, 1, ?2) FROM content WHERE message = ?1";
        let found = self
            .read_aside("a message's header", move |connection| sql::first(connection, sql, (id.0, most)));
        Ok(found.await?.map(|(raw,)| raw))
    }
}
