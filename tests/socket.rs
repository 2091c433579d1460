//! The SMTP port of systemd's socket unit: it stays open while the daemon is restarted.

use crate::company::{self, JOHN};
use crate::support::client::{self, message};
use crate::support::server::free_ports;
use crate::support::wait::{SOON, until};
use crate::support::world::World;
use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

const MAILS: usize = 200;
const RESTARTS: usize = 10;

#[tokio::test(flavor = "multi_thread")]
async fn no_mail_is_refused_while_the_daemon_is_restarted() {
    let world = World::start().await;
    let mut config = company::config(&world);
    company::connect(&world, &config).await;
    // Nobody listens there: the port is systemd's.
    let address = config.submission;
    let [unused] = free_ports();
    config.raw("submission", "listen", &format!("[\"127.0.0.1:{unused}\"]"));
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/systemd.py");
    config.set_binary(Path::new("python3"));
    let port = address.port().to_string();
    let mut systemd = config.spawn_command(&[script, &port, env!("CARGO_BIN_EXE_outlook-relay"), "run"]);
    systemd.ready().await;
    let unused = format!("address=127.0.0.1:{unused}");
    let said = systemd.log().into_iter().find(|line| line.contains("not listened on")).unwrap();
    assert!(said.contains(&unused) && said.contains("systemctl edit outlook-relay.socket"), "{said}");

    let next = Arc::new(AtomicUsize::new(0));
    let clients: Vec<_> = (0..4)
        .map(|_| {
            let next = next.clone();
            tokio::spawn(async move {
                // A connection for each, as Odoo does it.
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= MAILS {
                        return;
                    }
                    let mail = message(JOHN, "a@x.test", &format!("{number}@t"), "Hi");
                    let reply = client::send(address, "bounce@example.com", &["a@x.test"], &mail).await;
                    assert_eq!(reply.code, 250, "{number}: {reply:?}");
                    tokio::time::sleep(Duration::from_millis(rand::random_range(0..40))).await;
                }
            })
        })
        .collect();
    let pids = || -> Vec<String> {
        systemd.log().into_iter().filter(|line| line.bytes().all(|byte| byte.is_ascii_digit())).collect()
    };
    for restart in 0..RESTARTS {
        let sent = || next.load(Ordering::Relaxed);
        until(SOON * 3, "the next restart's turn", || sent() >= MAILS * (restart + 1) / (RESTARTS + 1)).await;
        let daemon = pids().last().cloned().unwrap();
        assert!(Command::new("kill").arg(&daemon).status().unwrap().success());
        until(SOON, "the daemon's successor", || pids().len() == restart + 2).await;
    }
    for client in clients {
        client.await.unwrap();
    }
    until(SOON * 3, "every mail", || world.smtp.count() >= MAILS).await;
    let id = |text: String| text.split_once("Message-Id: <").unwrap().1.split_once('>').unwrap().0.to_owned();
    let ids: BTreeSet<String> = world.smtp.delivered().iter().map(|mail| id(mail.text())).collect();
    assert_eq!((ids.len(), world.smtp.count()), (MAILS, MAILS));
    assert_eq!(systemd.count_log("ready"), RESTARTS + 1, "{:#?}", systemd.log());
}
