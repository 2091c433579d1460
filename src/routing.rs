//! Which mailbox sends a message, and with which From: Odoo's From filter (`ir.mail_server`, Odoo 17 to 19).
//!
//! Pure: the From goes in, the mailbox and the new From come out.

use std::fmt;
use std::str::FromStr;

use crate::address::{Address, list, normalise_domain};

#[cfg(test)]
mod tests;

/// Why a mailbox was taken. The first that holds wins, in this order.
#[derive(serde::Serialize, serde::Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum Rule {
    /// Its filter holds the address of the From.
    Address,
    /// Its filter holds the domain of the From.
    Domain,
    /// Its filter holds the notifications address.
    NotificationsAddress,
    /// Its filter holds the domain of the notifications address.
    NotificationsDomain,
    /// It has no filter.
    Unfiltered,
    /// Nothing matches, and it is the first there is. Worth a warning: Microsoft will most likely refuse the message.
    First,
}

impl Rule {
    const ALL: [Self; 6] = [
        Self::Address,
        Self::Domain,
        Self::NotificationsAddress,
        Self::NotificationsDomain,
        Self::Unfiltered,
        Self::First,
    ];

    /// The name it has in logs, in JSON and in the store.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Address => "address",
            Self::Domain => "domain",
            Self::NotificationsAddress => "notifications_address",
            Self::NotificationsDomain => "notifications_domain",
            Self::Unfiltered => "unfiltered",
            Self::First => "first",
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The text names no rule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a routing rule")]
pub struct UnknownRule(String);

impl FromStr for Rule {
    type Err = UnknownRule;

    fn from_str(text: &str) -> Result<Self, UnknownRule> {
        Self::ALL.into_iter().find(|rule| rule.as_str() == text).ok_or_else(|| UnknownRule(text.to_owned()))
    }
}

/// A mailbox that may send, as configured.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// The mailbox's own address.
    pub mailbox: Address,
    /// Lower comes first, as in Odoo; equal ones stay in the order given.
    pub sequence: i64,
    /// Addresses and domains, separated by commas. `None` or blank: any From.
    pub filter: Option<String>,
}

/// All mailboxes in their order, with their filters read.
#[derive(Clone, Debug)]
pub struct Routes {
    servers: Vec<Server>,
    notifications: Option<Address>,
}

/// A mailbox in the role of Odoo's outgoing mail server.
#[derive(Clone, Debug)]
struct Server {
    mailbox: Address,
    /// `None` is no filter. A filter without parts (a lone comma) is one that nothing matches, as in Odoo.
    filter: Option<Vec<Part>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Address(Address),
    Domain(String),
}

impl Server {
    fn holds(&self, part: &Part) -> bool {
        self.filter.as_ref().is_some_and(|parts| parts.contains(part))
    }
}

/// Where a message goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// The mailbox that sends it.
    pub mailbox: Address,
    /// Why that one.
    pub rule: Rule,
    /// The From's new value in decoded form (`"Eve" <notifications@example.com>`); `None`: it stays as it is.
    pub new_from: Option<String>,
}

/// There is no mailbox at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no mailbox is configured, so no message can be sent: add a [[mailbox]] to the configuration")]
pub struct NoMailbox;

impl Routes {
    /// Sorts the mailboxes and reads their filters. `notifications` is the address that stands in for a From which no
    /// filter holds; see [`notifications_address`].
    pub fn new(mut candidates: Vec<Candidate>, notifications: Option<Address>) -> Self {
        candidates.sort_by_key(|candidate| candidate.sequence);
        let servers = candidates
            .into_iter()
            .map(|candidate| Server {
                filter: candidate.filter.as_deref().and_then(parse_filter),
                mailbox: candidate.mailbox,
            })
            .collect();
        Self { servers, notifications }
    }

    /// Routes a message by its From, as [`HeaderView::from`](crate::message::HeaderView::from) gives it.
    ///
    /// # Errors
    /// [`NoMailbox`] if there is none to choose from; any From finds one otherwise.
    pub fn route(&self, from: Option<&str>) -> Result<Route, NoMailbox> {
        let sender = Sender::read(from.unwrap_or_default());
        let (server, rule) = self.pick(sender.address.as_ref()).ok_or(NoMailbox)?;
        let new_from = match (rule, &self.notifications) {
            (Rule::Address | Rule::Domain, _) | (_, None) => sender.mended,
            (_, Some(notifications)) if sender.address.as_ref() == Some(notifications) => sender.mended,
            (_, Some(notifications)) => Some(notifications.with_name(&sender.name)),
        };
        Ok(Route { mailbox: server.mailbox.clone(), rule, new_from })
    }

    fn pick(&self, sender: Option<&Address>) -> Option<(&Server, Rule)> {
        sender
            .and_then(|address| self.matching(address, Rule::Address, Rule::Domain))
            .or_else(|| {
                self.matching(
                    self.notifications.as_ref()?,
                    Rule::NotificationsAddress,
                    Rule::NotificationsDomain,
                )
            })
            .or_else(|| {
                let unfiltered = self.servers.iter().find(|server| server.filter.is_none());
                unfiltered.map(|server| (server, Rule::Unfiltered))
            })
            .or_else(|| self.servers.first().map(|server| (server, Rule::First)))
    }

    /// The address in any filter comes before the domain in any filter.
    fn matching(&self, address: &Address, by_address: Rule, by_domain: Rule) -> Option<(&Server, Rule)> {
        let parts = [
            (Part::Address(address.clone()), by_address),
            (Part::Domain(address.domain().to_owned()), by_domain),
        ];
        parts.into_iter().find_map(|(part, rule)| {
            self.servers.iter().find(|server| server.holds(&part)).map(|server| (server, rule))
        })
    }
}

fn parse_filter(filter: &str) -> Option<Vec<Part>> {
    let part = |text: &str| {
        if text.contains('@') {
            Address::normalise(text).map(Part::Address)
        } else {
            normalise_domain(text).map(Part::Domain)
        }
    };
    (!filter.trim().is_empty()).then(|| filter.split(',').filter_map(part).collect())
}

/// A From, as Odoo 19 takes it before it looks for a server: the first address counts, normalised.
struct Sender {
    address: Option<Address>,
    /// Its display name, else its local part. Of a From without an address: its first word, or nothing.
    name: String,
    /// Set if the From is not one plain mailbox (several, or broken): its first, well formed. Odoo sends that too.
    mended: Option<String>,
}

impl Sender {
    fn read(from: &str) -> Self {
        let read = list::addresses(from);
        let Some((name, address)) = Address::all(from).into_iter().next() else {
            let (name, word) = read.into_iter().next().unwrap_or_default();
            return Self { address: None, name: name_or_local(name, &word), mended: None };
        };
        let mut specs = read.iter().map(|(_, spec)| spec).filter(|spec| !spec.is_empty());
        let plain = specs.next().and_then(|spec| Address::from_spec(spec)).as_ref() == Some(&address);
        let mended = (!plain || specs.next().is_some()).then(|| address.with_name(&name));
        Self { name: name_or_local(name, address.as_str()), mended, address: Some(address) }
    }
}

fn name_or_local(name: String, spec: &str) -> String {
    if name.is_empty() { spec.split('@').next().unwrap_or_default().to_owned() } else { name }
}

/// The address Odoo sends notifications from, `{mail.default.from}@{mail.catchall.domain}`. `default_from` may be a full
/// address, which needs no domain. `None` if a part is blank or they make no address.
pub fn notifications_address(default_from: Option<&str>, catchall_domain: Option<&str>) -> Option<Address> {
    let default_from = default_from?.trim();
    if default_from.contains('@') {
        return Address::normalise(default_from);
    }
    let domain = normalise_domain(catchall_domain?)?;
    Address::normalise(&format!("{default_from}@{domain}"))
}
