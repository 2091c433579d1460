//! Odoo's alias domains (`mail.alias.domain`, Odoo 17 and later): each company has its own addresses for what bounces
//! and for what nobody else may send. Odoo 16 has one set of them, in system parameters.

use crate::address::{Address, normalise_domain};

/// One alias domain, or the system parameters of Odoo 16.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AliasDomain {
    /// `mail.catchall.domain`; `None` only where the notifications address is a full one and all there is.
    domain: Option<String>,
    notifications: Option<Address>,
    bounce: Option<Address>,
}

impl AliasDomain {
    /// From the values as Odoo has them. `default_from` may be a full address, which needs no domain. A value that is
    /// blank or makes no address leaves its address out.
    pub fn new(
        catchall_domain: Option<&str>,
        default_from: Option<&str>,
        bounce_alias: Option<&str>,
    ) -> Self {
        let domain = catchall_domain.and_then(normalise_domain);
        let at_domain = |local: &str| Some(format!("{local}@{}", domain.as_deref()?));
        let notifications = default_from
            .map(str::trim)
            .and_then(|from| if from.contains('@') { Some(from.to_owned()) } else { at_domain(from) })
            .and_then(|address| Address::normalise(&address));
        let bounce = bounce_alias.and_then(|alias| at_domain(alias.trim())?.parse().ok());
        Self { notifications, bounce, domain }
    }

    /// Its name; `None` where there is none.
    pub fn domain(&self) -> Option<&str> {
        self.domain.as_deref()
    }

    /// The address that stands in for a From which no mailbox may send: `mail.default.from` at `mail.catchall.domain`.
    pub fn notifications(&self) -> Option<&Address> {
        self.notifications.as_ref()
    }

    /// Where Odoo takes bounces: `mail.bounce.alias` at `mail.catchall.domain`.
    pub fn bounce(&self) -> Option<&Address> {
        self.bounce.as_ref()
    }

    /// The alias domain of a message, by its reverse-path without angle brackets. Odoo sends with the bounce address of
    /// the company's alias domain, where its own filter allows that; several may share a domain and differ in that
    /// address alone. Else the domain tells; else it is the first one.
    pub fn of<'d>(domains: &'d [Self], mail_from: &str) -> Option<&'d Self> {
        let sender = Address::normalise(mail_from);
        let by = |fits: fn(&Self, &Address) -> bool| {
            let sender = sender.as_ref()?;
            domains.iter().find(|domain| fits(domain, sender))
        };
        by(|domain, sender| domain.bounce.as_ref() == Some(sender))
            .or_else(|| by(|domain, sender| domain.notifications.as_ref() == Some(sender)))
            .or_else(|| by(|domain, sender| domain.domain.as_deref() == Some(sender.domain())))
            .or_else(|| domains.first())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_composed_as_in_odoo() {
        for (default_from, domain, expected) in [
            (Some("notifications"), Some("example.com"), Some("notifications@example.com")),
            (Some(" Notifications "), Some("Example.COM"), Some("notifications@example.com")),
            (Some("odoo.bot+x"), Some("example.com"), Some("odoo.bot+x@example.com")),
            (Some("Robot@Other.test"), Some("example.com"), Some("robot@other.test")),
            (Some("robot@other.test"), None, Some("robot@other.test")),
            (Some("notifications"), None, None),
            (Some("notifications"), Some(" "), None),
            (Some(""), Some("example.com"), None),
            (Some("  "), Some("example.com"), None),
            (None, Some("example.com"), None),
            (None, None, None),
        ] {
            let composed = AliasDomain::new(domain, default_from, Some("bounce"));
            assert_eq!(
                composed.notifications().map(Address::as_str),
                expected,
                "{default_from:?} {domain:?}"
            );
            let bounces = domain.is_some_and(|domain| !domain.trim().is_empty());
            assert_eq!(
                composed.bounce().map(Address::as_str),
                bounces.then_some("bounce@example.com"),
                "{domain:?}"
            );
        }
    }

    #[test]
    fn the_reverse_path_tells_alias_domains_apart() {
        let domains = [
            AliasDomain::new(Some("one.test"), Some("notifications"), Some("bounce")),
            AliasDomain::new(Some("two.test"), Some("robot@mail.test"), Some("bounce")),
            AliasDomain::new(Some("one.test"), Some("notices"), Some("returns")),
        ];
        for (mail_from, expected) in [
            ("bounce@one.test", 0),
            ("Bounce@TWO.test", 1),
            ("returns@one.test", 2),
            ("notices@one.test", 2),
            ("robot@mail.test", 1),
            ("somebody@two.test", 1),
            ("somebody@one.test", 0),
            ("somebody@mail.test", 0),
            ("bounce@sub.two.test", 0),
            ("", 0),
            ("no address", 0),
        ] {
            assert_eq!(AliasDomain::of(&domains, mail_from), domains.get(expected), "{mail_from:?}");
        }
        assert_eq!(AliasDomain::of(&[], "bounce@one.test"), None);
    }
}
