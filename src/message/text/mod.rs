//! A message as text, for an interface that has no place for bytes: JSON.
//!
//! Odoo turns the text into UTF-8 and hands that to Python's email package (`email.message_from_bytes`). A message that
//! is UTF-8 already arrives as it is. In any other, the bodies with bytes of 0x80 and above become base64
//! (RFC 2045 section 6.8) of exactly what Python would have decoded them to, and every other part keeps its bytes. Only
//! header fields, and the text around parts, which nobody reads, cannot be made 7 bit without changing what they say:
//! what of them is not UTF-8 becomes U+FFFD, as Python itself does when it reads them.
//!
//! So that both sides see the same parts, messages are taken apart here as Python does it, in one pass over the lines.

mod head;
mod transfer;

#[cfg(test)]
mod tests;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use head::{Boundary, Head, Kind, header_text};
use memchr::memchr2;
use std::borrow::Cow;
use transfer::Body;

/// Messages in messages and multiparts in multiparts are taken apart up to this depth. What lies deeper keeps its
/// structure, and loses what is not UTF-8.
const DEEPEST: usize = 64;

/// Octets in one line of base64: they make 76 characters (RFC 2045 section 6.8).
const OCTETS_A_LINE: usize = 57;

/// The message as text; borrowed if its bytes are UTF-8. Takes time and memory in proportion to its size.
pub fn text(raw: &[u8]) -> Cow<'_, str> {
    if let Ok(text) = std::str::from_utf8(raw) {
        return Cow::Borrowed(text);
    }
    let out = String::with_capacity(raw.len() + raw.len() / 8);
    let mut walk = Walk { lines: Lines { raw, at: 0, stops: Vec::new() }, out };
    walk.message(false, false, 0);
    Cow::Owned(walk.out)
}

/// The lines of a message, up to those at which the part at hand ends.
struct Lines<'a> {
    raw: &'a [u8],
    at: usize,
    /// The boundaries of the multiparts around the part at hand: each ends it (RFC 2046 section 5.1.2).
    stops: Vec<Vec<u8>>,
}

impl<'a> Lines<'a> {
    /// The next line with its line end, which may be a lone CR as well; `None` where the part ends.
    fn peek(&self) -> Option<&'a [u8]> {
        let rest = self.raw.get(self.at..).filter(|rest| !rest.is_empty())?;
        let length = match memchr2(b'\r', b'\n', rest) {
            Some(end) if rest.get(end..end + 2) == Some(b"\r\n") => end + 2,
            Some(end) => end + 1,
            None => rest.len(),
        };
        let line = rest.get(..length)?;
        let ends = line.starts_with(b"--") && self.stops.iter().any(|stop| delimits(line, stop).is_some());
        (!ends).then_some(line)
    }

    /// All lines up to the part's end.
    fn rest(&mut self) -> &'a [u8] {
        let start = self.at;
        while let Some(line) = self.peek() {
            self.at += line.len();
        }
        self.raw.get(start..self.at).unwrap_or_default()
    }
}

/// A delimiter line of a multipart with this boundary.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Delimiter {
    Next,
    Close,
}

/// Which delimiter of the boundary the line is, if it is one.
fn delimits(line: &[u8], boundary: &[u8]) -> Option<Delimiter> {
    let rest = line.strip_prefix(b"--")?.strip_prefix(boundary)?;
    let (rest, delimiter) = match rest.strip_prefix(b"--") {
        Some(rest) => (rest, Delimiter::Close),
        None => (rest, Delimiter::Next),
    };
    let is_space = |byte: &u8| matches!(byte, b' ' | b'\t');
    let end = rest.iter().position(|byte| !is_space(byte)).unwrap_or(rest.len());
    is_line_end(rest.get(end..)?).then_some(delimiter)
}

fn is_line_end(bytes: &[u8]) -> bool {
    matches!(bytes, b"" | b"\r\n" | b"\r" | b"\n")
}

/// Takes a message apart and writes it out.
struct Walk<'a> {
    lines: Lines<'a>,
    out: String,
}

impl<'a> Walk<'a> {
    /// One message or body part. In a multipart the line end before the next delimiter belongs to that; in a digest a
    /// part without a type is a message (RFC 2046 section 5.1.5).
    fn message(&mut self, in_multipart: bool, in_digest: bool, depth: usize) {
        let head = Head::read(&mut self.lines);
        match head.kind(in_digest) {
            _ if depth >= DEEPEST => self.untouched(&head),
            Kind::Status | Kind::Multipart(Boundary::Unsure, _) => self.untouched(&head),
            Kind::Message => {
                self.copy_head(&head);
                if head.separator.is_empty() {
                    // What that message's own header section may get must not fall into this one.
                    self.out.push_str("\r\n");
                }
                self.message(in_multipart, false, depth + 1);
            }
            Kind::Multipart(Boundary::Is(boundary), digest) => self.multipart(&head, boundary, digest, depth),
            Kind::Multipart(Boundary::Missing, _) => {
                let body = self.lines.rest();
                self.leaf(&head, body, false);
            }
            Kind::Leaf => {
                let body = self.lines.rest();
                self.leaf(&head, body, in_multipart);
            }
        }
    }

    fn multipart(&mut self, head: &Head<'a>, boundary: Vec<u8>, is_digest: bool, depth: usize) {
        let start = self.lines.at;
        let mut first = None;
        while let Some(line) = self.lines.peek() {
            first = delimits(line, &boundary);
            if first.is_some() {
                break;
            }
            self.lines.at += line.len();
        }
        let preamble = self.lines.raw.get(start..self.lines.at).unwrap_or_default();
        if first != Some(Delimiter::Next) {
            // It never begins: Python takes all of it for one body.
            self.leaf(head, preamble, false);
            return self.copy_rest();
        }
        self.copy_head(head);
        self.copy(preamble);
        while let Some(line) = self.lines.peek() {
            if delimits(line, &boundary) == Some(Delimiter::Close) {
                return self.copy_rest();
            }
            // Delimiters that follow each other, whichever they are, have no part between them.
            while let Some(line) = self.lines.peek().filter(|line| delimits(line, &boundary).is_some()) {
                self.copy(line);
                self.lines.at += line.len();
            }
            self.lines.stops.push(boundary.clone());
            self.message(true, is_digest, depth + 1);
            self.lines.stops.pop();
        }
    }

    /// A part with a body of its own. `line_end_apart`: its last line end is not the body's.
    fn leaf(&mut self, head: &Head<'a>, body: &[u8], line_end_apart: bool) {
        let (body, line_end) = if line_end_apart { without_line_end(body) } else { (body, &b""[..]) };
        if body.is_ascii() && head.displaced.is_ascii() {
            self.copy_head(head);
            self.copy(body);
            return self.copy(line_end);
        }
        let whole: Cow<'_, [u8]> = if head.begins.is_empty() {
            Cow::Borrowed(body)
        } else {
            Cow::Owned([head.begins, body].concat())
        };
        let separator = if head.separator.is_empty() { b"\r\n" } else { head.separator };
        match transfer::decoded(head.encoding(), &whole) {
            Body::Octets(octets) => {
                let (before, after) = head.around_encoding();
                header_text(before, &mut self.out);
                self.out.push_str("Content-Transfer-Encoding: base64\r\n");
                header_text(after, &mut self.out);
                self.copy(separator);
                self.base64(&octets, line_end.is_empty());
            }
            Body::Encoded(ascii) => {
                header_text(head.fields, &mut self.out);
                self.copy(separator);
                self.copy(&ascii);
            }
        }
        self.copy(line_end);
    }

    fn base64(&mut self, octets: &[u8], closed: bool) {
        self.out.reserve(octets.len().div_ceil(3) * 4 + octets.len() / OCTETS_A_LINE * 2 + 2);
        for (count, line) in octets.chunks(OCTETS_A_LINE).enumerate() {
            if count > 0 {
                self.out.push_str("\r\n");
            }
            STANDARD.encode_string(line, &mut self.out);
        }
        if closed {
            self.out.push_str("\r\n");
        }
    }

    fn untouched(&mut self, head: &Head<'a>) {
        self.copy_head(head);
        self.copy_rest();
    }

    fn copy_head(&mut self, head: &Head<'a>) {
        header_text(head.fields, &mut self.out);
        self.copy(head.displaced);
        self.copy(head.separator);
    }

    fn copy_rest(&mut self) {
        let rest = self.lines.rest();
        self.copy(rest);
    }

    fn copy(&mut self, bytes: &[u8]) {
        self.out.push_str(&String::from_utf8_lossy(bytes));
    }
}

/// A body and its last line end.
fn without_line_end(body: &[u8]) -> (&[u8], &[u8]) {
    let length = match body {
        [.., b'\r', b'\n'] => 2,
        [.., b'\r' | b'\n'] => 1,
        _ => 0,
    };
    body.split_at_checked(body.len() - length).unwrap_or((body, b""))
}
