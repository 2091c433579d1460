//! How many things happen at the same time, per name: connections per mailbox, requests in flight.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

/// Counts by name (lower case), with the highest count ever seen.
#[derive(Clone, Default)]
pub struct Gauge(Arc<Mutex<HashMap<String, Count>>>);

#[derive(Clone, Copy, Default)]
struct Count {
    now: usize,
    max: usize,
    total: usize,
}

/// Counts as one until dropped.
pub struct Entered {
    gauge: Gauge,
    name: String,
}

impl Gauge {
    /// Enters, and says how many are inside now, this one included.
    pub fn enter(&self, name: &str) -> (Entered, usize) {
        let name = name.to_lowercase();
        let mut counts = self.0.lock().unwrap();
        let count = counts.entry(name.clone()).or_default();
        count.now += 1;
        count.total += 1;
        count.max = count.max.max(count.now);
        (Entered { gauge: self.clone(), name }, count.now)
    }

    /// Inside at this moment.
    pub fn now(&self, name: &str) -> usize {
        self.get(name).now
    }

    /// The most that were ever inside together.
    pub fn max(&self, name: &str) -> usize {
        self.get(name).max
    }

    /// How many entered since the start.
    pub fn total(&self, name: &str) -> usize {
        self.get(name).total
    }

    fn get(&self, name: &str) -> Count {
        self.0.lock().unwrap().get(&name.to_lowercase()).copied().unwrap_or_default()
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        if let Some(count) = self.gauge.0.lock().unwrap().get_mut(&self.name) {
            count.now -= 1;
        }
    }
}
