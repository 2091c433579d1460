//! Has doctor examine mailboxes: for the page's button, and for `outlook-relay doctor`, since only the running daemon may
//! refresh its tokens.

use super::door::Asker;
use super::frame::{Reader, by_button, frame, pill, sentence};
use super::light::Light;
use super::{Admin, fields, not_for_you};
use crate::address::Address;
use crate::clock;
use crate::doctor::{Finding, Outcome, Report};
use crate::failure::one_line;
use axum::Json;
use axum::body::Bytes;
use axum::extract::{Extension, Path, RawQuery, State};
use axum::http::StatusCode;
use axum::response::{Html, IntoResponse, Response};
use maud::{Markup, html};
use std::sync::Arc;

/// Where the command asks.
pub const PATH: &str = "/doctor";

/// `POST /doctor?mailbox=ADDRESS`: one mailbox, or all, for the command. A page cannot ask here: [`super::door`] refuses
/// what a page elsewhere makes a browser send.
pub(super) async fn doctor(
    State(admin): State<Arc<Admin>>,
    Extension(asker): Extension<Asker>,
    RawQuery(query): RawQuery,
) -> Response {
    if !admin.may_read(&asker, clock::now()) {
        return not_for_you();
    }
    let doctor = &admin.sources.doctor;
    let named = fields(query.unwrap_or_default().as_bytes()).remove("mailbox");
    let only = match named.as_deref().map(|named| (named, Address::normalise(named))) {
        None => None,
        Some((_, Some(address))) if doctor.knows(&address) => Some(address),
        Some((named, _)) => {
            let named = one_line(named);
            let text =
                format!("{named} is no mailbox of the running daemon: reload it if you just added it\n");
            return (StatusCode::NOT_FOUND, text).into_response();
        }
    };
    Json(Box::pin(doctor.examine(only.as_ref(), clock::now())).await).into_response()
}

/// `POST /test/{mailbox}`: the page's button.
pub(super) async fn test(
    State(admin): State<Arc<Admin>>,
    Extension(asker): Extension<Asker>,
    Path(mailbox): Path<String>,
    body: Bytes,
) -> Response {
    let now = clock::now();
    let mailbox = match admin.pressed(&asker, &mailbox, &body, now) {
        Ok(mailbox) => mailbox,
        Err(refused) => return *refused,
    };
    let report = Box::pin(admin.sources.doctor.examine(Some(&mailbox), now)).await;
    Html(page(&mailbox, &report).into_string()).into_response()
}

/// What was found, each check with seen, meaning and remedy: pure.
fn page(mailbox: &Address, report: &Report) -> Markup {
    let light = if report.well { Light::Green } else { Light::Red };
    let words = if report.well { "All works" } else { "Not all works" };
    let body = html! {
        main.report {
            h1 { "Test of " (mailbox) }
            p.summary role="status" { (pill(light, words)) }
            p.quiet { "Every step was tried out. No mail was sent." }
            @for finding in &report.findings { (card(finding)) }
            p.actions { a.button href="/" { "To the mailboxes" } }
        }
    };
    frame(Reader::Administrator, &format!("Test of {mailbox}"), None, &body)
}

fn card(finding: &Finding) -> Markup {
    let (light, word) = match finding.outcome {
        Outcome::Ok => ("green", "Works"),
        Outcome::Warning => ("amber", "Works, but"),
        Outcome::Failed => ("red", "Fails"),
        Outcome::Skipped => ("", "Not tried"),
    };
    let is_trouble = matches!(finding.outcome, Outcome::Warning | Outcome::Failed);
    html! {
        section class={ "card failure " (light) } {
            h3 { (word) ": " (finding.check.as_str()) }
            dl {
                dt { "Seen" } dd { (sentence(&finding.seen)) }
                @if is_trouble {
                    dt { "Meaning" } dd { (sentence(&finding.meaning)) }
                    dt { "Remedy" } dd { (sentence(&by_button(&finding.remedy, "press Connect on the page of the mailboxes"))) }
                }
            }
            @if !finding.commands.is_empty() {
                pre { @for line in &finding.commands { (line) "\n" } }
            }
        }
    }
}
