//! Notices nodes that fall silent, and taints them by their conditions. `zone.rs` says how
//! fast their pods may be evicted, `eviction.rs` does it.
//!
//! A node lives as long as its lease or its Ready condition moves, by our own clock: the
//! node's may be wrong.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use base::error::chain;
use client::api::ListParams;
use client::cache::{Cache, Key};
use client::recorder::reference;
use client::{Patch, Queue};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, Pod};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::time::Instant;
use tracing::warn;

use super::plan::{self, Evict};
use super::zone::{Pace, Zones, zone_of};
use crate::harness::{Context, Doing, Outcome, Settled};
use crate::owner::{name, namespace};
use crate::pod;
use crate::pod_collector::{BY_NODE, by_node};

const LEASES: &str = "kube-node-lease";
const NODE_WORKERS: usize = 4;

/// What is remembered between looks. Bound: an entry per node, and per zone.
#[derive(Default)]
struct Memory {
    /// When each node last moved.
    seen: HashMap<String, Instant>,
    /// Nodes whose pods were marked since they went down.
    marked: HashSet<String>,
    /// The zones as they are, and as they were when they were last acted upon.
    zones: Zones,
    surveyed: Zones,
    /// When the next node of a zone may begin to evict.
    turns: HashMap<String, Instant>,
}

struct Lifecycle {
    context: Context,
    nodes: Cache<Node>,
    pods: Cache<Pod>,
    memory: Mutex<Memory>,
    node_keys: Queue<Key>,
}

pub async fn run(context: Context) {
    let zones = Zones::new(context.config.eviction);
    let memory = Memory { surveyed: zones.clone(), zones, ..Memory::default() };
    let lifecycle = Arc::new(Lifecycle {
        nodes: context.shared.cache(),
        pods: context.shared.cache(),
        memory: Mutex::new(memory),
        node_keys: Queue::named("node_lifecycle_controller"),
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
    me.context.work(&me.node_keys, NODE_WORKERS, |key| me.sync_node(key)).await;
}

impl Lifecycle {
    fn saw(&self, node: &str) {
        self.memory.lock().seen.insert(node.to_string(), Instant::now());
    }

    fn node_changed(&self, old: Option<&Arc<Node>>, new: Option<&Arc<Node>>) {
        let ready = |node: &Arc<Node>| plan::condition(node, "Ready") == Some("True");
        let place = |node: &Arc<Node>| (ready(node), zone_of(node));
        if old.map(place) != new.map(place) {
            self.memory.lock().zones.change(old.map(|old| &**old), new.map(|new| &**new));
        }
        let Some(node) = new else {
            if let Some(old) = old {
                let own_name = name(&old.metadata);
                let mut memory = self.memory.lock();
                memory.seen.remove(own_name);
                memory.marked.remove(own_name);
                drop(memory);
                self.tell(
                    old,
                    "RemovingNode",
                    &format!("Removing Node {own_name} from Controller"),
                );
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
        match old {
            None => {
                let text = format!("Registered Node {} in Controller", name(&node.metadata));
                self.tell(node, "RegisteredNode", &text);
            }
            Some(old) if ready(old) && !ready(node) => {
                let text = format!("Node {} status is now: NodeNotReady", name(&node.metadata));
                self.context.recorder.normal(&reference(&**node), "NodeNotReady", text);
            }
            Some(_) => {}
        }
        self.node_keys.add((String::new(), name(&node.metadata).to_string()));
    }

    fn tell(&self, node: &Node, reason: &str, text: &str) {
        let text = format!("Node {} event: {text}", name(&node.metadata));
        self.context.recorder.normal(&reference(node), reason, text);
    }

    async fn sync_node(&self, key: Key) -> Outcome {
        self.survey();
        let Some(node) = self.nodes.get("", &key.1) else { return Ok(()) };
        let labels = plan::old_labels(&node);
        if !labels.is_empty() {
            let patch = json!({"metadata": {"uid": node.metadata.uid, "labels": labels}});
            let api = self.context.client.all::<Node>();
            let answer = api.patch(name(&node.metadata), &Patch::Strategic(patch)).await;
            answer.doing(|| "label the node by its old names".into()).or_gone()?;
        }
        let never = plan::condition(&node, "Ready").is_none();
        let config = &self.context.config;
        let grace = if never { config.node_startup_grace } else { config.node_monitor_grace };
        let silent = {
            let mut memory = self.memory.lock();
            memory.seen.entry(key.1.clone()).or_insert_with(Instant::now).elapsed()
        };
        if silent >= grace {
            self.mark_silent(&node).await?;
        } else {
            // One timer per node; it looks again at when the node moved last.
            self.node_keys.add_after(key.clone(), grace - silent);
        }
        let evict = self.turn(&node, &key);
        if let Some(taints) = plan::taints(&node, evict, base::time::now()) {
            let patch = json!({
                "metadata": {"resourceVersion": node.metadata.resource_version},
                "spec": {"taints": taints},
            });
            let api = self.context.client.all::<Node>();
            let answer = api.patch(name(&node.metadata), &Patch::Merge(patch)).await;
            if answer.is_err() && evict == Evict::Now {
                self.memory.lock().turns.remove(&zone_of(&node));
            }
            answer.doing(|| "taint the node".into()).or_gone()?;
        }
        if !plan::is_down(&node) {
            self.memory.lock().marked.remove(&key.1);
        } else if !self.memory.lock().marked.contains(&key.1) {
            self.mark_pods_unready(&node).await?;
            self.memory.lock().marked.insert(key.1);
        }
        Ok(())
    }

    /// Acts where the pace of a zone has become another. Whoever is down may have its turn
    /// now, or lose it.
    fn survey(&self) {
        let mut memory = self.memory.lock();
        if !memory.zones.differ(&memory.surveyed) {
            return;
        }
        if memory.surveyed.all_down() && !memory.zones.all_down() {
            // We were cut off, perhaps: each node has its full time again.
            memory.seen.values_mut().for_each(|seen| *seen = Instant::now());
        }
        memory.surveyed = memory.zones.clone();
        drop(memory);
        for node in self.nodes.list().iter().filter(|node| plan::is_down(node)) {
            self.node_keys.add((String::new(), name(&node.metadata).to_string()));
        }
    }

    /// Whether it is this node's turn to evict its pods; if it will be, it comes back then.
    fn turn(&self, node: &Node, key: &Key) -> Evict {
        if !plan::is_down(node) {
            return Evict::Wait;
        }
        let mut memory = self.memory.lock();
        let interval = match memory.zones.pace(node) {
            Pace::AllDown => return Evict::Never,
            Pace::Halted => return Evict::Wait,
            Pace::Every(_) if plan::evicts(node) => return Evict::Wait,
            Pace::Every(interval) => interval,
        };
        let now = Instant::now();
        let next = memory.turns.entry(zone_of(node)).or_insert(now);
        if *next > now {
            self.node_keys.add_after(key.clone(), *next - now);
            return Evict::Wait;
        }
        *next = now + interval;
        Evict::Now
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
            let mut condition = json!({"type": kind, "status": "Unknown", "reason": reason,
                "message": message, "lastTransitionTime": now});
            if plan::condition(node, kind).is_none() {
                condition["lastHeartbeatTime"] = json!(node.metadata.creation_timestamp);
            }
            conditions.push(condition);
        }
        if conditions.is_empty() {
            return Ok(());
        }
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
}
