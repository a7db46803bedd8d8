//! Says of each PodDisruptionBudget how many of its pods may go, and takes the mark from
//! pods that were to go and did not.
//!
//! `plan.rs` decides. Evictions themselves are the API server's.

#[cfg(test)]
pub(crate) mod cases;
mod plan;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use client::api::{Object, ResourceRef};
use client::cache::{Cache, Key, key_of};
use client::recorder::reference;
use client::{Patch, Queue};
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::autoscaling::v1::Scale;
use k8s_openapi::api::core::v1::{Pod, ReplicationController};
use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use serde_json::json;

use crate::harness::{Context, Doing, Failed, Outcome, Settled};
use crate::owner::{controller_of, name, namespace, uid};
use crate::pace::Pace;
use client::discovery::of_kind;

/// Budgets, and pods, worked on at a time.
const WORKERS: usize = 2;

struct Controller {
    context: Context,
    budgets: Cache<PodDisruptionBudget>,
    pods: Cache<Pod>,
    replica_sets: Cache<ReplicaSet>,
    replication_controllers: Cache<ReplicationController>,
    deployments: Cache<Deployment>,
    stateful_sets: Cache<StatefulSet>,
    keys: Queue<Key>,
    pace: Pace,
    /// Pods with a mark that may become stale.
    marked: Queue<Key>,
}

pub async fn run(context: Context) {
    let me = Arc::new(Controller {
        budgets: context.shared.cache(),
        pods: context.shared.cache(),
        replica_sets: context.shared.cache(),
        replication_controllers: context.shared.cache(),
        deployments: context.shared.cache(),
        stateful_sets: context.shared.cache(),
        keys: Queue::named("disruption"),
        pace: Pace::default(),
        marked: Queue::named("stale_pod_disruption"),
        context,
    });
    let synced = async {
        me.budgets.synced().await;
        me.pods.synced().await;
        me.replica_sets.synced().await;
        me.replication_controllers.synced().await;
        me.deployments.synced().await;
        me.stateful_sets.synced().await;
    };
    if me.context.drain.until(synced).await.is_none() {
        return;
    }
    let all = me.clone();
    me.budgets.on_change(move |_, new| {
        if let Some(budget) = new {
            all.keys.add(key_of(&**budget));
        }
    });
    let all = me.clone();
    me.pods.on_change(move |old, new| all.pod_changed(old, new));
    me.follow(&me.replica_sets, |set| set.spec.as_ref()?.replicas);
    me.follow(&me.replication_controllers, |set| set.spec.as_ref()?.replicas);
    me.follow(&me.deployments, |set| set.spec.as_ref()?.replicas);
    me.follow(&me.stateful_sets, |set| set.spec.as_ref()?.replicas);
    tokio::join!(
        me.context.work(&me.keys, WORKERS, |key| me.sync(key)),
        me.context.work(&me.marked, WORKERS, |key| me.unmark(key)),
    );
}

fn selector(budget: &PodDisruptionBudget) -> kinds::meta::LabelSelector {
    client::labels::selector(budget.spec.as_ref().and_then(|spec| spec.selector.as_ref()))
}

impl Controller {
    fn pod_changed(&self, old: Option<&Arc<Pod>>, new: Option<&Arc<Pod>>) {
        let Some(any) = new.or(old) else { return };
        for budget in self.budgets.list_in(namespace(&any.metadata)) {
            let selector = selector(&budget);
            let mut sides = [old, new].into_iter().flatten();
            if sides.any(|pod| selector.matches_map(pod.metadata.labels.as_ref())) {
                self.pace.add(&self.keys, key_of(&*budget));
            }
        }
        if let Some(left) = new.and_then(|pod| plan::stale_in(pod, base::time::now())) {
            let left = Duration::try_from(left).unwrap_or_default();
            self.marked.add_after(key_of(&**any), left);
        }
    }

    /// Budgets count what owners ask for.
    fn follow<K: Object>(self: &Arc<Self>, cache: &Cache<K>, replicas: fn(&K) -> Option<i32>) {
        let me = self.clone();
        cache.on_change(move |old, new| {
            let of = |owner: Option<&Arc<K>>| owner.map(|owner| replicas(owner));
            let Some(owner) = new.or(old).filter(|_| of(old) != of(new)) else { return };
            for budget in me.budgets.list_in(namespace(owner.meta())) {
                if plan::wants_scale(&budget) {
                    me.keys.add(key_of(&*budget));
                }
            }
        });
    }

    async fn sync(&self, key: Key) -> Outcome {
        let Some(budget) = self.budgets.get(&key.0, &key.1) else {
            self.pace.looked(&key, 0);
            return Ok(());
        };
        let about = reference(&*budget);
        let recorder = &self.context.recorder;
        let selector = selector(&budget);
        let mut pods = self.pods.list_in(&key.0);
        self.pace.looked(&key, pods.len());
        pods.retain(|pod| selector.matches_map(pod.metadata.labels.as_ref()));
        if pods.is_empty() {
            recorder.normal(&about, "NoPods", "No matching pods found");
        }
        let now = base::time::now();
        let scale = match plan::wants_scale(&budget) {
            false => Ok(0),
            true => self.scale(&pods).await,
        };
        let scale = match scale {
            Ok(scale) => scale,
            Err(Unknown::Said(problem)) => {
                let text = format!("Failed to calculate the number of expected pods: {problem}");
                recorder.warning(&about, "CalculateExpectedPodCountFailed", text);
                let status = plan::fail_safe(&budget, &problem, now);
                return self.write(&budget, status).await;
            }
            Err(Unknown::Failed(err)) => {
                let status = plan::fail_safe(&budget, &err.source.to_string(), now);
                self.write(&budget, status).await?;
                return Err(err);
            }
        };
        if plan::wants_scale(&budget) && !plan::unmanaged(&pods).is_empty() {
            let shown = budget.spec.as_ref().and_then(|s| s.selector.as_ref());
            let shown = serde_json::to_string(&shown).unwrap_or_default();
            let text = format!(
                "Pods selected by this PodDisruptionBudget (selector: {shown}) were found to be \
                 unmanaged. As a result, the status of the PDB cannot be calculated correctly, \
                 which may result in undefined behavior. To account for these pods please set \
                 \".spec.minAvailable\" field of the PDB to an integer value."
            );
            recorder.warning(&about, "UnmanagedPods", text);
        }
        let plan = plan::plan(&budget, &pods, scale, now);
        for pod in &plan.spared {
            let text =
                format!("Pod was expected by PDB {}/{} to be deleted but it wasn't", key.0, key.1);
            recorder.warning(&reference(&**pod), "NotDeleted", text);
        }
        if let Some(after) = plan.look_again_in {
            // To the next second: that is as fine as the time of an eviction is kept.
            let after = Duration::try_from(after).unwrap_or_default() + Duration::from_secs(1);
            self.keys.add_after(key, after);
        }
        self.write(&budget, plan.status).await
    }

    /// On the version that was planned with: the API server counts evictions there.
    async fn write(
        &self,
        budget: &PodDisruptionBudget,
        status: PodDisruptionBudgetStatus,
    ) -> Outcome {
        if budget.status.as_ref() == Some(&status) {
            return Ok(());
        }
        let next = PodDisruptionBudget { status: Some(status), ..budget.clone() };
        let meta = &budget.metadata;
        let api = self.context.client.api::<PodDisruptionBudget>(meta.namespace.as_deref());
        let answer = api.replace_status(name(meta), &next).await;
        answer.doing(|| "write the status".into()).or_gone()
    }

    /// What the controllers of the pods ask for together.
    async fn scale(&self, pods: &[Arc<Pod>]) -> Result<i32, Unknown> {
        let mut known: HashMap<String, i32> = HashMap::new();
        // Pods of one controller ask once.
        let mut seen: HashMap<&str, ()> = HashMap::new();
        for pod in pods {
            let Some(owner) = controller_of(&pod.metadata) else { continue };
            if seen.insert(&owner.uid, ()).is_some() {
                continue;
            }
            let found = match self.scale_in_cache(namespace(&pod.metadata), owner) {
                Some(found) => Some(found),
                None => self.scale_live(namespace(&pod.metadata), owner).await?,
            };
            let Some((uid, replicas)) = found else {
                let pod = name(&pod.metadata);
                return Err(Unknown::Said(format!("found no controllers for pod {pod:?}")));
            };
            known.insert(uid, replicas);
        }
        Ok(known.values().fold(0, |sum, more| sum.saturating_add(*more)))
    }

    /// Uid and replicas of a built-in controller; of its Deployment, if it has one.
    fn scale_in_cache(&self, space: &str, owner: &OwnerReference) -> Option<(String, i32)> {
        let (group, _) = owner.api_version.split_once('/').unwrap_or_default();
        let own = owner.name.as_str();
        let (uid, replicas) = match (group, owner.kind.as_str()) {
            ("", "ReplicationController") => {
                let held = self.replication_controllers.get(space, own)?;
                (held.metadata.uid.clone()?, held.spec.as_ref()?.replicas)
            }
            ("apps", "StatefulSet") => {
                let held = self.stateful_sets.get(space, own)?;
                (held.metadata.uid.clone()?, held.spec.as_ref()?.replicas)
            }
            ("apps", "ReplicaSet") => {
                let held = self.replica_sets.get(space, own)?;
                if held.metadata.uid.as_deref() != Some(&owner.uid) {
                    return None;
                }
                if let Some(above) = controller_of(&held.metadata)
                    && above.kind == "Deployment"
                {
                    let above = self.deployments.get(space, &above.name)?;
                    return Some((above.metadata.uid.clone()?, above.spec.as_ref()?.replicas?));
                }
                (held.metadata.uid.clone()?, held.spec.as_ref()?.replicas)
            }
            _ => return None,
        };
        (uid == owner.uid).then_some((uid, replicas?))
    }

    /// The scale of a controller of any kind; None if it is not there.
    async fn scale_live(
        &self,
        space: &str,
        owner: &OwnerReference,
    ) -> Result<Option<(String, i32)>, Unknown> {
        let found = of_kind(self.context.shared.client(), &owner.api_version, &owner.kind).await;
        let found = found.doing(|| format!("look for the kind {}", owner.kind))?;
        let Some((resource, scales)) = found else {
            let text = format!("no matches for kind {:?}", owner.kind);
            return Err(Unknown::Said(text));
        };
        if !scales {
            let ResourceRef { plural, group, .. } = resource;
            let dotted = if group.is_empty() { plural } else { format!("{plural}.{group}") };
            let text = format!("{dotted} does not implement the scale subresource");
            return Err(Unknown::Said(text));
        }
        let api = self.context.client.dynamic(resource, Some(space));
        let scale: Scale = match api.get_subresource(&owner.name, "scale").await {
            Err(err) if err.is_not_found() => return Ok(None),
            answer => answer.doing(|| format!("read the scale of {}", owner.name))?,
        };
        let replicas = scale.spec.and_then(|spec| spec.replicas).unwrap_or(0);
        let same = uid(&scale.metadata) == owner.uid;
        Ok(same.then(|| (owner.uid.clone(), replicas)))
    }

    async fn unmark(&self, key: Key) -> Outcome {
        let Some(pod) = self.pods.get(&key.0, &key.1) else { return Ok(()) };
        let Some(left) = plan::stale_in(&pod, base::time::now()) else { return Ok(()) };
        if !left.is_zero() {
            self.marked.add_after(key, Duration::try_from(left).unwrap_or_default());
            return Ok(());
        }
        let patch = json!({"metadata": {"uid": pod.metadata.uid}, "status": {"conditions": [{
            "type": "DisruptionTarget", "status": "False", "reason": null, "message": null,
            "observedGeneration": pod.metadata.generation,
            "lastTransitionTime": base::time::rfc3339(base::time::now())}]}});
        let api = self.context.client.api::<Pod>(Some(&key.0));
        let answer = api.patch_status(&key.1, &Patch::Strategic(patch)).await;
        answer.doing(|| "unmark a pod that stays".into()).or_gone()
    }
}

/// Why the scale is not known.
enum Unknown {
    /// Nothing changes that but a change of objects.
    Said(String),
    Failed(Failed),
}

impl From<Failed> for Unknown {
    fn from(err: Failed) -> Self {
        Self::Failed(err)
    }
}
