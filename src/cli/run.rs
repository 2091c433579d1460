//! `run`: the daemon.

use crate::daemon;
use crate::inherited::Inherited;
use std::path::Path;
use std::process::ExitCode;

pub(super) fn run(file: &Path) -> anyhow::Result<ExitCode> {
    let inherited = Inherited::take()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(daemon::run(file, inherited))?;
    // What is left running at this point was told to stop twice.
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    Ok(ExitCode::SUCCESS)
}
