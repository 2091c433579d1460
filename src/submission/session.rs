//! The SMTP session (RFC 5321) as a pure state machine: a line goes in, an [`Action`] comes out. No I/O, no clock.

use std::sync::Arc;

use super::auth::Exchange;
use super::parameters;
use super::path::Path;
use super::reply::Reply;
use super::users::User;
use crate::message::Envelope;

pub use chunking::{Chunk, Part};

mod chunking;
mod privacy;

/// The longest command line in octets, with its CRLF. RFC 5321 section 4.5.3.1.4 asks for 512, and its extensions for
/// more.
pub const COMMAND_LINE: usize = 2048;
/// The longest line of an AUTH exchange in octets (RFC 4954 section 4).
pub const AUTH_LINE: usize = 12_288;
/// Faults in a row after which the connection is closed: the client is no mail client.
const FAULTS: u32 = 20;

/// What a server offers to all of its sessions.
#[derive(Clone, Debug)]
pub struct Offer {
    /// The name in the greeting.
    pub host: String,
    /// The largest message, in octets (RFC 1870).
    pub max_message_size: u64,
    /// Recipients that one message may have.
    pub max_recipients: u32,
    /// Who may submit; empty: anyone who can connect.
    pub users: Vec<Arc<User>>,
    /// Whether there is a certificate for STARTTLS.
    pub tls: bool,
}

/// One client's session.
pub struct Session {
    offer: Arc<Offer>,
    /// Whether the client is on this machine. Only then may a password travel in clear, as Odoo sends it.
    local: bool,
    encrypted: bool,
    greeted: bool,
    user: Option<Arc<User>>,
    exchange: Option<Exchange>,
    transaction: Option<Envelope>,
    /// Octets that came in chunks so far; `None`: the transaction has none yet.
    chunked: Option<u64>,
    faults: u32,
}

/// What is to be done about a line.
#[derive(Debug, PartialEq, Eq)]
pub enum Action {
    /// Answer, and go on.
    Reply(Reply),
    /// Answer, then read a message with [`DataReader`](super::data::DataReader). The session itself is ready for the next transaction.
    ReadData(Reply, Envelope),
    /// Read that many octets (RFC 3030), and then answer.
    ReadChunk(Reply, Chunk),
    /// Answer, then begin TLS and call [`Session::encrypted`]. Input that came with the command is an attack
    /// (RFC 3207 section 6).
    StartTls(Reply),
    /// Answer, and close the connection.
    Close(Reply),
}

impl Action {
    /// The reply, whatever comes after it.
    pub fn reply(&self) -> &Reply {
        match self {
            Self::Reply(reply)
            | Self::ReadData(reply, _)
            | Self::ReadChunk(reply, _)
            | Self::StartTls(reply)
            | Self::Close(reply) => reply,
        }
    }
}

impl Session {
    /// A session before its greeting. `local`: the client is on this machine.
    pub fn new(offer: Arc<Offer>, local: bool) -> Self {
        Self {
            offer,
            local,
            encrypted: false,
            greeted: false,
            user: None,
            exchange: None,
            transaction: None,
            chunked: None,
            faults: 0,
        }
    }

    /// The greeting.
    pub fn greeting(&self) -> Reply {
        Reply::plain(220, format!("{} ESMTP", self.offer.host))
    }

    /// The farewell of a server that stops.
    pub fn stopping(&self) -> Reply {
        Reply::new(421, "4.3.2", "The relay is stopping; connect again in a moment")
    }

    /// Whether a transaction is open: MAIL was accepted, and DATA has not come yet.
    pub fn in_transaction(&self) -> bool {
        self.transaction.is_some()
    }

    /// Whether a part of a message has come in chunks, and the rest is still to come.
    pub fn in_chunks(&self) -> bool {
        self.chunked.is_some()
    }

    /// Who submits, of a session that has authenticated.
    pub fn user(&self) -> Option<&Arc<User>> {
        self.user.as_ref()
    }

    /// The longest line to read now, in octets with its CRLF.
    pub fn line_limit(&self) -> usize {
        if self.exchange.is_some() { AUTH_LINE } else { COMMAND_LINE }
    }

    /// TLS has begun: everything said before is forgotten (RFC 3207 section 4.2).
    pub fn encrypted(&mut self) {
        *self = Self { encrypted: true, ..Self::new(Arc::clone(&self.offer), self.local) };
    }

    /// Takes a line, without its CRLF.
    pub fn line(&mut self, line: &[u8]) -> Action {
        let action = match self.exchange.take() {
            Some(exchange) => Action::Reply(self.respond(exchange, line)),
            None => self.command(line),
        };
        self.count(action)
    }

    /// Takes note of a line over the limit, which was read to its end and dropped.
    pub fn long_line(&mut self) -> Action {
        let limit = self.line_limit();
        self.exchange = None;
        self.count(Action::Reply(Reply::new(500, "5.5.2", format!("The line is longer than {limit} bytes"))))
    }

    /// Takes note of a line that ends in a bare LF. What follows may be a command that somebody smuggled into an
    /// argument of the one before, so nothing more is read.
    pub fn bare_line_feed(&mut self) -> Action {
        Action::Close(Reply::new(
            500,
            "5.5.2",
            "The line ends in a bare LF; SMTP lines end in CR LF (RFC 5321 section 2.3.8). Closing the connection",
        ))
    }

    /// Closes the connection on too many faults. Refused addresses, senders and sizes are none: a client may well have
    /// twenty of those in a row, and good mail behind them.
    fn count(&mut self, action: Action) -> Action {
        let reply = action.reply();
        let fault = reply.code() >= 500 && reply.enhanced().is_some_and(is_fault);
        if !fault {
            return action;
        }
        self.faults += 1;
        if self.faults < FAULTS {
            return action;
        }
        Action::Close(Reply::new(
            421,
            "4.7.0",
            format!("{FAULTS} faulty commands in a row; closing the connection"),
        ))
    }

    fn command(&mut self, line: &[u8]) -> Action {
        let Ok(line) = std::str::from_utf8(line) else {
            let verb = line.get(..5).unwrap_or_default();
            let path = verb.eq_ignore_ascii_case(b"MAIL ") || verb.eq_ignore_ascii_case(b"RCPT ");
            return Action::Reply(if path { no_smtputf8() } else { unreadable() });
        };
        if line.chars().any(|c| c.is_ascii_control()) {
            return Action::Reply(unreadable());
        }
        let (verb, argument) = line.split_once(' ').unwrap_or((line, ""));
        let argument = argument.trim_matches(' ');
        let reply = match verb.to_ascii_uppercase().as_str() {
            "EHLO" => self.hello(argument, true),
            "HELO" => self.hello(argument, false),
            "MAIL" => self.mail(argument),
            "RCPT" => self.rcpt(argument),
            "DATA" => return self.data(argument),
            "BDAT" => return self.bdat(argument),
            "RSET" if argument.is_empty() => {
                self.reset();
                Reply::new(250, "2.0.0", "Ok")
            }
            "NOOP" => Reply::new(250, "2.0.0", "Ok"),
            "QUIT" if argument.is_empty() => return Action::Close(Reply::new(221, "2.0.0", "Bye")),
            "VRFY" if argument.is_empty() => syntax("VRFY address"),
            "VRFY" => {
                Reply::new(252, "2.0.0", "Addresses are not verified here; send, and a failure is reported")
            }
            "EXPN" => Reply::new(502, "5.5.1", "There are no mailing lists here"),
            "HELP" => Reply::new(
                214,
                "2.0.0",
                "This relay takes mail for Microsoft 365: EHLO HELO MAIL RCPT DATA BDAT RSET NOOP QUIT VRFY (RFC 5321)",
            ),
            "AUTH" => self.auth(argument),
            "STARTTLS" => return self.starttls(argument),
            "RSET" | "QUIT" => no_argument(),
            // A browser, or a service that fetches what it is told to, was made to send us a request; the body that
            // follows would be taken for commands, and send mail.
            "GET" | "HEAD" | "POST" | "PUT" | "PATCH" | "DELETE" | "OPTIONS" | "CONNECT" | "TRACE"
            | "PRI" => {
                return Action::Close(Reply::new(
                    500,
                    "5.5.1",
                    "This is SMTP, and that was HTTP; closing the connection",
                ));
            }
            _ => Reply::new(500, "5.5.1", "Unknown command"),
        };
        Action::Reply(reply)
    }

    fn hello(&mut self, client: &str, extended: bool) -> Reply {
        if client.is_empty() {
            return syntax(if extended { "EHLO client.example.com" } else { "HELO client.example.com" });
        }
        self.greeted = true;
        self.reset();
        Reply::extensions(&self.offer.host, &if extended { self.extensions() } else { Vec::new() })
    }

    /// Forgets the transaction.
    fn reset(&mut self) {
        self.transaction = None;
        self.chunked = None;
    }

    fn extensions(&self) -> Vec<String> {
        let mut extensions = vec!["PIPELINING".to_owned(), format!("SIZE {}", self.offer.max_message_size)];
        extensions.extend(["8BITMIME", "SMTPUTF8", "ENHANCEDSTATUSCODES", "CHUNKING"].map(str::to_owned));
        if self.offer.tls && !self.encrypted {
            extensions.push("STARTTLS".to_owned());
        }
        if !self.offer.users.is_empty() && self.private() && self.user.is_none() {
            extensions.push("AUTH PLAIN LOGIN".to_owned());
        }
        extensions
    }

    /// Whether a password may be sent.
    fn private(&self) -> bool {
        self.encrypted || self.local
    }

    fn mail(&mut self, argument: &str) -> Reply {
        if !self.greeted {
            return wrong_order("Say EHLO first");
        }
        if !self.offer.users.is_empty() && self.user.is_none() {
            return Reply::new(
                530,
                "5.7.0",
                "Authentication required: give the mail server in Odoo the user name and password that [submission] \
                 has",
            );
        }
        if self.transaction.is_some() {
            return wrong_order("A message is already begun: send it, or RSET");
        }
        let Some(text) = strip_prefix(argument, "FROM:") else {
            return syntax("MAIL FROM:<address>");
        };
        let Some(path) = Path::parse(text) else {
            return Reply::new(
                501,
                "5.1.7",
                "The sender is not an address in angle brackets (RFC 5321 section 4.1.2)",
            );
        };
        let smtputf8 = match parameters::of_mail(path.parameters, self.offer.max_message_size) {
            Ok(smtputf8) => smtputf8,
            Err(refusal) => return refusal,
        };
        if !path.address.is_ascii() && !smtputf8 {
            return no_smtputf8();
        }
        if let Some(user) = &self.user
            && user.senders.as_ref().is_some_and(|senders| !senders.allow_envelope(path.address))
        {
            return not_allowed(user, &format!("<{}> as the sender of the envelope", path.address));
        }
        self.faults = 0;
        self.transaction =
            Some(Envelope { mail_from: path.address.to_owned(), recipients: Vec::new(), smtputf8 });
        Reply::new(250, "2.1.0", "Ok")
    }

    fn rcpt(&mut self, argument: &str) -> Reply {
        let Some(envelope) = &mut self.transaction else {
            return wrong_order("Send MAIL first");
        };
        if self.chunked.is_some() {
            return wrong_order("The message has begun: send the rest of it, or RSET");
        }
        let Some(text) = strip_prefix(argument, "TO:") else {
            return syntax("RCPT TO:<address>");
        };
        let Some(path) = Path::parse(text).filter(|path| !path.address.is_empty()) else {
            return Reply::new(
                501,
                "5.1.3",
                "The recipient is not an address in angle brackets (RFC 5321 section 4.1.2)",
            );
        };
        if let Err(refusal) = parameters::of_rcpt(path.parameters) {
            return refusal;
        }
        if !path.address.is_ascii() && !envelope.smtputf8 {
            return no_smtputf8();
        }
        let most = self.offer.max_recipients;
        if u32::try_from(envelope.recipients.len()).map_or(true, |count| count >= most) {
            return Reply::new(
                452,
                "4.5.3",
                format!(
                    "More than {most} recipients; send the message to the others in a transaction of its own"
                ),
            );
        }
        envelope.recipients.push(path.address.to_owned());
        Reply::new(250, "2.1.5", "Ok")
    }

    fn data(&mut self, argument: &str) -> Action {
        if !argument.is_empty() {
            return Action::Reply(no_argument());
        }
        if self.chunked.is_some() {
            return Action::Reply(wrong_order("The message has begun with BDAT: go on with BDAT, or RSET"));
        }
        match self.transaction.take() {
            None => Action::Reply(wrong_order("Send MAIL and RCPT first")),
            Some(envelope) if envelope.recipients.is_empty() => {
                self.transaction = Some(envelope);
                Action::Reply(Reply::new(554, "5.1.0", "No recipient was accepted"))
            }
            Some(envelope) => Action::ReadData(
                Reply::plain(354, "End the message with a dot on a line of its own"),
                envelope,
            ),
        }
    }
}

fn strip_prefix<'a>(argument: &'a str, prefix: &str) -> Option<&'a str> {
    let (head, rest) = argument.split_at_checked(prefix.len())?;
    head.eq_ignore_ascii_case(prefix).then_some(rest)
}

fn wrong_order(text: &'static str) -> Reply {
    Reply::new(503, "5.5.1", text)
}

fn syntax(usage: &str) -> Reply {
    Reply::new(501, "5.5.4", format!("Write it as {usage}"))
}

fn no_argument() -> Reply {
    Reply::new(501, "5.5.4", "This command takes no argument")
}

fn unreadable() -> Reply {
    Reply::new(500, "5.5.2", "The line holds control characters, or bytes that are not UTF-8")
}

fn no_smtputf8() -> Reply {
    Reply::new(
        553,
        "5.6.7",
        "The address holds other characters than ASCII, and the client did not ask for SMTPUTF8 (RFC 6531)",
    )
}

/// Faults of the client, rather than of the mail: commands that are wrong, and passwords.
fn is_fault(code: &str) -> bool {
    code.starts_with("5.5.") || (code.starts_with("5.7.") && code != "5.7.1")
}

/// The refusal of a sender that the user may not use. `what`: the sender, in words.
pub(super) fn not_allowed(user: &User, what: &str) -> Reply {
    Reply::new(
        550,
        "5.7.1",
        format!(
            "The user {} may not use {what}: send as one of its senders, or add this one to them, in \
             [[submission.user]] of the relay",
            user.name
        ),
    )
}

#[cfg(test)]
#[path = "session_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "session_auth_tests.rs"]
mod auth_tests;

#[cfg(test)]
#[path = "session_chunk_tests.rs"]
mod chunk_tests;
