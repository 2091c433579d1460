//! The status in Prometheus's text format 0.0.4: pure.

use super::light::of_token;
use super::process::Process;
use super::status::Status;
use crate::counters::{COUNTED, Counters, TIMED};
use crate::failure::Class;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use std::fmt::Write;
use std::time::Duration;

pub(super) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The lines of one metric, under its heading.
struct Family<'a> {
    text: &'a mut String,
    name: String,
}

impl<'a> Family<'a> {
    /// One of the program's own.
    fn new(text: &'a mut String, name: &str, kind: &str, help: &str) -> Self {
        Self::named(text, format!("outlook_relay_{name}"), kind, help)
    }

    /// One that any program may have.
    fn named(text: &'a mut String, name: impl Into<String>, kind: &str, help: &str) -> Self {
        let name = name.into();
        // Writing to a String cannot fail.
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
        Self { text, name }
    }

    fn sample(&mut self, labels: &[(&str, &str)], value: impl std::fmt::Display) {
        self.part("", labels, value);
    }

    /// A sample of a histogram: its name goes on.
    fn part(&mut self, suffix: &str, labels: &[(&str, &str)], value: impl std::fmt::Display) {
        let labels: Vec<String> =
            labels.iter().map(|(name, value)| format!("{name}=\"{}\"", escaped(value))).collect();
        let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
        let _ = writeln!(self.text, "{}{suffix}{labels} {value}", self.name);
    }
}

fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// Every metric.
pub(super) fn text(status: &Status, counters: &Counters, process: &Process, now: Timestamp) -> String {
    let mut out = String::new();
    let since = |at: Timestamp| now.duration_since(at).as_secs();
    let until = |at: Timestamp| at.duration_since(now).as_secs();

    Family::new(&mut out, "build_info", "gauge", "The program's version.")
        .sample(&[("version", &status.version)], 1);
    of_process(&mut out, process, status.started_at);
    Family::new(&mut out, "well", "gauge", "1: nothing is in trouble.").sample(&[], u8::from(status.well));

    Family::new(&mut out, "store_writable", "gauge", "0: no mail is accepted and none is sent.")
        .sample(&[], u8::from(status.store.is_none()));

    let written = &status.written;
    Family::new(&mut out, "store_commits_total", "counter", "Commits, each of which waited for the disk.")
        .sample(&[], written.commits);
    Family::new(&mut out, "store_writes_total", "counter", "Writes to the store, which share commits.")
        .sample(&[], written.writes);
    Family::new(&mut out, "store_commit_seconds_total", "counter", "Time spent in commits.")
        .sample(&[], Duration::from_micros(written.micros).as_secs_f64());

    let mut each = |name, kind, help, add: &dyn Fn(&mut Family<'_>, &super::MailboxStatus)| {
        let mut family = Family::new(&mut out, name, kind, help);
        status.mailboxes.iter().for_each(|mailbox| add(&mut family, mailbox));
    };
    each(
        "queue_messages",
        "gauge",
        "Messages in the queue: waiting, held for a person, or given up (failed).",
        &|family, mailbox| {
            let waiting = mailbox.queue.waiting.saturating_sub(mailbox.queue.held);
            family.sample(&[("mailbox", &mailbox.address), ("state", "waiting")], waiting);
            family.sample(&[("mailbox", &mailbox.address), ("state", "held")], mailbox.queue.held);
            family.sample(&[("mailbox", &mailbox.address), ("state", "failed")], mailbox.queue.failed);
        },
    );
    each(
        "queue_age_seconds",
        "gauge",
        "How long the oldest message has waited; 0: none waits.",
        &|family, mailbox| {
            family.sample(&[("mailbox", &mailbox.address)], mailbox.queue.oldest.map_or(0, since).max(0));
        },
    );
    each(
        "token_light",
        "gauge",
        "1 for the light of the mailbox's token: green, amber or red.",
        &|family, mailbox| {
            let (light, _) = of_token(mailbox, now);
            for one in ["green", "amber", "red"] {
                family
                    .sample(&[("mailbox", &mailbox.address), ("light", one)], u8::from(light.name() == one));
            }
        },
    );
    each(
        "token_expires_seconds",
        "gauge",
        "Until the access token expires; negative: it has.",
        &|family, mailbox| {
            if let Some(at) = mailbox.token.as_ref().and_then(|token| token.expires_at) {
                family.sample(&[("mailbox", &mailbox.address)], until(at));
            }
        },
    );
    each(
        "consent_expires_seconds",
        "gauge",
        "Until the owner must consent anew, if nothing refreshes it.",
        &|family, mailbox| {
            if let Some(consent) = &mailbox.consent {
                family.sample(&[("mailbox", &mailbox.address)], until(consent.lasts_until));
            }
        },
    );
    each(
        "token_refreshed_timestamp_seconds",
        "gauge",
        "When the access token was got, in seconds since 1970.",
        &|family, mailbox| {
            if let Some(at) = mailbox.token.as_ref().and_then(|token| token.refreshed_at) {
                family.sample(&[("mailbox", &mailbox.address)], at.as_second());
            }
        },
    );
    each(
        "pacing_wait_seconds_total",
        "counter",
        "Time in which mail waited for messages_per_minute or recipients_per_day.",
        &|family, mailbox| family.sample(&[("mailbox", &mailbox.address)], mailbox.paced_seconds),
    );
    each("trouble", "gauge", "1 for each trouble that lasts.", &|family, mailbox| {
        for (part, lasting) in &mailbox.troubles {
            let class = lasting.failure.class.as_str();
            family.sample(&[("mailbox", &mailbox.address), ("part", part), ("class", class)], 1);
        }
    });
    each("inbox_lag_seconds", "gauge", "Since the inbox was last looked through.", &|family, mailbox| {
        if let Some(at) = mailbox.inbox.as_ref().and_then(|inbox| inbox.looked_at) {
            family.sample(&[("mailbox", &mailbox.address)], since(at).max(0));
        }
    });
    each(
        "inbox_messages",
        "gauge",
        "Received messages to push (waiting), or refused by Odoo.",
        &|family, mailbox| {
            if let Some(inbox) = &mailbox.inbox {
                family.sample(&[("mailbox", &mailbox.address), ("state", "waiting")], inbox.waiting);
                family.sample(&[("mailbox", &mailbox.address), ("state", "refused")], inbox.refused);
            }
        },
    );
    each(
        "inbox_oldest_seconds",
        "gauge",
        "How long the oldest message found in the inbox has waited to be pushed; 0: none waits.",
        &|family, mailbox| {
            if let Some(inbox) = &mailbox.inbox {
                family.sample(&[("mailbox", &mailbox.address)], inbox.oldest.map_or(0, since).max(0));
            }
        },
    );
    each("inbox_pushed_total", "counter", "Received messages that Odoo took.", &|family, mailbox| {
        if let Some(inbox) = &mailbox.inbox {
            family.sample(&[("mailbox", &mailbox.address)], inbox.pushed);
        }
    });
    each(
        "inbox_bounces_total",
        "counter",
        "Received non-delivery reports that Odoo took.",
        &|family, mailbox| {
            if let Some(inbox) = &mailbox.inbox {
                family.sample(&[("mailbox", &mailbox.address)], inbox.bounces);
            }
        },
    );
    for counted in &COUNTED {
        let mut family = Family::new(&mut out, counted.name, "counter", counted.help);
        let counts = counters.of(counted);
        // A counter that begins with its first event has no rate for it.
        for mailbox in &status.mailboxes {
            let address = mailbox.address.as_str();
            let known: Vec<Vec<&str>> = match counted.labels {
                ["mailbox"] => vec![vec![address]],
                ["mailbox", "class"] => {
                    Class::ALL.iter().map(|class| vec![address, class.as_str()]).collect()
                }
                _ => Vec::new(),
            };
            for values in known.iter().filter(|known| !counts.iter().any(|(values, _)| values == *known)) {
                let labels: Vec<_> = counted.labels.iter().copied().zip(values.iter().copied()).collect();
                family.sample(&labels, 0);
            }
        }
        for (values, count) in counts {
            let labels: Vec<_> =
                counted.labels.iter().copied().zip(values.iter().map(String::as_str)).collect();
            family.sample(&labels, count);
        }
    }
    let mut credentials = Family::new(
        &mut out,
        "credential_expires_seconds",
        "gauge",
        "Until an app's secret or certificate expires, told from 30 days before; negative: it has.",
    );
    for warning in &status.warnings {
        let at = warning.expires.to_zoned(TimeZone::UTC);
        let kind = warning.event.trim_end_matches(" expires");
        let day = warning.expires.to_string();
        let labels = [("client_id", warning.client_id.as_str()), ("kind", kind), ("expires", &day)];
        if let Ok(at) = at {
            credentials.sample(&labels, until(at.timestamp()));
        }
    }
    for timed in &TIMED {
        let times = counters.times(timed);
        let mut family = Family::new(&mut out, timed.name, "histogram", timed.help);
        let mut up_to = 0;
        for (index, bound) in timed.bounds.iter().enumerate() {
            up_to += times.within.get(index).copied().unwrap_or_default();
            family.part("_bucket", &[("le", &bound.to_string())], up_to);
        }
        family.part("_bucket", &[("le", "+Inf")], times.count);
        family.part("_sum", &[], times.sum);
        family.part("_count", &[], times.count);
    }
    let mut reports = Family::new(
        &mut out,
        "reports",
        "gauge",
        "Reports of failures: on their way into Odoo, or refused by it.",
    );
    reports.sample(&[("state", "waiting")], status.reports.waiting);
    reports.sample(&[("state", "refused")], status.reports.refused);
    Family::new(&mut out, "odoo_trouble", "gauge", "1: Odoo's gateway is in trouble.")
        .sample(&[], u8::from(status.odoo.is_some()));
    out
}

/// The process's figures, by the names that every exporter gives them.
fn of_process(out: &mut String, process: &Process, started_at: Timestamp) {
    let started = Duration::from_millis(u64::try_from(started_at.as_millisecond()).unwrap_or_default());
    Family::named(
        out,
        "process_start_time_seconds",
        "gauge",
        "When the daemon started, in seconds since 1970.",
    )
    .sample(&[], started.as_secs_f64());
    Family::named(out, "process_cpu_seconds_total", "counter", "Processor time, of all threads.")
        .sample(&[], process.cpu.as_secs_f64());
    for (name, help, value) in [
        ("process_resident_memory_bytes", "Memory that is in RAM.", process.resident),
        ("process_virtual_memory_bytes", "Address space.", process.size),
        ("process_open_fds", "Open file descriptors.", process.open_files),
        ("process_max_fds", "How many file descriptors there may be.", process.most_files),
        ("process_threads", "Threads.", process.threads),
    ] {
        if let Some(value) = value {
            Family::named(out, name, "gauge", help).sample(&[], value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::status::{InboxStatus, MailboxStatus};
    use super::*;
    use crate::store::Totals;
    use std::collections::BTreeMap;

    #[test]
    fn every_line_is_a_heading_or_a_sample() {
        let now = Timestamp::from_second(1_800_000_000).unwrap();
        let mailbox = MailboxStatus {
            address: "a\"b\\@c.d".to_owned(),
            token: None,
            consent: None,
            app_only: false,
            queue: Totals {
                waiting: 2,
                failed: 1,
                oldest: Timestamp::from_second(1_799_999_940).ok(),
                ..Totals::default()
            },
            paced_seconds: 0.0,
            done_by: None,
            inbox: Some(InboxStatus { pushed: 7, ..InboxStatus::default() }),
            troubles: BTreeMap::new(),
        };
        let status = Status {
            well: false,
            version: "1".to_owned(),
            started_at: now,
            mailboxes: vec![mailbox],
            queue: Totals::default(),
            odoo: None,
            last_failures: Vec::new(),
            store: None,
            reports: Default::default(),
            refused_reports: Vec::new(),
            written: Default::default(),
            warnings: Vec::new(),
        };
        let text = text(&status, &Counters::default(), &Process::default(), now);
        for line in [
            "outlook_relay_queue_messages{mailbox=\"a\\\"b\\\\@c.d\",state=\"waiting\"} 2",
            "outlook_relay_queue_age_seconds{mailbox=\"a\\\"b\\\\@c.d\"} 60",
            "outlook_relay_inbox_pushed_total{mailbox=\"a\\\"b\\\\@c.d\"} 7",
            "outlook_relay_well 0",
            "outlook_relay_failed_total{mailbox=\"a\\\"b\\\\@c.d\",class=\"consent\"} 0",
            "outlook_relay_push_seconds_bucket{le=\"0.05\"} 0",
            "outlook_relay_push_seconds_bucket{le=\"+Inf\"} 0",
            "outlook_relay_push_seconds_count 0",
            "process_start_time_seconds 1800000000",
        ] {
            assert!(text.lines().any(|seen| seen == line), "{line}: {text}");
        }
        for line in text.lines() {
            let (name, value) = line.rsplit_once(' ').unwrap();
            assert!(name.starts_with("# ") || value.parse::<f64>().is_ok(), "{line}");
        }
    }
}
