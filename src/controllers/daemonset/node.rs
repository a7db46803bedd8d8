//! Where a set's pods may run, and the pod for one node. Pure.

use client::fit::{Place, required, tolerates};
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{
    Node, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, Pod, PodSpec, PodTemplateSpec,
    Toleration,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::history::HASH;
use crate::node::plan::taints_of;
use crate::owner::{self, annotation, name};

/// Counts the changes of a set's template; an annotation of the set.
const TEMPLATE_GENERATION: &str = "deprecated.daemonset.template.generation";
/// The same, as a label of its pods.
const POD_GENERATION: &str = "pod-template-generation";

const TOLERATED: [(&str, &str); 6] = [
    ("not-ready", "NoExecute"),
    ("unreachable", "NoExecute"),
    ("disk-pressure", "NoSchedule"),
    ("memory-pressure", "NoSchedule"),
    ("pid-pressure", "NoSchedule"),
    ("unschedulable", "NoSchedule"),
];

fn tolerations(spec: &PodSpec) -> Vec<Toleration> {
    let mut all = spec.tolerations.clone().unwrap_or_default();
    let network = ("network-unavailable", "NoSchedule");
    let host = spec.host_network.unwrap_or(false).then_some(network);
    for (key, effect) in TOLERATED.into_iter().chain(host) {
        let one = Toleration {
            key: Some(format!("node.kubernetes.io/{key}")),
            operator: Some("Exists".into()),
            effect: Some(effect.into()),
            ..Toleration::default()
        };
        if !all.contains(&one) {
            all.push(one);
        }
    }
    all
}

/// Whether a pod belongs on the node, and whether one that is there may stay.
pub fn should_run(template: &PodTemplateSpec, node: &Node) -> (bool, bool) {
    let spec = template.spec.clone().unwrap_or_default();
    let node_name = name(&node.metadata);
    let label = |key: &str| node.metadata.labels.as_ref()?.get(key).map(String::as_str);
    let named = spec.node_name.as_deref().is_none_or(|n| n.is_empty() || n == node_name);
    let place = Place { name: node_name, label };
    if !named || !place.is_for(&spec) {
        return (false, false);
    }
    let tolerations = tolerations(&spec);
    let against = |effect: &str| {
        let mut taints = taints_of(node).iter().filter(|t| t.effect == effect);
        taints.any(|taint| !tolerations.iter().any(|t| tolerates(t, taint)))
    };
    let evicted = against("NoExecute");
    (!evicted && !against("NoSchedule"), !evicted)
}

/// The node that a pod is on or made for.
pub fn target(pod: &Pod) -> Option<&str> {
    let spec = pod.spec.as_ref()?;
    if let Some(node) = spec.node_name.as_deref().filter(|n| !n.is_empty()) {
        return Some(node);
    }
    let fields =
        required(spec)?.node_selector_terms.iter().flat_map(|t| t.match_fields.iter().flatten());
    let mut named = fields.filter(|f| f.key == "metadata.name" && f.operator == "In");
    named.next()?.values.as_ref()?.first().map(String::as_str)
}

/// Whether a pod has the present template: it has its revision, or was made since the
/// template last changed, whatever the revision was called then.
pub fn is_updated(set: &DaemonSet, hash: &str, pod: &Pod) -> bool {
    let label = |key: &str| pod.metadata.labels.as_ref()?.get(key).map(String::as_str);
    let generation = annotation(&set.metadata, TEMPLATE_GENERATION);
    let is_of = |key: &str, wanted: &str| label(key).is_some_and(|held| held == wanted);
    is_of(HASH, hash) || generation.is_some_and(|wanted| is_of(POD_GENERATION, wanted))
}

pub fn new_pod(set: &DaemonSet, node: &str, hash: &str) -> Pod {
    let template = set.spec.clone().unwrap_or_default().template;
    let given = template.metadata.unwrap_or_default();
    let mut labels = given.labels.unwrap_or_default();
    labels.insert(HASH.into(), hash.into());
    if let Some(generation) = annotation(&set.metadata, TEMPLATE_GENERATION) {
        labels.insert(POD_GENERATION.into(), generation.into());
    }
    let mut spec = template.spec.unwrap_or_default();
    spec.tolerations = Some(tolerations(&spec));
    let field = NodeSelectorRequirement {
        key: "metadata.name".into(),
        operator: "In".into(),
        values: Some(vec![node.into()]),
    };
    let term = NodeSelectorTerm { match_fields: Some(vec![field]), match_expressions: None };
    let affinity = spec.affinity.get_or_insert_default().node_affinity.get_or_insert_default();
    affinity.required_during_scheduling_ignored_during_execution =
        Some(NodeSelector { node_selector_terms: vec![term] });
    Pod {
        metadata: ObjectMeta {
            generate_name: Some(format!("{}-", name(&set.metadata))),
            namespace: set.metadata.namespace.clone(),
            labels: Some(labels),
            annotations: given.annotations,
            finalizers: given.finalizers,
            owner_references: Some(vec![owner::reference_to(set)]),
            ..ObjectMeta::default()
        },
        spec: Some(spec),
        status: None,
    }
}
