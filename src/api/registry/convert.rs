//! Between the version a client speaks and the version an object is stored in.
//!
//! Most kinds have one shape in all served versions and only their `apiVersion` differs;
//! Events and HorizontalPodAutoscalers have two.

use kinds::resources::Resource;
use serde_json::{Map, Value};

mod autoscaler;

/// From the storage version to `version` of the resource.
pub fn from_storage(mut value: Value, resource: &Resource, version: &str) -> Value {
    let wanted = resource.api_version(version);
    if value["apiVersion"] == wanted.as_str() {
        return value;
    }
    match (resource.group.as_str(), version) {
        ("events.k8s.io", _) => event_from_core(&mut value),
        ("autoscaling", "v1") => autoscaler::to_v1(&mut value),
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
        ("autoscaling", "autoscaling/v1") => autoscaler::from_v1(&mut value),
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

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

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
