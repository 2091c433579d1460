//! `store check`: seen, meaning, remedy.

use super::doctor::told;
use super::store::daemon_runs;
use super::table::size;
use super::{block_on, say, say_json};
use crate::config::Config;
use crate::doctor::Outcome;
use crate::failure::chain;
use crate::store::{self, Error, Health, Inside, KeyHealth, Store};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

/// What to do about a file that is damaged.
const RESTORE: &str = "stop the daemon, put a backup in its place with `outlook-relay store restore BACKUP`, and start it \
                       again; what is there now is kept";
/// What to do about a disk that fills up. systemd lets the service write to its own folder alone, so another `[store]` url is
/// no way out.
const ROOM: &str = "free some space, or stop the daemon and its socket, copy what lies in /var/lib/private/outlook-relay to a \
                    larger disk (cp -a), mount that disk at /var/lib/private/outlook-relay, and start both again";
/// Less free space than this is worth a word: 1 GiB.
const LITTLE: u64 = 1 << 30;

#[derive(Debug, Serialize)]
struct Report {
    well: bool,
    findings: Vec<Finding>,
    #[serde(skip_serializing_if = "Option::is_none")]
    counts: Option<BTreeMap<&'static str, BTreeMap<String, u64>>>,
}

#[derive(Debug, PartialEq, Serialize)]
struct Finding {
    check: &'static str,
    outcome: Outcome,
    seen: String,
    meaning: String,
    remedy: String,
}

pub(super) fn check(config: &Config, json: bool) -> anyhow::Result<ExitCode> {
    let health = block_on(async { Ok(Store::check(&config.store).await?) })?;
    let runs = daemon_runs(&config.store.path)?;
    let findings = findings(&health, runs);
    let well = findings.iter().all(|finding| finding.outcome != Outcome::Failed);
    let report = Report { well, findings, counts: health.inside.ok().map(|inside| inside.counts) };
    if json {
        say_json(&report)?;
    } else {
        say(config.store.path.display())?;
        let width = report.findings.iter().map(|finding| finding.check.len()).max().unwrap_or_default();
        for Finding { check, outcome, seen, meaning, remedy } in &report.findings {
            say(told(*outcome, check, width, [seen, meaning, remedy]))?;
        }
        say(if well { "\nAll is well." } else { "\nNot all is well. Nothing was changed." })?;
    }
    Ok(if well { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn ok(check: &'static str, seen: impl Into<String>) -> Finding {
    Finding { check, outcome: Outcome::Ok, seen: seen.into(), meaning: String::new(), remedy: String::new() }
}

fn bad(
    check: &'static str,
    outcome: Outcome,
    seen: impl Into<String>,
    meaning: impl Into<String>,
    remedy: impl Into<String>,
) -> Finding {
    Finding { check, outcome, seen: seen.into(), meaning: meaning.into(), remedy: remedy.into() }
}

/// What is to be said of what was seen.
fn findings(health: &Health, runs: bool) -> Vec<Finding> {
    let mut findings =
        vec![ok("daemon", if runs { "runs" } else { "does not run" }), file(health), space(health)];
    findings.extend(owner(&health.strangers));
    match &health.inside {
        Err(error) => {
            let (meaning, remedy) = match error {
                Error::Damaged { .. } => {
                    ("the file is damaged, or no store: the daemon cannot start with it", RESTORE)
                }
                Error::Emptied { .. } => {
                    ("the file holds nothing: it was truncated, or a first start was cut short", RESTORE)
                }
                Error::Foreign { .. } => ("this is another program's database", "correct [store] url"),
                _ => (
                    "the file cannot be looked into",
                    "run as root, or as the daemon's user; look at the folder's rights",
                ),
            };
            findings.push(bad("database", Outcome::Failed, chain(error), meaning, remedy));
        }
        Ok(inside) if !inside.damage.is_empty() => {
            let meaning = "the file is damaged, by the disk or by what copied or wrote it besides the relay: mail in it may be lost";
            findings.push(bad("database", Outcome::Failed, inside.damage.join("; "), meaning, RESTORE));
        }
        Ok(inside) => {
            findings.push(ok("database", "sound"));
            findings.extend([version(inside), key(&inside.key)]);
            findings.extend(rows(inside));
        }
    }
    findings
}

fn file(health: &Health) -> Finding {
    let sizes = format!("{}, and {} in its log", size(health.bytes), size(health.log_bytes));
    if health.mode & 0o077 == 0 {
        return ok("file", sizes);
    }
    let seen = format!("{sizes}; its permissions are {:o}", health.mode);
    bad("file", Outcome::Failed, seen, "others may read the mail in it", "chmod 600 that file")
}

/// Files that the daemon, whose the folder is, cannot use.
fn owner(strangers: &[PathBuf]) -> Option<Finding> {
    let folder = strangers.first()?.parent()?.display();
    let names: Vec<String> = strangers.iter().map(|file| file.display().to_string()).collect();
    let (seen, meaning) = (
        format!("{} and their folder do not belong to the same user", names.join(", ")),
        "the daemon, whose the folder is, cannot use them, and does not start or stops",
    );
    let remedy = format!("chown --reference={folder} {}", names.join(" "));
    Some(bad("owner", Outcome::Failed, seen, meaning, remedy))
}

fn space(health: &Health) -> Finding {
    let Some(free) = health.free else {
        return bad("free space", Outcome::Skipped, "cannot be asked", "", "");
    };
    let seen = format!("{} free", size(free));
    match free {
        0..store::RESERVE => {
            let meaning = "new mail is refused: the last of the disk is kept for sending what waits";
            bad("free space", Outcome::Failed, seen, meaning, ROOM)
        }
        store::RESERVE..LITTLE => {
            bad("free space", Outcome::Warning, seen, "once it is used up, new mail is refused", ROOM)
        }
        _ => ok("free space", seen),
    }
}

fn version(inside: &Inside) -> Finding {
    let Inside { version, known, .. } = inside;
    match version {
        0 => ok("version", "no tables yet: the daemon makes them at its first start"),
        version if version > known => bad(
            "version",
            Outcome::Failed,
            format!("{version}; this program knows {known}"),
            "a newer outlook-relay wrote this store: this one does not start with it",
            "install that version again, or restore a backup from before",
        ),
        version if version < known => {
            ok("version", format!("{version}: the next start brings it to {known}; make a backup before"))
        }
        version => ok("version", version.to_string()),
    }
}

fn key(key: &KeyHealth) -> Finding {
    match key {
        KeyHealth::Unused => ok("key", "nothing is sealed yet"),
        KeyHealth::Opens { keys, tokens } => {
            let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
            ok("key", format!("{} opens {tokens} tokens", keys.join(", ")))
        }
        KeyHealth::Fails(why) => bad(
            "key",
            Outcome::Failed,
            why.join("; "),
            "mailboxes whose token does not open can neither send nor receive",
            "put the key of that time back from its backup; for a single mailbox, `outlook-relay connect MAILBOX`",
        ),
    }
}

fn rows(inside: &Inside) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (what, states) in &inside.counts {
        let states: Vec<String> = states.iter().map(|(state, count)| format!("{count} {state}")).collect();
        findings.push(ok(what, if states.is_empty() { "none".to_owned() } else { states.join(", ") }));
    }
    if !inside.orphans.is_empty() {
        let seen: Vec<String> =
            inside.orphans.iter().map(|(what, count)| format!("{count} {what}")).collect();
        let meaning = "rows that belong together are not all there: such messages cannot be sent";
        let remedy = "`outlook-relay queue list` and `queue cancel` for messages that cannot be sent; tell the makers, for \
                      this is a defect or somebody else's write";
        findings.push(bad("rows", Outcome::Failed, seen.join(", "), meaning, remedy));
    }
    if let Some(made_at) = inside.made_at {
        findings.push(ok(
            "backup",
            format!("made {}: no daemon has started with it yet", super::table::time(made_at)),
        ));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn health(inside: Result<Inside, Error>) -> Health {
        Health { bytes: 4096, log_bytes: 0, mode: 0o600, strangers: Vec::new(), free: Some(50 << 30), inside }
    }

    fn inside() -> Inside {
        Inside {
            damage: Vec::new(),
            version: 7,
            known: 7,
            key: KeyHealth::Unused,
            counts: BTreeMap::new(),
            orphans: BTreeMap::new(),
            made_at: None,
        }
    }

    /// The checks that are not well.
    fn wrong(health: &Health) -> Vec<(&'static str, Outcome)> {
        let found = findings(health, false);
        for finding in found.iter().filter(|finding| finding.outcome != Outcome::Ok) {
            assert!(
                !finding.seen.is_empty() && !finding.meaning.is_empty() && !finding.remedy.is_empty(),
                "{finding:?}"
            );
        }
        found.into_iter().filter(|f| f.outcome != Outcome::Ok).map(|f| (f.check, f.outcome)).collect()
    }

    #[test]
    fn each_trouble_fails_its_check() {
        use Outcome::{Failed, Warning};
        assert_eq!(wrong(&health(Ok(inside()))), []);
        assert_eq!(wrong(&Health { mode: 0o640, ..health(Ok(inside())) }), [("file", Failed)]);
        assert_eq!(wrong(&Health { free: Some(1), ..health(Ok(inside())) }), [("free space", Failed)]);
        assert_eq!(
            wrong(&Health { free: Some(store::RESERVE), ..health(Ok(inside())) }),
            [("free space", Warning)]
        );
        let strangers = vec!["/x/relay.key".into(), "/x/relay.lock".into()];
        let health_of_root = Health { strangers, ..health(Ok(inside())) };
        assert_eq!(wrong(&health_of_root), [("owner", Failed)]);
        let remedy = owner(&health_of_root.strangers).unwrap().remedy;
        assert_eq!(remedy, "chown --reference=/x /x/relay.key /x/relay.lock");
        // systemd.exec(5): a unit with ProtectSystem=strict and DynamicUser= has its StateDirectory= there, and writes nowhere else.
        let unit = include_str!("../../deploy/outlook-relay.service");
        for line in ["ProtectSystem=strict", "DynamicUser=yes", "StateDirectory=outlook-relay"] {
            assert!(unit.contains(&format!("\n{line}\n")), "{line}");
        }
        let remedy = space(&Health { free: Some(1), ..health(Ok(inside())) }).remedy;
        assert!(remedy.contains("mount that disk at /var/lib/private/outlook-relay"), "{remedy}");
        let with = |change: fn(&mut Inside)| {
            let mut inside = inside();
            change(&mut inside);
            wrong(&health(Ok(inside)))
        };
        assert_eq!(with(|i| i.damage.push("row 3 missing from index".to_owned())), [("database", Failed)]);
        assert_eq!(with(|i| i.version = 8), [("version", Failed)]);
        assert_eq!(with(|i| i.version = 6), []);
        assert_eq!(with(|i| i.key = KeyHealth::Fails(vec!["no".to_owned()])), [("key", Failed)]);
        assert_eq!(
            with(|i| i.orphans = BTreeMap::from([("messages without their content", 1)])),
            [("rows", Failed)]
        );
        let path = std::path::PathBuf::from("/x");
        for error in [Error::Emptied { path: path.clone() }, Error::Foreign { path }] {
            assert_eq!(wrong(&health(Err(error))), [("database", Failed)]);
        }
    }
}
