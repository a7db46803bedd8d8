//! The worker's part in changes of a running pod's resources: asks whether they are granted,
//! and gives them to the cgroups.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Pod, PodCondition};
use runtime::cri::{LinuxResources, StatsQuery};
use sys::cgroup::{Hierarchy, Limits};
use tracing::warn;

use super::Worker;
use crate::observed::PodRuntime;
use crate::plan::{Kill, KillCause};
use crate::resize::{self, Pending, Step};
use crate::{pod, qos, resources, status};

/// When a change that failed is tried again.
const RETRY: Duration = Duration::from_secs(5);

/// How far a change of resources has come.
#[derive(Debug, Default)]
pub(super) struct Resizing {
    pending: Option<Pending>,
    /// Some while containers do not have what they were granted; with what went wrong.
    progress: Option<Option<String>>,
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
    pub(super) fn settle(&mut self, asked: &Arc<Pod>) -> Arc<Pod> {
        let node = self.node.clone();
        let wanted = resize::asked(asked);
        let Some(held) = node.allocations.get(&node.config, &self.uid) else {
            node.allocations.set(&node.config, &self.uid, wanted);
            return asked.clone();
        };
        if held == wanted {
            self.resizing.pending = None;
            node.allocations.defer(&self.uid, false);
            return asked.clone();
        }
        let others: Vec<Arc<Pod>> = node
            .pods
            .list()
            .into_iter()
            .filter(|it| !it.gone && pod::uid(&it.pod) != self.uid)
            .filter(|it| self.has_room_of_its_own(&it.pod))
            .map(|it| node.allocations.view(&node.config, &it.pod))
            .collect();
        let about = client::recorder::reference(&**asked);
        let shown = resize::shown(&wanted);
        let pinned = resize::refuse_pinned(asked, &held, &node.config.places);
        match pinned.or_else(|| resize::judge(asked, &others, &node.machine.allocatable)) {
            None => {
                node.allocations.set(&node.config, &self.uid, wanted);
                node.allocations.defer(&self.uid, false);
                self.resizing = Resizing { pending: None, progress: Some(None) };
                node.recorder.normal(
                    &about,
                    "ResizeStarted",
                    format!("Pod resize started: {shown}"),
                );
                asked.clone()
            }
            Some(pending) => {
                if self.resizing.pending.as_ref() != Some(&pending) {
                    let reason = format!("Resize{}", pending.reason);
                    let text =
                        format!("Pod resize {}: {shown}: {}", pending.reason, pending.message);
                    node.recorder.warning(&about, &reason, text);
                }
                node.allocations.defer(&self.uid, pending.reason == "Deferred");
                self.resizing.pending = Some(pending);
                resize::granted(asked, &held)
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
                    self.resizing.progress = Some(Some(error));
                    return (Vec::new(), Some(RETRY));
                }
                self.resizing.progress = None;
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
                self.resizing.progress = Some(Some(error));
                (Vec::new(), Some(RETRY))
            }
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
            tokio::task::spawn_blocking(work)
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
