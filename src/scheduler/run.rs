//! The loop: take the next pod, plan, assume, and bind it on a task of its own.

use std::sync::Arc;
use std::time::Duration;

use base::drain::Drain;
use client::{Cache, Recorder, Shared};
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::resource::v1::ResourceClaim;
use tokio::sync::{Notify, Semaphore};
use tokio::time::Instant;
use tracing::{debug, info};

use crate::bind;
use crate::config::Config;
use crate::devices::{self, Grant};
use crate::facts::{self, Caches};
use crate::filter::volumes::{self, Choice};
use crate::filter::{Rule, Rules};
use crate::plan::{Chance, Plan, Unschedulable, plan};
use crate::pod::PodInfo;
use crate::preempt::Budget;
use crate::state::State;

/// Writes under way at a time; the loop waits for one to end before it plans more.
const WRITES_MAX: usize = 128;

/// The rules that look at claims and their volumes.
const VOLUME_RULES: [Rule; 4] =
    [Rule::VolumeBinding, Rule::VolumeZone, Rule::NodeVolumeLimits, Rule::VolumeRestrictions];

/// Cheap to clone; clones are the same scheduler.
#[derive(Clone)]
pub struct Scheduler(pub(crate) Arc<Inner>);

pub(crate) struct Inner {
    pub client: client::Client,
    pub recorder: Recorder,
    pub caches: Caches,
    pub state: parking_lot::Mutex<State>,
    pods: Cache<Pod>,
    nodes: Cache<Node>,
    budgets: Cache<PodDisruptionBudget>,
    /// The line may have something new.
    pub wake: Notify,
    /// A claim has changed; pods that wait for theirs look again.
    pub claims_changed: Notify,
    pub writes: Arc<Semaphore>,
}

impl Scheduler {
    /// Starts the caches it needs, unless `shared` has them already.
    pub fn new(shared: Shared, recorder: Recorder, config: Config) -> Self {
        Self(Arc::new(Inner {
            client: shared.client().clone(),
            recorder,
            caches: Caches::new(&shared),
            state: parking_lot::Mutex::new(State::new(&config)),
            pods: shared.cache(),
            nodes: shared.cache(),
            budgets: shared.cache(),
            wake: Notify::new(),
            claims_changed: Notify::new(),
            writes: Arc::new(Semaphore::new(WRITES_MAX)),
        }))
    }

    /// Schedules until the drain begins. Bindings under way are finished by their own
    /// tasks or tried again after the next start.
    pub async fn run(self, drain: Drain) {
        if drain.until(self.synced()).await.is_none() {
            return;
        }
        self.listen();
        info!("scheduler runs");
        drain.until(self.schedule(&drain)).await;
    }

    async fn synced(&self) {
        self.0.caches.synced().await;
        self.0.nodes.synced().await;
        self.0.pods.synced().await;
        self.0.budgets.synced().await;
    }

    /// Nodes first, so that pods find theirs.
    fn listen(&self) {
        let me = self.clone();
        self.0.nodes.on_change(move |old, new| {
            me.0.state.lock().node_changed(old, new, Instant::now());
            me.0.wake.notify_one();
        });
        let me = self.clone();
        self.0.pods.on_change(move |old, new| {
            me.0.state.lock().pod_changed(old, new, Instant::now());
            me.0.wake.notify_one();
        });
        let me = self.clone();
        self.0.caches.claims.on_change(move |_, _| {
            me.0.claims_changed.notify_waiters();
            me.wake(&VOLUME_RULES);
        });
        let me = self.clone();
        self.0.caches.volumes.on_change(move |old, new| {
            // What the cache shows need not be remembered.
            if let Some(volume) = new.or(old)
                && let Some(name) = &volume.metadata.name
                && new.is_none_or(|volume| client::volumes::claim_ref(volume).is_some())
            {
                me.0.state.lock().taken.remove(name);
            }
            me.wake(&VOLUME_RULES);
        });
        let me = self.clone();
        self.0.caches.csi_nodes.on_change(move |_, _| me.wake(&[Rule::NodeVolumeLimits]));
        let me = self.clone();
        self.0.caches.attachments.on_change(move |_, new| {
            if new.is_none() {
                me.wake(&[Rule::NodeVolumeLimits]);
            }
        });
        let me = self.clone();
        self.0.caches.drivers.on_change(move |_, _| me.wake(&[Rule::VolumeBinding]));
        let me = self.clone();
        self.0.caches.capacities.on_change(move |_, _| me.wake(&[Rule::VolumeBinding]));
        let me = self.clone();
        self.0.caches.classes.on_change(move |_, _| me.wake(&[Rule::VolumeBinding]));
        let me = self.clone();
        self.0.caches.devices.claims.on_change(move |old, new| {
            let allocated = |claim: Option<&Arc<ResourceClaim>>| {
                claim.is_some_and(|claim| devices::allocation(claim).is_some())
            };
            if let Some(claim) = new.or(old)
                && (new.is_none() || allocated(new))
            {
                me.0.state.lock().pending.remove(devices::uid(claim));
            }
            // A finalizer that comes or goes changes nothing for anybody.
            let status = |claim: Option<&Arc<ResourceClaim>>| claim.map(|it| it.status.clone());
            if status(old) != status(new) {
                me.wake(&[Rule::DynamicResources]);
            }
        });
        let me = self.clone();
        self.0.caches.devices.slices.on_change(move |_, _| me.wake(&[Rule::DynamicResources]));
        let me = self.clone();
        self.0.caches.devices.classes.on_change(move |_, new| {
            if new.is_some() {
                me.wake(&[Rule::DynamicResources]);
            }
        });
        let me = self.clone();
        self.0.caches.namespaces.on_change(move |_, _| me.wake(&[Rule::InterPodAffinity]));
    }

    fn wake(&self, rules: &[Rule]) {
        self.0.state.lock().line.wake(Rules::of(rules), Instant::now());
        self.0.wake.notify_one();
    }

    async fn schedule(&self, drain: &Drain) {
        loop {
            // The semaphore is never closed.
            let Ok(permit) = self.0.writes.clone().acquire_owned().await else { return };
            let notified = self.0.wake.notified();
            let Some((pod, outcome)) = self.next() else {
                drop(permit);
                let due = self.0.state.lock().line.next_due();
                match due {
                    Some(due) => tokio::select! {
                        () = notified => {}
                        () = tokio::time::sleep_until(due) => {}
                    },
                    None => notified.await,
                }
                continue;
            };
            let (me, drain) = (self.clone(), drain.clone());
            tokio::spawn(async move {
                match outcome {
                    Outcome::Bind(decision) => {
                        drain.until(bind::bind(&me, &pod, &decision, permit)).await;
                    }
                    Outcome::Wait(refusal) => {
                        drain.until(bind::refuse(&me, &pod, &refusal)).await;
                    }
                }
            });
        }
    }

    /// Plans for the next pod and assumes the outcome.
    fn next(&self) -> Option<(Arc<PodInfo>, Outcome)> {
        let mut state = self.0.state.lock();
        let pod = state.line.pop(Instant::now())?;
        let Some(profile) = state.profile_of(&pod.pod).cloned() else {
            // The line takes no others.
            state.line.remove(&pod.uid);
            return None;
        };
        let facts = facts::observe(&pod, &profile, &self.0.caches, &state.taken, &state.pending);
        let budgets = || self.0.budgets.list().iter().map(|b| Budget::new(b)).collect();
        let mut start = state.start;
        let mut chance = Chance { start: &mut start, below: &mut base::rng::below };
        let planned = plan(&pod, &facts, &profile, &state.snapshot, &budgets, &mut chance);
        state.start = start;
        let outcome = match (planned, facts) {
            (Plan::Bind { node }, Ok(facts)) => {
                debug!(pod = %pod.name, node, "planned");
                // What was possible a moment ago is possible still: the lock is held.
                let chosen = state.snapshot.get(&node).map(|node| volumes::choose(&facts, node));
                let choices = chosen.and_then(Result::ok).unwrap_or_default();
                let devices = facts.devices.as_ref().zip(state.snapshot.get(&node));
                let granted = devices.map(|(devices, node)| devices.grants(node));
                let grants = granted.and_then(Result::ok).unwrap_or_default();
                state.take(&choices);
                state.grant(&grants);
                state.snapshot.place(pod.clone(), &node);
                state.snapshot.forget_nomination(&pod.uid);
                state.assumed.insert(pod.uid.clone());
                Outcome::Bind(Decision { node, choices, grants, limit: profile.bind_timeout })
            }
            (Plan::Bind { .. }, Err(reason)) => {
                // A plan never binds without facts.
                debug!(reason = reason.reason, "a plan without facts");
                state.line.retry(&pod.uid, Instant::now());
                return None;
            }
            (Plan::Wait(refusal), _) => {
                state.line.park(&pod.uid, refusal.rules, Instant::now());
                if let Some(victims) = &refusal.victims {
                    state.snapshot.nominate(pod.clone(), &victims.node);
                }
                Outcome::Wait(refusal)
            }
        };
        Some((pod, outcome))
    }
}

/// Where a pod goes, and what comes with it.
pub(crate) struct Decision {
    pub node: String,
    /// How its volume claims get their volumes.
    pub choices: Vec<Choice>,
    /// What its claims of devices get.
    pub grants: Vec<Grant>,
    /// How long volumes may take.
    pub limit: Duration,
}

enum Outcome {
    Bind(Decision),
    Wait(Unschedulable),
}
