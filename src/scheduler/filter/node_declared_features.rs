//! Features: a node must declare those that the pod cannot do without (KEP-5328).

use k8s_openapi::api::core::v1::PodSpec;

use super::{Reject, Rule};
use crate::pod::PodInfo;
use crate::snapshot::NodeInfo;

/// What a pod needs of its node's kubelet, by name and in the order of the names; for most pods
/// nothing.
pub fn needed(spec: &PodSpec) -> Vec<&'static str> {
    let mut out = Vec::new();
    let all = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let mut rules = all.flat_map(|it| it.restart_policy_rules.iter().flatten());
    if rules.any(|rule| rule.action == "RestartAllContainers") {
        out.push("RestartAllContainersOnContainerExits");
    }
    if spec.host_network == Some(true) && spec.host_users == Some(false) {
        out.push("UserNamespacesHostNetworkSupport");
    }
    out
}

pub fn check(pod: &PodInfo, node: &NodeInfo) -> Result<(), Reject> {
    if pod.features.is_empty() {
        return Ok(());
    }
    let status = node.node.status.as_ref();
    let declared = status.and_then(|it| it.declared_features.as_deref()).unwrap_or_default();
    let has = |feature: &&&str| declared.iter().any(|it| it == **feature);
    let missing: Vec<&str> = pod.features.iter().filter(|it| !has(it)).copied().collect();
    if missing.is_empty() {
        return Ok(());
    }
    let missing = missing.join(", ");
    Err(Reject::for_good(
        Rule::NodeDeclaredFeatures,
        format!("node declared features check failed - unsatisfied requirements: {missing}"),
    ))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::{Value, json};

    use super::*;
    use crate::testing::{node, pod_of};

    #[test]
    fn nodes_declare_what_pods_need() {
        let rule = json!([{"action": "RestartAllContainers",
            "exitCodes": {"operator": "In", "values": [1]}}]);
        let restarts = json!({"containers": [{"name": "c", "restartPolicyRules": rule}]});
        let first = json!({"initContainers": [{"name": "i", "restartPolicyRules": rule}]});
        let mapped = json!({"hostNetwork": true, "hostUsers": false});
        let own = json!({"hostUsers": false});
        let says = |missing: &str| {
            format!("node declared features check failed - unsatisfied requirements: {missing}")
        };
        let all = "RestartAllContainersOnContainerExits";
        for (spec, declared, missing) in [
            (json!({}), json!([]), None),
            (own, json!([]), None),
            (restarts.clone(), json!([]), Some(all)),
            (restarts.clone(), json!(["Other"]), Some(all)),
            (restarts, json!(["Other", all]), None),
            (first, json!([]), Some(all)),
            (mapped, json!([all]), Some("UserNamespacesHostNetworkSupport")),
        ] {
            let of = |spec: Value| PodInfo::new(Arc::new(pod_of("p", json!({}), spec)));
            let mut node = node("n", "1", "1Gi");
            node.status.as_mut().unwrap().declared_features =
                serde_json::from_value(declared.clone()).unwrap();
            let said = check(&of(spec.clone()), &NodeInfo::new(Arc::new(node)));
            let said = said.err().map(|reject| reject.reasons[0].clone());
            assert_eq!(said, missing.map(says), "{spec} {declared}");
        }
    }
}
