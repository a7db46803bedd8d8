//! When a pull may begin: so many at once, and so many in a second.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

/// What a configuration allows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pace {
    /// Further pulls wait for their turn; None lets all go.
    pub at_once_max: Option<usize>,
    /// Pulls in a second, in the long run; zero is no limit.
    pub per_second: f64,
    /// Pulls that may come together.
    pub burst: u32,
}

/// Upstream's, but for two at once where it has one: a large image holds up no small one.
impl Default for Pace {
    fn default() -> Self {
        Self { at_once_max: Some(2), per_second: 5.0, burst: 10 }
    }
}

#[derive(Clone, Copy)]
struct Bucket {
    left: f64,
    filled: Instant,
}

pub struct Turns {
    pace: Pace,
    slots: Option<Arc<Semaphore>>,
    bucket: Mutex<Bucket>,
}

/// Said in upstream's words where a pull comes too soon.
#[derive(Debug, PartialEq)]
pub struct TooSoon;

/// Takes one from a bucket that fills with time.
fn take(bucket: Bucket, pace: Pace, now: Instant) -> Option<Bucket> {
    let passed = now.saturating_duration_since(bucket.filled);
    let filled = bucket.left + passed.as_secs_f64() * pace.per_second;
    let left = filled.min(f64::from(pace.burst)) - 1.0;
    (left >= 0.0).then_some(Bucket { left, filled: now })
}

impl Turns {
    pub fn new(pace: Pace) -> Self {
        let slots = pace.at_once_max.map(|max| Arc::new(Semaphore::new(max.max(1))));
        let bucket = Bucket { left: f64::from(pace.burst), filled: Instant::now() };
        Self { pace, slots, bucket: Mutex::new(bucket) }
    }

    /// Waits for a slot, which is free again when what is given is dropped.
    pub async fn slot(&self) -> Option<OwnedSemaphorePermit> {
        match &self.slots {
            // It is never closed.
            Some(slots) => slots.clone().acquire_owned().await.ok(),
            None => None,
        }
    }

    /// # Errors
    /// When more pulls begin than the pace allows.
    pub fn begin(&self) -> Result<(), TooSoon> {
        if self.pace.per_second <= 0.0 {
            return Ok(());
        }
        let mut bucket = self.bucket.lock();
        *bucket = take(*bucket, self.pace, Instant::now()).ok_or(TooSoon)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_burst_is_let_through_and_then_the_pace() {
        let pace = Pace { at_once_max: None, per_second: 2.0, burst: 3 };
        let start = Instant::now();
        let mut bucket = Bucket { left: 3.0, filled: start };
        let mut let_through = Vec::new();
        for tenth in 0..20_u64 {
            let now = start + Duration::from_millis(tenth * 100);
            if let Some(next) = take(bucket, pace, now) {
                bucket = next;
                let_through.push(tenth);
            }
        }
        assert_eq!(let_through, [0, 1, 2, 5, 10, 15]);
    }

    #[tokio::test]
    async fn no_more_than_allowed_are_at_it() {
        let turns = Turns::new(Pace { at_once_max: Some(2), ..Pace::default() });
        let (first, _second) = (turns.slot().await, turns.slot().await);
        let third = tokio::time::timeout(Duration::from_millis(20), turns.slot());
        assert!(third.await.is_err());
        drop(first);
        tokio::time::timeout(Duration::from_secs(5), turns.slot()).await.unwrap();
    }
}
