//! Revisions, and the annotations that ReplicaSets carry.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::owner::annotation;

pub const REVISION: &str = "deployment.kubernetes.io/revision";
pub const REVISION_HISTORY: &str = "deployment.kubernetes.io/revision-history";
pub const DESIRED: &str = "deployment.kubernetes.io/desired-replicas";
pub const MAX: &str = "deployment.kubernetes.io/max-replicas";
/// A revision to go back to, 0 for the one before.
pub const ROLLBACK_TO: &str = "deprecated.deployment.rollback.to";

/// Annotations of a deployment that its sets do not get.
const NOT_COPIED: [&str; 6] = [
    "kubectl.kubernetes.io/last-applied-configuration",
    REVISION,
    REVISION_HISTORY,
    DESIRED,
    MAX,
    ROLLBACK_TO,
];

/// Whether sets get an annotation of their deployment.
pub fn is_copied(key: &str) -> bool {
    !NOT_COPIED.contains(&key)
}

pub fn of(meta: &ObjectMeta) -> i64 {
    annotation(meta, REVISION).and_then(|text| text.parse().ok()).unwrap_or(0)
}

pub fn highest(sets: &[Arc<ReplicaSet>]) -> i64 {
    sets.iter().map(|set| of(&set.metadata)).max().unwrap_or(0)
}

/// The second highest; 0 where there is none.
pub fn one_before_last(sets: &[Arc<ReplicaSet>]) -> i64 {
    let mut all: Vec<i64> = sets.iter().map(|set| of(&set.metadata)).collect();
    all.sort_unstable();
    all.iter().rev().nth(1).copied().unwrap_or(0)
}

/// What the newest set must be annotated with.
pub fn annotations_for_new(
    deployment: &Deployment,
    existing: Option<&ReplicaSet>,
    revision: i64,
    replicas: i32,
    max: i32,
) -> BTreeMap<String, String> {
    let copied = deployment.metadata.annotations.iter().flatten();
    let mut out: BTreeMap<String, String> = copied
        .filter(|(key, _)| is_copied(key))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    let held = existing.map_or(0, |set| of(&set.metadata));
    let revision = if held < revision { revision } else { held };
    out.insert(REVISION.into(), revision.to_string());
    if let Some(set) = existing {
        let history = annotation(&set.metadata, REVISION_HISTORY);
        if held > 0 && held < revision {
            let history = history.into_iter().map(str::to_string).chain([held.to_string()]);
            out.insert(REVISION_HISTORY.into(), history.collect::<Vec<_>>().join(","));
        }
    }
    out.insert(DESIRED.into(), replicas.to_string());
    out.insert(MAX.into(), max.to_string());
    out
}
