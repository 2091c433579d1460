//! Trying the submission service out: up to the sign-in, and no further.

use super::Timeouts;
use super::client::{Connection, Target};
use super::fault::Fault;
use crate::address::Address;
use crate::failure::Failure;
use crate::mailbox::Config;
use crate::microsoft::smtp_replies::judge;
use std::sync::Arc;
use std::time::Duration;
use tokio_rustls::rustls::ClientConfig;

/// Somebody waits for the result: no step is waited for longer than this.
const PATIENCE: Duration = Duration::from_secs(20);

/// A connection that sends nothing: no MAIL ever goes over it.
pub struct Probe {
    connection: Connection,
    mailbox: Address,
}

impl Probe {
    /// Connects as a delivery would: greeting, EHLO, STARTTLS, the server's certificate.
    ///
    /// # Errors
    /// What keeps a delivery from that.
    pub async fn connect(mailbox: &Config, tls: &Arc<ClientConfig>) -> Result<Self, Failure> {
        let target = Target {
            server: &mailbox.microsoft.smtp,
            mailbox: &mailbox.address,
            tls,
            timeouts: Timeouts::new(mailbox.delivery.reply_timeout.min(PATIENCE)),
        };
        match Box::pin(Connection::connect(target)).await {
            Ok(connection) => Ok(Self { connection, mailbox: mailbox.address.clone() }),
            Err(fault) => Err(failure(fault, &mailbox.address)),
        }
    }

    /// Signs in, and leaves.
    ///
    /// # Errors
    /// What keeps a delivery from that.
    pub async fn sign_in(mut self, token: &str) -> Result<(), Failure> {
        let signed_in = Box::pin(self.connection.sign_in(token)).await;
        let signed_in = signed_in.map_err(|fault| failure(fault, &self.mailbox));
        self.leave().await;
        signed_in
    }

    /// Says goodbye, briefly.
    pub async fn leave(self) {
        self.connection.quit().await;
    }
}

fn failure(fault: Fault, mailbox: &Address) -> Failure {
    match fault {
        Fault::Refused(step, reply) => judge(&reply, step, mailbox).failure,
        Fault::Failed(failure) => failure,
    }
}
