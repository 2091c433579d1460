//! From a message to a row in the queue, or a refusal in words.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use jiff::Timestamp;

use super::reply::Reply;
use crate::failure::chain;
use crate::logging::names;
use crate::message::{Envelope, HeaderView};
use crate::routing::Routes;
use crate::store::{NewMessage, Store};

/// Characters of a From that are logged.
const FROM: usize = 200;

/// Routes and stores messages. Clones share the routes and the store.
#[derive(Clone)]
pub struct Intake {
    routes: Arc<Routes>,
    store: Store,
}

impl Intake {
    /// `routes`: which mailbox a From goes out through.
    pub fn new(routes: Routes, store: Store) -> Self {
        Self { routes: Arc::new(routes), store }
    }

    /// Takes a message that was received `now`. The answer is 250 only once the store has committed it.
    ///
    /// Whatever can be sent is taken, even a message whose header section makes no sense: a refusal is final to Odoo.
    pub async fn take(&self, envelope: Envelope, content: Bytes, peer: SocketAddr, now: Timestamp) -> Reply {
        let header = HeaderView::parse(&content);
        let header_from = header.from();
        let message_id = header.message_id();
        let eight_bit = header.is_8bit();
        let route = match self.routes.route(header_from.as_deref(), &envelope.mail_from) {
            Ok(route) => route,
            Err(no_mailbox) => {
                let reply = Reply::new(554, "5.3.5", no_mailbox.to_string());
                log_refusal(peer, &reply);
                return reply;
            }
        };
        let id = self.store.next_id(now);
        let from: String = header_from.as_deref().unwrap_or_default().chars().take(FROM).collect();
        let to = names(&envelope.recipients);
        let (mailbox, rule, size) = (route.mailbox.clone(), route.rule, content.len());
        let message = NewMessage {
            id,
            received_at: now,
            envelope,
            eight_bit,
            header_from,
            message_id,
            mailbox: route.mailbox,
            rule: route.rule,
            new_from: route.new_from,
            content,
        };
        match self.store.accept(message).await {
            Ok(()) => {
                tracing::info!(%id, from, to, %mailbox, rule = rule.as_str(), size, "accepted");
                Reply::new(250, "2.0.0", format!("Ok: queued as {id}"))
            }
            Err(error) => {
                let reply = Reply::new(
                    452,
                    "4.3.1",
                    "The relay cannot write to its store, so it did not take the message. Look at its log and at the \
                     free space on its disk, then send the message again",
                );
                tracing::error!(
                    code = reply.code(), %reply, from, to, %mailbox, error = %chain(&error), "refused"
                );
                reply
            }
        }
    }
}

/// Logs a 4xx or 5xx reply: to Odoo each is a lost mail, so each is worth a line.
pub(super) fn log_refusal(peer: SocketAddr, reply: &Reply) {
    tracing::warn!(code = reply.code(), %reply, %peer, "refused");
}
