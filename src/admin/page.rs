//! The administrator's page: pure, from the [`Status`] to its markup.

use super::frame::{Reader, by_button, csrf_field, day, frame, pill, seen, segment, sentence, time};
use super::light::{Light, of_token};
use super::status::{Direction, InboxStatus, LastFailure, MailboxStatus, Status};
use crate::failure::{Class, Failure};
use crate::mailbox::Lasting;
use jiff::Timestamp;
use maud::{Markup, html};

/// The whole page. `csrf` is the token of its forms; `may_sign_out`: there is a password.
pub(super) fn page(status: &Status, csrf: &str, may_sign_out: bool, now: Timestamp) -> Markup {
    let (light, summary) = summary(status, now);
    let body = html! {
        header.top {
            div {
                h1 { "outlook-relay" }
                p.quiet { "Version " (status.version) ", running since " (day(status.started_at, now)) }
            }
            @if may_sign_out {
                form method="post" action="/logout" { (csrf_field(csrf)) button.quiet type="submit" { "Sign out" } }
            }
        }
        main #live {
            p.summary role="status" { (pill(light, &summary)) }
            dl.totals {
                div { dt { a href="/queue" { "Waiting to be sent" } } dd { (status.queue.waiting) } }
                @if status.queue.held > 0 {
                    div { dt { a href="/queue" { "Held for a person" } } dd { (status.queue.held) } }
                }
                div { dt { "Given up" } dd { (status.queue.failed) } }
                div { dt { "Oldest" } dd { (or_dash(status.queue.oldest.map(|at| time(at, now)))) } }
            }
            @if let Some(why) = &status.store {
                section.card.red {
                    h2 { "The store" }
                    p { "It cannot be written: " (why) ". No mail is accepted and none is sent until it can." }
                    p { "Make room on its disk, or give the relay its folder back." }
                }
            }
            @for warning in &status.warnings {
                section class={ "card failure " @if warning.expired { "red" } @else { "amber" } } {
                    h2 { (sentence(&warning.event)) }
                    dl {
                        dt { "Seen" } dd { (sentence(&warning.seen)) }
                        dt { "Meaning" } dd { (sentence(&warning.meaning)) }
                        dt { "Remedy" } dd { (sentence(&warning.remedy)) }
                    }
                }
            }
            @if let Some(lasting) = &status.odoo {
                section.card.red { h2 { "Odoo" } (trouble("Odoo", lasting, now)) }
            }
            @if status.reports.refused > 0 { (refused_reports(status)) }
            h2 { "Mailboxes" }
            div.mailboxes { @for mailbox in &status.mailboxes { (card(mailbox, csrf, now)) } }
            (last_failures(&status.last_failures, now))
        }
    };
    frame(Reader::Administrator, &summary, None, &body)
}

/// What Odoo does not know of, and would not be told.
fn refused_reports(status: &Status) -> Markup {
    html! {
        section.card.failure.amber {
            h2 { (status.reports.refused) " failures that Odoo would not be told of" }
            p { "These mails did not arrive, and nobody in Odoo sees it. Tell whoever sent them; Odoo's answer says what to mend." }
            @for report in &status.refused_reports {
                p {
                    a href=(format!("/queue/{}", segment(&report.message))) { code { (report.message) } }
                    " to " (report.recipient)
                    @if let Some(answer) = &report.answer { ": " (answer) }
                }
            }
        }
    }
}

/// All of it in one light and one line.
fn summary(status: &Status, now: Timestamp) -> (Light, String) {
    let lights = status.mailboxes.iter().map(|mailbox| of_mailbox(mailbox, now));
    let red = lights.clone().filter(|light| *light == Light::Red).count();
    let amber = lights.filter(|light| *light == Light::Amber).count();
    let odoo = status.odoo.as_ref().map_or(Light::Green, |lasting| of_failure(&lasting.failure));
    let words = |n: usize, one: &str, more: &str| match n {
        1 => format!("1 mailbox {one}"),
        n => format!("{n} mailboxes {more}"),
    };
    match (red, amber) {
        _ if status.store.is_some() => (Light::Red, "The store cannot be written".to_owned()),
        _ if status.warnings.iter().any(|warning| warning.expired) => {
            (Light::Red, "The app's secret or certificate has expired".to_owned())
        }
        (0, _) if odoo > Light::Green => (odoo, "Odoo is in trouble".to_owned()),
        (0, _) if status.queue.held > 0 => (Light::Red, "Mail is held for a person".to_owned()),
        (0, 0) if !status.warnings.is_empty() => {
            (Light::Amber, "The app's secret or certificate expires soon".to_owned())
        }
        (0, 0) => (Light::Green, "All is well".to_owned()),
        (0, amber) => (Light::Amber, words(amber, "to keep an eye on", "to keep an eye on")),
        (red, _) => (Light::Red, words(red, "needs a person", "need a person")),
    }
}

/// The worst of a mailbox: its token and its troubles.
fn of_mailbox(mailbox: &MailboxStatus, now: Timestamp) -> Light {
    let troubles = mailbox.troubles.values().map(|lasting| of_failure(&lasting.failure));
    troubles.fold(of_token(mailbox, now).0, Light::max)
}

fn of_failure(failure: &Failure) -> Light {
    if failure.class.needs_a_person() { Light::Red } else { Light::Amber }
}

fn card(mailbox: &MailboxStatus, csrf: &str, now: Timestamp) -> Markup {
    let (light, words) = of_token(mailbox, now);
    let expires_at = mailbox.token.as_ref().and_then(|token| token.expires_at);
    let in_memory = mailbox.token.as_ref().and_then(|token| token.refreshed_at);
    let refreshed_at = in_memory.max(mailbox.consent.as_ref().and_then(|consent| consent.refreshed_at));
    html! {
        article class={ "card " (of_mailbox(mailbox, now).name()) } data-mailbox=(mailbox.address) {
            h3 { (mailbox.address) }
            p { (pill(light, words)) }
            dl {
                dt { "Last refreshed" }
                dd { @match refreshed_at { Some(at) => (time(at, now)), None => "never" } }
                @if let Some(at) = expires_at.filter(|at| now < *at) {
                    dt { "Token expires" } dd { (time(at, now)) }
                }
                dt { "Consent" }
                dd {
                    @match &mailbox.consent {
                        _ if mailbox.app_only => "not needed: the app itself signs in",
                        None => "not given yet",
                        Some(_) if must_consent(mailbox) => "must be given anew, now",
                        Some(consent) if now < consent.lasts_until => {
                            "to be given anew by " (day(consent.lasts_until, now)) ", if nothing refreshes it"
                        }
                        Some(consent) => { "ran out " (day(consent.lasts_until, now)) }
                    }
                }
                dt { "Queue" }
                dd {
                    (mailbox.queue.waiting) " waiting"
                    @if let Some(at) = mailbox.queue.oldest { ", the oldest came " (time(at, now)) }
                    @if let Some(at) = mailbox.done_by { ", sent by " (time(at, now)) }
                    @if mailbox.queue.failed > 0 { ", " (mailbox.queue.failed) " given up" }
                }
                dt { "Inbox" }
                dd { @match &mailbox.inbox { Some(inbox) => (inbox_line(inbox, now)), None => "not watched" } }
            }
            @for (part, lasting) in &mailbox.troubles { (trouble(part, lasting, now)) }
            form.actions method="post" {
                (csrf_field(csrf))
                @let path = segment(&mailbox.address);
                @if !mailbox.app_only {
                    button type="submit" formaction=(format!("/connect/{path}"))
                        class=[(light != Light::Red).then_some("quiet")] {
                        @if mailbox.consent.is_some() { "Connect anew" } @else { "Connect" }
                    }
                }
                button.quiet type="submit" formaction=(format!("/test/{path}")) { "Test connection" }
            }
        }
    }
}

fn must_consent(mailbox: &MailboxStatus) -> bool {
    let failure = mailbox.token.as_ref().and_then(|token| token.failure.as_ref());
    failure.is_some_and(|failure| failure.class == Class::Consent)
}

fn inbox_line(inbox: &InboxStatus, now: Timestamp) -> Markup {
    html! {
        (inbox.folder) ": "
        @match inbox.looked_at { Some(at) => { "looked at " (time(at, now)) }, None => "not looked at yet" }
        ", " (inbox.waiting) " waiting, " (inbox.pushed) " pushed"
        @if inbox.bounces > 0 { " (bounces: " (inbox.bounces) ")" }
        @if inbox.refused > 0 { ", " (inbox.refused) " refused by Odoo" }
    }
}

/// A trouble: seen, meaning, remedy.
fn trouble(part: &str, lasting: &Lasting, now: Timestamp) -> Markup {
    html! {
        div class={ "trouble " (of_failure(&lasting.failure).name()) } {
            h4 { "Trouble with " (words_of(part)) ", begun " (time(lasting.since, now)) }
            (explained(&lasting.failure))
        }
    }
}

fn explained(failure: &Failure) -> Markup {
    html! {
        dl {
            dt { "Seen" } dd { (seen(failure)) }
            dt { "Meaning" } dd { (meaning(failure.class)) }
            dt { "Remedy" }
            dd {
                @if failure.advice.is_empty() { "None needed: it is tried again by itself." }
                @else { (sentence(&by_button(&failure.advice, "press Connect"))) }
            }
        }
    }
}

fn words_of(part: &str) -> &str {
    match part {
        "token" => "the token",
        "inbox" => "the inbox",
        other => other,
    }
}

fn meaning(class: Class) -> &'static str {
    match class {
        Class::Transient => "It should pass by itself.",
        Class::Rate => "Too much at a time: the mailbox pauses for a while.",
        Class::Message => "This message will not be taken as it is; the mailbox is not to blame.",
        Class::Consent => "The mailbox's owner has to sign in at Microsoft anew.",
        Class::Administrator => "An administrator of Microsoft 365, of Odoo or of this relay has to act.",
    }
}

fn last_failures(failures: &[LastFailure], now: Timestamp) -> Markup {
    html! {
        h2 { "Last failures" }
        @if failures.is_empty() { p.quiet { "None among the messages at hand." } }
        @for failure in failures {
            @let given_up = failure.direction == Direction::Outgoing && failure.next_attempt_at.is_none();
            article class={ "card failure " @if given_up { "red" } @else { "amber" } } {
                h3 {
                    @match failure.direction { Direction::Outgoing => "Sending as ", Direction::Incoming => "Received by " }
                    (failure.mailbox)
                }
                p.quiet {
                    (time(failure.at, now)) ", message "
                    @if failure.direction == Direction::Outgoing {
                        a href=(format!("/queue/{}", segment(&failure.message))) { code { (failure.message) } }
                    } @else {
                        code { (failure.message) }
                    }
                    @match failure.next_attempt_at {
                        Some(at) => { ", tried again " (time(at, now)) }
                        None if given_up => ", given up",
                        None => ", tried again later",
                    }
                }
                (explained(&failure.failure))
            }
        }
    }
}

fn or_dash(value: Option<Markup>) -> Markup {
    value.unwrap_or_else(|| html! { "–" })
}

#[cfg(test)]
mod tests {
    use super::super::status::ConsentStatus;
    use super::*;
    use crate::microsoft::expiry::Warning;
    use crate::store::Totals;
    use crate::tokens::{State, TokenState};
    use std::collections::BTreeMap;

    fn now() -> Timestamp {
        Timestamp::from_second(1_800_000_000).unwrap()
    }

    fn later(days: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + 86_400 * days).unwrap()
    }

    fn mailbox(address: &str, state: State, failure: Option<Failure>) -> MailboxStatus {
        MailboxStatus {
            address: address.to_owned(),
            token: Some(TokenState { state, expires_at: None, refreshed_at: Some(later(-2)), failure }),
            consent: Some(ConsentStatus {
                consented_at: later(-60),
                refreshed_at: Some(later(-2)),
                lasts_until: later(88),
            }),
            app_only: false,
            queue: Totals { waiting: 3, failed: 1, oldest: Some(later(-3)), ..Totals::default() },
            paced_seconds: 0.0,
            done_by: None,
            inbox: Some(InboxStatus {
                folder: "INBOX".to_owned(),
                looked_at: Some(now()),
                waiting: 4,
                refused: 5,
                pushed: 6,
                bounces: 2,
                oldest: None,
            }),
            troubles: BTreeMap::new(),
        }
    }

    fn status(mailboxes: Vec<MailboxStatus>) -> Status {
        Status {
            well: true,
            version: "1".to_owned(),
            started_at: now(),
            mailboxes,
            queue: Totals::default(),
            odoo: None,
            last_failures: Vec::new(),
            store: None,
            reports: Default::default(),
            refused_reports: Vec::new(),
            written: Default::default(),
            warnings: Vec::new(),
        }
    }

    fn shown(status: &Status) -> String {
        page(status, "the-csrf-token", true, now()).into_string()
    }

    #[test]
    fn a_mailbox_shows_all_that_is_known_of_it() {
        let page = shown(&status(vec![mailbox("john@example.com", State::Ok, None)]));
        for part in [
            "All is well",
            "Outlook token valid",
            "<article class=\"card green\"",
            "2 days ago",
            "(in 88 days)",
            "3 waiting",
            "1 given up",
            "4 waiting, 6 pushed (bounces: 2), 5 refused",
            "Connect anew",
            "formaction=\"/connect/john@example.com\"",
            "formaction=\"/test/john@example.com\"",
        ] {
            assert!(page.contains(part), "{part}: {page}");
        }
        let forms = page.matches("<form").count();
        assert_eq!(forms, 2);
        assert_eq!(page.matches("name=\"csrf\" value=\"the-csrf-token\"").count(), forms);
    }

    #[test]
    fn a_failure_says_seen_meaning_and_remedy_and_cannot_write_markup() {
        let failure =
            Failure::new(Class::Consent, "AADSTS50173", "<script>revoked</script>").advise("sign in & go");
        let page = shown(&status(vec![mailbox("a@b.c", State::Failed, Some(failure.clone()))]));
        assert!(page.contains("must be given anew, now"), "{page}");
        assert!(page.contains("Must be connected anew") && page.contains("1 mailbox needs a person"));
        let mut failing = status(vec![mailbox("a@b.c", State::Ok, None)]);
        failing.last_failures.push(LastFailure {
            at: later(-1),
            message: "\"><b>".to_owned(),
            mailbox: "a@b.c".to_owned(),
            direction: Direction::Outgoing,
            next_attempt_at: None,
            failure,
        });
        let page = shown(&failing);
        for part in
            ["AADSTS50173", "&lt;script&gt;revoked", "owner has to sign in", "Sign in &amp; go", "given up"]
        {
            assert!(page.contains(part), "{part}: {page}");
        }
        assert!(!page.contains("<script>") && !page.contains("<b>"), "{page}");
    }

    #[test]
    fn beside_the_button_nobody_is_sent_to_a_command_line() {
        let failure = Failure::new(Class::Consent, "AADSTS50173", "revoked")
            .advise("it was revoked: run `outlook-relay connect a@b.c`");
        let lasting = serde_json::json!({"since": now(), "failure": failure});
        let mut failing = mailbox("a@b.c", State::Failed, Some(failure));
        failing.troubles.insert("token".to_owned(), serde_json::from_value(lasting).unwrap());
        let page = shown(&status(vec![failing]));
        assert!(page.contains("It was revoked: press Connect<"), "{page}");
    }

    #[test]
    fn what_expires_is_not_called_a_secret_where_it_may_be_a_certificate() {
        for (expired, words) in [(true, "certificate has expired"), (false, "certificate expires soon")] {
            let mut warned = status(vec![mailbox("a@b.c", State::Ok, None)]);
            warned.warnings.push(Warning {
                event: "client certificate expires".to_owned(),
                client_id: "app".to_owned(),
                expires: jiff::civil::date(2027, 1, 15),
                days: 0,
                expired,
                seen: String::new(),
                meaning: String::new(),
                remedy: String::new(),
            });
            let page = shown(&warned);
            assert!(page.contains(words) && !page.contains("client secret"), "{page}");
        }
    }

    #[test]
    fn a_full_disk_comes_first() {
        let mut full = status(vec![mailbox("a@b.c", State::Ok, None)]);
        full.store = Some("database or disk is full".to_owned());
        let page = shown(&full);
        assert!(
            page.contains("<title>The store cannot be written") && page.contains("disk is full"),
            "{page}"
        );
    }

    #[test]
    fn nothing_is_inline_and_nothing_comes_from_elsewhere() {
        let page = shown(&status(vec![mailbox("a@b.c", State::Missing, None)]));
        for forbidden in ["style=", "onclick", "<style", "http://", "https://"] {
            assert!(!page.contains(forbidden), "{forbidden}");
        }
    }
}
