//! Failed deliveries are reported to Odoo: [`Reporter`] writes the reports ([`crate::bounce`]) for delivery to keep with
//! the failure, [`Feed`] brings them to Odoo, once.
//!
//! Odoo stores no bounce, so it cannot know one again. What a push leaves behind is that the partner's notification of
//! the message turns to "bounced": after a push whose answer was lost, Odoo is asked for that before the report is pushed
//! again. Where it leaves no such trace (the address is no partner's, or the account may not read notifications), the
//! report is pushed again, and Odoo may count that address's bounce twice; nothing else comes of it.

mod feed;

pub use feed::Feed;

use crate::bounce::{self, Original};
use crate::clock;
use crate::failure::{Failure, chain};
use crate::store::{Due, NewReport, Store};
use jiff::Timestamp;
use std::time::Duration;

/// Header sections are read up to this many bytes.
const LONGEST_HEADER: u32 = 256 * 1024;
/// Writes the reports of one mailbox's failures.
#[derive(Clone, Debug)]
pub struct Reporter {
    store: Store,
    domain: String,
    not_before: Duration,
}

impl Reporter {
    /// Its reports come from `MAILER-DAEMON` at this domain, and are pushed no earlier than so long after the mail was
    /// accepted: some of Odoo's mails are sent by a transaction that it commits only afterwards, and a report of a mail
    /// that Odoo cannot see yet would be lost on it.
    pub fn new(store: Store, domain: &str, not_before: Duration) -> Self {
        Self { store, domain: domain.to_owned(), not_before }
    }

    /// The reports of a failure for these recipients; `None`: nobody is to be told.
    pub async fn report(&self, due: &Due, failed: &[(String, Failure)], now: Timestamp) -> Option<NewReport> {
        if failed.is_empty() {
            return None;
        }
        let beginning = match self.store.beginning(due.id, LONGEST_HEADER).await {
            Ok(beginning) => beginning.unwrap_or_default(),
            Err(error) => {
                // The Message-Id, which Odoo needs, is known without it.
                tracing::debug!(id = %due.id, error = %chain(&error), "reported without its header");
                Vec::new()
            }
        };
        let original = Original {
            id: due.id,
            received_at: due.received_at,
            mail_from: &due.mail_from,
            message_id: due.message_id.as_deref(),
            beginning: &beginning,
        };
        let new = bounce::reports(&original, failed, &self.domain, now)?;
        Some(NewReport { due_at: now.max(clock::after(due.received_at, self.not_before)), ..new })
    }
}
