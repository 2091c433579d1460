//! `import-odoo`: moving over from Odoo's own Outlook modules.

mod apply;

use super::connect::with_store;
use super::table::wrap;
use super::{block_on, say, say_json};
use crate::clock;
use crate::config::{Config, is_placeholder};
use crate::consent;
use crate::import::file::{Feed, relay_toml};
use crate::import::plan::{Left, Plan, plan};
use crate::import::records;
use crate::import::rpc::Rpc;
use crate::mailbox::Mailbox;
use crate::section::read_secret;
use anyhow::{Context, anyhow, bail};
use clap::Args;
use secrecy::{ExposeSecret, SecretString};
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Odoo's address, like http://127.0.0.1:8069.
    #[arg(long)]
    url: String,
    /// The name of its database.
    #[arg(long, value_name = "NAME")]
    database: String,
    /// The login of a system administrator (Administration: Settings).
    #[arg(long)]
    login: String,
    /// A file with that account's API key or password as its only line.
    #[arg(long, value_name = "FILE")]
    password_file: PathBuf,
    /// The folder that relay.toml, client-secret and odoo-password are written to. Absent: that of -c FILE.
    #[arg(short, long, value_name = "DIR")]
    output: Option<PathBuf>,
    /// The login of the account that will feed received mail in. Absent: the administrator's.
    #[arg(long, value_name = "LOGIN", requires = "feed_password_file")]
    feed_login: Option<String>,
    /// A file with that account's API key or password.
    #[arg(long, value_name = "FILE", requires = "feed_login")]
    feed_password_file: Option<PathBuf>,
    /// The url of [store], where it is not to be the usual one.
    #[arg(long, value_name = "URL")]
    store: Option<String>,
    /// Shows what would be done, and writes nothing.
    #[arg(long, conflicts_with = "undo")]
    dry_run: bool,
    /// Sets Odoo, too: one outgoing server to the relay; the old ones archived, the inboxes that the relay watches no
    /// longer fetched, Odoo's copies of the tokens cleared. Where relay.toml was written before, only that.
    #[arg(long, conflicts_with = "undo")]
    apply: bool,
    /// Puts Odoo back as it was before --apply.
    #[arg(long)]
    undo: bool,
}

/// The files that are written, none of which may be there before, but for the relay.toml that the package puts there.
struct Files {
    toml: PathBuf,
    /// Where that one is kept.
    before: PathBuf,
    client_secret: PathBuf,
    odoo_password: PathBuf,
}

impl Files {
    fn new(arguments: &Arguments, config: &Path) -> Self {
        let toml =
            arguments.output.as_ref().map_or_else(|| config.to_owned(), |folder| folder.join("relay.toml"));
        Self {
            client_secret: toml.with_file_name("client-secret"),
            odoo_password: toml.with_file_name("odoo-password"),
            before: toml.with_file_name("relay.toml.before-import"),
            toml,
        }
    }

    /// The first of them that is in the way.
    fn in_the_way(&self) -> Option<&Path> {
        let toml = if is_placeholder(&self.toml) { &self.before } else { &self.toml };
        [toml, &self.client_secret, &self.odoo_password]
            .into_iter()
            .find(|file| file.exists())
            .map(|file| &**file)
    }

    /// Whether there is a relay.toml of somebody's.
    fn has_toml(&self) -> bool {
        self.toml.exists() && !is_placeholder(&self.toml)
    }
}

/// The command.
pub(super) fn import(arguments: &Arguments, config: &Path, json: bool) -> anyhow::Result<ExitCode> {
    if json && (arguments.apply || arguments.undo) {
        bail!(
            "--json shows what is taken over; --apply and --undo tell what they change in words: leave it out"
        );
    }
    let files = Files::new(arguments, config);
    let secret = |option: &str, file: &Path| read_secret(file).map_err(|error| anyhow!("{option} {error}"));
    let password = secret("--password-file", &arguments.password_file)?;
    let feed_password = arguments.feed_password_file.as_deref();
    let feed_password = feed_password.map(|file| secret("--feed-password-file", file)).transpose()?;
    let rpc = block_on(async {
        Ok(Rpc::sign_in(&arguments.url, &arguments.database, &arguments.login, password.clone()).await?)
    })?;
    if arguments.undo {
        apply::undo(&rpc, &files.toml)?;
        return Ok(ExitCode::SUCCESS);
    }
    if arguments.apply && !arguments.dry_run && apply::has_begun(&files.toml) {
        apply::apply(&rpc, &files.toml, None)?;
        return Ok(ExitCode::SUCCESS);
    }
    let records = block_on(async { Ok(records::read(&rpc).await?) })?;
    let plan = plan(&records)?;
    let feed = Feed {
        url: rpc.url(),
        database: rpc.database(),
        login: arguments.feed_login.as_deref().unwrap_or(&arguments.login),
        is_administrator: arguments.feed_login.is_none(),
    };
    let toml = relay_toml(&plan, feed, arguments.store.as_deref());
    if arguments.apply && files.has_toml() && !arguments.dry_run {
        apply::apply(&rpc, &files.toml, Some(&plan))?;
        return Ok(ExitCode::SUCCESS);
    }
    if !arguments.dry_run {
        let secrets = [(&files.odoo_password, Some(feed_password.unwrap_or(password)))];
        let secrets = secrets.into_iter().chain([(&files.client_secret, plan.client_secret.clone())]);
        write(&files, &toml, secrets, &plan)?;
    }
    if json {
        let written = if arguments.dry_run { None } else { Some(&files.toml) };
        say_json(&serde_json::json!({"odoo": records.version, "written": written, "plan": plan}))?;
    } else {
        print(&files, &toml, &plan, records.version, arguments.dry_run)?;
    }
    if arguments.apply && arguments.dry_run {
        apply::preview(&rpc, files.has_toml().then_some(&files.toml), &plan)?;
    } else if arguments.apply {
        apply::apply(&rpc, &files.toml, Some(&plan))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Writes the files and the tokens, or nothing: what was written is taken back when a later part fails.
fn write<'f>(
    files: &'f Files,
    toml: &str,
    secrets: impl Iterator<Item = (&'f PathBuf, Option<SecretString>)>,
    plan: &Plan,
) -> anyhow::Result<()> {
    if let Some(there) = files.in_the_way() {
        bail!(
            "{} is there already and is not overwritten: name another folder with -o DIR, or move it away",
            there.display()
        );
    }
    let shipped = files.toml.exists();
    if shipped {
        let kept = std::fs::rename(&files.toml, &files.before);
        kept.with_context(|| format!("{}: cannot be kept", files.toml.display()))?;
    }
    let mut written = Vec::new();
    let done = (|| {
        for (path, secret) in secrets {
            if let Some(secret) = secret {
                create(path, &format!("{}\n", secret.expose_secret()), SECRET, &mut written)?;
            }
        }
        create(&files.toml, toml, OPEN, &mut written)?;
        let config = Config::load(&files.toml).context("Odoo has values that no configuration can have")?;
        keep_tokens(&config, plan)
    })();
    if done.is_err() {
        for path in written {
            drop(std::fs::remove_file(path));
        }
        if shipped {
            drop(std::fs::rename(&files.before, &files.toml));
        }
    }
    done
}

/// The permissions of a secret's file.
const SECRET: u32 = 0o600;
/// Those of relay.toml, in which no secret stands: the service, which is a user of its own, reads it itself.
const OPEN: u32 = 0o644;

/// Creates a file with what it is to hold, and with these permissions whatever the umask.
fn create(path: &Path, content: &str, mode: u32, written: &mut Vec<PathBuf>) -> anyhow::Result<()> {
    let cannot = || format!("{}: cannot be written", path.display());
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).with_context(cannot)?;
    }
    let file = std::fs::OpenOptions::new().write(true).create_new(true).mode(SECRET).open(path);
    let mut file = file.with_context(cannot)?;
    written.push(path.to_owned());
    file.set_permissions(std::fs::Permissions::from_mode(mode))
        .and_then(|()| file.write_all(content.as_bytes()))
        .and_then(|()| file.sync_all())
        .with_context(cannot)
}

/// Seals the tokens in the store, as new consents to the same app.
fn keep_tokens(config: &Config, plan: &Plan) -> anyhow::Result<()> {
    with_store(config, async |store| {
        for planned in &plan.mailboxes {
            let mailbox = config.mailboxes.iter().find(|mailbox| mailbox.address == planned.address);
            if let (Some(mailbox), Some(token)) = (mailbox, &planned.token) {
                let mailbox = Mailbox::new(mailbox.clone());
                consent::take_over(store, &mailbox, token.clone(), clock::now()).await?;
            }
        }
        Ok(())
    })
}

fn print(files: &Files, toml: &str, plan: &Plan, version: u32, dry_run: bool) -> anyhow::Result<()> {
    let file = files.toml.display();
    if dry_run {
        say(format_args!(
            "Odoo {version}. Nothing was written; without --dry-run {file} becomes:\n\n{toml}"
        ))?;
    } else {
        say(format_args!("Odoo {version}: {file} is written, with its secrets beside it."))?;
        if files.before.exists() {
            say(format_args!("The file that was installed there is kept: {}", files.before.display()))?;
        }
    }
    for mailbox in &plan.mailboxes {
        let token = if mailbox.token.is_some() { "there" } else { "MISSING" };
        let inbox = if mailbox.inbox { ", with its inbox" } else { "" };
        say(format_args!("{}: taken over{inbox}; refresh token: {token}", mailbox.address))?;
    }
    let secret = if plan.client_secret.is_some() { "there" } else { "MISSING" };
    say(format_args!("app {}; client secret: {secret}", plan.client_id))?;
    list("\nNot taken over:", plan.left.iter().map(|Left { what, reason }| format!("{what}: {reason}")))?;
    list("\nTo be known:", plan.notes.iter().cloned())
}

/// A heading and its lines; nothing where there are none.
fn list(heading: &str, lines: impl Iterator<Item = String>) -> anyhow::Result<()> {
    for (index, line) in lines.enumerate() {
        if index == 0 {
            say(heading)?;
        }
        say(format_args!("- {}", wrap(&line, 110, 2)))?;
    }
    Ok(())
}
