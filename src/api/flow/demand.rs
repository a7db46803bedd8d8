//! How many seats a priority level wants over time, and how the levels lend each other what
//! they do not need (KEP-1040, "Dispatching", "Seat Borrowing").
//!
//! Pure: time is an argument, in seconds.

/// Limits are adjusted this often, in seconds, while there is work.
pub const ADJUST_SECONDS: f64 = 10.0;
/// What is left of an old peak of demand after one period.
const SMOOTHING: f64 = 0.977;

/// Adds up a level's demand over a period.
#[derive(Debug, Clone)]
pub struct Demand {
    since: f64,
    at: f64,
    now: f64,
    /// Of the demand over time, and of its square.
    sum: f64,
    squares: f64,
    peak: f64,
    smoothed: f64,
}

impl Demand {
    pub fn new(at: f64) -> Self {
        Self { since: at, at, now: 0.0, sum: 0.0, squares: 0.0, peak: 0.0, smoothed: 0.0 }
    }

    /// From `at` on, `seats` are wanted.
    pub fn set(&mut self, at: f64, seats: f64) {
        self.add_up(at);
        self.now = seats;
        self.peak = self.peak.max(seats);
    }

    fn add_up(&mut self, at: f64) {
        let passed = (at - self.at).max(0.0);
        self.at = self.at.max(at);
        self.sum += passed * self.now;
        self.squares += passed * self.now * self.now;
    }

    /// Ends the period and tells of it.
    pub fn period(&mut self, at: f64) -> Period {
        self.add_up(at);
        let length = at - self.since;
        let (average, deviation) = if length > 0.0 {
            let average = self.sum / length;
            (average, (self.squares / length - average * average).max(0.0).sqrt())
        } else {
            (self.now, 0.0)
        };
        let envelope = average + deviation;
        // After a quiet time the period is longer than usual, and more is forgotten.
        let kept = SMOOTHING.powf((length / ADJUST_SECONDS).max(1.0));
        self.smoothed = envelope.max(kept * self.smoothed + (1.0 - kept) * envelope);
        let peak = self.peak;
        (self.since, self.sum, self.squares, self.peak) = (at, 0.0, 0.0, self.now);
        Period { peak, average, deviation, smoothed: self.smoothed }
    }
}

/// The demand of a period, in seats.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Period {
    pub peak: f64,
    pub average: f64,
    pub deviation: f64,
    /// What is expected from now on: it rises at once and falls slowly.
    pub smoothed: f64,
}

/// What a level has by configuration, in seats.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Bounds {
    pub nominal: u32,
    /// The part that is never lent.
    pub min: u32,
    /// With all that may be borrowed.
    pub max: u32,
}

/// Shares and percentages of one level.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shares {
    pub shares: u32,
    pub lendable_percent: u32,
    /// None is without a limit.
    pub borrowing_percent: Option<u32>,
}

/// Divides the server's seats by shares.
pub fn bounds(total: u32, levels: &[Shares]) -> Vec<Bounds> {
    let sum: u64 = levels.iter().map(|level| u64::from(level.shares)).sum();
    let percent =
        |of: u32, percent: u32| (f64::from(of) * f64::from(percent) / 100.0).round() as u32;
    levels
        .iter()
        .map(|level| {
            let nominal = match sum {
                0 => 0,
                sum => (u64::from(total) * u64::from(level.shares)).div_ceil(sum) as u32,
            };
            let borrowed = match level.borrowing_percent {
                Some(limit) => percent(nominal, limit),
                None => total,
            };
            Bounds {
                nominal,
                min: nominal - percent(nominal, level.lendable_percent).min(nominal),
                max: nominal.saturating_add(borrowed),
            }
        })
        .collect()
}

/// One level's part in an adjustment.
#[derive(Debug, Clone, Copy)]
pub struct Claim {
    pub exempt: bool,
    pub bounds: Bounds,
    pub peak: f64,
    pub smoothed: f64,
}

impl Claim {
    /// What a level has used of its own it keeps.
    fn least(&self) -> u32 {
        self.bounds.min.max(self.bounds.nominal.min(ceil(self.peak)))
    }

    /// The seats that the level is meant to have, before the others are looked at.
    pub fn target(&self) -> f64 {
        self.smoothed.max(f64::from(self.least()))
    }
}

fn ceil(seats: f64) -> u32 {
    seats.ceil().min(f64::from(u32::MAX)) as u32
}

/// The limits for the next period: every level gets what it needs of its own, and what is
/// left is shared by demand. Also the part of its target that everybody gets, or 0 where
/// there is not enough for that.
pub fn adjust(claims: &[Claim]) -> (Vec<u32>, f64) {
    let total: f64 = claims.iter().map(|claim| f64::from(claim.bounds.nominal)).sum();
    let exempt = |claim: &Claim| claim.bounds.min.max(ceil(claim.peak));
    let taken: f64 = claims.iter().filter(|c| c.exempt).map(|c| f64::from(exempt(c))).sum();
    let left = total - taken;
    let least = Claim::least;
    let limited: Vec<&Claim> = claims.iter().filter(|claim| !claim.exempt).collect();
    let sum = |of: &dyn Fn(&Claim) -> f64| limited.iter().map(|claim| of(claim)).sum::<f64>();
    let min_sum = sum(&|claim| f64::from(claim.bounds.min));
    let least_sum = sum(&|claim| f64::from(least(claim)));
    let fair = (left > least_sum).then(|| fair_factor(left, &limited, &least));
    let limits = claims
        .iter()
        .map(|claim| {
            let (min, least_now) = (f64::from(claim.bounds.min), f64::from(least(claim)));
            let seats = if claim.exempt {
                f64::from(exempt(claim))
            } else if let Some(factor) = fair {
                given(claim, least(claim), factor)
            } else if left <= min_sum {
                min
            } else {
                min + (least_now - min) * (left - min_sum) / (least_sum - min_sum)
            };
            seats.round() as u32
        })
        .collect();
    (limits, fair.unwrap_or(0.0))
}

fn given(claim: &Claim, least: u32, factor: f64) -> f64 {
    let least = f64::from(least);
    let target = claim.smoothed.max(least).max(0.001);
    (factor * target).clamp(least, f64::from(claim.bounds.max).max(least))
}

/// The factor by which every target is stretched so that all seats are given away, as far
/// as the bounds allow.
fn fair_factor(left: f64, limited: &[&Claim], least: &dyn Fn(&Claim) -> u32) -> f64 {
    let sum = |factor: f64| limited.iter().map(|c| given(c, least(c), factor)).sum::<f64>();
    let (mut low, mut high) = (0.0, 1.0);
    // Doubling ends: beyond this every level is at its upper bound.
    while sum(high) < left && high < 1e12 {
        high *= 2.0;
    }
    for _ in 0..64 {
        let middle = (low + high) / 2.0;
        if sum(middle) < left { low = middle } else { high = middle }
    }
    high
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shares(shares: u32, lendable_percent: u32) -> Shares {
        Shares { shares, lendable_percent, borrowing_percent: None }
    }

    #[test]
    fn the_bootstrap_levels_divide_600_seats_as_upstream_does() {
        // exempt, leader-election, node-high, system, workload-high, workload-low,
        // global-default, catch-all
        let levels = [
            shares(0, 0),
            shares(10, 0),
            shares(40, 25),
            shares(30, 33),
            shares(40, 50),
            shares(100, 90),
            shares(20, 50),
            shares(5, 0),
        ];
        let bounds = bounds(600, &levels);
        let shown: Vec<(u32, u32)> = bounds.iter().map(|b| (b.nominal, b.min)).collect();
        assert_eq!(
            shown,
            [(0, 0), (25, 25), (98, 73), (74, 50), (98, 49), (245, 24), (49, 24), (13, 13)]
        );
        assert!(bounds[1..].iter().all(|b| b.max == b.nominal + 600));
    }

    fn claim(nominal: u32, min: u32, peak: f64, smoothed: f64) -> Claim {
        let bounds = Bounds { nominal, min, max: nominal + 600 };
        Claim { exempt: false, bounds, peak, smoothed }
    }

    #[test]
    fn who_needs_seats_borrows_them_from_who_does_not() {
        let (limits, _) = adjust(&[claim(100, 20, 0.0, 0.0), claim(100, 20, 100.0, 300.0)]);
        assert_eq!(limits, [20, 180]);
        // The lender takes back what it uses itself.
        let (limits, _) = adjust(&[claim(100, 20, 80.0, 80.0), claim(100, 20, 100.0, 300.0)]);
        assert_eq!(limits, [80, 120]);
        // An idle server gives everybody a share of what nobody wants.
        let (limits, _) = adjust(&[claim(100, 20, 0.0, 0.0), claim(100, 20, 0.0, 0.0)]);
        assert_eq!(limits, [100, 100]);
    }

    #[test]
    fn a_borrower_stops_at_its_limit() {
        let mut greedy = claim(100, 50, 100.0, 1_000.0);
        greedy.bounds.max = 120;
        assert_eq!(adjust(&[greedy, claim(100, 0, 0.0, 0.0)]).0[0], 120);
    }

    #[test]
    fn what_the_exempt_use_is_missing_elsewhere() {
        let exempt = Claim { exempt: true, ..claim(0, 0, 150.0, 0.0) };
        let (limits, _) = adjust(&[exempt, claim(100, 20, 0.0, 0.0), claim(100, 40, 0.0, 0.0)]);
        assert_eq!(limits, [150, 20, 40]);
    }

    #[test]
    fn demand_rises_at_once_and_falls_slowly() {
        let mut demand = Demand::new(0.0);
        demand.set(0.0, 10.0);
        let first = demand.period(10.0);
        let steady = Period { peak: 10.0, average: 10.0, deviation: 0.0, smoothed: 10.0 };
        assert_eq!(first, steady);
        demand.set(10.0, 0.0);
        let Period { peak, smoothed, .. } = demand.period(20.0);
        assert_eq!(peak, 10.0);
        assert!((9.7..9.8).contains(&smoothed), "{smoothed}");
        // An hour later nothing of it is left.
        let Period { peak, smoothed, .. } = demand.period(3_620.0);
        assert_eq!(peak, 0.0);
        assert!(smoothed < 0.01, "{smoothed}");
    }
}
