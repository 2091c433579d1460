//! What Prometheus and Grafana get: the metrics, the shipped alerts and the shipped dashboard, judged by promtool and
//! against a scrape of the real program.
#![expect(
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "test code: a failure here must stop the test"
)]

use crate::company::{self, JANE, JOHN, NOTIFICATIONS};
use crate::support::client::{SmtpClient, message};
use crate::support::http;
use crate::support::odoo::Answer;
use crate::support::relay::Relay;
use crate::support::script::Rule;
use crate::support::wait::{SOON, until};
use crate::support::world::World;
use serde_json::Value;
use std::collections::{BTreeSet, HashSet};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const ALERTS: &str = include_str!("../deploy/alerts.yml");
const DASHBOARD: &str = include_str!("../deploy/grafana.json");
const ALERTS_TEST: &str = include_str!("data/alerts_test.yml");

/// Asks promtool (Debian: prometheus), which must be content without a word of complaint.
fn promtool(arguments: &[&str], input: &str) -> String {
    let mut command = Command::new("promtool");
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("promtool of Debian's package prometheus");
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    assert!(output.status.success(), "{arguments:?}: {said}");
    said
}

fn in_project(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

async fn scrape(relay: &Relay) -> String {
    let headers = [("Host".to_owned(), format!("localhost:{}", relay.admin.port()))];
    let answer = http::request(relay.admin, "GET", "/metrics", &headers, b"").await.expect("an answer");
    assert_eq!(answer.status, 200);
    answer.body
}

/// The value of a sample, by its name and labels as written.
fn value(scrape: &str, sample: &str) -> f64 {
    let line = scrape.lines().find_map(|line| line.strip_prefix(sample)?.strip_prefix(' '));
    assert!(line.is_some(), "{sample} in {scrape}");
    line.unwrap().parse().unwrap()
}

/// A relay on which something of everything happened.
async fn scraped() -> String {
    let world = World::start().await;
    let mut config = company::config(&world);
    config.raw("delivery", "messages_per_minute", "1");
    for mailbox in [NOTIFICATIONS, JOHN] {
        config.connect(mailbox, &world.entra.add_mailbox(mailbox)).await.success();
    }
    world.odoo.script(Rule::new((), Answer::NoRoute).always().only("refused@t"));
    let relay = config.start().await;
    for id in ["1@t", "2@t"] {
        let reply = relay.send("b@example.com", &["a@x.test"], &message(JOHN, "a@x.test", id, "Hi")).await;
        assert_eq!(reply.code, 250, "{reply:?}");
    }
    let (mut client, _) = SmtpClient::connect(relay.submission).await;
    assert_eq!(client.cmd("NONSENSE").await.code, 500);
    for id in ["in@t", "refused@t"] {
        world.imap.deliver(NOTIFICATIONS, "INBOX", &message("c@x.test", NOTIFICATIONS, id, "Hi"));
    }
    for event in
        ["sent mailbox", "pushed mailbox", "quarantined mailbox", "token failed mailbox=jane@example.com"]
    {
        relay.wait_for_log(event).await;
    }
    until(SOON, "one of John's is sent", || world.smtp.count() == 1).await;
    scrape(&relay).await
}

/// The names of our metrics in an expression.
fn names(expression: &str) -> BTreeSet<String> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let words = expression.split(|c: char| !is_part(c));
    words
        .filter(|word| word.starts_with("outlook_relay_") || word.starts_with("process_"))
        .map(str::to_owned)
        .collect()
}

/// Every expression of the dashboard, with the panel's title, as Grafana would send it.
fn queries() -> Vec<(String, String)> {
    let dashboard: Value = serde_json::from_str(DASHBOARD).unwrap();
    let panels = dashboard["panels"].as_array().expect("panels");
    let mut queries = Vec::new();
    for panel in panels {
        for target in panel["targets"].as_array().unwrap_or(&Vec::new()) {
            let query = target["expr"].as_str().expect("an expression");
            let query =
                query.replace("$__rate_interval", "5m").replace("$instance", ".*").replace("$mailbox", ".*");
            assert!(!query.contains('$'), "{query}");
            queries.push((panel["title"].as_str().expect("a title").to_owned(), query));
        }
    }
    queries
}

#[tokio::test]
async fn metrics_are_as_prometheus_wants_them_and_those_that_we_ask_for_exist() {
    let scrape = scraped().await;
    let complaints = promtool(&["check", "metrics"], &scrape);
    assert_eq!(complaints, "");

    let alerts: Vec<(String, String)> = ALERTS
        .lines()
        .filter_map(|line| line.trim().strip_prefix("expr: "))
        .map(|query| ("an alert".to_owned(), query.to_owned()))
        .collect();
    assert!(alerts.len() > 10 && queries().len() > 30, "were they found?");
    for (place, query) in alerts.into_iter().chain(queries()) {
        let names = names(&query);
        assert!(!names.is_empty(), "{place}: {query}");
        for name in names {
            let suffix =
                ["_bucket", "_sum", "_count"].into_iter().find_map(|suffix| name.strip_suffix(suffix));
            let is_there = |name: &str, kind: &str| scrape.contains(&format!("\n# TYPE {name} {kind}"));
            let is_known = is_there(&name, "") || suffix.is_some_and(|name| is_there(name, "histogram"));
            assert!(is_known || scrape.starts_with(&format!("# HELP {name} ")), "{place}: {name}");
        }
    }

    let readme = include_str!("../README.md");
    for line in scrape.lines() {
        if let Some(name) = line.strip_prefix("# TYPE outlook_relay_").and_then(|rest| rest.split(' ').next())
        {
            assert!(readme.contains(&format!("`{name}`")), "{name} in the README");
        }
    }

    for (sample, expected) in [
        (format!("outlook_relay_accepted_total{{mailbox=\"{JOHN}\"}}"), 2.0),
        (format!("outlook_relay_sent_total{{mailbox=\"{JOHN}\"}}"), 1.0),
        (format!("outlook_relay_queue_messages{{mailbox=\"{JOHN}\",state=\"waiting\"}}"), 1.0),
        ("outlook_relay_refused_total{code=\"500 5.5.1\"}".to_owned(), 1.0),
        (format!("outlook_relay_quarantined_total{{mailbox=\"{NOTIFICATIONS}\",class=\"message\"}}"), 1.0),
        (format!("outlook_relay_failed_total{{mailbox=\"{JOHN}\",class=\"message\"}}"), 0.0),
        (format!("outlook_relay_trouble{{mailbox=\"{JANE}\",part=\"token\",class=\"consent\"}}"), 1.0),
        (format!("outlook_relay_inbox_oldest_seconds{{mailbox=\"{NOTIFICATIONS}\"}}"), 0.0),
        (format!("outlook_relay_pacing_wait_seconds_total{{mailbox=\"{JANE}\"}}"), 0.0),
        ("outlook_relay_accept_seconds_count".to_owned(), 2.0),
        ("outlook_relay_delivery_seconds_bucket{le=\"+Inf\"}".to_owned(), 1.0),
        ("outlook_relay_push_seconds_count".to_owned(), 1.0),
    ] {
        assert!((value(&scrape, &sample) - expected).abs() < 0.001, "{sample}: {scrape}");
    }
    for sample in ["process_resident_memory_bytes", "process_open_fds", "process_cpu_seconds_total"] {
        assert!(value(&scrape, sample) > 0.0, "{sample}");
    }
    let refreshed =
        value(&scrape, &format!("outlook_relay_token_refreshed_timestamp_seconds{{mailbox=\"{JOHN}\"}}"));
    assert!((refreshed - value(&scrape, "process_start_time_seconds")).abs() < 60.0);
}

#[test]
fn the_alerts_go_off_when_they_should() {
    promtool(&["check", "rules", in_project("deploy/alerts.yml").to_str().unwrap()], "");
    promtool(&["test", "rules", in_project("tests/data/alerts_test.yml").to_str().unwrap()], "");
    // Of each rule the file has a case: all go off on its bad day, but for that of a relay that does not run.
    let rules = ALERTS.matches("- alert: ").count();
    assert!(ALERTS_TEST.contains(&format!("exp_samples: [{{value: {}}}]", rules - 1)));
    assert_eq!(ALERTS.matches("remedy: ").count(), rules);
}

#[test]
fn the_dashboard_is_whole() {
    let dashboard: Value = serde_json::from_str(DASHBOARD).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let rows: Vec<&str> = panels
        .iter()
        .filter(|panel| panel["type"] == "row")
        .map(|row| row["title"].as_str().unwrap())
        .collect();
    assert_eq!(rows, ["At a glance", "Mail out", "Mail in", "Tokens", "Health"]);
    let ids: HashSet<u64> = panels.iter().map(|panel| panel["id"].as_u64().unwrap()).collect();
    assert_eq!(ids.len(), panels.len());
    let mut taken = HashSet::new();
    for panel in panels {
        assert!(
            panel["type"] == "row" || panel["description"].as_str().is_some_and(|text| text.ends_with('.'))
        );
        let place = |key: &str| panel["gridPos"][key].as_u64().unwrap();
        assert!(place("x") + place("w") <= 24, "{panel:#}");
        for x in place("x")..place("x") + place("w") {
            for y in place("y")..place("y") + place("h") {
                assert!(taken.insert((x, y)), "two panels at {x}, {y}");
            }
        }
    }
    // Each query as a rule: promtool parses it as Prometheus would.
    let rules: Vec<Value> = queries()
        .into_iter()
        .enumerate()
        .map(|(number, (_, query))| serde_json::json!({"record": format!("query:{number}"), "expr": query}))
        .collect();
    let file = tempfile::NamedTempFile::new().unwrap();
    // JSON is YAML.
    let groups = serde_json::json!({"groups": [{"name": "dashboard", "rules": rules}]});
    std::fs::write(file.path(), groups.to_string()).unwrap();
    promtool(&["check", "rules", file.path().to_str().unwrap()], "");
}
