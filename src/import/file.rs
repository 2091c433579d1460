//! The relay.toml of a [`Plan`]: pure.

use super::plan::{Plan, Planned, Source};
use std::fmt::Write as _;

/// The account that feeds received mail in.
#[derive(Clone, Copy, Debug)]
pub struct Feed<'a> {
    /// Odoo's address.
    pub url: &'a str,
    /// The database.
    pub database: &'a str,
    /// Who.
    pub login: &'a str,
    /// Whether it is the administrator who reads the records, for want of another.
    pub is_administrator: bool,
}

/// Writes it, with where each value comes from. `store`: the `url` of `[store]`, where it is not the usual one.
pub fn relay_toml(plan: &Plan, feed: Feed<'_>, store: Option<&str>) -> String {
    let mut out = String::new();
    // Writing into a String does not fail.
    write_all(&mut out, plan, feed, store).unwrap_or_default();
    out
}

fn write_all(out: &mut String, plan: &Plan, feed: Feed<'_>, store: Option<&str>) -> std::fmt::Result {
    writeln!(out, "# outlook-relay, as `outlook-relay import-odoo` took it over from {}", comment(feed.url))?;
    writeln!(out, "# (database {}). Every key is described in relay.toml(5).", comment(feed.database))?;
    writeln!(out, "\n# The Azure app: Odoo's system parameters microsoft_outlook_*.\n[microsoft]")?;
    writeln!(out, "client_id = {}", quote(&plan.client_id))?;
    if plan.client_secret.is_some() {
        writeln!(out, "client_secret_file = \"client-secret\"")?;
        writeln!(out, "# Odoo does not know when the secret expires; the app's page does.")?;
        writeln!(out, "#client_secret_expires = 2027-11-20")?;
    }
    let endpoint = &plan.endpoint;
    for (key, value) in [
        ("tenant", endpoint.tenant.as_deref()),
        ("cloud", endpoint.cloud),
        ("authority", endpoint.authority.as_deref()),
    ] {
        if let Some(value) = value {
            writeln!(out, "# From microsoft_outlook.endpoint.\n{key} = {}", quote(value))?;
        }
    }
    writeln!(out, "\n[odoo]")?;
    for (key, value) in [("url", feed.url), ("database", feed.database), ("login", feed.login)] {
        if key == "login" && feed.is_administrator {
            writeln!(
                out,
                "# The account that the import was done with. A user of its own, with rights on the models behind"
            )?;
            writeln!(out, "# the aliases and no others, is better.")?;
        }
        writeln!(out, "{key} = {}", quote(value))?;
    }
    writeln!(out, "password_file = \"odoo-password\"")?;
    for (index, domain) in plan.domains.iter().enumerate() {
        if index == 0 {
            writeln!(out, "# Odoo's (first) alias domain; on Odoo 16 the system parameters mail.*.")?;
        } else {
            writeln!(out, "\n# A further alias domain of Odoo's.\n[[odoo.alias_domain]]")?;
        }
        for (key, value) in [
            ("catchall_domain", &domain.name),
            ("default_from", &domain.default_from),
            ("bounce_alias", &domain.bounce_alias),
        ] {
            if !value.is_empty() {
                writeln!(out, "{key} = {}", quote(value))?;
            }
        }
    }
    writeln!(out, "\n[submission]\n#listen = [\"127.0.0.1:2525\"]")?;
    if let Some(store) = store {
        writeln!(out, "\n[store]\nurl = {}", quote(store))?;
    }
    plan.mailboxes.iter().try_for_each(|mailbox| write_mailbox(out, mailbox))
}

fn write_mailbox(out: &mut String, mailbox: &Planned) -> std::fmt::Result {
    writeln!(out)?;
    let mut sources = |direction: &str, list: &[Source]| {
        list.iter().try_for_each(|source| {
            writeln!(out, "# From Odoo's {direction} server {}, {}.", source.id, comment(&source.name))
        })
    };
    sources("outgoing", &mailbox.outgoing)?;
    sources("incoming", &mailbox.incoming)?;
    writeln!(out, "[[mailbox]]\naddress = {}", quote(mailbox.address.as_str()))?;
    if mailbox.outgoing.is_empty() {
        writeln!(out, "# Odoo does not send through it: last, and for its own address alone.")?;
    }
    if let Some(filter) = &mailbox.from_filter {
        writeln!(out, "from_filter = {}", quote(filter))?;
    } else {
        writeln!(out, "# No from_filter, as in Odoo: it takes any From that no other mailbox takes.")?;
    }
    writeln!(out, "sequence = {}", mailbox.sequence)?;
    if mailbox.inbox {
        writeln!(out, "inbox = true")?;
    }
    for (key, value) in [("model", &mailbox.intake.model), ("smtp", &mailbox.smtp), ("imap", &mailbox.imap)] {
        if let Some(value) = value {
            writeln!(out, "{key} = {}", quote(value))?;
        }
    }
    for (key, set) in [
        ("save_original", mailbox.intake.save_original),
        ("strip_attachments", mailbox.intake.strip_attachments),
    ] {
        if set {
            writeln!(out, "{key} = true")?;
        }
    }
    Ok(())
}

/// A TOML basic string. Its escapes are JSON's, but for DEL, which JSON leaves as it is.
fn quote(text: &str) -> String {
    serde_json::Value::from(text).to_string().replace('\u{7f}', "\\u007f")
}

/// What a comment may hold: no line end and no control character.
fn comment(text: &str) -> String {
    crate::failure::one_line(text)
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
