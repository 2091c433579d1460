//! AUTH PLAIN (RFC 4616) and LOGIN, as steps without I/O (RFC 4954). Odoo tries PLAIN, then LOGIN.

use std::sync::Arc;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;

use super::reply::Reply;
use super::users::{self, User, same};

/// An exchange that waits for the client's next line. Has no `Debug`: people do type passwords as user names.
pub enum Exchange {
    /// The PLAIN response.
    Plain,
    /// The user name of LOGIN.
    LoginUser,
    /// The password of LOGIN.
    LoginPassword {
        /// The user name given before.
        user: Vec<u8>,
    },
}

/// What an exchange comes to.
pub enum Outcome {
    /// A challenge; the client's next line answers it.
    Challenge(Exchange, Reply),
    /// The right credentials, and whose they are.
    Success(Arc<User>, Reply),
    /// Refused, and the exchange is over.
    Refused(Reply),
}

impl Exchange {
    /// Begins with the argument of AUTH: a mechanism and perhaps an initial response.
    pub fn begin(argument: &str, users: &[Arc<User>]) -> Outcome {
        let (mechanism, initial) = match argument.split_once(' ') {
            Some((mechanism, initial)) => (mechanism, Some(initial.trim_matches(' '))),
            None => (argument, None),
        };
        let (exchange, challenge) = if mechanism.eq_ignore_ascii_case("PLAIN") {
            (Self::Plain, "")
        } else if mechanism.eq_ignore_ascii_case("LOGIN") {
            (Self::LoginUser, USER)
        } else {
            return Outcome::Refused(Reply::new(504, "5.5.4", "Unknown mechanism: use PLAIN or LOGIN"));
        };
        match initial {
            // A single `=` is the empty response (RFC 4954 section 4).
            Some("=") => exchange.answer(b"", users),
            Some(initial) => exchange.respond(initial, users),
            None => Outcome::Challenge(exchange, Reply::plain(334, challenge)),
        }
    }

    /// Goes on with a line of the client.
    pub fn respond(self, line: &str, users: &[Arc<User>]) -> Outcome {
        if line == "*" {
            return Outcome::Refused(Reply::new(501, "5.7.0", "Authentication cancelled"));
        }
        match BASE64_STANDARD.decode(line) {
            Ok(response) => self.answer(&response, users),
            Err(_) => Outcome::Refused(Reply::new(501, "5.5.2", "The response is not base64")),
        }
    }

    fn answer(self, response: &[u8], users: &[Arc<User>]) -> Outcome {
        match self {
            Self::Plain => {
                let mut parts = response.split(|byte| *byte == 0);
                match (parts.next(), parts.next(), parts.next(), parts.next()) {
                    (Some(identity), Some(user), Some(password), None) => {
                        // Nobody may act as somebody else: the identity is the user's own, or left out.
                        let own = identity.is_empty() | same(identity, user);
                        verdict(users::find(users, user, password).filter(|_| own))
                    }
                    _ => Outcome::Refused(Reply::new(
                        501,
                        "5.5.2",
                        "The response is not one of PLAIN (RFC 4616)",
                    )),
                }
            }
            Self::LoginUser => Outcome::Challenge(
                Self::LoginPassword { user: response.to_vec() },
                Reply::plain(334, PASSWORD),
            ),
            Self::LoginPassword { user } => verdict(users::find(users, &user, response)),
        }
    }
}

/// `Username:` and `Password:`, the challenges every client of LOGIN expects.
const USER: &str = "VXNlcm5hbWU6";
const PASSWORD: &str = "UGFzc3dvcmQ6";

fn verdict(user: Option<&Arc<User>>) -> Outcome {
    match user {
        Some(user) => {
            Outcome::Success(Arc::clone(user), Reply::new(235, "2.7.0", "Authentication successful"))
        }
        None => Outcome::Refused(Reply::new(
            535,
            "5.7.8",
            "Wrong user name or password. They must be those of user and password_file in [submission], or of a \
             [[submission.user]]",
        )),
    }
}
