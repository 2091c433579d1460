//! The token endpoint, asked by raw HTTP.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::entra::{Answer, CLIENT_ID, CLIENT_SECRET, Entra};
use crate::support::http::{post, request};
use crate::support::script::Rule;
use crate::support::wait::{SOON, until};

const JOHN: &str = "john@example.com";

async fn ask(entra: &Entra, parameters: &[(&str, &str)]) -> Option<(u16, Value)> {
    let body = url::form_urlencoded::Serializer::new(String::new()).extend_pairs(parameters).finish();
    let addr = entra.server.addr();
    let form = "application/x-www-form-urlencoded";
    let (status, body) = post(addr, "/common/oauth2/v2.0/token", form, &[], body.as_bytes()).await?;
    Some((status, serde_json::from_str(&body).unwrap()))
}

async fn refresh(entra: &Entra, token: &str) -> Option<(u16, Value)> {
    let parameters = [
        ("grant_type", "refresh_token"),
        ("refresh_token", token),
        ("client_id", CLIENT_ID),
        ("client_secret", CLIENT_SECRET),
    ];
    ask(entra, &parameters).await
}

#[tokio::test]
async fn a_refresh_rotates_the_token_and_gives_one_that_opens_the_mailbox() {
    let entra = Entra::start().await;
    let first = entra.add_mailbox(JOHN);
    let (status, answer) = refresh(&entra, &first).await.unwrap();
    assert_eq!(status, 200, "{answer}");
    let access = answer["access_token"].as_str().unwrap();
    assert!(access.len() < 720);
    let check = entra.check();
    assert!(check("John@Example.com", access));
    assert!(!check("jane@example.com", access));
    assert!(!check(JOHN, &format!("{access}A")));
    assert!(!check(JOHN, &entra.access_token(JOHN, -1)), "an expired token opened the mailbox");
    entra.allow_delegate(JOHN, "sales@example.com");
    assert!(check("sales@example.com", access));

    let second = answer["refresh_token"].as_str().unwrap();
    assert_ne!(second, first);
    assert_eq!(entra.refresh_token(JOHN).as_deref(), Some(second));
    assert_eq!(refresh(&entra, &first).await.unwrap().0, 200, "Microsoft keeps old refresh tokens valid");
    entra.set_old_tokens_work(false);
    let (status, answer) = refresh(&entra, &first).await.unwrap();
    assert_eq!((status, &answer["error"]), (400, &json!("invalid_grant")));
    entra.revoke(JOHN);
    let (_, answer) = refresh(&entra, second).await.unwrap();
    assert_eq!(answer["error_codes"], json!([50_173]));
    assert_eq!(entra.requests().len(), 4);
    assert_eq!(entra.requests()[0].mailbox.as_deref(), Some(JOHN));
}

#[tokio::test]
async fn the_client_is_authenticated() {
    let entra = Entra::start().await;
    let token = entra.add_mailbox(JOHN);
    let grant = ("grant_type", "refresh_token");
    let refresh = ("refresh_token", token.as_str());
    let id = ("client_id", CLIENT_ID);
    let code = async |parameters: &[(&str, &str)]| {
        ask(&entra, parameters).await.unwrap().1["error_codes"][0].as_u64().unwrap_or_default()
    };
    assert_eq!(code(&[grant, refresh, ("client_id", "other")]).await, 700_016);
    assert_eq!(code(&[grant, refresh, id, ("client_secret", "wrong")]).await, 7_000_215);
    assert_eq!(code(&[grant, refresh, id]).await, 7_000_218);
    entra.set_client(CLIENT_ID, None);
    assert_eq!(code(&[grant, refresh, id, ("client_secret", CLIENT_SECRET)]).await, 700_025);
    assert_eq!(code(&[grant, refresh, id]).await, 0);
    entra.set_app_mailbox("app@example.com");
    let (_, answer) = ask(&entra, &[("grant_type", "client_credentials"), id]).await.unwrap();
    assert!(answer.get("refresh_token").is_none());
    let access = answer["access_token"].as_str().unwrap();
    assert!(entra.check()(JOHN, access), "an app-only token opens every mailbox of the tenant");
}

#[tokio::test]
async fn scripted_answers_come_in_order_and_only_where_meant() {
    let entra = Entra::start().await;
    let (john, jane) = (entra.add_mailbox(JOHN), entra.add_mailbox("jane@example.com"));
    let expired =
        Answer::error(400, "invalid_grant", 700_082, "The refresh token has expired due to inactivity.")
            .member("suberror", json!("bad_token"))
            .header("Retry-After", "7");
    entra.script(Rule::new((), expired).only(JOHN));
    entra.script(Rule::new((), Answer::Cut).times(2).only(JOHN));
    assert_eq!(refresh(&entra, &jane).await.unwrap().0, 200);
    let (status, answer) = refresh(&entra, &john).await.unwrap();
    assert_eq!((status, &answer["suberror"]), (400, &json!("bad_token")));
    let text = answer["error_description"].as_str().unwrap();
    assert!(text.starts_with("AADSTS700082: The refresh token") && text.contains("Trace ID: "), "{text}");
    assert!(refresh(&entra, &john).await.is_none());
    assert!(refresh(&entra, &john).await.is_none());
    assert_eq!(entra.refresh_token(JOHN), Some(john.clone()), "a cut connection rotated the token");
    entra.answer_next(Answer::RotateThenCut);
    assert!(refresh(&entra, &john).await.is_none());
    assert_ne!(entra.refresh_token(JOHN), Some(john.clone()));
    entra.script(Rule::new((), Answer::html(503, "busy")).always());
    entra.clear();
    assert_eq!(refresh(&entra, &john).await.unwrap().0, 200);
}

#[tokio::test]
async fn requests_that_meet_are_counted() {
    let entra = Entra::start().await;
    let token = entra.add_mailbox(JOHN);
    entra.set_delay(Duration::from_secs(600));
    let both = async { tokio::join!(refresh(&entra, &token), refresh(&entra, &token)) };
    tokio::select! {
        _ = both => panic!("answered without the delay"),
        () = until(SOON, "two requests in flight", || entra.max_in_flight(JOHN) == 2) => {}
    }
    assert_eq!(entra.refreshes(JOHN), 2);
}

#[tokio::test]
async fn a_server_that_is_down_refuses_connections_and_comes_back() {
    let entra = Entra::start().await;
    let token = entra.add_mailbox(JOHN);
    entra.server.down().await;
    assert!(tokio::net::TcpStream::connect(entra.server.addr()).await.is_err());
    entra.server.up().await;
    assert_eq!(refresh(&entra, &token).await.unwrap().0, 200);
}

/// Opens the sign-in page; gives the status, and where it sends the browser.
async fn authorize(entra: &Entra, parameters: &[(&str, &str)], method: &str, form: &str) -> (u16, String) {
    let query = url::form_urlencoded::Serializer::new(String::new()).extend_pairs(parameters).finish();
    let path = format!("/common/oauth2/v2.0/authorize?{query}");
    let answer = request(entra.server.addr(), method, &path, &[], form.as_bytes()).await.unwrap();
    (answer.status, answer.header("location").to_owned())
}

/// RFC 7636's own example (appendix B).
const VERIFIER: &str = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk";
const CHALLENGE: &str = "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM";

fn sign_in() -> Vec<(&'static str, &'static str)> {
    vec![
        ("client_id", CLIENT_ID),
        ("response_type", "code"),
        ("response_mode", "query"),
        ("redirect_uri", "http://localhost:5/back"),
        ("scope", "openid offline_access"),
        ("state", "a b"),
        ("code_challenge", CHALLENGE),
        ("code_challenge_method", "S256"),
    ]
}

fn query(location: &str, name: &str) -> String {
    let url = url::Url::parse(location).unwrap();
    url.query_pairs().find(|(key, _)| key == name).map(|(_, value)| value.into_owned()).unwrap_or_default()
}

#[tokio::test]
async fn the_sign_in_page_asks_and_sends_the_browser_back() {
    let entra = Entra::start().await;
    let (status, _) = authorize(&entra, &sign_in(), "GET", "").await;
    assert_eq!(status, 200, "a page, since nobody is signed in");
    let (status, back) = authorize(&entra, &sign_in(), "POST", "login=john%40example.com&answer=no").await;
    assert_eq!((status, query(&back, "error").as_str()), (302, "access_denied"));
    let (status, back) = authorize(&entra, &sign_in(), "POST", "login=john%40example.com&answer=yes").await;
    assert!(status == 302 && back.starts_with("http://localhost:5/back?"), "{back}");
    assert_eq!(query(&back, "state"), "a b");
    entra.sign_in_as(Some(JOHN));
    assert_eq!(authorize(&entra, &sign_in(), "GET", "").await.0, 302);
    for missing in 0..sign_in().len() {
        let mut parameters = sign_in();
        let (name, _) = parameters.remove(missing);
        assert_eq!(authorize(&entra, &parameters, "GET", "").await.0, 400, "without {name}");
    }
    let mut evil = sign_in();
    evil[3].1 = "http://evil.example/";
    assert_eq!(authorize(&entra, &evil, "GET", "").await.0, 400);
}

#[tokio::test]
async fn an_authorization_code_counts_once_with_its_verifier_and_redirect_uri() {
    let entra = Entra::start().await;
    entra.sign_in_as(Some(JOHN));
    let (_, back) = authorize(&entra, &sign_in(), "GET", "").await;
    let code = query(&back, "code");
    let redeem = async |verifier: &str, redirect: &str| {
        let parameters = [
            ("grant_type", "authorization_code"),
            ("client_id", CLIENT_ID),
            ("client_secret", CLIENT_SECRET),
            ("code", code.as_str()),
            ("code_verifier", verifier),
            ("redirect_uri", redirect),
        ];
        ask(&entra, &parameters).await.unwrap().1
    };
    let right = "http://localhost:5/back";
    assert_eq!(redeem("wrong", right).await["error_codes"][0], 501_481);
    assert_eq!(redeem(VERIFIER, "http://localhost:5/").await["error_codes"][0], 50_011);
    let answer = redeem(VERIFIER, right).await;
    assert!(answer["refresh_token"].is_string() && answer["id_token"].is_string(), "{answer}");
    assert!(entra.check()(JOHN, answer["access_token"].as_str().unwrap()));
    assert_eq!(redeem(VERIFIER, right).await["error_codes"][0], 54_005);
}

#[tokio::test]
async fn a_device_code_is_pending_until_somebody_entered_it() {
    let entra = Entra::start().await;
    let body = format!("client_id={CLIENT_ID}&scope=openid");
    let form = "application/x-www-form-urlencoded";
    let path = "/common/oauth2/v2.0/devicecode";
    let (status, answer) = post(entra.server.addr(), path, form, &[], body.as_bytes()).await.unwrap();
    let answer: Value = serde_json::from_str(&answer).unwrap();
    assert_eq!((status, &answer["interval"]), (200, &json!(1)));
    let code = answer["device_code"].as_str().unwrap();
    let grant = ("grant_type", "urn:ietf:params:oauth:grant-type:device_code");
    let parameters =
        [grant, ("client_id", CLIENT_ID), ("client_secret", CLIENT_SECRET), ("device_code", code)];
    assert_eq!(ask(&entra, &parameters).await.unwrap().1["error"], "authorization_pending");
    entra.add_code(code, Some(JOHN));
    let (status, answer) = ask(&entra, &parameters).await.unwrap();
    assert!(status == 200 && answer["id_token"].is_string(), "{answer}");
    assert_eq!(ask(&entra, &parameters).await.unwrap().0, 400, "a second time");
}
