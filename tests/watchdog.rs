//! The watchdog, as systemd sees it.

use crate::company;
use crate::support::client::{SmtpClient, message};
use crate::support::notify::Notified;
use crate::support::wait::SOON;
use crate::support::world::World;
use std::io::Write as _;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::time::{Instant, sleep};

#[tokio::test]
async fn it_is_fed_however_ill_the_mailboxes_are() {
    let world = World::start().await;
    let mut config = company::config(&world);
    company::connect(&world, &config).await;
    let notified = Notified::listen(&mut config);
    config.env("WATCHDOG_USEC", "300000");
    // Nobody gets a token, Odoo is away, and one mailbox is not even connected.
    config.mailbox("nobody@example.com", &[("inbox", "true")]);
    world.entra.server.down().await;
    world.odoo.server.down().await;
    let mut relay = config.start().await;
    relay.send("bounce@example.com", &["a@x.test"], &message(company::JOHN, "a@x.test", "1@t", "Hi")).await;
    relay.wait_for_log("token failed").await;
    let fed = notified.count("WATCHDOG=1");
    notified.wait_for("WATCHDOG=1", fed + 10).await;
    assert_eq!(relay.count_log("task hangs"), 0, "{:#?}", relay.log());
    assert_eq!(relay.terminate(SOON).await, Some(0));
}

#[tokio::test]
async fn without_one_nothing_is_fed() {
    let world = World::start().await;
    let mut config = company::config(&world);
    let notified = Notified::listen(&mut config);
    let mut relay = config.start().await;
    notified.wait_for("READY=1", 1).await;
    relay.signal("HUP");
    notified.wait_for("READY=1", 2).await;
    relay.terminate(SOON).await;
    notified.wait_for("STOPPING=1", 1).await;
    assert_eq!(notified.count("WATCHDOG"), 0, "{:?}", notified.heard());
}

/// Whoever reads the log stops reading, so every thread of the daemon that has something to say waits for it.
#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_stands_still_feeds_it_no_more() {
    let world = World::start().await;
    let mut config = company::config(&world);
    let notified = Notified::listen(&mut config);
    let (log, full) = std::io::pipe().unwrap();
    let mut relay = tokio::process::Command::new(env!("CARGO_BIN_EXE_outlook-relay"))
        .args(["run", "-c"])
        .arg(config.write())
        .env("NOTIFY_SOCKET", config.dir().join("notify"))
        .env("WATCHDOG_USEC", "300000")
        .stderr(full.try_clone().unwrap())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    notified.wait_for("WATCHDOG=1", 3).await;
    // Fills the pipe, and waits then, until the reader's end is closed.
    let filling = std::thread::spawn(move || while (&full).write_all(&[b'x'; 4096]).is_ok() {});
    let threads = std::thread::available_parallelism().unwrap().get();
    let mail = message(company::JOHN, "a@x.test", "1@t", "Hi");
    let mut still_since = (Instant::now(), 0);
    let end = Instant::now() + SOON * 3;
    while still_since.0.elapsed() < Duration::from_secs(3) {
        assert!(Instant::now() < end, "it is still fed");
        for _ in 0..threads {
            let (address, mail) = (config.submission, mail.clone());
            tokio::spawn(async move { try_send(address, &mail).await });
        }
        sleep(Duration::from_millis(300)).await;
        let fed = notified.count("WATCHDOG=1");
        if fed != still_since.1 {
            still_since = (Instant::now(), fed);
        }
    }
    assert_eq!(relay.try_wait().unwrap(), None);
    // Nobody reads any more, which is no reason to stand still.
    drop(log);
    notified.wait_for("WATCHDOG=1", still_since.1 + 3).await;
    filling.join().unwrap();
}

async fn try_send(address: SocketAddr, mail: &[u8]) -> Option<()> {
    let mut client = SmtpClient::try_connect(address).await?;
    client.try_send("bounce@example.com", &["a@x.test"], mail).await.map(|_| ())
}
