//! Odoo's mail gateway over XML-RPC, scripted.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use memchr::memmem;
use tokio::net::TcpStream;

use super::events::Events;
use super::gauge::Gauge;
use super::http;
use super::imap_data::header_lines;
use super::script::{Rule, Script};
use super::server::Server;
use super::wire::Wire;
use super::xmlrpc::{Value, fault, parse_call, response};

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
    let reply = match (request.method.as_str(), request.path.as_str(), parse_call(&request.body)) {
        (_, "/xmlrpc/2/common" | "/xmlrpc/2/object", None) => Reply::Status(400),
        ("POST", "/xmlrpc/2/common", Some((method, params))) => common(&shared, &method, &params),
        ("POST", "/xmlrpc/2/object", Some((method, params))) if method == "execute_kw" => {
            object(&shared, params).await
        }
        _ => Reply::Status(404),
    };
    match reply {
        Reply::Xml(xml) => {
            http::respond(&mut wire, 200, "text/xml; charset=utf-8", &[], xml.as_bytes(), true)
        }
        Reply::Status(status) => {
            let page = format!("<html><head><title>{status}</title></head><body>{status}</body></html>");
            http::respond(&mut wire, status, "text/html", &[], page.as_bytes(), true);
        }
        Reply::Cut => return,
        Reply::Silence => return wire.silence().await,
    }
    wire.close().await;
}

enum Reply {
    Xml(String),
    Status(u16),
    Cut,
    Silence,
}

fn bool(value: bool) -> Reply {
    Reply::Xml(response(&format!("<boolean>{}</boolean>", u8::from(value))))
}

fn int(value: i64) -> Reply {
    Reply::Xml(response(&format!("<int>{value}</int>")))
}

fn access_denied() -> Reply {
    Reply::Xml(fault(3, "Access Denied"))
}

fn no_database(name: &str) -> Reply {
    Reply::Xml(fault(
        1,
        &format!("{ENDED}psycopg2.OperationalError: FATAL:  database \"{name}\" does not exist\n"),
    ))
}

fn broken(shared: &Shared, method: &str) -> Option<Reply> {
    let broken = shared.broken.lock().unwrap();
    broken.get(method).map(|exception| Reply::Xml(fault(1, &format!("{ENDED}{exception}\n"))))
}

fn common(shared: &Shared, method: &str, params: &[Value]) -> Reply {
    shared.calls.lock().unwrap().push(method.to_owned());
    if let Some(broken) = broken(shared, method) {
        return broken;
    }
    let text = |at: usize| params.get(at).and_then(Value::text).unwrap_or_default();
    match method {
        "version" => Reply::Xml(response(
            "<struct><member><name>server_version</name><value><string>19.0</string></value></member>\
             <member><name>protocol_version</name><value><int>1</int></value></member></struct>",
        )),
        "authenticate" | "login" if text(0) != DATABASE => no_database(text(0)),
        "authenticate" | "login" => {
            let right = text(1) == LOGIN && text(2) == shared.password.lock().unwrap().as_str();
            if right { int(UID) } else { bool(false) }
        }
        _ => Reply::Xml(fault(1, &format!("{ENDED}Exception: Method not found: {method}\n"))),
    }
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
    let (model, method) = (model.text().unwrap_or_default(), method.text().unwrap_or_default());
    let called = format!("{model}.{method}");
    shared.calls.lock().unwrap().push(called.clone());
    if let Some(broken) = broken(shared, &called) {
        return broken;
    }
    match (model, method) {
        ("mail.thread", "message_process") => message_process(shared, args, kwargs).await,
        (_, "check_access_rights") => bool(true),
        (_, "search_count") if shared.unreadable.lock().unwrap().as_deref() == Some(model) => {
            Reply::Xml(fault(4, &format!("You are not allowed to access '{model}' records.")))
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
            let values: String = records.iter().map(|id| format!("<value><int>{id}</int></value>")).collect();
            Reply::Xml(response(&format!("<array><data>{values}</data></array>")))
        }
        _ => Reply::Xml(fault(
            1,
            &format!("{ENDED}AttributeError: The method '{model}.{method}' does not exist\n"),
        )),
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
    let found = |post: &&Post| post.message_id.as_deref().is_some_and(|id| ids.contains(&id));
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

/// What a report of a failed delivery is about: the failed message's Message-Id, and the address.
fn bounce(raw: &[u8]) -> Option<(String, String)> {
    let is_report = |(name, line): (String, &[u8])| {
        name.eq_ignore_ascii_case("content-type") && memmem::find(line, b"multipart/report").is_some()
    };
    if !header_lines(raw).any(is_report) {
        return None;
    }
    let text = String::from_utf8_lossy(raw);
    let recipient = text.split_once("\r\nFinal-Recipient:")?.1.split_once(';')?.1.lines().next()?.trim();
    let quoted = text.split_once("text/rfc822-headers")?.1.to_lowercase();
    let message_id = quoted.split_once("\r\nmessage-id:")?.1.split_once('<')?.1.split_once('>')?.0.to_owned();
    Some((format!("<{message_id}>"), recipient.to_owned()))
}

async fn message_process(shared: &Shared, args: Value, kwargs: Value) -> Reply {
    let Value::Array(mut args) = args else {
        return Reply::Xml(fault(1, "args must be a list"));
    };
    let mut kwargs = if let Value::Struct(members) = kwargs { members } else { Vec::new() };
    let raw = match kwargs.iter().position(|(name, _)| name == "message") {
        Some(at) => kwargs.remove(at).1.bytes(),
        None if args.len() > 1 => args.remove(1).bytes(),
        None => None,
    };
    let Some(raw) = raw else {
        let text = format!(
            "{ENDED}TypeError: message_process() missing 1 required positional argument: 'message'\n"
        );
        return Reply::Xml(fault(1, &text));
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
    tokio::time::sleep(delay).await;

    let scripted = shared.script.take(&(), |only| memmem::find(&raw, only.as_bytes()).is_some());
    let mut posts = shared.posts.lock().unwrap();
    let duplicate = message_id.is_some()
        && posts.iter().any(|post| post.record.is_some() && post.message_id == message_id);
    let answer = scripted.unwrap_or(Answer::Taken);
    let takes = matches!(answer, Answer::Taken | Answer::TakenThenCut | Answer::TakenThenSilence);
    let count = i64::try_from(posts.iter().filter(|post| post.record.is_some()).count()).unwrap();
    let bounce = bounce(&raw);
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
        Answer::Loop => {
            let text = "cannot marshal None unless allow_none is enabled";
            Reply::Xml(fault(1, &format!("{ENDED}TypeError: {text}\n")))
        }
        Answer::NoRoute => Reply::Xml(fault(
            1,
            &format!(
                "{ENDED}ValueError: No possible route found for incoming message from {from} to  (Message-Id {}:). \
                 Create an appropriate mail.alias or force the destination model.\n",
                message_id.as_deref().unwrap_or_default()
            ),
        )),
        Answer::UnknownModel => Reply::Xml(fault(1, "Mailbox unavailable - unknown target model")),
        Answer::Poison => Reply::Xml(fault(1, &format!("{ENDED}LookupError: unknown encoding: x-unknown\n"))),
        Answer::AccessDenied => access_denied(),
        Answer::AccessError => {
            Reply::Xml(fault(4, "You are not allowed to create 'Lead' (crm.lead) records."))
        }
        Answer::Fault(code, text) => Reply::Xml(fault(*code, text)),
        Answer::Status(status) => Reply::Status(*status),
        Answer::Cut | Answer::TakenThenCut => Reply::Cut,
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
