//! The BDAT reader (RFC 3030): a pure function over chunks of bytes.
//!
//! A message in chunks needs no final dot and no dot-stuffing, but it goes on to a server that gets it with both. So
//! the rules are those of DATA: a bare CR or LF, which could make a smuggled end there, has the message refused; and the
//! last line gets its CRLF where it has none.

use bytes::Bytes;

use super::data::{Content, Flaw};

/// Reads one message from its chunks. Where the chunks begin and end does not matter.
pub struct ChunkReader {
    content: Content,
    /// A CR came, and not yet what follows it.
    cr: bool,
}

impl ChunkReader {
    /// `limit`: the largest message, in octets. The reader never holds more than that, but for the CRLF it may add.
    pub fn new(limit: usize) -> Self {
        Self { content: Content::new(limit), cr: false }
    }

    /// The octets kept so far, for whoever accounts for their memory.
    pub fn content(&mut self) -> &mut Content {
        &mut self.content
    }

    /// Takes the next octets.
    pub fn feed(&mut self, octets: &[u8]) {
        let mut rest = octets;
        while let Some(&first) = rest.first() {
            if std::mem::take(&mut self.cr) {
                if first == b'\n' {
                    self.content.keep(b"\r\n");
                    rest = rest.get(1..).unwrap_or_default();
                    continue;
                }
                self.content.refuse(Flaw::BareCr);
            }
            let Some(at) = memchr::memchr3(b'\r', b'\n', 0, rest) else {
                self.content.keep(rest);
                return;
            };
            let (text, special) = rest.split_at(at);
            self.content.keep(text);
            match special.first() {
                Some(b'\r') => self.cr = true,
                Some(b'\n') => self.content.refuse(Flaw::BareLf),
                _ => self.content.refuse(Flaw::Nul),
            }
            rest = special.get(1..).unwrap_or_default();
        }
    }

    /// Ends the message.
    ///
    /// # Errors
    /// Why it is refused.
    pub fn finish(mut self) -> Result<Bytes, Flaw> {
        if self.cr {
            self.content.refuse(Flaw::BareCr);
        }
        self.content.end_line();
        self.content.finish()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::data::DataReader;
    use super::*;

    fn read(chunks: &[&[u8]], limit: usize) -> Result<Vec<u8>, Flaw> {
        let mut reader = ChunkReader::new(limit);
        for chunk in chunks {
            reader.feed(chunk);
        }
        reader.finish().map(|message| message.to_vec())
    }

    #[test]
    fn messages_are_kept_as_they_are_and_end_their_last_line() {
        let table: &[(&[&[u8]], &[u8])] = &[
            (&[], b""),
            (&[b""], b""),
            (&[b"a\r\n"], b"a\r\n"),
            (&[b"a"], b"a\r\n"),
            (&[b"a\r", b"\nb\r\n"], b"a\r\nb\r\n"),
            (&[b"a\r\n.\r\nMAIL FROM:<>\r\n"], b"a\r\n.\r\nMAIL FROM:<>\r\n"),
            (&[b".", b"\r\n", b"..\r\n"], b".\r\n..\r\n"),
            (&[b"\r\n"], b"\r\n"),
        ];
        for (chunks, message) in table {
            assert_eq!(read(chunks, 100), Ok(message.to_vec()), "{chunks:?}");
        }
    }

    #[test]
    fn the_first_flaw_is_named() {
        let table: &[(&[&[u8]], Flaw)] = &[
            (&[b"a\nb"], Flaw::BareLf),
            (&[b"a\r\n\n.\r\n"], Flaw::BareLf),
            (&[b"a\r"], Flaw::BareCr),
            (&[b"a\r", b"b\n"], Flaw::BareCr),
            (&[b"a\r\r\n"], Flaw::BareCr),
            (&[b"a\r\n.\r"], Flaw::BareCr),
            (&[b"a\0\r"], Flaw::Nul),
            (&[b"1234567890", b"1"], Flaw::TooLarge),
            (&[b"123456789\r\n"], Flaw::TooLarge),
        ];
        for (chunks, flaw) in table {
            assert_eq!(read(chunks, 10), Err(*flaw), "{chunks:?}");
        }
    }

    /// Bytes in which the bytes that matter are frequent.
    fn hostile() -> impl Strategy<Value = Vec<u8>> {
        let byte = prop_oneof![
            4 => Just(b'\r'), 4 => Just(b'\n'), 4 => Just(b'.'), 3 => Just(b'a'), 1 => Just(0), 1 => any::<u8>()
        ];
        proptest::collection::vec(byte, 0..60)
    }

    proptest! {
        #[test]
        fn any_split_into_chunks_gives_the_same(
            octets in hostile(), cuts in proptest::collection::vec(0usize..9, 0..60), limit in 0usize..40
        ) {
            let mut chunks = Vec::new();
            let mut rest = octets.as_slice();
            for cut in cuts {
                let (chunk, behind) = rest.split_at(cut.min(rest.len()));
                chunks.push(chunk);
                rest = behind;
            }
            chunks.push(rest);
            prop_assert_eq!(read(&chunks, limit), read(&[&octets], limit));
        }

        /// What is taken in chunks would have come through DATA as well, and comes to the same.
        #[test]
        fn only_what_data_could_carry_is_taken(octets in hostile()) {
            let Ok(message) = read(&[&octets], 1000) else { return Ok(()) };
            let mut stream = Vec::new();
            for line in message.split_inclusive(|byte| *byte == b'\n') {
                if line.starts_with(b".") {
                    stream.push(b'.');
                }
                stream.extend_from_slice(line);
            }
            stream.extend_from_slice(b".\r\n");
            let end = DataReader::new(1000).feed(&stream).unwrap();
            prop_assert_eq!(end.used, stream.len());
            prop_assert_eq!(end.message.map(|message| message.to_vec()), Ok(message));
        }
    }
}
