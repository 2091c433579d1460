//! The Odoo gateway.

use crate::support::client::message;
use crate::support::odoo::{Answer, DATABASE, LOGIN, Odoo, PASSWORD};
use crate::support::script::Rule;
use crate::support::xmlrpc::Value;
use outlook_relay::failure::Class;
use outlook_relay::odoo::{Gateway, GatewayConfig, Intake, Protocol, Scalar, Taken};
use std::time::Duration;

const JOHN: &str = "john@example.com";

pub(super) fn gateway(odoo: &Odoo, change: impl FnOnce(&mut GatewayConfig)) -> Gateway {
    let mut config = GatewayConfig {
        url: odoo.url(),
        database: DATABASE.to_owned(),
        protocol: Protocol::XmlRpc,
        login: LOGIN.to_owned(),
        password: PASSWORD.to_owned().into(),
        timeout: Duration::from_secs(30),
        domains: Vec::new(),
        gateway_model: "mail.thread".to_owned(),
        report_after: Duration::ZERO,
        parallel: 4,
    };
    change(&mut config);
    let tls = outlook_relay::tls::client(None).unwrap();
    Gateway::new(config, outlook_relay::tokens::endpoint::http_client(&tls).unwrap())
}

/// What Odoo does if nothing is asked for.
fn plain() -> Intake {
    Intake::default()
}

fn lead() -> Intake {
    Intake { model: Some("crm.lead".to_owned()), ..Intake::default() }
}

fn mail(id: &str) -> Vec<u8> {
    message("a@x.test", JOHN, id.trim_matches(['<', '>']), "Grüße")
}

#[tokio::test]
async fn a_message_arrives_byte_for_byte_and_the_login_is_asked_for_once() {
    let odoo = Odoo::start().await;
    let gateway = gateway(&odoo, |_| ());
    let mut raw = mail("<1@x.test>");
    raw.extend((0..=255).cycle().take(100_000).map(|byte: u8| byte));
    let taken = gateway.push(&raw, &lead(), "<1@x.test>").await.unwrap();
    assert!(matches!(taken, Taken::Thread(id) if id > 0));
    assert_eq!(gateway.push(&raw, &plain(), "<1@x.test>").await, Ok(Taken::Duplicate));
    assert_eq!(gateway.knows("<1@x.test>").await, Ok(true));
    assert_eq!(gateway.knows("<2@x.test>").await, Ok(false));
    let posts = odoo.posts();
    assert_eq!(*posts[0].raw, raw);
    assert_eq!((posts[0].model.as_deref(), posts[1].model.as_deref()), (Some("crm.lead"), None));
    let logins = odoo.calls().iter().filter(|call| *call == "authenticate").count();
    assert_eq!(logins, 1);
}

/// Each answer, what it comes to over XML-RPC, and its code over JSON-2.
type Meant = (Answer, Result<Taken, (Class, &'static str)>, &'static str);

fn answers() -> Vec<Meant> {
    use Class::{Administrator, Message, Transient};
    let concurrency = "Traceback (most recent call last):\n  File \"/odoo/sql_db.py\", line 1, in x\n\
                       psycopg2.errors.SerializationFailure: could not serialize access due to concurrent update\n";
    vec![
        (Answer::Nothing, Ok(Taken::Duplicate), ""),
        (Answer::Loop, Ok(Taken::Ignored), ""),
        (Answer::NoRoute, Err((Message, "fault 1")), "error 500"),
        (Answer::UnknownModel, Err((Message, "fault 1")), "error 500"),
        (Answer::Poison, Err((Message, "fault 1")), "error 500"),
        (Answer::Fault(1, concurrency.to_owned()), Err((Transient, "fault 1")), "error 500"),
        (Answer::Fault(2, "no".to_owned()), Err((Message, "fault 2")), "error 422"),
        (Answer::AccessError, Err((Administrator, "fault 4")), "error 403"),
        (Answer::Status(413), Err((Message, "HTTP 413")), "HTTP 413"),
        (Answer::Status(502), Err((Transient, "HTTP 502")), "HTTP 502"),
        (Answer::Status(503), Err((Transient, "HTTP 503")), "HTTP 503"),
        (Answer::Status(504), Err((Transient, "HTTP 504")), "HTTP 504"),
        (Answer::Cut, Err((Transient, "cut")), "cut"),
        (Answer::TakenThenCut, Err((Transient, "cut")), "cut"),
        (Answer::Silence, Err((Transient, "timeout")), "timeout"),
    ]
}

async fn every_answer(protocol: Protocol) {
    let odoo = Odoo::start().await;
    let gateway = gateway(&odoo, |config| {
        config.timeout = Duration::from_secs(2);
        config.protocol = protocol;
    });
    for (number, (answer, expected, over_json)) in answers().into_iter().enumerate() {
        let expected = expected.map_err(|(class, code)| match protocol {
            Protocol::XmlRpc => (class, code.to_owned()),
            Protocol::Json2 => (class, over_json.to_owned()),
        });
        let id = format!("<{number}@x.test>");
        odoo.answer_next(answer.clone());
        let taken = gateway.push(&mail(&id), &plain(), &id).await;
        let seen = taken.map_err(|failure| (failure.class, failure.code));
        assert_eq!(seen, expected, "{answer:?}");
        let blames_odoo = matches!(&expected, Err((class, _)) if *class != Class::Message);
        assert_eq!(gateway.trouble().is_some(), blames_odoo, "{answer:?}");
    }
    assert_eq!(odoo.pending(), 0);
}

#[tokio::test]
async fn every_answer_is_understood() {
    every_answer(Protocol::XmlRpc).await;
}

#[tokio::test]
async fn every_answer_is_understood_over_json() {
    every_answer(Protocol::Json2).await;
}

#[tokio::test]
async fn over_json_a_message_arrives_as_it_is_or_as_a_copy_that_reads_the_same() {
    let odoo = Odoo::start().await;
    let gateway = gateway(&odoo, |config| {
        config.protocol = Protocol::Json2;
        config.login = String::new();
    });
    let utf8 = [&mail("<1@x.test>")[..], "ä\0\u{feff}\u{2028}\"\\😊\n\r".as_bytes()].concat();
    let taken = gateway.push(&utf8, &lead(), "<1@x.test>").await.unwrap();
    assert!(matches!(taken, Taken::Thread(id) if id > 0));
    assert_eq!(gateway.push(&utf8, &plain(), "<1@x.test>").await, Ok(Taken::Duplicate));
    let latin = b"Message-ID: <2@x.test>\r\nTo: john@example.com\r\n\r\nGr\xfc\xdfe\r\n";
    gateway.push(latin, &plain(), "<2@x.test>").await.unwrap();
    let posts = odoo.posts();
    assert_eq!(*posts[0].raw, utf8);
    assert_eq!((posts[0].model.as_deref(), posts[1].model.as_deref()), (Some("crm.lead"), None));
    assert!(posts[2].raw.is_ascii());
    assert!(posts[2].text().ends_with("Content-Transfer-Encoding: base64\r\n\r\nR3L832UNCg==\r\n"));

    assert_eq!(gateway.knows("<1@x.test>").await, Ok(true));
    assert_eq!(gateway.knows("<3@x.test>").await, Ok(false));
    assert_eq!(gateway.bounced("<1@x.test>", "A@x.test").await, Ok(false));
    assert_eq!(gateway.try_sign_in().await, Ok(2));
    assert_eq!(gateway.try_read("crm.lead").await, Ok(()));
    odoo.set_unreadable("crm.lead");
    let failure = gateway.try_read("crm.lead").await.unwrap_err();
    assert_eq!((failure.class, failure.code.as_str()), (Class::Administrator, "error 403"));
    assert!(!odoo.calls().contains(&"authenticate".to_owned()));
}

#[tokio::test]
async fn over_json_a_wrong_key_a_wrong_database_and_an_old_odoo_are_the_administrators() {
    let odoo = Odoo::start().await;
    let json = |change: fn(&mut GatewayConfig)| {
        gateway(&odoo, |config| {
            config.protocol = Protocol::Json2;
            change(config);
        })
    };
    type Change = fn(&mut GatewayConfig);
    let rows: [(Change, &str, &str); 4] = [
        (|config| config.password = "wrong".to_owned().into(), "error 401", "API key"),
        (|config| config.password = "line\nbreak".to_owned().into(), "unusable", "password_file"),
        (|config| config.database = "other".to_owned(), "HTTP 404", "`database`"),
        (|config| config.url.push_str("/odoo"), "HTTP 404", "`url`"),
    ];
    for (change, code, advice) in rows {
        let failure = json(change).sign_in().await.unwrap_err();
        assert_eq!((failure.class, failure.code.as_str()), (Class::Administrator, code));
        assert!(failure.advice.contains(advice), "{failure}");
        assert!(!failure.to_string().contains("break"), "{failure}");
    }
    odoo.set_version("18.0");
    let failure = json(|_| ()).sign_in().await.unwrap_err();
    assert_eq!((failure.class, failure.code.as_str()), (Class::Administrator, "HTTP 404"));
    assert!(failure.advice.contains("xmlrpc"), "{failure}");
}

#[tokio::test]
async fn the_version_is_told_to_anybody() {
    let odoo = Odoo::start().await;
    for (version, major) in [("19.0", 19), ("16.0", 16), ("saas~17.4+e", 17)] {
        odoo.set_version(version);
        for protocol in [Protocol::XmlRpc, Protocol::Json2] {
            let gateway = gateway(&odoo, |config| {
                config.protocol = protocol;
                config.password = "wrong".to_owned().into();
            });
            let seen = gateway.try_version().await.unwrap().unwrap();
            assert_eq!((seen.text.as_str(), seen.major), (version, major));
        }
    }
}

#[tokio::test]
async fn what_a_mailbox_asks_for_arrives_in_both_protocols() {
    for protocol in [Protocol::XmlRpc, Protocol::Json2] {
        let odoo = Odoo::start().await;
        let gateway = gateway(&odoo, |config| config.protocol = protocol);
        let custom_values = [("team_id".to_owned(), Scalar::Int(3)), ("x".to_owned(), Scalar::Bool(true))];
        let intake = Intake {
            save_original: true,
            strip_attachments: true,
            custom_values: custom_values.into(),
            ..lead()
        };
        gateway.push(&mail("<1@x.test>"), &intake, "<1@x.test>").await.unwrap();
        gateway.push(&mail("<2@x.test>"), &plain(), "<2@x.test>").await.unwrap();
        let posts = odoo.posts();
        assert_eq!(posts[0].model.as_deref(), Some("crm.lead"));
        let mut named = posts[0].kwargs.clone();
        named.retain(|(name, _)| name != "model");
        let values =
            Value::Struct(vec![("team_id".to_owned(), Value::Int(3)), ("x".to_owned(), Value::Bool(true))]);
        let expected = [
            ("custom_values", values),
            ("save_original", Value::Bool(true)),
            ("strip_attachments", Value::Bool(true)),
        ];
        assert_eq!(named, expected.map(|(name, value)| (name.to_owned(), value)));
        assert!(posts[1].kwargs.iter().all(|(name, _)| name == "model"), "{:?}", posts[1].kwargs);
    }
}

#[tokio::test]
async fn odoos_words_never_hold_the_password() {
    let secret = "it's a\\key";
    for protocol in [Protocol::XmlRpc, Protocol::Json2] {
        for quoted in [secret, "it\\'s a\\\\key"] {
            let odoo = Odoo::start().await;
            odoo.set_password(secret);
            let gateway = gateway(&odoo, |config| {
                config.protocol = protocol;
                config.password = secret.to_owned().into();
            });
            let padding = "x".repeat(490);
            for text in
                [format!("ValueError: user 2, {quoted}, no"), format!("ValueError: {padding} {quoted}")]
            {
                odoo.answer_next(Answer::Fault(1, text));
                let failure = gateway.push(&mail("<1@x.test>"), &plain(), "<1@x.test>").await.unwrap_err();
                for part in ["it's", "it\\'s", "key"] {
                    assert!(!format!("{failure:?}{failure}").contains(part), "{failure}");
                }
            }
            odoo.answer_next(Answer::Fault(1, format!("ValueError: user 2, {quoted}, no")));
            let failure = gateway.push(&mail("<1@x.test>"), &plain(), "<1@x.test>").await.unwrap_err();
            assert_eq!(failure.reply, "ValueError: user 2, [password], no");
        }
    }
}

#[tokio::test]
async fn a_changed_password_is_tried_once_more_and_then_said() {
    let odoo = Odoo::start().await;
    let gateway = gateway(&odoo, |_| ());
    gateway.push(&mail("<1@x.test>"), &plain(), "<1@x.test>").await.unwrap();
    odoo.answer_next(Answer::AccessDenied);
    let again = gateway.push(&mail("<2@x.test>"), &plain(), "<2@x.test>").await;
    assert!(matches!(again, Ok(Taken::Thread(_))), "{again:?}");
    odoo.set_password("another");
    let failure = gateway.push(&mail("<3@x.test>"), &plain(), "<3@x.test>").await.unwrap_err();
    assert_eq!((failure.class, failure.code.as_str()), (Class::Administrator, "fault 3"));
    assert!(!failure.to_string().contains(PASSWORD));
    odoo.set_password(PASSWORD);
    assert!(gateway.sign_in().await.is_ok());
}

#[tokio::test]
async fn a_wrong_database_and_a_wrong_address_are_the_administrators() {
    let odoo = Odoo::start().await;
    let wrong = gateway(&odoo, |config| config.database = "other".to_owned());
    let failure = wrong.sign_in().await.unwrap_err();
    assert_eq!(failure.class, Class::Administrator);
    assert!(failure.advice.contains("`database`"), "{failure}");
    let wrong = gateway(&odoo, |config| config.url.push_str("/odoo"));
    let failure = wrong.sign_in().await.unwrap_err();
    assert_eq!((failure.class, failure.code.as_str()), (Class::Administrator, "HTTP 404"));
    odoo.server.down().await;
    let failure = gateway(&odoo, |_| ()).sign_in().await.unwrap_err();
    assert_eq!((failure.class, failure.code.as_str()), (Class::Transient, "connect"));
}

/// The most pushes of these Message-Ids that Odoo sees at the same time, all begun at once, and how many it takes.
async fn most_at_a_time(ids: &[&str]) -> (usize, usize) {
    let odoo = Odoo::start().await;
    odoo.set_delay(Duration::from_millis(50));
    let gateway = gateway(&odoo, |_| ());
    let pushes = ids.iter().map(|id| {
        let (gateway, id) = (gateway.clone(), (*id).to_owned());
        tokio::spawn(async move { gateway.push(&mail(&id), &plain(), &id).await.unwrap() })
    });
    for push in pushes.collect::<Vec<_>>() {
        push.await.unwrap();
    }
    (odoo.max_in_flight(), odoo.taken().len())
}

#[tokio::test]
async fn the_same_message_id_never_meets_itself() {
    assert_eq!(most_at_a_time(&["<same@x.test>"; 5]).await, (1, 1));
}

#[tokio::test]
async fn four_pushes_at_a_time_are_the_most() {
    let ids: Vec<String> = (0..12).map(|number| format!("<{number}@x.test>")).collect();
    let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
    let (most, taken) = most_at_a_time(&ids).await;
    assert!((2..=4).contains(&most), "{most}");
    assert_eq!(taken, 12);
}

#[tokio::test]
async fn a_large_message_passes_over_json_though_it_is_not_utf8() {
    let odoo = Odoo::start().await;
    let gateway = gateway(&odoo, |config| config.protocol = Protocol::Json2);
    let mut raw = mail("<big@x.test>");
    raw.resize(36 << 20, 0xe9);
    let taken = gateway.push(&raw, &plain(), "<big@x.test>").await;
    assert!(matches!(taken, Ok(Taken::Thread(_))), "{taken:?}");
    // 57 octets a line become 78.
    assert!(odoo.posts()[0].raw.len() > (36 << 20) / 57 * 78);
}

#[tokio::test]
async fn a_large_message_passes() {
    let odoo = Odoo::start().await;
    let gateway = gateway(&odoo, |_| ());
    let mut raw = mail("<big@x.test>");
    raw.resize(36 << 20, b'x');
    let taken = gateway.push(&raw, &plain(), "<big@x.test>").await;
    assert!(matches!(taken, Ok(Taken::Thread(_))), "{taken:?}");
    assert!(*odoo.posts()[0].raw == raw);
}

#[tokio::test]
async fn a_trouble_ends_with_the_first_message_taken() {
    let odoo = Odoo::start().await;
    let gateway = gateway(&odoo, |_| ());
    odoo.script(Rule::new((), Answer::Status(503)).only("<1@x.test>"));
    assert!(gateway.push(&mail("<1@x.test>"), &plain(), "<1@x.test>").await.is_err());
    gateway.sign_in().await.unwrap();
    assert!(gateway.trouble().is_some(), "that it lets us in does not mean that it takes mail");
    gateway.push(&mail("<1@x.test>"), &plain(), "<1@x.test>").await.unwrap();
    assert!(gateway.trouble().is_none());
}

#[tokio::test]
async fn what_goes_wrong_while_signing_in_is_never_a_messages_fault() {
    let odoo = Odoo::start().await;
    let gateway = gateway(&odoo, |_| ());
    odoo.set_broken("authenticate", "RuntimeError: a module's own mistake");
    let failure = gateway.push(&mail("1@x.test"), &plain(), "<1@x.test>").await.unwrap_err();
    assert_eq!(failure.class, Class::Transient, "{failure}");
    assert_eq!(gateway.trouble().unwrap().failure, failure, "it is said");
}
