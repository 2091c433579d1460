//! The verbs that make a session private and its client known: STARTTLS (RFC 3207) and AUTH (RFC 4954).

use super::{Action, Session, no_argument, syntax, unreadable, wrong_order};
use crate::submission::auth::{Exchange, Outcome};
use crate::submission::reply::Reply;

impl Session {
    pub(super) fn auth(&mut self, argument: &str) -> Reply {
        if self.offer.users.is_empty() {
            return Reply::new(
                502,
                "5.5.1",
                "No user is configured: leave user name and password empty in Odoo, or set user and password_file in \
                 [submission]",
            );
        }
        if !self.greeted {
            return wrong_order("Say EHLO first");
        }
        if self.user.is_some() {
            return wrong_order("Already authenticated");
        }
        if self.transaction.is_some() {
            return wrong_order("Not within a message");
        }
        if !self.private() {
            return Reply::new(538, "5.7.11", "A password is only taken over TLS: send STARTTLS first");
        }
        if argument.is_empty() {
            return syntax("AUTH PLAIN, or AUTH LOGIN");
        }
        let outcome = Exchange::begin(argument, &self.offer.users);
        self.settle(outcome)
    }

    pub(super) fn respond(&mut self, exchange: Exchange, line: &[u8]) -> Reply {
        let Ok(line) = std::str::from_utf8(line) else {
            return unreadable();
        };
        let outcome = exchange.respond(line, &self.offer.users);
        self.settle(outcome)
    }

    fn settle(&mut self, outcome: Outcome) -> Reply {
        match outcome {
            Outcome::Challenge(exchange, reply) => {
                self.exchange = Some(exchange);
                reply
            }
            Outcome::Success(user, reply) => {
                self.user = Some(user);
                reply
            }
            Outcome::Refused(reply) => reply,
        }
    }

    pub(super) fn starttls(&mut self, argument: &str) -> Action {
        if !self.offer.tls {
            Action::Reply(Reply::new(502, "5.5.1", "No certificate is configured for TLS"))
        } else if self.encrypted {
            Action::Reply(wrong_order("TLS is on already"))
        } else if !argument.is_empty() {
            Action::Reply(no_argument())
        } else {
            Action::StartTls(Reply::new(220, "2.0.0", "Ready to start TLS"))
        }
    }
}
