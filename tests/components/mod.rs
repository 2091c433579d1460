//! Single parts of the library against the doubles.
#![allow(
    unreachable_pub,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "test code: a failure here must stop the test"
)]

mod gateway;
mod imap_session;
mod inbox;
mod once;
mod same_parts;
mod strain;
mod watch;
mod world;
