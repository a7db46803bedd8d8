//! Budgets over the pods of a deployment, and evictions that use them up.

use crate::support::{Cluster, cluster, until};
use client::Patch;
use client::api::ListParams;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use serde_json::{Value, json};

impl Cluster {
    async fn deploy_for_budget(&self, replicas: i32) {
        let deployment = json!({"metadata": {"name": "web"}, "spec": {
            "replicas": replicas, "selector": {"matchLabels": {"app": "web"}},
            "template": {"metadata": {"labels": {"app": "web"}},
                "spec": {"containers": [{"name": "c", "image": "i"}]}}}});
        let api = self.client.api::<Deployment>(Some("default"));
        api.create(&serde_json::from_value(deployment).unwrap()).await.unwrap();
    }

    async fn budget(&self, mut spec: Value) {
        spec["selector"] = json!({"matchLabels": {"app": "web"}});
        let budget = json!({"metadata": {"name": "b"}, "spec": spec});
        let api = self.client.api::<PodDisruptionBudget>(Some("default"));
        api.create(&serde_json::from_value(budget).unwrap()).await.unwrap();
    }

    async fn pods_of_budget(&self) -> Vec<Pod> {
        let params = ListParams::labels("app=web");
        self.client.api::<Pod>(Some("default")).list(&params).await.unwrap().items
    }

    async fn make_ready(&self, count: usize) {
        let pods = until(&format!("{count} pods are there"), || async {
            let pods = self.pods_of_budget().await;
            (pods.len() == count).then_some(pods)
        })
        .await;
        let patch = Patch::Merge(json!({"status": {"phase": "Running", "conditions":
            [{"type": "Ready", "status": "True"}]}}));
        for pod in pods {
            let api = self.client.api::<Pod>(Some("default"));
            api.patch_status(pod.metadata.name.as_deref().unwrap(), &patch).await.unwrap();
        }
    }

    /// Waits for expected, desired and healthy pods, and how many may go.
    async fn until_counted(&self, expected: [i32; 4]) {
        until(&format!("the budget counts {expected:?}"), || async {
            let api = self.client.api::<PodDisruptionBudget>(Some("default"));
            let status = api.get("b").await.unwrap().status?;
            let seen = [
                status.expected_pods,
                status.desired_healthy,
                status.current_healthy,
                status.disruptions_allowed,
            ];
            (seen == expected.map(Some) && status.observed_generation == Some(1)).then_some(())
        })
        .await;
    }

    async fn evict(&self, pod: &str) -> Result<(), client::Error> {
        let body = json!({"apiVersion": "policy/v1", "kind": "Eviction",
            "metadata": {"name": pod, "namespace": "default"}});
        let api = self.client.api::<Pod>(Some("default"));
        api.create_subresource(pod, "eviction", &body).await.map(drop)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn evictions_use_a_budget_up_and_new_pods_fill_it() {
    let cluster = cluster().await;
    cluster.deploy_for_budget(3).await;
    cluster.budget(json!({"maxUnavailable": "34%"})).await;
    cluster.until_counted([3, 1, 0, 0]).await;
    cluster.make_ready(3).await;
    cluster.until_counted([3, 1, 3, 2]).await;
    let names: Vec<String> =
        cluster.pods_of_budget().await.into_iter().filter_map(|pod| pod.metadata.name).collect();
    cluster.evict(&names[0]).await.unwrap();
    cluster.evict(&names[1]).await.unwrap();
    let refused = cluster.evict(&names[2]).await.unwrap_err();
    assert_eq!(refused.code(), 429, "{refused}");
    cluster.until_counted([3, 1, 1, 0]).await;
    cluster.make_ready(3).await;
    cluster.until_counted([3, 1, 3, 2]).await;
    // What the deployment asks for counts, before its pods are there.
    let api = cluster.client.api::<Deployment>(Some("default"));
    api.patch("web", &Patch::Merge(json!({"spec": {"replicas": 6}}))).await.unwrap();
    cluster.until_counted([6, 3, 3, 0]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_budget_over_pods_of_jobs_says_why_it_cannot_count() {
    let cluster = cluster().await;
    let job = json!({"metadata": {"name": "work"}, "spec": {"template": {
        "metadata": {"labels": {"app": "web"}}, "spec": {"restartPolicy": "Never",
        "containers": [{"name": "c", "image": "i"}]}}}});
    let api = cluster.client.api::<k8s_openapi::api::batch::v1::Job>(Some("default"));
    api.create(&serde_json::from_value(job).unwrap()).await.unwrap();
    cluster.make_ready(1).await;
    cluster.budget(json!({"maxUnavailable": 1})).await;
    until("the budget says why", || async {
        let api = cluster.client.api::<PodDisruptionBudget>(Some("default"));
        let condition = api.get("b").await.unwrap().status?.conditions?.pop()?;
        (condition.reason == "SyncFailed"
            && condition.message == "jobs.batch does not implement the scale subresource")
            .then_some(())
    })
    .await;
}
