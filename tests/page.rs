//! The page over bare HTTP: who may see and do what, and each attack that applies to it.
#![expect(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "test code: a failure here must stop the test"
)]

use crate::company::{self, JANE, JOHN};
use crate::support::client::message;
use crate::support::http::{self, Response};
use crate::support::relay::{Config, Relay};
use crate::support::wait::SOON;
use crate::support::world::World;
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

pub(crate) const PASSWORD: &str = "correct horse battery staple";
const FORM: (&str, &str) = ("Content-Type", "application/x-www-form-urlencoded");

/// A browser, as far as HTTP tells: the name that it asks for, its cookie, and what it sends besides.
pub(crate) struct Visitor {
    at: SocketAddr,
    host: String,
    cookie: Option<String>,
    extra: Vec<(&'static str, &'static str)>,
}

impl Visitor {
    pub(crate) fn new(relay: &Relay) -> Self {
        let host = format!("localhost:{}", relay.admin.port());
        Self { at: relay.admin, host, cookie: None, extra: Vec::new() }
    }

    fn by_name(mut self, host: &str) -> Self {
        host.clone_into(&mut self.host);
        self
    }

    pub(crate) fn with(mut self, name: &'static str, value: &'static str) -> Self {
        self.extra.push((name, value));
        self
    }

    async fn ask(&mut self, method: &str, path: &str, body: &str) -> Response {
        let mut headers = vec![("Host", self.host.as_str()), FORM];
        headers.extend(self.cookie.as_deref().map(|cookie| ("Cookie", cookie)));
        headers.extend(&self.extra);
        let answer = request(self.at, method, path, &headers, body).await;
        let cookie = answer.header("set-cookie");
        if !cookie.is_empty() {
            self.cookie = Some(cookie.split(';').next().unwrap().to_owned());
        }
        answer
    }

    pub(crate) async fn get(&mut self, path: &str) -> Response {
        self.ask("GET", path, "").await
    }

    pub(crate) async fn post(&mut self, path: &str, fields: &[(&str, &str)]) -> Response {
        let body = url::form_urlencoded::Serializer::new(String::new()).extend_pairs(fields).finish();
        self.ask("POST", path, &body).await
    }

    /// The token of the forms on a page.
    pub(crate) async fn csrf(&mut self, path: &str) -> String {
        let page = self.get(path).await;
        between(&page.body, "name=\"csrf\" value=\"", "\"").unwrap_or_else(|| panic!("{path}: {page:?}"))
    }

    pub(crate) async fn sign_in(&mut self, password: &str) -> Response {
        let csrf = self.csrf("/login").await;
        self.post("/login", &[("csrf", &csrf), ("password", password)]).await
    }

    /// Presses Connect, and gives the address that leads on.
    async fn connect(&mut self, mailbox: &str) -> String {
        let csrf = self.csrf("/").await;
        link(&self.post(&format!("/connect/{mailbox}"), &[("csrf", &csrf)]).await)
    }

    /// Signs in at Microsoft as somebody, or says no, and gives the path that Microsoft sends back to.
    async fn at_microsoft(&self, address: &str, account: Option<&str>) -> String {
        let url = url::Url::parse(address).unwrap();
        let answer = if account.is_some() { "yes" } else { "no" };
        let body = url::form_urlencoded::Serializer::new(String::new())
            .append_pair("login", account.unwrap_or_default())
            .append_pair("answer", answer)
            .finish();
        let path = format!("{}?{}", url.path(), url.query().unwrap());
        let at = url.socket_addrs(|| None).unwrap()[0];
        let answer = request(at, "POST", &path, &[FORM], &body).await;
        let back = url::Url::parse(answer.header("location")).unwrap();
        format!("{}?{}", back.path(), back.query().unwrap())
    }
}

/// One request on a connection of its own.
async fn request(at: SocketAddr, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Response {
    let headers: Vec<_> = headers.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
    http::request(at, method, path, &headers, body.as_bytes()).await.expect("an answer")
}

fn between(text: &str, before: &str, after: &str) -> Option<String> {
    let (_, rest) = text.split_once(before)?;
    Some(rest.split_once(after)?.0.replace("&amp;", "&"))
}

/// Where a page leads on to.
fn link(page: &Response) -> String {
    assert_eq!(page.status, 200, "{page:?}");
    let link = between(&page.body, "class=\"button\" href=\"", "\"").unwrap_or_else(|| panic!("{page:?}"));
    assert!(page.body.contains("http-equiv=\"refresh\""), "{page:?}");
    link
}

/// A company whose mailboxes nobody has connected yet.
async fn unconnected(world: &World, set: impl FnOnce(&mut Config)) -> (Config, Relay) {
    let mut config = company::config(world);
    set(&mut config);
    let relay = config.start().await;
    (config, relay)
}

pub(crate) fn with_password(config: &mut Config) {
    config.secret("admin-password", PASSWORD);
    config.text("admin", "password_file", "admin-password");
}

/// Whether somebody has consented for a mailbox.
async fn is_connected(config: &Config, mailbox: &str) -> bool {
    let status: serde_json::Value =
        serde_json::from_str(&config.cli(&["status", "--json"]).await.stdout).unwrap();
    let mailboxes = status["mailboxes"].as_array().unwrap();
    let found = mailboxes.iter().find(|one| one["address"] == mailbox).unwrap();
    !found["consent"].is_null()
}

#[tokio::test]
async fn without_a_password_the_page_is_for_this_machine_alone() {
    let world = World::start().await;
    let (_config, relay) =
        unconnected(&world, |config| config.text("admin", "public_url", "https://odoo.example.com")).await;
    let page = Visitor::new(&relay).get("/").await;
    assert_eq!(page.status, 200);
    assert!(page.body.contains(JOHN) && page.body.contains("Not connected"), "{page:?}");

    let proxied = [
        Visitor::new(&relay).with("X-Forwarded-For", "192.0.2.1"),
        Visitor::new(&relay).with("Via", "1.1 proxy"),
        Visitor::new(&relay).by_name("odoo.example.com"),
    ];
    for mut visitor in proxied {
        for (method, path) in [("GET", "/"), ("GET", "/status"), ("GET", "/metrics"), ("POST", "/doctor")] {
            let refused = visitor.ask(method, path, "").await;
            assert_eq!(refused.status, 403, "{path}: {refused:?}");
            assert!(!refused.body.contains(JOHN), "{refused:?}");
        }
        assert_eq!(visitor.get("/healthz").await.body, "well\n");
        for path in [format!("/connect/{JOHN}"), format!("/test/{JOHN}")] {
            assert_eq!(visitor.post(&path, &[]).await.status, 403, "{path}");
        }
    }
    let old = b"GET / HTTP/1.0\r\nHost: localhost\r\n\r\n";
    assert!(raw(relay.admin, old).await.contains("403 Forbidden"), "the default of nginx before 1.29.7");
}

#[tokio::test]
async fn names_that_were_rebound_get_nothing() {
    let world = World::start().await;
    let (_config, relay) = unconnected(&world, |_| {}).await;
    for host in ["evil.example", "localhost.evil.example", "odoo.example.com", "", "10.0.0.1"] {
        for path in ["/", "/login", "/status", "/metrics", "/healthz", "/invite/x", "/page.js", "/nowhere"] {
            let refused = Visitor::new(&relay).by_name(host).get(path).await;
            assert_eq!(refused.status, 421, "{host} {path}");
            assert!(!refused.body.contains(JOHN) && refused.header("set-cookie").is_empty(), "{refused:?}");
        }
    }
    let twice = b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\nConnection: close\r\n\r\n";
    assert!(!raw(relay.admin, twice).await.contains("200 OK"));
}

#[tokio::test]
async fn every_answer_carries_the_policy() {
    let world = World::start().await;
    let (_config, relay) = unconnected(&world, |_| {}).await;
    for path in
        ["/", "/login", "/status", "/metrics", "/healthz", "/invite/x", "/page.js", "/page.css", "/nowhere"]
    {
        let answer = Visitor::new(&relay).get(path).await;
        let policy = answer.header("content-security-policy");
        assert!(policy.starts_with("default-src 'none';") && !policy.contains("unsafe"), "{path}: {policy}");
        for (name, value) in [
            ("x-content-type-options", "nosniff"),
            ("cache-control", "no-store"),
            ("referrer-policy", "same-origin"),
        ] {
            assert_eq!(answer.header(name), value, "{path}");
        }
    }
    let mut visitor = Visitor::new(&relay);
    let cookie = visitor.get("/").await.header("set-cookie").to_owned();
    assert!(cookie.contains("; HttpOnly; SameSite=Lax") && !cookie.contains("Secure"), "{cookie}");
    assert_eq!(visitor.get("/").await.header("set-cookie"), "", "once is enough");
}

#[tokio::test]
async fn forged_forms_do_nothing() {
    let world = World::start().await;
    let (_config, relay) = unconnected(&world, |_| {}).await;
    let mut visitor = Visitor::new(&relay);
    let csrf = visitor.csrf("/").await;
    let theirs = Visitor::new(&relay).csrf("/").await;
    let path = format!("/connect/{JOHN}");
    let wrong_tokens: [&[(&str, &str)]; 4] = [
        &[],
        &[("csrf", "")],
        &[("csrf", &theirs)],
        &[("csrf", "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA")],
    ];
    for fields in wrong_tokens {
        assert_eq!(visitor.post(&path, fields).await.status, 403, "{fields:?}");
    }
    let own = format!("http://{}", visitor.host);
    for (name, value, status) in [
        ("Origin", "https://evil.example", 403),
        ("Origin", "http://localhost:1", 403),
        ("Origin", "null", 403),
        ("Sec-Fetch-Site", "cross-site", 403),
        ("Sec-Fetch-Site", "same-site", 403),
        ("Sec-Fetch-Site", "same-origin", 200),
        ("Origin", own.as_str(), 200),
    ] {
        let cookie = visitor.cookie.clone().unwrap();
        let headers = [("Host", visitor.host.as_str()), FORM, ("Cookie", &cookie), (name, value)];
        let body = format!("csrf={csrf}");
        let answer = request(relay.admin, "POST", &path, &headers, &body).await;
        assert_eq!(answer.status, status, "{name}: {value}");
    }
    assert_eq!(visitor.post(&format!("/test/{JOHN}"), &[]).await.status, 403);
    let mut elsewhere = Visitor::new(&relay).with("Origin", "https://evil.example");
    assert_eq!(elsewhere.post("/doctor", &[]).await.status, 403);
    assert_eq!(visitor.get(&path).await.status, 405, "a link does nothing");
    assert_eq!(visitor.post("/connect/nobody@example.com", &[("csrf", &csrf)]).await.status, 404);
}

#[tokio::test]
async fn the_password_opens_the_page_and_guessing_it_is_slow() {
    let world = World::start().await;
    let (config, relay) = unconnected(&world, |config| {
        with_password(config);
        config.text("admin", "public_url", "https://odoo.example.com");
    })
    .await;
    let mut visitor = Visitor::new(&relay);
    let away = visitor.get("/").await;
    assert_eq!((away.status, away.header("location")), (303, "/login"));
    assert!(!away.body.contains(JOHN));
    let before = visitor.cookie.clone();
    let signed_in = visitor.sign_in(PASSWORD).await;
    assert_eq!((signed_in.status, signed_in.header("location")), (303, "/"), "{signed_in:?}");
    assert_ne!(visitor.cookie, before, "what was in the browser before does not become a signed-in session");
    assert!(visitor.get("/").await.body.contains(JOHN));
    let mut fixed = Visitor::new(&relay);
    fixed.cookie = before;
    assert_eq!(fixed.get("/").await.status, 303);

    // Programs on this machine need no password; from elsewhere they do.
    assert!(config.cli(&["status"]).await.stdout.contains(JOHN));
    assert_eq!(Visitor::new(&relay).get("/metrics").await.status, 200);
    assert_eq!(Visitor::new(&relay).by_name("odoo.example.com").get("/status").await.status, 403);

    let csrf = visitor.csrf("/").await;
    assert_eq!(visitor.post("/logout", &[]).await.status, 403, "nobody else signs us out");
    assert_eq!(visitor.post("/logout", &[("csrf", &csrf)]).await.status, 303);
    assert_eq!(visitor.get("/").await.status, 303);

    // Strangers guess, all at once; who sits on the machine gets in all the same.
    let mut stranger = Visitor::new(&relay).by_name("odoo.example.com");
    let cookie = stranger.get("/login").await.header("set-cookie").to_owned();
    assert!(cookie.starts_with("__Host-") && cookie.contains("; Secure"), "{cookie}");
    let csrf = stranger.csrf("/login").await;
    let guesses = (0..20).map(|n| {
        let mut guess = Visitor::new(&relay).by_name("odoo.example.com");
        guess.cookie = stranger.cookie.clone();
        let csrf = csrf.clone();
        async move { guess.post("/login", &[("csrf", &csrf), ("password", &format!("guess {n}"))]).await }
    });
    let answers = futures_util::future::join_all(guesses).await;
    let looked_at = answers.iter().filter(|answer| answer.status == 403).count();
    assert!(looked_at <= 6, "{looked_at} guesses were looked at");
    let refused = answers.iter().find(|answer| answer.status == 429).expect("a refusal");
    assert!(!refused.header("retry-after").is_empty(), "{refused:?}");
    assert_eq!(stranger.sign_in(PASSWORD).await.status, 429, "even the right one is not looked at now");
    assert_eq!(visitor.sign_in(PASSWORD).await.status, 303);
    for line in relay.log() {
        assert!(!line.contains(PASSWORD) && !line.contains("guess "), "{line}");
    }
}

#[tokio::test]
async fn an_invitation_works_once_and_for_its_mailbox_only() {
    let world = World::start().await;
    let (config, relay) = unconnected(&world, |_| {}).await;
    // Asked by address, the page sends the administrator to the name that Microsoft sends back to.
    let by_address = format!("127.0.0.1:{}", relay.admin.port());
    let mut administrator = Visitor::new(&relay).by_name(&by_address);
    let for_john = administrator.connect(JOHN).await;
    let for_jane = administrator.connect(JANE).await;
    let home = format!("http://localhost:{}", relay.admin.port());
    let path = for_john.strip_prefix(&home).unwrap().to_owned();
    let janes = for_jane.strip_prefix(&home).unwrap().to_owned();

    let (said, tag) = path.split_once('.').unwrap();
    let (janes_said, janes_tag) = janes.split_once('.').unwrap();
    for forged in [
        format!("{said}.{janes_tag}"),
        format!("{janes_said}.{tag}"),
        said.to_owned(),
        format!("{path}A"),
        "/invite/..%2f..%2fstatus".to_owned(),
        "/invite/%00".to_owned(),
        format!("/invite/{}", "A".repeat(5_000)),
    ] {
        let mut owner = Visitor::new(&relay);
        let page = owner.get(&forged).await;
        assert!(page.status == 404 && !page.body.contains("Sign in at Microsoft"), "{forged}: {page:?}");
        let csrf = owner.csrf("/").await;
        assert_eq!(owner.post(&forged, &[("csrf", &csrf)]).await.status, 404, "{forged}");
    }

    // Jane's link does not connect John, whoever signs in.
    let mut jane = Visitor::new(&relay);
    let csrf = jane.csrf(&janes).await;
    assert_eq!(jane.post(&janes, &[]).await.status, 403, "no token of the form");
    let microsoft = link(&jane.post(&janes, &[("csrf", &csrf)]).await);
    assert!(
        microsoft.starts_with(&world.entra.authority()) && microsoft.contains("login_hint=jane%40"),
        "{microsoft}"
    );
    let back = jane.at_microsoft(&microsoft, Some(JOHN)).await;
    let wrong = jane.get(&back).await;
    assert_eq!(wrong.status, 403, "{wrong:?}");
    assert!(wrong.body.contains(&format!("signed in as <strong>{JOHN}")), "{wrong:?}");
    assert!(!is_connected(&config, JANE).await && !is_connected(&config, JOHN).await);
    let line = relay.wait_for_log("sign-in failed").await;
    assert!(line.contains("mailbox=jane@example.com") && line.contains(JOHN), "{line}");

    // John's does, once.
    let mut john = Visitor::new(&relay);
    let csrf = john.csrf(&path).await;
    let microsoft = link(&john.post(&path, &[("csrf", &csrf)]).await);
    let back = john.at_microsoft(&microsoft, Some(JOHN)).await;
    let valid = john.get(&back).await;
    assert!(valid.status == 200 && valid.body.contains("Outlook token valid"), "{valid:?}");
    assert!(is_connected(&config, JOHN).await);
    let replayed = john.get(&back).await;
    assert!(replayed.status == 400 && !replayed.body.contains("Outlook token valid"), "{replayed:?}");
    assert_eq!(john.get(&path).await.status, 410, "the link is used up");
    assert_eq!(john.post(&path, &[("csrf", &csrf)]).await.status, 410);
}

#[tokio::test]
async fn a_sign_in_counts_in_the_browser_that_began_it() {
    let world = World::start().await;
    let (config, relay) = unconnected(&world, |_| {}).await;
    let mut administrator = Visitor::new(&relay);
    let microsoft = administrator.connect(JOHN).await;
    let back = administrator.at_microsoft(&microsoft, Some(JOHN)).await;
    let in_another_browser = Visitor::new(&relay).get(&back).await;
    assert!(in_another_browser.status == 400 && in_another_browser.body.contains("another browser"));
    for path in [
        "/microsoft_outlook/confirm?code=1&state=forged",
        "/microsoft_outlook/confirm?state=",
        "/microsoft_outlook/confirm",
        "/microsoft_outlook/confirm?error=x&error_description=%3Cscript%3E&state=y",
    ] {
        let refused = administrator.get(path).await;
        assert!(refused.status == 400 && !refused.body.contains("<script>"), "{path}: {refused:?}");
    }
    assert!(!is_connected(&config, JOHN).await);

    let microsoft = administrator.connect(JOHN).await;
    let back = administrator.at_microsoft(&microsoft, None).await;
    let declined = administrator.get(&back).await;
    assert!(declined.status == 403 && declined.body.contains("AADSTS65004"), "{declined:?}");
    assert!(!is_connected(&config, JOHN).await);
    for line in relay.log() {
        assert!(!line.contains("code=1.") && !line.contains("1.AX"), "{line}");
    }
}

#[tokio::test]
async fn nothing_leads_to_strangers() {
    let world = World::start().await;
    let (_config, relay) = unconnected(&world, with_password).await;
    let mut visitor = Visitor::new(&relay);
    for path in [
        "//evil.example/",
        "/login?next=//evil.example/",
        "/?next=https://evil.example/",
        "/invite//evil.example",
        "/invite/%2F%2Fevil.example",
        "/invite/https:%2f%2fevil.example%0d%0aLocation:%20x",
        "/microsoft_outlook/confirm?state=x&redirect_uri=https://evil.example/",
    ] {
        for host in ["localhost", "127.0.0.1"] {
            let answer = Visitor::new(&relay).by_name(host).get(path).await;
            let location = answer.header("location");
            let is_ours =
                ["", "/login"].contains(&location) || location.starts_with("http://localhost/invite/");
            assert!(is_ours && !answer.body.contains("href=\"http"), "{host} {path}: {answer:?}");
        }
    }
    assert_eq!(visitor.sign_in(PASSWORD).await.header("location"), "/");
    let microsoft = visitor.connect(JOHN).await;
    let back =
        format!("redirect_uri=http%3A%2F%2Flocalhost%3A{}%2Fmicrosoft_outlook%2Fconfirm", relay.admin.port());
    assert!(microsoft.contains(&back), "{microsoft}");
}

#[tokio::test]
async fn oversized_and_slow_requests_end_and_hold_up_nobody() {
    let world = World::start().await;
    let (_config, relay) = company::start(&world).await;
    let large = "x".repeat(9_000);
    let mut visitor = Visitor::new(&relay);
    assert_eq!(visitor.post("/login", &[("password", &large)]).await.status, 413);
    let head = format!("GET / HTTP/1.1\r\nHost: localhost\r\nX: {}\r\n\r\n", "x".repeat(40_000));
    assert!(raw(relay.admin, head.as_bytes()).await.starts_with("HTTP/1.1 431"));

    // More of them than there are places: some say half a head, some half a body, some nothing.
    let begun = Instant::now();
    let mut slow = Vec::new();
    for n in 0..130 {
        let mut stream = TcpStream::connect(relay.admin).await.unwrap();
        let said: &[u8] = match n % 3 {
            0 => b"GET / HTTP/1.1\r\nHost: local",
            1 => b"POST /login HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\ncsrf=",
            _ => b"",
        };
        stream.write_all(said).await.unwrap();
        slow.push(stream);
    }
    let sent = relay.send("bounce@example.com", &["a@x.test"], &message(JOHN, "a@x.test", "1@t", "Hi")).await;
    assert_eq!(sent.code, 250, "mail goes on");
    let page = visitor.get("/healthz").await;
    assert_eq!(page.status, 200, "the page too, once they are gone");
    assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
    for mut stream in slow.into_iter().take(100) {
        let mut answer = Vec::new();
        let ended = tokio::time::timeout(SOON, stream.read_to_end(&mut answer)).await;
        assert!(ended.is_ok(), "a slow connection still is open after {:?}", begun.elapsed());
    }
}

#[tokio::test]
async fn monitoring_reads_metrics() {
    let world = World::start().await;
    let (_config, relay) = company::start(&world).await;
    crate::support::wait::until(SOON, "tokens", || relay.count_log("token refreshed") == 3).await;
    let metrics = Visitor::new(&relay).get("/metrics").await;
    assert!(metrics.header("content-type").starts_with("text/plain; version=0.0.4"), "{metrics:?}");
    for line in [
        "outlook_relay_well 1".to_owned(),
        format!("outlook_relay_token_refreshes_total{{mailbox=\"{JOHN}\"}} 1"),
        format!("outlook_relay_accepted_total{{mailbox=\"{JOHN}\"}} 0"),
        format!("outlook_relay_token_light{{mailbox=\"{JOHN}\",light=\"green\"}} 1"),
        format!("outlook_relay_queue_messages{{mailbox=\"{JOHN}\",state=\"waiting\"}} 0"),
    ] {
        assert!(metrics.body.lines().any(|seen| seen == line), "{line}: {}", metrics.body);
    }
}

/// The whole answer to some octets.
async fn raw(at: SocketAddr, octets: &[u8]) -> String {
    let mut stream = TcpStream::connect(at).await.unwrap();
    stream.write_all(octets).await.unwrap();
    let mut answer = Vec::new();
    let mut chunk = [0; 4096];
    let read = async {
        while let Ok(count @ 1..) = stream.read(&mut chunk).await {
            answer.extend_from_slice(&chunk[..count]);
        }
    };
    let _ = tokio::time::timeout(Duration::from_secs(15), read).await;
    String::from_utf8_lossy(&answer).into_owned()
}
