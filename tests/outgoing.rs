//! Mail from Odoo to Microsoft 365.

use crate::company::{self, JANE, JOHN, NOTIFICATIONS};
use crate::support::client::message;
use crate::support::dovecot::Dovecot;
use crate::support::smtp::{Fault, Step};
use crate::support::wait::{SOON, until};
use crate::support::world::World;

const BOUNCE: &str = "bounce@example.com";

#[tokio::test]
async fn mail_goes_out_through_the_mailbox_that_the_from_names() {
    let world = World::start().await;
    let (_config, relay) = company::start(&world).await;
    for (from, id) in [(JOHN, "1@t"), (JANE, "2@t"), ("\"Eve\" <eve@foreign.test>", "3@t")] {
        let reply = relay.send(BOUNCE, &["a@x.test"], &message(from, "a@x.test", id, "Hi")).await;
        assert_eq!(reply.code, 250, "{reply:?}");
        assert!(reply.text.contains("queued as"), "{reply:?}");
    }
    until(SOON, "three mails at Microsoft", || world.smtp.count() == 3).await;
    let delivered = world.smtp.delivered();
    let of = |id: &str| delivered.iter().find(|mail| mail.text().contains(id)).unwrap();
    for (id, mailbox, from) in [
        ("1@t", JOHN, JOHN),
        ("2@t", JANE, JANE),
        ("3@t", NOTIFICATIONS, "\"Eve\" <notifications@example.com>"),
    ] {
        let mail = of(id);
        assert_eq!(mail.mailbox, mailbox);
        assert_eq!(mail.mail_from, mailbox, "Exchange takes mail only from the mailbox itself");
        assert_eq!(mail.recipients, ["a@x.test"]);
        assert!(mail.text().contains(&format!("From: {from}\r\n")), "{}", mail.text());
    }
    assert_eq!(relay.count_log("accepted"), 3);
    until(SOON, "each mail logged as sent", || relay.count_log(" sent ") + relay.count_log(" sent") >= 3)
        .await;
}

/// What real mail does to whoever touches it: each must arrive as it was sent.
fn odd_messages() -> Vec<(&'static str, Vec<u8>)> {
    let head = |id: &str| {
        format!(
            "Date: Fri, 20 Nov 2026 10:00:00 +0000\r\nFrom: John <{JOHN}>\r\nTo: a@x.test\r\nMessage-Id: <{id}@t>\r\n"
        )
    };
    let with = |id: &str, rest: &[u8]| [head(id).as_bytes(), rest].concat();
    vec![
        ("plain", with("plain", b"Subject: plain\r\n\r\nbody\r\n")),
        ("dots", with("dots", b"\r\n.\r\n..\r\n...\r\n.leading\r\nend.\r\n")),
        ("blank-end", with("blank-end", b"\r\nbody\r\n\r\n\r\n\r\n")),
        ("latin1", with("latin1", b"Subject: caf\xe9\r\n\r\nna\xefve \xff\xfe\r\n")),
        ("utf8", with("utf8", "Subject: Grüße\r\n\r\nžluťoučký 😊\r\n".as_bytes())),
        ("no-body", with("no-body", b"\r\n")),
        (
            "folded",
            with(
                "folded",
                b"References: <a@t>\r\n\t<b@t>\r\n <c@t>\r\nX-Odoo-Objects: mail.message-7\r\n\r\nx\r\n",
            ),
        ),
        ("long-line", with("long-line", &[b"\r\n".as_slice(), &vec![b'x'; 5_000], b"\r\n"].concat())),
        (
            "large",
            with(
                "large",
                &[
                    b"\r\n".as_slice(),
                    &b"0123456789abcdef 0123456789abcdef 0123456789abcdef\r\n".repeat(60_000),
                ]
                .concat(),
            ),
        ),
    ]
}

#[tokio::test]
async fn a_real_server_receives_every_byte() {
    let world = World::start().await;
    let dovecot = Dovecot::start(&world.tls, &world.entra).await;
    let mut config = company::config(&world);
    config.text("microsoft", "smtp", &dovecot.smtp_endpoint());
    company::connect(&world, &config).await;
    let relay = config.start().await;

    let messages = odd_messages();
    for (name, raw) in &messages {
        let reply = relay.send(BOUNCE, &["a@x.test", "hidden@x.test"], raw).await;
        assert_eq!(reply.code, 250, "{name}: {reply:?}");
    }
    let stranger =
        b"X-First: 1\r\nfrom: =?utf-8?q?J=C3=B6rg?= <joerg@foreign.test>\r\nReply-To: joerg@foreign.test\r\n\
        Message-Id: <stranger@t>\r\n\r\n.body\r\n";
    relay.send(BOUNCE, &["a@x.test"], stranger).await;

    let sunk = dovecot.wait_for_sunk(messages.len() + 1).await;
    for (name, raw) in &messages {
        let id = format!("<{name}@t>");
        let mail = sunk.iter().find(|mail| String::from_utf8_lossy(&mail.raw).contains(&id)).unwrap();
        assert_eq!(mail.mail_from, JOHN, "{name}");
        assert_eq!(mail.recipients, ["a@x.test", "hidden@x.test"], "{name}");
        let trace = mail.raw.strip_suffix(raw.as_slice()).map(String::from_utf8_lossy);
        let same = trace.is_some_and(|trace| {
            trace.starts_with("Received: by outlook-relay (outlook-relay) ")
                && trace.matches("\r\n").count() == 2
        });
        assert!(same, "{name}:\n{}\n---\n{}", mail.raw.escape_ascii(), raw.escape_ascii());
    }
    let mail = sunk.iter().find(|mail| String::from_utf8_lossy(&mail.raw).contains("stranger@t")).unwrap();
    assert_eq!(mail.mail_from, NOTIFICATIONS);
    let text = String::from_utf8_lossy(&mail.raw).into_owned();
    let (trace, text) = text.split_at(text.find("X-First").unwrap());
    assert!(trace.starts_with("Received: ") && trace.contains("\r\nDate: "), "{trace}");
    let (from, others): (Vec<&str>, Vec<&str>) =
        text.split_inclusive("\r\n").partition(|line| line.starts_with("from:"));
    assert_eq!(from.len(), 1, "{text}");
    assert!(from[0].contains("<notifications@example.com>") && from[0].contains("=?"), "{text}");
    let original = String::from_utf8_lossy(stranger).into_owned();
    let untouched: Vec<&str> =
        original.split_inclusive("\r\n").filter(|line| !line.starts_with("from:")).collect();
    assert_eq!(others, untouched);
}

#[tokio::test]
async fn an_expired_token_costs_no_mail() {
    let world = World::start().await;
    let dovecot = Dovecot::start(&world.tls, &world.entra).await;
    let mut config = company::config(&world);
    config.text("microsoft", "smtp", &dovecot.smtp_endpoint());
    company::connect(&world, &config).await;
    // Dovecot sees it as expired, while the relay was told that it is good for an hour.
    world.entra.set_lifetime(Some(-60));
    let relay = config.start().await;
    relay.wait_for_log(&format!("token refreshed mailbox={JOHN}")).await;
    world.entra.set_lifetime(None);

    relay.send(BOUNCE, &["a@x.test"], &message(JOHN, "a@x.test", "expired@t", "Hi")).await;
    dovecot.wait_for_sunk(1).await;
    assert_eq!(world.entra.refreshes(JOHN), 2, "one forced refresh");
    let trouble = |line: &String| {
        line.contains(JOHN) && ["deferred", "failed", "paused"].iter().any(|event| line.contains(event))
    };
    assert!(!relay.log().iter().any(trouble), "{:#?}", relay.log());
}

#[tokio::test]
async fn one_refused_recipient_does_not_cost_the_others_their_mail() {
    let world = World::start().await;
    let (config, relay) = company::start(&world).await;
    let refusal = Fault::reply("550 5.1.10 RESOLVER.ADR.RecipientNotFound; Recipient not found");
    world.smtp.script(crate::support::script::Rule::new(Step::Rcpt, refusal).always().only("gone@x.test"));
    let recipients = ["a@x.test", "gone@x.test", "b@x.test"];
    relay.send(BOUNCE, &recipients, &message(JOHN, "a@x.test", "three@t", "Hi")).await;
    until(SOON, "the mail", || world.smtp.count() == 1).await;
    assert_eq!(world.smtp.delivered()[0].recipients, ["a@x.test", "b@x.test"]);
    let line = relay.wait_for_log("gone@x.test").await;
    relay.wait_for_log("5.1.10").await;
    assert!(line.contains("ERROR") || relay.count_log("ERROR") > 0, "{line}");
    let queue = company::queue(&config).await;
    assert_eq!(queue.len(), 1, "{queue:?}");
    assert_eq!(queue[0]["state"], "failed");
    let states: Vec<_> =
        queue[0]["recipients"].as_array().unwrap().iter().map(|r| r["state"].clone()).collect();
    assert_eq!(states, ["sent", "failed", "sent"]);
    assert!(queue[0]["recipients"][1]["reply"].as_str().unwrap().contains("5.1.10"), "{queue:?}");
}

#[tokio::test]
async fn connections_are_kept_and_never_more_than_configured() {
    let world = World::start().await;
    let mut config = company::config(&world);
    config.raw("delivery", "connections", "2");
    company::connect(&world, &config).await;
    let relay = config.start().await;
    let before = world.smtp.connections();
    for n in 0..40 {
        relay.send(BOUNCE, &["a@x.test"], &message(JOHN, "a@x.test", &format!("{n}@t"), "Hi")).await;
    }
    until(SOON, "forty mails", || world.smtp.count() == 40).await;
    assert!(world.smtp.max_connections(JOHN) <= 2, "{}", world.smtp.max_connections(JOHN));
    assert!(world.smtp.connections() - before <= 2, "connections are reused");
}

#[tokio::test]
async fn pacing_holds_back_and_loses_nothing() {
    let world = World::start().await;
    let mut config = company::config(&world);
    config.raw("delivery", "messages_per_minute", "3");
    company::connect(&world, &config).await;
    let relay = config.start().await;
    for n in 0..5 {
        relay.send(BOUNCE, &["a@x.test"], &message(JOHN, "a@x.test", &format!("{n}@t"), "Hi")).await;
    }
    until(SOON, "the first three", || world.smtp.count() == 3).await;
    relay.send(BOUNCE, &["a@x.test"], &message(JANE, "a@x.test", "jane@t", "Hi")).await;
    until(SOON, "another mailbox's mail", || world.smtp.count() == 4).await;
    assert_eq!(world.smtp.delivered()[3].mailbox, JANE);
    until(SOON, "four log lines", || relay.count_log(" sent") == 4).await;
    let queue = company::queue(&config).await;
    assert_eq!(queue.len(), 2, "two of John's wait for the next minute: {queue:#?}");
}
