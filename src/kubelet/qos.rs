//! The cgroups of the two lower QoS classes: Burstable pods together weigh what they ask
//! for, BestEffort pods together weigh least.
//!
//! The cgroups of pods themselves are the runtime's.

use std::time::Instant;

use k8s_openapi::api::core::v1::Pod;
use sys::cgroup::{Hierarchy, Limits};
use tracing::warn;

use crate::config::{KubeletConfig, ReservedGroup};
use crate::node::Node;
use crate::quantity::ResourceList;
use crate::resources::{self, Qos};
use crate::{metrics, pod, quantity, resources::cpu_shares, usage};

/// What all pods of a class have together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Classes {
    burstable_shares: u64,
    /// Requested bytes of memory, where they are kept.
    guaranteed_bytes: i64,
    burstable_bytes: i64,
}

impl Classes {
    fn of<'a>(pods: impl Iterator<Item = &'a Pod>, keeps_requests: bool) -> Self {
        let (mut milli, mut guaranteed, mut burstable) = (0, 0, 0);
        for it in pods.filter(|it| !pod::is_terminal_phase(pod::phase(it))) {
            let bytes = match keeps_requests {
                true => resources::pod_request_milli(it, "memory") / 1000,
                false => 0,
            };
            match resources::qos(it) {
                Qos::Guaranteed => guaranteed += bytes,
                Qos::Burstable => {
                    burstable += bytes;
                    milli += resources::pod_request_milli(it, "cpu");
                }
                Qos::BestEffort => {}
            }
        }
        Self {
            burstable_shares: cpu_shares(milli),
            guaranteed_bytes: guaranteed,
            burstable_bytes: burstable,
        }
    }

    /// Limits by the name of the group below that of all pods, which is "". What is kept for a
    /// pod is kept for it by those above as well (cgroup v2, memory.min).
    fn limits(self, keeps_requests: bool) -> Vec<(&'static str, Limits)> {
        let kept = |files: &[(&str, i64)]| match keeps_requests {
            true => files.iter().map(|(file, it)| ((*file).to_owned(), it.to_string())).collect(),
            false => std::collections::BTreeMap::new(),
        };
        let group = |cpu_shares, unified| Limits { cpu_shares, unified, ..Limits::default() };
        let low = ("memory.low", self.burstable_bytes);
        let mut all = vec![
            ("burstable", group(self.burstable_shares, kept(&[low]))),
            ("besteffort", group(cpu_shares(0), kept(&[]))),
        ];
        if keeps_requests {
            all.push(("", group(0, kept(&[("memory.min", self.guaranteed_bytes), low]))));
        }
        all
    }
}

/// Sets the weights for the pods there are now. Only a change is written.
pub async fn update(node: &Node) {
    let pods = node.pods.list();
    let host = node.host();
    let keeps = host.has_unified_cgroups && host.memory_qos.is_some() && host.keeps_requests;
    let classes = Classes::of(pods.iter().filter(|it| !it.gone).map(|it| &*it.pod), keeps);
    if node.classes.lock().replace(classes) == Some(classes) {
        return;
    }
    let root = node.config.cgroup_root.clone();
    let begun = Instant::now();
    let written = base::task::spawn_blocking(move || -> std::io::Result<()> {
        let hierarchy = Hierarchy::detect()?;
        for (name, limits) in classes.limits(keeps) {
            let path = format!("{root}/{name}");
            let group = hierarchy.group(path.trim_end_matches('/'));
            group.create()?;
            group.apply(&limits)?;
        }
        Ok(())
    })
    .await;
    metrics::node::groups_updated(begun.elapsed());
    if let Ok(Err(error)) = written {
        // Pods still run, only with less exact weights.
        warn!(%error, "weights of the QoS classes not set");
        *node.classes.lock() = None;
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
    let begun = Instant::now();
    let errors = base::task::spawn_blocking(work).await.unwrap_or_default();
    metrics::node::groups_updated(begun.elapsed());
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
        assert_eq!(Classes::of(all.iter(), false).burstable_shares, 2048);
        assert_eq!(Classes::of(all[2..].iter(), false).burstable_shares, 2);
    }

    #[test]
    fn what_pods_ask_for_is_kept_by_the_groups_above_them() {
        let asks = |memory: &str, limits: serde_json::Value| {
            pod(json!({"containers": [{"name": "a", "resources": {
                "requests": {"cpu": "1", "memory": memory}, "limits": limits}}]}))
        };
        let sure = asks("64Mi", json!({"cpu": "1", "memory": "64Mi"}));
        let all = [sure, asks("3Mi", json!({})), asks("4Mi", json!({}))];
        let classes = Classes::of(all.iter(), true);
        let files = |keeps| -> Vec<(&str, Vec<(String, String)>)> {
            let of = |(name, limits): (&'static str, Limits)| {
                (name, limits.unified.into_iter().collect::<Vec<_>>())
            };
            classes.limits(keeps).into_iter().map(of).collect()
        };
        let file = |name: &str, mebibytes: u64| (name.to_owned(), (mebibytes << 20).to_string());
        assert_eq!(
            files(true),
            [
                ("burstable", vec![file("memory.low", 7)]),
                ("besteffort", vec![]),
                ("", vec![file("memory.low", 7), file("memory.min", 64)]),
            ]
        );
        assert_eq!(files(false), [("burstable", vec![]), ("besteffort", vec![])]);
        assert_eq!(Classes::of(all.iter(), false).guaranteed_bytes, 0);
    }
}
