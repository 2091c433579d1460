//! What Odoo is told of a failed delivery: a report (RFC 3464, in the multipart/report of RFC 6522) that its mail gateway
//! takes for a bounce. Pure.
//!
//! Each failed recipient gets a report of its own: of several in one report, Odoo (16 to 19) only sees the first. What
//! else it looks at: that the report is multipart/report from MAILER-DAEMON; in the message/delivery-status part, the
//! address behind the semicolon of Final-Recipient in the second group of fields; in the text/rfc822-headers part, the
//! Message-Id, by which it finds the message. From 17 on, the text part becomes the failure reason that its users see.

mod header;
#[cfg(test)]
mod tests;

use crate::failure::{Class, Failure};
use crate::message::HeaderView;
use crate::store::{NewReport, QueueId};
use bytes::Bytes;
use header::{Fields, LONGEST_LINE, cut, is_message_id, is_plain_address, plain};
use jiff::Timestamp;
use jiff::fmt::rfc2822::DateTimePrinter;
use sha2::{Digest, Sha256};
use std::fmt::Write as _;

/// The most of the original's header section that a report quotes, in bytes.
const MOST_QUOTED: usize = 64 * 1024;
/// The most that all reports of one message quote together, in bytes; each of them quotes [`LEAST_QUOTED`] at least.
const MOST_QUOTED_TOGETHER: usize = 1024 * 1024;
const LEAST_QUOTED: usize = 8 * 1024;

/// The message that failed.
#[derive(Clone, Copy, Debug)]
pub struct Original<'a> {
    /// Its queue id.
    pub id: QueueId,
    /// When it was accepted.
    pub received_at: Timestamp,
    /// Its MAIL FROM.
    pub mail_from: &'a str,
    /// Its Message-Id, as it is known without looking into `beginning`.
    pub message_id: Option<&'a str>,
    /// Its header section; more of it does no harm and is not quoted.
    pub beginning: &'a [u8],
}

/// The reports of a failure, one for each recipient; they come from `MAILER-DAEMON` at `domain`.
///
/// `None` where the message has no sender to tell, or is a bounce itself: from the null reverse-path (RFC 5321 section
/// 4.5.5), from a mailer-daemon, as Odoo's own refusals are, or a report. Never a bounce about a bounce.
pub fn reports(
    original: &Original<'_>,
    failed: &[(String, Failure)],
    domain: &str,
    now: Timestamp,
) -> Option<NewReport> {
    let fields = Fields::read(original.beginning);
    if failed.is_empty() || is_bounce(original) {
        return None;
    }
    let most = (MOST_QUOTED_TOGETHER / failed.len()).clamp(LEAST_QUOTED, MOST_QUOTED);
    let quoted = fields.quote(most, original.message_id);
    let report = |(recipient, failure): &(String, Failure)| {
        let report = Report { original, recipient: &plain(recipient), failure, domain, now };
        (recipient.clone(), Bytes::from(report.write(&quoted)))
    };
    Some(NewReport {
        message_id: original.message_id.map(str::to_owned),
        reports: failed.iter().map(report).collect(),
        due_at: now,
    })
}

fn is_bounce(original: &Original<'_>) -> bool {
    original.mail_from.trim().is_empty() || HeaderView::parse(original.beginning).is_delivery_report()
}

/// One report in the making. Whatever comes from outside is on one line, without control characters, when it is
/// written.
struct Report<'a> {
    original: &'a Original<'a>,
    recipient: &'a str,
    failure: &'a Failure,
    domain: &'a str,
    now: Timestamp,
}

impl Report<'_> {
    fn write(&self, quoted: &str) -> String {
        let parts = [
            ("text/plain; charset=utf-8", self.text()),
            ("message/delivery-status", self.delivery_status()),
            ("text/rfc822-headers; charset=utf-8", quoted.to_owned()),
        ];
        let boundary = boundary(&parts);
        let is_ascii = parts.iter().all(|(_, body)| body.is_ascii());
        let mut report = self.header(&boundary, is_ascii);
        for (content_type, body) in &parts {
            // Writing to a String cannot fail.
            let _ = write!(
                report,
                "\r\n--{boundary}\r\nContent-Type: {content_type}\r\nContent-Transfer-Encoding: {}\r\n\r\n{body}",
                encoding(body.is_ascii())
            );
        }
        let _ = write!(report, "\r\n--{boundary}--\r\n");
        report
    }

    fn header(&self, boundary: &str, is_ascii: bool) -> String {
        let Self { original, domain, .. } = self;
        let mut header = String::new();
        line(&mut header, "From", &format!("Mail Delivery System <MAILER-DAEMON@{}>", plain(domain)));
        // Python's email package, and so Odoo, fails at some odd addresses; it knows the report by the From as well.
        let to = Some(original.mail_from).filter(|address| is_plain_address(address));
        line(&mut header, "To", to.unwrap_or("undisclosed-recipients:;"));
        line(&mut header, "Subject", "Undelivered mail returned to sender");
        line(&mut header, "Date", &date(self.now));
        line(&mut header, "Message-ID", &self.message_id());
        // Where Odoo knows the message by neither of these, nothing is lost.
        for name in ["In-Reply-To", "References"] {
            if let Some(message_id) = original.message_id.filter(|id| is_message_id(id)) {
                line(&mut header, name, message_id);
            }
        }
        line(&mut header, "Auto-Submitted", "auto-replied");
        line(&mut header, "MIME-Version", "1.0");
        line(&mut header, "Content-Transfer-Encoding", encoding(is_ascii));
        let content_type =
            format!("multipart/report; report-type=delivery-status;\r\n boundary=\"{boundary}\"");
        let _ = write!(header, "Content-Type: {content_type}\r\n");
        header
    }

    /// The same for the same failure, so that a report that comes twice can be recognised.
    fn message_id(&self) -> String {
        let what = format!("{} {} {}", self.original.id, self.now.as_millisecond(), self.recipient);
        format!("<outlook-relay.{}@{}>", hex(&Sha256::digest(what.as_bytes())), plain(self.domain))
    }

    /// What a person reads: Odoo shows it as the failure's reason.
    fn text(&self) -> String {
        let Failure { class, code, reply, advice, .. } = self.failure;
        let meaning = match class {
            Class::Message => "It was refused for good: sent again as it is, it will be refused again.",
            Class::Transient => "It was tried again and again, until the time for that was over.",
            Class::Rate => "Its mailbox was asked to send less, for longer than a mail is kept waiting.",
            Class::Consent | Class::Administrator => {
                "Its mailbox could not send, for longer than a mail is kept waiting."
            }
        };
        let otherwise = match class {
            Class::Message => "check the address, then send the mail again",
            Class::Transient | Class::Rate => "send the mail again later",
            Class::Consent | Class::Administrator => "ask the administrator of the mail relay",
        };
        let advice = if advice.trim().is_empty() { otherwise } else { advice.as_str() };
        format!(
            "The mail to {} was not delivered.\r\n\r\nSeen: {}\r\n{meaning}\r\nWhat to do: {}\r\n\r\n\
             The mail relay accepted it at {} as {}.\r\n",
            self.recipient,
            plain(&format!("{code} {reply}")),
            plain(advice),
            date(self.original.received_at),
            self.original.id,
        )
    }

    /// RFC 3464 section 2: first what is true of the message, then what is of the recipient.
    fn delivery_status(&self) -> String {
        let mut status = String::new();
        line(&mut status, "Reporting-MTA", &format!("dns; {}", plain(self.domain)));
        line(&mut status, "X-Outlook-Relay-Queue-ID", &self.original.id.to_string());
        line(&mut status, "Arrival-Date", &date(self.original.received_at));
        status.push_str("\r\n");
        // RFC 6533 section 3.
        let address_type = if self.recipient.is_ascii() { "rfc822" } else { "utf-8" };
        line(&mut status, "Final-Recipient", &format!("{address_type}; {}", self.recipient));
        line(&mut status, "Action", "failed");
        line(&mut status, "Status", &status_of(self.failure));
        line(&mut status, "Diagnostic-Code", &diagnostic(self.failure));
        line(&mut status, "Last-Attempt-Date", &date(self.now));
        status
    }
}

/// The Status of RFC 3464 section 2.3.4: the enhanced code of the reply; where it has none, `5.0.0`; where there was no
/// final reply at all, "delivery time expired" (RFC 3463 section 3.5).
fn status_of(failure: &Failure) -> String {
    let is_number = |text: &str| (1..=3).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
    let is_enhanced = |text: &&str| {
        let mut numbers = text.split('.');
        matches!(numbers.next(), Some("4" | "5"))
            && numbers.next().is_some_and(is_number)
            && numbers.next().is_some_and(is_number)
            && numbers.next().is_none()
    };
    let final_reply = match smtp_code(&failure.code) {
        Some(code) => code.starts_with('5'),
        None => failure.class == Class::Message,
    };
    let enhanced = failure.code.split_whitespace().find(is_enhanced);
    enhanced.unwrap_or(if final_reply { "5.0.0" } else { "4.4.7" }).to_owned()
}

/// RFC 3464 section 2.3.6: the reply of the server, or in our own words what was seen instead.
fn diagnostic(failure: &Failure) -> String {
    let Failure { code, reply, .. } = failure;
    match smtp_code(code) {
        Some(_) => format!("smtp; {code} {reply}"),
        None => format!("X-Outlook-Relay; {code} {reply}"),
    }
}

/// The reply code of RFC 5321 section 4.2, where a failure's code begins with one.
fn smtp_code(code: &str) -> Option<&str> {
    let first = code.split_whitespace().next()?;
    (first.len() == 3 && first.bytes().all(|b| b.is_ascii_digit())).then_some(first)
}

fn line(text: &mut String, name: &str, value: &str) {
    // Writing to a String cannot fail.
    let _ = write!(text, "{name}: {}\r\n", cut(&value.replace(char::is_control, " "), LONGEST_LINE));
}

fn date(at: Timestamp) -> String {
    DateTimePrinter::new().timestamp_to_string(&at).unwrap_or_default()
}

fn encoding(is_ascii: bool) -> &'static str {
    if is_ascii { "7bit" } else { "8bit" }
}

/// A boundary that no part contains.
fn boundary(parts: &[(&str, String)]) -> String {
    let mut hasher = Sha256::new();
    parts.iter().for_each(|(_, body)| hasher.update(body.as_bytes()));
    let digest = hex(&hasher.finalize());
    let mut boundary = format!("=_{digest}");
    let mut number = 0_u32;
    while parts.iter().any(|(_, body)| body.contains(&boundary)) {
        number = number.wrapping_add(1);
        boundary = format!("=_{digest}.{number}");
    }
    boundary
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().take(16).fold(String::with_capacity(32), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
