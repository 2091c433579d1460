//! Odoo's XML-RPC for an administrator: reading and changing records. (The gateway for received mail is
//! [`crate::odoo::Gateway`].)

use crate::failure::{chain, one_line};
use crate::odoo::answers::exception;
use crate::odoo::xmlrpc::{self, Caller, Reply, string};
use crate::tls;
use crate::tokens::endpoint;
use dxr::Value;
use secrecy::{ExposeSecret, SecretString};
use std::collections::BTreeMap;
use std::time::Duration;
use url::Url;

/// How long one call may take.
const TIMEOUT: Duration = Duration::from_secs(60);

/// The largest answer that is read, in bytes. A mail server's record has a few kB.
const LARGEST_ANSWER: usize = 16 << 20;

/// One record, or any other struct of Odoo's: values by their fields' names.
pub type Record = BTreeMap<String, Value>;

/// Why Odoo did not do what it was asked. No variant holds the password.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address.
    #[error(
        "--url {0:?} is no address of an Odoo: write one like http://127.0.0.1:8069, without a user or password in it"
    )]
    Url(String),
    /// Our own side of the connection.
    #[error("the HTTP client could not be set up: {0}")]
    Client(String),
    /// No answer, or half of one.
    #[error("{url} does not answer: {reason}: check --url, and that Odoo runs")]
    Unreachable {
        /// Where.
        url: String,
        /// What was seen.
        reason: String,
    },
    /// Something else than XML-RPC.
    #[error(
        "{url} does not answer as an Odoo does ({reason}): check --url; a proxy in front must let /xmlrpc/2/ through"
    )]
    NotOdoo {
        /// Where.
        url: String,
        /// What was seen.
        reason: String,
    },
    /// `authenticate` said no.
    #[error(
        "Odoo does not know the login {login:?} with this password in the database {database:?}: check --login, \
         --database and --password-file (a user with two-factor authentication needs an API key)"
    )]
    Denied {
        /// Who.
        login: String,
        /// Where.
        database: String,
    },
    /// No such database.
    #[error("Odoo has no database {database:?}: check --database")]
    Database {
        /// Which.
        database: String,
    },
    /// An access error.
    #[error(
        "{login:?} may not {operation} in Odoo: {said}: use the account of a system administrator (Administration: \
         Settings)"
    )]
    Rights {
        /// Who.
        login: String,
        /// What.
        operation: String,
        /// Odoo's words.
        said: String,
    },
    /// The model is not there: its module is not installed.
    #[error("Odoo has no {model}: its module is not installed")]
    NoModel {
        /// Which.
        model: String,
    },
    /// Odoo refused.
    #[error("Odoo refuses to {operation}: {said}")]
    Refused {
        /// What.
        operation: String,
        /// Odoo's words.
        said: String,
    },
    /// An answer of another kind than the method gives.
    #[error("Odoo's answer to {operation} makes no sense")]
    Strange {
        /// What was asked.
        operation: String,
    },
}

/// An Odoo, and who calls it.
pub struct Rpc {
    http: reqwest::Client,
    url: String,
    database: String,
    login: String,
    password: SecretString,
    uid: i32,
    version: u32,
}

impl Rpc {
    /// Asks for the version, and signs in.
    ///
    /// # Errors
    /// An Odoo that is not there, or does not know login and password.
    pub async fn sign_in(
        url: &str,
        database: &str,
        login: &str,
        password: SecretString,
    ) -> Result<Self, Error> {
        let parsed = Url::parse(url).ok().filter(|url| {
            url.has_host()
                && ["http", "https"].contains(&url.scheme())
                && url.username().is_empty()
                && url.password().is_none()
        });
        let Some(parsed) = parsed else {
            // What looks like a password is not repeated.
            return Err(Error::Url(if url.contains('@') { "…@…".to_owned() } else { one_line(url) }));
        };
        let tls = tls::client(None).map_err(|error| Error::Client(chain(&error)))?;
        let http = endpoint::http_client(&tls).map_err(|error| Error::Client(chain(&error)))?;
        let mut rpc = Self {
            http,
            url: parsed.as_str().trim_end_matches('/').to_owned(),
            database: database.to_owned(),
            login: login.to_owned(),
            password,
            uid: 0,
            version: 0,
        };
        let answer = rpc.post("common", "tell its version", xmlrpc::version()).await?;
        rpc.version = version(&answer).ok_or_else(|| Error::Strange { operation: "version".to_owned() })?;
        let call = xmlrpc::authenticate(database, login, rpc.password.expose_secret());
        match rpc.post("common", "sign in", call).await? {
            Value::Integer(uid) if uid > 0 => rpc.uid = uid,
            _ => return Err(rpc.denied()),
        }
        Ok(rpc)
    }

    /// The major version: 16, 17, …
    pub fn version(&self) -> u32 {
        self.version
    }

    /// Where it is, without a slash at the end.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Its database.
    pub fn database(&self) -> &str {
        &self.database
    }

    /// The names of a model's fields that the account may see.
    ///
    /// # Errors
    /// No such model, no rights, or Odoo is in trouble.
    pub async fn fields(&self, model: &str) -> Result<Vec<String>, Error> {
        let attributes = Value::Array(vec![string("type")]);
        let keywords = Record::from([("attributes".to_owned(), attributes)]);
        match self.call(model, "fields_get", Vec::new(), keywords).await? {
            Value::Struct(fields) => Ok(fields.into_keys().collect()),
            _ => Err(Error::Strange { operation: format!("{model}.fields_get") }),
        }
    }

    /// The records that meet all conditions, archived ones too, in Odoo's order.
    ///
    /// # Errors
    /// No such model, no rights, or Odoo is in trouble.
    pub async fn search_read(
        &self,
        model: &str,
        conditions: Vec<Value>,
        fields: &[&str],
    ) -> Result<Vec<Record>, Error> {
        let fields = fields.iter().map(|field| string(field)).collect();
        let context = Record::from([("active_test".to_owned(), Value::Boolean(false))]);
        let keywords = Record::from([
            ("fields".to_owned(), Value::Array(fields)),
            ("context".to_owned(), Value::Struct(context)),
        ]);
        let strange = || Error::Strange { operation: format!("{model}.search_read") };
        let arguments = vec![Value::Array(conditions)];
        let Value::Array(records) = self.call(model, "search_read", arguments, keywords).await? else {
            return Err(strange());
        };
        let record = |value| match value {
            Value::Struct(record) => Ok(record),
            _ => Err(strange()),
        };
        records.into_iter().map(record).collect()
    }

    /// Creates a record; returns its id.
    ///
    /// # Errors
    /// No rights, values that Odoo refuses, or Odoo is in trouble.
    pub async fn create(&self, model: &str, values: Record) -> Result<i32, Error> {
        let values = Value::Struct(values);
        match self.call(model, "create", vec![values], Record::new()).await? {
            Value::Integer(id) => Ok(id),
            _ => Err(Error::Strange { operation: format!("{model}.create") }),
        }
    }

    /// Changes a record.
    ///
    /// # Errors
    /// No rights, values that Odoo refuses, or Odoo is in trouble. Odoo's words may repeat a value.
    pub async fn write(&self, model: &str, id: i32, values: Record) -> Result<(), Error> {
        let arguments = vec![Value::Array(vec![Value::Integer(id)]), Value::Struct(values)];
        self.call(model, "write", arguments, Record::new()).await.map(drop)
    }

    /// Deletes a record.
    ///
    /// # Errors
    /// No rights, or Odoo is in trouble.
    pub async fn unlink(&self, model: &str, id: i32) -> Result<(), Error> {
        let arguments = vec![Value::Array(vec![Value::Integer(id)])];
        self.call(model, "unlink", arguments, Record::new()).await.map(drop)
    }

    async fn call(
        &self,
        model: &str,
        method: &str,
        arguments: Vec<Value>,
        keywords: Record,
    ) -> Result<Value, Error> {
        let caller =
            Caller { database: &self.database, uid: self.uid, password: self.password.expose_secret() };
        let body = xmlrpc::execute_kw(caller, model, method, arguments, keywords);
        let operation = match method {
            "fields_get" | "search_read" => format!("read {model}"),
            method => format!("{method} {model}"),
        };
        self.post("object", &operation, body).await
    }

    async fn post(
        &self,
        service: &str,
        operation: &str,
        body: Result<String, xmlrpc::Error>,
    ) -> Result<Value, Error> {
        let strange = || Error::Strange { operation: operation.to_owned() };
        let unreachable = |error: reqwest::Error| Error::Unreachable {
            url: self.url.clone(),
            reason: chain(&error.without_url()),
        };
        let not_odoo = |reason: String| Error::NotOdoo { url: self.url.clone(), reason };
        let request = self.http.post(format!("{}/xmlrpc/2/{service}", self.url));
        let request = request.header("Content-Type", "text/xml").header("Connection", "close");
        let request = request.timeout(TIMEOUT).body(body.map_err(|_| strange())?);
        let mut response = request.send().await.map_err(unreachable)?;
        if response.status().as_u16() != 200 {
            return Err(not_odoo(format!("HTTP {}", response.status().as_u16())));
        }
        let mut answer = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(unreachable)? {
            answer.extend_from_slice(&chunk);
            if answer.len() > LARGEST_ANSWER {
                return Err(strange());
            }
        }
        match xmlrpc::read(&String::from_utf8_lossy(&answer)) {
            Ok(Reply::Value(value)) => Ok(value),
            Ok(Reply::Fault { code, text }) => Err(self.fault(operation, code, &text)),
            Err(error) => Err(not_odoo(error.to_string())),
        }
    }

    /// What a fault means (codes: 2 user error, 3 access denied, 4 access error).
    fn fault(&self, operation: &str, code: i32, text: &str) -> Error {
        let said = one_line(&exception(text).replace(self.password.expose_secret(), "…"));
        let operation = operation.to_owned();
        if code == 3 {
            self.denied()
        } else if code == 4 {
            Error::Rights { login: self.login.clone(), operation, said }
        } else if said.contains("does not exist") && said.contains("database") {
            Error::Database { database: self.database.clone() }
        } else if said.contains("doesn't exist") && said.contains("Object ")
            || operation.starts_with("read ") && said.starts_with("KeyError: ")
        {
            let model = operation.rsplit(' ').next().unwrap_or_default().to_owned();
            Error::NoModel { model }
        } else {
            Error::Refused { operation, said }
        }
    }

    fn denied(&self) -> Error {
        Error::Denied { login: self.login.clone(), database: self.database.clone() }
    }
}

impl std::fmt::Debug for Rpc {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Rpc")
            .field("url", &self.url)
            .field("database", &self.database)
            .finish_non_exhaustive()
    }
}

/// The major version: of `server_version` "16.0", "saas~18.2+e" or "19.0-20251010".
fn version(answer: &Value) -> Option<u32> {
    let Value::Struct(members) = answer else { return None };
    let Value::String(text) = members.get("server_version")? else {
        return None;
    };
    let digits = text.trim_start_matches(|c: char| !c.is_ascii_digit());
    digits.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// A field's text; empty where Odoo says `false`, which is how it says nothing.
pub fn text(record: &Record, field: &str) -> String {
    match record.get(field) {
        Some(Value::String(text)) => text.clone(),
        _ => String::new(),
    }
}

/// A field's number; of a many2one (`[id, name]`) its id; 0 where there is none.
pub fn number(record: &Record, field: &str) -> i32 {
    match record.get(field) {
        Some(Value::Integer(number)) => *number,
        Some(Value::Array(pair)) => match pair.first() {
            Some(Value::Integer(id)) => *id,
            _ => 0,
        },
        _ => 0,
    }
}

/// A field's truth; `None` where the record does not have it.
pub fn truth(record: &Record, field: &str) -> Option<bool> {
    match record.get(field) {
        Some(Value::Boolean(truth)) => Some(*truth),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_as_odoo_writes_them() {
        for (text, expected) in [
            ("16.0", Some(16)),
            ("19.0-20251010", Some(19)),
            ("saas~18.2+e", Some(18)),
            ("17.0+e", Some(17)),
            ("", None),
            ("master", None),
        ] {
            let answer = Value::Struct([("server_version".to_owned(), string(text))].into_iter().collect());
            assert_eq!(version(&answer), expected, "{text}");
        }
    }
}
