//! A long queue, and an idle relay: what they take.
//!
//! `cargo run --release --example bench -- queue [--lengths 1000,10000,100000] [--binary PATH]`: fills a queue (delivery is
//! held), and prints for each length the memory, what claiming, listing and counting cost, how long the relay takes to
//! greet again after a kill, and what delivering from a queue that long costs. The longest takes 2 GB of the disk that
//! `target` lies on, until it is done.
//!
//! `-- memory [--binary PATH]`: an idle relay's memory, what is its program's (file-mapped) apart from its data.
//! PATH: another program than this one, the packages' for example, which holds no benchmark.

use crate::mail::Mails;
use crate::support::relay::Config;
use crate::support::world::World;
use crate::upstream::Upstream;
use crate::{AS_RELAY, Given, Result, Session, process};
use outlook_relay::address::Address;
use outlook_relay::clock;
use outlook_relay::store::Store;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;

const MAILBOX: &str = "john@example.com";
const SESSIONS: usize = 32;
const CONNECTIONS: u32 = 8;
/// Of a queue, so many are delivered: the first of them warm up.
const WARM: usize = 200;
const DRAINED: usize = 1_000;
/// `queue list` reads so many at a time, and a worker claims so many.
const PAGE: u32 = 500;
const BATCH: u32 = 100;

/// The program that is measured.
struct Program(Option<String>);

impl Program {
    fn of(given: &Given) -> Self {
        Self(given.get("--binary").cloned())
    }

    fn configure(&self, config: &mut Config) -> Result<()> {
        match &self.0 {
            Some(path) => config.set_binary(&std::fs::canonicalize(path)?),
            None => {
                config.set_binary(&std::env::current_exe()?);
                config.env(AS_RELAY, "1");
            }
        }
        Ok(())
    }

    fn start(&self, config: &Path, submission: SocketAddr) -> Result<(Relay, Duration)> {
        let log = std::fs::File::create(config.with_extension("log"))?;
        let mut command = match &self.0 {
            Some(path) => Command::new(std::fs::canonicalize(path)?),
            None => Command::new(std::env::current_exe()?),
        };
        command.env(AS_RELAY, "1").arg("run").arg("-c").arg(config).stdin(Stdio::null()).stderr(log);
        let begun = Instant::now();
        let relay = Relay(command.spawn()?);
        let mut greeting = [0; 3];
        while TcpStream::connect(submission).and_then(|mut stream| stream.read_exact(&mut greeting)).is_err()
        {
            if begun.elapsed() > Duration::from_secs(60) {
                return Err("the relay does not listen".into());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok((relay, begun.elapsed()))
    }
}

struct Relay(Child);

impl Relay {
    fn kill(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The median time of some rounds.
fn median(mut round: impl FnMut() -> Result<()>) -> Result<Duration> {
    let mut times = Vec::new();
    for _ in 0..9 {
        let begun = Instant::now();
        round()?;
        times.push(begun.elapsed());
    }
    times.sort_unstable();
    Ok(times[times.len() / 2])
}

fn micros(time: Duration, messages: usize) -> f64 {
    time.as_secs_f64() * 1e6 / messages as f64
}

pub(crate) fn run(given: &Given) -> Result<()> {
    let lengths = given.get("--lengths").map_or("1000,10000,100000", String::as_str).split(',');
    let lengths = lengths.map(str::parse).collect::<std::result::Result<Vec<usize>, _>>()?;
    if lengths.iter().any(|&length| length < DRAINED) {
        return Err(format!("a queue of at least {DRAINED} messages is drained").into());
    }
    println!("messages of 2, 20 and 200 KB, 17 KB on average; times are medians");
    println!(
        "  queued  accept/s  CPU ms  PSS MiB (program + data)  claim µs  list µs  count ms  /metrics ms  ready ms  drain/s  \
         CPU ms  store MB + log"
    );
    let mails = Arc::new(Mails::new());
    lengths.into_iter().try_for_each(|length| one(&Program::of(given), &mails, length))
}

fn one(program: &Program, mails: &Arc<Mails>, length: usize) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let world = runtime.block_on(World::start());
    let upstream = Upstream::start(world.tls.acceptor().config().clone(), mails.clone())?;
    let folder = tempfile::Builder::new().prefix("bench").tempdir_in("target")?;
    let store = folder.path().canonicalize()?.join("relay.db");
    let mut config = world.config();
    program.configure(&mut config)?;
    config.text("microsoft", "smtp", &format!("localhost:{}", upstream.address.port()));
    config.raw("delivery", "connections", &CONNECTIONS.to_string());
    config.raw("delivery", "recipients_per_day", "0");
    config.text("store", "url", &format!("sqlite://{}", store.display()));
    config.mailbox(MAILBOX, &[]);
    let path = config.write();
    let (mut relay, _) = program.start(&path, config.submission)?;

    // Without a token nothing is sent.
    let (used, begun) = (cpu(relay.0.id())?, Instant::now());
    fill(config.submission, mails, length)?;
    let rate = length as f64 / begun.elapsed().as_secs_f64();
    let accepting = cpu(relay.0.id())?.saturating_sub(used);
    std::thread::sleep(Duration::from_secs(2));
    let memory = Memory::of(relay.0.id())?;
    let (size, log) = (size_of(&store)?, size_of(&store.with_extension("db-wal"))?);
    let metrics = median(|| metrics(config.admin))?;
    let (claim, list, count) = read(&runtime, &path)?;

    let mut ready = Vec::new();
    for _ in 0..3 {
        relay.kill();
        let (again, took) = program.start(&path, config.submission)?;
        relay = again;
        ready.push(took);
    }
    ready.sort_unstable();

    let token = world.entra.add_mailbox(MAILBOX);
    runtime.block_on(config.connect(MAILBOX, &token)).success();
    let (drained, delivering) = drain(&upstream, relay.0.id())?;
    println!(
        "{length:8}  {rate:8.0}  {:6.3}  {:7.1} ({:7.1} + {:4.1})  {:8.1}  {:7.1}  {:8.2}  {:11.2}  {:8.0}  {drained:7.0}  {:6.3}  {:8.0} + {:3.0}",
        accepting.as_secs_f64() * 1e3 / length as f64,
        memory.total(),
        memory.program,
        memory.total() - memory.program,
        micros(claim, BATCH as usize),
        micros(list, PAGE as usize),
        count.as_secs_f64() * 1e3,
        metrics.as_secs_f64() * 1e3,
        ready[ready.len() / 2].as_secs_f64() * 1e3,
        delivering.as_secs_f64() * 1e3,
        size as f64 / 1e6,
        log as f64 / 1e6
    );
    Ok(())
}

fn fill(address: SocketAddr, mails: &Mails, length: usize) -> Result<()> {
    std::thread::scope(|scope| {
        let session = |session: usize| -> Result<()> {
            let mut open = Session::open(address)?;
            (session..length).step_by(SESSIONS).try_for_each(|number| {
                let (header, body) = mails.get(number);
                open.send(&header, body).map(drop)
            })
        };
        let threads: Vec<_> = (0..SESSIONS).map(|number| scope.spawn(move || session(number))).collect();
        threads.into_iter().try_for_each(|thread| thread.join().map_err(|_| "a session panicked")?)
    })
}

fn metrics(admin: SocketAddr) -> Result<()> {
    let mut stream = TcpStream::connect(admin)?;
    write!(stream, "GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    if answer.starts_with("HTTP/1.1 200") { Ok(()) } else { Err(answer.into()) }
}

/// How long it takes to claim a batch, to list a page from the middle, and to count, beside the daemon.
fn read(runtime: &Runtime, config: &Path) -> Result<(Duration, Duration, Duration)> {
    let config = outlook_relay::config::Config::load(config).map_err(|error| format!("{error:?}"))?;
    let (store, _writer) = runtime.block_on(Store::open(&config.store))?;
    let mailbox = Address::normalise(MAILBOX).ok_or("no address")?;
    let mut half = None;
    runtime.block_on(async {
        let totals = store.totals().await?;
        let (_, totals) = totals.first().ok_or("nothing is queued")?;
        let mut left = totals.waiting / 2;
        while left > 0 {
            let page = store.queued(half, PAGE.min(u32::try_from(left)?)).await?;
            half = page.last().map(|message| message.id);
            left = left.saturating_sub(page.len() as u64);
        }
        Ok::<_, Box<dyn std::error::Error + Send + Sync>>(())
    })?;
    let claim = median(|| {
        let due = runtime.block_on(store.due(&mailbox, clock::now(), BATCH))?;
        if due.len() == BATCH as usize { Ok(()) } else { Err("too few are due".into()) }
    })?;
    let list = median(|| {
        let page = runtime.block_on(store.queued(half, PAGE))?;
        if page.len() == PAGE as usize { Ok(()) } else { Err("too few are listed".into()) }
    })?;
    let count = median(|| Ok(runtime.block_on(store.totals()).map(drop)?))?;
    Ok((claim, list, count))
}

/// Messages a second, and the processor time of each.
fn drain(upstream: &Upstream, pid: u32) -> Result<(f64, Duration)> {
    let wait = |count: usize| -> Result<Instant> {
        let end = Instant::now() + Duration::from_secs(60);
        while upstream.count() < count {
            if Instant::now() > end {
                return Err(format!("only {} of {count} came", upstream.count()).into());
            }
            std::thread::sleep(Duration::from_micros(500));
        }
        Ok(Instant::now())
    };
    let (begun, used) = (wait(WARM)?, cpu(pid)?);
    let begun_at = upstream.count();
    let ended = wait(DRAINED - 20)?;
    let (drained, used) = (upstream.count() - begun_at, cpu(pid)?.saturating_sub(used));
    Ok((drained as f64 / ended.duration_since(begun).as_secs_f64(), used / u32::try_from(drained.max(1))?))
}

/// The processor time of a process, in finer grains than [`process::cpu`] has.
fn cpu(pid: u32) -> Result<Duration> {
    let mut all = Duration::ZERO;
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))?.flatten() {
        // It may end meanwhile. See Documentation/scheduler/sched-stats.rst: nanoseconds on a processor come first.
        let text = std::fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
        all +=
            Duration::from_nanos(text.split(' ').next().and_then(|on| on.parse().ok()).unwrap_or_default());
    }
    Ok(all)
}

fn size_of(path: &Path) -> Result<u64> {
    match std::fs::metadata(path) {
        Ok(of) => Ok(of.len()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(0),
        Err(error) => Err(error.into()),
    }
}

/// Proportional memory (PSS), in MiB.
#[derive(Default)]
struct Memory {
    /// The program's own file, as far as it is mapped.
    program: f64,
    /// The C library and other files.
    files: f64,
    /// Heaps, stacks, and what of the files was changed.
    data: f64,
}

impl Memory {
    fn of(pid: u32) -> Result<Self> {
        let program = std::fs::read_link(format!("/proc/{pid}/exe"))?;
        let program = program.to_str().ok_or("the program's name")?;
        let mut memory = Self::default();
        let (mut name, mut whole) = (String::new(), 0.0);
        // proc_pid_smaps(5): a line with addresses begins each mapping, its file at the end.
        for line in std::fs::read_to_string(format!("/proc/{pid}/smaps"))?.lines() {
            let mut words = line.split_ascii_whitespace();
            let first = words.next().unwrap_or_default();
            if !first.ends_with(':') {
                name = words.nth(4).unwrap_or_default().to_owned();
                continue;
            }
            let amount =
                words.next().and_then(|amount| amount.parse::<f64>().ok()).unwrap_or_default() / 1024.0;
            match first {
                "Pss:" => whole = amount,
                // Behind the former.
                "Anonymous:" => {
                    memory.data += amount;
                    let file = if name == program { &mut memory.program } else { &mut memory.files };
                    *file += whole - amount.min(whole);
                }
                _ => {}
            }
        }
        Ok(memory)
    }

    fn total(&self) -> f64 {
        self.program + self.files + self.data
    }
}

pub(crate) fn memory(given: &Given) -> Result<()> {
    let program = Program::of(given);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let world = runtime.block_on(World::start());
    println!("idle for 10 s       PSS MiB  program  libraries  data");
    for inbox in ["false", "true"] {
        let mut config = world.config();
        program.configure(&mut config)?;
        config.mailbox(MAILBOX, &[("inbox", inbox)]);
        let token = world.entra.add_mailbox(MAILBOX);
        runtime.block_on(config.connect(MAILBOX, &token)).success();
        let (relay, _) = program.start(&config.write(), config.submission)?;
        std::thread::sleep(Duration::from_secs(10));
        let memory = Memory::of(relay.0.id())?;
        println!(
            "{:18}  {:7.1}  {:7.1}  {:9.1}  {:4.1}  (smaps_rollup: {:.1})",
            if inbox == "true" { "one inbox watched" } else { "no inbox watched" },
            memory.total(),
            memory.program,
            memory.files,
            memory.data,
            process::proportional(relay.0.id())?
        );
    }
    Ok(())
}
