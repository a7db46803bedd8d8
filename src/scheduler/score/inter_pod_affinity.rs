//! Preferred affinity and anti-affinity between pods, in both directions.

use std::collections::HashMap;

use super::{BEST, Contest};
use crate::facts::Facts;
use crate::pod::{PodInfo, Term};
use crate::snapshot::NodeInfo;

type Domains<'a> = HashMap<(String, &'a str), i64>;

pub fn score(contest: &Contest<'_>) -> Option<Vec<i64>> {
    let prefers = has_preferences(contest.facts);
    if !prefers && contest.snapshot.with_terms == 0 {
        return None;
    }
    let mut domains = Domains::new();
    for node in contest.snapshot.nodes() {
        if !prefers && node.with_terms == 0 {
            continue;
        }
        for other in node.pods.values() {
            each(contest.pod, contest.facts, other, &mut |term, weight| {
                if let Some(value) = node.label(&term.topology_key) {
                    *domains.entry((term.topology_key.clone(), value)).or_default() += weight;
                }
            });
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
    Some(raw.into_iter().map(|score| normal(score, least, most)).collect())
}

/// 0 to 100 of a sum, where `least` and `most` are those of all nodes.
pub fn normal(score: i64, least: i64, most: i64) -> i64 {
    if most > least { BEST * (score - least) / (most - least) } else { 0 }
}

fn has_preferences(facts: &Facts) -> bool {
    !facts.terms.prefers.is_empty() || !facts.terms.prefers_not.is_empty()
}

/// Tells what of `other` counts for the pod: terms of either side, and by how much.
pub fn each(pod: &PodInfo, facts: &Facts, other: &PodInfo, add: &mut dyn FnMut(&Term, i64)) {
    let mine = &facts.terms;
    for term in mine.prefers.iter().filter(|term| term.selects(other, None)) {
        add(term, term.weight);
    }
    for term in mine.prefers_not.iter().filter(|term| term.selects(other, None)) {
        add(term, -term.weight);
    }
    let Some(its) = &other.terms else { return };
    let speaks = |term: &&Term| term.selects(pod, facts.namespace_labels.as_ref());
    for term in its.affinity.iter().filter(speaks) {
        add(term, facts.profile.hard_affinity_weight);
    }
    if facts.profile.ignores_preferred_of_existing && !has_preferences(facts) {
        return;
    }
    for term in its.prefers.iter().filter(speaks) {
        add(term, term.weight);
    }
    for term in its.prefers_not.iter().filter(speaks) {
        add(term, -term.weight);
    }
}
