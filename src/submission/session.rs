//! The SMTP session (RFC 5321) as a pure state machine: a line goes in, an [`Action`] comes out. No I/O, no clock.

use std::sync::Arc;

use super::auth::{self, Credentials, Exchange};
use super::parameters;
use super::path::Path;
use super::reply::Reply;
use crate::message::Envelope;

/// The longest command line in octets, with its CRLF. RFC 5321 section 4.5.3.1.4 asks for 512, and its extensions for
/// more.
pub const COMMAND_LINE: usize = 2048;
/// The longest line of an AUTH exchange in octets (RFC 4954 section 4).
pub const AUTH_LINE: usize = 12_288;
/// Recipients of one message. RFC 5321 section 4.5.3.1.8 asks for 100 at least; to Odoo every refusal is a lost mail.
const RECIPIENTS: usize = 1_000;
/// Faults in a row after which the connection is closed: the client is no mail client.
const FAULTS: u32 = 20;

/// What a server offers to all of its sessions.
#[derive(Clone, Debug)]
pub struct Offer {
    /// The name in the greeting.
    pub host: String,
    /// The largest message, in octets (RFC 1870).
    pub max_message_size: u64,
    /// Who may submit; `None`: anyone who can connect.
    pub credentials: Option<Credentials>,
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
    authenticated: bool,
    exchange: Option<Exchange>,
    transaction: Option<Envelope>,
    faults: u32,
}

/// What is to be done about a line.
#[derive(Debug, PartialEq, Eq)]
pub enum Action {
    /// Answer, and go on.
    Reply(Reply),
    /// Answer, then read a message with [`DataReader`](super::data::DataReader). The session itself is ready for the next transaction.
    ReadData(Reply, Envelope),
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
            Self::Reply(reply) | Self::ReadData(reply, _) | Self::StartTls(reply) | Self::Close(reply) => {
                reply
            }
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
            authenticated: false,
            exchange: None,
            transaction: None,
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

    /// Closes the connection on too many faults. Refused addresses and sizes are none: a client may well have twenty
    /// of those in a row, and good mail behind them.
    fn count(&mut self, action: Action) -> Action {
        let reply = action.reply();
        let fault = reply.code() >= 500
            && reply.enhanced().is_some_and(|code| code.starts_with("5.5.") || code.starts_with("5.7."));
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
            "RSET" if argument.is_empty() => {
                self.transaction = None;
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
                "This relay takes mail for Microsoft 365: EHLO HELO MAIL RCPT DATA RSET NOOP QUIT VRFY (RFC 5321)",
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
        self.transaction = None;
        Reply::extensions(&self.offer.host, &if extended { self.extensions() } else { Vec::new() })
    }

    fn extensions(&self) -> Vec<String> {
        let mut extensions = vec!["PIPELINING".to_owned(), format!("SIZE {}", self.offer.max_message_size)];
        extensions.extend(["8BITMIME", "SMTPUTF8", "ENHANCEDSTATUSCODES"].map(str::to_owned));
        if self.offer.tls && !self.encrypted {
            extensions.push("STARTTLS".to_owned());
        }
        if self.offer.credentials.is_some() && self.private() && !self.authenticated {
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
        if self.offer.credentials.is_some() && !self.authenticated {
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
        self.faults = 0;
        self.transaction =
            Some(Envelope { mail_from: path.address.to_owned(), recipients: Vec::new(), smtputf8 });
        Reply::new(250, "2.1.0", "Ok")
    }

    fn rcpt(&mut self, argument: &str) -> Reply {
        let Some(envelope) = &mut self.transaction else {
            return wrong_order("Send MAIL first");
        };
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
        if envelope.recipients.len() >= RECIPIENTS {
            return Reply::new(
                452,
                "4.5.3",
                format!(
                    "More than {RECIPIENTS} recipients; send the message to the others in a transaction of its own"
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

    fn auth(&mut self, argument: &str) -> Reply {
        let Some(credentials) = &self.offer.credentials else {
            return Reply::new(
                502,
                "5.5.1",
                "No user is configured: leave user name and password empty in Odoo, or set user and password_file in \
                 [submission]",
            );
        };
        if !self.greeted {
            return wrong_order("Say EHLO first");
        }
        if self.authenticated {
            return wrong_order("Already authenticated");
        }
        if self.transaction.is_some() {
            return wrong_order("Not within a message");
        }
        if !self.private() {
            return Reply::new(538, "5.7.11", "A password is only taken over TLS: send STARTTLS first");
        }
        if argument.is_empty() {
            return syntax("AUTH PLAIN, or AUTH LOGIN");
        }
        let outcome = Exchange::begin(argument, credentials);
        self.settle(outcome)
    }

    fn respond(&mut self, exchange: Exchange, line: &[u8]) -> Reply {
        let (Some(credentials), Ok(line)) = (&self.offer.credentials, std::str::from_utf8(line)) else {
            return unreadable();
        };
        let outcome = exchange.respond(line, credentials);
        self.settle(outcome)
    }

    fn settle(&mut self, outcome: auth::Outcome) -> Reply {
        match outcome {
            auth::Outcome::Challenge(exchange, reply) => {
                self.exchange = Some(exchange);
                reply
            }
            auth::Outcome::Success(reply) => {
                self.authenticated = true;
                reply
            }
            auth::Outcome::Refused(reply) => reply,
        }
    }

    fn starttls(&mut self, argument: &str) -> Action {
        if !self.offer.tls {
            Action::Reply(Reply::new(502, "5.5.1", "No certificate is configured for TLS"))
        } else if self.encrypted {
            Action::Reply(wrong_order("TLS is on already"))
        } else if !argument.is_empty() {
            Action::Reply(no_argument())
        } else {
            Action::StartTls(Reply::new(220, "2.0.0", "Ready to start TLS"))
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

#[cfg(test)]
#[path = "session_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "session_auth_tests.rs"]
mod auth_tests;
