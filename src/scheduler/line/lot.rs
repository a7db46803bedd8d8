//! Where pods wait that no node took: those that are alike stand together, and each group is
//! found by the rules that refused it.
//!
//! A change costs what there are groups that wait for one of its rules, not pods. Bound: no
//! more groups than parked pods.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::hints::Event;
use crate::classes::likeness;
use crate::filter::{Rule, Rules};
use crate::pod::PodInfo;
use crate::profile::Profile;

/// A pod's place in its group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Spot {
    group: u64,
    number: u64,
}

#[derive(Debug)]
struct Group {
    hash: Option<u64>,
    example: Arc<PodInfo>,
    profile: Arc<Profile>,
    rules: Rules,
    /// Uids, first come first.
    pods: BTreeMap<u64, String>,
}

#[derive(Debug, Default)]
pub struct Lot {
    groups: HashMap<u64, Group>,
    by_hash: HashMap<u64, Vec<u64>>,
    by_rule: HashMap<Rule, BTreeSet<u64>>,
    number: u64,
}

impl Lot {
    pub fn park(&mut self, pod: &Arc<PodInfo>, rules: Rules, profile: &Arc<Profile>) -> Spot {
        self.number += 1;
        let number = self.number;
        let hash = likeness::hash(pod, &|_| true);
        let alike = |group: &&u64| {
            let group = &self.groups[*group];
            group.rules == rules
                && Arc::ptr_eq(&group.profile, profile)
                && likeness::alike(&group.example, pod, &|_| true)
        };
        let held = hash.and_then(|hash| self.by_hash.get(&hash)?.iter().find(alike).copied());
        let group = held.unwrap_or_else(|| self.open(number, hash, pod, rules, profile));
        if let Some(group) = self.groups.get_mut(&group) {
            group.pods.insert(number, pod.uid.clone());
        }
        Spot { group, number }
    }

    fn open(
        &mut self,
        id: u64,
        hash: Option<u64>,
        pod: &Arc<PodInfo>,
        rules: Rules,
        profile: &Arc<Profile>,
    ) -> u64 {
        let (example, profile) = (pod.clone(), profile.clone());
        let group = Group { hash, example, profile, rules, pods: BTreeMap::new() };
        self.groups.insert(id, group);
        if let Some(hash) = hash {
            self.by_hash.entry(hash).or_default().push(id);
        }
        for rule in rules.each() {
            self.by_rule.entry(rule).or_default().insert(id);
        }
        id
    }

    pub fn leave(&mut self, spot: Spot) {
        let Some(group) = self.groups.get_mut(&spot.group) else { return };
        group.pods.remove(&spot.number);
        if !group.pods.is_empty() {
            return;
        }
        let Some(group) = self.groups.remove(&spot.group) else { return };
        for rule in group.rules.each() {
            if let Some(groups) = self.by_rule.get_mut(&rule) {
                groups.remove(&spot.group);
            }
        }
        if let Some(hash) = group.hash
            && let Some(groups) = self.by_hash.get_mut(&hash)
        {
            groups.retain(|id| *id != spot.group);
            if groups.is_empty() {
                self.by_hash.remove(&hash);
            }
        }
    }

    /// The uids of those whom an event may help, in the order in which they were parked.
    pub fn helped(&self, event: Event<'_>) -> Vec<String> {
        if self.groups.is_empty() {
            return Vec::new();
        }
        let mut groups: BTreeSet<u64> = BTreeSet::new();
        for rule in event.rules().each() {
            for id in self.by_rule.get(&rule).into_iter().flatten() {
                let group = &self.groups[id];
                if !groups.contains(id) && event.helps(rule, &group.example, &group.profile) {
                    groups.insert(*id);
                }
            }
        }
        let pods = groups.iter().flat_map(|id| &self.groups[id].pods);
        let mut pods: Vec<(u64, &String)> = pods.map(|(number, uid)| (*number, uid)).collect();
        pods.sort_unstable();
        pods.into_iter().map(|(_, uid)| uid.clone()).collect()
    }
}
