//! The plan, driven by tables.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim, Pod};
use serde_json::{Value, json};

use crate::facts::{Caches, Taken, observe};
use crate::plan::{Chance, Plan, plan};
use crate::pod::PodInfo;
use crate::snapshot::Snapshot;
use crate::testing::{node, node_with, pod, pod_of};

/// A cluster to plan for.
struct World {
    snapshot: Snapshot,
    caches: Caches,
    taken: Taken,
}

impl World {
    fn new(nodes: Vec<Node>) -> Self {
        let mut snapshot = Snapshot::default();
        for node in nodes {
            snapshot.set_node(Arc::new(node));
        }
        Self { snapshot, caches: Caches::empty(), taken: Taken::new() }
    }

    fn with(mut self, pod: Pod, node: &str) -> Self {
        self.snapshot.place(Arc::new(PodInfo::new(Arc::new(pod))), node);
        self
    }

    fn plan(&self, pod: Pod) -> Plan {
        let pod = PodInfo::new(Arc::new(pod));
        let facts = observe(&pod, &self.caches, &self.taken);
        let mut start = 0;
        let mut chance = Chance { start: &mut start, below: &mut |_| 0 };
        plan(&pod, &facts, &self.snapshot, &Vec::new, &mut chance)
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
