//! Gives every node a network for its pods out of the cluster's.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use client::cache::{Cache, Key};
use client::recorder::reference;
use client::{Patch, Queue};
use k8s_openapi::api::core::v1::Node;
use parking_lot::Mutex;
use serde_json::json;
use tracing::warn;

use crate::harness::{Context, Doing, Settled};
use crate::owner::name;

/// Who holds the networks of services: no node is called so.
const SERVICES: &str = "";

/// A network that node networks are cut from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Range {
    is_v6: bool,
    base: u128,
    prefix: u8,
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

    /// `sizes`: of node networks, of IPv4 and of IPv6.
    fn node_prefix(&self, (v4, v6): (u8, u8)) -> u8 {
        self.prefix.max(if self.is_v6 { v6.min(128) } else { v4.min(32) })
    }

    /// Addresses in the network, less one.
    fn last_offset(&self, prefix: u8) -> u128 {
        let host_bits = u32::from(self.width() - prefix);
        1u128.checked_shl(host_bits).map_or(u128::MAX, |size| size - 1)
    }

    pub fn overlaps(&self, other: &Self) -> bool {
        self.is_v6 == other.is_v6 && self.base <= other.last() && other.base <= self.last()
    }

    fn last(&self) -> u128 {
        self.base.saturating_add(self.last_offset(self.prefix))
    }
}

/// The networks that nodes have, by node, and in order.
#[derive(Default)]
struct Held {
    by_node: HashMap<String, Vec<Range>>,
    /// How many nodes have each; two may, where somebody gave them away by hand.
    ranges: BTreeMap<Range, usize>,
}

impl Held {
    fn set(&mut self, node: &str, ranges: Vec<Range>) {
        self.remove(node);
        for range in &ranges {
            *self.ranges.entry(*range).or_default() += 1;
        }
        self.by_node.insert(node.to_owned(), ranges);
    }

    fn remove(&mut self, node: &str) {
        for range in self.by_node.remove(node).into_iter().flatten() {
            if let Some(count) = self.ranges.get_mut(&range) {
                *count -= 1;
                if *count == 0 {
                    self.ranges.remove(&range);
                }
            }
        }
    }

    /// The first node network of `range` that overlaps none that is held.
    fn free(&self, range: &Range, sizes: (u8, u8)) -> Option<Range> {
        let prefix = range.node_prefix(sizes);
        let step = range.last_offset(prefix).checked_add(1)?;
        let mut next = Range { prefix, ..*range };
        // In the order of where they begin: what lies before `next` has been passed.
        for other in self.ranges.keys().filter(|other| range.overlaps(other)) {
            if next.last() < other.base {
                break;
            }
            if next.overlaps(other) {
                let behind = other.last().checked_add(1)? - range.base;
                next.base = range.base.checked_add(behind.div_ceil(step).checked_mul(step)?)?;
            }
        }
        (next.last() <= range.last()).then_some(next)
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
    let (again, all) = (queue.clone(), nodes.clone());
    let held = Arc::new(Mutex::new(Held::default()));
    let services = &context.config.service_cidrs;
    held.lock().set(SERVICES, services.iter().filter_map(|text| Range::parse(text)).collect());
    let sizes = context.config.node_cidr_sizes;
    let seen = held.clone();
    nodes.on_change(move |old, new: Option<&Arc<Node>>| match (old, new) {
        (_, Some(node)) if networks(node).is_empty() => {
            // What it was given just now is not in the cache, perhaps: it keeps that.
            again.add((String::new(), name(&node.metadata).to_string()));
        }
        (_, Some(node)) => seen.lock().set(name(&node.metadata), ranges_of(node)),
        // A network has become free: whoever got none tries again.
        (Some(node), None) => {
            seen.lock().remove(name(&node.metadata));
            for node in all.list().iter().filter(|node| networks(node).is_empty()) {
                again.add((String::new(), name(&node.metadata).to_string()));
            }
        }
        (None, None) => {}
    });
    let sync = |(_, key): Key| {
        let (context, nodes, ranges, held) = (&context, &nodes, &ranges, &held);
        async move {
            let Some(node) = nodes.get("", &key) else { return Ok(()) };
            if !networks(&node).is_empty() {
                return Ok(());
            }
            // One worker, so no race.
            let Some(chosen) = choose(&mut held.lock(), &key, ranges, sizes) else {
                let text = format!("Node {key} status is now: CIDRNotAvailable");
                context.recorder.normal(&reference(&*node), "CIDRNotAvailable", text);
                return Ok(());
            };
            let patch = json!({
                "metadata": {"resourceVersion": node.metadata.resource_version},
                "spec": {"podCIDR": chosen[0], "podCIDRs": chosen},
            });
            let answer = context.client.all::<Node>().patch(&key, &Patch::Merge(patch)).await;
            if answer.as_ref().is_err_and(|err| !err.is_not_found() && !err.is_conflict()) {
                let text = format!("Node {key} status is now: CIDRAssignmentFailed");
                context.recorder.normal(&reference(&*node), "CIDRAssignmentFailed", text);
            }
            answer.doing(|| "give the node its network".into()).or_gone()
        }
    };
    context.work(&queue, 1, sync).await;
}

/// A network of each range for a node that has none yet; it holds them from now on.
fn choose(held: &mut Held, node: &str, ranges: &[Range], sizes: (u8, u8)) -> Option<Vec<String>> {
    held.remove(node);
    let free = |range: &Range| held.free(range, sizes);
    let chosen: Vec<Range> = ranges.iter().map(free).collect::<Option<_>>()?;
    let told = chosen.iter().map(ToString::to_string).collect();
    held.set(node, chosen);
    Some(told)
}

fn ranges_of(node: &Node) -> Vec<Range> {
    networks(node).iter().filter_map(|text| Range::parse(text)).collect()
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
        let mut held = Held::default();
        for text in taken {
            held.set(text, vec![Range::parse(text).unwrap()]);
        }
        let free = held.free(&Range::parse(range).unwrap(), (24, 64)).map(|free| free.to_string());
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
        // What begins before the range, or is wider than what begins with it.
        check("10.42.0.0/16", &["10.42.0.0/25", "10.42.0.0/23"], Some("10.42.2.0/24"));
        check("10.42.0.0/16", &["10.0.0.0/8"], None);
        check("10.42.0.0/16", &["10.41.0.0/16", "10.43.0.0/16"], Some("10.42.0.0/24"));
        check("10.42.0.0/16", &["10.42.1.128/32"], Some("10.42.0.0/24"));
        check("10.42.0.0/16", &["10.42.0.0/24", "10.42.1.128/32"], Some("10.42.2.0/24"));
        check("255.255.254.0/23", &["255.255.254.0/24"], Some("255.255.255.0/24"));
        check("255.255.254.0/23", &["255.255.254.0/23"], None);
    }

    #[test]
    fn nodes_of_two_families_get_one_of_each_around_the_services() {
        let parse = |text: &&str| Range::parse(text).unwrap();
        let ranges = ["10.42.0.0/22", "fd00:42::/46"].map(|it| parse(&it));
        let mut held = Held::default();
        held.set(SERVICES, ["10.42.0.0/24", "fd00:42::/108"].iter().map(parse).collect());
        let mut given = |node: &str, sizes| choose(&mut held, node, &ranges, sizes);
        let of = |v4: &str, v6: &str| Some(vec![v4.to_owned(), v6.to_owned()]);
        assert_eq!(given("a", (24, 64)), of("10.42.1.0/24", "fd00:42:0:1::/64"));
        assert_eq!(given("b", (26, 48)), of("10.42.2.0/26", "fd00:42:1::/48"));
        assert_eq!(given("c", (24, 48)), of("10.42.3.0/24", "fd00:42:2::/48"));
        // One family is full: none of the other either.
        assert_eq!(given("d", (24, 64)), None);
        assert_eq!(given("e", (26, 64)), of("10.42.2.64/26", "fd00:42:0:2::/64"));
    }

    #[test]
    fn a_node_holds_what_it_was_given_until_it_goes() {
        let ranges = [Range::parse("10.42.0.0/22").unwrap()];
        let mut held = Held::default();
        let given = |held: &mut Held, node: &str| choose(held, node, &ranges, (24, 64));
        assert_eq!(given(&mut held, "a").unwrap(), ["10.42.0.0/24"]);
        assert_eq!(given(&mut held, "b").unwrap(), ["10.42.1.0/24"]);
        // Its object did not take the first: it is asked for again.
        assert_eq!(given(&mut held, "a").unwrap(), ["10.42.0.0/24"]);
        // Two by hand; it is free when both are gone.
        held.set("c", vec![Range::parse("10.42.0.0/24").unwrap()]);
        held.remove("a");
        assert_eq!(given(&mut held, "d").unwrap(), ["10.42.2.0/24"]);
        held.remove("c");
        assert_eq!(given(&mut held, "e").unwrap(), ["10.42.0.0/24"]);
        assert_eq!(given(&mut held, "f").unwrap(), ["10.42.3.0/24"]);
        assert_eq!(given(&mut held, "late"), None);
    }
}
