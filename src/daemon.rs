//! The daemon: prepares the [`service`](crate::service), has it run, and stops it in order.
//!
//! A task that ends or panics before it was asked to ends the process, in order, with a failure; systemd starts it again.

use crate::config::Config;
use crate::inherited::Inherited;
use crate::service::{Doors, Service, Trust};
use crate::store::{self, Restored, Store};
use crate::submission::Sockets;
use crate::tasks::Tasks;
use crate::{clock, logging};
use anyhow::{Context, bail};
use sd_notify::NotifyState;
use std::fs::File;
use std::net::SocketAddr;
use std::path::Path;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;

/// Runs until SIGTERM or SIGINT; SIGHUP has it read its configuration again.
///
/// # Errors
/// A configuration with mistakes ([`crate::config::Mistakes`]), what keeps it from starting (a port in use, a store that
/// cannot be opened), or what ended it.
pub async fn run(file: &Path, inherited: Inherited) -> anyhow::Result<()> {
    // First of all: unwatched it would end the process.
    let mut hangup = signal(SignalKind::hangup()).context("SIGHUP cannot be watched")?;
    let mut terminate = signal(SignalKind::terminate()).context("SIGTERM cannot be watched")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT cannot be watched")?;
    let config = Config::load(file)?;
    let counters = logging::start(&config.log);

    // Everything that can fail at the start does so here, before anything runs.
    let submission = sockets(&config, inherited).await?;
    let doors = Doors { submission, admin: bind(config.admin.listen, "[admin] listen").await? };
    let trust = Trust::new(&config)?;
    // The lock comes first: `store restore` may be putting another file in place.
    config.store.create()?;
    let Some(_lock) = lock(&config.store.path)? else {
        bail!("{}: another outlook-relay works on this store: stop it first", config.store.path.display());
    };
    let (store, writer) = Store::open_locked(&config.store).await?;
    // Apart from the others, since it has to outlive them.
    let mut writing = JoinSet::new();
    writing.spawn(writer.run());

    let mut tasks = Tasks::default();
    let ended = async {
        take_up(&store).await?;
        let mut service =
            Service::start(file.to_owned(), config, &mut tasks, store.clone(), doors, trust, counters)
                .await?;
        drop(sd_notify::notify(&[NotifyState::Ready]));
        tokio::select! {
            _ = terminate.recv() => Ok("SIGTERM"),
            _ = interrupt.recv() => Ok("SIGINT"),
            error = service.work(&mut tasks, &mut hangup) => Err(error),
            Some(ended) = writing.join_next() => Err(writer_ended(ended)),
        }
    };
    let stopped = Box::pin(ended).await;
    drop(sd_notify::notify(&[NotifyState::Stopping]));
    match &stopped {
        Ok(signal) => tracing::info!(signal, "stopping"),
        Err(error) => tracing::error!(error = format!("{error:#}"), "stopping"),
    }
    tasks.stop().await;
    store.close().await;
    while let Some(ended) = writing.join_next().await {
        ended.context("the store's writer failed")?;
    }
    stopped.map(|_| tracing::info!("stopped"))
}

/// Takes up what the last run, or a backup, left in the store.
async fn take_up(store: &Store) -> anyhow::Result<()> {
    let now = clock::now();
    store.forget_future(now).await?;
    store.recover(now).await?;
    if let Some(restored) = store.take_up_backup(now).await? {
        say_restored(&restored);
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
                  Odoo is asked before it gets anything again; what was cancelled or given up since is tried again, unless \
                  `outlook-relay queue cancel` takes it out; look at `outlook-relay status`, and send invitations anew",
        "restored"
    );
}

/// Without the writer nothing can be accepted, booked or settled any more.
fn writer_ended(ended: Result<(), tokio::task::JoinError>) -> anyhow::Error {
    match ended {
        Ok(()) => anyhow::anyhow!("the store task ended by itself, which is a defect"),
        Err(error) => anyhow::Error::new(error).context("a task panicked, which is a defect"),
    }
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
    say_unused(config, &sockets);
    Ok(sockets)
}

/// Addresses that somebody wrote, and at which nobody listens: systemd's sockets take the place of the configuration's.
fn say_unused(config: &Config, sockets: &Sockets) {
    let submission = &config.submission;
    let listen = if submission.names_listen { submission.listen.as_slice() } else { &[] };
    for (key, named, sockets, advice) in [
        (
            "[submission] listen",
            listen,
            &sockets.plain,
            "outlook-relay.socket takes the place of this key: `systemctl edit outlook-relay.socket`, an empty ListenStream= and \
             one with each address; or `systemctl disable --now outlook-relay.socket`. Then stop both units and start them",
        ),
        (
            "[submission] listen_tls",
            &submission.listen_tls,
            &sockets.tls,
            "outlook-relay.socket takes the place of this key: a second socket unit, with FileDescriptorName=submission-tls \
             (the README shows it); or `systemctl disable --now outlook-relay.socket`. Then stop the units and start them",
        ),
    ] {
        let open: Vec<_> = sockets.iter().filter_map(|socket| socket.local_addr().ok()).collect();
        for address in named.iter().filter(|named| !open.iter().any(|open| covers(*open, **named))) {
            tracing::warn!(key, %address, advice, "not listened on");
        }
    }
}

/// Whether who connects to `named` reaches a socket that is bound to `open`. One on `[::]` takes IPv4, too, as systemd
/// makes it.
fn covers(open: SocketAddr, named: SocketAddr) -> bool {
    let any = open.ip().is_unspecified() && (open.is_ipv6() || named.is_ipv4());
    open.port() == named.port() && (any || open.ip().to_canonical() == named.ip().to_canonical())
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

/// Only one daemon may work on a store, by whatever name: two would send everything twice, and refresh tokens at the same
/// time. `None`: one does already.
pub(crate) fn lock(store: &Path) -> anyhow::Result<Option<File>> {
    store::lock(store)
        .with_context(|| format!("{}: cannot be created or locked", store::lock_file(store).display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_covers_its_own_address_or_all_of_its_port() {
        for (open, named, expected) in [
            ("127.0.0.1:2525", "127.0.0.1:2525", true),
            ("127.0.0.1:2525", "127.0.0.1:2526", false),
            ("127.0.0.1:2525", "10.0.0.5:2525", false),
            ("0.0.0.0:2525", "10.0.0.5:2525", true),
            ("0.0.0.0:2525", "[::1]:2525", false),
            ("[::]:2525", "10.0.0.5:2525", true),
            ("[::ffff:10.0.0.5]:2525", "10.0.0.5:2525", true),
        ] {
            assert_eq!(covers(open.parse().unwrap(), named.parse().unwrap()), expected, "{open} {named}");
        }
    }

    #[tokio::test]
    async fn a_writer_that_ends_ends_the_daemon() {
        let mut writing = JoinSet::new();
        writing.spawn(async {});
        let error = writer_ended(writing.join_next().await.unwrap());
        assert_eq!(error.to_string(), "the store task ended by itself, which is a defect");
        writing.spawn(async { panic!("on purpose") });
        let error = writer_ended(writing.join_next().await.unwrap());
        assert_eq!(error.to_string(), "a task panicked, which is a defect");
    }
}
