//! Brings one pod to its desired state and keeps it there: one task per pod.
//!
//! Wakes on its key (the pod changed, a container ended, a probe turned, a pull is done)
//! or at a time it set itself; then looks again, plans and applies. Never blocks on a
//! grace period or a pull.

mod ending;
mod measured;
mod messages;
mod renewal;
mod resizing;
mod sandboxes;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use runtime::cri::{self, ContainerState};
use tokio::sync::{Notify, watch};
use tracing::warn;

use crate::admission::{self, preempt};
use crate::backoff::Backoffs;
use crate::chore::Chore;
use crate::eviction::{self, rank};
use crate::images::Pulls;
use crate::node::Node;
use crate::observed::PodRuntime;
use crate::plan::{self, Kill, KillCause};
use crate::pod::{self, ProbeKind};
use crate::pods::{Begun, Wanted};
use crate::probes::{self, Probes};
use crate::status::{self, Inputs, Waiting};
use crate::volumes::csi::LIMIT_EXCEEDED;
use crate::{metrics, qos, resize, restart_all, stop};
use ending::Ending;
use renewal::Renewal;
use resizing::Resizing;

/// First and longest wait after a volume, a sandbox or a clean-up failed.
const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(60));
/// So long a static pod that runs waits for its mirror to be known, and looks this often. The
/// API server may be that pod.
const MIRROR_PATIENCE: Duration = Duration::from_secs(1);
const MIRROR_LOOK: Duration = Duration::from_millis(50);
/// From a container's end until the kill that brought it about has seen it, at the most.
const KILL_END: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Syncing,
    /// Being stopped; nothing is started again.
    Ending,
    /// Nothing runs any more.
    Ended,
}

enum Next {
    /// Look again when woken, or after this long.
    Again(Option<Duration>),
    Done,
}

pub(crate) struct Worker {
    pub node: Arc<Node>,
    pub uid: String,
    pub pod: Arc<Pod>,
    pub wake: Arc<Notify>,
    pub doomed: watch::Receiver<bool>,
    /// The status last published.
    pub old: PodStatus,
    pub waiting: Waiting,
    pub pulls: Pulls,
    pub backoffs: Backoffs,
    /// Per container name, the failed container whose back-off was told as an event.
    pub told_backoff: HashMap<String, String>,
    /// Per container name, when and which one ended that had all containers restarted.
    pub asked_restart: HashMap<String, (Timestamp, String)>,
    /// All containers are being removed to begin anew.
    pub restarting: bool,
    /// Of the pod's runtime, once known.
    features: Option<cri::Features>,
    stage: Stage,
    begun: bool,
    cleaned: bool,
    probes: Probes,
    pub kills: HashMap<String, Chore>,
    ending: Option<Ending>,
    /// Why the pod is Failed, when it is not its containers' doing.
    failure: Option<(String, String)>,
    /// The node's doing.
    is_disrupted: bool,
    start_time: Timestamp,
    messages: HashMap<String, String>,
    failures: u32,
    resizing: Resizing,
    renewal: Option<Renewal>,
    /// When the pod was first seen.
    seen: Instant,
}

/// Starts the worker of a pod that has just become known.
pub fn spawn(node: Arc<Node>, begun: Begun) {
    let Some(wanted) = node.pods.get(&begun.uid) else { return };
    let old = wanted.pod.status.clone().unwrap_or_default();
    let start_time = old.start_time.as_ref().map_or_else(base::time::now, |time| time.0);
    let failure = pod::is_terminal_phase(old.phase.as_deref().unwrap_or_default())
        .then(|| Some((old.reason.clone()?, old.message.clone().unwrap_or_default())))
        .flatten();
    let backoffs = Backoffs::up_to(node.config.restart_backoff_max);
    let worker = Worker {
        node,
        uid: begun.uid,
        pod: wanted.pod,
        wake: begun.wake,
        doomed: begun.doomed,
        old,
        waiting: Waiting::new(),
        pulls: Pulls::default(),
        backoffs,
        told_backoff: HashMap::new(),
        asked_restart: HashMap::new(),
        restarting: false,
        features: None,
        stage: Stage::Syncing,
        begun: false,
        cleaned: false,
        probes: Probes::default(),
        kills: HashMap::new(),
        ending: None,
        failure,
        is_disrupted: false,
        start_time,
        messages: HashMap::new(),
        failures: 0,
        resizing: Resizing::default(),
        renewal: None,
        seen: Instant::now(),
    };
    base::task::spawn(worker.run());
}

impl Worker {
    async fn run(mut self) {
        let mut drain = self.node.drain.clone();
        metrics::pods::pod_seen(pod::containers(&self.pod).len(), self.seen.elapsed());
        let mut looked_at = None;
        loop {
            let after = match self.measured_step(&mut looked_at).await {
                Next::Again(after) => after,
                Next::Done => return,
            };
            let sleep = async move {
                match after {
                    Some(after) => tokio::time::sleep(after).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                // Containers stay; the next process takes them up.
                () = drain.begun() => return,
                () = self.wake.notified() => {}
                () = sleep => {}
            }
        }
    }

    async fn step(&mut self) -> Next {
        let Some(wanted) = self.node.pods.get(&self.uid) else { return Next::Done };
        self.pod = wanted.pod.clone();
        let now = base::time::now();
        if self.stage == Stage::Syncing && self.must_end(&wanted, now) {
            self.begin_end();
        }
        self.pod = match self.stage {
            // Before it is admitted nothing is granted.
            Stage::Syncing if self.begun => self.settle(&wanted.pod).await,
            _ => self.node.allocations.view(&self.node.config, &wanted.pod),
        };
        match self.stage {
            Stage::Syncing => self.sync(now).await,
            Stage::Ending => self.end(&wanted).await,
            Stage::Ended => self.clean(&wanted).await,
        }
    }

    fn begin_end(&mut self) {
        self.stage = Stage::Ending;
        self.renewal = None;
        // What failed before says nothing about stopping.
        self.failures = 0;
    }

    fn must_end(&mut self, wanted: &Wanted, now: Timestamp) -> bool {
        let pod = &wanted.pod;
        if let Some(sentence) = &wanted.sentence
            && self.failure.is_none()
        {
            self.failure = Some((sentence.reason.into(), sentence.message.clone()));
            self.is_disrupted = sentence.is_disruption;
        }
        if wanted.gone
            || wanted.returned
            || pod.metadata.deletion_timestamp.is_some()
            || pod::is_terminal_phase(pod::phase(pod))
            || self.failure.is_some()
        {
            return true;
        }
        if self.deadline().is_some_and(|deadline| deadline <= now) {
            let message = "Pod was active on the node longer than the specified deadline";
            self.node.recorder.normal(
                &client::recorder::reference(&**pod),
                "DeadlineExceeded",
                message,
            );
            self.failure = Some(("DeadlineExceeded".into(), message.into()));
            return true;
        }
        false
    }

    fn deadline(&self) -> Option<Timestamp> {
        let seconds = pod::spec(&self.pod).active_deadline_seconds?;
        self.start_time.checked_add(SignedDuration::from_secs(seconds)).ok()
    }

    /// What the runtime holds of the pod, with termination messages filled in.
    pub fn runtime(&mut self) -> PodRuntime {
        let mut runtime = self.node.observed.pod(&self.uid);
        self.messages.retain(|id, _| runtime.containers.iter().any(|it| it.id == *id));
        for container in &mut runtime.containers {
            if container.state != ContainerState::Exited {
                continue;
            }
            let read = || {
                messages::read(
                    container,
                    &self.node.config.log_dir(
                        pod::namespace(&self.pod),
                        pod::name(&self.pod),
                        &self.uid,
                    ),
                )
            };
            let message = match self.messages.get(&container.id) {
                Some(message) => message.clone(),
                None => {
                    let message = read();
                    if !self.has_told_end(&container.id) {
                        let role = pod::container(&self.pod, &container.metadata.name);
                        metrics::pods::container_ended(role.map(|(role, _)| role), container);
                    }
                    self.messages.insert(container.id.clone(), message.clone());
                    message
                }
            };
            if !message.is_empty() {
                container.message = message;
            }
        }
        runtime
    }

    /// Whether it is known since before this process that the container has ended.
    fn has_told_end(&self, id: &str) -> bool {
        let old = &self.old;
        [&old.container_statuses, &old.init_container_statuses, &old.ephemeral_container_statuses]
            .into_iter()
            .flatten()
            .flatten()
            .flat_map(|it| [&it.state, &it.last_state])
            .filter_map(|state| state.as_ref()?.terminated.as_ref()?.container_id.as_deref())
            .any(|it| it.ends_with(id))
    }

    fn status(&self, runtime: &PodRuntime, ended: bool) -> PodStatus {
        let mut out = status::build(&Inputs {
            pod: &self.pod,
            old: &self.old,
            runtime,
            runtime_name: &self.node.machine.runtime_name,
            features: self.features.unwrap_or_default(),
            verdicts: &self.probes.verdicts(),
            waiting: &self.waiting,
            host_ips: &self.node.config.node_ips,
            host: self.node.host(),
            start_time: self.start_time,
            ended,
            restarting: self.restarting,
            now: base::time::now(),
        });
        self.node.placements.devices.show(&self.uid, &mut out);
        self.node.dynamic.show(&self.pod, &mut out);
        out
    }

    pub fn publish(&mut self, runtime: &PodRuntime, ended: bool) {
        let mut new = self.status(runtime, ended);
        let before = self.old.phase.clone().unwrap_or_default();
        let turned = new.phase.as_ref() != Some(&before);
        let was_pending = before == "Pending";
        if pod::is_terminal_phase(&before) && turned {
            // An end is final, whatever the runtime still remembers of the pod.
            new.phase = Some(before);
        }
        // Its containers' end alone may have made it Failed by now: not without its reason.
        let is_failed = ended || new.phase.as_deref() == Some("Failed");
        if is_failed && let Some((reason, message)) = &self.failure {
            new = status::failed(new, reason, message);
            if ended && self.is_disrupted && self.begun {
                status::disrupted(&mut new, message, self.pod.metadata.generation);
            }
        }
        if !ended {
            self.show_resizing(&mut new);
        }
        if was_pending && new.phase.as_deref() == Some("Running") {
            self.note_start(&new);
        }
        if new != self.old {
            self.old = new.clone();
            self.node.status.set(&self.pod, new);
        }
    }

    fn publish_blocked(&mut self, runtime: &PodRuntime, reason: &str, message: &str) {
        let new = status::blocked(self.status(runtime, false), reason, message);
        if new != self.old {
            self.old = new.clone();
            self.node.status.set(&self.pod, new);
        }
    }

    fn retry(&mut self) -> Duration {
        let delay = RETRY.0 * 2u32.saturating_pow(self.failures.min(16));
        self.failures = self.failures.saturating_add(1);
        delay.min(RETRY.1)
    }

    pub fn watch_probes(&mut self, runtime: &PodRuntime, stopping: bool) {
        let context = probes::Context {
            runtime: self.node.runtime.clone(),
            recorder: self.node.recorder.clone(),
            wake: self.wake.clone(),
            counts: self.node.probe_counts.clone(),
        };
        let host_ip = self.node.config.node_ips.first().copied();
        self.probes.reconcile(&context, &self.pod, runtime, host_ip, stopping);
    }

    /// What holds once per life of the worker: admission, and what is taken over from
    /// an earlier process.
    async fn begin(&mut self, runtime: &PodRuntime) -> bool {
        self.begun = true;
        if let Err(error) = self.features().await {
            // Asked again before a container is made.
            warn!(pod = %pod::display(&self.pod), error, "what the runtime can do is not known");
        }
        if runtime.sandboxes.is_empty() && runtime.containers.is_empty() {
            let allowed = &self.node.config.allowed_unsafe_sysctls;
            let mut refusal = self
                .node
                .shutdown
                .refuse()
                .or_else(|| self.node.pressure.refuse(&self.pod))
                .or_else(|| admission::refuse_sysctls(&self.pod, allowed))
                .or_else(|| {
                    let strictly = self.node.runtime.gives_groups_strictly();
                    admission::refuse_groups(&self.pod, strictly)
                });
            if refusal.is_none() {
                // One at a time: two that come together must not both be given what is left.
                let _turn = self.node.admitting.lock().await;
                refusal = self.does_not_fit().await;
                if refusal.is_none() {
                    let asked = resize::asked(&self.pod);
                    self.node.allocations.set(&self.node.config, &self.uid, asked);
                }
            }
            if refusal.is_none() {
                let refused = self.node.placements.admit(&self.pod).await.err();
                refusal = refused.map(|(reason, message)| (reason.to_owned(), message));
            }
            if let Some((reason, message)) = refusal {
                let about = client::recorder::reference(&*self.pod);
                self.node.recorder.warning(&about, &reason, message.clone());
                metrics::pods::pod_rejected(&reason);
                self.failure = Some((reason, format!("Pod was rejected: {message}")));
                return false;
            }
        }
        if pod::is_static(&self.pod) && runtime.running().next().is_some() {
            self.take_over_mirror().await;
        }
        let told = [&self.old.container_statuses, &self.old.init_container_statuses];
        for told in told.into_iter().flatten().flatten() {
            let Some((_, id)) = told.container_id.as_deref().and_then(|id| id.split_once("://"))
            else {
                continue;
            };
            if runtime.running().any(|it| it.id == id) {
                if told.started == Some(true) {
                    self.probes.remember(id, ProbeKind::Startup, true);
                }
                self.probes.remember(id, ProbeKind::Readiness, told.ready);
            }
        }
        true
    }

    /// What an earlier process told of a static pod, if its mirror is known soon.
    async fn take_over_mirror(&mut self) {
        let (namespace, name) = (pod::namespace(&self.pod), pod::name(&self.pod));
        let told = || {
            let mirror = self.node.pods.mirror(namespace, name)?;
            let is_ours = pod::annotation(&mirror, pod::CONFIG_MIRROR) == Some(&*self.uid);
            mirror.status.clone().filter(|_| is_ours)
        };
        let deadline = Instant::now() + MIRROR_PATIENCE;
        let told = loop {
            match told() {
                None if Instant::now() < deadline => tokio::time::sleep(MIRROR_LOOK).await,
                told => break told,
            }
        };
        self.old = told.unwrap_or_default();
    }

    /// Reason and message where the node has no place for the pod. A critical pod makes
    /// room for itself.
    async fn does_not_fit(&self) -> Option<(String, String)> {
        let refuse =
            |host: &admission::Standing<'_>| admission::refuse(&self.pod, &self.others(), host);
        let mut refusal = refuse(&self.node.standing())?;
        // Whoever put the pod here may know of a newer state of the node than we do.
        if refusal.may_be_old_news() {
            refusal = refuse(&self.node.refreshed_standing().await)?;
        }
        match refusal {
            admission::Refusal::Short(short) if rank::is_critical(&self.pod) => {
                let chosen = preempt::choose(&self.pod, &self.others(), &short);
                let Some(chosen) = chosen else {
                    return Some(admission::Refusal::Short(short).told());
                };
                let resource = short.first().map_or("", |it| &it.resource);
                eviction::preempt(&self.node, &chosen, resource).await;
                refuse(&self.node.standing()).map(admission::Refusal::told)
            }
            refusal => Some(refusal.told()),
        }
    }

    /// The pods that hold what they were admitted with, as resizes have left them.
    fn others(&self) -> Vec<Arc<Pod>> {
        let pods = self.node.pods.list().into_iter();
        pods.filter(|it| !it.gone && self.has_room_of_its_own(&it.pod))
            .map(|it| self.node.allocations.view(&self.node.config, &it.pod))
            .collect()
    }

    /// Admitted here and not ended: what it asks for is taken.
    fn has_room_of_its_own(&self, pod: &Pod) -> bool {
        match self.node.status.last(pod::uid(pod)) {
            Some(status) => status.phase.is_some_and(|phase| !pod::is_terminal_phase(&phase)),
            // This process has not come to it yet; an earlier one had granted it something.
            None => {
                let granted = self.node.allocations.get(&self.node.config, pod::uid(pod));
                granted.is_some() && !pod::is_terminal_phase(pod::phase(pod))
            }
        }
    }

    async fn sync(&mut self, now: Timestamp) -> Next {
        let mut runtime = self.runtime();
        if !self.begun && !self.begin(&runtime).await {
            self.begin_end();
            return Next::Again(Some(Duration::ZERO));
        }
        if let Some((reason, message)) =
            admission::blocked(&self.pod, self.node.machine.has_app_armor)
        {
            self.publish_blocked(&runtime, &reason, &message);
            return Next::Again(self.deadline().map(|deadline| until(deadline, now)));
        }
        self.watch_probes(&runtime, false);
        let mut again = self.deadline().map(|deadline| until(deadline, now));
        if self.old.start_time.is_none() {
            self.publish(&runtime, false);
        }
        if !pod::is_host_network(&self.pod)
            && let Some(trouble) = self.node.network_trouble().await
        {
            let about = client::recorder::reference(&*self.pod);
            let text = format!("network is not ready: {trouble}");
            self.node.recorder.warning(&about, "NetworkNotReady", text);
            self.publish(&runtime, false);
            return Next::Again(sooner(again, Some(self.retry())));
        }
        match self.volumes(&runtime, now).await {
            Some(ensured) => {
                again = sooner(again, ensured.again.map(|at| until(at, now)));
                // What runs goes on running with the files it has.
                if let Some(missing) = ensured.missing
                    && runtime.running().next().is_none()
                {
                    if missing.reason == LIMIT_EXCEEDED {
                        metrics::pods::pod_rejected(missing.reason);
                        let message = format!("Pod was rejected: {}", missing.message);
                        self.failure = Some((missing.reason.to_owned(), message));
                        self.begin_end();
                        return Next::Again(Some(Duration::ZERO));
                    }
                    self.publish(&runtime, false);
                    return Next::Again(again);
                }
            }
            // The pod is going away.
            None => return Next::Again(Some(Duration::ZERO)),
        }
        if let Some(all) = restart_all::plan(&self.pod, &runtime, &self.old) {
            if !self.restart_all(&all).await {
                return Next::Again(sooner(again, Some(self.retry())));
            }
            runtime = self.runtime();
        }
        base::failpoint!("pod/volumes");
        let plan = plan::plan(&self.pod, &runtime, &self.probes.verdicts());
        if plan.stop_pod {
            let Some(_) = plan.create_sandbox else {
                self.begin_end();
                return Next::Again(Some(Duration::ZERO));
            };
            if !self.stop_old_sandboxes(&runtime).await {
                return Next::Again(Some(Duration::ZERO));
            }
            runtime = self.runtime();
        }
        if let Some(attempt) = plan.create_sandbox {
            qos::update(&self.node).await;
            base::failpoint!("pod/classes-weighed");
            let mut doomed = self.doomed.clone();
            let prepared = tokio::select! {
                prepared = self.node.dynamic.prepare(&self.pod) => prepared,
                // What was asked for is written down, and unprepared at the end.
                _ = doomed.wait_for(|doomed| *doomed) => {
                    return Next::Again(Some(Duration::ZERO));
                }
            };
            if let Err(error) = prepared {
                let text = format!("Failed to prepare dynamic resources: {error}");
                let about = client::recorder::reference(&*self.pod);
                self.node.recorder.warning(&about, "FailedPrepareDynamicResources", text);
                self.publish(&runtime, false);
                return Next::Again(sooner(again, Some(self.retry())));
            }
            base::failpoint!("pod/claims-prepared");
            match self.create_sandbox(attempt).await {
                Ok(()) => runtime = self.runtime(),
                Err(error) => {
                    let text = format!("Failed to create pod sandbox: {error}");
                    let about = client::recorder::reference(&*self.pod);
                    self.node.recorder.warning(&about, "FailedCreatePodSandBox", text);
                    self.publish(&runtime, false);
                    return Next::Again(sooner(again, Some(self.retry())));
                }
            }
        }
        self.failures = 0;
        let (restarts, later) = self.actuate(&runtime).await;
        again = sooner(again, later);
        runtime = self.runtime();
        self.begin_kills(plan.kill.into_iter().chain(restarts).collect(), &runtime);
        for start in &plan.start {
            let busy = runtime.container(&start.name).is_some_and(|it| {
                it.state == ContainerState::Running || self.kills.contains_key(&it.id)
            });
            if busy || *self.doomed.borrow() {
                continue;
            }
            again = sooner(again, self.start_container(start, &runtime, now).await);
        }
        self.prune().await;
        runtime = self.runtime();
        self.watch_probes(&runtime, false);
        if self.has_just_been_killed(&runtime, base::time::now()) {
            return Next::Again(sooner(again, Some(KILL_END)));
        }
        self.publish(&runtime, false);
        Next::Again(again)
    }

    /// A kill is all but over, and wakes us: what comes next is told then, and nothing of the
    /// moment in between. One whose hook goes on after its container is told of as it is.
    fn has_just_been_killed(&self, runtime: &PodRuntime, now: Timestamp) -> bool {
        runtime.containers.iter().any(|it| {
            let ended = Timestamp::from_nanosecond(i128::from(it.finished_at));
            it.state == ContainerState::Exited
                && self.kills.contains_key(&it.id)
                && ended.is_ok_and(|ended| ended <= now && until(now, ended) < KILL_END)
        })
    }

    fn begin_kills(&mut self, kills: Vec<Kill>, runtime: &PodRuntime) {
        self.kills.retain(|_, kill| !kill.has_ended());
        for kill in kills {
            let Some(container) = runtime.containers.iter().find(|it| it.id == kill.container_id)
            else {
                continue;
            };
            if self.kills.contains_key(&kill.container_id) {
                continue;
            }
            let grace = self.kill_grace(&kill);
            let pod_ip = self.node.pod_ip(&self.pod, runtime);
            let (node, pod, container) = (self.node.clone(), self.pod.clone(), container.clone());
            let work = Chore::spawn(self.wake.clone(), async move {
                let (_keep, grace) = watch::channel(grace);
                stop::container(&node, &pod, &container, &kill.message, pod_ip, grace).await;
            });
            self.kills.insert(kill.container_id, work);
        }
    }

    /// The probe's own grace where it has one.
    fn kill_grace(&self, kill: &Kill) -> i64 {
        let kind = match kill.cause {
            KillCause::Liveness => Some(ProbeKind::Liveness),
            KillCause::Startup => Some(ProbeKind::Startup),
            KillCause::Changed | KillCause::Unknown => None,
        };
        let container = pod::container(&self.pod, &kill.name);
        kind.zip(container.as_ref())
            .and_then(|(kind, (_, container))| kind.of(container)?.termination_grace_period_seconds)
            .unwrap_or_else(|| pod::grace_period_seconds(&self.pod))
    }
}

fn until(at: Timestamp, now: Timestamp) -> Duration {
    Duration::try_from(at.duration_since(now)).unwrap_or_default()
}

fn sooner(a: Option<Duration>, b: Option<Duration>) -> Option<Duration> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}
