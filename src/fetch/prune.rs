//! Forgetting messages that are done with and left the folder long ago: see [`crate::store::KEPT`] for what may be
//! forgotten.

use super::inbox::Inbox;
use super::line::{Line, Stop};
use crate::clock;
use crate::store;
use jiff::Timestamp;
use std::time::Duration;

/// The server is asked for so many messages at a time, with one command.
const AT_A_TIME: u32 = 200;
/// How soon the next ones are asked for.
const AGAIN: Duration = Duration::from_secs(60);
/// How soon it begins anew, once all were asked for.
const ROUND: Duration = Duration::from_secs(24 * 3600);

/// How far it is.
#[derive(Debug, Default)]
pub(super) struct Pruning {
    /// Of the UIDs up to here, those are left whose messages lie in the folder.
    above: u32,
    /// When it goes on; `None`: now.
    next: Option<Timestamp>,
}

impl Inbox {
    /// Forgets some of what can be forgotten, if it is time; the folder is selected.
    pub(super) async fn prune(&mut self, line: &mut Line, uidvalidity: u32) -> Result<(), Stop> {
        let now = clock::now();
        if self.pruning.next.is_some_and(|next| now < next) {
            return Ok(());
        }
        let desk = &self.desk;
        let (mailbox, folder) = (desk.mailbox.address(), desk.mailbox.config.folder.as_str());
        let (before, above) = (clock::before(now, store::KEPT), self.pruning.above);
        let old = desk.store.done_before(mailbox, folder, uidvalidity, above, before, AT_A_TIME).await?;
        let present = if old.is_empty() { Vec::new() } else { line.session.present(&old).await? };
        let last = old.last().copied();
        let gone = old.into_iter().filter(|uid| !present.contains(uid)).collect();
        desk.store.prune_received(mailbox, folder, uidvalidity, gone, before).await?;
        let (above, wait) = last.map_or((0, ROUND), |last| (last, AGAIN));
        self.pruning = Pruning { above, next: Some(clock::after(now, wait)) };
        Ok(())
    }
}
