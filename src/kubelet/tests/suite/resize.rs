//! Resources that change while their pod runs.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use serde_json::{Value, json};

use crate::world::World;

fn spec(cpu: &str, memory: &str) -> Value {
    let list = json!({"cpu": cpu, "memory": memory});
    json!({"terminationGracePeriodSeconds": 0,
        "containers": [{"name": "a", "command": ["sleep", "1000"],
            "resources": {"requests": list, "limits": list},
            "resizePolicy": [{"resourceName": "cpu", "restartPolicy": "NotRequired"},
                             {"resourceName": "memory", "restartPolicy": "RestartContainer"}]}]})
}

/// As the API server does for a patch of the subresource `resize`.
fn resize(world: &World, name: &str, cpu: &str, memory: &str) {
    let mut pod = world.pod(name).unwrap();
    let list = json!({"cpu": cpu, "memory": memory});
    pod["spec"]["containers"][0]["resources"] = json!({"requests": list, "limits": list});
    pod["metadata"]["generation"] = json!(pod["metadata"]["generation"].as_i64().unwrap() + 1);
    world.api.put(&World::pod_path(name), pod);
}

fn condition<'a>(pod: &'a Value, type_: &str) -> Option<&'a Value> {
    pod["status"]["conditions"].as_array()?.iter().find(|it| it["type"] == type_)
}

fn has(pod: Option<&Value>, cpu: &str, memory: &str) -> bool {
    let pod = pod.unwrap();
    let status = &pod["status"]["containerStatuses"][0];
    status["allocatedResources"] == json!({"cpu": cpu, "memory": memory})
        && status["resources"]["limits"] == json!({"cpu": cpu, "memory": memory})
        && status["ready"] == true
        && condition(pod, "PodResizeInProgress").is_none()
        && condition(pod, "PodResizePending").is_none()
}

/// CPU quota of the container and of its pod, in microseconds.
async fn quotas(world: &World, name: &str) -> Vec<i64> {
    let pod = world.pod(name).unwrap();
    let uid = pod["metadata"]["uid"].as_str().unwrap();
    let id = pod["status"]["containerStatuses"][0]["containerID"].as_str().unwrap();
    let id = id.trim_start_matches("coracle://");
    let hierarchy = sys::cgroup::Hierarchy::detect().unwrap();
    let parent = hierarchy.group(&format!("{}/pod{uid}", world.pods_group()));
    [parent.child(id), parent]
        .iter()
        .map(|group| {
            let read = |name: &str| group.read_limit("cpu", name);
            let text = read("cpu.max").or_else(|_| read("cpu.cfs_quota_us")).unwrap();
            text.split_whitespace().next().unwrap().parse().unwrap()
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn resources_change_in_place_with_a_restart_or_not_at_all() {
    let mut world = World::with(|config| {
        // Two CPUs and half a gibibyte for pods, whatever the machine has.
        let cpus = std::thread::available_parallelism().map_or(1, usize::from) as i64;
        let reserve = |amount: i64| format!("{amount}m");
        let amount = Quantity(reserve((cpus * 1000 - 2000).max(0)));
        config.kube_reserved.insert("cpu".into(), amount);
        config.enforce_allocatable = false;
    })
    .await;
    world.create_pod("web", spec("100m", "32Mi"));
    let ready = world.until_ready("web").await;
    let id = ready["status"]["containerStatuses"][0]["containerID"].clone();
    assert_eq!(quotas(&world, "web").await, [10_000, 10_000]);

    resize(&world, "web", "200m", "32Mi");
    let grown = world.until("web", |pod| has(pod, "200m", "32Mi")).await.unwrap();
    assert_eq!(grown["status"]["containerStatuses"][0]["containerID"], id, "it was not restarted");
    assert_eq!(quotas(&world, "web").await, [20_000, 20_000]);
    resize(&world, "web", "50m", "32Mi");
    world.until("web", |pod| has(pod, "50m", "32Mi")).await;
    assert_eq!(quotas(&world, "web").await, [5_000, 5_000]);

    resize(&world, "web", "50m", "64Mi");
    let restarted = world.until("web", |pod| has(pod, "50m", "64Mi")).await.unwrap();
    assert_eq!(restarted["status"]["containerStatuses"][0]["restartCount"], 1);
    let events = world.api.events();
    assert!(
        events.iter().any(|it| it == "Killing: Container a resize requires restart"),
        "{events:#?}"
    );
    assert!(events.iter().any(|it| it.starts_with("ResizeCompleted: Pod resize completed: ")));

    resize(&world, "web", "999", "64Mi");
    let pending = |reason: &'static str| {
        move |pod: Option<&Value>| {
            condition(pod.unwrap(), "PodResizePending").is_some_and(|it| it["reason"] == reason)
        }
    };
    let never = world.until("web", pending("Infeasible")).await.unwrap();
    let message = condition(&never, "PodResizePending").unwrap()["message"].as_str().unwrap();
    assert!(
        message.starts_with("Node didn't have enough capacity: cpu, requested: 999000, capacity: "),
        "{message}"
    );
    assert_eq!(never["status"]["containerStatuses"][0]["allocatedResources"]["cpu"], "50m");

    // What was granted holds for the next kubelet as well; what waits is granted when it fits.
    world.create_pod("other", spec("1500m", "16Mi"));
    world.until_ready("other").await;
    resize(&world, "web", "1", "64Mi");
    world.until("web", pending("Deferred")).await;
    world.stop().await;
    world.start();
    world.until("web", pending("Deferred")).await;
    assert_eq!(quotas(&world, "web").await, [5_000, 5_000]);
    world.delete("other").await;
    world.until("web", |pod| has(pod, "1", "64Mi")).await;
    assert_eq!(quotas(&world, "web").await, [100_000, 100_000]);
    assert_eq!(
        world.runtime.list_containers().await.unwrap().iter().filter(|it| it.pid != 0).count(),
        1
    );
    world.delete("web").await;
    world.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_resources_of_a_whole_pod_change_in_place() {
    let world = World::new().await;
    let whole = |cpu: &str| json!({"requests": {"cpu": "50m"}, "limits": {"cpu": cpu}});
    let spec = json!({"terminationGracePeriodSeconds": 0, "resources": whole("100m"),
        "containers": [{"name": "a", "command": ["sleep", "1000"]}]});
    world.create_pod("web", spec);
    let ready = world.until_ready("web").await;
    let uid = ready["metadata"]["uid"].as_str().unwrap();
    let path = format!("{}/burstable/pod{uid}", world.pods_group());
    let group = sys::cgroup::Hierarchy::detect().unwrap().group(&path);
    let quota = || {
        let read = |name: &str| group.read_limit("cpu", name);
        let text = read("cpu.max").or_else(|_| read("cpu.cfs_quota_us")).unwrap();
        text.split_whitespace().next().unwrap().to_owned()
    };
    assert_eq!(quota(), "10000");
    let mut pod = world.pod("web").unwrap();
    pod["spec"]["resources"] = whole("300m");
    pod["metadata"]["generation"] = json!(2);
    world.api.put(&World::pod_path("web"), pod);
    let done = |it: &String| it.starts_with("ResizeCompleted: ") && it.contains("300m");
    world.until("web", |_| world.api.events().iter().any(done)).await;
    assert_eq!(quota(), "30000");
    world.until("web", |pod| pod.unwrap()["status"]["resources"]["limits"]["cpu"] == "300m").await;
    let granted = world.pod("web").unwrap()["status"]["allocatedResources"].clone();
    assert_eq!(granted, json!({"cpu": "50m"}));
    world.delete("web").await;
    world.finish().await;
}
