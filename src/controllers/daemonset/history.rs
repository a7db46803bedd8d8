//! Revisions of a set's template, kept as ControllerRevisions. Pure.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::runtime::RawExtension;
use serde_json::{Value, json};

use super::plan::HASH;
use crate::deployment::template;
use crate::owner::{self, name};

/// A patch that brings the template back, which is what `kubectl rollout undo` sends.
fn data(set: &DaemonSet) -> Value {
    let template = set.spec.as_ref().map(|s| &s.template);
    let mut template = serde_json::to_value(template).unwrap_or_default();
    template["$patch"] = "replace".into();
    json!({"spec": {"template": template}})
}

pub fn is_of(revision: &ControllerRevision, set: &DaemonSet) -> bool {
    revision.data.as_ref().is_some_and(|held| held.0 == data(set))
}

pub fn hash_of(revision: &ControllerRevision) -> &str {
    let label = revision.metadata.labels.as_ref().and_then(|l| l.get(HASH));
    label.map(String::as_str).unwrap_or_default()
}

pub fn next(history: &[Arc<ControllerRevision>]) -> i64 {
    history.iter().map(|r| r.revision).max().unwrap_or(0) + 1
}

pub fn new(set: &DaemonSet, revision: i64) -> ControllerRevision {
    let spec = set.spec.clone().unwrap_or_default();
    let collisions = set.status.as_ref().and_then(|s| s.collision_count).unwrap_or(0);
    let hash = template::hash(&spec.template, collisions);
    let given = spec.template.metadata.unwrap_or_default();
    let mut labels = given.labels.unwrap_or_default();
    labels.insert(HASH.into(), hash.clone());
    ControllerRevision {
        metadata: ObjectMeta {
            name: Some(format!("{}-{hash}", name(&set.metadata))),
            namespace: set.metadata.namespace.clone(),
            labels: Some(labels),
            annotations: set.metadata.annotations.clone(),
            owner_references: Some(vec![owner::reference_to(set)]),
            ..ObjectMeta::default()
        },
        data: Some(RawExtension(data(set))),
        revision,
    }
}

/// Revisions beyond the limit that no pod has, the oldest first.
pub fn surplus(
    mut history: Vec<Arc<ControllerRevision>>,
    used: &[&str],
    limit: usize,
) -> Vec<Arc<ControllerRevision>> {
    history.retain(|r| !used.contains(&hash_of(r)));
    history.sort_by_key(|r| r.revision);
    let count = history.len().saturating_sub(limit);
    history.truncate(count);
    history
}
