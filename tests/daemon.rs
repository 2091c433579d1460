//! The daemon as systemd and its operator see it.

use crate::company::{self, JOHN};
use crate::support::client::{SmtpClient, message};
use crate::support::http;
use crate::support::smtp::{Fault, Step};
use crate::support::store;
use crate::support::wait::{SOON, until};
use crate::support::world::World;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::Instant;

const BOUNCE: &str = "bounce@example.com";

#[tokio::test]
async fn sigterm_finishes_the_message_in_hand_and_exits_0() {
    let world = World::start().await;
    let (config, mut relay) = company::start(&world).await;
    let (mut client, _) = SmtpClient::connect(relay.submission).await;
    client.cmd("ehlo [127.0.0.1]").await;
    client.cmd(&format!("mail FROM:<{BOUNCE}>")).await;
    client.cmd("rcpt TO:<a@x.test>").await;
    assert_eq!(client.cmd("data").await.code, 354);
    client.write(b"From: john@example.com\r\n\r\nhalf").await;
    relay.signal("TERM");
    relay.wait_for_log("stopping").await;
    client.write(b" and the other half\r\n.\r\n").await;
    let reply = client.reply().await.expect("a reply to the message in hand");
    assert_eq!(reply.code, 250, "{reply:?}");
    assert_eq!(relay.exit_code(SOON).await, Some(0), "{:#?}", relay.log());
    // Sent before the end, or waiting for the next start.
    let waiting = company::queue(&config).await.len();
    assert_eq!(waiting + world.smtp.count(), 1);
    let _relay = config.start().await;
    until(SOON, "the mail", || world.smtp.count() == 1).await;
}

#[tokio::test]
async fn sigterm_lets_an_attempt_under_way_come_to_its_end() {
    let world = World::start().await;
    let (config, mut relay) = company::start(&world).await;
    world.smtp.fail_next(Step::AfterDot, Fault::KeepThenSilence);
    relay.send(BOUNCE, &["a@x.test"], &message(JOHN, "a@x.test", "1@t", "Hi")).await;
    until(SOON, "the attempt", || world.smtp.count() == 1).await;
    relay.signal("TERM");
    relay.wait_for_log("stopping").await;
    // It is still waiting for Exchange's answer. A second start must not get in its way.
    let second = config.cli(&["run"]).await;
    assert_eq!(second.code, Some(1), "{second:?}");
    relay.kill9().await;
}

#[tokio::test]
async fn a_log_that_cannot_be_written_does_not_end_it() {
    let world = World::start().await;
    let config = company::config(&world);
    company::connect(&world, &config).await;
    let mut relay = tokio::process::Command::new(env!("CARGO_BIN_EXE_outlook-relay"))
        .args(["run", "-c"])
        .arg(config.write())
        .stderr(std::fs::File::options().write(true).open("/dev/full").unwrap())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let sent = async {
        let mut client = loop {
            match SmtpClient::try_connect(config.submission).await {
                Some(client) => break client,
                None => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        };
        client.try_send(BOUNCE, &["a@x.test"], &message(JOHN, "a@x.test", "1@t", "Hi")).await
    };
    let reply = tokio::time::timeout(SOON, sent).await.expect("the daemon").expect("a reply");
    assert_eq!(reply.code, 250, "{reply:?}");
    until(SOON, "the mail", || world.smtp.count() == 1).await;
    assert_eq!(relay.try_wait().unwrap(), None);
    let pid = relay.id().unwrap().to_string();
    assert!(std::process::Command::new("kill").arg(pid).status().unwrap().success());
    let ended = tokio::time::timeout(SOON, relay.wait()).await.expect("its end").unwrap();
    assert_eq!(ended.code(), Some(0));
}

#[tokio::test]
async fn systemd_is_told_when_it_is_ready_and_when_it_stops() {
    let world = World::start().await;
    let mut config = company::config(&world);
    company::connect(&world, &config).await;
    let path = config.dir().join("notify");
    let socket = tokio::net::UnixDatagram::bind(&path).unwrap();
    config.env("NOTIFY_SOCKET", path.to_str().unwrap());
    let mut relay = config.spawn();
    let heard = async |what: &str| {
        let mut buffer = [0; 1024];
        loop {
            let received = tokio::time::timeout(SOON, socket.recv(&mut buffer)).await;
            let length = received.unwrap_or_else(|_| panic!("{what} was not heard")).unwrap();
            if String::from_utf8_lossy(&buffer[..length]).contains(what) {
                return;
            }
        }
    };
    heard("READY=1").await;
    assert!(TcpStream::connect(relay.submission).await.is_ok(), "ready means listening");
    relay.signal("TERM");
    heard("STOPPING=1").await;
    assert_eq!(relay.exit_code(SOON).await, Some(0));
}

#[tokio::test]
async fn a_port_in_use_and_a_store_in_use_are_said_in_one_line() {
    let world = World::start().await;
    let (config, _relay) = company::start(&world).await;
    let second = config.cli(&["run"]).await;
    assert_eq!(second.code, Some(1));
    let last = second.stderr.lines().last().unwrap();
    assert!(last.contains(&config.submission.to_string()) && last.contains("in use"), "{}", second.stderr);

    // Another port, the same store.
    let mut other = company::config(&world);
    other.text("store", "url", &format!("sqlite://{}", config.dir().join("relay.db").display()));
    let third = other.cli(&["run"]).await;
    assert_eq!(third.code, Some(1));
    assert!(third.stderr.contains("another outlook-relay works on this store"), "{}", third.stderr);

    // The same by another name.
    let link = other.dir().join("link.db");
    std::os::unix::fs::symlink(config.dir().join("relay.db"), &link).unwrap();
    other.text("store", "url", &format!("sqlite://{}", link.display()));
    let fourth = other.cli(&["run"]).await;
    assert_eq!(fourth.code, Some(1));
    assert!(fourth.stderr.contains("another outlook-relay works on this store"), "{}", fourth.stderr);
}

#[tokio::test]
async fn status_shows_everything_and_answers_only_local_names() {
    let world = World::start().await;
    let (config, mut relay) = company::start(&world).await;
    until(SOON, "three tokens", || relay.count_log("token refreshed") == 3).await;
    let status = config.cli(&["status"]).await.success();
    for part in [JOHN, "ok until", "All is well"] {
        assert!(status.contains(part), "{part}: {status}");
    }
    let json: serde_json::Value =
        serde_json::from_str(&config.cli(&["status", "--json"]).await.success()).unwrap();
    assert_eq!(json["well"], true);
    assert_eq!(json["mailboxes"][1]["address"], JOHN);
    assert_eq!(json["mailboxes"][1]["token"]["state"], "ok");
    assert_eq!(json["queue"]["waiting"], 0);

    let ask = async |host: &str| {
        let mut stream = TcpStream::connect(relay.admin).await.unwrap();
        let request = format!("GET /status HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    };
    assert!(ask("localhost").await.starts_with("HTTP/1.1 200"));
    let rebound = ask("evil.example").await;
    assert!(rebound.starts_with("HTTP/1.1 421") && !rebound.contains(JOHN), "{rebound}");
    relay.terminate(Duration::from_secs(20)).await;
    let stopped = config.cli(&["status"]).await;
    assert_eq!(stopped.code, Some(1));
    assert!(stopped.stderr.contains("no daemon answers"), "{}", stopped.stderr);
}

#[tokio::test]
async fn mail_whose_mailbox_left_the_configuration_is_routed_anew() {
    let world = World::start().await;
    let (config, mut relay) = company::start(&world).await;
    world.entra.server.down().await;
    relay.terminate(SOON).await;
    let relay_without_token = config.start().await;
    relay_without_token.send(BOUNCE, &["a@x.test"], &message(JOHN, "a@x.test", "stray@t", "Hi")).await;
    drop(relay_without_token);
    world.entra.server.up().await;

    let mut smaller = world.config();
    smaller.text("store", "url", &format!("sqlite://{}", config.dir().join("relay.db").display()));
    smaller.mailbox(company::NOTIFICATIONS, &[("from_filter", "\"notifications@example.com\"")]);
    let relay = smaller.start().await;
    relay.wait_for_log("rerouted").await;
    until(SOON, "the mail", || world.smtp.count() == 1).await;
    assert_eq!(world.smtp.delivered()[0].mailbox, company::NOTIFICATIONS);
    assert!(world.smtp.delivered()[0].text().contains("<notifications@example.com>"));
}

#[tokio::test]
async fn sigterm_does_not_wait_for_whoever_holds_a_connection_to_the_status_open() {
    let world = World::start().await;
    let (_config, mut relay) = company::start(&world).await;
    let silent = TcpStream::connect(relay.admin).await.unwrap();
    let mut halfway = TcpStream::connect(relay.admin).await.unwrap();
    halfway.write_all(b"GET /healthz HTTP/1.1\r\nHost: localh").await.unwrap();
    assert_eq!(relay.terminate(SOON).await, Some(0), "{:#?}", relay.log());
    drop((silent, halfway));
}

#[tokio::test]
async fn strangers_hear_from_healthz_that_it_is_ill_and_no_more() {
    let world = World::start().await;
    // Nobody is connected, so nothing else is written.
    let config = company::config(&world);
    let relay = config.start().await;
    let store = store::open(config.dir().join("relay.db"));
    let trigger =
        "CREATE TRIGGER t BEFORE INSERT ON message BEGIN SELECT RAISE(FAIL, 'an inner matter'); END";
    store.execute_batch(trigger).unwrap();
    // Whatever else is written meanwhile succeeds, and the store counts as well again: so this is tried more than once.
    let end = Instant::now() + SOON;
    loop {
        relay.send("bounce@example.com", &["a@x.test"], &message(JOHN, "a@x.test", "1@t", "Hi")).await;
        let answer = http::request(relay.admin, "GET", "/healthz", &[], b"").await.unwrap();
        let status = config.cli(&["status"]).await.stdout;
        if answer.status == 503 && status.contains("an inner matter") {
            assert_eq!(answer.body, "the store cannot be written: status says why\n");
            return;
        }
        assert!(Instant::now() < end, "{answer:?} {status}");
    }
}
