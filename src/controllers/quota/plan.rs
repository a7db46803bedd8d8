//! What a quota bounds, and how much of it is used. Pure.

use std::collections::{BTreeSet, HashMap};

use jiff::Timestamp;
use kinds::quota::{Around, Usage, is_meant, is_of_devices, is_of_resource, usage};
use serde_json::{Map, Value, json};

/// A resource whose objects count.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bounded {
    pub group: String,
    pub plural: String,
}

/// The resources that the quota's `spec.hard` names, directly or by what their objects use.
pub fn bounded(quota: &Value) -> BTreeSet<Bounded> {
    let names = quota["spec"]["hard"].as_object().into_iter().flatten();
    names.flat_map(|(name, _)| counts(name)).collect()
}

/// What counts against the devices of a class, among others.
pub fn claims_of_devices() -> Bounded {
    Bounded { group: "resource.k8s.io".into(), plural: "resourceclaims".into() }
}

/// Whose objects count under a name of `spec.hard`.
fn counts(name: &str) -> Vec<Bounded> {
    let pods = Bounded { group: String::new(), plural: "pods".into() };
    if is_of_resource(name) { vec![pods, claims_of_devices()] } else { vec![counts_alone(name)] }
}

/// The same for names under which a single kind counts.
fn counts_alone(name: &str) -> Bounded {
    let core = |plural: &str| Bounded { group: String::new(), plural: plural.into() };
    if let Some(counted) = name.strip_prefix("count/") {
        let (plural, group) = counted.split_once('.').unwrap_or((counted, ""));
        return Bounded { group: group.into(), plural: plural.into() };
    }
    match name {
        "configmaps"
        | "persistentvolumeclaims"
        | "replicationcontrollers"
        | "resourcequotas"
        | "secrets"
        | "services" => core(name),
        _ if is_of_devices(name) => claims_of_devices(),
        "requests.storage" => core("persistentvolumeclaims"),
        _ if name.contains(".storageclass.storage.k8s.io/") => core("persistentvolumeclaims"),
        _ if name.starts_with("services.") => core("services"),
        _ => core("pods"),
    }
}

/// The quota's status: its bounds, and what the objects of its namespace use of them.
pub fn status(
    quota: &Value,
    objects: &HashMap<Bounded, Vec<Value>>,
    around: &dyn Around,
    now: Timestamp,
) -> Value {
    let mut sum = Usage::new();
    for (Bounded { group, plural }, list) in objects {
        for object in list.iter().filter(|object| is_meant(quota, group, plural, object)) {
            for (name, value) in usage((group, plural), object, around, now) {
                let total = sum.entry(name).or_default();
                *total = total.plus(value);
            }
        }
    }
    let hard = quota["spec"]["hard"].as_object().cloned().unwrap_or_default();
    let used: Map<String, Value> = hard
        .keys()
        .map(|name| (name.clone(), sum.get(name).copied().unwrap_or_default().to_string().into()))
        .collect();
    if hard.is_empty() {
        return json!({});
    }
    json!({"hard": hard, "used": used})
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(group: &str, plural: &str) -> Bounded {
        Bounded { group: group.into(), plural: plural.into() }
    }

    #[test]
    fn names_of_bounds_tell_whose_objects_count() {
        for (name, expected) in [
            ("pods", of("", "pods")),
            ("requests.cpu", of("", "pods")),
            ("hugepages-2Mi", of("", "pods")),
            ("secrets", of("", "secrets")),
            ("gpu.deviceclass.resource.k8s.io/devices", of("resource.k8s.io", "resourceclaims")),
            ("count/resourceclaims.resource.k8s.io", of("resource.k8s.io", "resourceclaims")),
            ("services.nodeports", of("", "services")),
            ("requests.storage", of("", "persistentvolumeclaims")),
            ("gold.storageclass.storage.k8s.io/requests.storage", of("", "persistentvolumeclaims")),
            ("count/deployments.apps", of("apps", "deployments")),
            ("count/boats.example.com", of("example.com", "boats")),
            ("count/configmaps", of("", "configmaps")),
        ] {
            assert_eq!(counts(name), [expected], "{name}");
        }
        let both = [of("", "pods"), of("resource.k8s.io", "resourceclaims")];
        assert_eq!(counts("requests.example.com/gpu"), both);
        assert_eq!(counts("requests.deviceclass.resource.kubernetes.io/gpu"), both);
    }
}
