//! Delivery: a worker per mailbox takes what is due from the store and submits it to Microsoft 365.
//!
//! [`Worker`] runs a mailbox's lanes; each makes one attempt at one message at a time; [`client`] speaks SMTP over
//! [`wire`], [`envelope`] by envelope, which [`starttls`] encrypted; [`probe`] only tries whether that works; [`search`] looks among the sent messages
//! for those whose outcome is unknown; [`outcome`], [`sent`], [`lanes`], [`policy`], [`pacing`] and [`eta`] decide, without
//! I/O.

mod attempt;
#[cfg(test)]
#[path = "bed.rs"]
mod bed;
mod client;
mod envelope;
mod eta;
mod fault;
mod lanes;
mod outcome;
mod pacing;
#[cfg(test)]
mod peer;
pub mod policy;
mod probe;
mod search;
mod sent;
mod starttls;
mod upkeep;

mod wire;
mod worker;

pub use eta::done_by;
pub use probe::Probe;
pub use worker::{Status, Worker};

use crate::section::Section;
use serde::Deserialize;
use std::time::Duration;

/// What becomes of a message whose outcome is unknown where nobody can look whether it was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnUnknown {
    /// It is sent again: its recipients may get it twice.
    Resend,
    /// It is held until a person decides.
    Hold,
}

/// The `[delivery]` section; a mailbox may override each of its keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// SMTP connections at the same time, per mailbox. Exchange Online takes 3 and answers 432 above that.
    pub connections: u32,
    /// Messages a minute, per mailbox; 0: no pacing. Exchange Online takes 30.
    pub messages_per_minute: u32,
    /// Recipients a day, per mailbox; 0: no limit. Exchange Online takes 10,000.
    pub recipients_per_day: u32,
    /// How long a message is tried before it is given up.
    pub retry_for: Duration,
    /// Where nobody can look whether a message was sent.
    pub on_unknown: OnUnknown,
    /// How long the service may take to file what it took in the folder of sent mail.
    pub sent_delay: Duration,
    /// After so long a mailbox's trouble, its mail goes out as the notifications address; zero: never.
    pub fallback_after: Duration,
    /// After so long in the queue, a message's delay is said once; zero: never.
    pub delay_warning: Duration,
    /// How long the service may take to answer a command; see [`Timeouts`].
    pub reply_timeout: Duration,
    /// How long a message that was given up is kept, for a person to look at and have sent again.
    pub keep_failed: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            connections: 2,
            messages_per_minute: 30,
            recipients_per_day: 10_000,
            retry_for: Duration::from_secs(2 * 24 * 3600),
            on_unknown: OnUnknown::Resend,
            sent_delay: Duration::from_secs(120),
            fallback_after: Duration::ZERO,
            delay_warning: Duration::from_secs(4 * 3600),
            reply_timeout: Duration::from_secs(120),
            keep_failed: Duration::from_secs(7 * 24 * 3600),
        }
    }
}

impl Config {
    /// Reads what a section says of it over what holds otherwise.
    pub fn read(section: &mut Section<'_>, otherwise: &Self) -> Self {
        let month = Duration::from_secs(30 * 24 * 3600 + 1);
        let retry_for = Duration::from_secs(1)..month;
        let sent_delay = Duration::ZERO..Duration::from_secs(24 * 3600 + 1);
        let reply_timeout = Duration::from_millis(100)..Duration::from_secs(3601);
        let keep_failed = Duration::from_secs(1)..Duration::from_secs(366 * 24 * 3600 + 1);
        Self {
            connections: section.number("connections", otherwise.connections, 1..=100),
            messages_per_minute: section.number(
                "messages_per_minute",
                otherwise.messages_per_minute,
                0..=1_000_000,
            ),
            recipients_per_day: section.number(
                "recipients_per_day",
                otherwise.recipients_per_day,
                0..=100_000_000,
            ),
            retry_for: section.duration("retry_for", otherwise.retry_for, retry_for),
            on_unknown: section.get_or("on_unknown", otherwise.on_unknown),
            sent_delay: section.duration("sent_delay", otherwise.sent_delay, sent_delay),
            fallback_after: section.duration(
                "fallback_after",
                otherwise.fallback_after,
                Duration::ZERO..month,
            ),
            delay_warning: section.duration("delay_warning", otherwise.delay_warning, Duration::ZERO..month),
            reply_timeout: section.duration("reply_timeout", otherwise.reply_timeout, reply_timeout),
            keep_failed: section.duration("keep_failed", otherwise.keep_failed, keep_failed),
        }
    }

    /// How long each step may take.
    pub fn timeouts(&self) -> Timeouts {
        Timeouts::new(self.reply_timeout)
    }
}

/// How long each step of a delivery may take (RFC 5321 section 4.5.3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// To connect.
    pub connect: Duration,
    /// Each of greeting, EHLO, STARTTLS, TLS handshake and AUTH.
    pub greeting: Duration,
    /// Each of MAIL, RCPT, DATA and RSET.
    pub command: Duration,
    /// Each block of the message.
    pub block: Duration,
    /// From the final dot to its reply.
    pub dot: Duration,
    /// QUIT.
    pub quit: Duration,
}

impl Timeouts {
    /// As the RFC has them with 2 minutes for a reply: half a minute to connect, a minute for each step of the
    /// greeting, 3 minutes for a block, 10 for the final dot; all of them shorter where a reply may take less.
    pub fn new(reply: Duration) -> Self {
        Self {
            connect: reply.min(Duration::from_secs(30)),
            greeting: reply.min(Duration::from_secs(60)),
            command: reply,
            block: reply * 3 / 2,
            dot: reply * 5,
            quit: reply.min(Duration::from_secs(2)),
        }
    }
}

impl Default for Timeouts {
    fn default() -> Self {
        Config::default().timeouts()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::section::parse;
    use std::path::Path;

    #[test]
    fn the_reply_timeout_caps_the_others() {
        let seconds = Duration::from_secs;
        let Timeouts { connect, greeting, command, block, dot, .. } = Timeouts::default();
        assert_eq!(
            [connect, greeting, command, block, dot],
            [seconds(30), seconds(60), seconds(120), seconds(180), seconds(600)]
        );
        let Timeouts { connect, greeting, command, block, dot, .. } = Timeouts::new(seconds(2));
        assert_eq!(
            [connect, greeting, command, block, dot],
            [seconds(2), seconds(2), seconds(2), seconds(3), seconds(10)]
        );
    }

    #[test]
    fn a_mailbox_overrides_what_it_names() {
        let read =
            |text: &str| parse(text, Path::new("/"), None, |root| Config::read(root, &Config::default()));
        let parsed = read("reply_timeout = '5s'\nconnections = 1\n");
        assert_eq!(parsed.mistakes, []);
        let config = parsed.value;
        assert_eq!((config.reply_timeout, config.connections), (Duration::from_secs(5), 1));
        assert_eq!(config.retry_for, Config::default().retry_for);
        assert_eq!(read("reply_timeout = '0s'").mistakes.len(), 1);
        assert_eq!(read("on_unknown = 'guess'").mistakes.len(), 1);
        let parsed = read("on_unknown = 'hold'\nsent_delay = '0s'\nfallback_after = '30 minutes'\n");
        assert_eq!(parsed.mistakes, []);
        assert_eq!((parsed.value.on_unknown, parsed.value.sent_delay), (OnUnknown::Hold, Duration::ZERO));
    }
}
