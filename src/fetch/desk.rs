//! One message on its way from the inbox into Odoo.
//!
//! The order makes it once only: a message is in the ledger before anything else, a push is booked before it begins,
//! its outcome is written down before the message is marked. Whatever was booked before may be in Odoo already, so Odoo
//! is asked for its Message-Id before it is pushed again.

use super::incoming::{self, Incoming};
use super::line::Stop;
use super::plan;
use crate::clock;
use crate::failure::{Class, Failure, one_line};
use crate::logging::seconds;
use crate::mailbox::Mailbox;
use crate::odoo::{Gateway, Room, Taken};
use crate::store::{PushState, Received, Store};
use jiff::Timestamp;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// Larger messages are refused, in bytes. Odoo 19 takes 128 MiB of base64 and XML, older ones and proxies take less:
/// what lies between is refused by them.
pub(super) const LARGEST: u64 = 120 << 20;
/// A message that Odoo fails at so often, while it is well otherwise, is set aside like a refused one.
const MOST_TRIES: u32 = 5;
/// How long a message waits that the relay itself cannot bring to Odoo.
pub(super) const OUT_OF_REACH: Duration = Duration::from_secs(6 * 3600);

/// Where messages are brought to Odoo from; knows nothing of IMAP.
#[derive(Clone)]
pub(super) struct Desk {
    pub(super) mailbox: Arc<Mailbox>,
    pub(super) store: Store,
    pub(super) gateway: Gateway,
}

/// Messages that were fetched, and the room that they take.
pub(super) struct Ready {
    pub(super) uidvalidity: u32,
    pub(super) messages: Vec<(Received, Vec<u8>)>,
    pub(super) room: Room,
}

impl Desk {
    /// Brings messages to Odoo, one after the other, until one is stopped. The UIDs of those that Odoo has.
    pub(super) async fn bring_all(
        &self,
        ready: Option<Ready>,
        soft: &CancellationToken,
    ) -> (Vec<u32>, Result<(), Stop>) {
        let mut there = Vec::new();
        let Some(Ready { uidvalidity, messages, room }) = ready else {
            return (there, Ok(()));
        };
        for (row, raw) in messages {
            if soft.is_cancelled() {
                return (there, Err(Stop::Stopping));
            }
            let uid = row.uid;
            match Box::pin(self.bring(uidvalidity, row, raw)).await {
                Ok(true) => there.push(uid),
                Ok(false) => {}
                Err(stop) => return (there, Err(stop)),
            }
        }
        drop(room);
        (there, Ok(()))
    }

    /// Whether Odoo has the message now. Else it was set aside, and the next one has its turn.
    async fn bring(&self, uidvalidity: u32, mut row: Received, raw: Vec<u8>) -> Result<bool, Stop> {
        let size = u64::try_from(raw.len()).unwrap_or(u64::MAX);
        if size > LARGEST {
            return self.too_large(uidvalidity, &row, size).await.map(|()| false);
        }
        let address = self.mailbox.address();
        let incoming = incoming::prepare(raw, address, row.message_id.as_deref());
        row.message_id = Some(incoming.message_id.clone());
        row.sender.clone_from(&incoming.sender);
        tracing::debug!(mailbox = %address, uid = row.uid, message_id = %one_line(&incoming.message_id), size, "fetched");
        match self.is_there(&row, &incoming).await {
            Ok(true) => self.done_with(uidvalidity, &row, "known", None, size).await.map(|()| true),
            Ok(false) => {
                if let Some(until) = self.too_soon(&row).await? {
                    self.postpone(uidvalidity, &row, until).await?;
                    return Ok(false);
                }
                self.push(uidvalidity, &row, incoming, size).await
            }
            // Odoo cannot say, and pushing it again could make a second record: the next one has its turn.
            Err(Stop::Odoo(failure)) if failure.class == Class::Message => {
                let wait = plan::refused_again_after(row.tries);
                self.set_aside(uidvalidity, &row, &failure, wait).await.map(|()| false)
            }
            Err(stop) => Err(stop),
        }
    }

    /// Whether Odoo has the message already: pushed under another UID (the UIDs count anew, or somebody moved it to
    /// and fro), or by a push whose outcome nobody knows.
    async fn is_there(&self, row: &Received, incoming: &Incoming) -> Result<bool, Stop> {
        if self.store.was_pushed(self.mailbox.address(), &incoming.message_id).await? {
            return Ok(true);
        }
        if row.tries == 0 && row.state != PushState::Pushing {
            return Ok(false);
        }
        self.gateway.knows(&incoming.message_id).await.map_err(Stop::Odoo)
    }

    /// Until when a message has to wait for Odoo not to take its sender for a loop; `None`: not at all.
    pub(super) async fn too_soon(&self, row: &Received) -> Result<Option<Timestamp>, Stop> {
        let most = self.mailbox.config.fetch.new_per_sender;
        let Some(sender) = row.sender.as_deref().filter(|_| most > 0) else {
            return Ok(None);
        };
        let now = clock::now();
        let pushed = self.store.pushed_of(sender, clock::before(now, plan::GUARD)).await?;
        Ok(plan::next_of_sender(&pushed, most, now))
    }

    pub(super) async fn postpone(
        &self,
        uidvalidity: u32,
        row: &Received,
        until: Timestamp,
    ) -> Result<(), Stop> {
        tracing::debug!(
            mailbox = %self.mailbox.address(), uid = row.uid, %until, "its sender has sent many: later"
        );
        // One whose push was unknown is known not to be there.
        let state = if row.state == PushState::Refused { PushState::Refused } else { PushState::Waiting };
        let wait = clock::until(clock::now(), until);
        let answer = "waits: Odoo takes a sender of more new messages in two hours for a loop".to_owned();
        self.write(uidvalidity, row, state, Some(answer), wait).await
    }

    async fn push(
        &self,
        uidvalidity: u32,
        row: &Received,
        incoming: Incoming,
        size: u64,
    ) -> Result<bool, Stop> {
        let gateway = &self.gateway;
        // After a crash, Odoo may be at it for this long.
        self.write(uidvalidity, row, PushState::Pushing, None, gateway.settles_after()).await?;
        let tries = row.tries.saturating_add(1);
        let intake = &self.mailbox.config.intake;
        let begun = Instant::now();
        let failure = match gateway.push(&incoming.raw, intake, &incoming.message_id).await {
            Ok(taken) => {
                return self
                    .done_with(uidvalidity, row, taken.as_str(), Some((taken, begun.elapsed())), size)
                    .await
                    .map(|()| true);
            }
            Err(failure) => failure,
        };
        if failure.class == Class::Message {
            let wait = plan::refused_again_after(tries);
            return self.set_aside(uidvalidity, row, &failure, wait).await.map(|()| false);
        }
        if failure.class == Class::Transient && tries >= MOST_TRIES {
            let failure = failure.clone().advise(
                "Odoo fails at this message again and again: look into its log; the message is tried again by itself",
            );
            self.set_aside(uidvalidity, row, &failure, plan::refused_again_after(tries)).await?;
        } else {
            let wait = failure.retry_after.unwrap_or_default();
            self.write(uidvalidity, row, PushState::Waiting, Some(failure.to_string()), wait).await?;
        }
        Err(Stop::Odoo(failure))
    }

    /// Odoo has it: writes that down.
    async fn done_with(
        &self,
        uidvalidity: u32,
        row: &Received,
        answer: &'static str,
        taken: Option<(Taken, Duration)>,
        size: u64,
    ) -> Result<(), Stop> {
        let thread_id = taken.and_then(|(taken, _)| taken.thread_id());
        let seconds = taken.map(|(_, time)| seconds(time));
        let noted = thread_id.map_or_else(|| answer.to_owned(), |id| format!("{answer}: {id}"));
        self.write(uidvalidity, row, PushState::Pushed, Some(noted), Duration::ZERO).await?;
        tracing::info!(
            mailbox = %self.mailbox.address(),
            uid = row.uid,
            message_id = row.message_id.as_deref().map(one_line),
            answer,
            thread_id,
            size,
            seconds,
            "pushed"
        );
        Ok(())
    }

    pub(super) async fn too_large(&self, uidvalidity: u32, row: &Received, size: u64) -> Result<(), Stop> {
        let reply = format!("{size} bytes; at most {LARGEST} are pushed");
        let failure = Failure::new(Class::Message, "too large", reply)
            .advise("enter it into Odoo by hand if it matters, and move it out of the folder");
        self.set_aside(uidvalidity, row, &failure, OUT_OF_REACH).await
    }

    /// Leaves the message unread, to be tried again after `wait`; the next one has its turn.
    pub(super) async fn set_aside(
        &self,
        uidvalidity: u32,
        row: &Received,
        failure: &Failure,
        wait: Duration,
    ) -> Result<(), Stop> {
        let answer = format!("{}: {}", failure.code, failure.reply);
        self.write(uidvalidity, row, PushState::Refused, Some(answer), wait).await?;
        let Failure { class, code, reply, advice, .. } = failure;
        tracing::warn!(
            mailbox = %self.mailbox.address(),
            uid = row.uid,
            message_id = row.message_id.as_deref().map(one_line),
            %class,
            code,
            reply,
            advice,
            next = %clock::to_second(clock::after(clock::now(), wait)),
            "quarantined"
        );
        Ok(())
    }

    /// Writes into the ledger; the message is due again after `wait`.
    async fn write(
        &self,
        uidvalidity: u32,
        row: &Received,
        state: PushState,
        answer: Option<String>,
        wait: Duration,
    ) -> Result<(), Stop> {
        let (mailbox, now) = (&self.mailbox, clock::now());
        let note = (row.message_id.clone(), answer, row.sender.clone());
        let (folder, until) = (&mailbox.config.folder, clock::after(now, wait));
        let written =
            self.store.note_push_of(mailbox.address(), folder, uidvalidity, row.uid, state, note, until, now);
        Ok(written.await?)
    }

    /// Writes down the same of several messages.
    pub(super) async fn settle(
        &self,
        uidvalidity: u32,
        uids: Vec<u32>,
        state: PushState,
        wait: Duration,
    ) -> Result<(), Stop> {
        if uids.is_empty() {
            return Ok(());
        }
        let (mailbox, now) = (&self.mailbox, clock::now());
        let (folder, until) = (&mailbox.config.folder, clock::after(now, wait));
        Ok(self
            .store
            .settle_received(mailbox.address(), folder, uidvalidity, uids, state, until, now)
            .await?)
    }
}
