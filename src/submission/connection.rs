//! One client's bytes: what was read and not yet used, what is still to be written, with a time limit on every step.

use std::future::pending;
use std::io;
use std::time::Duration;

use bytes::{Buf as _, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::budget::{Budget, Pressure, Share};
use super::chunks::ChunkReader;
use super::data::{DataReader, Flaw};
use super::lines::{Line, LineReader};
use super::reply::Reply;

/// How long a client may take to read what is written to it.
const WRITE: Duration = Duration::from_secs(60);
/// A message over the size limit is read on to its end, but not for ever: octets.
const ENDLESS: usize = 1 << 30;
/// Octets asked for at each read of commands: most sessions only ever need that.
const COMMANDS: usize = 2 * 1024;
/// Octets asked for at each read of a message.
const MESSAGE: usize = 32 * 1024;
/// Octets of replies that may wait for the end of a group of commands.
const REPLIES: usize = 16 * 1024;

/// How long the next piece may take.
pub(super) struct Patience<'p> {
    pub(super) deadline: Instant,
    /// Those who wait for what this client holds, and how long it may pause while they do.
    pub(super) pressure: Option<(&'p Pressure, Duration)>,
}

/// A message that is coming in, with what it may still take.
pub(super) struct Incoming<'b> {
    pub(super) budget: &'b Budget,
    /// The longest pause.
    pub(super) idle: Duration,
    /// The longest pause while others wait for memory.
    pub(super) stalled: Duration,
    /// What is left of the time that the client may take for the whole message.
    pub(super) left: Duration,
    pub(super) share: Share,
}

impl<'b> Incoming<'b> {
    pub(super) fn patience(&self) -> Patience<'b> {
        let deadline = Instant::now() + self.idle.min(self.left);
        Patience { deadline, pressure: Some((&self.budget.pressure, self.stalled)) }
    }

    /// Takes note of the time that the client took. The time for which it waits for memory is not its own.
    pub(super) fn spend(&mut self, since: Instant) {
        self.left = self.left.saturating_sub(since.elapsed());
    }
}

/// A stream with its buffers.
pub(super) struct Connection<S> {
    pub(super) stream: S,
    input: BytesMut,
    output: Vec<u8>,
    lines: LineReader,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Connection<S> {
    pub(super) fn new(stream: S) -> Self {
        Self { stream, input: BytesMut::new(), output: Vec::new(), lines: LineReader::default() }
    }

    /// Whether more has come than was used.
    pub(super) fn has_input(&self) -> bool {
        !self.input.is_empty()
    }

    /// The next line, if its end has come.
    pub(super) fn line(&mut self, limit: usize) -> Option<Line> {
        self.lines.next(&mut self.input, limit)
    }

    /// Reads more of a line, and before that sends the replies so far: a group of commands is answered at once (RFC 2920
    /// section 3.2).
    pub(super) async fn more(&mut self, patience: Patience<'_>) -> io::Result<()> {
        self.flush().await?;
        self.read(COMMANDS, patience).await
    }

    /// Reads a message to its end, whether it will be refused or not. A connection that ends before delivers nothing:
    /// Odoo's "Test Connection" hangs up there.
    pub(super) async fn message(
        &mut self,
        limit: usize,
        incoming: &mut Incoming<'_>,
    ) -> io::Result<Result<Bytes, Flaw>> {
        let mut reader = DataReader::new(limit);
        let mut used = 0usize;
        loop {
            let growth = reader.content().growth(self.input.len());
            if growth > 0 {
                incoming.share.grow(growth).await;
                reader.content().grow(growth);
            }
            if let Some(end) = reader.feed(&self.input) {
                self.input.advance(end.used);
                return Ok(end.message);
            }
            if reader.content().flaw().is_some() {
                incoming.share.release();
            }
            used = used.saturating_add(self.input.len());
            self.input.clear();
            if used > ENDLESS {
                return Err(io::Error::other("a message without end"));
            }
            self.flush().await?;
            let since = Instant::now();
            self.read(MESSAGE, incoming.patience()).await?;
            incoming.spend(since);
        }
    }

    /// Reads the octets of one chunk; without a reader, to drop them.
    pub(super) async fn chunk(
        &mut self,
        size: u64,
        mut reader: Option<&mut ChunkReader>,
        incoming: &mut Incoming<'_>,
    ) -> io::Result<()> {
        let mut rest = size;
        loop {
            let here = usize::try_from(rest).unwrap_or(usize::MAX).min(self.input.len());
            if let Some(reader) = reader.as_deref_mut() {
                let growth = reader.content().growth(here);
                if growth > 0 {
                    incoming.share.grow(growth).await;
                    reader.content().grow(growth);
                }
                reader.feed(self.input.get(..here).unwrap_or_default());
                if reader.content().flaw().is_some() {
                    incoming.share.release();
                }
            }
            self.input.advance(here);
            rest = rest.saturating_sub(here as u64);
            if rest == 0 {
                return Ok(());
            }
            self.flush().await?;
            let since = Instant::now();
            self.read(MESSAGE, incoming.patience()).await?;
            incoming.spend(since);
        }
    }

    async fn read(&mut self, octets: usize, patience: Patience<'_>) -> io::Result<()> {
        if self.input.is_empty() && self.input.capacity() > 2 * octets {
            // What a message needed is not kept for the commands behind it.
            self.input = BytesMut::new();
        }
        self.input.reserve(octets);
        let stalled = async {
            match patience.pressure {
                Some((pressure, stalled)) => {
                    pressure.felt().await;
                    sleep(stalled).await;
                }
                None => pending().await,
            }
        };
        tokio::select! {
            biased;
            // The deadline first: a client that always has something to say must come to its end as well.
            () = sleep_until(patience.deadline) => Err(io::ErrorKind::TimedOut.into()),
            read = self.stream.read_buf(&mut self.input) => match read? {
                0 => Err(io::ErrorKind::UnexpectedEof.into()),
                _ => Ok(()),
            },
            () = stalled => Err(io::ErrorKind::TimedOut.into()),
        }
    }

    /// Queues a reply; it is sent by the next [`Self::flush`].
    pub(super) async fn write(&mut self, reply: &Reply) -> io::Result<()> {
        reply.write(&mut self.output);
        if self.output.len() > REPLIES { self.flush().await } else { Ok(()) }
    }

    pub(super) async fn flush(&mut self) -> io::Result<()> {
        let output = std::mem::take(&mut self.output);
        if output.is_empty() {
            return Ok(());
        }
        let sent = timeout(WRITE, async {
            self.stream.write_all(&output).await?;
            self.stream.flush().await
        });
        // Not as a time-out: there is no point in telling a client that does not read.
        sent.await.map_err(|_| io::Error::other("the client does not read"))?
    }

    /// Says the last word.
    pub(super) async fn close(&mut self, reply: &Reply) -> io::Result<()> {
        self.write(reply).await?;
        self.flush().await?;
        timeout(WRITE, self.stream.shutdown())
            .await
            .map_err(|_| io::Error::other("the connection cannot be closed in order"))?
    }
}

#[cfg(test)]
#[path = "connection_tests.rs"]
mod tests;
