//! Counts what the log says: each event of its fixed vocabulary, whatever `RUST_LOG` lets through. So a counter never
//! disagrees with the log, and no part of the program has to count.

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

/// Values of the labels of one counter, and how often.
type Values = BTreeMap<(&'static str, Vec<String>), u64>;

/// The counters; clones share them.
#[derive(Clone, Debug, Default)]
pub struct Counters(Arc<Mutex<Values>>);

impl Counters {
    /// How often an event came, by the values of its labels.
    pub fn of(&self, counted: &Counted) -> Vec<(Vec<String>, u64)> {
        let counters = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let own = counters.iter().filter(|((event, _), _)| *event == counted.event);
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
        let mut counters = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *counters.entry((counted.event, values)).or_default() += 1;
    }
}

/// The fields of an event that counters are told apart by.
#[derive(Default)]
struct Fields {
    message: String,
    mailbox: String,
    class: String,
    code: String,
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
            tracing::info!(mailbox, "sent");
            tracing::info!(mailbox, "{}", "token refreshed");
            tracing::warn!(code = 550, "refused");
            tracing::info!(mailbox, "something else");
        });
        let of = |event: &str| counters.of(COUNTED.iter().find(|counted| counted.event == event).unwrap());
        let values =
            |values: &[&str], count| (values.iter().map(ToString::to_string).collect::<Vec<_>>(), count);
        let john = "john@example.com";
        assert_eq!(of("deferred"), [values(&[john, "rate"], 2), values(&[john, "transient"], 1)]);
        assert_eq!(of("sent"), [values(&[john], 1)]);
        assert_eq!(of("token refreshed"), [values(&[john], 1)]);
        assert_eq!(of("refused"), [values(&["550"], 1)]);
        assert_eq!(of("pushed"), []);
    }
}
