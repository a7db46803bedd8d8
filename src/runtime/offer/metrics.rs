//! The metrics of pods that a kubelet passes on under `/metrics/cadvisor`: their names, and
//! their values as of now.

use super::{Answer, Offer};
use crate::wire::stats::{
    ContainerMetrics, ContainerStats, CpuUsage, MemoryUsage, Metric, MetricDescriptor,
    NetworkInterfaceUsage, PodSandboxMetrics, PodSandboxStats,
};
use crate::wire::{MetricType, UInt64Value};

const NANOS: u64 = 1_000_000_000;
const CPU_SECONDS: &str = "container_cpu_usage_seconds_total";
const MEMORY: &str = "container_memory_usage_bytes";
const WORKING_SET: &str = "container_memory_working_set_bytes";
const RSS: &str = "container_memory_rss";
const RECEIVED: &str = "container_network_receive_bytes_total";
const RECEIVE_ERRORS: &str = "container_network_receive_errors_total";
const SENT: &str = "container_network_transmit_bytes_total";
const SEND_ERRORS: &str = "container_network_transmit_errors_total";
const PROCESSES: &str = "container_processes";

/// Name, help, and the labels besides those of every metric.
const DESCRIPTORS: [(&str, &str, &[&str]); 9] = [
    (CPU_SECONDS, "Cumulative cpu time consumed in seconds.", &[]),
    (MEMORY, "Current memory usage in bytes, including all memory.", &[]),
    (WORKING_SET, "Current working set in bytes.", &[]),
    (RSS, "Size of RSS in bytes.", &[]),
    (RECEIVED, "Cumulative count of bytes received.", &["interface"]),
    (RECEIVE_ERRORS, "Cumulative count of errors encountered while receiving.", &["interface"]),
    (SENT, "Cumulative count of bytes transmitted.", &["interface"]),
    (SEND_ERRORS, "Cumulative count of errors encountered while transmitting.", &["interface"]),
    (PROCESSES, "Number of processes running inside the container.", &[]),
];
const LABELS: [&str; 2] = ["id", "name"];

pub fn descriptors() -> Vec<MetricDescriptor> {
    DESCRIPTORS
        .iter()
        .map(|(name, help, more)| MetricDescriptor {
            name: (*name).to_owned(),
            help: (*help).to_owned(),
            label_keys: LABELS.iter().chain(*more).map(|it| (*it).to_owned()).collect(),
        })
        .collect()
}

impl Offer {
    pub(super) async fn metrics(&self) -> Answer<Vec<PodSandboxMetrics>> {
        Ok(self.all_stats(None).await?.into_iter().map(of_sandbox).collect())
    }
}

fn of_sandbox(stats: PodSandboxStats) -> PodSandboxMetrics {
    let about = stats.attributes.unwrap_or_default();
    let name = about.metadata.unwrap_or_default().name;
    let labels = [about.id.clone(), name];
    let linux = stats.linux.unwrap_or_default();
    let mut metrics = usage(linux.cpu, linux.memory, &labels);
    let network = linux.network.unwrap_or_default();
    for interface in network.default_interface.into_iter().chain(network.interfaces) {
        metrics.extend(traffic(interface, &labels));
    }
    let processes = linux.process.unwrap_or_default().process_count;
    metrics.extend(metric(PROCESSES, MetricType::Gauge, processes, &labels));
    PodSandboxMetrics {
        pod_sandbox_id: about.id,
        metrics,
        container_metrics: linux.containers.into_iter().map(of_container).collect(),
    }
}

fn of_container(stats: ContainerStats) -> ContainerMetrics {
    let about = stats.attributes.unwrap_or_default();
    let labels = [about.id.clone(), about.metadata.unwrap_or_default().name];
    ContainerMetrics { container_id: about.id, metrics: usage(stats.cpu, stats.memory, &labels) }
}

fn usage(cpu: Option<CpuUsage>, memory: Option<MemoryUsage>, labels: &[String]) -> Vec<Metric> {
    let (cpu, memory) = (cpu.unwrap_or_default(), memory.unwrap_or_default());
    let seconds = cpu.usage_core_nano_seconds.map(|it| UInt64Value { value: it.value / NANOS });
    [
        metric(CPU_SECONDS, MetricType::Counter, seconds, labels),
        metric(MEMORY, MetricType::Gauge, memory.usage_bytes, labels),
        metric(WORKING_SET, MetricType::Gauge, memory.working_set_bytes, labels),
        metric(RSS, MetricType::Gauge, memory.rss_bytes, labels),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn traffic(interface: NetworkInterfaceUsage, labels: &[String]) -> Vec<Metric> {
    let labels: Vec<String> = labels.iter().cloned().chain([interface.name]).collect();
    [
        (RECEIVED, interface.rx_bytes),
        (RECEIVE_ERRORS, interface.rx_errors),
        (SENT, interface.tx_bytes),
        (SEND_ERRORS, interface.tx_errors),
    ]
    .into_iter()
    .filter_map(|(name, value)| metric(name, MetricType::Counter, value, &labels))
    .collect()
}

fn metric(
    name: &str,
    kind: MetricType,
    value: Option<UInt64Value>,
    labels: &[String],
) -> Option<Metric> {
    Some(Metric {
        name: name.to_owned(),
        // Read for this very answer.
        timestamp: 0,
        metric_type: kind.into(),
        label_values: labels.to_vec(),
        value: Some(value?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::stats::{LinuxPodSandboxStats, NetworkUsage, ProcessUsage};

    #[test]
    fn every_metric_is_described_and_has_a_value_for_each_label() {
        let some = |value| Some(UInt64Value { value });
        let interface = NetworkInterfaceUsage {
            name: "eth0".into(),
            rx_bytes: some(1),
            rx_errors: some(2),
            tx_bytes: some(3),
            tx_errors: some(4),
        };
        let cpu = CpuUsage { usage_core_nano_seconds: some(3 * NANOS), ..Default::default() };
        let memory = MemoryUsage {
            usage_bytes: some(5),
            working_set_bytes: some(6),
            rss_bytes: some(7),
            ..Default::default()
        };
        let metrics = of_sandbox(PodSandboxStats {
            attributes: None,
            linux: Some(LinuxPodSandboxStats {
                cpu: Some(cpu),
                memory: Some(memory),
                network: Some(NetworkUsage {
                    default_interface: Some(interface),
                    ..Default::default()
                }),
                process: Some(ProcessUsage { process_count: some(8), ..Default::default() }),
                containers: Vec::new(),
            }),
        });
        let described = descriptors();
        assert_eq!(metrics.metrics.len(), described.len());
        for metric in &metrics.metrics {
            let of = described.iter().find(|it| it.name == metric.name).unwrap();
            assert_eq!(of.label_keys.len(), metric.label_values.len(), "{}", metric.name);
        }
        assert_eq!(metrics.metrics[0].value, some(3), "seconds");
    }
}
