//! The DATA reader (RFC 5321 section 4.5.2): a pure function over chunks of bytes.
//!
//! A message ends at `CRLF.CRLF` and nowhere else. Servers that also took `LF.LF` or `CR.CR` for the end let a sender
//! hide a second mail inside the first (SMTP smuggling), so a bare CR or LF is never a line end here. Such a message
//! is read on to its real end and refused then; a refusal in the middle would leave the rest of the message to be read
//! as commands.

use bytes::Bytes;

use super::reply::Reply;

/// Reads one message, chunk by chunk, and undoes the dot-stuffing.
pub struct DataReader {
    place: Place,
    content: Content,
}

/// The octets of a message that is being read, up to its first flaw.
pub struct Content {
    limit: usize,
    flaw: Option<Flaw>,
    octets: Vec<u8>,
}

/// Where in the stream of lines the reader stands.
#[derive(Clone, Copy)]
enum Place {
    LineStart,
    /// A line began with a dot: stuffing, or the end.
    Dot,
    DotCr,
    Text,
    Cr,
}

/// The end of a message.
#[derive(Debug)]
pub struct End {
    /// How many bytes of the last chunk belong to the message; what follows are commands.
    pub used: usize,
    /// The message, or why it is refused.
    pub message: Result<Bytes, Flaw>,
}

/// Why a message that was read to its end is refused. The first flaw in the stream counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Flaw {
    /// CR not followed by LF.
    #[error("a bare CR (a carriage return without a line feed)")]
    BareCr,
    /// LF not preceded by CR.
    #[error("a bare LF (a line feed without a carriage return)")]
    BareLf,
    /// NUL: RFC 5321 and RFC 6152 allow every octet but this one.
    #[error("a NUL byte")]
    Nul,
    /// More octets than the limit given to [`DataReader::new`].
    #[error("more octets than the limit")]
    TooLarge,
}

impl Flaw {
    /// The reply after the final dot. `limit`: octets, as given to [`DataReader::new`].
    pub fn reply(self, limit: usize) -> Reply {
        match self {
            Self::TooLarge => too_large(limit as u64),
            Self::BareCr | Self::BareLf => Reply::new(
                554,
                "5.6.0",
                format!(
                    "The message holds {self}, which is not allowed in SMTP (RFC 5321 section 2.3.8). \
                     Send it with CR LF at the end of every line"
                ),
            ),
            Self::Nul => Reply::new(
                554,
                "5.6.0",
                format!(
                    "The message holds {self}, which is not allowed in mail (RFC 5322 section 2.1). \
                     Send binary parts in base64"
                ),
            ),
        }
    }
}

/// The refusal of a message that is, or says it is, over the limit (octets; RFC 1870 section 6).
pub fn too_large(limit: u64) -> Reply {
    Reply::new(
        552,
        "5.3.4",
        format!(
            "The message is larger than {limit} bytes, the relay's limit. \
             Send smaller or fewer attachments, or raise max_message_size in [submission]"
        ),
    )
}

impl DataReader {
    /// `limit`: the largest message, in octets as RFC 1870 counts them (with line ends, without stuffed dots). The
    /// reader never holds more than that.
    pub fn new(limit: usize) -> Self {
        Self { place: Place::LineStart, content: Content::new(limit) }
    }

    /// The octets kept so far, for whoever accounts for their memory.
    pub fn content(&mut self) -> &mut Content {
        &mut self.content
    }

    /// Takes the next chunk. `None`: the whole chunk was used and the message goes on. A reader that has ended is spent.
    pub fn feed(&mut self, chunk: &[u8]) -> Option<End> {
        let mut rest = chunk;
        while let Some((&byte, after)) = rest.split_first() {
            match (self.place, byte) {
                (Place::DotCr, b'\n') => {
                    return Some(End { used: chunk.len() - after.len(), message: self.content.finish() });
                }
                (Place::Cr, b'\n') => {
                    self.content.keep(b"\r\n");
                    self.place = Place::LineStart;
                    rest = after;
                }
                // The byte after a bare CR is looked at again, as text: it may be another CR.
                (Place::Cr | Place::DotCr, _) => {
                    self.content.refuse(Flaw::BareCr);
                    self.place = Place::Text;
                }
                (Place::LineStart, b'.') => {
                    self.place = Place::Dot;
                    rest = after;
                }
                (Place::Dot, b'\r') => {
                    self.place = Place::DotCr;
                    rest = after;
                }
                (Place::LineStart | Place::Dot | Place::Text, _) => rest = self.text(rest),
            }
        }
        None
    }

    /// Keeps the text up to the next special byte, takes that byte, and returns what follows.
    fn text<'a>(&mut self, rest: &'a [u8]) -> &'a [u8] {
        self.place = Place::Text;
        let Some(at) = memchr::memchr3(b'\r', b'\n', 0, rest) else {
            self.content.keep(rest);
            return &[];
        };
        let (text, special) = rest.split_at(at);
        self.content.keep(text);
        match special.first() {
            Some(b'\r') => self.place = Place::Cr,
            Some(b'\n') => self.content.refuse(Flaw::BareLf),
            _ => self.content.refuse(Flaw::Nul),
        }
        special.get(1..).unwrap_or_default()
    }
}

impl Content {
    pub(super) fn new(limit: usize) -> Self {
        Self { limit, flaw: None, octets: Vec::new() }
    }

    /// How many octets of memory more must be had before `coming` octets are read, for [`Self::grow`]. The memory
    /// doubles with each step, up to the limit.
    pub fn growth(&self, coming: usize) -> usize {
        let (length, capacity) = (self.octets.len(), self.octets.capacity());
        let needed = length.saturating_add(coming).min(self.limit);
        if self.flaw.is_some() || needed <= capacity {
            return 0;
        }
        needed.max(capacity.saturating_mul(2).min(self.limit)) - capacity
    }

    /// Takes that much more memory.
    pub fn grow(&mut self, growth: usize) {
        let capacity = self.octets.capacity().saturating_add(growth);
        self.octets.reserve_exact(capacity.saturating_sub(self.octets.len()));
    }

    /// The first flaw so far. With one, nothing is kept in memory.
    pub fn flaw(&self) -> Option<Flaw> {
        self.flaw
    }

    pub(super) fn keep(&mut self, octets: &[u8]) {
        if self.flaw.is_some() {
            return;
        }
        if self.octets.len() + octets.len() > self.limit {
            self.refuse(Flaw::TooLarge);
        } else {
            self.octets.extend_from_slice(octets);
        }
    }

    pub(super) fn refuse(&mut self, flaw: Flaw) {
        self.flaw.get_or_insert(flaw);
        self.octets = Vec::new();
    }

    /// Ends the last line, if it is not ended. The two octets may go past the limit: the sender did not send them.
    pub(super) fn end_line(&mut self) {
        if self.flaw.is_none() && !self.octets.is_empty() && !self.octets.ends_with(b"\r\n") {
            self.octets.reserve_exact(2);
            self.octets.extend_from_slice(b"\r\n");
        }
    }

    pub(super) fn finish(&mut self) -> Result<Bytes, Flaw> {
        match self.flaw {
            Some(flaw) => Err(flaw),
            None => Ok(std::mem::take(&mut self.octets).into()),
        }
    }
}

#[cfg(test)]
#[path = "data_tests.rs"]
mod tests;
