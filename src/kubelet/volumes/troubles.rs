//! Volumes that could not be made or renewed: when that is told again, and when to try again.
//!
//! A volume that is there stays there, whatever became of what it shows: what runs goes on, and
//! comes back when it ends.

use std::collections::HashMap;
use std::time::Duration;

use base::backoff::Backoff;
use jiff::{SignedDuration, Timestamp};
use parking_lot::Mutex;

/// First and longest wait before a volume is tried again (upstream's).
const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(122));

struct Trouble {
    backoff: Backoff,
    told: String,
    next: Timestamp,
}

/// By uid and volume name; as many as pods have volumes.
#[derive(Default)]
pub struct Troubles(Mutex<HashMap<(String, String), Trouble>>);

impl Troubles {
    /// Whether a failure is to be told, and when to try again. One that is asked about before
    /// its time is told only if it is another.
    pub fn failed(&self, uid: &str, volume: &str, why: &str, now: Timestamp) -> (bool, Timestamp) {
        let mut held = self.0.lock();
        let known = held.entry((uid.to_owned(), volume.to_owned())).or_insert_with(|| Trouble {
            backoff: Backoff::new(RETRY.0, RETRY.1).without_jitter(),
            told: String::new(),
            next: now,
        });
        // Later than that it is only by a clock that was set back.
        let longest = SignedDuration::try_from(RETRY.1).unwrap_or(SignedDuration::MAX);
        let is_due = known.next <= now || known.next.duration_since(now) > longest;
        if is_due {
            let wait = SignedDuration::try_from(known.backoff.next_delay()).unwrap_or(longest);
            known.next = now.checked_add(wait).unwrap_or(now);
        }
        let is_new = known.told != why;
        if is_new {
            why.clone_into(&mut known.told);
        }
        (is_due || is_new, known.next)
    }

    pub fn mended(&self, uid: &str, volume: &str) {
        let mut held = self.0.lock();
        if !held.is_empty() {
            held.remove(&(uid.to_owned(), volume.to_owned()));
        }
    }

    pub fn release(&self, uid: &str) {
        self.0.lock().retain(|(of, _), _| of != uid);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_told_less_and_less_often_and_another_at_once() {
        let troubles = Troubles::default();
        let at = |millis: i64| Timestamp::from_millisecond(1_000_000_000 + millis).unwrap();
        assert_eq!(troubles.failed("u", "v", "no", at(0)), (true, at(500)));
        assert_eq!(troubles.failed("u", "v", "no", at(100)), (false, at(500)));
        assert_eq!(troubles.failed("u", "w", "no", at(100)), (true, at(600)));
        assert_eq!(troubles.failed("u", "v", "other", at(200)), (true, at(500)));
        assert_eq!(troubles.failed("u", "v", "other", at(500)), (true, at(1500)));
        let mut now = at(1500);
        for _ in 0..20 {
            now = troubles.failed("u", "v", "other", now).1;
        }
        let (told, next) = troubles.failed("u", "v", "other", now);
        assert!(told);
        assert_eq!(next.duration_since(now), SignedDuration::from_secs(122));
        // The clock is set back by an hour.
        let back = now.checked_sub(SignedDuration::from_hours(1)).unwrap();
        assert!(troubles.failed("u", "v", "other", back).0);
        troubles.mended("u", "v");
        assert_eq!(troubles.failed("u", "v", "other", at(0)), (true, at(500)));
    }
}
