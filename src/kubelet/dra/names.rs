//! Which claims a pod has, and whether it may use them: pure.

use k8s_openapi::api::core::v1::{Container, Pod, PodResourceClaim};
use k8s_openapi::api::resource::v1::ResourceClaim;

use super::state::{Driver, Held};
use crate::pod;

/// A claim that a pod uses.
pub struct Claim {
    pub name: String,
    /// Made for this very pod, from a template.
    must_be_own: bool,
}

pub fn has_claims(pod: &Pod) -> bool {
    let listed = pod::spec(pod).resource_claims.as_ref().is_some_and(|it| !it.is_empty());
    listed || extended(pod).is_some()
}

/// The claim that stands for extended resources which drivers bring.
fn extended(pod: &Pod) -> Option<&str> {
    let claim = pod.status.as_ref()?.extended_resource_claim_status.as_ref()?;
    Some(&claim.resource_claim_name)
}

/// None needs no claim.
fn resolve(pod: &Pod, claim: &PodResourceClaim) -> Result<Option<Claim>, String> {
    if let Some(name) = &claim.resource_claim_name {
        return Ok(Some(Claim { name: name.clone(), must_be_own: false }));
    }
    if claim.resource_claim_template_name.is_none() {
        let why = "none of the supported fields are set";
        return Err(format!("pod claim {:?}: {why}", claim.name));
    }
    let told = pod.status.as_ref().and_then(|it| it.resource_claim_statuses.as_ref());
    let told = told.into_iter().flatten().find(|it| it.name == claim.name);
    let told =
        told.ok_or_else(|| format!("pod claim {:?}: ResourceClaim not created yet", claim.name))?;
    let name = told.resource_claim_name.clone();
    Ok(name.map(|name| Claim { name, must_be_own: true }))
}

/// All claims of the pod.
///
/// # Errors
/// One that is not made yet.
pub fn claims(pod: &Pod) -> Result<Vec<Claim>, String> {
    let mut out = Vec::new();
    for claim in pod::spec(pod).resource_claims.iter().flatten() {
        out.extend(resolve(pod, claim)?);
    }
    let extended = extended(pod).map(|name| Claim { name: name.to_owned(), must_be_own: false });
    out.extend(extended);
    Ok(out)
}

/// What is to be prepared, if the pod may use it.
///
/// # Errors
/// Why it may not, or not yet.
pub fn checked(pod: &Pod, claim: &Claim, object: &ResourceClaim) -> Result<Held, String> {
    let name = &claim.name;
    let (uid, namespace) = (pod::uid(pod), pod::namespace(pod));
    let of_claim = object.metadata.uid.clone().unwrap_or_default();
    let owners = object.metadata.owner_references.iter().flatten();
    let is_own = owners.clone().any(|it| it.controller == Some(true) && it.uid == uid);
    if claim.must_be_own && !is_own {
        let own = pod::name(pod);
        return Err(format!(
            "ResourceClaim {namespace}/{name} was not created for Pod {namespace}/{own} (Pod is \
             not owner)"
        ));
    }
    let status = object.status.as_ref();
    let reserved = status.and_then(|it| it.reserved_for.as_ref()).into_iter().flatten();
    if !reserved.clone().any(|it| it.uid == uid) {
        return Err(format!(
            "pod {} ({uid}) is not allowed to use ResourceClaim {name} ({of_claim})",
            pod::name(pod)
        ));
    }
    let allocation = status
        .and_then(|it| it.allocation.as_ref())
        .ok_or_else(|| format!("ResourceClaim {name}: not allocated"))?;
    let results = allocation.devices.iter().flat_map(|it| it.results.iter().flatten());
    Ok(Held {
        uid: of_claim,
        name: name.clone(),
        namespace: namespace.to_owned(),
        drivers: results.map(|it| (it.driver.clone(), Driver::default())).collect(),
        ..Held::default()
    })
}

/// Claims and requests in them that the container uses; an empty request is all of them.
///
/// # Errors
/// A claim that is not made yet.
pub fn uses(pod: &Pod, container: &Container) -> Result<Vec<(String, String)>, String> {
    let mut out = Vec::new();
    let asked = container.resources.iter().flat_map(|it| it.claims.iter()).flatten();
    for asked in asked {
        let listed = pod::spec(pod).resource_claims.iter().flatten();
        let Some(claim) = listed.clone().find(|it| it.name == asked.name) else { continue };
        if let Some(claim) = resolve(pod, claim)? {
            out.push((claim.name, asked.request.clone().unwrap_or_default()));
        }
    }
    let status = pod.status.as_ref().and_then(|it| it.extended_resource_claim_status.as_ref());
    for mapping in status.iter().flat_map(|it| &it.request_mappings) {
        if mapping.container_name == container.name
            && let Some(name) = extended(pod)
        {
            out.push((name.to_owned(), mapping.request_name.clone()));
        }
    }
    Ok(out)
}

/// The container's claims and requests, each with the name under which its status shows it.
pub fn shown(pod: &Pod, container: &Container) -> Vec<((String, String), String)> {
    let asked = container.resources.iter().flat_map(|it| it.claims.iter()).flatten();
    let one = |asked: &k8s_openapi::api::core::v1::ResourceClaim| {
        let listed = pod::spec(pod).resource_claims.iter().flatten();
        let claim = listed.clone().find(|it| it.name == asked.name)?;
        let name = resolve(pod, claim).ok()??.name;
        let request = asked.request.clone().unwrap_or_default();
        let shown = match request.as_str() {
            "" => format!("claim:{}", asked.name),
            request => format!("claim:{}/{request}", asked.name),
        };
        Some(((name, request), shown))
    };
    asked.filter_map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::samples::pod;
    use serde_json::{Value, json};

    #[test]
    fn a_pod_uses_only_what_is_reserved_and_allocated_for_it() {
        let mut it = pod(json!({"containers": [], "resourceClaims": [
            {"name": "own", "resourceClaimTemplateName": "t"},
            {"name": "other", "resourceClaimName": "shared"}]}));
        let refused = |it: &Pod| claims(it).map(drop).unwrap_err();
        assert_eq!(refused(&it), "pod claim \"own\": ResourceClaim not created yet");
        it.status = serde_json::from_value(json!({"resourceClaimStatuses": [
            {"name": "own", "resourceClaimName": "web-own-x"}]}))
        .unwrap();
        let found = claims(&it).unwrap();
        let names: Vec<&str> = found.iter().map(|it| it.name.as_str()).collect();
        assert_eq!(names, ["web-own-x", "shared"]);
        let object = |change: Value| -> ResourceClaim {
            let mut all = json!({"metadata": {"uid": "c1", "ownerReferences": [
                {"apiVersion": "v1", "kind": "Pod", "name": "web", "uid": "uid-1", "controller": true}]},
                "spec": {},
                "status": {"reservedFor": [{"resource": "pods", "name": "web", "uid": "uid-1"}],
                    "allocation": {"devices": {"results": [
                        {"driver": "d", "pool": "p", "device": "0", "request": "r"}]}}}});
            for (path, value) in change.as_object().unwrap() {
                *all.pointer_mut(path).unwrap() = value.clone();
            }
            serde_json::from_value(all).unwrap()
        };
        let judged = |at: usize, change: Value| {
            checked(&it, &found[at], &object(change))
                .map(|it| it.drivers.into_keys().collect::<Vec<_>>())
        };
        assert_eq!(judged(0, json!({})).unwrap(), ["d"]);
        assert_eq!(
            judged(0, json!({"/metadata/ownerReferences": []})).unwrap_err(),
            "ResourceClaim default/web-own-x was not created for Pod default/web (Pod is not owner)"
        );
        assert!(judged(1, json!({"/metadata/ownerReferences": []})).is_ok());
        assert_eq!(
            judged(1, json!({"/status/reservedFor": []})).unwrap_err(),
            "pod web (uid-1) is not allowed to use ResourceClaim shared (c1)"
        );
        assert_eq!(
            judged(1, json!({"/status/allocation": null})).unwrap_err(),
            "ResourceClaim shared: not allocated"
        );
    }
}
