//! `queue list`: what waits to be sent, and what was given up.

use super::table::{size, table, time};
use super::{block_on, say, say_json};
use crate::clock;
use crate::config::Config;
use crate::store::{Attempt, Queued, QueuedState, RecipientState, Store};
use std::process::ExitCode;

/// So many messages are read from the store at a time, so that no one read of a long queue holds up the daemon.
const PAGE: u32 = 500;

pub(super) fn list(config: &Config, json: bool) -> anyhow::Result<ExitCode> {
    let queued = block_on(async {
        let (store, _writer) = Store::open_existing(&config.store).await?;
        let mut all: Vec<Queued> = Vec::new();
        loop {
            let page = store.queued(all.last().map(|message| message.id), PAGE).await?;
            if page.is_empty() {
                return Ok(all);
            }
            all.extend(page);
        }
    })?;
    if json {
        say_json(&queued)?;
    } else if queued.is_empty() {
        say("The queue is empty.")?;
    } else {
        let rows: Vec<Vec<String>> = queued.iter().map(row).collect();
        say(table(
            &["ID", "STATE", "ACCEPTED", "SIZE", "MAILBOX", "FROM", "TO", "TRIES", "LAST REPLY"],
            &rows,
        ))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn row(message: &Queued) -> Vec<String> {
    let open: Vec<&str> = message
        .recipients
        .iter()
        .filter(|recipient| recipient.state != RecipientState::Sent)
        .map(|recipient| recipient.address.as_str())
        .collect();
    let to = match open.as_slice() {
        [] => String::new(),
        [one] => (*one).to_owned(),
        [first, rest @ ..] => format!("{first} and {} more", rest.len()),
    };
    let state = match message.state {
        QueuedState::Waiting if message.next_attempt_at <= clock::now() => "waiting".to_owned(),
        QueuedState::Waiting => format!("waiting until {}", time(message.next_attempt_at)),
        QueuedState::Sending => "sending".to_owned(),
        QueuedState::Held => "held".to_owned(),
        QueuedState::Failed => "failed".to_owned(),
    };
    let said = |attempt: &Attempt| {
        let reply = attempt.reply.as_deref()?;
        Some(format!("{} {reply}", attempt.code.as_deref().unwrap_or_default()).trim_start().to_owned())
    };
    let last = message.attempts.iter().rev().find_map(said).unwrap_or_default();
    vec![
        message.id.to_string(),
        state,
        time(message.received_at),
        size(message.size),
        message.mailbox.to_string(),
        message.from.clone().unwrap_or_default(),
        to,
        message.attempts.len().to_string(),
        last,
    ]
}
