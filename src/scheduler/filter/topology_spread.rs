//! Hard topology spread constraints (`whenUnsatisfiable: DoNotSchedule`).

use std::collections::HashMap;

use k8s_openapi::api::core::v1::TopologySpreadConstraint;
use kinds::meta::LabelSelector;
use kinds::meta::selector::{Operator, Requirement};

use super::{Reject, Rule, node_affinity, taints};
use crate::facts::Facts;
use crate::pod::PodInfo;
use crate::snapshot::{NodeInfo, Snapshot};

/// A constraint, its selector parsed and completed by `matchLabelKeys`.
#[derive(Debug, Clone)]
pub struct Constraint {
    pub key: String,
    pub max_skew: i64,
    pub min_domains: i64,
    pub selector: LabelSelector,
    honour_affinity: bool,
    honour_taints: bool,
}

impl Constraint {
    pub fn new(typed: &TopologySpreadConstraint, pod: &PodInfo) -> Self {
        let mut selector = client::labels::selector(typed.label_selector.as_ref());
        for key in typed.match_label_keys.iter().flatten() {
            if let Some(value) = pod.labels().and_then(|labels| labels.get(key)) {
                selector.requirements.push(Requirement {
                    key: key.clone(),
                    operator: Operator::In,
                    values: [value.clone()].into(),
                });
            }
        }
        Self {
            key: typed.topology_key.clone(),
            max_skew: i64::from(typed.max_skew),
            min_domains: i64::from(typed.min_domains.unwrap_or(1)),
            selector,
            honour_affinity: typed.node_affinity_policy.as_deref() != Some("Ignore"),
            honour_taints: typed.node_taints_policy.as_deref() == Some("Honor"),
        }
    }

    /// One of the cluster's defaults, which look at every node.
    pub fn default_of(key: &str, max_skew: i64, selector: LabelSelector) -> Self {
        Self {
            key: key.into(),
            max_skew,
            min_domains: 1,
            selector,
            honour_affinity: true,
            honour_taints: false,
        }
    }

    /// Whether `node` takes part in the constraint at all.
    pub fn includes(&self, pod: &PodInfo, node: &NodeInfo) -> bool {
        (!self.honour_affinity || node_affinity::matches(pod, node))
            && (!self.honour_taints || taints::untolerated(pod, node).is_none())
    }

    pub fn counts(&self, pod: &PodInfo, other: &PodInfo) -> bool {
        !other.terminating
            && other.namespace == pod.namespace
            && self.selector.matches_map(other.labels())
    }

    pub fn count_on(&self, pod: &PodInfo, node: &NodeInfo) -> i64 {
        node.pods.values().filter(|other| self.counts(pod, other)).count() as i64
    }
}

/// The constraints of one kind that a profile gives to pods without any; they need
/// siblings to count.
pub fn defaults(facts: &Facts, when_unsatisfiable: &str) -> Vec<Constraint> {
    let (Some(defaults), Some(siblings)) = (&facts.profile.spread_defaults, &facts.siblings) else {
        return Vec::new();
    };
    let of_kind = defaults.iter().filter(|c| c.when_unsatisfiable == when_unsatisfiable);
    let of = |c: &TopologySpreadConstraint| Constraint {
        key: c.topology_key.clone(),
        max_skew: i64::from(c.max_skew),
        min_domains: i64::from(c.min_domains.unwrap_or(1)),
        selector: siblings.clone(),
        honour_affinity: c.node_affinity_policy.as_deref() != Some("Ignore"),
        honour_taints: c.node_taints_policy.as_deref() == Some("Honor"),
    };
    of_kind.map(of).collect()
}

pub fn has_own(pod: &PodInfo) -> bool {
    let all = pod.spec().and_then(|s| s.topology_spread_constraints.as_ref());
    all.is_some_and(|constraints| !constraints.is_empty())
}

/// The pod's own constraints of one kind.
pub fn constraints(pod: &PodInfo, when_unsatisfiable: &str) -> Vec<Constraint> {
    let all = pod.spec().and_then(|s| s.topology_spread_constraints.as_deref());
    let all = all.unwrap_or_default().iter();
    all.filter(|c| c.when_unsatisfiable == when_unsatisfiable)
        .map(|c| Constraint::new(c, pod))
        .collect()
}

#[derive(Debug, Clone, Default)]
pub struct Counted {
    constraints: Vec<(Constraint, bool, HashMap<String, i64>)>,
}

pub fn count(pod: &PodInfo, facts: &Facts, snapshot: &Snapshot) -> Counted {
    let constraints = match has_own(pod) {
        true => constraints(pod, "DoNotSchedule"),
        false => defaults(facts, "DoNotSchedule"),
    };
    if constraints.is_empty() {
        return Counted::default();
    }
    let keys: Vec<String> = constraints.iter().map(|c| c.key.clone()).collect();
    let mut out = Counted {
        constraints: constraints
            .into_iter()
            .map(|c| {
                let counts_itself = c.selector.matches_map(pod.labels());
                (c, counts_itself, HashMap::new())
            })
            .collect(),
    };
    for node in snapshot.nodes() {
        if !keys.iter().all(|key| node.label(key).is_some()) {
            continue;
        }
        for (constraint, _, counts) in &mut out.constraints {
            if let Some(value) = node.label(&constraint.key)
                && constraint.includes(pod, node)
            {
                *counts.entry(value.to_string()).or_default() += constraint.count_on(pod, node);
            }
        }
    }
    out
}

impl Counted {
    pub fn shift(&mut self, pod: &PodInfo, other: &PodInfo, node: &NodeInfo, by: i64) {
        for (constraint, _, counts) in &mut self.constraints {
            if constraint.includes(pod, node)
                && constraint.counts(pod, other)
                && let Some(count) = node.label(&constraint.key).and_then(|v| counts.get_mut(v))
            {
                *count += by;
            }
        }
    }
}

pub fn check(counted: &Counted, node: &NodeInfo) -> Result<(), Reject> {
    const MISMATCH: &str = "node(s) didn't match pod topology spread constraints";
    for (constraint, counts_itself, counts) in &counted.constraints {
        let Some(value) = node.label(&constraint.key) else {
            let reason = format!("{MISMATCH} (missing required label)");
            return Err(Reject::for_good(Rule::PodTopologySpread, reason));
        };
        let fewest = counts.values().copied().min().unwrap_or(0);
        let fewest = if (counts.len() as i64) < constraint.min_domains { 0 } else { fewest };
        let here = counts.get(value).copied().unwrap_or(0);
        if here + i64::from(*counts_itself) - fewest > constraint.max_skew {
            return Err(Reject::for_now(Rule::PodTopologySpread, MISMATCH));
        }
    }
    Ok(())
}
