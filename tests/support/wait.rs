//! Waiting for a condition instead of sleeping for luck.

use std::fmt::Debug;
use std::time::Duration;

use tokio::time::{Instant, sleep};

/// The deadline that fits nearly every wait: far above what a loaded machine needs, and only ever spent on failure.
pub const SOON: Duration = Duration::from_secs(20);

/// Polls `attempt` every 10 ms until it gives `Ok`. `Err` carries the state as seen, for the panic's message.
///
/// # Panics
/// With `what` and the last state, when `deadline` has passed.
pub async fn eventually<T, S: Debug>(
    deadline: Duration,
    what: &str,
    mut attempt: impl FnMut() -> Result<T, S>,
) -> T {
    let end = Instant::now() + deadline;
    loop {
        match attempt() {
            Ok(value) => return value,
            Err(state) if Instant::now() >= end => {
                panic!("not within {deadline:?}: {what}; last seen: {state:?}")
            }
            Err(_) => sleep(Duration::from_millis(10)).await,
        }
    }
}

/// [`eventually`] for a plain condition.
pub async fn until(deadline: Duration, what: &str, mut condition: impl FnMut() -> bool) {
    eventually(deadline, what, || if condition() { Ok(()) } else { Err("still false") }).await;
}

/// Lets so much time pass, to about the tenth of a millisecond: tokio's clock ticks once in one.
pub async fn exactly(time: Duration) {
    if time > Duration::from_millis(20) {
        tokio::time::sleep(time).await;
    } else if !time.is_zero() {
        tokio::task::spawn_blocking(move || std::thread::sleep(time)).await.unwrap();
    }
}
