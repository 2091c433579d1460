//! A literal reply for each row of the catalogue.

use super::*;
use Class::{Administrator as A, Message as M, Rate as R, Transient as T};
use Special::{FewerConnections, Lasting, NewToken, No, OnceMore, Split};
use Step::{Auth, Data, Dot, Greeting, Mail, Rcpt};

fn reply(line: &str) -> Reply {
    let (code, text) = line.split_once(' ').unwrap();
    Reply::new(code.parse().unwrap(), text)
}

fn mailbox() -> Address {
    Address::normalise("john@example.com").unwrap()
}

/// Reply, step, class, what is special, seconds to wait, a fragment of the advice.
type Case = (&'static str, Step, Class, Special, u64, &'static str);

#[rustfmt::skip]
const CASES: &[Case] = &[
    ("535 5.7.139 Authentication unsuccessful, SmtpClientAuthentication is disabled for the Tenant. Visit https://aka.ms/smtp_auth_disabled for more information. [AM0PR02CA0001.eurprd02.prod.outlook.com]", Auth, A, No, 0, "Set-TransportConfig -SmtpClientAuthenticationDisabled $false"),
    ("535 5.7.139 Authentication unsuccessful, SmtpClientAuthentication is disabled for the Mailbox. Visit https://aka.ms/smtp_auth_disabled for more information.", Auth, A, No, 0, "Set-CASMailbox john@example.com -SmtpClientAuthenticationDisabled $false"),
    ("535 5.7.139 Authentication unsuccessful, user is locked by your organization's security defaults policy.", Auth, A, No, 0, "names the policy"),
    ("535 5.7.139 Authentication unsuccessful, basic authentication is disabled.", Auth, A, No, 0, "names the policy"),
    ("535 5.7.3 Authentication unsuccessful [AM0PR02CA0001.eurprd02.prod.outlook.com]", Auth, A, NewToken, 0, "SMTP.Send"),
    ("451 4.7.0 Temporary server error. Please try again later. PRX4 [AM0PR02CA0001]", Auth, T, Lasting, 0, "malformed"),
    ("501 5.5.124 Access token is about to expire", Auth, T, NewToken, 0, ""),
    ("501 5.5.127 Access token is about to expire", Mail, T, NewToken, 0, ""),
    ("550 5.7.30 Basic authentication is not supported for Client Submission.", Auth, A, No, 0, "not take the session as signed in"),
    ("504 5.7.4 Unrecognized authentication type [AM0PR02CA0001.eurprd02.prod.outlook.com]", Greeting, A, No, 0, "not take the session as signed in"),
    ("504 5.7.4 Unrecognized authentication type", Auth, A, No, 0, "not take the session as signed in"),
    ("530 5.7.57 SMTP; Client was not authenticated to send anonymous mail during MAIL FROM", Dot, A, No, 0, "not take the session as signed in"),
    ("550 5.7.30 Basic authentication is not supported for Client Submission.", Mail, A, No, 0, "not take the session as signed in"),
    ("530 5.7.57 Client not authenticated to send mail.", Mail, A, No, 0, "not take the session as signed in"),
    ("550 5.7.60 SMTP; Client does not have permissions to send as this sender", Mail, M, OnceMore, 0, "Send As"),
    ("554 5.2.252 SendAsDenied; john@example.com not allowed to send as eve@example.com", Dot, M, OnceMore, 0, "Send As"),
    ("554 5.2.0 STOREDRV.Submission.Exception:SendAsDeniedException.MapiExceptionSendAsDenied; Failed to process message due to a permanent exception with message Cannot submit message.", Dot, M, OnceMore, 0, "Send As"),
    ("432 4.3.2 STOREDRV.Deliver; recipient thread limit exceeded", Dot, T, No, 0, ""),
    ("432 4.3.2 STOREDRV.ClientSubmit; sender thread limit exceeded [Hostname=AM0PR02MB1]", Dot, R, FewerConnections, 30, "lower [delivery] connections"),
    ("432 4.3.2 Concurrent connections limit exceeded. Visit https://aka.ms/concurrent_sending for more information.", Auth, R, FewerConnections, 30, "lower [delivery] connections"),
    ("451 4.7.500 Server busy. Please try again later from [192.0.2.1]. (S77714)", Mail, T, No, 900, ""),
    ("451 4.7.651 The mail server [192.0.2.1] has been temporarily rate limited", Greeting, T, No, 900, ""),
    ("451 4.7.699 Server busy", Dot, T, No, 900, ""),
    ("450 4.7.700 Something else", Dot, T, No, 0, ""),
    ("451 4.7.899 Access denied, please try again later", Mail, T, No, 900, ""),
    ("451 4.7.850 Access denied, please try again later", Rcpt, T, No, 900, ""),
    ("452 4.5.3 Too many recipients (AS780090)", Rcpt, T, Split, 0, ""),
    ("452 4.5.3 Too many recipients (AS780090) [AM0PR02CA0001.eurprd02.prod.outlook.com]", Rcpt, T, Split, 0, ""),
    ("452 4.5.3 Too many recipients", Dot, T, No, 0, ""),
    ("554 5.2.0 STOREDRV.Submission.Exception:SubmissionQuotaExceededException; Failed to process message due to a permanent exception", Dot, R, No, 3600, "sending limit"),
    ("554 5.2.2 submission quota exceeded", Dot, R, No, 3600, "sending limit"),
    ("550 5.1.90 Your message can't be sent because you've reached your daily limit for message recipients", Rcpt, R, No, 3600, "sending limit"),
    ("550 5.7.232 Your message can't be sent because your trial tenant has exceeded its daily limit", Dot, R, No, 3600, "sending limit"),
    ("550 5.7.233 Your message can't be sent because your tenant exceeded its daily limit for external recipients", Rcpt, R, No, 3600, "sending limit"),
    ("554 5.2.0 STOREDRV.Submission.Exception:QuotaExceededException.MapiExceptionShutoffQuotaExceeded", Dot, A, No, 0, "is full"),
    ("554 5.2.2 mailbox full; STOREDRV.Submission.Exception:QuotaExceededException.MapiExceptionShutoffQuotaExceeded", Dot, A, No, 0, "john@example.com is full"),
    ("554 5.2.2 mailbox full", Dot, A, No, 0, "is full"),
    ("554 5.2.2 mailbox full", Rcpt, M, No, 0, ""),
    ("550 5.1.8 Access denied, bad outbound sender AS(42004)", Dot, A, No, 0, "Restricted entities"),
    ("550 5.7.501 Access denied, spam abuse detected", Dot, A, No, 0, "blocked"),
    ("550 5.7.502 Access denied, banned sender", Rcpt, A, No, 0, "blocked"),
    ("550 5.7.503 Access denied, banned sender", Mail, A, No, 0, "blocked"),
    ("550 5.7.705 Access denied, tenant has exceeded threshold", Rcpt, A, No, 0, "blocked"),
    ("550 5.7.708 Service unavailable. Access denied, traffic not accepted from this IP", Mail, A, No, 0, "blocked"),
    ("550 5.7.750 Service unavailable. Client blocked from sending from unregistered domains", Mail, A, No, 0, "blocked"),
    ("550 5.7.800 Access denied", Mail, A, No, 0, "blocked"),
    ("552 5.3.4 Message size exceeds fixed maximum message size", Mail, M, No, 0, "too large"),
    ("554 5.2.3 Message too large", Dot, M, No, 0, "too large"),
    ("550 5.6.11 SMTPSEND.BareLinefeedsAreIllegal", Dot, M, No, 0, "line ends"),
    ("550 5.7.512 Access denied, message must be RFC 5322 section 3.6.2 compliant and include a valid From address", Dot, M, No, 0, "From"),
    ("550 5.1.20 Multiple From addresses are not allowed without Sender address", Dot, M, No, 0, "From"),
    ("450 4.2.121 Recipient's per sender receive limit exceeded", Rcpt, T, No, 3600, "too much mail"),
    ("550 5.2.121 Recipient's per sender receive limit exceeded", Dot, T, No, 3600, "too much mail"),
    ("450 4.2.122 The recipient has exceeded their limit", Rcpt, T, No, 3600, "too much mail"),
    ("550 5.2.122 The recipient has exceeded their limit for the number of messages", Rcpt, T, No, 3600, "too much mail"),
    ("550 5.1.1 User unknown", Rcpt, M, No, 0, "does not exist"),
    ("550 5.1.10 RESOLVER.ADR.RecipientNotFound; Recipient not found by SMTP address lookup", Rcpt, M, No, 0, "does not exist"),
    ("550 5.4.1 Recipient address rejected: Access denied", Rcpt, M, No, 0, "does not exist"),
    ("550 5.7.1 Unable to relay", Rcpt, M, No, 0, "does not take mail"),
    ("550 5.7.12 Sender was not authenticated by organization", Rcpt, M, No, 0, "does not take mail"),
    ("550 5.7.124 Sender not in allowed-senders list", Rcpt, M, No, 0, "does not take mail"),
    ("550 5.7.133 RESOLVER.RST.SenderNotAuthenticatedForGroup", Rcpt, M, No, 0, "does not take mail"),
    ("550 5.7.134 RESOLVER.RST.SenderNotAuthenticatedForMailbox", Rcpt, M, No, 0, "does not take mail"),
    ("550 5.7.135 RESOLVER.RST.SenderNotAuthenticatedForPublicFolder", Rcpt, M, No, 0, "does not take mail"),
    ("550 5.7.136 RESOLVER.RST.SenderNotAuthenticatedForMailUser", Rcpt, M, No, 0, "does not take mail"),
    ("550 5.5.0 Requested action not taken: mailbox unavailable", Rcpt, M, No, 0, ""),
    ("554 5.2.0 STOREDRV.Submission.Exception:StorageTransientException.MapiExceptionTimeout", Dot, T, No, 0, ""),
    ("503 5.5.1 Bad sequence of commands", Mail, T, No, 0, ""),
    ("554 5.7.1 Service unavailable; client host blocked", Greeting, A, No, 0, "refuses the session"),
    ("502 5.3.3 Command not implemented", Auth, A, No, 0, "refuses the session"),
    ("421 Service not available, closing transmission channel", Greeting, T, No, 0, ""),
    ("421 4.4.2 Message submission rate for this client has exceeded the configured limit", Auth, T, No, 0, ""),
    ("451 4.4.3 Temporary server error. Please try again later", Dot, T, No, 0, ""),
    ("451 4.7.0 Temporary server error. Please try again later. PRX4", Dot, T, No, 0, ""),
    ("421 4.3.2 Service not active", Mail, T, No, 0, ""),
    ("421 4.4.1 Connection timed out", Data, T, No, 0, ""),
    ("421 4.4.2 Connection dropped due to SocketError", Dot, T, No, 0, ""),
    ("451 4.4.3 Temporary server error. Please try again later", Greeting, T, No, 0, ""),
    ("451 4.4.22 Temporary server error", Rcpt, T, No, 0, ""),
    ("451 4.3.111 Temporary server error", Dot, T, No, 0, ""),
    ("450 Something new", Rcpt, T, No, 0, ""),
    ("599 Something new", Dot, M, No, 0, ""),
];

#[test]
fn each_reply_means_what_its_row_says() {
    for &(line, step, class, special, wait, advice) in CASES {
        let Judgement { failure, special: found } = judge(&reply(line), step, &mailbox());
        let waits = failure.retry_after.map_or(0, |wait| wait.as_secs());
        assert_eq!((failure.class, found, waits), (class, special, wait), "{line} at {step:?}");
        assert!(failure.advice.contains(advice), "{line}: {}", failure.advice);
        assert!(!failure.advice.contains("<mailbox>"), "{line}");
    }
}

#[test]
fn each_row_has_a_case() {
    for (index, row) in ROWS.iter().enumerate() {
        let decides = |&&(line, step, ..): &&Case| {
            let seen = reply(line);
            let text = seen.text.to_ascii_lowercase();
            ROWS.iter().position(|row| row.matches(&seen, &text, step)) == Some(index)
        };
        assert!(CASES.iter().any(|case| decides(&case)), "row {index} ({:?}, {:?})", row.enhanced, row.text);
    }
}

#[test]
fn before_mail_no_message_is_to_blame() {
    for &(line, ..) in CASES {
        for step in [Greeting, Auth] {
            assert_ne!(judge(&reply(line), step, &mailbox()).failure.class, M, "{line} at {step:?}");
        }
    }
}

#[test]
fn codes_are_split_off_the_text() {
    let table = [
        ("550 5.7.60 SMTP; Client", "550 5.7.60", "SMTP; Client"),
        ("421 Service not available", "421", "Service not available"),
        ("550 5.7.1.2 odd", "550", "5.7.1.2 odd"),
        ("550 5.7 odd", "550", "5.7 odd"),
        ("550 5.7.6000 odd", "550", "5.7.6000 odd"),
        ("550 5.1.1", "550 5.1.1", ""),
    ];
    for (line, codes, text) in table {
        let seen = reply(line);
        assert_eq!((seen.codes().as_str(), seen.text.as_str()), (codes, text));
    }
}
