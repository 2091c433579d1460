//! The process's own figures, as Linux tells them (proc(5)): `None` where it does not.

use rustix::time::{ClockId, clock_gettime};
use std::time::Duration;

/// What the process uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Process {
    /// Memory that is in RAM, in bytes.
    pub(super) resident: Option<u64>,
    /// Address space, in bytes.
    pub(super) size: Option<u64>,
    /// Processor time of all threads since the start.
    pub(super) cpu: Duration,
    /// Open file descriptors.
    pub(super) open_files: Option<u64>,
    /// How many there may be.
    pub(super) most_files: Option<u64>,
    /// Threads.
    pub(super) threads: Option<u64>,
}

impl Process {
    /// Right now. Reads a few files of a few lines, which the kernel makes up on the spot.
    pub(super) fn look() -> Self {
        let read = |name: &str| std::fs::read_to_string(format!("/proc/self/{name}")).unwrap_or_default();
        let cpu = clock_gettime(ClockId::ProcessCPUTime);
        let entries = std::fs::read_dir("/proc/self/fd").ok().map(Iterator::count);
        Self {
            cpu: Duration::try_from(cpu).unwrap_or_default(),
            // One of them reads the folder.
            open_files: entries.and_then(|entries| u64::try_from(entries).ok()?.checked_sub(1)),
            most_files: most_files(&read("limits")),
            ..Self::of_status(&read("status"))
        }
    }

    /// What `/proc/self/status` says.
    fn of_status(status: &str) -> Self {
        let line = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        let kibibytes =
            |name| line(name)?.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()?.checked_mul(1024);
        Self {
            resident: kibibytes("VmRSS"),
            size: kibibytes("VmSize"),
            threads: line("Threads").and_then(|threads| threads.trim().parse().ok()),
            ..Self::default()
        }
    }
}

/// The soft limit in `/proc/self/limits`; `None`: none.
fn most_files(limits: &str) -> Option<u64> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn linux_tells_every_figure() {
        let process = Process::look();
        assert!(process.resident.unwrap() > 1 << 20 && process.resident < process.size, "{process:?}");
        assert!(process.threads.unwrap() >= 1 && process.cpu > Duration::ZERO, "{process:?}");
        let _file = std::fs::File::open("/dev/null").unwrap();
        assert!(process.open_files.unwrap() >= 3 && process.open_files <= process.most_files, "{process:?}");
    }

    #[test]
    fn what_linux_does_not_tell_is_left_out() {
        let status = "Name:\tx\nVmSize:\t    2048 kB\nVmRSS:\t  many kB\nThreads:\t3\n";
        let seen = Process::of_status(status);
        assert_eq!((seen.size, seen.resident, seen.threads), (Some(2 << 20), None, Some(3)));
        assert_eq!(
            most_files("Limit  Soft\nMax open files            1024                 4096    files\n"),
            Some(1024)
        );
        assert_eq!(
            most_files("Max open files            unlimited            unlimited            files\n"),
            None
        );
        assert_eq!(most_files(""), None);
    }
}
