//! A node makes mirror pods, and tells of, evicts and deletes the pods that it runs.

use serde_json::Value;

use super::MIRROR;
use crate::admission::{Attributes, Operation};
use crate::cache::prefix::{NODES, PODS};
use crate::error::Result;
use crate::registry::Registry;

pub fn restriction(
    registry: &Registry,
    request: &Attributes<'_>,
    node: &str,
    object: &Value,
) -> Result<()> {
    let stored = request.old.map_or(&Value::Null, |old| &old["spec"]["nodeName"]);
    match (request.subresource, request.operation) {
        ("", Operation::Create) => mirror(registry, request, node, object),
        ("", Operation::Delete) => {
            own(request, node, stored, "delete pods with spec.nodeName set to itself")
        }
        ("", _) => Err(request.forbidden(format!(
            "unexpected operation \"UPDATE\", node {node:?} can only create and delete mirror pods"
        ))),
        ("status", Operation::Update) => {
            let can = "update pod status for pods with spec.nodeName set to itself";
            own(request, node, stored, can)?;
            status(request, node, object)
        }
        ("eviction", Operation::Create) => {
            let key = format!("{PODS}{}/{}", request.namespace, request.name);
            // Of one that is not there, whoever evicts it tells.
            let Some(pod) = registry.cache.get(PODS, &key) else { return Ok(()) };
            if pod.value()["spec"]["nodeName"] == node {
                return Ok(());
            }
            Err(request.forbidden(format!(
                "node {node} can only evict pods with spec.nodeName set to itself"
            )))
        }
        // What follows from an eviction that was let in.
        ("eviction", _) => Ok(()),
        ("status", _) => Err(request.forbidden("unexpected operation")),
        (other, _) => Err(request.forbidden(format!(
            "unexpected pod subresource {other:?}, only 'status' and 'eviction' are allowed"
        ))),
    }
}

fn mirror(registry: &Registry, request: &Attributes<'_>, node: &str, pod: &Value) -> Result<()> {
    if pod["metadata"]["annotations"].get(MIRROR).is_none() {
        return Err(request.forbidden(format!(
            "pod does not have {MIRROR:?} annotation, node {node:?} can only create mirror pods"
        )));
    }
    own(request, node, &pod["spec"]["nodeName"], "create pods with spec.nodeName set to itself")?;
    owner(registry, request, node, pod)?;
    let Some(what) = refers(&pod["spec"]) else { return Ok(()) };
    Err(request.forbidden(format!("node {node:?} can not create pods that reference {what}")))
}

/// What a pod needs of the API besides itself. Kinds of volumes that nobody here knows are taken
/// for such.
fn refers(spec: &Value) -> Option<String> {
    let list = |of: &Value| of.as_array().cloned().unwrap_or_default();
    let containers = ["initContainers", "containers", "ephemeralContainers"];
    let containers: Vec<Value> = containers.iter().flat_map(|kind| list(&spec[*kind])).collect();
    let reads = |key: &str, from: &str| {
        containers.iter().any(|container| {
            list(&container["env"]).iter().any(|env| !env["valueFrom"][key].is_null())
                || list(&container["envFrom"]).iter().any(|env| !env[from].is_null())
        })
    };
    if spec["serviceAccountName"].as_str().is_some_and(|name| !name.is_empty()) {
        return Some("serviceaccounts".into());
    }
    let volumes = list(&spec["volumes"]);
    let has_secret = |volume: &Value| {
        let volume = volume.as_object().into_iter().flatten();
        volume.into_iter().any(|(_, source)| {
            !source["secretRef"].is_null() || !source["nodePublishSecretRef"].is_null()
        })
    };
    if !list(&spec["imagePullSecrets"]).is_empty()
        || reads("secretKeyRef", "secretRef")
        || volumes.iter().any(has_secret)
    {
        return Some("secrets".into());
    }
    if reads("configMapKeyRef", "configMapRef") {
        return Some("configmaps".into());
    }
    if !list(&spec["resourceClaims"]).is_empty() {
        return Some("resourceclaims".into());
    }
    volumes.iter().find_map(|volume| {
        let fields = volume.as_object()?;
        let (kind, source) =
            fields.iter().find(|(key, source)| *key != "name" && !source.is_null())?;
        let what = match kind.as_str() {
            "configMap" => "configmaps (via configmap volumes)",
            "secret" => "secrets (via secret volumes)",
            "csi" => "csidrivers (via CSI volumes)",
            "glusterfs" => "endpoints (via glusterFS volumes)",
            "persistentVolumeClaim" => "persistentvolumeclaims",
            "ephemeral" => "persistentvolumeclaims (via ephemeral volumes)",
            "azureFile" => "secrets (via azureFile volumes)",
            "projected" => return list(&source["sources"]).iter().find_map(of_projected),
            "awsElasticBlockStore"
            | "azureDisk"
            | "cephfs"
            | "cinder"
            | "downwardAPI"
            | "emptyDir"
            | "fc"
            | "flexVolume"
            | "flocker"
            | "gcePersistentDisk"
            | "gitRepo"
            | "hostPath"
            | "image"
            | "iscsi"
            | "nfs"
            | "photonPersistentDisk"
            | "portworxVolume"
            | "quobyte"
            | "rbd"
            | "scaleIO"
            | "storageos"
            | "vsphereVolume" => return None,
            other => return Some(format!("an unknown volume type {other:?}")),
        };
        Some(what.to_owned())
    })
}

fn of_projected(source: &Value) -> Option<String> {
    let kind = source.as_object()?.iter().find(|(_, of)| !of.is_null())?.0;
    let what = match kind.as_str() {
        "configMap" => "configmaps (via projected volumes)",
        "secret" => "secrets (via projected volumes)",
        "serviceAccountToken" => "serviceaccounts (via projected volumes)",
        "clusterTrustBundle" => "clustertrustbundles",
        "podCertificate" => "podcertificates",
        "downwardAPI" => return None,
        other => return Some(format!("an unknown source {other:?} of a projected volume")),
    };
    Some(what.to_owned())
}

/// What gives the node rights, it does not write itself.
fn status(request: &Attributes<'_>, node: &str, new: &Value) -> Result<()> {
    let old = request.old.unwrap_or(&Value::Null);
    let map = |of: &Value| of.as_object().cloned().unwrap_or_default();
    let list = |of: &Value| of.as_array().cloned().unwrap_or_default();
    if map(&old["metadata"]["labels"]) != map(&new["metadata"]["labels"]) {
        let why = format!("node {node:?} cannot update labels through pod status");
        return Err(request.forbidden(why));
    }
    let (old, new) = (&old["status"], &new["status"]);
    let field = "resourceClaimStatuses";
    if list(&old[field]) != list(&new[field]) {
        return Err(
            request.forbidden(format!("node {node:?} cannot update resource claim statues"))
        );
    }
    let field = "extendedResourceClaimStatus";
    if old[field] != new[field] {
        let why = format!("node {node:?} cannot update extended resource claim status");
        return Err(request.forbidden(why));
    }
    Ok(())
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_mirror_pod_needs_nothing_of_the_api() {
        for (spec, wanted) in [
            (json!({"volumes": [{"name": "v", "hostPath": {"path": "/"}}]}), ""),
            (
                json!({"volumes": [{"name": "v", "projected": {"sources": [{"downwardAPI": {}}]}}]}),
                "",
            ),
            (json!({"serviceAccountName": "default"}), "serviceaccounts"),
            (json!({"imagePullSecrets": [{"name": "s"}]}), "secrets"),
            (json!({"volumes": [{"name": "v", "rbd": {"secretRef": {"name": "s"}}}]}), "secrets"),
            (json!({"containers": [{"envFrom": [{"secretRef": {"name": "s"}}]}]}), "secrets"),
            (
                json!({"initContainers": [{"env": [{"valueFrom": {"configMapKeyRef": {}}}]}]}),
                "configmaps",
            ),
            (json!({"resourceClaims": [{"name": "c"}]}), "resourceclaims"),
            (
                json!({"volumes": [{"name": "v", "secret": {"secretName": "s"}}]}),
                "secrets (via secret volumes)",
            ),
            (
                json!({"volumes": [{"name": "v", "projected": {"sources": [{"secret": {}}]}}]}),
                "secrets (via projected volumes)",
            ),
            (
                json!({"volumes": [{"name": "v", "ephemeral": {}}]}),
                "persistentvolumeclaims (via ephemeral volumes)",
            ),
            (json!({"volumes": [{"name": "v", "new": {}}]}), "an unknown volume type \"new\""),
        ] {
            assert_eq!(refers(&spec).unwrap_or_default(), wanted, "{spec}");
        }
    }
}
