//! A received message as Odoo gets it: unchanged, but for the two fields without which Odoo would duplicate or refuse
//! it.

use crate::address::Address;
use crate::message::HeaderView;
use sha2::{Digest, Sha256};
use std::fmt::Write as _;

/// The fields that Odoo routes by.
const RECIPIENT_FIELDS: [&str; 5] = ["Delivered-To", "To", "Cc", "Resent-To", "Resent-Cc"];

/// A message ready to be pushed.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Incoming {
    /// Its bytes.
    pub(super) raw: Vec<u8>,
    /// The Message-Id that it holds.
    pub(super) message_id: String,
    /// Who sent it, if it may begin a record in Odoo, which it does not as a reply to another message, or as a report on
    /// one: Odoo counts those against loops.
    pub(super) sender: Option<String>,
    /// Whether it reports a failed delivery.
    pub(super) bounce: bool,
}

/// The fields that a reply has (RFC 5322 section 3.6.4).
const REPLY_FIELDS: [&str; 2] = ["References", "In-Reply-To"];
/// A longer sender's address is cut: no more of it is kept in the ledger. RFC 5321 section 4.5.3.1 allows 320 bytes.
const LONGEST_SENDER: usize = 320;

/// Makes a message ready for Odoo.
///
/// One without a Message-Id would become a new record at every push: it gets
/// `<outlook-relay.HASH@DOMAIN>`, where HASH is the first half of its SHA-256 in hex. `booked` is the one that it got
/// before: servers that put a message together at each fetch may do so differently.
///
/// One that does not name the mailbox as a recipient (a blind copy) would have no route: `Delivered-To` says where it
/// was found.
pub(super) fn prepare(raw: Vec<u8>, mailbox: &Address, booked: Option<&str>) -> Incoming {
    let header = HeaderView::parse(&raw);
    let (found, bounce) = (header.message_id(), header.is_bounce());
    let sender = sender(&raw);
    let message_id =
        found.clone().or_else(|| booked.map(str::to_owned)).unwrap_or_else(|| derived_id(&raw, mailbox));
    let mut fields = String::new();
    if !names(&raw, mailbox) {
        fields.push_str("Delivered-To: ");
        fields.push_str(mailbox.as_str());
        fields.push_str("\r\n");
    }
    if found.is_none() {
        fields.push_str("Message-Id: ");
        fields.push_str(&message_id);
        fields.push_str("\r\n");
    }
    if fields.is_empty() {
        return Incoming { raw, message_id, sender, bounce };
    }
    let mut with_fields = fields.into_bytes();
    with_fields.extend_from_slice(&raw);
    Incoming { raw: with_fields, message_id, sender, bounce }
}

fn derived_id(raw: &[u8], mailbox: &Address) -> String {
    let hash = Sha256::digest(raw);
    let mut id = "<outlook-relay.".to_owned();
    for byte in hash.iter().take(16) {
        // Writing to a String cannot fail.
        let _ = write!(id, "{byte:02x}");
    }
    id.push('@');
    id.push_str(mailbox.domain());
    id.push('>');
    id
}

fn sender(raw: &[u8]) -> Option<String> {
    let header = HeaderView::parse(raw);
    if header.is_delivery_report() || header_names(raw).any(|name| is_one_of(name, &REPLY_FIELDS)) {
        return None;
    }
    let mut sender = Address::all(&header.from()?).into_iter().next()?.1.as_str().to_lowercase();
    let end = (0..=LONGEST_SENDER).rev().find(|&end| sender.is_char_boundary(end)).unwrap_or(0);
    sender.truncate(end);
    Some(sender)
}

/// The names of the header's fields.
fn header_names(raw: &[u8]) -> impl Iterator<Item = &[u8]> {
    let header = raw.split(|&byte| byte == b'\n').take_while(|line| !line.is_empty() && *line != b"\r");
    header.filter_map(|line| {
        let colon = memchr::memchr(b':', line)?;
        line.get(..colon)
    })
}

fn is_one_of(name: &[u8], fields: &[&str]) -> bool {
    fields.iter().any(|field| field.as_bytes().eq_ignore_ascii_case(name.trim_ascii_end()))
}

/// Whether a recipient field names the mailbox.
fn names(raw: &[u8], mailbox: &Address) -> bool {
    let mut in_recipients = false;
    for line in raw.split(|&byte| byte == b'\n') {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.is_empty() {
            return false;
        }
        // A line that begins with white space goes on with the field before (RFC 5322 section 2.2.3).
        let text = if line.starts_with(b" ") || line.starts_with(b"\t") {
            line
        } else {
            let colon = line.iter().position(|&byte| byte == b':').unwrap_or(line.len());
            let (name, value) = line.split_at_checked(colon).unwrap_or((line, b""));
            in_recipients = is_one_of(name, &RECIPIENT_FIELDS);
            value
        };
        if in_recipients && holds(text, mailbox.as_str()) {
            return true;
        }
    }
    false
}

/// Whether a line holds the address, and not only as the end or the beginning of a longer one.
fn holds(line: &[u8], address: &str) -> bool {
    let in_address =
        |byte: u8| byte.is_ascii_alphanumeric() || byte >= 0x80 || b".!#$%&*+-/=?^_`{|}~".contains(&byte);
    let line = String::from_utf8_lossy(line).to_lowercase();
    let address = address.to_lowercase();
    line.match_indices(&address).any(|(at, found)| {
        let before = line.get(..at).and_then(|text| text.bytes().next_back());
        let after = line.get(at + found.len()..).and_then(|text| text.bytes().next());
        !before.is_some_and(in_address) && !after.is_some_and(in_address)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn john() -> Address {
        Address::normalise("john@example.com").unwrap()
    }

    #[test]
    fn a_whole_message_is_not_touched() {
        for field in ["To", "to", "CC", "Delivered-To", "Resent-To", "Resent-Cc", "To "] {
            let raw =
                format!("{field}: \"John\" <John@Example.COM>\r\nMessage-ID: <a@b.test>\r\n\r\nBody\r\n");
            let incoming = prepare(raw.clone().into_bytes(), &john(), Some("<booked@b.test>"));
            assert_eq!(incoming.raw, raw.as_bytes(), "{field}");
            assert_eq!(incoming.message_id, "<a@b.test>");
        }
    }

    #[test]
    fn a_blind_copy_says_where_it_was_found() {
        let rows = [
            "To: other@example.com\r\n",
            "To: bigjohn@example.com\r\n",
            "To: big.john@example.com, john@example.com.test\r\n",
            "From: john@example.com\r\n",
            "X-To: john@example.com\r\n",
            "Subject: x\r\n john@example.com\r\n",
            "",
        ];
        for header in rows {
            let raw = format!("{header}Message-ID: <a@b.test>\r\n\r\nTo: john@example.com\r\n");
            let incoming = prepare(raw.clone().into_bytes(), &john(), None);
            assert_eq!(
                String::from_utf8(incoming.raw).unwrap(),
                format!("Delivered-To: john@example.com\r\n{raw}")
            );
        }
    }

    #[test]
    fn folded_recipients_are_read() {
        let raw =
            b"To: a@x.test,\r\n\tb@x.test,\r\n <JOHN@example.com>\r\nMessage-ID:\r\n <a@b.test>\r\n\r\n";
        let incoming = prepare(raw.to_vec(), &john(), None);
        assert_eq!(incoming.raw, raw);
        assert_eq!(incoming.message_id, "<a@b.test>");
    }

    #[test]
    fn a_missing_message_id_is_derived_from_the_bytes() {
        let raw = b"To: john@example.com\r\nSubject: x\r\n\r\nBody\r\n".to_vec();
        let first = prepare(raw.clone(), &john(), None);
        // What `sha256sum` says of the same bytes.
        assert_eq!(first.message_id, "<outlook-relay.69e1ba73c0d4226e8ad8817ecdfd1a32@example.com>");
        assert_eq!(first, prepare(raw.clone(), &john(), None));
        assert!(first.raw.starts_with(format!("Message-Id: {}\r\nTo: ", first.message_id).as_bytes()));
        assert!(first.raw.ends_with(&raw));
        assert_eq!(HeaderView::parse(&first.raw).message_id(), Some(first.message_id.clone()));
        let mut other = raw.clone();
        other.push(b'!');
        assert_ne!(prepare(other, &john(), None).message_id, first.message_id);
        let again = prepare(raw, &john(), Some("<outlook-relay.0@example.com>"));
        assert_eq!(again.message_id, "<outlook-relay.0@example.com>");
        assert!(again.raw.starts_with(b"Message-Id: <outlook-relay.0@example.com>\r\n"));
    }

    #[test]
    fn only_what_may_begin_a_record_counts_for_its_sender() {
        let from = "From: \"A, B\" <Ann@X.test>\r\n";
        let rows = [
            (String::new(), None),
            (from.to_owned(), Some("ann@x.test")),
            (format!("{from}References: <a@b.test>\r\n"), None),
            (format!("{from}in-reply-to : <a@b.test>\r\n"), None),
            (format!("{from}X-References: <a@b.test>\r\n"), Some("ann@x.test")),
            (format!("{from}Content-Type: multipart/report; report-type=delivery-status\r\n"), None),
            ("From: Mail Delivery <MAILER-DAEMON@x.test>\r\n".to_owned(), None),
            ("From: nobody\r\n".to_owned(), None),
            (format!("From: {}@x.test\r\n", "a".repeat(400)), Some(&*"a".repeat(320))),
        ];
        for (header, expected) in rows {
            let raw = format!("{header}\r\nReferences: <in@the.body>\r\n");
            assert_eq!(prepare(raw.into_bytes(), &john(), None).sender.as_deref(), expected, "{header}");
        }
    }

    proptest! {
        #[test]
        fn every_byte_is_kept_whatever_it_is(raw in any::<Vec<u8>>()) {
            let incoming = prepare(raw.clone(), &john(), None);
            prop_assert!(incoming.raw.ends_with(&raw));
            prop_assert!(!incoming.message_id.is_empty());
        }
    }
}
