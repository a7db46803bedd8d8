//! How many pods of a budget may go. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::deployment::scale::part;
use crate::owner::{controller_of, name};
use crate::pod;

/// An evicted pod that is not being deleted by then counts again (upstream,
/// `DeletionTimeout`).
pub const DELETION_TIMEOUT: SignedDuration = SignedDuration::from_secs(120);
/// A pod that is marked as disrupted and not being deleted for this long was spared
/// (upstream, `stalePodDisruptionTimeout`).
pub const STALE_AFTER: SignedDuration = SignedDuration::from_secs(120);

const CONDITION: &str = "DisruptionAllowed";

/// Whether the budget is about a share of what the pods' owners ask for.
pub fn wants_scale(budget: &PodDisruptionBudget) -> bool {
    let spec = budget.spec.as_ref();
    let min = spec.and_then(|s| s.min_available.as_ref());
    spec.and_then(|s| s.max_unavailable.as_ref()).is_some()
        || matches!(min, Some(IntOrString::String(_)))
}

/// Pods without a controller: what they should be nobody knows.
pub fn unmanaged(pods: &[Arc<Pod>]) -> Vec<&str> {
    let alone = |pod: &&Arc<Pod>| controller_of(&pod.metadata).is_none();
    pods.iter().filter(alone).map(|pod| name(&pod.metadata)).collect()
}

#[derive(Debug, Default)]
pub struct Plan {
    pub status: PodDisruptionBudgetStatus,
    /// Evicted pods that were not deleted in time.
    pub spared: Vec<Arc<Pod>>,
    pub look_again_in: Option<SignedDuration>,
}

/// `scale`: what the pods' owners ask for together.
pub fn plan(budget: &PodDisruptionBudget, pods: &[Arc<Pod>], scale: i32, now: Timestamp) -> Plan {
    let mut out = Plan::default();
    let count = i32::try_from(pods.len()).unwrap_or(i32::MAX);
    let expected = if wants_scale(budget) { scale } else { count };
    let spec = budget.spec.clone().unwrap_or_default();
    let desired = match (&spec.max_unavailable, &spec.min_available) {
        (Some(max), _) => (expected - part(max, expected, true)).max(0),
        (None, Some(min)) => part(min, expected, true),
        (None, None) => 0,
    };
    let disrupted = out.disrupted(budget, pods, now);
    let healthy = |pod: &&Arc<Pod>| {
        pod.metadata.deletion_timestamp.is_none()
            && !disrupted.contains_key(name(&pod.metadata))
            && pod::is_ready(pod)
    };
    let healthy = i32::try_from(pods.iter().filter(healthy).count()).unwrap_or(i32::MAX);
    let allowed = if expected > 0 { (healthy - desired).max(0) } else { 0 };
    let reason = if allowed > 0 { "SufficientPods" } else { "InsufficientPods" };
    out.status = PodDisruptionBudgetStatus {
        current_healthy: Some(healthy),
        desired_healthy: Some(desired),
        expected_pods: Some(expected),
        disruptions_allowed: Some(allowed),
        disrupted_pods: (!disrupted.is_empty()).then_some(disrupted),
        observed_generation: budget.metadata.generation,
        conditions: Some(conditions(budget, allowed > 0, reason, "", now)),
    };
    out
}

/// Nothing may go while nobody knows what there should be.
pub fn fail_safe(
    budget: &PodDisruptionBudget,
    problem: &str,
    now: Timestamp,
) -> PodDisruptionBudgetStatus {
    PodDisruptionBudgetStatus {
        disruptions_allowed: Some(0),
        conditions: Some(conditions(budget, false, "SyncFailed", problem, now)),
        ..budget.status.clone().unwrap_or_default()
    }
}

impl Plan {
    /// Pods whose eviction was granted and that are not being deleted yet.
    fn disrupted(
        &mut self,
        budget: &PodDisruptionBudget,
        pods: &[Arc<Pod>],
        now: Timestamp,
    ) -> BTreeMap<String, Time> {
        let held = budget.status.as_ref().and_then(|s| s.disrupted_pods.as_ref());
        let mut out = BTreeMap::new();
        for pod in pods.iter().filter(|pod| pod.metadata.deletion_timestamp.is_none()) {
            let own_name = name(&pod.metadata);
            let Some(at) = held.and_then(|held| held.get(own_name)) else { continue };
            let left = DELETION_TIMEOUT - now.duration_since(at.0);
            if left.is_negative() {
                self.spared.push(pod.clone());
                continue;
            }
            self.look_again_in = Some(self.look_again_in.map_or(left, |other| other.min(left)));
            out.insert(own_name.to_string(), at.clone());
        }
        out
    }
}

fn conditions(
    budget: &PodDisruptionBudget,
    allowed: bool,
    reason: &str,
    message: &str,
    now: Timestamp,
) -> Vec<Condition> {
    let held = budget.status.as_ref().and_then(|s| s.conditions.clone()).unwrap_or_default();
    let status = if allowed { "True" } else { "False" };
    let before = held.iter().find(|c| c.type_ == CONDITION && c.status == status);
    let since = before.map_or_else(
        || Time(Timestamp::from_second(now.as_second()).unwrap_or(now)),
        |before| before.last_transition_time.clone(),
    );
    let ours = Condition {
        type_: CONDITION.into(),
        status: status.into(),
        reason: reason.into(),
        message: message.into(),
        observed_generation: budget.metadata.generation,
        last_transition_time: since,
    };
    let mut out = held;
    match out.iter_mut().find(|c| c.type_ == CONDITION) {
        Some(slot) => *slot = ours,
        None => out.push(ours),
    }
    out
}

/// How long until the mark of a pod that is not being deleted is stale; None without one.
pub fn stale_in(pod: &Pod, now: Timestamp) -> Option<SignedDuration> {
    if pod.metadata.deletion_timestamp.is_some() || pod::is_finished(pod) {
        return None;
    }
    let mark = pod::condition(pod, "DisruptionTarget").filter(|c| c.status == "True")?;
    let since = mark.last_transition_time.as_ref().map_or(now, |time| time.0);
    Some((STALE_AFTER - now.duration_since(since)).max(SignedDuration::ZERO))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    const NOW: &str = "2026-01-01T12:00:00Z";

    fn budget(spec: Value, status: Value) -> PodDisruptionBudget {
        serde_json::from_value(json!({"metadata": {"name": "b", "generation": 3}, "spec": spec,
            "status": status}))
        .unwrap()
    }

    #[test]
    fn a_failure_allows_nothing_and_says_why() {
        let before = json!({"currentHealthy": 3, "desiredHealthy": 2, "expectedPods": 3,
            "disruptionsAllowed": 1, "conditions": [{"type": "DisruptionAllowed", "reason": "x",
            "message": "", "status": "False", "lastTransitionTime": "2025-01-01T00:00:00Z"}]});
        let status = fail_safe(&budget(json!({}), before), "no scale", NOW.parse().unwrap());
        assert_eq!((status.disruptions_allowed, status.current_healthy), (Some(0), Some(3)));
        let condition = &status.conditions.unwrap()[0];
        assert_eq!(
            (condition.reason.as_str(), condition.message.as_str()),
            ("SyncFailed", "no scale")
        );
        assert_eq!(condition.last_transition_time.0.to_string(), "2025-01-01T00:00:00Z");
    }
}
