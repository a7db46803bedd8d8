//! Preferred node affinity: the weights of the terms that match.

use k8s_openapi::api::core::v1::PreferredSchedulingTerm;

use super::{Contest, scaled};
use crate::filter::node_affinity::term_selects;
use crate::pod::PodInfo;
use crate::profile::Profile;
use crate::snapshot::NodeInfo;

pub fn score(contest: &Contest<'_>) -> Option<Vec<i64>> {
    let preferred: Vec<_> = preferred(contest.pod, &contest.facts.profile).collect();
    if preferred.is_empty() {
        return None;
    }
    let score = |node: &&NodeInfo| of_node(preferred.iter().copied(), node);
    Some(scaled(contest.nodes.iter().map(score).collect(), false))
}

/// What the pod, or its profile for it, would rather have.
pub fn preferred<'a>(
    pod: &'a PodInfo,
    profile: &'a Profile,
) -> impl Iterator<Item = &'a PreferredSchedulingTerm> {
    let affinity = pod.spec().and_then(|spec| spec.affinity.as_ref());
    let own = affinity.and_then(|affinity| affinity.node_affinity.as_ref());
    let all = own.into_iter().chain(profile.added_affinity.as_ref());
    all.flat_map(|it| it.preferred_during_scheduling_ignored_during_execution.iter().flatten())
}

/// Not yet scaled.
pub fn of_node<'a>(
    preferred: impl Iterator<Item = &'a PreferredSchedulingTerm>,
    node: &NodeInfo,
) -> i64 {
    let met = preferred.filter(|term| term_selects(&term.preference, node));
    met.map(|term| i64::from(term.weight)).sum()
}
