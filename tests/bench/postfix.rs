//! Debian's Postfix, with a configuration and a queue of its own; it has to be run as root.

use crate::Result;
use crate::outgoing::CONNECTIONS;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// What it does with a message.
#[derive(Clone, Copy)]
pub(crate) enum Sends {
    /// Nothing: it keeps it.
    Held,
    /// It hands it on, over STARTTLS and AUTH, and keeps connections open.
    To(SocketAddr),
}

/// A running Postfix.
pub(crate) struct Postfix {
    folder: PathBuf,
    pub(crate) address: SocketAddr,
}

impl Postfix {
    pub(crate) fn start(folder: &Path, sends: Sends) -> Result<Self> {
        let folder = folder.to_path_buf();
        for name in ["", "conf", "spool", "data"] {
            std::fs::create_dir_all(folder.join(name))?;
            std::fs::set_permissions(folder.join(name), PermissionsExt::from_mode(0o755))?;
        }
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        std::fs::write(folder.join("conf/main.cf"), main_cf(&folder, sends))?;
        std::fs::write(folder.join("conf/master.cf"), MASTER_CF.replace("ADDRESS", &address.to_string()))?;
        let owned = Command::new("chown").arg("postfix").arg(folder.join("data")).status()?;
        let postfix = Self { folder, address };
        if !owned.success() || !postfix.control("start")? {
            return Err(
                "Postfix does not start: it is started by root, and Debian's package postfix has it".into()
            );
        }
        let deadline = Instant::now() + Duration::from_secs(30);
        while TcpStream::connect(address).is_err() {
            if Instant::now() > deadline {
                return Err("Postfix does not listen".into());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(postfix)
    }

    fn control(&self, what: &str) -> Result<bool> {
        let mut command = Command::new("postfix");
        command.arg("-c").arg(self.folder.join("conf")).arg(what);
        Ok(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status()?.success())
    }

    /// The process that starts all others.
    pub(crate) fn master(&self) -> Result<u32> {
        Ok(std::fs::read_to_string(self.folder.join("spool/pid/master.pid"))?.trim().parse()?)
    }
}

impl Drop for Postfix {
    fn drop(&mut self) {
        drop(self.control("stop"));
    }
}

fn main_cf(folder: &Path, sends: Sends) -> String {
    let common = format!(
        "compatibility_level = 3.6\nqueue_directory = {0}/spool\ndata_directory = {0}/data\n\
         inet_interfaces = 127.0.0.1\ninet_protocols = ipv4\nmynetworks = 127.0.0.0/8\nmyhostname = bench.test\n\
         mydestination =\nalias_maps =\nlocal_recipient_maps =\nmaillog_file =\n\
         smtpd_recipient_restrictions = permit_mynetworks, reject\nsmtpd_client_connection_count_limit = 0\n\
         default_process_limit = 200\nmessage_size_limit = 36700160\n",
        folder.display()
    );
    common
        + &match sends {
            Sends::Held => "smtpd_client_restrictions = check_client_access static:HOLD\n".to_owned(),
            Sends::To(upstream) => format!(
                "relayhost = [127.0.0.1]:{}\nsmtp_tls_security_level = encrypt\nsmtp_tls_connection_reuse = yes\n\
                 smtp_sasl_auth_enable = yes\nsmtp_sasl_password_maps = static:john@example.com:token\n\
                 smtp_sasl_security_options =\nsmtp_sasl_tls_security_options =\n\
                 smtp_connection_cache_on_demand = yes\nsmtp_connection_cache_destinations = [127.0.0.1]\n\
                 smtp_destination_concurrency_limit = {CONNECTIONS}\nin_flow_delay = 0\n",
                upstream.port()
            ),
        }
}

const MASTER_CF: &str = "\
ADDRESS inet n - n - - smtpd
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
verify unix - - n - 1 verify
flush unix n - n 1000? 0 flush
tlsmgr unix - - n 1000? 1 tlsmgr
tlsproxy unix - - n - 0 tlsproxy
proxymap unix - - n - - proxymap
smtp unix - - n - - smtp
relay unix - - n - - smtp
error unix - - n - - error
retry unix - - n - - error
discard unix - - n - - discard
anvil unix - - n - 1 anvil
scache unix - - n - 1 scache
postlog unix-dgram n - n - 1 postlogd
";
