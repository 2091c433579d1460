//! Microsoft 365: where it is and as which app we sign in (`[microsoft]`), and what its replies mean.

mod credential;
pub mod expiry;
pub mod imap_replies;
mod not_after;
pub mod smtp_replies;
pub mod token_errors;

pub use credential::{ASSERTION_TYPE, Certificate, Credential};

use crate::address::Address;
use crate::failure::chain;
use crate::section::Section;
use crate::tls;
use crate::units::HostPort;
use jiff::civil::Date;
use serde::Deserialize;
use std::path::PathBuf;
use url::Url;

/// The `[microsoft]` section; a mailbox may override all of it but `ca_file`.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The app's (client) id, from the Azure app registration.
    pub client_id: String,
    /// How the app proves who it is: what makes it a public or a confidential client.
    pub credential: Credential,
    /// When the secret expires at Microsoft.
    pub client_secret_expires: Option<Date>,
    /// GUID, domain, `common`, `organizations` or `consumers`.
    pub tenant: String,
    /// How access tokens are got.
    pub grant: Grant,
    /// The national cloud.
    pub cloud: Cloud,
    /// Where tokens come from, without a slash at the end.
    pub authority: String,
    /// The submission service: STARTTLS.
    pub smtp: HostPort,
    /// The IMAP service: TLS from the start.
    pub imap: HostPort,
    /// Roots trusted besides the system's.
    pub ca_file: Option<PathBuf>,
}

/// How access tokens are got (RFC 6749).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Grant {
    /// The owner consented; the refresh token is kept.
    RefreshToken,
    /// App-only: the app itself may use the mailbox, nobody signs in.
    ClientCredentials,
}

/// The national clouds; an app is registered in one of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cloud {
    /// Everybody else's.
    Global,
    /// US government (GCC High and DoD).
    UsGovernment,
    /// China, operated by 21Vianet.
    China,
}

impl Cloud {
    /// Authority, submission and IMAP service of the cloud.
    fn endpoints(self) -> (&'static str, &'static str, &'static str) {
        match self {
            Self::Global => {
                ("https://login.microsoftonline.com", "smtp.office365.com", "outlook.office365.com")
            }
            Self::UsGovernment => {
                ("https://login.microsoftonline.us", "smtp.office365.us", "outlook.office365.us")
            }
            Self::China => {
                ("https://login.partner.microsoftonline.cn", "smtp.partner.outlook.cn", "partner.outlook.cn")
            }
        }
    }

    /// The resource that the scopes name.
    fn resource(self) -> &'static str {
        match self {
            Self::Global => "https://outlook.office.com",
            Self::UsGovernment => "https://outlook.office365.us",
            Self::China => "https://partner.outlook.cn",
        }
    }
}

impl Config {
    /// What holds in a cloud when the file says nothing more.
    fn of_cloud(cloud: Cloud) -> Self {
        let (authority, smtp, imap) = cloud.endpoints();
        Self {
            client_id: String::new(),
            credential: Credential::Public,
            client_secret_expires: None,
            tenant: "common".to_owned(),
            grant: Grant::RefreshToken,
            cloud,
            authority: authority.to_owned(),
            smtp: HostPort { host: smtp.to_owned(), port: 587 },
            imap: HostPort { host: imap.to_owned(), port: 993 },
            ca_file: None,
        }
    }

    /// Reads `[microsoft]`.
    pub fn read_root(section: &mut Section<'_>) -> Self {
        let cloud = section.get_or("cloud", Cloud::Global);
        let mut config = Self::read(section, &Self::of_cloud(cloud));
        config.cloud = cloud;
        config.ca_file = section.path_of("ca_file");
        if let Some(Err(error)) = config.ca_file.as_deref().map(tls::certificates) {
            section.mistake("ca_file", format!("names {}", chain(&error)));
        }
        config
    }

    /// Reads what a section says of it over what holds otherwise.
    pub fn read(section: &mut Section<'_>, otherwise: &Self) -> Self {
        let names_app = section.has("client_id");
        let credential = Credential::read(section);
        let expires = read_date(section, "client_secret_expires");
        let config = Self {
            client_id: section.get_or("client_id", otherwise.client_id.clone()),
            // Another app has another secret or certificate, or none.
            credential: credential
                .unwrap_or_else(|| if names_app { Credential::Public } else { otherwise.credential.clone() }),
            client_secret_expires: expires.or(otherwise.client_secret_expires.filter(|_| !names_app)),
            tenant: section.get_or("tenant", otherwise.tenant.clone()),
            grant: section.get_or("grant", otherwise.grant),
            cloud: otherwise.cloud,
            authority: section
                .get_or("authority", otherwise.authority.clone())
                .trim_end_matches('/')
                .to_owned(),
            smtp: section.get_or("smtp", otherwise.smtp.clone()),
            imap: section.get_or("imap", otherwise.imap.clone()),
            ca_file: otherwise.ca_file.clone(),
        };
        config.check(section);
        config
    }

    fn check(&self, section: &Section<'_>) {
        let in_url = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
        if self.tenant.is_empty() || !self.tenant.chars().all(in_url) {
            section.mistake("tenant", "is not a tenant: write its GUID, one of its domains, or \"common\"");
        }
        if !self.client_id.chars().all(in_url) {
            section.mistake(
                "client_id",
                "is not an application (client) id: copy the GUID from the Azure app's page",
            );
        }
        if let Err(mistake) = check_authority(&self.authority) {
            section.mistake("authority", mistake);
        }
        if self.grant == Grant::ClientCredentials && !self.names_own_tenant() {
            section.mistake(
                "tenant",
                "must name your own tenant for grant = \"client_credentials\" (its GUID or domain)",
            );
        }
        if self.grant == Grant::ClientCredentials && matches!(self.credential, Credential::Public) {
            section.mistake(
                "client_secret_file",
                "is missing: grant = \"client_credentials\" signs in with the app's secret or certificate",
            );
        }
    }

    /// Whether the tenant is one's own, and not a word for any.
    pub fn names_own_tenant(&self) -> bool {
        !["common", "organizations", "consumers"].contains(&self.tenant.to_ascii_lowercase().as_str())
    }

    /// When the app's credential ends at Microsoft: the certificate's own end, or what the configuration says of the
    /// secret.
    pub fn credential_expires(&self) -> Option<Date> {
        match &self.credential {
            Credential::Certificate(certificate) => certificate.expires,
            Credential::Secret(_) => self.client_secret_expires,
            Credential::Public => None,
        }
    }

    /// The token endpoint (RFC 6749 section 3.2).
    pub fn token_endpoint(&self) -> String {
        self.endpoint("token")
    }

    /// Where the browser signs in (RFC 6749 section 3.1).
    pub fn authorization_endpoint(&self) -> String {
        self.endpoint("authorize")
    }

    /// Where a device flow begins (RFC 8628 section 3.1).
    pub fn device_authorization_endpoint(&self) -> String {
        self.endpoint("devicecode")
    }

    fn endpoint(&self, name: &str) -> String {
        format!("{}/{}/oauth2/v2.0/{name}", self.authority, self.tenant)
    }

    /// The scopes to ask for: one delegated token serves SMTP and IMAP; app-only ones name the resource's default.
    pub fn scopes(&self) -> Vec<String> {
        let resource = self.cloud.resource();
        match self.grant {
            Grant::RefreshToken => vec![
                format!("{resource}/SMTP.Send"),
                format!("{resource}/IMAP.AccessAsUser.All"),
                "offline_access".to_owned(),
            ],
            // Microsoft's documentation names outlook.office365.com for app-only tokens, not outlook.office.com.
            Grant::ClientCredentials if self.cloud == Cloud::Global => {
                vec!["https://outlook.office365.com/.default".to_owned()]
            }
            Grant::ClientCredentials => vec![format!("{resource}/.default")],
        }
    }
}

/// What is wrong with an authority, if anything is. Its URL goes into logs and errors, and the endpoints' paths are added
/// to its end.
fn check_authority(authority: &str) -> Result<(), &'static str> {
    let url = Url::parse(authority).ok().filter(Url::has_host);
    let url = url.ok_or("is not an https address, like \"https://login.microsoftonline.com\"")?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err("holds a user or password, which the log would show: leave it out");
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err("has a ? or # in it: end it before, like \"https://login.microsoftonline.com\"");
    }
    let is_local = url.host_str().is_some_and(|host| ["127.0.0.1", "localhost", "[::1]"].contains(&host));
    if url.scheme() == "https" || url.scheme() == "http" && is_local {
        Ok(())
    } else {
        Err("is not an https address, like \"https://login.microsoftonline.com\"")
    }
}

/// The initial response of SASL XOAUTH2, before its base64: Microsoft's "Authenticate an IMAP, POP or SMTP connection
/// using OAuth". Holds the token: never to be logged.
pub fn xoauth2(mailbox: &Address, token: &str) -> String {
    format!("user={mailbox}\x01auth=Bearer {token}\x01\x01")
}

/// A date, written as TOML's own (`2027-11-20`) or as a string.
fn read_date(section: &mut Section<'_>, key: &'static str) -> Option<Date> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Written {
        Date(toml::value::Datetime),
        Text(String),
    }
    let text = match section.get::<Written>(key)? {
        Written::Date(date) => date.to_string(),
        Written::Text(text) => text,
    };
    let date = text.parse().ok();
    if date.is_none() {
        section.mistake(key, "is not a date, like 2027-11-20");
    }
    date
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::section::parse;
    use std::path::Path;

    fn read(text: &str) -> (Config, Vec<String>) {
        let parsed = parse(text, Path::new("/nonexistent"), None, Config::read_root);
        (parsed.value, parsed.mistakes.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn a_cloud_sets_the_endpoints_and_each_may_be_overridden() {
        let (config, mistakes) = read("cloud = 'china'\nimap = '127.0.0.1:1993'\n");
        assert_eq!(mistakes, Vec::<String>::new());
        assert_eq!(
            config.token_endpoint(),
            "https://login.partner.microsoftonline.cn/common/oauth2/v2.0/token"
        );
        assert_eq!(config.smtp.to_string(), "smtp.partner.outlook.cn:587");
        assert_eq!(config.imap.to_string(), "127.0.0.1:1993");
        assert_eq!(config.scopes()[0], "https://partner.outlook.cn/SMTP.Send");
    }

    #[test]
    fn dates_are_read_bare_and_quoted() {
        let day = Some(jiff::civil::date(2027, 11, 20));
        assert_eq!(read("client_secret_expires = 2027-11-20").0.client_secret_expires, day);
        assert_eq!(read("client_secret_expires = '2027-11-20'").0.client_secret_expires, day);
        assert_eq!(read("client_secret_expires = 'soon'").1.len(), 1);
    }

    #[test]
    fn extra_roots_must_be_there() {
        let (_, mistakes) = read("ca_file = 'roots.pem'\n");
        assert!(
            mistakes.len() == 1 && mistakes[0].starts_with("1: ca_file: names /nonexistent/roots.pem"),
            "{mistakes:?}"
        );
    }

    #[test]
    fn app_only_needs_a_tenant_and_a_secret() {
        let (_, mistakes) = read("grant = 'client_credentials'\n");
        assert_eq!(mistakes.len(), 2, "{mistakes:?}");
    }

    #[test]
    fn roots_that_cannot_be_read_are_a_mistake() {
        let (_, mistakes) = read("ca_file = 'roots.pem'");
        assert_eq!(mistakes.len(), 1, "{mistakes:?}");
        assert!(mistakes[0].starts_with("1: ca_file: names /nonexistent/roots.pem"), "{mistakes:?}");
    }

    #[test]
    fn an_authority_is_https_and_holds_no_secret() {
        for authority in [
            "https://login.example.com",
            "https://login.example.com/",
            "http://127.0.0.1:8080/",
            "http://[::1]:1",
        ] {
            assert_eq!(read(&format!("authority = '{authority}'")).1, Vec::<String>::new(), "{authority}");
        }
        for (authority, expected) in [
            ("http://login.example.com", "is not an https address"),
            ("login.example.com", "is not an https address"),
            ("https://me:hunter2@login.example.com", "holds a user or password"),
            ("https://hunter2@login.example.com", "holds a user or password"),
            // Looks like loopback, and is not.
            ("http://127.0.0.1:80@login.example.com", "holds a user or password"),
            ("https://login.example.com/?x=hunter2", "has a ? or #"),
            ("https://login.example.com/#x", "has a ? or #"),
        ] {
            let mistakes = read(&format!("authority = '{authority}'")).1;
            assert_eq!(mistakes.len(), 1, "{authority}: {mistakes:?}");
            assert!(mistakes[0].contains(expected) && !mistakes[0].contains("hunter2"), "{mistakes:?}");
        }
    }
}
