//! Which CPUs a container gets for itself: pure.
//!
//! The rules are upstream's static CPU manager's: whole NUMA nodes and sockets before cores,
//! cores before threads, and as few nodes as possible.

use std::collections::{BTreeMap, BTreeSet};

use super::hints::{Hint, Hints};
use super::layout::{Cpu, CpuSet, Layout, Nodes};

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Options {
    /// `full-pcpus-only`: no core is shared.
    pub full_cores: bool,
    /// `distribute-cpus-across-numa`: evenly over the nodes, where one is not enough.
    pub across_nodes: bool,
    /// `strict-cpu-reservation`: reserved CPUs are not in the shared pool.
    pub strict_reservation: bool,
    /// `align-by-socket`: a socket is as good a place as one NUMA node of it.
    pub by_socket: bool,
    /// `distribute-cpus-across-cores`: one thread of each core before the second of any.
    pub across_cores: bool,
    /// `prefer-align-cpus-by-uncorecache`: as few last-level caches as possible.
    pub by_cache: bool,
}

/// The names that users give options, and whether they are alpha.
pub const NAMES: [(&str, bool); 6] = [
    ("full-pcpus-only", false),
    ("distribute-cpus-across-numa", false),
    ("strict-cpu-reservation", false),
    ("align-by-socket", true),
    ("distribute-cpus-across-cores", true),
    ("prefer-align-cpus-by-uncorecache", false),
];

impl Options {
    /// The option of that name.
    pub fn of(&mut self, name: &str) -> Option<&mut bool> {
        Some(match name {
            "full-pcpus-only" => &mut self.full_cores,
            "distribute-cpus-across-numa" => &mut self.across_nodes,
            "strict-cpu-reservation" => &mut self.strict_reservation,
            "align-by-socket" => &mut self.by_socket,
            "distribute-cpus-across-cores" => &mut self.across_cores,
            "prefer-align-cpus-by-uncorecache" => &mut self.by_cache,
            _ => return None,
        })
    }

    /// # Errors
    /// Two that contradict each other.
    pub fn check(mut self) -> Result<(), String> {
        for (one, other) in [
            ("full-pcpus-only", "distribute-cpus-across-cores"),
            ("prefer-align-cpus-by-uncorecache", "distribute-cpus-across-cores"),
            ("prefer-align-cpus-by-uncorecache", "distribute-cpus-across-numa"),
        ] {
            if self.of(one).is_some_and(|it| *it) && self.of(other).is_some_and(|it| *it) {
                return Err(format!(
                    "static policy options {one} and {other} can not be used at the same time"
                ));
            }
        }
        Ok(())
    }
}

fn of<'a>(layout: &'a Layout, set: &'a CpuSet) -> impl Iterator<Item = &'a Cpu> {
    layout.cpus.iter().filter(|cpu| set.0.contains(&cpu.id))
}

fn by<K: Ord>(
    layout: &Layout,
    set: &CpuSet,
    key: impl Fn(&Cpu) -> K,
) -> BTreeMap<K, BTreeSet<u32>> {
    let mut out: BTreeMap<K, BTreeSet<u32>> = BTreeMap::new();
    for cpu in of(layout, set) {
        out.entry(key(cpu)).or_default().insert(cpu.id);
    }
    out
}

/// Takes `count` of the free CPUs.
///
/// # Errors
/// When there are not so many.
pub fn take(
    layout: &Layout,
    free: &CpuSet,
    count: usize,
    options: Options,
) -> Result<CpuSet, String> {
    if free.len() < count {
        return Err(format!(
            "not enough cpus available to satisfy request: requested={count}, available={}",
            free.len()
        ));
    }
    if options.across_nodes
        && let Some(spread) = take_evenly(layout, free, count, options)
    {
        return Ok(spread);
    }
    take_packed(layout, free, count, options)
}

/// The same number from each of as few nodes as can give it.
fn take_evenly(layout: &Layout, free: &CpuSet, count: usize, options: Options) -> Option<CpuSet> {
    let step = if options.full_cores { layout.threads_per_core() } else { 1 };
    let room = |nodes: Nodes| free.and(&layout.cpus_in(nodes));
    for nodes in layout.nodes_of(free).subsets() {
        if room(nodes).len() < count {
            continue;
        }
        let width = nodes.count() as usize;
        let share = count / width / step * step;
        let mut rest = count - share * width;
        let mut out = CpuSet::default();
        for node in nodes.iter() {
            let here = room(Nodes::one(node));
            let extra = rest.min(step).min(here.len().saturating_sub(share));
            match take_packed(layout, &here, share + extra, options) {
                Ok(taken) => out = out.plus(&taken),
                Err(_) => break,
            }
            rest -= extra;
        }
        if out.len() == count {
            return Some(out);
        }
    }
    None
}

fn take_packed(
    layout: &Layout,
    free: &CpuSet,
    count: usize,
    options: Options,
) -> Result<CpuSet, String> {
    let mut taken = CpuSet::default();
    let all = layout.all();
    let sockets = by(layout, &all, |cpu| cpu.socket);
    let nodes = by(layout, &all, |cpu| cpu.node);
    // The larger of the two is taken first.
    let groups: Vec<BTreeSet<u32>> = if sockets.len() < nodes.len() {
        sockets.into_values().chain(nodes.into_values()).collect()
    } else {
        nodes.into_values().chain(sockets.into_values()).collect()
    };
    let left = |taken: &CpuSet| free.minus(taken);
    for group in groups {
        if group.len() <= count - taken.len() && group.is_subset(&left(&taken).0) {
            taken.0.extend(group);
        }
    }
    if options.by_cache {
        take_caches(layout, free, count, &mut taken);
    }
    if options.across_cores {
        spread(layout, free, count, &mut taken);
    }
    let whole_cores = by(layout, &all, |cpu| cpu.core);
    for (_, core) in crowded_first(layout, &left(&taken), |cpu| (cpu.node, cpu.core)) {
        let is_whole = whole_cores.values().any(|whole| *whole == core);
        if is_whole && core.len() <= count - taken.len() {
            taken.0.extend(core);
        }
    }
    if taken.len() < count && !options.full_cores {
        // Where there is something already, then where least is left for others.
        let mut rest = left(&taken);
        while taken.len() < count {
            let near = layout.nodes_of(&taken);
            let next = crowded_first(layout, &rest, |cpu| (cpu.node, cpu.core))
                .into_iter()
                .min_by_key(|((node, _), core)| (!near.has(*node), core.len()))
                .and_then(|(_, core)| core.first().copied());
            let Some(next) = next else { break };
            taken.0.insert(next);
            rest.0.remove(&next);
        }
    }
    if taken.len() == count { Ok(taken) } else { Err("failed to allocate cpus".to_owned()) }
}

/// The sockets with the fewest free CPUs first, and in each the lowest CPUs: kernels number
/// first threads before second ones.
fn spread(layout: &Layout, free: &CpuSet, count: usize, taken: &mut CpuSet) {
    let mut sockets: Vec<_> =
        by(layout, &free.minus(taken), |cpu| cpu.socket).into_iter().collect();
    sockets.sort_by_key(|(socket, cpus)| (cpus.len(), *socket));
    let missing = count - taken.len();
    taken.0.extend(sockets.into_iter().flat_map(|(_, cpus)| cpus).take(missing));
}

/// Whole caches while that many are missing, then a part of the fullest that has the rest.
fn take_caches(layout: &Layout, free: &CpuSet, count: usize, taken: &mut CpuSet) {
    let whole = by(layout, &layout.all(), |cpu| cpu.cache);
    let left = |taken: &CpuSet| {
        let mut out: Vec<_> = by(layout, &free.minus(taken), |cpu| cpu.cache).into_iter().collect();
        out.sort_by_key(|(cache, cpus)| (cpus.len(), *cache));
        out
    };
    for (cache, cpus) in left(taken) {
        if whole[&cache] == cpus && cpus.len() <= count - taken.len() {
            taken.0.extend(cpus);
        }
    }
    let missing = count - taken.len();
    if missing == 0 {
        return;
    }
    for (_, cpus) in left(taken) {
        // As many cores as are needed, the last one perhaps in part.
        let threads = layout.threads_per_core();
        let cores = by(layout, &CpuSet(cpus), |cpu| cpu.core);
        let some = cores.into_values().take(missing.div_ceil(threads)).flatten();
        let some: BTreeSet<u32> = some.collect();
        if some.len() >= missing {
            taken.0.extend(some.into_iter().take(missing));
            return;
        }
    }
}

/// Free CPUs by node and core, those of the node with the fewest free first.
fn crowded_first(
    layout: &Layout,
    free: &CpuSet,
    key: impl Fn(&Cpu) -> (u32, u32),
) -> Vec<((u32, u32), BTreeSet<u32>)> {
    let on_node = by(layout, free, |cpu| cpu.node);
    let mut out: Vec<_> = by(layout, free, key).into_iter().collect();
    out.sort_by_key(|((node, core), _)| (on_node.get(node).map_or(0, BTreeSet::len), *node, *core));
    out
}

/// Where `count` CPUs could be taken from `free`.
pub fn hints(layout: &Layout, free: &CpuSet, count: usize, options: Options) -> Hints {
    if count == 0 {
        return None;
    }
    let mut fewest = None;
    let mut out = Vec::new();
    for nodes in layout.nodes().subsets() {
        let there = layout.cpus_in(nodes);
        if there.len() < count {
            continue;
        }
        let fewest = *fewest.get_or_insert(nodes.count());
        if there.and(free).len() >= count {
            out.push(Hint { nodes: Some(nodes), preferred: nodes.count() == fewest });
        }
    }
    if options.by_socket {
        let sockets = layout.sockets_of(layout.nodes()).len();
        let nodes_per_socket = (layout.nodes().count() as usize).checked_div(sockets).unwrap_or(0);
        let fewest = (fewest.unwrap_or(0) as usize).div_ceil(nodes_per_socket.max(1));
        for hint in out.iter_mut().filter(|_| nodes_per_socket > 0) {
            let wide = hint.nodes.map(|nodes| layout.sockets_of(nodes).len());
            hint.preferred |= wide == Some(fewest);
        }
    }
    Some(out)
}

/// Takes from the hinted nodes as much as they have, and the rest from anywhere.
///
/// # Errors
/// When there are not so many.
pub fn allocate(
    layout: &Layout,
    free: &CpuSet,
    count: usize,
    near: Option<Nodes>,
    options: Options,
) -> Result<CpuSet, String> {
    let Some(nodes) = near else { return take(layout, free, count, options) };
    let there = match options.by_socket {
        true => layout.cpus_in_sockets_of(nodes),
        false => layout.cpus_in(nodes),
    };
    let local = free.and(&there);
    let threads = layout.threads_per_core();
    let mut first = count.min(local.len());
    if options.full_cores {
        first -= first % threads;
    }
    let taken = take(layout, &local, first, options)?;
    let rest = take(layout, &free.minus(&taken), count - taken.len(), options)?;
    Ok(taken.plus(&rest))
}

/// The CPUs that the node keeps: the lowest, a core at a time.
pub fn reserved(layout: &Layout, count: usize) -> Result<CpuSet, String> {
    take(layout, &layout.all(), count, Options::default())
}

#[cfg(test)]
mod tests {
    use super::super::layout::samples::{layout, with_caches};
    use super::*;

    fn set(text: &str) -> CpuSet {
        CpuSet::parse(text).unwrap()
    }

    #[test]
    fn whole_groups_come_before_cores_and_cores_before_threads() {
        // Two sockets of four cores with two threads: CPU n and n + 8 are one core.
        let two = layout(2, 1, 4, 2);
        // One socket of two nodes of two cores.
        let split = layout(1, 2, 2, 2);
        let plain = Options::default();
        let full = Options { full_cores: true, ..plain };
        let even = Options { across_nodes: true, ..plain };
        let even_full = Options { across_nodes: true, full_cores: true, ..plain };
        type Case<'a> = (&'a Layout, &'a str, usize, Options, Result<&'a str, &'a str>);
        let cases: Vec<Case<'_>> = vec![
            (&two, "0-15", 1, plain, Ok("0")),
            (&two, "0-15", 2, plain, Ok("0,8")),
            (&two, "0-15", 3, plain, Ok("0-1,8")),
            (&two, "0-15", 8, plain, Ok("0-3,8-11")),
            (&two, "1-15", 8, plain, Ok("4-7,12-15")),
            // The node with less left is used up first.
            (&two, "2-15", 2, plain, Ok("2,10")),
            // A lone thread before a whole core.
            (&two, "1-15", 1, plain, Ok("8")),
            (&two, "1-15", 2, full, Ok("1,9")),
            (&two, "1,8", 2, full, Err("failed to allocate cpus")),
            (&split, "0-7", 4, plain, Ok("0-1,4-5")),
            (&two, "0-15", 4, even, Ok("0-1,8-9")),
            (&two, "0-15", 10, even, Ok("0-2,4-6,8-9,12-13")),
            (&two, "0-15", 12, even_full, Ok("0-2,4-6,8-10,12-14")),
            (
                &two,
                "0-1",
                3,
                plain,
                Err("not enough cpus available to satisfy request: requested=3, available=2"),
            ),
        ];
        for (layout, free, count, options, want) in cases {
            let got = take(layout, &set(free), count, options).map(|it| it.to_string());
            let want = want.map(str::to_owned).map_err(str::to_owned);
            assert_eq!(got, want, "{count} of {free} {options:?}");
        }
    }

    #[test]
    fn options_spread_over_cores_and_keep_to_caches() {
        let two = layout(2, 1, 4, 2);
        // One socket of eight cores with two threads, four caches of two cores.
        let caches = with_caches(layout(1, 1, 8, 2), 2);
        let plain = Options::default();
        let cores = Options { across_cores: true, ..plain };
        let cache = Options { by_cache: true, ..plain };
        type Case<'a> = (&'a Layout, &'a str, usize, Options, &'a str);
        let cases: Vec<Case<'_>> = vec![
            (&two, "0-15", 2, cores, "0-1"),
            (&two, "0-15", 4, cores, "0-3"),
            (&two, "0-15", 6, cores, "0-3,8-9"),
            // A whole socket is taken as one, and spreading goes on in the fuller one.
            (&two, "0-15", 9, cores, "0-4,8-11"),
            (&two, "1-15", 2, cores, "1-2"),
            // Without the option two caches are begun.
            (&caches, "1-7,9-15", 4, plain, "1-2,9-10"),
            (&caches, "1-7,9-15", 4, cache, "2-3,10-11"),
            (&caches, "0-15", 2, cache, "0,8"),
            // What is left of a begun cache before a new one.
            (&caches, "1-7,9-15", 2, cache, "1,9"),
            (&caches, "0-15", 6, cache, "0-2,8-10"),
            (&caches, "0-15", 3, cache, "0-1,8"),
            // No cache has three left: full cores, as without the option.
            (&caches, "1,3,9,11", 3, cache, "1,3,9"),
        ];
        for (layout, free, count, options, want) in cases {
            let got = take(layout, &set(free), count, options).unwrap().to_string();
            assert_eq!(got, want, "{count} of {free} {options:?}");
        }
    }

    #[test]
    fn a_socket_may_be_as_good_as_a_node() {
        // Two sockets of two nodes of two CPUs.
        let machine = layout(2, 2, 2, 1);
        let by_socket = Options { by_socket: true, ..Options::default() };
        let preferred = |count: usize, options: Options| -> Vec<u64> {
            let all = hints(&machine, &machine.all(), count, options).unwrap();
            let good = all.into_iter().filter(|it| it.preferred);
            good.map(|it| it.nodes.unwrap().0).collect()
        };
        let plain = Options::default();
        assert_eq!(preferred(2, plain), [0b0001, 0b0010, 0b0100, 0b1000]);
        assert_eq!(preferred(2, by_socket), [0b0001, 0b0010, 0b0100, 0b1000, 0b0011, 0b1100]);
        assert_eq!(
            preferred(3, plain),
            [0b0011, 0b0101, 0b0110, 0b1001, 0b1010, 0b1100],
            "any two nodes will do"
        );
        // Any two, because two nodes are the fewest, and a socket.
        assert_eq!(preferred(3, by_socket), preferred(3, plain));
        let near = |options| {
            let free = set("1-4,6-7");
            let taken = allocate(&machine, &free, 2, Some(Nodes(0b0001)), options);
            taken.unwrap().to_string()
        };
        assert_eq!(near(by_socket), "2-3", "a whole node of the same socket");
        assert_eq!(near(plain), "1,4", "from the node, then where least is left");
    }

    #[test]
    fn options_that_contradict_each_other_are_refused() {
        for (names, good) in [
            (["full-pcpus-only", "prefer-align-cpus-by-uncorecache"], true),
            (["full-pcpus-only", "distribute-cpus-across-numa"], true),
            (["full-pcpus-only", "distribute-cpus-across-cores"], false),
            (["prefer-align-cpus-by-uncorecache", "distribute-cpus-across-cores"], false),
            (["prefer-align-cpus-by-uncorecache", "distribute-cpus-across-numa"], false),
        ] {
            let mut options = Options::default();
            for name in names {
                *options.of(name).unwrap() = true;
            }
            assert_eq!(options.check().is_ok(), good, "{names:?}");
        }
        assert!(NAMES.iter().all(|(name, _)| Options::default().of(name).is_some()));
        assert!(Options::default().of("x").is_none());
    }

    #[test]
    fn hints_say_where_it_fits_and_prefer_what_an_idle_machine_would_need() {
        let machine = layout(2, 1, 2, 1);
        let shown = |free: &str, count: usize| -> Vec<String> {
            let all = hints(&machine, &set(free), count, Options::default()).unwrap();
            let show = |it: Hint| {
                format!("{:b}{}", it.nodes.unwrap().0, if it.preferred { "+" } else { "" })
            };
            all.into_iter().map(show).collect()
        };
        assert_eq!(shown("0-3", 2), ["1+", "10+", "11"]);
        assert_eq!(shown("1-3", 2), ["10+", "11"]);
        assert_eq!(shown("1-2", 2), ["11"]);
        assert_eq!(shown("0-3", 3), ["11+"]);
        assert_eq!(shown("0", 2), Vec::<String>::new());
        assert_eq!(hints(&machine, &set("0"), 0, Options::default()), None);
        let near = allocate(&machine, &set("0-3"), 3, Some(Nodes(0b10)), Options::default());
        assert_eq!(near.unwrap().to_string(), "0,2-3");
    }
}
