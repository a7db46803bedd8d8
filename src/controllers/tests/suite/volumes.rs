//! Claims and volumes find each other, hold what is used, and let go.

use crate::support::{Cluster, cluster, until};
use client::{DeleteParams, ListParams, Patch};
use k8s_openapi::api::core::v1::{Event, PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::{StorageClass, VolumeAttributesClass};
use serde_json::{Value, json};

impl Cluster {
    async fn volume(&self, name: &str, size: &str, spec: Value) {
        let mut volume = json!({"metadata": {"name": name}, "spec": {
            "accessModes": ["ReadWriteOnce"], "capacity": {"storage": size},
            "hostPath": {"path": format!("/data/{name}")}, "persistentVolumeReclaimPolicy": "Retain"}});
        merge(&mut volume["spec"], spec);
        let volume = serde_json::from_value(volume).unwrap();
        self.client.all::<PersistentVolume>().create(&volume).await.unwrap();
    }

    async fn claim_of_volume(&self, name: &str, spec: Value) {
        let mut claim = json!({"metadata": {"name": name}, "spec": {
            "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}});
        merge(&mut claim["spec"], spec);
        let claim = serde_json::from_value(claim).unwrap();
        self.claims_of_volume().create(&claim).await.unwrap();
    }

    fn claims_of_volume(&self) -> client::Api<PersistentVolumeClaim> {
        self.client.api(Some("default"))
    }

    async fn class(&self, class: Value) {
        let class: StorageClass = serde_json::from_value(class).unwrap();
        self.client.all::<StorageClass>().create(&class).await.unwrap();
    }

    async fn pod_of_volume(&self, name: &str, spec: Value) {
        let mut pod = json!({"metadata": {"name": name},
            "spec": {"containers": [{"name": "c", "image": "i"}]}});
        merge(&mut pod["spec"], spec);
        let pod: Pod = serde_json::from_value(pod).unwrap();
        let pods = self.client.api::<Pod>(Some("default"));
        // The account of pods comes a moment after its namespace.
        until("the pod is let in", || async { pods.create(&pod).await.ok() }).await;
    }

    async fn until_claim(&self, name: &str, phase: &str) -> PersistentVolumeClaim {
        until(&format!("claim {name} is {phase}"), || async {
            let claim = self.claims_of_volume().get(name).await.unwrap();
            (claim.status.as_ref()?.phase.as_deref() == Some(phase)).then_some(claim)
        })
        .await
    }

    async fn until_volume(&self, name: &str, phase: &str) -> PersistentVolume {
        until(&format!("volume {name} is {phase}"), || async {
            let volume = self.client.all::<PersistentVolume>().get(name).await.unwrap();
            (volume.status.as_ref()?.phase.as_deref() == Some(phase)).then_some(volume)
        })
        .await
    }

    pub async fn until_event(&self, about: &str, reason: &str) -> String {
        let only = ListParams::fields(format!("involvedObject.name={about},reason={reason}"));
        until(&format!("{about} has an event {reason}"), || async {
            let events = self.client.all::<Event>().list(&only).await.unwrap();
            events.items.into_iter().next()?.message
        })
        .await
    }

    async fn until_no_claim(&self, name: &str) {
        until(&format!("claim {name} is gone"), || async {
            self.claims_of_volume().get_opt(name).await.unwrap().is_none().then_some(())
        })
        .await;
    }
}

fn merge(into: &mut Value, from: Value) {
    for (key, value) in from.as_object().unwrap() {
        into[key] = value.clone();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_smallest_volume_that_suits_is_bound_and_kept_when_its_claim_goes() {
    let cluster = cluster().await;
    for (name, size) in [("large", "9Gi"), ("right", "2Gi"), ("small", "1Mi")] {
        cluster.volume(name, size, json!({})).await;
        cluster.until_volume(name, "Available").await;
    }
    cluster.claim_of_volume("c", json!({"storageClassName": ""})).await;
    let claim = cluster.until_claim("c", "Bound").await;
    let value = serde_json::to_value(&claim).unwrap();
    assert_eq!(value["spec"]["volumeName"], "right");
    assert_eq!(value["status"]["capacity"]["storage"], "2Gi");
    assert_eq!(value["status"]["accessModes"], json!(["ReadWriteOnce"]));
    let annotations = &value["metadata"]["annotations"];
    assert_eq!(annotations["pv.kubernetes.io/bind-completed"], "yes");
    assert_eq!(annotations["pv.kubernetes.io/bound-by-controller"], "yes");
    let volume = cluster.until_volume("right", "Bound").await;
    let volume = serde_json::to_value(&volume).unwrap();
    assert_eq!(volume["spec"]["claimRef"]["uid"], value["metadata"]["uid"]);

    // A pod on a node holds the claim, and the claim the volume.
    let uses = json!({"nodeName": "m", "volumes": [
        {"name": "v", "persistentVolumeClaim": {"claimName": "c"}}]});
    cluster.pod_of_volume("user", uses).await;
    cluster.claims_of_volume().delete("c", &DeleteParams::default()).await.unwrap();
    let volumes = cluster.client.all::<PersistentVolume>();
    volumes.delete("right", &DeleteParams::default()).await.unwrap();
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    assert!(
        cluster.claims_of_volume().get("c").await.unwrap().metadata.deletion_timestamp.is_some()
    );
    let pods = cluster.client.api::<Pod>(Some("default"));
    pods.delete("user", &DeleteParams::default().grace(0)).await.unwrap();
    cluster.until_no_claim("c").await;
    until("the volume is gone", async || {
        volumes.get_opt("right").await.unwrap().is_none().then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_that_comes_later_or_is_named_is_bound() {
    let cluster = cluster().await;
    cluster.claim_of_volume("early", json!({"storageClassName": ""})).await;
    cluster.until_claim("early", "Pending").await;
    let why = cluster.until_event("early", "FailedBinding").await;
    assert_eq!(why, "no persistent volumes available for this claim and no storage class is set");
    cluster.volume("late", "1Gi", json!({})).await;
    cluster.until_claim("early", "Bound").await;
    // A retained volume of a claim that is gone is not given to anybody.
    cluster.claims_of_volume().delete("early", &DeleteParams::default()).await.unwrap();
    cluster.until_volume("late", "Released").await;
    cluster.claim_of_volume("chooses", json!({"storageClassName": "", "volumeName": "kept"})).await;
    cluster
        .volume(
            "kept",
            "1Gi",
            json!({"claimRef":
        {"namespace": "default", "name": "chooses"}}),
        )
        .await;
    cluster.until_claim("chooses", "Bound").await;
    cluster.until_volume("kept", "Bound").await;
    // Two cannot have the same one.
    cluster.claim_of_volume("second", json!({"storageClassName": "", "volumeName": "kept"})).await;
    let why = cluster.until_event("second", "FailedBinding").await;
    assert_eq!(why, "volume \"kept\" already bound to a different claim.");
    // And who loses the volume is lost.
    let volumes = cluster.client.all::<PersistentVolume>();
    let bare = Patch::Merge(json!({"metadata": {"finalizers": null}}));
    volumes.delete("kept", &DeleteParams::default()).await.unwrap();
    volumes.patch("kept", &bare).await.unwrap();
    cluster.until_claim("chooses", "Lost").await;
    cluster.until_event("chooses", "ClaimLost").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_without_a_class_takes_the_default_that_comes_later() {
    let cluster = cluster().await;
    cluster.claim_of_volume("c", json!({})).await;
    cluster.until_claim("c", "Pending").await;
    cluster
        .class(json!({"metadata": {"name": "d", "annotations":
            {"storageclass.kubernetes.io/is-default-class": "true"}},
            "provisioner": "a.example/b", "volumeBindingMode": "WaitForFirstConsumer"}))
        .await;
    let why = cluster.until_event("c", "WaitForFirstConsumer").await;
    assert_eq!(why, "waiting for first consumer to be created before binding");
    let claim = cluster.claims_of_volume().get("c").await.unwrap();
    assert_eq!(claim.spec.unwrap().storage_class_name.as_deref(), Some("d"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provisioner_is_told_the_node_and_its_volume_is_bound() {
    let cluster = cluster().await;
    cluster
        .class(json!({"metadata": {"name": "d"}, "provisioner": "a.example/b",
            "volumeBindingMode": "WaitForFirstConsumer"}))
        .await;
    let template = json!({"spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "d",
        "resources": {"requests": {"storage": "1Gi"}}}});
    let volumes =
        json!({"volumes": [{"name": "v", "ephemeral": {"volumeClaimTemplate": template}}]});
    cluster.pod_of_volume("p", volumes).await;
    cluster.until_event("p-v", "WaitForPodScheduled").await;
    let selected =
        json!({"metadata": {"annotations": {"volume.kubernetes.io/selected-node": "m"}}});
    cluster.claims_of_volume().patch("p-v", &Patch::Merge(selected)).await.unwrap();
    let claim = until("the provisioner is asked", async || {
        let claim = cluster.claims_of_volume().get("p-v").await.unwrap();
        let annotations = claim.metadata.annotations.clone()?;
        let asked = annotations.get("volume.kubernetes.io/storage-provisioner")?;
        (asked == "a.example/b").then_some(claim)
    })
    .await;
    cluster.until_event("p-v", "ExternalProvisioning").await;
    let spec = json!({"storageClassName": "d", "persistentVolumeReclaimPolicy": "Delete",
        "claimRef": {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "namespace": "default",
            "name": "p-v", "uid": claim.metadata.uid}});
    cluster.volume("made", "1Gi", spec).await;
    let note =
        json!({"metadata": {"annotations": {"pv.kubernetes.io/provisioned-by": "a.example/b"}}});
    let volumes = cluster.client.all::<PersistentVolume>();
    volumes.patch("made", &Patch::Merge(note)).await.unwrap();
    cluster.until_claim("p-v", "Bound").await;
    // The claim is the pod's and goes with it; the volume is left to who made it.
    let pods = cluster.client.api::<Pod>(Some("default"));
    pods.delete("p", &DeleteParams::default().grace(0)).await.unwrap();
    cluster.until_no_claim("p-v").await;
    cluster.until_volume("made", "Released").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_of_somebody_else_is_no_ephemeral_volume() {
    let cluster = cluster().await;
    cluster.claim_of_volume("p-v", json!({"storageClassName": ""})).await;
    let template = json!({"spec": {"accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": "1Gi"}}}});
    let volumes =
        json!({"volumes": [{"name": "v", "ephemeral": {"volumeClaimTemplate": template}}]});
    cluster.pod_of_volume("p", volumes).await;
    assert_eq!(
        cluster.until_event("p", "FailedBinding").await,
        "ephemeral volume v: PVC default/p-v was not created for pod default/p (pod is not owner)"
    );
    let claim = cluster.claims_of_volume().get("p-v").await.unwrap();
    assert_eq!(claim.metadata.owner_references, None, "it is left alone");
}

/// Deleted in the foreground, a pod waits for its own claims, which wait for nobody then.
#[tokio::test(flavor = "multi_thread")]
async fn the_claim_of_a_pod_that_waits_for_it_goes() {
    let cluster = cluster().await;
    let template = json!({"spec": {"accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": "1Gi"}}}});
    let spec = json!({"nodeName": "m",
        "volumes": [{"name": "v", "ephemeral": {"volumeClaimTemplate": template}}]});
    cluster.pod_of_volume("p", spec).await;
    until("the claim is protected", async || {
        let claim = cluster.claims_of_volume().get_opt("p-v").await.unwrap()?;
        claim.metadata.finalizers.filter(|all| !all.is_empty()).map(drop)
    })
    .await;
    let pods = cluster.client.api::<Pod>(Some("default"));
    let holds = json!({"metadata": {"finalizers": ["example.com/holds"]}});
    pods.patch("p", &Patch::Merge(holds)).await.unwrap();
    cluster.claims_of_volume().delete("p-v", &DeleteParams::default()).await.unwrap();
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    let held = cluster.claims_of_volume().get("p-v").await.unwrap();
    assert!(held.metadata.deletion_timestamp.is_some(), "a pod that runs has its claim");
    pods.delete("p", &DeleteParams::default().grace(0)).await.unwrap();
    cluster.until_no_claim("p-v").await;
    assert!(pods.get("p").await.unwrap().metadata.deletion_timestamp.is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_that_nobody_can_delete_fails() {
    let cluster = cluster().await;
    cluster.volume("v", "1Gi", json!({"persistentVolumeReclaimPolicy": "Delete"})).await;
    cluster.claim_of_volume("c", json!({"storageClassName": ""})).await;
    cluster.until_claim("c", "Bound").await;
    cluster.claims_of_volume().delete("c", &DeleteParams::default()).await.unwrap();
    cluster.until_volume("v", "Failed").await;
    let why = cluster.until_event("v", "VolumeFailedDelete").await;
    assert_eq!(why, "host_path deleter only supports /tmp/.+ but received provided /data/v");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_class_of_attributes_stays_while_a_claim_names_it() {
    let cluster = cluster().await;
    let classes = cluster.client.all::<VolumeAttributesClass>();
    let class = json!({"metadata": {"name": "gold"}, "driverName": "x.io",
        "parameters": {"iops": "5"}});
    classes.create(&serde_json::from_value(class).unwrap()).await.unwrap();
    let claims = cluster.client.api::<PersistentVolumeClaim>(Some("default"));
    let claim = json!({"metadata": {"name": "data"}, "spec": {"accessModes": ["ReadWriteOnce"],
        "volumeAttributesClassName": "gold", "storageClassName": "x",
        "resources": {"requests": {"storage": "1Gi"}}}});
    claims.create(&serde_json::from_value(claim).unwrap()).await.unwrap();
    until("the class is protected", || async {
        let finalizers = classes.get("gold").await.unwrap().metadata.finalizers;
        (finalizers? == ["kubernetes.io/vac-protection"]).then_some(())
    })
    .await;
    classes.delete("gold", &client::DeleteParams::default()).await.unwrap();
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    assert!(classes.get_opt("gold").await.unwrap().is_some());
    claims.delete("data", &client::DeleteParams::default()).await.unwrap();
    until("the class is gone", || async {
        classes.get_opt("gold").await.unwrap().is_none().then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_that_is_to_be_used_again_is_emptied_by_a_pod() {
    let cluster = cluster().await;
    let policy = json!({"persistentVolumeReclaimPolicy": "Recycle"});
    cluster.volume("again", "1Gi", policy).await;
    cluster.claim_of_volume("c", json!({"storageClassName": ""})).await;
    cluster.until_claim("c", "Bound").await;
    let uses = json!({"nodeName": "m", "volumes": [
        {"name": "v", "persistentVolumeClaim": {"claimName": "c"}}]});
    cluster.pod_of_volume("user", uses).await;
    // Somebody takes the claim's protection away.
    let claims = cluster.claims_of_volume();
    claims.delete("c", &DeleteParams::default()).await.unwrap();
    let bare = Patch::Merge(json!({"metadata": {"finalizers": null}}));
    claims.patch("c", &bare).await.unwrap();
    let why = cluster.until_event("again", "VolumeFailedRecycle").await;
    assert_eq!(why, "Volume is used by pods: default/user");
    let pods = cluster.client.api::<Pod>(Some("default"));
    assert!(pods.get_opt("recycler-for-again").await.unwrap().is_none());
    pods.delete("user", &DeleteParams::default().grace(0)).await.unwrap();
    let recycler = async || {
        until("there is a pod for it", || async {
            pods.get_opt("recycler-for-again").await.unwrap()
        })
        .await
    };
    let first = recycler().await;
    let spec = serde_json::to_value(&first.spec).unwrap();
    assert_eq!(spec["volumes"][0]["hostPath"]["path"], "/data/again");
    let about = serde_json::to_value(client::recorder::reference(&first)).unwrap();
    let event = json!({"metadata": {"name": "pulling", "namespace": "default"}, "type": "Normal",
        "reason": "Pulling", "message": "Pulling image \"x\"", "involvedObject": about});
    let event: Event = serde_json::from_value(event).unwrap();
    cluster.client.api::<Event>(Some("default")).create(&event).await.unwrap();
    assert_eq!(
        cluster.until_event("again", "RecyclerPod").await,
        "Recycler pod: Pulling image \"x\""
    );
    let end = async |phase: &str| {
        let status = Patch::Merge(json!({"status": {"phase": phase, "message": "no room"}}));
        pods.patch_status("recycler-for-again", &status).await.unwrap();
    };
    end("Failed").await;
    cluster.until_volume("again", "Failed").await;
    let told = "Recycle failed: failed to recycle volume: no room";
    cluster.until_told(told).await;
    until("the pod is gone", async || {
        pods.get_opt("recycler-for-again").await.unwrap().is_none().then_some(())
    })
    .await;
    // The next one comes after upstream's fifteen seconds.
    let second = recycler().await;
    assert_ne!(second.metadata.uid, first.metadata.uid);
    end("Succeeded").await;
    let volume = cluster.until_volume("again", "Available").await;
    assert!(volume.spec.unwrap().claim_ref.is_none());
    assert_eq!(cluster.until_event("again", "VolumeRecycled").await, "Volume recycled");
    cluster.claim_of_volume("next", json!({"storageClassName": ""})).await;
    cluster.until_claim("next", "Bound").await;
}
