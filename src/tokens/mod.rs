//! Access tokens, kept fresh. One [`Keeper`] for each mailbox is the only one that refreshes its token; everybody else
//! holds [`Tokens`], takes what the keeper published, or waits for it.
//!
//! Microsoft replaces the refresh token at every use. The new one is on disk before the access token that came with it
//! is handed out: losing a rotated token costs a mailbox its consent. Nothing here ever deletes one.

mod answer;
pub mod endpoint;
mod keeper;
pub mod schedule;

pub use keeper::Keeper;

use crate::address::Address;
use crate::clock;
use crate::failure::{Class, Failure};
use crate::mailbox::Mailbox;
use crate::microsoft::Grant;
use crate::store::{self, Store};
use jiff::Timestamp;
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;
use tokio::sync::{Notify, Semaphore, watch};
use tokio::time::Instant;

/// At most so many refreshes are under way at a time, over all mailboxes: a start with hundreds of them is no flood.
const MOST_IN_FLIGHT: usize = 8;
/// So long a caller waits for a token: two requests that time out after each other.
const MOST_PATIENCE: Duration = Duration::from_secs(60);
/// A token that came of a refusal is not refreshed because of another refusal for so long: then it is not the token.
const BETWEEN_REFUSALS: Duration = Duration::from_secs(60);

/// What a refresh brought serves whoever wants to know whether one succeeds, for so long after a success …
const NEWS_IF_WELL: Duration = Duration::from_secs(60);
/// … and for so long after a failure: somebody may just have mended its cause.
const NEWS_IF_NOT: Duration = Duration::from_secs(5);

/// An access token (RFC 6749 section 1.4) and until when it is good.
#[derive(Clone, Debug)]
pub struct AccessToken {
    secret: SecretString,
    /// When the service stops taking it.
    pub expires_at: Timestamp,
    /// From then on it is no longer handed out, so that whoever gets it has the time to use it.
    usable_until: Timestamp,
    /// Counts the mailbox's tokens: tells a refusal of this one from a late refusal of the one before.
    generation: u64,
    /// Whether it came of a refusal of the one before.
    forced: bool,
}

impl AccessToken {
    /// The token itself, for the XOAUTH2 response. Never to be logged.
    pub fn secret(&self) -> &str {
        self.secret.expose_secret()
    }
}

/// A mailbox's token, as `status` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenState {
    /// In one word.
    pub state: State,
    /// When the last access token expires or expired.
    pub expires_at: Option<Timestamp>,
    /// When it was got.
    pub refreshed_at: Option<Timestamp>,
    /// Why the last refresh failed; `None` once one succeeded.
    pub failure: Option<Failure>,
}

/// How a mailbox's token does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// There is a good one.
    Ok,
    /// The first one, or one in place of a refused one, is being got.
    Refreshing,
    /// The last refresh failed. Until `expires_at` the token before it goes on being used.
    Failed,
    /// Nobody connected the mailbox yet.
    Missing,
}

/// What a keeper and its mailbox's callers share.
#[derive(Debug)]
struct Slot {
    mailbox: Arc<Mailbox>,
    live: watch::Sender<Live>,
    /// Wakes the keeper, which then looks for itself whether there is something to do.
    wake: Notify,
}

/// What is published of a mailbox's token.
#[derive(Clone, Debug, Default)]
struct Live {
    token: Option<AccessToken>,
    /// The service refused `token`.
    refused: bool,
    /// Somebody waits for the first token.
    asked: bool,
    /// Somebody wants to know whether a refresh succeeds.
    pressed: bool,
    /// When the last refresh ended, well or not.
    tried_at: Option<Timestamp>,
    refreshed_at: Option<Timestamp>,
    /// A request is under way.
    refreshing: bool,
    /// Why the last refresh failed.
    failure: Option<Failure>,
    /// The newest consent seen in the store.
    consented_at: Option<Timestamp>,
    /// The keeper is gone.
    stopped: bool,
}

impl Live {
    fn usable(&self, now: Timestamp) -> Option<&AccessToken> {
        self.token.as_ref().filter(|token| !self.refused && now < token.usable_until)
    }

    /// Whether the outcome of the last refresh still is news. What the endpoint asked to wait for counts, too.
    fn is_news(&self, now: Timestamp) -> bool {
        let news = match &self.failure {
            Some(failure) => NEWS_IF_NOT.max(failure.retry_after.unwrap_or_default()),
            None if self.usable(now).is_some() => NEWS_IF_WELL,
            None => return false,
        };
        self.tried_at.is_some_and(|at| now < clock::after(at, news.min(schedule::MOST_RETRY_AFTER)))
    }
}

/// The access tokens of all mailboxes; clones share them.
#[derive(Clone, Debug)]
pub struct Tokens {
    slots: Arc<RwLock<HashMap<Address, Arc<Slot>>>>,
    in_flight: Arc<Semaphore>,
    store: Store,
}

impl Tokens {
    /// The tokens of the given mailboxes, and a keeper for each, which the daemon has to run. `http` is
    /// [`endpoint::http_client`]'s: one that follows redirects would carry a refresh token elsewhere.
    ///
    /// # Errors
    /// The store's: which consents there are has to be known, so that a later look at it finds only other ones new.
    pub async fn new(
        mailboxes: &[Arc<Mailbox>],
        store: Store,
        http: reqwest::Client,
    ) -> Result<(Self, Vec<Keeper>), store::Error> {
        let in_flight = Arc::new(Semaphore::new(MOST_IN_FLIGHT));
        let tokens = Self { slots: Arc::default(), in_flight, store };
        let keepers = tokens.add(mailboxes, &http).await?;
        Ok((tokens, keepers))
    }

    /// The tokens of further mailboxes, or of known ones whose configuration changed, and a keeper for each. It must not run
    /// before the one that it replaces has ended: two would use a refresh token twice.
    ///
    /// # Errors
    /// As [`Tokens::new`]; then nothing has changed.
    pub async fn add(
        &self,
        mailboxes: &[Arc<Mailbox>],
        http: &reqwest::Client,
    ) -> Result<Vec<Keeper>, store::Error> {
        let consents: HashMap<_, _> = self.store.consents().await?.into_iter().collect();
        let mut keepers = Vec::with_capacity(mailboxes.len());
        let mut slots = self.slots.write().unwrap_or_else(PoisonError::into_inner);
        for mailbox in mailboxes {
            let consented_at = consents.get(mailbox.address()).copied();
            let slot = Arc::new(Slot {
                mailbox: mailbox.clone(),
                live: watch::Sender::new(Live { consented_at, ..Live::default() }),
                wake: Notify::new(),
            });
            slots.insert(mailbox.address().clone(), slot.clone());
            let spread = schedule::spread(mailboxes.len(), rand::random());
            keepers.push(Keeper::new(slot, self.store.clone(), http.clone(), self.in_flight.clone(), spread));
        }
        Ok(keepers)
    }

    /// A mailbox left the configuration.
    pub fn remove(&self, mailbox: &Address) {
        self.slots.write().unwrap_or_else(PoisonError::into_inner).remove(mailbox);
    }

    /// A token that is good for another minute at least (where it lives for less than six: a sixth of its life). Waits
    /// while a refresh is under way, a minute at most; between the tries of a refresh that fails, says so at once.
    ///
    /// # Errors
    /// Why there is no good token. The failures are [`Class::Transient`], [`Class::Consent`] or
    /// [`Class::Administrator`]; none of them is the message's.
    pub async fn access_token(&self, mailbox: &Address) -> Result<AccessToken, Failure> {
        let slot = self.slot(mailbox)?;
        let deadline = Instant::now() + MOST_PATIENCE;
        let mut live = slot.live.subscribe();
        loop {
            {
                let live = live.borrow_and_update();
                if let Some(token) = live.usable(clock::now()) {
                    return Ok(token.clone());
                }
                if let Some(failure) = live.failure.as_ref().filter(|_| !live.refreshing) {
                    return Err(failure.clone());
                }
                if live.stopped {
                    return Err(stopping());
                }
            }
            slot.live.send_if_modified(|live| {
                live.asked = true;
                false
            });
            slot.wake.notify_one();
            if !matches!(tokio::time::timeout_at(deadline, live.changed()).await, Ok(Ok(()))) {
                return Err(late());
            }
        }
    }

    /// Refreshes now, whatever the schedule says: tells whether that succeeds. Where it was done just now (a minute
    /// ago; five seconds, if it failed), or is under way, that outcome serves. Waits a minute at most.
    ///
    /// # Errors
    /// Why there is no new token, as [`Tokens::access_token`]. The one before may be good still: [`Tokens::usable`].
    pub async fn renew(&self, mailbox: &Address) -> Result<AccessToken, Failure> {
        let slot = self.slot(mailbox)?;
        let deadline = Instant::now() + MOST_PATIENCE;
        let mut live = slot.live.subscribe();
        slot.live.send_if_modified(|live| {
            live.pressed |= !live.refreshing && !live.is_news(clock::now());
            false
        });
        slot.wake.notify_one();
        loop {
            {
                let live = live.borrow_and_update();
                if !live.refreshing && !live.pressed {
                    if let Some(failure) = &live.failure {
                        return Err(failure.clone());
                    }
                    if let Some(token) = live.usable(clock::now()) {
                        return Ok(token.clone());
                    }
                }
                if live.stopped {
                    return Err(stopping());
                }
            }
            if !matches!(tokio::time::timeout_at(deadline, live.changed()).await, Ok(Ok(()))) {
                return Err(late());
            }
        }
    }

    /// The token at hand, if it is good.
    pub fn usable(&self, mailbox: &Address) -> Option<AccessToken> {
        self.find(mailbox)?.live.borrow().usable(clock::now()).cloned()
    }

    fn find(&self, mailbox: &Address) -> Option<Arc<Slot>> {
        self.slots.read().unwrap_or_else(PoisonError::into_inner).get(mailbox).cloned()
    }

    fn slot(&self, mailbox: &Address) -> Result<Arc<Slot>, Failure> {
        self.find(mailbox).ok_or_else(|| {
            let reply = format!("{mailbox} is no mailbox of this relay");
            let advice = format!("add a [[mailbox]] with address = \"{mailbox}\" to the configuration");
            Failure::new(Class::Administrator, "unknown_mailbox", reply).advise(advice)
        })
    }

    /// The service refused this token: gets another one, unless a newer one is there already. Call
    /// [`Tokens::access_token`] again afterwards. Where the new one is refused as well within a minute, it is not the
    /// token that is wrong, and nothing happens.
    pub fn refused(&self, mailbox: &Address, token: &AccessToken) {
        let Some(slot) = self.find(mailbox) else {
            return;
        };
        let now = clock::now();
        let marked = slot.live.send_if_modified(|live| {
            let is_current =
                live.token.as_ref().is_some_and(|current| current.generation == token.generation);
            let just_forced =
                token.forced && live.refreshed_at.is_some_and(|at| now < clock::after(at, BETWEEN_REFUSALS));
            let marks = is_current && !live.refused && !just_forced;
            live.refused |= marks;
            marks
        });
        if marked {
            slot.wake.notify_one();
        }
    }

    /// Reads the consents from the store again: somebody connected a mailbox. A newer one is used at once, whatever
    /// the mailbox waits for. Returns whether there is one.
    ///
    /// # Errors
    /// The store's.
    pub async fn reload(&self) -> Result<bool, store::Error> {
        let mut any = false;
        for (mailbox, consented_at) in self.store.consents().await? {
            let Some(slot) = self.find(&mailbox) else {
                continue;
            };
            if slot.mailbox.config.microsoft.grant != Grant::RefreshToken {
                continue;
            }
            let newer = slot.live.send_if_modified(|live| {
                let newer = live.consented_at < Some(consented_at);
                if newer {
                    live.consented_at = Some(consented_at);
                    // It was the failure of the consent before: callers now wait for what comes of this one.
                    live.failure = None;
                }
                newer
            });
            if newer {
                any = true;
                slot.wake.notify_one();
            }
        }
        Ok(any)
    }

    /// How a mailbox's token does; `None`: no such mailbox.
    pub fn state(&self, mailbox: &Address) -> Option<TokenState> {
        let slot = self.find(mailbox)?;
        let live = slot.live.borrow();
        let state = match &live.failure {
            Some(failure) if failure.code == schedule::NO_TOKEN => State::Missing,
            Some(_) => State::Failed,
            None if live.usable(clock::now()).is_some() => State::Ok,
            None => State::Refreshing,
        };
        Some(TokenState {
            state,
            expires_at: live.token.as_ref().map(|token| token.expires_at),
            refreshed_at: live.refreshed_at,
            failure: live.failure.clone(),
        })
    }
}

fn stopping() -> Failure {
    Failure::new(Class::Transient, "stopping", "the relay is shutting down")
}

fn late() -> Failure {
    let reply = "no access token came within a minute: the refresh still is under way";
    Failure::new(Class::Transient, "timeout", reply)
}

#[cfg(test)]
mod bed;
#[cfg(test)]
mod endpoint_tests;
#[cfg(test)]
mod scripted;
#[cfg(test)]
mod soak;
#[cfg(test)]
mod tests;
