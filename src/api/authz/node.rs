//! What a node may do: its own objects, and what the pods bound to it refer to
//! (documentation, "Using Node Authorization").

use serde_json::Value;

use super::{Action, Decision};
use crate::authn::User;
use crate::cache::Cache;

const NODES_GROUP: &str = "system:nodes";
const PODS: &str = "/registry/pods/";

/// The node a user is, if it is one.
pub fn node_name(user: &User) -> Option<&str> {
    user.is_in(NODES_GROUP).then(|| user.name.strip_prefix("system:node:")).flatten()
}

pub fn decide(cache: &Cache, user: &User, action: &Action) -> Decision {
    let Some(node) = node_name(user) else { return Decision::NoOpinion(String::new()) };
    let reads = matches!(action.verb.as_str(), "get" | "list" | "watch");
    let allowed = match (action.group.as_str(), action.resource.as_str()) {
        ("", "secrets") => {
            reads && (referenced(cache, node, action) || secret_of_volume(cache, node, action))
        }
        ("", "configmaps") => reads && referenced(cache, node, action),
        // The node tells when it has made a file system larger.
        ("", "persistentvolumeclaims") => {
            let verbs: &[&str] = match action.subresource.as_str() {
                "" => &["get"],
                "status" => &["get", "update", "patch"],
                _ => &[],
            };
            verbs.contains(&action.verb.as_str()) && referenced(cache, node, action)
        }
        ("", "serviceaccounts") => {
            is_for_accounts(&action.subresource, &action.verb) && referenced(cache, node, action)
        }
        ("", "persistentvolumes") => {
            action.verb == "get" && bound_volume(cache, node, &action.name)
        }
        // The name of another is refused whether or not that node exists.
        ("", "nodes") if reads && !action.name.is_empty() && action.name != node => false,
        ("", "pods") if reads => pods(node, cache, action),
        ("coordination.k8s.io", "leases") => {
            action.namespace == "kube-node-lease"
                && (action.verb == "create" || action.name == node)
                && matches!(action.verb.as_str(), "get" | "create" | "update" | "patch" | "delete")
        }
        ("storage.k8s.io", "csinodes") => {
            action.verb == "create"
                || (action.name == node
                    && matches!(action.verb.as_str(), "get" | "update" | "patch" | "delete"))
        }
        ("resource.k8s.io", "resourceslices")
            if matches!(action.verb.as_str(), "list" | "watch" | "deletecollection") =>
        {
            action.selection.fields.exactly("spec.nodeName") == Some(node)
        }
        // What names no other node is in the role of all nodes.
        _ => STATIC_RULES.iter().any(|(groups, resources, verbs)| {
            *groups == action.group
                && resources.contains(&full(action).as_str())
                && verbs.contains(&action.verb.as_str())
        }),
    };
    if allowed {
        Decision::Allow(String::new())
    } else {
        Decision::NoOpinion(why_not(node, action))
    }
}

/// What a node is told that may not, where there is more to tell than that.
fn why_not(node: &str, action: &Action) -> String {
    let reads = matches!(action.verb.as_str(), "get" | "list" | "watch");
    match (action.group.as_str(), action.resource.as_str()) {
        ("", "nodes") if action.subresource.is_empty() && reads => {
            format!("node '{node}' cannot read '{}', only its own Node object", action.name)
        }
        (
            "",
            "secrets"
            | "configmaps"
            | "persistentvolumeclaims"
            | "persistentvolumes"
            | "serviceaccounts",
        ) => format!("no relationship found between node '{node}' and this object"),
        ("", "pods") if action.verb == "get" && action.subresource.is_empty() => {
            format!("no relationship found between node '{node}' and this object")
        }
        ("", "pods") if matches!(action.verb.as_str(), "list" | "watch") => {
            "can only list/watch pods with spec.nodeName field selector".into()
        }
        ("resource.k8s.io", "resourceslices")
            if matches!(action.verb.as_str(), "list" | "watch" | "deletecollection") =>
        {
            let verbs = "list/watch/deletecollection";
            format!("can only {verbs} resourceslices with nodeName field selector")
        }
        _ => String::new(),
    }
}

fn full(action: &Action) -> String {
    if action.subresource.is_empty() {
        action.resource.clone()
    } else {
        format!("{}/{}", action.resource, action.subresource)
    }
}

type StaticRule = (&'static str, &'static [&'static str], &'static [&'static str]);

/// The rules of `system:node` that need no relationship (k8s.io/kubernetes,
/// `bootstrappolicy.NodeRules`). Writing to nodes and pods is narrowed to the node's own
/// by the NodeRestriction admission.
const STATIC_RULES: &[StaticRule] = &[
    ("authentication.k8s.io", &["tokenreviews"], &["create"]),
    ("authorization.k8s.io", &["subjectaccessreviews", "localsubjectaccessreviews"], &["create"]),
    ("", &["services"], &["get", "list", "watch"]),
    ("", &["nodes"], &["create", "get", "list", "watch", "update", "patch"]),
    ("", &["nodes/status"], &["update", "patch"]),
    ("", &["events"], &["create", "update", "patch"]),
    ("events.k8s.io", &["events"], &["create", "update", "patch"]),
    ("", &["pods"], &["create", "delete"]),
    ("", &["pods/status"], &["update", "patch"]),
    ("", &["pods/eviction"], &["create"]),
    ("certificates.k8s.io", &["certificatesigningrequests"], &["create", "get", "list", "watch"]),
    ("storage.k8s.io", &["csidrivers"], &["get", "list", "watch"]),
    ("storage.k8s.io", &["volumeattachments"], &["get"]),
    ("node.k8s.io", &["runtimeclasses"], &["get", "list", "watch"]),
    ("resource.k8s.io", &["resourceclaims"], &["get"]),
    ("resource.k8s.io", &["resourceslices"], &["create", "get", "update", "patch", "delete"]),
];

/// A node sees the pods bound to it: one by name, or a list that selects them.
fn pods(node: &str, cache: &Cache, action: &Action) -> bool {
    if action.verb == "get" && !action.name.is_empty() {
        return cache
            .get(PODS, &format!("{PODS}{}/{}", action.namespace, action.name))
            .is_some_and(|pod| pod.value()["spec"]["nodeName"] == node);
    }
    action.selection.fields.exactly("spec.nodeName") == Some(node)
}

fn pods_of(cache: &Cache, node: &str, namespace: &str) -> Vec<Value> {
    let start = if namespace.is_empty() { PODS.to_string() } else { format!("{PODS}{namespace}/") };
    let (pods, _) = cache.list(PODS, &start, None);
    pods.iter()
        .filter(|pod| {
            let fields = pod.fields(|value| (kinds::rules::Rules::of("", "Pod").selectable)(value));
            fields.iter().any(|(field, value)| *field == "spec.nodeName" && value == node)
        })
        .map(|pod| pod.value())
        .collect()
}

/// Whether a pod on the node refers to the object by name. A watch or list names it by
/// its field selector.
fn referenced(cache: &Cache, node: &str, action: &Action) -> bool {
    let selected = action.selection.fields.exactly("metadata.name");
    let name = if action.name.is_empty() { selected.unwrap_or("") } else { &action.name };
    if name.is_empty() || action.namespace.is_empty() {
        return false;
    }
    pods_of(cache, node, &action.namespace).iter().any(|pod| refers(pod, &action.resource, name))
}

fn refers(pod: &Value, resource: &str, name: &str) -> bool {
    let spec = &pod["spec"];
    if resource == "serviceaccounts" {
        return spec["serviceAccountName"] == name;
    }
    let volumes = spec["volumes"].as_array().into_iter().flatten();
    if resource == "persistentvolumeclaims" {
        let pod_name = pod["metadata"]["name"].as_str().unwrap_or("");
        return volumes.clone().any(|volume| {
            volume["persistentVolumeClaim"]["claimName"] == name
                || (volume["ephemeral"].is_object()
                    && volume["name"].as_str().is_some_and(|v| format!("{pod_name}-{v}") == name))
        });
    }
    let (source, field, env_key, env_from) = match resource {
        "secrets" => ("secret", "secretName", "secretKeyRef", "secretRef"),
        _ => ("configMap", "name", "configMapKeyRef", "configMapRef"),
    };
    if resource == "secrets"
        && spec["imagePullSecrets"].as_array().into_iter().flatten().any(|s| s["name"] == name)
    {
        return true;
    }
    let in_volume = |volume: &Value| {
        volume[source][field] == name
            || volume["projected"]["sources"]
                .as_array()
                .into_iter()
                .flatten()
                .any(|projected| projected[source]["name"] == name)
            || (resource == "secrets"
                && [
                    "csi",
                    "iscsi",
                    "rbd",
                    "cephfs",
                    "flexVolume",
                    "scaleIO",
                    "storageos",
                    "azureFile",
                ]
                .iter()
                .any(|kind| {
                    volume[*kind]["secretRef"]["name"] == name
                        || volume[*kind]["nodePublishSecretRef"]["name"] == name
                        || volume[*kind]["secretName"] == name
                }))
    };
    if volumes.clone().any(in_volume) {
        return true;
    }
    ["containers", "initContainers", "ephemeralContainers"].iter().any(|list| {
        spec[*list].as_array().into_iter().flatten().any(|container| {
            let env = container["env"].as_array().into_iter().flatten();
            let from = container["envFrom"].as_array().into_iter().flatten();
            env.clone().any(|env| env["valueFrom"][env_key]["name"] == name)
                || from.clone().any(|from| from[env_from]["name"] == name)
        })
    })
}

/// The names of the volumes that claims of pods on the node are bound to.
fn bound_volumes(cache: &Cache, node: &str) -> Vec<String> {
    const CLAIMS: &str = "/registry/persistentvolumeclaims/";
    let mut out = Vec::new();
    for pod in pods_of(cache, node, "") {
        let namespace = pod["metadata"]["namespace"].as_str().unwrap_or("");
        let pod_name = pod["metadata"]["name"].as_str().unwrap_or("");
        for volume in pod["spec"]["volumes"].as_array().into_iter().flatten() {
            let claim = match volume["persistentVolumeClaim"]["claimName"].as_str() {
                Some(claim) => claim.to_owned(),
                None if volume["ephemeral"].is_object() => {
                    format!("{pod_name}-{}", volume["name"].as_str().unwrap_or(""))
                }
                None => continue,
            };
            let claim = cache.get(CLAIMS, &format!("{CLAIMS}{namespace}/{claim}"));
            let name = claim.map(|claim| claim.value()["spec"]["volumeName"].clone());
            out.extend(name.and_then(|name| name.as_str().map(str::to_owned)));
        }
    }
    out
}

/// Whether a claim of a pod on the node is bound to the volume.
fn bound_volume(cache: &Cache, node: &str, volume: &str) -> bool {
    bound_volumes(cache, node).iter().any(|it| it == volume)
}

/// A node asks for tokens of its pods' accounts, and reads the accounts: credential
/// providers are told of them.
fn is_for_accounts(subresource: &str, verb: &str) -> bool {
    matches!((subresource, verb), ("token", "create") | ("", "get"))
}

/// Whether a volume of one of the node's pods needs the secret: for its driver, or to log in
/// to its target. A target's secret without a namespace lies in the claim's.
fn secret_of_volume(cache: &Cache, node: &str, action: &Action) -> bool {
    const VOLUMES: &str = "/registry/persistentvolumes/";
    if action.name.is_empty() {
        return false;
    }
    bound_volumes(cache, node).iter().any(|name| {
        cache.get(VOLUMES, &format!("{VOLUMES}{name}")).is_some_and(|volume| {
            let volume = volume.value();
            let spec = &volume["spec"];
            let is_it = |reference: &Value, namespace: &Value| {
                reference["name"] == action.name && *namespace == action.namespace
            };
            let csi = ["nodeStageSecretRef", "nodePublishSecretRef", "nodeExpandSecretRef"]
                .map(|field| &spec["csi"][field]);
            let target = &spec["iscsi"]["secretRef"];
            let said = target["namespace"].as_str().is_some_and(|it| !it.is_empty());
            let of_target =
                if said { &target["namespace"] } else { &spec["claimRef"]["namespace"] };
            csi.iter().any(|it| is_it(it, &it["namespace"])) || is_it(target, of_target)
        })
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_node_is_told_why_it_may_not_read() {
        let about = |resource: &str, name: &str| {
            let action = Action {
                verb: "get".into(),
                is_resource: true,
                resource: resource.into(),
                name: name.into(),
                ..Action::default()
            };
            why_not("n", &action)
        };
        assert_eq!(
            about("nodes", "other"),
            "node 'n' cannot read 'other', only its own Node object"
        );
        assert_eq!(about("secrets", "s"), "no relationship found between node 'n' and this object");
        assert_eq!(about("replicationcontrollers", "r"), "");
    }

    #[test]
    fn a_node_reads_accounts_one_by_one_and_changes_none() {
        for (subresource, verb, wanted) in [
            ("", "get", true),
            ("token", "create", true),
            ("", "list", false),
            ("", "watch", false),
            ("", "create", false),
            ("", "update", false),
            ("token", "get", false),
        ] {
            assert_eq!(is_for_accounts(subresource, verb), wanted, "{verb} {subresource}");
        }
    }

    #[test]
    fn a_pod_refers_to_what_it_mounts_and_reads() {
        let pod = json!({"metadata": {"name": "p"}, "spec": {
            "serviceAccountName": "sa",
            "imagePullSecrets": [{"name": "pull"}],
            "volumes": [
                {"name": "a", "secret": {"secretName": "s"}},
                {"name": "b", "projected": {"sources": [{"configMap": {"name": "c"}}]}},
                {"name": "e", "ephemeral": {}},
            ],
            "containers": [{"env": [{"valueFrom": {"secretKeyRef": {"name": "k"}}}],
                "envFrom": [{"configMapRef": {"name": "ef"}}]}],
        }});
        for (resource, name) in [
            ("serviceaccounts", "sa"),
            ("secrets", "pull"),
            ("secrets", "s"),
            ("secrets", "k"),
            ("configmaps", "c"),
            ("configmaps", "ef"),
            ("persistentvolumeclaims", "p-e"),
        ] {
            assert!(refers(&pod, resource, name), "{resource} {name}");
            assert!(!refers(&pod, resource, "other"), "{resource}");
        }
    }
}
