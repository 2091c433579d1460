//! What browsers and monitoring ask the daemon over HTTP: the administrator's page, the pages on which a mailbox's owner
//! consents, status, health and metrics.
//!
//! It listens on loopback only; a reverse proxy may pass `public_url` on to it. Every request passes [`door`] first.
//!
//! | path | for |
//! | --- | --- |
//! | `/`, `/queue/…`, `/connect/…`, `/test/…`, `/logout` | who gave the password; where there is none, who sits on this machine |
//! | `/login` | everybody, a few times a minute |
//! | `/invite/…`, `/microsoft_outlook/confirm` | everybody: the link, or Microsoft's `state`, is the right |
//! | `/status`, `/metrics`, `/doctor` | programs on this machine, and who gave the password |
//! | `/healthz`, style sheet, script and icon | everybody |

mod consent;
mod doctor;
mod door;
mod frame;
mod light;
mod limiter;
mod login;
mod metrics;
mod page;
mod process;
mod queue;
mod server;
mod session;
mod status;

pub use doctor::PATH as DOCTOR;
pub use status::{ConsentStatus, Direction, InboxStatus, LastFailure, MailboxStatus, Sources, Status};

use crate::address::Address;
use crate::clock;
use crate::consent::Consents;
use crate::failure::{Class, Failure, chain};
use crate::mailbox::Trouble;
use crate::section::Section;
use axum::extract::{Extension, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{Html, IntoResponse, Redirect, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use door::Asker;
use frame::Reader;
use jiff::Timestamp;
use limiter::Limiter;
use maud::html;
use process::Process;
use secrecy::{ExposeSecret as _, SecretString};
use session::Sessions;
use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use url::Url;

/// How long a request may be worked on. Longest is an examination of many mailboxes whose servers are silent.
const WORK: Duration = Duration::from_secs(15 * 60);
/// How long a request's body may take.
const BODY: Duration = Duration::from_secs(10);
/// Octets of a request's body: forms of a few fields.
const MAX_BODY: usize = 8 * 1024;

/// The `[admin]` section.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where it listens.
    pub listen: SocketAddr,
    /// Where browsers reach it, without a slash at the end; `None`: on this machine only.
    pub public_url: Option<String>,
    /// The administrator's password; `None`: the page is for this machine only.
    pub password: Option<SecretString>,
}

impl Config {
    /// Reads `[admin]`.
    pub fn read(section: &mut Section<'_>) -> Self {
        let listen: SocketAddr = section.get_or("listen", SocketAddr::from((Ipv4Addr::LOCALHOST, 8025)));
        if !listen.ip().is_loopback() {
            section.mistake(
                "listen",
                "must be a loopback address, like \"127.0.0.1:8025\": for other machines, put a reverse proxy with TLS \
                 in front and set public_url",
            );
        }
        let public_url: Option<String> = section.get("public_url");
        let public_url = public_url.and_then(|url| match public_origin(&url) {
            Ok(url) => Some(url.origin().ascii_serialization()),
            Err(mistake) => {
                section.mistake("public_url", mistake);
                None
            }
        });
        Self { listen, public_url, password: section.secret_file("password_file") }
    }

    fn public_url(&self) -> Option<Url> {
        self.public_url.as_deref().and_then(|url| public_origin(url).ok())
    }
}

/// `public_url` as a URL, if it is one that can work.
fn public_origin(text: &str) -> Result<Url, &'static str> {
    let url = Url::parse(text)
        .ok()
        .filter(|url| url.has_host() && matches!(url.scheme(), "https" | "http"))
        .ok_or("is not a URL, like \"https://odoo.example.com\"")?;
    let is_bare = url.path() == "/" && url.query().is_none() && url.fragment().is_none();
    if !is_bare || !url.username().is_empty() || url.password().is_some() {
        return Err("must be scheme and host alone, like \"https://odoo.example.com\"");
    }
    if url.scheme() == "http" && !url.host_str().is_some_and(door::is_local_name) {
        return Err("must begin with https://: Microsoft sends nobody back to http, except to localhost");
    }
    Ok(url)
}

/// What all requests share.
struct Admin {
    config: Config,
    sources: Sources,
    consents: Consents,
    sessions: Arc<Sessions>,
    tries: Arc<login::Tries>,
    /// That the store cannot be read, as who asks for health finds out.
    store_trouble: Arc<Trouble>,
}

/// Whether somebody may see and use the administrator's page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Access {
    Granted,
    /// The password first.
    SignIn,
    /// There is no password, and this is not somebody on this machine.
    Closed,
}

impl Admin {
    fn access(&self, asker: &Asker, now: Timestamp) -> Access {
        match self.config.password {
            Some(_) if self.sessions.is_signed_in(&asker.visitor, now) => Access::Granted,
            Some(_) => Access::SignIn,
            None if asker.direct => Access::Granted,
            None => Access::Closed,
        }
    }

    /// Whether a program may read status and metrics, and have doctor look. On this machine it needs no password, so that
    /// the commands and monitoring work without one: nothing of it holds a secret or does harm. From elsewhere it does.
    fn may_read(&self, asker: &Asker, now: Timestamp) -> bool {
        asker.direct || self.access(asker, now) == Access::Granted
    }

    /// The answer to who may not use the page.
    fn refuse(access: Access) -> Option<Response> {
        match access {
            Access::Granted => None,
            Access::SignIn => Some(Redirect::to("/login").into_response()),
            Access::Closed => Some(frame::message(
                Reader::Guest,
                StatusCode::FORBIDDEN,
                "red",
                "This page is closed",
                &html! {
                    p {
                        "It has no password, so it opens only on the machine of the relay itself, as "
                        code { "http://localhost" } ". To open it from elsewhere, set " code { "password_file" }
                        " in " code { "[admin]" } " and start the relay again."
                    }
                },
            )),
        }
    }

    /// The mailbox whose button somebody pressed, who may, on a page that we sent to this browser; else the answer.
    fn pressed(
        &self,
        asker: &Asker,
        named: &str,
        form: &[u8],
        now: Timestamp,
    ) -> Result<Address, Box<Response>> {
        let refused = Self::refuse(self.access(asker, now));
        match refused.or_else(|| self.refuse_forged(asker, &fields(form))) {
            Some(refused) => Err(Box::new(refused)),
            None => self.known(named),
        }
    }

    /// The mailbox that a path names, or the answer that there is none.
    fn known(&self, named: &str) -> Result<Address, Box<Response>> {
        let known =
            |address: &Address| self.sources.mailboxes.iter().any(|mailbox| mailbox.address() == address);
        Address::normalise(named).filter(known).ok_or_else(|| {
            let text = html! { p { "It is not in the relay's configuration." } };
            let status = StatusCode::NOT_FOUND;
            Box::new(frame::message(Reader::Guest, status, "red", "There is no such mailbox", &text))
        })
    }

    /// The answer to a form that did not come from a page that we sent to this browser.
    fn refuse_forged(&self, asker: &Asker, form: &HashMap<String, String>) -> Option<Response> {
        let token = form.get("csrf").map(String::as_str).unwrap_or_default();
        (!self.sessions.is_csrf(&asker.visitor, token)).then(|| {
            frame::message(
                Reader::Guest,
                StatusCode::FORBIDDEN,
                "red",
                "This form is not from here",
                &html! {
                    p {
                        "It was not made for this browser, or the relay was restarted since, or cookies are off. Go back, "
                        "reload the page and try again."
                    }
                },
            )
        })
    }
}

/// What is answered with, which may be exchanged at any time: each request finds what then holds.
pub struct Page {
    admin: Arc<Admin>,
    router: watch::Sender<Router>,
}

impl Page {
    /// Nobody is signed in yet.
    pub fn new(config: Config, sources: Sources, consents: Consents) -> Self {
        let sessions = Arc::new(Sessions::new(rand::random()));
        let tries = Arc::new(Mutex::new([Limiter::default(); 2]));
        let trouble = Trouble::new("store failed", "store recovered", "page", String::new());
        let store_trouble = Arc::new(trouble);
        let admin = Arc::new(Admin { config, sources, consents, sessions, tries, store_trouble });
        let router = watch::Sender::new(router(admin.clone()));
        Self { admin, router }
    }

    /// Exchanges all of it. Another password signs everybody out.
    pub fn set(&mut self, config: Config, sources: Sources, consents: Consents) {
        let Admin { config: before, sessions, tries, store_trouble, .. } = &*self.admin;
        let secret =
            |config: &Config| config.password.as_ref().map(|password| password.expose_secret().to_owned());
        let sessions = if secret(before) == secret(&config) {
            sessions.clone()
        } else {
            Arc::new(Sessions::new(rand::random()))
        };
        let (tries, store_trouble) = (tries.clone(), store_trouble.clone());
        self.admin = Arc::new(Admin { config, sources, consents, sessions, tries, store_trouble });
        drop(self.router.send_replace(router(self.admin.clone())));
    }

    /// Answers until `stop`.
    pub fn serve(
        &self,
        listener: TcpListener,
        stop: CancellationToken,
    ) -> impl Future<Output = ()> + Send + use<> {
        server::serve(listener, self.router.subscribe(), stop)
    }
}

fn router(admin: Arc<Admin>) -> Router {
    Router::new()
        .route("/", get(front))
        .route("/login", get(login::form).post(login::sign_in))
        .route("/logout", post(login::sign_out))
        .route("/connect/{mailbox}", post(consent::connect))
        .route("/invite/{token}", get(consent::invitation).post(consent::accept))
        .route("/microsoft_outlook/confirm", get(consent::confirm))
        .route("/queue", get(queue::list))
        .route("/queue/{id}", get(queue::show))
        .route("/queue/{id}/{deed}", post(queue::change))
        .route("/status", get(status))
        .route("/metrics", get(metrics))
        .route("/healthz", get(healthz))
        .route(DOCTOR, post(doctor::doctor))
        .route("/test/{mailbox}", post(doctor::test))
        .route("/page.js", get(|| asset("text/javascript; charset=utf-8", include_str!("assets/page.js"))))
        .route("/page.css", get(style))
        .route("/icon.svg", get(icon))
        .route("/invite/page.css", get(style))
        .route("/invite/icon.svg", get(icon))
        .fallback(nothing)
        .layer(middleware::from_fn(in_bounds))
        .layer(middleware::from_fn_with_state(admin.clone(), door::guard))
        .with_state(admin)
}

/// Takes a request's body in, within bounds, before anybody works on it; and ends what takes too long.
async fn in_bounds(request: Request, next: Next) -> Response {
    let (head, body) = request.into_parts();
    let body = match timeout(BODY, axum::body::to_bytes(body, MAX_BODY)).await {
        Ok(Ok(body)) => body,
        Ok(Err(_)) => return (StatusCode::PAYLOAD_TOO_LARGE, "that is too much\n").into_response(),
        Err(_) => return (StatusCode::REQUEST_TIMEOUT, "that took too long\n").into_response(),
    };
    match timeout(WORK, next.run(Request::from_parts(head, body.into()))).await {
        Ok(response) => response,
        Err(_) => (StatusCode::GATEWAY_TIMEOUT, "that took too long\n").into_response(),
    }
}

async fn front(State(admin): State<Arc<Admin>>, Extension(asker): Extension<Asker>) -> Response {
    let now = clock::now();
    if let Some(refused) = Admin::refuse(admin.access(&asker, now)) {
        return refused;
    }
    match admin.sources.gather().await {
        Ok(status) => {
            let csrf = admin.sessions.csrf(&asker.visitor);
            let page = page::page(&status, &csrf, admin.config.password.is_some(), now);
            Html(page.into_string()).into_response()
        }
        Err(error) => frame::message(
            Reader::Administrator,
            StatusCode::INTERNAL_SERVER_ERROR,
            "red",
            "The store cannot be read",
            &html! { p { (chain(&error)) } p { "Check the disk of the store, and the log." } },
        ),
    }
}

async fn status(State(admin): State<Arc<Admin>>, Extension(asker): Extension<Asker>) -> Response {
    if !admin.may_read(&asker, clock::now()) {
        return not_for_you();
    }
    match admin.sources.gather().await {
        Ok(status) => Json(status).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, chain(&error)).into_response(),
    }
}

async fn metrics(State(admin): State<Arc<Admin>>, Extension(asker): Extension<Asker>) -> Response {
    let now = clock::now();
    if !admin.may_read(&asker, now) {
        return not_for_you();
    }
    match admin.sources.gather().await {
        Ok(status) => (
            [(header::CONTENT_TYPE, metrics::CONTENT_TYPE)],
            metrics::text(&status, &admin.sources.counters, &Process::look(), now),
        )
            .into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, chain(&error)).into_response(),
    }
}

fn not_for_you() -> Response {
    (StatusCode::FORBIDDEN, "ask on the machine itself, without a proxy in between, or sign in first\n")
        .into_response()
}

/// Whether the daemon works: that a mailbox is in trouble is no reason to restart it. For everybody, so it says no more.
async fn healthz(State(admin): State<Arc<Admin>>) -> Response {
    match admin.sources.store.totals().await {
        Ok(_) => {
            admin.store_trouble.well();
            match admin.sources.store.unwritable() {
                None => "well\n".into_response(),
                Some(_) => {
                    (StatusCode::SERVICE_UNAVAILABLE, "the store cannot be written: status says why\n")
                        .into_response()
                }
            }
        }
        Err(error) => {
            let failure = Failure::new(Class::Administrator, "store", chain(&error))
                .advise("the store cannot be read: look for a broken disk or missing rights");
            admin.store_trouble.fail(&failure, clock::now());
            (StatusCode::SERVICE_UNAVAILABLE, "the store cannot be read: the log says why\n").into_response()
        }
    }
}

async fn nothing() -> Response {
    let text = html! { p { "Perhaps a part of the address is missing: copy the whole of it." } };
    frame::message(Reader::Guest, StatusCode::NOT_FOUND, "amber", "There is no such page", &text)
}

async fn style() -> Response {
    asset("text/css; charset=utf-8", include_str!("assets/page.css")).await
}

async fn icon() -> Response {
    asset("image/svg+xml", include_str!("assets/icon.svg")).await
}

async fn asset(kind: &'static str, text: &'static str) -> Response {
    ([(header::CONTENT_TYPE, kind)], text).into_response()
}

/// The fields of a form (the URL standard's `application/x-www-form-urlencoded`), or of a query.
fn fields(text: &[u8]) -> HashMap<String, String> {
    url::form_urlencoded::parse(text).into_owned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_public_url_is_an_origin_that_microsoft_can_send_people_back_to() {
        for url in [
            "https://odoo.example.com",
            "https://odoo.example.com/",
            "http://localhost:8025",
            "http://127.0.0.1:80",
        ] {
            assert!(public_origin(url).is_ok(), "{url}");
        }
        for (url, expected) in [
            ("odoo.example.com", "not a URL"),
            ("ftp://odoo.example.com", "not a URL"),
            ("http://odoo.example.com", "https://"),
            ("https://odoo.example.com/relay", "alone"),
            ("https://odoo.example.com/?x", "alone"),
            ("https://me:secret@odoo.example.com", "alone"),
        ] {
            assert!(public_origin(url).is_err_and(|error| error.contains(expected)), "{url}");
        }
    }
}
