//! Microsoft's way back to the command line: a listener of its own on loopback (RFC 8252 section 7.3), for one sign-in.

use super::{Answer, Connected, ConsentError, Consents, pending};
use crate::clock;
use futures_util::stream::{FuturesUnordered, StreamExt};
use std::io;
use std::net::Ipv4Addr;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Browsers open a connection or two ahead and leave them idle: one that says nothing must not hold up the one that does.
const MOST_CONNECTIONS: usize = 8;
/// A request has to be here within this time, and an answer taken.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Request line and headers have at most so many bytes. A code has about a thousand.
const MOST_BYTES: usize = 32 * 1024;

/// The listener.
#[derive(Debug)]
pub struct Loopback {
    listener: TcpListener,
    port: u16,
}

/// What a browser asks for.
#[derive(Debug)]
enum Asked {
    /// It comes from Microsoft.
    Back { state: String, answer: Answer },
    /// Something else, like the page's icon: a status and why.
    Other(&'static str, &'static str),
}

impl Loopback {
    /// Listens on a free port.
    ///
    /// # Errors
    /// The system's.
    pub async fn bind() -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let port = listener.local_addr()?.port();
        Ok(Self { listener, port })
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The redirect URI. Microsoft takes any port where the app has `http://localhost` registered, but compares the path:
    /// hence none.
    pub fn redirect_uri(&self) -> String {
        format!("http://localhost:{}", self.port)
    }

    /// Waits for the browser to come back, for as long as a sign-in may take, and finishes the sign-in.
    ///
    /// # Errors
    /// As [`Consents::finish`]. A request that belongs to no sign-in is answered, and the wait goes on.
    pub async fn wait(self, consents: &Consents, session: &str) -> Result<Connected, ConsentError> {
        let lifetime = Duration::try_from(pending::LIFETIME).unwrap_or_default();
        let over = tokio::time::sleep(lifetime);
        tokio::pin!(over);
        let mut open = FuturesUnordered::new();
        loop {
            tokio::select! {
                () = &mut over => return Err(ConsentError::Expired),
                Some(ended) = open.next(), if !open.is_empty() => {
                    if let Some(outcome) = ended {
                        return outcome;
                    }
                }
                accepted = self.listener.accept(), if open.len() < MOST_CONNECTIONS => match accepted {
                    Ok((stream, _)) => open.push(Box::pin(serve(stream, consents, session))),
                    // Out of file descriptors: it passes.
                    Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
                },
            }
        }
    }
}

/// Answers one request; says how the sign-in ended, if it did.
async fn serve(
    mut stream: TcpStream,
    consents: &Consents,
    session: &str,
) -> Option<Result<Connected, ConsentError>> {
    let head = tokio::time::timeout(TIMEOUT, head(&mut stream)).await.ok()??;
    let (status, text, outcome) = match asked(&head) {
        Asked::Back { state, answer } => {
            let outcome = Box::pin(consents.finish(&state, answer, session, clock::now())).await;
            let (status, text) = match &outcome {
                Ok(connected) => {
                    ("200 OK", format!("Outlook token valid: {} is connected.", connected.mailbox))
                }
                Err(error) => ("400 Bad Request", format!("Not connected: {error}.")),
            };
            let ended = !matches!(outcome, Err(ConsentError::UnknownState));
            (status, format!("{text}\n\nYou can close this window.\n"), ended.then_some(outcome))
        }
        Asked::Other(status, text) => (status, text.to_owned(), None),
    };
    // Plain text: nothing that Microsoft says can become markup.
    let answer = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {}\r\nCache-Control: \
         no-store\r\nReferrer-Policy: no-referrer\r\nX-Content-Type-Options: nosniff\r\nContent-Security-Policy: \
         default-src 'none'\r\nConnection: close\r\n\r\n{text}",
        text.len()
    );
    let sent = async {
        stream.write_all(answer.as_bytes()).await?;
        stream.shutdown().await?;
        // Closing while something is unread would reset the connection, and the browser lose the page.
        let mut rest = [0; 512];
        while stream.read(&mut rest).await? > 0 {}
        io::Result::Ok(())
    };
    // The outcome counts whether the browser waits for the page or not.
    drop(tokio::time::timeout(TIMEOUT, sent).await);
    outcome
}

/// The request's head; `None` where there is none, or too much of it.
async fn head(stream: &mut TcpStream) -> Option<Vec<u8>> {
    let mut head = Vec::new();
    let mut chunk = [0; 4096];
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        let count = stream.read(&mut chunk).await.ok()?;
        if count == 0 || head.len() + count > MOST_BYTES {
            return None;
        }
        head.extend_from_slice(chunk.get(..count)?);
    }
    Some(head)
}

/// Reads the request line (RFC 9112 section 3). Pure.
fn asked(head: &[u8]) -> Asked {
    let line = head.split(|&byte| byte == b'\r').next().unwrap_or_default();
    let line = String::from_utf8_lossy(line);
    let mut words = line.split(' ');
    let (Some(method), Some(target), Some("HTTP/1.1" | "HTTP/1.0"), None) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        return Asked::Other("400 Bad Request", "This is no HTTP request.\n");
    };
    if method != "GET" {
        return Asked::Other("405 Method Not Allowed", "Only GET is answered here.\n");
    }
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    if path != "/" {
        return Asked::Other("404 Not Found", "There is nothing here.\n");
    }
    let find = |name: &str| {
        let mut pairs = url::form_urlencoded::parse(query.as_bytes());
        pairs.find(|(key, _)| key == name).map(|(_, value)| value.into_owned())
    };
    let answer = match (find("error"), find("code")) {
        (Some(error), _) => {
            Answer::Refused { error, description: find("error_description").unwrap_or_default() }
        }
        (None, Some(code)) => Answer::Code(code),
        (None, None) => {
            return Asked::Other("404 Not Found", "outlook-relay waits here for Microsoft's answer.\n");
        }
    };
    Asked::Back { state: find("state").unwrap_or_default(), answer }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_comes_from_microsoft_is_taken() {
        let cases = [
            ("GET /?code=c%2B1&state=s HTTP/1.1", "s Code c+1"),
            ("GET /?state=s&code=c&session_state=x HTTP/1.1", "s Code c"),
            (
                "GET /?error=access_denied&error_description=The+user+said+no&state=s HTTP/1.1",
                "s access_denied The user said no",
            ),
            ("GET /?error=x&code=c HTTP/1.1", " x "),
            ("GET / HTTP/1.1", "404"),
            ("GET /favicon.ico HTTP/1.1", "404"),
            ("GET /?stat=s HTTP/1.1", "404"),
            ("GET //?code=c&state=s HTTP/1.1", "404"),
            ("POST /?code=c&state=s HTTP/1.1", "405"),
            ("GET /?code=c&state=s HTTP/2", "400"),
            ("GET /?code=c &state=s HTTP/1.1", "400"),
            ("\u{16}\u{3}\u{1}", "400"),
            ("", "400"),
        ];
        for (line, expected) in cases {
            let found = match asked(format!("{line}\r\nHost: localhost\r\n\r\n").as_bytes()) {
                Asked::Back { state, answer: Answer::Code(code) } => format!("{state} Code {code}"),
                Asked::Back { state, answer: Answer::Refused { error, description } } => {
                    format!("{state} {error} {description}")
                }
                Asked::Other(status, _) => status.to_owned(),
            };
            assert!(found.starts_with(expected), "{line:?}: {found}");
        }
    }
}
