//! `status`: what the running daemon says of itself.

use super::table::{table, time};
use super::{block_on, say, say_json};
use crate::admin::{MailboxStatus, Status};
use crate::config::Config;
use crate::failure::chain;
use crate::tokens::State;
use anyhow::Context;
use std::process::ExitCode;
use std::time::Duration;

pub(super) fn status(config: &Config, json: bool) -> anyhow::Result<ExitCode> {
    let url = format!("http://{}/status", config.admin.listen);
    let status: Status = block_on(async {
        let client = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(10)).build()?;
        let answer = client.get(&url).send().await;
        let answer = answer.map_err(|error| {
            anyhow::anyhow!(
                "no daemon answers at {} ({}): start it with `outlook-relay run`",
                config.admin.listen,
                chain(&error)
            )
        })?;
        let answer = answer.error_for_status().context("the daemon cannot tell its status")?;
        answer.json().await.with_context(|| format!("what answers at {url} is not outlook-relay"))
    })?;
    if json {
        say_json(&status)?;
    } else {
        print(&status)?;
    }
    Ok(if status.well { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn print(status: &Status) -> anyhow::Result<()> {
    say(format_args!("outlook-relay {}, running since {}", status.version, time(status.started_at)))?;
    let rows: Vec<Vec<String>> = status.mailboxes.iter().map(row).collect();
    say(table(&["MAILBOX", "TOKEN", "WAITING", "FAILED", "OLDEST", "SENT BY", "INBOX"], &rows))?;
    for mailbox in &status.mailboxes {
        for (part, trouble) in &mailbox.troubles {
            let failure = &trouble.failure;
            say(format_args!("\n{} ({part}), since {}:", mailbox.address, time(trouble.since)))?;
            say(format_args!("  seen     {} {}", failure.code, failure.reply))?;
            say(format_args!("  meaning  {}", failure.class))?;
            say(format_args!("  remedy   {}", or_wait(&failure.advice)))?;
        }
    }
    if let Some(trouble) = &status.odoo {
        say(format_args!("\nOdoo, since {}:", time(trouble.since)))?;
        say(format_args!("  seen     {} {}", trouble.failure.code, trouble.failure.reply))?;
        say(format_args!("  remedy   {}", or_wait(&trouble.failure.advice)))?;
    }
    if status.queue.held > 0 {
        say(format_args!(
            "\nHeld:\n  seen     nobody knows whether {} messages were sent",
            status.queue.held
        ))?;
        say("  remedy   outlook-relay queue list --state held; then queue retry or queue cancel")?;
    }
    if status.reports.refused > 0 {
        say(format_args!(
            "\nReports:\n  seen     Odoo would not be told of {} failures",
            status.reports.refused
        ))?;
        for report in &status.refused_reports {
            let answer = report.answer.as_deref().unwrap_or_default();
            say(format_args!("           {} to {}: {answer}", report.message, report.recipient))?;
        }
        say("  remedy   tell whoever sent them; Odoo's answer says what to mend")?;
    }
    for warning in &status.warnings {
        say(format_args!("\n{}:", if warning.expired { "Expired" } else { "Expires soon" }))?;
        say(format_args!("  seen     {}", warning.seen))?;
        say(format_args!("  meaning  {}", warning.meaning))?;
        say(format_args!("  remedy   {}", warning.remedy))?;
    }
    if let Some(why) = &status.store {
        say(format_args!("\nThe store:\n  seen     it could not be written: {why}"))?;
        say(
            "  remedy   look for a full disk or missing rights: no mail is accepted or sent before it can be written",
        )?;
    }
    say(if status.well { "\nAll is well." } else { "\nNot all is well." })
}

fn or_wait(advice: &str) -> &str {
    if advice.is_empty() { "none needed: it is tried again by itself" } else { advice }
}

fn row(mailbox: &MailboxStatus) -> Vec<String> {
    let token = match &mailbox.token {
        None => "-".to_owned(),
        Some(token) => match (token.state, token.expires_at) {
            (State::Ok, Some(at)) => format!("ok until {}", time(at)),
            (State::Ok, None) => "ok".to_owned(),
            (State::Refreshing, _) => "refreshing".to_owned(),
            (State::Failed, _) => "failed".to_owned(),
            (State::Missing, _) => "missing".to_owned(),
        },
    };
    let inbox = match &mailbox.inbox {
        None => "-".to_owned(),
        Some(inbox) => {
            let looked = inbox
                .looked_at
                .map_or_else(|| "never looked at".to_owned(), |at| format!("looked at {}", time(at)));
            let bounces = match inbox.bounces {
                0 => String::new(),
                bounces => format!(" (bounces: {bounces})"),
            };
            let (pushed, waiting, refused) = (inbox.pushed, inbox.waiting, inbox.refused);
            format!("{pushed} pushed{bounces}, {waiting} waiting, {refused} refused, {looked}")
        }
    };
    vec![
        mailbox.address.clone(),
        token,
        mailbox.queue.waiting.to_string(),
        mailbox.queue.failed.to_string(),
        mailbox.queue.oldest.map_or_else(|| "-".to_owned(), time),
        mailbox.done_by.map_or_else(|| "-".to_owned(), time),
        inbox,
    ]
}
