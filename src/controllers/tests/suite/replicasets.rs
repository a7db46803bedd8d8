//! ReplicaSets that select the same pods.

use std::collections::BTreeMap;

use crate::support::{Cluster, cluster, until};
use client::DeleteParams;
use client::api::ListParams;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

fn spec(replicas: i32, image: &str) -> Value {
    json!({"replicas": replicas, "selector": {"matchLabels": {"app": "web"}},
        "template": {"metadata": {"labels": {"app": "web"}},
            "spec": {"containers": [{"name": "main", "image": image}]}}})
}

impl Cluster {
    async fn create_replica_set(&self, name: &str, replicas: i32) {
        let set = json!({"metadata": {"name": name}, "spec": spec(replicas, name)});
        let api = self.client.api::<ReplicaSet>(Some("default"));
        api.create(&serde_json::from_value(set).unwrap()).await.unwrap();
    }

    /// How many pods each owner has; those without one under "".
    async fn owned(&self) -> BTreeMap<String, usize> {
        let pods = self.client.api::<Pod>(Some("default"));
        let mut out = BTreeMap::new();
        for pod in pods.list(&ListParams::default()).await.unwrap().items {
            let owner = pod.metadata.owner_references.and_then(|owners| owners.into_iter().next());
            *out.entry(owner.map(|owner| owner.name).unwrap_or_default()).or_default() += 1;
        }
        out
    }

    async fn until_owned(&self, expected: &[(&str, usize)]) {
        let expected: BTreeMap<String, usize> =
            expected.iter().map(|(name, count)| (name.to_string(), *count)).collect();
        until(&format!("pods are owned so: {expected:?}"), || async {
            (self.owned().await == expected).then_some(())
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sets_whose_selectors_overlap_keep_to_their_own_pods() {
    let cluster = cluster().await;
    cluster.create_replica_set("one", 2).await;
    cluster.until_owned(&[("one", 2)]).await;
    // The second finds pods that match, which belong to another.
    cluster.create_replica_set("two", 3).await;
    cluster.until_owned(&[("one", 2), ("two", 3)]).await;
    // A pod of nobody's is taken by one of them, which has one too many then.
    let stray = json!({"metadata": {"name": "stray", "labels": {"app": "web"}},
        "spec": {"containers": [{"name": "main", "image": "stray"}]}});
    let pods = cluster.client.api::<Pod>(Some("default"));
    pods.create(&serde_json::from_value(stray).unwrap()).await.unwrap();
    until("nobody is alone", || async { (!cluster.owned().await.contains_key("")).then_some(()) })
        .await;
    cluster.until_owned(&[("one", 2), ("two", 3)]).await;
    // What the one loses the other does not give.
    let sets = cluster.client.api::<ReplicaSet>(Some("default"));
    let patch = client::Patch::Merge(json!({"spec": {"replicas": 0}}));
    sets.patch("one", &patch).await.unwrap();
    cluster.until_owned(&[("two", 3)]).await;
    sets.delete("two", &DeleteParams::default()).await.unwrap();
    cluster.until_owned(&[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn deployments_whose_selectors_overlap_do_not_fight() {
    let cluster = cluster().await;
    let deployments = cluster.client.api::<Deployment>(Some("default"));
    for name in ["one", "two"] {
        let deployment = json!({"metadata": {"name": name}, "spec": spec(2, name)});
        deployments.create(&serde_json::from_value(deployment).unwrap()).await.unwrap();
    }
    let sets = cluster.client.api::<ReplicaSet>(Some("default"));
    let generations = async || {
        let all = sets.list(&ListParams::default()).await.unwrap().items;
        let of = |set: ReplicaSet| (set.metadata.name.unwrap(), set.metadata.generation.unwrap());
        all.into_iter().map(of).collect::<Vec<_>>()
    };
    until("each has two pods", || async {
        let owned = cluster.owned().await;
        (owned.len() == 2 && owned.values().all(|count| *count == 2)).then_some(())
    })
    .await;
    let before = generations().await;
    assert_eq!(before.len(), 2, "{before:?}");
    // Scaling one is nothing to the other.
    let patch = client::Patch::Merge(json!({"spec": {"replicas": 4}}));
    deployments.patch("one", &patch).await.unwrap();
    until("the one has four pods", || async {
        let owned = cluster.owned().await;
        (owned.values().sum::<usize>() == 6 && owned.len() == 2).then_some(())
    })
    .await;
    let (one, two): (Vec<_>, Vec<_>) =
        generations().await.into_iter().partition(|(name, _)| name.starts_with("one-"));
    assert_eq!((one.len(), two.len()), (1, 1));
    assert!(before.contains(&two[0]), "{before:?} {two:?}");
}
