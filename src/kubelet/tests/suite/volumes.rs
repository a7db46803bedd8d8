//! Volumes that are claimed, made for one pod, of images, in memory, and as devices.

use std::path::Path;

use serde_json::{Value, json};

use crate::server::own_metric;
use crate::world::World;

fn claim_path(name: &str) -> String {
    format!("/api/v1/namespaces/default/persistentvolumeclaims/{name}")
}

/// A volume and the claim that is bound to it.
pub fn put_bound(world: &World, claim: &str, owner: Option<&str>, spec: Value) {
    let mut metadata =
        json!({"name": claim, "namespace": "default", "uid": format!("uid-of-{claim}")});
    if let Some(uid) = owner {
        metadata["ownerReferences"] = json!([{"apiVersion": "v1", "kind": "Pod", "name": "x",
            "uid": uid, "controller": true}]);
    }
    let volume = format!("pv-{claim}");
    let mut spec = spec;
    spec["claimRef"] =
        json!({"namespace": "default", "name": claim, "uid": format!("uid-of-{claim}")});
    world.api.put(
        &format!("/api/v1/persistentvolumes/{volume}"),
        json!({"metadata": {"name": volume}, "spec": spec}),
    );
    world.api.put(
        &claim_path(claim),
        json!({"metadata": metadata, "spec": {"volumeName": volume}, "status": {"phase": "Bound"}}),
    );
}

pub async fn told(world: &World, pod: &str, what: &str) {
    world.until(pod, |_| world.api.events().iter().any(|it| it.contains(what))).await;
}

/// Output of a command in the pod's first container.
pub async fn run(world: &World, pod: &str, script: &str) -> String {
    let status = world.pod(pod).unwrap();
    let id = status["status"]["containerStatuses"][0]["containerID"].as_str().unwrap();
    let id = id.trim_start_matches("coracle://");
    let command = ["sh", "-c", script].map(str::to_owned).to_vec();
    let done = world.runtime.exec_sync(id, command, 10).await.unwrap();
    String::from_utf8([done.stdout, done.stderr].concat()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_is_waited_for_mounted_and_survives_its_pod_and_the_kubelet() {
    let mut world = World::new().await;
    let disk = world.dir.path().join("disk");
    std::fs::create_dir(&disk).unwrap();
    std::fs::write(disk.join("old"), "before").unwrap();
    let pod = |read_only: bool| {
        json!({"terminationGracePeriodSeconds": 0, "securityContext": {"fsGroup": 4242},
            "containers": [{"name": "a", "command": ["sh", "-c", "echo made > /data/new; sleep 1000"],
                "volumeMounts": [{"name": "data", "mountPath": "/data"},
                                 {"name": "data", "mountPath": "/sub", "subPath": "deep/er"}]}],
            "volumes": [{"name": "data",
                "persistentVolumeClaim": {"claimName": "c", "readOnly": read_only}}]})
    };
    world.create_pod("db", pod(false));
    let unmounted = "FailedMount: Unable to attach or mount volumes: unmounted volumes=[data], \
                     unattached volumes=[], failed to process volumes=[data]: error processing PVC \
                     default/c: ";
    told(&world, "db", &format!("{unmounted}failed to fetch PVC from API server")).await;
    world.api.put(
        &claim_path("c"),
        json!({"metadata": {"name": "c", "namespace": "default"}, "spec": {}, "status": {"phase": "Pending"}}),
    );
    told(&world, "db", &format!("{unmounted}PVC is not bound")).await;
    let elsewhere = json!({"required": {"nodeSelectorTerms": [{"matchExpressions": [
        {"key": "kubernetes.io/hostname", "operator": "In", "values": ["elsewhere"]}]}]}});
    let local = json!({"path": disk.display().to_string()});
    put_bound(&world, "c", None, json!({"local": local, "nodeAffinity": elsewhere}));
    let away = "FailedMount: MountVolume.NodeAffinity check failed for volume \"pv-c\" : no \
                matching NodeSelectorTerms";
    told(&world, "db", away).await;
    // Those who use the volume are of its group.
    let here = json!({"metadata": {"annotations": {"pv.beta.kubernetes.io/gid": "777"}},
        "spec": {"nodeAffinity": null}});
    world.api.patch("/api/v1/persistentvolumes/pv-c", &here);
    world.until_ready("db").await;
    assert_eq!(
        run(&world, "db", "cat /data/old; stat -c %g:%a /data/old; id -G").await,
        "before4242:664\n0 777 4242\n"
    );
    run(&world, "db", "echo x > /sub/file").await;
    assert_eq!(
        world.pod("db").unwrap()["status"]["containerStatuses"][0]["user"]["linux"],
        json!({"uid": 0, "gid": 0, "supplementalGroups": [0, 4242, 777]})
    );
    assert_eq!(std::fs::read_to_string(disk.join("new")).unwrap(), "made\n");
    assert!(disk.join("deep/er/file").exists());

    // The kubelet begins anew while the server has forgotten the claim: nothing is asked.
    world.stop().await;
    world.api.delete(&claim_path("c"));
    world.start();
    world.until_ready("db").await;
    let id = world.pod("db").unwrap()["status"]["containerStatuses"][0]["containerID"].clone();
    world
        .runtime
        .stop_container(id.as_str().unwrap().trim_start_matches("coracle://"), 0)
        .await
        .unwrap();
    world.until_restarted("db").await;
    assert!(run(&world, "db", "cat /data/old").await.starts_with("before"));
    world.delete("db").await;
    assert!(disk.join("old").exists(), "a volume outlives its pod");

    put_bound(&world, "c", None, json!({"local": {"path": disk.display().to_string()}}));
    let mut reads = pod(true);
    reads["containers"][0]["command"] = json!(["sleep", "1000"]);
    reads["containers"][0]["volumeMounts"] = json!([{"name": "data", "mountPath": "/data"}]);
    world.create_pod("reader", reads);
    world.until_ready("reader").await;
    assert!(run(&world, "reader", "touch /data/x").await.contains("Read-only file system"));
    world.delete("reader").await;
    world.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_generic_ephemeral_volume_is_only_its_own_pods() {
    let world = World::new().await;
    let path = world.dir.path().join("host").display().to_string();
    let source = json!({"hostPath": {"path": path, "type": "DirectoryOrCreate"}});
    put_bound(&world, "own-v", None, source.clone());
    world.create_pod(
        "own",
        json!({"terminationGracePeriodSeconds": 0,
            "containers": [{"name": "a", "command": ["sh", "-c", "echo 1 > /v/f; sleep 1000"],
                "volumeMounts": [{"name": "v", "mountPath": "/v"}]}],
            "volumes": [{"name": "v", "ephemeral": {"volumeClaimTemplate": {"spec": {}}}}]}),
    );
    told(&world, "own", "PVC default/own-v was not created for pod default/own (pod is not owner)")
        .await;
    let uid = world.pod("own").unwrap()["metadata"]["uid"].as_str().unwrap().to_owned();
    put_bound(&world, "own-v", Some(&uid), source);
    world.until_ready("own").await;
    world.delete("own").await;
    assert!(Path::new(&path).join("f").exists());
    world.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn devices_images_and_memory_are_volumes_too() {
    let world = World::new().await;
    let node = world.dir.path().join("block");
    let device = rustix::fs::makedev(7, 250);
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &node,
        rustix::fs::FileType::BlockDevice,
        rustix::fs::Mode::from_raw_mode(0o600),
        device,
    )
    .unwrap();
    put_bound(
        &world,
        "raw",
        None,
        json!({"volumeMode": "Block", "local": {"path": node.display().to_string()}}),
    );
    world.create_pod(
        "all",
        json!({"terminationGracePeriodSeconds": 0,
            "containers": [{"name": "a", "command": ["sleep", "1000"],
                "resources": {"limits": {"memory": "32Mi"}},
                "volumeDevices": [{"name": "raw", "devicePath": "/dev/xda"}],
                "volumeMounts": [{"name": "img", "mountPath": "/img"},
                    {"name": "img", "mountPath": "/only", "subPath": "bin"},
                    {"name": "mem", "mountPath": "/mem"}]}],
            "volumes": [
                {"name": "raw", "persistentVolumeClaim": {"claimName": "raw"}},
                {"name": "img", "image": {"reference": "busybox:test", "pullPolicy": "IfNotPresent"}},
                {"name": "mem", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}}]}),
    );
    world.until_ready("all").await;
    assert_eq!(run(&world, "all", "stat -c %F:%t:%T /dev/xda").await, "block special file:7:fa\n");
    assert_eq!(run(&world, "all", "ls /img; ls /only | grep -c busybox").await, "bin\n1\n");
    assert!(run(&world, "all", "touch /img/x").await.contains("Read-only file system"));
    assert!(run(&world, "all", "touch /only/x").await.contains("Read-only file system"));
    let full = run(&world, "all", "dd if=/dev/zero of=/mem/f bs=1024 count=4096 2>&1").await;
    assert!(full.contains("No space left on device"), "{full}");
    assert!(run(&world, "all", "df -k /mem").await.contains("1024"));
    // An image that is mounted is in use.
    assert!(world.images.remove_image("busybox:test").await.is_err());
    world.create_pod(
        "lost",
        json!({"terminationGracePeriodSeconds": 0,
            "containers": [{"name": "a", "command": ["sleep", "1000"],
                "volumeMounts": [{"name": "img", "mountPath": "/img"}]}],
            "volumes": [{"name": "img", "image": {"reference": "none:test", "pullPolicy": "Never"}}]}),
    );
    world
        .until("lost", |pod| {
            pod.unwrap()["status"]["containerStatuses"][0]["state"]["waiting"]["reason"]
                == "ErrImageNeverPull"
        })
        .await;
    world.delete("lost").await;
    world.delete("all").await;
    world.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn volumes_that_are_busy_go_with_their_pod_and_what_others_mounted_there_stays() {
    let world = World::new().await;
    let others = tempfile::tempdir().unwrap();
    let precious = others.path().to_path_buf();
    std::fs::write(precious.join("file"), "mine").unwrap();
    let path = "/api/v1/namespaces/default/configmaps/map";
    world.api.put(
        path,
        json!({"metadata": {"name": "map", "namespace": "default"}, "data": {"key": "x"}}),
    );
    world.create_pod(
        "busy",
        json!({"terminationGracePeriodSeconds": 0,
            "containers": [{"name": "a", "command": ["sleep", "1000"], "volumeMounts": [
                {"name": "mem", "mountPath": "/mem"}, {"name": "map", "mountPath": "/map"},
                {"name": "disk", "mountPath": "/disk"},
                {"name": "disk", "mountPath": "/part", "subPath": "part"}]}],
            "volumes": [{"name": "mem", "emptyDir": {"medium": "Memory"}}, {"name": "disk", "emptyDir": {}},
                {"name": "map", "configMap": {"name": "map"}}]}),
    );
    let pod = world.until_ready("busy").await;
    let uid = pod["metadata"]["uid"].as_str().unwrap();
    let pod_dir = world.dir.path().join("agent/pods").join(uid);
    let volume = |name: &str| pod_dir.join("volumes/kubernetes.io~empty-dir").join(name);
    // As a driver, a tool of backups or a container with Bidirectional propagation leaves it.
    let (outer, inner) = (volume("disk").join("outer"), volume("disk").join("outer/inner"));
    std::fs::create_dir(&outer).unwrap();
    sys::mount::mount("tmpfs", &outer, "tmpfs", 0, "").unwrap();
    std::fs::create_dir(&inner).unwrap();
    sys::mount::bind(&precious, &inner).unwrap();
    let mut holders: Vec<std::process::Child> =
        [volume("mem"), inner.clone(), pod_dir.join("volumes")]
            .iter()
            .map(|at| {
                let mut command = std::process::Command::new("sleep");
                command.arg("600").current_dir(at).spawn().unwrap()
            })
            .collect();
    let open = std::fs::File::create(volume("mem").join("held")).unwrap();
    let began = std::time::Instant::now();
    world.delete("busy").await;
    assert!(began.elapsed() < std::time::Duration::from_secs(10), "{:?}", began.elapsed());
    world.finish().await;
    assert_eq!(std::fs::read_to_string(precious.join("file")).unwrap(), "mine");
    drop(open);
    for holder in &mut holders {
        holder.kill().unwrap();
        holder.wait().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_container_uses_is_not_made_and_holds_nothing_up() {
    let world = World::new().await;
    let host = world.dir.path().join("host").display().to_string();
    world.create_pod(
        "idle",
        json!({"terminationGracePeriodSeconds": 0,
            "initContainers": [{"name": "i", "command": ["touch", "/early/f"],
                "volumeMounts": [{"name": "early", "mountPath": "/early"}]}],
            "containers": [{"name": "a", "command": ["sleep", "1000"]}],
            "volumes": [{"name": "dir", "emptyDir": {}}, {"name": "early", "emptyDir": {}},
                {"name": "map", "configMap": {"name": "none"}},
                {"name": "claim", "persistentVolumeClaim": {"claimName": "none"}},
                {"name": "host", "hostPath": {"path": host, "type": "DirectoryOrCreate"}}]}),
    );
    let pod = world.until_ready("idle").await;
    let uid = pod["metadata"]["uid"].as_str().unwrap();
    let dirs =
        world.dir.path().join("agent/pods").join(uid).join("volumes/kubernetes.io~empty-dir");
    assert!(dirs.join("early/f").exists() && !dirs.join("dir").exists());
    assert!(!Path::new(&host).exists());
    let (_, text) = crate::server::get(&world, "/stats/summary", "good").await;
    let summary: Value = serde_json::from_str(&text).unwrap();
    let volumes = summary["pods"][0]["volume"].as_array().unwrap();
    let names: Vec<&str> = volumes.iter().filter_map(|it| it["name"].as_str()).collect();
    assert_eq!(names, ["early"]);
    world.delete("idle").await;
    world.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn variables_are_taken_from_files_that_an_init_container_wrote() {
    let world = World::new().await;
    let from = |name: &str, path: &str, key: &str, optional: bool| {
        json!({"name": name, "valueFrom": {"fileKeyRef":
            {"volumeName": "work", "path": path, "key": key, "optional": optional}}})
    };
    let write = "cd /work; echo \"DB='the  \\$db'\" > env; echo \"X='1'\" > ../env; \
                 ln -s /etc/hostname out; echo A=1 > wrong; ln -s ../env up";
    let pod = |variables: Value| {
        json!({"terminationGracePeriodSeconds": 0,
            "initContainers": [{"name": "init", "command": ["sh", "-c", write],
                                "volumeMounts": [{"name": "work", "mountPath": "/work"}]}],
            "containers": [{"name": "a", "command": ["sleep", "1000"], "env": variables}],
            "volumes": [{"name": "work", "emptyDir": {}}]})
    };
    world.create_pod(
        "good",
        pod(json!([
            from("DB", "env", "DB", false),
            // Links do not lead out of the volume.
            from("UP", "up", "DB", false),
            from("OUT", "out", "X", true),
            from("NONE", "none", "X", true),
            from("LESS", "env", "X", true)
        ])),
    );
    world.until_ready("good").await;
    let seen =
        run(&world, "good", "echo \"$DB|$UP|${OUT-unset}|${NONE-unset}|${LESS-unset}\"").await;
    assert_eq!(seen, "the  $db|the  $db|unset|unset|unset\n");
    world.delete("good").await;
    for (name, variable, wanted) in [
        ("no-file", from("A", "none", "A", false), "there is no file \"none\""),
        (
            "no-key",
            from("A", "env", "A", false),
            "environment variable key \"A\" not found in file \"env\"",
        ),
        ("wrong", from("A", "wrong", "A", true), "couldn't parse env file: invalid"),
    ] {
        world.create_pod(name, pod(json!([variable])));
        let waits = |pod: Option<&Value>| {
            let state = &pod.unwrap()["status"]["containerStatuses"][0]["state"]["waiting"];
            let message = state["message"].as_str().unwrap_or_default();
            state["reason"] == "CreateContainerConfigError" && message.contains(wanted)
        };
        world.until(name, waits).await;
        world.delete(name).await;
    }
    world.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_volume_that_fails_is_told_and_one_that_was_there_holds_no_container_up() {
    let world = World::new().await;
    let at = |kind: &str, name: &str| format!("/api/v1/namespaces/default/{kind}/{name}");
    let put = |kind: &str, name: &str| {
        let data =
            json!({"metadata": {"name": name, "namespace": "default"}, "data": {"k": "dg=="}});
        world.api.put(&at(kind, name), data);
    };
    let mounts = ["map", "secret"].map(|it| json!({"name": it, "mountPath": format!("/{it}")}));
    let script = "until test -e /end; do sleep 0.05; done";
    world.create_pod(
        "web",
        json!({"terminationGracePeriodSeconds": 0, "containers": [
            {"name": "a", "command": ["sh", "-c", script], "volumeMounts": mounts}],
            "volumes": [{"name": "map", "configMap": {"name": "m"}},
                        {"name": "secret", "secret": {"secretName": "s"}}]}),
    );
    let failed =
        |it: &str| format!("FailedMount: MountVolume.SetUp failed for volume {it} not found");
    told(&world, "web", &failed("\"map\" : configmap \"m\"")).await;
    told(&world, "web", &failed("\"secret\" : secret \"s\"")).await;
    let count = async |state: &str| {
        let labels = format!("plugin_name=\"kubernetes.io/configmap\",state=\"{state}\"");
        own_metric(&world, &format!("volume_manager_total_volumes{{{labels}}}")).await
    };
    assert_eq!(count("desired_state_of_world").await, Some(1.0));
    assert_eq!(count("actual_state_of_world").await, None);
    put("configmaps", "m");
    put("secrets", "s");
    world.until_ready("web").await;
    assert_eq!(count("actual_state_of_world").await, Some(1.0));
    let done = async |status: &str| {
        let labels = format!(
            "migrated=\"false\",operation_name=\"volume_mount\",status=\"{status}\",\
             volume_plugin=\"kubernetes.io/configmap\""
        );
        let series = format!("storage_operation_duration_seconds_count{{{labels}}}");
        own_metric(&world, &series).await
    };
    assert_eq!(done("success").await, Some(1.0));
    assert!(done("fail-unknown").await >= Some(1.0));

    world.api.forget_events();
    world.api.delete(&at("configmaps", "m"));
    told(&world, "web", &failed("\"map\" : configmap \"m\"")).await;
    run(&world, "web", "echo > /end").await;
    world.until_restarted("web").await;
    assert_eq!(run(&world, "web", "cat /map/k").await, "dg==");
    world.delete("web").await;
    assert_eq!(count("actual_state_of_world").await, Some(0.0));
    world.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_for_one_pod_is_not_given_to_a_second() {
    let mut world = World::new().await;
    let disk = world.dir.path().join("disk");
    std::fs::create_dir(&disk).unwrap();
    let local = json!({"local": {"path": disk.display().to_string()},
        "accessModes": ["ReadWriteOncePod"]});
    put_bound(&world, "c", None, local);
    let pod = json!({"terminationGracePeriodSeconds": 0,
        "containers": [{"name": "a", "command": ["sleep", "1000"],
            "volumeMounts": [{"name": "v", "mountPath": "/v"}]}],
        "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}]});
    world.create_pod("one", pod.clone());
    world.until_ready("one").await;
    world.stop().await;
    world.create_pod("a-second", pod);
    world.start();
    let used = "FailedMount: MountVolume.SetUp failed for volume \"pv-c\" : volume uses the \
                ReadWriteOncePod access mode and is already in use by another pod";
    told(&world, "a-second", used).await;
    world.until_ready("one").await;
    world.delete("one").await;
    world.until_ready("a-second").await;
    world.delete("a-second").await;
    world.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_local_disk_keeps_the_group_of_the_pod_that_has_it() {
    let world = World::new().await;
    let disk = world.dir.path().join("disk");
    std::fs::create_dir(&disk).unwrap();
    std::fs::write(disk.join("f"), "x").unwrap();
    put_bound(&world, "c", None, json!({"local": {"path": disk.display().to_string()}}));
    let group = || std::os::unix::fs::MetadataExt::gid(&std::fs::metadata(disk.join("f")).unwrap());
    let pod = |group: u32| {
        json!({"terminationGracePeriodSeconds": 0, "securityContext": {"fsGroup": group},
            "containers": [{"name": "a", "command": ["sleep", "1000"],
                "volumeMounts": [{"name": "v", "mountPath": "/v"}]}],
            "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}]})
    };
    world.create_pod("first", pod(1234));
    world.until_ready("first").await;
    assert_eq!(group(), 1234);
    world.create_pod("second", pod(4321));
    world.until_ready("second").await;
    let warned = "AlreadyMountedVolume: The requested fsGroup is 4321, but the volume pv-c has GID \
                  1234. The volume may not be shareable.";
    told(&world, "second", warned).await;
    assert_eq!(group(), 1234, "the first one has it");
    for name in ["first", "second"] {
        world.delete(name).await;
    }
    world.create_pod("third", pod(4321));
    world.until_ready("third").await;
    assert_eq!(group(), 4321);
    world.delete("third").await;
    world.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_may_be_two_volumes_of_a_pod() {
    let world = World::new().await;
    let disk = world.dir.path().join("disk");
    std::fs::create_dir(&disk).unwrap();
    put_bound(&world, "c", None, json!({"local": {"path": disk.display().to_string()}}));
    let names = ["a", "b"];
    world.create_pod(
        "web",
        json!({"terminationGracePeriodSeconds": 0, "containers": [
            {"name": "a", "command": ["sleep", "1000"], "volumeMounts":
                names.map(|it| json!({"name": it, "mountPath": format!("/{it}")}))}],
            "volumes": names.map(|it| json!({"name": it,
                "persistentVolumeClaim": {"claimName": "c"}}))}),
    );
    let web = world.until_ready("web").await;
    run(&world, "web", "echo x > /a/f").await;
    assert_eq!(run(&world, "web", "cat /b/f").await, "x\n");
    let uid = web["metadata"]["uid"].as_str().unwrap();
    let dir = world.dir.path().join("agent/pods").join(uid).join("volumes");
    assert_eq!(sys::mount::mounts_below(&dir).unwrap().len(), 1, "it is mounted once");
    world.delete("web").await;
    world.finish().await;
}
