//! Who signed in. The sign-in window offers every account that the browser knows, so the wrong one is picked easily, and its
//! token would open another mailbox or none.

use crate::address::Address;
use crate::failure::{Class, Failure, one_line};
use crate::microsoft::Config;
use crate::tokens::endpoint::TokenAnswer;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use oauth2::TokenResponse;
use secrecy::ExposeSecret;
use serde_json::Value;

/// An account, by the names that Microsoft gives it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Account {
    names: Vec<Address>,
    /// The name that people know it by.
    pub(super) shown: String,
}

impl Account {
    /// Whether one of its names is this.
    pub(super) fn is(&self, wanted: &Address) -> bool {
        self.names.contains(wanted)
    }
}

/// The account that the tokens were given for, from the id token, else from the access token.
///
/// Their signatures are not checked: both came straight from the token endpoint over TLS, which OpenID Connect Core
/// accepts in place of it (section 3.1.3.7, point 6). Nor are their times: they were made for this very answer, and a
/// clock that is minutes off must cost nobody the consent.
pub(super) fn of(answer: &TokenAnswer, config: &Config) -> Result<Account, Failure> {
    let unknown = |reply: &str| {
        Failure::new(Class::Administrator, "no_account", reply)
            .advise("check client_id and authority in the configuration, and any proxy in between")
    };
    let claims = match &answer.id_token {
        Some(token) => {
            let claims = claims(token.expose_secret());
            let claims = claims.ok_or_else(|| unknown("Microsoft's id token makes no sense"))?;
            if !meant_for(&claims, &config.client_id) {
                return Err(unknown("Microsoft's id token is for another app"));
            }
            Some(claims)
        }
        // Opaque to us by the book, but readable wherever it is a company's.
        None => claims(answer.access_token().secret()),
    };
    let claims = claims.ok_or_else(|| unknown("Microsoft did not say who signed in"))?;
    named(&claims, config).ok_or_else(|| unknown("Microsoft did not say who signed in"))
}

/// The payload of a JWT (RFC 7519 section 3).
fn claims(token: &str) -> Option<Value> {
    let mut parts = token.split('.');
    let (_, payload, _) = (parts.next()?, parts.next()?, parts.next()?);
    let claims: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload).ok()?).ok()?;
    claims.is_object().then_some(claims)
}

/// `aud` (RFC 7519 section 4.1.3) is a text or a list of them.
fn meant_for(claims: &Value, client_id: &str) -> bool {
    let is_ours = |value: &Value| value.as_str().is_some_and(|id| id.eq_ignore_ascii_case(client_id));
    match claims.get("aud") {
        Some(Value::Array(list)) => list.iter().any(is_ours),
        Some(value) => is_ours(value),
        None => false,
    }
}

fn named(claims: &Value, config: &Config) -> Option<Account> {
    let mut keys = vec!["preferred_username", "upn", "unique_name"];
    // Where any tenant may sign in, its administrator can write any address into `email`, ours too. In our own tenant it
    // is the mailbox's address, also where people sign in by another name.
    if config.names_own_tenant() {
        keys.push("email");
    }
    let texts: Vec<&str> = keys.into_iter().filter_map(|key| claims.get(key)?.as_str()).collect();
    let shown = one_line(texts.first()?);
    let names = texts.into_iter().filter_map(|text| Address::try_from(text).ok()).collect();
    Some(Account { names, shown })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::section::parse;
    use serde_json::json;
    use std::path::Path;

    fn config(tenant: &str) -> Config {
        let text = format!("client_id = 'app-1'\ntenant = '{tenant}'\n");
        parse(&text, Path::new("/nonexistent"), None, Config::read_root).value
    }

    fn jwt(claims: &Value) -> String {
        format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(claims.to_string()))
    }

    fn answer(access: &str, id: Option<&str>) -> TokenAnswer {
        serde_json::from_value(json!({"access_token": access, "id_token": id})).unwrap()
    }

    #[test]
    fn the_right_account_is_known_by_any_of_its_names() {
        let own = "contoso.com";
        // Claims, tenant, whether it is john.
        let cases = [
            (json!({"preferred_username": "John@Example.COM"}), own, true),
            (json!({"upn": "john@example.com"}), "common", true),
            (json!({"preferred_username": "j.doe@corp.local", "email": "john@example.com"}), own, true),
            (json!({"preferred_username": "eve@evil.example", "email": "john@example.com"}), "common", false),
            (
                json!({"preferred_username": "eve@evil.example", "email": "john@example.com"}),
                "organizations",
                false,
            ),
            (json!({"preferred_username": "jane@example.com"}), own, false),
            (json!({"preferred_username": "john@example.com.evil.example"}), own, false),
            (json!({"preferred_username": "+1 555 0100"}), own, false),
        ];
        let john = Address::try_from("john@example.com").unwrap();
        for (claims, tenant, expected) in cases {
            let mut with_audience = claims.clone();
            with_audience["aud"] = json!("APP-1");
            let token = jwt(&with_audience);
            let account = of(&answer("opaque", Some(&token)), &config(tenant)).unwrap();
            assert_eq!(account.is(&john), expected, "{claims} {tenant}");
        }
    }

    #[test]
    fn the_access_token_tells_where_there_is_no_id_token() {
        let access = jwt(&json!({"upn": "jane@example.com", "aud": "https://outlook.office.com"}));
        let account = of(&answer(&access, None), &config("common")).unwrap();
        assert_eq!(account.shown, "jane@example.com");
    }

    #[test]
    fn an_account_that_is_not_named_is_nobody() {
        let foreign = jwt(&json!({"aud": "other", "upn": "john@example.com"}));
        let nameless = jwt(&json!({"aud": ["app-1"], "sub": "x", "upn": 5}));
        let access = jwt(&json!({"upn": "john@example.com"}));
        let cases: &[(Option<&str>, &str)] = &[
            (Some(&foreign), "another app"),
            (Some(&nameless), "who signed in"),
            (Some("no token"), "makes no sense"),
            (Some("a.b.c"), "makes no sense"),
            (None, "who signed in"),
        ];
        for (id, words) in cases {
            let access = if id.is_some() { &access } else { "opaque" };
            let failure = of(&answer(access, *id), &config("contoso.com")).unwrap_err();
            assert!(failure.reply.contains(words), "{failure}");
        }
    }
}
