//! Who gives out CPUs and memory, and what they have given, on disk in upstream's form.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Container, Pod};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::checkpoint::{self, State};
use super::hints::Hints;
use super::layout::{CpuSet, Layout, Nodes};
use super::memory::{Amounts, Block, Pools};
use super::{Demand, Given, Owned, Provider, Refusal, cpus, memory};
use crate::metrics::node::{self as metrics, Boundary, Scope};
use crate::pod::{self, Role};
use crate::quantity;
use crate::resources::{self, Qos};

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

#[derive(Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct CpuState {
    policy_name: String,
    default_cpu_set: String,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    entries: Entries<String>,
    #[serde(default)]
    checksum: u64,
}

impl State for CpuState {
    const POLICY: &str = "static";
    const WHOSE: &str = "CPU";

    fn policy(&self) -> &str {
        &self.policy_name
    }

    fn checksum(&mut self) -> &mut u64 {
        &mut self.checksum
    }

    /// As Go prints the state, which is what upstream sums up.
    fn summed(&self) -> String {
        let map = |parts: Vec<String>| format!("map[{}]", parts.join(" "));
        let entries = self.entries.iter().map(|(uid, all)| {
            let all = all.iter().map(|(name, cpus)| format!("{name}:{cpus}"));
            format!("{uid}:{}", map(all.collect()))
        });
        format!(
            "(*state.CPUManagerCheckpoint){{PolicyName:(string){} DefaultCPUSet:(string){} \
             Entries:(map[string]map[string]string){} Checksum:(checksum.Checksum)0}}",
            self.policy_name,
            self.default_cpu_set,
            map(entries.collect())
        )
    }
}

/// Where no CPUs, or no memory, are given away: that nobody did before.
///
/// # Errors
/// What an earlier kubelet gave away is still written down.
pub fn unused(cpus: Option<&Path>, memory: Option<&Path>) -> Result<(), String> {
    cpus.map_or(Ok(()), |file| checkpoint::unused::<CpuState>(file, "none"))?;
    memory.map_or(Ok(()), |file| checkpoint::unused::<MemoryState>(file, "None"))
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
    /// # Errors
    /// A file of what was given before that cannot be relied on.
    pub fn open(
        layout: Arc<Layout>,
        reserved: CpuSet,
        options: cpus::Options,
        file: PathBuf,
    ) -> Result<Self, String> {
        let state: CpuState = checkpoint::read(&file)?;
        let entries = known(&state, &layout, &reserved, options)
            .map_err(|why| checkpoint::refused::<CpuState>(&file, &why))?;
        Ok(Self { layout, reserved, options, entries, file })
    }

    /// # Errors
    /// Why the container gets none.
    fn give(
        &mut self,
        pod: &Pod,
        container: &Container,
        count: usize,
        near: Option<Nodes>,
    ) -> Result<(), Refusal> {
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
        let mut free = self.free_for(pod);
        if self.options.full_cores {
            // A core that the node keeps a thread of would be shared with it.
            free = free.minus(&self.layout.cores_of(&self.reserved));
            if count > free.len() {
                return Err((
                    "SMTAlignmentError",
                    format!(
                        "SMT Alignment Error: not enough free physical CPUs: available physical \
                         CPUs = {}, requested CPUs = {count}, CPUs per core = {threads}",
                        free.len()
                    ),
                ));
            }
        }
        let set = cpus::allocate(&self.layout, &free, count, near, self.options)
            .map_err(|why| unexpected(&why))?;
        let own = self.entries.entry(pod::uid(pod).to_owned()).or_default();
        own.insert(container.name.clone(), set);
        Ok(())
    }

    fn lies_in_one_cache(&self, pod: &Pod, container: &Container) -> bool {
        let own = self.entries.get(pod::uid(pod)).and_then(|it| it.get(&container.name));
        own.is_some_and(|own| self.layout.caches_of(own).len() == 1)
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

/// What the state gives to containers, where it is of this machine and these reservations.
///
/// # Errors
/// What does not fit.
fn known(
    state: &CpuState,
    layout: &Layout,
    reserved: &CpuSet,
    options: cpus::Options,
) -> Result<Entries<CpuSet>, String> {
    let mut there = layout.all();
    if options.strict_reservation {
        there = there.minus(reserved);
    }
    let shared = CpuSet::parse(&state.default_cpu_set)?;
    let mut entries: Entries<CpuSet> = BTreeMap::new();
    for (uid, containers) in &state.entries {
        for (name, text) in containers {
            entries.entry(uid.clone()).or_default().insert(name.clone(), CpuSet::parse(text)?);
        }
    }
    if shared.len() == 0 {
        return match entries.is_empty() {
            true => Ok(entries),
            false => Err("default cpuset cannot be empty".to_owned()),
        };
    }
    let kept = reserved.and(&shared);
    if options.strict_reservation && kept.len() > 0 {
        return Err(format!(
            "some of strictly reserved cpus: \"{kept}\" are present in defaultCpuSet: \"{shared}\""
        ));
    }
    if !options.strict_reservation && kept != *reserved {
        return Err(format!(
            "not all reserved cpus: \"{reserved}\" are present in defaultCpuSet: \"{shared}\""
        ));
    }
    let mut all = shared.clone();
    for (uid, containers) in &entries {
        for (name, set) in containers {
            if shared.and(set).len() > 0 {
                return Err(format!(
                    "pod: {uid}, container: {name} cpuset: \"{set}\" overlaps with default cpuset \
                     \"{shared}\""
                ));
            }
            all = all.plus(set);
        }
    }
    if all != there {
        return Err(format!(
            "current set of available CPUs \"{there}\" doesn't match with CPUs in state \"{all}\""
        ));
    }
    Ok(entries)
}

/// Whether containers of the pod may have something for themselves. Not those of a pod that has
/// resources as a whole: what is whose is not said (upstream, without `PodLevelResourceManagers`).
fn is_sure(pod: &Pod) -> bool {
    resources::qos(pod) == Qos::Guaranteed && !resources::has_whole(pod)
}

/// Whole CPUs that the container has a right to under the static policy; 0 is none.
pub fn whole_cpus(pod: &Pod, container: &Container) -> u64 {
    if !is_sure(pod) {
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
        vec![cpus::hints(&self.layout, &self.free_for(pod), count, self.options)]
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
        let given = self.give(pod, container, count, near);
        metrics::cpus_given(given.is_err());
        if self.options.full_cores {
            metrics::aligned(Scope::Container, Boundary::PhysicalCpu, given.is_err());
        }
        if given.is_ok() && self.lies_in_one_cache(pod, container) {
            metrics::aligned(Scope::Container, Boundary::UncoreCache, false);
        }
        given
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
            policy_name: CpuState::POLICY.to_owned(),
            default_cpu_set: self.shared().to_string(),
            entries,
            checksum: 0,
        };
        let own = self.entries.values().flat_map(BTreeMap::values).map(CpuSet::len).sum();
        metrics::cpus_stand(self.shared().minus(&self.reserved).len(), own);
        let own = self.entries.values().flat_map(BTreeMap::values);
        let own = own.fold(CpuSet::default(), |all, set| all.plus(set));
        let on = |node: u32| own.and(&self.layout.cpus_in(Nodes::one(node))).len();
        metrics::cpus_lie(self.layout.nodes().iter().map(|node| (node, on(node))));
        checkpoint::write(&self.file, state)
    }
}

#[derive(Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct MemoryState {
    policy_name: String,
    entries: Entries<Vec<Block>>,
    #[serde(default)]
    checksum: u64,
}

impl State for MemoryState {
    const POLICY: &str = "Static";
    const WHOSE: &str = "memory";

    fn policy(&self) -> &str {
        &self.policy_name
    }

    fn checksum(&mut self) -> &mut u64 {
        &mut self.checksum
    }

    fn summed(&self) -> String {
        let sum = json!({"policyName": self.policy_name, "entries": self.entries});
        sum.to_string()
    }
}

/// Memory and huge pages of NUMA nodes for containers of Guaranteed pods.
pub struct Memory {
    layout: Arc<Layout>,
    reserved: BTreeMap<u32, Amounts>,
    entries: Entries<Vec<Block>>,
    file: PathBuf,
}

impl Memory {
    /// # Errors
    /// A file of what was given before that cannot be relied on.
    pub fn open(
        layout: Arc<Layout>,
        reserved: BTreeMap<u32, Amounts>,
        file: PathBuf,
    ) -> Result<Self, String> {
        let state: MemoryState = checkpoint::read(&file)?;
        Ok(Self { layout, reserved, entries: state.entries, file })
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
    if !is_sure(pod) {
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
        let blocks = memory::allocate(&self.pools_for(pod), &wanted, near);
        metrics::memory_given(blocks.is_err());
        let blocks = blocks.map_err(|why| unexpected(&why))?;
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
        let state = MemoryState {
            policy_name: MemoryState::POLICY.to_owned(),
            entries: self.entries.clone(),
            checksum: 0,
        };
        checkpoint::write(&self.file, state)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Files with sums that kubelets of upstream wrote.
    #[test]
    fn the_sum_of_cpus_is_upstreams() {
        let cases = [
            (json!({"policyName": "none", "defaultCpuSet": ""}), 1_353_318_690),
            (
                json!({"policyName": "static", "defaultCpuSet": "0,4-27",
                    "entries": {"39b37746-7f5e-4064-b8e1-eebd2bfaa003": {"app": "1-3"}}}),
                3_300_516_549,
            ),
            (
                json!({"policyName": "static", "defaultCpuSet": "0,4-8,12-15",
                    "entries": {
                        "088fe178-cec9-4eb9-ba3c-cf45cba46371": {"qos-demo-ctr": "1,9"},
                        "681eca58-a216-4ec4-a57b-941cad3c4e0f": {"qos-demo-ctr": "2-3,10-11"}}}),
                2_993_692_383,
            ),
        ];
        for (state, want) in cases {
            let state: CpuState = serde_json::from_value(state).unwrap();
            assert_eq!(checkpoint::sum(&state), want);
        }
    }

    #[test]
    fn a_file_that_cannot_be_relied_on_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("cpu_manager_state");
        let read = |text: &str| {
            std::fs::write(&file, text).unwrap();
            checkpoint::read::<CpuState>(&file).map(|it| it.default_cpu_set)
        };
        let at = |text: &str, sum: &str| {
            format!("{{\"policyName\":\"{text}\",\"defaultCpuSet\":\"7-9\"{sum}}}")
        };
        let good = checkpoint::sum(&CpuState {
            policy_name: "static".into(),
            default_cpu_set: "7-9".into(),
            ..CpuState::default()
        });
        let cases = [
            (at("static", ""), Ok("7-9")),
            (at("static", &format!(",\"checksum\":{good}")), Ok("7-9")),
            (at("static", ",\"checksum\":1"), Err("checkpoint is corrupted")),
            (at("none", ""), Err("\"static\" differs from state checkpoint policy \"none\"")),
            ("{".to_owned(), Err("EOF")),
            (String::new(), Err("EOF")),
        ];
        for (text, want) in cases {
            match (read(&text), want) {
                (Ok(got), want) => assert_eq!(Ok(got.as_str()), want, "{text}"),
                (Err(why), want) => {
                    let want = want.unwrap_err();
                    assert!(why.contains(want) && why.contains("drain this node"), "{why}");
                }
            }
        }
        std::fs::remove_file(&file).unwrap();
        assert_eq!(checkpoint::read::<CpuState>(&file).unwrap().default_cpu_set, "");
        let memory = dir.path().join("memory_manager_state");
        let state = MemoryState { policy_name: "Static".into(), ..MemoryState::default() };
        checkpoint::write(&memory, state).unwrap();
        checkpoint::read::<MemoryState>(&memory).unwrap();
        let text = std::fs::read_to_string(&memory).unwrap();
        std::fs::write(&memory, text.replace("\"entries\":{}", "\"entries\":{\"a\":{}}")).unwrap();
        assert!(checkpoint::read::<MemoryState>(&memory).is_err());
    }
}
