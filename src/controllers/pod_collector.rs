//! Removes pods that nobody else will: those of nodes that are gone or out of service, those
//! that are deleted before they had a node, and finished ones beyond a number.

#[cfg(test)]
pub(crate) mod cases;
pub(crate) mod plan;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use client::api::DeleteParams;
use client::cache::{Cache, Key, key_of};
use client::{Patch, Queue};
use k8s_openapi::api::core::v1::{Node, Pod};
use serde_json::json;

use crate::harness::{Context, Doing, Outcome, Settled};
use crate::owner::{created, name, namespace, uid};
use crate::pod;
use plan::Verdict;

/// Index of pods by their node.
pub const BY_NODE: &str = "node";
const FINISHED: &str = "finished";
/// A node may come back within this time (upstream, `quarantineTime`).
const QUARANTINE: Duration = Duration::from_secs(40);
/// A pod without a node that is to go is left to who holds it for so long (upstream looks every
/// `gcCheckPeriod`).
const UNPLACED: Duration = Duration::from_secs(20);
const WORKERS: usize = 4;

pub fn by_node(pod: &Pod) -> Vec<String> {
    let node = pod::node(pod);
    if node.is_empty() { Vec::new() } else { vec![node.to_string()] }
}

fn finished(pod: &Pod) -> Vec<String> {
    if pod::is_finished(pod) { vec![String::new()] } else { Vec::new() }
}

pub async fn run(context: Context) {
    let pods: Cache<Pod> = context.shared.cache();
    let nodes: Cache<Node> = context.shared.cache();
    pods.add_index(BY_NODE, by_node);
    pods.add_index(FINISHED, finished);
    let synced = async {
        pods.synced().await;
        nodes.synced().await;
    };
    if context.drain.until(synced).await.is_none() {
        return;
    }
    let queue: Queue<Key> = Queue::named("pod_collector");
    let (again, held) = (queue.clone(), pods.clone());
    nodes.on_change(move |old, new| {
        let wait = match (old, new) {
            (Some(_), None) => QUARANTINE,
            (_, Some(new)) if plan::is_out_of_service(new) => {
                if old.is_some_and(|old| plan::is_out_of_service(old)) {
                    return;
                }
                Duration::ZERO
            }
            _ => return,
        };
        let Some(node) = new.or(old) else { return };
        for pod in held.indexed(BY_NODE, name(&node.metadata)) {
            again.add_after(key_of(&*pod), wait);
        }
    });
    let collector = Collector { context, pods, nodes, queue, finished: AtomicUsize::new(0) };
    let collector = Arc::new(collector);
    let me = collector.clone();
    collector.pods.on_change(move |old, new| me.pod_changed(old, new));
    let queue = &collector.queue;
    collector.context.work(queue, WORKERS, |key| collector.sync(key)).await;
}

struct Collector {
    context: Context,
    pods: Cache<Pod>,
    nodes: Cache<Node>,
    queue: Queue<Key>,
    finished: AtomicUsize,
}

/// The key of the finished pods as a whole.
fn surplus() -> Key {
    (String::new(), FINISHED.to_string())
}

impl Collector {
    fn pod_changed(&self, old: Option<&Arc<Pod>>, new: Option<&Arc<Pod>>) {
        let counted = |pod: Option<&Arc<Pod>>| pod.is_some_and(|pod| pod::is_finished(pod));
        match (counted(old), counted(new)) {
            (false, true) => {
                let count = self.finished.fetch_add(1, Ordering::Relaxed) + 1;
                let max = self.context.config.finished_pods_max;
                if max > 0 && count > max {
                    self.queue.add(surplus());
                }
            }
            (true, false) => {
                self.finished.fetch_sub(1, Ordering::Relaxed);
            }
            (true, true) | (false, false) => {}
        }
        let Some(pod) = new else { return };
        match self.judge(pod) {
            Verdict::Keep => {}
            Verdict::Homeless => self.queue.add_after(key_of(&**pod), QUARANTINE),
            Verdict::Unplaced => self.queue.add_after(key_of(&**pod), UNPLACED),
            Verdict::Remove => self.queue.add(key_of(&**pod)),
        }
    }

    fn judge(&self, pod: &Pod) -> Verdict {
        let node = Some(pod::node(pod)).filter(|node| !node.is_empty());
        plan::judge(pod, node.and_then(|node| self.nodes.get("", node)).as_deref())
    }

    async fn sync(&self, key: Key) -> Outcome {
        if key == surplus() {
            return self.remove_surplus().await;
        }
        let Some(pod) = self.pods.get(&key.0, &key.1) else { return Ok(()) };
        match self.judge(&pod) {
            Verdict::Keep => return Ok(()),
            Verdict::Remove | Verdict::Unplaced => return self.remove(&pod, None).await,
            Verdict::Homeless => {}
        }
        let node = pod::node(&pod);
        // The cache may lag behind a node that has just registered.
        let live = self.context.client.all::<Node>().get_opt(node).await;
        if live.doing(|| format!("look for node {node}"))?.is_some() {
            return Ok(());
        }
        self.remove(&pod, Some("PodGC: node no longer exists")).await
    }

    async fn remove_surplus(&self) -> Outcome {
        let max = self.context.config.finished_pods_max;
        let mut pods = self.pods.indexed(FINISHED, "");
        pods.sort_by_key(|pod| (!plan::is_evicted(pod), created(&pod.metadata)));
        let surplus = pods.len().saturating_sub(max);
        for pod in pods.iter().take(surplus) {
            self.remove(pod, None).await?;
        }
        Ok(())
    }

    /// Marks the pod failed, and why, unless it is finished, and removes it at once.
    async fn remove(&self, pod: &Pod, reason: Option<&str>) -> Outcome {
        let meta = &pod.metadata;
        let api = self.context.client.api::<Pod>(Some(namespace(meta)));
        if !pod::is_finished(pod) {
            let mut patch = json!({
                "metadata": {"uid": meta.uid}, "status": {"phase": "Failed"},
            });
            if let Some(message) = reason {
                patch["status"]["conditions"] = json!([{
                    "type": "DisruptionTarget", "status": "True",
                    "reason": "DeletionByPodGC", "message": message,
                    "observedGeneration": meta.generation,
                    "lastTransitionTime": base::time::rfc3339(base::time::now()),
                }]);
            }
            let answer = api.patch_status(name(meta), &Patch::Strategic(patch)).await;
            answer.doing(|| "mark a pod failed".into()).or_gone()?;
        }
        let params = DeleteParams::uid(uid(meta)).grace(0);
        match api.delete(name(meta), &params).await {
            // Another pod has the name by now.
            Err(err) if err.code() == 409 => Ok(()),
            answer => answer.doing(|| format!("remove pod {}", name(meta))).or_gone(),
        }
    }
}
