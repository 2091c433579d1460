//! systemd's side of sd_notify(3).

use super::relay::Config;
use super::wait::{SOON, eventually};
use std::sync::{Arc, Mutex};
use tokio::net::UnixDatagram;

/// Hears what a daemon tells its service manager, one entry for each datagram.
pub struct Notified(Arc<Mutex<Vec<String>>>);

impl Notified {
    /// From the next start on.
    pub fn listen(config: &mut Config) -> Self {
        let path = config.dir().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        config.env("NOTIFY_SOCKET", path.to_str().unwrap());
        let heard = Arc::<Mutex<Vec<String>>>::default();
        let hears = heard.clone();
        tokio::spawn(async move {
            let mut buffer = [0; 4096];
            while let Ok(length) = socket.recv(&mut buffer).await {
                hears.lock().unwrap().push(String::from_utf8_lossy(&buffer[..length]).into_owned());
            }
        });
        Self(heard)
    }

    pub fn heard(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }

    /// How many datagrams say this.
    pub fn count(&self, part: &str) -> usize {
        self.heard().iter().filter(|said| said.contains(part)).count()
    }

    /// Waits until so many have said it.
    pub async fn wait_for(&self, part: &str, count: usize) {
        eventually(SOON, &format!("{part:?} on the notify socket, {count} times"), || {
            if self.count(part) >= count { Ok(()) } else { Err(self.heard()) }
        })
        .await
    }
}
