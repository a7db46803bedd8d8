//! A node may write only what is its own, and a new node is not ready yet.

mod certificates;
mod pods;
mod tokens;

use base64::Engine;
use kinds::meta::name::is_label_of_node;
use serde_json::{Value, json};

use super::{Attributes, Operation};
use crate::authz::node::{LEASES, node_name};
use crate::error::Result;
use crate::registry::Registry;

pub const MIRROR: &str = "kubernetes.io/config.mirror";
const NOT_READY: &str = "node.kubernetes.io/not-ready";
const OTHERS_ONLY: &str = "node-restriction.kubernetes.io";
/// Who sign what nodes prove themselves with.
const NODES_SIGNERS: [&str; 2] =
    ["kubernetes.io/kubelet-serving", "kubernetes.io/kube-apiserver-client-kubelet"];

/// NodeRestriction (documentation, "Admission Control in Kubernetes"). It changes nothing, but
/// judges while objects are completed, as upstream's: what a node asks for, before webhooks are
/// told of it, and not what others add.
pub fn restrict(registry: &Registry, request: &Attributes<'_>, object: &mut Value) -> Result<()> {
    match request.operation {
        Operation::Connect => Ok(()),
        Operation::Create | Operation::Update | Operation::Delete => {
            restriction(registry, request, object)
        }
    }
}

/// The same for deletions, in which there is nothing to complete.
pub fn restrict_deletion(
    registry: &Registry,
    request: &Attributes<'_>,
    object: &Value,
) -> Result<()> {
    match request.operation {
        Operation::Delete => restriction(registry, request, object),
        Operation::Create | Operation::Update | Operation::Connect => Ok(()),
    }
}

fn restriction(registry: &Registry, request: &Attributes<'_>, object: &Value) -> Result<()> {
    let Some(node) = node_name(request.user) else { return Ok(()) };
    let group = request.resource.group.as_str();
    match (group, request.resource.plural.as_str(), request.subresource) {
        ("", "pods", _) => pods::restriction(registry, request, node, object),
        ("", "nodes", _) => own_node(request, node, object),
        ("", "persistentvolumeclaims", "status") => status_of_claim(request, node, object),
        ("", "persistentvolumeclaims", _) => Err(request.forbidden("may only update PVC status")),
        ("", "serviceaccounts", "token") if request.operation == Operation::Create => {
            tokens::restriction(registry, request, node, object)
        }
        ("coordination.k8s.io", "leases", _) if request.namespace != LEASES => {
            Err(request
                .forbidden(format!("can only access leases in the {LEASES:?} system namespace")))
        }
        ("coordination.k8s.io", "leases", _) => {
            let why = "can only access node lease with the same name as the requesting node";
            own_name(request, node, object, why)
        }
        ("storage.k8s.io", "csinodes", _) => {
            let why = "can only access CSINode with the same name as the requesting node";
            own_name(request, node, object, why)
        }
        ("resource.k8s.io", "resourceslices", _) => own_slice(request, node, object),
        ("certificates.k8s.io", "certificatesigningrequests", _) => {
            own_certificate(request, node, object)
        }
        ("certificates.k8s.io", "podcertificaterequests", _) => {
            certificates::restriction(registry, request, node, object)
        }
        _ => Ok(()),
    }
}

fn own_name(request: &Attributes<'_>, node: &str, object: &Value, why: &str) -> Result<()> {
    let name = match request.operation {
        Operation::Create => object["metadata"]["name"].as_str().unwrap_or_default(),
        Operation::Update | Operation::Delete | Operation::Connect => request.name,
    };
    if name == node { Ok(()) } else { Err(request.forbidden(why)) }
}

fn own_node(request: &Attributes<'_>, node: &str, object: &Value) -> Result<()> {
    let name = object["metadata"]["name"].as_str().unwrap_or(request.name);
    if name != node {
        return Err(
            request.forbidden(format!("node {node:?} is not allowed to modify node {name:?}"))
        );
    }
    if request.operation == Operation::Delete {
        return Ok(());
    }
    if let Some(old) = request.old.filter(|_| request.operation == Operation::Update) {
        let new = &object["spec"]["configSource"];
        if !new.is_null() && *new != old["spec"]["configSource"] {
            return Err(request.forbidden(format!(
                "node {node:?} is not allowed to update configSource to a new non-nil configSource"
            )));
        }
        if old["spec"]["taints"] != object["spec"]["taints"] {
            return Err(request.forbidden(format!("node {node:?} is not allowed to modify taints")));
        }
    } else if !object["spec"]["configSource"].is_null() {
        return Err(request.forbidden(format!(
            "node {node:?} is not allowed to create pods with a non-nil configSource"
        )));
    }
    let restricted = restricted_labels(object, request.old);
    if restricted.is_empty() {
        return Ok(());
    }
    let all = restricted.join(", ");
    Err(request.forbidden(match request.operation {
        Operation::Create => {
            format!("node {node:?} is not allowed to set the following labels: {all}")
        }
        _ => format!("is not allowed to modify labels: {all}"),
    }))
}

/// Labels that say where a node may be trusted are not the node's to change, and of Kubernetes'
/// own only those that tell what the node is.
fn restricted_labels(new: &Value, old: Option<&Value>) -> Vec<String> {
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
            domain == OTHERS_ONLY
                || domain.ends_with(&format!(".{OTHERS_ONLY}"))
                || !is_label_of_node(key)
        })
        .cloned()
        .collect();
    changed.sort_unstable();
    changed.dedup();
    changed
}

/// Of a claim the node tells how large it has become, and nothing else.
fn status_of_claim(request: &Attributes<'_>, node: &str, object: &Value) -> Result<()> {
    let Some(old) = request.old.filter(|_| request.operation == Operation::Update) else {
        return Err(request.forbidden("unexpected operation"));
    };
    let rest = |claim: &Value| {
        let mut claim = claim.clone();
        let fields = [
            ("metadata", &["resourceVersion", "managedFields"][..]),
            (
                "status",
                &["capacity", "conditions", "allocatedResources", "allocatedResourceStatuses"],
            ),
        ];
        for (part, names) in fields {
            if let Some(part) = claim[part].as_object_mut() {
                part.retain(|name, _| !names.contains(&name.as_str()));
            }
        }
        if claim["status"].as_object().is_some_and(serde_json::Map::is_empty) {
            claim["status"].take();
        }
        claim
    };
    if rest(old) == rest(object) {
        return Ok(());
    }
    Err(request.forbidden(format!(
        "node {node:?} is not allowed to update fields other than status.quantity and \
         status.conditions"
    )))
}

/// Other requests the node authorizer has looked at; it knows no new object, and not what goes
/// with a deletion of many.
fn own_slice(request: &Attributes<'_>, node: &str, object: &Value) -> Result<()> {
    let (verb, slice) = match request.operation {
        Operation::Create => ("create", object),
        Operation::Delete => ("delete", request.old.unwrap_or(&Value::Null)),
        Operation::Update | Operation::Connect => return Ok(()),
    };
    if slice["spec"]["nodeName"] == node {
        return Ok(());
    }
    Err(request.forbidden(format!(
        "can only {verb} ResourceSlice with the same NodeName as the requesting node"
    )))
}

/// A node asks for certificates under its own name.
fn own_certificate(request: &Attributes<'_>, node: &str, object: &Value) -> Result<()> {
    let signer = object["spec"]["signerName"].as_str().unwrap_or_default();
    if request.operation != Operation::Create || !NODES_SIGNERS.contains(&signer) {
        return Ok(());
    }
    let text = object["spec"]["request"].as_str().unwrap_or_default();
    let pem = base64::engine::general_purpose::STANDARD.decode(text).unwrap_or_default();
    let asked = pki::request::read(&pem)
        .map_err(|error| request.forbidden(format!("unable to parse csr: {error}")))?;
    if asked.common_name == format!("system:node:{node}") {
        return Ok(());
    }
    Err(request.forbidden(format!("can only create a node CSR with CN=system:node:{node}")))
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
