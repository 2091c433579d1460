//! `queue`: what waits to be sent and what was given up; a person may have it tried again, or cancel it.

use super::done::{Done, tell};
use super::table::{Pages, harmless, size, time, wrap};
use super::{block_on, find_mailbox, say, say_json};
use crate::clock;
use crate::config::Config;
use crate::reports;
use crate::store::{Attempt, QueueId, Queued, QueuedState, Recipient, RecipientState, Selection, Store};
use crate::units::parse_duration;
use anyhow::{Context, bail};
use clap::{Args, ValueEnum};
use serde::ser::{SerializeSeq, Serializer};
use std::io::{IsTerminal, Write};
use std::process::ExitCode;

/// So many messages are read from the store at a time, so that no one read of a long queue holds up the daemon.
const PAGE: u32 = 500;

/// Which messages.
#[derive(Debug, Args)]
pub(super) struct Filter {
    /// Only those that go out through this mailbox.
    #[arg(long, value_name = "ADDRESS")]
    mailbox: Option<String>,
    /// Only those in this state.
    #[arg(long)]
    state: Option<State>,
    /// Only those that were accepted longer ago, like "2 hours".
    #[arg(long, value_name = "DURATION")]
    older_than: Option<String>,
}

/// A message's state, as the table shows it.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum State {
    Waiting,
    Sending,
    Held,
    Failed,
}

/// Which messages, of those that something is done to: they have to be named somehow.
#[derive(Debug, Args)]
pub(super) struct Named {
    /// Their ids, as `queue list` shows them.
    #[arg(value_name = "ID", required_unless_present_any = ["mailbox", "state", "older_than", "all"])]
    ids: Vec<String>,
    /// All of them.
    #[arg(long, conflicts_with_all = ["ids", "mailbox", "state", "older_than"])]
    all: bool,
    #[command(flatten)]
    filter: Filter,
}

/// What is done to messages.
#[derive(Clone, Copy)]
pub(super) enum Deed {
    Retry,
    Cancel,
}

impl Filter {
    fn selection(&self, config: &Config) -> anyhow::Result<Selection> {
        let mailbox = match self.mailbox.as_deref().map(|named| find_mailbox(config, named)) {
            Some(found) => Some(found?.address.clone()),
            None => None,
        };
        let accepted_before = match self.older_than.as_deref() {
            Some(text) => {
                let age = parse_duration(text).with_context(|| {
                    format!("--older-than {text:?} is not a duration: write it like \"2 hours\"")
                })?;
                Some(clock::before(clock::now(), age))
            }
            None => None,
        };
        let state = self.state.map(|state| match state {
            State::Waiting => QueuedState::Waiting,
            State::Sending => QueuedState::Sending,
            State::Held => QueuedState::Held,
            State::Failed => QueuedState::Failed,
        });
        Ok(Selection { mailbox, state, accepted_before })
    }
}

/// Lists the messages that wait, are held or have failed.
pub(super) fn list(config: &Config, filter: &Filter, json: bool) -> anyhow::Result<ExitCode> {
    let selection = filter.selection(config)?;
    block_on(async {
        let (store, _writer) = Store::open_existing(&config.store).await?;
        if json { list_json(&store, &selection).await } else { list_table(&store, &selection).await }
    })?;
    Ok(ExitCode::SUCCESS)
}

/// One message at a time: a queue may be longer than the memory.
async fn list_json(store: &Store, selection: &Selection) -> anyhow::Result<()> {
    let mut out = std::io::BufWriter::new(std::io::stdout());
    let mut serializer = serde_json::Serializer::pretty(&mut out);
    let mut list = serializer.serialize_seq(None).map_err(std::io::Error::from)?;
    each(store, selection, |message| Ok(list.serialize_element(&message).map_err(std::io::Error::from)?))
        .await?;
    list.end().map_err(std::io::Error::from)?;
    writeln!(out)?;
    Ok(out.flush()?)
}

async fn list_table(store: &Store, selection: &Selection) -> anyhow::Result<()> {
    const HEADINGS: [&str; 9] =
        ["ID", "STATE", "ACCEPTED", "SIZE", "MAILBOX", "FROM", "TO", "TRIES", "LAST REPLY"];
    let (mut pages, mut rows, mut any) = (Pages::new(&HEADINGS), Vec::new(), false);
    let together = usize::try_from(PAGE)?;
    each(store, selection, |message| {
        rows.push(row(&message));
        any = true;
        if rows.len() < together { Ok(()) } else { say(pages.page(&std::mem::take(&mut rows))) }
    })
    .await?;
    if !any && *selection == Selection::default() {
        say("The queue is empty.")
    } else if !any {
        say("No message of the queue is like that.")
    } else if rows.is_empty() {
        Ok(())
    } else {
        say(pages.page(&rows))
    }
}

async fn each(
    store: &Store,
    selection: &Selection,
    mut take: impl FnMut(Queued) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let mut after = None;
    loop {
        let page = store.queued(after, PAGE).await?;
        let Some(last) = page.last() else {
            return Ok(());
        };
        after = Some(last.id);
        page.into_iter().filter(|message| selection.holds(message)).try_for_each(&mut take)?;
    }
}

/// Shows one message: who, how, and every attempt with the literal reply.
pub(super) fn show(config: &Config, id: &str, raw: bool, json: bool) -> anyhow::Result<ExitCode> {
    let id: QueueId = id.parse().map_err(anyhow::Error::msg)?;
    let found = block_on(async {
        let (store, _writer) = Store::open_existing(&config.store).await?;
        if raw {
            return Ok(store.content(id).await?.map(Shown::Raw));
        }
        Ok(store.queued_one(id).await?.map(Shown::Message))
    })?;
    match found {
        None => bail!("{id} is not in the queue: it was sent, or cancelled; the log says which"),
        // A person gets a text; a file or another program its bytes.
        Some(Shown::Raw(content)) if std::io::stdout().is_terminal() => {
            let text = String::from_utf8_lossy(&content).replace("\r\n", "\n").replace('\t', "        ");
            say(harmless(&text))?;
        }
        Some(Shown::Raw(content)) => std::io::stdout().write_all(&content)?,
        Some(Shown::Message(message)) if json => say_json(&message)?,
        Some(Shown::Message(message)) => say(story(&message))?,
    }
    Ok(ExitCode::SUCCESS)
}

enum Shown {
    Raw(Vec<u8>),
    Message(Queued),
}

/// Has messages tried again now, or cancels them.
pub(super) fn change(config: &Config, named: &Named, deed: Deed, json: bool) -> anyhow::Result<ExitCode> {
    let selection = named.filter.selection(config)?;
    let ids: Vec<QueueId> =
        named.ids.iter().map(|id| id.parse()).collect::<Result<_, String>>().map_err(anyhow::Error::msg)?;
    let done = block_on(async {
        let (store, writer) = Store::open_existing(&config.store).await?;
        let writing = tokio::spawn(writer.run());
        let done = change_all(&store, config, &selection, ids, deed).await;
        store.close().await;
        writing.await?;
        done
    })?;
    let deed = match deed {
        Deed::Retry => "to be tried now",
        Deed::Cancel => "cancelled",
    };
    tell(&done, deed, json)
}

async fn change_all(
    store: &Store,
    config: &Config,
    selection: &Selection,
    ids: Vec<QueueId>,
    deed: Deed,
) -> anyhow::Result<Vec<Done<QueueId>>> {
    let mut picked = Vec::new();
    if ids.is_empty() {
        each(store, selection, |message| {
            picked.push((message.id, true));
            Ok(())
        })
        .await?;
    }
    for id in ids {
        let message = store.queued_one(id).await?;
        picked.push((id, message.is_some_and(|message| selection.holds(&message))));
    }
    let now = clock::now();
    let mut all = Vec::with_capacity(picked.len());
    for (id, meant) in picked {
        let done = match deed {
            _ if !meant => false,
            Deed::Retry => store.retry(id, now).await?,
            Deed::Cancel => match store.queued_one(id).await? {
                Some(message) => reports::cancel(store, &config.odoo, &message, now).await?,
                None => false,
            },
        };
        let reason = match (done, meant) {
            (true, _) => None,
            (false, false) => {
                Some("no such message in the queue: it was sent, or the other conditions leave it out")
            }
            (false, true) => Some("it is being sent right now: look again in a moment"),
        };
        all.push(Done { id, done, reason });
    }
    Ok(all)
}

/// A message's whole story, for a person.
fn story(message: &Queued) -> String {
    let mut lines = vec![
        format!("Id          {}", message.id),
        format!("State       {}", state(message)),
        format!("Accepted    {}", time(message.received_at)),
        format!("Mailbox     {} (rule: {})", message.mailbox, message.rule),
        format!("From        {}", message.from.as_deref().unwrap_or("(none)")),
        format!("MAIL FROM   <{}>", message.mail_from),
        format!("Message-Id  {}", message.message_id.as_deref().unwrap_or("(none)")),
        format!("Size        {}", size(message.size)),
        String::new(),
        "Recipients".to_owned(),
    ];
    let recipient = |recipient: &Recipient| {
        let Recipient { address, state, reply, .. } = recipient;
        let state = match state {
            RecipientState::Waiting => "waiting",
            RecipientState::Unknown => "unknown: it may have been sent",
            RecipientState::Sent => "sent",
            RecipientState::Failed => "failed",
        };
        match reply {
            Some(reply) => format!("  {address}: {state}: {}", wrap(reply, 100, 4)),
            None => format!("  {address}: {state}"),
        }
    };
    lines.extend(message.recipients.iter().map(recipient));
    lines.extend([String::new(), format!("Attempts: {}", message.attempts.len())]);
    for attempt in &message.attempts {
        let outcome = attempt.outcome.as_deref().unwrap_or("under way");
        let said = attempt.said().unwrap_or_default();
        lines.push(format!(
            "  {}. {}  {outcome}  {}",
            attempt.number,
            time(attempt.started_at),
            wrap(&said, 100, 4)
        ));
    }
    let advice = message.advice();
    if let Some(advice) = advice {
        lines.extend([String::new(), format!("What to do: {}", wrap(&advice, 100, 4))]);
    }
    lines.iter().map(|line| harmless(line)).collect::<Vec<_>>().join("\n")
}

fn state(message: &Queued) -> String {
    match message.state {
        QueuedState::Waiting if message.next_attempt_at <= clock::now() => "waiting".to_owned(),
        QueuedState::Waiting => format!("waiting until {}", time(message.next_attempt_at)),
        QueuedState::Sending => "sending".to_owned(),
        QueuedState::Held => "held".to_owned(),
        QueuedState::Failed => "failed".to_owned(),
    }
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
    vec![
        message.id.to_string(),
        state(message),
        time(message.received_at),
        size(message.size),
        message.mailbox.to_string(),
        message.from.clone().unwrap_or_default(),
        to,
        message.attempts.len().to_string(),
        message.attempts.iter().rev().find_map(Attempt::said).unwrap_or_default(),
    ]
}
