//! An inbox's connection to the server, and why work over it ends.

use crate::clock;
use crate::failure::Failure;
use crate::imap::{self, Capabilities, Session};
use crate::mailbox::Mailbox;
use crate::microsoft::imap_replies;
use crate::store;
use crate::tokens::{AccessToken, Tokens};
use jiff::SignedDuration;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio_rustls::rustls::ClientConfig;

/// How long a session may go on being used before its token expires.
const TOKEN_MARGIN: SignedDuration = SignedDuration::from_mins(1);

/// A session that ends sooner served for nothing but a look.
const SHORT_LIFE: Duration = Duration::from_secs(30);

/// A session, and the token that it was opened with.
pub(super) struct Line {
    pub(super) session: Session,
    pub(super) token: AccessToken,
    pub(super) able: Capabilities,
    /// Whether it served for a whole look, or for a message. That such a session ends is usual; that a new one does is
    /// trouble.
    pub(super) proven: bool,
    /// Whether it served for a message.
    pub(super) useful: bool,
    pub(super) opened_at: Instant,
    /// Times in a row that the server ended an IDLE at once, without any news.
    pub(super) idles_ended: u32,
}

impl Line {
    /// Signs in; a token that is refused is replaced by a new one, once.
    pub(super) async fn open(
        mailbox: &Mailbox,
        tokens: &Tokens,
        tls: &Arc<ClientConfig>,
    ) -> Result<Self, Stop> {
        let address = mailbox.address();
        let endpoint = &mailbox.config.microsoft.imap;
        let mut again = true;
        loop {
            let token = tokens.access_token(address).await.map_err(Stop::Token)?;
            match Session::open(endpoint, tls.clone(), address, token.secret()).await {
                Ok(mut session) => {
                    let able = session.capabilities().await?;
                    let opened_at = Instant::now();
                    return Ok(Self {
                        session,
                        token,
                        able,
                        proven: false,
                        useful: false,
                        opened_at,
                        idles_ended: 0,
                    });
                }
                Err(failure) if again && failure.code == imap_replies::LOGIN_REFUSED => {
                    tokens.refused(address, &token);
                    again = false;
                }
                Err(failure) => return Err(Stop::Imap(failure)),
            }
        }
    }

    /// Whether it ended before it was of any use: a new one would do so as well.
    pub(super) fn is_short_lived(&self) -> bool {
        !self.useful && self.opened_at.elapsed() < SHORT_LIFE
    }

    /// Whether its token is about to expire. A new session is never asked: it could not have a better one.
    pub(super) fn expires_soon(&self) -> bool {
        self.proven && self.serves_for().is_zero()
    }

    /// How long it may still be used.
    pub(super) fn serves_for(&self) -> Duration {
        let left = self.token.expires_at.duration_since(clock::now()).saturating_sub(TOKEN_MARGIN);
        left.try_into().unwrap_or_default()
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
