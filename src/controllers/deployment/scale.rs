//! How many replicas each ReplicaSet gets: surge, unavailability, proportions.
//!
//! Numbers only.

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    pub replicas: i32,
    pub surge: i32,
    pub unavailable: i32,
}

impl Limits {
    pub fn of(deployment: &Deployment) -> Self {
        let spec = deployment.spec.as_ref();
        let replicas = spec.and_then(|s| s.replicas).unwrap_or(1);
        let strategy = spec.and_then(|s| s.strategy.as_ref());
        if strategy.and_then(|s| s.type_.as_deref()) == Some("Recreate") {
            return Self { replicas, surge: 0, unavailable: 0 };
        }
        let rolling = strategy.and_then(|s| s.rolling_update.as_ref());
        let quarter = || IntOrString::String("25%".into());
        let surge = rolling.and_then(|r| r.max_surge.clone()).unwrap_or_else(quarter);
        let unavailable = rolling.and_then(|r| r.max_unavailable.clone()).unwrap_or_else(quarter);
        let surge = part(&surge, replicas, true);
        let mut unavailable = part(&unavailable, replicas, false);
        if surge == 0 && unavailable == 0 {
            // Otherwise nothing could ever move.
            unavailable = 1;
        }
        Self { replicas, surge, unavailable: unavailable.min(replicas) }
    }

    pub fn max_total(&self) -> i32 {
        self.replicas + self.surge
    }

    pub fn min_available(&self) -> i32 {
        self.replicas - self.unavailable
    }
}

pub fn part(value: &IntOrString, of: i32, round_up: bool) -> i32 {
    match value {
        IntOrString::Int(number) => *number,
        IntOrString::String(text) => {
            let percent: i64 = text.trim_end_matches('%').parse().unwrap_or(0);
            let share = percent * i64::from(of);
            let share = if round_up { (share + 99) / 100 } else { share / 100 };
            i32::try_from(share).unwrap_or(i32::MAX)
        }
    }
}

/// What the newest set may grow to while all sets together have `total`.
pub fn grow(limits: &Limits, recreate: bool, newest: i32, total: i32) -> i32 {
    if recreate {
        return limits.replicas;
    }
    let room = (limits.max_total() - total).max(0);
    newest + room.min((limits.replicas - newest).max(0))
}

/// One set during a rolling update.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    pub wanted: i32,
    pub available: i32,
}

/// The sizes that the old sets, oldest first, shrink to: unhealthy pods go first, then
/// as many healthy ones as availability allows.
pub fn shrink(limits: &Limits, newest: Size, old: &[Size]) -> Vec<i32> {
    let mut out: Vec<i32> = old.iter().map(|size| size.wanted).collect();
    let total = newest.wanted + out.iter().sum::<i32>();
    let newest_unavailable = newest.wanted - newest.available;
    let most = total - limits.min_available() - newest_unavailable;
    if most <= 0 {
        return out;
    }
    let mut cleaned = 0;
    for (size, to) in old.iter().zip(&mut out) {
        let unhealthy = (size.wanted - size.available).max(0).min(most - cleaned);
        *to -= unhealthy;
        cleaned += unhealthy;
    }
    let available = newest.available + old.iter().map(|size| size.available).sum::<i32>();
    let mut spare = (available - limits.min_available()).max(0);
    for to in &mut out {
        let less = spare.min(*to);
        *to -= less;
        spare -= less;
    }
    out
}

/// A set that shares a change of the deployment's size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sharer {
    pub wanted: i32,
    /// What all sets might have together when this one was last sized.
    pub old_max: i32,
}

/// Spreads a change of the total over sets in proportion to their sizes; the first takes
/// what rounding leaves.
pub fn proportional(sets: &[Sharer], new_max: i32) -> Vec<i32> {
    let total: i32 = sets.iter().map(|set| set.wanted).sum();
    let to_add = new_max - total;
    let mut out = Vec::new();
    let mut added = 0;
    for Sharer { wanted: size, old_max } in sets {
        let share = if *size == 0 || to_add == 0 || *old_max == 0 {
            0
        } else {
            let grown = f64::from(*size) * f64::from(new_max) / f64::from(*old_max);
            let share = grown.round() as i32 - size;
            let left = to_add - added;
            if to_add > 0 { share.min(left).max(0) } else { share.max(left).min(0) }
        };
        added += share;
        out.push((size + share).max(0));
    }
    if let Some(first) = out.first_mut() {
        *first = (*first + to_add - added).max(0);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentages_round_in_the_safe_direction() {
        let quarter = IntOrString::String("25%".into());
        assert_eq!(part(&quarter, 3, true), 1);
        assert_eq!(part(&quarter, 3, false), 0);
        assert_eq!(part(&IntOrString::Int(2), 3, false), 2);
    }

    /// Plays a rolling update to its end and returns the sizes after every step.
    fn roll(limits: Limits) -> Vec<(i32, i32)> {
        let (mut new, mut old) = (0, limits.replicas);
        let mut out = vec![(old, new)];
        for _ in 0..20 {
            let grown = grow(&limits, false, new, new + old);
            if grown != new {
                new = grown;
            } else {
                // All pods became available in the meantime.
                let newest = Size { wanted: new, available: new };
                old = shrink(&limits, newest, &[Size { wanted: old, available: old }])[0];
            }
            assert!(new + old <= limits.max_total() && new + old >= limits.min_available());
            if out.last() == Some(&(old, new)) {
                break;
            }
            out.push((old, new));
        }
        out
    }

    #[test]
    fn a_rolling_update_keeps_its_limits() {
        let steps = roll(Limits { replicas: 3, surge: 1, unavailable: 0 });
        assert_eq!(steps, [(3, 0), (3, 1), (2, 1), (2, 2), (1, 2), (1, 3), (0, 3)]);
        let steps = roll(Limits { replicas: 2, surge: 0, unavailable: 1 });
        assert_eq!(steps, [(2, 0), (1, 0), (1, 1), (0, 1), (0, 2)]);
    }

    #[test]
    fn old_pods_stay_while_new_ones_are_not_available() {
        let limits = Limits { replicas: 3, surge: 1, unavailable: 0 };
        let old = [Size { wanted: 3, available: 3 }];
        assert_eq!(shrink(&limits, Size { wanted: 1, available: 0 }, &old), [3]);
        let sick = [Size { wanted: 3, available: 1 }];
        let limits = Limits { replicas: 3, surge: 1, unavailable: 1 };
        assert_eq!(shrink(&limits, Size { wanted: 1, available: 0 }, &sick), [2]);
    }

    #[test]
    fn scaling_in_the_middle_of_a_rollout_keeps_proportions() {
        let share = |sizes: [i32; 2], old_max, new_max| {
            proportional(&sizes.map(|wanted| Sharer { wanted, old_max }), new_max)
        };
        assert_eq!(share([8, 5], 13, 26), [16, 10]);
        assert_eq!(share([8, 5], 13, 13), [8, 5]);
        assert_eq!(share([5, 5], 10, 5).iter().sum::<i32>(), 5);
    }
}
