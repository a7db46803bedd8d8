//! Which endpoints a service should have. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{ObjectReference, Pod, Service, ServicePort};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::hints;
use crate::owner::{name, namespace};
use crate::pod;

/// The ports of a group of endpoints, as they are ordered and compared.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Port {
    pub name: String,
    pub protocol: String,
    pub port: i32,
    pub app_protocol: Option<String>,
}

impl Port {
    pub fn typed(&self) -> EndpointPort {
        EndpointPort {
            name: Some(self.name.clone()),
            protocol: Some(self.protocol.clone()),
            port: Some(self.port),
            app_protocol: self.app_protocol.clone(),
        }
    }
}

/// Endpoints by address family and ports.
pub type Wanted = BTreeMap<(String, Vec<Port>), Vec<Endpoint>>;

/// Services without a selector have their endpoints made by somebody else.
pub fn has_endpoints(service: &Service) -> bool {
    let spec = service.spec.as_ref();
    let selects = spec.and_then(|s| s.selector.as_ref()).is_some_and(|s| !s.is_empty());
    let external = spec.and_then(|s| s.type_.as_deref()) == Some("ExternalName");
    selects && !external && service.metadata.deletion_timestamp.is_none()
}

pub fn selects(service: &Service, pod: &Pod) -> bool {
    let selector = service.spec.as_ref().and_then(|s| s.selector.as_ref());
    selector.is_some_and(|selector| {
        !selector.is_empty()
            && client::labels::equal_to(Some(selector)).matches_map(pod.metadata.labels.as_ref())
    })
}

/// Whether a change of a pod can change an endpoint.
pub fn differ(old: &Pod, new: &Pod) -> bool {
    let seen = |pod: &Pod| {
        (
            pod.metadata.uid.clone(),
            pod.metadata.labels.clone(),
            pod.metadata.deletion_timestamp.is_some(),
            pod::is_ready(pod),
            pod::is_finished(pod),
            pod::node(pod).to_string(),
            addresses(pod).map(str::to_string).collect::<Vec<_>>(),
        )
    };
    seen(old) != seen(new)
}

pub fn addresses(pod: &Pod) -> impl Iterator<Item = &str> {
    let status = pod.status.as_ref();
    let all = status.and_then(|s| s.pod_ips.as_ref()).into_iter().flatten().map(|ip| &*ip.ip);
    let first = status.and_then(|s| s.pod_ip.as_deref());
    let none_listed = status.and_then(|s| s.pod_ips.as_ref()).is_none_or(Vec::is_empty);
    all.chain(first.filter(|_| none_listed)).filter(|ip| !ip.is_empty())
}

pub fn is_headless(service: &Service) -> bool {
    service.spec.as_ref().and_then(|s| s.cluster_ip.as_deref()) == Some("None")
}

pub fn publishes_unready(service: &Service) -> bool {
    service.spec.as_ref().and_then(|s| s.publish_not_ready_addresses).unwrap_or(false)
}

/// `IPv4` and `IPv6`, those that the service has.
pub fn families(service: &Service) -> Vec<String> {
    let spec = service.spec.as_ref();
    match spec.and_then(|s| s.ip_families.clone()) {
        Some(families) if !families.is_empty() => families,
        _ => {
            let address = spec.and_then(|s| s.cluster_ip.as_deref()).unwrap_or_default();
            vec![if address.contains(':') { "IPv6".into() } else { "IPv4".into() }]
        }
    }
}

/// The pod's number for a port of the service; None where the pod has no such port.
pub fn target(port: &ServicePort, pod: &Pod) -> Option<i32> {
    let protocol = port.protocol.as_deref().unwrap_or("TCP");
    match &port.target_port {
        None => Some(port.port),
        Some(IntOrString::Int(0)) => Some(port.port),
        Some(IntOrString::Int(number)) => Some(*number),
        Some(IntOrString::String(wanted)) => {
            let spec = pod.spec.as_ref()?;
            let sidecars = spec.init_containers.iter().flatten();
            let sidecars = sidecars.filter(|c| c.restart_policy.as_deref() == Some("Always"));
            let ports =
                spec.containers.iter().chain(sidecars).flat_map(|c| c.ports.iter().flatten());
            let mut named = ports.filter(|p| {
                p.name.as_ref() == Some(wanted)
                    && p.protocol.as_deref().unwrap_or("TCP") == protocol
            });
            named.next().map(|p| p.container_port)
        }
    }
}

pub fn ports(service: &Service, pod: &Pod) -> Vec<Port> {
    let all = service.spec.as_ref().and_then(|s| s.ports.as_deref()).unwrap_or_default();
    let resolved = all.iter().filter_map(|port| {
        Some(Port {
            name: port.name.clone().unwrap_or_default(),
            protocol: port.protocol.clone().unwrap_or_else(|| "TCP".into()),
            port: target(port, pod)?,
            app_protocol: port.app_protocol.clone(),
        })
    });
    resolved.collect()
}

/// `zone` tells the zone of a node.
pub fn wanted(
    service: &Service,
    pods: &[Arc<Pod>],
    zone: &dyn Fn(&str) -> Option<String>,
) -> Wanted {
    let mut out = Wanted::new();
    for family in families(service) {
        for pod in pods {
            let fits = |ip: &&str| ip.contains(':') == (family == "IPv6");
            let Some(ip) = addresses(pod).find(fits) else { continue };
            let group = out.entry((family.clone(), ports(service, pod))).or_default();
            group.push(endpoint(service, pod, ip, zone));
        }
        if !out.keys().any(|(of, _)| *of == family) {
            // A slice without endpoints says that there are none.
            out.insert((family, Vec::new()), Vec::new());
        }
    }
    out
}

fn endpoint(
    service: &Service,
    pod: &Pod,
    ip: &str,
    zone: &dyn Fn(&str) -> Option<String>,
) -> Endpoint {
    let serving = pod::is_ready(pod);
    let terminating = pod.metadata.deletion_timestamp.is_some();
    let node = pod::node(pod);
    let mut endpoint = Endpoint {
        addresses: vec![ip.to_string()],
        conditions: Some(EndpointConditions {
            ready: Some(publishes_unready(service) || (serving && !terminating)),
            serving: Some(serving),
            terminating: Some(terminating),
        }),
        hostname: hostname(service, pod),
        node_name: (!node.is_empty()).then(|| node.to_string()),
        target_ref: Some(reference(pod)),
        zone: zone(node),
        ..Endpoint::default()
    };
    endpoint.hints = hints::own(hints::mode(service), &endpoint);
    endpoint
}

pub fn hostname(service: &Service, pod: &Pod) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    let ours = spec.subdomain.as_deref() == Some(name(&service.metadata))
        && namespace(&pod.metadata) == namespace(&service.metadata);
    spec.hostname.clone().filter(|hostname| ours && !hostname.is_empty())
}

pub fn reference(pod: &Pod) -> ObjectReference {
    ObjectReference {
        kind: Some("Pod".into()),
        namespace: pod.metadata.namespace.clone(),
        name: pod.metadata.name.clone(),
        uid: pod.metadata.uid.clone(),
        ..ObjectReference::default()
    }
}
