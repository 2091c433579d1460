use proptest::prelude::*;

use super::*;
use crate::submission::users::Senders;

pub(super) fn offer() -> Offer {
    Offer {
        host: "relay".to_owned(),
        max_message_size: 1000,
        max_recipients: 1000,
        users: Vec::new(),
        tls: false,
    }
}

pub(super) fn user(senders: Option<&str>) -> User {
    User {
        name: "odoo".to_owned(),
        password: "open sesame".to_owned().into(),
        senders: senders.map(|senders| Senders::parse(senders).unwrap()),
        mailbox: None,
    }
}

pub(super) fn with_user() -> Offer {
    Offer { users: vec![Arc::new(user(None))], ..offer() }
}

pub(super) fn local(offer: Offer) -> Session {
    Session::new(Arc::new(offer), true)
}

/// Plays a dialogue: each line `C: …` is said to the session, and the lines `S: …` behind it are what must come back,
/// either whole or, where they end in `…`, by their beginning. `***` stands for what the server does besides answering.
pub(super) fn play(mut session: Session, dialogue: &str) {
    let mut heard: Vec<String> = Vec::new();
    for (number, line) in dialogue.lines().map(str::trim).enumerate().filter(|(_, line)| !line.is_empty()) {
        if let Some(said) = line.strip_prefix("C:") {
            assert!(heard.is_empty(), "before line {number} {line:?} the server also said {heard:?}");
            let action = session.line(said.strip_prefix(' ').unwrap_or(said).as_bytes());
            let mut out = Vec::new();
            action.reply().write(&mut out);
            heard = String::from_utf8(out).unwrap().lines().map(|line| format!("S: {line}")).collect();
            match action {
                Action::Reply(_) => {}
                Action::ReadChunk(_, chunk) => heard.push(match chunk.part {
                    Part::Refused => format!("*** drops {}", chunk.size),
                    Part::More => format!("*** reads {}", chunk.size),
                    Part::Last(envelope) => {
                        format!("*** reads {}, the last to {}", chunk.size, envelope.recipients.join(" "))
                    }
                }),
                Action::ReadData(_, envelope) => {
                    let utf8 = if envelope.smtputf8 { " SMTPUTF8" } else { "" };
                    heard.push(format!(
                        "*** <{}> to {}{utf8}",
                        envelope.mail_from,
                        envelope.recipients.join(" ")
                    ));
                }
                Action::StartTls(_) => {
                    heard.push("*** TLS".to_owned());
                    session.encrypted();
                }
                Action::Close(_) => heard.push("*** close".to_owned()),
            }
        } else {
            assert!(!heard.is_empty(), "at line {number} {line:?} the server said nothing more");
            let said = heard.remove(0);
            let right = line.strip_suffix('…').map_or(said == line, |start| said.starts_with(start));
            assert!(right, "at line {number}: expected {line:?}, got {said:?}");
        }
    }
    assert!(heard.is_empty(), "at the end the server also said {heard:?}");
}

#[test]
fn as_odoo_speaks() {
    play(
        local(offer()),
        "C: ehlo [127.0.0.1]
         S: 250-relay
         S: 250-PIPELINING
         S: 250-SIZE 1000
         S: 250-8BITMIME
         S: 250-SMTPUTF8
         S: 250-ENHANCEDSTATUSCODES
         S: 250 CHUNKING
         C: mail FROM:<bounce@example.com> size=742
         S: 250 2.1.0 Ok
         C: rcpt TO:<a@x.test>
         S: 250 2.1.5 Ok
         C: rcpt TO:<b@x.test>
         S: 250 2.1.5 Ok
         C: data
         S: 354 …
         *** <bounce@example.com> to a@x.test b@x.test
         C: mail FROM:<bounce@example.com> size=742
         S: 250 2.1.0 Ok
         C: rcpt TO:<c@x.test>
         S: 250 2.1.5 Ok
         C: data
         S: 354 …
         *** <bounce@example.com> to c@x.test
         C: quit
         S: 221 2.0.0 Bye
         *** close",
    );
}

#[test]
fn small_commands() {
    play(
        local(offer()),
        "C: NOOP
         S: 250 2.0.0 Ok
         C: noop with words
         S: 250 2.0.0 Ok
         C: RSET
         S: 250 2.0.0 Ok
         C: RSET now
         S: 501 5.5.4 …
         C: VRFY a@x.test
         S: 252 2.0.0 …
         C: VRFY
         S: 501 5.5.4 …
         C: EXPN list
         S: 502 5.5.1 …
         C: HELP
         S: 214 2.0.0 …
         C: HELO
         S: 501 5.5.4 …
         C: EHLO
         S: 501 5.5.4 …
         C: HeLo me
         S: 250 relay
         C: TURN
         S: 500 5.5.1 …
         C:
         S: 500 5.5.1 …
         C: MAILFROM:<a@x.test>
         S: 500 5.5.1 …
         C: AUTH PLAIN AG9kb28Ab3BlbiBzZXNhbWU=
         S: 502 5.5.1 …
         C: STARTTLS
         S: 502 5.5.1 …
         C: QUIT now
         S: 501 5.5.4 …
         C: QUIT
         S: 221 2.0.0 Bye
         *** close",
    );
}

#[test]
fn commands_in_the_wrong_order() {
    play(
        local(offer()),
        "C: MAIL FROM:<a@x.test>
         S: 503 5.5.1 …
         C: HELO me
         S: 250 relay
         C: RCPT TO:<b@x.test>
         S: 503 5.5.1 …
         C: DATA
         S: 503 5.5.1 …
         C: MAIL FROM:<a@x.test>
         S: 250 2.1.0 Ok
         C: MAIL FROM:<a@x.test>
         S: 503 5.5.1 …
         C: DATA
         S: 554 5.1.0 …
         C: RCPT TO:<b@x.test>
         S: 250 2.1.5 Ok
         C: DATA now
         S: 501 5.5.4 …
         C: RSET
         S: 250 2.0.0 Ok
         C: DATA
         S: 503 5.5.1 …
         C: MAIL FROM:<a@x.test>
         S: 250 2.1.0 Ok
         C: EHLO again
         S: 250-relay
         S: 250-PIPELINING
         S: 250-SIZE 1000
         S: 250-8BITMIME
         S: 250-SMTPUTF8
         S: 250-ENHANCEDSTATUSCODES
         S: 250 CHUNKING
         C: RCPT TO:<b@x.test>
         S: 503 5.5.1 …",
    );
}

#[test]
fn senders() {
    let table = [
        ("<>", "250 2.1.0 Ok"),
        (" <a@x.test>", "250 2.1.0 Ok"),
        ("<a@x.test> SIZE=1000", "250 2.1.0 Ok"),
        ("<a@x.test> size=0 body=8bitmime", "250 2.1.0 Ok"),
        ("<a@x.test> BODY=7BIT AUTH=<>", "250 2.1.0 Ok"),
        ("<a@x.test> SMTPUTF8", "250 2.1.0 Ok"),
        ("<söze@x.test> SMTPUTF8 BODY=8BITMIME", "250 2.1.0 Ok"),
        ("<söze@x.test>", "553 5.6.7 "),
        ("<a@exämple.test>", "553 5.6.7 "),
        ("<a@x.test> SIZE=1001", "552 5.3.4 The message is larger than 1000 bytes"),
        ("<a@x.test> SIZE=99999999999999999999999", "552 5.3.4 "),
        ("<a@x.test> SIZE=", "501 5.5.4 "),
        ("<a@x.test> SIZE=+1", "501 5.5.4 "),
        ("<a@x.test> SIZE", "501 5.5.4 "),
        ("<a@x.test> SIZE=1 SIZE=1", "501 5.5.4 "),
        ("<a@x.test> BODY=BINARYMIME", "501 5.5.4 "),
        ("<a@x.test> BODY", "501 5.5.4 "),
        ("<a@x.test> SMTPUTF8=yes", "501 5.5.4 "),
        ("<a@x.test> RET=HDRS", "555 5.5.4 "),
        ("<a@x.test> X", "555 5.5.4 "),
        ("a@x.test", "501 5.1.7 "),
        ("<a@x.test", "501 5.1.7 "),
        ("", "501 5.1.7 "),
    ];
    for (sender, expected) in table {
        let mut session = local(offer());
        session.line(b"EHLO me");
        let reply = session.line(format!("MAIL FROM:{sender}").as_bytes()).reply().to_string();
        assert!(reply.starts_with(expected), "{sender:?} got {reply:?}");
        assert_eq!(session.in_transaction(), expected.starts_with("250"), "{sender:?}");
    }
}

#[test]
fn recipients() {
    let table = [
        ("TO:<b@x.test>", "250 2.1.5 Ok"),
        ("to: <b@x.test>", "250 2.1.5 Ok"),
        (r#"TO:<"b c"@x.test>"#, "250 2.1.5 Ok"),
        ("TO:<@hop.test:b@x.test>", "250 2.1.5 Ok"),
        ("TO:<>", "501 5.1.3 "),
        ("TO:b@x.test", "501 5.1.3 "),
        ("TO:<b>", "501 5.1.3 "),
        ("<b@x.test>", "501 5.5.4 "),
        ("", "501 5.5.4 "),
        ("TÖ:<b@x.test>", "501 5.5.4 "),
        ("TO:<söze@x.test>", "553 5.6.7 "),
        ("TO:<b@x.test> NOTIFY=NEVER", "555 5.5.4 "),
    ];
    for (recipient, expected) in table {
        let mut session = local(offer());
        session.line(b"EHLO me");
        session.line(b"MAIL FROM:<>");
        let reply = session.line(format!("RCPT {recipient}").as_bytes()).reply().to_string();
        assert!(reply.starts_with(expected), "{recipient:?} got {reply:?}");
    }
    let mut session = local(offer());
    session.line(b"EHLO me");
    session.line(b"MAIL FROM:<> SMTPUTF8");
    assert_eq!(session.line("RCPT TO:<söze@x.test>".as_bytes()).reply().code(), 250);
}

#[test]
fn the_thousandth_recipient_is_the_last() {
    let mut session = local(offer());
    session.line(b"EHLO me");
    session.line(b"MAIL FROM:<>");
    for number in 0..1000 {
        assert_eq!(session.line(format!("RCPT TO:<b{number}@x.test>").as_bytes()).reply().code(), 250);
    }
    assert!(session.line(b"RCPT TO:<b@x.test>").reply().to_string().starts_with("452 4.5.3 "));
    let Action::ReadData(_, envelope) = session.line(b"DATA") else { panic!("no message") };
    assert_eq!(envelope.recipients.len(), 1000);
}

#[test]
fn bytes_that_no_command_holds() {
    let table: &[(&[u8], &str)] = &[
        (b"NOOP\0", "500 5.5.2 "),
        (b"NOOP\rMAIL FROM:<>", "500 5.5.2 "),
        (b"NOOP\tx", "500 5.5.2 "),
        (b"NOOP\x7f", "500 5.5.2 "),
        (b"\xff\xfe", "500 5.5.2 "),
        (b"\xc3", "500 5.5.2 "),
        (b"MAIL FROM:<s\xf6ze@x.test>", "553 5.6.7 "),
        (b"rcpt TO:<s\xf6ze@x.test>", "553 5.6.7 "),
    ];
    for (line, expected) in table {
        let mut session = local(offer());
        session.line(b"EHLO me");
        let reply = session.line(line).reply().to_string();
        assert!(reply.starts_with(expected), "{line:?} got {reply:?}");
    }
}

#[test]
fn long_and_badly_ended_lines() {
    let mut session = local(offer());
    assert!(
        session.long_line().reply().to_string().starts_with("500 5.5.2 The line is longer than 2048 bytes")
    );
    assert!(matches!(session.bare_line_feed(), Action::Close(reply) if reply.code() == 500));
}

#[test]
fn twenty_faults_in_a_row_close_the_connection() {
    let mut session = local(offer());
    for _ in 0..19 {
        assert!(matches!(session.line(b"Host: relay"), Action::Reply(_)));
    }
    assert!(matches!(session.line(b"Host: relay"), Action::Close(reply) if reply.code() == 421));
}

#[test]
fn a_web_page_cannot_send_mail() {
    for request in ["POST / HTTP/1.1", "get / HTTP/1.0", "PRI * HTTP/2.0"] {
        let action = local(offer()).line(request.as_bytes());
        assert!(matches!(action, Action::Close(_)), "{request}: {action:?}");
    }
}

#[test]
fn refused_addresses_never_close_the_connection_and_a_good_sender_clears_the_faults() {
    let mut session = local(offer());
    session.line(b"EHLO me");
    for _ in 0..30 {
        assert!(matches!(session.line(b"BOO"), Action::Reply(_)));
        assert_eq!(session.line(b"MAIL FROM:<a@x.test>").reply().code(), 250);
        assert_eq!(session.line(b"RCPT TO:<bad>").reply().code(), 501);
        assert_eq!(session.line(b"DATA").reply().code(), 554);
        session.line(b"RSET");
    }
    for _ in 0..30 {
        assert_eq!(session.line(b"MAIL FROM:<a@x.test> SIZE=1001").reply().code(), 552);
        assert_eq!(session.line(b"MAIL FROM:<bad>").reply().code(), 501);
    }
}

/// Lines that get far into the session more often than random text does.
fn line() -> impl Strategy<Value = Vec<u8>> {
    let known = proptest::sample::select(vec![
        "EHLO me",
        "MAIL FROM:<a@x.test>",
        "RCPT TO:<b@x.test>",
        "DATA",
        "RSET",
        "BDAT 7",
        "BDAT 7 LAST",
        "BDAT 1001",
        "AUTH LOGIN",
        "AUTH PLAIN",
        "*",
        "STARTTLS",
        "NOOP",
        "b2Rvbw==",
        "AG9kb28Ab3BlbiBzZXNhbWU=",
    ]);
    let words = "(EHLO|MAIL|RCPT|AUTH|DATA|VRFY) ?(FROM:|TO:|PLAIN|LOGIN)?[<>@a.\" =é:,\\\\]{0,12}( SIZE=[0-9]{0,25})?";
    prop_oneof![
        4 => known.prop_map(|line| line.as_bytes().to_vec()),
        2 => words.prop_map(String::into_bytes),
        1 => proptest::collection::vec(any::<u8>(), 0..40),
    ]
}

proptest! {
    #[test]
    fn never_panics_and_always_answers_in_form(lines in proptest::collection::vec(line(), 0..40), user: bool, here: bool) {
        let offer = if user { with_user() } else { offer() };
        let mut session = Session::new(Arc::new(Offer { tls: true, ..offer }), here);
        for line in lines {
            let action = session.line(&line);
            let mut out = Vec::new();
            action.reply().write(&mut out);
            prop_assert!((200..600).contains(&action.reply().code()));
            prop_assert!(out.is_ascii() && out.ends_with(b"\r\n"));
            match action {
                Action::ReadData(_, envelope) => {
                    prop_assert!(!envelope.recipients.is_empty() && !session.in_transaction());
                }
                Action::ReadChunk(_, Chunk { part: Part::Last(envelope), .. }) => {
                    prop_assert!(!envelope.recipients.is_empty() && !session.in_transaction());
                }
                Action::ReadChunk(_, Chunk { part: Part::More, .. }) => {
                    prop_assert!(session.in_transaction() && session.in_chunks());
                }
                Action::StartTls(_) => session.encrypted(),
                Action::Close(_) => break,
                Action::ReadChunk(..) | Action::Reply(_) => {}
            }
            prop_assert!(session.in_transaction() || !session.in_chunks());
        }
    }
}
