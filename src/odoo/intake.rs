//! What a mailbox asks of Odoo besides taking a message.

use crate::section::Section;
use serde::Serialize;
use std::collections::BTreeMap;

/// The parameters of `message_process` besides the message; the default is Odoo's own.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Intake {
    /// The model that takes mail which no alias matches.
    pub model: Option<String>,
    /// Whether Odoo attaches the whole mail to the record.
    pub save_original: bool,
    /// Whether Odoo drops the mail's attachments.
    pub strip_attachments: bool,
    /// The values of the records that are made in `model`. (An alias has values of its own.)
    pub custom_values: BTreeMap<String, Scalar>,
}

/// One value of a field.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Scalar {
    /// A boolean.
    Bool(bool),
    /// A whole number, or a record's id: XML-RPC has 32 bits for it, and so has Odoo.
    Int(i32),
    /// Any other number; finite.
    Float(f64),
    /// A text, or a selection's key.
    Text(String),
}

impl Intake {
    /// Reads these keys of a `[[mailbox]]`.
    pub fn read(section: &mut Section<'_>) -> Self {
        let read = Self {
            model: section.get("model"),
            save_original: section.get_or("save_original", false),
            strip_attachments: section.get_or("strip_attachments", false),
            custom_values: custom_values(section),
        };
        if read.model.is_none() && !read.custom_values.is_empty() {
            section.mistake("custom_values", "are for the records of `model`: set that as well");
        }
        read
    }
}

fn custom_values(section: &mut Section<'_>) -> BTreeMap<String, Scalar> {
    let table: toml::Table = section.get_or("custom_values", toml::Table::new());
    let mut values = BTreeMap::new();
    for (field, value) in table {
        if let Some(scalar) = scalar(value) {
            values.insert(field, scalar);
        } else {
            let message = format!(
                "{field} is none of: a text, true or false, a number (a whole one of 32 bits at most)"
            );
            section.mistake("custom_values", message);
        }
    }
    values
}

fn scalar(value: toml::Value) -> Option<Scalar> {
    match value {
        toml::Value::Boolean(value) => Some(Scalar::Bool(value)),
        toml::Value::Integer(value) => i32::try_from(value).ok().map(Scalar::Int),
        toml::Value::Float(value) => value.is_finite().then_some(Scalar::Float(value)),
        toml::Value::String(value) => Some(Scalar::Text(value)),
        toml::Value::Datetime(_) | toml::Value::Array(_) | toml::Value::Table(_) => None,
    }
}
