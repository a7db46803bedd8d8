//! What nodes say of the processor time and memory that they and their pods use, in the form of a
//! kubelet's `/metrics/resource`: a part of what the containers ask for, and a little beside.

use std::collections::HashMap;
use std::fmt::Write;
use std::sync::Arc;

use jiff::Timestamp;
use parking_lot::Mutex;

use crate::pod::{Seen, Use};

/// What a node uses for itself.
const OWN: Use = Use { nanocores: 100_000_000, memory_bytes: 512 << 20 };

/// Processor time of nodes so far, which never becomes less, in seconds, and until when.
/// Bound: the nodes of this process.
#[derive(Default)]
pub struct Meter(Mutex<HashMap<u32, (Timestamp, f64)>>);

fn seconds(from: Timestamp, to: Timestamp) -> f64 {
    to.duration_since(from).as_secs_f64().max(0.0)
}

impl Meter {
    /// What node `number` says at `now` with these pods, which use `percent` of what they ask.
    pub fn tell(&self, number: u32, pods: &[Arc<Seen>], percent: u32, now: Timestamp) -> String {
        let part = |whole: u64| whole.saturating_mul(percent.into()) / 100;
        let used = |asked: Use| Use {
            nanocores: part(asked.nanocores),
            memory_bytes: part(asked.memory_bytes),
        };
        let mut all = OWN;
        let mut rows = Vec::new();
        for pod in pods {
            let Some(since) = pod.since else { continue };
            for (container, asked) in pod.running() {
                let used = used(asked);
                all.nanocores = all.nanocores.saturating_add(used.nanocores);
                all.memory_bytes = all.memory_bytes.saturating_add(used.memory_bytes);
                let labels = format!(
                    "{{container=\"{container}\",namespace=\"{}\",pod=\"{}\"}}",
                    pod.namespace, pod.name
                );
                let cpu = seconds(since, now) * used.nanocores as f64 / 1e9;
                rows.push((labels, cpu, used.memory_bytes, since.as_second()));
            }
        }
        let mut known = self.0.lock();
        let (until, spent) = known.entry(number).or_insert((now, 0.0));
        *spent += seconds(*until, now) * all.nanocores as f64 / 1e9;
        *until = now;
        write(*spent, all.memory_bytes, &rows, now.as_millisecond())
    }
}

fn write(node_seconds: f64, node_memory: u64, rows: &[(String, f64, u64, i64)], at: i64) -> String {
    let mut out = String::new();
    let mut family = |name: &str, kind: &str, help: &str| {
        // Writing to a String cannot fail.
        let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
        match name {
            "node_cpu_usage_seconds_total" => {
                let _ = writeln!(out, "{name} {node_seconds} {at}");
            }
            "node_memory_working_set_bytes" => {
                let _ = writeln!(out, "{name} {node_memory} {at}");
            }
            "scrape_error" => {
                let _ = writeln!(out, "{name} 0");
            }
            _ => {
                for (labels, cpu, memory, since) in rows {
                    let _ = match name {
                        "container_cpu_usage_seconds_total" => {
                            writeln!(out, "{name}{labels} {cpu} {at}")
                        }
                        "container_memory_working_set_bytes" => {
                            writeln!(out, "{name}{labels} {memory} {at}")
                        }
                        _ => writeln!(out, "{name}{labels} {since}"),
                    };
                }
            }
        }
    };
    family("container_cpu_usage_seconds_total", "counter", "CPU time of the container");
    family("container_memory_working_set_bytes", "gauge", "Working set of the container");
    family("container_start_time_seconds", "gauge", "When it was started, since the Unix epoch");
    family("node_cpu_usage_seconds_total", "counter", "CPU time of the node");
    family("node_memory_working_set_bytes", "gauge", "Working set of the node");
    family("scrape_error", "gauge", "1 if there was an error");
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::Pod;
    use serde_json::json;

    fn pod(phase: &str) -> Arc<Seen> {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "n", "uid": "u"},
            "spec": {"nodeName": "hollow-1",
                "initContainers": [{"name": "before"}, {"name": "beside", "restartPolicy": "Always"}],
                "containers": [{"name": "c",
                    "resources": {"requests": {"cpu": "200m", "memory": "64Mi"}}}]},
            "status": {"phase": phase, "startTime": "2026-01-01T00:00:00Z"},
        }))
        .unwrap();
        Arc::new(Seen::of(&crate::tests::config(), &pod).unwrap())
    }

    fn value(text: &str, line: &str) -> f64 {
        let found = text.lines().find_map(|it| it.strip_prefix(line)?.strip_prefix(' '));
        let found = found.unwrap_or_else(|| panic!("{line} in {text}"));
        found.split(' ').next().unwrap().parse().unwrap()
    }

    #[test]
    fn containers_use_a_part_of_what_they_ask_and_nodes_all_of_it() {
        let meter = Meter::default();
        let at = |second: i64| Timestamp::from_second(1_767_225_600 + second).unwrap();
        let first = meter.tell(1, &[pod("Running")], 50, at(10));
        let c = "{container=\"c\",namespace=\"n\",pod=\"p\"}";
        let cpu = format!("container_cpu_usage_seconds_total{c}");
        assert_eq!(value(&first, &cpu), 1.0);
        let memory = format!("container_memory_working_set_bytes{c}");
        assert_eq!(value(&first, &memory), (32 << 20) as f64);
        assert_eq!(value(&first, &format!("container_start_time_seconds{c}")), 1_767_225_600.0);
        assert!(first.contains("container=\"beside\"") && !first.contains("\"before\""));
        let second = meter.tell(1, &[pod("Running")], 50, at(20));
        assert_eq!(value(&second, &cpu), 2.0);
        // 100m of its own, 100m and 5m of its containers, for ten seconds.
        let node = "node_cpu_usage_seconds_total";
        let spent = value(&second, node) - value(&first, node);
        assert!((spent - 2.05).abs() < 1e-6, "{spent}");
        // What ended uses nothing, and the node's time does not go back.
        let third = meter.tell(1, &[pod("Succeeded")], 50, at(30));
        assert!(!third.contains("container=\"c\""), "{third}");
        assert!(value(&third, node) > value(&second, node));
    }
}
