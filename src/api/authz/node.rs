//! What a node may do: its own objects, and what the pods bound to it refer to
//! (documentation, "Using Node Authorization").

use serde_json::Value;

use super::{Action, Decision};
use crate::admission::node::MIRROR;
use crate::authn::User;
use crate::cache::Cache;
use crate::cache::prefix::{CLAIMS, PODS, VOLUMES};

const NODES_GROUP: &str = "system:nodes";
const ATTACHMENTS: &str = "/registry/volumeattachments/";
const SLICES: &str = "/registry/resourceslices/";
const BUNDLES: &str = "/registry/clustertrustbundles/";
const POD_CERTIFICATES: &str = "/registry/podcertificaterequests/";
/// Where the leases of nodes are.
pub const LEASES: &str = "kube-node-lease";
/// Kinds of volumes that have a `secretRef`.
const VOLUMES_WITH_SECRETS: [&str; 7] =
    ["cephfs", "cinder", "flexVolume", "iscsi", "rbd", "scaleIO", "storageos"];

/// The node a user is, if it is one.
pub fn node_name(user: &User) -> Option<&str> {
    user.is_in(NODES_GROUP).then(|| user.name.strip_prefix("system:node:")).flatten()
}

pub fn decide(cache: &Cache, user: &User, action: &Action) -> Decision {
    let Some(node) = node_name(user) else { return Decision::NoOpinion(String::new()) };
    match rule(cache, node, action) {
        Ok(()) => Decision::Allow(String::new()),
        Err(why) => Decision::NoOpinion(why),
    }
}

/// # Errors
/// What the node is told that may not, where there is more to tell than that.
fn rule(cache: &Cache, node: &str, action: &Action) -> Result<(), String> {
    let verb = action.verb.as_str();
    let is_related = |related: bool| match related {
        true => Ok(()),
        false => Err(format!("no relationship found between node '{node}' and this object")),
    };
    let names = || match action.name.is_empty() {
        true => Err("No Object name found".to_owned()),
        false => Ok(()),
    };
    let gets = || {
        one_of(action, &["get"], "can only get individual resources of this type")?;
        whole(action, "cannot get subresource")?;
        names()
    };
    let reads = || {
        one_of(action, READS, "can only read resources of this type")?;
        whole(action, "cannot read subresource")?;
        if action.namespace.is_empty() {
            return Err("can only read namespaced object of this type".to_owned());
        }
        names()
    };
    let selects_own = || action.selection.fields.exactly("spec.nodeName") == Some(node);
    match (action.group.as_str(), action.resource.as_str()) {
        ("", "secrets") => {
            reads()?;
            is_related(referenced(cache, node, action) || secret_of_volume(cache, node, action))
        }
        ("", "configmaps") => {
            reads()?;
            is_related(referenced(cache, node, action))
        }
        // The node tells when it has made a file system larger.
        ("", "persistentvolumeclaims") if action.subresource == "status" => {
            one_of(action, &["update", "patch"], "can only get/update/patch this type")?;
            names()?;
            is_related(referenced(cache, node, action))
        }
        ("", "persistentvolumeclaims") | ("resource.k8s.io", "resourceclaims") => {
            gets()?;
            is_related(referenced(cache, node, action))
        }
        ("", "persistentvolumes") => {
            gets()?;
            is_related(bound_volume(cache, node, &action.name))
        }
        ("storage.k8s.io", "volumeattachments") => {
            gets()?;
            is_related(is_of_node(cache, ATTACHMENTS, &action.name, node))
        }
        ("", "serviceaccounts") => {
            // Credential providers are told of the accounts, so that they are read, too.
            if verb == "get" && action.subresource.is_empty() {
                reads()?;
            } else if verb != "create" || action.name.is_empty() {
                return Err("can only create tokens for individual service accounts".into());
            } else if action.subresource != "token" {
                return Err("can only create token subresource of serviceaccount".into());
            }
            is_related(referenced(cache, node, action))
        }
        ("coordination.k8s.io", "leases") => lease(node, action),
        ("storage.k8s.io", "csinodes") => {
            let why = "can only get, create, update, patch, or delete a CSINode";
            one_of(action, &["get", "create", "update", "patch", "delete"], why)?;
            whole(action, "cannot authorize CSINode subresources")?;
            let why = "can only access CSINode with the same name as the requesting node";
            own_name(node, action, why)
        }
        ("resource.k8s.io", "resourceslices") => {
            whole(action, "cannot authorize ResourceSlice subresources")?;
            match verb {
                // Whose it is going to be, NodeRestriction looks at.
                "create" => Ok(()),
                "get" | "update" | "patch" | "delete" => {
                    names()?;
                    is_related(is_of_node(cache, SLICES, &action.name, node))
                }
                "list" | "watch" | "deletecollection" if selects_own() => Ok(()),
                "list" | "watch" | "deletecollection" => {
                    let verbs = "list/watch/deletecollection";
                    Err(format!("can only {verbs} resourceslices with nodeName field selector"))
                }
                _ => Err("only the following verbs are allowed for a ResourceSlice: get, watch, \
                          list, create, update, patch, delete, deletecollection"
                    .into()),
            }
        }
        // Where these are not served, nodes have no more to do with them than others.
        ("certificates.k8s.io", "clustertrustbundles") if cache.holds(BUNDLES) => {
            one_of(action, READS, "")?;
            whole(action, "")
        }
        ("certificates.k8s.io", "podcertificaterequests") if cache.holds(POD_CERTIFICATES) => {
            whole(action, "cannot authorize PodCertificateRequest subresources")?;
            match verb {
                // For which pod, NodeRestriction looks at.
                "create" => Ok(()),
                "get" => {
                    names()?;
                    let name = format!("{}/{}", action.namespace, action.name);
                    is_related(is_of_node(cache, POD_CERTIFICATES, &name, node))
                }
                "list" | "watch" if selects_own() => Ok(()),
                "list" | "watch" => Err("can only list/watch podcertificaterequests with \
                                         nodeName field selector"
                    .into()),
                _ => Err("only the following verbs are allowed for a PodCertificateRequest: \
                          create, get, list, watch"
                    .into()),
            }
        }
        ("", "nodes") => own_node(node, action),
        ("", "pods") => match (action.subresource.as_str(), verb) {
            ("", "list" | "watch") if selects_own() => Ok(()),
            ("", "list" | "watch") if action.name.is_empty() => {
                Err("can only list/watch pods with spec.nodeName field selector".into())
            }
            ("", "get" | "list" | "watch") => {
                names()?;
                is_related(pod_on(cache, node, &action.namespace, &action.name).is_some())
            }
            // Which pods, NodeRestriction looks at.
            ("", "create" | "delete") | ("status", "update" | "patch") | ("eviction", "create") => {
                Ok(())
            }
            _ => Err(String::new()),
        },
        // What names no other node is in the role of all nodes.
        _ => {
            let allows = |(groups, resources, verbs): &StaticRule| {
                *groups == action.group
                    && action.subresource.is_empty()
                    && resources.contains(&action.resource.as_str())
                    && verbs.contains(&verb)
            };
            if STATIC_RULES.iter().any(allows) { Ok(()) } else { Err(String::new()) }
        }
    }
}

fn one_of(action: &Action, verbs: &[&str], why: &str) -> Result<(), String> {
    if verbs.contains(&action.verb.as_str()) { Ok(()) } else { Err(why.to_owned()) }
}

fn whole(action: &Action, why: &str) -> Result<(), String> {
    if action.subresource.is_empty() { Ok(()) } else { Err(why.to_owned()) }
}

/// A new object's name is not known here; NodeRestriction looks at it.
fn own_name(node: &str, action: &Action, why: &str) -> Result<(), String> {
    if action.verb == "create" || action.name == node { Ok(()) } else { Err(why.to_owned()) }
}

fn lease(node: &str, action: &Action) -> Result<(), String> {
    let why = "can only get, create, update, patch, or delete a node lease";
    one_of(action, &["get", "create", "update", "patch", "delete"], why)?;
    if action.namespace != LEASES {
        return Err(format!("can only access leases in the {LEASES:?} system namespace"));
    }
    own_name(node, action, "can only access node lease with the same name as the requesting node")
}

/// Whether a node of another name is there or not, the refusal is the same.
fn own_node(node: &str, action: &Action) -> Result<(), String> {
    match (action.subresource.as_str(), action.verb.as_str()) {
        // Of which node, NodeRestriction looks at.
        ("", "create") | ("" | "status", "update" | "patch") => Ok(()),
        ("", "get" | "list" | "watch") if action.name == node => Ok(()),
        ("", "get" | "list" | "watch") if action.name.is_empty() => {
            Err(format!("node '{node}' cannot read all nodes, only its own Node object"))
        }
        ("", "get" | "list" | "watch") => {
            let name = &action.name;
            Err(format!("node '{node}' cannot read '{name}', only its own Node object"))
        }
        _ => Err(String::new()),
    }
}

type StaticRule = (&'static str, &'static [&'static str], &'static [&'static str]);

const READS: &[&str] = &["get", "list", "watch"];

/// The rules of `system:node` that need no relationship, for resources that `rule` does not
/// look at (k8s.io/kubernetes, `bootstrappolicy.NodeRules`).
const STATIC_RULES: &[StaticRule] = &[
    ("authentication.k8s.io", &["tokenreviews"], &["create"]),
    ("authorization.k8s.io", &["subjectaccessreviews", "localsubjectaccessreviews"], &["create"]),
    ("", &["services"], READS),
    ("", &["endpoints"], &["get"]),
    ("", &["events"], &["create", "update", "patch"]),
    ("events.k8s.io", &["events"], &["create", "update", "patch"]),
    ("certificates.k8s.io", &["certificatesigningrequests"], &["create", "get", "list", "watch"]),
    ("storage.k8s.io", &["csidrivers"], READS),
    ("node.k8s.io", &["runtimeclasses"], READS),
];

/// Whether an object says in its spec that it is of the node.
fn is_of_node(cache: &Cache, prefix: &str, name: &str, node: &str) -> bool {
    let object = cache.get(prefix, &format!("{prefix}{name}"));
    object.is_some_and(|object| object.value()["spec"]["nodeName"] == node)
}

fn pod_on(cache: &Cache, node: &str, namespace: &str, name: &str) -> Option<Value> {
    let pod = cache.get(PODS, &format!("{PODS}{namespace}/{name}"))?.value();
    (pod["spec"]["nodeName"] == node).then_some(pod)
}

/// The pods on a node that give it rights. Mirror pods give none: the node makes them itself.
fn pods_of(cache: &Cache, node: &str, namespace: &str) -> Vec<Value> {
    let start = if namespace.is_empty() { PODS.to_string() } else { format!("{PODS}{namespace}/") };
    let (pods, _) = cache.list(PODS, &start, None);
    pods.iter()
        .filter(|pod| {
            let fields = pod.fields(|value| (kinds::rules::Rules::of("", "Pod").selectable)(value));
            fields.iter().any(|(field, value)| *field == "spec.nodeName" && value == node)
        })
        .map(|pod| pod.value())
        .filter(|pod| pod["metadata"]["annotations"].get(MIRROR).is_none())
        .collect()
}

/// Whether a pod on the node refers to the object by name. A watch or list names it by
/// its field selector.
fn referenced(cache: &Cache, node: &str, action: &Action) -> bool {
    refers_on(cache, node, (&action.resource, &action.namespace, &action.name))
}

fn refers_on(cache: &Cache, node: &str, (resource, namespace, name): (&str, &str, &str)) -> bool {
    if name.is_empty() || namespace.is_empty() {
        return false;
    }
    pods_of(cache, node, namespace).iter().any(|pod| refers(pod, resource, name))
}

fn refers(pod: &Value, resource: &str, name: &str) -> bool {
    let spec = &pod["spec"];
    match resource {
        "serviceaccounts" => spec["serviceAccountName"] == name,
        "persistentvolumeclaims" => claims(pod).any(|claim| claim == name),
        "resourceclaims" => device_claims(pod).any(|claim| claim == name),
        "secrets" => {
            let pulls = list(&spec["imagePullSecrets"]).any(|secret| secret["name"] == name);
            let of_driver = |volume: &Value| {
                let kinds = VOLUMES_WITH_SECRETS.iter();
                kinds.map(|kind| &volume[*kind]["secretRef"]["name"]).any(|it| it == name)
                    || volume["csi"]["nodePublishSecretRef"]["name"] == name
                    || volume["azureFile"]["secretName"] == name
            };
            pulls
                || list(&spec["volumes"]).any(of_driver)
                || mentions(spec, name, ["secret", "secretName", "secretKeyRef", "secretRef"])
        }
        "configmaps" => {
            mentions(spec, name, ["configMap", "name", "configMapKeyRef", "configMapRef"])
        }
        _ => false,
    }
}

/// Whether volumes or the environment of containers are of the object.
fn mentions(spec: &Value, name: &str, [source, field, key, from]: [&str; 4]) -> bool {
    let in_volume = |volume: &Value| {
        volume[source][field] == name
            || list(&volume["projected"]["sources"]).any(|it| it[source]["name"] == name)
    };
    let in_container = |container: &Value| {
        list(&container["env"]).any(|env| env["valueFrom"][key]["name"] == name)
            || list(&container["envFrom"]).any(|env| env[from]["name"] == name)
    };
    list(&spec["volumes"]).any(in_volume)
        || ["containers", "initContainers", "ephemeralContainers"]
            .iter()
            .any(|kind| list(&spec[*kind]).any(in_container))
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

/// The claims of volumes that a pod has.
pub fn claims(pod: &Value) -> impl Iterator<Item = String> {
    let pod_name = pod["metadata"]["name"].as_str().unwrap_or("");
    list(&pod["spec"]["volumes"]).filter_map(move |volume| {
        match volume["persistentVolumeClaim"]["claimName"].as_str() {
            Some(claim) => Some(claim.to_owned()),
            None if volume["ephemeral"].is_object() => {
                Some(format!("{pod_name}-{}", volume["name"].as_str()?))
            }
            None => None,
        }
    })
}

/// The claims of devices that a pod refers to, or that were made for it.
fn device_claims(pod: &Value) -> impl Iterator<Item = &str> {
    let status = &pod["status"];
    let made = move |claim: &Value| {
        let mut told = list(&status["resourceClaimStatuses"]);
        told.find(|it| it["name"] == claim["name"])?["resourceClaimName"].as_str()
    };
    let listed = list(&pod["spec"]["resourceClaims"]);
    let named = listed.filter_map(move |it| match it["resourceClaimName"].as_str() {
        Some(name) => Some(name),
        None => made(it),
    });
    let extended = &status["extendedResourceClaimStatus"]["resourceClaimName"];
    named.chain(extended.as_str())
}

/// Whether the volume is bound to a claim of a pod on the node; the volume says to which, for
/// whoever writes a claim may name any volume.
fn bound_volume(cache: &Cache, node: &str, volume: &str) -> bool {
    let volume = cache.get(VOLUMES, &format!("{VOLUMES}{volume}"));
    volume.is_some_and(|volume| {
        let claim = &volume.value()["spec"]["claimRef"];
        let text = |field: &str| claim[field].as_str().unwrap_or_default();
        refers_on(cache, node, ("persistentvolumeclaims", text("namespace"), text("name")))
    })
}

/// The volumes that claims of pods on the node are bound to.
fn bound_volumes(cache: &Cache, node: &str) -> Vec<Value> {
    let mut out = Vec::new();
    for pod in pods_of(cache, node, "") {
        let namespace = pod["metadata"]["namespace"].as_str().unwrap_or("");
        for name in claims(&pod) {
            let claim = cache.get(CLAIMS, &format!("{CLAIMS}{namespace}/{name}"));
            let volume = claim.map(|claim| claim.value()["spec"]["volumeName"].clone());
            let volume = volume.as_ref().and_then(Value::as_str);
            let volume = volume.and_then(|it| cache.get(VOLUMES, &format!("{VOLUMES}{it}")));
            let is_its = |volume: &Value| {
                let of = &volume["spec"]["claimRef"];
                of["namespace"] == namespace && of["name"] == name.as_str()
            };
            out.extend(volume.map(|volume| volume.value()).filter(is_its));
        }
    }
    out
}

/// Whether a volume of one of the node's pods needs the secret.
fn secret_of_volume(cache: &Cache, node: &str, action: &Action) -> bool {
    let mut volumes = bound_volumes(cache, node).into_iter();
    volumes.any(|volume| needs_secret(&volume["spec"], &action.namespace, &action.name))
}

/// For its driver on a node, or to log in to its target; where the volume names no namespace, it
/// is that of the claim.
fn needs_secret(spec: &Value, namespace: &str, name: &str) -> bool {
    let is_it = |secret: &Value, of: &Value| {
        let said = of.as_str().is_some_and(|it| !it.is_empty());
        let of = if said { of } else { &spec["claimRef"]["namespace"] };
        *secret == name && *of == namespace
    };
    let references = VOLUMES_WITH_SECRETS.iter().map(|kind| &spec[*kind]["secretRef"]).chain(
        ["nodeStageSecretRef", "nodePublishSecretRef", "nodeExpandSecretRef"]
            .iter()
            .map(|field| &spec["csi"][*field]),
    );
    let file = &spec["azureFile"];
    is_it(&file["secretName"], &file["secretNamespace"])
        || references.into_iter().any(|it| is_it(&it["name"], &it["namespace"]))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_pod_refers_to_what_it_mounts_and_reads() {
        let pod = json!({"metadata": {"name": "p"}, "spec": {
            "serviceAccountName": "sa",
            "imagePullSecrets": [{"name": "pull"}],
            "volumes": [
                {"name": "a", "secret": {"secretName": "s"}},
                {"name": "b", "projected": {"sources": [{"configMap": {"name": "c"}}]}},
                {"name": "e", "ephemeral": {}},
                {"name": "i", "csi": {"nodePublishSecretRef": {"name": "publish"}}},
                {"name": "o", "cinder": {"secretRef": {"name": "stack"}}},
            ],
            "resourceClaims": [{"name": "x", "resourceClaimName": "shared"},
                {"name": "y", "resourceClaimTemplateName": "t"},
                {"name": "z", "resourceClaimTemplateName": "t"}],
            "containers": [{"env": [{"valueFrom": {"secretKeyRef": {"name": "k"}}}],
                "envFrom": [{"configMapRef": {"name": "ef"}}]}],
        }, "status": {
            "resourceClaimStatuses": [{"name": "y", "resourceClaimName": "p-y-1"},
                {"name": "z"}, {"name": "unasked", "resourceClaimName": "other"}],
            "extendedResourceClaimStatus": {"resourceClaimName": "p-extended-1"},
        }});
        for (resource, name) in [
            ("serviceaccounts", "sa"),
            ("secrets", "pull"),
            ("secrets", "s"),
            ("secrets", "k"),
            ("secrets", "publish"),
            ("secrets", "stack"),
            ("resourceclaims", "shared"),
            ("resourceclaims", "p-y-1"),
            ("resourceclaims", "p-extended-1"),
            ("configmaps", "c"),
            ("configmaps", "ef"),
            ("persistentvolumeclaims", "p-e"),
        ] {
            assert!(refers(&pod, resource, name), "{resource} {name}");
            assert!(!refers(&pod, resource, "other"), "{resource}");
        }
    }

    #[test]
    fn a_volume_needs_secrets_of_its_claims_namespace_unless_it_says_another() {
        let spec =
            |kind: &str, source: Value| json!({"claimRef": {"namespace": "ns"}, kind: source});
        for (kind, source, namespace, wanted) in [
            ("csi", json!({"nodeStageSecretRef": {"name": "s", "namespace": "sys"}}), "sys", true),
            ("csi", json!({"nodeStageSecretRef": {"name": "s", "namespace": "sys"}}), "ns", false),
            (
                "csi",
                json!({"controllerExpandSecretRef": {"name": "s", "namespace": "sys"}}),
                "sys",
                false,
            ),
            ("iscsi", json!({"secretRef": {"name": "s"}}), "ns", true),
            ("rbd", json!({"secretRef": {"name": "s", "namespace": "sys"}}), "sys", true),
            ("azureFile", json!({"secretName": "s"}), "ns", true),
            ("azureFile", json!({"secretName": "s", "secretNamespace": "sys"}), "ns", false),
        ] {
            let spec = spec(kind, source);
            assert_eq!(needs_secret(&spec, namespace, "s"), wanted, "{spec} in {namespace}");
            assert!(!needs_secret(&spec, namespace, "other"));
        }
    }
}
