//! The worker between a real store, real tokens and a scripted Exchange.

use super::*;
use crate::delivery::bed::support::script::Rule;
use crate::delivery::bed::support::smtp::{Fault, Step};
use crate::delivery::bed::{Bed, JOHN, next, states};
use crate::failure::Class;
use crate::store::{Queued, QueuedState, RecipientState};
use std::time::Instant;

#[tokio::test]
async fn mail_goes_out_over_few_connections_as_it_came() {
    let bed = Bed::start("messages_per_minute = 0\n").await;
    let content = |index: usize| format!("Subject: {index}\r\n\r\n.a dot\r\n\r\n");
    for index in 0..40 {
        bed.accept(&["a@example.org", "b@example.org"], &content(index)).await;
    }
    bed.queue_is_empty().await;
    let mut delivered = bed.smtp.delivered();
    assert_eq!(delivered.len(), 40);
    // Behind what the relay puts on top.
    let own = |text: &str| text[text.find("Subject: ").unwrap()..].to_owned();
    let number =
        |text: &str| own(text)["Subject: ".len()..].split('\r').next().unwrap().parse::<usize>().unwrap();
    delivered.sort_by_key(|message| number(&message.text()));
    for (index, message) in delivered.iter().enumerate() {
        assert_eq!(own(&message.text()), content(index));
        assert_eq!((message.mailbox.as_str(), message.mail_from.as_str()), (JOHN, JOHN));
        assert_eq!(message.recipients, ["a@example.org", "b@example.org"]);
    }
    assert!(bed.smtp.connections() <= 2, "{} connections", bed.smtp.connections());
    assert_eq!(bed.mailbox.smtp.lasting(), None);
    bed.stop().await;
}

#[tokio::test]
async fn the_from_header_is_replaced_on_the_way_out() {
    let bed = Bed::start("").await;
    let content = "From: eve@example.com\r\nSubject: a\r\n\r\nbody\r\n";
    bed.accept_from(&["a@example.org"], content, Some("\"eve\" <notifications@example.com>")).await;
    bed.queue_is_empty().await;
    let text = bed.smtp.delivered()[0].text();
    assert!(text.contains("<notifications@example.com>") && !text.contains("eve@example.com"), "{text}");
    assert!(text.ends_with("Subject: a\r\n\r\nbody\r\n"), "{text}");
}

#[tokio::test]
async fn a_refused_recipient_fails_alone_and_a_deferred_one_waits() {
    let bed = Bed::start("").await;
    bed.smtp.script(Rule::new(Step::Rcpt, Fault::reply("550 5.1.1 User unknown")).only("b@example.org"));
    bed.smtp.script(Rule::new(Step::Rcpt, Fault::reply("450 4.2.1 busy")).only("c@example.org"));
    bed.accept(&["a@example.org", "b@example.org", "c@example.org"], "Subject: a\r\n\r\n").await;
    let queued = bed.tried().await;
    assert_eq!(states(&queued), [RecipientState::Sent, RecipientState::Failed, RecipientState::Waiting]);
    assert!(queued.state == QueuedState::Waiting && (24..=36).contains(&next(&queued)), "{queued:?}");
    assert_eq!(bed.smtp.delivered()[0].recipients, ["a@example.org"]);
}

#[tokio::test]
async fn a_message_that_is_refused_does_not_hold_up_the_next() {
    let bed = Bed::start("connections = 1\n").await;
    bed.smtp.script(Rule::new(Step::AfterDot, Fault::reply("451 4.3.0 later")).only("poison"));
    let poison = bed.accept(&["a@example.org"], "Subject: poison\r\n\r\n").await;
    bed.accept(&["a@example.org"], "Subject: fine\r\n\r\n").await;
    let queued = bed
        .queue("only the poison is left", |queued| queued.len() == 1 && queued[0].attempts.len() == 1)
        .await;
    assert_eq!(queued[0].id, poison);
    assert_eq!(bed.smtp.connections(), 1, "the connection stays in use");
    assert_eq!(bed.mailbox.smtp.lasting(), None);
}

#[tokio::test]
async fn a_refused_token_is_replaced_within_the_attempt() {
    for generic in [false, true] {
        let bed = Bed::start("").await;
        bed.smtp.set_generic_failure(generic);
        bed.smtp.fail_next(Step::Auth, Fault::reply("535 5.7.3 Authentication unsuccessful"));
        bed.accept(&["a@example.org"], "Subject: a\r\n\r\n").await;
        bed.queue_is_empty().await;
        assert_eq!((bed.smtp.count(), bed.entra.refreshes(JOHN)), (1, 2));
        assert_eq!(bed.mailbox.smtp.lasting(), None);
    }
}

#[tokio::test]
async fn the_mailboxs_trouble_pauses_it_and_keeps_the_mail() {
    let disabled =
        "535 5.7.139 Authentication unsuccessful, SmtpClientAuthentication is disabled for the Mailbox";
    let too_many = "432 4.3.2 Concurrent connections limit exceeded";
    let table = [
        (Step::Auth, Fault::reply(disabled), Class::Administrator, 230),
        (Step::Auth, Fault::reply("535 5.7.3 Authentication unsuccessful"), Class::Administrator, 230),
        (Step::AfterDot, Fault::reply(too_many), Class::Rate, 29),
        (Step::Banner, Fault::reply("421 4.3.2 Service not available"), Class::Transient, 3),
        (Step::Handshake, Fault::Cut, Class::Transient, 3),
    ];
    for (step, fault, class, seconds) in table {
        let bed = Bed::start("").await;
        bed.smtp.script(Rule::new(step, fault.clone()).always());
        for _ in 0..5 {
            bed.accept(&["a@example.org"], "Subject: a\r\n\r\n").await;
        }
        let paused_until = bed.paused().await.paused_until.unwrap();
        assert!(clock::until(clock::now(), paused_until).as_secs() >= seconds, "{fault:?}: {paused_until}");
        let lasting = bed.mailbox.smtp.lasting().unwrap();
        assert_eq!(lasting.failure.class, class, "{fault:?}");
        let settled = |queued: &[Queued]| queued.iter().all(|message| message.state == QueuedState::Waiting);
        let queued = bed.queue("all wait", settled).await;
        let attempts: usize = queued.iter().map(|message| message.attempts.len()).sum();
        assert!(queued.len() == 5 && attempts <= 2, "{fault:?}: one try for each connection, not {attempts}");
        assert_eq!(bed.smtp.count(), 0);
        bed.stop().await;
    }
}

#[tokio::test]
async fn a_short_outage_ends_by_itself() {
    let bed = Bed::start("").await;
    bed.smtp.server.down().await;
    bed.accept(&["a@example.org"], "Subject: a\r\n\r\n").await;
    bed.paused().await;
    bed.smtp.server.up().await;
    bed.queue_is_empty().await;
    // The store knows a little sooner than the worker.
    bed.resumed().await;
    assert_eq!((bed.smtp.count(), bed.mailbox.smtp.lasting()), (1, None));
}

#[tokio::test]
async fn without_a_token_nothing_is_booked_and_consent_lets_it_go() {
    let bed = Bed::with("", false).await;
    bed.accept(&["a@example.org"], "Subject: a\r\n\r\n").await;
    bed.paused().await;
    let queued = bed.store.queued(None, 10).await.unwrap();
    assert!(queued[0].attempts.is_empty() && queued[0].state == QueuedState::Waiting, "{queued:?}");
    assert_eq!(bed.mailbox.smtp.lasting(), None, "the token's own trouble");
    assert_eq!(bed.smtp.connections(), 0);
    bed.consent().await;
    bed.queue_is_empty().await;
    assert_eq!(bed.smtp.count(), 1);
}

#[tokio::test]
async fn a_connection_closed_while_idle_is_replaced_within_the_attempt() {
    let bed = Bed::start("connections = 1\n").await;
    bed.accept(&["a@example.org"], "Subject: a\r\n\r\n").await;
    bed.queue_is_empty().await;
    bed.smtp.server.down().await;
    bed.smtp.server.up().await;
    bed.accept(&["a@example.org"], "Subject: b\r\n\r\n").await;
    bed.queue_is_empty().await;
    assert_eq!(bed.smtp.count(), 2);
    assert_eq!(bed.mailbox.smtp.lasting(), None);
}

#[tokio::test]
async fn what_outlives_its_time_in_a_paused_mailbox_fails() {
    let bed = Bed::start("retry_for = '2s'\nconnections = 1\n").await;
    let blocked = Fault::reply("535 5.7.139 Authentication unsuccessful, blocked by a policy");
    bed.smtp.script(Rule::new(Step::Auth, blocked).always());
    bed.accept(&["a@example.org"], "Subject: tried\r\n\r\n").await;
    bed.accept(&["b@example.org"], "Subject: never tried\r\n\r\n").await;
    let failed = |queued: &[Queued]| queued.iter().all(|message| message.state == QueuedState::Failed);
    for message in bed.queue("both failed", failed).await {
        assert_eq!(states(&message), [RecipientState::Failed]);
        let reply = message.recipients[0].reply.as_deref().unwrap();
        assert!(reply.starts_with("535 5.7.139"), "{reply}");
    }
}

#[tokio::test]
async fn pacing_holds_back_what_is_over_the_limit() {
    let bed = Bed::start("messages_per_minute = 3\n").await;
    for _ in 0..5 {
        bed.accept(&["a@example.org"], "Subject: a\r\n\r\n").await;
    }
    let queued = bed.queue("three went", |queued| queued.len() == 2).await;
    assert!(queued.iter().all(|message| message.attempts.is_empty()));
    assert_eq!(bed.smtp.count(), 3);
    bed.stop().await;
}

#[tokio::test]
async fn a_hard_stop_leaves_the_outcome_to_the_next_start() {
    let bed = Bed::start("").await;
    bed.smtp.fail_next(Step::AfterDot, Fault::KeepThenSilence);
    bed.accept(&["a@example.org"], "Subject: a\r\n\r\n").await;
    let deadline = Instant::now() + Duration::from_secs(20);
    while bed.smtp.count() == 0 {
        assert!(Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    bed.soft.cancel();
    bed.hard.cancel();
    tokio::time::timeout(Duration::from_secs(5), bed.worker).await.unwrap().unwrap();
    bed.store.recover(clock::now()).await.unwrap();
    let queued = bed.store.queued(None, 10).await.unwrap();
    assert_eq!(queued[0].attempts[0].outcome.as_deref(), Some("unknown"));
    assert_eq!(queued[0].state, QueuedState::Waiting);
}

#[tokio::test]
async fn a_soft_stop_finishes_the_message_in_hand() {
    let bed = Bed::start("reply_timeout = '1s'\nconnections = 1\n").await;
    bed.smtp.fail_next(Step::AfterDot, Fault::KeepThenSilence);
    bed.accept(&["a@example.org"], "Subject: a\r\n\r\n").await;
    bed.accept(&["a@example.org"], "Subject: b\r\n\r\n").await;
    let deadline = Instant::now() + Duration::from_secs(20);
    while bed.smtp.count() == 0 {
        assert!(Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    bed.soft.cancel();
    tokio::time::timeout(Duration::from_secs(20), bed.worker).await.unwrap().unwrap();
    let queued = bed.store.queued(None, 10).await.unwrap();
    assert_eq!(queued[0].attempts[0].outcome.as_deref(), Some("unknown"));
    assert!(queued[1].attempts.is_empty(), "the next one is not begun");
}

#[tokio::test]
async fn what_a_person_does_cuts_a_pause_short() {
    let paused = async || {
        let bed = Bed::start("").await;
        let refused = Fault::reply("535 5.7.3 Authentication unsuccessful");
        bed.smtp.script(Rule::new(Step::Auth, refused).always());
        bed.accept(&["a@example.org"], "Subject: a\r\n\r\n").await;
        bed.paused().await;
        bed.smtp.clear();
        bed
    };
    let by_consent = async {
        let bed = paused().await;
        bed.consent().await;
        bed.queue_is_empty().await;
    };
    let by_a_change_of_the_queue = async {
        let bed = paused().await;
        bed.store.wake_all();
        bed.queue_is_empty().await;
    };
    tokio::join!(by_consent, by_a_change_of_the_queue);
}

#[tokio::test]
async fn a_mailbox_sends_in_the_order_of_arrival_also_after_its_trouble() {
    let bed = Bed::start("connections = 1\nmessages_per_minute = 0\n").await;
    bed.smtp.fail_next(Step::Connect, Fault::Cut);
    bed.smtp.script(Rule::new(Step::AfterDot, Fault::reply("451 4.3.0 later")).only("Subject: 3").always());
    for index in 0..8 {
        bed.accept(&["a@example.org"], &format!("Subject: {index}\r\n\r\n")).await;
    }
    bed.queue("all but the deferred one went", |queued| queued.len() == 1 && queued[0].attempts.len() == 1)
        .await;
    let number = |text: &str| text.split_once("Subject: ").unwrap().1[..1].to_owned();
    let order: Vec<String> = bed.smtp.delivered().iter().map(|mail| number(&mail.text())).collect();
    assert_eq!(order, ["0", "1", "2", "4", "5", "6", "7"]);
}

#[tokio::test]
async fn the_days_recipients_last_for_a_day_and_that_is_said_once() {
    let bed = Bed::start("recipients_per_day = 4\nconnections = 1\n").await;
    for _ in 0..3 {
        bed.accept(&["a@example.org", "b@example.org"], "Subject: a\r\n\r\n").await;
    }
    let mut status = bed.status.clone();
    let full = status.wait_for(|status| status.sending == 0 && status.paused_until.is_some());
    let status = tokio::time::timeout(Duration::from_secs(20), full).await.unwrap().unwrap().clone();
    let wait = clock::until(clock::now(), status.paused_until.unwrap());
    assert!(wait.as_secs() > 23 * 3600, "{status:?}");
    assert_eq!((bed.smtp.count(), status.left_today, status.needs_a_person), (2, Some(0), false));
    let trouble = async {
        while bed.mailbox.smtp.lasting().is_none() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), trouble).await.unwrap();
    let failure = bed.mailbox.smtp.lasting().unwrap().failure;
    assert_eq!((failure.class, failure.code.as_str()), (Class::Rate, "recipients_per_day"));
    let queued = bed.store.queued(None, 10).await.unwrap();
    assert!(queued[0].attempts.is_empty() && queued[0].state == QueuedState::Waiting, "{queued:?}");
    bed.stop().await;
}

#[tokio::test]
async fn a_restart_forgets_no_pace_and_what_was_never_asked_for_does_not_count() {
    let bed = Bed::start("messages_per_minute = 3\nconnections = 1\n").await;
    bed.smtp.fail_next(Step::Auth, Fault::reply("451 4.4.3 later"));
    for _ in 0..2 {
        bed.accept(&["a@example.org"], "Subject: a\r\n\r\n").await;
    }
    bed.queue_is_empty().await;
    assert_eq!(bed.smtp.count(), 2, "a sign-in failed, and cost no place");
    let bed = bed.restart().await;
    for _ in 0..3 {
        bed.accept(&["a@example.org"], "Subject: a\r\n\r\n").await;
    }
    bed.queue("one more went", |queued| queued.len() == 2).await;
    let mut status = bed.status.clone();
    let busy = status.wait_for(|status| status.sending == 0);
    tokio::time::timeout(Duration::from_secs(20), busy).await.unwrap().unwrap();
    assert_eq!(bed.smtp.count(), 3);
    bed.stop().await;
}
