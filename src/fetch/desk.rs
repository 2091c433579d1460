//! One message on its way from the inbox into Odoo.
//!
//! The order makes it once only: a message is in the ledger before anything else, a push is booked before it begins,
//! its outcome is written down before the message is marked. Whatever was booked before may be in Odoo already, so Odoo
//! is asked for its Message-Id before it is pushed again.
//!
//! Each of these writes waits for the disk. One message's outcome and the next one's booking are one write where nothing
//! has to be waited for in between: then a message costs one sync, not two.

use super::incoming::{self, Incoming};
use super::line::Stop;
use super::plan;
use super::room::Held;
use crate::clock;
use crate::failure::{Class, Failure, one_line};
use crate::logging::seconds;
use crate::mailbox::Mailbox;
use crate::odoo::{Gateway, Taken, Turn, answers};
use crate::store::{Note, PushState, Received, Store, Update};
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

/// Messages that Odoo has: those of which the ledger says so, and one of which it is about to.
#[derive(Default)]
struct There<'a> {
    written: Vec<u32>,
    last: Option<Brought<'a>>,
}

/// A message that Odoo has. Until this is written down, nobody else brings its Message-Id there.
struct Brought<'a> {
    row: Received,
    turn: Turn<'a>,
    answer: &'static str,
    /// Odoo took it just now, and took so long.
    taken: Option<(Taken, Duration)>,
    bounce: bool,
    size: u64,
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

impl Brought<'_> {
    fn thread_id(&self) -> Option<i64> {
        self.taken.and_then(|(taken, _)| taken.thread_id())
    }
}

impl Desk {
    /// Brings messages to Odoo, one after the other, until one is stopped. The UIDs of those that Odoo has.
    pub(super) async fn bring_all(
        &self,
        ready: Option<Ready>,
        soft: &CancellationToken,
    ) -> (Vec<u32>, Result<(), Stop>) {
        let Some(ready) = ready else {
            return (Vec::new(), Ok(()));
        };
        let (uidvalidity, mut there) = (ready.uidvalidity, There::default());
        let brought = self.bring_each(ready, &mut there, soft).await;
        let written = self.write_down(uidvalidity, &mut there).await;
        (there.written, brought.and(written))
    }

    async fn bring_each<'a>(
        &'a self,
        ready: Ready,
        there: &mut There<'a>,
        soft: &CancellationToken,
    ) -> Result<(), Stop> {
        let Ready { uidvalidity, messages, room } = ready;
        for (row, raw) in messages {
            if soft.is_cancelled() {
                return Err(Stop::Stopping);
            }
            if let Some(brought) = Box::pin(self.bring(uidvalidity, row, raw, there, soft)).await? {
                there.last = Some(brought);
            }
        }
        drop(room);
        Ok(())
    }

    /// The message, if Odoo has it now. Else it was set aside, and the next one has its turn.
    async fn bring<'a>(
        &'a self,
        uidvalidity: u32,
        mut row: Received,
        raw: Vec<u8>,
        there: &mut There<'a>,
        soft: &CancellationToken,
    ) -> Result<Option<Brought<'a>>, Stop> {
        let size = u64::try_from(raw.len()).unwrap_or(u64::MAX);
        if size > LARGEST {
            return self.too_large(uidvalidity, &row, size).await.map(|()| None);
        }
        let address = self.mailbox.address();
        let incoming = incoming::prepare(raw, address, row.message_id.as_deref(), self.gateway.domains());
        row.message_id = Some(incoming.message_id.clone());
        row.sender.clone_from(&incoming.sender);
        tracing::debug!(mailbox = %address, uid = row.uid, message_id = %one_line(&incoming.message_id), size, "fetched");
        if let Some(turn) = there.last.as_mut().and_then(|last| last.turn.hand_on(&incoming.message_id))
            && self.is_plainly_new(&row, &incoming).await?
        {
            return self.push(uidvalidity, row, turn, incoming, size, there, soft).await;
        }
        self.write_down(uidvalidity, there).await?;
        // From here on nobody else brings this Message-Id to Odoo, so that what is known of it stays true.
        let turn = tokio::select! {
            () = soft.cancelled() => return Err(Stop::Stopping),
            turn = self.gateway.turn(&incoming.message_id) => turn,
        };
        match self.known(&row, &incoming).await {
            Ok(Known::There) => {
                Ok(Some(Brought { row, turn, answer: "known", taken: None, bounce: false, size }))
            }
            Ok(Known::Unsettled(until)) => {
                let state = if row.state == PushState::Pushing { row.state } else { PushState::Waiting };
                let wait = clock::until(clock::now(), until);
                tracing::debug!(mailbox = %address, uid = row.uid, %until, "Odoo may still be at work on it");
                self.settle(uidvalidity, vec![row.uid], state, wait).await.map(|()| None)
            }
            Ok(Known::New) => {
                if let Some(until) = self.too_soon(&row).await? {
                    if !self.is_reply(&incoming).await? {
                        self.postpone(uidvalidity, &row, until).await?;
                        return Ok(None);
                    }
                    row.sender = Some(String::new());
                }
                self.push(uidvalidity, row, turn, incoming, size, there, soft).await
            }
            // Odoo cannot say, and pushing it again could make a second record: the next one has its turn.
            Err(Stop::Odoo(failure)) if failure.class == Class::Message => {
                self.refuse(uidvalidity, &row, &failure).await.map(|()| None)
            }
            Err(stop) => Err(stop),
        }
    }

    /// Whether the ledger alone says that the message is to be pushed, now. (It does not know yet what the push before made,
    /// and counts that one as a record of its sender.)
    async fn is_plainly_new(&self, row: &Received, incoming: &Incoming) -> Result<bool, Stop> {
        Ok(row.tries == 0
            && row.state != PushState::Pushing
            && !self.store.was_pushed(self.mailbox.address(), &incoming.message_id).await?
            && !self.store.pushes_of(&incoming.message_id).await?.tried
            && self.too_soon(row).await?.is_none())
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

    #[expect(clippy::too_many_arguments, reason = "a message, its turn, and what came before it")]
    async fn push<'a>(
        &'a self,
        uidvalidity: u32,
        row: Received,
        turn: Turn<'a>,
        incoming: Incoming,
        size: u64,
        there: &mut There<'a>,
        soft: &CancellationToken,
    ) -> Result<Option<Brought<'a>>, Stop> {
        self.book(uidvalidity, &row, there).await?;
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
                let (answer, taken) = (taken.as_str(), Some((taken, begun.elapsed())));
                return Ok(Some(Brought { row, turn, answer, taken, bounce, size }));
            }
            Err(failure) => failure,
        };
        if failure.class == Class::Message {
            return self.refuse(uidvalidity, &row, &failure).await.map(|()| None);
        }
        if tries >= MOST_TRIES && row.pushed_at.is_some_and(|at| self.gateway.took_since(at)) {
            let failure = failure.advise(
                "Odoo fails at this message, and takes others: look into its log; the message is tried again by itself",
            );
            return self.refuse(uidvalidity, &row, &failure).await.map(|()| None);
        }
        if tries >= MANY_TRIES {
            self.settle(uidvalidity, vec![row.uid], PushState::Waiting, GIVES_WAY).await?;
            return Ok(None);
        }
        if !answers::is_unclear(&failure) {
            let wait = failure.retry_after.unwrap_or_default();
            self.write(uidvalidity, &row, PushState::Waiting, Some(failure.to_string()), false, wait).await?;
        }
        Err(Stop::Odoo(failure))
    }

    /// Odoo refuses the message: it stays unread, and the next one has its turn.
    async fn refuse(&self, uidvalidity: u32, row: &Received, failure: &Failure) -> Result<(), Stop> {
        let wait = plan::refused_again_after(row.refusals.saturating_add(1));
        self.quarantine(uidvalidity, row, failure, true, wait).await
    }

    /// Books a push, and with it, in the same commit, writes down what became of the one before. Where that fails, the one before
    /// is still to be written down: what is wrong may be the booking.
    async fn book(&self, uidvalidity: u32, row: &Received, there: &mut There<'_>) -> Result<(), Stop> {
        let booking = self.update(row, PushState::Pushing, Note::default(), Duration::ZERO);
        let updates = there.last.iter().map(|last| self.outcome(last)).chain([booking]).collect();
        self.note(uidvalidity, updates).await?;
        there.written.extend(there.last.take().map(|last| self.say(&last)));
        Ok(())
    }

    /// Writes down that Odoo has the last one.
    async fn write_down(&self, uidvalidity: u32, there: &mut There<'_>) -> Result<(), Stop> {
        if let Some(last) = there.last.take() {
            self.note(uidvalidity, vec![self.outcome(&last)]).await?;
            there.written.push(self.say(&last));
        }
        Ok(())
    }

    fn outcome(&self, brought: &Brought<'_>) -> Update {
        let answer = brought.answer;
        let noted = brought.thread_id().map_or_else(|| answer.to_owned(), |id| format!("{answer}: {id}"));
        let note = Note { answer: Some(noted), bounce: brought.bounce, ..Note::default() };
        self.update(&brought.row, PushState::Pushed, note, Duration::ZERO)
    }

    /// Logs a message that Odoo has, and is written down; its UID.
    fn say(&self, brought: &Brought<'_>) -> u32 {
        let Brought { row, answer, taken, bounce, size, .. } = brought;
        tracing::info!(
            mailbox = %self.mailbox.address(),
            uid = row.uid,
            message_id = row.message_id.as_deref().map(one_line),
            answer,
            thread_id = brought.thread_id(),
            bounce,
            size,
            seconds = taken.map(|(_, time)| seconds(time)),
            "pushed"
        );
        row.uid
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
        self.note(uidvalidity, vec![self.update(row, state, note, wait)]).await
    }

    /// How the ledger changes; the message is due again after `wait`.
    fn update(&self, row: &Received, state: PushState, note: Note, wait: Duration) -> Update {
        let now = clock::now();
        let note = Note { message_id: row.message_id.clone(), sender: row.sender.clone(), ..note };
        Update { uid: row.uid, state, note, next_try_at: clock::after(now, wait), at: now }
    }

    async fn note(&self, uidvalidity: u32, updates: Vec<Update>) -> Result<(), Stop> {
        let (mailbox, folder) = (self.mailbox.address(), &self.mailbox.config.folder);
        Ok(self.store.note_pushes(mailbox, folder, uidvalidity, updates).await?)
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
