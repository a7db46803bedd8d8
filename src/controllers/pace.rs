//! How often a large set is looked at because its pods change.
//!
//! A look costs as much as the set has pods, and is worth the same for one change as for a
//! thousand. Small sets wait for nothing, and neither does who changes the set itself.
//! Bound: one entry for each large set that there is.

use std::collections::HashMap;
use std::time::Duration;

use client::Queue;
use client::cache::Key;
use parking_lot::Mutex;
use tokio::time::Instant;

/// From one look to the next, for each pod of the set: one with 10,000 pods is looked at twice
/// a second, at most.
const WAIT_PER_POD: Duration = Duration::from_micros(50);
/// Sets with fewer pods are looked at whenever one changes.
const LARGE_PODS: usize = 200;

/// When large sets may be looked at again.
#[derive(Default)]
pub struct Pace(Mutex<HashMap<Key, Instant>>);

impl Pace {
    /// Notes a look at a set with so many pods; none when it is gone.
    pub fn looked(&self, key: &Key, pods: usize) {
        let mut next = self.0.lock();
        if pods < LARGE_PODS {
            next.remove(key);
        } else {
            let wait = WAIT_PER_POD.saturating_mul(u32::try_from(pods).unwrap_or(u32::MAX));
            next.insert(key.clone(), Instant::now() + wait);
        }
    }

    /// Puts a set in line as soon as it may be looked at.
    pub fn add(&self, queue: &Queue<Key>, key: Key) {
        let next = self.0.lock().get(&key).copied();
        let wait = next.map(|at| at.saturating_duration_since(Instant::now()));
        queue.add_after(key, wait.unwrap_or_default());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Looks at a set until nothing has changed for a second; says how often, when each of its
    /// pods changes once a millisecond for ten seconds.
    async fn looks(pods: usize) -> usize {
        let (pace, queue) = (Pace::default(), Queue::new());
        let key: Key = ("default".into(), "web".into());
        let changes = async {
            for _ in 0..10_000 {
                pace.add(&queue, key.clone());
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        let mut count = 0;
        let work = async {
            let second = Duration::from_secs(1);
            while let Ok(key) = tokio::time::timeout(second, queue.next()).await {
                pace.looked(&key, pods);
                count += 1;
                queue.done(&key);
            }
        };
        tokio::join!(changes, work);
        count
    }

    #[tokio::test(start_paused = true)]
    async fn a_large_set_is_looked_at_less_often_than_its_pods_change() {
        assert!(looks(10).await > 9_000);
        let large = looks(10_000).await;
        assert!((20..=22).contains(&large), "{large}");
    }
}
