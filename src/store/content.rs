//! The messages' own bytes.
//!
//! They are read from inside attempts to send, of which a worker has several in hand, and which stand still while it waits for
//! the store itself. So each read is a task of its own: one that stood still with a connection in its hand would keep from the
//! worker what it waits for.

use super::{Error, QueueId, Store};

impl Store {
    /// A message's bytes as they came; `None`: it is not in the queue.
    ///
    /// # Errors
    /// The disk's.
    pub async fn content(&self, id: QueueId) -> Result<Option<Vec<u8>>, Error> {
        let readers = self.readers.clone();
        apart(async move {
            let content = sqlx::query_scalar("SELECT raw FROM content WHERE message = $1").bind(id.0);
            content.fetch_optional(&readers).await
        })
        .await
        .map_err(|source| Error::Read { operation: "a message's content", source })
    }

    /// The first bytes of a message as it came, at most so many; `None`: it is not in the queue.
    ///
    /// # Errors
    /// The disk's.
    pub async fn beginning(&self, id: QueueId, most: u32) -> Result<Option<Vec<u8>>, Error> {
        let readers = self.readers.clone();
        apart(async move {
            let sql = "SELECT substr(raw, 1, $2) FROM content WHERE message = $1";
            sqlx::query_scalar(sql).bind(id.0).bind(most).fetch_optional(&readers).await
        })
        .await
        .map_err(|source| Error::Read { operation: "a message's header", source })
    }
}

async fn apart<T: Send + 'static>(
    read: impl Future<Output = Result<T, sqlx::Error>> + Send + 'static,
) -> Result<T, sqlx::Error> {
    tokio::spawn(read).await.unwrap_or(Err(sqlx::Error::WorkerCrashed))
}
