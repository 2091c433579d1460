//! What Exchange's IMAP replies mean, as data: a row for each text, with its class, its wait and its advice.

use crate::failure::{Class, Failure};
use std::time::Duration;

/// During which command a reply came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// None: the server's greeting.
    Greeting,
    /// AUTHENTICATE.
    Authenticate,
    /// LIST.
    List,
    /// SELECT or EXAMINE.
    Select,
    /// UID SEARCH.
    Search,
    /// UID FETCH.
    Fetch,
    /// UID STORE.
    Store,
    /// UID MOVE, or UID COPY and UID EXPUNGE; CREATE.
    Move,
    /// IDLE.
    Idle,
    /// CAPABILITY.
    Capability,
}

/// How a reply refuses (RFC 9051 section 7.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// Tagged NO: the command failed.
    No,
    /// Tagged BAD: the command was not understood, or not in this state.
    Bad,
    /// BYE: the server closes the connection.
    Bye,
}

impl Status {
    fn as_str(self) -> &'static str {
        match self {
            Self::No => "NO",
            Self::Bad => "BAD",
            Self::Bye => "BYE",
        }
    }
}

/// The code of a session that ended because its token did: planned, so connect anew with a new one.
pub const TOKEN_EXPIRED: &str = "AccessTokenExpired";

/// The code of a login that succeeded without a mailbox behind it.
pub const NOT_CONNECTED: &str = "not connected";

/// The code of a login that was refused: worth one try with a new token.
pub const LOGIN_REFUSED: &str = "AUTHENTICATE failed";

/// After so many times in a row, [`NOT_CONNECTED`] does not pass by itself.
const NOT_CONNECTED_LASTS: u32 = 3;

/// One row; the first that matches counts.
struct Row {
    /// `None`: any.
    step: Option<Step>,
    /// `None`: any.
    status: Option<Status>,
    /// What the text contains, whatever its case.
    contains: &'static str,
    class: Class,
    /// `""`: the status.
    code: &'static str,
    /// In seconds; 0: by the schedule.
    wait: u64,
    advice: &'static str,
}

const LOGIN: &str = "check at Microsoft 365 that IMAP is on for <mailbox> (Set-CASMailbox <mailbox> -ImapEnabled $true), \
     that it has a licence, and that the account that consented may use it (FullAccess); for an app without a user: \
     that its service principal has been given the mailbox. Changes take up to 2 hours";
const MAILBOX: &str = "check that the token is of <mailbox> or of an account with FullAccess to it, and that IMAP is on \
     for it (Set-CASMailbox <mailbox> -ImapEnabled $true)";
const FOLDER: &str =
    "check `folder` of <mailbox> in the configuration: folders below the inbox are written INBOX/Name";
const READ_ONLY: &str = "the relay may not mark messages as read: give the account full access to <mailbox>";

const NOT_MOVED: &str = "the relay may not move messages: check `after_folder` and `quarantine_folder` of <mailbox> in the \
     configuration, and that the account has full access to <mailbox>";

const ROWS: &[Row] = &[
    any(TOKEN_EXPIRED, Class::Transient, TOKEN_EXPIRED, 0, ""),
    any("throttled", Class::Rate, "throttled", 60, ""),
    any("Suggested Backoff Time", Class::Rate, "throttled", 60, ""),
    any("User is authenticated but not connected", Class::Rate, NOT_CONNECTED, 300, MAILBOX),
    any("Server Unavailable", Class::Transient, "", 0, ""),
    any("Command received in Invalid state", Class::Transient, "", 0, ""),
    // RFC 5530's response codes.
    any("[UNAVAILABLE]", Class::Transient, "", 0, ""),
    any("[INUSE]", Class::Transient, "", 0, ""),
    any("[LIMIT]", Class::Rate, "", 60, "too many other programs read this mailbox over IMAP"),
    at(Step::Authenticate, Status::No, Class::Administrator, LOGIN_REFUSED, LOGIN),
    at(Step::Authenticate, Status::Bad, Class::Administrator, LOGIN_REFUSED, LOGIN),
    at(Step::Select, Status::No, Class::Administrator, "", FOLDER),
    at(
        Step::Fetch,
        Status::No,
        Class::Message,
        "",
        "the server cannot give this message to IMAP programs: open it in Outlook, and enter it into Odoo by hand if it matters",
    ),
    at(Step::Store, Status::No, Class::Administrator, "", READ_ONLY),
    at(Step::Move, Status::No, Class::Administrator, "", NOT_MOVED),
];

const fn any(
    contains: &'static str,
    class: Class,
    code: &'static str,
    wait: u64,
    advice: &'static str,
) -> Row {
    Row { step: None, status: None, contains, class, code, wait, advice }
}

const fn at(step: Step, status: Status, class: Class, code: &'static str, advice: &'static str) -> Row {
    Row { step: Some(step), status: Some(status), contains: "", class, code, wait: 0, advice }
}

/// What a refusing reply means for `mailbox`. A text that no row knows will pass: then the session is begun anew.
pub fn judge(step: Step, status: Status, text: &str, mailbox: &str) -> Failure {
    let lower = text.to_ascii_lowercase();
    let matches = |row: &&Row| {
        row.step.is_none_or(|wanted| wanted == step)
            && row.status.is_none_or(|wanted| wanted == status)
            && lower.contains(&row.contains.to_ascii_lowercase())
    };
    let Some(row) = ROWS.iter().find(matches) else {
        return Failure::new(Class::Transient, format!("IMAP {}", status.as_str()), text);
    };
    let code = if row.code.is_empty() { format!("IMAP {}", status.as_str()) } else { row.code.to_owned() };
    let failure = Failure::new(row.class, code, text).advise(row.advice.replace("<mailbox>", mailbox));
    match suggested(&lower) {
        Some(wait) => failure.wait(wait),
        None if row.wait > 0 => failure.wait(Duration::from_secs(row.wait)),
        None => failure,
    }
}

/// The same failure after it came `times` times in a row: what should have passed by then is an administrator's.
pub fn persisting(mut failure: Failure, times: u32) -> Failure {
    if failure.code == NOT_CONNECTED && times >= NOT_CONNECTED_LASTS {
        failure.class = Class::Administrator;
    }
    failure
}

/// `Suggested Backoff Time: N milliseconds`, within 1 s and 1 h.
fn suggested(lower: &str) -> Option<Duration> {
    let (_, rest) = lower.split_once("suggested backoff time:")?;
    let digits: String = rest.trim_start().chars().take_while(char::is_ascii_digit).take(9).collect();
    let wait = Duration::from_millis(digits.parse().ok()?);
    Some(wait.clamp(Duration::from_secs(1), Duration::from_secs(3600)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reply_has_its_class() {
        use Class::{Administrator, Message, Rate, Transient};
        use Status::{Bad, Bye, No};
        let rows: &[(Step, Status, &str, Class, &str, u64)] = &[
            (Step::Authenticate, No, "AUTHENTICATE failed.", Administrator, LOGIN_REFUSED, 0),
            (Step::Authenticate, Bad, "Command Argument Error. 12", Administrator, LOGIN_REFUSED, 0),
            (Step::Select, Bad, "User is authenticated but not connected.", Rate, NOT_CONNECTED, 300),
            (Step::Search, Bye, "Session invalidated - AccessTokenExpired", Transient, TOKEN_EXPIRED, 0),
            (
                Step::Fetch,
                Bad,
                "Request is throttled. Suggested Backoff Time: 299961 milliseconds",
                Rate,
                "throttled",
                299,
            ),
            (Step::Authenticate, No, "Suggested Backoff Time: 5000 milliseconds", Rate, "throttled", 5),
            (Step::Fetch, No, "Request is throttled.", Rate, "throttled", 60),
            (Step::Select, No, "Server Unavailable. 15", Transient, "IMAP NO", 0),
            (Step::Search, Bad, "Command received in Invalid state.", Transient, "IMAP BAD", 0),
            (Step::Greeting, Bye, "[UNAVAILABLE] later", Transient, "IMAP BYE", 0),
            (Step::Select, No, "[INUSE] locked", Transient, "IMAP NO", 0),
            (Step::Authenticate, No, "[LIMIT] too many", Rate, "IMAP NO", 60),
            (Step::Select, No, "Orders doesn't exist.", Administrator, "IMAP NO", 0),
            (Step::Fetch, No, "The message could not be converted.", Message, "IMAP NO", 0),
            (Step::Store, No, "The folder is read-only.", Administrator, "IMAP NO", 0),
            (Step::Move, No, "[TRYCREATE] The folder doesn't exist.", Administrator, "IMAP NO", 0),
            (Step::Idle, No, "Request is throttled.", Rate, "throttled", 60),
            (Step::Idle, Bad, "Command Error. 10", Transient, "IMAP BAD", 0),
            (Step::Search, No, "something new", Transient, "IMAP NO", 0),
            (Step::Greeting, Bye, "Connection is closed. 13", Transient, "IMAP BYE", 0),
        ];
        for &(step, status, text, class, code, wait) in rows {
            let failure = judge(step, status, text, "john@example.com");
            assert_eq!((failure.class, failure.code.as_str()), (class, code), "{text}");
            assert_eq!(failure.retry_after.map_or(0, |wait| wait.as_secs()), wait, "{text}");
            assert!(!failure.class.needs_a_person() || failure.advice.contains("john@example.com"), "{text}");
        }
        for row in ROWS {
            let covered = rows.iter().any(|(step, status, text, ..)| {
                row.step.is_none_or(|wanted| wanted == *step)
                    && row.status.is_none_or(|wanted| wanted == *status)
                    && text.contains(row.contains)
            });
            assert!(covered, "no case for the row {:?} {:?}", row.step, row.contains);
        }
    }

    #[test]
    fn an_absurd_wait_is_bounded() {
        let wait = |text: &str| judge(Step::Search, Status::Bad, text, "m").retry_after;
        let hour = Some(Duration::from_secs(3600));
        assert_eq!(wait("throttled. Suggested Backoff Time: 999999999999999999999999 milliseconds"), hour);
        assert_eq!(wait("throttled. Suggested Backoff Time: 0 milliseconds"), Some(Duration::from_secs(1)));
        assert_eq!(wait("throttled. Suggested Backoff Time: soon"), Some(Duration::from_secs(60)));
    }

    #[test]
    fn a_mailbox_that_stays_away_is_the_administrators() {
        let failure = judge(Step::Select, Status::Bad, "User is authenticated but not connected.", "m");
        assert_eq!(persisting(failure.clone(), 2).class, Class::Rate);
        let lasting = persisting(failure, 3);
        assert_eq!(
            (lasting.class, lasting.retry_after),
            (Class::Administrator, Some(Duration::from_secs(300)))
        );
        let other = judge(Step::Select, Status::No, "Server Unavailable. 15", "m");
        assert_eq!(persisting(other, 99).class, Class::Transient);
    }
}
