//! What a check found: seen, meaning, remedy. Pure.

use super::powershell;
use crate::failure::{Class, Failure};
use crate::mailbox::Config;
use crate::microsoft::expiry::Warning;
use crate::odoo::{Protocol, Suits, Version};
use serde::{Deserialize, Serialize};

/// Everything that was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Whether no check failed.
    pub well: bool,
    /// Mailbox by mailbox, then what concerns them all.
    pub findings: Vec<Finding>,
}

impl Report {
    /// The report of these findings.
    pub fn new(findings: Vec<Finding>) -> Self {
        Self { well: findings.iter().all(|finding| finding.outcome != Outcome::Failed), findings }
    }
}

/// One check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// Whose; `None`: it concerns them all.
    pub mailbox: Option<String>,
    /// What was checked.
    pub check: Check,
    /// How it ended.
    pub outcome: Outcome,
    /// Who can mend it; `None`: there is nothing to mend.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class: Option<Class>,
    /// The peer's code for what failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    /// What was seen.
    pub seen: String,
    /// What that means.
    pub meaning: String,
    /// What to do; empty where nothing is to be done.
    pub remedy: String,
    /// Commands that belong to the remedy, line by line.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub commands: Vec<String>,
}

/// What is checked, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Check {
    /// A refresh brings an access token.
    Token,
    /// The submission service: greeting, EHLO, STARTTLS, its certificate.
    SmtpConnection,
    /// AUTH XOAUTH2.
    SmtpLogin,
    /// The IMAP service: its certificate, greeting.
    ImapConnection,
    /// AUTHENTICATE XOAUTH2.
    ImapLogin,
    /// The folder that is watched.
    ImapFolder,
    /// Odoo has the protocol that it is asked in.
    OdooProtocol,
    /// Odoo knows login and password.
    OdooLogin,
    /// Odoo lets that user read a model.
    OdooRights,
    /// How long the app's secret or certificate is good for.
    ClientSecret,
}

impl Check {
    /// What people read.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Token => "token",
            Self::SmtpConnection => "SMTP connection",
            Self::SmtpLogin => "SMTP login",
            Self::ImapConnection => "IMAP connection",
            Self::ImapLogin => "IMAP login",
            Self::ImapFolder => "IMAP folder",
            Self::OdooProtocol => "Odoo protocol",
            Self::OdooLogin => "Odoo login",
            Self::OdooRights => "Odoo rights",
            Self::ClientSecret => "app's credential",
        }
    }

    /// What works when the check is well.
    fn works(self) -> &'static str {
        match self {
            Self::Token => "the relay may act for the mailbox",
            Self::SmtpConnection => "the submission service can be reached",
            Self::SmtpLogin => "mail can be sent through the mailbox",
            Self::ImapConnection => "the IMAP service can be reached",
            Self::ImapLogin => "the relay may read the mailbox",
            Self::ImapFolder => "received mail can be fetched",
            Self::OdooProtocol => "Odoo understands the relay",
            Self::OdooLogin => "Odoo lets the relay in",
            Self::OdooRights => "Odoo can find what it has already",
            Self::ClientSecret => "the app can sign in",
        }
    }

    /// What does not when it is not.
    fn fails(self) -> &'static str {
        match self {
            Self::Token => "without a token no mail can be sent or fetched",
            Self::SmtpConnection | Self::SmtpLogin => "no mail can be sent through the mailbox: it waits",
            Self::ImapConnection | Self::ImapLogin | Self::ImapFolder => {
                "received mail cannot be fetched: it stays in the mailbox"
            }
            Self::OdooProtocol | Self::OdooLogin => {
                "received mail cannot be pushed into Odoo: it stays in the mailbox"
            }
            Self::OdooRights => {
                "Odoo cannot tell which mails it has already: it may refuse them or take them twice"
            }
            Self::ClientSecret => "no mailbox of the app gets a new token",
        }
    }

    /// What can be done where the failure itself gives no advice.
    fn remedy(self) -> &'static str {
        match self {
            Self::SmtpConnection | Self::ImapConnection => {
                "check that this machine may connect there (firewall, proxy, DNS), and run doctor again"
            }
            _ => "run doctor again in some minutes; if it stays, the log of the other side says more",
        }
    }
}

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It is well.
    Ok,
    /// It works, but something should be done about it.
    Warning,
    /// It does not work.
    Failed,
    /// It could not be tried, because of what failed before.
    Skipped,
}

impl Finding {
    fn new(mailbox: Option<&Config>, check: Check, outcome: Outcome, seen: String) -> Self {
        Self {
            mailbox: mailbox.map(|mailbox| mailbox.address.to_string()),
            check,
            outcome,
            class: None,
            code: None,
            seen,
            meaning: check.works().to_owned(),
            remedy: String::new(),
            commands: Vec::new(),
        }
    }

    /// A check that is well.
    pub(super) fn ok(mailbox: Option<&Config>, check: Check, seen: impl Into<String>) -> Self {
        Self::new(mailbox, check, Outcome::Ok, seen.into())
    }

    /// A check that failed.
    pub(super) fn failed(mailbox: Option<&Config>, check: Check, failure: &Failure) -> Self {
        let who = match failure.class {
            Class::Transient => "; it may pass by itself",
            Class::Rate => "; the service asks for a pause, it passes by itself",
            Class::Message => "",
            Class::Consent => "; the mailbox's owner has to act",
            Class::Administrator => "; an administrator has to act",
        };
        let commands = mailbox.filter(|_| powershell::may_help(check, failure)).map(powershell::lines);
        let commands = commands.unwrap_or_default();
        let remedy = match failure.advice.as_str() {
            "" => check.remedy(),
            advice if commands.is_empty() || powershell::is_named(failure) => advice,
            _ => powershell::REMEDY,
        };
        Self {
            class: Some(failure.class),
            code: Some(failure.code.clone()),
            meaning: format!("{}{who}", check.fails()),
            remedy: remedy.to_owned(),
            commands,
            ..Self::new(mailbox, check, Outcome::Failed, seen(failure))
        }
    }

    /// No new token came, but the one at hand is good `until` then.
    pub(super) fn lasting(mut self, until: &str) -> Self {
        self.meaning = format!("until {until} the token at hand serves, then {}", self.meaning);
        self
    }

    /// A check that could not be made because `what` failed.
    pub(super) fn skipped(mailbox: Option<&Config>, check: Check, what: Check) -> Self {
        Self {
            meaning: "whether this works shows once that does".to_owned(),
            ..Self::new(mailbox, check, Outcome::Skipped, format!("not tried: see {}", what.as_str()))
        }
    }

    /// How the configured protocol suits Odoo's version.
    pub(super) fn protocol(version: &Version, protocol: Protocol) -> Self {
        let (outcome, meaning, remedy) = match (version.suits(protocol), protocol) {
            (Suits::Well, _) => (Outcome::Ok, "it is the right protocol for this version", ""),
            (Suits::ForNow, _) => (
                Outcome::Ok,
                "it is the recommended protocol up to Odoo 21: it hands over every mail byte for byte; Odoo 22 no \
                 longer has it, so set protocol = \"json2\" and an API key before that upgrade",
                "",
            ),
            (Suits::Poorly, _) => (
                Outcome::Ok,
                "it works: of a mail that is not UTF-8 Odoo gets a copy in which it reads the same; up to Odoo 21, \
                 protocol = \"xmlrpc\" hands over every mail byte for byte and is recommended",
                "",
            ),
            (Suits::No, Protocol::Json2) => (
                Outcome::Failed,
                "JSON-2 came with Odoo 19: received mail cannot be pushed into this Odoo",
                "set protocol = \"xmlrpc\" in [odoo]",
            ),
            (Suits::No, Protocol::XmlRpc) => (
                Outcome::Failed,
                "Odoo 22 and later have no XML-RPC: received mail cannot be pushed into this Odoo",
                "set protocol = \"json2\" in [odoo], and put an API key of the user into password_file",
            ),
        };
        let has = match (version.suits(Protocol::XmlRpc), version.suits(Protocol::Json2)) {
            (Suits::No, _) => "JSON-2",
            (_, Suits::No) => "XML-RPC",
            _ => "XML-RPC (recommended) and JSON-2",
        };
        let seen = format!("Odoo {} has {has}; `protocol` is {}", version.text, protocol.as_str());
        let class = (outcome == Outcome::Failed).then_some(Class::Administrator);
        let (meaning, remedy) = (meaning.to_owned(), remedy.to_owned());
        Self { class, meaning, remedy, ..Self::new(None, Check::OdooProtocol, outcome, seen) }
    }

    /// A check that says nothing either way.
    pub(super) fn unclear(check: Check, failure: &Failure) -> Self {
        Self {
            class: Some(failure.class),
            code: Some(failure.code.clone()),
            meaning: "whether this works could not be found out".to_owned(),
            remedy: if failure.advice.is_empty() { check.remedy() } else { &failure.advice }.to_owned(),
            ..Self::new(None, check, Outcome::Warning, seen(failure))
        }
    }

    /// A secret that expires soon, or has.
    pub(super) fn expiry(warning: Warning) -> Self {
        let outcome = if warning.expired { Outcome::Failed } else { Outcome::Warning };
        Self {
            class: Some(Class::Administrator),
            meaning: warning.meaning,
            remedy: warning.remedy,
            ..Self::new(None, Check::ClientSecret, outcome, warning.seen)
        }
    }
}

/// What the peer said, after its code where the text does not begin with it.
fn seen(failure: &Failure) -> String {
    let Failure { code, reply, .. } = failure;
    if reply.starts_with(code.as_str()) {
        reply.clone()
    } else if code.starts_with(|c: char| c.is_ascii_digit()) {
        format!("{code} {reply}")
    } else {
        format!("{code}: {reply}")
    }
}
