//! The memory that messages on their way from any inbox to Odoo may take together.
//!
//! What is fetched together is small, mostly: such groups have room of their own, so that no large message of another
//! inbox is ever before them. Large messages take turns.

use super::plan::GROUP_BYTES;
use crate::health::patiently;
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// What is counted, in bytes.
const UNIT: u64 = 128 << 10;
/// For groups that are not larger than [`GROUP_BYTES`], in units: 64 MiB, which is as many as 32 groups.
const SMALL: u32 = 512;
/// For single messages that are larger, in units: 128 MiB, which is more than the largest that is fetched.
const LARGE: u32 = 1024;

/// Room for messages; clones share it. The bound is on messages as they are fetched: while one is read from the server, or
/// written into a call to Odoo, it takes two to three times as much.
#[derive(Clone, Debug)]
pub struct Room {
    small: Arc<Semaphore>,
    large: Arc<Semaphore>,
}

/// What some messages hold; given back when dropped.
#[derive(Debug)]
pub(super) struct Held {
    _units: Option<OwnedSemaphorePermit>,
}

impl Default for Room {
    fn default() -> Self {
        Self {
            small: Arc::new(Semaphore::new(SMALL as usize)),
            large: Arc::new(Semaphore::new(LARGE as usize)),
        }
    }
}

impl Room {
    /// Waits for room for so many bytes. Whoever waits holds nothing that others of the same kind wait for to be given
    /// back, but for messages that Odoo is taking already.
    pub(super) async fn take(&self, size: u64) -> Held {
        let (room, most) = if size <= GROUP_BYTES { (&self.small, SMALL) } else { (&self.large, LARGE) };
        let units = u32::try_from(size.div_ceil(UNIT)).map_or(most, |units| units.min(most));
        Held { _units: patiently(Arc::clone(room).acquire_many_owned(units)).await.ok() }
    }
}

#[cfg(test)]
mod tests {
    use super::super::desk::LARGEST;
    use super::*;
    use std::time::Duration;
    use tokio::time::timeout;

    async fn waits(room: &Room, size: u64) -> bool {
        timeout(Duration::from_millis(1), room.take(size)).await.is_err()
    }

    #[tokio::test(start_paused = true)]
    async fn large_messages_take_turns_and_small_ones_pass_them() {
        let room = Room::default();
        let first = room.take(100 << 20).await;
        let second = tokio::spawn({
            let room = room.clone();
            async move { room.take(LARGEST).await }
        });
        tokio::task::yield_now().await;
        assert!(!second.is_finished());
        for size in [0, 1, 50_000, GROUP_BYTES] {
            assert!(!waits(&room, size).await, "{size}");
        }
        assert!(waits(&room, GROUP_BYTES + 1).await, "nor does a third one pass the second");
        drop(first);
        drop(second.await.unwrap());
        assert_eq!((room.small.available_permits(), room.large.available_permits()), (512, 1024));
    }

    #[tokio::test(start_paused = true)]
    async fn small_ones_have_a_bound_as_well() {
        let room = Room::default();
        let mut held = Vec::new();
        for _ in 0..32 {
            held.push(room.take(GROUP_BYTES).await);
        }
        assert!(waits(&room, GROUP_BYTES).await);
        held.pop();
        assert!(!waits(&room, GROUP_BYTES).await);
    }

    #[tokio::test(start_paused = true)]
    async fn there_is_room_for_one_of_any_size() {
        let room = Room::default();
        assert!(!waits(&room, u64::MAX).await);
    }
}
