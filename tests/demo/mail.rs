//! Mails as Odoo writes them, and what is read back from those that arrived.

use super::support::entra::uuid;

/// Odoo's envelope sender, and its Return-Path.
pub(crate) const BOUNCE: &str = "bounce@example.com";

/// A mail that Odoo sends.
pub(crate) struct Mail {
    pub(crate) from: String,
    pub(crate) to: String,
    pub(crate) subject: String,
    /// With its brackets.
    pub(crate) id: String,
}

impl Mail {
    pub(crate) fn new(from: &str, to: &str, subject: &str) -> Self {
        Self {
            from: from.to_owned(),
            to: to.to_owned(),
            subject: subject.to_owned(),
            id: format!("<{}-openerp-42-crm.lead@odoo>", uuid()),
        }
    }

    /// As it goes over the wire.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let Self { from, to, subject, id } = self;
        format!(
            "Content-Type: text/plain; charset=\"utf-8\"\r\nContent-Transfer-Encoding: 7bit\r\nMIME-Version: 1.0\r\n\
             Message-Id: {id}\r\nSubject: {subject}\r\nFrom: {from}\r\nReply-To: \"Example Ltd\" <catchall@example.com>\r\n\
             To: {to}\r\nDate: Fri, 20 Nov 2026 10:00:00 -0000\r\nReturn-Path: <{BOUNCE}>\r\nX-Odoo-Objects: crm.lead-42\r\n\
             \r\n{BODY}"
        )
        .into_bytes()
    }
}

/// Ends in the way that tells a careful relay from others: a lone dot and an empty line.
const BODY: &str = "Hello,\r\n\r\nyour order is on its way.\r\n.\r\n\r\n";

/// A mail from outside, as it lies in an inbox.
pub(crate) fn incoming(to: &str, subject: &str, id: &str) -> Vec<u8> {
    format!(
        "Received: from mail.customer.example by example.com; Fri, 20 Nov 2026 10:00:00 +0000\r\n\
         From: \"Ada Customer\" <ada@customer.example>\r\nTo: {to}\r\nSubject: {subject}\r\nMessage-ID: {id}\r\n\
         Date: Fri, 20 Nov 2026 10:00:00 +0000\r\nMIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\n\r\n\
         Good morning,\r\n\r\ncould you make me an offer?\r\n"
    )
    .into_bytes()
}

/// A Message-Id of somebody else.
pub(crate) fn foreign_id() -> String {
    format!("<{}@customer.example>", uuid())
}

/// The value of a header field, unfolded; `None`: there is no such field.
pub(crate) fn header(raw: &[u8], name: &str) -> Option<String> {
    let text = String::from_utf8_lossy(raw);
    let (head, _) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let head = head.replace("\r\n ", " ").replace("\r\n\t", " ");
    head.split("\r\n")
        .filter_map(|line| line.split_once(':'))
        .find(|(field, _)| field.eq_ignore_ascii_case(name))
        .map(|(_, value)| value.trim().to_owned())
}

/// Everything but these fields.
pub(crate) fn without(fields: &[&str], raw: &[u8]) -> String {
    let text = String::from_utf8_lossy(raw);
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let mut left_out = false;
    let kept: Vec<&str> = head
        .split("\r\n")
        .filter(|line| {
            if !line.starts_with([' ', '\t']) {
                let name = line.split_once(':').unwrap_or_default().0;
                left_out = fields.iter().any(|field| field.eq_ignore_ascii_case(name));
            }
            !left_out
        })
        .collect();
    format!("{}\r\n\r\n{body}", kept.join("\r\n"))
}
