//! What people and monitoring ask the running daemon over HTTP, on loopback: its status, and whether it is healthy.

use crate::section::Section;
use std::net::{Ipv4Addr, SocketAddr};

/// The `[admin]` section.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Where it listens.
    pub listen: SocketAddr,
    /// Where browsers reach it.
    pub public_url: Option<String>,
}

impl Config {
    /// Reads `[admin]`.
    pub fn read(section: &mut Section<'_>) -> Self {
        let listen: SocketAddr = section.get_or("listen", SocketAddr::from((Ipv4Addr::LOCALHOST, 8025)));
        if !listen.ip().is_loopback() {
            section.mistake(
                "listen",
                "must be a loopback address, like \"127.0.0.1:8025\": the status is for this machine only",
            );
        }
        Self {
            listen,
            public_url: section.get("public_url"),
        }
    }
}
