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
/// What a revision's name has of its set's.
const PREFIX_BYTES_MAX: usize = 223;

/// A set whose template has revisions.
pub trait Kept: Object + k8s_openapi::Resource<Scope: ScopeOf> {
    /// Label of revisions that holds their hash.
    const LABEL: &str;
    fn template(&self) -> Option<&PodTemplateSpec>;
    fn collisions(&self) -> i32;
    fn limit(&self) -> Option<i32>;
    /// Of the template and of what the revision holds of it.
    fn hash(&self, template: &PodTemplateSpec, data: &[u8]) -> String;
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
    fn hash(&self, template: &PodTemplateSpec, _: &[u8]) -> String {
        template::hash(template, self.collisions())
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
    fn hash(&self, _: &PodTemplateSpec, data: &[u8]) -> String {
        hash_of_data(data, self.collisions())
    }
}

/// Upstream's hash of the data of a StatefulSet's revision: FNV-1 of 32 bits.
fn hash_of_data(data: &[u8], collisions: i32) -> String {
    let probe = collisions.to_string();
    let hash = data
        .iter()
        .chain(probe.as_bytes())
        .fold(0x811c_9dc5_u32, |hash, byte| hash.wrapping_mul(0x0100_0193) ^ u32::from(*byte));
    template::safely(hash)
}

/// A patch that brings the template back, which is what `kubectl rollout undo` sends. Clients
/// tell which revision a set has by the bytes of it, in which Go sorts all names.
fn data<K: Kept>(set: &K) -> Value {
    let mut template = client::api::value_of(&set.template()).unwrap_or_default();
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

/// Whether the revision brings back what the set has: what it means counts, not how some version
/// of Kubernetes wrote it down.
fn is_of<K: Kept>(revision: &ControllerRevision, set: &K) -> bool {
    template_of(revision).as_ref() == set.template()
}

pub fn hash_of<K: Kept>(revision: &ControllerRevision) -> &str {
    let label = revision.metadata.labels.as_ref().and_then(|l| l.get(K::LABEL));
    label.map(String::as_str).unwrap_or_default()
}

fn next(history: &[Arc<ControllerRevision>]) -> i64 {
    history.iter().map(|r| r.revision).max().unwrap_or(0) + 1
}

/// The set's name, as far as it leaves room for the hash. A name is ASCII.
fn prefix(name: &str) -> &str {
    name.get(..PREFIX_BYTES_MAX).unwrap_or(name)
}

fn new<K: Kept>(set: &K, revision: i64) -> ControllerRevision {
    let template = set.template().cloned().unwrap_or_default();
    let data = data(set);
    // As the API server will write it, and as Go has it. Writing JSON into memory cannot fail.
    let bytes = codec::go_json::escape_html(serde_json::to_vec(&data).unwrap_or_default());
    let hash = set.hash(&template, &bytes);
    let mut labels = template.metadata.unwrap_or_default().labels.unwrap_or_default();
    labels.insert(K::LABEL.into(), hash.clone());
    let meta = set.meta();
    ControllerRevision {
        metadata: ObjectMeta {
            name: Some(format!("{}-{hash}", prefix(name(meta)))),
            namespace: meta.namespace.clone(),
            labels: Some(labels),
            annotations: meta.annotations.clone(),
            owner_references: Some(vec![owner::reference_to(set)]),
            ..ObjectMeta::default()
        },
        data: Some(RawExtension(data)),
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

    /// What a cluster of upstream's made of a StatefulSet of nginx.
    #[test]
    fn revisions_are_called_as_upstream_calls_them() {
        let data = br#"{"spec":{"template":{"$patch":"replace","metadata":{"creationTimestamp":null,"labels":{"app":"nginx-sts"}},"spec":{"containers":[{"image":"nginx","imagePullPolicy":"Always","name":"nginx","resources":{},"terminationMessagePath":"/dev/termination-log","terminationMessagePolicy":"File"}],"dnsPolicy":"ClusterFirst","restartPolicy":"Always","schedulerName":"default-scheduler","securityContext":{},"terminationGracePeriodSeconds":30}}}}"#;
        assert_eq!(hash_of_data(data, 0), "6798d68dcd");
        assert_ne!(hash_of_data(data, 1), "6798d68dcd");
        let mut held: Value = serde_json::from_slice(data).unwrap();
        let spec = |held: &Value| {
            json!({"serviceName": "", "selector": {},
            "template": {"metadata": held["spec"]["template"]["metadata"],
                "spec": held["spec"]["template"]["spec"]}})
        };
        let set = json!({"metadata": {"name": "nginx-sts"}, "spec": spec(&held)});
        let set: StatefulSet = serde_json::from_value(set).unwrap();
        // Who wrote a time that is none meant the same.
        let revision = |held: &Value| ControllerRevision {
            data: Some(RawExtension(held.clone())),
            ..Default::default()
        };
        assert!(is_of(&revision(&held), &set));
        held["spec"]["template"]["spec"]["containers"][0]["image"] = "apache".into();
        assert!(!is_of(&revision(&held), &set));
    }

    #[test]
    fn what_is_hashed_is_what_go_would_write() {
        let set = |command: &str| -> StatefulSet {
            let containers = json!([{"name": "c", "command": [command]}]);
            serde_json::from_value(json!({"metadata": {"name": "web"}, "spec": {"serviceName": "",
                "selector": {}, "template": {"spec": {"containers": containers}}}}))
            .unwrap()
        };
        let written = br#"{"spec":{"template":{"$patch":"replace","spec":{"containers":[{"command":["a \u003c b \u0026\u0026 c"],"name":"c"}]}}}}"#;
        let revision = new(&set("a < b && c"), 1);
        assert_eq!(hash_of::<StatefulSet>(&revision), hash_of_data(written, 0));
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
