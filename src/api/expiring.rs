//! Answers that others gave, kept for a while.
//!
//! Keys are digests, so that no secret is kept; at the bound the oldest entries go.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

pub type Key = [u8; 32];

/// The key of some text.
pub fn key(parts: &[&[u8]]) -> Key {
    let mut context = ring::digest::Context::new(&ring::digest::SHA256);
    for part in parts {
        // With its length, so that two lists never look the same.
        context.update(&(part.len() as u64).to_be_bytes());
        context.update(part);
    }
    let mut key = [0; 32];
    key.copy_from_slice(context.finish().as_ref());
    key
}

pub struct Expiring<V> {
    kept: Mutex<Kept<V>>,
    entries_max: usize,
}

struct Kept<V> {
    values: HashMap<Key, Entry<V>>,
    /// Oldest first, each with the number of its entry: the same key may stand here twice.
    order: VecDeque<(u64, Key)>,
    next: u64,
}

struct Entry<V> {
    until: Instant,
    number: u64,
    value: V,
}

impl<V: Clone> Expiring<V> {
    pub fn new(entries_max: usize) -> Self {
        let kept = Kept { values: HashMap::new(), order: VecDeque::new(), next: 0 };
        Self { kept: Mutex::new(kept), entries_max }
    }

    /// The value of a key, unless its time is over at `now`.
    pub fn get(&self, key: &Key, now: Instant) -> Option<V> {
        let mut kept = self.kept.lock();
        match kept.values.get(key) {
            Some(entry) if entry.until > now => Some(entry.value.clone()),
            Some(_) => {
                kept.values.remove(key);
                None
            }
            None => None,
        }
    }

    /// Keeps a value until `now + ttl`.
    pub fn put(&self, key: Key, value: V, ttl: Duration, now: Instant) {
        if ttl.is_zero() {
            return;
        }
        let mut kept = self.kept.lock();
        let number = kept.next;
        kept.next += 1;
        kept.values.insert(key, Entry { until: now + ttl, number, value });
        kept.order.push_back((number, key));
        while kept.order.len() > self.entries_max {
            let Some((number, oldest)) = kept.order.pop_front() else { break };
            if kept.values.get(&oldest).is_some_and(|entry| entry.number == number) {
                kept.values.remove(&oldest);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_kept_for_their_time_and_no_more_than_fit() {
        let kept = Expiring::new(2);
        let now = Instant::now();
        let second = Duration::from_secs(1);
        let [a, b, c] = ["a", "b", "c"].map(|text| key(&[text.as_bytes()]));
        kept.put(a, 1, second, now);
        assert_eq!(kept.get(&a, now), Some(1));
        assert_eq!(kept.get(&a, now + second), None);
        for (key, value) in [(a, 1), (b, 2), (c, 3)] {
            kept.put(key, value, second, now);
        }
        assert_eq!([a, b, c].map(|key| kept.get(&key, now)), [None, Some(2), Some(3)]);
        kept.put(a, 1, Duration::ZERO, now);
        assert_eq!(kept.get(&a, now), None);
        assert_ne!(key(&[b"ab", b"c"]), key(&[b"a", b"bc"]));
    }
}
