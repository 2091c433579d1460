//! What the daemon says of itself: gathered from the live state and the store.

use crate::address::Address;
use crate::clock;
use crate::counters::Counters;
use crate::delivery;
use crate::doctor::Doctor;
use crate::failure::{Class, Failure};
use crate::mailbox::{Lasting, Mailbox};
use crate::microsoft::Grant;
use crate::microsoft::expiry::{self, Warning};
use crate::microsoft::smtp_replies;
use crate::odoo::{self, Gateway};
use crate::store::{
    self, ConsentAge, FailedMessage, InboxLine, RefusedMessage, Report, ReportTotals, Store, Totals, Written,
};
use crate::tokens::{TokenState, Tokens};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// How long Microsoft lets a refresh token live that nobody uses.
const CONSENT_LASTS: Duration = Duration::from_secs(90 * 24 * 60 * 60);
/// So many of the last failures are told.
const LAST_FAILURES: u32 = 10;

/// The whole status.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {
    /// Whether no mailbox and no part of it is in trouble.
    pub well: bool,
    /// The program's version.
    pub version: String,
    /// Since when the daemon runs.
    pub started_at: Timestamp,
    /// Every mailbox, in the configuration's order.
    pub mailboxes: Vec<MailboxStatus>,
    /// The queue's totals over all mailboxes.
    pub queue: Totals,
    /// The trouble with Odoo's gateway, if any.
    pub odoo: Option<Lasting>,
    /// What will be trouble soon: client secrets that expire.
    #[serde(default)]
    pub warnings: Vec<Warning>,
    /// Why the store could not be written the last time, if it could not: then no mail is accepted, and none sent.
    #[serde(default)]
    pub store: Option<String>,
    /// Reports of failures on their way into Odoo, or refused by it.
    #[serde(default)]
    pub reports: ReportTotals,
    /// The reports that Odoo refused, oldest first.
    #[serde(default)]
    pub refused_reports: Vec<RefusedReport>,
    /// What was written to the store since the daemon started.
    #[serde(default)]
    pub written: Written,
    /// The messages of either direction that failed last and are not done with, newest first.
    #[serde(default)]
    pub last_failures: Vec<LastFailure>,
}

/// A report of a failure that Odoo would not take: nobody in Odoo knows that this mail did not arrive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusedReport {
    /// The failed message's id in the queue.
    pub message: String,
    /// Whom it did not reach.
    pub recipient: String,
    /// What Odoo answered.
    pub answer: Option<String>,
}

/// The last failure of a message.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LastFailure {
    /// When.
    pub at: Timestamp,
    /// Which message: its id in the queue, or the Message-Id of a received one.
    pub message: String,
    /// The mailbox that it goes through, or lies in.
    pub mailbox: String,
    /// Which way it goes.
    pub direction: Direction,
    /// When it is tried again; `None`: given up, or (of a received one) at a time of the inbox's own.
    pub next_attempt_at: Option<Timestamp>,
    /// What failed.
    pub failure: Failure,
}

/// Which way a message goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// From Odoo to Microsoft 365.
    Outgoing,
    /// From an inbox into Odoo.
    Incoming,
}

/// One mailbox.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MailboxStatus {
    /// Its address.
    pub address: String,
    /// Its token.
    pub token: Option<TokenState>,
    /// Its owner's consent; `None`: there is none, or it needs none.
    #[serde(default)]
    pub consent: Option<ConsentStatus>,
    /// Whether the app itself signs in (`grant = "client_credentials"`), so that nobody has to consent.
    #[serde(default)]
    pub app_only: bool,
    /// Its part of the queue.
    pub queue: Totals,
    /// When the last message that waits will have gone; `None`: nothing waits, or it waits for a person.
    #[serde(default)]
    pub done_by: Option<Timestamp>,
    /// How long its mail waited for messages_per_minute and recipients_per_day since the start, in seconds.
    #[serde(default)]
    pub paced_seconds: f64,
    /// Its inbox; `None`: not watched.
    pub inbox: Option<InboxStatus>,
    /// What it is in trouble with: `token`, `sending`, `inbox`.
    pub troubles: BTreeMap<String, Lasting>,
}

/// A consent, which lasts for 90 days from its last use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsentStatus {
    /// When it was given.
    pub consented_at: Timestamp,
    /// When the refresh token was last replaced; `None`: not yet.
    pub refreshed_at: Option<Timestamp>,
    /// Until when it lasts if nothing refreshes it.
    pub lasts_until: Timestamp,
}

impl From<ConsentAge> for ConsentStatus {
    fn from(age: ConsentAge) -> Self {
        let used_at = age.refreshed_at.unwrap_or(age.consented_at);
        Self {
            consented_at: age.consented_at,
            refreshed_at: age.refreshed_at,
            lasts_until: clock::after(used_at, CONSENT_LASTS),
        }
    }
}

/// A mailbox's inbox.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct InboxStatus {
    /// The folder.
    pub folder: String,
    /// When it was last looked through; `None`: not yet.
    pub looked_at: Option<Timestamp>,
    /// Messages still to push.
    pub waiting: u64,
    /// Messages that Odoo refuses.
    pub refused: u64,
    /// Messages that Odoo took.
    pub pushed: u64,
    /// Those of them that report a failed delivery (non-delivery reports).
    #[serde(default)]
    pub bounces: u64,
    /// When the oldest message still to push was found; `None`: there is none.
    #[serde(default)]
    pub oldest: Option<Timestamp>,
}

/// Where the status comes from.
#[derive(Clone)]
pub struct Sources {
    /// What was logged so far.
    pub counters: Counters,
    /// Since when the daemon runs.
    pub started_at: Timestamp,
    /// The mailboxes at work.
    pub mailboxes: Arc<[Arc<Mailbox>]>,
    /// Their tokens.
    pub tokens: Tokens,
    /// What the configuration says of Odoo.
    pub odoo: odoo::Config,
    /// Odoo's gateway, where there is one.
    pub gateway: Option<Gateway>,
    /// The store.
    pub store: Store,
    /// What each mailbox's worker does.
    pub sending: Arc<HashMap<Address, watch::Receiver<delivery::Status>>>,
    /// Examines them.
    pub doctor: Doctor,
}

impl Sources {
    /// The status right now.
    ///
    /// # Errors
    /// A store that cannot be read.
    pub async fn gather(&self) -> Result<Status, store::Error> {
        let totals: HashMap<Address, Totals> = self.store.totals().await?.into_iter().collect();
        let inboxes = self.store.inboxes().await?;
        let consents: HashMap<Address, ConsentAge> = self.store.consent_ages().await?.into_iter().collect();
        let mut mailboxes: Vec<MailboxStatus> =
            self.mailboxes.iter().map(|mailbox| self.mailbox(mailbox, &totals, &inboxes)).collect();
        for (mailbox, status) in self.mailboxes.iter().zip(&mut mailboxes) {
            let consent = consents.get(mailbox.address()).filter(|_| !status.app_only);
            status.consent = consent.copied().map(ConsentStatus::from);
        }
        let failed = self.store.last_failed(LAST_FAILURES).await?;
        let refused = self.store.last_refused(LAST_FAILURES).await?;
        let mut last_failures: Vec<LastFailure> =
            failed.into_iter().map(outgoing).chain(refused.into_iter().map(incoming)).collect();
        last_failures.sort_by_key(|failure| std::cmp::Reverse(failure.at));
        let reports = self.store.reports_refused(LAST_FAILURES).await?;
        let odoo = self.gateway.as_ref().and_then(Gateway::trouble);
        let apps = self.mailboxes.iter().map(|mailbox| &mailbox.config.microsoft);
        let warnings = expiry::warnings(apps, expiry::day(clock::now()));
        let store = self.store.unwritable();
        Ok(Status {
            well: odoo.is_none()
                && store.is_none()
                && warnings.iter().all(|warning| !warning.expired)
                && totals.values().all(|totals| totals.held == 0)
                && mailboxes.iter().all(|mailbox| mailbox.troubles.is_empty()),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started_at: self.started_at,
            queue: totals.values().fold(Totals::default(), sum),
            mailboxes,
            odoo,
            last_failures,
            warnings,
            store,
            reports: self.store.report_totals().await?,
            refused_reports: reports.into_iter().map(refused_report).collect(),
            written: self.store.written(),
        })
    }

    fn mailbox(
        &self,
        mailbox: &Mailbox,
        totals: &HashMap<Address, Totals>,
        inboxes: &[InboxLine],
    ) -> MailboxStatus {
        let config = &mailbox.config;
        let troubles = [("token", &mailbox.token), ("sending", &mailbox.smtp), ("inbox", &mailbox.imap)];
        let line = inboxes.iter().find(|line| line.mailbox == config.address && line.folder == config.folder);
        let inbox = config.inbox.then(|| InboxStatus {
            folder: config.folder.clone(),
            looked_at: line.map(|line| line.looked_at),
            waiting: line.map_or(0, |line| line.waiting),
            refused: line.map_or(0, |line| line.refused),
            pushed: line.map_or(0, |line| line.pushed),
            bounces: line.map_or(0, |line| line.bounces),
            oldest: line.and_then(|line| line.oldest),
        });
        let queue = totals.get(&config.address).copied().unwrap_or_default();
        let sending = self.sending.get(&config.address).map(|status| status.borrow().clone());
        MailboxStatus {
            address: config.address.to_string(),
            token: self.tokens.state(&config.address),
            consent: None,
            app_only: config.microsoft.grant == Grant::ClientCredentials,
            paced_seconds: sending.as_ref().map_or(0.0, |sending| sending.paced.as_secs_f64()),
            done_by: sending
                .and_then(|sending| delivery::done_by(&queue, &config.delivery, &sending, clock::now())),
            queue,
            inbox,
            troubles: troubles
                .into_iter()
                .filter_map(|(part, trouble)| Some((part.to_owned(), trouble.lasting()?)))
                .collect(),
        }
    }
}

/// The advice is not kept with an attempt: the catalogue gives it anew.
fn outgoing(failed: FailedMessage) -> LastFailure {
    let code = failed.code.unwrap_or_default();
    let reply = failed.reply.unwrap_or_default();
    let failure = smtp_replies::judge_kept(&code, &reply, &failed.mailbox)
        .unwrap_or_else(|| Failure::new(Class::Transient, code.as_str(), &reply));
    LastFailure {
        at: failed.at,
        message: failed.id.to_string(),
        mailbox: failed.mailbox.to_string(),
        direction: Direction::Outgoing,
        next_attempt_at: failed.next_attempt_at,
        failure: Failure { code, reply, ..failure },
    }
}

fn refused_report(report: Report) -> RefusedReport {
    let Report { message, recipient, answer, .. } = report;
    RefusedReport { message: message.to_string(), recipient, answer }
}

fn incoming(refused: RefusedMessage) -> LastFailure {
    let failure = Failure::new(Class::Message, "odoo", refused.answer.unwrap_or_default()).advise(
        "Odoo refuses this message; it stays unread in the inbox and is tried again. Give the mailbox a model, or Odoo an \
         alias for the address that it was sent to",
    );
    LastFailure {
        at: refused.at,
        message: refused.message_id.unwrap_or_default(),
        mailbox: refused.mailbox.to_string(),
        direction: Direction::Incoming,
        next_attempt_at: None,
        failure,
    }
}

fn sum(all: Totals, one: &Totals) -> Totals {
    Totals {
        waiting: all.waiting + one.waiting,
        failed: all.failed + one.failed,
        held: all.held + one.held,
        recipients: all.recipients + one.recipients,
        oldest: [all.oldest, one.oldest].into_iter().flatten().min(),
    }
}
