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

/// A raw client: one POST on a connection of its own, and the status and body of its answer; `None` if the connection
/// ended without one.
pub async fn post(
    addr: SocketAddr,
    path: &str,
    content_type: &str,
    headers: &[(String, String)],
    body: &[u8],
) -> Option<(u16, String)> {
    let mut wire = Wire::new(TcpStream::connect(addr).await.ok()?);
    wire.say(&format!("POST {path} HTTP/1.1"));
    wire.say("Host: localhost");
    wire.say(&format!("Content-Type: {content_type}"));
    wire.say(&format!("Content-Length: {}", body.len()));
    for (name, value) in headers {
        wire.say(&format!("{name}: {value}"));
    }
    wire.say("");
    wire.write(body);
    let status = wire.line().await.ok()??;
    let status = status.split(' ').nth(1)?.parse().ok()?;
    let mut length = 0;
    loop {
        let line = wire.line().await.ok()??;
        if line.is_empty() {
            break;
        }
        let (name, value) = line.split_once(':')?;
        if name.eq_ignore_ascii_case("content-length") {
            length = value.trim().parse().ok()?;
        }
    }
    let body = wire.exact(length).await.ok()??;
    Some((status, String::from_utf8_lossy(&body).into_owned()))
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
