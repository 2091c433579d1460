//! What the doubles see, as lines that a demonstration can print live.

use tokio::sync::broadcast;

/// A channel of short lines. Cloning shares it, so several doubles can report into one.
#[derive(Clone)]
pub struct Events(broadcast::Sender<String>);

impl Default for Events {
    fn default() -> Self {
        Self(broadcast::Sender::new(4096))
    }
}

impl Events {
    /// Lines from now on. A reader that falls more than 4,096 lines behind loses the oldest.
    pub fn subscribe(&self) -> broadcast::Receiver<String> {
        self.0.subscribe()
    }

    /// Reports a line; costs nothing while nobody listens.
    pub fn emit(&self, line: impl FnOnce() -> String) {
        if self.0.receiver_count() > 0 {
            let _ = self.0.send(line());
        }
    }
}
