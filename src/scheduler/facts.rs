//! What the plan must know beyond nodes and pods: volumes, namespaces, owners.
//!
//! `observe` reads the caches; the rest of the room only sees the result.

use std::collections::HashMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{
    NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, PersistentVolume,
    PersistentVolumeClaim, TopologySelectorTerm,
};
use k8s_openapi::api::storage::v1::{CSIStorageCapacity, StorageClass};
use kinds::meta::LabelSelector;
use kinds::meta::quantity::Quantity;

use client::volumes::{self as claims, NO_PROVISIONER, SELECTED_NODE};

use crate::devices::{self, Devices, Pending};
use crate::filter::{Rule, volume_limits, volume_restrictions, volume_zone};
use crate::pod::{Labels, PodInfo, Term, Terms};
use crate::profile::Profile;

mod caches;

pub use caches::Caches;
use caches::{BY_CLASS, ROOM_BY_CLASS};

#[derive(Debug, Clone, Default)]
pub struct Facts {
    /// How the pod is to be scheduled.
    pub profile: Arc<Profile>,
    /// Labels of the pod's namespace.
    pub namespace_labels: Option<Labels>,
    /// The pod's terms, their namespace selectors replaced by the namespaces.
    pub terms: Terms,
    pub volumes: Vec<VolumeNeed>,
    /// The pod's attachable volumes; None where there are none.
    pub attachable: Option<volume_limits::Wanted>,
    /// Its disks and claims that nobody else may use.
    pub exclusive: volume_restrictions::Exclusive,
    /// Where its volumes are: labels of nodes, and the values that will do.
    pub zones: Vec<volume_zone::Zone>,
    /// Its claims of devices; None where it has none.
    pub devices: Option<Arc<Devices>>,
    /// What selects the pod and its siblings, for the default spreading.
    pub siblings: Option<LabelSelector>,
}

/// Why no node at all will do, and which rule says so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nowhere {
    pub rule: Rule,
    pub reason: String,
}

#[derive(Debug, Clone)]
pub enum VolumeNeed {
    /// The claim's volume is reachable only from these nodes.
    Reach(NodeSelector),
    /// The claim's volume does not exist.
    Lost,
    /// The claim waits for its first consumer: bind it for the node that is picked.
    Bind(Box<Unbound>),
}

/// A claim that has no volume yet.
#[derive(Debug, Clone)]
pub struct Unbound {
    pub claim: Arc<PersistentVolumeClaim>,
    /// Volumes that are there and may suit, unless the node does not reach them.
    pub candidates: Vec<Arc<PersistentVolume>>,
    /// A node was selected for it before.
    pub selected: Option<String>,
    /// None where nobody provisions volumes of its class.
    pub provisioned: Option<Provisioned>,
}

/// Where volumes of a class can be provisioned.
#[derive(Debug, Clone)]
pub struct Provisioned {
    /// None: everywhere.
    pub allowed: Vec<NodeSelectorTerm>,
    /// What is left of storage, and on which nodes; None where the driver does not say.
    pub room: Option<Vec<(LabelSelector, Quantity)>>,
}

/// Volumes that were picked for claims and do not show it yet, by name, with the claim's uid.
pub type Taken = HashMap<String, String>;

/// Gathers the facts.
///
/// # Errors
/// In upstream's words, why no node at all will do.
pub fn observe(
    pod: &PodInfo,
    profile: &Arc<Profile>,
    caches: &Caches,
    taken: &Taken,
    pending: &Pending,
) -> Result<Facts, Nowhere> {
    let namespace = caches.namespaces.get("", &pod.namespace);
    let has_volumes = pod.spec().is_some_and(|spec| spec.volumes.is_some());
    let on = |rule| has_volumes && profile.filters_by(rule);
    let nowhere = |rule| move |reason| Nowhere { rule, reason };
    let volumes = match on(Rule::VolumeBinding) {
        true => volumes(pod, caches, taken).map_err(nowhere(Rule::VolumeBinding))?,
        false => Vec::new(),
    };
    let devices = match profile.filters_by(Rule::DynamicResources) {
        true => devices::observe(pod, &caches.devices, pending, profile.devices, base::time::now)
            .map_err(nowhere(Rule::DynamicResources))?,
        false => None,
    };
    let attachable = on(Rule::NodeVolumeLimits).then(|| volume_limits::wanted(pod, caches));
    Ok(Facts {
        profile: profile.clone(),
        attachable: attachable.flatten(),
        exclusive: match on(Rule::VolumeRestrictions) {
            true => volume_restrictions::exclusive(pod, caches),
            false => volume_restrictions::Exclusive::default(),
        },
        zones: match on(Rule::VolumeZone) {
            true => volume_zone::zones(pod, caches),
            false => Vec::new(),
        },
        volumes,
        namespace_labels: namespace.and_then(|ns| ns.metadata.labels.clone()),
        terms: pod.terms.as_deref().map(|terms| resolve(terms, caches)).unwrap_or_default(),
        devices: devices.map(Arc::new),
        siblings: siblings(pod, caches),
    })
}

fn resolve(terms: &Terms, caches: &Caches) -> Terms {
    let each = |terms: &[Term]| {
        let resolved = terms.iter().cloned().map(|mut term| {
            if let Some(selector) = term.namespace_selector.take() {
                for namespace in caches.namespaces.list() {
                    if selector.matches_map(namespace.metadata.labels.as_ref()) {
                        term.namespaces.extend(namespace.metadata.name.clone());
                    }
                }
            }
            term
        });
        resolved.collect()
    };
    Terms {
        affinity: each(&terms.affinity),
        anti_affinity: each(&terms.anti_affinity),
        prefers: each(&terms.prefers),
        prefers_not: each(&terms.prefers_not),
    }
}

fn volumes(pod: &PodInfo, caches: &Caches, taken: &Taken) -> Result<Vec<VolumeNeed>, String> {
    let mut out = Vec::new();
    for volume in pod.spec().and_then(|s| s.volumes.as_deref()).unwrap_or_default() {
        let name = match (&volume.persistent_volume_claim, &volume.ephemeral) {
            (Some(claim), _) => claim.claim_name.clone(),
            (None, Some(_)) => format!("{}-{}", pod.name, volume.name),
            (None, None) => continue,
        };
        let Some(claim) = caches.claims.get(&pod.namespace, &name) else {
            return Err(if volume.ephemeral.is_some() {
                format!(
                    "waiting for ephemeral volume controller to create the persistentvolumeclaim {name:?}"
                )
            } else {
                format!("persistentvolumeclaim {name:?} not found")
            });
        };
        let phase = claim.status.as_ref().and_then(|s| s.phase.as_deref());
        if phase == Some("Lost") {
            return Err(format!(
                "persistentvolumeclaim {name:?} bound to non-existent persistentvolume {:?}",
                claim.spec.as_ref().and_then(|s| s.volume_name.clone()).unwrap_or_default()
            ));
        }
        if claim.metadata.deletion_timestamp.is_some() {
            return Err(format!("persistentvolumeclaim {name:?} is being deleted"));
        }
        if let Some(volume) =
            claims::volume_name(&claim).filter(|_| claims::is_bind_completed(&claim))
        {
            match caches.volumes.get("", volume) {
                None => out.push(VolumeNeed::Lost),
                Some(volume) => {
                    let affinity = volume.spec.as_ref().and_then(|s| s.node_affinity.as_ref());
                    if let Some(required) = affinity.and_then(|a| a.required.clone()) {
                        out.push(VolumeNeed::Reach(required));
                    }
                }
            }
            continue;
        }
        let class = claims::class_of_claim(&claim).and_then(|class| caches.classes.get("", class));
        // One that names its volume is bound without us.
        let class = class
            .filter(|class| claims::waits_for_consumer(class))
            .filter(|_| claims::volume_name(&claim).is_none());
        let Some(class) = class else {
            return Err("pod has unbound immediate PersistentVolumeClaims".into());
        };
        out.push(VolumeNeed::Bind(Box::new(unbound(claim, &class, caches, taken))));
    }
    Ok(out)
}

fn unbound(
    claim: Arc<PersistentVolumeClaim>,
    class: &StorageClass,
    caches: &Caches,
    taken: &Taken,
) -> Unbound {
    let name = class.metadata.name.as_deref().unwrap_or_default();
    let uid = claim.metadata.uid.as_deref().unwrap_or_default();
    let mut candidates = caches.volumes.indexed(BY_CLASS, name);
    candidates.retain(|volume| {
        let holder = volume.metadata.name.as_ref().and_then(|volume| taken.get(volume));
        holder.is_none_or(|holder| holder == uid)
    });
    let selected = claim.metadata.annotations.as_ref().and_then(|all| all.get(SELECTED_NODE));
    let provisioned = (class.provisioner != NO_PROVISIONER).then(|| Provisioned {
        allowed: class.allowed_topologies.iter().flatten().map(node_term).collect(),
        room: room(class, name, caches),
    });
    Unbound { selected: selected.cloned(), claim, candidates, provisioned }
}

/// What is left of storage for a class, where its driver says so.
fn room(
    class: &StorageClass,
    name: &str,
    caches: &Caches,
) -> Option<Vec<(LabelSelector, Quantity)>> {
    let rooms = caches.capacities.indexed(ROOM_BY_CLASS, name);
    let counts = match caches.drivers.get("", &class.provisioner) {
        Some(driver) => driver.spec.storage_capacity == Some(true),
        // No driver's object can have a name with a slash: what such a provisioner tells
        // counts as soon as it tells.
        None => class.provisioner.contains('/') && !rooms.is_empty(),
    };
    if !counts {
        return None;
    }
    let of = |room: Arc<CSIStorageCapacity>| {
        // Where the driver knows how large a volume may be, that counts.
        let size = room.maximum_volume_size.as_ref().or(room.capacity.as_ref())?;
        let nodes = client::labels::selector(room.node_topology.as_ref());
        Some((nodes, size.0.parse().ok()?))
    };
    Some(rooms.into_iter().filter_map(of).collect())
}

fn node_term(term: &TopologySelectorTerm) -> NodeSelectorTerm {
    let requirement =
        |expression: &k8s_openapi::api::core::v1::TopologySelectorLabelRequirement| {
            NodeSelectorRequirement {
                key: expression.key.clone(),
                operator: "In".into(),
                values: Some(expression.values.clone()),
            }
        };
    let expressions = term.match_label_expressions.iter().flatten().map(requirement);
    NodeSelectorTerm { match_expressions: Some(expressions.collect()), match_fields: None }
}

/// The union of the selectors of the pod's services and of its controller; None where
/// there is neither (upstream, `helper.DefaultSelector`).
fn siblings(pod: &PodInfo, caches: &Caches) -> Option<LabelSelector> {
    let labels = pod.labels()?;
    let mut out = LabelSelector::default();
    for service in caches.services.list_in(&pod.namespace) {
        let wanted = service.spec.as_ref().and_then(|s| s.selector.as_ref());
        let Some(wanted) = wanted.filter(|wanted| !wanted.is_empty()) else { continue };
        if wanted.iter().all(|(key, value)| labels.get(key) == Some(value)) {
            out.requirements.extend(client::labels::equal_to(Some(wanted)).requirements);
        }
    }
    let owners = pod.pod.metadata.owner_references.iter().flatten();
    if let Some(owner) = owners.into_iter().find(|owner| owner.controller == Some(true)) {
        let (namespace, name) = (pod.namespace.as_str(), owner.name.as_str());
        let selector =
            match owner.kind.as_str() {
                "ReplicaSet" => caches.replica_sets.get(namespace, name).and_then(|o| {
                    o.spec.as_ref().map(|s| client::labels::selector(Some(&s.selector)))
                }),
                "StatefulSet" => caches.stateful_sets.get(namespace, name).and_then(|o| {
                    o.spec.as_ref().map(|s| client::labels::selector(Some(&s.selector)))
                }),
                "ReplicationController" => {
                    caches.replication_controllers.get(namespace, name).and_then(|o| {
                        let selector = o.spec.as_ref().and_then(|s| s.selector.as_ref());
                        selector.map(|labels| client::labels::equal_to(Some(labels)))
                    })
                }
                _ => None,
            };
        out.requirements.extend(selector.into_iter().flat_map(|s| s.requirements));
    }
    (!out.requirements.is_empty()).then_some(out)
}
