//! What the conformance syllabus of Kubernetes 1.36 asks of a node, its volumes, the scheduler,
//! Jobs and sets, accounts and the machinery of the API, done with kubectl as the entries
//! describe it. Files group the entries by
//! subject.

mod auth;
mod classes;
mod csr;
mod environment;
mod jobs;
mod lives;
mod machinery;
mod probes;
mod scheduling;
mod security;
mod sets;
mod updates;
mod volumes;

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::cluster::Cluster;
use crate::machine::{eventually, told};

/// Pods that are on their way at once.
const SECONDS: u64 = 150;

/// A pod that runs to its end, and what it must have logged. `{POINTER}` in the log stands
/// for what the pod itself has there.
struct Case {
    name: String,
    spec: Value,
    log: String,
    /// Only lines with this count, in order of their letters; all as they come if empty.
    only: &'static str,
}

impl Case {
    /// One container that runs a script.
    fn script(name: &str, script: &str, log: &str) -> Self {
        let container = json!({"command": ["sh", "-c", script]});
        Self {
            name: name.into(),
            spec: json!({"containers": [container]}),
            log: log.into(),
            only: "",
        }
    }

    fn only(mut self, word: &'static str) -> Self {
        self.only = word;
        self
    }

    /// With something more in the (first) container.
    fn with(mut self, key: &str, value: Value) -> Self {
        self.spec["containers"][0][key] = value;
        self
    }

    /// With something more in the pod.
    fn pod(mut self, key: &str, value: Value) -> Self {
        self.spec[key] = value;
        self
    }

    /// With a volume at `/v`.
    fn volume(self, volume: Value) -> Self {
        let mut volume = volume;
        volume["name"] = "v".into();
        self.with("volumeMounts", json!([{"name": "v", "mountPath": "/v"}]))
            .pod("volumes", json!([volume]))
    }
}

/// A pod's manifest: what every pod here has, unless it says otherwise.
fn pod(name: &str, spec: Value) -> Value {
    let mut spec = spec;
    for list in ["containers", "initContainers", "ephemeralContainers"] {
        let Some(containers) = spec[list].as_array_mut() else { continue };
        for (number, container) in containers.iter_mut().enumerate() {
            let defaults = [("name", format!("c{number}")), ("image", "web:1".to_string())];
            for (key, value) in defaults {
                if container[key].is_null() {
                    container[key] = value.into();
                }
            }
        }
    }
    if spec["restartPolicy"].is_null() {
        spec["restartPolicy"] = "Never".into();
    }
    if spec["terminationGracePeriodSeconds"].is_null() {
        spec["terminationGracePeriodSeconds"] = 1.into();
    }
    json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "labels": {"name": name}, "annotations": {"builder": "bar"}},
        "spec": spec})
}

fn list(items: Vec<Value>) -> String {
    json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string()
}

/// Creates objects that are not there yet.
fn create(cluster: &Cluster, items: Vec<Value>) {
    let words = [&cluster.kubectl, "--kubeconfig", crate::cluster::KUBECONFIG, "create", "-f", "-"];
    let output = cluster.machine.run_with_input(&words, &list(items));
    assert!(output.status.success(), "{}\n{}", told(&output), cluster.log());
}

/// The pods of the default namespace by name.
fn pods(cluster: &Cluster) -> Result<BTreeMap<String, Value>, String> {
    let text = cluster.try_kubectl(&["get", "pods", "-o", "json"])?;
    let all: Value = serde_json::from_str(&text).map_err(|error| error.to_string())?;
    let items = all["items"].as_array().cloned().unwrap_or_default();
    Ok(items
        .into_iter()
        .map(|it| (it["metadata"]["name"].as_str().unwrap_or_default().to_string(), it))
        .collect())
}

/// Waits until a pod is as wanted; `holds` says what is not.
fn until_pod<T>(cluster: &Cluster, name: &str, holds: impl Fn(&Value) -> Result<T, String>) -> T {
    eventually(&format!("pod {name} is as it should be"), SECONDS, || {
        let text = cluster.try_kubectl(&["get", "pod", name, "-o", "json"])?;
        let pod: Value = serde_json::from_str(&text).map_err(|error| error.to_string())?;
        holds(&pod).map_err(|why| format!("{why}\n{}", pod["status"]))
    })
}

fn is_ready(pod: &Value) -> Result<(), String> {
    let all = pod["status"]["containerStatuses"].as_array().cloned().unwrap_or_default();
    let ready = !all.is_empty() && all.iter().all(|it| it["ready"] == true);
    if ready { Ok(()) } else { Err("it is not ready".into()) }
}

fn phase_is(pod: &Value, wanted: &str) -> Result<(), String> {
    let phase = pod["status"]["phase"].as_str().unwrap_or_default();
    if phase == wanted { Ok(()) } else { Err(format!("its phase is {phase}")) }
}

/// Runs all of them at once, and compares what they logged.
fn run(cluster: &Cluster, cases: &[Case]) {
    create(cluster, cases.iter().map(|case| pod(&case.name, case.spec.clone())).collect());
    let seen = eventually("all pods have ended", SECONDS, || {
        let seen = pods(cluster)?;
        let phase = |case: &Case| seen.get(&case.name).map(|it| it["status"]["phase"].clone());
        let left: Vec<_> = cases
            .iter()
            .filter(|it| !phase(it).is_some_and(|it| it == "Succeeded" || it == "Failed"))
            .map(|case| (case.name.clone(), seen.get(&case.name).map(|it| it["status"].clone())))
            .collect();
        if left.is_empty() { Ok(seen) } else { Err(format!("{left:?}")) }
    });
    let mut wrong = Vec::new();
    for case in cases {
        let pod = &seen[&case.name];
        let mut log = cluster.k(&format!("logs {}", case.name));
        if !case.only.is_empty() {
            let mut lines: Vec<&str> = log.lines().filter(|it| it.contains(case.only)).collect();
            lines.sort_unstable();
            log = lines.join("\n");
        }
        let mut wanted = case.log.clone();
        while let Some((before, rest)) = wanted.split_once('{') {
            let (pointer, after) = rest.split_once('}').unwrap();
            let value = pod.pointer(pointer).and_then(Value::as_str).unwrap_or("nothing");
            wanted = format!("{before}{value}{after}");
        }
        if pod["status"]["phase"] != "Succeeded" || log.trim_end() != wanted.trim_end() {
            let state = &pod["status"]["containerStatuses"][0]["state"];
            wrong.push(format!("{}: {log:?} instead of {wanted:?}: {state}", case.name));
        }
    }
    assert!(wrong.is_empty(), "{}\n{}", wrong.join("\n"), cluster.log());
    delete_pods(cluster);
}

fn delete_pods(cluster: &Cluster) {
    cluster.k("delete pods --all --now");
    cluster.until("get pods --no-headers", SECONDS, |text| text.trim().is_empty());
}
