//! What became of messages that a person named: told of each, and counted.

use super::{say, say_json};
use std::fmt::Display;
use std::io::Write;
use std::process::ExitCode;

/// What became of a message that something was to be done to.
#[derive(Debug, serde::Serialize)]
pub(super) struct Done<Id> {
    pub(super) id: Id,
    pub(super) done: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) reason: Option<&'static str>,
}

/// Says why something was not done, on stderr, and to how many it was: "2 messages cancelled." Well only if it was to all.
pub(super) fn tell<Id: Display + serde::Serialize>(
    all: &[Done<Id>],
    deed: &str,
    json: bool,
) -> anyhow::Result<ExitCode> {
    let left = all.iter().filter(|one| !one.done).count();
    if json {
        say_json(&all)?;
    } else {
        for Done { id, reason, .. } in all {
            if let Some(reason) = reason {
                drop(writeln!(std::io::stderr(), "{id}: {reason}"));
            }
        }
        let count = all.len() - left;
        let plural = if count == 1 { "message" } else { "messages" };
        say(format_args!("{count} {plural} {deed}."))?;
    }
    Ok(if left == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
