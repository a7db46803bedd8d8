//! Nodes that run short, and pods that use more than they may.

use std::path::Path;
use std::time::Duration;

use kubelet::eviction::thresholds::{Policy, Settings};
use serde_json::{Value, json};

use crate::server::own_metric;
use crate::world::World;

fn settings(pairs: &[(&str, &str)]) -> Settings {
    pairs.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect()
}

/// A small disk of its own for the kubelet's files.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("ckt-disk").tempdir_in("/tmp").unwrap();
        sys::mount::mount("tmpfs", dir.path(), "tmpfs", 0, "size=64m").unwrap();
        Self(dir)
    }

    fn pods(&self) -> usize {
        std::fs::read_dir(self.0.path().join("pods")).map_or(0, Iterator::count)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        for mount in sys::mount::mounts_below(self.0.path()).unwrap_or_default() {
            let _ = sys::mount::unmount_detach(&mount);
        }
    }
}

fn writer(mebibytes: u64) -> Value {
    let script = format!("dd if=/dev/zero of=/v/f bs=1048576 count={mebibytes}; sleep 1000");
    json!({"terminationGracePeriodSeconds": 0,
        "containers": [{"name": "a", "command": ["sh", "-c", script],
            "volumeMounts": [{"name": "v", "mountPath": "/v"}]}],
        "volumes": [{"name": "v", "emptyDir": {}}]})
}

fn disk_pressure(world: &World) -> Option<String> {
    let node = world.api.get("/api/v1/nodes/n1")?;
    let all = node["status"]["conditions"].as_array()?.clone();
    let one = all.into_iter().find(|it| it["type"] == "DiskPressure")?;
    one["status"].as_str().map(str::to_owned)
}

async fn until_disk_pressure(world: &World, wanted: &str) {
    let deadline = std::time::Instant::now() + Duration::from_secs(40);
    while disk_pressure(world).as_deref() != Some(wanted) {
        assert!(std::time::Instant::now() < deadline, "DiskPressure does not become {wanted}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn is_evicted(pod: Option<&Value>) -> bool {
    pod.is_some_and(|it| it["status"]["phase"] == "Failed" && it["status"]["reason"] == "Evicted")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_costs_the_pod_that_filled_it_and_no_other() {
    let disk = SmallDisk::new();
    let root: std::path::PathBuf = disk.0.path().to_owned();
    let world = World::with(move |config| {
        let none = Settings::new();
        let hard = settings(&[("nodefs.available", "25%")]);
        config.root_dir = root.clone();
        config.eviction = Policy::read(&hard, &none, &none, &none).unwrap();
        config.eviction.transition = Duration::from_secs(12);
    })
    .await;
    world.create_pod("calm", writer(1));
    let calm = world.until_ready("calm").await;
    world.create_pod("hog", writer(55));
    let hog = world.until("hog", is_evicted).await.unwrap();
    let message = hog["status"]["message"].as_str().unwrap();
    assert!(
        message.starts_with(
            "The node was low on resource: ephemeral-storage. Threshold quantity: 16Mi, available: "
        ),
        "{message}"
    );
    let conditions = hog["status"]["conditions"].as_array().unwrap();
    let target = conditions.iter().find(|it| it["type"] == "DisruptionTarget").unwrap();
    assert_eq!(
        (&target["status"], &target["reason"]),
        (&json!("True"), &json!("TerminationByKubelet"))
    );
    until_disk_pressure(&world, "True").await;
    world.create_pod("late", writer(1));
    let late = world.until("late", is_evicted).await.unwrap();
    assert_eq!(
        late["status"]["message"],
        "Pod was rejected: The node had condition: [DiskPressure]. "
    );
    until_disk_pressure(&world, "False").await;
    let events = world.api.events();
    for want in [
        "EvictionThresholdMet: Attempting to reclaim ephemeral-storage",
        "Evicted: The node was low on resource: ephemeral-storage.",
    ] {
        assert!(events.iter().any(|it| it.starts_with(want)), "{want}: {events:#?}");
    }
    let evicted = "kubelet_evictions{eviction_signal=\"nodefs.available\"}";
    assert_eq!(own_metric(&world, evicted).await, Some(1.0));
    let after = world.until_ready("calm").await;
    let id = |pod: &Value| pod["status"]["containerStatuses"][0]["containerID"].clone();
    assert_eq!(id(&after), id(&calm), "the calm one was not touched");
    for name in ["hog", "late", "calm"] {
        world.delete(name).await;
    }
    world.finish().await;
    assert_eq!(disk.pods(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_that_use_more_disk_than_their_limits_are_evicted() {
    let world = World::new().await;
    let mut dir = writer(2);
    dir["volumes"][0]["emptyDir"] = json!({"sizeLimit": "1Mi"});
    world.create_pod("dir", dir);
    let limits = json!({"limits": {"ephemeral-storage": "1Mi"}});
    let writes = |file: &str, mebibytes: u64, other: Value| {
        let script = format!("dd if=/dev/zero of={file} bs=1048576 count={mebibytes}; sleep 1000");
        json!({"terminationGracePeriodSeconds": 0, "containers": [
            {"name": "b", "command": ["sleep", "1000"], "resources": other},
            {"name": "a", "command": ["sh", "-c", script], "resources": limits}]})
    };
    let large = json!({"limits": {"ephemeral-storage": "8Mi"}});
    world.create_pod("layer", writes("/f", 2, large.clone()));
    // A volume that the image declares.
    world.create_pod("kept", writes("/kept/f", 2, large.clone()));
    world.create_pod("whole", writes("/f", 2, json!({})));
    world.create_pod("fine", writes("/f", 0, large));
    for (name, want) in [
        ("dir", "Usage of EmptyDir volume \"v\" exceeds the limit \"1Mi\". "),
        ("layer", "Container a exceeded its local ephemeral storage limit \"1Mi\". "),
        ("kept", "Container a exceeded its local ephemeral storage limit \"1Mi\". "),
        ("whole", "Pod ephemeral local storage usage exceeds the total limit of containers 1Mi. "),
    ] {
        let pod = world.until(name, is_evicted).await.unwrap();
        assert_eq!(pod["status"]["message"], want);
        let conditions = pod["status"]["conditions"].as_array().unwrap();
        let is_disruption = conditions.iter().any(|it| it["type"] == "DisruptionTarget");
        assert!(!is_disruption, "{name} went by its own doing");
    }
    for (limit, count) in
        [("emptydirfs", 1.0), ("ephemeralcontainerfs", 2.0), ("ephemeralpodfs", 1.0)]
    {
        let evicted = format!("kubelet_evictions{{eviction_signal=\"{limit}.limit\"}}");
        assert_eq!(own_metric(&world, &evicted).await, Some(count), "{limit}");
    }
    assert_eq!(world.until_ready("fine").await["status"]["phase"], "Running");
    let at = |name: &str| {
        let uid = world.pod(name).unwrap()["metadata"]["uid"].as_str().unwrap().to_owned();
        world.dir.path().join("agent/pods").join(uid)
    };
    // What the evicted used is free again although their objects are still there.
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    while Path::new(&at("dir")).exists() {
        assert!(std::time::Instant::now() < deadline, "the files stay");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    for name in ["dir", "layer", "kept", "whole", "fine"] {
        world.delete(name).await;
    }
    world.finish().await;
}
