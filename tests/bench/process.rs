//! What a process takes, as Linux tells.

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

/// Its share of the memory, in MiB: pages that are shared count in parts.
pub(crate) fn proportional(pid: u32) -> Result<f64> {
    mib(pid, "smaps_rollup", "Pss:")
}

/// The processor time that it used.
pub(crate) fn cpu(pid: u32) -> Result<Duration> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, rest) = text.rsplit_once(')').ok_or("odd /proc/PID/stat")?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let ticks = |at: usize| -> Result<u64> { Ok(fields.get(at).ok_or("odd /proc/PID/stat")?.parse()?) };
    // utime and stime, in hundredths of a second on every Linux (USER_HZ).
    Ok(Duration::from_millis((ticks(11)? + ticks(12)?) * 10))
}
