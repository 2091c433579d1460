//! `import-odoo --apply` and `--undo`: Odoo is set to the relay, and back.

use super::list;
use crate::cli::connect::with_store;
use crate::cli::{block_on, say};
use crate::config::Config;
use crate::import::plan::Plan;
use crate::import::rpc::Rpc;
use crate::import::steps::{Journal, State, Step, journal_path, steps};
use anyhow::{Context, bail};
use std::collections::BTreeSet;
use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What `--apply` would do, with the relay.toml that is there.
pub(super) fn preview(rpc: &Rpc, toml: Option<&PathBuf>, plan: &Plan) -> anyhow::Result<()> {
    let steps = if let Some(toml) = toml {
        of_config(rpc, &Config::load(toml)?, plan)?
    } else {
        let with = |has: fn(&bool) -> bool| {
            let mailboxes = plan.mailboxes.iter().filter(|mailbox| has(&mailbox.token.is_some()));
            mailboxes.map(|mailbox| mailbox.address.clone()).collect()
        };
        steps(
            plan,
            rpc.version(),
            SocketAddr::from(([127, 0, 0, 1], 2525)),
            &with(|_| true),
            &with(|has| *has),
        )
    };
    list("\n--apply changes in Odoo:", steps.iter().map(|step| step.deed.describe()))
}

/// Whether an earlier `--apply` has begun.
pub(super) fn has_begun(toml: &Path) -> bool {
    journal_path(toml).exists()
}

/// Begins, or goes on where an earlier one was cut short.
pub(super) fn apply(rpc: &Rpc, toml: &Path, plan: Option<&Plan>) -> anyhow::Result<()> {
    let config = Config::load(toml)?;
    let path = journal_path(toml);
    let mut journal = match plan {
        None => read(rpc, &path)?,
        Some(plan) => Journal {
            url: rpc.url().to_owned(),
            database: rpc.database().to_owned(),
            steps: of_config(rpc, &config, plan)?,
        },
    };
    warn_if_nobody_listens(relay(&config)?)?;
    let done = block_on(async {
        if plan.is_some() {
            journal.check_new(rpc).await?;
        }
        journal.save(&path)?;
        Ok(journal.apply(rpc, &path, |deed| drop(say(format_args!("Odoo: {}", deed.describe())))).await)
    })?;
    if let Err(error) = done {
        list("\nNot done yet:", open(&journal.steps))?;
        return Err(anyhow::Error::new(error).context(format!(
            "Odoo is only half set to the relay ({} of {} steps): run this with --apply again to go on, or with --undo to \
             put it back",
            journal.steps.len() - open(&journal.steps).count(),
            journal.steps.len()
        )));
    }
    say(format_args!("Odoo is set to the relay. --undo puts it back, by {}.", path.display()))
}

/// Puts Odoo back.
pub(super) fn undo(rpc: &Rpc, toml: &Path) -> anyhow::Result<()> {
    let path = journal_path(toml);
    if !path.exists() {
        bail!("there is nothing to undo: {} is not there", path.display());
    }
    let mut journal = read(rpc, &path)?;
    let config = Config::load(toml)?;
    with_store(&config, async |store| {
        let told = |deed: &crate::import::steps::Deed, is_there: bool| {
            let what = if is_there { "put back" } else { "is no longer in Odoo, nothing to put back" };
            drop(say(format_args!("Odoo: {what}: {}", deed.describe())));
        };
        let undone = journal.undo(rpc, store, &path, told).await;
        undone.context("Odoo is only partly put back: run this with --undo again")
    })?;
    std::fs::remove_file(&path).with_context(|| format!("{}: cannot be removed", path.display()))?;
    say("Odoo is as it was. Stop the relay, or both fetch the same inboxes.")
}

fn open(steps: &[Step]) -> impl Iterator<Item = String> {
    steps.iter().filter(|step| step.state != State::Done).map(|step| step.deed.describe())
}

fn read(rpc: &Rpc, path: &Path) -> anyhow::Result<Journal> {
    let shown = path.display();
    let text = std::fs::read_to_string(path).with_context(|| format!("{shown}: cannot be read"))?;
    let journal: Journal = serde_json::from_str(&text).with_context(|| format!("{shown}: is damaged"))?;
    if journal.url != rpc.url() || journal.database != rpc.database() {
        bail!("{shown} is of the database {:?} at {}: name these", journal.database, journal.url);
    }
    Ok(journal)
}

/// The steps that are right with this configuration and what its store holds.
fn of_config(rpc: &Rpc, config: &Config, plan: &Plan) -> anyhow::Result<Vec<Step>> {
    let known: BTreeSet<_> = config.mailboxes.iter().map(|mailbox| mailbox.address.clone()).collect();
    let missing = plan.mailboxes.iter().find(|mailbox| !known.contains(&mailbox.address));
    if let Some(missing) = missing {
        bail!(
            "{} is a mailbox in Odoo and not in relay.toml: add it there, or archive its servers in Odoo first",
            missing.address
        );
    }
    let unwatched = plan.mailboxes.iter().find(|planned| {
        planned.inbox && !config.mailboxes.iter().any(|known| known.address == planned.address && known.inbox)
    });
    if let Some(unwatched) = unwatched {
        bail!(
            "Odoo fetches {}, and relay.toml does not: set inbox = true for it, or reset its incoming server in Odoo first",
            unwatched.address
        );
    }
    let held = with_store(config, async |store| {
        // Only a token that opens counts: Odoo's copy is cleared for it.
        let mut held = BTreeSet::new();
        for mailbox in &known {
            if store.token(mailbox).await?.is_some() {
                held.insert(mailbox.clone());
            }
        }
        Ok(held)
    })?;
    for planned in plan.mailboxes.iter().filter(|planned| !held.contains(&planned.address)) {
        let address = &planned.address;
        writeln!(
            std::io::stderr(),
            "warning: the relay has no token of {address}, whose mail then waits: outlook-relay connect {address}"
        )?;
    }
    Ok(steps(plan, rpc.version(), relay(config)?, &known, &held))
}

/// Where Odoo's server goes: a port on this machine that asks for no login.
fn relay(config: &Config) -> anyhow::Result<SocketAddr> {
    let listen = config.submission.listen.iter().find(|listen| listen.ip().is_loopback());
    match listen {
        Some(listen) if config.submission.users.is_empty() => Ok(*listen),
        _ => bail!(
            "--apply only knows a relay on Odoo's own machine, on a loopback address and without users: set the servers in \
             Odoo by hand (README, \"Odoo\")"
        ),
    }
}

/// To Odoo a refused connection is a lost mail.
fn warn_if_nobody_listens(relay: SocketAddr) -> anyhow::Result<()> {
    if TcpStream::connect_timeout(&relay, Duration::from_secs(5)).is_err() {
        writeln!(
            std::io::stderr(),
            "warning: nothing listens at {relay}: start the relay now; what Odoo sends before that is lost to it"
        )?;
    }
    Ok(())
}
