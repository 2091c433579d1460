//! Which Odoo answers, and which protocol is the right one for it.

use super::Protocol;
use dxr::Value;
use serde::Deserialize;

/// The first Odoo with JSON-2.
const FIRST_WITH_JSON2: u32 = 19;
/// The first without XML-RPC.
const FIRST_WITHOUT_XMLRPC: u32 = 22;

/// Odoo's version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    /// As Odoo says it: `19.0`, `saas~18.2+e`.
    pub text: String,
    /// Its first number.
    pub major: u32,
}

/// How a protocol suits a version of Odoo.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Suits {
    /// It is the one.
    Well,
    /// It does, but a later version will not have it.
    ForNow,
    /// It does, but the other one is better.
    Poorly,
    /// This version does not have it.
    No,
}

impl Version {
    /// What `/web/version` answers.
    pub fn from_json(text: &str) -> Option<Self> {
        #[derive(Deserialize)]
        struct Answer {
            version: String,
        }
        serde_json::from_str::<Answer>(text).ok().and_then(|answer| Self::read(&answer.version))
    }

    /// What `version()` returns.
    pub fn from_xmlrpc(value: &Value) -> Option<Self> {
        let Value::Struct(members) = value else { return None };
        let Some(Value::String(text)) = members.get("server_version") else { return None };
        Self::read(text)
    }

    fn read(text: &str) -> Option<Self> {
        let number = text.strip_prefix("saas~").unwrap_or(text);
        let digits = number.split(|c: char| !c.is_ascii_digit()).next()?;
        let shown: String = text.chars().filter(|c| c.is_ascii_graphic()).take(40).collect();
        Some(Self { major: digits.parse().ok()?, text: shown })
    }

    /// How a protocol suits it. Both carry every message; XML-RPC byte for byte.
    pub fn suits(&self, protocol: Protocol) -> Suits {
        match (protocol, self.major) {
            (Protocol::XmlRpc, ..FIRST_WITH_JSON2) | (Protocol::Json2, FIRST_WITHOUT_XMLRPC..) => Suits::Well,
            (Protocol::XmlRpc, ..FIRST_WITHOUT_XMLRPC) => Suits::ForNow,
            (Protocol::Json2, FIRST_WITH_JSON2..) => Suits::Poorly,
            (Protocol::XmlRpc, _) | (Protocol::Json2, _) => Suits::No,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_and_suited() {
        use Suits::{ForNow, No, Poorly, Well};
        let rows = [
            ("16.0", 16, Well, No),
            ("saas~18.2+e", 18, Well, No),
            ("19.0-20251001", 19, ForNow, Poorly),
            ("21.0", 21, ForNow, Poorly),
            ("22.0", 22, No, Well),
        ];
        for (text, major, xmlrpc, json2) in rows {
            let version =
                Version::from_json(&format!(r#"{{"version_info": [1], "version": "{text}"}}"#)).unwrap();
            let said = [("server_version".to_owned(), Value::String(text.to_owned()))];
            assert_eq!(Version::from_xmlrpc(&Value::Struct(said.into())), Some(version.clone()));
            assert_eq!((version.text.as_str(), version.major), (text, major));
            let suits = (version.suits(Protocol::XmlRpc), version.suits(Protocol::Json2));
            assert_eq!(suits, (xmlrpc, json2), "{text}");
        }
        for odd in ["", "<html>", "{}", r#"{"version": "master"}"#, r#"{"version": 19}"#] {
            assert_eq!(Version::from_json(odd), None, "{odd}");
        }
    }
}
