//! `store`: its backups, and another key for the tokens.

use super::table::{size, time};
use super::{block_on, say, say_json};
use crate::config::Config;
use crate::daemon::lock;
use crate::store::{self, Backup, PutBack, Store};
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
        if let Daemon::Rests(_) = daemon {
            Store::bring_up_to_date(&config.store).await?;
        }
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

/// Copies the store into a new file.
pub(super) fn backup(config: &Config, file: &Path, json: bool) -> anyhow::Result<ExitCode> {
    let backup = block_on(async { Ok(Store::backup(&config.store, file).await?) })?;
    if json {
        say_json(&backup)?;
        return Ok(ExitCode::SUCCESS);
    }
    let Backup { file, bytes, made_at, messages, key_file } = backup;
    say(format_args!(
        "{}: {}, the store at {}, with {messages} messages in its queue.",
        file.display(),
        size(bytes),
        time(made_at)
    ))?;
    say(format_args!(
        "The key of its tokens is not in it: back up {} apart from it, and the configuration with its secrets.",
        key_file.display()
    ))?;
    Ok(ExitCode::SUCCESS)
}

/// Puts a backup in the store's place.
pub(super) fn restore(config: &Config, file: &Path, json: bool) -> anyhow::Result<ExitCode> {
    let path = &config.store.path;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    // The lock lies in the store's folder, which a new machine has not got yet.
    let _lock = match folder.is_none_or(Path::exists) {
        true => Some(lock(path)?.ok_or_else(|| {
            anyhow::anyhow!(
                "{}: the daemon works on this store: stop it first, nothing was changed",
                path.display()
            )
        })?),
        false => None,
    };
    let PutBack { store, made_at, messages, before, key } =
        block_on(async { Ok(Store::restore(&config.store, file).await?) })?;
    let other = match &key {
        store::Key::Fits => &[][..],
        store::Key::Other(why) => why,
    };
    if json {
        say_json(&serde_json::json!({
            "store": store, "made_at": made_at, "messages": messages, "before": before, "key_fits": other.is_empty(),
        }))?;
        return Ok(ExitCode::SUCCESS);
    }
    let when = made_at
        .map_or_else(|| "a copy that does not say from when".to_owned(), |at| format!("made {}", time(at)));
    say(format_args!(
        "{} is {} now ({when}), with {messages} messages in its queue.",
        store.display(),
        file.display()
    ))?;
    if let Some(before) = before {
        say(format_args!("What was there before is kept: {}", before.display()))?;
    }
    say(
        "Start the daemon: what was queued is looked for in Sent Items before it is sent, and Odoo is asked for what it may have.",
    )?;
    if messages > 0 {
        say(
            "But before that look at `outlook-relay queue list`: what was cancelled or given up since is tried again, too; \
             `outlook-relay queue cancel ID` takes it out.",
        )?;
    }
    for why in other {
        say(format_args!("But not all of its tokens can be used. {why}"))?;
    }
    Ok(ExitCode::SUCCESS)
}

enum Daemon {
    Runs,
    /// And does not start while we hold its lock, where there is one: a daemon that never ran left none.
    Rests(#[expect(dead_code, reason = "it holds the lock until it is dropped")] Option<File>),
}

/// Whether the daemon works on the store.
pub(super) fn daemon_runs(store: &Path) -> anyhow::Result<bool> {
    Ok(matches!(daemon(store)?, Daemon::Runs))
}

fn daemon(store: &Path) -> anyhow::Result<Daemon> {
    let file = match File::open(store::lock_file(store)) {
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
