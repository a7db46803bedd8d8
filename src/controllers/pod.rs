//! Questions that several controllers ask of a pod.

use k8s_openapi::api::core::v1::{Pod, PodCondition};

pub fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or_default()
}

pub fn is_finished(pod: &Pod) -> bool {
    matches!(phase(pod), "Succeeded" | "Failed")
}

/// Neither finished nor about to go.
pub fn is_active(pod: &Pod) -> bool {
    !is_finished(pod) && pod.metadata.deletion_timestamp.is_none()
}

pub fn condition<'a>(pod: &'a Pod, kind: &str) -> Option<&'a PodCondition> {
    pod.status.as_ref()?.conditions.as_ref()?.iter().find(|c| c.type_ == kind)
}

pub fn is_ready(pod: &Pod) -> bool {
    condition(pod, "Ready").is_some_and(|c| c.status == "True")
}

pub fn node(pod: &Pod) -> &str {
    pod.spec.as_ref().and_then(|s| s.node_name.as_deref()).unwrap_or_default()
}

/// Seconds since 1970 at which the pod became ready, if it is.
pub fn ready_since(pod: &Pod) -> Option<i64> {
    let condition = condition(pod, "Ready").filter(|c| c.status == "True")?;
    Some(condition.last_transition_time.as_ref().map_or(0, |time| time.0.as_second()))
}

/// Seconds until the pod counts as available: 0 when it does, None while not ready.
pub fn available_in(pod: &Pod, min_ready_seconds: i32, now: i64) -> Option<i64> {
    let since = ready_since(pod)?;
    let wait = i64::from(min_ready_seconds.max(0));
    // One that is ready since a time so far ahead was so before the clock was set back.
    let was_set_back = since - now > wait;
    Some(if was_set_back { 0 } else { (since + wait - now).max(0) })
}

pub fn restarts(pod: &Pod) -> i32 {
    let statuses = pod.status.as_ref().and_then(|s| s.container_statuses.as_ref());
    statuses.into_iter().flatten().map(|status| status.restart_count).sum()
}
