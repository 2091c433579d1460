//! One message on its way from the inbox into Odoo.
//!
//! The order makes it once only: a message is in the ledger before anything else, a push is booked before it begins,
//! its outcome is written down before the message is marked as read. Whatever was booked before may be in Odoo already,
//! so Odoo is asked for its Message-Id before it is pushed again.

use super::inbox::{Inbox, Stop};
use super::incoming::{self, Incoming};
use super::plan;
use crate::clock;
use crate::failure::{Class, Failure, one_line};
use crate::imap::{self, Session};
use crate::odoo::Taken;
use crate::store::{PushState, Received};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Larger messages are refused, in bytes. Odoo 19 takes 128 MiB of base64 and XML, older ones and proxies take less:
/// what lies between is refused by them.
const LARGEST: u64 = 120 << 20;
/// A message that Odoo fails at so often, while it is well otherwise, is set aside like a refused one.
const MOST_TRIES: u32 = 5;
/// A message at which the session was lost so often in a row is set aside like a refused one.
const MOST_STUMBLES: u32 = 3;
/// How long a message waits that the relay itself cannot bring to Odoo.
const OUT_OF_REACH: Duration = Duration::from_secs(6 * 3600);
/// How long a message waits that could not be marked as read.
const UNMARKED: Duration = Duration::from_secs(3600);

/// A message that is being brought to Odoo.
pub(super) struct InHand<'a> {
    pub(super) inbox: &'a mut Inbox,
    pub(super) session: &'a mut Session,
    pub(super) uidvalidity: u32,
    pub(super) row: Received,
}

impl InHand<'_> {
    /// Brings the message one step or all the way to `Done`; afterwards it is no longer due, or the turn ends.
    pub(super) async fn bring(&mut self, soft: &CancellationToken) -> Result<(), Stop> {
        if self.row.state == PushState::Pushed {
            return self.mark().await;
        }
        let size = match self.session.size(self.row.uid).await {
            Ok(Some(size)) => size,
            Ok(None) => return self.note(PushState::Gone, None, None, Duration::ZERO).await,
            Err(error) => return self.unreadable(error).await,
        };
        if size > LARGEST {
            return self.too_large(size).await;
        }
        let _room = tokio::select! {
            () = soft.cancelled() => return Err(Stop::Stopping),
            room = self.inbox.gateway.room(size) => room,
        };
        let raw = match self.session.body(self.row.uid).await {
            Ok(Some(raw)) => raw,
            Ok(None) => return self.note(PushState::Gone, None, None, Duration::ZERO).await,
            Err(error) => return self.unreadable(error).await,
        };
        self.inbox.stumbled = None;
        let size = u64::try_from(raw.len()).unwrap_or(u64::MAX);
        if size > LARGEST {
            return self.too_large(size).await;
        }
        let mailbox = self.inbox.mailbox.clone();
        let incoming = incoming::prepare(raw, mailbox.address(), self.row.message_id.as_deref());
        self.row.message_id = Some(incoming.message_id.clone());
        tracing::debug!(mailbox = %mailbox.address(), uid = self.row.uid, message_id = %one_line(&incoming.message_id), size, "fetched");
        match self.is_there(&incoming).await {
            Ok(true) => self.done_with("known", None, size).await,
            Ok(false) => self.push(incoming, size).await,
            // Odoo cannot say, and pushing it again could make a second record: the next one has its turn.
            Err(Stop::Odoo(failure)) if failure.class == Class::Message => {
                self.set_aside(&failure, plan::refused_again_after(self.row.tries)).await
            }
            Err(stop) => Err(stop),
        }
    }

    /// Whether Odoo has the message already: pushed under another UID (the UIDs count anew, or somebody moved it to
    /// and fro), or by a push whose outcome nobody knows.
    async fn is_there(&self, incoming: &Incoming) -> Result<bool, Stop> {
        let inbox = &self.inbox;
        if inbox.store.was_pushed(inbox.mailbox.address(), &incoming.message_id).await? {
            return Ok(true);
        }
        if self.row.tries == 0 {
            return Ok(false);
        }
        inbox.gateway.knows(&incoming.message_id).await.map_err(Stop::Odoo)
    }

    async fn push(&mut self, incoming: Incoming, size: u64) -> Result<(), Stop> {
        let gateway = self.inbox.gateway.clone();
        // After a crash, Odoo may be at it for this long.
        self.note(PushState::Pushing, Some(&incoming.message_id), None, gateway.settles_after()).await?;
        let tries = self.row.tries.saturating_add(1);
        let mailbox = self.inbox.mailbox.clone();
        let intake = &mailbox.config.intake;
        let failure = match gateway.push(&incoming.raw, intake, &incoming.message_id).await {
            Ok(taken) => return self.done_with(taken.as_str(), Some(taken), size).await,
            Err(failure) => failure,
        };
        if failure.class == Class::Message {
            return self.set_aside(&failure, plan::refused_again_after(tries)).await;
        }
        if failure.class == Class::Transient && tries >= MOST_TRIES {
            let failure = failure.clone().advise(
                "Odoo fails at this message again and again: look into its log; the message is tried again by itself",
            );
            self.set_aside(&failure, plan::refused_again_after(tries)).await?;
        } else {
            let wait = failure.retry_after.unwrap_or_default();
            self.note(PushState::Waiting, None, Some(failure.to_string()), wait).await?;
        }
        Err(Stop::Odoo(failure))
    }

    /// Odoo has it: writes that down, and tells the server.
    async fn done_with(&mut self, answer: &'static str, taken: Option<Taken>, size: u64) -> Result<(), Stop> {
        let thread_id = taken.and_then(Taken::thread_id);
        let noted = thread_id.map_or_else(|| answer.to_owned(), |id| format!("{answer}: {id}"));
        let message_id = self.row.message_id.clone();
        self.note(PushState::Pushed, message_id.as_deref(), Some(noted), Duration::ZERO).await?;
        tracing::info!(
            mailbox = %self.inbox.mailbox.address(),
            uid = self.row.uid,
            message_id = message_id.as_deref().map(one_line),
            answer,
            thread_id,
            size,
            "pushed"
        );
        self.mark().await
    }

    /// Marks it as read, which ends its story.
    async fn mark(&mut self) -> Result<(), Stop> {
        match self.session.mark_seen(self.row.uid).await {
            Ok(()) => {
                self.inbox.unmarked = false;
                self.note(PushState::Done, None, None, Duration::ZERO).await
            }
            Err(imap::Error::Refused(failure)) => {
                self.inbox.unmarked = true;
                self.inbox.mailbox.imap.fail(&failure, clock::now());
                self.note(PushState::Pushed, None, None, UNMARKED).await
            }
            Err(error) => Err(error.into()),
        }
    }

    async fn too_large(&mut self, size: u64) -> Result<(), Stop> {
        let reply = format!("{size} bytes; at most {LARGEST} are pushed");
        let failure = Failure::new(Class::Message, "too large", reply)
            .advise("enter it into Odoo by hand if it matters, and move it out of the folder");
        self.set_aside(&failure, OUT_OF_REACH).await
    }

    /// The message could not be fetched. If that is the message's fault, it is set aside.
    async fn unreadable(&mut self, error: imap::Error) -> Result<(), Stop> {
        match error {
            imap::Error::Refused(failure) if failure.class == Class::Message => {
                self.set_aside(&failure, OUT_OF_REACH).await
            }
            imap::Error::Lost(failure) if failure.class == Class::Transient => {
                let uid = self.row.uid;
                let times = match self.inbox.stumbled {
                    Some((last, times)) if last == uid => times.saturating_add(1),
                    _ => 1,
                };
                self.inbox.stumbled = Some((uid, times));
                if times >= MOST_STUMBLES {
                    let failure = failure.clone().advise(
                        "the session is lost whenever this message is fetched: move it out of the folder",
                    );
                    self.set_aside(&failure, OUT_OF_REACH).await?;
                    self.inbox.stumbled = None;
                }
                Err(Stop::Imap(failure))
            }
            error => Err(error.into()),
        }
    }

    /// Leaves the message unread, to be tried again after `wait`; the next one has its turn.
    async fn set_aside(&mut self, failure: &Failure, wait: Duration) -> Result<(), Stop> {
        let answer = format!("{}: {}", failure.code, failure.reply);
        self.note(PushState::Refused, None, Some(answer), wait).await?;
        let Failure { class, code, reply, advice, .. } = failure;
        tracing::warn!(
            mailbox = %self.inbox.mailbox.address(),
            uid = self.row.uid,
            message_id = self.row.message_id.as_deref().map(one_line),
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
    async fn note(
        &self,
        state: PushState,
        message_id: Option<&str>,
        answer: Option<String>,
        wait: Duration,
    ) -> Result<(), Stop> {
        let (mailbox, now) = (&self.inbox.mailbox, clock::now());
        self.inbox
            .store
            .note_push(
                mailbox.address(),
                &mailbox.config.folder,
                self.uidvalidity,
                self.row.uid,
                state,
                message_id.map(str::to_owned),
                answer,
                clock::after(now, wait),
                now,
            )
            .await?;
        Ok(())
    }
}
