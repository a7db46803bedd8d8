//! Which step takes a deployment nearer to what it asks for.
//!
//! Pure. At most one kind of change to ReplicaSets per plan, so that the next plan sees
//! what came of it.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet, ReplicaSetSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

use super::rollback::{self, Rollback};
use super::scale::{Limits, Sharer, Size, grow, proportional, shrink};
use super::status::{self, News};
use super::{revision, template};
use crate::owner::{self, annotation, created, name, uid};

pub struct World<'a> {
    pub deployment: &'a Deployment,
    /// The sets that the deployment controls.
    pub sets: Vec<Arc<ReplicaSet>>,
    /// Uids of those that have pods which are not finished; asked of `Recreate` only.
    pub with_pods: HashSet<String>,
    pub now: Timestamp,
}

#[derive(Debug)]
pub enum Step {
    Create(Box<ReplicaSet>),
    /// A merge patch of a set, guarded by the version that was looked at.
    Change {
        set: Arc<ReplicaSet>,
        from: i32,
        to: i32,
        patch: Value,
    },
    /// A merge patch of the deployment.
    Annotate(Value),
    Delete(Arc<ReplicaSet>),
    RollBack(Rollback),
    Status(Value),
}

#[derive(Debug, Default)]
pub struct Plan {
    pub steps: Vec<Step>,
    /// Seconds until the deadline of progress.
    pub look_again_in: Option<u64>,
}

pub fn recreates(deployment: &Deployment) -> bool {
    let strategy = deployment.spec.as_ref().and_then(|s| s.strategy.as_ref());
    strategy.and_then(|s| s.type_.as_deref()) == Some("Recreate")
}

/// The replicas a set asks for.
pub fn wanted(set: &ReplicaSet) -> i32 {
    set.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1)
}

fn available(set: &ReplicaSet) -> i32 {
    set.status.as_ref().and_then(|s| s.available_replicas).unwrap_or(0)
}

pub fn plan(world: &World<'_>) -> Plan {
    let mut sets = world.sets.clone();
    sets.sort_by(|a, b| {
        let key = |set: &ReplicaSet| (created(&set.metadata), name(&set.metadata).to_string());
        key(a).cmp(&key(b))
    });
    let newest = sets.iter().find(|set| template::same(set, world.deployment)).cloned();
    let is_old = |set: &&Arc<ReplicaSet>| {
        newest.as_ref().is_none_or(|n| uid(&n.metadata) != uid(&set.metadata))
    };
    let old: Vec<Arc<ReplicaSet>> = sets.iter().filter(is_old).cloned().collect();
    let mut rollout = Rollout {
        world,
        limits: Limits::of(world.deployment),
        newest,
        old,
        sets,
        steps: Vec::new(),
        news: News::Nothing,
    };
    rollout.decide();
    rollout.finish()
}

struct Rollout<'a> {
    world: &'a World<'a>,
    limits: Limits,
    newest: Option<Arc<ReplicaSet>>,
    old: Vec<Arc<ReplicaSet>>,
    /// All, the oldest first.
    sets: Vec<Arc<ReplicaSet>>,
    steps: Vec<Step>,
    news: News,
}

impl Rollout<'_> {
    fn decide(&mut self) {
        let deployment = self.world.deployment;
        if deployment.metadata.deletion_timestamp.is_some() {
            return;
        }
        let paused = deployment.spec.as_ref().and_then(|s| s.paused).unwrap_or(false);
        if !paused && let Some(revision) = rollback::wanted(deployment) {
            return self.roll_back(revision);
        }
        if paused || self.was_scaled() {
            self.annotate_newest(None);
            self.scale();
            if paused {
                self.clean_up();
            }
            return;
        }
        if recreates(deployment) {
            self.recreate();
        } else {
            self.roll();
        }
    }

    fn finish(mut self) -> Plan {
        let newest_name = match self.steps.iter().find_map(|step| match step {
            Step::Create(set) => Some(name(&set.metadata).to_string()),
            Step::Change { .. }
            | Step::Annotate(_)
            | Step::Delete(_)
            | Step::RollBack(_)
            | Step::Status(_) => None,
        }) {
            Some(name) => name,
            None => self.newest.as_ref().map(|n| name(&n.metadata).into()).unwrap_or_default(),
        };
        let (status, look_again_in) = status::status(&status::View {
            deployment: self.world.deployment,
            newest: self.newest.as_ref(),
            newest_name: &newest_name,
            all: &self.sets,
            news: self.news,
            now: self.world.now,
        });
        self.steps.extend(status.map(Step::Status));
        Plan { steps: self.steps, look_again_in }
    }

    /// The deployment's size has changed since the sets were last written.
    fn was_scaled(&self) -> bool {
        let active = self.sets.iter().filter(|set| wanted(set) > 0);
        let mut desired = active
            .filter_map(|set| annotation(&set.metadata, revision::DESIRED)?.parse::<i32>().ok());
        desired.any(|desired| desired != self.limits.replicas)
    }

    fn total(&self) -> i32 {
        self.sets.iter().map(|set| wanted(set)).sum()
    }

    fn roll(&mut self) {
        let Some(newest) = self.newest.clone() else {
            return self.create(grow(&self.limits, false, 0, self.total()));
        };
        self.news = News::Found;
        let size = wanted(&newest);
        let to = if size > self.limits.replicas {
            self.limits.replicas
        } else {
            grow(&self.limits, false, size, self.total())
        };
        if self.annotate_newest(Some(to)) && to != size {
            return;
        }
        let sizes: Vec<Size> = self
            .old
            .iter()
            .map(|set| Size { wanted: wanted(set), available: available(set) })
            .collect();
        let newest = Size { wanted: size, available: available(&newest) };
        let targets = shrink(&self.limits, newest, &sizes);
        if self.resize_old(&targets) {
            return;
        }
        self.clean_up_if_complete();
    }

    /// The present template must have a revision before it is left.
    fn roll_back(&mut self, to: i64) {
        if self.newest.is_none() {
            let starts = match recreates(self.world.deployment) {
                true => 0,
                false => grow(&self.limits, false, 0, self.total()),
            };
            return self.create(starts);
        }
        self.annotate_newest(None);
        if self.steps.is_empty() {
            let planned = rollback::plan(self.world.deployment, &self.sets, to);
            self.steps.push(Step::RollBack(planned));
        }
    }

    fn recreate(&mut self) {
        if self.resize_old(&vec![0; self.old.len()]) {
            return;
        }
        // Either cache may lag behind the other.
        let has_pods = |set: &Arc<ReplicaSet>| {
            self.world.with_pods.contains(uid(&set.metadata))
                || set.status.as_ref().is_some_and(|status| status.replicas > 0)
        };
        if self.old.iter().any(has_pods) {
            return;
        }
        if self.newest.is_none() {
            return self.create(self.limits.replicas);
        }
        self.news = News::Found;
        self.annotate_newest(Some(self.limits.replicas));
        self.clean_up_if_complete();
    }

    /// The deployment was resized: one set takes it all, or all share it.
    fn scale(&mut self) {
        let active: Vec<Arc<ReplicaSet>> =
            self.sets.iter().filter(|set| wanted(set) > 0).cloned().collect();
        let latest = match active.as_slice() {
            [] => self.newest.clone().or_else(|| self.sets.last().cloned()),
            [only] => Some(only.clone()),
            [..] => None,
        };
        if let Some(set) = latest {
            return self.resize(&set, self.limits.replicas);
        }
        let saturated = self.newest.as_ref().is_some_and(|newest| {
            wanted(newest) == self.limits.replicas && available(newest) == self.limits.replicas
        });
        if saturated {
            self.resize_old(&vec![0; self.old.len()]);
        } else if !recreates(self.world.deployment) {
            self.share(active);
        }
    }

    /// `active`: the oldest first.
    fn share(&mut self, mut active: Vec<Arc<ReplicaSet>>) {
        let max = if self.limits.replicas > 0 { self.limits.max_total() } else { 0 };
        // Of equals the newest grows and the oldest shrinks by what rounding leaves.
        if max > self.total() {
            active.reverse();
        }
        active.sort_by_key(|set| std::cmp::Reverse(wanted(set)));
        let now = self.world.deployment.status.as_ref().and_then(|s| s.replicas).unwrap_or(0);
        let sharer = |set: &Arc<ReplicaSet>| {
            let old_max = annotation(&set.metadata, revision::MAX)
                .and_then(|max| max.parse::<i32>().ok())
                .filter(|max| *max != 0);
            Sharer { wanted: wanted(set), old_max: old_max.unwrap_or(now) }
        };
        let sharers: Vec<Sharer> = active.iter().map(sharer).collect();
        for (set, to) in active.iter().zip(proportional(&sharers, max)) {
            self.resize(set, to);
        }
    }

    /// True if any set changes.
    fn resize_old(&mut self, targets: &[i32]) -> bool {
        let before = self.steps.len();
        for (set, to) in self.old.clone().iter().zip(targets) {
            if wanted(set) != *to {
                self.resize(set, *to);
            }
        }
        self.steps.len() != before
    }

    /// Writes size and size annotations, if they differ.
    fn resize(&mut self, set: &Arc<ReplicaSet>, to: i32) {
        let desired = self.limits.replicas.to_string();
        let max = self.limits.max_total().to_string();
        let same = wanted(set) == to
            && annotation(&set.metadata, revision::DESIRED) == Some(&desired)
            && annotation(&set.metadata, revision::MAX) == Some(&max);
        if same {
            return;
        }
        // The newest may have a step already; one patch carries both.
        for step in &mut self.steps {
            if let Step::Change { set: other, to: target, patch, .. } = step
                && uid(&other.metadata) == uid(&set.metadata)
            {
                *target = to;
                patch["spec"]["replicas"] = to.into();
                patch["metadata"]["annotations"][revision::DESIRED] = desired.as_str().into();
                patch["metadata"]["annotations"][revision::MAX] = max.as_str().into();
                return;
            }
        }
        let annotations = json!({revision::DESIRED: desired, revision::MAX: max});
        self.change(set, to, annotations);
    }

    fn change(&mut self, set: &Arc<ReplicaSet>, to: i32, annotations: Value) {
        let patch = json!({
            "metadata": {"uid": set.metadata.uid,
                "resourceVersion": set.metadata.resource_version, "annotations": annotations},
            "spec": {"replicas": to},
        });
        self.steps.push(Step::Change { set: set.clone(), from: wanted(set), to, patch });
    }

    /// Brings the newest set's annotations, `minReadySeconds` and, if given, size up to
    /// date, and the deployment's revision. True if the set changes.
    fn annotate_newest(&mut self, size: Option<i32>) -> bool {
        let Some(newest) = self.newest.clone() else { return false };
        let deployment = self.world.deployment;
        let next = revision::highest(&self.old) + 1;
        let to = size.unwrap_or_else(|| wanted(&newest));
        let mut annotations = revision::annotations_for_new(
            deployment,
            Some(&newest),
            next,
            self.limits.replicas,
            self.limits.max_total(),
        );
        if size.is_none() {
            // Scaling compares these with the deployment; it writes them itself.
            annotations.remove(revision::DESIRED);
            annotations.remove(revision::MAX);
        }
        let revision = annotations.get(revision::REVISION).cloned();
        let held = newest.metadata.annotations.clone().unwrap_or_default();
        let missing: BTreeMap<String, String> =
            annotations.into_iter().filter(|(key, value)| held.get(key) != Some(value)).collect();
        let ready = |spec: Option<i32>| spec.unwrap_or(0);
        let min_ready = ready(deployment.spec.as_ref().and_then(|s| s.min_ready_seconds));
        let min_ready_differs =
            ready(newest.spec.as_ref().and_then(|s| s.min_ready_seconds)) != min_ready;
        let changes = !missing.is_empty() || min_ready_differs || to != wanted(&newest);
        if changes {
            self.change(&newest, to, json!(missing));
            if min_ready_differs && let Some(Step::Change { patch, .. }) = self.steps.last_mut() {
                patch["spec"]["minReadySeconds"] = min_ready.into();
            }
        }
        if let Some(revision) = revision {
            self.annotate_deployment(&revision);
        }
        changes
    }

    fn annotate_deployment(&mut self, revision: &str) {
        let meta = &self.world.deployment.metadata;
        if annotation(meta, revision::REVISION) != Some(revision) {
            self.steps.push(Step::Annotate(json!({"metadata": {"uid": meta.uid,
                "annotations": {revision::REVISION: revision}}})));
        }
    }

    fn create(&mut self, replicas: i32) {
        let deployment = self.world.deployment;
        let Some(spec) = &deployment.spec else { return };
        let collisions = deployment.status.as_ref().and_then(|s| s.collision_count).unwrap_or(0);
        let hash = template::hash(&spec.template, collisions);
        let mut pod_template = spec.template.clone();
        let labels = pod_template.metadata.get_or_insert_default().labels.get_or_insert_default();
        labels.insert(template::HASH_LABEL.into(), hash.clone());
        let labels = labels.clone();
        let mut selector = spec.selector.clone();
        selector
            .match_labels
            .get_or_insert_default()
            .insert(template::HASH_LABEL.into(), hash.clone());
        let next = revision::highest(&self.old) + 1;
        let annotations = revision::annotations_for_new(
            deployment,
            None,
            next,
            self.limits.replicas,
            self.limits.max_total(),
        );
        let set = ReplicaSet {
            metadata: ObjectMeta {
                name: Some(format!("{}-{hash}", name(&deployment.metadata))),
                namespace: deployment.metadata.namespace.clone(),
                labels: Some(labels),
                annotations: Some(annotations),
                owner_references: Some(vec![owner::reference_to(deployment)]),
                ..ObjectMeta::default()
            },
            spec: Some(ReplicaSetSpec {
                replicas: Some(replicas),
                min_ready_seconds: spec.min_ready_seconds,
                selector,
                template: Some(pod_template),
            }),
            status: None,
        };
        self.news = News::Created;
        self.steps.push(Step::Create(Box::new(set)));
        self.annotate_deployment(&next.to_string());
    }

    fn clean_up_if_complete(&mut self) {
        let counts = status::count(self.newest.as_ref(), &self.sets);
        if status::is_complete(self.world.deployment, &counts) {
            self.clean_up();
        }
    }

    /// Old empty sets beyond the history limit go, the lowest revisions first.
    fn clean_up(&mut self) {
        let spec = self.world.deployment.spec.as_ref();
        let Some(limit) = spec.and_then(|s| s.revision_history_limit) else { return };
        if limit == i32::MAX {
            return;
        }
        let mut old: Vec<&Arc<ReplicaSet>> =
            self.old.iter().filter(|s| s.metadata.deletion_timestamp.is_none()).collect();
        old.sort_by_key(|set| (revision::of(&set.metadata), created(&set.metadata)));
        let excess = old.len().saturating_sub(limit.max(0) as usize);
        let idle = |set: &&&Arc<ReplicaSet>| {
            let status = set.status.as_ref();
            wanted(set) == 0
                && status.is_none_or(|s| s.replicas == 0)
                && status.and_then(|s| s.observed_generation) >= set.metadata.generation
        };
        let gone: Vec<Step> =
            old.iter().take(excess).filter(idle).map(|set| Step::Delete((*set).clone())).collect();
        self.steps.extend(gone);
    }
}
