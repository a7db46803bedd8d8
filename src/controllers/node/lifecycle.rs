//! Notices nodes that fall silent, taints them by their conditions, and evicts the pods
//! that do not tolerate it.
//!
//! A node lives as long as its lease or its Ready condition moves, by our own clock: the
//! node's may be wrong.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use base::error::chain;
use client::api::{DeleteParams, ListParams};
use client::cache::{Cache, Key, key_of};
use client::recorder::reference;
use client::{Patch, Queue};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, Pod};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::time::Instant;
use tracing::warn;

use super::plan::{self, Stay};
use crate::harness::{Context, Doing, Outcome, Settled};
use crate::owner::{name, namespace, uid};
use crate::pod;
use crate::pod_collector::{BY_NODE, by_node};

/// A node that is silent for longer is Unknown (upstream, `node-monitor-grace-period`).
const GRACE: Duration = Duration::from_secs(50);
const LEASES: &str = "kube-node-lease";
const NODE_WORKERS: usize = 4;
const POD_WORKERS: usize = 4;

struct Lifecycle {
    context: Context,
    nodes: Cache<Node>,
    pods: Cache<Pod>,
    /// When each node last moved.
    seen: Mutex<HashMap<String, Instant>>,
    node_keys: Queue<Key>,
    pod_keys: Queue<Key>,
}

pub async fn run(context: Context) {
    let lifecycle = Arc::new(Lifecycle {
        nodes: context.shared.cache(),
        pods: context.shared.cache(),
        seen: Mutex::default(),
        node_keys: Queue::named("node_lifecycle_controller"),
        pod_keys: Queue::named("node_lifecycle_controller_pods"),
        context,
    });
    let me = &lifecycle;
    let leases: Cache<Lease> = me.context.shared.cache_where(Some(LEASES), ListParams::default());
    me.pods.add_index(BY_NODE, by_node);
    let synced = async {
        me.nodes.synced().await;
        me.pods.synced().await;
        leases.synced().await;
    };
    if me.context.drain.until(synced).await.is_none() {
        return;
    }
    let listener = lifecycle.clone();
    me.nodes.on_change(move |old, new| listener.node_changed(old, new));
    let listener = lifecycle.clone();
    leases.on_change(move |_, new: Option<&Arc<Lease>>| {
        if let Some(lease) = new {
            listener.saw(name(&lease.metadata));
        }
    });
    let listener = lifecycle.clone();
    me.pods.on_change(move |old, new| {
        let Some(pod) = new else { return };
        let moved = old.is_none_or(|old| {
            pod::node(old) != pod::node(pod)
                || old.spec.as_ref().map(|s| &s.tolerations)
                    != pod.spec.as_ref().map(|s| &s.tolerations)
        });
        if moved && !pod::node(pod).is_empty() {
            listener.pod_keys.add(key_of(&**pod));
        }
    });
    tokio::join!(
        me.context.work(&me.node_keys, NODE_WORKERS, |key| me.sync_node(key)),
        me.context.work(&me.pod_keys, POD_WORKERS, |key| me.sync_pod(key)),
    );
}

impl Lifecycle {
    fn saw(&self, node: &str) {
        let mut seen = self.seen.lock();
        seen.insert(node.to_string(), Instant::now());
    }

    fn node_changed(&self, old: Option<&Arc<Node>>, new: Option<&Arc<Node>>) {
        let Some(node) = new else {
            if let Some(old) = old {
                self.seen.lock().remove(name(&old.metadata));
            }
            return;
        };
        let beat = |node: &Node| {
            let conditions = node.status.as_ref().and_then(|s| s.conditions.as_ref());
            let ready = conditions.into_iter().flatten().find(|c| c.type_ == "Ready");
            ready.filter(|c| c.status != "Unknown").map(|c| c.last_heartbeat_time.clone())
        };
        if old.is_none_or(|old| beat(node).is_some() && beat(old) != beat(node)) {
            self.saw(name(&node.metadata));
        }
        self.node_keys.add((String::new(), name(&node.metadata).to_string()));
        if old.is_none_or(|old| plan::taints_of(old) != plan::taints_of(node)) {
            for pod in self.pods.indexed(BY_NODE, name(&node.metadata)) {
                self.pod_keys.add(key_of(&*pod));
            }
        }
    }

    async fn sync_node(&self, key: Key) -> Outcome {
        let Some(node) = self.nodes.get("", &key.1) else { return Ok(()) };
        let silent = {
            let mut seen = self.seen.lock();
            seen.entry(key.1.clone()).or_insert_with(Instant::now).elapsed()
        };
        if silent >= GRACE {
            self.mark_silent(&node).await?;
        } else {
            // One timer per node; it looks again at when the node moved last.
            self.node_keys.add_after(key, GRACE - silent);
        }
        let Some(taints) = plan::taints(&node, base::time::now()) else { return Ok(()) };
        let patch = json!({
            "metadata": {"resourceVersion": node.metadata.resource_version},
            "spec": {"taints": taints},
        });
        let api = self.context.client.all::<Node>();
        let answer = api.patch(name(&node.metadata), &Patch::Merge(patch)).await;
        answer.doing(|| "taint the node".into()).or_gone()?;
        if plan::condition(&node, "Ready").is_some_and(|status| status != "True") {
            self.mark_pods_unready(&node).await?;
        }
        Ok(())
    }

    /// What a silent node last said is not known to be true any more.
    async fn mark_silent(&self, node: &Node) -> Outcome {
        let now = base::time::rfc3339(base::time::now());
        let mut conditions: Vec<Value> = Vec::new();
        for kind in ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"] {
            let (reason, message) = match plan::condition(node, kind) {
                Some("Unknown") => continue,
                Some(_) => ("NodeStatusUnknown", "Kubelet stopped posting node status."),
                None => ("NodeStatusNeverUpdated", "Kubelet never posted node status."),
            };
            conditions.push(json!({"type": kind, "status": "Unknown", "reason": reason,
                "message": message, "lastTransitionTime": now}));
        }
        if conditions.is_empty() {
            return Ok(());
        }
        let about = reference(node);
        let text = format!("Node {} status is now: NodeNotReady", name(&node.metadata));
        self.context.recorder.normal(&about, "NodeNotReady", text);
        let patch = json!({
            "metadata": {"resourceVersion": node.metadata.resource_version},
            "status": {"conditions": conditions},
        });
        let api = self.context.client.all::<Node>();
        let answer = api.patch_status(name(&node.metadata), &Patch::Strategic(patch)).await;
        answer.doing(|| "mark the node unknown".into()).or_gone()
    }

    /// Pods of a node that is not ready serve nobody.
    async fn mark_pods_unready(&self, node: &Node) -> Outcome {
        for pod in self.pods.indexed(BY_NODE, name(&node.metadata)) {
            if !pod::is_ready(&pod) {
                continue;
            }
            let meta = &pod.metadata;
            let patch = json!({"metadata": {"uid": meta.uid}, "status": {"conditions": [{
                "type": "Ready", "status": "False",
                "lastTransitionTime": base::time::rfc3339(base::time::now())}]}});
            let api = self.context.client.api::<Pod>(Some(namespace(meta)));
            let text = "Node is not ready";
            self.context.recorder.warning(&reference(&*pod), "NodeNotReady", text);
            match api.patch_status(name(meta), &Patch::Strategic(patch)).await {
                Err(err) if !err.is_not_found() && !err.is_conflict() => {
                    warn!(pod = name(meta), error = %chain(&err), "pod not marked unready");
                }
                Ok(_) | Err(_) => {}
            }
        }
        Ok(())
    }

    async fn sync_pod(&self, key: Key) -> Outcome {
        let Some(pod) = self.pods.get(&key.0, &key.1) else { return Ok(()) };
        if pod.metadata.deletion_timestamp.is_some() {
            return Ok(());
        }
        let Some(node) = self.nodes.get("", pod::node(&pod)) else { return Ok(()) };
        match plan::stay(&pod, plan::taints_of(&node), base::time::now().as_second()) {
            Stay::Forever => Ok(()),
            Stay::Seconds(left) => {
                // Taints that go in the meantime are seen then.
                self.pod_keys.add_after(key, Duration::from_secs(left.unsigned_abs()));
                Ok(())
            }
            Stay::Leave => self.evict(&pod).await,
        }
    }

    async fn evict(&self, pod: &Pod) -> Outcome {
        let meta = &pod.metadata;
        let text = format!("Marking for deletion Pod {}/{}", namespace(meta), name(meta));
        self.context.recorder.normal(&reference(pod), "TaintManagerEviction", text);
        let patch = json!({"metadata": {"uid": meta.uid}, "status": {"conditions": [{
            "type": "DisruptionTarget", "status": "True", "reason": "DeletionByTaintManager",
            "message": "Taint manager: deleting due to NoExecute taint",
            "lastTransitionTime": base::time::rfc3339(base::time::now())}]}});
        let api = self.context.client.api::<Pod>(Some(namespace(meta)));
        let answer = api.patch_status(name(meta), &Patch::Strategic(patch)).await;
        answer.doing(|| "mark an evicted pod".into()).or_gone()?;
        let answer = api.delete(name(meta), &DeleteParams::uid(uid(meta))).await;
        answer.doing(|| "evict a pod".into()).or_gone()
    }
}
