//! Connecting a mailbox: every way to consent, and every way in which it goes wrong.

use crate::company::{JANE, JOHN};
use crate::support::client::message;
use crate::support::entra::{Answer as Reply, CLIENT_ID, CLIENT_SECRET, Entra};
use crate::support::http::{Response, request};
use crate::support::relay;
use crate::support::tls::Tls;
use crate::support::wait::{SOON, until};
use crate::support::world::World;
use jiff::{SignedDuration, Timestamp};
use outlook_relay::address::Address;
use outlook_relay::config::Config;
use outlook_relay::consent::invite::{self, InviteError};
use outlook_relay::consent::{Answer, Connected, ConsentError, Consents};
use outlook_relay::mailbox::Mailbox;
use outlook_relay::store::Store;
use outlook_relay::tokens::endpoint;
use outlook_relay::{clock, tls};
use secrecy::ExposeSecret;
use std::collections::HashMap;
use std::net::SocketAddr;
use url::Url;

const REDIRECT: &str = "https://odoo.example.com/microsoft_outlook/confirm";
pub(crate) const SHARED: &str = "sales@example.com";

/// The sign-ins of a company, in this process.
struct Bed {
    entra: Entra,
    consents: Consents,
    store: Store,
    // Kept for its folder.
    _config: relay::Config,
}

impl Bed {
    async fn start(change: impl FnOnce(&Entra, &mut relay::Config)) -> Self {
        let (tls, entra) = (Tls::new(), Entra::start().await);
        let mut config = relay::Config::new();
        config.microsoft(&tls, &entra, "localhost:1", "localhost:1");
        config.text("odoo", "catchall_domain", "example.com");
        config.mailbox(JOHN, &[]);
        config.mailbox(JANE, &[]);
        config.mailbox(SHARED, &[("sign_in_as", "\"Jane@Example.com\"")]);
        change(&entra, &mut config);
        let loaded = Config::load(&config.write()).unwrap();
        let (store, writer) = Store::open(&loaded.store).await.unwrap();
        tokio::spawn(writer.run());
        let mailboxes: Vec<_> = loaded.mailboxes.into_iter().map(Mailbox::new).collect();
        let http = endpoint::http_client(&tls::client(None).unwrap()).unwrap();
        let consents = Consents::new(&mailboxes, store.clone(), http);
        Self { entra, consents, store, _config: config }
    }

    fn begin(&self, mailbox: &str) -> Url {
        let url = self.consents.begin(&address(mailbox), REDIRECT, "browser", clock::now());
        Url::parse(&url.unwrap()).unwrap()
    }

    /// The owner signs in as `account`; gives the state and the code.
    async fn signed_in(&self, mailbox: &str, account: &str) -> (String, Answer) {
        let url = self.begin(mailbox);
        self.entra.sign_in_as(Some(account));
        let back = browse(&url).await;
        let query = query(&Url::parse(back.header("location")).unwrap());
        let get = |name: &str| query.get(name).cloned().unwrap();
        (get("state"), Answer::Code(get("code")))
    }

    async fn finish(&self, state: &str, answer: Answer) -> Result<Connected, ConsentError> {
        self.consents.finish(state, answer, "browser", clock::now()).await
    }

    async fn kept(&self, mailbox: &str) -> Option<String> {
        let token = self.store.token(&address(mailbox)).await.unwrap();
        token.map(|token| token.refresh_token.expose_secret().to_owned())
    }
}

pub(crate) fn address(text: &str) -> Address {
    Address::try_from(text).unwrap()
}

fn query(url: &Url) -> HashMap<String, String> {
    url.query_pairs().into_owned().collect()
}

pub(crate) fn later(minutes: i64) -> Timestamp {
    clock::now() + SignedDuration::from_mins(minutes)
}

/// A browser, without following.
pub(crate) async fn browse(url: &Url) -> Response {
    let addr = SocketAddr::from(([127, 0, 0, 1], url.port().unwrap()));
    let path = &url[url::Position::BeforePath..];
    request(addr, "GET", path, &[], b"").await.unwrap()
}

#[tokio::test]
async fn the_browser_is_sent_with_all_that_microsoft_wants_and_the_token_is_kept() {
    let bed = Bed::start(|_, _| ()).await;
    let url = bed.begin(JOHN);
    assert_eq!(url.path(), "/example.onmicrosoft.com/oauth2/v2.0/authorize");
    let sent = query(&url);
    for (key, value) in [
        ("client_id", CLIENT_ID),
        ("response_type", "code"),
        ("response_mode", "query"),
        ("redirect_uri", REDIRECT),
        ("prompt", "select_account"),
        ("login_hint", JOHN),
        ("code_challenge_method", "S256"),
        (
            "scope",
            "https://outlook.office.com/SMTP.Send https://outlook.office.com/IMAP.AccessAsUser.All \
             offline_access openid profile email",
        ),
    ] {
        assert_eq!(sent.get(key).map(String::as_str), Some(value), "{key}");
    }
    assert!(sent["state"].len() >= 32 && sent["code_challenge"].len() == 43, "{sent:?}");
    assert_ne!(query(&bed.begin(JOHN))["state"], sent["state"]);

    let (state, code) = bed.signed_in(JOHN, "John@Example.com").await;
    let connected = bed.finish(&state, code).await.unwrap();
    assert_eq!(connected, Connected { mailbox: address(JOHN), account: "John@Example.com".to_owned() });
    assert_eq!(bed.kept(JOHN).await, bed.entra.refresh_token(JOHN));
    let requests = bed.entra.requests();
    assert_eq!(requests.len(), 1, "the new refresh token is not used here");
    assert_eq!(requests[0].grant, "authorization_code");
    assert_eq!(requests[0].client_secret.as_deref(), Some(CLIENT_SECRET));
    assert!(!format!("{:?}", bed.consents).contains("browser"), "the session shows");
}

#[tokio::test]
async fn a_sign_in_counts_once_in_its_own_browser_and_in_time() {
    let bed = Bed::start(|_, _| ()).await;
    let (state, code) = bed.signed_in(JOHN, JOHN).await;
    bed.finish(&state, code.clone()).await.unwrap();
    let kept = bed.kept(JOHN).await;
    let replayed = bed.finish(&state, code.clone()).await;
    assert!(matches!(replayed, Err(ConsentError::UnknownState)), "{replayed:?}");

    // A code that was redeemed, at a sign-in of its own.
    let (state, _) = bed.signed_in(JOHN, JOHN).await;
    let replayed = bed.finish(&state, code).await;
    assert!(
        matches!(&replayed, Err(ConsentError::Failed(failure)) if failure.code == "AADSTS54005"),
        "{replayed:?}"
    );

    // A code for another sign-in: PKCE's verifier is not its own.
    let (_, other) = bed.signed_in(JOHN, JOHN).await;
    let (state, _) = bed.signed_in(JOHN, JOHN).await;
    let swapped = bed.finish(&state, other).await;
    assert!(
        matches!(&swapped, Err(ConsentError::Failed(failure)) if failure.code == "AADSTS501481"),
        "{swapped:?}"
    );

    let (state, code) = bed.signed_in(JOHN, JOHN).await;
    let forged = bed.finish("forged", code.clone()).await;
    assert!(matches!(forged, Err(ConsentError::UnknownState)), "{forged:?}");
    let other = bed.consents.finish(&state, code.clone(), "another browser", clock::now()).await;
    assert!(matches!(other, Err(ConsentError::OtherSession)), "{other:?}");
    let again = bed.finish(&state, code).await;
    assert!(matches!(again, Err(ConsentError::UnknownState)), "{again:?}");

    let (state, code) = bed.signed_in(JOHN, JOHN).await;
    let late = bed.consents.finish(&state, code, "browser", later(11)).await;
    assert!(matches!(late, Err(ConsentError::Expired)), "{late:?}");
    let unknown = bed.consents.begin(&address("eve@example.com"), REDIRECT, "browser", clock::now());
    assert!(matches!(unknown, Err(ConsentError::UnknownMailbox(_))), "{unknown:?}");
    assert_eq!(bed.kept(JOHN).await, kept, "what was there before is still there");
}

#[tokio::test]
async fn a_newer_consent_wins_even_if_the_clock_went_back() {
    let bed = Bed::start(|_, _| ()).await;
    let (state, code) = bed.signed_in(JOHN, JOHN).await;
    bed.finish(&state, code).await.unwrap();
    let before = bed.kept(JOHN).await;
    let url = bed.consents.begin(&address(JOHN), REDIRECT, "browser", later(-60)).unwrap();
    let back = Url::parse(browse(&Url::parse(&url).unwrap()).await.header("location")).unwrap();
    let back = query(&back);
    let answer = Answer::Code(back["code"].clone());
    bed.consents.finish(&back["state"], answer, "browser", later(-60)).await.unwrap();
    assert_eq!(bed.kept(JOHN).await, bed.entra.refresh_token(JOHN));
    assert_ne!(bed.kept(JOHN).await, before);
}

#[tokio::test]
async fn only_the_right_account_connects_a_mailbox() {
    let bed = Bed::start(|_, _| ()).await;
    let (state, code) = bed.signed_in(JOHN, "jane@example.com").await;
    let wrong = bed.finish(&state, code).await.unwrap_err();
    let said = wrong.to_string();
    assert!(matches!(wrong, ConsentError::WrongAccount { .. }), "{wrong:?}");
    for words in ["jane@example.com signed in", "choose john@example.com", "sign_in_as"] {
        assert!(said.contains(words), "{said}");
    }
    assert_eq!(bed.kept(JOHN).await, None);
    assert_eq!(bed.kept(JANE).await, None);

    // A shared mailbox: somebody with full access signs in for it, and nobody else.
    assert_eq!(query(&bed.begin(SHARED))["login_hint"], JANE);
    let (state, code) = bed.signed_in(SHARED, SHARED).await;
    let wrong = bed.finish(&state, code).await.unwrap_err();
    assert!(
        matches!(&wrong, ConsentError::WrongAccount { wanted, .. } if wanted.as_str() == JANE),
        "{wrong:?}"
    );
    let (state, code) = bed.signed_in(SHARED, JANE).await;
    let connected = bed.finish(&state, code).await.unwrap();
    assert_eq!((connected.mailbox.as_str(), connected.account.as_str()), (SHARED, JANE));
    assert_eq!(bed.kept(SHARED).await, bed.entra.refresh_token(JANE));
    assert_eq!(bed.kept(JANE).await, None);
}

#[tokio::test]
async fn what_microsoft_refuses_is_explained() {
    let bed = Bed::start(|_, _| ()).await;
    let state = query(&bed.begin(JOHN))["state"].clone();
    let description = "AADSTS65004: User declined to consent to access the app. Trace ID: t-1".to_owned();
    let denied = bed.finish(&state, Answer::Refused { error: "access_denied".to_owned(), description }).await;
    let Err(ConsentError::Denied(failure)) = denied else { panic!("{denied:?}") };
    assert_eq!(failure.code, "AADSTS65004");
    assert!(failure.reply.contains("t-1") && failure.advice.contains("declined"), "{failure}");

    for (reply, code) in [
        (
            Reply::error(400, "invalid_grant", 70_008, "The provided authorization code has expired."),
            "AADSTS70008",
        ),
        (
            Reply::error(401, "invalid_client", 7_000_222, "The provided client secret keys are expired."),
            "AADSTS7000222",
        ),
        (Reply::html(502, "<html>"), "HTTP 502"),
        (Reply::Cut, "network"),
        (Reply::json(200, &serde_json::json!({"access_token": "opaque"})), "no_account"),
    ] {
        let (state, answer) = bed.signed_in(JOHN, JOHN).await;
        bed.entra.answer_next(reply);
        let failed = bed.finish(&state, answer).await;
        let Err(ConsentError::Failed(failure)) = failed else { panic!("{failed:?}") };
        assert_eq!(failure.code, code);
        assert!(!failure.advice.is_empty(), "{failure}");
    }
    assert_eq!(bed.kept(JOHN).await, None);
}

#[tokio::test]
async fn no_code_or_verifier_is_repeated_when_microsoft_repeats_it() {
    let bed = Bed::start(|_, _| ()).await;
    let (state, answer) = bed.signed_in(JOHN, JOHN).await;
    let Answer::Code(code) = answer.clone() else { panic!("a code") };
    bed.entra.answer_next(Reply::error(400, "invalid_grant", 9_002_313, &format!("{code} is malformed")));
    let failed = bed.finish(&state, answer.clone()).await.unwrap_err();
    let verifier = bed.entra.requests()[0].form["code_verifier"].clone();
    let shown = format!("{failed} {failed:?} {answer:?}");
    assert!(!shown.contains(&code) && !shown.contains(&verifier), "{shown}");
    assert!(shown.contains("[redacted]"), "{shown}");
}

#[tokio::test]
async fn a_public_client_sends_no_secret_in_any_flow() {
    let bed = Bed::start(|entra, config| {
        entra.set_client(CLIENT_ID, None);
        config.unset("microsoft", "client_secret_file");
    })
    .await;
    let (state, code) = bed.signed_in(JOHN, JOHN).await;
    bed.finish(&state, code).await.unwrap();
    let device = bed.consents.begin_device(&address(JANE)).await.unwrap();
    bed.entra.add_code(&bed.entra.codes()[0], Some(JANE));
    bed.consents.finish_device(device).await.unwrap();
    for request in bed.entra.requests() {
        assert!(request.client_secret.is_none(), "{request:?}");
        assert!(!request.form.contains_key("client_assertion"), "{request:?}");
    }
}

/// An RSA certificate beside the configuration instead of the secret.
fn certify(entra: &Entra, config: &mut relay::Config) {
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_RSA_SHA256).unwrap();
    let certificate = rcgen::CertificateParams::default().self_signed(&key).unwrap();
    config.secret("certificate.pem", &certificate.pem());
    config.secret("key.pem", &key.serialize_pem());
    config.text("microsoft", "client_certificate_file", "certificate.pem");
    config.text("microsoft", "client_key_file", "key.pem");
    config.unset("microsoft", "client_secret_file");
    entra.set_certificate(certificate.der(), key.public_key_raw());
}

#[tokio::test]
async fn a_certificate_signs_every_request_anew_and_no_secret_is_sent() {
    let bed = Bed::start(certify).await;
    let (state, code) = bed.signed_in(JOHN, JOHN).await;
    bed.finish(&state, code).await.unwrap();
    let device = bed.consents.begin_device(&address(JANE)).await.unwrap();
    let jane = async {
        until(SOON, "a poll", || bed.entra.requests().len() >= 2).await;
        bed.entra.add_code(&bed.entra.codes()[0], Some(JANE));
    };
    let (connected, ()) = tokio::join!(bed.consents.finish_device(device), jane);
    connected.unwrap();
    let requests = bed.entra.requests();
    assert!(requests.len() >= 3, "{requests:?}");
    let assertions: std::collections::HashSet<_> =
        requests.iter().map(|request| request.form["client_assertion"].clone()).collect();
    assert_eq!(assertions.len(), requests.len(), "an assertion was sent twice");
    assert!(requests.iter().all(|request| request.client_secret.is_none()));

    // The app has another certificate at Microsoft.
    let (state, answer) = bed.signed_in(JOHN, JOHN).await;
    bed.entra.set_certificate(b"another one", b"");
    let refused = bed.finish(&state, answer).await.unwrap_err();
    assert!(refused.to_string().contains("AADSTS700027"), "{refused}");
}

#[tokio::test]
async fn refreshes_and_app_only_tokens_are_signed_too() {
    for grant in ["refresh_token", "client_credentials"] {
        let world = World::start().await;
        let mut config = world.config();
        config.mailbox(JOHN, &[]);
        config.text("microsoft", "grant", grant);
        certify(&world.entra, &mut config);
        world.entra.set_app_mailbox(JOHN);
        let checked = config.cli(&["check"]).await.success();
        assert!(checked.contains("confidential client: it signs with its certificate"), "{checked}");
        if grant == "refresh_token" {
            config.connect(JOHN, &world.entra.add_mailbox(JOHN)).await.success();
        }
        let relay = config.start().await;
        relay.send("bounce@example.com", &["a@x.test"], &message(JOHN, "a@x.test", "1@t", "Hi")).await;
        until(SOON, "the mail", || world.smtp.count() == 1).await;
        assert_eq!(world.entra.requests()[0].grant, grant);
    }
}

#[tokio::test]
async fn an_invitation_is_for_its_mailbox_once_and_can_be_revoked() {
    let bed = Bed::start(|_, _| ()).await;
    let now = clock::now();
    let forged = bed.consents.invited("forged", now).await;
    assert!(matches!(forged, Err(InviteError::Invalid)), "no invitation was ever given out: {forged:?}");
    let token = invite::issue(&bed.store, &address(JOHN), later(60)).await.unwrap();
    let jane = invite::issue(&bed.store, &address(JANE), later(60)).await.unwrap();
    assert_eq!(bed.consents.invited(&token, now).await.unwrap(), address(JOHN));
    assert!(matches!(bed.consents.invited(&token, later(61)).await, Err(InviteError::Expired)));
    let (said, _) = token.split_once('.').unwrap();
    let (_, tag) = jane.split_once('.').unwrap();
    let spliced = bed.consents.invited(&format!("{said}.{tag}"), now).await;
    assert!(matches!(spliced, Err(InviteError::Invalid)), "{spliced:?}");

    let (state, code) = bed.signed_in(JOHN, JOHN).await;
    bed.finish(&state, code).await.unwrap();
    assert!(matches!(bed.consents.invited(&token, now).await, Err(InviteError::Revoked)), "a second time");
    assert_eq!(bed.consents.invited(&jane, now).await.unwrap(), address(JANE), "jane's goes on");
    bed.store.revoke_invites(&address(JANE)).await.unwrap();
    assert!(matches!(bed.consents.invited(&jane, now).await, Err(InviteError::Revoked)));
    let gone = invite::issue(&bed.store, &address("gone@example.com"), later(60)).await.unwrap();
    let error = bed.consents.invited(&gone, now).await.unwrap_err();
    assert!(matches!(error, InviteError::Unknown(_)), "{error:?}");
    assert!(error.to_string().contains("restarts the relay"), "{error}");
}

#[tokio::test]
async fn who_said_no_is_told_apart_from_what_nobody_who_signs_in_can_help() {
    let bed = Bed::start(|_, _| ()).await;
    for (error, description, denied) in [
        ("access_denied", "AADSTS65004: User declined to consent.", true),
        ("access_denied", "AADSTS90094: An administrator has to consent.", true),
        ("consent_required", "AADSTS65001: Nobody consented.", true),
        ("server_error", "AADSTS50033: A passing error.", false),
        ("temporarily_unavailable", "", false),
        ("invalid_client", "AADSTS650053: The app asked for a scope that does not exist.", false),
        ("invalid_request", "AADSTS900144: A parameter is missing.", false),
    ] {
        let state = query(&bed.begin(JOHN)).remove("state").unwrap();
        let answer = Answer::Refused { error: error.to_owned(), description: description.to_owned() };
        match bed.finish(&state, answer).await {
            Err(ConsentError::Denied(_)) => assert!(denied, "{error}"),
            Err(ConsentError::Failed(_)) => assert!(!denied, "{error}"),
            other => panic!("{error}: {other:?}"),
        }
    }
}
