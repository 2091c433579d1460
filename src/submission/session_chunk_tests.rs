use super::Action;
use super::tests::{local, offer, play};

#[test]
fn messages_in_chunks() {
    play(
        local(offer()),
        "C: BDAT 5
         S: 503 5.5.1 …
         *** drops 5
         C: EHLO me
         S: 250-relay
         S: 250-PIPELINING
         S: 250-SIZE 1000
         S: 250-8BITMIME
         S: 250-SMTPUTF8
         S: 250-ENHANCEDSTATUSCODES
         S: 250 CHUNKING
         C: MAIL FROM:<a@x.test>
         S: 250 2.1.0 Ok
         C: BDAT 5 LAST
         S: 554 5.1.0 …
         *** drops 5
         C: RCPT TO:<b@x.test>
         S: 250 2.1.5 Ok
         C: bdat 600
         S: 250 2.0.0 600 octets received
         *** reads 600
         C: RCPT TO:<c@x.test>
         S: 503 5.5.1 …
         C: DATA
         S: 503 5.5.1 …
         C: MAIL FROM:<a@x.test>
         S: 503 5.5.1 …
         C: NOOP
         S: 250 2.0.0 Ok
         C: BDAT 400
         S: 250 2.0.0 400 octets received
         *** reads 400
         C: BDAT 0 last
         S: 250 2.0.0 0 octets received
         *** reads 0, the last to b@x.test
         C: BDAT 0 LAST
         S: 503 5.5.1 …
         *** drops 0
         C: MAIL FROM:<a@x.test>
         S: 250 2.1.0 Ok
         C: RCPT TO:<b@x.test>
         S: 250 2.1.5 Ok
         C: BDAT 600
         S: 250 2.0.0 …
         *** reads 600
         C: BDAT 401
         S: 552 5.3.4 …
         *** drops 401
         C: BDAT 10 LAST
         S: 503 5.5.1 …
         *** drops 10
         C: MAIL FROM:<a@x.test>
         S: 250 2.1.0 Ok
         C: RCPT TO:<b@x.test>
         S: 250 2.1.5 Ok
         C: BDAT 600
         S: 250 2.0.0 …
         *** reads 600
         C: RSET
         S: 250 2.0.0 Ok
         C: MAIL FROM:<a@x.test>
         S: 250 2.1.0 Ok
         C: RCPT TO:<d@x.test>
         S: 250 2.1.5 Ok
         C: BDAT 1000 LAST
         S: 250 2.0.0 …
         *** reads 1000, the last to d@x.test
         C: MAIL FROM:<a@x.test>
         S: 250 2.1.0 Ok
         C: RCPT TO:<d@x.test>
         S: 250 2.1.5 Ok
         C: DATA
         S: 354 …
         *** <a@x.test> to d@x.test",
    );
}

#[test]
fn a_chunk_of_unknown_size_closes_the_connection() {
    let table = [
        ("BDAT", "501 5.5.4 "),
        ("BDAT LAST", "501 5.5.4 "),
        ("BDAT -1", "501 5.5.4 "),
        ("BDAT +1", "501 5.5.4 "),
        ("BDAT 1x", "501 5.5.4 "),
        ("BDAT 1 FIRST", "501 5.5.4 "),
        ("BDAT 1 LAST x", "501 5.5.4 "),
        ("BDAT 1073741825", "552 5.3.4 "),
        ("BDAT 99999999999999999999999 LAST", "552 5.3.4 "),
    ];
    for (line, expected) in table {
        let mut session = local(offer());
        session.line(b"EHLO me");
        session.line(b"MAIL FROM:<>");
        session.line(b"RCPT TO:<b@x.test>");
        let action = session.line(line.as_bytes());
        assert!(
            matches!(&action, Action::Close(reply) if reply.to_string().starts_with(expected)),
            "{line}: {action:?}"
        );
    }
}

#[test]
fn a_refused_chunk_ends_the_transaction() {
    let mut session = local(offer());
    session.line(b"EHLO me");
    session.line(b"MAIL FROM:<>");
    session.line(b"RCPT TO:<b@x.test>");
    session.line(b"BDAT 5");
    assert!(session.in_chunks());
    session.chunk_refused();
    assert!(!session.in_chunks() && !session.in_transaction());
}
