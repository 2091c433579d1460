//! Setting Odoo to the relay, one step after the other, and back: by a record that says what was done, so that a step is
//! never lost and may be done twice. The record holds no token: what is cleared in Odoo lies sealed in the store.

use super::plan::{Plan, Planned, Source, describe};
use super::rpc::{Error, Record, Rpc, number, text};
use crate::address::Address;
use crate::odoo::xmlrpc::string;
use crate::store::Store;
use dxr::Value;
use secrecy::ExposeSecret;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

const OUTGOING: &str = "ir.mail_server";
const INCOMING: &str = "fetchmail.server";
const REFRESH_TOKEN: &str = "microsoft_outlook_refresh_token";

/// What was planned and what was done, as it lies beside relay.toml.
#[derive(Debug, Serialize, Deserialize)]
pub struct Journal {
    /// Which Odoo.
    pub url: String,
    /// Its database.
    pub database: String,
    /// In their order.
    pub steps: Vec<Step>,
}

/// One change.
#[derive(Debug, Serialize, Deserialize)]
pub struct Step {
    /// How far it is.
    pub state: State,
    /// What.
    #[serde(flatten)]
    pub deed: Deed,
}

/// How far a step is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Odoo was not asked.
    Planned,
    /// Odoo was asked, and may have done it.
    Begun,
    /// Odoo did it.
    Done,
}

/// What a step changes.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "deed", rename_all = "lowercase")]
pub enum Deed {
    /// A new outgoing server, to the relay.
    Create {
        /// By which it is found again.
        name: String,
        /// FROM Filtering.
        from_filter: String,
        /// Where the relay listens.
        relay: SocketAddr,
    },
    /// An outgoing server is archived.
    Archive {
        /// Its id.
        id: i32,
        /// What people call it.
        name: String,
    },
    /// An incoming server becomes a draft.
    Draft {
        /// Its id.
        id: i32,
        /// What people call it.
        name: String,
    },
    /// A server's copies of the tokens are cleared.
    Clear {
        /// Whether it is an outgoing one.
        outgoing: bool,
        /// Its id.
        id: i32,
        /// What people call it.
        name: String,
        /// Whose token it is in the store.
        mailbox: Address,
    },
}

/// Why a step was not taken; what was done before stays done and is in the record.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    /// Odoo's.
    #[error(transparent)]
    Odoo(#[from] Error),
    /// The record cannot be written.
    #[error("{path}: the record of what is changed in Odoo cannot be written")]
    Write {
        /// Where.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Somebody made it by hand; undoing would delete it.
    #[error("Odoo has an outgoing server {0:?} to the relay already: rename or delete it first")]
    Exists(String),
    /// The store's.
    #[error("the token cannot be read from the store")]
    Store(#[from] crate::store::Error),
    /// There is none.
    #[error("the store has no token of {0}, so Odoo cannot get it back: connect it in Odoo")]
    NoToken(Address),
}

impl Deed {
    /// In words, as something that was or will be done.
    pub fn describe(&self) -> String {
        match self {
            Self::Create { name, from_filter, relay } => {
                format!("outgoing server {name:?} to {relay}, FROM Filtering {from_filter}")
            }
            Self::Archive { id, name } => format!("{}: archived", describe("outgoing", *id, name)),
            Self::Draft { id, name } => format!("{}: not confirmed (draft)", describe("incoming", *id, name)),
            Self::Clear { outgoing, id, name, .. } => {
                let direction = if *outgoing { "outgoing" } else { "incoming" };
                format!("{}: Odoo's copy of the token cleared", describe(direction, *id, name))
            }
        }
    }
}

/// The steps that follow from a plan, of the mailboxes that the relay has (`known`) and those whose token it has
/// (`held`): others go on in Odoo.
pub fn steps(
    plan: &Plan,
    version: u32,
    relay: SocketAddr,
    known: &BTreeSet<Address>,
    held: &BTreeSet<Address>,
) -> Vec<Step> {
    let filters = if version < 17 { plan.relay_filter.clone() } else { vec![plan.relay_filter.join(",")] };
    let create = filters.into_iter().map(|from_filter| Deed::Create {
        name: if version < 17 {
            format!("outlook-relay ({from_filter})")
        } else {
            "outlook-relay".to_owned()
        },
        from_filter,
        relay,
    });
    let moved = || plan.mailboxes.iter().filter(|mailbox| known.contains(&mailbox.address));
    let archive = moved()
        .flat_map(|mailbox| &mailbox.outgoing)
        .map(|Source { id, name, .. }| Deed::Archive { id: *id, name: name.clone() });
    let draft = moved()
        .flat_map(|mailbox| &mailbox.incoming)
        .map(|Source { id, name, .. }| Deed::Draft { id: *id, name: name.clone() });
    let clear = moved().filter(|mailbox| held.contains(&mailbox.address)).flat_map(clear);
    create.chain(archive).chain(draft).chain(clear).map(|deed| Step { state: State::Planned, deed }).collect()
}

fn clear(mailbox: &Planned) -> impl Iterator<Item = Deed> {
    let of = |outgoing: bool, sources: &[Source]| {
        let with_token = sources.iter().filter(|source| source.token);
        let deed = |source: &Source| Deed::Clear {
            outgoing,
            id: source.id,
            name: source.name.clone(),
            mailbox: mailbox.address.clone(),
        };
        with_token.map(deed).collect::<Vec<_>>()
    };
    of(true, &mailbox.outgoing).into_iter().chain(of(false, &mailbox.incoming))
}

/// Where the record lies: beside relay.toml.
pub fn journal_path(toml: &Path) -> PathBuf {
    toml.with_file_name("odoo-before-import.json")
}

impl Journal {
    /// Writes the record in one go, for its owner alone.
    ///
    /// # Errors
    /// The disk's.
    pub fn save(&self, path: &Path) -> Result<(), StepError> {
        use std::os::unix::fs::OpenOptionsExt;
        let new = path.with_extension("json.new");
        let write = || {
            let mut options = std::fs::OpenOptions::new();
            let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&new)?;
            file.write_all(&serde_json::to_vec_pretty(self)?)?;
            file.sync_all()?;
            std::fs::rename(&new, path)
        };
        write().map_err(|source| StepError::Write { path: path.to_owned(), source })
    }

    /// Looks, before the first step, whether what will be created is there already.
    ///
    /// # Errors
    /// It is, or Odoo cannot say.
    pub async fn check_new(&self, rpc: &Rpc) -> Result<(), StepError> {
        for step in &self.steps {
            if let Deed::Create { name, relay, .. } = &step.deed
                && !created(rpc, name, *relay).await?.is_empty()
            {
                return Err(StepError::Exists(name.clone()));
            }
        }
        Ok(())
    }

    /// Does what is not done yet. `told` hears of each step that was done.
    ///
    /// # Errors
    /// The first step that fails.
    pub async fn apply(
        &mut self,
        rpc: &Rpc,
        path: &Path,
        mut told: impl FnMut(&Deed),
    ) -> Result<(), StepError> {
        for index in 0..self.steps.len() {
            if self.steps.get(index).is_none_or(|step| step.state == State::Done) {
                continue;
            }
            self.note(index, State::Begun, path)?;
            if let Some(step) = self.steps.get(index) {
                act(rpc, &step.deed).await?;
                told(&step.deed);
            }
            self.note(index, State::Done, path)?;
        }
        Ok(())
    }

    /// Puts back what was done or begun, the last first. `told` hears of each step, and whether it could be put back:
    /// not where its server is no longer in Odoo.
    ///
    /// # Errors
    /// The first step that cannot be put back; those before stay put back.
    pub async fn undo(
        &mut self,
        rpc: &Rpc,
        store: &Store,
        path: &Path,
        mut told: impl FnMut(&Deed, bool),
    ) -> Result<(), StepError> {
        for index in (0..self.steps.len()).rev() {
            let Some(step) = self.steps.get(index).filter(|step| step.state != State::Planned) else {
                continue;
            };
            let is_there = exists(rpc, &step.deed).await?;
            if is_there {
                put_back(rpc, store, &step.deed).await?;
            }
            told(&step.deed, is_there);
            self.note(index, State::Planned, path)?;
        }
        Ok(())
    }

    fn note(&mut self, index: usize, state: State, path: &Path) -> Result<(), StepError> {
        if let Some(step) = self.steps.get_mut(index) {
            step.state = state;
        }
        self.save(path)
    }
}

async fn act(rpc: &Rpc, deed: &Deed) -> Result<(), Error> {
    match deed {
        Deed::Create { name, from_filter, relay } => {
            // It may be there already, if the answer to an earlier call was lost.
            if !created(rpc, name, *relay).await?.is_empty() {
                return Ok(());
            }
            let values = [
                ("name", string(name)),
                ("from_filter", string(from_filter)),
                ("smtp_host", string(&relay.ip().to_string())),
                ("smtp_port", Value::Integer(i32::from(relay.port()))),
                ("smtp_encryption", string("none")),
                ("smtp_authentication", string("login")),
                ("sequence", Value::Integer(1)),
            ];
            rpc.create(OUTGOING, record(values)).await.map(drop)
        }
        Deed::Archive { id, .. } => {
            rpc.write(OUTGOING, *id, record([("active", Value::Boolean(false))])).await
        }
        Deed::Draft { id, .. } => rpc.write(INCOMING, *id, record([("state", string("draft"))])).await,
        Deed::Clear { outgoing, id, .. } => {
            let values = [
                (REFRESH_TOKEN, Value::Boolean(false)),
                ("microsoft_outlook_access_token", Value::Boolean(false)),
                ("microsoft_outlook_access_token_expiration", Value::Integer(0)),
            ];
            rpc.write(model(*outgoing), *id, record(values)).await
        }
    }
}

async fn put_back(rpc: &Rpc, store: &Store, deed: &Deed) -> Result<(), StepError> {
    match deed {
        Deed::Create { name, relay, .. } => {
            for id in created(rpc, name, *relay).await? {
                rpc.unlink(OUTGOING, id).await?;
            }
        }
        Deed::Archive { id, .. } => {
            rpc.write(OUTGOING, *id, record([("active", Value::Boolean(true))])).await?;
        }
        Deed::Draft { id, .. } => rpc.write(INCOMING, *id, record([("state", string("done"))])).await?,
        Deed::Clear { outgoing, id, mailbox, .. } => {
            let token = store.token(mailbox).await?.ok_or_else(|| StepError::NoToken(mailbox.clone()))?;
            let token = token.refresh_token.expose_secret();
            let written = rpc.write(model(*outgoing), *id, record([(REFRESH_TOKEN, string(token))])).await;
            // Odoo's words could repeat the token.
            written.map_err(|error| match error {
                Error::Refused { operation, .. } => {
                    Error::Refused { operation, said: "it does not take the token back".to_owned() }
                }
                other => other,
            })?;
        }
    }
    Ok(())
}

/// Whether the server that a step has changed is still there.
async fn exists(rpc: &Rpc, deed: &Deed) -> Result<bool, Error> {
    let (model, id) = match deed {
        Deed::Create { .. } => return Ok(true),
        Deed::Archive { id, .. } => (OUTGOING, *id),
        Deed::Draft { id, .. } => (INCOMING, *id),
        Deed::Clear { outgoing, id, .. } => (model(*outgoing), *id),
    };
    let condition = Value::Array(vec![string("id"), string("="), Value::Integer(id)]);
    Ok(!rpc.search_read(model, vec![condition], &["name"]).await?.is_empty())
}

/// The servers to the relay by this name: ours.
async fn created(rpc: &Rpc, name: &str, relay: SocketAddr) -> Result<Vec<i32>, Error> {
    let condition = Value::Array(["name", "=", name].map(string).to_vec());
    let found = rpc.search_read(OUTGOING, vec![condition], &["smtp_host", "smtp_port"]).await?;
    let is_ours = |record: &&Record| {
        text(record, "smtp_host") == relay.ip().to_string()
            && number(record, "smtp_port") == i32::from(relay.port())
    };
    Ok(found.iter().filter(is_ours).map(|record| number(record, "id")).collect())
}

fn model(outgoing: bool) -> &'static str {
    if outgoing { OUTGOING } else { INCOMING }
}

fn record<const N: usize>(values: [(&str, Value); N]) -> Record {
    values.into_iter().map(|(field, value)| (field.to_owned(), value)).collect()
}
