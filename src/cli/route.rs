//! `route`: which mailbox a From would use, and why.

use super::{say, say_json};
use crate::config::Config;
use crate::routing::{Route, Rule};
use serde::Serialize;
use std::process::ExitCode;

/// The answer, as scripts read it.
#[derive(Serialize)]
struct Answer<'a> {
    mailbox: &'a str,
    rule: Rule,
    from: &'a str,
}

pub(super) fn route(config: &Config, from: &str, json: bool) -> anyhow::Result<ExitCode> {
    let routed = config.routes().route(Some(from), "")?;
    let Route { mailbox, rule, new_from } = &routed;
    let sent_as = new_from.as_deref().unwrap_or(from);
    if json {
        say_json(&Answer { mailbox: mailbox.as_str(), rule: *rule, from: sent_as })?;
        return Ok(ExitCode::SUCCESS);
    }
    let why = match rule {
        Rule::Address => "its from_filter holds the address of the From",
        Rule::Domain => "its from_filter holds the domain of the From",
        Rule::NotificationsAddress => {
            "no from_filter holds the From; this one holds the notifications address"
        }
        Rule::NotificationsDomain => {
            "no from_filter holds the From; this one holds the notifications address's domain"
        }
        Rule::Unfiltered => {
            "no from_filter holds the From or the notifications address; this one has no filter"
        }
        Rule::First => {
            "nothing matches and every mailbox has a filter: the first one, which Microsoft may refuse"
        }
    };
    say(format_args!("mailbox  {mailbox}"))?;
    say(format_args!("rule     {}: {why}", rule.as_str()))?;
    let changed = if new_from.is_some() { "changed, so that Microsoft takes it" } else { "unchanged" };
    say(format_args!("from     {sent_as} ({changed})"))?;
    Ok(ExitCode::SUCCESS)
}
