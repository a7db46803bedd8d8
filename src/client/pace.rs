//! How fast something may be asked for: at a steady pace, and at once after a rest.

use std::time::Duration;

use tokio::time::Instant;

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rate {
    /// In the long run; 0 is no limit.
    pub per_second: f64,
    /// At once after a rest; at least one.
    pub burst: u32,
}

/// When the next may go.
#[derive(Debug)]
pub struct Pace {
    each: Duration,
    /// How much earlier than at the steady pace one may go.
    ahead: Duration,
    /// When there would be no debt from what went already.
    free_at: Instant,
}

impl Pace {
    pub fn new(rate: Rate, now: Instant) -> Self {
        // One that is very far away comes after an hour.
        let each = match rate.per_second > 0.0 {
            true => Duration::from_secs_f64((1.0 / rate.per_second).min(3_600.0)),
            false => Duration::ZERO,
        };
        let ahead = each.saturating_mul(rate.burst.saturating_sub(1));
        Self { each, ahead, free_at: now }
    }

    /// When the next may go, which counts as gone by this.
    pub fn next(&mut self, now: Instant) -> Instant {
        let begun = self.free_at.max(now);
        self.free_at = begun + self.each;
        begun.checked_sub(self.ahead).map_or(now, |at| at.max(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_goes_at_once_and_the_rest_at_its_pace() {
        let now = Instant::now();
        let rate = Rate { per_second: 50.0, burst: 7 };
        let mut pace = Pace::new(rate, now);
        let each = Duration::from_millis(20);
        for _ in 0..rate.burst {
            assert_eq!(pace.next(now), now);
        }
        assert_eq!(pace.next(now), now + each);
        assert_eq!(pace.next(now), now + each * 2);
        // Rest fills it up again, and no further.
        let later = now + Duration::from_secs(60);
        for _ in 0..rate.burst {
            assert_eq!(pace.next(later), later);
        }
        assert_eq!(pace.next(later), later + each);
    }

    #[test]
    fn no_limit_is_none_and_no_burst_is_one() {
        let now = Instant::now();
        let mut pace = Pace::new(Rate { per_second: 0.0, burst: 0 }, now);
        assert!((0..1_000).all(|_| pace.next(now) == now));
        let mut pace = Pace::new(Rate { per_second: 1.0, burst: 0 }, now);
        assert_eq!(pace.next(now), now);
        assert_eq!(pace.next(now), now + Duration::from_secs(1));
        let mut pace = Pace::new(Rate { per_second: 0.5, burst: 1 }, now);
        assert_eq!([pace.next(now), pace.next(now)], [now, now + Duration::from_secs(2)]);
        let mut pace = Pace::new(Rate { per_second: 1e-300, burst: u32::MAX }, now);
        assert_eq!(pace.next(now), now);
    }
}
