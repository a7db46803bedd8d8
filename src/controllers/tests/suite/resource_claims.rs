//! Claims of dynamic resources: made from templates, freed when nobody uses them.
use crate::support::{Cluster, cluster, until};
use client::{DeleteParams, Patch};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::resource::v1::{ResourceClaim, ResourceClaimTemplate, ResourceSlice};
use serde_json::{Value, json};

fn requests() -> Value {
    json!({"devices": {"requests": [
        {"name": "r", "exactly": {"deviceClassName": "things.example"}}]}})
}

impl Cluster {
    fn pods_of_resource_claim(&self) -> client::Api<Pod> {
        self.client.api(Some("default"))
    }

    fn claims_of_resource_claim(&self) -> client::Api<ResourceClaim> {
        self.client.api(Some("default"))
    }

    async fn template(&self, name: &str) {
        let template = json!({"metadata": {"name": name},
            "spec": {"metadata": {"labels": {"a": "b"}}, "spec": requests()}});
        let template: ResourceClaimTemplate = serde_json::from_value(template).unwrap();
        self.client.api(Some("default")).create(&template).await.unwrap();
    }

    async fn pod_of_resource_claim(&self, name: &str, claim: Value) {
        let pod = json!({"metadata": {"name": name}, "spec": {"resourceClaims": [claim],
            "containers": [{"name": "c", "image": "i"}]}});
        let pod = serde_json::from_value(pod).unwrap();
        // Pods are refused until their service account is there.
        until("the pod is made", async || self.pods_of_resource_claim().create(&pod).await.ok())
            .await;
    }

    async fn told(&self, pod: &str) -> String {
        until("the pod is told its claim", async || {
            let pod = self.pods_of_resource_claim().get(pod).await.unwrap();
            pod.status?.resource_claim_statuses?.first()?.resource_claim_name.clone()
        })
        .await
    }

    /// As the scheduler does.
    async fn allocate(&self, claim: &str, pods: &[&str]) {
        let mut users = Vec::new();
        for name in pods {
            let uid = self.pods_of_resource_claim().get(name).await.unwrap().metadata.uid;
            users.push(json!({"resource": "pods", "name": name, "uid": uid}));
        }
        let kept = json!({"metadata": {
            "finalizers": ["resource.kubernetes.io/delete-protection"]}});
        self.claims_of_resource_claim().patch(claim, &Patch::Merge(kept)).await.unwrap();
        let result = json!({"request": "r", "driver": "d.example", "pool": "p", "device": "0"});
        let status = json!({"status": {"reservedFor": users,
            "allocation": {"devices": {"results": [result]}}}});
        self.claims_of_resource_claim().patch_status(claim, &Patch::Merge(status)).await.unwrap();
    }

    async fn until_freed(&self, claim: &str) {
        until("the claim is freed", async || {
            let claim = self.claims_of_resource_claim().get(claim).await.unwrap();
            let status = claim.status.unwrap_or_default();
            let is_free = status.allocation.is_none() && status.reserved_for.is_none();
            (is_free && claim.metadata.finalizers.is_none()).then_some(())
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_is_made_from_its_template_and_goes_when_the_pod_is_done() {
    let cluster = cluster().await;
    let claim = json!({"name": "thing", "resourceClaimTemplateName": "t"});
    // The template comes late.
    cluster.pod_of_resource_claim("p", claim.clone()).await;
    cluster.template("t").await;
    let first = cluster.told("p").await;
    assert!(first.starts_with("p-thing-"), "{first}");
    let made = cluster.claims_of_resource_claim().get(&first).await.unwrap();
    let pod = cluster.pods_of_resource_claim().get("p").await.unwrap();
    let owner = &made.metadata.owner_references.unwrap()[0];
    assert_eq!((Some(&owner.uid), owner.controller), (pod.metadata.uid.as_ref(), Some(true)));
    assert_eq!(made.metadata.labels.unwrap()["a"], "b");
    assert_eq!(
        made.metadata.annotations.unwrap()["resource.kubernetes.io/pod-claim-name"],
        "thing"
    );
    // One that is taken away while it is wanted is made again.
    cluster.claims_of_resource_claim().delete(&first, &DeleteParams::default()).await.unwrap();
    let second = until("there is another", async || {
        let now = cluster.told("p").await;
        (now != first).then_some(now)
    })
    .await;
    cluster.allocate(&second, &["p"]).await;
    let done = json!({"status": {"phase": "Succeeded"}});
    cluster.pods_of_resource_claim().patch_status("p", &Patch::Merge(done)).await.unwrap();
    until("the claim is gone", async || {
        cluster.claims_of_resource_claim().get_opt(&second).await.unwrap().is_none().then_some(())
    })
    .await;
    assert!(cluster.pods_of_resource_claim().get_opt("p").await.unwrap().is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_of_the_users_is_freed_after_its_last_pod_and_stays() {
    let cluster = cluster().await;
    let claim = json!({"metadata": {"name": "c"}, "spec": requests()});
    cluster
        .claims_of_resource_claim()
        .create(&serde_json::from_value(claim).unwrap())
        .await
        .unwrap();
    for pod in ["p", "q"] {
        cluster
            .pod_of_resource_claim(pod, json!({"name": "thing", "resourceClaimName": "c"}))
            .await;
    }
    cluster.allocate("c", &["p", "q"]).await;
    cluster.pods_of_resource_claim().delete("p", &DeleteParams::default().grace(0)).await.unwrap();
    until("one user is left", async || {
        let status = cluster.claims_of_resource_claim().get("c").await.unwrap().status?;
        (status.reserved_for?.len() == 1 && status.allocation.is_some()).then_some(())
    })
    .await;
    cluster.pods_of_resource_claim().delete("q", &DeleteParams::default().grace(0)).await.unwrap();
    cluster.until_freed("c").await;
    // One that is deleted while it is allocated to nobody is let go.
    cluster.allocate("c", &[]).await;
    cluster.claims_of_resource_claim().delete("c", &DeleteParams::default()).await.unwrap();
    until("the claim is gone", async || {
        cluster.claims_of_resource_claim().get_opt("c").await.unwrap().is_none().then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_leave_devices_that_are_tainted() {
    let cluster = cluster().await;
    let client = &cluster.client;
    let claims = client.api::<ResourceClaim>(Some("default"));
    let pods = client.api::<Pod>(Some("default"));
    let slices = client.all::<ResourceSlice>();
    let slice = json!({"metadata": {"name": "s"}, "spec": {"driver": "d.example",
        "nodeName": "n", "pool": {"name": "p", "generation": 1, "resourceSliceCount": 1},
        "devices": [{"name": "one"}, {"name": "two"}]}});
    slices.create(&serde_json::from_value(slice).unwrap()).await.unwrap();
    for (name, device, tolerations) in [
        ("weak", "one", json!([])),
        ("strong", "one", json!([{"key": "sick", "operator": "Exists"}])),
        ("far", "two", json!([])),
    ] {
        let claim = json!({"metadata": {"name": name}, "spec": {"devices": {"requests": [
            {"name": "r", "exactly": {"deviceClassName": "c.example"}}]}}});
        claims.create(&serde_json::from_value(claim).unwrap()).await.unwrap();
        let pod = json!({"metadata": {"name": name}, "spec": {"nodeName": "n",
            "containers": [{"name": "c", "image": "i"}],
            "resourceClaims": [{"name": "r", "resourceClaimName": name}]}});
        let pod: Pod = serde_json::from_value(pod).unwrap();
        let pod = until("the pod is let in", async || pods.create(&pod).await.ok()).await;
        let status = json!({"status": {
            "allocation": {"devices": {"results": [{"request": "r", "driver": "d.example",
                "pool": "p", "device": device, "tolerations": tolerations}]}},
            "reservedFor": [{"resource": "pods", "name": name, "uid": pod.metadata.uid}]}});
        claims.merge(name, "status", &status).await.unwrap();
    }
    let mut tainted = slices.get("s").await.unwrap();
    let taint = json!({"key": "sick", "value": "very", "effect": "NoExecute"});
    tainted.spec.devices.as_mut().unwrap()[0].taints =
        Some(vec![serde_json::from_value(taint).unwrap()]);
    slices.replace("s", &tainted).await.unwrap();
    let going = until("the pod is to go", async || {
        let pod = pods.get("weak").await.unwrap();
        pod.metadata.deletion_timestamp.is_some().then_some(pod)
    })
    .await;
    let conditions = going.status.unwrap().conditions.unwrap();
    let target = conditions.iter().find(|c| c.type_ == "DisruptionTarget").unwrap();
    assert_eq!(target.reason.as_deref(), Some("DeletionByDeviceTaintManager"));
    cluster.until_told("DeviceTaintManagerEviction").await;
    for stays in ["strong", "far"] {
        assert!(pods.get(stays).await.unwrap().metadata.deletion_timestamp.is_none(), "{stays}");
    }
}
