//! A worker at work between a real store, real tokens and a scripted Exchange.

use super::{Status, Worker};
use crate::address::Address;
use crate::clock;
use crate::mailbox::Mailbox;
use crate::message::Envelope;
use crate::routing::{Routes, Rule as Why};
use crate::store::{NewMessage, QueueId, Queued, RecipientState, Store, StoredToken};
use crate::tokens::Tokens;
use crate::{delivery, fetch, mailbox, microsoft, section, store, tls, tokens};
use bytes::Bytes;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use support::entra::Entra;
use support::imap::Imap;
use support::smtp::Smtp;
use support::tls::Tls;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

#[path = "../../tests/support"]
#[allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "doubles: shared with the integration tests, used in part"
)]
pub(super) mod support {
    pub mod entra;
    mod entra_session;
    mod entra_sign_in;
    pub mod events;
    pub mod gauge;
    pub mod http;
    pub mod imap;
    mod imap_commands;
    mod imap_data;
    mod imap_session;
    pub mod script;
    pub mod server;
    pub mod smtp;
    mod smtp_session;
    pub mod tls;
    pub mod wire;
}

pub(super) const JOHN: &str = "john@example.com";

/// One mailbox with its worker at work.
pub(super) struct Bed {
    pub(super) entra: Entra,
    pub(super) smtp: Smtp,
    pub(super) imap: Imap,
    pub(super) store: Store,
    pub(super) tokens: Tokens,
    pub(super) mailbox: Arc<Mailbox>,
    pub(super) status: watch::Receiver<Status>,
    pub(super) soft: CancellationToken,
    pub(super) hard: CancellationToken,
    pub(super) worker: JoinHandle<()>,
    tls: Arc<tokio_rustls::rustls::ClientConfig>,
    _folder: tempfile::TempDir,
    _tls: Tls,
}

impl Bed {
    pub(super) async fn start(settings: &str) -> Self {
        Self::with(settings, true).await
    }

    pub(super) async fn with(settings: &str, consented: bool) -> Self {
        let (entra, certificates) = (Entra::start().await, Tls::new());
        let smtp = Smtp::start(&certificates, entra.check()).await;
        let imap = Imap::start(&certificates, entra.check()).await;
        smtp.set_hook(imap.sent_items());
        entra.set_client("app", None);
        let folder = tempfile::tempdir().unwrap();
        let (store, writer) = Store::open(&store::Config::at(folder.path().join("relay.db"))).await.unwrap();
        tokio::spawn(writer.run());
        let (authority, endpoint, imap_endpoint) = (entra.authority(), smtp.endpoint(), imap.endpoint());
        let text = format!(
            "client_id = 'app'\ntenant = 'contoso.com'\nauthority = '{authority}'\nsmtp = '{endpoint}'\n\
             imap = '{imap_endpoint}'\n"
        );
        let microsoft = section::parse(&text, Path::new("/"), None, microsoft::Config::read_root);
        let delivery = section::parse(settings, Path::new("/"), None, |root| {
            delivery::Config::read(root, &delivery::Config::default())
        });
        assert_eq!((microsoft.mistakes, delivery.mistakes), (vec![], vec![]));
        let mailbox = Mailbox::new(mailbox::Config {
            address: john(),
            from_filter: None,
            sequence: 10,
            inbox: false,
            folder: "INBOX".to_owned(),
            sign_in_as: None,
            intake: crate::odoo::Intake::default(),
            microsoft: microsoft.value,
            delivery: delivery.value,
            fetch: fetch::Config::default(),
        });
        let tls = tls::client(Some(&certificates.ca_file())).unwrap();
        let http = tokens::endpoint::http_client(&tls).unwrap();
        let (tokens, keepers) =
            Tokens::new(std::slice::from_ref(&mailbox), store.clone(), http).await.unwrap();
        let (soft, hard) = (CancellationToken::new(), CancellationToken::new());
        for keeper in keepers {
            tokio::spawn(keeper.run(soft.clone()));
        }
        let (status, worker) = work(&mailbox, &store, &tokens, &tls, &soft, &hard);
        let bed = Self {
            entra,
            smtp,
            imap,
            store,
            tokens,
            mailbox,
            status,
            soft,
            hard,
            worker,
            tls,
            _folder: folder,
            _tls: certificates,
        };
        if consented {
            bed.consent().await;
        }
        bed
    }

    pub(super) async fn consent(&self) {
        let token = StoredToken {
            tenant: "contoso.com".to_owned(),
            client_id: "app".to_owned(),
            refresh_token: self.entra.add_mailbox(JOHN).into(),
            consented_at: clock::now(),
            refreshed_at: None,
        };
        self.store.keep_token(&john(), token).await.unwrap();
        self.tokens.reload().await.unwrap();
    }

    pub(super) async fn accept(&self, recipients: &[&str], content: &str) -> QueueId {
        self.accept_from(recipients, content, None).await
    }

    pub(super) async fn accept_from(
        &self,
        recipients: &[&str],
        content: &str,
        new_from: Option<&str>,
    ) -> QueueId {
        let now = clock::now();
        let id = self.store.next_id(now);
        let envelope = Envelope {
            mail_from: "odoo@example.com".to_owned(),
            recipients: recipients.iter().map(|&recipient| recipient.to_owned()).collect(),
            smtputf8: false,
        };
        let message = NewMessage {
            id,
            received_at: now,
            envelope,
            eight_bit: !content.is_ascii(),
            header_from: None,
            message_id: message_id(content),
            mailbox: john(),
            rule: Why::Unfiltered,
            new_from: new_from.map(str::to_owned),
            content: Bytes::copy_from_slice(content.as_bytes()),
        };
        self.store.accept(message).await.unwrap();
        id
    }

    /// Waits until the queue is as it should be; says how it was at last.
    pub(super) async fn queue(&self, what: &str, is_so: impl Fn(&[Queued]) -> bool) -> Vec<Queued> {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let queued = self.store.queued(None, 1000).await.unwrap();
            if is_so(&queued) {
                // Messages and attempts are read one after the other: once more, so that they agree.
                return self.store.queued(None, 1000).await.unwrap();
            }
            assert!(Instant::now() < deadline, "{what}: {queued:#?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    pub(super) async fn queue_is_empty(&self) {
        self.queue("the queue is empty", <[Queued]>::is_empty).await;
    }

    /// Waits until the only message was tried, and waits or failed.
    pub(super) async fn tried(&self) -> Queued {
        let tried = |queued: &[Queued]| match queued {
            [one] => one.attempts.last().is_some_and(|attempt| attempt.ended_at.is_some()),
            _ => false,
        };
        self.queue("one message was tried", tried).await.remove(0)
    }

    pub(super) async fn paused(&self) -> Status {
        let mut status = self.status.clone();
        let paused = status.wait_for(|status| status.paused_until.is_some());
        tokio::time::timeout(Duration::from_secs(20), paused).await.unwrap().unwrap().clone()
    }

    pub(super) async fn resumed(&self) {
        let mut status = self.status.clone();
        let resumed = status.wait_for(|status| status.paused_until.is_none() && status.sending == 0);
        tokio::time::timeout(Duration::from_secs(20), resumed).await.unwrap().unwrap();
    }

    /// Another worker in place of this one, as after a restart.
    pub(super) async fn restart(mut self) -> Self {
        self.soft.cancel();
        tokio::time::timeout(Duration::from_secs(20), &mut self.worker).await.unwrap().unwrap();
        (self.soft, self.hard) = (CancellationToken::new(), CancellationToken::new());
        self.store.recover(clock::now()).await.unwrap();
        let Self { mailbox, store, tokens, tls, soft, hard, .. } = &self;
        (self.status, self.worker) = work(mailbox, store, tokens, tls, soft, hard);
        self
    }

    pub(super) async fn stop(self) {
        self.soft.cancel();
        tokio::time::timeout(Duration::from_secs(20), self.worker).await.unwrap().unwrap();
    }
}

fn work(
    mailbox: &Arc<Mailbox>,
    store: &Store,
    tokens: &Tokens,
    tls: &Arc<tokio_rustls::rustls::ClientConfig>,
    soft: &CancellationToken,
    hard: &CancellationToken,
) -> (watch::Receiver<Status>, JoinHandle<()>) {
    let routes = Routes::new(vec![mailbox.config.candidate()], vec![]);
    let routes = Arc::new(tokio::sync::RwLock::new(routes));
    let worker = Worker::new(mailbox.clone(), store.clone(), tokens.clone(), tls.clone(), routes);
    (worker.status(), tokio::spawn(worker.run(soft.clone(), hard.clone())))
}

fn message_id(content: &str) -> Option<String> {
    let (_, rest) = content.split_once("Message-Id: ")?;
    Some(rest.split("\r\n").next()?.to_owned())
}

pub(super) fn john() -> Address {
    Address::normalise(JOHN).unwrap()
}

pub(super) fn states(queued: &Queued) -> Vec<RecipientState> {
    queued.recipients.iter().map(|recipient| recipient.state).collect()
}

/// Seconds until the next attempt, from the last one's end.
pub(super) fn next(queued: &Queued) -> u64 {
    let ended_at = queued.attempts.last().unwrap().ended_at.unwrap();
    clock::until(ended_at, queued.next_attempt_at).as_secs()
}
