//! Pod sandboxes: their configuration, and what is told of them.

use std::net::IpAddr;

use rpc::Status;

use super::{containers, invalid, mode_from, mode_to, seccomp_from, seccomp_to};
use crate::cri;
use crate::wire::sandboxes as wire;
use crate::wire::{IdMapping, NamespaceMode, SandboxState};

/// # Errors
/// InvalidArgument for what is missing, unknown, or beyond the contract.
pub fn config_from(
    config: wire::PodSandboxConfig,
    runtime_handler: String,
) -> Result<cri::PodSandboxConfig, Status> {
    let metadata =
        config.metadata.ok_or_else(|| invalid("sandbox config must include metadata"))?;
    let linux = config.linux.unwrap_or_default();
    let security = linux.security_context.unwrap_or_default();
    let namespaces = security.namespace_options.unwrap_or_default();
    let users = namespaces.userns_options.as_ref().map(users_from).transpose()?.flatten();
    let dns = config.dns_config.unwrap_or_default();
    let ports = config.port_mappings.iter().filter(|it| it.host_port != 0);
    let host_ports = ports.map(host_port_from).collect::<Result<_, _>>()?;
    Ok(cri::PodSandboxConfig {
        host_ports,
        metadata: metadata_from(metadata),
        hostname: config.hostname,
        log_directory: config.log_directory.into(),
        dns: cri::DnsConfig { servers: dns.servers, searches: dns.searches, options: dns.options },
        labels: config.labels,
        annotations: config.annotations,
        network: mode_from(namespaces.network)?,
        pid: mode_from(namespaces.pid)?,
        ipc: mode_from(namespaces.ipc)?,
        sysctls: linux.sysctls,
        cgroup_parent: linux.cgroup_parent.trim_matches('/').to_owned(),
        resources: containers::resources_from(linux.resources.unwrap_or_default())?,
        privileged: security.privileged,
        seccomp: seccomp_from(security.seccomp.as_ref(), &security.seccomp_profile_path)?,
        selinux: security.selinux_options.map(containers::selinux_from),
        runtime_handler,
        users,
    })
}

fn host_port_from(port: &wire::PortMapping) -> Result<cri::HostPort, Status> {
    let number = |port: i32| {
        let number = u16::try_from(port).ok().filter(|it| *it != 0);
        number.ok_or_else(|| invalid(format!("{port} is no port")))
    };
    Ok(cri::HostPort {
        protocol: match port.protocol {
            0 => cri::Protocol::Tcp,
            1 => cri::Protocol::Udp,
            2 => cri::Protocol::Sctp,
            _ => return Err(invalid("unknown protocol")),
        },
        host_ip: match port.host_ip.as_str() {
            "" | "0.0.0.0" | "::" => None,
            text => Some(text.parse().map_err(|_| invalid(format!("{text} is no address")))?),
        },
        host_port: number(port.host_port)?,
        container_port: number(port.container_port)?,
    })
}

fn host_port_to(port: &cri::HostPort) -> wire::PortMapping {
    wire::PortMapping {
        protocol: port.protocol as i32,
        container_port: port.container_port.into(),
        host_port: port.host_port.into(),
        host_ip: port.host_ip.map(|it| it.to_string()).unwrap_or_default(),
    }
}

pub fn config_to(config: &cri::PodSandboxConfig) -> wire::PodSandboxConfig {
    let namespaces = wire::NamespaceOption {
        network: mode_to(config.network).into(),
        pid: mode_to(config.pid).into(),
        ipc: mode_to(config.ipc).into(),
        target_id: String::new(),
        userns_options: config.users.map(users_to),
    };
    let security = wire::LinuxSandboxSecurityContext {
        namespace_options: Some(namespaces),
        privileged: config.privileged,
        seccomp: Some(seccomp_to(&config.seccomp)),
        selinux_options: config.selinux.as_ref().map(containers::selinux_to),
        ..Default::default()
    };
    let parent = &config.cgroup_parent;
    let linux = wire::LinuxPodSandboxConfig {
        // From the root of the hierarchy, or the runtime's own default.
        cgroup_parent: if parent.is_empty() { String::new() } else { format!("/{parent}") },
        security_context: Some(security),
        sysctls: config.sysctls.clone(),
        overhead: None,
        resources: Some(containers::resources_to(&config.resources)),
    };
    wire::PodSandboxConfig {
        metadata: Some(metadata_to(&config.metadata)),
        hostname: config.hostname.clone(),
        log_directory: config.log_directory.display().to_string(),
        port_mappings: config.host_ports.iter().map(host_port_to).collect(),
        dns_config: Some(wire::DnsConfig {
            servers: config.dns.servers.clone(),
            searches: config.dns.searches.clone(),
            options: config.dns.options.clone(),
        }),
        labels: config.labels.clone(),
        annotations: config.annotations.clone(),
        linux: Some(linux),
    }
}

/// One range of the node's ids, which begins at the pod's root.
fn users_from(users: &wire::UserNamespace) -> Result<Option<cri::UserNamespace>, Status> {
    if users.mode == NamespaceMode::Node as i32 {
        return Ok(None);
    }
    match (users.mode == NamespaceMode::Pod as i32, users.uids.as_slice()) {
        (true, [one]) if one.container_id == 0 && users.gids == users.uids => {
            Ok(Some(cri::UserNamespace { host_id: one.host_id, length: one.length }))
        }
        _ => Err(invalid("a user namespace is of a pod and has one mapping, which begins at 0")),
    }
}

pub fn users_to(users: cri::UserNamespace) -> wire::UserNamespace {
    let all = mapping(users);
    wire::UserNamespace { mode: NamespaceMode::Pod.into(), uids: all.clone(), gids: all }
}

/// Of users and of groups alike.
pub fn mapping(users: cri::UserNamespace) -> Vec<IdMapping> {
    vec![IdMapping { host_id: users.host_id, container_id: 0, length: users.length }]
}

fn metadata_from(metadata: wire::PodSandboxMetadata) -> cri::PodSandboxMetadata {
    cri::PodSandboxMetadata {
        name: metadata.name,
        namespace: metadata.namespace,
        uid: metadata.uid,
        attempt: metadata.attempt,
    }
}

pub fn metadata_to(metadata: &cri::PodSandboxMetadata) -> wire::PodSandboxMetadata {
    wire::PodSandboxMetadata {
        name: metadata.name.clone(),
        uid: metadata.uid.clone(),
        namespace: metadata.namespace.clone(),
        attempt: metadata.attempt,
    }
}

fn state_to(state: cri::SandboxState) -> SandboxState {
    match state {
        cri::SandboxState::Ready => SandboxState::Ready,
        cri::SandboxState::NotReady => SandboxState::NotReady,
    }
}

/// A state that nobody defined is one that holds no containers.
fn state_from(number: i32) -> cri::SandboxState {
    match SandboxState::try_from(number) {
        Ok(SandboxState::Ready) => cri::SandboxState::Ready,
        Ok(SandboxState::NotReady) | Err(_) => cri::SandboxState::NotReady,
    }
}

/// One line of a list.
pub fn item_to(sandbox: &cri::PodSandbox) -> wire::PodSandbox {
    wire::PodSandbox {
        id: sandbox.id.clone(),
        metadata: Some(metadata_to(&sandbox.metadata)),
        state: state_to(sandbox.state).into(),
        created_at: sandbox.created_at,
        labels: sandbox.labels.clone(),
        annotations: sandbox.annotations.clone(),
        runtime_handler: String::new(),
    }
}

pub fn status_to(sandbox: &cri::PodSandbox) -> wire::PodSandboxStatus {
    let mut ips = sandbox.ips.iter().map(ToString::to_string);
    let network = wire::PodSandboxNetworkStatus {
        ip: ips.next().unwrap_or_default(),
        additional_ips: ips.map(|ip| wire::PodIp { ip }).collect(),
    };
    let options =
        wire::NamespaceOption { network: mode_to(sandbox.network).into(), ..Default::default() };
    wire::PodSandboxStatus {
        id: sandbox.id.clone(),
        metadata: Some(metadata_to(&sandbox.metadata)),
        state: state_to(sandbox.state).into(),
        created_at: sandbox.created_at,
        network: Some(network),
        linux: Some(wire::LinuxPodSandboxStatus {
            namespaces: Some(wire::Namespace { options: Some(options) }),
        }),
        labels: sandbox.labels.clone(),
        annotations: sandbox.annotations.clone(),
        runtime_handler: String::new(),
    }
}

pub fn status_from(status: wire::PodSandboxStatus) -> cri::PodSandbox {
    let network = status.network.unwrap_or_default();
    let all = std::iter::once(network.ip).chain(network.additional_ips.into_iter().map(|it| it.ip));
    let options = status.linux.and_then(|it| it.namespaces).and_then(|it| it.options);
    let mode = mode_from(options.unwrap_or_default().network).unwrap_or_default();
    cri::PodSandbox {
        id: status.id,
        metadata: metadata_from(status.metadata.unwrap_or_default()),
        state: state_from(status.state),
        created_at: status.created_at,
        labels: status.labels,
        annotations: status.annotations,
        // Some runtimes give the node's address for its own network.
        ips: match mode {
            cri::NamespaceMode::Node => Vec::new(),
            _ => all.filter_map(|ip| ip.parse::<IpAddr>().ok()).collect(),
        },
        network: mode,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rpc::Code;

    fn sample(network: cri::NamespaceMode) -> cri::PodSandboxConfig {
        cri::PodSandboxConfig {
            host_ports: vec![cri::HostPort {
                protocol: cri::Protocol::Udp,
                host_ip: Some(std::net::Ipv4Addr::LOCALHOST),
                host_port: 5_353,
                container_port: 53,
            }],
            metadata: cri::PodSandboxMetadata {
                name: "web".into(),
                namespace: "default".into(),
                uid: "u1".into(),
                attempt: 2,
            },
            hostname: "web".into(),
            log_directory: "/var/log/pods/default_web_u1".into(),
            dns: cri::DnsConfig {
                servers: vec!["10.43.0.10".into()],
                searches: vec!["svc.cluster.local".into()],
                options: vec!["ndots:5".into()],
            },
            labels: [("a".into(), "b".into())].into(),
            annotations: [("c".into(), "d".into())].into(),
            network,
            pid: cri::NamespaceMode::Container,
            ipc: cri::NamespaceMode::Node,
            sysctls: [("net.x".into(), "1".into())].into(),
            cgroup_parent: "kubepods/burstable/podu1".into(),
            resources: cri::LinuxResources { cpu_shares: 512, ..Default::default() },
            privileged: true,
            seccomp: cri::SeccompProfile::Localhost("/p.json".into()),
            selinux: Some(cri::SelinuxOptions {
                user: "u".into(),
                role: "r".into(),
                kind: "t".into(),
                level: "s0:c1,c2".into(),
            }),
            runtime_handler: "crun".into(),
            users: Some(cri::UserNamespace { host_id: 65_536, length: 65_536 }),
        }
    }

    #[test]
    fn a_configuration_survives_both_ways() {
        for network in [cri::NamespaceMode::Pod, cri::NamespaceMode::Node] {
            let wanted = sample(network);
            let on_wire = config_to(&wanted);
            let parent = &on_wire.linux.as_ref().unwrap().cgroup_parent;
            assert_eq!(parent, "/kubepods/burstable/podu1");
            let back = config_from(on_wire, "crun".into()).unwrap();
            assert_eq!(
                serde_json::to_value(&back).unwrap(),
                serde_json::to_value(&wanted).unwrap()
            );
        }
    }

    #[test]
    fn what_cannot_be_kept_is_refused() {
        let with = |change: &dyn Fn(&mut wire::PodSandboxConfig)| {
            let mut config = config_to(&sample(cri::NamespaceMode::Pod));
            change(&mut config);
            config_from(config, String::new()).unwrap_err()
        };
        fn namespaces(config: &mut wire::PodSandboxConfig) -> &mut wire::NamespaceOption {
            let linux = config.linux.as_mut().unwrap();
            linux.security_context.as_mut().unwrap().namespace_options.as_mut().unwrap()
        }
        for refused in [
            with(&|config| config.metadata = None),
            with(&|config| namespaces(config).pid = 77),
            with(&|config| {
                namespaces(config).userns_options = Some(wire::UserNamespace::default())
            }),
        ] {
            assert_eq!(refused.code, Code::InvalidArgument, "{refused}");
        }
        assert!(
            config_from(
                wire::PodSandboxConfig {
                    metadata: Some(wire::PodSandboxMetadata::default()),
                    ..Default::default()
                },
                String::new()
            )
            .is_ok()
        );
    }

    #[test]
    fn a_status_survives_and_the_nodes_address_is_no_pods() {
        let mut sandbox = cri::PodSandbox {
            id: "s1".into(),
            metadata: sample(cri::NamespaceMode::Pod).metadata,
            state: cri::SandboxState::Ready,
            created_at: 7,
            labels: Default::default(),
            annotations: Default::default(),
            ips: vec!["10.42.0.9".parse().unwrap(), "fd00::9".parse().unwrap()],
            network: cri::NamespaceMode::Pod,
        };
        let back = status_from(status_to(&sandbox));
        assert_eq!((back.ips, back.state), (sandbox.ips.clone(), sandbox.state));
        sandbox.network = cri::NamespaceMode::Node;
        sandbox.state = cri::SandboxState::NotReady;
        let back = status_from(status_to(&sandbox));
        assert_eq!((back.ips, back.state), (Vec::new(), sandbox.state));
        let empty = status_from(wire::PodSandboxStatus { state: 9, ..Default::default() });
        assert_eq!(empty.state, cri::SandboxState::NotReady);
    }
}
