//! Preferred node affinity: the weights of the terms that match.

use super::{Contest, scaled};
use crate::filter::node_affinity::term_selects;

pub fn score(contest: &Contest<'_>) -> Option<Vec<i64>> {
    let affinity = contest.pod.spec().and_then(|spec| spec.affinity.as_ref());
    let own = affinity.and_then(|affinity| affinity.node_affinity.as_ref());
    let added = contest.facts.profile.added_affinity.as_ref();
    let preferred: Vec<_> = own
        .into_iter()
        .chain(added)
        .flat_map(|it| it.preferred_during_scheduling_ignored_during_execution.iter().flatten())
        .collect();
    if preferred.is_empty() {
        return None;
    }
    let score = |node: &&crate::snapshot::NodeInfo| {
        let met = preferred.iter().filter(|term| term_selects(&term.preference, node));
        met.map(|term| i64::from(term.weight)).sum()
    };
    Some(scaled(contest.nodes.iter().map(score).collect(), false))
}
