//! Counts what the log says: each event of its fixed vocabulary, whatever `RUST_LOG` lets through, and the times that some
//! of them tell. So a counter never disagrees with the log, and no part of the program has to count.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::sync::{Arc, Mutex, PoisonError};
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::layer::{Context, Layer};

/// An event that is counted.
pub struct Counted {
    /// What the log calls it.
    pub event: &'static str,
    /// The counter's name in Prometheus, without the program's.
    pub name: &'static str,
    /// The fields that tell its counters apart.
    pub labels: &'static [&'static str],
    /// What it counts.
    pub help: &'static str,
}

/// Every counter.
#[rustfmt::skip]
pub const COUNTED: [Counted; 10] = [
    Counted { event: "accepted", name: "accepted_total", labels: &["mailbox"], help: "Messages of Odoo that are on disk." },
    Counted { event: "refused", name: "refused_total", labels: &["code"], help: "Commands and messages that were refused." },
    Counted { event: "sent", name: "sent_total", labels: &["mailbox"], help: "Messages that Microsoft 365 took, for some of their recipients at least." },
    Counted { event: "deferred", name: "deferred_total", labels: &["mailbox", "class"], help: "Attempts after which a message waits for another." },
    Counted { event: "failed", name: "failed_total", labels: &["mailbox", "class"], help: "Recipients for whom a message was given up." },
    Counted { event: "held", name: "held_total", labels: &["mailbox"], help: "Recipients of whom nobody knows whether they got a message, left to a person." },
    Counted { event: "bounced", name: "bounced_total", labels: &["mailbox"], help: "Reports of failures that Odoo took." },
    Counted { event: "pushed", name: "pushed_total", labels: &["mailbox"], help: "Received messages that Odoo took since the start." },
    Counted { event: "quarantined", name: "quarantined_total", labels: &["mailbox", "class"], help: "Pushes that Odoo refused." },
    Counted { event: "token refreshed", name: "token_refreshes_total", labels: &["mailbox"], help: "Access tokens that were got." },
];

/// An event whose field `seconds` is observed.
pub struct Timed {
    /// What the log calls it.
    pub event: &'static str,
    /// The histogram's name in Prometheus, without the program's.
    pub name: &'static str,
    /// The buckets' upper bounds, in seconds, ascending.
    pub bounds: &'static [f64],
    /// What it tells.
    pub help: &'static str,
}

/// Every histogram. Without labels: one of each mailbox would be a dozen series more per mailbox.
#[rustfmt::skip]
pub const TIMED: [Timed; 3] = [
    Timed { event: "accepted", name: "accept_seconds", bounds: &[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0], help: "From the end of a message of Odoo until it is on disk." },
    Timed { event: "sent", name: "delivery_seconds", bounds: &[0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0, 14_400.0, 86_400.0], help: "From the acceptance of a message until Microsoft 365 took it." },
    Timed { event: "pushed", name: "push_seconds", bounds: &[0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0], help: "How long Odoo took to take a received message, with the wait for its turn." },
];

/// What was observed of one event.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Times {
    /// How often a time was within each bound of [`Timed::bounds`] and above those before it.
    pub within: Vec<u64>,
    /// How often in all.
    pub count: u64,
    /// All times together, in seconds.
    pub sum: f64,
}

impl Times {
    fn observe(&mut self, timed: &Timed, seconds: f64) {
        self.within.resize(timed.bounds.len(), 0);
        if let Some(within) = timed
            .bounds
            .iter()
            .position(|bound| seconds <= *bound)
            .and_then(|bucket| self.within.get_mut(bucket))
        {
            *within += 1;
        }
        self.count += 1;
        self.sum += seconds;
    }
}

/// Values of the labels of one counter, and how often; and the times of each event.
#[derive(Debug, Default)]
struct Seen {
    counts: BTreeMap<(&'static str, Vec<String>), u64>,
    times: BTreeMap<&'static str, Times>,
}

/// The counters; clones share them.
#[derive(Clone, Debug, Default)]
pub struct Counters(Arc<Mutex<Seen>>);

impl Counters {
    /// The times of an event.
    pub fn times(&self, timed: &Timed) -> Times {
        let seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        seen.times.get(timed.event).cloned().unwrap_or_default()
    }

    /// How often an event came, by the values of its labels.
    pub fn of(&self, counted: &Counted) -> Vec<(Vec<String>, u64)> {
        let seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let own = seen.counts.iter().filter(|((event, _), _)| *event == counted.event);
        own.map(|((_, values), count)| (values.clone(), *count)).collect()
    }
}

impl<S: Subscriber> Layer<S> for Counters {
    fn on_event(&self, event: &Event<'_>, _context: Context<'_, S>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let Some(counted) = COUNTED.iter().find(|counted| counted.event == fields.message) else {
            return;
        };
        let values = counted.labels.iter().map(|label| fields.named(label).to_owned()).collect();
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *seen.counts.entry((counted.event, values)).or_default() += 1;
        let timed = TIMED.iter().find(|timed| timed.event == counted.event);
        if let (Some(timed), Some(seconds)) = (timed, fields.seconds) {
            seen.times.entry(timed.event).or_default().observe(timed, seconds);
        }
    }
}

/// The fields of an event that counters are told apart by.
#[derive(Default)]
struct Fields {
    message: String,
    mailbox: String,
    class: String,
    code: String,
    seconds: Option<f64>,
}

impl Fields {
    fn named(&self, label: &str) -> &str {
        match label {
            "mailbox" => &self.mailbox,
            "class" => &self.class,
            _ => &self.code,
        }
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let text = match field.name() {
            "message" => &mut self.message,
            "mailbox" => &mut self.mailbox,
            "class" => &mut self.class,
            "code" => &mut self.code,
            _ => return,
        };
        // Writing to a String cannot fail.
        let _ = write!(text, "{value:?}");
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        if field.name() == "seconds" {
            self.seconds = Some(value);
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.record_debug(field, &format_args!("{value}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tracing_subscriber::layer::SubscriberExt as _;

    #[test]
    fn events_are_counted_by_their_labels() {
        let counters = Counters::default();
        let subscriber = tracing_subscriber::registry().with(counters.clone());
        // See logging::tests.
        let _second = tracing::Dispatch::new(tracing_subscriber::registry());
        tracing::subscriber::with_default(subscriber, || {
            let mailbox = "john@example.com";
            for class in ["rate", "transient", "rate"] {
                tracing::warn!(%mailbox, %class, code = "432", secret = "x", "deferred");
            }
            tracing::info!(mailbox, seconds = 0.75, "sent");
            tracing::info!(mailbox, seconds = 0.5, "sent");
            tracing::info!(mailbox, seconds = 100_000.0, "sent");
            // Already there: nothing was pushed.
            tracing::info!(mailbox, seconds = None::<f64>, "pushed");
            tracing::info!(mailbox, "{}", "token refreshed");
            tracing::warn!(code = 550, "refused");
            tracing::info!(mailbox, "something else");
        });
        let of = |event: &str| counters.of(COUNTED.iter().find(|counted| counted.event == event).unwrap());
        let values =
            |values: &[&str], count| (values.iter().map(ToString::to_string).collect::<Vec<_>>(), count);
        let john = "john@example.com";
        assert_eq!(of("deferred"), [values(&[john, "rate"], 2), values(&[john, "transient"], 1)]);
        assert_eq!(of("sent"), [values(&[john], 3)]);
        assert_eq!(of("token refreshed"), [values(&[john], 1)]);
        assert_eq!(of("refused"), [values(&["550"], 1)]);
        assert_eq!(of("pushed"), [values(&[john], 1)]);
        assert_eq!(of("held"), []);
        let times = |event| counters.times(TIMED.iter().find(|timed| timed.event == event).unwrap());
        let mut within = vec![0; 12];
        within[..2].fill(1);
        assert_eq!(times("sent"), Times { within, count: 3, sum: 100_001.25 });
        assert_eq!(times("pushed"), Times::default());
    }
}
