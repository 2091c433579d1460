//! An Odoo's records over XML-RPC, as a system administrator sees them: read, created, changed, deleted.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::net::TcpStream;

use super::http;
use super::odoo::DATABASE;
use super::server::Server;
use super::wire::Wire;
use super::xmlrpc::{Value, fault, parse_call, response};

pub const ADMIN: &str = "admin";
pub const ADMIN_PASSWORD: &str = "admin's <API> k3y";
const UID: i64 = 2;
const TRACEBACK: &str =
    "Traceback (most recent call last):\n  File \"/opt/odoo/http.py\", line 1, in x\n    y()\n";

/// A record: its values by field.
pub type Row = BTreeMap<String, Value>;

#[derive(Default)]
struct State {
    version: String,
    tables: BTreeMap<String, Vec<Row>>,
    /// Models that the account may not touch.
    forbidden: Vec<String>,
    /// `model.method` calls that fail, with Odoo's words.
    refused: Vec<(String, String)>,
    calls: Vec<String>,
}

pub struct OdooRecords {
    pub server: Server,
    state: Arc<Mutex<State>>,
}

impl OdooRecords {
    /// Of this version (`16.0`), with the models that it has, empty.
    pub async fn start(version: &str) -> Self {
        let mut models = vec!["ir.mail_server", "fetchmail.server", "ir.config_parameter", "ir.model"];
        if !version.starts_with("16") {
            models.push("mail.alias.domain");
        }
        let tables = models.into_iter().map(|model| (model.to_owned(), Vec::new())).collect();
        let state = State { version: version.to_owned(), tables, ..State::default() };
        let state = Arc::new(Mutex::new(state));
        let shared = Arc::clone(&state);
        let server = Server::start(move |stream, _| serve(Arc::clone(&shared), stream)).await;
        Self { server, state }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.server.addr())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// One more record; gives its id.
    pub fn add(&self, model: &str, values: &[(&str, Value)]) -> i64 {
        let row = values.iter().map(|(field, value)| ((*field).to_owned(), value.clone())).collect();
        insert(&mut self.state(), model, row)
    }

    /// A system parameter.
    pub fn parameter(&self, key: &str, value: &str) {
        self.add("ir.config_parameter", &[("key", text(key)), ("value", text(value))]);
    }

    /// Every record of a model.
    pub fn rows(&self, model: &str) -> Vec<Row> {
        self.state().tables.get(model).cloned().unwrap_or_default()
    }

    /// Everything at once, to be compared.
    pub fn everything(&self) -> BTreeMap<String, Vec<Row>> {
        self.state().tables.clone()
    }

    /// The model is not there: its module is not installed.
    pub fn uninstall(&self, model: &str) {
        self.state().tables.remove(model);
    }

    /// The account may not touch this model.
    pub fn forbid(&self, model: &str) {
        self.state().forbidden.push(model.to_owned());
    }

    /// From now on the call (`ir.mail_server.write`) is refused with these words (fault 2).
    pub fn refuse(&self, call: &str, words: &str) {
        self.state().refused.push((call.to_owned(), words.to_owned()));
    }

    pub fn allow_all(&self) {
        self.state().refused.clear();
    }

    /// The calls that changed something.
    pub fn changes(&self) -> Vec<String> {
        let reads = ["fields_get", "search_read"];
        let calls = self.state().calls.clone();
        calls.into_iter().filter(|call| !reads.iter().any(|read| call.ends_with(read))).collect()
    }
}

/// A text.
pub fn text(text: &str) -> Value {
    Value::Text(text.to_owned())
}

fn insert(state: &mut State, model: &str, mut row: Row) -> i64 {
    let table = state.tables.get_mut(model).unwrap_or_else(|| panic!("no model {model}"));
    let highest =
        table.iter().filter_map(|row| if let Value::Int(id) = row["id"] { Some(id) } else { None }).max();
    let id = highest.unwrap_or_default() + 1;
    row.insert("id".to_owned(), Value::Int(id));
    table.push(row);
    id
}

async fn serve(state: Arc<Mutex<State>>, stream: TcpStream) {
    let mut wire = Wire::new(stream);
    let Ok(Some(request)) = http::read_request(&mut wire).await else {
        return;
    };
    let answer = match (request.path.as_str(), parse_call(&request.body)) {
        ("/xmlrpc/2/common", Some((method, params))) => common(&state.lock().unwrap(), &method, &params),
        ("/xmlrpc/2/object", Some((_, params))) => object(&mut state.lock().unwrap(), &params),
        _ => {
            http::respond(&mut wire, 404, "text/html", &[], b"<!DOCTYPE html><html>", true);
            return wire.close().await;
        }
    };
    let answer = answer.map_or_else(|(code, text)| fault(code, &text), |value| response(&xml(&value)));
    http::respond(&mut wire, 200, "text/xml; charset=utf-8", &[], answer.as_bytes(), true);
    wire.close().await;
}

type Answer = Result<Value, (i64, String)>;

fn database(name: &Value) -> Result<(), (i64, String)> {
    let name = name.text().unwrap_or_default();
    let words = format!("{TRACEBACK}psycopg2.OperationalError: FATAL:  database \"{name}\" does not exist\n");
    if name == DATABASE { Ok(()) } else { Err((1, words)) }
}

fn common(state: &State, method: &str, params: &[Value]) -> Answer {
    if method == "version" {
        let info = vec![Value::Int(16), Value::Int(0), text("final")];
        return Ok(Value::Struct(vec![
            ("server_version".to_owned(), text(&state.version)),
            ("server_version_info".to_owned(), Value::Array(info)),
        ]));
    }
    database(&params[0])?;
    let right = params[1] == text(ADMIN) && params[2] == text(ADMIN_PASSWORD);
    Ok(if right { Value::Int(UID) } else { Value::Bool(false) })
}

fn object(state: &mut State, params: &[Value]) -> Answer {
    let [name, uid, password, model, method, args, kwargs] = params else { panic!("{params:?}") };
    database(name)?;
    if *uid != Value::Int(UID) || *password != text(ADMIN_PASSWORD) {
        return Err((3, "Access Denied".to_owned()));
    }
    let (model, method) = (model.text().unwrap(), method.text().unwrap());
    let call = format!("{model}.{method}");
    if state.forbidden.iter().any(|forbidden| forbidden == model) {
        return Err((4, format!("You are not allowed to access '{model}' records.")));
    }
    if !state.tables.contains_key(model) {
        return Err((2, format!("Object {model} doesn't exist")));
    }
    if let Some((_, words)) = state.refused.iter().find(|(refused, _)| *refused == call) {
        return Err((2, words.clone()));
    }
    state.calls.push(call);
    let args = args.array();
    match method {
        "fields_get" => {
            // Whatever any record has; an Odoo 19 has more fields than a 16.
            let fields = state.tables[model].iter().flat_map(|row| row.keys().cloned());
            let fields: BTreeMap<String, Value> =
                fields.map(|name| (name, Value::Struct(Vec::new()))).collect();
            Ok(Value::Struct(fields.into_iter().collect()))
        }
        "search_read" => search_read(state, model, &args[0], kwargs),
        "create" => {
            let Value::Struct(values) = &args[0] else { panic!("{args:?}") };
            Ok(Value::Int(insert(state, model, values.iter().cloned().collect())))
        }
        "write" | "unlink" => {
            let table = state.tables.get_mut(model).unwrap();
            let ids = args[0].array();
            let missing = ids.iter().any(|id| !table.iter().any(|row| row["id"] == *id));
            if missing {
                let words = "Record does not exist or has been deleted.";
                return Err((2, words.to_owned()));
            }
            if method == "unlink" {
                table.retain(|row| !ids.contains(&row["id"]));
            } else {
                let Value::Struct(values) = &args[1] else { panic!("{args:?}") };
                for row in table.iter_mut().filter(|row| ids.contains(&row["id"])) {
                    row.extend(values.iter().cloned());
                }
            }
            Ok(Value::Bool(true))
        }
        _ => panic!("{model}.{method} is not scripted"),
    }
}

fn search_read(state: &State, model: &str, domain: &Value, kwargs: &Value) -> Answer {
    let fields: Vec<&str> = kwargs.member("fields").unwrap().array().iter().filter_map(Value::text).collect();
    let table = &state.tables[model];
    let unknown =
        fields.iter().find(|field| !table.is_empty() && !table.iter().any(|row| row.contains_key(**field)));
    if let Some(field) = unknown {
        return Err((1, format!("{TRACEBACK}ValueError: Invalid field '{field}' on model '{model}'\n")));
    }
    let active_test = kwargs.member("context").and_then(|context| context.member("active_test"));
    let all = active_test == Some(&Value::Bool(false));
    let meets = |row: &Row, leaf: &Value| {
        let [field, operator, wanted] = leaf.array() else { panic!("{leaf:?}") };
        let value = &row[field.text().unwrap()];
        match operator.text() {
            Some("in") => wanted.array().contains(value),
            Some("=") => wanted == value,
            _ => panic!("{leaf:?}"),
        }
    };
    let found = table.iter().filter(|row| all || row.get("active") != Some(&Value::Bool(false)));
    let found = found.filter(|row| domain.array().iter().all(|leaf| meets(row, leaf)));
    let read = |row: &Row| {
        let value = |field: &str| row.get(field).cloned().unwrap_or(Value::Bool(false));
        let members = fields.iter().chain(&["id"]).map(|field| ((*field).to_owned(), value(field)));
        Value::Struct(members.collect())
    };
    Ok(Value::Array(found.map(read).collect()))
}

/// A value as Odoo writes it.
fn xml(value: &Value) -> String {
    let escape = |text: &str| text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    match value {
        Value::Int(number) => format!("<int>{number}</int>"),
        Value::Bool(truth) => format!("<boolean>{}</boolean>", u8::from(*truth)),
        Value::Text(text) => format!("<string>{}</string>", escape(text)),
        Value::Array(values) => {
            let values: String =
                values.iter().map(|value| format!("<value>{}</value>\n", xml(value))).collect();
            format!("<array><data>\n{values}</data></array>")
        }
        Value::Struct(members) => {
            let member = |(name, value): &(String, Value)| {
                format!("<member>\n<name>{}</name>\n<value>{}</value>\n</member>\n", escape(name), xml(value))
            };
            format!("<struct>\n{}</struct>", members.iter().map(member).collect::<String>())
        }
        other => panic!("{other:?}"),
    }
}
