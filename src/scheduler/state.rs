//! Everything the scheduler knows, changed by what the caches report.
//!
//! Synchronous; `run.rs` holds the lock and does the waiting.

use std::collections::HashSet;
use std::sync::Arc;

use base::backoff::Backoff;
use k8s_openapi::api::core::v1::{Node, Pod};
use tokio::time::Instant;

use crate::classes::Classes;
use crate::config::Config;
use crate::devices::{self, Grant, Pending};
use crate::facts::Taken;
use crate::filter::volumes::Choice;
use crate::filter::{Rule, Rules};
use crate::line::Line;
use crate::pod::{PodInfo, is_finished, node_of, uid_of};
use crate::profile::Profile;
use crate::snapshot::Snapshot;

#[derive(Debug)]
pub struct State {
    pub line: Line,
    pub snapshot: Snapshot,
    /// Pods that are on a node here but not yet at the API server, by uid.
    pub assumed: HashSet<String>,
    /// Volumes that were picked and do not show it yet; no more than claims being bound.
    pub taken: Taken,
    /// Allocations of devices that do not show yet; no more than claims being bound.
    pub pending: Pending,
    /// What pods that are alike share.
    pub classes: Classes,
    /// Where the next pod's search for nodes starts.
    pub start: usize,
    /// One for each `schedulerName` that is served.
    profiles: Vec<Arc<Profile>>,
}

impl State {
    pub fn new(config: &Config) -> Self {
        Self {
            line: Line::new(Backoff::new(config.backoff_initial, config.backoff_max)),
            snapshot: Snapshot::default(),
            assumed: HashSet::new(),
            taken: Taken::new(),
            pending: Pending::new(),
            classes: Classes::default(),
            start: 0,
            profiles: config.profiles.iter().cloned().map(Arc::new).collect(),
        }
    }

    /// The profile that a pod asks for; None where another scheduler has it.
    pub fn profile_of(&self, pod: &Pod) -> Option<&Arc<Profile>> {
        let name = pod.spec.as_ref()?.scheduler_name.as_deref().filter(|name| !name.is_empty());
        let name = name.unwrap_or("default-scheduler");
        self.profiles.iter().find(|profile| profile.scheduler_name == name)
    }

    /// Keeps volumes that were picked from being picked again.
    pub fn take(&mut self, choices: &[Choice]) {
        for choice in choices {
            let Choice::Take { claim, volume } = choice else { continue };
            if let (Some(name), Some(uid)) = (&volume.metadata.name, &claim.metadata.uid) {
                self.taken.insert(name.clone(), uid.clone());
            }
        }
    }

    /// Keeps devices that were granted from being granted again.
    pub fn grant(&mut self, grants: &[Grant]) {
        for grant in grants {
            if let Some(allocation) = &grant.allocation {
                self.pending.insert(devices::uid(&grant.claim).to_owned(), allocation.clone());
            }
        }
    }

    /// What the cache shows need not be remembered, nor what came to nothing.
    pub fn settle(&mut self, grants: &[Grant]) {
        for grant in grants.iter().filter(|grant| grant.allocation.is_some()) {
            self.pending.remove(devices::uid(&grant.claim));
        }
    }

    pub fn give_back(&mut self, choices: &[Choice]) {
        for choice in choices {
            let Choice::Take { claim, volume } = choice else { continue };
            let Some(name) = &volume.metadata.name else { continue };
            if self.taken.get(name) == claim.metadata.uid.as_ref() {
                self.taken.remove(name);
            }
        }
    }

    pub fn pod_changed(&mut self, old: Option<&Arc<Pod>>, new: Option<&Arc<Pod>>, now: Instant) {
        if let Some(old) = old
            && new.is_none_or(|new| uid_of(new) != uid_of(old))
        {
            self.pod_gone(&uid_of(old), now);
        }
        let Some(pod) = new else { return };
        if is_finished(pod) {
            self.pod_gone(&uid_of(pod), now);
        } else if let Some(node) = node_of(pod) {
            self.pod_placed(old, pod, node, now);
        } else {
            self.pod_pending(pod, now);
        }
    }

    fn pod_gone(&mut self, uid: &str, now: Instant) {
        self.line.remove(uid);
        self.assumed.remove(uid);
        self.snapshot.forget_nomination(uid);
        if self.snapshot.remove_pod(uid).is_some() {
            let rules = [
                Rule::NodePorts,
                Rule::VolumeRestrictions,
                Rule::NodeVolumeLimits,
                Rule::NodeResourcesFit,
                Rule::PodTopologySpread,
                Rule::InterPodAffinity,
            ];
            self.line.wake(Rules::of(&rules), now);
        }
    }

    fn pod_placed(&mut self, old: Option<&Arc<Pod>>, pod: &Arc<Pod>, node: &str, now: Instant) {
        let info = Arc::new(PodInfo::new(pod.clone()));
        let was_assumed = self.assumed.remove(&info.uid);
        self.line.remove(&info.uid);
        self.snapshot.forget_nomination(&info.uid);
        let news = old.is_none_or(|old| {
            (node_of(old).is_none() && !was_assumed)
                || old.metadata.labels != pod.metadata.labels
                || old.metadata.deletion_timestamp != pod.metadata.deletion_timestamp
        });
        let resized = old.is_some_and(|old| {
            let before = crate::resources::requests_of(old).asked;
            let after = &info.requests.asked;
            node_of(old).is_some() && (before.cpu > after.cpu || before.memory > after.memory)
        });
        self.snapshot.place(info, node);
        let mut rules = Rules::default();
        if news || was_assumed {
            rules.add(Rule::PodTopologySpread);
            rules.add(Rule::InterPodAffinity);
        }
        if resized {
            rules.add(Rule::NodeResourcesFit);
        }
        self.line.wake(rules, now);
    }

    fn pod_pending(&mut self, pod: &Arc<Pod>, now: Instant) {
        let uid = uid_of(pod);
        let Some(spec) = &pod.spec else { return };
        let Some(profile) = self.profile_of(pod) else { return };
        let gated =
            profile.gates && spec.scheduling_gates.as_ref().is_some_and(|gates| !gates.is_empty());
        if gated || pod.metadata.deletion_timestamp.is_some() {
            self.line.remove(&uid);
            self.snapshot.forget_nomination(&uid);
            return;
        }
        if self.assumed.contains(&uid) {
            return;
        }
        let info = Arc::new(PodInfo::new(pod.clone()));
        let nominated = pod.status.as_ref().and_then(|s| s.nominated_node_name.as_deref());
        if let Some(node) = nominated.filter(|node| !node.is_empty()) {
            self.snapshot.nominate(info.clone(), node);
        }
        self.line.offer(info, now);
    }

    pub fn node_changed(&mut self, old: Option<&Arc<Node>>, new: Option<&Arc<Node>>, now: Instant) {
        let name = |node: &Node| node.metadata.name.clone().unwrap_or_default();
        let Some(new) = new else {
            if let Some(old) = old {
                self.snapshot.remove_node(&name(old));
                self.line.wake(Rules::of(&[Rule::PodTopologySpread]), now);
            }
            return;
        };
        let rules = old.map_or(Rules::ALL, |old| concerned(old, new));
        self.snapshot.set_node(new.clone());
        self.line.wake(rules, now);
    }
}

/// The rules that a change of a node may satisfy.
fn concerned(old: &Node, new: &Node) -> Rules {
    let mut rules = Rules::default();
    let allocatable = |node: &Node| node.status.as_ref().and_then(|s| s.allocatable.clone());
    if allocatable(old) != allocatable(new) {
        rules.add(Rule::NodeResourcesFit);
    }
    if old.metadata.labels != new.metadata.labels {
        for rule in [
            Rule::NodeAffinity,
            Rule::VolumeBinding,
            Rule::VolumeZone,
            Rule::PodTopologySpread,
            Rule::InterPodAffinity,
            Rule::DynamicResources,
        ] {
            rules.add(rule);
        }
    }
    let spec = |node: &Node| node.spec.clone().unwrap_or_default();
    let (old, new) = (spec(old), spec(new));
    if old.taints != new.taints {
        rules.add(Rule::TaintToleration);
        rules.add(Rule::PodTopologySpread);
    }
    if old.unschedulable != new.unschedulable {
        rules.add(Rule::NodeUnschedulable);
    }
    rules
}
