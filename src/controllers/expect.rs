//! What the cache must show before it may be believed: objects that were created or
//! deleted a moment ago.
//!
//! Bound: one entry per object written and not yet seen, forgotten after `FORGET_AFTER`.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use client::Queue;
use client::cache::Key;
use parking_lot::Mutex;
use tokio::time::Instant;

/// An object that the watch has not shown by then never comes (upstream,
/// `ExpectationsTimeout`).
const FORGET_AFTER: Duration = Duration::from_secs(300);

/// Looks for what is to be forgotten are at least this far apart.
const SWEEP_EVERY: Duration = Duration::from_secs(10);

#[derive(Default)]
struct Inner {
    /// Made and not yet seen: whom for, by uid.
    unseen: HashMap<String, Key>,
    /// The same by key: the uids, and when each was made.
    by_key: HashMap<Key, HashMap<String, Instant>>,
    /// Seen while creations were under way, whose answers may come after the event.
    seen: HashSet<String>,
    creating: usize,
    /// Deleted, and not yet seen to be.
    deleted: HashMap<String, Instant>,
    swept: Option<Instant>,
}

impl Inner {
    /// Whether it was the last one that its key waited for; None if nobody waited for it.
    fn forget(&mut self, uid: &str) -> Option<bool> {
        let key = self.unseen.remove(uid)?;
        let of_key = self.by_key.get_mut(&key)?;
        of_key.remove(uid);
        let was_last = of_key.is_empty();
        if was_last {
            self.by_key.remove(&key);
        }
        Some(was_last)
    }

    fn sweep(&mut self, now: Instant) {
        if self.swept.is_some_and(|at| now.duration_since(at) < SWEEP_EVERY) {
            return;
        }
        self.swept = Some(now);
        let is_old = |at: &Instant| now.duration_since(*at) >= FORGET_AFTER;
        self.deleted.retain(|_, at| !is_old(at));
        let all = self.by_key.values().flatten();
        let old: Vec<String> =
            all.filter(|(_, at)| is_old(at)).map(|(uid, _)| uid.clone()).collect();
        for uid in old {
            self.forget(&uid);
        }
    }
}

#[derive(Default)]
pub struct Expectations(Mutex<Inner>);

/// Creations under way; ends when dropped.
pub struct Creating<'a> {
    expectations: &'a Expectations,
    key: Key,
}

impl Expectations {
    /// Call before the requests are sent.
    pub fn creating(&self, key: &Key) -> Creating<'_> {
        self.0.lock().creating += 1;
        Creating { expectations: self, key: key.clone() }
    }

    /// The watch shows this object. True if it was the last one that somebody waited for.
    pub fn saw(&self, uid: &str) -> bool {
        let mut inner = self.0.lock();
        let was_last = inner.forget(uid);
        if was_last.is_none() && inner.creating > 0 {
            inner.seen.insert(uid.to_string());
        }
        was_last == Some(true)
    }

    pub fn deleting(&self, uid: &str) {
        self.0.lock().deleted.insert(uid.to_string(), Instant::now());
    }

    /// The watch shows that this object is gone, or it was not deleted after all.
    pub fn gone(&self, uid: &str) {
        let mut inner = self.0.lock();
        inner.deleted.remove(uid);
        inner.forget(uid);
    }

    pub fn deleted(&self, uid: &str) -> bool {
        let inner = self.0.lock();
        inner.deleted.get(uid).is_some_and(|at| at.elapsed() < FORGET_AFTER)
    }

    /// Whether all objects made for `key` have been seen. If not, their event or the end
    /// of our patience puts the key back into `queue`.
    pub fn are_met(&self, key: &Key, queue: &Queue<Key>) -> bool {
        let now = Instant::now();
        let mut inner = self.0.lock();
        inner.sweep(now);
        let waits = |at: &Instant| now.duration_since(*at) < FORGET_AFTER;
        let of_key = inner.by_key.get(key).into_iter().flat_map(HashMap::values);
        let oldest = of_key.copied().filter(waits).min();
        if let Some(at) = oldest {
            queue.add_after(key.clone(), FORGET_AFTER.saturating_sub(now.duration_since(at)));
        }
        oldest.is_none()
    }
}

impl Creating<'_> {
    pub fn made(&self, uid: &str) {
        let mut inner = self.expectations.0.lock();
        if !inner.seen.remove(uid) {
            inner.unseen.insert(uid.to_string(), self.key.clone());
            let of_key = inner.by_key.entry(self.key.clone()).or_default();
            of_key.insert(uid.to_string(), Instant::now());
        }
    }
}

impl Drop for Creating<'_> {
    fn drop(&mut self) {
        let mut inner = self.expectations.0.lock();
        inner.creating -= 1;
        if inner.creating == 0 {
            inner.seen.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_key_waits_until_its_pods_are_seen_or_forgotten() {
        let (expected, queue) = (Expectations::default(), Queue::new());
        let key: Key = ("default".into(), "web".into());
        let creating = expected.creating(&key);
        expected.saw("early");
        creating.made("early");
        assert!(expected.are_met(&key, &queue), "the event came before the answer");
        creating.made("late");
        drop(creating);
        assert!(!expected.are_met(&key, &queue));
        assert!(expected.saw("late"), "the last one");
        assert!(expected.are_met(&key, &queue));
        expected.creating(&key).made("never");
        assert!(!expected.are_met(&key, &queue));
        tokio::time::advance(FORGET_AFTER).await;
        assert!(expected.are_met(&key, &queue));
    }
}
