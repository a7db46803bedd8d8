//! PodResizeValidator: a pod on a node is not given more than that node has, and nothing at all
//! on a node that cannot change what a running pod has.

use std::collections::BTreeMap;

use kinds::meta::quantity::Quantity;
use kinds::quota::needs;
use serde_json::{Value, json};

use super::{Attributes, Operation};
use crate::cache::prefix::NODES;
use crate::error::{ApiError, Result};
use crate::registry::Registry;

const OS: &str = "kubernetes.io/os";

/// # Errors
/// 403 with the cause, as a type without a field.
pub fn validate(registry: &Registry, request: &Attributes<'_>, pod: &Value) -> Result<()> {
    let is_pod = request.resource.group.is_empty() && request.resource.plural == "pods";
    let node = pod["spec"]["nodeName"].as_str().unwrap_or_default();
    let is_resize = request.operation == Operation::Update && request.subresource == "resize";
    if !is_pod || !is_resize || node.is_empty() {
        return Ok(());
    }
    let before = request.old.map_or(&Value::Null, |old| &old["metadata"]["generation"]);
    if pod["metadata"]["generation"] == *before {
        return Ok(());
    }
    let Some(live) = registry.cache.get(NODES, &format!("{NODES}{node}")) else {
        return Err(request.forbidden(format!("node {node:?} not found")));
    };
    let live = live.value();
    if let Some(os) = live["metadata"]["labels"][OS].as_str()
        && os != "linux"
    {
        let why = format!("pod resize is only supported on linux nodes, node {node:?} is {os:?}");
        return Err(caused(request.forbidden(why), "UnsupportedPlatform"));
    }
    let asked = needs(&pod["spec"], "requests");
    match too_much(&asked, &live["status"]["allocatable"]) {
        None => Ok(()),
        Some(why) => Err(caused(request.forbidden(why), "NodeCapacity")),
    }
}

/// What the node has less of than is asked for.
fn too_much(asked: &BTreeMap<String, Quantity>, allocatable: &Value) -> Option<String> {
    type Unit = fn(&Quantity) -> i64;
    let units: [(&str, Unit); 2] = [("cpu", Quantity::millis), ("memory", Quantity::value)];
    let short = units.into_iter().filter_map(|(name, unit)| {
        let wanted = asked.get(name).copied().unwrap_or_default();
        let text = allocatable[name].as_str();
        let there: Quantity = text.and_then(|text| text.parse().ok()).unwrap_or_default();
        let (requested, there) = (wanted > there).then(|| (unit(&wanted), unit(&there)))?;
        Some(format!("{name}, requested: {requested}, allocatable: {there}"))
    });
    let short = short.collect::<Vec<_>>().join("; ");
    let why = || format!("node didn't have enough allocatable resources: {short}");
    (!short.is_empty()).then(why)
}

fn caused(mut error: ApiError, reason: &str) -> ApiError {
    error.details.get_or_insert_with(|| Box::new(json!({})))["causes"] =
        json!([{"reason": reason}]);
    error
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_pod_is_given_more_than_its_node_has() {
        let said = |cpu: &str, memory: &str| {
            let list = json!({"cpu": cpu, "memory": memory});
            let spec = json!({"containers": [{"resources": {"requests": list}}]});
            let allocatable = json!({"cpu": "2", "memory": "1Gi"});
            too_much(&needs(&spec, "requests"), &allocatable).unwrap_or_default()
        };
        assert_eq!(said("2", "1Gi"), "");
        assert_eq!(
            said("2001m", "1Gi"),
            "node didn't have enough allocatable resources: cpu, requested: 2001, allocatable: 2000"
        );
        assert_eq!(
            said("4", "2Gi"),
            "node didn't have enough allocatable resources: cpu, requested: 4000, allocatable: \
             2000; memory, requested: 2147483648, allocatable: 1073741824"
        );
    }
}
