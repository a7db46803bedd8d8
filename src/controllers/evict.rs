//! The end of a pod that taints drive away: it is told, marked as disrupted, and deleted.

use client::Patch;
use client::api::DeleteParams;
use client::recorder::reference;
use k8s_openapi::api::core::v1::Pod;
use serde_json::json;

use crate::harness::{Context, Doing, Outcome, Settled};
use crate::owner::{name, namespace, uid};

/// Why a pod has to go.
pub struct Cause {
    /// Reason and text of the event.
    pub event: &'static str,
    pub text: String,
    /// Reason and message of its condition `DisruptionTarget`.
    pub reason: &'static str,
    pub message: &'static str,
}

pub async fn evict(context: &Context, pod: &Pod, cause: Cause) -> Outcome {
    let meta = &pod.metadata;
    context.recorder.normal(&reference(pod), cause.event, cause.text);
    let patch = json!({"metadata": {"uid": meta.uid}, "status": {"conditions": [{
        "type": "DisruptionTarget", "status": "True", "reason": cause.reason,
        "message": cause.message, "observedGeneration": meta.generation,
        "lastTransitionTime": base::time::rfc3339(base::time::now())}]}});
    let api = context.client.api::<Pod>(Some(namespace(meta)));
    let answer = api.patch_status(name(meta), &Patch::Strategic(patch)).await;
    answer.doing(|| "mark an evicted pod".into()).or_gone()?;
    let answer = api.delete(name(meta), &DeleteParams::uid(uid(meta))).await;
    answer.doing(|| "evict a pod".into()).or_gone()
}
