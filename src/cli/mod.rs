//! The command line: one file per command. Exit codes: 0 well, 1 failure, 2 usage, 78 configuration (sysexits.h).

mod check;
mod connect;
mod doctor;
mod done;
mod import;
mod inbox;
mod invite;
mod manual;
mod queue;
mod route;
mod run;
mod status;
mod store;
mod store_check;
mod table;

use crate::address::Address;
use crate::config::{Config, Mistakes};
use crate::logging;
use crate::mailbox;
use crate::store::Error;
use crate::tls;
use anyhow::{Context, bail};
use clap::{Parser, Subcommand};
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

/// The exit code for a configuration that cannot be used: EX_CONFIG of sysexits.h.
const EX_CONFIG: u8 = 78;

/// A mail relay between Odoo and Microsoft 365.
///
/// Odoo hands its outgoing mail to the relay over SMTP; each message goes out through the Microsoft 365 mailbox whose
/// From filter matches. Received mail is pushed from the mailboxes' inboxes into Odoo.
#[derive(Debug, Parser)]
#[command(name = "outlook-relay", version, propagate_version = true)]
pub struct Cli {
    /// The configuration.
    #[arg(short, long, global = true, value_name = "FILE", default_value = "/etc/outlook-relay/relay.toml")]
    config: PathBuf,
    /// Prints JSON where a person would read a table.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs the daemon; logs to stderr.
    ///
    /// SIGHUP has it read the configuration again, SIGTERM finish what is in hand and end.
    Run,
    /// Checks the configuration, offline: one line for each mistake, which no command works with, and each warning.
    Check,
    /// Tries out every mailbox's token, SMTP and IMAP, and Odoo: seen, meaning, remedy. Sends no mail, changes nothing.
    ///
    /// Exits 0 when every check is well. Works while the daemon runs, too: then the daemon does it.
    Doctor {
        /// Only this mailbox.
        mailbox: Option<String>,
    },
    /// Says which mailbox a From would go out through, by which rule, with which From, and what was tried before.
    Route {
        /// The From header, like 'John Doe <john@example.com>'.
        #[arg(long, value_name = "FROM")]
        from: String,
        /// The MAIL FROM that goes with it: the bounce address of an alias domain, whose notifications address then
        /// counts. Absent: the first alias domain's.
        #[arg(long, value_name = "ADDRESS", default_value = "", hide_default_value = true)]
        mail_from: String,
    },
    /// Connects a mailbox: its owner signs in at Microsoft. Works while the daemon runs, too.
    ///
    /// Without a flag it prints an address to open in a browser on this machine.
    Connect {
        /// The mailbox's address, as in the configuration.
        mailbox: String,
        /// Prints a code to enter in a browser anywhere (the app must allow public client flows).
        #[arg(long, conflicts_with = "refresh_token_file")]
        device: bool,
        /// A file with the refresh token as its only line: it is taken over into the store, nobody signs in.
        #[arg(long, value_name = "FILE")]
        refresh_token_file: Option<PathBuf>,
    },
    /// Prints a link with which a mailbox's owner connects it, without any right in Odoo.
    Invite {
        /// The mailbox's address, as in the configuration.
        mailbox: String,
        /// How long the link works.
        #[arg(long, value_name = "DURATION", default_value = "7 days")]
        expires: String,
        /// Ends every link that was given out for this mailbox.
        #[arg(long, conflicts_with = "expires")]
        revoke: bool,
    },
    /// Shows the mailboxes, tokens, queue and inboxes of the running daemon; exits 0 only when all is well.
    Status,
    /// What waits to be sent, is held, or was given up: list, show, retry, cancel.
    #[command(subcommand)]
    Queue(QueueCommand),
    /// Looks after the received mail that Odoo refuses.
    #[command(subcommand)]
    Inbox(InboxCommand),
    /// Takes over an Odoo that used its own Outlook modules: reads it as a system administrator, and writes relay.toml,
    /// the secrets and the tokens.
    ///
    /// Odoo itself is only changed with --apply, and put back with --undo.
    ImportOdoo(import::Arguments),
    /// Looks after the store.
    #[command(subcommand)]
    Store(StoreCommand),
    /// Writes the man pages and the shell completions into a folder, for packages.
    #[command(hide = true)]
    Manual {
        /// Where to.
        folder: PathBuf,
    },
}

#[derive(Debug, Subcommand)]
enum InboxCommand {
    /// Lists the received messages that Odoo refuses or that cannot be brought to it, oldest first, with the reason.
    List {
        /// Only those of this mailbox.
        #[arg(long, value_name = "ADDRESS")]
        mailbox: Option<String>,
    },
    /// Has such messages tried now; those in the quarantine folder are moved back first.
    Retry(inbox::Named),
}

#[derive(Debug, Subcommand)]
enum StoreCommand {
    /// Copies the store, as it is at one moment, into a new file. Works while the daemon runs, and holds up no mail.
    ///
    /// The file is readable for its owner alone; none is overwritten. It does not hold the key of the tokens (relay.key, or
    /// [store] key_file): back that up besides, apart from the copies, with the configuration and its secrets. Do not copy
    /// relay.db itself.
    Backup {
        /// The new file.
        file: PathBuf,
    },
    /// Looks whether the store is sound: its file, tables and rows, the key of the tokens, free space. Changes nothing.
    ///
    /// Exits 0 when every check is well. Works while the daemon runs, too; it reads the whole file.
    Check,
    /// Puts a backup in the store's place; the daemon must be stopped.
    ///
    /// The store before is kept beside it. At the daemon's next start nothing is sent or pushed twice: what was queued in
    /// the backup is looked for in Sent Items first, and Odoo is asked for what it may have.
    Restore {
        /// The backup, which stays as it is.
        file: PathBuf,
    },
    /// Seals every token under a new key, which takes the place of the one before.
    ///
    /// Works while the daemon runs; where [store] key_file names the key, stop the daemon first. Run it again if it was
    /// cut short. It does not end stolen tokens: for that, revoke the mailbox's sessions at Microsoft and connect it anew.
    RotateKey {
        /// The key is lost for good: goes on with the key file's key, or a new one. Each mailbox must then be connected
        /// anew; nothing is deleted.
        #[arg(long)]
        lost: bool,
    },
}

#[derive(Debug, Subcommand)]
enum QueueCommand {
    /// Lists the messages that wait, are held or have failed, oldest first, with their last attempt.
    List {
        #[command(flatten)]
        filter: queue::Filter,
    },
    /// Shows one message: its recipients, and every attempt with the literal reply.
    Show {
        /// Its id, as `queue list` shows it.
        id: String,
        /// Prints the message itself, as Odoo handed it in.
        #[arg(long, conflicts_with = "json")]
        raw: bool,
    },
    /// Has messages tried now, and for as long as new ones: also those that were given up or are held.
    ///
    /// Those whose outcome is unknown are looked for in Sent Items first; held ones are sent again.
    Retry(queue::Named),
    /// Takes messages out of the queue: they will not be sent. Odoo gets a report of each.
    Cancel(queue::Named),
}

/// Runs the command that the process's arguments name.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    tls::install_provider();
    match dispatch(&cli) {
        Ok(code) => code,
        Err(error) if broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            let code = if error.is::<Mistakes>() { EX_CONFIG } else { 1 };
            // One line, with its causes: `{:#}` is anyhow's way to say so. Mistakes have a line each.
            let program = if code == 1 { "outlook-relay: " } else { "" };
            let text = format!("{program}{error:#}{}", damage(&error));
            drop(std::io::stderr().write_all(logging::complaint(&text).as_bytes()));
            ExitCode::from(code)
        }
    }
}

fn dispatch(cli: &Cli) -> anyhow::Result<ExitCode> {
    if let Command::Manual { folder } = &cli.command {
        return manual::manual(folder);
    }
    if let Command::ImportOdoo(arguments) = &cli.command {
        return import::import(arguments, &cli.config, cli.json);
    }
    if let Command::Run = &cli.command {
        return run::run(&cli.config);
    }
    let config = Config::load(&cli.config)?;
    match &cli.command {
        Command::Run => run::run(&cli.config),
        Command::Check => check::check(&config, &cli.config, cli.json),
        Command::Doctor { mailbox } => doctor::doctor(&config, mailbox.as_deref(), cli.json),
        Command::Route { from, mail_from } => route::route(&config, from, mail_from, cli.json),
        Command::Connect { mailbox, device, refresh_token_file } => {
            let how = match refresh_token_file {
                Some(file) => connect::How::File(file),
                None if *device => connect::How::Device,
                None => connect::How::Browser,
            };
            connect::connect(&config, mailbox, how, cli.json)
        }
        Command::Invite { mailbox, revoke: true, .. } => invite::revoke(&config, mailbox, cli.json),
        Command::Invite { mailbox, expires, .. } => invite::invite(&config, mailbox, expires, cli.json),
        Command::Status => status::status(&config, cli.json),
        Command::Queue(QueueCommand::List { filter }) => queue::list(&config, filter, cli.json),
        Command::Queue(QueueCommand::Show { id, raw }) => queue::show(&config, id, *raw, cli.json),
        Command::Queue(QueueCommand::Retry(named)) => {
            queue::change(&config, named, queue::Deed::Retry, cli.json)
        }
        Command::Queue(QueueCommand::Cancel(named)) => {
            queue::change(&config, named, queue::Deed::Cancel, cli.json)
        }
        Command::Manual { folder } => manual::manual(folder),
        Command::Inbox(InboxCommand::List { mailbox }) => inbox::list(&config, mailbox.as_deref(), cli.json),
        Command::Inbox(InboxCommand::Retry(named)) => inbox::retry(&config, named, cli.json),
        Command::ImportOdoo(arguments) => import::import(arguments, &cli.config, cli.json),
        Command::Store(StoreCommand::Backup { file }) => store::backup(&config, file, cli.json),
        Command::Store(StoreCommand::Check) => store_check::check(&config, cli.json),
        Command::Store(StoreCommand::Restore { file }) => store::restore(&config, file, cli.json),
        Command::Store(StoreCommand::RotateKey { lost }) => store::rotate_key(&config, *lost, cli.json),
    }
}

/// The mailbox of the configuration that an argument names.
fn find_mailbox<'c>(config: &'c Config, named: &str) -> anyhow::Result<&'c mailbox::Config> {
    let address = Address::normalise(named).with_context(|| format!("{named:?} is not an address"))?;
    let Some(mailbox) = config.mailboxes.iter().find(|mailbox| mailbox.address == address) else {
        let known: Vec<&str> = config.mailboxes.iter().map(|mailbox| mailbox.address.as_str()).collect();
        bail!("{address} is not a mailbox of the configuration, which has {}", known.join(", "));
    };
    Ok(mailbox)
}

/// Prints a text and a line end.
fn say(text: impl std::fmt::Display) -> anyhow::Result<()> {
    writeln!(std::io::stdout(), "{text}")?;
    Ok(())
}

/// Prints a value as JSON.
fn say_json(value: &impl serde::Serialize) -> anyhow::Result<()> {
    say(serde_json::to_string_pretty(value)?)
}

/// Runs a short command's work; the daemon has a runtime of its own.
fn block_on<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work)
}

/// What to do about a store that turned out to be damaged when it was already open.
fn damage(error: &anyhow::Error) -> &'static str {
    match error.chain().find_map(|cause| cause.downcast_ref::<Error>()) {
        Some(Error::Damaged { .. }) | None => "",
        Some(error) if error.is_damage() => {
            ". The store's file is damaged: `outlook-relay store check` says more; where there is a backup, stop the daemon, run \
             `outlook-relay store restore BACKUP`, and start it again"
        }
        Some(_) => "",
    }
}

/// Whoever read our output (`| head`) has seen enough: not a failure.
fn broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<std::io::Error>().is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}
