//! AUTH PLAIN (RFC 4616) and LOGIN, as steps without I/O (RFC 4954). Odoo tries PLAIN, then LOGIN.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use secrecy::{ExposeSecret as _, SecretString};

use super::reply::Reply;

/// The one user who may submit.
#[derive(Clone, Debug)]
pub struct Credentials {
    /// The user name.
    pub user: String,
    /// The password.
    pub password: SecretString,
}

impl Credentials {
    /// Whether these are the right ones. Takes the same time whichever byte differs.
    fn match_with(&self, user: &[u8], password: &[u8]) -> bool {
        same(user, self.user.as_bytes()) & same(password, self.password.expose_secret().as_bytes())
    }
}

/// Compares in a time that depends on the length of `given` only.
fn same(given: &[u8], expected: &[u8]) -> bool {
    let differences = given
        .iter()
        .zip(expected.iter().cycle())
        .fold(u8::from(given.len() != expected.len()), |differences, (a, b)| differences | (a ^ b));
    std::hint::black_box(differences) == 0
}

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
    /// The right credentials.
    Success(Reply),
    /// Refused, and the exchange is over.
    Refused(Reply),
}

impl Exchange {
    /// Begins with the argument of AUTH: a mechanism and perhaps an initial response.
    pub fn begin(argument: &str, credentials: &Credentials) -> Outcome {
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
            Some("=") => exchange.answer(b"", credentials),
            Some(initial) => exchange.respond(initial, credentials),
            None => Outcome::Challenge(exchange, Reply::plain(334, challenge)),
        }
    }

    /// Goes on with a line of the client.
    pub fn respond(self, line: &str, credentials: &Credentials) -> Outcome {
        if line == "*" {
            return Outcome::Refused(Reply::new(501, "5.7.0", "Authentication cancelled"));
        }
        match BASE64_STANDARD.decode(line) {
            Ok(response) => self.answer(&response, credentials),
            Err(_) => Outcome::Refused(Reply::new(501, "5.5.2", "The response is not base64")),
        }
    }

    fn answer(self, response: &[u8], credentials: &Credentials) -> Outcome {
        match self {
            Self::Plain => {
                let mut parts = response.split(|byte| *byte == 0);
                match (parts.next(), parts.next(), parts.next(), parts.next()) {
                    (Some(identity), Some(user), Some(password), None) => {
                        // Nobody may act as somebody else: the identity is the user's own, or left out.
                        let own = identity.is_empty() | same(identity, user);
                        verdict(own & credentials.match_with(user, password))
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
            Self::LoginPassword { user } => verdict(credentials.match_with(&user, response)),
        }
    }
}

/// `Username:` and `Password:`, the challenges every client of LOGIN expects.
const USER: &str = "VXNlcm5hbWU6";
const PASSWORD: &str = "UGFzc3dvcmQ6";

fn verdict(right: bool) -> Outcome {
    if right {
        Outcome::Success(Reply::new(235, "2.7.0", "Authentication successful"))
    } else {
        Outcome::Refused(Reply::new(
            535,
            "5.7.8",
            "Wrong user name or password. They must be those of user and password_file in [submission]",
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comparison() {
        let table: &[(&str, &str, bool)] = &[
            ("", "", true),
            ("a", "a", true),
            ("secret", "secret", true),
            ("", "a", false),
            ("a", "", false),
            ("a", "b", false),
            ("aa", "a", false),
            ("a", "aa", false),
            ("secreT", "secret", false),
            ("abab", "ab", false),
        ];
        for (given, expected, equal) in table {
            assert_eq!(same(given.as_bytes(), expected.as_bytes()), *equal, "{given:?} and {expected:?}");
        }
    }

    #[test]
    fn the_password_is_not_in_the_debug_output() {
        let credentials = Credentials { user: "odoo".to_owned(), password: "open sesame".to_owned().into() };
        assert!(!format!("{credentials:?}").contains("sesame"));
    }
}
