//! Which NUMA nodes a container's memory and huge pages come from: pure.
//!
//! The rules are upstream's static memory manager's: as few nodes as possible, and a node
//! that shares a container with others is shared with the same others only.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::hints::{Hint, Hints};
use super::layout::Nodes;

/// Bytes by resource (`memory`, `hugepages-2Mi`).
pub type Amounts = BTreeMap<String, u64>;

/// What a container has of one resource, and from which nodes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Block {
    #[serde(rename = "numaAffinity")]
    pub nodes: BTreeSet<u32>,
    #[serde(rename = "type")]
    pub resource: String,
    #[serde(rename = "size")]
    pub bytes: u64,
}

#[derive(Debug, Clone, Default)]
struct Pool {
    allocatable: Amounts,
    free: Amounts,
    /// The nodes that this one is used with; none while nobody uses it.
    group: Option<Nodes>,
}

/// What the nodes have left.
#[derive(Debug, Clone, Default)]
pub struct Pools(BTreeMap<u32, Pool>);

impl Pools {
    /// What is there without what is reserved, and without what was given.
    pub fn new<'a>(
        there: &BTreeMap<u32, Amounts>,
        reserved: &BTreeMap<u32, Amounts>,
        given: impl IntoIterator<Item = &'a Block>,
    ) -> Self {
        let mut out = Self::default();
        for (node, amounts) in there {
            let kept =
                |name: &str| reserved.get(node).and_then(|it| it.get(name)).copied().unwrap_or(0);
            let allocatable: Amounts = amounts
                .iter()
                .map(|(name, bytes)| (name.clone(), bytes.saturating_sub(kept(name))))
                .collect();
            let pool = Pool { free: allocatable.clone(), allocatable, group: None };
            out.0.insert(*node, pool);
        }
        for block in given {
            out.give(block);
        }
        out
    }

    fn give(&mut self, block: &Block) {
        let mut left = block.bytes;
        for node in &block.nodes {
            let Some(pool) = self.0.get_mut(node) else { continue };
            pool.group = Some(Nodes::of(block.nodes.iter().copied()));
            if let Some(free) = pool.free.get_mut(&block.resource) {
                let here = left.min(*free);
                *free -= here;
                left -= here;
            }
        }
    }

    fn all(&self) -> Nodes {
        Nodes::of(self.0.keys().copied())
    }

    fn sum(&self, nodes: Nodes, name: &str, of: impl Fn(&Pool) -> &Amounts) -> u64 {
        let pools = self.0.iter().filter(|(node, _)| nodes.has(**node));
        pools.map(|(_, pool)| of(pool).get(name).copied().unwrap_or(0)).sum()
    }

    fn may_be_used_together(&self, nodes: Nodes) -> bool {
        let mut pools = self.0.iter().filter(|(node, _)| nodes.has(**node));
        pools.all(|(_, pool)| pool.group.is_none_or(|group| group == nodes))
    }

    fn fits(&self, nodes: Nodes, wanted: &Amounts) -> bool {
        self.may_be_used_together(nodes)
            && wanted.iter().all(|(name, bytes)| self.sum(nodes, name, |it| &it.free) >= *bytes)
    }
}

/// Where all that is wanted could come from, in the order of `wanted`.
pub fn hints(pools: &Pools, wanted: &Amounts) -> Vec<Hints> {
    let places = pools.all().subsets();
    let fewest = |name: &str, bytes: u64| {
        let enough = |nodes: &&Nodes| pools.sum(**nodes, name, |it| &it.allocatable) >= bytes;
        places.iter().find(enough).map(|nodes| nodes.count())
    };
    wanted
        .iter()
        .map(|(name, bytes)| {
            let fewest = fewest(name, *bytes);
            let fitting = places.iter().filter(|nodes| pools.fits(**nodes, wanted));
            let hint = |nodes: &Nodes| Hint {
                nodes: Some(*nodes),
                preferred: Some(nodes.count()) == fewest,
            };
            Some(fitting.map(hint).collect())
        })
        .collect()
}

/// # Errors
/// When no nodes have enough.
pub fn allocate(
    pools: &Pools,
    wanted: &Amounts,
    near: Option<Nodes>,
) -> Result<Vec<Block>, String> {
    let mut places = pools.all().subsets().into_iter().filter(|it| pools.fits(*it, wanted));
    let nodes = match near {
        None => places.next().ok_or(
            "[memorymanager] failed to get the default NUMA affinity, no NUMA nodes with enough \
             memory is available",
        )?,
        Some(near) => places.find(|it| it.0 & near.0 == near.0).ok_or(
            "[memorymanager] failed to find NUMA nodes to extend the current topology hint",
        )?,
    };
    let block = |(name, bytes): (&String, &u64)| Block {
        nodes: nodes.iter().collect(),
        resource: name.clone(),
        bytes: *bytes,
    };
    Ok(wanted.iter().map(block).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn amounts(bytes: u64) -> Amounts {
        [("memory".to_owned(), bytes)].into()
    }

    fn block(nodes: &[u32], bytes: u64) -> Block {
        Block { nodes: nodes.iter().copied().collect(), resource: "memory".into(), bytes }
    }

    #[test]
    fn memory_comes_from_few_nodes_that_are_always_used_together() {
        let there: BTreeMap<u32, Amounts> = (0..3).map(|node| (node, amounts(1000))).collect();
        let reserved: BTreeMap<u32, Amounts> = [(0, amounts(100))].into();
        let shown = |given: &[Block], bytes: u64| -> (String, Result<Vec<u32>, String>) {
            let pools = Pools::new(&there, &reserved, given);
            let list = hints(&pools, &amounts(bytes)).remove(0).unwrap();
            let list: Vec<String> = list
                .into_iter()
                .map(|it| {
                    format!("{:b}{}", it.nodes.unwrap().0, if it.preferred { "+" } else { "" })
                })
                .collect();
            let taken = allocate(&pools, &amounts(bytes), None);
            (list.join(" "), taken.map(|it| it[0].nodes.iter().copied().collect()))
        };
        type Case<'a> = (Vec<Block>, u64, &'a str, Option<&'a [u32]>);
        let cases: Vec<Case<'_>> = vec![
            (vec![], 900, "1+ 10+ 100+ 11 101 110 111", Some(&[0])),
            (vec![], 950, "10+ 100+ 11 101 110 111", Some(&[1])),
            (vec![], 1500, "11+ 101+ 110+ 111", Some(&[0, 1])),
            // Node 0 is used alone: no container that needs more may have it.
            (vec![block(&[0], 10)], 1500, "110+", Some(&[1, 2])),
            // 0 and 1 are used together: alone only 2 is left.
            (vec![block(&[0, 1], 1500)], 300, "100+ 11", Some(&[2])),
            (vec![block(&[0, 1], 1500)], 401, "100+", Some(&[2])),
            (vec![block(&[0], 1), block(&[1], 1), block(&[2], 1)], 1500, "", None),
        ];
        for (given, bytes, want, taken) in cases {
            let (hints, got) = shown(&given, bytes);
            assert_eq!(hints, want, "{given:?} {bytes}");
            assert_eq!(got.ok().as_deref(), taken, "{given:?} {bytes}");
        }
        let pools = Pools::new(&there, &reserved, []);
        let near = allocate(&pools, &amounts(1500), Some(Nodes(0b100))).unwrap();
        assert_eq!(near[0].nodes, [0, 2].into());
        assert!(
            allocate(&pools, &amounts(5000), Some(Nodes(1))).unwrap_err().contains("to extend")
        );
    }
}
