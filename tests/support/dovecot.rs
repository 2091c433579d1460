//! A real server with XOAUTH2: Dovecot (IMAP and submission), and behind it Postfix's smtp-sink, which keeps every
//! message as a file. Dovecot checks the tokens of [`Entra`] by itself, as JWTs.

use std::fs::{self, Permissions};
use std::net::SocketAddr;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use memchr::memmem;
use tempfile::TempDir;
use tokio::net::TcpStream;

use super::entra::Entra;
use super::imap_data::header_lines;
use super::server::free_ports;
use super::smtp::Hook;
use super::tls::Tls;
use super::wait::{SOON, eventually};

/// The whole configuration; upper-case words in braces are filled in.
const CONFIG: &str = "
base_dir = {D}/run
state_dir = {D}/run
log_path = {D}/dovecot.log
instance_name = relay-test
listen = 127.0.0.1
protocols = imap submission
hostname = relay-test.localhost
default_internal_user = {USER}
default_internal_group = {GROUP}
default_login_user = {USER}
service anvil {
  chroot =
  # Without this, failed logins from one address delay the later ones by many seconds.
  unix_listener anvil-auth-penalty {
    mode = 0
  }
}
ssl = required
ssl_cert = <{D}/cert.pem
ssl_key = <{D}/key.pem
auth_mechanisms = xoauth2
auth_failure_delay = 0
passdb {
  driver = oauth2
  mechanisms = xoauth2
  args = {D}/oauth2.conf.ext
}
userdb {
  driver = static
  args = uid={USER} gid={GROUP} home={D}/mail/%Lu
}
mail_location = maildir:~/Maildir
first_valid_uid = 1
first_valid_gid = 1
namespace inbox {
  inbox = yes
  mailbox Sent {
    auto = create
    special_use = \\Sent
  }
}
service imap-login {
  chroot =
  inet_listener imap {
    port = 0
  }
  inet_listener imaps {
    port = {IMAPS}
    ssl = yes
  }
}
service submission-login {
  chroot =
  inet_listener submission {
    port = {SUBMISSION}
  }
  inet_listener submissions {
    port = 0
  }
}
submission_relay_host = 127.0.0.1
submission_relay_port = {SINK}
submission_max_mail_size = 40M
";

const OAUTH2: &str = "
introspection_mode = local
local_validation_key_dict = fs:posix:prefix={D}/keys/
username_attribute = upn
username_format = %Lu
";

/// One message in a Maildir folder.
#[derive(Clone, Debug)]
pub struct MaildirMessage {
    /// The letters behind `:2,`: `S` is seen.
    pub flags: String,
    pub raw: Vec<u8>,
}

/// One message that went through submission into the sink.
#[derive(Clone, Debug, Default)]
pub struct Sunk {
    pub mail_from: String,
    pub mail_params: Vec<String>,
    pub recipients: Vec<String>,
    /// As submitted, line ends restored, but for what Dovecot itself puts in front.
    pub raw: Vec<u8>,
}

/// The mailboxes' files. Clones share them.
#[derive(Clone)]
struct Files {
    root: PathBuf,
    /// Whom they are given away to, where root starts the servers.
    ids: Option<(u32, u32)>,
}

/// The servers, in a folder of their own. Dropping stops them, and waits until they are gone.
pub struct Dovecot {
    dir: TempDir,
    account: Account,
    dovecot: Option<Child>,
    sink: Option<Child>,
    imaps: u16,
    submission: u16,
    sink_port: u16,
}

/// Whom the servers run as: not root, which Dovecot refuses to deliver to.
struct Account {
    user: String,
    group: String,
    /// Set when root starts the servers, and files have to be given away.
    ids: Option<(u32, u32)>,
}

impl Dovecot {
    /// Starts both, and waits until they answer.
    ///
    /// # Panics
    /// If they are not installed: these tests are never skipped.
    pub async fn start(tls: &Tls, entra: &Entra) -> Self {
        let [imaps, submission, sink_port] = free_ports();
        let dir = TempDir::new().unwrap();
        let account = Account::find();
        let mut server = Self { dir, account, dovecot: None, sink: None, imaps, submission, sink_port };
        let path = server.dir.path().to_path_buf();
        fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
        let fill = |text: &str| {
            text.replace("{D}", path.to_str().unwrap())
                .replace("{USER}", &server.account.user)
                .replace("{GROUP}", &server.account.group)
                .replace("{IMAPS}", &imaps.to_string())
                .replace("{SUBMISSION}", &submission.to_string())
                .replace("{SINK}", &sink_port.to_string())
        };
        fs::write(path.join("dovecot.conf"), fill(CONFIG)).unwrap();
        fs::write(path.join("oauth2.conf.ext"), fill(OAUTH2)).unwrap();
        fs::write(path.join("cert.pem"), &tls.cert_pem).unwrap();
        fs::write(path.join("key.pem"), &tls.key_pem).unwrap();
        fs::create_dir_all(path.join("keys/default/HS256")).unwrap();
        fs::write(path.join("keys/default/HS256/default"), STANDARD.encode(entra.signing_key())).unwrap();
        for folder in ["mail", "sink"] {
            server.files().make_dir(&path.join(folder));
        }
        server.up().await;
        server
    }

    /// For the key `imap`.
    pub fn imap_endpoint(&self) -> String {
        format!("localhost:{}", self.imaps)
    }

    /// For the key `smtp`.
    pub fn smtp_endpoint(&self) -> String {
        format!("localhost:{}", self.submission)
    }

    pub fn imap_addr(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.imaps))
    }

    pub fn smtp_addr(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.submission))
    }

    /// Starts again after [`Self::down`], on the same ports with the same mail.
    pub async fn up(&mut self) {
        assert!(self.dovecot.is_none(), "it runs already");
        let path = self.dir.path();
        let mut sink = program("smtp-sink", "/usr/sbin/smtp-sink");
        if self.account.ids.is_some() {
            sink.args(["-u", &self.account.user]);
        }
        let template = path.join("sink/%M.").display().to_string();
        sink.args(["-a", "-c", "-d", &template, &format!("127.0.0.1:{}", self.sink_port), "100"]);
        self.sink = Some(spawn(sink, &path.join("sink.log")));
        let mut dovecot = program("dovecot", "/usr/sbin/dovecot");
        dovecot.arg("-F").arg("-c").arg(path.join("dovecot.conf"));
        self.dovecot = Some(spawn(dovecot, &path.join("start.log")));
        for port in [self.sink_port, self.imaps, self.submission] {
            let end = Instant::now() + SOON;
            while TcpStream::connect(("127.0.0.1", port)).await.is_err() {
                let ended = self.dovecot.as_mut().and_then(|child| child.try_wait().unwrap());
                assert!(ended.is_none() && Instant::now() < end, "Dovecot does not start: {}", self.log());
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    }

    /// Stops both; comes back when they are gone, which takes Dovecot some seconds.
    pub fn down(&mut self) {
        for child in [self.dovecot.take(), self.sink.take()].into_iter().flatten() {
            stop(child);
        }
    }

    /// What Dovecot wrote, for a failure's message.
    pub fn log(&self) -> String {
        ["start.log", "dovecot.log", "sink.log"]
            .map(|name| fs::read_to_string(self.dir.path().join(name)).unwrap_or_default())
            .concat()
    }

    /// Puts a new message into a folder, as a delivery does. `INBOX`, or a folder's name.
    pub fn deliver(&self, mailbox: &str, folder: &str, raw: &[u8]) {
        self.files().deliver(mailbox, folder, raw);
    }

    /// For [`super::smtp::Smtp::set_hook`]: every message that the scripted server takes is filed in the folder of sent
    /// mail of its mailbox, as Exchange does.
    pub fn sent_items(&self) -> Hook {
        let files = self.files();
        Arc::new(move |sent| files.deliver(&sent.mailbox, "Sent", &sent.data))
    }

    /// The messages of a folder, oldest name first, those nobody has looked at included.
    pub fn messages(&self, mailbox: &str, folder: &str) -> Vec<MaildirMessage> {
        let maildir = self.files().maildir(mailbox, folder);
        let mut found = Vec::new();
        for part in ["new", "cur"] {
            for entry in fs::read_dir(maildir.join(part)).into_iter().flatten() {
                let path = entry.unwrap().path();
                let name = path.file_name().unwrap().to_string_lossy().into_owned();
                // Dovecot may rename it in between: then the caller, who polls, sees it the next time.
                if let Ok(raw) = fs::read(&path) {
                    let flags = name.split_once(":2,").map_or("", |(_, flags)| flags).to_owned();
                    found.push((name, MaildirMessage { flags, raw }));
                }
            }
        }
        found.sort_by(|a, b| a.0.cmp(&b.0));
        found.into_iter().map(|(_, message)| message).collect()
    }

    /// Every message that has arrived whole in the sink, in no order.
    pub fn sunk(&self) -> Vec<Sunk> {
        let mut all = Vec::new();
        for entry in fs::read_dir(self.dir.path().join("sink")).unwrap() {
            // A transaction that was given up takes its file away again.
            if let Ok(dump) = fs::read(entry.unwrap().path()) {
                all.extend(parse_dump(&dump).map(without_trace));
            }
        }
        all
    }

    /// Waits until the sink has `n` messages, and gives them.
    pub async fn wait_for_sunk(&self, n: usize) -> Vec<Sunk> {
        eventually(SOON, &format!("{n} messages in the sink"), || {
            let all = self.sunk();
            if all.len() >= n { Ok(all) } else { Err((all.len(), self.log())) }
        })
        .await
    }

    fn files(&self) -> Files {
        Files { root: self.dir.path().to_path_buf(), ids: self.account.ids }
    }
}

impl Files {
    /// Written under `tmp`, then renamed.
    fn deliver(&self, mailbox: &str, folder: &str, raw: &[u8]) {
        let maildir = self.maildir(mailbox, folder);
        for part in ["", "cur", "new", "tmp"] {
            self.make_dir(&maildir.join(part));
        }
        let name = format!("{}.{:032x}.test", jiff::Timestamp::now().as_second(), rand::random::<u128>());
        let tmp = maildir.join("tmp").join(&name);
        fs::write(&tmp, raw).unwrap();
        self.give_away(&tmp);
        fs::rename(&tmp, maildir.join("new").join(&name)).unwrap();
    }

    fn maildir(&self, mailbox: &str, folder: &str) -> PathBuf {
        let home = self.root.join("mail").join(mailbox.to_lowercase());
        self.make_dir(&home);
        let inbox = home.join("Maildir");
        if folder.eq_ignore_ascii_case("INBOX") { inbox } else { inbox.join(format!(".{folder}")) }
    }

    fn make_dir(&self, path: &Path) {
        if !path.exists() {
            if let Some(parent) = path.parent().filter(|parent| !parent.exists()) {
                self.make_dir(parent);
            }
            // Dovecot may have been quicker.
            let _ = fs::create_dir(path);
            self.give_away(path);
        }
    }

    fn give_away(&self, path: &Path) {
        if let Some((user, group)) = self.ids {
            chown(path, Some(user), Some(group)).unwrap();
        }
    }
}

impl Drop for Dovecot {
    fn drop(&mut self) {
        self.down();
    }
}

impl Account {
    /// Root starts the servers as nobody; anybody else as himself.
    fn find() -> Self {
        let user = id(&["-un"]);
        if user != "root" {
            return Self { user, group: id(&["-gn"]), ids: None };
        }
        let ids = (id(&["-u", "nobody"]).parse().unwrap(), id(&["-g", "nobody"]).parse().unwrap());
        Self { user: "nobody".to_owned(), group: id(&["-gn", "nobody"]), ids: Some(ids) }
    }
}

fn id(arguments: &[&str]) -> String {
    let output = Command::new("id").args(arguments).output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// A program of a system folder, which is not in everybody's PATH.
fn program(name: &str, path: &str) -> Command {
    assert!(Path::new(path).exists(), "{name} is not at {path}: run tests/run, which installs it");
    Command::new(path)
}

fn spawn(mut command: Command, log: &Path) -> Child {
    let log = fs::File::create(log).unwrap();
    command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
    command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"))
}

/// SIGTERM, and after ten seconds SIGKILL; comes back when the process is gone.
fn stop(mut child: Child) {
    let _ = Command::new("kill").args(["-s", "TERM", &child.id().to_string()]).status();
    let end = Instant::now() + Duration::from_secs(10);
    while matches!(child.try_wait(), Ok(None)) {
        if Instant::now() > end {
            let _ = child.kill();
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Without the Received field of Dovecot's submission service.
fn without_trace(mut sunk: Sunk) -> Sunk {
    let trace = header_lines(&sunk.raw).next().map_or(0, |(name, field)| {
        let own = memmem::find(field, b"by relay-test.localhost with").is_some();
        if own && name == "Received" { field.len() } else { 0 }
    });
    sunk.raw.drain(..trace);
    sunk
}

/// A file of smtp-sink: `X-…-Args` lines with the envelope, a Received field of its own, the message with LF for line
/// ends, an empty line. `None` while it is being written.
pub fn parse_dump(dump: &[u8]) -> Option<Sunk> {
    let mut rest = dump.strip_suffix(b"\n").filter(|rest| rest.ends_with(b"\n"))?;
    let mut sunk = Sunk::default();
    let mut line = || {
        let at = memchr::memchr(b'\n', rest)? + 1;
        let (line, others) = rest.split_at(at);
        rest = others;
        Some((String::from_utf8_lossy(line).trim_end().to_owned(), others))
    };
    let mut message = loop {
        let (text, others) = line()?;
        let address =
            |rest: &str| rest.trim_start_matches('<').split('>').next().unwrap_or_default().to_owned();
        if let Some(args) = text.strip_prefix("X-Mail-Args: ") {
            sunk.mail_from = address(args);
            sunk.mail_params = args.split_whitespace().skip(1).map(str::to_owned).collect();
        } else if let Some(args) = text.strip_prefix("X-Rcpt-Args: ") {
            sunk.recipients.push(address(args));
        } else if text.starts_with("Received: ") {
            break others;
        } else if !text.starts_with("X-") {
            return None;
        }
    };
    while message.first() == Some(&b'\t') {
        message = &message[memchr::memchr(b'\n', message)? + 1..];
    }
    for line in message.split_inclusive(|byte| *byte == b'\n') {
        sunk.raw.extend_from_slice(line.strip_suffix(b"\n").unwrap_or(line));
        sunk.raw.extend_from_slice(b"\r\n");
    }
    Some(sunk)
}
