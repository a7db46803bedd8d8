//! RuntimeClass: a pod takes over what its class says of overhead and of where it runs.

use serde_json::{Value, json};

use super::{Attributes, Operation};
use crate::error::Result;
use crate::registry::Registry;

const CLASSES: &str = "/registry/runtimeclasses/";

fn is_new_pod(request: &Attributes<'_>) -> bool {
    request.operation == Operation::Create && request.is("", "pods")
}

fn class(registry: &Registry, request: &Attributes<'_>, pod: &Value) -> Result<Option<Value>> {
    let Some(name) = pod["spec"]["runtimeClassName"].as_str().filter(|name| !name.is_empty())
    else {
        return Ok(None);
    };
    match registry.cache.get(CLASSES, &format!("{CLASSES}{name}")) {
        Some(class) => Ok(Some(class.value())),
        None => Err(request.forbidden(format!("pod rejected: RuntimeClass {name:?} not found"))),
    }
}

/// # Errors
/// 403 for a class that does not exist or contradicts the pod.
pub fn merge(registry: &Registry, request: &Attributes<'_>, pod: &mut Value) -> Result<()> {
    if !is_new_pod(request) {
        return Ok(());
    }
    let Some(class) = class(registry, request, pod)? else { return Ok(()) };
    let fixed = &class["overhead"]["podFixed"];
    let spec = &mut pod["spec"];
    if fixed.is_object() {
        let own = spec.get("overhead").filter(|own| own.is_object());
        if own.is_some_and(|own| own != fixed) {
            let why = "pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead";
            return Err(request.forbidden(why));
        }
        spec["overhead"] = fixed.clone();
    }
    let scheduling = &class["scheduling"];
    for (key, value) in scheduling["nodeSelector"].as_object().into_iter().flatten() {
        let own = spec.get("nodeSelector").and_then(|map| map.get(key));
        if let Some(own) = own.filter(|own| *own != value) {
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            return Err(request.forbidden(format!(
                "conflict: runtimeClass.scheduling.nodeSelector[{key}] = {}; pod.spec.nodeSelector[{key}] = {}",
                text(value),
                text(own)
            )));
        }
        spec["nodeSelector"][key] = value.clone();
    }
    if let Some(more) = scheduling["tolerations"].as_array().filter(|list| !list.is_empty()) {
        let mut all = spec["tolerations"].as_array().cloned().unwrap_or_default();
        for toleration in more {
            if !all.contains(toleration) {
                all.push(toleration.clone());
            }
        }
        spec["tolerations"] = json!(all);
    }
    Ok(())
}

/// # Errors
/// 403 for an overhead that is not the class's.
pub fn validate(registry: &Registry, request: &Attributes<'_>, pod: &Value) -> Result<()> {
    if !is_new_pod(request) {
        return Ok(());
    }
    let class = class(registry, request, pod)?.unwrap_or_default();
    let own = pod["spec"].get("overhead").filter(|own| own.is_object());
    let Some(own) = own else { return Ok(()) };
    match &class["overhead"]["podFixed"] {
        fixed if fixed == own => Ok(()),
        Value::Null => Err(request.forbidden(
            "pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead",
        )),
        _ => Err(request.forbidden(
            "pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead",
        )),
    }
}
