//! The systemd journal by its own protocol (<https://systemd.io/JOURNAL_NATIVE_PROTOCOL>), which keeps an event's level
//! and fields.

use super::record::Record;
use std::io;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tracing::{Level, Metadata};

/// Where the journal listens.
pub(super) const SOCKET: &str = "/run/systemd/journal/socket";

/// A journal that takes nothing for so long is given up for this event.
const PATIENCE: Duration = Duration::from_secs(1);

/// A longer name is cut, in bytes: the journal takes no longer one.
const LONGEST_NAME: usize = 64;

/// What systemd.journal-fields(7) gives a meaning of its own (ours of that name are others: our `message_id` names a mail,
/// `MESSAGE_ID=` a kind of event), and what we set ourselves.
const TAKEN: [&str; 14] = [
    "MESSAGE",
    "MESSAGE_ID",
    "PRIORITY",
    "CODE_FILE",
    "CODE_LINE",
    "CODE_FUNC",
    "ERRNO",
    "DOCUMENTATION",
    "TID",
    "UNIT",
    "USER_UNIT",
    "OBJECT_PID",
    "EVENT",
    "TARGET",
];

/// Whether stderr is a stream into the journal: `stream` is `$JOURNAL_STREAM`, `device:inode` (systemd.exec(5)). A child
/// inherits the variable even where its stderr is another.
pub(super) fn is_stderr(stream: Option<&str>) -> bool {
    rustix::fs::fstat(io::stderr())
        .is_ok_and(|stat| stream == Some(format!("{}:{}", stat.st_dev, stat.st_ino).as_str()))
}

/// The journal's socket. It is not connected, so that a journal that starts anew is found again.
#[derive(Debug)]
pub(super) struct Journal {
    socket: UnixDatagram,
    path: PathBuf,
}

impl Journal {
    /// The journal that listens at `path`.
    ///
    /// # Errors
    /// Nobody listens there, or nobody may write to it.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let socket = UnixDatagram::unbound()?;
        socket.set_write_timeout(Some(PATIENCE))?;
        let journal = Self { socket, path: path.to_owned() };
        // The journal ignores it.
        journal.socket.send_to(&[], &journal.path)?;
        Ok(journal)
    }

    /// Hands an event over.
    ///
    /// # Errors
    /// The journal is gone, or takes nothing.
    pub(super) fn send(&self, metadata: &Metadata<'_>, record: &Record) -> io::Result<()> {
        self.socket.send_to(&datagram(metadata, record), &self.path).map(drop)
    }
}

/// An event in the journal's words. MESSAGE holds the fields as well: it is all that `journalctl` shows. At most 32 fields
/// of a [`Record`]'s size: well below the 208 KiB that a datagram may have.
fn datagram(metadata: &Metadata<'_>, record: &Record) -> Vec<u8> {
    let mut datagram = Vec::with_capacity(1024);
    let mut add = |name: &str, value: &str| {
        datagram.extend_from_slice(name.as_bytes());
        if value.contains('\n') {
            let length = u64::try_from(value.len()).unwrap_or(u64::MAX);
            datagram.push(b'\n');
            datagram.extend_from_slice(&length.to_le_bytes());
        } else {
            datagram.push(b'=');
        }
        datagram.extend_from_slice(value.as_bytes());
        datagram.push(b'\n');
    };
    add("MESSAGE", &record.line(false));
    add("PRIORITY", priority(*metadata.level()));
    add("SYSLOG_IDENTIFIER", "outlook-relay");
    // daemon, as of everything else that a service writes.
    add("SYSLOG_FACILITY", "3");
    add("EVENT", &record.event);
    add("TARGET", metadata.target());
    for (field, value) in &record.fields {
        if let Some(name) = name(field) {
            add(&name, value.as_str());
        }
    }
    datagram
}

/// A level as syslog(3) counts.
pub(super) fn priority(level: Level) -> &'static str {
    match level {
        Level::ERROR => "3",
        Level::WARN => "4",
        Level::INFO => "6",
        _ => "7",
    }
}

/// A field's name as the journal takes it: capitals, digits and underscores, beginning with a letter.
fn name(field: &str) -> Option<String> {
    let name: String = field
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' })
        .skip_while(|c| !c.is_ascii_uppercase())
        .take(LONGEST_NAME - "RELAY_".len())
        .collect();
    let is_taken = TAKEN.contains(&name.as_str()) || name.starts_with("SYSLOG_");
    let name = if is_taken { format!("RELAY_{name}") } else { name };
    (!name.is_empty()).then_some(name)
}

#[cfg(test)]
#[path = "journal_tests.rs"]
pub(super) mod tests;
