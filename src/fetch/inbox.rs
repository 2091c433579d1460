//! The inbox loop: keeps a session, looks the folder through ([`super::look`]), has what is to be done brought to Odoo
//! ([`super::round`]), and waits for more.

use super::desk::Desk;
use super::line::{Line, Stop};
use super::plan;
use super::prune::Pruning;
use super::room::Room;
use super::round::Round;
use crate::clock;
use crate::failure::{Class, Failure, chain};
use crate::health::patiently;
use crate::imap::Idled;
use crate::mailbox::{Mailbox, Trouble};
use crate::microsoft::imap_replies;
use crate::odoo::Gateway;
use crate::store::Store;
use crate::tokens::Tokens;
use jiff::Timestamp;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio_rustls::rustls::ClientConfig;
use tokio_util::sync::CancellationToken;

/// An IDLE that the server ends sooner, without any news, is none; it may do so once.
const SHORT_IDLE: Duration = Duration::from_secs(10);
/// Messages read from the ledger at a time: as many as one command to the server names.
const BATCH: u32 = 200;

/// Watches one mailbox's inbox.
pub struct Inbox {
    pub(super) desk: Desk,
    tokens: Tokens,
    tls: Arc<ClientConfig>,
    room: Room,
    /// Trouble with the store.
    disk: Trouble,
    line: Option<Line>,
    /// Turns that failed in a row.
    failures: u32,
    /// Sessions in a row that ended soon after their first look.
    short_lived: u32,
    /// Whether the last turn failed at Odoo.
    waits_for_odoo: bool,
    pub(super) stumbles: Stumbles,
    /// When a look was last written down.
    pub(super) noted_at: Option<Timestamp>,
    /// Whether the last look found UIDs that no message can have yet.
    pub(super) beyond: bool,
    /// Whether the folder was looked through since the start.
    pub(super) looked: bool,
    pub(super) pruning: Pruning,
    /// The folder's UIDVALIDITY when it was last looked through.
    uidvalidity: u32,
}

/// What went wrong with messages, as far as it matters for the next ones.
#[derive(Default)]
pub(super) struct Stumbles {
    /// The message at which the session was lost last, and how often in a row.
    pub(super) last: Option<(u32, u32)>,
    /// So many messages are still to be fetched each alone, since one of them cannot be fetched.
    pub(super) one_by_one: usize,
    /// The last message could not be marked.
    pub(super) unmarked: bool,
}

impl Inbox {
    /// The inbox of a mailbox; nothing happens until it runs. All inboxes share the `room`.
    pub fn new(
        mailbox: Arc<Mailbox>,
        store: Store,
        tokens: Tokens,
        gateway: Gateway,
        tls: Arc<ClientConfig>,
        room: Room,
    ) -> Self {
        let subject = mailbox.address().to_string();
        Self {
            desk: Desk { mailbox, store, gateway },
            tokens,
            tls,
            room,
            disk: Trouble::new("store failed", "store recovered", "store", subject),
            line: None,
            failures: 0,
            short_lived: 0,
            waits_for_odoo: false,
            stumbles: Stumbles::default(),
            noted_at: None,
            beyond: false,
            looked: false,
            pruning: Pruning::default(),
            uidvalidity: 0,
        }
    }

    /// Watches until `soft` is cancelled: then the message in hand is finished, and the session is closed.
    pub async fn run(mut self, soft: CancellationToken) {
        let mut woken = self.desk.store.woken();
        while !soft.is_cancelled() {
            woken.mark_unchanged();
            let turn = Box::pin(self.turn(&soft)).await;
            let waited = match self.after(turn) {
                None => Box::pin(self.wait_for_news(&soft, &mut woken)).await,
                Some(wait) => Ok(wait),
            };
            let wait = match waited {
                Ok(wait) => wait,
                Err(stop) => self.after(Err(stop)).unwrap_or_default(),
            };
            tokio::select! {
                () = soft.cancelled() => {}
                _ = woken.changed() => {}
                () = patiently(tokio::time::sleep(wait)) => {}
            }
        }
        if let Some(line) = self.line.take() {
            line.session.logout().await;
        }
    }

    /// Notes how a turn ended; how long to wait for the next. `None`: until there is something to do.
    fn after(&mut self, turn: Result<(), Stop>) -> Option<Duration> {
        self.waits_for_odoo = matches!(turn, Err(Stop::Odoo(_)));
        let failure = match turn {
            Ok(()) => {
                self.failures = 0;
                self.disk.well();
                return None;
            }
            Err(Stop::Renew | Stop::Stopping) => return Some(Duration::ZERO),
            // Asking for a token again costs nothing, and somebody may connect the mailbox any moment.
            Err(Stop::Token(failure)) => Failure { class: Class::Transient, ..failure },
            Err(Stop::Odoo(failure)) => failure,
            Err(Stop::Imap(failure)) => match self.lost(failure) {
                Ok(wait) => return Some(wait),
                Err(failure) => failure,
            },
            Err(Stop::Store(error)) => {
                let failure = Failure::new(Class::Administrator, "store", chain(&error)).advise(
                    "check the disk that [store] url is on: nothing is pushed until it can be written",
                );
                self.disk.fail(&failure, clock::now());
                // It passes as soon as there is room again.
                Failure { class: Class::Transient, ..failure }
            }
        };
        self.failures = self.failures.saturating_add(1);
        Some(plan::back_off(&failure, self.failures))
    }

    /// Gives up the session. Where it had served, a new one is tried without a word: at once, but for servers (and what
    /// stands before them) that end each of them; so long after. Else it is trouble.
    fn lost(&mut self, failure: Failure) -> Result<Duration, Failure> {
        let line = self.line.take();
        let mailbox = &self.desk.mailbox;
        if let Some(line) = &line
            && failure.code == imap_replies::TOKEN_EXPIRED
        {
            self.tokens.refused(mailbox.address(), &line.token);
        }
        if let Some(line) = line.filter(|line| line.proven && failure.class == Class::Transient) {
            tracing::debug!(mailbox = %mailbox.address(), code = %failure.code, reply = %failure.reply, "session ended");
            if !line.is_short_lived() {
                self.short_lived = 0;
                return Ok(Duration::ZERO);
            }
            self.short_lived = self.short_lived.saturating_add(1);
            return Ok(plan::back_off(&failure, self.short_lived));
        }
        let failure = imap_replies::persisting(failure, self.failures.saturating_add(1));
        mailbox.imap.fail(&failure, clock::now());
        Err(failure)
    }

    /// Looks the folder through once, and does what is to be done.
    async fn turn(&mut self, soft: &CancellationToken) -> Result<(), Stop> {
        let mut line = self.line(soft).await?;
        let done = self.look_and_work(&mut line, soft).await;
        // Kept even if the turn failed: unless the session did, it serves on.
        line.proven = line.proven || done.is_ok();
        self.line = Some(line);
        done
    }

    /// The session in hand, or a new one where there is none or its token is about to expire.
    async fn line(&mut self, soft: &CancellationToken) -> Result<Line, Stop> {
        if let Some(line) = self.line.take() {
            if !line.expires_soon() {
                return Ok(line);
            }
            line.session.logout().await;
        }
        tokio::select! {
            () = soft.cancelled() => Err(Stop::Stopping),
            line = Line::open(&self.desk.mailbox, &self.tokens, &self.tls) => line,
        }
    }

    async fn look_and_work(&mut self, line: &mut Line, soft: &CancellationToken) -> Result<(), Stop> {
        self.take_back(line).await?;
        let folder = self.look(line).await?;
        self.uidvalidity = folder.uidvalidity;
        if !self.stumbles.unmarked {
            self.desk.mailbox.imap.well();
        }
        self.work_off(line, soft).await?;
        self.prune(line, folder.uidvalidity).await
    }

    /// Does everything that the ledger says is to be done now.
    async fn work_off(&mut self, line: &mut Line, soft: &CancellationToken) -> Result<(), Stop> {
        let desk = self.desk.clone();
        let (address, folder) = (desk.mailbox.address(), desk.mailbox.config.folder.as_str());
        let uidvalidity = self.uidvalidity;
        loop {
            let alone = self.stumbles.one_by_one > 0;
            let most = if alone { 1 } else { BATCH };
            let batch = desk.store.to_push(address, folder, uidvalidity, clock::now(), most).await?;
            if desk.gateway.trouble().is_some() && (self.waits_for_odoo || !batch.is_empty()) {
                // A small question first: a message is only booked when somebody is there to take it.
                desk.gateway.sign_in().await.map_err(Stop::Odoo)?;
                if batch.is_empty() {
                    desk.gateway.well();
                }
            }
            if batch.is_empty() {
                return Ok(());
            }
            if soft.is_cancelled() {
                return Err(Stop::Stopping);
            }
            if line.expires_soon() {
                return Err(Stop::Renew);
            }
            let (room, stumbles) = (&self.room, &mut self.stumbles);
            let mut round = Round { desk: &desk, line, uidvalidity, room, stumbles };
            Box::pin(round.bring(batch, soft)).await?;
            line.proven = true;
            line.useful = true;
            if alone {
                self.stumbles.one_by_one = self.stumbles.one_by_one.saturating_sub(1);
            }
        }
    }

    /// Waits until the server tells of new messages, until some message is due again, or until a person did something. How
    /// much longer to wait.
    async fn wait_for_news(
        &mut self,
        soft: &CancellationToken,
        woken: &mut watch::Receiver<()>,
    ) -> Result<Duration, Stop> {
        let desk = &self.desk;
        let (mailbox, fetch) = (&desk.mailbox, &desk.mailbox.config.fetch);
        let due =
            desk.store.next_push_at(mailbox.address(), &mailbox.config.folder, self.uidvalidity).await?;
        let until_due = due.map_or(Duration::MAX, |at| clock::until(clock::now(), at));
        let Some(line) = self.line.as_mut().filter(|line| line.able.idle) else {
            return Ok(fetch.poll.min(until_due));
        };
        // A token that is about to expire, and yet is the newest there is, is used while it lasts.
        let serves = Some(line.serves_for()).filter(|serves| !serves.is_zero()).unwrap_or(fetch.poll);
        let limit = fetch.idle.min(until_due).min(serves);
        let stop = async {
            tokio::select! {
                () = soft.cancelled() => {}
                _ = woken.changed() => {}
            }
        };
        let begun = Instant::now();
        let idled = patiently(line.session.idle(limit, stop)).await?;
        let ended = idled == Idled::News && !line.session.has_news() && begun.elapsed() < SHORT_IDLE;
        line.idles_ended = if ended { line.idles_ended.saturating_add(1) } else { 0 };
        match idled {
            Idled::News | Idled::Elapsed | Idled::Stopped if line.idles_ended < 2 => Ok(Duration::ZERO),
            _ => {
                tracing::debug!(mailbox = %mailbox.address(), "the server does not want to idle: polling");
                line.able.idle = false;
                Ok(fetch.poll.min(until_due))
            }
        }
    }
}
