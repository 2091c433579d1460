//! What Odoo refuses, as a person sees it: the list, and having some of it tried again.

use super::inbox::{PushState, narrow};
use super::queue::address;
use super::received::Change;
use super::{Error, Store, timestamp};
use crate::address::Address;
use jiff::Timestamp;
use serde::Serialize;
use std::fmt;
use std::str::FromStr;

/// Names a message of an inbox: `support@example.com/123`. Should the server once have counted its UIDs anew, it may name
/// one of before as well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QuarantinedId {
    /// The mailbox.
    pub mailbox: Address,
    /// The message's UID.
    pub uid: u32,
}

impl fmt::Display for QuarantinedId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.mailbox, self.uid)
    }
}

impl FromStr for QuarantinedId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parsed = text.rsplit_once('/').and_then(|(mailbox, uid)| {
            Some(Self { mailbox: Address::normalise(mailbox)?, uid: uid.parse().ok()? })
        });
        parsed.ok_or_else(|| {
            format!("{text:?} is no message of an inbox: `outlook-relay inbox list` shows them")
        })
    }
}

impl Serialize for QuarantinedId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A received message that Odoo refuses, or that cannot be brought to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Quarantined {
    /// Its id.
    pub id: QuarantinedId,
    /// Whose inbox it came to.
    pub mailbox: Address,
    /// The folder that it was found in.
    pub folder: String,
    /// That folder's UIDVALIDITY.
    pub uidvalidity: u32,
    /// Its UID there.
    pub uid: u32,
    /// Its Message-Id, where it was fetched.
    pub message_id: Option<String>,
    /// `refused`: it lies in the folder; `moved`: in the quarantine folder; `returning`: on its way back from there.
    pub state: PushState,
    /// How often it was pushed.
    pub tries: u32,
    /// When it was found.
    pub found_at: Timestamp,
    /// When it was refused last.
    pub refused_at: Timestamp,
    /// When it is tried again by itself; `None`: only when a person wants it.
    pub next_try_at: Option<Timestamp>,
    /// Why.
    pub reason: Option<String>,
}

impl Store {
    /// What is quarantined, oldest first.
    ///
    /// # Errors
    /// The disk's, and rows that make no sense.
    pub async fn quarantined(&self, mailbox: Option<&Address>) -> Result<Vec<Quarantined>, Error> {
        type Row = (String, String, i64, i64, Option<String>, String, i64, i64, i64, i64, Option<String>);
        let sql = "SELECT mailbox, folder, uidvalidity, uid, message_id, state, tries, found_at, changed_at, next_try_at, \
                   answer FROM received WHERE state IN ('refused', 'moved', 'returning') AND state <> 'done' \
                   AND state <> 'gone' AND (?1 IS NULL OR mailbox = ?1) ORDER BY found_at, mailbox, uid";
        let rows: Vec<Row> =
            self.rows("what is quarantined", sql, (mailbox.map(ToString::to_string),)).await?;
        rows.into_iter()
            .map(
                |(
                    mailbox,
                    folder,
                    uidvalidity,
                    uid,
                    message_id,
                    state,
                    tries,
                    found,
                    changed,
                    next,
                    reason,
                )| {
                    let (mailbox, uid, state) = (address(&mailbox)?, narrow(uid)?, PushState::parse(&state)?);
                    Ok(Quarantined {
                        id: QuarantinedId { mailbox: mailbox.clone(), uid },
                        mailbox,
                        folder,
                        uidvalidity: narrow(uidvalidity)?,
                        uid,
                        message_id,
                        state,
                        tries: narrow(tries)?,
                        found_at: timestamp(found),
                        refused_at: timestamp(changed),
                        next_try_at: (state != PushState::Moved).then(|| timestamp(next)),
                        reason,
                    })
                },
            )
            .collect()
    }

    /// Has a quarantined message tried now. Returns whether it could be: not when it is no longer quarantined.
    ///
    /// # Errors
    /// The disk's.
    pub async fn retry_received(&self, message: &Quarantined, now: Timestamp) -> Result<bool, Error> {
        let Quarantined { mailbox, folder, uidvalidity, uid, .. } = message;
        let change = Change::Retried { at: now };
        match self.change(mailbox, folder, *uidvalidity, vec![*uid], change).await {
            Ok(()) => Ok(true),
            Err(Error::Changed) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// What a person wants back from a mailbox's quarantine folder.
    ///
    /// # Errors
    /// The disk's, and rows that make no sense.
    pub async fn returning(&self, mailbox: &Address, folder: &str) -> Result<Vec<Quarantined>, Error> {
        let mut all = self.quarantined(Some(mailbox)).await?;
        all.retain(|message| message.state == PushState::Returning && message.folder == folder);
        Ok(all)
    }
}
