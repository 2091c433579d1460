//! kill -9 at random moments under load: whatever got its 250 arrives, and once. What Microsoft takes lies in a real server's
//! folder of sent mail. OUTLOOK_RELAY_KILLS=500 for more of them than a test run has time for.

use crate::company::{self, JANE, JOHN};
use crate::support::client::{SmtpClient, message};
use crate::support::dovecot::Dovecot;
use crate::support::wait::until;
use crate::support::world::World;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const ROUNDS: usize = 60;
const SESSIONS: usize = 4;

/// Sends until told to stop, over as many connections as it takes; notes each Message-Id that got its 250.
async fn load(
    address: std::net::SocketAddr,
    session: usize,
    accepted: Arc<Mutex<BTreeSet<String>>>,
    stop: Arc<AtomicBool>,
) {
    let mut number = 0;
    while !stop.load(Ordering::Relaxed) {
        let Some(mut client) = SmtpClient::try_connect(address).await else {
            tokio::time::sleep(Duration::from_millis(5)).await;
            continue;
        };
        loop {
            number += 1;
            let id = format!("{session}-{number}@load");
            let from = if number % 2 == 0 { JOHN } else { JANE };
            match client
                .try_send("bounce@example.com", &["a@x.test"], &message(from, "a@x.test", &id, "Hi"))
                .await
            {
                Some(reply) if reply.code == 250 => {
                    accepted.lock().unwrap().insert(id);
                }
                _ => break,
            }
            if stop.load(Ordering::Relaxed) {
                return;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
#[expect(clippy::print_stdout, reason = "the figures of a long run")]
async fn whatever_got_its_250_arrives_once() {
    let rounds = std::env::var("OUTLOOK_RELAY_KILLS").map_or(ROUNDS, |kills| kills.parse().unwrap());
    let world = World::start().await;
    let dovecot = Dovecot::start(&world.tls, &world.entra).await;
    world.smtp.set_hook(dovecot.sent_items());
    let mut config = company::config(&world);
    config.text("microsoft", "imap", &dovecot.imap_endpoint());
    config.raw("delivery", "connections", "3");
    config.text("delivery", "sent_delay", "1s");
    company::connect(&world, &config).await;
    let accepted = Arc::new(Mutex::new(BTreeSet::new()));
    let stop = Arc::new(AtomicBool::new(false));
    let mut relay = config.start().await;
    let sessions: Vec<_> = (0..SESSIONS)
        .map(|session| tokio::spawn(load(config.submission, session, accepted.clone(), stop.clone())))
        .collect();
    for _ in 0..rounds {
        // A random moment, but never one in which nothing was under way.
        let before = accepted.lock().unwrap().len();
        until(Duration::from_secs(30), "load", || accepted.lock().unwrap().len() > before).await;
        tokio::time::sleep(Duration::from_millis(rand::random_range(0..150))).await;
        relay.kill9().await;
        relay = config.start().await;
    }
    stop.store(true, Ordering::Relaxed);
    for session in sessions {
        session.await.unwrap();
    }
    let accepted = accepted.lock().unwrap().clone();
    assert!(accepted.len() > rounds * 2, "only {} mails were accepted", accepted.len());
    let id_of = |text: &str| -> Option<String> {
        let (_, rest) = text.split_once("Message-Id: <")?;
        Some(rest.split_once('>')?.0.to_owned())
    };
    let arrived = || -> BTreeSet<String> {
        world.smtp.delivered().iter().filter_map(|mail| id_of(&mail.text())).collect()
    };
    until(Duration::from_secs(120), "every accepted mail", || arrived().is_superset(&accepted)).await;
    // What may still be sent again would be sent by then.
    while !company::queue(&config).await.is_empty() {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let mut seen = BTreeSet::new();
    let twice: Vec<_> = world
        .smtp
        .delivered()
        .iter()
        .filter_map(|mail| id_of(&mail.text()))
        .filter(|id| !seen.insert(id.clone()))
        .collect();
    let lost: Vec<_> = accepted.difference(&arrived()).cloned().collect();
    let (all, taken) = (accepted.len(), world.smtp.count());
    println!(
        "{rounds} kills, {all} accepted, {taken} at Microsoft, {} lost, {} twice",
        lost.len(),
        twice.len()
    );
    assert_eq!(twice, Vec::<String>::new(), "each once");
    assert_eq!(lost, Vec::<String>::new());
}
