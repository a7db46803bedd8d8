//! The plan, driven by tables.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim, Pod};
use serde_json::{Value, json};

use crate::devices::Pending;
use crate::facts::{Caches, Taken, observe};
use crate::plan::{Chance, Plan, plan};
use crate::pod::PodInfo;
use crate::profile::Profile;
use crate::snapshot::Snapshot;
use crate::testing::{node, node_with, pod, pod_of};

/// A cluster to plan for.
struct World {
    snapshot: Snapshot,
    caches: Caches,
    taken: Taken,
    pending: Pending,
    profile: Arc<Profile>,
}

impl World {
    fn new(nodes: Vec<Node>) -> Self {
        let mut snapshot = Snapshot::default();
        for node in nodes {
            snapshot.set_node(Arc::new(node));
        }
        let profile = Arc::default();
        Self {
            snapshot,
            caches: Caches::empty(),
            taken: Taken::new(),
            pending: Pending::new(),
            profile,
        }
    }

    fn with(mut self, pod: Pod, node: &str) -> Self {
        self.snapshot.place(Arc::new(PodInfo::new(Arc::new(pod))), node);
        self
    }

    fn plan(&self, pod: Pod) -> Plan {
        let pod = PodInfo::new(Arc::new(pod));
        let facts = observe(&pod, &self.profile, &self.caches, &self.taken, &self.pending);
        let mut start = 0;
        let mut chance = Chance { start: &mut start, below: &mut |_| 0 };
        plan(&pod, facts.as_ref(), &self.profile, &self.snapshot, &Vec::new, &mut chance)
    }

    fn goes_to(&self, pod: Pod, want: &str) {
        match self.plan(pod) {
            Plan::Bind { node } => assert_eq!(node, want),
            Plan::Wait(refusal) => panic!("{}", refusal.message),
        }
    }

    fn waits(&self, pod: Pod, want: &str) {
        match self.plan(pod) {
            Plan::Bind { node } => panic!("bound to {node}, not: {want}"),
            Plan::Wait(refusal) => assert_eq!(refusal.message, want),
        }
    }
}

fn refused(reason: &str, end: &str) -> String {
    format!(
        "0/1 nodes are available: 1 {reason}. no new claims to deallocate, \
         preemption: 0/1 nodes are available: 1 {end}."
    )
}

const UNHELPFUL: &str = "Preemption is not helpful for scheduling";
const NO_VICTIMS: &str = "No preemption victims found for incoming pod";

#[test]
fn without_nodes_a_pod_waits() {
    World::new(vec![]).waits(pod("a", "1", "1Gi"), "no nodes available to schedule pods");
}

#[test]
fn refusals_have_upstreams_words() {
    let plain = || World::new(vec![node("n", "4", "8Gi")]);
    let wants = |spec: Value| pod_of("a", json!({}), spec);
    plain().goes_to(pod("a", "4", "8Gi"), "n");
    plain().waits(pod("a", "5", "1Gi"), &refused("Insufficient cpu", UNHELPFUL));
    plain()
        .with(pod("b", "3", "1Gi"), "n")
        .waits(pod("a", "2", "1Gi"), &refused("Insufficient cpu", NO_VICTIMS));
    plain().waits(
        wants(json!({"nodeSelector": {"disk": "ssd"}})),
        &refused("node(s) didn't match Pod's node affinity/selector", UNHELPFUL),
    );
    let port = json!({"containers": [{"name": "c", "ports": [{"containerPort": 80,
        "hostPort": 80}]}]});
    plain().with(pod_of("b", json!({}), port.clone()), "n").waits(
        wants(port),
        &refused("node(s) didn't have free ports for the requested pod ports", NO_VICTIMS),
    );
    let taint = json!({"taints": [{"key": "a", "value": "b", "effect": "NoSchedule"}]});
    World::new(vec![node_with("n", json!({}), taint, "4", "8Gi")])
        .waits(wants(json!({})), &refused("node(s) had untolerated taint(s)", UNHELPFUL));
    World::new(vec![node_with("n", json!({}), json!({"unschedulable": true}), "4", "8Gi")])
        .waits(wants(json!({})), &refused("node(s) were unschedulable", UNHELPFUL));
    plain().waits(
        wants(json!({"containers": [{"name": "c",
            "resources": {"requests": {"example.com/gpu": "1"}}}]})),
        &refused("Insufficient example.com/gpu", UNHELPFUL),
    );
}

#[test]
fn a_missing_claim_is_named() {
    let volumes = json!({"volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "x"}}]});
    World::new(vec![node("n", "4", "8Gi")]).waits(
        pod_of("a", json!({}), volumes),
        "0/1 nodes are available: persistentvolumeclaim \"x\" not found. no new claims to \
         deallocate, preemption: 0/1 nodes are available: 1 Preemption is not helpful for \
         scheduling.",
    );
}

#[test]
fn a_bound_volume_draws_its_pod_to_where_it_is() {
    let world = World::new(vec![node("m", "4", "8Gi"), node("n", "4", "8Gi")]);
    let claim: PersistentVolumeClaim = serde_json::from_value(json!({
        "metadata": {"name": "x", "namespace": "default",
            "annotations": {"pv.kubernetes.io/bind-completed": "yes"}},
        "spec": {"volumeName": "v"},
        "status": {"phase": "Bound"}}))
    .unwrap();
    let volume: PersistentVolume = serde_json::from_value(json!({
        "metadata": {"name": "v"}, "spec": {"nodeAffinity": {"required": {"nodeSelectorTerms": [
            {"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In",
                "values": ["n"]}]}]}}}}))
    .unwrap();
    world.caches.claims.put(claim);
    world.caches.volumes.put(volume);
    let volumes = json!({"volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "x"}}]});
    world.goes_to(pod_of("a", json!({}), volumes), "n");
}

fn near(kind: &str, labels: Value, key: &str) -> Value {
    json!({"affinity": {kind: {"requiredDuringSchedulingIgnoredDuringExecution": [
        {"labelSelector": {"matchLabels": labels}, "topologyKey": key}]}}})
}

#[test]
fn pods_keep_together_and_apart() {
    let host = "kubernetes.io/hostname";
    let world = || {
        World::new(vec![node("m", "4", "8Gi"), node("n", "4", "8Gi")])
            .with(pod_of("web", json!({"app": "web"}), json!({})), "n")
    };
    let app = json!({"app": "web"});
    world().goes_to(pod_of("a", json!({}), near("podAffinity", app.clone(), host)), "n");
    world().goes_to(pod_of("a", json!({}), near("podAntiAffinity", app.clone(), host)), "m");
    // The first of a group may start anywhere.
    let own = pod_of("a", json!({"app": "db"}), near("podAffinity", json!({"app": "db"}), host));
    assert!(matches!(world().plan(own), Plan::Bind { .. }));
    let one = World::new(vec![node("n", "4", "8Gi")]);
    one.waits(
        pod_of("a", json!({}), near("podAffinity", app.clone(), host)),
        &refused("node(s) didn't match pod affinity rules", UNHELPFUL),
    );
    let one = one.with(pod_of("web", json!({"app": "web"}), json!({})), "n");
    one.waits(
        pod_of("a", json!({}), near("podAntiAffinity", app.clone(), host)),
        &refused("node(s) didn't match pod anti-affinity rules", NO_VICTIMS),
    );
    World::new(vec![node("n", "4", "8Gi")])
        .with(pod_of("b", json!({}), near("podAntiAffinity", app.clone(), host)), "n")
        .waits(
            pod_of("a", app, json!({})),
            &refused("node(s) didn't satisfy existing pods anti-affinity rules", NO_VICTIMS),
        );
}

#[test]
fn pods_spread_over_zones() {
    let zoned =
        |name: &str, zone: &str| node_with(name, json!({"zone": zone}), json!({}), "4", "8Gi");
    let spread = |when: &str| {
        json!({"topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "zone",
            "whenUnsatisfiable": when, "labelSelector": {"matchLabels": {"app": "web"}}}]})
    };
    let web = |name: &str, spec: Value| pod_of(name, json!({"app": "web"}), spec);
    let world =
        || World::new(vec![zoned("m", "1"), zoned("n", "2")]).with(web("b", json!({})), "m");
    world().goes_to(web("a", spread("DoNotSchedule")), "n");
    world().goes_to(web("a", spread("ScheduleAnyway")), "n");
    World::new(vec![node("n", "4", "8Gi")]).waits(
        web("a", spread("DoNotSchedule")),
        &refused(
            "node(s) didn't match pod topology spread constraints (missing required label)",
            UNHELPFUL,
        ),
    );
}

#[test]
fn the_emptier_node_and_the_preferred_one_win() {
    let world = World::new(vec![node("m", "4", "8Gi"), node("n", "4", "8Gi")])
        .with(pod("b", "2", "4Gi"), "m");
    world.goes_to(pod("a", "1", "1Gi"), "n");
    let prefers = json!({"affinity": {"nodeAffinity": {
        "preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 100, "preference":
            {"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In",
                "values": ["m"]}]}}]}}});
    world.goes_to(pod_of("a", json!({}), prefers), "m");
}

#[test]
fn the_least_important_pods_make_room() {
    let ranked = |name: &str, priority: i32, cpu: &str| {
        pod_of(
            name,
            json!({}),
            json!({"priority": priority, "containers": [{"name": "c",
            "resources": {"requests": {"cpu": cpu}}}]}),
        )
    };
    let world = World::new(vec![node("m", "4", "8Gi"), node("n", "4", "8Gi")])
        .with(ranked("low", 1, "2"), "m")
        .with(ranked("mid", 5, "2"), "m")
        .with(ranked("high", 7, "4"), "n");
    let Plan::Wait(refusal) = world.plan(ranked("a", 10, "2")) else { panic!("bound") };
    assert_eq!(refusal.message, "0/2 nodes are available: 2 Insufficient cpu.");
    let victims = refusal.victims.expect("victims");
    assert_eq!(victims.node, "m");
    let names: Vec<&str> = victims.pods.iter().map(|pod| pod.name.as_str()).collect();
    assert_eq!(names, ["low"]);
    let mut never = ranked("a", 10, "2");
    never.spec.as_mut().unwrap().preemption_policy = Some("Never".into());
    world.waits(
        never,
        "0/2 nodes are available: 2 Insufficient cpu. no new claims to deallocate, preemption: \
         not eligible due to preemptionPolicy=Never.",
    );
}

/// A claim of a class whose volumes wait for their first consumer, and a pod that uses it.
fn delayed(provisioner: &str, size: &str, annotations: Value) -> (World, Pod) {
    let world = World::new(vec![node("a", "4", "8Gi"), node("b", "4", "8Gi")]);
    world.caches.classes.put(read(json!({"metadata": {"name": "s"}, "provisioner": provisioner,
        "volumeBindingMode": "WaitForFirstConsumer"})));
    world.caches.claims.put(read(json!({
        "metadata": {"name": "x", "namespace": "default", "uid": "x", "annotations": annotations},
        "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "s",
            "resources": {"requests": {"storage": size}}},
        "status": {"phase": "Pending"}})));
    let volumes = json!({"volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "x"}}]});
    (world, pod_of("p", json!({}), volumes))
}

fn read<K: serde::de::DeserializeOwned>(value: Value) -> K {
    serde_json::from_value(value).unwrap()
}

fn volume_on(name: &str, node: &str) -> PersistentVolume {
    read(json!({"metadata": {"name": name}, "spec": {"accessModes": ["ReadWriteOnce"],
        "storageClassName": "s", "capacity": {"storage": "5Gi"},
        "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [
            {"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}]}]}}},
        "status": {"phase": "Available"}}))
}

#[test]
fn a_pod_goes_where_a_free_volume_is() {
    let (mut world, pod) = delayed("kubernetes.io/no-provisioner", "1Gi", json!({}));
    let none = "node(s) didn't find available persistent volumes to bind";
    assert!(waits(world.plan(pod.clone())).contains(&format!("2 {none}")));
    world.caches.volumes.put(volume_on("on-b", "b"));
    assert!(matches!(world.plan(pod.clone()), Plan::Bind { node } if node == "b"));
    // Another claim is about to have it.
    world.taken.insert("on-b".into(), "other".into());
    assert!(waits(world.plan(pod.clone())).contains(none));
    world.taken.insert("on-b".into(), "x".into());
    assert!(matches!(world.plan(pod), Plan::Bind { node } if node == "b"));
}

#[test]
fn a_claim_that_is_being_provisioned_keeps_its_node() {
    let selected = json!({"volume.kubernetes.io/selected-node": "b"});
    let (world, pod) = delayed("a.example/b", "1Gi", selected);
    assert!(matches!(world.plan(pod), Plan::Bind { node } if node == "b"));
}

#[test]
fn a_driver_that_tells_its_room_is_believed() {
    let (world, pod) = delayed("a.example/b", "5Gi", json!({}));
    world.caches.drivers.put(read(json!({"metadata": {"name": "a.example/b"},
        "spec": {"storageCapacity": true}})));
    let room = "node(s) did not have enough free storage";
    assert!(waits(world.plan(pod.clone())).contains(&format!("2 {room}")));
    for (node, size) in [("a", "1Gi"), ("b", "9Gi")] {
        world.caches.capacities.put(read(json!({"metadata": {"namespace": "n", "name": node},
            "storageClassName": "s", "capacity": size,
            "nodeTopology": {"matchLabels": {"kubernetes.io/hostname": node}}})));
    }
    assert!(matches!(world.plan(pod), Plan::Bind { node } if node == "b"));
}

fn waits(plan: Plan) -> String {
    match plan {
        Plan::Wait(refusal) => refusal.message,
        Plan::Bind { node } => panic!("bound to {node}"),
    }
}

/// A pod with one volume, of the claim `x`.
fn with_claim(name: &str, priority: i32) -> Pod {
    pod_of(
        name,
        json!({}),
        json!({"priority": priority,
            "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "x"}}]}),
    )
}

/// A world whose claim `x` is bound to a volume of the driver `d`.
fn bound(nodes: Vec<Node>, mode: &str, labels: Value) -> World {
    let world = World::new(nodes);
    world.caches.claims.put(read(json!({
        "metadata": {"name": "x", "namespace": "default",
            "annotations": {"pv.kubernetes.io/bind-completed": "yes"}},
        "spec": {"volumeName": "v", "accessModes": [mode]}, "status": {"phase": "Bound"}})));
    world.caches.volumes.put(read(json!({"metadata": {"name": "v", "labels": labels},
        "spec": {"csi": {"driver": "d", "volumeHandle": "v"}}})));
    world
}

#[test]
fn a_claim_of_one_pod_is_not_shared_but_may_be_taken() {
    let nodes = || vec![node("m", "4", "8Gi"), node("n", "4", "8Gi")];
    let world = || bound(nodes(), "ReadWriteOncePod", json!({})).with(with_claim("low", 1), "n");
    let message = waits(world().plan(with_claim("a", 1)));
    let reason = "2 node has pod using PersistentVolumeClaim with the same name and \
                  ReadWriteOncePod access mode";
    assert!(message.contains(reason), "{message}");
    let Plan::Wait(refusal) = world().plan(with_claim("a", 9)) else { panic!("bound") };
    let victims = refusal.victims.expect("victims");
    assert_eq!((victims.node.as_str(), victims.pods[0].name.as_str()), ("n", "low"));
    let shared = bound(nodes(), "ReadWriteOnce", json!({})).with(with_claim("low", 1), "n");
    assert!(matches!(shared.plan(with_claim("a", 1)), Plan::Bind { .. }));
}

#[test]
fn disks_of_the_old_kinds_have_one_writer_a_node() {
    let disk = |read_only: bool| {
        json!({"volumes": [{"name": "v",
            "gcePersistentDisk": {"pdName": "d", "readOnly": read_only}}]})
    };
    let world = |read_only| {
        World::new(vec![node("n", "4", "8Gi")]).with(pod_of("b", json!({}), disk(read_only)), "n")
    };
    world(true).goes_to(pod_of("a", json!({}), disk(true)), "n");
    let reason = refused("node(s) had no available disk", NO_VICTIMS);
    world(false).waits(pod_of("a", json!({}), disk(true)), &reason);
}

#[test]
fn a_node_takes_no_more_volumes_than_its_driver_can() {
    let world = |limit: i32| {
        let world = bound(vec![node("n", "4", "8Gi")], "ReadWriteOnce", json!({}));
        world.caches.csi_nodes.put(read(json!({"metadata": {"name": "n"}, "spec": {"drivers": [
            {"name": "d", "nodeID": "n", "allocatable": {"count": limit}}]}})));
        world.caches.volumes.put(read(json!({"metadata": {"name": "w"},
            "spec": {"csi": {"driver": "d", "volumeHandle": "w"}}})));
        world
    };
    let attach = |world: &World, volume: &str| {
        world.caches.attachments.put(read(json!({"metadata": {"name": volume}, "spec": {
            "attacher": "d", "nodeName": "n", "source": {"persistentVolumeName": volume}}})));
    };
    let full = refused("node(s) exceed max volume count", UNHELPFUL);
    world(1).goes_to(with_claim("a", 0), "n");
    let other = world(1);
    attach(&other, "w");
    // Nothing that could be removed holds the other volume.
    other.waits(with_claim("a", 0), &full.replace(UNHELPFUL, NO_VICTIMS));
    let same = world(1);
    attach(&same, "v");
    same.goes_to(with_claim("a", 0), "n");
    world(1).with(with_claim("b", 0), "n").goes_to(with_claim("a", 0), "n");
}

#[test]
fn a_volume_draws_its_pod_to_its_zone() {
    let zone = "topology.kubernetes.io/zone";
    let zoned = |name: &str, zone_name: &str| {
        node_with(name, json!({zone: zone_name}), json!({}), "4", "8Gi")
    };
    for (label, value, want) in [
        (zone, "b", "n"),
        ("failure-domain.beta.kubernetes.io/zone", "b__c", "n"),
        ("other", "c", "m"),
    ] {
        let world =
            bound(vec![zoned("m", "a"), zoned("n", "b")], "ReadWriteOnce", json!({label: value}));
        world.goes_to(with_claim("a", 0), want);
    }
    let world = bound(vec![zoned("n", "a")], "ReadWriteOnce", json!({zone: "b"}));
    let reason = refused("node(s) had no available volume zone", UNHELPFUL);
    world.waits(with_claim("a", 0), &reason);
}

/// A world of two nodes, scheduled as the profile of a configuration says.
fn configured(profile: &str) -> World {
    let text = format!(
        "apiVersion: kubescheduler.config.k8s.io/v1\nkind: KubeSchedulerConfiguration\n\
         profiles: [{profile}]\n"
    );
    let config = crate::Config::parse(&text).expect("a configuration");
    let mut world = World::new(vec![node("m", "4", "8Gi"), node("n", "4", "8Gi")])
        .with(pod("b", "2", "4Gi"), "m");
    world.profile = Arc::new(config.profiles[0].clone());
    world
}

#[test]
fn a_profile_decides_where_pods_go() {
    let small = || pod("a", "1", "1Gi");
    configured("{}").goes_to(small(), "n");
    let most = "{pluginConfig: [{name: NodeResourcesFit, args: {scoringStrategy: \
                {type: MostAllocated, resources: [{name: cpu}, {name: memory}]}}}]}";
    configured(most).goes_to(small(), "m");
    let added = "{pluginConfig: [{name: NodeAffinity, args: {addedAffinity: \
                 {requiredDuringSchedulingIgnoredDuringExecution: {nodeSelectorTerms: \
                 [{matchFields: [{key: metadata.name, operator: In, values: [o]}]}]}}}}]}";
    let message = waits(configured(added).plan(small()));
    assert!(message.contains("2 node(s) didn't match scheduler-enforced node affinity"));
    let no_fit = "{plugins: {filter: {disabled: [{name: NodeResourcesFit}]}}}";
    assert!(matches!(configured(no_fit).plan(pod("a", "9", "1Gi")), Plan::Bind { .. }));
    let quiet = "{plugins: {postFilter: {disabled: [{name: DefaultPreemption}]}}}";
    configured(quiet).waits(
        pod("a", "9", "1Gi"),
        "0/2 nodes are available: 2 Insufficient cpu. no new claims to deallocate",
    );
}
