//! Going back to an earlier revision because an annotation says so
//! (`deprecated.deployment.rollback.to`, which clients of extensions/v1beta1 wrote as
//! `spec.rollbackTo`).
//!
//! Pure. The annotation goes whatever comes of it.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};

use super::{revision, template};
use crate::owner::{annotation, name};

/// What is done with a deployment that wants to go back, and what is said of it.
#[derive(Debug)]
pub struct Rollback {
    /// The deployment as it is to be; whoever may write it may not patch it.
    pub deployment: Box<Deployment>,
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
        deployment: changed(deployment, None),
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
            deployment: changed(deployment, None),
            reason: "DeploymentRollbackTemplateUnchanged",
            message: text,
            warns: true,
        };
    }
    Rollback {
        deployment: changed(deployment, Some(set)),
        reason: "DeploymentRollback",
        message: format!("Rolled back deployment {name:?} to revision {to}"),
        warns: false,
    }
}

/// Takes the request away; with a set, the deployment gets its template and its annotations.
fn changed(deployment: &Deployment, set: Option<&ReplicaSet>) -> Box<Deployment> {
    let mut out = Box::new(deployment.clone());
    let mut annotations = out.metadata.annotations.take().unwrap_or_default();
    if let Some(set) = set {
        // What is not copied to sets stays as it is.
        annotations.retain(|key, _| !revision::is_copied(key));
        let theirs = set.metadata.annotations.clone().unwrap_or_default();
        annotations.extend(theirs.into_iter().filter(|(key, _)| revision::is_copied(key)));
        if let (Some(spec), Some(mut template)) =
            (&mut out.spec, set.spec.as_ref().and_then(|spec| spec.template.clone()))
        {
            if let Some(labels) = template.metadata.as_mut().and_then(|meta| meta.labels.as_mut()) {
                labels.remove(template::HASH_LABEL);
            }
            spec.template = template;
        }
    }
    annotations.remove(revision::ROLLBACK_TO);
    out.metadata.annotations = Some(annotations);
    out
}
