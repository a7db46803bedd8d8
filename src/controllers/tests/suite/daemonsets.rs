//! Daemon sets over nodes that come and go; the suite plays the nodes.

use crate::support::{Cluster, cluster, until};
use client::api::ListParams;
use client::{DeleteParams, Patch};
use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet};
use k8s_openapi::api::core::v1::{Event, Node, Pod};
use serde_json::{Value, json};

impl Cluster {
    async fn create_node_of_daemon_set(&self, name: &str, tier: &str) {
        let node = json!({
            "metadata": {"name": name, "labels": {"tier": tier}},
            "status": {"conditions": [{"type": "Ready", "status": "True"}],
                       "allocatable": {"cpu": "4", "memory": "4Gi", "pods": "110"}},
        });
        let node = serde_json::from_value(node).unwrap();
        self.client.all::<Node>().create(&node).await.unwrap();
    }

    async fn change_daemon_set(&self, patch: Value) {
        let api = self.client.api::<DaemonSet>(Some("default"));
        api.patch("agent", &Patch::Merge(patch)).await.unwrap();
    }

    async fn pods_of_daemon_set(&self) -> Vec<Pod> {
        let params = ListParams::labels("app=agent".to_owned());
        let pods = self.client.api::<Pod>(Some("default")).list(&params).await.unwrap().items;
        pods.into_iter().filter(|pod| pod.metadata.deletion_timestamp.is_none()).collect()
    }

    /// Waits until exactly these nodes are meant by a pod of this image each.
    async fn until_on(&self, nodes: &[&str], image: &str) -> Vec<String> {
        until(&format!("{image} is on {nodes:?}"), || async {
            let pods = self.pods_of_daemon_set().await;
            let mut on: Vec<String> = pods.iter().map(meant_for).collect();
            on.sort();
            let same = pods.iter().all(|pod| {
                let spec = pod.spec.as_ref().unwrap();
                spec.containers[0].image.as_deref() == Some(image)
            });
            (same && on == nodes)
                .then(|| pods.iter().filter_map(|pod| pod.metadata.name.clone()).collect())
        })
        .await
    }
}

/// The node in the affinity that the scheduler is bound to.
fn meant_for(pod: &Pod) -> String {
    let spec = serde_json::to_value(pod.spec.as_ref().unwrap()).unwrap();
    let terms = &spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"];
    let field = &terms["nodeSelectorTerms"][0]["matchFields"][0];
    assert_eq!(field["key"], "metadata.name", "{spec}");
    field["values"][0].as_str().unwrap().to_owned()
}

fn daemon_set(image: &str) -> DaemonSet {
    serde_json::from_value(json!({
        "metadata": {"name": "agent"},
        "spec": {
            "selector": {"matchLabels": {"app": "agent"}},
            "template": {
                "metadata": {"labels": {"app": "agent"}},
                "spec": {"nodeSelector": {"tier": "edge"},
                         "containers": [{"name": "agent", "image": image}]},
            },
        },
    }))
    .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_follows_each_node_that_it_is_meant_for() {
    let cluster = cluster().await;
    cluster.create_node_of_daemon_set("a", "edge").await;
    cluster.create_node_of_daemon_set("b", "core").await;
    let sets = cluster.client.api::<DaemonSet>(Some("default"));
    sets.create(&daemon_set("agent:1")).await.unwrap();
    cluster.until_on(&["a"], "agent:1").await;
    // A node comes, a node is relabelled, a node goes.
    cluster.create_node_of_daemon_set("c", "edge").await;
    cluster.until_on(&["a", "c"], "agent:1").await;
    let nodes = cluster.client.all::<Node>();
    let relabel = json!({"metadata": {"labels": {"tier": "edge"}}});
    nodes.patch("b", &Patch::Merge(relabel)).await.unwrap();
    cluster.until_on(&["a", "b", "c"], "agent:1").await;
    nodes.delete("c", &DeleteParams::default()).await.unwrap();
    until("the status counts two nodes", || async {
        let set = sets.get("agent").await.unwrap();
        let status = set.status.unwrap_or_default();
        (status.desired_number_scheduled == 2).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_rolls_and_can_be_undone() {
    let cluster = cluster().await;
    cluster.create_node_of_daemon_set("a", "edge").await;
    let sets = cluster.client.api::<DaemonSet>(Some("default"));
    sets.create(&daemon_set("agent:1")).await.unwrap();
    let first = cluster.until_on(&["a"], "agent:1").await;
    let image = |image: &str| json!({"spec": {"template": {"spec": {"containers": [{"name": "agent", "image": image}]}}}});
    cluster.change_daemon_set(image("agent:2")).await;
    let second = cluster.until_on(&["a"], "agent:2").await;
    assert_ne!(first, second);
    cluster.change_daemon_set(image("agent:1")).await;
    cluster.until_on(&["a"], "agent:1").await;
    // What was there before is the newest revision again, and not a third one.
    let revisions = until("the old revision is the newest", || async {
        let list = cluster.client.api::<ControllerRevision>(Some("default"));
        let items = list.list(&ListParams::default()).await.unwrap().items;
        let mut numbers: Vec<i64> = items.iter().map(|it| it.revision).collect();
        numbers.sort_unstable();
        (numbers == [2, 3]).then_some(items)
    })
    .await;
    assert_eq!(revisions.len(), 2);
    let set = sets.get("agent").await.unwrap();
    assert_eq!(set.status.unwrap_or_default().collision_count.unwrap_or(0), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_has_succeeded_is_made_anew_at_once_and_it_is_told() {
    let cluster = cluster().await;
    cluster.create_node_of_daemon_set("a", "edge").await;
    let sets = cluster.client.api::<DaemonSet>(Some("default"));
    sets.create(&daemon_set("agent:1")).await.unwrap();
    let first = cluster.until_on(&["a"], "agent:1").await;
    let pods = cluster.client.api::<Pod>(Some("default"));
    let ended = json!({"status": {"phase": "Succeeded"}});
    pods.patch_status(&first[0], &Patch::Merge(ended)).await.unwrap();
    until("there is another pod", || async {
        let names = cluster.until_on(&["a"], "agent:1").await;
        (names != first).then_some(())
    })
    .await;
    let events = cluster.client.api::<Event>(Some("default"));
    let said = until("it was told", || async {
        let events = events.list(&ListParams::default()).await.unwrap().items;
        events.into_iter().find(|it| it.reason.as_deref() == Some("SucceededDaemonPod"))
    })
    .await;
    assert_eq!(said.type_.as_deref(), Some("Normal"));
    let text = format!("Found succeeded daemon pod default/{} on node ", first[0]);
    assert!(said.message.unwrap().starts_with(&text));
}
