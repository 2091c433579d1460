//! The relay itself: its configuration file, its process, its log, its commands.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use super::client::{self, Reply};
use super::entra::{CLIENT_ID, CLIENT_SECRET, Entra};
use super::events::Events;
use super::odoo::{DATABASE, LOGIN, Odoo, PASSWORD};
use super::server::free_ports;
use super::tls::Tls;
use super::wait::{SOON, eventually};
use super::wire::Wire;

/// A configuration in a folder of its own, which holds the store and the secrets too. It must outlive the processes
/// started from it; several, one after the other, find the same store.
pub struct Config {
    dir: TempDir,
    binary: PathBuf,
    env: Vec<(String, String)>,
    /// Per section its keys and values, the values as TOML.
    sections: Vec<(String, Vec<(String, String)>)>,
    mailboxes: Vec<Vec<(String, String)>>,
    /// Where Odoo's mail goes in.
    pub submission: SocketAddr,
    /// The administrator's page.
    pub admin: SocketAddr,
}

impl Config {
    /// Listens on free ports, with a new store; Microsoft and Odoo are still to be set.
    pub fn new() -> Self {
        let [submission, admin] = free_ports().map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
        let dir = TempDir::new().unwrap();
        let store = format!("sqlite://{}", dir.path().join("relay.db").display());
        let mut config = Self {
            dir,
            binary: binary(),
            env: Vec::new(),
            sections: Vec::new(),
            mailboxes: Vec::new(),
            submission,
            admin,
        };
        config.raw("submission", "listen", &format!("[\"{submission}\"]"));
        config.text("store", "url", &store);
        config.text("admin", "listen", &admin.to_string());
        config
    }

    /// Sets a key to a string.
    pub fn text(&mut self, section: &str, key: &str, value: &str) {
        self.raw(section, key, &quote(value));
    }

    /// Sets a key to a value as TOML writes it: `5`, `true`, `["a"]`.
    pub fn raw(&mut self, section: &str, key: &str, value: &str) {
        let at = match self.sections.iter().position(|(name, _)| name == section) {
            Some(at) => at,
            None => {
                self.sections.push((section.to_owned(), Vec::new()));
                self.sections.len() - 1
            }
        };
        set(&mut self.sections[at].1, key, value);
    }

    /// Takes a key out.
    pub fn unset(&mut self, section: &str, key: &str) {
        for (_, keys) in self.sections.iter_mut().filter(|(name, _)| name == section) {
            keys.retain(|(known, _)| known != key);
        }
    }

    /// One more mailbox, or other settings for a known one; the values as TOML: `("inbox", "true")`.
    pub fn mailbox(&mut self, address: &str, settings: &[(&str, &str)]) {
        let address = ("address".to_owned(), quote(address));
        self.mailboxes.retain(|mailbox| mailbox.first() != Some(&address));
        let mut mailbox = vec![address];
        for (key, value) in settings {
            set(&mut mailbox, key, value);
        }
        self.mailboxes.push(mailbox);
    }

    /// Takes a mailbox out.
    pub fn drop_mailbox(&mut self, address: &str) {
        let address = ("address".to_owned(), quote(address));
        self.mailboxes.retain(|mailbox| mailbox.first() != Some(&address));
    }

    /// Microsoft is these doubles; `smtp` and `imap` are `host:port`, the host as in the certificate.
    pub fn microsoft(&mut self, tls: &Tls, entra: &Entra, smtp: &str, imap: &str) {
        self.text("microsoft", "client_id", CLIENT_ID);
        self.secret("client-secret", CLIENT_SECRET);
        self.text("microsoft", "client_secret_file", "client-secret");
        self.text("microsoft", "tenant", "example.onmicrosoft.com");
        self.text("microsoft", "authority", &entra.authority());
        self.text("microsoft", "smtp", smtp);
        self.text("microsoft", "imap", imap);
        self.text("microsoft", "ca_file", &tls.ca_file().display().to_string());
    }

    /// Odoo is this double, of the company `example.com`.
    pub fn odoo(&mut self, odoo: &Odoo) {
        self.text("odoo", "url", &odoo.url());
        self.text("odoo", "database", DATABASE);
        self.text("odoo", "login", LOGIN);
        self.secret("odoo-password", PASSWORD);
        self.text("odoo", "password_file", "odoo-password");
        self.text("odoo", "default_from", "notifications");
        self.text("odoo", "catchall_domain", "example.com");
        self.text("odoo", "bounce_alias", "bounce");
    }

    /// Writes a file beside the configuration, as a secret must be: private. Gives its path.
    pub fn secret(&self, name: &str, content: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::write(&path, content).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        path
    }

    /// Another program than the one Cargo has built with these tests.
    pub fn set_binary(&mut self, path: &Path) {
        path.clone_into(&mut self.binary);
    }

    /// An environment variable for every process.
    pub fn env(&mut self, name: &str, value: &str) {
        self.env.push((name.to_owned(), value.to_owned()));
    }

    /// The folder of configuration, secrets and store.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The file as it is written.
    pub fn toml(&self) -> String {
        let mut text = String::new();
        let mailboxes = self.mailboxes.iter().map(|keys| ("[mailbox]", keys));
        for (name, keys) in self.sections.iter().map(|(name, keys)| (name.as_str(), keys)).chain(mailboxes) {
            writeln!(text, "[{name}]").unwrap();
            for (key, value) in keys {
                writeln!(text, "{key} = {value}").unwrap();
            }
        }
        text
    }

    /// Writes the file; gives its path.
    pub fn write(&self) -> PathBuf {
        self.secret("relay.toml", &self.toml())
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.binary);
        command.env_remove("CREDENTIALS_DIRECTORY").env_remove("NOTIFY_SOCKET").env_remove("RUST_LOG");
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
        command.current_dir(self.dir.path()).stdin(Stdio::null()).kill_on_drop(true);
        command
    }

    /// Starts the daemon, without waiting for anything.
    pub fn spawn(&self) -> Relay {
        self.spawn_command(&["run"])
    }

    /// Starts another command that takes its time; what it prints is its log.
    pub fn spawn_command(&self, arguments: &[&str]) -> Relay {
        let mut command = self.command();
        command.args(arguments).arg("-c").arg(self.write()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{}: {error}", self.binary.display()));
        let log = Arc::new(Mutex::new(Vec::new()));
        let events = Events::default();
        let readers = vec![
            collect(child.stdout.take().unwrap(), Arc::clone(&log), events.clone()),
            collect(child.stderr.take().unwrap(), Arc::clone(&log), events.clone()),
        ];
        Relay { child, readers, log, events, submission: self.submission, admin: self.admin }
    }

    /// Starts the daemon, and waits until it greets an SMTP client.
    pub async fn start(&self) -> Relay {
        let mut relay = self.spawn();
        relay.ready().await;
        relay
    }

    /// Runs another command on this configuration: `cli(&["status", "--json"])`.
    pub async fn cli(&self, arguments: &[&str]) -> Output {
        let mut command = self.command();
        command.args(arguments).arg("-c").arg(self.write());
        let output = timeout(Duration::from_secs(60), command.output());
        let output = output.await.unwrap_or_else(|_| panic!("{arguments:?} does not end")).unwrap();
        Output {
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Consents for a mailbox, with a refresh token got elsewhere.
    pub async fn connect(&self, mailbox: &str, refresh_token: &str) -> Output {
        let file = self.secret("refresh-token", refresh_token);
        let output = self.cli(&["connect", mailbox, "--refresh-token-file", file.to_str().unwrap()]).await;
        std::fs::remove_file(file).unwrap();
        output
    }
}

/// What a command said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// `None`: ended by a signal.
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Output {
    /// The output, of a command that must have succeeded.
    pub fn success(self) -> String {
        assert_eq!(self.code, Some(0), "{self:?}");
        self.stdout
    }
}

/// A running daemon. Dropping it kills it.
pub struct Relay {
    child: Child,
    readers: Vec<JoinHandle<()>>,
    log: Arc<Mutex<Vec<String>>>,
    events: Events,
    pub submission: SocketAddr,
    pub admin: SocketAddr,
}

impl Relay {
    /// Waits until the submission port greets.
    ///
    /// # Panics
    /// With the log, if the process ends instead or takes too long.
    pub async fn ready(&mut self) {
        let end = Instant::now() + SOON;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                self.read_to_end().await;
                panic!("the relay has ended ({status}):\n{}", self.log().join("\n"));
            }
            if let Ok(stream) = TcpStream::connect(self.submission).await {
                let mut wire = Wire::new(stream);
                if let Ok(Ok(Some(line))) = timeout(Duration::from_secs(1), wire.line()).await
                    && line.starts_with("220")
                {
                    wire.say("QUIT");
                    let _ = timeout(Duration::from_secs(1), wire.line()).await;
                    return;
                }
            }
            assert!(Instant::now() < end, "the relay is not ready:\n{}", self.log().join("\n"));
            sleep(Duration::from_millis(10)).await;
        }
    }

    /// Hands over one mail as Odoo does.
    pub async fn send(&self, from: &str, recipients: &[&str], message: &[u8]) -> Reply {
        client::send(self.submission, from, recipients, message).await
    }

    /// The process id; `None` once it has ended.
    pub fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// SIGKILL: no chance to tidy up. Comes back when the process is gone.
    pub async fn kill9(&mut self) {
        self.child.kill().await.unwrap();
        self.read_to_end().await;
    }

    /// Sends a signal by its name: `TERM`, `HUP`, `STOP`, `CONT`.
    pub fn signal(&self, name: &str) {
        let pid = self.pid().expect("a running process");
        let sent = std::process::Command::new("kill").args(["-s", name, &pid.to_string()]).status().unwrap();
        assert!(sent.success());
    }

    /// SIGTERM, and the exit code; `None` if a signal ended it.
    ///
    /// # Panics
    /// With the log, if it is not gone within `deadline`.
    pub async fn terminate(&mut self, deadline: Duration) -> Option<i32> {
        self.signal("TERM");
        self.exit_code(deadline).await
    }

    /// Waits for the end, and gives the exit code.
    pub async fn exit_code(&mut self, deadline: Duration) -> Option<i32> {
        match timeout(deadline, self.child.wait()).await {
            Ok(status) => {
                self.read_to_end().await;
                status.unwrap().code()
            }
            Err(_) => panic!("the relay still runs after {deadline:?}:\n{}", self.log().join("\n")),
        }
    }

    /// What an ended process said last may still be in the pipe.
    async fn read_to_end(&mut self) {
        for reader in self.readers.drain(..) {
            timeout(SOON, reader).await.expect("the end of the log").unwrap();
        }
    }

    /// Every line of its log so far.
    pub fn log(&self) -> Vec<String> {
        self.log.lock().unwrap().clone()
    }

    /// How many lines contain this.
    pub fn count_log(&self, part: &str) -> usize {
        self.log.lock().unwrap().iter().filter(|line| line.contains(part)).count()
    }

    /// Waits for a line that contains this, and gives the first.
    pub async fn wait_for_log(&self, part: &str) -> String {
        eventually(SOON, &format!("a log line with {part:?}"), || {
            let log = self.log();
            log.iter().find(|line| line.contains(part)).cloned().ok_or(log)
        })
        .await
    }

    /// Its log, line by line.
    pub fn events(&self) -> &Events {
        &self.events
    }
}

fn collect(
    output: impl AsyncRead + Unpin + Send + 'static,
    log: Arc<Mutex<Vec<String>>>,
    events: Events,
) -> JoinHandle<()> {
    tokio::spawn(async move {
        let mut lines = BufReader::new(output).split(b'\n');
        while let Ok(Some(line)) = lines.next_segment().await {
            let line = String::from_utf8_lossy(&line).into_owned();
            events.emit(|| format!("relay: {line}"));
            log.lock().unwrap().push(line);
        }
    })
}

/// The program as Cargo built it for these tests; for an example, which is not told, the one beside it.
fn binary() -> PathBuf {
    option_env!("CARGO_BIN_EXE_outlook-relay").map_or_else(
        || {
            let example = std::env::current_exe().unwrap();
            example.parent().and_then(Path::parent).unwrap().join("outlook-relay")
        },
        PathBuf::from,
    )
}

fn set(keys: &mut Vec<(String, String)>, key: &str, value: &str) {
    keys.retain(|(known, _)| known != key);
    keys.push((key.to_owned(), value.to_owned()));
}

/// A TOML basic string: the same escapes as JSON's.
fn quote(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}
