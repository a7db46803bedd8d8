//! A node may write only what is its own, and a new node is not ready yet.

use serde_json::{Value, json};

use super::{Attributes, Operation};
use crate::authz::node::node_name;
use crate::error::Result;
use crate::registry::Registry;

const MIRROR: &str = "kubernetes.io/config.mirror";
const NODES: &str = "/registry/minions/";
const NOT_READY: &str = "node.kubernetes.io/not-ready";

/// NodeRestriction (documentation, "Admission Control in Kubernetes").
pub fn restriction(registry: &Registry, request: &Attributes<'_>, object: &Value) -> Result<()> {
    let Some(node) = node_name(request.user) else { return Ok(()) };
    let group = request.resource.group.as_str();
    match (group, request.resource.plural.as_str(), request.subresource) {
        ("", "pods", "") => match request.operation {
            Operation::Create => {
                if object["metadata"]["annotations"].get(MIRROR).is_none() {
                    return Err(request.forbidden(format!(
                        "pod does not have {MIRROR:?} annotation, node {node:?} can only create mirror pods"
                    )));
                }
                own(request, node, &object["spec"]["nodeName"], "create pods with spec.nodeName set to itself")?;
                owner(registry, request, node, object)?;
                let refers = ["volumes", "serviceAccountName"].iter().any(|field| match *field {
                    "volumes" => object["spec"]["volumes"].as_array().into_iter().flatten().any(
                        |v| ["secret", "configMap", "persistentVolumeClaim", "projected"]
                            .iter()
                            .any(|kind| v.get(*kind).is_some()),
                    ),
                    field => !object["spec"][field].as_str().unwrap_or("").is_empty(),
                });
                if refers {
                    return Err(request.forbidden(format!(
                        "node {node:?} can not create pods that reference a service account, secrets, configmaps or persistentvolumeclaims"
                    )));
                }
                Ok(())
            }
            Operation::Delete => {
                let spec = request.old.map_or(&Value::Null, |old| &old["spec"]["nodeName"]);
                own(request, node, spec, "delete pods with spec.nodeName set to itself")
            }
            Operation::Update => {
                Err(request.forbidden(format!("unexpected operation \"UPDATE\", node {node:?} can only create and delete mirror pods")))
            }
            Operation::Connect => Ok(()),
        },
        ("", "pods", "status") => {
            let spec = request.old.map_or(&Value::Null, |old| &old["spec"]["nodeName"]);
            own(request, node, spec, "update pod status for pods with spec.nodeName set to itself")
        }
        ("", "nodes", _) => {
            let name = object["metadata"]["name"].as_str().unwrap_or(request.name);
            if request.operation == Operation::Delete || name != node {
                return Err(request.forbidden(format!(
                    "node {node:?} is not allowed to modify node {name:?}"
                )));
            }
            let forbidden = restricted_labels(object, request.old);
            if !forbidden.is_empty() {
                let what = match request.operation {
                    Operation::Create => "set the following labels",
                    _ => "modify labels",
                };
                let all = forbidden.join(", ");
                return Err(request.forbidden(format!("is not allowed to {what}: {all}")));
            }
            if request.operation == Operation::Update
                && request.old.is_some_and(|old| old["spec"]["taints"] != object["spec"]["taints"])
            {
                return Err(request.forbidden(format!("node {node:?} is not allowed to modify taints")));
            }
            Ok(())
        }
        ("coordination.k8s.io", "leases", _) => {
            let name = object["metadata"]["name"].as_str().unwrap_or(request.name);
            if name == node || request.name == node {
                Ok(())
            } else {
                Err(request.forbidden("can only access node lease with the same name as the requesting node"))
            }
        }
        ("", "serviceaccounts", "token") => {
            if object["spec"]["boundObjectRef"]["kind"] == "Pod" {
                Ok(())
            } else {
                Err(request.forbidden("node requested token not bound to a pod"))
            }
        }
        _ => Ok(()),
    }
}

/// Labels that say where a node may be trusted are not the node's to change.
fn restricted_labels(new: &Value, old: Option<&Value>) -> Vec<String> {
    const OTHERS_ONLY: &str = "node-restriction.kubernetes.io";
    let empty = serde_json::Map::new();
    let labels = |object: Option<&Value>| -> serde_json::Map<String, Value> {
        let map = object.and_then(|object| object["metadata"]["labels"].as_object());
        map.unwrap_or(&empty).clone()
    };
    let (now, was) = (labels(Some(new)), labels(old));
    let mut changed: Vec<String> = now
        .keys()
        .chain(was.keys())
        .filter(|key| now.get(*key) != was.get(*key))
        .filter(|key| {
            let domain = key.split_once('/').map_or("", |(domain, _)| domain);
            domain == OTHERS_ONLY || domain.ends_with(&format!(".{OTHERS_ONLY}"))
        })
        .cloned()
        .collect();
    changed.sort_unstable();
    changed.dedup();
    changed
}

/// The owner of a mirror pod is the node that it runs on, as it is now.
fn owner(registry: &Registry, request: &Attributes<'_>, node: &str, pod: &Value) -> Result<()> {
    let owners = pod["metadata"]["ownerReferences"].as_array().map_or(&[][..], Vec::as_slice);
    let [owner] = owners else {
        return match owners.len() {
            0 => Err(request.forbidden(format!(
                "node {node:?} can only create pods with an owner reference set to itself"
            ))),
            _ => Err(request.forbidden(format!(
                "node {node:?} can only create pods with a single owner reference set to itself"
            ))),
        };
    };
    let is_node = owner["apiVersion"] == "v1" && owner["kind"] == "Node" && owner["name"] == node;
    if !is_node {
        return Err(request.forbidden(format!(
            "node {node:?} can only create pods with an owner reference set to itself"
        )));
    }
    if owner["controller"] != true {
        return Err(request.forbidden(format!(
            "node {node:?} can only create pods with a controller owner reference set to itself"
        )));
    }
    if owner["blockOwnerDeletion"] == true {
        return Err(request.forbidden(format!(
            "node {node:?} must not set blockOwnerDeletion on an owner reference"
        )));
    }
    let key = format!("{NODES}{node}");
    let Some(live) = registry.cache.get(NODES, &key) else {
        return Err(request.forbidden(format!("node {node:?} not found")));
    };
    let live = live.value();
    let (expected, is) = (&owner["uid"], &live["metadata"]["uid"]);
    if expected != is {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        return Err(request.forbidden(format!(
            "node {node} UID mismatch: expected {} got {}",
            text(expected),
            text(is)
        )));
    }
    Ok(())
}

fn own(request: &Attributes<'_>, node: &str, is: &Value, can: &str) -> Result<()> {
    if is == node {
        return Ok(());
    }
    Err(request.forbidden(format!("node {node:?} can only {can}")))
}

/// TaintNodesByCondition: nothing is scheduled to a node before it has said it is ready.
pub fn taint_new(_: &Registry, request: &Attributes<'_>, node: &mut Value) -> Result<()> {
    if request.operation != Operation::Create || !request.is("", "nodes") {
        return Ok(());
    }
    let mut taints = node["spec"]["taints"].as_array().cloned().unwrap_or_default();
    if !taints.iter().any(|taint| taint["key"] == NOT_READY && taint["effect"] == "NoSchedule") {
        taints.push(json!({"key": NOT_READY, "effect": "NoSchedule"}));
    }
    node["spec"]["taints"] = taints.into();
    Ok(())
}
