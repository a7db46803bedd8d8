//! Between the version a client speaks and the version an object is stored in.
//!
//! Most kinds have one shape in all served versions and only their `apiVersion` differs;
//! Events and HorizontalPodAutoscalers have two.

use kinds::resources::Resource;
use serde_json::{Map, Value, json};

/// From the storage version to `version` of the resource.
pub fn from_storage(mut value: Value, resource: &Resource, version: &str) -> Value {
    let wanted = resource.api_version(version);
    if value["apiVersion"] == wanted.as_str() {
        return value;
    }
    match (resource.group.as_str(), version) {
        ("events.k8s.io", _) => event_from_core(&mut value),
        ("autoscaling", "v1") => autoscaler_to_v1(&mut value),
        _ => {}
    }
    value["apiVersion"] = wanted.into();
    value
}

/// To the storage version.
pub fn to_storage(mut value: Value, resource: &Resource) -> Value {
    let stored = resource.storage.to_string();
    if value["apiVersion"] == stored.as_str() {
        return value;
    }
    match (resource.group.as_str(), value["apiVersion"].as_str().unwrap_or("")) {
        ("events.k8s.io", _) => event_to_core(&mut value),
        ("autoscaling", "autoscaling/v1") => autoscaler_from_v1(&mut value),
        _ => {}
    }
    value["apiVersion"] = stored.into();
    value
}

/// Whether objects stored for `resource` can be sent to `version` as they are.
///
/// Custom ones reach whoever sends them in their version already.
pub fn is_identity(resource: &Resource, version: &str) -> bool {
    if resource.custom {
        return true;
    }
    resource.storage.group == resource.group && resource.storage.version == version
}

/// A field selector in the names of the stored fields.
pub fn stored_fields(resource: &Resource, selector: &str) -> String {
    if resource.group != "events.k8s.io" {
        return selector.to_string();
    }
    selector
        .split(',')
        .map(|part| {
            let part = part.trim();
            if let Some(rest) = part.strip_prefix("regarding.") {
                return format!("involvedObject.{rest}");
            }
            match part.strip_prefix("reportingController") {
                Some(rest) => format!("reportingComponent{rest}"),
                None => part.to_string(),
            }
        })
        .collect::<Vec<_>>()
        .join(",")
}

fn rename(map: &mut Map<String, Value>, from: &str, to: &str) {
    if let Some(value) = map.shift_remove(from) {
        map.insert(to.into(), value);
    }
}

/// Core v1 fields and their names in events.k8s.io/v1.
const EVENT_FIELDS: [(&str, &str); 6] = [
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("source", "deprecatedSource"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("count", "deprecatedCount"),
];

fn event_from_core(value: &mut Value) {
    if let Value::Object(map) = value {
        for (core, new) in EVENT_FIELDS {
            rename(map, core, new);
        }
        rename(map, "reportingComponent", "reportingController");
        // Core writes these even when they are empty.
        for name in ["reportingController", "reportingInstance"] {
            if map.get(name).is_some_and(|value| value == "") {
                map.shift_remove(name);
            }
        }
    }
}

fn event_to_core(value: &mut Value) {
    if let Value::Object(map) = value {
        for (core, new) in EVENT_FIELDS {
            rename(map, new, core);
        }
        rename(map, "reportingController", "reportingComponent");
    }
}

const TARGET_CPU: &str = "targetCPUUtilizationPercentage";
const METRICS: &str = "autoscaling.alpha.kubernetes.io/metrics";
const BEHAVIOR: &str = "autoscaling.alpha.kubernetes.io/behavior";

fn is_cpu_utilization(metric: &Value) -> bool {
    metric["type"] == "Resource"
        && metric["resource"]["name"] == "cpu"
        && metric["resource"]["target"]["averageUtilization"].is_number()
}

/// v1 has one number for CPU; the rest travels in annotations, as upstream does it.
fn autoscaler_to_v1(value: &mut Value) {
    let Some(Value::Object(spec)) = value.get_mut("spec") else { return };
    let metrics = spec.shift_remove("metrics");
    let behavior = spec.shift_remove("behavior");
    let mut others = Vec::new();
    for metric in metrics.as_ref().and_then(Value::as_array).into_iter().flatten() {
        if is_cpu_utilization(metric) && !spec.contains_key(TARGET_CPU) {
            let percent = metric["resource"]["target"]["averageUtilization"].clone();
            spec.insert(TARGET_CPU.into(), percent);
        } else {
            others.push(metric.clone());
        }
    }
    let mut annotate = |name: &str, kept: &Value| {
        value["metadata"]["annotations"][name] = kept.to_string().into();
    };
    if !others.is_empty() {
        annotate(METRICS, &Value::Array(others));
    }
    if let Some(behavior) = behavior {
        annotate(BEHAVIOR, &behavior);
    }
    if let Some(Value::Object(status)) = value.get_mut("status") {
        let current = status.shift_remove("currentMetrics");
        // v1 writes a count of none; v2 leaves it out.
        status.entry("currentReplicas").or_insert(json!(0));
        status.shift_remove("conditions");
        for metric in current.as_ref().and_then(Value::as_array).into_iter().flatten() {
            if metric["resource"]["name"] == "cpu" {
                let percent = metric["resource"]["current"]["averageUtilization"].clone();
                if percent.is_number() {
                    status.insert("currentCPUUtilizationPercentage".into(), percent);
                }
            }
        }
    }
}

fn autoscaler_from_v1(value: &mut Value) {
    let mut kept = |name: &str| -> Option<Value> {
        let annotations = value["metadata"].get_mut("annotations")?.as_object_mut()?;
        let text = annotations.shift_remove(name)?;
        serde_json::from_str(text.as_str()?).ok()
    };
    let (metrics, behavior) = (kept(METRICS), kept(BEHAVIOR));
    if value["metadata"]["annotations"].as_object().is_some_and(Map::is_empty)
        && let Some(Value::Object(metadata)) = value.get_mut("metadata")
    {
        metadata.shift_remove("annotations");
    }
    let Some(Value::Object(spec)) = value.get_mut("spec") else { return };
    let mut list = metrics.and_then(|m| m.as_array().cloned()).unwrap_or_default();
    if let Some(percent) = spec.shift_remove(TARGET_CPU) {
        list.insert(
            0,
            json!({"type": "Resource", "resource": {
                "name": "cpu", "target": {"type": "Utilization", "averageUtilization": percent},
            }}),
        );
    }
    if !list.is_empty() {
        spec.insert("metrics".into(), list.into());
    }
    if let Some(behavior) = behavior {
        spec.insert("behavior".into(), behavior);
    }
    if let Some(Value::Object(status)) = value.get_mut("status") {
        if status.get("currentReplicas").is_some_and(|count| count == 0) {
            status.shift_remove("currentReplicas");
        }
        status.insert("currentMetrics".into(), Value::Null);
    }
    if let Some(Value::Object(status)) = value.get_mut("status")
        && let Some(percent) = status.shift_remove("currentCPUUtilizationPercentage")
    {
        status.insert(
            "currentMetrics".into(),
            json!([{"type": "Resource", "resource": {
                "name": "cpu", "current": {"averageUtilization": percent, "averageValue": "0"},
            }}]),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_autoscaler_survives_the_way_through_v1() {
        let stored = json!({
            "apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler",
            "metadata": {"name": "a"},
            "spec": {"maxReplicas": 3, "metrics": [
                {"type": "Resource", "resource": {"name": "cpu",
                    "target": {"type": "Utilization", "averageUtilization": 80}}},
                {"type": "Resource", "resource": {"name": "memory",
                    "target": {"type": "AverageValue", "averageValue": "1Gi"}}},
            ]},
        });
        let catalog = kinds::resources::Catalog::built_in();
        let resource = catalog.any_version("autoscaling", "horizontalpodautoscalers").unwrap();
        let v1 = from_storage(stored.clone(), resource, "v1");
        assert_eq!(v1["spec"][TARGET_CPU], 80);
        assert!(v1["spec"].get("metrics").is_none());
        assert_eq!(to_storage(v1, resource), stored);
    }

    #[test]
    fn both_event_groups_show_one_stored_event() {
        let catalog = kinds::resources::Catalog::built_in();
        let resource = catalog.any_version("events.k8s.io", "events").unwrap();
        let stored = json!({"apiVersion": "v1", "kind": "Event", "metadata": {"name": "e"},
            "involvedObject": {"name": "x"}, "message": "m", "reportingComponent": "c"});
        let new = from_storage(stored.clone(), resource, "v1");
        assert_eq!(new["regarding"]["name"], "x");
        assert_eq!(new["note"], "m");
        assert_eq!(to_storage(new, resource), stored);
    }
}
