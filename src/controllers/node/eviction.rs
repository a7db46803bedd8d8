//! Evicts the pods that do not tolerate a taint of their node, each in its time.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use client::Queue;
use client::cache::{Cache, Key, key_of};
use client::recorder::reference;
use k8s_openapi::api::core::v1::{Node, Pod, Taint};
use parking_lot::Mutex;

use super::plan::{self, Seen, Stay};
use crate::evict::{Cause, evict};
use crate::harness::{Context, Outcome};
use crate::owner::name;
use crate::pod;
use crate::pod_collector::{BY_NODE, by_node};

/// Pods worked on at a time.
const WORKERS: usize = 8;

struct Eviction {
    context: Context,
    nodes: Cache<Node>,
    pods: Cache<Pod>,
    keys: Queue<Key>,
    /// Pods that will have to go; never more than there are.
    waiting: Mutex<HashSet<Key>>,
    /// What each node's taints were when we looked last.
    taints: Mutex<HashMap<String, Seen>>,
}

pub async fn run(context: Context) {
    let me = Arc::new(Eviction {
        nodes: context.shared.cache(),
        pods: context.shared.cache(),
        keys: Queue::named("noexec_taint_pod"),
        waiting: Mutex::default(),
        taints: Mutex::default(),
        context,
    });
    me.pods.add_index(BY_NODE, by_node);
    let synced = async {
        me.nodes.synced().await;
        me.pods.synced().await;
    };
    if me.context.drain.until(synced).await.is_none() {
        return;
    }
    let listener = me.clone();
    me.nodes.on_change(move |old, new| {
        let Some(node) = new else {
            if let Some(old) = old {
                listener.taints.lock().remove(name(&old.metadata));
            }
            return;
        };
        if old.is_none_or(|old| plan::taints_of(old) != plan::taints_of(node)) {
            for pod in listener.pods.indexed(BY_NODE, name(&node.metadata)) {
                listener.keys.add(key_of(&*pod));
            }
        }
    });
    let listener = me.clone();
    me.pods.on_change(move |old, new| {
        let Some(pod) = new else {
            if let Some(old) = old {
                listener.waiting.lock().remove(&key_of(&**old));
            }
            return;
        };
        let moved = old.is_none_or(|old| {
            pod::node(old) != pod::node(pod)
                || old.spec.as_ref().map(|s| &s.tolerations)
                    != pod.spec.as_ref().map(|s| &s.tolerations)
        });
        if moved && !pod::node(pod).is_empty() {
            listener.keys.add(key_of(&**pod));
        }
    });
    me.context.work(&me.keys, WORKERS, |key| me.sync(key)).await;
}

impl Eviction {
    /// Those that throw pods out, with their ages in seconds.
    fn taints_of(&self, node: &Node) -> Vec<(Taint, i64)> {
        let mut all = self.taints.lock();
        let taints = plan::taints_of(node);
        if taints.is_empty() {
            all.remove(name(&node.metadata));
            return Vec::new();
        }
        let seen = all.entry(name(&node.metadata).to_string()).or_default();
        seen.look(taints, base::time::now())
    }

    async fn sync(&self, key: Key) -> Outcome {
        let Some(pod) = self.pods.get(&key.0, &key.1) else { return Ok(()) };
        if pod.metadata.deletion_timestamp.is_some() {
            return Ok(());
        }
        let Some(node) = self.nodes.get("", pod::node(&pod)) else { return Ok(()) };
        match plan::stay(&pod, &self.taints_of(&node), base::time::now()) {
            Stay::Forever => {
                if self.waiting.lock().remove(&key) {
                    let text = format!("Cancelling deletion of Pod {}/{}", key.0, key.1);
                    self.context.recorder.normal(&reference(&*pod), "TaintManagerEviction", text);
                }
                Ok(())
            }
            Stay::Seconds(left) => {
                self.waiting.lock().insert(key.clone());
                // Taints that go in the meantime are seen then.
                self.keys.add_after(key, Duration::from_secs(left.unsigned_abs()));
                Ok(())
            }
            Stay::Leave => {
                let cause = Cause {
                    event: "TaintManagerEviction",
                    text: format!("Marking for deletion Pod {}/{}", key.0, key.1),
                    reason: "DeletionByTaintManager",
                    message: "Taint manager: deleting due to NoExecute taint",
                };
                evict(&self.context, &pod, cause).await
            }
        }
    }
}
