//! Whether a pod may be on a node: questions that the scheduler, controllers and the kubelet
//! answer alike.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{
    NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, PodSpec, Taint, Toleration,
};
use kinds::meta::selector::{Operator, Requirement};

/// Whether one toleration answers one taint (core/v1, Toleration).
pub fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let said = |text: &Option<String>| text.clone().unwrap_or_default();
    let (effect, key) = (said(&toleration.effect), said(&toleration.key));
    if (!effect.is_empty() && effect != taint.effect) || (!key.is_empty() && key != taint.key) {
        return false;
    }
    let number = |text: &str| text.parse::<i64>().ok();
    let mine = said(&toleration.value);
    let its = said(&taint.value);
    match toleration.operator.as_deref().unwrap_or_default() {
        "" | "Equal" => mine == its && !key.is_empty(),
        "Exists" => true,
        "Gt" => number(&its).zip(number(&mine)).is_some_and(|(its, mine)| its > mine),
        "Lt" => number(&its).zip(number(&mine)).is_some_and(|(its, mine)| its < mine),
        _ => false,
    }
}

/// A node as selectors see it: its name, and a look at its labels.
pub struct Place<'a, L> {
    pub name: &'a str,
    pub label: L,
}

impl<'a, L: Fn(&str) -> Option<&'a str>> Place<'a, L> {
    /// Any term suffices (core/v1, NodeSelector).
    pub fn is_selected(&self, selector: &NodeSelector) -> bool {
        selector.node_selector_terms.iter().any(|term| self.is_of_term(term))
    }

    /// A term without any requirement selects nothing.
    pub fn is_of_term(&self, term: &NodeSelectorTerm) -> bool {
        let expressions = term.match_expressions.as_deref().unwrap_or_default();
        let fields = term.match_fields.as_deref().unwrap_or_default();
        if expressions.is_empty() && fields.is_empty() {
            return false;
        }
        expressions.iter().all(|e| holds(e, (self.label)(&e.key)))
            && fields.iter().all(|f| f.key == "metadata.name" && holds(f, Some(self.name)))
    }

    /// Whether the pod's `nodeSelector` and required node affinity let it be here.
    pub fn is_for(&self, spec: &PodSpec) -> bool {
        let mut labels = spec.node_selector.iter().flatten();
        labels.all(|(key, value)| (self.label)(key) == Some(value))
            && required(spec).is_none_or(|selector| self.is_selected(selector))
    }
}

/// The nodes that the pod must be on one of.
pub fn required(spec: &PodSpec) -> Option<&NodeSelector> {
    let affinity = spec.affinity.as_ref()?.node_affinity.as_ref()?;
    affinity.required_during_scheduling_ignored_during_execution.as_ref()
}

fn holds(expression: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let operator = match expression.operator.as_str() {
        "In" => Operator::In,
        "NotIn" => Operator::NotIn,
        "Exists" => Operator::Exists,
        "DoesNotExist" => Operator::DoesNotExist,
        "Gt" => Operator::GreaterThan,
        "Lt" => Operator::LessThan,
        _ => return false,
    };
    let values: BTreeSet<String> = expression.values.iter().flatten().cloned().collect();
    Requirement { key: String::new(), operator, values }.holds(value)
}

/// A host port: address (`0.0.0.0` is every one), protocol, number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostPort {
    pub address: String,
    pub protocol: String,
    pub port: i32,
}

impl HostPort {
    pub fn clashes(&self, other: &Self) -> bool {
        self.port == other.port
            && self.protocol == other.protocol
            && (self.address == other.address
                || self.address == "0.0.0.0"
                || other.address == "0.0.0.0")
    }
}

/// The host ports that a pod holds as long as it runs: those of its containers and sidecars.
pub fn host_ports(spec: &PodSpec) -> Vec<HostPort> {
    let sidecars = spec.init_containers.iter().flatten();
    let sidecars = sidecars.filter(|c| c.restart_policy.as_deref() == Some("Always"));
    let ports = spec.containers.iter().chain(sidecars).flat_map(|c| c.ports.iter().flatten());
    let taken = ports.filter_map(|port| {
        let number = port.host_port.filter(|number| *number > 0)?;
        let address = port.host_ip.clone().filter(|ip| !ip.is_empty());
        Some(HostPort {
            address: address.unwrap_or_else(|| "0.0.0.0".into()),
            protocol: port.protocol.clone().unwrap_or_else(|| "TCP".into()),
            port: number,
        })
    });
    taken.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn check(toleration: serde_json::Value, taint: serde_json::Value, want: bool) {
        let (a, b) = (toleration.to_string(), taint.to_string());
        let toleration: Toleration = serde_json::from_value(toleration).expect("a toleration");
        let taint: Taint = serde_json::from_value(taint).expect("a taint");
        assert_eq!(tolerates(&toleration, &taint), want, "{a} {b}");
    }

    #[test]
    fn tolerations_answer_taints() {
        let taint = || json!({"key": "a", "value": "5", "effect": "NoSchedule"});
        check(json!({"operator": "Exists"}), taint(), true);
        check(json!({"key": "a", "operator": "Exists"}), taint(), true);
        check(json!({"key": "b", "operator": "Exists"}), taint(), false);
        check(json!({"key": "a", "value": "5"}), taint(), true);
        check(json!({"key": "a", "value": "6"}), taint(), false);
        check(json!({"key": "a", "operator": "Exists", "effect": "NoExecute"}), taint(), false);
        check(json!({"key": "a", "operator": "Gt", "value": "4"}), taint(), true);
        check(json!({"key": "a", "operator": "Lt", "value": "4"}), taint(), false);
    }

    #[test]
    fn a_pod_is_where_its_selectors_let_it() {
        let place = Place { name: "n1", label: |key: &str| (key == "zone").then_some("a") };
        for (spec, want) in [
            (json!({}), true),
            (json!({"nodeSelector": {"zone": "a"}}), true),
            (json!({"nodeSelector": {"zone": "b"}}), false),
            (json!({"affinity": affinity(json!([]))}), false),
            (json!({"affinity": affinity(json!([{}]))}), false),
            (
                json!({"affinity": affinity(json!([
                    {"matchExpressions": [{"key": "zone", "operator": "NotIn", "values": ["a"]}]},
                    {"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n1"]}]}]))}),
                true,
            ),
        ] {
            let mut whole = spec.clone();
            whole["containers"] = json!([]);
            let read: PodSpec = serde_json::from_value(whole).expect("a spec");
            assert_eq!(place.is_for(&read), want, "{spec}");
        }
    }

    fn affinity(terms: serde_json::Value) -> serde_json::Value {
        json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {
            "nodeSelectorTerms": terms}}})
    }

    #[test]
    fn a_port_clashes_on_an_address_that_both_have() {
        let port = |address: &str, protocol: &str, port: i32| HostPort {
            address: address.into(),
            protocol: protocol.into(),
            port,
        };
        let all = port("0.0.0.0", "TCP", 80);
        assert!(all.clashes(&port("127.0.0.1", "TCP", 80)));
        assert!(!all.clashes(&port("0.0.0.0", "UDP", 80)));
        assert!(!port("127.0.0.1", "TCP", 80).clashes(&port("127.0.0.2", "TCP", 80)));
        assert!(!all.clashes(&port("0.0.0.0", "TCP", 81)));
    }
}
