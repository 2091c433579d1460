//! Delivery: a worker per mailbox takes what is due from the store and submits it to Microsoft 365.

pub mod policy;

use crate::section::Section;
use std::time::Duration;

/// The `[delivery]` section; a mailbox may override each of its keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// SMTP connections at the same time, per mailbox. Exchange Online takes 3 and answers 432 above that.
    pub connections: u32,
    /// Messages a minute, per mailbox; 0: no pacing. Exchange Online takes 30.
    pub messages_per_minute: u32,
    /// How long a message is tried before it is given up.
    pub retry_for: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            connections: 2,
            messages_per_minute: 30,
            retry_for: Duration::from_secs(2 * 24 * 3600),
        }
    }
}

impl Config {
    /// Reads what a section says of it over what holds otherwise.
    pub fn read(section: &mut Section<'_>, otherwise: &Self) -> Self {
        let retry_for = Duration::from_secs(1)..Duration::from_secs(30 * 24 * 3600 + 1);
        Self {
            connections: section.number("connections", otherwise.connections, 1..=100),
            messages_per_minute: section.number(
                "messages_per_minute",
                otherwise.messages_per_minute,
                0..=1_000_000,
            ),
            retry_for: section.duration("retry_for", otherwise.retry_for, retry_for),
        }
    }
}
