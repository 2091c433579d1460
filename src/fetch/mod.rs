//! Fetch: watches the inboxes over IMAP and pushes what arrives into Odoo, each message once.

mod in_hand;
mod inbox;
mod incoming;
pub mod plan;

pub use inbox::Inbox;

use crate::section::Section;
use std::time::Duration;

/// The `[fetch]` section; a mailbox may override it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// How often an inbox is looked through.
    pub poll: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self { poll: Duration::from_secs(60) }
    }
}

impl Config {
    /// Reads what a section says of it over what holds otherwise.
    pub fn read(section: &mut Section<'_>, otherwise: &Self) -> Self {
        let range = Duration::from_millis(100)..Duration::from_secs(24 * 3600 + 1);
        Self { poll: section.duration("poll", otherwise.poll, range) }
    }
}
