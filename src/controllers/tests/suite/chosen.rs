//! Which controllers run (`--controllers`).

use client::ListParams;
use controllers::Chosen;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::{Pod, ServiceAccount};
use serde_json::json;

use crate::support::{cluster_where, until};

#[tokio::test(flavor = "multi_thread")]
async fn only_those_that_are_chosen_work() {
    let cluster = cluster_where(|config| {
        config.chosen = Chosen::parse(["deployment", "serviceaccount-controller"]).unwrap();
    })
    .await;
    let deployment = json!({"metadata": {"name": "web"}, "spec": {
        "selector": {"matchLabels": {"app": "web"}},
        "template": {"metadata": {"labels": {"app": "web"}},
            "spec": {"containers": [{"name": "c", "image": "i"}]}}}});
    let deployment: Deployment = serde_json::from_value(deployment).unwrap();
    let api = cluster.client.api::<Deployment>(Some("default"));
    api.create(&deployment).await.unwrap();
    let sets = cluster.client.api::<ReplicaSet>(Some("default"));
    until("the deployment has its set", || async {
        sets.list(&ListParams::default()).await.unwrap().items.pop()
    })
    .await;
    let accounts = cluster.client.api::<ServiceAccount>(Some("default"));
    until("pods would be let in", || async { accounts.get("default").await.ok() }).await;
    // Whoever would make pods of the set would have by now.
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    let pods = cluster.client.api::<Pod>(Some("default"));
    assert!(pods.list(&ListParams::default()).await.unwrap().items.is_empty());
    let set = sets.list(&ListParams::default()).await.unwrap().items.pop().unwrap();
    assert_eq!(set.status.and_then(|status| status.observed_generation), None);
}
