//! What becomes of each of Odoo's records: pure.

use super::records::{Domain, Incoming, Outgoing, Records};
use super::values::{clean, read_endpoint, relay_filter};

pub use super::values::Endpoint;

use crate::address::Address;
use crate::failure::one_line;
use crate::odoo::Intake;
use secrecy::SecretString;
use serde::{Serialize, Serializer};

/// Hosts that Odoo writes into its Outlook servers by itself; the relay has the same service by default.
const USUAL_HOSTS: &[&str] = &[
    "",
    "smtp.office365.com",
    "smtp.outlook.com",
    "smtp-mail.outlook.com",
    "outlook.office365.com",
    "imap.outlook.com",
    "imap-mail.outlook.com",
];

/// A mailbox that Odoo only receives for is asked after all that send.
const RECEIVES_ONLY: i32 = 1000;

/// What is written, and what is not.
#[derive(Clone, Debug, Serialize)]
pub struct Plan {
    /// The app's id.
    pub client_id: String,
    /// The app's secret.
    #[serde(serialize_with = "whether")]
    pub client_secret: Option<SecretString>,
    /// Where people sign in.
    pub endpoint: Endpoint,
    /// The alias domains.
    #[serde(skip)]
    pub domains: Vec<Domain>,
    /// Each `[[mailbox]]`.
    pub mailboxes: Vec<Planned>,
    /// The domains that Odoo's server for the relay takes.
    pub relay_filter: Vec<String>,
    /// What is not taken over, and why.
    pub left: Vec<Left>,
    /// What somebody should know or do.
    pub notes: Vec<String>,
}

/// One mailbox.
#[derive(Clone, Debug, Serialize)]
pub struct Planned {
    /// Its address.
    pub address: Address,
    /// Absent: any From.
    pub from_filter: Option<String>,
    /// As in Odoo.
    pub sequence: i32,
    /// Whether Odoo fetches its inbox.
    pub inbox: bool,
    /// What Odoo does with its mail.
    #[serde(flatten)]
    pub intake: Intake,
    /// `host:port`, where it is not the usual one.
    pub smtp: Option<String>,
    /// The same of IMAP.
    pub imap: Option<String>,
    /// Its refresh token.
    #[serde(serialize_with = "whether")]
    pub token: Option<SecretString>,
    /// The `ir.mail_server` records that it comes from.
    pub outgoing: Vec<Source>,
    /// The `fetchmail.server` records that it comes from.
    pub incoming: Vec<Source>,
}

/// A record of Odoo.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Source {
    /// Its id.
    pub id: i32,
    /// What people call it.
    pub name: String,
    /// Whether it holds a token.
    pub token: bool,
}

/// A record that stays as it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Left {
    /// Which.
    pub what: String,
    /// Why.
    pub reason: String,
}

/// Why nothing can be taken over.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Impossible {
    /// No app.
    #[error(
        "Odoo has no client id of an Azure app (system parameter microsoft_outlook_client_id; in its settings: Outlook \
         credentials), without which its tokens are of no use elsewhere: enter your app's there, connect the mailboxes, \
         and run this again, or write relay.toml by hand"
    )]
    NoClientId,
    /// No mailbox.
    #[error("Odoo has no Outlook mail server that can be taken over{}", listed(.0))]
    Nothing(Vec<Left>),
}

fn listed(left: &[Left]) -> String {
    left.iter().map(|Left { what, reason }| format!("; {what}: {reason}")).collect()
}

/// Secrets are only said to be there.
fn whether<S: Serializer>(secret: &Option<SecretString>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_bool(secret.is_some())
}

/// Decides.
///
/// # Errors
/// Nothing can be taken over.
pub fn plan(records: &Records) -> Result<Plan, Impossible> {
    let mut left = Vec::new();
    let mut notes = Vec::new();
    let mut mailboxes: Vec<Planned> = Vec::new();
    for server in &records.outgoing {
        match outgoing_address(server) {
            Ok(address) => add_outgoing(&mut mailboxes, address, server, records.version, &mut notes),
            Err(reason) => left.push(Left { what: describe("outgoing", server.id, &server.name), reason }),
        }
    }
    for server in &records.incoming {
        match incoming_address(server) {
            Ok(address) => add_incoming(&mut mailboxes, address, server, &mut notes),
            Err(reason) => left.push(Left { what: describe("incoming", server.id, &server.name), reason }),
        }
    }
    if mailboxes.is_empty() {
        return Err(Impossible::Nothing(left));
    }
    if records.client_id.is_empty() {
        return Err(Impossible::NoClientId);
    }
    if records.client_secret.is_none() {
        notes.push(
            "Odoo has no microsoft_outlook_client_secret, so the app is taken for a public client: if it is none, write \
             its secret into a file and set client_secret_file"
                .to_owned(),
        );
    }
    for mailbox in &mailboxes {
        token_note(mailbox, &mut notes);
    }
    let endpoint = read_endpoint(&records.endpoint, &mut notes);
    let domains = records.domains.iter().filter_map(|domain| clean(domain, &mut notes)).collect::<Vec<_>>();
    if domains.is_empty() {
        notes.push(
            "Odoo has no alias domain, so there is no notifications address: a From that no mailbox takes stays as it is"
                .to_owned(),
        );
    }
    if records.version > 19 {
        notes.push(format!(
            "Odoo {} is newer than this command knows: look the result through",
            records.version
        ));
    }
    Ok(Plan {
        client_id: records.client_id.clone(),
        client_secret: records.client_secret.clone(),
        endpoint,
        relay_filter: relay_filter(&domains, &mailboxes),
        domains,
        mailboxes,
        left,
        notes,
    })
}

/// `outgoing server 3 "John"`.
pub fn describe(direction: &str, id: i32, name: &str) -> String {
    format!("{direction} server {id} {:?}", one_line(name))
}

fn outgoing_address(server: &Outgoing) -> Result<Address, String> {
    if server.authentication != "outlook" {
        return Err(foreign(&server.authentication));
    }
    if !server.active {
        return Err("is archived".to_owned());
    }
    mailbox_of(&server.user)
}

fn incoming_address(server: &Incoming) -> Result<Address, String> {
    if server.kind != "outlook" {
        return Err(foreign(&server.kind));
    }
    if !server.active {
        return Err("is archived".to_owned());
    }
    if !server.confirmed {
        return Err(
            "is not confirmed, so Odoo fetches nothing with it; set inbox = true for its mailbox if it \
                    should be"
                .to_owned(),
        );
    }
    mailbox_of(&server.user)
}

fn foreign(kind: &str) -> String {
    match kind {
        "gmail" => "is a Gmail server, which the relay does not do: it stays in Odoo".to_owned(),
        kind => format!("is no Outlook server ({}): it stays in Odoo", one_line(kind)),
    }
}

fn mailbox_of(user: &str) -> Result<Address, String> {
    if user.is_empty() {
        return Err(
            "has no user name, so nobody knows which mailbox it is: enter its address in Odoo".to_owned()
        );
    }
    Address::normalise(user)
        .ok_or_else(|| format!("its user name {:?} is not the address of a mailbox", one_line(user)))
}

fn add_outgoing(
    mailboxes: &mut Vec<Planned>,
    address: Address,
    server: &Outgoing,
    version: u32,
    notes: &mut Vec<String>,
) {
    let source = Source { id: server.id, name: one_line(&server.name), token: server.token.is_some() };
    let mut filter = Some(server.from_filter.clone()).filter(|filter| !filter.is_empty());
    if version < 17 && filter.as_ref().is_some_and(|filter| filter.contains(',')) {
        notes.push(format!(
            "{address}: the FROM Filtering {:?} is a list, which Odoo {version} never matches; the relay matches each part",
            server.from_filter
        ));
    }
    if server.personal && filter.is_none() {
        // Odoo uses it for its owner alone, and never as a fallback.
        filter = Some(address.to_string());
    }
    let smtp = unusual(&server.host, server.port, 587);
    let Some(known) = mailboxes.iter_mut().find(|known| known.address == address) else {
        mailboxes.push(Planned {
            from_filter: filter,
            sequence: server.sequence,
            inbox: false,
            intake: Intake::default(),
            smtp,
            imap: None,
            token: server.token.clone(),
            outgoing: vec![source],
            incoming: Vec::new(),
            address,
        });
        return;
    };
    known.token = known.token.take().or_else(|| server.token.clone());
    known.outgoing.push(source);
    known.from_filter = match (known.from_filter.take(), filter) {
        (Some(one), Some(other)) => Some(joined(one, &other)),
        (one, other) => {
            if one.is_some() || other.is_some() {
                notes.push(format!(
                    "{address}: one of its outgoing servers takes any From and another has a FROM Filtering: it gets the \
                     filter; what no filter covers goes out as the notifications address"
                ));
            }
            one.or(other)
        }
    };
}

/// One comma list of two; each part once.
fn joined(one: String, other: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in one.split(',').chain(other.split(',')).map(str::trim) {
        if !part.is_empty() && !parts.contains(&part) {
            parts.push(part);
        }
    }
    parts.join(", ")
}

fn add_incoming(mailboxes: &mut Vec<Planned>, address: Address, server: &Incoming, notes: &mut Vec<String>) {
    let source = Source { id: server.id, name: one_line(&server.name), token: server.token.is_some() };
    let intake = Intake {
        model: Some(one_line(&server.model)).filter(|model| !model.is_empty()),
        save_original: server.original,
        strip_attachments: !server.attach,
        ..Intake::default()
    };
    let imap = unusual(&server.host, server.port, 993);
    if let Some(known) = mailboxes.iter_mut().find(|known| known.address == address) {
        if known.inbox && known.intake != intake {
            notes.push(format!(
                "{address}: several incoming servers fetch it; model and options of the first count, not those of {}",
                describe("incoming", server.id, &server.name)
            ));
        } else {
            (known.intake, known.imap) = (intake, imap);
        }
        known.inbox = true;
        known.token = known.token.take().or_else(|| server.token.clone());
        known.incoming.push(source);
        return;
    }
    mailboxes.push(Planned {
        // Without a filter it would become the fallback of all.
        from_filter: Some(address.to_string()),
        sequence: RECEIVES_ONLY,
        inbox: true,
        intake,
        smtp: None,
        imap,
        token: server.token.clone(),
        outgoing: Vec::new(),
        incoming: vec![source],
        address,
    });
}

fn unusual(host: &str, port: i32, usual_port: i32) -> Option<String> {
    let host = host.to_ascii_lowercase();
    let usual = USUAL_HOSTS.contains(&host.as_str());
    let port = if port > 0 { port } else { usual_port };
    (!usual).then(|| format!("{}:{port}", one_line(&host)))
}

fn token_note(mailbox: &Planned, notes: &mut Vec<String>) {
    let address = &mailbox.address;
    if mailbox.token.is_none() {
        notes.push(format!(
            "{address}: Odoo has no refresh token for it: `outlook-relay connect {address}`, or `invite` its owner"
        ));
        return;
    }
    let has_token = |sources: &[Source]| sources.iter().any(|source| source.token);
    let (only, lacks) = match (has_token(&mailbox.outgoing), has_token(&mailbox.incoming)) {
        (true, false) => ("sending", "IMAP.AccessAsUser.All"),
        (false, true) => ("receiving", "SMTP.Send"),
        _ => return,
    };
    notes.push(format!(
        "{address}: its owner consented to {only} alone. Where no administrator has granted {lacks} for everybody, Microsoft \
         says AADSTS65001: then `outlook-relay connect {address}`"
    ));
}
