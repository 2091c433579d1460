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
    /// Who sent it, if it may begin a record in Odoo, which a report on another message does not: Odoo counts those
    /// against loops.
    pub(super) sender: Option<String>,
    /// Whether it reports a failed delivery.
    pub(super) bounce: bool,
    /// The messages that it says it replies to, the last of them. If Odoo has one, it begins no record.
    pub(super) replies_to: Vec<String>,
    /// It names another address of the company, and not the mailbox.
    pub(super) to_others: bool,
}

/// The fields that a reply has (RFC 5322 section 3.6.4).
const REPLY_FIELDS: [&str; 2] = ["References", "In-Reply-To"];
/// A longer sender's address is cut: no more of it is kept in the ledger. RFC 5321 section 4.5.3.1 allows 320 bytes.
const LONGEST_SENDER: usize = 320;
/// So many Message-Ids of References and In-Reply-To count, the last ones, as in Odoo.
const MOST_REFERENCES: usize = 32;

/// Makes a message ready for Odoo.
///
/// One without a Message-Id, or with one that Odoo [cannot read](is_readable), would become a new record at every push: it gets
/// `<outlook-relay.HASH@DOMAIN>`, where HASH is the first half of its SHA-256 in hex. `booked` is the one that it got
/// before: servers that put a message together at each fetch may do so differently.
///
/// One that does not name the mailbox as a recipient (a blind copy) would have no route: `Delivered-To` says where it
/// was found. But one that names another address in a domain of the company most likely came by that, as a further address
/// of the mailbox, and has its route in Odoo: a second one would make a second record.
pub(super) fn prepare(raw: Vec<u8>, mailbox: &Address, booked: Option<&str>, domains: &[String]) -> Incoming {
    let header = HeaderView::parse(&raw);
    let (found, bounce) = (header.message_id().filter(|id| is_readable(id)), header.is_bounce());
    let booked = booked.filter(|id| is_readable(id));
    let sender = sender(&raw);
    let message_id =
        found.clone().or_else(|| booked.map(str::to_owned)).unwrap_or_else(|| derived_id(&raw, mailbox));
    let mut fields = String::new();
    let named = named(&raw, mailbox, domains);
    if named == Named::Nobody {
        fields.push_str(&delivered_to(mailbox));
    }
    let replies_to = replies_to(&raw);
    if found.is_none() {
        fields.push_str("Message-Id: ");
        fields.push_str(&message_id);
        fields.push_str("\r\n");
    }
    if fields.is_empty() {
        return Incoming { raw, message_id, sender, bounce, replies_to, to_others: named == Named::Company };
    }
    let mut with_fields = fields.into_bytes();
    with_fields.extend_from_slice(&raw);
    Incoming { raw: with_fields, message_id, sender, bounce, replies_to, to_others: named == Named::Company }
}

impl Incoming {
    /// The same with a `Delivered-To` that names the mailbox.
    pub(super) fn delivered_to(mut self, mailbox: &Address) -> Self {
        self.raw.splice(..0, delivered_to(mailbox).into_bytes());
        self.to_others = false;
        self
    }
}

fn delivered_to(mailbox: &Address) -> String {
    format!("Delivered-To: {mailbox}\r\n")
}

/// The Message-Ids in References and In-Reply-To.
fn replies_to(raw: &[u8]) -> Vec<String> {
    let mut ids: Vec<String> = Vec::new();
    let header = HeaderView::parse(raw);
    for text in REPLY_FIELDS.into_iter().flat_map(|name| header.texts(name)) {
        let found = text.split('<').skip(1).filter_map(|rest| rest.split_once('>'));
        ids.extend(found.map(|(id, _)| format!("<{id}>")));
    }
    ids.split_off(ids.len().saturating_sub(MOST_REFERENCES))
}

/// Whether Python, with which Odoo reads mail, reads a Message-Id as it is. Where it begins like one and is none (`<>`,
/// `<@x>`, `<<a@b>>`) Python raises an IndexError (email._header_value_parser.get_msg_id; seen with 3.8 to 3.13), so Odoo
/// never takes the message. Of `<a b@c>` it reads `<a` alone, and Odoo takes the next message of this kind for the same.
fn is_readable(id: &str) -> bool {
    let Some(inner) = id.strip_prefix('<') else {
        return true;
    };
    let closed = inner.strip_suffix('>');
    let (left, right) = match closed.unwrap_or(inner).split_once('@') {
        Some((left, right)) => (left, Some(right)),
        None => (closed.unwrap_or(inner), None),
    };
    let is_odd = |c: char| "()<>,:;[]\\".contains(c) || c.is_whitespace() || c.is_control();
    // Quotes may hold anything.
    let odd_left = if left.contains('"') { left.starts_with(is_odd) } else { left.contains(is_odd) };
    let odd_right = match right {
        None => false,
        Some("") => closed.is_none(),
        Some(right) => match right.strip_prefix('[') {
            Some(literal) => literal
                .strip_suffix(']')
                .is_none_or(|text| text.is_empty() || text.contains(|c| is_odd(c) && c != ':')),
            None => right.starts_with(|c: char| c == '(' || c.is_whitespace()),
        },
    };
    !left.is_empty() && !odd_left && !odd_right
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
    if header.is_delivery_report() {
        return None;
    }
    let mut sender = Address::all(&header.from()?).into_iter().next()?.1.as_str().to_lowercase();
    let end = (0..=LONGEST_SENDER).rev().find(|&end| sender.is_char_boundary(end)).unwrap_or(0);
    sender.truncate(end);
    Some(sender)
}

fn is_one_of(name: &[u8], fields: &[&str]) -> bool {
    fields.iter().any(|field| field.as_bytes().eq_ignore_ascii_case(name.trim_ascii_end()))
}

/// Whom the recipient fields name.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Named {
    /// Nobody of the company.
    Nobody,
    /// Some other address of the company.
    Company,
    /// The mailbox.
    Mailbox,
}

fn named(raw: &[u8], mailbox: &Address, domains: &[String]) -> Named {
    let (mut in_recipients, mut named) = (false, Named::Nobody);
    for line in raw.split(|&byte| byte == b'\n') {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.is_empty() {
            break;
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
        if !in_recipients {
            continue;
        }
        if holds(text, mailbox.as_str()) {
            return Named::Mailbox;
        }
        let mut own = std::iter::once(mailbox.domain()).chain(domains.iter().map(String::as_str));
        if own.any(|domain| holds_domain(text, domain)) {
            named = Named::Company;
        }
    }
    named
}

fn in_address(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte >= 0x80 || b".!#$%&*+-/=?^_`{|}~".contains(&byte)
}

/// Whether a line holds an address of the domain.
fn holds_domain(line: &[u8], domain: &str) -> bool {
    let line = String::from_utf8_lossy(line).to_lowercase();
    let part = format!("@{}", domain.to_lowercase());
    line.match_indices(&part).any(|(at, found)| {
        let after = line.get(at + found.len()..).and_then(|text| text.bytes().next());
        !after.is_some_and(in_address)
    })
}

/// Whether a line holds the address, and not only as the end or the beginning of a longer one.
fn holds(line: &[u8], address: &str) -> bool {
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
            let incoming = prepare(raw.clone().into_bytes(), &john(), Some("<booked@b.test>"), &[]);
            assert_eq!(incoming.raw, raw.as_bytes(), "{field}");
            assert_eq!(incoming.message_id, "<a@b.test>");
        }
    }

    #[test]
    fn a_blind_copy_says_where_it_was_found() {
        let rows = [
            "To: other@foreign.test\r\n",
            "To: big.john@foreign.test, john@example.com.test, john@example.comx\r\n",
            "From: john@example.com\r\n",
            "X-To: john@example.com\r\n",
            "Subject: x\r\n john@example.com\r\n",
            "",
        ];
        for header in rows {
            let raw = format!("{header}Message-ID: <a@b.test>\r\n\r\nTo: john@example.com\r\n");
            let incoming = prepare(raw.clone().into_bytes(), &john(), None, &[]);
            assert_eq!(
                String::from_utf8(incoming.raw).unwrap(),
                format!("Delivered-To: john@example.com\r\n{raw}")
            );
        }
    }

    #[test]
    fn what_names_another_address_of_the_company_has_its_route_by_that() {
        let own = ["Example.org".to_owned()];
        for to in ["bigjohn@example.com", "Sales <SALES@example.com>", "a@x.test,\r\n sales@example.ORG"] {
            let raw = format!("To: {to}\r\nMessage-ID: <a@b.test>\r\n\r\nBody\r\n");
            let incoming = prepare(raw.clone().into_bytes(), &john(), None, &own);
            assert!(incoming.to_others && incoming.raw == raw.as_bytes(), "{to}");
            let named = incoming.delivered_to(&john());
            assert_eq!(named.raw, format!("Delivered-To: john@example.com\r\n{raw}").into_bytes());
            let both = format!("Cc: john@example.com\r\n{raw}");
            assert!(!prepare(both.into_bytes(), &john(), None, &own).to_others, "{to}");
        }
    }

    #[test]
    fn what_it_replies_to_is_told() {
        let raw = b"In-Reply-To: <c@x>\r\nreferences: <a@x>\r\n\t<b@x> junk <\r\n\r\nReferences: <d@x>\r\n";
        assert_eq!(prepare(raw.to_vec(), &john(), None, &[]).replies_to, ["<a@x>", "<b@x>", "<c@x>"]);
        let many: String = (0..100_000).map(|number| format!(" <{number}@x>")).collect();
        let many = prepare(format!("References:{many}\r\n\r\n").into_bytes(), &john(), None, &[]).replies_to;
        assert_eq!((many.len(), many[31].as_str()), (32, "<99999@x>"));
    }

    #[test]
    fn folded_recipients_are_read() {
        let raw =
            b"To: a@x.test,\r\n\tb@x.test,\r\n <JOHN@example.com>\r\nMessage-ID:\r\n <a@b.test>\r\n\r\n";
        let incoming = prepare(raw.to_vec(), &john(), None, &[]);
        assert_eq!(incoming.raw, raw);
        assert_eq!(incoming.message_id, "<a@b.test>");
    }

    #[test]
    fn a_message_id_that_python_cannot_read_counts_as_missing() {
        let unreadable = [
            "<>",
            "<@x>",
            "<[a]@x>",
            "<<a@b>>",
            "<",
            "<[",
            "<(",
            "<)>",
            "<]@x>",
            "< @x>",
            "<a@",
            "<a@[b",
            "<a@[>",
            "<a@[]>",
            "<a@ [b>",
            "<a b@c>",
            "<2026-11-21 10:00@c>",
            "<a,b@c>",
            "<a:b@c>",
        ];
        for id in unreadable {
            let raw = format!("To: john@example.com\r\nMessage-ID: {id}\r\n\r\n").into_bytes();
            for booked in [None, Some(id)] {
                let incoming = prepare(raw.clone(), &john(), booked, &[]);
                assert!(incoming.message_id.starts_with("<outlook-relay."), "{id}: {}", incoming.message_id);
                let first = format!("Message-Id: {}\r\nTo: ", incoming.message_id);
                assert!(incoming.raw.starts_with(first.as_bytes()), "{id}");
            }
        }
        let readable = [
            "<a@b>",
            "<a>",
            "<a@>",
            "a@b",
            "<a..b@c>",
            "<.a@b>",
            "<\"a b\"@c>",
            "<x.JavaMail.\"a b\"@c>",
            "<a@[127.0.0.1]>",
            "<a@[IPv6:::1]>",
            "<a@b:25>",
            "<!&!A/+=$@b.test>",
            "<a@b",
            "<=?utf-8?q?a?=@b>",
        ];
        for id in readable {
            let raw = format!("To: john@example.com\r\nMessage-ID: {id}\r\n\r\n").into_bytes();
            let incoming = prepare(raw.clone(), &john(), None, &[]);
            assert_eq!((incoming.message_id.as_str(), incoming.raw), (id, raw));
        }
    }

    /// What Python makes of the Message-Id of each message: `text`, or the name of the exception.
    fn read_by_python(messages: &[Vec<u8>]) -> Vec<String> {
        use std::io::Write as _;
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/message_id.py");
        let mut python = std::process::Command::new("python3")
            .arg(script)
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let messages: Vec<_> = messages.iter().map(|raw| String::from_utf8_lossy(raw)).collect();
        let input = serde_json::to_vec(&messages).unwrap();
        python.stdin.take().unwrap().write_all(&input).unwrap();
        let output = python.wait_with_output().unwrap();
        assert!(output.status.success());
        serde_json::from_slice(&output.stdout).unwrap()
    }

    #[test]
    fn python_reads_the_message_id_of_whatever_is_prepared() {
        use proptest::strategy::{Strategy as _, ValueTree as _};
        let mut runner = proptest::test_runner::TestRunner::deterministic();
        let ids = proptest::string::string_regex(r#"<[ab.@<>\[\](),:;\\" =?_\t-]{0,9}(>|@b>|)"#).unwrap();
        let ids: Vec<String> = (0..5000).map(|_| ids.new_tree(&mut runner).unwrap().current()).collect();
        let prepared: Vec<_> = ids
            .iter()
            .map(|id| prepare(format!("Message-ID: {id}\r\n\r\n").into_bytes(), &john(), None, &[]))
            .collect();
        let raw: Vec<_> = prepared.iter().map(|incoming| incoming.raw.clone()).collect();
        for ((id, incoming), read) in ids.iter().zip(&prepared).zip(read_by_python(&raw)) {
            assert!(!read.is_empty() && !read.contains("Error"), "{id}: {read}");
            let is_whole =
                incoming.message_id.contains('"') || read.contains('@') || !incoming.message_id.contains('@');
            assert!(is_whole, "{id}: {read}");
        }
    }

    #[test]
    fn a_missing_message_id_is_derived_from_the_bytes() {
        let raw = b"To: john@example.com\r\nSubject: x\r\n\r\nBody\r\n".to_vec();
        let first = prepare(raw.clone(), &john(), None, &[]);
        // What `sha256sum` says of the same bytes.
        assert_eq!(first.message_id, "<outlook-relay.69e1ba73c0d4226e8ad8817ecdfd1a32@example.com>");
        assert_eq!(first, prepare(raw.clone(), &john(), None, &[]));
        assert!(first.raw.starts_with(format!("Message-Id: {}\r\nTo: ", first.message_id).as_bytes()));
        assert!(first.raw.ends_with(&raw));
        assert_eq!(HeaderView::parse(&first.raw).message_id(), Some(first.message_id.clone()));
        let mut other = raw.clone();
        other.push(b'!');
        assert_ne!(prepare(other, &john(), None, &[]).message_id, first.message_id);
        let again = prepare(raw, &john(), Some("<outlook-relay.0@example.com>"), &[]);
        assert_eq!(again.message_id, "<outlook-relay.0@example.com>");
        assert!(again.raw.starts_with(b"Message-Id: <outlook-relay.0@example.com>\r\n"));
    }

    #[test]
    fn only_what_may_begin_a_record_counts_for_its_sender() {
        let from = "From: \"A, B\" <Ann@X.test>\r\n";
        let rows = [
            (String::new(), None),
            (from.to_owned(), Some("ann@x.test")),
            // Odoo may know no such message.
            (format!("{from}References: <a@b.test>\r\n"), Some("ann@x.test")),
            (format!("{from}Content-Type: multipart/report; report-type=delivery-status\r\n"), None),
            ("From: Mail Delivery <MAILER-DAEMON@x.test>\r\n".to_owned(), None),
            ("From: nobody\r\n".to_owned(), None),
            (format!("From: {}@x.test\r\n", "a".repeat(400)), Some(&*"a".repeat(320))),
        ];
        for (header, expected) in rows {
            let raw = format!("{header}\r\nReferences: <in@the.body>\r\n");
            assert_eq!(prepare(raw.into_bytes(), &john(), None, &[]).sender.as_deref(), expected, "{header}");
        }
    }

    proptest! {
        #[test]
        fn every_byte_is_kept_whatever_it_is(raw in any::<Vec<u8>>()) {
            let incoming = prepare(raw.clone(), &john(), None, &[]);
            prop_assert!(incoming.raw.ends_with(&raw));
            prop_assert!(!incoming.message_id.is_empty());
        }
    }
}
