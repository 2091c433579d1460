//! The commands, and what they say about wrong input.

use crate::company::{self, JANE, JOHN, NOTIFICATIONS};
use crate::support::client::SmtpClient;
use crate::support::relay::Config;
use crate::support::world::World;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

#[tokio::test]
async fn check_says_every_mistake_with_its_place_and_exits_78() {
    let world = World::start().await;
    let mut config = company::config(&world);
    let well = config.cli(&["check"]).await.success();
    assert!(well.contains("3 mailboxes"), "{well}");

    config.text("odoo", "urll", "http://127.0.0.1");
    config.text("delivery", "retry_for", "5");
    config.mailbox("JOHN@Example.com", &[]);
    config.text("odoo", "password_file", "not-there");
    std::fs::set_permissions(config.dir().join("client-secret"), std::fs::Permissions::from_mode(0o644))
        .unwrap();
    let output = config.cli(&["check"]).await;
    assert_eq!(output.code, Some(78));
    assert_eq!(output.stdout, "");
    let lines: Vec<&str> = output.stderr.lines().collect();
    let file = config.dir().join("relay.toml").display().to_string();
    for (key, words) in [
        ("odoo.urll", "did you mean url?"),
        ("delivery.retry_for", "not a duration"),
        ("mailbox[4].address", "already is the mailbox of line"),
        ("odoo.password_file", "cannot be read"),
        ("microsoft.client_secret_file", "everyone may read (mode 0644)"),
    ] {
        let line = lines
            .iter()
            .find(|line| line.contains(key))
            .unwrap_or_else(|| panic!("{key}: {}", output.stderr));
        assert!(line.contains(words), "{line}");
        let place = line.strip_prefix(&format!("{file}:")).unwrap_or_else(|| panic!("{line}"));
        let number: usize = place.split(':').next().unwrap().parse().unwrap_or_else(|_| panic!("{line}"));
        let toml = config.toml();
        let named = toml.lines().nth(number - 1).unwrap();
        assert!(named.starts_with(key.rsplit('.').next().unwrap()), "{line} names {named}");
    }
    assert_eq!(lines.len(), 5, "{}", output.stderr);
    assert_eq!(config.cli(&["run"]).await.code, Some(78), "the daemon refuses to start into it");
}

#[tokio::test]
async fn check_warns_of_what_can_never_happen_and_exits_0() {
    let world = World::start().await;
    let mut config = company::config(&world);
    assert!(!config.cli(&["check"]).await.success().contains("warning"), "none for the company as it stands");

    config.mailbox(JOHN, &[("from_filter", "\"john@example.com, *@example.org\"")]);
    config.mailbox(JANE, &[]);
    let said = config.cli(&["check"]).await.success();
    assert!(said.contains("usable, with 2 warnings"), "{said}");
    let toml = config.toml();
    let line = |start: &str| toml.lines().position(|line| line.starts_with(start)).unwrap() + 1;
    let file = config.dir().join("relay.toml").display().to_string();
    let john = line("from_filter = \"john@");
    assert!(
        said.contains(&format!(
            "{file}:{john}: warning: mailbox[2].from_filter: \"*@example.org\" never matches"
        )),
        "{said}"
    );
    assert!(
        said.contains("warning: mailbox[3].from_filter: is missing, so this mailbox is asked last"),
        "{said}"
    );
    let answer: serde_json::Value =
        serde_json::from_str(&config.cli(&["check", "--json"]).await.success()).unwrap();
    assert_eq!((answer["mailboxes"].as_u64(), answer["inboxes"].as_u64()), (Some(3), Some(1)));
    assert_eq!(answer["warnings"].as_array().unwrap().len(), 2);
    assert_eq!(answer["warnings"][0]["line"], john);
}

/// What is well for root may be out of the service's reach, which only then ends with exit code 78.
#[tokio::test]
async fn check_warns_of_a_secret_that_systemd_does_not_hand_to_the_service() {
    let world = World::start().await;
    let mut config = company::config(&world);
    let path = config.secret("page-password", "open sesame");
    config.text("admin", "password_file", "page-password");
    // Only a file of root's is one that the service cannot read.
    let is_roots = std::fs::metadata(&path).unwrap().uid() == 0;
    let said = config.cli(&["check"]).await.success();
    let lines = format!("LoadCredential=page-password:{}", path.display());
    assert_eq!(said.contains("warning: admin.password_file: ") && said.contains(&lines), is_roots, "{said}");
    std::fs::rename(&path, path.with_file_name("admin-password")).unwrap();
    config.text("admin", "password_file", "admin-password");
    assert!(!config.cli(&["check"]).await.success().contains("warning"), "the unit knows this one");

    // As the service: it sees what it has.
    std::fs::rename(path.with_file_name("admin-password"), &path).unwrap();
    config.text("admin", "password_file", "page-password");
    let credentials = tempfile::tempdir().unwrap();
    config.env("CREDENTIALS_DIRECTORY", credentials.path().to_str().unwrap());
    assert!(!config.cli(&["check"]).await.success().contains("warning"));
}

#[tokio::test]
async fn a_file_that_is_not_there_and_words_that_are_off() {
    let config = Config::new();
    let output = tokio::process::Command::new(env!("CARGO_BIN_EXE_outlook-relay"))
        .args(["check", "-c", "/nonexistent/relay.toml"])
        .output()
        .await
        .unwrap();
    assert_eq!(output.status.code(), Some(78));
    assert!(String::from_utf8_lossy(&output.stderr).contains("-c FILE"));
    for words in [&["frobnicate"][..], &["route"], &["connect"], &["queue"], &["run", "--nonsense"]] {
        assert_eq!(config.cli(words).await.code, Some(2), "{words:?}");
    }
}

#[tokio::test]
async fn it_refuses_to_listen_to_strangers() {
    let world = World::start().await;
    let mut config = company::config(&world);
    config.raw("submission", "listen", "[\"0.0.0.0:2525\"]");
    let output = config.cli(&["check"]).await;
    assert_eq!(output.code, Some(78));
    assert!(
        output.stderr.contains("submission.listen") && output.stderr.contains("listen on 127.0.0.1"),
        "{}",
        output.stderr
    );
}

#[tokio::test]
async fn route_answers_for_people_and_for_scripts() {
    let world = World::start().await;
    let config = company::config(&world);
    for (from, mailbox, rule, shown) in [
        ("John Doe <john@example.com>", JOHN, "address", "John Doe <john@example.com>"),
        ("JANE@example.com", JANE, "address", "JANE@example.com"),
        (
            "\"Eve\" <eve@foreign.test>",
            NOTIFICATIONS,
            "notifications_address",
            "\"Eve\" <notifications@example.com>",
        ),
    ] {
        let answer = config.cli(&["route", "--from", from, "--json"]).await.success();
        let answer: serde_json::Value = serde_json::from_str(&answer).unwrap();
        assert_eq!(answer, serde_json::json!({"mailbox": mailbox, "rule": rule, "from": shown}), "{from}");
        let text = config.cli(&["route", "--from", from]).await.success();
        assert!(text.contains(mailbox) && text.contains(rule) && text.contains(shown), "{text}");
    }
    let text = config.cli(&["route", "--from", "\"Eve\" <eve@foreign.test>"]).await.success();
    for line in [
        "mailbox  notifications@example.com",
        "rule     notifications_address: its from_filter \"notifications@example.com\" holds the notifications address,",
        "before   address: no from_filter holds the address of the From, eve@foreign.test",
        "         domain: no from_filter holds the domain of the From, foreign.test",
    ] {
        assert!(text.lines().any(|said| said == line), "{text}");
    }
}

#[tokio::test]
async fn route_follows_the_alias_domain_of_the_mail_from() {
    let world = World::start().await;
    let mut config = company::config(&world);
    config.raw(
        "odoo",
        "alias_domain",
        "[{ catchall_domain = \"example.org\", default_from = \"jane@example.com\" }]",
    );
    for (mail_from, mailbox) in [
        ("bounce@example.com", NOTIFICATIONS),
        ("bounce@example.org", JANE),
        ("eve@foreign.test", NOTIFICATIONS),
    ] {
        let words = ["route", "--from", "Eve <eve@foreign.test>", "--mail-from", mail_from, "--json"];
        let answer: serde_json::Value = serde_json::from_str(&config.cli(&words).await.success()).unwrap();
        let from = format!("\"Eve\" <{mailbox}>");
        let expected = serde_json::json!({"mailbox": mailbox, "rule": "notifications_address", "from": from});
        assert_eq!(answer, expected, "{mail_from}");
    }
}

#[tokio::test]
async fn connect_and_queue_say_what_is_wrong() {
    let world = World::start().await;
    let config = company::config(&world);
    let unknown = config.connect("nobody@example.com", "token").await;
    assert_eq!(unknown.code, Some(1));
    assert!(
        unknown.stderr.contains("not a mailbox of the configuration") && unknown.stderr.contains(JOHN),
        "{unknown:?}"
    );
    let missing = config.cli(&["connect", JOHN, "--refresh-token-file", "/nonexistent"]).await;
    assert!(missing.code == Some(1) && missing.stderr.contains("/nonexistent"), "{missing:?}");
    let absent = config.cli(&["queue", "list"]).await;
    assert!(absent.code == Some(1) && absent.stderr.contains("no store yet"), "{absent:?}");
    for output in [&unknown, &missing, &absent] {
        assert_eq!(output.stderr.lines().count(), 1, "{output:?}");
    }
    config.connect(JOHN, "token").await.success();
    assert_eq!(config.cli(&["queue", "list"]).await.success(), "The queue is empty.\n");
}

#[tokio::test]
async fn a_store_that_cannot_be_written_is_said() {
    let world = World::start().await;
    let mut config = company::config(&world);
    config.text("store", "url", "sqlite:///proc/nowhere/relay.db");
    let output = config.cli(&["run"]).await;
    assert_eq!(output.code, Some(1));
    let last = output.stderr.lines().last().unwrap();
    assert!(last.contains("/proc/nowhere") && last.contains("[store] url"), "{}", output.stderr);
}

#[tokio::test]
async fn wrong_smtp_gets_a_clear_reply() {
    let world = World::start().await;
    let mut config = company::config(&world);
    config.text("submission", "max_message_size", "10 kB");
    let relay = config.start().await;
    let (mut client, banner) = SmtpClient::connect(relay.submission).await;
    assert_eq!(banner.code, 220);
    let dialogue: &[(&str, u16)] = &[
        ("MAIL FROM:<a@b.test>", 503),
        ("HELO client", 250),
        ("frobnicate", 500),
        ("RCPT TO:<a@b.test>", 503),
        ("DATA", 503),
        ("MAIL FROM:a@b.test", 501),
        ("MAIL FROM:<a@b.test> SIZE=99999999", 552),
        ("MAIL FROM:<a@b.test> FANCY=1", 555),
        ("MAIL FROM:<a@b.test>", 250),
        ("MAIL FROM:<a@b.test>", 503),
        ("RCPT TO:<no address>", 501),
        ("RCPT TO:<a@x.test>", 250),
        ("DATA", 354),
    ];
    for (command, code) in dialogue {
        assert_eq!(client.cmd(command).await.code, *code, "{command}");
    }
    client.write(&b"x: y\r\n".repeat(5_000)).await;
    client.write(b".\r\n").await;
    assert_eq!(client.reply().await.unwrap().code, 552, "over-size, after the whole of it");
    for bare in [
        b"From: john@example.com\r\n\r\nbare\nLF\r\n.\r\n".as_slice(),
        b"From: john@example.com\r\n\r\nbare\rCR\r\n.\r\n",
    ] {
        client.cmd("MAIL FROM:<a@b.test>").await;
        client.cmd("RCPT TO:<a@x.test>").await;
        client.cmd("DATA").await;
        client.write(bare).await;
        assert_eq!(client.reply().await.unwrap().code, 554);
    }
    assert_eq!(client.cmd(&"x".repeat(100_000)).await.code, 500, "an over-long line");
    assert_eq!(client.cmd("NOOP").await.code, 250, "and it is still there");
    assert_eq!(client.cmd("QUIT").await.code, 221);
    assert_eq!(relay.count_log("accepted"), 0);
    assert_eq!(relay.count_log("panicked"), 0);
}
