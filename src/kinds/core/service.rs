//! What happens to a service's fields when its type changes.

use serde_json::Value;

use crate::value::{at, flag, has, items, items_mut, number, text};

/// What a service of this type has.
struct Has {
    cluster_ip: bool,
    node_port: bool,
    health_port: bool,
    balancer: bool,
    outside: bool,
}

impl Has {
    fn of(service: &Value) -> Self {
        let spec = at(service, "spec");
        let kind = text(spec, "type");
        let balancer = kind == "LoadBalancer";
        let ports = at(spec, "allocateLoadBalancerNodePorts");
        Self {
            cluster_ip: kind != "ExternalName",
            node_port: kind == "NodePort"
                || (balancer && (ports.is_null() || flag(spec, "allocateLoadBalancerNodePorts"))),
            health_port: balancer && text(spec, "externalTrafficPolicy") == "Local",
            balancer,
            outside: balancer
                || kind == "NodePort"
                || (kind == "ClusterIP" && !items(spec, "externalIPs").is_empty()),
        }
    }
}

/// Takes away what the new type has no use for, as far as the update did not ask for it: who
/// only changes `spec.type` means the rest to follow.
pub fn drop_dependent(new: &mut Value, old: &Value) {
    let (now, was) = (Has::of(new), Has::of(old));
    let same = |new: &Value, field: &str| at(new, field) == at(old, field);
    let mut dropped: Vec<&str> = Vec::new();
    if was.cluster_ip && !now.cluster_ip {
        if same(new, "spec.clusterIP") && same(new, "spec.clusterIPs") {
            dropped.extend(["clusterIP", "clusterIPs"]);
        }
        for field in ["ipFamilies", "ipFamilyPolicy", "internalTrafficPolicy"] {
            if same(new, &format!("spec.{field}")) {
                dropped.push(field);
            }
        }
    }
    if was.health_port && !now.health_port && same(new, "spec.healthCheckNodePort") {
        dropped.push("healthCheckNodePort");
    }
    if was.balancer && !now.balancer {
        for field in ["allocateLoadBalancerNodePorts", "loadBalancerClass"] {
            if same(new, &format!("spec.{field}")) {
                dropped.push(field);
            }
        }
    }
    if was.outside && !now.outside && same(new, "spec.externalTrafficPolicy") {
        dropped.push("externalTrafficPolicy");
    }
    let ports = |service: &Value| -> Vec<i64> {
        items(service, "spec.ports").iter().map(|port| number(port, "nodePort")).collect()
    };
    let node_ports_go = was.node_port && !now.node_port && ports(new) == ports(old);
    let spec = &mut new["spec"];
    if node_ports_go {
        for port in items_mut(spec, "ports").filter_map(Value::as_object_mut) {
            port.shift_remove("nodePort");
        }
    }
    if let Some(spec) = spec.as_object_mut() {
        for field in dropped {
            spec.shift_remove(field);
        }
    }
}

/// An address of a load balancer is a virtual one unless told otherwise.
pub fn status_defaults(service: &mut Value) {
    let Some(balancer) = service.pointer_mut("/status/loadBalancer") else { return };
    for entry in items_mut(balancer, "ingress") {
        if has(entry, "ip") && !has(entry, "ipMode") {
            entry["ipMode"] = "VIP".into();
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_change_of_the_type_takes_along_what_depends_on_it() {
        let old = json!({"spec": {
            "type": "LoadBalancer", "clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1"],
            "externalTrafficPolicy": "Local", "healthCheckNodePort": 30001,
            "allocateLoadBalancerNodePorts": true, "internalTrafficPolicy": "Cluster",
            "ports": [{"port": 80, "nodePort": 30000}],
        }});
        let mut plain = old.clone();
        plain["spec"]["type"] = json!("ClusterIP");
        drop_dependent(&mut plain, &old);
        assert_eq!(
            plain,
            json!({"spec": {
                "type": "ClusterIP", "clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1"],
                "internalTrafficPolicy": "Cluster", "ports": [{"port": 80}],
            }})
        );
        let mut outside = old.clone();
        outside["spec"]["type"] = json!("ExternalName");
        // What the update itself sets stays, and is validated.
        outside["spec"]["ports"][0]["nodePort"] = json!(30005);
        drop_dependent(&mut outside, &old);
        assert_eq!(
            outside,
            json!({"spec": {
                "type": "ExternalName", "ports": [{"port": 80, "nodePort": 30005}],
            }})
        );
    }
}
