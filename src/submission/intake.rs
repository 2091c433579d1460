//! From a message to a row in the queue, or a refusal in words.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use jiff::Timestamp;
use tokio::sync::RwLock;

use super::reply::Reply;
use super::session::not_allowed;
use super::users::User;
use crate::address::Address;
use crate::failure::{chain, one_line};
use crate::logging::{names, seconds};
use crate::message::{Envelope, HeaderView};
use crate::routing::{Route, Routes};
use crate::store::{NewMessage, Store};

/// Characters of a From that are logged.
const FROM: usize = 200;
/// A message with that many Received fields goes in circles. RFC 5321 section 6.3 asks for 100 at least where mail may
/// come from anywhere; what is submitted has hardly any hop behind it.
const HOPS: usize = 50;

/// Routes and stores messages. Clones share the store, and the routes, which may be exchanged at any time.
#[derive(Clone)]
pub struct Intake {
    routes: Arc<RwLock<Routes>>,
    store: Store,
}

impl Intake {
    /// `routes`: which mailbox a From goes out through.
    pub fn new(routes: Arc<RwLock<Routes>>, store: Store) -> Self {
        Self { routes, store }
    }

    /// Takes a message of `user` that was received `now`. The answer is 250 only once the store has committed it.
    ///
    /// Whatever can be sent is taken, even a message whose header section makes little sense: a refusal is final to Odoo.
    pub async fn take(
        &self,
        envelope: Envelope,
        content: Bytes,
        user: Option<&User>,
        peer: SocketAddr,
        now: Timestamp,
    ) -> Reply {
        let begun = Instant::now();
        let header = HeaderView::parse(&content);
        let header_from = header.from();
        let message_id = header.message_id();
        let eight_bit = header.is_8bit();
        // Held until the message is stored: whoever exchanges the routes knows then that nothing goes by the former ones.
        let routes = self.routes.read().await;
        let route = match route(&routes, &header, header_from.as_deref(), &envelope.mail_from, user) {
            Ok(route) => route,
            Err(refusal) => {
                let from = short(header_from.as_deref());
                let (code, reply, to) = (refusal.codes(), refusal.text(), names(&envelope.recipients));
                let (user, message_id) =
                    (user.map(|user| user.name.as_str()), message_id.as_deref().map(one_line));
                tracing::warn!(code, reply, from, to, message_id, user, %peer, "refused");
                return refusal;
            }
        };
        let id = self.store.next_id(now);
        let from = short(header_from.as_deref());
        let to = names(&envelope.recipients);
        let named = message_id.as_deref().map(one_line);
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
                let user = user.map(|user| user.name.as_str());
                tracing::info!(%id, message_id = named, from, to, user, %mailbox, rule = rule.as_str(), size, seconds = seconds(begun.elapsed()), "accepted");
                Reply::new(250, "2.0.0", format!("Ok: queued as {id}"))
            }
            Err(error) => {
                let reply = Reply::new(
                    452,
                    "4.3.1",
                    "The relay cannot write to its store, so it did not take the message. Look at its log and at the \
                     free space on its disk, then send the message again",
                );
                let (code, seen) = (reply.codes(), reply.text());
                tracing::error!(code, reply = seen, from, to, %mailbox, error = chain(&error), "refused");
                reply
            }
        }
    }
}

/// Which way a message goes, or why it can never be sent.
fn route(
    routes: &Routes,
    header: &HeaderView<'_>,
    from: Option<&str>,
    mail_from: &str,
    user: Option<&User>,
) -> Result<Route, Reply> {
    if header.hops() >= HOPS {
        return Err(Reply::new(
            554,
            "5.4.6",
            format!(
                "Routing loop detected: the message has been through {HOPS} servers already (its Received fields). \
                     Look for a forwarding that leads back here"
            ),
        ));
    }
    if let Some(user) = user
        && let Some(senders) = &user.senders
    {
        if !senders.allow_from(from) {
            let from = short(from);
            return Err(not_allowed(user, &format!("{from:?} as the From of a message")));
        }
        if let Some(other) = header.senders().iter().find(|text| !senders.allow_named(text)) {
            return Err(not_allowed(user, &format!("{:?} as the Sender of a message", short(Some(other)))));
        }
        if !header.is_whole() {
            return Err(Reply::new(
                554,
                "5.6.0",
                format!(
                    "The header of the message holds a line that is no field, behind which another From may hide; the \
                         user {} may send as its senders only",
                    user.name
                ),
            ));
        }
    }
    let route = match user.and_then(|user| user.mailbox.as_ref()) {
        // A session may be older than the configuration.
        Some(mailbox) if routes.knows(mailbox) => routes.bound_to(mailbox, from),
        _ => routes
            .route(from, mail_from)
            .map_err(|no_mailbox| Reply::new(554, "5.3.5", no_mailbox.to_string()))?,
    };
    if route.new_from.is_none() && Address::all(from.unwrap_or_default()).is_empty() {
        return Err(Reply::new(
            554,
            "5.6.0",
            "The message has no From address, and none stands in for it: set one in Odoo, or default_from and \
                 catchall_domain in [odoo] of the relay (not for a user that is bound to a mailbox)",
        ));
    }
    Ok(route)
}

/// Logs a 4xx or 5xx reply: to Odoo each is a lost mail, so each is worth a line.
pub(super) fn log_refusal(peer: SocketAddr, reply: &Reply) {
    tracing::warn!(code = reply.codes(), reply = reply.text(), %peer, "refused");
}

/// What is logged of a From.
fn short(from: Option<&str>) -> String {
    from.unwrap_or_default().chars().take(FROM).collect()
}
