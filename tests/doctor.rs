//! `doctor`: names what does not work and what to do, sends nothing and changes nothing, with and without a daemon.
#![expect(clippy::panic, clippy::indexing_slicing, reason = "test code: a failure here must stop the test")]

use crate::company::{self, ALL, JOHN, NOTIFICATIONS};
use crate::support::client::message;
use crate::support::entra::{Answer, CLIENT_ID, CLIENT_SECRET};
use crate::support::odoo::PASSWORD;
use crate::support::relay::{Config, Output};
use crate::support::script::Rule;
use crate::support::smtp::{Fault, Step};
use crate::support::wait::{SOON, until};
use crate::support::{imap, world::World};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// The company, connected, with a message in the watched inbox; no daemon runs.
async fn world() -> (World, Config) {
    let world = World::start().await;
    // Harsher than Microsoft: whoever loses a rotated token, or refreshes beside another, is found out.
    world.entra.set_old_tokens_work(false);
    let mut config = company::config(&world);
    config.mailbox(
        NOTIFICATIONS,
        &[
            ("from_filter", "\"notifications@example.com\""),
            ("inbox", "true"),
            ("folder", "\"Orders\""),
            ("model", "\"crm.lead\""),
        ],
    );
    company::connect(&world, &config).await;
    world.imap.deliver(NOTIFICATIONS, "Orders", &message("a@x.test", NOTIFICATIONS, "1@x.test", "Hi"));
    (world, config)
}

/// `doctor --json`: its exit code, and its findings.
async fn examine(config: &Config, mailbox: Option<&str>) -> (Option<i32>, Vec<Value>) {
    let arguments: Vec<&str> = ["doctor", "--json"].into_iter().chain(mailbox).collect();
    let output = config.cli(&arguments).await;
    let report: Value = serde_json::from_str(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"));
    assert_eq!(report["well"], output.code == Some(0), "{output:?}");
    (output.code, report["findings"].as_array().unwrap().clone())
}

/// The one finding of a check; `mailbox` is "" for what concerns them all.
fn finding<'f>(findings: &'f [Value], mailbox: &str, check: &str) -> &'f Value {
    let of = |finding: &&Value| {
        finding["mailbox"].as_str().unwrap_or_default() == mailbox && finding["check"] == check
    };
    let found: Vec<&Value> = findings.iter().filter(of).collect();
    let [found] = found.as_slice() else { panic!("{mailbox} {check}: {findings:#?}") };
    found
}

/// What failed, and nothing else: `(mailbox, check)`.
fn failed(findings: &[Value]) -> Vec<(&str, &str)> {
    let failed = findings.iter().filter(|finding| finding["outcome"] == "failed");
    failed
        .map(|f| (f["mailbox"].as_str().unwrap_or_default(), f["check"].as_str().unwrap_or_default()))
        .collect()
}

fn assert_says(finding: &Value, parts: &[(&str, &str)]) {
    for (key, part) in parts {
        assert!(finding[key].as_str().unwrap_or_default().contains(part), "{key}, {part}: {finding:#}");
    }
    for key in ["seen", "meaning", "remedy"] {
        assert_ne!(finding[key], "", "{key}: {finding:#}");
    }
}

/// Nothing was sent, marked, pushed or even begun.
fn assert_untouched(world: &World) {
    let verbs: Vec<String> = world.smtp.commands().into_iter().map(|(_, line)| line).collect();
    assert!(verbs.iter().all(|line| ["EHLO", "STAR", "AUTH", "QUIT"].contains(&&line[..4])), "{verbs:?}");
    let lines: Vec<String> = world.imap.commands().into_iter().map(|(_, line)| line).collect();
    for verb in ["SELECT", "UID", "STORE", "FETCH", "CLOSE", "EXPUNGE"] {
        assert!(!lines.iter().any(|line| line.starts_with(verb)), "{lines:?}");
    }
    assert!(world.imap.messages(NOTIFICATIONS, "Orders").iter().all(|message| message.flags.is_empty()));
    assert_eq!((world.smtp.count(), world.odoo.posts().len()), (0, 0));
}

fn assert_no_secret(world: &World, output: &Output) {
    let secrets = [CLIENT_SECRET.to_owned(), PASSWORD.to_owned()];
    for secret in world.entra.refresh_tokens().iter().chain(&secrets) {
        assert!(!output.stdout.contains(secret) && !output.stderr.contains(secret), "{output:?}");
    }
}

#[tokio::test]
async fn all_is_well_and_nothing_changes() {
    let (world, config) = world().await;
    let output = config.cli(&["doctor"]).await;
    assert_no_secret(&world, &output);
    let text = output.success();
    for part in [JOHN, NOTIFICATIONS, "EXAMINE Orders: OK", "may read crm.lead", "All is well."] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let ok = text.lines().filter(|line| line.trim_start().starts_with("OK ")).count();
    // Token and two of SMTP for each, three of IMAP for one, Odoo's protocol, login and two models.
    assert_eq!(ok, 3 * 3 + 3 + 4, "{text}");
    assert_untouched(&world);
    for mailbox in ALL {
        assert_eq!(world.entra.refreshes(mailbox), 1, "{mailbox}");
    }

    // The rotated tokens were kept, and the store is free again.
    let (code, findings) = examine(&config, Some("John@Example.com")).await;
    assert_eq!((code, failed(&findings)), (Some(0), vec![]));
    assert!(findings.iter().all(|finding| [JOHN, ""].contains(&finding["mailbox"].as_str().unwrap_or(""))));
    assert_eq!((world.entra.refreshes(JOHN), world.entra.refreshes(NOTIFICATIONS)), (2, 1));
    assert_untouched(&world);
    let relay = config.start().await;
    until(SOON, "three tokens", || relay.count_log("token refreshed") == 3).await;
    assert_eq!(relay.count_log("token failed"), 0, "{:#?}", relay.log());
}

#[tokio::test]
async fn the_protocol_is_said_and_recommended() {
    let (world, mut config) = world().await;
    let (_, findings) = examine(&config, None).await;
    let parts = [("seen", "XML-RPC (recommended) and JSON-2"), ("seen", "xmlrpc"), ("meaning", "Odoo 22")];
    for (key, part) in parts {
        let found = finding(&findings, "", "odoo_protocol");
        assert!(found[key].as_str().unwrap_or_default().contains(part), "{part}: {found:#}");
    }
    config.text("odoo", "protocol", "json2");
    let (code, findings) = examine(&config, None).await;
    assert_eq!((code, failed(&findings)), (Some(0), vec![]));
    assert_eq!(finding(&findings, "", "odoo_login")["seen"], "the API key: the user's id is 2");
    assert_eq!(config.cli(&["check"]).await.code, Some(0));
    assert_untouched(&world);

    world.odoo.set_version("18.0");
    let (code, findings) = examine(&config, None).await;
    assert_eq!((code, failed(&findings)), (Some(1), vec![("", "odoo_protocol"), ("", "odoo_login")]));
    let parts = [("seen", "Odoo 18.0 has XML-RPC"), ("remedy", "protocol = \"xmlrpc\"")];
    assert_says(finding(&findings, "", "odoo_protocol"), &parts);
    assert_says(finding(&findings, "", "odoo_login"), &[("remedy", "xmlrpc")]);
}

#[tokio::test]
async fn the_running_daemon_does_it_with_its_own_tokens() {
    let (world, mut config) = world().await;
    // The daemon itself looks at the inbox only once.
    config.text("fetch", "poll", "1 hour");
    let relay = config.start().await;
    until(SOON, "three tokens", || relay.count_log("token refreshed") == 3).await;
    until(SOON, "the first push", || world.odoo.posts().len() == 1).await;
    let before: Vec<usize> = ALL.iter().map(|mailbox| world.entra.refreshes(mailbox)).collect();

    let (code, findings) = examine(&config, None).await;
    assert_eq!((code, failed(&findings)), (Some(0), vec![]));
    let (code, findings) = examine(&config, Some(JOHN)).await;
    assert_eq!((code, failed(&findings)), (Some(0), vec![]));
    // Refreshed a moment ago, so that outcome serves.
    let after: Vec<usize> = ALL.iter().map(|mailbox| world.entra.refreshes(mailbox)).collect();
    assert_eq!((before, after), (vec![1; 3], vec![1; 3]));
    assert_eq!((world.smtp.count(), world.odoo.posts().len()), (0, 1));

    // A revoked consent shows although the access token at hand is good for an hour.
    world.entra.revoke(JOHN);
    assert_eq!(config.connect(JOHN, &world.entra.refresh_token(JOHN).unwrap()).await.code, Some(0));
    relay.wait_for_log("token failed").await;
    let (code, findings) = examine(&config, Some(JOHN)).await;
    assert_eq!((code, failed(&findings)), (Some(1), vec![(JOHN, "token")]));
    let token = finding(&findings, JOHN, "token");
    let parts = [("code", "AADSTS50173"), ("remedy", "connect"), ("meaning", "the token at hand serves")];
    assert_says(token, &parts);
    assert_eq!(world.entra.max_in_flight(JOHN), 1);
}

#[tokio::test]
async fn the_daemon_says_no_to_browsers_and_to_unknown_mailboxes() {
    let (_world, mut config) = world().await;
    let relay = config.start().await;
    let post = async |target: &str, header: &str| {
        let mut stream = TcpStream::connect(relay.admin).await.unwrap();
        let request = format!(
            "POST {target} HTTP/1.1\r\nHost: localhost\r\n{header}Content-Length: 0\r\nConnection: close\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    };
    assert!(post("/doctor?mailbox=john%40example.com", "").await.starts_with("HTTP/1.1 200"));
    let crossed = post("/doctor", "Origin: https://evil.example\r\n").await;
    assert!(crossed.starts_with("HTTP/1.1 403"), "{crossed}");
    for unknown in ["/doctor?mailbox=eve%40example.com", "/doctor?mailbox=", "/doctor?mailbox=%00%0D%0Ax"] {
        assert!(post(unknown, "").await.starts_with("HTTP/1.1 404"), "{unknown}");
    }
    // Added to the file after the daemon started.
    config.mailbox("new@example.com", &[]);
    let output = config.cli(&["doctor", "new@example.com"]).await;
    assert!(output.code == Some(1) && output.stderr.contains("reload it"), "{output:?}");
    let output = config.cli(&["doctor", "nobody@example.com"]).await;
    assert!(output.code == Some(1) && output.stderr.contains("not a mailbox of the configuration"));
}

#[tokio::test]
async fn a_daemon_that_does_not_answer_keeps_its_tokens_to_itself() {
    let (world, mut config) = world().await;
    let relay = config.start().await;
    until(SOON, "three tokens", || relay.count_log("token refreshed") == 3).await;
    config.text("admin", "listen", "127.0.0.1:9");
    let output = config.cli(&["doctor"]).await;
    assert!(output.code == Some(1) && output.stderr.contains("[admin] listen"), "{output:?}");
    assert_eq!(world.entra.refreshes(JOHN), 1);
}

#[tokio::test]
async fn smtp_switched_off_is_named_with_its_remedy() {
    let (world, config) = world().await;
    let reply = "535 5.7.139 Authentication unsuccessful, SmtpClientAuthentication is disabled for the Mailbox. \
                 Visit https://aka.ms/smtp_auth_disabled for more information.";
    world.smtp.script(Rule::new(Step::Auth, Fault::reply(reply)).always().only(JOHN));
    let (code, findings) = examine(&config, None).await;
    assert_eq!((code, failed(&findings)), (Some(1), vec![(JOHN, "smtp_login")]));
    let login = finding(&findings, JOHN, "smtp_login");
    assert_says(
        login,
        &[
            ("code", "535 5.7.139"),
            ("class", "administrator"),
            ("seen", "disabled for the Mailbox"),
            ("remedy", "Set-CASMailbox john@example.com -SmtpClientAuthenticationDisabled $false"),
        ],
    );
    assert!(login.get("commands").is_none(), "an owner consented: {login:#}");
    assert_untouched(&world);
    let text = config.cli(&["doctor", JOHN]).await.stdout;
    let told =
        ["FAIL  SMTP login", "seen     535 5.7.139", "meaning  no mail can be sent", "remedy   switch"];
    assert!(told.iter().all(|part| text.contains(part)), "{text}");
}

#[tokio::test]
async fn an_app_is_told_what_its_administrator_must_run() {
    let world = World::start().await;
    let mut config = world.config();
    config.text("microsoft", "grant", "client_credentials");
    config.mailbox(JOHN, &[("inbox", "true")]);
    world.entra.set_app_mailbox("other@example.com");
    world.smtp.script(Rule::new(Step::Auth, Fault::reply("535 5.7.3 Authentication unsuccessful")).always());
    world.imap.script(Rule::new("AUTHENTICATE", imap::Fault::no("AUTHENTICATE failed.")).always());
    let (code, findings) = examine(&config, None).await;
    assert_eq!((code, failed(&findings)), (Some(1), vec![(JOHN, "smtp_login"), (JOHN, "imap_login")]));
    for check in ["smtp_login", "imap_login"] {
        let commands = finding(&findings, JOHN, check)["commands"].as_array().unwrap();
        let commands: Vec<&str> = commands.iter().filter_map(Value::as_str).collect();
        for command in [
            format!("$app = Get-MgServicePrincipal -Filter \"appId eq '{CLIENT_ID}'\""),
            "Connect-ExchangeOnline -Organization 'example.onmicrosoft.com'".to_owned(),
            format!(
                "New-ServicePrincipal -AppId '{CLIENT_ID}' -ObjectId $app.Id -DisplayName 'outlook-relay'"
            ),
            format!("Add-MailboxPermission -Identity '{JOHN}' -User $app.Id -AccessRights FullAccess"),
            format!(
                "Set-CASMailbox -Identity '{JOHN}' -SmtpClientAuthenticationDisabled $false -ImapEnabled $true"
            ),
        ] {
            assert!(commands.contains(&command.as_str()), "{command}: {commands:#?}");
        }
    }
    assert_says(finding(&findings, JOHN, "smtp_login"), &[("remedy", "SMTP.SendAsApp")]);
    assert_eq!(finding(&findings, JOHN, "imap_folder")["outcome"], "skipped");
    assert_eq!(world.entra.requests().len(), 1, "one token, whatever was refused");
    let text = config.cli(&["doctor"]).await.stdout;
    assert_eq!(text.matches("New-ServicePrincipal").count(), 1, "{text}");
    let widest = text.lines().filter(|line| !line.contains('$')).map(|line| line.chars().count()).max();
    assert!(widest.is_some_and(|widest| widest <= 120), "{text}");
}

#[tokio::test]
async fn a_mailbox_that_nobody_connected_still_has_its_way_there_checked() {
    let world = World::start().await;
    let config = company::config(&world);
    let (code, findings) = examine(&config, Some(NOTIFICATIONS)).await;
    assert_eq!((code, failed(&findings)), (Some(1), vec![(NOTIFICATIONS, "token")]));
    let token = finding(&findings, NOTIFICATIONS, "token");
    assert_says(token, &[("code", "no_token"), ("class", "consent"), ("remedy", "outlook-relay connect")]);
    for (check, outcome) in [
        ("smtp_connection", "ok"),
        ("smtp_login", "skipped"),
        ("imap_connection", "ok"),
        ("imap_login", "skipped"),
        ("imap_folder", "skipped"),
    ] {
        assert_eq!(finding(&findings, NOTIFICATIONS, check)["outcome"], outcome, "{check}");
    }
    assert_eq!(world.entra.requests().len(), 0);
}

#[tokio::test]
async fn a_folder_that_is_not_there_and_services_that_are_not() {
    let (world, config) = world().await;
    world.imap.remove_folder(NOTIFICATIONS, "Orders");
    world.smtp.server.down().await;
    let (code, findings) = examine(&config, Some(NOTIFICATIONS)).await;
    assert_eq!(code, Some(1));
    assert_eq!(failed(&findings), [(NOTIFICATIONS, "smtp_connection"), (NOTIFICATIONS, "imap_folder")]);
    assert_says(
        finding(&findings, NOTIFICATIONS, "imap_folder"),
        &[("seen", "Orders doesn't exist"), ("remedy", "`folder`"), ("meaning", "cannot be fetched")],
    );
    assert_says(
        finding(&findings, NOTIFICATIONS, "smtp_connection"),
        &[("seen", &world.smtp.endpoint()), ("remedy", "firewall")],
    );
    assert_eq!(finding(&findings, NOTIFICATIONS, "smtp_login")["outcome"], "skipped");

    world.imap.server.down().await;
    world.entra.answer_next(Answer::html(502, "<html>Bad Gateway</html>"));
    let (_, findings) = examine(&config, Some(NOTIFICATIONS)).await;
    assert_says(finding(&findings, NOTIFICATIONS, "imap_connection"), &[("remedy", "firewall")]);
    assert_says(finding(&findings, NOTIFICATIONS, "token"), &[("code", "HTTP 502"), ("class", "transient")]);
}

#[tokio::test]
async fn odoo_is_asked_for_login_and_rights() {
    let (world, config) = world().await;
    world.odoo.set_unreadable("crm.lead");
    let (code, findings) = examine(&config, None).await;
    assert_eq!((code, failed(&findings)), (Some(1), vec![("", "odoo_rights")]));
    let refused = findings.iter().find(|finding| finding["outcome"] == "failed").unwrap();
    assert_says(refused, &[("seen", "crm.lead"), ("code", "fault 4"), ("remedy", NOTIFICATIONS)]);

    world.odoo.set_unreadable("mail.message");
    let (_, findings) = examine(&config, None).await;
    assert_eq!(failed(&findings), [("", "odoo_rights")]);

    world.odoo.set_password("another");
    let (code, findings) = examine(&config, Some(JOHN)).await;
    assert_eq!((code, failed(&findings)), (Some(1), vec![("", "odoo_login")]));
    assert_says(finding(&findings, "", "odoo_login"), &[("remedy", "password_file")]);
    assert_eq!(finding(&findings, "", "odoo_rights")["outcome"], "skipped");
    assert_untouched(&world);
}

#[tokio::test]
async fn a_client_secret_that_expires_is_said_ahead() {
    let (_world, mut config) = world().await;
    let day = |days: i64| {
        let at = outlook_relay::clock::now() + jiff::SignedDuration::from_hours(24 * days);
        at.strftime("%Y-%m-%d").to_string()
    };
    for (days, level, outcome, code) in [
        (90, None, "ok", 0),
        (30, Some("WARN"), "warning", 0),
        (1, Some("WARN"), "warning", 0),
        (-2, Some("ERROR"), "failed", 1),
    ] {
        config.raw("microsoft", "client_secret_expires", &day(days));
        let mut relay = config.start().await;
        until(SOON, "three tokens", || relay.count_log("token refreshed") == 3).await;
        // Three mailboxes share the app: one line.
        let lines: Vec<String> =
            relay.log().into_iter().filter(|line| line.contains("client secret expires")).collect();
        assert_eq!(lines.len(), usize::from(level.is_some()), "{lines:?}");
        for part in level.iter().chain(level.map(|_| &CLIENT_ID)) {
            assert!(lines[0].contains(part), "{lines:?}");
        }
        let status = config.cli(&["status", "--json"]).await;
        assert_eq!(status.code, Some(code), "{days}: {status:?}");
        let status: Value = serde_json::from_str(&status.stdout).unwrap();
        let warnings = status["warnings"].as_array().unwrap();
        assert_eq!(warnings.len(), lines.len());
        for warning in warnings {
            assert!((warning["days"].as_i64().unwrap() - days).abs() <= 1, "{warning:#}");
            assert_says(warning, &[("remedy", "client_secret_file"), ("expires", "-")]);
        }
        let text = config.cli(&["status"]).await.stdout;
        assert_eq!(text.contains("Certificates & secrets"), level.is_some(), "{text}");
        let (exit, findings) = examine(&config, Some(JOHN)).await;
        assert_eq!(
            (finding(&findings, "", "client_secret")["outcome"].as_str(), exit),
            (Some(outcome), Some(code))
        );
        relay.terminate(SOON).await;
    }
}
