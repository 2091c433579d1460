//! What Odoo's answers mean, as data: a row for each, with its class and its advice. One table serves both protocols:
//! what XML-RPC says in a traceback, JSON-2 says with a name and a status.

use super::Protocol;
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

/// What a method returned, in either protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Returned {
    /// A whole number.
    Number(i64),
    /// True or false.
    Bool(bool),
    /// Nothing.
    Nothing,
    /// Anything else.
    Other,
}

impl From<&Value> for Returned {
    fn from(value: &Value) -> Self {
        match value {
            Value::Integer(number) => Self::Number(i64::from(*number)),
            Value::Boolean(value) => Self::Bool(*value),
            Value::Nil => Self::Nothing,
            _ => Self::Other,
        }
    }
}

impl From<&serde_json::Value> for Returned {
    fn from(value: &serde_json::Value) -> Self {
        match value {
            serde_json::Value::Number(number) => number.as_i64().map_or(Self::Other, Self::Number),
            serde_json::Value::Bool(value) => Self::Bool(*value),
            serde_json::Value::Null => Self::Nothing,
            _ => Self::Other,
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
    /// The answer was not of the protocol at all.
    NotOdoo,
    /// The answer was of the protocol, but damaged.
    Damaged,
}

/// One row: a fault, or an error of JSON-2, whose text begins and contains as given, and what it means.
struct Row {
    /// The fault code, or what the status of JSON-2 amounts to ([`code_of`]); 0: any.
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
        NO_ROUTE,
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
        0,
        "werkzeug.exceptions.NotFound: the model",
        "does not exist",
        Class::Administrator,
        "install Odoo's Discuss (mail) module, or set `gateway_model` in [odoo] to the model that takes mail",
    ),
    row(
        2,
        "werkzeug.exceptions.UnprocessableEntity",
        "",
        Class::Administrator,
        "the model that takes mail has another `message_process`: set `gateway_model` in [odoo] to Odoo's own",
    ),
    row(
        3,
        "werkzeug.exceptions.Unauthorized",
        "",
        Class::Administrator,
        "put an API key of the user into `password_file`: JSON-2 takes no password; or renew the key, if it has expired",
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
    row(0, "odoo.exceptions.LockError", "", Class::Transient, ""),
    row(0, "odoo.exceptions.ConcurrencyError", "", Class::Transient, ""),
    // PostgreSQL is down or full up.
    row(1, "psycopg2.OperationalError", "", Class::Transient, ""),
    row(1, "psycopg2.InterfaceError", "", Class::Transient, ""),
    row(1, "psycopg2.pool.PoolError", "", Class::Transient, ""),
    // The same, where PostgreSQL says why (SQLSTATE classes 08, 53, 57 and 58): the exception has a class of its own then.
    row(1, "psycopg2.errors.ConnectionException", "", Class::Transient, ""),
    row(1, "psycopg2.errors.ConnectionDoesNotExist", "", Class::Transient, ""),
    row(1, "psycopg2.errors.ConnectionFailure", "", Class::Transient, ""),
    row(1, "psycopg2.errors.AdminShutdown", "", Class::Transient, ""),
    row(1, "psycopg2.errors.CrashShutdown", "", Class::Transient, ""),
    row(1, "psycopg2.errors.CannotConnectNow", "", Class::Transient, ""),
    row(1, "psycopg2.errors.QueryCanceled", "", Class::Transient, ""),
    row(1, "psycopg2.errors.IdleInTransactionSessionTimeout", "", Class::Transient, ""),
    row(1, "psycopg2.errors.TooManyConnections", "", Class::Transient, ""),
    row(1, "psycopg2.errors.InsufficientResources", "", Class::Transient, ""),
    row(1, "psycopg2.errors.OutOfMemory", "", Class::Transient, MEMORY),
    row(1, "psycopg2.errors.DiskFull", "", Class::Transient, DATABASE_DISK),
    row(1, "psycopg2.errors.IoError", "", Class::Transient, DATABASE_DISK),
    row(1, "psycopg2.errors.ReadOnlySqlTransaction", "", Class::Transient, READ_ONLY),
    // Odoo's own machine: no space, disk quota, read-only, broken disk, too many open files (errno(3)).
    row(1, "OSError: [Errno 28]", "", Class::Transient, ODOO_DISK),
    row(1, "OSError: [Errno 122]", "", Class::Transient, ODOO_DISK),
    row(1, "OSError: [Errno 30]", "", Class::Transient, ODOO_DISK),
    row(1, "OSError: [Errno 5]", "", Class::Transient, ODOO_DISK),
    row(1, "OSError: [Errno 24]", "", Class::Transient, "raise the limit of open files of Odoo's service"),
    row(1, "MemoryError", "", Class::Transient, MEMORY),
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

const NO_ROUTE: &str = "ValueError: No possible route found";
const DATABASE: &str = "set `database` in [odoo] to the name of a database that Odoo has";
const DATABASE_DISK: &str = "make room on PostgreSQL's disk, and see to its log";
const READ_ONLY: &str = "PostgreSQL takes no changes: it is a standby, or was set to read-only";
const ODOO_DISK: &str = "see to the disk that Odoo's filestore is on: it is full, read-only or broken";
const MEMORY: &str = "give the machine of Odoo and PostgreSQL more memory, or raise Odoo's limit_memory_hard";
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

/// Only at its beginning is an exception's line Odoo's own: further on it may quote a message, whose From could say this.
fn says_nothing(exception: &str) -> bool {
    exception.strip_prefix("TypeError: ").unwrap_or(exception).starts_with(RETURNED_NOTHING)
}

/// What an answer of XML-RPC holds.
///
/// # Errors
/// A fault, by its meaning.
pub fn of_reply(reply: &Reply) -> Result<Returned, Failure> {
    match reply {
        Reply::Value(value) => Ok(Returned::from(value)),
        Reply::Fault { code: 1, text } if says_nothing(exception(text)) => Ok(Returned::Nothing),
        Reply::Fault { code, text } => Err(of_fault(*code, text)),
    }
}

/// What `message_process` returned. It is no fault, so it is committed, whatever a fork returns.
pub fn of_push(returned: Returned) -> Taken {
    match returned {
        Returned::Number(id) if id > 0 => Taken::Thread(id),
        Returned::Number(_) | Returned::Bool(_) => Taken::Duplicate,
        Returned::Nothing | Returned::Other => Taken::Ignored,
    }
}

/// What `authenticate` returned: the user's id.
///
/// # Errors
/// `false`: wrong login or password.
pub fn of_authenticate(returned: Returned) -> Result<i32, Failure> {
    match returned {
        Returned::Number(uid) if uid > 0 => {
            i32::try_from(uid).map_err(|_| of_broken(Broken::Damaged, "authenticate gave no id"))
        }
        _ => Err(of_fault(3, "Odoo does not know this login and password")),
    }
}

/// What `context_get` of `res.users` returned over JSON-2: the id of the user whose key it is.
///
/// # Errors
/// It holds no id.
pub fn of_context(context: &serde_json::Value) -> Result<i64, Failure> {
    let uid = context.get("uid").and_then(serde_json::Value::as_i64);
    uid.ok_or_else(|| of_broken(Broken::Damaged, "context_get gave no uid"))
}

/// What `search_count` returned: whether there is any.
///
/// # Errors
/// No number.
pub fn of_count(returned: Returned) -> Result<bool, Failure> {
    match returned {
        Returned::Number(count) => Ok(count > 0),
        _ => Err(of_broken(Broken::Damaged, "search_count gave no number")),
    }
}

/// Whether Odoo may have done what was asked although the call failed: it began, and no answer of its own came back.
pub fn is_unclear(failure: &Failure) -> bool {
    let status = failure.code.strip_prefix("HTTP ").and_then(|status| status.parse::<u16>().ok());
    matches!(failure.code.as_str(), TIMEOUT | CUT | DAMAGED) || status.is_some_and(|status| status >= 500)
}

/// Whether Odoo found no record, alias or model for a message's recipients.
pub fn is_no_route(failure: &Failure) -> bool {
    failure.class == Class::Message && failure.reply.starts_with(NO_ROUTE)
}

/// Whether a failure says: the user may not read this, or do that.
pub fn is_no_rights(failure: &Failure) -> bool {
    matches!(failure.code.as_str(), "fault 4" | "error 403")
}

/// What a fault of XML-RPC means.
pub fn of_fault(code: i32, text: &str) -> Failure {
    of_exception(code, format!("fault {code}"), exception(text))
}

/// What an error of JSON-2 means: Odoo's own, in JSON, so that it has undone whatever it did.
pub fn of_error(status: u16, name: &str, message: &str) -> Failure {
    if matches!(status, 413 | 429 | 502..=504) {
        return of_status(Protocol::Json2, status, None);
    }
    let code = code_of(status, name);
    let shown = if code == 3 { 401 } else { status };
    // In a traceback, Python's own exceptions have no module.
    let name = name.strip_prefix("builtins.").unwrap_or(name);
    of_exception(code, format!("error {shown}"), &format!("{name}: {message}"))
}

/// The fault code that XML-RPC would have (Odoo's exceptions.py: each class has its status).
fn code_of(status: u16, name: &str) -> i32 {
    match status {
        401 => 3,
        403 if name.ends_with(".AccessDenied") => 3,
        403 => 4,
        400..=499 => 2,
        _ => 1,
    }
}

fn of_exception(code: i32, shown: String, exception: &str) -> Failure {
    let matches = |row: &&Row| {
        (row.code == 0 || row.code == code)
            && exception.starts_with(row.begins)
            && exception.contains(row.contains)
    };
    let (class, advice) =
        FAULTS.iter().find(matches).map_or((Class::Message, ""), |row| (row.class, row.advice));
    // Only the exception's own line: what follows may quote the message.
    let line = exception.lines().next().unwrap_or_default();
    Failure::new(class, shown, line).advise(advice)
}

/// What an HTTP status other than 200 means that is not Odoo's own answer. `location` is where a redirect leads.
pub fn of_status(protocol: Protocol, status: u16, location: Option<&str>) -> Failure {
    let json2 = protocol == Protocol::Json2;
    let (class, reply, advice) = match status {
        300..=399 => {
            (Class::Administrator, "a redirect", "set `url` in [odoo] to the address that it redirects to")
        }
        401 | 403 => (
            Class::Administrator,
            "access is refused before Odoo is asked",
            "let the relay through to /xmlrpc/2/ and /json/2/ in what stands before Odoo, or set `url` in [odoo] to Odoo itself",
        ),
        404 | 405 if json2 => (
            Class::Administrator,
            "there is no JSON-2 at this address, or no such database",
            "check `url` (Odoo's address, without a path) and `database` in [odoo]; for an Odoo before 19, write protocol = \"xmlrpc\"",
        ),
        404 | 405 => (
            Class::Administrator,
            "there is no XML-RPC at this address",
            "set `url` in [odoo] to Odoo's address, without a path; for Odoo 22 and later, write protocol = \"json2\"",
        ),
        413 => (
            Class::Message,
            "the message is too large for Odoo",
            "raise the body limit of the server before Odoo (nginx: client_max_body_size) or of Odoo itself \
             (web.max_file_upload_size) if such mail matters",
        ),
        408 | 425 | 429 | 500.. => (Class::Transient, "Odoo is busy or restarting", ""),
        _ => (Class::Message, "the request is refused", "look into the log of what stands before Odoo"),
    };
    let reply = location.map_or_else(|| reply.to_owned(), |location| format!("{reply} to {location}"));
    let failure = Failure::new(class, format!("HTTP {status}"), reply).advise(advice);
    // The server before Odoo has given up, but Odoo may still be at it.
    if status == 504 { failure.wait(ODOO_GIVES_UP) } else { failure }
}

/// A value of the configuration that no HTTP header can hold.
pub(super) fn of_unusable(key: &str) -> Failure {
    Failure::new(
        Class::Administrator,
        "unusable",
        format!("`{key}` has characters that an HTTP header cannot hold"),
    )
    .advise(format!("correct `{key}` in [odoo], or write protocol = \"xmlrpc\""))
}

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
