//! NodeDeclaredFeatureValidator: what the kubelet of a pod's node does not declare that it can,
//! is not asked of it by a change of the pod (KEP-5328).

use serde_json::Value;

use super::{Attributes, Operation};
use crate::cache::prefix::NODES;
use crate::error::Result;
use crate::registry::Registry;

/// What a change of a pod needs, by name and in the order of the names.
fn needed(new: &Value, old: &Value) -> Vec<&'static str> {
    let mut out = Vec::new();
    let (new, old) = (&new["spec"], &old["spec"]);
    if new["resources"] != old["resources"] {
        out.push("InPlacePodLevelResourcesVerticalScaling");
    }
    let first = |spec: &'_ Value| spec["initContainers"].as_array().cloned().unwrap_or_default();
    let is_other = |(now, before): (&Value, &Value)| {
        before["restartPolicy"] != "Always" && now["resources"] != before["resources"]
    };
    if first(new).iter().zip(&first(old)).any(is_other) {
        out.push("InPlacePodVerticalScalingInitContainers");
    }
    out
}

pub fn validate(registry: &Registry, request: &Attributes<'_>, object: &Value) -> Result<()> {
    let Some(old) = request.old.filter(|_| request.operation == Operation::Update) else {
        return Ok(());
    };
    let is_pod = request.resource.group.is_empty() && request.resource.plural == "pods";
    let node = object["spec"]["nodeName"].as_str().unwrap_or_default();
    if !is_pod || !matches!(request.subresource, "" | "resize") || node.is_empty() {
        return Ok(());
    }
    let needed = needed(object, old);
    if needed.is_empty() {
        return Ok(());
    }
    let Some(live) = registry.cache.get(NODES, &format!("{NODES}{node}")) else {
        return Err(request.forbidden(format!("node {node:?} not found")));
    };
    let live = live.value();
    let declared = live["status"]["declaredFeatures"].as_array();
    let has = |name: &&&str| declared.is_some_and(|all| all.iter().any(|it| it == **name));
    let missing: Vec<&str> = needed.iter().filter(|name| !has(name)).copied().collect();
    if missing.is_empty() {
        return Ok(());
    }
    let missing = missing.join(", ");
    Err(request.forbidden(format!(
        "pod update requires features {missing} which are not available on node {node:?}"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn changes_of_resources_need_what_not_all_kubelets_can() {
        let with = |whole: Value, first: Value, main: Value| {
            json!({"spec": {"resources": whole, "containers": [{"resources": main}],
                "initContainers": [{"resources": first},
                    {"restartPolicy": "Always", "resources": main}]}})
        };
        let (small, large) = (json!({"requests": {"cpu": "1"}}), json!({"requests": {"cpu": "2"}}));
        let old = with(small.clone(), small.clone(), small.clone());
        for (new, want) in [
            (old.clone(), vec![]),
            (with(small.clone(), small.clone(), large.clone()), vec![]),
            (
                with(large.clone(), small.clone(), small.clone()),
                vec!["InPlacePodLevelResourcesVerticalScaling"],
            ),
            (
                with(small.clone(), large.clone(), small),
                vec!["InPlacePodVerticalScalingInitContainers"],
            ),
        ] {
            assert_eq!(needed(&new, &old), want, "{new}");
        }
    }
}
