//! What follows from looking for a message, and which message is the one.

use super::*;
use crate::store::QueueId;
use proptest::prelude::*;

const MINUTE: u64 = 60;
const HOUR: u64 = 3600;

fn at(second: u64) -> Timestamp {
    clock::after(Timestamp::from_second(1_000_000).unwrap(), Duration::from_secs(second))
}

fn john() -> Address {
    Address::normalise("john@example.com").unwrap()
}

fn recipient(address: &str, state: RecipientState, reply: Option<&str>) -> Recipient {
    Recipient { state, reply: reply.map(str::to_owned), ..Recipient::waiting(address) }
}

/// Accepted at 0, unknown since 100.
fn due(recipients: Vec<Recipient>) -> Due {
    Due {
        id: QueueId(33),
        received_at: at(0),
        tried_since: at(0),
        mail_from: "odoo@example.com".to_owned(),
        recipients,
        smtputf8: false,
        eight_bit: false,
        new_from: None,
        message_id: Some("<1@odoo>".to_owned()),
        size: 100,
        attempts: 1,
        unknown_since: Some(at(100)),
    }
}

fn one() -> Due {
    due(vec![recipient("a@x.test", RecipientState::Unknown, None)])
}

fn failure() -> Failure {
    Failure::new(Class::Transient, "cut", "the server closed the connection")
}

fn config(on_unknown: OnUnknown) -> Config {
    Config { on_unknown, ..Config::default() }
}

/// Decides at an age of the uncertainty.
fn after(seconds: u64, looked: Looked, config: &Config) -> Verdict {
    let when = Circumstances { now: at(100 + seconds), retry_for: config.retry_for, random: 0.5 };
    verdict(&one(), looked, config, when)
}

#[test]
fn what_is_found_was_sent_and_what_is_not_is_looked_for_a_few_times() {
    let config = config(OnUnknown::Resend);
    for seconds in [0, 5, 500_000] {
        let found = Looked::Found("Sent Items".to_owned());
        assert_eq!(after(seconds, found, &config), Verdict::Sent("Sent Items".to_owned()));
    }
    for (seconds, next) in [(0, 10), (4, 10), (10, 30), (29, 30), (30, 120), (119, 120)] {
        let verdict = after(seconds, Looked::Missing, &config);
        assert_eq!(verdict, Verdict::LookAgain(at(100 + next)), "after {seconds} s");
    }
    assert_eq!(after(120, Looked::Missing, &config), Verdict::SendAgain(at(220), None));
    let at_once = Config { sent_delay: Duration::ZERO, ..config.clone() };
    assert_eq!(after(30, Looked::Missing, &at_once), Verdict::SendAgain(at(130), None));
    let short = Config { sent_delay: Duration::from_secs(2), ..config };
    assert_eq!(after(0, Looked::Missing, &short), Verdict::LookAgain(at(102)));
}

#[test]
fn a_message_that_is_cut_short_each_time_goes_by_the_schedule() {
    let config = config(OnUnknown::Resend);
    let often = Due { attempts: 6, ..one() };
    let when = Circumstances { now: at(100 + 120), retry_for: config.retry_for, random: 0.5 };
    let verdict = verdict(&often, Looked::Missing, &config, when);
    assert_eq!(verdict, Verdict::SendAgain(at(100 + 600), None));
}

#[test]
fn a_folder_out_of_reach_is_tried_for_an_hour_and_then_the_policy_decides() {
    let (resend, hold) = (config(OnUnknown::Resend), config(OnUnknown::Hold));
    let failed = || Looked::Failed(failure());
    for (seconds, wait) in [(0, 5), (60, 60), (200, 200), (600, 300), (3599, 300)] {
        for config in [&resend, &hold] {
            let verdict = after(seconds, failed(), config);
            assert_eq!(verdict, Verdict::LookAgain(at(100 + seconds + wait)), "after {seconds} s");
        }
    }
    assert_eq!(after(HOUR, failed(), &resend), Verdict::SendAgain(at(100 + HOUR), Some(failure())));
    assert_eq!(after(HOUR, failed(), &hold), Verdict::Hold(failure()));
    let throttled = Looked::Failed(failure().wait(Duration::from_secs(299)));
    assert_eq!(after(0, throttled, &resend), Verdict::LookAgain(at(399)), "as long as was asked");
}

#[test]
fn where_nobody_can_look_the_policy_decides_when_it_would_have_been_filed() {
    let (resend, hold) = (config(OnUnknown::Resend), config(OnUnknown::Hold));
    let impossible = || Looked::Impossible(failure());
    assert_eq!(after(0, impossible(), &resend), Verdict::LookAgain(at(220)));
    assert_eq!(after(119, impossible(), &hold), Verdict::LookAgain(at(220)));
    assert_eq!(after(120, impossible(), &resend), Verdict::SendAgain(at(220), Some(failure())));
    assert_eq!(after(120, impossible(), &hold), Verdict::Hold(failure()));
    // Without a token, nothing could be sent either.
    for config in [&resend, &hold] {
        let verdict = after(2 * HOUR, Looked::NoToken(failure()), config);
        assert_eq!(verdict, Verdict::LookAgain(at(100 + 2 * HOUR + 300)));
    }
}

#[test]
fn time_runs_out_with_the_truth_said() {
    let (resend, hold) = (config(OnUnknown::Resend), config(OnUnknown::Hold));
    let late = 48 * HOUR;
    assert_eq!(after(late, Looked::Missing, &resend), Verdict::GiveUp(out_of_time(), true));
    assert_eq!(after(late, Looked::Failed(failure()), &resend), Verdict::GiveUp(failure(), false));
    assert_eq!(after(late, Looked::NoToken(failure()), &hold), Verdict::GiveUp(failure(), false));
    assert_eq!(
        after(late, Looked::Impossible(failure()), &hold),
        Verdict::Hold(failure()),
        "a person decides"
    );
    let given_up = |not_sent| {
        let decision = decision(&one(), &Verdict::GiveUp(failure(), not_sent), &john(), at(late));
        assert_eq!(decision.settlement.recipients[0].state, RecipientState::Failed);
        assert_eq!(decision.settlement.next, Next::Failed);
        decision.failed[0].1.reply.clone()
    };
    assert!(given_up(false).starts_with("it may have been delivered"), "{}", given_up(false));
    assert_eq!(given_up(true), failure().reply);
}

#[test]
fn only_whose_fate_was_unknown_is_settled() {
    use RecipientState::{Failed, Sent, Unknown, Waiting};
    let states = |decision: &Decision| -> Vec<RecipientState> {
        decision.settlement.recipients.iter().map(|recipient| recipient.state).collect()
    };
    let mixed = || {
        let states = [("a@x", Unknown), ("b@x", Waiting), ("c@x", Sent), ("d@x", Failed), ("e@x", Unknown)];
        due(states
            .into_iter()
            .map(|(address, state)| recipient(address, state, Some("451 before")))
            .collect())
    };
    let now = at(MINUTE);
    let at_once = Next::Again { at: now, unknown: false };
    let found = decision(&mixed(), &Verdict::Sent("Sent".to_owned()), &john(), now);
    assert_eq!((states(&found), found.settlement.next), (vec![Sent, Waiting, Sent, Failed, Sent], at_once));
    assert_eq!(found.settlement.recipients[0].reply.as_deref(), Some("found in Sent, by attempt 1"));
    assert_eq!(found.settlement.recipients[1].reply.as_deref(), Some("451 before"));
    let again = decision(&mixed(), &Verdict::SendAgain(now, None), &john(), now);
    assert_eq!(
        (states(&again), again.settlement.next),
        (vec![Waiting, Waiting, Sent, Failed, Waiting], at_once)
    );
    let unsure = decision(&mixed(), &Verdict::SendAgain(now, Some(failure())), &john(), now);
    assert_eq!(
        (states(&unsure), unsure.settlement.next),
        (vec![Unknown, Waiting, Sent, Failed, Unknown], at_once)
    );
    let held = decision(&mixed(), &Verdict::Hold(failure()), &john(), now);
    assert_eq!((states(&held)[0], held.settlement.next), (Unknown, Next::Held));
    let all = due(vec![recipient("a@x", Unknown, None), recipient("b@x", Sent, None)]);
    let done = decision(&all, &Verdict::Sent("Sent".to_owned()), &john(), now);
    assert_eq!(done.settlement.next, Next::Done);
}

const OURS: &str =
    "Received: from odoo by relay.example.com (outlook-relay) with ESMTP\r\n id 11; Sat, 21 Nov 2026\r\n";

fn header(received: &str, to: &str) -> Vec<u8> {
    format!("Received: from x by outlook.com id 99; now\r\n{received}Message-Id: <1@odoo>\r\nSubject: To: b@x.test\r\n{to}\r\n\r\n")
        .into_bytes()
}

#[test]
fn the_queue_id_tells_transactions_with_one_message_id_apart_and_else_their_recipients() {
    let two = due(vec![
        recipient("a@x.test", RecipientState::Unknown, None),
        recipient("b@x.test", RecipientState::Unknown, None),
        recipient("c@x.test", RecipientState::Waiting, None),
    ]);
    let sought = Sought::new(&two, &john());
    assert_eq!(two.id.to_string(), "11");
    let theirs = OURS.replace("id 11", "id 12");
    let table = [
        (OURS, "To: z@x.test", true),
        (theirs.as_str(), "To: a@x.test, b@x.test", false),
        ("", "To: a@x.test, b@x.test", true),
        ("", "To: \"B, A\" <A@X.test>,\r\n\t<z@x.test>\r\nX: 1\r\nCC: b@x.test", true),
        ("", "To: a@x.test\r\nBcc: b@x.test", true),
        ("", "To: a@x.test", false),
        ("", "X-To: a@x.test, b@x.test", false),
        ("", "To: aa@x.test, b@x.test.example", false),
    ];
    for (received, to, expected) in table {
        assert_eq!(sought.is_copy(&header(received, to)), expected, "{received}{to}");
    }
    assert!(!sought.is_copy(b""));
    let named = |id: &str| sought.is_copy(format!("{id}\r\nTo: a@x.test, b@x.test\r\n\r\n").as_bytes());
    assert!(named("Message-ID: <other@outlook.com>\r\nX-Microsoft-Original-Message-ID: <1@odoo>"));
    assert!(!named("Message-ID: <11@odoo>"));
}

#[test]
fn the_copy_of_a_portion_that_was_sent_before_is_not_taken_for_this_one() {
    let sent = |address, mailbox: &str, attempt| Recipient {
        sent_by: Some(SentBy { mailbox: Address::normalise(mailbox).unwrap(), attempt }),
        ..recipient(address, RecipientState::Sent, Some("250 2.0.0 OK <1@odoo>"))
    };
    let (john_s, jane_s) = ("john@example.com", "jane@example.com");
    let unknown = || recipient("z@x.test", RecipientState::Unknown, None);
    let known = |recipients| {
        let sought = Sought::new(&due(recipients), &john());
        (0..9).find(|&copies| sought.is_among(copies)).unwrap()
    };
    assert_eq!(known(vec![unknown()]), 1);
    assert_eq!(known(vec![sent("a@x", john_s, 1), sent("b@x", john_s, 1), unknown()]), 2);
    assert_eq!(known(vec![sent("a@x", john_s, 1), sent("b@x", john_s, 2), unknown()]), 3, "with one reply");
    assert_eq!(known(vec![sent("a@x", jane_s, 1), sent("b@x", john_s, 2), unknown()]), 2, "elsewhere");
    let found = decision(&due(vec![unknown()]), &Verdict::Sent("Sent".to_owned()), &john(), at(200));
    let by = SentBy { mailbox: john(), attempt: 1 };
    assert_eq!(found.settlement.recipients[0].sent_by, Some(by));
}

#[test]
fn a_message_without_an_id_is_looked_for_by_the_one_that_it_got() {
    let without = Due { message_id: None, ..one() };
    assert_eq!(Sought::new(&without, &john()).message_id, "<11@example.com>");
}

proptest! {
    /// Whatever is seen, a message is never left without a next step, and one that is missing is looked for until the
    /// service has had its time.
    #[test]
    fn every_verdict_moves_on(
        age in 0..10_000_000u64, sent_delay in 0..90_000u64, attempts: u32, looked in 0..5u8, hold: bool, random in 0.0..=1.0f64
    ) {
        let on_unknown = if hold { OnUnknown::Hold } else { OnUnknown::Resend };
        let config = Config { sent_delay: Duration::from_secs(sent_delay), ..config(on_unknown) };
        let due = Due { attempts, ..one() };
        let missing = looked == 0;
        let looked = match looked {
            0 => Looked::Missing,
            1 => Looked::Failed(failure()),
            2 => Looked::NoToken(failure()),
            3 => Looked::Impossible(failure()),
            _ => Looked::Found("Sent".to_owned()),
        };
        let now = at(100 + age);
        let verdict = verdict(&due, looked, &config, Circumstances { now, retry_for: config.retry_for, random });
        match verdict {
            Verdict::LookAgain(next) => {
                prop_assert!(next > now);
                prop_assert!(!missing || age < sent_delay);
            }
            Verdict::SendAgain(next, _) => prop_assert!(next >= now && age >= sent_delay),
            Verdict::Hold(_) => prop_assert!(hold && age >= sent_delay && !missing),
            Verdict::GiveUp(_, not_sent) => prop_assert!(age >= sent_delay && not_sent == missing),
            Verdict::Sent(_) => {}
        }
    }

    #[test]
    fn no_header_confuses_it(header: Vec<u8>) {
            Sought::new(&one(), &john()).is_copy(&header);
    }
}
