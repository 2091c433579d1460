//! A message: its SMTP envelope, the few header fields the relay reads, and the one it may rewrite.
//!
//! The relay passes a message on byte for byte, but for a few fields that must change on the way out. So the header
//! section is scanned in place here instead of being parsed into a tree and written out again.

use std::collections::BTreeSet;

use memchr::memchr;

use crate::address::{Address, list};

mod encoded_word;
mod outbound;
#[cfg(test)]
mod outbound_tests;
#[cfg(test)]
mod tests;
mod text;

pub use outbound::{HOST, Trace, outbound, received_ids};
pub use text::text;

/// The longest line a message may have, in octets without its line end, is 998 (RFC 5322 section 2.1.1). A token that
/// cannot be folded stays under this, which leaves room for the field name.
const LONGEST_TOKEN: usize = 900;
/// Where a header line is folded, in octets (RFC 5322 section 2.1.1).
const PREFERRED_LINE: usize = 78;

/// The SMTP envelope (RFC 5321 section 2.3.1). Recipients come from RCPT only: to Odoo, To may name people who are not
/// to get the message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Envelope {
    /// The reverse-path without its angle brackets; empty for the null reverse-path.
    pub mail_from: String,
    /// The forward-paths without their angle brackets, in the order of the RCPT commands.
    pub recipients: Vec<String>,
    /// The client asked for SMTPUTF8 (RFC 6531): addresses or header fields are not all ASCII.
    pub smtputf8: bool,
}

/// What the relay reads from a message. Nothing is parsed until it is asked for, so a huge header section takes linear
/// time and no memory.
#[derive(Clone, Copy)]
pub struct HeaderView<'a> {
    raw: &'a [u8],
}

impl<'a> HeaderView<'a> {
    /// A view of a whole message, which may be malformed in any way. The header section ends at the first blank line,
    /// or at the first line that can be no header field, or with the message.
    pub fn parse(raw: &'a [u8]) -> Self {
        Self { raw }
    }

    /// The text of the From fields (RFC 5322 section 3.6.2), unfolded, RFC 2047 words decoded; several fields are
    /// joined by a comma. `None` if there is no From field.
    ///
    /// A decoded word is put in quotes: what it says belongs to the display name, even if it holds a comma or looks
    /// like an address. Control characters become spaces.
    pub fn from(&self) -> Option<String> {
        let values: Vec<_> = self.fields("From").map(|field| encoded_word::decode(&field.text())).collect();
        (!values.is_empty()).then(|| values.join(", "))
    }

    /// The texts of the fields that name, besides From, who sent it (RFC 5322 sections 3.6.2 and 3.6.6), decoded like
    /// [`from`](Self::from).
    pub fn senders(&self) -> Vec<String> {
        ["Sender", "Resent-From", "Resent-Sender"]
            .into_iter()
            .flat_map(|name| self.fields(name))
            .map(|field| encoded_word::decode(&field.text()))
            .collect()
    }

    /// Whether the header section ends with a blank line, or with the message. Behind a line that is no field others may
    /// go on to read fields, which are not seen here.
    pub fn is_whole(&self) -> bool {
        let mut fields = Fields::new(self.raw);
        fields.by_ref().for_each(drop);
        let line = fields.line_at(fields.at);
        line.is_empty() || is_blank(line)
    }

    /// The Message-ID (RFC 5322 section 3.6.4) with its angle brackets; the field's whole text if it has none. `None`
    /// if it is absent or blank.
    pub fn message_id(&self) -> Option<String> {
        self.id("Message-ID")
    }

    /// The Message-ID that Outlook.com replaced by one of its own (chatmail/core#3077), likewise.
    pub fn original_message_id(&self) -> Option<String> {
        self.id("X-Microsoft-Original-Message-ID")
    }

    fn id(&self, field: &'static str) -> Option<String> {
        let text = self.fields(field).next()?.text();
        let bracketed = text.find('<').and_then(|start| {
            let end = start + text.get(start..)?.find('>')?;
            text.get(start..=end)
        });
        Some(bracketed.unwrap_or(&text)).filter(|id| !id.is_empty()).map(str::to_owned)
    }

    /// How many servers the message has come through, by its trace fields (RFC 5321 section 4.4): each adds a Received
    /// field, and too many of them show a loop (section 6.3).
    pub fn hops(&self) -> usize {
        self.fields("Received").count()
    }

    /// Whether the message reports on another one, so that no report may ever be made about it (RFC 3461 section 6.2,
    /// RFC 5321 section 6.1): it is a multipart/report (RFC 6522), or it has the null reverse-path as its Return-Path,
    /// or MAILER-DAEMON sends it, as whom Odoo refuses mail.
    pub fn is_delivery_report(&self) -> bool {
        let is_report = |field: Field<'_>| {
            let text = field.text();
            text.split(';').next().is_some_and(|kind| kind.trim().eq_ignore_ascii_case("multipart/report"))
        };
        let is_null = |field: Field<'_>| field.text().split_whitespace().collect::<String>() == "<>";
        let is_daemon = |text: &str| text.eq_ignore_ascii_case("MAILER-DAEMON");
        self.fields("Content-Type").any(is_report)
            || self.fields("Return-Path").any(is_null)
            || Address::all(&self.from().unwrap_or_default())
                .iter()
                .any(|(name, address)| is_daemon(name) || is_daemon(address.local()))
    }

    /// Whether the message most likely reports a failed delivery: a multipart/report of the type delivery-status (RFC 3464),
    /// not of another type, such as a receipt (RFC 8098); or else mail from nobody, or from MAILER-DAEMON, that is no
    /// answer of a machine to a mail that arrived (RFC 3834 section 5).
    pub fn is_bounce(&self) -> bool {
        let report_type = self.fields("Content-Type").find_map(|field| {
            let text = field.text().to_lowercase();
            let mut parts = text.split(';').map(str::trim);
            (parts.next() == Some("multipart/report")).then(|| {
                let of = |part: &str| {
                    Some(part.strip_prefix("report-type")?.trim_start().strip_prefix('=')?.to_owned())
                };
                parts.find_map(of).unwrap_or_default()
            })
        });
        if let Some(report_type) = report_type {
            return report_type.trim().trim_matches('"') == "delivery-status";
        }
        let answers = |field: Field<'_>| field.text().trim_start().to_lowercase().starts_with("auto-replied");
        self.is_delivery_report() && !self.fields("Auto-Submitted").any(answers)
    }

    /// The addresses that To, Cc and Bcc name (RFC 5322 section 3.6.3): they tell copies of a message apart that went
    /// out one by one under one Message-ID. Who is to get a message, the envelope alone says.
    pub fn recipients(&self) -> BTreeSet<Address> {
        ["To", "Cc", "Bcc"]
            .into_iter()
            .flat_map(|name| self.fields(name))
            .flat_map(|field| Address::all(&encoded_word::decode(&field.text())))
            .map(|(_, address)| address)
            .collect()
    }

    /// Whether header or body holds bytes of 0x80 and above, so that the next hop needs 8BITMIME (RFC 6152).
    pub fn is_8bit(&self) -> bool {
        !self.raw.is_ascii()
    }

    /// The texts of every field of this name, unfolded and not decoded.
    pub fn texts(&self, name: &'static str) -> impl Iterator<Item = String> {
        self.fields(name).map(|field| field.text())
    }

    fn fields(&self, name: &'static str) -> impl Iterator<Item = Field<'a>> {
        Fields::new(self.raw).filter(move |field| field.is(name))
    }
}

/// The message with its From set to `from`, in decoded form like [`HeaderView::from`] gives it (`"Jürgen" <a@b.test>`);
/// every other byte is kept.
///
/// The spelling of the field name is kept. If there are several From fields, the first is replaced and the others are
/// dropped. If there is none, it is inserted at the top: that is right wherever and however the header section ends.
///
/// Names that are not ASCII are encoded (RFC 2047), lines are folded, and control characters become spaces, so nothing
/// in `from` can add a field. An address that is not ASCII stays as it is (RFC 6532; it has no other form).
pub fn with_from(raw: &[u8], from: &str) -> Vec<u8> {
    edited(raw, &[], |_| false, Some(from))
}

/// The message with fields put on top, those left out that `drops` names, and its From set to `new_from`. The body and
/// every other field keep their bytes.
fn edited(
    raw: &[u8],
    top: &[(&str, Vec<String>)],
    drops: impl Fn(&Field<'_>) -> bool,
    new_from: Option<&str>,
) -> Vec<u8> {
    let first_line = raw.get(..memchr(b'\n', raw).map_or(0, |at| at + 1)).unwrap_or_default();
    let end: &[u8] = if line_end(first_line) == b"\n" { b"\n" } else { b"\r\n" };
    let new_from = new_from.map(from_tokens);
    let added = top.iter().map(|(_, tokens)| tokens).chain(&new_from);
    // Each token has a space before it and at most one line end; each field a name and a line end.
    let room: usize =
        added.map(|tokens| 32 + tokens.iter().map(|token| token.len() + 3).sum::<usize>()).sum();
    let mut message = Vec::with_capacity(raw.len() + room);
    for (name, tokens) in top {
        push_field(&mut message, name.as_bytes(), tokens, end);
        message.extend_from_slice(end);
    }
    let mut to_replace = new_from.as_ref();
    if let Some(tokens) = to_replace
        && HeaderView::parse(raw).fields("From").next().is_none()
    {
        push_field(&mut message, b"From", tokens, end);
        message.extend_from_slice(end);
    }
    if !message.is_empty() && Fields::new(raw).next().is_none() && !is_blank(first_line) {
        // The body begins at once. It must not become a part of the header section.
        message.extend_from_slice(end);
    }
    let mut kept = 0;
    for field in Fields::new(raw) {
        let is_from = new_from.is_some() && field.is("From");
        if !is_from && !drops(&field) {
            continue;
        }
        message.extend_from_slice(raw.get(kept..field.start).unwrap_or_default());
        kept = field.end;
        if is_from && let Some(tokens) = to_replace.take() {
            let end = line_end(field.raw);
            push_field(&mut message, field.name, tokens, if end == b"\n" { end } else { b"\r\n" });
            message.extend_from_slice(end);
        }
    }
    message.extend_from_slice(raw.get(kept..).unwrap_or_default());
    message
}

/// Writes a field without its last line end, folded between its tokens.
fn push_field(message: &mut Vec<u8>, name: &[u8], tokens: &[String], line_end: &[u8]) {
    message.extend_from_slice(name);
    message.push(b':');
    let mut length = name.len() + 1;
    for (count, token) in tokens.iter().enumerate() {
        // The first token stays beside the field name: a line of white space alone is obsolete syntax.
        if count > 0 && length + 1 + token.len() > PREFERRED_LINE {
            message.extend_from_slice(line_end);
            length = 0;
        }
        message.push(b' ');
        message.extend_from_slice(token.as_bytes());
        length += 1 + token.len();
    }
}

/// The From's value as tokens between which a line may be folded.
fn from_tokens(from: &str) -> Vec<String> {
    let from = without_controls(from);
    let mailboxes = list::mailboxes(&from);
    if mailboxes.is_empty() || mailboxes.iter().any(|(_, spec)| spec.len() > LONGEST_TOKEN) {
        return if fits_as_it_is(&from) { vec![from] } else { encoded_word::encode(&from) };
    }
    let mut tokens: Vec<String> = Vec::new();
    for (name, spec) in mailboxes {
        if let Some(last) = tokens.last_mut() {
            last.push(',');
        }
        if name.is_empty() {
            tokens.push(spec);
        } else {
            let quoted = list::quote(&name);
            if fits_as_it_is(&quoted) {
                tokens.push(quoted)
            } else {
                tokens.extend(encoded_word::encode(&name))
            }
            tokens.push(format!("<{spec}>"));
        }
    }
    tokens
}

/// ASCII, short, and nothing in it could be taken for an encoded word.
fn fits_as_it_is(text: &str) -> bool {
    text.is_ascii() && text.len() <= LONGEST_TOKEN && !text.contains("=?")
}

fn without_controls(text: &str) -> String {
    text.replace(char::is_control, " ").trim().to_owned()
}

/// One header field with its continuation lines (RFC 5322 section 2.2).
struct Field<'a> {
    /// Without the obsolete white space before the colon.
    name: &'a [u8],
    /// What stands behind the colon, line ends and all.
    value: &'a [u8],
    /// Name, value and line end.
    raw: &'a [u8],
    /// Where `raw` lies in the message.
    start: usize,
    end: usize,
}

impl Field<'_> {
    fn is(&self, name: &str) -> bool {
        self.name.eq_ignore_ascii_case(name.as_bytes())
    }

    /// The value as text: unfolded (RFC 5322 section 2.2.3), trimmed, without control characters. Bytes that are not
    /// UTF-8 are taken as windows-1252, which is what unlabelled text most often is.
    fn text(&self) -> String {
        let unfolded: Vec<u8> =
            self.value.iter().copied().filter(|byte| !matches!(byte, b'\r' | b'\n')).collect();
        let text =
            String::from_utf8(unfolded).unwrap_or_else(|error| encoded_word::windows_1252(error.as_bytes()));
        without_controls(&text)
    }
}

/// The fields of a header section.
struct Fields<'a> {
    raw: &'a [u8],
    at: usize,
}

impl<'a> Fields<'a> {
    fn new(raw: &'a [u8]) -> Self {
        Self { raw, at: 0 }
    }

    fn line_at(&self, at: usize) -> &'a [u8] {
        let rest = self.raw.get(at..).unwrap_or_default();
        rest.get(..memchr(b'\n', rest).map_or(rest.len(), |end| end + 1)).unwrap_or_default()
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Field<'a>;

    fn next(&mut self) -> Option<Field<'a>> {
        let start = self.at;
        let first = self.line_at(start);
        let colon = memchr(b':', first)?;
        let name = first.get(..colon)?.trim_ascii_end();
        if name.is_empty() || !name.iter().all(u8::is_ascii_graphic) {
            return None;
        }
        let mut end = start + first.len();
        loop {
            let line = self.line_at(end);
            if !matches!(line.first(), Some(b' ' | b'\t')) {
                break;
            }
            end += line.len();
        }
        self.at = end;
        Some(Field {
            name,
            value: self.raw.get(start + colon + 1..end)?,
            raw: self.raw.get(start..end)?,
            start,
            end,
        })
    }
}

fn line_end(line: &[u8]) -> &'static [u8] {
    if line.ends_with(b"\r\n") {
        b"\r\n"
    } else if line.ends_with(b"\n") {
        b"\n"
    } else {
        b""
    }
}

fn is_blank(line: &[u8]) -> bool {
    line == b"\r\n" || line == b"\n"
}
