//! `store backup`, `store check` and `store restore`, and what becomes of files that are no sound store.
#![expect(clippy::panic, clippy::indexing_slicing, reason = "test code: a failure here must stop the test")]

use crate::company::{self, JOHN};
use crate::support::client::{SmtpClient, message};
use crate::support::relay::{Config, Relay};
use crate::support::store;
use crate::support::wait::{SOON, until};
use crate::support::world::World;
use rusqlite::Connection;
use serde_json::Value;
use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

const BOUNCE: &str = "bounce@example.com";

async fn send(relay: &Relay, id: &str) {
    let reply = relay.send(BOUNCE, &["a@x.test"], &message(JOHN, "a@x.test", id, "Hi")).await;
    assert_eq!(reply.code, 250, "{reply:?}");
}

/// A relay that was stopped with so many messages in its queue.
async fn filled(world: &World, messages: usize) -> Config {
    let mut config = company::config(world);
    config.text("delivery", "sent_delay", "1s");
    company::connect(world, &config).await;
    let mut relay = config.start().await;
    world.smtp.server.down().await;
    for number in 0..messages {
        send(&relay, &format!("{number}@t")).await;
    }
    assert_eq!(relay.terminate(SOON).await, Some(0));
    config
}

/// The files of the store's folder with their content, but for the daemon's lock.
fn files(config: &Config) -> BTreeMap<String, Vec<u8>> {
    let files = std::fs::read_dir(config.dir()).unwrap().map(|file| file.unwrap().path());
    let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_owned();
    files
        .filter(|path| path.is_file())
        .map(|path| (name(&path), std::fs::read(&path).unwrap()))
        .filter(|(name, _)| !name.ends_with(".lock") && !name.ends_with("-shm"))
        .filter(|(name, content)| !name.ends_with("-wal") || !content.is_empty())
        .collect()
}

/// A database of another program.
fn bookmarks(path: &Path) {
    let other = Connection::open(path).unwrap();
    other.execute_batch("CREATE TABLE bookmark (url TEXT)").unwrap();
    other.close().unwrap();
}

/// `store check --json`, and its findings that are not well.
async fn check(config: &Config) -> (Option<i32>, Vec<Value>) {
    let output = config.cli(&["store", "check", "--json"]).await;
    let report: Value = serde_json::from_str(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"));
    let findings = report["findings"].as_array().unwrap().clone();
    (output.code, findings.into_iter().filter(|finding| finding["outcome"] != "ok").collect())
}

#[tokio::test]
async fn a_backup_is_private_holds_no_key_and_overwrites_nothing() {
    let world = World::start().await;
    let config = filled(&world, 2).await;
    for (number, runs) in [true, false].into_iter().enumerate() {
        let relay = if runs { Some(config.start().await) } else { None };
        let name = config.dir().join(format!("backup-{number}.db"));
        let file = name.to_str().unwrap();
        let made: Value =
            serde_json::from_str(&config.cli(&["store", "backup", file, "--json"]).await.success()).unwrap();
        assert_eq!((&made["messages"], &made["file"]), (&2.into(), &file.into()), "{made}");
        assert!(made["key_file"].as_str().unwrap().ends_with("relay.key"));
        let meta = std::fs::metadata(&name).unwrap();
        assert_eq!((meta.permissions().mode() & 0o777, made["bytes"].as_u64()), (0o600, Some(meta.len())));
        let key = std::fs::read_to_string(config.dir().join("relay.key")).unwrap();
        let content = std::fs::read(&name).unwrap();
        assert!(!content.windows(40).any(|part| part == &key.as_bytes()[..40]));
        assert!(content.starts_with(b"SQLite format 3\0"));

        let again = config.cli(&["store", "backup", file]).await;
        assert!(again.code == Some(1) && again.stderr.contains("is not overwritten"), "{again:?}");
        assert_eq!(std::fs::read(&name).unwrap(), content);
        let nowhere = config.cli(&["store", "backup", "/nonexistent/x.db"]).await;
        assert!(nowhere.code == Some(1) && nowhere.stderr.contains("/nonexistent/x.db"), "{nowhere:?}");
        drop(relay);
    }
    let words = config.cli(&["store", "backup", "third.db"]).await.success();
    assert!(words.contains("2 messages") && words.contains("relay.key"), "{words}");
    // One that was cut short is in nobody's way.
    std::fs::write(config.dir().join("fourth.db.part"), "what a kill left").unwrap();
    config.cli(&["store", "backup", "fourth.db"]).await.success();
    assert!(!files(&config).keys().any(|name| name.contains(".part")), "{:?}", files(&config).keys());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_under_load_is_a_sound_store_with_all_that_was_accepted_before_it() {
    let world = World::start().await;
    let config = filled(&world, 50).await;
    let relay = config.start().await;
    let (stop, accepted) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(50)));
    let sessions: Vec<_> = (0..4)
        .map(|_| {
            let (stop, accepted, address) = (stop.clone(), accepted.clone(), relay.submission);
            tokio::spawn(async move {
                let (mut client, _) = SmtpClient::connect(address).await;
                client.cmd("EHLO load").await;
                while !stop.load(Ordering::Relaxed) {
                    let mut mail = message(JOHN, "a@x.test", "load@t", "Hi");
                    mail.extend(b"0123456789abcdef 0123456789abcdef 0123456789abcdef\r\n".repeat(400));
                    assert_eq!(client.send(BOUNCE, &["a@x.test"], &mail).await.code, 250);
                    accepted.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    for number in 0..5 {
        let seen = accepted.load(Ordering::Relaxed);
        until(SOON, "load", || accepted.load(Ordering::Relaxed) > seen + 20).await;
        let before = accepted.load(Ordering::Relaxed);
        let file = config.dir().join(format!("{number}.db"));
        config.cli(&["store", "backup", file.to_str().unwrap()]).await.success();
        let backup = store::open(&file);
        let count = "SELECT count(*) FROM message JOIN content ON content.message = message.id";
        let messages: i64 = backup.query_row(count, [], |row| row.get(0)).unwrap();
        // Each session may have one on its way.
        let after = accepted.load(Ordering::Relaxed) + sessions.len();
        let messages = usize::try_from(messages).unwrap();
        assert!((before..=after).contains(&messages), "{before} <= {messages} <= {after}");
        let sound: String = backup.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
        assert_eq!(sound, "ok");
        assert_eq!(check(&config).await, (Some(0), vec![]));
    }
    stop.store(true, Ordering::Relaxed);
    for session in sessions {
        session.await.unwrap();
    }
}

#[tokio::test]
async fn a_check_tells_what_is_there_and_changes_nothing() {
    let world = World::start().await;
    let config = filled(&world, 3).await;
    let before = files(&config);
    let words = config.cli(&["store", "check"]).await.success();
    for part in ["does not run", "sound", "opens 3 tokens", "3 waiting", "All is well."] {
        assert!(words.contains(part), "{part}: {words}");
    }
    assert_eq!(files(&config), before);
    let relay = config.start().await;
    let words = config.cli(&["store", "check"]).await.success();
    assert!(words.contains("daemon") && words.contains(" runs"), "{words}");
    drop(relay);

    std::fs::rename(config.dir().join("relay.key"), config.dir().join("hidden")).unwrap();
    let (code, wrong) = check(&config).await;
    assert_eq!((code, &wrong[0]["check"]), (Some(1), &"key".into()), "{wrong:?}");
    assert!(wrong[0]["seen"].as_str().unwrap().contains("is missing"), "{wrong:?}");
    assert!(!config.dir().join("relay.key").exists());
    std::fs::rename(config.dir().join("hidden"), config.dir().join("relay.key")).unwrap();

    let store = store::open(config.dir().join("relay.db"));
    store
        .execute_batch(
            "DELETE FROM content WHERE message = (SELECT min(id) FROM message); \
             UPDATE message SET recipients = '[' WHERE id = (SELECT max(id) FROM message)",
        )
        .unwrap();
    drop(store);
    let (code, wrong) = check(&config).await;
    let seen = wrong[0]["seen"].as_str().unwrap();
    assert_eq!((code, wrong.len()), (Some(1), 1), "{wrong:?}");
    assert!(
        seen.contains("1 messages without their content") && seen.contains("recipients cannot be read"),
        "{seen}"
    );
}

#[tokio::test]
async fn a_restore_keeps_what_was_there_and_refuses_what_is_no_backup() {
    let world = World::start().await;
    let config = filled(&world, 2).await;
    config.cli(&["store", "backup", "good.db"]).await.success();
    let mut relay = config.start().await;
    send(&relay, "since@t").await;
    let refused = config.cli(&["store", "restore", "good.db"]).await;
    assert!(refused.code == Some(1) && refused.stderr.contains("stop it first"), "{refused:?}");
    assert_eq!(relay.terminate(SOON).await, Some(0));

    let good = std::fs::read(config.dir().join("good.db")).unwrap();
    config.secret("torn.db", "");
    std::fs::write(config.dir().join("torn.db"), &good[..good.len() / 2]).unwrap();
    std::fs::write(
        config.dir().join("text.db"),
        "this is no database, but long enough to be taken for one".repeat(99),
    )
    .unwrap();
    std::fs::copy(config.dir().join("good.db"), config.dir().join("newer.db")).unwrap();
    let newer = store::open(config.dir().join("newer.db"));
    newer.execute_batch("INSERT INTO _sqlx_migrations VALUES (9999, 'later', '', true, x'00', 0)").unwrap();
    newer.close().unwrap();
    bookmarks(&config.dir().join("other.db"));
    let before = files(&config);
    for (file, words) in [
        ("missing.db", "cannot be read"),
        ("relay.db", "is the store itself"),
        ("torn.db", "damaged"),
        ("text.db", "damaged"),
        ("newer.db", "newer version"),
        ("other.db", "another program's database"),
    ] {
        let refused = config.cli(&["store", "restore", file]).await;
        assert!(refused.code == Some(1) && refused.stderr.contains(words), "{file}: {refused:?}");
        assert_eq!(files(&config), before, "{file}");
    }

    let words = config.cli(&["store", "restore", "good.db"]).await.success();
    assert!(
        words.contains("2 messages") && words.contains("relay.db.before-") && words.contains("Sent Items"),
        "{words}"
    );
    assert_eq!(company::queue(&config).await.len(), 2);
    assert_eq!(std::fs::read(config.dir().join("good.db")).unwrap(), good, "it stays as it was");
    let (_, aside) = files(&config).into_iter().find(|(name, _)| name.contains("before-")).unwrap();
    assert_eq!(aside, before["relay.db"], "what was there is kept");
    let mode = std::fs::metadata(config.dir().join("relay.db")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let said = config.cli(&["store", "check"]).await.success();
    assert!(said.contains("no daemon has started with it yet"), "{said}");
}

/// The daemon is a user of its own, whose the folder is; who puts its key back is root.
#[tokio::test]
async fn a_key_that_root_put_back_is_told_of_and_given_back_by_a_restore() {
    let world = World::start().await;
    let config = filled(&world, 1).await;
    if std::fs::metadata(config.dir()).unwrap().uid() != 0 {
        return; // Only root gives files away.
    }
    config.cli(&["store", "backup", "good.db"]).await.success();
    let nobody = 65534;
    for file in ["", "relay.db", "relay.lock"] {
        chown(config.dir().join(file), Some(nobody), Some(nobody)).unwrap();
    }
    let key = config.dir().join("relay.key");
    let (code, wrong) = check(&config).await;
    assert_eq!((code, wrong.len(), &wrong[0]["check"]), (Some(1), 1, &"owner".into()), "{wrong:?}");
    let remedy = wrong[0]["remedy"].as_str().unwrap().to_owned();
    assert_eq!(remedy, format!("chown --reference={} {}", config.dir().display(), key.display()));
    let ran = std::process::Command::new("sh").args(["-ec", &remedy]).status().unwrap();
    assert!(ran.success());
    assert_eq!(check(&config).await, (Some(0), vec![]));

    chown(&key, Some(0), Some(0)).unwrap();
    config.cli(&["store", "restore", "good.db"]).await.success();
    assert_eq!(check(&config).await.0, Some(0));
    assert_eq!(std::fs::metadata(&key).unwrap().uid(), nobody);
}

#[tokio::test]
async fn a_restore_onto_a_new_machine_or_over_a_damaged_store_works_and_says_when_the_key_is_missing() {
    let world = World::start().await;
    let config = filled(&world, 2).await;
    config.cli(&["store", "backup", "good.db"]).await.success();
    std::fs::write(config.dir().join("relay.db"), "rubbish").unwrap();
    config.cli(&["store", "restore", "good.db"]).await.success();
    assert_eq!(company::queue(&config).await.len(), 2);

    for name in ["relay.db", "relay.key", "relay.lock"] {
        std::fs::rename(config.dir().join(name), config.dir().join(format!("hidden-{name}"))).unwrap();
    }
    let words = config.cli(&["store", "restore", "good.db"]).await.success();
    assert!(words.contains("not all of its tokens can be used") && words.contains("is missing"), "{words}");
    std::fs::rename(config.dir().join("hidden-relay.key"), config.dir().join("relay.key")).unwrap();
    world.smtp.server.up().await;
    let _relay = config.start().await;
    until(SOON * 2, "what was unsent", || world.smtp.count() == 2).await;
}

/// Something that happens to files.
type Damage = fn(&Config);

#[tokio::test]
async fn damaged_files_are_told_of_and_left_as_they_are() {
    let world = World::start().await;
    let config = filled(&world, 200).await;
    let whole = files(&config);
    let cases: [(&str, Damage, &str); 6] = [
        ("truncated", |config| cut(&config.dir().join("relay.db"), 2), "damaged"),
        ("cut within a page", |config| cut(&config.dir().join("relay.db"), 3), "damaged"),
        (
            "emptied",
            |config| std::fs::write(config.dir().join("relay.db"), "").unwrap(),
            "this file is empty",
        ),
        (
            "no database",
            |config| std::fs::write(config.dir().join("relay.db"), "Dear Sir".repeat(1000)).unwrap(),
            "damaged",
        ),
        ("a zero page at the beginning", |config| zero(&config.dir().join("relay.db"), 0), "damaged"),
        (
            "zero pages",
            |config| (1..40).for_each(|page| zero(&config.dir().join("relay.db"), page)),
            "damaged",
        ),
    ];
    for (what, damage, words) in cases {
        damage(&config);
        let before = files(&config);
        let mut relay = config.spawn();
        assert_eq!(relay.exit_code(SOON).await, Some(1), "{what}");
        let log = relay.log().join("\n");
        assert!(log.contains(words) && log.contains("store restore"), "{what}: {log}");
        let (code, wrong) = check(&config).await;
        assert_eq!((code, &wrong[0]["check"]), (Some(1), &"database".into()), "{what}: {wrong:?}");
        assert!(wrong[0]["remedy"].as_str().unwrap().contains("store restore"), "{what}: {wrong:?}");
        let listed = config.cli(&["queue", "list"]).await;
        assert!(listed.code == Some(1) && listed.stderr.contains(words), "{what}: {listed:?}");
        let backup = config.cli(&["store", "backup", "of-damaged.db"]).await;
        assert_eq!(backup.code, Some(1), "{what}: {backup:?}");
        assert_eq!(files(&config), before, "{what}: nothing is overwritten");
        for (name, content) in &whole {
            std::fs::write(config.dir().join(name), content).unwrap();
        }
    }
    assert_eq!(check(&config).await, (Some(0), vec![]));
}

fn cut(path: &Path, parts: u64) {
    let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
    file.set_len(file.metadata().unwrap().len() / parts).unwrap();
}

fn zero(path: &Path, page: u64) {
    let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &[0; 4096], page * 4096).unwrap();
}

#[tokio::test]
async fn of_a_torn_log_everything_before_the_tear_is_there() {
    let world = World::start().await;
    let config = filled(&world, 3).await;
    let mut relay = config.start().await;
    for number in 0..10 {
        send(&relay, &format!("log-{number}@t")).await;
    }
    relay.kill9().await;
    let log = config.dir().join("relay.db-wal");
    let whole = std::fs::read(&log).unwrap();
    assert!(whole.len() > 10 * 4096);
    std::fs::write(&log, &whole[..whole.len() - 5000]).unwrap();
    assert_eq!(check(&config).await, (Some(0), vec![]), "a tear is what a power cut leaves");
    let left = company::queue(&config).await.len();
    assert!((3..=13).contains(&left), "{left}");
    let _relay = config.start().await;
}

#[tokio::test]
async fn a_database_of_another_program_is_left_alone() {
    let world = World::start().await;
    let config = company::config(&world);
    let path = config.dir().join("relay.db");
    bookmarks(&path);
    let before = std::fs::read(&path).unwrap();
    let refused = config.cli(&["run"]).await;
    assert!(refused.code == Some(1) && refused.stderr.contains("another program's database"), "{refused:?}");
    assert_eq!(check(&config).await.0, Some(1));
    assert_eq!(std::fs::read(&path).unwrap(), before);
}

#[tokio::test]
async fn a_message_that_lies_where_the_file_is_damaged_holds_up_no_other() {
    let world = World::start().await;
    let config = filled(&world, 1).await;
    let mut relay = config.start().await;
    let mut large = message(JOHN, "a@x.test", "damaged@t", "Hi");
    large.extend(b"This is what the damaged page holds.\r\n".repeat(2_000));
    assert_eq!(relay.send(BOUNCE, &["a@x.test"], &large).await.code, 250);
    send(&relay, "after@t").await;
    relay.terminate(SOON).await;
    let path = config.dir().join("relay.db");
    let content = std::fs::read(&path).unwrap();
    let pages: Vec<_> = content
        .chunks(4096)
        .enumerate()
        .filter(|(_, page)| {
            page.windows(40).filter(|part| part.starts_with(b"This is what the damaged")).count() > 90
        })
        .map(|(number, _)| number)
        .collect();
    zero(&path, u64::try_from(pages[pages.len() / 2]).unwrap());

    world.smtp.server.up().await;
    let relay = config.start().await;
    until(SOON, "the others", || world.smtp.count() == 2).await;
    let line = relay.wait_for_log(" failed ").await;
    assert!(line.contains("ERROR") && line.contains("<damaged@t>") && line.contains("store check"), "{line}");
    let queue = company::queue(&config).await;
    assert_eq!((queue.len(), &queue[0]["state"]), (1, &"failed".into()), "{queue:#?}");
    assert_eq!(check(&config).await.0, Some(1));
}
