//! Looking a folder through: what is new in it is entered into the ledger.

use super::After;
use super::inbox::Inbox;
use super::line::{Line, Stop};
use super::plan::{self, Found, Look};
use crate::clock;
use crate::imap::{self, Folder, Lying};
use crate::store::{KEPT, Mark, PushState, Quarantined};
use jiff::SignedDuration;
use std::time::Duration;

/// A look that found nothing is written down this often.
const NOTE_EVERY: SignedDuration = SignedDuration::from_secs(30);

impl Inbox {
    /// Looks the folder through once; what is in it is in the ledger then.
    pub(super) async fn look(&mut self, line: &mut Line) -> Result<Folder, Stop> {
        let folder = self.enter_what_is_new(line).await?;
        if line.session.has_news() || self.beyond {
            // Came in between; once, for a UID that is none stays where it is.
            return self.enter_what_is_new(line).await;
        }
        Ok(folder)
    }

    async fn enter_what_is_new(&mut self, line: &mut Line) -> Result<Folder, Stop> {
        let mailbox = self.desk.mailbox.clone();
        let (address, folder) = (mailbox.address(), mailbox.config.folder.as_str());
        let store = self.desk.store.clone();
        let selected = line.session.select(folder).await?;
        line.session.look_again();
        let known = store.mark(address, folder).await?;
        let look = Look::new(known, selected, store.sure_until(address).await?);
        let mut found = Vec::new();
        for key in look.searches(selected.uidnext) {
            found.extend(line.session.search(&key).await?);
        }
        let Found { mark, mut uids, beyond } = look.enter(selected, found);
        self.beyond = beyond;
        let mut doubtful = Vec::new();
        if let Look::Since(then) = look {
            let lying = line.session.lying(&uids).await?;
            uids = plan::missed(&lying, then);
            // What was read may have been pushed; so may have been what is too old for the ledger to know.
            let kept = clock::before(clock::now(), KEPT);
            let may_be = |message: &&Lying| message.seen || message.received_at.is_none_or(|at| at < kept);
            doubtful.extend(lying.iter().filter(may_be).map(|message| message.uid));
        }
        if !self.looked {
            doubtful.extend(self.perhaps_pushed(line, selected, known, &uids).await?);
        }
        let now = clock::now();
        // The clock may have been set back since: then the last look is not written down where it belongs.
        let noted = self.noted_at.is_some_and(|at| at <= now && now.duration_since(at) < NOTE_EVERY);
        if !noted || !uids.is_empty() || known != Some(mark) {
            store.found(address, folder, mark, uids, now).await?;
            self.noted_at = Some(now);
        }
        if !doubtful.is_empty() {
            store.doubt_received(address, folder, mark.uidvalidity, doubtful, now).await?;
        }
        self.looked = true;
        Ok(selected)
    }

    /// What may have been pushed although the ledger does not say so, since the ledger may be older than the mailbox: a
    /// backup that was restored. Asked once, when the daemon starts: new messages that are marked as if they had been
    /// pushed. Where nothing marks a message that was pushed, any may have been.
    async fn perhaps_pushed(
        &self,
        line: &mut Line,
        selected: Folder,
        known: Option<Mark>,
        uids: &[u32],
    ) -> Result<Vec<u32>, Stop> {
        let (address, folder) = (self.desk.mailbox.address(), self.desk.mailbox.config.folder.as_str());
        let waiting = self.desk.store.lowest_waiting(address, folder, selected.uidvalidity).await?;
        let Some(lowest) = uids.first().copied().into_iter().chain(waiting).min() else {
            return Ok(Vec::new());
        };
        let older = self.desk.store.is_older_ledger(address, folder).await?;
        // The first look of all takes unread messages, which nobody has pushed.
        if known.is_none() && !older {
            return Ok(Vec::new());
        }
        let marked = if older || self.desk.mailbox.config.fetch.after == After::None { "" } else { " SEEN" };
        let mut found = Vec::new();
        for range in plan::ranges(lowest, selected.uidnext) {
            found.extend(line.session.search(&format!("UID {range}{marked}")).await?);
        }
        Ok(found)
    }

    /// Moves what a person wants tried again from the quarantine folder back to where it came from; there it is new.
    pub(super) async fn take_back(&mut self, line: &mut Line) -> Result<(), Stop> {
        let mailbox = self.desk.mailbox.clone();
        let (address, folder) = (mailbox.address(), mailbox.config.folder.as_str());
        let returning = self.desk.store.returning(address, folder).await?;
        let Some(quarantine) =
            mailbox.config.fetch.quarantine_folder.as_deref().filter(|_| !returning.is_empty())
        else {
            return Ok(());
        };
        match line.session.select(quarantine).await {
            Ok(_) => {}
            // There is none: nothing can be in it.
            Err(imap::Error::Refused(failure)) => {
                mailbox.imap.fail(&failure, clock::now());
                self.stumbles.unmarked = true;
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        }
        for Quarantined { uidvalidity, uid, message_id, .. } in returning {
            let found = line.session.search_message_id(message_id.as_deref().unwrap_or_default()).await?;
            if let Some(&newest) = found.first() {
                match line.session.move_to(&[newest], folder, line.able).await {
                    Ok(()) => {}
                    Err(imap::Error::Refused(failure)) => {
                        mailbox.imap.fail(&failure, clock::now());
                        continue;
                    }
                    Err(error) => return Err(error.into()),
                }
            }
            self.desk.settle(uidvalidity, vec![uid], PushState::Gone, Duration::ZERO).await?;
        }
        Ok(())
    }
}
