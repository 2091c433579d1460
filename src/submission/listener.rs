//! Moves bytes between the sockets and the [`Session`], with a time limit on every step.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf as _, Bytes, BytesMut};
use futures_util::future::join_all;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::data::{DataReader, Flaw};
use super::intake::{Intake, log_refusal};
use super::lines::{Line, LineReader};
use super::reply::Reply;
use super::session::{Action, Offer, Session};
use super::{Config, Exposed, is_loopback};

/// The name in the greeting. The machine's own is nobody's business.
const HOST: &str = "outlook-relay";
/// Sessions at the same time. Further connections wait in the system's backlog: a 421 would be a lost mail to Odoo.
const SESSIONS: usize = 200;
/// How long a client may take for its next line, or its next piece of a message (RFC 5321 section 4.5.3.2.7).
const IDLE: Duration = Duration::from_secs(5 * 60);
/// How long a whole message may take.
const MESSAGE: Duration = Duration::from_secs(30 * 60);
/// How long a client may take to read what is written to it.
const WRITE: Duration = Duration::from_secs(60);
const HANDSHAKE: Duration = Duration::from_secs(30);
/// How long an open transaction may go without a line once the server stops.
const GRACE: Duration = Duration::from_secs(10);
/// Slows down whoever guesses passwords.
const WRONG_PASSWORD: Duration = Duration::from_secs(1);
/// A message over the size limit is read on to its end, but not for ever: octets.
const ENDLESS: usize = 1 << 30;
/// Octets asked for at each read.
const READ: usize = 64 * 1024;
/// Octets of replies that may wait for the end of a group of commands.
const REPLIES: usize = 64 * 1024;

/// Why the server cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A socket does not know its own address.
    #[error("the address of a listening socket cannot be read")]
    Address(#[source] io::Error),
    /// A socket, perhaps handed over by systemd, can be reached by strangers.
    #[error(transparent)]
    Exposed(#[from] Exposed),
}

/// What all sessions share.
struct Shared {
    offer: Arc<Offer>,
    tls: Option<TlsAcceptor>,
    intake: Intake,
    stop: CancellationToken,
}

/// The server, before it runs.
pub struct Listener {
    listeners: Vec<TcpListener>,
    offer: Arc<Offer>,
    tls: Option<TlsAcceptor>,
    intake: Intake,
}

impl Listener {
    /// A server on these sockets.
    ///
    /// # Errors
    /// A socket on which it would not be safe to listen; [`Config::read`] has looked at the addresses in the file, but
    /// sockets may also come from elsewhere.
    pub fn new(config: &Config, listeners: Vec<TcpListener>, intake: Intake) -> Result<Self, Error> {
        for listener in &listeners {
            let address = listener.local_addr().map_err(Error::Address)?;
            if !config.may_listen(&address) {
                return Err(Exposed(address).into());
            }
        }
        let offer = Arc::new(Offer {
            host: HOST.to_owned(),
            max_message_size: config.max_message_size,
            credentials: config.credentials.clone(),
            tls: config.tls.is_some(),
        });
        Ok(Self { listeners, offer, tls: config.tls.clone().map(TlsAcceptor::from), intake })
    }

    /// Serves until `stop` is cancelled and every session has ended; a session ends then as soon as the message in hand
    /// is stored and answered. Dropping this future ends all sessions at once: nothing that was answered with 250 is
    /// lost.
    pub async fn run(self, stop: CancellationToken) {
        let Self { listeners, offer, tls, intake } = self;
        let shared = Arc::new(Shared { offer, tls, intake, stop });
        let places = Arc::new(Semaphore::new(SESSIONS));
        join_all(listeners.iter().map(|listener| accept(listener, &shared, &places))).await;
    }
}

async fn accept(listener: &TcpListener, shared: &Arc<Shared>, places: &Arc<Semaphore>) {
    let mut sessions = JoinSet::new();
    let mut in_trouble = false;
    loop {
        let next = async {
            // The place first: who finds none must not even be accepted.
            let place = Arc::clone(places).acquire_owned().await;
            (place, listener.accept().await)
        };
        tokio::select! {
            biased;
            () = shared.stop.cancelled() => break,
            Some(ended) = sessions.join_next() => log_panic(ended),
            (place, accepted) = next => match accepted {
                Ok((stream, peer)) => {
                    in_trouble = false;
                    let shared = Arc::clone(shared);
                    sessions.spawn(async move {
                        let _place = place;
                        shared.run(stream, peer).await;
                    });
                }
                // Mostly too many open files; it ends when some session does.
                Err(error) => {
                    if !in_trouble {
                        tracing::error!(%error, "no connection can be accepted");
                        in_trouble = true;
                    }
                    sleep(Duration::from_millis(100)).await;
                }
            },
        }
    }
    while let Some(ended) = sessions.join_next().await {
        log_panic(ended);
    }
}

fn log_panic(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended {
        tracing::error!(%error, "an SMTP session broke down");
    }
}

/// How a conversation ended.
enum End {
    Closed,
    StartTls,
}

impl Shared {
    async fn run(&self, stream: TcpStream, peer: SocketAddr) {
        if let Err(error) = self.run_session(stream, peer).await {
            tracing::debug!(%peer, %error, "session ended");
        }
    }

    async fn run_session(&self, stream: TcpStream, peer: SocketAddr) -> io::Result<()> {
        // Replies are small and waited for.
        stream.set_nodelay(true)?;
        let mut session = Session::new(Arc::clone(&self.offer), is_loopback(&peer));
        let mut connection = Connection::new(stream);
        connection.write(&session.greeting()).await?;
        if let (End::StartTls, Some(tls)) =
            (self.converse(&mut session, &mut connection, peer).await?, &self.tls)
        {
            let stream = timeout(HANDSHAKE, tls.accept(connection.stream)).await??;
            session.encrypted();
            // A new connection: nothing that came in clear is left in its buffers (RFC 3207 section 6).
            self.converse(&mut session, &mut Connection::new(stream), peer).await?;
        }
        Ok(())
    }

    async fn converse<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        session: &mut Session,
        connection: &mut Connection<S>,
        peer: SocketAddr,
    ) -> io::Result<End> {
        loop {
            let line = match connection.line(session, &self.stop).await {
                Ok(Some(line)) => line,
                Ok(None) => return connection.close(&session.stopping()).await,
                Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                    let reply =
                        Reply::new(421, "4.4.2", "Nothing came for a long time; closing the connection");
                    return connection.close(&reply).await;
                }
                Err(error) => return Err(error),
            };
            let action = match line {
                Line::Complete(line) => session.line(&line),
                Line::TooLong => session.long_line(),
                Line::Endless => {
                    Action::Close(Reply::new(500, "5.5.2", "The line has no end; closing the connection"))
                }
                Line::BareLineFeed => session.bare_line_feed(),
            };
            if action.reply().is_refusal() {
                log_refusal(peer, action.reply());
            }
            match action {
                Action::Reply(reply) => {
                    if reply.code() == 535 {
                        sleep(WRONG_PASSWORD).await;
                    }
                    connection.write(&reply).await?;
                }
                Action::ReadData(reply, envelope) => {
                    connection.write(&reply).await?;
                    let limit = usize::try_from(self.offer.max_message_size).unwrap_or(usize::MAX);
                    let message = timeout(MESSAGE, connection.message(limit)).await??;
                    let reply = match message {
                        Ok(content) => self.intake.take(envelope, content, peer, crate::clock::now()).await,
                        Err(flaw) => {
                            let reply = flaw.reply(limit);
                            log_refusal(peer, &reply);
                            reply
                        }
                    };
                    connection.write(&reply).await?;
                }
                Action::StartTls(_) if !connection.input.is_empty() => {
                    let reply = Reply::new(
                        421,
                        "4.7.0",
                        "Commands came in clear behind STARTTLS; closing the connection",
                    );
                    log_refusal(peer, &reply);
                    return connection.close(&reply).await;
                }
                Action::StartTls(reply) => {
                    connection.write(&reply).await?;
                    connection.flush().await?;
                    return Ok(End::StartTls);
                }
                Action::Close(reply) => return connection.close(&reply).await,
            }
        }
    }
}

/// A stream with what was read from it and not yet used, and what is still to be written.
struct Connection<S> {
    stream: S,
    input: BytesMut,
    output: Vec<u8>,
    lines: LineReader,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Connection<S> {
    fn new(stream: S) -> Self {
        Self { stream, input: BytesMut::new(), output: Vec::new(), lines: LineReader::default() }
    }

    /// The next line. `None`: the server stops, and no message is begun.
    async fn line(&mut self, session: &Session, stop: &CancellationToken) -> io::Result<Option<Line>> {
        let deadline = Instant::now() + IDLE;
        loop {
            if stop.is_cancelled() && !session.in_transaction() {
                return Ok(None);
            }
            if let Some(line) = self.lines.next(&mut self.input, session.line_limit()) {
                return Ok(Some(line));
            }
            // Only now, so that a group of commands is answered at once (RFC 2920 section 3.2).
            self.flush().await?;
            let stopping = async {
                stop.cancelled().await;
                if session.in_transaction() {
                    sleep(GRACE).await;
                }
            };
            tokio::select! {
                biased;
                () = stopping => return Ok(None),
                read = timeout_at(deadline, self.read()) => read??,
            }
        }
    }

    /// Reads a message to its end, whether it will be refused or not. A connection that ends before delivers nothing:
    /// Odoo's "Test Connection" hangs up there.
    async fn message(&mut self, limit: usize) -> io::Result<Result<Bytes, Flaw>> {
        let mut reader = DataReader::new(limit);
        let mut used = 0usize;
        loop {
            if let Some(end) = reader.feed(&self.input) {
                self.input.advance(end.used);
                return Ok(end.message);
            }
            used = used.saturating_add(self.input.len());
            self.input.clear();
            if used > ENDLESS {
                return Err(io::Error::other("a message without end"));
            }
            self.flush().await?;
            timeout(IDLE, self.read()).await??;
        }
    }

    async fn read(&mut self) -> io::Result<()> {
        self.input.reserve(READ);
        match self.stream.read_buf(&mut self.input).await? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }

    /// Queues a reply; it is sent by the next [`Self::flush`].
    async fn write(&mut self, reply: &Reply) -> io::Result<()> {
        reply.write(&mut self.output);
        if self.output.len() > REPLIES { self.flush().await } else { Ok(()) }
    }

    async fn flush(&mut self) -> io::Result<()> {
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
    async fn close(&mut self, reply: &Reply) -> io::Result<End> {
        self.write(reply).await?;
        self.flush().await?;
        timeout(WRITE, self.stream.shutdown()).await??;
        Ok(End::Closed)
    }
}

#[cfg(test)]
#[path = "listener_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "listener_tls_tests.rs"]
mod tls_tests;
