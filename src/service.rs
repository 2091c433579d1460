//! The running service: every part of it, built from the configuration, and built anew in part when that is read again.
//!
//! A reload exchanges what it changes and leaves all else alone. What can fail of it comes first, so that a configuration that
//! cannot be used changes nothing.

use crate::address::Address;
use crate::admin::{self, Sources};
use crate::config::Config;
use crate::consent::Consents;
use crate::counters::Counters;
use crate::doctor::Doctor;
use crate::fleet::{Changes, Fleet, Supply};
use crate::health::{self, SILENCE};
use crate::microsoft::{self, expiry};
use crate::odoo::Gateway;
use crate::reports::Feed;
use crate::routing::Routes;
use crate::store::{self, Store, Stray};
use crate::submission::{Intake, Listener, Sockets, Terms};
use crate::tasks::{Part, Tasks};
use crate::tokens::Tokens;
use crate::{clock, credentials, tls, tokens};
use anyhow::Context;
use jiff::Timestamp;
use sd_notify::NotifyState;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::signal::unix::Signal;
use tokio::sync::RwLock;
use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_util::sync::CancellationToken;

/// How often the store is asked whether another process (the command line) wrote to it.
const LOOK_FOR_CHANGES: Duration = Duration::from_secs(1);

/// How often the clock is looked at.
const LOOK_AT_CLOCK: Duration = Duration::from_secs(5);

/// How often the store is tried.
const LOOK_AT_STORE: Duration = Duration::from_secs(20);

/// What the world comes in by.
pub struct Doors {
    /// For mail.
    pub submission: Sockets,
    /// For the page.
    pub admin: TcpListener,
}

/// Whom to trust on the network, and the client that does.
pub struct Trust {
    /// The roots besides the system's: their file may change under its name.
    roots: Vec<CertificateDer<'static>>,
    tls: Arc<ClientConfig>,
    http: reqwest::Client,
}

impl Trust {
    /// As `[microsoft] ca_file` says.
    ///
    /// # Errors
    /// Roots that cannot be used.
    pub fn new(config: &Config) -> anyhow::Result<Self> {
        let file = config.microsoft.ca_file.as_deref();
        let roots = file.map(tls::certificates).transpose()?.unwrap_or_default();
        let tls = tls::client(file)?;
        let http = tokens::endpoint::http_client(&tls).context("the HTTP client could not be set up")?;
        Ok(Self { roots, tls, http })
    }
}

/// The running daemon, and what it takes to change it.
pub struct Service {
    file: PathBuf,
    /// What holds; of what cannot change while it runs: what it was started with.
    config: Config,
    trust: Trust,
    store: Store,
    fleet: Fleet,
    routes: Arc<RwLock<Routes>>,
    gateway: Option<Gateway>,
    terms: Terms,
    page: admin::Page,
    consents: Consents,
    counters: Counters,
    started_at: Timestamp,
    reports: Part,
    expiry: Part,
}

impl Service {
    /// Builds every part and starts its tasks.
    ///
    /// # Errors
    /// The store's, and sockets that are not safe.
    pub async fn start(
        file: PathBuf,
        config: Config,
        tasks: &mut Tasks,
        store: Store,
        doors: Doors,
        trust: Trust,
        counters: Counters,
    ) -> anyhow::Result<Self> {
        let Doors { submission, admin } = doors;
        let now = clock::now();
        let known: Vec<_> = config.mailboxes.iter().map(|mailbox| mailbox.address.clone()).collect();
        take_in_strays(&config, &store, &known).await?;

        let routes = Arc::new(RwLock::new(config.routes()));
        let admin_address = admin.local_addr()?;
        let addresses: Vec<String> = submission
            .plain
            .iter()
            .chain(&submission.tls)
            .map(|listener| listener.local_addr().map(|at| at.to_string()))
            .collect::<Result<_, _>>()?;
        let intake = Intake::new(routes.clone(), store.clone());
        let listener = Listener::new(&config.submission, submission, intake)?;
        let terms = listener.terms();

        let gateway = config.odoo.gateway.clone().map(|gateway| Gateway::new(gateway, trust.http.clone()));
        let mut fleet = Fleet::new(store.clone(), trust.http.clone()).await?;
        let supply = supply(&config, &trust, &store, &routes, gateway.clone());
        fleet.set(tasks, &supply, &config.mailboxes, false).await?;
        let consents = Consents::new(&fleet.mailboxes(), store.clone(), trust.http.clone());
        let sources = sources(&config, &trust, &store, &fleet, gateway.clone(), counters.clone(), now);
        let page = admin::Page::new(config.admin.clone(), sources, consents.clone());

        let always = tasks.part();
        let soft = &always.soft;
        let clock = watch_clock(store.clone(), soft.clone());
        tasks.start("clock", "", &always, SILENCE, clock);
        let changes = watch_changes(store.clone(), fleet.tokens().clone(), soft.clone());
        tasks.start("changes", "", &always, SILENCE, changes);
        let answering = page.serve(admin, soft.clone());
        tasks.start("admin", "", &always, SILENCE, async move {
            answering.await;
            Ok(())
        });
        let listening = soft.clone();
        tasks.start("submission", "", &always, SILENCE, async move {
            listener.run(listening).await;
            Ok(())
        });
        let (feeding, health) = (soft.clone(), tasks.health.clone());
        tasks.start("watchdog", "", &always, SILENCE, async move {
            health::feed(health, feeding).await;
            Ok(())
        });
        if sd_notify::watchdog_enabled().is_some() {
            tasks.start("store", "", &always, SILENCE, watch_store(store.clone(), soft.clone()));
        }
        let reports = report(tasks, &config, &store, gateway.clone(), None);
        let expiry = warn_of_expiry(tasks, &config);
        tracing::info!(
            version = env!("CARGO_PKG_VERSION"),
            submission = addresses.join(" "),
            admin = %admin_address,
            mailboxes = config.mailboxes.len(),
            "ready"
        );
        Ok(Self {
            file,
            config,
            trust,
            store,
            fleet,
            routes,
            gateway,
            terms,
            page,
            consents,
            counters,
            started_at: now,
            reports,
            expiry,
        })
    }

    /// Reloads as often as it is asked to, and looks after tasks that end. Returns when one ends that should not have.
    pub async fn work(&mut self, tasks: &mut Tasks, hangup: &mut Signal) -> anyhow::Error {
        loop {
            tokio::select! {
                ended = tasks.next() => {
                    if let Err(error) = ended {
                        return error;
                    }
                    if self.fleet.tidy() {
                        self.take_in_strays().await;
                    }
                }
                Some(()) = hangup.recv() => self.reload(tasks).await,
            }
        }
    }

    /// Mail that still waited in a mailbox that left.
    async fn take_in_strays(&self) {
        if let Err(error) = take_in_strays(&self.config, &self.store, &self.fleet.known()).await {
            let advice = "mail of a mailbox that left waits in it: mend the disk of the store, then restart";
            tracing::error!(part = "reload", error = format!("{error:#}"), advice, "store failed");
        }
    }

    /// Reads the configuration again. One with mistakes changes nothing. systemd is told of it all (sd_notify(3)).
    async fn reload(&mut self, tasks: &mut Tasks) {
        let mut begins = vec![NotifyState::Reloading];
        begins.extend(NotifyState::monotonic_usec_now());
        drop(sd_notify::notify(&begins));
        let status = match Box::pin(self.try_reload(tasks)).await {
            Ok(Changes { added, removed, changed }) => {
                let mailboxes = self.config.mailboxes.len();
                tracing::info!(mailboxes, added, removed, changed, "reloaded");
                String::new()
            }
            Err(error) => {
                // A line for each mistake.
                let error = format!("{error:#}").replace('\n', "; ");
                let advice =
                    "nothing was changed: mend it, try it with `outlook-relay check`, and reload again";
                tracing::error!(error, advice, "reload failed");
                format!("reload failed, nothing was changed: {error}")
            }
        };
        drop(sd_notify::notify(&[NotifyState::Status(&status), NotifyState::Ready]));
    }

    async fn try_reload(&mut self, tasks: &mut Tasks) -> anyhow::Result<Changes> {
        let file = self.file.clone();
        let config = tokio::task::spawn_blocking(move || Config::load(&file)).await??;
        self.terms
            .check(&config.submission)
            .context("[submission] does not fit the sockets that are open, which only a restart changes")?;
        let trust = Trust::new(&config)?;
        let same_roots = trust.roots == self.trust.roots;
        let same_odoo = same_roots && config.odoo == self.config.odoo;
        // What did not change stays: with it the gateway's sign-in and its connections.
        let gateway = if same_odoo {
            self.gateway.clone()
        } else {
            config.odoo.gateway.clone().map(|gateway| Gateway::new(gateway, trust.http.clone()))
        };
        let trust = if same_roots { None } else { Some(trust) };
        let using = trust.as_ref().unwrap_or(&self.trust);
        let supply = supply(&config, using, &self.store, &self.routes, gateway.clone());
        // Routes to new mailboxes last of what may fail, and before the old ones stop: nothing goes to these any more.
        let former = std::mem::replace(&mut *self.routes.write().await, config.routes());
        let changes = match self.fleet.set(tasks, &supply, &config.mailboxes, !same_odoo).await {
            Ok(changes) => changes,
            Err(error) => {
                *self.routes.write().await = former;
                self.take_in_strays().await;
                return Err(error.into());
            }
        };

        // From here on nothing fails.
        for key in fixed(&self.config, &config) {
            tracing::warn!(key, advice = "restart the relay for it", "not changed by a reload");
        }
        credentials::warn_of_outdated(&self.file);
        let before = std::mem::replace(&mut self.config, config);
        self.config.store = before.store.clone();
        self.config.log = before.log;
        self.config.admin.listen = before.admin.listen;
        self.config.submission.listen.clone_from(&before.submission.listen);
        self.config.submission.listen_tls.clone_from(&before.submission.listen_tls);
        if let Some(trust) = trust {
            self.trust = trust;
        }
        self.gateway = gateway;
        self.terms.set(&self.config.submission);
        self.consents = self.consents.renew(&self.fleet.mailboxes(), self.trust.http.clone());
        let sources = sources(
            &self.config,
            &self.trust,
            &self.store,
            &self.fleet,
            self.gateway.clone(),
            self.counters.clone(),
            self.started_at,
        );
        self.page.set(self.config.admin.clone(), sources, self.consents.clone());
        if !same_odoo || keep_failed(&before) != keep_failed(&self.config) {
            self.reports.stop();
            let former = Some(self.reports.clone());
            self.reports = report(tasks, &self.config, &self.store, self.gateway.clone(), former);
        }
        if apps(&before) != apps(&self.config) {
            self.expiry.stop();
            self.expiry = warn_of_expiry(tasks, &self.config);
        }
        Ok(changes)
    }
}

fn supply(
    config: &Config,
    trust: &Trust,
    store: &Store,
    routes: &Arc<RwLock<Routes>>,
    gateway: Option<Gateway>,
) -> Supply {
    Supply {
        store: store.clone(),
        tls: trust.tls.clone(),
        http: trust.http.clone(),
        routes: routes.clone(),
        odoo: config.odoo.clone(),
        gateway,
    }
}

/// What the page and the programs that ask the daemon are told from.
fn sources(
    config: &Config,
    trust: &Trust,
    store: &Store,
    fleet: &Fleet,
    gateway: Option<Gateway>,
    counters: Counters,
    started_at: Timestamp,
) -> Sources {
    let odoo = config.odoo.gateway.as_ref();
    let tokens = fleet.tokens().clone();
    let doctor = Doctor::new(fleet.mailboxes(), tokens.clone(), odoo, &trust.http, trust.tls.clone());
    Sources {
        counters,
        started_at,
        mailboxes: fleet.mailboxes(),
        tokens,
        odoo: config.odoo.clone(),
        gateway,
        store: store.clone(),
        sending: Arc::new(fleet.sending()),
        doctor,
    }
}

/// The keys of which another value is read, but not used before a restart.
fn fixed(now: &Config, new: &Config) -> Vec<&'static str> {
    let keys = [
        ("[store] url", now.store.path != new.store.path),
        ("[store] key_file", now.store.key_file != new.store.key_file),
        ("[submission] listen", now.submission.listen != new.submission.listen),
        ("[submission] listen_tls", now.submission.listen_tls != new.submission.listen_tls),
        ("[log]", now.log != new.log),
        ("[admin] listen", now.admin.listen != new.admin.listen),
    ];
    keys.into_iter().filter(|(_, differs)| *differs).map(|(key, _)| key).collect()
}

fn keep_failed(config: &Config) -> Vec<(Address, Duration)> {
    config.mailboxes.iter().map(|m| (m.address.clone(), m.delivery.keep_failed)).collect()
}

fn apps(config: &Config) -> Vec<microsoft::Config> {
    config.mailboxes.iter().map(|mailbox| mailbox.microsoft.clone()).collect()
}

/// Starts the task that brings reports to Odoo, once the one before it has ended.
fn report(
    tasks: &mut Tasks,
    config: &Config,
    store: &Store,
    gateway: Option<Gateway>,
    former: Option<Part>,
) -> Part {
    let part = tasks.part();
    let feed = Feed::new(store.clone(), gateway, keep_failed(config));
    let soft = part.early.clone();
    let feeding = tasks.feeding.track_future(async move {
        if let Some(former) = former {
            former.ended().await;
        }
        feed.run(soft).await;
        Ok(())
    });
    tasks.start("reports", "", &part, SILENCE, feeding);
    part
}

fn warn_of_expiry(tasks: &mut Tasks, config: &Config) -> Part {
    let part = tasks.part();
    let (apps, soft) = (apps(config), part.soft.clone());
    tasks.start("expiry", "", &part, SILENCE, async move {
        expiry::watch(apps, soft).await;
        Ok(())
    });
    part
}

/// Has the store read and written now and then, only to see that it does.
async fn watch_store(store: Store, soft: CancellationToken) -> anyhow::Result<()> {
    loop {
        // One that fails is not one that hangs.
        if let Err(error) = store.probe().await {
            tracing::debug!(error = %crate::failure::chain(&error), "the store could not be tried");
        }
        tokio::select! {
            () = soft.cancelled() => return Ok(()),
            () = tokio::time::sleep(LOOK_AT_STORE) => {}
        }
    }
}

/// Notices that the clock was set back, and lets nothing wait for the time that it showed before. What it missed while the
/// relay did not run is taken up at the start.
async fn watch_clock(store: Store, soft: CancellationToken) -> anyhow::Result<()> {
    loop {
        tokio::select! {
            () = soft.cancelled() => return Ok(()),
            () = tokio::time::sleep(LOOK_AT_CLOCK) => {}
        }
        let Some(back) = clock::set_back() else {
            continue;
        };
        tracing::warn!(seconds = back.as_secs(), "clock set back");
        match store.forget_future(clock::now()).await {
            Ok(()) => store.wake_all(),
            Err(error) => {
                tracing::error!(part = "clock", error = crate::failure::chain(&error), "store failed");
            }
        }
    }
}

/// Takes up at once what the command line wrote: a new consent, a message to be tried again.
async fn watch_changes(store: Store, tokens: Tokens, soft: CancellationToken) -> anyhow::Result<()> {
    let mut changes = store.changes().await?;
    let mut by_hand = store.done_by_hand().await?;
    // Stays until what was seen is taken up: a store that cannot be read in this moment is read in the next.
    let (mut pending, mut consented) = (false, false);
    loop {
        tokio::select! {
            () = soft.cancelled() => return Ok(()),
            () = tokio::time::sleep(LOOK_FOR_CHANGES) => {}
        }
        let taken_up = async {
            pending |= changes.seen()?;
            if pending {
                // An inbox without a token waits for minutes before it asks for one again.
                consented |= tokens.reload().await?;
                let now = store.done_by_hand().await?;
                if std::mem::replace(&mut by_hand, now) != now || std::mem::take(&mut consented) {
                    store.wake_all();
                }
                pending = false;
            }
            Ok::<(), store::Error>(())
        };
        if let Err(error) = taken_up.await {
            tracing::debug!(error = %crate::failure::chain(&error), "the store could not be looked at");
        }
    }
}

/// Mail whose mailbox is not `known`, since it left the configuration, is routed anew: nothing may wait for a worker that is not there.
async fn take_in_strays(config: &Config, store: &Store, known: &[Address]) -> anyhow::Result<()> {
    let routes = config.routes();
    for Stray { id, mailbox: before, from, mail_from, unknown } in store.strays(known).await? {
        let route = routes.route(from.as_deref(), &mail_from)?;
        // Nobody can look whether it was sent: a person who has just taken the mailbox away is there to decide.
        let advice = unknown.then_some(
            "it may have been sent before, which nobody can find out now: it is held; ask a recipient, then `outlook-relay \
             queue retry` or `queue cancel`",
        );
        let reply = format!("{before} left the configuration");
        tracing::warn!(mailbox = %before, %id, to = %route.mailbox, from = route.new_from, unknown, reply, advice, "rerouted");
        let arrivals = store.arrivals(&route.mailbox);
        store.reroute(id, route.mailbox, route.rule, route.new_from, unknown).await?;
        arrivals.notify_one();
    }
    Ok(())
}
