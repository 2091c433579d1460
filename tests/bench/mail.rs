//! The mail that is sent: 2, 20 and 200 KB mixed, 17 KB on average.

use memchr::memmem;

/// Of twenty messages, thirteen are small, six of a middling size, one is large.
const TWENTY: [usize; 20] = [0, 1, 0, 0, 1, 0, 0, 1, 0, 2, 0, 1, 0, 0, 1, 0, 0, 1, 0, 0];

/// How a message ends, with its final dot.
pub(crate) const END: &[u8] = b"\r\n.\r\n";

/// Bodies of all sizes.
pub(crate) struct Mails {
    bodies: Vec<Vec<u8>>,
}

impl Mails {
    pub(crate) fn new() -> Self {
        Self { bodies: [2_000, 20_000, 200_000].map(body).into() }
    }

    /// The header and the body of a message, the body with its final dot.
    pub(crate) fn get(&self, number: usize) -> (Vec<u8>, &[u8]) {
        let body = &self.bodies[TWENTY[number % TWENTY.len()]];
        let header = format!(
            "From: John <john@example.com>\r\nTo: a@x.test\r\nSubject: bench\r\nDate: Sat, 21 Nov 2026 10:00:00 +0000\r\n\
             MIME-Version: 1.0\r\nContent-Type: text/plain\r\nMessage-ID: <{number}@bench>\r\n\r\n"
        );
        (header.into_bytes(), body)
    }

    /// Whether the message, with its final dot, ends with one of the bodies, right behind its header.
    pub(crate) fn is_intact(&self, message: &[u8]) -> bool {
        let behind = memmem::find(message, b"\r\n\r\n").and_then(|end| message.get(end + 4..));
        behind.is_some_and(|behind| self.bodies.iter().any(|body| body == behind))
    }
}

/// Lines as mail has them, and the final dot.
fn body(size: usize) -> Vec<u8> {
    let line = b"The quick brown fox jumps over the lazy dog, again and again and again.\r\n";
    let mut body: Vec<u8> = line.iter().copied().cycle().take(size / line.len() * line.len()).collect();
    body.extend_from_slice(b".\r\n");
    body
}

/// A message's Message-ID.
pub(crate) fn message_id(message: &[u8]) -> Option<&[u8]> {
    let start = memmem::find(message, b"\r\nMessage-ID: <")? + 15;
    let rest = message.get(start..)?;
    rest.get(..memchr::memchr(b'>', rest)?)
}
