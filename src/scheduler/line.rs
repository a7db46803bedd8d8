//! The pods that wait for a node: ready ones by priority, failed ones backing off, and
//! those that no node would take until something changes.
//!
//! Holds time only as it is told it. Bound: one entry per pending pod.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use base::backoff::Backoff;
use k8s_openapi::api::core::v1::Pod;
use tokio::time::Instant;

use crate::filter::Rules;
use crate::metrics::{self, Row, Tried};
use crate::pod::PodInfo;
use crate::profile::Profile;

pub mod hints;
mod lot;

use hints::Event;
use lot::{Lot, Spot};

/// A pod that nothing has helped is tried again after this long, where nobody says otherwise
/// (upstream, `DefaultPodMaxInUnschedulablePodsDuration`).
pub const PARKED_MAX: Duration = Duration::from_secs(300);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Ready(u64),
    BackingOff(Instant, Cause),
    /// Until when at the latest.
    Parked(Spot, Instant),
    InFlight,
}

/// Why a pod backs off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cause {
    /// No node took it, and something has changed since.
    Refused,
    /// Something went wrong, which wants time.
    Error,
}

#[derive(Debug)]
struct Entry {
    pod: Arc<PodInfo>,
    place: Place,
    failures: u32,
    /// The end of the back-off after the last failure.
    rested: Option<Instant>,
    /// Since when it waits, and how often it was tried.
    since: Instant,
    attempts: u32,
    flushed: bool,
    /// What refused it the last time, until it is tried again.
    refused: Option<(Rules, Arc<Profile>)>,
}

/// How many pods wait in each row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rows {
    pub ready: usize,
    pub backing_off: usize,
    pub parked: usize,
}

#[derive(Debug)]
pub struct Line {
    /// How long a pod that failed waits.
    backoff: Backoff,
    /// How long one is parked at the most.
    parked_max: Duration,
    entries: HashMap<String, Entry>,
    /// Highest priority first, then first come.
    ready: BTreeSet<(Reverse<i32>, u64, String)>,
    backing_off: BTreeSet<(Instant, String)>,
    /// Those of them that were only refused, the most important first: they are tried before
    /// their time where nobody else is ready (SchedulerPopFromBackoffQ).
    impatient: BTreeSet<(Reverse<i32>, Instant, String)>,
    lot: Lot,
    /// When each of those in the lot is tried again whatever happens.
    overdue: BTreeSet<(Instant, String)>,
    /// What has happened since others are asked about a pod in flight.
    meanwhile: Option<Rules>,
    sequence: u64,
}

impl Line {
    pub fn new(backoff: Backoff, parked_max: Duration) -> Self {
        Self {
            backoff,
            parked_max,
            entries: HashMap::new(),
            ready: BTreeSet::new(),
            backing_off: BTreeSet::new(),
            impatient: BTreeSet::new(),
            lot: Lot::default(),
            overdue: BTreeSet::new(),
            meanwhile: None,
            sequence: 0,
        }
    }

    /// A pod has come or has changed. A parked pod is tried again only if what it asks
    /// for has changed; its status alone changes with every failure.
    pub fn offer(&mut self, pod: Arc<PodInfo>, now: Instant) {
        let uid = pod.uid.clone();
        let Some(entry) = self.entries.get_mut(&uid) else {
            self.entries.insert(uid.clone(), Entry::new(pod, now));
            self.move_to_ready(&uid);
            return metrics::came(Row::Active, "UnschedulablePodAdd", 1);
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
            Place::Parked(..) if !same => {
                self.take_out(&uid);
                if let Some(entry) = self.entries.get_mut(&uid) {
                    entry.pod = pod;
                }
                let row = self.awake(&uid, Cause::Refused, now);
                metrics::came(row, "UnschedulablePodUpdate", 1);
            }
            Place::Ready(_) if reprioritised => {
                self.take_out(&uid);
                if let Some(entry) = self.entries.get_mut(&uid) {
                    entry.pod = pod;
                }
                self.move_to_ready(&uid);
            }
            Place::BackingOff(..) if reprioritised => {
                let was = entry.place;
                self.take_out(&uid);
                if let Some(entry) = self.entries.get_mut(&uid) {
                    entry.pod = pod;
                }
                if let Place::BackingOff(due, cause) = was {
                    self.back_off(&uid, due, cause);
                }
            }
            Place::Ready(_) | Place::BackingOff(..) | Place::Parked(..) | Place::InFlight => {
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
            metrics::came(Row::Active, "BackoffComplete", 1);
        }
        while let Some((due, uid)) = self.overdue.first().cloned() {
            if due > now {
                break;
            }
            self.take_out(&uid);
            if let Some(entry) = self.entries.get_mut(&uid) {
                entry.flushed = true;
            }
            let row = self.awake(&uid, Cause::Refused, now);
            metrics::came(row, "UnschedulableTimeout", 1);
        }
        let uid = match self.ready.pop_first() {
            Some((_, _, uid)) => uid,
            None => {
                let (_, _, uid) = self.impatient.first().cloned()?;
                self.take_out(&uid);
                metrics::came(Row::Active, "PopFromBackoffQ", 1);
                uid
            }
        };
        let entry = self.entries.get_mut(&uid)?;
        entry.place = Place::InFlight;
        entry.attempts = entry.attempts.saturating_add(1);
        entry.refused = None;
        Some(entry.pod.clone())
    }

    /// Whether the pod was popped and is waited for still, as it was.
    pub fn is_in_flight(&self, pod: &Arc<PodInfo>) -> bool {
        self.entries.get(&pod.uid).is_some_and(|entry| {
            entry.place == Place::InFlight && entry.pod.pod.spec == pod.pod.spec
        })
    }

    /// When `pop` may have something that it has not now.
    pub fn next_due(&self) -> Option<Instant> {
        let first = |all: &BTreeSet<(Instant, String)>| all.first().map(|(due, _)| *due);
        first(&self.backing_off).into_iter().chain(first(&self.overdue)).min()
    }

    /// No node took the pod: it waits for a change that concerns one of `rules`, as its
    /// profile applies them.
    pub fn park(&mut self, uid: &str, rules: Rules, profile: &Arc<Profile>, now: Instant) {
        let Some(entry) = self.entries.get_mut(uid) else { return };
        entry.fail(&self.backoff, now);
        let until = now + self.parked_max;
        let spot = self.lot.park(&entry.pod, rules, profile);
        entry.place = Place::Parked(spot, until);
        entry.refused = Some((rules, profile.clone()));
        metrics::came(Row::Unschedulable, "ScheduleAttemptFailure", 1);
        self.overdue.insert((until, uid.to_owned()));
    }

    /// Something went wrong that time may heal.
    pub fn retry(&mut self, uid: &str, now: Instant) {
        let Some(entry) = self.entries.get_mut(uid) else { return };
        entry.fail(&self.backoff, now);
        let row = self.awake(uid, Cause::Error, now);
        metrics::came(row, "ScheduleAttemptFailure", 1);
    }

    /// How often a pod was tried, and how long it has waited.
    pub fn tried(&self, uid: &str, now: Instant) -> Tried {
        let entry = self.entries.get(uid);
        entry.map_or_else(Tried::default, |entry| Tried {
            attempts: entry.attempts,
            waited: now.saturating_duration_since(entry.since),
            flushed: entry.flushed,
        })
    }

    pub fn rows(&self) -> Rows {
        Rows {
            ready: self.ready.len(),
            backing_off: self.backing_off.len(),
            parked: self.overdue.len(),
        }
    }

    /// How many pods each plugin of each profile has refused the last time.
    pub fn refusals(&self) -> BTreeMap<(String, String), usize> {
        let mut out = BTreeMap::new();
        for (rules, profile) in self.entries.values().filter_map(|it| it.refused.as_ref()) {
            for rule in rules.each().filter(|rule| Rules::PLUGINS.meets(Rules::of(&[*rule]))) {
                let key = (profile.scheduler_name.clone(), format!("{rule:?}"));
                *out.entry(key).or_default() += 1;
            }
        }
        out
    }

    /// Whether it matters to anybody that something changes.
    pub fn has_listeners(&self) -> bool {
        !self.overdue.is_empty() || self.meanwhile.is_some()
    }

    /// Others are asked about a pod in flight: what changes meanwhile, they may not know.
    pub fn asks(&mut self) {
        self.meanwhile = Some(Rules::default());
    }

    /// They have spoken, and the pod is parked: it stays there unless something has changed that
    /// concerns one of `rules`.
    pub fn was_asked(&mut self, uid: &str, rules: Rules, now: Instant) {
        let meanwhile = self.meanwhile.take().unwrap_or_default();
        if meanwhile.meets(rules) {
            self.take_out(uid);
            let row = self.awake(uid, Cause::Refused, now);
            metrics::came(row, "ScheduleAttemptFailure", 1);
        }
    }

    /// Something has changed.
    pub fn wake(&mut self, event: Event<'_>, now: Instant) {
        if let Some(meanwhile) = &mut self.meanwhile {
            meanwhile.0 |= event.rules().0;
        }
        let (mut ready, mut resting) = (0, 0);
        for uid in self.lot.helped(event) {
            self.take_out(&uid);
            match self.awake(&uid, Cause::Refused, now) {
                Row::Active => ready += 1,
                Row::Backoff | Row::Unschedulable => resting += 1,
            }
        }
        for (row, pods) in [(Row::Active, ready), (Row::Backoff, resting)] {
            if pods > 0 {
                metrics::came(row, event.name(), pods);
            }
        }
    }

    /// Of a pod that is nowhere; tells where it is now.
    fn awake(&mut self, uid: &str, cause: Cause, now: Instant) -> Row {
        let rested = self.entries.get(uid).and_then(|entry| entry.rested);
        match rested.filter(|rested| *rested > now) {
            Some(due) => {
                self.back_off(uid, due, cause);
                Row::Backoff
            }
            None => {
                self.move_to_ready(uid);
                Row::Active
            }
        }
    }

    fn back_off(&mut self, uid: &str, due: Instant, cause: Cause) {
        let Some(entry) = self.entries.get_mut(uid) else { return };
        entry.place = Place::BackingOff(due, cause);
        self.backing_off.insert((due, uid.to_string()));
        if cause == Cause::Refused {
            self.impatient.insert((Reverse(entry.pod.priority), due, uid.to_string()));
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
            Place::BackingOff(due, _) => {
                self.backing_off.remove(&(due, uid.to_string()));
                let priority = Reverse(entry.pod.priority);
                self.impatient.remove(&(priority, due, uid.to_string()));
            }
            Place::Parked(spot, until) => {
                self.lot.leave(spot);
                self.overdue.remove(&(until, uid.to_string()));
            }
            Place::InFlight => {}
        }
        entry.place = Place::InFlight;
    }
}

impl Entry {
    fn new(pod: Arc<PodInfo>, now: Instant) -> Self {
        Self {
            pod,
            place: Place::InFlight,
            failures: 0,
            rested: None,
            since: now,
            attempts: 0,
            flushed: false,
            refused: None,
        }
    }

    fn fail(&mut self, backoff: &Backoff, now: Instant) {
        self.flushed = false;
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
        Line::new(Backoff::new(Duration::from_secs(1), Duration::from_secs(10)), PARKED_MAX)
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
    fn a_parked_pod_wakes_on_what_concerns_it_and_lets_others_go_first() {
        let now = Instant::now();
        let mut line = line();
        line.offer(info("a", 0), now);
        line.pop(now);
        line.park("a", Rules::of(&[Rule::NodeResourcesFit]), &Arc::default(), now);
        line.offer(info("a", 0), now);
        assert_eq!(popped(&mut line, now), None, "nothing has changed");
        line.wake(Event::About(Rules::of(&[Rule::VolumeBinding]), ""), now);
        assert_eq!(line.next_due(), Some(now + PARKED_MAX));
        line.wake(Event::About(Rules::of(&[Rule::NodeResourcesFit]), ""), now);
        assert_eq!(line.next_due(), Some(now + Duration::from_secs(1)), "it backs off");
        line.offer(info("b", 0), now);
        assert_eq!(popped(&mut line, now).as_deref(), Some("b"));
        assert_eq!(popped(&mut line, now).as_deref(), Some("a"), "nobody else is ready");
        assert_eq!(line.next_due(), None);
    }

    #[test]
    fn of_those_who_back_off_the_important_are_tried_first_and_errors_want_their_time() {
        let now = Instant::now();
        let mut line = line();
        for (name, priority) in [("a", 0), ("b", 9), ("c", 5)] {
            line.offer(info(name, priority), now);
        }
        let rules = Rules::of(&[Rule::NodeResourcesFit]);
        while let Some(pod) = line.pop(now) {
            match pod.name.as_str() {
                "b" => line.retry("b", now),
                uid => line.park(uid, rules, &Arc::default(), now),
            }
        }
        line.wake(Event::About(rules, ""), now);
        let order: Vec<_> = std::iter::from_fn(|| popped(&mut line, now)).collect();
        assert_eq!(order, ["c", "a"]);
        assert_eq!(popped(&mut line, now + Duration::from_secs(1)).as_deref(), Some("b"));
    }

    #[test]
    fn the_rows_and_the_refusals_are_told() {
        let now = Instant::now();
        let mut line = line();
        for name in ["a", "b", "c", "d"] {
            line.offer(info(name, 0), now);
        }
        let rules = Rules::of(&[Rule::NodeResourcesFit, Rule::Extender]);
        for _ in 0..3 {
            let pod = line.pop(now).unwrap();
            match pod.name.as_str() {
                "a" => line.park("a", rules, &Arc::default(), now),
                "b" => line.retry("b", now),
                _ => {}
            }
        }
        assert_eq!(line.rows(), Rows { ready: 1, backing_off: 1, parked: 1 });
        let fit = ("default-scheduler".to_string(), "NodeResourcesFit".to_string());
        assert_eq!(line.refusals(), BTreeMap::from([(fit.clone(), 1)]), "extenders are no plugin");
        let later = now + Duration::from_secs(3);
        line.wake(Event::About(rules, ""), now);
        assert_eq!(line.refusals().get(&fit), Some(&1), "until it is tried again");
        while line.pop(later).is_some() {}
        assert!(line.refusals().is_empty());
        let tried = line.tried("a", later);
        assert_eq!((tried.attempts, tried.waited), (2, Duration::from_secs(3)));
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

    #[test]
    fn what_happens_while_others_are_asked_is_not_missed() {
        let now = Instant::now();
        let rules = Rules::of(&[Rule::NodeAffinity]);
        for (happens, again) in [(Rule::NodeAffinity, true), (Rule::VolumeBinding, false)] {
            let mut line = line();
            line.offer(info("a", 0), now);
            line.pop(now);
            line.asks();
            assert!(line.has_listeners());
            line.wake(Event::About(Rules::of(&[happens]), ""), now);
            line.park("a", rules, &Arc::default(), now);
            line.was_asked("a", rules, now);
            assert_eq!(popped(&mut line, now).is_some(), again, "{happens:?}");
        }
    }

    #[test]
    fn what_nothing_has_helped_is_tried_again_in_the_end() {
        let now = Instant::now();
        let mut line = line();
        line.offer(info("a", 0), now);
        line.pop(now);
        line.park("a", Rules::of(&[Rule::NodeAffinity]), &Arc::default(), now);
        assert_eq!(popped(&mut line, now + PARKED_MAX - Duration::from_millis(1)), None);
        assert!(!line.tried("a", now).flushed);
        assert_eq!(popped(&mut line, now + PARKED_MAX).as_deref(), Some("a"));
        assert!(line.tried("a", now).flushed, "nothing has woken it");
        assert_eq!(line.next_due(), None);
    }

    #[test]
    fn those_who_are_alike_wake_together_in_the_order_they_came() {
        let now = Instant::now();
        let mut line = line();
        let rules = Rules::of(&[Rule::NodeResourcesFit, Rule::TaintToleration]);
        let profile = Arc::default();
        for name in ["c", "a", "d", "b"] {
            line.offer(info(name, 0), now);
        }
        while let Some(pod) = line.pop(now) {
            line.park(&pod.uid, rules, &profile, now);
        }
        line.remove("d");
        line.wake(Event::About(Rules::of(&[Rule::TaintToleration]), ""), now);
        let later = now + Duration::from_secs(1);
        let order: Vec<_> = std::iter::from_fn(|| popped(&mut line, later)).collect();
        assert_eq!(order, ["a", "b", "c"], "all are due at once, and then by name");
        assert!(!line.has_listeners());
    }
}
