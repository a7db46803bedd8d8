//! Pods that the node has no place for, and those that make room.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use serde_json::{Value, json};

use crate::server::own_metric;
use crate::world::World;

fn port(number: u16) -> Value {
    json!({"terminationGracePeriodSeconds": 0, "containers": [{"name": "a",
        "command": ["sleep", "1000"], "ports": [{"containerPort": 80, "hostPort": number}]}]})
}

fn asks(cpu: &str) -> Value {
    json!({"terminationGracePeriodSeconds": 0, "containers": [{"name": "a",
        "command": ["sleep", "1000"], "resources": {"requests": {"cpu": cpu}}}]})
}

fn has_reason(reason: &'static str) -> impl Fn(Option<&Value>) -> bool {
    move |pod| {
        pod.is_some_and(|it| it["status"]["phase"] == "Failed" && it["status"]["reason"] == reason)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_pods_that_come_together_with_one_host_port_one_runs() {
    let world = World::new().await;
    let names = ["a", "b", "c", "d"];
    for name in names {
        world.create_pod(name, port(21_017));
    }
    let mut running = Vec::new();
    for name in names {
        let pod = world
            .until(name, |pod| {
                has_reason("NodePorts")(pod)
                    || pod.is_some_and(|it| it["status"]["phase"] == "Running")
            })
            .await
            .unwrap();
        if pod["status"]["phase"] == "Running" {
            running.push(name);
            continue;
        }
        assert_eq!(
            pod["status"]["message"],
            "Pod was rejected: Predicate NodePorts failed: \
             node(s) didn't have free ports for the requested pod ports"
        );
    }
    assert_eq!(running.len(), 1, "{running:?}");
    // The port is free as soon as its pod has gone.
    world.delete(running[0]).await;
    world.create_pod("next", port(21_017));
    world.until_ready("next").await;
    for name in names.into_iter().chain(["next"]).filter(|name| *name != running[0]) {
        world.delete(name).await;
    }
    world.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_critical_pod_makes_room_for_itself() {
    let world = World::with(|config| {
        // One CPU is left for pods.
        let cpus = std::thread::available_parallelism().unwrap().get();
        let reserved = ("cpu".to_owned(), Quantity((cpus - 1).to_string()));
        config.kube_reserved = [reserved].into();
    })
    .await;
    world.create_pod("small", asks("300m"));
    world.create_pod("large", asks("600m"));
    for name in ["small", "large"] {
        world.until_ready(name).await;
    }
    world.create_pod("late", asks("500m"));
    let late = world.until("late", has_reason("OutOfcpu")).await.unwrap();
    assert_eq!(
        late["status"]["message"],
        "Pod was rejected: Node didn't have enough resource: cpu, requested: 500, used: 900, \
         capacity: 1000"
    );
    let mut critical = asks("500m");
    critical["priority"] = json!(2_000_001_000);
    world.create_pod("critical", critical);
    world.until_ready("critical").await;
    let ended = world.until("large", has_reason("Preempting")).await.unwrap();
    assert_eq!(ended["status"]["message"], "Preempted in order to admit critical pod");
    let conditions = ended["status"]["conditions"].as_array().unwrap();
    assert!(conditions.iter().any(|it| it["type"] == "DisruptionTarget"));
    let preempted = "kubelet_preemptions{preemption_signal=\"cpu\"}";
    assert_eq!(own_metric(&world, preempted).await, Some(1.0));
    let events = world.api.events();
    let want = "Preempting: Preempted in order to admit critical pod";
    assert!(events.iter().any(|it| it.starts_with(want)), "{events:#?}");
    world.until_ready("small").await;
    for name in ["small", "large", "late", "critical"] {
        world.delete(name).await;
    }
    world.finish().await;
}
