//! What an owner leaves behind goes after it, down to the last pod.

use crate::support::{cluster, until};
use client::DeleteParams;
use client::api::ListParams;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::Pod;
use serde_json::json;

#[tokio::test(flavor = "multi_thread")]
async fn a_deployment_takes_its_replica_sets_and_pods_along() {
    let cluster = cluster().await;
    let all = ListParams::default();
    let count = async || {
        let sets = cluster.client.api::<ReplicaSet>(Some("default")).list(&all).await.unwrap();
        let pods = cluster.client.api::<Pod>(Some("default")).list(&all).await.unwrap();
        (sets.items.len(), pods.items.len())
    };
    let deployment = json!({
        "metadata": {"name": "web"},
        "spec": {
            "replicas": 2, "selector": {"matchLabels": {"a": "b"}},
            "template": {"metadata": {"labels": {"a": "b"}},
                         "spec": {"containers": [{"name": "c", "image": "i"}]}},
        },
    });
    let deployments = cluster.client.api::<Deployment>(Some("default"));
    deployments.create(&serde_json::from_value(deployment).unwrap()).await.unwrap();
    until("two pods are there", async || (count().await == (1, 2)).then_some(())).await;
    deployments.delete("web", &DeleteParams::default()).await.unwrap();
    until("all is gone", async || (count().await == (0, 0)).then_some(())).await;
}
