//! Tokens at rest: sealed, under a key that is never lost and never replaced in silence.

use crate::company::{self, ALL, JOHN};
use crate::support::client::message;
use crate::support::relay::Config;
use crate::support::wait::{SOON, until};
use crate::support::world::World;
use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;
use std::time::Duration;

/// Every file in the configuration's folder that holds one of these texts, with the text's first characters.
fn holders(config: &Config, texts: &[String]) -> Vec<String> {
    let mut found = Vec::new();
    for file in std::fs::read_dir(config.dir()).unwrap() {
        let path = file.unwrap().path();
        let bytes = std::fs::read(&path).unwrap();
        for text in texts {
            if bytes.windows(text.len()).any(|part| part == text.as_bytes()) {
                found.push(format!("{}: {text:.12}…", path.display()));
            }
        }
    }
    found
}

#[tokio::test]
async fn no_file_of_a_working_relay_holds_a_token() {
    let world = World::start().await;
    world.entra.set_expires_in(3);
    let (config, mut relay) = company::start(&world).await;
    until(SOON, "several rotations", || ALL.iter().all(|mailbox| world.entra.refreshes(mailbox) >= 3)).await;
    let secrets = world.entra.refresh_tokens();
    assert!(secrets.len() >= 3 * ALL.len());
    assert_eq!(holders(&config, &secrets), [""; 0], "while it runs, with the log");
    relay.kill9().await;
    assert_eq!(holders(&config, &world.entra.refresh_tokens()), [""; 0], "after a crash");
    for name in ["relay.db", "relay.key"] {
        let mode = std::fs::metadata(config.dir().join(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
}

#[tokio::test]
async fn without_its_key_the_daemon_does_not_start_and_changes_nothing() {
    let world = World::start().await;
    let config = company::config(&world);
    company::connect(&world, &config).await;
    let (key, hidden) = (config.dir().join("relay.key"), config.dir().join("hidden"));
    std::fs::rename(&key, &hidden).unwrap();
    for content in [None, Some("c2l4IHRpbWVzIGZpdmUgYW5kIHR3byBhcmUgMzIgISE=\n")] {
        if let Some(content) = content {
            config.secret("relay.key", content);
        }
        let mut relay = config.spawn();
        assert_eq!(relay.exit_code(SOON).await, Some(1));
        let log = relay.log().join("\n");
        assert!(
            log.contains("relay.key") && log.contains("from a backup") && log.contains("--lost"),
            "{log}"
        );
        let refused = config.connect(JOHN, "another").await;
        assert_eq!(refused.code, Some(1), "{refused:?}");
        assert_eq!(config.cli(&["queue", "list"]).await.success(), "The queue is empty.\n");
        assert_eq!(key.exists(), content.is_some(), "no key was made");
    }
    std::fs::rename(&hidden, &key).unwrap();
    let _relay = config.start().await;
    until(SOON, "a refresh with what was there all along", || world.entra.refreshes(JOHN) == 1).await;
}

#[tokio::test]
async fn a_key_is_rotated_under_the_running_daemon() {
    let world = World::start().await;
    // Harsher than Microsoft: a token that is lost by the rotation shows at once.
    world.entra.set_old_tokens_work(false);
    world.entra.set_expires_in(3);
    let (config, mut relay) = company::start(&world).await;
    let key = || std::fs::read_to_string(config.dir().join("relay.key")).unwrap();
    for round in 1..=2 {
        let (before, refreshes) = (key(), world.entra.refreshes(JOHN));
        let said = config.cli(&["store", "rotate-key", "--json"]).await.success();
        let said: serde_json::Value = serde_json::from_str(&said).unwrap();
        assert_eq!(said["resealed"], 3, "{round}");
        assert_ne!(key(), before);
        until(SOON, "refreshes", || world.entra.refreshes(JOHN) >= refreshes + 2).await;
    }
    // Not killed: a refresh cut off before its commit would be lost here, unlike at Microsoft.
    assert_eq!(relay.terminate(SOON).await, Some(0));
    let relay = config.start().await;
    relay.send("b@example.com", &["a@x.test"], &message(JOHN, "a@x.test", "1@t", "Hi")).await;
    until(SOON, "the mail", || world.smtp.count() == 1).await;
    assert_eq!(relay.count_log("token failed"), 0, "{:#?}", relay.log());
}

#[tokio::test]
async fn a_rotation_that_is_killed_anywhere_loses_no_token() {
    let world = World::start().await;
    world.entra.set_old_tokens_work(false);
    let config = company::config(&world);
    company::connect(&world, &config).await;
    let file = config.write();
    let started = std::time::Instant::now();
    config.cli(&["store", "rotate-key"]).await.success();
    let whole = started.elapsed();
    const ROUNDS: u32 = 40;
    for round in 0..ROUNDS {
        let mut rotation = tokio::process::Command::new(env!("CARGO_BIN_EXE_outlook-relay"))
            .args(["store", "rotate-key", "-c"])
            .arg(&file)
            .env_remove("CREDENTIALS_DIRECTORY")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        tokio::time::sleep(whole * round / ROUNDS).await;
        rotation.kill().await.unwrap();
        // Whatever state that left: the next opening finds its key.
        config.cli(&["queue", "list"]).await.success();
    }
    let relay = config.start().await;
    for mailbox in ALL {
        until(SOON, mailbox, || world.entra.refreshes(mailbox) == 1).await;
    }
    assert_eq!(relay.count_log("token failed"), 0, "{:#?}", relay.log());
    let left = std::fs::read_dir(config.dir()).unwrap().map(|file| file.unwrap().file_name());
    let left: Vec<_> = left.filter(|name| name.to_string_lossy().contains(".key.")).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[tokio::test]
async fn a_systemd_credential_is_the_key_and_is_rotated_only_while_the_daemon_rests() {
    let world = World::start().await;
    let mut config = company::config(&world);
    config.text("store", "key_file", "store-key");
    let missing = config.cli(&["check"]).await;
    assert_eq!(missing.code, Some(78), "{missing:?}");
    assert!(missing.stderr.contains("store.key_file: names"), "{missing:?}");
    let key = "c2l4IHRpbWVzIGZpdmUgYW5kIHR3byBhcmUgMzIgISE=\n";
    config.secret("store-key", key);
    company::connect(&world, &config).await;
    assert!(!config.dir().join("relay.key").exists());

    // What systemd does: a copy of every credential, in a folder that the daemon alone is told of.
    let credentials = tempfile::tempdir().unwrap();
    let hand_over = || {
        for name in ["store-key", "client-secret", "odoo-password"] {
            let (from, to) = (config.dir().join(name), credentials.path().join(name));
            if from.exists() {
                std::fs::copy(from, to).unwrap();
            }
        }
    };
    hand_over();
    let mut daemon = company::config(&world);
    daemon.text("store", "key_file", "store-key");
    daemon.text("store", "url", &format!("sqlite://{}", config.dir().join("relay.db").display()));
    daemon.env("CREDENTIALS_DIRECTORY", credentials.path().to_str().unwrap());
    let mut relay = daemon.start().await;
    until(SOON, "a refresh", || world.entra.refreshes(JOHN) == 1).await;
    let refused = config.cli(&["store", "rotate-key"]).await;
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert!(refused.stderr.contains("Stop it, rotate, start it"), "{refused:?}");
    assert_eq!(std::fs::read_to_string(config.dir().join("store-key")).unwrap(), key);
    assert_eq!(relay.terminate(SOON).await, Some(0));
    config.cli(&["store", "rotate-key"]).await.success();
    assert_ne!(std::fs::read_to_string(config.dir().join("store-key")).unwrap(), key);
    hand_over();
    let relay = daemon.start().await;
    until(SOON, "a refresh under the new key", || world.entra.refreshes(JOHN) == 2).await;

    // Which systemd hands over at the next start only.
    daemon.secret("client-secret", "another secret");
    relay.signal("HUP");
    let said = relay.wait_for_log("not changed by a reload").await;
    assert!(said.contains("LoadCredential=client-secret"), "{said}");
}

#[tokio::test]
async fn a_lost_key_is_given_up_only_when_somebody_says_so() {
    let world = World::start().await;
    let config = company::config(&world);
    company::connect(&world, &config).await;
    let kept = config.cli(&["store", "rotate-key", "--lost"]).await;
    assert_eq!(kept.code, Some(1));
    assert!(kept.stderr.contains("is there"), "{kept:?}");
    std::fs::remove_file(config.dir().join("relay.key")).unwrap();
    assert_eq!(config.cli(&["store", "rotate-key"]).await.code, Some(1));
    let said = config.cli(&["store", "rotate-key", "--lost"]).await.success();
    assert!(said.contains("connect each mailbox anew"), "{said}");
    let relay = config.start().await;
    let line = relay.wait_for_log("token failed").await;
    assert!(line.contains("cannot be opened") && line.contains("outlook-relay connect"), "{line}");
    config.connect(JOHN, &world.entra.add_mailbox(JOHN)).await.success();
    until(SOON, "a refresh", || world.entra.refreshes(JOHN) == 1).await;
}

#[tokio::test]
async fn the_daemon_is_seen_by_whatever_name_the_store_goes() {
    let world = World::start().await;
    let (config, _relay) = company::start(&world).await;
    let mut other = company::config(&world);
    let link = other.dir().join("link.db");
    std::os::unix::fs::symlink(config.dir().join("relay.db"), &link).unwrap();
    other.text("store", "url", &format!("sqlite://{}", link.display()));
    let refused = other.cli(&["store", "rotate-key", "--lost"]).await;
    assert_eq!(refused.code, Some(1));
    assert!(refused.stderr.contains("the daemon runs"), "{refused:?}");
    // Whoever changes keys waits for whoever does so already, by either name.
    let rotating = std::fs::File::open(config.dir()).unwrap();
    rotating.try_lock().unwrap();
    let busy = other.cli(&["store", "rotate-key"]).await;
    assert!(busy.code == Some(1) && busy.stderr.contains("another process changes"), "{busy:?}");
}

#[tokio::test]
async fn a_damaged_key_file_is_given_up_as_the_error_says() {
    let world = World::start().await;
    let config = company::config(&world);
    company::connect(&world, &config).await;
    // As a full disk or a restore that was cut short leaves it.
    config.secret("relay.key", "");
    let refused = config.spawn().exit_code(SOON).await;
    assert_eq!(refused, Some(1));
    let said = config.cli(&["store", "rotate-key", "--lost"]).await.stderr;
    assert!(said.contains("relay.key") && said.contains("openssl rand -base64 32"), "{said}");
    config.secret("relay.key", "c2l4IHRpbWVzIGZpdmUgYW5kIHR3byBhcmUgMzIgISE=\n");
    config.cli(&["store", "rotate-key", "--lost"]).await.success();
    config.connect(JOHN, &world.entra.add_mailbox(JOHN)).await.success();
    let _relay = config.start().await;
    until(SOON, "a refresh", || world.entra.refreshes(JOHN) == 1).await;
}

#[tokio::test]
async fn connecting_a_mailbox_never_makes_a_second_refresh_beside_the_daemons() {
    let world = World::start().await;
    world.entra.set_old_tokens_work(false);
    world.entra.set_expires_in(3);
    world.entra.set_delay(Duration::from_millis(300));
    let (config, relay) = company::start(&world).await;
    for _ in 0..6 {
        let before = world.entra.refreshes(JOHN);
        config.connect(JOHN, &world.entra.add_mailbox(JOHN)).await.success();
        until(SOON, "a refresh", || world.entra.refreshes(JOHN) > before).await;
    }
    assert_eq!(world.entra.max_in_flight(JOHN), 1);
    relay.send("b@example.com", &["a@x.test"], &message(JOHN, "a@x.test", "1@t", "Hi")).await;
    until(SOON, "the mail", || world.smtp.count() == 1).await;
}
