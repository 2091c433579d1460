//! Lets clients in, as many as there is room for.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::budget::{Budget, Pressure};
use super::conversation::Shared;
use super::intake::Intake;
use super::session::Offer;
use super::{Config, Exposed, is_loopback};
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
    config: Config,
    intake: Intake,
}

impl Listener {
    /// A server on these sockets.
    ///
    /// # Errors
    /// A socket on which it would not be safe to listen; [`Config::read`] has looked at the addresses in the file, but
    /// sockets may also come from elsewhere.
    pub fn new(config: &Config, sockets: Sockets, intake: Intake) -> Result<Self, Error> {
        for listener in sockets.plain.iter().chain(&sockets.tls) {
            let address = listener.local_addr().map_err(Error::Address)?;
            if !config.may_listen(&address) {
                return Err(Exposed(address).into());
            }
        }
        if config.tls.is_none() && !sockets.tls.is_empty() {
            return Err(Error::NoCertificate);
        }
        Ok(Self { sockets, config: config.clone(), intake })
    }

    /// Serves until `stop` is cancelled and every session has ended; a session ends then as soon as the message in hand
    /// is stored and answered. Dropping this future ends all sessions at once: nothing that was answered with 250 is
    /// lost.
    pub async fn run(self, stop: CancellationToken) {
        let Self { sockets, config, intake } = self;
        let shared = Arc::new(share(config, sockets.plain.len() + sockets.tls.len(), intake, stop));
        let plain = sockets.plain.iter().map(|listener| (listener, false));
        let tls = sockets.tls.iter().map(|listener| (listener, true));
        join_all(plain.chain(tls).map(|(listener, tls)| accept(listener, tls, &shared))).await;
    }
}

pub(super) fn share(config: Config, sockets: usize, intake: Intake, stop: CancellationToken) -> Shared {
    let offer = Offer {
        host: message::HOST.to_owned(),
        max_message_size: config.max_message_size,
        max_recipients: config.limits.recipients,
        users: config.users,
        tls: config.tls.is_some(),
    };
    // Each socket but one may hold a place for a client that has not come yet.
    let places = usize::try_from(config.limits.sessions)
        .unwrap_or(usize::MAX)
        .saturating_add(sockets.saturating_sub(1))
        .min(Semaphore::MAX_PERMITS);
    Shared {
        offer: Arc::new(offer),
        tls: config.tls.map(TlsAcceptor::from),
        budget: Budget::new(config.limits.memory),
        places: Arc::new(Semaphore::new(places)),
        waiting: Pressure::default(),
        clients: Clients::new(config.limits.sessions_per_client),
        limits: config.limits,
        intake,
        stop,
    }
}

/// Takes connections from one socket. `tls`: they begin with TLS.
async fn accept(listener: &TcpListener, tls: bool, shared: &Arc<Shared>) {
    let mut sessions = JoinSet::new();
    let mut in_trouble = false;
    loop {
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
            Some(ended) = sessions.join_next() => log_panic(ended),
            (place, accepted) = next => match accepted {
                Ok((stream, peer)) => {
                    in_trouble = false;
                    let shared = Arc::clone(shared);
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
    while let Some(ended) = sessions.join_next().await {
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
