//! The gateway: feeds received mail to `message_process`, and keeps to what Odoo needs of a feeder.

use super::answers::{self, Taken};
use super::client::Client;
use super::intake::Intake;
use super::version::Version;
use super::{GatewayConfig, Protocol};
use crate::address::Address;
use crate::clock;
use crate::failure::{Class, Failure};
use crate::health::patiently;
use crate::mailbox::{Lasting, Trouble};
use jiff::Timestamp;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;
use tokio::sync::{MutexGuard, Semaphore, SemaphorePermit};

/// Locks for Message-Ids. Two that fall on the same lock only wait for each other.
const LOCKS: usize = 1024;

/// Odoo's mail gateway; clones share it.
#[derive(Clone)]
pub struct Gateway(Arc<Inner>);

struct Inner {
    client: Client,
    pushes: Semaphore,
    /// One push at a time per Message-Id: the same mail comes to several mailboxes, and Odoo has no lock.
    locks: Vec<tokio::sync::Mutex<()>>,
    /// When Odoo last took a message, in milliseconds since 1970.
    took_at: AtomicI64,
    trouble: Trouble,
}

/// The right to push one message now; given back when dropped.
pub struct Turn<'a> {
    gateway: &'a Gateway,
    _alone: Option<MutexGuard<'a, ()>>,
    worker: Option<SemaphorePermit<'a>>,
}

impl Gateway {
    /// A gateway that nobody has signed in to yet. `http` should follow no redirects: they turn a POST into a GET.
    pub fn new(config: GatewayConfig, http: reqwest::Client) -> Self {
        let trouble = Trouble::new("odoo failed", "odoo recovered", "odoo", String::new());
        let parallel = usize::try_from(config.parallel).unwrap_or(1);
        Self(Arc::new(Inner {
            client: Client::new(config, http),
            pushes: Semaphore::new(parallel),
            locks: std::iter::repeat_with(tokio::sync::Mutex::default).take(LOCKS).collect(),
            took_at: AtomicI64::new(i64::MIN),
            trouble,
        }))
    }

    /// Waits until nobody pushes this Message-Id, and Odoo has a worker for us.
    pub async fn turn(&self, message_id: &str) -> Turn<'_> {
        let alone = match self.0.locks.get(lock_of(message_id)) {
            Some(lock) => Some(patiently(lock.lock()).await),
            None => None,
        };
        Turn { gateway: self, _alone: alone, worker: patiently(self.0.pushes.acquire()).await.ok() }
    }

    /// Feeds a message, once its [turn](Gateway::turn) has come. `message_id` is the one that `raw` holds.
    ///
    /// # Errors
    /// As [`Turn::push`].
    pub async fn push(&self, raw: &[u8], intake: &Intake, message_id: &str) -> Result<Taken, Failure> {
        self.turn(message_id).await.push(raw, intake).await
    }

    /// Whether Odoo has a message with this Message-Id. (It keeps none of the bounces and loops that it took.)
    ///
    /// # Errors
    /// [`Class::Message`]: Odoo cannot say. Any other class: Odoo is in trouble, or the user may not read messages.
    pub async fn knows(&self, message_id: &str) -> Result<bool, Failure> {
        let condition = ("message_id", "=", message_id.into());
        let known = self.0.client.has("mail.message", &[condition]).await;
        // That it answers here does not end a trouble with taking mail.
        known.inspect_err(|failure| self.fail(failure))
    }

    /// Whether Odoo has any of the messages with these Message-Ids.
    ///
    /// # Errors
    /// As [`Gateway::knows`].
    pub async fn knows_any(&self, message_ids: &[String]) -> Result<bool, Failure> {
        let condition = ("message_id", "in", message_ids.into());
        let known = self.0.client.has("mail.message", &[condition]).await;
        known.inspect_err(|failure| self.fail(failure))
    }

    /// Whether Odoo took a message, anybody's, since then.
    pub fn took_since(&self, then: Timestamp) -> bool {
        self.0.took_at.load(Ordering::Relaxed) > then.as_millisecond()
    }

    /// The company's own domains.
    pub fn domains(&self) -> &[String] {
        &self.0.client.config.domains
    }

    /// Whether Odoo has noted that a message (by its Message-Id) bounced for an address: the only trace that a report
    /// leaves there, on the notification of a partner with this address. Every internal user may read those.
    ///
    /// # Errors
    /// [`answers::is_no_rights`]: the user may not read notifications. [`Class::Message`]: Odoo cannot say. Any other failure: Odoo is
    /// in trouble.
    pub async fn bounced(&self, message_id: &str, recipient: &str) -> Result<bool, Failure> {
        // Odoo stores partners' addresses normalised by the same rule.
        let normalised = Address::normalise(recipient);
        let recipient = normalised.as_ref().map_or(recipient, Address::as_str);
        let conditions = [
            ("mail_message_id.message_id", "=", message_id.into()),
            ("notification_status", "=", "bounce".into()),
            ("res_partner_id.email_normalized", "=", recipient.into()),
        ];
        self.0.client.has("mail.notification", &conditions).await
    }

    /// Signs in anew: whether Odoo is there and knows login and password. Returns the user's id.
    ///
    /// # Errors
    /// Odoo is in trouble, or login, password or database are wrong.
    pub async fn sign_in(&self) -> Result<i64, Failure> {
        let uid = self.try_sign_in().await;
        uid.inspect_err(|failure| self.fail(failure))
    }

    /// Signs in anew, as [`Gateway::sign_in`], but only to know: a failure is no trouble of the gateway's.
    ///
    /// # Errors
    /// As [`Gateway::sign_in`].
    pub async fn try_sign_in(&self) -> Result<i64, Failure> {
        self.0.client.sign_in().await
    }

    /// Which Odoo it is, as it tells anybody; `None`: it does not say. A failure is no trouble of the gateway's.
    ///
    /// # Errors
    /// Odoo is in trouble, or it is no Odoo.
    pub async fn try_version(&self) -> Result<Option<Version>, Failure> {
        self.0.client.version().await
    }

    /// The protocol that it speaks.
    pub fn protocol(&self) -> Protocol {
        self.0.client.config.protocol
    }

    /// Whether the user may read a model; changes nothing, and a failure is no trouble of the gateway's.
    ///
    /// # Errors
    /// The user may not, there is no such model, or Odoo is in trouble.
    pub async fn try_read(&self, model: &str) -> Result<(), Failure> {
        // No record has this id: Odoo only looks at the rights.
        self.0.client.has(model, &[("id", "=", 0.into())]).await.map(drop)
    }

    /// How long after a push began Odoo may still be working on it, although nobody waits for it any more.
    pub fn settles_after(&self) -> Duration {
        self.0.client.config.timeout.min(answers::ODOO_GIVES_UP)
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
            Err(_) => self.well(),
            Ok(_) => {
                self.0.took_at.store(clock::now().as_millisecond(), Ordering::Relaxed);
                self.well();
            }
        }
        taken
    }
}

impl<'a> Turn<'a> {
    /// The turn of the next message, once this one's push has ended; this one keeps nothing but its Message-Id. `None`: it
    /// would have to wait, for whoever pushes that Message-Id, or behind those who wait for a worker.
    pub fn hand_on(&mut self, message_id: &str) -> Option<Turn<'a>> {
        let gateway = self.gateway;
        // Whoever waits for it has it now.
        self.worker = None;
        let alone = gateway.0.locks.get(lock_of(message_id))?.try_lock().ok()?;
        let worker = gateway.0.pushes.try_acquire().ok()?;
        Some(Turn { gateway, _alone: Some(alone), worker: Some(worker) })
    }

    /// Feeds the message: over XML-RPC Odoo gets its very bytes, over JSON-2 what [`crate::message::text`] makes of them.
    ///
    /// # Errors
    /// [`Class::Message`]: Odoo refuses this message. Any other class: Odoo is in trouble, and the message is not to
    /// blame; where [`answers::is_unclear`] says so, Odoo may still be working on it, for [`Gateway::settles_after`].
    pub async fn push(&self, raw: &[u8], intake: &Intake) -> Result<Taken, Failure> {
        self.gateway.note(self.gateway.0.client.message_process(raw, intake).await)
    }
}

fn lock_of(message_id: &str) -> usize {
    let mut hasher = DefaultHasher::new();
    message_id.hash(&mut hasher);
    usize::try_from(hasher.finish() % LOCKS as u64).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;
    use secrecy::SecretString;

    fn gateway(parallel: u32) -> Gateway {
        crate::tls::install_provider();
        let config = GatewayConfig {
            url: "http://127.0.0.1:9".to_owned(),
            domains: Vec::new(),
            database: "prod".to_owned(),
            protocol: Protocol::XmlRpc,
            login: "mailgate".to_owned(),
            password: SecretString::from("secret"),
            timeout: Duration::from_secs(1),
            gateway_model: "mail.thread".to_owned(),
            report_after: Duration::ZERO,
            parallel,
        };
        Gateway::new(config, reqwest::Client::new())
    }

    #[tokio::test]
    async fn a_worker_is_handed_on_unless_others_wait_for_it() {
        let gateway = gateway(1);
        let mut first = gateway.turn("<1@x>").await;
        let second = first.hand_on("<2@x>").unwrap();
        assert!(gateway.turn("<1@x>").now_or_never().is_none(), "the first keeps its Message-Id");
        drop(second);

        let mut first = {
            drop(first);
            gateway.turn("<1@x>").await
        };
        assert!(first.hand_on("<1@x>").is_none(), "its own");
        let mut first = {
            drop(first);
            gateway.turn("<1@x>").await
        };
        let mut other = Box::pin(gateway.turn("<3@x>"));
        assert!(other.as_mut().now_or_never().is_none());
        assert!(first.hand_on("<2@x>").is_none());
        assert!(other.now_or_never().is_some(), "who waited has it");
    }
}
