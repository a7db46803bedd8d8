//! Namespaces: what they carry, and how they go.

use serde_json::{Value, json};

use super::{SECONDS, create, feed, name, patch, raw, set, until_count};
use crate::cluster::Cluster;
use crate::machine::eventually;

pub fn all(cluster: &Cluster) {
    changes(cluster);
    takes_all_along(cluster);
    pods_go_first(cluster);
}

fn namespace(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
}

fn changes(cluster: &Cluster) {
    create(cluster, vec![namespace("changed")]);
    patch(cluster, &["ns", "changed"], &json!({"metadata": {"labels": {"patched": "yes"}}}));
    assert_eq!(name(&cluster.json("get ns -l patched=yes")["items"][0]), "changed");
    let mut held = cluster.json("get ns changed");
    held["metadata"]["labels"]["updated"] = "yes".into();
    feed(cluster, "replace -f -", &held);
    assert_eq!(name(&cluster.json("get ns -l updated=yes")["items"][0]), "changed");

    // What holds a namespace is changed by a subresource of its own, and by nothing else.
    let finalize = "/api/v1/namespaces/changed/finalize";
    let finalizers = |list: Value| {
        let mut held = cluster.json("get ns changed");
        held["spec"]["finalizers"] = list.clone();
        feed(cluster, &format!("replace --raw {finalize} -f -"), &held);
        assert_eq!(cluster.json("get ns changed")["spec"]["finalizers"], list);
    };
    finalizers(json!(["kubernetes", "example.com/fake"]));
    let held = json!({"spec": {"finalizers": ["kubernetes"]}});
    patch(cluster, &["ns", "changed"], &held);
    let kept = cluster.json("get ns changed")["spec"]["finalizers"].clone();
    assert_eq!(kept, json!(["kubernetes", "example.com/fake"]));
    finalizers(json!(["kubernetes"]));

    let status = "/api/v1/namespaces/changed/status";
    let mut held = raw(cluster, status);
    assert_eq!(held["status"]["phase"], "Active");
    let condition = |kind: &str, reason: &str| {
        json!({"type": kind, "status": "True", "reason": reason, "message": "seen",
            "lastTransitionTime": "2026-01-01T00:00:00Z"})
    };
    let patched = condition("StatusPatch", "E2E");
    let more = json!({"metadata": {"annotations": {"seen": "yes"}},
        "status": {"conditions": [patched]}});
    patch(cluster, &["ns", "changed", "--subresource=status"], &more);
    let seen = raw(cluster, status);
    assert_eq!(seen["status"]["conditions"], json!([patched]));
    assert_eq!(seen["metadata"]["annotations"]["seen"], "yes");
    let updated = condition("StatusUpdate", "E2E");
    held = seen;
    held["status"]["conditions"] = json!([patched, updated]);
    feed(cluster, &format!("replace --raw {status} -f -"), &held);
    assert_eq!(raw(cluster, status)["status"]["conditions"], json!([patched, updated]));
    cluster.k("delete ns changed");
}

/// Pods and services go with their namespace, and do not come back with its name.
fn takes_all_along(cluster: &Cluster) {
    create(cluster, vec![namespace("taken")]);
    cluster.until("get serviceaccounts -n taken -o name", SECONDS, |text| {
        text.contains("serviceaccount/default")
    });
    let mut kept = set("ReplicaSet", "kept", 2);
    kept["metadata"]["namespace"] = "taken".into();
    let service = json!({"apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "service", "namespace": "taken"},
        "spec": {"selector": {"app": "kept"}, "ports": [{"port": 80}]}});
    create(cluster, vec![kept, service]);
    cluster.until("get pods -n taken --no-headers", SECONDS, |text| {
        text.matches("Running").count() == 2
    });
    cluster.k("delete ns taken --wait=false");
    // Nothing new comes into a namespace that goes.
    let late = cluster.refused(&["create", "configmap", "late", "-n", "taken"]);
    let is_told = late.contains("because it is being terminated") || late.contains("not found");
    assert!(is_told, "{late}");
    cluster.until("get ns taken --ignore-not-found", SECONDS, str::is_empty);
    create(cluster, vec![namespace("taken")]);
    cluster.until("get pods,services,replicasets -n taken -o name", 1, str::is_empty);
    cluster.k("delete ns taken");
}

fn condition<'a>(namespace: &'a Value, kind: &str) -> (&'a str, &'a str, &'a str) {
    let all = namespace["status"]["conditions"].as_array().into_iter().flatten();
    let found = all.into_iter().find(|it| it["type"] == kind);
    let of = |key: &str| found.and_then(|it| it[key].as_str()).unwrap_or_default();
    (of("status"), of("reason"), of("message"))
}

/// What pods may need while they end stays until they have; and what holds up the end is told.
fn pods_go_first(cluster: &Cluster) {
    create(cluster, vec![namespace("ordered")]);
    let held = |kind: &str, name: &str| {
        json!({"apiVersion": "v1", "kind": kind, "metadata": {"name": name,
            "namespace": "ordered", "finalizers": ["example.com/held"]}})
    };
    let mut pod = held("Pod", "pod");
    pod["spec"] = set("ReplicaSet", "pod", 0)["spec"]["template"]["spec"].clone();
    create(cluster, vec![pod, held("ConfigMap", "map")]);
    cluster.k("delete ns ordered --wait=false");
    let says = |kind: &str, reason: &str, message: &str| {
        eventually(&format!("{kind}: {reason}"), SECONDS, || {
            let namespace = cluster.json("get ns ordered");
            let seen = condition(&namespace, kind);
            match seen == ("True", reason, message) {
                true => Ok(namespace),
                false => Err(namespace["status"].to_string()),
            }
        })
    };
    let remaining = "Some resources are remaining: pods. has 1 resource instances";
    let namespace = says("NamespaceContentRemaining", "SomeResourcesRemain", remaining);
    let held = "Some content in the namespace has finalizers remaining: example.com/held in 1 \
         resource instances";
    let told = condition(&namespace, "NamespaceFinalizersRemaining");
    assert_eq!(told, ("True", "SomeFinalizersRemain", held));
    assert_eq!(namespace["status"]["phase"], "Terminating");
    let pod = cluster.json("get pod pod -n ordered");
    assert!(pod["metadata"]["deletionTimestamp"].is_string());
    let map = cluster.json("get configmap map -n ordered");
    assert!(map["metadata"]["deletionTimestamp"].is_null(), "{map}");
    let free = json!({"metadata": {"finalizers": null}});
    patch(cluster, &["pod", "pod", "-n", "ordered"], &free);
    let remaining = "Some resources are remaining: configmaps. has 1 resource instances";
    says("NamespaceContentRemaining", "SomeResourcesRemain", remaining);
    until_count(cluster, "pods -n ordered", 0);
    patch(cluster, &["configmap", "map", "-n", "ordered"], &free);
    cluster.until("get ns ordered --ignore-not-found", SECONDS, str::is_empty);
}
