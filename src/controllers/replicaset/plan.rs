//! How many pods to create, which to delete, and what to report.
//!
//! Pure.

use std::cmp::Reverse;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

use super::kind::Replicated;
use crate::owner::{annotation, created};
use crate::pod;

const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";

#[derive(Debug)]
pub enum Scale {
    Nothing,
    Create(usize),
    Delete(Vec<Arc<Pod>>),
}

impl Scale {
    /// Pods to create or to delete.
    pub fn size(&self) -> usize {
        match self {
            Self::Nothing => 0,
            Self::Create(count) => *count,
            Self::Delete(pods) => pods.len(),
        }
    }
}

/// Whether a change of a pod can change what is planned for its set, but for whom it deletes.
pub fn differ(old: &Pod, new: &Pod) -> bool {
    let facts = |pod: &Pod| {
        let leaves = pod.metadata.deletion_timestamp.is_some();
        (pod::is_finished(pod), leaves, pod::ready_since(pod))
    };
    let (old_meta, new_meta) = (&old.metadata, &new.metadata);
    facts(old) != facts(new)
        || old_meta.uid != new_meta.uid
        || old_meta.labels != new_meta.labels
        || old_meta.owner_references != new_meta.owner_references
}

#[derive(Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub replicas: i32,
    pub fully_labeled: i32,
    pub ready: i32,
    pub available: i32,
    pub terminating: i32,
}

#[derive(Debug)]
pub struct Plan {
    pub scale: Scale,
    pub counts: Counts,
    /// Seconds until a ready pod becomes available.
    pub look_again_in: Option<i64>,
}

/// `ranks` says for each pod how many of its kin share its node, and is asked only where pods
/// have to go; `now` is in seconds since 1970.
pub fn plan<K: Replicated>(
    owner: &K,
    pods: &[Arc<Pod>],
    ranks: &dyn Fn() -> Vec<usize>,
    now: i64,
) -> Plan {
    let mut counts = Counts::default();
    let mut look_again_in: Option<i64> = None;
    let labels = owner.template().and_then(|t| t.metadata.as_ref()).and_then(|m| m.labels.as_ref());
    let wanted = client::labels::equal_to(labels);
    for pod in pods {
        if !pod::is_active(pod) {
            let leaves = pod.metadata.deletion_timestamp.is_some() && !pod::is_finished(pod);
            counts.terminating += i32::from(leaves);
            continue;
        }
        counts.replicas += 1;
        counts.fully_labeled += i32::from(wanted.matches_map(pod.metadata.labels.as_ref()));
        match pod::available_in(pod, owner.min_ready_seconds(), now) {
            None => {}
            Some(0) => {
                counts.ready += 1;
                counts.available += 1;
            }
            Some(seconds) => {
                counts.ready += 1;
                look_again_in = Some(look_again_in.map_or(seconds, |other| other.min(seconds)));
            }
        }
    }
    let scale = if owner.meta().deletion_timestamp.is_some() {
        Scale::Nothing
    } else {
        let difference = owner.replicas() - counts.replicas;
        match difference {
            0 => Scale::Nothing,
            1.. => Scale::Create(difference as usize),
            ..0 => Scale::Delete(victims(pods, &ranks(), difference.unsigned_abs() as usize)),
        }
    };
    Plan { scale, counts, look_again_in }
}

/// The active pods that are missed least (upstream, `ActivePodsWithRanks`).
fn victims(pods: &[Arc<Pod>], ranks: &[usize], count: usize) -> Vec<Arc<Pod>> {
    let mut active: Vec<(&Arc<Pod>, usize)> = pods
        .iter()
        .zip(ranks.iter().copied().chain(std::iter::repeat(0)))
        .filter(|(pod, _)| pod::is_active(pod))
        .collect();
    active.sort_by_key(|(pod, rank)| {
        let phase = match pod::phase(pod) {
            "Pending" | "" => 0,
            "Unknown" => 1,
            _ => 2,
        };
        let cost = annotation(&pod.metadata, DELETION_COST);
        (
            !pod::node(pod).is_empty(),
            phase,
            pod::is_ready(pod),
            cost.and_then(|cost| cost.parse::<i32>().ok()).unwrap_or(0),
            Reverse(*rank),
            Reverse(pod::ready_since(pod).unwrap_or(0)),
            Reverse(pod::restarts(pod)),
            Reverse(created(&pod.metadata)),
        )
    });
    active.into_iter().take(count).map(|(pod, _)| pod.clone()).collect()
}

/// The status to write, None where it is written already.
pub fn status<K: Replicated>(
    owner: &K,
    counts: &Counts,
    failure: Option<(&str, String)>,
    now: &str,
) -> Option<Value> {
    let old = owner.status();
    let held = old["conditions"].as_array().cloned().unwrap_or_default();
    let failed_before = held.iter().find(|c| c["type"] == "ReplicaFailure").cloned();
    let mut conditions: Vec<Value> =
        held.into_iter().filter(|c| c["type"] != "ReplicaFailure").collect();
    match (failure, failed_before) {
        // The first failure stays until it is over, so that its time means something.
        (Some(_), Some(before)) => conditions.push(before),
        (Some((reason, message)), None) => conditions.push(json!({
            "type": "ReplicaFailure", "status": "True", "reason": reason, "message": message,
            "lastTransitionTime": now,
        })),
        (None, _) => {}
    }
    let mut new = json!({
        "replicas": counts.replicas,
        "fullyLabeledReplicas": counts.fully_labeled,
        "readyReplicas": counts.ready,
        "availableReplicas": counts.available,
        "observedGeneration": owner.meta().generation.unwrap_or(0),
    });
    if K::KIND == "ReplicaSet" {
        new["terminatingReplicas"] = counts.terminating.into();
    }
    // An absent number is 0.
    let same = |(key, value): (&String, &Value)| {
        old[key].as_i64().unwrap_or(0) == value.as_i64().unwrap_or(0)
    };
    let conditions = Value::Array(conditions);
    let held = old.get("conditions").filter(|c| !c.is_null()).cloned().unwrap_or(json!([]));
    let unchanged = new.as_object().is_some_and(|new| new.iter().all(same)) && held == conditions;
    if held != conditions {
        new["conditions"] = conditions;
    }
    (!unchanged).then_some(new)
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::apps::v1::ReplicaSet;

    #[test]
    fn the_status_is_written_when_it_changes() {
        let counts = Counts { replicas: 1, fully_labeled: 1, ..Counts::default() };
        let mut set: ReplicaSet =
            serde_json::from_value(json!({"metadata": {"generation": 1}})).unwrap();
        let status = status(&set, &counts, None, "now").expect("a change");
        set.status = serde_json::from_value(status).unwrap();
        assert_eq!(super::status(&set, &counts, None, "now"), None);
        let failed = super::status(&set, &counts, Some(("FailedCreate", "no".into())), "now");
        assert_eq!(failed.unwrap()["conditions"][0]["reason"], "FailedCreate");
    }
}
