//! Keeps one pod of a DaemonSet on every node that it is for.
//!
//! `plan.rs` decides, `node.rs` knows the nodes; here is the applying.

#[cfg(test)]
pub(crate) mod cases;
mod node;
mod plan;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use client::cache::{Cache, Key, key_of};
use client::recorder::reference;
use client::{DeleteParams, Queue};
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use parking_lot::Mutex;
use serde_json::json;
use tokio::time::Instant;

use crate::claim::claim;
use crate::expect::Expectations;
use crate::harness::{Context, Doing, Outcome, Settled};
use crate::history::{self, History};
use crate::owner::{self, controller_of, name, namespace, uid};
use crate::pace::Pace;
use crate::pod;
use plan::{Held, plan};

const WORKERS: usize = 2;
/// Pods created or deleted by one sync; the rest follows in the next.
const BURST: usize = 250;
/// Between deletions of finished pods of one node: from, to.
const BACK_OFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(900));

pub async fn run(context: Context) {
    let pods = context.shared.cache::<Pod>();
    pods.add_index(owner::BY_CONTROLLER, owner::by_controller);
    pods.add_index(owner::ORPHANS, owner::orphans);
    let me = Arc::new(Controller {
        queue: Queue::named("daemonset"),
        sets: context.shared.cache(),
        nodes: context.shared.cache(),
        pods,
        history: History::new(&context),
        expected: Expectations::default(),
        pace: Pace::default(),
        failures: Mutex::default(),
        context,
    });
    me.run().await;
}

struct Controller {
    context: Context,
    queue: Queue<Key>,
    sets: Cache<DaemonSet>,
    nodes: Cache<Node>,
    pods: Cache<Pod>,
    history: History,
    expected: Expectations,
    pace: Pace,
    /// By set and node: when a finished pod was deleted, and how long the next one waits.
    failures: Mutex<HashMap<(String, String), (Instant, Duration)>>,
}

impl Controller {
    async fn run(self: Arc<Self>) {
        let synced = async {
            self.sets.synced().await;
            self.nodes.synced().await;
            self.pods.synced().await;
            self.history.synced().await;
        };
        if self.context.drain.until(synced).await.is_none() {
            return;
        }
        let me = self.clone();
        self.sets.on_change(move |old, new| {
            for set in [old, new].into_iter().flatten() {
                me.queue.add(key_of(&**set));
            }
        });
        let me = self.clone();
        self.nodes.on_change(move |old, new| {
            let facts = |n: Option<&Arc<Node>>| {
                n.map(|n| (n.metadata.labels.clone(), node_taints(n), n.metadata.uid.clone()))
            };
            if facts(old) != facts(new) {
                for set in me.sets.list() {
                    me.pace.add(&me.queue, key_of(&*set));
                }
            }
        });
        let me = self.clone();
        self.pods.on_change(move |old, new| me.pod_changed(old, new));
        let me = self.clone();
        self.history.on_change(move |meta| me.wake_owner(meta, true));
        self.context.work(&self.queue, WORKERS, |key| self.sync(key)).await;
    }

    fn wake_owner(&self, meta: &ObjectMeta, at_once: bool) {
        let Some(owner) = controller_of(meta).filter(|o| o.kind == "DaemonSet") else { return };
        let key = (namespace(meta).to_string(), owner.name.clone());
        match at_once {
            true => self.queue.add(key),
            false => self.pace.add(&self.queue, key),
        }
    }

    fn pod_changed(&self, old: Option<&Arc<Pod>>, new: Option<&Arc<Pod>>) {
        let was_last = new.is_some_and(|new| self.expected.saw(uid(&new.metadata)));
        if let Some(old) = old
            && new.is_none_or(|new| new.metadata.uid != old.metadata.uid)
        {
            self.expected.gone(uid(&old.metadata));
        }
        for pod in [old, new].into_iter().flatten() {
            self.wake_owner(&pod.metadata, was_last);
        }
        let Some(pod) = new.filter(|p| controller_of(&p.metadata).is_none()) else { return };
        for set in self.sets.list_in(namespace(&pod.metadata)) {
            if selector(&set).matches_map(pod.metadata.labels.as_ref()) {
                self.queue.add(key_of(&*set));
            }
        }
    }

    async fn sync(&self, key: Key) -> Outcome {
        let Some(set) = self.sets.get(&key.0, &key.1) else {
            self.pace.looked(&key, 0);
            return Ok(());
        };
        if set.metadata.deletion_timestamp.is_some() || selector(&set).is_everything() {
            return Ok(());
        }
        let selector = selector(&set);
        let pods = claim(&self.context, &*set, &self.pods, &selector, pod::is_active).await?;
        self.pace.looked(&key, pods.len().max(self.nodes.len()));
        let Some(revision) = self.history.present(&*set, &selector).await? else { return Ok(()) };
        let hash = history::hash_of::<DaemonSet>(&revision).to_string();
        let held = |pod: Arc<Pod>| {
            let going = pod.metadata.deletion_timestamp.is_some()
                || self.expected.deleted(uid(&pod.metadata));
            Held { pod, going }
        };
        let held: Vec<Held> = pods.into_iter().map(held).collect();
        let now = base::time::now().as_second();
        let plan = plan(&set, &self.nodes.list(), &held, &hash, now);
        if let Some(seconds) = plan.look_again_in {
            self.queue.add_after(key.clone(), Duration::from_secs(seconds.max(1) as u64));
        }
        let mut done = Ok(());
        if self.expected.are_met(&key, &self.queue) {
            let finished = plan.finished.iter().filter(|pod| self.may_retry(&key, &set, pod));
            for pod in plan.delete.iter().chain(finished).take(BURST) {
                done = self.delete(&set, pod).await.and(done);
            }
            for node in plan.create.iter().take(BURST) {
                if done.is_ok() {
                    done = self.create(&set, &key, node, &hash).await;
                }
            }
            let is_capped = plan.create.len().max(plan.delete.len()) > BURST && done.is_ok();
            if is_capped && self.expected.are_met(&key, &self.queue) {
                // All of this turn was seen by now: nobody else would hurry for the next.
                self.queue.add(key.clone());
            }
        }
        let api = self.context.client.api::<DaemonSet>(Some(&key.0));
        let held_status = client::api::value_of(&set.status).unwrap_or_default();
        let same = |(field, value): (&String, &serde_json::Value)| {
            held_status.get(field).unwrap_or(&json!(0)) == value
        };
        if !plan.status.as_object().is_some_and(|s| s.iter().all(same)) {
            let patch = json!({"metadata": {"uid": set.metadata.uid}, "status": plan.status});
            let answer = api.merge(&key.1, "status", &patch).await;
            answer.doing(|| "write the status".into()).or_gone()?;
        }
        done?;
        let used: Vec<&str> = held
            .iter()
            .filter_map(|h| h.pod.metadata.labels.as_ref()?.get(history::HASH))
            .map(String::as_str)
            .chain([hash.as_str()])
            .collect();
        self.history.prune(&*set, |r| used.contains(&history::hash_of::<DaemonSet>(r))).await
    }

    /// Whether a finished pod may be removed by now; what failed may not at once.
    fn may_retry(&self, key: &Key, set: &DaemonSet, pod: &Pod) -> bool {
        let (what, node) = (format!("{}/{}", key.0, name(&pod.metadata)), pod::node(pod));
        if pod::phase(pod) == "Succeeded" {
            let text =
                format!("Found succeeded daemon pod {what} on node {node}, will try to delete it");
            self.context.recorder.normal(&reference(set), "SucceededDaemonPod", text);
            return true;
        }
        let mut failures = self.failures.lock();
        failures.retain(|_, (at, _)| at.elapsed() < BACK_OFF.1 * 2);
        let of = (uid(&set.metadata).to_string(), pod::node(pod).to_string());
        let wait = failures.get(&of).map(|(at, wait)| (wait.saturating_sub(at.elapsed()), *wait));
        if let Some((left, _)) = wait.filter(|(left, _)| !left.is_zero()) {
            self.queue.add_after(key.clone(), left);
            return false;
        }
        let next = wait.map_or(BACK_OFF.0, |(_, wait)| (wait * 2).min(BACK_OFF.1));
        failures.insert(of, (Instant::now(), next));
        let text = format!("Found failed daemon pod {what} on node {node}, will try to kill it");
        self.context.recorder.warning(&reference(set), "FailedDaemonPod", text);
        true
    }

    async fn create(&self, set: &DaemonSet, key: &Key, node: &str, hash: &str) -> Outcome {
        let creating = self.expected.creating(key);
        let api = self.context.client.api::<Pod>(Some(&key.0));
        match api.create(&node::new_pod(set, node, hash)).await {
            Ok(made) => {
                creating.made(uid(&made.metadata));
                let text = format!("Created pod: {}", name(&made.metadata));
                self.context.recorder.normal(&reference(set), "SuccessfulCreate", text);
                Ok(())
            }
            Err(err) => {
                if !err.is_namespace_terminating() {
                    let text = format!("Error creating: {err}");
                    self.context.recorder.warning(&reference(set), "FailedCreate", text);
                }
                Err(err).doing(|| "create a pod".into())
            }
        }
    }

    async fn delete(&self, set: &DaemonSet, pod: &Pod) -> Outcome {
        let meta = &pod.metadata;
        let api = self.context.client.api::<Pod>(meta.namespace.as_deref());
        self.expected.deleting(uid(meta));
        match api.delete(name(meta), &DeleteParams::uid(uid(meta))).await {
            Ok(()) => {
                let text = format!("Deleted pod: {}", name(meta));
                self.context.recorder.normal(&reference(set), "SuccessfulDelete", text);
                Ok(())
            }
            Err(err) => {
                self.expected.gone(uid(meta));
                if err.is_not_found() || err.code() == 409 {
                    return Ok(());
                }
                Err(err).doing(|| format!("delete pod {}", name(meta)))
            }
        }
    }
}

fn node_taints(node: &Node) -> Vec<k8s_openapi::api::core::v1::Taint> {
    crate::node::plan::taints_of(node).to_vec()
}

fn selector(set: &DaemonSet) -> kinds::meta::LabelSelector {
    client::labels::selector(set.spec.as_ref().map(|s| &s.selector))
}
