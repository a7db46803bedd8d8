//! How ill the zones of a cluster are, and how fast that lets pods be evicted. Pure.
//!
//! A few silent nodes are broken; many at once are more likely a network that is, and their
//! pods are best left alone (upstream, `Rate limits on eviction`).

use std::collections::HashMap;
use std::time::Duration;

use k8s_openapi::api::core::v1::Node;

use super::plan;
use crate::config::Eviction;

/// Fewer ill nodes make no zone ill.
const ILL_MIN: usize = 3;
/// Rates that are lower let a node wait for this long: no timer is longer.
const INTERVAL_MAX: Duration = Duration::from_secs(24 * 3_600);

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

    /// Between two nodes that evict; none: nobody does.
    fn interval(self, how: &Eviction) -> Option<Duration> {
        let all = self.ready + self.down;
        let is_ill = self.ready > 0
            && self.down >= ILL_MIN
            && self.down as f64 / all as f64 >= how.ill_share;
        let rate = match is_ill {
            true if all > how.large => how.rate_ill,
            true => return None,
            // A zone that is down as a whole is left at the usual rate: other zones take over.
            false => how.rate,
        };
        let wait = (rate > 0.0).then(|| Duration::try_from_secs_f64(1.0 / rate));
        wait.map(|wait| wait.unwrap_or(INTERVAL_MAX).min(INTERVAL_MAX))
    }
}

/// The nodes of each zone, counted as they change.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct Zones {
    counts: HashMap<String, Count>,
    how: Eviction,
}

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
    pub fn new(how: Eviction) -> Self {
        Self { how, ..Self::default() }
    }

    /// A node is there now, is there as another one, or is gone.
    pub fn change(&mut self, old: Option<&Node>, new: Option<&Node>) {
        if let Some(old) = old {
            let zone = zone_of(old);
            if let Some(count) = self.counts.get_mut(&zone) {
                *count.of(old) = count.of(old).saturating_sub(1);
                if count.ready + count.down == 0 {
                    self.counts.remove(&zone);
                }
            }
        }
        if let Some(new) = new {
            *self.counts.entry(zone_of(new)).or_default().of(new) += 1;
        }
    }

    /// Whether some zone's pods may be evicted at another pace than in `other`.
    pub fn differ(&self, other: &Self) -> bool {
        let pace = |zones: &Self, zone: &String| zones.pace_in(zone);
        let mut zones = self.counts.keys().chain(other.counts.keys());
        zones.any(|zone| pace(self, zone) != pace(other, zone))
    }

    pub fn all_down(&self) -> bool {
        !self.counts.is_empty() && self.counts.values().all(|count| count.ready == 0)
    }

    pub fn pace(&self, node: &Node) -> Pace {
        self.pace_in(&zone_of(node))
    }

    fn pace_in(&self, zone: &str) -> Pace {
        if self.all_down() {
            return Pace::AllDown;
        }
        let count = self.counts.get(zone).copied().unwrap_or_default();
        count.interval(&self.how).map_or(Pace::Halted, Pace::Every)
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
