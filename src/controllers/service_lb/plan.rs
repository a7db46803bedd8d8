//! Which service gets which nodes' addresses. Pure.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;

use crate::owner::{name, namespace};

/// Nodes with this label are left out (Kubernetes, well-known labels).
const EXCLUDED: &str = "node.kubernetes.io/exclude-from-external-load-balancers";

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Given {
    /// In their order; none where no node serves, or the service needs none.
    Addresses(Vec<String>),
    /// Why it gets none although nodes would serve.
    Refused(String),
}

impl Given {
    pub fn addresses(&self) -> Vec<String> {
        match self {
            Self::Addresses(addresses) => addresses.clone(),
            Self::Refused(_) => Vec::new(),
        }
    }
}

fn kind(service: &Service) -> &str {
    service.spec.as_ref().and_then(|spec| spec.type_.as_deref()).unwrap_or_default()
}

/// A class names somebody else's load balancer.
fn is_of_others(service: &Service) -> bool {
    service.spec.as_ref().is_some_and(|spec| spec.load_balancer_class.is_some())
}

pub fn is_balanced(service: &Service) -> bool {
    kind(service) == "LoadBalancer"
        && !is_of_others(service)
        && service.metadata.deletion_timestamp.is_none()
}

/// Only nodes with endpoints of its own serve it.
pub fn is_local(service: &Service) -> bool {
    let policy = service.spec.as_ref().and_then(|spec| spec.external_traffic_policy.as_deref());
    is_balanced(service) && policy == Some("Local")
}

/// The addresses that its status has.
pub fn held(service: &Service) -> Vec<String> {
    let status = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let ingress = status.and_then(|status| status.ingress.as_ref()).into_iter().flatten();
    ingress.filter_map(|ingress| ingress.ip.clone()).collect()
}

/// Where a node serves clients from outside: at its external addresses if it has any, else
/// at its internal ones; none if it is not ready or left out.
pub fn serves_at(node: &Node) -> Vec<String> {
    let excluded = node.metadata.labels.as_ref().is_some_and(|all| all.contains_key(EXCLUDED));
    let Some(status) = node.status.as_ref() else { return Vec::new() };
    let mut conditions = status.conditions.iter().flatten();
    let is_ready = conditions.any(|c| c.type_ == "Ready" && c.status == "True");
    if excluded || !is_ready || node.metadata.deletion_timestamp.is_some() {
        return Vec::new();
    }
    let of = |kind: &str| -> Vec<String> {
        let all = status.addresses.iter().flatten();
        all.filter(|address| address.type_ == kind).map(|address| address.address.clone()).collect()
    };
    let external = of("ExternalIP");
    if external.is_empty() { of("InternalIP") } else { external }
}

/// Protocol and number of each port, as they are told apart.
fn ports(service: &Service) -> impl Iterator<Item = (String, i32)> {
    let ports = service.spec.iter().flat_map(|spec| spec.ports.iter().flatten());
    ports.map(|port| (port.protocol.clone().unwrap_or_else(|| "TCP".into()), port.port))
}

fn fits(service: &Service, address: &str) -> bool {
    let spec = service.spec.as_ref();
    let families = spec.and_then(|spec| spec.ip_families.as_ref());
    let family = if address.contains(':') { "IPv6" } else { "IPv4" };
    let wanted = spec.and_then(|spec| spec.load_balancer_ip.as_deref()).unwrap_or_default();
    families.is_none_or(|all| all.is_empty() || all.iter().any(|held| held == family))
        && (wanted.is_empty() || wanted == address)
}

/// The nodes with an endpoint of the service that takes new connections.
fn nodes_with_endpoints(slices: &[Arc<EndpointSlice>]) -> BTreeSet<String> {
    let endpoints = slices.iter().flat_map(|slice| slice.endpoints.iter().flatten());
    let ready = endpoints.filter(|endpoint| {
        endpoint.conditions.as_ref().and_then(|conditions| conditions.ready).unwrap_or(true)
    });
    ready.filter_map(|endpoint| endpoint.node_name.clone()).collect()
}

/// What each of the services gets, in their order. Of two that want the same port, the
/// older has it; those of `node_ports`, by TCP, stay the nodes' own, else whoever may make a
/// service could answer for the API server.
pub fn give(
    services: &[Arc<Service>],
    nodes: &[Arc<Node>],
    node_ports: &[i32],
    slices: &dyn Fn(&Service) -> Vec<Arc<EndpointSlice>>,
) -> Vec<Given> {
    let serving: Vec<(&str, Vec<String>)> =
        nodes.iter().map(|node| (name(&node.metadata), serves_at(node))).collect();
    let mut order: Vec<usize> = (0..services.len()).collect();
    order.sort_by_key(|at| {
        let meta = &services[*at].metadata;
        let created = meta.creation_timestamp.as_ref().map(|time| time.0);
        (created, meta.namespace.clone(), meta.name.clone())
    });
    let mut taken: BTreeMap<(String, i32), String> = BTreeMap::new();
    let mut given = vec![Given::Addresses(Vec::new()); services.len()];
    for at in order {
        let service = &services[at];
        if is_of_others(service) {
            given[at] = Given::Addresses(held(service));
            continue;
        }
        if !is_balanced(service) {
            continue;
        }
        let own =
            ports(service).find(|(protocol, port)| protocol == "TCP" && node_ports.contains(port));
        if let Some((protocol, port)) = own {
            given[at] = Given::Refused(format!("port {port}/{protocol} is the nodes' own"));
            continue;
        }
        let conflict = ports(service).find_map(|port| Some((taken.get(&port)?.clone(), port)));
        if let Some((by, (protocol, port))) = conflict {
            given[at] = Given::Refused(format!("port {port}/{protocol} is taken by service {by}"));
            continue;
        }
        let key = format!("{}/{}", namespace(&service.metadata), name(&service.metadata));
        taken.extend(ports(service).map(|port| (port, key.clone())));
        let local = is_local(service).then(|| nodes_with_endpoints(&slices(service)));
        let here = |node: &str| local.as_ref().is_none_or(|nodes| nodes.contains(node));
        let addresses: BTreeSet<String> = serving
            .iter()
            .filter(|(node, _)| here(node))
            .flat_map(|(_, addresses)| addresses)
            .filter(|address| fits(service, address))
            .cloned()
            .collect();
        given[at] = Given::Addresses(addresses.into_iter().collect());
    }
    given
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn service(name: &str, created: &str, spec: Value) -> Arc<Service> {
        let meta = json!({"namespace": "d", "name": name, "creationTimestamp": created});
        Arc::new(serde_json::from_value(json!({"metadata": meta, "spec": spec})).unwrap())
    }

    fn node(name: &str, addresses: Value, ready: &str, labels: Value) -> Arc<Node> {
        let node = json!({"metadata": {"name": name, "labels": labels}, "status": {
            "addresses": addresses, "conditions": [{"type": "Ready", "status": ready}]}});
        Arc::new(serde_json::from_value(node).unwrap())
    }

    fn internal(address: &str) -> Value {
        json!([{"type": "InternalIP", "address": address},
            {"type": "Hostname", "address": "n"}])
    }

    fn some(addresses: &[&str]) -> Given {
        Given::Addresses(addresses.iter().map(|a| (*a).to_string()).collect())
    }

    #[test]
    fn services_get_the_addresses_of_the_nodes_that_serve() {
        let both = json!([{"type": "InternalIP", "address": "10.0.0.2"},
            {"type": "ExternalIP", "address": "192.0.2.2"}]);
        let nodes = [
            node("a", internal("10.0.0.1"), "True", json!({})),
            node("b", both, "True", json!({})),
            node("c", internal("10.0.0.3"), "False", json!({})),
            node("d", internal("10.0.0.4"), "True", json!({EXCLUDED: ""})),
        ];
        let slice: EndpointSlice = serde_json::from_value(json!({"addressType": "IPv4",
            "metadata": {}, "ports": [], "endpoints": [
                {"addresses": ["10.1.0.1"], "nodeName": "a"},
                {"addresses": ["10.1.0.2"], "nodeName": "b", "conditions": {"ready": false}}]}))
        .unwrap();
        let slice = Arc::new(slice);
        let port = |port: i32| json!([{"port": port}]);
        for (spec, wanted) in [
            (json!({"type": "LoadBalancer", "ports": port(80)}), vec!["10.0.0.1", "192.0.2.2"]),
            (
                json!({"type": "LoadBalancer", "ports": port(80),
                    "externalTrafficPolicy": "Local"}),
                vec!["10.0.0.1"],
            ),
            (
                json!({"type": "LoadBalancer", "ports": port(80), "loadBalancerIP": "192.0.2.2"}),
                vec!["192.0.2.2"],
            ),
            (json!({"type": "LoadBalancer", "ipFamilies": ["IPv6"], "ports": port(80)}), vec![]),
            (json!({"type": "NodePort", "ports": port(80)}), vec![]),
            (json!({"type": "LoadBalancer", "loadBalancerClass": "x.io/y"}), vec![]),
        ] {
            let services = [service("s", "2026-01-01T00:00:00Z", spec.clone())];
            let given = give(&services, &nodes, &[], &|_| vec![slice.clone()]);
            assert_eq!(given, [some(&wanted)], "{spec}");
        }
    }

    #[test]
    fn of_two_that_want_a_port_the_older_has_it_and_others_services_stay() {
        let nodes = [node("a", internal("10.0.0.1"), "True", json!({}))];
        let spec = |port: i32, protocol: &str| json!({"type": "LoadBalancer", "ports": [{"port": port, "protocol": protocol}]});
        let mut others = (*service(
            "o",
            "2026-01-01T00:00:00Z",
            json!({"type": "LoadBalancer",
            "loadBalancerClass": "x.io/y"}),
        ))
        .clone();
        let status = json!({"loadBalancer": {"ingress": [{"ip": "198.51.100.1"}]}});
        others.status = serde_json::from_value(status).unwrap();
        let services = [
            service("young", "2026-01-02T00:00:00Z", spec(80, "TCP")),
            service("old", "2026-01-01T00:00:00Z", spec(80, "TCP")),
            service("udp", "2026-01-03T00:00:00Z", spec(80, "UDP")),
            Arc::new(others),
            service("api", "2026-01-01T00:00:00Z", spec(6443, "TCP")),
            service("quic", "2026-01-01T00:00:00Z", spec(6443, "UDP")),
        ];
        let given = give(&services, &nodes, &[6443], &|_| Vec::new());
        let wanted = [
            Given::Refused("port 80/TCP is taken by service d/old".into()),
            some(&["10.0.0.1"]),
            some(&["10.0.0.1"]),
            some(&["198.51.100.1"]),
            Given::Refused("port 6443/TCP is the nodes' own".into()),
            some(&["10.0.0.1"]),
        ];
        assert_eq!(given, wanted);
    }
}
