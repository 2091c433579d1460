//! The door: whatever a mail client may do there, over the relay's own wire.

use std::path::Path;
use std::time::Duration;

use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::process::Command;

use crate::company::{self, JANE, JOHN, NOTIFICATIONS};
use crate::support::client::{SmtpClient, message};
use crate::support::relay::{Config, Relay};
use crate::support::server::free_ports;
use crate::support::wait::{SOON, until};
use crate::support::world::World;

const BOUNCE: &str = "bounce@example.com";
const PASSWORD: &str = "a password with spaces";

/// The company's configuration with a certificate, a port for TLS, and three users. Gives the port.
fn guarded(world: &World) -> (Config, u16) {
    let mut config = company::config(world);
    let [port] = free_ports();
    config.raw("submission", "listen_tls", &format!("[\"127.0.0.1:{port}\"]"));
    config.secret("certificate.pem", &world.tls.cert_pem);
    config.secret("key.pem", &world.tls.key_pem);
    config.text("submission", "tls_certificate", "certificate.pem");
    config.text("submission", "tls_key", "key.pem");
    config.secret("submission-password", PASSWORD);
    let user = |name: &str, more: &str| {
        format!("{{ name = \"{name}\", password_file = \"submission-password\"{more} }}")
    };
    let users = [
        user("odoo", ""),
        user("shop", ", senders = \"john@example.com, bounce@example.com\""),
        user("news", ", mailbox = \"jane@example.com\""),
    ];
    config.raw("submission", "user", &format!("[{}]", users.join(", ")));
    (config, port)
}

async fn guarded_relay(world: &World) -> (Config, Relay, u16) {
    let (config, port) = guarded(world);
    company::connect(world, &config).await;
    let relay = config.start().await;
    (config, relay, port)
}

/// Runs a client (tests/run installs them), with this on its standard input; gives what it printed.
async fn client(program: &str, arguments: &[&str], input: &str) -> String {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).await.unwrap();
    let output = tokio::time::timeout(Duration::from_secs(120), child.wait_with_output());
    let output = output.await.unwrap().unwrap();
    let said =
        [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    assert!(output.status.success(), "{program} {arguments:?}: {said}");
    said
}

#[tokio::test]
async fn swaks_and_msmtp_and_python_submit_over_tls() {
    let world = World::start().await;
    let (_config, relay, tls_port) = guarded_relay(&world).await;
    let (port, tls_port) = (relay.submission.port().to_string(), tls_port.to_string());
    let ca_file = world.tls.ca_file().display().to_string();

    for (number, (mechanism, tls, port)) in
        [("PLAIN", "--tls", &port), ("LOGIN", "--tls", &port), ("LOGIN", "--tls-on-connect", &tls_port)]
            .into_iter()
            .enumerate()
    {
        let id = format!("Message-Id: <swaks-{number}@t>");
        let arguments = [
            "--server",
            "127.0.0.1",
            "--port",
            port,
            tls,
            "--tls-verify",
            "--tls-ca-path",
            &ca_file,
            "--auth",
            mechanism,
            "--auth-user",
            "odoo",
            "--auth-password",
            PASSWORD,
            "--from",
            JOHN,
            "--to",
            "a@x.test",
            "--add-header",
            &id,
        ];
        client("swaks", &arguments, "").await;
    }

    for (number, (starttls, port)) in [("on", &port), ("off", &tls_port)].into_iter().enumerate() {
        let [port, starttls, trust] = [
            format!("--port={port}"),
            format!("--tls-starttls={starttls}"),
            format!("--tls-trust-file={ca_file}"),
        ];
        let password = format!("--passwordeval=echo '{PASSWORD}'");
        let arguments = [
            "--host=127.0.0.1",
            &port,
            "--tls=on",
            &starttls,
            &trust,
            "--auth=on",
            "--user=odoo",
            &password,
            "--from=john@example.com",
            "a@x.test",
        ];
        let text = format!("From: {JOHN}\nTo: a@x.test\nMessage-Id: <msmtp-{number}@t>\n\n.Hello\n");
        client("msmtp", &arguments, &text).await;
    }

    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/submission_client.py");
    let arguments = [script.to_str().unwrap(), "127.0.0.1", &port, &tls_port, &ca_file, "odoo", PASSWORD];
    let said = client("python3", &arguments, "").await;
    let steps: Vec<&str> = said.lines().collect();
    let expected = [
        "starttls 235 {}",
        "has starttls False",
        "wrong password 535",
        "tls 235 {}",
        "bdat 250",
        "bdat 250",
        "bdat 250",
    ];
    assert_eq!(steps, expected);

    until(SOON, "eight mails at Microsoft", || world.smtp.count() == 8).await;
    let delivered = world.smtp.delivered();
    let ids = ["swaks-0", "swaks-1", "swaks-2", "msmtp-0", "msmtp-1", "python-1", "python-2", "python-3"];
    for id in ids {
        let mail = delivered.iter().find(|mail| mail.text().contains(&format!("<{id}"))).expect(id);
        assert_eq!((mail.mailbox.as_str(), &mail.recipients), (JOHN, &vec!["a@x.test".to_owned()]), "{id}");
        if !id.starts_with("swaks") {
            assert!(mail.text().ends_with("\r\n\r\n.Hello\r\n"), "{id}: {:?}", mail.text());
        }
    }
    assert!(relay.log().iter().filter(|line| line.contains("accepted")).all(|line| line.contains("odoo")));
    assert!(relay.log().iter().all(|line| !line.contains(PASSWORD)));
}

/// A session that has logged in, in clear on loopback, as Odoo does.
async fn login(relay: &Relay, user: &str) -> SmtpClient {
    use base64::Engine as _;
    let (mut client, _) = SmtpClient::connect(relay.submission).await;
    client.cmd("ehlo [127.0.0.1]").await;
    let response = base64::prelude::BASE64_STANDARD.encode(format!("\0{user}\0{PASSWORD}"));
    assert_eq!(client.cmd(&format!("AUTH PLAIN {response}")).await.code, 235);
    client
}

#[tokio::test]
async fn a_user_sends_as_whom_it_may_and_a_bound_one_through_its_mailbox() {
    let world = World::start().await;
    let (config, relay, _) = guarded_relay(&world).await;

    let mut shop = login(&relay, "shop").await;
    assert_eq!(shop.send(BOUNCE, &["a@x.test"], &message(JOHN, "a@x.test", "shop@t", "Hi")).await.code, 250);
    let refused = shop.send(BOUNCE, &["a@x.test"], &message(JANE, "a@x.test", "no@t", "Hi")).await;
    assert_eq!(refused.code, 550, "{refused:?}");
    assert!(
        refused.text.starts_with("5.7.1 The user shop may not use \"jane@example.com\" as the From"),
        "{refused:?}"
    );
    for (line, said) in [
        ("Sender: Jane <jane@example.com>", "5.7.1 The user shop may not use"),
        ("no field\r\nFrom: jane@example.com", "5.6.0 The header of the message holds a line"),
    ] {
        let hidden = [line.as_bytes(), b"\r\n", &message(JOHN, "a@x.test", "no@t", "Hi")].concat();
        let hidden = if line.starts_with("Sender") {
            hidden
        } else {
            [b"From: john@example.com\r\n".as_slice(), &hidden].concat()
        };
        let refused = shop.send(BOUNCE, &["a@x.test"], &hidden).await;
        assert!(refused.code >= 550 && refused.text.starts_with(said), "{refused:?}");
    }
    let refused = shop.cmd(&format!("mail FROM:<{JANE}>")).await;
    assert_eq!(refused.code, 550, "{refused:?}");

    // As Odoo's mass-mailing server sends, whose filter is empty.
    let mut news = login(&relay, "news").await;
    for (from, id) in [("\"Eve\" <eve@foreign.test>", "news-1@t"), (NOTIFICATIONS, "news-2@t")] {
        assert_eq!(news.send(BOUNCE, &["a@x.test"], &message(from, "a@x.test", id, "Hi")).await.code, 250);
    }
    until(SOON, "three mails sent, and that written down", || relay.count_log(" sent ") == 3).await;
    let delivered = world.smtp.delivered();
    let of = |id: &str| delivered.iter().find(|mail| mail.text().contains(id)).unwrap();
    assert_eq!(of("shop@t").mailbox, JOHN);
    assert_eq!(of("news-1@t").mailbox, JANE);
    assert!(
        of("news-1@t").text().contains("From: \"Eve\" <eve@foreign.test>\r\n"),
        "{}",
        of("news-1@t").text()
    );
    assert_eq!(of("news-2@t").mailbox, JANE);
    let line = relay.wait_for_log("eve@foreign.test").await;
    assert!(line.contains("news") && line.contains(JANE), "{line}");
    assert_eq!(company::queue(&config).await, Vec::<serde_json::Value>::new());
}

#[tokio::test]
async fn check_finds_what_is_wrong_with_users() {
    let world = World::start().await;
    let (mut config, _) = guarded(&world);
    config.raw(
        "submission",
        "user",
        "[{ name = \"a\", password_file = \"submission-password\", mailbox = \"nobody@example.com\" }, \
         { name = \"a\", password_file = \"submission-password\", senders = \"x y\" }]",
    );
    let output = config.cli(&["check"]).await;
    let said = format!("{}{}", output.stdout, output.stderr);
    assert_eq!(output.code, Some(78), "{said}");
    for mistake in [
        "user[1].mailbox: nobody@example.com is no mailbox",
        "user[2].name: already is",
        "user[2].senders: holds",
    ] {
        assert!(said.contains(mistake), "{mistake}: {said}");
    }
}

#[tokio::test]
async fn a_hundred_sessions_at_a_time_lose_nothing() {
    let world = World::start().await;
    let (_config, relay) = company::start(&world).await;
    let server = format!("inet:{}", relay.submission);
    let arguments = ["-s", "100", "-m", "1000", "-l", "4000", "-f", JOHN, "-t", "a@x.test", server.as_str()];
    client("/usr/sbin/smtp-source", &arguments, "").await;
    until(SOON, "a line for each", || relay.count_log("accepted") == 1_000).await;
    assert_eq!(relay.count_log("refused"), 0);
}

#[tokio::test]
async fn no_end_of_a_message_is_smuggled_and_nothing_behind_it_is_sent() {
    let world = World::start().await;
    let (config, relay) = company::start(&world).await;
    let ends = [
        "\n.\n",
        "\n.\r\n",
        "\r\n.\n",
        "\r.\r",
        "\r.\r\n",
        "\r\n.\r",
        "\n.\r",
        "\r.\n",
        "\r\n\0.\r\n",
        "\r\n.\0\r\n",
        "\r\r.\r\n",
        "\r\n.\r\r\n",
        "\n\r.\n\r",
    ];
    let evil = format!("MAIL FROM:<>\r\nRCPT TO:<evil@x.test>\r\nDATA\r\nFrom: {JOHN}\r\n\r\nsmuggled\r\n");
    for (number, end) in ends.iter().enumerate() {
        let content = format!("From: {JOHN}\r\nMessage-Id: <{number}@t>\r\n\r\nbody{end}{evil}");
        let begin = format!("MAIL FROM:<{BOUNCE}>\r\nRCPT TO:<a@x.test>\r\n");
        let data = format!("{begin}DATA\r\n{content}.\r\nNOOP\r\n");
        let chunk = format!("{begin}BDAT {} LAST\r\n{content}NOOP\r\n", content.len());
        for (dialogue, codes) in
            [(data, [250, 250, 354, 554, 250].as_slice()), (chunk, &[250, 250, 554, 250])]
        {
            let mut client = SmtpClient::try_connect(relay.submission).await.unwrap();
            client.write(dialogue.as_bytes()).await;
            for code in codes {
                let reply = client.reply().await.unwrap();
                assert_eq!(reply.code, *code, "{end:?}: {reply:?}");
            }
        }
    }
    // What is well in chunks and would be an end in DATA arrives as it is.
    let content = format!("From: {JOHN}\r\n\r\n.\r\n{evil}.");
    let mut client = SmtpClient::try_connect(relay.submission).await.unwrap();
    let begin = format!("MAIL FROM:<{BOUNCE}>\r\nRCPT TO:<a@x.test>\r\nBDAT {} LAST\r\n", content.len());
    client.write(format!("{begin}{content}").as_bytes()).await;
    for _ in 0..3 {
        assert_eq!(client.reply().await.unwrap().code, 250);
    }
    until(SOON, "the one that is well", || world.smtp.count() == 1).await;
    assert!(world.smtp.delivered()[0].text().ends_with(&format!("\r\n\r\n.\r\n{evil}.\r\n")));
    assert_eq!(company::queue(&config).await, Vec::<serde_json::Value>::new());
}

#[tokio::test]
async fn who_hangs_up_or_is_no_mail_client_leaves_no_error_behind() {
    let world = World::start().await;
    let (config, relay) = company::start(&world).await;
    // Odoo's "Test Connection", and the same at every other place of a message.
    for said in
        ["DATA\r\n", "DATA\r\nFrom: john@example.com\r\n\r\nhalf", "BDAT 100\r\nhalf", "BDAT 4\r\nhalf", ""]
    {
        let mut client = SmtpClient::try_connect(relay.submission).await.unwrap();
        client.write(format!("MAIL FROM:<{JOHN}>\r\nRCPT TO:<noreply@odoo.com>\r\n{said}").as_bytes()).await;
        for _ in 0..2 {
            assert_eq!(client.reply().await.unwrap().code, 250);
        }
    }
    let mut http = SmtpClient::connect(relay.submission).await.0;
    http.write(b"POST / HTTP/1.1\r\nHost: x\r\n\r\nEHLO x\r\nMAIL FROM:<>\r\n").await;
    assert_eq!(http.reply().await.unwrap().code, 500);
    assert!(http.reply().await.is_none());
    // When a mail behind these is through, they are as well.
    relay.send(BOUNCE, &["a@x.test"], &message(JOHN, "a@x.test", "1@t", "Hi")).await;
    until(SOON, "the mail at Microsoft", || world.smtp.count() == 1).await;
    until(SOON, "an empty queue", || relay.count_log(" sent") == 1).await;
    assert_eq!(company::queue(&config).await, Vec::<serde_json::Value>::new());
    assert_eq!(relay.count_log("ERROR"), 0, "{:#?}", relay.log());
    assert_eq!(relay.count_log("WARN"), 1, "only for the HTTP: {:#?}", relay.log());
}

/// The resident memory of the relay, in kB.
fn resident(relay: &Relay) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", relay.pid().unwrap())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[tokio::test]
async fn a_thousand_idle_sessions_take_little_memory_and_others_are_served() {
    let world = World::start().await;
    let mut config = company::config(&world);
    config.raw("submission", "max_sessions", "1010");
    company::connect(&world, &config).await;
    let relay = config.start().await;
    let before = resident(&relay);
    let mut idle = Vec::new();
    for _ in 0..1_000 {
        idle.push(SmtpClient::try_connect(relay.submission).await.unwrap());
    }
    let taken = resident(&relay) - before;
    assert!(taken < 32 << 10, "{taken} kB");
    let reply = relay.send(BOUNCE, &["a@x.test"], &message(JOHN, "a@x.test", "1@t", "Hi")).await;
    assert_eq!(reply.code, 250, "{reply:?}");
}

#[tokio::test]
async fn memory_stays_bounded_while_hundreds_send_large_messages() {
    let world = World::start().await;
    let mut config = company::config(&world);
    config.text("submission", "memory", "16 MiB");
    config.text("submission", "max_message_size", "4 MiB");
    company::connect(&world, &config).await;
    let relay = config.start().await;
    let before = resident(&relay);
    // Each sends most of a message and stalls: 900 MB in all, if somebody took them.
    let piece = std::sync::Arc::new(
        [
            format!("EHLO me\r\nMAIL FROM:<>\r\nRCPT TO:<a@x.test>\r\nDATA\r\nFrom: {JOHN}\r\n\r\n")
                .into_bytes(),
            vec![b'a'; 3_000_000],
        ]
        .concat(),
    );
    let mut senders = tokio::task::JoinSet::new();
    for _ in 0..300 {
        let (address, piece) = (relay.submission, std::sync::Arc::clone(&piece));
        senders.spawn(async move {
            let mut stream = TcpStream::connect(address).await.unwrap();
            // Past the budget nobody reads it; in the end the relay lets go.
            let _ = tokio::time::timeout(Duration::from_secs(5), stream.write_all(&piece)).await;
            stream
        });
    }
    let mut streams = Vec::new();
    let mut most = 0;
    while let Some(stream) = senders.join_next().await {
        most = most.max(resident(&relay) - before);
        streams.push(stream.unwrap());
    }
    assert!(most < 80 << 10, "{most} kB");
    let begun = tokio::time::Instant::now();
    let reply = relay.send(BOUNCE, &["a@x.test"], &message(JOHN, "a@x.test", "1@t", "Hi")).await;
    assert_eq!(reply.code, 250, "{reply:?}");
    assert!(begun.elapsed() < Duration::from_secs(8), "a small mail waits for nobody: {:?}", begun.elapsed());
    drop(streams);
}
