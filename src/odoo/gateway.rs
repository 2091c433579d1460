//! The gateway: feeds received mail to `message_process` over XML-RPC, and keeps to what Odoo needs of a feeder.

use super::GatewayConfig;
use super::answers::{self, Broken, Taken};
use super::xmlrpc::{self, Caller, Reply};
use crate::address::Address;
use crate::clock;
use crate::failure::{Class, Failure, chain};
use crate::health::patiently;
use crate::mailbox::{Lasting, Trouble};
use dxr::Value;
use reqwest::header::{CONNECTION, CONTENT_TYPE, LOCATION};
use secrecy::ExposeSecret;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Message bytes at a time, over all mailboxes, in units of [`ROOM_UNIT`]: what is fetched waits here for Odoo.
const ROOM: u32 = 1024;

/// One unit of [`ROOM`], in bytes: 128 MiB in all.
const ROOM_UNIT: u64 = 128 * 1024;

/// Locks for Message-Ids. Two that fall on the same lock only wait for each other.
const LOCKS: usize = 1024;

/// The largest answer that is read, in bytes. The longest seen are tracebacks, of some tens of kB.
const LARGEST_ANSWER: usize = 256 * 1024;

/// Odoo's mail gateway; clones share it.
#[derive(Clone)]
pub struct Gateway(Arc<Inner>);

struct Inner {
    config: GatewayConfig,
    http: reqwest::Client,
    /// Who `login` is, once Odoo has said it.
    uid: Mutex<Option<i32>>,
    pushes: Semaphore,
    room: Arc<Semaphore>,
    /// One push at a time per Message-Id: the same mail comes to several mailboxes, and Odoo has no lock.
    locks: Vec<tokio::sync::Mutex<()>>,
    trouble: Trouble,
}

/// Room for a message on its way; given back when dropped.
#[derive(Debug)]
pub struct Room {
    _units: Option<OwnedSemaphorePermit>,
}

impl Gateway {
    /// A gateway that nobody has signed in to yet. `http` should follow no redirects: they turn a POST into a GET.
    pub fn new(config: GatewayConfig, http: reqwest::Client) -> Self {
        let trouble = Trouble::new("odoo failed", "odoo recovered", "odoo", String::new());
        let parallel = usize::try_from(config.parallel).unwrap_or(1);
        Self(Arc::new(Inner {
            config,
            http,
            uid: Mutex::new(None),
            pushes: Semaphore::new(parallel),
            room: Arc::new(Semaphore::new(ROOM as usize)),
            locks: std::iter::repeat_with(tokio::sync::Mutex::default).take(LOCKS).collect(),
            trouble,
        }))
    }

    /// Feeds a message. `model` takes it where no alias does. `message_id` is the one that `raw` holds.
    ///
    /// # Errors
    /// [`Class::Message`]: Odoo refuses this message. Any other class: Odoo is in trouble, and the message is not to
    /// blame; where [`Failure::retry_after`] is set, Odoo may still be working on the message for that long.
    pub async fn push(&self, raw: &[u8], model: Option<&str>, message_id: &str) -> Result<Taken, Failure> {
        let _alone = match self.0.locks.get(lock_of(message_id)) {
            Some(lock) => Some(patiently(lock.lock()).await),
            None => None,
        };
        let _turn = patiently(self.0.pushes.acquire()).await;
        let gateway_model = &self.0.config.gateway_model;
        let reply = self.signed_in(|caller| xmlrpc::message_process(caller, gateway_model, model, raw)).await;
        self.note(reply.and_then(|reply| answers::of_push(&reply)))
    }

    /// Whether Odoo has a message with this Message-Id. (It keeps none of the bounces and loops that it took.)
    ///
    /// # Errors
    /// [`Class::Message`]: Odoo cannot say. Any other class: Odoo is in trouble, or the user may not read messages.
    pub async fn knows(&self, message_id: &str) -> Result<bool, Failure> {
        let condition = ["message_id", "=", message_id].map(xmlrpc::string).to_vec();
        let known = self.has("mail.message", vec![condition]).await;
        // That it answers here does not end a trouble with taking mail.
        known.inspect_err(|failure| self.fail(failure))
    }

    /// Whether Odoo has noted that a message (by its Message-Id) bounced for an address: the only trace that a report
    /// leaves there, on the notification of a partner with this address. Every internal user may read those.
    ///
    /// # Errors
    /// `fault 4`: the user may not read notifications. [`Class::Message`]: Odoo cannot say. Any other failure: Odoo is
    /// in trouble.
    pub async fn bounced(&self, message_id: &str, recipient: &str) -> Result<bool, Failure> {
        // Odoo stores partners' addresses normalised by the same rule.
        let normalised = Address::normalise(recipient);
        let recipient = normalised.as_ref().map_or(recipient, Address::as_str);
        let condition = |field, value| [field, "=", value].map(xmlrpc::string).to_vec();
        let conditions = vec![
            condition("mail_message_id.message_id", message_id),
            condition("notification_status", "bounce"),
            condition("res_partner_id.email_normalized", recipient),
        ];
        self.has("mail.notification", conditions).await
    }

    /// Signs in anew: whether Odoo is there and knows login and password. Returns the user's id.
    ///
    /// # Errors
    /// Odoo is in trouble, or login, password or database are wrong.
    pub async fn sign_in(&self) -> Result<i32, Failure> {
        let uid = self.authenticate().await;
        uid.inspect_err(|failure| self.fail(failure))
    }

    /// Signs in anew, as [`Gateway::sign_in`], but only to know: a failure is no trouble of the gateway's.
    ///
    /// # Errors
    /// As [`Gateway::sign_in`].
    pub async fn try_sign_in(&self) -> Result<i32, Failure> {
        self.authenticate().await
    }

    /// Whether the user may read a model; changes nothing, and a failure is no trouble of the gateway's.
    ///
    /// # Errors
    /// The user may not, there is no such model, or Odoo is in trouble.
    pub async fn try_read(&self, model: &str) -> Result<(), Failure> {
        // No record has this id: Odoo only looks at the rights.
        let condition = vec![xmlrpc::string("id"), xmlrpc::string("="), Value::Integer(0)];
        self.has(model, vec![condition]).await.map(drop)
    }

    /// Waits for room for a message of this many bytes.
    pub async fn room(&self, size: u64) -> Room {
        let units = u32::try_from(size.div_ceil(ROOM_UNIT)).map_or(ROOM, |units| units.min(ROOM));
        let units = patiently(Arc::clone(&self.0.room).acquire_many_owned(units)).await;
        Room { _units: units.ok() }
    }

    /// How long after a push began Odoo may still be working on it, although nobody waits for it any more.
    pub fn settles_after(&self) -> Duration {
        self.0.config.timeout.min(answers::ODOO_GIVES_UP)
    }

    /// Odoo's trouble right now, if any.
    pub fn trouble(&self) -> Option<Lasting> {
        self.0.trouble.lasting()
    }

    /// Ends the trouble: nothing waits for Odoo any more, and it answers.
    pub(crate) fn well(&self) {
        self.0.trouble.well();
    }

    pub(crate) fn fail(&self, failure: &Failure) {
        if failure.class != Class::Message {
            self.0.trouble.fail(failure, clock::now());
        }
    }

    /// Odoo took or refused a message, so it works; any other failure is a trouble of its.
    fn note(&self, taken: Result<Taken, Failure>) -> Result<Taken, Failure> {
        match &taken {
            Err(failure) if failure.class != Class::Message => self.fail(failure),
            _ => self.well(),
        }
        taken
    }

    /// Whether a model has a record that meets all conditions.
    async fn has(&self, model: &str, conditions: Vec<Vec<Value>>) -> Result<bool, Failure> {
        let domain = Value::Array(conditions.into_iter().map(Value::Array).collect());
        let reply = self
            .signed_in(|caller| xmlrpc::execute(caller, model, "search_count", vec![domain.clone()]))
            .await?;
        answers::of_count(&reply)
    }

    /// Calls `/xmlrpc/2/object` as the user. A cached uid that Odoo denies is asked for again, once.
    async fn signed_in(
        &self,
        body: impl Fn(Caller<'_>) -> Result<String, xmlrpc::Error>,
    ) -> Result<Reply, Failure> {
        let cached = *self.0.uid.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(uid) = cached {
            let reply = self.object(uid, &body).await?;
            if !matches!(reply, Reply::Fault { code: 3, .. }) {
                return Ok(reply);
            }
        }
        let uid = self.authenticate().await?;
        self.object(uid, &body).await
    }

    async fn object(
        &self,
        uid: i32,
        body: &impl Fn(Caller<'_>) -> Result<String, xmlrpc::Error>,
    ) -> Result<Reply, Failure> {
        let config = &self.0.config;
        let body =
            body(Caller { database: &config.database, uid, password: config.password.expose_secret() });
        self.call("object", body).await
    }

    async fn authenticate(&self) -> Result<i32, Failure> {
        let config = &self.0.config;
        let body = xmlrpc::authenticate(&config.database, &config.login, config.password.expose_secret());
        // No message is in this call, so no answer to it, whatever it says, is a message's fault.
        let odoos = |failure: Failure| match failure.class {
            Class::Message => Failure { class: Class::Transient, ..failure },
            _ => failure,
        };
        let answer = self.call("common", body).await.map_err(odoos)?;
        let uid = answers::of_authenticate(&answer).map_err(odoos);
        *self.0.uid.lock().unwrap_or_else(PoisonError::into_inner) = uid.as_ref().ok().copied();
        uid
    }

    async fn call(&self, service: &str, body: Result<String, xmlrpc::Error>) -> Result<Reply, Failure> {
        let body = body.map_err(|error| answers::of_broken(Broken::Damaged, &chain(&error)))?;
        let config = &self.0.config;
        let response = self
            .0
            .http
            .post(format!("{}/xmlrpc/2/{service}", config.url))
            .header(CONTENT_TYPE, "text/xml")
            // Odoo keeps no connection open; a reused one could break with the message half sent.
            .header(CONNECTION, "close")
            .timeout(config.timeout)
            .body(body)
            .send();
        let response = patiently(response).await.map_err(|error| broken(error, config.timeout))?;
        let status = response.status().as_u16();
        if status != 200 {
            let location = response.headers().get(LOCATION).and_then(|location| location.to_str().ok());
            return Err(answers::of_status(status, location));
        }
        let answer = patiently(read(response, config.timeout)).await?;
        xmlrpc::read(&answer).map_err(|error| {
            let broken = if answer.contains("<methodResponse") { Broken::Damaged } else { Broken::NotOdoo };
            answers::of_broken(broken, &error.to_string())
        })
    }
}

/// The answer's text, up to [`LARGEST_ANSWER`].
async fn read(mut response: reqwest::Response, timeout: Duration) -> Result<String, Failure> {
    let mut answer = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| broken(error, timeout))? {
        answer.extend_from_slice(&chunk);
        if answer.len() > LARGEST_ANSWER {
            return Err(answers::of_broken(Broken::Damaged, "the answer is too long"));
        }
    }
    Ok(String::from_utf8_lossy(&answer).into_owned())
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

fn lock_of(message_id: &str) -> usize {
    let mut hasher = DefaultHasher::new();
    message_id.hash(&mut hasher);
    usize::try_from(hasher.finish() % LOCKS as u64).unwrap_or_default()
}
