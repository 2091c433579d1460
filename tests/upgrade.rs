//! Stores as earlier versions wrote them, from the first one on: whatever they hold keeps its meaning under this one.
#![expect(clippy::indexing_slicing, reason = "test code: a failure here must stop the test")]

use crate::company::{self, JANE, JOHN, NOTIFICATIONS};
use crate::disk::Disk;
use crate::support::client::message;
use crate::support::relay::Config;
use crate::support::store;
use crate::support::wait::{SOON, until};
use crate::support::world::World;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use outlook_relay::address::Address;
use outlook_relay::clock;
use outlook_relay::sealing::{Key, Owner};
use rusqlite::Connection;
use secrecy::{SecretBox, SecretString};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

/// The migrations by their names, with the checksums that stores out there keep of them: one that was released never changes.
const CHECKSUMS: &str = include_str!("data/migrations.sha384");
const KEY: [u8; 32] = *b"six times five and two are 32 !!";

/// The table in which stores keep them.
const MIGRATIONS: &str = "CREATE TABLE _sqlx_migrations (
    version BIGINT PRIMARY KEY,
    description TEXT NOT NULL,
    installed_on TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP,
    success BOOLEAN NOT NULL,
    checksum BLOB NOT NULL,
    execution_time BIGINT NOT NULL
)";

/// Every version, oldest first: its number and the name of its migration.
fn versions() -> Vec<(i64, &'static str)> {
    let names = CHECKSUMS.lines().map(|line| line.split_whitespace().nth(1).unwrap());
    names.map(|name| (name[..4].parse().unwrap(), name)).collect()
}

fn in_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Milliseconds since 1970, so long ago.
fn ago(age: Duration) -> i64 {
    clock::before(clock::now(), age).as_millisecond()
}

/// A store of that version, with all that it can hold: mail that waits, that a crash cut short and that failed, tokens,
/// and a ledger up to UID 2 of which the second is still to be pushed.
fn store_of(version: i64, config: &Config, world: &World) {
    let path = config.dir().join("relay.db");
    let store = Connection::open(&path).unwrap();
    let run = |sql: &str| store.execute_batch(sql).unwrap();
    store.pragma_update(None, "journal_mode", "WAL").unwrap();
    run(MIGRATIONS);
    for (line, (known, name)) in CHECKSUMS.lines().zip(versions()) {
        if known <= version {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/store/migrations");
            run(&std::fs::read_to_string(folder.join(name)).unwrap());
            let checksum = line.split_whitespace().next().unwrap();
            run(&format!(
                "INSERT INTO _sqlx_migrations VALUES ({known}, 'x', '2026-01-01', true, x'{checksum}', 1)"
            ));
        }
    }
    let then = ago(Duration::from_secs(600));
    for (number, (id, state)) in
        [("waits@t", "waiting"), ("cut-short@t", "sending"), ("failed@t", "failed")].into_iter().enumerate()
    {
        let (row, attempts) = (then * 1000 + i64::try_from(number).unwrap(), i64::from(state != "waiting"));
        let recipient = if state == "failed" { "failed" } else { "waiting" };
        let raw = in_hex(&message(JOHN, "a@x.test", id, "Hi"));
        run(&format!(
            "INSERT INTO message (id, received_at, mail_from, recipients, smtputf8, eight_bit, header_from, message_id, \
             size, mailbox, rule, new_from, state, attempts, next_attempt_at, changed_at) VALUES ({row}, {then}, \
             'bounce@example.com', '[{{\"address\":\"a@x.test\",\"state\":\"{recipient}\"}}]', 0, 0, '{JOHN}', '<{id}>', 99, \
             '{JOHN}', 'address', NULL, '{state}', {attempts}, {then}, {then}); \
             INSERT INTO content VALUES ({row}, x'{raw}')"
        ));
        // Since the tenth, an attempt under way is the message's own row.
        if attempts > 0 && (version < 10 || state != "sending") {
            let ended = if state == "sending" { "NULL".to_owned() } else { then.to_string() };
            let outcome = if state == "sending" { "NULL" } else { "'failed'" };
            run(&format!(
                "INSERT INTO attempt VALUES ({row}, 1, {then}, {ended}, {outcome}, NULL, '550 5.1.1', 'User unknown')"
            ));
        }
    }
    for mailbox in [NOTIFICATIONS, JOHN, JANE] {
        let token = world.entra.refresh_token(mailbox).unwrap();
        let app = crate::support::entra::CLIENT_ID;
        let (column, value) = match version {
            1 => ("refresh_token", format!("'{token}'")),
            _ => {
                let address = Address::normalise(mailbox).unwrap();
                let key = Key::new(SecretBox::new(Box::new(KEY)));
                let sealed = key.seal([7; 24], Owner::Mailbox(&address), &SecretString::from(token)).unwrap();
                ("sealed", format!("x'{}'", in_hex(&sealed)))
            }
        };
        run(&format!(
            "INSERT INTO token (mailbox, tenant, client_id, {column}, consented_at) VALUES \
             ('{mailbox}', 'example.onmicrosoft.com', '{app}', {value}, {then})"
        ));
    }
    if version >= 2 {
        config.secret("relay.key", &STANDARD.encode(KEY));
        let id = in_hex(Key::new(SecretBox::new(Box::new(KEY))).id().as_bytes());
        run(&format!("INSERT INTO sealing VALUES (1, x'{id}', 1)"));
    }
    if version >= 4 {
        let raw = in_hex(b"Subject: a report\r\n\r\nIt failed.\r\n");
        run(&format!(
            "INSERT INTO report VALUES (1, {}, '<failed@t>', '[\"a@x.test\"]', {then}, 'waiting', 0, {then}, NULL, x'{raw}'); \
             INSERT INTO pace VALUES ('{JOHN}', {}, 1, 1)",
            then * 1000 + 2,
            then / 60_000
        ));
    }
    run(&format!(
        "INSERT INTO inbox (mailbox, folder, uidvalidity, uid, looked_at) VALUES ('{NOTIFICATIONS}', 'INBOX', {}, 2, {then}); \
         INSERT INTO received (mailbox, folder, uidvalidity, uid, message_id, state, tries, next_try_at, found_at, \
         changed_at) VALUES ('{NOTIFICATIONS}', 'INBOX', {0}, 1, '<known@t>', 'done', 1, {then}, {then}, {then}), \
         ('{NOTIFICATIONS}', 'INBOX', {0}, 2, NULL, 'waiting', 0, {then}, {then}, {then})",
        world.imap.uidvalidity(NOTIFICATIONS, "INBOX")
    ));
    store.close().unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
}

/// The world around such a store: what was cut short lies in Sent Items, one of three received messages is known.
async fn world() -> (World, Config) {
    let world = World::start().await;
    let mut config = company::config(&world);
    config.text("delivery", "sent_delay", "1s");
    config.text("odoo", "report_after", "1ms");
    for mailbox in company::ALL {
        world.entra.add_mailbox(mailbox);
    }
    world.imap.deliver(JOHN, "Sent Items", &message(JOHN, "a@x.test", "cut-short@t", "Hi"));
    for id in ["known@t", "unread@t", "new@t"] {
        world.imap.deliver(NOTIFICATIONS, "INBOX", &message("c@foreign.test", NOTIFICATIONS, id, "Hi"));
    }
    (world, config)
}

/// What the store held is done, and what was done is not done again.
async fn all_keeps_its_meaning(version: i64, world: &World, config: &Config) {
    let relay = config.start().await;
    until(SOON, "what waited", || world.smtp.count() == 1).await;
    assert!(world.smtp.delivered()[0].text().contains("<waits@t>"), "of version {version}");
    relay.wait_for_log("found=").await;
    let reports = usize::from(version >= 4);
    until(SOON, "Odoo to have everything", || world.odoo.posts().len() == 2 + reports).await;
    let mut ids: Vec<_> = world.odoo.taken().into_iter().filter_map(|post| post.message_id).collect();
    ids.retain(|id| id.ends_with("@t>"));
    ids.sort();
    assert_eq!(ids, ["<new@t>", "<unread@t>"], "of version {version}");
    let queue = company::queue(config).await;
    assert_eq!(queue.len(), 1, "of version {version}: {queue:#?}");
    assert_eq!((&queue[0]["state"], &queue[0]["message_id"]), (&"failed".into(), &"<failed@t>".into()));
    assert_eq!(queue[0]["attempts"][0]["reply"], "User unknown");
    assert_eq!(relay.count_log("token failed"), 0, "of version {version}: {:#?}", relay.log());
    config.cli(&["store", "check"]).await.success();
}

#[tokio::test]
async fn a_store_of_every_version_is_taken_over() {
    for (version, _) in versions() {
        let (world, config) = world().await;
        store_of(version, &config, &world);
        all_keeps_its_meaning(version, &world, &config).await;
    }
}

#[tokio::test]
async fn a_backup_of_every_version_can_be_put_back() {
    for (version, _) in versions() {
        let (world, config) = world().await;
        store_of(version, &config, &world);
        // It was sent since.
        world.imap.deliver(JOHN, "Sent Items", &message(JOHN, "a@x.test", "waits@t", "Hi"));
        let made = config.cli(&["store", "backup", "b.db"]).await.success();
        assert!(made.contains("3 messages"), "{version}: {made}");
        assert!(config.cli(&["store", "check"]).await.success().contains(&format!("{version}")), "as it was");
        config.cli(&["store", "restore", "b.db"]).await.success();
        let relay = config.start().await;
        until(SOON, "both found", || relay.count_log("found=") == 2).await;
        assert_eq!(world.smtp.count(), 0, "of version {version}");
    }
}

#[tokio::test]
async fn a_kill_in_the_middle_of_an_upgrade_leaves_a_store_that_the_next_start_takes_over() {
    let (world, config) = world().await;
    // Nobody delivers before the upgrade is done.
    world.smtp.server.down().await;
    world.odoo.server.down().await;
    let mut cut_short = 0;
    for round in 0..40 {
        for name in ["relay.db", "relay.db-wal", "relay.db-shm", "relay.key", "relay.key.new"] {
            drop(std::fs::remove_file(config.dir().join(name)));
        }
        store_of(1, &config, &world);
        let mut relay = config.spawn();
        tokio::time::sleep(Duration::from_millis(round)).await;
        relay.kill9().await;
        cut_short += usize::from(relay.count_log(" ready ") == 0);
        let checked = config.cli(&["store", "check"]).await.success();
        assert!(checked.contains("All is well"), "{round}: {checked}");
        let store = config.cli(&["queue", "list", "--json"]).await.success();
        let queue: Vec<serde_json::Value> = serde_json::from_str(&store).unwrap();
        assert_eq!(queue.len(), 3, "{round}: {store}");
    }
    assert!(cut_short > 10, "{cut_short}");
    world.smtp.server.up().await;
    world.odoo.server.up().await;
    all_keeps_its_meaning(1, &world, &config).await;
}

#[tokio::test]
async fn a_disk_that_is_full_stops_an_upgrade_and_costs_nothing() {
    let (world, mut config) = world().await;
    store_of(1, &config, &world);
    let whole = config.dir().join("relay.db");
    let disk = Disk::mount(config.dir().join("disk"), 48);
    let (store, ballast) = (disk.at.join("relay.db"), disk.at.join("ballast"));
    config.text("store", "url", &format!("sqlite://{}", store.display()));
    let mut refused = 0;
    for free in [0, 40, 60, 80, 100, 120, 140, 160, 180, 200, 240, 280] {
        for name in ["relay.db-wal", "relay.db-shm", "relay.key", "relay.key.new"] {
            drop(std::fs::remove_file(disk.at.join(name)));
        }
        std::fs::copy(&whole, &store).unwrap();
        let mut file = std::fs::File::create(&ballast).unwrap();
        let full = std::io::copy(&mut std::io::repeat(b'x'), &mut file);
        assert!(full.is_err(), "the disk has no end");
        file.set_len(file.metadata().unwrap().len() - free * 1024).unwrap();
        drop(file);
        // Every command upgrades.
        let listed = config.cli(&["queue", "list"]).await;
        if listed.code != Some(0) {
            refused += 1;
            assert!(
                listed.stderr.contains("free space") || listed.stderr.contains("full"),
                "{free}: {listed:?}"
            );
        }
        std::fs::remove_file(&ballast).unwrap();
        assert_eq!(company::queue(&config).await.len(), 3, "{free} KiB free");
    }
    assert!(refused > 3, "{refused}");
    all_keeps_its_meaning(1, &world, &config).await;
}

#[tokio::test]
async fn nothing_upgrades_a_store_under_a_daemon_of_an_earlier_version() {
    let (world, config) = world().await;
    store_of(1, &config, &world);
    let path = config.dir().join("relay.db");
    let before = std::fs::read(&path).unwrap();
    // What such a daemon holds.
    let daemon = std::fs::File::create(config.dir().join("relay.lock")).unwrap();
    daemon.try_lock().unwrap();
    for command in [&["queue", "list"][..], &["inbox", "list"], &["store", "rotate-key"]] {
        let refused = config.cli(command).await;
        assert!(
            refused.code == Some(1) && refused.stderr.contains("systemctl restart outlook-relay"),
            "{command:?}: {refused:?}"
        );
        assert!(std::fs::read(&path).unwrap() == before, "{command:?} changed it");
    }
    drop(daemon);
    // Without a daemon, whoever comes first does it; this one takes the lock itself.
    config.cli(&["store", "rotate-key"]).await.success();
    assert_eq!(company::queue(&config).await.len(), 3);
    all_keeps_its_meaning(1, &world, &config).await;
}

#[tokio::test]
async fn a_newer_versions_store_is_refused_and_left_as_it_is() {
    let (world, config) = world().await;
    let newest = versions().last().unwrap().0;
    store_of(newest, &config, &world);
    let path = config.dir().join("relay.db");
    let store = store::open(&path);
    store
        .execute_batch(&format!(
            "CREATE TABLE later (x); INSERT INTO _sqlx_migrations VALUES ({}, 'later', '2030-01-01', true, x'00', 1)",
            newest + 1
        ))
        .unwrap();
    store.close().unwrap();
    let before = std::fs::read(&path).unwrap();
    for command in [&["run"][..], &["queue", "list"], &["store", "rotate-key"]] {
        let refused = config.cli(command).await;
        assert!(
            refused.code == Some(1) && refused.stderr.contains("newer version"),
            "{command:?}: {refused:?}"
        );
        assert!(std::fs::read(&path).unwrap() == before, "{command:?} changed it");
    }
    let checked = config.cli(&["store", "check"]).await;
    assert!(checked.code == Some(1) && checked.stdout.contains("newer outlook-relay"), "{checked:?}");
}
