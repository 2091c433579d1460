//! `connect`: gives a mailbox its refresh token.

use super::{block_on, find_mailbox, say, say_json};
use crate::clock;
use crate::config::Config;
use crate::microsoft::Grant;
use crate::section::{check_private, read_secret};
use crate::store::{Store, StoredToken};
use anyhow::{anyhow, bail};
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

/// Takes a refresh token over from a file.
pub(super) fn take_over(config: &Config, mailbox: &str, file: &Path, json: bool) -> anyhow::Result<ExitCode> {
    let mailbox = find_mailbox(config, mailbox)?;
    let address = &mailbox.address;
    if mailbox.microsoft.grant == Grant::ClientCredentials {
        bail!("{address} signs in as the app (grant = \"client_credentials\") and needs no refresh token");
    }
    let refresh_token = read_secret(file).map_err(|error| anyhow!("--refresh-token-file {error}"))?;
    if let Err(open) = check_private(file) {
        // It is read once and then deleted: worth a warning, not a refusal.
        drop(writeln!(std::io::stderr(), "--refresh-token-file {open}, or delete it"));
    }
    let now = clock::now();
    let token = StoredToken {
        tenant: mailbox.microsoft.tenant.clone(),
        client_id: mailbox.microsoft.client_id.clone(),
        refresh_token,
        consented_at: now,
        refreshed_at: None,
    };
    block_on(async {
        let (store, writer) = Store::open(&config.store).await?;
        let writing = tokio::spawn(writer.run());
        let kept = store.keep_token(address, token).await;
        store.close().await;
        writing.await?;
        Ok(kept?)
    })?;
    if json {
        say_json(&serde_json::json!({"mailbox": address, "consented_at": now}))?;
    } else {
        say(format_args!(
            "{address}: refresh token taken over; the daemon uses it at once, or when it starts"
        ))?;
        say(format_args!("The file {} is no longer needed: delete it.", file.display()))?;
    }
    Ok(ExitCode::SUCCESS)
}
