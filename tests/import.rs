//! `import-odoo`: from an Odoo with its own Outlook modules to a relay at work.

use crate::company::{JANE, JOHN, NOTIFICATIONS};
use crate::support::client::{message, send};
use crate::support::entra::{CLIENT_ID, CLIENT_SECRET};
use crate::support::odoo::DATABASE;
use crate::support::odoo_records::{ADMIN, ADMIN_PASSWORD, OdooRecords, text};
use crate::support::relay::{Config, Output};
use crate::support::wait::{SOON, until};
use crate::support::world::World;
use crate::support::xmlrpc::Value;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

/// The company in an Odoo of this version, and where it is taken over to.
struct Move {
    world: World,
    odoo: OdooRecords,
    /// Only for its folder and its free ports.
    config: Config,
}

impl Move {
    async fn of(version: &str) -> Self {
        let (world, odoo) = (World::start().await, OdooRecords::start(version).await);
        odoo.parameter("microsoft_outlook_client_id", CLIENT_ID);
        odoo.parameter("microsoft_outlook_client_secret", CLIENT_SECRET);
        let endpoint = format!("{}/example.onmicrosoft.com/oauth2/v2.0/", world.entra.authority());
        odoo.parameter("microsoft_outlook.endpoint", &endpoint);
        if version.starts_with("16") {
            odoo.parameter("mail.catchall.domain", "example.com");
            odoo.parameter("mail.default.from", "notifications");
            odoo.parameter("mail.bounce.alias", "bounce");
        } else {
            for (name, sequence) in [("example.com", 1), ("example.org", 2)] {
                let values = [
                    ("name", text(name)),
                    ("default_from", text("notifications")),
                    ("bounce_alias", text("bounce")),
                    ("sequence", Value::Int(sequence)),
                ];
                odoo.add("mail.alias.domain", &values);
            }
        }
        let made = Self { world, odoo, config: Config::new() };
        for (sequence, mailbox) in [(5, NOTIFICATIONS), (10, JOHN), (10, JANE)] {
            let token = made.world.entra.add_mailbox(mailbox);
            made.outgoing(mailbox, "outlook", mailbox, sequence, &token);
        }
        let token = made.world.entra.refresh_token(NOTIFICATIONS).unwrap();
        made.odoo.add("ir.model", &[("model", text("crm.lead"))]);
        let no_more = [
            ("name", text("Inbox & <all>")),
            ("active", Value::Bool(true)),
            ("state", text("done")),
            ("server_type", text("outlook")),
            ("server", text("localhost")),
            ("port", Value::Int(made.world.imap.endpoint().rsplit(':').next().unwrap().parse().unwrap())),
            ("user", text(NOTIFICATIONS)),
            ("object_id", Value::Array(vec![Value::Int(1), text("Lead/Opportunity")])),
            ("original", Value::Bool(false)),
            ("attach", Value::Bool(true)),
            ("microsoft_outlook_refresh_token", text(&token)),
            ("microsoft_outlook_access_token", text("access")),
            ("microsoft_outlook_access_token_expiration", Value::Int(1)),
        ];
        made.odoo.add("fetchmail.server", &no_more);
        made.outgoing("Google", "gmail", "x@gmail.test", 20, "");
        made
    }

    fn outgoing(&self, name: &str, authentication: &str, user: &str, sequence: i64, token: &str) -> i64 {
        let port = self.world.smtp.endpoint().rsplit(':').next().unwrap().parse().unwrap();
        let empty = |value: &str| if value.is_empty() { Value::Bool(false) } else { text(value) };
        self.odoo.add(
            "ir.mail_server",
            &[
                ("name", text(name)),
                ("sequence", Value::Int(sequence)),
                ("active", Value::Bool(true)),
                ("from_filter", empty(user)),
                ("smtp_host", text("localhost")),
                ("smtp_port", Value::Int(port)),
                ("smtp_encryption", text("starttls")),
                ("smtp_authentication", text(authentication)),
                ("smtp_user", empty(user)),
                ("microsoft_outlook_refresh_token", empty(token)),
                ("microsoft_outlook_access_token", Value::Bool(false)),
                ("microsoft_outlook_access_token_expiration", Value::Bool(false)),
            ],
        )
    }

    fn toml(&self) -> PathBuf {
        self.config.dir().join("new/relay.toml")
    }

    async fn import(&self, more: &[&str]) -> Output {
        self.import_as(DATABASE, ADMIN_PASSWORD, more).await
    }

    async fn import_as(&self, database: &str, password: &str, more: &[&str]) -> Output {
        let password = self.config.secret("admin-key", password);
        let store = format!("sqlite://{}", self.config.dir().join("relay.db").display());
        let output = tokio::process::Command::new(env!("CARGO_BIN_EXE_outlook-relay"))
            .args(["import-odoo", "--url", &self.odoo.url(), "--database", database, "--login", ADMIN])
            .arg("--password-file")
            .arg(password)
            .arg("-o")
            .arg(self.toml().parent().unwrap())
            .args(["--store", &store])
            .args(more)
            .output()
            .await
            .unwrap();
        let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let output =
            Output { code: output.status.code(), stdout: said(&output.stdout), stderr: said(&output.stderr) };
        let mut secrets = self.world.entra.refresh_tokens();
        secrets.extend([CLIENT_SECRET.to_owned(), ADMIN_PASSWORD.to_owned()]);
        for secret in secrets {
            assert!(!output.stdout.contains(&secret) && !output.stderr.contains(&secret), "{output:?}");
        }
        output
    }

    /// Gives the written file what no Odoo knows: the ports and the certificate of these tests.
    fn adapt(&self) {
        let ca = format!("[microsoft]\nca_file = {:?}\n", self.world.tls.ca_file());
        let toml = std::fs::read_to_string(self.toml()).unwrap().replacen("[microsoft]\n", &ca, 1);
        let listen = format!("[submission]\nlisten = [\"{}\"]\n", self.config.submission);
        let toml = toml.replacen("[submission]\n", &listen, 1);
        std::fs::write(self.toml(), format!("{toml}\n[admin]\nlisten = \"{}\"\n", self.config.admin))
            .unwrap();
    }
}

#[tokio::test]
async fn a_dry_run_shows_all_and_writes_nothing() {
    let moving = Move::of("19.0").await;
    let shown = moving.import(&["--dry-run"]).await.success();
    for words in [
        "[[mailbox]]",
        "from_filter = \"john@example.com\"",
        "model = \"crm.lead\"",
        "jane@example.com: taken over; refresh token: there",
        "outgoing server 4 \"Google\": is a Gmail server",
        "[[odoo.alias_domain]]",
    ] {
        assert!(shown.contains(words), "{words}: {shown}");
    }
    assert!(!moving.toml().parent().unwrap().exists() && !moving.config.dir().join("relay.db").exists());
    assert_eq!(moving.odoo.changes(), Vec::<String>::new());
    let json = moving.import(&["--dry-run", "--json"]).await.success();
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["plan"]["mailboxes"][0]["token"], true);
}

#[tokio::test]
async fn what_is_written_is_well_and_its_tokens_are_of_use_at_once() {
    for version in ["16.0-20231010", "19.0"] {
        let moving = Move::of(version).await;
        moving.import(&[]).await.success();
        assert_eq!(moving.odoo.changes(), Vec::<String>::new(), "Odoo is only read");
        // The service reads relay.toml as a user of its own, the secrets through systemd.
        for (file, mode) in [("relay.toml", 0o644), ("client-secret", 0o600), ("odoo-password", 0o600)] {
            let meta = std::fs::metadata(moving.toml().with_file_name(file)).unwrap();
            assert_eq!(meta.permissions().mode() & 0o777, mode, "{file}");
        }
        moving.adapt();
        let at = |arguments: &[&str]| {
            let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_outlook-relay"));
            command.args(arguments).arg("-c").arg(moving.toml()).kill_on_drop(true);
            command
        };
        let checked = at(&["check"]).output().await.unwrap();
        let said = String::from_utf8_lossy(&checked.stdout).into_owned();
        assert!(said.contains("3 mailboxes, 1 of them with their inbox"), "{version}: {checked:?}");
        let _relay = at(&["run"]).spawn().unwrap();
        let listens = || std::net::TcpStream::connect(moving.config.submission).is_ok();
        until(SOON, "the relay", listens).await;
        send(
            moving.config.submission,
            "bounce@example.com",
            &["a@x.test"],
            &message(JOHN, "a@x.test", "1@t", "Hi"),
        )
        .await;
        until(SOON, "the mail", || moving.world.smtp.count() == 1).await;

        let again = moving.import(&[]).await;
        assert!(again.code == Some(1) && again.stderr.contains("is there already"), "{again:?}");
    }
}

#[tokio::test]
async fn what_is_wrong_is_said_and_nothing_is_written() {
    let moving = Move::of("19.0").await;
    let wrong = [
        (moving.import_as(DATABASE, "wrong", &[]).await, "does not know the login \"admin\""),
        (moving.import_as("other", ADMIN_PASSWORD, &[]).await, "no database \"other\""),
    ];
    for (output, words) in wrong {
        assert!(output.code == Some(1) && output.stderr.contains(words), "{words}: {output:?}");
        assert_eq!(output.stderr.lines().count(), 1, "{output:?}");
    }
    moving.odoo.forbid("ir.config_parameter");
    let rights = moving.import(&[]).await;
    assert!(rights.stderr.contains("system administrator"), "{rights:?}");
    moving.odoo.server.down().await;
    let down = moving.import(&[]).await;
    assert!(down.stderr.contains("does not answer"), "{down:?}");
    assert!(!moving.toml().exists());

    let empty = OdooRecords::start("19.0").await;
    let moving = Move { odoo: empty, ..moving };
    let nothing = moving.import(&[]).await;
    assert!(nothing.code == Some(1) && nothing.stderr.contains("no Outlook mail server"), "{nothing:?}");
    moving.outgoing("no user", "outlook", "", 1, "token");
    let nobody = moving.import(&[]).await;
    assert!(nobody.stderr.contains("has no user name"), "{nobody:?}");
    moving.outgoing("no app", "outlook", JOHN, 1, "");
    let no_app = moving.import(&[]).await;
    assert!(no_app.stderr.contains("microsoft_outlook_client_id"), "{no_app:?}");
    moving.odoo.parameter("microsoft_outlook_client_id", CLIENT_ID);
    let no_token = moving.import(&[]).await.success();
    assert!(
        no_token.contains("refresh token: MISSING") && no_token.contains("outlook-relay connect"),
        "{no_token}"
    );
}

#[tokio::test]
async fn an_odoo_without_the_fetching_module_is_taken_over() {
    let moving = Move::of("16.0").await;
    moving.odoo.uninstall("fetchmail.server");
    let shown = moving.import(&["--dry-run"]).await.success();
    assert!(!shown.contains("inbox = true") && shown.contains("[[mailbox]]"), "{shown}");
}

/// As after the installation of the package.
#[tokio::test]
async fn the_relay_toml_that_the_package_ships_is_replaced_and_kept() {
    let moving = Move::of("19.0").await;
    let shipped = include_str!("../config/relay.toml");
    let (toml, kept) = (moving.toml(), moving.toml().with_file_name("relay.toml.before-import"));
    std::fs::create_dir(toml.parent().unwrap()).unwrap();
    std::fs::write(&toml, shipped).unwrap();
    moving.import(&["--dry-run", "--apply"]).await.success();
    // What cannot be done leaves it in its place.
    let secret = toml.with_file_name("client-secret");
    std::fs::write(&secret, "somebody's").unwrap();
    let refused = moving.import(&[]).await;
    assert!(refused.code == Some(1) && refused.stderr.contains("client-secret is there"), "{refused:?}");
    std::fs::remove_file(&secret).unwrap();
    let store = moving.config.dir().join("relay.db");
    std::fs::write(&store, "Dear Sir".repeat(1000)).unwrap();
    assert_eq!(moving.import(&["--apply"]).await.code, Some(1), "the tokens cannot be kept");
    assert!(std::fs::read_to_string(&toml).unwrap() == shipped && !kept.exists() && !secret.exists());
    assert_eq!(moving.odoo.changes(), Vec::<String>::new());
    std::fs::remove_file(&store).unwrap();

    let said = moving.import(&["--apply"]).await.success();
    assert!(said.contains("relay.toml.before-import") && said.contains("Odoo is set to the relay"), "{said}");
    assert_eq!(std::fs::read_to_string(&kept).unwrap(), shipped);
    assert!(std::fs::read_to_string(&toml).unwrap().contains(CLIENT_ID));
}

/// What an outgoing server is set to, by its name.
fn filters(moving: &Move) -> Vec<(String, String)> {
    let rows = moving.odoo.rows("ir.mail_server").into_iter();
    let active = rows.filter(|row| row.get("active") != Some(&Value::Bool(false)));
    active
        .map(|row| {
            ["name", "from_filter"].map(|field| row.get(field).and_then(Value::text).unwrap().to_owned())
        })
        .map(|[name, filter]| (name, filter))
        .collect()
}

#[tokio::test]
async fn apply_sets_odoo_to_the_relay_and_undo_puts_it_back() {
    for (version, relay) in [("16.0", ["example.com"].as_slice()), ("19.0", &["example.com,example.org"])] {
        let moving = Move::of(version).await;
        let before = moving.odoo.everything();
        let preview = moving.import(&["--dry-run", "--apply"]).await.success();
        assert!(preview.contains("outgoing server 2 \"john@example.com\": archived"), "{preview}");
        assert_eq!(moving.odoo.everything(), before);
        let said = moving.import(&["--apply"]).await.success();
        for line in preview.split("changes in Odoo:\n").nth(1).unwrap().lines() {
            let words = line.trim_start_matches("- ");
            assert!(said.contains(&format!("Odoo: {words}")), "{words}: {said}");
        }
        let servers = filters(&moving);
        let google = ("Google".to_owned(), "x@gmail.test".to_owned());
        assert_eq!(servers[0], google, "what is not taken over stays");
        let to_relay: Vec<&str> = servers[1..].iter().map(|(_, filter)| filter.as_str()).collect();
        assert_eq!(to_relay, relay, "{version}");
        let inbox = &moving.odoo.rows("fetchmail.server")[0];
        assert_eq!(inbox["state"], text("draft"));
        let everything = format!("{:?}", moving.odoo.everything());
        for token in moving.world.entra.refresh_tokens() {
            assert!(!everything.contains(&token), "{version}: {everything}");
            let record = moving.toml().with_file_name("odoo-before-import.json");
            assert!(!std::fs::read_to_string(record).unwrap().contains(&token));
        }
        let applied = moving.odoo.everything();
        moving.import(&["--apply"]).await.success();
        assert_eq!(moving.odoo.everything(), applied, "a second time changes nothing");

        let undone = moving.import(&["--undo"]).await.success();
        assert!(undone.contains("Odoo is as it was"), "{undone}");
        let mut expected = before;
        // Odoo gets a new access token by itself.
        for rows in expected.values_mut() {
            for row in rows.iter_mut().filter(|row| row.contains_key("microsoft_outlook_refresh_token")) {
                if row["microsoft_outlook_refresh_token"] != Value::Bool(false) {
                    row.insert("microsoft_outlook_access_token".to_owned(), Value::Bool(false));
                    row.insert("microsoft_outlook_access_token_expiration".to_owned(), Value::Int(0));
                }
            }
        }
        assert_eq!(moving.odoo.everything(), expected, "{version}");
        let again = moving.import(&["--undo"]).await;
        assert!(again.code == Some(1) && again.stderr.contains("nothing to undo"), "{again:?}");
    }
}

#[tokio::test]
async fn what_fails_half_way_is_said_and_can_go_on_or_back() {
    for go_on in [true, false] {
        let moving = Move::of("19.0").await;
        moving.odoo.refuse("fetchmail.server.write", "Somebody uses it.");
        let half = moving.import(&["--apply"]).await;
        assert_eq!(half.code, Some(1));
        assert!(
            half.stderr.contains("4 of 9 steps") && half.stderr.contains("Somebody uses it."),
            "{half:?}"
        );
        let open = half.stdout.split("Not done yet:").nth(1).unwrap();
        assert!(open.contains("incoming server 1") && !open.contains("archived"), "{half:?}");
        moving.odoo.allow_all();
        if go_on {
            let rest = moving.import(&["--apply"]).await.success();
            assert!(rest.contains("not confirmed (draft)") && !rest.contains("archived"), "{rest}");
            assert_eq!(filters(&moving).len(), 2);
        } else {
            moving.import(&["--undo"]).await.success();
            assert_eq!(moving.odoo.rows("fetchmail.server")[0]["state"], text("done"));
            assert_eq!(filters(&moving).len(), 4);
            assert!(filters(&moving).iter().all(|(name, _)| name != "outlook-relay"));
        }
    }
}

#[tokio::test]
async fn a_mailbox_that_the_configuration_lacks_stays_in_odoo() {
    let moving = Move::of("19.0").await;
    moving.import(&[]).await.success();
    let token = moving.world.entra.add_mailbox("new@example.com");
    moving.outgoing("new", "outlook", "new@example.com", 30, &token);
    let refused = moving.import(&["--apply"]).await;
    assert!(
        refused.code == Some(1) && refused.stderr.contains("new@example.com is a mailbox in Odoo"),
        "{refused:?}"
    );
    assert_eq!(moving.odoo.changes(), Vec::<String>::new());
}
