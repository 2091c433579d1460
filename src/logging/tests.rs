use super::*;
use std::collections::BTreeMap;
use std::os::unix::net::UnixDatagram;

#[test]
fn many_addresses_make_a_short_text() {
    let all: Vec<String> = ["a@x", "b@x", "c@x", "d@x", "e@x"].map(str::to_owned).to_vec();
    assert_eq!(names(&all[..1]), "a@x");
    assert_eq!(names(&all[..3]), "a@x, b@x, c@x");
    assert_eq!(names(&all), "a@x, b@x, c@x and 2 more");
}

/// A journal that a test holds, and what it was handed, entry by entry.
struct Desk {
    folder: tempfile::TempDir,
    entries: std::thread::JoinHandle<Vec<BTreeMap<String, String>>>,
}

impl Desk {
    fn open() -> (Self, Journal) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let socket = UnixDatagram::bind(&path).unwrap();
        // The queue of a socket is short: it is emptied while events come.
        let entries = std::thread::spawn(move || {
            let mut entries = Vec::new();
            let mut datagram = vec![0; 256 * 1024];
            loop {
                let size = socket.recv(&mut datagram).unwrap();
                match &datagram[..size] {
                    b"end" => return entries,
                    b"" => {}
                    entry => entries.push(journal::tests::entry(entry)),
                }
            }
        });
        let journal = Journal::open(&path).unwrap();
        (Self { folder, entries }, journal)
    }

    fn close(self) -> Vec<BTreeMap<String, String>> {
        let end = UnixDatagram::unbound().unwrap();
        end.send_to(b"end", self.folder.path().join("socket")).unwrap();
        self.entries.join().unwrap()
    }
}

/// Runs `work` with a log in the given words; gives what was written as lines.
fn logged(wanted: &str, output: Output, work: impl FnOnce()) -> String {
    let file = tempfile::NamedTempFile::new().unwrap();
    let subscriber = subscriber(wanted, output, file.reopen().unwrap());
    // With a single subscriber tracing asks the thread that meets an event first, which may be another test's,
    // whether it is wanted at all.
    let _second = tracing::Dispatch::new(tracing_subscriber::registry());
    tracing::subscriber::with_default(subscriber, work);
    std::fs::read_to_string(file.path()).unwrap()
}

fn text() -> Output {
    Output::Text { time: None, coloured: false }
}

/// An event at every level from a few targets, named after both.
fn say_much() {
    macro_rules! say {
        ($($target:literal)*) => {$(
            tracing::trace!(target: $target, concat!("trace ", $target));
            tracing::debug!(target: $target, concat!("debug ", $target));
            tracing::info!(target: $target, concat!("info ", $target));
            tracing::warn!(target: $target, concat!("warn ", $target));
        )*};
    }
    say!("async_imap::client" "hyper::proto::h1" "hyper_util::client" "rustls::conn");
    say!("tokio" "outlook_relay::tokens");
}

/// What comes through of them in each format, which must be the same: level and target, in order.
fn levels(wanted: &str) -> Vec<(String, String)> {
    let split = |event: &str| {
        let (level, target) = event.split_once(' ').unwrap();
        (level.to_owned(), target.to_owned())
    };
    let lines = logged(wanted, text(), say_much);
    let lines: Vec<_> =
        lines.lines().map(|line| split(line.trim_start().split_once(' ').unwrap().1)).collect();
    let objects = logged(wanted, Output::Json, say_much);
    let event = |line: &str| {
        let object: serde_json::Value = serde_json::from_str(line).unwrap();
        let event = split(object["event"].as_str().unwrap());
        assert!(object["level"] == event.0.to_uppercase() && object["target"] == event.1, "{line}");
        event
    };
    assert_eq!(lines, objects.lines().map(event).collect::<Vec<_>>(), "{wanted}");
    let (desk, journal) = Desk::open();
    assert_eq!(logged(wanted, Output::Journal(journal), say_much), "");
    let entries: Vec<_> = desk.close().iter().map(|entry| split(&entry["EVENT"])).collect();
    assert_eq!(lines, entries, "{wanted}");
    lines
}

/// As [`levels`] gives them.
fn named<const N: usize>(levels: [(&str, &str); N]) -> Vec<(String, String)> {
    levels.map(|(level, target)| (level.to_owned(), target.to_owned())).to_vec()
}

#[test]
fn nothing_in_rust_log_outranks_the_hold_on_talkative_crates() {
    let held = named([
        ("warn", "async_imap::client"),
        ("info", "hyper::proto::h1"),
        ("warn", "hyper::proto::h1"),
        ("info", "hyper_util::client"),
        ("warn", "hyper_util::client"),
        ("warn", "rustls::conn"),
    ]);
    let wanted = [
        "trace",
        "async_imap=trace,hyper=trace,hyper_util=trace,rustls=trace",
        "async_imap::client=trace,hyper::proto=trace,hyper_util::client=trace,rustls::conn=trace",
        "trace,async_imap::client=trace,hyper::proto::h1=trace,[{}]=trace",
    ];
    for wanted in wanted {
        let (relays, others): (Vec<_>, Vec<_>) = levels(wanted)
            .into_iter()
            .partition(|(_, target)| ["tokio", "outlook_relay::tokens"].contains(&target.as_str()));
        assert!(others.iter().all(|line| held.contains(line)), "{wanted}: {others:?}");
        assert_eq!(relays.is_empty(), !wanted.starts_with("trace"), "{wanted}");
    }
    assert_eq!(levels("trace").len(), held.len() + 8, "all else comes through");
}

#[test]
fn rust_log_may_ask_for_less_and_says_nothing_of_others_by_default() {
    assert_eq!(
        levels("error,hyper=warn,outlook_relay=error"),
        named([("warn", "hyper::proto::h1"), ("warn", "hyper_util::client")])
    );
    assert_eq!(
        levels(DEFAULT),
        named([
            ("warn", "async_imap::client"),
            ("warn", "hyper::proto::h1"),
            ("warn", "hyper_util::client"),
            ("warn", "rustls::conn"),
            ("warn", "tokio"),
            ("info", "outlook_relay::tokens"),
            ("warn", "outlook_relay::tokens"),
        ])
    );
}

/// An event as they are, but for a hostile reply.
fn say_one() {
    let mailbox = "john@example.com";
    let reply = "454 4.7.0 \u{1b}[2J\r\nERROR forged";
    tracing::error!(%mailbox, code = "454", reply, shown = %reply, tries = 3, unknown = true, seconds = 0.5, "deferred");
}

#[test]
fn a_line_holds_every_field_and_nothing_starts_another() {
    let fields = "deferred mailbox=john@example.com code=\"454\" reply=\"454 4.7.0 \\u{1b}[2J\\r\\nERROR forged\" \
                  shown=454 4.7.0 \\u{1b}[2J\\r\\nERROR forged tries=3 unknown=true seconds=0.5";
    assert_eq!(logged("info", text(), say_one), format!("ERROR {fields}\n"));
    let timed = |time| {
        let line = logged("info", Output::Text { time: Some(time), coloured: false }, say_one);
        let (time, line) = line.split_once(' ').unwrap();
        assert_eq!(line, format!("ERROR {fields}\n"));
        time.to_owned()
    };
    assert!(timed(Time::Full).parse::<jiff::Timestamp>().is_ok());
    assert!(timed(Time::OfDay).parse::<jiff::civil::Time>().is_ok() && timed(Time::OfDay).len() == 8);
    let coloured = logged("info", Output::Text { time: None, coloured: true }, say_one);
    assert_eq!(coloured.lines().count(), 1);
    let mut plain = coloured.clone();
    for colour in ["\u{1b}[3m", "\u{1b}[2m", "\u{1b}[0m", "\u{1b}[31m"] {
        assert!(plain.contains(colour), "{coloured:?}");
        plain = plain.replace(colour, "");
    }
    assert_eq!(plain, format!("ERROR {fields}\n"));

    let (desk, journal) = Desk::open();
    logged("info", Output::Journal(journal), say_one);
    let entries = desk.close();
    assert_eq!(entries.len(), 1);
    assert_eq!(entries[0]["MESSAGE"], fields);
}

#[test]
fn a_value_of_any_size_makes_a_short_line() {
    let long = "ä".repeat(1_000_000);
    let say = || tracing::warn!(target: "x", a = long, b = %long, c = ?long, d = 1, "{long}");
    for output in [text(), Output::Json] {
        let line = logged("info", output, say);
        assert!(line.len() < 20_000 && line.lines().count() == 1, "{}", line.len());
    }
    let (desk, journal) = Desk::open();
    assert_eq!(logged("info", Output::Journal(journal), say), "");
    let entries = desk.close();
    assert!(entries[0].values().map(String::len).sum::<usize>() < 50_000);
    assert_eq!(entries[0]["D"], "1");
    assert!(entries[0]["A"].ends_with("ä…"));
}

#[test]
fn an_object_has_its_fields_flat_with_their_types() {
    let line = logged("info", Output::Json, say_one);
    let object: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert!(object["timestamp"].as_str().unwrap().parse::<jiff::Timestamp>().is_ok());
    let reply = "454 4.7.0 \u{1b}[2J\r\nERROR forged";
    let expected = serde_json::json!({
        "timestamp": object["timestamp"], "level": "ERROR", "event": "deferred", "mailbox": "john@example.com",
        "code": "454", "reply": reply, "shown": reply, "tries": 3, "unknown": true, "seconds": 0.5,
        "target": "outlook_relay::logging::tests",
    });
    assert_eq!(object, expected);
    assert!(line.starts_with("{\"timestamp\":\"") && line.ends_with("}\n") && line.lines().count() == 1);
    let clash = logged("info", Output::Json, || {
        tracing::info!(target: "x", level = "of the sea", event = 1, far = f64::INFINITY, "clash");
    });
    let clash: serde_json::Value = serde_json::from_str(&clash).unwrap();
    assert_eq!(clash["level"], "INFO");
    assert_eq!((&clash["level_"], &clash["event_"]), (&"of the sea".into(), &1.into()));
    assert_eq!(clash["far"], "inf");
}

#[test]
fn what_the_journal_does_not_take_is_a_line() {
    let (desk, journal) = Desk::open();
    let folder = desk.folder.path().to_owned();
    let said = logged("info", Output::Journal(journal), || {
        tracing::info!("one");
        std::fs::rename(folder.join("socket"), folder.join("away")).unwrap();
        tracing::warn!(mailbox = "j@x", "two");
        std::fs::rename(folder.join("away"), folder.join("socket")).unwrap();
        tracing::info!("three");
    });
    assert_eq!(said, " WARN two mailbox=\"j@x\"\n");
    let entries: Vec<_> = desk.close().iter().map(|entry| entry["EVENT"].clone()).collect();
    assert_eq!(entries, ["one", "three"]);
}

#[test]
fn a_complaint_ends_each_line() {
    // The tests' stderr may be anything; the environment says nothing of a journal unless it is one.
    let lines = complaint("a\nb");
    assert!(["a\nb\n", "<3>a\n<3>b\n"].contains(&lines.as_str()), "{lines:?}");
}

/// The last string literal of each event's macro in a source, with the macro's name.
fn events_in(source: &str) -> Vec<(&'static str, String)> {
    let mut events = Vec::new();
    for level in ["info", "warn", "error"] {
        for (start, macro_name) in source.match_indices(&format!("tracing::{level}!(")) {
            let mut rest = source[start + macro_name.len()..].chars();
            let (mut depth, mut last) = (1, String::new());
            while depth > 0 {
                match rest.next().unwrap() {
                    '(' => depth += 1,
                    ')' => depth -= 1,
                    '"' => {
                        last.clear();
                        while let Some(c) = rest.next().filter(|&c| c != '"') {
                            last.push(c);
                            if c == '\\' {
                                last.extend(rest.next());
                            }
                        }
                    }
                    _ => {}
                }
            }
            events.push((level, last));
        }
    }
    events
}

/// Every source file of the program, without its tests.
fn sources(folder: &Path, found: &mut Vec<String>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if path.is_dir() {
            sources(&path, found);
        } else if name.ends_with(".rs") && !name.ends_with("tests.rs") {
            let source = std::fs::read_to_string(&path).unwrap();
            found.push(source.split("#[cfg(test)]\nmod tests {").next().unwrap().to_owned());
        }
    }
}

#[test]
fn the_readme_tells_of_every_event_and_of_no_other() {
    let readme = include_str!("../../README.md");
    let table = readme.split_once("| event | level | means | what to do |\n").unwrap().1;
    let rows = table.lines().skip(1).take_while(|line| line.starts_with('|'));
    let told: std::collections::BTreeSet<String> = rows
        .flat_map(|row| row.split('|').nth(1).unwrap().split('`').skip(1).step_by(2))
        .map(str::to_owned)
        .collect();
    let mut said: std::collections::BTreeSet<String> = [
        // A trouble's, and those of what expires, which are told by a variable.
        "token failed",
        "mailbox paused",
        "mailbox recovered",
        "odoo failed",
        "odoo recovered",
        "store failed",
        "store recovered",
        "client secret expires",
        "client certificate expires",
    ]
    .map(str::to_owned)
    .into();
    let mut files = Vec::new();
    sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut files);
    let events = files.iter().flat_map(|source| events_in(source));
    said.extend(events.map(|(_, event)| event).filter(|event| !event.starts_with('{')));
    assert!(said.len() > 30, "were they found?");
    assert_eq!(told, said);
    for counted in &crate::counters::COUNTED {
        assert!(told.contains(counted.event), "{}", counted.event);
    }
}
