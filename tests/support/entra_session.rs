//! One connection to the scripted token endpoint, and what Microsoft would answer.

use std::collections::HashMap;
use std::sync::Arc;

use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde_json::{Value, json};
use tokio::net::TcpStream;

use super::entra::{Answer, RefreshToken, Shared, State, TokenRequest, uuid};
use super::http::{self, Request};
use super::wire::Wire;

impl State {
    pub(super) fn new_refresh_token(&mut self, mailbox: &str) -> String {
        let token = format!("1.AXo{}", URL_SAFE_NO_PAD.encode(rand::random::<[u8; 48]>()));
        self.refresh.insert(token.clone(), RefreshToken { mailbox: mailbox.to_owned(), revoked: false });
        self.current.insert(mailbox.to_lowercase(), token.clone());
        token
    }
}

impl Shared {
    /// A JWT under 720 characters (see the limit of Dovecot's submission service), unlike any other.
    pub(super) fn access_token(&self, mailbox: &str, kind: &str, lifetime: i64) -> String {
        let now = jiff::Timestamp::now().as_second();
        let claims = json!({
            "aud": "https://outlook.office.com",
            "iss": "https://sts.windows.net/test/",
            "iat": now.min(now + lifetime),
            "nbf": now.min(now + lifetime) - 5,
            "exp": now + lifetime,
            "sub": mailbox,
            "upn": mailbox,
            "idtyp": kind,
            "jti": uuid(),
        });
        let signed = format!(
            "{}.{}",
            URL_SAFE_NO_PAD.encode(r#"{"typ":"JWT","alg":"HS256"}"#),
            URL_SAFE_NO_PAD.encode(claims.to_string())
        );
        let signature = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &self.key), signed.as_bytes());
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
    }

    fn claims(&self, token: &str) -> Option<Value> {
        let (signed, signature) = token.rsplit_once('.')?;
        let signature = URL_SAFE_NO_PAD.decode(signature).ok()?;
        hmac::verify(&hmac::Key::new(hmac::HMAC_SHA256, &self.key), signed.as_bytes(), &signature).ok()?;
        let (_, payload) = signed.split_once('.')?;
        serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload).ok()?).ok()
    }

    pub(super) fn opens(&self, user: &str, token: &str) -> bool {
        let Some(claims) = self.claims(token) else {
            return false;
        };
        let valid = claims["exp"].as_i64().is_some_and(|exp| exp > jiff::Timestamp::now().as_second());
        let who = claims["upn"].as_str().unwrap_or_default().to_lowercase();
        let user = user.to_lowercase();
        let delegates = &self.state.lock().unwrap().delegates;
        valid
            && (claims["idtyp"] == "app"
                || who == user
                || delegates.iter().any(|(by, of)| *by == who && *of == user))
    }
}

pub(super) async fn serve(shared: Arc<Shared>, stream: TcpStream) {
    let mut wire = Wire::new(stream);
    while let Ok(Some(request)) = http::read_request(&mut wire).await {
        match answer(&shared, &request).await {
            Answer::Http { status, content_type, headers, body } => {
                http::respond(&mut wire, status, &content_type, &headers, body.as_bytes(), false);
                if wire.flush().await.is_err() {
                    return;
                }
            }
            Answer::Cut | Answer::RotateThenCut => return,
            Answer::Silence => return wire.silence().await,
        }
    }
}

async fn answer(shared: &Shared, request: &Request) -> Answer {
    let form: HashMap<String, String> = url::form_urlencoded::parse(&request.body).into_owned().collect();
    let mut path = request.path.trim_start_matches('/').splitn(2, '/');
    let tenant = path.next().unwrap_or_default().to_owned();
    match (request.method.as_str(), path.next()) {
        ("POST", Some("oauth2/v2.0/token")) => {}
        ("POST", Some("oauth2/v2.0/devicecode")) => return device_code(shared),
        _ => return Answer::html(404, "<h1>Not found</h1>"),
    }
    let (client_id, client_secret) = credentials(request, &form);
    let refresh_token = form.get("refresh_token").cloned();
    let (seen, delay) = {
        let mut state = shared.state.lock().unwrap();
        let mailbox = refresh_token.as_ref().and_then(|token| state.refresh.get(token));
        let seen = TokenRequest {
            at: jiff::Timestamp::now(),
            tenant,
            grant: form.get("grant_type").cloned().unwrap_or_default(),
            client_id,
            client_secret,
            mailbox: mailbox.map(|known| known.mailbox.clone()),
            refresh_token,
            scope: form.get("scope").cloned(),
            form,
        };
        state.requests.push(seen.clone());
        (seen, state.delay)
    };
    let mailbox = seen.mailbox.clone().unwrap_or_default();
    let _in_flight = shared.in_flight.enter(&mailbox);
    tokio::time::sleep(delay).await;
    let answer = match shared.script.take(&(), |only| only.eq_ignore_ascii_case(&mailbox)) {
        Some(Answer::RotateThenCut) => {
            grant(shared, &seen);
            Answer::RotateThenCut
        }
        Some(scripted) => scripted,
        None => grant(shared, &seen),
    };
    shared.events.emit(|| {
        let outcome = match &answer {
            Answer::Http { status, .. } => status.to_string(),
            Answer::Cut | Answer::RotateThenCut => "cut".to_owned(),
            Answer::Silence => "silence".to_owned(),
        };
        format!("entra: {} {mailbox} -> {outcome}", seen.grant)
    });
    answer
}

/// The client's id and secret, from the form or from HTTP Basic (RFC 6749 section 2.3.1).
fn credentials(request: &Request, form: &HashMap<String, String>) -> (String, Option<String>) {
    let basic = request
        .header("authorization")
        .and_then(|value| value.strip_prefix("Basic "))
        .and_then(|value| STANDARD.decode(value).ok())
        .and_then(|value| String::from_utf8(value).ok());
    if let Some((id, secret)) = basic.as_deref().and_then(|pair| pair.split_once(':')) {
        let decode = |text: &str| {
            url::form_urlencoded::parse(text.as_bytes())
                .next()
                .map(|(key, _)| key.into_owned())
                .unwrap_or_default()
        };
        return (decode(id), Some(decode(secret)));
    }
    (form.get("client_id").cloned().unwrap_or_default(), form.get("client_secret").cloned())
}

/// What Microsoft would answer.
fn grant(shared: &Shared, request: &TokenRequest) -> Answer {
    let mut state = shared.state.lock().unwrap();
    if request.client_id != state.client_id {
        let text =
            format!("Application with identifier '{}' was not found in the directory.", request.client_id);
        return Answer::error(400, "unauthorized_client", 700_016, &text);
    }
    match (&state.client_secret, &request.client_secret) {
        (Some(right), Some(given)) if right == given => {}
        (None, None) => {}
        (Some(_), Some(_)) => {
            return Answer::error(401, "invalid_client", 7_000_215, "Invalid client secret provided.");
        }
        (None, Some(_)) => {
            let text =
                "Client is public so neither 'client_assertion' nor 'client_secret' should be presented.";
            return Answer::error(401, "invalid_client", 700_025, text);
        }
        (Some(_), None) => {
            let text = "The request body must contain the following parameter: 'client_assertion' or 'client_secret'.";
            return Answer::error(401, "invalid_client", 7_000_218, text);
        }
    }
    let mailbox = match request.grant.as_str() {
        "client_credentials" => {
            let mailbox = state.app_mailbox.clone().unwrap_or_else(|| "app@example.com".to_owned());
            let lifetime = state.lifetime.unwrap_or(state.expires_in);
            return Answer::json(
                200,
                &json!({
                    "token_type": "Bearer",
                    "expires_in": state.expires_in,
                    "ext_expires_in": state.expires_in,
                    "access_token": shared.access_token(&mailbox, "app", lifetime),
                }),
            );
        }
        "refresh_token" => {
            let token = request.refresh_token.clone().unwrap_or_default();
            let invalid =
                "The provided value for the input parameter 'refresh_token' or 'assertion' is not valid.";
            let Some(known) = state.refresh.get(&token).cloned() else {
                return Answer::error(400, "invalid_grant", 70_000, invalid);
            };
            if known.revoked {
                let text =
                    "The provided grant has expired due to it being revoked, a fresh auth token is needed.";
                return Answer::error(400, "invalid_grant", 50_173, text);
            }
            let is_current = state.current.get(&known.mailbox.to_lowercase()) == Some(&token);
            if !is_current && !state.old_tokens_work {
                return Answer::error(400, "invalid_grant", 70_000, invalid);
            }
            known.mailbox
        }
        "authorization_code" | "urn:ietf:params:oauth:grant-type:device_code" => {
            let code =
                request.form.get("code").or(request.form.get("device_code")).cloned().unwrap_or_default();
            match state.codes.get(&code).cloned() {
                Some(Some(mailbox)) => {
                    state.codes.remove(&code);
                    mailbox
                }
                Some(None) => {
                    let text = "OAuth 2.0 device flow error. Authorization is pending. Continue polling.";
                    return Answer::error(400, "authorization_pending", 70_016, text);
                }
                None => {
                    let text = "The provided authorization code or refresh token has expired or is invalid.";
                    return Answer::error(400, "invalid_grant", 70_008, text);
                }
            }
        }
        other => {
            let text = format!("The app requested an unsupported grant type '{other}'.");
            return Answer::error(400, "unsupported_grant_type", 70_003, &text);
        }
    };
    let refresh_token = state.new_refresh_token(&mailbox);
    let lifetime = state.lifetime.unwrap_or(state.expires_in);
    Answer::json(
        200,
        &json!({
            "token_type": "Bearer",
            "scope": "https://outlook.office.com/IMAP.AccessAsUser.All https://outlook.office.com/SMTP.Send",
            "expires_in": state.expires_in,
            "ext_expires_in": state.expires_in,
            "access_token": shared.access_token(&mailbox, "user", lifetime),
            "refresh_token": refresh_token,
        }),
    )
}

/// The start of a device flow: a code nobody has consented to. [`Entra::codes`] shows it, [`Entra::add_code`] consents.
fn device_code(shared: &Shared) -> Answer {
    let code = format!("DAQAB{}", uuid());
    shared.state.lock().unwrap().codes.insert(code.clone(), None);
    Answer::json(
        200,
        &json!({
            "user_code": "TEST12345",
            "device_code": code,
            "verification_uri": "https://microsoft.com/devicelogin",
            "expires_in": 900,
            "interval": 1,
            "message": "To sign in, use a web browser to open the page https://microsoft.com/devicelogin and enter the code TEST12345.",
        }),
    )
}
