//! The whole configuration: loads the file, has each module read its section, and checks across them.

use crate::section::{self, Mistake, Section};
use crate::{admin, delivery, fetch, mailbox, microsoft, odoo, store, submission};
use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};

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
    /// Each `[[mailbox]]`, in the file's order.
    pub mailboxes: Vec<mailbox::Config>,
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
            mistakes: vec![Mistake {
                line: 0,
                key: String::new(),
                message,
            }],
        };
        let text = std::fs::read_to_string(file).map_err(|error| {
            alone(format!(
                "cannot be read: {error}: name the configuration with -c FILE"
            ))
        })?;
        let folder = std::path::absolute(file)
            .ok()
            .and_then(|path| path.parent().map(Path::to_owned));
        let folder = folder.ok_or_else(|| alone("is not a file".to_owned()))?;
        let credentials = std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from);
        let (config, mistakes) = section::parse(&text, &folder, credentials.as_deref(), Self::read);
        if mistakes.is_empty() {
            Ok(config)
        } else {
            Err(Mistakes {
                file: file.to_owned(),
                mistakes,
            })
        }
    }

    fn read(root: &mut Section<'_>) -> Self {
        let microsoft = root.section("microsoft", microsoft::Config::read_root);
        let delivery = root.section("delivery", |s| {
            delivery::Config::read(s, &delivery::Config::default())
        });
        let fetch = root.section("fetch", |s| fetch::Config::read(s, &fetch::Config::default()));
        let odoo = root.section("odoo", odoo::Config::read);
        let has_gateway = odoo.gateway.is_some();
        let mut lines = HashMap::new();
        let mailboxes = root.sections("mailbox", |section| {
            let mailbox = mailbox::Config::read(section, &microsoft, &delivery, &fetch)?;
            if let Some(first) = lines.insert(mailbox.address.clone(), section.line()) {
                let message = format!(
                    "{} already is the mailbox of line {first}: keep one",
                    mailbox.address
                );
                section.mistake("address", message);
            }
            if mailbox.microsoft.client_id.is_empty() {
                let message = format!("{} has no app: set client_id in [microsoft]", mailbox.address);
                section.mistake("client_id", message);
            }
            if mailbox.inbox && !has_gateway {
                section.mistake(
                    "inbox",
                    "needs Odoo: set url, database, login and password_file in [odoo]",
                );
            }
            Some(mailbox)
        });
        if mailboxes.is_empty() {
            root.mistake("mailbox", "is missing: at least one [[mailbox]] with its address");
        }
        let config = Self {
            microsoft,
            odoo,
            submission: root.section("submission", submission::Config::read),
            store: root.section("store", store::Config::read),
            admin: root.section("admin", admin::Config::read),
            mailboxes: mailboxes.into_iter().flatten().collect(),
        };
        if config.submission.listen.contains(&config.admin.listen) {
            root.mistake(
                "admin",
                "listens where [submission] listens: give it a port of its own",
            );
        }
        config
    }
}
