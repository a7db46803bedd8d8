//! Which of the nodes that can take a pod should: each rule in a file of its own.
//!
//! Every rule gives 0 to 100 per node; the weights are upstream's defaults.

pub mod balance;
pub mod image_locality;
pub mod inter_pod_affinity;
pub mod least_allocated;
pub mod node_affinity;
pub mod taints;
pub mod topology_spread;

use crate::facts::Facts;
use crate::pod::PodInfo;
use crate::snapshot::{NodeInfo, Snapshot};

pub const BEST: i64 = 100;

/// What a rule may look at.
pub struct Contest<'a> {
    pub pod: &'a PodInfo,
    pub facts: &'a Facts,
    pub snapshot: &'a Snapshot,
    /// The nodes that can take the pod.
    pub nodes: &'a [&'a NodeInfo],
}

/// None: the rule has nothing to say about this pod.
type Judge = fn(&Contest<'_>) -> Option<Vec<i64>>;

const JUDGES: [(i64, Judge); 7] = [
    (3, taints::score),
    (2, node_affinity::score),
    (2, topology_spread::score),
    (2, inter_pod_affinity::score),
    (1, least_allocated::score),
    (1, balance::score),
    (1, image_locality::score),
];

/// The weighted sum for every node of the contest.
pub fn totals(contest: &Contest<'_>) -> Vec<i64> {
    let mut out = vec![0; contest.nodes.len()];
    for (weight, judge) in JUDGES {
        for (total, score) in out.iter_mut().zip(judge(contest).into_iter().flatten()) {
            *total += weight * score;
        }
    }
    out
}

/// Scales to 0..=100 by the largest; `fewer_is_better` turns it around.
fn scaled(mut scores: Vec<i64>, fewer_is_better: bool) -> Vec<i64> {
    let largest = scores.iter().copied().max().unwrap_or(0);
    for score in &mut scores {
        *score = match (largest, fewer_is_better) {
            (0, true) => BEST,
            (0, false) => 0,
            (_, true) => BEST - BEST * *score / largest,
            (_, false) => BEST * *score / largest,
        };
    }
    scores
}
