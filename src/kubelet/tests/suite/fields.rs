//! Fields of a pod that only its containers can tell of.

use serde_json::{Value, json};

use crate::world::World;

fn words(world: &World, name: &str) -> Vec<String> {
    let text = std::fs::read_to_string(world.dir.path().join("shared").join(name));
    text.unwrap_or_default().lines().map(str::to_owned).collect()
}

/// A pod that writes what it sees into a file of its name, and how it is stopped beside it.
fn looks(world: &World, name: &str, mut fields: Value, container: Value) -> Value {
    let script = format!(
        "cd .; (pwd; echo links:$DB_SERVICE_HOST; readlink /proc/self/ns/ipc; \
         readlink /proc/self/ns/pid; grep -c ' /proc/' /proc/self/mountinfo; hostname) > \
         /shared/{name}; for s in TERM USR1; do trap \"echo $s > /shared/{name}-stop; exit 0\" $s; \
         done; touch /shared/{name}-ready; while true; do sleep 0.1; done"
    );
    let mut one = json!({"name": "a", "command": ["sh", "-c", script],
        "readinessProbe": {"exec": {"command": ["test", "-e", format!("/shared/{name}-ready")]},
                           "periodSeconds": 1},
        "volumeMounts": [{"name": "v", "mountPath": "/shared"}]});
    for (key, value) in container.as_object().unwrap() {
        one[key] = value.clone();
    }
    fields["terminationGracePeriodSeconds"] = json!(5);
    fields["containers"] = json!([one]);
    let path = world.dir.path().join("shared").display().to_string();
    fields["volumes"] = json!([{"name": "v", "hostPath": {"path": path}}]);
    fields
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_pod_asks_for_its_container_finds() {
    let world = World::new().await;
    std::fs::create_dir(world.dir.path().join("shared")).unwrap();
    world.api.put(
        "/api/v1/namespaces/default/services/db",
        json!({"metadata": {"name": "db", "namespace": "default"},
            "spec": {"clusterIP": "10.43.0.9", "ports": [{"port": 80, "protocol": "TCP"}]}}),
    );
    world.create_pod("plain", looks(&world, "plain", json!({}), json!({})));
    let all = json!({"hostIPC": true, "hostPID": true, "enableServiceLinks": false,
        "hostname": "another"});
    let container = json!({"workingDir": "/bin", "lifecycle": {"stopSignal": "SIGUSR1"},
        "securityContext": {"procMount": "Unmasked"}});
    world.create_pod("asks", looks(&world, "asks", all, container));
    for name in ["plain", "asks"] {
        world.until_ready(name).await;
    }
    let own = |kind: &str| {
        let link = std::fs::read_link(format!("/proc/self/ns/{kind}")).unwrap();
        link.to_string_lossy().into_owned()
    };
    let plain = words(&world, "plain");
    assert_eq!(&plain[..2], ["/", "links:10.43.0.9"]);
    assert!(plain[2] != own("ipc") && plain[3] != own("pid"), "{plain:?}");
    assert!(plain[4].parse::<u32>().unwrap() > 0, "some of /proc is masked");
    assert_eq!(plain[5], "plain");
    let asks = words(&world, "asks");
    assert_eq!(&asks[..2], ["/bin", "links:"]);
    assert_eq!(asks[2..], [own("ipc"), own("pid"), "0".to_owned(), "another".to_owned()]);
    for (name, signal) in [("plain", "TERM"), ("asks", "USR1")] {
        world.delete(name).await;
        assert_eq!(words(&world, &format!("{name}-stop")), [signal], "{name}");
    }
    world.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_debugs_a_container_sees_its_processes() {
    let world = World::new().await;
    world.create_pod(
        "app",
        json!({"terminationGracePeriodSeconds": 0,
            "containers": [{"name": "a", "command": ["sleep", "4321"]}]}),
    );
    world.until_ready("app").await;
    let debugger = |name: &str, target: Option<&str>| {
        json!({"name": name, "image": "busybox:test", "imagePullPolicy": "IfNotPresent",
            "command": ["sh", "-c", "grep -l 43[2]1 /proc/1/cmdline > /dev/termination-log"],
            "targetContainerName": target})
    };
    let both = json!([debugger("inside", Some("a")), debugger("outside", None)]);
    world.api.patch(&World::pod_path("app"), &json!({"spec": {"ephemeralContainers": both}}));
    let ended = |pod: Option<&Value>| {
        let all = pod.and_then(|pod| pod["status"]["ephemeralContainerStatuses"].as_array());
        all.is_some_and(|all| {
            all.len() == 2 && all.iter().all(|it| it["state"]["terminated"].is_object())
        })
    };
    let pod = world.until("app", ended).await.unwrap();
    let codes = |name: &str| {
        let all = pod["status"]["ephemeralContainerStatuses"].as_array().unwrap();
        let one = all.iter().find(|it| it["name"] == name).unwrap();
        one["state"]["terminated"]["exitCode"].clone()
    };
    assert_eq!((codes("inside"), codes("outside")), (json!(0), json!(1)));
    world.delete("app").await;
    world.finish().await;
}
