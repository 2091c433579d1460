//! The pages on the way to a consent: from the administrator's button or from an invitation to Microsoft, and back.
//!
//! A sign-in is bound to the browser's cookie, which a browser sends to one host only. So it begins where it ends: under
//! the name to which Microsoft sends the browser back ([`Admin::home`]).

use super::door::Asker;
use super::frame::{Reader, by_button, csrf_field, frame, message, seen, segment, sentence};
use super::{Access, Admin, fields};
use crate::address::Address;
use crate::clock;
use crate::consent::invite::{self, InviteError};
use crate::consent::{Answer, Connected, ConsentError};
use crate::failure::{Failure, chain};
use axum::body::Bytes;
use axum::extract::{Extension, Path, RawQuery, State};
use axum::http::StatusCode;
use axum::response::{Html, IntoResponse, Redirect, Response};
use maud::{Markup, html};
use std::sync::Arc;
use std::time::Duration;

/// Where Microsoft sends the browser back to: the path that Odoo's own documentation has people register.
const CONFIRM: &str = "/microsoft_outlook/confirm";
/// How long the administrator may take to press the second button, where there has to be one.
const HOP: Duration = Duration::from_secs(10 * 60);

/// `POST /connect/{mailbox}`: the administrator's button.
pub(super) async fn connect(
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
    if admin.is_home(&asker) {
        return begin(&admin, &asker, &mailbox);
    }
    match invite::issue(&admin.sources.store, &mailbox, clock::after(now, HOP)).await {
        Ok(token) => onward(&format!("{}/invite/{token}", admin.home(&asker)), "the page of this invitation"),
        Err(error) => {
            tracing::warn!(%mailbox, error = %chain(&error), "sign-in failed");
            not_finished(&ConsentError::Store(error))
        }
    }
}

/// `GET /invite/{token}`: what the owner of a mailbox sees first.
pub(super) async fn invitation(
    State(admin): State<Arc<Admin>>,
    Extension(asker): Extension<Asker>,
    Path(token): Path<String>,
) -> Response {
    if !admin.is_home(&asker) {
        return Redirect::to(&format!("{}/invite/{}", admin.home(&asker), segment(&token))).into_response();
    }
    let mailbox = match admin.consents.invited(&token, clock::now()).await {
        Ok(mailbox) => mailbox,
        Err(error) => return not_invited(&error),
    };
    let text = html! {
        p {
            "Your company's Odoo sends and receives mail through Outlook with the help of outlook-relay. To do so as "
            strong { (mailbox) } ", it needs your permission, once."
        }
        ol {
            li { "Press the button. It leads to Microsoft." }
            li { "Choose or enter " strong { (mailbox) } ", and your Microsoft password if you are asked for it." }
            li { "Accept. Microsoft brings you back here." }
        }
        form.actions method="post" action=(format!("/invite/{}", segment(&token))) {
            (csrf_field(&admin.sessions.csrf(&asker.visitor)))
            button type="submit" { "Sign in at Microsoft" }
        }
        p.quiet {
            "Your password stays between you and Microsoft: this page never sees it. You can take the permission back at "
            "any time at " code { "myapps.microsoft.com" } "."
        }
    };
    message(Reader::Guest, StatusCode::OK, "", &format!("Connect {mailbox}"), &text)
}

/// `POST /invite/{token}`
pub(super) async fn accept(
    State(admin): State<Arc<Admin>>,
    Extension(asker): Extension<Asker>,
    Path(token): Path<String>,
    body: Bytes,
) -> Response {
    if let Some(forged) = admin.refuse_forged(&asker, &fields(&body)) {
        return forged;
    }
    if !admin.is_home(&asker) {
        return Redirect::to(&format!("{}/invite/{}", admin.home(&asker), segment(&token))).into_response();
    }
    match admin.consents.invited(&token, clock::now()).await {
        Ok(mailbox) => begin(&admin, &asker, &mailbox),
        Err(error) => not_invited(&error),
    }
}

/// `GET /microsoft_outlook/confirm`: back from Microsoft (RFC 6749 section 4.1.2).
pub(super) async fn confirm(
    State(admin): State<Arc<Admin>>,
    Extension(asker): Extension<Asker>,
    RawQuery(query): RawQuery,
) -> Response {
    let mut query = fields(query.unwrap_or_default().as_bytes());
    let mut take = |name: &str| query.remove(name);
    let (Some(state), code, error) = (take("state"), take("code"), take("error")) else {
        let text =
            html! { p { "This page is where Microsoft sends people back to. Nobody needs to open it." } };
        return message(Reader::Guest, StatusCode::BAD_REQUEST, "amber", "Nothing to confirm", &text);
    };
    let answer = match (code, error) {
        (Some(code), None) => Answer::Code(code),
        (_, error) => Answer::Refused {
            error: error.unwrap_or_else(|| "invalid_request".to_owned()),
            description: take("error_description").unwrap_or_default(),
        },
    };
    // A task of its own: a browser that leaves in the middle does not take the consent along.
    let finishing = {
        let (consents, session) = (admin.consents.clone(), asker.visitor.value().to_owned());
        tokio::spawn(async move { consents.finish(&state, answer, &session, clock::now()).await })
    };
    match finishing.await {
        Ok(Ok(connected)) => {
            let may_go_back = admin.access(&asker, clock::now()) == Access::Granted;
            valid(&connected, may_go_back)
        }
        Ok(Err(error)) => not_finished(&error),
        Err(error) => {
            tracing::error!(task = "sign-in", %error, advice = crate::logging::DEFECT, "task failed");
            let text = html! { p { "The relay's log says more." } };
            message(Reader::Guest, StatusCode::INTERNAL_SERVER_ERROR, "red", "That failed", &text)
        }
    }
}

impl Admin {
    /// Where Microsoft sends this browser back to: scheme, host and port. Without a `public_url` that is `localhost`, the
    /// one name that Microsoft lets be http, on the port that the browser knows: an SSH tunnel may change it.
    fn home(&self, asker: &Asker) -> String {
        self.config.public_url.clone().unwrap_or_else(|| format!("http://localhost{}", port(&asker.host)))
    }

    /// Whether the browser asked by that name.
    fn is_home(&self, asker: &Asker) -> bool {
        let home = self.home(asker);
        home.split_once("://").is_some_and(|(_, host)| asker.host.eq_ignore_ascii_case(host))
    }
}

/// `:8025` of `127.0.0.1:8025`; empty where the port is the scheme's own.
fn port(host: &str) -> &str {
    let at = host.rfind(':').filter(|_| !host.ends_with(']'));
    at.and_then(|at| host.get(at..)).unwrap_or_default()
}

fn begin(admin: &Admin, asker: &Asker, mailbox: &Address) -> Response {
    let redirect_uri = format!("{}{CONFIRM}", admin.home(asker));
    match admin.consents.begin(mailbox, &redirect_uri, asker.visitor.value(), clock::now()) {
        Ok(url) => onward(&url, "Microsoft"),
        Err(error) => not_finished(&error),
    }
}

/// Leads the browser on by a page of its own and not by a redirect: browsers hold `form-action` of our policy against
/// every redirect behind a form, and from Microsoft it may go on to the sign-in page of a company's own.
fn onward(url: &str, to: &str) -> Response {
    let heading = format!("On to {to} …");
    let body = html! {
        main.narrow {
            section.card {
                h1 { (heading) }
                p { "If nothing happens, press the button." }
                p.actions { a.button href=(url) rel="noreferrer" { "Continue" } }
            }
        }
    };
    Html(frame(Reader::Guest, &heading, Some(url), &body).into_string()).into_response()
}

fn valid(connected: &Connected, may_go_back: bool) -> Response {
    let mailbox = &connected.mailbox;
    let text = html! {
        p { strong { (mailbox) } " is connected: Odoo can use it from now on." }
        @if connected.account != mailbox.as_str() { p { "Signed in as " (connected.account) "." } }
        @if may_go_back {
            p.actions { a.button href="/" { "To the mailboxes" } }
        } @else {
            p { "There is nothing more to do. You may close this page." }
        }
    };
    message(Reader::Guest, StatusCode::OK, "green", "Outlook token valid", &text)
}

fn not_invited(error: &InviteError) -> Response {
    let (status, heading) = match error {
        InviteError::Invalid => (StatusCode::NOT_FOUND, "This link is not valid"),
        InviteError::Expired => (StatusCode::GONE, "This link has expired"),
        InviteError::Revoked => (StatusCode::GONE, "This link does not count any more"),
        InviteError::Unknown(_) => (StatusCode::NOT_FOUND, "This mailbox cannot be connected here"),
        InviteError::Store(_) => (StatusCode::INTERNAL_SERVER_ERROR, "That failed"),
    };
    message(Reader::Guest, status, "red", heading, &html! { p { (sentence(&error.to_string())) "." } })
}

fn not_finished(error: &ConsentError) -> Response {
    let (status, heading) = match error {
        ConsentError::WrongAccount { wanted, signed_in } => return wrong_account(wanted, signed_in),
        ConsentError::UnknownMailbox(_) | ConsentError::AppOnly(_) => {
            (StatusCode::CONFLICT, "This mailbox cannot be connected here")
        }
        ConsentError::UnknownState | ConsentError::Expired | ConsentError::OtherSession => {
            (StatusCode::BAD_REQUEST, "This sign-in does not count")
        }
        ConsentError::Denied(failure) => return denied(failure),
        ConsentError::Failed(failure) => return failed(failure),
        ConsentError::Store(_) => (StatusCode::INTERNAL_SERVER_ERROR, "The consent could not be kept"),
    };
    let text = html! {
        p { (sentence(&error.to_string())) "." }
        p.quiet { "What was there before still is: nothing was lost." }
    };
    message(Reader::Guest, status, "red", heading, &text)
}

/// The owner or a policy said no: words for the owner first, then for who can do something about a policy.
fn denied(failure: &Failure) -> Response {
    let text = html! {
        p { "You did not accept, or your company does not let you." }
        p { "If you did not mean to say no, open the link again and accept. Otherwise show this to your administrator:" }
        (for_the_administrator(failure))
    };
    message(Reader::Guest, StatusCode::FORBIDDEN, "red", "Microsoft said no", &text)
}

fn failed(failure: &Failure) -> Response {
    let text = html! {
        p { "Nothing was lost. Open the link again; if this page comes back, show it to your administrator:" }
        (for_the_administrator(failure))
    };
    message(Reader::Guest, StatusCode::BAD_GATEWAY, "red", "The sign-in could not be finished", &text)
}

fn for_the_administrator(failure: &Failure) -> Markup {
    html! {
        dl {
            dt { "Seen" } dd { (seen(failure)) }
            @if !failure.advice.is_empty() { dt { "Remedy" } dd { (sentence(&by_button(&failure.advice, "sign in again"))) } }
        }
    }
}

fn wrong_account(wanted: &Address, signed_in: &str) -> Response {
    let text = html! {
        p { "You signed in as " strong { (signed_in) } ", but this is for " strong { (wanted) } ". Nothing was kept." }
        ol {
            li { "Go back to where you began: the link that you were sent, or the administrator's page." }
            li { "Sign in again. Where Microsoft asks for the account, choose " strong { (wanted) } " or “Use another account”." }
            li { "If Microsoft does not ask, open the link in a private window." }
        }
        p.quiet {
            "For a shared mailbox, where " (signed_in) " is meant to sign in, the administrator sets "
            code { "sign_in_as = \"" (signed_in) "\"" } " in its " code { "[[mailbox]]" } "."
        }
    };
    message(Reader::Guest, StatusCode::FORBIDDEN, "red", "That was another account", &text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_port_is_the_one_that_the_browser_knows() {
        for (host, expected) in
            [("localhost", ""), ("127.0.0.1:9000", ":9000"), ("[::1]", ""), ("[::1]:80", ":80")]
        {
            assert_eq!(port(host), expected, "{host}");
        }
    }
}
