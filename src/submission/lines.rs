//! Splits command lines off the input. Pure: works on a buffer that the listener fills.

use bytes::{Buf as _, BytesMut};

/// A line over the limit is dropped while it is read; beyond this many octets the client is given up.
const ENDLESS: usize = 1 << 20;

/// Finds the end of each line, and drops what is over the limit.
#[derive(Default)]
pub struct LineReader {
    dropped: usize,
}

/// What stood at the front of the buffer.
#[derive(Debug, PartialEq, Eq)]
pub enum Line {
    /// A line, without its CRLF.
    Complete(BytesMut),
    /// A line over the limit, now dropped.
    TooLong,
    /// A line over any limit, whose end is not in sight.
    Endless,
    /// A line that ended in LF alone.
    BareLineFeed,
}

impl LineReader {
    /// Takes the next line off `buffer`. `None`: its end has not arrived. `limit`: octets, with the CRLF.
    pub fn next(&mut self, buffer: &mut BytesMut, limit: usize) -> Option<Line> {
        let Some(end) = memchr::memchr(b'\n', buffer) else {
            if self.dropped + buffer.len() > limit {
                // The last byte stays: it may be the CR of the end.
                let drop = buffer.len().saturating_sub(1);
                buffer.advance(drop);
                self.dropped += drop;
            }
            return (self.dropped > ENDLESS).then_some(Line::Endless);
        };
        let mut line = buffer.split_to(end + 1);
        let length = std::mem::take(&mut self.dropped) + line.len();
        if !line.ends_with(b"\r\n") {
            return Some(Line::BareLineFeed);
        }
        if length > limit {
            return Some(Line::TooLong);
        }
        line.truncate(end.saturating_sub(1));
        Some(Line::Complete(line))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn lines(chunks: &[&[u8]], limit: usize) -> Vec<Line> {
        let mut reader = LineReader::default();
        let mut buffer = BytesMut::new();
        let mut lines = Vec::new();
        for chunk in chunks {
            buffer.extend_from_slice(chunk);
            while let Some(line) = reader.next(&mut buffer, limit) {
                lines.push(line);
            }
        }
        lines
    }

    fn complete(text: &str) -> Line {
        Line::Complete(text.as_bytes().into())
    }

    #[test]
    fn lines_are_split() {
        assert_eq!(lines(&[b"one\r\ntwo\r\n\r\nthr"], 10), [complete("one"), complete("two"), complete("")]);
        assert_eq!(lines(&[b"on", b"e\r", b"\n"], 10), [complete("one")]);
        assert_eq!(lines(&[b"a\rb\r\n"], 10), [complete("a\rb")]);
    }

    #[test]
    fn a_long_line_is_dropped_as_a_whole() {
        assert_eq!(lines(&[b"12345678\r\n"], 10), [complete("12345678")]);
        assert_eq!(lines(&[b"123456789\r\nnext\r\n"], 10), [Line::TooLong, complete("next")]);
        assert_eq!(
            lines(&[b"123456789012", b"MAIL FROM:<>\r", b"\nnext\r\n"], 10),
            [Line::TooLong, complete("next")]
        );
    }

    #[test]
    fn a_bare_line_feed_is_seen_even_behind_a_long_line() {
        assert_eq!(lines(&[b"one\n"], 10), [Line::BareLineFeed]);
        assert_eq!(lines(&[b"\n"], 10), [Line::BareLineFeed]);
        assert_eq!(lines(&[b"1234567890123", b"4\n"], 10), [Line::BareLineFeed]);
    }

    #[test]
    fn a_line_without_end_is_given_up_and_takes_no_memory() {
        let mut reader = LineReader::default();
        let mut buffer = BytesMut::new();
        let chunk = [b'a'; 1000];
        let given_up = (0..2000).position(|_| {
            buffer.extend_from_slice(&chunk);
            let line = reader.next(&mut buffer, 100);
            assert!(buffer.len() <= 1);
            line == Some(Line::Endless)
        });
        assert_eq!(given_up, Some(1048));
    }

    proptest! {
        #[test]
        fn any_split_into_chunks_gives_the_same(
            stream in "[ab\r\n]{0,60}", cuts in proptest::collection::vec(1usize..9, 0..60), limit in 0usize..20
        ) {
            let mut chunks = Vec::new();
            let mut rest = stream.as_bytes();
            for cut in cuts {
                let (chunk, behind) = rest.split_at(cut.min(rest.len()));
                chunks.push(chunk);
                rest = behind;
            }
            chunks.push(rest);
            prop_assert_eq!(lines(&chunks, limit), lines(&[stream.as_bytes()], limit));
        }
    }
}
