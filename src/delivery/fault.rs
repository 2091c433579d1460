//! What can go wrong in a dialogue, and putting a limit to each of its steps.

use crate::failure::{Class, Failure, chain};
use crate::microsoft::smtp_replies::{Reply, Step};
use lettre::transport::smtp::response::Response;
use std::error::Error as _;
use std::time::Duration;
use tokio::time::timeout;

/// What keeps a connection from being used.
#[derive(Debug)]
pub(super) enum Fault {
    /// The service said no.
    Refused(Step, Reply),
    /// Anything else: it is lost, silent, or no such service.
    Failed(Failure),
}

impl Fault {
    /// As a failure of `what`, where a refusal is as bad as a loss.
    pub(super) fn into_failure(self, what: &str) -> Failure {
        match self {
            Self::Refused(_, reply) => {
                Failure::new(Class::Transient, "protocol", format!("{what} was answered with {reply}"))
            }
            Self::Failed(failure) => failure,
        }
    }
}

pub(super) async fn timed<T>(
    limit: Duration,
    what: &'static str,
    io: impl Future<Output = std::io::Result<T>>,
) -> Result<T, Fault> {
    match timeout(limit, io).await {
        Err(_) => Err(silent(what, limit)),
        Ok(done) => done.map_err(|error| Fault::Failed(lost(what, &error))),
    }
}

pub(super) async fn step<T>(
    limit: Duration,
    at: Step,
    what: &'static str,
    command: impl Future<Output = Result<T, lettre::transport::smtp::Error>>,
) -> Result<T, Fault> {
    match timeout(limit, command).await {
        Err(_) => Err(silent(what, limit)),
        Ok(done) => done.map_err(|error| fault(at, what, &error)),
    }
}

/// What lettre's error is: a negative reply, or the end of the connection.
pub(super) fn fault(at: Step, what: &'static str, error: &lettre::transport::smtp::Error) -> Fault {
    match error.status() {
        Some(code) => {
            let text = error.source().map(ToString::to_string).unwrap_or_default();
            Fault::Refused(at, Reply::new(code.into(), &text))
        }
        None => Fault::Failed(lost(what, error)),
    }
}

pub(super) fn lost(what: &str, error: &(dyn std::error::Error + 'static)) -> Failure {
    let cause = chain(error);
    // How rustls and lettre say that the stream ended.
    let closed = ["close_notify", "incomplete response", "unexpected end of file"];
    let text = if closed.iter().any(|words| cause.contains(words)) {
        format!("{what}: the service closed the connection")
    } else {
        format!("{what}: {cause}")
    };
    Failure::new(Class::Transient, "connection lost", text)
}

pub(super) fn silent(what: &str, limit: Duration) -> Fault {
    let reply = format!("{what}: no answer within {limit:?}");
    Fault::Failed(Failure::new(Class::Transient, "timeout", reply))
}

/// A positive reply that is not the one to come: the dialogue is out of step.
pub(super) fn unexpected(what: &str, answer: &Response) -> Failure {
    Failure::new(Class::Transient, "protocol", format!("{what} was answered with {}", reply(answer)))
}

pub(super) fn reply(answer: &Response) -> Reply {
    Reply::new(answer.code().into(), &answer.message().collect::<Vec<_>>().join(" "))
}

/// A text without long words: a server that quotes a command back must not bring the token into a log.
pub(super) fn redacted(text: &str) -> String {
    let short = |word: &str| {
        if word.len() > 64 { "[…]".to_owned() } else { word.to_owned() }
    };
    text.split(' ').map(short).collect::<Vec<_>>().join(" ")
}
