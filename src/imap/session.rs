//! One IMAP session (RFC 9051, as Exchange speaks it): TLS, XOAUTH2, and the few commands that watching a folder
//! takes; [`super::sent`] has those that finding a sent message takes.
//!
//! The library only reads and writes here. Its own commands take a tagged NO for an empty success and know no timeouts,
//! so every command is checked and timed by [`Session::command`].

use super::folder_name;
use super::watch::Heard;
use super::wire::Wire;
use crate::address::Address;
use crate::failure::{Class, Failure, chain};
use crate::microsoft;
use crate::microsoft::imap_replies::{self, Status, Step};
use crate::units::HostPort;
use async_imap::imap_proto::{MailboxDatum, Response, ResponseCode, Status as Said};
use async_imap::{Authenticator, Client};
use futures_util::FutureExt;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::BufWriter;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{self, ClientConfig};

/// How long connecting may take, and the TLS handshake.
const CONNECT: Duration = Duration::from_secs(30);
/// How long the greeting and any command but the next may take.
pub(super) const COMMAND: Duration = Duration::from_secs(60);
/// How long LOGOUT may take: a courtesy.
const LOGOUT: Duration = Duration::from_secs(5);

/// A command goes out as one TLS record, not as three.
type Stream = BufWriter<Wire>;
/// A thousand sessions are open at a time, and most of them only wait: room for one command, in bytes.
const COMMAND_BUFFER: usize = 1024;

/// A connection that the server has greeted; nobody is signed in yet.
pub struct Greeted {
    client: Client<Stream>,
    mailbox: Address,
}

/// An authenticated session.
pub struct Session {
    pub(super) imap: async_imap::Session<Stream>,
    pub(super) mailbox: Address,
    /// What the server told of new messages.
    pub(super) heard: Heard,
}

/// A selected folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Folder {
    /// RFC 9051 section 2.3.1.1: while it stays, a UID never means another message.
    pub uidvalidity: u32,
    /// The UID that the next message will have, or a higher one.
    pub uidnext: u32,
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The server refused this command; the session goes on.
    #[error("the server refused a command")]
    Refused(#[source] Failure),
    /// The session is over.
    #[error("the session is over")]
    Lost(#[source] Failure),
}

impl Error {
    /// Whether the server answered, with a tagged NO or BAD that no row of the catalogue knows: the session goes on.
    pub(super) fn is_answer(&self) -> bool {
        let (Self::Refused(failure) | Self::Lost(failure)) = self;
        matches!(failure.code.as_str(), "IMAP NO" | "IMAP BAD")
    }

    /// What went wrong.
    pub fn into_failure(self) -> Failure {
        match self {
            Self::Refused(failure) | Self::Lost(failure) => failure,
        }
    }
}

impl Greeted {
    /// Connects.
    ///
    /// # Errors
    /// No connection, no TLS, or a server that is not ready.
    pub async fn open(
        endpoint: &HostPort,
        tls: Arc<ClientConfig>,
        mailbox: &Address,
    ) -> Result<Self, Failure> {
        let stream = connect(endpoint, tls).await?;
        let mut client = Client::new(BufWriter::with_capacity(COMMAND_BUFFER, Wire::new(stream)));
        let greeting = within(COMMAND, "the greeting", client.read_response()).await?;
        match greeting.map_err(|error| broken(&error))?.as_ref().map(|greeting| greeting.parsed()) {
            Some(Response::Data { status: Said::Ok, .. }) => {}
            Some(Response::Data { status: Said::Bye, outcome }) => {
                let text = outcome.information.as_deref().unwrap_or_default();
                return Err(imap_replies::judge(Step::Greeting, Status::Bye, text, mailbox.as_str()));
            }
            Some(_) => return Err(odd("the server's greeting is none")),
            None => return Err(cut()),
        }
        Ok(Self { client, mailbox: mailbox.clone() })
    }

    /// Signs in as the mailbox.
    ///
    /// # Errors
    /// A login that the server refuses ([`imap_replies::LOGIN_REFUSED`]), or a session that is over.
    pub async fn sign_in(self, token: &str) -> Result<Session, Failure> {
        let Self { client, mailbox } = self;
        let answer = Some(microsoft::xoauth2(&mailbox, token));
        let signed_in = client.authenticate("XOAUTH2", Xoauth2 { answer });
        match within(COMMAND, "AUTHENTICATE", Box::pin(signed_in)).await? {
            Ok(imap) => Ok(Session { imap, mailbox, heard: Heard::default() }),
            Err((error, client)) => {
                Err(login_failure(&error, client.get_ref().get_ref().farewell(), &mailbox))
            }
        }
    }
}

impl Session {
    /// Connects and signs in as the mailbox.
    ///
    /// # Errors
    /// As [`Greeted::open`] and [`Greeted::sign_in`].
    pub async fn open(
        endpoint: &HostPort,
        tls: Arc<ClientConfig>,
        mailbox: &Address,
        token: &str,
    ) -> Result<Self, Failure> {
        Greeted::open(endpoint, tls, mailbox).await?.sign_in(token).await
    }

    /// Selects a folder, for reading and marking. Its counts are as of now: selecting again reads them anew.
    ///
    /// # Errors
    /// A folder that is not there, or a session that is over.
    pub async fn select(&mut self, folder: &str) -> Result<Folder, Error> {
        self.enter("SELECT", &folder_name::encode(folder)).await
    }

    /// Selects a folder for reading only: nothing in it changes.
    ///
    /// # Errors
    /// As [`Session::select`].
    pub async fn examine(&mut self, folder: &str) -> Result<Folder, Error> {
        self.enter("EXAMINE", &folder_name::encode(folder)).await
    }

    /// Enters a folder by its name as a command takes it.
    pub(super) async fn enter(&mut self, verb: &str, folder: &str) -> Result<Folder, Error> {
        let (mut uidvalidity, mut uidnext) = (None, None);
        let command = format!("{verb} {folder}");
        self.command(Step::Select, &command, COMMAND, |response| {
            if let Response::Data { outcome, .. } = response {
                match outcome.code {
                    Some(ResponseCode::UidValidity(number)) => uidvalidity = Some(number),
                    Some(ResponseCode::UidNext(number)) => uidnext = Some(number),
                    _ => {}
                }
            }
        })
        .await?;
        match (uidvalidity, uidnext) {
            (Some(uidvalidity), Some(uidnext)) => Ok(Folder { uidvalidity, uidnext }),
            _ => Err(Error::Lost(odd("the server gave no UIDVALIDITY or no UIDNEXT"))),
        }
    }

    /// The UIDs that a search finds, in the server's order. Only keys that need no quoting.
    ///
    /// # Errors
    /// A search that the server refuses, or a session that is over.
    pub async fn search(&mut self, key: &str) -> Result<Vec<u32>, Error> {
        let mut found = Vec::new();
        self.command(Step::Search, &format!("UID SEARCH {key}"), COMMAND, |response| {
            if let Response::MailboxData(MailboxDatum::Search(uids)) = response {
                found.extend_from_slice(uids);
            }
        })
        .await?;
        Ok(found)
    }

    /// Says goodbye.
    pub async fn logout(mut self) {
        let goodbye = async {
            self.imap.run_command("LOGOUT").await?;
            while self.imap.read_response().await?.is_some() {}
            Ok::<_, async_imap::error::Error>(())
        };
        // The connection is closed either way.
        let _ = within(LOGOUT, "LOGOUT", goodbye).await;
    }

    /// Sends a command and hands every untagged response to `each`, until the tagged one says OK.
    pub(super) async fn command(
        &mut self,
        step: Step,
        command: &str,
        limit: Duration,
        mut each: impl FnMut(&Response<'_>),
    ) -> Result<(), Error> {
        let (imap, mailbox, heard) = (&mut self.imap, self.mailbox.as_str(), &mut self.heard);
        let work = async {
            let sent = imap.run_command(command).await;
            let tag = sent.map_err(|error| Error::Lost(failed(&error)))?;
            loop {
                let response = imap.read_response().await;
                let response = response.map_err(|error| Error::Lost(broken(&error)))?;
                let response = response.ok_or_else(|| Error::Lost(cut()))?;
                let (status, outcome) = match response.parsed() {
                    Response::Done { tag: of, status: Said::Ok, .. } if *of == tag => return Ok(()),
                    Response::Done { tag: of, status: Said::No, outcome } if *of == tag => {
                        (Status::No, outcome)
                    }
                    Response::Done { tag: of, outcome, .. } if *of == tag => (Status::Bad, outcome),
                    Response::Data { status: Said::Bye, outcome } => (Status::Bye, outcome),
                    untagged => {
                        heard.note(untagged);
                        each(untagged);
                        continue;
                    }
                };
                let text = outcome.information.as_deref().unwrap_or_default();
                let failure = imap_replies::judge(step, status, text, mailbox);
                return Err(match (status, failure.class) {
                    // What is about one message or its mark leaves the session as it was.
                    (Status::No, Class::Message | Class::Administrator) => Error::Refused(failure),
                    _ => Error::Lost(failure),
                });
            }
        };
        let verb: String =
            command.split(' ').take_while(|word| word.len() > 2).take(2).collect::<Vec<_>>().join(" ");
        within(limit, &verb, work).await.map_err(Error::Lost)?
    }
}

/// The SASL mechanism XOAUTH2: the token answers the first challenge; the second one holds the reason of a refusal,
/// which the server only ends after an empty answer.
struct Xoauth2 {
    answer: Option<String>,
}

impl Authenticator for Xoauth2 {
    type Response = String;

    fn process(&mut self, _challenge: &[u8]) -> Self::Response {
        self.answer.take().unwrap_or_default()
    }
}

async fn connect(endpoint: &HostPort, tls: Arc<ClientConfig>) -> Result<TlsStream<TcpStream>, Failure> {
    let name = ServerName::try_from(endpoint.host.clone()).map_err(|_| {
        Failure::new(Class::Administrator, "imap", format!("{} is no host name", endpoint.host))
            .advise("set `imap` to the IMAP server's name and port")
    })?;
    let unreachable = |error: &std::io::Error| {
        Failure::new(Class::Transient, "connect", format!("{endpoint}: {error}"))
            .advise("check that this machine may connect there (firewall, proxy, DNS)")
    };
    let address = (endpoint.host.as_str(), endpoint.port);
    let tcp = within(CONNECT, "connecting", TcpStream::connect(address)).await?;
    let tcp = tcp.map_err(|error| unreachable(&error))?;
    tcp.set_nodelay(true).map_err(|error| unreachable(&error))?;
    keep_alive(&tcp).map_err(|error| unreachable(&error.into()))?;
    let handshake = TlsConnector::from(tls).connect(name, tcp);
    let stream = within(CONNECT, "the TLS handshake", Box::pin(handshake)).await?;
    stream.map_err(|error| tls_failure(endpoint, &error))
}

/// Has the kernel ask, while nothing is said for long, whether the server is still there: an IDLE over a dead connection
/// ends after two minutes, and no firewall forgets a living one.
fn keep_alive(tcp: &TcpStream) -> rustix::io::Result<()> {
    rustix::net::sockopt::set_socket_keepalive(tcp, true)?;
    rustix::net::sockopt::set_tcp_keepidle(tcp, Duration::from_secs(60))?;
    rustix::net::sockopt::set_tcp_keepintvl(tcp, Duration::from_secs(15))?;
    rustix::net::sockopt::set_tcp_keepcnt(tcp, 4)
}

fn tls_failure(endpoint: &HostPort, error: &std::io::Error) -> Failure {
    let cause = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    let reply = format!("{endpoint}: {}", chain(error));
    if matches!(cause, Some(rustls::Error::InvalidCertificate(_))) {
        Failure::new(Class::Administrator, "TLS", reply).advise(
            "the server's certificate is not trusted: set `ca_file` to the root of whoever inspects TLS here, or \
             correct `imap`",
        )
    } else {
        Failure::new(Class::Transient, "TLS", reply)
    }
}

/// Waits for `work`, but not for ever. The parser of responses can panic (imap-proto 0.17 cuts a text behind a response
/// code at its second byte, which may lie inside a character); that is the server's odd answer, not our end.
pub(super) async fn within<T>(
    limit: Duration,
    what: &str,
    work: impl Future<Output = T>,
) -> Result<T, Failure> {
    match tokio::time::timeout(limit, AssertUnwindSafe(work).catch_unwind()).await {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(_)) => Err(odd("the server's answer broke the parser")),
        Err(_) => {
            let reply = format!("no answer to {what} after {} s", limit.as_secs());
            Err(Failure::new(Class::Transient, "timeout", reply))
        }
    }
}

/// A refused login, by its text alone: the library shows the reply's `Debug` form. What came instead of a reply may have
/// its reason in the server's `farewell`.
fn login_failure(error: &async_imap::error::Error, farewell: Option<&str>, mailbox: &Address) -> Failure {
    use async_imap::error::Error as Imap;
    let (status, shown) = match (error, farewell) {
        (Imap::No(shown), _) => (Status::No, shown),
        (Imap::Bad(shown), _) => (Status::Bad, shown),
        (_, Some(text)) => {
            return imap_replies::judge(Step::Authenticate, Status::Bye, text, mailbox.as_str());
        }
        (other, None) => return failed(other),
    };
    let text = shown.split_once("info: Some(\"").map_or("", |(_, text)| text);
    let text = text.strip_suffix("\")").unwrap_or(text);
    imap_replies::judge(Step::Authenticate, status, text, mailbox.as_str())
}

pub(super) fn failed(error: &async_imap::error::Error) -> Failure {
    match error {
        async_imap::error::Error::Io(error) => broken(error),
        async_imap::error::Error::ConnectionLost => cut(),
        _ => odd("the server's answer makes no sense"),
    }
}

/// The text of an error of kind `Other` quotes what could not be parsed, which may be a message: it is not shown.
pub(super) fn broken(error: &std::io::Error) -> Failure {
    if error.kind() == std::io::ErrorKind::Other {
        odd("the server's answer cannot be parsed")
    } else if error.kind() == std::io::ErrorKind::InvalidData {
        odd(&error.to_string())
    } else if error.kind() == std::io::ErrorKind::UnexpectedEof {
        cut()
    } else {
        Failure::new(Class::Transient, "cut", error.to_string())
    }
}

pub(super) fn cut() -> Failure {
    Failure::new(Class::Transient, "cut", "the server closed the connection")
}

fn odd(what: &str) -> Failure {
    Failure::new(Class::Transient, "odd answer", what)
}
