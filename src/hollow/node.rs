//! What the API server is told of a node. Pure.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::api::core::v1::{
    DaemonEndpoint, Node, NodeAddress, NodeCondition, NodeDaemonEndpoints, NodeStatus,
    NodeSystemInfo,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference, Time};

use crate::Config;

/// Holds the name prefix: whoever wants these nodes, or wants them away, selects by it.
const LABEL: &str = "coracle.io/hollow";
/// Go's name of the architecture that the nodes say they have.
const ARCHITECTURE: &str = "amd64";

/// An address of its own for every name, nearly always, in a network that nobody routes
/// (RFC 6598).
pub fn address(name: &str) -> Ipv4Addr {
    // FNV-1a.
    let hash = name
        .bytes()
        .fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    Ipv4Addr::from(u32::from(Ipv4Addr::new(100, 64, 0, 0)) | (hash & 0x003f_ffff))
}

pub fn object(config: &Config, number: u32, now: Timestamp) -> Node {
    let name = config.name(number);
    Node {
        metadata: ObjectMeta {
            name: Some(name.clone()),
            labels: Some(labels(config, number, &name)),
            annotations: Some(
                [(
                    "volumes.kubernetes.io/controller-managed-attach-detach".to_owned(),
                    "true".to_owned(),
                )]
                .into(),
            ),
            ..ObjectMeta::default()
        },
        spec: None,
        status: Some(status(config, number, now)),
    }
}

fn labels(config: &Config, number: u32, name: &str) -> BTreeMap<String, String> {
    let zone = format!("zone-{}", number % config.zones.max(1));
    let own = [
        ("beta.kubernetes.io/arch", ARCHITECTURE),
        ("beta.kubernetes.io/os", "linux"),
        ("kubernetes.io/arch", ARCHITECTURE),
        ("kubernetes.io/hostname", name),
        ("kubernetes.io/os", "linux"),
        ("topology.kubernetes.io/region", "hollow"),
        ("topology.kubernetes.io/zone", &zone),
        (LABEL, &config.name_prefix),
    ];
    own.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
}

fn status(config: &Config, number: u32, now: Timestamp) -> NodeStatus {
    let name = &config.name(number);
    let (addresses, endpoints) = reached(config, number);
    let capacity: BTreeMap<String, Quantity> = [
        ("cpu", config.cpu.clone()),
        ("memory", config.memory.clone()),
        ("ephemeral-storage", "100Gi".to_owned()),
        ("pods", config.max_pods.to_string()),
    ]
    .into_iter()
    .map(|(resource, amount)| (resource.to_owned(), Quantity(amount)))
    .collect();
    NodeStatus {
        addresses: Some(addresses),
        allocatable: Some(capacity.clone()),
        capacity: Some(capacity),
        conditions: Some(conditions(now)),
        daemon_endpoints: Some(endpoints),
        node_info: Some(NodeSystemInfo {
            architecture: ARCHITECTURE.into(),
            boot_id: name.into(),
            container_runtime_version: "hollow://1".into(),
            kernel_version: "0".into(),
            kubelet_version: config.version.clone(),
            machine_id: name.into(),
            operating_system: "linux".into(),
            os_image: "hollow".into(),
            system_uuid: name.into(),
            ..NodeSystemInfo::default()
        }),
        ..NodeStatus::default()
    }
}

/// Where a node says that it and its kubelet are.
pub fn reached(config: &Config, number: u32) -> (Vec<NodeAddress>, NodeDaemonEndpoints) {
    let name = config.name(number);
    let told = |type_: &str, address: String| NodeAddress { type_: type_.into(), address };
    let served = config.served.as_ref();
    let port = served.and_then(|served| served.ports.get(number as usize));
    let ip = served.map_or_else(|| address(&name).into(), |served| served.address);
    let addresses = vec![told("InternalIP", ip.to_string()), told("Hostname", name)];
    let kubelet_endpoint = port.map(|port| DaemonEndpoint { port: (*port).into() });
    (addresses, NodeDaemonEndpoints { kubelet_endpoint })
}

/// Of a node that lacks nothing.
pub fn conditions(now: Timestamp) -> Vec<NodeCondition> {
    let now: Time = seconds(now);
    let condition = |type_: &str, status: &str, reason: &str, message: &str| NodeCondition {
        type_: type_.into(),
        status: status.into(),
        reason: Some(reason.into()),
        message: Some(message.into()),
        last_heartbeat_time: Some(now.clone()),
        last_transition_time: Some(now.clone()),
    };
    let memory = "kubelet has sufficient memory available";
    let pids = "kubelet has sufficient PID available";
    vec![
        condition("MemoryPressure", "False", "KubeletHasSufficientMemory", memory),
        condition(
            "DiskPressure",
            "False",
            "KubeletHasNoDiskPressure",
            "kubelet has no disk pressure",
        ),
        condition("PIDPressure", "False", "KubeletHasSufficientPID", pids),
        condition("Ready", "True", "KubeletReady", "kubelet is posting ready status"),
    ]
}

/// The lease of the node `name`; `version` is that of the lease it replaces.
pub fn lease(
    config: &Config,
    name: &str,
    uid: &str,
    version: Option<String>,
    now: Timestamp,
) -> Lease {
    let seconds = (config.heartbeat * 4).as_secs().max(1);
    Lease {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            namespace: Some(super::nodes::LEASE_NAMESPACE.into()),
            resource_version: version,
            owner_references: Some(vec![OwnerReference {
                api_version: "v1".into(),
                kind: "Node".into(),
                name: name.to_owned(),
                uid: uid.to_owned(),
                ..OwnerReference::default()
            }]),
            ..ObjectMeta::default()
        },
        spec: Some(LeaseSpec {
            holder_identity: Some(name.to_owned()),
            lease_duration_seconds: Some(i32::try_from(seconds).unwrap_or(i32::MAX)),
            renew_time: Some(MicroTime(now)),
            ..LeaseSpec::default()
        }),
    }
}

/// meta/v1 Time has whole seconds.
pub fn seconds(at: Timestamp) -> Time {
    Time(Timestamp::from_second(at.as_second()).unwrap_or(at))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn nodes_are_ready_and_lie_in_their_zones() {
        let config = crate::tests::config();
        let node = object(&config, 4, Timestamp::UNIX_EPOCH);
        let labels = node.metadata.labels.unwrap();
        assert_eq!(labels["topology.kubernetes.io/zone"], "zone-1");
        assert_eq!(labels["kubernetes.io/hostname"], "hollow-4");
        let status = node.status.unwrap();
        assert_eq!(status.capacity.unwrap()["pods"].0, "110");
        let bad = |c: &&NodeCondition| (c.type_ == "Ready") != (c.status == "True");
        assert_eq!(status.conditions.unwrap().iter().find(bad), None);
    }

    #[test]
    fn addresses_are_spread() {
        let all: HashSet<Ipv4Addr> = (0..5_000).map(|n| address(&format!("hollow-{n}"))).collect();
        assert!(all.len() > 4_950, "{}", all.len());
        assert!(all.iter().all(|ip| ip.octets()[0] == 100 && ip.octets()[1] & 0xc0 == 64));
    }
}
