//! `connect`: gives a mailbox its refresh token: its owner signs in, or it is taken over from a file.

use super::{block_on, say, say_json};
use crate::clock;
use crate::config::Config;
use crate::consent::loopback::Loopback;
use crate::consent::{self, Connected, Consents};
use crate::mailbox::Mailbox;
use crate::microsoft::Grant;
use crate::section::{check_private, read_secret};
use crate::store::Store;
use crate::{tls, tokens};
use anyhow::{Context, anyhow, bail};
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

/// How the token comes.
#[derive(Clone, Copy, Debug)]
pub(super) enum How<'a> {
    /// The owner signs in in a browser on this machine.
    Browser,
    /// The owner enters a code in a browser anywhere.
    Device,
    /// From a file.
    File(&'a Path),
}

/// Connects a mailbox.
pub(super) fn connect(config: &Config, mailbox: &str, how: How<'_>, json: bool) -> anyhow::Result<ExitCode> {
    let mailbox = Mailbox::new(super::find_mailbox(config, mailbox)?.clone());
    if mailbox.config.microsoft.grant == Grant::ClientCredentials {
        let address = mailbox.address();
        bail!("{address} signs in as the app (grant = \"client_credentials\") and needs no refresh token");
    }
    match how {
        How::File(file) => take_over(config, &mailbox, file, json),
        How::Browser | How::Device => sign_in(config, &mailbox, matches!(how, How::Device), json),
    }
}

/// Waits until the owner has signed in.
fn sign_in(config: &Config, mailbox: &Arc<Mailbox>, device: bool, json: bool) -> anyhow::Result<ExitCode> {
    let tls = tls::client(config.microsoft.ca_file.as_deref())?;
    let http = tokens::endpoint::http_client(&tls).context("the HTTP client could not be set up")?;
    let connected = with_store(config, async |store| {
        let consents = Consents::new(std::slice::from_ref(mailbox), store.clone(), http);
        Ok(if device {
            by_device(&consents, mailbox, json).await?
        } else {
            by_browser(&consents, mailbox, json).await?
        })
    })?;
    let Connected { mailbox, account } = connected;
    if json {
        say_json(&serde_json::json!({"mailbox": mailbox, "account": account}))?;
    } else {
        say(format_args!(
            "{mailbox}: Outlook token valid, {account} signed in; the daemon uses it at once, or when it starts"
        ))?;
    }
    Ok(ExitCode::SUCCESS)
}

async fn by_browser(consents: &Consents, mailbox: &Mailbox, json: bool) -> anyhow::Result<Connected> {
    let address = mailbox.address();
    let loopback = Loopback::bind().await.context("127.0.0.1 cannot be listened on")?;
    let (port, redirect_uri) = (loopback.port(), loopback.redirect_uri());
    // There is no cookie here, and no need for one: only this process knows the sign-in.
    let session = format!("{:032x}", rand::random::<u128>());
    let url = consents.begin(address, &redirect_uri, &session, clock::now())?;
    tell(
        json,
        &format!(
            "Open this address in a browser on this machine and sign in as {}:\n\n  {url}\n\nMicrosoft sends the browser \
             back to {redirect_uri}, where this command waits for 10 minutes. (The app needs the redirect URI \
             http://localhost.)\nOver SSH that works only if the port is forwarded (ssh -L {port}:127.0.0.1:{port}); \
             else use `outlook-relay connect {address} --device`.",
            mailbox.config.expected_account()
        ),
    )?;
    Ok(loopback.wait(consents, &session).await?)
}

async fn by_device(consents: &Consents, mailbox: &Mailbox, json: bool) -> anyhow::Result<Connected> {
    let code = consents.begin_device(mailbox.address()).await?;
    tell(
        json,
        &format!(
            "Open {} in any browser, enter the code {} and sign in as {}.\nThis command waits for {} minutes.",
            code.verification_uri(),
            code.user_code(),
            mailbox.config.expected_account(),
            code.expires_in().as_secs() / 60,
        ),
    )?;
    Ok(consents.finish_device(code).await?)
}

/// What a person has to do meanwhile; with `--json`, out of the way of the answer.
fn tell(json: bool, text: &str) -> anyhow::Result<()> {
    if json { Ok(writeln!(std::io::stderr(), "{text}")?) } else { say(text) }
}

/// Takes a refresh token over from a file.
fn take_over(config: &Config, mailbox: &Mailbox, file: &Path, json: bool) -> anyhow::Result<ExitCode> {
    let address = mailbox.address();
    let refresh_token = read_secret(file).map_err(|error| anyhow!("--refresh-token-file {error}"))?;
    if let Err(open) = check_private(file) {
        // It is read once and then deleted: worth a warning, not a refusal.
        drop(writeln!(std::io::stderr(), "--refresh-token-file {open}, or delete it"));
    }
    let consented_at = with_store(config, async |store| {
        Ok(consent::take_over(store, mailbox, refresh_token, clock::now()).await?)
    })?;
    if json {
        say_json(&serde_json::json!({"mailbox": address, "consented_at": consented_at}))?;
    } else {
        say(format_args!(
            "{address}: refresh token taken over; the daemon uses it at once, or when it starts"
        ))?;
        say(format_args!("The file {} is no longer needed: delete it.", file.display()))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Does something with the store, which may be in use by the daemon, and closes it.
pub(super) fn with_store<T>(
    config: &Config,
    work: impl AsyncFnOnce(&Store) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    block_on(async {
        let (store, writer) = Store::open(&config.store).await?;
        let writing = tokio::spawn(writer.run());
        let done = work(&store).await;
        store.close().await;
        writing.await?;
        done
    })
}
