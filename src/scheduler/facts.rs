//! What the plan must know beyond nodes and pods: volumes, namespaces, owners.
//!
//! `observe` reads the caches; the rest of the room only sees the result.

use k8s_openapi::api::apps::v1::{ReplicaSet, StatefulSet};
use k8s_openapi::api::core::v1::{
    Namespace, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, PersistentVolume,
    PersistentVolumeClaim, ReplicationController, Service, TopologySelectorTerm,
};
use k8s_openapi::api::storage::v1::StorageClass;
use kinds::meta::LabelSelector;

use client::{Cache, Shared};

use crate::pod::{Labels, PodInfo, Term, Terms};

#[derive(Debug, Clone, Default)]
pub struct Facts {
    /// Labels of the pod's namespace.
    pub namespace_labels: Option<Labels>,
    /// The pod's terms, their namespace selectors replaced by the namespaces.
    pub terms: Terms,
    pub volumes: Vec<VolumeNeed>,
    /// What selects the pod and its siblings, for the default spreading.
    pub siblings: Option<LabelSelector>,
}

#[derive(Debug, Clone)]
pub enum VolumeNeed {
    /// The claim's volume is reachable only from these nodes.
    Reach(NodeSelector),
    /// The claim's volume does not exist.
    Lost,
    /// The claim waits for its first consumer: bind it for the node that is picked.
    Provision { claim: String, allowed: Vec<NodeSelectorTerm> },
}

/// The caches that facts come from.
#[derive(Clone)]
pub struct Caches {
    pub namespaces: Cache<Namespace>,
    pub claims: Cache<PersistentVolumeClaim>,
    pub volumes: Cache<PersistentVolume>,
    pub classes: Cache<StorageClass>,
    pub services: Cache<Service>,
    pub replica_sets: Cache<ReplicaSet>,
    pub replication_controllers: Cache<ReplicationController>,
    pub stateful_sets: Cache<StatefulSet>,
}

impl Caches {
    pub fn new(shared: &Shared) -> Self {
        Self {
            namespaces: shared.cache(),
            claims: shared.cache(),
            volumes: shared.cache(),
            classes: shared.cache(),
            services: shared.cache(),
            replica_sets: shared.cache(),
            replication_controllers: shared.cache(),
            stateful_sets: shared.cache(),
        }
    }

    /// Caches that nothing feeds.
    #[cfg(test)]
    pub fn empty() -> Self {
        Self {
            namespaces: Cache::new(),
            claims: Cache::new(),
            volumes: Cache::new(),
            classes: Cache::new(),
            services: Cache::new(),
            replica_sets: Cache::new(),
            replication_controllers: Cache::new(),
            stateful_sets: Cache::new(),
        }
    }

    pub async fn synced(&self) {
        self.namespaces.synced().await;
        self.claims.synced().await;
        self.volumes.synced().await;
        self.classes.synced().await;
        self.services.synced().await;
        self.replica_sets.synced().await;
        self.replication_controllers.synced().await;
        self.stateful_sets.synced().await;
    }
}

/// Gathers the facts, or says in upstream's words why no node at all will do.
pub fn observe(pod: &PodInfo, caches: &Caches) -> Result<Facts, String> {
    let namespace = caches.namespaces.get("", &pod.namespace);
    Ok(Facts {
        namespace_labels: namespace.and_then(|ns| ns.metadata.labels.clone()),
        terms: pod.terms.as_deref().map(|terms| resolve(terms, caches)).unwrap_or_default(),
        volumes: volumes(pod, caches)?,
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

fn volumes(pod: &PodInfo, caches: &Caches) -> Result<Vec<VolumeNeed>, String> {
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
        let spec = claim.spec.as_ref();
        let bound = spec.and_then(|s| s.volume_name.as_deref()).filter(|v| !v.is_empty());
        if let Some(volume) = bound {
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
        let class = spec.and_then(|s| s.storage_class_name.as_deref()).unwrap_or_default();
        let class = caches.classes.get("", class);
        let waits = class.as_ref().is_some_and(|class| {
            class.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer")
        });
        if !waits {
            return Err("pod has unbound immediate PersistentVolumeClaims".into());
        }
        let allowed = class.and_then(|class| class.allowed_topologies.clone()).unwrap_or_default();
        let allowed = allowed.iter().map(node_term).collect();
        out.push(VolumeNeed::Provision { claim: name, allowed });
    }
    Ok(out)
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
