//! `check`: the configuration, offline.

use super::say;
use crate::config::Config;
use std::collections::BTreeSet;
use std::path::Path;
use std::process::ExitCode;

/// The mistakes were said while loading; what is left to say is that there are none.
pub(super) fn check(config: &Config, file: &Path) -> anyhow::Result<ExitCode> {
    let inboxes = config.mailboxes.iter().filter(|mailbox| mailbox.inbox).count();
    say(format_args!(
        "{}: well: {} mailboxes, {inboxes} of them with their inbox",
        file.display(),
        config.mailboxes.len()
    ))?;
    let apps: BTreeSet<(&str, &str)> = config
        .mailboxes
        .iter()
        .map(|mailbox| (mailbox.microsoft.client_id.as_str(), mailbox.microsoft.credential.describe()))
        .collect();
    for (client_id, kind) in apps {
        say(format_args!("app {client_id}: {kind}"))?;
    }
    Ok(ExitCode::SUCCESS)
}
