//! One connection to the scripted token endpoint, and what Microsoft would answer.

use std::collections::HashMap;
use std::sync::Arc;

use aws_lc_rs::{digest, hmac, signature};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde_json::{Value, json};
use tokio::net::TcpStream;

use super::entra::{Answer, RefreshToken, Shared, State, TokenRequest, uuid};
use super::entra_sign_in::{Code, sign_in};
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
    let (path, query) = request.path.split_once('?').unwrap_or((&request.path, ""));
    let mut path = path.trim_start_matches('/').splitn(2, '/');
    let tenant = path.next().unwrap_or_default().to_owned();
    match (request.method.as_str(), path.next()) {
        ("POST", Some("oauth2/v2.0/token")) => {}
        ("POST", Some("oauth2/v2.0/devicecode")) => return device_code(shared, &form),
        ("GET" | "POST", Some("oauth2/v2.0/authorize")) => return sign_in(shared, request, query),
        _ => return Answer::html(404, "<h1>Not found</h1>"),
    }
    let (client_id, client_secret) = credentials(request, &form);
    let refresh_token = form.get("refresh_token").cloned();
    let (seen, delay) = {
        let mut state = shared.state.lock().unwrap();
        let mailbox = refresh_token.as_ref().and_then(|token| state.refresh.get(token));
        let seen = TokenRequest {
            at: jiff::Timestamp::now(),
            endpoint: format!("http://{}{}", request.header("host").unwrap_or_default(), request.path),
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
    if let Err(answer) = authenticate(&mut state, request) {
        return answer;
    }
    let mut openid = false;
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
                Some(Code { mailbox: None, .. }) => {
                    let text = "OAuth 2.0 device flow error. Authorization is pending. Continue polling.";
                    return Answer::error(400, "authorization_pending", 70_016, text);
                }
                Some(known) => {
                    if let Some(answer) = wrong_way_back(&known, request) {
                        return answer;
                    }
                    state.codes.remove(&code);
                    state.used_codes.insert(code);
                    openid = known.openid;
                    known.mailbox.unwrap_or_default()
                }
                None if state.used_codes.contains(&code) => {
                    let text = "OAuth2 Authorization code was already redeemed.";
                    return Answer::error(400, "invalid_grant", 54_005, text);
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
    let answer = Answer::json(
        200,
        &json!({
            "token_type": "Bearer",
            "scope": "https://outlook.office.com/IMAP.AccessAsUser.All https://outlook.office.com/SMTP.Send",
            "expires_in": state.expires_in,
            "ext_expires_in": state.expires_in,
            "access_token": shared.access_token(&mailbox, "user", lifetime),
            "refresh_token": refresh_token,
        }),
    );
    if openid { answer.member("id_token", id_token(&state.client_id, &mailbox).into()) } else { answer }
}

/// Who signed in (OpenID Connect Core section 2). Nobody here checks its signature.
fn id_token(client_id: &str, account: &str) -> String {
    let now = jiff::Timestamp::now().as_second();
    let claims = json!({
        "aud": client_id,
        "iss": "https://login.microsoftonline.com/test/v2.0",
        "iat": now,
        "nbf": now,
        "exp": now + 3600,
        "name": "Somebody",
        "preferred_username": account,
        "sub": uuid(),
        "ver": "2.0",
    });
    format!(
        "{}.{}.{}",
        URL_SAFE_NO_PAD.encode(r#"{"typ":"JWT","alg":"RS256"}"#),
        URL_SAFE_NO_PAD.encode(claims.to_string()),
        URL_SAFE_NO_PAD.encode("signature")
    )
}

/// An authorization code counts with the same redirect URI and with PKCE's verifier only.
fn wrong_way_back(code: &Code, request: &TokenRequest) -> Option<Answer> {
    let (redirect_uri, challenge) = code.sent_to.as_ref()?;
    if request.form.get("redirect_uri") != Some(redirect_uri) {
        return Some(Answer::error(400, "invalid_client", 50_011, "The redirect URI does not match."));
    }
    let verifier = request.form.get("code_verifier").map(String::as_str).unwrap_or_default();
    let hash = digest::digest(&digest::SHA256, verifier.as_bytes());
    (URL_SAFE_NO_PAD.encode(hash) != *challenge).then(|| {
        let text =
            "The Code_Verifier does not match the code_challenge supplied in the authorization request.";
        Answer::error(400, "invalid_grant", 501_481, text)
    })
}

/// Whether the client is who it says.
fn authenticate(state: &mut State, request: &TokenRequest) -> Result<(), Answer> {
    let refused = |code: u32, text: &str| Err(Answer::error(401, "invalid_client", code, text));
    if let Some((certificate, public_key)) = state.certificate.clone() {
        let assertion = request.form.get("client_assertion").map(String::as_str).unwrap_or_default();
        return match check_assertion(assertion, &certificate, &public_key, request) {
            Ok(id) if !state.assertions.contains(&id) && request.client_secret.is_none() => {
                state.assertions.insert(id);
                Ok(())
            }
            Ok(_) => refused(50_013, "The assertion was used before, or a secret came with it."),
            Err(why) => refused(700_027, &format!("Client assertion failed validation: {why}.")),
        };
    }
    match (&state.client_secret, &request.client_secret) {
        (_, _) if request.form.contains_key("client_assertion") => refused(
            700_027,
            "The certificate with identifier used to sign the client assertion is not registered.",
        ),
        (Some(right), Some(given)) if right == given => Ok(()),
        (None, None) => Ok(()),
        (Some(_), Some(_)) => refused(7_000_215, "Invalid client secret provided."),
        (None, Some(_)) => {
            let text =
                "Client is public so neither 'client_assertion' nor 'client_secret' should be presented.";
            refused(700_025, text)
        }
        (Some(_), None) => {
            let text = "The request body must contain the following parameter: 'client_assertion' or 'client_secret'.";
            refused(7_000_218, text)
        }
    }
}

/// Checks a `private_key_jwt` as Microsoft does; gives its `jti`.
fn check_assertion(
    assertion: &str,
    certificate: &[u8],
    public_key: &[u8],
    request: &TokenRequest,
) -> Result<String, &'static str> {
    let assertion_type = request.form.get("client_assertion_type").map(String::as_str);
    if assertion_type != Some("urn:ietf:params:oauth:client-assertion-type:jwt-bearer") {
        return Err("client_assertion_type");
    }
    let (signed, signature) = assertion.rsplit_once('.').ok_or("no JWT")?;
    let signature = URL_SAFE_NO_PAD.decode(signature).map_err(|_| "no JWT")?;
    signature::UnparsedPublicKey::new(&signature::RSA_PSS_2048_8192_SHA256, public_key)
        .verify(signed.as_bytes(), &signature)
        .map_err(|_| "signature")?;
    let part =
        |text: &str| -> Option<Value> { serde_json::from_slice(&URL_SAFE_NO_PAD.decode(text).ok()?).ok() };
    let (header, claims) = signed.split_once('.').ok_or("no JWT")?;
    let (header, claims) = (part(header).ok_or("header")?, part(claims).ok_or("claims")?);
    let thumbprint = URL_SAFE_NO_PAD.encode(digest::digest(&digest::SHA256, certificate));
    if header != json!({"alg": "PS256", "typ": "JWT", "x5t#S256": thumbprint}) {
        return Err("header");
    }
    let now = jiff::Timestamp::now().as_second();
    let lives = claims["exp"].as_i64().ok_or("exp")? - now;
    if !(1..=600).contains(&lives) || claims["nbf"].as_i64().ok_or("nbf")? > now {
        return Err("its time");
    }
    if claims["aud"] != request.endpoint.as_str() {
        return Err("aud");
    }
    if claims["iss"] != request.client_id.as_str() || claims["sub"] != claims["iss"] {
        return Err("iss, sub");
    }
    claims["jti"].as_str().filter(|id| id.len() >= 16).map(str::to_owned).ok_or("jti")
}

/// The start of a device flow: a code nobody has consented to. [`Entra::codes`] shows it, [`Entra::add_code`] consents.
fn device_code(shared: &Shared, form: &HashMap<String, String>) -> Answer {
    let code = format!("DAQAB{}", uuid());
    let openid = form.get("scope").is_some_and(|scope| scope.split(' ').any(|scope| scope == "openid"));
    shared.state.lock().unwrap().codes.insert(code.clone(), Code { openid, ..Code::default() });
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
