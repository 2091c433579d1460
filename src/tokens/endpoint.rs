//! Asking the token endpoint. What the `oauth2` crate builds goes out through `reqwest`, without redirects, within 30
//! seconds, and 64 KiB of answer are read at most. Every way to fail ends as a [`Verdict`]; none of them holds what was
//! sent, or the body of an answer that makes no sense: that may be a token.

pub use super::answer::{ErrorAnswer, TokenAnswer};

use crate::clock;
use crate::failure::{Class, Failure, chain};
use crate::microsoft::token_errors::Verdict;
use crate::microsoft::{ASSERTION_TYPE, Certificate, Config, Credential, Grant};
use jiff::Timestamp;
use oauth2::basic::{BasicRevocationErrorResponse, BasicTokenIntrospectionResponse};
use oauth2::http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use oauth2::http::{Response, StatusCode};
use oauth2::{
    AsyncHttpClient, AuthType, ClientId, ClientSecret, EndpointNotSet, EndpointSet, HttpRequest,
    HttpResponse, RefreshToken, RequestTokenError, Scope, StandardRevocableToken, TokenUrl,
};
use reqwest::header::RETRY_AFTER;
use secrecy::{ExposeSecret, SecretString};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio_rustls::rustls::{self, ClientConfig};
use url::form_urlencoded;

/// A request, from connecting to the answer's last byte, takes at most this.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Reaching the endpoint takes at most this.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// An answer has at most so many bytes; Microsoft's have about five thousand.
const MOST_BYTES: usize = 64 * 1024;

/// The `oauth2` client of an app. Authorization and device endpoints are set by the flows that need them.
pub type Client = oauth2::Client<
    ErrorAnswer,
    TokenAnswer,
    BasicTokenIntrospectionResponse,
    StandardRevocableToken,
    BasicRevocationErrorResponse,
    EndpointNotSet,
    EndpointNotSet,
    EndpointNotSet,
    EndpointNotSet,
    EndpointSet,
>;

/// What goes wrong when the endpoint is asked.
pub type Error = RequestTokenError<HttpError, ErrorAnswer>;

/// The HTTP client for the token endpoint: no redirects, since they would carry a refresh token elsewhere.
///
/// # Errors
/// A TLS configuration that `reqwest` does not take.
pub fn http_client(tls: &ClientConfig) -> Result<reqwest::Client, reqwest::Error> {
    reqwest::Client::builder()
        .tls_backend_preconfigured(tls.clone())
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(CONNECT_TIMEOUT)
        .timeout(TIMEOUT)
        .user_agent(concat!("outlook-relay/", env!("CARGO_PKG_VERSION")))
        .build()
}

/// The app, as `oauth2` sees it. A public client has no secret and so never sends one (AADSTS700025); others send it in
/// the body (RFC 6749 section 2.3.1), which is Microsoft's way, or have [`Http`] sign.
///
/// # Errors
/// An authority that is no URL, which the configuration's check does not let through.
pub fn client(config: &Config) -> Result<Client, Failure> {
    let endpoint = config.token_endpoint();
    let url = TokenUrl::new(endpoint.clone()).map_err(|_| {
        Failure::new(Class::Administrator, "configuration", format!("{endpoint} is no URL"))
            .advise("check authority and tenant in the configuration")
    })?;
    let client = oauth2::Client::new(ClientId::new(config.client_id.clone()))
        .set_auth_type(AuthType::RequestBody)
        .set_token_uri(url);
    Ok(match &config.credential {
        Credential::Secret(secret) => {
            client.set_client_secret(ClientSecret::new(secret.expose_secret().to_owned()))
        }
        Credential::Public | Credential::Certificate(_) => client,
    })
}

/// Asks for an access token by the mailbox's grant: with its refresh token (RFC 6749 section 6), or as the app itself
/// (section 4.4), where there is none.
///
/// # Errors
/// What the endpoint's answer, or its silence, means for the mailbox.
pub async fn request(
    config: &Config,
    refresh_token: Option<&SecretString>,
    http: &reqwest::Client,
    mailbox: &str,
) -> Result<TokenAnswer, Verdict> {
    let client = client(config)?;
    let http = Http::new(http.clone(), config);
    let scopes = config.scopes().into_iter().map(Scope::new);
    let answer = match (config.grant, refresh_token) {
        (Grant::RefreshToken, Some(token)) => {
            let token = RefreshToken::new(token.expose_secret().to_owned());
            let request = client.exchange_refresh_token(&token).add_scopes(scopes);
            request.request_async(&http).await
        }
        _ => {
            let request = client.exchange_client_credentials().add_scopes(scopes);
            request.request_async(&http).await
        }
    };
    let refresh_token = refresh_token.map(ExposeSecret::expose_secret);
    let secrets: Vec<&str> = refresh_token.into_iter().chain(config.credential.secret()).collect();
    answer.map_err(|error| verdict(error, &secrets, mailbox))
}

/// What an error means; `secrets` are what was sent, and taken out of what the endpoint says.
pub fn verdict(error: Error, secrets: &[&str], mailbox: &str) -> Verdict {
    let strange = |reply: String| {
        Failure::new(Class::Transient, "answer", reply)
            .advise("if it lasts, check authority and tenant in the configuration, and any proxy in between")
    };
    match error {
        RequestTokenError::ServerResponse(answer) => answer.without(secrets).verdict(mailbox),
        RequestTokenError::Request(error) => error.verdict(secrets, mailbox),
        // Only the place of the mistake: serde's text may quote a token.
        RequestTokenError::Parse(error, body) => strange(format!(
            "the token endpoint's answer of {} bytes makes no sense (at {})",
            body.len(),
            error.path()
        ))
        .into(),
        RequestTokenError::Other(text) => {
            strange(format!("the token endpoint's answer makes no sense: {text}")).into()
        }
    }
}

/// What goes wrong below OAuth.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// The endpoint was not reached, or did not answer in time.
    #[error("the token endpoint cannot be reached")]
    Send(#[source] reqwest::Error),
    /// The app's certificate does not sign.
    #[error("the app's certificate cannot sign")]
    Sign(#[source] rustls::Error),
    /// The answer does not end.
    #[error("the token endpoint's answer has more than {MOST_BYTES} bytes")]
    TooLong,
    /// The answer is neither tokens nor a refusal.
    #[error("the token endpoint answered {status}")]
    Status {
        /// The HTTP status.
        status: StatusCode,
        /// How long the endpoint asks to be left alone (RFC 9110 section 10.2.3).
        retry_after: Option<Duration>,
        /// What it says in OAuth's words, where it does.
        answer: Box<ErrorAnswer>,
    },
}

impl HttpError {
    fn verdict(self, secrets: &[&str], mailbox: &str) -> Verdict {
        let words = chain(&self);
        match self {
            Self::Send(error) => {
                let code = if error.is_timeout() { "timeout" } else { "network" };
                let advice = "if it lasts, check DNS, firewall and proxy between here and the token endpoint, the \
                              clock, and ca_file where the certificate is refused";
                Failure::new(Class::Transient, code, words).advise(advice).into()
            }
            Self::Sign(_) => Failure::new(Class::Administrator, "certificate", words)
                .advise("check client_certificate_file and client_key_file")
                .into(),
            Self::TooLong => Failure::new(Class::Transient, "answer", words).into(),
            Self::Status { status, retry_after, answer } => {
                // An overloaded or broken endpoint's reasons are not believed: it passes. Its words are kept.
                let mut failure = if answer.error.is_empty() {
                    let advice = "if it lasts, check authority and tenant in the configuration, and any proxy \
                                  in between";
                    Failure::new(Class::Transient, format!("HTTP {}", status.as_u16()), words).advise(advice)
                } else {
                    let judged = answer.without(secrets).verdict(mailbox).failure;
                    Failure { class: Class::Transient, advice: String::new(), ..judged }
                };
                failure.retry_after = retry_after.max(failure.retry_after);
                failure.into()
            }
        }
    }
}

/// `reqwest` 0.13 as the HTTP client of `oauth2`, whose own adapter stops at 0.12.
///
/// Where the app has a certificate, it adds a new assertion to every request: those of a device flow outlive one.
#[derive(Clone, Debug)]
pub struct Http {
    client: reqwest::Client,
    signs: Option<Signs>,
}

/// Who signs what for whom.
#[derive(Clone, Debug)]
struct Signs {
    certificate: Arc<Certificate>,
    client_id: String,
    audience: String,
}

impl Http {
    /// `client` is [`http_client`]'s.
    pub fn new(client: reqwest::Client, config: &Config) -> Self {
        let signs = match &config.credential {
            Credential::Certificate(certificate) => Some(Signs {
                certificate: certificate.clone(),
                client_id: config.client_id.clone(),
                audience: config.token_endpoint(),
            }),
            Credential::Public | Credential::Secret(_) => None,
        };
        Self { client, signs }
    }
}

impl Signs {
    fn assertion(&self) -> Result<SecretString, HttpError> {
        let Self { certificate, client_id, audience } = self;
        certificate.assertion(client_id, audience, clock::now(), rand::random()).map_err(HttpError::Sign)
    }
}

/// Adds an assertion to a form (RFC 7523 section 2.2).
fn sign(request: &mut HttpRequest, assertion: &SecretString) {
    let body = std::mem::take(request.body_mut());
    let form = form_urlencoded::Serializer::new(String::from_utf8(body).unwrap_or_default())
        .append_pair("client_assertion_type", ASSERTION_TYPE)
        .append_pair("client_assertion", assertion.expose_secret())
        .finish();
    *request.body_mut() = form.into_bytes();
    // reqwest counts anew.
    request.headers_mut().remove(CONTENT_LENGTH);
}

impl<'c> AsyncHttpClient<'c> for Http {
    type Error = HttpError;
    type Future = Pin<Box<dyn Future<Output = Result<HttpResponse, HttpError>> + Send + 'c>>;

    fn call(&'c self, request: HttpRequest) -> Self::Future {
        Box::pin(self.send(request))
    }
}

impl Http {
    /// Sends one request. Tokens (200) and refusals (400, 401 … with JSON) go on to `oauth2`, all else is an error.
    async fn send(&self, mut request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let assertion = self.signs.as_ref().map(Signs::assertion).transpose()?;
        if let Some(assertion) = &assertion {
            sign(&mut request, assertion);
        }
        let mut request = reqwest::Request::try_from(request).map_err(HttpError::Send)?;
        *request.timeout_mut() = Some(TIMEOUT);
        let mut answer = self.client.execute(request).await.map_err(HttpError::Send)?;
        let status = answer.status();
        let retry_after = answer
            .headers()
            .get(RETRY_AFTER)
            .and_then(|value| value.to_str().ok())
            .and_then(|value| retry_after(value, clock::now()));
        let content_type = answer.headers().get(CONTENT_TYPE).cloned();
        let mut body = Vec::new();
        while let Some(chunk) = answer.chunk().await.map_err(HttpError::Send)? {
            if body.len() + chunk.len() > MOST_BYTES {
                return Err(HttpError::TooLong);
            }
            body.extend_from_slice(&chunk);
        }
        if let Some(assertion) = &assertion {
            body = without(body, assertion.expose_secret());
        }
        let error: ErrorAnswer = serde_json::from_slice(&body).unwrap_or_default();
        let refuses =
            status.is_client_error() && status != StatusCode::TOO_MANY_REQUESTS && !error.error.is_empty();
        if status != StatusCode::OK && !refuses {
            return Err(HttpError::Status { status, retry_after, answer: Box::new(error) });
        }
        let mut response = Response::new(body);
        *response.status_mut() = status;
        if let Some(content_type) = content_type {
            response.headers_mut().insert(CONTENT_TYPE, content_type);
        }
        Ok(response)
    }
}

/// A body without our assertion, should the endpoint repeat it.
fn without(body: Vec<u8>, assertion: &str) -> Vec<u8> {
    match std::str::from_utf8(&body) {
        Ok(text) if text.contains(assertion) => text.replace(assertion, "[redacted]").into_bytes(),
        _ => body,
    }
}

/// Reads `Retry-After` (RFC 9110 section 10.2.3): seconds, or a date.
fn retry_after(value: &str, now: Timestamp) -> Option<Duration> {
    let value = value.trim();
    if let Ok(seconds) = value.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let at = jiff::fmt::rfc2822::parse(value).ok()?.timestamp();
    Some(clock::until(now, at))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now = Timestamp::from_second(784_111_777).unwrap();
        let cases = [
            ("120", Some(120)),
            (" 5 ", Some(5)),
            ("Sun, 06 Nov 1994 08:49:47 GMT", Some(10)),
            ("Sun, 06 Nov 1994 08:00:00 GMT", Some(0)),
            ("-5", None),
            ("soon", None),
        ];
        for (value, seconds) in cases {
            assert_eq!(retry_after(value, now), seconds.map(Duration::from_secs), "{value}");
        }
    }

    #[test]
    fn an_assertion_joins_the_form_and_is_never_repeated() {
        let mut request = HttpRequest::new(b"grant_type=x&scope=a+b".to_vec());
        request.headers_mut().insert(CONTENT_LENGTH, 22.into());
        sign(&mut request, &SecretString::from("a.b-c_d"));
        let body = String::from_utf8(request.body().clone()).unwrap();
        let expected = "grant_type=x&scope=a+b&client_assertion_type=urn%3Aietf%3Aparams%3Aoauth%3A\
                        client-assertion-type%3Ajwt-bearer&client_assertion=a.b-c_d";
        assert_eq!(body, expected);
        assert!(!request.headers().contains_key(CONTENT_LENGTH));
        let echo = without(b"{\"error_description\": \"a.b-c_d is bad\"}".to_vec(), "a.b-c_d");
        assert_eq!(echo, b"{\"error_description\": \"[redacted] is bad\"}");
        assert_eq!(without(vec![0xff], "x"), [0xff]);
    }
}
