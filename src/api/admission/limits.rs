//! LimitRanger: containers get the namespace's default requests and limits, and nothing is
//! outside of its bounds.

use kinds::meta::quantity::Quantity;
use serde_json::{Map, Value};

use super::{Attributes, Operation};
use crate::error::Result;
use crate::registry::Registry;

const RANGES: &str = "/registry/limitranges/";
const ANNOTATION: &str = "kubernetes.io/limit-ranger";

fn is_new(request: &Attributes<'_>, plural: &str) -> bool {
    request.operation == Operation::Create && request.is("", plural)
}

/// The items of all ranges of the namespace.
fn limits(registry: &Registry, request: &Attributes<'_>) -> Vec<Value> {
    let start = format!("{RANGES}{}/", request.namespace);
    let (ranges, _) = registry.cache.list(RANGES, &start, None);
    ranges
        .iter()
        .filter_map(|range| match range.value()["spec"]["limits"].take() {
            Value::Array(items) => Some(items),
            _ => None,
        })
        .flatten()
        .collect()
}

fn amount(value: &Value) -> Option<Quantity> {
    value.as_str()?.parse().ok()
}

pub fn set_defaults(registry: &Registry, request: &Attributes<'_>, pod: &mut Value) -> Result<()> {
    if !is_new(request, "pods") {
        return Ok(());
    }
    let (mut requests, mut most) = (Map::new(), Map::new());
    for limit in limits(registry, request).iter().filter(|limit| limit["type"] == "Container") {
        for (from, to) in [("defaultRequest", &mut requests), ("default", &mut most)] {
            for (resource, value) in limit[from].as_object().into_iter().flatten() {
                to.insert(resource.clone(), value.clone());
            }
        }
    }
    if requests.is_empty() && most.is_empty() {
        return Ok(());
    }
    let mut said = Vec::new();
    for (list, word) in [("containers", "container"), ("initContainers", "init container")] {
        let containers = pod["spec"].get_mut(list).and_then(Value::as_array_mut);
        for container in containers.into_iter().flatten() {
            let name = container["name"].as_str().unwrap_or_default().to_owned();
            for (key, kind, defaults) in
                [("requests", "request", &requests), ("limits", "limit", &most)]
            {
                let set = fill(container, key, defaults);
                if !set.is_empty() {
                    said.push(format!("{} {kind} for {word} {name}", set.join(", ")));
                }
            }
        }
    }
    if !said.is_empty() {
        let text = format!("LimitRanger plugin set: {}", said.join("; "));
        pod["metadata"]["annotations"][ANNOTATION] = text.into();
    }
    Ok(())
}

/// Puts in what is missing; the names of it, sorted.
fn fill(container: &mut Value, key: &str, defaults: &Map<String, Value>) -> Vec<String> {
    let mut set = Vec::new();
    for (resource, value) in defaults {
        let own = container["resources"].get(key).and_then(|map| map.get(resource));
        if own.is_none_or(Value::is_null) {
            container["resources"][key][resource] = value.clone();
            set.push(resource.clone());
        }
    }
    set.sort_unstable();
    set
}

/// # Errors
/// 403 for what is outside of a range.
pub fn validate(registry: &Registry, request: &Attributes<'_>, object: &Value) -> Result<()> {
    let mut problems = Vec::new();
    let is_pod = request.resource.group.is_empty() && request.resource.plural == "pods";
    if is_new(request, "pods") || is_pod && request.subresource == "resize" {
        let ranges = limits(registry, request);
        for limit in &ranges {
            match limit["type"].as_str() {
                Some("Container") => {
                    for list in ["containers", "initContainers"] {
                        for one in object["spec"][list].as_array().into_iter().flatten() {
                            let used = |key: &str| one["resources"][key].clone();
                            bounds(
                                limit,
                                "Container",
                                &used("requests"),
                                &used("limits"),
                                &mut problems,
                            );
                        }
                    }
                }
                Some("Pod") => {
                    let [requests, most] = ["requests", "limits"].map(|key| sum(object, key));
                    bounds(limit, "Pod", &requests, &most, &mut problems);
                }
                _ => {}
            }
        }
    } else if request.is("", "persistentvolumeclaims") && request.operation != Operation::Delete {
        let requests = &object["spec"]["resources"]["requests"];
        for limit in &limits(registry, request) {
            if limit["type"] == "PersistentVolumeClaim" {
                claim(limit, requests, &mut problems);
            }
        }
    }
    match problems.len() {
        0 => Ok(()),
        1 => Err(request.forbidden(problems.remove(0))),
        _ => Err(request.forbidden(format!("[{}]", problems.join(", ")))),
    }
}

/// What the containers of a pod need together: those that run at once, or the largest of
/// those that run before them.
fn sum(pod: &Value, key: &str) -> Value {
    let mut total: Vec<(String, Quantity)> = Vec::new();
    let containers = |list: &str| pod["spec"][list].as_array().cloned().unwrap_or_default();
    let each = |one: &Value| -> Vec<(String, Quantity)> {
        let map = one["resources"][key].as_object();
        let entries = map.into_iter().flatten();
        entries.filter_map(|(name, value)| Some((name.clone(), amount(value)?))).collect()
    };
    let init = containers("initContainers");
    let (sidecars, first): (Vec<Value>, Vec<Value>) =
        init.into_iter().partition(|one| one["restartPolicy"] == "Always");
    for (name, value) in containers("containers").iter().chain(&sidecars).flat_map(each) {
        match total.iter_mut().find(|(known, _)| *known == name) {
            Some((_, sum)) => *sum = sum.plus(value),
            None => total.push((name, value)),
        }
    }
    for (name, value) in first.iter().flat_map(each) {
        match total.iter_mut().find(|(known, _)| *known == name) {
            Some((_, sum)) => *sum = value.max(*sum),
            None => total.push((name, value)),
        }
    }
    total.into_iter().map(|(name, value)| (name, Value::from(value.to_string()))).collect()
}

fn sorted(map: &Value) -> Vec<(&String, &Value)> {
    let mut entries: Vec<_> = map.as_object().into_iter().flatten().collect();
    entries.sort_by_key(|(name, _)| *name);
    entries
}

fn shown(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn bounds(limit: &Value, kind: &str, requests: &Value, most: &Value, out: &mut Vec<String>) {
    for (resource, bound) in sorted(&limit["min"]) {
        let least = amount(bound).unwrap_or_default();
        let say =
            |what: String| format!("minimum {resource} usage per {kind} is {}{what}", shown(bound));
        match (amount(&requests[resource]), amount(&most[resource])) {
            (None, _) => out.push(say(".  No request is specified".into())),
            (Some(asked), _) if asked < least => {
                out.push(say(format!(", but request is {}", shown(&requests[resource]))));
            }
            (_, Some(given)) if given < least => {
                out.push(say(format!(", but limit is {}", shown(&most[resource]))));
            }
            _ => {}
        }
    }
    for (resource, bound) in sorted(&limit["max"]) {
        let top = amount(bound).unwrap_or_default();
        let say =
            |what: String| format!("maximum {resource} usage per {kind} is {}{what}", shown(bound));
        match (amount(&requests[resource]), amount(&most[resource])) {
            (_, None) => out.push(say(".  No limit is specified".into())),
            (_, Some(given)) if given > top => {
                out.push(say(format!(", but limit is {}", shown(&most[resource]))));
            }
            (Some(asked), _) if asked > top => {
                out.push(say(format!(", but request is {}", shown(&requests[resource]))));
            }
            _ => {}
        }
    }
    for (resource, bound) in sorted(&limit["maxLimitRequestRatio"]) {
        let say = |what: String| {
            format!(
                "{resource} max limit to request ratio per {kind} is {}, but {what}",
                shown(bound)
            )
        };
        let there = |map: &Value| amount(&map[resource]).filter(|value| !value.is_zero());
        let (asked, given) = (there(requests), there(most));
        match (asked, given) {
            (None, _) => out.push(say("no request is specified or request is 0".into())),
            (_, None) => out.push(say("no limit is specified or limit is 0".into())),
            (Some(asked), Some(given)) => {
                let ratio = given.as_f64() / asked.as_f64();
                if amount(bound).is_some_and(|bound| ratio > bound.as_f64()) {
                    out.push(say(format!("provided ratio is {ratio:.6}")));
                }
            }
        }
    }
}

fn claim(limit: &Value, requests: &Value, out: &mut Vec<String>) {
    for (key, word) in [("min", "minimum"), ("max", "maximum")] {
        for (resource, bound) in sorted(&limit[key]) {
            let say = |what: String| {
                format!(
                    "{word} {resource} usage per PersistentVolumeClaim is {}{what}",
                    shown(bound)
                )
            };
            let Some(limit) = amount(bound) else { continue };
            match amount(&requests[resource]) {
                None => out.push(say(".  No request is specified".into())),
                Some(asked)
                    if (key == "min" && asked < limit) || (key == "max" && asked > limit) =>
                {
                    out.push(say(format!(", but request is {}", shown(&requests[resource]))));
                }
                Some(_) => {}
            }
        }
    }
}
