//! Exponential back-off with jitter, as a plain value.
//!
//! Never sleeps: the caller waits for the delay it is told.

use std::time::Duration;

use crate::rng;

/// Delays that grow by `factor` from `initial` to `max`.
#[derive(Debug, Clone)]
pub struct Backoff {
    initial: Duration,
    max: Duration,
    factor: f64,
    /// Fraction of each delay that chance adds, 0.0 to 1.0.
    jitter: f64,
    failures: u32,
}

impl Backoff {
    pub fn new(initial: Duration, max: Duration) -> Self {
        Self { initial, max, factor: 2.0, jitter: 0.2, failures: 0 }
    }

    pub fn without_jitter(mut self) -> Self {
        self.jitter = 0.0;
        self
    }

    /// The delay after one more failure.
    pub fn next_delay(&mut self) -> Duration {
        let delay = self.delay_after(self.failures);
        self.failures = self.failures.saturating_add(1);
        delay.mul_f64(1.0 + self.jitter * rng::unit())
    }

    /// The delay, without jitter, that follows `failures` earlier failures.
    pub fn delay_after(&self, failures: u32) -> Duration {
        let grown = self.initial.as_secs_f64() * self.factor.powi(failures.min(64) as i32);
        Duration::from_secs_f64(grown.min(self.max.as_secs_f64()))
    }

    pub fn reset(&mut self) {
        self.failures = 0;
    }

    pub fn failures(&self) -> u32 {
        self.failures
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_the_maximum() {
        let mut backoff =
            Backoff::new(Duration::from_secs(10), Duration::from_secs(300)).without_jitter();
        let seen: Vec<u64> = (0..7).map(|_| backoff.next_delay().as_secs()).collect();
        assert_eq!(seen, [10, 20, 40, 80, 160, 300, 300]);
        backoff.reset();
        assert_eq!(backoff.next_delay().as_secs(), 10);
    }
}
