//! Consent: a mailbox's owner signs in at Microsoft and lets the relay use the mailbox. What comes of it is a refresh
//! token, which is kept only if the right account signed in.
//!
//! In a browser by the authorization code flow (RFC 6749 section 4.1) with PKCE (RFC 7636, S256), for the page and for
//! `connect`; without one by the device flow ([`device`], RFC 8628). The refresh token is never used here: the mailbox's
//! keeper sees the new consent in the store and refreshes, whether it runs in this process or in another one.

mod account;
pub mod device;
pub mod invite;
pub mod loopback;
mod pending;

use crate::address::Address;
use crate::failure::{Class, Failure, chain};
use crate::mailbox::Mailbox;
use crate::microsoft::Grant;
use crate::store::{self, Store, StoredToken};
use crate::tokens::endpoint::{self, ErrorAnswer, Http, TokenAnswer};
use invite::InviteError;
use jiff::{SignedDuration, Timestamp};
use oauth2::{
    AuthUrl, AuthorizationCode, CsrfToken, PkceCodeChallenge, PkceCodeVerifier, RedirectUrl, Scope,
    TokenResponse,
};
use pending::{Pending, SignIn};
use secrecy::SecretString;
use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

/// The sign-ins of all mailboxes; clones share what is under way. It lies in memory alone: a restart ends it.
#[derive(Clone, Debug)]
pub struct Consents(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    mailboxes: HashMap<Address, Arc<Mailbox>>,
    store: Store,
    http: reqwest::Client,
    pending: Arc<Mutex<Pending>>,
}

/// What Microsoft sends the browser back with (RFC 6749 sections 4.1.2 and 4.1.2.1).
#[derive(Clone)]
pub enum Answer {
    /// `code`: the owner consented.
    Code(String),
    /// `error` and `error_description`.
    Refused {
        /// RFC 6749's word.
        error: String,
        /// Microsoft's words; empty where there are none.
        description: String,
    },
}

impl std::fmt::Debug for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Code(_) => f.write_str("Code([redacted])"),
            Self::Refused { error, .. } => write!(f, "Refused({error:?})"),
        }
    }
}

/// A mailbox that was connected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connected {
    /// Which one.
    pub mailbox: Address,
    /// Who signed in for it.
    pub account: String,
}

/// Why a sign-in did not connect a mailbox. Nothing was kept, and what was there before still is.
#[derive(Debug, thiserror::Error)]
pub enum ConsentError {
    /// It is not in the configuration.
    #[error(
        "{0} is no mailbox of this relay: add a [[mailbox]] with this address to its configuration, or connect one \
         that is there"
    )]
    UnknownMailbox(Address),
    /// `grant = "client_credentials"`.
    #[error("{0} signs in as the app itself (grant = \"client_credentials\"): nobody has to consent for it")]
    AppOnly(Address),
    /// No such sign-in is under way.
    #[error(
        "this sign-in is not known here: it was finished before, or the relay was restarted since; begin it anew"
    )]
    UnknownState,
    /// It was begun too long ago.
    #[error("this sign-in took longer than 10 minutes and no longer counts; begin it anew")]
    Expired,
    /// Another browser began it: somebody may have sent this one here with a sign-in of theirs.
    #[error(
        "this sign-in was begun in another browser, or the cookie of it is gone; begin it anew in this one"
    )]
    OtherSession,
    /// The owner, or a policy, said no.
    #[error("Microsoft did not let the relay use the mailbox: {0}")]
    Denied(Failure),
    /// Somebody else's token would open somebody else's mailbox, or none.
    #[error(
        "{signed_in} signed in at Microsoft, and {wanted} was expected: nothing was kept; sign in again and choose \
         {wanted} (\"Use another account\"), or, if {signed_in} is meant to sign in for this mailbox, set \
         sign_in_as = \"{signed_in}\" in its [[mailbox]]"
    )]
    WrongAccount {
        /// Who had to.
        wanted: Address,
        /// Who did.
        signed_in: String,
    },
    /// Microsoft's answer to the code.
    #[error("the sign-in could not be finished: {0}")]
    Failed(Failure),
    /// The consent could not be kept.
    #[error("the consent could not be kept: {}", chain(.0))]
    Store(#[from] store::Error),
}

impl ConsentError {
    /// One line in the log: who signs in may not be who looks after the relay.
    fn log(&self, mailbox: &Address) {
        match self {
            Self::Denied(failure) | Self::Failed(failure) => {
                let Failure { class, code, reply, advice, .. } = failure;
                tracing::warn!(%mailbox, %class, code, reply, advice, "sign-in failed");
            }
            other => tracing::warn!(%mailbox, reply = %other, "sign-in failed"),
        }
    }
}

impl Consents {
    /// The sign-ins of the given mailboxes. `http` is [`endpoint::http_client`]'s: one that follows redirects would carry
    /// a code elsewhere.
    pub fn new(mailboxes: &[Arc<Mailbox>], store: Store, http: reqwest::Client) -> Self {
        let mailboxes =
            mailboxes.iter().map(|mailbox| (mailbox.address().clone(), mailbox.clone())).collect();
        Self(Arc::new(Shared { mailboxes, store, http, pending: Arc::default() }))
    }

    /// The same sign-ins under way, for other mailboxes from now on.
    #[must_use]
    pub fn renew(&self, mailboxes: &[Arc<Mailbox>], http: reqwest::Client) -> Self {
        let mailboxes =
            mailboxes.iter().map(|mailbox| (mailbox.address().clone(), mailbox.clone())).collect();
        let Shared { store, pending, .. } = &*self.0;
        Self(Arc::new(Shared { mailboxes, store: store.clone(), http, pending: pending.clone() }))
    }

    /// Begins a sign-in: the address at Microsoft to send the browser to. `redirect_uri` is where Microsoft sends it
    /// back, and must be registered with the app; `session` is a random value that only this browser knows (its cookie),
    /// to which the sign-in is bound. It counts once, and for 10 minutes.
    ///
    /// # Errors
    /// A mailbox that is unknown or needs no consent, and a configuration that makes no address.
    pub fn begin(
        &self,
        mailbox: &Address,
        redirect_uri: &str,
        session: &str,
        now: Timestamp,
    ) -> Result<String, ConsentError> {
        let found = self.mailbox(mailbox)?;
        let config = &found.config.microsoft;
        let no_url = |what: &str| ConsentError::Failed(not_a_url(what));
        let authorize = config.authorization_endpoint();
        let authorize = AuthUrl::new(authorize.clone()).map_err(|_| no_url(&authorize))?;
        let redirect = RedirectUrl::new(redirect_uri.to_owned()).map_err(|_| no_url(redirect_uri))?;
        let client = endpoint::client(config).map_err(ConsentError::Failed)?.set_auth_uri(authorize);
        let (challenge, verifier) = PkceCodeChallenge::new_random_sha256();
        let (url, state) = client
            .authorize_url(|| CsrfToken::new_random_len(32))
            .add_scopes(scopes(&found))
            .set_pkce_challenge(challenge)
            .set_redirect_uri(Cow::Owned(redirect))
            .add_extra_param("response_mode", "query")
            // Without it the browser's one signed-in account is taken unasked, and often is the wrong one.
            .add_extra_param("prompt", "select_account")
            .add_extra_param("login_hint", found.config.expected_account().as_str())
            .url();
        let sign_in = SignIn {
            mailbox: mailbox.clone(),
            session: SecretString::from(session),
            verifier: SecretString::from(verifier.into_secret()),
            redirect_uri: redirect_uri.to_owned(),
            begun_at: now,
        };
        self.pending().insert(state.into_secret(), sign_in, now);
        Ok(url.into())
    }

    /// Ends a sign-in with what Microsoft sent back: exchanges the code, checks who signed in, and keeps the refresh
    /// token, which is on disk when this returns. Whatever comes of it, the same `state` does not count again.
    ///
    /// # Errors
    /// Why the mailbox was not connected.
    pub async fn finish(
        &self,
        state: &str,
        answer: Answer,
        session: &str,
        now: Timestamp,
    ) -> Result<Connected, ConsentError> {
        let sign_in = self.pending().take(state, session, now)?;
        let finished = self.exchange(&sign_in, answer, now).await;
        if let Err(error) = &finished {
            error.log(&sign_in.mailbox);
        }
        finished
    }

    /// Exchanges the code, and keeps what it brings.
    async fn exchange(
        &self,
        sign_in: &SignIn,
        answer: Answer,
        now: Timestamp,
    ) -> Result<Connected, ConsentError> {
        let found = self.mailbox(&sign_in.mailbox)?;
        let name = found.address().as_str();
        let code = match answer {
            Answer::Code(code) => code,
            Answer::Refused { error, description } => return Err(refused(&error, &description, name)),
        };
        let config = &found.config.microsoft;
        let client = endpoint::client(config).map_err(ConsentError::Failed)?;
        let redirect = RedirectUrl::new(sign_in.redirect_uri.clone())
            .map_err(|_| ConsentError::Failed(not_a_url(&sign_in.redirect_uri)))?;
        let verifier = {
            use secrecy::ExposeSecret;
            sign_in.verifier.expose_secret().to_owned()
        };
        let http = Http::new(self.0.http.clone(), config);
        let request = client
            .exchange_code(AuthorizationCode::new(code.clone()))
            .set_pkce_verifier(PkceCodeVerifier::new(verifier.clone()))
            .set_redirect_uri(Cow::Owned(redirect));
        let answer = request.request_async(&http).await.map_err(|error| {
            let secrets: Vec<&str> =
                [code.as_str(), &verifier].into_iter().chain(config.credential.secret()).collect();
            ConsentError::Failed(endpoint::verdict(error, &secrets, name).failure)
        })?;
        self.keep(&found, &answer, now).await
    }

    /// Whom an invitation's link is for.
    ///
    /// # Errors
    /// A link that is none of ours, that has expired, that was used or revoked, or whose mailbox is not configured.
    pub async fn invited(&self, token: &str, now: Timestamp) -> Result<Address, InviteError> {
        let mailbox = invite::accept(&self.0.store, token, now).await?;
        if self.0.mailboxes.contains_key(&mailbox) { Ok(mailbox) } else { Err(InviteError::Unknown(mailbox)) }
    }

    /// Keeps what a consent brought, if the right account gave it.
    async fn keep(
        &self,
        mailbox: &Mailbox,
        answer: &TokenAnswer,
        now: Timestamp,
    ) -> Result<Connected, ConsentError> {
        let config = &mailbox.config;
        let account = account::of(answer, &config.microsoft).map_err(ConsentError::Failed)?;
        let wanted = config.expected_account();
        if !account.is(wanted) {
            return Err(ConsentError::WrongAccount { wanted: wanted.clone(), signed_in: account.shown });
        }
        let Some(refresh_token) = answer.refresh_token() else {
            let reply = "Microsoft sent no refresh token";
            let failure = Failure::new(Class::Administrator, "no_refresh_token", reply).advise(
                "Entra admin center › App registrations › the app › API permissions: add offline_access, and check \
                 that no policy forbids it",
            );
            return Err(ConsentError::Failed(failure));
        };
        let refresh_token = SecretString::from(refresh_token.secret().clone());
        take_over(&self.0.store, mailbox, refresh_token, now).await?;
        let connected = Connected { mailbox: mailbox.address().clone(), account: account.shown };
        tracing::info!(mailbox = %connected.mailbox, account = %connected.account, "mailbox connected");
        // An invitation is for one consent. That the old links still open is no reason to fail: they expire.
        if let Err(error) = self.0.store.revoke_invites(mailbox.address()).await {
            tracing::warn!(mailbox = %connected.mailbox, error = %chain(&error), "invitations stay open");
        }
        Ok(connected)
    }

    fn mailbox(&self, address: &Address) -> Result<Arc<Mailbox>, ConsentError> {
        let found = self.0.mailboxes.get(address);
        let found = found.ok_or_else(|| ConsentError::UnknownMailbox(address.clone()))?;
        match found.config.microsoft.grant {
            Grant::RefreshToken => Ok(found.clone()),
            Grant::ClientCredentials => Err(ConsentError::AppOnly(address.clone())),
        }
    }

    fn pending(&self) -> std::sync::MutexGuard<'_, Pending> {
        self.0.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What it means that Microsoft sent the browser back without a code (RFC 6749 section 4.1.2.1): somebody said no, or
/// something is wrong that nobody who signs in can help.
fn refused(error: &str, description: &str, mailbox: &str) -> ConsentError {
    let answer = ErrorAnswer::from(serde_json::json!({"error": error, "error_description": description}));
    let failure = answer.verdict(mailbox).failure;
    if error == "access_denied" || failure.class == Class::Consent {
        ConsentError::Denied(failure)
    } else {
        ConsentError::Failed(failure)
    }
}

/// Keeps a refresh token as a new consent to the configured app, and tells when it counts from: later than the one before,
/// even if the clock went back, since the newer consent wins.
///
/// # Errors
/// The store's.
pub async fn take_over(
    store: &Store,
    mailbox: &Mailbox,
    refresh_token: SecretString,
    now: Timestamp,
) -> Result<Timestamp, store::Error> {
    // Not the token before: its key may be lost, which is what a new consent mends.
    let consents = store.consents().await?;
    let before = consents.into_iter().find(|(address, _)| address == mailbox.address());
    let after = before.and_then(|(_, before)| before.checked_add(SignedDuration::from_millis(1)).ok());
    let consented_at = after.map_or(now, |after| after.max(now));
    let microsoft = &mailbox.config.microsoft;
    let token = StoredToken {
        tenant: microsoft.tenant.clone(),
        client_id: microsoft.client_id.clone(),
        refresh_token,
        consented_at,
        refreshed_at: None,
    };
    store.keep_token(mailbox.address(), token).await?;
    Ok(consented_at)
}

/// What the relay asks for: mail, and besides who signed in (OpenID Connect Core, section 5.4).
fn scopes(mailbox: &Mailbox) -> impl Iterator<Item = Scope> {
    let identity = ["openid", "profile", "email"].map(str::to_owned);
    mailbox.config.microsoft.scopes().into_iter().chain(identity).map(Scope::new)
}

fn not_a_url(what: &str) -> Failure {
    Failure::new(Class::Administrator, "configuration", format!("{what} is no URL"))
        .advise("check authority and tenant in [microsoft], and public_url in [admin]")
}
