use std::os::unix::fs::OpenOptionsExt as _;

use secrecy::ExposeSecret as _;

use super::*;
use crate::section::{Mistake, Parsed, parse};

/// A folder with a password file, a certificate and its key.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let certificate = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let files = [
        ("password", "open sesame\n".to_owned()),
        ("certificate.pem", certificate.cert.pem()),
        ("key.pem", certificate.signing_key.serialize_pem()),
    ];
    for (name, text) in files {
        let mut options = std::fs::OpenOptions::new();
        let mut file =
            options.write(true).create_new(true).mode(0o600).open(folder.path().join(name)).unwrap();
        std::io::Write::write_all(&mut file, text.as_bytes()).unwrap();
    }
    folder
}

fn read(text: &str) -> (Config, Vec<Mistake>) {
    let folder = folder();
    let text = format!("[submission]\n{text}");
    let Parsed { value, mistakes, .. } = parse(&text, folder.path(), None, |root| {
        let mailboxes = ["john@example.com", "news@example.com"].map(|one| one.parse().unwrap());
        root.section("submission", |section| Config::read(section, &mailboxes))
    });
    (value, mistakes)
}

const USER: &str = "user = \"odoo\"\npassword_file = \"password\"\n";
const TLS: &str = "tls_certificate = \"certificate.pem\"\ntls_key = \"key.pem\"\n";

#[test]
fn defaults() {
    let (config, mistakes) = read("");
    assert_eq!(mistakes, []);
    assert_eq!(config.listen, [DEFAULT_LISTEN]);
    assert_eq!(config.max_message_size, 35 * 1024 * 1024);
    assert!(config.users.is_empty() && config.tls.is_none() && config.listen_tls.is_empty());
    assert_eq!(config.limits, Limits::default());
}

#[test]
fn an_address_is_named_and_only_once() {
    for (text, said) in [
        ("listen = []", "is empty"),
        ("listen = [\"127.0.0.1:25\", \"[::1]:25\", \"127.0.0.1:25\"]", "twice"),
        (&format!("listen_tls = [\"[::1]:465\", \"[::1]:465\"]\n{TLS}"), "twice"),
        (&format!("listen_tls = [\"127.0.0.1:2525\"]\n{TLS}"), "twice"),
    ] {
        let (_, mistakes) = read(text);
        assert!(mistakes.len() == 1 && mistakes[0].message.contains(said), "{text}: {mistakes:?}");
    }
}

#[test]
fn everything_set() {
    let (config, mistakes) =
        read(&format!("listen = [\"127.0.0.1:25\", \"[::1]:25\"]\nmax_message_size = \"1 MB\"\n{USER}{TLS}"));
    assert_eq!(mistakes, []);
    assert_eq!(config.listen, ["127.0.0.1:25".parse().unwrap(), "[::1]:25".parse().unwrap()]);
    assert_eq!(config.max_message_size, 1_000_000);
    assert!(config.tls.is_some());
    assert!(!format!("{config:?}").contains("sesame"));
    let user = &config.users[0];
    assert_eq!((user.name.as_str(), user.password.expose_secret()), ("odoo", "open sesame"));
    assert!(user.senders.is_none() && user.mailbox.is_none());
}

#[test]
fn other_machines_are_only_let_in_with_a_password_over_tls() {
    for address in ["0.0.0.0:25", "[::]:25", "192.0.2.1:25", "[::ffff:192.0.2.1]:25"] {
        for (text, safe) in
            [("", false), (USER, false), (TLS, false), (&format!("{USER}{TLS}") as &str, true)]
        {
            let (_, mistakes) = read(&format!("listen = [\"127.0.0.1:25\", \"{address}\"]\n{text}"));
            assert_eq!(mistakes.is_empty(), safe, "{address} with {text:?}: {mistakes:?}");
        }
    }
    let (_, mistakes) = read(&format!("listen_tls = [\"0.0.0.0:465\"]\n{TLS}"));
    assert!(mistakes.len() == 1 && mistakes[0].key == "submission.listen_tls", "{mistakes:?}");
    assert_eq!(read(&format!("listen = []\nlisten_tls = [\"0.0.0.0:465\"]\n{TLS}{USER}")).1, []);
    for address in ["127.0.0.1:25", "127.9.9.9:25", "[::1]:25", "[::ffff:127.0.0.1]:25"] {
        assert_eq!(read(&format!("listen = [\"{address}\"]")).1, [], "{address}");
    }
}

#[test]
fn mistakes_are_named() {
    let table = [
        ("listen = [\"localhost\"]", "submission.listen", ""),
        ("listen = [\"0.0.0.0:25\"]", "submission.listen", "0.0.0.0:25 can be reached from other machines"),
        ("max_message_size = \"0 MB\"", "submission.max_message_size", "is out of range"),
        ("max_message_size = \"1 GiB\"", "submission.max_message_size", "is out of range"),
        ("user = \"odoo\"", "submission.user", "needs password_file"),
        ("user = \"\"\npassword_file = \"password\"", "submission.user", "is empty"),
        ("password_file = \"password\"", "submission.password_file", "needs user"),
        ("user = \"odoo\"\npassword_file = \"absent\"", "submission.password_file", ""),
        ("listen_tls = [\"127.0.0.1:465\"]", "submission.listen_tls", "needs tls_certificate"),
        ("max_sessions = 0", "submission.max_sessions", "is out of range"),
        ("max_recipients = 99", "submission.max_recipients", "is out of range"),
        ("memory = \"1 kB\"", "submission.memory", "is out of range"),
        ("idle_timeout = \"0s\"", "submission.idle_timeout", "is out of range"),
        ("user = 7", "submission.user", ""),
        ("tls_key = \"key.pem\"", "submission.tls_key", "needs tls_certificate"),
        ("tls_certificate = \"certificate.pem\"", "submission.tls_certificate", "needs tls_key"),
        ("tls_certificate = \"password\"\ntls_key = \"key.pem\"", "submission.tls_certificate", "names "),
        ("tls_certificate = \"certificate.pem\"\ntls_key = \"password\"", "submission.tls_key", "names "),
    ];
    for (text, key, message) in table {
        let (_, mistakes) = read(text);
        assert_eq!(mistakes.len(), 1, "{text:?}: {mistakes:?}");
        assert_eq!(mistakes[0].key, key, "{text:?}");
        assert!(mistakes[0].message.starts_with(message), "{text:?}: {}", mistakes[0].message);
        assert!(!mistakes[0].message.contains("sesame"), "{text:?}: {}", mistakes[0].message);
    }
}

#[test]
fn several_users() {
    let (config, mistakes) = read(
        "[[submission.user]]\nname = 'odoo'\npassword_file = 'password'\nsenders = 'example.com, eve@x.test'\n\
         [[submission.user]]\nname = 'news'\npassword_file = 'password'\nmailbox = 'News@example.com'\n",
    );
    assert_eq!(mistakes, []);
    let [odoo, news] = config.users.as_slice() else { panic!("{:?}", config.users) };
    assert_eq!((odoo.name.as_str(), &odoo.mailbox), ("odoo", &None));
    assert!(odoo.senders.as_ref().unwrap().allow_envelope("eve@x.test"));
    assert_eq!(news.mailbox.as_ref().map(Address::as_str), Some("news@example.com"));
    assert!(!format!("{config:?}").contains("sesame"));
}

#[test]
fn mistakes_in_users_are_named() {
    let user = "[[submission.user]]\nname = 'odoo'\npassword_file = 'password'\n";
    let table = [
        (format!("{user}{user}"), "submission.user[2].name", "already is the user of line 2"),
        (format!("{user}mailbox = 'eve@x.test'\n"), "submission.user[1].mailbox", "eve@x.test is no mailbox"),
        (format!("{user}mailbox = 'eve'\n"), "submission.user[1].mailbox", ""),
        (format!("{user}senders = ''\n"), "submission.user[1].senders", "holds \"\", which is neither"),
        (format!("{user}senders = 'a@b@c'\n"), "submission.user[1].senders", "holds "),
        (
            format!("{user}sender = 'a@b.c'\n"),
            "submission.user[1].sender",
            "is not a key that outlook-relay knows",
        ),
        (format!("password_file = 'password'\n{user}"), "submission.password_file", "has no place beside"),
        ("[[submission.user]]\nname = 'odoo'\n".to_owned(), "submission.user[1].password_file", "is missing"),
        (
            "[[submission.user]]\npassword_file = 'password'\n".to_owned(),
            "submission.user[1].name",
            "is missing",
        ),
        (user.replace("'odoo'", "''"), "submission.user[1].name", "is empty"),
        (user.replace("'password'", "'absent'"), "submission.user[1].password_file", "names "),
    ];
    for (text, key, message) in table {
        let (_, mistakes) = read(&text);
        assert_eq!(mistakes.len(), 1, "{text:?}: {mistakes:?}");
        assert_eq!(mistakes[0].key, key, "{text:?}");
        assert!(mistakes[0].message.starts_with(message), "{text:?}: {}", mistakes[0].message);
    }
}

/// `user` cannot stand in the shipped file in both of its forms: this is the other one, which is shown indented.
#[test]
fn the_shipped_file_shows_every_key_of_a_user() {
    let shipped = include_str!("../../config/relay.toml");
    let shown: String = shipped
        .lines()
        .filter_map(|line| line.strip_prefix("#    "))
        .map(|line| format!("{line}\n"))
        .collect();
    let folder = folder();
    for name in ["odoo-submission-password", "news-submission-password"] {
        std::fs::copy(folder.path().join("password"), folder.path().join(name)).unwrap();
    }
    let mailboxes = ["notifications@example.com".parse().unwrap()];
    let parsed = parse(&shown, folder.path(), None, |root| {
        root.section("submission", |section| Config::read(section, &mailboxes))
    });
    assert_eq!(parsed.mistakes, []);
    assert_eq!(parsed.value.users.len(), 2);
    let known = parsed.known.iter().filter_map(|key| key.split_once("].").map(|(_, key)| key));
    for key in known {
        assert!(shown.contains(&format!("{key} = ")), "{key} is not shown");
    }
}
