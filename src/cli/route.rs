//! `route`: which mailbox a From would use, and why.

use super::{say, say_json, table};
use crate::config::Config;
use crate::routing::{Route, Rule, Step};
use serde::Serialize;
use std::process::ExitCode;

/// The answer, as scripts read it.
#[derive(Serialize)]
struct Answer<'a> {
    mailbox: &'a str,
    rule: Rule,
    from: &'a str,
}

pub(super) fn route(config: &Config, from: &str, mail_from: &str, json: bool) -> anyhow::Result<ExitCode> {
    let routes = config.routes();
    let routed = routes.route(Some(from), mail_from)?;
    let Route { mailbox, rule, new_from } = &routed;
    let sent_as = new_from.as_deref().unwrap_or(from);
    if json {
        say_json(&Answer { mailbox: mailbox.as_str(), rule: *rule, from: sent_as })?;
        return Ok(ExitCode::SUCCESS);
    }
    let steps = routes.explain(Some(from), mail_from);
    let (last, before) = match steps.split_last() {
        Some((last, before)) => (in_words(last), before),
        None => (String::new(), [].as_slice()),
    };
    say(format_args!("mailbox  {mailbox}"))?;
    say(format_args!("rule     {rule}: {}", table::wrap(&last, 100, 9)))?;
    let changed = match (new_from, rule) {
        (None, _) => "unchanged",
        (Some(_), Rule::Address | Rule::Domain) => "changed: it was not one plain address",
        (Some(_), _) => "changed, so that Microsoft takes it",
    };
    say(format_args!("from     {sent_as} ({changed})"))?;
    for (index, step) in before.iter().enumerate() {
        let label = if index == 0 { "before" } else { "" };
        say(format_args!("{label:7}  {}: {}", step.rule, in_words(step)))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// What a step of the rule looked for and what it found.
fn in_words(step: &Step) -> String {
    let what = match step.rule {
        Rule::Address => "the address of the From",
        Rule::Domain => "the domain of the From",
        Rule::NotificationsAddress => "the notifications address",
        Rule::NotificationsDomain => "the domain of the notifications address",
        Rule::Unfiltered | Rule::First | Rule::User => "",
    };
    let Step { rule, sought, found } = step;
    match (rule, sought, found) {
        (Rule::Unfiltered, _, Some(_)) => "it is the first mailbox without a from_filter".to_owned(),
        (Rule::Unfiltered, _, None) => "every mailbox has a from_filter".to_owned(),
        (Rule::First, ..) => {
            "nothing else matched, and it is the first mailbox; Microsoft may refuse the message".to_owned()
        }
        (Rule::User, ..) => "its user submits through it alone".to_owned(),
        (_, Some(sought), Some((_, filter))) => {
            format!("its from_filter {:?} holds {what}, {sought}", filter.as_deref().unwrap_or_default())
        }
        (_, Some(sought), None) => format!("no from_filter holds {what}, {sought}"),
        (Rule::Address | Rule::Domain, None, _) => "the From holds no address".to_owned(),
        (_, None, _) => "[odoo] has no notifications address for such mail".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::Address;

    #[test]
    fn every_step_is_told_in_words() {
        let mailbox: Address = "any@x.test".parse().unwrap();
        let words = |rule, sought: Option<&str>, found: Option<Option<&str>>| {
            let found = found.map(|filter| (mailbox.clone(), filter.map(str::to_owned)));
            in_words(&Step { rule, sought: sought.map(str::to_owned), found })
        };
        for (said, expected) in [
            (
                words(Rule::Address, Some("eve@x.test"), Some(Some("eve@x.test, y.test"))),
                "its from_filter \"eve@x.test, y.test\" holds the address of the From, eve@x.test",
            ),
            (
                words(Rule::Domain, Some("x.test"), None),
                "no from_filter holds the domain of the From, x.test",
            ),
            (words(Rule::Domain, None, None), "the From holds no address"),
            (
                words(Rule::NotificationsAddress, Some("n@x.test"), None),
                "no from_filter holds the notifications address, n@x.test",
            ),
            (
                words(Rule::NotificationsDomain, None, None),
                "[odoo] has no notifications address for such mail",
            ),
            (words(Rule::Unfiltered, None, None), "every mailbox has a from_filter"),
            (words(Rule::Unfiltered, None, Some(None)), "it is the first mailbox without a from_filter"),
            (
                words(Rule::First, None, Some(Some("y.test"))),
                "nothing else matched, and it is the first mailbox; Microsoft may refuse the message",
            ),
        ] {
            assert_eq!(said, expected);
        }
    }
}
