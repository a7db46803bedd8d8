//! What an object counts against a ResourceQuota, and which objects a quota's scopes mean.
//!
//! Names of resources are those of `spec.hard` (documentation, "Resource Quotas").

mod devices;

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use crate::meta::quantity::Quantity;
use crate::rules::qos_class;
use crate::value::{at, has, items, text};

pub use devices::{
    DEVICES_OF_CLASS, EXTENDED_RESOURCE_CLAIM, IMPLICIT_RESOURCE, is_of_devices, is_of_resource,
};

pub type Usage = BTreeMap<String, Quantity>;

/// Counted under their bare names, too.
const COUNTED: [&str; 7] = [
    "configmaps",
    "persistentvolumeclaims",
    "pods",
    "replicationcontrollers",
    "resourcequotas",
    "secrets",
    "services",
];
/// Of pods: under these names requests stand, and under `limits.` the limits.
const COMPUTE: [&str; 3] = ["cpu", "memory", "ephemeral-storage"];

/// What else there is, for what an object counts does not always stand in it alone.
pub trait Around {
    /// The extended resource that a class of devices stands for.
    fn resource_of(&self, class: &str) -> Option<String>;
    fn pod(&self, namespace: &str, name: &str) -> Option<Value>;
}

/// There is nothing else.
impl Around for () {
    fn resource_of(&self, _: &str) -> Option<String> {
        None
    }

    fn pod(&self, _: &str, _: &str) -> Option<Value> {
        None
    }
}

fn one() -> Quantity {
    Quantity::from_units(1)
}

fn amount(value: &Value) -> Option<Quantity> {
    value.as_str()?.parse().ok()
}

fn add(usage: &mut Usage, name: impl Into<String>, value: Quantity) {
    let sum = usage.entry(name.into()).or_default();
    *sum = sum.plus(value);
}

/// What the object uses of everything that a quota can bound.
pub fn usage(
    (group, plural): (&str, &str),
    object: &Value,
    around: &dyn Around,
    now: Timestamp,
) -> Usage {
    let mut out = Usage::new();
    let counted = if group.is_empty() {
        format!("count/{plural}")
    } else {
        format!("count/{plural}.{group}")
    };
    add(&mut out, counted, one());
    if group == "resource.k8s.io" && plural == "resourceclaims" {
        devices::claim(object, around, &mut out);
    }
    if !group.is_empty() {
        return out;
    }
    match plural {
        "pods" => pod(object, now, &mut out),
        "services" => service(object, &mut out),
        "persistentvolumeclaims" => claim(object, &mut out),
        _ => {}
    }
    if plural != "pods" && COUNTED.contains(&plural) {
        add(&mut out, plural, one());
    }
    out
}

fn service(service: &Value, out: &mut Usage) {
    let spec = at(service, "spec");
    let ports = items(spec, "ports");
    let asked = ports.iter().filter(|port| port["nodePort"].as_i64().unwrap_or(0) != 0).count();
    let node_ports = match text(spec, "type") {
        "NodePort" => ports.len(),
        "LoadBalancer" => {
            add(out, "services.loadbalancers", one());
            if spec["allocateLoadBalancerNodePorts"] == false { asked } else { ports.len() }
        }
        _ => 0,
    };
    let count = Quantity::from_units(i64::try_from(node_ports).unwrap_or(i64::MAX));
    add(out, "services.nodeports", count);
}

fn claim(claim: &Value, out: &mut Usage) {
    let spec = at(claim, "spec");
    let class = text(spec, "storageClassName");
    let of_class = |name: &str| format!("{class}.storageclass.storage.k8s.io/{name}");
    if !class.is_empty() {
        add(out, of_class("persistentvolumeclaims"), one());
    }
    // A claim that shrinks holds its room until it has shrunk.
    let asked = amount(at(spec, "resources.requests.storage")).unwrap_or_default();
    let held = amount(at(claim, "status.allocatedResources.storage")).unwrap_or_default();
    let storage = asked.max(held);
    add(out, "requests.storage", storage);
    if !class.is_empty() {
        add(out, of_class("requests.storage"), storage);
    }
}

/// Whether a pod still holds anything: it has not ended, and its time to end is not over.
fn holds(pod: &Value, now: Timestamp) -> bool {
    if matches!(text(pod, "status.phase"), "Failed" | "Succeeded") {
        return false;
    }
    let grace = at(pod, "metadata.deletionGracePeriodSeconds").as_i64();
    let deleted: Option<Timestamp> = text(pod, "metadata.deletionTimestamp").parse().ok();
    let (Some(deleted), Some(grace)) = (deleted, grace) else { return true };
    deleted.checked_add(SignedDuration::from_secs(grace)).is_ok_and(|end| now <= end)
}

fn pod(pod: &Value, now: Timestamp, out: &mut Usage) {
    if !holds(pod, now) {
        return;
    }
    add(out, "pods", one());
    let spec = at(pod, "spec");
    for (name, value) in needs(spec, "requests") {
        if COMPUTE.contains(&name.as_str()) {
            add(out, name.clone(), value);
        }
        if name.starts_with("hugepages-") {
            add(out, name.clone(), value);
        }
        add(out, format!("requests.{name}"), value);
    }
    for (name, value) in needs(spec, "limits") {
        if COMPUTE.contains(&name.as_str()) {
            add(out, format!("limits.{name}"), value);
        }
    }
}

/// `requests` or `limits` of a container, or of a whole pod.
fn said(one: &Value, key: &str) -> Usage {
    let map = at(one, "resources").get(key).and_then(Value::as_object);
    let entries = map.into_iter().flatten();
    entries.filter_map(|(name, value)| Some((name.clone(), amount(value)?))).collect()
}

/// What the containers of a pod need at their most: those that run together, or the largest of
/// those that run before them.
pub fn of_containers(spec: &Value, key: &str) -> Usage {
    let of = |one: &Value| said(one, key);
    let mut total = Usage::new();
    for one in items(spec, "containers") {
        of(one).into_iter().for_each(|(name, value)| add(&mut total, name, value));
    }
    let mut beside = Usage::new();
    let mut most = Usage::new();
    for one in items(spec, "initContainers") {
        let own = of(one);
        if text(one, "restartPolicy") == "Always" {
            own.into_iter().for_each(|(name, value)| {
                add(&mut total, name.clone(), value);
                add(&mut beside, name, value);
            });
            for (name, value) in &beside {
                let top = most.entry(name.clone()).or_default();
                *top = (*top).max(*value);
            }
            continue;
        }
        for (name, value) in own {
            let with = beside.get(&name).copied().unwrap_or_default().plus(value);
            let top = most.entry(name).or_default();
            *top = (*top).max(with);
        }
    }
    for (name, value) in most {
        let sum = total.entry(name).or_default();
        *sum = value.max(*sum);
    }
    total
}

/// What a pod needs at its most, and its overhead.
pub fn needs(spec: &Value, key: &str) -> Usage {
    let mut total = of_containers(spec, key);
    // What is said of the pod as a whole counts instead.
    total.extend(said(spec, key));
    for (name, value) in at(spec, "overhead").as_object().into_iter().flatten() {
        if let Some(value) = amount(value)
            && (key == "requests" || total.contains_key(name))
        {
            add(&mut total, name.clone(), value);
        }
    }
    total
}

/// Whether the quota means this object: all its scopes do.
pub fn is_meant(quota: &Value, group: &str, plural: &str, object: &Value) -> bool {
    let spec = at(quota, "spec");
    let plain = items(spec, "scopes").iter().filter_map(Value::as_str);
    let plain_fit =
        plain.into_iter().all(|scope| fits(scope, "Exists", &[], group, plural, object));
    let expressions = items(spec, "scopeSelector.matchExpressions");
    plain_fit
        && expressions.iter().all(|expression| {
            let (scope, operator) = (text(expression, "scopeName"), text(expression, "operator"));
            fits(scope, operator, items(expression, "values"), group, plural, object)
        })
}

fn fits(
    scope: &str,
    operator: &str,
    values: &[Value],
    group: &str,
    plural: &str,
    object: &Value,
) -> bool {
    let selects = |word: &str| match operator {
        "In" => values.iter().any(|value| value == word),
        "NotIn" => !values.iter().any(|value| value == word),
        "DoesNotExist" => word.is_empty(),
        _ => !word.is_empty(),
    };
    match (group, plural) {
        ("", "pods") => {
            let ends = has(object, "spec.activeDeadlineSeconds");
            match scope {
                "Terminating" => ends,
                "NotTerminating" => !ends,
                "BestEffort" => qos_class(object) == "BestEffort",
                "NotBestEffort" => qos_class(object) != "BestEffort",
                "PriorityClass" => selects(text(object, "spec.priorityClassName")),
                "CrossNamespacePodAffinity" => crosses_namespaces(object),
                _ => false,
            }
        }
        ("", "persistentvolumeclaims") if scope == "VolumeAttributesClass" => {
            selects(text(object, "spec.volumeAttributesClassName"))
        }
        _ => false,
    }
}

fn crosses_namespaces(pod: &Value) -> bool {
    let crosses =
        |term: &Value| !items(term, "namespaces").is_empty() || has(term, "namespaceSelector");
    ["podAffinity", "podAntiAffinity"].iter().any(|kind| {
        let own = at(at(pod, "spec.affinity"), kind);
        items(own, "requiredDuringSchedulingIgnoredDuringExecution").iter().any(crosses)
            || items(own, "preferredDuringSchedulingIgnoredDuringExecution")
                .iter()
                .any(|term| crosses(at(term, "podAffinityTerm")))
    })
}

/// What the containers of a pod must say of themselves, because a quota bounds it: per
/// resource the names of those that do not.
pub fn unsaid(pod: &Value, hard: &[&str]) -> Vec<(String, Vec<String>)> {
    let spec = at(pod, "spec");
    let mut out = Vec::new();
    for name in hard {
        let (key, resource) = match *name {
            "cpu" | "memory" => ("requests", *name),
            other => match other.split_once('.') {
                Some((key @ ("requests" | "limits"), resource @ ("cpu" | "memory"))) => {
                    (key, resource)
                }
                _ => continue,
            },
        };
        let says = |one: &Value| !at(at(one, "resources"), key)[resource].is_null();
        let silent: Vec<String> = ["containers", "initContainers"]
            .iter()
            .flat_map(|list| items(spec, list))
            .filter(|one| !says(one))
            .map(|one| text(one, "name").to_owned())
            .collect();
        if !silent.is_empty() && !says(spec) {
            out.push(((*name).to_owned(), silent));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn shown(usage: &Usage) -> BTreeMap<&str, String> {
        usage.iter().map(|(name, value)| (name.as_str(), value.to_string())).collect()
    }

    #[test]
    fn a_pod_counts_what_it_needs_at_its_most_and_until_it_ends() {
        let now = Timestamp::from_second(1_700_000_100).unwrap();
        let mut pod = json!({"spec": {
            "containers": [{"resources": {"requests": {"cpu": "100m"}, "limits": {"memory": "1Gi"}}}],
            "initContainers": [
                {"restartPolicy": "Always", "resources": {"requests": {"cpu": "50m"}}},
                {"resources": {"requests": {"cpu": "200m", "example.com/gpu": "1"}}}],
            "overhead": {"cpu": "10m"},
        }});
        let used = usage(("", "pods"), &pod, &(), now);
        let used = shown(&used);
        assert_eq!(used["cpu"], "260m");
        assert_eq!(used["requests.cpu"], "260m");
        assert_eq!(used["limits.memory"], "1Gi");
        assert_eq!(used["requests.example.com/gpu"], "1");
        assert_eq!((used["pods"].as_str(), used["count/pods"].as_str()), ("1", "1"));
        pod["status"] = json!({"phase": "Succeeded"});
        let ended = usage(("", "pods"), &pod, &(), now);
        assert_eq!(shown(&ended), BTreeMap::from([("count/pods", "1".to_owned())]));
        let unsaid = unsaid(&pod, &["requests.cpu", "limits.memory", "pods"]);
        assert_eq!(unsaid.len(), 1, "{unsaid:?}");
    }

    #[test]
    fn scopes_mean_some_pods_and_nothing_else() {
        let quota = json!({"spec": {"scopes": ["NotTerminating"], "scopeSelector": {
            "matchExpressions": [{"scopeName": "PriorityClass", "operator": "In", "values": ["high"]}]}}});
        let pod = |class: &str| json!({"spec": {"priorityClassName": class}});
        assert!(is_meant(&quota, "", "pods", &pod("high")));
        assert!(!is_meant(&quota, "", "pods", &pod("low")));
        assert!(!is_meant(&quota, "", "configmaps", &json!({})));
        assert!(is_meant(&json!({"spec": {}}), "apps", "deployments", &json!({})));
    }
}
