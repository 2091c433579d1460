//! The scripted Odoo, called by raw HTTP.

use std::fmt::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::support::client::message;
use crate::support::http::post;
use crate::support::odoo::{Answer, DATABASE, LOGIN, Odoo, PASSWORD};
use crate::support::script::Rule;
use crate::support::xmlrpc::{Value, parse_call};

fn text(value: &str) -> String {
    let value = value.replace('&', "&amp;").replace('<', "&lt;");
    format!("<value><string>{value}</string></value>")
}

/// A call with these values, each of them XML already.
async fn call(odoo: &Odoo, service: &str, method: &str, values: &[String]) -> Option<(u16, String)> {
    let mut xml = format!("<?xml version=\"1.0\"?><methodCall><methodName>{method}</methodName><params>");
    for value in values {
        write!(xml, "<param>{value}</param>").unwrap();
    }
    xml.push_str("</params></methodCall>");
    post(odoo.server.addr(), &format!("/xmlrpc/2/{service}"), "text/xml", &[], xml.as_bytes()).await
}

async fn execute(odoo: &Odoo, model: &str, method: &str, args: &str, kwargs: &str) -> Option<(u16, String)> {
    let values = [
        text(DATABASE),
        "<value><int>2</int></value>".to_owned(),
        text(PASSWORD),
        text(model),
        text(method),
        format!("<value><array><data>{args}</data></array></value>"),
        format!("<value><struct>{kwargs}</struct></value>"),
    ];
    call(odoo, "object", "execute_kw", &values).await
}

fn base64(raw: &[u8]) -> String {
    format!("<value><base64>\n{}\n</base64></value>", STANDARD.encode(raw))
}

async fn process(odoo: &Odoo, raw: &[u8]) -> Option<(u16, String)> {
    let args = format!("<value><boolean>0</boolean></value>{}", base64(raw));
    execute(odoo, "mail.thread", "message_process", &args, "").await
}

#[tokio::test]
async fn only_the_right_password_gets_in() {
    let odoo = Odoo::start().await;
    let login = async |database: &str, password: &str| {
        let values =
            [text(database), text(LOGIN), text(password), "<value><struct></struct></value>".to_owned()];
        call(&odoo, "common", "authenticate", &values).await.unwrap().1
    };
    assert!(login(DATABASE, PASSWORD).await.contains("<int>2</int>"));
    assert!(login(DATABASE, "wrong").await.contains("<boolean>0</boolean>"));
    assert!(login("other", PASSWORD).await.contains("database \"other\" does not exist"));
    odoo.set_password("changed");
    assert!(process(&odoo, b"x").await.unwrap().1.contains("<int>3</int>"), "fault 3");
    assert!(odoo.posts().is_empty());
}

#[tokio::test]
async fn a_message_is_taken_once() {
    let odoo = Odoo::start().await;
    let raw = [&message("a@x.test", "sales@example.com", "one@test", "Hi")[..], b"\0\xff\r\n"].concat();
    assert!(process(&odoo, &raw).await.unwrap().1.contains("<int>1</int>"));
    assert!(process(&odoo, &raw).await.unwrap().1.contains("<boolean>0</boolean>"), "a duplicate");
    let member = |name: &str, value: &str| format!("<member><name>{name}</name>{value}</member>");
    let kwargs = member("model", &text("crm.lead")) + &member("message", &base64(b"Message-Id: <2@t>\n\nx"));
    let (_, body) = execute(&odoo, "mail.thread", "message_process", "", &kwargs).await.unwrap();
    assert!(body.contains("<int>2</int>"), "{body}");
    let taken = odoo.taken();
    assert_eq!((taken.len(), odoo.posts().len()), (2, 3));
    assert_eq!(*taken[0].raw, raw);
    assert_eq!(taken[0].args, [Value::Bool(false)]);
    assert_eq!((taken[0].model.as_deref(), taken[1].model.as_deref()), (None, Some("crm.lead")));
    assert_eq!(taken[0].message_id.as_deref(), Some("<one@test>"));

    let domain = |id: &str| {
        let leaf = ["message_id", "=", id].map(text).concat();
        let leaf = format!("<value><array><data>{leaf}</data></array></value>");
        format!("<value><array><data>{leaf}</data></array></value>")
    };
    let count = async |id| execute(&odoo, "mail.message", "search_count", &domain(id), "").await.unwrap().1;
    assert!(count("<one@test>").await.contains("<int>1</int>"));
    assert!(count("<none@test>").await.contains("<int>0</int>"));
    let (_, found) = execute(&odoo, "mail.message", "search", &domain("<2@t>"), "").await.unwrap();
    assert!(found.contains("<value><int>2</int></value>"), "{found}");
    assert!(odoo.calls().contains(&"mail.message.search_count".to_owned()));
}

#[tokio::test]
async fn answers_are_scripted_per_message() {
    let odoo = Odoo::start().await;
    odoo.script(Rule::new((), Answer::Poison).only("poison@test").always());
    for (answer, status, part) in [
        (Answer::Loop, 200, "cannot marshal None"),
        (Answer::NoRoute, 200, "ValueError: No possible route found for incoming message from a@x.test"),
        (Answer::UnknownModel, 200, "unknown target model"),
        (Answer::AccessError, 200, "<int>4</int>"),
        (Answer::AccessDenied, 200, "Access Denied"),
        (Answer::Nothing, 200, "<boolean>0</boolean>"),
        (Answer::Status(413), 413, "<title>413</title>"),
        (Answer::Status(503), 503, "<title>503</title>"),
    ] {
        odoo.answer_next(answer);
        let (seen, body) = process(&odoo, &message("a@x.test", "b@x.test", "one@test", "x")).await.unwrap();
        assert!(seen == status && body.contains(part), "{seen} {body}");
    }
    assert!(odoo.taken().is_empty());
    odoo.answer_next(Answer::Cut);
    assert!(process(&odoo, b"Message-Id: <a@t>\r\n\r\n").await.is_none());
    odoo.answer_next(Answer::TakenThenCut);
    assert!(process(&odoo, b"Message-Id: <b@t>\r\n\r\n").await.is_none());
    assert_eq!(odoo.taken().len(), 1);
    let (_, body) = process(&odoo, &message("a@x.test", "b@x.test", "poison@test", "x")).await.unwrap();
    assert!(body.contains("LookupError"), "{body}");
    assert_eq!(odoo.pending(), 1);
    assert_eq!(odoo.max_in_flight(), 1);
}

#[tokio::test]
async fn a_message_of_forty_megabytes_is_taken() {
    let odoo = Odoo::start().await;
    let raw = vec![b'x'; 40 << 20];
    assert!(process(&odoo, &raw).await.unwrap().1.contains("<int>1</int>"));
    assert_eq!(odoo.taken()[0].raw.len(), raw.len());
}

#[test]
fn calls_are_parsed_strictly() {
    let xml = b"<?xml version='1.0'?>\n<methodCall>\n<methodName>m</methodName>\n<params>\n<param>\n<value>bare &amp; \
        &#65;</value>\n</param><param><value><base64>SGVs\r\nbG8=\n</base64></value></param><param><value><nil/></value></param><param><value><array><data>\n</data></array></value>\
        </param><param><value><struct><member><name>a</name><value><i4>-3</i4></value></member></struct></value>\
        </param>\n</params>\n</methodCall>";
    let (name, params) = parse_call(xml).unwrap();
    assert_eq!(name, "m");
    let member = Value::Struct(vec![("a".to_owned(), Value::Int(-3))]);
    assert_eq!(
        params,
        [
            Value::Text("bare & A".to_owned()),
            Value::Bytes(b"Hello".to_vec()),
            Value::Nil,
            Value::Array(Vec::new()),
            member
        ]
    );
    for broken in
        ["", "<methodCall>", "<methodCall><methodName>m</methodName><params><param><value><int>x</int>"]
    {
        assert_eq!(parse_call(broken.as_bytes()), None, "{broken}");
    }
}
