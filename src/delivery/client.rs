//! The SMTP client: a signed-in connection to the submission service, and mail transactions over it.
//!
//! lettre speaks the protocol, command by command; its high-level calls would give up at the first refused recipient,
//! hide the reply to a failed sign-in, and know one timeout only.

use super::Timeouts;
use super::fault::{Fault, fault, redacted, reply, silent, step, timed, unexpected};
use super::outcome::{End, Rcpt, Transaction};
use super::starttls::{encrypt, hello};
use super::wire::Wire;
use crate::address::Address;
use crate::failure::{Class, Failure, one_line};
use crate::microsoft::smtp_replies::{Reply, Special, Step, judge};
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
use tokio::sync::watch;
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
    mailbox: Address,
    timeouts: Timeouts,
    offers: Offers,
    /// A transaction was left open: RSET comes before the next one.
    open_transaction: bool,
    usable: bool,
    pub(super) opened_at: Instant,
    pub(super) used_at: Instant,
}

/// What the service offers, of what the relay uses.
#[derive(Debug, Default)]
struct Offers {
    size: bool,
    eight_bit: bool,
    smtputf8: bool,
    xoauth2: bool,
}

impl Offers {
    /// From the lines of an EHLO reply (RFC 5321 section 4.1.1.1).
    fn read<'a>(lines: impl Iterator<Item = &'a str>) -> Self {
        let mut offers = Self::default();
        for line in lines.skip(1) {
            let line = line.to_ascii_uppercase();
            let mut words = line.split_ascii_whitespace();
            match words.next() {
                Some("SIZE") => offers.size = true,
                Some("8BITMIME") => offers.eight_bit = true,
                Some("SMTPUTF8") => offers.smtputf8 = true,
                Some("AUTH") => offers.xoauth2 |= words.any(|word| word == "XOAUTH2"),
                _ => {}
            }
        }
        offers
    }
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
        let stream = encrypt(tcp, &hello, target).await?;
        let wire = Box::new(Wire::new(stream));
        let connect = Box::pin(AsyncSmtpConnection::connect_with_transport(wire, &hello));
        let mut smtp = step(timeouts.greeting, Step::Greeting, "EHLO", connect).await?;
        // Once more, since lettre keeps neither SIZE nor the text of the reply.
        let reply = step(timeouts.greeting, Step::Greeting, "EHLO", smtp.command(Ehlo::new(hello))).await?;
        let now = Instant::now();
        Ok(Self {
            smtp,
            mailbox: target.mailbox.clone(),
            timeouts,
            offers: Offers::read(reply.message()),
            open_transaction: false,
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
        self.usable
    }

    /// Names the message's sender and its recipients. `Ok`: the service took some of them, and waits for the message;
    /// here are its answers.
    ///
    /// # Errors
    /// The transaction, which ended before its time.
    pub(super) async fn offer(&mut self, message: &Outgoing<'_>) -> Result<Vec<Rcpt>, Transaction> {
        let mut recipients = Vec::with_capacity(message.recipients.len());
        match self.envelope(message, &mut recipients).await {
            Ok(()) => Ok(recipients),
            Err(end) => Err(self.ended(recipients, end)),
        }
    }

    /// Sends the message that was [offered](Self::offer), to the recipients that were accepted.
    pub(super) async fn submit(&mut self, message: &Outgoing<'_>, recipients: Vec<Rcpt>) -> Transaction {
        let (Ok(end) | Err(end)) = self.content(message).await;
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

    /// MAIL and RCPT; `Err` is how the transaction ended before its time.
    async fn envelope(&mut self, message: &Outgoing<'_>, recipients: &mut Vec<Rcpt>) -> Result<(), End> {
        let body = body(message.content).ok_or_else(bare_line_end)?;
        let parameters = self.parameters(message, body)?;
        if self.open_transaction {
            // A refusal of RSET leaves nothing to rely on.
            self.command(Step::Mail, "RSET\r\n")
                .await
                .map_err(|fault| End::Lost(fault.into_failure("RSET")))?;
            self.open_transaction = false;
        }
        let mail = format!("MAIL FROM:<{}>{parameters}\r\n", self.mailbox);
        self.command(Step::Mail, mail).await.map_err(ended)?;
        self.open_transaction = true;

        for recipient in &message.recipients {
            if let Some(reply) = self.unspeakable(recipient) {
                recipients.push(Rcpt::Refused(reply));
                continue;
            }
            match self.command(Step::Rcpt, format!("RCPT TO:<{recipient}>\r\n")).await {
                Ok(_) => recipients.push(Rcpt::Accepted),
                Err(Fault::Failed(failure)) => return Err(End::Lost(failure)),
                Err(Fault::Refused(step, reply)) => {
                    let judgement = judge(&reply, step, &self.mailbox);
                    let closing = reply.code == 421;
                    recipients.push(Rcpt::Refused(reply));
                    if closing {
                        return Err(End::Lost(judgement.failure));
                    }
                    if judgement.failure.class.pauses_mailbox() {
                        return Err(End::NoRecipient);
                    }
                    if judgement.special == Special::Split {
                        break;
                    }
                }
            }
        }
        if !recipients.iter().any(|answer| matches!(answer, Rcpt::Accepted)) {
            return Err(End::NoRecipient);
        }
        Ok(())
    }

    /// DATA, and the message; `Err` is how the transaction ended before its time.
    async fn content(&mut self, message: &Outgoing<'_>) -> Result<End, End> {
        let body = body(message.content).ok_or_else(bare_line_end)?;
        let answer = self.command(Step::Data, "DATA\r\n").await.map_err(ended)?;
        if !answer.has_code(354) {
            return Err(End::Lost(unexpected("DATA", &answer)));
        }
        let end = self.data(body).await;
        self.open_transaction = false;
        Ok(end)
    }

    /// The parameters of MAIL: what is needed and offered (RFC 1870, 6152, 6531).
    fn parameters(&self, message: &Outgoing<'_>, body: &[u8]) -> Result<String, End> {
        let mut parameters = String::new();
        if self.offers.size {
            parameters.push_str(&format!(" SIZE={}", body.len().saturating_add(2)));
        }
        if message.eight_bit && self.offers.eight_bit {
            parameters.push_str(" BODY=8BITMIME");
        }
        if message.smtputf8 && !self.offers.smtputf8 {
            let failure = Failure::new(Class::Message, "553 5.6.7", "the service does not offer SMTPUTF8");
            let advice = "the message has an address outside of ASCII: use one without accents";
            return Err(End::Unsendable(failure.advise(advice)));
        }
        if message.smtputf8 {
            parameters.push_str(" SMTPUTF8");
        }
        Ok(parameters)
    }

    /// Our own refusal of a recipient that cannot be named in a command.
    fn unspeakable(&self, recipient: &str) -> Option<Reply> {
        let quoted = recipient.starts_with('"');
        let breaks = |c: char| c.is_control() || (!quoted && matches!(c, '<' | '>' | ' '));
        if recipient.is_empty() || recipient.contains(breaks) {
            return Some(Reply::new(553, "5.1.3 the address cannot be written in SMTP"));
        }
        (!recipient.is_ascii() && !self.offers.smtputf8)
            .then(|| Reply::new(553, "5.6.7 the service does not offer SMTPUTF8"))
    }

    async fn command(&mut self, at: Step, command: impl Display) -> Result<Response, Fault> {
        let verb = match at {
            Step::Mail => "MAIL",
            Step::Rcpt => "RCPT",
            _ => "DATA",
        };
        step(self.timeouts.command, at, verb, self.smtp.command(command)).await
    }

    /// The message, and the final dot. Lettre asks for the next block only when the one before is sent, and finds that
    /// there is none only when it is about to send the dot: so each has its own timeout, and it is known which failed.
    async fn data(&mut self, body: &[u8]) -> End {
        let (at, mut now_at) = watch::channel(Sending::Blocks(0));
        let blocks = body.chunks(BLOCK).inspect(|_| at.send_modify(Sending::next_block));
        let blocks = blocks.chain(std::iter::from_fn(|| {
            at.send_replace(Sending::Dot);
            None
        }));
        let Timeouts { block, dot, .. } = self.timeouts;
        let mut sent = Box::pin(self.smtp.message_iter(blocks));
        let result = loop {
            let limit = if *now_at.borrow_and_update() == Sending::Dot { dot } else { block };
            tokio::select! {
                result = &mut sent => break result.map_err(|error| fault(Step::Dot, "the message", &error)),
                Ok(()) = now_at.changed() => {}
                () = tokio::time::sleep(limit) => break Err(silent("the message", limit)),
            }
        };
        let dotted = *now_at.borrow() == Sending::Dot;
        match result {
            Ok(answer) if answer.has_code(250) => End::Taken(reply(&answer)),
            Ok(answer) => End::Unknown(unexpected("the message", &answer)),
            Err(Fault::Refused(step, reply)) => End::Refused(step, reply),
            Err(Fault::Failed(failure)) if dotted => End::Unknown(failure),
            Err(Fault::Failed(failure)) => End::Lost(failure),
        }
    }

    /// Says goodbye, briefly.
    pub(super) async fn quit(mut self) {
        drop(timeout(self.timeouts.quit, Box::pin(self.smtp.abort())).await);
    }
}

/// How far the message is.
#[derive(Debug, PartialEq, Eq)]
enum Sending {
    Blocks(usize),
    Dot,
}

impl Sending {
    fn next_block(&mut self) {
        if let Self::Blocks(blocks) = self {
            *blocks += 1;
        }
    }
}

/// What lettre is to be handed so that the receiver gets `content` byte by byte: without its last line end, since lettre
/// sends one before the dot. `None`: it holds a bare CR or LF, which lettre would not dot-stuff after, so that a
/// server that takes it for a line end could be made to see another message (SMTP smuggling).
fn body(content: &[u8]) -> Option<&[u8]> {
    let paired = |at: usize| match content.get(at) {
        Some(b'\r') => content.get(at + 1) == Some(&b'\n'),
        _ => at.checked_sub(1).and_then(|before| content.get(before)) == Some(&b'\r'),
    };
    memchr::memchr2_iter(b'\r', b'\n', content)
        .all(paired)
        .then(|| content.strip_suffix(b"\r\n").unwrap_or(content))
}

fn bare_line_end() -> End {
    let failure = Failure::new(Class::Message, "554 5.6.11", "the message holds a bare CR or LF");
    End::Unsendable(failure.advise("SMTP forbids such line ends: send it anew from Odoo"))
}

/// The end of a transaction by a fault in one of its commands.
fn ended(fault: Fault) -> End {
    match fault {
        Fault::Refused(step, reply) => End::Refused(step, reply),
        Fault::Failed(failure) => End::Lost(failure),
    }
}

#[cfg(test)]
#[path = "client_tests.rs"]
mod tests;
