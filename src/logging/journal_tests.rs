use super::*;
use std::collections::BTreeMap;
use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};

/// An entry as the journal reads it.
pub(in crate::logging) fn entry(mut datagram: &[u8]) -> BTreeMap<String, String> {
    let mut entry = BTreeMap::new();
    while !datagram.is_empty() {
        let end = datagram.iter().position(|&byte| byte == b'\n').unwrap();
        let line = std::str::from_utf8(&datagram[..end]).unwrap();
        datagram = &datagram[end + 1..];
        let (name, value) = match line.split_once('=') {
            Some((name, value)) => (name, value.to_owned()),
            None => {
                let (length, rest) = datagram.split_at(8);
                let length = usize::try_from(u64::from_le_bytes(length.try_into().unwrap())).unwrap();
                let (value, rest) = rest.split_at(length);
                datagram = rest.strip_prefix(b"\n").unwrap();
                (line, String::from_utf8(value.to_vec()).unwrap())
            }
        };
        assert!(name.starts_with(|c: char| c.is_ascii_uppercase()), "{name}");
        assert!(name.chars().all(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_'), "{name}");
        assert!(name.len() <= 64, "{name}");
        assert_eq!(entry.insert(name.to_owned(), value), None, "{name} twice");
    }
    entry
}

/// Reads every event back as an entry.
struct Read(std::sync::mpsc::Sender<BTreeMap<String, String>>);

impl<S: tracing::Subscriber> Layer<S> for Read {
    fn on_event(&self, event: &tracing::Event<'_>, _context: Context<'_, S>) {
        self.0.send(entry(&datagram(event.metadata(), &Record::of(event)))).unwrap();
    }
}

fn entries(work: impl FnOnce()) -> Vec<BTreeMap<String, String>> {
    let (sender, entries) = std::sync::mpsc::channel();
    // See logging::tests.
    let _second = tracing::Dispatch::new(tracing_subscriber::registry());
    tracing::subscriber::with_default(tracing_subscriber::registry().with(Read(sender)), work);
    entries.into_iter().collect()
}

#[test]
fn an_entry_has_the_line_the_priority_and_each_field() {
    let entries = entries(|| {
        let mailbox = "john@example.com";
        tracing::error!(target: "t", %mailbox, class = "consent", code = "AADSTS700082", message_id = "<a@b>", "token failed");
        tracing::warn!(target: "t", reply = "one\ntwo", "refused");
        tracing::info!(target: "t", "ready");
        tracing::debug!(target: "t", "a");
        tracing::trace!(target: "t", "b");
    });
    let expected = [
        ("EVENT", "token failed"),
        (
            "MESSAGE",
            "token failed mailbox=john@example.com class=\"consent\" code=\"AADSTS700082\" message_id=\"<a@b>\"",
        ),
        ("PRIORITY", "3"),
        ("SYSLOG_IDENTIFIER", "outlook-relay"),
        ("SYSLOG_FACILITY", "3"),
        ("TARGET", "t"),
        ("MAILBOX", "john@example.com"),
        ("CLASS", "consent"),
        ("CODE", "AADSTS700082"),
        ("RELAY_MESSAGE_ID", "<a@b>"),
    ];
    assert_eq!(entries[0], expected.map(|(name, value)| (name.to_owned(), value.to_owned())).into());
    assert_eq!(entries[1]["MESSAGE"], "refused reply=\"one\\ntwo\"");
    assert_eq!(entries[1]["REPLY"], "one\ntwo");
    let priorities: Vec<&str> = entries.iter().map(|entry| entry["PRIORITY"].as_str()).collect();
    assert_eq!(priorities, ["3", "4", "6", "7", "7"]);
}

#[test]
fn names_are_as_the_journal_takes_them() {
    for (field, expected) in [
        ("mailbox", Some("MAILBOX")),
        ("message_id", Some("RELAY_MESSAGE_ID")),
        ("_PID", Some("PID")),
        ("__9lives", Some("LIVES")),
        ("log.target", Some("LOG_TARGET")),
        ("syslog_identifier", Some("RELAY_SYSLOG_IDENTIFIER")),
        ("Größe", Some("GR__E")),
        ("§1", None),
    ] {
        assert_eq!(name(field).as_deref(), expected, "{field}");
    }
    assert_eq!(name(&"x".repeat(100)).unwrap().len(), LONGEST_NAME - 6);
}

#[test]
fn only_the_very_stream_is_the_journals() {
    let stat = rustix::fs::fstat(std::io::stderr()).unwrap();
    assert!(is_stderr(Some(&format!("{}:{}", stat.st_dev, stat.st_ino))));
    assert!(!is_stderr(Some(&format!("{}:{}", stat.st_dev, stat.st_ino + 1))));
    assert!(!is_stderr(Some("")));
    assert!(!is_stderr(None));
}
