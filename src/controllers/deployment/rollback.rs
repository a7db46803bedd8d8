//! Going back to an earlier revision because an annotation says so
//! (`deprecated.deployment.rollback.to`, which clients of extensions/v1beta1 wrote as
//! `spec.rollbackTo`).
//!
//! Pure. The annotation goes whatever comes of it.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use serde_json::{Value, json};

use super::{revision, template};
use crate::owner::{annotation, name};

/// What is done with a deployment that wants to go back, and what is said of it.
#[derive(Debug)]
pub struct Rollback {
    /// A JSON patch of the deployment; fails with a conflict if it is another meanwhile.
    pub patch: Value,
    pub reason: &'static str,
    pub message: String,
    pub warns: bool,
}

/// The revision that is wanted, 0 for the one before; None where nobody asks, or in words that
/// are no number.
pub fn wanted(deployment: &Deployment) -> Option<i64> {
    annotation(&deployment.metadata, revision::ROLLBACK_TO)?.parse().ok()
}

/// `sets` are all of the deployment's, with their revisions up to date.
pub fn plan(deployment: &Deployment, sets: &[Arc<ReplicaSet>], wanted: i64) -> Rollback {
    let not_found = |message: &str| Rollback {
        patch: patch(deployment, None),
        reason: "DeploymentRollbackRevisionNotFound",
        message: message.into(),
        warns: true,
    };
    let to = if wanted == 0 { revision::one_before_last(sets) } else { wanted };
    if to == 0 {
        return not_found("Unable to find last revision.");
    }
    let Some(set) = sets.iter().find(|set| revision::of(&set.metadata) == to) else {
        return not_found("Unable to find the revision to rollback to.");
    };
    let name = name(&deployment.metadata);
    if template::same(set, deployment) {
        let text = format!(
            "The rollback revision contains the same template as current deployment {name:?}"
        );
        return Rollback {
            patch: patch(deployment, None),
            reason: "DeploymentRollbackTemplateUnchanged",
            message: text,
            warns: true,
        };
    }
    Rollback {
        patch: patch(deployment, Some(set)),
        reason: "DeploymentRollback",
        message: format!("Rolled back deployment {name:?} to revision {to}"),
        warns: false,
    }
}

/// Takes the request away; with a set, the deployment gets its template and its annotations.
fn patch(deployment: &Deployment, set: Option<&ReplicaSet>) -> Value {
    let meta = &deployment.metadata;
    let own: BTreeMap<String, String> = meta.annotations.clone().unwrap_or_default();
    let mut annotations: BTreeMap<String, String> = match set {
        None => own,
        // What is not copied to sets stays as it is.
        Some(set) => {
            let kept = own.into_iter().filter(|(key, _)| !revision::is_copied(key));
            let theirs = set.metadata.annotations.clone().unwrap_or_default();
            kept.chain(theirs.into_iter().filter(|(key, _)| revision::is_copied(key))).collect()
        }
    };
    annotations.remove(revision::ROLLBACK_TO);
    let mut out = vec![
        json!({"op": "add", "path": "/metadata/resourceVersion", "value": meta.resource_version}),
        json!({"op": "add", "path": "/metadata/annotations", "value": annotations}),
    ];
    if let Some(template) = set.and_then(|set| set.spec.as_ref()?.template.clone()) {
        let mut template = template;
        if let Some(labels) = template.metadata.as_mut().and_then(|meta| meta.labels.as_mut()) {
            labels.remove(template::HASH_LABEL);
        }
        out.push(json!({"op": "replace", "path": "/spec/template", "value": template}));
    }
    Value::Array(out)
}
