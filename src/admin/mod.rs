//! What people and monitoring ask the running daemon over HTTP, on loopback: its status, and whether it is healthy.

mod doctor;
mod status;

pub use doctor::PATH as DOCTOR;
pub use status::{InboxStatus, MailboxStatus, Sources, Status};

use crate::failure::chain;
use crate::section::Section;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// How long answers under way may take once a stop was asked for.
const GRACE: Duration = Duration::from_secs(2);

/// The `[admin]` section.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Where it listens.
    pub listen: SocketAddr,
    /// Where browsers reach it.
    pub public_url: Option<String>,
}

impl Config {
    /// Reads `[admin]`.
    pub fn read(section: &mut Section<'_>) -> Self {
        let listen: SocketAddr = section.get_or("listen", SocketAddr::from((Ipv4Addr::LOCALHOST, 8025)));
        if !listen.ip().is_loopback() {
            section.mistake(
                "listen",
                "must be a loopback address, like \"127.0.0.1:8025\": the status is for this machine only",
            );
        }
        Self { listen, public_url: section.get("public_url") }
    }
}

/// Answers until `stop`. A connection on which nobody asks anything does not hold that up.
///
/// # Errors
/// The listener's.
pub async fn serve(listener: TcpListener, sources: Sources, stop: CancellationToken) -> std::io::Result<()> {
    let router = Router::new()
        .route("/status", get(status))
        .route("/healthz", get(healthz))
        .route(DOCTOR, post(doctor::doctor))
        .with_state(sources)
        .layer(middleware::from_fn(only_local_names));
    let serving = axum::serve(listener, router).with_graceful_shutdown(stop.clone().cancelled_owned());
    let grace_is_over = async {
        stop.cancelled().await;
        tokio::time::sleep(GRACE).await;
    };
    tokio::select! {
        served = serving.into_future() => served,
        () = grace_is_over => Ok(()),
    }
}

async fn status(State(sources): State<Sources>) -> Response {
    match sources.gather().await {
        Ok(status) => Json(status).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, chain(&error)).into_response(),
    }
}

/// Whether the daemon works: that a mailbox is in trouble is no reason to restart it.
async fn healthz(State(sources): State<Sources>) -> Response {
    match sources.store.totals().await {
        Ok(_) => match sources.store.unwritable() {
            None => "well\n".into_response(),
            Some(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("the store cannot be written: {why}\n"))
                .into_response(),
        },
        Err(error) => (StatusCode::SERVICE_UNAVAILABLE, chain(&error)).into_response(),
    }
}

/// Answers only those who asked for this machine by name: a page elsewhere, whose name was rebound to 127.0.0.1, asks
/// for its own (DNS rebinding).
async fn only_local_names(request: Request, next: Next) -> Response {
    let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    if is_local_name(host) {
        next.run(request).await
    } else {
        (StatusCode::MISDIRECTED_REQUEST, "ask for this machine as 127.0.0.1 or localhost\n").into_response()
    }
}

fn is_local_name(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    let address = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
    name.eq_ignore_ascii_case("localhost")
        || address.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_names_are_answered() {
        for host in ["localhost", "LOCALHOST:8025", "127.0.0.1:8025", "127.0.0.2", "[::1]:8025", "[::1]"] {
            assert!(is_local_name(host), "{host}");
        }
        for host in
            ["", "evil.example", "localhost.evil.example:8025", "127.0.0.1.evil.example", "10.0.0.1", "::1:x"]
        {
            assert!(!is_local_name(host), "{host}");
        }
    }
}
