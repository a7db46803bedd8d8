//! Containers that have CPUs of their own.

use serde_json::{Value, json};

use crate::server::own_metric;
use crate::world::World;

/// The CPUs that a container's first process may use.
async fn cpus(world: &World, name: &str) -> String {
    let all = world.runtime.list_containers().await.unwrap();
    let pid = all
        .iter()
        .find(|it| it.labels.get("io.kubernetes.pod.name").is_some_and(|pod| pod == name))
        .map_or(0, |it| it.pid);
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    line.unwrap_or_default().trim().to_owned()
}

async fn until_cpus(world: &World, name: &str, want: &str) {
    for _ in 0..500 {
        if cpus(world, name).await == want {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    panic!("{name} may use {}, not {want}", cpus(world, name).await);
}

fn sleeps(resources: Value) -> Value {
    json!({"terminationGracePeriodSeconds": 0, "containers": [
        {"name": "a", "command": ["sleep", "1000"], "resources": resources}]})
}

#[tokio::test(flavor = "multi_thread")]
async fn a_whole_cpu_is_taken_from_the_others_and_given_back() {
    let flags =
        ["cpu-manager-policy=static", "reserved-cpus=0", "topology-manager-policy=restricted"];
    let mut world = World::with(move |config| {
        let flags = flags.map(str::to_owned);
        let read = kubelet::Configuration::read(None, &flags).unwrap();
        let thresholds = std::mem::take(&mut config.eviction.thresholds);
        read.apply(config).unwrap();
        config.eviction.thresholds = thresholds;
    })
    .await;
    let online = std::fs::read_to_string("/sys/devices/system/cpu/online").unwrap();
    let online = online.trim();
    world.create_pod("shares", sleeps(json!({})));
    world.until_ready("shares").await;
    assert_eq!(cpus(&world, "shares").await, online);
    let whole = json!({"cpu": "1", "memory": "16Mi"});
    world.create_pod("alone", sleeps(json!({"limits": whole, "requests": whole})));
    let alone = world.until_ready("alone").await;
    let own = cpus(&world, "alone").await;
    assert!(own.parse::<u32>().is_ok_and(|cpu| cpu > 0), "{own}");
    let state = world.dir.path().join("agent/cpu_manager_state");
    let state: Value = serde_json::from_slice(&std::fs::read(state).unwrap()).unwrap();
    let uid = alone["metadata"]["uid"].as_str().unwrap();
    assert_eq!(state["entries"][uid]["a"], json!(own));
    let shared = state["defaultCpuSet"].as_str().unwrap().to_owned();
    until_cpus(&world, "shares", &shared).await;
    let all = std::thread::available_parallelism().unwrap().get() as f64;
    for (series, want) in [
        ("cpu_manager_pinning_requests_total", 1.0),
        ("cpu_manager_pinning_errors_total", 0.0),
        ("cpu_manager_exclusive_cpu_allocation_count", 1.0),
        // Neither the one that the node keeps.
        ("cpu_manager_shared_pool_size_millicores", (all - 2.0) * 1000.0),
        ("memory_manager_pinning_requests_total", 0.0),
        ("topology_manager_admission_requests_total", 2.0),
        ("topology_manager_admission_errors_total", 0.0),
    ] {
        let series = format!("kubelet_{series}");
        assert_eq!(own_metric(&world, &series).await, Some(want), "{series}");
    }
    world.stop().await;
    world.start();
    world.create_pod("late", sleeps(json!({})));
    world.until_ready("late").await;
    assert_eq!(cpus(&world, "late").await, shared);
    assert_eq!(cpus(&world, "alone").await, own);
    world.delete("alone").await;
    until_cpus(&world, "shares", online).await;
    for name in ["shares", "late"] {
        world.delete(name).await;
    }
    world.finish().await;
}
