//! Doctor: tries out everything that the relay depends on, step by step, and says what it saw, what that means and what
//! to do. It sends no mail and changes nothing: folders are examined, not selected; Odoo is only asked what the user may
//! read. One thing does change, since trying a refresh token replaces it: that goes through the mailbox's keeper, by its
//! rules.

mod finding;
mod powershell;

pub use finding::{Check, Finding, Outcome, Report};

use crate::address::Address;
use crate::delivery::Probe;
use crate::failure::{Class, Failure};
use crate::imap::{Greeted, Session};
use crate::mailbox::{Config, Mailbox};
use crate::microsoft::expiry;
use crate::odoo::{Gateway, GatewayConfig, Protocol};
use crate::tokens::{AccessToken, Tokens};
use futures_util::{FutureExt, StreamExt, stream};
use jiff::Timestamp;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Mutex;
use tokio_rustls::rustls::ClientConfig;

/// So many mailboxes are examined at a time.
const AT_A_TIME: usize = 8;
/// Odoo may take long to take a mail; what is asked here it answers at once.
const ODOO_TIMEOUT: Duration = Duration::from_secs(20);

/// Examines mailboxes; clones share it.
#[derive(Clone)]
pub struct Doctor {
    mailboxes: Arc<[Arc<Mailbox>]>,
    tokens: Tokens,
    gateway: Option<Gateway>,
    tls: Arc<ClientConfig>,
    /// One examination at a time: Microsoft counts connections and sign-ins.
    turn: Arc<Mutex<()>>,
}

impl Doctor {
    /// Examines these mailboxes, whose keepers must be running, and Odoo where it is configured.
    pub fn new(
        mailboxes: Arc<[Arc<Mailbox>]>,
        tokens: Tokens,
        odoo: Option<&GatewayConfig>,
        http: &reqwest::Client,
        tls: Arc<ClientConfig>,
    ) -> Self {
        // A gateway of its own: it signs in anew, and what fails here is no trouble of the daemon's.
        let gateway = odoo.map(|config| {
            let timeout = config.timeout.min(ODOO_TIMEOUT);
            Gateway::new(GatewayConfig { timeout, ..config.clone() }, http.clone())
        });
        Self { mailboxes, tokens, gateway, tls, turn: Arc::default() }
    }

    /// Whether it is one of the mailboxes.
    pub fn knows(&self, mailbox: &Address) -> bool {
        self.mailboxes.iter().any(|known| known.address() == mailbox)
    }

    /// Examines one mailbox, or all, and what they depend on. Takes seconds; minutes where peers are silent.
    pub async fn examine(&self, only: Option<&Address>, now: Timestamp) -> Report {
        let _turn = self.turn.lock().await;
        let chosen: Vec<&Config> = self
            .mailboxes
            .iter()
            .map(|mailbox| &mailbox.config)
            .filter(|config| only.is_none_or(|only| *only == config.address))
            .collect();
        let examined: Vec<_> = chosen.iter().map(|config| self.mailbox(config).boxed()).collect();
        let mailboxes = stream::iter(examined).buffered(AT_A_TIME).concat();
        let (mut findings, odoo) = tokio::join!(mailboxes, Box::pin(self.odoo(&chosen)));
        findings.extend(odoo);
        findings.extend(secrets(&chosen, now));
        Report::new(findings)
    }

    async fn mailbox(&self, mailbox: &Config) -> Vec<Finding> {
        let until = |token: &AccessToken| token.expires_at.strftime("%Y-%m-%d %H:%M:%SZ").to_string();
        let (finding, token) = match self.tokens.renew(&mailbox.address).await {
            Ok(token) => {
                let seen = format!("refreshed: an access token until {}", until(&token));
                (Finding::ok(Some(mailbox), Check::Token, seen), Some(token))
            }
            Err(failure) => {
                let failed = Finding::failed(Some(mailbox), Check::Token, &failure);
                // The one at hand shows whether the rest works.
                match self.tokens.usable(&mailbox.address) {
                    Some(token) => (failed.lasting(&until(&token)), Some(token)),
                    None => (failed, None),
                }
            }
        };
        let mut findings = vec![finding];
        let token = token.as_ref().map(|token| token.secret());
        let (smtp, imap) = tokio::join!(Box::pin(self.smtp(mailbox, token)), async {
            if mailbox.inbox { Box::pin(self.imap(mailbox, token)).await } else { Vec::new() }
        });
        findings.extend(smtp);
        findings.extend(imap);
        findings
    }

    async fn smtp(&self, mailbox: &Config, token: Option<&str>) -> [Finding; 2] {
        use Check::{SmtpConnection, SmtpLogin, Token};
        let server = &mailbox.microsoft.smtp;
        let probe = match Probe::connect(mailbox, &self.tls).await {
            Ok(probe) => probe,
            Err(failure) => {
                let reply = format!("{server}: {}", failure.reply);
                let failed = Finding::failed(Some(mailbox), SmtpConnection, &Failure { reply, ..failure });
                return [failed, Finding::skipped(Some(mailbox), SmtpLogin, SmtpConnection)];
            }
        };
        let connected = Finding::ok(
            Some(mailbox),
            SmtpConnection,
            format!("{server}: EHLO and STARTTLS, its certificate is trusted"),
        );
        let Some(token) = token else {
            probe.leave().await;
            return [connected, Finding::skipped(Some(mailbox), SmtpLogin, Token)];
        };
        let login = match probe.sign_in(token).await {
            Ok(()) => Finding::ok(Some(mailbox), SmtpLogin, "AUTH XOAUTH2: 235, signed in"),
            Err(failure) => Finding::failed(Some(mailbox), SmtpLogin, &failure),
        };
        [connected, login]
    }

    async fn imap(&self, mailbox: &Config, token: Option<&str>) -> Vec<Finding> {
        use Check::{ImapConnection, ImapFolder, ImapLogin, Token};
        let server = &mailbox.microsoft.imap;
        let skipped = |check, why| Finding::skipped(Some(mailbox), check, why);
        let greeted = match Greeted::open(server, self.tls.clone(), &mailbox.address).await {
            Ok(greeted) => greeted,
            Err(failure) => {
                let failed = Finding::failed(Some(mailbox), ImapConnection, &failure);
                return vec![failed, skipped(ImapLogin, ImapConnection), skipped(ImapFolder, ImapConnection)];
            }
        };
        let connected = Finding::ok(
            Some(mailbox),
            ImapConnection,
            format!("{server}: greets, its certificate is trusted"),
        );
        let Some(token) = token else {
            return vec![connected, skipped(ImapLogin, Token), skipped(ImapFolder, Token)];
        };
        match greeted.sign_in(token).await {
            Ok(session) => {
                let login = Finding::ok(Some(mailbox), ImapLogin, "AUTHENTICATE XOAUTH2: OK, signed in");
                vec![connected, login, folder(mailbox, session).await]
            }
            Err(failure) => {
                let failed = Finding::failed(Some(mailbox), ImapLogin, &failure);
                vec![connected, failed, skipped(ImapFolder, ImapLogin)]
            }
        }
    }

    /// Odoo, if it is configured; the models are those that take the mailboxes' mail.
    async fn odoo(&self, mailboxes: &[&Config]) -> Vec<Finding> {
        let Some(gateway) = &self.gateway else {
            return Vec::new();
        };
        // Where it cannot be told, the sign-in says more.
        let version = gateway.try_version().await.ok().flatten();
        let mut findings: Vec<_> =
            version.iter().map(|version| Finding::protocol(version, gateway.protocol())).collect();
        match gateway.try_sign_in().await {
            Ok(uid) => {
                let asked = match gateway.protocol() {
                    Protocol::XmlRpc => "authenticate",
                    Protocol::Json2 => "the API key",
                };
                let seen = format!("{asked}: the user's id is {uid}");
                findings.push(Finding::ok(None, Check::OdooLogin, seen));
                findings.push(rights(gateway, "mail.message", &[]).await);
                let watched = mailboxes.iter().filter(|mailbox| mailbox.inbox);
                let models: BTreeSet<&str> =
                    watched.clone().filter_map(|mailbox| mailbox.intake.model.as_deref()).collect();
                for model in models {
                    let users: Vec<&str> = watched
                        .clone()
                        .filter(|mailbox| mailbox.intake.model.as_deref() == Some(model))
                        .map(|mailbox| mailbox.address.as_str())
                        .collect();
                    findings.push(rights(gateway, model, &users).await);
                }
                findings
            }
            Err(failure) => {
                findings.push(Finding::failed(None, Check::OdooLogin, &failure));
                findings.push(Finding::skipped(None, Check::OdooRights, Check::OdooLogin));
                findings
            }
        }
    }
}

/// Looks the folder up, without changing anything in it.
async fn folder(mailbox: &Config, mut session: Session) -> Finding {
    let examined = session.examine(&mailbox.folder).await;
    session.logout().await;
    match examined {
        Ok(folder) => {
            let seen = format!("EXAMINE {}: OK, UIDVALIDITY {}", mailbox.folder, folder.uidvalidity);
            Finding::ok(Some(mailbox), Check::ImapFolder, seen)
        }
        Err(error) => Finding::failed(Some(mailbox), Check::ImapFolder, &error.into_failure()),
    }
}

/// Whether the user may read a model; `users` are the mailboxes whose `model` it is.
async fn rights(gateway: &Gateway, model: &str, users: &[&str]) -> Finding {
    let failure = match gateway.try_read(model).await {
        Ok(()) => return Finding::ok(None, Check::OdooRights, format!("may read {model}")),
        Err(failure) => Failure { reply: format!("{model}: {}", failure.reply), ..failure },
    };
    match failure.class {
        // Odoo answers in many words where it cannot count a model of an unusual kind.
        Class::Message if !users.is_empty() => Finding::unclear(Check::OdooRights, &failure),
        Class::Administrator if !users.is_empty() => {
            let advice = format!(
                "{}; or, if Odoo does not have it, correct `model` of {}",
                failure.advice,
                users.join(", ")
            );
            Finding::failed(None, Check::OdooRights, &failure.advise(advice))
        }
        _ => Finding::failed(None, Check::OdooRights, &failure),
    }
}

/// How long the apps' secrets are good for, where the configuration says.
fn secrets(mailboxes: &[&Config], now: Timestamp) -> Vec<Finding> {
    let today = expiry::day(now);
    let apps = mailboxes.iter().map(|mailbox| &mailbox.microsoft);
    let warnings = expiry::warnings(apps.clone(), today);
    let mut good: BTreeSet<_> =
        apps.filter_map(|app| Some((app.client_id.as_str(), app.credential_expires()?))).collect();
    good.retain(|(_, expires)| expiry::days_left(*expires, today).is_none());
    let good = good.into_iter().map(|(client_id, expires)| {
        Finding::ok(None, Check::ClientSecret, format!("app {client_id}: expires on {expires}"))
    });
    warnings.into_iter().map(Finding::expiry).chain(good).collect()
}
