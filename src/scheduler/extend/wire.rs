//! The JSON that goes to extenders and comes from them. Go, which most are written in, writes
//! these fields with a capital and reads them in any case; so do we.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Container, Node};
use serde_json::{Map, Value, json};

use super::name;
use super::whole::Whole;
use crate::pod::PodInfo;
use crate::preempt::Victims;

/// A field in whatever case; null where it is missing.
pub fn field<'a>(object: &'a Value, name: &str) -> &'a Value {
    let fields = object.as_object().into_iter().flatten();
    let mut alike = fields.filter(|(key, _)| key.eq_ignore_ascii_case(name));
    alike.next().map_or(&Value::Null, |(_, value)| value)
}

/// Whether a container of the pod asks for a resource, or is limited in it.
pub fn wants(pod: &PodInfo, resource: &str) -> bool {
    let Some(spec) = pod.spec() else { return false };
    let mut all = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    all.any(|container: &Container| {
        container.resources.as_ref().is_some_and(|it| {
            let named = |list: &Option<std::collections::BTreeMap<String, _>>| {
                list.as_ref().is_some_and(|list| list.contains_key(resource))
            };
            named(&it.requests) || named(&it.limits)
        })
    })
}

/// `ExtenderArgs`.
pub fn nodes(pod: &Value, able: &[(Arc<Node>, i64)], knows_nodes: bool) -> Value {
    if knows_nodes {
        let names: Vec<&str> = able.iter().map(|(node, _)| name(node)).collect();
        return json!({"Pod": pod, "Nodes": null, "NodeNames": names});
    }
    let items: Vec<Value> = able.iter().map(|(node, _)| json!(**node)).collect();
    json!({"Pod": pod, "Nodes": {"metadata": {}, "items": items}, "NodeNames": null})
}

/// The nodes that are left, of an `ExtenderFilterResult`.
pub fn names(answer: &Value, knows_nodes: bool) -> Vec<String> {
    if knows_nodes && let Some(names) = field(answer, "NodeNames").as_array() {
        return names.iter().filter_map(Value::as_str).map(str::to_owned).collect();
    }
    let items = field(field(answer, "Nodes"), "items").as_array().into_iter().flatten();
    items.filter_map(|node| node["metadata"]["name"].as_str()).map(str::to_owned).collect()
}

/// A `FailedNodesMap`.
pub fn reasons(answer: &Value, name: &str) -> Vec<(String, String)> {
    let failed = field(answer, name).as_object().into_iter().flatten();
    failed.map(|(node, why)| (node.clone(), why.as_str().unwrap_or_default().to_owned())).collect()
}

/// A `HostPriorityList`.
pub fn scores(answer: &Value) -> impl Iterator<Item = (String, i64)> {
    answer.as_array().into_iter().flatten().filter_map(|it| {
        Some((field(it, "Host").as_str()?.to_owned(), field(it, "Score").as_i64()?))
    })
}

/// `ExtenderPreemptionArgs`.
pub fn victims(pod: &PodInfo, whole: &Whole, candidates: &[Victims], knows_nodes: bool) -> Value {
    let of = |victims: &Victims| -> Value {
        let pods: Vec<Value> = victims
            .pods
            .iter()
            .map(|pod| if knows_nodes { json!({"UID": pod.uid}) } else { whole.of(pod) })
            .collect();
        json!({"Pods": pods, "NumPDBViolations": victims.violations})
    };
    let all: Map<String, Value> =
        candidates.iter().map(|victims| (victims.node.clone(), of(victims))).collect();
    match knows_nodes {
        true => json!({"Pod": whole.of(pod), "NodeNameToMetaVictims": all}),
        false => json!({"Pod": whole.of(pod), "NodeNameToVictims": all}),
    }
}

/// What an `ExtenderPreemptionResult` leaves of the candidates.
pub fn agreed(answer: &Value, candidates: Vec<Victims>) -> Vec<Victims> {
    let nodes = field(answer, "NodeNameToMetaVictims");
    let left = candidates.into_iter().filter_map(|mut victims| {
        let agreed = nodes.get(&victims.node).filter(|it| !it.is_null())?;
        let pods = field(agreed, "Pods").as_array().into_iter().flatten();
        let uids: Vec<&str> = pods.filter_map(|pod| field(pod, "UID").as_str()).collect();
        victims.pods.retain(|pod| uids.contains(&pod.uid.as_str()));
        let violations = field(agreed, "NumPDBViolations").as_u64();
        victims.violations = violations.map_or(victims.violations, |count| count as usize);
        Some(victims)
    });
    left.collect()
}
