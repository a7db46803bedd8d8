//! A pod as the plan sees it: what it asks for, parsed once.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use client::fit::{HostPort, host_ports};
use k8s_openapi::api::core::v1::{Pod, PodAffinityTerm, PodSpec, Toleration, Volume};
use kinds::meta::LabelSelector;

use crate::filter::node_declared_features;
use crate::look::Look;
use crate::resources::{Requests, requests_of};

/// A pod (anti-)affinity term.
#[derive(Debug, Clone, Hash)]
pub struct Term {
    pub selector: LabelSelector,
    pub topology_key: String,
    pub namespaces: BTreeSet<String>,
    /// Namespaces whose labels match belong to the term too.
    pub namespace_selector: Option<LabelSelector>,
    /// 0 for required terms.
    pub weight: i64,
}

impl Term {
    /// Whether the term speaks of `pod`, whose namespace has `namespace_labels`.
    pub fn selects(&self, pod: &PodInfo, namespace_labels: Option<&Labels>) -> bool {
        (self.namespaces.contains(&pod.namespace)
            || self.namespace_selector.as_ref().is_some_and(|s| s.matches_map(namespace_labels)))
            && self.selector.matches_map(pod.labels())
    }
}

pub type Labels = BTreeMap<String, String>;

#[derive(Debug, Clone, Default, Hash)]
pub struct Terms {
    pub affinity: Vec<Term>,
    pub anti_affinity: Vec<Term>,
    pub prefers: Vec<Term>,
    pub prefers_not: Vec<Term>,
}

#[derive(Debug)]
pub struct PodInfo {
    pub pod: Arc<Pod>,
    pub uid: String,
    pub namespace: String,
    pub name: String,
    pub priority: i32,
    pub requests: Requests,
    pub ports: Vec<HostPort>,
    /// What its node must declare that it can do.
    pub features: Vec<&'static str>,
    /// Names of its volume claims.
    pub claims: Vec<String>,
    /// None for the many pods without any.
    pub terms: Option<Box<Terms>>,
    pub terminating: bool,
    pub look: Look,
}

impl PodInfo {
    pub fn new(pod: Arc<Pod>) -> Self {
        let meta = &pod.metadata;
        let namespace = meta.namespace.clone().unwrap_or_default();
        let mut requests = requests_of(&pod);
        requests.asked.pods = 1;
        let terms = terms(&pod, &namespace).map(Box::new);
        let terminating = meta.deletion_timestamp.is_some();
        Self {
            look: Look::of(&namespace, meta.labels.as_ref(), terms.as_deref(), terminating),
            uid: uid_of(&pod),
            name: meta.name.clone().unwrap_or_default(),
            priority: pod.spec.as_ref().and_then(|s| s.priority).unwrap_or_default(),
            requests,
            claims: pod.spec.as_ref().map(|spec| claims(&pod, spec)).unwrap_or_default(),
            ports: pod.spec.as_ref().map(host_ports).unwrap_or_default(),
            features: pod.spec.as_ref().map(node_declared_features::needed).unwrap_or_default(),
            terms,
            terminating,
            namespace,
            pod,
        }
    }

    /// Whether a pod of the same uid takes from a node what this one takes.
    pub fn weighs_like(&self, other: &Self) -> bool {
        self.requests == other.requests
            && self.priority == other.priority
            && self.ports == other.ports
            && self.claims == other.claims
    }

    /// Whether a pod of the same uid counts wherever this one counts.
    pub fn looks_like(&self, other: &Self) -> bool {
        self.look == other.look
    }

    pub fn labels(&self) -> Option<&Labels> {
        self.pod.metadata.labels.as_ref()
    }

    pub fn spec(&self) -> Option<&PodSpec> {
        self.pod.spec.as_ref()
    }

    /// The node that the pod was promised, or that somebody expects it on.
    pub fn nominated(&self) -> Option<&str> {
        let name = self.pod.status.as_ref()?.nominated_node_name.as_deref()?;
        Some(name).filter(|name| !name.is_empty())
    }

    /// Whose profile it wants.
    pub fn scheduler_name(&self) -> &str {
        scheduler_name(&self.pod)
    }

    pub fn tolerations(&self) -> &[Toleration] {
        self.spec().and_then(|s| s.tolerations.as_deref()).unwrap_or_default()
    }
}

/// The uid; a pod without one (only in tests) is known by its name.
pub fn uid_of(pod: &Pod) -> String {
    pod.metadata.uid.clone().or_else(|| pod.metadata.name.clone()).unwrap_or_default()
}

/// Whose profile a pod wants.
pub fn scheduler_name(pod: &Pod) -> &str {
    let name = pod.spec.as_ref().and_then(|spec| spec.scheduler_name.as_deref());
    name.filter(|name| !name.is_empty()).unwrap_or("default-scheduler")
}

/// Succeeded and failed pods hold nothing on their node.
pub fn is_finished(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

pub fn node_of(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.node_name.as_deref().filter(|name| !name.is_empty())
}

fn claims(pod: &Pod, spec: &PodSpec) -> Vec<String> {
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let of = |volume: &Volume| match (&volume.persistent_volume_claim, &volume.ephemeral) {
        (Some(claim), _) => Some(claim.claim_name.clone()),
        (None, Some(_)) => Some(format!("{name}-{}", volume.name)),
        (None, None) => None,
    };
    spec.volumes.iter().flatten().filter_map(of).collect()
}

fn terms(pod: &Pod, namespace: &str) -> Option<Terms> {
    let affinity = pod.spec.as_ref()?.affinity.as_ref()?;
    let mut out = Terms::default();
    let term = |term: &PodAffinityTerm, weight: i32| term_of(term, namespace, weight);
    if let Some(near) = &affinity.pod_affinity {
        let required = near.required_during_scheduling_ignored_during_execution.iter().flatten();
        out.affinity = required.map(|t| term(t, 0)).collect();
        let preferred = near.preferred_during_scheduling_ignored_during_execution.iter().flatten();
        out.prefers = preferred.map(|t| term(&t.pod_affinity_term, t.weight)).collect();
    }
    if let Some(far) = &affinity.pod_anti_affinity {
        let required = far.required_during_scheduling_ignored_during_execution.iter().flatten();
        out.anti_affinity = required.map(|t| term(t, 0)).collect();
        let preferred = far.preferred_during_scheduling_ignored_during_execution.iter().flatten();
        out.prefers_not = preferred.map(|t| term(&t.pod_affinity_term, t.weight)).collect();
    }
    let any = !out.affinity.is_empty()
        || !out.anti_affinity.is_empty()
        || !out.prefers.is_empty()
        || !out.prefers_not.is_empty();
    any.then_some(out)
}

fn term_of(term: &PodAffinityTerm, namespace: &str, weight: i32) -> Term {
    let mut namespaces: BTreeSet<String> = term.namespaces.iter().flatten().cloned().collect();
    if namespaces.is_empty() && term.namespace_selector.is_none() {
        namespaces.insert(namespace.to_string());
    }
    Term {
        selector: client::labels::selector(term.label_selector.as_ref()),
        topology_key: term.topology_key.clone(),
        namespaces,
        namespace_selector: term
            .namespace_selector
            .as_ref()
            .map(|selector| client::labels::selector(Some(selector))),
        weight: i64::from(weight),
    }
}
