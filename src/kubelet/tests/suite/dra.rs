//! Claims of pods: prepared by a driver before the pod runs, and given back after it.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::devices::describe_device;
use crate::dra_driver::{DRIVER, Driver, Fault};
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

/// As the scheduler leaves it: allocated, and reserved for pods.
fn put_claim(world: &World, name: &str, pods: &[&str]) {
    let reserve = |pod: &&str| {
        let uid = world.pod(pod).unwrap()["metadata"]["uid"].clone();
        json!({"resource": "pods", "name": pod, "uid": uid})
    };
    let reserved: Vec<Value> = pods.iter().map(reserve).collect();
    let result = json!({"request": "req", "driver": DRIVER, "pool": "pool", "device": "one"});
    let path = format!("/apis/resource.k8s.io/v1/namespaces/default/resourceclaims/{name}");
    let uid = format!("uid-of-{name}");
    world.api.put(
        &path,
        json!({"metadata": {"name": name, "namespace": "default", "uid": uid}, "spec": {},
            "status": {"reservedFor": reserved,
                "allocation": {"devices": {"results": [result]}}}}),
    );
}

fn claiming(claim: &str) -> Value {
    json!({"terminationGracePeriodSeconds": 0,
        "resourceClaims": [{"name": "thing", "resourceClaimName": claim}],
        "containers": [
            {"name": "a", "command": ["sleep", "1000"],
             "resources": {"claims": [{"name": "thing", "request": "req"}]}},
            {"name": "b", "command": ["sleep", "1000"]}]})
}

fn says(world: &World, why: &str) -> bool {
    let text = format!("FailedPrepareDynamicResources: Failed to prepare dynamic resources: {why}");
    world.api.events().contains(&text)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_is_prepared_once_used_and_given_back_after_its_last_pod() {
    let mut world = World::new().await;
    describe_device(&world);
    let mut driver = Driver::new(world.dir.path());
    driver.start();
    until("the driver is told", || !driver.state.lock().told.is_empty()).await;
    assert!(driver.state.lock().told[0].plugin_registered);
    for pod in ["p", "q"] {
        world.create_pod(pod, claiming("c"));
    }
    put_claim(&world, "c", &["p", "q"]);
    let pod = world.until_ready("p").await;
    world.until_ready("q").await;
    assert_eq!(run(&world, "p", "echo $CDI; test -c /dev/cdi && echo there").await, "yes\nthere\n");
    assert_eq!(
        pod["status"]["containerStatuses"][0]["allocatedResourcesStatus"],
        json!([{"name": "claim:thing/req",
            "resources": [{"health": "Unknown", "resourceID": "example.com/thing=one"}]}])
    );
    assert!(pod["status"]["containerStatuses"][1].get("allocatedResourcesStatus").is_none());
    assert_eq!(driver.state.lock().prepares, ["c"], "what is prepared is not prepared again");
    {
        use kubelet::podresources::messages::*;
        let told: ListResponse = crate::devices::ask(&world, LIST, Nothing {}).await.unwrap();
        let of = |pod: &PodResources| pod.containers[0].dynamic_resources.clone();
        let resources = of(&told.pods[0]);
        assert_eq!(resources[0].claim_name, "c");
        let resource = &resources[0].claim_resources[0];
        assert_eq!((&*resource.driver_name, &*resource.device_name), (DRIVER, "one"));
    }
    let service = "/k8s.io.kubelet.pkg.apis.dra.v1.DRAPlugin";
    let of_call = format!(
        "{{driver_name=\"{DRIVER}\",method_name=\"{service}/NodePrepareResources\",\
         grpc_status_code=\"OK\"}}"
    );
    let socket = world.dir.path().join("agent/plugins_registry/things.sock");
    let of_socket = |state: &str| {
        format!(
            "plugin_manager_total_plugins{{socket_path=\"{}\",state=\"{state}_state_of_world\"}}",
            socket.display()
        )
    };
    for (series, want) in [
        (format!("dra_resource_claims_in_use{{driver_name=\"{DRIVER}\"}}"), 1.0),
        ("dra_resource_claims_in_use{driver_name=\"<any>\"}".to_owned(), 1.0),
        (format!("dra_grpc_operations_duration_seconds_count{of_call}"), 1.0),
        (of_socket("desired"), 1.0),
        (of_socket("actual"), 1.0),
    ] {
        assert_eq!(own_metric(&world, &series).await, Some(want), "{series}");
    }
    let operations = "dra_operations_duration_seconds_count\
                      {operation_name=\"PrepareResources\",is_error=\"false\"}";
    assert!(own_metric(&world, operations).await.unwrap() >= 2.0);
    world.delete("q").await;
    assert_eq!(driver.state.lock().unprepares, [""; 0]);
    let checkpoint = world.dir.path().join("agent/dra_manager_state");
    assert!(std::fs::read_to_string(&checkpoint).unwrap().contains("uid-of-c"));

    // Over a restart it is known who has what; the driver may fail to let go at first.
    world.stop().await;
    world.start();
    until("the driver is told again", || driver.state.lock().told.len() == 2).await;
    world.until_ready("p").await;
    driver.state.lock().faults.push_back(Fault::Fails);
    world.delete("p").await;
    assert_eq!(driver.state.lock().unprepares, ["c", "c"]);
    assert!(driver.state.lock().prepared.is_empty());
    assert!(!std::fs::read_to_string(&checkpoint).unwrap().contains("uid-of-c"));
    driver.leave().await;
    world.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_waits_for_its_claim_and_its_driver_and_is_told_why() {
    let world = World::new().await;
    describe_device(&world);
    world.create_pod("p", claiming("c"));
    let path = "/apis/resource.k8s.io/v1/namespaces/default/resourceclaims/c";
    until("it is told that there is no claim", || {
        says(&world, "prepare dynamic resources: fetch ResourceClaim c: NotFound")
    })
    .await;
    put_claim(&world, "c", &[]);
    let uid = world.pod("p").unwrap()["metadata"]["uid"].as_str().unwrap().to_owned();
    until("it is told that it may not", || {
        let why = format!("pod p ({uid}) is not allowed to use ResourceClaim c (uid-of-c)");
        says(&world, &format!("prepare dynamic resources: {why}"))
    })
    .await;
    put_claim(&world, "c", &["p"]);
    let mut claim = world.api.get(path).unwrap();
    claim["status"].as_object_mut().unwrap().remove("allocation");
    world.api.put(path, claim);
    until("it is told that nothing is allocated", || {
        says(&world, "prepare dynamic resources: ResourceClaim c: not allocated")
    })
    .await;
    put_claim(&world, "c", &["p"]);
    until("it is told that there is no driver", || {
        says(&world, &format!("prepare dynamic resources: DRA driver {DRIVER} is not registered"))
    })
    .await;
    let mut driver = Driver::new(world.dir.path());
    driver.start();
    world.until_ready("p").await;
    world.delete("p").await;
    driver.leave().await;
    world.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_driver_that_fails_or_answers_nonsense_is_asked_again() {
    let world = World::new().await;
    describe_device(&world);
    let mut driver = Driver::new(world.dir.path());
    driver.start();
    let cases = [
        (Fault::Fails, "NodePrepareResources: rpc error: code = Internal desc = broken"),
        (
            Fault::Refuses("no such thing"),
            "NodePrepareResources failed for ResourceClaim c1: no such thing",
        ),
        (Fault::Skips, "NodePrepareResources skipped 1 ResourceClaims"),
        (Fault::Invents, "NodePrepareResources returned result for unknown claim UID nobody"),
    ];
    for (at, (fault, why)) in cases.into_iter().enumerate() {
        driver.state.lock().faults.push_back(fault);
        let (name, claim) = (format!("p{at}"), format!("c{at}"));
        world.create_pod(&name, claiming(&claim));
        put_claim(&world, &claim, &[&name]);
        world.until_ready(&name).await;
        let why = format!("prepare dynamic resources: {why}");
        assert!(says(&world, &why), "{why}: {:#?}", world.api.events());
        world.delete(&name).await;
    }
    assert!(driver.state.lock().prepared.is_empty());
    driver.leave().await;
    world.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_driver_is_there_for_is_taken_back_and_older_drivers_are_spoken_with() {
    let world = World::new().await;
    describe_device(&world);
    let slice = "/apis/resource.k8s.io/v1/resourceslices/old";
    world.api.put(
        slice,
        json!({"metadata": {"name": "old"},
        "spec": {"nodeName": "n1", "driver": "gone.example", "pool": {}}}),
    );
    let other = "/apis/resource.k8s.io/v1/resourceslices/other";
    world.api.put(
        other,
        json!({"metadata": {"name": "other"},
        "spec": {"nodeName": "n2", "driver": "gone.example", "pool": {}}}),
    );
    let mut world = world;
    world.stop().await;
    world.start();
    until("the slice is gone", || world.api.get(slice).is_none()).await;
    assert!(world.api.get(other).is_some());
    let mut driver = Driver::new(world.dir.path());
    driver.services = vec!["v1alpha3.Node"];
    driver.start();
    until("the driver is refused", || !driver.state.lock().told.is_empty()).await;
    let told = driver.state.lock().told[0].clone();
    assert!(!told.plugin_registered);
    assert!(
        told.error.ends_with(
            "none of services supported by the plugin ([\"v1alpha3.Node\"]) are supported by the \
             kubelet ([\"v1.DRAPlugin\" \"v1beta1.DRAPlugin\"])"
        ),
        "{told:?}"
    );
    driver.leave().await;
    driver.services = vec!["v1beta1.DRAPlugin"];
    driver.start();
    world.create_pod("p", claiming("c"));
    put_claim(&world, "c", &["p"]);
    world.until_ready("p").await;
    world.delete("p").await;
    driver.leave().await;
    world.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_shows_how_its_driver_says_that_its_devices_are() {
    use kubelet::dra::messages::{DeviceHealth, DeviceIdentifier};
    let world = World::new().await;
    describe_device(&world);
    let mut driver = Driver::new(world.dir.path());
    driver.says_health = true;
    driver.start();
    until("the driver is told", || !driver.state.lock().told.is_empty()).await;
    world.create_pod("p", claiming("c"));
    put_claim(&world, "c", &["p"]);
    world.until_ready("p").await;
    until("the driver is listened to", || driver.health.receiver_count() > 0).await;
    let say = |health: i32, seconds: i64, message: &str| {
        driver.health.send_replace(Some(DeviceHealth {
            device: Some(DeviceIdentifier { pool_name: "pool".into(), device_name: "one".into() }),
            health,
            timeout_seconds: seconds,
            message: message.into(),
            ..DeviceHealth::default()
        }));
    };
    let shows = |wanted: Value| {
        let world = &world;
        async move {
            let shown = |pod: Option<&Value>| {
                let of_a = &pod.unwrap()["status"]["containerStatuses"][0];
                of_a["allocatedResourcesStatus"][0]["resources"][0] == wanted
            };
            world.until("p", shown).await;
        }
    };
    let device = "example.com/thing=one";
    say(1, 3600, "");
    shows(json!({"resourceID": device, "health": "Healthy"})).await;
    say(2, 3600, "too hot");
    shows(json!({"resourceID": device, "health": "Unhealthy", "message": "too hot"})).await;
    // What is said for a second is not known after it.
    say(1, 1, "");
    shows(json!({"resourceID": device, "health": "Healthy"})).await;
    shows(json!({"resourceID": device, "health": "Unknown"})).await;
    say(1, 3600, "");
    shows(json!({"resourceID": device, "health": "Healthy"})).await;
    driver.leave().await;
    shows(json!({"resourceID": device, "health": "Unknown"})).await;
    driver.start();
    world.delete("p").await;
    driver.leave().await;
    world.finish().await;
}
