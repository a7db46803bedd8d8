//! The node's metrics in the text format: `/metrics/resource`, `/metrics/cadvisor`,
//! `/metrics/probes`. Their names and labels are those that dashboards know.
//!
//! Reads on demand; keeps nothing.

use std::fmt::Write;

use runtime::cri::{GroupUsage, InterfaceUsage};
use runtime::figures::{DISK_FIGURES, DiskFigure, FIGURES, Figure};
use sys::cgroup::{Details, Hierarchy};

use crate::node::Node;
use crate::probes::counts::{BUCKETS, Counts};
use crate::usage::{self, Filesystem, Usage};

/// Lines of the text format.
struct Text {
    out: String,
    /// Milliseconds since the Unix epoch behind each value, where the values have a time.
    at: Option<i64>,
}

impl Text {
    fn family(
        &mut self,
        (name, kind, help): (&str, &str, &str),
        lines: impl IntoIterator<Item = (String, f64)>,
    ) {
        let mut lines = lines.into_iter().peekable();
        if lines.peek().is_none() {
            return;
        }
        // Writing to a String cannot fail.
        let _ = writeln!(self.out, "# HELP {name} {help}\n# TYPE {name} {kind}");
        for (labels, value) in lines {
            let _ = match self.at {
                Some(at) => writeln!(self.out, "{name}{labels} {value} {at}"),
                None => writeln!(self.out, "{name}{labels} {value}"),
            };
        }
    }
}

/// `{a="1",b="2"}`, with what has a meaning of its own in it escaped.
fn labels(pairs: &[(&str, &str)]) -> String {
    let mut out = String::from("{");
    for (index, (name, value)) in pairs.iter().enumerate() {
        let comma = if index > 0 { "," } else { "" };
        let value = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
        let _ = write!(out, "{comma}{name}=\"{value}\"");
    }
    out + "}"
}

type Of = fn(&GroupUsage) -> Option<f64>;

fn cpu_seconds(usage: &GroupUsage) -> Option<f64> {
    Some(usage.cpu_nanos as f64 / 1e9)
}

fn working_set(usage: &GroupUsage) -> Option<f64> {
    Some(usage.memory_working_set_bytes as f64)
}

fn swap(usage: &GroupUsage) -> Option<f64> {
    usage.swap_bytes.map(|bytes| bytes as f64)
}

/// What the metrics server reads: CPU time and working sets.
pub async fn resource(node: &Node) -> String {
    let mut text = Text { out: String::new(), at: None };
    let failed = match usage::read(node, false).await {
        Ok(usage) => {
            resource_families(&mut text, &usage);
            swap_limits(&mut text, &usage).await;
            0.0
        }
        Err(error) => {
            tracing::warn!(error, "usage not read");
            1.0
        }
    };
    text.at = None;
    let help = "1 if there was an error while getting container metrics, 0 otherwise";
    for name in ["resource_scrape_error", "scrape_error"] {
        text.family((name, "gauge", help), [(String::new(), failed)]);
    }
    text.out
}

fn resource_families(text: &mut Text, usage: &Usage) {
    let containers = |of: Of| -> Vec<(String, f64)> {
        usage
            .pods
            .iter()
            .flat_map(|pod| pod.containers.iter().map(move |it| (pod, it)))
            .filter_map(|(pod, it)| {
                let labels = labels(&[
                    ("container", &it.name),
                    ("namespace", &pod.namespace),
                    ("pod", &pod.name),
                ]);
                Some((labels, of(&it.stats.usage)?))
            })
            .collect()
    };
    let pods = |of: Of| -> Vec<(String, f64)> {
        usage
            .pods
            .iter()
            .filter_map(|pod| {
                let labels = labels(&[("namespace", &pod.namespace), ("pod", &pod.name)]);
                Some((labels, of(&pod.stats.usage)?))
            })
            .collect()
    };
    let node = |of: Of| of(&usage.node.group).map(|value| (String::new(), value));
    text.at = Some(usage.at.as_millisecond());
    let counter = "counter";
    let gauge = "gauge";
    let of_container = "container_cpu_usage_seconds_total";
    text.family((of_container, counter, "CPU time of the container"), containers(cpu_seconds));
    let of_container = "container_memory_working_set_bytes";
    text.family((of_container, gauge, "Working set of the container"), containers(working_set));
    text.family(
        ("container_swap_usage_bytes", gauge, "Swap that the container uses"),
        containers(swap),
    );
    let of_node = "node_cpu_usage_seconds_total";
    text.family((of_node, counter, "CPU time of the node"), node(cpu_seconds));
    let of_node = "node_memory_working_set_bytes";
    text.family((of_node, gauge, "Working set of the node"), node(working_set));
    text.family(("node_swap_usage_bytes", gauge, "Swap that the node uses"), node(swap));
    let of_pod = "pod_cpu_usage_seconds_total";
    text.family((of_pod, counter, "CPU time of the pod"), pods(cpu_seconds));
    let of_pod = "pod_memory_working_set_bytes";
    text.family((of_pod, gauge, "Working set of the pod"), pods(working_set));
    text.family(("pod_swap_usage_bytes", gauge, "Swap that the pod uses"), pods(swap));
    text.at = None;
    let started: Vec<(String, f64)> = usage
        .pods
        .iter()
        .flat_map(|pod| pod.containers.iter().map(move |it| (pod, it)))
        .map(|(pod, it)| {
            let pairs =
                [("container", &*it.name), ("namespace", &pod.namespace), ("pod", &pod.name)];
            (labels(&pairs), it.started_at as f64 / 1e9)
        })
        .collect();
    let name = "container_start_time_seconds";
    text.family((name, gauge, "When the container was started, since the Unix epoch"), started);
}

async fn swap_limits(text: &mut Text, usage: &Usage) {
    let of_pods = usage.pods.iter();
    let all: Vec<_> =
        of_pods.flat_map(|pod| pod.containers.iter().map(move |it| (pod, it))).collect();
    let details = details(all.iter().map(|(_, it)| it.stats.cgroup.clone()).collect()).await;
    let lines = all.iter().zip(details).filter_map(|((pod, it), more)| {
        let pairs = [("container", &*it.name), ("namespace", &pod.namespace), ("pod", &pod.name)];
        Some((labels(&pairs), more.swap_limit_bytes? as f64))
    });
    let name = "container_swap_limit_bytes";
    text.family((name, "gauge", "Swap that the container may use, where that is limited"), lines);
}

/// Files that a process may open; -1 is as many as it likes.
fn open_files_limit(pid: i32) -> Option<f64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/limits")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    match line.split_whitespace().next()? {
        "unlimited" => Some(-1.0),
        number => number.parse().ok(),
    }
}

/// One row of cgroup numbers with the labels that dashboards join on.
struct Row<'a> {
    container: &'a str,
    id: String,
    image: &'a str,
    name: &'a str,
    namespace: &'a str,
    pod: &'a str,
    usage: &'a GroupUsage,
    started_at: f64,
    disk_bytes: Option<u64>,
    interfaces: &'a [InterfaceUsage],
}

impl Row<'_> {
    fn labels(&self, more: &[(&str, &str)]) -> String {
        let mut pairs = vec![
            ("container", self.container),
            ("id", &*self.id),
            ("image", self.image),
            ("name", self.name),
            ("namespace", self.namespace),
            ("pod", self.pod),
        ];
        pairs.extend(more);
        pairs.sort_unstable();
        labels(&pairs)
    }
}

fn rows(usage: &Usage) -> Vec<Row<'_>> {
    let mut out = vec![Row {
        container: "",
        id: "/".into(),
        image: "",
        name: "",
        namespace: "",
        pod: "",
        usage: &usage.node.group,
        started_at: usage.node.booted.map_or(0.0, |at| at.as_second() as f64),
        disk_bytes: None,
        interfaces: &usage.node.interfaces,
    }];
    for pod in &usage.pods {
        out.push(Row {
            container: "",
            id: format!("/{}", pod.stats.cgroup),
            image: "",
            name: "",
            namespace: &pod.namespace,
            pod: &pod.name,
            usage: &pod.stats.usage,
            started_at: pod.created_at as f64 / 1e9,
            disk_bytes: None,
            interfaces: &pod.stats.interfaces,
        });
        out.extend(pod.containers.iter().map(|it| Row {
            container: &it.name,
            id: format!("/{}", it.stats.cgroup),
            image: &it.image,
            name: &it.stats.id,
            namespace: &pod.namespace,
            pod: &pod.name,
            usage: &it.stats.usage,
            started_at: it.started_at as f64 / 1e9,
            disk_bytes: it.stats.writable_layer.map(|disk| disk.bytes),
            interfaces: &[],
        }));
    }
    out
}

type Counter = fn(&InterfaceUsage) -> u64;

const NETWORK_FAMILIES: [(&str, Counter); 8] = [
    ("container_network_receive_bytes_total", |it| it.rx_bytes),
    ("container_network_receive_errors_total", |it| it.rx_errors),
    ("container_network_receive_packets_dropped_total", |it| it.rx_dropped),
    ("container_network_receive_packets_total", |it| it.rx_packets),
    ("container_network_transmit_bytes_total", |it| it.tx_bytes),
    ("container_network_transmit_errors_total", |it| it.tx_errors),
    ("container_network_transmit_packets_dropped_total", |it| it.tx_dropped),
    ("container_network_transmit_packets_total", |it| it.tx_packets),
];

/// Of the groups at these paths, in their order.
async fn details(groups: Vec<String>) -> Vec<Details> {
    let count = groups.len();
    let read = base::task::spawn_blocking(move || {
        let hierarchy = Hierarchy::detect().ok()?;
        Some(groups.iter().map(|path| hierarchy.group(path).details()).collect())
    });
    read.await.ok().flatten().unwrap_or_else(|| vec![Details::default(); count])
}

/// The cgroups' numbers under cAdvisor's names.
pub async fn cadvisor(node: &Node) -> String {
    let mut text = Text { out: String::new(), at: None };
    let help = "1 if there was an error while getting container metrics, 0 otherwise";
    let usage = match usage::read(node, true).await {
        Ok(usage) => usage,
        Err(error) => {
            tracing::warn!(error, "usage not read");
            text.family(("container_scrape_error", "gauge", help), [(String::new(), 1.0)]);
            return text.out;
        }
    };
    let rows = rows(&usage);
    let details = details(rows.iter().map(|row| row.id.clone()).collect()).await;
    text.at = Some(usage.at.as_millisecond());
    text.family(
        ("container_cpu_usage_seconds_total", "counter", "CPU time"),
        rows.iter().map(|row| (row.labels(&[("cpu", "total")]), row.usage.cpu_nanos as f64 / 1e9)),
    );
    let all: Vec<_> = rows.iter().zip(&details).collect();
    for Figure { name, is_counter, help, of } in &FIGURES {
        let lines =
            all.iter().filter_map(|(row, more)| Some((row.labels(&[]), of(row.usage, more)?)));
        text.family((name, if *is_counter { "counter" } else { "gauge" }, help), lines);
    }
    let disks: Vec<_> = all
        .iter()
        .flat_map(|(row, more)| more.disks.iter().map(move |disk| (*row, disk, disk.device())))
        .collect();
    for DiskFigure { name, help, of } in &DISK_FIGURES {
        let lines = disks
            .iter()
            .map(|(row, disk, device)| (row.labels(&[("device", device)]), of(disk) as f64));
        text.family((name, "counter", help), lines);
    }
    let operations = disks.iter().flat_map(|(row, disk, device)| {
        let (major, minor) = (disk.major.to_string(), disk.minor.to_string());
        [("Read", disk.read_bytes), ("Write", disk.written_bytes)].map(|(operation, bytes)| {
            let more = [
                ("device", &**device),
                ("major", &major),
                ("minor", &minor),
                ("operation", operation),
            ];
            (row.labels(&more), bytes as f64)
        })
    });
    text.family(
        (
            "container_blkio_device_usage_total",
            "counter",
            "Bytes read from and written to a device",
        ),
        operations,
    );
    let failures = rows.iter().flat_map(|row| {
        let faults =
            [("pgfault", row.usage.page_faults), ("pgmajfault", row.usage.major_page_faults)];
        faults.map(|(kind, count)| {
            (row.labels(&[("failure_type", kind), ("scope", "hierarchy")]), count as f64)
        })
    });
    text.family(("container_memory_failures_total", "counter", "Page faults"), failures);
    let layers =
        rows.iter().filter_map(|row| Some((row.labels(&[("device", "")]), row.disk_bytes? as f64)));
    text.family(("container_fs_usage_bytes", "gauge", "Bytes of the writable layer"), layers);
    if let Some(below) = usage::filesystem(&node.images.service.image_dir()) {
        for (name, help, value) in [
            ("container_fs_inodes_free", "Files that may still be made", below.inodes_free),
            ("container_fs_inodes_total", "Files that there may be", below.inodes),
            ("container_fs_limit_bytes", "Size of the file system", below.capacity_bytes),
        ] {
            let of_containers = rows.iter().filter(|row| row.disk_bytes.is_some());
            let lines = of_containers.map(|row| (row.labels(&[("device", "")]), value as f64));
            text.family((name, "gauge", help), lines);
        }
    }
    let limits = rows.iter().filter(|row| !row.name.is_empty()).filter_map(|row| {
        let limit = open_files_limit(node.observed.container(row.name)?.pid)?;
        Some((row.labels(&[("ulimit", "max_open_files")]), limit))
    });
    text.family(("container_ulimits_soft", "gauge", "What the first process may have"), limits);
    for (name, of) in NETWORK_FAMILIES {
        let lines = rows.iter().flat_map(|row| {
            row.interfaces.iter().map(|it| (row.labels(&[("interface", &it.name)]), of(it) as f64))
        });
        text.family((name, "counter", "Counter of the network interface"), lines);
    }
    text.family(
        ("container_start_time_seconds", "gauge", "When it was started, since the Unix epoch"),
        rows.iter().map(|row| (row.labels(&[]), row.started_at)),
    );
    let seen = usage.at.as_second() as f64;
    text.family(
        ("container_last_seen", "gauge", "When it was last looked at, since the Unix epoch"),
        rows.iter().map(|row| (row.labels(&[]), seen)),
    );
    text.at = None;
    text.family(("container_scrape_error", "gauge", help), [(String::new(), 0.0)]);
    let cores = std::thread::available_parallelism().map_or(1, usize::from) as f64;
    let info = &node.machine.info;
    let of_machine = labels(&[
        ("boot_id", &info.boot_id),
        ("machine_id", &info.machine_id),
        ("system_uuid", &info.system_uuid),
    ]);
    text.family(("machine_cpu_cores", "gauge", "Logical CPUs"), [(of_machine.clone(), cores)]);
    let bytes = usage.node.memory_total_bytes as f64;
    text.family(("machine_memory_bytes", "gauge", "Memory"), [(of_machine.clone(), bytes)]);
    let bytes = usage.node.swap_total_bytes as f64;
    text.family(("machine_swap_bytes", "gauge", "Swap"), [(of_machine, bytes)]);
    text.out
}

type OfDisk = fn(&Filesystem) -> u64;

const CLAIM_FAMILIES: [(&str, &str, OfDisk); 6] = [
    ("available_bytes", "Number of available bytes in the volume", |fs| fs.available_bytes),
    ("capacity_bytes", "Capacity in bytes of the volume", |fs| fs.capacity_bytes),
    ("inodes", "Maximum number of inodes in the volume", |fs| fs.inodes),
    ("inodes_free", "Number of free inodes in the volume", |fs| fs.inodes_free),
    ("inodes_used", "Number of used inodes in the volume", |fs| {
        fs.inodes.saturating_sub(fs.inodes_free)
    }),
    ("used_bytes", "Number of used bytes in the volume", |fs| fs.used_bytes),
];

/// How full the volumes are that claims stand for.
pub async fn claims(node: &Node) -> String {
    let mut text = Text { out: String::new(), at: None };
    let claims = usage::claims(node).await;
    for (name, help, of) in CLAIM_FAMILIES {
        let name = format!("kubelet_volume_stats_{name}");
        let lines = claims.iter().map(|((namespace, claim), fs)| {
            let labels = labels(&[("namespace", namespace), ("persistentvolumeclaim", claim)]);
            (labels, of(fs) as f64)
        });
        text.family((&name, "gauge", help), lines);
    }
    text.out
}

/// How large containers' logs are.
pub async fn logs(node: &Node) -> String {
    let mut text = Text { out: String::new(), at: None };
    let lines = usage::logs(node).await.into_iter().map(|((pod, container), bytes)| {
        let labels = labels(&[
            ("uid", pod.uid.as_str()),
            ("namespace", &pod.namespace),
            ("pod", &pod.name),
            ("container", &container),
        ]);
        (labels, bytes as f64)
    });
    let name = "kubelet_container_log_filesystem_used_bytes";
    text.family((name, "gauge", "Bytes that a container's logs take on the disk"), lines);
    text.out
}

/// How often probes were answered, and how long that took.
pub fn probes(counts: &Counts) -> String {
    let mut text = Text { out: String::new(), at: None };
    let mut totals = Vec::new();
    let mut durations = String::new();
    let name = "prober_probe_duration_seconds";
    for (key, count) in counts.all() {
        let base =
            [("container", &*key.container), ("namespace", &key.namespace), ("pod", &key.pod)];
        for (result, number) in count.results() {
            let mut pairs = base.to_vec();
            let kind = key.kind.title();
            pairs.extend([("pod_uid", &*key.uid), ("probe_type", kind), ("result", result)]);
            totals.push((labels(&pairs), number as f64));
        }
        let mut seen = 0;
        let mut line = |suffix: &str, more: Option<&str>, value: f64| {
            let mut pairs = base.to_vec();
            pairs.push(("probe_type", key.kind.title()));
            pairs.extend(more.map(|le| ("le", le)));
            let _ = writeln!(durations, "{name}_{suffix}{} {value}", labels(&pairs));
        };
        for (bound, number) in BUCKETS.iter().zip(count.buckets) {
            seen += number;
            line("bucket", Some(&bound.to_string()), seen as f64);
        }
        line("bucket", Some("+Inf"), count.total() as f64);
        line("sum", None, count.seconds);
        line("count", None, count.total() as f64);
    }
    if !durations.is_empty() {
        let _ = writeln!(text.out, "# HELP {name} How long probes took\n# TYPE {name} histogram");
        text.out.push_str(&durations);
    }
    text.family(("prober_probe_total", "counter", "Probes by result"), totals);
    text.out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_escaped() {
        assert_eq!(labels(&[("a", "x\"y\\z\n"), ("b", "")]), r#"{a="x\"y\\z\n",b=""}"#);
    }

    #[test]
    fn a_family_without_lines_is_not_shown() {
        let mut text = Text { out: String::new(), at: Some(5) };
        text.family(("none", "gauge", "x"), []);
        text.family(("one", "gauge", "x"), [(String::new(), 1.5)]);
        assert_eq!(text.out, "# HELP one x\n# TYPE one gauge\none 1.5 5\n");
    }
}
