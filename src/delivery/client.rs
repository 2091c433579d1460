//! The SMTP client: a signed-in connection to the submission service, and mail transactions over it.
//!
//! lettre sends the commands and reads the replies; its high-level calls would give up at the first refused recipient, hide
//! the reply to a failed sign-in, and know one timeout only. Messages go [past it](Encrypted).

use super::Timeouts;
use super::envelope::{Envelope, Group, Offers, Sealed};
use super::fault::{Fault, redacted, reply, step, timed, unexpected};
use super::outcome::{End, Rcpt, Transaction};
use super::starttls::{encrypt, hello};
use super::wire::{Encrypted, Wire};
use crate::address::Address;
use crate::failure::{Class, Failure, one_line};
use crate::microsoft::smtp_replies::{Reply, Step};
use crate::microsoft::xoauth2;
use crate::units::HostPort;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use lettre::transport::smtp::client::AsyncSmtpConnection;
use lettre::transport::smtp::commands::Ehlo;
use lettre::transport::smtp::response::Response;
use std::fmt::Display;
use std::sync::Arc;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use tokio_rustls::rustls::ClientConfig;

/// The message goes out in blocks of so many bytes; each has its own timeout.
const BLOCK: usize = 64 * 1024;

/// Where to, and as whom.
#[derive(Clone, Copy)]
pub(super) struct Target<'a> {
    pub(super) server: &'a HostPort,
    pub(super) mailbox: &'a Address,
    pub(super) tls: &'a Arc<ClientConfig>,
    pub(super) timeouts: Timeouts,
}

/// A message to send.
pub(super) struct Outgoing<'a> {
    pub(super) recipients: Vec<&'a str>,
    pub(super) content: &'a [u8],
    pub(super) eight_bit: bool,
    pub(super) smtputf8: bool,
}

/// A signed-in connection.
pub(super) struct Connection {
    smtp: AsyncSmtpConnection,
    /// The stream below it, for messages: lettre would look at each byte, and send the dot apart.
    stream: Encrypted,
    mailbox: Address,
    timeouts: Timeouts,
    offers: Offers,
    /// A transaction was left open: RSET comes before the next one.
    open_transaction: bool,
    /// The service waits for a message, and takes all that comes for it.
    awaits_content: bool,
    usable: bool,
    pub(super) opened_at: Instant,
    pub(super) used_at: Instant,
}

impl Connection {
    /// Connects, encrypts and signs in.
    ///
    /// # Errors
    /// Whatever keeps it from that, within the timeouts of each step.
    pub(super) async fn open(target: Target<'_>, token: &str) -> Result<Self, Fault> {
        let mut connection = Self::connect(target).await?;
        match connection.sign_in(token).await {
            Ok(()) => Ok(connection),
            Err(fault) => {
                if matches!(fault, Fault::Refused(..)) {
                    connection.quit().await;
                }
                Err(fault)
            }
        }
    }

    /// Connects and encrypts; nobody is signed in yet.
    ///
    /// # Errors
    /// As [`Connection::open`].
    pub(super) async fn connect(target: Target<'_>) -> Result<Self, Fault> {
        let timeouts = target.timeouts;
        let address = (target.server.host.as_str(), target.server.port);
        let tcp = timed(timeouts.connect, "connecting", TcpStream::connect(address)).await?;
        // Commands are small and wait for their replies.
        drop(tcp.set_nodelay(true));
        let hello = hello(&tcp);
        let stream = Encrypted::new(encrypt(tcp, &hello, target).await?);
        let wire = Box::new(Wire::new(stream.clone()));
        let connect = Box::pin(AsyncSmtpConnection::connect_with_transport(wire, &hello));
        let mut smtp = step(timeouts.greeting, Step::Greeting, "EHLO", connect).await?;
        // Once more, since lettre keeps neither SIZE nor the text of the reply.
        let reply = step(timeouts.greeting, Step::Greeting, "EHLO", smtp.command(Ehlo::new(hello))).await?;
        let now = Instant::now();
        Ok(Self {
            smtp,
            stream,
            mailbox: target.mailbox.clone(),
            timeouts,
            offers: Offers::read(reply.message()),
            open_transaction: false,
            awaits_content: false,
            usable: true,
            opened_at: now,
            used_at: now,
        })
    }

    /// SASL XOAUTH2 with an initial response; nothing but 235 counts (RFC 4954 section 4).
    pub(super) async fn sign_in(&mut self, token: &str) -> Result<(), Fault> {
        if !self.offers.xoauth2 {
            let failure =
                Failure::new(Class::Administrator, "no XOAUTH2", "the server does not offer AUTH XOAUTH2");
            let advice = "check that [microsoft] smtp names Microsoft's submission service, like smtp.office365.com:587";
            return Err(Fault::Failed(failure.advise(advice)));
        }
        let credentials = STANDARD.encode(xoauth2(&self.mailbox, token));
        let answer = self.auth(format!("AUTH XOAUTH2 {credentials}\r\n")).await?;
        if answer.has_code(235) {
            return Ok(());
        }
        if !answer.has_code(334) {
            return Err(Fault::Failed(unexpected("AUTH", &answer)));
        }
        // An error for machines; an empty line asks for the one for people.
        let challenge = STANDARD.decode(answer.first_word().unwrap_or_default()).unwrap_or_default();
        match self.auth("\r\n").await {
            Err(Fault::Refused(step, mut reply)) => {
                let challenge = one_line(&redacted(&String::from_utf8_lossy(&challenge)));
                reply.text = format!("{} {challenge}", reply.text);
                Err(Fault::Refused(step, reply))
            }
            Err(fault) => Err(fault),
            Ok(answer) => Err(Fault::Failed(unexpected("the end of AUTH", &answer))),
        }
    }

    /// A command of the sign-in; a reply that quotes it is cleaned of the token.
    async fn auth(&mut self, command: impl Display) -> Result<Response, Fault> {
        let sent = self.smtp.command(command);
        step(self.timeouts.greeting, Step::Auth, "AUTH", sent).await.map_err(|fault| match fault {
            Fault::Refused(step, reply) => {
                Fault::Refused(step, Reply { text: redacted(&reply.text), ..reply })
            }
            Fault::Failed(failure) => {
                let reply = redacted(&failure.reply);
                Fault::Failed(Failure { reply, ..failure })
            }
        })
    }

    /// Whether another message can go over it.
    pub(super) fn is_usable(&self) -> bool {
        self.usable && !self.awaits_content
    }

    /// Names the message's sender and its recipients, and asks to send it. `Ok`: the service took some of them, and waits
    /// for the message, which is [submitted](Self::submit) or else the connection dropped; here are its answers.
    ///
    /// # Errors
    /// The transaction, which ended before its time.
    pub(super) async fn offer(&mut self, message: &Outgoing<'_>) -> Result<Vec<Rcpt>, Transaction> {
        if has_bare_line_end(message.content) {
            return Err(self.ended(Vec::new(), bare_line_end()));
        }
        let mailbox = self.mailbox.clone();
        let mut envelope = match Envelope::new(message, &mailbox, self.offers, self.open_transaction) {
            Ok(envelope) => envelope,
            Err(end) => return Err(self.ended(Vec::new(), end)),
        };
        while let Some(group) = envelope.next_group() {
            self.hand_in(&group, &mut envelope).await;
        }
        self.open_transaction = envelope.is_open();
        let (answers, sealed) = envelope.seal();
        match sealed {
            Sealed::Content => {
                self.awaits_content = true;
                Ok(answers)
            }
            Sealed::Nothing => {
                self.send_nothing().await;
                Err(self.ended(answers, End::NoRecipient))
            }
            Sealed::Over(end, is_of_use) => {
                self.usable &= is_of_use;
                Err(self.ended(answers, end))
            }
        }
    }

    /// Sends a group in one write, and reads the replies to it, each within its time.
    async fn hand_in(&mut self, group: &Group, envelope: &mut Envelope<'_>) {
        let mut text = Some(&group.text);
        for &verb in &group.verbs {
            let smtp = &mut self.smtp;
            let answered = async {
                match text.take() {
                    Some(text) => smtp.command(text).await,
                    None => smtp.read_response().await,
                }
            };
            let answer = step(self.timeouts.command, verb.step(), verb.name(), answered).await;
            if envelope.take(verb, answer).is_break() {
                return;
            }
        }
    }

    /// Ends a message that nobody is to get before it begins.
    async fn send_nothing(&mut self) {
        let dot = step(self.timeouts.command, Step::Dot, "the message", self.smtp.command(".\r\n"));
        match dot.await {
            Ok(_) => self.open_transaction = false,
            Err(Fault::Refused(_, reply)) => {
                self.open_transaction = false;
                self.usable &= reply.code != 421;
            }
            Err(Fault::Failed(_)) => self.usable = false,
        }
    }

    /// Sends the message that was [offered](Self::offer), to the recipients that were accepted.
    pub(super) async fn submit(&mut self, message: &Outgoing<'_>, recipients: Vec<Rcpt>) -> Transaction {
        let end = self.content(message.content).await;
        self.awaits_content = false;
        self.open_transaction = false;
        self.ended(recipients, end)
    }

    fn ended(&mut self, recipients: Vec<Rcpt>, end: End) -> Transaction {
        self.used_at = Instant::now();
        let closing = |reply: &Reply| reply.code == 421;
        self.usable &= match &end {
            End::Lost(_) | End::Unknown(_) => false,
            End::Taken(reply) | End::Refused(_, reply) => !closing(reply),
            End::NoRecipient | End::Unsendable(_) => true,
        };
        Transaction { recipients, end }
    }

    /// The message, block by block, and the final dot, which leaves with the last of them.
    async fn content(&mut self, content: &[u8]) -> End {
        let mut sent = Vec::with_capacity(content.len().min(BLOCK) + 1024);
        let mut rest = content;
        let mut before = b'\n';
        loop {
            let (block, behind) = rest.split_at_checked(BLOCK).unwrap_or((rest, b""));
            sent.clear();
            stuff(before, block, &mut sent);
            before = block.last().copied().unwrap_or(before);
            rest = behind;
            if rest.is_empty() {
                let is_ended = content.ends_with(b"\r\n");
                sent.extend_from_slice(if is_ended { b".\r\n" } else { b"\r\n.\r\n" });
            }
            // Where that fails, the end of the last TLS record has not left, so that the service cannot have seen the dot.
            if let Err(fault) = timed(self.timeouts.block, "the message", self.stream.send(&sent)).await {
                return End::Lost(fault.into_failure("the message"));
            }
            if rest.is_empty() {
                break;
            }
        }
        match step(self.timeouts.dot, Step::Dot, "the message", self.smtp.read_response()).await {
            Ok(answer) if answer.has_code(250) => End::Taken(reply(&answer)),
            Ok(answer) => End::Unknown(unexpected("the message", &answer)),
            Err(Fault::Refused(step, reply)) => End::Refused(step, reply),
            Err(Fault::Failed(failure)) => End::Unknown(failure),
        }
    }

    /// Says goodbye, briefly; not to a service that would take it for a message.
    pub(super) async fn quit(mut self) {
        if self.awaits_content {
            return;
        }
        drop(timeout(self.timeouts.quit, Box::pin(self.smtp.abort())).await);
    }
}

/// Appends a block of a message as DATA has it, with the dots doubled that begin a line (RFC 5321 section 4.5.2); `before`
/// is the byte before it.
fn stuff(before: u8, block: &[u8], sent: &mut Vec<u8>) {
    if before == b'\n' && block.first() == Some(&b'.') {
        sent.push(b'.');
    }
    let mut from = 0;
    for at in memchr::memmem::find_iter(block, b"\n.") {
        sent.extend_from_slice(block.get(from..=at).unwrap_or_default());
        sent.push(b'.');
        from = at + 1;
    }
    sent.extend_from_slice(block.get(from..).unwrap_or_default());
}

/// Whether it holds a bare CR or LF: a server that takes such a one for a line end could be made to see another message
/// behind a dot that is not doubled (SMTP smuggling).
fn has_bare_line_end(content: &[u8]) -> bool {
    // Without an early end, which lets it look at many bytes at a time.
    let pairs = content.iter().zip(content.iter().skip(1));
    let is_torn = pairs.fold(false, |torn, (one, next)| torn | ((*one == b'\r') != (*next == b'\n')));
    is_torn || content.first() == Some(&b'\n') || content.last() == Some(&b'\r')
}

fn bare_line_end() -> End {
    let failure = Failure::new(Class::Message, "554 5.6.11", "the message holds a bare CR or LF");
    End::Unsendable(failure.advise("SMTP forbids such line ends: send it anew from Odoo"))
}

#[cfg(test)]
#[path = "client_tests.rs"]
pub(super) mod tests;
