//! One client's session, from the greeting to the farewell.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::budget::{Budget, Pressure};
use super::chunks::ChunkReader;
use super::connection::{Connection, Incoming, Patience};
use super::data::Flaw;
use super::intake::{Intake, log_refusal};
use super::is_loopback;
use super::limits::Limits;
use super::lines::Line;
use super::listener::Clients;
use super::reply::Reply;
use super::session::{Action, Chunk, Offer, Part, Session};
use crate::message::Envelope;

const HANDSHAKE: Duration = Duration::from_secs(30);
/// How long an open transaction may go without a line once the server stops.
const GRACE: Duration = Duration::from_secs(10);
/// How long from its beginning a session may take to begin its first message once the server stops: a client that has just
/// connected, as Odoo does for each mail, is not sent away with it.
const FRESH: Duration = Duration::from_secs(2);
/// Slows down whoever guesses passwords.
const WRONG_PASSWORD: Duration = Duration::from_secs(1);

/// What all sessions share.
pub(super) struct Shared {
    pub(super) offer: Arc<Offer>,
    pub(super) limits: Limits,
    pub(super) tls: Option<TlsAcceptor>,
    pub(super) intake: Intake,
    pub(super) budget: Arc<Budget>,
    pub(super) places: Arc<Semaphore>,
    /// Those who wait for a place.
    pub(super) waiting: Arc<Pressure>,
    pub(super) clients: Arc<Clients>,
    pub(super) stop: CancellationToken,
}

/// How a conversation ended.
#[derive(PartialEq, Eq)]
pub(super) enum End {
    Closed,
    StartTls,
}

/// A client's session, and when it must end.
pub(super) struct Talk<'s> {
    shared: &'s Shared,
    session: Session,
    peer: SocketAddr,
    ends: Instant,
    /// When it is, once the server stops, if no message is begun then.
    sent_away_at: Instant,
    /// A message, or the last of it, is being read.
    in_message: bool,
}

/// A message of which some chunks have come.
struct InChunks<'b> {
    reader: ChunkReader,
    incoming: Incoming<'b>,
}

impl Shared {
    /// Serves one client. `tls`: it begins with TLS.
    pub(super) async fn run(&self, stream: TcpStream, tls: bool, peer: SocketAddr) {
        if let Err(error) = self.run_session(stream, tls, peer).await {
            tracing::debug!(%peer, %error, "session ended");
        }
    }

    async fn run_session(&self, stream: TcpStream, tls: bool, peer: SocketAddr) -> io::Result<()> {
        // Replies are small and waited for.
        stream.set_nodelay(true)?;
        let Some(_entered) = self.clients.enter(&peer) else {
            let reply = Reply::new(
                421,
                "4.7.0",
                "Too many connections from your address; close some, or raise max_sessions_per_client in [submission]",
            );
            log_refusal(peer, &reply);
            // A client that waits for a TLS handshake could not read it.
            return if tls { Ok(()) } else { Connection::new(stream).close(&reply).await };
        };
        let mut talk = self.talk(peer);
        if !tls {
            let mut connection = Connection::new(stream);
            connection.write(&talk.session.greeting()).await?;
            if talk.converse(&mut connection).await? == End::StartTls {
                // A new connection: nothing that came in clear is left in its buffers (RFC 3207 section 6).
                let mut connection = talk.begin_tls(connection.stream).await?;
                talk.converse(&mut connection).await?;
            }
            return Ok(());
        }
        let mut connection = talk.begin_tls(stream).await?;
        connection.write(&talk.session.greeting()).await?;
        talk.converse(&mut connection).await.map(|_| ())
    }

    pub(super) fn talk(&self, peer: SocketAddr) -> Talk<'_> {
        Talk {
            shared: self,
            session: Session::new(Arc::clone(&self.offer), is_loopback(&peer)),
            peer,
            ends: Instant::now() + self.limits.session,
            sent_away_at: Instant::now() + FRESH,
            in_message: false,
        }
    }

    fn incoming(&self) -> Incoming<'_> {
        Incoming {
            budget: &self.budget,
            idle: self.limits.idle,
            stalled: self.limits.stalled,
            left: self.limits.message,
            share: self.budget.share(),
        }
    }

    fn message_limit(&self) -> usize {
        usize::try_from(self.offer.max_message_size).unwrap_or(usize::MAX)
    }
}

impl<'s> Talk<'s> {
    async fn begin_tls(
        &mut self,
        stream: TcpStream,
    ) -> io::Result<Connection<tokio_rustls::server::TlsStream<TcpStream>>> {
        let Some(tls) = &self.shared.tls else {
            return Err(io::Error::other("no certificate"));
        };
        let stream = timeout(HANDSHAKE, tls.accept(stream)).await??;
        self.session.encrypted();
        Ok(Connection::new(stream))
    }

    pub(super) async fn converse<S: AsyncRead + AsyncWrite + Unpin>(
        &mut self,
        connection: &mut Connection<S>,
    ) -> io::Result<End> {
        match self.answer_lines(connection).await {
            Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                let reply = Reply::new(421, "4.4.2", self.late());
                // To Odoo it is a lost mail.
                if self.in_message || self.session.in_transaction() {
                    log_refusal(self.peer, &reply);
                }
                connection.close(&reply).await?;
                Ok(End::Closed)
            }
            end => end,
        }
    }

    fn late(&self) -> &'static str {
        if Instant::now() >= self.ends {
            "The session takes too long; closing the connection"
        } else {
            "Nothing came for too long, or the message takes too long; closing the connection"
        }
    }

    async fn answer_lines<S: AsyncRead + AsyncWrite + Unpin>(
        &mut self,
        connection: &mut Connection<S>,
    ) -> io::Result<End> {
        let mut in_chunks: Option<InChunks<'s>> = None;
        loop {
            let Some(line) = self.line(connection, &mut in_chunks).await? else {
                return close(connection, &self.session.stopping()).await;
            };
            let action = match line {
                Line::Complete(line) => self.session.line(&line),
                Line::TooLong => self.session.long_line(),
                Line::Endless => {
                    Action::Close(Reply::new(500, "5.5.2", "The line has no end; closing the connection"))
                }
                Line::BareLineFeed => self.session.bare_line_feed(),
            };
            if action.reply().is_refusal() {
                log_refusal(self.peer, action.reply());
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
                    let mut incoming = self.shared.incoming();
                    self.in_message = true;
                    let message = connection.message(self.shared.message_limit(), &mut incoming).await?;
                    self.in_message = false;
                    // Its share of the memory is held until it is on disk.
                    let reply = self.settle(envelope, message).await;
                    connection.write(&reply).await?;
                }
                Action::ReadChunk(reply, chunk) => {
                    let reply = self.chunk(connection, &mut in_chunks, reply, chunk).await?;
                    connection.write(&reply).await?;
                }
                Action::StartTls(_) if connection.has_input() => {
                    let reply = Reply::new(
                        421,
                        "4.7.0",
                        "Commands came in clear behind STARTTLS; closing the connection",
                    );
                    log_refusal(self.peer, &reply);
                    return close(connection, &reply).await;
                }
                Action::StartTls(reply) => {
                    connection.write(&reply).await?;
                    connection.flush().await?;
                    return Ok(End::StartTls);
                }
                Action::Close(reply) => return close(connection, &reply).await,
            }
            if self.session.in_transaction() {
                self.sent_away_at = Instant::now();
            }
            if !self.session.in_chunks() {
                in_chunks = None;
            }
        }
    }

    /// The next line. `None`: the server stops, and no message is begun.
    async fn line<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        connection: &mut Connection<S>,
        in_chunks: &mut Option<InChunks<'s>>,
    ) -> io::Result<Option<Line>> {
        let Shared { limits, stop, waiting, .. } = self.shared;
        let in_transaction = self.session.in_transaction();
        let begun = Instant::now();
        let ends = if in_transaction { self.ends + limits.message } else { self.ends };
        loop {
            if stop.is_cancelled() && !in_transaction && self.sent_away_at <= Instant::now() {
                return Ok(None);
            }
            if let Some(line) = connection.line(self.session.line_limit()) {
                return Ok(Some(line));
            }
            let patience = match in_chunks {
                Some(in_chunks) => in_chunks.incoming.patience(),
                None => Patience {
                    deadline: begun + limits.idle,
                    pressure: (!in_transaction).then_some((waiting, limits.stalled)),
                },
            };
            let patience = Patience { deadline: patience.deadline.min(ends), ..patience };
            let stopping = async {
                stop.cancelled().await;
                if in_transaction {
                    sleep(GRACE).await;
                } else {
                    sleep_until(self.sent_away_at).await;
                }
            };
            let since = Instant::now();
            tokio::select! {
                biased;
                () = stopping => return Ok(None),
                read = connection.more(patience) => read?,
            }
            if let Some(in_chunks) = in_chunks {
                in_chunks.incoming.spend(since);
            }
        }
    }

    /// Reads a chunk and gives the reply to it: `reply`, unless there is something wrong with what it holds.
    async fn chunk<S: AsyncRead + AsyncWrite + Unpin>(
        &mut self,
        connection: &mut Connection<S>,
        in_chunks: &mut Option<InChunks<'s>>,
        reply: Reply,
        Chunk { size, part }: Chunk,
    ) -> io::Result<Reply> {
        let shared = self.shared;
        if part == Part::Refused {
            connection.chunk(size, None, &mut shared.incoming()).await?;
            return Ok(reply);
        }
        let InChunks { mut reader, mut incoming } = in_chunks.take().unwrap_or_else(|| InChunks {
            reader: ChunkReader::new(shared.message_limit()),
            incoming: shared.incoming(),
        });
        self.in_message = true;
        connection.chunk(size, Some(&mut reader), &mut incoming).await?;
        self.in_message = false;
        if let Part::Last(envelope) = part {
            return Ok(self.settle(envelope, reader.finish()).await);
        }
        if let Some(flaw) = reader.content().flaw() {
            self.session.chunk_refused();
            return Ok(self.refuse(flaw));
        }
        *in_chunks = Some(InChunks { reader, incoming });
        Ok(reply)
    }

    /// Hands a message on that was read to its end, or refuses it.
    async fn settle(&self, envelope: Envelope, message: Result<Bytes, Flaw>) -> Reply {
        match message {
            Ok(content) => {
                let user = self.session.user().map(AsRef::as_ref);
                self.shared.intake.take(envelope, content, user, self.peer, crate::clock::now()).await
            }
            Err(flaw) => self.refuse(flaw),
        }
    }

    fn refuse(&self, flaw: Flaw) -> Reply {
        let reply = flaw.reply(self.shared.message_limit());
        log_refusal(self.peer, &reply);
        reply
    }
}

async fn close<S: AsyncRead + AsyncWrite + Unpin>(
    connection: &mut Connection<S>,
    reply: &Reply,
) -> io::Result<End> {
    connection.close(reply).await?;
    Ok(End::Closed)
}

#[cfg(test)]
#[path = "conversation_tests.rs"]
mod tests;
