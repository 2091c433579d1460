//! Odoo's values as the configuration needs them: where people sign in, alias domains, and what Odoo sends as. Pure.

use super::plan::Planned;
use super::records::Domain;
use crate::address::{Address, normalise_domain};
use crate::failure::one_line;
use crate::routing::AliasDomain;
use serde::Serialize;

/// What `microsoft_outlook.endpoint` says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Endpoint {
    /// Where it is not the global cloud's.
    pub authority: Option<String>,
    /// `None`: common.
    pub tenant: Option<String>,
    /// Where it is a national cloud's.
    pub cloud: Option<&'static str>,
}

/// An alias domain without the values that make no address.
pub(super) fn clean(domain: &Domain, notes: &mut Vec<String>) -> Option<Domain> {
    let name = normalise_domain(&domain.name);
    if name.is_none() && !domain.default_from.contains('@') {
        return None;
    }
    let mut clean =
        Domain { name: name.unwrap_or_default(), default_from: String::new(), bounce_alias: String::new() };
    let made = AliasDomain::new(Some(&clean.name), Some(&domain.default_from), Some(&domain.bounce_alias));
    if !clean.name.is_empty() && format!("bounce@{}", clean.name).parse::<Address>().is_err() {
        notes.push(format!("the alias domain {:?} is no domain and was left out", one_line(&domain.name)));
        return None;
    }
    for (value, makes, key, otherwise, kept) in [
        (
            &domain.default_from,
            made.notifications().is_some(),
            "default_from",
            "notifications",
            &mut clean.default_from,
        ),
        (&domain.bounce_alias, made.bounce().is_some(), "bounce_alias", "bounce", &mut clean.bounce_alias),
    ] {
        if makes {
            value.clone_into(kept);
        } else if !clean.name.is_empty() {
            notes.push(format!(
                "{}: Odoo has no usable {key} (it says {:?}); the relay takes {otherwise}@{}",
                clean.name,
                one_line(value),
                clean.name
            ));
        }
    }
    Some(clean)
}

/// `https://login.microsoftonline.com/common/oauth2/v2.0/` as authority, tenant and cloud.
pub(super) fn read_endpoint(endpoint: &str, notes: &mut Vec<String>) -> Endpoint {
    if endpoint.is_empty() {
        return Endpoint::default();
    }
    let base = endpoint.trim_end_matches('/').strip_suffix("/oauth2/v2.0");
    let Some((authority, tenant)) = base.and_then(|base| base.rsplit_once('/')) else {
        notes.push(
            "the system parameter microsoft_outlook.endpoint is not of the usual form: set tenant and authority yourself"
                .to_owned(),
        );
        return Endpoint::default();
    };
    let host = authority.strip_prefix("https://").unwrap_or(authority).to_ascii_lowercase();
    let cloud = match host.as_str() {
        "login.microsoftonline.us" => Some("us-government"),
        "login.partner.microsoftonline.cn" | "login.chinacloudapi.cn" => Some("china"),
        _ => None,
    };
    let usual = cloud.is_some() || host == "login.microsoftonline.com";
    Endpoint {
        authority: (!usual).then(|| one_line(authority)),
        tenant: Some(one_line(tenant)).filter(|tenant| tenant != "common"),
        cloud,
    }
}

/// Every domain that Odoo sends as.
pub(super) fn relay_filter(domains: &[Domain], mailboxes: &[Planned]) -> Vec<String> {
    let mut filter: Vec<String> = Vec::new();
    let of = |part: &str| match part.rsplit_once('@') {
        Some(_) => Address::normalise(part).map(|address| address.domain().to_owned()),
        None => normalise_domain(part),
    };
    let parts = domains
        .iter()
        .flat_map(|domain| [domain.name.as_str(), domain.default_from.as_str()])
        .filter(|part| part.contains('.'))
        .chain(mailboxes.iter().map(|mailbox| mailbox.address.as_str()))
        .chain(
            mailboxes
                .iter()
                .flat_map(|mailbox| mailbox.from_filter.as_deref().unwrap_or_default().split(',')),
        );
    for domain in parts.filter_map(of) {
        if !filter.contains(&domain) {
            filter.push(domain);
        }
    }
    filter
}
