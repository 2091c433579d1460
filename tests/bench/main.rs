//! What the relay takes and gives: `accept` (the default), `outgoing`, `queue`, `memory`, `inbound`, `large`, `idle`.
//!
//! `cargo run --release --example bench -- outgoing`, as root: outgoing mail beside Debian's Postfix; see outgoing.rs.
//!
//! `cargo run --release --example bench -- inbound`: received mail from a real Dovecot into
//! Odoo's double, beside what Odoo's own fetchmail does; see inbound.rs. `-- large [--inboxes 10 --megabytes 100]` and
//! `-- idle [--inboxes 1000 --minutes 10]`: memory; see idle.rs.
//!
//! `-- queue [--lengths 1000,10000,100000]` and `-- memory`: a long queue, and an idle relay; see queue.rs.
//!
//! `accept`: how fast the relay accepts: N messages over C sessions, each with a 250 only once it is on disk. Delivery is
//! held (no token can be had), so that only accepting is measured.
//!
//! `cargo run --release --example bench [-- --messages 5000 --sessions 1,8,32,100 --sizes 2000,20000,200000]`
//!
//! Prints, for each size and number of sessions, messages a second, the median and the 99th percentile of the time from
//! the message's end to its 250, the daemon's peak memory, how many writes share a commit, the share of the time in which
//! a commit was under way, and two ratios: to one session, and to the disk alone (the same bytes, appended to one file and
//! synced, one after the other). Ratios count; figures vary with the machine.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a program that prints what it measures")]
#![expect(clippy::indexing_slicing, reason = "what it indexes it has just made")]

mod idle;
mod inbound;
mod mail;
mod outgoing;
mod postfix;
mod process;
mod proxy;
mod queue;
#[path = "../support/mod.rs"]
mod support;
mod upstream;

use std::error::Error;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// Set for the child process that is the relay.
const AS_RELAY: &str = "OUTLOOK_RELAY_BENCH_AS_RELAY";

fn main() -> ExitCode {
    if std::env::var_os(AS_RELAY).is_some() {
        return outlook_relay::cli::main();
    }
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    let mode = match arguments.first() {
        Some(mode) if !mode.starts_with("--") => arguments.remove(0),
        _ => "accept".to_owned(),
    };
    let done = match mode.as_str() {
        "accept" => bench(arguments),
        "inbound" => {
            let known = ["--messages", "--delay", "--gateway", "--inboxes", "--runs"];
            named(arguments, &known).and_then(|given| inbound::run(&given))
        }
        "large" => named(arguments, &["--inboxes", "--megabytes"]).and_then(|given| idle::large(&given)),
        "idle" => named(arguments, &["--inboxes", "--minutes"]).and_then(|given| idle::run(&given)),
        "outgoing" => named(arguments, &["--messages", "--sessions", "--runs", "--work"])
            .and_then(|given| outgoing::run(&given)),
        "queue" => named(arguments, &["--lengths", "--binary"]).and_then(|given| queue::run(&given)),
        "memory" => named(arguments, &["--binary"]).and_then(|given| queue::memory(&given)),
        _ => Err(format!("{mode} is unknown: accept, outgoing, queue, memory, inbound, large, idle").into()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error}");
            ExitCode::FAILURE
        }
    }
}

/// `--name value` pairs.
type Given = std::collections::HashMap<String, String>;

fn named(arguments: Vec<String>, known: &[&str]) -> Result<Given> {
    let mut given = Given::new();
    let mut arguments = arguments.into_iter();
    while let Some(name) = arguments.next() {
        if !known.contains(&name.as_str()) {
            return Err(format!("{name} is unknown: {}", known.join(", ")).into());
        }
        let value = arguments.next().ok_or_else(|| format!("{name} needs a value"))?;
        given.insert(name, value);
    }
    Ok(given)
}

fn number(given: &Given, name: &str, otherwise: usize) -> Result<usize> {
    Ok(given.get(name).map_or(Ok(otherwise), |value| value.parse())?)
}

struct Options {
    messages: usize,
    sessions: Vec<usize>,
    sizes: Vec<usize>,
}

fn options(arguments: Vec<String>) -> Result<Options> {
    let mut options = Options { messages: 5_000, sessions: vec![1, 8, 32, 100], sizes: vec![20_000] };
    let list = |value: &str| value.split(',').map(str::parse).collect::<std::result::Result<Vec<usize>, _>>();
    let mut arguments = arguments.into_iter();
    while let Some(name) = arguments.next() {
        let value = arguments.next().ok_or_else(|| format!("{name} needs a value"))?;
        match name.as_str() {
            "--messages" => options.messages = value.parse()?,
            "--sizes" => options.sizes = list(&value)?,
            "--sessions" => options.sessions = list(&value)?,
            _ => {
                return Err(
                    format!("{name} is unknown: --messages N --sessions A,B --sizes BYTES,BYTES").into()
                );
            }
        }
    }
    if options.messages == 0 || options.sessions.contains(&0) || options.sessions.is_empty() {
        return Err("--messages and --sessions must be at least 1".into());
    }
    Ok(options)
}

fn bench(arguments: Vec<String>) -> Result<()> {
    let options = options(arguments)?;
    options.sizes.iter().try_for_each(|&size| bench_size(&options, size))
}

fn bench_size(options: &Options, size: usize) -> Result<()> {
    let message = message(size);
    let folder = tempfile::Builder::new().prefix("bench").tempdir_in("target")?;
    let disk = disk_alone(folder.path(), &message, options.messages.min(2_000))?;
    println!(
        "{} messages of {} bytes; the disk alone, one sync each: {disk:.0} a second",
        options.messages,
        message.len()
    );
    println!(
        "sessions  messages/s  p50 ms  p99 ms  peak MiB  writes/commit  in commits  to 1 session  to the disk alone"
    );
    let mut alone = None;
    for &sessions in &options.sessions {
        let relay = Relay::start(&folder.path().join(sessions.to_string()))?;
        let (rate, mut waits) = load(relay.address, &message, options.messages, sessions)?;
        let written = relay.written()?;
        waits.sort_unstable();
        let at = |share: f64| {
            let index = (waits.len() as f64 * share) as usize;
            waits.get(index).or(waits.last()).map_or(0.0, |wait| wait.as_secs_f64() * 1_000.0)
        };
        let alone = *alone.get_or_insert(rate);
        println!(
            "{sessions:8}  {rate:10.0}  {:6.2}  {:6.2}  {:8.1}  {:13.1}  {:9.0}%  {:12.2}  {:17.2}",
            at(0.50),
            at(0.99),
            relay.peak_memory()? as f64 / 1_024.0,
            written.writes / written.commits.max(1.0),
            100.0 * written.seconds * rate / options.messages as f64,
            rate / alone,
            rate / disk
        );
        let accepted = relay.stop()?;
        if accepted != options.messages {
            return Err(format!("{} were sent, but {accepted} are in the queue", options.messages).into());
        }
    }
    Ok(())
}

/// A message of about `size` bytes, with lines as mail has them.
fn message(size: usize) -> Vec<u8> {
    let mut message = b"From: John <john@example.com>\r\nTo: a@x.test\r\nSubject: bench\r\nMessage-Id: <bench@odoo>\r\n\r\n".to_vec();
    while message.len() < size {
        message.extend_from_slice(
            b"The quick brown fox jumps over the lazy dog, again and again and again.\r\n",
        );
    }
    message
}

/// How many such messages a second the disk takes, one synced append after the other.
fn disk_alone(folder: &Path, message: &[u8], messages: usize) -> Result<f64> {
    let mut file = File::create(folder.join("alone"))?;
    let start = Instant::now();
    for _ in 0..messages {
        file.write_all(message)?;
        file.sync_data()?;
    }
    Ok(messages as f64 / start.elapsed().as_secs_f64())
}

/// What was written to the store.
struct Written {
    commits: f64,
    writes: f64,
    seconds: f64,
}

/// The real daemon, as a process of its own.
struct Relay {
    process: Child,
    address: SocketAddr,
    admin: SocketAddr,
    config: std::path::PathBuf,
}

impl Relay {
    fn start(folder: &Path) -> Result<Self> {
        std::fs::create_dir(folder)?;
        let free = || TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
        let (address, admin, nobody) = (free()?, free()?, free()?);
        let config = folder.join("relay.toml");
        std::fs::write(
            &config,
            format!(
                "[microsoft]\nclient_id = 'bench'\nauthority = 'http://{nobody}'\n[store]\nurl = 'sqlite:relay.db'\n\
                 [submission]\nlisten = ['{address}']\n[admin]\nlisten = '{admin}'\n\
                 [[mailbox]]\naddress = 'john@example.com'\n"
            ),
        )?;
        let log = File::create(folder.join("log"))?;
        let process = Self::command(&config, "run").stderr(log).spawn()?;
        let relay = Self { process, address, admin, config };
        let deadline = Instant::now() + Duration::from_secs(30);
        while TcpStream::connect(address).is_err() {
            if Instant::now() > deadline {
                return Err(format!("the relay did not start: see {}", folder.join("log").display()).into());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(relay)
    }

    fn command(config: &Path, command: &str) -> Command {
        let mut relay = Command::new(std::env::current_exe().unwrap_or_default());
        relay
            .env(AS_RELAY, "1")
            .env("RUST_LOG", "warn")
            .arg(command)
            .arg("-c")
            .arg(config)
            .stdin(Stdio::null());
        relay
    }

    /// What it wrote so far, as its metrics tell.
    fn written(&self) -> Result<Written> {
        let mut stream = TcpStream::connect(self.admin)?;
        write!(stream, "GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let value = |name: &str| -> Result<f64> {
            let line =
                answer.lines().find_map(|line| line.strip_prefix(name)).ok_or("a metric is missing")?;
            Ok(line.trim().parse()?)
        };
        Ok(Written {
            commits: value("outlook_relay_store_commits_total ")?,
            writes: value("outlook_relay_store_writes_total ")?,
            seconds: value("outlook_relay_store_commit_seconds_total ")?,
        })
    }

    /// In KiB.
    fn peak_memory(&self) -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).ok_or("no VmHWM")?;
        Ok(line.trim().trim_end_matches(" kB").parse()?)
    }

    /// Stops it and says how many messages its queue holds.
    fn stop(mut self) -> Result<usize> {
        self.process.kill()?;
        self.process.wait()?;
        let listed = Self::command(&self.config, "queue").arg("list").arg("--json").output()?;
        let queue: Vec<serde_json::Value> = serde_json::from_slice(&listed.stdout)?;
        Ok(queue.len())
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

/// Sends `messages` over `sessions` connections; returns messages a second, and each message's wait for its 250.
fn load(
    address: SocketAddr,
    message: &[u8],
    messages: usize,
    sessions: usize,
) -> Result<(f64, Vec<Duration>)> {
    let start = Instant::now();
    let waits = std::thread::scope(|scope| {
        let share = |session: usize| messages / sessions + usize::from(session < messages % sessions);
        let threads: Vec<_> = (0..sessions)
            .map(|session| scope.spawn(move || session_load(address, message, share(session))))
            .collect();
        let mut waits = Vec::with_capacity(messages);
        for thread in threads {
            waits.extend(thread.join().map_err(|_| "a session panicked")??);
        }
        Ok::<_, Box<dyn Error + Send + Sync>>(waits)
    })?;
    Ok((messages as f64 / start.elapsed().as_secs_f64(), waits))
}

fn session_load(address: SocketAddr, message: &[u8], messages: usize) -> Result<Vec<Duration>> {
    let mut session = Session::open(address)?;
    (0..messages).map(|_| session.send(message, b".\r\n")).collect()
}

/// A client that speaks SMTP as Odoo does: one command at a time.
struct Session<S = TcpStream> {
    replies: BufReader<S>,
    line: String,
    /// The message that is sent; it leaves at once.
    message: Vec<u8>,
}

impl Session {
    fn open(address: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        let mut session = Session::over(stream);
        session.expect("220")?;
        session.say(b"EHLO bench\r\n", "250")?;
        Ok(session)
    }
}

impl<S: Read + Write> Session<S> {
    fn over(stream: S) -> Self {
        Self { replies: BufReader::new(stream), line: String::new(), message: Vec::new() }
    }

    /// Sends a message, of which `end` is the last part, with its final dot; returns how long its 250 took.
    fn send(&mut self, begin: &[u8], end: &[u8]) -> Result<Duration> {
        self.say(b"MAIL FROM:<bounce@example.com>\r\n", "250")?;
        self.say(b"RCPT TO:<a@x.test>\r\n", "250")?;
        self.say(b"DATA\r\n", "354")?;
        self.content(begin, end)
    }

    fn content(&mut self, begin: &[u8], end: &[u8]) -> Result<Duration> {
        self.message.clear();
        self.message.extend_from_slice(begin);
        self.message.extend_from_slice(end);
        self.replies.get_mut().write_all(&self.message)?;
        let sent = Instant::now();
        self.expect("250")?;
        Ok(sent.elapsed())
    }

    fn say(&mut self, command: &[u8], code: &str) -> Result<()> {
        self.replies.get_mut().write_all(command)?;
        self.expect(code)
    }

    fn expect(&mut self, code: &str) -> Result<()> {
        loop {
            self.line.clear();
            if self.replies.by_ref().take(4_096).read_line(&mut self.line)? == 0 {
                return Err("the server hung up".into());
            }
            if !self.line.starts_with(code) {
                return Err(format!("{code} was expected: {}", self.line).into());
            }
            if self.line.as_bytes().get(3) != Some(&b'-') {
                return Ok(());
            }
        }
    }
}
