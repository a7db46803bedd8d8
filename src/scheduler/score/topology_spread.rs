//! Soft topology spread constraints, and the cluster's defaults for pods without any.

use std::collections::HashMap;

use super::{BEST, Contest};
use crate::facts::Facts;
use crate::filter::topology_spread::{self, Constraint, constraints};
use crate::pod::PodInfo;
use crate::snapshot::NodeInfo;

/// Pods are counted node by node for it.
pub const HOSTNAME: &str = "kubernetes.io/hostname";
const ZONE: &str = "topology.kubernetes.io/zone";

pub fn score(contest: &Contest<'_>) -> Option<Vec<i64>> {
    let Soft { constraints, needs_labels } = soft(contest.pod, contest.facts)?;
    let skipped: Vec<bool> =
        contest.nodes.iter().map(|node| needs_labels && !has_all(&constraints, node)).collect();
    let mut raw = vec![0.0; contest.nodes.len()];
    for constraint in &constraints {
        add(contest, &constraints, constraint, (&skipped, needs_labels), &mut raw);
    }
    let raw: Vec<i64> = raw.into_iter().map(|score: f64| score.round() as i64).collect();
    let counted = || raw.iter().zip(&skipped).filter(|(_, skipped)| !**skipped).map(|(s, _)| *s);
    let (least, most) = (counted().min().unwrap_or(0), counted().max().unwrap_or(0));
    let normal = |(score, skipped): (&i64, &bool)| match skipped {
        true => 0,
        false => normal(*score, least, most),
    };
    Some(raw.iter().zip(&skipped).map(normal).collect())
}

/// What a pod would like, and whether nodes without all of its labels are left out.
pub struct Soft {
    pub constraints: Vec<Constraint>,
    pub needs_labels: bool,
}

/// None where there is nothing.
pub fn soft(pod: &PodInfo, facts: &Facts) -> Option<Soft> {
    let (constraints, needs_labels) = if topology_spread::has_own(pod) {
        (constraints(pod, "ScheduleAnyway"), true)
    } else if facts.profile.spread_defaults.is_some() {
        (topology_spread::defaults(facts, "ScheduleAnyway"), true)
    } else {
        let siblings = facts.siblings.clone()?;
        let defaults = vec![
            Constraint::default_of(HOSTNAME, 3, siblings.clone()),
            Constraint::default_of(ZONE, 5, siblings),
        ];
        (defaults, false)
    };
    (!constraints.is_empty()).then_some(Soft { constraints, needs_labels })
}

/// Adds one constraint's share: pods in the node's domain, weighed by how many domains
/// there are.
fn add(
    contest: &Contest<'_>,
    constraints: &[Constraint],
    constraint: &Constraint,
    (skipped, needs_labels): (&[bool], bool),
    raw: &mut [f64],
) {
    let pod = contest.pod;
    let mut domains: HashMap<&str, i64> = HashMap::new();
    let by_host = constraint.key == HOSTNAME;
    for (node, skipped) in contest.nodes.iter().zip(skipped) {
        if let Some(value) = node.label(&constraint.key)
            && !skipped
        {
            domains.entry(value).or_default();
        }
    }
    if !by_host {
        for node in contest.snapshot.nodes() {
            let Some(value) = node.label(&constraint.key) else { continue };
            if needs_labels && !has_all(constraints, node) || !constraint.includes(pod, node) {
                continue;
            }
            if let Some(count) = domains.get_mut(value) {
                *count += constraint.count_on(pod, node);
            }
        }
    }
    let size = if by_host { skipped.iter().filter(|s| !**s).count() } else { domains.len() };
    let weight = weight(size);
    for ((node, skipped), score) in contest.nodes.iter().zip(skipped).zip(raw) {
        let Some(value) = node.label(&constraint.key) else { continue };
        if *skipped {
            continue;
        }
        let count = if by_host {
            constraint.count_on(pod, node)
        } else {
            domains.get(value).copied().unwrap_or(0)
        };
        *score += share(constraint, count, weight);
    }
}

pub fn has_all(constraints: &[Constraint], node: &NodeInfo) -> bool {
    constraints.iter().all(|constraint| node.label(&constraint.key).is_some())
}

/// How much a pod in a domain counts where there are so many domains.
pub fn weight(domains: usize) -> f64 {
    ((domains + 2) as f64).ln()
}

pub fn share(constraint: &Constraint, count: i64, weight: f64) -> f64 {
    count as f64 * weight + (constraint.max_skew - 1) as f64
}

/// 0 to 100 of a rounded sum of shares, where `least` and `most` are those of all nodes.
pub fn normal(score: i64, least: i64, most: i64) -> i64 {
    if most == 0 { BEST } else { BEST * (most + least - score) / most }
}
