//! Calls to Odoo, in the protocol that the configuration names. What comes back is sorted out in [`answers`].

use super::answers::{self, Broken, Returned, Taken};
use super::intake::Intake;
use super::json2::{self, Condition};
use super::version::Version;
use super::xmlrpc::{self, Caller, Reply};
use super::{GatewayConfig, Protocol};
use crate::failure::{Class, Failure, chain};
use crate::health::patiently;
use crate::message;
use dxr::Value;
use reqwest::header::{AUTHORIZATION, CONNECTION, CONTENT_TYPE, HeaderValue, LOCATION};
use secrecy::ExposeSecret;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// The largest answer that is read, in bytes. The longest seen are tracebacks, of some tens of kB.
const LARGEST_ANSWER: usize = 256 * 1024;

/// Who asks Odoo.
pub(super) struct Client {
    pub(super) config: GatewayConfig,
    http: reqwest::Client,
    /// Who `login` is, once Odoo has said it; XML-RPC only.
    uid: Mutex<Option<i32>>,
}

/// An answer: its status, where it redirects to, and its text unless that is too long.
struct Answer {
    status: u16,
    location: Option<String>,
    text: Option<String>,
}

impl Client {
    /// A client that nobody has signed in with yet. `http` should follow no redirects: they turn a POST into a GET.
    pub(super) fn new(config: GatewayConfig, http: reqwest::Client) -> Self {
        Self { config, http, uid: Mutex::new(None) }
    }

    /// Whether Odoo knows login and password, or the API key. Returns the user's id.
    pub(super) async fn sign_in(&self) -> Result<i64, Failure> {
        // No message is in this call, so no answer to it, whatever it says, is a message's fault.
        let odoos = |failure: Failure| match failure.class {
            Class::Message => Failure { class: Class::Transient, ..failure },
            _ => failure,
        };
        match self.config.protocol {
            Protocol::XmlRpc => self.authenticate().await.map(i64::from),
            Protocol::Json2 => {
                let context = self.json("res.users", "context_get", b"{}".to_vec()).await;
                context.and_then(|context| answers::of_context(&context))
            }
        }
        .map_err(odoos)
    }

    /// Feeds a message to `message_process`.
    pub(super) async fn message_process(&self, raw: &[u8], intake: &Intake) -> Result<Taken, Failure> {
        let model = &self.config.gateway_model;
        let returned = match self.config.protocol {
            Protocol::XmlRpc => {
                self.signed_in(|caller| xmlrpc::message_process(caller, model, intake, raw)).await?
            }
            Protocol::Json2 => {
                let body = json2::message_process(intake, &message::text(raw))
                    .map_err(|error| answers::of_broken(Broken::Damaged, &chain(&error)))?;
                Returned::from(&self.json(model, "message_process", body).await?)
            }
        };
        Ok(answers::of_push(returned))
    }

    /// Whether a model has a record that meets all conditions.
    pub(super) async fn has(&self, model: &str, conditions: &[Condition<'_>]) -> Result<bool, Failure> {
        let returned = match self.config.protocol {
            Protocol::XmlRpc => {
                let domain = Value::Array(conditions.iter().map(xmlrpc::condition).collect());
                let call =
                    |caller: Caller<'_>| xmlrpc::execute(caller, model, "search_count", vec![domain.clone()]);
                self.signed_in(call).await?
            }
            Protocol::Json2 => {
                let body = json2::search_count(conditions);
                Returned::from(&self.json(model, "search_count", body).await?)
            }
        };
        answers::of_count(returned)
    }

    /// Which Odoo it is; nobody needs to sign in for that. `None`: it does not say.
    pub(super) async fn version(&self) -> Result<Option<Version>, Failure> {
        // Since Odoo 19.
        let request = self.http.get(format!("{}/web/version", self.config.url));
        let answer = self.answer(request).await?;
        let version = answer.text.filter(|_| answer.status == 200).and_then(|text| Version::from_json(&text));
        if version.is_some() {
            return Ok(version);
        }
        Ok(match self.xmlrpc("common", xmlrpc::version()).await? {
            Reply::Value(value) => Version::from_xmlrpc(&value),
            Reply::Fault { .. } => None,
        })
    }

    /// Calls `/xmlrpc/2/object` as the user. A cached uid that Odoo denies is asked for again, once.
    async fn signed_in(
        &self,
        body: impl Fn(Caller<'_>) -> Result<String, xmlrpc::Error>,
    ) -> Result<Returned, Failure> {
        let cached = *self.uid.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(uid) = cached {
            let reply = self.object(uid, &body).await?;
            if !matches!(reply, Reply::Fault { code: 3, .. }) {
                return answers::of_reply(&reply);
            }
        }
        let uid = self.sign_in().await?;
        let uid = i32::try_from(uid).map_err(|_| answers::of_broken(Broken::Damaged, "an impossible id"))?;
        answers::of_reply(&self.object(uid, &body).await?)
    }

    async fn object(
        &self,
        uid: i32,
        body: &impl Fn(Caller<'_>) -> Result<String, xmlrpc::Error>,
    ) -> Result<Reply, Failure> {
        let config = &self.config;
        let body =
            body(Caller { database: &config.database, uid, password: config.password.expose_secret() });
        self.xmlrpc("object", body).await
    }

    async fn authenticate(&self) -> Result<i32, Failure> {
        let config = &self.config;
        let body = xmlrpc::authenticate(&config.database, &config.login, config.password.expose_secret());
        let answer = self.xmlrpc("common", body).await?;
        let uid = answers::of_reply(&answer).and_then(answers::of_authenticate);
        *self.uid.lock().unwrap_or_else(PoisonError::into_inner) = uid.as_ref().ok().copied();
        uid
    }

    async fn xmlrpc(&self, service: &str, body: Result<String, xmlrpc::Error>) -> Result<Reply, Failure> {
        let body = body.map_err(|error| answers::of_broken(Broken::Damaged, &chain(&error)))?;
        let url = format!("{}/xmlrpc/2/{service}", self.config.url);
        let request = self.http.post(url).header(CONTENT_TYPE, "text/xml").body(body);
        let answer = self.answer(request).await?;
        if answer.status != 200 {
            return Err(answers::of_status(Protocol::XmlRpc, answer.status, answer.location.as_deref()));
        }
        let text = answer.text.ok_or_else(too_long)?;
        let reply = xmlrpc::read(&text).map_err(|error| {
            let broken = if text.contains("<methodResponse") { Broken::Damaged } else { Broken::NotOdoo };
            answers::of_broken(broken, &error.to_string())
        })?;
        Ok(match reply {
            Reply::Fault { code, text } => Reply::Fault { code, text: self.redacted(&text) },
            value @ Reply::Value(_) => value,
        })
    }

    async fn json(&self, model: &str, method: &str, body: Vec<u8>) -> Result<serde_json::Value, Failure> {
        let config = &self.config;
        let authorization = HeaderValue::from_str(&format!("bearer {}", config.password.expose_secret()));
        let mut authorization = authorization.map_err(|_| answers::of_unusable("password_file"))?;
        authorization.set_sensitive(true);
        let database =
            HeaderValue::from_str(&config.database).map_err(|_| answers::of_unusable("database"))?;
        let request = self
            .http
            .post(format!("{}/json/2/{model}/{method}", config.url))
            .header(AUTHORIZATION, authorization)
            .header("X-Odoo-Database", database)
            .header(CONTENT_TYPE, "application/json")
            .body(body);
        let Answer { status, location, text } = self.answer(request).await?;
        if status == 200 {
            let text = text.ok_or_else(too_long)?;
            return serde_json::from_str(&text)
                .map_err(|_| answers::of_broken(Broken::NotOdoo, "the answer is not JSON"));
        }
        let error = match &text {
            Some(text) => json2::error(text),
            // Odoo quotes the exception's arguments. A server before it says nothing as long.
            None => {
                Some(json2::Error { name: "an error".to_owned(), message: "too long to read".to_owned() })
            }
        };
        Err(match error {
            Some(error) => {
                answers::of_error(status, &self.redacted(&error.name), &self.redacted(&error.message))
            }
            None => answers::of_status(Protocol::Json2, status, location.as_deref()),
        })
    }

    async fn answer(&self, request: reqwest::RequestBuilder) -> Result<Answer, Failure> {
        let timeout = self.config.timeout;
        // Odoo keeps no connection open; a reused one could break with the message half sent.
        let request = request.header(CONNECTION, "close").timeout(timeout);
        let mut response = patiently(request.send()).await.map_err(|error| broken(error, timeout))?;
        let location = response.headers().get(LOCATION).and_then(|location| location.to_str().ok());
        let (status, location) = (response.status().as_u16(), location.map(str::to_owned));
        let mut bytes = Vec::new();
        while let Some(chunk) = patiently(response.chunk()).await.map_err(|error| broken(error, timeout))? {
            bytes.extend_from_slice(&chunk);
            if bytes.len() > LARGEST_ANSWER {
                return Ok(Answer { status, location, text: None });
            }
        }
        Ok(Answer { status, location, text: Some(String::from_utf8_lossy(&bytes).into_owned()) })
    }

    /// Odoo's words without the password or API key, which an exception may quote, as it is or as Python writes it.
    fn redacted(&self, text: &str) -> String {
        let password = self.config.password.expose_secret();
        let escaped = password.replace('\\', "\\\\").replace('\'', "\\'");
        let mut text = text.to_owned();
        for secret in [escaped.as_str(), password] {
            if !secret.is_empty() && text.contains(secret) {
                text = text.replace(secret, "[password]");
            }
        }
        text
    }
}

fn too_long() -> Failure {
    answers::of_broken(Broken::Damaged, "the answer is too long")
}

fn broken(error: reqwest::Error, timeout: Duration) -> Failure {
    // A URL may hold credentials.
    let error = error.without_url();
    if error.is_connect() {
        answers::of_broken(Broken::Connect, &chain(&error))
    } else if error.is_timeout() {
        // Odoo may be at it for as long as it does not give up itself; a shorter timeout says that it is faster.
        let said = format!("no answer after {} s", timeout.as_secs());
        answers::of_broken(Broken::Timeout, &said).wait(timeout.min(answers::ODOO_GIVES_UP))
    } else {
        answers::of_broken(Broken::Cut, &chain(&error))
    }
}
