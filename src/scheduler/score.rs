//! Which of the nodes that can take a pod should: each rule in a file of its own.
//!
//! Every rule gives 0 to 100 per node; the profile has the weights.

pub mod balance;
pub mod devices;
pub mod image_locality;
pub mod inter_pod_affinity;
pub mod node_affinity;
pub mod node_resources;
pub mod taints;
pub mod topology_spread;

use std::time::Instant;

use crate::facts::Facts;
use crate::metrics::{self, Point};
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

/// The rules, as upstream names its plugins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Judge {
    TaintToleration,
    NodeAffinity,
    PodTopologySpread,
    InterPodAffinity,
    NodeResourcesFit,
    NodeResourcesBalancedAllocation,
    ImageLocality,
    DynamicResources,
}

impl Judge {
    /// The rule that upstream's plugin of this name is.
    pub fn named(name: &str) -> Option<Self> {
        Some(match name {
            "TaintToleration" => Judge::TaintToleration,
            "NodeAffinity" => Judge::NodeAffinity,
            "PodTopologySpread" => Judge::PodTopologySpread,
            "InterPodAffinity" => Judge::InterPodAffinity,
            "NodeResourcesFit" => Judge::NodeResourcesFit,
            "NodeResourcesBalancedAllocation" => Judge::NodeResourcesBalancedAllocation,
            "ImageLocality" => Judge::ImageLocality,
            "DynamicResources" => Judge::DynamicResources,
            _ => return None,
        })
    }

    /// None: the rule has nothing to say about this pod.
    fn score(self, contest: &Contest<'_>) -> Option<Vec<i64>> {
        match self {
            Judge::TaintToleration => taints::score(contest),
            Judge::NodeAffinity => node_affinity::score(contest),
            Judge::PodTopologySpread => topology_spread::score(contest),
            Judge::InterPodAffinity => inter_pod_affinity::score(contest),
            Judge::NodeResourcesFit => node_resources::score(contest),
            Judge::NodeResourcesBalancedAllocation => balance::score(contest),
            Judge::ImageLocality => image_locality::score(contest),
            Judge::DynamicResources => devices::score(contest),
        }
    }
}

/// The weighted sum for every node of the contest.
pub fn totals(contest: &Contest<'_>) -> Vec<i64> {
    let mut out = vec![0; contest.nodes.len()];
    let is_sample = metrics::is_sample(Point::Score);
    for (weight, judge) in &contest.facts.profile.scores {
        let begun = is_sample.then(Instant::now);
        let scores = judge.score(contest);
        if let Some(begun) = begun {
            metrics::plugin_took(Point::Score, *judge, true, begun.elapsed());
        }
        for (total, score) in out.iter_mut().zip(scores.into_iter().flatten()) {
            *total += weight * score;
        }
    }
    out
}

/// Scales to 0..=100 by the largest; `fewer_is_better` turns it around.
fn scaled(mut scores: Vec<i64>, fewer_is_better: bool) -> Vec<i64> {
    let largest = scores.iter().copied().max().unwrap_or(0);
    for score in &mut scores {
        *score = scaled_by(largest, fewer_is_better, *score);
    }
    scores
}

/// One of the scores of which `largest` is the largest.
pub fn scaled_by(largest: i64, fewer_is_better: bool, score: i64) -> i64 {
    match (largest, fewer_is_better) {
        (0, true) => BEST,
        (0, false) => 0,
        (_, true) => BEST - BEST * score / largest,
        (_, false) => BEST * score / largest,
    }
}
