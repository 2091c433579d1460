//! The token endpoint's two answers: tokens (RFC 6749 section 5.1) or an error (section 5.2, with Microsoft's additions).
//! Both are read leniently: a field of the wrong type costs that field, not the answer.

use super::schedule;
use crate::failure::one_line;
use crate::microsoft::token_errors::{self, Verdict};
use oauth2::basic::BasicTokenType;
use oauth2::{AccessToken, RefreshToken, Scope, TokenResponse};
use secrecy::SecretString;
use serde::{Deserialize, Serialize, Serializer};
use serde_json::Value;
use std::fmt;
use std::time::Duration;

/// Tokens.
#[derive(Debug, Deserialize)]
pub struct TokenAnswer {
    #[serde(deserialize_with = "header_safe")]
    access_token: AccessToken,
    #[serde(default)]
    expires_in: Value,
    #[serde(default, deserialize_with = "refresh_token")]
    refresh_token: Option<RefreshToken>,
    /// Who signed in (OpenID Connect), where that was asked for.
    #[serde(default, deserialize_with = "secret")]
    pub id_token: Option<SecretString>,
}

impl TokenAnswer {
    /// How long the access token lives.
    pub fn lifetime(&self) -> Duration {
        schedule::lifetime(Some(&self.expires_in))
    }
}

impl TokenResponse for TokenAnswer {
    type TokenType = BasicTokenType;

    fn access_token(&self) -> &AccessToken {
        &self.access_token
    }

    /// Microsoft has no other type, and XOAUTH2 could not use one.
    fn token_type(&self) -> &BasicTokenType {
        &BasicTokenType::Bearer
    }

    fn expires_in(&self) -> Option<Duration> {
        Some(self.lifetime())
    }

    fn refresh_token(&self) -> Option<&RefreshToken> {
        self.refresh_token.as_ref().filter(|token| !token.secret().is_empty())
    }

    fn scopes(&self) -> Option<&Vec<Scope>> {
        None
    }
}

/// The trait wants it; nobody shall have it.
impl Serialize for TokenAnswer {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_unit()
    }
}

/// Tokens are visible ASCII (RFC 6749 appendix A.12): anything else would break out of the XOAUTH2 response.
fn header_safe<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<AccessToken, D::Error> {
    let token = String::deserialize(deserializer)?;
    if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(serde::de::Error::custom("the access token is no token"));
    }
    Ok(AccessToken::new(token))
}

fn refresh_token<'de, D: serde::Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<RefreshToken>, D::Error> {
    Ok(text(deserializer)?.map(RefreshToken::new))
}

fn secret<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<SecretString>, D::Error> {
    Ok(text(deserializer)?.map(SecretString::from))
}

/// A text; `None`: something else.
fn text<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    Ok(match Value::deserialize(deserializer)? {
        Value::String(text) => Some(text),
        _ => None,
    })
}

/// An error.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(from = "Value")]
pub struct ErrorAnswer {
    /// RFC 6749's, and in device flows RFC 8628's; empty: the answer is none of OAuth's.
    pub error: String,
    description: String,
    suberror: String,
    codes: Vec<u32>,
    /// Trace and correlation id, by which Microsoft's support finds the request, where the description has none.
    ids: Vec<(&'static str, String)>,
}

impl From<Value> for ErrorAnswer {
    fn from(answer: Value) -> Self {
        let text = |key: &str| {
            let value = answer.get(key).and_then(Value::as_str);
            one_line(value.unwrap_or_default())
        };
        let description = text("error_description");
        let listed = answer.get("error_codes").and_then(Value::as_array);
        let mut codes: Vec<u32> = listed
            .into_iter()
            .flatten()
            .filter_map(|code| u32::try_from(code.as_u64()?).ok())
            .take(20)
            .collect();
        codes.extend(code_in(&description).filter(|code| !codes.contains(code)));
        let ids = [("Trace ID", text("trace_id")), ("Correlation ID", text("correlation_id"))]
            .into_iter()
            .filter(|(_, id)| !id.is_empty() && !description.contains(id.as_str()))
            .collect();
        let error: String = text("error").chars().take(64).collect();
        Self { error, description, suberror: text("suberror"), codes, ids }
    }
}

/// The code that a description begins with, `AADSTS700082: …`.
fn code_in(description: &str) -> Option<u32> {
    let (_, rest) = description.split_once("AADSTS")?;
    let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    rest.get(..end)?.parse().ok()
}

impl ErrorAnswer {
    /// Takes what we sent out of it, should the endpoint repeat it.
    pub fn without(mut self, secrets: &[&str]) -> Self {
        let texts = [&mut self.error, &mut self.description, &mut self.suberror];
        for text in texts.into_iter().chain(self.ids.iter_mut().map(|(_, text)| text)) {
            // Shorter ones are no real secrets, and may be words that people need to read.
            for secret in secrets.iter().filter(|secret| secret.len() >= 8) {
                // A description that was cut short may end within the secret.
                let start: String = secret.chars().take(16).collect();
                if text.contains(*secret) {
                    *text = text.replace(*secret, "[redacted]");
                }
                if let Some((before, _)) = text.split_once(&start) {
                    *text = format!("{before}[redacted]");
                }
            }
        }
        self
    }

    /// What it means.
    pub fn verdict(&self, mailbox: &str) -> Verdict {
        token_errors::judge(&self.error, &self.codes, &self.to_string(), mailbox)
    }
}

impl fmt::Display for ErrorAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.description.is_empty() {
            f.write_str(&self.error)?;
        } else {
            f.write_str(&self.description)?;
        }
        if !self.suberror.is_empty() {
            write!(f, " suberror: {}", self.suberror)?;
        }
        self.ids.iter().try_for_each(|(name, id)| write!(f, " {name}: {id}"))
    }
}

impl oauth2::ErrorResponse for ErrorAnswer {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::Class;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn microsofts_error_is_read_whole() {
        let answer = ErrorAnswer::from(json!({
            "error": "invalid_grant",
            "error_description": "AADSTS700082: The refresh token has expired due to inactivity.\r\nTrace ID: t-1\r\n\
                Correlation ID: c-1\r\nTimestamp: 2026-01-01 00:00:00Z",
            "error_codes": [700_082],
            "timestamp": "2026-01-01 00:00:00Z",
            "trace_id": "t-1",
            "correlation_id": "c-1",
            "suberror": "token_expired",
        }));
        let failure = answer.verdict("john@example.com").failure;
        assert_eq!((failure.class, failure.code.as_str()), (Class::Consent, "AADSTS700082"));
        assert_eq!(
            failure.reply,
            "AADSTS700082: The refresh token has expired due to inactivity. Trace ID: t-1 Correlation ID: c-1 \
             Timestamp: 2026-01-01 00:00:00Z suberror: token_expired"
        );
    }

    #[test]
    fn the_code_is_found_in_the_description_and_the_ids_beside_it() {
        let answer = ErrorAnswer::from(json!({
            "error": "invalid_client",
            "error_description": "AADSTS7000222: The provided client secret keys are expired.",
            "trace_id": "t-2",
        }));
        let failure = answer.verdict("john@example.com").failure;
        assert_eq!(failure.code, "AADSTS7000222");
        assert!(failure.reply.ends_with("expired. Trace ID: t-2"), "{failure}");
    }

    #[test]
    fn odd_answers_are_survived() {
        let cases = [
            json!([]),
            json!("error"),
            json!({"error": 5, "error_codes": "700082", "error_description": ["x"]}),
            json!({"error_codes": [-1, 1e99, {}]}),
        ];
        for case in cases {
            assert_eq!(ErrorAnswer::from(case), ErrorAnswer::default());
        }
        let long = ErrorAnswer::from(json!({"error": "e".repeat(100_000), "trace_id": "t".repeat(100_000)}));
        let failure = long.verdict("john@example.com").failure;
        assert!(failure.code.len() <= 64 && failure.reply.len() < 510);
    }

    #[test]
    fn an_access_token_is_visible_ascii() {
        for bad in ["", "a b", "a\u{1}", "ä", "a\r\n"] {
            assert!(serde_json::from_value::<TokenAnswer>(json!({"access_token": bad})).is_err(), "{bad:?}");
        }
        let answer: TokenAnswer =
            serde_json::from_value(json!({"access_token": "a.b-c", "refresh_token": ""})).unwrap();
        assert!(answer.refresh_token().is_none(), "an empty one must not replace the one before");
        assert_eq!(answer.lifetime(), Duration::from_secs(3600));
        assert!(!format!("{answer:?}").contains("a.b-c"));
        assert_eq!(serde_json::to_value(&answer).unwrap(), Value::Null);
    }

    #[test]
    fn a_field_of_the_wrong_type_costs_that_field_alone() {
        for wrong in [json!(5), json!({}), json!(["x"]), Value::Null] {
            let answer = json!({
                "access_token": "a", "refresh_token": wrong, "id_token": wrong, "expires_in": wrong, "scope": wrong,
            });
            let answer: TokenAnswer = serde_json::from_value(answer).unwrap();
            assert_eq!(answer.access_token().secret(), "a");
            assert!(answer.refresh_token().is_none() && answer.id_token.is_none());
        }
    }

    proptest! {
        #[test]
        fn what_we_sent_is_never_repeated(before in "[ -~]{0,700}", after in "[ -~]{0,40}") {
            let secret = "0.AXoAsecret-refresh-token-0123456789";
            let answer = ErrorAnswer::from(json!({
                "error": "invalid_grant",
                "error_description": format!("{before}{secret}{after}"),
                "suberror": secret,
            }));
            let failure = answer.without(&[secret]).verdict("john@example.com").failure;
            let shown = format!("{failure:?}");
            prop_assert!(!shown.contains("0.AXoAsecret-ref"), "{}", shown);
        }
    }
}
