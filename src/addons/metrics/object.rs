//! The forms of answers: objects, lists, tables, discovery and refusals.
//!
//! Pure.

use kinds::meta::quantity::Quantity;
use serde_json::{Value, json};

use super::sample::Usage;
use super::{GROUP, VERSION};

pub fn api_version() -> String {
    format!("{GROUP}/{VERSION}")
}

/// RFC 3339, whole seconds.
fn time(milliseconds: i64) -> String {
    jiff::Timestamp::from_millisecond(milliseconds).map(base::time::rfc3339).unwrap_or_default()
}

/// As Go writes a length of time: `15.02s`, `1m30s`.
fn window(milliseconds: i64) -> String {
    let (minutes, rest) = (milliseconds / 60_000, milliseconds % 60_000);
    let seconds = format!("{}.{:03}", rest / 1000, rest % 1000);
    let seconds = seconds.trim_end_matches('0').trim_end_matches('.');
    if minutes > 0 { format!("{minutes}m{seconds}s") } else { format!("{seconds}s") }
}

fn quantities(usage: &Usage) -> Value {
    json!({
        "cpu": Quantity::from_nanos(usage.cpu_nanocores).to_string(),
        "memory": Quantity::from_bytes(usage.memory_bytes).to_string(),
    })
}

fn metadata(name: &str, namespace: Option<&str>, labels: &Value, now: i64) -> Value {
    let mut out = json!({"name": name, "creationTimestamp": time(now)});
    if let Some(namespace) = namespace {
        out["namespace"] = namespace.into();
    }
    if labels.as_object().is_some_and(|labels| !labels.is_empty()) {
        out["labels"] = labels.clone();
    }
    out
}

pub fn node(name: &str, labels: &Value, usage: &Usage, now: i64) -> Value {
    json!({
        "kind": "NodeMetrics", "apiVersion": api_version(),
        "metadata": metadata(name, None, labels, now),
        "timestamp": time(usage.at), "window": window(usage.window_milliseconds),
        "usage": quantities(usage),
    })
}

/// A pod; its time and window are those of the container that was measured first and
/// longest.
pub fn pod(
    namespace: &str,
    name: &str,
    labels: &Value,
    containers: &[(&str, Usage)],
    now: i64,
) -> Value {
    let at = containers.iter().map(|(_, usage)| usage.at).min().unwrap_or(now);
    let length = containers.iter().map(|(_, usage)| usage.window_milliseconds).max().unwrap_or(0);
    let of = |(name, usage): &(&str, Usage)| json!({"name": name, "usage": quantities(usage)});
    json!({
        "kind": "PodMetrics", "apiVersion": api_version(),
        "metadata": metadata(name, Some(namespace), labels, now),
        "timestamp": time(at), "window": window(length),
        "containers": containers.iter().map(of).collect::<Vec<_>>(),
    })
}

pub fn list(kind: &str, items: Vec<Value>) -> Value {
    json!({"kind": format!("{kind}List"), "apiVersion": api_version(), "metadata": {},
        "items": items})
}

/// Sum of a pod's containers, or a node's own, as one quantity.
fn total(object: &Value, resource: &str) -> String {
    let read = |usage: &Value| usage[resource].as_str().and_then(|t| t.parse::<Quantity>().ok());
    let sum = match object["containers"].as_array() {
        Some(containers) => containers
            .iter()
            .filter_map(|container| read(&container["usage"]))
            .fold(Quantity::default(), Quantity::plus),
        None => read(&object["usage"]).unwrap_or_default(),
    };
    sum.to_string()
}

/// The same as a table; `version` is that of `meta.k8s.io`.
pub fn table(items: &[Value], version: &str) -> Value {
    let column = |name: &str, format: &str, description: &str| {
        json!({"name": name, "type": "string", "format": format, "description": description,
            "priority": 0})
    };
    let row = |item: &Value| {
        let object = json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1",
            "metadata": item["metadata"]});
        json!({"cells": [item["metadata"]["name"], total(item, "cpu"), total(item, "memory"),
            item["window"]], "object": object})
    };
    json!({
        "kind": "Table", "apiVersion": format!("meta.k8s.io/{version}"), "metadata": {},
        "columnDefinitions": [
            column("Name", "name", "Name of the resource"),
            column("cpu", "quantity", ""),
            column("memory", "quantity", ""),
            column("Window", "duration", ""),
        ],
        "rows": items.iter().map(row).collect::<Vec<_>>(),
    })
}

/// The group's version as a list of resources.
pub fn resources() -> Value {
    let resource = |name: &str, namespaced: bool, kind: &str| {
        json!({"name": name, "singularName": "", "namespaced": namespaced, "kind": kind,
            "verbs": ["get", "list"]})
    };
    json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": api_version(),
        "resources": [resource("nodes", false, "NodeMetrics"), resource("pods", true, "PodMetrics")]})
}

/// A refusal in the form of a Status.
pub fn status(code: u16, reason: &str, message: &str) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": message, "reason": reason, "code": code})
}

/// 404: `nodemetrics.metrics.k8s.io "x" not found`.
pub fn not_found(kind: &str, name: &str) -> Value {
    let kind = kind.to_lowercase();
    let mut out = status(404, "NotFound", &format!("{kind}.{GROUP} {name:?} not found"));
    out["details"] = json!({"name": name, "group": GROUP, "kind": kind});
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const USE: Usage = Usage {
        at: 1_700_000_000_000,
        window_milliseconds: 15_020,
        cpu_nanocores: 12_345_678,
        memory_bytes: 10_240 * 1024,
    };

    #[test]
    fn objects_are_written_as_metrics_server_writes_them() {
        let node = node("m", &json!({"a": "b"}), &USE, USE.at);
        assert_eq!(node["usage"], json!({"cpu": "12345678n", "memory": "10Mi"}));
        assert_eq!(node["window"], "15.02s");
        assert_eq!(node["timestamp"], "2023-11-14T22:13:20Z");
        let pod = pod("n", "p", &json!({}), &[("a", USE), ("b", USE)], USE.at);
        assert_eq!(pod["containers"][1]["name"], "b");
        let table = table(&[pod], "v1");
        assert_eq!(table["rows"][0]["cells"], json!(["p", "24691356n", "20Mi", "15.02s"]));
        assert_eq!(
            not_found("NodeMetrics", "x")["message"],
            "nodemetrics.metrics.k8s.io \"x\" not found"
        );
        assert_eq!(window(90_000), "1m30s");
        assert_eq!(window(15_000), "15s");
    }
}
