//! Reading the configuration so that all of its mistakes are found at once, each with its place.
//!
//! Each module reads its own section through a [`Section`]: it asks for its keys one by one, and whatever is wrong with
//! one of them is collected, while reading goes on with the default. A key that nobody asked for is a mistake as well.
//! No message ever quotes a value's line: somebody may have pasted a secret there.

use crate::credentials;
use crate::units::Span;
use secrecy::SecretString;
use serde::de::{DeserializeOwned, IntoDeserializer};
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fmt;
use std::ops::Range;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// One mistake in the configuration, or a warning.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
pub struct Mistake {
    /// The line in the file, from 1; 0 where something is missing altogether.
    pub line: usize,
    /// The key, with its section: `mailbox[2].from_filter`.
    pub key: String,
    /// What is wrong, and what to write instead.
    pub message: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.line > 0 {
            write!(f, "{}: ", self.line)?;
        }
        if self.key.is_empty() {
            f.write_str(&self.message)
        } else {
            write!(f, "{}: {}", self.key, self.message)
        }
    }
}

/// What all sections of one file share.
#[derive(Debug)]
struct File<'i> {
    text: &'i str,
    folder: &'i Path,
    /// `$CREDENTIALS_DIRECTORY`, where systemd puts secrets (systemd.exec(5)).
    credentials: Option<&'i Path>,
    mistakes: RefCell<Vec<Mistake>>,
    warnings: RefCell<Vec<Mistake>>,
    known: RefCell<BTreeSet<String>>,
}

impl File<'_> {
    fn line(&self, span: &Range<usize>) -> usize {
        let before = self.text.get(..span.start).unwrap_or(self.text);
        before.bytes().filter(|&byte| byte == b'\n').count() + 1
    }

    fn mistake(&self, line: usize, key: String, message: String) {
        self.mistakes.borrow_mut().push(Mistake { line, key, message });
    }
}

/// One table of the file, while a module reads it.
#[derive(Debug)]
pub struct Section<'i> {
    file: &'i File<'i>,
    path: String,
    line: usize,
    entries: Vec<Entry<'i>>,
    asked: Vec<&'static str>,
}

#[derive(Debug)]
struct Entry<'i> {
    key: String,
    line: usize,
    value: Option<Spanned<DeValue<'i>>>,
}

/// A file that was read.
#[derive(Debug)]
pub struct Parsed<T> {
    /// What the modules made of it.
    pub value: T,
    /// Every mistake, in the order of their lines.
    pub mistakes: Vec<Mistake>,
    /// What can be used here, and not by the service.
    pub warnings: Vec<Mistake>,
    /// Every key that was asked for, with its section: `mailbox[2].from_filter`.
    pub known: BTreeSet<String>,
}

/// Reads a whole file: `read` is handed its root table.
pub fn parse<T>(
    text: &str,
    folder: &Path,
    credentials: Option<&Path>,
    read: impl FnOnce(&mut Section<'_>) -> T,
) -> Parsed<T> {
    let (mistakes, warnings, known) = (RefCell::default(), RefCell::default(), RefCell::default());
    let file = File { text, folder, credentials, mistakes, warnings, known };
    let (table, errors) = DeTable::parse_recoverable(text);
    for error in &errors {
        let line = error.span().map_or(0, |span| file.line(&span));
        file.mistake(line, String::new(), format!("is not TOML: {}", error.message()));
    }
    let mut root = Section::new(&file, String::new(), 0, table.into_inner());
    let value = read(&mut root);
    // After a syntax error the rest of the file was guessed at: what follows from the guess would only confuse.
    if errors.is_empty() {
        root.finish();
    } else {
        file.mistakes.borrow_mut().truncate(errors.len());
    }
    let mut mistakes = file.mistakes.into_inner();
    mistakes.sort();
    mistakes.dedup();
    Parsed { value, mistakes, warnings: file.warnings.into_inner(), known: file.known.into_inner() }
}

impl<'i> Section<'i> {
    fn new(file: &'i File<'i>, path: String, line: usize, table: DeTable<'i>) -> Self {
        let entries = table
            .into_iter()
            .map(|(key, value)| Entry {
                line: file.line(&key.span()),
                key: key.into_inner().into_owned(),
                value: Some(value),
            })
            .collect();
        Self { file, path, line, entries, asked: Vec::new() }
    }

    /// The value of `key`, if it is there and right.
    pub fn get<T: DeserializeOwned>(&mut self, key: &'static str) -> Option<T> {
        let value = self.take(key)?;
        match T::deserialize(value.into_deserializer()) {
            Ok(value) => Some(value),
            Err(error) => {
                self.mistake(key, error.message());
                None
            }
        }
    }

    /// The value of `key`, else the default.
    pub fn get_or<T: DeserializeOwned>(&mut self, key: &'static str, default: T) -> T {
        self.get(key).unwrap_or(default)
    }

    /// The value of `key`; that it is absent is a mistake, which says what the key is for.
    pub fn required<T: DeserializeOwned>(&mut self, key: &'static str, purpose: &str) -> Option<T> {
        if !self.has(key) {
            self.asked.push(key);
            self.mistake(key, format!("is missing: {purpose}"));
            return None;
        }
        self.get(key)
    }

    /// A duration with its unit, like `2 days` or `90s`, within the given range.
    pub fn duration(&mut self, key: &'static str, default: Duration, range: Range<Duration>) -> Duration {
        let Some(Span(value)) = self.get(key) else {
            return default;
        };
        if range.contains(&value) {
            return value;
        }
        self.mistake(key, format!("is out of range: from {:?} to below {:?}", range.start, range.end));
        default
    }

    /// A whole number within the given range.
    pub fn number(&mut self, key: &'static str, default: u32, range: std::ops::RangeInclusive<u32>) -> u32 {
        let Some(value) = self.get::<i64>(key) else {
            return default;
        };
        match u32::try_from(value) {
            Ok(value) if range.contains(&value) => value,
            _ => {
                self.mistake(key, format!("is out of range: from {} to {}", range.start(), range.end()));
                default
            }
        }
    }

    /// The contents of the file that `key` names, without the line end: a secret. A file that is missing, unreadable,
    /// empty or readable by everyone is a mistake.
    pub fn secret_file(&mut self, key: &'static str) -> Option<SecretString> {
        let path = self.private_path(key)?;
        match check_private(&path).and_then(|()| read_secret(&path)) {
            Ok(secret) => Some(secret),
            Err(error) => {
                self.mistake(key, error);
                None
            }
        }
    }

    /// As [`Self::path_of`], of a file that the service may only get from systemd. One that it may not read is a mistake,
    /// and where somebody else looks, a warning.
    pub fn private_path(&mut self, key: &'static str) -> Option<PathBuf> {
        let (name, path) = self.looked_up(key)?;
        match self.file.credentials {
            Some(credentials) => {
                if let Some(mistake) = credentials::unreadable(&name, &path, self.file.folder, credentials) {
                    self.mistake(key, mistake);
                    return None;
                }
            }
            None => {
                if let Some(message) = credentials::only_root(&name, &path, self.file.folder) {
                    let (line, key) = self.place(key);
                    self.file.warnings.borrow_mut().push(Mistake { line, key, message });
                }
            }
        }
        Some(path)
    }

    /// The path that `key` names: relative ones are looked up in `$CREDENTIALS_DIRECTORY`, then beside the file.
    pub fn path_of(&mut self, key: &'static str) -> Option<PathBuf> {
        self.looked_up(key).map(|(_, path)| path)
    }

    /// What the file says, and the path that it stands for.
    fn looked_up(&mut self, key: &'static str) -> Option<(PathBuf, PathBuf)> {
        let name: PathBuf = self.get(key)?;
        // The unit sets an empty line in place of a file that is not there: it is that file which somebody has to write.
        let given = |path: &PathBuf| path.metadata().is_ok_and(|credential| credential.len() > 1);
        let credential = self.file.credentials.map(|folder| folder.join(&name)).filter(given);
        let path = credential.unwrap_or_else(|| self.file.folder.join(&name));
        Some((name, path))
    }

    /// The folder of the file, against which relative paths are taken.
    pub fn folder(&self) -> &Path {
        self.file.folder
    }

    /// The table `key`, read by `read`; an absent one is read as an empty one, so that its defaults hold.
    pub fn section<T>(&mut self, key: &'static str, read: impl FnOnce(&mut Section<'i>) -> T) -> T {
        let line = self.line_of(key);
        let table = match self.take(key).map(Spanned::into_inner) {
            Some(DeValue::Table(table)) => table,
            Some(_) => {
                self.mistake(key, format!("is a section: write [{key}]"));
                DeTable::new()
            }
            None => DeTable::new(),
        };
        let mut section = Section::new(self.file, key.to_owned(), line, table);
        let parsed = read(&mut section);
        section.finish();
        parsed
    }

    /// Each table of the list `key` (`[[key]]` in the file), read by `read`.
    pub fn sections<T>(&mut self, key: &'static str, mut read: impl FnMut(&mut Section<'i>) -> T) -> Vec<T> {
        let tables = match self.take(key).map(Spanned::into_inner) {
            Some(DeValue::Array(tables)) => tables.into_iter().collect(),
            Some(_) => {
                self.mistake(key, format!("is a list of sections: write [[{key}]]"));
                Vec::new()
            }
            None => Vec::new(),
        };
        let path = self.path_to(key);
        let mut parsed = Vec::with_capacity(tables.len());
        for (index, table) in tables.into_iter().enumerate() {
            let line = self.file.line(&table.span());
            let DeValue::Table(table) = table.into_inner() else {
                self.mistake(key, format!("is a list of sections: write [[{key}]]"));
                continue;
            };
            let mut section = Section::new(self.file, format!("{path}[{}]", index + 1), line, table);
            parsed.push(read(&mut section));
            section.finish();
        }
        parsed
    }

    /// The section's own line in the file.
    pub fn line(&self) -> usize {
        self.line
    }

    /// Whether the file has `key` here.
    pub fn has(&self, key: &str) -> bool {
        self.entries.iter().any(|entry| entry.key == key)
    }

    /// Where `key` stands, or would: its line, else the section's, and its name with its section.
    pub fn place(&self, key: &str) -> (usize, String) {
        (self.line_of(key), self.path_to(key))
    }

    /// Whether `key` is a list of sections here (`[[key]]`), of a key that may also be a plain value.
    pub fn has_sections(&self, key: &str) -> bool {
        let is_list = |entry: &Entry<'_>| {
            entry.value.as_ref().is_some_and(|value| matches!(value.get_ref(), DeValue::Array(_)))
        };
        self.entries.iter().any(|entry| entry.key == key && is_list(entry))
    }

    /// Notes a mistake at `key`.
    pub fn mistake(&self, key: &str, message: impl Into<String>) {
        self.file.mistake(self.line_of(key), self.path_to(key), message.into());
    }

    fn path_to(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    /// The line of `key`, else of the section.
    fn line_of(&self, key: &str) -> usize {
        self.entries.iter().find(|entry| entry.key == key).map_or(self.line, |entry| entry.line)
    }

    fn take(&mut self, key: &'static str) -> Option<Spanned<DeValue<'i>>> {
        self.asked.push(key);
        self.entries.iter_mut().find(|entry| entry.key == key)?.value.take()
    }

    /// What nobody asked for is unknown.
    fn finish(self) {
        self.file.known.borrow_mut().extend(self.asked.iter().map(|key| self.path_to(key)));
        for entry in self.entries.iter().filter(|entry| !self.asked.contains(&entry.key.as_str())) {
            let near = self
                .asked
                .iter()
                .map(|known| (strsim::jaro_winkler(known, &entry.key), known))
                .filter(|(likeness, _)| *likeness > 0.8)
                .max_by(|a, b| a.0.total_cmp(&b.0));
            let hint = near.map_or_else(String::new, |(_, known)| format!(": did you mean {known}?"));
            self.mistake(&entry.key, format!("is not a key that outlook-relay knows{hint}"));
        }
    }
}

/// What is wrong with a secret's file being readable by everyone, if it is.
///
/// # Errors
/// The words, which follow the name of the key or option.
pub fn check_private(path: &Path) -> Result<(), String> {
    let mode = std::fs::metadata(path).map_or(0, |metadata| metadata.permissions().mode() & 0o777);
    if mode & 0o007 == 0 {
        return Ok(());
    }
    let shown = path.display();
    Err(format!("names {shown}, which everyone may read (mode {mode:04o}): chmod 600 {shown}"))
}

/// A secret from its file, without the line end.
///
/// # Errors
/// What is wrong with the file, in words that follow the name of the key or option: missing, empty, several lines, …
pub fn read_secret(path: &Path) -> Result<SecretString, String> {
    let shown = path.display();
    let unreadable = |error: std::io::Error| {
        let remedy = match error.kind() {
            std::io::ErrorKind::PermissionDenied => "run as a user who may read it",
            _ => "create it, with the secret as its only line",
        };
        format!("names {shown}, which cannot be read: {error}: {remedy}")
    };
    let metadata = std::fs::metadata(path).map_err(unreadable)?;
    if !metadata.is_file() {
        return Err(format!("names {shown}, which is not a file"));
    }
    if metadata.len() > 65_536 {
        return Err(format!("names {shown}, which is too large for a secret ({} bytes)", metadata.len()));
    }
    let text = std::fs::read_to_string(path).map_err(unreadable)?;
    // Windows' editors put a byte order mark in front, which nobody sees.
    let secret = text.strip_prefix('\u{feff}').unwrap_or(&text).trim_end_matches(['\r', '\n']);
    if secret.is_empty() {
        return Err(format!("names {shown}, which is empty: write the secret into it"));
    }
    if secret.contains(['\r', '\n']) {
        return Err(format!("names {shown}, which has several lines: the secret must be its only line"));
    }
    Ok(SecretString::from(secret))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::Size;

    fn mistakes(text: &str, read: impl FnOnce(&mut Section<'_>)) -> Vec<String> {
        let folder = tempfile::tempdir().unwrap();
        parse(text, folder.path(), None, read).mistakes.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn every_mistake_is_found_with_its_place() {
        let found = mistakes(
            "colour = 1\n[odoo]\nurll = 'x'\nport = 'no'\n[[mailbox]]\nsequence = 99999999999\n",
            |root| {
                root.section("odoo", |odoo| {
                    odoo.get::<String>("url");
                    odoo.get::<u16>("port");
                });
                root.sections("mailbox", |mailbox| {
                    mailbox.number("sequence", 1, 0..=10);
                    mailbox.required::<String>("address", "the mailbox's address");
                });
            },
        );
        assert_eq!(
            found,
            [
                "1: colour: is not a key that outlook-relay knows",
                "3: odoo.urll: is not a key that outlook-relay knows: did you mean url?",
                "4: odoo.port: invalid type: string \"no\", expected u16",
                "5: mailbox[1].address: is missing: the mailbox's address",
                "6: mailbox[1].sequence: is out of range: from 0 to 10",
            ]
        );
    }

    #[test]
    fn a_syntax_error_is_said_alone_and_without_its_line() {
        let found = mistakes("a = 1\nclient_secret = hunter2secret\nb = 1\n", |_| ());
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].starts_with("2: is not TOML") && !found[0].contains("hunter2secret"), "{found:?}");
    }

    #[test]
    fn durations_and_sizes_carry_units() {
        let text = "a = '2 days'\nb = '35 MiB'\nc = 5\nd = '5'\ne = '1h 30m'\nf = '500kB'\n";
        let found = mistakes(text, |root| {
            let all = Duration::ZERO..Duration::MAX;
            assert_eq!(root.duration("a", Duration::ZERO, all.clone()), Duration::from_secs(172_800));
            assert_eq!(root.get("b"), Some(Size(35 << 20)));
            assert_eq!(root.duration("c", Duration::ZERO, all.clone()), Duration::ZERO);
            assert_eq!(root.get::<Size>("d"), None);
            assert_eq!(root.duration("e", Duration::ZERO, all), Duration::from_secs(5_400));
            assert_eq!(root.get("f"), Some(Size(500_000)));
        });
        assert_eq!(found.len(), 2, "{found:?}");
    }

    #[test]
    fn a_secret_must_be_private_and_is_looked_up_among_the_credentials_first() {
        let folder = tempfile::tempdir().unwrap();
        let credentials = tempfile::tempdir().unwrap();
        let write = |path: PathBuf, text: &str, mode: u32| {
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        };
        write(folder.path().join("both"), "beside", 0o600);
        write(credentials.path().join("both"), "credential\n", 0o400);
        // As the unit sets them for files that are not there.
        write(credentials.path().join("windows"), "\n", 0o400);
        write(credentials.path().join("missing"), "\n", 0o400);
        write(folder.path().join("open"), "s", 0o644);
        write(folder.path().join("empty"), "\n", 0o600);
        write(folder.path().join("two"), "a\nb\n", 0o600);
        write(folder.path().join("windows"), "\u{feff}secret\r\n", 0o600);
        let text = "windows = 'windows'\nboth = 'both'\nopen = 'open'\nempty = 'empty'\ntwo = 'two'\nmissing = 'missing'\n";
        let parsed = parse(text, folder.path(), Some(credentials.path()), |root| {
            use secrecy::ExposeSecret;
            assert_eq!(root.secret_file("windows").unwrap().expose_secret(), "secret");
            assert_eq!(root.secret_file("both").unwrap().expose_secret(), "credential");
            for key in ["open", "empty", "two", "missing"] {
                assert!(root.secret_file(key).is_none());
            }
        });
        let said: Vec<_> = parsed.mistakes.iter().map(|mistake| mistake.message.as_str()).collect();
        assert!(said[0].contains("everyone may read (mode 0644): chmod 600"), "{said:?}");
        assert!(said[1].contains("is empty") && said[2].contains("several lines"), "{said:?}");
        assert!(said[3].contains("cannot be read"), "{said:?}");
        assert!(said[3].contains(&folder.path().display().to_string()), "{said:?}");
    }
}
