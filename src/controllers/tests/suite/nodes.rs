//! Nodes that are not ready, and what becomes of their pods.

use crate::support::{Cluster, cluster, cluster_where, until};
use client::{DeleteParams, Patch};
use k8s_openapi::api::core::v1::{Node, Pod};
use serde_json::json;

impl Cluster {
    async fn create_node_of_node(&self, name: &str) {
        let labels = json!({"kubernetes.io/os": "linux", "beta.kubernetes.io/os": "plan9"});
        let node = json!({"metadata": {"name": name, "labels": labels}, "status": {
            "conditions": [{"type": "Ready", "status": "True"}],
            "allocatable": {"cpu": "4", "memory": "4Gi", "pods": "110"}}});
        let node = serde_json::from_value(node).unwrap();
        self.client.all::<Node>().create(&node).await.unwrap();
    }

    async fn set_ready(&self, node: &str, status: &str) {
        let patch = json!({"status": {"conditions": [{"type": "Ready", "status": status}]}});
        let api = self.client.all::<Node>();
        api.patch_status(node, &Patch::Strategic(patch)).await.unwrap();
    }

    async fn until_tainted(&self, node: &str, expected: &[(&str, &str)]) {
        until(&format!("{node} has {expected:?}"), || async {
            let spec = self.client.all::<Node>().get(node).await.unwrap().spec;
            let taints = spec.and_then(|s| s.taints).unwrap_or_default();
            let seen: Vec<(&str, &str)> =
                taints.iter().map(|t| (t.key.as_str(), t.effect.as_str())).collect();
            (seen == expected).then_some(())
        })
        .await;
    }

    async fn create_pod(&self, name: &str, seconds: i64) {
        let pod = json!({"metadata": {"name": name}, "spec": {"nodeName": "a",
            "containers": [{"name": "c", "image": "i"}],
            "tolerations": [{"operator": "Exists", "effect": "NoExecute",
                "tolerationSeconds": seconds}]}});
        let pod: Pod = serde_json::from_value(pod).unwrap();
        let api = self.client.api::<Pod>(Some("default"));
        // The account of pods comes a moment after its namespace.
        until("the pod is let in", || async { api.create(&pod).await.ok() }).await;
        let ready = json!({"status": {"phase": "Running", "conditions":
            [{"type": "Ready", "status": "True"}]}});
        api.patch_status(name, &Patch::Merge(ready)).await.unwrap();
    }
}

const NOT_READY: &str = "node.kubernetes.io/not-ready";
const BOTH: [(&str, &str); 2] = [(NOT_READY, "NoSchedule"), (NOT_READY, "NoExecute")];

#[tokio::test(flavor = "multi_thread")]
async fn pods_leave_a_node_that_is_not_ready_as_they_tolerate_it() {
    let cluster = cluster().await;
    cluster.create_node_of_node("a").await;
    cluster.create_node_of_node("b").await;
    cluster.until_tainted("a", &[]).await;
    cluster.create_pod("soon", 1).await;
    cluster.create_pod("later", 600).await;
    cluster.until_told("Node a event: Registered Node a in Controller").await;
    cluster.set_ready("a", "False").await;
    cluster.until_tainted("a", &BOTH).await;
    cluster.until_told("Node a status is now: NodeNotReady").await;
    let pods = cluster.client.api::<Pod>(Some("default"));
    until("the impatient one is marked and goes", || async {
        let pod = pods.get("soon").await.unwrap();
        let conditions = pod.status.unwrap().conditions.unwrap();
        let marked = conditions
            .iter()
            .any(|c| c.type_ == "DisruptionTarget" && c.observed_generation.is_some());
        (marked && pod.metadata.deletion_timestamp.is_some()).then_some(())
    })
    .await;
    let later = pods.get("later").await.unwrap();
    assert!(later.metadata.deletion_timestamp.is_none());
    let conditions = later.status.unwrap().conditions.unwrap();
    assert!(conditions.iter().any(|c| c.type_ == "Ready" && c.status == "False"));
    cluster.set_ready("a", "True").await;
    cluster.until_tainted("a", &[]).await;
    cluster.until_told("Cancelling deletion of Pod default/later").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_evicted_while_all_nodes_are_down() {
    let cluster = cluster().await;
    cluster.create_node_of_node("a").await;
    cluster.until_tainted("a", &[]).await;
    cluster.create_pod("stays", 1).await;
    cluster.set_ready("a", "False").await;
    cluster.until_tainted("a", &[(NOT_READY, "NoSchedule")]).await;
    // A node that is well shows that it is not us.
    cluster.create_node_of_node("b").await;
    cluster.until_tainted("a", &BOTH).await;
    let nodes = cluster.client.all::<Node>();
    let told = until("how long the node may keep what it read is told", || async {
        let annotations = nodes.get("b").await.unwrap().metadata.annotations?;
        annotations.get("node.alpha.kubernetes.io/ttl").cloned()
    })
    .await;
    assert_eq!(told, "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_ends_on_a_node_that_is_out_of_service_is_gone() {
    let cluster = cluster().await;
    cluster.create_node_of_node("a").await;
    cluster.create_node_of_node("b").await;
    cluster.until_tainted("a", &[]).await;
    cluster.create_pod("lost", 1).await;
    cluster.set_ready("a", "False").await;
    cluster.until_tainted("a", &BOTH).await;
    let pods = cluster.client.api::<Pod>(Some("default"));
    until("the pod is to end, and nobody says that it has", || async {
        pods.get("lost").await.unwrap().metadata.deletion_timestamp.map(drop)
    })
    .await;
    // Somebody has seen that the machine is off.
    let nodes = cluster.client.all::<Node>();
    until("the node is tainted by hand", || async {
        let mut node = nodes.get("a").await.unwrap();
        let taint = json!({"key": "node.kubernetes.io/out-of-service", "value": "nodeshutdown",
            "effect": "NoExecute"});
        let taints = node.spec.get_or_insert_default().taints.get_or_insert_default();
        taints.push(serde_json::from_value(taint).unwrap());
        nodes.replace("a", &node).await.ok()
    })
    .await;
    until("the pod is gone", || async {
        pods.get_opt("lost").await.unwrap().is_none().then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_gets_no_network_is_told_and_has_one_when_one_is_free() {
    let cluster = cluster_where(|config| {
        config.cluster_cidrs = vec!["10.42.0.0/24".into()];
        config.node_cidr_sizes = (25, 64);
    })
    .await;
    let nodes = cluster.client.all::<Node>();
    let network = async |name: &str| nodes.get(name).await.unwrap().spec.and_then(|s| s.pod_cidr);
    for name in ["a", "b"] {
        cluster.create_node_of_node(name).await;
        until("it has a network", || network(name)).await;
    }
    cluster.create_node_of_node("c").await;
    cluster.until_told("CIDRNotAvailable").await;
    let old = until("a label of old says what that of today does", || async {
        let labels = nodes.get("c").await.unwrap().metadata.labels?;
        labels.get("beta.kubernetes.io/os").filter(|os| *os != "plan9").cloned()
    })
    .await;
    assert_eq!(old, "linux");
    cluster.until_told("Node c status is now: CIDRNotAvailable").await;
    assert_eq!(network("c").await, None);
    let of_a = network("a").await;
    nodes.delete("a", &DeleteParams::default()).await.unwrap();
    let given = until("it has the one that has become free", || network("c")).await;
    assert_eq!(Some(given), of_a);
}
