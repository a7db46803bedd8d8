//! The garbage collector: what happens to what a deleted owner owned.

use std::time::Duration;

use serde_json::{Value, json};

use super::{SECONDS, create, list, name, patch, set, uid, until, until_count};
use crate::cluster::Cluster;

/// Pods of the sets that have many.
const MANY: usize = 10;

pub fn all(cluster: &Cluster) {
    let controller = |name: &str, replicas| set("ReplicationController", name, replicas);
    create(
        cluster,
        vec![
            set("Deployment", "taken", 2),
            set("Deployment", "left", 2),
            controller("background", 2),
            controller("foreground", MANY as u32),
            controller("orphaning", MANY as u32),
            controller("going", MANY as u32),
            controller("staying", 0),
        ],
    );
    let pods = |name: &str, count| until_count(cluster, &format!("pods -l app={name}"), count);
    pods("taken", 2);
    pods("left", 2);
    pods("background", 2);
    deployments(cluster);
    orphans(cluster, &pods("orphaning", MANY));
    foreground(cluster, &pods("foreground", MANY));
    two_owners(cluster, &pods("going", MANY));
    circle(cluster);
    custom(cluster);
    strangers(cluster);
    cluster.k("delete replicasets,replicationcontrollers,pods --all --now");
    until_count(cluster, "pods", 0);
}

fn owners(object: &Value) -> &[Value] {
    object["metadata"]["ownerReferences"].as_array().map(Vec::as_slice).unwrap_or_default()
}

/// In the background, and with orphans.
fn deployments(cluster: &Cluster) {
    cluster.k("delete deployment taken --cascade=background");
    until_count(cluster, "replicasets -l app=taken", 0);
    until_count(cluster, "pods -l app=taken", 0);
    cluster.k("delete rc background --cascade=background");
    until_count(cluster, "pods -l app=background", 0);
    cluster.k("delete deployment left --cascade=orphan");
    let set = until(cluster, "replicasets -l app=left", |sets| match sets {
        [set] if owners(set).is_empty() => Ok(set.clone()),
        _ => Err(format!("{sets:?}")),
    });
    let pods = until_count(cluster, "pods -l app=left", 2);
    assert!(pods.iter().all(|pod| owners(pod).len() == 1 && owners(pod)[0]["uid"] == uid(&set)));
}

fn orphans(cluster: &Cluster, pods: &[Value]) {
    cluster.k("delete rc orphaning --cascade=orphan");
    cluster.until("get rc -l app=orphaning -o name", SECONDS, str::is_empty);
    // Whoever deletes them would do so now.
    std::thread::sleep(Duration::from_secs(2));
    let left = cluster.json("get pods -l app=orphaning");
    assert_eq!(
        list(&left).iter().map(uid).collect::<Vec<_>>(),
        pods.iter().map(uid).collect::<Vec<_>>()
    );
    let alone =
        |pod: &Value| owners(pod).is_empty() && pod["metadata"]["deletionTimestamp"].is_null();
    assert!(list(&left).iter().all(alone), "{left}");
}

/// The owner stays until the last of its pods has gone.
fn foreground(cluster: &Cluster, pods: &[Value]) {
    let held = json!({"metadata": {"finalizers": ["example.com/held"]}});
    patch(cluster, &["pod", name(&pods[0])], &held);
    cluster.k("delete rc foreground --cascade=foreground --wait=false");
    until(cluster, "pods -l app=foreground", |left| match left {
        [last] if uid(last) == uid(&pods[0]) => Ok(()),
        _ => Err(format!("{} are left", left.len())),
    });
    let owner = cluster.json("get rc foreground");
    assert_eq!(owner["metadata"]["finalizers"], json!(["foregroundDeletion"]));
    assert!(owner["metadata"]["deletionTimestamp"].is_string());
    patch(cluster, &["pod", name(&pods[0])], &json!({"metadata": {"finalizers": null}}));
    cluster.until("get rc,pods -l app=foreground -o name", SECONDS, str::is_empty);
}

/// Who has another owner that stays, stays, though the first waits for all it owns to go.
fn two_owners(cluster: &Cluster, pods: &[Value]) {
    let stays = cluster.json("get rc staying");
    let half = &pods[..MANY / 2];
    let second = json!({"apiVersion": "v1", "kind": "ReplicationController", "name": "staying",
        "uid": uid(&stays)});
    for pod in half {
        let both = json!({"metadata": {"ownerReferences": [owners(pod)[0], second]}});
        patch(cluster, &["pod", name(pod)], &both);
    }
    cluster.k("delete rc going --cascade=foreground");
    let left = until_count(cluster, "pods -l app=going", half.len());
    for pod in left {
        assert!(pod["metadata"]["deletionTimestamp"].is_null(), "{pod}");
        assert_eq!(owners(&pod), std::slice::from_ref(&second), "{pod}");
    }
}

/// Three pods that own each other go with the first that is deleted.
fn circle(cluster: &Cluster) {
    let names = ["one", "two", "three"];
    let pod = |name: &&str| {
        json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "labels": {"app": "circle"}},
            "spec": set("ReplicaSet", "circle", 0)["spec"]["template"]["spec"]})
    };
    create(cluster, names.iter().map(pod).collect());
    let made = cluster.json("get pods -l app=circle");
    let by_name = |wanted: &str| list(&made).iter().find(|pod| name(pod) == wanted).unwrap();
    for (owned, owner) in [("one", "three"), ("two", "one"), ("three", "two")] {
        let reference = json!({"apiVersion": "v1", "kind": "Pod", "name": owner,
            "uid": uid(by_name(owner)), "controller": true, "blockOwnerDeletion": true});
        patch(cluster, &["pod", owned], &json!({"metadata": {"ownerReferences": [reference]}}));
    }
    cluster.k("delete pod one");
    until_count(cluster, "pods -l app=circle", 0);
}

/// Owners and what they own may be of kinds that were defined a moment ago.
fn custom(cluster: &Cluster) {
    let version = json!({"name": "v1", "served": true, "storage": true,
        "schema": {"openAPIV3Schema": {"type": "object"}}});
    create(
        cluster,
        vec![json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
            "metadata": {"name": "boats.gc.example.com"}, "spec": {"group": "gc.example.com",
                "scope": "Cluster", "versions": [version],
                "names": {"plural": "boats", "singular": "boat", "kind": "Boat"}}})],
    );
    cluster.k("wait --for=condition=Established crd/boats.gc.example.com --timeout=30s");
    let boat = |name: &str, owner: Option<&Value>| {
        let owners: Vec<Value> = owner
            .iter()
            .map(|owner| {
                json!({"apiVersion": "gc.example.com/v1", "kind": "Boat",
                "name": self::name(owner), "uid": uid(owner)})
            })
            .collect();
        json!({"apiVersion": "gc.example.com/v1", "kind": "Boat",
            "metadata": {"name": name, "ownerReferences": owners}})
    };
    for (cascade, left) in [("background", vec![]), ("orphan", vec!["dinghy"])] {
        create(cluster, vec![boat("ship", None)]);
        create(cluster, vec![boat("dinghy", Some(&cluster.json("get boat ship")))]);
        cluster.k(&format!("delete boat ship --cascade={cascade}"));
        until(cluster, "boats", |all| {
            let names: Vec<&str> = all.iter().map(name).collect();
            let alone = all.iter().all(|it| owners(it).is_empty());
            if names == left && alone { Ok(()) } else { Err(format!("{all:?}")) }
        });
    }
    cluster.k("delete crd boats.gc.example.com");
}

/// Owners that never were, that are in another namespace, or that are called otherwise.
fn strangers(cluster: &Cluster) {
    let map =
        |name: &str| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}});
    let mut far = map("far");
    far["metadata"]["namespace"] = "kube-public".into();
    create(cluster, vec![map("owner"), far]);
    let near = cluster.json("get configmap owner");
    let far = cluster.json("get configmap far -n kube-public");
    let owned = |name: &str, owner: &str, uid: &str| {
        let mut map = map(name);
        map["metadata"]["labels"] = json!({"app": "strangers"});
        map["metadata"]["ownerReferences"] =
            json!([{"apiVersion": "v1", "kind": "ConfigMap", "name": owner, "uid": uid}]);
        map
    };
    create(
        cluster,
        vec![
            owned("has-one", "owner", uid(&near)),
            owned("has-none", "nobody", "5b0bd5e2-0000-4000-8000-000000000000"),
            owned("owned-from-afar", "far", uid(&far)),
            owned("owned-by-another-name", "other", uid(&near)),
        ],
    );
    until(cluster, "configmaps -l app=strangers", |all| {
        let names: Vec<&str> = all.iter().map(name).collect();
        if names == ["has-one"] { Ok(()) } else { Err(format!("{names:?}")) }
    });
    let told = "get events --field-selector=reason=OwnerRefInvalidNamespace \
         -o jsonpath={.items[*].involvedObject.name}:{.items[*].message}";
    let message = format!(
        "owned-from-afar:ownerRef [v1/ConfigMap, namespace: default, name: far, uid: {}] does not \
         exist in namespace \"default\"",
        uid(&far)
    );
    cluster.until(told, SECONDS, |text| text == message);
    cluster.k("delete configmap owner");
    until_count(cluster, "configmaps -l app=strangers", 0);
    cluster.k("delete configmap far -n kube-public");
}
