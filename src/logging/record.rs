//! What one event says: its name and its fields, each of bounded size, and the line of text that shows them.

use std::fmt::{self, Write};
use tracing::field::{Field, Visit};
use tracing_subscriber::field::RecordFields;

/// The most of one value that is kept, in bytes. Our own are far shorter; others' at TRACE may be of any size.
const LARGEST: usize = 4096;

/// The most of one line that is kept, in bytes.
const LONGEST: usize = 32 * 1024;

/// The fields of an event; it may have 32 at most (a limit of `tracing`).
#[derive(Debug, Default)]
pub(super) struct Record {
    /// What happened: for our own events a word or two of the fixed vocabulary.
    pub(super) event: String,
    pub(super) fields: Vec<(&'static str, Value)>,
}

/// A field's value.
#[derive(Debug)]
pub(super) enum Value {
    /// A text, quoted in a line.
    Text(String),
    /// What shows itself, as addresses and times do; not quoted.
    Shown(String),
    /// A number, `true` or `false`.
    Literal(String),
}

impl Value {
    /// As it is, unquoted.
    pub(super) fn as_str(&self) -> &str {
        match self {
            Self::Text(text) | Self::Shown(text) | Self::Literal(text) => text,
        }
    }
}

impl Record {
    pub(super) fn of(fields: &impl RecordFields) -> Self {
        let mut record = Self::default();
        fields.record(&mut record);
        record
    }

    /// `token failed mailbox=john@example.com code="AADSTS700082" …`: one line, whatever the values hold. `coloured`
    /// leaves the values plain and dims what stands between.
    pub(super) fn line(&self, coloured: bool) -> String {
        let mut line = Bounded::new(LONGEST);
        // Writing to a String cannot fail.
        let _ = Visible(&mut line).write_str(&self.event);
        for (name, value) in &self.fields {
            let space = if line.is_empty() { "" } else { " " };
            let _ = match coloured {
                true => write!(line, "{space}\x1b[3m{name}\x1b[0m\x1b[2m=\x1b[0m"),
                false => write!(line, "{space}{name}="),
            };
            let _ = match value {
                Value::Text(text) => write!(line, "{text:?}"),
                Value::Shown(text) | Value::Literal(text) => Visible(&mut line).write_str(text),
            };
        }
        line.text
    }

    fn add(&mut self, field: &Field, value: Value) {
        match field.name() {
            "message" => value.as_str().clone_into(&mut self.event),
            // It says nothing.
            _ if value.as_str().is_empty() => {}
            name => self.fields.push((name.strip_prefix("r#").unwrap_or(name), value)),
        }
    }
}

impl Visit for Record {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.add(field, Value::Shown(bounded(format_args!("{value:?}"))));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.add(field, Value::Text(bounded(format_args!("{value}"))));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.add(field, Value::Literal(value.to_string()));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.add(field, Value::Literal(value.to_string()));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.add(field, Value::Literal(value.to_string()));
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        let text = format!("{value}");
        // JSON has no word for infinity.
        self.add(field, if value.is_finite() { Value::Literal(text) } else { Value::Shown(text) });
    }
}

fn bounded(value: fmt::Arguments<'_>) -> String {
    let mut bounded = Bounded::new(LARGEST);
    // Writing to a String cannot fail.
    let _ = bounded.write_fmt(value);
    bounded.text
}

/// A text that keeps what fits, and shows by an ellipsis that there was more.
struct Bounded {
    text: String,
    most: usize,
    is_full: bool,
}

impl Bounded {
    fn new(most: usize) -> Self {
        Self { text: String::new(), most, is_full: false }
    }

    fn is_empty(&self) -> bool {
        self.text.is_empty()
    }
}

impl Write for Bounded {
    fn write_str(&mut self, more: &str) -> fmt::Result {
        if self.is_full {
            return Ok(());
        }
        let room = self.most.saturating_sub(self.text.len());
        let fits = more.floor_char_boundary(room);
        self.text.push_str(more.get(..fits).unwrap_or_default());
        if fits < more.len() {
            self.is_full = true;
            self.text.push('…');
        }
        Ok(())
    }
}

/// Writes what would start a new line, move a terminal's cursor or turn the direction of writing as its escape.
struct Visible<'w>(&'w mut Bounded);

impl Write for Visible<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for c in text.chars() {
            if c.is_control()
                || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
            {
                write!(self.0, "{}", c.escape_default())?;
            } else {
                self.0.write_char(c)?;
            }
        }
        Ok(())
    }
}
