//! A bad day, logged at TRACE: whatever goes wrong, no secret, token or mail text shows anywhere.
#![expect(
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "test code: a failure here must stop the test"
)]

use crate::company::{JANE, JOHN, NOTIFICATIONS};
use crate::support::client::{SmtpClient, message, xoauth2};
use crate::support::entra::{Answer, CLIENT_SECRET, Entra, TokenCheck};
use crate::support::imap::{self, Imap};
use crate::support::odoo::{self, Odoo};
use crate::support::relay::{Config, Relay};
use crate::support::script::Rule;
use crate::support::smtp::{Fault, Smtp, Step};
use crate::support::tls::Tls;
use crate::support::wait::{SOON, until};
use crate::support::world::World;
use crate::support::{http, http::Response};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};
use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex};

const SUBMISSION_PASSWORD: &str = "5ubmission & p4ssword of Odoo";
const ADMIN_PASSWORD: &str = "the p4ge's own \"password\" <html>";
const WRONG_PASSWORD: &str = "typed by m1stake, nearly the right one";
const MARKER: &str = "the salary of everybody is 4711 crowns";
/// Every access token of the scripted Microsoft begins so: it finds those that nobody ever presented too.
const TOKEN_HEADER: &str = r#"{"typ":"JWT","alg":"HS256"}"#;
/// Exchange says 535 to this one, and 334 before it to the next.
const PAUL: &str = "paul@example.com";
const MARY: &str = "mary@example.com";
/// Nobody ever connected this one.
const NOBODY: &str = "nobody@example.com";
const BOUNCE: &str = "bounce@example.com";

/// Finds any of many texts, in whichever way they could have been written.
#[derive(Default)]
struct Search {
    /// By their first four bytes.
    forms: HashMap<[u8; 4], Vec<Vec<u8>>>,
    texts: BTreeSet<String>,
}

impl Search {
    fn new(texts: impl IntoIterator<Item = String>) -> Self {
        let mut search = Self::default();
        for text in texts {
            search.add(&text);
        }
        search
    }

    fn add(&mut self, text: &str) {
        if !self.texts.insert(text.to_owned()) {
            return;
        }
        let url: String = url::form_urlencoded::byte_serialize(text.as_bytes()).collect();
        let html =
            text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;");
        let hex: String = text.bytes().map(|byte| format!("{byte:02x}")).collect();
        let bytes = text.bytes().map(|byte| byte.to_string()).collect::<Vec<_>>().join(", ");
        let debug = format!("{text:?}").trim_matches('"').to_owned();
        let percent = url.replace('+', "%20");
        let mut forms = vec![text.to_owned(), url, percent, html, hex.to_uppercase(), hex, bytes, debug];
        // Inside something longer, base64 comes in three shapes; what its neighbours decide is left out.
        for before in 0..3 {
            let padded = [&b"\0\0\0"[..before], text.as_bytes()].concat();
            for engine in [&STANDARD, &URL_SAFE] {
                let whole = engine.encode(&padded);
                forms.push(whole[[0, 2, 3][before]..padded.len() / 3 * 4].to_owned());
            }
        }
        for form in forms {
            let form = form.into_bytes();
            let first = form[..4].try_into().unwrap();
            let known = self.forms.entry(first).or_default();
            if !known.contains(&form) {
                known.push(form);
            }
        }
    }

    /// What it finds, each with what stands around it.
    fn find(&self, place: &str, within: &[u8]) -> Vec<String> {
        let mut found = Vec::new();
        for (at, first) in within.windows(4).enumerate() {
            let Some(forms) = self.forms.get(first) else { continue };
            if let Some(form) = forms.iter().find(|form| within[at..].starts_with(form)) {
                let around = &within[at.saturating_sub(200)..within.len().min(at + form.len() + 20)];
                found.push(format!("{place}: {}", String::from_utf8_lossy(around)));
            }
        }
        found
    }
}

/// A world that keeps every access token presented to it, and whose Exchange believes none of Mary's.
async fn world() -> (World, Arc<Mutex<BTreeSet<String>>>) {
    let (tls, entra, odoo) = (Tls::new(), Entra::start().await, Odoo::start().await);
    let presented = Arc::new(Mutex::new(BTreeSet::new()));
    let (genuine, seen) = (entra.check(), Arc::clone(&presented));
    let check: TokenCheck = Arc::new(move |user, token| {
        seen.lock().unwrap().insert(token.to_owned());
        user != MARY && genuine(user, token)
    });
    let smtp = Smtp::start(&tls, Arc::clone(&check)).await;
    let imap = Imap::start(&tls, check).await;
    smtp.set_hook(imap.sent_items());
    smtp.set_generic_failure(true);
    imap.set_generic_failure(true);
    (World { tls, entra, smtp, imap, odoo }, presented)
}

/// A mailbox per class of token trouble, and how Microsoft answers it.
fn token_trouble() -> Vec<(String, Answer)> {
    let answers = [
        Answer::error(503, "temporarily_unavailable", 90_033, "A transient error has occurred."),
        Answer::error(429, "temporarily_unavailable", 90_055, "Too many requests.")
            .header("Retry-After", "1"),
        Answer::html(502, "<html>Bad Gateway</html>"),
        Answer::json(200, &serde_json::json!({"token_type": "Bearer"})),
        Answer::Cut,
        Answer::error(401, "invalid_client", 7_000_222, "The provided client secret keys are expired."),
        Answer::error(
            400,
            "invalid_grant",
            50_173,
            "The provided grant has expired due to it being revoked.",
        ),
        Answer::error(400, "interaction_required", 50_076, "You must use multi-factor authentication."),
        Answer::error(400, "unauthorized_client", 700_016, "Application was not found in the directory."),
        Answer::error(400, "something_new", 999_999, "Never seen before."),
    ];
    answers.into_iter().enumerate().map(|(n, answer)| (format!("trouble{n}@example.com"), answer)).collect()
}

fn mail(from: &str, to: &str, id: &str) -> Vec<u8> {
    [message(from, to, id, "Hi"), format!("{MARKER}\r\n").into_bytes()].concat()
}

async fn ask(relay: &Relay, method: &str, path: &str, cookie: &str, form: &[(&str, &str)]) -> Response {
    let body = url::form_urlencoded::Serializer::new(String::new()).extend_pairs(form).finish();
    let mut headers = vec![
        ("Host".to_owned(), format!("localhost:{}", relay.admin.port())),
        ("Content-Type".to_owned(), "application/x-www-form-urlencoded".to_owned()),
    ];
    if !cookie.is_empty() {
        headers.push(("Cookie".to_owned(), cookie.to_owned()));
    }
    http::request(relay.admin, method, path, &headers, body.as_bytes()).await.expect("an answer")
}

/// Tries a password at the login page; gives the session's cookie, and both pages.
async fn sign_in(relay: &Relay, password: &str) -> (String, Vec<Response>) {
    let cookie =
        |answer: &Response| answer.header("set-cookie").split(';').next().unwrap_or_default().to_owned();
    let form = ask(relay, "GET", "/login", "", &[]).await;
    let (_, csrf) = form.body.split_once("name=\"csrf\" value=\"").expect("a form");
    let csrf = csrf.split('"').next().unwrap().to_owned();
    let before = cookie(&form);
    let answer = ask(relay, "POST", "/login", &before, &[("csrf", &csrf), ("password", password)]).await;
    let after = cookie(&answer);
    (if after.is_empty() { before } else { after }, vec![form, answer])
}

/// What any user of the machine may read of a process, or its owner.
fn process(relay: &Relay) -> Vec<(String, Vec<u8>)> {
    let pid = relay.pid().expect("a running process");
    ["cmdline", "environ"]
        .map(|name| {
            let path = format!("/proc/{pid}/{name}");
            let bytes = std::fs::read(&path).unwrap();
            (path, bytes)
        })
        .to_vec()
}

fn set_up(world: &World, rust_log: &str) -> Config {
    let mut config = world.config();
    config.env("RUST_LOG", rust_log);
    config.text("submission", "user", "odoo");
    config.secret("submission-password", SUBMISSION_PASSWORD);
    config.text("submission", "password_file", "submission-password");
    config.secret("admin-password", ADMIN_PASSWORD);
    config.text("admin", "password_file", "admin-password");
    config.text("fetch", "poll", "100ms");
    config.text("delivery", "reply_timeout", "5s");
    let mailboxes = [NOTIFICATIONS, JOHN, JANE, PAUL, MARY, NOBODY].map(str::to_owned);
    for mailbox in mailboxes.into_iter().chain(token_trouble().into_iter().map(|(mailbox, _)| mailbox)) {
        let filter = format!("\"{mailbox}\"");
        let inbox = if [NOTIFICATIONS, JANE, MARY].contains(&mailbox.as_str()) { "true" } else { "false" };
        config.mailbox(&mailbox, &[("from_filter", &filter), ("inbox", inbox)]);
    }
    config
}

/// Everything goes wrong once; gives what was said meanwhile, by place.
async fn bad_day(world: &World, config: &Config, search: &mut Search) -> Vec<(String, Vec<u8>)> {
    let mut said: Vec<(String, Vec<u8>)> = Vec::new();
    let trouble = token_trouble();
    // Short-lived, so that tokens are rotated all the while.
    world.entra.set_expires_in(4);
    for (mailbox, answer) in &trouble {
        world.entra.script(Rule::new((), answer.clone()).always().only(mailbox));
    }
    let connected = [NOTIFICATIONS, JOHN, JANE, PAUL, MARY];
    for mailbox in connected.into_iter().chain(trouble.iter().map(|(mailbox, _)| mailbox.as_str())) {
        let output = config.connect(mailbox, &world.entra.add_mailbox(mailbox)).await;
        said.push((format!("connect {mailbox}"), format!("{output:?}").into_bytes()));
    }
    let refused =
        Fault::reply("535 5.7.139 Authentication unsuccessful, SmtpClientAuthentication is disabled.");
    world.smtp.script(Rule::new(Step::Auth, refused).always().only(PAUL));
    world
        .smtp
        .script(Rule::new(Step::AfterDot, Fault::reply("554 5.2.3 Message too large")).always().only(JANE));
    for (command, fault) in [
        ("AUTHENTICATE", imap::Fault::no("AUTHENTICATE failed.")),
        ("SELECT", imap::Fault::no("Server Unavailable. 15")),
        ("UID FETCH", imap::Fault::bye("Session invalidated - AccessTokenExpired")),
        ("UID FETCH", imap::Fault::CutMidway),
    ] {
        let rule = Rule::new(command, fault);
        // Who authenticates is not known before.
        world.imap.script(if command == "AUTHENTICATE" { rule } else { rule.only(JANE) });
    }
    let reason = "Traceback (most recent call last): ValueError".to_owned();
    for answer in [odoo::Answer::Fault(1, reason), odoo::Answer::Status(502)] {
        world.odoo.script(Rule::new((), answer));
    }
    world.odoo.script(Rule::new((), odoo::Answer::NoRoute).always().only("refused@t"));

    let mut relay = config.start().await;
    let (mut client, _) = SmtpClient::connect(relay.submission).await;
    client.cmd("ehlo [127.0.0.1]").await;
    let plain = |password: &str| format!("AUTH PLAIN {}", STANDARD.encode(format!("\0odoo\0{password}")));
    assert_eq!(client.cmd(&plain(WRONG_PASSWORD)).await.code, 535);
    assert_eq!(client.cmd(&format!("AUTH {SUBMISSION_PASSWORD}")).await.code / 100, 5);
    assert_eq!(client.cmd(&plain(SUBMISSION_PASSWORD)).await.code, 235);
    let senders =
        connected.into_iter().chain([NOBODY]).chain(trouble.iter().map(|(mailbox, _)| mailbox.as_str()));
    for from in senders {
        let reply = client.send(BOUNCE, &["a@x.test"], &mail(from, "a@x.test", &format!("{from}.t"))).await;
        assert_eq!(reply.code, 250, "{reply:?}");
    }
    world.imap.deliver(JANE, "INBOX", &mail("c@x.test", JANE, "jane@t"));
    for id in ["first@t", "refused@t", "last@t"] {
        world.imap.deliver(NOTIFICATIONS, "INBOX", &mail("c@x.test", NOTIFICATIONS, id));
    }
    until(SOON, "John's mail and ours", || world.smtp.count() >= 2).await;
    // Each trouble is waited out, longer every time.
    let taken = || world.odoo.taken().iter().any(|post| post.text().contains("last@t"));
    until(3 * SOON, "the last push", taken).await;
    until(3 * SOON, "every trouble of Jane's inbox", || world.imap.pending() == 0).await;
    for (mailbox, _) in &trouble {
        until(SOON, mailbox, || {
            relay.log().iter().any(|l| l.contains("token failed") && l.contains(mailbox))
        })
        .await;
    }
    for part in ["5.7.139", "5.2.3", "quarantined", MARY, NOBODY] {
        relay.wait_for_log(part).await;
    }
    world.odoo.set_password("another");
    let pushed = relay.count_log("odoo failed");
    world.imap.deliver(NOTIFICATIONS, "INBOX", &mail("c@x.test", NOTIFICATIONS, "locked@t"));
    until(SOON, "a refused password", || relay.count_log("odoo failed") > pushed).await;

    for arguments in [
        &["check"][..],
        &["status"],
        &["status", "--json"],
        &["doctor"],
        &["doctor", "--json"],
        &["doctor", MARY],
        &["queue", "list"],
        &["queue", "list", "--json"],
        &["route", "--from", JOHN],
        &["invite", NOBODY],
        &["store", "rotate-key"],
        &["run"],
    ] {
        let output = config.cli(arguments).await;
        let text = format!("{}{}", output.stdout, output.stderr);
        assert!(!text.is_empty(), "{arguments:?}");
        said.push((arguments.join(" "), text.into_bytes()));
    }
    // A command that lasts: what is to be seen of it from outside.
    let mut device = config.spawn_command(&["connect", NOBODY, "--device"]);
    device.wait_for_log("TEST12345").await;
    let codes = world.entra.codes();
    assert_eq!(codes.len(), 1);
    codes.iter().for_each(|code| search.add(code));
    said.extend(process(&device));
    device.kill9().await;
    said.push(("connect --device".to_owned(), device.log().join("\n").into_bytes()));

    let (_, pages) = sign_in(&relay, WRONG_PASSWORD).await;
    let (cookie, more) = sign_in(&relay, ADMIN_PASSWORD).await;
    let mut pages: Vec<(String, Response)> =
        pages.into_iter().chain(more).map(|page| ("/login".to_owned(), page)).collect();
    for path in ["/", "/status", "/metrics", "/healthz", "/nowhere"] {
        for cookie in ["", cookie.as_str()] {
            pages.push((path.to_owned(), ask(&relay, "GET", path, cookie, &[]).await));
        }
    }
    assert!(
        pages.iter().any(|(path, page)| path == "/" && page.body.contains(JOHN)),
        "the page was not seen"
    );
    search.add(cookie.split_once('=').expect("a cookie").1);
    said.extend(pages.into_iter().map(|(path, page)| (path, page.body.into_bytes())));
    said.extend(process(&relay));
    until(SOON, "rotations", || world.entra.refreshes(JOHN) >= 3).await;
    // As it lies there while it works, and after a crash.
    for moment in ["running", "killed"] {
        if moment == "killed" {
            relay.kill9().await;
        }
        for name in ["relay.db", "relay.db-wal", "relay.db-shm"] {
            let bytes = std::fs::read(config.dir().join(name)).unwrap();
            said.push((format!("{name}, {moment}"), bytes));
        }
    }
    said.push(("the log".to_owned(), relay.log().join("\n").into_bytes()));
    said
}

async fn shows_nothing(rust_log: &str, format: &str) {
    let (world, presented) = world().await;
    let mut config = set_up(&world, rust_log);
    config.text("log", "format", format);
    let passwords = [CLIENT_SECRET, odoo::PASSWORD, SUBMISSION_PASSWORD, ADMIN_PASSWORD, WRONG_PASSWORD];
    let mut search = Search::new(passwords.map(str::to_owned));
    search.add(TOKEN_HEADER);
    let said = bad_day(&world, &config, &mut search).await;
    let refresh_tokens = world.entra.refresh_tokens();
    let access_tokens = presented.lock().unwrap().clone();
    refresh_tokens.iter().chain(&access_tokens).for_each(|token| search.add(token));
    // Fifteen were connected with one each, and John's alone was rotated three times; five mailboxes opened a session.
    assert!(refresh_tokens.len() >= 15 + 3, "{}", refresh_tokens.len());
    assert!(access_tokens.len() >= 4, "{}", access_tokens.len());
    // Five passwords, the header, a device code, a cookie.
    assert_eq!(search.texts.len(), 5 + 3 + refresh_tokens.len() + access_tokens.len());

    let texts = Search::new([MARKER.to_owned()]);
    let mut found = Vec::new();
    for (place, bytes) in &said {
        found.extend(search.find(place, bytes));
        if !place.starts_with("relay.db") {
            found.extend(texts.find(place, bytes));
        }
    }
    assert!(found.is_empty(), "{} found:\n{}", found.len(), found.join("\n---\n"));

    // There was something to search, and the search finds what is there.
    let (_, log) = said.last().unwrap();
    let log = String::from_utf8_lossy(log);
    assert!(log.lines().any(|line| line.contains("DEBUG") || line.contains("TRACE")), "{log}");
    for place in ["the log", "status", "doctor", "queue list", "/", "relay.db, running", "relay.db, killed"] {
        // What is in the store may still be in its write-ahead log alone.
        let (name, moment) = place.split_once(", ").unwrap_or((place, ""));
        let here = |known: &str| {
            if moment.is_empty() {
                known == place
            } else {
                known.starts_with(name) && known.ends_with(moment)
            }
        };
        let known = Search::new([PAUL.to_owned()]);
        let seen = |(known_place, bytes): &(String, Vec<u8>)| {
            here(known_place) && !known.find(known_place, bytes).is_empty()
        };
        assert!(said.iter().any(seen), "{PAUL} in {place}");
    }
    let in_store = |(name, bytes): &&(String, Vec<u8>)| {
        name.starts_with("relay.db") && !texts.find(name, bytes).is_empty()
    };
    assert!(said.iter().any(|part| in_store(&part)), "the waiting mail lies in the store");
    let processes: Vec<_> = said.iter().filter(|(place, _)| place.starts_with("/proc/")).collect();
    assert_eq!(processes.len(), 4);
    assert!(processes.iter().all(|(place, bytes)| !bytes.is_empty()
        && (place.ends_with("cmdline")
            || !Search::new([format!("RUST_LOG={rust_log}")]).find(place, bytes).is_empty())));
    let token = access_tokens.first().unwrap();
    for leak in [
        format!("A1 AUTHENTICATE XOAUTH2 {}", xoauth2(JOHN, token)),
        format!("authorization: Bearer {token}"),
        format!("AUTH PLAIN {}", STANDARD.encode(format!("\0odoo\0{SUBMISSION_PASSWORD}"))),
        url::form_urlencoded::Serializer::new(String::new())
            .append_pair("client_secret", CLIENT_SECRET)
            .append_pair("password", ADMIN_PASSWORD)
            .finish(),
        format!("refresh_token={}", refresh_tokens[0]),
        format!("{:?}", odoo::PASSWORD.as_bytes()),
        format!("{SUBMISSION_PASSWORD:?}"),
        // A token that nobody presented.
        format!("Bearer {}", world.entra.access_token(JOHN, 1)),
    ] {
        assert!(!search.find("", leak.as_bytes()).is_empty(), "{leak}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_day_at_trace_level_shows_no_secret() {
    shows_nothing("trace", "text").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nor_does_it_where_rust_log_names_what_talks_most() {
    shows_nothing(
        "trace,async_imap::imap_stream=trace,async_imap::client=trace,imap_proto::parser=trace,hyper::proto=trace,\
         hyper_util::client=trace,reqwest::connect=trace,lettre::transport=trace,rustls::conn=trace,\
         rustls::client=trace,[{}]=trace",
        "json",
    )
    .await;
}
