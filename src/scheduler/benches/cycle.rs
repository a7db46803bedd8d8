//! What the scheduler decides in a second, without any API server: pending pods are taken off
//! the line, planned for, assumed, and seen on their node a little later.
//!
//!     cargo bench -p scheduler --bench cycle [-- KIND...]
//!
//! Prints pods per second; asserts nothing but that every pod got a node.

#![allow(clippy::unwrap_used)]

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use client::{Body, Client, Shared, Transport};
use k8s_openapi::api::core::v1::{Node, Pod};
use scheduler::{Caches, Config, Outcome, State};
use serde_json::{Value, json};
use tokio::time::Instant;

const PODS: usize = 5_000;
const NODES: [usize; 2] = [1_000, 5_000];
const ZONES: usize = 3;
/// Bindings that are under way before the first of them is seen.
const UNDER_WAY: usize = 100;

const KINDS: [&str; 8] =
    ["plain", "spread", "soft", "affinity", "anti", "prefer", "own-labels", "too-large"];

/// Nobody answers; the caches stay empty.
struct Nobody;

#[async_trait]
impl Transport for Nobody {
    async fn send(&self, _: http::Request<Bytes>) -> Result<http::Response<Body>, client::Error> {
        std::future::pending().await
    }
}

fn node(number: usize) -> Arc<Node> {
    let name = format!("node-{number}");
    let labels = json!({"kubernetes.io/hostname": name, "kubernetes.io/os": "linux",
        "topology.kubernetes.io/zone": format!("zone-{}", number % ZONES)});
    let has = json!({"cpu": "32", "memory": "256Gi", "ephemeral-storage": "100Gi", "pods": "110"});
    let node = json!({"metadata": {"name": name, "labels": labels}, "spec": {},
        "status": {"allocatable": has, "capacity": has}});
    Arc::new(serde_json::from_value(node).unwrap())
}

fn pod(kind: &str, number: usize) -> Value {
    // Of `anti` a hundred keep apart from each other.
    let group = if kind == "anti" { number / 100 } else { 0 };
    let mut labels = json!({"group": format!("g{group}")});
    let selector = json!({"matchLabels": labels});
    let asks = if kind == "too-large" { "64" } else { "100m" };
    let mut spec = json!({"schedulerName": "default-scheduler", "priority": 0, "containers": [
        {"name": "c", "image": "registry.example.com/pause:3.10",
            "resources": {"requests": {"cpu": asks, "memory": "100Mi"}}}],
        "tolerations": [
            {"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute",
                "tolerationSeconds": 300},
            {"key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute",
                "tolerationSeconds": 300}]});
    let zone = "topology.kubernetes.io/zone";
    let term = |key: &str| json!({"topologyKey": key, "labelSelector": selector});
    let required =
        |key: &str| json!({"requiredDuringSchedulingIgnoredDuringExecution": [term(key)]});
    let spread = |when: &str| {
        json!([{"maxSkew": 5, "topologyKey": zone, "whenUnsatisfiable": when,
            "labelSelector": selector}])
    };
    match kind {
        "plain" | "too-large" => {}
        "spread" => spec["topologySpreadConstraints"] = spread("DoNotSchedule"),
        "soft" => spec["topologySpreadConstraints"] = spread("ScheduleAnyway"),
        "affinity" => spec["affinity"] = json!({"podAffinity": required(zone)}),
        "anti" => {
            spec["affinity"] = json!({"podAntiAffinity": required("kubernetes.io/hostname")});
        }
        "prefer" => {
            spec["affinity"] = json!({"podAntiAffinity": {
                "preferredDuringSchedulingIgnoredDuringExecution": [
                    {"weight": 100, "podAffinityTerm": term(zone)}]}});
        }
        // As a StatefulSet's.
        "own-labels" => {
            labels["statefulset.kubernetes.io/pod-name"] = format!("p{number}").into();
            spec["topologySpreadConstraints"] = spread("ScheduleAnyway");
        }
        other => panic!("no kind {other}"),
    }
    json!({"metadata": {"name": format!("p{number}"), "namespace": "default",
        "uid": format!("00000000-0000-0000-0000-{number:012}"), "labels": labels}, "spec": spec})
}

/// As the cache shows it after the binding.
fn bound(pod: &Pod, node: &str) -> Arc<Pod> {
    let mut pod = pod.clone();
    pod.spec.as_mut().unwrap().node_name = Some(node.to_owned());
    Arc::new(pod)
}

fn measure(caches: &Caches, kind: &str, nodes: usize) {
    let now = Instant::now();
    let mut state = State::new(&Config::default());
    for number in 0..nodes {
        state.node_changed(None, Some(&node(number)), now);
    }
    let pods: Vec<Arc<Pod>> =
        (0..PODS).map(|it| Arc::new(serde_json::from_value(pod(kind, it)).unwrap())).collect();
    let begun = std::time::Instant::now();
    for pod in &pods {
        state.pod_changed(None, Some(pod), now);
    }
    let offered = begun.elapsed();
    let (mut under_way, mut placed) = (VecDeque::new(), 0);
    // The copies that a watch would make are not the scheduler's.
    let mut aside = Duration::ZERO;
    let begun = std::time::Instant::now();
    while let Some((pod, outcome)) = state.next(caches, &Vec::new, now) {
        let Outcome::Bind(decision) = outcome else { continue };
        placed += 1;
        let copying = std::time::Instant::now();
        under_way.push_back((pod.pod.clone(), bound(&pod.pod, &decision.node)));
        aside += copying.elapsed();
        if under_way.len() > UNDER_WAY {
            let (old, new) = under_way.pop_front().unwrap();
            state.pod_changed(Some(&old), Some(&new), now);
        }
    }
    let took = begun.elapsed() - aside;
    assert_eq!(placed, if kind == "too-large" { 0 } else { PODS });
    println!(
        "{PODS} pods on {nodes:>5} nodes, {kind:<10} {:>8.0} pods/s  in {took:.2?}; taken in {offered:.2?}",
        PODS as f64 / took.as_secs_f64()
    );
}

fn main() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let wanted: Vec<String> = std::env::args().skip(1).filter(|it| !it.starts_with('-')).collect();
    runtime.block_on(async {
        let (_trigger, drain) = base::drain::channel();
        let client = Client::new(Arc::new(Nobody), "bench");
        let caches = Caches::new(&Shared::new(client, drain));
        for nodes in NODES {
            for kind in KINDS {
                if wanted.is_empty() || wanted.iter().any(|it| it == kind) {
                    measure(&caches, kind, nodes);
                }
            }
        }
    });
}
