//! How ill the zones of a cluster are, and how fast that lets pods be evicted. Pure.
//!
//! A few silent nodes are broken; many at once are more likely a network that is, and their
//! pods are best left alone (upstream, `Rate limits on eviction`).

use std::collections::HashMap;
use std::time::Duration;

use k8s_openapi::api::core::v1::Node;

use super::plan;

/// Between two nodes of a zone that evict (`node-eviction-rate`, 0.1 a second).
const INTERVAL: Duration = Duration::from_secs(10);
/// The same in a large zone that is partly ill (`secondary-node-eviction-rate`).
const INTERVAL_ILL: Duration = Duration::from_secs(100);
/// Percent of nodes not ready that make a zone ill (`unhealthy-zone-threshold`).
const ILL_PERCENT: usize = 55;
/// Fewer ill nodes make no zone ill.
const ILL_MIN: usize = 3;
/// Nodes in a zone above which it is large (`large-cluster-size-threshold`).
const LARGE: usize = 50;

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Count {
    ready: usize,
    down: usize,
}

impl Count {
    fn of(&mut self, node: &Node) -> &mut usize {
        match plan::condition(node, "Ready") {
            Some("True") => &mut self.ready,
            _ => &mut self.down,
        }
    }

    fn interval(self) -> Option<Duration> {
        let all = self.ready + self.down;
        if self.ready > 0 && self.down >= ILL_MIN && self.down * 100 >= all * ILL_PERCENT {
            return (all > LARGE).then_some(INTERVAL_ILL);
        }
        // A zone that is down as a whole is left at the usual rate: other zones take over.
        Some(INTERVAL)
    }
}

/// The nodes of each zone, counted as they change.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Zones(HashMap<String, Count>);

/// How a zone's pods may be evicted.
#[derive(Debug, PartialEq, Eq)]
pub enum Pace {
    /// A node each.
    Every(Duration),
    Halted,
    /// All nodes of the cluster are down: it is more likely that we are.
    AllDown,
}

impl Zones {
    /// A node is there now, is there as another one, or is gone.
    pub fn change(&mut self, old: Option<&Node>, new: Option<&Node>) {
        if let Some(old) = old {
            let zone = zone_of(old);
            if let Some(count) = self.0.get_mut(&zone) {
                *count.of(old) = count.of(old).saturating_sub(1);
                if count.ready + count.down == 0 {
                    self.0.remove(&zone);
                }
            }
        }
        if let Some(new) = new {
            *self.0.entry(zone_of(new)).or_default().of(new) += 1;
        }
    }

    /// Whether some zone's pods may be evicted at another pace than in `other`.
    pub fn differ(&self, other: &Self) -> bool {
        let pace = |zones: &Self, zone: &String| zones.pace_in(zone);
        let mut zones = self.0.keys().chain(other.0.keys());
        zones.any(|zone| pace(self, zone) != pace(other, zone))
    }

    pub fn all_down(&self) -> bool {
        !self.0.is_empty() && self.0.values().all(|count| count.ready == 0)
    }

    pub fn pace(&self, node: &Node) -> Pace {
        self.pace_in(&zone_of(node))
    }

    fn pace_in(&self, zone: &str) -> Pace {
        if self.all_down() {
            return Pace::AllDown;
        }
        let count = self.0.get(zone).copied().unwrap_or_default();
        count.interval().map_or(Pace::Halted, Pace::Every)
    }
}

/// Region and zone.
pub fn zone_of(node: &Node) -> String {
    let label = |key: &str| {
        let labels = node.metadata.labels.as_ref();
        labels.and_then(|labels| labels.get(key)).map(String::as_str).unwrap_or_default()
    };
    format!("{}:{}", label("topology.kubernetes.io/region"), label("topology.kubernetes.io/zone"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::sync::Arc;

    fn survey(nodes: &[Arc<Node>]) -> Zones {
        let mut zones = Zones::default();
        nodes.iter().for_each(|node| zones.change(None, Some(node)));
        zones
    }

    #[test]
    fn a_change_counts_where_the_pace_becomes_another() {
        let all = [nodes("a", 10, 0), nodes("b", 10, 0)].concat();
        let (before, mut now) = (survey(&all), survey(&all));
        let down = nodes("a", 0, 1);
        for up in &all[..5] {
            now.change(Some(up), Some(&down[0]));
            assert!(!now.differ(&before), "half are down at most");
        }
        now.change(Some(&all[5]), Some(&down[0]));
        assert!(now.differ(&before), "six of ten make the zone ill");
        (0..6).for_each(|at| now.change(Some(&down[0]), Some(&all[at])));
        assert_eq!(now, before);
        all.iter().for_each(|node| now.change(Some(node), None));
        assert_eq!(now, Zones::default());
    }

    fn nodes(zone: &str, ready: usize, down: usize) -> Vec<Arc<Node>> {
        let node = |status: &str| {
            Arc::new(
                serde_json::from_value(json!({
                    "metadata": {"name": "n", "labels": {"topology.kubernetes.io/zone": zone}},
                    "status": {"conditions": [{"type": "Ready", "status": status}]},
                }))
                .unwrap(),
            )
        };
        let ready = (0..ready).map(|_| node("True"));
        ready.chain((0..down).map(|_| node("Unknown"))).collect()
    }
}
