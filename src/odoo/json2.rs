//! JSON-2, the external API of Odoo 19 and later (addons/rpc/controllers/json2.py there): `POST /json/2/MODEL/METHOD`
//! with the parameters by name; the result is the answer's whole body, and an error has a status and a body of its own.

use super::intake::{Intake, Scalar};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

/// A condition of a domain: field, operator, value.
pub(super) type Condition<'a> = (&'a str, &'static str, Value);

/// The parameters of `message_process`. `model` has no default there; what is Odoo's default anyway is left out.
#[derive(Serialize)]
struct MessageProcess<'a> {
    model: Option<&'a str>,
    message: &'a str,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    save_original: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    strip_attachments: bool,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    custom_values: &'a BTreeMap<String, Scalar>,
}

/// An error of Odoo's own.
#[derive(Debug, Deserialize, PartialEq, Eq)]
pub(super) struct Error {
    /// The exception's class, with its module: `builtins.ValueError`.
    pub(super) name: String,
    /// What it says.
    #[serde(default, deserialize_with = "text")]
    pub(super) message: String,
}

/// The body of `message_process`, as JSON.
pub(super) fn message_process(intake: &Intake, message: &str) -> Result<Vec<u8>, serde_json::Error> {
    let parameters = MessageProcess {
        model: intake.model.as_deref(),
        message,
        save_original: intake.save_original,
        strip_attachments: intake.strip_attachments,
        custom_values: &intake.custom_values,
    };
    // Line ends take two characters each.
    let mut body = Vec::with_capacity(message.len() + message.len() / 16 + 1024);
    serde_json::to_writer(&mut body, &parameters)?;
    Ok(body)
}

/// The body of `search_count`, as JSON.
pub(super) fn search_count(conditions: &[Condition<'_>]) -> Vec<u8> {
    serde_json::json!({ "domain": conditions }).to_string().into_bytes()
}

/// Odoo's own error, if the body of an answer is one.
pub(super) fn error(body: &str) -> Option<Error> {
    serde_json::from_str(body).ok()
}

/// Some exceptions say other things than texts.
fn text<'de, D: serde::Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    Ok(match Value::deserialize(from)? {
        Value::String(text) => text,
        Value::Null => String::new(),
        other => other.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(intake: &Intake, message: &str) -> Value {
        serde_json::from_slice(&message_process(intake, message).unwrap()).unwrap()
    }

    #[test]
    fn a_message_travels_whole_and_the_rest_by_name() {
        let message = "Subject: \"x\"\r\n\r\n\0ä\u{feff}\u{2028}😊\\\r\n";
        assert_eq!(
            body(&Intake::default(), message),
            serde_json::json!({ "model": null, "message": message })
        );
        let intake = Intake {
            model: Some("crm.lead".to_owned()),
            save_original: true,
            strip_attachments: true,
            custom_values: [("team_id".to_owned(), Scalar::Int(3)), ("x".to_owned(), Scalar::Bool(false))]
                .into(),
        };
        let expected = serde_json::json!({
            "model": "crm.lead", "message": message, "save_original": true, "strip_attachments": true,
            "custom_values": { "team_id": 3, "x": false },
        });
        assert_eq!(body(&intake, message), expected);
    }

    #[test]
    fn conditions_are_lists() {
        let body = search_count(&[("message_id", "=", "<1@x.test>".into()), ("id", "=", 0.into())]);
        assert_eq!(body, br#"{"domain":[["message_id","=","<1@x.test>"],["id","=",0]]}"#);
    }

    #[test]
    fn only_odoos_errors_are_errors() {
        let own = r#"{"name": "builtins.ValueError", "message": "no", "arguments": ["no"], "context": {}, "debug": "x"}"#;
        let of =
            |name: &str, message: &str| Some(Error { name: name.to_owned(), message: message.to_owned() });
        assert_eq!(error(own), of("builtins.ValueError", "no"));
        assert_eq!(error(r#"{"name": "x.Y", "message": [1]}"#), of("x.Y", "[1]"));
        for other in ["", "<html>", "null", "{}", r#"{"error": "x"}"#, "[1]", r#"{"name": 1}"#] {
            assert_eq!(error(other), None, "{other}");
        }
    }
}
