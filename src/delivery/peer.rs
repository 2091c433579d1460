//! The other side of the client's tests: a server that plays a literal dialogue, over real TLS.

use crate::units::HostPort;
use Play::{BeLeft, BeSilent, Hear, HearLike, Say, SayWithoutEnd, Take, Tls};
use rcgen::{CertifiedKey, generate_simple_self_signed};
use std::sync::Arc;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;
use tokio_rustls::rustls::{self, ClientConfig, RootCertStore, ServerConfig};

/// What the server does next.
#[derive(Clone, Copy, Debug)]
pub(super) enum Play {
    /// Says so.
    Say(&'static str),
    /// Waits for a line, which must be this one.
    Hear(&'static str),
    /// Waits for a line that begins like this.
    HearLike(&'static str),
    /// Begins the TLS handshake.
    Tls,
    /// Takes a message up to the final dot, and notes it as it came.
    Take,
    /// Says without end.
    SayWithoutEnd(&'static str),
    /// Says nothing more, but stays.
    BeSilent,
    /// The same, and must hear nothing more.
    BeLeft,
}

pub(super) const GREETING: &[Play] = &[
    Say("220 AM0PR02CA0001.outlook.office365.com Microsoft ESMTP MAIL Service ready\r\n"),
    HearLike("EHLO "),
    Say(
        "250-AM0PR02CA0001.outlook.office365.com Hello [192.0.2.1]\r\n250-SIZE 157286400\r\n250-STARTTLS\r\n250 SMTPUTF8\r\n",
    ),
    Hear("STARTTLS"),
    Say("220 2.0.0 SMTP server ready\r\n"),
    Tls,
];
pub(super) const EHLO: &[Play] = &[
    HearLike("EHLO "),
    Say(
        "250-AM0PR02CA0001.outlook.office365.com Hello [192.0.2.1]\r\n250-SIZE 157286400\r\n250-PIPELINING\r\n250-AUTH LOGIN XOAUTH2\r\n250-8BITMIME\r\n250 SMTPUTF8\r\n",
    ),
];
/// Without PIPELINING.
pub(super) const PLAIN_EHLO: &[Play] = &[
    HearLike("EHLO "),
    Say(
        "250-AM0PR02CA0001.outlook.office365.com Hello [192.0.2.1]\r\n250-SIZE 157286400\r\n250-AUTH LOGIN XOAUTH2\r\n250-8BITMIME\r\n250 SMTPUTF8\r\n",
    ),
];
/// `user=john@example.com^Aauth=Bearer token^A^A`
pub(super) const AUTH: &str = "AUTH XOAUTH2 dXNlcj1qb2huQGV4YW1wbGUuY29tAWF1dGg9QmVhcmVyIHRva2VuAQE=";
pub(super) const SIGN_IN: &[Play] = &[Hear(AUTH), Say("235 2.7.0 Authentication successful\r\n")];

pub(super) fn open_session() -> Vec<Play> {
    [GREETING, EHLO, EHLO, SIGN_IN].concat()
}

pub(super) fn open_plain_session() -> Vec<Play> {
    [GREETING, PLAIN_EHLO, PLAIN_EHLO, SIGN_IN].concat()
}

/// The server's side of the dialogue; its task returns the messages it took.
pub(super) struct Server {
    pub(super) address: HostPort,
    pub(super) tls: Arc<ClientConfig>,
    pub(super) task: JoinHandle<Vec<Vec<u8>>>,
}

pub(super) async fn server(script: Vec<Play>) -> Server {
    let CertifiedKey { cert, signing_key } = generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let key = PrivateKeyDer::try_from(signing_key.serialize_der()).unwrap();
    let config = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![cert.der().clone()], key)
        .unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(cert.der().clone()).unwrap();
    let tls = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let task = tokio::spawn(async move {
        let (tcp, _) = listener.accept().await.unwrap();
        let mut stream: Box<dyn Stream> = Box::new(BufReader::new(tcp));
        let mut taken = Vec::new();
        for (index, play) in script.iter().enumerate() {
            if let Tls = play {
                let Ok(tls) = acceptor.accept(stream).await else {
                    break;
                };
                stream = Box::new(BufReader::new(tls));
            } else if perform(*play, &mut stream, &mut taken).await.is_err() {
                assert!(index + 1 == script.len(), "the client left at {play:?}");
            }
        }
        taken
    });
    Server { address: HostPort { host: "127.0.0.1".to_owned(), port }, tls: Arc::new(tls), task }
}

trait Stream: tokio::io::AsyncBufRead + AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for BufReader<S> {}

async fn perform(play: Play, stream: &mut Box<dyn Stream>, taken: &mut Vec<Vec<u8>>) -> std::io::Result<()> {
    match play {
        Say(text) => {
            stream.write_all(text.as_bytes()).await?;
            stream.flush().await
        }
        Hear(expected) | HearLike(expected) => {
            let mut line = String::new();
            if stream.read_line(&mut line).await? == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            let line = line.strip_suffix("\r\n").unwrap();
            let is_expected = if let Hear(_) = play { line == expected } else { line.starts_with(expected) };
            assert!(is_expected, "heard {line:?}, not {expected:?}");
            Ok(())
        }
        Take => {
            let mut message = Vec::new();
            loop {
                let mut line = Vec::new();
                stream.read_until(b'\n', &mut line).await?;
                match line.as_slice() {
                    b".\r\n" | b"" => break,
                    [b'.', rest @ ..] => message.extend_from_slice(rest),
                    line => message.extend_from_slice(line),
                }
            }
            taken.push(message);
            Ok(())
        }
        SayWithoutEnd(text) => loop {
            stream.write_all(text.as_bytes()).await?;
        },
        BeSilent => {
            // Until the client is gone.
            stream.read_to_end(&mut Vec::new()).await.map(drop)
        }
        BeLeft => {
            let mut more = Vec::new();
            // However it ends.
            drop(stream.read_to_end(&mut more).await);
            assert!(more.is_empty(), "heard {:?}", more.escape_ascii());
            Ok(())
        }
        Tls => Ok(()),
    }
}
