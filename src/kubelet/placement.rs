//! Gives containers places on the machine: CPUs of their own, memory of NUMA nodes, all near
//! each other where the node's policy asks for it.
//!
//! Those who give something out are providers; one place is sought for all of them, at
//! admission. What was given lies on disk, so that a restart gives it to nobody else.
//! Never touches a cgroup: `cpusets` says what belongs into them.

mod checkpoint;
mod cpus;
pub mod cpusets;
pub mod hints;
pub mod layout;
mod memory;
mod providers;

use std::path::Path;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Container, Pod};
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::devices::Devices;
use crate::metrics::node::{self as metrics, Boundary, Scope};
use crate::pod::{self, Role};
use hints::{Hints, Policy};
use layout::{CpuSet, Layout, Nodes};
pub use memory::{Amounts, Block};
use providers::{Cpus, Memory};
pub use providers::{of_whole_pod, unexpected, whole_cpus};

/// What the user chose.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    pub topology: Policy,
    pub topology_options: hints::Options,
    /// One place for all containers of a pod, not one for each.
    pub whole_pods: bool,
    /// The static policy; None gives no CPUs away.
    pub cpus: Option<cpus::Options>,
    /// `reservedSystemCPUs`.
    pub reserved_cpus: Option<CpuSet>,
    /// The static policy of memory, with what each NUMA node keeps; None gives none away.
    pub memory: Option<std::collections::BTreeMap<u32, Amounts>>,
}

pub use cpus::{NAMES as CPU_OPTIONS, Options as CpuOptions};

/// Whose place is sought: a container's, or that of a pod as a whole.
#[derive(Clone, Copy)]
pub struct Demand<'a> {
    pub pod: &'a Pod,
    pub container: Option<(Role, &'a Container)>,
}

/// Why a pod is refused: reason and message.
pub type Refusal = (&'static str, String);

/// What a container was given of the machine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Given {
    pub cpus: Option<CpuSet>,
    /// NUMA nodes of its memory.
    pub memory: Option<Nodes>,
}

/// What somebody has for himself alone, or could have.
#[derive(Debug, Clone, Default)]
pub struct Owned {
    pub cpus: Option<CpuSet>,
    pub memory: Vec<Block>,
}

/// Gives out one kind of resource, without a wait.
pub trait Provider: Send {
    /// Where the demand could be met, by resource; empty if it asks for nothing.
    fn hints(&self, demand: Demand<'_>) -> Vec<Hints>;
    /// Takes what the container asks for, near the nodes where there are some. Safe to repeat.
    ///
    /// # Errors
    /// Why the pod is refused.
    fn allocate(
        &mut self,
        pod: &Pod,
        role: Role,
        container: &Container,
        near: Option<Nodes>,
    ) -> Result<(), Refusal>;
    /// Gives back what the pod has. True if it had something.
    fn release(&mut self, uid: &str) -> bool;
    /// Forgets all pods but those.
    fn retain(&mut self, is_known: &dyn Fn(&str) -> bool);
    /// Adds what the container has of it.
    fn tell(&self, uid: &str, container: &str, given: &mut Given);
    /// Adds what the container has for itself.
    fn own(&self, uid: &str, container: &str, owned: &mut Owned);
    /// Adds all that can be given out.
    fn offer(&self, owned: &mut Owned);
    /// On disk once this is back.
    fn keep(&self) -> std::io::Result<()>;
}

pub struct Placements {
    settings: Settings,
    layout: Arc<Layout>,
    providers: Mutex<Vec<Box<dyn Provider>>>,
    /// What plugins bring. They are placed as the rest is, and asked afterwards.
    pub devices: Devices,
    /// Told when the CPUs that nobody has for himself change.
    pub changed: Notify,
}

impl Placements {
    /// Takes up what was given before. `reserved_milli` is what the node keeps of CPU.
    ///
    /// # Errors
    /// What was given before is not known for sure.
    pub fn open(
        settings: Settings,
        layout: Layout,
        dir: &Path,
        reserved_milli: i64,
    ) -> Result<Self, String> {
        check(&settings, &layout)?;
        let all = layout.nodes();
        let layout = Arc::new(layout);
        let (cpu_file, memory_file) =
            (dir.join("cpu_manager_state"), dir.join("memory_manager_state"));
        providers::unused(
            settings.cpus.is_none().then_some(&*cpu_file),
            settings.memory.is_none().then_some(&*memory_file),
        )?;
        let mut providers: Vec<Box<dyn Provider>> = Vec::new();
        if let Some(options) = settings.cpus {
            let kept = settings.reserved_cpus.clone().unwrap_or_else(|| {
                let count = usize::try_from(reserved_milli.max(0)).unwrap_or(0).div_ceil(1000);
                // More than there are leaves nothing to give away.
                cpus::reserved(&layout, count).unwrap_or_else(|_| layout.all())
            });
            providers.push(Box::new(Cpus::open(layout.clone(), kept, options, cpu_file)?));
        }
        if let Some(reserved) = &settings.memory {
            providers.push(Box::new(Memory::open(layout.clone(), reserved.clone(), memory_file)?));
        }
        let devices = Devices::open(dir, all);
        let providers = Mutex::new(providers);
        Ok(Self { settings, layout, providers, devices, changed: Notify::new() })
    }

    /// Gives the pod's containers their places, and has plugins prepare what they bring.
    ///
    /// # Errors
    /// Why the pod cannot run here; then it has nothing.
    pub async fn admit(&self, pod: &Pod) -> Result<(), Refusal> {
        let asks_plugins = self.devices.concern(pod);
        let places = !self.providers.lock().is_empty() || self.settings.topology != Policy::None;
        if !places && !asks_plugins {
            return Ok(());
        }
        let begun = std::time::Instant::now();
        let mut admitted = self.reserve(pod);
        metrics::placed(begun.elapsed(), admitted.is_err());
        if asks_plugins && admitted.is_ok() {
            for (role, container) in pod::containers(pod) {
                if role == Role::Ephemeral {
                    continue;
                }
                if let Err(why) = self.devices.settle(pod, &container).await {
                    admitted = Err(unexpected(&why));
                    break;
                }
            }
        }
        let mut providers = self.providers.lock();
        if admitted.is_err() {
            for provider in providers.iter_mut() {
                provider.release(pod::uid(pod));
            }
            self.devices.release(pod::uid(pod));
        }
        self.keep(&providers);
        if places {
            self.changed.notify_one();
        }
        admitted
    }

    /// Seeks places and takes them, at once.
    fn reserve(&self, pod: &Pod) -> Result<(), Refusal> {
        let providers = &mut *self.providers.lock();
        let options = self.settings.topology_options;
        let distances = options.closest.then_some(&*self.layout);
        let machine = hints::Machine { all: self.layout.nodes(), distances };
        let place = |providers: &[Box<dyn Provider>], demand: Demand<'_>| {
            let hints = providers.iter().flat_map(|it| it.hints(demand));
            let hints: Vec<Hints> = hints.chain(self.devices.hints(demand)).collect();
            match hints::place(self.settings.topology, machine, &hints) {
                (hint, true) => Ok(hint.nodes.filter(|_| !hints.is_empty())),
                (_, false) => Err((
                    "TopologyAffinityError",
                    "Resources cannot be allocated with Topology locality".to_owned(),
                )),
            }
        };
        // Only then is it promised that all lies on one NUMA node.
        let note = |scope: Scope, failed: bool| {
            if self.settings.topology == Policy::SingleNumaNode {
                metrics::aligned(scope, Boundary::NumaNode, failed);
            }
        };
        let noted = |scope: Scope, placed: Result<Option<Nodes>, Refusal>| {
            placed.inspect_err(|_| note(scope, true))
        };
        let whole = match self.settings.whole_pods {
            true => {
                let whole = Demand { pod, container: None };
                Some(noted(Scope::Pod, place(providers, whole))?)
            }
            false => None,
        };
        for (role, container) in pod::containers(pod) {
            if role == Role::Ephemeral {
                continue;
            }
            let near = match whole {
                Some(near) => near,
                None => {
                    let one = Demand { pod, container: Some((role, &container)) };
                    noted(Scope::Container, place(providers, one))?
                }
            };
            for provider in providers.iter_mut() {
                provider.allocate(pod, role, &container, near)?;
            }
            self.devices.reserve(pod, &container, near)?;
            if whole.is_none() {
                note(Scope::Container, false);
            }
        }
        if whole.is_some() {
            note(Scope::Pod, false);
        }
        Ok(())
    }

    /// What a container was given; CPUs are those that all share if it has none of its own.
    pub fn of(&self, uid: &str, container: &str) -> Given {
        let mut out = Given::default();
        for provider in self.providers.lock().iter() {
            provider.tell(uid, container, &mut out);
        }
        out
    }

    /// What the container has for itself alone.
    pub fn owned(&self, uid: &str, container: &str) -> Owned {
        let mut out = Owned::default();
        self.providers.lock().iter().for_each(|it| it.own(uid, container, &mut out));
        out
    }

    /// All that could be given out.
    pub fn allocatable(&self) -> Owned {
        let mut out = Owned::default();
        self.providers.lock().iter().for_each(|it| it.offer(&mut out));
        out
    }

    pub fn release(&self, uid: &str) {
        let mut providers = self.providers.lock();
        let had = providers.iter_mut().fold(false, |had, it| it.release(uid) | had);
        if self.devices.release(uid) | had {
            self.keep(&providers);
            self.changed.notify_one();
        }
    }

    /// Forgets pods that nobody knows any more.
    pub fn retain(&self, is_known: impl Fn(&str) -> bool) {
        let mut providers = self.providers.lock();
        providers.iter_mut().for_each(|it| it.retain(&is_known));
        self.devices.retain(&is_known);
        self.keep(&providers);
        self.changed.notify_one();
    }

    fn keep(&self, providers: &[Box<dyn Provider>]) {
        let kept = providers.iter().map(|it| it.keep()).chain([self.devices.keep()]);
        for kept in kept {
            if let Err(error) = kept {
                // It holds for as long as this process lives.
                tracing::warn!(%error, "what containers were given of the machine is not kept");
            }
        }
    }
}

/// # Errors
/// What the user chose, and this machine cannot do.
fn check(settings: &Settings, layout: &Layout) -> Result<(), String> {
    let (nodes, options) = (layout.nodes(), settings.topology_options);
    if settings.topology != Policy::None {
        if nodes.count() > options.nodes_max {
            return Err(format!(
                "unsupported on machines with more than {} NUMA Nodes",
                options.nodes_max
            ));
        }
        if options.closest && layout.mean_distance(nodes).is_none() {
            return Err("prefer-closest-numa-nodes: the kernel does not say how far NUMA nodes \
                        are from each other"
                .to_owned());
        }
    }
    if settings.cpus.is_some_and(|it| it.by_socket)
        && layout.sockets_of(nodes).len() > nodes.count() as usize
    {
        return Err("Align by socket is not compatible with hardware where number of sockets are \
                    more than number of NUMA"
            .to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::layout::samples::layout;
    use super::*;
    use crate::pod::samples::pod;
    use serde_json::{Value, json};

    fn sure(cpu: &str, memory: &str) -> Value {
        json!({"limits": {"cpu": cpu, "memory": memory}})
    }

    fn with(uid: &str, spec: Value) -> Pod {
        let mut pod = pod(spec);
        pod.metadata.uid = Some(uid.into());
        pod
    }

    fn one(uid: &str, cpu: &str, memory: &str) -> Pod {
        with(uid, json!({"containers": [{"name": "a", "resources": sure(cpu, memory)}]}))
    }

    fn settings(topology: Policy) -> Settings {
        Settings {
            topology,
            cpus: Some(CpuOptions::default()),
            memory: Some([].into()),
            ..Settings::default()
        }
    }

    /// No test here has plugins that could be waited for.
    fn admit(placements: &Placements, pod: &Pod) -> Result<(), Refusal> {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(placements.admit(pod))
    }

    fn shows(placements: &Placements, uid: &str, container: &str) -> String {
        let given = placements.of(uid, container);
        let memory = given.memory.map_or(0, |nodes| nodes.0);
        format!("{} {memory:b}", given.cpus.unwrap_or_default())
    }

    #[test]
    fn containers_with_whole_cpus_have_them_alone_and_keep_them_over_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        // Two nodes of four CPUs, of which the node keeps one.
        let open = || {
            Placements::open(settings(Policy::None), layout(2, 1, 4, 1), dir.path(), 500).unwrap()
        };
        let placements = open();
        admit(&placements, &one("a", "2", "600")).unwrap();
        assert_eq!(shows(&placements, "a", "a"), "1-2 1");
        // A part of a CPU, or no guarantee, is shared.
        admit(&placements, &one("b", "1500m", "600")).unwrap();
        assert_eq!(shows(&placements, "b", "a"), "0,3-7 10");
        admit(&placements, &with("c", json!({"containers": [{"name": "a"}]}))).unwrap();
        assert_eq!(shows(&placements, "c", "a"), "0,3-7 0");
        assert_eq!(
            admit(&placements, &one("d", "6", "1")).unwrap_err(),
            (
                "UnexpectedAdmissionError",
                "Allocate failed due to not enough cpus available to satisfy request: \
                 requested=6, available=5, which is unexpected"
                    .to_owned()
            )
        );
        let refused = admit(&placements, &one("e", "1", "601")).unwrap_err();
        assert!(refused.1.contains("[memorymanager] failed to get the default"), "{refused:?}");
        let state: Value =
            serde_json::from_slice(&std::fs::read(dir.path().join("cpu_manager_state")).unwrap())
                .unwrap();
        assert_eq!(state["policyName"], "static");
        assert_eq!(state["defaultCpuSet"], "0,3-7");
        assert_eq!(state["entries"], json!({"a": {"a": "1-2"}}), "what was refused has nothing");
        let placements = open();
        assert_eq!(shows(&placements, "a", "a"), "1-2 1");
        assert_eq!(shows(&placements, "b", "a"), "0,3-7 10");
        placements.release("a");
        assert_eq!(shows(&placements, "c", "a"), "0-7 0");
        admit(&placements, &one("d", "6", "1")).unwrap();
        placements.retain(|uid| uid == "b");
        assert_eq!(shows(&placements, "d", "a"), "0-7 0");
    }

    #[test]
    fn a_pod_with_resources_as_a_whole_has_nothing_for_itself() {
        let dir = tempfile::tempdir().unwrap();
        let placements =
            Placements::open(settings(Policy::None), layout(1, 1, 4, 1), dir.path(), 1000).unwrap();
        let mut whole = one("a", "2", "1");
        whole.spec.as_mut().unwrap().resources = serde_json::from_value(sure("3", "2")).unwrap();
        admit(&placements, &whole).unwrap();
        assert_eq!(shows(&placements, "a", "a"), "0-3 0");
        let container = &pod::spec(&whole).containers[0];
        assert_eq!(whole_cpus(&whole, container), 0, "and keeps its quota");
    }

    #[test]
    fn init_containers_hand_their_cpus_on() {
        let dir = tempfile::tempdir().unwrap();
        let placements =
            Placements::open(settings(Policy::None), layout(1, 1, 4, 1), dir.path(), 1000).unwrap();
        let it = with(
            "a",
            json!({
            "initContainers": [
                {"name": "i", "resources": sure("3", "1")},
                {"name": "s", "restartPolicy": "Always", "resources": sure("1", "1")}],
            "containers": [{"name": "m", "resources": sure("2", "1")}]}),
        );
        admit(&placements, &it).unwrap();
        let of = |name: &str| shows(&placements, "a", name);
        assert_eq!(
            (of("i").as_str(), of("s").as_str(), of("m").as_str()),
            ("1-3 1", "1 1", "2-3 1")
        );
    }

    #[test]
    fn policies_and_scopes_decide_what_is_admitted_and_where() {
        let two = |uid: &str| {
            with(
                uid,
                json!({"containers": [
                {"name": "a", "resources": sure("2", "1")},
                {"name": "b", "resources": sure("2", "1")}]}),
            )
        };
        let check = |policy, whole_pods, filler: Pod, it: &Pod| {
            let dir = tempfile::tempdir().unwrap();
            let mut settings = settings(policy);
            settings.whole_pods = whole_pods;
            settings.reserved_cpus = Some(CpuSet::parse("0").unwrap());
            let placements = Placements::open(settings, layout(2, 1, 4, 1), dir.path(), 0).unwrap();
            admit(&placements, &filler).unwrap();
            match admit(&placements, it) {
                Ok(()) => {
                    format!("{}; {}", shows(&placements, "x", "a"), shows(&placements, "x", "b"))
                }
                Err((reason, _)) => reason.to_owned(),
            }
        };
        let small = || with("f", json!({"containers": [{"name": "f"}]}));
        let near_full = || one("f", "2", "1");
        let x = two("x");
        let cases = [
            // Each container on one node, or both on the same one.
            (Policy::SingleNumaNode, false, small(), &x, "1-2 1; 4-5 10"),
            (Policy::SingleNumaNode, true, small(), &x, "4-5 10; 6-7 10"),
            (Policy::Restricted, false, near_full(), &x, "4-5 10; 6-7 10"),
        ];
        for (policy, whole, filler, it, want) in cases {
            assert_eq!(check(policy, whole, filler, it), want, "{policy:?} {whole}");
        }
        // This needs both nodes: that is as good as it gets, unless one node is asked for.
        let wide = one("x", "5", "1500");
        assert_eq!(check(Policy::Restricted, false, small(), &wide), "1,4-7 11; 0,2-3 0");
        let refused = check(Policy::SingleNumaNode, false, small(), &wide);
        assert_eq!(refused, "TopologyAffinityError");
        // Its CPUs need both nodes and its memory only one: no place suits both.
        let uneven = one("x", "5", "1");
        let refused = check(Policy::Restricted, false, small(), &uneven);
        assert_eq!(refused, "TopologyAffinityError");
        // Three would fit on one node, if there was one left.
        let three = one("x", "3", "1");
        let both = with(
            "f",
            json!({"containers": [
            {"name": "f", "resources": sure("2", "1")}, {"name": "g", "resources": sure("2", "1")}]}),
        );
        assert_eq!(check(Policy::Restricted, false, both.clone(), &three), "TopologyAffinityError");
        assert!(check(Policy::BestEffort, false, both, &three).starts_with("3,6-7 "));
    }

    #[test]
    fn no_core_is_shared_where_that_is_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let mut settings = settings(Policy::None);
        settings.cpus = Some(CpuOptions { full_cores: true, ..CpuOptions::default() });
        settings.reserved_cpus = Some(CpuSet::parse("0,2").unwrap());
        let placements = Placements::open(settings, layout(1, 1, 2, 2), dir.path(), 0).unwrap();
        assert_eq!(
            admit(&placements, &one("a", "1", "1")).unwrap_err(),
            (
                "SMTAlignmentError",
                "SMT Alignment Error: requested 1 cpus not multiple cpus per core = 2".to_owned()
            )
        );
        admit(&placements, &one("a", "2", "1")).unwrap();
        assert_eq!(shows(&placements, "a", "a"), "1,3 1");
    }

    #[test]
    fn cores_that_the_node_keeps_a_thread_of_are_nobodys() {
        let dir = tempfile::tempdir().unwrap();
        let mut settings = settings(Policy::None);
        settings.cpus = Some(CpuOptions { full_cores: true, ..CpuOptions::default() });
        settings.reserved_cpus = Some(CpuSet::parse("0").unwrap());
        // CPU n and n + 2 are one core.
        let placements = Placements::open(settings, layout(1, 1, 2, 2), dir.path(), 0).unwrap();
        admit(&placements, &one("a", "2", "1")).unwrap();
        assert_eq!(shows(&placements, "a", "a"), "1,3 1");
        assert_eq!(
            admit(&placements, &one("b", "2", "1")).unwrap_err(),
            (
                "SMTAlignmentError",
                "SMT Alignment Error: not enough free physical CPUs: available physical CPUs = 0, \
                 requested CPUs = 2, CPUs per core = 2"
                    .to_owned()
            )
        );
    }

    #[test]
    fn what_the_machine_cannot_do_is_refused_at_start() {
        let dir = tempfile::tempdir().unwrap();
        let refused = |settings: Settings, layout: Layout| {
            Placements::open(settings, layout, dir.path(), 1000).err().unwrap_or_default()
        };
        let nine = || layout(1, 9, 1, 1);
        assert_eq!(
            refused(settings(Policy::Restricted), nine()),
            "unsupported on machines with more than 8 NUMA Nodes"
        );
        assert_eq!(refused(settings(Policy::None), nine()), "");
        let with = |options| Settings { topology_options: options, ..settings(Policy::BestEffort) };
        let usual = hints::Options::default();
        assert_eq!(refused(with(hints::Options { nodes_max: 9, ..usual }), nine()), "");
        let said = refused(with(hints::Options { closest: true, ..usual }), layout(2, 1, 1, 1));
        assert!(said.starts_with("prefer-closest-numa-nodes"), "{said}");
        let mut by_socket = settings(Policy::None);
        by_socket.cpus = Some(CpuOptions { by_socket: true, ..CpuOptions::default() });
        let mut flat = layout(2, 1, 2, 1);
        flat.cpus.iter_mut().for_each(|cpu| cpu.node = 0);
        flat.memory.remove(&1);
        assert!(refused(by_socket, flat).starts_with("Align by socket is not compatible"));
    }

    #[test]
    fn a_state_of_another_machine_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let with = |strict: bool, reserved: &str| Settings {
            cpus: Some(CpuOptions { strict_reservation: strict, ..CpuOptions::default() }),
            reserved_cpus: Some(CpuSet::parse(reserved).unwrap()),
            ..Settings::default()
        };
        let open = |strict: bool, reserved: &str, cores: u32| {
            let layout = layout(1, 1, cores, 1);
            Placements::open(with(strict, reserved), layout, dir.path(), 0)
                .map_err(|why| why.split(", please drain").next().unwrap_or_default().to_owned())
        };
        admit(&open(false, "0", 4).unwrap(), &one("a", "2", "1")).unwrap();
        let said =
            |strict, reserved, cores| open(strict, reserved, cores).err().unwrap_or_default();
        assert_eq!(said(false, "0", 4), "");
        for (strict, reserved, cores, why) in [
            (
                false,
                "0",
                6,
                "current set of available CPUs \"0-5\" doesn't match with CPUs in state \"0-3\"",
            ),
            (
                false,
                "0",
                3,
                "current set of available CPUs \"0-2\" doesn't match with CPUs in state \"0-3\"",
            ),
            (
                false,
                "0-1",
                4,
                "not all reserved cpus: \"0-1\" are present in defaultCpuSet: \"0,3\"",
            ),
            (
                true,
                "0",
                4,
                "some of strictly reserved cpus: \"0\" are present in defaultCpuSet: \"0,3\"",
            ),
        ] {
            let got = said(strict, reserved, cores);
            assert!(got.ends_with(why), "{got}");
        }
        let file = dir.path().join("cpu_manager_state");
        let put = |default: &str| {
            let state = json!({"policyName": "static", "defaultCpuSet": default,
                               "entries": {"a": {"a": "1-2"}}});
            std::fs::write(&file, state.to_string()).unwrap();
        };
        put("0-3");
        assert!(
            said(false, "0", 4).contains(
                "pod: a, container: a cpuset: \"1-2\" overlaps with default cpuset \"0-3\""
            )
        );
        put("");
        assert!(said(false, "0", 4).ends_with("default cpuset cannot be empty"));
    }

    #[test]
    fn a_policy_is_not_left_with_a_word_of_what_it_gave() {
        let dir = tempfile::tempdir().unwrap();
        let open = |settings: Settings| {
            Placements::open(settings, layout(1, 1, 4, 1), dir.path(), 1000).err()
        };
        let placements =
            Placements::open(settings(Policy::None), layout(1, 1, 4, 1), dir.path(), 1000).unwrap();
        admit(&placements, &one("a", "2", "1")).unwrap();
        let none = || Settings { memory: Some([].into()), ..Settings::default() };
        let said = open(none()).unwrap();
        let why = "configured policy \"none\" differs from state checkpoint policy \"static\"";
        assert!(said.contains(why) && said.contains("drain this node"), "{said}");
        std::fs::remove_file(dir.path().join("cpu_manager_state")).unwrap();
        assert_eq!(open(none()), None);
        let said = open(Settings::default()).unwrap();
        assert!(said.contains("configured policy \"None\" differs"), "{said}");
        std::fs::remove_file(dir.path().join("memory_manager_state")).unwrap();
        assert_eq!(open(Settings::default()), None);
    }
}
