//! One JSON object a line, for collectors.

use super::record::{Record, Value};
use jiff::Timestamp;
use tracing::Metadata;

/// Keys of our own: a field of the same name gets an underscore behind it.
const OWN: [&str; 4] = ["timestamp", "level", "event", "target"];

/// The event as an object without a line break in it: `timestamp` (RFC 3339, UTC), `level`, `event`, its fields, and
/// `target`, the part of the program that says so.
pub(super) fn object(now: Timestamp, metadata: &Metadata<'_>, record: &Record) -> String {
    let mut object = format!(
        "{{\"timestamp\":\"{now:.3}\",\"level\":\"{}\",\"event\":{}",
        metadata.level(),
        quoted(&record.event)
    );
    for (name, value) in &record.fields {
        let clash = if OWN.contains(name) { "_" } else { "" };
        object.push_str(&format!(",{}:", quoted(&format!("{name}{clash}"))));
        match value {
            Value::Literal(text) => object.push_str(text),
            Value::Text(text) | Value::Shown(text) => object.push_str(&quoted(text)),
        }
    }
    object.push_str(&format!(",\"target\":{}}}", quoted(metadata.target())));
    object
}

fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}
