//! Volumes of storage drivers: registration, attachment, staging, publishing, and the bad
//! days of drivers and kubelets. The test plays the controller side.

use std::time::{Duration, Instant};

use kubelet::csi::messages::{Ability, AccessType, Mode};
use rpc::Code;
use serde_json::{Value, json};

use crate::csi_driver::{DRIVER, Driver, Fault, Shape};
use crate::volumes::{put_bound, run, told};
use crate::world::{NODE, World};

const OWN_NODE: &str = "/api/v1/nodes/n1";
const CSI_NODE: &str = "/apis/storage.k8s.io/v1/csinodes/n1";

fn describe(world: &World, spec: Value) {
    let path = format!("/apis/storage.k8s.io/v1/csidrivers/{DRIVER}");
    world.api.put(&path, json!({"metadata": {"name": DRIVER}, "spec": spec}));
}

async fn until(what: &str, test: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !test() {
        assert!(Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn in_use(world: &World) -> Vec<String> {
    let node = world.api.get(OWN_NODE).unwrap_or_default();
    serde_json::from_value(node["status"]["volumesInUse"].clone()).unwrap_or_default()
}

fn attachment(handle: &str) -> String {
    use sha2::{Digest, Sha256};
    let digest = Sha256::digest(format!("{handle}{DRIVER}{NODE}"));
    let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("csi-{hex}")
}

/// As the attaching controller and the driver's own do together.
async fn attach(world: &World, handle: &str) {
    let name = format!("kubernetes.io/csi/{DRIVER}^{handle}");
    until("the kubelet tells the volume in use", || in_use(world).contains(&name)).await;
    let id = attachment(handle);
    world.api.put(
        &format!("/apis/storage.k8s.io/v1/volumeattachments/{id}"),
        json!({"metadata": {"name": id},
            "spec": {"attacher": DRIVER, "nodeName": NODE, "source": {}},
            "status": {"attached": true, "attachmentMetadata": {"lun": "3"}}}),
    );
    let attached = json!([{"name": name, "devicePath": ""}]);
    world.api.patch(OWN_NODE, &json!({"status": {"volumesAttached": attached}}));
}

fn claim(world: &World, name: &str, handle: &str, change: Value) {
    let mut spec = json!({"accessModes": ["ReadWriteOnce"], "capacity": {"storage": "1Gi"},
        "mountOptions": ["noatime"],
        "csi": {"driver": DRIVER, "volumeHandle": handle, "fsType": "ext4",
            "volumeAttributes": {"pool": "p1"}}});
    for (key, value) in change.as_object().unwrap() {
        match (value, spec.get_mut(key)) {
            (Value::Object(more), Some(Value::Object(into))) => into.extend(more.clone()),
            _ => spec[key] = value.clone(),
        }
    }
    put_bound(world, name, None, spec);
}

fn pod_with(volume: Value) -> Value {
    json!({"terminationGracePeriodSeconds": 0, "serviceAccountName": "sa",
        "containers": [{"name": "a", "command": ["sleep", "1000"],
            "volumeMounts": [{"name": "v", "mountPath": "/v"}]}],
        "volumes": [volume]})
}

fn claiming(claim: &str) -> Value {
    pod_with(json!({"name": "v", "persistentVolumeClaim": {"claimName": claim}}))
}

fn make_volume(driver: &Driver, handle: &str) {
    std::fs::create_dir(driver.volume(handle)).unwrap();
    std::fs::write(driver.volume(handle).join("f"), "kept").unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_is_attached_staged_once_published_per_pod_and_taken_back() {
    let world = World::new().await;
    let mut driver = Driver::start(world.dir.path(), Shape::default());
    make_volume(&driver, "h1");
    until("the driver is told", || !driver.state.lock().told.is_empty()).await;
    assert!(driver.state.lock().told[0].plugin_registered);
    let node = world.api.get(CSI_NODE).unwrap();
    assert_eq!(
        node["spec"]["drivers"],
        json!([{"name": DRIVER, "nodeID": "node-of-dirs", "allocatable": {"count": 12},
            "topologyKeys": ["topology.dirs.example/rack"]}])
    );
    let meta = &world.api.get(OWN_NODE).unwrap()["metadata"];
    assert_eq!(node["metadata"]["ownerReferences"][0]["uid"], meta["uid"]);
    assert_eq!(meta["labels"]["topology.dirs.example/rack"], "r7");
    let ids = meta["annotations"]["csi.volume.kubernetes.io/nodeid"].as_str().unwrap();
    assert_eq!(ids, format!("{{\"{DRIVER}\":\"node-of-dirs\"}}"));

    describe(&world, json!({"podInfoOnMount": true}));
    let secret = |name: &str| format!("/api/v1/namespaces/store/secrets/{name}");
    for (name, value) in [("stage", "c3RhZ2U="), ("publish", "cHVibGlzaA==")] {
        world.api.put(&secret(name), json!({"metadata": {"name": name}, "data": {"key": value}}));
    }
    let secrets = json!({"csi": {
        "nodeStageSecretRef": {"name": "stage", "namespace": "store"},
        "nodePublishSecretRef": {"name": "publish", "namespace": "store"}}});
    claim(&world, "c1", "h1", secrets);
    let mut spec = claiming("c1");
    spec["securityContext"] = json!({"fsGroup": 4242});
    world.create_pod("one", spec);
    until("the volume is in use", || !in_use(&world).is_empty()).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(driver.state.lock().stages.is_empty(), "nothing is staged before it is attached");
    attach(&world, "h1").await;
    world.until_ready("one").await;
    assert_eq!(run(&world, "one", "cat /v/f; stat -c %g /v/f").await, "kept4242\n");
    world.create_pod("two", claiming("c1"));
    world.until_ready("two").await;
    run(&world, "two", "echo more > /v/g").await;
    assert_eq!(run(&world, "one", "cat /v/g").await, "more\n");
    {
        let state = driver.state.lock();
        let (stage, publish) = (&state.stages[0], &state.publishes[0]);
        assert_eq!((state.stages.len(), state.publishes.len()), (1, 2));
        assert_eq!((stage.volume_id.as_str(), stage.publish_context["lun"].as_str()), ("h1", "3"));
        assert_eq!((&*stage.secrets["key"], &*publish.secrets["key"]), ("stage", "publish"));
        assert_eq!(stage.volume_context["pool"], "p1");
        let capability = publish.volume_capability.clone().unwrap();
        assert_eq!(capability.access_mode.unwrap().mode, Mode::SingleNodeWriter as i32);
        let Some(AccessType::Mount(mount)) = capability.access_type else { panic!("a mount") };
        assert_eq!((mount.fs_type.as_str(), mount.mount_flags), ("ext4", vec!["noatime".into()]));
        assert_eq!(mount.volume_mount_group, "", "the kubelet itself changes the group");
        assert_eq!(publish.staging_target_path, stage.staging_target_path);
        let uid = world.pod("one").unwrap()["metadata"]["uid"].clone();
        let context =
            |key: &str| publish.volume_context[&format!("csi.storage.k8s.io/{key}")].clone();
        assert_eq!(json!(context("pod.uid")), uid);
        let told = ["pod.name", "pod.namespace", "serviceAccount.name", "ephemeral"].map(context);
        assert_eq!(told, ["one", "default", "sa", "false"]);
    }
    world.delete("one").await;
    assert_eq!(driver.state.lock().unstaged, 0, "another pod uses it");
    assert_eq!(in_use(&world).len(), 1);
    world.delete("two").await;
    until("the volume may be detached", || in_use(&world).is_empty()).await;
    assert_eq!(driver.state.lock().unstaged, 1);
    assert_eq!(std::fs::read_to_string(driver.volume("h1").join("f")).unwrap(), "kept");
    driver.leave().await;
    until("the driver is taken out", || {
        world.api.get(CSI_NODE).unwrap()["spec"]["drivers"] == json!([])
    })
    .await;
    world.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_driver_asks_for_is_told_and_asked_again() {
    let world = World::with(|config| config.sync_period = Duration::from_millis(300)).await;
    let shape = Shape {
        abilities: vec![Ability::VolumeMountGroup, Ability::SingleNodeMultiWriter],
        ..Shape::default()
    };
    let mut driver = Driver::start(world.dir.path(), shape);
    let mut spec = pod_with(json!({"name": "v", "csi": {"driver": DRIVER, "readOnly": true,
        "volumeAttributes": {"size": "1"}, "nodePublishSecretRef": {"name": "own"}}}));
    spec["securityContext"] = json!({"fsGroup": 77});
    world.create_pod("own", spec);
    let refused = "FailedMount: MountVolume.NewMounter initialization failed for volume \"v\" : \
                   volume mode \"Ephemeral\" not supported by driver";
    told(&world, "own", refused).await;
    describe(
        &world,
        json!({"volumeLifecycleModes": ["Persistent", "Ephemeral"],
        "podInfoOnMount": true, "requiresRepublish": true,
        "tokenRequests": [{"audience": "vault", "expirationSeconds": 3600}, {"audience": ""}]}),
    );
    let missing = "fetching NodePublishSecretRef default/own failed: failed to find the secret own \
                   in the namespace default with error: ";
    told(&world, "own", missing).await;
    let secret = json!({"metadata": {"name": "own"}, "data": {"k": "dg=="}});
    world.api.put("/api/v1/namespaces/default/secrets/own", secret);
    world.until_ready("own").await;
    assert!(run(&world, "own", "touch /v/x").await.contains("Read-only file system"));
    until("it is published again", || driver.state.lock().publishes.len() >= 3).await;
    {
        let state = driver.state.lock();
        let publish = &state.publishes[0];
        assert!(state.stages.is_empty() && publish.staging_target_path.is_empty());
        assert!(publish.readonly && publish.volume_id.starts_with("csi-"));
        assert_eq!(publish.target_path, state.publishes[2].target_path);
        assert_eq!(publish.volume_context["csi.storage.k8s.io/ephemeral"], "true");
        let tokens: Value = serde_json::from_str(
            &publish.volume_context["csi.storage.k8s.io/serviceAccount.tokens"],
        )
        .unwrap();
        assert_eq!(tokens["vault"]["token"], "a-token");
        assert!(tokens[""]["expirationTimestamp"].is_string());
        let capability = publish.volume_capability.clone().unwrap();
        assert_eq!(capability.access_mode.unwrap().mode, Mode::SingleNodeMultiWriter as i32);
        let Some(AccessType::Mount(mount)) = capability.access_type else { panic!("a mount") };
        assert_eq!(mount.volume_mount_group, "77");
    }
    assert_eq!(in_use(&world), Vec::<String>::new(), "nothing of it is ever attached");
    world.delete("own").await;
    driver.stop().await;
    world.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_is_measured_and_grows_with_its_claim() {
    let world = World::with(|config| config.sync_period = Duration::from_millis(300)).await;
    let mut driver = Driver::start(world.dir.path(), Shape::default());
    make_volume(&driver, "h1");
    describe(&world, json!({"attachRequired": false}));
    claim(&world, "c1", "h1", json!({"capacity": {"storage": "2Gi"}}));
    world.create_pod("db", claiming("c1"));
    world.until_ready("db").await;
    until("it is measured before anybody asks", || driver.state.lock().measured > 0).await;
    let (_, text) = crate::server::get(&world, "/stats/summary", "good").await;
    let summary: Value = serde_json::from_str(&text).unwrap();
    let volume = &summary["pods"][0]["volume"][0];
    for (key, value) in [
        ("capacityBytes", 4000),
        ("usedBytes", 1000),
        ("availableBytes", 3000),
        ("inodes", 30),
        ("inodesUsed", 3),
        ("inodesFree", 27),
    ] {
        assert_eq!(volume[key], value, "{key}: {volume}");
    }
    assert_eq!(volume["pvcRef"], json!({"name": "c1", "namespace": "default"}));
    let (_, metrics) = crate::server::get(&world, "/metrics", "good").await;
    let line =
        "kubelet_volume_stats_used_bytes{namespace=\"default\",persistentvolumeclaim=\"c1\"} 1000";
    assert!(metrics.contains(line), "{metrics}");
    let published = metrics.lines().any(|line| {
        line.starts_with("csi_operations_seconds_count")
            && line.contains("method_name=\"/csi.v1.Node/NodePublishVolume\"")
            && line.contains("grpc_status_code=\"OK\"")
    });
    assert!(published, "{metrics}");
    assert!(driver.state.lock().expands.is_empty());
    let path = "/api/v1/namespaces/default/persistentvolumeclaims/c1";
    world.api.patch(
        path,
        &json!({"status": {"capacity": {"storage": "1Gi"},
        "conditions": [{"type": "FileSystemResizePending", "status": "True"}]}}),
    );
    told(
        &world,
        "db",
        "FileSystemResizeSuccessful: MountVolume.NodeExpandVolume succeeded for volume \"pv-c1\" n1",
    )
    .await;
    assert_eq!(world.api.get(path).unwrap()["status"]["capacity"]["storage"], "2Gi");
    let range = driver.state.lock().expands[0].capacity_range.clone().unwrap();
    assert_eq!(range.required_bytes, 2 << 30);
    // A driver may not want to while the volume is used; then it is asked when it is not.
    driver.fail("expand", Fault::Fails(Code::FailedPrecondition));
    world.api.patch(
        path,
        &json!({"status": {"capacity": {"storage": "1Gi"},
            "allocatedResources": {"storage": "2Gi"},
            "allocatedResourceStatuses": {"storage": "NodeResizePending"}}}),
    );
    until("the driver is asked", || driver.state.lock().expands.len() == 2).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(driver.state.lock().expands.len(), 2);
    let status = world.api.get(path).unwrap()["status"].clone();
    assert_eq!(status["allocatedResourceStatuses"]["storage"], "NodeResizeInProgress", "{status}");
    assert!(status["conditions"].to_string().contains("NodeResizeError"), "{status}");
    world.delete("db").await;
    world.create_pod("db2", claiming("c1"));
    world.until_ready("db2").await;
    assert_eq!(driver.state.lock().expands.len(), 3);
    world.delete("db2").await;
    driver.stop().await;
    world.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_that_grew_while_nobody_used_it_has_its_room_before_a_container_starts() {
    let world = World::new().await;
    let mut driver = Driver::start(world.dir.path(), Shape::default());
    make_volume(&driver, "h1");
    describe(&world, json!({"attachRequired": false}));
    claim(&world, "c1", "h1", json!({"capacity": {"storage": "2Gi"}}));
    let path = "/api/v1/namespaces/default/persistentvolumeclaims/c1";
    let waits = json!({"status": {"capacity": {"storage": "1Gi"},
        "conditions": [{"type": "FileSystemResizePending", "status": "True"}],
        "allocatedResources": {"storage": "2Gi"},
        "allocatedResourceStatuses": {"storage": "NodeResizePending"}}});
    world.api.patch(path, &waits);
    driver.fail("expand", Fault::Fails(Code::Internal));
    world.create_pod("db", claiming("c1"));
    let failed = "FailedMount: MountVolume.Setup failed while expanding volume for volume \"pv-c1\" : \
                  Expander.NodeExpand failed to expand the volume : rpc error: code = Internal desc = as the test wants";
    told(&world, "db", failed).await;
    world.until_ready("db").await;
    assert_eq!(driver.state.lock().expands.len(), 2, "it grew before the container began");
    let status = world.api.get(path).unwrap()["status"].clone();
    assert_eq!(status["capacity"]["storage"], "2Gi");
    assert_eq!(status["conditions"], json!([]));
    assert_eq!(status["allocatedResourceStatuses"]["storage"], Value::Null);
    world.delete("db").await;

    // What the driver can never do is told, and the volume is used as it is.
    world.api.patch(path, &waits);
    driver.fail("expand", Fault::Fails(Code::OutOfRange));
    world.create_pod("small", claiming("c1"));
    world.until_ready("small").await;
    assert_eq!(driver.state.lock().expands.len(), 3);
    let status = world.api.get(path).unwrap()["status"].clone();
    assert_eq!(status["allocatedResourceStatuses"]["storage"], "NodeResizeInfeasible");
    assert_eq!(status["capacity"]["storage"], "1Gi");
    world.delete("small").await;
    driver.stop().await;
    world.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_node_holds_at_most_is_asked_again_and_one_too_many_is_refused() {
    let world = World::new().await;
    let mut driver = Driver::start(world.dir.path(), Shape::default());
    let count = || {
        let node = world.api.get(CSI_NODE).unwrap_or_default();
        node["spec"]["drivers"][0]["allocatable"]["count"].clone()
    };
    until("the driver is registered", || count() == 12).await;
    describe(&world, json!({"nodeAllocatableUpdatePeriodSeconds": 1}));
    driver.state.lock().limit = Some(3);
    until("it is asked again", || count() == 3).await;
    describe(&world, json!({"nodeAllocatableUpdatePeriodSeconds": 3600}));
    driver.state.lock().limit = Some(1);
    claim(&world, "c1", "h1", json!({}));
    world.create_pod("over", claiming("c1"));
    let name = format!("kubernetes.io/csi/{DRIVER}^h1");
    until("the kubelet tells the volume in use", || in_use(&world).contains(&name)).await;
    let id = attachment("h1");
    world.api.put(
        &format!("/apis/storage.k8s.io/v1/volumeattachments/{id}"),
        json!({"metadata": {"name": id}, "spec": {"attacher": DRIVER, "nodeName": NODE, "source": {}},
            "status": {"attached": false,
                "attachError": {"errorCode": 8, "message": "no more", "time": "2026-01-01T00:00:00Z"}}}),
    );
    world
        .until("over", |pod| {
            let status = &pod.unwrap()["status"];
            status["phase"] == "Failed" && status["reason"] == "VolumeAttachmentLimitExceeded"
        })
        .await;
    assert_eq!(count(), 1, "and the cluster knows");
    until("it is in use no more", || in_use(&world).is_empty()).await;
    world.delete("over").await;
    driver.stop().await;
    world.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_driver_that_is_described_late_needs_no_attachment_any_more() {
    let world = World::new().await;
    let mut driver = Driver::start(world.dir.path(), Shape::default());
    make_volume(&driver, "h1");
    claim(&world, "c1", "h1", json!({}));
    world.create_pod("early", claiming("c1"));
    until("it waits to be attached", || !in_use(&world).is_empty()).await;
    describe(&world, json!({"attachRequired": false}));
    world.until_ready("early").await;
    until("it may be detached, though it is used", || in_use(&world).is_empty()).await;
    world.delete("early").await;
    driver.stop().await;
    world.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_is_published_as_one() {
    let world = World::new().await;
    let mut driver = Driver::start(world.dir.path(), Shape::default());
    rustix::fs::mknodat(
        rustix::fs::CWD,
        driver.volume("raw"),
        rustix::fs::FileType::BlockDevice,
        rustix::fs::Mode::from_raw_mode(0o600),
        rustix::fs::makedev(7, 251),
    )
    .unwrap();
    describe(&world, json!({"attachRequired": false}));
    claim(&world, "raw", "raw", json!({"volumeMode": "Block"}));
    driver.fail("publish", Fault::Fails(Code::Internal));
    let spec = json!({"terminationGracePeriodSeconds": 0,
        "containers": [{"name": "a", "command": ["sleep", "1000"],
            "volumeDevices": [{"name": "v", "devicePath": "/dev/xda"}]}],
        "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "raw"}}]});
    world.create_pod("disk", spec);
    told(&world, "disk", "FailedMapVolume: MapVolume.MapPodDevice failed for volume \"pv-raw\" : rpc error: code = Internal desc = as the test wants").await;
    world.until_ready("disk").await;
    assert_eq!(run(&world, "disk", "stat -c %F:%t:%T /dev/xda").await, "block special file:7:fb\n");
    let mapped = "SuccessfulMountVolume: MapVolume.MapPodDevice succeeded for volume \"pv-raw\"";
    let uid = world.pod("disk").unwrap()["metadata"]["uid"].as_str().unwrap().to_owned();
    let root = &world.dir.path().join("agent");
    let below = root.join("pods").join(&uid).join("volumeDevices/kubernetes.io~csi");
    told(&world, "disk", &format!("{mapped} volumeMapPath \"{}\"", below.display())).await;
    let global = root.join("plugins/kubernetes.io/csi/volumeDevices/publish/pv-raw");
    told(&world, "disk", &format!("{mapped} globalMapPath \"{}\"", global.display())).await;
    assert_eq!(std::fs::read_link(below.join("pv-raw")).unwrap(), global.join(&uid));
    let capability = driver.state.lock().stages[0].volume_capability.clone().unwrap();
    assert!(matches!(capability.access_type, Some(AccessType::Block(_))));
    let text = base::metrics::render(base::metrics::Format::Prometheus);
    for code in ["Internal", "OK"] {
        let asked = format!(
            "csi_operations_seconds_count{{driver_name=\"{DRIVER}\",grpc_status_code=\"{code}\",\
             method_name=\"/csi.v1.Node/NodePublishVolume\",migrated=\"false\"}} "
        );
        assert!(text.contains(&asked), "{asked}: {text}");
    }
    world.delete("disk").await;
    until("it is unstaged", || driver.state.lock().unstaged == 1).await;
    driver.stop().await;
    world.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_driver_that_dies_between_stage_and_publish_is_taken_up_when_it_is_back() {
    let world = World::new().await;
    world.create_pod("early", claiming("c1"));
    claim(&world, "c1", "h1", json!({}));
    describe(&world, json!({"attachRequired": false}));
    told(
        &world,
        "early",
        &format!(
            "FailedMount: MountVolume.MountDevice failed for volume \"pv-c1\" : kubernetes.io/csi: \
         attacher.MountDevice failed to create newCsiDriverClient: driver name {DRIVER} not found \
         in the list of registered CSI drivers"
        ),
    )
    .await;
    let mut driver = Driver::start(world.dir.path(), Shape::default());
    make_volume(&driver, "h1");
    driver.fail("publish", Fault::Dies);
    told(
        &world,
        "early",
        "MountVolume.SetUp failed for volume \"pv-c1\" : rpc error: code = Unavailable",
    )
    .await;
    driver.stop().await;
    driver.restart();
    world.until_ready("early").await;
    assert_eq!(driver.state.lock().stages.len(), 1, "what was staged stays so");
    assert_eq!(run(&world, "early", "cat /v/f").await, "kept");
    // It may be down while the pod goes; the pod waits for it.
    driver.stop().await;
    world.api.delete_gracefully(&World::pod_path("early"), 1);
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert!(world.pod("early").is_some(), "a published volume keeps its pod");
    driver.restart();
    world.until("early", |pod| pod.is_none()).await;
    until("it is unstaged", || driver.state.lock().unstaged == 1).await;
    driver.stop().await;
    world.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_driver_that_stalls_or_fails_holds_up_only_its_own_pod() {
    let world = World::new().await;
    let mut driver = Driver::start(world.dir.path(), Shape::default());
    make_volume(&driver, "h1");
    describe(&world, json!({"attachRequired": false}));
    claim(&world, "c1", "h1", json!({}));
    driver.fail("stage", Fault::Fails(Code::InvalidArgument));
    driver.fail("stage", Fault::Stalls);
    world.create_pod("stuck", claiming("c1"));
    told(&world, "stuck", "FailedMount: MountVolume.MountDevice failed for volume \"pv-c1\" : rpc error: code = InvalidArgument desc = as the test wants").await;
    until("the second call hangs", || driver.state.lock().stages.len() == 2).await;
    let free = json!({"terminationGracePeriodSeconds": 0,
        "containers": [{"name": "a", "command": ["sleep", "1000"]}]});
    world.create_pod("free", free);
    world.until_ready("free").await;
    // What may have been staged is unstaged, even if the driver refuses at first.
    driver.fail("unstage", Fault::Fails(Code::Aborted));
    world.delete("stuck").await;
    until("it is unstaged", || driver.state.lock().unstaged == 1).await;
    until("it is in use no more", || in_use(&world).is_empty()).await;
    world.delete("free").await;
    driver.stop().await;
    world.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kubelet_that_begins_anew_takes_over_what_is_published_and_ends_what_was_begun() {
    let mut world = World::new().await;
    let mut driver = Driver::start(world.dir.path(), Shape::default());
    for (handle, name) in [("h1", "c1"), ("h2", "c2")] {
        make_volume(&driver, handle);
        claim(&world, name, handle, json!({}));
    }
    describe(&world, json!({"attachRequired": false}));
    world.create_pod("stays", claiming("c1"));
    world.create_pod("goes", claiming("c2"));
    world.until_ready("stays").await;
    world.until_ready("goes").await;
    world.stop().await;
    driver.stop().await;
    // While nobody looks, a pod is deleted for good and the driver is away.
    world.api.delete(&World::pod_path("goes"));
    let before = driver.state.lock().publishes.len();
    world.start();
    world.until_ready("stays").await;
    assert_eq!(run(&world, "stays", "cat /v/f").await, "kept");
    assert_eq!(driver.state.lock().unpublished, 0);
    driver.restart();
    until("the orphan's volume is taken back", || driver.state.lock().unstaged == 1).await;
    assert_eq!(driver.state.lock().publishes.len(), before, "nothing is published again");
    world.delete("stays").await;
    until("and then the other", || driver.state.lock().unstaged == 2).await;
    driver.stop().await;
    world.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_good_driver_is_told_so_and_harms_nobody() {
    let world = World::new().await;
    let registry = world.dir.path().join("agent/plugins_registry");
    std::fs::create_dir_all(&registry).unwrap();
    // A socket that a dead process left, a file, and one who says what is no gRPC.
    drop(std::os::unix::net::UnixListener::bind(registry.join("stale.sock")).unwrap());
    std::fs::write(registry.join("file.sock"), "x").unwrap();
    let babbler = std::os::unix::net::UnixListener::bind(registry.join("babble.sock")).unwrap();
    std::thread::spawn(move || {
        while let Ok((mut stream, _)) = babbler.accept() {
            let _ = std::io::Write::write_all(&mut stream, b"220 hello, this is no gRPC\r\n");
        }
    });
    let mut old =
        Driver::start(world.dir.path(), Shape { versions: vec!["0.3.0"], ..Shape::default() });
    until("the old driver is told", || !old.state.lock().told.is_empty()).await;
    let told = old.state.lock().told[0].clone();
    assert!(!told.plugin_registered && told.error.contains("none of the CSI versions"), "{told:?}");
    old.leave().await;
    let mut nameless = Shape::default();
    nameless.info.node_id.clear();
    let mut nameless = Driver::start(world.dir.path(), nameless);
    until("it is told", || !nameless.state.lock().told.is_empty()).await;
    assert!(nameless.state.lock().told[0].error.contains("nodeID must not be empty"));
    nameless.leave().await;
    let mut good = Driver::start(world.dir.path(), Shape::default());
    until("the good one is told", || !good.state.lock().told.is_empty()).await;
    assert!(good.state.lock().told[0].plugin_registered);
    good.stop().await;
    world.finish().await;
}

/// Nobody knows what is left of a volume whose driver failed to take it back.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_perhaps_unstaged_is_staged_again() {
    let world = World::new().await;
    let mut driver = Driver::start(world.dir.path(), Shape::default());
    make_volume(&driver, "h1");
    describe(&world, json!({"attachRequired": false}));
    claim(&world, "c1", "h1", json!({}));
    world.create_pod("one", claiming("c1"));
    world.until_ready("one").await;
    for _ in 0..20 {
        driver.fail("unstage", Fault::Fails(Code::Aborted));
    }
    world.delete("one").await;
    until("it is asked", || driver.faults("unstage") < 20).await;
    assert_eq!(driver.state.lock().stages.len(), 1);
    world.create_pod("two", claiming("c1"));
    world.until_ready("two").await;
    assert_eq!(driver.state.lock().stages.len(), 2);
    assert_eq!(run(&world, "two", "cat /v/f").await, "kept");
    driver.state.lock().faults_end();
    world.delete("two").await;
    until("it is unstaged", || driver.state.lock().unstaged == 1).await;
    driver.stop().await;
    world.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_driver_that_stalls_as_it_publishes_anew_holds_no_container_up() {
    let world = World::with(|config| config.sync_period = Duration::from_millis(300)).await;
    let mut driver = Driver::start(world.dir.path(), Shape::default());
    make_volume(&driver, "h1");
    describe(&world, json!({"attachRequired": false, "requiresRepublish": true}));
    claim(&world, "c1", "h1", json!({}));
    let mut spec = claiming("c1");
    spec["containers"][0]["command"] =
        json!(["sh", "-c", "until test -e /end; do sleep 0.05; done"]);
    world.create_pod("web", spec);
    world.until_ready("web").await;
    driver.fail("publish", Fault::Stalls);
    until("a call hangs", || driver.faults("publish") == 0).await;
    run(&world, "web", "echo > /end").await;
    world.until_restarted("web").await;
    assert_eq!(run(&world, "web", "cat /v/f").await, "kept");
    world.delete("web").await;
    driver.stop().await;
    world.finish().await;
}
