//! The stream that the IMAP library reads: encrypted already, and holding only what its parser survives.

use std::io::{Error, ErrorKind, Result};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

/// The longest line that is read, in bytes. The library parses a line anew with each 4 KiB of it, so what is endless has to
/// end soon.
const LONGEST_LINE: usize = 64 << 10;
/// How the one response begins that may be longer, and how long it may be: room for more UIDs than are ever asked for at a
/// time ([`crate::fetch::plan::PORTION`]).
const SEARCH: &[u8] = b"* SEARCH";
const LONGEST_SEARCH: usize = 256 << 10;
/// How the server's last words begin (RFC 9051 section 7.1.5), and how much of them is kept, in bytes.
const BYE: &[u8] = b"* BYE ";
const LONGEST_BYE: usize = 300;
/// The longest literal that is read, in bytes: the largest message that is fetched, and some more, since Exchange only
/// estimates sizes. The library makes room for a literal as soon as it is announced.
const LONGEST_LITERAL: u64 = 136 << 20;
/// What a byte that is not ASCII becomes outside of literals: a control character, which is in no folder's name and
/// which no text shows.
const DAMAGED: u8 = 0x7f;

/// An encrypted connection as the library wants it: lines and literals of bounded length, and outside of literals only
/// ASCII (imap-proto 0.17 panics where a character follows a response code; RFC 9051 section 9 allows none there without
/// UTF8=ACCEPT, which nobody asked for).
#[derive(Debug)]
pub(super) struct Wire {
    stream: TlsStream<TcpStream>,
    filter: Filter,
}

impl Wire {
    pub(super) fn new(stream: TlsStream<TcpStream>) -> Self {
        Self { stream, filter: Filter::default() }
    }

    /// Why the server closed the connection, if it said so. (While it signs in, the library drops that.)
    pub(super) fn farewell(&self) -> Option<&str> {
        Some(self.filter.farewell.as_str()).filter(|text| !text.is_empty())
    }
}

/// Where in the responses the reading is.
#[derive(Debug, Default)]
struct Filter {
    /// Bytes of a literal still to come.
    literal: u64,
    /// Bytes of this line so far.
    length: usize,
    /// As many of them as are those of [`SEARCH`].
    search: usize,
    /// As many of them as are those of [`BYE`].
    bye: usize,
    /// What came behind [`BYE`].
    farewell: String,
    tail: Tail,
}

/// How the line ends so far: `{`, digits, `}`, CR announce a literal (RFC 9051 section 4.3).
#[derive(Clone, Copy, Debug, Default)]
enum Tail {
    #[default]
    Text,
    Digits(u64),
    Closed(u64),
    Cr(u64),
}

impl Tail {
    fn then(self, byte: u8) -> Self {
        match (self, byte) {
            (_, b'{') => Self::Digits(0),
            (Self::Digits(number), b'0'..=b'9') => {
                Self::Digits(number.saturating_mul(10).saturating_add(u64::from(byte - b'0')))
            }
            (Self::Digits(number), b'}') => Self::Closed(number),
            (Self::Closed(number), b'\r') => Self::Cr(number),
            _ => Self::Text,
        }
    }
}

impl Filter {
    fn pass(&mut self, mut bytes: &mut [u8]) -> Result<()> {
        while !bytes.is_empty() {
            let inside = usize::try_from(self.literal).unwrap_or(usize::MAX).min(bytes.len());
            let (literal, rest) = bytes.split_at_mut_checked(inside).unwrap_or_default();
            self.literal = self.literal.saturating_sub(literal.len() as u64);
            bytes = rest;
            let mut taken = 0;
            for byte in &mut *bytes {
                taken += 1;
                if self.line(byte)? {
                    break;
                }
            }
            bytes = bytes.split_at_mut_checked(taken).unwrap_or_default().1;
        }
        Ok(())
    }

    /// Takes the next byte of a line; whether a literal begins behind it.
    fn line(&mut self, byte: &mut u8) -> Result<bool> {
        if *byte == b'\n' {
            let literal = if let Tail::Cr(length) = self.tail { length } else { 0 };
            if literal > LONGEST_LITERAL {
                return Err(Error::new(ErrorKind::InvalidData, "a literal that is too long"));
            }
            *self = Self { literal, farewell: std::mem::take(&mut self.farewell), ..Self::default() };
            return Ok(literal > 0);
        }
        if !byte.is_ascii() {
            *byte = DAMAGED;
        }
        self.tail = self.tail.then(*byte);
        if self.search == self.length && SEARCH.get(self.length) == Some(byte) {
            self.search += 1;
        }
        if self.bye == self.length && BYE.get(self.length) == Some(byte) {
            self.bye += 1;
        } else if self.bye == BYE.len() && *byte != b'\r' && self.farewell.len() < LONGEST_BYE {
            self.farewell.push(char::from(*byte));
        }
        self.length += 1;
        let longest = if self.search == SEARCH.len() { LONGEST_SEARCH } else { LONGEST_LINE };
        if self.length > longest {
            return Err(Error::new(ErrorKind::InvalidData, "an endless line"));
        }
        Ok(false)
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buffer))?;
        let read = buffer.filled_mut().get_mut(before..).unwrap_or_default();
        Poll::Ready(self.filter.pass(read))
    }
}

impl AsyncWrite for Wire {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What passes, whatever pieces it comes in.
    fn filtered(bytes: &[u8], piece: usize) -> Option<Vec<u8>> {
        let (mut filter, mut bytes) = (Filter::default(), bytes.to_vec());
        bytes.chunks_mut(piece).try_for_each(|piece| filter.pass(piece)).ok().map(|()| bytes)
    }

    #[test]
    fn only_literals_hold_more_than_ascii() {
        let rows: [(&str, &str); 7] = [
            ("* OK [ALERT]ü\r\n", "* OK [ALERT]\x7f\x7f\r\n"),
            ("* 1 FETCH (BODY[] {2}\r\nü)\r\n* OK ü\r\n", "* 1 FETCH (BODY[] {2}\r\nü)\r\n* OK \x7f\x7f\r\n"),
            ("* 1 FETCH (A {2}\r\nü B {2}\r\nü)\r\n", "* 1 FETCH (A {2}\r\nü B {2}\r\nü)\r\n"),
            ("* 1 FETCH (A {0}\r\nü)\r\n", "* 1 FETCH (A {0}\r\n\x7f\x7f)\r\n"),
            ("* OK {2}ü\r\n", "* OK {2}\x7f\x7f\r\n"),
            ("* OK {2} \r\nü", "* OK {2} \r\n\x7f\x7f"),
            ("* OK {2x}\r\nü", "* OK {2x}\r\n\x7f\x7f"),
        ];
        for (bytes, expected) in rows {
            for piece in [1, 2, 3, 100] {
                let passed = filtered(bytes.as_bytes(), piece).unwrap();
                assert_eq!(String::from_utf8(passed).unwrap(), expected, "{bytes:?} in pieces of {piece}");
            }
        }
    }

    #[test]
    fn no_line_and_no_literal_is_without_end() {
        assert!(filtered(&vec![b'x'; LONGEST_LINE], 4096).is_some());
        assert!(filtered(&vec![b'x'; LONGEST_LINE + 1], 4096).is_none());
        let search = |length| [SEARCH, &vec![b'1'; length - SEARCH.len()]].concat();
        assert!(filtered(&search(LONGEST_SEARCH), 4096).is_some());
        assert!(filtered(&search(LONGEST_SEARCH + 1), 4096).is_none());
        assert!(filtered(b"{142606336}\r\n", 4096).is_some());
        assert!(filtered(b"{142606337}\r\n", 4096).is_none());
        assert!(filtered(b"{99999999999999999999999999}\r\n", 4096).is_none());
    }

    #[test]
    fn last_words_are_kept_in_bounds() {
        let rows = [
            ("* OK BYE\r\n* BYE Server Unavailable. 15\r\n", Some("Server Unavailable. 15")),
            ("* 1 FETCH (BODY[] {8}\r\n* BYE x\r\n)\r\n", None),
            ("* BYE ", None),
            ("a BYE x\r\n", None),
        ];
        for (bytes, expected) in rows {
            for piece in [1, 5, 100] {
                let mut filter = Filter::default();
                bytes.as_bytes().to_vec().chunks_mut(piece).for_each(|piece| filter.pass(piece).unwrap());
                let kept = Some(filter.farewell.as_str()).filter(|text| !text.is_empty());
                assert_eq!(kept, expected, "{bytes:?}");
            }
        }
        let mut filter = Filter::default();
        filter.pass(&mut format!("* BYE {}\r\n", "x".repeat(1000)).into_bytes()).unwrap();
        assert_eq!(filter.farewell.len(), LONGEST_BYE);
    }

    proptest! {
        #[test]
        fn pieces_make_no_difference(bytes: Vec<u8>, piece in 1_usize..20) {
            prop_assert_eq!(filtered(&bytes, piece), filtered(&bytes, usize::MAX));
        }
    }
}
