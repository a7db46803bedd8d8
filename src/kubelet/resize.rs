//! Changes of the resources of pods that run: which are granted, and what has to be done
//! for them.
//!
//! Granted resources are kept on disk with the pod, so that a restart does not grant what
//! did not fit. Decides; the worker carries out.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Container, Pod, ResourceRequirements};
use parking_lot::Mutex;
use runtime::cri::{ContainerState, LinuxResources};
use serde_json::json;
use tracing::warn;

use crate::config::KubeletConfig;
use crate::observed::PodRuntime;
use crate::placement::Settings;
use crate::pod::{self, Role};
use crate::quantity::{self, ResourceList};
use crate::resources::{self, Host};

const FILE: &str = "allocation.json";

/// Where an allocation has the resources of the pod as a whole: no container has this name.
const WHOLE: &str = "";

/// Granted resources by container name.
pub type Allocation = BTreeMap<String, ResourceRequirements>;

/// Why a change is not granted, for the condition PodResizePending.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pending {
    /// `Deferred` may be granted later, `Infeasible` never on this node.
    pub reason: &'static str,
    pub message: String,
    /// More of the reason, for metrics.
    pub detail: &'static str,
}

/// What the pod asks for now.
pub fn asked(pod: &Pod) -> Allocation {
    let all = pod::init_containers(pod).iter().chain(&pod::spec(pod).containers);
    let whole = pod::spec(pod).resources.iter().map(|it| (WHOLE.to_owned(), it.clone()));
    all.map(|it| (it.name.clone(), it.resources.clone().unwrap_or_default())).chain(whole).collect()
}

/// As events show it.
pub fn shown(allocation: &Allocation) -> serde_json::Value {
    let containers = allocation.iter().filter(|(name, _)| *name != WHOLE);
    let mut out = json!({"containers": containers
        .map(|(name, resources)| json!({"name": name, "resources": resources}))
        .collect::<Vec<_>>()});
    if let Some(whole) = allocation.get(WHOLE) {
        out["resources"] = json!(whole);
    }
    out
}

/// The pod with the resources that it was granted.
pub fn granted(pod: &Arc<Pod>, allocation: &Allocation) -> Arc<Pod> {
    if asked(pod) == *allocation {
        return pod.clone();
    }
    let mut out = (**pod).clone();
    if let Some(spec) = &mut out.spec {
        let init = spec.init_containers.iter_mut().flatten();
        for container in init.chain(&mut spec.containers) {
            if let Some(resources) = allocation.get(&container.name) {
                container.resources = Some(resources.clone());
            }
        }
        if let Some(whole) = allocation.get(WHOLE) {
            spec.resources = Some(whole.clone());
        }
    }
    Arc::new(out)
}

/// Whether a pod may have what it asks for beside the others, as they were granted.
pub fn judge(pod: &Pod, others: &[Arc<Pod>], allocatable: &ResourceList) -> Option<Pending> {
    for name in ["cpu", "memory"] {
        // CPU is told in thousandths, memory in bytes.
        let unit = if name == "cpu" { 1 } else { 1000 };
        let wanted = resources::pod_request_milli(pod, name);
        let there = quantity::milli_of(Some(allocatable), name);
        if wanted > there {
            let message = format!(
                "Node didn't have enough capacity: {name}, requested: {}, capacity: {}",
                wanted / unit,
                there / unit
            );
            let detail = "insufficient_node_allocatable";
            return Some(Pending { reason: "Infeasible", message, detail });
        }
        let used: i64 = others.iter().map(|it| resources::pod_request_milli(it, name)).sum();
        if used.saturating_add(wanted) > there {
            let message = format!(
                "Node didn't have enough resource: {name}, requested: {}, used: {}, capacity: {}",
                wanted / unit,
                used / unit,
                there / unit
            );
            return Some(Pending { reason: "Deferred", message, detail: "" });
        }
    }
    None
}

/// Whether the pod would have more of what nodes run short of.
pub fn grows(pod: &Pod, held: &Pod) -> bool {
    let of = resources::pod_request_milli;
    ["cpu", "memory"].into_iter().any(|name| of(pod, name) > of(held, name))
}

/// Who is asked first of those that wait for more (upstream): the important, the guaranteed,
/// and then who waits longest. `turn` says when its wait began.
pub fn rank(pod: &Pod, turn: u64) -> impl Ord + use<> {
    let is_sure = resources::qos(pod) == resources::Qos::Guaranteed;
    (Reverse(pod::spec(pod).priority.unwrap_or(0)), Reverse(is_sure), turn)
}

/// Containers whose granted resources differ.
pub fn changed<'a>(wanted: &'a Allocation, held: &'a Allocation) -> impl Iterator<Item = &'a str> {
    let changed = wanted.iter().filter(|(name, it)| held.get(*name) != Some(it));
    changed.map(|(name, _)| name.as_str())
}

/// What was given of the machine for a pod's whole life is not changed.
pub fn refuse_pinned(pod: &Pod, held: &Allocation, places: &Settings) -> Option<Pending> {
    if resources::qos(pod) != resources::Qos::Guaranteed {
        return None;
    }
    let of = |all: &Allocation, name: &str| -> BTreeMap<String, i64> {
        let milli = |it: &ResourceRequirements| quantity::milli_of(it.requests.as_ref(), name);
        all.iter().map(|(container, it)| (container.clone(), milli(it))).collect()
    };
    let wanted = asked(pod);
    let pinned = [
        (
            "cpu",
            places.cpus.is_some(),
            ("CPU Manager static policy", "guaranteed_pod_cpu_manager_static_policy"),
        ),
        (
            "memory",
            places.memory.is_some(),
            ("Memory Manager static policy", "guaranteed_pod_memory_manager_static_policy"),
        ),
    ];
    let found = pinned.into_iter().find(|(name, on, _)| *on && of(&wanted, name) != of(held, name));
    found.map(|(_, _, (what, detail))| Pending {
        reason: "Infeasible",
        message: format!("Resize is infeasible for Guaranteed Pods alongside {what}"),
        detail,
    })
}

/// A running container that does not have what it was granted.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    pub name: String,
    pub container_id: String,
    pub wanted: LinuxResources,
    /// The container asks to be restarted for it.
    pub restarts: bool,
}

fn restarts_for(container: &Container, resource: &str) -> bool {
    container
        .resize_policy
        .iter()
        .flatten()
        .any(|it| it.resource_name == resource && it.restart_policy == "RestartContainer")
}

pub fn differs(have: &LinuxResources, wanted: &LinuxResources) -> bool {
    have.cpu_shares != wanted.cpu_shares
        || have.cpu_quota != wanted.cpu_quota
        || have.memory_limit != wanted.memory_limit
}

/// What is to be done for the running containers of a pod as it was granted.
pub fn steps(pod: &Pod, runtime: &PodRuntime, host: Host) -> Vec<Step> {
    let mut out = Vec::new();
    for (role, container) in pod::containers(pod) {
        if matches!(role, Role::Ephemeral) {
            continue;
        }
        let Some(it) = runtime.container(&container.name) else { continue };
        let wanted = resources::container_resources(pod, role, &container, host);
        if it.state != ContainerState::Running || !differs(&it.resources, &wanted) {
            continue;
        }
        let have = &it.resources;
        let cpu = have.cpu_shares != wanted.cpu_shares || have.cpu_quota != wanted.cpu_quota;
        let memory = have.memory_limit != wanted.memory_limit;
        out.push(Step {
            restarts: (cpu && restarts_for(&container, "cpu"))
                || (memory && restarts_for(&container, "memory")),
            name: container.name,
            container_id: it.id.clone(),
            wanted,
        });
    }
    out
}

/// Pods that wait for more.
#[derive(Default)]
struct Deferred {
    /// By uid, the turn in which the wait began.
    turns: BTreeMap<String, u64>,
    next: u64,
    /// What they waited for was granted, which their workers do not know yet.
    granted: BTreeSet<String>,
}

/// What pods were granted, and which of them wait for more.
#[derive(Default)]
pub struct Allocations {
    held: Mutex<HashMap<String, Allocation>>,
    deferred: Mutex<Deferred>,
}

impl Allocations {
    fn file(config: &KubeletConfig, uid: &str) -> PathBuf {
        config.pod_dir(uid).join(FILE)
    }

    /// What the pod was granted; None before it was granted anything.
    pub fn get(&self, config: &KubeletConfig, uid: &str) -> Option<Allocation> {
        let mut held = self.held.lock();
        if let Some(known) = held.get(uid) {
            return Some(known.clone());
        }
        let text = std::fs::read(Self::file(config, uid)).ok()?;
        let read: Allocation = serde_json::from_slice(&text).ok()?;
        held.insert(uid.to_owned(), read.clone());
        Some(read)
    }

    pub fn set(&self, config: &KubeletConfig, uid: &str, allocation: Allocation) {
        let file = Self::file(config, uid);
        let write = || -> std::io::Result<()> {
            std::fs::create_dir_all(config.pod_dir(uid))?;
            let fresh = file.with_extension("json.new");
            std::fs::write(&fresh, serde_json::to_vec(&allocation)?)?;
            std::fs::rename(&fresh, &file)
        };
        if let Err(error) = write() {
            // It holds for as long as this process lives.
            warn!(path = %file.display(), %error, "granted resources not kept");
        }
        self.held.lock().insert(uid.to_owned(), allocation);
    }

    /// The pod as it was granted.
    pub fn view(&self, config: &KubeletConfig, pod: &Arc<Pod>) -> Arc<Pod> {
        match self.get(config, pod::uid(pod)) {
            Some(allocation) => granted(pod, &allocation),
            None => pod.clone(),
        }
    }

    pub fn defer(&self, uid: &str, is_deferred: bool) {
        let mut deferred = self.deferred.lock();
        if !is_deferred {
            deferred.turns.remove(uid);
        } else if !deferred.turns.contains_key(uid) {
            let turn = deferred.next;
            deferred.next += 1;
            deferred.turns.insert(uid.to_owned(), turn);
        }
    }

    /// When the wait of a pod began; later than all others where it has not.
    pub fn turn(&self, uid: &str) -> u64 {
        self.deferred.lock().turns.get(uid).copied().unwrap_or(u64::MAX)
    }

    /// Those that wait for more.
    pub fn waiting(&self) -> Vec<String> {
        self.deferred.lock().turns.keys().cloned().collect()
    }

    /// Grants a pod what it waited for. Its worker is to be woken.
    pub fn grant(&self, config: &KubeletConfig, uid: &str, allocation: Allocation) {
        self.set(config, uid, allocation);
        let mut deferred = self.deferred.lock();
        deferred.turns.remove(uid);
        deferred.granted.insert(uid.to_owned());
    }

    /// Whether the pod's wait has ended without its worker, once.
    pub fn was_granted(&self, uid: &str) -> bool {
        self.deferred.lock().granted.remove(uid)
    }

    /// Forgets a pod; those that wait for what it had are named.
    pub fn release(&self, uid: &str) -> Vec<String> {
        self.held.lock().remove(uid);
        let mut deferred = self.deferred.lock();
        deferred.turns.remove(uid);
        deferred.granted.remove(uid);
        deferred.turns.keys().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::samples::{container, sandbox};
    use crate::pod::samples::pod;
    use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
    use runtime::cri::SandboxState;
    use serde_json::json;

    fn asks(cpu: &str) -> Arc<Pod> {
        Arc::new(pod(json!({"containers": [{"name": "a",
            "resources": {"requests": {"cpu": cpu}, "limits": {"cpu": cpu, "memory": "64Mi"}},
            "resizePolicy": [{"resourceName": "memory", "restartPolicy": "RestartContainer"},
                             {"resourceName": "cpu", "restartPolicy": "NotRequired"}]}]})))
    }

    #[test]
    fn a_change_that_does_not_fit_is_deferred_or_never_granted() {
        let allocatable: ResourceList = [("cpu", "2"), ("memory", "1Gi")]
            .map(|(name, amount)| (name.to_owned(), Quantity(amount.to_owned())))
            .into();
        let others = [asks("1500m")];
        assert_eq!(judge(&asks("500m"), &others, &allocatable), None);
        assert_eq!(
            judge(&asks("1"), &others, &allocatable).unwrap(),
            Pending {
                reason: "Deferred",
                message: "Node didn't have enough resource: cpu, requested: 1000, used: 1500, \
                          capacity: 2000"
                    .into(),
                detail: "",
            }
        );
        assert_eq!(
            judge(&asks("4"), &others, &allocatable).unwrap().message,
            "Node didn't have enough capacity: cpu, requested: 4000, capacity: 2000"
        );
    }

    #[test]
    fn a_pod_is_seen_as_it_was_granted() {
        let allocation = asked(&asks("1"));
        let seen = granted(&asks("2"), &allocation);
        assert_eq!(asked(&seen), allocation);
    }

    #[test]
    fn containers_are_changed_or_restarted_as_their_policy_says() {
        let host = Host { memory_bytes: 1 << 30, ..Host::default() };
        let now = asks("500m");
        let (_, spec) = pod::container(&now, "a").unwrap();
        let mut running = container("a", ContainerState::Running, 0);
        running.resources = resources::container_resources(&now, Role::Main, &spec, host);
        let runtime = PodRuntime {
            sandboxes: vec![sandbox("s0", SandboxState::Ready, 0)],
            containers: vec![running],
        };
        assert!(steps(&now, &runtime, host).is_empty());
        let step = steps(&asks("1"), &runtime, host).remove(0);
        assert_eq!((step.wanted.cpu_quota, step.restarts), (100_000, false));
        let mut more = (*asks("500m")).clone();
        let limits = more.spec.as_mut().unwrap().containers[0].resources.as_mut().unwrap();
        limits.limits.as_mut().unwrap().insert("memory".into(), Quantity("128Mi".into()));
        assert!(steps(&more, &runtime, host)[0].restarts);
    }

    #[test]
    fn what_was_granted_survives_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let mut config = crate::sandbox::samples::config();
        config.root_dir = dir.path().to_path_buf();
        let first = Allocations::default();
        assert_eq!(first.get(&config, "u"), None);
        first.set(&config, "u", asked(&asks("1")));
        let second = Allocations::default();
        assert_eq!(second.get(&config, "u"), Some(asked(&asks("1"))));
        second.defer("v", true);
        assert_eq!(second.release("u"), ["v"]);
        second.grant(&config, "v", asked(&asks("2")));
        assert_eq!(second.get(&config, "v"), Some(asked(&asks("2"))));
        assert_eq!(second.waiting(), [""; 0]);
        assert!(second.was_granted("v") && !second.was_granted("v"));
    }

    #[test]
    fn the_important_are_asked_first_then_the_sure_then_those_who_wait_longest() {
        let with = |priority: i32, cpu: &str| {
            pod(json!({"priority": priority, "containers": [{"name": "a", "resources": {
                "requests": {"cpu": cpu}, "limits": {"cpu": "1", "memory": "1Mi"}}}]}))
        };
        let (low, sure, high) = (with(0, "500m"), with(0, "1"), with(9, "500m"));
        let mut all =
            [("early", &low, 1), ("late", &low, 2), ("sure", &sure, 3), ("high", &high, 4)];
        all.sort_by_key(|(_, pod, turn)| Reverse(rank(pod, *turn)));
        all.reverse();
        assert_eq!(all.map(|(name, ..)| name), ["high", "sure", "early", "late"]);
        assert!(grows(&sure, &low) && !grows(&low, &sure) && !grows(&low, &low));
        let (one, two) = (asked(&asks("1")), asked(&asks("2")));
        assert_eq!(changed(&one, &two).collect::<Vec<_>>(), ["a"]);
        assert_eq!(changed(&one, &one).count(), 0);
    }
}
