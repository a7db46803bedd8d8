//! Preferred node affinity: the weights of the terms that match.

use super::{Contest, scaled};
use crate::filter::node_affinity::term_selects;

pub fn score(contest: &Contest<'_>) -> Option<Vec<i64>> {
    let affinity = contest.pod.spec()?.affinity.as_ref()?.node_affinity.as_ref()?;
    let preferred = affinity.preferred_during_scheduling_ignored_during_execution.as_ref()?;
    let score = |node: &&crate::snapshot::NodeInfo| {
        let met = preferred.iter().filter(|term| term_selects(&term.preference, node));
        met.map(|term| i64::from(term.weight)).sum()
    };
    Some(scaled(contest.nodes.iter().map(score).collect(), false))
}
