//! The scheduler over an API server in this process, under its own name and with its own
//! roles; the suite plays kubelets, drivers and controllers.
#![allow(clippy::unwrap_used, reason = "tests may")]

use std::time::Duration;

use base::drain::Trigger;
use client::{Client, ListParams, Patch, Recorder, Shared};
use k8s_openapi::api::core::v1::{Event, Node, Pod, ServiceAccount};
use k8s_openapi::api::resource::v1::{DeviceClass, ResourceClaim, ResourceSlice};
use k8s_openapi::api::scheduling::v1::PriorityClass;
use scheduler::{Config, Scheduler};
use serde_json::{Value, json};
use testing::until;

#[path = "cluster/extenders.rs"]
mod extenders;

struct Cluster {
    client: Client,
    _trigger: Trigger,
    _dir: tempfile::TempDir,
}

async fn cluster(profiles: &str) -> Cluster {
    configured(&format!("profiles: [{profiles}]\n")).await
}

/// With this in the scheduler's configuration.
async fn configured(settings: &str) -> Cluster {
    let dir = tempfile::tempdir().unwrap();
    let server = testing::serve(testing::config(dir.path())).await;
    let (trigger, drain) = base::drain::channel();
    let own = testing::user(&server, "system:kube-scheduler", &[]);
    let recorder = Recorder::new(own.clone(), "default-scheduler", "", drain.clone());
    let config = Config::parse(&format!(
        "apiVersion: kubescheduler.config.k8s.io/v1\nkind: KubeSchedulerConfiguration\n{settings}"
    ))
    .unwrap();
    let scheduler = Scheduler::new(Shared::new(own, drain.clone()), recorder, config);
    tokio::spawn(scheduler.run(drain));
    let out = Cluster { client: testing::admin(&server), _trigger: trigger, _dir: dir };
    let account: ServiceAccount = read(json!({"metadata": {"name": "default"}}));
    out.client.api(Some("default")).create(&account).await.unwrap();
    out
}

fn read<K: serde::de::DeserializeOwned>(value: Value) -> K {
    serde_json::from_value(value).unwrap()
}

impl Cluster {
    fn pods(&self) -> client::Api<Pod> {
        self.client.api(Some("default"))
    }

    fn claims(&self) -> client::Api<ResourceClaim> {
        self.client.api(Some("default"))
    }

    async fn node(&self, name: &str) {
        let nodes = self.client.all::<Node>();
        let labels = json!({"kubernetes.io/hostname": name});
        let node = json!({"metadata": {"name": name, "labels": labels}});
        nodes.create(&read(node)).await.unwrap();
        // New nodes are tainted until they say that they are ready.
        let open = json!({"spec": {"taints": null}});
        nodes.patch(name, &Patch::Merge(open)).await.unwrap();
        let has = json!({"cpu": "4", "memory": "8Gi", "pods": "110"});
        let status = json!({"status": {"capacity": has, "allocatable": has}});
        nodes.patch_status(name, &Patch::Merge(status)).await.unwrap();
    }

    async fn pod(&self, name: &str, spec: Value) {
        let mut spec = spec;
        spec["containers"] = json!([{"name": "c", "image": "i",
            "resources": {"requests": {"cpu": "1", "memory": "1Gi"}}}]);
        self.pods().create(&read(json!({"metadata": {"name": name}, "spec": spec}))).await.unwrap();
    }

    async fn node_of(&self, pod: &str) -> String {
        until("the pod has a node", async || self.pods().get(pod).await.unwrap().spec?.node_name)
            .await
    }

    async fn claim(&self, name: &str) {
        let claim = json!({"metadata": {"name": name}, "spec": {"devices": {"requests": [
            {"name": "r", "exactly": {"deviceClassName": "things.example"}}]}}});
        self.claims().create(&read(claim)).await.unwrap();
    }
}

#[tokio::test]
async fn each_profile_has_its_pods_and_its_ways() {
    let packed = "{schedulerName: packed, pluginConfig: [{name: NodeResourcesFit, args: \
                  {scoringStrategy: {type: MostAllocated, resources: [{name: cpu}]}}}]}";
    let cluster = cluster(&format!("{{schedulerName: default-scheduler}}, {packed}")).await;
    cluster.node("m").await;
    cluster.node("n").await;
    cluster.pod("stranger", json!({"schedulerName": "other"})).await;
    cluster.pod("first", json!({})).await;
    let first = cluster.node_of("first").await;
    cluster.pod("beside", json!({"schedulerName": "packed"})).await;
    assert_eq!(cluster.node_of("beside").await, first);
    cluster.pod("apart", json!({})).await;
    assert_ne!(cluster.node_of("apart").await, first);
    let stranger = cluster.pods().get("stranger").await.unwrap();
    assert_eq!(stranger.spec.unwrap().node_name, None);
}

#[tokio::test]
async fn what_becomes_of_pods_is_measured() {
    let cluster = cluster("{}").await;
    cluster.node("n").await;
    cluster.pod("fits", json!({})).await;
    cluster.node_of("fits").await;
    cluster.pod("waits", json!({"schedulingGates": [{"name": "a.example/b"}]})).await;
    cluster.pod("homeless", json!({"nodeSelector": {"no": "where"}})).await;
    let profile = "profile=\"default-scheduler\"";
    let wanted = [
        format!("schedule_attempts_total{{{profile},result=\"scheduled\"}} 1"),
        format!("schedule_attempts_total{{{profile},result=\"unschedulable\"}} 1"),
        format!("scheduling_attempt_duration_seconds_count{{{profile},result=\"scheduled\"}} 1"),
        "scheduling_algorithm_duration_seconds_count 2".into(),
        "pending_pods{queue=\"active\"} 0".into(),
        "pending_pods{queue=\"backoff\"} 0".into(),
        "pending_pods{queue=\"unschedulable\"} 1".into(),
        "pending_pods{queue=\"gated\"} 1".into(),
        format!("unschedulable_pods{{plugin=\"NodeAffinity\",{profile}}} 1"),
        "pod_scheduling_attempts_count 1".into(),
        "pod_scheduling_sli_duration_seconds_count{attempts=\"1\"} 1".into(),
        "queue_incoming_pods_total{event=\"UnschedulablePodAdd\",queue=\"active\"} 2".into(),
        "queue_incoming_pods_total{event=\"ScheduleAttemptFailure\",queue=\"unschedulable\"} 1"
            .into(),
        "preemption_attempts_total 1".into(),
        "cache_size{type=\"nodes\"} 1".into(),
        "cache_size{type=\"pods\"} 1".into(),
    ];
    let points =
        [("Filter", "Unschedulable"), ("PostFilter", "Unschedulable"), ("Bind", "Success")];
    let name = "framework_extension_point_duration_seconds_count";
    let points = points.map(|(point, status)| {
        format!("{name}{{extension_point=\"{point}\",{profile},status=\"{status}\"}} ")
    });
    // Each of the plugins, of the first pods.
    let name = "plugin_execution_duration_seconds_count";
    let plugins = [
        ("Filter", "NodeAffinity", "Unschedulable"),
        ("Filter", "NodeResourcesFit", "Success"),
        ("Bind", "DefaultBinder", "Success"),
    ];
    let plugins = plugins.map(|(point, plugin, status)| {
        let labels = format!("extension_point=\"{point}\",plugin=\"{plugin}\"");
        format!("{name}{{{labels},status=\"{status}\"}} 1\n")
    });
    let asked = ["NodeAffinity", "NodeName"].map(|plugin| {
        let labels = format!("extension_point=\"Filter\",plugin=\"{plugin}\",{profile}");
        format!("plugin_evaluation_total{{{labels}}} ")
    });
    until("all is measured", async || {
        let text = base::metrics::render(base::metrics::Format::Prometheus);
        let has = |line: &String| text.contains(&format!("\nscheduler_{line}"));
        wanted.iter().all(|line| has(&format!("{line}\n"))).then_some(())?;
        points.iter().chain(&plugins).chain(&asked).all(has).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_claim_gets_a_device_before_its_pod_is_bound_and_frees_it_for_the_next() {
    let cluster = cluster("{}").await;
    cluster.node("m").await;
    cluster.node("n").await;
    let selector = "device.attributes['d.example'].kind == 'thing'";
    let class = json!({"metadata": {"name": "things.example"},
        "spec": {"selectors": [{"cel": {"expression": selector}}]}});
    cluster.client.all::<DeviceClass>().create(&read(class)).await.unwrap();
    let slice = json!({"metadata": {"name": "s"}, "spec": {"driver": "d.example", "nodeName": "n",
        "pool": {"name": "n", "generation": 1, "resourceSliceCount": 1},
        "devices": [{"name": "other"},
            {"name": "one", "attributes": {"kind": {"string": "thing"}}}]}});
    let uses = |claim: &str| json!({"resourceClaims": [{"name": "c", "resourceClaimName": claim}]});
    // The claim comes after its pod, and the devices after the claim.
    cluster.pod("p", uses("a")).await;
    cluster.claim("a").await;
    // `other` has no such attribute, which fails the selector: none of it is given.
    let mut clean = slice.clone();
    clean["spec"]["devices"] = json!([slice["spec"]["devices"][1]]);
    cluster.client.all::<ResourceSlice>().create(&read(clean)).await.unwrap();
    assert_eq!(cluster.node_of("p").await, "n");
    let held = cluster.claims().get("a").await.unwrap();
    assert!(
        held.metadata
            .finalizers
            .unwrap()
            .contains(&"resource.kubernetes.io/delete-protection".into())
    );
    let status = json!(held.status);
    let result = &status["allocation"]["devices"]["results"][0];
    assert_eq!((&result["device"], &result["request"]), (&json!("one"), &json!("r")));
    let uid = cluster.pods().get("p").await.unwrap().metadata.uid;
    assert_eq!(status["reservedFor"], json!([{"resource": "pods", "name": "p", "uid": uid}]));

    cluster.claim("b").await;
    cluster.pod("q", uses("b")).await;
    let message = until("the pod says why it waits", async || {
        let status = cluster.pods().get("q").await.unwrap().status?;
        let conditions = status.conditions?;
        conditions.into_iter().find(|it| it.type_ == "PodScheduled")?.message
    });
    assert_eq!(
        message.await,
        "0/2 nodes are available: 2 cannot allocate all claims. still not schedulable, \
         preemption: 0/2 nodes are available: 2 Preemption is not helpful for scheduling."
    );
    // As the claims' controller does when the pod is over.
    let free = json!({"status": {"reservedFor": null, "allocation": null}});
    cluster.claims().patch_status("a", &Patch::Merge(free)).await.unwrap();
    assert_eq!(cluster.node_of("q").await, "n");
}

/// A class, and a slice with these devices on `n`.
async fn devices(cluster: &Cluster, class: Value, devices: Value) {
    cluster.node("n").await;
    cluster.client.all::<DeviceClass>().create(&read(class)).await.unwrap();
    let slice = json!({"metadata": {"name": "s"}, "spec": {"driver": "d.example", "nodeName": "n",
        "pool": {"name": "n", "generation": 1, "resourceSliceCount": 1}, "devices": devices}});
    cluster.client.all::<ResourceSlice>().create(&read(slice)).await.unwrap();
}

#[tokio::test]
async fn a_pod_waits_until_its_devices_are_ready_and_leaves_those_that_never_will_be() {
    let cluster = cluster("{}").await;
    let class = json!({"metadata": {"name": "things.example"}, "spec": {}});
    let device = json!({"name": "one", "bindsToNode": true, "bindingConditions": ["d.example/up"],
        "bindingFailureConditions": ["d.example/broken"]});
    devices(&cluster, class, json!([device])).await;
    cluster.claim("a").await;
    let uses = json!({"resourceClaims": [{"name": "c", "resourceClaimName": "a"}]});
    cluster.pod("p", uses).await;
    let allocated = async || {
        let claim = cluster.claims().get("a").await.unwrap();
        let allocation = claim.status?.allocation?;
        Some(allocation.allocation_timestamp.unwrap().0)
    };
    let first = until("the device is allocated", allocated).await;
    let tell = async |kind: &str| {
        let condition = json!({"type": kind, "status": "True", "reason": "Told", "message": "so",
            "lastTransitionTime": "2026-01-01T00:00:00Z"});
        let told = json!([{"driver": "d.example", "pool": "n", "device": "one",
            "conditions": [condition]}]);
        let patch = Patch::Merge(json!({"status": {"devices": told}}));
        cluster.claims().patch_status("a", &patch).await.unwrap();
    };
    let pod = cluster.pods().get("p").await.unwrap();
    assert_eq!(pod.status.unwrap().nominated_node_name.as_deref(), Some("n"));
    assert_eq!(pod.spec.unwrap().node_name, None);
    // Timestamps have whole seconds.
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    tell("d.example/broken").await;
    until("it is tried anew", async || allocated().await.filter(|since| *since != first)).await;
    let told = cluster.claims().get("a").await.unwrap().status.unwrap().devices;
    assert_eq!(told, None, "what was said of the device went with it");
    tell("d.example/up").await;
    assert_eq!(cluster.node_of("p").await, "n");
    let status = cluster.pods().get("p").await.unwrap().status.unwrap();
    assert_eq!(status.nominated_node_name, None);
}

#[tokio::test]
async fn a_pod_that_waits_for_its_devices_gives_way_to_an_important_one_and_stays() {
    let cluster = cluster("{}").await;
    let class = json!({"metadata": {"name": "things.example"}, "spec": {}});
    let device = json!({"name": "one", "bindsToNode": true, "bindingConditions": ["d.example/up"],
        "bindingFailureConditions": ["d.example/broken"]});
    devices(&cluster, class, json!([device])).await;
    let class: PriorityClass = read(json!({"metadata": {"name": "high"}, "value": 1000}));
    cluster.client.all::<PriorityClass>().create(&class).await.unwrap();
    cluster.claim("a").await;
    let pod = |name: &str, mut spec: Value| {
        spec["containers"] =
            json!([{"name": "c", "image": "i", "resources": {"requests": {"cpu": "3"}}}]);
        read::<Pod>(json!({"metadata": {"name": name}, "spec": spec}))
    };
    let uses = json!({"resourceClaims": [{"name": "c", "resourceClaimName": "a"}]});
    cluster.pods().create(&pod("low", uses)).await.unwrap();
    until("the device is allocated", async || {
        cluster.claims().get("a").await.unwrap().status?.allocation
    })
    .await;
    let high = pod("high", json!({"priorityClassName": "high"}));
    cluster.pods().create(&high).await.unwrap();
    assert_eq!(cluster.node_of("high").await, "n");
    let low = cluster.pods().get("low").await.unwrap();
    assert_eq!(low.metadata.deletion_timestamp, None, "it was nowhere yet: it waits for its turn");
    assert_eq!(low.spec.unwrap().node_name, None);
    let events = cluster.client.api::<Event>(Some("default"));
    until("it was told", async || {
        let events = events.list(&ListParams::default()).await.unwrap().items;
        let told = events.iter().any(|it| {
            it.reason.as_deref() == Some("Preempted")
                && it.involved_object.name.as_deref() == Some("low")
        });
        told.then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_search_for_devices_that_takes_too_long_is_an_error_and_no_refusal() {
    let args = "{filterTimeout: 1ns}";
    let cluster =
        cluster(&format!("{{pluginConfig: [{{name: DynamicResources, args: {args}}}]}}")).await;
    let class = json!({"metadata": {"name": "things.example"}, "spec": {}});
    devices(&cluster, class, json!([{"name": "one"}])).await;
    cluster.claim("a").await;
    let uses = json!({"resourceClaims": [{"name": "c", "resourceClaimName": "a"}]});
    cluster.pod("p", uses).await;
    let said = until("it is told", async || {
        let status = cluster.pods().get("p").await.unwrap().status?;
        let told = status.conditions?.into_iter().find(|it| it.type_ == "PodScheduled")?;
        (told.reason.as_deref() == Some("SchedulerError")).then_some(told.message?)
    })
    .await;
    let text = "running \"DynamicResources\" filter plugin: timed out trying to allocate devices";
    assert_eq!(said, text);
}

#[tokio::test]
async fn devices_stand_in_for_extended_resources() {
    let cluster = cluster("{}").await;
    let class = json!({"metadata": {"name": "gpu.example"},
        "spec": {"extendedResourceName": "example.com/gpu"}});
    devices(&cluster, class, json!([{"name": "one"}, {"name": "two"}])).await;
    let pod = |name: &str, count: &str| {
        let asks = json!({"example.com/gpu": count});
        let container = json!({"name": "c", "image": "i",
            "resources": {"requests": asks, "limits": asks}});
        read::<Pod>(json!({"metadata": {"name": name}, "spec": {"containers": [container]}}))
    };
    cluster.pods().create(&pod("p", "2")).await.unwrap();
    assert_eq!(cluster.node_of("p").await, "n");
    let status = json!(cluster.pods().get("p").await.unwrap().status);
    let told = &status["extendedResourceClaimStatus"];
    let request = "container-0-request-0";
    assert_eq!(
        told["requestMappings"],
        json!([{"containerName": "c", "resourceName": "example.com/gpu", "requestName": request}])
    );
    let name = told["resourceClaimName"].as_str().unwrap();
    assert!(name.starts_with("p-extended-resources-"), "{name}");
    let claim = json!(cluster.claims().get(name).await.unwrap());
    let results = claim["status"]["allocation"]["devices"]["results"].as_array().unwrap();
    let given: Vec<&str> = results.iter().map(|it| it["device"].as_str().unwrap()).collect();
    assert_eq!(given, ["one", "two"]);
    assert_eq!(claim["status"]["reservedFor"][0]["name"], "p");
    let annotations = &claim["metadata"]["annotations"];
    assert_eq!(annotations["resource.kubernetes.io/extended-resource-claim"], "true");
    assert_eq!(claim["metadata"]["ownerReferences"][0]["name"], "p");
    // There is nothing left for another, until the first is gone.
    cluster.pods().create(&pod("q", "1")).await.unwrap();
    let message = until("the pod says why it waits", async || {
        let status = cluster.pods().get("q").await.unwrap().status?;
        let conditions = status.conditions?;
        conditions.into_iter().find(|it| it.type_ == "PodScheduled")?.message
    });
    let message = message.await;
    assert!(message.contains("1 cannot allocate all claims"), "{message}");
    let free = json!({"status": {"reservedFor": null, "allocation": null}});
    cluster.claims().patch_status(name, &Patch::Merge(free)).await.unwrap();
    assert_eq!(cluster.node_of("q").await, "n");
}
