//! Usage of the node and its pods: the summary API and the metrics that autoscaling reads.
//!
//! Reads on demand; keeps nothing.

use std::collections::HashMap;
use std::fmt::Write;

use runtime::cri::{ContainerStats, CpuMemoryUsage, SandboxStats};
use serde_json::{Value, json};

use crate::machine::meminfo;
use crate::node::Node;
use crate::observed::{LABEL_CONTAINER_NAME, LABEL_POD_NAME, LABEL_POD_NAMESPACE, LABEL_POD_UID};

/// Sandbox statistics joined with the names of what they belong to.
struct Usage {
    pods: Vec<PodUsage>,
    node: CpuMemoryUsage,
    memory_available_bytes: i64,
}

struct PodUsage {
    name: String,
    namespace: String,
    uid: String,
    stats: SandboxStats,
    containers: Vec<(String, i64, ContainerStats)>,
}

async fn read(node: &Node) -> Result<Usage, String> {
    let stats = node.runtime.pod_sandbox_stats().await.map_err(|error| error.to_string())?;
    let sandboxes: HashMap<String, _> =
        node.observed.sandboxes().into_iter().map(|it| (it.id.clone(), it)).collect();
    let containers: HashMap<String, _> =
        node.observed.containers().into_iter().map(|it| (it.id.clone(), it)).collect();
    let mut pods = Vec::new();
    for sandbox in stats {
        let Some(known) = sandboxes.get(&sandbox.id) else { continue };
        let of = sandbox
            .containers
            .iter()
            .filter_map(|stats| {
                let it = containers.get(&stats.id)?;
                let name = it.labels.get(LABEL_CONTAINER_NAME).unwrap_or(&it.metadata.name);
                Some((name.clone(), it.started_at, stats.clone()))
            })
            .collect();
        pods.push(PodUsage {
            name: known.metadata.name.clone(),
            namespace: known.metadata.namespace.clone(),
            uid: known.metadata.uid.clone(),
            stats: sandbox,
            containers: of,
        });
    }
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let total = meminfo(&text, "MemTotal").unwrap_or(0);
    let available = meminfo(&text, "MemAvailable").unwrap_or(0);
    let used = u64::try_from(total.saturating_sub(available)).unwrap_or(0);
    let stat = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    Ok(Usage {
        pods,
        node: CpuMemoryUsage {
            cpu_usage_nanos: cpu_nanos(&stat),
            memory_working_set_bytes: used,
            memory_usage_bytes: used,
            memory_rss_bytes: u64::try_from(meminfo(&text, "AnonPages").unwrap_or(0)).unwrap_or(0),
        },
        memory_available_bytes: available,
    })
}

/// Time that all CPUs were busy, from /proc/stat's ticks of a hundredth of a second.
fn cpu_nanos(stat: &str) -> u64 {
    let Some(line) = stat.lines().find(|line| line.starts_with("cpu ")) else { return 0 };
    let ticks: Vec<u64> =
        line.split_whitespace().skip(1).filter_map(|it| it.parse().ok()).collect();
    // user, nice, system, idle, iowait, irq, softirq, steal
    let busy: u64 = [0, 1, 2, 5, 6, 7].iter().filter_map(|index| ticks.get(*index)).sum();
    busy.saturating_mul(10_000_000)
}

fn usage_json(usage: &CpuMemoryUsage, time: &str) -> (Value, Value) {
    (
        json!({"time": time, "usageCoreNanoSeconds": usage.cpu_usage_nanos}),
        json!({
            "time": time,
            "usageBytes": usage.memory_usage_bytes,
            "workingSetBytes": usage.memory_working_set_bytes,
            "rssBytes": usage.memory_rss_bytes,
        }),
    )
}

fn started(nanos: i64) -> String {
    jiff::Timestamp::from_nanosecond(i128::from(nanos)).map(base::time::rfc3339).unwrap_or_default()
}

/// `/stats/summary`
pub async fn summary(node: &Node) -> Result<Value, String> {
    let usage = read(node).await?;
    let time = base::time::rfc3339(base::time::now());
    let (cpu, mut memory) = usage_json(&usage.node, &time);
    memory["availableBytes"] = json!(usage.memory_available_bytes);
    let pods: Vec<Value> = usage
        .pods
        .iter()
        .map(|pod| {
            let (cpu, memory) = usage_json(&pod.stats.usage, &time);
            let containers: Vec<Value> = pod
                .containers
                .iter()
                .map(|(name, since, stats)| {
                    let (cpu, memory) = usage_json(&stats.usage, &time);
                    json!({
                        "name": name, "startTime": started(*since), "cpu": cpu, "memory": memory,
                        "rootfs": {"time": time, "usedBytes": stats.writable_layer_bytes},
                        "logs": {"time": time, "usedBytes": stats.log_bytes},
                    })
                })
                .collect();
            json!({
                "podRef": {"name": pod.name, "namespace": pod.namespace, "uid": pod.uid},
                "containers": containers, "cpu": cpu, "memory": memory,
                "network": {
                    "time": time, "name": "eth0",
                    "rxBytes": pod.stats.rx_bytes, "txBytes": pod.stats.tx_bytes,
                },
            })
        })
        .collect();
    let mut out = json!({
        "node": {"nodeName": node.config.node_name, "cpu": cpu, "memory": memory},
        "pods": pods,
    });
    if let Ok(stat) = rustix::fs::statvfs(&node.config.root_dir) {
        out["node"]["fs"] = json!({
            "time": time,
            "availableBytes": stat.f_bavail.saturating_mul(stat.f_frsize),
            "capacityBytes": stat.f_blocks.saturating_mul(stat.f_frsize),
            "usedBytes": stat.f_blocks.saturating_sub(stat.f_bfree).saturating_mul(stat.f_frsize),
            "inodes": stat.f_files,
            "inodesFree": stat.f_ffree,
        });
    }
    Ok(out)
}

/// `/metrics/resource` in the text format.
pub async fn resource_metrics(node: &Node) -> Result<String, String> {
    let usage = read(node).await?;
    let mut out = String::new();
    let at = base::time::now().as_millisecond();
    let mut family = |name: &str, kind: &str, lines: Vec<(String, f64)>| {
        // Writing to a String cannot fail.
        let _ = writeln!(out, "# TYPE {name} {kind}");
        for (labels, value) in lines {
            let _ = writeln!(out, "{name}{labels} {value} {at}");
        }
    };
    let seconds = |usage: &CpuMemoryUsage| usage.cpu_usage_nanos as f64 / 1e9;
    let working = |usage: &CpuMemoryUsage| usage.memory_working_set_bytes as f64;
    let of_pod =
        |pod: &PodUsage| format!("{{namespace=\"{}\",pod=\"{}\"}}", pod.namespace, pod.name);
    let of_container = |pod: &PodUsage, name: &str| {
        format!("{{container=\"{name}\",namespace=\"{}\",pod=\"{}\"}}", pod.namespace, pod.name)
    };
    let containers = |value: &dyn Fn(i64, &ContainerStats) -> f64| -> Vec<(String, f64)> {
        usage
            .pods
            .iter()
            .flat_map(|pod| {
                pod.containers
                    .iter()
                    .map(|(name, since, stats)| (of_container(pod, name), value(*since, stats)))
            })
            .collect()
    };
    family(
        "container_cpu_usage_seconds_total",
        "counter",
        containers(&|_, stats| seconds(&stats.usage)),
    );
    family(
        "container_memory_working_set_bytes",
        "gauge",
        containers(&|_, stats| working(&stats.usage)),
    );
    family("container_start_time_seconds", "gauge", containers(&|since, _| since as f64 / 1e9));
    family("node_cpu_usage_seconds_total", "counter", vec![(String::new(), seconds(&usage.node))]);
    family("node_memory_working_set_bytes", "gauge", vec![(String::new(), working(&usage.node))]);
    let pods = |value: &dyn Fn(&CpuMemoryUsage) -> f64| {
        usage.pods.iter().map(|pod| (of_pod(pod), value(&pod.stats.usage))).collect::<Vec<_>>()
    };
    family("pod_cpu_usage_seconds_total", "counter", pods(&seconds));
    family("pod_memory_working_set_bytes", "gauge", pods(&working));
    family("resource_scrape_error", "gauge", vec![(String::new(), 0.0)]);
    Ok(out)
}

/// `/runningpods/`: what runs, as the runtime knows it.
pub fn running_pods(node: &Node) -> Value {
    let mut pods: HashMap<String, Value> = HashMap::new();
    for container in node.observed.containers() {
        if container.pid == 0 {
            continue;
        }
        let label = |name: &str| container.labels.get(name).cloned().unwrap_or_default();
        let pod = pods.entry(label(LABEL_POD_UID)).or_insert_with(|| {
            json!({
                "metadata": {
                    "name": label(LABEL_POD_NAME),
                    "namespace": label(LABEL_POD_NAMESPACE),
                    "uid": label(LABEL_POD_UID),
                },
                "spec": {"containers": []},
                "status": {},
            })
        });
        if let Some(list) = pod.pointer_mut("/spec/containers").and_then(Value::as_array_mut) {
            list.push(json!({
                "name": label(LABEL_CONTAINER_NAME), "image": container.image_ref, "resources": {},
            }));
        }
    }
    let items: Vec<Value> = pods.into_values().collect();
    json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items})
}

#[cfg(test)]
mod tests {
    #[test]
    fn busy_time_leaves_idleness_out() {
        let stat = "cpu  1 2 3 1000 1000 4 5 6 0 0\ncpu0 9 9 9 9\n";
        assert_eq!(super::cpu_nanos(stat), 21 * 10_000_000);
        assert_eq!(super::cpu_nanos(""), 0);
    }
}
