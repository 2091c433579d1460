//! What the inbox loop runs in: the doubles around it, a real store, and the keepers of its tokens.

use crate::support::client::message;
use crate::support::entra::{CLIENT_ID, CLIENT_SECRET, Entra};
use crate::support::imap::Imap;
use crate::support::odoo::{DATABASE, LOGIN, Odoo, PASSWORD};
use crate::support::tls::Tls;
use crate::support::wait::{SOON, until};
use outlook_relay::config::Config;
use outlook_relay::fetch::{Inbox, Room};
use outlook_relay::mailbox::Mailbox;
use outlook_relay::odoo::Gateway;
use outlook_relay::store::{Store, StoredToken};
use outlook_relay::tokens::{Tokens, endpoint};
use outlook_relay::{clock, tls};
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub(super) const JOHN: &str = "john@example.com";
pub(super) const MARY: &str = "mary@example.com";

pub(super) struct World {
    pub(super) tls: Tls,
    pub(super) entra: Entra,
    pub(super) imap: Imap,
    pub(super) odoo: Odoo,
    pub(super) folder: tempfile::TempDir,
}

impl World {
    pub(super) async fn new() -> Self {
        let (tls, entra) = (Tls::new(), Entra::start().await);
        let imap = Imap::start(&tls, entra.check()).await;
        let odoo = Odoo::start().await;
        let folder = tempfile::tempdir().unwrap();
        for (name, secret) in [("client-secret", CLIENT_SECRET), ("odoo-password", PASSWORD)] {
            let path = folder.path().join(name);
            std::fs::write(&path, secret).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        }
        Self { tls, entra, imap, odoo, folder }
    }

    /// The daemon's part that watches inboxes, on the one store of this world.
    pub(super) async fn start(&self, mailboxes: &[&str]) -> Watching {
        self.start_with(mailboxes, "poll = \"100ms\"\nidle = \"100ms\"\nnew_per_sender = 0\n").await
    }

    /// The same with other settings of `[fetch]`, which a mailbox's follow, such as `folder`.
    pub(super) async fn start_with(&self, mailboxes: &[&str], fetch: &str) -> Watching {
        let (fetch, inbox) = fetch.split_once("[[mailbox]]").unwrap_or((fetch, ""));
        let mut text = format!(
            "[microsoft]\nclient_id = \"{CLIENT_ID}\"\nclient_secret_file = \"client-secret\"\nauthority = \"{}\"\n\
             imap = \"{}\"\nca_file = \"{}\"\n[odoo]\nurl = \"{}\"\ndatabase = \"{DATABASE}\"\nlogin = \"{LOGIN}\"\n\
             password_file = \"odoo-password\"\ntimeout = \"1s\"\n[fetch]\n{fetch}\
             [store]\nurl = \"sqlite:relay.db\"\n",
            self.entra.authority(),
            self.imap.endpoint(),
            self.tls.ca_file().display(),
            self.odoo.url(),
        );
        for mailbox in mailboxes {
            text.push_str(&format!("[[mailbox]]\naddress = \"{mailbox}\"\ninbox = true\n{inbox}\n"));
        }
        let file = self.folder.path().join("relay.toml");
        std::fs::write(&file, text).unwrap();
        let config = Config::load(&file).unwrap();
        let (store, writer) = Store::open(&config.store).await.unwrap();
        let mut tasks = vec![tokio::spawn(writer.run())];
        let mailboxes: Vec<_> = config.mailboxes.iter().cloned().map(Mailbox::new).collect();
        for mailbox in &mailboxes {
            let token = StoredToken {
                tenant: mailbox.config.microsoft.tenant.clone(),
                client_id: CLIENT_ID.to_owned(),
                refresh_token: self.entra.add_mailbox(mailbox.address().as_str()).into(),
                consented_at: clock::now(),
                refreshed_at: None,
            };
            store.keep_token(mailbox.address(), token).await.unwrap();
        }
        let tls = tls::client(config.microsoft.ca_file.as_deref()).unwrap();
        let http = endpoint::http_client(&tls).unwrap();
        let gateway = Gateway::new(config.odoo.gateway.clone().unwrap(), http.clone());
        let (tokens, keepers) = Tokens::new(&mailboxes, store.clone(), http).await.unwrap();
        let soft = CancellationToken::new();
        let keeping: Vec<_> =
            keepers.into_iter().map(|keeper| tokio::spawn(keeper.run(soft.clone()))).collect();
        let room = Room::default();
        let inboxes = mailboxes.iter().map(|mailbox| {
            let (store, tokens, gateway) = (store.clone(), tokens.clone(), gateway.clone());
            let inbox = Inbox::new(mailbox.clone(), store, tokens, gateway, tls.clone(), room.clone());
            tokio::spawn(inbox.run(soft.clone()))
        });
        let inboxes = inboxes.collect();
        tasks.extend(keeping);
        Watching { store, mailboxes, gateway, soft, inboxes, tasks }
    }

    pub(super) fn deliver(&self, mailbox: &str, id: &str) -> u32 {
        self.imap.deliver(mailbox, "INBOX", &message("a@x.test", mailbox, id, "Grüße"))
    }

    pub(super) fn seen(&self, mailbox: &str, uid: u32) -> bool {
        self.imap.flags(mailbox, "INBOX", uid).unwrap().contains("\\Seen")
    }

    pub(super) async fn until_seen(&self, mailbox: &str, uid: u32) {
        until(SOON, "the message is marked as read", || self.seen(mailbox, uid)).await;
    }

    /// How often each Message-Id was posted, in order.
    pub(super) fn posted(&self) -> Vec<String> {
        self.odoo.posts().into_iter().filter_map(|post| post.message_id).collect()
    }

    /// Whether a command with this in it came.
    pub(super) fn asked(&self, part: &str) -> bool {
        self.imap.commands().iter().any(|(_, line)| line.contains(part))
    }

    /// Waits until the folder was looked through again, twice, so that whatever was to happen has happened.
    pub(super) async fn another_look(&self) {
        let looks = || self.imap.commands().iter().filter(|(_, line)| line.starts_with("UID SEARCH")).count();
        let before = looks();
        until(SOON, "two more looks", || looks() >= before + 2).await;
    }
}

pub(super) struct Watching {
    pub(super) store: Store,
    pub(super) mailboxes: Vec<Arc<Mailbox>>,
    pub(super) gateway: Gateway,
    pub(super) soft: CancellationToken,
    pub(super) inboxes: Vec<JoinHandle<()>>,
    pub(super) tasks: Vec<JoinHandle<()>>,
}

impl Watching {
    pub(super) async fn stop(self) {
        self.soft.cancel();
        for inbox in self.inboxes {
            inbox.await.unwrap();
        }
        self.store.close().await;
        drop(self.gateway);
        let mut tasks = self.tasks.into_iter();
        // The writer, which has the file open until it ends.
        if let Some(writer) = tasks.next() {
            writer.await.unwrap();
        }
        for task in tasks {
            task.abort();
        }
    }

    /// The inbox's counts: waiting, refused, pushed.
    pub(super) async fn counts(&self) -> (u64, u64, u64) {
        let lines = self.store.inboxes().await.unwrap();
        lines
            .iter()
            .fold((0, 0, 0), |sum, line| (sum.0 + line.waiting, sum.1 + line.refused, sum.2 + line.pushed))
    }
}
