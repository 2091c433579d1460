//! JSON-2 as a server needs it, in the forms of Odoo 19's addons/rpc/controllers/json2.py and Json2Dispatcher.

use serde_json::json;

use super::xmlrpc::Value;

/// The parameters of a call by name; `None` if the body is no object.
pub fn parse_body(body: &[u8]) -> Option<Vec<(String, Value)>> {
    match from_json(serde_json::from_slice(body).ok()?) {
        Value::Struct(members) => Some(members),
        _ => None,
    }
}

fn from_json(value: serde_json::Value) -> Value {
    match value {
        serde_json::Value::Null => Value::Nil,
        serde_json::Value::Bool(value) => Value::Bool(value),
        serde_json::Value::Number(number) => {
            number.as_i64().map_or_else(|| Value::Double(number.as_f64().unwrap()), Value::Int)
        }
        serde_json::Value::String(text) => Value::Text(text),
        serde_json::Value::Array(values) => Value::Array(values.into_iter().map(from_json).collect()),
        serde_json::Value::Object(members) => {
            Value::Struct(members.into_iter().map(|(name, value)| (name, from_json(value))).collect())
        }
    }
}

/// A result, as the body of an answer.
pub fn to_json(value: &Value) -> serde_json::Value {
    match value {
        Value::Int(value) => json!(value),
        Value::Bool(value) => json!(value),
        Value::Double(value) => json!(value),
        Value::Text(text) => json!(text),
        Value::Bytes(_) => panic!("JSON has no bytes"),
        Value::Nil => json!(null),
        Value::Array(values) => values.iter().map(to_json).collect(),
        Value::Struct(members) => {
            members.iter().map(|(name, value)| (name.clone(), to_json(value))).collect()
        }
    }
}

/// What does not fit the method's signature.
pub fn wrong_parameters(method: &str, named: &[(String, Value)]) -> Option<String> {
    let known: &[&str] = match method {
        "message_process" => {
            &["model", "message", "custom_values", "save_original", "strip_attachments", "thread_id"]
        }
        "search_count" => &["domain", "limit"],
        _ => &[],
    };
    if let Some((name, _)) = named.iter().find(|(name, _)| !known.contains(&name.as_str())) {
        return Some(format!("got an unexpected keyword argument '{name}'"));
    }
    let required: &[&str] = if method == "message_process" { &["model", "message"] } else { &[] };
    let missing = required.iter().find(|name| !named.iter().any(|(given, _)| given == *name))?;
    Some(format!("missing a required argument: '{missing}'"))
}

/// The status and the body of what XML-RPC says as this fault.
pub fn error(code: i64, text: &str) -> (u16, String) {
    let said = text.trim().lines().last().unwrap_or_default();
    let (name, message) = match code {
        2 => ("odoo.exceptions.UserError".to_owned(), said),
        3 => ("werkzeug.exceptions.Unauthorized".to_owned(), "Invalid apikey"),
        4 => ("odoo.exceptions.AccessError".to_owned(), said),
        422 => ("werkzeug.exceptions.UnprocessableEntity".to_owned(), said),
        _ => match said.split_once(": ") {
            Some((name, message)) if name.contains('.') => (name.to_owned(), message),
            Some((name, message)) if name.ends_with("Error") => (format!("builtins.{name}"), message),
            _ => ("builtins.Exception".to_owned(), said),
        },
    };
    let status = match code {
        2 | 422 => 422,
        3 => 401,
        4 => 403,
        _ => 500,
    };
    let body = json!({
        "name": name, "message": message, "arguments": [message], "timestamp": "2026-01-01 00:00:00",
        "context": {}, "debug": text,
    });
    (status, body.to_string())
}
