//! What the runtime holds on this node, kept in memory and indexed by pod.
//!
//! One list at start and after a lagging event stream; otherwise single look-ups for
//! what an event names. Never decides anything.

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;
use runtime::cri::{
    Container, ContainerState, ErrorKind, PodSandbox, Result, RuntimeService, SandboxState,
};

use crate::metrics;

pub const LABEL_POD_NAME: &str = "io.kubernetes.pod.name";
pub const LABEL_POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
pub const LABEL_POD_UID: &str = "io.kubernetes.pod.uid";
pub const LABEL_CONTAINER_NAME: &str = "io.kubernetes.container.name";
pub const ANNOTATION_HASH: &str = "io.kubernetes.container.hash";
pub const ANNOTATION_RESTART_COUNT: &str = "io.kubernetes.container.restartCount";
pub const ANNOTATION_MESSAGE_PATH: &str = "io.kubernetes.container.terminationMessagePath";
pub const ANNOTATION_MESSAGE_POLICY: &str = "io.kubernetes.container.terminationMessagePolicy";
/// Grace of the pod when the container was made; used when the pod's object is gone.
pub const ANNOTATION_GRACE: &str = "io.kubernetes.pod.terminationGracePeriod";

/// The sandboxes and containers of one pod, newest first.
#[derive(Debug, Clone, Default)]
pub struct PodRuntime {
    pub sandboxes: Vec<PodSandbox>,
    pub containers: Vec<Container>,
}

impl PodRuntime {
    pub fn newest_sandbox(&self) -> Option<&PodSandbox> {
        self.sandboxes.first()
    }

    pub fn ready_sandbox(&self) -> Option<&PodSandbox> {
        self.newest_sandbox().filter(|sandbox| sandbox.state == SandboxState::Ready)
    }

    /// The newest container of that name, whatever sandbox it is in.
    pub fn container(&self, name: &str) -> Option<&Container> {
        self.containers.iter().find(|container| container.metadata.name == name)
    }

    pub fn all_of<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Container> {
        self.containers.iter().filter(move |container| container.metadata.name == name)
    }

    pub fn running(&self) -> impl Iterator<Item = &Container> {
        self.containers.iter().filter(|container| container.state == ContainerState::Running)
    }

    /// Nothing of the pod can still be running.
    pub fn is_stopped(&self) -> bool {
        self.running().next().is_none()
            && self.sandboxes.iter().all(|sandbox| sandbox.state != SandboxState::Ready)
    }
}

pub fn restart_count(container: &Container) -> u32 {
    container
        .annotations
        .get(ANNOTATION_RESTART_COUNT)
        .and_then(|count| count.parse().ok())
        .unwrap_or(container.metadata.attempt)
}

/// What is newer is greater. What was counted goes before what was dated: the clock may have
/// been set back meanwhile.
fn age_of_sandbox(sandbox: &PodSandbox) -> (u32, i64) {
    (sandbox.metadata.attempt, sandbox.created_at)
}

fn age_of_container(container: &Container) -> (u32, i64) {
    (restart_count(container), container.created_at)
}

#[derive(Default)]
struct Held {
    sandboxes: HashMap<String, PodSandbox>,
    containers: HashMap<String, Container>,
    /// Ids by pod uid.
    by_pod: HashMap<String, Ids>,
}

#[derive(Default)]
struct Ids {
    sandboxes: BTreeSet<String>,
    containers: BTreeSet<String>,
}

impl Held {
    fn put_sandbox(&mut self, sandbox: PodSandbox) -> String {
        let uid = sandbox.metadata.uid.clone();
        self.by_pod.entry(uid.clone()).or_default().sandboxes.insert(sandbox.id.clone());
        self.sandboxes.insert(sandbox.id.clone(), sandbox);
        uid
    }

    fn put_container(&mut self, container: Container) -> Option<String> {
        let uid = match container.labels.get(LABEL_POD_UID) {
            Some(uid) => uid.clone(),
            None => self.sandboxes.get(&container.sandbox_id)?.metadata.uid.clone(),
        };
        self.by_pod.entry(uid.clone()).or_default().containers.insert(container.id.clone());
        self.containers.insert(container.id.clone(), container);
        Some(uid)
    }

    fn forget(&mut self, id: &str) -> Option<String> {
        let uid = if let Some(sandbox) = self.sandboxes.remove(id) {
            sandbox.metadata.uid
        } else {
            let container = self.containers.remove(id)?;
            container.labels.get(LABEL_POD_UID).cloned().unwrap_or_default()
        };
        if let Some(ids) = self.by_pod.get_mut(&uid) {
            ids.sandboxes.remove(id);
            ids.containers.remove(id);
            if ids.sandboxes.is_empty() && ids.containers.is_empty() {
                self.by_pod.remove(&uid);
            }
        }
        Some(uid)
    }
}

pub struct Observed {
    runtime: Arc<dyn RuntimeService>,
    held: Mutex<Held>,
    /// When all was read last.
    listed: Mutex<Option<Instant>>,
}

impl Observed {
    pub fn new(runtime: Arc<dyn RuntimeService>) -> Self {
        Self { runtime, held: Mutex::default(), listed: Mutex::default() }
    }

    /// Reads everything anew; returns the uids of all pods known before or after.
    pub async fn relist(&self) -> Result<BTreeSet<String>> {
        let begun = Instant::now();
        let sandboxes = self.runtime.list_pod_sandboxes().await?;
        let containers = self.runtime.list_containers().await?;
        let before = self.listed.lock().replace(begun);
        let since = before.map(|before| begun.saturating_duration_since(before));
        metrics::node::runtime_listed(begun.elapsed(), since);
        let mut fresh = Held::default();
        for sandbox in sandboxes {
            fresh.put_sandbox(sandbox);
        }
        for container in containers {
            fresh.put_container(container);
        }
        let mut held = self.held.lock();
        let mut uids: BTreeSet<String> = held.by_pod.keys().cloned().collect();
        *held = fresh;
        uids.extend(held.by_pod.keys().cloned());
        Ok(uids)
    }

    /// Reads one sandbox anew; the uid of the pod it belongs or belonged to.
    pub async fn refresh_sandbox(&self, id: &str) -> Result<Option<String>> {
        match self.runtime.pod_sandbox_status(id).await {
            Ok(sandbox) => Ok(Some(self.held.lock().put_sandbox(sandbox))),
            Err(error) if error.kind == ErrorKind::NotFound => Ok(self.held.lock().forget(id)),
            Err(error) => Err(error),
        }
    }

    /// Reads one container anew; the uid of the pod it belongs or belonged to.
    pub async fn refresh_container(&self, id: &str) -> Result<Option<String>> {
        match self.runtime.container_status(id).await {
            Ok(container) => Ok(self.held.lock().put_container(container)),
            Err(error) if error.kind == ErrorKind::NotFound => Ok(self.held.lock().forget(id)),
            Err(error) => Err(error),
        }
    }

    pub fn forget(&self, id: &str) {
        self.held.lock().forget(id);
    }

    pub fn pod(&self, uid: &str) -> PodRuntime {
        let held = self.held.lock();
        let Some(ids) = held.by_pod.get(uid) else { return PodRuntime::default() };
        let mut sandboxes: Vec<PodSandbox> =
            ids.sandboxes.iter().filter_map(|id| held.sandboxes.get(id)).cloned().collect();
        let mut containers: Vec<Container> =
            ids.containers.iter().filter_map(|id| held.containers.get(id)).cloned().collect();
        sandboxes.sort_by_key(|it| Reverse(age_of_sandbox(it)));
        containers.sort_by_key(|it| Reverse(age_of_container(it)));
        PodRuntime { sandboxes, containers }
    }

    /// Pods of which the runtime holds anything.
    pub fn pods(&self) -> Vec<String> {
        self.held.lock().by_pod.keys().cloned().collect()
    }

    pub fn container(&self, id: &str) -> Option<Container> {
        self.held.lock().containers.get(id).cloned()
    }

    pub fn containers(&self) -> Vec<Container> {
        self.held.lock().containers.values().cloned().collect()
    }

    pub fn sandboxes(&self) -> Vec<PodSandbox> {
        self.held.lock().sandboxes.values().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::samples;

    #[test]
    fn a_clock_that_is_set_back_makes_nothing_old() {
        let day = 86_400_000_000_000;
        let first = samples::container("a", ContainerState::Exited, 1);
        let mut second = samples::container("a", ContainerState::Running, 0);
        second.metadata.attempt = 1;
        second.annotations.insert(ANNOTATION_RESTART_COUNT.into(), "1".into());
        second.created_at = first.created_at - day;
        assert!(age_of_container(&second) > age_of_container(&first));
        let old = samples::sandbox("s0", SandboxState::NotReady, 0);
        let mut new = samples::sandbox("s1", SandboxState::Ready, 1);
        new.created_at = old.created_at - day;
        assert!(age_of_sandbox(&new) > age_of_sandbox(&old));
    }
}
