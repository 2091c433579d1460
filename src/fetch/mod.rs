//! Fetch: watches the inboxes over IMAP and pushes what arrives into Odoo, each message once.

mod desk;
mod inbox;
mod incoming;
mod line;
mod look;
pub mod plan;
mod prune;
mod room;
mod round;

pub use inbox::Inbox;
pub use room::Room;

use crate::section::Section;
use serde::Deserialize;
use std::time::Duration;

/// The `[fetch]` section; a mailbox may override it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// How often an inbox is looked through where the server does not tell of new messages by itself.
    pub poll: Duration,
    /// How long one IDLE (RFC 2177) lasts; then the inbox is looked through.
    pub idle: Duration,
    /// What becomes of a message that Odoo has.
    pub after: After,
    /// The folder for [`After::Move`].
    pub after_folder: Option<String>,
    /// Where a message is moved that Odoo refuses for good; `None`: it stays unread in the inbox.
    pub quarantine_folder: Option<String>,
    /// Messages of one sender, within two hours, that may begin a record in Odoo; 0: any number.
    pub new_per_sender: u32,
}

/// What becomes of a message in the mailbox once Odoo has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum After {
    /// It is marked as read.
    Seen,
    /// It is marked as read, and moved to another folder.
    Move,
    /// It is deleted.
    Delete,
    /// Nothing: only the ledger knows.
    None,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            poll: Duration::from_secs(60),
            idle: Duration::from_secs(8 * 60),
            after: After::Seen,
            after_folder: None,
            quarantine_folder: None,
            new_per_sender: 15,
        }
    }
}

impl Config {
    /// Reads what a section says of it over what holds otherwise.
    pub fn read(section: &mut Section<'_>, otherwise: &Self) -> Self {
        let range = Duration::from_millis(100)..Duration::from_secs(24 * 3600 + 1);
        // Exchange ends sessions that say nothing for long; others forget them after ten minutes already.
        let idle = Duration::from_millis(100)..Duration::from_secs(9 * 60 + 1);
        let read = Self {
            poll: section.duration("poll", otherwise.poll, range),
            idle: section.duration("idle", otherwise.idle, idle),
            after: section.get_or("after", otherwise.after),
            after_folder: section.get("after_folder").or_else(|| otherwise.after_folder.clone()),
            quarantine_folder: section
                .get("quarantine_folder")
                .or_else(|| otherwise.quarantine_folder.clone()),
            new_per_sender: section.number("new_per_sender", otherwise.new_per_sender, 0..=100_000),
        };
        for (key, folder) in
            [("after_folder", &read.after_folder), ("quarantine_folder", &read.quarantine_folder)]
        {
            if folder.as_ref().is_some_and(String::is_empty) {
                section.mistake(key, "is empty: name an IMAP folder, for example \"INBOX/Odoo\"");
            }
        }
        read
    }

    /// Checks it against the folder that is watched.
    pub(crate) fn check(&self, section: &Section<'_>, folder: &str) {
        if self.after == After::Move && self.after_folder.is_none() {
            section.mistake("after", "is \"move\", but after_folder does not say where to");
        }
        let same = |other: &Option<String>| {
            other.as_deref().is_some_and(|other| {
                other == folder
                    || (other.eq_ignore_ascii_case("INBOX") && folder.eq_ignore_ascii_case("INBOX"))
            })
        };
        for (key, other) in
            [("after_folder", &self.after_folder), ("quarantine_folder", &self.quarantine_folder)]
        {
            if same(other) {
                section.mistake(key, "is the folder that is watched: name another one");
            }
        }
    }
}
