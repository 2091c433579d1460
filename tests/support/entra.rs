//! Microsoft's token endpoint and sign-in page, scripted.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};

use super::entra_session::serve;
use super::entra_sign_in::Code;
use super::events::Events;
use super::gauge::Gauge;
use super::script::{Rule, Script};
use super::server::Server;

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
    Http { status: u16, content_type: String, headers: Vec<(String, String)>, body: String },
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
    /// The whole address that was asked.
    pub endpoint: String,
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
pub(super) struct RefreshToken {
    pub(super) mailbox: String,
    pub(super) revoked: bool,
}

pub(super) struct State {
    /// Every refresh token ever given out.
    pub(super) refresh: HashMap<String, RefreshToken>,
    /// The newest one per mailbox.
    pub(super) current: HashMap<String, String>,
    /// One-time codes of the consent flows, authorization and device.
    pub(super) codes: HashMap<String, Code>,
    /// Those that were redeemed.
    pub(super) used_codes: HashSet<String>,
    /// Who is signed in already, so that no page is shown.
    pub(super) account: Option<String>,
    /// The app's certificate and its public key (DER, PKCS #1): in place of the secret.
    pub(super) certificate: Option<(Vec<u8>, Vec<u8>)>,
    /// `jti` of the assertions seen.
    pub(super) assertions: HashSet<String>,
    pub(super) requests: Vec<TokenRequest>,
    pub(super) client_id: String,
    pub(super) client_secret: Option<String>,
    pub(super) old_tokens_work: bool,
    pub(super) expires_in: i64,
    pub(super) lifetime: Option<i64>,
    pub(super) delay: Duration,
    pub(super) app_mailbox: Option<String>,
    /// (who signed in, whose mailbox): full access.
    pub(super) delegates: Vec<(String, String)>,
}

pub(super) struct Shared {
    pub(super) state: Mutex<State>,
    pub(super) script: Script<(), Answer>,
    pub(super) in_flight: Gauge,
    pub(super) key: [u8; 32],
    pub(super) events: Events,
}

/// The endpoints `token`, `devicecode` and `authorize` below `/{tenant}/oauth2/v2.0/`, over plain HTTP on loopback.
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
                used_codes: HashSet::new(),
                account: None,
                certificate: None,
                assertions: HashSet::new(),
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
        self.state(|state| state.delegates.push((user.to_lowercase(), mailbox.to_lowercase())));
    }

    /// The app signs with this certificate (DER) instead of sending its secret; `public_key` as `rcgen` gives it raw.
    pub fn set_certificate(&self, certificate: &[u8], public_key: &[u8]) {
        self.state(|state| state.certificate = Some((certificate.to_vec(), public_key.to_vec())));
    }

    /// Whoever opens the sign-in page is signed in as this account and consents; `None`: the page asks.
    pub fn sign_in_as(&self, account: Option<&str>) {
        self.state(|state| state.account = account.map(str::to_owned));
    }

    /// `code` of an authorization or device flow; `mailbox` is who consented, `None` nobody yet.
    pub fn add_code(&self, code: &str, mailbox: Option<&str>) {
        self.state(|state| {
            state.codes.entry(code.to_owned()).or_default().mailbox = mailbox.map(str::to_owned)
        });
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

/// A random identifier in the shape of a UUID.
pub fn uuid() -> String {
    let n: u128 = rand::random();
    let hex = format!("{n:032x}");
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}
