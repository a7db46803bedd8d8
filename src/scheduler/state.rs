//! Everything the scheduler knows, changed by what the caches report.
//!
//! Synchronous; `run.rs` holds the lock and does the waiting.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use base::backoff::Backoff;
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::api::resource::v1::ResourceClaim;
use tokio::time::Instant;

use crate::classes::Classes;
use crate::config::Config;
use crate::devices::{self, Grant, Pending};
use crate::extend::Extenders;
use crate::facts::Taken;
use crate::filter::Rules;
use crate::filter::volumes::Choice;
use crate::line::Line;
use crate::line::hints::{self, Event};
use crate::pod::{PodInfo, is_finished, node_of, scheduler_name, uid_of};
use crate::profile::Profile;
use crate::snapshot::{NodeInfo, Snapshot};

#[derive(Debug)]
pub struct State {
    pub line: Line,
    pub snapshot: Snapshot,
    /// Pods that are on a node here but not yet at the API server, by uid.
    pub assumed: HashSet<String>,
    /// Those of them whose binding is not asked for yet, and whether they have to give way to
    /// others before it is.
    pub preparing: HashMap<String, bool>,
    /// Pods that nobody may schedule yet (`schedulingGates`), by uid.
    pub gated: HashSet<String>,
    /// Volumes that were picked and do not show it yet; no more than claims being bound.
    pub taken: Taken,
    /// Allocations of devices that do not show yet; no more than claims being bound.
    pub pending: Pending,
    /// What pods that are alike share.
    pub classes: Classes,
    pub extenders: Extenders,
    /// Where the next pod's search for nodes starts.
    pub start: usize,
    /// One for each `schedulerName` that is served.
    profiles: Vec<Arc<Profile>>,
}

impl State {
    pub fn new(config: &Config) -> Self {
        Self {
            line: Line::new(
                Backoff::new(config.backoff_initial, config.backoff_max),
                config.parked_max,
            ),
            snapshot: Snapshot::default(),
            assumed: HashSet::new(),
            preparing: HashMap::new(),
            gated: HashSet::new(),
            taken: Taken::new(),
            pending: Pending::new(),
            classes: Classes::default(),
            extenders: Extenders::new(&config.extenders),
            start: 0,
            profiles: config.profiles.iter().cloned().map(Arc::new).collect(),
        }
    }

    pub fn profiles(&self) -> &[Arc<Profile>] {
        &self.profiles
    }

    /// The profile that a pod asks for; None where another scheduler has it.
    pub fn profile_of(&self, pod: &Pod) -> Option<&Arc<Profile>> {
        pod.spec.as_ref()?;
        let name = scheduler_name(pod);
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

    /// A claim for extended resources has been made: its devices are kept under its own uid.
    pub fn made(&mut self, before: &ResourceClaim, made: &ResourceClaim) {
        if let Some(allocation) = self.pending.remove(devices::uid(before)) {
            self.pending.insert(devices::uid(made).to_owned(), allocation);
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
            self.pod_placed(pod, node, now);
        } else {
            self.pod_pending(old, pod, now);
        }
    }

    fn pod_gone(&mut self, uid: &str, now: Instant) {
        self.line.remove(uid);
        self.gated.remove(uid);
        self.assumed.remove(uid);
        self.preparing.remove(uid);
        self.free_promise(uid, now);
        if let Some((pod, node)) = self.snapshot.remove_pod(uid) {
            let node = self.snapshot.get(&node);
            self.line.wake(Event::Left { pod: &pod, node }, now);
        }
    }

    fn pod_placed(&mut self, pod: &Arc<Pod>, node: &str, now: Instant) {
        let info = Arc::new(PodInfo::new(pod.clone()));
        let was_assumed = self.assumed.remove(&info.uid);
        self.preparing.remove(&info.uid);
        self.line.remove(&info.uid);
        self.gated.remove(&info.uid);
        self.free_promise(&info.uid, now);
        let before = self.snapshot.place(info.clone(), node).filter(|_| !was_assumed);
        let before = before.as_deref();
        if !before.is_some_and(|before| before.looks_like(&info)) {
            self.line.wake(Event::Came { pod: &info, before }, now);
        }
        let shrank = before.is_some_and(|before| {
            let (before, after) = (&before.requests.asked, &info.requests.asked);
            before.cpu > after.cpu || before.memory > after.memory
        });
        if let (true, Some(node)) = (shrank, self.snapshot.get(node)) {
            self.line.wake(Event::Shrank { node }, now);
        }
    }

    /// The room that was kept for a pod is others' again.
    fn free_promise(&mut self, uid: &str, now: Instant) {
        if let Some((pod, node)) = self.snapshot.forget_nomination(uid) {
            let node = self.snapshot.get(&node);
            self.line.wake(Event::Left { pod: &pod, node }, now);
        }
    }

    /// Has an assumed pod give way to another; false where its binding is asked for already, or
    /// it is not assumed.
    pub fn call_back(&mut self, uid: &str) -> bool {
        self.preparing.get_mut(uid).map(|called_back| *called_back = true).is_some()
    }

    pub fn is_called_back(&self, uid: &str) -> bool {
        self.preparing.get(uid) == Some(&true)
    }

    /// The binding of an assumed pod is about to be asked for; false where it has to give way.
    pub fn commit(&mut self, uid: &str) -> bool {
        self.preparing.remove(uid) != Some(true)
    }

    /// A pod that was assumed does not get to its node: others may.
    pub fn forget_assumed(&mut self, uid: &str, now: Instant) -> bool {
        self.preparing.remove(uid);
        if !self.assumed.remove(uid) {
            return false;
        }
        if let Some((pod, node)) = self.snapshot.remove_pod(uid) {
            let node = self.snapshot.get(&node);
            self.line.wake(Event::Left { pod: &pod, node }, now);
        }
        true
    }

    fn pod_pending(&mut self, old: Option<&Arc<Pod>>, pod: &Arc<Pod>, now: Instant) {
        let uid = uid_of(pod);
        let Some(spec) = &pod.spec else { return };
        let Some(profile) = self.profile_of(pod) else { return };
        let gated =
            profile.gates && spec.scheduling_gates.as_ref().is_some_and(|gates| !gates.is_empty());
        match gated && pod.metadata.deletion_timestamp.is_none() {
            true => self.gated.insert(uid.clone()),
            false => self.gated.remove(&uid),
        };
        if gated || pod.metadata.deletion_timestamp.is_some() {
            self.line.remove(&uid);
            self.free_promise(&uid, now);
            return;
        }
        if self.assumed.contains(&uid) {
            return;
        }
        let info = Arc::new(PodInfo::new(pod.clone()));
        match info.nominated() {
            Some(node) => self.snapshot.nominate(info.clone(), node),
            // Somebody has taken it back. What is not written down yet stays.
            None if old.is_some_and(|old| promised(old)) => self.free_promise(&uid, now),
            None => {}
        }
        self.line.offer(info, now);
    }

    pub fn node_changed(&mut self, old: Option<&Arc<Node>>, new: Option<&Arc<Node>>, now: Instant) {
        let name = |node: &Node| node.metadata.name.clone().unwrap_or_default();
        let Some(new) = new else {
            if let Some(old) = old {
                self.snapshot.remove_node(&name(old));
                self.line.wake(Event::NodeLeft, now);
            }
            return;
        };
        self.snapshot.set_node(new.clone());
        let is_news = old.is_none_or(|old| hints::changed(old, new) != Rules::default());
        if let (true, Some(node)) =
            (is_news && self.line.has_listeners(), self.snapshot.get(&name(new)))
        {
            let before = old.map(|old| NodeInfo::new(old.clone()));
            self.line.wake(Event::Node { node, before: before.as_ref() }, now);
        }
    }
}

fn promised(pod: &Pod) -> bool {
    let name = pod.status.as_ref().and_then(|status| status.nominated_node_name.as_deref());
    name.is_some_and(|name| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::*;
    use crate::cycle::Outcome;
    use crate::facts::Caches;
    use crate::testing::{node, pod, pod_of};

    fn next(state: &mut State, now: Instant) -> Option<(String, bool)> {
        let (pod, outcome) = state.next(&Caches::empty(), &Vec::new, now)?;
        Some((pod.name.clone(), matches!(outcome, Outcome::Bind(_))))
    }

    fn bound(name: &str, cpu: &str) -> Arc<Pod> {
        let mut pod = pod(name, cpu, "1Gi");
        pod.spec.as_mut().unwrap().node_name = Some("n".into());
        Arc::new(pod)
    }

    /// A state with a node of 4 CPUs.
    fn state(now: Instant) -> State {
        let mut state = State::new(&Config::default());
        state.node_changed(None, Some(&Arc::new(node("n", "4", "8Gi"))), now);
        state
    }

    #[test]
    fn room_that_was_promised_is_free_when_the_promise_ends() {
        let now = Instant::now();
        let mut promised = pod_of(
            "vip",
            json!({}),
            json!({"priority": 5, "preemptionPolicy": "Never", "containers": [
                {"name": "c", "resources": {"requests": {"cpu": "4"}}}]}),
        );
        promised.status = serde_json::from_value(json!({"nominatedNodeName": "n"})).unwrap();
        let promised = Arc::new(promised);
        let (mut state, mut back) = (state_of(&promised, now), state_of(&promised, now));
        state.pod_changed(Some(&promised), None, now);
        let later = now + Duration::from_secs(1);
        assert_eq!(next(&mut state, later), Some(("small".into(), true)));
        // The same where somebody takes the promise back.
        let mut without = (*promised).clone();
        without.status = None;
        back.pod_changed(Some(&promised), Some(&Arc::new(without)), now);
        let tried: Vec<_> = std::iter::from_fn(|| next(&mut back, later)).collect();
        assert!(tried.contains(&("small".into(), true)), "{tried:?}");
    }

    /// A node of 4 CPUs that `promised` is to get, on which there is 1 left; `small` wants that.
    fn state_of(promised: &Arc<Pod>, now: Instant) -> State {
        let mut state = state(now);
        state.pod_changed(None, Some(&bound("low", "3")), now);
        state.pod_changed(None, Some(promised), now);
        state.pod_changed(None, Some(&Arc::new(pod("small", "1", "1Gi"))), now);
        assert_eq!(next(&mut state, now), Some(("vip".into(), false)));
        assert_eq!(next(&mut state, now), Some(("small".into(), false)));
        state
    }

    #[test]
    fn a_binding_that_fails_gives_its_room_to_others() {
        let now = Instant::now();
        let mut state = state(now);
        for name in ["a", "b"] {
            state.pod_changed(None, Some(&Arc::new(pod(name, "3", "1Gi"))), now);
        }
        assert_eq!(next(&mut state, now), Some(("a".into(), true)));
        assert_eq!(next(&mut state, now), Some(("b".into(), false)));
        assert!(state.forget_assumed("a", now));
        state.line.remove("a");
        let later = now + Duration::from_secs(1);
        assert_eq!(next(&mut state, later), Some(("b".into(), true)));
        assert!(!state.forget_assumed("a", now));
    }

    #[test]
    fn who_is_called_back_is_not_bound_and_who_is_bound_is_not_called_back() {
        let now = Instant::now();
        let mut state = state(now);
        for name in ["a", "b"] {
            state.pod_changed(None, Some(&Arc::new(pod(name, "1", "1Gi"))), now);
            assert_eq!(next(&mut state, now), Some((name.into(), true)));
        }
        assert!(state.commit("a"));
        assert!(!state.call_back("a"), "it is deleted instead");
        assert!(state.call_back("b") && state.is_called_back("b"));
        assert!(!state.commit("b"));
        assert!(state.forget_assumed("b", now) && !state.call_back("b"));
    }

    #[test]
    fn heartbeats_wake_nobody_and_room_wakes_those_it_suffices_for() {
        let now = Instant::now();
        let mut state = state(now);
        for (name, cpu) in [("large", "16"), ("small", "5")] {
            state.pod_changed(None, Some(&Arc::new(pod(name, cpu, "1Gi"))), now);
        }
        assert_eq!(next(&mut state, now), Some(("large".into(), false)));
        assert_eq!(next(&mut state, now), Some(("small".into(), false)));
        let later = now + Duration::from_secs(1);
        let old = Arc::new(node("n", "4", "8Gi"));
        let mut beat = (*old).clone();
        beat.status.as_mut().unwrap().phase = Some("Running".into());
        let beat = Arc::new(beat);
        state.node_changed(Some(&old), Some(&beat), later);
        assert_eq!(next(&mut state, later), None);
        let grown = Arc::new(node("n", "8", "8Gi"));
        state.node_changed(Some(&beat), Some(&grown), later);
        assert_eq!(next(&mut state, later), Some(("small".into(), true)));
        assert_eq!(next(&mut state, later), None);
    }
}
