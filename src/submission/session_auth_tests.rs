use std::sync::Arc;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;

use super::tests::{local, offer, play, user, with_user};
use super::{AUTH_LINE, COMMAND_LINE, Offer, Session};

#[test]
fn authentication_is_required_where_a_user_is_configured() {
    play(
        local(with_user()),
        "C: AUTH LOGIN
         S: 503 5.5.1 …
         C: EHLO me
         S: 250-relay
         S: 250-PIPELINING
         S: 250-SIZE 1000
         S: 250-8BITMIME
         S: 250-SMTPUTF8
         S: 250-ENHANCEDSTATUSCODES
         S: 250-CHUNKING
         S: 250 AUTH PLAIN LOGIN
         C: MAIL FROM:<a@x.test>
         S: 530 5.7.0 …
         C: AUTH
         S: 501 5.5.4 …
         C: AUTH CRAM-MD5
         S: 504 5.5.4 …
         C: auth plain AG9kb28Ab3BlbiBzZXNhbWU=
         S: 235 2.7.0 …
         C: AUTH PLAIN
         S: 503 5.5.1 …
         C: MAIL FROM:<a@x.test>
         S: 250 2.1.0 Ok
         C: AUTH PLAIN
         S: 503 5.5.1 …
         C: RCPT TO:<b@x.test>
         S: 250 2.1.5 Ok",
    );
}

#[test]
fn authentication_exchanges() {
    let base64 = |text: &str| BASE64_STANDARD.encode(text);
    let right = base64("\0odoo\0open sesame");
    let table: &[(&[&str], &[&str])] = &[
        (&[&format!("AUTH PLAIN {right}")], &["235 2.7.0"]),
        (&[&format!("AUTH PLAIN {}", base64("odoo\0odoo\0open sesame"))], &["235 2.7.0"]),
        (&["AUTH PLAIN", &right], &["334", "235 2.7.0"]),
        (
            &["AUTH LOGIN", &base64("odoo"), &base64("open sesame")],
            &["334 VXNlcm5hbWU6", "334 UGFzc3dvcmQ6", "235 2.7.0"],
        ),
        (
            &[&format!("auth login {}", base64("odoo")), &base64("open sesame")],
            &["334 UGFzc3dvcmQ6", "235 2.7.0"],
        ),
        (&[&format!("AUTH PLAIN {}", base64("\0odoo\0wrong"))], &["535 5.7.8"]),
        (&[&format!("AUTH PLAIN {}", base64("\0wrong\0open sesame"))], &["535 5.7.8"]),
        (&[&format!("AUTH PLAIN {}", base64("other\0odoo\0open sesame"))], &["535 5.7.8"]),
        (&[&format!("AUTH PLAIN {}", base64("\0\0"))], &["535 5.7.8"]),
        (&["AUTH LOGIN", &base64("odoo"), &base64("wrong")], &["334", "334", "535 5.7.8"]),
        (&["AUTH LOGIN =", ""], &["334 UGFzc3dvcmQ6", "535 5.7.8"]),
        (&["AUTH PLAIN ="], &["501 5.5.2"]),
        (&[&format!("AUTH PLAIN {}", base64("odoo"))], &["501 5.5.2"]),
        (&[&format!("AUTH PLAIN {}", base64("\0odoo\0open sesame\0"))], &["501 5.5.2"]),
        (&["AUTH PLAIN !!!"], &["501 5.5.2"]),
        (&["AUTH PLAIN", "*"], &["334", "501 5.7.0"]),
        (&["AUTH LOGIN", "*", "NOOP"], &["334", "501 5.7.0", "250"]),
        (&["AUTH LOGIN", "söze", "NOOP"], &["334", "501 5.5.2", "250"]),
    ];
    for (lines, replies) in table {
        let mut session = local(with_user());
        session.line(b"EHLO me");
        for (line, expected) in lines.iter().zip(*replies) {
            let reply = session.line(line.as_bytes()).reply().to_string();
            assert!(reply.starts_with(expected), "{lines:?}: {line:?} got {reply:?}");
        }
        let let_in = session.line(b"MAIL FROM:<>").reply().code() == 250;
        assert_eq!(let_in, replies.contains(&"235 2.7.0"), "{lines:?}");
    }
}

#[test]
fn a_long_line_ends_an_authentication() {
    let mut session = local(with_user());
    session.line(b"EHLO me");
    session.line(b"AUTH PLAIN");
    assert_eq!(session.line_limit(), AUTH_LINE);
    assert_eq!(session.long_line().reply().code(), 500);
    assert_eq!(session.line_limit(), COMMAND_LINE);
    assert_eq!(session.line(b"NOOP").reply().code(), 250);
}

#[test]
fn tls_forgets_what_was_said_before() {
    let dialogue = "C: EHLO me
         S: 250-relay
         S: 250-PIPELINING
         S: 250-SIZE 1000
         S: 250-8BITMIME
         S: 250-SMTPUTF8
         S: 250-ENHANCEDSTATUSCODES
         S: 250-CHUNKING
         S: 250 STARTTLS
         C: AUTH PLAIN AG9kb28Ab3BlbiBzZXNhbWU=
         S: 538 5.7.11 …
         C: STARTTLS now
         S: 501 5.5.4 …
         C: STARTTLS
         S: 220 2.0.0 …
         *** TLS
         C: STARTTLS
         S: 503 5.5.1 …
         C: AUTH PLAIN AG9kb28Ab3BlbiBzZXNhbWU=
         S: 503 5.5.1 …
         C: EHLO me
         S: 250-relay
         S: 250-PIPELINING
         S: 250-SIZE 1000
         S: 250-8BITMIME
         S: 250-SMTPUTF8
         S: 250-ENHANCEDSTATUSCODES
         S: 250-CHUNKING
         S: 250 AUTH PLAIN LOGIN
         C: AUTH PLAIN AG9kb28Ab3BlbiBzZXNhbWU=
         S: 235 2.7.0 …
         C: MAIL FROM:<>
         S: 250 2.1.0 Ok";
    play(Session::new(Arc::new(Offer { tls: true, ..with_user() }), false), dialogue);
}

#[test]
fn an_open_transaction_does_not_outlive_tls() {
    let mut session = local(Offer { tls: true, ..offer() });
    session.line(b"EHLO me");
    session.line(b"MAIL FROM:<>");
    assert!(session.in_transaction());
    session.line(b"STARTTLS");
    session.encrypted();
    assert!(!session.in_transaction());
}

#[test]
fn a_user_with_senders_uses_these_alone() {
    let users = vec![Arc::new(user(Some("example.com, john@x.test")))];
    let mut session = local(Offer { users, ..offer() });
    session.line(b"EHLO me");
    assert!(session.user().is_none());
    session.line(b"AUTH PLAIN AG9kb28Ab3BlbiBzZXNhbWU=");
    assert_eq!(session.user().map(|user| user.name.as_str()), Some("odoo"));
    // Many in a row: they are no faults of the client.
    for _ in 0..30 {
        let reply = session.line(b"MAIL FROM:<jane@x.test>").reply().to_string();
        assert!(reply.starts_with("550 5.7.1 The user odoo may not use <jane@x.test>"), "{reply}");
    }
    for sender in ["<bounce@example.com>", "<John@X.test>", "<>"] {
        assert_eq!(session.line(format!("MAIL FROM:{sender}").as_bytes()).reply().code(), 250, "{sender}");
        session.line(b"RSET");
    }
    session.encrypted();
    assert!(session.user().is_none());
}
