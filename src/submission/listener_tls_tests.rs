use std::sync::Arc;

use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::{PrivatePkcs8KeyDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore, ServerConfig};

use super::Config;
use super::tests::{Client, Relay, WIRE, config};
use crate::submission::users::User;

/// A server's and a client's side of TLS for `localhost`.
fn tls() -> (Arc<ServerConfig>, TlsConnector) {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let provider = Arc::new(tokio_rustls::rustls::crypto::aws_lc_rs::default_provider());
    let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
    let server = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key.into())
        .unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(made.cert.der().clone()).unwrap();
    let client = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    (Arc::new(server), TlsConnector::from(Arc::new(client)))
}

fn user() -> Arc<User> {
    let password = "open sesame".to_owned().into();
    Arc::new(User { name: "odoo".to_owned(), password, senders: None, mailbox: None })
}

#[tokio::test]
async fn tls_from_the_first_byte() {
    let (server, connector) = tls();
    let relay = Relay::start(Config { tls: Some(server), users: vec![user()], ..config() }).await;
    let address = relay.tls_address.unwrap();
    // Somebody who speaks in clear there gets nowhere, and is in nobody's way.
    let mut lost = Client::new(TcpStream::connect(address).await.unwrap());
    lost.send(b"EHLO me\r\n").await;
    let name = ServerName::try_from("localhost").unwrap();
    let stream = TcpStream::connect(address).await.unwrap();
    let mut client = Client::new(connector.connect(name, stream).await.unwrap());
    assert_eq!(client.hear().await, "220 outlook-relay ESMTP");
    let extensions = client.ask("EHLO me").await;
    assert!(!extensions.contains("STARTTLS") && extensions.contains("AUTH PLAIN LOGIN"), "{extensions}");
    assert!(client.ask("STARTTLS").await.starts_with("503 5.5.1 "));
    assert!(client.ask("AUTH PLAIN AG9kb28Ab3BlbiBzZXNhbWU=").await.starts_with("235 2.7.0 "));
    assert!(client.mail(WIRE).await.starts_with("250 2.0.0 "));
    assert_eq!(relay.queue().await.len(), 1);
}

#[tokio::test]
async fn tls_and_a_password() {
    let (server, connector) = tls();
    let relay = Relay::start(Config { tls: Some(server), users: vec![user()], ..config() }).await;
    let mut client = relay.greeted().await;
    assert!(client.ask("MAIL FROM:<>").await.starts_with("530 5.7.0 "));
    assert!(client.ask("STARTTLS").await.starts_with("220 2.0.0 "));
    let name = ServerName::try_from("localhost").unwrap();
    let mut client = Client::new(connector.connect(name, client.stream.into_inner()).await.unwrap());
    let extensions = client.ask("EHLO me").await;
    assert!(!extensions.contains("STARTTLS") && extensions.contains("AUTH PLAIN LOGIN"), "{extensions}");
    assert!(client.ask("AUTH PLAIN AG9kb28Ad3Jvbmc=").await.starts_with("535 5.7.8 "));
    assert!(client.ask("AUTH PLAIN AG9kb28Ab3BlbiBzZXNhbWU=").await.starts_with("235 2.7.0 "));
    assert!(client.mail(WIRE).await.starts_with("250 2.0.0 "));
    assert!(client.ask("QUIT").await.starts_with("221 "));
    assert_eq!(relay.queue().await.len(), 1);
}

#[tokio::test]
async fn commands_in_clear_behind_starttls_are_refused() {
    let relay = Relay::start(Config { tls: Some(tls().0), ..config() }).await;
    let mut client = relay.greeted().await;
    client.send(b"STARTTLS\r\nMAIL FROM:<evil@x.test>\r\n").await;
    assert!(client.hear().await.starts_with("421 4.7.0 "));
    assert!(client.is_closed().await);
}
