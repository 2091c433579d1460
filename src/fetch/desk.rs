//! One message on its way from the inbox into Odoo.
//!
//! The order makes it once only: a message is in the ledger before anything else, a push is booked before it begins,
//! its outcome is written down before the message is marked. Whatever was booked before may be in Odoo already, so Odoo
//! is asked for its Message-Id before it is pushed again.

use super::incoming::{self, Incoming};
use super::line::Stop;
use super::plan;
use super::room::Held;
use crate::clock;
use crate::failure::{Class, Failure, one_line};
use crate::logging::seconds;
use crate::mailbox::Mailbox;
use crate::odoo::{Gateway, Taken, Turn, answers};
use crate::store::{Note, PushState, Received, Store};
use jiff::Timestamp;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// Larger messages are refused, in bytes. Odoo 19 takes 128 MiB of base64 and XML, older ones and proxies take less:
/// what lies between is refused by them.
pub(super) const LARGEST: u64 = 120 << 20;
/// A message that Odoo failed at so often is to blame itself, if Odoo took another one meanwhile: then this is a refusal.
const MOST_TRIES: u32 = 5;
/// A message that Odoo failed at so often gives way to others, to see whether Odoo takes those.
const MANY_TRIES: u32 = 8;
/// For so long.
const GIVES_WAY: Duration = Duration::from_secs(300);
/// How long a push may go on after a stop was asked for. It may take minutes, in which Odoo waits for the relay to take the
/// mail that it sends from inside the push; the next start asks what became of it.
const GRACE: Duration = Duration::from_secs(5);
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
    pub(super) room: Held,
}

/// What is known of a message before it is pushed.
enum Known {
    /// Odoo has it.
    There,
    /// Odoo does not have it.
    New,
    /// Odoo may still be at work on it, until then.
    Unsettled(Timestamp),
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
            match Box::pin(self.bring(uidvalidity, row, raw, soft)).await {
                Ok(true) => there.push(uid),
                Ok(false) => {}
                Err(stop) => return (there, Err(stop)),
            }
        }
        drop(room);
        (there, Ok(()))
    }

    /// Whether Odoo has the message now. Else it was set aside, and the next one has its turn.
    async fn bring(
        &self,
        uidvalidity: u32,
        mut row: Received,
        raw: Vec<u8>,
        soft: &CancellationToken,
    ) -> Result<bool, Stop> {
        let size = u64::try_from(raw.len()).unwrap_or(u64::MAX);
        if size > LARGEST {
            return self.too_large(uidvalidity, &row, size).await.map(|()| false);
        }
        let address = self.mailbox.address();
        let incoming = incoming::prepare(raw, address, row.message_id.as_deref(), self.gateway.domains());
        row.message_id = Some(incoming.message_id.clone());
        row.sender.clone_from(&incoming.sender);
        tracing::debug!(mailbox = %address, uid = row.uid, message_id = %one_line(&incoming.message_id), size, "fetched");
        // From here on nobody else brings this Message-Id to Odoo, so that what is known of it stays true.
        let turn = tokio::select! {
            () = soft.cancelled() => return Err(Stop::Stopping),
            turn = self.gateway.turn(&incoming.message_id) => turn,
        };
        match self.known(&row, &incoming).await {
            Ok(Known::There) => {
                self.done_with(uidvalidity, &row, "known", None, false, size).await.map(|()| true)
            }
            Ok(Known::Unsettled(until)) => {
                let state = if row.state == PushState::Pushing { row.state } else { PushState::Waiting };
                let wait = clock::until(clock::now(), until);
                tracing::debug!(mailbox = %address, uid = row.uid, %until, "Odoo may still be at work on it");
                self.settle(uidvalidity, vec![row.uid], state, wait).await.map(|()| false)
            }
            Ok(Known::New) => {
                if let Some(until) = self.too_soon(&row).await? {
                    if !self.is_reply(&incoming).await? {
                        self.postpone(uidvalidity, &row, until).await?;
                        return Ok(false);
                    }
                    row.sender = Some(String::new());
                }
                self.push(uidvalidity, &row, turn, incoming, size, soft).await
            }
            // Odoo cannot say, and pushing it again could make a second record: the next one has its turn.
            Err(Stop::Odoo(failure)) if failure.class == Class::Message => {
                self.refuse(uidvalidity, &row, &failure).await.map(|()| false)
            }
            Err(stop) => Err(stop),
        }
    }

    /// Whether Odoo has the message already: pushed under another UID (the UIDs count anew, or somebody moved it to
    /// and fro), from another mailbox, or by a push whose outcome nobody knows.
    async fn known(&self, row: &Received, incoming: &Incoming) -> Result<Known, Stop> {
        let id = &incoming.message_id;
        if self.store.was_pushed(self.mailbox.address(), id).await? {
            return Ok(Known::There);
        }
        let pushes = self.store.pushes_of(id).await?;
        if row.tries == 0 && row.state != PushState::Pushing && !pushes.tried {
            return Ok(Known::New);
        }
        if self.gateway.knows(id).await.map_err(Stop::Odoo)? {
            return Ok(Known::There);
        }
        // Odoo shows nothing of what it is still at work on.
        let settled = pushes.unclear_since.map(|at| clock::after(at, self.gateway.settles_after()));
        Ok(settled.filter(|&until| until > clock::now()).map_or(Known::New, Known::Unsettled))
    }

    /// Whether Odoo takes the message for a reply: it has a message that this one says it replies to.
    async fn is_reply(&self, incoming: &Incoming) -> Result<bool, Stop> {
        if incoming.replies_to.is_empty() {
            return Ok(false);
        }
        match self.gateway.knows_any(&incoming.replies_to).await {
            Err(failure) if failure.class != Class::Message => Err(Stop::Odoo(failure)),
            known => Ok(known.unwrap_or(false)),
        }
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
        // Why Odoo refused it stays known: `inbox list` shows it.
        let answer = (state != PushState::Refused)
            .then(|| "waits: Odoo takes a sender of more new messages in two hours for a loop".to_owned());
        self.write(uidvalidity, row, state, answer, false, wait).await
    }

    async fn push(
        &self,
        uidvalidity: u32,
        row: &Received,
        turn: Turn<'_>,
        incoming: Incoming,
        size: u64,
        soft: &CancellationToken,
    ) -> Result<bool, Stop> {
        self.write(uidvalidity, row, PushState::Pushing, None, false, Duration::ZERO).await?;
        let tries = row.tries.saturating_add(1);
        let (begun, bounce) = (Instant::now(), incoming.bounce);
        let pushing = async {
            let intake = &self.mailbox.config.intake;
            match turn.push(&incoming.raw, intake).await {
                Err(failure) if incoming.to_others && answers::is_no_route(&failure) => {
                    let incoming = incoming.delivered_to(self.mailbox.address());
                    turn.push(&incoming.raw, intake).await
                }
                pushed => pushed,
            }
        };
        let stopping = async {
            soft.cancelled().await;
            tokio::time::sleep(GRACE).await;
        };
        let pushed = tokio::select! {
            pushed = pushing => pushed,
            () = stopping => return Err(Stop::Stopping),
        };
        let failure = match pushed {
            Ok(taken) => {
                return self
                    .done_with(uidvalidity, row, taken.as_str(), Some((taken, begun.elapsed())), bounce, size)
                    .await
                    .map(|()| true);
            }
            Err(failure) => failure,
        };
        if failure.class == Class::Message {
            return self.refuse(uidvalidity, row, &failure).await.map(|()| false);
        }
        if tries >= MOST_TRIES && row.pushed_at.is_some_and(|at| self.gateway.took_since(at)) {
            let failure = failure.advise(
                "Odoo fails at this message, and takes others: look into its log; the message is tried again by itself",
            );
            return self.refuse(uidvalidity, row, &failure).await.map(|()| false);
        }
        if tries >= MANY_TRIES {
            self.settle(uidvalidity, vec![row.uid], PushState::Waiting, GIVES_WAY).await?;
            return Ok(false);
        }
        if !answers::is_unclear(&failure) {
            let wait = failure.retry_after.unwrap_or_default();
            self.write(uidvalidity, row, PushState::Waiting, Some(failure.to_string()), false, wait).await?;
        }
        Err(Stop::Odoo(failure))
    }

    /// Odoo refuses the message: it stays unread, and the next one has its turn.
    async fn refuse(&self, uidvalidity: u32, row: &Received, failure: &Failure) -> Result<(), Stop> {
        let wait = plan::refused_again_after(row.refusals.saturating_add(1));
        self.quarantine(uidvalidity, row, failure, true, wait).await
    }

    /// Odoo has it: writes that down.
    async fn done_with(
        &self,
        uidvalidity: u32,
        row: &Received,
        answer: &'static str,
        taken: Option<(Taken, Duration)>,
        bounce: bool,
        size: u64,
    ) -> Result<(), Stop> {
        let thread_id = taken.and_then(|(taken, _)| taken.thread_id());
        let seconds = taken.map(|(_, time)| seconds(time));
        let noted = thread_id.map_or_else(|| answer.to_owned(), |id| format!("{answer}: {id}"));
        let note = Note { answer: Some(noted), bounce, ..Note::default() };
        self.write_note(uidvalidity, row, PushState::Pushed, note, Duration::ZERO).await?;
        tracing::info!(
            mailbox = %self.mailbox.address(),
            uid = row.uid,
            message_id = row.message_id.as_deref().map(one_line),
            answer,
            thread_id,
            bounce,
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

    /// Leaves a message unread that cannot be brought to Odoo, to be tried again after `wait`; the next one has its turn.
    pub(super) async fn set_aside(
        &self,
        uidvalidity: u32,
        row: &Received,
        failure: &Failure,
        wait: Duration,
    ) -> Result<(), Stop> {
        self.quarantine(uidvalidity, row, failure, false, wait).await
    }

    async fn quarantine(
        &self,
        uidvalidity: u32,
        row: &Received,
        failure: &Failure,
        refused: bool,
        wait: Duration,
    ) -> Result<(), Stop> {
        let answer = format!("{}: {}", failure.code, failure.reply);
        self.write(uidvalidity, row, PushState::Refused, Some(answer), refused, wait).await?;
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

    /// Writes into the ledger; the message is due again after `wait`. `refused`: this counts as a refusal.
    async fn write(
        &self,
        uidvalidity: u32,
        row: &Received,
        state: PushState,
        answer: Option<String>,
        refused: bool,
        wait: Duration,
    ) -> Result<(), Stop> {
        let note = Note { answer, refused, ..Note::default() };
        self.write_note(uidvalidity, row, state, note, wait).await
    }

    async fn write_note(
        &self,
        uidvalidity: u32,
        row: &Received,
        state: PushState,
        note: Note,
        wait: Duration,
    ) -> Result<(), Stop> {
        let (mailbox, now) = (&self.mailbox, clock::now());
        let note = Note { message_id: row.message_id.clone(), sender: row.sender.clone(), ..note };
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
