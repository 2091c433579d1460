//! The inbox loop: keeps a session, looks the folder through, enters what is new into the ledger, and has what is to
//! be done brought to Odoo ([`super::in_hand`]).

use super::in_hand::InHand;
use super::plan::{self, Look};
use crate::clock;
use crate::failure::{Class, Failure, chain};
use crate::imap::{self, Session};
use crate::mailbox::{Mailbox, Trouble};
use crate::microsoft::imap_replies;
use crate::odoo::Gateway;
use crate::store::{self, Store};
use crate::tokens::{AccessToken, Tokens};
use jiff::{SignedDuration, Timestamp};
use std::sync::Arc;
use std::time::Duration;
use tokio_rustls::rustls::ClientConfig;
use tokio_util::sync::CancellationToken;

/// How long a session may go on being used before its token expires.
const TOKEN_MARGIN: SignedDuration = SignedDuration::from_mins(1);
/// A look that found nothing is written down this often.
const NOTE_EVERY: SignedDuration = SignedDuration::from_secs(30);
/// Messages read from the ledger at a time.
const BATCH: u32 = 50;

/// Watches one mailbox's inbox.
pub struct Inbox {
    pub(super) mailbox: Arc<Mailbox>,
    pub(super) store: Store,
    tokens: Tokens,
    pub(super) gateway: Gateway,
    tls: Arc<ClientConfig>,
    /// Trouble with the store.
    disk: Trouble,
    line: Option<Line>,
    /// Turns that failed in a row.
    failures: u32,
    /// Whether the last turn failed at Odoo.
    waits_for_odoo: bool,
    /// The message at which the session was lost last, and how often in a row.
    pub(super) stumbled: Option<(u32, u32)>,
    /// When a look was last written down.
    noted_at: Option<Timestamp>,
    /// The last message could not be marked as read.
    pub(super) unmarked: bool,
}

/// A session, and the token that it was opened with.
struct Line {
    session: Session,
    token: AccessToken,
    /// Whether it served for a whole look, or for a message. That such a session ends is usual; that a new one does is
    /// trouble.
    proven: bool,
}

impl Line {
    /// Whether its token is about to expire. A new session is never asked: it could not have a better one.
    fn expires_soon(&self) -> bool {
        self.proven && self.token.expires_at.duration_since(clock::now()) <= TOKEN_MARGIN
    }
}

/// Why a turn ended before all was done.
#[derive(Debug)]
pub(super) enum Stop {
    /// There is no token; its keeper says why.
    Token(Failure),
    Imap(Failure),
    /// The gateway says why.
    Odoo(Failure),
    Store(store::Error),
    /// The session is to be renewed before its token expires.
    Renew,
    /// The daemon stops.
    Stopping,
}

impl From<store::Error> for Stop {
    fn from(error: store::Error) -> Self {
        Self::Store(error)
    }
}

impl From<imap::Error> for Stop {
    fn from(error: imap::Error) -> Self {
        Self::Imap(error.into_failure())
    }
}

impl Inbox {
    /// The inbox of a mailbox; nothing happens until it runs.
    pub fn new(
        mailbox: Arc<Mailbox>,
        store: Store,
        tokens: Tokens,
        gateway: Gateway,
        tls: Arc<ClientConfig>,
    ) -> Self {
        let subject = mailbox.address().to_string();
        Self {
            mailbox,
            store,
            tokens,
            gateway,
            tls,
            disk: Trouble::new("store failed", "store recovered", "store", subject),
            line: None,
            failures: 0,
            waits_for_odoo: false,
            stumbled: None,
            noted_at: None,
            unmarked: false,
        }
    }

    /// Watches until `soft` is cancelled: then the message in hand is finished, and the session is closed.
    pub async fn run(mut self, soft: CancellationToken) {
        while !soft.is_cancelled() {
            let turn = Box::pin(self.turn(&soft)).await;
            let wait = self.after(turn);
            tokio::select! {
                () = soft.cancelled() => {}
                () = tokio::time::sleep(wait) => {}
            }
        }
        if let Some(line) = self.line.take() {
            line.session.logout().await;
        }
    }

    /// Notes how a turn ended; how long to wait for the next.
    fn after(&mut self, turn: Result<(), Stop>) -> Duration {
        self.waits_for_odoo = matches!(turn, Err(Stop::Odoo(_)));
        let failure = match turn {
            Ok(()) => {
                self.failures = 0;
                self.disk.well();
                return self.mailbox.config.fetch.poll;
            }
            Err(Stop::Renew | Stop::Stopping) => return Duration::ZERO,
            // Asking for a token again costs nothing, and somebody may connect the mailbox any moment.
            Err(Stop::Token(failure)) => Failure { class: Class::Transient, ..failure },
            Err(Stop::Odoo(failure)) => failure,
            Err(Stop::Imap(failure)) => match self.lost(failure) {
                Some(failure) => failure,
                None => return Duration::ZERO,
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
        plan::back_off(&failure, self.failures)
    }

    /// Gives up the session. `None`: it had served, so a new one is tried at once, without a word.
    fn lost(&mut self, failure: Failure) -> Option<Failure> {
        let line = self.line.take();
        if let Some(line) = &line
            && failure.code == imap_replies::TOKEN_EXPIRED
        {
            self.tokens.refused(self.mailbox.address(), &line.token);
        }
        if failure.class == Class::Transient && line.is_some_and(|line| line.proven) {
            tracing::debug!(mailbox = %self.mailbox.address(), code = %failure.code, reply = %failure.reply, "session ended");
            return None;
        }
        let failure = imap_replies::persisting(failure, self.failures.saturating_add(1));
        self.mailbox.imap.fail(&failure, clock::now());
        Some(failure)
    }

    /// Looks the folder through once, and does what is to be done.
    async fn turn(&mut self, soft: &CancellationToken) -> Result<(), Stop> {
        let mut line = self.line(soft).await?;
        let looked = self.look(&mut line, soft).await;
        // Kept even if the turn failed: unless the session did, it serves on.
        line.proven = line.proven || looked.is_ok();
        self.line = Some(line);
        looked
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
            line = self.open() => line,
        }
    }

    /// Signs in; a token that is refused is replaced by a new one, once.
    async fn open(&self) -> Result<Line, Stop> {
        let address = self.mailbox.address();
        let microsoft = &self.mailbox.config.microsoft;
        let mut again = true;
        loop {
            let token = self.tokens.access_token(address).await.map_err(Stop::Token)?;
            match Session::open(&microsoft.imap, self.tls.clone(), address, token.secret()).await {
                Ok(session) => {
                    return Ok(Line { session, token, proven: false });
                }
                Err(failure) if again && failure.code == imap_replies::LOGIN_REFUSED => {
                    self.tokens.refused(address, &token);
                    again = false;
                }
                Err(failure) => return Err(Stop::Imap(failure)),
            }
        }
    }

    async fn look(&mut self, line: &mut Line, soft: &CancellationToken) -> Result<(), Stop> {
        let mailbox = self.mailbox.clone();
        let (address, folder) = (mailbox.address(), mailbox.config.folder.as_str());
        let selected = line.session.select(folder).await?;
        let known = self.store.mark(address, folder).await?;
        let look = Look::new(known, selected);
        let found = line.session.search(&look.search()).await?;
        let (mark, uids) = look.enter(selected, found);
        let now = clock::now();
        let noted = self.noted_at.is_some_and(|at| now.duration_since(at) < NOTE_EVERY);
        if !noted || !uids.is_empty() || known != Some(mark) {
            self.store.found(address, folder, mark, uids, now).await?;
            self.noted_at = Some(now);
        }
        if !self.unmarked {
            mailbox.imap.well();
        }
        self.work_off(line, selected.uidvalidity, soft).await
    }

    /// Does everything that the ledger says is to be done now.
    async fn work_off(
        &mut self,
        line: &mut Line,
        uidvalidity: u32,
        soft: &CancellationToken,
    ) -> Result<(), Stop> {
        let mailbox = self.mailbox.clone();
        let (address, folder) = (mailbox.address(), mailbox.config.folder.as_str());
        loop {
            let batch = self.store.to_push(address, folder, uidvalidity, clock::now(), BATCH).await?;
            if self.gateway.trouble().is_some() && (self.waits_for_odoo || !batch.is_empty()) {
                // A small question first: a message is only booked when somebody is there to take it.
                self.gateway.sign_in().await.map_err(Stop::Odoo)?;
                if batch.is_empty() {
                    self.gateway.well();
                }
            }
            if batch.is_empty() {
                return Ok(());
            }
            for row in batch {
                if soft.is_cancelled() {
                    return Err(Stop::Stopping);
                }
                if line.expires_soon() {
                    return Err(Stop::Renew);
                }
                let mut message = InHand { inbox: self, session: &mut line.session, uidvalidity, row };
                Box::pin(message.bring(soft)).await?;
                line.proven = true;
            }
        }
    }
}
