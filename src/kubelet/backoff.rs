//! How long a failing container or image waits before the next try.
//!
//! Upstream's rule: the first failure retries at once, then 10 s doubling to 5 min
//! counted from the failure; what runs for ten minutes has its failures forgotten. Holds
//! values, never sleeps.

use std::collections::HashMap;
use std::time::Duration;

use jiff::Timestamp;

pub const INITIAL: Duration = Duration::from_secs(10);
pub const MAX: Duration = Duration::from_secs(300);
/// What ran so long before it failed begins anew, however long failures may wait.
const GOOD_RUN: Duration = Duration::from_secs(600);

#[derive(Debug, Clone, Copy)]
struct Entry {
    delay: Duration,
    /// The failure.
    of: Timestamp,
    /// When the next try began, which is after the wait for it.
    tried: Timestamp,
}

/// Bounded by what its owner keeps: entries go with their pod, or by `expire`.
#[derive(Debug)]
pub struct Backoffs {
    entries: HashMap<String, Entry>,
    max: Duration,
}

impl Default for Backoffs {
    fn default() -> Self {
        Self::up_to(MAX)
    }
}

fn elapsed(since: Timestamp, now: Timestamp) -> Duration {
    Duration::try_from(now.duration_since(since)).unwrap_or_default()
}

impl Backoffs {
    /// With another longest delay, which is also the first one if it is shorter.
    pub fn up_to(max: Duration) -> Self {
        Self { entries: HashMap::new(), max }
    }

    /// The current delay of `key` and what is left of it, if the failure at `since`
    /// must still wait.
    pub fn waiting(
        &self,
        key: &str,
        since: Timestamp,
        now: Timestamp,
    ) -> Option<(Duration, Duration)> {
        let entry = self.entries.get(key)?;
        // The retry of this very failure has begun.
        if entry.of == since {
            return None;
        }
        // A failure in the future was before the clock was set back: how long ago it was
        // nobody knows any more, and the clock is not waited for.
        if elapsed(entry.tried, since) > GOOD_RUN || since > now {
            return None;
        }
        let left = entry.delay.checked_sub(elapsed(since, now))?;
        (!left.is_zero()).then_some((entry.delay, left))
    }

    /// Forgets the failures of `key`: what made it fail has changed.
    pub fn forget(&mut self, key: &str) {
        self.entries.remove(key);
    }

    /// Another try begins for a failure at `since`: the next one waits longer.
    pub fn next(&mut self, key: &str, since: Timestamp, now: Timestamp) {
        let delay = match self.entries.get(key) {
            Some(entry) if entry.of == since => return,
            Some(entry) if elapsed(entry.tried, since) <= GOOD_RUN => {
                (entry.delay * 2).min(self.max)
            }
            _ => INITIAL.min(self.max),
        };
        self.entries.insert(key.to_owned(), Entry { delay, of: since, tried: now });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap()
    }

    #[test]
    fn a_clock_that_is_set_back_holds_nobody_up() {
        let mut backoffs = Backoffs::default();
        backoffs.next("a", at(0), at(0));
        assert!(backoffs.waiting("a", at(5), at(6)).is_some());
        assert_eq!(backoffs.waiting("a", at(5), at(-86_400)), None);
        backoffs.next("a", at(5), at(5));
        // What fails then waits as long as it would have.
        let (delay, left) = backoffs.waiting("a", at(-86_390), at(-86_388)).unwrap();
        assert_eq!((delay.as_secs(), left.as_secs()), (20, 18));
    }

    #[test]
    fn the_second_failure_waits_and_waits_double() {
        let mut backoffs = Backoffs::default();
        assert_eq!(backoffs.waiting("a", at(0), at(0)), None);
        backoffs.next("a", at(0), at(0));
        let (delay, left) = backoffs.waiting("a", at(1), at(4)).unwrap();
        assert_eq!((delay.as_secs(), left.as_secs()), (10, 7));
        assert_eq!(backoffs.waiting("a", at(1), at(11)), None);
        backoffs.next("a", at(1), at(1));
        assert_eq!(backoffs.waiting("a", at(12), at(12)).unwrap().0.as_secs(), 20);
        for round in 0..10 {
            backoffs.next("a", at(20 + round), at(20 + round));
        }
        assert_eq!(backoffs.waiting("a", at(40), at(40)).unwrap().0, MAX);
        assert_eq!(backoffs.waiting("a", at(4000), at(4000)), None, "forgotten after a good run");
        backoffs.next("a", at(4000), at(4000));
        assert_eq!(backoffs.waiting("a", at(4001), at(4001)).unwrap().0, INITIAL);
    }

    #[test]
    fn only_ten_minutes_of_running_are_forgiven_and_not_those_of_waiting() {
        let mut backoffs = Backoffs::default();
        let mut failed = 0;
        for want in [10, 20, 40, 80, 160, 300, 300] {
            // The first is tried again at once.
            let waits =
                backoffs.waiting("a", at(failed), at(failed)).map_or(0, |it| it.1.as_secs());
            let restarted = failed + i64::try_from(waits).unwrap();
            backoffs.next("a", at(failed), at(restarted));
            failed = restarted + 1;
            assert_eq!(backoffs.waiting("a", at(failed), at(failed)).unwrap().0.as_secs(), want);
        }
        let restarted = failed + 300;
        backoffs.next("a", at(failed), at(restarted));
        // Fifteen minutes since it failed, but it ran for ten.
        let ended = at(restarted + 600);
        assert_eq!(backoffs.waiting("a", ended, ended).unwrap().0, MAX);
        let ended = at(restarted + 601);
        assert_eq!(backoffs.waiting("a", ended, ended), None);
        backoffs.next("a", ended, ended);
        let again = at(restarted + 602);
        assert_eq!(backoffs.waiting("a", again, again).unwrap().0, INITIAL);
    }

    #[test]
    fn a_node_may_let_containers_come_back_sooner() {
        let mut backoffs = Backoffs::up_to(Duration::from_secs(4));
        for second in [0, 1, 2] {
            backoffs.next("a", at(second), at(second));
            assert_eq!(backoffs.waiting("a", at(5), at(5)).unwrap().0.as_secs(), 4);
        }
    }
}
