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
    let Parsed { value, mistakes, .. } =
        parse(&text, folder.path(), None, |root| root.section("submission", Config::read));
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
    assert!(config.credentials.is_none() && config.tls.is_none());
}

#[test]
fn an_address_is_named_and_only_once() {
    for (text, said) in [
        ("listen = []", "is empty"),
        ("listen = [\"127.0.0.1:25\", \"[::1]:25\", \"127.0.0.1:25\"]", "twice"),
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
    let credentials = config.credentials.unwrap();
    assert_eq!((credentials.user.as_str(), credentials.password.expose_secret()), ("odoo", "open sesame"));
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
