//! The administrator's password.

use super::door::{Asker, Renewed};
use super::frame::{Reader, csrf_field, message};
use super::limiter::Limiter;
use super::session::Visitor;
use super::{Admin, fields};
use crate::clock;
use axum::body::Bytes;
use axum::extract::{Extension, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Redirect, Response};
use maud::html;
use std::sync::{Arc, Mutex, PoisonError};

/// How often the password was tried: directly, and through a proxy. Apart, so that strangers who guess cannot keep out
/// who sits on this machine. (Of which stranger a try is nobody can tell for sure.)
pub(super) type Tries = Mutex<[Limiter; 2]>;

/// `GET /login`
pub(super) async fn form(State(admin): State<Arc<Admin>>, Extension(asker): Extension<Asker>) -> Response {
    if admin.config.password.is_none() {
        return Redirect::to("/").into_response();
    }
    ask(&admin, &asker, StatusCode::OK, None)
}

/// `POST /login`
pub(super) async fn sign_in(
    State(admin): State<Arc<Admin>>,
    Extension(asker): Extension<Asker>,
    body: Bytes,
) -> Response {
    let form = fields(&body);
    if let Some(forged) = admin.refuse_forged(&asker, &form) {
        return forged;
    }
    let Some(password) = &admin.config.password else {
        return Redirect::to("/").into_response();
    };
    let now = clock::now();
    // Counted before the password is looked at, so that tries at the same time count as well.
    let mut tries = admin.tries.lock().unwrap_or_else(PoisonError::into_inner);
    let [direct, elsewhere] = &mut *tries;
    let limiter = if asker.direct { direct } else { elsewhere };
    if let Err(wait) = limiter.take(now) {
        drop(tries);
        let seconds = wait.as_secs().max(1);
        tracing::warn!(direct = asker.direct, "too many wrong passwords on the page");
        let words = format!("Too many wrong passwords: try again in {seconds} seconds.");
        let mut response = ask(&admin, &asker, StatusCode::TOO_MANY_REQUESTS, Some(&words));
        response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
        return response;
    }
    if !admin.sessions.is_password(form.get("password").map(String::as_str).unwrap_or_default(), password) {
        drop(tries);
        tracing::warn!(direct = asker.direct, "wrong password on the page");
        return ask(&admin, &asker, StatusCode::FORBIDDEN, Some("That is not the password."));
    }
    limiter.right();
    drop(tries);
    tracing::info!(direct = asker.direct, "administrator signed in");
    let visitor = Visitor::new(rand::random());
    admin.sessions.sign_in(visitor.clone(), now);
    renewed(visitor, "/")
}

/// `POST /logout`
pub(super) async fn sign_out(
    State(admin): State<Arc<Admin>>,
    Extension(asker): Extension<Asker>,
    body: Bytes,
) -> Response {
    if let Some(forged) = admin.refuse_forged(&asker, &fields(&body)) {
        return forged;
    }
    admin.sessions.sign_out(&asker.visitor);
    renewed(Visitor::new(rand::random()), "/login")
}

fn renewed(visitor: Visitor, to: &str) -> Response {
    let mut response = Redirect::to(to).into_response();
    response.extensions_mut().insert(Renewed(visitor));
    response
}

fn ask(admin: &Admin, asker: &Asker, status: StatusCode, wrong: Option<&str>) -> Response {
    let text = html! {
        @if let Some(wrong) = wrong { p role="alert" { strong { (wrong) } } }
        form method="post" action="/login" {
            (csrf_field(&admin.sessions.csrf(&asker.visitor)))
            label for="password" { "The administrator's password" }
            input #password type="password" name="password" autocomplete="current-password" required autofocus;
            p.actions { button type="submit" { "Sign in" } }
        }
        p.quiet { "It stands in the file that " code { "password_file" } " in " code { "[admin]" } " names." }
    };
    let light = if wrong.is_some() { "red" } else { "" };
    message(Reader::Guest, status, light, "outlook-relay", &text)
}
