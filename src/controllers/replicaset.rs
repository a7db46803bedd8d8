//! Keeps as many pods as a ReplicaSet or a ReplicationController asks for.
//!
//! `plan.rs` decides, `expect.rs` keeps a stale cache from misleading it; here is the
//! applying.

#[cfg(test)]
pub(crate) mod cases;
mod kind;
mod plan;

use std::sync::Arc;
use std::time::Duration;

use client::cache::{Cache, Key, key_of};
use client::recorder::reference;
use client::{DeleteParams, Patch, Queue};
use futures::future::join_all;
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::{Pod, ReplicationController};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::json;

use crate::expect::Expectations;
use crate::harness::{Context, Doing, Failed, Outcome, Settled};
use crate::owner::{self, controller_of, name, namespace, uid};
use crate::pace::Pace;
use crate::pod;
use kind::Replicated;
use plan::{Plan, Scale, plan};

/// Objects worked on at a time.
const WORKERS: usize = 5;
/// Pods created or deleted by one sync; the rest follows in the next.
const BURST: usize = 500;

pub async fn run_replica_sets(context: Context) {
    Controller::<ReplicaSet>::new(context).run().await;
}

pub async fn run_replication_controllers(context: Context) {
    Controller::<ReplicationController>::new(context).run().await;
}

struct Controller<K> {
    context: Context,
    queue: Queue<Key>,
    owners: Cache<K>,
    pods: Cache<Pod>,
    expected: Expectations,
    pace: Pace,
}

impl<K: Replicated> Controller<K> {
    fn new(context: Context) -> Arc<Self> {
        let pods = context.shared.cache::<Pod>();
        pods.add_index(owner::BY_CONTROLLER, owner::by_controller);
        pods.add_index(owner::ORPHANS, owner::orphans);
        let owners = context.shared.cache::<K>();
        owners.add_index(owner::BY_CONTROLLER, owner::by_controller);
        Arc::new(Self {
            queue: Queue::named(match K::KIND {
                "ReplicationController" => "replicationmanager",
                _ => "replicaset",
            }),
            owners,
            pods,
            expected: Expectations::default(),
            pace: Pace::default(),
            context,
        })
    }

    async fn run(self: Arc<Self>) {
        let synced = async {
            self.owners.synced().await;
            self.pods.synced().await;
        };
        if self.context.drain.until(synced).await.is_none() {
            return;
        }
        let me = self.clone();
        self.owners.on_change(move |old, new| {
            for owner in [old, new].into_iter().flatten() {
                me.queue.add(key_of(&**owner));
            }
        });
        let me = self.clone();
        self.pods.on_change(move |old, new| me.pod_changed(old, new));
        self.context.work(&self.queue, WORKERS, |key| self.sync(key)).await;
    }

    fn pod_changed(&self, old: Option<&Arc<Pod>>, new: Option<&Arc<Pod>>) {
        let was_last = new.is_some_and(|new| self.expected.saw(uid(&new.metadata)));
        if let Some(old) = old
            && new.is_none_or(|new| new.metadata.uid != old.metadata.uid)
        {
            self.expected.gone(uid(&old.metadata));
        }
        if old.zip(new).is_some_and(|(old, new)| !plan::differ(old, new)) {
            return;
        }
        let mut keys: Vec<Key> =
            [old, new].into_iter().flatten().filter_map(|pod| owner_key::<K>(pod)).collect();
        keys.dedup();
        for key in keys {
            match was_last {
                true => self.queue.add(key),
                false => self.pace.add(&self.queue, key),
            }
        }
        let Some(pod) = new else { return };
        let relabelled = old.is_none_or(|old| old.metadata.labels != pod.metadata.labels);
        if controller_of(&pod.metadata).is_none() && relabelled {
            for owner in self.owners.list_in(namespace(&pod.metadata)) {
                if owner.selector().matches_map(pod.metadata.labels.as_ref()) {
                    self.queue.add(key_of(&*owner));
                }
            }
        }
    }

    async fn sync(&self, key: Key) -> Outcome {
        let Some(owner) = self.owners.get(&key.0, &key.1) else {
            self.pace.looked(&key, 0);
            return Ok(());
        };
        let pods = self.claim(&owner).await?;
        self.pace.looked(&key, pods.len());
        let pods: Vec<Arc<Pod>> =
            pods.into_iter().filter(|p| !self.expected.deleted(uid(&p.metadata))).collect();
        let now = base::time::now();
        let ranks = || self.ranks(&owner, &pods);
        let plan = plan(&*owner, &pods, &ranks, now.as_second());
        let may_scale = self.expected.are_met(&key, &self.queue);
        let failed = match &plan.scale {
            Scale::Create(count) if may_scale => {
                self.create(&owner, &key, (*count).min(BURST)).await
            }
            Scale::Delete(pods) if may_scale => self.delete(&owner, pods).await,
            Scale::Create(_) | Scale::Delete(_) | Scale::Nothing => Ok(()),
        };
        if let Some(seconds) = plan.look_again_in {
            self.queue.add_after(key.clone(), Duration::from_secs(seconds.max(1) as u64));
        }
        let is_capped = plan.scale.size() > BURST && may_scale && failed.is_ok();
        if is_capped && self.expected.are_met(&key, &self.queue) {
            // All of this turn was seen by now: nobody else would hurry for the next.
            self.queue.add(key);
        }
        self.write_status(&owner, &plan, failed.as_ref().err()).await?;
        failed
    }

    /// Pods of other ReplicaSets of the same owner, by node: where there are many, one
    /// is removed first.
    fn ranks(&self, owner: &Arc<K>, pods: &[Arc<Pod>]) -> Vec<usize> {
        let siblings = match controller_of(owner.meta()) {
            Some(parent) => self.owners.indexed(owner::BY_CONTROLLER, &parent.uid),
            None => vec![owner.clone()],
        };
        let mut on_node = std::collections::HashMap::<String, usize>::new();
        for sibling in siblings {
            for pod in self.pods.indexed(owner::BY_CONTROLLER, uid(sibling.meta())) {
                if pod::is_active(&pod) {
                    *on_node.entry(pod::node(&pod).to_string()).or_default() += 1;
                }
            }
        }
        pods.iter().map(|pod| on_node.get(pod::node(pod)).copied().unwrap_or(0)).collect()
    }

    /// The owner's pods: adopts those that match and have no controller, releases those
    /// that match no more.
    async fn claim(&self, owner: &Arc<K>) -> Result<Vec<Arc<Pod>>, Failed> {
        let selector = owner.selector();
        let meta = owner.meta();
        let mut mine = Vec::new();
        for pod in self.pods.indexed(owner::BY_CONTROLLER, uid(meta)) {
            if selector.matches_map(pod.metadata.labels.as_ref()) {
                mine.push(pod);
            } else if meta.deletion_timestamp.is_none() {
                let patch = json!({"metadata": {"uid": pod.metadata.uid, "ownerReferences": [
                    {"$patch": "delete", "uid": meta.uid}]}});
                self.patch_pod(&pod, patch, "release").await.or_gone()?;
            }
        }
        if meta.deletion_timestamp.is_some() || selector.is_everything() {
            return Ok(mine);
        }
        let matching = |pod: &Arc<Pod>| {
            selector.matches_map(pod.metadata.labels.as_ref()) && pod::is_active(pod)
        };
        let orphans = self.pods.indexed(owner::ORPHANS, namespace(meta));
        let orphans: Vec<_> = orphans.into_iter().filter(matching).collect();
        if orphans.is_empty() || !self.may_adopt(owner).await? {
            return Ok(mine);
        }
        for pod in orphans {
            let patch = json!({"metadata": {"uid": pod.metadata.uid,
                "ownerReferences": [owner::reference_to(&**owner)]}});
            match self.patch_pod(&pod, patch, "adopt").await {
                Ok(()) => mine.push(pod),
                Err(err) if err.source.is_not_found() || err.source.code() == 422 => {}
                Err(err) => return Err(err),
            }
        }
        Ok(mine)
    }

    /// The cache may not know yet that the owner is being deleted.
    async fn may_adopt(&self, owner: &Arc<K>) -> Result<bool, Failed> {
        let meta = owner.meta();
        let api = self.context.client.api::<K>(Some(namespace(meta)));
        let live = api.get_opt(name(meta)).await.doing(|| "look whether it may adopt".into())?;
        Ok(live.is_some_and(|live| {
            live.meta().uid == meta.uid && live.meta().deletion_timestamp.is_none()
        }))
    }

    async fn patch_pod(&self, pod: &Pod, patch: serde_json::Value, verb: &str) -> Outcome {
        let api = self.context.client.api::<Pod>(pod.metadata.namespace.as_deref());
        let name = name(&pod.metadata);
        let answer = api.patch(name, &Patch::Strategic(patch)).await;
        answer.map(drop).doing(|| format!("{verb} pod {name}"))
    }

    /// Creates in batches of 1, 2, 4 and so on, so that a quota or a broken template
    /// costs few requests.
    async fn create(&self, owner: &Arc<K>, key: &Key, count: usize) -> Outcome {
        let pod = new_pod(&**owner);
        let api = self.context.client.api::<Pod>(Some(&key.0));
        let about = reference(&**owner);
        let (mut left, mut batch) = (count, 1);
        while left > 0 {
            let size = batch.min(left);
            let creating = self.expected.creating(key);
            let made = join_all((0..size).map(|_| api.create(&pod))).await;
            let mut failure = None;
            for answer in made {
                match answer {
                    Ok(made) => {
                        creating.made(uid(&made.metadata));
                        let text = format!("Created pod: {}", name(&made.metadata));
                        self.context.recorder.normal(&about, "SuccessfulCreate", text);
                    }
                    Err(err) => failure = Some(err),
                }
            }
            drop(creating);
            if let Some(err) = failure {
                if !err.is_namespace_terminating() {
                    let text = format!("Error creating: {err}");
                    self.context.recorder.warning(&about, "FailedCreate", text);
                }
                return Err(err).doing(|| "create a pod".into());
            }
            left -= size;
            batch *= 2;
        }
        Ok(())
    }

    async fn delete(&self, owner: &Arc<K>, pods: &[Arc<Pod>]) -> Outcome {
        let about = reference(&**owner);
        let one = |pod: Arc<Pod>| async move {
            let meta = &pod.metadata;
            let api = self.context.client.api::<Pod>(meta.namespace.as_deref());
            self.expected.deleting(uid(meta));
            let answer = api.delete(name(meta), &DeleteParams::uid(uid(meta))).await;
            if answer.is_err() {
                self.expected.gone(uid(meta));
            }
            (pod, answer)
        };
        let answers = join_all(pods.iter().take(BURST).cloned().map(one)).await;
        let mut failed = Ok(());
        for (pod, answer) in answers {
            let name = name(&pod.metadata);
            match answer {
                Ok(()) => {
                    let text = format!("Deleted pod: {name}");
                    self.context.recorder.normal(&about, "SuccessfulDelete", text);
                }
                // It is gone, or another one has its name.
                Err(err) if err.is_not_found() || err.code() == 409 => {}
                Err(err) => {
                    let text = format!("Error deleting: {err}");
                    self.context.recorder.warning(&about, "FailedDelete", text);
                    failed = Err(err).doing(|| format!("delete pod {name}"));
                }
            }
        }
        failed
    }

    async fn write_status(&self, owner: &Arc<K>, plan: &Plan, failed: Option<&Failed>) -> Outcome {
        let creating = matches!(plan.scale, Scale::Create(_));
        let failure = failed.map(|failed| {
            let reason = if creating { "FailedCreate" } else { "FailedDelete" };
            (reason, failed.source.to_string())
        });
        let now = base::time::rfc3339(base::time::now());
        let Some(status) = plan::status(&**owner, &plan.counts, failure, &now) else {
            return Ok(());
        };
        let meta = owner.meta();
        let api = self.context.client.api::<K>(Some(namespace(meta)));
        let patch = json!({"metadata": {"uid": meta.uid}, "status": status});
        let answer = api.merge(name(meta), "status", &patch).await;
        answer.doing(|| "write the status".into()).or_gone()
    }
}

fn owner_key<K: Replicated>(pod: &Pod) -> Option<Key> {
    let owner = controller_of(&pod.metadata)?;
    let ours = owner.kind == K::KIND && owner.api_version == K::API_VERSION;
    ours.then(|| (namespace(&pod.metadata).to_string(), owner.name.clone()))
}

fn new_pod<K: Replicated>(owner: &K) -> Pod {
    let meta = owner.meta();
    let template = owner.template();
    let given = template.and_then(|t| t.metadata.clone()).unwrap_or_default();
    Pod {
        metadata: ObjectMeta {
            generate_name: Some(format!("{}-", name(meta))),
            namespace: meta.namespace.clone(),
            labels: given.labels,
            annotations: given.annotations,
            finalizers: given.finalizers,
            owner_references: Some(vec![owner::reference_to(owner)]),
            ..ObjectMeta::default()
        },
        spec: template.and_then(|t| t.spec.clone()),
        status: None,
    }
}
