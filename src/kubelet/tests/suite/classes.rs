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

#[tokio::test(flavor = "multi_thread")]
async fn what_a_handler_cannot_do_is_left_out_or_refused() {
    let world = World::new().await;
    for name in ["bare", "runc"] {
        world.api.put(
            &format!("/apis/node.k8s.io/v1/runtimeclasses/{name}"),
            json!({"metadata": {"name": name}, "handler": name}),
        );
    }
    let spec = |class: Option<&str>, mode: &str| {
        json!({
            "runtimeClassName": class, "terminationGracePeriodSeconds": 0,
            "containers": [{"name": "a", "command": ["sleep", "600"], "volumeMounts": [
                {"name": "v", "mountPath": "/v", "readOnly": true, "recursiveReadOnly": mode}]}],
            "volumes": [{"name": "v", "emptyDir": {}}],
        })
    };
    let cases = [
        (None, "IfPossible", Some("Enabled")),
        (None, "Enabled", Some("Enabled")),
        (Some("runc"), "IfPossible", Some("Enabled")),
        (Some("bare"), "Disabled", Some("Disabled")),
        (Some("bare"), "IfPossible", Some("Disabled")),
        (Some("bare"), "Enabled", None),
    ];
    for (index, (class, mode, want)) in cases.into_iter().enumerate() {
        let name = format!("p{index}");
        world.create_pod(&name, spec(class, mode));
        match want {
            Some(want) => {
                let pod = world.until_ready(&name).await;
                let mount = &pod["status"]["containerStatuses"][0]["volumeMounts"][0];
                assert_eq!(mount["recursiveReadOnly"], want, "{class:?} {mode}");
            }
            None => {
                let waits = |pod: Option<&serde_json::Value>| {
                    let state = &pod.unwrap()["status"]["containerStatuses"][0]["state"];
                    state["waiting"]["reason"] == "CreateContainerConfigError"
                };
                let pod = world.until(&name, waits).await.unwrap();
                let state = &pod["status"]["containerStatuses"][0]["state"];
                assert_eq!(
                    state["waiting"]["message"],
                    "volume \"v\" requested recursive read-only mode, but it is not supported by \
                     the runtime"
                );
            }
        }
        world.delete(&name).await;
    }
    // Nor can it have users of its own, which would be less than was asked for.
    let mut spec = spec(Some("bare"), "Disabled");
    spec["hostUsers"] = json!(false);
    spec["volumes"] = json!([]);
    spec["containers"][0]["volumeMounts"] = json!([]);
    world.create_pod("users", spec);
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    let why = "can't set `spec.hostUsers: false`, RuntimeClass handler \"bare\" does not support \
               user namespaces";
    while !world.api.events().iter().any(|it| it.contains("does not support user")) {
        assert!(std::time::Instant::now() < deadline, "{:#?}", world.api.events());
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    let said = world.api.events().into_iter().filter(|it| it.contains("hostUsers"));
    let wanted = format!("FailedCreatePodSandBox: Failed to create pod sandbox: {why}");
    assert_eq!(said.collect::<Vec<_>>(), [wanted]);
    world.delete("users").await;
    world.finish().await;
}
