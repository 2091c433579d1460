//! Normalised addresses and domains.
//!
//! What counts as an address, and when two are the same, follows Odoo's `email_normalize`: the From filter compares
//! addresses, so the relay must see exactly the addresses that Odoo sees. The `list` module reads them out of a header.

use std::fmt;
use std::str::FromStr;

pub(crate) mod list;
#[cfg(test)]
mod tests;

/// A normalised address (RFC 5322 addr-spec): domain in lower case, local part in lower case if it is ASCII.
///
/// It holds no white space, no control character and no angle bracket, and it reads back as itself, so it can stand in
/// a header or a command as it is. There is no IDNA mapping: `xn--` and Unicode forms of a domain are different, as
/// they are to Odoo's From filter.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Address {
    spec: String,
    /// Where the last `@` stands in `spec`.
    at: usize,
}

/// The text is not one bare address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not an email address: write one address without a name, like sales@example.com")]
pub struct InvalidAddress {
    /// What was seen, cut to a length that fits a message for people.
    text: String,
}

impl Address {
    /// The address in `text`, which may have a display name around it. `None` unless exactly one is found, which is
    /// the rule of Odoo's `email_normalize`.
    pub fn normalise(text: &str) -> Option<Self> {
        let [(_, address)] = <[_; 1]>::try_from(Self::all(text)).ok()?;
        Some(address)
    }

    /// Every address in `text` with its display name (empty if it has none), in order: Odoo's
    /// `email_split_and_format_normalize`, not yet formatted.
    pub(crate) fn all(text: &str) -> Vec<(String, Self)> {
        list::mailboxes(text)
            .into_iter()
            .filter_map(|(name, spec)| Self::from_spec(&spec).map(|address| (name, address)))
            .collect()
    }

    /// Normalises an addr-spec. What does not read back as itself is refused: it would change its meaning when it is
    /// written into a header.
    pub(crate) fn from_spec(spec: &str) -> Option<Self> {
        let (local, domain) = spec.rsplit_once('@')?;
        let refused = |c: char| c.is_control() || c.is_whitespace() || matches!(c, '<' | '>');
        if local.is_empty() || domain.is_empty() || spec.contains(refused) {
            return None;
        }
        let local = if local.is_ascii() { local.to_ascii_lowercase() } else { local.to_owned() };
        let spec = format!("{local}@{}", domain.to_lowercase());
        match list::addresses(&spec).as_slice() {
            [(name, read)] if name.is_empty() && *read == spec => Some(Self { at: local.len(), spec }),
            _ => None,
        }
    }

    /// The whole address, `local@domain`.
    pub fn as_str(&self) -> &str {
        &self.spec
    }

    /// What stands before the last `@`.
    pub fn local(&self) -> &str {
        self.spec.get(..self.at).unwrap_or_default()
    }

    /// What stands after the last `@`.
    pub fn domain(&self) -> &str {
        self.spec.get(self.at + 1..).unwrap_or_default()
    }

    /// The address with a display name, as Odoo's `formataddr` writes it: `"Name" <local@domain>`, or the bare address
    /// if the name is empty.
    pub fn with_name(&self, name: &str) -> String {
        list::format(name, &self.spec)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.spec)
    }
}

impl TryFrom<&str> for Address {
    type Error = InvalidAddress;

    /// Takes one bare address. A display name is refused here: where a person writes an address (the configuration, a
    /// command), a name around it is a mistake that should not pass in silence.
    fn try_from(text: &str) -> Result<Self, InvalidAddress> {
        Self::from_spec(text.trim()).ok_or_else(|| InvalidAddress { text: text.chars().take(100).collect() })
    }
}

impl TryFrom<String> for Address {
    type Error = InvalidAddress;

    fn try_from(text: String) -> Result<Self, InvalidAddress> {
        Self::try_from(text.as_str())
    }
}

impl FromStr for Address {
    type Err = InvalidAddress;

    fn from_str(text: &str) -> Result<Self, InvalidAddress> {
        Self::try_from(text)
    }
}

impl From<Address> for String {
    fn from(address: Address) -> Self {
        address.spec
    }
}

/// A domain in lower case; `None` if it is blank or holds an `@` (Odoo's `email_domain_normalize`).
pub fn normalise_domain(text: &str) -> Option<String> {
    let text = text.trim();
    (!text.is_empty() && !text.contains('@')).then(|| text.to_lowercase())
}
