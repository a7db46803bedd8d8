//! Small objects for the room's tests.

use k8s_openapi::api::core::v1::{Node, Pod};
use serde_json::{Value, json};

pub fn node(name: &str, cpu: &str, memory: &str) -> Node {
    node_with(name, json!({}), json!({}), cpu, memory)
}

pub fn node_with(name: &str, labels: Value, spec: Value, cpu: &str, memory: &str) -> Node {
    let mut labels = labels;
    labels["kubernetes.io/hostname"] = name.into();
    let status = json!({"allocatable": {"cpu": cpu, "memory": memory, "pods": "110"}});
    let node = json!({"metadata": {"name": name, "labels": labels}, "spec": spec,
        "status": status});
    serde_json::from_value(node).expect("a node")
}

pub fn pod(name: &str, cpu: &str, memory: &str) -> Pod {
    let container = json!({"name": "c", "image": "i",
        "resources": {"requests": {"cpu": cpu, "memory": memory}}});
    pod_of(name, json!({}), json!({"containers": [container]}))
}

pub fn pod_of(name: &str, labels: Value, spec: Value) -> Pod {
    let mut spec = spec;
    if spec.get("containers").is_none() {
        spec["containers"] = json!([{"name": "c", "image": "i"}]);
    }
    let pod = json!({"metadata": {"name": name, "namespace": "default", "uid": name,
        "labels": labels}, "spec": spec});
    serde_json::from_value(pod).expect("a pod")
}
