//! Pods whose RuntimeClass names an OCI runtime of the node (Debian's runc).

use serde_json::json;

use crate::world::World;

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_runs_with_the_handler_of_its_runtime_class() {
    let mut world = World::new().await;
    world.api.put(
        "/apis/node.k8s.io/v1/runtimeclasses/other",
        json!({"metadata": {"name": "other"}, "handler": "runc"}),
    );
    let spec = json!({
        "runtimeClassName": "other", "terminationGracePeriodSeconds": 1,
        "initContainers": [{"name": "first", "command": ["sh", "-c", "echo x > /work/first"],
            "volumeMounts": [{"name": "work", "mountPath": "/work"}]}],
        "containers": [{"name": "main",
            "command": ["sh", "-c", "cp /work/first /work/done; exec sleep 600"],
            "resources": {"limits": {"memory": "64Mi", "cpu": "200m"}},
            "readinessProbe": {"exec": {"command": ["cat", "/work/done"]}, "periodSeconds": 1},
            "volumeMounts": [{"name": "work", "mountPath": "/work"}]}],
        "volumes": [{"name": "work", "emptyDir": {}}],
    });
    world.create_pod("guest", spec);
    let pod = world.until_ready("guest").await;
    let state = world.dir.path().join("run/oci/runc");
    let held = || std::fs::read_dir(&state).unwrap().count();
    assert!(held() >= 1, "runc knows the container");
    let node = world.api.get("/api/v1/nodes/n1").unwrap();
    let handlers = node["status"]["runtimeHandlers"].as_array().unwrap();
    assert_eq!(handlers[0]["name"], "");
    let runc = handlers.iter().find(|it| it["name"] == "runc").unwrap();
    assert_eq!(runc["features"], json!({"recursiveReadOnlyMounts": true, "userNamespaces": false}));
    world.stop().await;
    world.start();
    let again = world.until_ready("guest").await;
    let id = |pod: &serde_json::Value| pod["status"]["containerStatuses"][0]["containerID"].clone();
    assert_eq!(id(&again), id(&pod));
    assert_eq!(again["status"]["containerStatuses"][0]["restartCount"], 0);
    world.delete("guest").await;
    assert_eq!(held(), 0, "and forgets it");
    world.finish().await;
}
