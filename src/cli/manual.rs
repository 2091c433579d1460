//! `manual`: the man pages and shell completions, for packages. All of it comes from what the program itself goes by: the
//! definition of the command line, and the shipped configuration, which a test holds against the code.

use super::{Cli, say};
use anyhow::Context;
use clap::CommandFactory;
use clap_complete::Shell;
use clap_mangen::Man;
use clap_mangen::roff::{Inline, Roff, bold, italic, roman};
use std::path::Path;
use std::process::ExitCode;

const SHIPPED: &str = include_str!("../../config/relay.toml");

/// Writes `outlook-relay.1`, `relay.toml.5` and the completions for bash, fish and zsh into a folder.
pub(super) fn manual(folder: &Path) -> anyhow::Result<ExitCode> {
    let write = |name: &str, content: &[u8]| {
        let path = folder.join(name);
        std::fs::write(&path, content).with_context(|| format!("{}: cannot be written", path.display()))
    };
    write("outlook-relay.1", &commands()?)?;
    write("relay.toml.5", configuration().to_roff().as_bytes())?;
    for (shell, name) in [
        (Shell::Bash, "outlook-relay.bash"),
        (Shell::Fish, "outlook-relay.fish"),
        (Shell::Zsh, "_outlook-relay"),
    ] {
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut Cli::command(), "outlook-relay", &mut script);
        write(name, &script)?;
    }
    say(format_args!("Man pages and completions are in {}.", folder.display()))?;
    Ok(ExitCode::SUCCESS)
}

/// outlook-relay(1): the program, then each of its commands.
fn commands() -> std::io::Result<Vec<u8>> {
    let mut command = Cli::command();
    command.build();
    let page = Man::new(command.clone());
    let mut out = Vec::new();
    page.render_title(&mut out)?;
    page.render_name_section(&mut out)?;
    page.render_synopsis_section(&mut out)?;
    page.render_description_section(&mut out)?;
    page.render_options_section(&mut out)?;
    let mut roff = Roff::new();
    roff.control("SH", ["COMMANDS"]);
    describe(&mut roff, &command, "");
    for (heading, text) in [
        ("EXIT STATUS", "0: well. 1: failure. 2: the command line is wrong. 78: the configuration is wrong."),
        ("FILES", "/etc/outlook-relay/relay.toml, /var/lib/outlook-relay/relay.db"),
        ("SEE ALSO", "relay.toml(5)"),
    ] {
        roff.control("SH", [heading]);
        roff.text([roman(text)]);
    }
    out.extend_from_slice(roff.to_roff().as_bytes());
    Ok(out)
}

/// Each command below `command`, with its arguments.
fn describe(roff: &mut Roff, command: &clap::Command, before: &str) {
    for command in command.get_subcommands().filter(|one| !one.is_hide_set() && one.get_name() != "help") {
        let name = format!("{before}{}", command.get_name());
        if command.has_subcommands() {
            describe(roff, command, &format!("{name} "));
            continue;
        }
        let own = |argument: &&clap::Arg| {
            !argument.is_global_set() && !matches!(argument.get_id().as_str(), "help" | "version")
        };
        roff.control("SS", [name.as_str()]);
        let about = command.get_long_about().or(command.get_about()).map(ToString::to_string);
        paragraphs(roff, &about.unwrap_or_default(), "PP");
        for argument in command.get_arguments().filter(own) {
            roff.control("TP", []);
            roff.text([bold(argument.to_string())]);
            let help = argument.get_long_help().or(argument.get_help()).map(ToString::to_string);
            paragraphs(roff, &help.unwrap_or_default(), "IP");
        }
    }
}

/// `between`: what parts the paragraphs, `PP` in a section and `IP` below a key or an argument.
fn paragraphs(roff: &mut Roff, text: &str, between: &str) {
    for (index, paragraph) in text.split("\n\n").enumerate() {
        if index > 0 {
            roff.control(between, []);
        }
        roff.text([roman(paragraph.replace('\n', " "))]);
    }
}

/// relay.toml(5): the shipped configuration, whose comments are the descriptions.
fn configuration() -> Roff {
    let mut roff = Roff::new();
    roff.control("TH", ["relay.toml", "5", "", concat!("outlook-relay ", env!("CARGO_PKG_VERSION"))]);
    roff.control("SH", ["NAME"]);
    roff.text([roman("relay.toml - the configuration of outlook-relay(1)")]);
    roff.control("SH", ["DESCRIPTION"]);
    let mut comment: Vec<&str> = Vec::new();
    for line in SHIPPED.lines() {
        let key = line.strip_prefix('#').unwrap_or(line);
        if let Some(text) = line.strip_prefix("# ").or((line == "#").then_some("")) {
            comment.push(text);
        } else if line.trim().is_empty() {
            flush(&mut roff, &mut comment, "PP");
        } else if key.starts_with('[') {
            roff.control("SH", [key.trim_matches(['[', ']'])]);
            flush(&mut roff, &mut comment, "PP");
        } else if let Some((name, value)) = key.split_once('=') {
            roff.control("TP", []);
            let optional: &[Inline] = if line.starts_with('#') { &[roman(" (optional)")] } else { &[] };
            roff.text([&[bold(name.trim()), roman(" = "), italic(value.trim())], optional].concat());
            flush(&mut roff, &mut comment, "IP");
        }
    }
    flush(&mut roff, &mut comment, "PP");
    roff
}

/// Writes what the comment says, paragraph by paragraph.
fn flush(roff: &mut Roff, comment: &mut Vec<&str>, between: &str) {
    let text = comment.join("\n").replace("\n\n", "\u{0}").replace('\n', " ").replace('\u{0}', "\n\n");
    comment.clear();
    if !text.trim().is_empty() {
        paragraphs(roff, &text, between);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pages_tell_every_command_and_every_key() {
        let page = String::from_utf8(commands().unwrap()).unwrap();
        for command in [
            "run",
            "check",
            "doctor",
            "queue retry",
            "queue cancel",
            "store backup",
            "store restore",
            "store rotate-key",
            "status",
        ] {
            assert!(
                page.contains(&format!(".SS \"{command}\"")) || page.contains(&format!(".SS {command}\n")),
                "{command}: {page}"
            );
        }
        assert!(!page.contains("manual"), "that one is for packages alone");
        let page = configuration().to_roff();
        let keys = SHIPPED.lines().filter(|line| {
            let key = line.strip_prefix('#').unwrap_or(line);
            key.starts_with(|c: char| c.is_ascii_lowercase()) && key.contains('=')
        });
        let keys: Vec<&str> = keys.collect();
        assert!(keys.len() > 60, "{}", keys.len());
        assert_eq!(page.matches("\n.TP\n").count(), keys.len());
        for section in ["microsoft", "odoo", "submission", "store", "delivery", "fetch", "admin", "mailbox"] {
            assert!(
                page.contains(&format!(".SH {section}\n")) || page.contains(&format!(".SH \"{section}\"")),
                "{section}"
            );
        }
    }
}
