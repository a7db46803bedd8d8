//! When a client that was turned away should come back: later, the more were turned away of
//! late (k8s.io/apiserver, `dropped_requests_tracker`).
//!
//! Pure: time is an argument, in whole seconds.

use std::collections::VecDeque;

/// The longest advice, in seconds; older history does not matter.
const RETRY_SECONDS_MAX: u64 = 32;

#[derive(Debug)]
pub struct Retry {
    /// Seconds, and how many were turned away in them.
    history: VecDeque<(u64, u64)>,
    now: (u64, u64),
    after: u64,
    raised_at: Option<u64>,
}

impl Default for Retry {
    fn default() -> Self {
        Self { history: VecDeque::new(), now: (0, 0), after: 1, raised_at: None }
    }
}

impl Retry {
    /// One more was turned away; returns the seconds to wait.
    pub fn refused(&mut self, second: u64) -> u64 {
        if self.now.0 == second {
            self.now.1 += 1;
            return self.after;
        }
        self.history.push_back(self.now);
        while self
            .history
            .front()
            .is_some_and(|old| second.saturating_sub(old.0) > RETRY_SECONDS_MAX)
        {
            self.history.pop_front();
        }
        self.now = (second, 1);
        let recent = |at: u64| second.saturating_sub(at) <= self.after;
        let dropped: u64 =
            self.history.iter().filter(|(at, _)| recent(*at)).map(|(_, count)| count).sum();
        let may_rise = self.raised_at.is_none_or(|at| second.saturating_sub(at) >= self.after);
        if may_rise && dropped >= 3 * self.after {
            self.after = (self.after * 2).min(RETRY_SECONDS_MAX);
            self.raised_at = Some(second);
        } else if dropped < self.after && self.after > 1 {
            self.after -= 1;
        }
        self.after
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_advice_doubles_under_pressure_and_relaxes_step_by_step() {
        let mut retry = Retry::default();
        assert_eq!(retry.refused(100), 1);
        for _ in 0..9 {
            retry.refused(100);
        }
        assert_eq!(retry.refused(101), 2);
        for _ in 0..9 {
            retry.refused(101);
        }
        assert_eq!(retry.refused(102), 2, "not twice within its own time");
        for second in 103..400 {
            for _ in 0..200 {
                retry.refused(second);
            }
        }
        assert_eq!(retry.refused(400), RETRY_SECONDS_MAX);
        assert_eq!(retry.refused(500), RETRY_SECONDS_MAX - 1);
    }
}
