//! What a worker looks after beside the sending: the pace from before the start, and what waits for long. Its delay is
//! said, and where its mailbox cannot send it goes another way.

use super::attempt::Context;
use super::pacing::{DAY, Pacing};
use super::policy;
use crate::clock;
use crate::routing::Routes;
use crate::store::{self, QueueId};
use jiff::{SignedDuration, Timestamp};
use std::collections::HashSet;
use std::time::Duration;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

/// So many messages are read from the store at a time.
const PAGE: u32 = 200;

/// A store that could not be read is read again after so long.
const AGAIN: Duration = Duration::from_secs(1);

/// Up to when messages that were accepted have been mentioned.
#[derive(Debug)]
pub(super) struct Mentioned {
    until: Timestamp,
    look_at: Timestamp,
}

impl Mentioned {
    /// What was late before the start was mentioned then.
    pub(super) fn new(context: &Context, now: Timestamp) -> Self {
        Self { until: late(context, now), look_at: now }
    }
}

/// What was accepted by then is late.
fn late(context: &Context, now: Timestamp) -> Timestamp {
    let wait = SignedDuration::try_from(context.mailbox.config.delivery.delay_warning).unwrap_or_default();
    now.checked_sub(wait).unwrap_or(now)
}

impl Context {
    /// The pace, with what the mailbox sent before the start; `None`: a stop came before the store could be read.
    pub(super) async fn pacing(&self, soft: &CancellationToken) -> Option<Pacing> {
        let config = &self.mailbox.config.delivery;
        let mut pacing = Pacing::new(config.messages_per_minute, config.recipients_per_day);
        let day = SignedDuration::try_from(DAY).unwrap_or_default();
        loop {
            let now = clock::now();
            match self.store.pace(self.mailbox.address(), now.checked_sub(day).unwrap_or(now)).await {
                Ok(past) => {
                    pacing.restore(&past, now);
                    return Some(pacing);
                }
                Err(error) => self.store_failed(&error),
            }
            tokio::select! {
                () = soft.cancelled() => return None,
                () = sleep(AGAIN) => {}
            }
        }
    }

    /// Says once of each message that it is late.
    pub(super) async fn mention_late(&self, mentioned: &mut Mentioned, now: Timestamp) {
        let delay_warning = self.mailbox.config.delivery.delay_warning;
        if delay_warning.is_zero() || now < mentioned.look_at {
            return;
        }
        mentioned.look_at = clock::after(now, policy::give_up_every(delay_warning));
        let late = late(self, now);
        while mentioned.until < late {
            let mailbox = self.mailbox.address();
            let messages = match self.store.waiting_since(mailbox, mentioned.until, late, PAGE).await {
                Ok(messages) => messages,
                Err(error) => return self.store_failed(&error),
            };
            for (id, message_id) in &messages {
                let accepted_at = Timestamp::from_microsecond(id.0).unwrap_or(mentioned.until);
                let (seconds, message_id) = (clock::until(accepted_at, now).as_secs(), message_id.as_deref());
                let advice = format!("`outlook-relay queue show {id}` tells what was tried");
                tracing::warn!(%mailbox, %id, message_id, seconds, advice, "delayed");
            }
            let last = messages.last().and_then(|(id, _)| Timestamp::from_microsecond(id.0).ok());
            let is_page = u32::try_from(messages.len()).unwrap_or(u32::MAX) >= PAGE;
            mentioned.until = last.filter(|_| is_page).unwrap_or(late);
        }
    }

    /// Gives the mailbox's waiting mail, but for what is under way, to whoever may send as the notifications address.
    /// Returns how many messages that were.
    ///
    /// # Errors
    /// The store's.
    pub(super) async fn reroute(
        &self,
        routes: &Routes,
        under_way: &HashSet<QueueId>,
    ) -> Result<usize, store::Error> {
        let mailbox = self.mailbox.address();
        let (mut after, mut count) = (None, 0);
        loop {
            let page = self.store.reroutable(mailbox, after, PAGE).await?;
            let Some(last) = page.last().map(|message| message.id) else {
                return Ok(count);
            };
            after = Some(last);
            for message in page.iter().filter(|message| !under_way.contains(&message.id)) {
                let Some(route) = routes.fallback(message.from.as_deref(), &message.mail_from, mailbox)
                else {
                    continue;
                };
                let (id, to, from) = (message.id, route.mailbox.clone(), route.new_from.clone());
                self.store.reroute(id, route.mailbox, route.rule, route.new_from, false).await?;
                self.store.arrivals(&to).notify_one();
                let advice = "its mailbox cannot send: see `outlook-relay status`";
                tracing::warn!(%mailbox, %id, %to, from, advice, "rerouted");
                count += 1;
            }
        }
    }
}
