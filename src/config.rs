//! The whole configuration: loads the file, has each module read its section, and checks across them.

use crate::routing::Routes;
use crate::section::{self, Mistake, Parsed, Section};
use crate::{admin, delivery, fetch, logging, mailbox, microsoft, odoo, store, submission};
use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};

/// The `client_id` of the shipped file. No app has it; the package starts nothing before it is replaced.
const PLACEHOLDER: &str = "00000000-0000-0000-0000-000000000000";

/// Everything that the file says, with its defaults.
#[derive(Clone, Debug)]
pub struct Config {
    /// `[microsoft]`
    pub microsoft: microsoft::Config,
    /// `[odoo]`
    pub odoo: odoo::Config,
    /// `[submission]`
    pub submission: submission::Config,
    /// `[store]`
    pub store: store::Config,
    /// `[admin]`
    pub admin: admin::Config,
    /// `[log]`
    pub log: logging::Config,
    /// Each `[[mailbox]]`, in the file's order.
    pub mailboxes: Vec<mailbox::Config>,
    /// What can be used and yet is most likely not what was meant, in the order of its lines.
    pub warnings: Vec<Mistake>,
}

/// Why a configuration cannot be used: every mistake in it.
#[derive(Debug)]
pub struct Mistakes {
    file: PathBuf,
    mistakes: Vec<Mistake>,
}

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, mistake) in self.mistakes.iter().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            let colon = if mistake.line == 0 { ": " } else { ":" };
            write!(f, "{}{colon}{mistake}", self.file.display())?;
        }
        Ok(())
    }
}

impl std::error::Error for Mistakes {}

impl Config {
    /// Reads a file and the secrets that it names; touches nothing else.
    ///
    /// # Errors
    /// A file that cannot be read, and every mistake in it.
    pub fn load(file: &Path) -> Result<Self, Mistakes> {
        let alone = |message: String| Mistakes {
            file: file.to_owned(),
            mistakes: vec![Mistake { line: 0, key: String::new(), message }],
        };
        let text = std::fs::read_to_string(file).map_err(|error| alone(unreadable(file, &error)))?;
        let folder = std::path::absolute(file).ok().and_then(|path| path.parent().map(Path::to_owned));
        let folder = folder.ok_or_else(|| alone("is not a file".to_owned()))?;
        let credentials = std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from);
        let Parsed { mut value, mistakes, warnings, .. } =
            section::parse(&text, &folder, credentials.as_deref(), Self::read);
        value.warnings.extend(warnings);
        value.warnings.sort();
        if mistakes.is_empty() { Ok(value) } else { Err(Mistakes { file: file.to_owned(), mistakes }) }
    }

    fn read(root: &mut Section<'_>) -> Self {
        let mut app = (0, String::new());
        let microsoft = root.section("microsoft", |s| {
            app = s.place("client_id");
            microsoft::Config::read_root(s)
        });
        let delivery = root.section("delivery", |s| delivery::Config::read(s, &delivery::Config::default()));
        let fetch = root.section("fetch", |s| fetch::Config::read(s, &fetch::Config::default()));
        let mut has_gateway = false;
        let mut odoo_line = 0;
        let odoo = root.section("odoo", |s| {
            has_gateway = s.has("url");
            odoo_line = s.line();
            odoo::Config::read(s)
        });
        let mut lines = HashMap::new();
        let mut filters = HashMap::new();
        let mailboxes = root.sections("mailbox", |section| {
            let mailbox = mailbox::Config::read(section, &microsoft, &delivery, &fetch)?;
            if let Some(first) = lines.insert(mailbox.address.clone(), section.line()) {
                let message = format!("{} already is the mailbox of line {first}: keep one", mailbox.address);
                section.mistake("address", message);
            }
            filters.insert(mailbox.address.clone(), section.place("from_filter"));
            if mailbox.microsoft.client_id.is_empty() {
                let message = format!("{} has no app: set client_id in [microsoft]", mailbox.address);
                section.mistake("client_id", message);
            }
            if mailbox.inbox && !has_gateway {
                section.mistake("inbox", "needs Odoo: set url, database, login and password_file in [odoo]");
            }
            Some(mailbox)
        });
        if mailboxes.is_empty() {
            root.mistake("mailbox", "is missing: at least one [[mailbox]] with its address");
        }
        let mailboxes: Vec<_> = mailboxes.into_iter().flatten().collect();
        let addresses: Vec<_> = mailboxes.iter().map(|mailbox| mailbox.address.clone()).collect();
        let mut config = Self {
            microsoft,
            odoo,
            submission: root.section("submission", |s| submission::Config::read(s, &addresses)),
            store: root.section("store", store::Config::read),
            admin: root.section("admin", admin::Config::read),
            log: root.section("log", logging::Config::read),
            mailboxes,
            warnings: Vec::new(),
        };
        if config.submission.addresses().any(|address| *address == config.admin.listen) {
            root.mistake("admin", "listens where [submission] listens: give it a port of its own");
        }
        let warnings = config.routes().warnings().into_iter().map(|warning| {
            let place = warning.mailbox.and_then(|mailbox| filters.get(&mailbox).cloned());
            let (line, key) = place.unwrap_or_else(|| (odoo_line, "odoo".to_owned()));
            Mistake { line, key, message: warning.message }
        });
        config.warnings = warnings.collect();
        if config.mailboxes.iter().any(|mailbox| mailbox.microsoft.client_id == PLACEHOLDER) {
            let message = "is the placeholder of the shipped file: write your app's Application (client) ID";
            config.warnings.push(Mistake { line: app.0, key: app.1, message: message.to_owned() });
        }
        config.warnings.sort();
        config
    }

    /// The From-filter rule over all mailboxes.
    pub fn routes(&self) -> Routes {
        let candidates = self.mailboxes.iter().map(mailbox::Config::candidate).collect();
        Routes::new(candidates, self.odoo.alias_domains.clone())
    }
}

/// Whether the file is there and still has the shipped file's `client_id` for its app: nobody has configured it yet.
pub fn is_placeholder(file: &Path) -> bool {
    let table = std::fs::read_to_string(file).ok().and_then(|text| text.parse::<toml::Table>().ok());
    let app = table.as_ref().and_then(|table| table.get("microsoft")?.get("client_id")?.as_str());
    app == Some(PLACEHOLDER)
}

/// Why there is no configuration, and what to do.
fn unreadable(file: &Path, error: &std::io::Error) -> String {
    let remedy = match error.kind() {
        std::io::ErrorKind::PermissionDenied => format!(
            "the service runs as a user of its own, and no secret stands in this file, so: chmod 644 {}, and chmod 755 for \
             its folder",
            file.display()
        ),
        _ => "name the configuration with -c FILE".to_owned(),
    };
    format!("cannot be read: {error}: {remedy}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::odoo::Scalar;
    use std::collections::BTreeSet;
    use std::os::unix::fs::PermissionsExt;

    const SHIPPED: &str = include_str!("../config/relay.toml");

    /// Parses a configuration beside which every secret that it may name exists.
    fn parse(text: &str) -> Parsed<Config> {
        let folder = tempfile::tempdir().unwrap();
        for secret in
            ["client-secret", "other-secret", "odoo-password", "submission-password", "admin-password"]
        {
            let path = folder.path().join(secret);
            std::fs::write(&path, "a secret\n").unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        }
        let key = folder.path().join("store-key");
        std::fs::write(&key, "c2l4IHRpbWVzIGZpdmUgYW5kIHR3byBhcmUgMzIgISE=\n").unwrap();
        std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
        let certified = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        for certificate in ["fullchain.pem", "extra-roots.pem"] {
            std::fs::write(folder.path().join(certificate), certified.cert.pem()).unwrap();
        }
        let key = folder.path().join("privkey.pem");
        std::fs::write(&key, certified.signing_key.serialize_pem()).unwrap();
        std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
        // Microsoft takes RSA keys only.
        let rsa = rcgen::KeyPair::generate_for(&rcgen::PKCS_RSA_SHA256).unwrap();
        let certified = rcgen::CertificateParams::default().self_signed(&rsa).unwrap();
        for name in ["client", "other"] {
            std::fs::write(folder.path().join(format!("{name}-certificate.pem")), certified.pem()).unwrap();
            let key = folder.path().join(format!("{name}-key.pem"));
            std::fs::write(&key, rsa.serialize_pem()).unwrap();
            std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
        }
        section::parse(text, folder.path(), None, Config::read)
    }

    /// The shipped file with its commented keys switched on, and how many those were.
    fn switched_on() -> (String, usize) {
        let is_key = |line: &str| {
            line.strip_prefix('#')
                .is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_lowercase() || c == '['))
        };
        let found = SHIPPED.lines().filter(|line| is_key(line)).count();
        let lines: Vec<&str> = SHIPPED
            .lines()
            .map(|line| if is_key(line) { line.trim_start_matches('#') } else { line })
            .collect();
        (lines.join("\n"), found)
    }

    #[test]
    fn the_shipped_file_is_well_as_it_stands_but_for_the_app_that_only_its_reader_knows() {
        let parsed = parse(SHIPPED);
        assert_eq!(parsed.mistakes, []);
        let [warning] = parsed.value.warnings.as_slice() else { panic!("{:?}", parsed.value.warnings) };
        let line = SHIPPED.lines().nth(warning.line - 1).unwrap();
        assert!(line.starts_with("client_id = ") && warning.message.contains("placeholder"), "{warning:?}");
        assert_eq!(parsed.value.mailboxes.len(), 2);
    }

    #[test]
    fn a_file_that_the_service_may_not_read_is_told_of_with_the_remedy() {
        let said = |kind: std::io::ErrorKind| unreadable(Path::new("/etc/x/relay.toml"), &kind.into());
        assert!(said(std::io::ErrorKind::PermissionDenied).contains("chmod 644 /etc/x/relay.toml"));
        let absent = said(std::io::ErrorKind::NotFound);
        assert!(absent.contains("-c FILE") && !absent.contains("chmod"), "{absent}");
    }

    #[test]
    fn the_shipped_file_shows_every_key_and_each_is_right() {
        let (text, found) = switched_on();
        assert!(found > 40, "only {found} commented keys were found: did the file's style change?");
        let parsed = parse(&text);
        assert_eq!(parsed.mistakes, []);
        let known: BTreeSet<String> = parsed.known.iter().map(|key| without_index(key)).collect();
        let mut shown = BTreeSet::new();
        keys("", &text.parse().unwrap(), &mut shown);
        assert_eq!(shown, known);
    }

    /// `mailbox[2].address` as `mailbox.address`.
    fn without_index(key: &str) -> String {
        let segments = key.split('.').map(|segment| segment.split('[').next().unwrap());
        segments.collect::<Vec<_>>().join(".")
    }

    /// Every key of a table and of the tables in it, but for those that name fields of Odoo's.
    fn keys(path: &str, table: &toml::Table, found: &mut BTreeSet<String>) {
        for (key, value) in table {
            let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
            let mut inside = value.as_array().map_or_else(|| vec![value], |list| list.iter().collect());
            inside.retain(|_| key != "custom_values");
            for table in inside.into_iter().filter_map(|value| value.as_table()) {
                keys(&path, table, found);
            }
            found.insert(path);
        }
    }

    #[test]
    fn alias_domains_stand_in_odoo_itself_in_tables_of_their_own_or_in_both() {
        let bounces = |text: &str| {
            let odoo = parse(text).value.odoo;
            let bounce = |mail_from| odoo.bounce(mail_from).map(ToString::to_string);
            [bounce("bounce@two.test"), bounce("elsewhere@x.test")]
        };
        let some = |address: &str| Some(address.to_owned());
        let single = "[odoo]\ncatchall_domain = 'one.test'\n";
        let table = "[[odoo.alias_domain]]\ncatchall_domain = 'two.test'\nbounce_alias = 'returns'\n";
        let both = format!("{single}{table}");
        assert_eq!(bounces(""), [None, None]);
        assert_eq!(bounces(single), [some("bounce@one.test"), some("bounce@one.test")]);
        assert_eq!(bounces(table), [some("returns@two.test"), some("returns@two.test")]);
        assert_eq!(bounces(&both), [some("returns@two.test"), some("bounce@one.test")]);
        let full = parse("[odoo]\ndefault_from = 'robot@x.test'\n").value.odoo;
        assert_eq!(full.alias_domains.len(), 1);
    }

    #[test]
    fn what_odoo_does_with_a_mailboxs_mail_is_read() {
        let odoo = "[odoo]\ncatchall_domain = \"example.com\"\nurl = \"http://127.0.0.1:8069\"\ndatabase = \"d\"\n\
                    password_file = \"odoo-password\"\nprotocol = \"json2\"\n";
        let file = |keys: &str| {
            format!(
                "[microsoft]\nclient_id = \"x\"\n{odoo}[[mailbox]]\naddress = \"j@example.com\"\ninbox = true\n{keys}\n"
            )
        };
        let parsed = parse(&file(
            "model = \"crm.lead\"\nsave_original = true\ncustom_values = { a = 1, b = \"x\", c = 0.5, d = false }",
        ));
        assert_eq!(parsed.mistakes, [], "a login is for XML-RPC");
        let intake = &parsed.value.mailboxes[0].intake;
        assert!(intake.save_original && !intake.strip_attachments);
        assert_eq!(intake.model.as_deref(), Some("crm.lead"));
        let expected = [
            ("a", Scalar::Int(1)),
            ("b", Scalar::Text("x".to_owned())),
            ("c", Scalar::Float(0.5)),
            ("d", Scalar::Bool(false)),
        ];
        assert_eq!(intake.custom_values, expected.map(|(field, value)| (field.to_owned(), value)).into());
        for (wrong, key) in [
            ("model = \"x\"\ncustom_values = { a = 3000000000 }", "custom_values"),
            ("model = \"x\"\ncustom_values = { a = [1] }", "custom_values"),
            ("model = \"x\"\ncustom_values = { a = inf }", "custom_values"),
            ("model = \"x\"\ncustom_values = { a = 2026-01-01 }", "custom_values"),
            ("model = \"x\"\ncustom_values = 1", "custom_values"),
            ("custom_values = { a = 1 }", "custom_values"),
            ("save_original = \"yes\"", "save_original"),
        ] {
            let mistakes = parse(&file(wrong)).mistakes;
            assert_eq!(mistakes.len(), 1, "{wrong}: {mistakes:?}");
            assert!(mistakes[0].key.ends_with(key), "{wrong}: {mistakes:?}");
        }
        let mistakes = parse(&file("").replace("json2", "xmlrpc")).mistakes;
        assert_eq!(mistakes.iter().map(|mistake| mistake.key.as_str()).collect::<Vec<_>>(), ["odoo.login"]);
    }

    #[test]
    fn warnings_come_with_their_lines() {
        let warnings = |text: &str| -> Vec<String> {
            parse(text).value.warnings.iter().map(ToString::to_string).collect()
        };
        let mailboxes = "[[mailbox]]\naddress = 'a@x.test'\nsequence = 20\nfrom_filter = 'a@x.test, *@x.test'\n\
                         [[mailbox]]\naddress = 'b@x.test'\n[[mailbox]]\naddress = 'c@x.test'\n";
        for (text, expected) in [
            (mailboxes.to_owned(), ["odoo: ", "4: mailbox[1].from_filter: ", "7: mailbox[3].from_filter: "]),
            (
                format!("\n[odoo]\ncatchall_domain = 'y.test'\n{mailboxes}"),
                ["2: odoo: ", "7: mailbox[1].from_filter: ", "10: mailbox[3].from_filter: "],
            ),
        ] {
            let said = warnings(&text);
            assert!(said.iter().zip(expected).all(|(line, start)| line.starts_with(start)), "{said:#?}");
            assert_eq!(said.len(), expected.len(), "{said:#?}");
        }
    }

    #[test]
    fn what_is_wrong_between_sections_is_said() {
        let cases: &[(&str, &str)] = &[
            ("", "mailbox: is missing"),
            ("[[mailbox]]\naddress = 'a@b.c'\n", "1: mailbox[1].client_id: a@b.c has no app"),
            (
                "[microsoft]\nclient_id = 'x'\n[[mailbox]]\naddress = 'a@b.c'\n[[mailbox]]\naddress = 'A@B.C'\n",
                "6: mailbox[2].address: a@b.c already is the mailbox of line 3: keep one",
            ),
            (
                "[microsoft]\nclient_id = 'x'\n[[mailbox]]\naddress = 'a@b.c'\ninbox = true\n",
                "5: mailbox[1].inbox: needs Odoo",
            ),
            (
                "[microsoft]\nclient_id = 'x'\n[submission]\nlisten = ['127.0.0.1:8025']\n[[mailbox]]\naddress = 'a@b.c'\n",
                "admin: listens where [submission] listens",
            ),
            ("[microsoft]\nclient_id = 'x'\n[[mailbox]]\naddress = 'nobody'\n", "4: mailbox[1].address: "),
            ("[store]\nurl = 'postgres://h/db'\n", "2: store.url: names PostgreSQL"),
            ("[store]\nkey_file = 'client-secret'\n", "2: store.key_file: names "),
            ("[store]\nkey_file = 'nowhere'\n", "cannot be read"),
            ("[store]\nurl = 'sqlite:relay.key'\n", "store.url: ends like the files beside the store"),
            ("[odoo]\nurl = 'http://h'\n", "odoo.password_file: is missing"),
            ("[odoo]\nurl = 'http://u:secret@h'\n", "2: odoo.url: holds a user or password"),
            (
                "[odoo]\nbounce_alias = 'a b'\ncatchall_domain = 'x.test'\n",
                "2: odoo.bounce_alias: makes no address",
            ),
            ("[odoo]\ncatchall_domain = 'x@y.test'\n", "2: odoo.catchall_domain: is not a domain"),
            ("[odoo]\ndefault_from = 'a@b@c'\n", "2: odoo.default_from: does not make an address"),
            (
                "[[odoo.alias_domain]]\ncatchall_domain = 'x y'\n",
                "2: odoo.alias_domain[1].catchall_domain: is not a domain",
            ),
            (
                "[[odoo.alias_domain]]\ndefault_from = 'x'\n",
                "1: odoo.alias_domain[1].catchall_domain: is missing",
            ),
            (
                "[odoo]\ncatchall_domain = 'x.test'\n[[odoo.alias_domain]]\ncatchall_domain = 'X.test'\n",
                "4: odoo.alias_domain[1].catchall_domain: makes a bounce address that another",
            ),
            (
                "[odoo]\ndefault_from = 'x'\n[[odoo.alias_domain]]\ncatchall_domain = 'x.test'\n",
                "2: odoo.default_from: belongs to catchall_domain",
            ),
            ("[odoo]\nurl = 'ftp://h'\n", "2: odoo.url: is not an address"),
            ("[submission]\nlisten = []\n", "2: submission.listen: is empty"),
        ];
        for (text, expected) in cases {
            let mistakes: Vec<String> = parse(text).mistakes.iter().map(ToString::to_string).collect();
            assert!(!mistakes.iter().any(|mistake| mistake.contains("secret@")), "{mistakes:#?}");
            assert!(mistakes.iter().any(|mistake| mistake.contains(expected)), "{text:?}: {mistakes:#?}");
        }
    }
}
