//! The envelope of a mail transaction: MAIL, RCPT and DATA (RFC 5321 section 3.3), one after the other or, where the service
//! takes them so, in groups that leave in one write (PIPELINING, RFC 2920); and what the replies come to. No I/O.

use super::client::Outgoing;
use super::fault::{Fault, unexpected};
use super::outcome::{End, Rcpt};
use crate::address::Address;
use crate::failure::{Class, Failure};
use crate::microsoft::smtp_replies::{Reply, Special, Step, judge};
use lettre::transport::smtp::response::{Response, Severity};
use std::ops::ControlFlow;

/// The most recipients of a group. Their replies, which nobody reads while the group is written, fit into the socket's
/// buffers many times over, so that neither side waits for the other (RFC 2920 section 3.1).
const MOST_RECIPIENTS: usize = 100;
/// The most bytes of a group, for the same reason.
const MOST_BYTES: usize = 16 * 1024;

/// What the service offers, of what the relay uses.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Offers {
    pub(super) size: bool,
    pub(super) eight_bit: bool,
    pub(super) smtputf8: bool,
    pub(super) xoauth2: bool,
    pub(super) pipelining: bool,
}

impl Offers {
    /// From the lines of an EHLO reply (RFC 5321 section 4.1.1.1).
    pub(super) fn read<'a>(lines: impl Iterator<Item = &'a str>) -> Self {
        let mut offers = Self::default();
        for line in lines.skip(1) {
            let line = line.to_ascii_uppercase();
            let mut words = line.split_ascii_whitespace();
            match words.next() {
                Some("SIZE") => offers.size = true,
                Some("8BITMIME") => offers.eight_bit = true,
                Some("SMTPUTF8") => offers.smtputf8 = true,
                Some("PIPELINING") => offers.pipelining = true,
                Some("AUTH") => offers.xoauth2 |= words.any(|word| word == "XOAUTH2"),
                _ => {}
            }
        }
        offers
    }

    /// The parameters of MAIL: what is needed and offered (RFC 1870, 6152, 6531).
    ///
    /// # Errors
    /// Something is needed that is not offered.
    pub(super) fn parameters(self, message: &Outgoing<'_>) -> Result<String, End> {
        let mut parameters = String::new();
        if self.size {
            // With the line end that is added where the last one is missing.
            let added = if message.content.ends_with(b"\r\n") { 0 } else { 2 };
            parameters.push_str(&format!(" SIZE={}", message.content.len().saturating_add(added)));
        }
        if message.eight_bit && self.eight_bit {
            parameters.push_str(" BODY=8BITMIME");
        }
        if message.smtputf8 && !self.smtputf8 {
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
    pub(super) fn unspeakable(self, recipient: &str) -> Option<Reply> {
        let quoted = recipient.starts_with('"');
        let breaks = |c: char| c.is_control() || (!quoted && matches!(c, '<' | '>' | ' '));
        if recipient.is_empty() || recipient.contains(breaks) {
            return Some(Reply::new(553, "5.1.3 the address cannot be written in SMTP"));
        }
        (!recipient.is_ascii() && !self.smtputf8)
            .then(|| Reply::new(553, "5.6.7 the service does not offer SMTPUTF8"))
    }
}

/// A command of the envelope.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verb {
    Rset,
    Mail,
    Rcpt,
    Data,
}

impl Verb {
    /// Where a reply to it comes in the dialogue; RSET leads to MAIL.
    pub(super) fn step(self) -> Step {
        match self {
            Self::Rset | Self::Mail => Step::Mail,
            Self::Rcpt => Step::Rcpt,
            Self::Data => Step::Data,
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Rset => "RSET",
            Self::Mail => "MAIL",
            Self::Rcpt => "RCPT",
            Self::Data => "DATA",
        }
    }
}

/// Commands that leave in one write; each gets a reply, in this order.
#[derive(Debug, Default)]
pub(super) struct Group {
    pub(super) text: String,
    pub(super) verbs: Vec<Verb>,
}

impl Group {
    fn push(&mut self, verb: Verb, line: &[&str]) {
        self.verbs.push(verb);
        self.text.extend(line.iter().copied());
        self.text.push_str("\r\n");
    }

    fn has_room_for(&self, recipient: &str) -> bool {
        let fits = self.verbs.len() < MOST_RECIPIENTS && self.text.len() + recipient.len() < MOST_BYTES;
        // One goes in any case.
        fits || self.verbs.is_empty()
    }
}

/// An envelope on its way.
pub(super) struct Envelope<'a> {
    mailbox: &'a Address,
    recipients: &'a [&'a str],
    offers: Offers,
    /// RSET is to be sent first.
    reset: bool,
    /// The service has a transaction of before open.
    has_old: bool,
    /// MAIL, with its parameters, until it is sent.
    mail: Option<String>,
    /// How many recipients were named, or passed over as unspeakable.
    named: usize,
    /// The service takes no more recipients.
    is_full: bool,
    data_sent: bool,
    answers: Vec<Rcpt>,
    /// Why the message is not to be sent; the first reason counts.
    end: Option<End>,
    /// MAIL was taken.
    is_begun: bool,
    /// It waits for the message, and for nothing else (354).
    awaits_content: bool,
    /// Nothing more can be said or heard over this connection.
    is_broken: bool,
}

/// What an envelope came to.
#[derive(Debug)]
pub(super) enum Sealed {
    /// The service waits for the message.
    Content,
    /// It waits for the message, though it took no recipient: it gets none (RFC 2920 section 3.1).
    Nothing,
    /// It is over; whether the connection is of use still.
    Over(End, bool),
}

impl<'a> Envelope<'a> {
    /// `is_open`: the service has a transaction open that is to be reset first.
    ///
    /// # Errors
    /// As [`Offers::parameters`].
    pub(super) fn new(
        message: &'a Outgoing<'_>,
        mailbox: &'a Address,
        offers: Offers,
        is_open: bool,
    ) -> Result<Self, End> {
        Ok(Self {
            mailbox,
            recipients: &message.recipients,
            offers,
            reset: is_open,
            has_old: is_open,
            mail: Some(offers.parameters(message)?),
            named: 0,
            is_full: false,
            data_sent: false,
            answers: Vec::with_capacity(message.recipients.len()),
            end: None,
            is_begun: false,
            awaits_content: false,
            is_broken: false,
        })
    }

    /// What is to be sent next; `None`: nothing, it is [sealed](Self::seal).
    pub(super) fn next_group(&mut self) -> Option<Group> {
        if self.end.is_some() || self.data_sent {
            return None;
        }
        let mut group = Group::default();
        let is_closed = |group: &Group| !self.offers.pipelining && !group.verbs.is_empty();
        if std::mem::take(&mut self.reset) {
            group.push(Verb::Rset, &["RSET"]);
        }
        if !is_closed(&group)
            && let Some(parameters) = self.mail.take()
        {
            group.push(Verb::Mail, &["MAIL FROM:<", self.mailbox.as_str(), ">", &parameters]);
        }
        while let Some(recipient) = self.recipients.get(self.named).filter(|_| !self.is_full) {
            if self.offers.unspeakable(recipient).is_none() {
                if is_closed(&group) || !group.has_room_for(recipient) {
                    return Some(group);
                }
                group.push(Verb::Rcpt, &["RCPT TO:<", recipient, ">"]);
            }
            self.named += 1;
        }
        if is_closed(&group) {
            return Some(group);
        }
        // Without a recipient that was taken, or may be, there is nothing to ask for.
        if group.verbs.contains(&Verb::Rcpt) || self.has_recipient() {
            group.push(Verb::Data, &["DATA"]);
            self.data_sent = true;
        }
        (!group.verbs.is_empty()).then_some(group)
    }

    /// Takes the reply to a command; `Break`: no further one is to be read.
    pub(super) fn take(&mut self, verb: Verb, answer: Result<Response, Fault>) -> ControlFlow<()> {
        let refusal = match answer {
            Ok(answer) if verb == Verb::Data && answer.has_code(354) => {
                self.awaits_content = true;
                return ControlFlow::Continue(());
            }
            Ok(answer) if verb != Verb::Data && answer.code().severity == Severity::PositiveCompletion => {
                self.granted(verb);
                return ControlFlow::Continue(());
            }
            Ok(answer) => return self.lost(verb, unexpected(verb.name(), &answer)),
            Err(Fault::Failed(failure)) => return self.lost(verb, failure),
            Err(Fault::Refused(_, reply)) => reply,
        };
        let is_closing = refusal.code == 421;
        match verb {
            // A refusal of RSET leaves nothing to rely on.
            Verb::Rset => {
                return self.lost(verb, Fault::Refused(Step::Mail, refusal).into_failure("RSET"));
            }
            Verb::Mail => self.over(End::Refused(Step::Mail, refusal)),
            // What follows from the refusal of MAIL says nothing of its own.
            Verb::Rcpt if !self.is_begun => {}
            Verb::Rcpt => {
                let judgement = judge(&refusal, Step::Rcpt, self.mailbox);
                self.answer(Rcpt::Refused(refusal));
                if is_closing {
                    return self.lost(verb, judgement.failure);
                }
                if judgement.failure.class.pauses_mailbox() {
                    self.over(End::NoRecipient);
                }
                self.is_full |= judgement.special == Special::Split;
            }
            Verb::Data if self.has_recipient() => self.over(End::Refused(Step::Data, refusal)),
            Verb::Data => self.over(End::NoRecipient),
        }
        if is_closing {
            self.is_broken = true;
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    }

    fn granted(&mut self, verb: Verb) {
        match verb {
            Verb::Rset => self.has_old = false,
            Verb::Mail => self.is_begun = true,
            Verb::Rcpt if self.is_begun => self.answer(Rcpt::Accepted),
            Verb::Rcpt | Verb::Data => {}
        }
    }

    /// The answer to a recipient, in its place: those before it that could not be named have theirs from us.
    fn answer(&mut self, answer: Rcpt) {
        self.refuse_unspeakable();
        self.answers.push(answer);
    }

    fn refuse_unspeakable(&mut self) {
        let next = |answered| self.recipients.get(answered).filter(|_| answered < self.named);
        while let Some(reply) = next(self.answers.len()).and_then(|next| self.offers.unspeakable(next)) {
            self.answers.push(Rcpt::Refused(reply));
        }
    }

    fn has_recipient(&self) -> bool {
        self.answers.iter().any(|answer| matches!(answer, Rcpt::Accepted))
    }

    fn over(&mut self, end: End) {
        self.end.get_or_insert(end);
    }

    /// The dialogue ends here.
    fn lost(&mut self, verb: Verb, failure: Failure) -> ControlFlow<()> {
        self.is_broken = true;
        // Where nobody was taken, all have their answer, whatever becomes of a DATA that only hurried ahead.
        let is_idle = verb == Verb::Data && !self.has_recipient();
        self.over(if is_idle { End::NoRecipient } else { End::Lost(failure) });
        ControlFlow::Break(())
    }

    /// Whether the service has a transaction open.
    pub(super) fn is_open(&self) -> bool {
        self.has_old || self.is_begun
    }

    /// The answers to the recipients, as far as they were named, and what the envelope came to.
    pub(super) fn seal(mut self) -> (Vec<Rcpt>, Sealed) {
        if self.is_begun {
            self.refuse_unspeakable();
        }
        let has_recipient = self.has_recipient();
        let sealed = match self.end {
            None if self.awaits_content && has_recipient => Sealed::Content,
            None if self.awaits_content => Sealed::Nothing,
            None => Sealed::Over(End::NoRecipient, true),
            // A service that waits for a message which must not be sent is left: whatever came next would be one.
            Some(end) => Sealed::Over(end, !self.is_broken && !self.awaits_content),
        };
        (self.answers, sealed)
    }
}

#[cfg(test)]
#[path = "envelope_tests.rs"]
mod tests;
