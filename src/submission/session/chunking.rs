//! BDAT (RFC 3030). Every reply comes behind the octets that the command announces, and these are read even if nobody
//! wants them: else they would be taken for commands.

use super::{Action, Session, wrong_order};
use crate::message::Envelope;
use crate::submission::data::too_large;
use crate::submission::reply::Reply;

/// More octets than any message may have: they are not even read.
const ENDLESS: u64 = 1 << 30;

/// The octets behind a BDAT command.
#[derive(Debug, PartialEq, Eq)]
pub struct Chunk {
    /// How many there are.
    pub size: u64,
    /// What they are.
    pub part: Part,
}

/// What the octets of a chunk are.
#[derive(Debug, PartialEq, Eq)]
pub enum Part {
    /// Nothing: the command is refused.
    Refused,
    /// A part of a message, of which more is to come.
    More,
    /// The end of a message. The session itself is ready for the next transaction.
    Last(Envelope),
}

impl Session {
    pub(super) fn bdat(&mut self, argument: &str) -> Action {
        let Some((size, last)) = read(argument) else {
            return Action::Close(Reply::new(
                501,
                "5.5.4",
                "Write it as BDAT octets, or BDAT octets LAST. How many octets follow cannot be known; closing the \
                 connection",
            ));
        };
        let limit = self.offer.max_message_size;
        if size > ENDLESS {
            return Action::Close(too_large(limit));
        }
        let refused = |reply| Action::ReadChunk(reply, Chunk { size, part: Part::Refused });
        let Some(envelope) = &self.transaction else {
            return refused(wrong_order("Send MAIL and RCPT first"));
        };
        if envelope.recipients.is_empty() {
            return refused(Reply::new(554, "5.1.0", "No recipient was accepted"));
        }
        let received = self.chunked.unwrap_or_default().saturating_add(size);
        if received > limit {
            self.reset();
            return refused(too_large(limit));
        }
        self.chunked = Some(received);
        let reply = Reply::new(250, "2.0.0", format!("{size} octets received"));
        let part = match self.transaction.take_if(|_| last) {
            None => Part::More,
            Some(envelope) => {
                self.reset();
                Part::Last(envelope)
            }
        };
        Action::ReadChunk(reply, Chunk { size, part })
    }

    /// Takes note of a chunk that was refused for what is in it: so is the whole message.
    pub fn chunk_refused(&mut self) {
        self.reset();
    }
}

/// The octets announced (no more than a `u64` counts), and whether they are the last. `None`: that cannot be known.
fn read(argument: &str) -> Option<(u64, bool)> {
    let mut words = argument.split(' ').filter(|word| !word.is_empty());
    let size = words.next().filter(|size| size.bytes().all(|byte| byte.is_ascii_digit()))?;
    let last = words.next();
    if words.next().is_some() || last.is_some_and(|last| !last.eq_ignore_ascii_case("LAST")) {
        return None;
    }
    Some((size.parse().unwrap_or(u64::MAX), last.is_some()))
}
