//! The log in its formats, from the real program: lines, JSON, and systemd's journal.
use crate::company::{self, JANE, JOHN, NOTIFICATIONS};
use crate::support::client::message;
use crate::support::relay::{Config, Relay};
use crate::support::wait::{SOON, eventually};
use crate::support::world::World;
use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::sync::{Arc, Mutex};

/// A private `/run`, so that a journal of our own can stand in for the machine's; it needs the right to make namespaces.
const NAMESPACE: [&str; 3] = ["unshare", "--map-root-user", "--mount"];

/// Puts a script between the tests and the program, which `prepare`s its surroundings.
fn behind(config: &mut Config, in_namespace: bool, prepare: &str) {
    let program = env!("CARGO_BIN_EXE_outlook-relay");
    let stream = "JOURNAL_STREAM=$(stat -L -c %d:%i /dev/fd/2); export JOURNAL_STREAM";
    let prepare = format!("{stream}; {prepare} exec {program} \"$@\"");
    let inside = config.secret("inside.sh", &format!("#!/bin/sh -e\n{prepare}\n"));
    let unshare = if in_namespace { NAMESPACE.join(" ") } else { String::new() };
    let outside = format!("#!/bin/sh\nexec {unshare} sh -e {} \"$@\"\n", inside.display());
    let outside = config.secret("outside.sh", &outside);
    std::fs::set_permissions(&outside, std::fs::Permissions::from_mode(0o700)).unwrap();
    config.set_binary(&outside);
}

/// Whether this machine lets us have a `/run` of our own; the encoding is tested without, too.
fn may_unshare() -> bool {
    let tried = std::process::Command::new(NAMESPACE[0]).args(&NAMESPACE[1..]).arg("true").output();
    tried.is_ok_and(|output| output.status.success())
}

/// John can send, Jane was never connected.
async fn one_of_two_connected(world: &World) -> Config {
    let config = company::config(world);
    for mailbox in [NOTIFICATIONS, JOHN] {
        config.connect(mailbox, &world.entra.add_mailbox(mailbox)).await.success();
    }
    config
}

async fn send_as_john(relay: &Relay) {
    let reply = relay.send("b@example.com", &["a@x.test"], &message(JOHN, "a@x.test", "1@t", "Hi")).await;
    assert_eq!(reply.code, 250, "{reply:?}");
}

type Entry = BTreeMap<String, String>;

/// Waits for an event of a mailbox.
async fn event(what: &str, mailbox: &str, entries: impl Fn() -> Vec<Entry>) -> Entry {
    eventually(SOON, &format!("{what} of {mailbox}"), || {
        let entries = entries();
        let is_it =
            |entry: &&Entry| entry["event"] == what && entry.get("mailbox").is_some_and(|m| m == mailbox);
        entries.iter().find(is_it).cloned().ok_or(entries)
    })
    .await
}

#[tokio::test]
async fn json_is_one_object_a_line_from_the_first_to_the_last() {
    let world = World::start().await;
    let mut config = one_of_two_connected(&world).await;
    config.text("log", "format", "json");
    let mut relay = config.start().await;
    send_as_john(&relay).await;
    let read = |line: &String| -> Entry {
        let object: serde_json::Map<String, serde_json::Value> =
            serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        let text = |value: serde_json::Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        object.into_iter().map(|(key, value)| (key, text(value))).collect()
    };
    let entries = || relay.log().iter().map(read).collect();
    let sent = event("sent", JOHN, entries).await;
    assert_eq!((sent["level"].as_str(), sent["to"].as_str()), ("INFO", "a@x.test"));
    assert!(sent["timestamp"].ends_with('Z') && sent["id"].len() > 5, "{sent:?}");
    let failed = event("token failed", JANE, entries).await;
    assert_eq!((failed["level"].as_str(), failed["class"].as_str()), ("ERROR", "consent"));
    assert!(failed["advice"].contains("outlook-relay connect"), "{failed:?}");
    assert_eq!(relay.terminate(SOON).await, Some(0));
    let log = relay.log();
    assert_eq!(read(log.last().expect("a line"))["event"], "stopped");
    log.iter().map(read).for_each(drop);
}

#[tokio::test(flavor = "multi_thread")]
async fn under_systemd_the_journal_gets_fields_and_priorities() {
    if !may_unshare() {
        return;
    }
    let world = World::start().await;
    let mut config = one_of_two_connected(&world).await;
    let socket = config.dir().join("journal");
    let journal = UnixDatagram::bind(&socket).unwrap();
    let entries = Arc::new(Mutex::new(Vec::<Entry>::new()));
    let collected = Arc::clone(&entries);
    // Ends with the tests: nothing tells a datagram socket that nobody writes to it any more.
    std::thread::spawn(move || {
        let mut datagram = vec![0; 256 * 1024];
        while let Ok(size) = journal.recv(&mut datagram) {
            let text = String::from_utf8_lossy(&datagram[..size]).into_owned();
            let fields = text.lines().filter_map(|line| line.split_once('='));
            // As the other formats name them.
            let fields = fields.map(|(name, value)| (name.to_lowercase(), value.to_owned()));
            let entry: Entry = fields.collect();
            if !entry.is_empty() {
                collected.lock().unwrap().push(entry);
            }
        }
    });
    let link = format!(
        "mount -t tmpfs tmpfs /run; mkdir -p /run/systemd/journal; ln -s {} /run/systemd/journal/socket;",
        socket.display()
    );
    behind(&mut config, true, &link);
    let mut relay = config.start().await;
    send_as_john(&relay).await;
    let seen = || entries.lock().unwrap().clone();
    let sent = event("sent", JOHN, seen).await;
    assert_eq!((sent["priority"].as_str(), sent["to"].as_str()), ("6", "a@x.test"));
    assert_eq!(sent["syslog_identifier"], "outlook-relay");
    let failed = event("token failed", JANE, seen).await;
    assert_eq!((failed["priority"].as_str(), failed["class"].as_str()), ("3", "consent"));
    let line = &failed["message"];
    assert!(line.starts_with("token failed mailbox=jane@example.com part=\"token\" class=consent"), "{line}");
    assert!(line.contains("advice=\"run `outlook-relay connect jane@example.com`"), "{line}");
    assert_eq!(relay.terminate(SOON).await, Some(0));
    assert_eq!(relay.log(), Vec::<String>::new(), "what the journal has is not said twice");
    assert!(seen().iter().any(|entry| entry["event"] == "stopped"));
}

#[tokio::test]
async fn a_journal_out_of_reach_is_said_and_the_log_goes_on_as_text() {
    if !may_unshare() {
        return;
    }
    let world = World::start().await;
    let mut config = one_of_two_connected(&world).await;
    behind(&mut config, true, "mount -t tmpfs tmpfs /run;");
    let relay = config.start().await;
    let first = relay.wait_for_log("journal out of reach").await;
    // Whoever reads our stderr adds the time.
    assert!(first.starts_with(" WARN journal out of reach error=No such file or directory"), "{first}");
    assert!(relay.wait_for_log("ready").await.starts_with(" INFO ready version="));
}

#[tokio::test]
async fn why_it_does_not_start_is_an_error_in_the_journal() {
    let mut config = Config::new();
    config.text("log", "format", "xml");
    config.text("submission", "color", "red");
    behind(&mut config, false, "");
    let output = config.cli(&["run"]).await;
    assert_eq!(output.code, Some(78), "{output:?}");
    assert!(output.stderr.lines().count() > 1);
    assert!(output.stderr.lines().all(|line| line.starts_with("<3>")), "{}", output.stderr);
    assert!(output.stderr.contains("log.format: unknown variant"), "{}", output.stderr);
}
