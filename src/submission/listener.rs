//! Lets clients in, as many as there is room for.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::budget::Budget;
use super::conversation::Shared;
use super::intake::Intake;
use super::limits::Limits;
use super::session::Offer;
use super::{Config, Exposed, is_loopback};
use crate::health::patiently;
use crate::message;

/// Why the server cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A socket does not know its own address.
    #[error("the address of a listening socket cannot be read")]
    Address(#[source] io::Error),
    /// A socket, perhaps handed over by systemd, can be reached by strangers.
    #[error(transparent)]
    Exposed(#[from] Exposed),
    /// A socket on which clients begin with TLS, and nothing to begin it with.
    #[error("a socket for TLS needs tls_certificate and tls_key in [submission]")]
    NoCertificate,
}

/// The bound sockets of the server.
#[derive(Default)]
pub struct Sockets {
    /// On these a client begins in clear, and may ask for STARTTLS.
    pub plain: Vec<TcpListener>,
    /// On these a client begins with TLS (RFC 8314 section 3.3).
    pub tls: Vec<TcpListener>,
}

/// The server, before it runs.
pub struct Listener {
    sockets: Sockets,
    terms: Terms,
}

/// What holds for the sessions that begin from now on; clones are the same. A session keeps what it began with.
#[derive(Clone)]
pub struct Terms {
    shared: Arc<watch::Sender<Arc<Shared>>>,
    /// Where the sockets are, and whether a client begins with TLS there.
    addresses: Arc<[(SocketAddr, bool)]>,
}

impl Terms {
    /// Whether the open sockets are safe under this configuration.
    ///
    /// # Errors
    /// As [`Listener::new`].
    pub fn check(&self, config: &Config) -> Result<(), Error> {
        check(config, &self.addresses)
    }

    /// Exchanges them. What has its limit unchanged goes on being counted together with the sessions there are.
    pub fn set(&self, config: &Config) {
        self.shared.send_modify(|shared| *shared = Arc::new(renew(shared, config, self.addresses.len())));
    }
}

fn check(config: &Config, addresses: &[(SocketAddr, bool)]) -> Result<(), Error> {
    if let Some((exposed, _)) = addresses.iter().find(|(address, _)| !config.may_listen(address)) {
        return Err(Exposed(*exposed).into());
    }
    if config.tls.is_none() && addresses.iter().any(|(_, tls)| *tls) {
        return Err(Error::NoCertificate);
    }
    Ok(())
}

impl Listener {
    /// A server on these sockets.
    ///
    /// # Errors
    /// A socket on which it would not be safe to listen; [`Config::read`] has looked at the addresses in the file, but
    /// sockets may also come from elsewhere.
    pub fn new(config: &Config, sockets: Sockets, intake: Intake) -> Result<Self, Error> {
        let plain = sockets.plain.iter().map(|listener| (listener, false));
        let tls = sockets.tls.iter().map(|listener| (listener, true));
        let addresses: Arc<[_]> = plain
            .chain(tls)
            .map(|(listener, tls)| Ok((listener.local_addr().map_err(Error::Address)?, tls)))
            .collect::<Result<_, Error>>()?;
        check(config, &addresses)?;
        let shared = share(config.clone(), addresses.len(), intake, CancellationToken::new());
        let shared = Arc::new(watch::Sender::new(Arc::new(shared)));
        Ok(Self { sockets, terms: Terms { shared, addresses } })
    }

    /// To exchange the configuration while it runs.
    pub fn terms(&self) -> Terms {
        self.terms.clone()
    }

    /// Serves until `stop` is cancelled and every session has ended; a session ends then as soon as the message in hand
    /// is stored and answered. Dropping this future ends all sessions at once: nothing that was answered with 250 is
    /// lost.
    pub async fn run(self, stop: CancellationToken) {
        let Self { sockets, terms } = self;
        let closing = terms.shared.borrow().stop.clone();
        let plain = sockets.plain.iter().map(|listener| (listener, false));
        let tls = sockets.tls.iter().map(|listener| (listener, true));
        let accepting =
            join_all(plain.chain(tls).map(|(listener, tls)| accept(listener, tls, terms.shared.subscribe())));
        tokio::join!(accepting, async {
            patiently(stop.cancelled()).await;
            closing.cancel();
        });
    }
}

pub(super) fn share(config: Config, sockets: usize, intake: Intake, stop: CancellationToken) -> Shared {
    Shared {
        offer: offer(&config),
        tls: config.tls.map(TlsAcceptor::from),
        budget: Budget::new(config.limits.memory),
        places: places(&config.limits, sockets),
        waiting: Arc::default(),
        clients: Arc::new(Clients::new(config.limits.sessions_per_client)),
        limits: config.limits,
        intake,
        stop,
    }
}

/// The same under another configuration.
fn renew(now: &Shared, config: &Config, sockets: usize) -> Shared {
    let limits = config.limits.clone();
    let (same_sessions, same_memory) =
        (limits.sessions == now.limits.sessions, limits.memory == now.limits.memory);
    let same_per_client = limits.sessions_per_client == now.limits.sessions_per_client;
    Shared {
        offer: offer(config),
        tls: config.tls.clone().map(TlsAcceptor::from),
        budget: if same_memory { now.budget.clone() } else { Budget::new(limits.memory) },
        places: if same_sessions { now.places.clone() } else { places(&limits, sockets) },
        waiting: if same_sessions { now.waiting.clone() } else { Arc::default() },
        clients: if same_per_client {
            now.clients.clone()
        } else {
            Arc::new(Clients::new(limits.sessions_per_client))
        },
        limits,
        intake: now.intake.clone(),
        stop: now.stop.clone(),
    }
}

fn offer(config: &Config) -> Arc<Offer> {
    Arc::new(Offer {
        host: message::HOST.to_owned(),
        max_message_size: config.max_message_size,
        max_recipients: config.limits.recipients,
        users: config.users.clone(),
        tls: config.tls.is_some(),
    })
}

fn places(limits: &Limits, sockets: usize) -> Arc<Semaphore> {
    // Each socket but one may hold a place for a client that has not come yet.
    let places = usize::try_from(limits.sessions)
        .unwrap_or(usize::MAX)
        .saturating_add(sockets.saturating_sub(1))
        .min(Semaphore::MAX_PERMITS);
    Arc::new(Semaphore::new(places))
}

/// Takes connections from one socket. `tls`: they begin with TLS.
async fn accept(listener: &TcpListener, tls: bool, mut terms: watch::Receiver<Arc<Shared>>) {
    let mut sessions = JoinSet::new();
    let mut in_trouble = false;
    loop {
        let shared = terms.borrow_and_update().clone();
        let next = async {
            // The place first: who finds none must not even be accepted.
            let place = match Arc::clone(&shared.places).try_acquire_owned() {
                Ok(place) => Ok(place),
                Err(_) => {
                    let _waiting = shared.waiting.wait();
                    Arc::clone(&shared.places).acquire_owned().await
                }
            };
            (place, listener.accept().await)
        };
        tokio::select! {
            biased;
            () = shared.stop.cancelled() => break,
            Ok(()) = terms.changed() => {}
            Some(ended) = sessions.join_next() => log_panic(ended),
            (place, accepted) = next => match accepted {
                Ok((stream, peer)) => {
                    in_trouble = false;
                    let shared = Arc::clone(&shared);
                    sessions.spawn(async move {
                        let _place = place;
                        shared.run(stream, tls, peer).await;
                    });
                }
                // Mostly too many open files; it ends when some session does.
                Err(error) => {
                    if !in_trouble {
                        let advice = "raise LimitNOFILE= of the unit, or look which client leaves its sessions open";
                        tracing::error!(%error, advice, "no connection can be accepted");
                        in_trouble = true;
                    }
                    sleep(Duration::from_millis(100)).await;
                }
            },
        }
    }
    while let Some(ended) = patiently(sessions.join_next()).await {
        log_panic(ended);
    }
}

fn log_panic(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended {
        tracing::error!(task = "session", %error, advice = crate::logging::DEFECT, "task failed");
    }
}

/// Counts the sessions of each address. This machine's own are not counted: Odoo with all its workers is one address.
pub(super) struct Clients {
    most: u32,
    sessions: Mutex<HashMap<IpAddr, u32>>,
}

/// A client let in, until dropped.
pub(super) struct Entered<'c> {
    clients: &'c Clients,
    address: Option<IpAddr>,
}

impl Clients {
    fn new(most: u32) -> Self {
        Self { most, sessions: Mutex::default() }
    }

    /// Lets a client in. `None`: it has too many sessions already.
    pub(super) fn enter(&self, peer: &SocketAddr) -> Option<Entered<'_>> {
        if is_loopback(peer) {
            return Some(Entered { clients: self, address: None });
        }
        let address = peer.ip().to_canonical();
        let mut sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        let count = sessions.entry(address).or_default();
        if *count >= self.most {
            return None;
        }
        *count += 1;
        Some(Entered { clients: self, address: Some(address) })
    }
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        let Some(address) = self.address else { return };
        let mut sessions = self.clients.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = sessions.get_mut(&address) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                sessions.remove(&address);
            }
        }
    }
}

#[cfg(test)]
#[path = "listener_tests.rs"]
pub(super) mod tests;

#[cfg(test)]
#[path = "listener_tls_tests.rs"]
mod tls_tests;

#[cfg(test)]
#[path = "listener_limits_tests.rs"]
mod limits_tests;
