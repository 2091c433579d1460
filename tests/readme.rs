//! The README: every command in it is run by a test, and what it shows of the program is what the program says.
#![expect(clippy::panic, reason = "test code: a failure here must stop the test")]

use crate::company::{JOHN, NOTIFICATIONS};
use crate::support::entra::CLIENT_ID;
use crate::support::odoo::DATABASE;
use crate::support::odoo_records::{ADMIN, ADMIN_PASSWORD, OdooRecords, text};
use crate::support::relay::Config;
use crate::support::world::World;
use crate::support::xmlrpc::Value;
use std::collections::BTreeSet;
use std::process::Command;

const README: &str = include_str!("../README.md");

/// What stands below a heading, up to the next.
pub(crate) fn section(heading: &str) -> &'static str {
    let start = README.find(&format!("# {heading}\n")).unwrap_or_else(|| panic!("no section {heading:?}"));
    let below = &README[start..];
    let text = &below[below.find('\n').unwrap()..];
    &text[..text.find("\n#").unwrap_or(text.len())]
}

/// The lines of each code block in this language.
pub(crate) fn blocks(text: &'static str, language: &str) -> Vec<Vec<&'static str>> {
    let mut blocks = Vec::new();
    let mut lines = text.lines();
    while lines.any(|line| line == format!("```{language}")) {
        blocks.push(lines.by_ref().take_while(|line| *line != "```").collect());
    }
    blocks
}

/// The commands of a block, without what is said about them.
pub(crate) fn commands(block: &[&str]) -> Vec<String> {
    block.iter().map(|line| line.split("  #").next().unwrap().trim().to_owned()).collect()
}

/// Which test runs a command of the README.
#[derive(Debug, PartialEq, Eq)]
enum Run {
    /// tests/package.rs, in the order in which they stand.
    Package,
    /// [`the_way_from_source_puts_everything_in_its_place`].
    Source,
    /// [`route_says_what_the_readme_shows`].
    Route,
    /// [`an_odoo_is_taken_over_as_the_readme_says`].
    Import,
    /// [`journalctl_takes_what_the_readme_asks_it`].
    Journal,
    /// tests/run, or what it does in nearly the same words: it builds, gets cargo-deb, and runs the demonstration.
    Everybody,
}

/// Every command of the README's blocks.
const KNOWN: [(&str, Run); 33] = [
    ("cargo run --release --example demo", Run::Everybody),
    ("tests/run", Run::Everybody),
    ("sudo apt install ./outlook-relay_0.1.0-1_amd64.deb", Run::Package),
    ("sudo install -m 600 /dev/stdin /etc/outlook-relay/client-secret", Run::Package),
    ("sudo install -m 600 /dev/stdin /etc/outlook-relay/odoo-password", Run::Package),
    ("sudoedit /etc/outlook-relay/relay.toml", Run::Package),
    ("sudo outlook-relay check", Run::Package),
    ("cargo build --release --locked", Run::Everybody),
    ("sudo install target/release/outlook-relay /usr/bin/", Run::Source),
    ("sudo install -d -m 755 /etc/outlook-relay", Run::Source),
    ("sudo install -m 644 config/relay.toml /etc/outlook-relay/", Run::Source),
    ("sudo outlook-relay route --from '\"Eve\" <eve@example.org>'", Run::Route),
    (
        "sudo outlook-relay import-odoo --url http://127.0.0.1:8069 --database prod --login admin --password-file KEY --dry-run",
        Run::Import,
    ),
    ("sudo systemctl start outlook-relay.socket outlook-relay.service", Run::Package),
    ("sudo outlook-relay doctor", Run::Package),
    ("sudo outlook-relay status", Run::Package),
    ("journalctl -fu outlook-relay", Run::Journal),
    (
        "sudo install -m 644 deploy/outlook-relay.service deploy/outlook-relay.socket /etc/systemd/system/",
        Run::Source,
    ),
    ("sudo systemctl daemon-reload", Run::Source),
    ("sudo systemctl enable outlook-relay.socket outlook-relay.service", Run::Source),
    ("cargo install --locked cargo-deb", Run::Everybody),
    ("deploy/package", Run::Package),
    ("sudo outlook-relay store backup /backup/relay-$(date +%F).db", Run::Package),
    ("sudo install -m 600 /var/lib/outlook-relay/relay.key /elsewhere/", Run::Package),
    ("sudo systemctl stop outlook-relay.socket outlook-relay.service", Run::Package),
    ("sudo outlook-relay store restore /backup/relay-2026-11-21.db", Run::Package),
    ("journalctl -u outlook-relay -p err --since today", Run::Journal),
    ("journalctl -u outlook-relay MAILBOX=john@example.com -p err", Run::Journal),
    ("journalctl -u outlook-relay EVENT='token failed' --since -2h", Run::Journal),
    ("journalctl -u outlook-relay ID=1K0RCRXD531", Run::Journal),
    ("journalctl -u outlook-relay RELAY_MESSAGE_ID='<123.odoo@example.com>'", Run::Journal),
    ("journalctl -u outlook-relay CLASS=consent -o json | jq -r .MAILBOX", Run::Journal),
    ("journalctl -u outlook-relay | grep 'token failed'", Run::Journal),
];

#[test]
fn every_command_is_one_that_a_test_runs() {
    let mut shown: Vec<String> = blocks(README, "sh").iter().flat_map(|block| commands(block)).collect();
    let consoles = blocks(README, "console");
    let typed = consoles.iter().flatten().filter_map(|line| line.strip_prefix("$ "));
    shown.extend(typed.map(str::to_owned));
    for command in &shown {
        assert!(KNOWN.iter().any(|(known, _)| known == command), "no test runs {command:?}");
    }
    for (known, _) in &KNOWN {
        assert!(shown.iter().any(|command| command == known), "the README no longer has {known:?}");
    }
    assert_eq!(README.matches("\n```").count() % 2, 0);
    let version = format!("outlook-relay_{}-1_", env!("CARGO_PKG_VERSION"));
    assert!(shown.iter().any(|command| command.contains(&version)), "{version}");
}

#[test]
fn the_way_from_source_puts_everything_in_its_place() {
    let root = tempfile::tempdir().unwrap();
    let at = |path: &str| root.path().join(path);
    for folder in ["usr/bin", "etc/systemd/system"] {
        std::fs::create_dir_all(at(folder)).unwrap();
    }
    for (command, run) in &KNOWN {
        if *run != Run::Source {
            continue;
        }
        // Nothing of the machine itself is touched.
        let command = command
            .replace(" /usr/", &format!(" {}/usr/", root.path().display()))
            .replace(" /etc/", &format!(" {}/etc/", root.path().display()))
            .replace("target/release/outlook-relay", env!("CARGO_BIN_EXE_outlook-relay"));
        let script = format!("sudo() {{ \"$@\"; }}; systemctl() {{ :; }}; {command}");
        let ran = Command::new("sh").args(["-ec", &script]).current_dir(env!("CARGO_MANIFEST_DIR")).output();
        let ran = ran.unwrap();
        assert!(ran.status.success(), "{command}: {ran:?}");
    }
    let checked = Command::new(at("usr/bin/outlook-relay"))
        .arg("check")
        .arg("-c")
        .arg(at("etc/outlook-relay/relay.toml"))
        .output()
        .unwrap();
    assert!(checked.status.success(), "{checked:?}");
    let service = std::fs::read_to_string(at("etc/systemd/system/outlook-relay.service")).unwrap();
    assert!(service.contains("ExecStart=/usr/bin/outlook-relay run -c /etc/outlook-relay/relay.toml\n"));
    assert!(at("etc/systemd/system/outlook-relay.socket").exists());
    // Nothing ends the attempts to start, or systemd would close the SMTP port.
    assert!(service.contains("\nStartLimitIntervalSec=0\n") && service.contains("\nRestart=on-failure\n"));
    assert!(!service.contains("RestartPreventExitStatus=78"));
}

/// That what the relay writes there can be found by these fields is the log's tests' business.
#[test]
fn journalctl_takes_what_the_readme_asks_it() {
    let empty = tempfile::tempdir().unwrap();
    for (command, _) in KNOWN.iter().filter(|(_, run)| *run == Run::Journal) {
        // Not the machine's own journal, not for ever, and without what comes behind it.
        let question = command.split(" | ").next().unwrap().replacen(" -fu ", " -u ", 1);
        let script = format!("{question} --no-pager --directory={}", empty.path().display());
        let ran = Command::new("sh").args(["-ec", &script]).output().unwrap();
        assert!(ran.status.success(), "{command}: {ran:?}");
    }
}

/// The configuration that the README shows, with its secrets beside it.
fn shown() -> Config {
    let config = Config::new();
    let toml = blocks(section("2. The relay"), "toml").concat().join("\n");
    config.secret("shown.toml", &toml);
    config.secret("client-secret", "secret");
    config.secret("odoo-password", "password");
    config
}

#[test]
fn route_says_what_the_readme_shows() {
    let config = shown();
    let mut seen = 0;
    for block in blocks(README, "console") {
        let [command, said @ ..] = block.as_slice() else { panic!("an empty block") };
        let command = command.strip_prefix("$ sudo ").unwrap_or_else(|| panic!("{command}"));
        let script = command.replacen("outlook-relay", env!("CARGO_BIN_EXE_outlook-relay"), 1);
        let script = format!("{script} -c shown.toml");
        let ran = Command::new("sh").args(["-ec", &script]).current_dir(config.dir()).output().unwrap();
        let text = String::from_utf8(ran.stdout).unwrap();
        assert_eq!(text.lines().collect::<Vec<_>>(), said, "{}", String::from_utf8_lossy(&ran.stderr));
        seen += 1;
    }
    assert_eq!(seen, 1);
}

#[test]
fn the_configurations_that_it_shows_are_well() {
    let config = shown();
    let base = std::fs::read_to_string(config.dir().join("shown.toml")).unwrap();
    for name in ["odoo-submission-password", "news-submission-password"] {
        config.secret(name, "password");
    }
    let users = blocks(section("4. Odoo"), "toml").concat().join("\n");
    for toml in [base.clone(), format!("{base}\n{users}\n")] {
        config.secret("shown.toml", &toml);
        let file = config.dir().join("shown.toml");
        let checked = Command::new(env!("CARGO_BIN_EXE_outlook-relay"))
            .arg("check")
            .arg("-c")
            .arg(file)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&checked.stdout);
        assert!(checked.status.success(), "{checked:?}");
        assert!(said.contains("usable, with 1 warning") && said.contains("is the placeholder"), "{said}");
    }
}

#[tokio::test]
async fn an_odoo_is_taken_over_as_the_readme_says() {
    let (world, odoo) = (World::start().await, OdooRecords::start("19.0").await);
    odoo.parameter("microsoft_outlook_client_id", CLIENT_ID);
    let token = world.entra.add_mailbox(JOHN);
    odoo.add(
        "ir.mail_server",
        &[
            ("name", text("John")),
            ("sequence", Value::Int(1)),
            ("active", Value::Bool(true)),
            ("from_filter", text(JOHN)),
            ("smtp_host", text("localhost")),
            ("smtp_port", Value::Int(587)),
            ("smtp_encryption", text("starttls")),
            ("smtp_authentication", text("outlook")),
            ("smtp_user", text(JOHN)),
            ("microsoft_outlook_refresh_token", text(&token)),
        ],
    );
    let config = Config::new();
    config.secret("KEY", ADMIN_PASSWORD);
    let (command, _) = KNOWN.iter().find(|(_, run)| *run == Run::Import).unwrap();
    let mut script = command.replacen("sudo outlook-relay", env!("CARGO_BIN_EXE_outlook-relay"), 1);
    for (old, new) in [("http://127.0.0.1:8069", odoo.url().as_str()), (" prod ", &format!(" {DATABASE} "))] {
        assert!(script.contains(old));
        script = script.replace(old, new);
    }
    assert_eq!(ADMIN, "admin");
    let ran =
        tokio::process::Command::new("sh").args(["-ec", &script]).current_dir(config.dir()).output().await;
    let ran = ran.unwrap();
    let said = String::from_utf8_lossy(&ran.stdout);
    assert!(ran.status.success() && said.contains("[[mailbox]]") && said.contains(JOHN), "{ran:?}");
    assert!(!said.contains(NOTIFICATIONS), "{said}");
    assert_eq!(odoo.changes(), Vec::<String>::new());
}

fn help(words: &[&str]) -> String {
    let output =
        Command::new(env!("CARGO_BIN_EXE_outlook-relay")).args(words).arg("--help").output().unwrap();
    assert!(output.status.success(), "{words:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// The commands that `--help` names, those of `queue` and the like one by one.
fn defined(before: &[&str]) -> BTreeSet<String> {
    let help = help(before);
    let Some((_, list)) = help.split_once("Commands:\n") else {
        return BTreeSet::from([before.join(" ")]);
    };
    let list = list.split("\n\n").next().unwrap().lines();
    // A description that goes on is indented further.
    let names = list.filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    let names = names.filter_map(|line| line.split_whitespace().next()).filter(|name| *name != "help");
    names.flat_map(|name| defined(&[before, &[name]].concat())).collect()
}

#[test]
fn its_table_of_commands_is_the_programs() {
    let mut told = BTreeSet::new();
    for row in section("Commands").lines().filter(|line| line.starts_with("| `")) {
        // A bar within a cell is written \|.
        let row = row.replace("\\|", "\u{0}");
        let cell = row.split('|').nth(1).unwrap();
        for usage in cell.split('`').skip(1).step_by(2) {
            let words: Vec<&str> = usage.split_whitespace().collect();
            let name = |word: &&&str| word.starts_with(|c: char| c.is_ascii_lowercase());
            let command: Vec<&str> = words.iter().take_while(name).copied().collect();
            told.insert(command.join(" "));
            let help = help(&command);
            for flag in
                row.split(|c: char| !(c.is_ascii_alphanumeric() || c == '-')).filter(|w| w.starts_with("--"))
            {
                // A row may tell of several commands.
                assert!(help.contains(flag) || cell.matches('`').count() > 2, "{command:?} has no {flag}");
            }
        }
    }
    assert_eq!(told, defined(&[]));
}
