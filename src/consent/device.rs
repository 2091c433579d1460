//! The device flow (RFC 8628): the relay shows a code, and its owner enters it in any browser, anywhere. For machines
//! without one. The app has to allow public client flows, and some tenants block it.

use super::{Connected, ConsentError, Consents, not_a_url, scopes};
use crate::address::Address;
use crate::clock;
use crate::failure::{Class, Failure, one_line};
use crate::tokens::endpoint::{self, ErrorAnswer, Http, HttpError};
use oauth2::{
    DeviceAuthorizationUrl, DeviceCodeErrorResponse, RequestTokenError, StandardDeviceAuthorizationResponse,
};
use std::time::Duration;

/// Microsoft's codes live for 15 minutes; nobody waits longer than this, whatever an answer says.
const MOST_LIFETIME: Duration = Duration::from_secs(1_800);
/// Between two questions at least this, whatever an answer says.
const LEAST_INTERVAL: Duration = Duration::from_secs(1);
/// An answer that asks for more than this makes no sense.
const MOST_INTERVAL: Duration = Duration::from_secs(60);

/// A code that somebody has to enter. Its Debug does not show the secret half.
#[derive(Debug)]
pub struct DeviceCode {
    mailbox: Address,
    details: StandardDeviceAuthorizationResponse,
}

impl DeviceCode {
    /// What to enter.
    pub fn user_code(&self) -> String {
        one_line(self.details.user_code().secret())
    }

    /// Where to enter it.
    pub fn verification_uri(&self) -> String {
        one_line(self.details.verification_uri().as_str())
    }

    /// How long there is to do so.
    pub fn expires_in(&self) -> Duration {
        self.details.expires_in().min(MOST_LIFETIME)
    }
}

impl Consents {
    /// Asks for a code (RFC 8628 section 3.1).
    ///
    /// # Errors
    /// As in [`Consents::begin`], and Microsoft's refusal.
    pub async fn begin_device(&self, mailbox: &Address) -> Result<DeviceCode, ConsentError> {
        let found = self.mailbox(mailbox)?;
        let config = &found.config.microsoft;
        let url = config.device_authorization_endpoint();
        let url =
            DeviceAuthorizationUrl::new(url.clone()).map_err(|_| ConsentError::Failed(not_a_url(&url)))?;
        let client =
            endpoint::client(config).map_err(ConsentError::Failed)?.set_device_authorization_url(url);
        let http = Http::new(self.0.http.clone(), config);
        let request = client.exchange_device_code().add_scopes(scopes(&found));
        let details: StandardDeviceAuthorizationResponse =
            request.request_async(&http).await.map_err(|error| {
                let secrets: Vec<&str> = config.credential.secret().into_iter().collect();
                ConsentError::Failed(endpoint::verdict(error, &secrets, mailbox.as_str()).failure)
            })?;
        if details.interval() > MOST_INTERVAL {
            let reply = format!("Microsoft asks to wait {:?} between two questions", details.interval());
            return Err(ConsentError::Failed(Failure::new(Class::Transient, "answer", reply)));
        }
        Ok(DeviceCode { mailbox: mailbox.clone(), details })
    }

    /// Asks until somebody entered the code, declined, or let it expire: at the interval that Microsoft set, 5 seconds
    /// longer with each `slow_down` (RFC 8628 section 3.5), and longer too while the endpoint cannot be reached. Then as
    /// [`Consents::finish`].
    ///
    /// # Errors
    /// Why the mailbox was not connected.
    pub async fn finish_device(&self, code: DeviceCode) -> Result<Connected, ConsentError> {
        let found = self.mailbox(&code.mailbox)?;
        let config = &found.config.microsoft;
        let client = endpoint::client(config).map_err(ConsentError::Failed)?;
        let http = Http::new(self.0.http.clone(), config);
        let wait = |interval: Duration| tokio::time::sleep(interval.max(LEAST_INTERVAL));
        let answer = client
            .exchange_device_access_token(&code.details)
            .request_async(&http, wait, Some(code.expires_in()))
            .await;
        let answer = answer.map_err(|error| {
            let declined = declines(&error);
            let device_code = code.details.device_code().secret().as_str();
            let secrets: Vec<&str> = std::iter::once(device_code).chain(config.credential.secret()).collect();
            let failure = endpoint::verdict(plain(error), &secrets, code.mailbox.as_str()).failure;
            if declined { ConsentError::Denied(failure) } else { ConsentError::Failed(failure) }
        })?;
        self.keep(&found, &answer, clock::now()).await
    }
}

type DeviceError = RequestTokenError<HttpError, DeviceCodeErrorResponse>;

/// RFC 8628 says `access_denied`, Microsoft `authorization_declined`.
fn declines(error: &DeviceError) -> bool {
    match error {
        RequestTokenError::ServerResponse(answer) => {
            ["access_denied", "authorization_declined"].contains(&answer.error().as_ref())
        }
        _ => false,
    }
}

/// The error as those of the other grants; the codes that the crate drops stand in the description as well.
fn plain(error: DeviceError) -> endpoint::Error {
    match error {
        RequestTokenError::ServerResponse(answer) => {
            let error = answer.error().as_ref();
            let description = answer.error_description().map(String::as_str).unwrap_or_default();
            let answer = serde_json::json!({"error": error, "error_description": description});
            RequestTokenError::ServerResponse(ErrorAnswer::from(answer))
        }
        RequestTokenError::Request(error) => RequestTokenError::Request(error),
        RequestTokenError::Parse(error, body) => RequestTokenError::Parse(error, body),
        RequestTokenError::Other(text) => RequestTokenError::Other(text),
    }
}
