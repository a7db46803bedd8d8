//! The pods that wait for a node: ready ones by priority, failed ones backing off, and
//! those that no node would take until something changes.
//!
//! Holds time only as it is told it. Bound: one entry per pending pod.

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use base::backoff::Backoff;
use k8s_openapi::api::core::v1::Pod;
use tokio::time::Instant;

use crate::filter::Rules;
use crate::pod::PodInfo;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Ready(u64),
    BackingOff(Instant),
    Parked,
    InFlight,
}

#[derive(Debug)]
struct Entry {
    pod: Arc<PodInfo>,
    place: Place,
    failures: u32,
    /// The end of the back-off after the last failure.
    rested: Option<Instant>,
    /// The rules that refused it.
    rules: Rules,
}

#[derive(Debug)]
pub struct Line {
    /// How long a pod that failed waits.
    backoff: Backoff,
    entries: HashMap<String, Entry>,
    /// Highest priority first, then first come.
    ready: BTreeSet<(Reverse<i32>, u64, String)>,
    backing_off: BTreeSet<(Instant, String)>,
    sequence: u64,
}

impl Line {
    pub fn new(backoff: Backoff) -> Self {
        Self {
            backoff,
            entries: HashMap::new(),
            ready: BTreeSet::new(),
            backing_off: BTreeSet::new(),
            sequence: 0,
        }
    }

    /// A pod has come or has changed. A parked pod is tried again only if what it asks
    /// for has changed; its status alone changes with every failure.
    pub fn offer(&mut self, pod: Arc<PodInfo>, now: Instant) {
        let uid = pod.uid.clone();
        let Some(entry) = self.entries.get_mut(&uid) else {
            let entry = Entry {
                pod,
                place: Place::InFlight,
                failures: 0,
                rested: None,
                rules: Rules::default(),
            };
            self.entries.insert(uid.clone(), entry);
            return self.move_to_ready(&uid);
        };
        let (old, new) = (&entry.pod.pod, &pod.pod);
        let made = |pod: &Pod| {
            pod.status.as_ref().and_then(|status| status.resource_claim_statuses.clone())
        };
        let same = old.spec == new.spec
            && old.metadata.labels == new.metadata.labels
            && made(old) == made(new);
        let reprioritised = entry.pod.priority != pod.priority;
        match entry.place {
            Place::Parked if !same => {
                entry.pod = pod;
                self.awake(&uid, now);
            }
            Place::Ready(_) if reprioritised => {
                self.take_out(&uid);
                if let Some(entry) = self.entries.get_mut(&uid) {
                    entry.pod = pod;
                }
                self.move_to_ready(&uid);
            }
            Place::Ready(_) | Place::BackingOff(_) | Place::Parked | Place::InFlight => {
                entry.pod = pod;
            }
        }
    }

    pub fn remove(&mut self, uid: &str) {
        self.take_out(uid);
        self.entries.remove(uid);
    }

    /// The next pod to try; it stays in flight until `park`, `retry` or `remove`.
    pub fn pop(&mut self, now: Instant) -> Option<Arc<PodInfo>> {
        while let Some((due, uid)) = self.backing_off.first().cloned() {
            if due > now {
                break;
            }
            self.take_out(&uid);
            self.move_to_ready(&uid);
        }
        let (_, _, uid) = self.ready.pop_first()?;
        let entry = self.entries.get_mut(&uid)?;
        entry.place = Place::InFlight;
        Some(entry.pod.clone())
    }

    /// When `pop` may have something that it has not now.
    pub fn next_due(&self) -> Option<Instant> {
        self.backing_off.first().map(|(due, _)| *due)
    }

    /// No node took the pod: it waits for a change that concerns one of `rules`.
    pub fn park(&mut self, uid: &str, rules: Rules, now: Instant) {
        let Some(entry) = self.entries.get_mut(uid) else { return };
        entry.fail(&self.backoff, now);
        entry.rules = rules;
        entry.place = Place::Parked;
    }

    /// Something went wrong that time may heal.
    pub fn retry(&mut self, uid: &str, now: Instant) {
        let Some(entry) = self.entries.get_mut(uid) else { return };
        entry.fail(&self.backoff, now);
        self.awake(uid, now);
    }

    /// Something has changed that concerns `rules`.
    pub fn wake(&mut self, rules: Rules, now: Instant) {
        let concerned = |entry: &Entry| entry.place == Place::Parked && entry.rules.meets(rules);
        let uids: Vec<String> = self
            .entries
            .iter()
            .filter(|(_, entry)| concerned(entry))
            .map(|(uid, _)| uid.clone())
            .collect();
        for uid in uids {
            self.awake(&uid, now);
        }
    }

    fn awake(&mut self, uid: &str, now: Instant) {
        let Some(entry) = self.entries.get_mut(uid) else { return };
        match entry.rested.filter(|rested| *rested > now) {
            Some(due) => {
                entry.place = Place::BackingOff(due);
                self.backing_off.insert((due, uid.to_string()));
            }
            None => self.move_to_ready(uid),
        }
    }

    fn move_to_ready(&mut self, uid: &str) {
        let Some(entry) = self.entries.get_mut(uid) else { return };
        self.sequence += 1;
        entry.place = Place::Ready(self.sequence);
        self.ready.insert((Reverse(entry.pod.priority), self.sequence, uid.to_string()));
    }

    fn take_out(&mut self, uid: &str) {
        let Some(entry) = self.entries.get_mut(uid) else { return };
        match entry.place {
            Place::Ready(sequence) => {
                self.ready.remove(&(Reverse(entry.pod.priority), sequence, uid.to_string()));
            }
            Place::BackingOff(due) => {
                self.backing_off.remove(&(due, uid.to_string()));
            }
            Place::Parked | Place::InFlight => {}
        }
        entry.place = Place::InFlight;
    }
}

impl Entry {
    fn fail(&mut self, backoff: &Backoff, now: Instant) {
        self.rested = Some(now + backoff.delay_after(self.failures));
        self.failures = self.failures.saturating_add(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::filter::Rule;
    use crate::testing::pod_of;
    use serde_json::json;
    use std::time::Duration;

    fn line() -> Line {
        Line::new(Backoff::new(Duration::from_secs(1), Duration::from_secs(10)))
    }

    fn info(name: &str, priority: i32) -> Arc<PodInfo> {
        let pod = pod_of(name, json!({}), json!({"priority": priority}));
        Arc::new(PodInfo::new(Arc::new(pod)))
    }

    fn popped(line: &mut Line, now: Instant) -> Option<String> {
        line.pop(now).map(|pod| pod.name.clone())
    }

    #[test]
    fn the_important_go_first_and_then_the_early() {
        let now = Instant::now();
        let mut line = line();
        for (name, priority) in [("a", 0), ("b", 0), ("c", 5)] {
            line.offer(info(name, priority), now);
        }
        let order: Vec<_> = std::iter::from_fn(|| popped(&mut line, now)).collect();
        assert_eq!(order, ["c", "a", "b"]);
    }

    #[test]
    fn a_parked_pod_wakes_on_what_concerns_it_and_after_its_backoff() {
        let now = Instant::now();
        let mut line = line();
        line.offer(info("a", 0), now);
        line.pop(now);
        line.park("a", Rules::of(&[Rule::NodeResourcesFit]), now);
        line.offer(info("a", 0), now);
        assert_eq!(popped(&mut line, now), None, "nothing has changed");
        line.wake(Rules::of(&[Rule::VolumeBinding]), now);
        assert_eq!(line.next_due(), None);
        line.wake(Rules::of(&[Rule::NodeResourcesFit]), now);
        assert_eq!(popped(&mut line, now), None, "it backs off");
        assert_eq!(line.next_due(), Some(now + Duration::from_secs(1)));
        assert_eq!(popped(&mut line, now + Duration::from_secs(1)).as_deref(), Some("a"));
    }

    #[test]
    fn backoff_doubles_to_its_maximum() {
        let mut now = Instant::now();
        let mut line = line();
        line.offer(info("a", 0), now);
        for seconds in [1, 2, 4, 8, 10, 10] {
            assert!(line.pop(now).is_some());
            line.retry("a", now);
            assert_eq!(line.next_due(), Some(now + Duration::from_secs(seconds)));
            now += Duration::from_secs(seconds);
        }
        line.remove("a");
        assert_eq!(line.next_due(), None);
    }
}
