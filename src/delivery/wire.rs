//! The stream that lettre speaks over: encrypted already, and holding only what lettre survives.
//!
//! Messages go past lettre, over the same stream.

use lettre::transport::smtp::client::AsyncTokioStream;
use std::io::{Error, ErrorKind, Result};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

/// The longest reply line that is read, in bytes. RFC 5321 section 4.5.3.1.5 allows 512, lettre 1000.
pub(super) const LONGEST_LINE: usize = 1000;
/// The most lines of one reply.
pub(super) const MOST_LINES: usize = 128;

pub(super) fn invalid(what: &'static str) -> Error {
    Error::new(ErrorKind::InvalidData, what)
}

/// An encrypted connection, for one task with several uses of it.
#[derive(Clone, Debug)]
pub(super) struct Encrypted(Arc<Mutex<TlsStream<TcpStream>>>);

impl Encrypted {
    pub(super) fn new(stream: TlsStream<TcpStream>) -> Self {
        Self(Arc::new(Mutex::new(stream)))
    }

    fn with<T>(&self, act: impl FnOnce(Pin<&mut TlsStream<TcpStream>>) -> T) -> T {
        act(Pin::new(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner)))
    }

    /// Writes all of it. What fails, or is given up, has not left as a whole.
    pub(super) async fn send(&mut self, bytes: &[u8]) -> Result<()> {
        self.write_all(bytes).await?;
        self.flush().await
    }
}

impl AsyncRead for Encrypted {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<Result<()>> {
        self.with(|stream| stream.poll_read(cx, buffer))
    }
}

impl AsyncWrite for Encrypted {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<Result<usize>> {
        self.with(|stream| stream.poll_write(cx, bytes))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        self.with(|stream| stream.poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        self.with(|stream| stream.poll_shutdown(cx))
    }
}

/// An encrypted connection as lettre wants it: it begins with a greeting, which after STARTTLS no server sends, and
/// holds only replies that lettre survives: of bounded lines (it reads a line whole before it looks at its length), in
/// ASCII (other bytes it would take for a broken connection), and none blank (it panics on such a line in an EHLO
/// reply).
#[derive(Debug)]
pub(super) struct Wire {
    stream: Encrypted,
    greeting: &'static [u8],
    line: Line,
    /// After a reply that was refused no other is read: lettre would wait for one, to QUIT.
    broken: bool,
}

/// Where in a reply the reading is.
#[derive(Debug, Default)]
struct Line {
    /// Bytes of this line so far.
    length: usize,
    /// Lines of this reply so far.
    lines: usize,
    /// Whether another line of the same reply follows.
    continued: bool,
    /// Whether there is anything to see behind the code.
    visible: bool,
    /// The byte before.
    before: u8,
}

impl Wire {
    pub(super) fn new(stream: Encrypted) -> Self {
        Self { stream, greeting: b"220 encrypted\r\n", line: Line::default(), broken: false }
    }
}

impl Line {
    /// Takes the next byte of a reply, or refuses it.
    fn take(&mut self, byte: &mut u8) -> Result<()> {
        if *byte == b'\n' {
            // "250" and a separator and CR; what is longer must show something.
            if self.before != b'\r' || (self.length > 5 && !self.visible) {
                return Err(invalid("a reply that is no line of SMTP"));
            }
            let lines = if self.continued { self.lines + 1 } else { 0 };
            if lines > MOST_LINES {
                return Err(invalid("an endless reply"));
            }
            *self = Self { lines, ..Self::default() };
            return Ok(());
        }
        if *byte != b'\r' && !(b' '..=b'~').contains(byte) {
            *byte = b'?';
        }
        self.continued |= self.length == 3 && *byte == b'-';
        self.visible |= self.length > 3 && byte.is_ascii_graphic();
        self.length += 1;
        self.before = *byte;
        if self.length > LONGEST_LINE {
            return Err(invalid("an endless reply line"));
        }
        Ok(())
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<Result<()>> {
        if let Some((now, later)) =
            self.greeting.split_at_checked(self.greeting.len().min(buffer.remaining()))
            && !now.is_empty()
        {
            buffer.put_slice(now);
            self.greeting = later;
            return Poll::Ready(Ok(()));
        }
        if self.broken {
            return Poll::Ready(Err(invalid("a reply after one that was refused")));
        }
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buffer))?;
        let read = buffer.filled_mut().get_mut(before..).unwrap_or_default();
        let taken = read.iter_mut().try_for_each(|byte| self.line.take(byte));
        self.broken = taken.is_err();
        Poll::Ready(taken)
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

impl AsyncTokioStream for Wire {
    fn peer_addr(&self) -> Result<SocketAddr> {
        self.stream.with(|stream| stream.get_ref().0.peer_addr())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn filtered(bytes: &[u8]) -> Option<Vec<u8>> {
        let (mut line, mut bytes) = (Line::default(), bytes.to_vec());
        bytes.iter_mut().try_for_each(|byte| line.take(byte)).ok().map(|()| bytes)
    }

    #[test]
    fn lettre_sees_only_lines_that_it_survives() {
        let table: [(&[u8], Option<&[u8]>); 10] = [
            (b"250 2.0.0 OK\r\n", Some(b"250 2.0.0 OK\r\n")),
            (b"250-\r\n250 \r\n", Some(b"250-\r\n250 \r\n")),
            (b"250\r\n", Some(b"250\r\n")),
            ("550 Empfänger\r\n".as_bytes(), Some(b"550 Empf??nger\r\n")),
            (b"250-SIZE\t7\r\n", Some(b"250-SIZE?7\r\n")),
            (b"250- \r\n", None),
            (b"250-\r\r\n", None),
            (b"250- \r \r\n", None),
            (b"250-\n", None),
            (b"250 OK\n", None),
        ];
        for (bytes, expected) in table {
            assert_eq!(filtered(bytes).as_deref(), expected, "{:?}", String::from_utf8_lossy(bytes));
        }
        assert!(filtered(&[b'2'; 1001]).is_none(), "an endless line");
        assert!(filtered(&b"250-x\r\n".repeat(128)).is_some());
        assert!(filtered(&b"250-x\r\n".repeat(129)).is_none(), "an endless reply");
        assert!(filtered(&b"250 x\r\n".repeat(1000)).is_some(), "many replies");
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_do_no_harm(bytes: Vec<u8>) {
            if let Some(passed) = filtered(&bytes) {
                prop_assert!(passed.iter().all(u8::is_ascii));
                let text = String::from_utf8(passed).unwrap();
                for line in text.split_inclusive('\n').filter(|line| line.ends_with('\n')) {
                    let text = line.strip_suffix("\r\n").unwrap();
                    let text = text.get(4..).unwrap_or_default();
                    prop_assert!(text.is_empty() || text.split_whitespace().next().is_some());
                }
            }
        }
    }
}
