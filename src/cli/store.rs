//! `store rotate-key`: another key for the tokens.

use super::{block_on, say, say_json};
use crate::config::Config;
use crate::daemon::lock_file;
use crate::store::Store;
use anyhow::bail;
use std::fs::File;
use std::path::Path;
use std::process::ExitCode;

pub(super) fn rotate_key(config: &Config, lost: bool, json: bool) -> anyhow::Result<ExitCode> {
    let daemon = daemon(&config.store.path)?;
    if matches!(daemon, Daemon::Runs) && lost {
        bail!("the daemon runs, and has the key: it is not lost; rotate it without --lost");
    }
    if matches!(daemon, Daemon::Runs) && config.store.key_file.is_some() {
        bail!(
            "the daemon runs, and would not see the new key: systemd hands it a copy of [store] key_file when it starts. \
             Stop it, rotate, start it"
        );
    }
    let (id, resealed) = block_on(async {
        Ok(if lost {
            (Store::replace_lost_key(&config.store).await?, 0)
        } else {
            Store::rotate_key(&config.store).await?
        })
    })?;
    if json {
        say_json(&serde_json::json!({"key_id": id, "resealed": resealed}))?;
    } else if lost {
        say(format_args!("The store goes on with the key {id}. Now connect each mailbox anew."))?;
    } else {
        say(format_args!("{resealed} tokens are sealed under the new key {id}; the old key is gone."))?;
        say("Back the new key file up, apart from the store. Older backups of the store need the old key.")?;
    }
    Ok(ExitCode::SUCCESS)
}

enum Daemon {
    Runs,
    /// And does not start while we hold its lock, where there is one: a daemon that never ran left none.
    Rests(#[expect(dead_code, reason = "it holds the lock until it is dropped")] Option<File>),
}

fn daemon(store: &Path) -> anyhow::Result<Daemon> {
    let file = match File::open(lock_file(store)) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Daemon::Rests(None)),
        Err(error) => return Err(error.into()),
    };
    match file.try_lock() {
        Ok(()) => Ok(Daemon::Rests(Some(file))),
        Err(std::fs::TryLockError::WouldBlock) => Ok(Daemon::Runs),
        Err(std::fs::TryLockError::Error(error)) => Err(error.into()),
    }
}
