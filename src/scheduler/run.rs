//! The loop: take the next pod, plan, assume, and bind it on a task of its own.

use std::sync::Arc;

use base::drain::Drain;
use base::error::chain;
use base::metrics::Format;
use client::{Cache, Recorder, Shared};
use futures::FutureExt;
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::resource::v1::ResourceClaim;
use tokio::sync::{Notify, Semaphore};
use tokio::time::Instant;
use tracing::info;

use crate::bind;
use crate::config::Config;
use crate::cycle::Outcome;
use crate::devices;
use crate::extend::{Answer, ExtendError, Question};
use crate::facts::Caches;
use crate::filter::{Rule, Rules};
use crate::line::hints::Event;
use crate::metrics::{self, Ended};
use crate::pod::PodInfo;
use crate::preempt::{Budget, Budgets};
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
    /// A claim of devices has changed; the same.
    pub devices_changed: Notify,
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
            devices_changed: Notify::new(),
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
        metrics::watch(Arc::downgrade(&self.0));
        info!("scheduler runs");
        drain.until(self.schedule(&drain)).await;
    }

    /// Whether all that it looks at is there.
    pub fn is_synced(&self) -> bool {
        self.synced().now_or_never().is_some()
    }

    /// What each pod asks for and may use at most, as metrics.
    pub fn pod_resources(&self, format: Format) -> String {
        crate::pod_resources::render(&self.0.pods.list(), format)
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
            me.wake(&VOLUME_RULES, "PersistentVolumeClaimUpdate");
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
            me.wake(&VOLUME_RULES, "PersistentVolumeUpdate");
        });
        let me = self.clone();
        self.0.caches.csi_nodes.on_change(move |_, _| {
            me.wake(&[Rule::NodeVolumeLimits], "CSINodeUpdate");
        });
        let me = self.clone();
        self.0.caches.attachments.on_change(move |_, new| {
            if new.is_none() {
                me.wake(&[Rule::NodeVolumeLimits], "VolumeAttachmentDelete");
            }
        });
        let me = self.clone();
        self.0.caches.drivers.on_change(move |_, _| {
            me.wake(&[Rule::VolumeBinding], "CSIDriverUpdate");
        });
        let me = self.clone();
        self.0.caches.capacities.on_change(move |_, _| {
            me.wake(&[Rule::VolumeBinding], "CSIStorageCapacityUpdate");
        });
        let me = self.clone();
        self.0.caches.classes.on_change(move |_, _| {
            me.wake(&[Rule::VolumeBinding], "StorageClassUpdate");
        });
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
                me.0.devices_changed.notify_waiters();
                me.wake(&[Rule::DynamicResources], "ResourceClaimUpdate");
            }
        });
        let me = self.clone();
        self.0.caches.devices.slices.on_change(move |_, _| {
            me.wake(&[Rule::DynamicResources], "ResourceSliceUpdate");
        });
        let me = self.clone();
        self.0.caches.devices.classes.on_change(move |_, new| {
            if new.is_some() {
                // It may stand for a resource that no node has.
                let rules = [Rule::DynamicResources, Rule::NodeResourcesFit];
                me.wake(&rules, "DeviceClassUpdate");
            }
        });
        let me = self.clone();
        self.0.caches.namespaces.on_change(move |_, _| {
            me.wake(&[Rule::InterPodAffinity], "NamespaceUpdate");
        });
    }

    /// `event`: upstream's name of what has happened.
    fn wake(&self, rules: &[Rule], event: &'static str) {
        let event = Event::About(Rules::of(rules), event);
        self.0.state.lock().line.wake(event, Instant::now());
        self.0.wake.notify_one();
    }

    async fn schedule(&self, drain: &Drain) {
        loop {
            // The semaphore is never closed.
            let Ok(permit) = self.0.writes.clone().acquire_owned().await else { return };
            let notified = self.0.wake.notified();
            let begun = Instant::now();
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
            metrics::planned(begun.elapsed());
            let outcome = match outcome {
                Outcome::Ask(question) => match self.ask(&pod, question).await {
                    Some(outcome) => outcome,
                    None => continue,
                },
                Outcome::Bind(_) | Outcome::Wait(_) | Outcome::Fail(_) => outcome,
            };
            let (me, drain) = (self.clone(), drain.clone());
            base::task::spawn(async move {
                match outcome {
                    // It was asked about above.
                    Outcome::Ask(_) => {}
                    Outcome::Fail(why) => {
                        metrics::ended(pod.scheduler_name(), Ended::Failed, begun.elapsed());
                        drain.until(bind::fail(&me, &pod, why)).await;
                    }
                    Outcome::Bind(decision) => {
                        let how = drain.until(bind::bind(&me, &pod, &decision, permit)).await;
                        if let Some(how) = how {
                            metrics::ended(pod.scheduler_name(), how, begun.elapsed());
                        }
                    }
                    Outcome::Wait(refusal) => {
                        let how = Ended::Unschedulable;
                        metrics::ended(pod.scheduler_name(), how, begun.elapsed());
                        drain.until(bind::refuse(&me, &pod, &refusal)).await;
                    }
                }
            });
        }
    }

    /// Asks extenders; the next pod waits until they have spoken, as upstream's does.
    async fn ask(&self, pod: &Arc<PodInfo>, question: Question) -> Option<Outcome> {
        let extenders = self.0.state.lock().extenders.clone();
        let facts = &question.facts;
        let failed = |err: ExtendError| {
            self.0.state.lock().line.retry(&pod.uid, Instant::now());
            Some(Outcome::Fail(chain(&err).to_string()))
        };
        let client = &self.0.client;
        let rejects = match extenders.choose(client, pod, &question, &mut base::rng::below).await {
            Ok(Answer::Node(node)) => {
                return self.0.state.lock().settle_node(pod, facts, node, Instant::now());
            }
            Ok(Answer::Nobody(rejects)) => rejects,
            Err(err) => return failed(err),
        };
        let budgets = || self.budgets();
        let mut refusal = self.0.state.lock().refusal(pod, facts, &budgets, &rejects);
        let candidates = std::mem::take(&mut refusal.candidates);
        match extenders.preempt(client, pod, candidates).await {
            Ok(left) => refusal.victims = left.into_iter().next(),
            Err(err) => return failed(err),
        }
        self.0.state.lock().settle_refusal(pod, facts, refusal, Instant::now())
    }

    fn budgets(&self) -> Budgets {
        self.0.budgets.list().iter().map(|budget| Budget::new(budget)).collect()
    }

    /// Plans for the next pod and assumes the outcome.
    fn next(&self) -> Option<(Arc<PodInfo>, Outcome)> {
        let budgets = || self.budgets();
        self.0.state.lock().next(&self.0.caches, &budgets, Instant::now())
    }
}
