//! The SMTP server that Odoo and any ordinary mail client speak to.
//!
//! [`listener`] lets clients in, `conversation` and `connection` move bytes within the `budget` of memory; [`session`],
//! [`data`] and [`chunks`] decide, without I/O; [`intake`] stores what was taken. A message is answered with 250 once it
//! is on disk, and not before.

pub mod auth;
mod budget;
pub mod chunks;
mod connection;
mod conversation;
pub mod data;
pub mod intake;
pub mod limits;
pub mod lines;
pub mod listener;
pub mod parameters;
pub mod path;
pub mod reply;
pub mod session;
pub mod users;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::{self, ServerConfig};

use crate::address::Address;
use crate::failure::chain;
use crate::section::Section;
use crate::units::Size;
use limits::Limits;
use users::User;

pub use intake::Intake;
pub use listener::{Listener, Sockets, Terms};

const DEFAULT_LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 2525);
/// Microsoft 365 takes 35 MB by default, and 150 MB where the administrator allows it.
const DEFAULT_MAX_MESSAGE_SIZE: Size = Size(35 << 20);
/// A message is held in memory and then in one row of the store, which takes 1 GB at most.
const LARGEST_MAX_MESSAGE_SIZE: u64 = 512 << 20;

/// The `[submission]` section.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where to listen, unless systemd hands over sockets.
    pub listen: Vec<SocketAddr>,
    /// Whether somebody wrote that, and expects it to hold.
    pub names_listen: bool,
    /// Where to listen for clients that begin with TLS (RFC 8314 section 3.3).
    pub listen_tls: Vec<SocketAddr>,
    /// The largest message, in octets.
    pub max_message_size: u64,
    /// Who may submit; empty: anyone on this machine.
    pub users: Vec<Arc<User>>,
    /// How much clients may take.
    pub limits: Limits,
    /// For `listen_tls` and STARTTLS; `None`: not offered.
    pub tls: Option<Arc<ServerConfig>>,
}

impl Config {
    /// Reads `[submission]`. `mailboxes`: those that a user may be bound to.
    pub fn read(section: &mut Section<'_>, mailboxes: &[Address]) -> Self {
        let has_certificate = section.has("tls_certificate");
        let config = Self {
            names_listen: section.has("listen"),
            listen: section.get_or("listen", vec![DEFAULT_LISTEN]),
            listen_tls: section.get_or("listen_tls", Vec::new()),
            max_message_size: max_message_size(section),
            users: users::read(section, mailboxes),
            limits: Limits::read(section),
            tls: tls(section),
        };
        if config.addresses().next().is_none() {
            section.mistake("listen", "is empty: name at least one address, like [\"127.0.0.1:2525\"]");
        }
        if !config.listen_tls.is_empty() && !has_certificate {
            section.mistake("listen_tls", "needs tls_certificate and tls_key");
        }
        for (key, before, addresses) in
            [("listen", 0, &config.listen), ("listen_tls", config.listen.len(), &config.listen_tls)]
        {
            let twice = |(at, address): (usize, &SocketAddr)| {
                config.addresses().take(before + at).any(|one| one == address)
            };
            if addresses.iter().enumerate().any(twice) {
                section.mistake(key, "names an address twice: keep one");
            }
            if let Some(exposed) = addresses.iter().find(|address| !config.may_listen(address)) {
                section.mistake(key, Exposed(*exposed).to_string());
            }
        }
        config
    }

    /// Every address to listen on, with TLS from the start or without.
    pub fn addresses(&self) -> impl Iterator<Item = &SocketAddr> {
        self.listen.iter().chain(&self.listen_tls)
    }

    /// Whether it is safe to listen there: on loopback, or with a password that only travels over TLS.
    fn may_listen(&self, address: &SocketAddr) -> bool {
        is_loopback(address) || (!self.users.is_empty() && self.tls.is_some())
    }
}

/// An address that others than this machine can reach, without the means to keep strangers out.
#[derive(Debug, thiserror::Error)]
#[error(
    "{0} can be reached from other machines, and whoever reaches it could send as any mailbox: listen on 127.0.0.1, or \
     set user, password_file, tls_certificate and tls_key"
)]
pub struct Exposed(pub SocketAddr);

/// Whether only this machine can be on the other side. An IPv4 address may come dressed as an IPv6 one.
fn is_loopback(address: &SocketAddr) -> bool {
    address.ip().to_canonical().is_loopback()
}

fn max_message_size(section: &mut Section<'_>) -> u64 {
    let Size(size) = section.get_or("max_message_size", DEFAULT_MAX_MESSAGE_SIZE);
    if (1..=LARGEST_MAX_MESSAGE_SIZE).contains(&size) {
        return size;
    }
    section.mistake("max_message_size", "is out of range: from 1 B to 512 MiB");
    DEFAULT_MAX_MESSAGE_SIZE.0
}

fn tls(section: &mut Section<'_>) -> Option<Arc<ServerConfig>> {
    let (has_certificate, has_key) = (section.has("tls_certificate"), section.has("tls_key"));
    let certificate = section.private_path("tls_certificate");
    let key = section.private_path("tls_key");
    if has_certificate != has_key {
        let (given, missing) =
            if has_key { ("tls_key", "tls_certificate") } else { ("tls_certificate", "tls_key") };
        section.mistake(given, format!("needs {missing} as well: TLS takes both, as PEM files"));
    }
    match server_tls(&certificate?, &key?) {
        Ok(tls) => Some(tls),
        Err((key, message)) => {
            section.mistake(key, message);
            None
        }
    }
}

/// The server side of TLS; on error, the key at fault and what is wrong with it.
fn server_tls(certificate: &Path, key: &Path) -> Result<Arc<ServerConfig>, (&'static str, String)> {
    let certificates = crate::tls::certificates(certificate)
        .map_err(|error| ("tls_certificate", format!("names {}", chain(&error))))?;
    let private = PrivateKeyDer::from_pem_file(key).map_err(|error| {
        ("tls_key", format!("names {}, which cannot be read as a PEM private key: {error}", key.display()))
    })?;
    let refused =
        |error: rustls::Error| ("tls_certificate", format!("and tls_key cannot be used together: {error}"));
    ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(refused)?
        .with_no_client_auth()
        .with_single_cert(certificates, private)
        .map(Arc::new)
        .map_err(refused)
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod config_tests;
