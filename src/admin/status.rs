//! What the daemon says of itself: gathered from the live state and the store.

use crate::address::Address;
use crate::clock;
use crate::doctor::Doctor;
use crate::mailbox::{Lasting, Mailbox};
use crate::microsoft::expiry::{self, Warning};
use crate::odoo::Gateway;
use crate::store::{self, InboxLine, Store, Totals};
use crate::tokens::{TokenState, Tokens};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

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
}

/// One mailbox.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MailboxStatus {
    /// Its address.
    pub address: String,
    /// Its token.
    pub token: Option<TokenState>,
    /// Its part of the queue.
    pub queue: Totals,
    /// Its inbox; `None`: not watched.
    pub inbox: Option<InboxStatus>,
    /// What it is in trouble with: `token`, `sending`, `inbox`.
    pub troubles: BTreeMap<String, Lasting>,
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
}

/// Where the status comes from.
#[derive(Clone)]
pub struct Sources {
    /// Since when the daemon runs.
    pub started_at: Timestamp,
    /// The mailboxes at work.
    pub mailboxes: Arc<[Arc<Mailbox>]>,
    /// Their tokens.
    pub tokens: Tokens,
    /// Odoo's gateway, where there is one.
    pub gateway: Option<Gateway>,
    /// The store.
    pub store: Store,
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
        let mailboxes: Vec<MailboxStatus> =
            self.mailboxes.iter().map(|mailbox| self.mailbox(mailbox, &totals, &inboxes)).collect();
        let odoo = self.gateway.as_ref().and_then(Gateway::trouble);
        let apps = self.mailboxes.iter().map(|mailbox| &mailbox.config.microsoft);
        let warnings = expiry::warnings(apps, expiry::day(clock::now()));
        let store = self.store.unwritable();
        Ok(Status {
            well: odoo.is_none()
                && store.is_none()
                && warnings.iter().all(|warning| !warning.expired)
                && mailboxes.iter().all(|mailbox| mailbox.troubles.is_empty()),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started_at: self.started_at,
            queue: totals.values().fold(Totals::default(), sum),
            mailboxes,
            odoo,
            warnings,
            store,
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
        });
        MailboxStatus {
            address: config.address.to_string(),
            token: self.tokens.state(&config.address),
            queue: totals.get(&config.address).copied().unwrap_or_default(),
            inbox,
            troubles: troubles
                .into_iter()
                .filter_map(|(part, trouble)| Some((part.to_owned(), trouble.lasting()?)))
                .collect(),
        }
    }
}

fn sum(all: Totals, one: &Totals) -> Totals {
    Totals {
        waiting: all.waiting + one.waiting,
        failed: all.failed + one.failed,
        oldest: [all.oldest, one.oldest].into_iter().flatten().min(),
    }
}
