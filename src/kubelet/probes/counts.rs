//! How often each probe of a pod was answered, and how long that took.
//!
//! One entry per probe of a container; the pod's go with it.

use std::collections::BTreeMap;
use std::time::Duration;

use parking_lot::Mutex;

use crate::pod::ProbeKind;

/// Upper bounds of the histogram, in seconds.
pub const BUCKETS: [f64; 11] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    pub namespace: String,
    pub pod: String,
    pub uid: String,
    pub container: String,
    pub kind: ProbeKind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Successful,
    Failed,
    /// The question could not be put.
    Unknown,
}

#[derive(Debug, Clone, Default)]
pub struct Count {
    successful: u64,
    failed: u64,
    unknown: u64,
    pub seconds: f64,
    /// Each answer in the first bucket that holds it.
    pub buckets: [u64; BUCKETS.len()],
}

impl Count {
    pub fn total(&self) -> u64 {
        self.successful + self.failed + self.unknown
    }

    /// Names of the results there were, and how often.
    pub fn results(&self) -> impl Iterator<Item = (&'static str, u64)> {
        [("successful", self.successful), ("failed", self.failed), ("unknown", self.unknown)]
            .into_iter()
            .filter(|(_, count)| *count > 0)
    }
}

#[derive(Default)]
pub struct Counts(Mutex<BTreeMap<Key, Count>>);

impl Counts {
    pub fn add(&self, key: &Key, outcome: Outcome, took: Duration) {
        let mut held = self.0.lock();
        let count = held.entry(key.clone()).or_default();
        match outcome {
            Outcome::Successful => count.successful += 1,
            Outcome::Failed => count.failed += 1,
            Outcome::Unknown => count.unknown += 1,
        }
        let seconds = took.as_secs_f64();
        count.seconds += seconds;
        if let Some(bucket) = BUCKETS.iter().position(|bound| seconds <= *bound) {
            count.buckets[bucket] += 1;
        }
    }

    pub fn release(&self, uid: &str) {
        self.0.lock().retain(|key, _| key.uid != uid);
    }

    pub fn all(&self) -> Vec<(Key, Count)> {
        self.0.lock().iter().map(|(key, count)| (key.clone(), count.clone())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_counted_until_their_pod_goes() {
        let key = Key {
            namespace: "default".into(),
            pod: "web".into(),
            uid: "u".into(),
            container: "a".into(),
            kind: ProbeKind::Liveness,
        };
        let counts = Counts::default();
        counts.add(&key, Outcome::Successful, Duration::from_millis(3));
        counts.add(&key, Outcome::Failed, Duration::from_secs(60));
        let (_, count) = counts.all().remove(0);
        assert_eq!(count.results().collect::<Vec<_>>(), [("successful", 1), ("failed", 1)]);
        assert_eq!((count.buckets[0], count.buckets.iter().sum::<u64>(), count.total()), (1, 1, 2));
        counts.release("u");
        assert!(counts.all().is_empty());
    }
}
