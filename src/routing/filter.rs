//! A From filter: a comma list of addresses and domains, as Odoo reads it.

use crate::address::{Address, normalise_domain};
use std::fmt;

/// What a part of a filter holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Address(Address),
    Domain(String),
}

impl Part {
    /// With an `@` it is an address, which may have a display name around it; else a domain. `None`: it is neither.
    pub(super) fn read(text: &str) -> Option<Self> {
        if text.contains('@') {
            Address::normalise(text).map(Self::Address)
        } else {
            normalise_domain(text).map(Self::Domain)
        }
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Address(address) => address.as_str(),
            Self::Domain(domain) => domain,
        })
    }
}

/// A filter that is not blank; one without parts (a lone comma) is one that nothing matches, as in Odoo.
#[derive(Clone, Debug)]
pub(super) struct Filter {
    /// As it was written.
    pub(super) text: String,
    parts: Vec<Part>,
}

impl Filter {
    /// `None` if it is blank, which is no filter.
    pub(super) fn read(text: &str) -> Option<Self> {
        let text = text.trim();
        let parts = text.split(',').filter_map(Part::read).collect();
        (!text.is_empty()).then(|| Self { text: text.to_owned(), parts })
    }

    pub(super) fn holds(&self, part: &Part) -> bool {
        self.parts.contains(part)
    }
}
