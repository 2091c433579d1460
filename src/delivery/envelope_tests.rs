//! Envelopes in groups: against literal dialogues, and by themselves.

use super::*;
use crate::delivery::client::tests::{quick, to};
use crate::delivery::outcome::Transaction;
use crate::delivery::peer::Play::{self, BeLeft, BeSilent, Hear, HearLike, Say, Take};
use crate::delivery::peer::{open_session, server};
use proptest::prelude::*;

const THREE: [&str; 3] = ["a@x.test", "b@x.test", "c@x.test"];

/// All of it is heard before anything is said: it left at once.
const GROUP: &[Play] = &[
    Hear("MAIL FROM:<john@example.com> SIZE=3"),
    Hear("RCPT TO:<a@x.test>"),
    Hear("RCPT TO:<b@x.test>"),
    Hear("RCPT TO:<c@x.test>"),
    Hear("DATA"),
];

/// The group once more and the message taken, over the same connection.
fn and_another(reset: bool) -> Vec<Play> {
    let first: &[Play] = if reset { &[Hear("RSET")] } else { &[] };
    let replies = if reset {
        Say("250 reset\r\n250 2.1.0 OK\r\n250 2.1.5 OK\r\n250 2.1.5 OK\r\n250 2.1.5 OK\r\n354 go\r\n")
    } else {
        Say("250 2.1.0 OK\r\n250 2.1.5 OK\r\n250 2.1.5 OK\r\n250 2.1.5 OK\r\n354 go\r\n")
    };
    [first, GROUP, &[replies, Take, Say("250 2.0.0 OK\r\n")]].concat()
}

/// In short what became of it.
fn told(transaction: &Transaction) -> String {
    let answers = transaction.recipients.iter().map(|answer| match answer {
        Rcpt::Accepted => "ok".to_owned(),
        Rcpt::Refused(reply) => reply.code.to_string(),
    });
    let end = match &transaction.end {
        End::Taken(_) => "taken".to_owned(),
        End::Refused(step, reply) => format!("{step:?} {}", reply.code),
        End::NoRecipient => "nobody".to_owned(),
        End::Lost(failure) => format!("lost: {}", failure.code),
        End::Unknown(_) => "unknown".to_owned(),
        End::Unsendable(_) => "unsendable".to_owned(),
    };
    answers.chain([end]).collect::<Vec<_>>().join(", ")
}

/// What the service does after a group, what that comes to, and how many messages it took; where it goes on as
/// `and_another`, the connection is used again.
async fn plays(after: &[Play], expected: &str, messages: usize, another: Option<bool>) {
    let more = another.map(and_another).unwrap_or_default();
    let server = server([&open_session(), GROUP, after, &more].concat()).await;
    let mut connection = server.open_within(quick()).await.ok().unwrap();
    let transaction = connection.send(&to(&THREE, b"a\r\n")).await;
    assert_eq!(told(&transaction), expected, "{after:?}");
    assert_eq!(connection.is_usable(), another.is_some(), "{after:?}");
    if another.is_some() {
        let transaction = connection.send(&to(&THREE, b"a\r\n")).await;
        assert_eq!(told(&transaction), "ok, ok, ok, taken", "after {after:?}");
    }
    drop(connection);
    let taken = server.taken().await;
    assert_eq!(taken, vec![b"a\r\n".to_vec(); messages + usize::from(another.is_some())], "{after:?}");
}

#[tokio::test]
async fn an_envelope_leaves_at_once_and_each_reply_counts() {
    let end = [Take, Say("250 2.0.0 OK\r\n")];
    let sent = |replies| [&[Say(replies)], &end[..]].concat();
    let script = sent("250 a\r\n250 b\r\n250 c\r\n250 d\r\n354 e\r\n");
    plays(&script, "ok, ok, ok, taken", 1, Some(false)).await;
    let script = sent("250 a\r\n250 b\r\n550-5.1.1 no\r\n550 5.1.1 no\r\n250 d\r\n354 e\r\n");
    plays(&script, "ok, 550, ok, taken", 1, Some(false)).await;
    let script = sent("250 a\r\n250 b\r\n452 4.5.3 full\r\n250 d\r\n354 e\r\n");
    plays(&script, "ok, 452, ok, taken", 1, Some(false)).await;
    let script = sent("250 a\r\n250 b\r\n452 4.5.3 full\r\n452 4.5.3 full\r\n354 e\r\n");
    plays(&script, "ok, 452, 452, taken", 1, Some(false)).await;
    // However the replies come.
    let parts =
        [Say("25"), Say("0 a\r\n250 b\r\n2"), Say("50 c\r\n250 d\r"), Say("\n354 e\r\n"), Take, end[1]];
    plays(&parts, "ok, ok, ok, taken", 1, Some(false)).await;
}

#[tokio::test]
async fn without_a_recipient_no_message_is_sent() {
    const NOBODY: Play = Say("250 a\r\n550 b\r\n550 c\r\n451 d\r\n354 go\r\n");
    let refused = Say("250 a\r\n550 b\r\n550 c\r\n451 d\r\n554 5.5.1 no valid recipients\r\n");
    plays(&[refused], "550, 550, 451, nobody", 0, Some(true)).await;
    // RFC 2920 section 3.1: a lone dot ends what DATA began.
    for reply in ["554 5.5.1 no valid recipients\r\n", "250 2.0.0 OK\r\n"] {
        let script = [NOBODY, Hear("."), Say(reply)];
        plays(&script, "550, 550, 451, nobody", 0, Some(false)).await;
    }
    let script = [NOBODY, Hear("."), Say("421 4.3.2 closing\r\n")];
    plays(&script, "550, 550, 451, nobody", 0, None).await;
    plays(&[NOBODY, Hear("."), BeSilent], "550, 550, 451, nobody", 0, None).await;
    // What becomes of DATA then is of no account, but for the connection.
    let nobody = Say("250 a\r\n550 b\r\n550 c\r\n451 d\r\n");
    for end in [&[BeSilent][..], &[Say("250 what?\r\n"), BeLeft], &[Say("421 closing\r\n"), BeLeft], &[]] {
        plays(&[&[nobody], end].concat(), "550, 550, 451, nobody", 0, None).await;
    }
}

#[tokio::test]
async fn a_refused_mail_is_judged_by_its_own_reply() {
    let script = [Say("432 4.3.2 many\r\n503 b\r\n503 c\r\n503 d\r\n503 e\r\n")];
    plays(&script, "Mail 432", 0, Some(false)).await;
    let script = [Say("535 5.7.3 token\r\n250 b\r\n503 c\r\n503 d\r\n554 e\r\n")];
    plays(&script, "Mail 535", 0, Some(false)).await;
    let script = [Say("550 a\r\n503 b\r\n503 c\r\n503 d\r\n354 go all the same\r\n"), BeLeft];
    plays(&script, "Mail 550", 0, None).await;
    plays(&[Say("421 4.3.2 closing\r\n")], "Mail 421", 0, None).await;
    plays(&[Say("550 a\r\n421 closing\r\n")], "Mail 550", 0, None).await;
    plays(&[Say("550 a\r\n503 b\r\n")], "Mail 550", 0, None).await;
}

#[tokio::test]
async fn the_mailboxs_trouble_among_the_recipients_ends_it() {
    let trouble = "250 a\r\n250 b\r\n550 5.7.233 tenant's limit\r\n550 5.1.1 no\r\n354 go\r\n";
    // A message of nothing would reach the first.
    plays(&[Say(trouble), BeLeft], "ok, 550, 550, nobody", 0, None).await;
    let trouble = "250 a\r\n250 b\r\n550 5.7.233 tenant's limit\r\n550 5.1.1 no\r\n503 no\r\n";
    plays(&[Say(trouble)], "ok, 550, 550, nobody", 0, Some(true)).await;
}

#[tokio::test]
async fn data_may_be_refused() {
    let script = [Say("250 a\r\n250 b\r\n550 c\r\n250 d\r\n451 4.3.0 later\r\n")];
    plays(&script, "ok, 550, ok, Data 451", 0, Some(true)).await;
    let script = [Say("250 a\r\n250 b\r\n550 c\r\n250 d\r\n421 4.3.0 later\r\n"), BeLeft];
    plays(&script, "ok, 550, ok, Data 421", 0, None).await;
}

#[tokio::test]
async fn what_is_lost_or_out_of_step_within_a_group_is_lost() {
    let table = [
        ("", "lost: "),
        ("250 a\r\n", "lost: "),
        ("250 a\r\n250 b\r\n", "ok, lost: "),
        ("250 a\r\n550 b\r\n250 c\r\n250 d\r\n", "550, ok, ok, lost: "),
    ];
    for (said, expected) in table {
        plays(&[Say(said)], &format!("{expected}connection lost"), 0, None).await;
        plays(&[Say(said), BeLeft], &format!("{expected}timeout"), 0, None).await;
        plays(&[Say(said), Say("\0\x7f\x1b\r\n")], &format!("{expected}connection lost"), 0, None).await;
        // Where DATA is not yet to be answered.
        if said.matches("\r\n").count() < 4 {
            let script = [Say(said), Say("354 what?\r\n"), BeLeft];
            plays(&script, &format!("{expected}protocol"), 0, None).await;
        }
    }
    let closing = Say("250 a\r\n250 b\r\n421 4.3.2 closing\r\n");
    plays(&[closing], "ok, 421, lost: 421 4.3.2", 0, None).await;
    let shifted = Say("250 a\r\n250 a\r\n250 b\r\n250 c\r\n250 d\r\n354 go\r\n");
    plays(&[shifted, BeLeft], "ok, ok, ok, lost: protocol", 0, None).await;
}

#[tokio::test]
async fn a_message_that_was_offered_and_is_not_sent_after_all_takes_the_connection_along() {
    let script = [Say("250 a\r\n250 b\r\n250 c\r\n250 d\r\n354 e\r\n"), BeLeft];
    let server = server([&open_session(), GROUP, &script].concat()).await;
    let mut connection = server.open_within(quick()).await.ok().unwrap();
    assert_eq!(connection.offer(&to(&THREE, b"a\r\n")).await.ok().unwrap().len(), 3);
    assert!(!connection.is_usable());
    // "QUIT" would be the message's first line.
    connection.quit().await;
    assert!(server.taken().await.is_empty());
}

#[tokio::test]
async fn a_transaction_left_open_is_reset_within_the_group() {
    let open = [&open_session(), GROUP, &[Say("250 a\r\n550 b\r\n550 c\r\n550 d\r\n554 e\r\n")]].concat();
    let replies = "250 a\r\n250 b\r\n250 c\r\n250 d\r\n354 e\r\n";
    for (reset, expected) in [
        ("451 not now\r\n", "lost: protocol"),
        ("421 closing\r\n", "lost: protocol"),
        ("354 what?\r\n", "lost: protocol"),
        ("", "lost: timeout"),
    ] {
        let more = if reset.is_empty() { &[BeLeft][..] } else { &[Say(reset), Say(replies), BeLeft] };
        let server = server([&open[..], &[Hear("RSET")], GROUP, more].concat()).await;
        let mut connection = server.open_within(quick()).await.ok().unwrap();
        assert_eq!(told(&connection.send(&to(&THREE, b"a\r\n")).await), "550, 550, 550, nobody");
        // As if the connection had been stale: it is tried over another one.
        assert_eq!(
            told(&connection.send(&to(&["", "a@x.test", "b@x.test", "c@x.test"], b"a\r\n")).await),
            expected
        );
        assert!(!connection.is_usable());
        drop(connection);
        assert!(server.taken().await.is_empty());
    }
}

#[tokio::test]
async fn who_cannot_be_named_keeps_its_place() {
    let odd = ["", "a@x.test", "b c@x.test", "b@x.test", "c@x.test", "d>@x.test"];
    let end = [Take, Say("250 2.0.0 OK\r\n")];
    let replies = Say("250 a\r\n250 b\r\n550 c\r\n250 d\r\n354 e\r\n");
    let alone = [HearLike("MAIL FROM"), Say("250 a\r\n")];
    let script = [&open_session(), GROUP, &[replies], &end, &alone, &and_another(true)].concat();
    let server = server(script).await;
    let mut connection = server.open_within(quick()).await.ok().unwrap();
    assert_eq!(told(&connection.send(&to(&odd, b"a\r\n")).await), "553, ok, 553, 550, ok, 553, taken");
    assert_eq!(told(&connection.send(&to(&["", " "], b"a\r\n")).await), "553, 553, nobody");
    assert_eq!(told(&connection.send(&to(&THREE, b"a\r\n")).await), "ok, ok, ok, taken");
    drop(connection);
    assert_eq!(server.taken().await.len(), 2);
}

#[tokio::test]
async fn many_recipients_go_in_groups_and_none_after_the_last_that_is_taken() {
    let recipients: Vec<String> = (0..250).map(|n| format!("{n}@x.test")).collect();
    let recipients: Vec<&str> = recipients.iter().map(String::as_str).collect();
    let rcpt = |from: usize, to: usize| {
        let lines = (from..to).map(|n| Hear(format!("RCPT TO:<{n}@x.test>").leak()));
        lines.collect::<Vec<_>>()
    };
    let say = |replies: &str, times: usize| Say(replies.repeat(times).leak());
    let mail = [HearLike("MAIL FROM")];
    let ok = "250 OK\r\n";
    let mut script = open_session();
    for plays in [
        &[&mail[..], &rcpt(0, 99), &[say(ok, 100)]].concat(),
        &[&rcpt(99, 199)[..], &[say(ok, 100)]].concat(),
        &[&rcpt(199, 250)[..], &[Hear("DATA"), say(ok, 51), Say("354 go\r\n"), Take, Say(ok)]].concat(),
        // The second time it takes 150 only.
        &[&mail[..], &rcpt(0, 99), &[say(ok, 100)]].concat(),
        &[&rcpt(99, 199)[..], &[say(ok, 51), say("452 4.5.3 full\r\n", 49)]].concat(),
        &[Hear("DATA"), Say("354 go\r\n"), Take, Say(ok)].to_vec(),
        // The third time, none.
        &[&mail[..], &rcpt(0, 99), &[say(ok, 1), say("452 4.5.3 full\r\n", 99)]].concat(),
        &[Hear("QUIT"), Say("221 bye\r\n")].to_vec(),
    ] {
        script.extend(plays);
    }
    let server = server(script).await;
    let mut connection = server.open().await.ok().unwrap();
    for (answers, accepted, end) in [(250, 250, "taken"), (199, 150, "taken"), (99, 0, "nobody")] {
        let transaction = connection.send(&to(&recipients, b"a\r\n")).await;
        let taken = transaction.recipients.iter().filter(|answer| matches!(answer, Rcpt::Accepted)).count();
        assert_eq!((transaction.recipients.len(), taken), (answers, accepted));
        assert!(told(&transaction).ends_with(end));
    }
    connection.quit().await;
    assert_eq!(server.taken().await.len(), 2);
}

fn response(code: &str) -> Result<Response, Fault> {
    let reply = Reply::new(code.parse().unwrap(), "x");
    if reply.code >= 400 {
        return Err(Fault::Refused(Step::Mail, reply));
    }
    let line = format!("{code} x\r\n");
    Ok(line.parse().unwrap())
}

/// An envelope whose replies depend on the command alone: how it ended, and the groups.
fn run(recipients: &[&str], replies: &[&str], pipelining: bool) -> (String, Vec<Group>) {
    let mailbox = Address::normalise("john@example.com").unwrap();
    let message = to(recipients, b"a\r\n");
    let offers = Offers { pipelining, ..Offers::default() };
    let mut envelope = Envelope::new(&message, &mailbox, offers, true).ok().unwrap();
    let mut groups = Vec::new();
    'all: while let Some(group) = envelope.next_group() {
        for (&verb, line) in group.verbs.iter().zip(group.text.lines()) {
            let reply = match verb {
                Verb::Rset => "250",
                Verb::Mail => replies[0],
                Verb::Data => replies[1],
                Verb::Rcpt => {
                    let at = recipients.iter().position(|one| line == format!("RCPT TO:<{one}>")).unwrap();
                    replies[2 + at]
                }
            };
            if envelope.take(verb, response(reply)).is_break() {
                groups.push(group);
                break 'all;
            }
        }
        groups.push(group);
    }
    let is_open = envelope.is_open();
    let (answers, sealed) = envelope.seal();
    let answers: Vec<String> = answers
        .iter()
        .map(|answer| match answer {
            Rcpt::Accepted => "ok".to_owned(),
            Rcpt::Refused(reply) => reply.codes(),
        })
        .collect();
    let end = match &sealed {
        Sealed::Content => "content".to_owned(),
        Sealed::Nothing | Sealed::Over(End::NoRecipient, _) => "nobody".to_owned(),
        Sealed::Over(End::Refused(step, reply), _) => format!("{step:?} {}", reply.code),
        Sealed::Over(..) => "lost".to_owned(),
    };
    assert!(is_open || answers.is_empty());
    (format!("{answers:?} {end}"), groups)
}

proptest! {
    #[test]
    fn groups_are_bounded_and_come_to_the_same_as_one_by_one(
        lengths in prop::collection::vec(prop_oneof![1..30usize, 1..3_000usize, Just(20_000)], 1..130),
        mail in prop::sample::select(vec!["250", "250", "250", "451", "550"]),
        data in prop::sample::select(vec!["354", "354", "451", "554"]),
        rcpt in prop::collection::vec(prop::sample::select(vec!["250", "251", "550", "451"]), 130),
        none in any::<bool>(),
    ) {
        let recipients: Vec<String> =
            lengths.iter().enumerate().map(|(at, &length)| format!("{at}{}@x.test", "a".repeat(length))).collect();
        let recipients: Vec<&str> = recipients.iter().map(String::as_str).collect();
        let mut replies = vec![mail, data];
        replies.extend(rcpt.iter().map(|reply| if none && reply.starts_with('2') { "550" } else { reply }));
        let (end, groups) = run(&recipients, &replies, true);
        let (end_alone, alone) = run(&recipients, &replies, false);
        prop_assert_eq!(end, end_alone);
        prop_assert!(alone.iter().all(|group| group.verbs.len() == 1));
        for (at, group) in groups.iter().enumerate() {
            prop_assert!(!group.verbs.is_empty() && group.verbs.len() <= MOST_RECIPIENTS + 1);
            prop_assert!(group.text.len() < MOST_BYTES + 100 || group.verbs.iter().filter(|verb| **verb == Verb::Rcpt).count() == 1);
            prop_assert_eq!(group.text.matches("\r\n").count(), group.verbs.len());
            let data = group.verbs.iter().position(|verb| *verb == Verb::Data);
            prop_assert!(data.is_none_or(|data| at + 1 == groups.len() && data + 1 == group.verbs.len()));
        }
    }
}
