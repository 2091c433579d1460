//! The queue on a real SQLite file: what is accepted, booked, settled.

use super::tests::{at, john, message, open};
use super::*;
use crate::failure::Class;
use std::task::Poll;

#[tokio::test]
async fn an_accepted_message_survives_and_is_due() {
    let opened = open().await;
    let new = message(&opened.store, &["a@x.test", "b@x.test"]);
    let id = new.id;
    opened.store.accept(new).await.unwrap();
    let opened = opened.reopen().await;
    let due = opened.store.due(&john(), at(0), 10).await.unwrap();
    assert_eq!(due.len(), 1);
    assert_eq!((due[0].id, due[0].attempts, due[0].eight_bit, due[0].size), (id, 0, true, 20));
    assert_eq!(due[0].recipients[1].address, "b@x.test");
    assert_eq!(opened.store.content(id).await.unwrap().unwrap(), b"From: john\r\n\r\nbody\r\n");
    assert!(opened.store.next_id(at(-100)) > id, "ids grow over a restart and a clock that jumps back");
}

#[tokio::test]
async fn an_attempt_is_booked_once_and_settled() {
    let opened = open().await;
    let store = &opened.store;
    let new = message(store, &["a@x.test", "b@x.test"]);
    let id = new.id;
    store.accept(new).await.unwrap();
    store.book(id, 1, at(1)).await.unwrap();
    assert!(store.due(&john(), at(9), 10).await.unwrap().is_empty(), "being sent");
    assert!(store.book(id, 1, at(1)).await.is_err(), "a second worker must not send it as well");

    let recipient = |address: &str, state| Recipient { state, ..Recipient::waiting(address) };
    let settlement = Settlement {
        id,
        at: at(2),
        recipients: vec![
            recipient("a@x.test", RecipientState::Sent),
            recipient("b@x.test", RecipientState::Waiting),
        ],
        class: Some(Class::Transient),
        code: "451".to_owned(),
        reply: "later".to_owned(),
        next: Next::Again { at: at(60), unknown: false },
        paced: true,
        report: None,
    };
    store.settle(settlement.clone()).await.unwrap();
    assert!(store.due(&john(), at(59), 10).await.unwrap().is_empty());
    assert_eq!(store.next_due(&john(), false).await.unwrap(), Some(at(60)));
    let due = store.due(&john(), at(60), 10).await.unwrap();
    assert_eq!(due[0].recipients, settlement.recipients);
    assert_eq!(due[0].attempts, 1);

    store.book(id, 1, at(61)).await.unwrap();
    store.settle(Settlement { at: at(62), next: Next::Failed, ..settlement.clone() }).await.unwrap();
    let queued = store.queued(None, 10).await.unwrap();
    assert_eq!(queued[0].state, QueuedState::Failed);
    let outcomes: Vec<_> = queued[0].attempts.iter().map(|attempt| attempt.outcome.as_deref()).collect();
    assert_eq!(outcomes, [Some("deferred"), Some("failed")]);
    assert_eq!(store.totals().await.unwrap()[0].1, Totals { failed: 1, ..Totals::default() });

    store.settle(Settlement { next: Next::Done, ..settlement }).await.unwrap();
    assert_eq!(store.content(id).await.unwrap(), None, "a message that is done leaves nothing behind");
    assert!(store.attempts(id).await.unwrap().is_empty());
}

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
async fn a_row_that_makes_no_sense_holds_up_no_other() {
    let opened = open().await;
    let store = &opened.store;
    let (damaged, good) = (message(store, &["a@x"]), message(store, &["b@x"]));
    let ids = [damaged.id, good.id];
    store.accept(damaged).await.unwrap();
    store.accept(good).await.unwrap();
    let mark = Mark { uidvalidity: 7, uid: 2 };
    store.found(&john(), "INBOX", mark, vec![1, 2], at(0)).await.unwrap();
    opened.sql("UPDATE message SET recipients = '{' WHERE id = ?1", [ids[0].0]);
    opened.sql("UPDATE received SET state = 'of a newer version' WHERE uid = 1", ());
    for due in [store.due(&john(), at(0), 10).await, store.accepted_by(&john(), at(0), 10).await] {
        assert_eq!(due.unwrap().iter().map(|due| due.id).collect::<Vec<_>>(), ids[1..]);
    }
    let states: Vec<_> = store.queued(None, 10).await.unwrap().iter().map(|queued| queued.state).collect();
    assert_eq!(states, [QueuedState::Failed, QueuedState::Waiting], "it is kept");
    let to_push = store.to_push(&john(), "INBOX", 7, at(0), 10).await.unwrap();
    assert_eq!(to_push.iter().map(|received| received.uid).collect::<Vec<_>>(), [2]);
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
async fn messages_that_arrive_together_do_not_share_the_room_for_one() {
    let opened = open().await;
    let store = &opened.store;
    // As much as no disk has, on its way by another session.
    let others = Room { arriving: store.arriving.clone(), size: 1 << 60 };
    store.arriving.fetch_add(others.size, Ordering::Relaxed);
    let refused = store.accept(message(store, &["a@x.test"])).await;
    assert!(matches!(refused, Err(Error::Full { .. })), "{refused:?}");
    drop(others);
    store.accept(message(store, &["a@x.test"])).await.unwrap();
    assert_eq!(store.arriving.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn attempts_that_stand_still_keep_no_connection_from_others() {
    let opened = open().await;
    let store = &opened.store;
    let kept = NewMessage { content: vec![b'x'; 1 << 20].into(), ..message(store, &["a@x.test"]) };
    let id = kept.id;
    store.accept(kept).await.unwrap();
    // More than there are connections; each begins, and then nobody looks after it.
    let mut reads = Vec::new();
    for _ in 0..16 {
        let mut read = Box::pin(store.content(id));
        match futures_util::poll!(&mut read) {
            Poll::Pending => reads.push(read),
            Poll::Ready(content) => assert!(content.unwrap().is_some()),
        }
    }
    let due = tokio::time::timeout(std::time::Duration::from_secs(10), store.due(&john(), at(0), 10)).await;
    assert_eq!(due.expect("a connection").unwrap().len(), 1);
    for read in reads {
        assert!(read.await.unwrap().is_some());
    }
}
