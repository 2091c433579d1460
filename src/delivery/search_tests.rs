//! Unknown outcomes between a real store, a scripted Exchange, and its folder of sent mail.

use crate::clock;
use crate::delivery::bed::support::imap::Fault as ImapFault;
use crate::delivery::bed::support::script::Rule;
use crate::delivery::bed::support::smtp::{Fault, Step};
use crate::delivery::bed::{Bed, JOHN, states};
use crate::store::{Attempt, Queued, QueuedState, RecipientState};
use std::time::{Duration, Instant};

const SENT: &str = "Sent Items";

fn content(id: &str, to: &str) -> String {
    format!("Message-Id: <{id}>\r\nTo: {to}\r\nSubject: a\r\n\r\nbody\r\n")
}

async fn until(what: &str, is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !is_so() {
        assert!(Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn sign_ins(bed: &Bed) -> usize {
    bed.imap.commands().iter().filter(|(_, command)| command.starts_with("AUTHENTICATE")).count()
}

#[tokio::test]
async fn a_message_that_was_taken_is_found_and_not_sent_again() {
    let bed = Bed::start("sent_delay = '0s'\n").await;
    bed.smtp.fail_next(Step::AfterDot, Fault::KeepThenCut);
    bed.accept(&["a@example.org"], &content("1@odoo", "a@example.org")).await;
    bed.queue_is_empty().await;
    assert_eq!((bed.smtp.count(), bed.imap.messages(JOHN, SENT).len()), (1, 1));
    let seen = bed.imap.commands();
    assert!(seen.iter().any(|(_, command)| command.starts_with("EXAMINE")), "{seen:?}");
    assert!(!seen.iter().any(|(_, command)| command.starts_with("SELECT")), "{seen:?}");
    bed.stop().await;
}

#[tokio::test]
async fn a_message_that_was_not_taken_is_sent_again_when_it_would_have_been_filed() {
    let bed = Bed::start("sent_delay = '1s'\n").await;
    bed.smtp.fail_next(Step::AfterDot, Fault::Cut);
    let began = Instant::now();
    bed.accept(&["a@example.org"], &content("1@odoo", "a@example.org")).await;
    until("a first look", || sign_ins(&bed) == 1).await;
    bed.accept(&["b@example.org"], &content("2@odoo", "b@example.org")).await;
    until("the other mail", || bed.smtp.count() == 1).await;
    assert_eq!(bed.smtp.delivered()[0].recipients, ["b@example.org"], "nobody waits for the look");
    bed.queue_is_empty().await;
    assert!(began.elapsed() >= Duration::from_secs(1));
    assert_eq!(bed.smtp.delivered()[1].recipients, ["a@example.org"]);
    bed.stop().await;
}

#[tokio::test]
async fn a_copy_that_is_filed_late_is_still_found() {
    let bed = Bed::start("sent_delay = '1 hour'\n").await;
    bed.smtp.fail_next(Step::AfterDot, Fault::Cut);
    let message = content("1@odoo", "a@example.org");
    bed.accept(&["a@example.org"], &message).await;
    until("a first look", || bed.imap.commands().iter().any(|(_, c)| c.starts_with("UID SEARCH"))).await;
    bed.imap.deliver(JOHN, SENT, message.as_bytes());
    bed.queue_is_empty().await;
    assert_eq!(bed.smtp.count(), 0);
    bed.stop().await;
}

#[tokio::test]
async fn two_transactions_with_one_message_id_are_told_apart() {
    let bed = Bed::start("connections = 1\nsent_delay = '0s'\n").await;
    bed.smtp.script(Rule::new(Step::AfterDot, Fault::KeepThenCut).only("a@example.org"));
    bed.smtp.script(Rule::new(Step::AfterDot, Fault::Cut).only("b@example.org"));
    // To does not tell who gets which.
    bed.accept(&["a@example.org"], &content("1@odoo", "A@EXAMPLE.ORG, B@EXAMPLE.ORG")).await;
    bed.accept(&["b@example.org"], &content("1@odoo", "A@EXAMPLE.ORG, B@EXAMPLE.ORG")).await;
    bed.queue_is_empty().await;
    let sent: Vec<_> = bed.smtp.delivered().into_iter().map(|message| message.recipients).collect();
    assert_eq!(sent, [["a@example.org"], ["b@example.org"]], "each once");
    bed.stop().await;
}

#[tokio::test]
async fn only_those_who_were_handed_over_are_unknown_and_the_rest_goes_at_once() {
    let bed = Bed::start("connections = 1\nsent_delay = '1 hour'\n").await;
    bed.smtp
        .script(Rule::new(Step::Rcpt, Fault::reply("452 4.5.3 Too many recipients")).only("b@example.org"));
    bed.smtp.fail_next(Step::AfterDot, Fault::KeepThenCut);
    bed.accept(&["a@example.org", "b@example.org"], &content("1@odoo", "A@EXAMPLE.ORG, B@EXAMPLE.ORG")).await;
    bed.queue_is_empty().await;
    let sent: Vec<_> = bed.smtp.delivered().into_iter().map(|message| message.recipients).collect();
    assert_eq!(sent, [["a@example.org"], ["b@example.org"]]);
    bed.stop().await;
}

#[tokio::test]
async fn a_portions_copy_is_not_taken_for_the_other_portions() {
    let bed = Bed::start("connections = 1\nsent_delay = '0s'\n").await;
    bed.smtp
        .script(Rule::new(Step::Rcpt, Fault::reply("452 4.5.3 Too many recipients")).only("b@example.org"));
    bed.smtp.script(Rule::new(Step::AfterDot, Fault::Cut).only("b@example.org"));
    bed.accept(&["a@example.org", "b@example.org"], &content("1@odoo", "A@EXAMPLE.ORG, B@EXAMPLE.ORG")).await;
    let resolved = |queued: &[Queued]| {
        let was_unknown = |attempt: &Attempt| attempt.outcome.as_deref() == Some("unknown");
        queued[0].attempts.get(1).is_some_and(was_unknown) && states(&queued[0])[1] == RecipientState::Waiting
    };
    let queued = bed.queue("the second portion is sent again", resolved).await;
    assert_eq!(states(&queued[0]), [RecipientState::Sent, RecipientState::Waiting]);
    assert_eq!(bed.imap.messages(JOHN, SENT).len(), 1);
    bed.stop().await;
}

#[tokio::test]
async fn what_a_stop_before_the_answer_left_is_known_to_the_last_recipient() {
    let bed = Bed::start("connections = 1\nsent_delay = '1 hour'\n").await;
    bed.smtp.script(Rule::new(Step::Rcpt, Fault::reply("450 4.2.1 busy")).only("b@example.org"));
    bed.smtp.fail_next(Step::AfterDot, Fault::KeepThenSilence);
    bed.accept(&["a@example.org", "b@example.org"], &content("1@odoo", "A@EXAMPLE.ORG, B@EXAMPLE.ORG")).await;
    until("it is taken", || bed.smtp.count() == 1).await;
    // No look finds anything yet.
    bed.imap.server.down().await;
    bed.hard.cancel();
    let bed = bed.restart().await;
    let unknown = |queued: &[Queued]| queued[0].state == QueuedState::Waiting;
    let queued = bed.queue("it is looked for", unknown).await;
    assert_eq!(states(&queued[0]), [RecipientState::Unknown, RecipientState::Waiting]);
    assert!(queued[0].recipients[1].reply.as_deref().unwrap().starts_with("450 4.2.1"), "{queued:?}");
    bed.imap.server.up().await;
    bed.queue_is_empty().await;
    let sent: Vec<_> = bed.smtp.delivered().into_iter().map(|message| message.recipients).collect();
    assert_eq!(sent, [["a@example.org"], ["b@example.org"]]);
    bed.stop().await;
}

#[tokio::test]
async fn many_are_looked_for_over_one_session_after_a_crash() {
    let bed = Bed::start("messages_per_minute = 0\nsent_delay = '0s'\n").await;
    bed.accept(&["first@example.org"], &content("first@odoo", "first@example.org")).await;
    bed.queue_is_empty().await;
    bed.soft.cancel();
    for index in 0..120 {
        let to = format!("{index}@example.org");
        let id = bed.accept(&[&to], &content(&format!("{index}@odoo"), &to)).await;
        bed.store.book(id, 1, clock::now()).await.unwrap();
        if index % 2 == 0 {
            bed.imap.deliver(JOHN, SENT, content(&format!("{index}@odoo"), &to).as_bytes());
        }
    }
    let bed = bed.restart().await;
    bed.queue_is_empty().await;
    assert_eq!((sign_ins(&bed), bed.smtp.count()), (1, 61), "the half that was not there is sent");
    let odd = |address: &str| address.split('@').next().unwrap().parse::<u32>().unwrap() % 2 == 1;
    assert!(bed.smtp.delivered()[1..].iter().all(|message| odd(&message.recipients[0])));
    bed.stop().await;
}

#[tokio::test]
async fn where_nobody_can_look_the_policy_decides() {
    let refused = || ImapFault::no("AUTHENTICATE failed.");
    for policy in ["resend", "hold"] {
        let bed = Bed::start(&format!("sent_delay = '100ms'\non_unknown = '{policy}'\n")).await;
        bed.imap.script(Rule::new("AUTHENTICATE", refused()).always());
        bed.smtp.fail_next(Step::AfterDot, Fault::KeepThenCut);
        bed.accept(&["a@example.org"], &content("1@odoo", "a@example.org")).await;
        if policy == "resend" {
            bed.queue_is_empty().await;
            assert_eq!(bed.smtp.count(), 2, "it arrives twice");
        } else {
            let queued = bed.queue("held", |queued| queued[0].state == QueuedState::Held).await;
            assert_eq!((states(&queued[0]), bed.smtp.count()), (vec![RecipientState::Unknown], 1));
        }
        assert_eq!(sign_ins(&bed) % 2, 0, "one more with a new token, at each look");
        bed.stop().await;
    }
    let bed = Bed::start("sent_delay = '0s'\non_unknown = 'hold'\n").await;
    bed.imap.remove_folder(JOHN, SENT);
    bed.smtp.set_hook(std::sync::Arc::new(|_| ()));
    bed.smtp.fail_next(Step::AfterDot, Fault::KeepThenCut);
    bed.accept(&["a@example.org"], &content("1@odoo", "a@example.org")).await;
    bed.queue("held without a folder", |queued| queued[0].state == QueuedState::Held).await;
    bed.stop().await;
}

#[tokio::test]
async fn a_folder_that_fails_for_a_while_is_looked_into_again() {
    let faults = [
        ("GREETING", ImapFault::bye("Server Unavailable. 15")),
        ("EXAMINE", ImapFault::bad("Request is throttled. Suggested Backoff Time: 1000 milliseconds")),
        ("UID SEARCH", ImapFault::Cut),
        ("UID FETCH", ImapFault::no("Server Unavailable. 15")),
        ("LIST", ImapFault::bye("Session invalidated - AccessTokenExpired")),
    ];
    let tried = faults.map(async |(command, fault)| {
        let bed = Bed::start("sent_delay = '0s'\n").await;
        bed.imap.fail_next(command, fault);
        bed.smtp.fail_next(Step::AfterDot, Fault::KeepThenCut);
        bed.accept(&["a@example.org"], &content("1@odoo", "a@example.org")).await;
        bed.queue_is_empty().await;
        assert_eq!((bed.smtp.count(), bed.imap.pending()), (1, 0), "{command}");
        bed.stop().await;
    });
    futures_util::future::join_all(tried).await;
}

#[tokio::test]
async fn one_message_that_breaks_every_session_does_not_hide_the_others() {
    let bed = Bed::start("connections = 1\nsent_delay = '0s'\n").await;
    bed.imap.script(Rule::new("UID SEARCH", ImapFault::Cut).only("poison@odoo").always());
    bed.smtp.script(Rule::new(Step::AfterDot, Fault::KeepThenCut).times(3));
    let poison = bed.accept(&["a@example.org"], &content("poison@odoo", "a@example.org")).await;
    for id in ["1@odoo", "2@odoo"] {
        bed.accept(&["a@example.org"], &content(id, "a@example.org")).await;
    }
    let queued = bed.queue("only the poison is left", |queued| queued.len() == 1).await;
    assert_eq!((queued[0].id, bed.smtp.count()), (poison, 3));
    assert_eq!(states(&queued[0]), [RecipientState::Unknown]);
    bed.stop().await;
}

#[tokio::test]
async fn a_look_that_hangs_holds_up_neither_the_other_mail_nor_a_stop() {
    let bed = Bed::start("connections = 1\n").await;
    bed.imap.script(Rule::new("UID SEARCH", ImapFault::Silence).always());
    bed.smtp.fail_next(Step::AfterDot, Fault::KeepThenCut);
    bed.accept(&["a@example.org"], &content("1@odoo", "a@example.org")).await;
    until("a look that hangs", || bed.imap.commands().iter().any(|(_, c)| c.starts_with("UID SEARCH"))).await;
    bed.accept(&["b@example.org"], &content("2@odoo", "b@example.org")).await;
    bed.queue("the other mail went", |queued| queued.len() == 1).await;
    let began = Instant::now();
    bed.stop().await;
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_folder_whose_name_cannot_be_written_is_not_taken_for_the_one_before() {
    let bed = Bed::start("connections = 1\nsent_delay = '0s'\non_unknown = 'hold'\n").await;
    bed.imap.add_folder(JOHN, "Gesendet \u{fc}", "\\Sent");
    bed.smtp.fail_next(Step::AfterDot, Fault::Cut);
    let id = bed.accept(&["a@example.org"], &content("1@odoo", "a@example.org")).await;
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let queued = bed.store.queued_one(id).await.unwrap().expect("sent without a look into each folder");
        if queued.state == QueuedState::Held {
            break;
        }
        assert!(Instant::now() < deadline, "{queued:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(bed.smtp.count(), 0);
    bed.stop().await;
}
