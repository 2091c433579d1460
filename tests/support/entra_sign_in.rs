//! Microsoft's sign-in page, scripted: `GET` and `POST /{tenant}/oauth2/v2.0/authorize` (RFC 6749 section 4.1.1).

use std::collections::HashMap;

use super::entra::{Answer, Shared, uuid};
use super::http::Request;

/// A code that somebody has to redeem.
#[derive(Clone, Default)]
pub(super) struct Code {
    /// Who consented; `None`: nobody yet.
    pub(super) mailbox: Option<String>,
    /// Whether an id token was asked for.
    pub(super) openid: bool,
    /// Of an authorization code: where the browser went, and PKCE's challenge.
    pub(super) sent_to: Option<(String, String)>,
}

/// What a sign-in must bring along; a refusal is a page at Microsoft, never a redirect.
fn refusal(shared: &Shared, query: &HashMap<String, String>) -> Option<String> {
    let get = |key: &str| query.get(key).map(String::as_str).unwrap_or_default();
    let redirect = get("redirect_uri");
    let registered = redirect.starts_with("https://") || redirect.starts_with("http://localhost:");
    if get("client_id") != shared.state.lock().unwrap().client_id {
        return Some("AADSTS700016: Application was not found in the directory.".to_owned());
    }
    if !registered {
        return Some(format!("AADSTS50011: The redirect URI '{redirect}' does not match."));
    }
    for (key, value) in
        [("response_type", "code"), ("code_challenge_method", "S256"), ("response_mode", "query")]
    {
        if get(key) != value {
            return Some(format!("AADSTS900144: The request must contain {key}={value}."));
        }
    }
    let missing = ["state", "code_challenge", "scope"].into_iter().find(|key| get(key).is_empty());
    missing.map(|key| format!("AADSTS900144: The request must contain the parameter '{key}'."))
}

/// The page; with an account that [`super::entra::Entra::sign_in_as`] named, the way back at once.
pub(super) fn sign_in(shared: &Shared, request: &Request, query: &str) -> Answer {
    let parameters: HashMap<String, String> =
        url::form_urlencoded::parse(query.as_bytes()).into_owned().collect();
    if let Some(text) = refusal(shared, &parameters) {
        return Answer::html(400, &format!("<!doctype html><title>Error</title><p>{}</p>", escape(&text)));
    }
    let form: HashMap<String, String> = url::form_urlencoded::parse(&request.body).into_owned().collect();
    let account = shared.state.lock().unwrap().account.clone();
    if let Some(account) = account {
        return back(shared, &parameters, Some(&account));
    }
    if request.method == "POST" {
        let consents = form.get("answer").is_some_and(|answer| answer == "yes");
        return back(shared, &parameters, form.get("login").map(String::as_str).filter(|_| consents));
    }
    let hint = parameters.get("login_hint").map(String::as_str).unwrap_or_default();
    let page = format!(
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content=\"width=device-width\">\
         <title>Sign in to your account</title><h1>Sign in</h1><form method=post action=\"{}\">\
         <label>Account <input name=login value=\"{}\"></label>\
         <button id=yes name=answer value=yes>Accept</button><button id=no name=answer value=no>Cancel</button></form>",
        escape(&request.path),
        escape(hint),
    );
    Answer::html(200, &page)
}

/// Sends the browser back, with a code or an error.
fn back(shared: &Shared, query: &HashMap<String, String>, account: Option<&str>) -> Answer {
    let get = |key: &str| query.get(key).map(String::as_str).unwrap_or_default();
    let redirect = get("redirect_uri");
    let mut url = url::Url::parse(redirect).unwrap();
    match account {
        Some(account) => {
            let code = format!("1.AX{}", uuid());
            let openid = get("scope").split(' ').any(|scope| scope == "openid");
            let sent_to = Some((redirect.to_owned(), get("code_challenge").to_owned()));
            let given = Code { mailbox: Some(account.to_owned()), openid, sent_to };
            shared.state.lock().unwrap().codes.insert(code.clone(), given);
            url.query_pairs_mut().append_pair("code", &code).append_pair("state", get("state"));
            url.query_pairs_mut().append_pair("session_state", &uuid());
        }
        None => {
            url.query_pairs_mut()
                .append_pair("error", "access_denied")
                .append_pair("error_subcode", "cancel")
                .append_pair("error_description", "AADSTS65004: User declined to consent to access the app.")
                .append_pair("state", get("state"));
        }
    }
    Answer::html(302, "").header("Location", url.as_str())
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('"', "&quot;")
}
