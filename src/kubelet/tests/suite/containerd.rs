//! Pods in a runtime that is not ours: Debian's containerd with runc.

use futures::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;

use crate::server::{get, open};
use crate::world::World;

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_lives_in_containerd_from_its_creation_to_its_end() {
    let mut world = World::with_containerd().await;
    let script = "cat /work/file; echo $WHO; trap 'exit 0' TERM; \
                  while true; do echo hello | nc -l -p 8080; done & \
                  while true; do sleep 0.1; done";
    world.create_pod(
        "web",
        json!({
            "terminationGracePeriodSeconds": 5,
            "initContainers": [{"name": "init", "command": ["sh", "-c", "echo made > /work/file"],
                "volumeMounts": [{"name": "work", "mountPath": "/work"}]}],
            "containers": [{"name": "main", "command": ["sh", "-c", script],
                "resources": {"limits": {"memory": "64Mi", "cpu": "500m"}},
                "env": [{"name": "WHO", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
                "readinessProbe": {"exec": {"command": ["test", "-f", "/work/file"]},
                    "periodSeconds": 1},
                "volumeMounts": [{"name": "work", "mountPath": "/work"}]}],
            "volumes": [{"name": "work", "emptyDir": {}}],
        }),
    );
    let ready = world.until_ready("web").await;
    let status = &ready["status"];
    assert_eq!(status["podIP"], "10.99.0.2");
    assert_eq!(status["initContainerStatuses"][0]["state"]["terminated"]["reason"], "Completed");
    let id = status["containerStatuses"][0]["containerID"].clone();
    assert!(id.as_str().unwrap().starts_with("containerd://"), "{id}");
    let node = world.api.get("/api/v1/nodes/n1").unwrap();
    let version = node["status"]["nodeInfo"]["containerRuntimeVersion"].as_str().unwrap();
    assert!(version.starts_with("containerd://"), "{version}");

    check_log_exec_and_numbers(&world).await;

    world.stop().await;
    world.start();
    tokio::time::sleep(std::time::Duration::from_millis(1500)).await;
    let after = world.until_ready("web").await;
    assert_eq!(after["status"]["containerStatuses"][0]["containerID"], id);
    assert_eq!(after["status"]["containerStatuses"][0]["restartCount"], 0);
    world.delete("web").await;
    world.finish().await;
}

async fn check_log_exec_and_numbers(world: &World) {
    let (status, log) = get(world, "/containerLogs/default/web/main", "good").await;
    assert_eq!((status, log.as_str()), (200, "made\nweb\n"));
    let path =
        "/exec/default/web/main?command=sh&command=-c&command=echo+out;exit+3&stdout=1&stderr=1";
    let mut socket = open(world, path, "v4.channel.k8s.io").await;
    let (mut out, mut end) = (Vec::new(), Value::Null);
    while let Some(Ok(message)) = socket.next().await {
        match message {
            Message::Binary(bytes) if bytes[0] == 1 => out.extend_from_slice(&bytes[1..]),
            Message::Binary(bytes) if bytes[0] == 3 && bytes.len() > 1 => {
                end = serde_json::from_slice(&bytes[1..]).unwrap();
            }
            Message::Close(_) => break,
            _ => {}
        }
    }
    let _ = socket.close(None).await;
    assert_eq!(out, b"out\n");
    assert_eq!(end["details"]["causes"][0]["message"], "3", "{end}");
    let mut forward = open(world, "/portForward/default/web?port=8080", "v4.channel.k8s.io").await;
    let mut said = Vec::new();
    while !said.ends_with(b"hello\n") {
        match forward.next().await.unwrap().unwrap() {
            Message::Binary(bytes) if bytes[0] == 0 => said.extend_from_slice(&bytes[1..]),
            Message::Close(_) => panic!("closed after {said:?}"),
            _ => {}
        }
    }
    let _ = forward.send(Message::Close(None)).await;
    let (status, summary) = get(world, "/stats/summary", "good").await;
    assert_eq!(status, 200, "{summary}");
    let summary: Value = serde_json::from_str(&summary).unwrap();
    let pod = &summary["pods"][0];
    assert_eq!(pod["podRef"]["name"], "web");
    assert!(pod["containers"][0]["memory"]["workingSetBytes"].as_u64().unwrap() > 0, "{pod:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_in_containerd_show_their_reasons() {
    let world = World::with_containerd().await;
    let script = "echo why > /dev/termination-log; exit 3";
    world.create_pod(
        "crash",
        json!({"restartPolicy": "Never",
               "containers": [{"name": "a", "command": ["sh", "-c", script]}]}),
    );
    let failed =
        world.until("crash", |pod| pod.is_some_and(|it| it["status"]["phase"] == "Failed"));
    let failed = failed.await.unwrap();
    let ended = &failed["status"]["containerStatuses"][0]["state"]["terminated"];
    assert_eq!((&ended["exitCode"], &ended["reason"]), (&json!(3), &json!("Error")));
    assert_eq!(ended["message"], "why\n");
    world.create_pod(
        "missing",
        json!({"terminationGracePeriodSeconds": 0,
               "containers": [{"name": "a", "command": ["/no/such/program"]}]}),
    );
    let waits = world.until("missing", |pod| {
        let of = pod.map(|it| it["status"]["containerStatuses"][0].clone()).unwrap_or_default();
        let reasons = [&of["state"]["waiting"]["reason"], &of["lastState"]["terminated"]["reason"]];
        reasons.iter().any(|it| {
            ["RunContainerError", "StartError"].contains(&it.as_str().unwrap_or_default())
        })
    });
    waits.await;
    // Debian's containerd gives a user the groups of the image, whatever it is told.
    world.create_pod(
        "strict",
        json!({"terminationGracePeriodSeconds": 0,
               "securityContext": {"supplementalGroupsPolicy": "Strict"},
               "containers": [{"name": "a", "command": ["sleep", "1000"]}]}),
    );
    let failed = |pod: Option<&Value>| pod.is_some_and(|it| it["status"]["phase"] == "Failed");
    let strict = world.until("strict", failed).await.unwrap();
    assert_eq!(strict["status"]["reason"], "SupplementalGroupsPolicyNotSupported");
    let message = "Pod was rejected: SupplementalGroupsPolicy=Strict is not supported in this node";
    assert_eq!(strict["status"]["message"], message);
    assert!(!world.runtime.gives_groups_strictly());
    world.delete("crash").await;
    world.delete("missing").await;
    world.delete("strict").await;
    world.finish().await;
}
