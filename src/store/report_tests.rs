//! Reports of failures on a real SQLite file.

use super::tests::{at, john, message, open};
use super::*;
use crate::failure::Class;

/// A message that was given up at second 10, with a report for each of its recipients.
pub(super) async fn failed(store: &Store, recipients: &[&str]) -> QueueId {
    let new = message(store, recipients);
    let id = new.id;
    store.accept(new).await.unwrap();
    store.book(id, 1, at(1)).await.unwrap();
    let refused = |address: &&str| Recipient {
        state: RecipientState::Failed,
        reply: Some("550 5.1.1 unknown".to_owned()),
        ..Recipient::waiting(*address)
    };
    let report = NewReport {
        message_id: Some("<1@odoo>".to_owned()),
        reports: recipients.iter().map(|to| ((*to).to_owned(), format!("about {to}").into())).collect(),
        due_at: at(15),
    };
    let settlement = Settlement {
        id,
        at: at(10),
        recipients: recipients.iter().map(refused).collect(),
        class: Some(Class::Message),
        code: "550 5.1.1".to_owned(),
        reply: "unknown".to_owned(),
        next: Next::Failed,
        paced: true,
        report: Some(report),
    };
    store.settle(settlement).await.unwrap();
    id
}

#[tokio::test]
async fn a_report_waits_until_it_was_taken_and_an_interrupted_push_is_unclear() {
    let opened = open().await;
    let id = failed(&opened.store, &["a@x.test", "b@x.test"]).await;
    assert_eq!(opened.store.reports_due(at(14), 10).await.unwrap(), []);
    let due = opened.store.reports_due(at(15), 10).await.unwrap();
    let expected = |id_of_report, recipient: &str| Report {
        id: id_of_report,
        message: id,
        message_id: Some("<1@odoo>".to_owned()),
        recipient: recipient.to_owned(),
        reply: Some("550 5.1.1 unknown".to_owned()),
        mailbox: Some(john().to_string()),
        tries: 0,
        unclear: false,
        answer: None,
    };
    assert_eq!(due, [expected(1, "a@x.test"), expected(2, "b@x.test")]);
    assert_eq!(opened.store.report_content(2).await.unwrap().unwrap(), b"about b@x.test");
    assert_eq!(opened.store.beginning(id, 4).await.unwrap().unwrap(), b"From");

    opened.store.book_report(1, at(20)).await.unwrap();
    opened.store.book_report(2, at(20)).await.unwrap();
    opened.store.settle_report(1, AfterPush::Taken).await.unwrap();
    let opened = opened.reopen().await;
    let store = &opened.store;
    assert_eq!(store.reports_due(at(19), 10).await.unwrap(), []);
    let due = store.reports_due(at(20), 10).await.unwrap();
    assert_eq!(due, [Report { tries: 1, unclear: true, ..expected(2, "b@x.test") }]);
    assert!(matches!(store.book_report(1, at(30)).await, Err(Error::Changed)), "it is gone");

    let answer = || "fault 1: no".to_owned();
    let again = AfterPush::Again { at: at(30), answer: answer(), unclear: false };
    store.settle_report(2, again).await.unwrap();
    let due = store.reports_due(at(30), 10).await.unwrap();
    assert_eq!(due, [Report { tries: 1, answer: Some(answer()), ..expected(2, "b@x.test") }]);
    assert_eq!(store.report_totals().await.unwrap(), ReportTotals { waiting: 1, refused: 0 });
    store.settle_report(2, AfterPush::Refused { answer: answer() }).await.unwrap();
    assert_eq!(store.reports_due(Timestamp::MAX, 10).await.unwrap(), []);
    assert_eq!(store.reports_refused(10).await.unwrap(), due);
    assert_eq!(store.report_totals().await.unwrap(), ReportTotals { waiting: 0, refused: 1 });
}

#[tokio::test]
async fn what_failed_is_kept_for_its_time_and_until_it_was_reported() {
    let opened = open().await;
    let store = &opened.store;
    let id = failed(store, &["a@x.test"]).await;
    let waiting = message(store, &["a@x.test"]);
    store.accept(waiting).await.unwrap();
    let long_ago = async |before: &[(Address, Timestamp)], otherwise| {
        store.failed_long_ago(before, otherwise, 10).await.unwrap()
    };
    assert_eq!(long_ago(&[], at(99)).await, [], "its report waits");
    store.book_report(1, at(20)).await.unwrap();
    assert_eq!(long_ago(&[], at(99)).await, [], "its report is on its way");
    store.settle_report(1, AfterPush::Refused { answer: String::new() }).await.unwrap();
    assert_eq!(long_ago(&[], at(10)).await, []);
    assert_eq!(long_ago(&[], at(11)).await, [id]);
    assert_eq!(long_ago(&[(john(), at(10))], at(11)).await, [], "its mailbox keeps it for longer");
    assert_eq!(long_ago(&[(john(), at(11))], at(10)).await, [id]);

    let set = |recipients: &str| {
        opened.sql("UPDATE message SET recipients = ?1 WHERE id = ?2", rusqlite::params![recipients, id.0]);
    };
    for damaged in ["{", "[]", "\"failed\"", r#"["failed"]"#] {
        set(damaged);
        assert_eq!(long_ago(&[], at(11)).await, [], "{damaged}: nobody knows what failed");
    }
    set(r#"[{"address":"a","state":"sent"},{"address":"b","state":"failed"}]"#);
    assert_eq!(long_ago(&[], at(11)).await, [id]);

    let queued = async || store.queued(None, 10).await.unwrap().len();
    store.tidy(vec![id], at(0)).await.unwrap();
    assert_eq!(queued().await, 1, "only what waits is left");
    assert_eq!(store.content(id).await.unwrap(), None);
    assert_eq!(store.report_totals().await.unwrap(), ReportTotals::default());
    let waiting = store.queued(None, 10).await.unwrap()[0].id;
    store.tidy(vec![waiting], at(0)).await.unwrap();
    assert_eq!(queued().await, 1, "what is not given up is never deleted");
}

#[tokio::test]
async fn a_push_that_a_wrong_clock_put_off_is_not_waited_for() {
    let opened = open().await;
    let store = &opened.store;
    failed(store, &["a@x.test", "b@x.test"]).await;
    let year = 365 * 86_400;
    for (id, second) in [(1, year), (2, 20 + 3600)] {
        let again = AfterPush::Again { at: at(second), answer: String::new(), unclear: false };
        store.settle_report(id, again).await.unwrap();
    }
    store.forget_future(at(20)).await.unwrap();
    let due: Vec<i64> = store.reports_due(at(20), 10).await.unwrap().iter().map(|due| due.id).collect();
    assert_eq!(due, [1], "an ordinary wait goes on");
}

#[tokio::test]
async fn a_message_that_is_no_text_keeps_no_report_from_odoo_and_can_be_tried_again() {
    let opened = open().await;
    let store = &opened.store;
    let id = failed(store, &["a@x.test"]).await;
    failed(store, &["b@x.test"]).await;
    opened.damage(id);
    let due = store.reports_due(at(15), 10).await.unwrap();
    assert_eq!(due.iter().map(|due| due.recipient.as_str()).collect::<Vec<_>>(), ["a@x.test", "b@x.test"]);
    assert_eq!((&due[0].reply, due[1].reply.as_deref()), (&None, Some("550 5.1.1 unknown")));
    assert!(store.retry(id, at(20)).await.unwrap());
    assert!(
        store.due(&john(), at(20), 10).await.unwrap().is_empty(),
        "set aside again, and no other with it"
    );
}
