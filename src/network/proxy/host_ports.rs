//! Decides which ports of the node lead to its own pods: `hostPort` of their containers.
//!
//! A pure function of one pod. Whether a port is free is the scheduler's matter, and what
//! the address of a front must be (the node's own) is checked per packet, in `kernel.rs`.

use std::net::Ipv4Addr;

use client::api::ListParams;
use k8s_openapi::api::core::v1::{Container, ContainerPort, Pod, PodSpec};
use sys::netlink::route::Prefix;

use super::plan::{Fate, Front, Layer, Target, protocol_number};
use crate::ipam::contains;

/// The pods that a node's proxy has to know.
pub fn pods_of(node_name: &str) -> ListParams {
    ListParams::fields(format!("spec.nodeName={node_name}"))
}

/// Containers that live as long as the pod: the main ones and sidecars.
fn containers(spec: &PodSpec) -> impl Iterator<Item = &Container> {
    let init = spec.init_containers.iter().flatten();
    let sidecars = init.filter(|container| container.restart_policy.as_deref() == Some("Always"));
    sidecars.chain(&spec.containers)
}

fn ports(pod: &Pod) -> impl Iterator<Item = (&ContainerPort, u16)> {
    let spec = pod.spec.iter().filter(|spec| spec.host_network != Some(true));
    spec.flat_map(containers)
        .flat_map(|container| container.ports.iter().flatten())
        .filter_map(|port| Some((port, u16::try_from(port.host_port?).ok()?)))
        .filter(|(_, number)| *number != 0)
}

/// Whether a pod is of any interest here.
pub fn has_any(pod: &Pod) -> bool {
    ports(pod).next().is_some()
}

/// The fronts of a pod that has its address and has not ended. `range` is this node's: an
/// address from elsewhere would be somebody's mistake, or worse.
pub fn fronts(pod: &Pod, range: Prefix) -> Vec<(Front, Target)> {
    let Some(status) = &pod.status else { return Vec::new() };
    let has_ended = matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"));
    let ips = status.pod_ips.iter().flatten().map(|ip| &ip.ip).chain(&status.pod_ip);
    let address = ips.filter_map(|ip| ip.parse().ok()).find(|ip: &Ipv4Addr| contains(range, *ip));
    let (Some(backend), false) = (address, has_ended) else { return Vec::new() };
    let label = format!(
        "pod {}/{}",
        pod.metadata.namespace.as_deref().unwrap_or_default(),
        pod.metadata.name.as_deref().unwrap_or_default()
    );
    ports(pod)
        .filter_map(|(port, number)| {
            let (layer, address) = match port.host_ip.as_deref().unwrap_or_default() {
                "" | "0.0.0.0" | "::" => (Layer::NodePorts, Ipv4Addr::UNSPECIFIED),
                text => (Layer::HostPorts, text.parse().ok()?),
            };
            let protocol = protocol_number(port.protocol.as_deref())?;
            let target_port = u16::try_from(port.container_port).ok()?;
            let fate = Fate::Balance(vec![(backend, target_port)]);
            let target = Target { label: label.clone(), affinity_seconds: None, fate };
            Some((Front { layer, address, protocol, port: number }, target))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn found(spec: Value, status: Value) -> Vec<String> {
        let pod = json!({"metadata": {"namespace": "default", "name": "web"},
            "spec": spec, "status": status});
        let range = Prefix { address: Ipv4Addr::new(10, 42, 0, 0), length: 24 };
        let pod: Pod = serde_json::from_value(pod).unwrap();
        fronts(&pod, range)
            .iter()
            .map(|(front, target)| {
                let (to, port) = target.backends()[0];
                let Front { layer, address, protocol, port: from } = front;
                format!("{layer:?} {address}:{from}/{protocol} {to}:{port}")
            })
            .collect()
    }

    #[test]
    fn host_ports_lead_to_pods_that_run() {
        let ports = json!([
            {"containerPort": 80, "hostPort": 8080},
            {"containerPort": 81},
            {"containerPort": 53, "hostPort": 53, "protocol": "UDP", "hostIP": "127.0.0.1"},
            {"containerPort": 54, "hostPort": 54, "hostIP": "fd00::1"}]);
        let spec = json!({"containers": [{"name": "a", "ports": ports}]});
        let sidecar = json!([{"containerPort": 1, "hostPort": 9}]);
        let init = json!({"containers": [], "initContainers": [
            {"name": "once", "ports": ports},
            {"name": "stays", "restartPolicy": "Always", "ports": sidecar}]});
        let host = json!({"hostNetwork": true, "containers": [{"name": "a", "ports": ports}]});
        let running = json!({"phase": "Running", "podIP": "10.42.0.5"});
        let both =
            ["NodePorts 0.0.0.0:8080/6 10.42.0.5:80", "HostPorts 127.0.0.1:53/17 10.42.0.5:53"];
        assert_eq!(found(spec.clone(), running.clone()), both);
        assert_eq!(found(init, running.clone()), ["NodePorts 0.0.0.0:9/6 10.42.0.5:1"]);
        assert_eq!(found(host, running), [""; 0]);
        let pending = json!({"phase": "Pending", "podIP": "10.42.0.5"});
        assert_eq!(found(spec.clone(), pending), both, "the sandbox is there");
        for status in [
            json!({}),
            json!({"phase": "Pending"}),
            json!({"phase": "Succeeded", "podIP": "10.42.0.5"}),
            json!({"phase": "Running", "podIP": "10.42.1.5"}),
            json!({"phase": "Running", "podIP": "fd00::5"}),
        ] {
            assert_eq!(found(spec.clone(), status), [""; 0]);
        }
    }
}
