//! `connect` and `invite`, the commands: from the address or the code that they print to mail that goes out.

use crate::company::{self, JANE, JOHN};
use crate::consent::{SHARED, address, browse, later};
use crate::support::client::message;
use crate::support::entra::Answer as Reply;
use crate::support::http::request;
use crate::support::relay::Relay;
use crate::support::wait::{SOON, until};
use crate::support::world::World;
use jiff::Timestamp;
use outlook_relay::clock;
use outlook_relay::config::Config;
use outlook_relay::consent::invite::{self, InviteError};
use outlook_relay::store::Store;
use std::net::SocketAddr;
use url::Url;

/// The address that `connect` prints.
async fn printed_address(connect: &Relay) -> Url {
    Url::parse(connect.wait_for_log("/oauth2/v2.0/authorize").await.trim()).unwrap()
}

#[tokio::test]
async fn connect_waits_for_the_browser_and_the_running_daemon_takes_it_up() {
    let world = World::start().await;
    let config = company::config(&world);
    let daemon = config.start().await;
    daemon.wait_for_log("token failed").await;
    daemon.send("bounce@example.com", &["a@x.test"], &message(JOHN, "a@x.test", "1@t", "Hi")).await;

    let mut connect = config.spawn_command(&["connect", JOHN]);
    let url = printed_address(&connect).await;
    connect.wait_for_log("--device").await;
    world.entra.sign_in_as(Some(JOHN));
    let back = Url::parse(browse(&url).await.header("location")).unwrap();
    assert_eq!((back.host_str(), back.path()), (Some("localhost"), "/"));

    // What a browser and a stranger ask besides, and a connection that says nothing.
    let port = SocketAddr::from(([127, 0, 0, 1], back.port().unwrap()));
    let _idle = tokio::net::TcpStream::connect(port).await.unwrap();
    for (method, path, status) in [
        ("GET", "/favicon.ico", 404),
        ("GET", "/", 404),
        ("POST", "/?code=x&state=y", 405),
        ("GET", "/?code=x&state=forged", 400),
    ] {
        assert_eq!(request(port, method, path, &[], b"").await.unwrap().status, status, "{path}");
    }
    let page = browse(&back).await;
    assert!(page.status == 200 && page.body.contains("Outlook token valid"), "{page:?}");
    assert!(page.header("content-type").starts_with("text/plain"), "{page:?}");
    assert_eq!(connect.exit_code(SOON).await, Some(0), "{:?}", connect.log());
    assert_eq!(connect.count_log("john@example.com: Outlook token valid"), 1, "{:?}", connect.log());

    until(SOON, "the mail that waited", || world.smtp.count() == 1).await;
    let grants: Vec<_> = world.entra.requests().into_iter().map(|request| request.grant).collect();
    assert_eq!(grants, ["authorization_code", "refresh_token"], "connect itself refreshes nothing");
    let secrets = world.entra.refresh_tokens();
    let lines = [connect.log(), daemon.log()].concat();
    assert!(
        !lines.iter().any(|line| secrets.iter().any(|secret| line.contains(secret.as_str()))),
        "{lines:?}"
    );
}

#[tokio::test]
async fn connect_says_who_signed_in_and_who_declined() {
    let world = World::start().await;
    let config = company::config(&world);
    for (account, words) in [(Some(JANE), "jane@example.com signed in"), (None, "AADSTS65004")] {
        let mut connect = config.spawn_command(&["connect", JOHN]);
        let url = printed_address(&connect).await;
        world.entra.sign_in_as(account);
        let location = match account {
            Some(_) => browse(&url).await.header("location").to_owned(),
            None => {
                let path = &url[url::Position::BeforePath..];
                let answer = request(world.entra.server.addr(), "POST", path, &[], b"answer=no").await;
                answer.unwrap().header("location").to_owned()
            }
        };
        let page = browse(&Url::parse(&location).unwrap()).await;
        assert!(page.status == 400 && page.body.contains(words), "{page:?}");
        assert_eq!(connect.exit_code(SOON).await, Some(1));
        assert_eq!(connect.count_log(words), 1, "{:?}", connect.log());
        assert_eq!(connect.count_log("panicked"), 0);
    }
    assert_eq!(world.entra.requests().len(), 1, "nobody asks for a declined sign-in's tokens");
}

#[tokio::test]
async fn a_device_code_is_polled_by_the_rules() {
    let world = World::start().await;
    let config = company::config(&world);
    world.entra.answer_next(Reply::error(400, "authorization_pending", 70_016, "Authorization is pending."));
    world.entra.answer_next(Reply::error(400, "slow_down", 70_016, "Polling too often."));
    let mut connect = config.spawn_command(&["connect", JOHN, "--device", "--json"]);
    let line = connect.wait_for_log("TEST12345").await;
    assert!(line.contains("https://microsoft.com/devicelogin") && line.contains(JOHN), "{line}");
    until(SOON, "polls", || world.entra.requests().len() == 2).await;
    world.entra.add_code(&world.entra.codes()[0], Some(JOHN));
    assert_eq!(connect.exit_code(SOON).await, Some(0), "{:?}", connect.log());
    assert_eq!(connect.count_log("\"account\": \"john@example.com\""), 1, "{:?}", connect.log());
    let at: Vec<Timestamp> = world.entra.requests().iter().map(|request| request.at).collect();
    let gaps: Vec<f64> = at.windows(2).map(|pair| pair[1].duration_since(pair[0]).as_secs_f64()).collect();
    assert!(gaps[0] >= 0.95 && gaps[1] >= 5.95, "1 s as asked, 5 more after slow_down: {gaps:?}");
}

#[tokio::test]
async fn a_device_code_that_comes_to_nothing_is_explained() {
    let world = World::start().await;
    let config = company::config(&world);
    for (error, code, words) in [
        ("authorization_declined", 70_018, "declined"),
        ("access_denied", 65_004, "declined"),
        ("expired_token", 70_020, "expired"),
        ("bad_verification_code", 70_019, "not known"),
    ] {
        world.entra.answer_next(Reply::error(400, error, code, "Words."));
        let mut connect = config.spawn_command(&["connect", JOHN, "--device"]);
        assert_eq!(connect.exit_code(SOON).await, Some(1));
        let log = connect.log();
        let last = log.last().unwrap();
        assert!(
            last.contains(words) && last.contains("AADSTS") && last.contains("Trace ID"),
            "{error}: {log:?}"
        );
    }
    world.entra.sign_in_as(Some(JANE));
    let mut connect = config.spawn_command(&["connect", JOHN, "--device"]);
    until(SOON, "a code", || world.entra.codes().len() == 5).await;
    for code in world.entra.codes() {
        world.entra.add_code(&code, Some(JANE));
    }
    assert_eq!(connect.exit_code(SOON).await, Some(1));
    assert_eq!(connect.count_log("jane@example.com signed in"), 1, "{:?}", connect.log());
}

#[tokio::test]
async fn a_shared_mailbox_is_sent_through_by_whom_it_names() {
    let world = World::start().await;
    let mut config = world.config();
    config.mailbox(SHARED, &[("sign_in_as", "\"jane@example.com\"")]);
    world.entra.allow_delegate(JANE, SHARED);
    let mut connect = config.spawn_command(&["connect", SHARED]);
    let url = printed_address(&connect).await;
    world.entra.sign_in_as(Some(JANE));
    browse(&Url::parse(browse(&url).await.header("location")).unwrap()).await;
    assert_eq!(connect.exit_code(SOON).await, Some(0), "{:?}", connect.log());
    let relay = config.start().await;
    relay.send("bounce@example.com", &["a@x.test"], &message(SHARED, "a@x.test", "1@t", "Hi")).await;
    until(SOON, "the mail", || world.smtp.count() == 1).await;
}

#[tokio::test]
async fn invite_prints_a_link_and_revokes_it() {
    let world = World::start().await;
    let mut config = company::config(&world);
    let invited = config.cli(&["invite", JOHN, "--json"]).await;
    assert!(invited.stderr.contains("public_url is not set"), "{invited:?}");
    config.text("admin", "public_url", "https://odoo.example.com/");
    let link = config.cli(&["invite", "John@Example.com"]).await.success();
    let link = link.trim();
    let token = link.strip_prefix("https://odoo.example.com/invite/").unwrap_or_else(|| panic!("{link}"));
    let loaded = Config::load(&config.write()).unwrap();
    let (store, _writer) = Store::open(&loaded.store).await.unwrap();
    let accepted = invite::accept(&store, token, later(7 * 24 * 60 - 1)).await;
    assert_eq!(accepted.unwrap(), address(JOHN), "seven days by default");
    let late = invite::accept(&store, token, later(7 * 24 * 60 + 1)).await;
    assert!(matches!(late, Err(InviteError::Expired)), "{late:?}");
    config.cli(&["invite", JOHN, "--revoke"]).await.success();
    let revoked = invite::accept(&store, token, clock::now()).await;
    assert!(matches!(revoked, Err(InviteError::Revoked)), "{revoked:?}");
    for (expires, code) in [("2 hours", Some(0)), ("a while", Some(1)), ("91 days", Some(1)), ("0s", Some(1))]
    {
        assert_eq!(config.cli(&["invite", JOHN, "--expires", expires]).await.code, code, "{expires}");
    }
    assert_eq!(config.cli(&["invite", "nobody@example.com"]).await.code, Some(1));
}
