//! Usage of the node and its pods as the summary API tells it, and what runs.
//!
//! Reads on demand; what is read, and how rates are made, is `usage.rs`'s.

use jiff::Timestamp;
use runtime::cri::{DiskUsage, GroupUsage, InterfaceUsage};
use serde_json::{Map, Value, json};
use sys::cgroup::{Pressure, Stall};

use crate::node::Node;
use crate::usage::{self, ContainerUsage, Filesystem, PodUsage, Usage};

fn started(nanos: i64) -> Value {
    Timestamp::from_nanosecond(i128::from(nanos))
        .map(base::time::rfc3339)
        .unwrap_or_default()
        .into()
}

/// Pressure stall information as upstream's summary has it.
fn psi(pressure: &Pressure) -> Value {
    let stall = |it: &Stall| {
        let [avg10, avg60, avg300] = it.shares.map(|share| f64::from(share) / 100.0);
        let total = it.total_micros.saturating_mul(1000);
        json!({"total": total, "avg10": avg10, "avg60": avg60, "avg300": avg300})
    };
    json!({"full": stall(&pressure.full), "some": stall(&pressure.some)})
}

fn io(usage: &GroupUsage, time: &str) -> Option<Value> {
    usage.stalled.io.as_ref().map(|pressure| json!({"time": time, "psi": psi(pressure)}))
}

fn cpu(usage: &GroupUsage, nano_cores: Option<u64>, time: &str) -> Value {
    let mut out = json!({"time": time, "usageCoreNanoSeconds": usage.cpu_nanos});
    if let Some(rate) = nano_cores {
        out["usageNanoCores"] = json!(rate);
    }
    if let Some(pressure) = &usage.stalled.cpu {
        out["psi"] = psi(pressure);
    }
    out
}

fn memory(usage: &GroupUsage, available: Option<u64>, time: &str) -> Value {
    let mut out = json!({
        "time": time,
        "usageBytes": usage.memory_bytes,
        "workingSetBytes": usage.memory_working_set_bytes,
        "rssBytes": usage.memory_rss_bytes,
        "pageFaults": usage.page_faults,
        "majorPageFaults": usage.major_page_faults,
    });
    let limit = usage.memory_limit_bytes;
    let left = limit.map(|limit| limit.saturating_sub(usage.memory_working_set_bytes));
    if let Some(bytes) = available.or(left) {
        out["availableBytes"] = json!(bytes);
    }
    if let Some(pressure) = &usage.stalled.memory {
        out["psi"] = psi(pressure);
    }
    out
}

fn swap(usage: &GroupUsage, available: Option<u64>, time: &str) -> Option<Value> {
    let used = usage.swap_bytes?;
    let mut out = json!({"time": time, "swapUsageBytes": used});
    if let Some(bytes) = available {
        out["swapAvailableBytes"] = json!(bytes);
    }
    Some(out)
}

fn network(interfaces: &[InterfaceUsage], default: &str, time: &str) -> Option<Value> {
    let one = |it: &InterfaceUsage| {
        json!({
            "name": it.name, "rxBytes": it.rx_bytes, "rxErrors": it.rx_errors,
            "txBytes": it.tx_bytes, "txErrors": it.tx_errors,
        })
    };
    let main = interfaces.iter().find(|it| it.name == default).or(interfaces.first())?;
    let mut out = one(main);
    out["time"] = json!(time);
    out["interfaces"] = interfaces.iter().map(one).collect();
    Some(out)
}

/// A file system, of which `used` belongs to what is spoken of.
fn disk(fs: Option<Filesystem>, used: DiskUsage, time: &str) -> Value {
    let mut out = json!({"time": time, "usedBytes": used.bytes, "inodesUsed": used.inodes});
    if let Some(fs) = fs {
        out["availableBytes"] = json!(fs.available_bytes);
        out["capacityBytes"] = json!(fs.capacity_bytes);
        out["inodes"] = json!(fs.inodes);
        out["inodesFree"] = json!(fs.inodes_free);
    }
    out
}

fn whole(fs: Filesystem) -> DiskUsage {
    DiskUsage { bytes: fs.used_bytes, inodes: fs.inodes.saturating_sub(fs.inodes_free) }
}

/// Only what was asked for of the disk appears.
struct Disks {
    node: Option<Filesystem>,
    image: Option<Filesystem>,
    logs: Option<Filesystem>,
}

fn container(it: &ContainerUsage, disks: Option<&Disks>, time: &str) -> Value {
    let usage = &it.stats.usage;
    let mut out = json!({
        "name": it.name,
        "startTime": started(it.started_at),
        "cpu": cpu(usage, it.cpu_nano_cores, time),
        "memory": memory(usage, None, time),
    });
    if let Some(swap) = swap(usage, None, time) {
        out["swap"] = swap;
    }
    if let Some(io) = io(usage, time) {
        out["io"] = io;
    }
    if let (Some(disks), Some(layer)) = (disks, it.stats.writable_layer) {
        out["rootfs"] = disk(disks.image, layer, time);
        out["logs"] = disk(disks.logs, it.logs.unwrap_or_default(), time);
    }
    out
}

fn pod(it: &PodUsage, disks: Option<&Disks>, time: &str) -> Value {
    let usage = &it.stats.usage;
    let containers: Vec<Value> =
        it.containers.iter().map(|it| container(it, disks, time)).collect();
    let mut out = json!({
        "podRef": {"name": it.name, "namespace": it.namespace, "uid": it.uid},
        "startTime": started(it.created_at),
        "containers": containers,
        "cpu": cpu(usage, it.cpu_nano_cores, time),
        "memory": memory(usage, None, time),
    });
    if let Some(swap) = swap(usage, None, time) {
        out["swap"] = swap;
    }
    if let Some(io) = io(usage, time) {
        out["io"] = io;
    }
    let Some(disks) = disks else { return out };
    if let Some(network) = network(&it.stats.interfaces, "eth0", time) {
        out["network"] = network;
    }
    let volumes: Vec<Value> = it
        .volumes
        .iter()
        .map(|volume| {
            let mut out = disk(volume.of, volume.used, time);
            out["name"] = json!(volume.name);
            if let Some((namespace, name)) = &volume.claim {
                out["pvcRef"] = json!({"name": name, "namespace": namespace});
            }
            out
        })
        .collect();
    if !volumes.is_empty() {
        out["volume"] = volumes.into();
    }
    out["ephemeral-storage"] = disk(disks.node, it.ephemeral_storage(), time);
    out["process_stats"] = json!({"process_count": usage.processes});
    out
}

fn node_stats(node: &Node, usage: &Usage, disks: Option<&Disks>, image: DiskUsage) -> Value {
    let time = base::time::rfc3339(usage.at);
    let it = &usage.node;
    let mut out = Map::new();
    out.insert("nodeName".into(), json!(node.config.node_name));
    if let Some(booted) = it.booted {
        out.insert("startTime".into(), json!(base::time::rfc3339(booted)));
    }
    out.insert("cpu".into(), cpu(&it.group, it.cpu_nano_cores, &time));
    out.insert("memory".into(), memory(&it.group, Some(it.memory_available_bytes), &time));
    let swap_left = it.swap_total_bytes.saturating_sub(it.group.swap_bytes.unwrap_or(0));
    if let Some(swap) = swap(&it.group, Some(swap_left), &time) {
        out.insert("swap".into(), swap);
    }
    if let Some(io) = io(&it.group, &time) {
        out.insert("io".into(), io);
    }
    let system = it.system.iter().map(|it| {
        let mut out = json!({
            "name": it.name,
            "cpu": cpu(&it.group, it.cpu_nano_cores, &time),
            "memory": memory(&it.group, None, &time),
        });
        if let Some(started) = it.started {
            out["startTime"] = json!(base::time::rfc3339(started));
        }
        if let Some(swap) = swap(&it.group, None, &time) {
            out["swap"] = swap;
        }
        if let Some(io) = io(&it.group, &time) {
            out["io"] = io;
        }
        out
    });
    out.insert("systemContainers".into(), system.collect());
    let Some(disks) = disks else { return Value::Object(out) };
    if let Some(network) = network(&it.interfaces, &it.default_interface, &time) {
        out.insert("network".into(), network);
    }
    if let Some(fs) = disks.node {
        out.insert("fs".into(), disk(Some(fs), whole(fs), &time));
    }
    let of_images = disk(disks.image, image, &time);
    out.insert("runtime".into(), json!({"imageFs": of_images, "containerFs": of_images}));
    out.insert(
        "rlimit".into(),
        json!({"time": time, "maxpid": it.processes_max, "curproc": it.processes}),
    );
    Value::Object(out)
}

/// `/stats/summary`; with `only_cpu_and_memory` no file is looked at.
///
/// # Errors
/// What the runtime says when it cannot be read.
pub async fn summary(node: &Node, only_cpu_and_memory: bool) -> Result<Value, String> {
    let usage = usage::read(node, !only_cpu_and_memory).await?;
    let time = base::time::rfc3339(usage.at);
    let (disks, image) = if only_cpu_and_memory {
        (None, DiskUsage::default())
    } else {
        let (bytes, dir) =
            node.images.service.image_fs_usage().await.map_err(|error| error.to_string())?;
        let image = usage::filesystem(&dir);
        let inodes = image.map_or(0, |fs| fs.inodes.saturating_sub(fs.inodes_free));
        let disks = Disks {
            node: usage::filesystem(&node.config.root_dir),
            image,
            logs: usage::filesystem(&node.config.pod_log_dir),
        };
        (Some(disks), DiskUsage { bytes, inodes })
    };
    let pods: Vec<Value> = usage.pods.iter().map(|it| pod(it, disks.as_ref(), &time)).collect();
    Ok(json!({"node": node_stats(node, &usage, disks.as_ref(), image), "pods": pods}))
}

/// `/runningpods/`: what runs, as the runtime knows it.
pub fn running_pods(node: &Node) -> Value {
    let items: Vec<Value> = usage::running(node)
        .into_iter()
        .map(|pod| {
            let containers: Vec<Value> = pod
                .containers
                .into_iter()
                .map(|(name, image)| json!({"name": name, "image": image, "resources": {}}))
                .collect();
            json!({
                "metadata": {"name": pod.name, "namespace": pod.namespace, "uid": pod.uid},
                "spec": {"containers": containers}, "status": {},
            })
        })
        .collect();
    json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items})
}
