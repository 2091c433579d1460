//! Scripted misbehaviour: which step goes wrong, how, how often and for whom.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// One planned fault.
pub struct Rule<S, F> {
    step: S,
    fault: F,
    /// `None`: for ever.
    left: Option<usize>,
    only: Option<String>,
}

impl<S, F> Rule<S, F> {
    /// Happens once, to whoever comes first.
    pub fn new(step: S, fault: F) -> Self {
        Self { step, fault, left: Some(1), only: None }
    }

    /// Happens `n` times.
    pub fn times(mut self, n: usize) -> Self {
        self.left = Some(n);
        self
    }

    /// Happens every time, until [`Script::clear`].
    pub fn always(mut self) -> Self {
        self.left = None;
        self
    }

    /// Happens only where this text matches; what it is compared with is said by the double (mailbox, recipient, …).
    pub fn only(mut self, text: &str) -> Self {
        self.only = Some(text.to_owned());
        self
    }
}

/// The faults still to come, oldest first.
pub struct Script<S, F> {
    rules: Mutex<Vec<Rule<S, F>>>,
    /// So that the usual case, no script at all, takes no lock.
    len: AtomicUsize,
}

impl<S, F> Default for Script<S, F> {
    fn default() -> Self {
        Self { rules: Mutex::new(Vec::new()), len: AtomicUsize::new(0) }
    }
}

impl<S: PartialEq, F: Clone> Script<S, F> {
    /// Plans a fault behind those planned before.
    pub fn add(&self, rule: Rule<S, F>) {
        let mut rules = self.rules.lock().unwrap();
        rules.push(rule);
        self.len.store(rules.len(), Ordering::Release);
    }

    /// Forgets everything planned: the double behaves again.
    pub fn clear(&self) {
        let mut rules = self.rules.lock().unwrap();
        rules.clear();
        self.len.store(0, Ordering::Release);
    }

    /// Rules not used up yet.
    pub fn pending(&self) -> usize {
        self.len.load(Ordering::Acquire)
    }

    /// The first fault planned for `step` whose `only` text `matches`, used up by one.
    pub fn take(&self, step: &S, matches: impl Fn(&str) -> bool) -> Option<F> {
        if self.pending() == 0 {
            return None;
        }
        let mut rules = self.rules.lock().unwrap();
        let at =
            rules.iter().position(|rule| rule.step == *step && rule.only.as_deref().is_none_or(&matches))?;
        let rule = &mut rules[at];
        let fault = rule.fault.clone();
        if let Some(left) = &mut rule.left {
            *left = left.saturating_sub(1);
            if *left == 0 {
                rules.remove(at);
                self.len.store(rules.len(), Ordering::Release);
            }
        }
        Some(fault)
    }
}
