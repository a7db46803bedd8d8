//! Extended resources that devices stand in for: what a pod asks for by a number becomes a claim
//! of its own on nodes that have no such resource (DRAExtendedResource, KEP-5004).
//!
//! Pure; `grant.rs` makes the claim when the pod is bound.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Container, ContainerExtendedResourceRequest, Pod};
use k8s_openapi::api::resource::v1::{
    DeviceClaim, DeviceClass, DeviceRequest, ExactDeviceRequest, ResourceClaim,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kinds::quota::{EXTENDED_RESOURCE_CLAIM, IMPLICIT_RESOURCE};

use super::{Sources, capacity};
use crate::pod::PodInfo;
use crate::snapshot::NodeInfo;

/// No claim of the API server has this name.
const UNMADE: &str = "<extended-resources>";
/// Index of classes by the name of their resource.
pub(super) const BY_RESOURCE: &str = "resource";

/// Which containers use which request of the claim.
pub type Mappings = Vec<ContainerExtendedResourceRequest>;

/// What a pod asks for that devices may stand in for.
#[derive(Debug)]
pub struct Extended {
    pod: Arc<Pod>,
    /// By the name of the resource.
    classes: BTreeMap<String, Arc<DeviceClass>>,
    /// The claim of an earlier try, which is of no use any more.
    stale: Option<Arc<ResourceClaim>>,
}

/// Whether the scheduler has made a claim for extended resources.
pub fn is_special(claim: &ResourceClaim) -> bool {
    let annotations = claim.metadata.annotations.as_ref();
    annotations
        .and_then(|all| all.get(EXTENDED_RESOURCE_CLAIM))
        .is_some_and(|value| value == "true")
}

/// Whether such a claim is still to be made.
pub fn is_unmade(claim: &ResourceClaim) -> bool {
    claim.metadata.name.as_deref() == Some(UNMADE)
}

/// The class behind a resource: of several the one that was made last.
fn class_of(sources: &Sources, resource: &str) -> Option<Arc<DeviceClass>> {
    if let Some(class) = resource.strip_prefix(IMPLICIT_RESOURCE) {
        return sources.classes.get("", class);
    }
    let classes = sources.classes.indexed(BY_RESOURCE, resource);
    classes.into_iter().min_by_key(|class| {
        let meta = &class.metadata;
        (Reverse(meta.creation_timestamp.as_ref().map(|it| it.0)), meta.name.clone())
    })
}

/// What the pod asks for that has a class; None for the many pods that ask for no such thing.
pub fn observe(pod: &PodInfo, sources: &Sources) -> Option<Extended> {
    let asked = pod.requests.asked.other.iter().filter(|(_, value)| **value > 0);
    let classes: BTreeMap<String, Arc<DeviceClass>> =
        asked.filter_map(|(name, _)| Some((name.clone(), class_of(sources, name)?))).collect();
    if classes.is_empty() {
        return None;
    }
    let is_own = |claim: &Arc<ResourceClaim>| {
        let mut owners = claim.metadata.owner_references.iter().flatten();
        is_special(claim) && owners.any(|it| it.controller == Some(true) && it.uid == pod.uid)
    };
    let stale = sources.claims.list_in(&pod.namespace).into_iter().find(is_own);
    Some(Extended { pod: pod.pod.clone(), classes, stale })
}

impl Extended {
    pub fn classes(&self) -> impl Iterator<Item = &Arc<DeviceClass>> {
        self.classes.values()
    }

    pub fn stale(&self) -> Option<&Arc<ResourceClaim>> {
        self.stale.as_ref()
    }

    /// Whether devices have to bring the resource on a node.
    pub fn brings(&self, resource: &str, node: &NodeInfo) -> bool {
        node.allocatable.get(resource) == 0 && self.classes.contains_key(resource)
    }

    /// The claim that the pod needs on a node, and how its containers use it; None where the
    /// node has all that is asked for.
    ///
    /// # Errors
    /// In upstream's words, that a claim of an earlier try has to go first.
    pub fn claim_on(&self, node: &NodeInfo) -> Result<Option<(ResourceClaim, Mappings)>, String> {
        if self.stale.is_some() {
            return Err("cannot schedule extended resource claim".into());
        }
        let (mut requests, mut mappings) = (Vec::new(), Mappings::new());
        for (resource, class) in &self.classes {
            if self.brings(resource, node) {
                let class = class.metadata.name.as_deref().unwrap_or_default();
                requests_for(&self.pod, resource, class, &mut requests, &mut mappings);
            }
        }
        if requests.is_empty() {
            return Ok(None);
        }
        requests.sort_by(|a, b| a.name.cmp(&b.name));
        let meta = &self.pod.metadata;
        let name = meta.name.clone().unwrap_or_default();
        let uid = meta.uid.clone().unwrap_or_default();
        let claim = ResourceClaim {
            metadata: ObjectMeta {
                name: Some(UNMADE.into()),
                namespace: meta.namespace.clone(),
                generate_name: Some(format!("{name}-extended-resources-")),
                // Until it is made: no claim has the uid of a pod.
                uid: Some(uid.clone()),
                annotations: Some([(EXTENDED_RESOURCE_CLAIM.to_owned(), "true".to_owned())].into()),
                owner_references: Some(vec![OwnerReference {
                    api_version: "v1".into(),
                    kind: "Pod".into(),
                    name,
                    uid,
                    controller: Some(true),
                    block_owner_deletion: None,
                }]),
                ..ObjectMeta::default()
            },
            spec: k8s_openapi::api::resource::v1::ResourceClaimSpec {
                devices: Some(DeviceClaim { requests: Some(requests), ..DeviceClaim::default() }),
            },
            status: None,
        };
        Ok(Some((claim, mappings)))
    }
}

/// What one container asks for of a resource: the requests of others that it may use first, and
/// how many devices it needs besides.
fn of_container(
    container: &Container,
    resource: &str,
    reusable: &[Option<DeviceRequest>],
    name: String,
    class: &str,
    mappings: &mut Mappings,
) -> Option<DeviceRequest> {
    let asked = container.resources.as_ref()?.requests.as_ref()?.get(resource)?;
    let asked = capacity::read(asked).value();
    let mut map = |request: &str| {
        mappings.push(ContainerExtendedResourceRequest {
            container_name: container.name.clone(),
            resource_name: resource.to_owned(),
            request_name: request.to_owned(),
        });
    };
    let mut found = 0;
    for request in reusable.iter().flatten() {
        if found >= asked {
            break;
        }
        found = count(request).saturating_add(found);
        map(&request.name);
    }
    if found >= asked {
        return None;
    }
    map(&name);
    Some(DeviceRequest {
        name,
        exactly: Some(ExactDeviceRequest {
            device_class_name: class.to_owned(),
            allocation_mode: Some("ExactCount".into()),
            count: Some(asked - found),
            ..ExactDeviceRequest::default()
        }),
        first_available: None,
    })
}

fn count(request: &DeviceRequest) -> i64 {
    request.exactly.as_ref().and_then(|it| it.count).unwrap_or_default()
}

/// Containers and sidecars have devices of their own. Init containers that end use those of
/// the containers after them first, and share what they need besides.
fn requests_for(
    pod: &Pod,
    resource: &str,
    class: &str,
    requests: &mut Vec<DeviceRequest>,
    mappings: &mut Mappings,
) {
    let Some(spec) = &pod.spec else { return };
    let first = spec.init_containers.as_deref().unwrap_or_default();
    let all: Vec<&Container> = first.iter().chain(&spec.containers).collect();
    let ends = |at: usize| at < first.len() && all[at].restart_policy.as_deref() != Some("Always");
    let name = |at: usize| {
        let asked = all[at].resources.as_ref().and_then(|it| it.requests.as_ref());
        let number = asked.and_then(|it| it.keys().position(|name| name == resource));
        format!("container-{at}-request-{}", number.unwrap_or_default())
    };
    let mut lasting: Vec<Option<DeviceRequest>> = vec![None; all.len()];
    for at in (0..all.len()).filter(|at| !ends(*at)) {
        lasting[at] = of_container(all[at], resource, &[], name(at), class, mappings);
    }
    let (mut largest, mut names) = (None::<DeviceRequest>, Vec::new());
    let mut passing = Mappings::new();
    for at in (0..all.len()).filter(|at| ends(*at)) {
        let more = of_container(all[at], resource, &lasting[at..], name(at), class, &mut passing);
        let Some(more) = more else { continue };
        names.push(more.name.clone());
        if largest.as_ref().is_none_or(|held| count(held) < count(&more)) {
            largest = Some(more);
        }
    }
    if let Some(largest) = &largest {
        for mapping in passing.iter_mut().filter(|it| names.contains(&it.request_name)) {
            mapping.request_name = largest.name.clone();
        }
    }
    mappings.append(&mut passing);
    requests.extend(largest);
    requests.extend(lasting.into_iter().flatten());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::pod_of;
    use serde_json::{Value, json};

    fn container(name: &str, gpus: u32) -> Value {
        json!({"name": name, "resources": {"requests":
            {"cpu": "1", "example.com/gpu": gpus.to_string()}}})
    }

    /// `request=count` and `container:request` of what a pod gets.
    fn check(spec: Value, want: &str) {
        let pod = pod_of("p", json!({}), spec.clone());
        let (mut requests, mut mappings) = (Vec::new(), Mappings::new());
        requests_for(&pod, "example.com/gpu", "gpu", &mut requests, &mut mappings);
        let requests = requests.iter().map(|it| format!("{}={}", it.name, count(it)));
        let uses = mappings.iter().map(|it| format!("{}:{}", it.container_name, it.request_name));
        let found = requests.chain(uses).collect::<Vec<_>>().join(" ");
        assert_eq!(found.replace("container-", "c").replace("request-", "r"), want, "{spec}");
    }

    #[test]
    fn containers_have_devices_of_their_own_and_init_containers_use_what_comes_after_them() {
        check(json!({"containers": [container("a", 2)]}), "c0-r1=2 a:c0-r1");
        check(
            json!({"containers": [container("a", 1), {"name": "b"}, container("c", 2)]}),
            "c0-r1=1 c2-r1=2 a:c0-r1 c:c2-r1",
        );
        check(
            json!({"containers": [container("a", 2)], "initContainers": [container("i", 1)]}),
            "c1-r1=2 a:c1-r1 i:c1-r1",
        );
        check(
            json!({"containers": [container("a", 1)],
                "initContainers": [container("i", 3), container("j", 2)]}),
            "c0-r1=2 c2-r1=1 a:c2-r1 i:c2-r1 i:c0-r1 j:c2-r1 j:c0-r1",
        );
        let mut sidecar = container("s", 1);
        sidecar["restartPolicy"] = "Always".into();
        check(
            json!({"containers": [container("a", 1)], "initContainers": [sidecar]}),
            "c0-r1=1 c1-r1=1 s:c0-r1 a:c1-r1",
        );
    }
}
