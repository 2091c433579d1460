//! Outgoing mail beside Debian's Postfix, in the same run: accepted and kept, and accepted until delivered.
//!
//! `cargo run --release --example bench -- outgoing [--messages 4000] [--sessions 1,8,32] [--runs 3]
//! [--work accept,deliver]`, as root.
//!
//! For each it prints messages a second (the median of the runs, and the lowest and highest), the 99th percentile of the
//! time from the message's end to its 250, CPU time per message, the most memory (PSS, what processes share counted once),
//! and the ratio of the relay's rate to Postfix's. `straight` is the same client talking to the upstream itself, over TLS: what
//! the bench can carry at most, and what it takes itself. It fails where a message did not arrive once and intact.

use crate::mail::Mails;
use crate::postfix::{Postfix, Sends};
use crate::support::tls::Tls;
use crate::support::world::World;
use crate::upstream::Upstream;
use crate::{AS_RELAY, Given, Result, Session, number, process};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{ClientConnection, StreamOwned};

const MAILBOX: &str = "john@example.com";

/// How many connections to the upstream each may open.
pub(crate) const CONNECTIONS: u32 = 20;

/// What is measured.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Work {
    Accept,
    Deliver,
}

/// What one run showed.
struct Run {
    rate: f64,
    p99: Duration,
    cpu: Duration,
    memory: f64,
}

pub(crate) fn run(given: &Given) -> Result<()> {
    let (messages, runs) = (number(given, "--messages", 4000)?, number(given, "--runs", 3)?);
    let sessions = given.get("--sessions").map_or("1,8,32", String::as_str).split(',').map(str::parse);
    let sessions = sessions.collect::<std::result::Result<Vec<usize>, _>>()?;
    if messages == 0 || runs == 0 || sessions.contains(&0) {
        return Err("--messages, --runs and --sessions must be at least 1".into());
    }
    let works =
        given.get("--work").map_or("accept,deliver", String::as_str).split(',').map(|work| match work {
            "accept" => Ok(Work::Accept),
            "deliver" => Ok(Work::Deliver),
            _ => Err(format!("{work} is unknown: accept, deliver")),
        });
    let works = works.collect::<std::result::Result<Vec<_>, _>>()?;
    println!(
        "{messages} messages of 2, 20 and 200 KB, 17 KB on average; the median of {runs} runs [lowest, highest]"
    );
    println!(
        "work     sessions  who       messages/s              p99 ms  CPU ms/message  PSS MiB  to Postfix"
    );
    let mails = Arc::new(Mails::new());
    for work in works {
        for &sessions in &sessions {
            let (mut postfix, mut relay, mut straight) = (Vec::new(), Vec::new(), Vec::new());
            for _ in 0..runs {
                postfix.push(run_postfix(work, &mails, messages, sessions)?);
                relay.push(run_relay(work, &mails, messages, sessions)?);
                if work == Work::Deliver {
                    straight.push(run_straight(&mails, messages, sessions)?);
                }
            }
            if !straight.is_empty() {
                print_row(work, sessions, "straight", &Median::of(straight), messages, None);
            }
            let (postfix, relay) = (Median::of(postfix), Median::of(relay));
            print_row(work, sessions, "Postfix", &postfix, messages, None);
            print_row(work, sessions, "relay", &relay, messages, Some(relay.rate / postfix.rate));
        }
    }
    Ok(())
}

fn print_row(work: Work, sessions: usize, who: &str, run: &Median, messages: usize, ratio: Option<f64>) {
    println!(
        "{:7}  {sessions:8}  {who:8}  {:8.0} [{:5.0}, {:5.0}]  {:6.2}  {:14.3}  {:7.1}  {}",
        if work == Work::Accept { "accept" } else { "deliver" },
        run.rate,
        run.lowest,
        run.highest,
        run.p99.as_secs_f64() * 1_000.0,
        run.cpu.as_secs_f64() * 1_000.0 / messages as f64,
        run.memory,
        ratio.map_or(String::new(), |ratio| format!("{ratio:10.2}")),
    );
}

struct Median {
    rate: f64,
    lowest: f64,
    highest: f64,
    p99: Duration,
    cpu: Duration,
    memory: f64,
}

impl Median {
    fn of(mut runs: Vec<Run>) -> Self {
        runs.sort_by(|a, b| a.rate.total_cmp(&b.rate));
        let (lowest, highest) = (runs[0].rate, runs[runs.len() - 1].rate);
        let Run { rate, p99, cpu, memory } = runs.swap_remove(runs.len() / 2);
        Self { rate, lowest, highest, p99, cpu, memory }
    }
}

fn run_postfix(work: Work, mails: &Arc<Mails>, messages: usize, sessions: usize) -> Result<Run> {
    // Its processes run as another user, who must get there.
    let folder = tempfile::Builder::new().prefix("bench").tempdir_in("/var/tmp")?;
    let tls = Tls::new();
    let upstream = Upstream::start(tls.acceptor().config().clone(), mails.clone())?;
    let sends = if work == Work::Accept { Sends::Held } else { Sends::To(upstream.address) };
    let postfix = Postfix::start(folder.path(), sends)?;
    let open = || Session::open(postfix.address);
    measure(work, mails, messages, sessions, open, postfix.master()?, &upstream)
}

/// Nobody between the client and the upstream.
fn run_straight(mails: &Arc<Mails>, messages: usize, sessions: usize) -> Result<Run> {
    let tls = Tls::new();
    let upstream = Upstream::start(tls.acceptor().config().clone(), mails.clone())?;
    let client = outlook_relay::tls::client(Some(&tls.ca_file()))?;
    let open = || {
        let mut plain = Session::open(upstream.address)?;
        plain.say(b"STARTTLS\r\n", "220")?;
        let connection = ClientConnection::new(client.clone(), ServerName::try_from("localhost")?)?;
        let mut session = Session::over(StreamOwned::new(connection, plain.replies.into_inner()));
        session.say(b"EHLO bench\r\n", "250")?;
        session.say(b"AUTH XOAUTH2 token\r\n", "235")?;
        Ok(session)
    };
    measure(Work::Deliver, mails, messages, sessions, open, std::process::id(), &upstream)
}

fn run_relay(work: Work, mails: &Arc<Mails>, messages: usize, sessions: usize) -> Result<Run> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let world = runtime.block_on(World::start());
    let upstream = Upstream::start(world.tls.acceptor().config().clone(), mails.clone())?;
    let mut config = world.config();
    config.set_binary(&std::env::current_exe()?);
    config.env(AS_RELAY, "1");
    config.text("microsoft", "smtp", &format!("localhost:{}", upstream.address.port()));
    config.raw("delivery", "connections", &CONNECTIONS.to_string());
    config.raw("delivery", "recipients_per_day", "0");
    config.text("store", "url", "sqlite:relay.db");
    config.mailbox(MAILBOX, &[]);
    if work == Work::Deliver {
        // Without a token nothing is sent.
        let token = world.entra.add_mailbox(MAILBOX);
        runtime.block_on(config.connect(MAILBOX, &token)).success();
    }
    let mut relay = Relay::start(&config.write(), config.submission)?;
    let open = || Session::open(config.submission);
    let run = measure(work, mails, messages, sessions, open, relay.0.id(), &upstream)?;
    relay.0.kill()?;
    relay.0.wait()?;
    if work == Work::Accept {
        let listed = runtime.block_on(config.cli(&["queue", "list", "--json"])).success();
        let listed = serde_json::from_str::<Vec<serde_json::Value>>(&listed)?.len();
        // With the first one, which was not counted.
        if listed != messages + 1 {
            return Err(format!("{} messages were accepted, {listed} are in the queue", messages + 1).into());
        }
    }
    Ok(run)
}

/// The daemon, with its usual log.
struct Relay(Child);

impl Relay {
    fn start(config: &Path, submission: SocketAddr) -> Result<Self> {
        let log = std::fs::File::create(config.with_extension("log"))?;
        let mut command = Command::new(std::env::current_exe()?);
        command.env(AS_RELAY, "1").arg("run").arg("-c").arg(config).stdin(Stdio::null()).stderr(log);
        let relay = Self(command.spawn()?);
        let deadline = Instant::now() + Duration::from_secs(30);
        while TcpStream::connect(submission).is_err() {
            if Instant::now() > deadline {
                return Err("the relay does not listen".into());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(relay)
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// Sends the messages over as many connections as there are sessions; `open` makes one.
fn measure<S: Read + Write>(
    work: Work,
    mails: &Mails,
    messages: usize,
    sessions: usize,
    open: impl Fn() -> Result<Session<S>> + Sync,
    pid: u32,
    upstream: &Upstream,
) -> Result<Run> {
    // The first message finds everything cold.
    let mut first = open()?;
    let (header, body) = mails.get(messages);
    first.send(&header, body)?;
    if work == Work::Deliver {
        upstream.wait_for(1, Duration::from_secs(30))?;
        upstream.forget();
    }
    let used = process::cpu(pid)?;
    let begun = Instant::now();
    let mut waits = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..sessions)
            .map(|session| {
                let open = &open;
                scope.spawn(move || -> Result<Vec<Duration>> {
                    let mut open = open()?;
                    (session..messages)
                        .step_by(sessions)
                        .map(|number| {
                            let (header, body) = mails.get(number);
                            open.send(&header, body)
                        })
                        .collect()
                })
            })
            .collect();
        let mut waits = Vec::with_capacity(messages);
        for thread in threads {
            waits.extend(thread.join().map_err(|_| "a session panicked")??);
        }
        Ok::<_, Box<dyn std::error::Error + Send + Sync>>(waits)
    })?;
    let memory = process::proportional(pid)?;
    let ended = match work {
        Work::Accept => Instant::now(),
        Work::Deliver => upstream.wait_for(messages, Duration::from_secs(120))?,
    };
    waits.sort_unstable();
    Ok(Run {
        rate: messages as f64 / ended.duration_since(begun).as_secs_f64(),
        p99: waits[waits.len() * 99 / 100],
        cpu: process::cpu(pid)?.saturating_sub(used),
        memory,
    })
}
