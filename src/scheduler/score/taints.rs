//! Fewer `PreferNoSchedule` taints that the pod does not tolerate are better.

use client::fit::tolerates;

use super::{Contest, scaled};
use crate::pod::PodInfo;
use crate::snapshot::NodeInfo;

pub fn score(contest: &Contest<'_>) -> Option<Vec<i64>> {
    Some(scaled(contest.nodes.iter().map(|node| of_node(contest.pod, node)).collect(), true))
}

/// Not yet scaled.
pub fn of_node(pod: &PodInfo, node: &NodeInfo) -> i64 {
    let tolerations = pod.tolerations();
    let soft = node.taints().iter().filter(|taint| taint.effect == "PreferNoSchedule");
    soft.filter(|taint| !tolerations.iter().any(|t| tolerates(t, taint))).count() as i64
}
