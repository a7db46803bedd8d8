//! The action RestartAllContainers with containers of the built-in runtime.

use serde_json::{Value, json};

use crate::world::World;

fn status<'a>(pod: &'a Value, list: &str, name: &str) -> &'a Value {
    pod["status"][list].as_array().unwrap().iter().find(|it| it["name"] == name).unwrap()
}

/// `trigger` ends with 42 as often as there are lines to take from the volume; `setup` says
/// how often it ran, `beside` how often it was told to end.
fn spec() -> Value {
    let mounts = json!([{"name": "v", "mountPath": "/v"}]);
    let shell = |script: &str| json!(["sh", "-c", script]);
    json!({
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 30,
        "volumes": [{"name": "v", "emptyDir": {}}],
        "initContainers": [
            {"name": "setup", "command": shell("echo s >> /v/setup"), "volumeMounts": mounts}],
        "containers": [
            {"name": "trigger", "volumeMounts": mounts, "restartPolicy": "Never",
             "restartPolicyRules": [{"action": "RestartAllContainers",
                                     "exitCodes": {"operator": "In", "values": [42]}}],
             "command": shell("while [ ! -e /v/go ]; do sleep 0.1; done; rm /v/go; exit 42")},
            {"name": "beside", "volumeMounts": mounts,
             "lifecycle": {"preStop": {"exec": {"command": shell("touch /v/hook")}}},
             "command": shell("trap 'touch /v/term' TERM; echo b >> /v/beside; \
                               while true; do sleep 0.1; done")},
            {"name": "done", "command": shell("exit 0")}],
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_s_end_has_all_of_them_run_anew_where_they_are() {
    let mut world = World::new().await;
    world.create_pod("p", spec());
    let is_up = |round: usize, pod: Option<&Value>| {
        let Some(pod) = pod else { return false };
        let ready = ["trigger", "beside"].iter().all(|name| {
            let list = pod["status"]["containerStatuses"].as_array();
            let found = list.and_then(|it| it.iter().find(|it| it["name"] == *name));
            found
                .is_some_and(|it| it["state"]["running"].is_object() && it["restartCount"] == round)
        });
        let done = pod["status"]["containerStatuses"]
            .as_array()
            .and_then(|it| it.iter().find(|it| it["name"] == "done"))
            .is_some_and(|it| it["state"]["terminated"]["exitCode"] == 0);
        ready && done
    };
    let first = world.until("p", |pod| is_up(0, pod)).await.unwrap();
    let uid = first["metadata"]["uid"].as_str().unwrap();
    let volume =
        world.dir.path().join(format!("agent/pods/{uid}/volumes/kubernetes.io~empty-dir/v"));
    let sandbox = world.runtime.list_pod_sandboxes().await.unwrap()[0].id.clone();
    let condition = |pod: &Value| {
        let all = pod["status"]["conditions"].as_array().unwrap().clone();
        all.into_iter().find(|it| it["type"] == "AllContainersRestarting").unwrap()
    };
    assert_eq!(condition(&first)["status"], "False");

    let begun = std::time::Instant::now();
    std::fs::write(volume.join("go"), "").unwrap();
    let second = world.until("p", |pod| is_up(1, pod)).await.unwrap();
    assert!(begun.elapsed().as_secs() < 20, "nobody waits for the grace period");
    assert_eq!(second["status"]["phase"], "Running");
    assert_eq!(condition(&second)["status"], "False");
    for (list, name) in [
        ("initContainerStatuses", "setup"),
        ("containerStatuses", "trigger"),
        ("containerStatuses", "beside"),
        ("containerStatuses", "done"),
    ] {
        let it = status(&second, list, name);
        assert_eq!(it["restartCount"], 1, "{it:#}");
        let last = &it["lastState"]["terminated"];
        assert_eq!(last["reason"], "RestartingAllContainers", "{it:#}");
        assert_eq!(last["exitCode"], 137, "{it:#}");
    }
    // Sandbox, address, volume and what is in it are those of before.
    let sandboxes = world.runtime.list_pod_sandboxes().await.unwrap();
    assert_eq!(sandboxes.iter().map(|it| &it.id).collect::<Vec<_>>(), [&sandbox]);
    assert_eq!(second["status"]["podIP"], first["status"]["podIP"]);
    let lines =
        |name: &str| std::fs::read_to_string(volume.join(name)).unwrap_or_default().lines().count();
    assert_eq!((lines("setup"), lines("beside")), (2, 2));
    assert!(!volume.join("hook").exists() && !volume.join("term").exists());
    let containers = world.runtime.list_containers().await.unwrap();
    assert_eq!(containers.len(), 4, "the old ones are gone");

    // A kubelet that ends in between finishes it: the cause is still there.
    world.stop().await;
    std::fs::write(volume.join("go"), "").unwrap();
    let ended = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while volume.join("go").exists() {
        assert!(std::time::Instant::now() < ended, "the trigger does not see it");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    world.start();
    let third = world.until("p", |pod| is_up(2, pod)).await.unwrap();
    assert_eq!(lines("setup"), 3);
    assert_eq!(third["status"]["phase"], "Running");
    world.delete("p").await;
    world.finish().await;
}
