//! The client against literal dialogues, over real TLS.

use super::*;
use crate::delivery::peer::Play::{self, BeSilent, Hear, HearLike, Say, SayWithoutEnd, Take};
use crate::delivery::peer::{AUTH, EHLO, GREETING, Server, open_plain_session, open_session, server};
use proptest::prelude::*;
use std::time::Duration;

pub(in crate::delivery) fn quick() -> Timeouts {
    Timeouts::new(Duration::from_millis(300))
}

impl Connection {
    pub(in crate::delivery) async fn send(&mut self, message: &Outgoing<'_>) -> Transaction {
        match self.offer(message).await {
            Ok(answers) => self.submit(message, answers).await,
            Err(transaction) => transaction,
        }
    }
}

impl Server {
    pub(in crate::delivery) async fn open_within(&self, timeouts: Timeouts) -> Result<Connection, Fault> {
        let mailbox = Address::normalise("john@example.com").unwrap();
        let target = Target { server: &self.address, mailbox: &mailbox, tls: &self.tls, timeouts };
        Connection::open(target, "token").await
    }

    pub(in crate::delivery) async fn open(&self) -> Result<Connection, Fault> {
        self.open_within(Timeouts::default()).await
    }

    pub(in crate::delivery) async fn taken(self) -> Vec<Vec<u8>> {
        self.task.await.unwrap()
    }
}

async fn fails_to_open(script: Vec<Play>, timeouts: Timeouts) -> Fault {
    let server = server(script).await;
    let Err(fault) = server.open_within(timeouts).await else { panic!("it opened") };
    drop(server.taken().await);
    fault
}

fn code(fault: &Fault) -> &str {
    match fault {
        Fault::Refused(_, reply) => &reply.text,
        Fault::Failed(failure) => &failure.code,
    }
}

pub(in crate::delivery) fn to<'a>(recipients: &[&'a str], content: &'a [u8]) -> Outgoing<'a> {
    Outgoing { recipients: recipients.to_vec(), content, eight_bit: false, smtputf8: false }
}

#[tokio::test]
async fn what_comes_in_plain_text_after_starttls_is_refused() {
    let mut script = GREETING[..4].to_vec();
    script.push(Say("220 2.0.0 SMTP server ready\r\n250 injected\r\n"));
    script.push(BeSilent);
    let fault = fails_to_open(script, Timeouts::default()).await;
    assert_eq!(code(&fault), "STARTTLS injection");
}

#[tokio::test]
async fn nothing_is_sent_without_encryption() {
    let script =
        vec![Say("220 hello\r\n"), HearLike("EHLO "), Say("250-hello\r\n250 AUTH XOAUTH2\r\n"), BeSilent];
    assert_eq!(code(&fails_to_open(script, Timeouts::default()).await), "no STARTTLS");
}

#[tokio::test]
async fn a_certificate_that_is_not_trusted_is_the_administrators() {
    let mut strange = server([GREETING, &[BeSilent]].concat()).await;
    strange.tls = server(vec![]).await.tls;
    let Err(Fault::Failed(failure)) = strange.open().await else { panic!("it opened") };
    assert_eq!((failure.class, failure.code.as_str()), (Class::Administrator, "certificate"), "{failure}");
}

#[tokio::test]
async fn a_refused_sign_in_is_reported_as_the_service_said_it() {
    let refusal = "535 5.7.3 Authentication unsuccessful [AM0PR02CA0001]\r\n";
    let script =
        [GREETING, EHLO, EHLO, &[Hear(AUTH), Say(refusal), Hear("QUIT"), Say("221 2.0.0 bye\r\n")]].concat();
    let Fault::Refused(Step::Auth, reply) = fails_to_open(script, Timeouts::default()).await else {
        panic!("not refused")
    };
    assert_eq!(reply.to_string(), "535 5.7.3 Authentication unsuccessful [AM0PR02CA0001]");
}

#[tokio::test]
async fn a_challenge_is_answered_and_the_535_read() {
    let tail = [
        Hear(AUTH),
        Say("334 eyJzdGF0dXMiOiI0MDAiLCJzY2hlbWVzIjoiQmVhcmVyIn0=\r\n"),
        Hear(""),
        Say("535 5.7.3 Authentication unsuccessful\r\n"),
        Hear("QUIT"),
    ];
    let Fault::Refused(Step::Auth, reply) =
        fails_to_open([GREETING, EHLO, EHLO, &tail].concat(), Timeouts::default()).await
    else {
        panic!("not refused")
    };
    assert_eq!(reply.codes(), "535 5.7.3");
    assert_eq!(reply.text, "Authentication unsuccessful {\"status\":\"400\",\"schemes\":\"Bearer\"}");
}

#[tokio::test]
async fn only_235_signs_in() {
    let tail = [Hear(AUTH), Say("250 2.0.0 OK\r\n"), BeSilent];
    assert_eq!(
        code(&fails_to_open([GREETING, EHLO, EHLO, &tail].concat(), Timeouts::default()).await),
        "protocol"
    );
    let tail = [Hear(AUTH), Say("334 \r\n"), Hear(""), Say("235 2.7.0 after all\r\n"), BeSilent];
    assert_eq!(
        code(&fails_to_open([GREETING, EHLO, EHLO, &tail].concat(), Timeouts::default()).await),
        "protocol"
    );
    let plain = [HearLike("EHLO "), Say("250-hello\r\n250 AUTH LOGIN PLAIN\r\n")];
    let script = [GREETING, &plain, &plain, &[BeSilent]].concat();
    assert_eq!(code(&fails_to_open(script, Timeouts::default()).await), "no XOAUTH2");
}

#[tokio::test]
async fn a_quoted_token_is_not_repeated() {
    let quoted = Say(
        "500 5.5.1 what is dXNlcj1qb2huQGV4YW1wbGUuY29tAWF1dGg9QmVhcmVyIHRva2VuAQEdXNlcj1qb2huQGV4YW1wbGU= now\r\n",
    );
    let script = [GREETING, EHLO, EHLO, &[Hear(AUTH), quoted, Hear("QUIT")]].concat();
    assert_eq!(code(&fails_to_open(script, Timeouts::default()).await), "what is […] now");
}

#[tokio::test]
async fn endless_replies_and_silence_end_at_each_step_of_the_greeting() {
    let open = open_session();
    for cut in [0, 2, 4, 7, 9, 11] {
        for play in [SayWithoutEnd("250-abcdefgh"), SayWithoutEnd("250-abcdefgh\r\n"), SayWithoutEnd("\r\n")]
        {
            let fault = fails_to_open([&open[..cut], &[play]].concat(), Timeouts::default()).await;
            assert_eq!(code(&fault), "connection lost", "{play:?} at {cut}");
        }
        let fault = fails_to_open([&open[..cut], &[BeSilent]].concat(), quick()).await;
        assert_eq!(code(&fault), "timeout", "at {cut}");
        let fault = fails_to_open(open[..cut].to_vec(), Timeouts::default()).await;
        assert_eq!(code(&fault), "connection lost", "at {cut}");
    }
    let blank = [HearLike("EHLO "), Say("250- \r\n250 x\r\n"), BeSilent];
    assert_eq!(
        code(&fails_to_open([GREETING, &blank].concat(), Timeouts::default()).await),
        "connection lost"
    );
}

#[tokio::test]
async fn a_refused_recipient_leaves_the_others() {
    for mut script in [open_session(), open_plain_session()] {
        script.extend([
            Hear("MAIL FROM:<john@example.com> SIZE=6"),
            Say("250 2.1.0 Sender OK\r\n"),
            Hear("RCPT TO:<a@example.org>"),
            Say("250 2.1.5 Recipient OK\r\n"),
            Hear("RCPT TO:<b@example.org>"),
            Say("550-5.1.1 User\r\n550 5.1.1 unknown\r\n"),
            Hear("RCPT TO:<c@example.org>"),
            Say("250 2.1.5 Recipient OK\r\n"),
            Hear("DATA"),
            Say("354 Start mail input; end with <CRLF>.<CRLF>\r\n"),
            Take,
            Say("250 2.0.0 OK <1@AM0PR02MB0001> [Hostname=AM0PR02MB0001]\r\n"),
            Hear("QUIT"),
            Say("221 2.0.0 bye\r\n"),
        ]);
        let server = server(script).await;
        let mut connection = server.open().await.ok().unwrap();
        let transaction =
            connection.send(&to(&["a@example.org", "b@example.org", "c@example.org"], b"a\r\n.\r\n")).await;
        let [Rcpt::Accepted, Rcpt::Refused(reply), Rcpt::Accepted] = transaction.recipients.as_slice() else {
            panic!("{transaction:?}")
        };
        assert_eq!(reply.to_string(), "550 5.1.1 User unknown");
        let End::Taken(reply) = transaction.end else { panic!("{:?}", transaction.end) };
        assert_eq!(reply.to_string(), "250 2.0.0 OK <1@AM0PR02MB0001> [Hostname=AM0PR02MB0001]");
        assert!(connection.is_usable());
        connection.quit().await;
        assert_eq!(server.taken().await, [b"a\r\n.\r\n"]);
    }
}

/// A transaction with one recipient that is accepted, up to the final dot.
const TRANSACTION: &[Play] = &[
    HearLike("MAIL FROM:<john@example.com>"),
    Say("250 2.1.0 Sender OK\r\n"),
    Hear("RCPT TO:<a@example.org>"),
    Say("250 2.1.5 Recipient OK\r\n"),
    Hear("DATA"),
    Say("354 Start mail input\r\n"),
    Take,
];

#[tokio::test]
async fn the_message_arrives_byte_by_byte() {
    let long = [b"Subject: long\r\n\r\n".to_vec(), b".\r\n..\r\n0123456789\r\n".repeat(30_000)].concat();
    let messages: [&[u8]; 11] = [
        b"Subject: a\r\n\r\nends with a line end\r\n",
        b"Subject: a\r\n\r\nends in blank lines\r\n\r\n\r\n",
        b".begins with a dot\r\n",
        b"a\r\n.\r\n..\r\n.x\r\n\r\n.\r\n",
        b".\r\n",
        b"..\r\n",
        b"\r\n",
        b"\r\n.\r\n",
        "8 bit: \u{e4}\u{20ac}\r\n".as_bytes(),
        b"\0 and \x7f\r\n",
        &long,
    ];
    let mut script = open_session();
    for _ in 0..=messages.len() {
        script.extend([TRANSACTION, &[Say("250 2.0.0 OK\r\n")]].concat());
    }
    let server = server(script).await;
    let mut connection = server.open().await.ok().unwrap();
    for message in messages {
        let end = connection.send(&to(&["a@example.org"], message)).await.end;
        assert!(matches!(end, End::Taken(_)), "{end:?}");
    }
    // A last line without an end gets one: SMTP has no other way.
    drop(connection.send(&to(&["a@example.org"], b"no line end")).await);
    let taken = server.taken().await;
    assert_eq!(taken.len(), messages.len() + 1);
    for (taken, message) in taken.iter().zip(messages) {
        assert!(taken == message, "{:?} became {:?}", message.escape_ascii(), taken.escape_ascii());
    }
    assert_eq!(taken.last().unwrap(), b"no line end\r\n");
}

#[test]
fn bare_line_ends_are_not_sent() {
    for content in [&b"a\n.\r\nb\r\n"[..], b"\n", b"a\r", b"a\rb\r\n", b"\r\r\n", b"a\r\n\n", b"\r", b"\na"] {
        assert!(has_bare_line_end(content), "{:?}", content.escape_ascii());
    }
    for content in [&b""[..], b"\r\n", b"a\r\n\r\n", b"a", b"\r\na"] {
        assert!(!has_bare_line_end(content), "{:?}", content.escape_ascii());
    }
}

proptest! {
    #[test]
    fn a_message_is_stuffed_alike_however_it_is_cut(content in "[.ab\r\n]{0,40}", at in 0..40usize) {
        let content = content.as_bytes();
        let (one, two) = content.split_at(at.min(content.len()));
        let mut sent = Vec::new();
        stuff(b'\n', one, &mut sent);
        stuff(one.last().copied().unwrap_or(b'\n'), two, &mut sent);
        let mut expected: Vec<u8> = Vec::new();
        for line in content.split_inclusive(|&byte| byte == b'\n') {
            expected.extend(line.first().filter(|&&first| first == b'.'));
            expected.extend(line);
        }
        prop_assert_eq!(sent, expected);
    }

    #[test]
    fn every_bare_line_end_is_found(content in "[a\r\n]{0,40}") {
        let bare = content.replace("\r\n", "").contains(['\r', '\n']);
        prop_assert_eq!(has_bare_line_end(content.as_bytes()), bare);
    }
}

#[tokio::test]
async fn parameters_are_given_where_needed_and_offered() {
    let mut script = open_session();
    script.push(Hear("MAIL FROM:<john@example.com> SIZE=4 BODY=8BITMIME SMTPUTF8"));
    script.extend(&TRANSACTION[1..2]);
    script.extend([Hear("RCPT TO:<\u{e4}@example.org>"), Say("250 2.1.5 OK\r\n")]);
    script.extend(&TRANSACTION[4..]);
    script.push(Say("250 2.0.0 OK\r\n"));
    let server = server(script).await;
    let mut connection = server.open().await.ok().unwrap();
    let mut message = to(&["\u{e4}@example.org"], b"ab\r\n");
    (message.eight_bit, message.smtputf8) = (true, true);
    let end = connection.send(&message).await.end;
    assert!(matches!(end, End::Taken(_)), "{end:?}");

    connection.offers = Offers::default();
    let end = connection.send(&message).await.end;
    assert!(matches!(&end, End::Unsendable(failure) if failure.class == Class::Message), "{end:?}");
    message.smtputf8 = false;
    assert_eq!(Offers::default().parameters(&message).ok().unwrap(), "");
    for (recipient, speakable) in [
        ("a@example.org", true),
        ("\"a b>\"@example.org", true),
        ("", false),
        ("a@example.org> NOTIFY=NEVER", false),
        ("a@example.org\r\nDATA", false),
        ("\"a\nb\"@example.org", false),
        ("\u{e4}@example.org", false),
    ] {
        assert_eq!(Offers::default().unspeakable(recipient).is_none(), speakable, "{recipient:?}");
    }
    drop(server.taken().await);
}

#[tokio::test]
async fn a_transaction_left_open_is_reset() {
    let mut script = open_plain_session();
    script.extend(&TRANSACTION[..3]);
    script.extend([Say("550 5.1.1 User unknown\r\n"), Hear("RSET"), Say("250 2.0.0 Resetting\r\n")]);
    script.extend(TRANSACTION);
    script.push(Say("554 5.2.0 STOREDRV.Submission.Exception:SendAsDeniedException\r\n"));
    script.extend(TRANSACTION);
    script.push(Say("250 2.0.0 OK\r\n"));
    let server = server(script).await;
    let mut connection = server.open().await.ok().unwrap();
    let message = to(&["a@example.org"], b"a\r\n");
    assert!(matches!(connection.send(&message).await.end, End::NoRecipient));
    assert!(matches!(connection.send(&message).await.end, End::Refused(Step::Dot, _)));
    assert!(matches!(connection.send(&message).await.end, End::Taken(_)));
    assert_eq!(server.taken().await.len(), 2);
}

#[tokio::test]
async fn too_many_recipients_and_the_mailboxs_trouble_end_the_recipients() {
    let mut script = open_plain_session();
    script.extend(&TRANSACTION[..4]);
    script.extend([Hear("RCPT TO:<b@example.org>"), Say("452 4.5.3 Too many recipients\r\n")]);
    script.extend(&TRANSACTION[4..]);
    script.push(Say("250 2.0.0 OK\r\n"));
    script.extend(&TRANSACTION[..4]);
    script.extend([Hear("RCPT TO:<b@example.org>"), Say("550 5.7.233 tenant's limit\r\n"), Hear("QUIT")]);
    let server = server(script).await;
    let mut connection = server.open().await.ok().unwrap();
    let message = to(&["a@example.org", "b@example.org", "c@example.org"], b"a\r\n");
    let transaction = connection.send(&message).await;
    assert!(matches!(transaction.end, End::Taken(_)) && transaction.recipients.len() == 2, "{transaction:?}");
    let transaction = connection.send(&message).await;
    assert!(
        matches!(transaction.end, End::NoRecipient) && transaction.recipients.len() == 2,
        "{transaction:?}"
    );
    connection.quit().await;
    assert_eq!(server.taken().await.len(), 1);
}

#[tokio::test]
async fn what_is_lost_behind_the_dot_is_unknown_and_before_it_is_not() {
    for open in [open_session(), open_plain_session()] {
        let end_of = async |plays: &[Play], timeouts| {
            let server = server([&open, plays].concat()).await;
            let mut connection = server.open_within(timeouts).await.ok().unwrap();
            let end = connection.send(&to(&["a@example.org"], b"a\r\n")).await.end;
            assert!(!connection.is_usable());
            drop(connection);
            drop(server.taken().await);
            end
        };
        let lost = [1, 3, 5, 6];
        for cut in lost {
            let end = end_of(&TRANSACTION[..cut], Timeouts::default()).await;
            let is_behind = cut == 6;
            assert!(matches!(end, End::Unknown(_)) == is_behind, "at {cut}: {end:?}");
            let end = end_of(&[&TRANSACTION[..cut], &[BeSilent]].concat(), quick()).await;
            assert!(matches!(end, End::Unknown(_)) == is_behind, "silent at {cut}: {end:?}");
        }
        let end = end_of(&[TRANSACTION, &[SayWithoutEnd("250-x")]].concat(), Timeouts::default()).await;
        assert!(matches!(end, End::Unknown(_)), "{end:?}");
        let end =
            end_of(&[TRANSACTION, &[Say("354 what?\r\n"), BeSilent]].concat(), Timeouts::default()).await;
        assert!(matches!(end, End::Unknown(_)), "{end:?}");
        let end =
            end_of(&[&TRANSACTION[..5], &[Say("250 what?\r\n"), BeSilent]].concat(), Timeouts::default())
                .await;
        assert!(matches!(end, End::Lost(_)), "{end:?}");
        let end =
            end_of(&[&TRANSACTION[..1], &[Say("421 4.3.2 closing\r\n")]].concat(), Timeouts::default()).await;
        assert!(matches!(end, End::Refused(Step::Mail, _)), "{end:?}");
        let end =
            end_of(&[&TRANSACTION[..3], &[Say("421 4.3.2 closing\r\n")]].concat(), Timeouts::default()).await;
        assert!(matches!(end, End::Lost(_)), "{end:?}");
    }
}

#[tokio::test]
async fn a_block_that_stalls_is_lost_not_unknown() {
    let mut script = open_session();
    script.extend(&TRANSACTION[..6]);
    let server = server(script.clone()).await;
    // More than the sockets' buffers take while nobody reads.
    let content = b"0123456789abcdef\r\n".repeat(2_000_000);
    let stalled = async {
        let mut connection = server.open_within(quick()).await.ok().unwrap();
        connection.send(&to(&["a@example.org"], &content)).await.end
    };
    let end = stalled.await;
    assert!(matches!(end, End::Lost(_)), "{end:?}");
}
