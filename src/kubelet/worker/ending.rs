//! The end of a pod: its containers are stopped, what it took is given back, and what is left
//! of it goes when its object does.

use std::time::Duration;

use k8s_openapi::api::core::v1::PodStatus;
use runtime::cri;
use tokio::sync::watch;
use tracing::warn;

use super::{Next, Stage, Worker};
use crate::chore::Chore;
use crate::pod;
use crate::pods::Wanted;
use crate::probes::Probes;
use crate::{garbage, qos, stop};

/// Grace of a pod whose object vanished without a word.
const GONE_GRACE_SECONDS: i64 = 1;

/// Containers that are being stopped.
pub(super) struct Ending {
    work: Chore,
    grace: watch::Sender<i64>,
}

impl Worker {
    /// Containers that the pod's status knows.
    fn known_containers(&self) -> usize {
        let old = &self.old;
        [&old.container_statuses, &old.init_container_statuses, &old.ephemeral_container_statuses]
            .into_iter()
            .flatten()
            .flatten()
            .filter(|it| it.container_id.is_some())
            .count()
    }

    fn end_grace(&self, wanted: &Wanted) -> i64 {
        let sentenced = wanted.sentence.as_ref().map_or(i64::MAX, |it| it.grace_seconds);
        self.own_grace(wanted).min(sentenced)
    }

    fn own_grace(&self, wanted: &Wanted) -> i64 {
        if wanted.gone && !pod::is_static(&wanted.pod) {
            return wanted
                .pod
                .metadata
                .deletion_grace_period_seconds
                .unwrap_or(GONE_GRACE_SECONDS)
                .max(0);
        }
        pod::grace_period_seconds(&wanted.pod)
    }

    pub(super) async fn end(&mut self, wanted: &Wanted) -> Next {
        let runtime = self.runtime();
        if let Some(ending) = &self.ending {
            let grace = self.end_grace(wanted);
            ending.grace.send_if_modified(|current| {
                let shorter = grace < *current;
                if shorter {
                    *current = grace;
                }
                shorter
            });
        }
        match &self.ending {
            Some(ending) if !ending.work.has_ended() => {
                self.watch_probes(&runtime, true);
                // Of the moment when all have ended and the pod has not, nothing is told: it
                // would neither run nor have failed.
                if runtime.running().next().is_some() {
                    self.publish(&runtime, false);
                }
                return Next::Again(None);
            }
            _ => self.ending = None,
        }
        if runtime.is_stopped() {
            self.stage = Stage::Ended;
            for (_, kill) in self.kills.drain() {
                kill.abort();
            }
            self.probes = Probes::default();
            return Next::Again(Some(Duration::ZERO));
        }
        let (grace, receiver) = watch::channel(self.end_grace(wanted));
        let delay = if self.failures > 0 { self.retry() } else { Duration::ZERO };
        self.failures = self.failures.saturating_add(1);
        let (node, pod, stopping) = (self.node.clone(), self.pod.clone(), runtime.clone());
        let work = Chore::spawn(self.wake.clone(), async move {
            tokio::time::sleep(delay).await;
            stop::pod(&node, &pod, &stopping, receiver).await;
            base::failpoint!("pod/stopped");
        });
        self.ending = Some(Ending { work, grace });
        self.watch_probes(&runtime, true);
        self.publish(&runtime, false);
        Next::Again(None)
    }

    pub(super) async fn clean(&mut self, wanted: &Wanted) -> Next {
        let node = self.node.clone();
        let runtime = self.runtime();
        let deleting = wanted.pod.metadata.deletion_timestamp.is_some();
        let returned = wanted.returned && !wanted.gone && !deleting;
        if returned && !self.cleaned {
            if let Err(error) = node.volumes.remove(&node.config, &self.uid).await {
                warn!(pod = %pod::display(&self.pod), error, "pod directory not removed");
                return Next::Again(Some(self.retry()));
            }
            if let Some(sentence) = &wanted.sentence {
                sentence.ended.notify_one();
            }
            // Its place is kept, and its containers are, so that it is seen to have restarted.
            return self.come_back(self.failure.is_none());
        }
        if !self.cleaned {
            // Before the pod is said to have ended: then others may have its devices.
            if let Err(error) = node.dynamic.unprepare(&self.uid).await {
                warn!(pod = %pod::display(&self.pod), error, "claims not unprepared");
                return Next::Again(Some(self.retry()));
            }
            base::failpoint!("pod/claims-unprepared");
            // Who waits for the end of a pod that is deleted finds its volumes gone.
            let removed = match deleting {
                true => node.volumes.remove(&node.config, &self.uid).await,
                false => Ok(()),
            };
            self.publish(&runtime, true);
            let removed = match deleting {
                true => removed,
                false => node.volumes.remove(&node.config, &self.uid).await,
            };
            if let Err(error) = removed {
                warn!(pod = %pod::display(&self.pod), error, "pod directory not removed");
                return Next::Again(Some(self.retry()));
            }
            node.users.release(&self.uid);
            base::failpoint!("pod/users-released");
            node.placements.release(&self.uid);
            node.objects.release(&self.uid);
            node.images.release(&self.uid);
            node.probe_counts.release(&self.uid);
            for waits in node.allocations.release(&self.uid) {
                node.pods.wake(&waits);
            }
            qos::update(&node).await;
            base::failpoint!("pod/released");
            self.cleaned = true;
            if let Some(sentence) = &wanted.sentence {
                sentence.ended.notify_one();
            }
        }
        if !wanted.gone && !returned && !deleting {
            return Next::Again(None);
        }
        for container in &runtime.containers {
            self.remove_container(container).await;
        }
        base::failpoint!("pod/containers-removed");
        for sandbox in &runtime.sandboxes {
            if let Err(error) = node.runtime.remove_pod_sandbox(&sandbox.id).await
                && error.kind != cri::ErrorKind::NotFound
            {
                warn!(pod = %pod::display(&self.pod), error = %base::error::chain(&error),
                      "sandbox not removed");
                return Next::Again(Some(self.retry()));
            }
            node.observed.forget(&sandbox.id);
        }
        base::failpoint!("pod/sandboxes-removed");
        let logs = node.config.log_dir(pod::namespace(&self.pod), pod::name(&self.pod), &self.uid);
        if let Err(error) = tokio::fs::remove_dir_all(&logs).await
            && error.kind() != std::io::ErrorKind::NotFound
        {
            warn!(path = %logs.display(), %error, "logs not removed");
        }
        if runtime.containers.len() < self.known_containers() {
            // An earlier process has removed some, and died before it removed their links.
            garbage::remove_dead_links(&node);
        }
        base::failpoint!("pod/logs-gone");
        if returned {
            return self.come_back(false);
        }
        if wanted.gone {
            node.status.forget(&self.uid);
            if node.pods.forget(&self.uid) {
                return Next::Done;
            }
            // A static pod's file came back.
            return self.come_back(false);
        }
        node.status.finish(&self.pod, self.old.clone());
        base::failpoint!("pod/finished");
        Next::Again(None)
    }

    /// Begins the pod anew. `granted` has it all that it was admitted with.
    fn come_back(&mut self, granted: bool) -> Next {
        if self.node.pods.come_back(&self.uid) {
            self.node.status.forget(&self.uid);
            self.stage = Stage::Syncing;
            (self.begun, self.cleaned) = (granted, false);
            (self.failure, self.is_disrupted, self.failures) = (None, false, 0);
            self.start_time = base::time::now();
            self.old = PodStatus::default();
        }
        Next::Again(Some(Duration::ZERO))
    }
}
