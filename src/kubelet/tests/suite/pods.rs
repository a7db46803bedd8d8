//! Pods from their creation to their end.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};

use crate::world::World;

fn log() {
    let _ = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::INFO)
        .with_test_writer()
        .try_init();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_runs_survives_a_restart_of_the_kubelet_and_goes() {
    log();
    let mut world = World::new().await;
    world.create_pod(
        "web",
        json!({
            "terminationGracePeriodSeconds": 1,
            "initContainers": [{"name": "init", "command": ["sh", "-c", "echo made > /work/file"],
                "volumeMounts": [{"name": "work", "mountPath": "/work"}]}],
            "containers": [{"name": "main",
                "command": ["sh", "-c", "cat /work/file; echo $WHO; trap 'exit 0' TERM; while true; do sleep 0.1; done"],
                "env": [{"name": "WHO", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
                "readinessProbe": {"exec": {"command": ["test", "-f", "/work/file"]}, "periodSeconds": 1},
                "volumeMounts": [{"name": "work", "mountPath": "/work"}]}],
            "volumes": [{"name": "work", "emptyDir": {}}],
        }),
    );
    let ready = world.until_ready("web").await;
    let status = &ready["status"];
    assert_eq!(status["phase"], "Running");
    assert_eq!(status["qosClass"], "BestEffort");
    assert_eq!(status["podIP"], "10.99.0.2");
    assert_eq!(status["hostIP"], "192.0.2.1");
    assert_eq!(status["initContainerStatuses"][0]["state"]["terminated"]["reason"], "Completed");
    assert_eq!(status["containerStatuses"][0]["image"], "docker.io/library/busybox:test");
    let id = status["containerStatuses"][0]["containerID"].clone();
    assert!(id.as_str().unwrap().starts_with("coracle://"));
    world.stop().await;
    world.start();
    tokio::time::sleep(std::time::Duration::from_millis(1500)).await;
    let after = world.until_ready("web").await;
    assert_eq!(after["status"]["containerStatuses"][0]["containerID"], id);
    assert_eq!(after["status"]["containerStatuses"][0]["restartCount"], 0);
    let events = world.api.events();
    for want in [
        "Created: Container created",
        "Started: Container started",
        "Pulled: Container image \"busybox:test\" already present on machine and can be accessed by the pod",
    ] {
        assert!(events.iter().any(|it| it == want), "{want}: {events:#?}");
    }
    world.delete("web").await;
    assert!(world.api.events().iter().any(|it| it == "Killing: Stopping container main"));
    world.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_show_their_reasons() {
    log();
    let world = World::new().await;
    let script = |text: &str| json!(["sh", "-c", text]);
    world.create_pod(
        "crash",
        json!({"restartPolicy": "Always",
               "containers": [{"name": "a", "command": script("echo why > /dev/termination-log; exit 3")}]}),
    );
    world.create_pod(
        "never",
        json!({"restartPolicy": "Never", "containers": [{"name": "a", "command": script("exit 0")}]}),
    );
    world.create_pod(
        "config",
        json!({"containers": [{"name": "a", "command": script("sleep 60"),
            "env": [{"name": "X", "valueFrom": {"configMapKeyRef": {"name": "cm", "key": "k"}}}]}]}),
    );
    world.create_pod(
        "start",
        json!({"containers": [{"name": "a", "command": ["/no/such/program"]}]}),
    );
    world.create_pod(
        "sysctl",
        json!({"securityContext": {"sysctls": [{"name": "kernel.msgmax", "value": "1"}]},
            "containers": [{"name": "a", "command": script("sleep 60")}]}),
    );
    world.create_pod(
        "armor",
        json!({"securityContext": {"appArmorProfile": {"type": "RuntimeDefault"}},
            "containers": [{"name": "a", "command": script("sleep 60")}]}),
    );
    world.create_pod(
        "long-name",
        json!({"hostname": "h".repeat(50), "subdomain": "sub", "setHostnameAsFQDN": true,
            "containers": [{"name": "a", "command": script("sleep 60")}]}),
    );
    let waits = |pod: Option<&serde_json::Value>, reason: &str| {
        pod.is_some_and(|pod| {
            pod["status"]["containerStatuses"][0]["state"]["waiting"]["reason"] == reason
        })
    };
    let crash = world.until("crash", |pod| waits(pod, "CrashLoopBackOff")).await.unwrap();
    let container = &crash["status"]["containerStatuses"][0];
    assert_eq!(container["lastState"]["terminated"]["exitCode"], 3);
    assert_eq!(container["lastState"]["terminated"]["message"], "why\n");
    assert_eq!(container["restartCount"], 1);
    assert_eq!(crash["status"]["phase"], "Running");
    let never = world.until("never", |pod| pod.unwrap()["status"]["phase"] == "Succeeded").await;
    assert_eq!(
        never.unwrap()["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"],
        0
    );
    let config =
        world.until("config", |pod| waits(pod, "CreateContainerConfigError")).await.unwrap();
    assert_eq!(
        config["status"]["containerStatuses"][0]["state"]["waiting"]["message"],
        "configmap \"cm\" not found"
    );
    // The object comes, and the pod goes on by itself.
    world.api.put(
        "/api/v1/namespaces/default/configmaps/cm",
        json!({"metadata": {"name": "cm", "namespace": "default"}, "data": {"k": "v"}}),
    );
    world.until_ready("config").await;
    world
        .until("start", |pod| {
            waits(pod, "RunContainerError")
                || waits(pod, "CrashLoopBackOff")
                || waits(pod, "CreateContainerError")
        })
        .await;
    let refused = world.until("sysctl", |pod| pod.unwrap()["status"]["phase"] == "Failed").await;
    let refused = &refused.unwrap()["status"];
    assert_eq!(refused["reason"], "SysctlForbidden");
    assert_eq!(
        refused["message"],
        "Pod was rejected: forbidden sysctl: \"kernel.msgmax\" not allowlisted"
    );
    let has_app_armor = std::fs::read_to_string("/sys/module/apparmor/parameters/enabled")
        .is_ok_and(|text| text.starts_with('Y'));
    if has_app_armor {
        world.until_ready("armor").await;
    } else {
        let blocked = world.until("armor", |pod| waits(pod, "Blocked")).await.unwrap();
        assert_eq!(blocked["status"]["phase"], "Pending");
        assert_eq!(blocked["status"]["reason"], "AppArmor");
    }
    let too_long = |it: &String| {
        it.starts_with("FailedCreatePodSandBox: Failed to create pod sandbox: failed to construct")
    };
    world.until("long-name", |_| world.api.events().iter().any(too_long)).await;
    for name in ["crash", "never", "config", "start", "sysctl", "armor", "long-name"] {
        world.delete(name).await;
    }
    world.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn volumes_follow_their_objects_and_static_pods_their_files() {
    log();
    let world = World::new().await;
    let cm = |value: &str| json!({"metadata": {"name": "cm", "namespace": "default"}, "data": {"k": value}});
    let path = "/api/v1/namespaces/default/configmaps/cm";
    world.api.put(path, cm("one"));
    world.create_pod(
        "vol",
        json!({
            "terminationGracePeriodSeconds": 0, "serviceAccountName": "default",
            "containers": [{"name": "a", "command": ["sleep", "1000"],
                "livenessProbe": {"exec": {"command": ["test", "-f", "/cfg/k"]}, "periodSeconds": 1},
                "volumeMounts": [{"name": "cfg", "mountPath": "/cfg"}, {"name": "tok", "mountPath": "/tok"}]}],
            "volumes": [{"name": "cfg", "configMap": {"name": "cm"}},
                {"name": "tok", "projected": {"sources": [{"serviceAccountToken": {"path": "token"}}]}}],
        }),
    );
    world.until_ready("vol").await;
    let id = world.pod("vol").unwrap()["status"]["containerStatuses"][0]["containerID"].clone();
    let id = id.as_str().unwrap().trim_start_matches("coracle://").to_owned();
    let read = async |file: &str| {
        let command = vec!["cat".to_owned(), file.to_owned()];
        let result = world.runtime.exec_sync(&id, command, 5).await.unwrap();
        String::from_utf8(result.stdout).unwrap()
    };
    assert_eq!(read("/cfg/k").await, "one");
    assert_eq!(read("/tok/token").await, "a-token");
    world.api.put(path, cm("two"));
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while read("/cfg/k").await != "two" {
        assert!(std::time::Instant::now() < deadline, "the file does not follow");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    world.delete("vol").await;

    let file = world.dir.path().join("static/s.yaml");
    let manifest = "apiVersion: v1\nkind: Pod\nmetadata: {name: fixed}\nspec:\n  terminationGracePeriodSeconds: 0\n  \
                    containers: [{name: a, image: 'busybox:test', imagePullPolicy: Never, command: [sleep, '1000']}]\n";
    std::fs::write(&file, manifest).unwrap();
    let mirror = world.until_ready("fixed-n1").await;
    assert_eq!(mirror["metadata"]["annotations"]["kubernetes.io/config.source"], "file");
    assert_eq!(mirror["status"]["observedGeneration"], json!(null));
    std::fs::remove_file(&file).unwrap();
    world.until("fixed-n1", |pod| pod.is_none()).await;
    world.finish().await;
}

/// A static pod's status is at the API server only, with its mirror.
#[tokio::test(flavor = "multi_thread")]
async fn a_static_pod_that_is_ready_stays_so_over_a_new_process() {
    log();
    let mut world = World::new().await;
    let file = world.dir.path().join("static/s.yaml");
    let manifest = "apiVersion: v1\nkind: Pod\nmetadata: {name: fixed}\nspec:\n  \
                    terminationGracePeriodSeconds: 0\n  containers: [{name: a, image: \
                    'busybox:test', imagePullPolicy: Never, command: [sleep, '1000'], \
                    readinessProbe: {exec: {command: [test, -d, /]}, periodSeconds: 1}}]\n";
    std::fs::create_dir_all(file.parent().unwrap()).unwrap();
    std::fs::write(&file, manifest).unwrap();
    world.until_ready("fixed-n1").await;
    world.stop().await;
    let mut changes = world.api.follow();
    world.start();
    tokio::time::sleep(std::time::Duration::from_millis(1500)).await;
    world.until_ready("fixed-n1").await;
    while let Ok((path, change)) = changes.try_recv() {
        let containers = &change["object"]["status"]["containerStatuses"];
        let is_ours = path == World::pod_path("fixed-n1");
        assert!(!is_ours || containers[0]["ready"] == true, "{change:#}");
    }
    std::fs::remove_file(&file).unwrap();
    world.until("fixed-n1", |pod| pod.is_none()).await;
    world.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_static_pod_ends_before_it_or_another_of_its_name_begins() {
    log();
    let world = World::new().await;
    let file = world.dir.path().join("static/s.yaml");
    // The first lets itself be killed only.
    let manifest = |grace: u8, seconds: u16| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: fixed}}\n\
             spec:\n  terminationGracePeriodSeconds: {grace}\n  containers: [{{name: a, \
             image: 'busybox:test', imagePullPolicy: Never, command: [sleep, '{seconds}']}}]\n"
        )
    };
    std::fs::create_dir_all(file.parent().unwrap()).unwrap();
    std::fs::write(&file, manifest(2, 1000)).unwrap();
    let mirror = world.until_ready("fixed-n1").await;
    let restarted = |count: i64| {
        move |pod: Option<&serde_json::Value>| {
            pod.is_some_and(|pod| {
                let status = &pod["status"]["containerStatuses"][0];
                status["restartCount"] == count && status["ready"] == true
            })
        }
    };
    // Put back at once, and put back while it ends.
    for (count, wait) in [(1, 0), (2, 1000)] {
        std::fs::remove_file(&file).unwrap();
        tokio::time::sleep(std::time::Duration::from_millis(wait)).await;
        let mirrored = world.pod("fixed-n1").unwrap();
        assert_eq!(mirrored["metadata"]["uid"], mirror["metadata"]["uid"]);
        assert_eq!(mirrored["status"]["phase"], "Running", "{mirrored:#}");
        std::fs::write(&file, manifest(2, 1000)).unwrap();
        world.until("fixed-n1", restarted(count)).await;
    }
    // Another file with the same words, put in its place as tools do, is the same pod.
    let beside = file.with_file_name(".s.yaml.new");
    std::fs::write(&beside, manifest(2, 1000)).unwrap();
    std::fs::rename(&beside, &file).unwrap();
    tokio::time::sleep(std::time::Duration::from_millis(1500)).await;
    let held = world.pod("fixed-n1").unwrap();
    assert!(restarted(2)(Some(&held)), "{held:#}");
    // Another one waits for its end; what was between them never runs.
    let begun = std::time::Instant::now();
    for seconds in [2000, 3000] {
        std::fs::write(&file, manifest(0, seconds)).unwrap();
        tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    }
    let mirrored = world.pod("fixed-n1").unwrap();
    assert_eq!(mirrored["metadata"]["uid"], mirror["metadata"]["uid"]);
    world
        .until("fixed-n1", |pod| {
            pod.is_some_and(|pod| {
                pod["metadata"]["uid"] != mirror["metadata"]["uid"] && restarted(0)(Some(pod))
            })
        })
        .await;
    assert!(begun.elapsed().as_millis() > 1500, "{:?}", begun.elapsed());
    let command = &world.pod("fixed-n1").unwrap()["spec"]["containers"][0]["command"];
    assert_eq!(command[1], "3000");
    std::fs::remove_file(&file).unwrap();
    world.until("fixed-n1", |pod| pod.is_none()).await;
    world.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn probes_hooks_sidecars_and_lost_sandboxes_are_handled() {
    log();
    let world = World::new().await;
    let shared = world.dir.path().join("shared");
    std::fs::create_dir(&shared).unwrap();
    let mounts = json!([{"name": "shared", "mountPath": "/shared"}]);
    let forever = |name: &str| {
        json!([
            "sh",
            "-c",
            format!(
                "trap 'echo {name} >> /shared/order; exit 0' TERM; while true; do sleep 0.1; done"
            )
        ])
    };
    world.create_pod(
        "app",
        json!({
            "terminationGracePeriodSeconds": 10,
            "initContainers": [
                {"name": "side1", "restartPolicy": "Always", "command": forever("side1"), "volumeMounts": mounts,
                 "startupProbe": {"exec": {"command": ["test", "-d", "/shared"]}, "periodSeconds": 1}},
                {"name": "side2", "restartPolicy": "Always", "command": forever("side2"), "volumeMounts": mounts}],
            "containers": [{"name": "main", "command": forever("main"), "volumeMounts": mounts,
                "livenessProbe": {"exec": {"command": ["test", "!", "-f", "/shared/sick"]},
                                  "periodSeconds": 1, "failureThreshold": 1},
                "lifecycle": {
                    "postStart": {"exec": {"command": ["touch", "/shared/started"]}},
                    "preStop": {"exec": {"command": ["sh", "-c", "echo hook >> /shared/order"]}}}}],
            "volumes": [{"name": "shared", "hostPath": {"path": shared.display().to_string(), "type": "Directory"}}],
        }),
    );
    world.until_ready("app").await;
    assert!(shared.join("started").exists());
    std::fs::write(shared.join("sick"), "").unwrap();
    let restarted = |count: i64| {
        move |pod: Option<&serde_json::Value>| {
            let status = &pod.unwrap()["status"]["containerStatuses"][0];
            status["restartCount"] == count && status["ready"] == true
        }
    };
    world
        .until("app", |_| {
            world
                .api
                .events()
                .iter()
                .any(|it| it.contains("failed liveness probe, will be restarted"))
        })
        .await;
    std::fs::remove_file(shared.join("sick")).unwrap();
    world.until("app", restarted(1)).await;
    let order = || std::fs::read_to_string(shared.join("order")).unwrap_or_default();
    assert_eq!(order(), "hook\nmain\n");
    std::fs::remove_file(shared.join("order")).unwrap();

    // The sandbox's end is not the pod's.
    let sandboxes = world.runtime.list_pod_sandboxes().await.unwrap();
    world.runtime.stop_pod_sandbox(&sandboxes[0].id).await.unwrap();
    world
        .until("app", |_| world.api.events().iter().any(|it| it.starts_with("SandboxChanged: ")))
        .await;
    world.until_ready("app").await;
    let _ = std::fs::remove_file(shared.join("order"));

    world.api.delete_gracefully(&World::pod_path("app"), 10);
    world.until("app", |pod| pod.is_none()).await;
    assert_eq!(order(), "hook\nmain\nside2\nside1\n");
    world.finish().await;
}

/// Nobody who watches a pod sees it with all its containers ended before it is said to have
/// ended itself, be they started again or not.
#[tokio::test(flavor = "multi_thread")]
async fn a_pod_whose_container_is_killed_does_not_seem_to_have_ended() {
    log();
    let world = World::new().await;
    let mut changes = world.api.follow();
    let spec = json!({"terminationGracePeriodSeconds": 1, "containers": [
        {"name": "a", "command": ["sleep", "1000"],
         "startupProbe": {"exec": {"command": ["test", "-f", "/none"]}, "failureThreshold": 1,
                          "periodSeconds": 1, "terminationGracePeriodSeconds": 1}}]});
    world.create_pod("sick", spec);
    let restarted = |pod: Option<&serde_json::Value>| {
        pod.unwrap()["status"]["containerStatuses"][0]["restartCount"] == 1
    };
    world.until("sick", restarted).await;
    world.delete("sick").await;
    let (mut seen, mut ended) = (0, 0);
    while let Ok((path, change)) = changes.try_recv() {
        let pod = &change["object"];
        let state = &pod["status"]["containerStatuses"][0]["state"];
        if path != World::pod_path("sick") || state.is_null() {
            continue;
        }
        seen += 1;
        if !state["terminated"].is_null() {
            ended += 1;
            assert_eq!(pod["status"]["phase"], "Failed", "{pod:#}");
            assert_eq!(state["terminated"]["exitCode"], 137, "{state}");
            assert!(!pod["metadata"]["deletionTimestamp"].is_null(), "{pod:#}");
        }
    }
    assert!(seen > 3 && ended > 0, "{seen} states, {ended} of the end");
    world.finish().await;
}

/// A hook may go on long after its container: the others of the pod do not wait for it.
#[tokio::test(flavor = "multi_thread")]
async fn a_container_begins_again_while_the_kill_of_another_goes_on() {
    log();
    let world = World::new().await;
    let spec = json!({"terminationGracePeriodSeconds": 12, "containers": [
        {"name": "a", "command": ["sleep", "3"],
         "lifecycle": {"preStop": {"sleep": {"seconds": 10}}},
         "livenessProbe": {"exec": {"command": ["test", "-f", "/none"]}, "failureThreshold": 1,
                           "periodSeconds": 1}},
        {"name": "b", "command": ["sh", "-c", "sleep 4; exit 1"]}]});
    world.create_pod("two", spec);
    let count = |pod: &serde_json::Value, at: usize| {
        pod["status"]["containerStatuses"][at]["restartCount"].as_i64()
    };
    let again = |pod: Option<&serde_json::Value>| count(pod.unwrap(), 1) == Some(1);
    world.until("two", again).await;
    let pod = world.pod("two").unwrap();
    assert_eq!(count(&pod, 0), Some(0), "{pod:#}");
    let state = &pod["status"]["containerStatuses"][0]["state"];
    assert_eq!(state["terminated"]["exitCode"], 0, "{state}");
    world.delete("two").await;
    world.finish().await;
}

/// Who waits for the end of a pod that is deleted finds its volumes gone.
#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_pod_has_ended_when_its_volumes_are_gone() {
    log();
    let world = World::new().await;
    // It takes a while to remove them.
    let script = "trap 'exit 0' TERM; cd /v; for i in $(seq 3000); do : > $i; done; : > full; \
                  while true; do sleep 0.1; done";
    world.create_pod(
        "full",
        json!({"terminationGracePeriodSeconds": 30,
            "containers": [{"name": "a", "command": ["sh", "-c", script],
                "readinessProbe": {"exec": {"command": ["test", "-f", "/v/full"]}, "periodSeconds": 1},
                "volumeMounts": [{"name": "v", "mountPath": "/v"}]}],
            "volumes": [{"name": "v", "emptyDir": {}}]}),
    );
    let pod = world.until_ready("full").await;
    let uid = pod["metadata"]["uid"].as_str().unwrap();
    let volumes = world.dir.path().join("agent/pods").join(uid).join("volumes");
    assert!(volumes.exists(), "{}", volumes.display());
    let mut changes = world.api.follow();
    world.api.delete_gracefully(&World::pod_path("full"), 30);
    loop {
        let (path, change) = changes.recv().await.unwrap();
        if path == World::pod_path("full") && change["object"]["status"]["phase"] == "Succeeded" {
            break;
        }
    }
    assert!(!volumes.exists(), "{}", volumes.display());
    world.until("full", |pod| pod.is_none()).await;
    world.finish().await;
}

/// What made a container fail is gone with its image: how long it waited says nothing any more.
#[tokio::test(flavor = "multi_thread")]
async fn a_container_with_another_image_does_not_wait_for_what_the_old_one_did() {
    log();
    let world = World::new().await;
    let spec = json!({"terminationGracePeriodSeconds": 0,
        "containers": [{"name": "a", "command": ["sh", "-c", "exit 3"]}]});
    world.create_pod("web", spec);
    let waits = |pod: Option<&serde_json::Value>| {
        let status = &pod.unwrap()["status"]["containerStatuses"][0];
        status["restartCount"] == 1 && status["state"]["waiting"]["reason"] == "CrashLoopBackOff"
    };
    world.until("web", waits).await;
    let mut pod = world.pod("web").unwrap();
    pod["spec"]["containers"][0]["image"] = json!("docker.io/library/busybox:test");
    pod["metadata"]["generation"] = json!(2);
    let begun = std::time::Instant::now();
    world.api.put(&World::pod_path("web"), pod);
    let again = |pod: Option<&serde_json::Value>| {
        pod.unwrap()["status"]["containerStatuses"][0]["restartCount"] == 2
    };
    world.until("web", again).await;
    // The wait was for ten seconds.
    assert!(begun.elapsed().as_secs() < 5, "{:?}", begun.elapsed());
    world.delete("web").await;
    world.finish().await;
}

/// Serves `answer` (status and body) to those who show the password.
fn manifests(answer: Arc<Mutex<(u16, String)>>) -> u16 {
    use std::io::{Read, Write};
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { continue };
            let mut head = Vec::new();
            let mut byte = [0];
            while !head.ends_with(b"\r\n\r\n") && stream.read_exact(&mut byte).is_ok() {
                head.push(byte[0]);
            }
            let head = String::from_utf8_lossy(&head).to_lowercase();
            let (status, body) = match head.contains("x-password: open") {
                true => answer.lock().unwrap().clone(),
                false => (403, String::new()),
            };
            let text = format!(
                "HTTP/1.1 {status} X\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
                body.len()
            );
            let _ = stream.write_all(text.as_bytes());
        }
    });
    port
}

#[tokio::test(flavor = "multi_thread")]
async fn static_pods_follow_a_url() {
    let list = |names: &[&str]| {
        let pods: Vec<Value> = names
            .iter()
            .map(|name| {
                json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
                       "spec": {"terminationGracePeriodSeconds": 1, "containers": [{
                            "name": "a", "image": "busybox:test", "command": ["sleep", "1000"],
                            "imagePullPolicy": "IfNotPresent"}]}})
            })
            .collect();
        json!({"apiVersion": "v1", "kind": "PodList", "items": pods}).to_string()
    };
    let answer = Arc::new(Mutex::new((503, String::new())));
    let port = manifests(answer.clone());
    let world = World::with(move |config| {
        let flags = [
            format!("manifest-url=http://127.0.0.1:{port}/pods"),
            "manifest-url-header=X-Password:open".to_owned(),
            "http-check-frequency=100ms".to_owned(),
        ];
        kubelet::Configuration::read(None, &flags).unwrap().apply(config).unwrap();
        config.eviction.thresholds.clear();
    })
    .await;
    *answer.lock().unwrap() = (200, list(&["one", "two"]));
    for name in ["one-n1", "two-n1"] {
        let mirror = world.until_ready(name).await;
        assert_eq!(mirror["metadata"]["annotations"]["kubernetes.io/config.source"], "http");
    }
    let uid = world.pod("one-n1").unwrap()["metadata"]["uid"].clone();
    // What is no answer ends nothing.
    *answer.lock().unwrap() = (500, String::new());
    tokio::time::sleep(Duration::from_millis(500)).await;
    *answer.lock().unwrap() = (200, "<html>".to_owned());
    tokio::time::sleep(Duration::from_millis(500)).await;
    *answer.lock().unwrap() = (200, list(&["one"]));
    world.until("two-n1", |pod| pod.is_none()).await;
    assert_eq!(world.until_ready("one-n1").await["metadata"]["uid"], uid);
    *answer.lock().unwrap() = (200, list(&[]));
    world.until("one-n1", |pod| pod.is_none()).await;
    world.finish().await;
}
