//! One mailbox's keeper at work against a scripted token endpoint and a store on disk: for this module's tests.

use super::endpoint::http_client;
use super::scripted::{Answer, Endpoint};
use super::*;
use crate::store::{StoredToken, Writer};
use crate::{delivery, fetch, mailbox, microsoft, section, tls};
use std::path::Path;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub(super) const CONSENT: i64 = 1_700_000_000;

pub(super) fn address(text: &str) -> Address {
    Address::normalise(text).unwrap()
}

pub(super) fn mailbox(
    name: &str,
    endpoint: &Endpoint,
    change: impl Fn(&mut microsoft::Config),
) -> Arc<Mailbox> {
    let text =
        format!("client_id = 'app'\ntenant = 'contoso.com'\nauthority = 'http://{}'\n", endpoint.address);
    let parsed = section::parse(&text, Path::new("/nonexistent"), None, microsoft::Config::read_root);
    let (mut microsoft, mistakes) = (parsed.value, parsed.mistakes);
    assert!(mistakes.is_empty(), "{mistakes:?}");
    change(&mut microsoft);
    Mailbox::new(mailbox::Config {
        address: address(name),
        from_filter: None,
        sequence: 10,
        inbox: false,
        folder: "INBOX".to_owned(),
        sign_in_as: None,
        intake: crate::odoo::Intake::default(),
        microsoft,
        delivery: delivery::Config::default(),
        fetch: fetch::Config::default(),
    })
}

pub(super) fn stored(refresh_token: &str, consented_at: i64) -> StoredToken {
    StoredToken {
        tenant: "contoso.com".to_owned(),
        client_id: "app".to_owned(),
        refresh_token: SecretString::from(refresh_token),
        consented_at: Timestamp::from_second(consented_at).unwrap(),
        refreshed_at: None,
    }
}

pub(super) fn http() -> reqwest::Client {
    http_client(&tls::client(None).unwrap()).unwrap()
}

/// A store with john's refresh token, whose writer runs only when the test says so.
pub(super) async fn store(folder: &Path, token: Option<StoredToken>) -> (Store, Writer) {
    let config = store::Config::at(folder.join("relay.db"));
    let (first, writer) = Store::open(&config).await.unwrap();
    let writer = tokio::spawn(writer.run());
    if let Some(token) = token {
        first.keep_token(&john(), token).await.unwrap();
    }
    first.close().await;
    writer.await.unwrap();
    Store::open(&config).await.unwrap()
}

pub(super) fn john() -> Address {
    address("john@contoso.com")
}

/// One mailbox, john's, at work.
pub(super) struct Bed {
    pub(super) endpoint: Endpoint,
    pub(super) store: Store,
    pub(super) tokens: Tokens,
    pub(super) mailbox: Arc<Mailbox>,
    pub(super) soft: CancellationToken,
    pub(super) keeper: JoinHandle<()>,
    pub(super) folder: tempfile::TempDir,
}

impl Bed {
    pub(super) async fn start(token: Option<StoredToken>, answers: impl IntoIterator<Item = Answer>) -> Self {
        let (bed, writer) = Self::without_writer(token, answers, |_| ()).await;
        tokio::spawn(writer.run());
        bed
    }

    pub(super) async fn without_writer(
        token: Option<StoredToken>,
        answers: impl IntoIterator<Item = Answer>,
        change: impl Fn(&mut microsoft::Config),
    ) -> (Self, Writer) {
        let endpoint = Endpoint::start().await;
        answers.into_iter().for_each(|answer| endpoint.next(answer));
        let folder = tempfile::tempdir().unwrap();
        let (store, writer) = store(folder.path(), token).await;
        let mailbox = mailbox("john@contoso.com", &endpoint, change);
        let (tokens, keepers) =
            Tokens::new(std::slice::from_ref(&mailbox), store.clone(), http()).await.unwrap();
        let soft = CancellationToken::new();
        let [keeper] = keepers.try_into().unwrap_or_else(|_| panic!("one keeper"));
        let keeper = tokio::spawn(keeper.run(soft.clone()));
        let bed = Self { endpoint, store, tokens, mailbox, soft, keeper, folder };
        (bed, writer)
    }

    pub(super) async fn token(&self) -> Result<AccessToken, Failure> {
        self.tokens.access_token(&john()).await
    }

    pub(super) async fn kept(&self) -> StoredToken {
        self.store.token(&john()).await.unwrap().unwrap()
    }

    pub(super) fn state(&self) -> TokenState {
        self.tokens.state(&john()).unwrap()
    }

    /// Waits until the endpoint has seen so many requests.
    pub(super) async fn requests(&self, count: usize) {
        eventually("requests", || self.endpoint.requests().len() >= count).await;
    }
}

pub(super) async fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    while !is_so() {
        assert!(std::time::Instant::now() < deadline, "{what} did not come");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Moves the timers on, not the wall clock.
pub(super) async fn pass(time: Duration) {
    tokio::time::pause();
    tokio::time::advance(time).await;
    tokio::time::resume();
}
