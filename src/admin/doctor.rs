//! `POST /doctor?mailbox=ADDRESS`: the running daemon examines a mailbox, or all, for `outlook-relay doctor`. Only the
//! daemon may refresh its tokens, so the command asks it.

use super::Sources;
use crate::address::Address;
use crate::clock;
use axum::Json;
use axum::extract::{Request, State};
use axum::http::{StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use url::form_urlencoded;

/// Where the command asks.
pub const PATH: &str = "/doctor";

pub(super) async fn doctor(State(sources): State<Sources>, request: Request) -> Response {
    // A page elsewhere may make a browser post here, and the browser says so.
    if request.headers().contains_key(header::ORIGIN) {
        return (StatusCode::FORBIDDEN, "this is for `outlook-relay doctor`, not for browsers\n")
            .into_response();
    }
    let named = named(request.uri());
    let only = match named.as_deref().map(|named| (named, Address::normalise(named))) {
        None => None,
        Some((_, Some(address))) if sources.doctor.knows(&address) => Some(address),
        Some((named, _)) => {
            let named = crate::failure::one_line(named);
            let text =
                format!("{named} is no mailbox of the running daemon: restart it if you just added it\n");
            return (StatusCode::NOT_FOUND, text).into_response();
        }
    };
    Json(Box::pin(sources.doctor.examine(only.as_ref(), clock::now())).await).into_response()
}

/// The mailbox that the query names.
fn named(uri: &Uri) -> Option<String> {
    let query = uri.query().unwrap_or_default();
    form_urlencoded::parse(query.as_bytes())
        .find_map(|(key, value)| (key == "mailbox").then(|| value.into_owned()))
}
