//! Gives every node a network for its pods out of the cluster's.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use client::cache::{Cache, Key};
use client::recorder::reference;
use client::{Patch, Queue};
use k8s_openapi::api::core::v1::Node;
use serde_json::json;
use tracing::warn;

use crate::harness::{Context, Doing, Settled};
use crate::owner::name;

/// Sizes of node networks (upstream, `node-cidr-mask-size`).
const PREFIX_V4: u8 = 24;
const PREFIX_V6: u8 = 64;

/// A network that node networks are cut from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    base: u128,
    prefix: u8,
    is_v6: bool,
}

impl Range {
    pub fn parse(text: &str) -> Option<Self> {
        let (address, prefix) = text.trim().split_once('/')?;
        let prefix: u8 = prefix.parse().ok()?;
        let (bits, is_v6) = match address.parse::<IpAddr>().ok()? {
            IpAddr::V4(address) => (u128::from(u32::from(address)), false),
            IpAddr::V6(address) => (u128::from(address), true),
        };
        let width = if is_v6 { 128 } else { 32 };
        if prefix > width {
            return None;
        }
        let host_bits = u32::from(width - prefix);
        let base = bits.checked_shr(host_bits).unwrap_or(0).checked_shl(host_bits).unwrap_or(0);
        Some(Self { base, prefix, is_v6 })
    }

    /// The range of one address.
    pub fn of_address(text: &str) -> Option<Self> {
        let width = if text.contains(':') { 128 } else { 32 };
        Self::parse(&format!("{text}/{width}"))
    }

    fn width(&self) -> u8 {
        if self.is_v6 { 128 } else { 32 }
    }

    fn node_prefix(&self) -> u8 {
        self.prefix.max(if self.is_v6 { PREFIX_V6 } else { PREFIX_V4 })
    }

    /// Addresses in the network, less one.
    fn last_offset(&self, prefix: u8) -> u128 {
        let host_bits = u32::from(self.width() - prefix);
        1u128.checked_shl(host_bits).map_or(u128::MAX, |size| size - 1)
    }

    pub fn overlaps(&self, other: &Self) -> bool {
        self.is_v6 == other.is_v6
            && self.base <= other.base.saturating_add(other.last_offset(other.prefix))
            && other.base <= self.base.saturating_add(self.last_offset(self.prefix))
    }

    /// The first node network that overlaps none of `taken`.
    fn free(&self, taken: &[Range]) -> Option<Self> {
        let prefix = self.node_prefix();
        let step = self.last_offset(prefix).checked_add(1)?;
        let end = self.base.saturating_add(self.last_offset(self.prefix));
        let mut base = self.base;
        while base <= end {
            let candidate = Self { base, prefix, is_v6: self.is_v6 };
            let Some(other) = taken.iter().find(|other| candidate.overlaps(other)) else {
                return Some(candidate);
            };
            // Jump behind whatever is in the way.
            let behind = other.base.saturating_add(other.last_offset(other.prefix));
            base = behind.max(base.saturating_add(step - 1)).checked_add(1)?;
            base = self.base + (base - self.base).div_ceil(step) * step;
        }
        None
    }
}

impl std::fmt::Display for Range {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.is_v6 {
            write!(f, "{}/{}", Ipv6Addr::from(self.base), self.prefix)
        } else {
            // A v4 range never has more bits.
            let bits = u32::try_from(self.base).unwrap_or(u32::MAX);
            write!(f, "{}/{}", Ipv4Addr::from(bits), self.prefix)
        }
    }
}

pub async fn run(context: Context) {
    let mut ranges = Vec::new();
    for text in &context.config.cluster_cidrs {
        match Range::parse(text) {
            Some(range) => ranges.push(range),
            None => warn!(cidr = text, "not a network; nodes get none from it"),
        }
    }
    if ranges.is_empty() {
        return;
    }
    let nodes: Cache<Node> = context.shared.cache();
    if context.drain.until(nodes.synced()).await.is_none() {
        return;
    }
    let queue: Queue<Key> = Queue::named("node_ipam_controller");
    let again = queue.clone();
    let all = nodes.clone();
    nodes.on_change(move |old, new: Option<&Arc<Node>>| match (old, new) {
        (_, Some(node)) if networks(node).is_empty() => {
            again.add((String::new(), name(&node.metadata).to_string()));
        }
        // A network has become free: whoever got none tries again.
        (Some(_), None) => {
            for node in all.list().iter().filter(|node| networks(node).is_empty()) {
                again.add((String::new(), name(&node.metadata).to_string()));
            }
        }
        (_, _) => {}
    });
    // Written and perhaps not yet in the cache. One worker, so no race.
    let recent = parking_lot::Mutex::new(HashMap::<String, Vec<String>>::new());
    let sync = |(_, key): Key| {
        let (context, nodes, ranges, recent) = (&context, &nodes, &ranges, &recent);
        async move {
            let Some(node) = nodes.get("", &key) else {
                recent.lock().remove(&key);
                return Ok(());
            };
            if !networks(&node).is_empty() {
                return Ok(());
            }
            let chosen = {
                let mut recent = recent.lock();
                recent.retain(|name, _| nodes.get("", name).is_some());
                let all = nodes.list();
                let held = all.iter().flat_map(|node| networks(node).to_vec());
                let taken: Vec<Range> = held
                    .chain(recent.iter().filter(|(n, _)| **n != key).flat_map(|(_, n)| n.clone()))
                    .filter_map(|text| Range::parse(&text))
                    .collect();
                let chosen: Option<Vec<String>> =
                    ranges.iter().map(|r| Some(r.free(&taken)?.to_string())).collect();
                if let Some(chosen) = &chosen {
                    recent.insert(key.clone(), chosen.clone());
                }
                chosen
            };
            let Some(chosen) = chosen else {
                let text = format!("Node {key} status is now: CIDRNotAvailable");
                context.recorder.normal(&reference(&*node), "CIDRNotAvailable", text);
                return Ok(());
            };
            let patch = json!({
                "metadata": {"resourceVersion": node.metadata.resource_version},
                "spec": {"podCIDR": chosen[0], "podCIDRs": chosen},
            });
            let answer = context.client.all::<Node>().patch(&key, &Patch::Merge(patch)).await;
            answer.doing(|| "give the node its network".into()).or_gone()
        }
    };
    context.work(&queue, 1, sync).await;
}

fn networks(node: &Node) -> &[String] {
    let spec = node.spec.as_ref();
    spec.and_then(|s| {
        s.pod_cidrs.as_deref().or(s.pod_cidr.as_slice().first().map(std::slice::from_ref))
    })
    .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(range: &str, taken: &[&str], want: Option<&str>) {
        let taken: Vec<Range> = taken.iter().filter_map(|text| Range::parse(text)).collect();
        let free = Range::parse(range).unwrap().free(&taken).map(|free| free.to_string());
        assert_eq!(free.as_deref(), want, "{range}");
    }

    #[test]
    fn nodes_get_the_first_free_network() {
        check("10.42.0.0/16", &[], Some("10.42.0.0/24"));
        check("10.42.0.0/16", &["10.42.0.0/24", "10.42.2.0/24"], Some("10.42.1.0/24"));
        check("10.42.0.0/16", &["10.42.0.0/22"], Some("10.42.4.0/24"));
        check("10.42.0.0/23", &["10.42.0.0/24", "10.42.1.0/24"], None);
        check("10.42.0.0/26", &[], Some("10.42.0.0/26"));
        check("fd00:42::/48", &["fd00:42::/64"], Some("fd00:42:0:1::/64"));
        assert_eq!(Range::parse("10.42.0.0/40"), None);
    }
}
