//! Exchange Online's SMTP submission, scripted: STARTTLS, XOAUTH2, Exchange's words, and faults at every step.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use tokio_rustls::TlsAcceptor;

use super::entra::TokenCheck;
use super::events::Events;
use super::gauge::Gauge;
use super::script::{Rule, Script};
use super::server::Server;
use super::smtp_session;
use super::tls::Tls;

/// Where in the dialogue a fault happens, in the order of the dialogue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Before anything is sent.
    Connect,
    Banner,
    /// The EHLO before STARTTLS.
    Ehlo,
    /// The reply to STARTTLS. A scripted `220` is followed by the handshake, so that more lines can be slipped in.
    StartTls,
    /// In place of the TLS handshake.
    Handshake,
    EhloTls,
    /// The outcome of AUTH.
    Auth,
    Mail,
    /// One recipient; `only` compares with its address as well.
    Rcpt,
    /// In place of 354.
    Data,
    /// After the first bytes of the message. `Silence` stops reading too, so that the client's writes block.
    MidData,
    /// After the final dot; `only` also compares with the recipients and looks for the text inside the message.
    AfterDot,
    Rset,
    Quit,
}

/// What goes wrong.
#[derive(Clone, Debug)]
pub enum Fault {
    /// This reply (lines parted by CRLF) instead of the right one. After a 421 the connection is closed.
    Reply(String),
    /// The connection is lost.
    Cut,
    /// No answer, until the client gives up.
    Silence,
    /// Bytes that are no reply, and then on as if nothing had been.
    Garbage,
    /// A reply line that never ends.
    EndlessLine,
    /// At [`Step::AfterDot`]: the message is taken, and the connection lost before the reply.
    KeepThenCut,
    /// At [`Step::AfterDot`]: the message is taken, and no reply ever comes.
    KeepThenSilence,
}

impl Fault {
    pub fn reply(text: &str) -> Self {
        Self::Reply(text.to_owned())
    }
}

/// One message taken.
#[derive(Clone, Debug)]
pub struct Delivered {
    /// Who authenticated: `user=` of XOAUTH2.
    pub mailbox: String,
    pub mail_from: String,
    /// The parameters of MAIL FROM, as sent: `SIZE=…`, `BODY=8BITMIME`.
    pub mail_params: Vec<String>,
    pub recipients: Vec<String>,
    /// After dot-unstuffing; empty when recording is off.
    pub data: Arc<Vec<u8>>,
    pub at: jiff::Timestamp,
    /// Number of the connection, from 1.
    pub connection: u64,
}

impl Delivered {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.data).into_owned()
    }
}

/// Called with every message taken.
pub type Hook = Arc<dyn Fn(&Delivered) + Send + Sync>;

pub(super) struct Shared {
    pub(super) acceptor: TlsAcceptor,
    pub(super) check: TokenCheck,
    pub(super) script: Script<Step, Fault>,
    pub(super) delivered: Mutex<Vec<Delivered>>,
    pub(super) count: AtomicUsize,
    pub(super) commands: Mutex<Vec<(u64, String)>>,
    pub(super) hook: Mutex<Option<Hook>>,
    pub(super) dropped: Mutex<BTreeSet<String>>,
    pub(super) recording: AtomicBool,
    pub(super) generic_failure: AtomicBool,
    pub(super) send_as: AtomicBool,
    pub(super) limit: AtomicUsize,
    pub(super) connections: Gauge,
    pub(super) events: Events,
}

/// The server at a free port of 127.0.0.1. It lets a mailbox send only as itself, and over three connections, until
/// told otherwise.
pub struct Smtp {
    /// For outages: `down` and `up`.
    pub server: Server,
    shared: Arc<Shared>,
}

impl Smtp {
    /// `check` decides on tokens, see [`super::entra::Entra::check`].
    pub async fn start(tls: &Tls, check: TokenCheck) -> Self {
        let shared = Arc::new(Shared {
            acceptor: tls.acceptor(),
            check,
            script: Script::default(),
            delivered: Mutex::default(),
            count: AtomicUsize::new(0),
            commands: Mutex::default(),
            hook: Mutex::default(),
            dropped: Mutex::default(),
            recording: AtomicBool::new(true),
            generic_failure: AtomicBool::new(false),
            send_as: AtomicBool::new(false),
            limit: AtomicUsize::new(3),
            connections: Gauge::default(),
            events: Events::default(),
        });
        let world = Arc::clone(&shared);
        let server = Server::start(move |stream, number| {
            let world = Arc::clone(&world);
            async move {
                let _total = world.connections.enter("");
                smtp_session::serve(Arc::clone(&world), stream, number).await;
            }
        })
        .await;
        Self { server, shared }
    }

    pub fn addr(&self) -> SocketAddr {
        self.server.addr()
    }

    /// For the key `smtp`, with the name the certificate is for.
    pub fn endpoint(&self) -> String {
        format!("localhost:{}", self.addr().port())
    }

    /// Plans a fault; `only` compares with the mailbox, and what the step adds.
    pub fn script(&self, rule: Rule<Step, Fault>) {
        self.shared.script.add(rule);
    }

    /// Plans a fault that happens once.
    pub fn fail_next(&self, step: Step, fault: Fault) {
        self.script(Rule::new(step, fault));
    }

    /// Faults still to come.
    pub fn pending(&self) -> usize {
        self.shared.script.pending()
    }

    /// Forgets every planned fault.
    pub fn clear(&self) {
        self.shared.script.clear();
    }

    /// Every message taken, in order.
    pub fn delivered(&self) -> Vec<Delivered> {
        self.shared.delivered.lock().unwrap().clone()
    }

    /// How many messages were taken, recorded or not.
    pub fn count(&self) -> usize {
        self.shared.count.load(Ordering::Acquire)
    }

    /// The commands seen, with the number of their connection; AUTH without what follows it.
    pub fn commands(&self) -> Vec<(u64, String)> {
        self.shared.commands.lock().unwrap().clone()
    }

    /// Connections ever made.
    pub fn connections(&self) -> usize {
        self.shared.connections.total("")
    }

    /// Connections now authenticated as this mailbox; "" stands for all, authenticated or not.
    pub fn connections_now(&self, mailbox: &str) -> usize {
        self.shared.connections.now(mailbox)
    }

    /// The most connections authenticated as this mailbox at the same time; "" as above.
    pub fn max_connections(&self, mailbox: &str) -> usize {
        self.shared.connections.max(mailbox)
    }

    /// `false`: messages and commands are counted but not kept, for benchmarks.
    pub fn set_recording(&self, on: bool) {
        self.shared.recording.store(on, Ordering::Relaxed);
    }

    /// Calls this with every message taken, before its 250; a copy in Sent Items is filed this way.
    pub fn set_hook(&self, hook: Hook) {
        *self.shared.hook.lock().unwrap() = Some(hook);
    }

    /// Takes an extension out of the EHLO replies, by its first word.
    pub fn drop_extension(&self, word: &str) {
        self.shared.dropped.lock().unwrap().insert(word.to_ascii_uppercase());
    }

    /// `true`: a wrong token is answered with 334 and JSON, and only then with 535, as servers other than Exchange do.
    pub fn set_generic_failure(&self, on: bool) {
        self.shared.generic_failure.store(on, Ordering::Relaxed);
    }

    /// `true`: a mailbox may use any MAIL FROM.
    pub fn set_send_as(&self, allowed: bool) {
        self.shared.send_as.store(allowed, Ordering::Relaxed);
    }

    /// Connections a mailbox may have; MAIL on one more is answered with 432 4.3.2.
    pub fn set_connection_limit(&self, limit: usize) {
        self.shared.limit.store(limit, Ordering::Relaxed);
    }

    pub fn events(&self) -> &Events {
        &self.shared.events
    }
}
