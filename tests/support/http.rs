//! As much of HTTP/1.1 as the doubles need, by hand, because they must also be able to break it.

use std::io;
use std::net::SocketAddr;

use tokio::net::TcpStream;

use super::wire::Wire;

/// One request, read to its end.
pub struct Request {
    pub method: String,
    /// Path and query.
    pub path: String,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Request {
    /// The first header of this (lower case) name.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

/// The next request, or `None` when the client has closed.
pub async fn read_request(wire: &mut Wire) -> io::Result<Option<Request>> {
    let Some(first) = wire.line().await? else {
        return Ok(None);
    };
    let mut words = first.split(' ');
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let mut request =
        Request { method: method.to_owned(), path: path.to_owned(), headers: Vec::new(), body: Vec::new() };
    loop {
        let Some(line) = wire.line().await? else {
            return Ok(None);
        };
        if line.is_empty() {
            break;
        }
        let (name, value) = line.split_once(':').unwrap_or((&line, ""));
        request.headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
    if request.header("expect").is_some() {
        wire.say("HTTP/1.1 100 Continue\r\n");
    }
    if request.header("transfer-encoding").is_some() {
        loop {
            let Some(size) = wire.line().await? else {
                return Ok(None);
            };
            let size = size.split(';').next().unwrap_or_default().trim();
            let size = usize::from_str_radix(size, 16).map_err(io::Error::other)?;
            let Some(chunk) = wire.exact(size + 2).await? else {
                return Ok(None);
            };
            if size == 0 {
                break;
            }
            request.body.extend_from_slice(&chunk[..size]);
        }
    } else if let Some(length) = request.header("content-length") {
        let length = length.parse().map_err(io::Error::other)?;
        let Some(body) = wire.exact(length).await? else {
            return Ok(None);
        };
        request.body = body.into();
    }
    Ok(Some(request))
}

/// Queues a response. `close` announces that the connection ends with it; the caller then ends it.
pub fn respond(
    wire: &mut Wire,
    status: u16,
    content_type: &str,
    headers: &[(String, String)],
    body: &[u8],
    close: bool,
) {
    wire.say(&format!("HTTP/1.1 {status} {}", reason(status)));
    wire.say(&format!("Content-Type: {content_type}"));
    wire.say(&format!("Content-Length: {}", body.len()));
    if close {
        wire.say("Connection: close");
    }
    for (name, value) in headers {
        wire.say(&format!("{name}: {value}"));
    }
    wire.say("");
    wire.write(body);
}

/// An answer, as a raw client sees it.
#[derive(Clone, Debug)]
pub struct Response {
    pub status: u16,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: String,
}

impl Response {
    /// The first header of this (lower case) name; empty if there is none.
    pub fn header(&self, name: &str) -> &str {
        self.headers.iter().find(|(key, _)| key == name).map_or("", |(_, value)| value.as_str())
    }
}

/// A raw client: one request on a connection of its own, and its answer; `None` if the connection ended without one. A
/// `Host` among the headers takes the place of `localhost`.
pub async fn request(
    addr: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(String, String)],
    body: &[u8],
) -> Option<Response> {
    let mut wire = Wire::new(TcpStream::connect(addr).await.ok()?);
    wire.say(&format!("{method} {path} HTTP/1.1"));
    if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
        wire.say("Host: localhost");
    }
    if !body.is_empty() || method == "POST" {
        wire.say(&format!("Content-Length: {}", body.len()));
    }
    for (name, value) in headers {
        wire.say(&format!("{name}: {value}"));
    }
    wire.say("");
    wire.write(body);
    let status = wire.line().await.ok()??;
    let mut response = Response {
        status: status.split(' ').nth(1)?.parse().ok()?,
        headers: Vec::new(),
        body: String::new(),
    };
    loop {
        let line = wire.line().await.ok()??;
        if line.is_empty() {
            break;
        }
        let (name, value) = line.split_once(':')?;
        response.headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
    let length = response.header("content-length").parse().unwrap_or_default();
    let body = wire.exact(length).await.ok()??;
    response.body = String::from_utf8_lossy(&body).into_owned();
    Some(response)
}

/// One POST, and the status and body of its answer.
pub async fn post(
    addr: SocketAddr,
    path: &str,
    content_type: &str,
    headers: &[(String, String)],
    body: &[u8],
) -> Option<(u16, String)> {
    let content_type = ("Content-Type".to_owned(), content_type.to_owned());
    let headers: Vec<_> = std::iter::once(content_type).chain(headers.iter().cloned()).collect();
    request(addr, "POST", path, &headers, body).await.map(|answer| (answer.status, answer.body))
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        302 => "Found",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        413 => "Request Entity Too Large",
        429 => "Too Many Requests",
        500 => "Internal Server Error",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        _ => "Unknown",
    }
}
