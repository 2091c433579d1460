//! The log: one line per event, to stderr, where systemd's journal or a person picks it up.

use crate::counters::Counters;
use std::io::IsTerminal;
use tracing::Subscriber;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::{EnvFilter, FilterExt as _, Targets};
use tracing_subscriber::fmt::{self, MakeWriter};
use tracing_subscriber::layer::{Layer as _, SubscriberExt as _};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt as _;

/// What is logged when `RUST_LOG` says nothing: our own events from INFO up, others' warnings.
const DEFAULT: &str = "warn,outlook_relay=info";

/// Crates that log credentials or whole mails at their most talkative levels: async-imap logs commands at TRACE, hyper
/// and reqwest log headers, sqlx logs statements, rustls logs bytes. A name stands for all targets that begin with it.
const HELD: [(&str, LevelFilter); 7] = [
    ("async_imap", LevelFilter::WARN),
    ("imap_proto", LevelFilter::WARN),
    ("hyper", LevelFilter::INFO),
    ("reqwest", LevelFilter::INFO),
    ("sqlx", LevelFilter::WARN),
    ("lettre", LevelFilter::WARN),
    ("rustls", LevelFilter::WARN),
];

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

/// Starts logging to stderr; under systemd the journal adds the time itself. What is logged is counted, too.
pub fn start() -> Counters {
    let wanted = std::env::var("RUST_LOG").ok().filter(|filter| !filter.trim().is_empty());
    let wanted = wanted.as_deref().unwrap_or(DEFAULT);
    let timed = std::env::var_os("JOURNAL_STREAM").is_none();
    let counters = Counters::default();
    let ours = Targets::new().with_target("outlook_relay", LevelFilter::INFO);
    let subscriber = subscriber(wanted, timed, std::io::stderr().is_terminal(), std::io::stderr);
    // A second start keeps the first: only tests could do that.
    drop(subscriber.with(counters.clone().with_filter(ours)).try_init());
    counters
}

/// Writes what both `wanted`, in the words of `RUST_LOG`, and [`HELD`] let through. Two filters: in one of them a
/// directive for a part of a crate would outrank the one for the crate.
fn subscriber<W>(
    wanted: &str,
    timed: bool,
    coloured: bool,
    writer: W,
) -> impl Subscriber + for<'s> LookupSpan<'s> + Send + Sync
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let lines = fmt::layer()
        .with_target(false)
        .with_writer(writer)
        // It would say so on stderr, and panic since it cannot: a full disk or a reader that is gone must not end us.
        .log_internal_errors(false)
        .with_ansi(coloured);
    let lines = if timed { lines.boxed() } else { lines.without_time().boxed() };
    let held = Targets::new().with_default(LevelFilter::TRACE).with_targets(HELD);
    let wanted = EnvFilter::builder().parse_lossy(wanted);
    tracing_subscriber::registry().with(lines.with_filter(wanted.and(held)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_addresses_make_a_short_text() {
        let all: Vec<String> = ["a@x", "b@x", "c@x", "d@x", "e@x"].map(str::to_owned).to_vec();
        assert_eq!(names(&all[..1]), "a@x");
        assert_eq!(names(&all[..3]), "a@x, b@x, c@x");
        assert_eq!(names(&all), "a@x, b@x, c@x and 2 more");
    }

    /// What comes through of events at every level from a few targets.
    fn written(wanted: &str) -> String {
        let file = tempfile::NamedTempFile::new().unwrap();
        let subscriber = subscriber(wanted, false, false, file.reopen().unwrap());
        // With a single subscriber tracing asks the thread that meets an event first, which may be another test's,
        // whether it is wanted at all.
        let _second = tracing::Dispatch::new(tracing_subscriber::registry());
        tracing::subscriber::with_default(subscriber, || {
            macro_rules! say {
                ($($target:literal)*) => {$(
                    tracing::trace!(target: $target, concat!("trace ", $target));
                    tracing::debug!(target: $target, concat!("debug ", $target));
                    tracing::info!(target: $target, concat!("info ", $target));
                    tracing::warn!(target: $target, concat!("warn ", $target));
                )*};
            }
            say!("async_imap::client" "hyper::proto::h1" "hyper_util::client" "rustls::conn" "sqlx::query");
            say!("tokio" "outlook_relay::tokens");
        });
        std::fs::read_to_string(file.path()).unwrap()
    }

    /// Each line's level and target, in order.
    fn levels(written: &str) -> Vec<(&str, &str)> {
        written
            .lines()
            .map(|line| line.trim_start().split_once(' ').unwrap().1.split_once(' ').unwrap())
            .collect()
    }

    #[test]
    fn nothing_in_rust_log_outranks_the_hold_on_talkative_crates() {
        let held = [
            ("warn", "async_imap::client"),
            ("info", "hyper::proto::h1"),
            ("warn", "hyper::proto::h1"),
            ("info", "hyper_util::client"),
            ("warn", "hyper_util::client"),
            ("warn", "rustls::conn"),
            ("warn", "sqlx::query"),
        ];
        let wanted = [
            "trace",
            "async_imap=trace,hyper=trace,hyper_util=trace,rustls=trace,sqlx=trace",
            "async_imap::client=trace,hyper::proto=trace,hyper_util::client=trace,rustls::conn=trace,sqlx::query=trace",
            "trace,async_imap::client=trace,hyper::proto::h1=trace,[{}]=trace",
        ];
        for wanted in wanted {
            let written = written(wanted);
            let others = levels(&written);
            let (relays, others): (Vec<_>, Vec<_>) = others
                .into_iter()
                .partition(|(_, target)| ["tokio", "outlook_relay::tokens"].contains(target));
            assert!(others.iter().all(|line| held.contains(line)), "{wanted}: {others:?}");
            assert_eq!(relays.is_empty(), !wanted.starts_with("trace"), "{wanted}");
        }
        assert_eq!(levels(&written("trace")).len(), held.len() + 8, "all else comes through");
    }

    #[test]
    fn rust_log_may_ask_for_less_and_says_nothing_of_others_by_default() {
        assert_eq!(
            levels(&written("error,hyper=warn,outlook_relay=error")),
            [("warn", "hyper::proto::h1"), ("warn", "hyper_util::client"),]
        );
        let by_default = written(DEFAULT);
        let by_default = levels(&by_default);
        assert!(by_default.contains(&("info", "outlook_relay::tokens")));
        assert!(!by_default.contains(&("debug", "outlook_relay::tokens")));
        assert!(
            by_default.contains(&("warn", "tokio")) && !by_default.contains(&("info", "hyper::proto::h1"))
        );
    }
}
