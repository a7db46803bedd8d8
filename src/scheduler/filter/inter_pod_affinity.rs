//! Required affinity and anti-affinity between pods, in both directions.

use std::collections::HashMap;

use super::{Reject, Rule};
use crate::facts::Facts;
use crate::pod::PodInfo;
use crate::snapshot::{NodeInfo, Snapshot};

type Domains = HashMap<(String, String), i64>;

#[derive(Debug, Clone, Default)]
pub struct Counted {
    /// Pods that match all affinity terms of the pod, by domain of each term.
    wanted: Domains,
    /// Pods that match an anti-affinity term of the pod.
    unwanted: Domains,
    /// Pods that have an anti-affinity term against the pod.
    refused_by: Domains,
}

pub fn count(pod: &PodInfo, facts: &Facts, snapshot: &Snapshot) -> Counted {
    let mut out = Counted::default();
    let has_terms = !facts.terms.affinity.is_empty() || !facts.terms.anti_affinity.is_empty();
    if !has_terms && snapshot.with_terms == 0 {
        return out;
    }
    for node in snapshot.nodes() {
        if !has_terms && node.with_terms == 0 {
            continue;
        }
        for other in node.pods.values() {
            out.shift(pod, facts, other, node, 1);
        }
    }
    out
}

fn tally(domains: &mut Domains, key: &str, node: &NodeInfo, by: i64) {
    let Some(value) = node.label(key) else { return };
    *domains.entry((key.to_string(), value.to_string())).or_default() += by;
}

fn at(domains: &Domains, key: &str, value: &str) -> i64 {
    domains.get(&(key.to_string(), value.to_string())).copied().unwrap_or(0)
}

impl Counted {
    pub fn shift(
        &mut self,
        pod: &PodInfo,
        facts: &Facts,
        other: &PodInfo,
        node: &NodeInfo,
        by: i64,
    ) {
        let affinity = &facts.terms.affinity;
        if !affinity.is_empty() && affinity.iter().all(|term| term.selects(other, None)) {
            for term in affinity {
                tally(&mut self.wanted, &term.topology_key, node, by);
            }
        }
        for term in &facts.terms.anti_affinity {
            if term.selects(other, None) {
                tally(&mut self.unwanted, &term.topology_key, node, by);
            }
        }
        for term in other.terms.iter().flat_map(|terms| &terms.anti_affinity) {
            if term.selects(pod, facts.namespace_labels.as_ref()) {
                tally(&mut self.refused_by, &term.topology_key, node, by);
            }
        }
    }
}

pub fn check(
    pod: &PodInfo,
    facts: &Facts,
    counted: &Counted,
    node: &NodeInfo,
) -> Result<(), Reject> {
    let rule = Rule::InterPodAffinity;
    if !has_company(pod, facts, counted, node) {
        return Err(Reject::for_good(rule, "node(s) didn't match pod affinity rules"));
    }
    let meets = |term: &crate::pod::Term| {
        let value = node.label(&term.topology_key);
        value.is_some_and(|value| at(&counted.unwanted, &term.topology_key, value) > 0)
    };
    if facts.terms.anti_affinity.iter().any(meets) {
        return Err(Reject::for_now(rule, "node(s) didn't match pod anti-affinity rules"));
    }
    let refused = counted
        .refused_by
        .iter()
        .any(|((key, value), count)| *count > 0 && node.label(key) == Some(value));
    if refused {
        let reason = "node(s) didn't satisfy existing pods anti-affinity rules";
        return Err(Reject::for_now(rule, reason));
    }
    Ok(())
}

/// The first pod of a group that wants to be near itself may start anywhere.
fn has_company(pod: &PodInfo, facts: &Facts, counted: &Counted, node: &NodeInfo) -> bool {
    let terms = &facts.terms.affinity;
    let mut all = true;
    for term in terms {
        let Some(value) = node.label(&term.topology_key) else { return false };
        all &= at(&counted.wanted, &term.topology_key, value) > 0;
    }
    all || (counted.wanted.values().all(|count| *count <= 0)
        && terms.iter().all(|term| term.selects(pod, None)))
}
