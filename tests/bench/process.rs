//! What a process takes, or several, as Linux tells.

use super::Result;
use std::time::Duration;

/// A number of KiB of `/proc/PID/FILE`, as MiB.
fn mib(pid: u32, file: &str, name: &str) -> Result<f64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/{file}"))?;
    let line = text.lines().find_map(|line| line.strip_prefix(name)).ok_or_else(|| format!("no {name}"))?;
    Ok(line.trim().trim_end_matches(" kB").trim().parse::<f64>()? / 1024.0)
}

/// The most memory it ever took, in MiB.
pub(crate) fn peak(pid: u32) -> Result<f64> {
    mib(pid, "status", "VmHWM:")
}

/// Its resident memory, in MiB.
pub(crate) fn resident(pid: u32) -> Result<f64> {
    mib(pid, "status", "VmRSS:")
}

/// The memory of a process and all below it, in MiB; what they share counts once (PSS).
pub(crate) fn proportional(root: u32) -> Result<f64> {
    // One of them may end meanwhile.
    Ok(family(root)?.iter().filter_map(|process| mib(process.pid, "smaps_rollup", "Pss:").ok()).sum())
}

/// The processor time of a process and all below it, those that ended included.
pub(crate) fn cpu(root: u32) -> Result<Duration> {
    let ticks: u64 = family(root)?
        .iter()
        .map(|process| process.own + if process.pid == root { process.children } else { 0 })
        .sum();
    // Hundredths of a second on every Linux (USER_HZ).
    Ok(Duration::from_millis(ticks * 10))
}

struct Process {
    pid: u32,
    parent: u32,
    own: u64,
    /// Of children that ended.
    children: u64,
}

fn family(root: u32) -> Result<Vec<Process>> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let name = entry.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else { continue };
        // It may have ended meanwhile.
        all.extend(std::fs::read_to_string(entry.path().join("stat")).ok().and_then(|stat| read(pid, &stat)));
    }
    let mut family = vec![root];
    loop {
        let more: Vec<u32> = all
            .iter()
            .filter(|process| family.contains(&process.parent) && !family.contains(&process.pid))
            .map(|process| process.pid)
            .collect();
        if more.is_empty() {
            break;
        }
        family.extend(more);
    }
    all.retain(|process| family.contains(&process.pid));
    Ok(all)
}

/// A line of proc_pid_stat(5).
fn read(pid: u32, stat: &str) -> Option<Process> {
    // The name may hold blanks and parentheses.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_ascii_whitespace().collect();
    let number = |field: usize| fields.get(field)?.parse::<u64>().ok();
    Some(Process {
        pid,
        parent: u32::try_from(number(1)?).ok()?,
        own: number(11)? + number(12)?,
        children: number(13)? + number(14)?,
    })
}
