//! Which pods are alike: those that no rule can tell apart.

use std::hash::{DefaultHasher, Hash, Hasher};

use k8s_openapi::api::core::v1::{Container, PodSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;

use crate::filter::volume_restrictions;
use crate::pod::{PodInfo, node_of};

/// Equal for pods that are alike; None for pods that are like no other, since they have
/// volumes, devices or a node of their own. Of the labels only some keys matter.
pub fn hash(pod: &PodInfo, matters: &dyn Fn(&str) -> bool) -> Option<u64> {
    let spec = pod.spec()?;
    let claims = spec.resource_claims.as_ref().is_some_and(|claims| !claims.is_empty());
    if !pod.claims.is_empty()
        || claims
        || node_of(&pod.pod).is_some()
        || volume_restrictions::has_disks(pod)
    {
        return None;
    }
    let mut out = DefaultHasher::new();
    pod.namespace.hash(&mut out);
    for label in labels(pod, matters) {
        label.hash(&mut out);
    }
    pod.priority.hash(&mut out);
    let asked = &pod.requests.asked;
    (asked.cpu, asked.memory, asked.storage, &asked.other).hash(&mut out);
    Some(out.finish())
}

pub fn alike(one: &PodInfo, other: &PodInfo, matters: &dyn Fn(&str) -> bool) -> bool {
    let (Some(a), Some(b)) = (one.spec(), other.spec()) else { return false };
    let images = |containers: &[Container], others: &[Container]| {
        containers.len() == others.len()
            && containers.iter().zip(others).all(|(a, b)| a.image == b.image)
    };
    one.namespace == other.namespace
        && one.priority == other.priority
        && labels(one, matters).eq(labels(other, matters))
        && one.requests == other.requests
        && one.ports == other.ports
        && one.features == other.features
        && controller(one) == controller(other)
        && a.scheduler_name == b.scheduler_name
        && a.preemption_policy == b.preemption_policy
        && a.node_selector == b.node_selector
        && a.affinity == b.affinity
        && a.tolerations == b.tolerations
        && a.topology_spread_constraints == b.topology_spread_constraints
        && images(&a.containers, &b.containers)
        && images(
            a.init_containers.as_deref().unwrap_or_default(),
            b.init_containers.as_deref().unwrap_or_default(),
        )
        && mounted(a).eq(mounted(b))
}

/// The images of a pod's volumes.
fn mounted(spec: &PodSpec) -> impl Iterator<Item = &str> {
    let volumes = spec.volumes.iter().flatten().filter_map(|volume| volume.image.as_ref());
    volumes.filter_map(|image| image.reference.as_deref())
}

/// The labels whose keys matter.
fn labels<'a>(
    pod: &'a PodInfo,
    matters: &'a dyn Fn(&str) -> bool,
) -> impl Iterator<Item = (&'a String, &'a String)> {
    pod.labels().into_iter().flatten().filter(|(key, _)| matters(key))
}

/// The kind and the name of who made the pod; its siblings are found by them.
fn controller(pod: &PodInfo) -> Option<(&str, &str)> {
    let owners = pod.pod.metadata.owner_references.as_deref().unwrap_or_default();
    let mut owners = owners.iter();
    let of = |owner: &OwnerReference| owner.controller == Some(true);
    owners.find(|it| of(it)).map(|owner| (owner.kind.as_str(), owner.name.as_str()))
}
