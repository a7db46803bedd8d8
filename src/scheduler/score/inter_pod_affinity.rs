//! Preferred affinity and anti-affinity between pods, in both directions.

use std::collections::HashMap;

use super::{BEST, Contest};
use crate::pod::{PodInfo, Term};
use crate::snapshot::NodeInfo;

type Domains<'a> = HashMap<(String, &'a str), i64>;

pub fn score(contest: &Contest<'_>) -> Option<Vec<i64>> {
    let prefers = has_preferences(contest);
    if !prefers && contest.snapshot.with_terms == 0 {
        return None;
    }
    let mut domains = Domains::new();
    for node in contest.snapshot.nodes() {
        if !prefers && node.with_terms == 0 {
            continue;
        }
        for other in node.pods.values() {
            add_pod(contest, node, other, &mut domains);
        }
    }
    if domains.is_empty() {
        return None;
    }
    let sum = |node: &&NodeInfo| -> i64 {
        let here = domains.iter().filter(|((key, value), _)| node.label(key) == Some(*value));
        here.map(|(_, weight)| *weight).sum()
    };
    let raw: Vec<i64> = contest.nodes.iter().map(sum).collect();
    let (least, most) = (raw.iter().min().copied()?, raw.iter().max().copied()?);
    let spread = most - least;
    let normal = |score: i64| if spread > 0 { BEST * (score - least) / spread } else { 0 };
    Some(raw.into_iter().map(normal).collect())
}

fn has_preferences(contest: &Contest<'_>) -> bool {
    let terms = &contest.facts.terms;
    !terms.prefers.is_empty() || !terms.prefers_not.is_empty()
}

fn add_pod<'a>(
    contest: &Contest<'_>,
    node: &'a NodeInfo,
    other: &PodInfo,
    domains: &mut Domains<'a>,
) {
    let mut add = |term: &Term, weight: i64| {
        if let Some(value) = node.label(&term.topology_key) {
            *domains.entry((term.topology_key.clone(), value)).or_default() += weight;
        }
    };
    let mine = &contest.facts.terms;
    for term in mine.prefers.iter().filter(|term| term.selects(other, None)) {
        add(term, term.weight);
    }
    for term in mine.prefers_not.iter().filter(|term| term.selects(other, None)) {
        add(term, -term.weight);
    }
    let Some(its) = &other.terms else { return };
    let speaks = |term: &&Term| term.selects(contest.pod, contest.facts.namespace_labels.as_ref());
    for term in its.affinity.iter().filter(speaks) {
        add(term, contest.facts.profile.hard_affinity_weight);
    }
    if contest.facts.profile.ignores_preferred_of_existing && !has_preferences(contest) {
        return;
    }
    for term in its.prefers.iter().filter(speaks) {
        add(term, term.weight);
    }
    for term in its.prefers_not.iter().filter(speaks) {
        add(term, -term.weight);
    }
}
