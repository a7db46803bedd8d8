//! Which objects are a controller's own: it adopts those that match and have no
//! controller, and releases those that match no more.

use std::sync::Arc;

use client::Patch;
use client::api::{Object, ScopeOf};
use client::cache::Cache;
use kinds::meta::LabelSelector;
use serde_json::json;

use crate::harness::{Context, Doing, Failed, Settled};
use crate::owner::{self, name, namespace, uid};

/// The objects in `cache` that `set` controls once this is done. The cache has both
/// indices of [`owner`]. `adopts` judges orphans that the selector matches.
pub async fn claim<K, T>(
    context: &Context,
    set: &K,
    cache: &Cache<T>,
    selector: &LabelSelector,
    adopts: impl Fn(&T) -> bool,
) -> Result<Vec<Arc<T>>, Failed>
where
    K: Object + k8s_openapi::Resource<Scope: ScopeOf>,
    T: Object + k8s_openapi::Resource<Scope: ScopeOf>,
{
    let meta = set.meta();
    let api = context.client.api::<T>(Some(namespace(meta)));
    let matches = |object: &Arc<T>| selector.matches_map(object.meta().labels.as_ref());
    let mut mine = Vec::new();
    for object in cache.indexed(owner::BY_CONTROLLER, uid(meta)) {
        // What is being deleted keeps its pods for the garbage collector.
        if matches(&object) || meta.deletion_timestamp.is_some() {
            mine.push(object);
            continue;
        }
        let patch = json!({"metadata": {"uid": object.meta().uid, "ownerReferences": [
            {"$patch": "delete", "uid": meta.uid}]}});
        let answer = api.patch(name(object.meta()), &Patch::Strategic(patch)).await;
        answer.doing(|| format!("release {} {}", T::KIND, name(object.meta()))).or_gone()?;
    }
    let mut orphans = cache.indexed(owner::ORPHANS, namespace(meta));
    orphans.retain(|o| matches(o) && o.meta().deletion_timestamp.is_none() && adopts(o));
    if orphans.is_empty() || meta.deletion_timestamp.is_some() {
        return Ok(mine);
    }
    // The cache may lag behind a deletion.
    let sets = context.client.api::<K>(Some(namespace(meta)));
    let live = sets.get_opt(name(meta)).await.doing(|| "look whether it may adopt".into())?;
    let may =
        live.is_some_and(|l| l.meta().uid == meta.uid && l.meta().deletion_timestamp.is_none());
    for object in orphans.into_iter().filter(|_| may) {
        let patch = json!({"metadata": {"uid": object.meta().uid,
            "ownerReferences": [owner::reference_to(set)]}});
        match api.patch(name(object.meta()), &Patch::Strategic(patch)).await {
            Ok(_) => mine.push(object),
            // It is gone, or somebody else's by now.
            Err(err) if err.is_not_found() || err.code() == 422 => {}
            Err(err) => {
                return Err(err).doing(|| format!("adopt {} {}", T::KIND, name(object.meta())));
            }
        }
    }
    Ok(mine)
}
