//! Which mailbox sends a message, and with which From: Odoo's From filter (`ir.mail_server`, Odoo 17 to 19).
//!
//! Pure: the From goes in, the mailbox and the new From come out.

use std::fmt;
use std::str::FromStr;

use crate::address::{Address, list};
use filter::{Filter, Part};

mod alias_domain;
mod filter;
#[cfg(test)]
mod properties;
mod review;
#[cfg(test)]
mod tests;

pub use alias_domain::AliasDomain;
pub use review::Warning;

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
    /// Its user may submit through it alone ([`Routes::bound_to`]): no filter was asked.
    User,
}

impl Rule {
    /// In the order in which they are tried.
    const ALL: [Self; 7] = [
        Self::Address,
        Self::Domain,
        Self::NotificationsAddress,
        Self::NotificationsDomain,
        Self::Unfiltered,
        Self::First,
        Self::User,
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
            Self::User => "user",
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
    domains: Vec<AliasDomain>,
}

/// A mailbox in the role of Odoo's outgoing mail server.
#[derive(Clone, Debug)]
struct Server {
    mailbox: Address,
    filter: Option<Filter>,
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

/// One step of the rule, tried on a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// Which one.
    pub rule: Rule,
    /// The address or domain that the filters were searched for. `None`: there is none, or this step needs none.
    pub sought: Option<String>,
    /// The mailbox that it led to, with its filter as written.
    pub found: Option<(Address, Option<String>)>,
}

/// A step, on the inside.
struct Tried<'r> {
    rule: Rule,
    part: Option<Part>,
    server: Option<&'r Server>,
}

impl Routes {
    /// Sorts the mailboxes and reads their filters. `domains`: Odoo's alias domains; the notifications address of one
    /// of them stands in for a From that no filter holds.
    pub fn new(mut candidates: Vec<Candidate>, domains: Vec<AliasDomain>) -> Self {
        candidates.sort_by_key(|candidate| candidate.sequence);
        let servers = candidates
            .into_iter()
            .map(|candidate| Server {
                filter: candidate.filter.as_deref().and_then(Filter::read),
                mailbox: candidate.mailbox,
            })
            .collect();
        Self { servers, domains }
    }

    /// Routes a message by its From, as [`HeaderView::from`](crate::message::HeaderView::from) gives it, and its
    /// reverse-path without angle brackets, which names its alias domain (see [`AliasDomain::of`]).
    ///
    /// # Errors
    /// [`NoMailbox`] if there is none to choose from; any From finds one otherwise.
    pub fn route(&self, from: Option<&str>, mail_from: &str) -> Result<Route, NoMailbox> {
        let sender = Sender::read(from.unwrap_or_default());
        let notifications = self.notifications(mail_from);
        self.tried(sender.address.as_ref(), notifications)
            .find_map(|step| Some(sender.route(step.server?, step.rule, notifications)))
            .ok_or(NoMailbox)
    }

    /// Another way out for a message that the mailbox `except` cannot send: as the notifications address. `None` if no
    /// mailbox's filter holds that address or its domain, or if it is `except` itself that would send it.
    pub fn fallback(&self, from: Option<&str>, mail_from: &str, except: &Address) -> Option<Route> {
        let notifications = self.notifications(mail_from)?;
        self.tried(None, Some(notifications))
            .filter(|step| step.part.is_some())
            .find_map(|step| Some((step.server?, step.rule)))
            .filter(|(server, _)| server.mailbox != *except)
            .map(|(server, rule)| {
                Sender::read(from.unwrap_or_default()).route(server, rule, Some(notifications))
            })
    }

    /// Whether it is one of the mailboxes.
    pub fn knows(&self, mailbox: &Address) -> bool {
        self.servers.iter().any(|server| server.mailbox == *mailbox)
    }

    /// Routes a message of a user who is bound to `mailbox`: no filter is asked, and the From stays, mended if it is not
    /// one plain mailbox.
    pub fn bound_to(&self, mailbox: &Address, from: Option<&str>) -> Route {
        let sender = Sender::read(from.unwrap_or_default());
        Route { mailbox: mailbox.clone(), rule: Rule::User, new_from: sender.mended }
    }

    /// The steps that [`route`](Self::route) takes for such a message: all but the last found nothing.
    pub fn explain(&self, from: Option<&str>, mail_from: &str) -> Vec<Step> {
        let sender = Sender::read(from.unwrap_or_default());
        let mut steps = Vec::new();
        for tried in self.tried(sender.address.as_ref(), self.notifications(mail_from)) {
            let found = tried.server.map(|server| {
                (server.mailbox.clone(), server.filter.as_ref().map(|filter| filter.text.clone()))
            });
            let last = found.is_some();
            steps.push(Step { rule: tried.rule, sought: tried.part.map(|part| part.to_string()), found });
            if last {
                break;
            }
        }
        steps
    }

    /// The notifications address for a message with this reverse-path.
    fn notifications(&self, mail_from: &str) -> Option<&Address> {
        AliasDomain::of(&self.domains, mail_from)?.notifications()
    }

    /// Every step in its order. An address in any filter comes before its domain in any filter.
    fn tried(
        &self,
        sender: Option<&Address>,
        notifications: Option<&Address>,
    ) -> impl Iterator<Item = Tried<'_>> {
        // A user's own mailbox is not found by the From.
        Rule::ALL.into_iter().filter(|rule| *rule != Rule::User).map(move |rule| {
            let address = |address: &Address| Part::Address(address.clone());
            let domain = |address: &Address| Part::Domain(address.domain().to_owned());
            let part = match rule {
                Rule::Address => sender.map(address),
                Rule::Domain => sender.map(domain),
                Rule::NotificationsAddress => notifications.map(address),
                Rule::NotificationsDomain => notifications.map(domain),
                Rule::Unfiltered | Rule::First | Rule::User => None,
            };
            let fits = |server: &&Server| match rule {
                Rule::Unfiltered => server.filter.is_none(),
                Rule::First => true,
                _ => part
                    .as_ref()
                    .is_some_and(|part| server.filter.as_ref().is_some_and(|filter| filter.holds(part))),
            };
            Tried { rule, server: self.servers.iter().find(fits), part }
        })
    }
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

    /// Through this mailbox, found by this rule.
    fn route(&self, server: &Server, rule: Rule, notifications: Option<&Address>) -> Route {
        let new_from = match (rule, notifications) {
            (Rule::Address | Rule::Domain, _) | (_, None) => self.mended.clone(),
            (_, Some(notifications)) if self.address.as_ref() == Some(notifications) => self.mended.clone(),
            (_, Some(notifications)) => Some(notifications.with_name(&self.name)),
        };
        Route { mailbox: server.mailbox.clone(), rule, new_from }
    }
}

fn name_or_local(name: String, spec: &str) -> String {
    if name.is_empty() { spec.split('@').next().unwrap_or_default().to_owned() } else { name }
}
