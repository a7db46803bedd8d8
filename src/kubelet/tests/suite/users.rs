//! Pods with user namespaces of their own.

use std::os::unix::fs::MetadataExt;

use serde_json::{Value, json};

use crate::world::World;

fn script(text: &str) -> Value {
    json!(["sh", "-c", text])
}

/// The node's id of the pod's root, as written down.
fn first_id(world: &World, pod: &Value) -> u32 {
    let uid = pod["metadata"]["uid"].as_str().unwrap();
    let file = world.dir.path().join("agent/pods").join(uid).join("userns");
    let kept: Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    assert_eq!(kept["uidMappings"], kept["gidMappings"]);
    assert_eq!(kept["uidMappings"][0]["length"], 65_536);
    u32::try_from(kept["uidMappings"][0]["hostId"].as_u64().unwrap()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn root_in_a_pod_is_nobody_on_the_node_and_its_volumes_are_its_own() {
    let mut world = World::new().await;
    world.api.put(
        "/api/v1/namespaces/default/configmaps/cm",
        json!({"metadata": {"name": "cm", "namespace": "default"}, "data": {"k": "v"}}),
    );
    let check = "set -ex; \
        test $(id -u) = 0; \
        test $(stat -c %u:%g /bin/busybox) = 0:0; \
        test $(stat -c %u /) = 0; \
        test $(stat -c %u /made/up) = 0; \
        test $(stat -c %u /dev/null) = 0; \
        test $(stat -c %u /config/..data/k) = 0; \
        test $(cat /config/k) = v; \
        echo x > /dev/null; echo x > /in-root; echo x > /work/by-root; \
        if (echo x > /proc/sys/kernel/core_pattern) 2> /dev/null; then exit 9; fi; \
        test $(cat /proc/self/oom_score_adj) = 1000; \
        cat /proc/self/uid_map > /work/map; \
        touch /dev/shm/x; \
        ( nc -l -p 80 -e cat & ) ; touch /work/done; exec sleep 600";
    let spec = json!({
        "hostUsers": false, "terminationGracePeriodSeconds": 1,
        "containers": [
            {"name": "root", "command": script(check), "terminationMessagePolicy": "FallbackToLogsOnError",
             "readinessProbe": {"exec": {"command": ["sh", "-c",
                 "test -f /work/done && test $(id -u) = 0 && echo x > /work/by-exec"]}, "periodSeconds": 1},
             "volumeMounts": [{"name": "work", "mountPath": "/work"},
                              {"name": "cm", "mountPath": "/config"},
                              {"name": "work", "mountPath": "/made/up/of", "subPath": "sub"}]},
            {"name": "user", "command": script("echo x > /work/by-user; exec sleep 600"),
             "securityContext": {"runAsUser": 1000},
             "volumeMounts": [{"name": "work", "mountPath": "/work"}]}],
        "volumes": [{"name": "work", "emptyDir": {}}, {"name": "cm", "configMap": {"name": "cm"}}],
    });
    world.create_pod("own", spec);
    let pod = world.until_ready("own").await;
    let first = first_id(&world, &pod);
    let uid = pod["metadata"]["uid"].as_str().unwrap();
    let work =
        world.dir.path().join("agent/pods").join(uid).join("volumes/kubernetes.io~empty-dir/work");
    let owner = |name: &str| std::fs::metadata(work.join(name)).unwrap().uid();
    assert_eq!(owner("by-root"), 0, "on disk the ids are the pod's");
    assert_eq!(owner("by-exec"), 0);
    assert_eq!(owner("by-user"), 1000);
    let map = std::fs::read_to_string(work.join("map")).unwrap();
    let want = [String::from("0"), first.to_string(), "65536".into()];
    assert_eq!(map.split_whitespace().collect::<Vec<_>>(), want);
    let processes = world.runtime_processes().await;
    let owners: Vec<u32> = processes
        .iter()
        .map(|pid| std::fs::metadata(format!("/proc/{pid}")).unwrap().uid())
        .collect();
    assert!(owners.contains(&first) && owners.contains(&(first + 1000)), "{owners:?}");

    world.create_pod(
        "other",
        json!({"hostUsers": false, "shareProcessNamespace": true, "containers": [
            {"name": "a", "tty": true, "command": script(
                "test $$ != 1 && test $(stat -c %u /img/bin/busybox) = 0 && exec sleep 600"),
             "volumeMounts": [{"name": "img", "mountPath": "/img"}]},
            {"name": "b", "command": script("mkdir /m && mount -t tmpfs x /m && mount -t proc x /m && exec sleep 600"),
             "securityContext": {"capabilities": {"add": ["SYS_ADMIN"]}}}],
            "volumes": [{"name": "img", "image": {"reference": "busybox:test", "pullPolicy": "IfNotPresent"}}]}),
    );
    world.until_ready("other").await;
    world.stop().await;
    world.start();
    let other = world.until_ready("other").await;
    assert_ne!(first_id(&world, &other), first);
    assert_eq!(first_id(&world, &world.until_ready("own").await), first);
    assert_eq!(other["status"]["containerStatuses"][1]["restartCount"], 0);
    let node = world.api.get("/api/v1/nodes/n1").unwrap();
    assert_eq!(node["status"]["runtimeHandlers"][0]["features"]["userNamespaces"], true);
    assert_eq!(node["status"]["features"]["supplementalGroupsPolicy"], true);
    for name in ["own", "other"] {
        world.delete(name).await;
    }
    world.finish().await;
}
