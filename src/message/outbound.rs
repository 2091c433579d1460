//! A message on its way out: the fields that a submission server adds and takes away (RFC 6409 section 8).

use jiff::Timestamp;

use super::{Field, HeaderView, edited};

/// What marks a Received field as this program's, on whatever host: a comment behind the host's name.
const MARKER: &str = "(outlook-relay)";

/// The name that the relay goes by, in its greeting and in Received fields. The machine's own is nobody's business.
pub const HOST: &str = "outlook-relay";

/// How a message came to the relay (RFC 5321 section 4.4).
#[derive(Clone, Copy, Debug)]
pub struct Trace<'a> {
    /// What the client called itself in EHLO; `None` if that is not known.
    pub client: Option<&'a str>,
    /// The relay's own host.
    pub host: &'a str,
    /// The protocol: `ESMTP`, `ESMTPS`, `ESMTPA`, … (RFC 3848).
    pub protocol: &'a str,
    /// The id in the queue.
    pub id: &'a str,
    /// When it was accepted.
    pub received_at: Timestamp,
    /// The domain of the Message-ID that it gets if it has none: the mailbox's.
    pub domain: &'a str,
}

impl Trace<'_> {
    /// The Message-ID, with its angle brackets, of a message that came without one. The same id always gives the same,
    /// so that the message can be searched for where it was sent.
    pub fn message_id(&self) -> String {
        let domain = word(self.domain).or_else(|| word(self.host)).unwrap_or("localhost");
        format!("<{}@{domain}>", self.id())
    }

    fn id(&self) -> &str {
        word(self.id).unwrap_or("unknown")
    }

    fn date(&self) -> String {
        self.received_at.strftime("%a, %d %b %Y %H:%M:%S +0000").to_string()
    }

    /// The value of the Received field, as tokens between which it may be folded.
    fn received(&self) -> Vec<String> {
        let client = self.client.and_then(word).map(|client| format!("from {client}"));
        let host = word(self.host).unwrap_or("localhost");
        let protocol = word(self.protocol).unwrap_or("SMTP");
        let by = [
            format!("by {host} {MARKER}"),
            format!("with {protocol}"),
            format!("id {};", self.id()),
            self.date(),
        ];
        client.into_iter().chain(by).collect()
    }
}

/// The message as it leaves the relay.
///
/// - A Received field goes on top (RFC 5321 section 4.4), which [`received_ids`] finds again.
/// - Bcc, Resent-Bcc and Return-Path go: the first two are secret (RFC 5322 section 3.6.3), and the last is set by who
///   delivers finally (RFC 5321 section 4.4).
/// - A Date and a Message-ID are added where they are absent or blank (RFC 6409 sections 8.2 and 8.3).
/// - The From becomes `new_from`, as [`with_from`](super::with_from) does it.
///
/// Every other byte is kept.
pub fn outbound(raw: &[u8], trace: &Trace<'_>, new_from: Option<&str>) -> Vec<u8> {
    let header = HeaderView::parse(raw);
    let without_id = header.message_id().is_none();
    let without_date = header.fields("Date").all(|field| is_empty(&field));
    let mut top = vec![("Received", trace.received())];
    if without_date {
        top.push(("Date", vec![trace.date()]));
    }
    if without_id {
        top.push(("Message-ID", vec![trace.message_id()]));
    }
    let drops = |field: &Field<'_>| {
        ["Bcc", "Resent-Bcc", "Return-Path"].iter().any(|name| field.is(name))
            || without_date && field.is("Date")
            || without_id && field.is("Message-ID") && is_empty(field)
    };
    edited(raw, &top, drops, new_from)
}

fn is_empty(field: &Field<'_>) -> bool {
    field.text().is_empty()
}

/// The ids under which any outlook-relay has queued this message, by its Received fields, the latest first. Servers on
/// the way may have folded them anew. Anybody can write such a field, so an id is a hint and no proof.
pub fn received_ids(raw_headers: &[u8]) -> Vec<String> {
    HeaderView::parse(raw_headers).fields("Received").filter_map(|field| queue_id(&field.text())).collect()
}

/// The id in a Received field that this program wrote.
fn queue_id(received: &str) -> Option<String> {
    let mut tokens = Tokens { rest: received };
    tokens.find(|token| token.eq_ignore_ascii_case("by"))?;
    let _host = tokens.next()?;
    if tokens.next()? != MARKER {
        return None;
    }
    tokens.find(|token| token.eq_ignore_ascii_case("id"))?;
    word(tokens.next()?).map(str::to_owned)
}

/// The words and comments of a Received field, as far as the semicolon before its date.
struct Tokens<'a> {
    rest: &'a str,
}

impl<'a> Iterator for Tokens<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        let text = self.rest.trim_ascii_start();
        let mut depth = 0_usize;
        let is_comment = text.starts_with('(');
        let end = text.find(|c: char| {
            match c {
                '(' if is_comment => depth += 1,
                // The comment ends behind its parenthesis.
                ')' if is_comment => depth = depth.saturating_sub(1),
                _ => {}
            }
            if is_comment { depth == 0 } else { c.is_ascii_whitespace() || matches!(c, '(' | ';') }
        });
        let end = end.map_or(text.len(), |end| if is_comment { end + 1 } else { end });
        let (token, rest) = text.split_at_checked(end)?;
        self.rest = rest;
        (!token.is_empty()).then_some(token)
    }
}

/// The text, if it is a domain, an address literal or an id: nothing in it can end a field or begin a comment.
fn word(text: &str) -> Option<&str> {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-._:+[]".contains(&byte);
    (!text.is_empty() && text.len() <= 255 && text.bytes().all(fits)).then_some(text)
}
