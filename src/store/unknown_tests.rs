//! What a restart, a lost answer and a clock leave behind, on a real SQLite file.

use super::tests::{at, john, message, open};
use super::*;
use crate::failure::Class;
use crate::routing::Rule;

#[tokio::test]
async fn an_interrupted_attempt_is_unknown_after_the_restart() {
    let opened = open().await;
    let new = message(&opened.store, &["a@x.test"]);
    let id = new.id;
    opened.store.accept(new).await.unwrap();
    opened.store.book(id, 1, at(1)).await.unwrap();
    let opened = opened.reopen().await;
    assert!(opened.store.due(&john(), at(5), 10).await.unwrap().is_empty());
    opened.store.recover(at(5)).await.unwrap();
    assert!(opened.store.due(&john(), at(5), 10).await.unwrap().is_empty(), "not to be sent");
    assert_eq!(opened.store.next_due(&john(), false).await.unwrap(), None);
    assert_eq!(opened.store.next_due(&john(), true).await.unwrap(), Some(at(5)));
    assert_eq!(opened.store.unknown(&john(), at(5), 10).await.unwrap()[0].id, id, "but to be looked for");
    let attempts = opened.store.attempts(id).await.unwrap();
    assert_eq!(attempts[0].outcome.as_deref(), Some("unknown"));
}

#[tokio::test]
async fn the_pace_survives_and_what_was_never_asked_for_is_given_back() {
    let opened = open().await;
    let mut settlement = None;
    for recipients in [&["a@x.test"][..], &["b@x.test", "c@x.test"]] {
        let new = message(&opened.store, recipients);
        let id = new.id;
        opened.store.accept(new).await.unwrap();
        opened.store.book(id, u32::try_from(recipients.len()).unwrap(), at(61)).await.unwrap();
        settlement = Some(Settlement {
            id,
            at: at(62),
            recipients: recipients.iter().copied().map(Recipient::waiting).collect(),
            class: Some(Class::Transient),
            code: String::new(),
            reply: String::new(),
            next: Next::Again { at: at(62), unknown: false },
            paced: false,
            report: None,
        });
    }
    let opened = opened.reopen().await;
    let pace = |messages, recipients| Pace { minute: at(60), messages, recipients };
    assert_eq!(opened.store.pace(&john(), at(0)).await.unwrap(), [pace(2, 3)]);
    assert_eq!(opened.store.pace(&john(), at(120)).await.unwrap(), []);
    opened.store.settle(settlement.unwrap()).await.unwrap();
    assert_eq!(opened.store.pace(&john(), at(0)).await.unwrap(), [pace(1, 1)]);
}

#[tokio::test]
async fn an_interrupted_attempt_may_have_reached_those_who_were_handed_over() {
    let opened = open().await;
    let new = message(&opened.store, &["a@x.test", "b@x.test"]);
    let id = new.id;
    opened.store.accept(new).await.unwrap();
    opened.store.book(id, 2, at(1)).await.unwrap();
    opened.store.recover(at(5)).await.unwrap();
    let due = opened.store.unknown(&john(), at(5), 10).await.unwrap();
    assert_eq!(due[0].unknown_since, Some(at(5)));
    assert!(due[0].recipients.iter().all(|recipient| recipient.state == RecipientState::Unknown));

    let new = message(&opened.store, &["a@x.test", "b@x.test"]);
    let second = new.id;
    opened.store.accept(new).await.unwrap();
    opened.store.book(second, 2, at(1)).await.unwrap();
    let mut handed_over = due[0].recipients.clone();
    handed_over[1].state = RecipientState::Waiting;
    opened.store.hand_over(second, handed_over.clone()).await.unwrap();
    opened.store.recover(at(6)).await.unwrap();
    let due = opened.store.unknown(&john(), at(6), 10).await.unwrap();
    assert_eq!((due[1].id, &due[1].recipients), (second, &handed_over));
}

#[tokio::test]
async fn an_unknown_outcome_keeps_its_age_until_it_is_resolved_or_a_person_steps_in() {
    let opened = open().await;
    let store = &opened.store;
    let new = message(store, &["a@x.test"]);
    let id = new.id;
    store.accept(new).await.unwrap();
    store.book(id, 1, at(1)).await.unwrap();
    let settlement = |next, state, second| Settlement {
        id,
        at: at(second),
        recipients: vec![Recipient { state, ..Recipient::waiting("a@x.test") }],
        class: None,
        code: String::new(),
        reply: String::new(),
        next,
        paced: true,
        report: None,
    };
    let again = |second, unknown| Next::Again { at: at(second), unknown };
    store.settle(settlement(again(2, true), RecipientState::Unknown, 2)).await.unwrap();
    store.resolve(settlement(again(10, true), RecipientState::Unknown, 5)).await.unwrap();
    assert!(store.unknown(&john(), at(9), 10).await.unwrap().is_empty());
    assert_eq!(store.unknown(&john(), at(10), 10).await.unwrap()[0].unknown_since, Some(at(2)));
    assert!(store.accepted_by(&john(), at(10), 10).await.unwrap().is_empty(), "not given up unseen");
    assert!(store.reroutable(&john(), None, 10).await.unwrap().is_empty(), "nor rerouted");
    assert_eq!(store.totals().await.unwrap()[0].1.recipients, 1);

    store.resolve(settlement(Next::Held, RecipientState::Unknown, 11)).await.unwrap();
    assert!(store.unknown(&john(), at(99), 10).await.unwrap().is_empty());
    let totals = store.totals().await.unwrap()[0].1;
    assert_eq!((totals.waiting, totals.held, totals.recipients), (1, 1, 0));
    store.resolve(settlement(Next::Done, RecipientState::Sent, 12)).await.unwrap();
    assert_eq!(store.queued(None, 10).await.unwrap()[0].state, QueuedState::Held, "a person decides now");
}

#[tokio::test]
async fn what_waits_for_long_is_found_by_its_arrival() {
    let opened = open().await;
    let store = &opened.store;
    let mut ids = Vec::new();
    for second in [0, 10, 20] {
        let new = NewMessage { id: store.next_id(at(second)), ..message(store, &["a@x.test"]) };
        ids.push(new.id);
        store.accept(new).await.unwrap();
    }
    let since = async |after, until, limit| {
        let found = store.waiting_since(&john(), at(after), at(until), limit).await.unwrap();
        found.into_iter().map(|(id, _)| id).collect::<Vec<_>>()
    };
    assert_eq!(since(-1, 10, 9).await, ids[..2]);
    assert_eq!(since(0, 99, 9).await, ids[1..]);
    assert_eq!(since(-1, 99, 1).await, ids[..1]);
    let found = store.reroutable(&john(), Some(ids[0]), 9).await.unwrap();
    assert_eq!(found.iter().map(|message| message.id).collect::<Vec<_>>(), ids[1..]);
    assert_eq!(found[0].from.as_deref(), Some("John <john@example.com>"));
    store.book(ids[1], 1, at(30)).await.unwrap();
    store
        .reroute(ids[1], Address::normalise("jane@example.com").unwrap(), Rule::First, None, false)
        .await
        .unwrap();
    assert_eq!(store.queued(None, 9).await.unwrap()[1].mailbox, john(), "not while it is being sent");
}

#[tokio::test]
async fn nothing_waits_for_a_time_that_a_clock_showed_before_it_was_set_back() {
    let opened = open().await;
    let day = 86_400;
    for moment in [at(0), at(day)] {
        let new = NewMessage { received_at: moment, ..message(&opened.store, &["a@x.test"]) };
        let id = new.id;
        opened.store.accept(new).await.unwrap();
        opened.store.book(id, 1, moment).await.unwrap();
    }
    opened.store.recover(at(day)).await.unwrap();
    assert_eq!(opened.store.unknown(&john(), at(5), 10).await.unwrap().len(), 0);
    opened.store.forget_future(at(5)).await.unwrap();
    let due = opened.store.unknown(&john(), at(5), 10).await.unwrap();
    assert_eq!(due.len(), 2);
    assert!(due.iter().all(|due| due.unknown_since == Some(at(5)) && due.tried_since <= at(5)), "{due:?}");
    assert_eq!(opened.store.pace(&john(), at(-day)).await.unwrap().len(), 1);
}

#[tokio::test]
async fn an_unknown_outcome_is_not_looked_for_in_another_mailbox() {
    let opened = open().await;
    let store = &opened.store;
    let jane = Address::normalise("jane@example.com").unwrap();
    for hold in [true, false] {
        let new = message(store, &["a@x.test"]);
        let id = new.id;
        store.accept(new).await.unwrap();
        store.book(id, 1, at(1)).await.unwrap();
        store.recover(at(5)).await.unwrap();
        store.reroute(id, jane.clone(), Rule::First, None, hold).await.unwrap();
        assert!(store.unknown(&jane, at(9), 10).await.unwrap().is_empty());
        let state = store.queued_one(id).await.unwrap().unwrap().state;
        assert_eq!(state == QueuedState::Held, hold);
        assert_eq!(store.due(&jane, at(9), 10).await.unwrap().len(), usize::from(!hold));
    }
}
