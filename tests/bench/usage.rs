//! What processes use, as /proc tells.

use crate::Result;
use std::time::Duration;

/// A process and all below it, those that ended included.
pub(crate) fn cpu(root: u32) -> Result<Duration> {
    let ticks: u64 = family(root)?
        .iter()
        .map(|process| process.own + if process.pid == root { process.children } else { 0 })
        .sum();
    // USER_HZ is 100 on every Linux of ours.
    Ok(Duration::from_millis(ticks * 10))
}

/// The memory of a process and all below it, what they share counted once (PSS), in KiB.
pub(crate) fn memory(root: u32) -> Result<u64> {
    let pss = |pid: u32| {
        let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
        let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:"))?;
        line.trim().trim_end_matches(" kB").parse::<u64>().ok()
    };
    Ok(family(root)?.iter().filter_map(|process| pss(process.pid)).sum())
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
