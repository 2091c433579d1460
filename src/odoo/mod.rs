//! Odoo: its mail settings, and its mail gateway, into which received mail is pushed.

pub mod answers;
mod client;
mod gateway;
mod intake;
mod json2;
mod version;
pub mod xmlrpc;

pub use answers::Taken;
pub use gateway::{Gateway, Turn};
pub use intake::{Intake, Scalar};
pub use version::{Suits, Version};

use crate::address::Address;
use crate::routing::AliasDomain;
use crate::section::Section;
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use std::time::Duration;
use url::Url;

/// The `[odoo]` section.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// How to reach its mail gateway; `None` where the file does not say: then no inbox can be watched.
    pub gateway: Option<GatewayConfig>,
    /// Its alias domains; the first is the one whose values stand in `[odoo]` itself, if they do.
    pub alias_domains: Vec<AliasDomain>,
}

/// How to reach Odoo's mail gateway.
#[derive(Clone, Debug)]
pub struct GatewayConfig {
    /// Odoo's address, without a slash at the end.
    pub url: String,
    /// The company's own domains: those of the alias domains.
    pub domains: Vec<String>,
    /// The database.
    pub database: String,
    /// How Odoo is asked.
    pub protocol: Protocol,
    /// The login of the account that feeds. (JSON-2 tells it by the key alone.)
    pub login: String,
    /// Its password or API key; JSON-2 takes a key only.
    pub password: SecretString,
    /// How long a call may take: it waits until Odoo's own outgoing mails are sent.
    pub timeout: Duration,
    /// The model that takes mail; forks rename it.
    pub gateway_model: String,
    /// How long after a mail was accepted its failure is reported at the earliest.
    pub report_after: Duration,
    /// Pushes at a time, over all mailboxes: each occupies one of Odoo's workers, which serve its users as well.
    pub parallel: u32,
}

impl PartialEq for GatewayConfig {
    fn eq(&self, other: &Self) -> bool {
        // Each field by name, so that a new one is not forgotten.
        let Self {
            url,
            domains,
            database,
            protocol,
            login,
            password,
            timeout,
            gateway_model,
            report_after,
            parallel,
        } = self;
        *url == other.url
            && *domains == other.domains
            && *database == other.database
            && *protocol == other.protocol
            && *login == other.login
            && password.expose_secret() == other.password.expose_secret()
            && *timeout == other.timeout
            && *gateway_model == other.gateway_model
            && *report_after == other.report_after
            && *parallel == other.parallel
    }
}

/// The protocols of Odoo's external API.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// Odoo 16 to 21.
    XmlRpc,
    /// Odoo 19 and later.
    Json2,
}

impl Protocol {
    /// As `protocol` names it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::XmlRpc => "xmlrpc",
            Self::Json2 => "json2",
        }
    }
}

impl Config {
    /// Reads `[odoo]` and each `[[odoo.alias_domain]]`.
    pub fn read(section: &mut Section<'_>) -> Self {
        let mut alias_domains: Vec<AliasDomain> = read_alias_domain(section).into_iter().collect();
        let single = !alias_domains.is_empty();
        let tables = section.sections("alias_domain", |table| {
            if !table.has("catchall_domain") {
                table.mistake("catchall_domain", "is missing: the alias domain's name, like \"example.com\"");
            }
            let domain = read_alias_domain(table)?;
            let bounce = domain.bounce();
            if bounce.is_some() && alias_domains.iter().any(|known| known.bounce() == bounce) {
                let message =
                    "makes a bounce address that another alias domain has: Odoo tells them apart by it";
                table.mistake(
                    if table.has("bounce_alias") { "bounce_alias" } else { "catchall_domain" },
                    message,
                );
            }
            alias_domains.push(domain);
            Some(())
        });
        if !tables.is_empty() && !single {
            for key in ["default_from", "bounce_alias"].into_iter().filter(|key| section.has(key)) {
                section.mistake(key, "belongs to catchall_domain: move it into an [[odoo.alias_domain]]");
            }
        }
        let mut gateway = GatewayConfig::read(section);
        if let Some(gateway) = &mut gateway {
            gateway.domains =
                alias_domains.iter().filter_map(|domain| domain.domain().map(str::to_owned)).collect();
        }
        Self { gateway, alias_domains }
    }

    /// Where Odoo takes a bounce of a message with this reverse-path (without angle brackets).
    pub fn bounce(&self, mail_from: &str) -> Option<&Address> {
        AliasDomain::of(&self.alias_domains, mail_from)?.bounce()
    }
}

/// The three keys of an alias domain, in a table of their own or in `[odoo]`. `None` if they make no address.
fn read_alias_domain(section: &mut Section<'_>) -> Option<AliasDomain> {
    let default_from: String = section.get_or("default_from", "notifications".to_owned());
    let domain: Option<String> = section.get("catchall_domain");
    let bounce_alias: String = section.get_or("bounce_alias", "bounce".to_owned());
    let read = AliasDomain::new(domain.as_deref(), Some(&default_from), Some(&bounce_alias));
    if let Some(domain) = &domain
        && format!("bounce@{}", domain.trim()).parse::<Address>().is_err()
    {
        section.mistake("catchall_domain", "is not a domain, like \"example.com\"");
    } else if domain.is_some() && read.bounce().is_none() {
        section.mistake("bounce_alias", "makes no address: write the part before the @");
    } else if read.notifications().is_none() && (domain.is_some() || default_from.contains('@')) {
        section.mistake(
            "default_from",
            "does not make an address with catchall_domain: write the part before the @",
        );
    }
    (read.notifications().is_some() || read.bounce().is_some()).then_some(read)
}

fn has_credentials(url: &Url) -> bool {
    !url.username().is_empty() || url.password().is_some()
}

impl GatewayConfig {
    fn read(section: &mut Section<'_>) -> Option<Self> {
        let protocol = section.get_or("protocol", Protocol::XmlRpc);
        let timeout = section.duration(
            "timeout",
            Duration::from_secs(300),
            Duration::from_secs(1)..Duration::from_secs(3601),
        );
        let report_after = section.duration(
            "report_after",
            Duration::from_secs(5),
            Duration::ZERO..Duration::from_secs(3601),
        );
        let gateway_model = section.get_or("gateway_model", "mail.thread".to_owned());
        let parallel = section.number("parallel", 4, 1..=64);
        let any = ["url", "database", "login", "password_file"].iter().any(|key| section.has(key));
        if !any {
            for key in ["url", "database", "login", "password_file"] {
                // Asked for, so that they count as known.
                section.get::<String>(key);
            }
            return None;
        }
        let url: Option<String> = section.required("url", "Odoo's address, like \"http://127.0.0.1:8069\"");
        let database = section.required("database", "the name of Odoo's database");
        let login = match protocol {
            Protocol::XmlRpc => section.required("login", "the login of the Odoo user that feeds mail in"),
            Protocol::Json2 => Some(section.get_or("login", String::new())),
        };
        let password = section.secret_file("password_file");
        if password.is_none() && !section.has("password_file") {
            section
                .mistake("password_file", "is missing: the file with the password or API key of that user");
        }
        if let Some(url) = &url {
            match Url::parse(url) {
                Ok(url) if has_credentials(&url) => {
                    section
                        .mistake("url", "holds a user or password, which the log would show: leave it out");
                }
                Ok(url) if url.has_host() && ["http", "https"].contains(&url.scheme()) => {}
                _ => section.mistake("url", "is not an address, like \"http://127.0.0.1:8069\""),
            }
        }
        Some(Self {
            url: url?.trim_end_matches('/').to_owned(),
            domains: Vec::new(),
            database: database?,
            protocol,
            login: login?,
            password: password?,
            timeout,
            gateway_model,
            report_after,
            parallel,
        })
    }
}
