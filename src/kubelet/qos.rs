//! The cgroups of the two lower QoS classes: Burstable pods together weigh what they ask
//! for, BestEffort pods together weigh least.
//!
//! The cgroups of pods themselves are the runtime's.

use k8s_openapi::api::core::v1::Pod;
use sys::cgroup::{Hierarchy, Limits};
use tracing::warn;

use crate::config::{KubeletConfig, ReservedGroup};
use crate::node::Node;
use crate::quantity::ResourceList;
use crate::resources::{self, Qos};
use crate::{pod, quantity, resources::cpu_shares, usage};

/// CPU weight of all Burstable pods together.
fn burstable_shares<'a>(pods: impl Iterator<Item = &'a Pod>) -> u64 {
    let milli: i64 = pods
        .filter(|it| !pod::is_terminal_phase(pod::phase(it)))
        .filter(|it| resources::qos(it) == Qos::Burstable)
        .map(|it| resources::pod_request_milli(it, "cpu"))
        .sum();
    cpu_shares(milli)
}

/// Sets the weights for the pods there are now. Only a change is written.
pub async fn update(node: &Node) {
    let pods = node.pods.list();
    let shares = burstable_shares(pods.iter().filter(|it| !it.gone).map(|it| &*it.pod));
    if node.burstable_shares.swap(shares, std::sync::atomic::Ordering::AcqRel) == shares {
        return;
    }
    let root = node.config.cgroup_root.clone();
    let written = tokio::task::spawn_blocking(move || -> std::io::Result<()> {
        let hierarchy = Hierarchy::detect()?;
        for (name, shares) in [("burstable", shares), ("besteffort", cpu_shares(0))] {
            let group = hierarchy.group(&format!("{root}/{name}"));
            group.create()?;
            group.apply(&Limits { cpu_shares: shares, ..Limits::default() })?;
        }
        Ok(())
    })
    .await;
    if let Ok(Err(error)) = written {
        // Pods still run, only with less exact weights.
        warn!(%error, "weights of the QoS classes not set");
        node.burstable_shares.store(0, std::sync::atomic::Ordering::Release);
    }
}

/// The limits of all pods together: what is not reserved of what the machine has, and of as many
/// processes as it can have. None where nothing is reserved.
fn of_pods(config: &KubeletConfig, capacity: &ResourceList, processes: u64) -> Option<Limits> {
    let (cpu, memory) = (config.reserved_milli("cpu"), config.reserved_milli("memory"));
    let pids = config.reserved_milli("pid") / 1000;
    if !config.enforce_allocatable || (cpu == 0 && memory == 0 && pids == 0) {
        return None;
    }
    let processes = i64::try_from(processes).unwrap_or(i64::MAX);
    let capacity = |name: &str| quantity::milli_of(Some(capacity), name);
    Some(Limits {
        cpu_shares: cpu_shares(capacity("cpu") - cpu),
        memory_bytes: if memory > 0 { ((capacity("memory") - memory) / 1000).max(0) } else { 0 },
        pids: if pids > 0 { (processes - pids).max(1) } else { 0 },
        ..Limits::default()
    })
}

/// The limits of a group of the host: what is reserved for it.
fn of_reserved(group: &ReservedGroup) -> Limits {
    let milli = |name: &str| quantity::milli_of(Some(&group.amounts), name);
    let whole = |name: &str| if group.compressible_only { 0 } else { milli(name) / 1000 };
    Limits {
        cpu_shares: if milli("cpu") > 0 { cpu_shares(milli("cpu")) } else { 0 },
        memory_bytes: whole("memory"),
        pids: whole("pid"),
        ..Limits::default()
    }
}

/// Bounds all pods together by what is not reserved, and the host's own groups by what is.
/// Nothing is reserved unless somebody says so; then nothing is bounded.
pub async fn enforce_allocatable(node: &Node) {
    let config = &node.config;
    let (_, processes) = usage::processes();
    let pods = of_pods(config, &node.machine.capacity, processes);
    let pods = pods.map(|it| (config.cgroup_root.clone(), it));
    let host: Vec<_> =
        config.reserved_groups.iter().map(|it| (it.path.clone(), of_reserved(it))).collect();
    let work = move || -> Vec<String> {
        let hierarchy = match Hierarchy::detect() {
            Ok(hierarchy) => hierarchy,
            Err(error) => return vec![error.to_string()],
        };
        let pods = pods.into_iter().filter_map(|(path, limits)| {
            let group = hierarchy.group(&path);
            group.create().and_then(|()| group.apply(&limits)).err().map(|it| it.to_string())
        });
        // A group of the host is the host's to make.
        let host = host.into_iter().filter_map(|(path, limits)| {
            let group = hierarchy.group(&path);
            if !group.exists() {
                return Some(format!("\"/{path}\" cgroup doesn't exist"));
            }
            group.apply(&limits).err().map(|it| it.to_string())
        });
        pods.chain(host).collect()
    };
    let errors = tokio::task::spawn_blocking(work).await.unwrap_or_default();
    if errors.is_empty() && config.enforce_allocatable {
        let text = "Updated Node Allocatable limit across pods";
        node.recorder.normal(&node.reference(), "NodeAllocatableEnforced", text);
    }
    for error in errors {
        warn!(error, "what is reserved for the node is not kept from pods");
        let about = node.reference();
        let text = format!("Failed to update Node Allocatable Limits: {error}");
        node.recorder.warning(&about, "FailedNodeAllocatableEnforcement", text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::samples::pod;
    use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
    use serde_json::json;

    #[test]
    fn pods_and_the_host_are_bounded_by_what_is_reserved() {
        let list = |pairs: &[(&str, &str)]| -> ResourceList {
            pairs.iter().map(|(a, b)| ((*a).to_owned(), Quantity((*b).to_owned()))).collect()
        };
        let capacity = list(&[("cpu", "4"), ("memory", "8Gi")]);
        let mut config = crate::sandbox::samples::config();
        assert_eq!(of_pods(&config, &capacity, 4096), None);
        config.kube_reserved = list(&[("cpu", "500m")]);
        config.system_reserved = list(&[("cpu", "500m"), ("memory", "1Gi")]);
        let pods = of_pods(&config, &capacity, 4096).unwrap();
        assert_eq!((pods.cpu_shares, pods.memory_bytes, pods.pids), (3072, 7 << 30, 0));
        config.system_reserved = list(&[("pid", "1000")]);
        let pods = of_pods(&config, &capacity, 4096).unwrap();
        assert_eq!((pods.memory_bytes, pods.pids), (0, 3096));
        let group = |compressible_only| ReservedGroup {
            name: "system-reserved".into(),
            path: "system.slice".into(),
            amounts: list(&[("cpu", "500m"), ("memory", "1Gi"), ("pid", "1000")]),
            compressible_only,
        };
        let whole = of_reserved(&group(false));
        assert_eq!((whole.cpu_shares, whole.memory_bytes, whole.pids), (512, 1 << 30, 1000));
        let weight = of_reserved(&group(true));
        assert_eq!((weight.cpu_shares, weight.memory_bytes, weight.pids), (512, 0, 0));
    }

    #[test]
    fn burstable_pods_weigh_what_they_ask_for_together() {
        let asks = |cpu: &str| {
            pod(json!({"containers": [{"name": "a", "resources": {"requests": {"cpu": cpu}}}]}))
        };
        let best = pod(json!({"containers": [{"name": "a"}]}));
        let all = [asks("500m"), asks("1500m"), best];
        assert_eq!(burstable_shares(all.iter()), 2048);
        assert_eq!(burstable_shares(all[2..].iter()), 2);
    }
}
