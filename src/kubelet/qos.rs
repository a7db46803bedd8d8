//! The cgroups of the two lower QoS classes: Burstable pods together weigh what they ask
//! for, BestEffort pods together weigh least.
//!
//! The cgroups of pods themselves are the runtime's.

use k8s_openapi::api::core::v1::Pod;
use sys::cgroup::{Hierarchy, Limits};
use tracing::warn;

use crate::node::Node;
use crate::resources::{self, Qos};
use crate::{pod, quantity, resources::cpu_shares};

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

/// Bounds all pods together by what is not reserved. Nothing is reserved unless somebody
/// says so; then nothing is bounded.
pub async fn enforce_allocatable(node: &Node) {
    let config = &node.config;
    let reserved = |name: &str| {
        let all = [&config.kube_reserved, &config.system_reserved];
        all.into_iter().map(|list| quantity::milli_of(Some(list), name)).sum::<i64>()
    };
    let (cpu, memory) = (reserved("cpu"), reserved("memory"));
    if !config.enforce_allocatable || (cpu == 0 && memory == 0) {
        return;
    }
    let capacity = |name: &str| quantity::milli_of(Some(&node.machine.capacity), name);
    let limits = Limits {
        cpu_shares: cpu_shares(capacity("cpu") - cpu),
        memory_bytes: if memory > 0 { ((capacity("memory") - memory) / 1000).max(0) } else { 0 },
        ..Limits::default()
    };
    let root = config.cgroup_root.clone();
    let written = tokio::task::spawn_blocking(move || -> std::io::Result<()> {
        let group = Hierarchy::detect()?.group(&root);
        group.create()?;
        group.apply(&limits)
    })
    .await;
    if let Ok(Err(error)) = written {
        warn!(%error, "what is reserved for the node is not kept from pods");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::samples::pod;
    use serde_json::json;

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
