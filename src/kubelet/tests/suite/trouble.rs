//! Events about a node that is not well: memory, network, disks, what cannot be removed.

use std::io::Write;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::world::World;

async fn told(world: &World, wanted: &str) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !world.api.events().iter().any(|it| it == wanted) {
        assert!(Instant::now() < deadline, "{wanted:?} is not in {:#?}", world.api.events());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_ran_out_of_memory_says_whom_it_cost() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("kmsg");
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    let mut options = std::fs::OpenOptions::new();
    let mut kernel = options.read(true).write(true).open(&path).unwrap();
    let world = World::with(move |config| config.kernel_messages = path.clone()).await;
    // What a container's limit costs is told of the container.
    world.create_pod(
        "hog",
        json!({"restartPolicy": "Never", "containers": [{"name": "a",
        "command": ["dd", "if=/dev/zero", "of=/dev/null", "bs=64M", "count=1"],
        "resources": {"limits": {"memory": "8Mi"}}}]}),
    );
    let hog = world.until("hog", |pod| pod.is_some_and(|it| it["status"]["phase"] == "Failed"));
    let hog = hog.await.unwrap();
    let ended = &hog["status"]["containerStatuses"][0]["state"]["terminated"];
    assert_eq!(ended["reason"], "OOMKilled", "{ended}");
    for (task, pid, of) in [
        ("dd", 12, "oom_memcg=/kubepods/pod1,task_memcg=/kubepods/pod1/c"),
        ("hog", 4711, "global_oom,task_memcg=/kubepods/pod1/c"),
    ] {
        let whose = if of.starts_with("oom") { "Memory cgroup out" } else { "Out" };
        let records = format!(
            "4,1,1,-;{task} invoked oom-killer: gfp_mask=0xcc0(GFP_KERNEL), order=0\n \
             SUBSYSTEM=none\n\
             6,2,2,-;oom-kill:constraint=CONSTRAINT,nodemask=(null),cpuset=/,mems_allowed=0,\
             {of},task={task},pid={pid},uid=0\n\
             3,3,3,-;{whose} of memory: Killed process {pid} ({task}) total-vm:8192kB, UID:0\n"
        );
        kernel.write_all(records.as_bytes()).unwrap();
    }
    told(&world, "SystemOOM: System OOM encountered, victim process: hog, pid: 4711").await;
    let events = world.api.events();
    assert_eq!(events.iter().filter(|it| it.starts_with("SystemOOM")).count(), 1, "{events:#?}");
    world.delete("hog").await;
    world.finish().await;
}

/// The kernel's own messages can be read, and a limit's kill is none of the machine's.
#[tokio::test(flavor = "multi_thread")]
async fn a_limit_that_kills_is_not_taken_for_the_machine() {
    let world = World::new().await;
    world.create_pod(
        "hog",
        json!({"restartPolicy": "Never", "containers": [{"name": "a",
        "command": ["dd", "if=/dev/zero", "of=/dev/null", "bs=64M", "count=1"],
        "resources": {"limits": {"memory": "8Mi"}}}]}),
    );
    world.until("hog", |pod| pod.is_some_and(|it| it["status"]["phase"] == "Failed")).await;
    world.delete("hog").await;
    let events = world.api.events();
    assert!(!events.iter().any(|it| it.starts_with("SystemOOM")), "{events:#?}");
    world.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_waits_for_the_network_and_one_of_the_nodes_does_not() {
    let world = World::with(|config| {
        config.heartbeat.status_period = Duration::from_millis(200);
    })
    .await;
    world.network.be_troubled(Some("cni plugin not initialized"));
    let deadline = Instant::now() + Duration::from_secs(20);
    let is_ready = || {
        let node = world.api.get("/api/v1/nodes/n1").unwrap_or_default();
        let all = node["status"]["conditions"].as_array().cloned().unwrap_or_default();
        all.iter().any(|it| it["type"] == "Ready" && it["status"] == "True")
    };
    while is_ready() {
        assert!(Instant::now() < deadline, "the node stays Ready");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let sleeps = || json!([{"name": "a", "command": ["sleep", "1000"]}]);
    world.create_pod("waits", json!({"terminationGracePeriodSeconds": 0, "containers": sleeps()}));
    world.create_pod(
        "nodes",
        json!({"terminationGracePeriodSeconds": 0, "hostNetwork": true,
        "containers": sleeps()}),
    );
    told(
        &world,
        "NetworkNotReady: network is not ready: container runtime network not ready: \
         NetworkReady=false reason:NetworkPluginNotReady message:cni plugin not initialized",
    )
    .await;
    world.until_ready("nodes").await;
    let waits = world.pod("waits").unwrap();
    assert_eq!(waits["status"]["phase"], "Pending");
    assert_eq!(world.runtime.list_pod_sandboxes().await.unwrap().len(), 1, "only the node's");
    let of_nodes = world.api.events_about("nodes");
    assert!(!of_nodes.iter().any(|it| it.starts_with("NetworkNotReady")), "{of_nodes:#?}");
    world.network.be_troubled(None);
    world.until_ready("waits").await;
    for name in ["waits", "nodes"] {
        world.delete(name).await;
    }
    world.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_without_a_size_is_told_and_then_that_nothing_can_be_collected() {
    let world = World::with(|config| {
        config.garbage_periods.images = Duration::from_millis(500);
    })
    .await;
    // A file system that says of itself that it holds nothing.
    let images = world.dir.path().join("images");
    let disk = sys::mount::filesystem("ramfs", "ramfs", &[], 0).unwrap();
    sys::mount::attach(disk.as_fd(), sys::fs::open_path(&images).unwrap().as_fd()).unwrap();
    for below in ["layers", "images", "configs", "tmp"] {
        std::fs::create_dir(images.join(below)).unwrap();
    }
    told(&world, "InvalidDiskCapacity: invalid capacity 0 on image filesystem").await;
    told(&world, "ImageGCFailed: invalid capacity 0 on image filesystem").await;
    assert!(sys::mount::unmount_detach(&images).unwrap());
    world.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_that_cannot_be_removed_is_told_and_tried_again() {
    let world = World::with(|config| {
        config.garbage_periods.containers = Duration::from_millis(500);
        config.restart_backoff_max = Duration::from_secs(1);
    })
    .await;
    // Ends when it is told to.
    let script = "while test ! -e /v/end; do sleep 0.1; done; rm /v/end";
    world.create_pod(
        "ends",
        json!({"terminationGracePeriodSeconds": 0,
        "containers": [{"name": "a", "command": ["sh", "-c", script],
            "volumeMounts": [{"name": "v", "mountPath": "/v"}]}],
        "volumes": [{"name": "v", "emptyDir": {}}]}),
    );
    let pod = world.until_ready("ends").await;
    let uid = pod["metadata"]["uid"].as_str().unwrap();
    let volume = format!("agent/pods/{uid}/volumes/kubernetes.io~empty-dir/v/end");
    let first = world.runtime.list_containers().await.unwrap()[0].id.clone();
    let dir = world.dir.path().join("state/containers").join(&first);
    let busy = dir.join("busy");
    std::fs::create_dir(&busy).unwrap();
    let disk = sys::mount::filesystem("tmpfs", "busy", &[], 0).unwrap();
    sys::mount::attach(disk.as_fd(), sys::fs::open_path(&busy).unwrap().as_fd()).unwrap();
    for count in 1..=2 {
        std::fs::write(world.dir.path().join(&volume), "").unwrap();
        let is_there = |pod: Option<&serde_json::Value>| {
            pod.is_some_and(|it| {
                let status = &it["status"]["containerStatuses"][0];
                status["restartCount"] == count && status["ready"] == true
            })
        };
        world.until("ends", is_there).await;
    }
    let begin = format!("ContainerGCFailed: failed to remove container {first:?}: ");
    let deadline = Instant::now() + Duration::from_secs(30);
    while !world.api.events().iter().any(|it| it.starts_with(&begin)) {
        assert!(Instant::now() < deadline, "{begin} is not in {:#?}", world.api.events());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(dir.exists());
    assert!(sys::mount::unmount_detach(&busy).unwrap());
    let gone = async |dir: &Path| {
        while dir.exists() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), gone(&dir)).await.expect("it is removed");
    world.delete("ends").await;
    world.finish().await;
}
