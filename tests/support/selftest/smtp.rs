//! The scripted Exchange, met by a raw SMTP client.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::time::timeout;

use crate::support::client::{SmtpClient, message, xoauth2};
use crate::support::entra::Entra;
use crate::support::imap::Imap;
use crate::support::script::Rule;
use crate::support::smtp::{Fault, Smtp, Step};
use crate::support::tls::Tls;
use crate::support::wait::{SOON, until};

const JOHN: &str = "john@example.com";
const TO: &str = "customer@x.test";

struct World {
    tls: Tls,
    entra: Entra,
    smtp: Smtp,
}

async fn world() -> World {
    let (tls, entra) = (Tls::new(), Entra::start().await);
    let smtp = Smtp::start(&tls, entra.check()).await;
    World { tls, entra, smtp }
}

impl World {
    async fn login(&self) -> SmtpClient {
        let mut client = SmtpClient::connect_tls(self.smtp.addr(), &self.tls).await;
        let token = self.entra.access_token(JOHN, 3600);
        let reply = client.cmd(&format!("AUTH XOAUTH2 {}", xoauth2(JOHN, &token))).await;
        assert_eq!(reply.code, 235, "{reply:?}");
        client
    }
}

#[tokio::test]
async fn a_message_arrives_byte_by_byte() {
    let world = world().await;
    let seen = Arc::new(Mutex::new(0));
    let hook = Arc::clone(&seen);
    world.smtp.set_hook(Arc::new(move |_| *hook.lock().unwrap() += 1));
    let mut events = world.smtp.events().subscribe();
    let mut client = world.login().await;
    let raw = b".first\r\n\r\n..\r\n.\r\n. end\r\nbare\n.\nlf\r\n".to_vec();
    let reply = client.send(JOHN, &[TO, "second@x.test"], &raw).await;
    assert_eq!(reply.code, 250, "{reply:?}");
    assert!(reply.text.starts_with("2.0.0 OK <") && reply.text.contains("[Hostname="), "{reply:?}");
    assert_eq!(client.send(JOHN, &[TO], b"").await.code, 250);
    assert_eq!(client.cmd("QUIT").await.code, 221);
    assert!(client.try_cmd("NOOP").await.is_none());

    let delivered = world.smtp.delivered();
    assert_eq!(delivered.len(), 2);
    assert_eq!((delivered[0].mailbox.as_str(), delivered[0].mail_from.as_str()), (JOHN, JOHN));
    assert_eq!(delivered[0].recipients, [TO, "second@x.test"]);
    assert_eq!(delivered[0].mail_params, [format!("size={}", raw.len())]);
    assert_eq!(*delivered[0].data, raw);
    assert_eq!(delivered[1].connection, 1);
    assert_eq!((world.smtp.count(), *seen.lock().unwrap()), (2, 2));
    assert!(events.recv().await.unwrap().contains("AUTH"));
    assert!(world.smtp.commands().iter().all(|(_, line)| !line.contains("XOAUTH2")), "a token was recorded");
}

#[tokio::test]
async fn only_the_mailbox_itself_gets_in_and_sends() {
    let world = world().await;
    let (mut plain, _) = SmtpClient::connect(world.smtp.addr()).await;
    let ehlo = plain.cmd("EHLO x").await;
    assert!(ehlo.text.contains("STARTTLS") && !ehlo.text.contains("AUTH"), "{ehlo:?}");
    assert_eq!(plain.cmd("AUTH XOAUTH2 x").await.code, 504);
    assert_eq!(plain.cmd("MAIL FROM:<a@b>").await.code, 530);

    let mut client = SmtpClient::connect_tls(world.smtp.addr(), &world.tls).await;
    let expired = world.entra.access_token(JOHN, -5);
    let reply = client.cmd(&format!("AUTH XOAUTH2 {}", xoauth2(JOHN, &expired))).await;
    assert_eq!(reply.code, 535, "{reply:?}");
    world.smtp.set_generic_failure(true);
    assert_eq!(client.cmd("AUTH XOAUTH2").await.code, 334);
    assert_eq!(client.cmd(&xoauth2(JOHN, "nonsense")).await.code, 334);
    assert_eq!(client.cmd("").await.code, 535);

    let mut client = world.login().await;
    let reply = client.send("other@example.com", &[TO], b"x\r\n").await;
    assert_eq!(reply.code, 550);
    assert!(reply.text.starts_with("5.7.60 ") && reply.text.contains("SendAsDenied"), "{reply:?}");
    world.smtp.set_send_as(true);
    assert_eq!(client.send("other@example.com", &[TO], b"x\r\n").await.code, 250);
    world.smtp.drop_extension("chunking");
    assert!(!client.cmd("EHLO x").await.text.contains("CHUNKING"));
}

#[tokio::test]
async fn a_mailbox_has_three_connections_and_no_more() {
    let world = world().await;
    let mut clients = [world.login().await, world.login().await, world.login().await];
    let mut fourth = world.login().await;
    let reply = fourth.send(JOHN, &[TO], b"x\r\n").await;
    assert_eq!(reply.code, 432, "{reply:?}");
    assert!(reply.text.starts_with("4.3.2 "), "{reply:?}");
    for client in &mut clients {
        assert_eq!(client.send(JOHN, &[TO], b"x\r\n").await.code, 250);
    }
    clients[0].cmd("QUIT").await;
    assert_eq!(fourth.send(JOHN, &[TO], b"x\r\n").await.code, 250);
    assert_eq!((world.smtp.connections(), world.smtp.max_connections(JOHN)), (4, 4));
}

#[tokio::test]
async fn replies_are_scripted_per_step_and_address() {
    let world = world().await;
    let smtp = &world.smtp;
    smtp.fail_next(Step::Banner, Fault::reply("421 4.3.2 Service not available"));
    let (mut client, banner) = SmtpClient::connect(smtp.addr()).await;
    assert_eq!(banner.code, 421);
    assert!(client.try_cmd("EHLO x").await.is_none(), "421 leaves the connection open");

    let mut client = world.login().await;
    smtp.script(Rule::new(Step::Rcpt, Fault::reply("550 5.1.1 no such user")).only("gone@x.test").always());
    smtp.script(Rule::new(Step::AfterDot, Fault::reply("451 4.7.500 Server busy")).only("poison").times(2));
    smtp.script(Rule::new(Step::Mail, Fault::reply("451 4.7.0 x")).only("jane@example.com"));
    let poison = message(JOHN, TO, "poison@test", "x");
    assert_eq!(client.send(JOHN, &["gone@x.test"], b"x").await.code, 550);
    client.cmd("RSET").await;
    assert_eq!(client.send(JOHN, &[TO], &poison).await.code, 451);
    assert_eq!(client.send(JOHN, &[TO], b"x\r\n").await.code, 250);
    assert_eq!(client.send(JOHN, &[TO], &poison).await.code, 451);
    assert_eq!(client.send(JOHN, &[TO], &poison).await.code, 250);
    assert_eq!(smtp.pending(), 2);
    smtp.clear();
    assert_eq!(client.send(JOHN, &["gone@x.test"], b"x").await.code, 250);
}

#[tokio::test]
async fn connections_are_cut_at_every_step() {
    let world = world().await;
    let smtp = &world.smtp;
    let steps = [Step::Auth, Step::Mail, Step::Rcpt, Step::Data, Step::MidData, Step::AfterDot];
    for step in steps {
        smtp.fail_next(step, Fault::Cut);
        let mut client = SmtpClient::connect_tls(smtp.addr(), &world.tls).await;
        let auth = xoauth2(JOHN, &world.entra.access_token(JOHN, 60));
        let mut cut = false;
        for line in [
            &format!("AUTH XOAUTH2 {auth}"),
            "MAIL FROM:<john@example.com>",
            "RCPT TO:<a@b.c>",
            "DATA",
            "x\r\n.",
        ] {
            if client.try_cmd(line).await.is_none() {
                cut = true;
                break;
            }
        }
        assert!(cut, "{step:?} was not cut");
        assert_eq!((smtp.pending(), smtp.count()), (0, 0), "{step:?}");
    }
    smtp.fail_next(Step::AfterDot, Fault::KeepThenCut);
    let mut client = world.login().await;
    for line in ["MAIL FROM:<john@example.com>", "RCPT TO:<a@b.c>", "DATA"] {
        client.cmd(line).await;
    }
    assert!(client.try_cmd("x\r\n.").await.is_none());
    assert_eq!(smtp.count(), 1, "the message is kept though its reply is lost");
}

#[tokio::test]
async fn plaintext_can_be_slipped_in_before_the_handshake() {
    let world = world().await;
    world.smtp.fail_next(Step::StartTls, Fault::reply("220 2.0.0 SMTP server ready\r\n250 2.0.0 slipped in"));
    let (mut client, _) = SmtpClient::connect(world.smtp.addr()).await;
    assert_eq!(client.cmd("STARTTLS").await.code, 220);
    assert_eq!(client.reply().await.unwrap().text, "2.0.0 slipped in");
    let mut client = client.upgrade(&world.tls).await;
    assert_eq!(client.cmd("EHLO x").await.code, 250);
}

#[tokio::test]
async fn pipelined_commands_and_chunks_are_understood() {
    let world = world().await;
    let mut client = world.login().await;
    client
        .write(b"MAIL FROM:<john@example.com>\r\nRCPT TO:<a@b.c>\r\nBDAT 3\r\n.\r\nBDAT 2 LAST\r\nok")
        .await;
    for _ in 0..4 {
        assert_eq!(client.reply().await.unwrap().code, 250);
    }
    assert_eq!(*world.smtp.delivered()[0].data, b".\r\nok");
}

#[tokio::test]
async fn a_submission_is_filed_in_sent_items() {
    let world = world().await;
    let imap = Imap::start(&world.tls, world.entra.check()).await;
    world.smtp.set_hook(imap.sent_items());
    world.smtp.fail_next(Step::AfterDot, Fault::KeepThenCut);
    let mut client = world.login().await;
    for line in ["MAIL FROM:<john@example.com>", "RCPT TO:<a@b.c>", "DATA"] {
        client.cmd(line).await;
    }
    assert!(client.try_cmd("Message-Id: <x@test>\r\n\r\nHello\r\n.").await.is_none());
    let sent = imap.messages(JOHN, "Sent Items");
    assert_eq!(sent.len(), 1, "the copy of a submission whose reply was lost");
    assert!(sent[0].flags.contains("\\Seen"));
}

#[tokio::test]
async fn servers_babble_and_fall_silent() {
    let world = world().await;
    world.smtp.fail_next(Step::Banner, Fault::EndlessLine);
    let mut stream = tokio::net::TcpStream::connect(world.smtp.addr()).await.unwrap();
    let mut line = vec![0; 4 << 20];
    stream.read_exact(&mut line).await.unwrap();
    assert!(line.iter().all(|byte| *byte == b'x'), "the line has an end");
    drop(stream);

    world.smtp.fail_next(Step::Banner, Fault::Garbage);
    let mut stream = tokio::net::TcpStream::connect(world.smtp.addr()).await.unwrap();
    let mut first = [0; 2];
    stream.read_exact(&mut first).await.unwrap();
    assert_eq!(first, [0, 0xff]);

    let mut client = world.login().await;
    for (step, fault, kept) in [
        (Step::AfterDot, Fault::KeepThenSilence, 1),
        (Step::AfterDot, Fault::Silence, 1),
        (Step::MidData, Fault::Silence, 1),
    ] {
        world.smtp.fail_next(step, fault);
        {
            let mut sending = std::pin::pin!(client.send(JOHN, &[TO], b"x\r\n"));
            tokio::select! {
                reply = &mut sending => panic!("{step:?} was answered: {reply:?}"),
                () = until(SOON, "the fault used up", || world.smtp.pending() == 0) => {}
            }
            let silent = timeout(Duration::from_millis(200), sending).await;
            assert!(silent.is_err(), "{step:?} was answered: {silent:?}");
        }
        until(SOON, "the message kept, or not", || world.smtp.count() == kept).await;
        client = world.login().await;
    }
    assert_eq!(client.send(JOHN, &[TO], b"x\r\n").await.code, 250);
}
