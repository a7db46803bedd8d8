//! Resources used to a like fraction are better than one of them alone.

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

pub fn of_node(pod: &PodInfo, profile: &Profile, node: &NodeInfo) -> i64 {
    let asked = &pod.requests.asked;
    let part = |name: &String| {
        let (asked, all) = (asked.get(name), node.allocatable.get(name));
        let is_ours = ["cpu", "memory", "ephemeral-storage"].contains(&name.as_str());
        let counts = all > 0 && (is_ours || asked > 0);
        counts.then(|| ((node.used.get(name) + asked) as f64 / all as f64).min(1.0))
    };
    let parts: Vec<f64> = profile.balanced.iter().filter_map(part).collect();
    ((1.0 - deviation(&parts)) * BEST as f64) as i64
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
