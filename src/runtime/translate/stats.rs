//! Numbers of containers and sandboxes. Time is an argument.

use crate::cri::{self, DiskUsage, GroupUsage, InterfaceUsage};
use crate::translate::{containers, sandboxes};
use crate::wire::UInt64Value;
use crate::wire::images::{FilesystemIdentifier, FilesystemUsage};
use crate::wire::stats as wire;

/// The interface that a pod's own traffic goes through, by convention of the network plugins.
const DEFAULT_INTERFACE: &str = "eth0";

fn number(value: u64) -> Option<UInt64Value> {
    Some(UInt64Value { value })
}

fn read(value: Option<UInt64Value>) -> u64 {
    value.map_or(0, |it| it.value)
}

fn cpu_to(usage: &GroupUsage, at: i64) -> wire::CpuUsage {
    wire::CpuUsage {
        timestamp: at,
        usage_core_nano_seconds: number(usage.cpu_nanos),
        usage_nano_cores: None,
    }
}

fn memory_to(usage: &GroupUsage, at: i64) -> wire::MemoryUsage {
    let working_set = usage.memory_working_set_bytes;
    let available = usage.memory_limit_bytes.map(|limit| limit.saturating_sub(working_set));
    wire::MemoryUsage {
        timestamp: at,
        working_set_bytes: number(working_set),
        available_bytes: available.and_then(number),
        usage_bytes: number(usage.memory_bytes),
        rss_bytes: number(usage.memory_rss_bytes),
        page_faults: number(usage.page_faults),
        major_page_faults: number(usage.major_page_faults),
    }
}

fn usage_from(cpu: Option<wire::CpuUsage>, memory: Option<wire::MemoryUsage>) -> GroupUsage {
    let (cpu, memory) = (cpu.unwrap_or_default(), memory.unwrap_or_default());
    let working_set = read(memory.working_set_bytes);
    GroupUsage {
        cpu_nanos: read(cpu.usage_core_nano_seconds),
        memory_bytes: read(memory.usage_bytes),
        memory_working_set_bytes: working_set,
        memory_rss_bytes: read(memory.rss_bytes),
        page_faults: read(memory.page_faults),
        major_page_faults: read(memory.major_page_faults),
        memory_limit_bytes: memory
            .available_bytes
            .map(|it| it.value.saturating_add(working_set))
            .filter(|limit| *limit > working_set),
        ..Default::default()
    }
}

/// What lies at `mountpoint`.
pub fn disk_to(used: DiskUsage, mountpoint: &str, at: i64) -> FilesystemUsage {
    FilesystemUsage {
        timestamp: at,
        fs_id: Some(FilesystemIdentifier { mountpoint: mountpoint.to_owned() }),
        used_bytes: number(used.bytes),
        inodes_used: number(used.inodes),
    }
}

pub fn disk_from(usage: FilesystemUsage) -> DiskUsage {
    DiskUsage { bytes: read(usage.used_bytes), inodes: read(usage.inodes_used) }
}

pub fn container_to(
    container: &cri::Container,
    stats: &cri::ContainerStats,
    mountpoint: &str,
    at: i64,
) -> wire::ContainerStats {
    wire::ContainerStats {
        attributes: Some(wire::ContainerAttributes {
            id: container.id.clone(),
            metadata: Some(containers::metadata_to(&container.metadata)),
            labels: container.labels.clone(),
            annotations: container.annotations.clone(),
        }),
        cpu: Some(cpu_to(&stats.usage, at)),
        memory: Some(memory_to(&stats.usage, at)),
        writable_layer: stats.writable_layer.map(|used| disk_to(used, mountpoint, at)),
        swap: stats.usage.swap_bytes.map(|bytes| wire::SwapUsage {
            timestamp: at,
            swap_available_bytes: None,
            swap_usage_bytes: number(bytes),
        }),
    }
}

pub fn container_from(stats: wire::ContainerStats) -> cri::ContainerStats {
    let id = stats.attributes.unwrap_or_default().id;
    let mut usage = usage_from(stats.cpu, stats.memory);
    usage.swap_bytes = stats.swap.and_then(|it| it.swap_usage_bytes).map(|it| it.value);
    cri::ContainerStats {
        cgroup: id.clone(),
        id,
        usage,
        writable_layer: stats.writable_layer.map(disk_from),
    }
}

fn interface_to(usage: &InterfaceUsage) -> wire::NetworkInterfaceUsage {
    wire::NetworkInterfaceUsage {
        name: usage.name.clone(),
        rx_bytes: number(usage.rx_bytes),
        rx_errors: number(usage.rx_errors),
        tx_bytes: number(usage.tx_bytes),
        tx_errors: number(usage.tx_errors),
    }
}

fn interface_from(usage: wire::NetworkInterfaceUsage) -> InterfaceUsage {
    InterfaceUsage {
        name: usage.name,
        rx_bytes: read(usage.rx_bytes),
        rx_errors: read(usage.rx_errors),
        tx_bytes: read(usage.tx_bytes),
        tx_errors: read(usage.tx_errors),
        ..Default::default()
    }
}

pub fn sandbox_to(
    sandbox: &cri::PodSandbox,
    stats: &cri::SandboxStats,
    containers: Vec<wire::ContainerStats>,
    at: i64,
) -> wire::PodSandboxStats {
    let (default, others): (Vec<_>, Vec<_>) =
        stats.interfaces.iter().partition(|it| it.name == DEFAULT_INTERFACE);
    let network = wire::NetworkUsage {
        timestamp: at,
        default_interface: default.first().map(|it| interface_to(it)),
        interfaces: others.into_iter().map(interface_to).collect(),
    };
    wire::PodSandboxStats {
        attributes: Some(wire::PodSandboxAttributes {
            id: sandbox.id.clone(),
            metadata: Some(sandboxes::metadata_to(&sandbox.metadata)),
            labels: sandbox.labels.clone(),
            annotations: sandbox.annotations.clone(),
        }),
        linux: Some(wire::LinuxPodSandboxStats {
            cpu: Some(cpu_to(&stats.usage, at)),
            memory: Some(memory_to(&stats.usage, at)),
            network: (!stats.interfaces.is_empty()).then_some(network),
            process: Some(wire::ProcessUsage {
                timestamp: at,
                process_count: number(stats.usage.processes),
            }),
            containers,
        }),
    }
}

pub fn sandbox_from(stats: wire::PodSandboxStats) -> cri::SandboxStats {
    let id = stats.attributes.unwrap_or_default().id;
    let linux = stats.linux.unwrap_or_default();
    let network = linux.network.unwrap_or_default();
    let mut usage = usage_from(linux.cpu, linux.memory);
    usage.processes = linux.process.map_or(0, |it| read(it.process_count));
    cri::SandboxStats {
        cgroup: id.clone(),
        id,
        usage,
        interfaces: network
            .default_interface
            .into_iter()
            .chain(network.interfaces)
            .map(interface_from)
            .collect(),
        containers: linux.containers.into_iter().map(container_from).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interface(name: &str) -> InterfaceUsage {
        InterfaceUsage { name: name.into(), rx_bytes: 1, tx_bytes: 2, ..Default::default() }
    }

    #[test]
    fn numbers_survive_both_ways() {
        let usage = GroupUsage {
            cpu_nanos: 11,
            memory_bytes: 30,
            memory_working_set_bytes: 20,
            memory_rss_bytes: 10,
            page_faults: 4,
            major_page_faults: 2,
            memory_limit_bytes: Some(100),
            processes: 3,
            ..Default::default()
        };
        let sandbox = cri::PodSandbox {
            id: "s1".into(),
            metadata: Default::default(),
            state: cri::SandboxState::Ready,
            created_at: 1,
            labels: Default::default(),
            annotations: Default::default(),
            ips: Vec::new(),
            network: cri::NamespaceMode::Pod,
        };
        let stats = cri::SandboxStats {
            id: "s1".into(),
            usage,
            interfaces: vec![interface("eth1"), interface("eth0")],
            ..Default::default()
        };
        let on_wire = sandbox_to(&sandbox, &stats, Vec::new(), 9);
        let linux = on_wire.linux.as_ref().unwrap();
        assert_eq!(
            linux.network.as_ref().unwrap().default_interface.as_ref().unwrap().name,
            "eth0"
        );
        assert_eq!(linux.memory.as_ref().unwrap().available_bytes, number(80));
        let back = sandbox_from(on_wire);
        assert_eq!(back.usage, usage);
        assert_eq!(back.interfaces, [interface("eth0"), interface("eth1")]);
    }

    #[test]
    fn a_container_without_limit_or_numbers_has_none() {
        let read = container_from(wire::ContainerStats::default());
        assert_eq!(read.usage, GroupUsage::default());
        assert_eq!(read.writable_layer, None);
        let used = DiskUsage { bytes: 5, inodes: 6 };
        assert_eq!(disk_from(disk_to(used, "/m", 1)), used);
    }
}
