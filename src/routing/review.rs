//! What is odd about the filters and the fallback, though the rule can be followed: for `check`.

use super::filter::{Filter, Part};
use super::{Routes, Rule};
use crate::address::Address;

/// Something that is most likely not what was meant: what was seen, what it means and what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning {
    /// Whose filter it is; `None`: it is about the alias domains.
    pub mailbox: Option<Address>,
    /// In words.
    pub message: String,
}

impl Routes {
    /// Everything odd: parts of filters that can never match or never win, mailboxes that nothing can reach, and a
    /// missing fallback.
    pub fn warnings(&self) -> Vec<Warning> {
        let mut warnings = Vec::new();
        for (index, server) in self.servers.iter().enumerate() {
            let found = match &server.filter {
                Some(filter) => self.filter_oddities(index, filter),
                None => self.unreachable(index).into_iter().collect(),
            };
            let mailbox = Some(&server.mailbox);
            warnings.extend(found.into_iter().map(|message| Warning { mailbox: mailbox.cloned(), message }));
        }
        let fallback = self.fallback_oddities();
        warnings.extend(fallback.into_iter().map(|message| Warning { mailbox: None, message }));
        warnings
    }

    fn filter_oddities(&self, index: usize, filter: &Filter) -> Vec<String> {
        let mut found = Vec::new();
        let mut alive = false;
        for text in filter.text.split(',').map(str::trim).filter(|text| !text.is_empty()) {
            if let Some(reason) = misread(text) {
                found.push(format!("{text:?} {reason}"));
            }
            let Some(part) = Part::read(text).filter(can_match) else { continue };
            let holds = |filter: &Filter| filter.holds(&part);
            let mut before = self.servers.iter().take(index);
            match before.find(|server| server.filter.as_ref().is_some_and(holds)) {
                Some(first) => found.push(format!(
                    "{part} never comes to this mailbox: {} is asked before it and has it too: take it out of one of \
                     the two filters",
                    first.mailbox
                )),
                None => alive = true,
            }
        }
        if !alive {
            found.push(format!(
                "{:?} as a whole never matches, so no From leads to this mailbox: name its address, or leave from_filter \
                 out where it is to send what nobody else may",
                filter.text
            ));
        }
        found
    }

    /// Why a mailbox without a filter never gets a message, if it does not.
    fn unreachable(&self, index: usize) -> Option<String> {
        let own = &self.servers.get(index)?.mailbox;
        let remedy = format!("give it one, like from_filter = \"{own}\"");
        if let Some(first) = self.servers.iter().take(index).find(|server| server.filter.is_none()) {
            return Some(format!(
                "is missing, and {}, which is asked before it, has none either: no mail ever goes out through this \
                 mailbox: {remedy}",
                first.mailbox
            ));
        }
        let covering = self.domains.iter().map(|domain| self.covering(domain.notifications()?));
        let covering: Vec<&Address> = covering.collect::<Option<_>>()?;
        Some(format!(
            "is missing, so this mailbox is asked last; but whatever no from_filter holds has gone out as the \
             notifications address by then, through {}: no mail ever goes out through this one: {remedy}",
            covering.first()?
        ))
    }

    /// The mailbox whose filter holds this notifications address, or its domain.
    fn covering(&self, notifications: &Address) -> Option<&Address> {
        self.tried(None, Some(notifications))
            .filter(|step| step.part.is_some())
            .find_map(|step| step.server.map(|server| &server.mailbox))
    }

    fn fallback_oddities(&self) -> Vec<String> {
        // Where mail goes that nothing matches.
        let last = self.tried(None, None).find_map(|step| Some((&step.server?.mailbox, step.rule)));
        let Some((last, rule)) = last else { return Vec::new() };
        let mut found = Vec::new();
        if self.domains.iter().all(|domain| domain.notifications().is_none()) {
            found.push(format!(
                "has no notifications address: mail whose From no from_filter holds goes out through {last} with that \
                 From, and Microsoft refuses it: set catchall_domain, as mail.catchall.domain in Odoo"
            ));
        }
        for address in self.domains.iter().filter_map(|domain| domain.notifications()) {
            if self.covering(address).is_some() || address == last {
                continue;
            }
            let why =
                if rule == Rule::Unfiltered { "the first without a filter" } else { "the first of all" };
            found.push(format!(
                "has the notifications address {address}, which no from_filter holds: mail whose From no from_filter \
                 holds goes out as {address} through {last}, {why}, and Microsoft refuses it unless {last} may send as \
                 {address}: add a [[mailbox]] with address and from_filter = \"{address}\""
            ));
        }
        found
    }
}

/// Why a part of a filter does not match what it was meant to, and what to write instead.
fn misread(text: &str) -> Option<String> {
    let separated = !text.contains(['<', '"', '(']) && text.contains(|c: char| c == ';' || c.is_whitespace());
    // Of several in one part, a lenient reader takes one at best.
    let several = separated && (text.contains(';') || text.matches('@').count() > 1);
    if !several && Part::read(text).is_some_and(|part| can_match(&part)) {
        return None;
    }
    Some(if text.contains('*') {
        let domain = text.trim_start_matches(['*', '@', '.']);
        format!(
            "never matches: there are no wildcards: write {domain} for all of that domain, and each subdomain by itself"
        )
    } else if separated {
        let parts: Vec<&str> =
            text.split(|c: char| c == ';' || c.is_whitespace()).filter(|part| !part.is_empty()).collect();
        format!("does not match each of them: only commas part a filter: write \"{}\"", parts.join(", "))
    } else if let Some(domain) = text.strip_prefix('@') {
        format!("never matches: a domain is written without the @: write {domain}")
    } else if text.contains(['<', '"', '(', '>', ')']) {
        "never matches: it is neither an address nor a domain (a comma in a name ends a part as well): write the address \
         without a name"
            .to_owned()
    } else if text.contains('@') {
        "never matches: it is not an address: write one like sales@example.com".to_owned()
    } else if text.starts_with('.') || text.ends_with('.') || text.contains("..") {
        format!(
            "never matches: a domain neither begins nor ends with a dot, and subdomains each need naming: write {}",
            text.trim_matches('.')
        )
    } else {
        format!(
            "never matches: it is neither an address nor a domain: write {text}@ and its domain, or a domain like example.com"
        )
    })
}

/// Whether a From that somebody has can be this: a domain without a dot is none that Microsoft 365 has.
fn can_match(part: &Part) -> bool {
    match part {
        Part::Address(address) => !address.as_str().contains('*'),
        Part::Domain(domain) => {
            let reads_back = |address: Address| address.domain() == domain;
            domain.contains('.')
                && !domain.contains('*')
                && domain.split('.').all(|label| !label.is_empty())
                && format!("x@{domain}").parse().is_ok_and(reads_back)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::routing::{AliasDomain, Candidate};

    /// Mailboxes of `example.com` by their local parts, with their filters, all of one sequence.
    fn warnings(mailboxes: &[(&str, Option<&str>)], default_from: Option<&str>) -> Vec<String> {
        let candidates = mailboxes.iter().map(|(local, filter)| Candidate {
            mailbox: format!("{local}@example.com").parse().unwrap(),
            sequence: 10,
            filter: filter.map(str::to_owned),
        });
        let domain = AliasDomain::new(Some("example.com"), default_from, Some("bounce"));
        let said = Routes::new(candidates.collect(), vec![domain]).warnings();
        said.into_iter()
            .map(|warning| {
                let mailbox = warning.mailbox.as_ref().map_or("odoo", |address| address.local());
                format!("{mailbox}: {}", warning.message)
            })
            .collect()
    }

    #[test]
    fn a_part_that_never_matches_is_said_with_what_to_write() {
        for (part, expected) in [
            ("*@other.test", "no wildcards: write other.test for all"),
            ("*.other.test", "no wildcards: write other.test for all"),
            ("*", "no wildcards"),
            ("@other.test", "without the @: write other.test"),
            (
                ".other.test",
                "neither begins nor ends with a dot, and subdomains each need naming: write other.test",
            ),
            ("other.test.", "write other.test"),
            ("a@x.test;b@x.test", "only commas part a filter: write \"a@x.test, b@x.test\""),
            ("a@x.test; y.test", "only commas part a filter: write \"a@x.test, y.test\""),
            ("a@x.test b@x.test", "only commas part a filter: write \"a@x.test, b@x.test\""),
            ("x.test y.test", "only commas part a filter: write \"x.test, y.test\""),
            ("sales", "neither an address nor a domain: write sales@ and its domain"),
            ("sales@", "it is not an address"),
            ("a@b@", "it is not an address"),
            ("\"Sales, EU\" <sales@x.test>", "a comma in a name ends a part as well"),
            ("https://x.test", "neither an address nor a domain"),
        ] {
            let filter = format!("{part}, n@example.com");
            let said = warnings(&[("n", Some(&filter))], Some("n"));
            assert!(
                said.iter().any(|line| line.starts_with("n: ") && line.contains(expected)),
                "{part}: {said:#?}"
            );
            assert!(!said.iter().any(|line| line.contains("as a whole")), "{part}: {said:#?}");
            let alone = warnings(&[("n", Some(part))], None);
            let as_a_whole = alone.iter().any(|line| line.contains("as a whole never matches"));
            // Of this one, the address is found.
            assert_eq!(as_a_whole, part != "a@x.test; y.test", "{part}: {alone:#?}");
        }
    }

    /// What can never match is never found by the rule itself, and nothing is said about what is.
    #[test]
    fn what_matches_passes_in_silence() {
        for filter in [
            "n@example.com",
            " EXAMPLE.com ,",
            "example.com, müller.test, xn--mller-kva.test, [127.0.0.1]@x.test",
            "\"Sales Team\" <n@example.com>",
            "Sales Team n@example.com",
            "n@example.com, x_y.test, a-b.co.uk",
        ] {
            let said = warnings(&[("n", Some(filter))], Some("n"));
            let expected: &[&str] = if filter.contains("]@") {
                &[
                    "n: \"[127.0.0.1]@x.test\" never matches: it is not an address: write one like sales@example.com",
                ]
            } else {
                &[]
            };
            assert_eq!(said, expected, "{filter}");
        }
    }

    #[test]
    fn a_part_that_another_mailbox_takes_first_is_said() {
        let n = ("n", Some("n@example.com"));
        let said = warnings(&[n, ("a", Some("x.test, y.test")), ("b", Some("X.TEST, c@x.test"))], Some("n"));
        assert_eq!(
            said,
            [
                "b: x.test never comes to this mailbox: a@example.com is asked before it and has it too: take it out of one \
              of the two filters"
            ]
        );
        let said = warnings(&[n, ("a", Some("x.test, y.test")), ("b", Some("y.test,x.test"))], Some("n"));
        assert_eq!(said.len(), 3, "{said:#?}");
        assert!(said[2].starts_with("b: \"y.test,x.test\" as a whole never matches"), "{said:#?}");
        // An address goes before a domain, wherever they stand.
        assert_eq!(warnings(&[n, ("a", Some("x.test")), ("b", Some("b@x.test"))], Some("n")), [""; 0]);
    }

    #[test]
    fn a_mailbox_without_a_filter_that_nothing_reaches_is_said() {
        let said = warnings(&[("a", None), ("b", None)], Some("a"));
        assert_eq!(said.len(), 1, "{said:#?}");
        assert!(
            said[0]
                .starts_with("b: is missing, and a@example.com, which is asked before it, has none either: ")
                && said[0].ends_with("like from_filter = \"b@example.com\""),
            "{said:#?}"
        );
        let said = warnings(&[("n", Some("n@example.com")), ("john", None)], Some("n"));
        assert_eq!(said.len(), 1, "{said:#?}");
        assert!(said[0].starts_with("john: is missing, so this mailbox is asked last; "), "{said:#?}");
    }

    #[test]
    fn a_missing_fallback_is_said() {
        let a = ("a", Some("a@example.com"));
        for (mailboxes, default_from, expected) in [
            (
                &[a][..],
                Some("n"),
                Some("n@example.com through a@example.com, the first of all, and Microsoft refuses"),
            ),
            (&[a, ("b", None)], Some("n"), Some("through b@example.com, the first without a filter")),
            (&[a], None, Some("odoo: has no notifications address: ")),
            // Through whatever mailbox it is, it goes out as itself; or a filter says who sends as it.
            (&[a], Some("a"), None),
            (&[a, ("n", None)], Some("n"), None),
            (&[("b", Some("example.com"))], Some("n"), None),
            (&[], None, None),
        ] {
            let said = warnings(mailboxes, default_from);
            assert_eq!(said.len(), usize::from(expected.is_some()), "{mailboxes:?}: {said:#?}");
            assert!(said.iter().all(|line| line.contains(expected.unwrap())), "{mailboxes:?}: {said:#?}");
        }
    }
}
