//! Writes down what a pod's claims got, and that the pod uses them; and takes it back.

use client::{Client, Patch};
use k8s_openapi::api::resource::v1::{AllocationResult, ResourceClaim};
use serde_json::{Value, json};

use super::{Grant, allocation, shown, uid, users};
use crate::pod::PodInfo;

/// Keeps a claim while it is allocated.
const FINALIZER: &str = "resource.kubernetes.io/delete-protection";
/// Tries against others that write the claim.
const TRIES_MAX: usize = 5;

#[derive(Debug, thiserror::Error)]
pub enum GrantError {
    #[error("claim {0} got deleted in the meantime")]
    Deleted(String),
    #[error("claim {0} got allocated elsewhere in the meantime")]
    Elsewhere(String),
    #[error("{doing} claim {claim}")]
    Write {
        doing: &'static str,
        claim: String,
        #[source]
        source: client::Error,
    },
}

/// Writes all grants of a pod.
///
/// # Errors
/// The first that cannot be written; those before it stay.
pub async fn write(client: &Client, pod: &PodInfo, grants: &[Grant]) -> Result<(), GrantError> {
    for grant in grants {
        if grant.allocation.is_some() || !users(&grant.claim).contains(&pod.uid.as_str()) {
            write_one(client, pod, grant).await?;
        }
    }
    Ok(())
}

async fn write_one(client: &Client, pod: &PodInfo, grant: &Grant) -> Result<(), GrantError> {
    let api = client.api::<ResourceClaim>(Some(&pod.namespace));
    let name = grant.claim.metadata.name.as_deref().unwrap_or_default();
    let failed = |doing: &'static str| {
        let claim = shown(&grant.claim);
        move |source: client::Error| GrantError::Write { doing, claim, source }
    };
    let mut claim = ResourceClaim::clone(&grant.claim);
    let mut tries = 0;
    loop {
        tries += 1;
        let written = once(client, pod, name, &claim, grant.allocation.as_ref()).await;
        match written {
            Err(GrantError::Write { source, .. }) if source.is_conflict() && tries < TRIES_MAX => {
                claim = api.get(name).await.map_err(failed("get updated"))?;
                if uid(&claim) != uid(&grant.claim) {
                    return Err(GrantError::Deleted(shown(&grant.claim)));
                }
            }
            other => return other,
        }
    }
}

async fn once(
    client: &Client,
    pod: &PodInfo,
    name: &str,
    claim: &ResourceClaim,
    granted: Option<&AllocationResult>,
) -> Result<(), GrantError> {
    let api = client.api::<ResourceClaim>(Some(&pod.namespace));
    let failed = |doing: &'static str| {
        move |source: client::Error| GrantError::Write { doing, claim: shown(claim), source }
    };
    if claim.metadata.deletion_timestamp.is_some() {
        return Err(GrantError::Deleted(shown(claim)));
    }
    let mut version = claim.metadata.resource_version.clone();
    let mut status = json!({"reservedFor": with_user(claim, pod)});
    if let Some(granted) = granted {
        if allocation(claim).is_some() {
            return Err(GrantError::Elsewhere(shown(claim)));
        }
        let mut finalizers = claim.metadata.finalizers.clone().unwrap_or_default();
        if !finalizers.iter().any(|it| it == FINALIZER) {
            finalizers.push(FINALIZER.to_owned());
            let meta = json!({"resourceVersion": version, "finalizers": finalizers});
            let patch = Patch::Merge(json!({"metadata": meta}));
            let written = api.patch(name, &patch).await.map_err(failed("add finalizer to"))?;
            version = written.metadata.resource_version;
        }
        status["allocation"] = json!(granted);
        let now = base::time::rfc3339(base::time::now());
        status["allocation"]["allocationTimestamp"] = json!(now);
    }
    let patch = json!({"metadata": {"resourceVersion": version}, "status": status});
    let doing = match granted {
        Some(_) => "add allocation and reservation to",
        None => "add reservation to",
    };
    api.patch_status(name, &Patch::Merge(patch)).await.map(drop).map_err(failed(doing))
}

/// The users of a claim, the pod among them.
fn with_user(claim: &ResourceClaim, pod: &PodInfo) -> Value {
    let status = claim.status.as_ref();
    let mut out = json!(status.and_then(|it| it.reserved_for.as_ref()).unwrap_or(&Vec::new()));
    if !users(claim).contains(&pod.uid.as_str())
        && let Some(list) = out.as_array_mut()
    {
        list.push(json!({"resource": "pods", "name": pod.name, "uid": pod.uid}));
    }
    out
}

/// The pod does not use its claims after all.
///
/// # Errors
/// When a claim cannot be written; the pod is tried again anyway.
pub async fn take_back(
    client: &Client,
    pod: &PodInfo,
    grants: &[Grant],
) -> client::error::Result<()> {
    let api = client.api::<ResourceClaim>(Some(&pod.namespace));
    for grant in grants {
        let name = grant.claim.metadata.name.as_deref().unwrap_or_default();
        let patch = json!({
            "metadata": {"uid": uid(&grant.claim)},
            "status": {"reservedFor": [{"$patch": "delete", "uid": pod.uid}]},
        });
        api.patch_status(name, &Patch::Strategic(patch)).await?;
    }
    Ok(())
}

/// Frees the devices of a claim that nobody uses.
///
/// # Errors
/// When it cannot be written, or has changed.
pub async fn deallocate(client: &Client, claim: &ResourceClaim) -> client::error::Result<()> {
    let meta = &claim.metadata;
    let api = client.api::<ResourceClaim>(meta.namespace.as_deref());
    let patch = json!({
        "metadata": {"resourceVersion": meta.resource_version},
        "status": {"allocation": null, "reservedFor": null},
    });
    let name = meta.name.as_deref().unwrap_or_default();
    api.patch_status(name, &Patch::Merge(patch)).await.map(drop)
}
