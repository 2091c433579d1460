//! A scripted token endpoint for this module's tests: HTTP/1.1 on loopback, one request a connection.

use serde_json::{Value, json};
use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// What the endpoint does with a request.
#[derive(Clone)]
pub(super) enum Answer {
    /// A status, headers (each with its line end) and a body.
    Http(u16, &'static str, String),
    /// Closes the connection.
    Cut,
}

impl Answer {
    pub(super) fn json(status: u16, body: &Value) -> Self {
        Self::Http(status, "content-type: application/json\r\n", body.to_string())
    }

    /// New tokens.
    pub(super) fn tokens(number: usize, expires_in: u64) -> Self {
        Self::json(
            200,
            &json!({
                "token_type": "Bearer",
                "expires_in": expires_in,
                "access_token": format!("access-{number}-secret"),
                "refresh_token": format!("refresh-{number}-secret"),
            }),
        )
    }

    /// An error as Microsoft writes it.
    pub(super) fn error(status: u16, error: &str, code: u32) -> Self {
        Self::json(
            status,
            &json!({
                "error": error,
                "error_description": format!("AADSTS{code}: Words.\r\nTrace ID: t-1\r\nCorrelation ID: c-1"),
                "error_codes": [code],
                "trace_id": "t-1",
                "correlation_id": "c-1",
            }),
        )
    }
}

pub(super) struct Script {
    /// The next answers …
    pub(super) answers: VecDeque<Answer>,
    /// … and then those by the request's number, from 1: new tokens.
    pub(super) otherwise: fn(usize) -> Answer,
    /// The form of each request, and under `authorization` that header.
    pub(super) requests: Vec<HashMap<String, String>>,
    /// When each came, by the timers' clock.
    pub(super) times: Vec<Instant>,
    in_flight: usize,
    pub(super) most_in_flight: usize,
}

pub(super) struct Endpoint {
    pub(super) address: SocketAddr,
    pub(super) script: Arc<Mutex<Script>>,
    /// Each answer takes a permit: none, and it is held back.
    pub(super) gate: Arc<Semaphore>,
    server: JoinHandle<()>,
}

impl Endpoint {
    pub(super) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let script = Arc::new(Mutex::new(Script {
            answers: VecDeque::new(),
            otherwise: |number| Answer::tokens(number, 3600),
            requests: Vec::new(),
            times: Vec::new(),
            in_flight: 0,
            most_in_flight: 0,
        }));
        let gate = Arc::new(Semaphore::new(Semaphore::MAX_PERMITS));
        let shared = (script.clone(), gate.clone());
        let server = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (script, gate) = shared.clone();
                tokio::spawn(async move { serve(stream, &script, &gate).await });
            }
        });
        Self { address, script, gate, server }
    }

    /// Holds all answers back until [`Semaphore::add_permits`].
    pub(super) fn hold(&self) {
        self.gate.forget_permits(Semaphore::MAX_PERMITS);
    }

    pub(super) fn next(&self, answer: Answer) {
        self.script.lock().unwrap().answers.push_back(answer);
    }

    pub(super) fn requests(&self) -> Vec<HashMap<String, String>> {
        self.script.lock().unwrap().requests.clone()
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn serve(stream: TcpStream, script: &Mutex<Script>, gate: &Semaphore) {
    let mut stream = BufReader::new(stream);
    let mut length = 0;
    let mut authorization = None;
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).await.unwrap_or(0) == 0 {
            return;
        }
        let line = line.trim_end().to_ascii_lowercase();
        match line.split_once(": ") {
            Some(("content-length", value)) => length = value.parse().unwrap(),
            Some(("authorization", value)) => authorization = Some(value.to_owned()),
            _ if line.is_empty() => break,
            _ => {}
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.unwrap();
    let mut form: HashMap<String, String> = url::form_urlencoded::parse(&body).into_owned().collect();
    form.extend(authorization.map(|value| ("authorization".to_owned(), value)));
    let answer = {
        let mut script = script.lock().unwrap();
        script.requests.push(form);
        script.times.push(Instant::now());
        script.in_flight += 1;
        script.most_in_flight = script.most_in_flight.max(script.in_flight);
        let number = script.requests.len();
        script.answers.pop_front().unwrap_or_else(|| (script.otherwise)(number))
    };
    gate.acquire().await.unwrap().forget();
    script.lock().unwrap().in_flight -= 1;
    if let Answer::Http(status, headers, body) = answer {
        let length = body.len();
        let head = format!(
            "HTTP/1.1 {status} Words\r\n{headers}content-length: {length}\r\nconnection: close\r\n\r\n"
        );
        // The client may have gone away, or have read enough.
        let _ = stream.write_all(head.as_bytes()).await;
        let _ = stream.write_all(body.as_bytes()).await;
        let _ = stream.shutdown().await;
    }
}
