//! `check`: the configuration, offline.

use super::{say, say_json};
use crate::config::Config;
use crate::section::Mistake;
use serde::Serialize;
use std::collections::BTreeSet;
use std::path::Path;
use std::process::ExitCode;

/// The answer, as scripts read it.
#[derive(Serialize)]
struct Answer<'a> {
    mailboxes: usize,
    inboxes: usize,
    apps: Vec<App<'a>>,
    warnings: &'a [Mistake],
}

/// An Azure app, and how the relay proves that it is that one.
#[derive(Serialize, PartialEq, Eq, PartialOrd, Ord)]
struct App<'a> {
    client_id: &'a str,
    credential: &'a str,
}

/// The mistakes were said while loading; what is left to say is that there are none, and what is odd all the same.
pub(super) fn check(config: &Config, file: &Path, json: bool) -> anyhow::Result<ExitCode> {
    let inboxes = config.mailboxes.iter().filter(|mailbox| mailbox.inbox).count();
    let apps: BTreeSet<App<'_>> = config
        .mailboxes
        .iter()
        .map(|mailbox| App {
            client_id: &mailbox.microsoft.client_id,
            credential: mailbox.microsoft.credential.describe(),
        })
        .collect();
    let answer = Answer {
        mailboxes: config.mailboxes.len(),
        inboxes,
        apps: apps.into_iter().collect(),
        warnings: &config.warnings,
    };
    if json {
        say_json(&answer)?;
        return Ok(ExitCode::SUCCESS);
    }
    let verdict = match answer.warnings.len() {
        0 => "well".to_owned(),
        1 => "usable, with 1 warning".to_owned(),
        count => format!("usable, with {count} warnings"),
    };
    let file = file.display();
    say(format_args!(
        "{file}: {verdict}: {} mailboxes, {inboxes} of them with their inbox",
        answer.mailboxes
    ))?;
    for App { client_id, credential } in &answer.apps {
        say(format_args!("app {client_id}: {credential}"))?;
    }
    for Mistake { line, key, message } in answer.warnings {
        let line = if *line == 0 { String::new() } else { format!(":{line}") };
        say(format_args!("{file}{line}: warning: {key}: {message}"))?;
    }
    Ok(ExitCode::SUCCESS)
}
