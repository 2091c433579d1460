//! The daemon: builds everything from the configuration, starts it, and stops it in order.
//!
//! Only this module starts tasks that live long. One that ends or panics before a shutdown was asked for ends the
//! process, in order, with a failure; systemd starts it again.

use crate::admin::{self, Sources};
use crate::config::Config;
use crate::consent::Consents;
use crate::counters::Counters;
use crate::delivery::{OnUnknown, Worker};
use crate::doctor::Doctor;
use crate::fetch::{Inbox, Room};
use crate::inherited::Inherited;
use crate::mailbox::Mailbox;
use crate::microsoft::expiry;
use crate::odoo::Gateway;
use crate::reports::{Feed, Reporter};
use crate::store::{self, Restored, Store, Stray};
use crate::submission::{Intake, Listener, Sockets};
use crate::tokens::Tokens;
use crate::{clock, tls, tokens};
use anyhow::{Context, bail};
use sd_notify::NotifyState;
use std::collections::HashMap;
use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// How long messages in hand may take to finish once a stop was asked for. Below the 90 seconds after which systemd
/// kills (`TimeoutStopSec=`).
const GRACE: Duration = Duration::from_secs(75);

/// How often the store is asked whether another process (the command line) wrote to it.
const LOOK_FOR_CHANGES: Duration = Duration::from_secs(1);

/// How often the clock is looked at.
const LOOK_AT_CLOCK: Duration = Duration::from_secs(5);

/// The long-lived tasks, and the two ways to stop them.
struct Tasks {
    running: JoinSet<(&'static str, anyhow::Result<()>)>,
    /// Finish what is in hand.
    soft: CancellationToken,
    /// Drop what is in hand.
    hard: CancellationToken,
}

impl Tasks {
    fn start(&mut self, name: &'static str, task: impl Future<Output = anyhow::Result<()>> + Send + 'static) {
        self.running.spawn(async move { (name, task.await) });
    }
}

/// Runs until SIGTERM or SIGINT.
///
/// # Errors
/// What keeps it from starting (a port in use, a store that cannot be opened), or what ended it.
pub async fn run(config: &Config, inherited: Inherited, counters: Counters) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("SIGTERM cannot be watched")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT cannot be watched")?;

    // Everything that can fail at the start does so here, before anything runs.
    let submission = sockets(config, inherited).await?;
    let doors = Doors { submission, admin: bind(config.admin.listen, "[admin] listen").await? };
    let tls = tls::client(config.microsoft.ca_file.as_deref())?;
    let http = tokens::endpoint::http_client(&tls).context("the HTTP client could not be set up")?;
    // The lock comes first: `store restore` may be putting another file in place.
    config.store.create()?;
    let Some(_lock) = lock(&config.store.path)? else {
        bail!("{}: another outlook-relay works on this store: stop it first", config.store.path.display());
    };
    let (store, writer) = Store::open(&config.store).await?;
    // Apart from the others, since it has to outlive them.
    let mut writing = JoinSet::new();
    writing.spawn(writer.run());

    let mut tasks =
        Tasks { running: JoinSet::new(), soft: CancellationToken::new(), hard: CancellationToken::new() };
    let started = start(config, &mut tasks, &store, doors, tls, http, counters).await;
    let stopped = match started {
        Ok(()) => {
            drop(sd_notify::notify(&[NotifyState::Ready]));
            tokio::select! {
                _ = terminate.recv() => Ok("SIGTERM"),
                _ = interrupt.recv() => Ok("SIGINT"),
                error = unexpected_end(&mut tasks.running, &mut writing) => Err(error),
            }
        }
        Err(error) => Err(error),
    };
    drop(sd_notify::notify(&[NotifyState::Stopping]));
    match &stopped {
        Ok(signal) => tracing::info!(signal, "stopping"),
        Err(error) => tracing::error!(error = format!("{error:#}"), "stopping"),
    }
    stop(tasks).await;
    store.close().await;
    while let Some(ended) = writing.join_next().await {
        ended.context("the store's writer failed")?;
    }
    stopped.map(|_| tracing::info!("stopped"))
}

/// Builds every part and starts its tasks.
async fn start(
    config: &Config,
    tasks: &mut Tasks,
    store: &Store,
    doors: Doors,
    tls: Arc<tokio_rustls::rustls::ClientConfig>,
    http: reqwest::Client,
    counters: Counters,
) -> anyhow::Result<()> {
    let Doors { submission, admin } = doors;
    let now = clock::now();
    store.forget_future(now).await?;
    store.recover(now).await?;
    if let Some(restored) = store.take_up_backup(now).await? {
        say_restored(&restored);
    }
    take_in_strays(config, store).await?;

    let mailboxes: Arc<[Arc<Mailbox>]> = config.mailboxes.iter().cloned().map(Mailbox::new).collect();
    let gateway = config.odoo.gateway.clone().map(|gateway| Gateway::new(gateway, http.clone()));
    let consents = Consents::new(&mailboxes, store.clone(), http.clone());
    let (tokens, keepers) = Tokens::new(&mailboxes, store.clone(), http.clone()).await?;
    let odoo = config.odoo.gateway.as_ref();
    let doctor = Doctor::new(mailboxes.clone(), tokens.clone(), odoo, &http, tls.clone());
    for keeper in keepers {
        let soft = tasks.soft.clone();
        tasks.start("tokens", async move {
            keeper.run(soft).await;
            Ok(())
        });
    }
    let routes = Arc::new(config.routes());
    let room = Room::default();
    let mut sending = HashMap::new();
    for mailbox in mailboxes.iter() {
        let mut worker =
            Worker::new(mailbox.clone(), store.clone(), tokens.clone(), tls.clone(), routes.clone());
        if let Some(reporter) = Reporter::new(store.clone(), &config.odoo, mailbox.address()) {
            worker.report_with(reporter);
        }
        sending.insert(mailbox.address().clone(), worker.status());
        let (soft, hard) = (tasks.soft.clone(), tasks.hard.clone());
        tasks.start("delivery", async move {
            worker.run(soft, hard).await;
            Ok(())
        });
        if let Some(gateway) = gateway.clone().filter(|_| mailbox.config.inbox) {
            let (store, tokens, tls, room) = (store.clone(), tokens.clone(), tls.clone(), room.clone());
            let inbox = Inbox::new(mailbox.clone(), store, tokens, gateway, tls, room);
            let soft = tasks.soft.clone();
            tasks.start("fetch", async move {
                inbox.run(soft).await;
                Ok(())
            });
        }
    }
    tasks.start("clock", watch_clock(store.clone(), tasks.soft.clone()));
    let keep_failed =
        mailboxes.iter().map(|m| (m.address().clone(), m.config.delivery.keep_failed)).collect();
    let feed = Feed::new(store.clone(), gateway.clone(), keep_failed);
    let soft = tasks.soft.clone();
    tasks.start("reports", async move {
        feed.run(soft).await;
        Ok(())
    });
    tasks.start("changes", watch_changes(store.clone(), tokens.clone(), tasks.soft.clone()));

    let apps = mailboxes.iter().map(|mailbox| mailbox.config.microsoft.clone()).collect();
    let soft = tasks.soft.clone();
    tasks.start("expiry", async move {
        expiry::watch(apps, soft).await;
        Ok(())
    });

    let admin_address = admin.local_addr()?;
    let addresses: Vec<String> = submission
        .plain
        .iter()
        .chain(&submission.tls)
        .map(|listener| listener.local_addr().map(|at| at.to_string()))
        .collect::<Result<_, _>>()?;
    let sources = Sources {
        counters,
        started_at: now,
        mailboxes: mailboxes.clone(),
        tokens,
        odoo: config.odoo.clone(),
        gateway,
        store: store.clone(),
        sending: Arc::new(sending),
        doctor,
    };
    let (page, soft) = (config.admin.clone(), tasks.soft.clone());
    tasks.start("admin", async move {
        admin::serve(admin, page, sources, consents, soft).await;
        Ok(())
    });
    let intake = Intake::new(config.routes(), store.clone());
    let listener = Listener::new(&config.submission, submission, intake)?;
    let soft = tasks.soft.clone();
    tasks.start("submission", async move {
        listener.run(soft).await;
        Ok(())
    });
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        submission = addresses.join(" "),
        admin = %admin_address,
        mailboxes = mailboxes.len(),
        "ready"
    );
    Ok(())
}

/// Soft first; after the grace, hard.
async fn stop(mut tasks: Tasks) {
    tasks.soft.cancel();
    let drained = async {
        while let Some(ended) = tasks.running.join_next().await {
            if let Ok((name, Err(error))) = &ended {
                tracing::warn!(task = name, error = format!("{error:#}"), "task failed");
            }
        }
    };
    if tokio::time::timeout(GRACE, drained).await.is_err() {
        let advice =
            "what is in hand takes too long: it is dropped, and looked for in Sent Items at the next start";
        tracing::warn!(tasks = tasks.running.len(), advice, "stopping late");
        tasks.hard.cancel();
        let drained = async { while tasks.running.join_next().await.is_some() {} };
        if tokio::time::timeout(Duration::from_secs(5), drained).await.is_err() {
            tasks.running.abort_all();
        }
    }
}

/// Waits until a task ends that should not have. The store's writer is one of them: without it nothing can be accepted,
/// booked or settled any more.
async fn unexpected_end(
    running: &mut JoinSet<(&'static str, anyhow::Result<()>)>,
    writing: &mut JoinSet<()>,
) -> anyhow::Error {
    let ended = tokio::select! {
        Some(ended) = running.join_next() => ended,
        Some(ended) = writing.join_next() => ended.map(|()| ("store", Ok(()))),
    };
    match ended {
        Ok((name, Ok(()))) => anyhow::anyhow!("the {name} task ended by itself, which is a defect"),
        Ok((name, Err(error))) => error.context(format!("the {name} task failed")),
        Err(error) => anyhow::Error::new(error).context("a task panicked, which is a defect"),
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
    let mut pending = false;
    loop {
        tokio::select! {
            () = soft.cancelled() => return Ok(()),
            () = tokio::time::sleep(LOOK_FOR_CHANGES) => {}
        }
        let taken_up = async {
            pending |= changes.seen().await?;
            if pending {
                tokens.reload().await?;
                let now = store.done_by_hand().await?;
                if std::mem::replace(&mut by_hand, now) != now {
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

/// Mail whose mailbox left the configuration is routed anew: nothing may wait for a worker that is not there.
async fn take_in_strays(config: &Config, store: &Store) -> anyhow::Result<()> {
    let known: Vec<_> = config.mailboxes.iter().map(|mailbox| mailbox.address.clone()).collect();
    let routes = config.routes();
    for Stray { id, mailbox: before, from, mail_from, unknown } in store.strays(&known).await? {
        let route = routes.route(from.as_deref(), &mail_from)?;
        let to = config.mailboxes.iter().find(|mailbox| mailbox.address == route.mailbox);
        let hold = to.is_some_and(|mailbox| mailbox.delivery.on_unknown == OnUnknown::Hold);
        let advice = match (unknown, hold) {
            (false, _) => None,
            (true, false) => {
                Some("it may have been sent before, which nobody can find out now: it is sent again")
            }
            (true, true) => Some(
                "it may have been sent before, which nobody can find out now: ask a recipient, then `outlook-relay queue \
                 retry` or `queue cancel`",
            ),
        };
        let reply = format!("{before} left the configuration");
        tracing::warn!(mailbox = %before, %id, to = %route.mailbox, from = route.new_from, unknown, reply, advice, "rerouted");
        store.reroute(id, route.mailbox, route.rule, route.new_from, hold).await?;
    }
    Ok(())
}

/// The store was put back from a backup.
fn say_restored(restored: &Restored) {
    let Restored { made_at, messages, others, reports } = restored;
    tracing::warn!(
        made_at = %clock::to_second(*made_at),
        messages,
        others,
        reports,
        advice = "what was queued is looked for in Sent Items before it is sent (where nobody can look, on_unknown decides), and \
                  Odoo is asked before it gets anything again; look at `outlook-relay status`, and send invitations anew",
        "restored"
    );
}

/// What the world comes in by.
struct Doors {
    submission: Sockets,
    admin: TcpListener,
}

/// Those that systemd handed over, or else those of the configuration.
async fn sockets(config: &Config, inherited: Inherited) -> anyhow::Result<Sockets> {
    let mut sockets = Sockets::default();
    if inherited.is_empty() {
        for &address in &config.submission.listen {
            sockets.plain.push(bind(address, "[submission] listen").await?);
        }
        for &address in &config.submission.listen_tls {
            sockets.tls.push(bind(address, "[submission] listen_tls").await?);
        }
        return Ok(sockets);
    }
    if !inherited.tls.is_empty() && config.submission.tls.is_none() {
        bail!("systemd hands over a socket for TLS: set tls_certificate and tls_key in [submission]");
    }
    let tokio = |socket| TcpListener::from_std(socket).context("a socket of systemd cannot be used");
    sockets.plain = inherited.plain.into_iter().map(tokio).collect::<Result<_, _>>()?;
    sockets.tls = inherited.tls.into_iter().map(tokio).collect::<Result<_, _>>()?;
    Ok(sockets)
}

async fn bind(address: SocketAddr, key: &str) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|error| {
        if error.kind() == std::io::ErrorKind::AddrInUse {
            anyhow::anyhow!(
                "{key}: {address} is in use: is another outlook-relay running? `ss -ltnp` shows who has it"
            )
        } else {
            anyhow::anyhow!("{key}: cannot listen on {address}: {error}")
        }
    })
}

/// The file that a daemon holds locked while it works on a store.
pub(crate) fn lock_file(store: &Path) -> PathBuf {
    store::real(store).with_extension("lock")
}

/// Only one daemon may work on a store, by whatever name: two would send everything twice, and refresh tokens at the same
/// time. `None`: one does already.
pub(crate) fn lock(store: &Path) -> anyhow::Result<Option<File>> {
    let path = lock_file(store);
    let file =
        store::create_private(&path).with_context(|| format!("{}: cannot be created", path.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(std::fs::TryLockError::WouldBlock) => Ok(None),
        Err(std::fs::TryLockError::Error(error)) => {
            Err(error).with_context(|| format!("{}: cannot be locked", path.display()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_task_that_ends_by_itself_ends_the_daemon_and_so_does_the_writer() {
        let (mut running, mut writing) = (JoinSet::new(), JoinSet::new());
        running.spawn(std::future::pending());
        writing.spawn(async {});
        let error = unexpected_end(&mut running, &mut writing).await;
        assert_eq!(error.to_string(), "the store task ended by itself, which is a defect");
        writing.spawn(async { panic!("on purpose") });
        let error = unexpected_end(&mut running, &mut writing).await;
        assert_eq!(error.to_string(), "a task panicked, which is a defect");
        writing.spawn(std::future::pending());
        running.spawn(async { ("admin", Err(anyhow::anyhow!("no sockets"))) });
        let error = unexpected_end(&mut running, &mut writing).await;
        assert_eq!(format!("{error:#}"), "the admin task failed: no sockets");
    }
}
