//! The log: one line per event, to stderr, where systemd's journal or a person picks it up.

use std::io::IsTerminal;
use tracing_subscriber::EnvFilter;

/// What is logged when `RUST_LOG` says nothing: our own events from INFO up, others' warnings.
const DEFAULT: &str = "warn,outlook_relay=info";

/// Crates that log credentials or whole mails at their most talkative levels, held down whatever `RUST_LOG` says:
/// async-imap logs commands at TRACE, hyper and reqwest log headers, sqlx logs statements, rustls logs bytes.
const NEVER_BELOW: [&str; 8] = [
    "async_imap=warn",
    "imap_proto=warn",
    "hyper=info",
    "hyper_util=info",
    "reqwest=info",
    "sqlx=warn",
    "lettre=warn",
    "rustls=warn",
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

/// Starts logging to stderr; under systemd the journal adds the time itself.
pub fn start() {
    let wanted = std::env::var("RUST_LOG").ok().filter(|filter| !filter.trim().is_empty());
    let mut filter = EnvFilter::builder().parse_lossy(wanted.as_deref().unwrap_or(DEFAULT));
    for directive in NEVER_BELOW {
        if let Ok(directive) = directive.parse() {
            filter = filter.add_directive(directive);
        }
    }
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_target(false)
        .with_writer(std::io::stderr)
        // It would say so on stderr, and panic since it cannot: a full disk or a reader that is gone must not end us.
        .log_internal_errors(false)
        .with_ansi(std::io::stderr().is_terminal());
    let started = if std::env::var_os("JOURNAL_STREAM").is_some() {
        builder.without_time().try_init()
    } else {
        builder.try_init()
    };
    // A second start keeps the first: only tests could do that.
    drop(started);
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
}
