//! Every kind that is stored can be created, read, listed, watched, patched and deleted,
//! through the same chain as any request and by a user with rights.

#![allow(clippy::unwrap_used)]

use api::authn::{MASTERS, User};
use api::serve::in_process;
use base::drain;
use bytes::Bytes;
use client::{Body, Client};
use futures::StreamExt;
use http::{Method, Request};
use kinds::resources::Catalog;
use serde_json::{Value, json};

/// What a kind needs beyond its metadata, by `group/Kind`.
fn content(group: &str, kind: &str) -> Value {
    let template = json!({
        "metadata": {"labels": {"a": "b"}},
        "spec": {"containers": [{"name": "c", "image": "i"}]},
    });
    let selector = json!({"matchLabels": {"a": "b"}});
    let rule = json!({"roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "view"}});
    match (group, kind) {
        ("", "Pod") => json!({"spec": template["spec"]}),
        ("", "PodTemplate") => json!({"template": template}),
        ("", "ReplicationController") => {
            json!({"spec": {"selector": {"a": "b"}, "template": template}})
        }
        ("", "Service") => json!({"spec": {"ports": [{"port": 80}]}}),
        ("", "Endpoints") => json!({"subsets": []}),
        ("" | "events.k8s.io", "Event") => event(group),
        ("", "PersistentVolume") => json!({"spec": {
            "capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"],
            "hostPath": {"path": "/x"},
        }}),
        ("", "PersistentVolumeClaim") => json!({"spec": {
            "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}},
        }}),
        ("apps", "DaemonSet" | "Deployment" | "ReplicaSet") => {
            json!({"spec": {"selector": selector, "template": template}})
        }
        ("apps", "StatefulSet") => {
            json!({"spec": {"serviceName": "s", "selector": selector, "template": template}})
        }
        ("apps", "ControllerRevision") => json!({"revision": 1, "data": {}}),
        ("batch", "Job") => json!({"spec": {"template": {"spec": {
            "restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}],
        }}}}),
        ("batch", "CronJob") => json!({"spec": {
            "schedule": "* * * * *",
            "jobTemplate": {"spec": {"template": {"spec": {
                "restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}],
            }}}},
        }}),
        ("autoscaling", _) => json!({"spec": {
            "maxReplicas": 2,
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "d"},
        }}),
        ("discovery.k8s.io", _) => json!({"addressType": "IPv4", "endpoints": []}),
        ("rbac.authorization.k8s.io", "RoleBinding" | "ClusterRoleBinding") => rule,
        ("scheduling.k8s.io", "PriorityClass") => json!({"value": 5}),
        ("node.k8s.io", _) => json!({"handler": "h"}),
        ("storage.k8s.io", "StorageClass") => json!({"provisioner": "p"}),
        ("storage.k8s.io", "CSINode") => json!({"spec": {"drivers": []}}),
        ("storage.k8s.io", "CSIDriver") => json!({"spec": {}}),
        ("storage.k8s.io", "CSIStorageCapacity") => json!({"storageClassName": "s"}),
        ("storage.k8s.io", "VolumeAttachment") => json!({"spec": {
            "attacher": "a", "nodeName": "n", "source": {"persistentVolumeName": "p"},
        }}),
        ("storage.k8s.io", "VolumeAttributesClass") => {
            json!({"driverName": "d", "parameters": {"a": "b"}})
        }
        ("policy", _) => json!({"spec": {"minAvailable": 1, "selector": selector}}),
        ("networking.k8s.io", "Ingress") => {
            json!({"spec": {"defaultBackend": {"service": {"name": "s", "port": {"number": 80}}}}})
        }
        ("networking.k8s.io", "IngressClass") => json!({"spec": {"controller": "example.com/c"}}),
        ("flowcontrol.apiserver.k8s.io", "FlowSchema") => json!({"spec": {
            "priorityLevelConfiguration": {"name": "exempt"}, "matchingPrecedence": 7,
        }}),
        ("flowcontrol.apiserver.k8s.io", _) => json!({"spec": {
            "type": "Limited", "limited": {"limitResponse": {"type": "Reject"}},
        }}),
        ("resource.k8s.io", "ResourceSlice") => json!({"spec": {
            "driver": "d", "nodeName": "n",
            "pool": {"name": "p", "generation": 1, "resourceSliceCount": 1},
        }}),
        ("admissionregistration.k8s.io", kind) => admission(kind),
        ("networking.k8s.io", "NetworkPolicy") => json!({"spec": {"podSelector": {}}}),
        ("networking.k8s.io", "ServiceCIDR") => json!({"spec": {"cidrs": ["10.99.0.0/24"]}}),
        ("networking.k8s.io", "IPAddress") => {
            json!({"spec": {"parentRef": {"resource": "services", "name": "s", "namespace": "d"}}})
        }
        ("certificates.k8s.io", _) => json!({"spec": {
            "request": CERTIFICATE_REQUEST, "signerName": "example.com/x", "usages": ["client auth"],
        }}),
        ("apiregistration.k8s.io", _) => json!({"spec": {
            "group": "x.example.com", "version": "v1", "groupPriorityMinimum": 1,
            "versionPriority": 1, "service": {"name": "s", "namespace": "d"},
        }}),
        ("apiextensions.k8s.io", _) => json!({"spec": {
            "group": "example.com", "scope": "Namespaced",
            "names": {"plural": "xs", "singular": "x", "kind": "X", "listKind": "XList"},
            "versions": [{"name": "v1", "served": true, "storage": true,
                "schema": {"openAPIV3Schema": {"type": "object"}}}],
        }}),
        _ => json!({}),
    }
}

const CERTIFICATE_REQUEST: &str = "LS0tLS1CRUdJTiBDRVJUSUZJQ0FURSBSRVFVRVNULS0tLS0KTUlIY01JR0RBZ0VBTUNFeEVEQU9CZ05WQkFNTUIzTnZi\
    V1Z2Ym1VeERUQUxCZ05WQkFvTUJIUmxZVzB3V1RBVApCZ2NxaGtqT1BRSUJCZ2dxaGtqT1BRTUJCd05DQUFUUkJsMXVp\
    NG9UL095S051OXhhcGZrSmpYTC9PRnpGbVpvCm8zUXg2UjI5TVlvakMzSk00ZEI0SHA4SjZkZ1duOWlGTlZkUWdlOUI5\
    ZDBXUWQwMWYzaW5vQUF3Q2dZSUtvWkkKemowRUF3SURTQUF3UlFJZ2ZLSnRTSjNqU3B3YVNzeTdXVkFZVVFJYjg3b0pZ\
    WXcyMkhta1FZanIya2tDSVFETApWVExiMFB1VkROUUdIQUgraDJVM2NnZHJXL1J4UjdiNEhVU3N4Wnc4QkE9PQotLS0t\
    LUVORCBDRVJUSUZJQ0FURSBSRVFVRVNULS0tLS0K";

fn admission(kind: &str) -> Value {
    let constraints = json!({"resourceRules": [{
        "apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["none"],
    }]});
    match kind {
        "MutatingAdmissionPolicy" => json!({"spec": {
            "matchConstraints": constraints, "reinvocationPolicy": "Never", "failurePolicy": "Ignore",
            "mutations": [{"patchType": "JSONPatch", "jsonPatch": {
                "expression": "[JSONPatch{op: 'remove', path: '/data'}]",
            }}],
        }}),
        "ValidatingAdmissionPolicy" => json!({"spec": {
            "matchConstraints": constraints, "validations": [{"expression": "true"}],
        }}),
        "ValidatingAdmissionPolicyBinding" => {
            json!({"spec": {"policyName": "p", "validationActions": ["Deny"]}})
        }
        "MutatingAdmissionPolicyBinding" => json!({"spec": {"policyName": "p"}}),
        _ => json!({}),
    }
}

fn event(group: &str) -> Value {
    let about = json!({"kind": "Pod", "namespace": "default", "name": "p"});
    if group.is_empty() {
        json!({"involvedObject": about, "reason": "R", "type": "Normal"})
    } else {
        json!({
            "regarding": about, "reason": "R", "type": "Normal", "action": "A",
            "eventTime": "2026-01-01T00:00:00.000000Z",
            "reportingController": "c", "reportingInstance": "i",
        })
    }
}

fn name_of(kind: &str) -> &'static str {
    match kind {
        "CustomResourceDefinition" => "xs.example.com",
        "APIService" => "v1.x.example.com",
        "IPAddress" => "10.99.0.7",
        _ => "one",
    }
}

async fn ask(client: &Client, method: Method, path: &str, kind: &str, body: Value) -> Value {
    let body = if body.is_null() { Bytes::new() } else { body.to_string().into() };
    let request = Request::builder()
        .method(method.clone())
        .uri(path)
        .header("content-type", kind)
        .body(body)
        .unwrap();
    match client.request(request).await {
        Ok(bytes) => serde_json::from_slice(&bytes).unwrap(),
        Err(err) => panic!("{method} {path}: {err}"),
    }
}

async fn one_kind(client: &Client, group: &str, version: &str, plural: &str) {
    let resource = Catalog::built_in().by_plural(group, version, plural).unwrap();
    let root = if group.is_empty() {
        format!("/api/{version}")
    } else {
        format!("/apis/{group}/{version}")
    };
    let place = if resource.namespaced { "/namespaces/default" } else { "" };
    let list = format!("{root}{place}/{plural}");
    let name = name_of(&resource.kind);
    let mut object = content(group, &resource.kind);
    object["apiVersion"] = resource.api_version(version).into();
    object["kind"] = resource.kind.as_str().into();
    object["metadata"] = json!({"name": name});

    let json = "application/json";
    let before = ask(client, Method::GET, &list, json, Value::Null).await;
    let since = before["metadata"]["resourceVersion"].as_str().unwrap().to_string();
    let created = ask(client, Method::POST, &list, json, object).await;
    assert_eq!(created["kind"], resource.kind.as_str(), "{plural}");
    let path = format!("{list}/{name}");
    let read = ask(client, Method::GET, &path, json, Value::Null).await;
    assert_eq!(read["metadata"]["uid"], created["metadata"]["uid"], "{plural}");
    let patch = json!({"metadata": {"labels": {"x": "y"}}});
    let merge = "application/merge-patch+json";
    let patched = ask(client, Method::PATCH, &path, merge, patch).await;
    assert_eq!(patched["metadata"]["labels"]["x"], "y", "{plural}");
    let selected = format!("{list}?labelSelector=x%3Dy");
    let listed = ask(client, Method::GET, &selected, json, Value::Null).await;
    assert_eq!(listed["items"].as_array().unwrap().len(), 1, "{plural}");
    ask(client, Method::DELETE, &path, json, json!({"gracePeriodSeconds": 0})).await;
    finish(client, &path, &root, plural).await;

    // A watch from before sees all of it, in order.
    let watch = format!("{list}?watch=true&resourceVersion={since}&timeoutSeconds=10");
    let request = Request::builder().uri(watch).body(Bytes::new()).unwrap();
    let Body::Stream(mut stream) = client.open(request).await.unwrap().into_body() else {
        panic!("a watch of {plural} is a stream")
    };
    let mut seen: Vec<String> = Vec::new();
    while seen.last().is_none_or(|last| last != "DELETED") {
        let chunk = stream.next().await.expect("the watch goes on").unwrap();
        let lines = String::from_utf8(chunk.to_vec()).unwrap();
        seen.extend(
            lines
                .lines()
                .map(|line| serde_json::from_str::<Value>(line).unwrap())
                .filter(|event| event["object"]["metadata"]["name"] == name)
                .map(|event| event["type"].as_str().unwrap().to_string()),
        );
    }
    assert_eq!(seen.first().map(String::as_str), Some("ADDED"), "{plural}: {seen:?}");
    assert_eq!(seen.last().map(String::as_str), Some("DELETED"), "{plural}: {seen:?}");
}

/// Takes finalizers away where the kind has some, so that the object goes.
async fn finish(client: &Client, path: &str, root: &str, plural: &str) {
    let request = Request::builder().uri(path).body(Bytes::new()).unwrap();
    let Ok(bytes) = client.request(request).await else { return };
    let mut left: Value = serde_json::from_slice(&bytes).unwrap();
    if plural == "namespaces" {
        left["spec"]["finalizers"] = json!([]);
        let name = left["metadata"]["name"].as_str().unwrap().to_string();
        let finalize = format!("{root}/namespaces/{name}/finalize");
        ask(client, Method::PUT, &finalize, "application/json", left).await;
        return;
    }
    if plural == "customresourcedefinitions" {
        // The server takes its own finalizer away; the watch tells when.
        return;
    }
    let patch = json!({"metadata": {"finalizers": null}});
    ask(client, Method::PATCH, path, "application/merge-patch+json", patch).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_stored_kind_lives_a_whole_life() {
    let dir = tempfile::tempdir().unwrap();
    let server = testing::serve_alone(dir.path()).await;
    let (_trigger, _drain) = drain::channel();
    let client = in_process::client(&server, User::new("admin", &[MASTERS]), "test/1");
    let mut checks = Vec::new();
    for resource in Catalog::built_in().resources() {
        if resource.prefix.is_none() || !resource.has_verb("create") {
            continue;
        }
        for version in &resource.versions {
            checks.push((resource.group.clone(), version.clone(), resource.plural.clone()));
        }
    }
    assert!(checks.len() >= 60, "{} kinds are stored", checks.len());
    for (group, version, plural) in checks {
        one_kind(&client, &group, &version, &plural).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_gets_in_without_rights() {
    let dir = tempfile::tempdir().unwrap();
    let server = testing::serve_alone(dir.path()).await;
    let alice = in_process::client(&server, User::new("alice", &[]), "test/1");
    let get = |path: &str| Request::builder().uri(path).body(Bytes::new()).unwrap();
    let err = alice.request(get("/api/v1/namespaces/default/pods")).await.unwrap_err();
    assert_eq!(
        err.to_string(),
        "pods is forbidden: User \"alice\" cannot list resource \"pods\" in API group \"\" in the namespace \"default\""
    );
    // Discovery is for everybody who has proved who he is; a node reads only what is its own.
    alice.request(get("/apis")).await.unwrap();
    let node =
        in_process::client(&server, User::new("system:node:n1", &["system:nodes"]), "kubelet/1");
    node.request(get("/api/v1/nodes?fieldSelector=metadata.name%3Dn1")).await.unwrap();
    for path in
        ["/api/v1/nodes", "/api/v1/secrets", "/api/v1/namespaces/default/secrets/s", "/api/v1/pods"]
    {
        assert!(node.request(get(path)).await.unwrap_err().is_forbidden(), "{path}");
    }
    node.request(get("/api/v1/pods?fieldSelector=spec.nodeName%3Dn1")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_may_only_read_runs_no_commands() {
    let dir = tempfile::tempdir().unwrap();
    let server = testing::serve_alone(dir.path()).await;
    let admin = in_process::client(&server, User::new("admin", &[MASTERS]), "test/1");
    let root = "/apis/rbac.authorization.k8s.io/v1";
    let role = json!({"metadata": {"name": "reader"}, "rules": [
        {"apiGroups": [""], "resources": ["pods/exec"], "verbs": ["get"]},
    ]});
    let binding = json!({
        "metadata": {"name": "reader"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "alice"}],
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "reader"},
    });
    let json = "application/json";
    ask(&admin, Method::POST, &format!("{root}/clusterroles"), json, role).await;
    ask(&admin, Method::POST, &format!("{root}/clusterrolebindings"), json, binding).await;
    server.registry.cache.fresh().await.unwrap();
    let alice = in_process::client(&server, User::new("alice", &[]), "test/1");
    let path = "/api/v1/namespaces/default/pods/p/exec?command=id";
    let request = Request::builder().uri(path).body(Bytes::new()).unwrap();
    let err = alice.request(request).await.unwrap_err();
    assert!(err.is_forbidden() && err.to_string().contains("cannot create"), "{err}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_reads_and_tells_what_the_volumes_of_its_own_pods_need() {
    let dir = tempfile::tempdir().unwrap();
    let server = testing::serve_alone(dir.path()).await;
    let admin = in_process::client(&server, User::new("admin", &[MASTERS]), "test/1");
    let (json, core) = ("application/json", "/api/v1");
    let space = format!("{core}/namespaces/default");
    let modes = json!(["ReadWriteOnce"]);
    let secret = json!({"name": "s", "namespace": "default"});
    let volume = json!({"metadata": {"name": "pv1"}, "spec": {
        "capacity": {"storage": "1Gi"}, "accessModes": modes,
        "claimRef": {"name": "p-v", "namespace": "default"},
        "csi": {"driver": "d.example", "volumeHandle": "h", "nodePublishSecretRef": secret}}});
    let claim = json!({"metadata": {"name": "p-v"}, "spec": {"volumeName": "pv1",
        "accessModes": modes, "resources": {"requests": {"storage": "1Gi"}}}});
    for (path, object) in [
        (format!("{core}/persistentvolumes"), volume),
        (format!("{space}/persistentvolumeclaims"), claim),
        (format!("{space}/secrets"), json!({"metadata": {"name": "s"}})),
        (format!("{space}/secrets"), json!({"metadata": {"name": "other"}})),
    ] {
        ask(&admin, Method::POST, &path, json, object).await;
    }
    let node = |name: &str| {
        let user = User::new(&format!("system:node:{name}"), &["system:nodes"]);
        in_process::client(&server, user, "kubelet/1")
    };
    let (own, stranger) = (node("n1"), node("n2"));
    let request = |method: Method, path: &str, body: &'static str| {
        let head = Request::builder().method(method).uri(format!("/api/v1{path}"));
        head.header("content-type", "application/merge-patch+json").body(body.into()).unwrap()
    };
    let get = |path: &str| request(Method::GET, path, "");
    let needs = [
        "/persistentvolumes/pv1",
        "/namespaces/default/persistentvolumeclaims/p-v",
        "/namespaces/default/secrets/s",
    ];
    for path in needs {
        assert!(own.request(get(path)).await.unwrap_err().is_forbidden(), "no pod yet: {path}");
    }
    let pod = json!({"metadata": {"name": "p"}, "spec": {"nodeName": "n1",
        "containers": [{"name": "c", "image": "i"}],
        "volumes": [{"name": "v", "ephemeral": {"volumeClaimTemplate": {"spec": {
            "accessModes": modes, "resources": {"requests": {"storage": "1Gi"}}}}}}]}});
    ask(&admin, Method::POST, &format!("{space}/pods"), json, pod).await;
    server.registry.cache.fresh().await.unwrap();
    for path in needs {
        own.request(get(path)).await.unwrap();
        assert!(stranger.request(get(path)).await.unwrap_err().is_forbidden(), "{path}");
    }
    let other = get("/namespaces/default/secrets/other");
    assert!(own.request(other).await.unwrap_err().is_forbidden());
    let status = format!("{}/status", needs[1]);
    let told = r#"{"status": {"capacity": {"storage": "1Gi"}}}"#;
    own.request(request(Method::PATCH, &status, told)).await.unwrap();
    let theirs = stranger.request(request(Method::PATCH, &status, told)).await.unwrap_err();
    assert!(theirs.is_forbidden());
    let spec = own.request(request(Method::PATCH, needs[1], "{}")).await.unwrap_err();
    assert!(spec.is_forbidden(), "only the status is the node's to change");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_takes_back_what_drivers_offered_on_it_and_nowhere_else() {
    let dir = tempfile::tempdir().unwrap();
    let server = testing::serve_alone(dir.path()).await;
    let admin = in_process::client(&server, User::new("admin", &[MASTERS]), "test/1");
    let path = "/apis/resource.k8s.io/v1/resourceslices";
    for (name, node) in [("a", "n1"), ("b", "n2")] {
        let slice = json!({"metadata": {"name": name}, "spec": {"driver": "d.example",
            "nodeName": node, "pool": {"name": node, "generation": 1, "resourceSliceCount": 1}}});
        ask(&admin, Method::POST, path, "application/json", slice).await;
    }
    let user = User::new("system:node:n1", &["system:nodes"]);
    let node = in_process::client(&server, user, "kubelet/1");
    let wipe = |query: &str| {
        let head = Request::builder().method(Method::DELETE).uri(format!("{path}{query}"));
        node.request(head.body("".into()).unwrap())
    };
    for query in ["", "?fieldSelector=spec.nodeName%3Dn2", "?fieldSelector=spec.driver%3Dd.example"]
    {
        let refused = wipe(query).await.unwrap_err();
        let why =
            "can only list/watch/deletecollection resourceslices with nodeName field selector";
        assert!(refused.is_forbidden() && refused.to_string().contains(why), "{refused}");
    }
    wipe("?fieldSelector=spec.nodeName%3Dn1,spec.driver%3Dd.example").await.unwrap();
    let list = Request::get(path).body("".into()).unwrap();
    let left: Value = serde_json::from_slice(&admin.request(list).await.unwrap()).unwrap();
    let names: Vec<&Value> =
        left["items"].as_array().unwrap().iter().map(|it| &it["metadata"]["name"]).collect();
    assert_eq!(names, ["b"]);
}
