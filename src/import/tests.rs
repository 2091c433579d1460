//! The plan, and the file that is written of it.

use super::*;
use crate::config::Config;
use crate::import::plan::{Endpoint, Impossible, plan};
use crate::import::records::{Domain, Incoming, Outgoing, Records};
use secrecy::SecretString;
use std::os::unix::fs::PermissionsExt;

const FEED: Feed<'_> =
    Feed { url: "http://127.0.0.1:8069", database: "prod", login: "admin", is_administrator: true };

fn token(text: &str) -> Option<SecretString> {
    Some(SecretString::from(text))
}

fn outgoing(id: i32, user: &str, filter: &str) -> Outgoing {
    Outgoing {
        id,
        name: format!("Out\n[[mailbox]] {id}"),
        sequence: id * 10,
        active: true,
        from_filter: filter.to_owned(),
        host: "smtp.office365.com".to_owned(),
        port: 587,
        authentication: "outlook".to_owned(),
        user: user.to_owned(),
        token: token("refresh-me"),
        personal: false,
    }
}

fn incoming(id: i32, user: &str) -> Incoming {
    Incoming {
        id,
        name: format!("In {id}"),
        active: true,
        confirmed: true,
        kind: "outlook".to_owned(),
        host: "outlook.office365.com".to_owned(),
        port: 993,
        user: user.to_owned(),
        model: "crm.lead".to_owned(),
        original: false,
        attach: true,
        token: token("refresh-me"),
    }
}

fn records(version: u32, outgoing: Vec<Outgoing>, incoming: Vec<Incoming>) -> Records {
    let domain = Domain {
        name: "example.com".to_owned(),
        default_from: "notifications".to_owned(),
        bounce_alias: "bounce".to_owned(),
    };
    Records {
        version,
        outgoing,
        incoming,
        domains: vec![domain],
        client_id: "1b2c".to_owned(),
        client_secret: token("s3cret"),
        endpoint: String::new(),
    }
}

/// What `check` makes of the file.
fn load(records: &Records) -> Config {
    let toml = relay_toml(&plan(records).unwrap(), FEED, Some("sqlite:relay.db"));
    assert!(!toml.contains("s3cret") && !toml.contains("refresh-me"), "{toml}");
    let folder = tempfile::tempdir().unwrap();
    for (name, content) in [("relay.toml", toml.as_str()), ("client-secret", "x"), ("odoo-password", "x")] {
        let path = folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    }
    Config::load(&folder.path().join("relay.toml")).unwrap_or_else(|mistakes| panic!("{mistakes}\n{toml}"))
}

#[test]
fn both_records_of_a_mailbox_become_one() {
    let records = records(
        19,
        vec![
            outgoing(1, "Notifications@Example.com", ""),
            outgoing(2, "john@example.com", "john@example.com"),
        ],
        vec![
            incoming(7, "notifications@example.com"),
            Incoming { original: true, attach: false, ..incoming(8, "info@example.com") },
        ],
    );
    let config = load(&records);
    let options: Vec<_> =
        config.mailboxes.iter().map(|m| (m.intake.save_original, m.intake.strip_attachments)).collect();
    assert_eq!(options, [(false, false), (false, false), (true, true)]);
    let seen: Vec<_> = config
        .mailboxes
        .iter()
        .map(|m| {
            (m.address.as_str(), m.from_filter.as_deref(), m.sequence, m.inbox, m.intake.model.as_deref())
        })
        .collect();
    assert_eq!(
        seen,
        [
            ("notifications@example.com", None, 10, true, Some("crm.lead")),
            ("john@example.com", Some("john@example.com"), 20, false, None),
            ("info@example.com", Some("info@example.com"), 1000, true, Some("crm.lead")),
        ]
    );
    assert_eq!(config.microsoft.smtp.to_string(), "smtp.office365.com:587");
    assert_eq!(plan(&records).unwrap().relay_filter, ["example.com"]);
}

#[test]
fn what_is_not_taken_over_is_listed_with_the_reason() {
    let with = |change: fn(&mut Outgoing)| {
        let mut server = outgoing(2, "x@example.com", "");
        change(&mut server);
        records(19, vec![outgoing(1, "john@example.com", ""), server], Vec::new())
    };
    let fetching = |change: fn(&mut Incoming)| {
        let mut server = incoming(2, "x@example.com");
        change(&mut server);
        records(19, vec![outgoing(1, "john@example.com", "")], vec![server])
    };
    let cases = [
        (with(|server| server.authentication = "gmail".to_owned()), "is a Gmail server"),
        (with(|server| server.authentication = "login".to_owned()), "is no Outlook server (login)"),
        (with(|server| server.active = false), "is archived"),
        (with(|server| server.user.clear()), "has no user name"),
        (with(|server| server.user = "odoo".to_owned()), "is not the address of a mailbox"),
        (fetching(|server| server.kind = "gmail".to_owned()), "is a Gmail server"),
        (fetching(|server| server.kind = "pop".to_owned()), "is no Outlook server (pop)"),
        (fetching(|server| server.active = false), "is archived"),
        (fetching(|server| server.confirmed = false), "is not confirmed"),
        (fetching(|server| server.user.clear()), "has no user name"),
    ];
    for (records, reason) in cases {
        let plan = plan(&records).unwrap();
        assert_eq!(plan.mailboxes.len(), 1, "{reason}");
        assert!(plan.left.len() == 1 && plan.left[0].reason.contains(reason), "{reason}: {:?}", plan.left);
    }
}

#[test]
fn what_somebody_should_know_is_said() {
    let john = || outgoing(1, "john@example.com", "john@example.com");
    let one = || records(19, vec![john()], Vec::new());
    let change = |change: fn(&mut Records)| {
        let mut records = one();
        change(&mut records);
        records
    };
    let cases = [
        (change(|records| records.outgoing[0].token = None), "has no refresh token"),
        (change(|records| records.client_secret = None), "public client"),
        (change(|records| records.domains.clear()), "no alias domain"),
        (change(|records| records.domains[0].default_from.clear()), "no usable default_from"),
        (change(|records| records.domains[0].bounce_alias.clear()), "no usable bounce_alias"),
        (change(|records| records.endpoint = "odd".to_owned()), "not of the usual form"),
        (change(|records| records.version = 20), "newer"),
        (one(), "consented to sending alone"),
        (records(19, Vec::new(), vec![incoming(1, "a@example.com")]), "consented to receiving alone"),
        (records(16, vec![outgoing(1, "a@example.com", "a.test, b.test")], Vec::new()), "never matches"),
        (
            records(19, vec![john(), outgoing(2, "john@example.com", "")], Vec::new()),
            "one of its outgoing servers takes any From",
        ),
        (
            records(
                19,
                Vec::new(),
                vec![
                    incoming(1, "a@example.com"),
                    Incoming { original: true, ..incoming(2, "a@example.com") },
                ],
            ),
            "several incoming servers",
        ),
    ];
    for (records, words) in cases {
        load(&records);
        let notes = plan(&records).unwrap().notes;
        assert!(notes.iter().any(|note| note.contains(words)), "{words}: {notes:#?}");
    }
}

#[test]
fn servers_of_one_mailbox_put_their_filters_together() {
    let servers = ["example.com", "example.org", "example.com"];
    let servers = servers.iter().zip(1..).map(|(filter, id)| outgoing(id, "a@example.com", filter)).collect();
    let plan = plan(&records(16, servers, Vec::new())).unwrap();
    assert_eq!(plan.mailboxes[0].from_filter.as_deref(), Some("example.com, example.org"));
    assert_eq!(plan.relay_filter, ["example.com", "example.org"]);
}

#[test]
fn a_users_own_server_never_becomes_a_fallback() {
    let own = Outgoing { personal: true, ..outgoing(1, "john@example.com", "") };
    let plan = plan(&records(19, vec![own], Vec::new())).unwrap();
    assert_eq!(plan.mailboxes[0].from_filter.as_deref(), Some("john@example.com"));
}

#[test]
fn the_endpoint_tells_tenant_and_cloud() {
    let cases: [(&str, Endpoint); 5] = [
        ("", Endpoint::default()),
        ("https://login.microsoftonline.com/common/oauth2/v2.0/", Endpoint::default()),
        (
            "https://login.microsoftonline.com/example.com/oauth2/v2.0",
            Endpoint { tenant: Some("example.com".to_owned()), ..Endpoint::default() },
        ),
        (
            "https://login.microsoftonline.us/t/oauth2/v2.0/",
            Endpoint { tenant: Some("t".to_owned()), cloud: Some("us-government"), authority: None },
        ),
        (
            "http://127.0.0.1:5/t/oauth2/v2.0/",
            Endpoint {
                tenant: Some("t".to_owned()),
                authority: Some("http://127.0.0.1:5".to_owned()),
                cloud: None,
            },
        ),
    ];
    for (endpoint, expected) in cases {
        let mut records = records(17, vec![outgoing(1, "a@example.com", "")], Vec::new());
        records.endpoint = endpoint.to_owned();
        assert_eq!(plan(&records).unwrap().endpoint, expected, "{endpoint}");
        load(&records);
    }
}

#[test]
fn further_alias_domains_and_other_hosts_are_written() {
    let server = Outgoing { host: "Relay.test".to_owned(), port: 26, ..outgoing(1, "a@example.com", "") };
    let mut records = records(18, vec![server], Vec::new());
    records.domains.push(Domain {
        name: "Example.org".to_owned(),
        default_from: "robot@mail.test".to_owned(),
        bounce_alias: "returns".to_owned(),
    });
    let config = load(&records);
    assert_eq!(config.odoo.alias_domains.len(), 2);
    assert_eq!(config.mailboxes[0].microsoft.smtp.to_string(), "relay.test:26");
    assert_eq!(plan(&records).unwrap().relay_filter, ["example.com", "example.org", "mail.test"]);
}

#[test]
fn nothing_to_take_over_is_an_error() {
    let mut no_app = records(19, vec![outgoing(1, "a@example.com", "")], Vec::new());
    no_app.client_id.clear();
    assert_eq!(plan(&no_app).unwrap_err(), Impossible::NoClientId);
    let archived = Outgoing { active: false, ..outgoing(1, "a@example.com", "") };
    let said = plan(&records(19, vec![archived], Vec::new())).unwrap_err().to_string();
    assert!(said.contains("is archived"), "{said}");
}
