//! Proof that the doubles do what the other tests take for granted: each one met by a raw client.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "test code: a failure must stop the test"
)]

mod dovecot;
mod entra;
mod imap;
mod odoo;
mod relay;
mod smtp;
