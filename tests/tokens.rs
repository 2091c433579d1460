//! Tokens: kept fresh, never lost, and their failures explained.

use crate::company::{self, JOHN};
use crate::support::client::message;
use crate::support::entra::Answer;
use crate::support::script::Rule;
use crate::support::wait::{SOON, until};
use crate::support::world::World;
use std::time::Duration;

const BOUNCE: &str = "bounce@example.com";

#[tokio::test]
async fn the_rotated_token_is_what_the_next_start_uses() {
    let world = World::start().await;
    // Harsher than Microsoft: a token that was replaced is dead at once.
    world.entra.set_old_tokens_work(false);
    let (config, mut relay) = company::start(&world).await;
    for round in 1..=4 {
        until(SOON, "a refresh", || world.entra.refreshes(JOHN) >= round).await;
        // Killed while the answer is under way, a mailbox loses a token that is dead at once; Microsoft's live on.
        until(SOON, "everybody's is kept", || relay.count_log("token refreshed") == company::ALL.len()).await;
        relay.send(BOUNCE, &["a@x.test"], &message(JOHN, "a@x.test", &format!("{round}@t"), "Hi")).await;
        // By its id: a kill before the outcome was noted has an earlier one sent again.
        let id = format!("<{round}@t>");
        let arrived = || world.smtp.delivered().iter().any(|mail| mail.text().contains(&id));
        until(SOON, "the mail", arrived).await;
        relay.kill9().await;
        relay = config.start().await;
    }
    until(SOON, "the last refresh", || world.entra.refreshes(JOHN) >= 5).await;
    assert_eq!(relay.count_log("token failed"), 0, "{:#?}", relay.log());
}

#[tokio::test]
async fn tokens_are_refreshed_ahead_of_expiry_and_one_at_a_time() {
    let world = World::start().await;
    world.entra.set_expires_in(3);
    world.entra.set_delay(Duration::from_millis(200));
    let (_config, relay) = company::start(&world).await;
    for n in 0..30 {
        relay.send(BOUNCE, &["a@x.test"], &message(JOHN, "a@x.test", &format!("{n}@t"), "Hi")).await;
    }
    until(SOON, "all mails", || world.smtp.count() == 30).await;
    until(SOON, "several refreshes", || world.entra.refreshes(JOHN) >= 3).await;
    assert_eq!(world.entra.max_in_flight(JOHN), 1);
    assert_eq!(relay.count_log("token failed"), 0, "{:#?}", relay.log());
    assert!(relay.count_log("token refreshed") >= 3);
}

#[tokio::test]
async fn a_mailbox_that_needs_consent_says_so_once_and_its_mail_waits_for_it() {
    let world = World::start().await;
    let config = company::config(&world);
    company::connect(&world, &config).await;
    let expired =
        Answer::error(400, "invalid_grant", 700_082, "The refresh token has expired due to inactivity.");
    world.entra.script(Rule::new((), expired).always().only(JOHN));
    let relay = config.start().await;
    let line = relay.wait_for_log("token failed").await;
    for part in ["ERROR", JOHN, "AADSTS700082", "consent", "outlook-relay connect"] {
        assert!(line.contains(part), "{part}: {line}");
    }
    relay.send(BOUNCE, &["a@x.test"], &message(JOHN, "a@x.test", "waits@t", "Hi")).await;
    let status = config.cli(&["status"]).await;
    assert_eq!(status.code, Some(1), "{status:?}");
    assert!(status.stdout.contains("AADSTS700082") && status.stdout.contains("remedy"), "{}", status.stdout);
    assert_eq!(relay.count_log("token failed"), 1);

    // The owner consents while the daemon runs: taken up by itself, and the mail goes out.
    world.entra.clear();
    config.connect(JOHN, &world.entra.add_mailbox(JOHN)).await.success();
    until(SOON, "the mail that waited", || world.smtp.count() == 1).await;
    relay.wait_for_log("mailbox recovered").await;
    assert_eq!(config.cli(&["status"]).await.code, Some(0));
}

#[tokio::test]
async fn a_mailbox_that_nobody_connected_says_how() {
    let world = World::start().await;
    let config = company::config(&world);
    let relay = config.start().await;
    let line = relay.wait_for_log("token failed").await;
    assert!(line.contains("outlook-relay connect"), "{line}");
    let reply = relay.send(BOUNCE, &["a@x.test"], &message(JOHN, "a@x.test", "1@t", "Hi")).await;
    assert_eq!(reply.code, 250, "accepting does not depend on tokens");
    config.connect(JOHN, &world.entra.add_mailbox(JOHN)).await.success();
    until(SOON, "the mail", || world.smtp.count() == 1).await;
}

#[tokio::test]
async fn every_class_of_token_trouble_keeps_the_token_and_the_mail() {
    let cases = [
        (
            Answer::error(503, "temporarily_unavailable", 90_033, "A transient error has occurred."),
            "transient",
        ),
        (Answer::html(502, "<html>Bad Gateway</html>"), "transient"),
        (Answer::Cut, "transient"),
        (
            Answer::error(401, "invalid_client", 7_000_222, "The provided client secret keys are expired."),
            "administrator",
        ),
        (
            Answer::error(
                400,
                "invalid_grant",
                50_173,
                "The provided grant has expired due to it being revoked.",
            ),
            "consent",
        ),
        (
            Answer::error(400, "invalid_grant", 65_001, "The user or administrator has not consented."),
            "consent",
        ),
        (
            Answer::error(400, "unauthorized_client", 700_016, "Application was not found in the directory."),
            "administrator",
        ),
    ];
    for (answer, class) in cases {
        let world = World::start().await;
        let config = company::config(&world);
        company::connect(&world, &config).await;
        world.entra.script(Rule::new((), answer.clone()).always().only(JOHN));
        let mut relay = config.start().await;
        let line = relay.wait_for_log("token failed").await;
        assert!(line.contains(class), "{class}: {line}");
        let reply = relay.send(BOUNCE, &["a@x.test"], &message(JOHN, "a@x.test", "1@t", "Hi")).await;
        assert_eq!(reply.code, 250);
        let secrets =
            [world.entra.refresh_tokens(), vec![crate::support::entra::CLIENT_SECRET.to_owned()]].concat();
        for line in relay.log() {
            assert!(!secrets.iter().any(|secret| line.contains(secret.as_str())), "{line}");
        }
        relay.kill9().await;
        // The trouble is over: the token that was there all along still works.
        world.entra.clear();
        let _relay = config.start().await;
        until(SOON, class, || world.smtp.count() == 1).await;
    }
}

#[tokio::test]
async fn an_app_signs_in_without_anybody() {
    let world = World::start().await;
    let mut config = world.config();
    config.text("microsoft", "grant", "client_credentials");
    config.mailbox(JOHN, &[]);
    world.entra.set_app_mailbox(JOHN);
    let relay = config.start().await;
    relay.send(BOUNCE, &["a@x.test"], &message(JOHN, "a@x.test", "app@t", "Hi")).await;
    until(SOON, "the mail", || world.smtp.count() == 1).await;
    let request = &world.entra.requests()[0];
    assert_eq!(request.grant, "client_credentials");
    assert_eq!(request.scope.as_deref(), Some("https://outlook.office365.com/.default"));
    let refused = config.connect(JOHN, "whatever").await;
    assert_eq!(refused.code, Some(1));
    assert!(refused.stderr.contains("client_credentials"), "{refused:?}");
}

#[tokio::test]
async fn a_public_client_sends_no_secret() {
    let world = World::start().await;
    world.entra.set_client(crate::support::entra::CLIENT_ID, None);
    let mut config = company::config(&world);
    config.unset("microsoft", "client_secret_file");
    company::connect(&world, &config).await;
    let _relay = config.start().await;
    until(SOON, "a token", || world.entra.refreshes(JOHN) == 1).await;
    assert!(world.entra.requests().iter().all(|request| request.client_secret.is_none()));
}
