//! XML-RPC (<http://xmlrpc.com/spec.md>) as Odoo speaks it: calls as text, and what an answer says.

use super::intake::{Intake, Scalar};
use super::json2::Condition;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use dxr::{FaultResponse, MethodCall, MethodResponse, Value};
use std::borrow::Cow;
use std::collections::BTreeMap;

/// What Odoo answered.
#[derive(Clone, Debug, PartialEq)]
pub enum Reply {
    /// The method's result.
    Value(Value),
    /// It failed.
    Fault {
        /// Odoo's: 1 application error, 2 user error, 3 access denied, 4 access error.
        code: i32,
        /// The error's text, often a whole traceback.
        text: String,
    },
}

/// Text that is no XML-RPC.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A call could not be written.
    #[error("the call cannot be written as XML-RPC")]
    Write(#[source] dxr::Error),
    /// An answer is not XML-RPC. It is not quoted: nobody knows what it holds.
    #[error("the answer is not XML-RPC")]
    Read,
}

/// No answer that is asked for nests deeper. (The parser recurses, so depth must have a bound.)
const MOST_NESTED: usize = 64;

/// What stands in a call where the message goes; no text can contain it, since `<` is escaped there.
const MESSAGE: &str = "<base64></base64>";

/// Who calls which model of which database.
#[derive(Clone, Copy)]
pub struct Caller<'a> {
    /// The database.
    pub database: &'a str,
    /// The user's id.
    pub uid: i32,
    /// The user's password or API key.
    pub password: &'a str,
}

/// `authenticate(database, login, password, {})` of `/xmlrpc/2/common`.
///
/// # Errors
/// None that a configuration could cause.
pub fn authenticate(database: &str, login: &str, password: &str) -> Result<String, Error> {
    let params = vec![string(database), string(login), string(password), Value::Struct(BTreeMap::new())];
    write("authenticate", params)
}

/// `execute_kw(database, uid, password, model, method, arguments, {})` of `/xmlrpc/2/object`.
///
/// # Errors
/// None that a configuration could cause.
pub fn execute(
    caller: Caller<'_>,
    model: &str,
    method: &str,
    arguments: Vec<Value>,
) -> Result<String, Error> {
    execute_kw(caller, model, method, arguments, BTreeMap::new())
}

/// The same with keyword arguments.
///
/// # Errors
/// None that a configuration could cause.
pub fn execute_kw(
    caller: Caller<'_>,
    model: &str,
    method: &str,
    arguments: Vec<Value>,
    keywords: BTreeMap<String, Value>,
) -> Result<String, Error> {
    let params = vec![
        string(caller.database),
        Value::Integer(caller.uid),
        string(caller.password),
        string(model),
        string(method),
        Value::Array(arguments),
        Value::Struct(keywords),
    ];
    write("execute_kw", params)
}

/// `version()` of `/xmlrpc/2/common`, which needs no login.
///
/// # Errors
/// None that a configuration could cause.
pub fn version() -> Result<String, Error> {
    write("version", Vec::new())
}

/// `message_process(fallback model or false, message)`, with what else is asked for by name: written around the message,
/// which is large, so that it is copied once only.
///
/// # Errors
/// None that a configuration could cause.
pub fn message_process(
    caller: Caller<'_>,
    model: &str,
    intake: &Intake,
    raw: &[u8],
) -> Result<String, Error> {
    let fallback = intake.model.as_deref().map_or(Value::Boolean(false), string);
    let arguments = vec![fallback, Value::Base64(Vec::new())];
    let call = execute_kw(caller, model, "message_process", arguments, named(intake))?;
    let (before, after) = call
        .split_once(MESSAGE)
        .ok_or_else(|| Error::Write(dxr::Error::invalid_data("no place for the message".to_owned())))?;
    let mut body = String::with_capacity(call.len() + raw.len().div_ceil(3) * 4);
    body.push_str(before);
    body.push_str("<base64>");
    STANDARD.encode_string(raw, &mut body);
    body.push_str("</base64>");
    body.push_str(after);
    Ok(body)
}

/// What differs from Odoo's own defaults.
fn named(intake: &Intake) -> BTreeMap<String, Value> {
    let mut named = BTreeMap::new();
    for (name, wanted) in
        [("save_original", intake.save_original), ("strip_attachments", intake.strip_attachments)]
    {
        if wanted {
            named.insert(name.to_owned(), Value::Boolean(true));
        }
    }
    if !intake.custom_values.is_empty() {
        let values = intake.custom_values.iter().map(|(field, value)| (field.clone(), scalar(value)));
        named.insert("custom_values".to_owned(), Value::Struct(values.collect()));
    }
    named
}

fn scalar(value: &Scalar) -> Value {
    match value {
        Scalar::Bool(value) => Value::Boolean(*value),
        Scalar::Int(value) => Value::Integer(*value),
        Scalar::Float(value) => Value::Double(*value),
        Scalar::Text(value) => string(value),
    }
}

/// A condition of a domain.
pub(super) fn condition((field, operator, value): &Condition<'_>) -> Value {
    let value = match value {
        serde_json::Value::Number(number) => {
            Value::Integer(number.as_i64().and_then(|id| i32::try_from(id).ok()).unwrap_or_default())
        }
        serde_json::Value::Array(values) => {
            Value::Array(values.iter().map(|value| string(value.as_str().unwrap_or_default())).collect())
        }
        value => string(value.as_str().unwrap_or_default()),
    };
    Value::Array(vec![string(field), string(operator), value])
}

/// A text value, without the control characters that XML 1.0 cannot hold.
pub fn string(text: &str) -> Value {
    let forbidden = |c: char| c.is_ascii_control() && !matches!(c, '\t' | '\n' | '\r');
    let text =
        if text.contains(forbidden) { Cow::Owned(text.replace(forbidden, "")) } else { Cow::Borrowed(text) };
    Value::String(text.into_owned())
}

fn write(method: &str, params: Vec<Value>) -> Result<String, Error> {
    let name = method.into();
    MethodCall { name, params }.to_xml().map_err(Error::Write)
}

/// Reads an answer.
///
/// # Errors
/// An answer that is no XML-RPC, or that nests absurdly.
pub fn read(answer: &str) -> Result<Reply, Error> {
    if nests(answer) > MOST_NESTED {
        return Err(Error::Read);
    }
    // A fault is no method response to the parser, so it is tried second.
    if let Ok(response) = MethodResponse::from_xml(answer) {
        return Ok(Reply::Value(response.value));
    }
    let fault = FaultResponse::from_xml(answer).map_err(|_| Error::Read)?.fault;
    Ok(Reply::Fault { code: fault.code(), text: fault.string().to_owned() })
}

/// How deep arrays and structs nest, or more. Comments and CDATA, which Odoo never writes, could hide an end that is none.
fn nests(answer: &str) -> usize {
    if answer.contains("<!") {
        return usize::MAX;
    }
    let (mut depth, mut deepest) = (0_usize, 0);
    for tag in answer.split('<') {
        if tag.starts_with("array") || tag.starts_with("struct") {
            depth += 1;
            deepest = deepest.max(depth);
        } else if tag.starts_with("/array") || tag.starts_with("/struct") {
            depth = depth.saturating_sub(1);
        }
    }
    deepest
}

#[cfg(test)]
mod tests {
    use super::*;

    const CALLER: Caller<'static> = Caller { database: "prod", uid: 2, password: "p<&>\"w\u{1}" };

    /// As Python's `xmlrpc.client.dumps` writes it, which Odoo uses.
    fn python(value: &str) -> String {
        format!(
            "<?xml version='1.0'?>\n<methodResponse>\n<params>\n<param>\n<value>{value}</value>\n</param>\n\
             </params>\n</methodResponse>\n"
        )
    }

    fn python_fault(code: &str, text: &str) -> String {
        format!(
            "<?xml version='1.0'?>\n<methodResponse>\n<fault>\n<value><struct>\n<member>\n\
             <name>faultCode</name>\n<value>{code}</value>\n</member>\n<member>\n<name>faultString</name>\n\
             <value><string>{text}</string></value>\n</member>\n</struct></value>\n</fault>\n</methodResponse>\n"
        )
    }

    #[test]
    fn a_message_travels_whole_in_a_call_that_reads_back() {
        let raw: Vec<u8> = (0..=255).cycle().take(10_001).collect();
        for fallback in [None, Some("crm.lead")] {
            let intake = Intake { model: fallback.map(str::to_owned), ..Intake::default() };
            let body = message_process(CALLER, "mail.thread", &intake, &raw).unwrap();
            let call = MethodCall::from_xml(&body).unwrap();
            assert_eq!(call.name, "execute_kw");
            let first = fallback.map_or(Value::Boolean(false), |model| Value::String(model.to_owned()));
            assert_eq!(
                call.params,
                [
                    Value::String("prod".to_owned()),
                    Value::Integer(2),
                    Value::String("p<&>\"w".to_owned()),
                    Value::String("mail.thread".to_owned()),
                    Value::String("message_process".to_owned()),
                    Value::Array(vec![first, Value::Base64(raw.clone())]),
                    Value::Struct(BTreeMap::new()),
                ]
            );
        }
    }

    #[test]
    fn a_password_cannot_take_the_messages_place() {
        let caller = Caller { password: MESSAGE, ..CALLER };
        let body = message_process(caller, "mail.thread", &Intake::default(), b"raw").unwrap();
        let call = MethodCall::from_xml(&body).unwrap();
        assert_eq!(call.params[2], Value::String(MESSAGE.to_owned()));
        assert_eq!(call.params[5], Value::Array(vec![Value::Boolean(false), Value::Base64(b"raw".to_vec())]));
    }

    #[test]
    fn what_a_mailbox_asks_for_travels_by_name() {
        let values = [
            ("team_id", Scalar::Int(3)),
            ("x_ratio", Scalar::Float(0.5)),
            ("x_vip", Scalar::Bool(true)),
            ("source", Scalar::Text("mail <&>".to_owned())),
        ];
        let intake = Intake {
            model: None,
            save_original: true,
            strip_attachments: true,
            custom_values: values.map(|(field, value)| (field.to_owned(), value)).into(),
        };
        let body = message_process(CALLER, "mail.thread", &intake, MESSAGE.as_bytes()).unwrap();
        let call = MethodCall::from_xml(&body).unwrap();
        let values = [
            ("source", Value::String("mail <&>".to_owned())),
            ("team_id", Value::Integer(3)),
            ("x_ratio", Value::Double(0.5)),
            ("x_vip", Value::Boolean(true)),
        ];
        let named = [
            ("custom_values", Value::Struct(values.map(|(name, value)| (name.to_owned(), value)).into())),
            ("save_original", Value::Boolean(true)),
            ("strip_attachments", Value::Boolean(true)),
        ];
        assert_eq!(call.params[6], Value::Struct(named.map(|(name, value)| (name.to_owned(), value)).into()));
    }

    #[test]
    fn authenticate_reads_back() {
        let body = authenticate("prod", "mailgate", "geheim-ä").unwrap();
        let call = MethodCall::from_xml(&body).unwrap();
        assert_eq!(call.name, "authenticate");
        assert_eq!(call.params[2], Value::String("geheim-ä".to_owned()));
    }

    #[test]
    fn answers_as_python_writes_them_are_read() {
        let cases = [
            (python("<int>42</int>"), Reply::Value(Value::Integer(42))),
            (python("<i4>42</i4>"), Reply::Value(Value::Integer(42))),
            (python("<boolean>0</boolean>"), Reply::Value(Value::Boolean(false))),
            (python("<nil/>"), Reply::Value(Value::Nil)),
            (python("<string>odd</string>"), Reply::Value(Value::String("odd".to_owned()))),
            (
                python_fault("<int>1</int>", "Traceback &lt;x&gt;:\n  File\nValueError: a &amp; b\n"),
                Reply::Fault { code: 1, text: "Traceback <x>:\n  File\nValueError: a & b\n".to_owned() },
            ),
            (
                python_fault("<int>3</int>", "Access Denied"),
                Reply::Fault { code: 3, text: "Access Denied".to_owned() },
            ),
        ];
        for (xml, expected) in cases {
            assert_eq!(read(&xml).unwrap(), expected, "{xml}");
        }
    }

    #[test]
    fn a_long_list_of_records_is_no_deep_one() {
        let record = "<value><struct><member><name>object_id</name><value><array><data><value><int>1</int></value>\
                      </data></array></value></member></struct></value>";
        let answer = python(&format!("<array><data>{}</data></array>", record.repeat(500)));
        assert!(matches!(read(&answer), Ok(Reply::Value(Value::Array(records))) if records.len() == 500));
    }

    #[test]
    fn anything_else_is_an_error_and_no_crash() {
        let deep = python(&"<array><data><value>".repeat(10_000));
        let hidden = python(&"<array><data><value><!-- </array> -->".repeat(10_000));
        let odd = ["", "<html>", "<methodResponse>", "<?xml version='1.0'?>", &deep, &hidden];
        for answer in odd {
            assert!(read(answer).is_err(), "{answer:.40}");
        }
    }
}
