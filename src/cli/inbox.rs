//! `inbox`: what Odoo refuses of the received mail; a person may have it tried again.

use super::done::{Done, tell};
use super::table::{table, time};
use super::{block_on, find_mailbox, say, say_json};
use crate::clock;
use crate::config::Config;
use crate::store::{PushState, Quarantined, QuarantinedId, Store};
use anyhow::Context;
use clap::Args;
use std::process::ExitCode;

/// Which messages, of those that something is done to: they have to be named somehow.
#[derive(Debug, Args)]
pub(super) struct Named {
    /// Their ids, as `inbox list` shows them.
    #[arg(value_name = "ID", required_unless_present_any = ["mailbox", "all"])]
    ids: Vec<String>,
    /// All of them.
    #[arg(long, conflicts_with_all = ["ids", "mailbox"])]
    all: bool,
    /// Those of this mailbox.
    #[arg(long, value_name = "ADDRESS")]
    mailbox: Option<String>,
}

/// Lists what is quarantined.
pub(super) fn list(config: &Config, mailbox: Option<&str>, json: bool) -> anyhow::Result<ExitCode> {
    let mailbox = mailbox.map(|named| find_mailbox(config, named)).transpose()?;
    let quarantined = block_on(async {
        let (store, _writer) = Store::open_existing(&config.store).await?;
        Ok(store.quarantined(mailbox.map(|mailbox| &mailbox.address)).await?)
    })?;
    if json {
        say_json(&quarantined)?;
    } else if quarantined.is_empty() {
        say("No received message is quarantined.")?;
    } else {
        let rows: Vec<Vec<String>> = quarantined.iter().map(row).collect();
        say(table(&["ID", "WHERE", "FOUND", "TRIES", "NEXT TRY", "MESSAGE-ID", "REASON"], &rows))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Has quarantined messages tried now.
pub(super) fn retry(config: &Config, named: &Named, json: bool) -> anyhow::Result<ExitCode> {
    let mailbox = named.mailbox.as_deref().map(|named| find_mailbox(config, named)).transpose()?;
    let parsed: Result<Vec<QuarantinedId>, String> = named.ids.iter().map(|id| id.parse()).collect();
    let ids = parsed.map_err(anyhow::Error::msg)?;
    let done = block_on(async {
        let (store, writer) = Store::open_existing(&config.store).await?;
        let writing = tokio::spawn(writer.run());
        let quarantined = store.quarantined(mailbox.map(|mailbox| &mailbox.address)).await;
        let done = match quarantined {
            Ok(quarantined) => retry_all(&store, quarantined, ids).await,
            Err(error) => Err(error.into()),
        };
        store.close().await;
        writing.await.context("the store's writer failed")?;
        done
    })?;
    tell(&done, "to be tried now", json)
}

/// Tries those with these ids again; without ids, all.
async fn retry_all(
    store: &Store,
    quarantined: Vec<Quarantined>,
    ids: Vec<QuarantinedId>,
) -> anyhow::Result<Vec<Done<QuarantinedId>>> {
    let now = clock::now();
    let missing = ids.iter().filter(|id| !quarantined.iter().any(|message| message.id == **id));
    let mut all: Vec<Done<QuarantinedId>> = missing
        .map(|id| Done {
            id: id.clone(),
            done: false,
            reason: Some("it is not quarantined: Odoo has taken it meanwhile, or it left the folder"),
        })
        .collect();
    for message in quarantined.iter().filter(|message| ids.is_empty() || ids.contains(&message.id)) {
        // One that is on its way back already needs nothing more.
        let done = message.state == PushState::Returning || store.retry_received(message, now).await?;
        let reason = (!done).then_some("it is being tried right now: look again in a moment");
        all.push(Done { id: message.id.clone(), done, reason });
    }
    Ok(all)
}

fn row(message: &Quarantined) -> Vec<String> {
    let place = match message.state {
        PushState::Moved => "quarantine folder",
        PushState::Returning => "on its way back",
        _ => "folder, unread",
    };
    let known = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
    vec![
        message.id.to_string(),
        place.to_owned(),
        time(message.found_at),
        message.tries.to_string(),
        message.next_try_at.map_or_else(|| "-".to_owned(), time),
        known(&message.message_id),
        known(&message.reason),
    ]
}
