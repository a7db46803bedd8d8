//! The worker's part in changes of a running pod's resources: asks whether they are granted,
//! and gives them to the cgroups.

use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Pod, PodCondition};
use runtime::cri::{LinuxResources, StatsQuery};
use sys::cgroup::{Hierarchy, Limits};
use tracing::warn;

use super::Worker;
use crate::metrics::resizes as metrics;
use crate::observed::PodRuntime;
use crate::plan::{Kill, KillCause};
use crate::resize::{self, Allocation, Pending, Step};
use crate::{pod, qos, resources, status};

/// When a change that failed is tried again.
const RETRY: Duration = Duration::from_secs(5);

/// How far a change of resources has come.
#[derive(Debug, Default)]
pub(super) struct Resizing {
    pending: Option<Pending>,
    /// Some while containers do not have what they were granted; with what went wrong.
    progress: Option<Option<String>>,
    /// What was asked for last, once it was counted.
    asked: Option<Allocation>,
    /// While there is progress: since when.
    under_way: Option<(Instant, metrics::UnderWay)>,
}

fn limits(resources: &LinuxResources) -> Limits {
    Limits {
        cpu_shares: resources.cpu_shares,
        cpu_quota: resources.cpu_quota,
        cpu_period: resources.cpu_period,
        memory_bytes: resources.memory_limit,
        swap_bytes: resources.swap_bytes,
        unified: resources.unified.clone(),
        ..Limits::default()
    }
}

fn condition(type_: &str, reason: Option<&str>, message: Option<&str>, pod: &Pod) -> PodCondition {
    PodCondition {
        type_: type_.to_owned(),
        status: "True".to_owned(),
        reason: reason.map(str::to_owned),
        message: message.map(str::to_owned),
        last_transition_time: Some(status::seconds(base::time::now())),
        observed_generation: pod.metadata.generation,
        ..PodCondition::default()
    }
}

impl Worker {
    /// The pod as it was granted, after what it asks for now was judged.
    pub(super) async fn settle(&mut self, asked: &Arc<Pod>) -> Arc<Pod> {
        let node = self.node.clone();
        let wanted = resize::asked(asked);
        let Some(held) = node.allocations.get(&node.config, &self.uid) else {
            node.allocations.set(&node.config, &self.uid, wanted);
            return asked.clone();
        };
        if held == wanted {
            return self.settled(asked);
        }
        if self.resizing.asked.as_ref() != Some(&wanted) {
            metrics::asked(&held, &wanted);
            self.resizing.asked = Some(wanted.clone());
        }
        // One at a time, beginners too: what is left is given once. Who holds the turn may wait
        // for this very pod to end.
        let mut doomed = self.doomed.clone();
        let _turn = tokio::select! {
            turn = node.admitting.lock() => turn,
            _ = doomed.wait_for(|doomed| *doomed) => return resize::granted(asked, &held),
        };
        // Somebody else may have granted it meanwhile.
        let held = node.allocations.get(&node.config, &self.uid).unwrap_or(held);
        if held == wanted {
            return self.settled(asked);
        }
        let before = resize::granted(asked, &held);
        let grows = resize::grows(asked, &before);
        if grows {
            self.ask_those_before(asked);
        }
        let about = client::recorder::reference(&**asked);
        let shown = resize::shown(&wanted);
        let pinned = resize::refuse_pinned(asked, &held, &node.config.places);
        match pinned.or_else(|| self.judge(asked)) {
            None => {
                for container in resize::changed(&wanted, &held) {
                    self.backoffs.forget(container);
                }
                node.allocations.set(&node.config, &self.uid, wanted);
                if self.resizing.pending.is_some() {
                    metrics::accepted_after_all("pod_resized");
                }
                node.allocations.defer(&self.uid, false);
                self.start_resizing(asked);
                if !grows {
                    // It leaves something to those that wait.
                    node.allocations.waiting().iter().for_each(|uid| node.pods.wake(uid));
                }
                asked.clone()
            }
            Some(pending) => {
                if self.resizing.pending.as_ref() != Some(&pending) {
                    let reason = format!("Resize{}", pending.reason);
                    let text =
                        format!("Pod resize {}: {shown}: {}", pending.reason, pending.message);
                    node.recorder.warning(&about, &reason, text);
                    if pending.reason == "Infeasible" {
                        metrics::is_infeasible(pending.detail);
                    }
                }
                node.allocations.defer(&self.uid, pending.reason == "Deferred");
                self.resizing.pending = Some(pending);
                before
            }
        }
    }

    /// The pod has been granted what it asks for.
    fn settled(&mut self, asked: &Arc<Pod>) -> Arc<Pod> {
        self.resizing.pending = None;
        self.node.allocations.defer(&self.uid, false);
        if self.node.allocations.was_granted(&self.uid) {
            metrics::accepted_after_all("pod_resized");
            for (_, container) in pod::containers(asked) {
                self.backoffs.forget(&container.name);
            }
            self.start_resizing(asked);
        }
        asked.clone()
    }

    fn start_resizing(&mut self, asked: &Arc<Pod>) {
        self.resizing = Resizing {
            pending: None,
            progress: Some(None),
            asked: None,
            under_way: Some((Instant::now(), metrics::begun())),
        };
        let text = format!("Pod resize started: {}", resize::shown(&resize::asked(asked)));
        let about = client::recorder::reference(&**asked);
        self.node.recorder.normal(&about, "ResizeStarted", text);
    }

    /// What keeps a pod of this node from what it asks for beside all others.
    fn judge(&self, asked: &Pod) -> Option<Pending> {
        let mut others = self.others();
        others.retain(|it| pod::uid(it) != pod::uid(asked));
        resize::judge(asked, &others, &self.node.machine.allocatable)
    }

    /// Those that wait for more and come before this pod get it first, as far as there is some.
    fn ask_those_before(&self, asked: &Pod) {
        let node = &self.node;
        let own = resize::rank(asked, node.allocations.turn(&self.uid));
        let mut before: Vec<_> = node
            .allocations
            .waiting()
            .into_iter()
            .filter(|uid| *uid != self.uid)
            .filter_map(|uid| node.pods.get(&uid))
            .filter(|it| !it.gone && it.sentence.is_none())
            .filter(|it| it.pod.metadata.deletion_timestamp.is_none())
            .map(|it| (resize::rank(&it.pod, node.allocations.turn(pod::uid(&it.pod))), it.pod))
            .filter(|(rank, _)| *rank < own)
            .collect();
        before.sort_by(|(a, _), (b, _)| a.cmp(b));
        for (_, pod) in before {
            if self.judge(&pod).is_none() {
                node.allocations.grant(&node.config, pod::uid(&pod), resize::asked(&pod));
                node.pods.wake(pod::uid(&pod));
            }
        }
    }

    /// Gives running containers what was granted. Containers to be restarted for it are
    /// returned; Some says when to try again.
    pub(super) async fn actuate(&mut self, runtime: &PodRuntime) -> (Vec<Kill>, Option<Duration>) {
        let steps = resize::steps(&self.pod, runtime, self.node.host());
        if steps.is_empty() {
            if self.resizing.progress.is_some() {
                // The pod's own resources may be all that changed.
                if let Err(error) = self.apply(&[]).await {
                    warn!(pod = %pod::display(&self.pod), error, "resources not changed");
                    self.note_actuated(false);
                    self.resizing.progress = Some(Some(error));
                    return (Vec::new(), Some(RETRY));
                }
                self.note_actuated(true);
                self.resizing.progress = None;
                self.resizing.under_way = None;
                let about = client::recorder::reference(&*self.pod);
                let shown = resize::shown(&resize::asked(&self.pod));
                let text = format!("Pod resize completed: {shown}");
                self.node.recorder.normal(&about, "ResizeCompleted", text);
            }
            return (Vec::new(), None);
        }
        match self.apply(&steps).await {
            Ok(()) => {
                let kills: Vec<Kill> = steps
                    .into_iter()
                    .filter(|step| step.restarts)
                    .map(|step| Kill {
                        container_id: step.container_id,
                        message: format!("Container {} resize requires restart", step.name),
                        name: step.name,
                        cause: KillCause::Changed,
                    })
                    .collect();
                self.resizing.progress = Some(None);
                // Looked at once more, to find it done.
                let again = kills.is_empty().then_some(Duration::ZERO);
                (kills, again)
            }
            Err(error) => {
                warn!(pod = %pod::display(&self.pod), error, "resources not changed");
                self.note_actuated(false);
                self.resizing.progress = Some(Some(error));
                (Vec::new(), Some(RETRY))
            }
        }
    }

    fn note_actuated(&self, succeeded: bool) {
        if let Some((since, _)) = &self.resizing.under_way {
            metrics::actuated(since.elapsed(), succeeded);
        }
    }

    /// The pod's group takes what grows before its containers, and what shrinks after them.
    async fn apply(&self, steps: &[Step]) -> Result<(), String> {
        self.check_memory(steps).await?;
        let node = &self.node;
        let whole = limits(&resources::pod_resources(&self.pod, 0, node.host()));
        let path = resources::cgroup_parent(&self.pod, &node.config.cgroup_root);
        let apply = async || -> std::io::Result<()> {
            let (path, whole) = (path.clone(), whole.clone());
            let work = move || Hierarchy::detect()?.group(&path).apply(&whole);
            base::task::spawn_blocking(work)
                .await
                .unwrap_or_else(|error| Err(std::io::Error::other(error)))
        };
        // The kernel refuses what the containers still have more of.
        let _ = apply().await;
        for step in steps.iter().filter(|step| !step.restarts) {
            node.runtime
                .update_container_resources(&step.container_id, step.wanted.clone())
                .await
                .map_err(|error| base::error::chain(&error).to_string())?;
            if let Err(error) = node.observed.refresh_container(&step.container_id).await {
                warn!(container = step.container_id, error = %error, "container not read");
            }
        }
        if !steps.iter().any(|step| step.restarts) {
            apply().await.map_err(|error| format!("resources of the pod: {error}"))?;
        }
        qos::update(node).await;
        Ok(())
    }

    /// A limit below what is in use would kill the container.
    async fn check_memory(&self, steps: &[Step]) -> Result<(), String> {
        let query = StatsQuery { pods: Some([self.uid.clone()].into()), with_disk: false };
        let stats =
            self.node.runtime.pod_sandbox_stats(&query).await.map_err(|error| error.to_string())?;
        let used: Vec<_> = stats.iter().flat_map(|pod| &pod.containers).collect();
        for step in steps.iter().filter(|step| !step.restarts && step.wanted.memory_limit > 0) {
            let Some(it) = used.iter().find(|it| it.id == step.container_id) else { continue };
            let limit = step.wanted.memory_limit as u64;
            if it.usage.memory_bytes > limit {
                return Err(format!(
                    "attempting to set container {:?} memory limit ({limit}) below current usage ({})",
                    step.name, it.usage.memory_bytes
                ));
            }
        }
        Ok(())
    }

    /// Adds the conditions of a change that is not yet granted or done.
    pub(super) fn show_resizing(&self, status: &mut k8s_openapi::api::core::v1::PodStatus) {
        if self.resizing.progress.is_some() && self.old.resources.is_some() {
            // The pod as a whole has what it had until all is done.
            status.resources.clone_from(&self.old.resources);
        }
        let all = status.conditions.get_or_insert_default();
        let mut new = Vec::new();
        if let Some(pending) = &self.resizing.pending {
            let (reason, message) = (Some(pending.reason), Some(pending.message.as_str()));
            new.push(condition("PodResizePending", reason, message, &self.pod));
        }
        if let Some(error) = &self.resizing.progress {
            let reason = error.as_ref().map(|_| "Error");
            new.push(condition("PodResizeInProgress", reason, error.as_deref(), &self.pod));
        }
        for mut condition in new {
            let before =
                self.old.conditions.iter().flatten().find(|it| it.type_ == condition.type_);
            if let Some(before) = before {
                condition.last_transition_time = before.last_transition_time.clone();
            }
            all.push(condition);
        }
    }
}
