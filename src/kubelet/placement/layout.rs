//! How the machine is built: its CPUs by core, socket and NUMA node, and sets of them.
//!
//! Reads `/sys` once; what is decided by it is decided elsewhere.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;

/// CPUs by number, in the kernel's form of a list (`0-3,5`).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CpuSet(pub BTreeSet<u32>);

impl CpuSet {
    /// # Errors
    /// What is no list of CPUs.
    pub fn parse(text: &str) -> Result<Self, String> {
        /// No machine has more; a range that is longer is a mistake.
        const CPUS_MAX: u32 = 16_384;
        let nonsense = || format!("{text:?} is no list of CPUs");
        let number = |part: &str| part.trim().parse::<u32>().ok().filter(|it| *it < CPUS_MAX);
        let mut out = BTreeSet::new();
        for part in text.trim().split(',').filter(|part| !part.is_empty()) {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last) = (number(first), number(last));
            let (first, last) = first.zip(last).ok_or_else(nonsense)?;
            if first > last {
                return Err(nonsense());
            }
            out.extend(first..=last);
        }
        Ok(Self(out))
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn minus(&self, other: &Self) -> Self {
        Self(&self.0 - &other.0)
    }

    pub fn plus(&self, other: &Self) -> Self {
        Self(&self.0 | &other.0)
    }

    pub fn and(&self, other: &Self) -> Self {
        Self(&self.0 & &other.0)
    }
}

impl fmt::Display for CpuSet {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts: Vec<(u32, u32)> = Vec::new();
        for cpu in &self.0 {
            match parts.last_mut() {
                Some((_, last)) if *last + 1 == *cpu => *last = *cpu,
                _ => parts.push((*cpu, *cpu)),
            }
        }
        let text: Vec<String> = parts
            .into_iter()
            .map(|(a, b)| if a == b { a.to_string() } else { format!("{a}-{b}") })
            .collect();
        out.write_str(&text.join(","))
    }
}

/// NUMA nodes by number, as bits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Nodes(pub u64);

impl Nodes {
    /// A machine with more is placed as if it had none.
    pub const MAX: u32 = 64;

    pub fn one(node: u32) -> Self {
        Self(1 << node.min(Self::MAX - 1))
    }

    pub fn of(nodes: impl IntoIterator<Item = u32>) -> Self {
        Self(nodes.into_iter().fold(0, |bits, node| bits | Self::one(node).0))
    }

    pub fn count(self) -> u32 {
        self.0.count_ones()
    }

    pub fn has(self, node: u32) -> bool {
        self.0 & Self::one(node).0 != 0
    }

    pub fn iter(self) -> impl Iterator<Item = u32> {
        (0..Self::MAX).filter(move |node| self.has(*node))
    }

    /// Every set of some of these, the smaller first, then the lower.
    pub fn subsets(self) -> Vec<Self> {
        let all: Vec<u32> = self.iter().collect();
        let mut out: Vec<Self> = (1u64..1 << all.len().min(16))
            .map(|bits| {
                let chosen = all.iter().enumerate().filter(|(at, _)| bits & (1 << at) != 0);
                Self::of(chosen.map(|(_, node)| *node))
            })
            .collect();
        out.sort_by_key(|it| (it.count(), it.0));
        out
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cpu {
    pub id: u32,
    /// Unique on the machine.
    pub core: u32,
    pub socket: u32,
    pub node: u32,
    /// The last-level cache that it shares with others, unique on the machine.
    pub cache: u32,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Layout {
    pub cpus: Vec<Cpu>,
    /// How far NUMA nodes are from each other, as the firmware says (10 is near).
    pub distances: BTreeMap<u32, BTreeMap<u32, u32>>,
    /// By NUMA node, and in it by resource (`memory`, `hugepages-2Mi`), in bytes.
    pub memory: BTreeMap<u32, BTreeMap<String, u64>>,
}

impl Layout {
    /// Reads `/sys/devices/system`. A kernel that says nothing of NUMA has one node.
    pub fn read(system: &Path, memory_bytes: u64) -> Self {
        let text = |path: &Path| std::fs::read_to_string(path).unwrap_or_default();
        let mut nodes: BTreeMap<u32, CpuSet> = BTreeMap::new();
        let (mut memory, mut rows) = (BTreeMap::new(), BTreeMap::new());
        for entry in std::fs::read_dir(system.join("node")).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let number = name.to_str().and_then(|it| it.strip_prefix("node")?.parse::<u32>().ok());
            let Some(number) = number.filter(|it| *it < Nodes::MAX) else { continue };
            let cpus = CpuSet::parse(&text(&entry.path().join("cpulist"))).unwrap_or_default();
            nodes.insert(number, cpus);
            memory.insert(number, memory_of(&entry.path()));
            let row = text(&entry.path().join("distance"));
            let row = row.split_whitespace().filter_map(|it| it.parse::<u32>().ok());
            rows.insert(number, row.collect::<Vec<_>>());
        }
        // A row has the nodes that are online, in their order.
        let online: Vec<u32> = rows.keys().copied().collect();
        let distances = rows
            .into_iter()
            .map(|(node, row)| (node, online.iter().copied().zip(row).collect()))
            .collect();
        let online = CpuSet::parse(&text(&system.join("cpu/online"))).unwrap_or_default();
        let mut cpus = Vec::new();
        let mut cores: BTreeMap<(u32, u32), u32> = BTreeMap::new();
        for id in online.0 {
            let topology = system.join(format!("cpu/cpu{id}/topology"));
            let number = |file: &str| text(&topology.join(file)).trim().parse::<u32>().ok();
            let socket = number("physical_package_id").unwrap_or(0);
            // Cores are numbered anew in each socket; the first CPU names one for all.
            let core = *cores.entry((socket, number("core_id").unwrap_or(id))).or_insert(id);
            let node = nodes.iter().find(|(_, cpus)| cpus.0.contains(&id)).map_or(0, |(n, _)| *n);
            // The lowest of those that share it names a cache; the kernel's own numbers need
            // not be unique.
            let shared = text(&system.join(format!("cpu/cpu{id}/cache/index3/shared_cpu_list")));
            let shared = CpuSet::parse(&shared).unwrap_or_default();
            let cache = shared.0.first().copied().unwrap_or(socket);
            cpus.push(Cpu { id, core, socket, node, cache });
        }
        if memory.is_empty() {
            memory.insert(0, [("memory".to_owned(), memory_bytes)].into());
        }
        Self { cpus, distances, memory }
    }

    pub fn all(&self) -> CpuSet {
        CpuSet(self.cpus.iter().map(|cpu| cpu.id).collect())
    }

    pub fn nodes(&self) -> Nodes {
        let of_cpus = self.cpus.iter().map(|cpu| cpu.node);
        Nodes::of(of_cpus.chain(self.memory.keys().copied()))
    }

    pub fn cpus_in(&self, nodes: Nodes) -> CpuSet {
        CpuSet(self.cpus.iter().filter(|cpu| nodes.has(cpu.node)).map(|cpu| cpu.id).collect())
    }

    /// The last-level caches that these CPUs use.
    pub fn caches_of(&self, set: &CpuSet) -> BTreeSet<u32> {
        self.cpus.iter().filter(|cpu| set.0.contains(&cpu.id)).map(|cpu| cpu.cache).collect()
    }

    pub fn nodes_of(&self, set: &CpuSet) -> Nodes {
        Nodes::of(self.cpus.iter().filter(|cpu| set.0.contains(&cpu.id)).map(|cpu| cpu.node))
    }

    /// CPUs of the sockets that have one of these nodes.
    pub fn cpus_in_sockets_of(&self, nodes: Nodes) -> CpuSet {
        let sockets = self.sockets_of(nodes);
        let there = self.cpus.iter().filter(|cpu| sockets.contains(&cpu.socket));
        CpuSet(there.map(|cpu| cpu.id).collect())
    }

    pub fn sockets_of(&self, nodes: Nodes) -> BTreeSet<u32> {
        self.cpus.iter().filter(|cpu| nodes.has(cpu.node)).map(|cpu| cpu.socket).collect()
    }

    /// CPUs whose core has one of `set`.
    pub fn cores_of(&self, set: &CpuSet) -> CpuSet {
        let touched = self.cpus.iter().filter(|cpu| set.0.contains(&cpu.id)).map(|cpu| cpu.core);
        let touched: BTreeSet<u32> = touched.collect();
        let there = self.cpus.iter().filter(|cpu| touched.contains(&cpu.core));
        CpuSet(there.map(|cpu| cpu.id).collect())
    }

    /// The mean of all distances among `nodes`, each one's own included; None where one is
    /// not known.
    pub fn mean_distance(&self, nodes: Nodes) -> Option<f64> {
        let (mut sum, mut count) = (0.0, 0.0);
        for from in nodes.iter() {
            for to in nodes.iter() {
                sum += f64::from(*self.distances.get(&from)?.get(&to)?);
                count += 1.0;
            }
        }
        Some(if count > 0.0 { sum / count } else { 0.0 })
    }

    /// CPUs of one core.
    pub fn threads_per_core(&self) -> usize {
        let cores: BTreeSet<u32> = self.cpus.iter().map(|cpu| cpu.core).collect();
        self.cpus.len().checked_div(cores.len()).unwrap_or(1).max(1)
    }
}

fn memory_of(node: &Path) -> BTreeMap<String, u64> {
    let mut out = BTreeMap::new();
    let meminfo = std::fs::read_to_string(node.join("meminfo")).unwrap_or_default();
    let total = meminfo.lines().find_map(|line| {
        let mut words = line.split_whitespace().skip_while(|word| *word != "MemTotal:");
        words.nth(1)?.parse::<u64>().ok()
    });
    let mut huge = 0;
    for entry in std::fs::read_dir(node.join("hugepages")).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let kib = name.to_str().and_then(|it| it.strip_prefix("hugepages-")?.strip_suffix("kB"));
        let Some(kib) = kib.and_then(|kib| kib.parse::<u64>().ok()) else { continue };
        let pages = std::fs::read_to_string(entry.path().join("nr_hugepages")).unwrap_or_default();
        let bytes = pages.trim().parse::<u64>().unwrap_or(0) * (kib << 10);
        huge += bytes;
        let size = match kib {
            kib if kib.is_multiple_of(1 << 20) => format!("{}Gi", kib >> 20),
            kib if kib.is_multiple_of(1 << 10) => format!("{}Mi", kib >> 10),
            kib => format!("{kib}Ki"),
        };
        out.insert(format!("hugepages-{size}"), bytes);
    }
    // Huge pages are taken out of memory.
    out.insert("memory".to_owned(), (total.unwrap_or(0) << 10).saturating_sub(huge));
    out
}

#[cfg(test)]
pub(crate) mod samples {
    use super::*;

    /// Sockets, NUMA nodes in a socket, cores in a node, threads of a core; numbered as
    /// kernels do: second threads after all cores.
    pub fn layout(sockets: u32, nodes: u32, cores: u32, threads: u32) -> Layout {
        let all_cores = sockets * nodes * cores;
        let mut out = Layout::default();
        for thread in 0..threads {
            for core in 0..all_cores {
                let node = core / cores;
                let id = thread * all_cores + core;
                out.cpus.push(Cpu { id, core, socket: node / nodes, node, cache: node });
            }
        }
        for node in 0..sockets * nodes {
            out.memory.insert(node, [("memory".to_owned(), 1000)].into());
        }
        out
    }

    /// The same machine, with caches that `cores` cores each share.
    pub fn with_caches(mut layout: Layout, cores: u32) -> Layout {
        for cpu in &mut layout.cpus {
            cpu.cache = cpu.core / cores;
        }
        layout
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_read_and_show_as_the_kernels() {
        for (text, want) in [("0-3,5", "0-3,5"), ("5,4,3", "3-5"), ("", ""), ("7\n", "7")] {
            assert_eq!(CpuSet::parse(text).unwrap().to_string(), want);
        }
        for text in ["3-1", "a", "1-", "0-99999999"] {
            assert!(CpuSet::parse(text).is_err(), "{text}");
        }
        let subsets: Vec<u64> = Nodes(0b101).subsets().into_iter().map(|it| it.0).collect();
        assert_eq!(subsets, [0b001, 0b100, 0b101]);
    }

    #[test]
    fn a_machine_is_read_from_its_files() {
        let dir = tempfile::tempdir().unwrap();
        let put = |path: &str, text: &str| {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        put("cpu/online", "0-3\n");
        for cpu in 0..4u32 {
            let at = format!("cpu/cpu{cpu}/topology");
            put(&format!("{at}/core_id"), "0\n");
            put(&format!("{at}/physical_package_id"), &(cpu / 2).to_string());
            let shared = format!("{}-{}\n", cpu / 2 * 2, cpu / 2 * 2 + 1);
            put(&format!("cpu/cpu{cpu}/cache/index3/shared_cpu_list"), &shared);
        }
        for node in 0..2 {
            put(&format!("node/node{node}/cpulist"), &format!("{}-{}\n", node * 2, node * 2 + 1));
            put(&format!("node/node{node}/meminfo"), &format!("Node {node} MemTotal: 8192 kB\n"));
            put(&format!("node/node{node}/hugepages/hugepages-2048kB/nr_hugepages"), "1\n");
        }
        put("node/node0/distance", "10 21\n");
        put("node/node1/distance", "21 10\n");
        let layout = Layout::read(dir.path(), 0);
        assert_eq!(layout.cpus.iter().map(|it| it.cache).collect::<Vec<_>>(), [0, 0, 2, 2]);
        assert_eq!(layout.mean_distance(Nodes(0b11)), Some(15.5));
        assert_eq!(layout.mean_distance(Nodes(0b100)), None);
        let shown: Vec<_> =
            layout.cpus.iter().map(|it| (it.id, it.core, it.socket, it.node)).collect();
        assert_eq!(shown, [(0, 0, 0, 0), (1, 0, 0, 0), (2, 2, 1, 1), (3, 2, 1, 1)]);
        assert_eq!(layout.threads_per_core(), 2);
        assert_eq!(layout.memory[&1]["memory"], 6 << 20);
        assert_eq!(layout.memory[&1]["hugepages-2Mi"], 2 << 20);
        let bare = Layout::read(Path::new("/no/such/place"), 77);
        assert_eq!(bare.memory[&0]["memory"], 77);
    }
}
