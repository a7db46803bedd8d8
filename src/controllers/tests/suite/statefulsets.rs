//! StatefulSets step by step; the suite makes their pods ready, or not.

use crate::support::{Cluster, cluster, until};
use client::api::{ListParams, ResourceRef};
use client::{DeleteParams, Patch};
use k8s_openapi::api::apps::v1::{ControllerRevision, StatefulSet};
use k8s_openapi::api::autoscaling::v1::Scale;
use k8s_openapi::api::core::v1::{Event, PersistentVolumeClaim, Pod};
use serde_json::{Value, json};

impl Cluster {
    async fn create_stateful_set(&self, mut spec: Value) {
        for (field, value) in [
            ("serviceName", json!("web")),
            ("selector", json!({"matchLabels": {"app": "web"}})),
            ("template", template("web:1")),
        ] {
            spec[field] = value;
        }
        let set = json!({"metadata": {"name": "web"}, "spec": spec});
        let sets = self.client.api::<StatefulSet>(Some("default"));
        sets.create(&serde_json::from_value(set).unwrap()).await.unwrap();
    }

    async fn change_stateful_set(&self, spec: Value) {
        let sets = self.client.api::<StatefulSet>(Some("default"));
        sets.patch("web", &Patch::Merge(json!({"spec": spec}))).await.unwrap();
    }

    async fn status_of_stateful_set(&self) -> Value {
        let sets = self.client.api::<StatefulSet>(Some("default"));
        serde_json::to_value(sets.get("web").await.unwrap().status).unwrap()
    }

    async fn pods_of_stateful_set(&self) -> Vec<Pod> {
        let params = ListParams::labels("app=web");
        self.client.api::<Pod>(Some("default")).list(&params).await.unwrap().items
    }

    /// `web-0 web:1`, with `ready` and `going`.
    async fn picture(&self) -> Vec<String> {
        let describe = |pod: &Pod| {
            let image = pod.spec.as_ref().unwrap().containers[0].image.clone().unwrap();
            let mut text = format!("{} {image}", pod.metadata.name.as_deref().unwrap());
            let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref());
            if phase == Some("Running") {
                text += " ready";
            }
            if pod.metadata.deletion_timestamp.is_some() {
                text += " going";
            }
            text
        };
        self.pods_of_stateful_set().await.iter().map(describe).collect()
    }

    async fn until_picture(&self, expected: &[&str]) {
        let mut seen = Vec::new();
        let look = async {
            loop {
                seen = self.picture().await;
                if seen == expected {
                    break;
                }
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
        };
        let done = tokio::time::timeout(std::time::Duration::from_secs(20), look).await;
        assert!(
            done.is_ok(),
            "{seen:?} is not {expected:?}: {}",
            self.status_of_stateful_set().await
        );
    }

    async fn set_phase(&self, pod: &str, phase: &str) {
        let ready = if phase == "Running" { "True" } else { "False" };
        let now = base::time::rfc3339(base::time::now());
        let patch = json!({"status": {"phase": phase, "conditions":
            [{"type": "Ready", "status": ready, "lastTransitionTime": now}]}});
        let api = self.client.api::<Pod>(Some("default"));
        api.patch_status(pod, &Patch::Merge(patch)).await.unwrap();
    }

    async fn ready(&self, pod: &str) {
        self.set_phase(pod, "Running").await;
    }

    /// The node's last word about a pod that goes.
    async fn gone(&self, pod: &str) {
        let api = self.client.api::<Pod>(Some("default"));
        api.delete(pod, &DeleteParams::default().grace(0)).await.unwrap();
    }

    async fn bind(&self, pod: &str) {
        let body = json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": pod},
            "target": {"kind": "Node", "name": "n"}});
        let api = self.client.api::<Pod>(Some("default"));
        api.create_subresource(pod, "binding", &body).await.unwrap();
    }

    async fn revisions(&self) -> Vec<i64> {
        let api = self.client.api::<ControllerRevision>(Some("default"));
        let items = api.list(&ListParams::default()).await.unwrap().items;
        let mut numbers: Vec<i64> = items.iter().map(|r| r.revision).collect();
        numbers.sort_unstable();
        numbers
    }

    async fn claim_of_stateful_set(&self, name: &str) -> Option<PersistentVolumeClaim> {
        self.client.api::<PersistentVolumeClaim>(Some("default")).get_opt(name).await.unwrap()
    }
}

fn template(image: &str) -> Value {
    json!({"metadata": {"labels": {"app": "web"}},
        "spec": {"terminationGracePeriodSeconds": 30,
            "containers": [{"name": "web", "image": image}]}})
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_come_in_order_and_go_in_the_opposite_one_and_pause_while_one_is_ill() {
    let cluster = cluster().await;
    cluster.create_stateful_set(json!({"replicas": 2})).await;
    cluster.until_picture(&["web-0 web:1"]).await;
    let pod = serde_json::to_value(&cluster.pods_of_stateful_set().await[0]).unwrap();
    assert_eq!(
        (&pod["spec"]["hostname"], &pod["spec"]["subdomain"]),
        (&json!("web-0"), &json!("web"))
    );
    assert_eq!(pod["metadata"]["labels"]["apps.kubernetes.io/pod-index"], "0");
    assert_eq!(pod["metadata"]["labels"]["statefulset.kubernetes.io/pod-name"], "web-0");
    cluster.bind("web-0").await;
    cluster.ready("web-0").await;
    cluster.until_picture(&["web-0 web:1 ready", "web-1 web:1"]).await;
    cluster.bind("web-1").await;
    cluster.ready("web-1").await;
    until("the status says so", || async {
        let status = cluster.status_of_stateful_set().await;
        (status["readyReplicas"] == 2 && status["currentReplicas"] == 2).then_some(())
    })
    .await;
    let status = cluster.status_of_stateful_set().await;
    assert_eq!(status["currentRevision"], status["updateRevision"]);
    assert_eq!(pod["metadata"]["labels"]["controller-revision-hash"], status["currentRevision"]);
    // Scaled through the subresource, while the first one is ill: nothing goes.
    cluster.set_phase("web-0", "Pending").await;
    let scale = json!({"kind": "Scale", "apiVersion": "autoscaling/v1",
        "metadata": {"name": "web", "namespace": "default"}, "spec": {"replicas": 1}});
    let sets = cluster.client.dynamic(ResourceRef::of::<StatefulSet>(), Some("default"));
    let scale: Scale = serde_json::from_value(scale).unwrap();
    sets.replace_subresource("web", "scale", &scale).await.unwrap();
    until("the change is observed", || async {
        (cluster.status_of_stateful_set().await["observedGeneration"] == 2).then_some(())
    })
    .await;
    cluster.until_picture(&["web-0 web:1", "web-1 web:1 ready"]).await;
    cluster.ready("web-0").await;
    cluster.until_picture(&["web-0 web:1 ready", "web-1 web:1 ready going"]).await;
    cluster.gone("web-1").await;
    cluster.until_picture(&["web-0 web:1 ready"]).await;
    until("the events are told", || async {
        let api = cluster.client.api::<Event>(Some("default"));
        let events = api.list(&ListParams::default()).await.unwrap().items;
        let told = |text: &str| events.iter().any(|e| e.message.as_deref() == Some(text));
        (told("create Pod web-1 in StatefulSet web successful")
            && told("delete Pod web-1 in StatefulSet web successful"))
        .then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_canary_is_phased_in_completed_and_rolled_back() {
    let cluster = cluster().await;
    let rolling = |partition: i32| json!({"type": "RollingUpdate", "rollingUpdate": {"partition": partition}});
    cluster
        .create_stateful_set(json!({"replicas": 3, "podManagementPolicy": "Parallel",
        "updateStrategy": rolling(3)}))
        .await;
    cluster.until_picture(&["web-0 web:1", "web-1 web:1", "web-2 web:1"]).await;
    for pod in ["web-0", "web-1", "web-2"] {
        cluster.ready(pod).await;
    }
    let all = ["web-0 web:1 ready", "web-1 web:1 ready", "web-2 web:1 ready"];
    cluster.until_picture(&all).await;
    cluster.change_stateful_set(json!({"template": template("web:2")})).await;
    until("there is another revision", || async {
        let status = cluster.status_of_stateful_set().await;
        (status["currentRevision"] != status["updateRevision"]).then_some(())
    })
    .await;
    cluster.until_picture(&all).await;
    cluster.change_stateful_set(json!({"updateStrategy": rolling(2)})).await;
    cluster.until_picture(&[all[0], all[1], "web-2 web:2"]).await;
    cluster.ready("web-2").await;
    // Whoever is deleted comes back on its side of the partition.
    let pods = cluster.client.api::<Pod>(Some("default"));
    pods.delete("web-0", &DeleteParams::default()).await.unwrap();
    pods.delete("web-2", &DeleteParams::default()).await.unwrap();
    cluster.until_picture(&["web-0 web:1", all[1], "web-2 web:2"]).await;
    cluster.ready("web-0").await;
    cluster.ready("web-2").await;
    cluster.change_stateful_set(json!({"updateStrategy": rolling(0)})).await;
    cluster.until_picture(&[all[0], "web-1 web:2", "web-2 web:2 ready"]).await;
    cluster.ready("web-1").await;
    cluster.until_picture(&["web-0 web:2", "web-1 web:2 ready", "web-2 web:2 ready"]).await;
    cluster.ready("web-0").await;
    until("the rollout is complete", || async {
        let status = cluster.status_of_stateful_set().await;
        (status["currentRevision"] == status["updateRevision"]).then_some(())
    })
    .await;
    assert_eq!(cluster.revisions().await, [1, 2]);
    cluster.change_stateful_set(json!({"template": template("web:1")})).await;
    cluster.until_picture(&["web-0 web:2 ready", "web-1 web:2 ready", "web-2 web:1"]).await;
    until("the old revision is the newest", || async {
        (cluster.revisions().await == [2, 3]).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_pod_is_made_anew_and_a_stranger_with_its_name_is_waited_for() {
    let cluster = cluster().await;
    let pods = cluster.client.api::<Pod>(Some("default"));
    let stranger = json!({"metadata": {"name": "web-0"}, "spec": {"containers": [
        {"name": "c", "image": "other:1"}]}});
    let stranger: Pod = serde_json::from_value(stranger).unwrap();
    // The account of pods comes a moment after its namespace.
    until("a pod is let in", || async { pods.create(&stranger).await.ok() }).await;
    cluster.create_stateful_set(json!({"replicas": 1})).await;
    until("the set knows that it has none", || async {
        (cluster.status_of_stateful_set().await["replicas"] == 0).then_some(())
    })
    .await;
    pods.delete("web-0", &DeleteParams::default()).await.unwrap();
    cluster.until_picture(&["web-0 web:1"]).await;
    let first = cluster.pods_of_stateful_set().await[0].metadata.uid.clone();
    cluster.set_phase("web-0", "Failed").await;
    until("another pod has the name", || async {
        let pods = cluster.pods_of_stateful_set().await;
        (pods.len() == 1 && pods[0].metadata.uid != first).then_some(())
    })
    .await;
    // Released when it matches no more, adopted when it does.
    let label = |value: &str| Patch::Merge(json!({"metadata": {"labels": {"app": value}}}));
    pods.patch("web-0", &label("else")).await.unwrap();
    until("the pod is released", || async {
        pods.get("web-0").await.unwrap().metadata.owner_references.is_none().then_some(())
    })
    .await;
    pods.patch("web-0", &label("web")).await.unwrap();
    until("the pod is adopted", || async {
        pods.get("web-0").await.unwrap().metadata.owner_references.is_some().then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn claims_stay_or_go_as_the_set_says() {
    let cluster = cluster().await;
    let claim = |name: &str| {
        json!({"metadata": {"name": name}, "spec": {
        "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}})
    };
    cluster
        .create_stateful_set(json!({"replicas": 2, "podManagementPolicy": "Parallel",
        "volumeClaimTemplates": [claim("www")],
        "persistentVolumeClaimRetentionPolicy": {"whenScaled": "Delete"}}))
        .await;
    cluster.until_picture(&["web-0 web:1", "web-1 web:1"]).await;
    let made = cluster.claim_of_stateful_set("www-web-1").await.unwrap();
    assert_eq!(made.metadata.labels.unwrap()["app"], "web");
    assert!(made.metadata.owner_references.is_none());
    // A claim that a pending pod lost is made again.
    let claims = cluster.client.api::<PersistentVolumeClaim>(Some("default"));
    let remove = json!({"metadata": {"finalizers": null}});
    claims.patch("www-web-1", &Patch::Merge(remove.clone())).await.unwrap();
    claims.delete("www-web-1", &DeleteParams::default()).await.unwrap();
    let _ = claims.patch("www-web-1", &Patch::Merge(remove)).await;
    until("the claim is back", || async {
        let held = cluster.claim_of_stateful_set("www-web-1").await?;
        (held.metadata.uid != made.metadata.uid).then_some(())
    })
    .await;
    cluster.bind("web-1").await;
    cluster.change_stateful_set(json!({"replicas": 1})).await;
    until("the claim goes with the pod", || async {
        let owners = cluster.claim_of_stateful_set("www-web-1").await?.metadata.owner_references?;
        (owners[0].kind == "Pod" && owners[0].name == "web-1").then_some(())
    })
    .await;
    cluster
        .change_stateful_set(json!({"persistentVolumeClaimRetentionPolicy":
        {"whenScaled": "Retain", "whenDeleted": "Delete"}}))
        .await;
    until("the claim of the other one goes with the set", || async {
        let owners = cluster.claim_of_stateful_set("www-web-0").await?.metadata.owner_references?;
        (owners[0].kind == "StatefulSet").then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_the_strategy_on_delete_pods_are_updated_by_who_deletes_them() {
    let cluster = cluster().await;
    let spec = json!({"replicas": 2, "podManagementPolicy": "Parallel",
        "updateStrategy": {"type": "OnDelete"}});
    cluster.create_stateful_set(spec).await;
    cluster.until_picture(&["web-0 web:1", "web-1 web:1"]).await;
    cluster.ready("web-0").await;
    cluster.ready("web-1").await;
    cluster.change_stateful_set(json!({"template": template("web:2")})).await;
    until("there is another revision", || async {
        let status = cluster.status_of_stateful_set().await;
        (status["currentRevision"] != status["updateRevision"] && status["observedGeneration"] == 2)
            .then_some(())
    })
    .await;
    let pods = cluster.client.api::<Pod>(Some("default"));
    pods.delete("web-1", &DeleteParams::default()).await.unwrap();
    cluster.until_picture(&["web-0 web:1 ready", "web-1 web:2"]).await;
    cluster.ready("web-1").await;
    until("one of two is updated", || async {
        let status = cluster.status_of_stateful_set().await;
        (status["updatedReplicas"] == 1 && status["readyReplicas"] == 2).then_some(())
    })
    .await;
    cluster.until_picture(&["web-0 web:1 ready", "web-1 web:2 ready"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn as_many_pods_are_updated_at_a_time_as_may_be_down() {
    let cluster = cluster().await;
    let spec = json!({"replicas": 4, "podManagementPolicy": "Parallel",
        "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 2}}});
    cluster.create_stateful_set(spec).await;
    let names = ["web-0", "web-1", "web-2", "web-3"];
    cluster
        .until_picture(&names.map(|name| format!("{name} web:1")).each_ref().map(|s| &**s))
        .await;
    for pod in names {
        cluster.ready(pod).await;
    }
    cluster.change_stateful_set(json!({"template": template("web:2")})).await;
    let old = ["web-0 web:1 ready", "web-1 web:1 ready"];
    cluster.until_picture(&[old[0], old[1], "web-2 web:2", "web-3 web:2"]).await;
    // One that is well again is a reason for one more to go.
    cluster.ready("web-3").await;
    cluster.until_picture(&[old[0], "web-1 web:2", "web-2 web:2", "web-3 web:2 ready"]).await;
    cluster.ready("web-2").await;
    cluster
        .until_picture(&["web-0 web:2", "web-1 web:2", "web-2 web:2 ready", "web-3 web:2 ready"])
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_pod_comes_when_this_one_is_ready_for_long_enough() {
    let cluster = cluster().await;
    cluster.create_stateful_set(json!({"replicas": 2, "minReadySeconds": 2})).await;
    cluster.until_picture(&["web-0 web:1"]).await;
    cluster.ready("web-0").await;
    let begun = std::time::Instant::now();
    until("it is ready and not available", || async {
        let status = cluster.status_of_stateful_set().await;
        (status["readyReplicas"] == 1 && status["availableReplicas"] == 0).then_some(())
    })
    .await;
    cluster.until_picture(&["web-0 web:1 ready", "web-1 web:1"]).await;
    // Ready times are whole seconds.
    assert!(begun.elapsed() >= std::time::Duration::from_secs(1), "{:?}", begun.elapsed());
    until("the first is available", || async {
        (cluster.status_of_stateful_set().await["availableReplicas"] == 1).then_some(())
    })
    .await;
}
