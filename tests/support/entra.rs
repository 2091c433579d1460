//! Microsoft's token endpoint, scripted.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde_json::{Value, json};
use tokio::net::TcpStream;

use super::events::Events;
use super::gauge::Gauge;
use super::http::{self, Request};
use super::script::{Rule, Script};
use super::server::Server;
use super::wire::Wire;

/// Says whether a token opens a mailbox: `(user, token)`. The doubles of Exchange ask it.
pub type TokenCheck = Arc<dyn Fn(&str, &str) -> bool + Send + Sync>;

/// The application as registered, unless a test sets another.
pub const CLIENT_ID: &str = "5c1e7a3e-0d5a-4c57-9e0a-3b0f6a2d9c11";
/// Its secret.
pub const CLIENT_SECRET: &str = "sEcReT~of.the-client_8Q";

/// A scripted answer in place of the right one.
#[derive(Clone)]
pub enum Answer {
    /// Any HTTP response.
    Http {
        status: u16,
        content_type: String,
        headers: Vec<(String, String)>,
        body: String,
    },
    /// The connection is closed without an answer; no token is rotated.
    Cut,
    /// The token is rotated, and the answer with the new one is lost on the way.
    RotateThenCut,
    /// No answer until the client gives up.
    Silence,
}

impl Answer {
    /// An error as Microsoft writes it: `error` (`invalid_grant`, …), the AADSTS number and its text.
    pub fn error(status: u16, error: &str, code: u32, text: &str) -> Self {
        let (trace, correlation) = (uuid(), uuid());
        let timestamp = jiff::Timestamp::now().strftime("%Y-%m-%d %H:%M:%SZ").to_string();
        let body = json!({
            "error": error,
            "error_description": format!(
                "AADSTS{code}: {text} Trace ID: {trace} Correlation ID: {correlation} Timestamp: {timestamp}"
            ),
            "error_codes": [code],
            "timestamp": timestamp,
            "trace_id": trace,
            "correlation_id": correlation,
            "error_uri": format!("https://login.microsoftonline.com/error?code={code}"),
        });
        Self::json(status, &body)
    }

    /// Any JSON.
    pub fn json(status: u16, body: &Value) -> Self {
        Self::Http {
            status,
            content_type: "application/json; charset=utf-8".to_owned(),
            headers: Vec::new(),
            body: body.to_string(),
        }
    }

    /// Something that is not JSON, as a gateway in between sends it.
    pub fn html(status: u16, body: &str) -> Self {
        Self::Http {
            status,
            content_type: "text/html".to_owned(),
            headers: Vec::new(),
            body: body.to_owned(),
        }
    }

    /// With one more header, such as `Retry-After`.
    pub fn header(mut self, name: &str, value: &str) -> Self {
        if let Self::Http { headers, .. } = &mut self {
            headers.push((name.to_owned(), value.to_owned()));
        }
        self
    }

    /// With one more member in its JSON, such as `suberror` or `claims`.
    pub fn member(mut self, name: &str, value: Value) -> Self {
        if let Self::Http { body, .. } = &mut self {
            let mut object: Value = serde_json::from_str(body).unwrap();
            object[name] = value;
            *body = object.to_string();
        }
        self
    }
}

/// One request to the token endpoint, as it came.
#[derive(Clone, Debug)]
pub struct TokenRequest {
    pub at: jiff::Timestamp,
    pub tenant: String,
    pub grant: String,
    pub client_id: String,
    pub client_secret: Option<String>,
    pub refresh_token: Option<String>,
    /// Whom the refresh token belongs to, if it is known.
    pub mailbox: Option<String>,
    pub scope: Option<String>,
    /// Every parameter.
    pub form: HashMap<String, String>,
}

#[derive(Clone)]
struct RefreshToken {
    mailbox: String,
    revoked: bool,
}

struct State {
    /// Every refresh token ever given out.
    refresh: HashMap<String, RefreshToken>,
    /// The newest one per mailbox.
    current: HashMap<String, String>,
    /// One-time codes of the consent flows, authorization and device: the mailbox once somebody consented.
    codes: HashMap<String, Option<String>>,
    requests: Vec<TokenRequest>,
    client_id: String,
    client_secret: Option<String>,
    old_tokens_work: bool,
    expires_in: i64,
    lifetime: Option<i64>,
    delay: Duration,
    app_mailbox: Option<String>,
    /// (who signed in, whose mailbox): full access.
    delegates: Vec<(String, String)>,
}

struct Shared {
    state: Mutex<State>,
    script: Script<(), Answer>,
    in_flight: Gauge,
    key: [u8; 32],
    events: Events,
}

/// The endpoint at `POST /{tenant}/oauth2/v2.0/token`, over plain HTTP on loopback.
pub struct Entra {
    /// For outages: `down` and `up`.
    pub server: Server,
    shared: Arc<Shared>,
}

impl Entra {
    pub async fn start() -> Self {
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                refresh: HashMap::new(),
                current: HashMap::new(),
                codes: HashMap::new(),
                requests: Vec::new(),
                client_id: CLIENT_ID.to_owned(),
                client_secret: Some(CLIENT_SECRET.to_owned()),
                old_tokens_work: true,
                expires_in: 3599,
                lifetime: None,
                delay: Duration::ZERO,
                app_mailbox: None,
                delegates: Vec::new(),
            }),
            script: Script::default(),
            in_flight: Gauge::default(),
            key: rand::random(),
            events: Events::default(),
        });
        let world = Arc::clone(&shared);
        let server = Server::start(move |stream, _| serve(Arc::clone(&world), stream)).await;
        Self { server, shared }
    }

    /// For the key `authority`.
    pub fn authority(&self) -> String {
        format!("http://{}", self.server.addr())
    }

    /// Consent was given: a first refresh token of this mailbox (one more, if it had some).
    pub fn add_mailbox(&self, mailbox: &str) -> String {
        self.shared.state.lock().unwrap().new_refresh_token(mailbox)
    }

    /// The newest refresh token.
    pub fn refresh_token(&self, mailbox: &str) -> Option<String> {
        self.state(|state| state.current.get(&mailbox.to_lowercase()).cloned())
    }

    /// Every refresh token ever given out, for tests that search logs for secrets.
    pub fn refresh_tokens(&self) -> Vec<String> {
        self.state(|state| state.refresh.keys().cloned().collect())
    }

    /// Password changed: no refresh token of this mailbox works any more (AADSTS50173).
    pub fn revoke(&self, mailbox: &str) {
        self.state(|state| {
            for token in state.refresh.values_mut() {
                token.revoked |= token.mailbox.eq_ignore_ascii_case(mailbox);
            }
        });
    }

    /// An access token without any request, valid for `lifetime` seconds (negative: expired).
    pub fn access_token(&self, mailbox: &str, lifetime: i64) -> String {
        self.shared.access_token(mailbox, "user", lifetime)
    }

    /// Another client id, or a public client (`None`), which must not send a secret.
    pub fn set_client(&self, id: &str, secret: Option<&str>) {
        self.state(|state| {
            state.client_id = id.to_owned();
            state.client_secret = secret.map(str::to_owned);
        });
    }

    /// Whether a rotated refresh token still works, as Microsoft's do (the default), or is refused.
    pub fn set_old_tokens_work(&self, work: bool) {
        self.state(|state| state.old_tokens_work = work);
    }

    /// `expires_in` of the answers, in seconds, which is also how long the tokens live.
    pub fn set_expires_in(&self, seconds: i64) {
        self.state(|state| state.expires_in = seconds);
    }

    /// Tokens that live shorter (or longer) than `expires_in` says; `None`: exactly as it says.
    pub fn set_lifetime(&self, seconds: Option<i64>) {
        self.state(|state| state.lifetime = seconds);
    }

    /// Every answer takes this long, so that requests can meet.
    pub fn set_delay(&self, delay: Duration) {
        self.state(|state| state.delay = delay);
    }

    /// Whose `upn` the tokens of the client_credentials grant carry (a real Dovecot looks at it).
    pub fn set_app_mailbox(&self, mailbox: &str) {
        self.state(|state| state.app_mailbox = Some(mailbox.to_owned()));
    }

    /// Gives `user` full access to the shared mailbox `mailbox`.
    pub fn allow_delegate(&self, user: &str, mailbox: &str) {
        self.state(|state| {
            state
                .delegates
                .push((user.to_lowercase(), mailbox.to_lowercase()))
        });
    }

    /// `code` of an authorization or device flow; `mailbox` is who consented, `None` nobody yet.
    pub fn add_code(&self, code: &str, mailbox: Option<&str>) {
        self.state(|state| state.codes.insert(code.to_owned(), mailbox.map(str::to_owned)));
    }

    /// The codes nobody has redeemed, such as the device codes given out.
    pub fn codes(&self) -> Vec<String> {
        self.state(|state| state.codes.keys().cloned().collect())
    }

    /// Scripts answers: `Rule::new((), Answer::…)`; `only` compares with the mailbox of the refresh token.
    pub fn script(&self, rule: Rule<(), Answer>) {
        self.shared.script.add(rule);
    }

    /// The next answer, to whoever asks.
    pub fn answer_next(&self, answer: Answer) {
        self.script(Rule::new((), answer));
    }

    /// Forgets every scripted answer.
    pub fn clear(&self) {
        self.shared.script.clear();
    }

    /// Every request so far.
    pub fn requests(&self) -> Vec<TokenRequest> {
        self.state(|state| state.requests.clone())
    }

    /// How many requests so far carried a refresh token of this mailbox.
    pub fn refreshes(&self, mailbox: &str) -> usize {
        self.shared.in_flight.total(mailbox)
    }

    /// The most requests at the same time for this mailbox; "" stands for those without a known refresh token.
    pub fn max_in_flight(&self, mailbox: &str) -> usize {
        self.shared.in_flight.max(mailbox)
    }

    /// Whether a token is genuine, unexpired, and opens the mailbox.
    pub fn check(&self) -> TokenCheck {
        let shared = Arc::clone(&self.shared);
        Arc::new(move |user, token| shared.opens(user, token))
    }

    /// The HS256 key, for a server that checks the tokens itself.
    pub fn signing_key(&self) -> &[u8] {
        &self.shared.key
    }

    pub fn events(&self) -> &Events {
        &self.shared.events
    }

    fn state<T>(&self, read: impl FnOnce(&mut State) -> T) -> T {
        read(&mut self.shared.state.lock().unwrap())
    }
}

impl State {
    fn new_refresh_token(&mut self, mailbox: &str) -> String {
        let token = format!("1.AXo{}", URL_SAFE_NO_PAD.encode(rand::random::<[u8; 48]>()));
        self.refresh.insert(
            token.clone(),
            RefreshToken {
                mailbox: mailbox.to_owned(),
                revoked: false,
            },
        );
        self.current.insert(mailbox.to_lowercase(), token.clone());
        token
    }
}

impl Shared {
    /// A JWT under 720 characters (see the limit of Dovecot's submission service), unlike any other.
    fn access_token(&self, mailbox: &str, kind: &str, lifetime: i64) -> String {
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
        hmac::verify(
            &hmac::Key::new(hmac::HMAC_SHA256, &self.key),
            signed.as_bytes(),
            &signature,
        )
        .ok()?;
        let (_, payload) = signed.split_once('.')?;
        serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload).ok()?).ok()
    }

    fn opens(&self, user: &str, token: &str) -> bool {
        let Some(claims) = self.claims(token) else {
            return false;
        };
        let valid = claims["exp"]
            .as_i64()
            .is_some_and(|exp| exp > jiff::Timestamp::now().as_second());
        let who = claims["upn"].as_str().unwrap_or_default().to_lowercase();
        let user = user.to_lowercase();
        let delegates = &self.state.lock().unwrap().delegates;
        valid
            && (claims["idtyp"] == "app"
                || who == user
                || delegates.iter().any(|(by, of)| *by == who && *of == user))
    }
}

async fn serve(shared: Arc<Shared>, stream: TcpStream) {
    let mut wire = Wire::new(stream);
    while let Ok(Some(request)) = http::read_request(&mut wire).await {
        match answer(&shared, &request).await {
            Answer::Http {
                status,
                content_type,
                headers,
                body,
            } => {
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
    let answer = match shared
        .script
        .take(&(), |only| only.eq_ignore_ascii_case(&mailbox))
    {
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
    (
        form.get("client_id").cloned().unwrap_or_default(),
        form.get("client_secret").cloned(),
    )
}

/// What Microsoft would answer.
fn grant(shared: &Shared, request: &TokenRequest) -> Answer {
    let mut state = shared.state.lock().unwrap();
    if request.client_id != state.client_id {
        let text = format!(
            "Application with identifier '{}' was not found in the directory.",
            request.client_id
        );
        return Answer::error(400, "unauthorized_client", 700_016, &text);
    }
    match (&state.client_secret, &request.client_secret) {
        (Some(right), Some(given)) if right == given => {}
        (None, None) => {}
        (Some(_), Some(_)) => {
            return Answer::error(
                401,
                "invalid_client",
                7_000_215,
                "Invalid client secret provided.",
            );
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
            let mailbox = state
                .app_mailbox
                .clone()
                .unwrap_or_else(|| "app@example.com".to_owned());
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
            let code = request
                .form
                .get("code")
                .or(request.form.get("device_code"))
                .cloned()
                .unwrap_or_default();
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

/// A random identifier in the shape of a UUID.
pub fn uuid() -> String {
    let n: u128 = rand::random();
    let hex = format!("{n:032x}");
    format!(
        "{}-{}-{}-{}-{}",
        &hex[..8],
        &hex[8..12],
        &hex[12..16],
        &hex[16..20],
        &hex[20..]
    )
}
