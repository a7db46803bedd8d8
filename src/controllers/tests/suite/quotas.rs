//! Quotas over objects that come and go.

use crate::support::{Cluster, cluster, until};
use client::DeleteParams;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, ResourceQuota};
use k8s_openapi::api::resource::v1::{DeviceClass, ResourceClaim};
use serde_json::{Value, json};

impl Cluster {
    async fn quota(&self, hard: Value) {
        let quota = json!({"metadata": {"name": "q"}, "spec": {"hard": hard}});
        let quota = serde_json::from_value(quota).unwrap();
        self.client.api::<ResourceQuota>(Some("default")).create(&quota).await.unwrap();
    }

    async fn until_used(&self, expected: Value) {
        until(&format!("{expected} is used"), || async {
            let quota = self.client.api::<ResourceQuota>(Some("default")).get("q").await.unwrap();
            let used = serde_json::to_value(quota.status?.used?).unwrap();
            (used == expected).then_some(())
        })
        .await;
    }

    async fn pod_of_quota(&self, name: &str) -> Result<(), client::Error> {
        let pod = json!({
            "metadata": {"name": name},
            "spec": {"containers": [{"name": "c", "image": "i",
                "resources": {"requests": {"cpu": "100m"}}}]},
        });
        let pod: Pod = serde_json::from_value(pod).unwrap();
        self.client.api::<Pod>(Some("default")).create(&pod).await.map(drop)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_goes_is_given_back_and_what_is_too_much_is_refused() {
    let cluster = cluster().await;
    // The account of pods comes a moment after its namespace.
    until("a pod is let in", || async { cluster.pod_of_quota("before").await.ok() }).await;
    cluster.quota(json!({"pods": "2", "requests.cpu": "1"})).await;
    cluster.until_used(json!({"pods": "1", "requests.cpu": "100m"})).await;
    cluster.pod_of_quota("within").await.unwrap();
    let refused = cluster.pod_of_quota("beyond").await.unwrap_err();
    assert_eq!(refused.code(), 403);
    assert!(refused.to_string().contains("exceeded quota: q"), "{refused}");
    let pods = cluster.client.api::<Pod>(Some("default"));
    // A pod that ends gives back what it held, and one that goes does.
    let ended = client::Patch::Merge(json!({"status": {"phase": "Succeeded"}}));
    pods.patch_status("before", &ended).await.unwrap();
    cluster.until_used(json!({"pods": "1", "requests.cpu": "100m"})).await;
    pods.delete("within", &DeleteParams::default().grace(0)).await.unwrap();
    cluster.until_used(json!({"pods": "0", "requests.cpu": "0"})).await;
    cluster.pod_of_quota("beyond").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_of_any_kind_can_be_counted() {
    let cluster = cluster().await;
    cluster.quota(json!({"configmaps": "9", "count/deployments.apps": "0"})).await;
    let maps = cluster.client.api::<ConfigMap>(Some("default"));
    cluster.until_used(json!({"configmaps": "0", "count/deployments.apps": "0"})).await;
    let map = serde_json::from_value(json!({"metadata": {"name": "m"}})).unwrap();
    maps.create(&map).await.unwrap();
    cluster.until_used(json!({"configmaps": "1", "count/deployments.apps": "0"})).await;
    maps.delete("m", &DeleteParams::default()).await.unwrap();
    cluster.until_used(json!({"configmaps": "0", "count/deployments.apps": "0"})).await;
    let deployment = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"},
        "spec": {"selector": {"matchLabels": {"a": "b"}}, "template": {
            "metadata": {"labels": {"a": "b"}},
            "spec": {"containers": [{"name": "c", "image": "i"}]}}}});
    let path = "/apis/apps/v1/namespaces/default/deployments";
    let refused = cluster.client.post_raw(path, &deployment).await.unwrap_err();
    assert!(refused.to_string().contains("exceeded quota: q"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn devices_count_by_their_class_and_by_what_it_stands_for() {
    let cluster = cluster().await;
    let classes = cluster.client.api::<DeviceClass>(None);
    let class = json!({"metadata": {"name": "gpu"}, "spec": {}});
    classes.create(&serde_json::from_value(class).unwrap()).await.unwrap();
    let claims = cluster.client.api::<ResourceClaim>(Some("default"));
    let claim = json!({"metadata": {"name": "c"}, "spec": {"devices": {"requests": [
        {"name": "r", "exactly": {"deviceClassName": "gpu", "count": 2}}]}}});
    claims.create(&serde_json::from_value(claim).unwrap()).await.unwrap();
    let (by_class, implicit) = (
        "gpu.deviceclass.resource.k8s.io/devices",
        "requests.deviceclass.resource.kubernetes.io/gpu",
    );
    let (explicit, count) = ("requests.example.com/gpu", "count/resourceclaims.resource.k8s.io");
    cluster.quota(json!({by_class: "9", implicit: "9", explicit: "9", count: "9"})).await;
    let used =
        |explicitly: &str| json!({by_class: "2", implicit: "2", explicit: explicitly, count: "1"});
    cluster.until_used(used("0")).await;
    // The claim is as it was; what its class stands for is not.
    let stands = client::Patch::Merge(json!({"spec": {"extendedResourceName": "example.com/gpu"}}));
    classes.patch("gpu", &stands).await.unwrap();
    cluster.until_used(used("2")).await;
    claims.delete("c", &DeleteParams::default()).await.unwrap();
    cluster.until_used(json!({by_class: "0", implicit: "0", explicit: "0", count: "0"})).await;
}
