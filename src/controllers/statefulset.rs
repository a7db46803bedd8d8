//! Keeps the pods of a StatefulSet: each has a number, a name and volumes that stay its own.
//!
//! `plan.rs` decides, `identity.rs` and `claims.rs` know what a number means; here is the
//! applying.

#[cfg(test)]
pub(crate) mod cases;
mod claims;
mod identity;
mod plan;

use std::sync::Arc;
use std::time::Duration;

use client::cache::{Cache, Key, key_of};
use client::recorder::reference;
use client::{DeleteParams, Patch, Queue};
use futures::future::join_all;
use k8s_openapi::api::apps::v1::{ControllerRevision, StatefulSet, StatefulSetStatus};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use serde_json::{Value, json};

use crate::claim::claim;
use crate::expect::Expectations;
use crate::harness::{Context, Doing, Outcome, Settled};
use crate::history::{self, History};
use crate::owner::{self, controller_of, name, namespace, uid};
use crate::pace::Pace;
use plan::{Held, Plan, Step, World, plan};

/// Sets worked on at a time.
const WORKERS: usize = 5;
/// Steps of a parallel set taken at a time, at most.
const BATCH_MAX: usize = 500;

pub async fn run(context: Context) {
    let pods = context.shared.cache::<Pod>();
    pods.add_index(owner::BY_CONTROLLER, owner::by_controller);
    pods.add_index(owner::ORPHANS, owner::orphans);
    let me = Arc::new(Controller {
        queue: Queue::named("statefulset"),
        sets: context.shared.cache(),
        pods,
        claims: context.shared.cache(),
        history: History::new(&context),
        expected: Expectations::default(),
        pace: Pace::default(),
        context,
    });
    me.run().await;
}

struct Controller {
    context: Context,
    queue: Queue<Key>,
    sets: Cache<StatefulSet>,
    pods: Cache<Pod>,
    claims: Cache<PersistentVolumeClaim>,
    history: History,
    /// Of deletions only: a pod that is made twice is refused by its name.
    expected: Expectations,
    pace: Pace,
}

impl Controller {
    async fn run(self: Arc<Self>) {
        let synced = async {
            self.sets.synced().await;
            self.pods.synced().await;
            self.claims.synced().await;
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
        self.pods.on_change(move |old, new| me.pod_changed(old, new));
        let me = self.clone();
        self.claims.on_change(move |old, new| {
            if let Some(old) = old
                && new.is_none_or(|new| new.metadata.uid != old.metadata.uid)
            {
                me.claim_gone(old);
            }
        });
        let me = self.clone();
        self.history.on_change(move |meta| me.wake_owner(meta));
        self.context.work(&self.queue, WORKERS, |key| self.sync(key)).await;
    }

    fn wake_owner(&self, meta: &ObjectMeta) {
        if let Some(owner) = controller_of(meta).filter(|o| o.kind == "StatefulSet") {
            self.pace.add(&self.queue, (namespace(meta).to_string(), owner.name.clone()));
        }
    }

    fn pod_changed(&self, old: Option<&Arc<Pod>>, new: Option<&Arc<Pod>>) {
        if let Some(old) = old
            && new.is_none_or(|new| new.metadata.uid != old.metadata.uid)
        {
            self.expected.gone(uid(&old.metadata));
        }
        for pod in [old, new].into_iter().flatten() {
            self.wake_owner(&pod.metadata);
            // A stranger with the name of one of ours matters as much: adopt it, or wait.
            if let Some((set, _)) = identity::parse(name(&pod.metadata))
                && controller_of(&pod.metadata).is_none_or(|o| o.kind != "StatefulSet")
                && self.sets.get(namespace(&pod.metadata), set).is_some()
            {
                self.queue.add((namespace(&pod.metadata).to_string(), set.to_string()));
            }
        }
    }

    /// A pod may have waited for it, or needs another one.
    fn claim_gone(&self, gone: &PersistentVolumeClaim) {
        let Some((prefix, _)) = identity::parse(name(&gone.metadata)) else { return };
        for set in self.sets.list_in(namespace(&gone.metadata)) {
            let mut templates = claims::templates(&set).iter();
            if templates.any(|t| prefix == format!("{}-{}", name(&t.metadata), name(&set.metadata)))
            {
                self.queue.add(key_of(&*set));
            }
        }
    }

    async fn sync(&self, key: Key) -> Outcome {
        let Some(set) = self.sets.get(&key.0, &key.1) else {
            self.pace.looked(&key, 0);
            return Ok(());
        };
        let selector = client::labels::selector(set.spec.as_ref().map(|s| &s.selector));
        let fits = |pod: &Pod| identity::ordinal(&set, pod).is_some();
        let pods = claim(&self.context, &*set, &self.pods, &selector, fits).await?;
        self.pace.looked(&key, pods.len());
        let Some(update) = self.history.present(&*set, &selector).await? else { return Ok(()) };
        let current = set.status.as_ref().and_then(|s| s.current_revision.as_deref());
        let current = current.and_then(|name| self.history.named(&*set, name));
        let revisions = Revisions { current: current.unwrap_or_else(|| update.clone()), update };
        let held = |pod: Arc<Pod>| {
            let going = pod.metadata.deletion_timestamp.is_some()
                || self.expected.deleted(uid(&pod.metadata));
            Held { pod, going }
        };
        let held: Vec<Held> = pods.into_iter().map(held).collect();
        let plan = plan(&World {
            set: &set,
            pods: &held,
            current: name(&revisions.current.metadata),
            update: name(&revisions.update.metadata),
            claim: &|name| self.claims.get(&key.0, name),
            now: base::time::now().as_second(),
        });
        if let Some(seconds) = plan.look_again_in {
            self.queue.add_after(key.clone(), Duration::from_secs(seconds.max(1).unsigned_abs()));
        }
        let done = self.apply(&set, &revisions, &plan).await;
        self.write_status(&set, &plan.status).await?;
        done?;
        let used = |revision: &ControllerRevision| {
            let name = name(&revision.metadata);
            revisions.names().contains(&name)
                || held.iter().any(|held| identity::revision(&held.pod) == name)
        };
        self.history.prune(&*set, used).await
    }

    /// Takes the steps: one after the other, or, of a parallel set, in batches of 1, 2, 4
    /// and so on, so that a broken template costs few requests.
    async fn apply(&self, set: &StatefulSet, revisions: &Revisions, plan: &Plan) -> Outcome {
        let (mut rest, mut batch) = (plan.steps.as_slice(), 1);
        while !rest.is_empty() {
            let (now, later) = rest.split_at(batch.min(rest.len()));
            let answers = join_all(now.iter().map(|step| self.take(set, revisions, step))).await;
            answers.into_iter().fold(Ok(()), Outcome::and)?;
            rest = later;
            if plan::is_parallel(set) {
                batch = (batch * 2).min(BATCH_MAX);
            }
        }
        Ok(())
    }

    async fn take(&self, set: &StatefulSet, revisions: &Revisions, step: &Step) -> Outcome {
        match step {
            Step::Create { ordinal, updated } => {
                let revision = if *updated { &revisions.update } else { &revisions.current };
                self.create(set, revision, *ordinal).await
            }
            Step::Delete(pod) => self.delete(set, pod).await,
            Step::MakeClaims(ordinal) => self.make_claims(set, *ordinal).await,
            Step::Identify { pod, ordinal } => {
                let patch = json!({"metadata": {"uid": pod.metadata.uid,
                    "labels": identity::labels(set, *ordinal)}});
                let api = self.context.client.api::<Pod>(pod.metadata.namespace.as_deref());
                let answer = api.patch(name(&pod.metadata), &Patch::Merge(patch)).await;
                self.tell(set, "update", name(&pod.metadata), answer.as_ref().err());
                answer.doing(|| "label a pod".into()).or_gone()
            }
            Step::Own { claim, owners } => self.own(claim, owners).await,
        }
    }

    async fn create(&self, set: &StatefulSet, from: &ControllerRevision, ordinal: i32) -> Outcome {
        self.make_claims(set, ordinal).await?;
        // A revision that cannot be read was not written by us.
        let template = history::template_of(from).unwrap_or_default();
        let pod = identity::new_pod(set, template, name(&from.metadata), ordinal);
        let api = self.context.client.api::<Pod>(Some(namespace(&set.metadata)));
        let answer = api.create(&pod).await;
        self.tell(set, "create", name(&pod.metadata), answer.as_ref().err());
        answer.map(drop).doing(|| "create a pod".into())
    }

    async fn make_claims(&self, set: &StatefulSet, ordinal: i32) -> Outcome {
        let api =
            self.context.client.api::<PersistentVolumeClaim>(set.metadata.namespace.as_deref());
        for template in claims::templates(set) {
            let claim = claims::new_claim(set, template, ordinal);
            let claim_name = name(&claim.metadata);
            if self.claims.get(namespace(&set.metadata), claim_name).is_some() {
                continue;
            }
            let answer = api.create(&claim).await;
            let failure = match &answer {
                Err(err) if err.is_already_exists() => continue,
                answer => answer.as_ref().err(),
            };
            let own = name(&set.metadata);
            let pod = identity::pod_name(set, ordinal);
            let what = format!("create Claim {claim_name} Pod {pod} in StatefulSet {own}");
            let about = reference(set);
            match failure {
                None => {
                    let text = format!("{what} success");
                    self.context.recorder.normal(&about, "SuccessfulCreate", text);
                }
                Some(err) if err.is_namespace_terminating() => {}
                Some(err) => {
                    let text = format!("{what} failed error: {err}");
                    self.context.recorder.warning(&about, "FailedCreate", text);
                }
            }
            answer.doing(|| "create a volume claim".into())?;
        }
        Ok(())
    }

    async fn own(&self, claim: &PersistentVolumeClaim, owners: &[OwnerReference]) -> Outcome {
        let meta = &claim.metadata;
        let api = self.context.client.api::<PersistentVolumeClaim>(meta.namespace.as_deref());
        let patch = json!({"metadata": {"uid": meta.uid,
            "resourceVersion": meta.resource_version, "ownerReferences": owners}});
        let answer = api.merge(name(meta), "", &patch).await;
        answer.doing(|| "give a volume claim its owners".into()).or_gone()
    }

    async fn delete(&self, set: &StatefulSet, pod: &Pod) -> Outcome {
        let meta = &pod.metadata;
        let api = self.context.client.api::<Pod>(meta.namespace.as_deref());
        self.expected.deleting(uid(meta));
        let answer = api.delete(name(meta), &DeleteParams::uid(uid(meta))).await;
        if answer.is_err() {
            self.expected.gone(uid(meta));
        }
        match answer {
            // It is gone, or another one has its name.
            Err(err) if err.is_not_found() || err.code() == 409 => Ok(()),
            answer => {
                self.tell(set, "delete", name(meta), answer.as_ref().err());
                answer.doing(|| format!("delete pod {}", name(meta)))
            }
        }
    }

    fn tell(&self, set: &StatefulSet, verb: &str, pod: &str, failure: Option<&client::Error>) {
        let own = name(&set.metadata);
        let mut reason = format!("{}{}", verb[..1].to_uppercase(), &verb[1..]);
        match failure {
            None => {
                reason.insert_str(0, "Successful");
                let text = format!("{verb} Pod {pod} in StatefulSet {own} successful");
                self.context.recorder.normal(&reference(set), &reason, text);
            }
            // The watch is late, or the set's namespace goes.
            Some(err) if err.is_already_exists() || err.is_namespace_terminating() => {}
            Some(err) => {
                reason.insert_str(0, "Failed");
                let text = format!("{verb} Pod {pod} in StatefulSet {own} failed error: {err}");
                self.context.recorder.warning(&reference(set), &reason, text);
            }
        }
    }

    async fn write_status(&self, set: &StatefulSet, status: &StatefulSetStatus) -> Outcome {
        let held = set.status.clone().unwrap_or_default();
        let plain = |status: &StatefulSetStatus| StatefulSetStatus {
            conditions: None,
            current_replicas: Some(status.current_replicas.unwrap_or(0)),
            ready_replicas: Some(status.ready_replicas.unwrap_or(0)),
            updated_replicas: Some(status.updated_replicas.unwrap_or(0)),
            ..status.clone()
        };
        if plain(&held) == plain(status) {
            return Ok(());
        }
        let mut patch = client::api::value_of(status).unwrap_or_default();
        for field in ["currentReplicas", "readyReplicas", "updatedReplicas"] {
            if patch[field] == 0 {
                patch[field] = Value::Null;
            }
        }
        let patch = json!({"metadata": {"uid": set.metadata.uid}, "status": patch});
        let api = self.context.client.api::<StatefulSet>(set.metadata.namespace.as_deref());
        let answer = api.merge(name(&set.metadata), "status", &patch).await;
        answer.doing(|| "write the status".into()).or_gone()
    }
}

/// What pods are made from: before the rollout, and after it.
struct Revisions {
    current: Arc<ControllerRevision>,
    update: Arc<ControllerRevision>,
}

impl Revisions {
    fn names(&self) -> [&str; 2] {
        [name(&self.current.metadata), name(&self.update.metadata)]
    }
}
