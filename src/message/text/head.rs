//! The header section of a message or a part, as Python's email package reads it.

use super::{Lines, is_line_end};
use memchr::{memchr, memmem};
use std::borrow::Cow;
use std::ops::Range;

/// No encoded word is longer, though senders exceed the 75 characters of RFC 2047 section 2.
const LONGEST_WORD: usize = 1000;

/// A header section.
pub(super) struct Head<'a> {
    /// Its lines.
    pub(super) fields: &'a [u8],
    /// Lines "From …" at its end. Python takes the last for the body's first, and the blank line behind it for nothing.
    pub(super) displaced: &'a [u8],
    /// The last of them.
    pub(super) begins: &'a [u8],
    /// The blank line behind it, if there is one.
    pub(super) separator: &'a [u8],
    content_type: Option<String>,
    /// Where the Content-Transfer-Encoding stands in `fields`, and what it says.
    encoding: Option<(Range<usize>, String)>,
}

/// What a part is made of.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A body.
    Leaf,
    /// A message.
    Message,
    /// message/delivery-status: blocks of fields (RFC 3464 section 2).
    Status,
    /// Parts; the second says whether it is a digest.
    Multipart(Boundary, bool),
}

/// The boundary of a multipart.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Boundary {
    Is(Vec<u8>),
    /// There is none, or it cannot match.
    Missing,
    /// It is written so that versions of Python differ in what they read.
    Unsure,
}

/// The field that the lines being read belong to.
enum Field {
    Type,
    Encoding,
    Other,
}

impl<'a> Head<'a> {
    /// Reads a header section, and the blank line behind it.
    pub(super) fn read(lines: &mut Lines<'a>) -> Self {
        let start = lines.at;
        let mut field = Field::Other;
        let mut content_type: Option<Vec<u8>> = None;
        let mut encoding: Option<(Range<usize>, Vec<u8>)> = None;
        let mut froms: Option<Range<usize>> = None;
        while let Some(line) = lines.peek() {
            let from = lines.at - start;
            let to = from + line.len();
            if line.starts_with(b" ") || line.starts_with(b"\t") {
                match (&field, &mut content_type, &mut encoding) {
                    (Field::Type, Some(value), _) => value.extend_from_slice(line),
                    (Field::Encoding, _, Some((range, value))) => {
                        range.end = to;
                        value.extend_from_slice(line);
                    }
                    _ => {}
                }
                froms = None;
            } else if line.starts_with(b"From ") {
                field = Field::Other;
                // The first line of all may be one.
                if from > 0 {
                    froms = Some(froms.map_or(lines.at, |froms| froms.start)..lines.at);
                }
            } else if let Some((name, value)) = split(line) {
                // The first of several counts.
                field = if name.eq_ignore_ascii_case(b"Content-Type") && content_type.is_none() {
                    content_type = Some(value.to_vec());
                    Field::Type
                } else if name.eq_ignore_ascii_case(b"Content-Transfer-Encoding") && encoding.is_none() {
                    encoding = Some((from..to, value.to_vec()));
                    Field::Encoding
                } else {
                    Field::Other
                };
                froms = None;
            } else {
                break;
            }
            lines.at += line.len();
        }
        let at = lines.at;
        let froms = froms.unwrap_or(at..at);
        let separator = lines.peek().filter(|line| is_line_end(line)).unwrap_or_default();
        lines.at += separator.len();
        let piece = |range: Range<usize>| lines.raw.get(range).unwrap_or_default();
        Self {
            fields: piece(start..froms.start),
            displaced: piece(froms.start..at),
            begins: piece(froms.end..at),
            separator,
            content_type: content_type.map(|value| unfolded(&value)),
            encoding: encoding.map(|(range, value)| (range, unfolded(&value).to_ascii_lowercase())),
        }
    }

    /// The Content-Transfer-Encoding in lower case; empty if there is none.
    pub(super) fn encoding(&self) -> &str {
        self.encoding.as_ref().map_or("", |(_, encoding)| encoding)
    }

    /// The lines before and behind the Content-Transfer-Encoding, or where it is to be put.
    pub(super) fn around_encoding(&self) -> (&'a [u8], &'a [u8]) {
        let end = self.fields.len();
        let range = self.encoding.as_ref().map_or(end..end, |(range, _)| range.clone());
        let before = self.fields.get(..range.start).unwrap_or_default();
        (before, self.fields.get(range.end..).unwrap_or_default())
    }

    pub(super) fn kind(&self, in_digest: bool) -> Kind {
        let Some(text) = &self.content_type else {
            return if in_digest { Kind::Message } else { Kind::Leaf };
        };
        let (kind, parameters) = text.split_once(';').unwrap_or((text, ""));
        let kind = kind.trim().to_lowercase();
        // Anything else is text/plain.
        if kind.matches('/').count() != 1 {
            return Kind::Leaf;
        }
        match kind.split_once('/') {
            Some(("message", "delivery-status")) => Kind::Status,
            Some(("message", _)) => Kind::Message,
            Some(("multipart", sub)) => Kind::Multipart(boundary(parameters), sub == "digest"),
            _ => Kind::Leaf,
        }
    }
}

/// The name and the value of a field's first line; `None` if it is none. (An empty name is a field to Python, though a
/// wrong one.)
fn split(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let (name, value) = line.split_at_checked(memchr(b':', line)?)?;
    name.iter().all(u8::is_ascii_graphic).then_some((name, value.get(1..)?))
}

fn unfolded(value: &[u8]) -> String {
    let value: Vec<u8> = value.iter().copied().filter(|byte| !matches!(byte, b'\r' | b'\n')).collect();
    let text = String::from_utf8_lossy(&value);
    text.trim_start_matches([' ', '\t']).to_owned()
}

/// The first parameter named "boundary" (RFC 2045 section 5.1).
fn boundary(parameters: &str) -> Boundary {
    let mut rest = parameters;
    while !rest.is_empty() {
        let end = end_of_parameter(rest);
        let parameter = rest.get(..end).unwrap_or_default();
        rest = rest.get(end + 1..).unwrap_or_default();
        let Some((name, value)) = parameter.split_once('=') else { continue };
        let name = name.trim().to_ascii_lowercase();
        if name == "boundary" {
            return boundary_value(value.trim());
        } else if name.starts_with("boundary*") {
            // RFC 2231.
            return Boundary::Unsure;
        }
    }
    Boundary::Missing
}

/// Where the parameter ends: at a semicolon outside quotes.
fn end_of_parameter(text: &str) -> usize {
    let (mut quoted, mut escaped) = (false, false);
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b';' if !quoted => return at,
            _ => {}
        }
    }
    text.len()
}

fn boundary_value(value: &str) -> Boundary {
    let value = match value.strip_prefix('"') {
        Some(rest) => {
            let mut text = String::new();
            let mut chars = rest.chars();
            while let Some(c) = chars.next().filter(|&c| c != '"') {
                text.push(if c == '\\' { chars.next().unwrap_or(c) } else { c });
            }
            text
        }
        None if value.starts_with(['<', '(']) || value.contains(['\'', '*', '%']) => return Boundary::Unsure,
        None => {
            let ends = |c: char| c.is_whitespace() || "()<>@,;:\\\"/[]?=".contains(c);
            value.split(ends).next().unwrap_or_default().to_owned()
        }
    };
    let value = value.trim_end();
    if !value.is_ascii() {
        // In lines Python sees bytes, in the field it sees characters.
        Boundary::Missing
    } else if value.is_empty() || value.contains("=?") {
        Boundary::Unsure
    } else {
        Boundary::Is(value.as_bytes().to_vec())
    }
}

/// Writes lines of a header section as text: what is not UTF-8 becomes U+FFFD; but in an encoded word (RFC 2047) any
/// byte is the octet that it is, so there it gets the form that it should have had.
pub(super) fn header_text(lines: &[u8], out: &mut String) {
    if lines.is_ascii() {
        out.push_str(&String::from_utf8_lossy(lines));
        return;
    }
    let mut rest = lines;
    while let Some((before, word, behind)) = next_word(rest) {
        out.push_str(&String::from_utf8_lossy(before));
        out.push_str(&word);
        rest = behind;
    }
    out.push_str(&String::from_utf8_lossy(rest));
}

/// The bytes before the next encoded word that is not ASCII, the word made ASCII, and the bytes behind it.
fn next_word(lines: &[u8]) -> Option<(&[u8], String, &[u8])> {
    memmem::find_iter(lines, b"=?").find_map(|start| {
        let rest = lines.get(start..)?;
        let window = rest.get(..rest.len().min(LONGEST_WORD))?;
        let charset = memchr(b'?', window.get(2..)?)? + 2;
        let [b'?', encoding, b'?', ..] = window.get(charset..)? else { return None };
        let text = charset + 3;
        let end = text + memmem::find(window.get(text..)?, b"?=")?;
        let is_word = window.get(..text)?.is_ascii() && !window.get(..end)?.contains(&b'\n');
        let octets = window.get(text..end)?;
        if !is_word || octets.is_ascii() {
            return None;
        }
        let mut word = String::from_utf8_lossy(window.get(..text)?).into_owned();
        for &octet in octets {
            word.push_str(&match (octet, encoding) {
                (0..0x80, _) => Cow::Owned(char::from(octet).to_string()),
                (_, b'q' | b'Q') => Cow::Owned(format!("={octet:02X}")),
                // No octet of base64: skipped.
                (_, b'b' | b'B') => Cow::Borrowed("!"),
                _ => return None,
            });
        }
        Some((lines.get(..start)?, word, rest.get(end..)?))
    })
}
