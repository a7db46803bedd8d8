//! Decides where each service address and port leads: a pure function of services and
//! endpoint slices, and the difference between two such decisions.
//!
//! Knows nothing of nf_tables; `kernel.rs` writes what is decided here.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::Ipv4Addr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};

use super::near::Place;

/// Namespace and name.
pub type ServiceKey = (String, String);

/// Whose fronts they are. Where two want the same, services come first.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Owner {
    Service(ServiceKey),
    /// Namespace and name of a pod with host ports.
    Pod((String, String)),
    /// Id of a sandbox that has ports of the node.
    Sandbox(String),
}

pub type Backend = (Ipv4Addr, u16);

const AFFINITY_SECONDS_DEFAULT: u32 = 10_800;

/// Which packets a front is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Layer {
    /// To a service's own address, from anywhere.
    Services,
    /// To a port of the node's own addresses, from anywhere.
    NodePorts,
    /// As above, but only from outside of the cluster: where `externalTrafficPolicy` is
    /// Local, these win.
    LocalServices,
    LocalNodePorts,
    /// To a port of one of the node's own addresses, from anywhere: `hostIP` of a pod.
    HostPorts,
}

impl Layer {
    pub const ALL: [Self; 5] = [
        Self::Services,
        Self::NodePorts,
        Self::LocalServices,
        Self::LocalNodePorts,
        Self::HostPorts,
    ];

    pub fn has_address(self) -> bool {
        matches!(self, Self::Services | Self::LocalServices | Self::HostPorts)
    }

    /// Only for packets to addresses that the node itself has, whatever is claimed.
    pub fn is_of_node(self) -> bool {
        matches!(self, Self::NodePorts | Self::LocalNodePorts | Self::HostPorts)
    }

    /// Services may bind clients; pods' own ports have one backend.
    pub fn has_memory(self) -> bool {
        self != Self::HostPorts
    }
}

/// What clients dial.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Front {
    pub layer: Layer,
    /// Unspecified for node ports.
    pub address: Ipv4Addr,
    /// The number in the IP header.
    pub protocol: u8,
    pub port: u16,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fate {
    Balance(Vec<Backend>),
    /// Nobody serves: port unreachable.
    Reject,
    /// Nobody serves here, but elsewhere: silence, as upstream.
    Drop,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// For people: namespace/name:port.
    pub label: String,
    /// A client stays with its backend until it was silent for so long.
    pub affinity_seconds: Option<u32>,
    pub fate: Fate,
}

impl Target {
    pub fn backends(&self) -> &[Backend] {
        match &self.fate {
            Fate::Balance(backends) => backends,
            Fate::Reject | Fate::Drop => &[],
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    pub front: Front,
    pub old: Option<Target>,
    pub new: Option<Target>,
}

pub fn protocol_number(name: Option<&str>) -> Option<u8> {
    match name.unwrap_or("TCP") {
        "TCP" => Some(6),
        "UDP" => Some(17),
        "SCTP" => Some(132),
        _ => None,
    }
}

/// Where packets come from, for the choice of endpoints.
#[derive(Debug, Default)]
struct Backends {
    all: Vec<Backend>,
    here: Vec<Backend>,
}

/// Ready ones; if there are none, those that still serve while they terminate. With a place,
/// of those the ones near it.
fn usable(endpoints: &[(&Endpoint, u16)], place: Option<Place<'_>>) -> Vec<Backend> {
    let ready = |endpoint: &Endpoint| {
        endpoint.conditions.as_ref().is_none_or(|conditions| conditions.ready.unwrap_or(true))
    };
    let ending = |endpoint: &Endpoint| {
        endpoint.conditions.as_ref().is_some_and(|conditions| {
            conditions.serving.unwrap_or(conditions.ready.unwrap_or(true))
                && conditions.terminating == Some(true)
        })
    };
    let pick = |wanted: &dyn Fn(&Endpoint) -> bool| -> BTreeSet<Backend> {
        let found = || endpoints.iter().filter(|(endpoint, _)| wanted(endpoint));
        let candidates: Vec<&Endpoint> = found().map(|(endpoint, _)| *endpoint).collect();
        let near = place.map(|place| place.choose(&candidates));
        found()
            .filter(|(endpoint, _)| near.as_ref().is_none_or(|near| near(endpoint)))
            .filter_map(|(endpoint, port)| Some((endpoint.addresses.first()?.parse().ok()?, *port)))
            .collect()
    };
    let mut picked = pick(&ready);
    if picked.is_empty() {
        picked = pick(&ending);
    }
    picked.into_iter().collect()
}

fn backends(port: &ServicePort, slices: &[Arc<EndpointSlice>], place: Place<'_>) -> Backends {
    let protocol = port.protocol.as_deref().unwrap_or("TCP");
    let name = port.name.as_deref().unwrap_or_default();
    let mut endpoints = Vec::new();
    for slice in slices.iter().filter(|slice| slice.address_type == "IPv4") {
        let found = slice.ports.iter().flatten().find(|candidate| {
            candidate.name.as_deref().unwrap_or_default() == name
                && candidate.protocol.as_deref().unwrap_or("TCP") == protocol
        });
        let number = found.and_then(|found| found.port).and_then(|port| u16::try_from(port).ok());
        let Some(number) = number else { continue };
        endpoints.extend(slice.endpoints.iter().flatten().map(|endpoint| (endpoint, number)));
    }
    let all = usable(&endpoints, Some(place));
    endpoints.retain(|(endpoint, _)| endpoint.node_name.as_deref() == Some(place.node));
    Backends { all, here: usable(&endpoints, None) }
}

fn fate(backends: &[Backend], elsewhere: &[Backend]) -> Fate {
    if !backends.is_empty() {
        Fate::Balance(backends.to_vec())
    } else if elsewhere.is_empty() {
        Fate::Reject
    } else {
        Fate::Drop
    }
}

fn addresses<'a>(texts: impl IntoIterator<Item = &'a String>) -> BTreeSet<Ipv4Addr> {
    texts.into_iter().filter_map(|text| text.parse().ok()).collect()
}

fn cluster_addresses(spec: &ServiceSpec) -> BTreeSet<Ipv4Addr> {
    addresses(spec.cluster_ips.iter().flatten().chain(&spec.cluster_ip))
}

fn external_addresses(service: &Service, spec: &ServiceSpec) -> BTreeSet<Ipv4Addr> {
    let mut found = addresses(spec.external_ips.iter().flatten());
    if spec.type_.as_deref() == Some("LoadBalancer") {
        let status = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
        let ingress = status.and_then(|status| status.ingress.as_ref());
        found.extend(addresses(
            ingress
                .into_iter()
                .flatten()
                .filter(|ingress| ingress.ip_mode.as_deref() != Some("Proxy"))
                .filter_map(|ingress| ingress.ip.as_ref()),
        ));
    }
    found
}

/// All fronts of one service. `own` is an address that this node serves itself: no front is
/// made for it.
pub fn fronts(
    service: &Service,
    slices: &[Arc<EndpointSlice>],
    place: Place<'_>,
    own: Option<Ipv4Addr>,
) -> Vec<(Front, Target)> {
    let Some(spec) = &service.spec else { return Vec::new() };
    let other_proxy = service
        .metadata
        .labels
        .as_ref()
        .is_some_and(|labels| labels.contains_key("service.kubernetes.io/service-proxy-name"));
    let kind = spec.type_.as_deref().unwrap_or("ClusterIP");
    if other_proxy || kind == "ExternalName" || spec.cluster_ip.as_deref() == Some("None") {
        return Vec::new();
    }
    let sticky = spec.session_affinity.as_deref() == Some("ClientIP");
    let affinity_seconds = sticky.then(|| {
        let config = spec.session_affinity_config.as_ref();
        let seconds = config.and_then(|config| config.client_ip.as_ref()?.timeout_seconds);
        seconds.and_then(|seconds| u32::try_from(seconds).ok()).unwrap_or(AFFINITY_SECONDS_DEFAULT)
    });
    let internal_local = spec.internal_traffic_policy.as_deref() == Some("Local");
    let external_local = spec.external_traffic_policy.as_deref() == Some("Local");
    let exposed = kind == "NodePort" || kind == "LoadBalancer";
    let (inside, outside) = (cluster_addresses(spec), external_addresses(service, spec));
    let mut found = Vec::new();
    for port in spec.ports.iter().flatten() {
        let Some(protocol) = protocol_number(port.protocol.as_deref()) else { continue };
        let Ok(number) = u16::try_from(port.port) else { continue };
        let backends = backends(port, slices, place);
        let target = |fate| Target {
            label: format!(
                "{}/{}:{}",
                service.metadata.namespace.as_deref().unwrap_or_default(),
                service.metadata.name.as_deref().unwrap_or_default(),
                port.name.as_deref().unwrap_or_default()
            )
            .trim_end_matches(':')
            .to_string(),
            affinity_seconds,
            fate,
        };
        let everywhere = fate(&backends.all, &[]);
        let here = fate(&backends.here, &backends.all);
        let mut add = |layer, address, port, fate: &Fate| {
            found.push((Front { layer, address, protocol, port }, target(fate.clone())));
        };
        for address in inside.iter().filter(|address| Some(**address) != own) {
            let fate = if internal_local { &here } else { &everywhere };
            add(Layer::Services, *address, number, fate);
        }
        for address in &outside {
            add(Layer::Services, *address, number, &everywhere);
            if external_local {
                add(Layer::LocalServices, *address, number, &here);
            }
        }
        let node_port = port.node_port.and_then(|port| u16::try_from(port).ok());
        if let Some(node_port) = node_port.filter(|port| exposed && *port != 0) {
            add(Layer::NodePorts, Ipv4Addr::UNSPECIFIED, node_port, &everywhere);
            if external_local {
                add(Layer::LocalNodePorts, Ipv4Addr::UNSPECIFIED, node_port, &here);
            }
        }
    }
    found
}

/// Orders new backends so that as many as possible keep their place: then the fewest
/// elements change.
fn arrange(old: &[Backend], new: &[Backend]) -> Vec<Backend> {
    let mut waiting: BTreeSet<Backend> = new.iter().copied().collect();
    let count = waiting.len();
    let mut places: Vec<Option<Backend>> =
        old.iter().take(count).map(|backend| waiting.take(backend)).collect();
    places.resize(count, None);
    places.into_iter().filter_map(|place| place.or_else(|| waiting.pop_first())).collect()
}

/// What is decided for all services and pods.
#[derive(Debug, Default)]
pub struct Plan {
    /// Two owners may claim one front; the first in their order has it.
    claims: BTreeMap<Front, BTreeMap<Owner, Target>>,
    by_owner: HashMap<Owner, Vec<Front>>,
}

impl Plan {
    pub fn get(&self, front: &Front) -> Option<&Target> {
        self.claims.get(front)?.values().next()
    }

    /// Every front that leads somewhere.
    pub fn all(&self) -> impl Iterator<Item = (&Front, &Target)> {
        self.claims.iter().filter_map(|(front, claims)| Some((front, claims.values().next()?)))
    }

    /// Replaces what is decided for one owner; gives what differs.
    pub fn update(&mut self, key: &Owner, fronts: Vec<(Front, Target)>) -> Vec<Change> {
        let mut touched: BTreeSet<Front> =
            self.by_owner.remove(key).unwrap_or_default().into_iter().collect();
        touched.extend(fronts.iter().map(|(front, _)| *front));
        let before: Vec<(Front, Option<Target>)> =
            touched.into_iter().map(|front| (front, self.get(&front).cloned())).collect();
        for (front, _) in &before {
            if let Some(claims) = self.claims.get_mut(front) {
                claims.remove(key);
            }
        }
        let mut own: Vec<Front> = Vec::with_capacity(fronts.len());
        for (front, target) in fronts {
            own.push(front);
            self.claims.entry(front).or_default().insert(key.clone(), target);
        }
        if !own.is_empty() {
            self.by_owner.insert(key.clone(), own);
        }
        let mut changes = Vec::new();
        for (front, old) in before {
            let held = self.claims.get_mut(&front).and_then(|claims| claims.values_mut().next());
            if let Some(Target { fate: Fate::Balance(backends), .. }) = held {
                let places = old.as_ref().map(Target::backends).unwrap_or_default();
                *backends = arrange(places, backends);
            }
            let new = self.get(&front).cloned();
            if new.is_none() {
                self.claims.remove(&front);
            }
            if old != new {
                changes.push(Change { front, old, new });
            }
        }
        changes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn service(spec: serde_json::Value) -> Service {
        serde_json::from_value(json!({
            "metadata": {"namespace": "default", "name": "web"}, "spec": spec}))
        .unwrap()
    }

    /// (address, node, ready, serving, terminating)
    fn slice(endpoints: &[(&str, &str, bool, bool, bool)]) -> Vec<Arc<EndpointSlice>> {
        let endpoints: Vec<_> = endpoints
            .iter()
            .map(|(address, node, ready, serving, terminating)| {
                json!({"addresses": [address], "nodeName": node, "conditions":
                    {"ready": ready, "serving": serving, "terminating": terminating}})
            })
            .collect();
        vec![Arc::new(
            serde_json::from_value(json!({"addressType": "IPv4", "metadata": {"name": "web-1"},
                "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
                "endpoints": endpoints}))
            .unwrap(),
        )]
    }

    fn show(found: &[(Front, Target)]) -> Vec<String> {
        found
            .iter()
            .map(|(front, target)| {
                let fate = match &target.fate {
                    Fate::Balance(backends) => backends
                        .iter()
                        .map(|(a, p)| format!("{a}:{p}"))
                        .collect::<Vec<_>>()
                        .join(","),
                    other => format!("{other:?}"),
                };
                format!("{:?} {}:{} {fate}", front.layer, front.address, front.port)
            })
            .collect()
    }

    #[test]
    fn services_lead_to_their_endpoints() {
        let ports = json!([{"name": "http", "port": 80, "nodePort": 30080}]);
        let two =
            slice(&[("10.42.0.5", "n", true, true, false), ("10.42.1.5", "m", true, true, false)]);
        let away = slice(&[("10.42.1.5", "m", true, true, false)]);
        let ending =
            slice(&[("10.42.0.5", "n", false, true, true), ("10.42.0.6", "n", false, false, true)]);
        let cases = [
            (
                json!({"clusterIP": "10.43.0.9", "ports": ports}),
                &two,
                vec!["Services 10.43.0.9:80 10.42.0.5:8080,10.42.1.5:8080"],
            ),
            (
                json!({"clusterIP": "10.43.0.9", "ports": ports}),
                &vec![],
                vec!["Services 10.43.0.9:80 Reject"],
            ),
            (
                json!({"clusterIP": "10.43.0.9", "ports": ports}),
                &ending,
                vec!["Services 10.43.0.9:80 10.42.0.5:8080"],
            ),
            (json!({"clusterIP": "None", "ports": ports}), &two, vec![]),
            (json!({"clusterIP": "10.43.0.10", "ports": ports}), &two, vec![]),
            (json!({"type": "ExternalName", "externalName": "a.b"}), &two, vec![]),
            (
                json!({"clusterIP": "10.43.0.9", "ports": ports, "internalTrafficPolicy": "Local"}),
                &away,
                vec!["Services 10.43.0.9:80 Drop"],
            ),
            (
                json!({"type": "NodePort", "clusterIP": "10.43.0.9", "ports": ports,
                    "externalTrafficPolicy": "Local", "externalIPs": ["192.0.2.1"]}),
                &two,
                vec![
                    "Services 10.43.0.9:80 10.42.0.5:8080,10.42.1.5:8080",
                    "Services 192.0.2.1:80 10.42.0.5:8080,10.42.1.5:8080",
                    "LocalServices 192.0.2.1:80 10.42.0.5:8080",
                    "NodePorts 0.0.0.0:30080 10.42.0.5:8080,10.42.1.5:8080",
                    "LocalNodePorts 0.0.0.0:30080 10.42.0.5:8080",
                ],
            ),
        ];
        for (spec, slices, expected) in cases {
            let own = Some(Ipv4Addr::new(10, 43, 0, 10));
            let found =
                fronts(&service(spec.clone()), slices, Place { node: "n", zone: None }, own);
            assert_eq!(show(&found), expected, "{spec}");
        }
    }

    #[test]
    fn backends_keep_their_places() {
        let b = |n: u8| (Ipv4Addr::new(10, 0, 0, n), 80);
        assert_eq!(arrange(&[b(1), b(2), b(3)], &[b(1), b(3)]), [b(1), b(3)]);
        assert_eq!(arrange(&[b(3), b(1)], &[b(1), b(2), b(3)]), [b(3), b(1), b(2)]);
        assert_eq!(arrange(&[b(1), b(2)], &[b(2), b(4)]), [b(4), b(2)]);
        assert_eq!(arrange(&[b(1)], &[]), []);
    }

    #[test]
    fn a_front_claimed_twice_stays_with_one_until_it_lets_go() {
        let front = Front {
            layer: Layer::Services,
            address: Ipv4Addr::new(192, 0, 2, 1),
            protocol: 6,
            port: 80,
        };
        let target = |label: &str| Target {
            label: label.into(),
            affinity_seconds: None,
            fate: Fate::Reject,
        };
        let key = |name: &str| ("x".to_string(), name.to_string());
        let (a, b) = (Owner::Service(key("b")), Owner::Pod(key("a")));
        let mut plan = Plan::default();
        assert_eq!(plan.update(&a, vec![(front, target("a"))]).len(), 1);
        assert_eq!(plan.update(&b, vec![(front, target("b"))]), []);
        let changes = plan.update(&a, vec![]);
        assert_eq!(changes[0].new.as_ref().unwrap().label, "b");
        assert_eq!(plan.update(&b, vec![])[0].new, None);
        assert_eq!(plan.all().count(), 0);
    }
}
