//! `doctor`: tries everything out, by the running daemon, or else by itself.

use super::table::wrap;
use super::{block_on, find_mailbox, say, say_json};
use crate::address::Address;
use crate::admin::DOCTOR;
use crate::config::Config;
use crate::doctor::{Doctor, Finding, Outcome, Report};
use crate::failure::{chain, one_line};
use crate::mailbox::Mailbox;
use crate::store::Store;
use crate::tokens::{Tokens, endpoint};
use crate::{clock, daemon, tls};
use anyhow::{Context, bail};
use reqwest::StatusCode;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use url::form_urlencoded;

/// Where the texts of what failed begin …
const INDENT: usize = 17;
/// … and how wide they are.
const COLUMNS: usize = 100;
/// How long the daemon may take: some minutes where every peer is silent.
const PATIENCE: Duration = Duration::from_secs(900);

pub(super) fn doctor(config: &Config, mailbox: Option<&str>, json: bool) -> anyhow::Result<ExitCode> {
    let only = mailbox.map(|named| find_mailbox(config, named)).transpose()?.map(|mailbox| &mailbox.address);
    let report = block_on(async {
        match Box::pin(ask(config, only)).await? {
            Some(report) => Ok(report),
            None => Box::pin(alone(config, only)).await,
        }
    })?;
    if json {
        say_json(&report)?;
    } else {
        print(&report)?;
    }
    Ok(if report.well { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Has the running daemon do it: only its keepers may refresh its tokens. `None`: no daemon answers.
async fn ask(config: &Config, only: Option<&Address>) -> anyhow::Result<Option<Report>> {
    let listen = config.admin.listen;
    let query = only.map(|address| {
        let mut query = form_urlencoded::Serializer::new("?".to_owned());
        query.append_pair("mailbox", address.as_str()).finish()
    });
    let url = format!("http://{listen}{DOCTOR}{}", query.unwrap_or_default());
    let client = reqwest::Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none());
    let client = client.connect_timeout(Duration::from_secs(10)).timeout(PATIENCE).build()?;
    let answer = match client.post(&url).send().await {
        Ok(answer) => answer,
        Err(error) if error.is_connect() => return Ok(None),
        Err(error) => bail!("the daemon at {listen} does not answer: {}", chain(&error)),
    };
    let status = answer.status();
    if status == StatusCode::OK {
        let report = answer.json().await;
        return report.map(Some).with_context(|| format!("what answers at {listen} is not outlook-relay"));
    }
    let said = one_line(&answer.text().await.unwrap_or_default());
    if said.is_empty() {
        bail!("what answers at {listen} is not this version of outlook-relay ({status}): restart the daemon");
    }
    bail!("the daemon says: {said}")
}

/// Does it without a daemon, in place of one: under its lock, with keepers of its own for the tokens.
async fn alone(config: &Config, only: Option<&Address>) -> anyhow::Result<Report> {
    let tls = tls::client(config.microsoft.ca_file.as_deref())?;
    let http = endpoint::http_client(&tls).context("the HTTP client could not be set up")?;
    let (store, writer) = Store::open(&config.store).await?;
    let Some(_lock) = daemon::lock(&config.store.path)? else {
        bail!(
            "a daemon works on {} but does not answer at {}: was it started with another [admin] listen, or is it stopping?",
            config.store.path.display(),
            config.admin.listen
        );
    };
    let writing = tokio::spawn(writer.run());
    let mailboxes: Arc<[Arc<Mailbox>]> = config
        .mailboxes
        .iter()
        .filter(|mailbox| only.is_none_or(|only| *only == mailbox.address))
        .cloned()
        .map(Mailbox::new)
        .collect();
    let (tokens, keepers) = Tokens::new(&mailboxes, store.clone(), http.clone()).await?;
    let soft = CancellationToken::new();
    let mut keeping: JoinSet<()> = keepers.into_iter().map(|keeper| keeper.run(soft.clone())).collect();
    let doctor = Doctor::new(mailboxes, tokens, config.odoo.gateway.as_ref(), &http, tls);
    let report = doctor.examine(only, clock::now()).await;
    // A refresh under way comes to its end: the token that it brings must not be lost.
    soft.cancel();
    while keeping.join_next().await.is_some() {}
    drop(doctor);
    store.close().await;
    writing.await.context("the store's writer failed")?;
    Ok(report)
}

fn print(report: &Report) -> anyhow::Result<()> {
    let width = report.findings.iter().map(|finding| finding.check.as_str().len()).max().unwrap_or_default();
    let mut subject = None;
    let mut commands: &[String] = &[];
    for finding in &report.findings {
        if subject != Some(&finding.mailbox) {
            let line = if subject.is_none() { "" } else { "\n" };
            say(format_args!("{line}{}", finding.mailbox.as_deref().unwrap_or("For all mailboxes")))?;
            subject = Some(&finding.mailbox);
        }
        say(text(finding, width))?;
        if finding.commands.is_empty() {
            continue;
        }
        if finding.commands == commands {
            say(format_args!("{:INDENT$}(the same lines as above)", ""))?;
        } else {
            finding.commands.iter().try_for_each(|line| say(format_args!("{:INDENT$}{line}", "")))?;
            commands = &finding.commands;
        }
    }
    say(if report.well { "\nAll is well." } else { "\nNot all is well." })
}

/// A line for what is well or could not be tried; else seen, meaning and remedy.
fn text(finding: &Finding, width: usize) -> String {
    let Finding { outcome, check, seen, meaning, remedy, .. } = finding;
    told(*outcome, check.as_str(), width, [seen, meaning, remedy])
}

/// The same, of any check: seen, meaning and remedy.
pub(super) fn told(outcome: Outcome, check: &str, width: usize, texts: [&str; 3]) -> String {
    let (word, [seen, ..]) = (word(outcome), texts);
    if matches!(outcome, Outcome::Ok | Outcome::Skipped) {
        return format!("  {word}  {check:width$}  {seen}");
    }
    let [seen, meaning, remedy] = texts.map(|text| wrap(text, COLUMNS, INDENT));
    format!(
        "  {word}  {check}\n        seen     {seen}\n        meaning  {meaning}\n        remedy   {remedy}"
    )
}

fn word(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Ok => "OK  ",
        Outcome::Warning => "WARN",
        Outcome::Failed => "FAIL",
        Outcome::Skipped => "SKIP",
    }
}
