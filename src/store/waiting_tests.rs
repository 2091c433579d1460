//! What waits, on a real SQLite file: unknown outcomes, old mail, a clock that was set back.

use super::tests::{at, john, message, open};
use super::*;
use crate::failure::Class;
use crate::routing::Rule;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

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
async fn a_message_of_which_an_attempt_was_lost_can_be_cancelled_unless_another_ended() {
    let opened = open().await;
    let store = &opened.store;
    let new = message(store, &["a@x.test"]);
    let id = new.id;
    store.accept(new).await.unwrap();
    opened.sql("UPDATE message SET attempts = 1", ());
    let before = store.queued_one(id).await.unwrap().unwrap();
    store.book(id, 1, at(1)).await.unwrap();
    assert!(!store.cancel(&before, None, at(2)).await.unwrap(), "it is being sent");
    store.recover(at(3)).await.unwrap();
    assert!(!store.cancel(&before, None, at(4)).await.unwrap(), "another attempt ended");
    let now = store.queued_one(id).await.unwrap().unwrap();
    assert!(store.cancel(&now, None, at(5)).await.unwrap());
}

#[tokio::test]
async fn a_row_that_is_no_text_keeps_no_other_from_being_taken_up() {
    let opened = open().await;
    let store = &opened.store;
    let (damaged, sound) = (message(store, &["a@x.test"]), message(store, &["b@x.test"]));
    let (first, second) = (damaged.id, sound.id);
    for (new, id) in [(damaged, first), (sound, second)] {
        store.accept(new).await.unwrap();
        store.book(id, 1, at(1)).await.unwrap();
    }
    opened.damage(first);
    opened.sql("INSERT INTO backup VALUES (1, 0, NULL)", ());
    store.recover(at(5)).await.unwrap();
    store.take_up_backup(at(6)).await.unwrap().unwrap();
    let due = store.unknown(&john(), at(6), 10).await.unwrap();
    assert_eq!(due.iter().map(|due| due.id).collect::<Vec<_>>(), [second]);
    assert_eq!(store.queued_one(first).await.unwrap().unwrap().state, QueuedState::Failed, "set aside");
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
    let due = store.unknown(&john(), at(2), 10).await.unwrap().remove(0);
    assert!(store.resolve(&due, settlement(again(10, true), RecipientState::Unknown, 5)).await.unwrap());
    assert!(store.unknown(&john(), at(9), 10).await.unwrap().is_empty());
    assert_eq!(store.unknown(&john(), at(10), 10).await.unwrap()[0].unknown_since, Some(at(2)));
    assert!(store.accepted_by(&john(), at(10), 10).await.unwrap().is_empty(), "not given up unseen");
    assert!(store.reroutable(&john(), None, 10).await.unwrap().is_empty(), "nor rerouted");
    assert_eq!(store.totals().await.unwrap()[0].1.recipients, 1);

    assert!(store.resolve(&due, settlement(Next::Held, RecipientState::Unknown, 11)).await.unwrap());
    assert!(store.unknown(&john(), at(99), 10).await.unwrap().is_empty());
    let totals = store.totals().await.unwrap()[0].1;
    assert_eq!((totals.waiting, totals.held, totals.recipients), (1, 1, 0));
    assert!(!store.resolve(&due, settlement(Next::Done, RecipientState::Sent, 12)).await.unwrap());
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
async fn no_sender_waits_for_a_time_that_a_clock_showed_before_it_was_set_back() {
    let opened = open().await;
    let (store, john, day) = (&opened.store, john(), 86_400);
    let mark = Mark { uidvalidity: 7, uid: 1 };
    store.found(&john, "INBOX", mark, vec![1], at(day)).await.unwrap();
    let note =
        Note { message_id: Some("<1@x>".to_owned()), sender: Some("a@x.test".to_owned()), ..Note::default() };
    let update = Update { uid: 1, state: PushState::Pushing, note, next_try_at: at(day), at: at(day) };
    store.note_pushes(&john, "INBOX", 7, vec![update]).await.unwrap();
    store.forget_future(at(5)).await.unwrap();
    assert_eq!(store.pushed_of("a@x.test", at(0)).await.unwrap(), [at(5)]);
    assert_eq!(store.inboxes().await.unwrap()[0].looked_at, at(5));
}

#[tokio::test]
async fn what_is_wanted_back_while_it_is_moved_to_quarantine_comes_back() {
    let opened = open().await;
    let (store, john) = (&opened.store, john());
    store.found(&john, "INBOX", Mark { uidvalidity: 7, uid: 2 }, vec![1, 2], at(0)).await.unwrap();
    for uid in [1, 2] {
        let note = Note {
            message_id: Some(format!("<{uid}@x>")),
            answer: Some("no".to_owned()),
            refused: true,
            ..Note::default()
        };
        let update = Update { uid, state: PushState::Refused, note, next_try_at: at(9), at: at(1) };
        store.note_pushes(&john, "INBOX", 7, vec![update]).await.unwrap();
    }
    let quarantined = store.quarantined(Some(&john)).await.unwrap();
    let wanted = quarantined.iter().find(|message| message.uid == 2).unwrap();
    assert!(store.retry_received(wanted, at(2)).await.unwrap());
    store.settle_received(&john, "INBOX", 7, vec![1, 2], PushState::Moved, at(3), at(3)).await.unwrap();
    let returning = store.returning(&john, "INBOX").await.unwrap();
    assert_eq!(returning.iter().map(|message| message.uid).collect::<Vec<_>>(), [2]);
}

fn jane() -> Address {
    Address::normalise("jane@example.com").unwrap()
}

#[tokio::test]
async fn what_another_mailbox_may_have_sent_is_not_looked_for_among_what_this_one_did() {
    for hold in [false, true] {
        let opened = open().await;
        let store = &opened.store;
        let new = message(store, &["a@x.test"]);
        let id = new.id;
        store.accept(new).await.unwrap();
        store.book(id, 1, at(1)).await.unwrap();
        store.recover(at(2)).await.unwrap();
        let strays = store.strays(&[jane()]).await.unwrap();
        assert!(strays[0].unknown && strays[0].mailbox == "john@example.com", "{strays:?}");
        store.reroute(id, jane(), Rule::First, None, hold).await.unwrap();
        assert!(store.unknown(&jane(), at(99), 10).await.unwrap().is_empty());
        let queued = store.queued_one(id).await.unwrap().unwrap();
        assert_eq!(queued.state, if hold { QueuedState::Held } else { QueuedState::Waiting });
        assert_eq!(queued.recipients[0].state, RecipientState::Unknown, "it may have been sent");
        assert_eq!(store.due(&jane(), at(99), 10).await.unwrap().len(), usize::from(!hold));
    }
}

#[tokio::test]
async fn what_was_given_up_has_a_mailbox_that_can_try_it_again() {
    let opened = open().await;
    let id = super::report_tests::failed(&opened.store, &["a@x.test"]).await;
    assert_eq!(opened.store.strays(&[jane()]).await.unwrap()[0].id, id);
    opened.store.reroute(id, jane(), Rule::First, None, false).await.unwrap();
    assert!(opened.store.retry(id, at(20)).await.unwrap());
    assert_eq!(opened.store.due(&jane(), at(20), 10).await.unwrap()[0].id, id);
}

#[tokio::test]
async fn who_gives_a_message_up_does_not_overrule_a_person_who_was_faster() {
    let opened = open().await;
    let store = &opened.store;
    let new = message(store, &["a@x.test"]);
    let id = new.id;
    store.accept(new).await.unwrap();
    let report = |about: &'static str| NewReport {
        message_id: None,
        reports: vec![("a@x.test".to_owned(), about.into())],
        due_at: at(0),
    };
    let given_up = || Settlement {
        id,
        at: at(9),
        recipients: vec![Recipient { state: RecipientState::Failed, ..Recipient::waiting("a@x.test") }],
        class: Some(Class::Administrator),
        code: String::new(),
        reply: String::new(),
        next: Next::Failed,
        paced: true,
        report: Some(report("given up")),
    };
    let due = async || store.accepted_by(&john(), at(9), 10).await.unwrap().remove(0);
    let before = due().await;
    assert!(store.retry(id, at(8)).await.unwrap());
    assert!(!store.resolve(&before, given_up()).await.unwrap(), "it is tried anew");
    let before = due().await;
    let queued = store.queued_one(id).await.unwrap().unwrap();
    assert!(store.cancel(&queued, Some(report("cancelled")), at(9)).await.unwrap());
    assert!(!store.resolve(&before, given_up()).await.unwrap(), "it is gone");
    assert_eq!(store.report_totals().await.unwrap().waiting, 1, "and Odoo hears of that once");
}

/// [`Store::totals`], counted anew.
async fn recount(store: &Store) -> Vec<(String, i64, i64, i64, i64, Option<i64>)> {
    let sql = "SELECT mailbox, sum(state <> 'failed'), sum(state = 'failed'), sum(state = 'held'), \
         sum(CASE WHEN state IN ('waiting', 'sending') THEN \
             CASE WHEN json_valid(recipients) THEN json_array_length(recipients) ELSE 1 END ELSE 0 END), \
         min(CASE WHEN state <> 'failed' THEN received_at END) FROM message GROUP BY mailbox ORDER BY mailbox";
    store.rows("the totals, counted anew", sql, ()).await.unwrap()
}

#[tokio::test]
async fn the_totals_are_right_whatever_becomes_of_the_messages() {
    let opened = open().await;
    let store = &opened.store;
    let mut random = StdRng::seed_from_u64(1);
    for second in 0..600 {
        let queued = store.queued(None, 100).await.unwrap();
        let Some(message) = (!queued.is_empty()).then(|| &queued[random.random_range(0..queued.len())])
        else {
            let new = NewMessage { received_at: at(second), ..message(store, &["a@x.test", "b@x.test"]) };
            store.accept(new).await.unwrap();
            continue;
        };
        let (id, now) = (message.id, at(second));
        let next = [
            Next::Done,
            Next::Again { at: now, unknown: false },
            Next::Again { at: now, unknown: true },
            Next::Held,
            Next::Failed,
        ][random.random_range(0..5)];
        let settlement = Settlement {
            id,
            at: now,
            recipients: message.recipients.clone(),
            class: None,
            code: String::new(),
            reply: String::new(),
            next,
            paced: true,
            report: None,
        };
        // What cannot be done changes nothing.
        match random.random_range(0..13) {
            0..4 => {
                let mailbox = if second % 3 == 0 { jane() } else { john() };
                let recipients = ["a@x.test", "b@x.test", "c@x.test"];
                let recipients = &recipients[..random.random_range(1..=3)];
                let new =
                    NewMessage { mailbox, received_at: now, ..super::tests::message(store, recipients) };
                store.accept(new).await.unwrap();
            }
            4..6 => drop(store.book(id, 1, now).await),
            6..8 => store.settle(settlement).await.unwrap(),
            8 => drop(store.retry(id, now).await.unwrap()),
            9 => drop(store.cancel(message, None, now).await.unwrap()),
            10 => store.reroute(id, jane(), Rule::First, None, second % 2 == 0).await.unwrap(),
            11 if second % 5 == 0 => {
                opened.sql("UPDATE message SET recipients = '{' WHERE id = ?1", [id.0]);
            }
            11 => store.set_aside(id).await.unwrap(),
            _ => store.recover(now).await.unwrap(),
        }
        let count = |n: u64| i64::try_from(n).unwrap();
        let totals = store.totals().await.unwrap().into_iter().map(|(mailbox, totals)| {
            let Totals { waiting, failed, held, recipients, oldest } = totals;
            let (waiting, failed, held) = (count(waiting), count(failed), count(held));
            (mailbox.to_string(), waiting, failed, held, count(recipients), oldest.map(millis))
        });
        assert_eq!(totals.collect::<Vec<_>>(), recount(store).await, "after {second} steps");
    }
}
