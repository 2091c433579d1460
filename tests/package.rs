//! The Debian package, in a tree of its own: checked, installed and used as the README tells a new user, upgraded with mail
//! in the queue, removed, purged. As root, or by sudo, which `tests/run` asks for.
#![expect(
    clippy::panic,
    clippy::print_stdout,
    reason = "test code: a failure stops the test; it shows its time"
)]

use crate::company::{JANE, JOHN, NOTIFICATIONS};
use crate::readme;
use crate::support::client::{self, SmtpClient, message};
use crate::support::entra::CLIENT_ID;
use crate::support::odoo::{DATABASE, LOGIN};
use crate::support::relay::Config;
use crate::support::wait::{SOON, eventually, until};
use crate::support::world::World;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Instant;
use tempfile::TempDir;

/// A command that root runs.
fn as_root(program: &str) -> Command {
    if std::fs::metadata("/proc/self").unwrap().uid() == 0 {
        return Command::new(program);
    }
    let mut sudo = Command::new("sudo");
    sudo.args(["-n", program]);
    sudo
}

/// What a command printed, on either side; it must have succeeded.
fn success(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    printed(&format!("{command:?}"), &output)
}

fn printed(what: &str, output: &Output) -> String {
    let said = [output.stdout.as_slice(), &output.stderr].map(String::from_utf8_lossy).concat();
    assert!(output.status.success(), "{what}: {}\n{said}", output.status);
    said
}

/// The package of this very program; the revision tells packages of one version apart.
fn package(folder: &Path, revision: &str) -> PathBuf {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/package");
    let mut build = Command::new(script);
    build.args(["--profile", "dev", "--no-build", "--revision", revision, "--output"]).arg(folder);
    let output = build.output().unwrap();
    printed("deploy/package", &output);
    PathBuf::from(String::from_utf8(output.stdout).unwrap().trim())
}

/// A minimal Debian of the machine's own release. Dropping it deletes it.
struct Tree {
    folder: PathBuf,
    _above: TempDir,
}

impl Tree {
    fn new() -> Self {
        let indexes = success(Command::new("apt-get").args([
            "indextargets",
            "--format",
            "$(ORIGIN) $(RELEASE) $(REPO_URI)",
            "Created-By: Packages",
        ]));
        let release = std::fs::read_to_string("/etc/os-release").unwrap();
        let release = release.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME=")).unwrap();
        let own = format!("Debian {release} ");
        let mirror = indexes.lines().find_map(|line| line.strip_prefix(&own));
        let mirror = mirror.unwrap_or_else(|| panic!("apt has no mirror of {own}: {indexes}"));
        let above = TempDir::new().unwrap();
        let tree = Self { folder: above.path().join("debian"), _above: above };
        success(as_root("debootstrap").args(["--variant=minbase", release]).arg(&tree.folder).arg(mirror));
        tree.put("etc/hosts", b"127.0.0.1 localhost\n", "644");
        // What somebody at the keyboard answers.
        tree.put("etc/apt/apt.conf.d/yes", b"APT::Get::Assume-Yes \"true\";\n", "644");
        tree
    }

    /// A path in it, from outside.
    fn at(&self, path: &str) -> PathBuf {
        self.folder.join(path.trim_start_matches('/'))
    }

    /// Writes a file of root's.
    fn put(&self, path: &str, content: &[u8], mode: &str) {
        let from = self.folder.with_extension("new");
        std::fs::write(&from, content).unwrap();
        success(as_root("install").args(["-D", "-m", mode]).arg(from).arg(self.at(path)));
    }

    fn read(&self, path: &str) -> String {
        success(as_root("cat").arg(self.at(path)))
    }

    fn exists(&self, path: &str) -> bool {
        as_root("test").args(["-e"]).arg(self.at(path)).status().unwrap().success()
            || as_root("test").args(["-L"]).arg(self.at(path)).status().unwrap().success()
    }

    /// Root's shell in it, with an empty environment.
    fn shell(&self, script: &str) -> Command {
        // With /proc, for /dev/stdin; the mount goes when the command does.
        let mounted = "mount -t proc proc \"$0/proc\" && exec chroot \"$0\" \"$@\"";
        let mut command = as_root("unshare");
        command.args(["--mount", "sh", "-c", mounted]).arg(&self.folder);
        command.args(["/usr/bin/env", "-i", "HOME=/root", "DEBIAN_FRONTEND=noninteractive"]);
        command.arg("PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        command.args(["/bin/sh", "-c", script]);
        command
    }

    /// What a command in it printed; it must have succeeded.
    fn run(&self, script: &str) -> String {
        success(&mut self.shell(script))
    }

    /// Starts the relay, and waits until it greets.
    async fn start(&self, at: SocketAddr) -> Daemon {
        let log = self.folder.with_extension("log");
        let said = std::fs::File::create(&log).unwrap();
        let mut command = self.shell("echo $$ >/run/relay.pid; exec outlook-relay run");
        let mut child = command.stdin(Stdio::null()).stderr(said).spawn().unwrap();
        let end = Instant::now() + SOON;
        while SmtpClient::try_connect(at).await.is_none() {
            let ended = child.try_wait().unwrap();
            let log = std::fs::read_to_string(&log).unwrap();
            assert!(ended.is_none() && Instant::now() < end, "{ended:?}: {log}");
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        Daemon { child, pid: self.read("run/relay.pid").trim().to_owned() }
    }

    /// Has systemd run in it, as far as a package can see: what it is asked to do is noted.
    fn play_systemd(&self) {
        self.run("mkdir -p /run/systemd/system");
        let script = "#!/bin/sh\necho \"$*\" >>/run/asked\ncase $* in *is-enabled*) echo enabled;; *is-active*) exit 3;; *is-failed*) test -e /run/failed;; esac\n";
        self.put("usr/bin/systemctl", script.as_bytes(), "755");
    }

    /// What systemd was asked to do since the last question, but for queries and reading its units anew, which it always is.
    fn asked(&self) -> Vec<String> {
        let asked = self.run("cat /run/asked; rm /run/asked");
        assert!(asked.contains("daemon-reload"), "{asked}");
        let asked =
            asked.lines().map(|line| line.trim_start_matches("--quiet ").trim_start_matches("--system "));
        asked.filter(|line| !line.contains("is-") && *line != "daemon-reload").map(str::to_owned).collect()
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        let _ = as_root("rm").args(["-rf", "--one-file-system"]).arg(&self.folder).status();
    }
}

/// The relay in the tree. Dropping it kills it.
struct Daemon {
    child: Child,
    pid: String,
}

impl Daemon {
    fn stop(mut self) {
        success(as_root("kill").arg(&self.pid));
        assert!(self.child.wait().unwrap().success());
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            let _ = as_root("kill").args(["-9", &self.pid]).status();
            let _ = self.child.wait();
        }
    }
}

/// Every file of the package, with its mode; all are root's.
const FILES: [(&str, &str); 17] = [
    ("/etc/outlook-relay", "755"),
    ("/etc/outlook-relay/relay.toml", "644"),
    ("/usr/bin/outlook-relay", "755"),
    ("/usr/lib/systemd/system/outlook-relay.service", "644"),
    ("/usr/lib/systemd/system/outlook-relay.socket", "644"),
    ("/usr/share/bash-completion/completions/outlook-relay", "644"),
    ("/usr/share/fish/vendor_completions.d/outlook-relay.fish", "644"),
    ("/usr/share/zsh/vendor-completions/_outlook-relay", "644"),
    ("/usr/share/man/man1/outlook-relay.1.gz", "644"),
    ("/usr/share/man/man5/relay.toml.5.gz", "644"),
    ("/usr/share/doc/outlook-relay/README.md", "644"),
    ("/usr/share/doc/outlook-relay/copyright", "644"),
    ("/usr/share/doc/outlook-relay/changelog.gz", "644"),
    ("/usr/share/doc/outlook-relay/changelog.Debian.gz", "644"),
    ("/usr/share/doc/outlook-relay/examples/alerts.yml", "644"),
    ("/usr/share/doc/outlook-relay/examples/grafana.json", "644"),
    ("/usr/share/doc/outlook-relay/examples/nginx.conf", "644"),
];

const LINKS: [&str; 2] = [
    "/etc/systemd/system/multi-user.target.wants/outlook-relay.service",
    "/etc/systemd/system/sockets.target.wants/outlook-relay.socket",
];

/// What only the reader of the README knows, for the configuration that it shows: here, where the doubles are.
fn adapted(shown: &str, world: &World, config: &Config) -> String {
    let microsoft = format!(
        "[microsoft]\nauthority = \"{}\"\nsmtp = \"{}\"\nimap = \"{}\"\nca_file = \"extra-roots.pem\"\n",
        world.entra.authority(),
        world.smtp.endpoint(),
        world.imap.endpoint()
    );
    let mut text = shown.to_owned();
    for (old, new) in [
        ("[microsoft]\n", microsoft.as_str()),
        ("00000000-0000-0000-0000-000000000000", CLIENT_ID),
        ("http://127.0.0.1:8069", &world.odoo.url()),
        ("\"prod\"", &format!("{DATABASE:?}")),
        ("\"mailgate\"", &format!("{LOGIN:?}")),
    ] {
        assert_eq!(text.matches(old).count(), 1, "{old}: {text}");
        text = text.replace(old, new);
    }
    let (submission, admin) = (config.submission, config.admin);
    format!("{text}\n[submission]\nlisten = [\"{submission}\"]\n[admin]\nlisten = \"{admin}\"\n")
}

async fn hand_over(at: SocketAddr, id: &str) {
    let mail = message(JOHN, "a@x.test", id, "Hi");
    let reply = client::send(at, "bounce@example.com", &["a@x.test"], &mail).await;
    assert_eq!(reply.code, 250, "{id}: {reply:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_package_is_installed_used_upgraded_removed_and_purged() {
    let start = Instant::now();
    let folder = TempDir::new().unwrap();
    let packages = folder.path().to_owned();
    let building = tokio::task::spawn_blocking(move || {
        let [first, second] = ["1", "2"].map(|revision| package(&packages, revision));
        let bytes = std::fs::read(&first).unwrap();
        let again = package(&packages, "1");
        assert!(bytes == std::fs::read(again).unwrap(), "one program, and two different packages");
        let fatal = ["--fail-on", "error,warning", "--allow-root"];
        success(Command::new("lintian").args(fatal).arg(&first));
        [first, second]
    });
    let tree = tokio::task::spawn_blocking(Tree::new).await.unwrap();
    let [first, second] = building.await.unwrap();
    println!("packages and an empty Debian: {:.1?}", start.elapsed());
    for file in [&first, &second] {
        let name = file.file_name().unwrap().to_str().unwrap();
        tree.put(&format!("root/{name}"), &std::fs::read(file).unwrap(), "644");
    }

    let start = Instant::now();
    let world = World::start().await;
    let config = world.config();
    use_as_told(&tree, &world, &config).await;
    println!("from the package to the first mail, by the README: {:.1?}", start.elapsed());

    let start = Instant::now();
    upgrade(&tree, &world, &config, second.file_name().unwrap().to_str().unwrap()).await;
    remove_and_purge(&tree, second.file_name().unwrap().to_str().unwrap());
    println!("upgraded, removed and purged: {:.1?}", start.elapsed());
}

/// Each line of the README's two blocks is run as it stands; only what a person types is made up.
async fn use_as_told(tree: &Tree, world: &World, config: &Config) {
    let relay = readme::section("2. The relay");
    let shown = readme::blocks(relay, "toml").concat().join("\n");
    tree.put("root/relay.toml", adapted(&shown, world, config).as_bytes(), "644");
    tree.put("root/extra-roots.pem", &std::fs::read(world.tls.ca_file()).unwrap(), "644");
    let secret = |name: &str| std::fs::read(config.dir().join(name)).unwrap();
    tree.put("root/client-secret", &secret("client-secret"), "600");
    tree.put("root/odoo-password", &secret("odoo-password"), "600");
    // The tree has no sudo, and nobody at a keyboard.
    let person = "cd /root; sudo() { \"$@\"; }; sudoedit() { cp relay.toml extra-roots.pem \"${1%/*}\"; }; ";
    let architecture = success(Command::new("dpkg").arg("--print-architecture"));
    let mut steps: Vec<String> = Vec::new();
    for line in readme::commands(readme::blocks(relay, "sh").first().unwrap()) {
        let line = line.replace("amd64", architecture.trim());
        let typed = line.rsplit('/').next().filter(|_| line.contains("/dev/stdin"));
        let typed = typed.map(|name| format!(" <{name}")).unwrap_or_default();
        let said = tree.run(&format!("{person}{line}{typed}"));
        if line.contains(" apt ") {
            installed(tree, &said);
        }
        steps.push(line);
    }
    assert_eq!(steps.len(), 5, "{steps:#?}");
    let checked = tree.run("outlook-relay check");
    assert!(checked.contains("well: 3 mailboxes, 1 of them with their inbox"), "{checked}");

    for mailbox in [NOTIFICATIONS, JOHN, JANE] {
        tree.put("root/token", world.entra.add_mailbox(mailbox).as_bytes(), "600");
        tree.run(&format!("outlook-relay connect {mailbox} --refresh-token-file /root/token"));
    }
    let mut daemon = None;
    for line in readme::commands(readme::blocks(readme::section("5. systemd"), "sh").first().unwrap()) {
        match line.as_str() {
            "sudo systemctl start outlook-relay.socket outlook-relay.service" => {
                daemon = Some(tree.start(config.submission).await);
            }
            "journalctl -fu outlook-relay" => {}
            line => drop(tree.run(&format!("{person}{line}"))),
        }
    }
    hand_over(config.submission, "first@t").await;
    until(SOON, "the first mail", || world.smtp.count() == 1).await;

    // Its way to a backup, and back to one.
    tree.run("mkdir /backup /elsewhere");
    let [backup, restore] = readme::blocks(readme::section("Backup and upgrade"), "sh").try_into().unwrap();
    for line in readme::commands(&backup) {
        tree.run(&format!("{person}{line}"));
    }
    daemon.unwrap().stop();
    let lines = readme::commands(&restore).into_iter().filter(|line| !line.starts_with("sudo systemctl "));
    for line in lines {
        assert_eq!(line, "sudo outlook-relay store restore /backup/relay-2026-11-21.db");
        tree.run(&format!("{person}{}", line.replace("2026-11-21", "$(date +%F)")));
    }
}

/// Fresh from apt, nothing configured.
fn installed(tree: &Tree, said: &str) {
    assert!(said.contains("is not started before it is configured"), "{said}");
    let listed = tree.run("dpkg -L outlook-relay");
    for (path, mode) in FILES {
        assert!(listed.lines().any(|line| line == path), "{path}: {listed}");
        assert_eq!(
            tree.run(&format!("stat -c '%U:%G %a' {path}")).trim(),
            format!("root:root {mode}"),
            "{path}"
        );
    }
    assert_eq!(tree.run("dpkg --verify outlook-relay"), "");
    let conffiles = tree.run("dpkg-query -W -f '${Conffiles}' outlook-relay");
    assert!(conffiles.trim().starts_with("/etc/outlook-relay/relay.toml "), "{conffiles}");
    assert_eq!(conffiles.trim().lines().count(), 1, "{conffiles}");
    let needed = tree.run("dpkg-query -W -f '${Depends}' outlook-relay");
    assert!(needed.contains("libc6 (>= ") && needed.contains("ca-certificates"), "{needed}");
    for link in LINKS {
        assert!(tree.exists(link), "{link}");
    }
    assert!(!tree.exists("/var/lib/outlook-relay"), "nothing ran");
    let checked = tree.run("outlook-relay check");
    assert!(checked.contains("microsoft.client_id: is the placeholder of the shipped file"), "{checked}");
    for page in ["man1/outlook-relay.1.gz", "man5/relay.toml.5.gz"] {
        tree.run(&format!("zcat /usr/share/man/{page} | grep -q '^.TH '"));
    }
}

async fn upgrade(tree: &Tree, world: &World, config: &Config, package: &str) {
    let install = format!("apt-get install --reinstall /root/{package}");
    tree.play_systemd();
    let configured = tree.read("/etc/outlook-relay/relay.toml");
    let daemon = tree.start(config.submission).await;
    world.smtp.server.down().await;
    for id in ["second@t", "third@t"] {
        hand_over(config.submission, id).await;
    }
    let said = tree.run(&install);
    assert_eq!(tree.asked(), ["try-restart outlook-relay.service"], "{said}");
    assert!(tree.run("dpkg-query -W outlook-relay").trim().ends_with("-2"));
    assert_eq!(tree.read("/etc/outlook-relay/relay.toml"), configured);
    // A socket unit that has failed is no stopped one: mail would be refused for as long as nobody looks.
    tree.run("touch /run/failed");
    let said = tree.run(&install);
    let again = ["stop outlook-relay.service", "start outlook-relay.socket outlook-relay.service"];
    assert_eq!(tree.asked(), again, "{said}");
    tree.run("rm /run/failed");
    // What systemd would have done; the port that it holds meanwhile is tests/socket.rs's.
    daemon.stop();
    let waiting = tree.run("outlook-relay queue list");
    assert_eq!(waiting.matches("a@x.test").count(), 2, "{waiting}");
    world.smtp.server.up().await;
    let daemon = tree.start(config.submission).await;
    // Those that are being sent already are not tried again.
    tree.run("outlook-relay queue retry --all || true");
    eventually(SOON * 2, "what was in the queue", || {
        let mails = world.smtp.delivered();
        let ids: BTreeSet<String> = mails.iter().filter_map(id).collect();
        if mails.len() == 3 && ids.len() == 3 { Ok(()) } else { Err(ids) }
    })
    .await;

    // A version that cannot use the configuration leaves the one alone that runs.
    tree.put("/etc/outlook-relay/relay.toml", format!("{configured}nonsense = 1\n").as_bytes(), "644");
    let said = tree.run(&install);
    assert!(said.contains("is not restarted") && said.contains("admin.nonsense"), "{said}");
    assert_eq!(tree.asked(), [""; 0], "{said}");
    assert_eq!(tree.read("/etc/outlook-relay/relay.toml"), format!("{configured}nonsense = 1\n"));
    // Nor does the file that the package ships take its place, as after a Y to apt's question.
    tree.put("/etc/outlook-relay/relay.toml", include_bytes!("../config/relay.toml"), "644");
    tree.put("/etc/outlook-relay/relay.toml.dpkg-old", configured.as_bytes(), "644");
    let said = tree.run(&install);
    assert!(said.contains("is not restarted") && said.contains("Yours is kept: mv "), "{said}");
    assert_eq!(tree.asked(), [""; 0], "{said}");
    tree.run("mv /etc/outlook-relay/relay.toml.dpkg-old /etc/outlook-relay/relay.toml");
    daemon.stop();
}

fn id(mail: &crate::support::smtp::Delivered) -> Option<String> {
    mail.text().lines().find_map(|line| line.strip_prefix("Message-Id: ").map(str::to_owned))
}

fn remove_and_purge(tree: &Tree, package: &str) {
    tree.run("apt-get remove outlook-relay");
    assert_eq!(tree.asked(), ["stop outlook-relay.socket outlook-relay.service"]);
    let kept = [
        "/etc/outlook-relay/relay.toml",
        "/etc/outlook-relay/client-secret",
        "/var/lib/outlook-relay/relay.db",
    ];
    assert!(kept.iter().all(|path| tree.exists(path)) && !tree.exists("/usr/bin/outlook-relay"));

    let said = tree.run(&format!("apt-get install /root/{package}"));
    assert_eq!(tree.asked(), ["start outlook-relay.socket outlook-relay.service"], "{said}");
    assert!(LINKS.iter().all(|link| tree.exists(link)));
    assert_eq!(tree.run("outlook-relay queue list"), "The queue is empty.\n");

    tree.run("apt-get purge outlook-relay");
    let left = "find / -xdev \\( -path /proc -o -path /sys -o -path /root -o -path /backup -o -path /var/log \\) -prune -o -name '*outlook-relay*' -print";
    assert_eq!(tree.run(left), "");
}
