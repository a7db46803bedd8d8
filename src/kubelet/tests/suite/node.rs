//! What a node says of itself, and what others say of it.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::world::{NODE, World};

fn condition(node: &Value, name: &str) -> Option<String> {
    let conditions = node["status"]["conditions"].as_array()?;
    let found = conditions.iter().find(|it| it["type"] == name)?;
    found["status"].as_str().map(str::to_owned)
}

/// Waits far shorter than an unchanged status is left alone.
async fn until_ready(world: &World) {
    let path = format!("/api/v1/nodes/{NODE}");
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let node = world.api.get(&path).unwrap_or_default();
        if condition(&node, "Ready").as_deref() == Some("True") {
            return;
        }
        assert!(Instant::now() < deadline, "{:#}", node["status"]["conditions"]);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_was_given_up_says_that_it_is_there() {
    let world = World::new().await;
    until_ready(&world).await;
    let path = format!("/api/v1/nodes/{NODE}");
    let declared = world.api.get(&path).unwrap()["status"]["declaredFeatures"].clone();
    let restarts = json!("RestartAllContainersOnContainerExits");
    assert!(declared.as_array().unwrap().contains(&restarts), "{declared}");
    for _ in 0..2 {
        // As the node lifecycle controller does when no heartbeat has come for long.
        let mut conditions = world.api.get(&path).unwrap()["status"]["conditions"].clone();
        for condition in conditions.as_array_mut().unwrap() {
            condition["status"] = "Unknown".into();
            condition["reason"] = "NodeStatusUnknown".into();
        }
        world.api.patch(&path, &json!({"status": {"conditions": conditions}}));
        until_ready(&world).await;
    }
    let node = world.api.get(&path).unwrap();
    assert_eq!(condition(&node, "MemoryPressure").as_deref(), Some("False"), "{node:#}");
    world.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_becomes_of_a_node_is_told_in_events() {
    let world = World::new().await;
    until_ready(&world).await;
    let told = async |reason: &str| {
        let text = format!("{reason}: Node {NODE} status is now: {reason}");
        let deadline = Instant::now() + Duration::from_secs(20);
        while !world.api.events().contains(&text) {
            assert!(Instant::now() < deadline, "{reason} is not in {:#?}", world.api.events());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    for reason in ["NodeHasSufficientMemory", "NodeHasNoDiskPressure", "NodeHasSufficientPID"] {
        told(reason).await;
    }
    let enforced = "NodeAllocatableEnforced: Updated Node Allocatable limit across pods";
    assert!(world.api.events().iter().any(|it| it == enforced), "{:#?}", world.api.events());
    let path = format!("/api/v1/nodes/{NODE}");
    for (unschedulable, reason) in [(true, "NodeNotSchedulable"), (false, "NodeSchedulable")] {
        world.api.patch(&path, &json!({"spec": {"unschedulable": unschedulable}}));
        told(reason).await;
    }
    world.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_others_do_not_know_of_a_node_is_not_answered() {
    let world = World::new().await;
    until_ready(&world).await;
    let path = format!("/api/v1/nodes/{NODE}");
    let mut conditions = world.api.get(&path).unwrap()["status"]["conditions"].clone();
    let theirs = json!({"type": "KernelDeadlock", "status": "Unknown", "reason": "NoData"});
    conditions.as_array_mut().unwrap().push(theirs);
    world.api.patch(&path, &json!({"status": {"conditions": conditions}}));
    let version = || world.api.get(&path).unwrap()["metadata"]["resourceVersion"].clone();
    let told = version();
    // An answer would come at once, and the next one on its heels.
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(version(), told);
    world.finish().await;
}

/// Waits until as many processes are in the group as may be, but for one that came and went.
async fn until_full(group: &sys::cgroup::Group, most: u64) {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let now = group.usage().map_or(0, |usage| usage.processes);
        assert!(now <= most, "{now} of {most} in {}", group.path());
        if now + 1 >= most {
            return;
        }
        assert!(Instant::now() < deadline, "{now} of {most} in {}", group.path());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn processes_are_no_more_than_the_pod_and_the_node_allow() {
    let of = |file: &str| -> u64 {
        let text = std::fs::read_to_string(format!("/proc/sys/kernel/{file}")).unwrap();
        text.trim().parse().unwrap()
    };
    let kept = of("pid_max").min(of("threads-max")) - 40;
    let world = World::with(move |config| {
        let flags = ["pod-max-pids=24".to_owned(), format!("system-reserved=pid={kept}")];
        let thresholds = std::mem::take(&mut config.eviction.thresholds);
        kubelet::Configuration::read(None, &flags).unwrap().apply(config).unwrap();
        config.eviction.thresholds = thresholds;
    })
    .await;
    let forks = json!({"terminationGracePeriodSeconds": 0, "containers": [{"name": "a",
        "command": ["sh", "-c", "(while true; do sleep 1000 & done); exec sleep 1000"]}]});
    let all = sys::cgroup::Hierarchy::detect().unwrap().group(&world.pods_group());
    world.create_pod("one", forks.clone());
    until_full(&all, 24).await;
    world.create_pod("two", forks);
    until_full(&all, 40).await;
    let class = all.child("besteffort");
    let pods: Vec<u64> = class
        .children()
        .into_iter()
        .filter(|name| name.starts_with("pod"))
        .map(|name| class.child(&name).usage().unwrap().processes)
        .collect();
    assert!(pods.len() == 2 && pods.iter().all(|count| (14..=24).contains(count)), "{pods:?}");
    for name in ["one", "two"] {
        world.delete(name).await;
    }
    world.finish().await;
}
