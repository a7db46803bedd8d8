//! Keeps the node alive: frees what it runs short of, first what nobody needs, then pods;
//! and ends pods that use more disk than they may.
//!
//! Looks when the kernel tells of memory pressure, and at an interval at what it tells
//! nothing about. Decides in `eviction/`; pods end in their own workers.

pub mod limits;
pub mod psi;
pub mod rank;
pub mod thresholds;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use base::drain::Drain;
use k8s_openapi::api::core::v1::Pod;
use parking_lot::Mutex;
use runtime::cri::ContainerState;
use tokio::sync::Notify;
use tracing::{info, warn};

use crate::admission::preempt;
use crate::machine::meminfo;
use crate::metrics::node as metrics;
use crate::node::Node;
use crate::resources::{self, Qos};
use crate::usage::{self, PodUsage};
use crate::{garbage, pod, quantity};
use rank::Candidate;
use thresholds::{Amount, Condition, Observation, Observations, Policy, Signal, State};

/// How often disks, processes and memory are looked at (upstream's).
const PERIOD: Duration = Duration::from_secs(10);
/// Measuring files takes at most this part of one CPU: after a look that took long, the
/// next one waits longer.
const FILES_CPU_SHARE: u32 = 500;
/// But no longer than this, however slow the disk is (upstream's `volumeStatsAggPeriod`).
const FILES_PERIOD_MAX: Duration = Duration::from_secs(60);
/// An evicted pod is waited for so long before the next one is chosen.
const END_PATIENCE: Duration = Duration::from_secs(30);
/// Grace of a pod that is evicted at once, and the least of any.
const IMMEDIATE_GRACE_SECONDS: i64 = 1;
pub const REASON: &str = "Evicted";

/// A pod's sentence. Its worker carries it out.
pub struct Sentence {
    /// Of the pod's status.
    pub reason: &'static str,
    pub message: String,
    pub grace_seconds: i64,
    /// The node's doing, not the pod's own: its condition DisruptionTarget says so.
    pub is_disruption: bool,
    /// Told once nothing of the pod is left on the node.
    pub ended: Notify,
}

/// The pressure that the node is under, for its status and for those who want to run here.
#[derive(Default)]
pub struct Pressure {
    conditions: Mutex<BTreeSet<Condition>>,
    /// Told when they change.
    pub changed: Notify,
}

impl Pressure {
    pub fn is(&self, condition: Condition) -> bool {
        self.conditions.lock().contains(&condition)
    }

    fn set(&self, conditions: BTreeSet<Condition>) {
        let mut held = self.conditions.lock();
        if *held != conditions {
            *held = conditions;
            self.changed.notify_one();
        }
    }

    /// Why a pod may not begin to run here now.
    pub fn refuse(&self, pod: &Pod) -> Option<(String, String)> {
        let held = self.conditions.lock();
        if held.is_empty() || rank::is_critical(pod) {
            return None;
        }
        let only_memory = held.len() == 1 && held.contains(&Condition::Memory);
        if only_memory && (resources::qos(pod) != Qos::BestEffort || tolerates_memory(pod)) {
            return None;
        }
        let names: Vec<String> = held.iter().map(ToString::to_string).collect();
        Some((REASON.to_owned(), format!("The node had condition: [{}]. ", names.join(" "))))
    }
}

fn tolerates_memory(pod: &Pod) -> bool {
    pod::spec(pod).tolerations.iter().flatten().any(|it| {
        let key = it.key.as_deref().unwrap_or_default();
        let exists = it.operator.as_deref() == Some("Exists");
        let effect = it.effect.as_deref().unwrap_or_default();
        (key == "node.kubernetes.io/memory-pressure" || (key.is_empty() && exists))
            && (exists || it.value.as_deref().unwrap_or_default().is_empty())
            && (effect.is_empty() || effect == "NoSchedule")
    })
}

/// Looks after the node until the drain begins.
pub async fn run(node: Arc<Node>, drain: Drain) {
    let work = async {
        let memory = psi::Trigger::open();
        let mut state = State::default();
        let mut files_at = Instant::now();
        let mut policy = node.config.eviction.clone();
        if node.config.enforce_allocatable {
            policy = policy.with_allocatable();
        }
        loop {
            let evicted = step(&node, &policy, &mut state, &mut files_at).await;
            if let Some(sentence) = evicted {
                let ended = tokio::time::timeout(END_PATIENCE, sentence.ended.notified());
                if ended.await.is_err() {
                    warn!("an evicted pod is still there");
                }
                continue;
            }
            tokio::select! {
                () = tokio::time::sleep(PERIOD) => {}
                () = psi::pressed(memory.as_ref()) => {}
            }
        }
    };
    drain.until(work).await;
}

/// One look. Some is a pod that was evicted.
async fn step(
    node: &Arc<Node>,
    policy: &Policy,
    state: &mut State,
    files_at: &mut Instant,
) -> Option<Arc<Sentence>> {
    let seen = observe(node).await;
    let seen_at = Instant::now();
    let verdict = thresholds::judge(policy, state, &seen, seen_at);
    node.pressure.set(verdict.conditions);
    if Instant::now() >= *files_at {
        let begun = Instant::now();
        let evicted = enforce_limits(node).await;
        let wait = (begun.elapsed() * FILES_CPU_SHARE).clamp(PERIOD, FILES_PERIOD_MAX);
        // From its end: a look that takes longer than that still leaves time for others.
        *files_at = Instant::now() + wait;
        if evicted.is_some() {
            return evicted;
        }
    }
    let threshold = policy.thresholds.get(verdict.act_on?)?;
    let signal = threshold.signal;
    let about = node.reference();
    let text = format!("Attempting to reclaim {}", signal.resource());
    node.recorder.warning(&about, "EvictionThresholdMet", text);
    if signal.condition() == Condition::Disk && reclaim_disk(node, policy, state).await {
        return None;
    }
    let grace = match threshold.grace {
        None => IMMEDIATE_GRACE_SECONDS,
        Some(_) => policy.pod_grace_seconds_max.max(IMMEDIATE_GRACE_SECONDS),
    };
    let seen = seen.get(&signal)?;
    let bound = match &threshold.amount {
        Amount::Quantity(amount) => amount.0.clone(),
        Amount::Share(_) => {
            let bytes = threshold.amount.of(seen.capacity);
            if signal == Signal::PidAvailable { bytes.to_string() } else { rank::binary(bytes) }
        }
    };
    let evicted = evict_one(node, signal, &bound, seen.available, grace).await;
    if evicted.is_some() {
        metrics::evicted_for(signal.as_str(), seen_at.elapsed());
    }
    evicted
}

async fn observe(node: &Node) -> Observations {
    let mut out = Observations::new();
    let memory = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let bytes = |name: &str| meminfo(&memory, name).and_then(|it| u64::try_from(it).ok());
    if let (Some(available), Some(capacity)) = (bytes("MemAvailable"), bytes("MemTotal")) {
        out.insert(Signal::MemoryAvailable, Observation { available, capacity });
    }
    if let Some(seen) = of_allocatable(node) {
        out.insert(Signal::AllocatableMemoryAvailable, seen);
    }
    let (used, capacity) = usage::processes();
    let available = capacity.saturating_sub(used);
    out.insert(Signal::PidAvailable, Observation { available, capacity });
    let disks = [
        (node.config.root_dir.clone(), Signal::NodeFsAvailable, Signal::NodeFsInodesFree),
        (node.images.service.image_dir(), Signal::ImageFsAvailable, Signal::ImageFsInodesFree),
        (node.config.root_dir.clone(), Signal::ContainerFsAvailable, Signal::ContainerFsInodesFree),
    ];
    for (path, bytes, inodes) in disks {
        let Some(fs) = usage::filesystem(&path) else { continue };
        let (available, capacity) = (fs.available_bytes, fs.capacity_bytes);
        out.insert(bytes, Observation { available, capacity });
        // Some file systems have as many as they have room for.
        if fs.inodes > 0 {
            let (available, capacity) = (fs.inodes_free, fs.inodes);
            out.insert(inodes, Observation { available, capacity });
        }
    }
    out
}

/// What pods together may have of memory, and what they have left of it.
fn of_allocatable(node: &Node) -> Option<Observation> {
    let whole = quantity::milli_of(Some(&node.machine.capacity), "memory");
    let reserved = node.config.reserved_milli("memory");
    let capacity = u64::try_from(whole.saturating_sub(reserved) / 1000).ok()?;
    // Before the first pod there is no group.
    let group = sys::cgroup::Hierarchy::detect().ok()?.group(&node.config.cgroup_root);
    let used = group.usage().ok()?.memory_working_set_bytes;
    Some(Observation { available: capacity.saturating_sub(used), capacity })
}

/// Removes what nobody needs. True when that was enough.
async fn reclaim_disk(node: &Arc<Node>, policy: &Policy, state: &mut State) -> bool {
    let is_enough = async |state: &mut State| {
        let seen = observe(node).await;
        let verdict = thresholds::judge(policy, state, &seen, Instant::now());
        let threshold = verdict.act_on.and_then(|at| policy.thresholds.get(at));
        threshold.is_none_or(|it| it.signal.condition() != Condition::Disk)
    };
    garbage::remove_dead_containers(node).await;
    if is_enough(state).await {
        return true;
    }
    if let Err(error) = garbage::remove_unused_images(node).await {
        warn!(error, "images not removed");
    }
    is_enough(state).await
}

/// Pods that run here and have not been sentenced.
fn living(node: &Node) -> Vec<Arc<Pod>> {
    let pods = node.pods.list().into_iter();
    pods.filter(|it| !it.gone && it.sentence.is_none())
        .filter(|it| !pod::is_terminal_phase(pod::phase(&it.pod)))
        .map(|it| it.pod)
        .collect()
}

async fn evict_one(
    node: &Arc<Node>,
    signal: Signal,
    bound: &str,
    available: u64,
    grace_seconds: i64,
) -> Option<Arc<Sentence>> {
    let with_files = signal.condition() == Condition::Disk;
    let used = match usage::read(node, with_files).await {
        Ok(usage) => usage.pods,
        Err(error) => {
            warn!(error, "usage not read; no pod evicted");
            return None;
        }
    };
    let by_uid: HashMap<&str, &PodUsage> = used.iter().map(|it| (it.uid.as_str(), it)).collect();
    let pods: Vec<Arc<Pod>> =
        living(node).into_iter().filter(|pod| !rank::is_critical(pod)).collect();
    let mut candidates: Vec<Candidate<'_>> = pods
        .iter()
        .map(|pod| Candidate { pod, usage: by_uid.get(pod::uid(pod)).copied() })
        .collect();
    rank::rank(&mut candidates, signal);
    let Some(first) = candidates.first() else {
        warn!(signal = signal.as_str(), "the node runs short, and no pod can be evicted");
        return None;
    };
    let message = rank::message(first, signal, bound, available);
    metrics::evicted(signal.as_str());
    Some(evict(node, first.pod, message, grace_seconds, true))
}

fn evict(
    node: &Node,
    pod: &Pod,
    message: String,
    grace_seconds: i64,
    is_disruption: bool,
) -> Arc<Sentence> {
    info!(pod = %pod::display(pod), message, "pod evicted");
    node.recorder.warning(&client::recorder::reference(pod), REASON, message.clone());
    let (reason, ended) = (REASON, Notify::new());
    let sentence = Arc::new(Sentence { reason, message, grace_seconds, is_disruption, ended });
    node.pods.sentence(pod::uid(pod), sentence.clone());
    sentence
}

/// Ends pods for the sake of a critical one that lacks `resource`, each with the time that it
/// asks for.
pub async fn preempt(node: &Node, pods: &[Arc<Pod>], resource: &str) {
    let (reason, message) = (preempt::REASON, preempt::MESSAGE);
    let sentences: Vec<Arc<Sentence>> = pods
        .iter()
        .map(|pod| {
            info!(pod = %pod::display(pod), "pod makes room for a critical one");
            metrics::preempted(resource);
            node.recorder.warning(&client::recorder::reference(&**pod), reason, message);
            let sentence = Arc::new(Sentence {
                reason,
                message: message.to_owned(),
                grace_seconds: pod::grace_period_seconds(pod),
                is_disruption: true,
                ended: Notify::new(),
            });
            node.pods.sentence(pod::uid(pod), sentence.clone());
            sentence
        })
        .collect();
    let longest = sentences.iter().map(|it| it.grace_seconds).max().unwrap_or_default();
    let patience = END_PATIENCE + Duration::from_secs(longest.max(0).unsigned_abs());
    let all = sentences.iter().map(|it| it.ended.notified());
    if tokio::time::timeout(patience, futures::future::join_all(all)).await.is_err() {
        warn!("pods that were to make room are still there");
    }
}

/// Ends a pod that uses more disk than its limits allow. Only pods with limits are looked at.
async fn enforce_limits(node: &Arc<Node>) -> Option<Arc<Sentence>> {
    let pods: BTreeMap<String, Arc<Pod>> = living(node)
        .into_iter()
        .filter(|pod| !rank::is_critical(pod) && limits::has_any(pod))
        .map(|pod| (pod::uid(&pod).to_owned(), pod))
        .collect();
    if pods.is_empty() {
        return None;
    }
    let used = match usage::read_pods(node, pods.keys().cloned().collect()).await {
        Ok(used) => used,
        Err(error) => {
            warn!(error, "use of disk not read");
            return None;
        }
    };
    let mut last = None;
    for usage in &used {
        let Some(pod) = pods.get(&usage.uid) else { continue };
        if let Some((limit, message)) = limits::broken(pod, usage) {
            metrics::evicted(limit);
            last = Some(evict(node, pod, message, IMMEDIATE_GRACE_SECONDS, false));
        }
    }
    last
}

/// Whether a container has ended and another of its name came after it.
pub fn is_superseded(all: &[runtime::cri::Container], one: &runtime::cri::Container) -> bool {
    one.state == ContainerState::Exited
        && all.iter().any(|other| {
            other.sandbox_id == one.sandbox_id
                && other.metadata.name == one.metadata.name
                && other.created_at > one.created_at
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::samples::pod;
    use serde_json::json;

    #[test]
    fn under_pressure_only_those_may_begin_who_do_no_harm() {
        let best = pod(json!({"containers": [{"name": "a"}]}));
        let burst = pod(json!({"containers": [{"name": "a",
            "resources": {"requests": {"memory": "1Mi"}}}]}));
        let critical = pod(json!({"priority": 2_000_001_000, "containers": [{"name": "a"}]}));
        let tolerant = pod(json!({"containers": [{"name": "a"}], "tolerations": [
            {"key": "node.kubernetes.io/memory-pressure", "operator": "Exists"}]}));
        let pressure = Pressure::default();
        assert_eq!(pressure.refuse(&best), None);
        pressure.set([Condition::Memory].into());
        assert_eq!(
            pressure.refuse(&best).unwrap(),
            ("Evicted".to_owned(), "The node had condition: [MemoryPressure]. ".to_owned())
        );
        assert!(pressure.refuse(&burst).is_none() && pressure.refuse(&tolerant).is_none());
        pressure.set([Condition::Disk, Condition::Memory].into());
        assert!(pressure.refuse(&burst).is_some() && pressure.refuse(&tolerant).is_some());
        assert!(pressure.refuse(&critical).is_none());
    }
}
