//! What the API server and the controllers around it do with objects of every kind: owners and
//! what they leave behind, namespaces, quotas, policies, API servers of others.

mod kinds;
mod namespaces;
mod owners;
mod policies;
mod quotas;
mod servers;

use serde_json::{Value, json};

use super::create;
use crate::cluster::{Cluster, KUBECONFIG};
use crate::machine::{eventually, told};

const SECONDS: u64 = 60;

#[test]
fn objects_are_owned_counted_judged_and_removed() {
    let cluster = Cluster::new();
    owners::all(&cluster);
    namespaces::all(&cluster);
    quotas::all(&cluster);
    policies::all(&cluster);
    kinds::all(&cluster);
    servers::all(&cluster);
    cluster.reset();
}

/// Runs kubectl with something on its standard input; it must succeed.
fn feed(cluster: &Cluster, line: &str, input: &Value) -> String {
    let mut words = vec![cluster.kubectl.as_str(), "--kubeconfig", KUBECONFIG];
    words.extend(line.split_whitespace());
    let output = cluster.machine.run_with_input(&words, &input.to_string());
    assert!(output.status.success(), "kubectl {line}\n{input}\n{}", told(&output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// What kubectl says of objects that must not be created.
fn refused(cluster: &Cluster, object: &Value) -> String {
    let words = [&cluster.kubectl, "--kubeconfig", KUBECONFIG, "create", "-f", "-"];
    let output = cluster.machine.run_with_input(&words, &object.to_string());
    assert!(!output.status.success(), "it was created: {object}");
    told(&output)
}

fn raw(cluster: &Cluster, path: &str) -> Value {
    serde_json::from_str(&cluster.kubectl(&["get", "--raw", path])).unwrap()
}

fn patch(cluster: &Cluster, of: &[&str], patch: &Value) {
    let mut words = vec!["patch"];
    words.extend(of);
    let patch = patch.to_string();
    words.extend(["--type=merge", "-p", &patch]);
    cluster.kubectl(&words);
}

fn list(all: &Value) -> &[Value] {
    all["items"].as_array().map(Vec::as_slice).unwrap_or_default()
}

fn name(object: &Value) -> &str {
    object["metadata"]["name"].as_str().unwrap_or_default()
}

fn uid(object: &Value) -> &str {
    object["metadata"]["uid"].as_str().unwrap_or_default()
}

/// Waits until what is listed holds.
fn until<T>(cluster: &Cluster, get: &str, holds: impl Fn(&[Value]) -> Result<T, String>) -> T {
    let line = format!("get {get} -o json");
    let words: Vec<&str> = line.split_whitespace().collect();
    eventually(&line, SECONDS, || {
        let text = cluster.try_kubectl(&words)?;
        let all: Value = serde_json::from_str(&text).map_err(|error| error.to_string())?;
        holds(list(&all))
    })
}

fn until_count(cluster: &Cluster, get: &str, count: usize) -> Vec<Value> {
    until(cluster, get, |all| match all.len() == count {
        true => Ok(all.to_vec()),
        false => Err(format!("there are {}", all.len())),
    })
}

/// A set of pods that end at once when told to.
fn set(kind: &str, name: &str, replicas: u32) -> Value {
    let version = if kind == "ReplicationController" { "v1" } else { "apps/v1" };
    let labels = json!({"app": name});
    let selector =
        if version == "v1" { labels.clone() } else { json!({"matchLabels": labels.clone()}) };
    json!({"apiVersion": version, "kind": kind, "metadata": {"name": name, "labels": labels},
        "spec": {"replicas": replicas, "selector": selector,
            "template": {"metadata": {"labels": labels},
                "spec": {"terminationGracePeriodSeconds": 0,
                    "containers": [{"name": "c", "image": "web:1",
                        "command": ["sleep", "1000"]}]}}}})
}
