//! What Odoo's answers mean, as data: a row for each, with its class and its advice.

use super::xmlrpc::Reply;
use crate::failure::{Class, Failure};
use dxr::Value;
use std::time::Duration;

/// What became of a message that Odoo is done with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// It is in the record with this id, new or old.
    Thread(i64),
    /// Odoo made nothing of it: it knows its Message-Id already, or it was a bounce (which it has noted) or a mail to
    /// the catchall address (which it has answered).
    Duplicate,
    /// Odoo took it for a loop and dropped it.
    Ignored,
}

impl Taken {
    /// The word that the log and the ledger use.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Thread(_) => "taken",
            Self::Duplicate => "duplicate or bounce",
            Self::Ignored => "ignored",
        }
    }

    /// The record's id, if there is one.
    pub fn thread_id(self) -> Option<i64> {
        match self {
            Self::Thread(id) => Some(id),
            Self::Duplicate | Self::Ignored => None,
        }
    }
}

/// How a call can fail without an answer of Odoo's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broken {
    /// No connection came about: Odoo has not seen the call.
    Connect,
    /// No answer came in time.
    Timeout,
    /// The connection was lost before the answer.
    Cut,
    /// The answer was not XML-RPC at all.
    NotOdoo,
    /// The answer was XML-RPC, but damaged.
    Damaged,
}

/// One row: a fault whose text begins and contains as given, and what it means.
struct Row {
    /// The fault code; 0: any.
    code: i32,
    /// How the exception's line begins. (Without this a sender could choose the row: texts quote the message.)
    begins: &'static str,
    /// What it contains.
    contains: &'static str,
    class: Class,
    advice: &'static str,
}

/// The first row that matches counts.
const FAULTS: &[Row] = &[
    row(
        1,
        "ValueError: No possible route found",
        "",
        Class::Message,
        "create an alias in Odoo for one of its recipients, or set `model` for this mailbox",
    ),
    row(
        1,
        "",
        "Mailbox unavailable - unknown target model",
        Class::Message,
        "`model` of this mailbox names a model that Odoo does not have: correct it",
    ),
    row(1, "FATAL:", "does not exist", Class::Administrator, DATABASE),
    row(1, "psycopg2.OperationalError:", "FATAL:  database", Class::Administrator, DATABASE),
    row(
        0,
        "Object ",
        "doesn't exist",
        Class::Administrator,
        "install Odoo's Discuss (mail) module, or set `gateway_model` in [odoo] to the model that takes mail",
    ),
    row(
        3,
        "",
        "",
        Class::Administrator,
        "check `login` in [odoo] and the password or API key in `password_file`, and that the user is active",
    ),
    row(
        4,
        "",
        "",
        Class::Administrator,
        "give the Odoo user of [odoo] `login` rights on messages and on the models behind the aliases",
    ),
    // Odoo tries these again five times by itself before it answers.
    row(1, "psycopg2.errors.SerializationFailure", "", Class::Transient, ""),
    row(1, "psycopg2.errors.DeadlockDetected", "", Class::Transient, ""),
    row(1, "psycopg2.errors.LockNotAvailable", "", Class::Transient, ""),
    // PostgreSQL is down or full up.
    row(1, "psycopg2.OperationalError", "", Class::Transient, ""),
    row(1, "psycopg2.InterfaceError", "", Class::Transient, ""),
    row(1, "psycopg2.pool.PoolError", "", Class::Transient, ""),
    // A module is being installed or updated: its columns come a moment later.
    row(1, "psycopg2.errors.UndefinedColumn", "", Class::Transient, UPDATE),
    row(1, "psycopg2.errors.UndefinedTable", "", Class::Transient, UPDATE),
    row(
        0,
        "",
        "",
        Class::Message,
        "Odoo's log says more; the message stays unread in the mailbox and is tried again by itself",
    ),
];

const DATABASE: &str = "set `database` in [odoo] to the name of a database that Odoo has";
const UPDATE: &str = "finish the update of Odoo's modules";

const fn row(
    code: i32,
    begins: &'static str,
    contains: &'static str,
    class: Class,
    advice: &'static str,
) -> Row {
    Row { code, begins, contains, class, advice }
}

/// `cannot marshal None`: the method returned nothing, which Odoo's XML-RPC cannot say. It is done and committed.
const RETURNED_NOTHING: &str = "cannot marshal None";

/// The answer to `message_process`.
///
/// # Errors
/// A fault, by its meaning.
pub fn of_push(reply: &Reply) -> Result<Taken, Failure> {
    match reply {
        Reply::Value(Value::Integer(id)) if *id > 0 => Ok(Taken::Thread(i64::from(*id))),
        Reply::Value(Value::Integer(_) | Value::Boolean(_)) => Ok(Taken::Duplicate),
        // No fault, so it is committed, whatever a fork returns.
        Reply::Value(_) => Ok(Taken::Ignored),
        Reply::Fault { code: 1, text } if exception(text).contains(RETURNED_NOTHING) => Ok(Taken::Ignored),
        Reply::Fault { code, text } => Err(of_fault(*code, text)),
    }
}

/// The answer to `authenticate`: the user's id.
///
/// # Errors
/// `false` (wrong login or password), or a fault.
pub fn of_authenticate(reply: &Reply) -> Result<i32, Failure> {
    match reply {
        Reply::Value(Value::Integer(uid)) if *uid > 0 => Ok(*uid),
        Reply::Value(_) => Err(of_fault(3, "Odoo does not know this login and password")),
        Reply::Fault { code, text } => Err(of_fault(*code, text)),
    }
}

/// The answer to `search_count`: whether there is any.
///
/// # Errors
/// A fault, or an answer that is no number.
pub fn of_count(reply: &Reply) -> Result<bool, Failure> {
    match reply {
        Reply::Value(Value::Integer(count)) => Ok(*count > 0),
        Reply::Value(_) => Err(of_broken(Broken::Damaged, "search_count gave no number")),
        Reply::Fault { code, text } => Err(of_fault(*code, text)),
    }
}

/// Whether Odoo may have done what was asked although the call failed: it began, and no answer of its own came back.
pub fn is_unclear(failure: &Failure) -> bool {
    let status = failure.code.strip_prefix("HTTP ").and_then(|status| status.parse::<u16>().ok());
    matches!(failure.code.as_str(), TIMEOUT | CUT | DAMAGED) || status.is_some_and(|status| status >= 500)
}

/// What a fault means.
pub fn of_fault(code: i32, text: &str) -> Failure {
    let exception = exception(text);
    let matches = |row: &&Row| {
        (row.code == 0 || row.code == code)
            && exception.starts_with(row.begins)
            && exception.contains(row.contains)
    };
    let (class, advice) =
        FAULTS.iter().find(matches).map_or((Class::Message, ""), |row| (row.class, row.advice));
    // Only the exception's own line: what follows may quote the message.
    let line = exception.lines().next().unwrap_or_default();
    Failure::new(class, format!("fault {code}"), line).advise(advice)
}

/// What an HTTP status other than 200 means. `location` is where a redirect leads.
pub fn of_status(status: u16, location: Option<&str>) -> Failure {
    let (class, reply, advice) = match status {
        300..=399 => {
            (Class::Administrator, "a redirect", "set `url` in [odoo] to the address that it redirects to")
        }
        401 | 403 => (
            Class::Administrator,
            "access is refused before Odoo is asked",
            "let the relay through to /xmlrpc/2/ in what stands before Odoo, or set `url` in [odoo] to Odoo itself",
        ),
        404 | 405 => (
            Class::Administrator,
            "there is no XML-RPC at this address",
            "set `url` in [odoo] to Odoo's address, without a path",
        ),
        413 => (
            Class::Message,
            "the message is too large for Odoo",
            "raise the body limit of the server before Odoo (nginx: client_max_body_size) if such mail matters",
        ),
        408 | 425 | 429 | 500.. => (Class::Transient, "Odoo is busy or restarting", ""),
        _ => (Class::Message, "the request is refused", "look into the log of what stands before Odoo"),
    };
    let reply = location.map_or_else(|| reply.to_owned(), |location| format!("{reply} to {location}"));
    let failure = Failure::new(class, format!("HTTP {status}"), reply).advise(advice);
    // The server before Odoo has given up, but Odoo may still be at it.
    if status == 504 { failure.wait(ODOO_GIVES_UP) } else { failure }
}

/// The code of a failure that says: the user may not read this, or do that.
pub const NO_RIGHTS: &str = "fault 4";

const TIMEOUT: &str = "timeout";
const CUT: &str = "cut";
const DAMAGED: &str = "damaged answer";

/// What a call without an answer means; `detail` holds the error's words.
pub fn of_broken(broken: Broken, detail: &str) -> Failure {
    match broken {
        Broken::Connect => Failure::new(Class::Transient, "connect", detail)
            .advise("check that Odoo runs, and `url` in [odoo]"),
        Broken::Timeout => Failure::new(Class::Transient, TIMEOUT, detail).wait(ODOO_GIVES_UP),
        Broken::Cut => Failure::new(Class::Transient, CUT, detail),
        Broken::Damaged => Failure::new(Class::Transient, DAMAGED, detail),
        Broken::NotOdoo => Failure::new(Class::Administrator, "not Odoo", detail)
            .advise("set `url` in [odoo] to Odoo itself: something else answers there"),
    }
}

/// Odoo ends a request after this time by itself (`limit_time_real`, 120 s by default). Nobody hears of its outcome
/// then, so before this has passed a message must not be pushed again: Odoo has no lock on the Message-Id.
pub const ODOO_GIVES_UP: Duration = Duration::from_secs(120);

/// The exception at the end of a Python traceback, with what it says; the whole text if it is no traceback.
pub(crate) fn exception(text: &str) -> &str {
    let Some(last_frame) = text.rfind("\n  File \"") else {
        return text.trim();
    };
    let mut start = last_frame + 1;
    let rest = text.get(start..).unwrap_or_default();
    for line in rest.split_inclusive('\n') {
        if !line.starts_with(' ') && !line.trim().is_empty() {
            break;
        }
        start += line.len();
    }
    text.get(start..).unwrap_or_default().trim()
}

#[cfg(test)]
#[path = "answers_tests.rs"]
mod tests;
