//! Soft topology spread constraints, and the cluster's defaults for pods without any.

use std::collections::HashMap;

use super::{BEST, Contest};
use crate::filter::topology_spread::{self, Constraint, constraints};

const HOSTNAME: &str = "kubernetes.io/hostname";
const ZONE: &str = "topology.kubernetes.io/zone";

pub fn score(contest: &Contest<'_>) -> Option<Vec<i64>> {
    let pod = contest.pod;
    let (constraints, needs_labels) = if topology_spread::has_own(pod) {
        (constraints(pod, "ScheduleAnyway"), true)
    } else if contest.facts.profile.spread_defaults.is_some() {
        (topology_spread::defaults(contest.facts, "ScheduleAnyway"), true)
    } else {
        let siblings = contest.facts.siblings.clone()?;
        let defaults = vec![
            Constraint::default_of(HOSTNAME, 3, siblings.clone()),
            Constraint::default_of(ZONE, 5, siblings),
        ];
        (defaults, false)
    };
    if constraints.is_empty() {
        return None;
    }
    let skipped: Vec<bool> = contest
        .nodes
        .iter()
        .map(|node| needs_labels && constraints.iter().any(|c| node.label(&c.key).is_none()))
        .collect();
    let mut raw = vec![0.0; contest.nodes.len()];
    for constraint in &constraints {
        add(contest, constraint, &skipped, needs_labels, &mut raw);
    }
    let raw: Vec<i64> = raw.into_iter().map(|score: f64| score.round() as i64).collect();
    let counted = || raw.iter().zip(&skipped).filter(|(_, skipped)| !**skipped).map(|(s, _)| *s);
    let (least, most) = (counted().min().unwrap_or(0), counted().max().unwrap_or(0));
    let normal = |(score, skipped): (&i64, &bool)| match (skipped, most) {
        (true, _) => 0,
        (false, 0) => BEST,
        (false, most) => BEST * (most + least - score) / most,
    };
    Some(raw.iter().zip(&skipped).map(normal).collect())
}

/// Adds one constraint's share: pods in the node's domain, weighed by how many domains
/// there are.
fn add(
    contest: &Contest<'_>,
    constraint: &Constraint,
    skipped: &[bool],
    needs_labels: bool,
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
            if needs_labels && !constraint.includes(pod, node) {
                continue;
            }
            if let Some(count) = domains.get_mut(value) {
                *count += constraint.count_on(pod, node);
            }
        }
    }
    let size = if by_host { skipped.iter().filter(|s| !**s).count() } else { domains.len() };
    let weight = ((size + 2) as f64).ln();
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
        *score += count as f64 * weight + (constraint.max_skew - 1) as f64;
    }
}
