//! What containers and pods use.

use super::{Container, Runtime, volumes};
use crate::cri::{ContainerStats, InterfaceUsage};
use crate::images::disk_below;

impl Runtime {
    pub(super) async fn stats_of(&self, entry: &Container, with_disk: bool) -> ContainerStats {
        let cgroup = entry.record.cgroup.clone();
        let group = self.cgroups.group(&cgroup);
        let state = self.container_dir(&entry.record.id);
        let id = entry.record.id.clone();
        let work = move || ContainerStats {
            id,
            cgroup,
            // A container that has just ended has no numbers.
            usage: group.usage().unwrap_or_default(),
            writable_layer: with_disk.then(|| {
                let mut sum = disk_below(&state.join("upper"));
                sum += volumes::disk_usage(&state);
                sum
            }),
        };
        base::task::spawn_blocking(work).await.unwrap_or_default()
    }
}

/// The interfaces of the namespace that a process (an id, or `self`) lives in, without
/// loopback.
pub fn interfaces_of(pid: &str) -> Vec<InterfaceUsage> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/net/dev")).unwrap_or_default();
    text.lines()
        .skip(2)
        .filter_map(|line| line.split_once(':'))
        .filter(|(name, _)| name.trim() != "lo")
        .map(|(name, row)| {
            let numbers: Vec<u64> = row.split_whitespace().filter_map(|n| n.parse().ok()).collect();
            let at = |index: usize| numbers.get(index).copied().unwrap_or(0);
            InterfaceUsage {
                name: name.trim().to_string(),
                rx_bytes: at(0),
                rx_packets: at(1),
                rx_errors: at(2),
                rx_dropped: at(3),
                tx_bytes: at(8),
                tx_packets: at(9),
                tx_errors: at(10),
                tx_dropped: at(11),
            }
        })
        .collect()
}
