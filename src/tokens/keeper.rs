//! The keeper of a mailbox's token: the only one that refreshes it, so that a refresh token is never used twice at a time.

use super::{AccessToken, Slot, endpoint, schedule};
use crate::clock;
use crate::failure::{Class, Failure, chain};
use crate::health::patiently;
use crate::mailbox::Mailbox;
use crate::microsoft::Grant;
use crate::microsoft::token_errors::Verdict;
use crate::store::{self, Store, StoredToken};
use jiff::Timestamp;
use oauth2::TokenResponse;
use schedule::Doubt;
use secrecy::SecretString;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// A keeper looks at least this often whether its token is still good: the machine may have slept.
const LOOK_EVERY: Duration = Duration::from_secs(60);

/// Keeps one mailbox's token fresh. Callers of [`super::Tokens`] get tokens only while it runs.
#[derive(Debug)]
pub struct Keeper {
    slot: Arc<Slot>,
    store: Store,
    http: reqwest::Client,
    pub(super) in_flight: Arc<Semaphore>,
    /// When it is time for the next attempt, if nothing calls for it before.
    due: Instant,
    /// Failures in a row.
    tries: u32,
    doubt: Doubt,
    /// The newest consent that was tried, or was there at the start: that one waits for its turn, `due`.
    tried_consent: Option<Timestamp>,
    generation: u64,
    /// Got, but not on disk yet: the disk failed. Not handed out, and not lost while the relay runs.
    unkept: Option<Fresh>,
}

/// What a refresh brought.
#[derive(Debug)]
struct Fresh {
    secret: SecretString,
    got_at: Timestamp,
    lifetime: Duration,
    /// What has to be on disk before the access token may be used; app-only tokens have nothing to keep.
    keep: Option<StoredToken>,
    rotated: bool,
}

impl Keeper {
    pub(super) fn new(
        slot: Arc<Slot>,
        store: Store,
        http: reqwest::Client,
        in_flight: Arc<Semaphore>,
        spread: Duration,
    ) -> Self {
        let tried_consent = slot.live.borrow().consented_at;
        Self {
            slot,
            store,
            http,
            in_flight,
            due: Instant::now() + spread,
            tries: 0,
            doubt: Doubt::default(),
            tried_consent,
            generation: 0,
            unkept: None,
        }
    }

    /// Whose token it keeps.
    pub fn mailbox(&self) -> &Arc<Mailbox> {
        &self.slot.mailbox
    }

    /// Keeps the token fresh until `soft` is cancelled. A refresh under way goes on to its commit first.
    pub async fn run(mut self, soft: CancellationToken) {
        let in_flight = self.in_flight.clone();
        loop {
            while !self.is_time() {
                let look_at = self.due.min(Instant::now() + LOOK_EVERY);
                tokio::select! {
                    biased;
                    () = soft.cancelled() => return,
                    () = self.slot.wake.notified() => {}
                    () = tokio::time::sleep_until(look_at) => {}
                }
            }
            let permit = tokio::select! {
                biased;
                () = soft.cancelled() => return,
                permit = patiently(in_flight.acquire()) => permit,
            };
            self.slot.live.send_modify(|live| live.refreshing = true);
            let outcome = Box::pin(self.refresh()).await;
            drop(permit);
            let wait = self.publish(outcome);
            self.due = Instant::now() + wait;
        }
    }

    /// Whether to refresh now: by the schedule, for a new consent, to see whether it succeeds, or because there is no good token and somebody wants
    /// one. After a failure that last reason has to wait: the back-off holds.
    fn is_time(&self) -> bool {
        let live = self.slot.live.borrow();
        let wanted = (live.asked || live.token.is_some()) && live.usable(clock::now()).is_none();
        Instant::now() >= self.due
            || live.consented_at > self.tried_consent
            || live.pressed
            || (wanted && live.failure.is_none())
    }

    /// Gets a token and keeps what has to be kept.
    async fn refresh(&mut self) -> Result<Fresh, Verdict> {
        let newest = self.slot.live.borrow().consented_at;
        if newest > self.tried_consent {
            self.tried_consent = newest;
            self.unkept = None;
            self.tries = 0;
            self.doubt = Doubt::default();
        }
        let fresh = match self.unkept.take() {
            Some(fresh) => fresh,
            None => self.ask().await?,
        };
        if let Some(token) = &fresh.keep
            && let Err(error) = self.store.keep_token(self.mailbox().address(), token.clone()).await
        {
            let failure = store_failure(&error);
            self.unkept = Some(fresh);
            return Err(failure.into());
        }
        Ok(fresh)
    }

    /// Asks the token endpoint.
    async fn ask(&mut self) -> Result<Fresh, Verdict> {
        let mailbox = self.mailbox().clone();
        let config = &mailbox.config.microsoft;
        let stored = match config.grant {
            Grant::ClientCredentials => None,
            Grant::RefreshToken => {
                let stored = self.store.token(mailbox.address()).await;
                let stored = stored.map_err(|error| store_failure(&error))?;
                let stored = checked(stored, &mailbox)?;
                self.tried_consent = self.tried_consent.max(Some(stored.consented_at));
                // So that a look at an unchanged store finds nothing new.
                self.slot
                    .live
                    .send_modify(|live| live.consented_at = live.consented_at.max(self.tried_consent));
                Some(stored)
            }
        };
        // The lifetime counts from before the answer was on its way.
        let got_at = clock::now();
        let refresh_token = stored.as_ref().map(|stored| &stored.refresh_token);
        let answer = endpoint::request(config, refresh_token, &self.http, mailbox.address().as_str()).await?;
        // Without a new refresh token the old one stays good (RFC 6749 section 6).
        let rotated = answer.refresh_token().map(|token| SecretString::from(token.secret().clone()));
        Ok(Fresh {
            secret: SecretString::from(answer.access_token().secret().clone()),
            got_at,
            lifetime: answer.lifetime(),
            rotated: stored.is_some() && rotated.is_some(),
            keep: stored.map(|stored| StoredToken {
                refresh_token: rotated.unwrap_or_else(|| stored.refresh_token.clone()),
                refreshed_at: Some(got_at),
                ..stored
            }),
        })
    }

    /// Hands the outcome out; returns how long to wait until the next attempt.
    fn publish(&mut self, outcome: Result<Fresh, Verdict>) -> Duration {
        let mailbox = self.mailbox().clone();
        let now = clock::now();
        match outcome {
            Ok(fresh) => {
                self.tries = 0;
                self.doubt = Doubt::default();
                self.generation = self.generation.wrapping_add(1);
                let expires_at = clock::after(fresh.got_at, fresh.lifetime);
                tracing::info!(mailbox = %mailbox.address(), expires_at = %clock::to_second(expires_at), rotated = fresh.rotated, "token refreshed");
                mailbox.token.well();
                let usable_until = schedule::usable_until(fresh.got_at, fresh.lifetime);
                let generation = self.generation;
                self.slot.live.send_modify(|live| {
                    live.token = Some(AccessToken {
                        secret: fresh.secret,
                        expires_at,
                        usable_until,
                        generation,
                        forced: live.refused,
                    });
                    live.refused = false;
                    live.asked = false;
                    live.pressed = false;
                    live.refreshing = false;
                    live.tried_at = Some(now);
                    live.refreshed_at = Some(now);
                    live.failure = None;
                });
                let next = schedule::next_refresh(fresh.got_at, fresh.lifetime, rand::random());
                clock::until(now, next)
            }
            Err(verdict) => {
                self.tries = self.tries.saturating_add(1);
                let failure = self.doubt.weigh(verdict, now);
                mailbox.token.fail(&failure, now);
                let wait = schedule::retry_in(&failure, self.tries, rand::random());
                self.slot.live.send_modify(|live| {
                    live.pressed = false;
                    live.refreshing = false;
                    live.tried_at = Some(now);
                    live.failure = Some(failure);
                });
                wait
            }
        }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        // Nobody shall wait for a token that nobody gets.
        self.slot.live.send_modify(|live| {
            live.stopped = true;
            live.refreshing = false;
        });
    }
}

/// The stored token, if it may be sent: there is one, and the app and tenant that it was given to are still those of the
/// configuration. Elsewhere it would be refused as a malformed grant, and it is none of another app's business.
fn checked(stored: Option<StoredToken>, mailbox: &Mailbox) -> Result<StoredToken, Failure> {
    let address = mailbox.address();
    let Some(stored) = stored else {
        let reply = format!("nobody has connected {address} yet: the store holds no refresh token of it");
        let advice = format!("run `outlook-relay connect {address}`");
        return Err(Failure::new(Class::Consent, schedule::NO_TOKEN, reply).advise(advice));
    };
    let config = &mailbox.config.microsoft;
    let same_tenant = stored.tenant.eq_ignore_ascii_case(&config.tenant);
    if same_tenant && stored.client_id.eq_ignore_ascii_case(&config.client_id) {
        return Ok(stored);
    }
    let reply = format!(
        "the stored refresh token was given to app {} in tenant {}, the configuration now names app {} in tenant {}",
        stored.client_id, stored.tenant, config.client_id, config.tenant
    );
    let advice = format!(
        "set client_id and tenant back, or run `outlook-relay connect {address}` to consent to the configured app"
    );
    Err(Failure::new(Class::Administrator, "other_app", reply).advise(advice))
}

/// The store's trouble, in the words of a mailbox's.
fn store_failure(error: &store::Error) -> Failure {
    if let store::Error::Sealed { mailbox, .. } = error {
        let advice = format!(
            "put the store's key back from a backup and restart, or run `outlook-relay connect {mailbox}`; nothing was deleted"
        );
        return Failure::new(Class::Administrator, "sealed", chain(error)).advise(advice);
    }
    Failure::new(Class::Transient, "store", chain(error)).advise(
        "check the disk of the store: a token that cannot be kept is not used, since losing it would cost the consent",
    )
}

#[cfg(test)]
mod tests {
    use super::super::Tokens;
    use super::super::bed::{CONSENT, address, http, mailbox, store, stored};
    use super::super::scripted::Endpoint;
    use super::*;

    /// The first token kept changes the store, and so makes the daemon look for new consents while most keepers still
    /// wait for their turn.
    #[tokio::test]
    async fn a_look_at_the_store_leaves_each_first_refresh_to_its_turn() {
        let endpoint = Endpoint::start().await;
        let folder = tempfile::tempdir().unwrap();
        let (store, writer) = store(folder.path(), None).await;
        tokio::spawn(writer.run());
        let names: Vec<_> = (0..100).map(|number| address(&format!("m{number}@contoso.com"))).collect();
        for name in &names {
            store.keep_token(name, stored("refresh-0-secret", CONSENT)).await.unwrap();
        }
        let mailboxes: Vec<_> = names.iter().map(|name| mailbox(name.as_str(), &endpoint, |_| ())).collect();
        let (tokens, mut keepers) = Tokens::new(&mailboxes, store.clone(), http()).await.unwrap();
        tokens.reload().await.unwrap();
        let early = |keeper: &&Keeper| keeper.is_time() && Instant::now() < keeper.due;
        assert_eq!(keepers.iter().filter(early).count(), 0);

        // Another consent is used at once.
        keepers.iter_mut().for_each(|keeper| keeper.due += Duration::from_secs(3600));
        store.keep_token(&names[7], stored("refresh-new-secret", CONSENT + 1)).await.unwrap();
        tokens.reload().await.unwrap();
        let woken: Vec<_> = keepers.iter().filter(early).map(|keeper| keeper.mailbox().address()).collect();
        assert_eq!(woken, [&names[7]]);
    }
}
