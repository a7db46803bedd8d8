//! A pod is better where resources are used to a more like fraction with it than without it.

use super::{BEST, Contest};
use crate::pod::PodInfo;
use crate::profile::Profile;
use crate::snapshot::NodeInfo;

pub fn score(contest: &Contest<'_>) -> Option<Vec<i64>> {
    let profile = &contest.facts.profile;
    if !speaks_of(contest.pod, profile) {
        return None;
    }
    Some(contest.nodes.iter().map(|node| of_node(contest.pod, profile, node)).collect())
}

/// A pod that asks for nothing is well anywhere.
pub fn speaks_of(pod: &PodInfo, profile: &Profile) -> bool {
    profile.balanced.iter().any(|name| pod.requests.asked.get(name) != 0)
}

/// What the pod does to the balance: 75 where nothing, 50 where it spoils all of it, and 100 where
/// it restores it.
pub fn of_node(pod: &PodInfo, profile: &Profile, node: &NodeInfo) -> i64 {
    let asked = &pod.requests.asked;
    let part = |name: &String| {
        let (asked, all) = (asked.get(name), node.allocatable.get(name));
        let is_ours = ["cpu", "memory", "ephemeral-storage"].contains(&name.as_str());
        let share = |used: i64| (used as f64 / all as f64).min(1.0);
        let used = node.used.get(name);
        let counts = all > 0 && (is_ours || asked > 0);
        counts.then(|| (share(used + asked), share(used)))
    };
    let (with, without): (Vec<f64>, Vec<f64>) = profile.balanced.iter().filter_map(part).unzip();
    let half = BEST / 2;
    half + (half + balance(&with) - balance(&without)) / 2
}

fn balance(parts: &[f64]) -> i64 {
    ((1.0 - deviation(parts)) * BEST as f64) as i64
}

/// The standard deviation.
fn deviation(parts: &[f64]) -> f64 {
    if let [a, b] = parts {
        return (a - b).abs() / 2.0;
    }
    let count = parts.len().max(1) as f64;
    let mean = parts.iter().sum::<f64>() / count;
    (parts.iter().map(|part| (part - mean).powi(2)).sum::<f64>() / count).sqrt()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::testing::{node, pod};

    #[test]
    fn it_counts_what_a_pod_does_to_the_balance() {
        let info = |cpu: &str, memory: &str| PodInfo::new(Arc::new(pod("p", cpu, memory)));
        let profile = Profile::default();
        for (held, asked, want) in [
            // As much of one as of the other.
            (None, ("2", "2Gi"), 75),
            (Some(("1", "1Gi")), ("2", "2Gi"), 75),
            // A half of one and nothing of the other: 100 becomes 75.
            (None, ("2", "0"), 62),
            (Some(("2", "0")), ("0", "2Gi"), 87),
            (None, ("4", "0"), 50),
            (Some(("4", "0")), ("0", "4Gi"), 100),
            // It is as bad as it was.
            (Some(("2", "0")), ("1", "1Gi"), 75),
        ] {
            let mut on = NodeInfo::new(Arc::new(node("n", "4", "4Gi")));
            if let Some((cpu, memory)) = held {
                on.add_pod(Arc::new(info(cpu, memory)));
            }
            assert_eq!(of_node(&info(asked.0, asked.1), &profile, &on), want, "{held:?} {asked:?}");
        }
    }
}
