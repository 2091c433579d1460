//! The Odoo gateway.

use crate::support::client::message;
use crate::support::odoo::{Answer, DATABASE, LOGIN, Odoo, PASSWORD};
use crate::support::script::Rule;
use outlook_relay::failure::Class;
use outlook_relay::odoo::{Gateway, GatewayConfig, Taken};
use std::time::Duration;

const JOHN: &str = "john@example.com";

fn gateway(odoo: &Odoo, change: impl FnOnce(&mut GatewayConfig)) -> Gateway {
    let mut config = GatewayConfig {
        url: odoo.url(),
        database: DATABASE.to_owned(),
        login: LOGIN.to_owned(),
        password: PASSWORD.to_owned().into(),
        timeout: Duration::from_secs(30),
        gateway_model: "mail.thread".to_owned(),
        report_after: Duration::ZERO,
        parallel: 4,
    };
    change(&mut config);
    let tls = outlook_relay::tls::client(None).unwrap();
    Gateway::new(config, outlook_relay::tokens::endpoint::http_client(&tls).unwrap())
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
    let taken = gateway.push(&raw, Some("crm.lead"), "<1@x.test>").await.unwrap();
    assert!(matches!(taken, Taken::Thread(id) if id > 0));
    assert_eq!(gateway.push(&raw, None, "<1@x.test>").await, Ok(Taken::Duplicate));
    assert_eq!(gateway.knows("<1@x.test>").await, Ok(true));
    assert_eq!(gateway.knows("<2@x.test>").await, Ok(false));
    let posts = odoo.posts();
    assert_eq!(*posts[0].raw, raw);
    assert_eq!((posts[0].model.as_deref(), posts[1].model.as_deref()), (Some("crm.lead"), None));
    let logins = odoo.calls().iter().filter(|call| *call == "authenticate").count();
    assert_eq!(logins, 1);
}

#[tokio::test]
async fn every_answer_is_understood() {
    let odoo = Odoo::start().await;
    let gateway = gateway(&odoo, |config| config.timeout = Duration::from_secs(2));
    let refused = |class, code: &str| Err((class, code.to_owned()));
    let rows = [
        (Answer::Nothing, Ok(Taken::Duplicate)),
        (Answer::Loop, Ok(Taken::Ignored)),
        (Answer::NoRoute, refused(Class::Message, "fault 1")),
        (Answer::UnknownModel, refused(Class::Message, "fault 1")),
        (Answer::Poison, refused(Class::Message, "fault 1")),
        (Answer::Fault(2, "no".to_owned()), refused(Class::Message, "fault 2")),
        (Answer::AccessError, refused(Class::Administrator, "fault 4")),
        (Answer::Status(413), refused(Class::Message, "HTTP 413")),
        (Answer::Status(502), refused(Class::Transient, "HTTP 502")),
        (Answer::Status(503), refused(Class::Transient, "HTTP 503")),
        (Answer::Status(504), refused(Class::Transient, "HTTP 504")),
        (Answer::Cut, refused(Class::Transient, "cut")),
        (Answer::TakenThenCut, refused(Class::Transient, "cut")),
        (Answer::Silence, refused(Class::Transient, "timeout")),
    ];
    for (number, (answer, expected)) in rows.into_iter().enumerate() {
        let id = format!("<{number}@x.test>");
        odoo.answer_next(answer.clone());
        let taken = gateway.push(&mail(&id), None, &id).await;
        let seen = taken.map_err(|failure| (failure.class, failure.code));
        assert_eq!(seen, expected, "{answer:?}");
        let blames_odoo = matches!(&expected, Err((class, _)) if *class != Class::Message);
        assert_eq!(gateway.trouble().is_some(), blames_odoo, "{answer:?}");
    }
    assert_eq!(odoo.pending(), 0);
}

#[tokio::test]
async fn a_changed_password_is_tried_once_more_and_then_said() {
    let odoo = Odoo::start().await;
    let gateway = gateway(&odoo, |_| ());
    gateway.push(&mail("<1@x.test>"), None, "<1@x.test>").await.unwrap();
    odoo.answer_next(Answer::AccessDenied);
    let again = gateway.push(&mail("<2@x.test>"), None, "<2@x.test>").await;
    assert!(matches!(again, Ok(Taken::Thread(_))), "{again:?}");
    odoo.set_password("another");
    let failure = gateway.push(&mail("<3@x.test>"), None, "<3@x.test>").await.unwrap_err();
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
        tokio::spawn(async move { gateway.push(&mail(&id), None, &id).await.unwrap() })
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
async fn a_large_message_passes() {
    let odoo = Odoo::start().await;
    let gateway = gateway(&odoo, |_| ());
    let mut raw = mail("<big@x.test>");
    raw.resize(36 << 20, b'x');
    let _room = gateway.room(raw.len() as u64).await;
    let taken = gateway.push(&raw, None, "<big@x.test>").await;
    assert!(matches!(taken, Ok(Taken::Thread(_))), "{taken:?}");
    assert!(*odoo.posts()[0].raw == raw);
}

#[tokio::test]
async fn room_is_given_back_and_never_too_small_for_one() {
    let odoo = Odoo::start().await;
    let gateway = gateway(&odoo, |_| ());
    let all = gateway.room(u64::MAX).await;
    let waiting = tokio::time::timeout(Duration::from_millis(50), gateway.room(1)).await;
    assert!(waiting.is_err(), "there was room beside everything");
    drop(all);
    gateway.room(1).await;
}

#[tokio::test]
async fn a_trouble_ends_with_the_first_message_taken() {
    let odoo = Odoo::start().await;
    let gateway = gateway(&odoo, |_| ());
    odoo.script(Rule::new((), Answer::Status(503)).only("<1@x.test>"));
    assert!(gateway.push(&mail("<1@x.test>"), None, "<1@x.test>").await.is_err());
    gateway.sign_in().await.unwrap();
    assert!(gateway.trouble().is_some(), "that it lets us in does not mean that it takes mail");
    gateway.push(&mail("<1@x.test>"), None, "<1@x.test>").await.unwrap();
    assert!(gateway.trouble().is_none());
}

#[tokio::test]
async fn what_goes_wrong_while_signing_in_is_never_a_messages_fault() {
    let odoo = Odoo::start().await;
    let gateway = gateway(&odoo, |_| ());
    odoo.set_broken("authenticate", "RuntimeError: a module's own mistake");
    let failure = gateway.push(&mail("1@x.test"), None, "<1@x.test>").await.unwrap_err();
    assert_eq!(failure.class, Class::Transient, "{failure}");
    assert_eq!(gateway.trouble().unwrap().failure, failure, "it is said");
}
