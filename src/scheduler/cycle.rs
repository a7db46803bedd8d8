//! One cycle: the next pod of the line is planned for, and the outcome assumed.
//!
//! Synchronous; `run.rs` writes what comes out of it.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tracing::debug;

use crate::classes::Found;
use crate::devices::Grant;
use crate::facts::{self, Caches, Facts, Nowhere};
use crate::filter::volumes::{self, Choice};
use crate::plan::{Chance, Plan, Unschedulable, plan};
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
    /// How long volumes may take.
    pub limit: Duration,
}

#[derive(Debug)]
pub enum Outcome {
    Bind(Decision),
    Wait(Unschedulable),
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
        let (planned, facts) = self.plan(pod, &profile, caches, budgets);
        match (planned, facts) {
            (Plan::Bind { node }, Ok(facts)) => {
                debug!(pod = %pod.name, node, "planned");
                // What was possible a moment ago is possible still: the state is held.
                let chosen = self.snapshot.get(&node).map(|node| volumes::choose(&facts, node));
                let choices = chosen.and_then(Result::ok).unwrap_or_default();
                let devices = facts.devices.as_ref().zip(self.snapshot.get(&node));
                let granted = devices.map(|(devices, node)| devices.grants(node));
                let grants = granted.and_then(Result::ok).unwrap_or_default();
                self.take(&choices);
                self.grant(&grants);
                self.snapshot.place(pod.clone(), &node);
                self.snapshot.forget_nomination(&pod.uid);
                self.assumed.insert(pod.uid.clone());
                Some(Outcome::Bind(Decision { node, choices, grants, limit: profile.bind_timeout }))
            }
            (Plan::Bind { .. }, Err(reason)) => {
                // A plan never binds without facts.
                debug!(reason = reason.reason, "a plan without facts");
                self.line.retry(&pod.uid, now);
                None
            }
            (Plan::Wait(refusal), _) => {
                self.line.park(&pod.uid, refusal.rules, &profile, now);
                if let Some(victims) = &refusal.victims {
                    self.snapshot.nominate(pod.clone(), &victims.node);
                }
                Some(Outcome::Wait(refusal))
            }
        }
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
        let Some(Found { class, columns }) =
            classes.of(pod, profile, (caches, snapshot), || observe().ok())
        else {
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
