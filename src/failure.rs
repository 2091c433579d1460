//! The one vocabulary of failures. Whatever goes wrong, at the token endpoint, in SMTP, in IMAP or in Odoo, becomes a
//! [`Failure`]: what was seen, which [`Class`] it is, and what a person can do about it. The catalogues that map
//! replies to classes live in [`crate::microsoft`] and [`crate::odoo`]; this module only has the words.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::time::Duration;

/// What a failure means for the work at hand. No class loses mail, and none deletes a refresh token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    /// It will pass: try again by the schedule.
    Transient,
    /// Too much at a time: the mailbox pauses, the message is not to blame.
    Rate,
    /// This message or recipient will never be taken.
    Message,
    /// The mailbox's owner has to consent anew.
    Consent,
    /// An administrator (of Microsoft 365, of Odoo or of this relay) has to act.
    Administrator,
}

impl Class {
    /// Every class.
    pub const ALL: [Self; 5] =
        [Self::Transient, Self::Rate, Self::Message, Self::Consent, Self::Administrator];

    /// The word that logs, tables and the store use.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Transient => "transient",
            Self::Rate => "rate",
            Self::Message => "message",
            Self::Consent => "consent",
            Self::Administrator => "administrator",
        }
    }

    /// Whether a person has to act before the mailbox works again.
    pub fn needs_a_person(self) -> bool {
        matches!(self, Self::Consent | Self::Administrator)
    }

    /// Whether the trouble is the mailbox's and so holds up everything that goes through it.
    pub fn pauses_mailbox(self) -> bool {
        matches!(self, Self::Rate | Self::Consent | Self::Administrator)
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One failure: seen, meaning, remedy. None of its texts may hold a token, a secret or a message body.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// What it means.
    pub class: Class,
    /// The peer's own code where it gave one: `AADSTS700082`, `535 5.7.139`, `fault 3`; else a word for what happened,
    /// like `timeout`.
    pub code: String,
    /// What the peer said, on one line.
    pub reply: String,
    /// What a person can do about it; empty where waiting is all there is to do.
    pub advice: String,
    /// How long the peer asked us to wait, where it did.
    #[serde(skip)]
    pub retry_after: Option<Duration>,
}

impl Failure {
    /// A failure with a code and the peer's words, made one line and at most 500 characters.
    pub fn new(class: Class, code: impl Into<String>, reply: impl AsRef<str>) -> Self {
        Self {
            class,
            code: code.into(),
            reply: one_line(reply.as_ref()),
            advice: String::new(),
            retry_after: None,
        }
    }

    /// The same with an advice.
    pub fn advise(mut self, advice: impl Into<String>) -> Self {
        self.advice = advice.into();
        self
    }

    /// The same with the time that the peer asked for.
    pub fn wait(mut self, retry_after: Duration) -> Self {
        self.retry_after = Some(retry_after);
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code, self.reply)?;
        if !self.advice.is_empty() {
            write!(f, " ({})", self.advice)?;
        }
        Ok(())
    }
}

impl std::error::Error for Failure {}

/// A peer's text on one line: control characters and line breaks become single spaces, at most 500 characters, so that
/// no peer can forge a log line or flood it.
pub fn one_line(text: &str) -> String {
    let mut line = String::with_capacity(text.len().min(500));
    for (taken, word) in
        text.split(|c: char| c.is_control() || c == ' ').filter(|word| !word.is_empty()).enumerate()
    {
        if taken > 0 {
            line.push(' ');
        }
        line.push_str(word);
        if line.len() > 500 {
            let end = (0..=500).rev().find(|&i| line.is_char_boundary(i)).unwrap_or(0);
            line.truncate(end);
            line.push('…');
            break;
        }
    }
    line
}

/// An error with all its causes, `a: b: c`: logged as one field.
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    one_line(&text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peers_text_becomes_one_bounded_line() {
        assert_eq!(
            one_line("535 5.7.3\r\n  Authentication\tunsuccessful"),
            "535 5.7.3 Authentication unsuccessful"
        );
        let flood = one_line(&"ä".repeat(10_000));
        assert!(flood.len() < 510 && flood.ends_with('…'));
    }

    #[test]
    fn a_failure_says_seen_and_remedy() {
        let failure = Failure::new(Class::Administrator, "535 5.7.139", "disabled").advise("switch it on");
        assert_eq!(failure.to_string(), "535 5.7.139: disabled (switch it on)");
        assert!(failure.class.needs_a_person() && failure.class.pauses_mailbox());
        assert!(!Class::Transient.pauses_mailbox());
    }
}
