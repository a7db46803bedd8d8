//! Writes down what a pod's claims got, and that the pod uses them; and takes it back.

use std::time::Duration;

use client::{Client, DeleteParams, Patch};
use k8s_openapi::api::resource::v1::{AllocationResult, ResourceClaim};
use serde_json::{Value, json};

use super::extended::{is_special, is_unmade};
use super::{Grant, Sources, allocation, ready, shown, uid, users};
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
    #[error("{0}")]
    NeverReady(String),
    #[error("device binding timeout")]
    Late,
    #[error("update pod {pod} ExtendedResourceClaimStatus")]
    Tell {
        pod: String,
        #[source]
        source: client::Error,
    },
    #[error("{doing} claim {claim}")]
    Write {
        doing: &'static str,
        claim: String,
        #[source]
        source: client::Error,
    },
}

/// Makes the claim that stands for extended resources.
///
/// # Errors
/// When it cannot be made.
pub async fn make(client: &Client, grant: &Grant) -> Result<ResourceClaim, GrantError> {
    let mut claim = ResourceClaim::clone(&grant.claim);
    (claim.metadata.name, claim.metadata.uid) = (None, None);
    let api = client.api::<ResourceClaim>(claim.metadata.namespace.as_deref());
    api.create(&claim).await.map_err(|source| GrantError::Write {
        doing: "create",
        claim: "for extended resources".into(),
        source,
    })
}

/// Tells the pod which of its containers use what of such a claim.
///
/// # Errors
/// When it cannot be written.
pub async fn tell(client: &Client, pod: &PodInfo, grant: &Grant) -> Result<(), GrantError> {
    let Some(mappings) = &grant.mappings else { return Ok(()) };
    let status = json!({"extendedResourceClaimStatus": {
        "resourceClaimName": grant.claim.metadata.name, "requestMappings": mappings}});
    let patch = Patch::Merge(json!({"metadata": {"uid": pod.uid}, "status": status}));
    let api = client.api::<k8s_openapi::api::core::v1::Pod>(Some(&pod.namespace));
    let told = api.patch_status(&pod.name, &patch).await;
    told.map(drop).map_err(|source| GrantError::Tell {
        pod: format!("{}/{}", pod.namespace, pod.name),
        source,
    })
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
        status["allocation"] = json!(numbered(granted));
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

/// Each part of a device that many may have gets a number of its own.
fn numbered(granted: &AllocationResult) -> AllocationResult {
    let mut out = granted.clone();
    let devices = out.devices.as_mut();
    for result in devices.into_iter().flat_map(|it| it.results.iter_mut().flatten()) {
        if let Some(number) = &mut result.share_id {
            *number = base::rng::uuid();
        }
    }
    out
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

/// Whether all devices of the pod's claims are ready, as the cache has them.
///
/// # Errors
/// That some never will be.
pub fn are_ready(
    sources: &Sources,
    pod: &PodInfo,
    grants: &[Grant],
    patience: Duration,
) -> Result<bool, GrantError> {
    let mut all = true;
    for grant in grants {
        let name = grant.claim.metadata.name.as_deref().unwrap_or_default();
        // One that was made just now may come later.
        let Some(claim) = sources.claims.get(&pod.namespace, name) else { return Ok(false) };
        let is_ready = ready::is_ready(&claim).map_err(GrantError::NeverReady)?;
        if !is_ready && ready::is_late(&claim, patience, base::time::now()) {
            return Err(GrantError::NeverReady(format!("claim {name} binding timeout")));
        }
        all &= is_ready;
    }
    Ok(all)
}

/// The pod does not use its claims after all; what was made for it alone goes.
///
/// # Errors
/// When a claim cannot be written; the pod is tried again anyway.
pub async fn take_back(
    client: &Client,
    pod: &PodInfo,
    grants: &[Grant],
) -> client::error::Result<()> {
    let api = client.api::<ResourceClaim>(Some(&pod.namespace));
    for grant in grants.iter().filter(|grant| !is_unmade(&grant.claim)) {
        if is_special(&grant.claim) {
            remove(client, &grant.claim).await?;
            continue;
        }
        let name = grant.claim.metadata.name.as_deref().unwrap_or_default();
        let patch = json!({
            "metadata": {"uid": uid(&grant.claim)},
            "status": {"reservedFor": [{"$patch": "delete", "uid": pod.uid}]},
        });
        api.patch_status(name, &Patch::Strategic(patch)).await?;
    }
    Ok(())
}

/// Removes a claim that the scheduler has made.
async fn remove(client: &Client, claim: &ResourceClaim) -> client::error::Result<()> {
    let meta = &claim.metadata;
    let api = client.api::<ResourceClaim>(meta.namespace.as_deref());
    let name = meta.name.as_deref().unwrap_or_default();
    // Others may have theirs on it.
    let let_go = json!({"metadata": {"uid": meta.uid, "$deleteFromPrimitiveList/finalizers":
        [FINALIZER]}});
    match api.patch(name, &Patch::Strategic(let_go)).await {
        Ok(_) => {}
        Err(err) if err.is_not_found() => return Ok(()),
        Err(err) => return Err(err),
    }
    let uid = meta.uid.clone().unwrap_or_default();
    match api.delete(name, &DeleteParams::uid(uid)).await {
        Err(err) if err.is_not_found() => Ok(()),
        other => other,
    }
}

/// Frees the devices of a claim that nobody uses. One that was made for its pod goes.
///
/// # Errors
/// When it cannot be written, or has changed.
pub async fn deallocate(client: &Client, claim: &ResourceClaim) -> client::error::Result<()> {
    if is_special(claim) {
        return remove(client, claim).await;
    }
    let meta = &claim.metadata;
    let api = client.api::<ResourceClaim>(meta.namespace.as_deref());
    let patch = json!({
        "metadata": {"resourceVersion": meta.resource_version},
        "status": {"allocation": null, "reservedFor": null, "devices": null},
    });
    let name = meta.name.as_deref().unwrap_or_default();
    api.patch_status(name, &Patch::Merge(patch)).await.map(drop)
}
