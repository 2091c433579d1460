//! The log: one line per event, to stderr, where a person or a collector picks it up, or into systemd's journal.
//!
//! Whatever the format, the same filters stand before it: [`HELD`] keeps what could hold a secret out of all of them.

mod journal;
mod json;
mod record;

use crate::clock;
use crate::counters::Counters;
use crate::section::Section;
use jiff::tz::TimeZone;
use journal::Journal;
use record::Record;
use serde::Deserialize;
use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write as _};
use std::path::Path;
use std::time::Duration;
use tracing::level_filters::LevelFilter;
use tracing::{Event, Subscriber};
use tracing_subscriber::Registry;
use tracing_subscriber::field::RecordFields;
use tracing_subscriber::filter::{FilterExt as _, Targets};
use tracing_subscriber::fmt::format::{FormatEvent, FormatFields, Writer};
use tracing_subscriber::fmt::time::FormatTime;
use tracing_subscriber::fmt::{self, FmtContext, MakeWriter};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt as _;

/// How the time of an event is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Time {
    /// `14:05:09`, in the machine's time zone: for a person at a terminal.
    OfDay,
    /// `2026-11-21T13:05:09.123Z`.
    Full,
}

impl FormatTime for Time {
    fn format_time(&self, writer: &mut Writer<'_>) -> std::fmt::Result {
        let now = clock::now();
        match self {
            Self::OfDay => write!(writer, "{}", now.to_zoned(TimeZone::system()).strftime("%H:%M:%S")),
            Self::Full => write!(writer, "{now:.3}"),
        }
    }
}

/// What is logged when `RUST_LOG` says nothing: our own events from INFO up, others' warnings.
const DEFAULT: &str = "warn,outlook_relay=info";

/// Crates that log credentials or whole mails at their most talkative levels: async-imap logs commands at TRACE, hyper
/// and reqwest log headers, rustls logs bytes. A name stands for all targets that begin with it.
const HELD: [(&str, LevelFilter); 6] = [
    ("async_imap", LevelFilter::WARN),
    ("imap_proto", LevelFilter::WARN),
    ("hyper", LevelFilter::INFO),
    ("reqwest", LevelFilter::INFO),
    ("lettre", LevelFilter::WARN),
    ("rustls", LevelFilter::WARN),
];

/// The `[log]` section.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// How events are written.
    pub format: Format,
}

impl Config {
    /// Reads the section.
    pub fn read(section: &mut Section<'_>) -> Self {
        Self { format: section.get_or("format", Format::default()) }
    }
}

/// How events are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// Into the journal where stderr is the journal's, as text elsewhere.
    #[default]
    Auto,
    /// As lines of text on stderr, with colours on a terminal.
    Text,
    /// Into systemd's journal, with level and fields.
    Journal,
    /// As one JSON object a line, on stderr.
    Json,
}

/// Where events go, and in which words.
#[derive(Debug)]
enum Output {
    /// The time is left out where whoever reads stderr adds it.
    Text {
        time: Option<Time>,
        coloured: bool,
    },
    Journal(Journal),
    Json,
}

/// What to do about an event that should never come.
pub const DEFECT: &str = "this is a defect of the relay: report it with the log around this line";

/// Addresses that an event names; of the others it only says how many there are.
const NAMED: usize = 3;

/// The first few of many addresses, for the field `to`.
pub fn names(addresses: &[String]) -> String {
    let named = addresses.iter().take(NAMED).map(String::as_str).collect::<Vec<_>>().join(", ");
    match addresses.len().saturating_sub(NAMED) {
        0 => named,
        more => format!("{named} and {more} more"),
    }
}

/// A time in seconds, to the millisecond, for the field `seconds`.
pub fn seconds(time: Duration) -> f64 {
    Duration::from_millis(u64::try_from(time.as_millis()).unwrap_or(u64::MAX)).as_secs_f64()
}

/// Starts logging. What is logged is counted, too.
pub fn start(config: &Config) -> Counters {
    let wanted = std::env::var("RUST_LOG").ok().filter(|filter| !filter.trim().is_empty());
    let wanted = wanted.as_deref().unwrap_or(DEFAULT);
    let counters = Counters::default();
    let ours = Targets::new().with_target("outlook_relay", LevelFilter::INFO);
    let (output, missed) = output(config.format);
    let subscriber = subscriber(wanted, output, io::stderr);
    // A second start keeps the first: only tests could do that.
    drop(subscriber.with(counters.clone().with_filter(ours)).try_init());
    if let Some(error) = missed {
        let advice = "see whether systemd-journald runs; or set format in [log] to \"text\"";
        tracing::warn!(%error, path = journal::SOCKET, advice, "journal out of reach");
    }
    counters
}

/// What a command says of its failure on stderr. Into the journal it goes with the priority of an error (sd-daemon(3)).
pub fn complaint(text: &str) -> String {
    let prefix = if is_journal() { "<3>" } else { "" };
    text.lines().fold(String::new(), |mut all, line| {
        // Writing to a String cannot fail.
        let _ = writeln!(all, "{prefix}{line}");
        all
    })
}

/// Whether the journal reads our stderr.
fn is_journal() -> bool {
    journal::is_stderr(std::env::var("JOURNAL_STREAM").ok().as_deref())
}

/// What a format means here; and why the journal cannot be reached, where it is wanted.
fn output(format: Format) -> (Output, Option<io::Error>) {
    let is_journal = is_journal();
    let is_plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let is_terminal = io::stderr().is_terminal();
    let time = if is_terminal { Time::OfDay } else { Time::Full };
    let text = Output::Text { time: (!is_journal).then_some(time), coloured: is_terminal && !is_plain };
    match format {
        Format::Json => (Output::Json, None),
        Format::Auto if !is_journal => (text, None),
        Format::Text => (text, None),
        Format::Auto | Format::Journal => match Journal::open(Path::new(journal::SOCKET)) {
            Ok(journal) => (Output::Journal(journal), None),
            Err(error) => (text, Some(error)),
        },
    }
}

/// Writes what both `wanted`, in the words of `RUST_LOG`, and [`HELD`] let through. Two filters: in one of them a
/// directive for a part of a crate would outrank the one for the crate.
fn subscriber<W>(
    wanted: &str,
    output: Output,
    writer: W,
) -> impl Subscriber + for<'s> LookupSpan<'s> + Send + Sync
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let lines = fmt::layer()
        .with_target(false)
        // It would say so on stderr, and panic since it cannot: a full disk or a reader that is gone must not end us.
        .log_internal_errors(false)
        .fmt_fields(Line);
    let lines: Box<dyn Layer<Registry> + Send + Sync> = match output {
        Output::Text { time: Some(time), coloured } => {
            lines.with_ansi(coloured).with_writer(writer).with_timer(time).boxed()
        }
        Output::Text { time: None, coloured } => {
            lines.with_ansi(coloured).with_writer(writer).without_time().boxed()
        }
        Output::Json => lines.with_ansi(false).with_writer(writer).event_format(Object).boxed(),
        Output::Journal(journal) => ToJournal { journal, writer }.boxed(),
    };
    let held = Targets::new().with_default(LevelFilter::TRACE).with_targets(HELD);
    tracing_subscriber::registry().with(lines.with_filter(directives(wanted).and(held)))
}

/// What `RUST_LOG` asks for: a level, or `target=level`, separated by commas. What makes no sense asks for nothing.
fn directives(wanted: &str) -> Targets {
    let each = wanted.split(',').filter_map(|directive| directive.trim().parse::<Targets>().ok());
    each.fold(Targets::new(), |all, one| {
        let all = match one.default_level() {
            Some(level) => all.with_default(level),
            None => all,
        };
        all.with_targets(one)
    })
}

/// Fields as [`Record::line`] writes them.
struct Line;

impl<'w> FormatFields<'w> for Line {
    fn format_fields<R: RecordFields>(&self, mut writer: Writer<'w>, fields: R) -> std::fmt::Result {
        let line = Record::of(&fields).line(writer.has_ansi_escapes());
        writer.write_str(&line)
    }
}

/// Events as [`json::object`] writes them.
struct Object;

impl<S, N> FormatEvent<S, N> for Object
where
    S: Subscriber + for<'s> LookupSpan<'s>,
    N: for<'w> FormatFields<'w> + 'static,
{
    fn format_event(
        &self,
        _context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> std::fmt::Result {
        writeln!(writer, "{}", json::object(clock::now(), event.metadata(), &Record::of(event)))
    }
}

/// Hands events to the journal; what it does not take becomes a line of text.
struct ToJournal<W> {
    journal: Journal,
    writer: W,
}

impl<S: Subscriber, W: for<'w> MakeWriter<'w> + 'static> Layer<S> for ToJournal<W> {
    fn on_event(&self, event: &Event<'_>, _context: Context<'_, S>) {
        let (metadata, record) = (event.metadata(), Record::of(event));
        if self.journal.send(metadata, &record).is_err() {
            let line = format!("{:>5} {}\n", metadata.level().as_str(), record.line(false));
            // There is nobody left to be told.
            drop(self.writer.make_writer().write_all(line.as_bytes()));
        }
    }
}

#[cfg(test)]
mod tests;
