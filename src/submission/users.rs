//! Who may submit, what each may send as, and where it goes.

use std::collections::HashMap;
use std::sync::Arc;

use secrecy::{ExposeSecret as _, SecretString};

use super::path;
use crate::address::{Address, normalise_domain};
use crate::section::Section;

/// Somebody who may submit.
#[derive(Clone, Debug)]
pub struct User {
    /// The user name.
    pub name: String,
    /// The password.
    pub password: SecretString,
    /// Who the user may send as; `None`: anyone.
    pub senders: Option<Senders>,
    /// The mailbox that everything of this user goes out through, with the From kept; `None`: the From filters choose.
    pub mailbox: Option<Address>,
}

/// The one among `users` whom name and password belong to. Takes the same time whichever byte differs.
pub fn find<'u>(users: &'u [Arc<User>], name: &[u8], password: &[u8]) -> Option<&'u Arc<User>> {
    users.iter().fold(None, |found, user| {
        let right =
            same(name, user.name.as_bytes()) & same(password, user.password.expose_secret().as_bytes());
        if right { Some(user) } else { found }
    })
}

/// Compares in a time that depends on the length of `given` only.
pub(super) fn same(given: &[u8], expected: &[u8]) -> bool {
    let differences = given
        .iter()
        .zip(expected.iter().cycle())
        .fold(u8::from(given.len() != expected.len()), |differences, (a, b)| differences | (a ^ b));
    std::hint::black_box(differences) == 0
}

/// Addresses and domains, as in a From filter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Senders {
    addresses: Vec<Address>,
    domains: Vec<String>,
}

impl Senders {
    /// Reads a list with commas between. A part with `@` is an address, any other is a domain.
    ///
    /// # Errors
    /// What is wrong with it, in words that follow the name of the key.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut senders = Self::default();
        for part in text.split(',').map(str::trim) {
            if part.contains('@') {
                senders.addresses.push(Address::try_from(part).map_err(|error| format!("holds {error}"))?);
            } else {
                let domain = normalise_domain(part).filter(|domain| path::is_domain(domain));
                senders.domains.push(domain.ok_or_else(|| {
                    let part: String = part.chars().take(100).collect();
                    format!(
                        "holds {part:?}, which is neither an address nor a domain: write \"john@example.com\" or \
                         \"example.com\", several with commas between"
                    )
                })?);
            }
        }
        Ok(senders)
    }

    /// Whether a MAIL FROM may be used. The null reverse-path may: it names nobody.
    pub fn allow_envelope(&self, mail_from: &str) -> bool {
        mail_from.is_empty() || Address::from_spec(mail_from).is_some_and(|address| self.hold(&address))
    }

    /// Whether a From, as [`HeaderView::from`](crate::message::HeaderView::from) gives it, may be used: it names
    /// somebody, and nobody else than these.
    pub fn allow_from(&self, from: Option<&str>) -> bool {
        let addresses = Address::all(from.unwrap_or_default());
        !addresses.is_empty() && addresses.iter().all(|(_, address)| self.hold(address))
    }

    /// Whether all whom a Sender names may be used; it may name nobody.
    pub fn allow_named(&self, text: &str) -> bool {
        Address::all(text).iter().all(|(_, address)| self.hold(address))
    }

    fn hold(&self, address: &Address) -> bool {
        self.addresses.contains(address) || self.domains.iter().any(|domain| domain == address.domain())
    }
}

/// Reads `user` and `password_file`, the short form for one user, or each `[[submission.user]]`. `mailboxes`: those that
/// a user may be bound to.
pub(super) fn read(section: &mut Section<'_>, mailboxes: &[Address]) -> Vec<Arc<User>> {
    if !section.has_sections("user") {
        return one(section).into_iter().collect();
    }
    if section.has("password_file") {
        section.mistake(
            "password_file",
            "has no place beside [[submission.user]]: each of these has a password_file of its own",
        );
        section.path_of("password_file");
    }
    let mut lines = HashMap::new();
    let users = section.sections("user", |section| {
        let name: Option<String> = section.required("name", "what the client gives as its user name");
        if let Some(name) = &name {
            if name.is_empty() {
                section.mistake("name", "is empty: name the user");
            } else if let Some(first) = lines.insert(name.clone(), section.line()) {
                section.mistake("name", format!("already is the user of line {first}: keep one"));
            }
        }
        if !section.has("password_file") {
            section.mistake("password_file", "is missing: the file that holds the user's password");
        }
        let password = section.secret_file("password_file");
        let senders = senders(section);
        let mailbox: Option<Address> = section.get("mailbox");
        if let Some(mailbox) = mailbox.as_ref().filter(|mailbox| !mailboxes.contains(mailbox)) {
            section.mistake(
                "mailbox",
                format!("{mailbox} is no mailbox here: add a [[mailbox]] with this address"),
            );
        }
        Some(Arc::new(User { name: name?, password: password?, senders, mailbox }))
    });
    users.into_iter().flatten().collect()
}

fn senders(section: &mut Section<'_>) -> Option<Senders> {
    let text: String = section.get("senders")?;
    match Senders::parse(&text) {
        Ok(senders) => Some(senders),
        Err(message) => {
            section.mistake("senders", message);
            None
        }
    }
}

fn one(section: &mut Section<'_>) -> Option<Arc<User>> {
    let name: Option<String> = section.get("user");
    let has_password = section.has("password_file");
    let password = section.secret_file("password_file");
    match (&name, has_password) {
        (Some(name), _) if name.is_empty() => {
            section.mistake("user", "is empty: leave it out, or name a user")
        }
        (Some(_), false) => section.mistake("user", "needs password_file, the file that holds the password"),
        (None, true) => section.mistake("password_file", "needs user, the name that goes with the password"),
        _ => {}
    }
    Some(Arc::new(User { name: name?, password: password?, senders: None, mailbox: None }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(name: &str, password: &str) -> Arc<User> {
        Arc::new(User {
            name: name.to_owned(),
            password: password.to_owned().into(),
            senders: None,
            mailbox: None,
        })
    }

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
    fn each_user_has_a_password_of_its_own() {
        let users = [user("odoo", "one"), user("news", "two")];
        for (name, password, found) in [
            ("odoo", "one", Some("odoo")),
            ("news", "two", Some("news")),
            ("odoo", "two", None),
            ("news", "one", None),
            ("", "", None),
            ("odoo", "", None),
        ] {
            let who = find(&users, name.as_bytes(), password.as_bytes()).map(|user| user.name.as_str());
            assert_eq!(who, found, "{name} with {password}");
        }
        assert!(find(&[], b"", b"").is_none());
    }

    #[test]
    fn the_password_is_not_in_the_debug_output() {
        assert!(!format!("{:?}", user("odoo", "open sesame")).contains("sesame"));
    }

    #[test]
    fn senders() {
        let senders = Senders::parse(" John@Example.com ,shop.test, ").unwrap_err();
        assert!(senders.contains("neither an address nor a domain"), "{senders}");
        let senders = Senders::parse(" John@Example.com ,Shop.test").unwrap();
        for (from, allowed) in [
            ("john@example.com", true),
            ("\"Boss, the\" <JOHN@EXAMPLE.COM>", true),
            ("any@shop.test", true),
            ("any@shop.test, john@example.com", true),
            ("any@sub.shop.test", false),
            ("jane@example.com", false),
            ("john@example.com, jane@example.com", false),
            ("\"john@example.com\" <jane@example.com>", false),
            ("John", false),
            ("", false),
        ] {
            assert_eq!(senders.allow_from(Some(from)), allowed, "{from}");
        }
        assert!(!senders.allow_from(None));
        for (mail_from, allowed) in [
            ("", true),
            ("John@example.com", true),
            ("bounce@shop.test", true),
            ("bounce@example.com", false),
        ] {
            assert_eq!(senders.allow_envelope(mail_from), allowed, "{mail_from}");
        }
    }

    #[test]
    fn senders_that_are_none() {
        for text in ["", ",", "a@b.test,", "John <john@example.com>", "a b", "*.example.com", "a@", "x;y"] {
            assert!(Senders::parse(text).is_err(), "{text:?}");
        }
    }
}
