use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::task::JoinHandle;

use super::*;
use crate::address::Address;
use crate::routing::{AliasDomain, Candidate, Routes, Rule};
use crate::store::{self, Queued, Store};
use crate::submission::limits::Limits;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::RwLock;
use tokio::time::timeout;

const MESSAGE: &str = "From: Ann <ann@example.com>\r\nMessage-Id: <1@example.com>\r\n\r\n.dot\r\nbody\r\n";
/// The message as it goes over the wire, with its end.
pub(super) const WIRE: &str =
    "From: Ann <ann@example.com>\r\nMessage-Id: <1@example.com>\r\n\r\n..dot\r\nbody\r\n.\r\n";
/// Longer than anything here takes; a test that runs into it fails.
const DEADLINE: Duration = Duration::from_secs(30);

pub(crate) fn config() -> Config {
    Config {
        listen: Vec::new(),
        names_listen: false,
        listen_tls: Vec::new(),
        max_message_size: 10_000,
        users: Vec::new(),
        limits: Limits::default(),
        tls: None,
    }
}

fn candidates(mailboxes: &[&str]) -> Vec<Candidate> {
    let candidate = |mailbox: &&str| Candidate {
        mailbox: Address::normalise(mailbox).unwrap(),
        sequence: 10,
        filter: Some((*mailbox).to_owned()),
    };
    mailboxes.iter().map(candidate).collect()
}

pub(crate) fn routes(mailboxes: &[&str]) -> Routes {
    Routes::new(candidates(mailboxes), Vec::new())
}

/// A server with a store of its own.
pub(super) struct Relay {
    address: SocketAddr,
    /// Where TLS comes first.
    pub(super) tls_address: Option<SocketAddr>,
    pub(super) store: Store,
    writer: JoinHandle<()>,
    stop: CancellationToken,
    served: JoinHandle<()>,
    _folder: tempfile::TempDir,
}

impl Relay {
    pub(super) async fn start(config: Config) -> Self {
        Self::with_mailboxes(config, &["ann@example.com"]).await
    }

    async fn with_mailboxes(config: Config, mailboxes: &[&str]) -> Self {
        Self::with_routes(config, routes(mailboxes)).await
    }

    pub(super) async fn with_routes(config: Config, routes: Routes) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("relay.db");
        let (store, writer) = Store::open(&store::Config::at(path)).await.unwrap();
        let writer = tokio::spawn(writer.run());
        let mut sockets = Sockets::default();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        sockets.plain.push(listener);
        let mut tls_address = None;
        if config.tls.is_some() {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            tls_address = Some(listener.local_addr().unwrap());
            sockets.tls.push(listener);
        }
        let stop = CancellationToken::new();
        let intake = Intake::new(Arc::new(RwLock::new(routes)), store.clone());
        let listener = Listener::new(&config, sockets, intake).unwrap();
        let served = tokio::spawn(listener.run(stop.clone()));
        Self { address, tls_address, store, writer, stop, served, _folder: folder }
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(super) async fn connect(&self) -> Client<TcpStream> {
        let mut client = Client::new(TcpStream::connect(self.address).await.unwrap());
        assert_eq!(client.hear().await, "220 outlook-relay ESMTP");
        client
    }

    /// A client that has said EHLO.
    pub(super) async fn greeted(&self) -> Client<TcpStream> {
        let mut client = self.connect().await;
        assert!(client.ask("EHLO me").await.starts_with("250-outlook-relay\n"));
        client
    }

    pub(super) async fn queue(&self) -> Vec<Queued> {
        self.store.queued(None, 100).await.unwrap()
    }
}

/// An SMTP client that only knows lines.
pub(super) struct Client<S> {
    pub(super) stream: BufReader<S>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Client<S> {
    pub(super) fn new(stream: S) -> Self {
        Self { stream: BufReader::new(stream) }
    }

    pub(super) async fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
        self.stream.flush().await.unwrap();
    }

    /// The next line; empty at the end of the stream.
    pub(super) async fn hear_line(&mut self) -> String {
        let mut line = String::new();
        timeout(DEADLINE, self.stream.read_line(&mut line)).await.expect("no reply in time").unwrap();
        line
    }

    /// The next reply, its lines joined by LF; empty at the end of the stream.
    pub(super) async fn hear(&mut self) -> String {
        let mut reply = String::new();
        loop {
            let line = self.hear_line().await;
            reply.push_str(&line.replace("\r\n", "\n"));
            if line.as_bytes().get(3) != Some(&b'-') {
                return reply.trim_end().to_owned();
            }
        }
    }

    pub(super) async fn ask(&mut self, line: &str) -> String {
        self.send(format!("{line}\r\n").as_bytes()).await;
        self.hear().await
    }

    pub(super) async fn begin(&mut self) {
        assert_eq!(self.ask("MAIL FROM:<bounce@example.com>").await, "250 2.1.0 Ok");
        assert_eq!(self.ask("RCPT TO:<bob@x.test>").await, "250 2.1.5 Ok");
        assert!(self.ask("DATA").await.starts_with("354 "));
    }

    pub(super) async fn mail(&mut self, wire: &str) -> String {
        self.begin().await;
        self.send(wire.as_bytes()).await;
        self.hear().await
    }

    pub(super) async fn is_closed(&mut self) -> bool {
        self.hear_line().await.is_empty()
    }
}

#[tokio::test]
async fn a_message_is_in_the_store_when_it_is_answered() {
    let relay = Relay::start(config()).await;
    let mut client = relay.greeted().await;
    let reply = client.mail(WIRE).await;
    let id =
        reply.strip_prefix("250 2.0.0 Ok: queued as ").unwrap_or_else(|| panic!("{reply}")).parse().unwrap();
    let queue = relay.queue().await;
    let [queued] = queue.as_slice() else { panic!("{queue:?}") };
    assert_eq!(queued.id, id);
    assert_eq!(queued.mail_from, "bounce@example.com");
    assert_eq!(queued.recipients.len(), 1);
    assert_eq!(queued.recipients[0].address, "bob@x.test");
    assert_eq!(queued.mailbox.as_str(), "ann@example.com");
    assert_eq!(queued.rule, Rule::Address);
    assert_eq!(queued.message_id.as_deref(), Some("<1@example.com>"));
    assert_eq!(relay.store.content(id).await.unwrap().unwrap(), MESSAGE.as_bytes());
    assert!(client.ask("QUIT").await.starts_with("221 "));
    assert!(client.is_closed().await);
}

#[tokio::test]
async fn one_connection_carries_many_messages_even_equal_ones() {
    let relay = Relay::start(config()).await;
    let mut client = relay.greeted().await;
    for _ in 0..20 {
        assert!(client.mail(WIRE).await.starts_with("250 2.0.0 "));
    }
    assert_eq!(relay.queue().await.len(), 20);
}

#[tokio::test]
async fn a_group_of_commands_is_answered_at_once() {
    let relay = Relay::start(config()).await;
    let mut stream = TcpStream::connect(relay.address).await.unwrap();
    let mut buffer = vec![0; 4096];
    let read = timeout(DEADLINE, stream.read(&mut buffer)).await.unwrap().unwrap();
    assert!(buffer[..read].starts_with(b"220 "));
    stream.write_all(b"HELO me\r\nMAIL FROM:<>\r\nRCPT TO:<bob@x.test>\r\nNOOP\r\n").await.unwrap();
    let read = timeout(DEADLINE, stream.read(&mut buffer)).await.unwrap().unwrap();
    let replies = std::str::from_utf8(&buffer[..read]).unwrap();
    assert_eq!(replies, "250 outlook-relay\r\n250 2.1.0 Ok\r\n250 2.1.5 Ok\r\n250 2.0.0 Ok\r\n");
}

#[tokio::test]
async fn everything_may_come_in_one_piece_or_byte_by_byte() {
    let relay = Relay::start(config()).await;
    let once = format!("MAIL FROM:<>\r\nRCPT TO:<bob@x.test>\r\nDATA\r\n{WIRE}");
    let twice = format!("{once}{once}NOOP\r\n");
    for piece in [twice.len(), 1] {
        let mut client = relay.greeted().await;
        for bytes in twice.as_bytes().chunks(piece) {
            client.send(bytes).await;
        }
        let mut codes = Vec::new();
        for _ in 0..9 {
            codes.push(client.hear().await[..3].to_owned());
        }
        assert_eq!(codes, ["250", "250", "354", "250", "250", "250", "354", "250", "250"]);
    }
    let queue = relay.queue().await;
    assert_eq!(queue.len(), 4);
    for queued in queue {
        assert_eq!(relay.store.content(queued.id).await.unwrap().unwrap(), MESSAGE.as_bytes());
    }
}

#[tokio::test]
async fn a_connection_that_ends_inside_a_message_delivers_nothing() {
    let relay = Relay::start(config()).await;
    for wire in ["", "From: ann@example.com\r\n\r\nhalf", "From: ann@example.com\r\n\r\nall\r\n.\r", "."] {
        let mut client = relay.greeted().await;
        client.begin().await;
        client.send(wire.as_bytes()).await;
        client.stream.get_mut().shutdown().await.unwrap();
        assert!(client.is_closed().await, "after {wire:?}");
    }
    assert_eq!(relay.queue().await.len(), 0);
}

#[tokio::test]
async fn a_smuggled_message_is_refused_with_the_one_that_carries_it() {
    let relay = Relay::start(config()).await;
    let mut client = relay.greeted().await;
    let reply =
        client.mail("a\r\n\n.\r\nMAIL FROM:<evil@x.test>\r\nRCPT TO:<b@x.test>\r\nDATA\r\nb\r\n.\r\n").await;
    assert!(reply.starts_with("554 5.6.0 "), "{reply}");
    assert_eq!(client.ask("NOOP").await, "250 2.0.0 Ok");
    assert_eq!(relay.queue().await.len(), 0);
    client.send(b"NOOP\nMAIL FROM:<>\r\n").await;
    assert!(client.hear().await.starts_with("500 5.5.2 "));
    assert!(client.is_closed().await);
}

#[tokio::test]
async fn a_message_over_the_limit_is_refused_and_the_next_one_taken() {
    let relay = Relay::start(config()).await;
    let mut client = relay.greeted().await;
    assert!(client.ask("MAIL FROM:<> SIZE=10001").await.starts_with("552 5.3.4 "));
    let reply = client.mail(&format!("{}\r\n.\r\n", "a".repeat(300_000))).await;
    assert!(reply.starts_with("552 5.3.4 "), "{reply}");
    assert!(client.mail(WIRE).await.starts_with("250 "));
    assert_eq!(relay.queue().await.len(), 1);
}

#[tokio::test]
async fn lines_without_measure() {
    let relay = Relay::start(config()).await;
    let mut client = relay.greeted().await;
    assert!(client.ask(&"a".repeat(100_000)).await.starts_with("500 5.5.2 "));
    assert_eq!(client.ask("NOOP").await, "250 2.0.0 Ok");
    // Not all of it may be read before the connection is closed.
    let _ = client.stream.write_all(&vec![b'a'; 1_100_000]).await;
    assert!(client.hear().await.starts_with("500 5.5.2 The line has no end"));
}

#[tokio::test]
async fn without_a_mailbox_or_a_store_the_refusal_says_so() {
    let relay = Relay::with_mailboxes(config(), &[]).await;
    let reply = relay.greeted().await.mail(WIRE).await;
    assert!(reply.starts_with("554 5.3.5 ") && reply.contains("[[mailbox]]"), "{reply}");
    let relay = Relay::start(config()).await;
    relay.writer.abort();
    let reply = relay.greeted().await.mail(WIRE).await;
    assert!(reply.starts_with("452 4.3.1 ") && reply.contains("send the message again"), "{reply}");
    assert_eq!(relay.queue().await.len(), 0);
}

#[tokio::test]
async fn a_message_that_makes_no_sense_is_still_taken() {
    let relay = Relay::start(config()).await;
    let mut client = relay.greeted().await;
    for wire in [
        "From: ann@example.com\r\n.\r\n",
        "From: a@x.test, b@x.test\r\nno header at all\r\n.\r\n",
        "From: <nobody> ann@example.com <\r\n\u{e9}: b\r\n\r\n.\r\n",
    ] {
        let reply = client.mail(wire).await;
        assert!(reply.starts_with("250 "), "{wire:?}: {reply}");
    }
    assert_eq!(relay.queue().await.len(), 3);
}

#[tokio::test]
async fn a_message_that_nobody_is_the_author_of_is_refused_unless_somebody_stands_in() {
    let relay = Relay::start(config()).await;
    let mut client = relay.greeted().await;
    let unsigned =
        [".\r\n", "\r\n.\r\n", "no header at all\r\n.\r\n", "From: Ann\r\n\r\n.\r\n", "From:\r\n\r\n.\r\n"];
    for wire in unsigned {
        let reply = client.mail(wire).await;
        assert!(reply.starts_with("554 5.6.0 The message has no From address"), "{wire:?}: {reply}");
    }
    assert_eq!(relay.queue().await.len(), 0);
    let domains = vec![AliasDomain::new(Some("example.com"), Some("notifications"), None)];
    let relay = Relay::with_routes(config(), Routes::new(candidates(&["ann@example.com"]), domains)).await;
    let mut client = relay.greeted().await;
    for wire in unsigned {
        assert!(client.mail(wire).await.starts_with("250 "), "{wire:?}");
    }
}

#[tokio::test]
async fn a_message_that_goes_in_circles_is_refused() {
    let relay = Relay::start(config()).await;
    let mut client = relay.greeted().await;
    let hops = |count: usize| format!("{}{WIRE}", "Received: from a by b;\r\n\tnow\r\n".repeat(count));
    assert!(client.mail(&hops(49)).await.starts_with("250 "));
    let reply = client.mail(&hops(50)).await;
    assert!(reply.starts_with("554 5.4.6 Routing loop detected"), "{reply}");
    // What the body quotes does not count.
    let quoted = WIRE.replace("body\r\n", &"Received: from a by b\r\n".repeat(60));
    assert!(client.mail(&quoted).await.starts_with("250 "));
}

#[tokio::test]
async fn a_stop_waits_for_the_message_in_hand() {
    let relay = Relay::start(config()).await;
    let mut idle = relay.greeted().await;
    let mut open = relay.greeted().await;
    assert_eq!(open.ask("MAIL FROM:<>").await, "250 2.1.0 Ok");
    let mut sending = relay.greeted().await;
    sending.begin().await;
    relay.stop.cancel();
    assert!(idle.hear().await.starts_with("421 4.3.2 "));
    assert!(idle.is_closed().await);
    sending.send(WIRE.as_bytes()).await;
    assert!(sending.hear().await.starts_with("250 2.0.0 "));
    assert!(sending.hear().await.starts_with("421 4.3.2 "));
    assert!(sending.is_closed().await);
    assert_eq!(open.ask("RCPT TO:<bob@x.test>").await, "250 2.1.5 Ok");
    assert!(open.ask("DATA").await.starts_with("354 "));
    open.send(WIRE.as_bytes()).await;
    assert!(open.hear().await.starts_with("250 2.0.0 "));
    assert!(open.hear().await.starts_with("421 4.3.2 "));
    timeout(DEADLINE, relay.served).await.unwrap().unwrap();
    assert_eq!(relay.store.queued(None, 10).await.unwrap().len(), 2);
}

#[tokio::test]
async fn a_server_that_is_dropped_ends_its_sessions() {
    let relay = Relay::start(config()).await;
    let mut client = relay.greeted().await;
    relay.served.abort();
    assert!(client.is_closed().await);
}

#[tokio::test]
async fn strangers_are_not_listened_to() {
    let relay = Relay::start(config()).await;
    let listener = TcpListener::bind("0.0.0.0:0").await.unwrap();
    let routes = Arc::new(RwLock::new(routes(&["ann@example.com"])));
    let intake = Intake::new(routes, relay.store.clone());
    let refused = Listener::new(&config(), Sockets { plain: vec![listener], tls: Vec::new() }, intake).err();
    assert!(matches!(refused, Some(Error::Exposed(_))), "{refused:?}");
}
