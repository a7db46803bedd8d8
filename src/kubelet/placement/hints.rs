//! Where on the machine a container's resources could lie, as those who give them out say,
//! and one place for all of them by the node's policy: pure.
//!
//! The rules are upstream's topology manager's.

use super::layout::{Layout, Nodes};

/// A place; None is anywhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hint {
    pub nodes: Option<Nodes>,
    /// As few nodes as the machine could do it with.
    pub preferred: bool,
}

/// The places for one resource. None does not care; an empty list has no place.
pub type Hints = Option<Vec<Hint>>;

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Policy {
    #[default]
    None,
    BestEffort,
    Restricted,
    SingleNumaNode,
}

impl Policy {
    pub const ALL: [Self; 4] =
        [Self::None, Self::BestEffort, Self::Restricted, Self::SingleNumaNode];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::BestEffort => "best-effort",
            Self::Restricted => "restricted",
            Self::SingleNumaNode => "single-numa-node",
        }
    }
}

/// What the user may say beside the policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// `prefer-closest-numa-nodes`: of places as wide, the one whose nodes are near each other.
    pub closest: bool,
    /// `max-allowable-numa-nodes`: a machine with more is not placed on.
    pub nodes_max: u32,
}

/// Upstream's, and the least that may be said: combinations are many soon.
pub const NODES_MAX: u32 = 8;

impl Default for Options {
    fn default() -> Self {
        Self { closest: false, nodes_max: NODES_MAX }
    }
}

/// What places are compared by.
#[derive(Clone, Copy)]
pub struct Machine<'a> {
    pub all: Nodes,
    /// Known where near nodes are preferred.
    pub distances: Option<&'a Layout>,
}

impl Machine<'_> {
    fn is_better(&self, other: Nodes, than: Nodes) -> bool {
        let by_number = (other.count(), other.0) < (than.count(), than.0);
        let mean = |nodes| self.distances.and_then(|it| it.mean_distance(nodes));
        match mean(other).zip(mean(than)).filter(|_| other.count() == than.count()) {
            Some((other, than)) if other != than => other < than,
            _ => by_number,
        }
    }
}

/// More places than this are not tried one with another (8 nodes and 3 resources make less
/// than this).
const COMBINATIONS_MAX: usize = 1 << 24;

/// The place for all resources, and whether the policy admits it.
pub fn place(policy: Policy, machine: Machine<'_>, hints: &[Hints]) -> (Hint, bool) {
    let anywhere = Hint { nodes: None, preferred: true };
    if policy == Policy::None {
        return (anywhere, true);
    }
    let mut lists: Vec<Vec<Hint>> = hints
        .iter()
        .map(|hints| match hints {
            None => vec![anywhere],
            Some(list) if list.is_empty() => vec![Hint { nodes: None, preferred: false }],
            Some(list) => list.clone(),
        })
        .collect();
    if policy == Policy::SingleNumaNode {
        for list in &mut lists {
            list.retain(|hint| hint.preferred && hint.nodes.is_none_or(|nodes| nodes.count() == 1));
        }
    }
    let mut best = merge(machine, &lists);
    if policy == Policy::SingleNumaNode && best.nodes == Some(machine.all) {
        best.nodes = None;
    }
    let admitted = policy == Policy::BestEffort || best.preferred;
    (best, admitted)
}

/// The best of all combinations of one hint of each list.
fn merge(machine: Machine<'_>, lists: &[Vec<Hint>]) -> Hint {
    let all = machine.all;
    let nowhere = Hint { nodes: Some(all), preferred: false };
    let count = lists.iter().map(Vec::len).try_fold(1usize, usize::checked_mul);
    if count.is_none_or(|count| count == 0 || count > COMBINATIONS_MAX) {
        return nowhere;
    }
    let fewest = fewest_nodes(all, lists);
    let mut best: Option<Hint> = None;
    let mut at = vec![0; lists.len()];
    loop {
        let chosen: Vec<Hint> = lists.iter().zip(&at).map(|(list, at)| list[*at]).collect();
        let hint = combine(all, &chosen);
        if hint.nodes.is_some_and(|nodes| nodes.count() > 0) {
            best = Some(match best {
                Some(best) => better(machine, best, hint, fewest),
                None => hint,
            });
        }
        let mut digit = 0;
        loop {
            if digit == at.len() {
                return best.unwrap_or(nowhere);
            }
            at[digit] += 1;
            if at[digit] < lists[digit].len() {
                break;
            }
            at[digit] = 0;
            digit += 1;
        }
    }
}

fn combine(all: Nodes, chosen: &[Hint]) -> Hint {
    let places: Vec<Nodes> = chosen.iter().filter_map(|hint| hint.nodes).collect();
    let nodes = places.iter().fold(all, |nodes, place| Nodes(nodes.0 & place.0));
    let same = places.windows(2).all(|pair| pair[0] == pair[1]);
    Hint { nodes: Some(nodes), preferred: same && chosen.iter().all(|hint| hint.preferred) }
}

/// The most of the fewest nodes that each resource needs: what a place that is not preferred
/// should come close to.
fn fewest_nodes(all: Nodes, lists: &[Vec<Hint>]) -> u32 {
    let of = |list: &Vec<Hint>| {
        list.iter().filter_map(|hint| hint.nodes.map(Nodes::count)).min().unwrap_or(0)
    };
    match lists.iter().map(of).max() {
        Some(0) | None => all.count(),
        Some(count) => count,
    }
}

fn better(machine: Machine<'_>, now: Hint, other: Hint, fewest: u32) -> Hint {
    let (a, b) = (now.nodes.unwrap_or_default(), other.nodes.unwrap_or_default());
    let narrower = || if machine.is_better(b, a) { other } else { now };
    match (now.preferred, other.preferred) {
        (false, true) => other,
        (true, false) => now,
        (true, true) => narrower(),
        (false, false) if a.count() > fewest => narrower(),
        (false, false) if a.count() == fewest => {
            if b.count() == fewest && machine.is_better(b, a) {
                other
            } else {
                now
            }
        }
        (false, false) => {
            if b.count() > fewest {
                return now;
            }
            let wider = b.count() > a.count();
            let as_wide = b.count() == a.count() && machine.is_better(b, a);
            if wider || as_wide { other } else { now }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hint(bits: u64, preferred: bool) -> Hint {
        Hint { nodes: Some(Nodes(bits)), preferred }
    }

    fn machine(all: Nodes) -> Machine<'static> {
        Machine { all, distances: None }
    }

    #[test]
    fn one_place_is_found_for_all_resources() {
        let all = Nodes(0b11);
        let both = || Some(vec![hint(0b01, true), hint(0b10, true), hint(0b11, false)]);
        let second = || Some(vec![hint(0b10, true), hint(0b11, false)]);
        let first = || Some(vec![hint(0b01, true)]);
        let spread = || Some(vec![hint(0b11, true)]);
        let cases: Vec<(Vec<Hints>, Hint, [bool; 3])> = vec![
            // Nobody cares.
            (vec![None], hint(0b11, true), [true, true, true]),
            (vec![both()], hint(0b01, true), [true, true, true]),
            (vec![both(), second()], hint(0b10, true), [true, true, true]),
            (vec![both(), None], hint(0b01, true), [true, true, true]),
            // No common node that both prefer.
            (vec![first(), second()], hint(0b01, false), [true, false, false]),
            (vec![Some(vec![])], hint(0b11, false), [true, false, false]),
            // Preferred although it needs both nodes.
            (vec![spread()], hint(0b11, true), [true, true, false]),
        ];
        for (hints, want, admits) in cases {
            let (best, _) = place(Policy::BestEffort, machine(all), &hints);
            assert_eq!(best, want, "{hints:?}");
            let policies = [Policy::BestEffort, Policy::Restricted, Policy::SingleNumaNode];
            for (policy, admitted) in policies.into_iter().zip(admits) {
                assert_eq!(place(policy, machine(all), &hints).1, admitted, "{policy:?} {hints:?}");
            }
            assert!(place(Policy::None, machine(all), &hints).1);
        }
    }

    #[test]
    fn what_is_not_preferred_comes_close_to_what_is_needed() {
        let all = Nodes(0b1111);
        let hints = [
            Some(vec![hint(0b0011, false), hint(0b0111, false), hint(0b1111, false)]),
            Some(vec![hint(0b0110, false), hint(0b1111, false)]),
        ];
        let (best, admitted) = place(Policy::BestEffort, machine(all), &hints);
        assert_eq!((best, admitted), (hint(0b0011, false), true));
    }

    #[test]
    fn near_nodes_are_preferred_where_that_is_asked_for() {
        // 0 and 2 are neighbours, and so are 1 and 3.
        let row = |far: [u32; 4]| (0..4).zip(far).collect();
        let layout = Layout {
            distances: [
                (0, row([10, 30, 12, 30])),
                (1, row([30, 10, 30, 12])),
                (2, row([12, 30, 10, 30])),
                (3, row([30, 12, 30, 10])),
            ]
            .into(),
            ..Layout::default()
        };
        let all = Nodes(0b1111);
        let best = |hints: Vec<Hint>, closest: bool| {
            let distances = closest.then_some(&layout);
            let (best, _) = place(Policy::BestEffort, Machine { all, distances }, &[Some(hints)]);
            best.nodes.unwrap().0
        };
        for preferred in [true, false] {
            let pairs = || [0b0011, 0b0110, 0b1010, 0b0101].map(|it| hint(it, preferred)).to_vec();
            assert_eq!(best(pairs(), false), 0b0011, "{preferred}");
            assert_eq!(best(pairs(), true), 0b0101, "{preferred}");
        }
        // Narrow comes before near.
        assert_eq!(best(vec![hint(0b0101, true), hint(0b1000, true)], true), 0b1000);
    }
}
