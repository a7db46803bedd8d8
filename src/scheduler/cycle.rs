//! One cycle: the next pod of the line is planned for, and the outcome assumed.
//!
//! Synchronous; `run.rs` writes what comes out of it.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tracing::debug;

use crate::classes::Found;
use crate::devices::Grant;
use crate::extend::Question;
use crate::facts::{self, Caches, Facts, Nowhere};
use crate::filter::volumes::{self, Choice};
use crate::filter::{Counted, Reject};
use crate::metrics::{self, Tried};
use crate::plan::{self, Chance, Plan, Unschedulable, plan};
use crate::pod::PodInfo;
use crate::preempt::Budgets;
use crate::profile::Profile;
use crate::state::State;

/// Where a pod goes, and what comes with it.
#[derive(Debug)]
pub struct Decision {
    pub node: String,
    /// How its volume claims get their volumes.
    pub choices: Vec<Choice>,
    /// What its claims of devices get.
    pub grants: Vec<Grant>,
    pub limits: Limits,
    pub tried: Tried,
}

/// How long a binding may take.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Until all volumes are bound.
    pub volumes: Duration,
    /// Until all devices are ready.
    pub devices: Duration,
}

#[derive(Debug)]
pub enum Outcome {
    Bind(Decision),
    Wait(Unschedulable),
    /// Extenders have a say in it.
    Ask(Question),
    /// Something went wrong, which time may heal.
    Fail(String),
}

impl State {
    /// Plans for the next pod and assumes the outcome; None where no pod is ready.
    pub fn next(
        &mut self,
        caches: &Caches,
        budgets: &dyn Fn() -> Budgets,
        now: Instant,
    ) -> Option<(Arc<PodInfo>, Outcome)> {
        loop {
            let pod = self.line.pop(now)?;
            if let Some(outcome) = self.cycle(&pod, caches, budgets, now) {
                return Some((pod, outcome));
            }
        }
    }

    fn cycle(
        &mut self,
        pod: &Arc<PodInfo>,
        caches: &Caches,
        budgets: &dyn Fn() -> Budgets,
        now: Instant,
    ) -> Option<Outcome> {
        let Some(profile) = self.profile_of(&pod.pod).cloned() else {
            // The line takes no others.
            self.line.remove(&pod.uid);
            return None;
        };
        if self.extenders.mind(pod)
            && let Some(question) = self.question(pod, &profile, caches)
        {
            return Some(Outcome::Ask(question));
        }
        let (planned, facts) = self.plan(pod, &profile, caches, budgets);
        match (planned, facts) {
            (Plan::Bind { node }, Ok(facts)) => Some(self.assume(pod, &facts, node, now)),
            (Plan::Bind { .. }, Err(reason)) => {
                // A plan never binds without facts.
                debug!(reason = reason.reason, "a plan without facts");
                self.line.retry(&pod.uid, now);
                None
            }
            (Plan::Wait(refusal), facts) => {
                let gave_up = facts.ok().and_then(|facts| gave_up(&facts));
                Some(match gave_up {
                    Some(why) => self.give_up(pod, why, now),
                    None => self.wait(pod, &profile, refusal, now),
                })
            }
        }
    }

    fn assume(&mut self, pod: &Arc<PodInfo>, facts: &Facts, node: String, now: Instant) -> Outcome {
        debug!(pod = %pod.name, node, "planned");
        // What was possible a moment ago is possible still: the state is held.
        let chosen = self.snapshot.get(&node).map(|node| volumes::choose(facts, node));
        let choices = chosen.and_then(Result::ok).unwrap_or_default();
        let devices = facts.devices.as_ref().zip(self.snapshot.get(&node));
        let granted = devices.map(|(devices, node)| devices.grants(node));
        let grants = granted.and_then(Result::ok).unwrap_or_default();
        self.take(&choices);
        self.grant(&grants);
        self.snapshot.place(pod.clone(), &node);
        self.snapshot.forget_nomination(&pod.uid);
        self.assumed.insert(pod.uid.clone());
        self.preparing.insert(pod.uid.clone(), false);
        let profile = &facts.profile;
        let limits = Limits { volumes: profile.bind_timeout, devices: profile.devices.binding };
        let tried = self.line.tried(&pod.uid, now);
        Outcome::Bind(Decision { node, choices, grants, limits, tried })
    }

    fn wait(
        &mut self,
        pod: &Arc<PodInfo>,
        profile: &Arc<Profile>,
        refusal: Unschedulable,
        now: Instant,
    ) -> Outcome {
        self.line.park(&pod.uid, refusal.rules, profile, now);
        if profile.preempts && !self.snapshot.nodes().is_empty() {
            metrics::preempted(refusal.victims.as_ref().map(|victims| victims.pods.len()));
        }
        let mut refusal = refusal;
        if let Some(victims) = &refusal.victims {
            // There will be no room for those any more.
            refusal.displaced = self.snapshot.nominated_after(&victims.node, pod);
            for other in &refusal.displaced {
                self.snapshot.forget_nomination(&other.uid);
            }
            self.snapshot.nominate(pod.clone(), &victims.node);
        } else if refusal.forgets {
            self.snapshot.forget_nomination(&pod.uid);
        }
        Outcome::Wait(refusal)
    }

    /// Nobody knows whether there is a node for the pod: no change would tell.
    fn give_up(&mut self, pod: &PodInfo, why: String, now: Instant) -> Outcome {
        self.line.retry(&pod.uid, now);
        Outcome::Fail(why)
    }

    /// What extenders are to be asked; None where there is nothing to ask.
    fn question(
        &mut self,
        pod: &Arc<PodInfo>,
        profile: &Arc<Profile>,
        caches: &Caches,
    ) -> Option<Question> {
        if self.snapshot.nodes().is_empty() {
            return None;
        }
        let facts = facts::observe(pod, profile, caches, &self.taken, &self.pending).ok()?;
        self.line.asks();
        let mut chance = Chance { start: &mut self.start, below: &mut base::rng::below };
        let (able, rejects) = plan::survey(pod, &facts, &self.snapshot, &mut chance);
        Some(Question { facts: Arc::new(facts), able, rejects })
    }

    /// Takes the node that extenders have left; None where the pod is planned for anew, since
    /// it or the node has changed while they were asked.
    pub fn settle_node(
        &mut self,
        pod: &Arc<PodInfo>,
        facts: &Facts,
        node: String,
        now: Instant,
    ) -> Option<Outcome> {
        if !self.line.is_in_flight(pod) {
            return None;
        }
        let counted = Counted::new(pod, facts, &self.snapshot);
        let fits = self.snapshot.get(&node).is_some_and(|node| {
            plan::check_with_nominated(pod, facts, &counted, &self.snapshot, node).is_ok()
        });
        if !fits {
            self.line.retry(&pod.uid, now);
            return None;
        }
        Some(self.assume(pod, facts, node, now))
    }

    /// What a pod is told that extenders have left no node.
    pub fn refusal(
        &self,
        pod: &PodInfo,
        facts: &Facts,
        budgets: &dyn Fn() -> Budgets,
        rejects: &[(String, Reject)],
    ) -> Unschedulable {
        plan::refuse_all(pod, facts, &self.snapshot, budgets, rejects)
    }

    /// Takes note of a refusal that extenders have had their say in.
    pub fn settle_refusal(
        &mut self,
        pod: &Arc<PodInfo>,
        facts: &Facts,
        refusal: Unschedulable,
        now: Instant,
    ) -> Option<Outcome> {
        if !self.line.is_in_flight(pod) {
            return None;
        }
        if let Some(why) = gave_up(facts) {
            return Some(self.give_up(pod, why, now));
        }
        let (profile, rules) = (facts.profile.clone(), refusal.rules);
        let outcome = self.wait(pod, &profile, refusal, now);
        self.line.was_asked(&pod.uid, rules, now);
        Some(outcome)
    }

    /// Asks the pod's class, and for pods without one, or that find no node, the plan itself.
    fn plan(
        &mut self,
        pod: &Arc<PodInfo>,
        profile: &Arc<Profile>,
        caches: &Caches,
        budgets: &dyn Fn() -> Budgets,
    ) -> (Plan, Result<Arc<Facts>, Nowhere>) {
        let Self { snapshot, classes, taken, pending, start, .. } = self;
        let mut chance = Chance { start, below: &mut base::rng::below };
        let observe = || facts::observe(pod, profile, caches, taken, pending);
        // Who was promised a node tries that first.
        let found = match pod.nominated() {
            None => classes.of(pod, profile, (caches, snapshot), || observe().ok()),
            Some(_) => None,
        };
        let Some(Found { class, columns }) = found else {
            let facts = observe().map(Arc::new);
            let facts_of = facts.as_deref();
            let planned = plan(pod, facts_of, profile, snapshot, budgets, &mut chance);
            return (planned, facts);
        };
        let facts = class.facts.clone();
        if let Some(refusal) = class.refusal(pod, snapshot) {
            return (Plan::Wait(refusal), Ok(facts));
        }
        if let Some(at) = class.pick(pod, snapshot, columns, &mut chance) {
            let node = snapshot.nodes()[at].name.clone();
            return (Plan::Bind { node }, Ok(facts));
        }
        let planned = plan(pod, Ok(&facts), profile, snapshot, budgets, &mut chance);
        if let Plan::Wait(refusal) = &planned {
            class.refuse(pod, snapshot, refusal);
        }
        (planned, Ok(facts))
    }
}

/// What is said where the search for devices took too long.
fn gave_up(facts: &Facts) -> Option<String> {
    facts.devices.as_ref()?.gave_up()
}
