//! When tokens are refreshed, kept and handed out.

use super::bed::{Bed, CONSENT, address, eventually, http, john, mailbox, pass, store, stored};
use super::scripted::{Answer, Endpoint};
use super::*;
use crate::microsoft::Credential;
use serde_json::json;
use tokio_util::sync::CancellationToken;

#[tokio::test]
async fn the_rotated_refresh_token_is_on_disk_before_the_access_token_is_handed_out() {
    let (bed, writer) = Bed::without_writer(Some(stored("refresh-0-secret", CONSENT)), [], |_| ()).await;
    bed.requests(1).await;
    let early = tokio::time::timeout(Duration::from_millis(300), bed.token()).await;
    assert!(early.is_err(), "handed out before the commit: {early:?}");
    assert_eq!(bed.state().state, State::Refreshing);
    assert_eq!(bed.kept().await.refresh_token.expose_secret(), "refresh-0-secret");

    tokio::spawn(writer.run());
    assert_eq!(bed.token().await.unwrap().secret(), "access-1-secret");
    let kept = bed.kept().await;
    assert_eq!(kept.refresh_token.expose_secret(), "refresh-1-secret");
    assert!(kept.refreshed_at.is_some());
    assert_eq!(kept.consented_at, Timestamp::from_second(CONSENT).unwrap());
    assert_eq!(bed.state().state, State::Ok);
    assert_eq!(bed.endpoint.requests().len(), 1);
}

#[tokio::test]
async fn a_refresh_under_way_is_kept_though_the_callers_went_and_the_relay_stops() {
    let (bed, writer) = Bed::without_writer(Some(stored("refresh-0-secret", CONSENT)), [], |_| ()).await;
    tokio::spawn(writer.run());
    bed.endpoint.hold();
    let tokens = bed.tokens.clone();
    let caller = tokio::spawn(async move { tokens.access_token(&john()).await });
    bed.requests(1).await;
    caller.abort();
    bed.soft.cancel();
    bed.endpoint.gate.add_permits(1);
    let kept = bed.store.clone();
    bed.keeper.await.unwrap();
    let kept = kept.token(&john()).await.unwrap().unwrap();
    assert_eq!(kept.refresh_token.expose_secret(), "refresh-1-secret");
    // What was got is good; a refused one has nobody left to replace it.
    let token = bed.tokens.access_token(&john()).await.unwrap();
    bed.tokens.refused(&john(), &token);
    assert_eq!(bed.tokens.access_token(&john()).await.unwrap_err().code, "stopping");
}

#[tokio::test]
async fn a_hundred_callers_make_one_request() {
    let bed = Bed::start(Some(stored("refresh-0-secret", CONSENT)), []).await;
    bed.endpoint.hold();
    let callers: Vec<_> = (0..100)
        .map(|_| {
            let tokens = bed.tokens.clone();
            tokio::spawn(async move { tokens.access_token(&john()).await })
        })
        .collect();
    bed.requests(1).await;
    bed.endpoint.gate.add_permits(100);
    for caller in callers {
        assert_eq!(caller.await.unwrap().unwrap().secret(), "access-1-secret");
    }
    assert_eq!(bed.token().await.unwrap().secret(), "access-1-secret");
    assert_eq!(bed.endpoint.requests().len(), 1);
}

#[tokio::test]
async fn refusals_force_one_refresh() {
    let bed = Bed::start(Some(stored("refresh-0-secret", CONSENT)), []).await;
    let first = bed.token().await.unwrap();
    for _ in 0..10 {
        bed.tokens.refused(&john(), &first);
    }
    let second = bed.token().await.unwrap();
    assert_eq!(second.secret(), "access-2-secret");
    bed.tokens.refused(&john(), &first); // A late refusal of the one before.
    bed.tokens.refused(&john(), &second); // Then it is not the token.
    assert_eq!(bed.token().await.unwrap().secret(), "access-2-secret");
    assert_eq!(bed.state().state, State::Ok);
    let sent: Vec<_> = bed.endpoint.requests().iter().map(|form| form["refresh_token"].clone()).collect();
    assert_eq!(sent, ["refresh-0-secret", "refresh-1-secret"]);
}

#[tokio::test]
async fn an_outage_ahead_of_expiry_leaves_the_token_in_use() {
    let bed = Bed::start(Some(stored("refresh-0-secret", CONSENT)), []).await;
    bed.token().await.unwrap();
    bed.endpoint.next(Answer::Http(503, "content-type: text/html\r\n", "<html>".to_owned()));
    pass(Duration::from_secs(51 * 60)).await;
    eventually("the failure", || bed.state().state == State::Failed).await;
    assert_eq!(bed.token().await.unwrap().secret(), "access-1-secret");
    let failure = bed.state().failure.unwrap();
    assert_eq!((failure.class, failure.code.as_str()), (Class::Transient, "HTTP 503"));
    assert!(bed.mailbox.token.lasting().is_some());
    // The back-off's first step is a second: it passes by itself.
    eventually("the next try", || bed.state().state == State::Ok).await;
    assert_eq!(bed.token().await.unwrap().secret(), "access-3-secret");
    assert_eq!(bed.mailbox.token.lasting(), None);
    assert_eq!(bed.kept().await.refresh_token.expose_secret(), "refresh-3-secret");
}

#[tokio::test]
async fn tokens_are_refreshed_ahead_of_expiry_unasked() {
    let bed = Bed::start(Some(stored("refresh-0-secret", CONSENT)), []).await;
    bed.token().await.unwrap();
    pass(Duration::from_secs(44 * 60)).await;
    assert_eq!(bed.token().await.unwrap().secret(), "access-1-secret");
    assert_eq!(bed.endpoint.requests().len(), 1);
    pass(Duration::from_secs(7 * 60)).await;
    bed.requests(2).await;
    assert_eq!(bed.endpoint.requests()[1]["refresh_token"], "refresh-1-secret");
}

#[tokio::test]
async fn an_idle_mailbox_is_refreshed_daily_though_nobody_ever_asks() {
    // The longest lifetime that is believed; Microsoft's are 60 to 90 minutes.
    let longest = || {
        let answer =
            json!({"access_token": "access-secret", "refresh_token": "refresh-secret", "expires_in": 1e9});
        Answer::json(200, &answer)
    };
    let answers = (0..4).map(|_| longest());
    let bed = Bed::start(Some(stored("refresh-0-secret", CONSENT)), answers).await;
    let mut last = None;
    for day in 1..=4 {
        eventually("the day's refresh", || bed.state().refreshed_at > last).await;
        assert_eq!(bed.endpoint.requests().len(), day);
        last = bed.state().refreshed_at;
        pass(Duration::from_secs(24 * 3600)).await;
    }
}

#[tokio::test]
async fn a_consent_that_comes_during_a_refresh_is_kept_and_used_next() {
    let bed = Bed::start(Some(stored("refresh-0-secret", CONSENT)), []).await;
    bed.endpoint.hold();
    bed.requests(1).await;
    bed.store.keep_token(&john(), stored("refresh-new-secret", CONSENT + 1)).await.unwrap();
    bed.tokens.reload().await.unwrap();
    assert_eq!(bed.endpoint.requests().len(), 1, "not while the other one is under way");
    bed.endpoint.gate.add_permits(1);
    bed.requests(2).await;
    assert_eq!(bed.endpoint.requests()[1]["refresh_token"], "refresh-new-secret");
    bed.endpoint.gate.add_permits(1);
    assert_eq!(bed.endpoint.script.lock().unwrap().most_in_flight, 1);
    // A keeper that is told to stop commits first.
    bed.soft.cancel();
    let store = bed.store.clone();
    bed.keeper.await.unwrap();
    let kept = store.token(&john()).await.unwrap().unwrap();
    assert_eq!(kept.refresh_token.expose_secret(), "refresh-2-secret");
}

#[tokio::test]
async fn a_token_whose_key_is_gone_is_the_administrators_and_is_not_deleted() {
    let bed = Bed::start(None, []).await;
    let key = bed.folder.path().join("relay.key");
    bed.store.keep_token(&john(), stored("refresh-0-secret", CONSENT)).await.unwrap();
    std::fs::remove_file(key).unwrap();
    store::Store::replace_lost_key(&store::Config::at(bed.folder.path().join("relay.db"))).await.unwrap();
    let (store, writer) = Store::open(&store::Config::at(bed.folder.path().join("relay.db"))).await.unwrap();
    tokio::spawn(writer.run());
    let (tokens, keepers) =
        Tokens::new(std::slice::from_ref(&bed.mailbox), store.clone(), http()).await.unwrap();
    for keeper in keepers {
        tokio::spawn(keeper.run(bed.soft.clone()));
    }
    let failure = tokens.access_token(&john()).await.unwrap_err();
    assert_eq!((failure.class, failure.code.as_str()), (Class::Administrator, "sealed"));
    assert!(failure.advice.contains("backup") && failure.advice.contains("connect john@contoso.com"));
    store.keep_token(&john(), stored("refresh-anew-secret", CONSENT + 1)).await.unwrap();
    tokens.reload().await.unwrap();
    assert!(tokens.access_token(&john()).await.is_ok());
}

#[tokio::test]
async fn a_dead_consent_is_said_at_once_and_a_new_one_used_at_once() {
    let answers = [Answer::error(400, "invalid_grant", 700_082)];
    let bed = Bed::start(Some(stored("refresh-0-secret", CONSENT)), answers).await;
    let failure = bed.token().await.unwrap_err();
    assert_eq!((failure.class, failure.code.as_str()), (Class::Consent, "AADSTS700082"));
    assert!(failure.reply.contains("Trace ID: t-1 Correlation ID: c-1"));
    assert!(failure.advice.contains("outlook-relay connect john@contoso.com"), "{failure}");
    assert_eq!(bed.state().state, State::Failed);
    assert_eq!(bed.kept().await.refresh_token.expose_secret(), "refresh-0-secret", "nothing is deleted");
    // Neither callers, nor a look at an unchanged store, nor some time make another request.
    assert!(!bed.tokens.reload().await.unwrap());
    pass(Duration::from_secs(26 * 60)).await;
    assert_eq!(bed.token().await.unwrap_err().code, "AADSTS700082");
    assert_eq!(bed.endpoint.requests().len(), 1);

    bed.store.keep_token(&john(), stored("refresh-new-secret", CONSENT + 1)).await.unwrap();
    assert!(bed.tokens.reload().await.unwrap(), "whoever waits for a token is to be woken");
    assert_eq!(bed.token().await.unwrap().secret(), "access-2-secret");
    assert_eq!(bed.endpoint.requests()[1]["refresh_token"], "refresh-new-secret");
    assert_eq!(bed.mailbox.token.lasting(), None);
}

#[tokio::test]
async fn a_failure_that_needs_a_person_is_tried_again_after_half_an_hour() {
    let answers = [Answer::error(401, "invalid_client", 7_000_222)];
    let bed = Bed::start(Some(stored("refresh-0-secret", CONSENT)), answers).await;
    let failure = bed.token().await.unwrap_err();
    assert_eq!((failure.class, failure.code.as_str()), (Class::Administrator, "AADSTS7000222"));
    pass(Duration::from_secs(31 * 60)).await;
    eventually("the next try", || bed.state().state == State::Ok).await;
    assert_eq!(bed.token().await.unwrap().secret(), "access-2-secret");
}

#[tokio::test]
async fn a_mailbox_that_nobody_connected_says_how_and_works_once_somebody_did() {
    let bed = Bed::start(None, []).await;
    let failure = bed.token().await.unwrap_err();
    assert_eq!((failure.class, failure.code.as_str()), (Class::Consent, "no_token"));
    assert_eq!(failure.advice, "run `outlook-relay connect john@contoso.com`");
    assert_eq!(bed.state().state, State::Missing);
    bed.store.keep_token(&john(), stored("refresh-0-secret", CONSENT)).await.unwrap();
    bed.tokens.reload().await.unwrap();
    assert_eq!(bed.token().await.unwrap().secret(), "access-1-secret");
}

#[tokio::test]
async fn a_token_of_another_app_is_not_sent() {
    let mut token = stored("refresh-0-secret", CONSENT);
    token.client_id = "another".to_owned();
    let bed = Bed::start(Some(token), []).await;
    let failure = bed.token().await.unwrap_err();
    assert_eq!((failure.class, failure.code.as_str()), (Class::Administrator, "other_app"));
    assert!(failure.reply.contains("another") && failure.advice.contains("connect john@contoso.com"));
    assert!(bed.endpoint.requests().is_empty());
    assert_eq!(bed.kept().await.refresh_token.expose_secret(), "refresh-0-secret");
}

#[tokio::test]
async fn an_answer_without_a_refresh_token_keeps_the_old_one() {
    let answers = [Answer::json(200, &json!({"access_token": "access-a-secret", "expires_in": "3600"}))];
    let bed = Bed::start(Some(stored("refresh-0-secret", CONSENT)), answers).await;
    assert_eq!(bed.token().await.unwrap().secret(), "access-a-secret");
    let kept = bed.kept().await;
    assert_eq!(kept.refresh_token.expose_secret(), "refresh-0-secret");
    assert!(kept.refreshed_at.is_some());
}

#[tokio::test]
async fn a_disk_that_fails_withholds_the_token_and_loses_nothing() {
    let bed = Bed::start(Some(stored("refresh-0-secret", CONSENT)), []).await;
    bed.token().await.unwrap();
    let disk = rusqlite::Connection::open(bed.folder.path().join("relay.db")).unwrap();
    let full = "CREATE TRIGGER full BEFORE INSERT ON token BEGIN SELECT raise(ABORT, 'disk full'); END";
    disk.execute_batch(full).unwrap();
    let first = bed.token().await.unwrap();
    bed.tokens.refused(&john(), &first);
    let failure = bed.token().await.unwrap_err();
    assert_eq!((failure.class, failure.code.as_str()), (Class::Transient, "store"));
    assert!(failure.reply.contains("disk full"), "{failure}");
    disk.execute_batch("DROP TRIGGER full").unwrap();
    eventually("the commit", || bed.state().state == State::Ok).await;
    assert_eq!(bed.token().await.unwrap().secret(), "access-2-secret");
    assert_eq!(bed.kept().await.refresh_token.expose_secret(), "refresh-2-secret");
    assert_eq!(bed.endpoint.requests().len(), 2, "the one got was kept, none was asked for anew");
}

#[tokio::test]
async fn at_most_eight_refreshes_are_under_way() {
    let endpoint = Endpoint::start().await;
    endpoint.hold();
    let folder = tempfile::tempdir().unwrap();
    let (store, writer) = store(folder.path(), None).await;
    tokio::spawn(writer.run());
    let mailboxes: Vec<_> = (0..20)
        .map(|number| {
            mailbox(&format!("m{number}@contoso.com"), &endpoint, |config| {
                config.grant = Grant::ClientCredentials;
                config.credential = Credential::Secret(SecretString::from("app-secret"));
            })
        })
        .collect();
    let (tokens, keepers) = Tokens::new(&mailboxes, store, http()).await.unwrap();
    for keeper in keepers {
        tokio::spawn(keeper.run(CancellationToken::new()));
    }
    let callers: Vec<_> = mailboxes
        .iter()
        .map(|mailbox| {
            let (tokens, address) = (tokens.clone(), mailbox.address().clone());
            tokio::spawn(async move { tokens.access_token(&address).await })
        })
        .collect();
    eventually("eight requests", || endpoint.requests().len() == MOST_IN_FLIGHT).await;
    endpoint.gate.add_permits(100);
    for caller in callers {
        caller.await.unwrap().unwrap();
    }
    assert_eq!(endpoint.requests().len(), 20);
    assert_eq!(endpoint.script.lock().unwrap().most_in_flight, MOST_IN_FLIGHT);
}

#[tokio::test]
async fn a_mailbox_that_is_none_and_a_keeper_that_never_ran_are_said() {
    let bed = Bed::start(None, []).await;
    let failure = bed.tokens.access_token(&address("nobody@contoso.com")).await;
    assert_eq!(failure.unwrap_err().code, "unknown_mailbox");
    assert_eq!(bed.tokens.state(&address("nobody@contoso.com")), None);
    let (tokens, keepers) =
        Tokens::new(std::slice::from_ref(&bed.mailbox), bed.store.clone(), http()).await.unwrap();
    drop(keepers);
    assert_eq!(tokens.access_token(&john()).await.unwrap_err().code, "stopping");
}

#[tokio::test]
async fn a_refresh_to_see_whether_it_succeeds_is_made_at_once_and_one_at_a_time() {
    let bed = Bed::start(Some(stored("refresh-0-secret", CONSENT)), []).await;
    bed.token().await.unwrap();
    // That was a moment ago.
    assert_eq!(bed.tokens.renew(&john()).await.unwrap().secret(), "access-1-secret");
    bed.tokens.refused(&john(), &bed.tokens.usable(&john()).unwrap());
    let callers: Vec<_> = (0..10)
        .map(|_| {
            let tokens = bed.tokens.clone();
            tokio::spawn(async move { tokens.renew(&john()).await })
        })
        .collect();
    for caller in callers {
        assert_eq!(caller.await.unwrap().unwrap().secret(), "access-2-secret");
    }
    assert_eq!(bed.endpoint.requests().len(), 2);
    bed.soft.cancel();
    bed.keeper.await.unwrap();
    bed.tokens.refused(&john(), &bed.tokens.usable(&john()).unwrap());
    assert_eq!(bed.tokens.renew(&address("eve@contoso.com")).await.unwrap_err().code, "unknown_mailbox");
}

#[tokio::test]
async fn a_failure_is_news_for_seconds_only_unless_the_endpoint_asks_for_more() {
    let now = clock::now();
    let at = |seconds| clock::after(now, Duration::from_secs(seconds));
    let failed = |failure| Live { failure: Some(failure), tried_at: Some(now), ..Live::default() };
    let failure = Failure::new(Class::Administrator, "AADSTS7000222", "expired");
    let token = AccessToken {
        secret: SecretString::from("access-1-secret"),
        expires_at: at(3600),
        usable_until: at(3540),
        generation: 1,
        forced: false,
    };
    let well = Live { token: Some(token), tried_at: Some(now), ..Live::default() };
    let rows = [
        (well.clone(), 59, true),
        (well.clone(), 60, false),
        (Live { refused: true, ..well }, 1, false),
        (failed(failure.clone()), 4, true),
        (failed(failure.clone()), 5, false),
        (failed(failure.clone().wait(Duration::from_secs(300))), 299, true),
        (failed(failure.wait(Duration::from_secs(999_999))), 3600, false),
        (Live { tried_at: Some(now), ..Live::default() }, 1, false),
        (Live::default(), 0, false),
    ];
    for (live, seconds, is_news) in rows {
        assert_eq!(live.is_news(at(seconds)), is_news, "{live:?} after {seconds} s");
    }
}
