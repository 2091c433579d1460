//! The queue's pages: what waits and what was given up, one message with every attempt, and the buttons that have it
//! tried again or cancel it.

use super::door::Asker;
use super::frame::{Reader, csrf_field, frame, message, pill, sentence, time};
use super::light::Light;
use super::{Admin, fields};
use crate::clock;
use crate::failure::chain;
use crate::reports;
use crate::store::{self, Attempt, QueueId, Queued, QueuedState, Recipient, RecipientState};
use axum::body::Bytes;
use axum::extract::{Extension, Path, RawQuery, State};
use axum::http::StatusCode;
use axum::response::{Html, IntoResponse, Redirect, Response};
use jiff::Timestamp;
use maud::{Markup, html};
use std::sync::Arc;

/// So many messages stand on one page.
const PAGE: u32 = 100;

/// `GET /queue?after=ID`: a page of the queue, oldest message first.
pub(super) async fn list(
    State(admin): State<Arc<Admin>>,
    Extension(asker): Extension<Asker>,
    RawQuery(query): RawQuery,
) -> Response {
    let now = clock::now();
    if let Some(refused) = Admin::refuse(admin.access(&asker, now)) {
        return refused;
    }
    let query = fields(query.unwrap_or_default().as_bytes());
    let after = query.get("after").and_then(|id| id.parse().ok());
    match admin.sources.store.queued(after, PAGE).await {
        Ok(queued) => Html(page_of(&queued, now).into_string()).into_response(),
        Err(error) => unreadable(&error),
    }
}

/// `GET /queue/ID`: one message.
pub(super) async fn show(
    State(admin): State<Arc<Admin>>,
    Extension(asker): Extension<Asker>,
    Path(id): Path<String>,
) -> Response {
    let now = clock::now();
    if let Some(refused) = Admin::refuse(admin.access(&asker, now)) {
        return refused;
    }
    let found = match id.parse() {
        Ok(id) => admin.sources.store.queued_one(id).await,
        Err(_) => Ok(None),
    };
    match found {
        Ok(Some(queued)) => {
            let csrf = admin.sessions.csrf(&asker.visitor);
            Html(page_about(&queued, &csrf, now).into_string()).into_response()
        }
        Ok(None) => gone(),
        Err(error) => unreadable(&error),
    }
}

/// `POST /queue/ID/retry` and `POST /queue/ID/cancel`.
pub(super) async fn change(
    State(admin): State<Arc<Admin>>,
    Extension(asker): Extension<Asker>,
    Path((id, deed)): Path<(String, String)>,
    form: Bytes,
) -> Response {
    let now = clock::now();
    let refused = Admin::refuse(admin.access(&asker, now));
    if let Some(refused) = refused.or_else(|| admin.refuse_forged(&asker, &fields(&form))) {
        return refused;
    }
    let Ok(id) = id.parse::<QueueId>() else {
        return gone();
    };
    let store = &admin.sources.store;
    let (done, onward) = match deed.as_str() {
        "retry" => (store.retry(id, now).await, format!("/queue/{id}")),
        "cancel" => {
            let cancelled = match store.queued_one(id).await {
                Ok(Some(message)) => reports::cancel(store, &admin.sources.odoo, &message, now).await,
                Ok(None) => Ok(false),
                Err(error) => Err(error),
            };
            (cancelled, "/queue".to_owned())
        }
        _ => return gone(),
    };
    match done {
        Ok(true) => {
            store.wake_all();
            Redirect::to(&onward).into_response()
        }
        Ok(false) => {
            let text = html! {
                p { "It is being sent right now, or was already. " a href=(format!("/queue/{id}")) { "Look again" } " in a moment." }
            };
            message(Reader::Administrator, StatusCode::CONFLICT, "amber", "Nothing was changed", &text)
        }
        Err(error) => unreadable(&error),
    }
}

fn gone() -> Response {
    let text =
        html! { p { "It was sent or cancelled: the log says which. " a href="/queue" { "The queue" } } };
    message(Reader::Administrator, StatusCode::NOT_FOUND, "amber", "This message is not in the queue", &text)
}

fn unreadable(error: &store::Error) -> Response {
    let text = html! { p { (chain(error)) } p { "Check the disk of the store, and the log." } };
    let status = StatusCode::INTERNAL_SERVER_ERROR;
    message(Reader::Administrator, status, "red", "The store failed", &text)
}

fn page_of(queued: &[Queued], now: Timestamp) -> Markup {
    let body = html! {
        header.top { h1 { "The queue" } a href="/" { "Overview" } }
        main #live {
            @if queued.is_empty() { p.quiet { "No message waits here." } }
            @for message in queued {
                article class={ "card failure " (light(message).name()) } {
                    h3 { a href=(format!("/queue/{}", message.id)) { code { (message.id) } } " " (pill(light(message), &words(message))) }
                    p { (message.from.as_deref().unwrap_or("(no From)")) " to " (to(message)) }
                    p.quiet {
                        "Accepted " (time(message.received_at, now)) ", through " (message.mailbox) ", "
                        @match message.attempts.len() { 1 => "1 attempt", n => { (n) " attempts" } }
                        @if message.state == QueuedState::Waiting { ", next " (time(message.next_attempt_at, now)) }
                    }
                    @if let Some(said) = message.attempts.iter().rev().find_map(Attempt::said) { p { (said) } }
                }
            }
            @if let Some(last) = queued.last().filter(|_| queued.len() >= PAGE as usize) {
                p { a href=(format!("/queue?after={}", last.id)) { "Younger ones" } }
            }
        }
    };
    frame(Reader::Administrator, "The queue", None, &body)
}

fn page_about(message: &Queued, csrf: &str, now: Timestamp) -> Markup {
    let advice = message.advice();
    let body = html! {
        header.top { h1 { "Message " (message.id) } a href="/queue" { "The queue" } }
        main #live {
            article class={ "card " (light(message).name()) } {
                p { (pill(light(message), &words(message))) }
                dl {
                    dt { "From" } dd { (message.from.as_deref().unwrap_or("none")) }
                    dt { "MAIL FROM" } dd { "<" (message.mail_from) ">" }
                    dt { "Message-Id" } dd { (message.message_id.as_deref().unwrap_or("none")) }
                    dt { "Accepted" } dd { (time(message.received_at, now)) ", " (message.size) " bytes" }
                    dt { "Mailbox" } dd { (message.mailbox) ", by the rule " code { (message.rule) } }
                    @if message.state == QueuedState::Waiting {
                        dt { "Next attempt" } dd { (time(message.next_attempt_at, now)) }
                    }
                }
                @if let Some(advice) = advice { p { strong { "What to do: " } (sentence(&advice)) } }
                @if message.state == QueuedState::Held {
                    p { "Nobody knows whether it was sent, and Sent Items cannot be looked into. To try it again may send it twice." }
                }
                form.actions method="post" {
                    (csrf_field(csrf))
                    button type="submit" formaction=(format!("/queue/{}/retry", message.id)) { "Try now" }
                    button.quiet type="submit" formaction=(format!("/queue/{}/cancel", message.id)) { "Cancel it" }
                }
            }
            h2 { "Recipients" }
            @for recipient in &message.recipients { (line_of(recipient)) }
            h2 { "Attempts" }
            @if message.attempts.is_empty() { p.quiet { "None yet." } }
            @for attempt in message.attempts.iter().rev() {
                article.card {
                    h3 { (attempt.number) ". " (attempt.outcome.as_deref().unwrap_or("under way")) }
                    p.quiet { (time(attempt.started_at, now)) }
                    @if let Some(said) = attempt.said() { p { (said) } }
                }
            }
        }
    };
    frame(Reader::Administrator, "A message", None, &body)
}

fn line_of(recipient: &Recipient) -> Markup {
    let Recipient { address, state, reply, .. } = recipient;
    let words = match state {
        RecipientState::Waiting => "waiting",
        RecipientState::Unknown => "unknown: it may have been sent",
        RecipientState::Sent => "sent",
        RecipientState::Failed => "failed",
    };
    html! { p { (address) ": " (words) @if let Some(reply) = reply { " – " (reply) } } }
}

fn light(message: &Queued) -> Light {
    match message.state {
        QueuedState::Waiting if message.attempts.is_empty() => Light::Green,
        QueuedState::Sending => Light::Green,
        QueuedState::Waiting => Light::Amber,
        QueuedState::Held | QueuedState::Failed => Light::Red,
    }
}

fn words(message: &Queued) -> String {
    let unknown = message.recipients.iter().any(|one| one.state == RecipientState::Unknown);
    match message.state {
        QueuedState::Waiting if unknown => "Being looked for in Sent Items",
        QueuedState::Waiting if message.attempts.is_empty() => "Waiting",
        QueuedState::Waiting => "Tried again later",
        QueuedState::Sending => "Being sent",
        QueuedState::Held => "Held: a person decides",
        QueuedState::Failed => "Given up",
    }
    .to_owned()
}

fn to(message: &Queued) -> String {
    match message.recipients.as_slice() {
        [] => "nobody".to_owned(),
        [one] => one.address.clone(),
        [first, rest @ ..] => format!("{} and {} more", first.address, rest.len()),
    }
}
