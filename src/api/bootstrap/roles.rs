//! Roles that belong to features which are off unless somebody switches them on.

use serde_json::{Value, json};

use crate::features::{Features, POD_CERTIFICATE, TRUST_BUNDLE};

const RBAC: &str = "rbac.authorization.k8s.io";
const GROUP: &str = "certificates.k8s.io";
const BUNDLES: &str = "clustertrustbundles";
const REQUESTS: &str = "podcertificaterequests";
const NODE: &str = "system:node";
const PUBLISHER: &str = "kube-apiserver-serving-clustertrustbundle-publisher";
const CLEANER: &str = "podcertificaterequestcleaner";

/// Adds what the features need to the cluster's first objects. Returns the role of nodes if that
/// is other than it is without features.
pub fn add(objects: &mut Vec<Value>, features: &Features) -> Option<Value> {
    let mut of_nodes = Vec::new();
    let event = rule(&["", "events.k8s.io"], "events", &["create", "patch", "update"]);
    if features.is_on(TRUST_BUNDLE) {
        let read = rule(&[GROUP], BUNDLES, &["get", "list", "watch"]);
        of_nodes.push(read.clone());
        let accounts = json!({"kind": "Group", "apiGroup": RBAC, "name": "system:serviceaccounts"});
        objects.extend(role("system:cluster-trust-bundle-discovery", &[read], &accounts));
        let mut attest = rule(&[GROUP], "signers", &["attest"]);
        attest["resourceNames"] = json!(["kubernetes.io/kube-apiserver-serving"]);
        let keep = rule(&[GROUP], BUNDLES, &["create", "update", "delete", "list", "watch"]);
        objects.extend(controller(PUBLISHER, &[attest, keep, event.clone()]));
    }
    if features.is_on(POD_CERTIFICATE) {
        of_nodes.push(rule(&[GROUP], REQUESTS, &["create", "get", "list", "watch"]));
        let clean = rule(&[GROUP], REQUESTS, &["get", "list", "watch", "delete"]);
        objects.extend(controller(CLEANER, &[clean, event]));
    }
    if of_nodes.is_empty() {
        return None;
    }
    let is_nodes = |it: &&mut Value| it["kind"] == "ClusterRole" && it["metadata"]["name"] == NODE;
    let node = objects.iter_mut().find(is_nodes)?;
    node["rules"].as_array_mut()?.extend(of_nodes);
    Some(node.clone())
}

fn rule(groups: &[&str], resource: &str, verbs: &[&str]) -> Value {
    json!({"verbs": verbs, "apiGroups": groups, "resources": [resource]})
}

fn controller(name: &str, rules: &[Value]) -> [Value; 2] {
    let account = json!({"kind": "ServiceAccount", "name": name, "namespace": "kube-system"});
    role(&format!("system:controller:{name}"), rules, &account)
}

/// A role, and its binding.
fn role(name: &str, rules: &[Value], subject: &Value) -> [Value; 2] {
    let metadata = json!({
        "name": name,
        "labels": {"kubernetes.io/bootstrapping": "rbac-defaults"},
        "annotations": {"rbac.authorization.kubernetes.io/autoupdate": "true"},
    });
    let api_version = format!("{RBAC}/v1");
    [
        json!({"apiVersion": api_version, "kind": "ClusterRole", "metadata": metadata,
            "rules": rules}),
        json!({"apiVersion": api_version, "kind": "ClusterRoleBinding", "metadata": metadata,
            "roleRef": {"apiGroup": RBAC, "kind": "ClusterRole", "name": name},
            "subjects": [subject]}),
    ]
}
