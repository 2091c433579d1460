//! Sockets that systemd hands over (sd_listen_fds(3)): the SMTP port stays open while the daemon restarts, so that Odoo, to
//! which a refused connection is a lost mail, only waits for a moment.

use anyhow::{Context, bail};
use listenfd::ListenFd;
use std::net::TcpListener;

/// The sockets for submission; both empty where systemd hands over none.
#[derive(Debug, Default)]
pub struct Inherited {
    /// On these a client begins in clear (`FileDescriptorName=submission`, and any other name but the next).
    pub plain: Vec<TcpListener>,
    /// On these a client begins with TLS (`FileDescriptorName=submission-tls`).
    pub tls: Vec<TcpListener>,
}

impl Inherited {
    /// Takes what was handed over to this process. Before any thread runs, since it clears the variables that say so.
    ///
    /// # Errors
    /// A descriptor that is no listening TCP socket.
    pub fn take() -> anyhow::Result<Self> {
        let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
        let mut names = names.split(':');
        let mut handed = ListenFd::from_env();
        let mut inherited = Self::default();
        for index in 0..handed.len() {
            let name = names.next().unwrap_or_default();
            let socket = handed.take_tcp_listener(index).with_context(|| {
                format!("socket {index} ({name:?}) of systemd is no TCP socket: use ListenStream= with address and port")
            })?;
            let Some(socket) = socket else {
                bail!("socket {index} ({name:?}) of systemd is already in use");
            };
            socket.set_nonblocking(true).with_context(|| format!("socket {index} ({name:?}) of systemd"))?;
            if name == "submission-tls" { &mut inherited.tls } else { &mut inherited.plain }.push(socket);
        }
        Ok(inherited)
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.plain.is_empty() && self.tls.is_empty()
    }
}
