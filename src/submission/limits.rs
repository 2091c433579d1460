//! How much a client, and all of them together, may take: the keys of `[submission]` that bound it.

use std::time::Duration;

use crate::section::Section;
use crate::units::Size;

/// The limits. What nobody would want to set is a constant beside its use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Sessions at the same time. Further connections wait in the system's backlog: a 421 would be a lost mail to Odoo.
    pub sessions: u32,
    /// Sessions of one address that is not this machine's own.
    pub sessions_per_client: u32,
    /// Recipients of one message.
    pub recipients: u32,
    /// Octets of messages held in memory, over all sessions. One message may go past it.
    pub memory: u64,
    /// How long a client may take for its next line, or its next piece of a message (RFC 5321 section 4.5.3.2.7).
    pub idle: Duration,
    /// How long a client may take for one whole message; what it waits for the relay does not count.
    pub message: Duration,
    /// How long a session may last; the message in hand may still be finished.
    pub session: Duration,
    /// How long a client may pause while others wait for its place, or for the memory that its message holds. No key:
    /// it stays below the 60 seconds after which Odoo gives up.
    pub stalled: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            sessions: 500,
            sessions_per_client: 100,
            recipients: 1_000,
            memory: 256 << 20,
            idle: Duration::from_secs(5 * 60),
            message: Duration::from_secs(10 * 60),
            session: Duration::from_secs(4 * 3_600),
            stalled: Duration::from_secs(10),
        }
    }
}

impl Limits {
    /// Reads them from `[submission]`.
    pub(super) fn read(section: &mut Section<'_>) -> Self {
        const SECOND: Duration = Duration::from_secs(1);
        const DAY: Duration = Duration::from_secs(24 * 3_600);
        let default = Self::default();
        Self {
            sessions: section.number("max_sessions", default.sessions, 1..=10_000),
            sessions_per_client: section.number(
                "max_sessions_per_client",
                default.sessions_per_client,
                1..=10_000,
            ),
            // 100 is what every server must take (RFC 5321 section 4.5.3.1.8).
            recipients: section.number("max_recipients", default.recipients, 100..=50_000),
            memory: memory(section, default.memory),
            idle: section.duration("idle_timeout", default.idle, SECOND..DAY),
            message: section.duration("message_timeout", default.message, SECOND..DAY),
            session: section.duration("session_timeout", default.session, SECOND..30 * DAY),
            stalled: default.stalled,
        }
    }
}

fn memory(section: &mut Section<'_>, default: u64) -> u64 {
    let Size(memory) = section.get_or("memory", Size(default));
    if ((1 << 20)..=(64 << 30)).contains(&memory) {
        return memory;
    }
    section.mistake("memory", "is out of range: from 1 MiB to 64 GiB");
    default
}
