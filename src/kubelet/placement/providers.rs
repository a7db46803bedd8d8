//! Who gives out CPUs and memory, and what they have given, on disk in upstream's form.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Container, Pod};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tracing::warn;

use super::hints::Hints;
use super::layout::{CpuSet, Layout, Nodes};
use super::memory::{Amounts, Block, Pools};
use super::{Demand, Given, Owned, Provider, Refusal, cpus, memory};
use crate::pod::{self, Role};
use crate::quantity;
use crate::resources::{self, Qos};

const STATIC: &str = "Static";

/// By pod and container.
type Entries<T> = BTreeMap<String, BTreeMap<String, T>>;

/// What a pod is refused with when something it was promised is not there.
pub fn unexpected(why: &str) -> Refusal {
    ("UnexpectedAdmissionError", format!("Allocate failed due to {why}, which is unexpected"))
}

/// The larger of what starting and what running takes, by containers in their order.
pub fn of_whole_pod(pod: &Pod, of: impl Fn(&Container) -> u64) -> u64 {
    let (mut starting, mut sidecars, mut main) = (0u64, 0u64, 0u64);
    for (role, container) in pod::containers(pod) {
        match role {
            Role::Init => starting = starting.max(sidecars + of(&container)),
            Role::Sidecar => sidecars += of(&container),
            Role::Main => main += of(&container),
            Role::Ephemeral => {}
        }
    }
    starting.max(sidecars + main)
}

fn asked(container: &Container, name: &str) -> Option<i64> {
    let resources = container.resources.as_ref()?;
    let list = |list: Option<&quantity::ResourceList>| quantity::milli_of(list, name);
    let request = list(resources.requests.as_ref());
    Some(if request == 0 { list(resources.limits.as_ref()) } else { request })
}

/// # Errors
/// What the system says; a file that is missing is empty.
fn read<T: DeserializeOwned + Default>(file: &Path) -> T {
    let bytes = match std::fs::read(file) {
        Ok(bytes) => bytes,
        Err(error) => {
            if error.kind() != std::io::ErrorKind::NotFound {
                warn!(path = %file.display(), %error, "what was given of the machine is not known");
            }
            return T::default();
        }
    };
    serde_json::from_slice(&bytes).unwrap_or_else(|error| {
        warn!(path = %file.display(), %error, "what was given of the machine is not known");
        T::default()
    })
}

fn write<T: Serialize>(file: &Path, state: &T) -> std::io::Result<()> {
    sys::fs::replace_file(file, &serde_json::to_vec(state)?)
}

#[derive(Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct CpuState {
    policy_name: String,
    default_cpu_set: String,
    entries: Entries<String>,
}

/// CPUs of their own for containers of Guaranteed pods that ask for whole ones.
pub struct Cpus {
    layout: Arc<Layout>,
    reserved: CpuSet,
    options: cpus::Options,
    entries: Entries<CpuSet>,
    file: PathBuf,
}

impl Cpus {
    pub fn open(
        layout: Arc<Layout>,
        reserved: CpuSet,
        options: cpus::Options,
        file: PathBuf,
    ) -> Self {
        let state: CpuState = read(&file);
        let there = layout.all();
        let mut entries: Entries<CpuSet> = BTreeMap::new();
        for (uid, containers) in state.entries {
            for (name, text) in containers {
                // CPUs that are gone belong to nobody.
                match CpuSet::parse(&text) {
                    Ok(set) if set.minus(&there).len() == 0 => {
                        entries.entry(uid.clone()).or_default().insert(name, set);
                    }
                    _ => warn!(pod = uid, container = name, cpus = text, "no such CPUs any more"),
                }
            }
        }
        Self { layout, reserved, options, entries, file }
    }

    /// What nobody has for himself.
    fn shared(&self) -> CpuSet {
        let taken = self.entries.values().flat_map(BTreeMap::values);
        let mut out = self.layout.all();
        if self.options.strict_reservation {
            out = out.minus(&self.reserved);
        }
        taken.fold(out, |left, set| left.minus(set))
    }

    /// What a pod's next container may have: what is free, and what its init containers had.
    fn free_for(&self, pod: &Pod) -> CpuSet {
        let free = self.shared().minus(&self.reserved);
        let Some(own) = self.entries.get(pod::uid(pod)) else { return free };
        let of = |wanted: bool| {
            pod::containers(pod)
                .iter()
                .filter(|(role, _)| (*role == Role::Init) == wanted)
                .filter_map(|(_, it)| own.get(&it.name))
                .fold(CpuSet::default(), |all, set| all.plus(set))
        };
        free.plus(&of(true).minus(&of(false)))
    }
}

/// Whole CPUs that the container has a right to; 0 is none.
fn whole_cpus(pod: &Pod, container: &Container) -> u64 {
    if resources::qos(pod) != Qos::Guaranteed {
        return 0;
    }
    let milli = asked(container, "cpu").unwrap_or(0);
    if milli % 1000 == 0 { u64::try_from(milli / 1000).unwrap_or(0) } else { 0 }
}

impl Provider for Cpus {
    fn hints(&self, demand: Demand<'_>) -> Vec<Hints> {
        let pod = demand.pod;
        let count = match demand.container {
            Some((_, container)) => whole_cpus(pod, container),
            None => of_whole_pod(pod, |it| whole_cpus(pod, it)),
        };
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        if count == 0 {
            return Vec::new();
        }
        vec![cpus::hints(&self.layout, &self.free_for(pod), count)]
    }

    fn allocate(
        &mut self,
        pod: &Pod,
        _: Role,
        container: &Container,
        near: Option<Nodes>,
    ) -> Result<(), Refusal> {
        let count = usize::try_from(whole_cpus(pod, container)).unwrap_or(usize::MAX);
        let held =
            self.entries.get(pod::uid(pod)).is_some_and(|it| it.contains_key(&container.name));
        if count == 0 || held {
            return Ok(());
        }
        let threads = self.layout.threads_per_core();
        if self.options.full_cores && !count.is_multiple_of(threads) {
            return Err((
                "SMTAlignmentError",
                format!(
                    "SMT Alignment Error: requested {count} cpus not multiple cpus per core = \
                     {threads}"
                ),
            ));
        }
        let free = self.free_for(pod);
        let set = cpus::allocate(&self.layout, &free, count, near, self.options)
            .map_err(|why| unexpected(&why))?;
        let own = self.entries.entry(pod::uid(pod).to_owned()).or_default();
        own.insert(container.name.clone(), set);
        Ok(())
    }

    fn release(&mut self, uid: &str) -> bool {
        self.entries.remove(uid).is_some()
    }

    fn retain(&mut self, is_known: &dyn Fn(&str) -> bool) {
        self.entries.retain(|uid, _| is_known(uid));
    }

    fn tell(&self, uid: &str, container: &str, given: &mut Given) {
        let own = self.entries.get(uid).and_then(|it| it.get(container)).cloned();
        given.cpus = Some(own.unwrap_or_else(|| self.shared()));
    }

    fn own(&self, uid: &str, container: &str, owned: &mut Owned) {
        owned.cpus = self.entries.get(uid).and_then(|it| it.get(container)).cloned();
    }

    fn offer(&self, owned: &mut Owned) {
        owned.cpus = Some(self.layout.all().minus(&self.reserved));
    }

    fn keep(&self) -> std::io::Result<()> {
        let text = |all: &BTreeMap<String, CpuSet>| {
            all.iter().map(|(name, set)| (name.clone(), set.to_string())).collect()
        };
        let entries = self.entries.iter().map(|(uid, all)| (uid.clone(), text(all))).collect();
        let state = CpuState {
            policy_name: STATIC.to_lowercase(),
            default_cpu_set: self.shared().to_string(),
            entries,
        };
        write(&self.file, &state)
    }
}

#[derive(Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct MemoryState {
    policy_name: String,
    entries: Entries<Vec<Block>>,
}

/// Memory and huge pages of NUMA nodes for containers of Guaranteed pods.
pub struct Memory {
    layout: Arc<Layout>,
    reserved: BTreeMap<u32, Amounts>,
    entries: Entries<Vec<Block>>,
    file: PathBuf,
}

impl Memory {
    pub fn open(layout: Arc<Layout>, reserved: BTreeMap<u32, Amounts>, file: PathBuf) -> Self {
        let state: MemoryState = read(&file);
        Self { layout, reserved, entries: state.entries, file }
    }

    /// What is left for a pod's next container: an init container that runs to its end needs
    /// nothing beside the others.
    fn pools_for(&self, pod: &Pod) -> Pools {
        let uid = pod::uid(pod);
        let is_init = |name: &String| {
            pod::init_containers(pod).iter().any(|it| it.name == *name && !pod::is_sidecar(it))
        };
        let given = self.entries.iter().flat_map(|(of, all)| {
            all.iter().filter(move |(name, _)| of != uid || !is_init(name)).flat_map(|(_, it)| it)
        });
        Pools::new(&self.layout.memory, &self.reserved, given)
    }
}

fn amounts(pod: &Pod, container: &Container) -> Amounts {
    if resources::qos(pod) != Qos::Guaranteed {
        return Amounts::new();
    }
    let lists = container.resources.iter().flat_map(|it| [&it.requests, &it.limits]);
    let names = lists.flatten().flat_map(|list| list.keys());
    let mut out = Amounts::new();
    for name in names.filter(|name| *name == "memory" || name.starts_with("hugepages-")) {
        let bytes = u64::try_from(asked(container, name).unwrap_or(0) / 1000).unwrap_or(0);
        if bytes > 0 {
            out.insert(name.clone(), bytes);
        }
    }
    out
}

impl Provider for Memory {
    fn hints(&self, demand: Demand<'_>) -> Vec<Hints> {
        let pod = demand.pod;
        let wanted = match demand.container {
            Some((_, container)) => amounts(pod, container),
            None => {
                let mut out = Amounts::new();
                for (_, container) in pod::containers(pod) {
                    out.extend(amounts(pod, &container));
                }
                for (name, bytes) in &mut out {
                    let of = |it: &Container| amounts(pod, it).get(name).copied().unwrap_or(0);
                    *bytes = of_whole_pod(pod, of);
                }
                out
            }
        };
        memory::hints(&self.pools_for(pod), &wanted)
    }

    fn allocate(
        &mut self,
        pod: &Pod,
        _: Role,
        container: &Container,
        near: Option<Nodes>,
    ) -> Result<(), Refusal> {
        let wanted = amounts(pod, container);
        let held =
            self.entries.get(pod::uid(pod)).is_some_and(|it| it.contains_key(&container.name));
        if wanted.is_empty() || held {
            return Ok(());
        }
        let blocks = memory::allocate(&self.pools_for(pod), &wanted, near)
            .map_err(|why| unexpected(&why))?;
        let own = self.entries.entry(pod::uid(pod).to_owned()).or_default();
        own.insert(container.name.clone(), blocks);
        Ok(())
    }

    fn release(&mut self, uid: &str) -> bool {
        self.entries.remove(uid).is_some()
    }

    fn retain(&mut self, is_known: &dyn Fn(&str) -> bool) {
        self.entries.retain(|uid, _| is_known(uid));
    }

    fn tell(&self, uid: &str, container: &str, given: &mut Given) {
        let blocks = self.entries.get(uid).and_then(|it| it.get(container));
        given.memory =
            blocks.map(|blocks| Nodes::of(blocks.iter().flat_map(|it| it.nodes.clone())));
    }

    fn own(&self, uid: &str, container: &str, owned: &mut Owned) {
        let blocks = self.entries.get(uid).and_then(|it| it.get(container));
        owned.memory = blocks.cloned().unwrap_or_default();
    }

    fn offer(&self, owned: &mut Owned) {
        for (node, amounts) in &self.layout.memory {
            let kept = self.reserved.get(node);
            owned.memory.extend(amounts.iter().map(|(name, bytes)| Block {
                nodes: [*node].into(),
                resource: name.clone(),
                bytes: bytes.saturating_sub(kept.and_then(|it| it.get(name)).copied().unwrap_or(0)),
            }));
        }
    }

    fn keep(&self) -> std::io::Result<()> {
        let state = MemoryState { policy_name: STATIC.into(), entries: self.entries.clone() };
        write(&self.file, &state)
    }
}
