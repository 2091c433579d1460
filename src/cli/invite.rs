//! `invite`: a link with which a mailbox's owner connects it.

use super::connect::with_store;
use super::{say, say_json};
use crate::clock;
use crate::config::Config;
use crate::consent::invite;
use crate::microsoft::Grant;
use crate::units::parse_duration;
use anyhow::bail;
use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

/// Nobody remembers a link for longer than this.
const LONGEST: Duration = Duration::from_secs(90 * 86_400);

/// Prints a link.
pub(super) fn invite(config: &Config, mailbox: &str, expires: &str, json: bool) -> anyhow::Result<ExitCode> {
    let mailbox = super::find_mailbox(config, mailbox)?;
    let address = &mailbox.address;
    if mailbox.microsoft.grant == Grant::ClientCredentials {
        bail!("{address} signs in as the app (grant = \"client_credentials\"): nobody has to consent for it");
    }
    let Some(lifetime) =
        parse_duration(expires).filter(|lifetime| *lifetime <= LONGEST && !lifetime.is_zero())
    else {
        bail!(
            "--expires {expires:?} is not a duration of up to 90 days: write it like \"7 days\" or \"2 hours\""
        );
    };
    let expires_at = clock::after(clock::now(), lifetime);
    let token = with_store(config, async |store| Ok(invite::issue(store, address, expires_at).await?))?;
    let public = config.admin.public_url.as_ref().map(ToString::to_string);
    if public.is_none() {
        drop(writeln!(
            std::io::stderr(),
            "[admin] public_url is not set: this link opens on this machine only"
        ));
    }
    let base = public.unwrap_or_else(|| format!("http://localhost:{}", config.admin.listen.port()));
    let link = format!("{}/invite/{token}", base.trim_end_matches('/'));
    if json {
        say_json(&serde_json::json!({"mailbox": address, "link": link, "expires_at": expires_at}))?;
    } else {
        say(&link)?;
        let expected = mailbox.expected_account();
        drop(writeln!(
            std::io::stderr(),
            "Send it to the owner of {address}, who signs in as {expected}. It works once, until {}; `outlook-relay \
             invite {address} --revoke` ends it before.",
            super::table::time(expires_at)
        ));
    }
    Ok(ExitCode::SUCCESS)
}

/// Ends every link that was given out for the mailbox.
pub(super) fn revoke(config: &Config, mailbox: &str, json: bool) -> anyhow::Result<ExitCode> {
    let address = &super::find_mailbox(config, mailbox)?.address;
    with_store(config, async |store| Ok(store.revoke_invites(address).await?))?;
    if json {
        say_json(&serde_json::json!({"mailbox": address, "revoked": true}))?;
    } else {
        say(format_args!("{address}: every link that was given out is revoked"))?;
    }
    Ok(ExitCode::SUCCESS)
}
