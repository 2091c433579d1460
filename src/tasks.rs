//! The long-lived tasks of the daemon: started, watched, and stopped in order, all of them or a part.

use crate::health::{Health, patiently};
use anyhow::Context;
use std::time::Duration;
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// How long messages in hand may take to finish once a stop was asked for. Below the 90 seconds after which systemd
/// kills (`TimeoutStopSec=`).
const GRACE: Duration = Duration::from_secs(75);

/// How long everything else goes on after a stop was asked for, until nothing is pushed into Odoo any more: longer than a push
/// may then go on ([`crate::fetch`], [`crate::reports`]).
const FEEDING: Duration = Duration::from_secs(8);

/// The long-lived tasks, and the two ways to stop them.
#[derive(Debug, Default)]
pub struct Tasks {
    running: JoinSet<Ended>,
    /// Finish what is in hand.
    soft: CancellationToken,
    /// Drop what is in hand.
    pub hard: CancellationToken,
    /// Stops those that push into Odoo: it may send mail to the relay from inside a push, so they stop while that is taken.
    early: CancellationToken,
    /// Those that push into Odoo.
    pub feeding: TaskTracker,
    /// Watches them.
    pub health: Health,
}

/// A task that came to its end.
#[derive(Debug)]
pub struct Ended {
    name: &'static str,
    /// Whether its part was to stop.
    stopped: CancellationToken,
    result: anyhow::Result<()>,
}

/// Some of the tasks, which may stop before the daemon does. Clones are the same part.
#[derive(Clone, Debug)]
pub struct Part {
    /// Finish what is in hand.
    pub soft: CancellationToken,
    /// The same for those that push into Odoo, which stop ahead of the others when the daemon stops.
    pub early: CancellationToken,
    tasks: TaskTracker,
}

impl Part {
    /// Has its tasks finish what is in hand. Nothing more may be started in it.
    pub fn stop(&self) {
        self.soft.cancel();
        self.early.cancel();
        self.tasks.close();
    }

    /// Whether it was stopped, and all its tasks have ended.
    pub fn has_ended(&self) -> bool {
        self.tasks.is_closed() && self.tasks.is_empty()
    }

    /// Until then.
    pub async fn ended(&self) {
        patiently(self.tasks.wait()).await;
    }
}

impl Tasks {
    /// A part with nothing in it yet.
    pub fn part(&self) -> Part {
        Part { soft: self.soft.child_token(), early: self.early.child_token(), tasks: TaskTracker::new() }
    }

    /// Starts a task. `mailbox`: the one that it is for, or nothing; `allowed`: how long it may be
    /// [silent](Health::watch).
    pub fn start(
        &mut self,
        name: &'static str,
        mailbox: impl std::fmt::Display,
        part: &Part,
        allowed: Duration,
        task: impl Future<Output = anyhow::Result<()>> + Send + 'static,
    ) {
        let stopped = part.soft.clone();
        let task = part.tasks.track_future(self.health.watch(name, mailbox, allowed, task));
        self.running.spawn(async move { Ended { name, stopped, result: task.await } });
    }

    /// Waits until a task ends. Where it should not have: the error, which is to end the daemon.
    ///
    /// # Errors
    /// What became of the task.
    pub async fn next(&mut self) -> anyhow::Result<()> {
        match self.running.join_next().await {
            Some(ended) => judge(ended),
            None => std::future::pending().await,
        }
    }

    /// Those that push into Odoo first, then all softly; after the grace, hard.
    pub async fn stop(mut self) {
        self.early.cancel();
        self.feeding.close();
        drop(tokio::time::timeout(FEEDING, self.feeding.wait()).await);
        self.soft.cancel();
        let drained = async {
            while let Some(ended) = self.running.join_next().await {
                if let Ok(Ended { name, result: Err(error), .. }) = &ended {
                    tracing::warn!(task = name, error = format!("{error:#}"), "task failed");
                }
            }
        };
        if tokio::time::timeout(GRACE, drained).await.is_err() {
            let advice = "what is in hand takes too long: it is dropped, and looked for in Sent Items at the next start";
            tracing::warn!(tasks = self.running.len(), advice, "stopping late");
            self.hard.cancel();
            let drained = async { while self.running.join_next().await.is_some() {} };
            if tokio::time::timeout(Duration::from_secs(5), drained).await.is_err() {
                self.running.abort_all();
            }
        }
    }
}

/// Whether a task was to end.
fn judge(ended: Result<Ended, JoinError>) -> anyhow::Result<()> {
    let Ended { name, stopped, result } = ended.context("a task panicked, which is a defect")?;
    result.with_context(|| format!("the {name} task failed"))?;
    anyhow::ensure!(stopped.is_cancelled(), "the {name} task ended by itself, which is a defect");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::health::SILENCE;

    #[tokio::test]
    async fn a_task_that_ends_by_itself_is_a_failure_and_one_that_was_stopped_is_none() {
        let mut tasks = Tasks::default();
        let (one, other) = (tasks.part(), tasks.part());
        let soft = one.soft.clone();
        tasks.start("reports", "", &one, SILENCE, async move {
            soft.cancelled().await;
            Ok(())
        });
        one.stop();
        assert!(!one.has_ended());
        tasks.next().await.unwrap();
        one.ended().await;
        assert!(one.has_ended() && !other.has_ended());

        let error = async |tasks: &mut Tasks| format!("{:#}", tasks.next().await.unwrap_err());
        tasks.start("fetch", "a@x.test", &other, SILENCE, async { Ok(()) });
        assert_eq!(error(&mut tasks).await, "the fetch task ended by itself, which is a defect");
        tasks.start("admin", "", &other, SILENCE, async { Err(anyhow::anyhow!("no sockets")) });
        assert_eq!(error(&mut tasks).await, "the admin task failed: no sockets");
        tasks.start("clock", "", &other, SILENCE, async { panic!("on purpose") });
        assert!(error(&mut tasks).await.starts_with("a task panicked, which is a defect"));
    }
}
