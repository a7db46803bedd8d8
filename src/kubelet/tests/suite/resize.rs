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

/// Two CPUs for pods, whatever the machine has.
async fn two_cpus() -> World {
    World::with(|config| {
        let cpus = std::thread::available_parallelism().map_or(1, usize::from) as i64;
        let amount = Quantity(format!("{}m", (cpus * 1000 - 2000).max(0)));
        config.kube_reserved.insert("cpu".into(), amount);
        config.enforce_allocatable = false;
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn resources_change_in_place_with_a_restart_or_not_at_all() {
    let mut world = two_cpus().await;
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
    let id = ready["status"]["containerStatuses"][0]["containerID"].as_str().unwrap();
    let container = group.child(id.trim_start_matches("coracle://"));
    let own = || {
        let read = |name: &str| container.read_limit("cpu", name);
        let text = read("cpu.max").or_else(|_| read("cpu.cfs_quota_us")).unwrap();
        text.split_whitespace().next().unwrap().to_owned()
    };
    assert_eq!(own(), "10000", "a container without limits has its pod's");
    let mut pod = world.pod("web").unwrap();
    pod["spec"]["resources"] = whole("300m");
    pod["metadata"]["generation"] = json!(2);
    world.api.put(&World::pod_path("web"), pod);
    let done = |it: &String| it.starts_with("ResizeCompleted: ") && it.contains("300m");
    world.until("web", |_| world.api.events().iter().any(done)).await;
    assert_eq!((quota().as_str(), own().as_str()), ("30000", "30000"));
    world.until("web", |pod| pod.unwrap()["status"]["resources"]["limits"]["cpu"] == "300m").await;
    let granted = world.pod("web").unwrap()["status"]["allocatedResources"].clone();
    assert_eq!(granted, json!({"cpu": "50m"}));

    // What is granted and cannot be given is not told as had.
    let mut pod = world.pod("web").unwrap();
    pod["spec"]["resources"]["limits"]["memory"] = json!("10Ki");
    pod["metadata"]["generation"] = json!(3);
    world.api.put(&World::pod_path("web"), pod);
    let failed = |pod: Option<&Value>| {
        let found = condition(pod.unwrap(), "PodResizeInProgress");
        found.is_some_and(|it| it["message"].as_str().unwrap_or("").contains("below current usage"))
    };
    let pod = world.until("web", failed).await.unwrap();
    assert_eq!(pod["status"]["resources"]["limits"], json!({"cpu": "300m"}));
    world.delete("web").await;
    world.finish().await;
}

/// What the first pod leaves goes to those that wait, the important one first, and no more than
/// there is.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_pod_gives_back_goes_to_those_that_wait_in_their_order() {
    let world = two_cpus().await;
    world.create_pod("first", spec("1500m", "16Mi"));
    world.until_ready("first").await;
    for (name, priority) in [("low", 0), ("high", 1000), ("last", 0)] {
        let mut spec = spec("100m", "16Mi");
        spec["priority"] = json!(priority);
        world.create_pod(name, spec);
        world.until_ready(name).await;
    }
    let waits = |pod: Option<&Value>| {
        let waiting = condition(pod.unwrap(), "PodResizePending");
        waiting.is_some_and(|it| it["reason"] == "Deferred")
    };
    for name in ["low", "high", "last"] {
        resize(&world, name, "700m", "16Mi");
        world.until(name, waits).await;
    }
    // Now 2000m - 800m - 300m are left: for one of them, and the rest of it for nobody.
    resize(&world, "first", "800m", "16Mi");
    world.until("first", |pod| has(pod, "800m", "16Mi")).await;
    world.until("high", |pod| has(pod, "700m", "16Mi")).await;
    assert_eq!(quotas(&world, "high").await, [70_000, 70_000]);
    let started = |name: &str| {
        let uid = world.pod(name).unwrap()["metadata"]["uid"].clone();
        let events = world.api.below("/api/v1/namespaces/default/events");
        let events = events.iter().filter_map(|path| world.api.get(path));
        events
            .filter(|it| it["reason"] == "ResizeStarted" && it["involvedObject"]["uid"] == uid)
            .count()
    };
    world.until("high", |_| started("high") == 1).await;
    for name in ["low", "last"] {
        assert!(waits(world.pod(name).as_ref()), "{name} waits on");
    }
    resize(&world, "first", "200m", "16Mi");
    world.until("low", |pod| has(pod, "700m", "16Mi")).await;
    assert!(waits(world.pod("last").as_ref()), "it came last");
    assert_eq!((started("low"), started("last")), (1, 0));
    world.delete("high").await;
    world.until("last", |pod| has(pod, "700m", "16Mi")).await;
    for name in ["first", "low", "last"] {
        world.delete(name).await;
    }
    world.finish().await;
}
