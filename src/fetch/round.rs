//! A round: some messages of the ledger, oldest first, are fetched, brought to Odoo and marked. While one group is brought
//! to Odoo, the next is fetched; sizes, contents and marks are asked for many messages at a time.

use super::After;
use super::desk::{Desk, LARGEST, OUT_OF_REACH, Ready};
use super::inbox::Stumbles;
use super::line::{Line, Stop};
use super::plan;
use super::room::Room;
use crate::clock;
use crate::failure::{Class, Failure};
use crate::imap::{self, Told};
use crate::message::HeaderView;
use crate::store::{PushState, Received};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// How long a message waits that could not be marked.
const UNMARKED: Duration = Duration::from_secs(3600);
/// A message that Odoo itself refused so often, which takes more than an hour, is moved to the quarantine folder, if there is one.
const PATIENCE: u32 = 4;
/// A message at which the session was lost so often in a row is set aside like a refused one.
const MOST_STUMBLES: u32 = 3;

/// Some messages on their way.
pub(super) struct Round<'a> {
    pub(super) desk: &'a Desk,
    pub(super) line: &'a mut Line,
    pub(super) uidvalidity: u32,
    pub(super) room: &'a Room,
    pub(super) stumbles: &'a mut Stumbles,
}

impl Round<'_> {
    /// Brings each of the messages one step or all the way to `Done`; afterwards none of them is due, or the round ends.
    pub(super) async fn bring(&mut self, rows: Vec<Received>, soft: &CancellationToken) -> Result<(), Stop> {
        let (marked, rows): (Vec<_>, Vec<_>) =
            rows.into_iter().partition(|row| row.state == PushState::Pushed);
        let mut to_mark: Vec<u32> = marked.iter().map(|row| row.uid).collect();
        let rows = self.in_time(rows).await?;
        let rows = self.without_quarantined(rows).await?;
        let rows = self.of_size(rows).await?;
        let sizes: Vec<u64> = rows.iter().map(|(_, size)| *size).collect();
        let mut rows = rows.into_iter();
        let mut ready = None;
        let groups = plan::groups(&sizes);
        for group in groups.into_iter().map(Some).chain([None]) {
            let next: Vec<_> = rows.by_ref().take(group.unwrap_or_default()).collect();
            let desk = self.desk.clone();
            let (fetched, (there, brought)) = {
                let fetching = self.mark_and_fetch(&mut to_mark, next, soft);
                let bringing = desk.bring_all(ready.take(), soft);
                tokio::join!(Box::pin(fetching), Box::pin(bringing))
            };
            to_mark.extend(there);
            // What Odoo has is marked whatever else went wrong, unless the session did.
            let lost = matches!(fetched, Err(Stop::Imap(_)));
            match (fetched, brought) {
                (Ok(fetched), Ok(())) => ready = fetched,
                (Ok(_), Err(stop)) | (Err(stop), _) => {
                    if !lost {
                        self.mark(&mut to_mark).await?;
                    }
                    return Err(stop);
                }
            }
            if self.line.expires_soon() {
                self.mark(&mut to_mark).await?;
                return Err(Stop::Renew);
            }
        }
        self.mark(&mut to_mark).await
    }

    /// Those whose sender has not sent too many.
    async fn in_time(&self, rows: Vec<Received>) -> Result<Vec<Received>, Stop> {
        let mut due = Vec::with_capacity(rows.len());
        for row in rows {
            match self.desk.too_soon(&row).await? {
                Some(until) if row.state != PushState::Pushing => {
                    self.desk.postpone(self.uidvalidity, &row, until).await?;
                }
                _ => due.push(row),
            }
        }
        Ok(due)
    }

    /// Those that are not moved to the quarantine folder.
    async fn without_quarantined(&mut self, rows: Vec<Received>) -> Result<Vec<Received>, Stop> {
        let Some(folder) = self.desk.mailbox.config.fetch.quarantine_folder.clone() else {
            return Ok(rows);
        };
        let (refused, mut rows): (Vec<_>, Vec<_>) =
            rows.into_iter().partition(|row| row.state == PushState::Refused && row.refusals >= PATIENCE);
        for row in refused {
            if self.can_return(&row).await? {
                match self.line.session.move_to(&[row.uid], &folder, self.line.able).await {
                    Ok(()) => {
                        self.desk
                            .settle(self.uidvalidity, vec![row.uid], PushState::Moved, Duration::ZERO)
                            .await?;
                        tracing::info!(mailbox = %self.desk.mailbox.address(), uid = row.uid, folder, "moved to quarantine");
                        continue;
                    }
                    Err(imap::Error::Refused(failure)) => self.stumbles.unmoved(self.desk, &failure),
                    Err(error) => return Err(error.into()),
                }
            }
            rows.push(row);
        }
        rows.sort_by_key(|row| row.uid);
        Ok(rows)
    }

    /// Whether a message could be found again in another folder: by a Message-Id of its own.
    async fn can_return(&mut self, row: &Received) -> Result<bool, Stop> {
        let Some(wanted) = row.message_id.as_deref().filter(|id| imap::sent::is_searchable(id)) else {
            return Ok(false);
        };
        let mut same = false;
        let each = |header: &[u8]| {
            same = HeaderView::parse(header).message_id().as_deref() == Some(wanted);
            true
        };
        match self.line.session.headers(&[row.uid], each).await {
            Ok(()) => Ok(same),
            Err(imap::Error::Refused(_)) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Those that can be fetched, with their sizes.
    async fn of_size(&mut self, rows: Vec<Received>) -> Result<Vec<(Received, u64)>, Stop> {
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        let uids: Vec<u32> = rows.iter().map(|row| row.uid).collect();
        let told = match self.line.session.sizes(&uids).await {
            Ok(told) => told,
            Err(error) => return self.unreadable(error, &rows).await.map(|()| Vec::new()),
        };
        let sized = self.told(rows, told, "its size").await?;
        let mut fit = Vec::with_capacity(sized.len());
        for (row, size) in sized {
            if size > LARGEST {
                self.desk.too_large(self.uidvalidity, &row, size).await?;
            } else {
                fit.push((row, size));
            }
        }
        Ok(fit)
    }

    async fn mark_and_fetch(
        &mut self,
        to_mark: &mut Vec<u32>,
        rows: Vec<(Received, u64)>,
        soft: &CancellationToken,
    ) -> Result<Option<Ready>, Stop> {
        self.mark(to_mark).await?;
        if rows.is_empty() {
            return Ok(None);
        }
        let total = rows.iter().fold(0_u64, |sum, (_, size)| sum.saturating_add(*size));
        let room = tokio::select! {
            () = soft.cancelled() => return Err(Stop::Stopping),
            room = self.room.take(total) => room,
        };
        let rows: Vec<Received> = rows.into_iter().map(|(row, _)| row).collect();
        let uids: Vec<u32> = rows.iter().map(|row| row.uid).collect();
        let told = match self.line.session.bodies(&uids).await {
            Ok(told) => told,
            Err(error) => return self.unreadable(error, &rows).await.map(|()| None),
        };
        self.stumbles.last = None;
        let messages = self.told(rows, told, "its content").await?;
        Ok(Some(Ready { uidvalidity: self.uidvalidity, messages, room }))
    }

    /// Those of which the server told what was asked for. The others are gone, or withheld.
    async fn told<T>(
        &mut self,
        rows: Vec<Received>,
        mut told: Told<T>,
        what: &str,
    ) -> Result<Vec<(Received, T)>, Stop> {
        let (mut there, mut missing) = (Vec::with_capacity(rows.len()), Vec::new());
        let withheld = self.line.session.withheld(what);
        for row in rows {
            match told.remove(&row.uid) {
                Some(Some(asked)) => there.push((row, asked)),
                Some(None) => {
                    self.desk.set_aside(self.uidvalidity, &row, &withheld, OUT_OF_REACH).await?;
                }
                None => missing.push(row),
            }
        }
        if missing.is_empty() {
            return Ok(there);
        }
        // A message that is not told of has been expunged. What is forgotten is forgotten for ever, so it is asked for.
        let uids: Vec<u32> = missing.iter().map(|row| row.uid).collect();
        let present = self.line.session.present(&uids).await?;
        let (withheld_rows, gone): (Vec<_>, Vec<_>) =
            missing.into_iter().partition(|row| present.contains(&row.uid));
        for row in withheld_rows {
            self.desk.set_aside(self.uidvalidity, &row, &withheld, OUT_OF_REACH).await?;
        }
        let gone = gone.iter().map(|row| row.uid).collect();
        self.desk.settle(self.uidvalidity, gone, PushState::Gone, Duration::ZERO).await?;
        Ok(there)
    }

    /// Messages could not be fetched. Of several, each is tried alone. If it is one message's fault, that is set aside.
    async fn unreadable(&mut self, error: imap::Error, rows: &[Received]) -> Result<(), Stop> {
        let [row] = rows else {
            self.stumbles.one_by_one = rows.len();
            return match error {
                imap::Error::Refused(failure) if failure.class == Class::Message => Ok(()),
                error => Err(error.into()),
            };
        };
        match error {
            imap::Error::Refused(failure) if failure.class == Class::Message => {
                // RFC 9051 section 7.1, EXPUNGEISSUED: servers refuse to give what was expunged just now, too.
                if self.line.session.present(&[row.uid]).await?.is_empty() {
                    return self
                        .desk
                        .settle(self.uidvalidity, vec![row.uid], PushState::Gone, Duration::ZERO)
                        .await;
                }
                self.desk.set_aside(self.uidvalidity, row, &failure, OUT_OF_REACH).await
            }
            imap::Error::Lost(failure) if failure.class == Class::Transient => {
                let times = match self.stumbles.last {
                    Some((last, times)) if last == row.uid => times.saturating_add(1),
                    _ => 1,
                };
                self.stumbles.last = Some((row.uid, times));
                self.stumbles.one_by_one = self.stumbles.one_by_one.max(1);
                if times >= MOST_STUMBLES {
                    let failure = failure.clone().advise(
                        "the session is lost whenever this message is fetched: move it out of the folder",
                    );
                    self.desk.set_aside(self.uidvalidity, row, &failure, OUT_OF_REACH).await?;
                    self.stumbles.last = None;
                }
                Err(Stop::Imap(failure))
            }
            error => Err(error.into()),
        }
    }

    /// Does with messages that Odoo has what is to be done with them, which ends their story.
    async fn mark(&mut self, uids: &mut Vec<u32>) -> Result<(), Stop> {
        let uids = std::mem::take(uids);
        if uids.is_empty() {
            return Ok(());
        }
        let mut marked = self.mark_as_told(&uids).await;
        if matches!(marked, Err(imap::Error::Refused(_))) {
            // Some servers refuse what cannot be done to a message that is gone, or was moved before a crash.
            let present = self.line.session.present(&uids).await?;
            if present.is_empty() {
                marked = Ok(());
            } else if present.len() < uids.len() {
                marked = self.mark_as_told(&present).await;
            }
        }
        match marked {
            Ok(()) => {
                self.stumbles.unmarked = false;
                self.desk.settle(self.uidvalidity, uids, PushState::Done, Duration::ZERO).await
            }
            Err(imap::Error::Refused(failure)) => {
                self.stumbles.unmoved(self.desk, &failure);
                self.desk.settle(self.uidvalidity, uids, PushState::Pushed, UNMARKED).await
            }
            Err(error) => Err(error.into()),
        }
    }

    async fn mark_as_told(&mut self, uids: &[u32]) -> Result<(), imap::Error> {
        let fetch = &self.desk.mailbox.config.fetch;
        let (session, able) = (&mut self.line.session, self.line.able);
        match (fetch.after, &fetch.after_folder) {
            (After::None, _) => Ok(()),
            (After::Delete, _) => session.delete(uids, able).await,
            (After::Move, Some(folder)) => {
                session.mark_seen(uids).await?;
                session.move_to(uids, folder, able).await
            }
            (After::Seen | After::Move, _) => session.mark_seen(uids).await,
        }
    }
}

impl Stumbles {
    /// The mailbox does not let the relay mark or move messages.
    fn unmoved(&mut self, desk: &Desk, failure: &Failure) {
        self.unmarked = true;
        desk.mailbox.imap.fail(failure, clock::now());
    }
}
