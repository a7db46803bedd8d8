//! The add-ons over a real API server.

#![allow(clippy::unwrap_used)]

mod support;

use std::path::Path;

use client::{DeleteParams, ListParams, Patch};
use k8s_openapi::api::core::v1::{ConfigMap, Event, Node, PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::{CSIStorageCapacity, StorageClass};
use serde_json::{Value, json};
use support::{World, until};

fn read<K: serde::de::DeserializeOwned>(value: Value) -> K {
    serde_json::from_value(value).unwrap()
}

impl World {
    async fn until_map(&self, name: &str, want: Option<&str>) {
        let maps = self.admin.api::<ConfigMap>(Some("default"));
        until(&format!("map {name} says {want:?}"), || async {
            let map = maps.get_opt(name).await.unwrap();
            let said = map.and_then(|map| map.data?.get("a").cloned());
            (said.as_deref() == want).then_some(())
        })
        .await;
    }
}

fn map(name: &str, value: &str) -> String {
    format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}}}\ndata: {{a: {value}}}\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn what_lies_in_the_folder_is_applied_kept_in_step_and_pruned() {
    let world = World::new().await;
    let folder = world.dir.path().join("manifests");
    std::fs::create_dir_all(folder.join("sub")).unwrap();
    let definition = "apiVersion: apiextensions.k8s.io/v1\nkind: CustomResourceDefinition\n\
        metadata: {name: things.a.example}\nspec:\n  group: a.example\n  scope: Namespaced\n  \
        names: {plural: things, singular: thing, kind: Thing}\n  versions:\n  - name: v1\n    \
        served: true\n    storage: true\n    schema: {openAPIV3Schema: {type: object, \
        x-kubernetes-preserve-unknown-fields: true}}\n";
    let thing = "apiVersion: a.example/v1\nkind: Thing\nmetadata: {name: t}\n";
    std::fs::write(folder.join("two.yaml"), format!("{}---\n{}", map("one", "x"), map("two", "x")))
        .unwrap();
    // The kind comes after its object, in a folder below.
    std::fs::write(folder.join("sub/kinds.yaml"), format!("{thing}---\n{definition}")).unwrap();
    let (trigger, drain) = base::drain::channel();
    let task = world.deploy(&["metrics-server"], drain);
    world.until_map("two", Some("x")).await;
    until("the thing is there", async || {
        world.admin.get_raw("/apis/a.example/v1/namespaces/default/things/t").await.ok()
    })
    .await;
    // A manifest that came along, and one that is off.
    world.admin.all::<StorageClass>().get("local-path").await.unwrap();
    let service = "/apis/apiregistration.k8s.io/v1/apiservices/v1beta1.metrics.k8s.io";
    assert!(world.admin.get_raw(service).await.is_err());
    // A document goes, another changes.
    std::fs::write(folder.join("two.yaml"), map("one", "w")).unwrap();
    world.until_map("one", Some("w")).await;
    world.until_map("two", None).await;
    // An object that moves to another manifest stays what it is.
    std::fs::write(folder.join("from.yaml"), map("moves", "x")).unwrap();
    world.until_map("moves", Some("x")).await;
    let maps = world.admin.api::<ConfigMap>(Some("default"));
    let uid = maps.get("moves").await.unwrap().metadata.uid;
    std::fs::write(folder.join("at.yaml"), map("moves", "v")).unwrap();
    std::fs::remove_file(folder.join("from.yaml")).unwrap();
    world.until_map("moves", Some("v")).await;
    let memory = ListParams::labels("coracle.io/manifest");
    until("the old manifest is forgotten", async || {
        let held = world.admin.api::<ConfigMap>(Some("kube-system")).list(&memory).await.unwrap();
        let of = |map: &ConfigMap| map.metadata.name.clone().unwrap_or_default();
        (!held.items.iter().any(|map| of(map).contains("from-yaml"))).then_some(())
    })
    .await;
    assert_eq!(maps.get("moves").await.unwrap().metadata.uid, uid);
    // A folder that is made later is watched as well.
    std::fs::create_dir(folder.join("late")).unwrap();
    tokio::time::sleep(std::time::Duration::from_millis(600)).await;
    std::fs::write(
        folder.join("late/m.json"),
        r#"{"apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": "late"}, "data": {"a": "z"}}"#,
    )
    .unwrap();
    world.until_map("late", Some("z")).await;
    // Skipped is left as it is.
    std::fs::write(folder.join("two.yaml.skip"), "").unwrap();
    tokio::time::sleep(std::time::Duration::from_millis(600)).await;
    std::fs::write(folder.join("two.yaml"), map("other", "w")).unwrap();
    trigger.drain();
    task.await.unwrap();
    // What goes while nobody looks is noticed by the next who does.
    std::fs::remove_file(folder.join("late/m.json")).unwrap();
    let (_trigger, drain) = base::drain::channel();
    world.deploy(&["metrics-server", "local-storage"], drain);
    world.until_map("late", None).await;
    world.until_map("one", Some("w")).await;
    world.until_map("other", None).await;
    until("the class is gone", async || {
        world
            .admin
            .all::<StorageClass>()
            .get_opt("local-path")
            .await
            .unwrap()
            .is_none()
            .then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_that_is_wrong_says_so_and_holds_nobody_up() {
    let world = World::new().await;
    let folder = world.dir.path().join("manifests");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("a.yaml"), "a: [").unwrap();
    std::fs::write(
        folder.join("b.yaml"),
        "apiVersion: x.example/v1\nkind: Nope\nmetadata: {name: nn}\n",
    )
    .unwrap();
    std::fs::write(folder.join("c.yaml"), map("good", "x")).unwrap();
    let (_trigger, drain) = base::drain::channel();
    world.deploy(&[], drain);
    world.until_map("good", Some("x")).await;
    for (reason, want) in [
        ("ParseManifestFailed", "Parse manifest a.yaml failed: document 1: "),
        ("ApplyManifestFailed", "no matches for kind \"Nope\" in version \"x.example/v1\""),
        ("AppliedManifest", "Applied manifest"),
    ] {
        let only = ListParams::fields(format!("reason={reason}"));
        let said = until(&format!("there is an event {reason}"), || async {
            let events = world.admin.all::<Event>().list(&only).await.unwrap();
            events.items.into_iter().next()?.message
        })
        .await;
        assert!(said.contains(want), "{said}");
    }
}

/// A cluster with local storage on the node `m`.
async fn storage(world: &World) -> std::path::PathBuf {
    storage_at(world, world.dir.path().join("storage")).await
}

async fn storage_at(world: &World, folder: std::path::PathBuf) -> std::path::PathBuf {
    let (trigger, drain) = base::drain::channel();
    std::mem::forget(trigger);
    world.deploy(&["metrics-server"], drain);
    until("the class is there", async || {
        world.admin.all::<StorageClass>().get_opt("local-path").await.unwrap()
    })
    .await;
    let node = json!({"metadata": {"name": "m", "labels": {"kubernetes.io/hostname": "m"}}});
    world.admin.all::<Node>().create(&read(node)).await.unwrap();
    let client = world.account(addons::local_path::provisioner::ACCOUNT);
    tokio::spawn(addons::local_path::provisioner::run(
        world.shared.clone(),
        client,
        world.drain.clone(),
    ));
    let node = world.user("system:node:m", &["system:nodes"]);
    tokio::spawn(addons::local_path::keeper::run(
        world.shared.acting_as(node),
        "m".into(),
        folder.clone(),
        world.drain.clone(),
    ));
    until("the node offers its disk", async || {
        let node = world.admin.all::<Node>().get("m").await.unwrap();
        node.metadata.annotations?.get("coracle.io/local-path").cloned()
    })
    .await;
    folder
}

async fn bound(world: &World, name: &str) -> PersistentVolume {
    let claims = world.admin.api::<PersistentVolumeClaim>(Some("default"));
    let claim = json!({"metadata": {"name": name, "annotations":
        {"volume.kubernetes.io/selected-node": "m"}}, "spec": {"accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": "1Mi"}}}});
    claims.create(&read(claim)).await.unwrap();
    until("the claim is bound", || async {
        let claim = claims.get(name).await.unwrap();
        let volume = claim.spec?.volume_name?;
        (claim.status?.phase? == "Bound").then_some(())?;
        world.admin.all::<PersistentVolume>().get_opt(&volume).await.unwrap()
    })
    .await
}

/// A file system in memory has no project quotas.
#[tokio::test(flavor = "multi_thread")]
async fn a_size_that_nothing_enforces_is_told_to_who_claimed_it() {
    let world = World::new().await;
    let memory = tempfile::tempdir_in("/dev/shm").unwrap();
    storage_at(&world, memory.path().join("storage")).await;
    let volume = bound(&world, "c").await;
    let only = ListParams::fields("reason=SizeNotEnforced,involvedObject.name=c");
    let said = until("it is told", async || {
        let events = world.admin.api::<Event>(Some("default")).list(&only).await.unwrap();
        events.items.into_iter().next()
    })
    .await;
    assert_eq!(said.involved_object.kind.as_deref(), Some("PersistentVolumeClaim"));
    let (text, name) = (said.message.unwrap(), volume.metadata.name.unwrap());
    assert!(text.contains(&format!("the size of volume {name} is not enforced")), "{text}");
    assert!(text.contains("mount it with prjquota"), "{text}");
}

async fn until_there(path: &Path, there: bool) {
    until(&format!("{} is there: {there}", path.display()), || async {
        (path.exists() == there).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_gets_a_directory_that_goes_or_stays_as_its_policy_says() {
    let world = World::new().await;
    let folder = storage(&world).await;
    let volumes = world.admin.all::<PersistentVolume>();
    let claims = world.admin.api::<PersistentVolumeClaim>(Some("default"));
    for (name, policy) in [("goes", "Delete"), ("stays", "Retain")] {
        let volume = bound(&world, name).await;
        let volume_name = volume.metadata.name.clone().unwrap();
        let place = folder.join(format!("{volume_name}_default_{name}"));
        until_there(&place, true).await;
        std::fs::write(place.join("data"), "kept").unwrap();
        let patch = json!({"spec": {"persistentVolumeReclaimPolicy": policy}});
        volumes.patch(&volume_name, &Patch::Merge(patch)).await.unwrap();
        claims.delete(name, &DeleteParams::default()).await.unwrap();
        if policy == "Delete" {
            until_there(&place, false).await;
            until("the volume is gone", async || {
                volumes.get_opt(&volume_name).await.unwrap().is_none().then_some(())
            })
            .await;
            continue;
        }
        until("the volume is Released", async || {
            let volume = volumes.get(&volume_name).await.unwrap();
            (volume.status?.phase? == "Released").then_some(())
        })
        .await;
        assert!(place.join("data").exists());
        // Taken away by hand, its data stays.
        volumes.delete(&volume_name, &DeleteParams::default()).await.unwrap();
        until("the volume is gone", async || {
            volumes.get_opt(&volume_name).await.unwrap().is_none().then_some(())
        })
        .await;
        assert!(place.join("data").exists());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_grows_and_one_of_no_node_is_released() {
    let world = World::new().await;
    storage(&world).await;
    let volume = bound(&world, "c").await;
    let claims = world.admin.api::<PersistentVolumeClaim>(Some("default"));
    let more = json!({"spec": {"resources": {"requests": {"storage": "3Mi"}}}});
    claims.patch("c", &Patch::Merge(more)).await.unwrap();
    until("the claim has grown", async || {
        let claim = claims.get("c").await.unwrap();
        (claim.status?.capacity?.get("storage")?.0 == "3Mi").then_some(())
    })
    .await;
    // The node goes, and with it the data; the volume's object must not stay for ever.
    world.admin.all::<Node>().delete("m", &DeleteParams::default()).await.unwrap();
    claims.delete("c", &DeleteParams::default()).await.unwrap();
    let name = volume.metadata.name.unwrap();
    until("the volume is gone", async || {
        let volume = world.admin.all::<PersistentVolume>().get_opt(&name).await.unwrap();
        volume.is_none().then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_nodes_room_is_told_for_each_class_and_goes_with_it() {
    let world = World::new().await;
    let folder = storage(&world).await;
    let rooms = world.admin.api::<CSIStorageCapacity>(Some("kube-system"));
    let count = async |want: usize| {
        until(&format!("{want} rooms are told"), || async {
            let held = rooms.list(&ListParams::default()).await.unwrap().items;
            (held.len() == want).then_some(held)
        })
        .await
    };
    let room = count(1).await.pop().unwrap();
    assert_eq!(room.storage_class_name, "local-path");
    let (total, _) = sys::fs::capacity(&folder).unwrap();
    let told: kinds::meta::quantity::Quantity =
        room.maximum_volume_size.unwrap().0.parse().unwrap();
    assert_eq!(told.value().unsigned_abs(), total);
    assert_eq!(room.node_topology.unwrap().match_labels.unwrap()["kubernetes.io/hostname"], "m");
    // What happens on an idle node writes nothing.
    let before = rooms.list(&ListParams::default()).await.unwrap().items;
    let nodes = world.admin.all::<Node>();
    let beat = Patch::Merge(json!({"metadata": {"labels": {"beat": "1"}}}));
    nodes.patch("m", &beat).await.unwrap();
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    assert_eq!(rooms.list(&ListParams::default()).await.unwrap().items, before);
    // Somebody removes it: it is told again.
    let name = before[0].metadata.name.clone().unwrap();
    rooms.delete(&name, &DeleteParams::default()).await.unwrap();
    count(1).await;
    let class = json!({"metadata": {"name": "second"}, "provisioner": "coracle.io/local-path"});
    world.admin.all::<StorageClass>().create(&read(class)).await.unwrap();
    count(2).await;
    world.admin.all::<StorageClass>().delete("second", &DeleteParams::default()).await.unwrap();
    count(1).await;
    nodes.delete("m", &DeleteParams::default()).await.unwrap();
    count(0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_are_a_group_like_any_other() {
    use addons::metrics;
    let world = World::new().await;
    let serves = metrics::MetricsServer::new(&world.shared, world.account(metrics::ACCOUNT));
    world.server.aggregator.reside(api::aggregate::Resident {
        group: metrics::GROUP.into(),
        version: metrics::VERSION.into(),
        discovery: metrics::discovery(),
        document: metrics::document(),
        serves: std::sync::Arc::new(serves),
    });
    let nodes = "/apis/metrics.k8s.io/v1beta1/nodes";
    assert!(world.admin.get_raw(nodes).await.is_err(), "nobody has registered it yet");
    let (_trigger, drain) = base::drain::channel();
    world.deploy(&[], drain);
    let list = until("the group is served", async || world.admin.get_raw(nodes).await.ok()).await;
    let list: Value = serde_json::from_slice(&list).unwrap();
    assert_eq!(list["kind"], "NodeMetricsList");
    let groups: Value =
        serde_json::from_slice(&world.admin.get_raw("/apis").await.unwrap()).unwrap();
    let groups = groups["groups"].as_array().unwrap();
    let group = groups.iter().find(|group| group["name"] == metrics::GROUP).unwrap();
    assert_eq!(group["preferredVersion"]["groupVersion"], "metrics.k8s.io/v1beta1");
    let resources = world.admin.get_raw("/apis/metrics.k8s.io/v1beta1").await.unwrap();
    let resources: Value = serde_json::from_slice(&resources).unwrap();
    assert_eq!(resources["resources"][1]["kind"], "PodMetrics");
    let missing = world.admin.get_raw(&format!("{nodes}/x")).await.unwrap_err();
    assert_eq!(missing.to_string(), "nodemetrics.metrics.k8s.io \"x\" not found");
    let wrong = format!("{nodes}?fieldSelector=spec.x%3D1");
    assert_eq!(world.admin.get_raw(&wrong).await.unwrap_err().code(), 400);
    documents_tell_of_metrics(&world).await;
    // Whoever may not, may not.
    let stranger = world.user("stranger", &[]);
    assert_eq!(stranger.get_raw(nodes).await.unwrap_err().code(), 403);
}

/// Both documents have the group, and what it refers to.
async fn documents_tell_of_metrics(world: &World) {
    let read = async |path: &str| -> Value {
        serde_json::from_slice(&world.admin.get_raw(path).await.unwrap()).unwrap()
    };
    let pods = "/apis/metrics.k8s.io/v1beta1/namespaces/{namespace}/pods/{name}";
    let kind = json!({"group": "metrics.k8s.io", "version": "v1beta1", "kind": "PodMetrics"});
    let named = "io.k8s.metrics.pkg.apis.metrics.v1beta1.PodMetrics";
    let whole = read("/openapi/v2").await;
    assert_eq!(whole["paths"][pods]["get"]["x-kubernetes-group-version-kind"], kind);
    assert_eq!(whole["definitions"][named]["x-kubernetes-group-version-kind"], json!([kind]));
    let index = read("/openapi/v3").await;
    let url = &index["paths"]["apis/metrics.k8s.io/v1beta1"]["serverRelativeURL"];
    let document = read(url.as_str().unwrap()).await;
    assert_eq!(document["paths"][pods]["get"]["x-kubernetes-group-version-kind"], kind);
    let schemas = &document["components"]["schemas"];
    let meta = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";
    assert!(schemas[named].is_object() && schemas[meta].is_object(), "{schemas}");
    // Nothing is referred to that is not there.
    let text = document.to_string();
    for reference in text.split("#/components/schemas/").skip(1) {
        let name = reference.split('"').next().unwrap();
        assert!(schemas[name].is_object(), "{name}");
    }
}
