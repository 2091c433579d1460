//! A buffered line protocol over any stream: what every double and every raw client here speaks.

use std::io;

use bytes::{Buf, BytesMut};
use memchr::memmem;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// No line and no message of a test is longer; more is an error, so that no test eats the machine.
const LIMIT: usize = 256 << 20;

/// A byte stream, plain or TLS.
pub trait Io: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Io for T {}

/// Reads ahead, and writes when it has to read: pipelined commands get their answers in one packet.
pub struct Wire {
    io: Box<dyn Io>,
    input: BytesMut,
    output: Vec<u8>,
}

impl Wire {
    pub fn new(io: impl Io + 'static) -> Self {
        Self { io: Box::new(io), input: BytesMut::with_capacity(16 << 10), output: Vec::new() }
    }

    /// The stream underneath, for a TLS handshake. Bytes read ahead are dropped, as RFC 3207 section 4 asks.
    pub fn into_io(self) -> Box<dyn Io> {
        self.io
    }

    /// Queues a line; CRLF is added.
    pub fn say(&mut self, line: &str) {
        self.output.extend_from_slice(line.as_bytes());
        self.output.extend_from_slice(b"\r\n");
    }

    /// Queues bytes as they are.
    pub fn write(&mut self, bytes: &[u8]) {
        self.output.extend_from_slice(bytes);
    }

    /// Bytes queued but not sent; a fault may cut them short.
    pub fn queued(&mut self) -> &mut Vec<u8> {
        &mut self.output
    }

    /// Whether input is waiting in the buffer already.
    pub fn has_input(&self) -> bool {
        !self.input.is_empty()
    }

    /// Sends what is queued.
    pub async fn flush(&mut self) -> io::Result<()> {
        if !self.output.is_empty() {
            self.io.write_all(&self.output).await?;
            self.output.clear();
            self.io.flush().await?;
        }
        Ok(())
    }

    /// Reads some more; `false` at the end of the stream. Cancel-safe once everything is flushed.
    pub async fn fill(&mut self) -> io::Result<bool> {
        self.flush().await?;
        if self.input.len() > LIMIT {
            return Err(io::Error::other("more than a test ever sends"));
        }
        self.input.reserve(64 << 10);
        Ok(self.io.read_buf(&mut self.input).await? > 0)
    }

    /// The next line without its line end; `None` at the end of the stream. Bytes that are not UTF-8 are replaced.
    pub async fn line(&mut self) -> io::Result<Option<String>> {
        Ok(self.line_bytes().await?.map(|line| String::from_utf8_lossy(&line).into_owned()))
    }

    /// The next line without its line end, byte by byte as it came.
    pub async fn line_bytes(&mut self) -> io::Result<Option<BytesMut>> {
        let mut searched = 0;
        loop {
            if let Some(at) = memchr::memchr(b'\n', &self.input[searched..]) {
                let mut line = self.input.split_to(searched + at + 1);
                line.truncate(line.len() - 1);
                if line.last() == Some(&b'\r') {
                    line.truncate(line.len() - 1);
                }
                return Ok(Some(line));
            }
            searched = self.input.len();
            if !self.fill().await? {
                return Ok(None);
            }
        }
    }

    /// Exactly `n` bytes, or `None` if the stream ends before.
    pub async fn exact(&mut self, n: usize) -> io::Result<Option<BytesMut>> {
        while self.input.len() < n {
            if !self.fill().await? {
                return Ok(None);
            }
        }
        Ok(Some(self.input.split_to(n)))
    }

    /// Everything up to the line with the single dot, unstuffed (RFC 5321 section 4.5.2); `None` if the stream ends
    /// before it. Only CRLF counts as a line end.
    pub async fn dotted(&mut self) -> io::Result<Option<Vec<u8>>> {
        let mut searched = 0;
        loop {
            if self.input.starts_with(b".\r\n") {
                self.input.advance(3);
                return Ok(Some(Vec::new()));
            }
            if let Some(at) = memmem::find(&self.input[searched..], b"\r\n.\r\n") {
                let data = self.input.split_to(searched + at + 2);
                self.input.advance(3);
                return Ok(Some(unstuff(&data)));
            }
            searched = self.input.len().saturating_sub(4);
            if !self.fill().await? {
                return Ok(None);
            }
        }
    }

    /// Says nothing any more, and comes back when the peer gives up.
    pub async fn silence(&mut self) {
        self.output.clear();
        while matches!(self.fill().await, Ok(true)) {
            self.input.clear();
        }
    }

    /// A line that never ends, until the peer gives up.
    pub async fn endless_line(&mut self) {
        let chunk = vec![b'x'; 16 << 10];
        while self.io.write_all(&chunk).await.is_ok() {}
    }

    /// Ends the stream in order (TLS close_notify, FIN).
    pub async fn close(&mut self) {
        let _ = self.flush().await;
        let _ = self.io.shutdown().await;
    }
}

fn unstuff(data: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(data.len());
    let mut rest = data.strip_prefix(b".").unwrap_or(data);
    while let Some(at) = memmem::find(rest, b"\r\n.") {
        out.extend_from_slice(&rest[..at + 2]);
        rest = &rest[at + 3..];
    }
    out.extend_from_slice(rest);
    out
}

/// Dot-stuffs and ends a message for DATA: the opposite of [`Wire::dotted`]. The message should end with CRLF.
pub fn stuff(message: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(message.len() + 16);
    let mut rest = message;
    if rest.starts_with(b".") {
        out.push(b'.');
    }
    while let Some(at) = memmem::find(rest, b"\r\n.") {
        out.extend_from_slice(&rest[..at + 3]);
        out.push(b'.');
        rest = &rest[at + 3..];
    }
    out.extend_from_slice(rest);
    if !message.ends_with(b"\r\n") {
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(b".\r\n");
    out
}
