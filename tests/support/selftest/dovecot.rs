//! The real Dovecot, met by raw clients with tokens of the scripted endpoint.

use crate::support::client::{ImapClient, SmtpClient, message, xoauth2};
use crate::support::dovecot::{Dovecot, parse_dump};
use crate::support::entra::Entra;
use crate::support::tls::Tls;
use crate::support::wait::{SOON, until};

const JOHN: &str = "john@example.com";

#[tokio::test]
async fn dovecot_takes_good_tokens_and_keeps_mail() {
    let (tls, entra) = (Tls::new(), Entra::start().await);
    let mut server = Dovecot::start(&tls, &entra).await;
    let good = xoauth2(JOHN, &entra.access_token(JOHN, 600));
    let expired = xoauth2(JOHN, &entra.access_token(JOHN, -60));
    let other = xoauth2(JOHN, &entra.access_token("jane@example.com", 600));

    let raw = message("a@x.test", JOHN, "one@test", "Hi");
    server.deliver(JOHN, "INBOX", &raw);
    let (mut client, _) = ImapClient::connect(server.imap_addr(), &tls).await;
    for bad in [&expired, &other] {
        assert_eq!(client.cmd(&format!("AUTHENTICATE XOAUTH2 {bad}")).await.status, "NO");
    }
    let done = client.cmd(&format!("AUTHENTICATE XOAUTH2 {good}")).await;
    assert_eq!(done.status, "OK", "{done:?} {}", server.log());
    assert!(client.cmd("SELECT INBOX").await.find("* 1 EXISTS").is_some());
    let fetched = client.cmd("UID FETCH 1 BODY.PEEK[]").await;
    assert!(fetched.untagged[0].contains("one@test"), "{fetched:?}");
    assert_eq!(server.messages(JOHN, "INBOX")[0].raw, raw);
    client.cmd("UID STORE 1 +FLAGS (\\Seen)").await;
    until(SOON, "the flag in the file's name", || server.messages(JOHN, "INBOX")[0].flags == "S").await;

    let mut client = SmtpClient::connect_tls(server.smtp_addr(), &tls).await;
    assert_eq!(client.cmd(&format!("AUTH XOAUTH2 {expired}")).await.code, 334);
    assert_eq!(client.cmd("").await.code, 535);
    assert_eq!(client.cmd(&format!("AUTH XOAUTH2 {good}")).await.code, 235);
    let raw = message(JOHN, "x@y.test", "out@test", "Out");
    let reply = client.send(JOHN, &["x@y.test", "hidden@y.test"], &raw).await;
    assert_eq!(reply.code, 250, "{reply:?} {}", server.log());
    let sunk = server.wait_for_sunk(1).await;
    assert_eq!(sunk[0].mail_from, JOHN);
    assert_eq!(sunk[0].recipients, ["x@y.test", "hidden@y.test"]);
    assert_eq!(String::from_utf8_lossy(&sunk[0].raw), String::from_utf8_lossy(&raw));

    server.down();
    assert!(tokio::net::TcpStream::connect(server.imap_addr()).await.is_err());
    server.up().await;
    let token = entra.access_token(JOHN, 600);
    let mut client = ImapClient::login(server.imap_addr(), &tls, JOHN, &token).await;
    assert!(client.cmd("SELECT INBOX").await.find("* 1 EXISTS").is_some());
}

#[test]
fn dumps_of_the_sink_are_read() {
    let dump = b"X-Client-Addr: 127.0.0.1\nX-Mail-Args: <a@b.c> SIZE=20\nX-Rcpt-Args: <x@y.z> NOTIFY=NEVER\n\
        Received: from [127.0.0.1]\n\tby smtp-sink\nX-Mine: 1\nSubject: hi\n\n\n.dot\n\n";
    let sunk = parse_dump(dump).unwrap();
    assert_eq!((sunk.mail_from.as_str(), &sunk.mail_params[..]), ("a@b.c", &["SIZE=20".to_owned()][..]));
    assert_eq!(sunk.recipients, ["x@y.z"]);
    assert_eq!(sunk.raw, b"X-Mine: 1\r\nSubject: hi\r\n\r\n\r\n.dot\r\n");
    assert!(parse_dump(&dump[..dump.len() - 1]).is_none());
}
