//! Revisions of a pod template, kept as ControllerRevisions: for DaemonSets and StatefulSets.
//!
//! Which pod gets which revision is decided elsewhere.

use std::sync::Arc;

use client::api::{Object, ScopeOf};
use client::cache::Cache;
use client::{DeleteParams, Patch};
use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet, StatefulSet};
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::runtime::RawExtension;
use kinds::meta::LabelSelector;
use serde_json::{Value, json};

use crate::claim::claim;
use crate::deployment::template;
use crate::harness::{Context, Doing, Failed, Outcome, Settled};
use crate::owner::{self, controller_of, name, namespace, uid};

/// Label of pods that names their revision.
pub const HASH: &str = "controller-revision-hash";
/// Revisions kept that no pod has, where the set does not say.
const LIMIT: i32 = 10;

/// A set whose template has revisions.
pub trait Kept: Object + k8s_openapi::Resource<Scope: ScopeOf> {
    /// Label of revisions that holds their hash.
    const LABEL: &str;
    fn template(&self) -> Option<&PodTemplateSpec>;
    fn collisions(&self) -> i32;
    fn limit(&self) -> Option<i32>;
}

impl Kept for DaemonSet {
    const LABEL: &str = HASH;
    fn template(&self) -> Option<&PodTemplateSpec> {
        self.spec.as_ref().map(|spec| &spec.template)
    }
    fn collisions(&self) -> i32 {
        self.status.as_ref().and_then(|status| status.collision_count).unwrap_or(0)
    }
    fn limit(&self) -> Option<i32> {
        self.spec.as_ref().and_then(|spec| spec.revision_history_limit)
    }
}

impl Kept for StatefulSet {
    const LABEL: &str = "controller.kubernetes.io/hash";
    fn template(&self) -> Option<&PodTemplateSpec> {
        self.spec.as_ref().map(|spec| &spec.template)
    }
    fn collisions(&self) -> i32 {
        self.status.as_ref().and_then(|status| status.collision_count).unwrap_or(0)
    }
    fn limit(&self) -> Option<i32> {
        self.spec.as_ref().and_then(|spec| spec.revision_history_limit)
    }
}

/// A patch that brings the template back, which is what `kubectl rollout undo` sends. Clients
/// tell which revision a set has by the bytes of it, in which Go sorts all names.
fn data<K: Kept>(set: &K) -> Value {
    let mut template = serde_json::to_value(set.template()).unwrap_or_default();
    template["$patch"] = "replace".into();
    let mut patch = json!({"spec": {"template": template}});
    patch.sort_all_objects();
    patch
}

/// The template that a revision keeps; None if it keeps none that can be read.
pub fn template_of(revision: &ControllerRevision) -> Option<PodTemplateSpec> {
    let template = revision.data.as_ref()?.0.get("spec")?.get("template")?;
    client::api::typed(template).ok()
}

fn is_of<K: Kept>(revision: &ControllerRevision, set: &K) -> bool {
    revision.data.as_ref().is_some_and(|held| held.0 == data(set))
}

pub fn hash_of<K: Kept>(revision: &ControllerRevision) -> &str {
    let label = revision.metadata.labels.as_ref().and_then(|l| l.get(K::LABEL));
    label.map(String::as_str).unwrap_or_default()
}

fn next(history: &[Arc<ControllerRevision>]) -> i64 {
    history.iter().map(|r| r.revision).max().unwrap_or(0) + 1
}

fn new<K: Kept>(set: &K, revision: i64) -> ControllerRevision {
    let template = set.template().cloned().unwrap_or_default();
    let hash = template::hash(&template, set.collisions());
    let mut labels = template.metadata.unwrap_or_default().labels.unwrap_or_default();
    labels.insert(K::LABEL.into(), hash.clone());
    let meta = set.meta();
    ControllerRevision {
        metadata: ObjectMeta {
            name: Some(format!("{}-{hash}", name(meta))),
            namespace: meta.namespace.clone(),
            labels: Some(labels),
            annotations: meta.annotations.clone(),
            owner_references: Some(vec![owner::reference_to(set)]),
            ..ObjectMeta::default()
        },
        data: Some(RawExtension(data(set))),
        revision,
    }
}

/// Revisions beyond the limit that are not in use by name, the oldest first.
fn surplus(
    mut history: Vec<Arc<ControllerRevision>>,
    used: impl Fn(&ControllerRevision) -> bool,
    limit: usize,
) -> Vec<Arc<ControllerRevision>> {
    history.retain(|r| !used(r));
    history.sort_by_key(|r| r.revision);
    let count = history.len().saturating_sub(limit);
    history.truncate(count);
    history
}

/// Keeps the revisions of sets of one kind.
pub struct History {
    context: Context,
    cache: Cache<ControllerRevision>,
}

impl History {
    pub fn new(context: &Context) -> Self {
        let cache = context.shared.cache::<ControllerRevision>();
        cache.add_index(owner::BY_CONTROLLER, owner::by_controller);
        cache.add_index(owner::ORPHANS, owner::orphans);
        Self { context: context.clone(), cache }
    }

    pub async fn synced(&self) {
        self.cache.synced().await;
    }

    /// Hands on the names of owners whose revisions change.
    pub fn on_change(&self, wake: impl Fn(&ObjectMeta) + Send + Sync + 'static) {
        self.cache.on_change(move |old, new| {
            for one in [old, new].into_iter().flatten() {
                wake(&one.metadata);
            }
        });
    }

    /// A revision of the set by its name.
    pub fn named<K: Kept>(&self, set: &K, name: &str) -> Option<Arc<ControllerRevision>> {
        let held = self.cache.get(namespace(set.meta()), name)?;
        controller_of(&held.metadata).is_some_and(|o| o.uid == uid(set.meta())).then_some(held)
    }

    /// The revision of the present template, as the newest one; None if the set's own
    /// change will wake us.
    pub async fn present<K: Kept>(
        &self,
        set: &K,
        selector: &LabelSelector,
    ) -> Result<Option<Arc<ControllerRevision>>, Failed> {
        let all = claim(&self.context, set, &self.cache, selector, |_| true).await?;
        let meta = set.meta();
        let api = self.context.client.api::<ControllerRevision>(Some(namespace(meta)));
        let next = next(&all);
        let newest_equal = all.iter().filter(|r| is_of(r, set)).max_by_key(|r| r.revision);
        if let Some(held) = newest_equal {
            if held.revision + 1 < next {
                let patch = Patch::Strategic(json!({"revision": next}));
                let answer = api.patch(name(&held.metadata), &patch).await;
                answer.doing(|| "renumber a revision".into())?;
            }
            return Ok(Some(held.clone()));
        }
        let new = new(set, next);
        match api.create(&new).await {
            Ok(made) => Ok(Some(Arc::new(made))),
            Err(err) if err.is_already_exists() => {
                let live = api.get_opt(name(&new.metadata)).await;
                let live = live.doing(|| "read a revision".into())?;
                let ours = |r: &ControllerRevision| {
                    is_of(r, set) && controller_of(&r.metadata).is_some_and(|o| o.uid == uid(meta))
                };
                if let Some(live) = live.filter(ours) {
                    return Ok(Some(Arc::new(live)));
                }
                self.count_collision(set).await?;
                Ok(None)
            }
            Err(err) => Err(err).doing(|| "create a revision".into()),
        }
    }

    async fn count_collision<K: Kept>(&self, set: &K) -> Outcome {
        let meta = set.meta();
        let patch = json!({"metadata": {"uid": meta.uid},
            "status": {"collisionCount": set.collisions() + 1}});
        let sets = self.context.client.api::<K>(Some(namespace(meta)));
        let answer = sets.merge(name(meta), "status", &patch).await;
        answer.doing(|| "count a collision".into()).or_gone()
    }

    /// Removes revisions beyond the set's limit, except those in use.
    pub async fn prune<K: Kept>(
        &self,
        set: &K,
        used: impl Fn(&ControllerRevision) -> bool,
    ) -> Outcome {
        let limit = set.limit().unwrap_or(LIMIT).max(0) as usize;
        let api = self.context.client.api::<ControllerRevision>(Some(namespace(set.meta())));
        let all = self.cache.indexed(owner::BY_CONTROLLER, uid(set.meta()));
        for old in surplus(all, used, limit) {
            let params = DeleteParams::uid(uid(&old.metadata));
            let answer = api.delete(name(&old.metadata), &params).await;
            answer.doing(|| "delete a revision".into()).or_gone()?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_revisions_that_nobody_has_go_first() {
        let revision = |number: i64| {
            let name = Some(format!("r{number}"));
            let metadata = ObjectMeta { name, ..ObjectMeta::default() };
            Arc::new(ControllerRevision { metadata, revision: number, ..Default::default() })
        };
        let all = vec![revision(4), revision(1), revision(3), revision(2)];
        let gone = surplus(all, |r| r.revision == 1, 1);
        assert_eq!(gone.iter().map(|r| r.revision).collect::<Vec<_>>(), [2, 3]);
    }

    #[test]
    fn a_revision_brings_its_template_back() {
        let set: StatefulSet = serde_json::from_value(json!({
            "metadata": {"name": "web", "uid": "u"},
            "spec": {"serviceName": "", "selector": {}, "template": {
                "metadata": {"labels": {"a": "b"}},
                "spec": {"containers": [{"name": "c", "image": "i"}]}}},
        }))
        .unwrap();
        let revision = new(&set, 3);
        assert!(is_of(&revision, &set));
        assert_eq!(template_of(&revision).as_ref(), set.template());
        let held = revision.data.as_ref().unwrap().0.to_string();
        let sorted = r#"{"spec":{"template":{"$patch":"replace","metadata":{"labels":{"a":"b"}},"spec":{"containers":[{"image":"i","name":"c"}]}}}}"#;
        assert_eq!(held, sorted);
        let hash = hash_of::<StatefulSet>(&revision);
        assert_eq!(name(&revision.metadata), format!("web-{hash}"));
    }
}
