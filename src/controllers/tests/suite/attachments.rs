//! Volumes of CSI drivers are attached to where their pods are. The suite plays the driver.

use crate::support::{cluster, until};
use client::{Client, DeleteParams, ListParams, Patch};
use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::{CSIDriver, VolumeAttachment};
use serde_json::{Value, json};

/// Claim `c`, for volume `v` of a driver.
async fn a_claim_of_a_disk(client: &Client) {
    let volume = json!({"metadata": {"name": "v"}, "spec": {"accessModes": ["ReadWriteOnce"],
        "capacity": {"storage": "1Gi"}, "csi": {"driver": "d.example", "volumeHandle": "h"}}});
    let volume = serde_json::from_value(volume).unwrap();
    client.all::<PersistentVolume>().create(&volume).await.unwrap();
    let claim = json!({"metadata": {"name": "c"}, "spec": {"accessModes": ["ReadWriteOnce"],
        "storageClassName": "", "resources": {"requests": {"storage": "1Gi"}}}});
    let claims = client.api::<PersistentVolumeClaim>(Some("default"));
    claims.create(&serde_json::from_value(claim).unwrap()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_is_attached_for_its_pod_and_detached_after_it() {
    let cluster = cluster().await;
    let client = &cluster.client;
    let node = json!({"metadata": {"name": "m"}});
    client.all::<Node>().create(&serde_json::from_value(node).unwrap()).await.unwrap();
    a_claim_of_a_disk(client).await;
    let pods = client.api::<Pod>(Some("default"));
    for name in ["p", "q"] {
        let pod = json!({"metadata": {"name": name}, "spec": {"nodeName": "m",
            "containers": [{"name": "c", "image": "i"}],
            "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}]}});
        let pod: Pod = serde_json::from_value(pod).unwrap();
        until("the pod is let in", async || pods.create(&pod).await.ok()).await;
    }
    let attachments = client.all::<VolumeAttachment>();
    let made = until("it is to be attached", async || {
        attachments.list(&ListParams::default()).await.unwrap().items.pop()
    })
    .await;
    assert_eq!((made.spec.attacher.as_str(), made.spec.node_name.as_str()), ("d.example", "m"));
    let name = made.metadata.name.unwrap();
    let attached = Patch::Merge(json!({"status": {"attached": true}}));
    attachments.patch_status(&name, &attached).await.unwrap();
    let told = async || -> Value {
        let node = client.all::<Node>().get("m").await.unwrap();
        serde_json::to_value(node).unwrap()["status"]["volumesAttached"].clone()
    };
    until("the node is told", async || {
        (told().await[0]["name"] == "kubernetes.io/csi/d.example^h").then_some(())
    })
    .await;
    for name in ["p", "q"] {
        let text = cluster.until_event(name, "SuccessfulAttachVolume").await;
        assert_eq!(text, "AttachVolume.Attach succeeded for volume \"v\" ");
    }
    let text = base::metrics::render(base::metrics::Format::Prometheus);
    for line in [
        "storage_count_attachable_volumes_in_use{node=\"m\",volume_plugin=\"kubernetes.io/csi:d.example\"} 2",
        "attachdetach_controller_total_volumes{plugin_name=\"kubernetes.io/csi:d.example\",state=\"desired_state_of_world\"} 1",
        "attachdetach_controller_total_volumes{plugin_name=\"kubernetes.io/csi:d.example\",state=\"actual_state_of_world\"} 1",
        "pv_collector_bound_pv_count{storage_class=\"\"} 1",
        "pv_collector_total_pv_count{plugin_name=\"kubernetes.io/csi:d.example\",volume_mode=\"Filesystem\"} 1",
        "pv_collector_bound_pvc_count{namespace=\"default\",storage_class=\"\",volume_attributes_class=\"\"} 1",
    ] {
        assert!(text.lines().any(|it| it == line), "{line}: {text}");
    }
    pods.delete("q", &DeleteParams::default().grace(0)).await.unwrap();
    // While it is mounted it stays.
    let mounted = json!({"status": {"volumesInUse": ["kubernetes.io/csi/d.example^h"]}});
    client.all::<Node>().patch_status("m", &Patch::Merge(mounted)).await.unwrap();
    pods.delete("p", &DeleteParams::default().grace(0)).await.unwrap();
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    assert!(attachments.get_opt(&name).await.unwrap().is_some());
    let free = json!({"status": {"volumesInUse": []}});
    client.all::<Node>().patch_status("m", &Patch::Merge(free)).await.unwrap();
    until("it is detached", async || {
        attachments.get_opt(&name).await.unwrap().is_none().then_some(())
    })
    .await;
    assert!(told().await[0].is_null());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_driver_that_turns_out_to_attach_nothing_has_its_attachments_taken_away() {
    let cluster = cluster().await;
    let client = &cluster.client;
    let node = json!({"metadata": {"name": "m"}});
    client.all::<Node>().create(&serde_json::from_value(node).unwrap()).await.unwrap();
    a_claim_of_a_disk(client).await;
    let pod = json!({"metadata": {"name": "p"}, "spec": {"nodeName": "m",
        "containers": [{"name": "c", "image": "i"}],
        "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}]}});
    let pod: Pod = serde_json::from_value(pod).unwrap();
    let pods = client.api::<Pod>(Some("default"));
    until("the pod is let in", async || pods.create(&pod).await.ok()).await;
    let attachments = client.all::<VolumeAttachment>();
    let count = async |wanted: usize| {
        let held = attachments.list(&ListParams::default()).await.unwrap().items.len();
        (held == wanted).then_some(())
    };
    until("it is to be attached", async || count(1).await).await;
    let driver = json!({"metadata": {"name": "d.example"}, "spec": {"attachRequired": false}});
    let drivers = client.all::<CSIDriver>();
    drivers.create(&serde_json::from_value(driver).unwrap()).await.unwrap();
    until("it is not to be attached any more", async || count(0).await).await;
    drivers.delete("d.example", &DeleteParams::default()).await.unwrap();
    until("it is to be attached again", async || count(1).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_of_one_node_waits_for_the_other_and_says_so() {
    let cluster = cluster().await;
    let client = &cluster.client;
    a_claim_of_a_disk(client).await;
    let pods = client.api::<Pod>(Some("default"));
    let attachments = client.all::<VolumeAttachment>();
    let on = async || -> Vec<String> {
        let held = attachments.list(&ListParams::default()).await.unwrap().items;
        held.into_iter().map(|held| held.spec.node_name).collect()
    };
    for (name, node) in [("p", "m"), ("q", "n")] {
        let object = json!({"metadata": {"name": node}});
        client.all::<Node>().create(&serde_json::from_value(object).unwrap()).await.unwrap();
        let pod = json!({"metadata": {"name": name}, "spec": {"nodeName": node,
            "containers": [{"name": "c", "image": "i"}],
            "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}]}});
        let pod: Pod = serde_json::from_value(pod).unwrap();
        until("the pod is let in", async || pods.create(&pod).await.ok()).await;
        until("the first is attached", async || (on().await == ["m"]).then_some(())).await;
    }
    let text = "Multi-Attach error for volume \"v\" Volume is already used by pod(s) p";
    cluster.until_told(text).await;
    assert_eq!(on().await, ["m"]);
    pods.delete("p", &DeleteParams::default().grace(0)).await.unwrap();
    until("the second has it", async || (on().await == ["n"]).then_some(())).await;

    // A node that was lost lets go of what it said it used.
    let used = json!({"status": {"volumesInUse": ["kubernetes.io/csi/d.example^h"]}});
    client.all::<Node>().patch_status("n", &Patch::Merge(used)).await.unwrap();
    let lost = json!({"spec": {"taints": [{"key": "node.kubernetes.io/out-of-service",
        "effect": "NoExecute"}]}});
    client.all::<Node>().patch("n", &Patch::Merge(lost)).await.unwrap();
    pods.delete("q", &DeleteParams::default().grace(0)).await.unwrap();
    until("it is detached", async || on().await.is_empty().then_some(())).await;
    let line = "attachdetach_controller_forced_detaches{reason=\"out-of-service\"} 1";
    until("that is counted", async || {
        let text = base::metrics::render(base::metrics::Format::Prometheus);
        text.lines().any(|it| it == line).then_some(())
    })
    .await;
}
