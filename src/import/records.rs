//! What an Odoo has configured about mail, as a system administrator reads it.

use super::rpc::{Error, Record, Rpc, number, text, truth};
use crate::odoo::xmlrpc::string;
use dxr::Value;
use secrecy::SecretString;

/// Everything that a move needs to know.
#[derive(Clone, Debug, Default)]
pub struct Records {
    /// Odoo's major version.
    pub version: u32,
    /// `ir.mail_server`, archived ones too, in Odoo's order.
    pub outgoing: Vec<Outgoing>,
    /// `fetchmail.server`, archived ones too, in Odoo's order.
    pub incoming: Vec<Incoming>,
    /// `mail.alias.domain` (17 and later), or the one that the system parameters make.
    pub domains: Vec<Domain>,
    /// `microsoft_outlook_client_id`; empty: not set.
    pub client_id: String,
    /// `microsoft_outlook_client_secret`.
    pub client_secret: Option<SecretString>,
    /// `microsoft_outlook.endpoint`; empty: not set.
    pub endpoint: String,
}

/// An `ir.mail_server`.
#[derive(Clone, Debug, Default)]
pub struct Outgoing {
    /// Its id.
    pub id: i32,
    /// What people call it.
    pub name: String,
    /// The lowest is asked first.
    pub sequence: i32,
    /// `false`: archived.
    pub active: bool,
    /// Empty: any From.
    pub from_filter: String,
    /// Where it submits.
    pub host: String,
    /// At which port.
    pub port: i32,
    /// `outlook`, `gmail`, `login`, `certificate`, `cli`.
    pub authentication: String,
    /// The mailbox.
    pub user: String,
    /// Its token.
    pub token: Option<SecretString>,
    /// Whether it is one user's own (19 and later).
    pub personal: bool,
}

/// A `fetchmail.server`.
#[derive(Clone, Debug, Default)]
pub struct Incoming {
    /// Its id.
    pub id: i32,
    /// What people call it.
    pub name: String,
    /// `false`: archived.
    pub active: bool,
    /// `false`: a draft, which fetches nothing.
    pub confirmed: bool,
    /// `outlook`, `gmail`, `imap`, `pop`, `local`.
    pub kind: String,
    /// Where it fetches.
    pub host: String,
    /// At which port.
    pub port: i32,
    /// The mailbox.
    pub user: String,
    /// The model of a new record, like `crm.lead`; empty: none.
    pub model: String,
    /// Whether the raw message is kept at the record.
    pub original: bool,
    /// Whether attachments are kept.
    pub attach: bool,
    /// Its token.
    pub token: Option<SecretString>,
}

/// A `mail.alias.domain`, or the system parameters of Odoo 16.
#[derive(Clone, Debug, Default)]
pub struct Domain {
    /// Its name; empty where only `mail.default.from` is set.
    pub name: String,
    /// `mail.default.from`; empty: none.
    pub default_from: String,
    /// `mail.bounce.alias`; empty: none.
    pub bounce_alias: String,
}

const REFRESH_TOKEN: &str = "microsoft_outlook_refresh_token";

const OUTGOING: &[&str] = &[
    "name",
    "sequence",
    "active",
    "from_filter",
    "smtp_host",
    "smtp_port",
    "smtp_authentication",
    "smtp_user",
    REFRESH_TOKEN,
    "owner_user_id",
];

const INCOMING: &[&str] = &[
    "name",
    "active",
    "state",
    "server_type",
    "server",
    "port",
    "user",
    "object_id",
    "original",
    "attach",
    REFRESH_TOKEN,
];

const PARAMETERS: &[&str] = &[
    "mail.default.from",
    "mail.catchall.domain",
    "mail.bounce.alias",
    "microsoft_outlook_client_id",
    "microsoft_outlook_client_secret",
    "microsoft_outlook.endpoint",
];

/// Reads all of it; changes nothing.
///
/// # Errors
/// An account without the rights, and an Odoo in trouble.
pub async fn read(rpc: &Rpc) -> Result<Records, Error> {
    let outgoing = all(rpc, "ir.mail_server", OUTGOING).await?;
    let incoming = all(rpc, "fetchmail.server", INCOMING).await?;
    let keys = Value::Array(PARAMETERS.iter().map(|key| string(key)).collect());
    let condition = Value::Array(vec![string("key"), string("in"), keys]);
    let parameters = rpc.search_read("ir.config_parameter", vec![condition], &["key", "value"]).await?;
    let parameter = |key: &str| {
        let found = parameters.iter().find(|record| text(record, "key") == key);
        found.map(|record| text(record, "value").trim().to_owned()).unwrap_or_default()
    };
    let domains = if rpc.version() >= 17 {
        let fields = ["name", "default_from", "bounce_alias"];
        rpc.search_read("mail.alias.domain", Vec::new(), &fields).await?.iter().map(domain).collect()
    } else {
        let domain = Domain {
            name: parameter("mail.catchall.domain"),
            default_from: parameter("mail.default.from"),
            bounce_alias: parameter("mail.bounce.alias"),
        };
        let any = !domain.name.is_empty() || domain.default_from.contains('@');
        any.then_some(domain).into_iter().collect()
    };
    let models = models(rpc, &incoming).await?;
    Ok(Records {
        version: rpc.version(),
        outgoing: outgoing.iter().map(outgoing_server).collect(),
        incoming: incoming.iter().map(|record| incoming_server(record, &models)).collect(),
        domains,
        client_id: parameter("microsoft_outlook_client_id"),
        client_secret: secret(parameter("microsoft_outlook_client_secret")),
        endpoint: parameter("microsoft_outlook.endpoint"),
    })
}

/// Every record of a model; none where its module is not installed. Only fields that this Odoo has can be asked for.
async fn all(rpc: &Rpc, model: &str, fields: &[&str]) -> Result<Vec<Record>, Error> {
    let known = match rpc.fields(model).await {
        Err(Error::NoModel { .. }) => return Ok(Vec::new()),
        known => known?,
    };
    let fields: Vec<&str> =
        fields.iter().copied().filter(|field| known.iter().any(|known| known == field)).collect();
    rpc.search_read(model, Vec::new(), &fields).await
}

/// The technical names of the models that new records are made of.
async fn models(rpc: &Rpc, incoming: &[Record]) -> Result<Vec<Record>, Error> {
    let ids: Vec<Value> = incoming
        .iter()
        .map(|record| number(record, "object_id"))
        .filter(|id| *id > 0)
        .map(Value::Integer)
        .collect();
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    let condition = Value::Array(vec![string("id"), string("in"), Value::Array(ids)]);
    rpc.search_read("ir.model", vec![condition], &["model"]).await
}

fn domain(record: &Record) -> Domain {
    let trimmed = |field| text(record, field).trim().to_owned();
    Domain {
        name: trimmed("name"),
        default_from: trimmed("default_from"),
        bounce_alias: trimmed("bounce_alias"),
    }
}

fn outgoing_server(record: &Record) -> Outgoing {
    Outgoing {
        id: number(record, "id"),
        name: text(record, "name"),
        sequence: number(record, "sequence"),
        active: truth(record, "active").unwrap_or(true),
        from_filter: text(record, "from_filter").trim().to_owned(),
        host: text(record, "smtp_host").trim().to_owned(),
        port: number(record, "smtp_port"),
        authentication: text(record, "smtp_authentication"),
        user: text(record, "smtp_user").trim().to_owned(),
        token: secret(text(record, REFRESH_TOKEN)),
        personal: number(record, "owner_user_id") > 0,
    }
}

fn incoming_server(record: &Record, models: &[Record]) -> Incoming {
    let model = number(record, "object_id");
    let model = models.iter().find(|known| number(known, "id") == model);
    Incoming {
        id: number(record, "id"),
        name: text(record, "name"),
        active: truth(record, "active").unwrap_or(true),
        confirmed: text(record, "state") == "done",
        kind: text(record, "server_type"),
        host: text(record, "server").trim().to_owned(),
        port: number(record, "port"),
        user: text(record, "user").trim().to_owned(),
        model: model.map(|model| text(model, "model")).unwrap_or_default(),
        original: truth(record, "original").unwrap_or(false),
        attach: truth(record, "attach").unwrap_or(true),
        token: secret(text(record, REFRESH_TOKEN)),
    }
}

fn secret(text: String) -> Option<SecretString> {
    let text = text.trim();
    (!text.is_empty()).then(|| SecretString::from(text))
}
