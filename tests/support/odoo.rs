//! Odoo's mail gateway over XML-RPC and JSON-2, scripted.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use memchr::memmem;
use tokio::net::TcpStream;

use super::events::Events;
use super::gauge::Gauge;
use super::http;
use super::imap_data::{header_lines, reported};
use super::json2;
use super::script::{Rule, Script};
use super::server::Server;
use super::wait;
use super::wire::Wire;
use super::xmlrpc::{Value, element, fault, parse_call, response};

pub const DATABASE: &str = "prod";
pub const LOGIN: &str = "mailgate";
pub const PASSWORD: &str = "oDoo-k3y/of+the gateway";
const UID: i64 = 2;
const ENDED: &str = "Traceback (most recent call last):\n  File \"/usr/lib/python3/dist-packages/odoo/addons/base/\
                     controllers/rpc.py\", line 148, in xmlrpc_2\n    response = self._xmlrpc(service)\n";

/// What `message_process` makes of a message.
#[derive(Clone, Debug)]
pub enum Answer {
    /// The record's id. The usual answer, unless the Message-Id was seen before.
    Taken,
    /// Boolean 0, nothing made: a duplicate, a bounce, a refused catchall mail.
    Nothing,
    /// Fault 1 `cannot marshal None`: handled, nothing made (an ignored loop).
    Loop,
    /// Fault 1: no alias and no fallback model.
    NoRoute,
    /// Fault 1: the fallback model does not exist.
    UnknownModel,
    /// Fault 1 with a `LookupError`: a message that Odoo cannot read.
    Poison,
    /// Fault 3.
    AccessDenied,
    /// Fault 4.
    AccessError,
    /// Any other fault.
    Fault(i64, String),
    /// This status with an HTML page: 413, 502, 503.
    Status(u16),
    /// The connection is lost before the message was taken.
    Cut,
    /// The message is taken, and the answer lost.
    TakenThenCut,
    /// The connection is lost, while Odoo goes on; after this time the message is taken.
    CutThenTaken(Duration),
    /// No answer, nothing taken, until the client gives up.
    Silence,
    /// The message is taken, and no answer comes.
    TakenThenSilence,
}

/// One `message_process` call.
#[derive(Clone, Debug)]
pub struct Post {
    pub at: jiff::Timestamp,
    pub raw: Arc<Vec<u8>>,
    /// The fallback model.
    pub model: Option<String>,
    /// The positional arguments; the message is left out of them, for it is in `raw`.
    pub args: Vec<Value>,
    /// The keyword arguments, likewise.
    pub kwargs: Vec<(String, Value)>,
    /// Without what is around it: `<…>` is kept.
    pub message_id: Option<String>,
    /// The id of the record that was made, if one was.
    pub record: Option<i64>,
    pub answer: Answer,
}

impl Post {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.raw).into_owned()
    }

    /// Whether Odoo's other workers see it by now.
    fn is_committed(&self) -> bool {
        let Answer::CutThenTaken(after) = self.answer else { return true };
        self.at + after <= jiff::Timestamp::now()
    }
}

struct Shared {
    posts: Mutex<Vec<Post>>,
    bounces: Mutex<Vec<(String, String)>>,
    calls: Mutex<Vec<String>>,
    script: Script<(), Answer>,
    broken: Mutex<HashMap<String, String>>,
    password: Mutex<String>,
    unreadable: Mutex<Option<String>>,
    delay: Mutex<Duration>,
    version: Mutex<String>,
    in_flight: Gauge,
    events: Events,
}

/// The server at a free port of 127.0.0.1, plain HTTP, a connection per call as Odoo does it.
pub struct Odoo {
    /// For outages: `down` and `up`.
    pub server: Server,
    shared: Arc<Shared>,
}

impl Odoo {
    pub async fn start() -> Self {
        let shared = Arc::new(Shared {
            posts: Mutex::default(),
            bounces: Mutex::default(),
            calls: Mutex::default(),
            script: Script::default(),
            broken: Mutex::default(),
            password: Mutex::new(PASSWORD.to_owned()),
            unreadable: Mutex::default(),
            delay: Mutex::default(),
            version: Mutex::new("19.0".to_owned()),
            in_flight: Gauge::default(),
            events: Events::default(),
        });
        let world = Arc::clone(&shared);
        let server = Server::start(move |stream, _| serve(Arc::clone(&world), stream)).await;
        Self { server, shared }
    }

    /// For the key `url`.
    pub fn url(&self) -> String {
        format!("http://{}", self.server.addr())
    }

    /// Scripts an answer of `message_process`; `only` looks for the text inside the message.
    pub fn script(&self, rule: Rule<(), Answer>) {
        self.shared.script.add(rule);
    }

    /// The answer to the next message, whichever it is.
    pub fn answer_next(&self, answer: Answer) {
        self.script(Rule::new((), answer));
    }

    /// Answers still to come.
    pub fn pending(&self) -> usize {
        self.shared.script.pending()
    }

    /// Forgets every scripted answer.
    pub fn clear(&self) {
        self.shared.script.clear();
    }

    /// From now on the method, as [`Self::calls`] names it, ends with this exception (fault 1).
    pub fn set_broken(&self, method: &str, exception: &str) {
        self.shared.broken.lock().unwrap().insert(method.to_owned(), exception.to_owned());
    }

    /// Another password: the old one is refused from now on.
    pub fn set_password(&self, password: &str) {
        password.clone_into(&mut self.shared.password.lock().unwrap());
    }

    /// The user may not read this model: fault 4.
    pub fn set_unreadable(&self, model: &str) {
        *self.shared.unreadable.lock().unwrap() = Some(model.to_owned());
    }

    /// Another version; without JSON-2, unless it is 19.
    pub fn set_version(&self, version: &str) {
        version.clone_into(&mut self.shared.version.lock().unwrap());
    }

    /// `message_process` takes this long.
    pub fn set_delay(&self, delay: Duration) {
        *self.shared.delay.lock().unwrap() = delay;
    }

    /// Every message posted, whatever became of it.
    pub fn posts(&self) -> Vec<Post> {
        self.shared.posts.lock().unwrap().clone()
    }

    /// The messages that made a record.
    pub fn taken(&self) -> Vec<Post> {
        self.posts().into_iter().filter(|post| post.record.is_some()).collect()
    }

    /// Every report of a failed delivery that was taken: the failed message's Message-Id, and the address.
    pub fn bounces(&self) -> Vec<(String, String)> {
        self.shared.bounces.lock().unwrap().clone()
    }

    /// The methods called: `authenticate`, `mail.message.search_count`, …
    pub fn calls(&self) -> Vec<String> {
        self.shared.calls.lock().unwrap().clone()
    }

    /// The most `message_process` calls at the same time.
    pub fn max_in_flight(&self) -> usize {
        self.shared.in_flight.max("")
    }

    pub fn events(&self) -> &Events {
        &self.shared.events
    }
}

async fn serve(shared: Arc<Shared>, stream: TcpStream) {
    let mut wire = Wire::new(stream);
    let Ok(Some(request)) = http::read_request(&mut wire).await else {
        return;
    };
    let (method, path) = (request.method.as_str(), request.path.as_str());
    let is_json = !path.starts_with("/xmlrpc/");
    let reply = match (method, path, path.strip_prefix("/json/2/").and_then(|rest| rest.split_once('/'))) {
        ("POST", _, Some((model, method))) => json(&shared, &request, model, method).await,
        ("GET", "/web/version", _) if shared.version.lock().unwrap().starts_with("19") => {
            version(&shared, "version")
        }
        (_, "/xmlrpc/2/common" | "/xmlrpc/2/object", _) => match parse_call(&request.body) {
            _ if method != "POST" => Reply::Status(404),
            None => Reply::Status(400),
            Some((method, params)) if path == "/xmlrpc/2/common" => common(&shared, &method, &params),
            Some((method, params)) if method == "execute_kw" => object(&shared, params).await,
            Some(_) => Reply::Status(404),
        },
        _ => Reply::Status(404),
    };
    let (status, body) = match reply {
        Reply::Value(value) if is_json => (200, json2::to_json(&value).to_string()),
        Reply::Fault(code, text) if is_json => json2::error(code, &text),
        Reply::Value(Value::Nil) => {
            let text = "cannot marshal None unless allow_none is enabled";
            (200, fault(1, &format!("{ENDED}TypeError: {text}\n")))
        }
        Reply::Value(value) => (200, response(&element(&value))),
        Reply::Fault(code, text) => (200, fault(code, &text)),
        Reply::Status(status) => {
            let page = format!("<html><head><title>{status}</title></head><body>{status}</body></html>");
            http::respond(&mut wire, status, "text/html", &[], page.as_bytes(), true);
            return wire.close().await;
        }
        Reply::Cut => return,
        Reply::Silence => return wire.silence().await,
    };
    let kind = if is_json { "application/json; charset=utf-8" } else { "text/xml; charset=utf-8" };
    http::respond(&mut wire, status, kind, &[], body.as_bytes(), true);
    wire.close().await;
}

/// What a call comes to, in either protocol.
enum Reply {
    Value(Value),
    Fault(i64, String),
    Status(u16),
    Cut,
    Silence,
}

fn bool(value: bool) -> Reply {
    Reply::Value(Value::Bool(value))
}

fn int(value: i64) -> Reply {
    Reply::Value(Value::Int(value))
}

fn access_denied() -> Reply {
    Reply::Fault(3, "Access Denied".to_owned())
}

/// An exception in Odoo.
fn ended(exception: &str) -> Reply {
    Reply::Fault(1, format!("{ENDED}{exception}\n"))
}

fn no_database(name: &str) -> Reply {
    ended(&format!("psycopg2.OperationalError: FATAL:  database \"{name}\" does not exist"))
}

fn broken(shared: &Shared, method: &str) -> Option<Reply> {
    shared.broken.lock().unwrap().get(method).map(|exception| ended(exception))
}

fn version(shared: &Shared, name: &str) -> Reply {
    let version = Value::Text(shared.version.lock().unwrap().clone());
    Reply::Value(Value::Struct(vec![
        (name.to_owned(), version),
        ("protocol_version".to_owned(), Value::Int(1)),
    ]))
}

fn common(shared: &Shared, method: &str, params: &[Value]) -> Reply {
    shared.calls.lock().unwrap().push(method.to_owned());
    if let Some(broken) = broken(shared, method) {
        return broken;
    }
    let text = |at: usize| params.get(at).and_then(Value::text).unwrap_or_default();
    match method {
        "version" => version(shared, "server_version"),
        "authenticate" | "login" if text(0) != DATABASE => no_database(text(0)),
        "authenticate" | "login" => {
            let right = text(1) == LOGIN && text(2) == shared.password.lock().unwrap().as_str();
            if right { int(UID) } else { bool(false) }
        }
        _ => ended(&format!("Exception: Method not found: {method}")),
    }
}

/// A call over JSON-2: the key says who it is, the parameters have names.
async fn json(shared: &Shared, request: &http::Request, model: &str, method: &str) -> Reply {
    let no_json2 = !shared.version.lock().unwrap().starts_with("19");
    if no_json2 || request.header("x-odoo-database").is_some_and(|database| database != DATABASE) {
        return Reply::Status(404);
    }
    let key = format!("bearer {}", shared.password.lock().unwrap());
    if request.header("authorization") != Some(key.as_str()) {
        return access_denied();
    }
    if request.header("content-type") != Some("application/json") {
        return Reply::Status(400);
    }
    let Some(named) = json2::parse_body(&request.body) else {
        return Reply::Status(400);
    };
    if let Some(wrong) = json2::wrong_parameters(method, &named) {
        return Reply::Fault(422, wrong);
    }
    called(shared, model, method, Value::Array(Vec::new()), Value::Struct(named)).await
}

async fn object(shared: &Shared, params: Vec<Value>) -> Reply {
    let mut params = params.into_iter();
    let mut next = || params.next().unwrap_or(Value::Nil);
    let (database, uid, password) = (next(), next(), next());
    let (model, method) = (next(), next());
    let (args, kwargs) = (next(), next());
    let database = database.text().unwrap_or_default();
    if database != DATABASE {
        return no_database(database);
    }
    let right = password.text() == Some(shared.password.lock().unwrap().as_str());
    if uid != Value::Int(UID) || !right {
        return access_denied();
    }
    called(shared, model.text().unwrap_or_default(), method.text().unwrap_or_default(), args, kwargs).await
}

/// A method, called by the user.
async fn called(shared: &Shared, model: &str, method: &str, args: Value, kwargs: Value) -> Reply {
    let called = format!("{model}.{method}");
    shared.calls.lock().unwrap().push(called.clone());
    if let Some(broken) = broken(shared, &called) {
        return broken;
    }
    match (model, method) {
        ("mail.thread", "message_process") => message_process(shared, args, kwargs).await,
        (_, "check_access_rights") => bool(true),
        (_, "search_count") if shared.unreadable.lock().unwrap().as_deref() == Some(model) => {
            Reply::Fault(4, format!("You are not allowed to access '{model}' records."))
        }
        ("crm.lead", "search_count") => int(0),
        ("mail.notification", "search_count") => {
            let bounced = notifications(shared, args.array().first().or(kwargs.member("domain")));
            int(i64::try_from(bounced).unwrap())
        }
        ("mail.message", "search" | "search_count") => {
            let records = search(shared, args.array().first().or(kwargs.member("domain")));
            if method == "search_count" {
                return int(i64::try_from(records.len()).unwrap());
            }
            Reply::Value(Value::Array(records.into_iter().map(Value::Int).collect()))
        }
        ("res.users", "context_get") => Reply::Value(Value::Struct(vec![
            ("lang".to_owned(), Value::Text("en_US".to_owned())),
            ("uid".to_owned(), Value::Int(UID)),
        ])),
        _ => ended(&format!("AttributeError: The method '{model}.{method}' does not exist")),
    }
}

/// The records whose Message-Id a domain like `[["message_id", "=", "<…>"]]` (or `in`) asks for.
fn search(shared: &Shared, domain: Option<&Value>) -> Vec<i64> {
    let mut ids: Vec<&str> = Vec::new();
    for leaf in domain.map(Value::array).unwrap_or_default() {
        if let [field, _, wanted] = leaf.array()
            && field.text() == Some("message_id")
        {
            ids.extend(wanted.text());
            ids.extend(wanted.array().iter().filter_map(Value::text));
        }
    }
    let posts = shared.posts.lock().unwrap();
    let found =
        |post: &&Post| post.is_committed() && post.message_id.as_deref().is_some_and(|id| ids.contains(&id));
    posts.iter().filter(found).filter_map(|post| post.record).collect()
}

/// How many notifications have bounced, of the message and the partner that a domain names; every address is a
/// partner's, and each partner has one notification of each message.
fn notifications(shared: &Shared, domain: Option<&Value>) -> usize {
    let conditions = domain.map(Value::array).unwrap_or_default();
    let wanted = |field: &str| {
        let condition = conditions.iter().find(|leaf| leaf.array()[0].text() == Some(field));
        let condition = condition.unwrap_or_else(|| panic!("the domain does not say {field}"));
        assert_eq!(condition.array()[1].text(), Some("="));
        condition.array()[2].text().unwrap().to_owned()
    };
    assert_eq!(wanted("notification_status"), "bounce");
    let wanted = (wanted("mail_message_id.message_id"), wanted("res_partner_id.email_normalized"));
    usize::from(shared.bounces.lock().unwrap().contains(&wanted))
}

async fn message_process(shared: &Shared, args: Value, kwargs: Value) -> Reply {
    let begun = Instant::now();
    let Value::Array(mut args) = args else {
        return Reply::Fault(1, "args must be a list".to_owned());
    };
    let mut kwargs = if let Value::Struct(members) = kwargs { members } else { Vec::new() };
    let raw = match kwargs.iter().position(|(name, _)| name == "message") {
        Some(at) => kwargs.remove(at).1.bytes(),
        None if args.len() > 1 => args.remove(1).bytes(),
        None => None,
    };
    let Some(raw) = raw else {
        return ended("TypeError: message_process() missing 1 required positional argument: 'message'");
    };
    let model = kwargs.iter().find(|(name, _)| name == "model").map(|(_, value)| value).or(args.first());
    let model = model.and_then(Value::text).map(str::to_owned);
    let message_id =
        header_lines(&raw).find(|(name, _)| name.eq_ignore_ascii_case("message-id")).map(|(_, line)| {
            let line = String::from_utf8_lossy(line);
            line.split_once(':').map_or("", |(_, value)| value.trim()).to_owned()
        });
    let (_in_flight, _) = shared.in_flight.enter("");
    let delay = *shared.delay.lock().unwrap();
    wait::exactly(delay.saturating_sub(begun.elapsed())).await;

    let scripted = shared.script.take(&(), |only| memmem::find(&raw, only.as_bytes()).is_some());
    let mut posts = shared.posts.lock().unwrap();
    let duplicate = message_id.is_some()
        && posts
            .iter()
            .any(|post| post.record.is_some() && post.is_committed() && post.message_id == message_id);
    let answer = scripted.unwrap_or(Answer::Taken);
    let takes = matches!(
        answer,
        Answer::Taken | Answer::TakenThenCut | Answer::CutThenTaken(_) | Answer::TakenThenSilence
    );
    let count = i64::try_from(posts.iter().filter(|post| post.record.is_some()).count()).unwrap();
    let bounce = reported(&raw);
    let record = (takes && !duplicate && bounce.is_none()).then_some(count + 1);
    if takes {
        shared.bounces.lock().unwrap().extend(bounce);
    }
    shared
        .events
        .emit(|| format!("odoo: {} -> {answer:?}", message_id.as_deref().unwrap_or("no Message-Id")));
    let from = header_lines(&raw).find(|(name, _)| name.eq_ignore_ascii_case("from"));
    let from =
        from.map(|(_, line)| String::from_utf8_lossy(&line[5..]).trim().to_owned()).unwrap_or_default();
    let reply = match &answer {
        Answer::Taken => record.map_or_else(|| bool(false), int),
        Answer::Nothing => bool(false),
        Answer::Loop => Reply::Value(Value::Nil),
        Answer::NoRoute => ended(&format!(
            "ValueError: No possible route found for incoming message from {from} to  (Message-Id {}:). \
             Create an appropriate mail.alias or force the destination model.",
            message_id.as_deref().unwrap_or_default()
        )),
        Answer::UnknownModel => Reply::Fault(1, "Mailbox unavailable - unknown target model".to_owned()),
        Answer::Poison => ended("LookupError: unknown encoding: x-unknown"),
        Answer::AccessDenied => access_denied(),
        Answer::AccessError => {
            Reply::Fault(4, "You are not allowed to create 'Lead' (crm.lead) records.".to_owned())
        }
        Answer::Fault(code, text) => Reply::Fault(*code, text.clone()),
        Answer::Status(status) => Reply::Status(*status),
        Answer::Cut | Answer::TakenThenCut | Answer::CutThenTaken(_) => Reply::Cut,
        Answer::Silence | Answer::TakenThenSilence => Reply::Silence,
    };
    posts.push(Post {
        at: jiff::Timestamp::now(),
        raw: Arc::new(raw),
        model,
        args,
        kwargs,
        message_id,
        record,
        answer,
    });
    reply
}
