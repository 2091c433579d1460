//! `run`: the daemon.

use crate::config::Config;
use crate::inherited::Inherited;
use crate::{daemon, logging};
use std::process::ExitCode;

pub(super) fn run(config: &Config) -> anyhow::Result<ExitCode> {
    let counters = logging::start(&config.log);
    let inherited = Inherited::take()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(daemon::run(config, inherited, counters))?;
    // What is left running at this point was told to stop twice.
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    Ok(ExitCode::SUCCESS)
}
