//! Devices that plugins bring: into containers, over restarts, and on the bad days of plugins.

use std::time::{Duration, Instant};

use kubelet::devices::messages::{DeviceList, HEALTHY, PluginOptions, VERSION};
use serde_json::{Value, json};

use crate::device_plugin::{Fault, Plugin, RESOURCE, device, healthy};
use crate::server::own_metric;
use crate::volumes::run;
use crate::world::World;

async fn until(what: &str, test: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !test() {
        assert!(Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Capacity and allocatable of the node, as `2/1`.
fn told(world: &World) -> String {
    let node = world.api.get("/api/v1/nodes/n1").unwrap_or_default();
    let of = |list: &str| node["status"][list][RESOURCE].as_str().unwrap_or("-").to_owned();
    format!("{}/{}", of("capacity"), of("allocatable"))
}

async fn until_told(world: &World, want: &str) {
    until(&format!("the node tells {want}"), || told(world) == want).await;
}

pub fn describe_device(world: &World) {
    let dir = world.dir.path().join("cdi");
    std::fs::create_dir(&dir).unwrap();
    let spec = json!({"cdiVersion": "0.6.0", "kind": "example.com/thing", "devices": [
        {"name": "one", "containerEdits": {"env": ["CDI=yes"],
            "deviceNodes": [{"path": "/dev/cdi", "hostPath": "/dev/zero"}]}}]});
    std::fs::write(dir.join("thing.json"), spec.to_string()).unwrap();
}

fn asks(count: u32) -> Value {
    let amount = json!({RESOURCE: count.to_string()});
    json!({"terminationGracePeriodSeconds": 0, "restartPolicy": "Always", "containers": [
        {"name": "a", "command": ["sleep", "1000"], "env": [{"name": "OWN", "value": "pod"}],
         "resources": {"limits": amount, "requests": amount}}]})
}

fn health(pod: Option<&Value>) -> String {
    let status = &pod.unwrap_or(&Value::Null)["status"]["containerStatuses"][0];
    let resources = status["allocatedResourcesStatus"][0]["resources"].as_array();
    let one = |it: &Value| {
        format!("{}={}", it["resourceID"].as_str().unwrap(), it["health"].as_str().unwrap())
    };
    resources.into_iter().flatten().map(one).collect::<Vec<_>>().join(" ")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_gets_what_its_plugin_says_and_keeps_it_over_restarts() {
    let mut world = World::new().await;
    describe_device(&world);
    let mut plugin = Plugin::new(world.dir.path(), healthy(&["t1", "t2"]));
    plugin.options = PluginOptions { pre_start_required: true, ..PluginOptions::default() };
    plugin.start().await;
    until_told(&world, "2/2").await;
    world.create_pod("p", asks(1));
    let pod = world.until_ready("p").await;
    assert_eq!(health(Some(&pod)), "t1=Healthy");
    for series in [
        "kubelet_device_plugin_registration_total",
        "kubelet_device_plugin_alloc_duration_seconds_count",
    ] {
        let series = format!("{series}{{resource_name=\"{RESOURCE}\"}}");
        assert_eq!(own_metric(&world, &series).await, Some(1.0), "{series}");
    }
    let script = "echo $THINGS $OWN $CDI; ls -d /things/.; test -c /dev/thing && \
                  test -c /dev/cdi && echo devices; touch /things/x 2>/dev/null || echo read-only";
    let shown = run(&world, "p", script).await;
    assert_eq!(shown, "t1 pod yes\n/things/.\ndevices\nread-only\n");
    assert_eq!(plugin.seen.lock().started, [["t1"]]);
    let checkpoint = world.dir.path().join("agent/device-plugins/kubelet_internal_checkpoint");
    let read =
        || -> Value { serde_json::from_slice(&std::fs::read(&checkpoint).unwrap()).unwrap() };
    let entry = read()["Data"]["PodDeviceEntries"][0].clone();
    assert_eq!(entry["PodUID"], pod["metadata"]["uid"]);
    assert_eq!(entry["DeviceIDs"], json!({"-1": ["t1"]}));

    // The kubelet restarts; its plugin sees that the socket is gone, and comes back.
    plugin.stop().await;
    world.stop().await;
    world.start();
    until_told(&world, "0/0").await;
    plugin.start().await;
    until_told(&world, "2/2").await;
    world.create_pod("q", asks(1));
    world.until_ready("q").await;
    assert_eq!(run(&world, "q", "echo $THINGS").await, "t2\n");
    // A container that is started anew has the devices that it had, without asking for them.
    let restarted = |pod: Option<&Value>| {
        let status = &pod.unwrap()["status"]["containerStatuses"][0];
        status["restartCount"] == 1 && !status["state"]["running"].is_null()
    };
    for pid in processes(&world, "p").await {
        rustix::process::kill_process(
            rustix::process::Pid::from_raw(pid).unwrap(),
            rustix::process::Signal::KILL,
        )
        .unwrap();
    }
    world.until("p", restarted).await;
    assert_eq!(run(&world, "p", "echo $THINGS").await, "t1\n");
    assert_eq!(plugin.seen.lock().allocated, [["t1"], ["t2"]]);
    assert_eq!(plugin.seen.lock().started, [["t1"], ["t2"], ["t1"]]);
    for name in ["p", "q"] {
        world.delete(name).await;
    }
    until("nothing is kept for pods that are gone", || {
        read()["Data"]["PodDeviceEntries"] == json!([])
    })
    .await;
    plugin.stop().await;
    world.finish().await;
}

async fn processes(world: &World, name: &str) -> Vec<i32> {
    let all = world.runtime.list_containers().await.unwrap();
    all.iter()
        .filter(|it| it.labels.get("io.kubernetes.pod.name").is_some_and(|pod| pod == name))
        .map(|it| it.pid)
        .filter(|pid| *pid > 0)
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_plugin_says_of_its_devices_is_told_to_everybody() {
    let world = World::new().await;
    describe_device(&world);
    let mut plugin = Plugin::new(world.dir.path(), healthy(&["t1", "t2", "t3"]));
    plugin.start().await;
    until_told(&world, "3/3").await;
    world.create_pod("p", asks(2));
    world.until_ready("p").await;
    let sick =
        DeviceList { devices: vec![device("t1", HEALTHY, &[]), device("t2", "Unhealthy", &[])] };
    plugin.tell(sick);
    until_told(&world, "2/1").await;
    world.until("p", |pod| health(pod) == "t1=Healthy t2=Unhealthy").await;
    // The plugin dies: what it brought cannot be given out, and nobody loses it.
    plugin.stop().await;
    until_told(&world, "2/0").await;
    world.until("p", |pod| health(pod) == "t1=Unhealthy t2=Unhealthy").await;
    world.create_pod("late", asks(1));
    let late =
        world.until("late", |pod| pod.unwrap()["status"]["phase"] == "Failed").await.unwrap();
    assert_eq!(late["status"]["reason"], "UnexpectedAdmissionError");
    assert_eq!(
        late["status"]["message"],
        "Pod was rejected: Allocate failed due to no healthy devices present; cannot allocate \
         unhealthy devices example.com/thing, which is unexpected"
    );
    plugin.tell(healthy(&["t1", "t2", "t3"]));
    plugin.start().await;
    until_told(&world, "3/3").await;
    world.until("p", |pod| health(pod) == "t1=Healthy t2=Healthy").await;
    for name in ["p", "late"] {
        world.delete(name).await;
    }
    plugin.stop().await;
    world.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plugin_that_refuses_or_answers_nonsense_refuses_the_pod_alone() {
    let world = World::new().await;
    describe_device(&world);
    let mut plugin = Plugin::new(world.dir.path(), healthy(&["t1"]));
    plugin.start().await;
    until_told(&world, "1/1").await;
    let expect =
        |why: &str| format!("Pod was rejected: Allocate failed due to {why}, which is unexpected");
    let cases = [
        (Some(Fault::Fails("out of order")), 1, "rpc error: code = Internal desc = out of order"),
        (
            Some(Fault::Empty),
            1,
            "no containers return in allocation response \
             &AllocateResponse{ContainerResponses:[]*ContainerAllocateResponse{},}",
        ),
        (
            None,
            2,
            "requested number of devices unavailable for example.com/thing. Requested: 2, \
             Available: 1",
        ),
    ];
    for (at, (fault, count, why)) in cases.into_iter().enumerate() {
        plugin.faults.lock().extend(fault);
        let name = format!("p{at}");
        world.create_pod(&name, asks(count));
        let failed = |pod: Option<&Value>| pod.unwrap()["status"]["phase"] == "Failed";
        let pod = world.until(&name, failed).await.unwrap();
        assert_eq!(pod["status"]["message"], json!(expect(why)));
        world.delete(&name).await;
    }
    // Nothing of it stays taken.
    world.create_pod("good", asks(1));
    world.until_ready("good").await;
    world.delete("good").await;
    let refused = |resource: &'static str, version: &'static str| {
        let plugin = &plugin;
        async move { plugin.register(resource, version).await.unwrap_err().message }
    };
    assert_eq!(
        refused(RESOURCE, "v1").await,
        "requested API version \"v1\" is not supported by kubelet. Supported version is [\"v1beta1\"]"
    );
    assert_eq!(
        refused("kubernetes.io/thing", VERSION).await,
        "the ResourceName \"kubernetes.io/thing\" is invalid"
    );
    plugin.stop().await;
    world.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plugin_may_choose_and_devices_lie_where_the_topology_wants_them() {
    let world = World::with(|config| {
        let flags = ["topology-manager-policy=single-numa-node".to_owned()];
        let read = kubelet::Configuration::read(None, &flags).unwrap();
        let thresholds = std::mem::take(&mut config.eviction.thresholds);
        read.apply(config).unwrap();
        config.eviction.thresholds = thresholds;
    })
    .await;
    describe_device(&world);
    let near = |id: &str| device(id, HEALTHY, &[0]);
    // The last lies on a node that this machine does not have.
    let devices = vec![near("t1"), near("t2"), near("t3"), device("far", HEALTHY, &[63])];
    let mut plugin = Plugin::new(world.dir.path(), DeviceList { devices });
    plugin.options =
        PluginOptions { get_preferred_allocation_available: true, ..PluginOptions::default() };
    plugin.likes.lock().extend(["t3".to_owned(), "nonsense".to_owned()]);
    plugin.start().await;
    until_told(&world, "4/4").await;
    world.create_pod("p", asks(1));
    world.until_ready("p").await;
    assert_eq!(run(&world, "p", "echo $THINGS").await, "t3\n");
    let asked = plugin.seen.lock().asked[0].clone();
    assert_eq!(asked.size, 1);
    assert!(asked.available.contains(&"t1".to_owned()), "{asked:?}");
    world.create_pod("wide", asks(3));
    let wide =
        world.until("wide", |pod| pod.unwrap()["status"]["phase"] == "Failed").await.unwrap();
    assert_eq!(wide["status"]["reason"], "TopologyAffinityError");
    for name in ["p", "wide"] {
        world.delete(name).await;
    }
    plugin.stop().await;
    world.finish().await;
}

pub async fn ask<A: prost::Message + Default>(
    world: &World,
    method: &str,
    request: impl prost::Message,
) -> Result<A, rpc::Status> {
    let channel = rpc::Channel::new(world.dir.path().join("agent/pod-resources/kubelet.sock"));
    channel.unary(method, &request, Duration::from_secs(5)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn agents_are_told_who_has_what() {
    use kubelet::podresources::messages::*;
    let world = World::with(|config| {
        let flags = ["cpu-manager-policy=static", "reserved-cpus=0"].map(str::to_owned);
        let read = kubelet::Configuration::read(None, &flags).unwrap();
        let thresholds = std::mem::take(&mut config.eviction.thresholds);
        read.apply(config).unwrap();
        config.eviction.thresholds = thresholds;
    })
    .await;
    describe_device(&world);
    let devices = vec![device("t1", HEALTHY, &[0]), device("t2", "sick", &[0])];
    let mut plugin = Plugin::new(world.dir.path(), DeviceList { devices });
    plugin.start().await;
    until_told(&world, "2/1").await;
    let mut spec = asks(1);
    for list in ["limits", "requests"] {
        let amounts = spec["containers"][0]["resources"][list].as_object_mut().unwrap();
        amounts.insert("cpu".into(), json!("1"));
        amounts.insert("memory".into(), json!("16Mi"));
    }
    world.create_pod("p", spec);
    world.until_ready("p").await;
    let told: ListResponse = ask(&world, LIST, Nothing {}).await.unwrap();
    let pod = &told.pods[0];
    assert_eq!((told.pods.len(), &*pod.name, &*pod.namespace), (1, "p", "default"));
    let container = &pod.containers[0];
    let topology = Some(Topology { nodes: vec![NumaNode { id: 0 }] });
    let t1 = ContainerDevices {
        resource_name: RESOURCE.into(),
        device_ids: vec!["t1".into()],
        topology,
    };
    assert_eq!(container.devices, std::slice::from_ref(&t1));
    assert!(container.cpu_ids.len() == 1 && container.cpu_ids[0] > 0, "{container:?}");
    let all: Resources = ask(&world, GET_ALLOCATABLE, Nothing {}).await.unwrap();
    assert_eq!(all.devices, [t1]);
    assert!(all.cpu_ids.contains(&container.cpu_ids[0]) && !all.cpu_ids.contains(&0), "{all:?}");
    let of = |name: &str| GetRequest { name: name.into(), namespace: "default".into() };
    let got: GetResponse = ask(&world, GET, of("p")).await.unwrap();
    assert_eq!(got.pod.as_ref(), Some(pod));
    let missing = ask::<GetResponse>(&world, GET, of("q")).await.unwrap_err();
    assert_eq!(
        missing.to_string(),
        "rpc error: code = Unknown desc = pod q in namespace default not found"
    );
    let mut refused = None;
    for _ in 0..1000 {
        refused = refused.or(ask::<ListResponse>(&world, LIST, Nothing {}).await.err());
    }
    assert_eq!(
        refused.unwrap().to_string(),
        "rpc error: code = ResourceExhausted desc = rejected by rate limit"
    );
    world.delete("p").await;
    plugin.stop().await;
    world.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn init_containers_hand_their_devices_on() {
    let world = World::new().await;
    describe_device(&world);
    let mut plugin = Plugin::new(world.dir.path(), healthy(&["t1"]));
    plugin.start().await;
    until_told(&world, "1/1").await;
    let mut spec = asks(1);
    let resources = spec["containers"][0]["resources"].clone();
    spec["initContainers"] = json!([{"name": "i", "command": ["sh", "-c", "test $THINGS = t1"], "resources": resources}]);
    world.create_pod("p", spec);
    world.until_ready("p").await;
    assert_eq!(plugin.seen.lock().allocated, [["t1"], ["t1"]]);
    world.delete("p").await;
    plugin.stop().await;
    world.finish().await;
}
