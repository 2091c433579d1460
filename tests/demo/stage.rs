//! The doubles, the relay between them, and the questions the steps ask of both.

use std::time::Duration;

use anyhow::{Context, bail, ensure};
use serde::Deserialize;
use tokio::time::{Instant, sleep};

use super::mail::{self, BOUNCE, Mail};
use super::support::client;
use super::support::odoo::Post;
use super::support::relay::{Config, Relay};
use super::support::smtp::Delivered;
use super::support::wait::SOON;
use super::support::world::World;

/// Set for the child process that is the relay.
pub(crate) const AS_RELAY: &str = "OUTLOOK_RELAY_DEMO_AS_RELAY";

/// The mailbox whose inbox is watched, and through which everybody without a mailbox sends.
pub(crate) const NOTIFICATIONS: &str = "notifications@example.com";
pub(crate) const JOHN: &str = "john@example.com";
pub(crate) const JANE: &str = "jane@example.com";
/// Every mailbox of the company.
pub(crate) const MAILBOXES: [&str; 3] = [NOTIFICATIONS, JOHN, JANE];

/// Everything that runs.
pub(crate) struct Stage {
    pub(crate) world: World,
    pub(crate) config: Config,
    relay: Option<Relay>,
}

/// What `route --json` says.
#[derive(Debug, Deserialize, PartialEq, Eq)]
pub(crate) struct Route {
    pub(crate) mailbox: String,
    pub(crate) rule: String,
    pub(crate) from: String,
}

impl Stage {
    /// The doubles, and a configuration for the relay; it does not run yet.
    pub(crate) async fn set() -> anyhow::Result<Self> {
        let world = World::start().await;
        let mut config = world.config();
        config.set_binary(&std::env::current_exe().context("where this program is")?);
        config.env(AS_RELAY, "1");
        config.text("fetch", "poll", "500ms");
        config.text("odoo", "report_after", "500ms");
        config.mailbox(
            NOTIFICATIONS,
            &[("from_filter", "\"notifications@example.com\""), ("inbox", "true"), ("model", "\"crm.lead\"")],
        );
        config.mailbox(JOHN, &[("from_filter", "\"john@example.com\"")]);
        config.mailbox(JANE, &[("from_filter", "\"jane@example.com\"")]);
        Ok(Self { world, config, relay: None })
    }

    /// Gives the relay the first refresh token of a mailbox, as consent would; also gives the token.
    pub(crate) async fn consent(&self, mailbox: &str) -> anyhow::Result<String> {
        let token = self.world.entra.add_mailbox(mailbox);
        let output = self.config.connect(mailbox, &token).await;
        ensure!(output.code == Some(0), "`connect {mailbox}` failed: {}{}", output.stderr, output.stdout);
        Ok(token)
    }

    /// Starts the relay, and waits until it takes mail.
    pub(crate) async fn start_relay(&mut self) {
        self.relay = Some(self.config.start().await);
    }

    /// `kill -9`, where it runs; comes back when it is gone.
    pub(crate) async fn kill_relay(&mut self) {
        if let Some(mut relay) = self.relay.take() {
            relay.kill9().await;
        }
    }

    /// The relay's log since its last start.
    pub(crate) fn log(&self) -> Vec<String> {
        self.relay.as_ref().map(Relay::log).unwrap_or_default()
    }

    /// Waits for a line of the relay's log that holds all these.
    pub(crate) async fn log_line(&self, parts: &[&str]) -> anyhow::Result<String> {
        within(&format!("a line with {} in the relay's log", parts.join(" and ")), || {
            let mut log = self.log().into_iter();
            log.find(|line| parts.iter().all(|part| line.contains(part)))
        })
        .await
    }

    /// Asks the relay where a From goes.
    pub(crate) async fn route(&self, from: &str) -> anyhow::Result<Route> {
        let output = self.config.cli(&["route", "--json", "--from", from]).await;
        ensure!(output.code == Some(0), "`route --from '{from}'` failed: {}", output.stderr);
        serde_json::from_str(&output.stdout).with_context(|| format!("`route` said {:?}", output.stdout))
    }

    /// Hands a mail to the relay, as Odoo does. It is on disk when this comes back.
    pub(crate) async fn send(&self, mail: &Mail) -> anyhow::Result<()> {
        let reply = client::send(self.config.submission, BOUNCE, &[&mail.to], &mail.bytes()).await;
        ensure!(reply.code == 250, "the relay did not take the mail: {} {}", reply.code, reply.text);
        Ok(())
    }

    /// The submissions of a mail that Exchange has taken.
    pub(crate) fn arrivals(&self, mail: &Mail) -> Vec<Delivered> {
        let mut all = self.world.smtp.delivered();
        all.retain(|delivered| mail::header(&delivered.data, "Message-Id").as_deref() == Some(&mail.id));
        all
    }

    /// Waits until Exchange has taken a mail.
    pub(crate) async fn arrival(&self, mail: &Mail) -> anyhow::Result<Delivered> {
        within(&format!("the mail {:?} at Exchange", mail.subject), || self.arrivals(mail).pop()).await
    }

    /// Waits until Odoo has made a record of a mail.
    pub(crate) async fn record(&self, id: &str) -> anyhow::Result<Post> {
        within("the mail in Odoo", || {
            let mut taken = self.world.odoo.taken().into_iter();
            taken.find(|post| post.message_id.as_deref() == Some(id))
        })
        .await
    }

    /// The refresh tokens of a mailbox in the order of their lives: those the relay has used, and the newest.
    pub(crate) fn refresh_tokens(&self, mailbox: &str) -> Vec<String> {
        let requests = self.world.entra.requests();
        let used = requests
            .into_iter()
            .filter(|request| request.mailbox.as_deref() == Some(mailbox))
            .filter_map(|request| request.refresh_token);
        let mut tokens: Vec<String> = Vec::new();
        for token in used.chain(self.world.entra.refresh_token(mailbox)) {
            if !tokens.contains(&token) {
                tokens.push(token);
            }
        }
        tokens
    }

    /// Waits until the relay has refreshed a mailbox's token so often since the start; gives the number of the newest
    /// refresh token.
    pub(crate) async fn refreshed(&self, mailbox: &str, times: usize) -> anyhow::Result<usize> {
        let what = format!("refresh number {times} of {mailbox}'s token");
        within(&what, || {
            let tokens = self.refresh_tokens(mailbox).len();
            (self.world.entra.refreshes(mailbox) >= times && tokens > times).then_some(tokens)
        })
        .await
    }
}

/// Looks until there is something to see.
///
/// # Errors
/// When it takes too long.
pub(crate) async fn within<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> anyhow::Result<T> {
    let end = Instant::now() + SOON;
    while Instant::now() < end {
        if let Some(seen) = look() {
            return Ok(seen);
        }
        sleep(Duration::from_millis(10)).await;
    }
    bail!("not within {} s: {what}", SOON.as_secs())
}
