//! What follows from each kind of outcome.

use super::*;
use crate::store::QueueId;
use proptest::prelude::*;

const MAILBOX: &str = "john@example.com";
const HOUR: u64 = 3600;

fn start() -> Timestamp {
    Timestamp::from_second(1_000_000).unwrap()
}

fn due(recipients: &[&str]) -> Due {
    Due {
        id: QueueId(1),
        received_at: start(),
        tried_since: start(),
        mail_from: "odoo@example.com".to_owned(),
        recipients: recipients.iter().copied().map(Recipient::waiting).collect(),
        smtputf8: false,
        eight_bit: false,
        new_from: None,
        message_id: None,
        size: 100,
        attempts: 0,
        unknown_since: None,
    }
}

fn reply(line: &str) -> Reply {
    let (code, text) = line.split_once(' ').unwrap();
    Reply::new(code.parse().unwrap(), text)
}

fn taken() -> End {
    End::Taken(reply("250 2.0.0 OK"))
}

fn refused(line: &str) -> Rcpt {
    Rcpt::Refused(reply(line))
}

fn lost() -> Failure {
    Failure::new(Class::Transient, "connection lost", "it was closed")
}

/// Decides `minutes` after the message was accepted, with two hours to try.
fn decide_after(minutes: u64, due: &Due, recipients: Vec<Rcpt>, end: End) -> Decision {
    let when = Circumstances {
        now: clock::after(start(), Duration::from_secs(60 * minutes)),
        retry_for: Duration::from_secs(2 * HOUR),
        random: 0.5,
    };
    let mailbox = Address::normalise(MAILBOX).unwrap();
    decide(due, &Transaction { recipients, end }, &mailbox, when)
}

fn states(decision: &Decision) -> String {
    let letter = |recipient: &Recipient| match recipient.state {
        RecipientState::Waiting => 'w',
        RecipientState::Unknown => 'u',
        RecipientState::Sent => 's',
        RecipientState::Failed => 'f',
    };
    decision.settlement.recipients.iter().map(letter).collect()
}

/// Seconds from the decision to the next attempt.
fn again(decision: &Decision) -> u64 {
    match decision.settlement.next {
        Next::Again { at, .. } => clock::until(decision.settlement.at, at).as_secs(),
        other => panic!("no next attempt: {other:?}"),
    }
}

#[test]
fn all_sent_is_done() {
    let decision = decide_after(0, &due(&["a@x", "b@x"]), vec![Rcpt::Accepted, Rcpt::Accepted], taken());
    assert_eq!((states(&decision).as_str(), decision.settlement.next), ("ss", Next::Done));
    assert_eq!(decision.settlement.class, None);
    assert_eq!(decision.sent.unwrap().0, ["a@x", "b@x"]);
    assert!(decision.failed.is_empty() && decision.deferred.is_none() && decision.mailbox.is_none());
}

#[test]
fn a_refused_recipient_among_three_fails_alone() {
    let answers = vec![Rcpt::Accepted, refused("550 5.1.1 User unknown"), Rcpt::Accepted];
    let decision = decide_after(0, &due(&["a@x", "b@x", "c@x"]), answers, taken());
    assert_eq!((states(&decision).as_str(), decision.settlement.next), ("sfs", Next::Failed));
    assert_eq!(decision.failed.len(), 1);
    assert_eq!(decision.settlement.recipients[1].reply.as_deref(), Some("550 5.1.1 User unknown"));
    assert_eq!(decision.settlement.recipients[0].reply.as_deref(), Some("250 2.0.0 OK"));
    assert_eq!(decision.settlement.code, "550 5.1.1");
}

#[test]
fn a_deferred_recipient_is_tried_again_alone() {
    let mut message = due(&["a@x", "b@x"]);
    let answers = vec![Rcpt::Accepted, refused("450 4.2.1 busy")];
    let decision = decide_after(0, &message, answers, taken());
    assert_eq!((states(&decision).as_str(), again(&decision)), ("sw", 30));
    assert_eq!(decision.deferred.unwrap().code, "450 4.2.1");
    message.recipients = decision.settlement.recipients;
    message.attempts = 1;
    let decision = decide_after(1, &message, vec![Rcpt::Accepted], taken());
    assert_eq!((states(&decision).as_str(), decision.settlement.next), ("ss", Next::Done));
    assert_eq!(decision.sent.unwrap().0, ["b@x"], "only who was sent to now");
}

#[test]
fn a_refused_message_fails_for_all_who_wait() {
    let end = End::Refused(Step::Dot, reply("552 5.3.4 Message size exceeds fixed maximum message size"));
    let decision = decide_after(0, &due(&["a@x", "b@x"]), vec![Rcpt::Accepted, Rcpt::Accepted], end);
    assert_eq!((states(&decision).as_str(), decision.settlement.next), ("ff", Next::Failed));
    assert_eq!(decision.settlement.class, Some(Class::Message));
}

#[test]
fn a_transient_refusal_goes_by_the_schedule_until_the_end() {
    let end = || End::Refused(Step::Mail, reply("451 4.3.0 later"));
    let mut message = due(&["a@x"]);
    assert_eq!(again(&decide_after(0, &message, vec![], end())), 30);
    message.attempts = 4;
    assert_eq!(again(&decide_after(10, &message, vec![], end())), 600);
    assert_eq!(again(&decide_after(115, &message, vec![], end())), 300, "the last one on the end");
    let decision = decide_after(120, &message, vec![], end());
    assert_eq!((states(&decision).as_str(), decision.settlement.next), ("f", Next::Failed));
    assert_eq!(decision.failed[0].1.code, "451 4.3.0");
    assert!(decision.deferred.is_none(), "failed, not deferred");
    let busy = End::Refused(Step::Mail, reply("451 4.7.500 Server busy"));
    assert_eq!(again(&decide_after(0, &due(&["a@x"]), vec![], busy)), 900, "as long as was asked");
}

#[test]
fn the_mailboxs_trouble_never_fails_a_message() {
    for line in
        ["432 4.3.2 Concurrent connections limit exceeded", "550 5.1.8 Access denied, bad outbound sender"]
    {
        let end = End::Refused(Step::Dot, reply(line));
        let decision = decide_after(500, &due(&["a@x"]), vec![Rcpt::Accepted], end);
        assert_eq!((states(&decision).as_str(), again(&decision)), ("w", 0), "{line}");
        assert!(decision.mailbox.is_some() && decision.deferred.is_none());
    }
    let answers = vec![refused("550 5.1.1 no"), refused("550 5.7.233 tenant's limit")];
    let decision = decide_after(0, &due(&["a@x", "b@x", "c@x"]), answers, End::NoRecipient);
    assert_eq!((states(&decision).as_str(), again(&decision)), ("fww", 0), "what failed stays failed");
    assert_eq!(decision.mailbox.unwrap().failure.class, Class::Rate);
}

#[test]
fn too_many_recipients_are_split() {
    let many = || refused("452 4.5.3 Too many recipients");
    let decision = decide_after(0, &due(&["a@x", "b@x", "c@x"]), vec![Rcpt::Accepted, many()], taken());
    assert_eq!((states(&decision).as_str(), again(&decision)), ("sww", 0));
    let decision = decide_after(0, &due(&["a@x"]), vec![many()], End::NoRecipient);
    assert_eq!((states(&decision).as_str(), again(&decision)), ("w", 30), "no progress, no hurry");
    assert_eq!(decision.settlement.code, "452 4.5.3");
    assert_eq!(decision.deferred.unwrap().reply, "Too many recipients", "it is said why");
    let decision = decide_after(120, &due(&["a@x"]), vec![many()], End::NoRecipient);
    assert_eq!(decision.settlement.next, Next::Failed);
}

#[test]
fn send_as_denied_counts_the_second_time() {
    let end = || End::Refused(Step::Dot, reply("550 5.7.60 SMTP; Client does not have permissions"));
    let mut message = due(&["a@x"]);
    message.attempts = 3;
    let decision = decide_after(0, &message, vec![Rcpt::Accepted], end());
    assert_eq!((states(&decision).as_str(), again(&decision)), ("w", 300));
    message.recipients = decision.settlement.recipients;
    let decision = decide_after(5, &message, vec![Rcpt::Accepted], end());
    assert_eq!((states(&decision).as_str(), decision.settlement.next), ("f", Next::Failed));
}

#[test]
fn an_unknown_outcome_is_looked_for_at_once_whatever_its_age() {
    let unknown = || End::Unknown(lost());
    let answers = || vec![Rcpt::Accepted, refused("550 5.1.1 no"), refused("451 4.2.1 busy")];
    for minutes in [0, 30, 121] {
        let decision = decide_after(minutes, &due(&["a@x", "b@x", "c@x"]), answers(), unknown());
        assert_eq!((states(&decision).as_str(), again(&decision)), ("ufw", 0), "only who was handed over");
        assert!(matches!(decision.settlement.next, Next::Again { unknown: true, .. }));
        assert_eq!(decision.deferred.unwrap().code, "connection lost");
    }
    let many = vec![Rcpt::Accepted, refused("452 4.5.3 Too many recipients")];
    let decision = decide_after(0, &due(&["a@x", "b@x", "c@x"]), many, unknown());
    assert_eq!(states(&decision), "uww", "nor who was never named");
    let decision = decide_after(0, &due(&["a@x"]), vec![Rcpt::Accepted], End::Lost(lost()));
    assert!(matches!(decision.settlement.next, Next::Again { unknown: false, .. }));
    assert_eq!((states(&decision).as_str(), again(&decision)), ("w", 30));
}

#[test]
fn a_failure_after_an_unknown_outcome_says_so() {
    let mut message = due(&["a@x", "b@x"]);
    message.recipients[0].state = RecipientState::Unknown;
    let answers = vec![refused("550 5.1.1 no"), refused("550 5.1.1 no")];
    let decision = decide_after(0, &message, answers, End::NoRecipient);
    assert_eq!((states(&decision).as_str(), decision.settlement.next), ("ff", Next::Failed));
    let said = |index: usize| decision.failed[index].1.reply.starts_with("it may have been delivered");
    assert!(said(0) && !said(1), "{:?}", decision.failed);
    let decision = decide_after(0, &message, vec![], End::Lost(lost()));
    assert_eq!(states(&decision), "uw", "it stays unknown");
    let given_up = give_up(&message, &lost(), start());
    assert!(given_up.failed[0].1.reply.starts_with("it may have been delivered"), "{:?}", given_up.failed);
    assert_eq!(given_up.failed[1].1, lost());
}

#[test]
fn who_is_handed_over_is_written_down_where_it_is_not_plain() {
    let written = |states: &str, answers: &[Option<&str>]| {
        let mut message = due(&vec!["a@x"; states.len()]);
        for (recipient, state) in message.recipients.iter_mut().zip(states.chars()) {
            recipient.state = match state {
                's' => RecipientState::Sent,
                'u' => RecipientState::Unknown,
                _ => RecipientState::Waiting,
            };
        }
        let answers: Vec<_> = answers.iter().map(|answer| answer.map_or(Rcpt::Accepted, refused)).collect();
        handing_over(&message, &answers).map(|recipients| {
            let letter = |recipient: &Recipient| match recipient.state {
                RecipientState::Sent => 's',
                RecipientState::Unknown => 'u',
                RecipientState::Waiting => 'w',
                RecipientState::Failed => 'f',
            };
            let reply = recipients.iter().find_map(|recipient| recipient.reply.clone());
            (recipients.iter().map(letter).collect::<String>(), reply)
        })
    };
    let (no, many) = (Some("550 5.1.1 no"), Some("452 4.5.3 many"));
    let table = [
        ("ww", vec![None, None], None),
        ("sww", vec![None, None], None),
        ("uu", vec![None, None], None),
        ("ww", vec![None, no], Some("uw")),
        ("www", vec![None, many], Some("uww")),
        ("uw", vec![None, None], Some("uu")),
        ("uw", vec![no, None], Some("wu")),
        ("uw", vec![None, no], None),
    ];
    for (states, answers, expected) in table {
        let found = written(states, &answers);
        assert_eq!(found.as_ref().map(|(states, _)| states.as_str()), expected, "{states} {answers:?}");
        if let Some((_, reply)) = found {
            assert_eq!(reply.as_deref(), answers.iter().flatten().next().copied());
        }
    }
}

#[test]
fn giving_up_keeps_who_was_sent_to() {
    let mut message = due(&["a@x", "b@x"]);
    message.recipients[0].state = RecipientState::Sent;
    let failure = Failure::new(Class::Consent, "AADSTS700082", "expired");
    let decision = give_up(&message, &failure, start());
    assert_eq!((states(&decision).as_str(), decision.settlement.next), ("sf", Next::Failed));
    assert_eq!(decision.settlement.class, Some(Class::Consent));
    assert_eq!(decision.failed, [("b@x".to_owned(), failure.clone())]);
    let back = put_back(&message, &failure, start());
    assert_eq!(
        (back.next, back.recipients),
        (Next::Again { at: start(), unknown: false }, message.recipients)
    );
}

fn any_rcpt() -> impl Strategy<Value = Option<&'static str>> {
    const LINES: &[&str] = &[
        "550 5.1.1 no",
        "450 4.2.1 busy",
        "452 4.5.3 many",
        "432 4.3.2 limit",
        "550 5.7.60 send as",
        "550 5.1.8 bad",
    ];
    prop_oneof![Just(None), proptest::sample::select(LINES).prop_map(Some)]
}

proptest! {
    /// Nobody is lost, nobody is sent to twice, and the message's next step agrees with its recipients.
    #[test]
    fn every_recipient_ends_in_one_place(
        before in proptest::collection::vec(0..4u8, 1..6),
        answers in proptest::collection::vec(any_rcpt(), 0..6),
        end in 0..6u8,
        minutes in 0..200u64,
        attempts in 0..100u32,
    ) {
        let mut message = due(&vec!["a@x"; before.len()]);
        message.attempts = attempts;
        for (recipient, state) in message.recipients.iter_mut().zip(&before) {
            recipient.state = match state {
                0 => RecipientState::Sent,
                1 => RecipientState::Failed,
                2 => RecipientState::Unknown,
                _ => RecipientState::Waiting,
            };
        }
        let waiting = message.recipients.iter().filter(|r| waits(r)).count();
        let answers: Vec<_> = answers.into_iter().take(waiting).map(|a| a.map_or(Rcpt::Accepted, refused)).collect();
        let end = match end {
            0 => taken(),
            1 => End::Refused(Step::Dot, reply("451 4.3.0 later")),
            2 => End::NoRecipient,
            3 => End::Lost(lost()),
            4 => End::Unknown(lost()),
            _ => End::Unsendable(Failure::new(Class::Message, "unsendable", "")),
        };
        let was_taken = matches!(end, End::Taken(_));
        let decision = decide_after(minutes, &message, answers, end);
        let after = &decision.settlement.recipients;
        prop_assert_eq!(after.len(), before.len());
        for (recipient, state) in after.iter().zip(&before) {
            match state {
                0 => prop_assert_eq!(recipient.state, RecipientState::Sent),
                1 => prop_assert_eq!(recipient.state, RecipientState::Failed),
                _ => prop_assert!(was_taken || recipient.state != RecipientState::Sent),
            }
        }
        let newly_failed = after.iter().zip(&before).filter(|(r, b)| **b >= 2 && r.state == RecipientState::Failed).count();
        prop_assert_eq!(newly_failed, decision.failed.len());
        match decision.settlement.next {
            Next::Done => prop_assert!(after.iter().all(|r| r.state == RecipientState::Sent)),
            Next::Failed => prop_assert!(!after.iter().any(waits) && after.iter().any(|r| r.state == RecipientState::Failed)),
            Next::Again { at, .. } => prop_assert!(after.iter().any(waits) && at >= decision.settlement.at),
            Next::Held => prop_assert!(false, "nothing is held before anybody looked"),
        }
        prop_assert!(decision.deferred.is_none() || decision.mailbox.is_none());
    }
}

#[test]
fn what_is_refused_of_a_portions_content_fails_nobody_outside_of_it() {
    let many = due(&["a@x", "b@x", "c@x"]);
    let answers = || vec![Rcpt::Accepted, refused("452 4.5.3 too many recipients")];
    let end = End::Refused(Step::Dot, reply("550 5.7.1 not to him"));
    let decision = decide_after(1, &many, answers(), end);
    let states: Vec<_> = decision.settlement.recipients.iter().map(|recipient| recipient.state).collect();
    assert_eq!(states, [RecipientState::Failed, RecipientState::Waiting, RecipientState::Waiting]);
    assert!(matches!(decision.settlement.next, Next::Again { unknown: false, .. }));

    let sent = decide_after(1, &many, answers(), taken()).settlement.recipients;
    let by = SentBy { mailbox: Address::normalise(MAILBOX).unwrap(), attempt: 1 };
    assert_eq!((sent[0].sent_by.as_ref(), sent[1].sent_by.as_ref()), (Some(&by), None));
}
