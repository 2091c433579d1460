//! Failed deliveries are reported to Odoo: [`Reporter`] writes the reports ([`crate::bounce`]) for delivery to keep with
//! the failure, [`Feed`] brings them to Odoo, once.
//!
//! Odoo stores no bounce, so it cannot know one again. What a push leaves behind is that the partner's notification of
//! the message turns to "bounced": after a push whose answer was lost, Odoo is asked for that before the report is pushed
//! again. Where it leaves no such trace (the address is no partner's, or the account may not read notifications), the
//! report is pushed again, and Odoo may count that address's bounce twice; nothing else comes of it.

mod feed;

pub use feed::Feed;

use crate::address::Address;
use crate::bounce::{self, Original};
use crate::clock;
use crate::failure::{Class, Failure, chain};
use crate::odoo;
use crate::store::{self, Due, NewReport, Queued, RecipientState, Store};
use jiff::Timestamp;
use std::time::Duration;

/// Header sections are read up to this many bytes.
const LONGEST_HEADER: u32 = 256 * 1024;

/// Writes the reports of one mailbox's failures.
#[derive(Clone, Debug)]
pub struct Reporter {
    store: Store,
    odoo: odoo::Config,
    mailbox: Address,
    not_before: Duration,
}

impl Reporter {
    /// Its reports are pushed no earlier than so long ([odoo] `report_after`) after the mail was accepted: some of Odoo's mails
    /// are sent by a transaction that it commits only afterwards, and a report of a mail that Odoo cannot see yet would be
    /// lost on it. `None`: there is no Odoo to tell.
    pub fn new(store: Store, odoo: &odoo::Config, mailbox: &Address) -> Option<Self> {
        let not_before = odoo.gateway.as_ref()?.report_after;
        Some(Self { store, odoo: odoo.clone(), mailbox: mailbox.clone(), not_before })
    }

    /// The reports of a failure for these recipients; `None`: nobody is to be told.
    pub async fn report(&self, due: &Due, failed: &[(String, Failure)], now: Timestamp) -> Option<NewReport> {
        let Due { id, received_at, mail_from, message_id, .. } = due;
        let original = Original {
            id: *id,
            received_at: *received_at,
            mail_from,
            message_id: message_id.as_deref(),
            beginning: &[],
        };
        self.write(original, failed, now).await
    }

    /// The reports of a message that a person takes out of the queue, for whoever it has not reached.
    async fn cancelled(&self, message: &Queued, now: Timestamp) -> Option<NewReport> {
        let failure =
            Failure::new(Class::Message, "cancelled", "the relay's operator took it out of the queue");
        let failed: Vec<_> = message
            .recipients
            .iter()
            .filter(|recipient| matches!(recipient.state, RecipientState::Waiting | RecipientState::Unknown))
            .map(|recipient| (recipient.address.clone(), failure.clone()))
            .collect();
        let Queued { id, received_at, mail_from, message_id, .. } = message;
        let original = Original {
            id: *id,
            received_at: *received_at,
            mail_from,
            message_id: message_id.as_deref(),
            beginning: &[],
        };
        self.write(original, &failed, now).await
    }

    async fn write(
        &self,
        original: Original<'_>,
        failed: &[(String, Failure)],
        now: Timestamp,
    ) -> Option<NewReport> {
        if failed.is_empty() {
            return None;
        }
        let beginning = match self.store.beginning(original.id, LONGEST_HEADER).await {
            Ok(beginning) => beginning.unwrap_or_default(),
            Err(error) => {
                // The Message-Id, which Odoo needs, is known without it.
                tracing::debug!(id = %original.id, error = %chain(&error), "reported without its header");
                Vec::new()
            }
        };
        let original = Original { beginning: &beginning, ..original };
        let from = self.odoo.bounce(original.mail_from).unwrap_or(&self.mailbox);
        let new = bounce::reports(&original, failed, from.domain(), now)?;
        Some(NewReport { due_at: now.max(clock::after(original.received_at, self.not_before)), ..new })
    }
}

/// Takes a message out of the queue, and keeps the reports of that for Odoo. Returns whether it could be: not while it is
/// being sent, or when something became of it since `message` was read.
///
/// # Errors
/// The store's.
pub async fn cancel(
    store: &Store,
    odoo: &odoo::Config,
    message: &Queued,
    now: Timestamp,
) -> Result<bool, store::Error> {
    let report = match Reporter::new(store.clone(), odoo, &message.mailbox) {
        Some(reporter) => reporter.cancelled(message, now).await,
        None => None,
    };
    store.cancel(message, report, now).await
}
