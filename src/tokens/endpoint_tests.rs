//! What is sent to the token endpoint, what its answers mean, and that none of it is ever shown.

use super::bed::{Bed, CONSENT, eventually, http, john, mailbox, stored};
use super::scripted::{Answer, Endpoint};
use super::*;
use crate::microsoft::Credential;
use serde_json::json;
use std::collections::HashSet;

#[tokio::test]
async fn a_refresh_token_grant_sends_what_microsoft_wants() {
    let bed = Bed::start(Some(stored("refresh-0-secret", CONSENT)), []).await;
    bed.token().await.unwrap();
    let form = bed.endpoint.requests().remove(0);
    let sent: HashSet<(&str, &str)> =
        form.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let expected = [
        ("grant_type", "refresh_token"),
        ("refresh_token", "refresh-0-secret"),
        ("client_id", "app"),
        (
            "scope",
            "https://outlook.office.com/SMTP.Send https://outlook.office.com/IMAP.AccessAsUser.All offline_access",
        ),
    ];
    assert_eq!(sent, HashSet::from(expected), "a public client sends no secret");
}

#[tokio::test]
async fn an_app_only_grant_sends_its_secret_and_keeps_nothing() {
    let (bed, _writer) = Bed::without_writer(None, [], |config| {
        config.grant = Grant::ClientCredentials;
        config.credential = Credential::Secret(SecretString::from("app-secret"));
    })
    .await;
    assert_eq!(bed.token().await.unwrap().secret(), "access-1-secret");
    let form = bed.endpoint.requests().remove(0);
    assert_eq!(form["grant_type"], "client_credentials");
    assert_eq!(form["client_secret"], "app-secret");
    assert_eq!(form["scope"], "https://outlook.office365.com/.default");
    assert!(!form.contains_key("refresh_token") && !form.contains_key("authorization"));
    assert!(bed.store.token(&john()).await.unwrap().is_none());
}

#[tokio::test]
async fn every_strange_answer_is_transient_and_says_what_was_seen() {
    let json = "content-type: application/json\r\n";
    let long = "x".repeat(200_000);
    let cases = [
        (Answer::Cut, "network", "cannot be reached", 0),
        (Answer::Http(302, "location: http://127.0.0.1:1/\r\n", String::new()), "HTTP 302", "302", 0),
        (Answer::Http(429, "retry-after: 77\r\n", String::new()), "HTTP 429", "429", 77),
        (Answer::Http(404, "", "<html>".to_owned()), "HTTP 404", "404", 0),
        (Answer::Http(400, json, "[]".to_owned()), "HTTP 400", "400", 0),
        (Answer::error(503, "invalid_client", 7_000_222), "AADSTS7000222", "Words", 0),
        (Answer::error(400, "temporarily_unavailable", 1), "AADSTS1", "Words", 0),
        (Answer::error(400, "invalid_grant", 50_196), "AADSTS50196", "Words", 300),
        (Answer::Http(200, json, long), "answer", "65536 bytes", 0),
        (Answer::Http(200, json, "{\"access_token\":7}".to_owned()), "answer", "access_token", 0),
        (Answer::Http(200, "content-type: text/html\r\n", "<html>".to_owned()), "answer", "text/html", 0),
    ];
    let endpoint = Endpoint::start().await;
    let mailbox = mailbox("john@contoso.com", &endpoint, |_| ());
    let refresh_token = SecretString::from("refresh-0-secret");
    let http = http();
    for (answer, code, words, wait) in cases {
        endpoint.next(answer);
        let config = &mailbox.config.microsoft;
        let verdict = endpoint::request(config, Some(&refresh_token), &http, "john@contoso.com").await;
        let failure = verdict.unwrap_err().failure;
        assert_eq!((failure.class, failure.code.as_str()), (Class::Transient, code), "{failure}");
        assert!(failure.reply.contains(words), "{failure}");
        assert_eq!(failure.retry_after.unwrap_or_default().as_secs(), wait, "{failure}");
    }
}

/// Collects what is logged.
#[derive(Clone, Default)]
struct Log(Arc<std::sync::Mutex<Vec<u8>>>);

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn no_secret_is_ever_logged_or_shown() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .finish();
    // tracing caches for the whole process whether an event is wanted. With a single subscriber it asks the thread that
    // meets the event first, which may be another test's, without any; with a second one it asks both subscribers.
    let _second = tracing::Dispatch::new(tracing_subscriber::registry());
    let guard = tracing::subscriber::set_default(subscriber);
    let echo = json!({
        "error": "invalid_grant",
        "error_description": "AADSTS9002313: refresh-0-secret with very-secret-value is malformed",
        "suberror": "refresh-0-secret",
    });
    let broken = r#"{"access_token":["access-x-secret"],"refresh_token":"refresh-x-secret"}"#;
    let answers = [
        Answer::Http(200, "content-type: application/json\r\n", broken.to_owned()),
        Answer::json(400, &echo),
    ];
    let (bed, store_writer) =
        Bed::without_writer(Some(stored("refresh-0-secret", CONSENT)), answers, |config| {
            config.credential = Credential::Secret(SecretString::from("very-secret-value"));
        })
        .await;
    tokio::spawn(store_writer.run());
    let mut shown = format!("{:?}", bed.token().await.unwrap_err());
    bed.requests(2).await;
    eventually("the echo", || bed.state().failure.is_some_and(|failure| failure.code == "AADSTS9002313"))
        .await;
    let failure = bed.token().await.unwrap_err();
    assert!(failure.reply.contains("[redacted]"), "{failure}");
    shown.push_str(&format!("{failure:?}"));
    let newer = stored("refresh-new-secret", CONSENT + 1);
    shown.push_str(&format!("{newer:?}"));
    bed.store.keep_token(&john(), newer).await.unwrap();
    bed.tokens.reload().await.unwrap();
    let token = bed.token().await.unwrap();
    shown.push_str(&format!("{token:?} {:?} {:?}", bed.tokens, bed.mailbox));
    shown.push_str(&serde_json::to_string(&bed.state()).unwrap());
    drop(guard);
    shown.push_str(&String::from_utf8(log.0.lock().unwrap().clone()).unwrap());
    for event in ["token failed", "mailbox recovered", "token refreshed", "rotated=true"] {
        assert!(shown.contains(event), "{event} is missing");
    }
    for secret in ["-secret", "very-secret-value"] {
        let at = shown.find(secret).map(|at| &shown[at.saturating_sub(100)..at + 20]);
        assert_eq!(at, None);
    }
}
