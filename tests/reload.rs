//! A new configuration while the daemon runs (SIGHUP, `systemctl reload`).

use crate::company::{self, JANE, JOHN, NOTIFICATIONS};
use crate::support::client::{SmtpClient, message};
use crate::support::entra::CLIENT_ID;
use crate::support::notify::Notified;
use crate::support::relay::{Config, Relay};
use crate::support::smtp::{Fault, Step};
use crate::support::tls::Tls;
use crate::support::wait::{SOON, eventually, until};
use crate::support::world::World;
use base64::Engine as _;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

const BOUNCE: &str = "bounce@example.com";
const RELOADS: usize = 50;

/// Has the daemon take the configuration up; gives what it said.
async fn reload(config: &Config, relay: &Relay) -> String {
    let before = relay.count_log("reloaded") + relay.count_log("reload failed");
    config.write();
    relay.signal("HUP");
    until(SOON * 3, "the end of the reload", || {
        relay.count_log("reloaded") + relay.count_log("reload failed") > before
    })
    .await;
    let log = relay.log();
    log.into_iter().rfind(|line| line.contains("reloaded") || line.contains("reload failed")).unwrap()
}

fn ids(world: &World) -> BTreeSet<String> {
    let id = |text: String| text.split_once("Message-Id: <").unwrap().1.split_once('>').unwrap().0.to_owned();
    world.smtp.delivered().iter().map(|mail| id(mail.text())).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_reloads_under_load_lose_nothing_double_nothing_and_cut_nobody() {
    let world = World::start().await;
    let mut config = company::config(&world);
    let guests: Vec<String> = (0..4).map(|number| format!("guest{number}@example.com")).collect();
    let add = |config: &mut Config, guest: &str| {
        config.mailbox(guest, &[("from_filter", &format!("\"{guest}\"")), ("inbox", "true")]);
    };
    for guest in &guests {
        add(&mut config, guest);
        config.connect(guest, &world.entra.add_mailbox(guest)).await.success();
    }
    world.imap.add_folder(NOTIFICATIONS, "Leads", "\\HasNoChildren");
    let watched =
        [("from_filter", "\"notifications@example.com\""), ("inbox", "true"), ("folder", "\"Leads\"")];
    config.mailbox(NOTIFICATIONS, &watched);
    company::connect(&world, &config).await;
    let relay = Arc::new(config.start().await);
    let (mut session, _) = SmtpClient::connect(relay.submission).await;
    assert_eq!(session.cmd("ehlo [127.0.0.1]").await.code, 250);
    until(SOON, "the inbox's IDLE", || world.imap.idling(NOTIFICATIONS) == 1).await;
    let watching = watchers(&world);
    assert_eq!(watching.len(), 1);

    let (next, done) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
    let clients: Vec<_> = (0..4)
        .map(|client| {
            let (next, done, relay) = (next.clone(), done.clone(), relay.clone());
            let senders: Vec<String> = guests.iter().cloned().chain([JOHN.to_owned()]).collect();
            tokio::spawn(async move {
                while !done.load(Ordering::Relaxed) {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    let from = &senders[(number + client) % senders.len()];
                    let mail = message(from, "a@x.test", &format!("{number}@t"), "Hi");
                    let reply = relay.send(BOUNCE, &["a@x.test"], &mail).await;
                    assert_eq!(reply.code, 250, "{number}: {reply:?}");
                    tokio::time::sleep(Duration::from_millis(rand::random_range(0..60))).await;
                }
            })
        })
        .collect();
    let mut there: BTreeSet<&String> = guests.iter().collect();
    for round in 0..RELOADS {
        let guest = &guests[rand::random_range(0..guests.len())];
        if there.remove(guest) {
            config.drop_mailbox(guest);
        } else {
            there.insert(guest);
            add(&mut config, guest);
        }
        let said = reload(&config, &relay).await;
        assert!(said.contains("reloaded") && said.contains("changed=0"), "{round}: {said}");
    }
    done.store(true, Ordering::Relaxed);
    for client in clients {
        client.await.unwrap();
    }
    // The same session, the same IDLE, and no other token for who stayed.
    let mail = message(JOHN, "a@x.test", "session@t", "Hi");
    assert_eq!(session.send(BOUNCE, &["a@x.test"], &mail).await.code, 250);
    assert_eq!((watchers(&world), world.imap.idling(NOTIFICATIONS)), (watching, 1));
    assert_eq!(world.entra.refreshes(JOHN), 1);

    let accepted = next.load(Ordering::Relaxed) + 1;
    until(SOON * 6, "every mail", || world.smtp.count() >= accepted).await;
    assert_eq!(company::queue(&config).await, Vec::<serde_json::Value>::new());
    assert_eq!((ids(&world).len(), world.smtp.count()), (accepted, accepted));
    assert!(accepted > RELOADS, "{accepted} mails are no load");
    for bad in ["reload failed", "panicked", "defect"] {
        assert_eq!(relay.count_log(bad), 0, "{:#?}", relay.log());
    }
}

/// The connections on which the folder of `notifications@`, which has it alone, was opened.
fn watchers(world: &World) -> BTreeSet<u64> {
    let commands = world.imap.commands();
    commands.iter().filter(|(_, command)| command.contains("Leads")).map(|(number, _)| *number).collect()
}

#[tokio::test]
async fn a_bad_file_changes_nothing_and_every_mistake_is_said() {
    let world = World::start().await;
    let mut config = company::config(&world);
    company::connect(&world, &config).await;
    let notified = Notified::listen(&mut config);
    let relay = config.start().await;
    notified.wait_for("READY=1", 1).await;
    until(SOON, "the inbox's IDLE", || world.imap.idling(NOTIFICATIONS) == 1).await;
    until(SOON, "three tokens", || relay.count_log("token refreshed") == 3).await;
    let (connections, refreshes) = (world.imap.connections(), world.entra.requests().len());

    config.drop_mailbox(JANE);
    config.text("submission", "colour", "blue");
    config.raw("delivery", "connections", "5000");
    let said = reload(&config, &relay).await;
    for part in ["ERROR", "reload failed", "relay.toml:", "submission.colour", "delivery.connections"] {
        assert!(said.contains(part), "{part}: {said}");
    }
    notified.wait_for("READY=1", 2).await;
    let heard = notified.heard();
    let begun = heard.iter().position(|said| said.contains("RELOADING=1")).expect("RELOADING=1");
    assert!(heard[begun].contains("MONOTONIC_USEC="), "{heard:?}");
    let ended = &heard[begun + 1];
    assert!(ended.contains("STATUS=reload failed") && ended.contains("submission.colour"), "{heard:?}");
    assert!(ended.contains("READY=1"), "{heard:?}");
    // Jane still has her mailbox.
    relay.send(BOUNCE, &["a@x.test"], &message(JANE, "a@x.test", "1@t", "Hi")).await;
    until(SOON, "the mail", || world.smtp.count() == 1).await;
    assert_eq!(world.smtp.delivered()[0].mailbox, JANE);
    assert_eq!((world.imap.connections(), world.entra.requests().len()), (connections, refreshes));

    config.unset("submission", "colour");
    config.unset("delivery", "connections");
    let said = reload(&config, &relay).await;
    assert!(said.contains("added=0 removed=1 changed=0"), "{said}");
    notified.wait_for("READY=1", 3).await;
    assert!(notified.heard().last().unwrap().contains("STATUS=\n"), "{:?}", notified.heard());
}

#[tokio::test]
async fn what_needs_a_restart_is_named_and_the_rest_is_done() {
    let world = World::start().await;
    let (mut config, relay) = company::start(&world).await;
    let elsewhere = config.dir().join("other.db");
    config.text("store", "url", &format!("sqlite://{}", elsewhere.display()));
    config.text("admin", "listen", "127.0.0.1:1");
    config.raw("submission", "listen", "[\"127.0.0.1:2\"]");
    config.drop_mailbox(JANE);
    for _ in 0..2 {
        reload(&config, &relay).await;
    }
    for key in ["[store] url", "[admin] listen", "[submission] listen"] {
        let named = |line: &&String| line.contains(key) && line.contains("restart");
        assert_eq!(relay.log().iter().filter(named).count(), 2, "{key}: {:#?}", relay.log());
    }
    assert_eq!(relay.count_log("removed=1"), 1);
    assert!(!elsewhere.exists());
    assert_eq!(relay.send(BOUNCE, &["a@x.test"], &message(JOHN, "a@x.test", "1@t", "Hi")).await.code, 250);
}

#[tokio::test]
async fn a_new_certificate_password_and_limit_hold_for_the_next_session() {
    let world = World::start().await;
    let mut config = company::config(&world);
    company::connect(&world, &config).await;
    let certify = |config: &Config, tls: &Tls| {
        config.secret("certificate.pem", &tls.cert_pem);
        config.secret("key.pem", &tls.key_pem);
    };
    certify(&config, &world.tls);
    config.text("submission", "tls_certificate", "certificate.pem");
    config.text("submission", "tls_key", "key.pem");
    config.secret("submission-password", "before");
    config.text("submission", "user", "odoo");
    config.text("submission", "password_file", "submission-password");
    let relay = config.start().await;
    let plain = |password: &str| {
        format!("AUTH PLAIN {}", base64::prelude::BASE64_STANDARD.encode(format!("\0odoo\0{password}")))
    };
    let mut session = SmtpClient::connect_tls(relay.submission, &world.tls).await;

    let other = Tls::new();
    certify(&config, &other);
    config.secret("submission-password", "afterwards");
    config.text("submission", "max_message_size", "1 MB");
    reload(&config, &relay).await;
    // The session in progress goes on as it began.
    assert_eq!(session.cmd(&plain("before")).await.code, 235);
    let mut next = SmtpClient::connect_tls(relay.submission, &other).await;
    assert!(next.cmd("EHLO [127.0.0.1]").await.text.contains("SIZE 1000000"));
    assert_eq!(next.cmd(&plain("before")).await.code, 535);
    assert_eq!(next.cmd(&plain("afterwards")).await.code, 235);
}

#[tokio::test]
async fn a_new_client_secret_mends_the_mailboxes_that_use_it() {
    let world = World::start().await;
    let config = company::config(&world);
    company::connect(&world, &config).await;
    world.entra.set_client(CLIENT_ID, Some("the-new-secret"));
    let relay = config.start().await;
    relay.wait_for_log("token failed").await;
    relay.send(BOUNCE, &["a@x.test"], &message(JOHN, "a@x.test", "1@t", "Hi")).await;
    config.secret("client-secret", "the-new-secret");
    let said = reload(&config, &relay).await;
    assert!(said.contains("changed=3"), "{said}");
    until(SOON, "the mail", || world.smtp.count() == 1).await;
    assert!(relay.log().iter().all(|line| !line.contains("the-new-secret")));
    // Another reload, of the same file, finds nothing to do.
    until(SOON, "three tokens", || relay.count_log("token refreshed") == 3).await;
    let refreshes = world.entra.requests().len();
    let said = reload(&config, &relay).await;
    assert!(said.contains("added=0 removed=0 changed=0"), "{said}");
    assert_eq!(world.entra.requests().len(), refreshes);
}

#[tokio::test]
async fn mail_of_a_mailbox_that_leaves_goes_another_way() {
    let world = World::start().await;
    let mut config = company::config(&world);
    company::connect(&world, &config).await;
    world.entra.revoke(JOHN);
    let relay = config.start().await;
    relay.send(BOUNCE, &["a@x.test"], &message(JOHN, "a@x.test", "1@t", "Hi")).await;
    relay.wait_for_log("token failed").await;
    config.drop_mailbox(JOHN);
    reload(&config, &relay).await;
    relay.wait_for_log("rerouted").await;
    until(SOON, "the mail", || world.smtp.count() == 1).await;
    assert_eq!(world.smtp.delivered()[0].mailbox, NOTIFICATIONS);
    let status = config.cli(&["status", "--json"]).await.stdout;
    assert!(!status.contains(JOHN), "{status}");
}

/// The answer to the message is late: the mailbox that leaves, changes or comes back meanwhile waits for it.
#[tokio::test]
async fn a_message_in_hand_is_finished_whatever_becomes_of_its_mailbox() {
    let world = World::start().await;
    let mut config = company::config(&world);
    config.text("delivery", "sent_delay", "500ms");
    company::connect(&world, &config).await;
    let relay = config.start().await;
    world.smtp.fail_next(Step::AfterDot, Fault::KeepThenSilence);
    relay.send(BOUNCE, &["a@x.test"], &message(JOHN, "a@x.test", "1@t", "Hi")).await;
    until(SOON, "the attempt", || world.smtp.count() == 1).await;
    // It leaves, comes back and changes twice while its worker waits for the answer.
    config.drop_mailbox(JOHN);
    reload(&config, &relay).await;
    for sequence in ["11", "12", "13"] {
        config.mailbox(JOHN, &[("from_filter", "\"john@example.com\""), ("sequence", sequence)]);
        reload(&config, &relay).await;
    }
    // All others work on, and nothing was routed anew: what is in hand is not anybody else's.
    relay.send(BOUNCE, &["a@x.test"], &message(JANE, "a@x.test", "2@t", "Hi")).await;
    until(SOON, "Jane's mail", || world.smtp.count() == 2).await;
    assert_eq!(relay.count_log("rerouted"), 0);
    // Exchange hangs up without a word: the outcome is booked as unknown, the mail found in Sent Items, and not sent again.
    world.smtp.server.down().await;
    world.smtp.server.up().await;
    eventually(SOON, "both settled", || {
        if relay.count_log("INFO sent") == 2 { Ok(()) } else { Err(relay.log()) }
    })
    .await;
    relay.send(BOUNCE, &["a@x.test"], &message(JOHN, "a@x.test", "3@t", "Hi")).await;
    until(SOON, "the next mail", || world.smtp.count() == 3).await;
    assert_eq!(ids(&world).len(), 3);
}

#[tokio::test]
async fn a_reload_at_the_start_and_at_the_end_is_no_trouble() {
    let world = World::start().await;
    let config = company::config(&world);
    company::connect(&world, &config).await;
    let mut relay = config.spawn();
    // As soon as the process watches for SIGHUP (bit 0 of the caught signals, proc(5)).
    let pid = relay.pid().unwrap();
    until(SOON, "a watch for SIGHUP", || {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let mask =
            status.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap_or("0").trim().to_owned();
        u64::from_str_radix(&mask, 16).unwrap_or_default() & 1 == 1
    })
    .await;
    for _ in 0..3 {
        relay.signal("HUP");
    }
    relay.ready().await;
    relay.wait_for_log("reloaded").await;
    for _ in 0..5 {
        relay.signal("HUP");
    }
    relay.signal("TERM");
    relay.signal("HUP");
    assert_eq!(relay.exit_code(SOON).await, Some(0), "{:#?}", relay.log());
}
