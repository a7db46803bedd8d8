//! The metrics of pods that a kubelet passes on under `/metrics/cadvisor`: their names, and
//! their values as of now.

use std::collections::HashMap;

use sys::cgroup::{Details, Hierarchy};

use super::{Answer, Offer, told};
use crate::cri::{self, GroupUsage, InterfaceUsage, StatsQuery};
use crate::figures::{DISK_FIGURES, FIGURES};
use crate::wire::stats::{ContainerMetrics, Metric, MetricDescriptor, PodSandboxMetrics};
use crate::wire::{MetricType, UInt64Value};

const NANOS: u64 = 1_000_000_000;
const LABELS: [&str; 2] = ["id", "name"];
const CPU: &str = "container_cpu_usage_seconds_total";
const FAULTS: &str = "container_memory_failures_total";
const STARTED: &str = "container_start_time_seconds";
const SEEN: &str = "container_last_seen";
const BLOCKS: &str = "container_blkio_device_usage_total";
const LAYER: &str = "container_fs_usage_bytes";
const SIZE: &str = "container_fs_limit_bytes";
const FILES: &str = "container_fs_inodes_total";
const FILES_FREE: &str = "container_fs_inodes_free";

/// What is not in the tables: name, help, and the labels besides those of every metric.
const OTHERS: [(&str, &str, &[&str]); 9] = [
    (CPU, "CPU time", &["cpu"]),
    (FAULTS, "Page faults", &["failure_type", "scope"]),
    (STARTED, "When it was started, since the Unix epoch", &[]),
    (SEEN, "When it was last looked at, since the Unix epoch", &[]),
    (BLOCKS, "Bytes read from and written to a device", &["device", "major", "minor", "operation"]),
    (LAYER, "Bytes of the writable layer", &["device"]),
    (SIZE, "Size of the file system", &["device"]),
    (FILES, "Files that there may be", &["device"]),
    (FILES_FREE, "Files that may still be made", &["device"]),
];

type OfInterface = fn(&InterfaceUsage) -> u64;

const NETWORK: [(&str, &str, OfInterface); 8] = [
    ("container_network_receive_bytes_total", "Bytes received", |it| it.rx_bytes),
    ("container_network_receive_errors_total", "Errors while receiving", |it| it.rx_errors),
    ("container_network_receive_packets_dropped_total", "Dropped arrivals", |it| it.rx_dropped),
    ("container_network_receive_packets_total", "Packets received", |it| it.rx_packets),
    ("container_network_transmit_bytes_total", "Bytes sent", |it| it.tx_bytes),
    ("container_network_transmit_errors_total", "Errors while sending", |it| it.tx_errors),
    ("container_network_transmit_packets_dropped_total", "Dropped packets", |it| it.tx_dropped),
    ("container_network_transmit_packets_total", "Packets sent", |it| it.tx_packets),
];

pub fn descriptors() -> Vec<MetricDescriptor> {
    let plain = FIGURES.iter().map(|it| (it.name, it.help, &[][..]));
    let disks = DISK_FIGURES.iter().map(|it| (it.name, it.help, &["device"][..]));
    let network = NETWORK.iter().map(|(name, help, _)| (*name, *help, &["interface"][..]));
    plain
        .chain(disks)
        .chain(network)
        .chain(OTHERS)
        .map(|(name, help, more)| MetricDescriptor {
            name: name.to_owned(),
            help: help.to_owned(),
            label_keys: LABELS.iter().chain(more).map(|it| (*it).to_owned()).collect(),
        })
        .collect()
}

/// Bytes, files and free files of a file system.
type Room = (u64, u64, u64);

impl Offer {
    pub(super) async fn metrics(&self) -> Answer<Vec<PodSandboxMetrics>> {
        let query = StatsQuery { pods: None, with_disk: true };
        let read = told(self.runtime.pod_sandbox_stats(&query).await)?;
        let known = told(self.runtime.list_containers().await)?;
        let known: HashMap<String, cri::Container> =
            known.into_iter().map(|it| (it.id.clone(), it)).collect();
        let groups = read.iter().flat_map(|pod| {
            [&pod.cgroup].into_iter().chain(pod.containers.iter().map(|it| &it.cgroup))
        });
        let details = details(groups.cloned().collect()).await;
        let more = |group: &str| details.get(group).cloned().unwrap_or_default();
        let at = self.images.image_dir();
        let room = sys::fs::capacity(&at).and_then(|(bytes, _)| {
            let (files, free) = sys::fs::files(&at)?;
            Ok((bytes, files, free))
        });
        let room = room.ok();
        let mut all = Vec::with_capacity(read.len());
        for pod in read {
            // One that goes meanwhile has no numbers.
            let Ok(sandbox) = self.runtime.pod_sandbox_status(&pod.id).await else { continue };
            let mut of_pod = Metrics::of(&pod.id, &sandbox.metadata.name);
            of_pod.group(&pod.usage, &more(&pod.cgroup), sandbox.created_at);
            for interface in &pod.interfaces {
                for (name, _, of) in NETWORK {
                    of_pod.add(name, MetricType::Counter, of(interface), &[&interface.name]);
                }
            }
            let inside = pod.containers.iter().filter_map(|it| {
                let about = known.get(&it.id)?;
                let mut own = Metrics::of(&it.id, &about.metadata.name);
                own.group(&it.usage, &more(&it.cgroup), about.started_at);
                own.layer(it.writable_layer.map(|disk| disk.bytes), room);
                Some(ContainerMetrics { container_id: it.id.clone(), metrics: own.all })
            });
            let container_metrics = inside.collect();
            let metrics = of_pod.all;
            all.push(PodSandboxMetrics { pod_sandbox_id: pod.id, metrics, container_metrics });
        }
        Ok(all)
    }
}

async fn details(groups: Vec<String>) -> HashMap<String, Details> {
    let read = base::task::spawn_blocking(move || {
        let hierarchy = Hierarchy::detect().ok()?;
        let each = groups.into_iter().map(|path| {
            let details = hierarchy.group(&path).details();
            (path, details)
        });
        Some(each.collect())
    });
    read.await.ok().flatten().unwrap_or_default()
}

/// Those of a pod or of a container.
struct Metrics {
    labels: [String; 2],
    all: Vec<Metric>,
}

impl Metrics {
    fn of(id: &str, name: &str) -> Self {
        Self { labels: [id.to_owned(), name.to_owned()], all: Vec::new() }
    }

    fn add(&mut self, name: &str, kind: MetricType, value: u64, more: &[&str]) {
        let more = more.iter().map(|it| (*it).to_owned());
        self.all.push(Metric {
            name: name.to_owned(),
            // Read for this very answer.
            timestamp: 0,
            metric_type: kind.into(),
            label_values: self.labels.iter().cloned().chain(more).collect(),
            value: Some(UInt64Value { value }),
        });
    }

    /// `started_at` is in nanoseconds since the Unix epoch.
    fn group(&mut self, usage: &GroupUsage, more: &Details, started_at: i64) {
        use MetricType::{Counter, Gauge};
        self.add(CPU, Counter, usage.cpu_nanos / NANOS, &["total"]);
        for figure in &FIGURES {
            // What has nothing to tell is still there for who asks for every name.
            let value = (figure.of)(usage, more).unwrap_or(0.0);
            let kind = if figure.is_counter { Counter } else { Gauge };
            self.add(figure.name, kind, value as u64, &[]);
        }
        for (kind, count) in
            [("pgfault", usage.page_faults), ("pgmajfault", usage.major_page_faults)]
        {
            self.add(FAULTS, Counter, count, &[kind, "hierarchy"]);
        }
        for disk in &more.disks {
            let device = disk.device();
            for figure in &DISK_FIGURES {
                self.add(figure.name, Counter, (figure.of)(disk), &[&device]);
            }
            let (major, minor) = (disk.major.to_string(), disk.minor.to_string());
            for (operation, bytes) in [("Read", disk.read_bytes), ("Write", disk.written_bytes)] {
                self.add(BLOCKS, Counter, bytes, &[&device, &major, &minor, operation]);
            }
        }
        let seconds = |nanos: i64| u64::try_from(nanos).unwrap_or(0) / NANOS;
        self.add(STARTED, Gauge, seconds(started_at), &[]);
        self.add(SEEN, Gauge, seconds(super::now()), &[]);
    }

    fn layer(&mut self, used: Option<u64>, room: Option<Room>) {
        let of_room = |(size, files, free)| [(SIZE, size), (FILES, files), (FILES_FREE, free)];
        let all = used.map(|it| (LAYER, it)).into_iter().chain(room.into_iter().flat_map(of_room));
        for (name, value) in all {
            self.add(name, MetricType::Gauge, value, &[""]);
        }
    }
}

#[cfg(test)]
mod tests {
    use sys::cgroup::Disk;

    use super::*;

    #[test]
    fn every_metric_is_described_and_has_a_value_for_each_label() {
        let mut metrics = Metrics::of("1", "main");
        let usage = GroupUsage { cpu_nanos: 3 * NANOS, ..Default::default() };
        let more = Details { disks: vec![Disk::default()], ..Default::default() };
        metrics.group(&usage, &more, 7_000_000_000);
        metrics.layer(Some(1), Some((2, 3, 4)));
        for (name, ..) in NETWORK {
            metrics.add(name, MetricType::Counter, 0, &["eth0"]);
        }
        let described = descriptors();
        for of in &described {
            let found = metrics.all.iter().find(|it| it.name == of.name);
            let found = found.unwrap_or_else(|| panic!("{} is never told", of.name));
            assert_eq!(of.label_keys.len(), found.label_values.len(), "{}", of.name);
        }
        for metric in &metrics.all {
            assert!(described.iter().any(|it| it.name == metric.name), "{}", metric.name);
        }
        let value = |name: &str| {
            let found = metrics.all.iter().find(|it| it.name == name)?;
            found.value.as_ref().map(|it| it.value)
        };
        assert_eq!((value(CPU), value(STARTED)), (Some(3), Some(7)), "seconds");
    }
}
