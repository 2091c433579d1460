//! The outside world, played by doubles and real servers: Microsoft's token endpoint, Exchange's SMTP and IMAP, Odoo's
//! mail gateway, a real Dovecot, and the relay itself as a process. Shared by the integration tests, the demonstration
//! and the benchmark. Nothing here uses the library: it stands on the other side of the wire.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "test code: each program uses a part, a failure here must stop the test, and doubles own a clock"
)]

pub mod browser;
pub mod client;
pub mod dovecot;
pub mod entra;
mod entra_session;
mod entra_sign_in;
pub mod events;
pub mod gauge;
pub mod http;
pub mod imap;
mod imap_commands;
mod imap_data;
mod imap_session;
pub mod json2;
pub mod notify;
pub mod odoo;
pub mod odoo_records;
pub mod relay;
pub mod script;
pub mod server;
pub mod smtp;
mod smtp_session;
pub mod store;
pub mod tls;
pub mod wait;
pub mod wire;
pub mod world;
pub mod xmlrpc;
