//! Which nodes get a pod, which pods go, and what to report. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{Node, Pod};
use serde_json::{Value, json};

use super::node::{is_updated, should_run, target};
use crate::deployment::scale::part;
use crate::owner::{created, name};
use crate::pod;

/// A pod of the set; `going` if it is being deleted, though the cache may not say so yet.
#[derive(Clone)]
pub struct Held {
    pub pod: Arc<Pod>,
    pub going: bool,
}

#[derive(Default)]
pub struct Plan {
    /// Names of nodes.
    pub create: Vec<String>,
    pub delete: Vec<Arc<Pod>>,
    /// Finished pods, to be deleted with back-off.
    pub finished: Vec<Arc<Pod>>,
    pub status: Value,
    pub look_again_in: Option<i64>,
}

pub fn plan(set: &DaemonSet, nodes: &[Arc<Node>], held: &[Held], hash: &str, now: i64) -> Plan {
    let spec = set.spec.clone().unwrap_or_default();
    let min_ready = spec.min_ready_seconds.unwrap_or(0);
    let available = |pod: &Pod| pod::available_in(pod, min_ready, now) == Some(0);
    let updated = |pod: &Pod| is_updated(set, hash, pod);
    let mut on_node: BTreeMap<String, Vec<&Held>> = BTreeMap::new();
    for one in held {
        if let Some(node) = target(&one.pod) {
            on_node.entry(node.to_string()).or_default().push(one);
        }
    }
    for pods in on_node.values_mut() {
        pods.sort_by_key(|h| {
            (pod::node(&h.pod).is_empty(), created(&h.pod.metadata), name(&h.pod.metadata))
        });
    }
    let runs: Vec<(&str, bool, bool)> = nodes
        .iter()
        .map(|node| {
            let (run, stay) = should_run(&spec.template, node);
            (name(&node.metadata), run, stay)
        })
        .collect();
    let desired = runs.iter().filter(|r| r.1).count() as i32;
    let strategy = spec.update_strategy.unwrap_or_default();
    let rolls = strategy.type_.as_deref() != Some("OnDelete");
    let rolling = strategy.rolling_update.unwrap_or_default();
    let bound = |value: &Option<_>, or| value.as_ref().map_or(or, |v| part(v, desired, true));
    let surge = if rolls { bound(&rolling.max_surge, 0) } else { 0 };
    let mut unavailable_max = bound(&rolling.max_unavailable, 1);
    if surge == 0 && unavailable_max == 0 && desired > 0 {
        unavailable_max = 1;
    }
    let mut out = Plan::default();
    let (mut current, mut ready, mut ok, mut new, mut misplaced) = (0, 0, 0, 0, 0);
    let (mut broken, mut candidates) = (Vec::new(), Vec::new());
    let (mut down, mut surging) = (0, 0);
    for (node, run, stay) in &runs {
        let pods = on_node.remove(*node).unwrap_or_default();
        if *run {
            desired_counts(&pods, &mut current);
            if let Some(first) = pods.first() {
                ready += i32::from(pod::is_ready(&first.pod));
                ok += i32::from(available(&first.pod));
                new += i32::from(updated(&first.pod));
            }
        } else if !pods.is_empty() {
            misplaced += 1;
        }
        let here: Vec<_> = pods.iter().filter(|h| !h.going).map(|h| h.pod.clone()).collect();
        if !stay {
            out.delete.extend(here);
            continue;
        }
        if *run && !pods.iter().any(|h| !(h.going && pod::is_finished(&h.pod))) {
            out.create.push(node.to_string());
        }
        let (finished, running): (Vec<_>, Vec<_>) =
            here.into_iter().partition(|p| pod::is_finished(p));
        out.finished.extend(finished);
        for pod in &running {
            if let Some(left) = pod::available_in(pod, min_ready, now).filter(|left| *left > 0) {
                out.look_again_in = Some(out.look_again_in.map_or(left, |l: i64| l.min(left)));
            }
        }
        let (news, olds): (Vec<_>, Vec<_>) = running.iter().cloned().partition(|p| updated(p));
        if surge == 0 {
            out.delete.extend(running.iter().skip(1).cloned());
        } else {
            out.delete.extend(news.iter().skip(1).chain(olds.iter().skip(1)).cloned());
        }
        if !run && running.is_empty() {
            continue;
        }
        match (news.first(), olds.first()) {
            (Some(fresh), Some(old)) if surge > 0 => {
                if available(fresh) || !pod::is_ready(old) {
                    out.delete.push(old.clone());
                } else {
                    surging += 1;
                }
            }
            (Some(fresh), None) => down += i32::from(!available(fresh)),
            (None, Some(old)) if available(old) => candidates.push((*node, old.clone())),
            (None, Some(old)) => {
                down += 1;
                broken.push((*node, old.clone()));
            }
            _ => down += 1,
        }
    }
    // Pods bound for nodes that are no more; those already there are the pod collector's.
    for one in on_node.into_values().flatten() {
        if pod::node(&one.pod).is_empty() && !one.going {
            out.delete.push(one.pod.clone());
        }
    }
    if rolls {
        let room = if surge > 0 { surge - surging } else { unavailable_max - down };
        let turn = broken.into_iter().chain(candidates.into_iter().take(room.max(0) as usize));
        for (node, pod) in turn {
            if surge > 0 {
                out.create.push(node.to_string());
            } else if !out.delete.iter().any(|p| p.metadata.uid == pod.metadata.uid) {
                out.delete.push(pod);
            }
        }
    }
    out.status = json!({
        "desiredNumberScheduled": desired, "currentNumberScheduled": current,
        "numberReady": ready, "numberAvailable": ok, "numberUnavailable": desired - ok,
        "updatedNumberScheduled": new, "numberMisscheduled": misplaced,
        "observedGeneration": set.metadata.generation,
    });
    out
}

fn desired_counts(pods: &[&Held], current: &mut i32) {
    *current += i32::from(!pods.is_empty());
}
