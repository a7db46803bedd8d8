//! What a deployment reports: counts and the conditions Available and Progressing.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::{Deployment, DeploymentCondition, ReplicaSet};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

use super::scale::Limits;
use crate::owner::name;

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    pub replicas: i32,
    pub updated: i32,
    pub ready: i32,
    pub available: i32,
    pub unavailable: i32,
    pub terminating: i32,
}

pub fn count(newest: Option<&Arc<ReplicaSet>>, all: &[Arc<ReplicaSet>]) -> Counts {
    let mut out = Counts::default();
    let mut wanted = 0;
    for set in all {
        wanted += super::plan::wanted(set);
        let Some(status) = &set.status else { continue };
        out.replicas += status.replicas;
        out.ready += status.ready_replicas.unwrap_or(0);
        out.available += status.available_replicas.unwrap_or(0);
        out.terminating += status.terminating_replicas.unwrap_or(0);
    }
    out.updated = newest.and_then(|set| set.status.as_ref()).map_or(0, |s| s.replicas);
    out.unavailable = (wanted - out.available).max(0);
    out
}

/// What the plan did to the newest set in this round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum News {
    Nothing,
    Created,
    Found,
}

/// What a status is made of.
pub struct View<'a> {
    pub deployment: &'a Deployment,
    pub newest: Option<&'a Arc<ReplicaSet>>,
    pub newest_name: &'a str,
    pub all: &'a [Arc<ReplicaSet>],
    pub news: News,
    pub now: Timestamp,
}

/// The status to write, if it changes, and the seconds until the deadline of progress.
pub fn status(view: &View<'_>) -> (Option<Value>, Option<u64>) {
    let View { deployment, newest, all, now, .. } = *view;
    let counts = count(newest, all);
    let held = deployment.status.clone().unwrap_or_default();
    let mut conditions = held.conditions.clone().unwrap_or_default();
    let available = if counts.available >= Limits::of(deployment).min_available() {
        ("True", "MinimumReplicasAvailable", "Deployment has minimum availability.")
    } else {
        let text = "Deployment does not have minimum availability.";
        ("False", "MinimumReplicasUnavailable", text)
    };
    set_condition(&mut conditions, "Available", available.0, available.1, available.2, now);
    let remaining = progress(view, &counts, &mut conditions);
    replica_failure(all, newest, &mut conditions, now);
    let generation = deployment.metadata.generation.unwrap_or(0);
    let unchanged = held.observed_generation.unwrap_or(0) == generation
        && held.replicas.unwrap_or(0) == counts.replicas
        && held.updated_replicas.unwrap_or(0) == counts.updated
        && held.ready_replicas.unwrap_or(0) == counts.ready
        && held.available_replicas.unwrap_or(0) == counts.available
        && held.unavailable_replicas.unwrap_or(0) == counts.unavailable
        && held.terminating_replicas.unwrap_or(0) == counts.terminating
        && held.conditions.clone().unwrap_or_default() == conditions;
    if unchanged {
        return (None, remaining);
    }
    // Upstream leaves out what is 0; null removes it.
    let number = |value: i32| if value == 0 { Value::Null } else { value.into() };
    let status = json!({
        "observedGeneration": generation,
        "replicas": number(counts.replicas),
        "updatedReplicas": number(counts.updated),
        "readyReplicas": number(counts.ready),
        "availableReplicas": number(counts.available),
        "unavailableReplicas": number(counts.unavailable),
        "terminatingReplicas": counts.terminating,
        "conditions": conditions,
    });
    (Some(status), remaining)
}

/// The status of a deployment whose newest set cannot be made.
pub fn creation_failed(deployment: &Deployment, message: &str, now: Timestamp) -> Value {
    let held = deployment.status.as_ref().and_then(|s| s.conditions.clone());
    let mut conditions = held.unwrap_or_default();
    set_condition(&mut conditions, "Progressing", "False", "ReplicaSetCreateError", message, now);
    json!({"conditions": conditions})
}

fn deadline(deployment: &Deployment) -> Option<i64> {
    let seconds = deployment.spec.as_ref()?.progress_deadline_seconds?;
    (seconds != i32::MAX).then_some(i64::from(seconds))
}

pub fn is_complete(deployment: &Deployment, counts: &Counts) -> bool {
    let wanted = Limits::of(deployment).replicas;
    counts.updated == wanted && counts.replicas == wanted && counts.available == wanted
}

fn progress(
    view: &View<'_>,
    counts: &Counts,
    conditions: &mut Vec<DeploymentCondition>,
) -> Option<u64> {
    let View { deployment, newest, newest_name, all, news, now } = *view;
    let paused = deployment.spec.as_ref().and_then(|s| s.paused).unwrap_or(false);
    let Some(limit) = deadline(deployment) else {
        // Without a deadline nobody says how it goes.
        conditions.retain(|c| c.type_ != "Progressing");
        return None;
    };
    let held = conditions.iter().find(|c| c.type_ == "Progressing").cloned();
    let reason = held.as_ref().and_then(|c| c.reason.clone()).unwrap_or_default();
    let mut set = |status: &str, reason: &str, text: &str| {
        set_condition(conditions, "Progressing", status, reason, text, now);
    };
    if paused {
        if reason != "DeploymentPaused" {
            set("Unknown", "DeploymentPaused", "Deployment is paused");
        }
        return None;
    }
    if reason == "DeploymentPaused" {
        set("Unknown", "DeploymentResumed", "Deployment is resumed");
        return Some(limit as u64);
    }
    match news {
        News::Created => {
            let text = format!("Created new replica set {newest_name:?}");
            set("True", "NewReplicaSetCreated", &text);
            return Some(limit as u64);
        }
        News::Found if held.is_none() => {
            let text = format!("Found new replica set {newest_name:?}");
            set("True", "FoundNewReplicaSet", &text);
            return Some(limit as u64);
        }
        News::Found | News::Nothing => {}
    }
    let before = deployment.status.clone().unwrap_or_default();
    // A finished rollout stays finished when pods come and go.
    if reason == "NewReplicaSetAvailable" && before.replicas == before.updated_replicas {
        return None;
    }
    let about = if newest.is_some() {
        format!("ReplicaSet {newest_name:?}")
    } else {
        format!("Deployment {:?}", name(&deployment.metadata))
    };
    let observed = before.observed_generation == deployment.metadata.generation;
    if observed && newest.is_some() && is_complete(deployment, counts) {
        let text = format!("{about} has successfully progressed.");
        set("True", "NewReplicaSetAvailable", &text);
        return None;
    }
    let old = |number: Option<i32>| number.unwrap_or(0);
    let progressing = counts.updated > old(before.updated_replicas)
        || counts.replicas - counts.updated < old(before.replicas) - old(before.updated_replicas)
        || counts.ready > old(before.ready_replicas)
        || counts.available > old(before.available_replicas);
    if progressing {
        let text = format!("{about} is progressing.");
        if reason == "ReplicaSetUpdated" {
            // Only the time moves on.
            for condition in conditions.iter_mut().filter(|c| c.type_ == "Progressing") {
                condition.last_update_time = Some(seconds(now));
                condition.message = Some(text.clone());
            }
        } else {
            set("True", "ReplicaSetUpdated", &text);
        }
        return Some(limit as u64);
    }
    // What ended well has no deadline, however long ago that was, until the next begins.
    let has_ended = ["ProgressDeadlineExceeded", "NewReplicaSetAvailable"];
    if all.is_empty() || has_ended.contains(&reason.as_str()) {
        return None;
    }
    let since = held.and_then(|c| c.last_update_time).map_or(now, |time| time.0);
    let left = since.as_second() + limit - now.as_second();
    if left > 0 {
        return Some(left as u64);
    }
    let text = format!("{about} has timed out progressing.");
    set("False", "ProgressDeadlineExceeded", &text);
    None
}

fn replica_failure(
    all: &[Arc<ReplicaSet>],
    newest: Option<&Arc<ReplicaSet>>,
    conditions: &mut Vec<DeploymentCondition>,
    now: Timestamp,
) {
    let failure = newest.into_iter().chain(all).find_map(|set| {
        let conditions = set.status.as_ref()?.conditions.as_ref()?;
        conditions.iter().find(|c| c.type_ == "ReplicaFailure").cloned()
    });
    match failure {
        Some(failure) => {
            let reason = failure.reason.unwrap_or_default();
            let message = failure.message.unwrap_or_default();
            set_condition(conditions, "ReplicaFailure", &failure.status, &reason, &message, now);
        }
        None => conditions.retain(|c| c.type_ != "ReplicaFailure"),
    }
}

fn seconds(now: Timestamp) -> Time {
    Time(Timestamp::from_second(now.as_second()).unwrap_or(now))
}

/// Replaces a condition, unless status and reason are the same already.
fn set_condition(
    conditions: &mut Vec<DeploymentCondition>,
    kind: &str,
    status: &str,
    reason: &str,
    message: &str,
    now: Timestamp,
) {
    let held = conditions.iter().find(|c| c.type_ == kind);
    if held.is_some_and(|c| c.status == status && c.reason.as_deref() == Some(reason)) {
        return;
    }
    let since = held.filter(|c| c.status == status).and_then(|c| c.last_transition_time.clone());
    let condition = DeploymentCondition {
        type_: kind.into(),
        status: status.into(),
        reason: Some(reason.into()),
        message: Some(message.into()),
        last_update_time: Some(seconds(now)),
        last_transition_time: Some(since.unwrap_or_else(|| seconds(now))),
    };
    conditions.retain(|c| c.type_ != kind);
    conditions.push(condition);
}
