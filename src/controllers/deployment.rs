//! Rolls ReplicaSets from one template to the next.
//!
//! `plan.rs` decides; here its steps are applied. The first step that changes a
//! ReplicaSet ends a sync: its event starts the next one.

#[cfg(test)]
pub(crate) mod cases;
mod plan;
mod revision;
mod rollback;
pub(crate) mod scale;
mod status;
pub(crate) mod template;

use std::sync::Arc;
use std::time::Duration;

use client::cache::{Cache, Key, key_of};
use client::recorder::reference;
use client::{DeleteParams, Patch, Propagation, Queue};
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::Pod;
use serde_json::json;

use crate::harness::{Context, Doing, Failed, Outcome, Settled};
use crate::owner::{self, controller_of, name, namespace, uid};
use crate::pod;
use plan::{Step, World};

/// Deployments worked on at a time.
const WORKERS: usize = 5;

pub async fn run(context: Context) {
    let controller = Arc::new(Controller {
        queue: Queue::named("deployment"),
        deployments: context.shared.cache(),
        sets: context.shared.cache(),
        pods: context.shared.cache(),
        context,
    });
    controller.run().await;
}

struct Controller {
    context: Context,
    queue: Queue<Key>,
    deployments: Cache<Deployment>,
    sets: Cache<ReplicaSet>,
    pods: Cache<Pod>,
}

impl Controller {
    async fn run(self: Arc<Self>) {
        self.sets.add_index(owner::BY_CONTROLLER, owner::by_controller);
        self.sets.add_index(owner::ORPHANS, owner::orphans);
        self.pods.add_index(owner::BY_CONTROLLER, owner::by_controller);
        let synced = async {
            self.deployments.synced().await;
            self.sets.synced().await;
            self.pods.synced().await;
        };
        if self.context.drain.until(synced).await.is_none() {
            return;
        }
        let me = self.clone();
        self.deployments.on_change(move |old, new| {
            for deployment in [old, new].into_iter().flatten() {
                me.queue.add(key_of(&**deployment));
            }
        });
        let me = self.clone();
        self.sets.on_change(move |old, new| me.set_changed(old, new));
        let me = self.clone();
        // `Recreate` waits for pods to be gone.
        self.pods.on_change(move |old, new| {
            if let (Some(old), None) = (old, new) {
                me.pod_gone(old);
            }
        });
        self.context.work(&self.queue, WORKERS, |key| self.sync(key)).await;
    }

    fn set_changed(&self, old: Option<&Arc<ReplicaSet>>, new: Option<&Arc<ReplicaSet>>) {
        let mut keys: Vec<Key> =
            [old, new].into_iter().flatten().filter_map(|set| owner_key(set)).collect();
        keys.dedup();
        for key in keys {
            self.queue.add(key);
        }
        if let Some(set) = new
            && controller_of(&set.metadata).is_none()
        {
            for deployment in self.deployments.list_in(namespace(&set.metadata)) {
                if selects(&deployment, set) {
                    self.queue.add(key_of(&*deployment));
                }
            }
        }
    }

    fn pod_gone(&self, pod: &Pod) {
        let Some(owner) = controller_of(&pod.metadata).filter(|o| o.kind == "ReplicaSet") else {
            return;
        };
        let set = self.sets.get(namespace(&pod.metadata), &owner.name);
        if let Some(key) = set.and_then(|set| owner_key(&set)) {
            let deployment = self.deployments.get(&key.0, &key.1);
            if deployment.is_some_and(|deployment| plan::recreates(&deployment)) {
                self.queue.add(key);
            }
        }
    }

    async fn sync(&self, key: Key) -> Outcome {
        let Some(deployment) = self.deployments.get(&key.0, &key.1) else { return Ok(()) };
        let sets = self.claim(&deployment).await?;
        let recreates = plan::recreates(&deployment);
        let old_pods_run = |set: &ReplicaSet| {
            let pods = self.pods.indexed(owner::BY_CONTROLLER, uid(&set.metadata));
            pods.iter().any(|pod| !pod::is_finished(pod))
        };
        let world = World {
            deployment: &deployment,
            with_pods: sets
                .iter()
                .filter(|set| recreates && old_pods_run(set))
                .map(|set| uid(&set.metadata).to_string())
                .collect(),
            sets: sets.clone(),
            now: base::time::now(),
        };
        let planned = plan::plan(&world);
        if let Some(seconds) = planned.look_again_in {
            self.queue.add_after(key, Duration::from_secs(seconds.max(1)));
        }
        for step in planned.steps {
            self.apply(&deployment, step).await?;
        }
        Ok(())
    }

    async fn claim(&self, deployment: &Arc<Deployment>) -> Result<Vec<Arc<ReplicaSet>>, Failed> {
        let meta = &deployment.metadata;
        let mut mine = Vec::new();
        for set in self.sets.indexed(owner::BY_CONTROLLER, uid(meta)) {
            if selects(deployment, &set) {
                mine.push(set);
            } else if meta.deletion_timestamp.is_none() {
                let patch = json!({"metadata": {"uid": set.metadata.uid, "ownerReferences": [
                    {"$patch": "delete", "uid": meta.uid}]}});
                self.patch_set(&set, Patch::Strategic(patch), "release").await.or_gone()?;
            }
        }
        if meta.deletion_timestamp.is_some() {
            return Ok(mine);
        }
        let orphans = self.sets.indexed(owner::ORPHANS, namespace(meta));
        let wanted = |set: &Arc<ReplicaSet>| {
            set.metadata.deletion_timestamp.is_none() && selects(deployment, set)
        };
        let orphans: Vec<_> = orphans.into_iter().filter(wanted).collect();
        if orphans.is_empty() {
            return Ok(mine);
        }
        let api = self.context.client.api::<Deployment>(Some(namespace(meta)));
        let live = api.get_opt(name(meta)).await.doing(|| "look whether it may adopt".into())?;
        let may = live.is_some_and(|live| {
            live.metadata.uid == meta.uid && live.metadata.deletion_timestamp.is_none()
        });
        for set in orphans.into_iter().filter(|_| may) {
            let patch = json!({"metadata": {"uid": set.metadata.uid,
                "ownerReferences": [owner::reference_to(&**deployment)]}});
            self.patch_set(&set, Patch::Strategic(patch), "adopt").await.or_gone()?;
            mine.push(set);
        }
        Ok(mine)
    }

    async fn patch_set(&self, set: &ReplicaSet, patch: Patch, verb: &str) -> Outcome {
        let api = self.context.client.api::<ReplicaSet>(set.metadata.namespace.as_deref());
        let name = name(&set.metadata);
        let answer = api.patch(name, &patch).await;
        answer.map(drop).doing(|| format!("{verb} replica set {name}"))
    }

    async fn apply(&self, deployment: &Arc<Deployment>, step: Step) -> Outcome {
        let meta = &deployment.metadata;
        let about = reference(&**deployment);
        let recorder = &self.context.recorder;
        let api = self.context.client.api::<Deployment>(Some(namespace(meta)));
        match step {
            Step::Create(set) => {
                let (set_name, replicas) = (name(&set.metadata).to_string(), plan::wanted(&set));
                if !self.create(deployment, *set).await? {
                    return Ok(());
                }
                if replicas > 0 {
                    let text = format!("Scaled up replica set {set_name} from 0 to {replicas}");
                    recorder.normal(&about, "ScalingReplicaSet", text);
                }
                Ok(())
            }
            Step::Change { set, from, to, patch } => {
                let set_name = name(&set.metadata).to_string();
                self.patch_set(&set, Patch::Merge(patch), "change").await?;
                if from != to {
                    let way = if to > from { "up" } else { "down" };
                    let text = format!("Scaled {way} replica set {set_name} from {from} to {to}");
                    recorder.normal(&about, "ScalingReplicaSet", text);
                }
                Ok(())
            }
            Step::Annotate(patch) => {
                let answer = api.merge(name(meta), "", &patch).await;
                answer.map(drop).doing(|| "write the revision".into())
            }
            Step::Delete(set) => {
                let sets = self.context.client.api::<ReplicaSet>(Some(namespace(meta)));
                let params =
                    DeleteParams::uid(uid(&set.metadata)).propagation(Propagation::Background);
                let answer = sets.delete(name(&set.metadata), &params).await;
                answer.doing(|| format!("delete replica set {}", name(&set.metadata))).or_gone()
            }
            Step::RollBack(planned) => {
                let answer = api.replace(name(meta), &planned.deployment).await;
                answer.doing(|| "roll back".into())?;
                match planned.warns {
                    true => recorder.warning(&about, planned.reason, planned.message),
                    false => recorder.normal(&about, planned.reason, planned.message),
                }
                Ok(())
            }
            Step::Status(status) => {
                let patch = json!({"metadata": {"uid": meta.uid}, "status": status});
                let answer = api.merge(name(meta), "status", &patch).await;
                answer.doing(|| "write the status".into()).or_gone()
            }
        }
    }

    /// False if it is there already. If the name belongs to another set, the collision
    /// is counted, which makes the next name another one.
    async fn create(&self, deployment: &Arc<Deployment>, set: ReplicaSet) -> Result<bool, Failed> {
        let meta = &deployment.metadata;
        let sets = self.context.client.api::<ReplicaSet>(Some(namespace(meta)));
        let set_name = name(&set.metadata).to_string();
        let err = match sets.create(&set).await {
            Ok(_) => return Ok(true),
            Err(err) => err,
        };
        if !err.is_already_exists() {
            if !err.is_namespace_terminating() {
                let text = format!("Failed to create new replica set {set_name:?}: {err}");
                let recorder = &self.context.recorder;
                recorder.warning(&reference(&**deployment), "ReplicaSetCreateError", text.clone());
                let status = status::creation_failed(deployment, &text, base::time::now());
                self.write(deployment, status).await?;
            }
            return Err(err).doing(|| format!("create replica set {set_name}"));
        }
        let there = sets.get_opt(&set_name).await.doing(|| format!("get {set_name}"))?;
        let ours = there.is_some_and(|there| {
            controller_of(&there.metadata).is_some_and(|o| Some(&o.uid) == meta.uid.as_ref())
                && template::same(&there, deployment)
        });
        if ours {
            return Ok(false);
        }
        let count = deployment.status.as_ref().and_then(|s| s.collision_count).unwrap_or(0);
        self.write(deployment, json!({"collisionCount": count + 1})).await?;
        Err(err).doing(|| format!("create replica set {set_name}"))
    }

    async fn write(&self, deployment: &Deployment, status: serde_json::Value) -> Outcome {
        let meta = &deployment.metadata;
        let api = self.context.client.api::<Deployment>(Some(namespace(meta)));
        let patch = json!({"metadata": {"uid": meta.uid}, "status": status});
        let answer = api.merge(name(meta), "status", &patch).await;
        answer.doing(|| "write the status".into()).or_gone()
    }
}

fn selects(deployment: &Deployment, set: &ReplicaSet) -> bool {
    let selector = client::labels::selector(deployment.spec.as_ref().map(|s| &s.selector));
    !selector.is_everything() && selector.matches_map(set.metadata.labels.as_ref())
}

fn owner_key(set: &ReplicaSet) -> Option<Key> {
    let owner = controller_of(&set.metadata)?;
    let ours = owner.kind == "Deployment" && owner.api_version == "apps/v1";
    ours.then(|| (namespace(&set.metadata).to_string(), owner.name.clone()))
}
