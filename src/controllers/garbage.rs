//! Removes objects whose owners are gone, and keeps owners until what blocks them went.
//!
//! `graph.rs` knows who owns whom, out of the metadata of every resource; nothing is
//! removed on its word alone: an absent owner is looked for at the API server first.

#[cfg(test)]
pub(crate) mod cases;
mod graph;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use base::backoff::Backoff;
use base::drain::{Drain, Trigger};
use base::error::chain;
use client::api::{DeleteParams, ListParams, MetaOnly, Propagation, ResourceRef, WatchEvent};
use client::cache::list_all;
use client::{Patch, Queue};
use futures::StreamExt;
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use parking_lot::Mutex;
use serde_json::json;
use tokio::sync::Notify;
use tracing::{debug, warn};

use crate::harness::{Context, Doing, Failed, Outcome, Settled};
use crate::owner::{name, uid};
use client::discovery::discover;
use graph::{FOREGROUND, Graph, Item, ORPHAN, Work, has_finalizer};

/// Objects worked on at a time, by each queue.
const WORKERS: usize = 8;
/// Changes of custom resource definitions within this time cost one discovery.
const SETTLE: Duration = Duration::from_millis(100);
/// Groups that do not answer are asked again after this long.
const ASK_AGAIN: Duration = Duration::from_secs(30);

pub async fn run(context: Context) {
    let collector = Arc::new(Collector {
        context,
        graph: Mutex::new(Graph::default()),
        deletes: Queue::named("garbage_collector_attempt_to_delete"),
        orphans: Queue::named("garbage_collector_attempt_to_orphan"),
        resources: Mutex::new(Vec::new()),
        rediscover: Notify::new(),
    });
    let watching = collector.clone();
    let working = collector.clone();
    let drain = collector.context.drain.clone();
    tokio::join!(drain.until(watching.watch_resources()), working.work());
}

struct Collector {
    context: Context,
    graph: Mutex<Graph>,
    /// Objects that may have to go, by uid.
    deletes: Queue<String>,
    /// Owners that leave their dependents behind.
    orphans: Queue<String>,
    /// All that can be listed, watched and deleted.
    resources: Mutex<Vec<ResourceRef>>,
    rediscover: Notify,
}

impl Collector {
    /// Keeps one watch per resource, and follows resources that come and go.
    async fn watch_resources(self: &Arc<Self>) {
        let mut watches: HashMap<ResourceRef, Trigger> = HashMap::new();
        let mut backoff = Backoff::new(Duration::from_millis(500), ASK_AGAIN);
        loop {
            let asked = discover(self.context.shared.client()).await;
            let complete = match asked {
                Ok(found) => {
                    let complete = found.failed.is_empty();
                    let usable = found.resources.into_iter().filter(|f| {
                        f.can("list")
                            && f.can("watch")
                            && f.can("delete")
                            && f.resource.plural != "events"
                    });
                    let usable: Vec<ResourceRef> = usable.map(|f| f.resource).collect();
                    // What did not answer is not gone.
                    if complete {
                        watches.retain(|resource, _| {
                            let stays = usable.contains(resource);
                            if !stays {
                                self.add_all(self.graph.lock().forget(resource));
                            }
                            stays
                        });
                    }
                    for resource in &usable {
                        if !watches.contains_key(resource) {
                            let (trigger, drain) = base::drain::channel();
                            let (me, resource) = (self.clone(), resource.clone());
                            watches.insert(resource.clone(), trigger);
                            base::task::spawn(async move { me.watch(resource, drain).await });
                        }
                    }
                    *self.resources.lock() = watches.keys().cloned().collect();
                    let waiting = self.graph.lock().take_unresolved();
                    self.add_all(waiting);
                    complete
                }
                Err(err) => {
                    debug!(error = %chain(&err), "discovery failed");
                    false
                }
            };
            if complete {
                backoff.reset();
                self.rediscover.notified().await;
            } else {
                let delay = backoff.next_delay();
                let _ = tokio::time::timeout(delay, self.rediscover.notified()).await;
            }
            tokio::time::sleep(SETTLE).await;
        }
    }

    fn add_all(&self, work: Vec<Work>) {
        for work in work {
            match work {
                Work::Delete(uid) => self.deletes.add(uid),
                Work::Orphan(uid) => self.orphans.add(uid),
            }
        }
    }

    /// Feeds the graph with one resource until the resource or the process goes.
    async fn watch(&self, resource: ResourceRef, drain: Drain) {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(15));
        let mut version = None;
        let resource = Arc::new(resource);
        loop {
            let round = self.round(&resource, &mut version, &mut backoff);
            let both = drain.until(self.context.drain.until(round)).await;
            let Some(Some(result)) = both else { return };
            if let Err(err) = result {
                match err {
                    // What cannot be read now cannot be read later either.
                    client::Error::Decode(_) => {
                        warn!(resource = %resource.plural, error = %chain(&err), "watch ended");
                    }
                    _ => debug!(resource = %resource.plural, error = %chain(&err), "watch ended"),
                }
                if err.code() != 0 {
                    version = None;
                }
                let delay = if err.is_expired() { Duration::ZERO } else { backoff.next_delay() };
                if drain.until(tokio::time::sleep(delay)).await.is_none() {
                    return;
                }
            }
        }
    }

    async fn round(
        &self,
        resource: &Arc<ResourceRef>,
        version: &mut Option<String>,
        backoff: &mut Backoff,
    ) -> Result<(), client::Error> {
        let api = self.context.shared.client().metadata_only((**resource).clone(), None);
        let all = ListParams::default();
        let start = match version {
            Some(version) => version.clone(),
            None => {
                let (objects, listed) = list_all(&api, &all).await?;
                let metas = objects.into_iter().map(|object| object.metadata).collect();
                let work = self.graph.lock().reset(resource, metas);
                self.add_all(work);
                *version = Some(listed.clone());
                listed
            }
        };
        let mut events = api.watch(&all, &start).await?;
        while let Some(event) = events.next().await {
            let (object, gone) = match event? {
                WatchEvent::Added(object) | WatchEvent::Modified(object) => (object, false),
                WatchEvent::Deleted(object) => (object, true),
                WatchEvent::Bookmark(seen) => {
                    *version = Some(seen);
                    continue;
                }
            };
            version.clone_from(&object.metadata.resource_version);
            let work = {
                let mut graph = self.graph.lock();
                match gone {
                    true => graph.remove(uid(&object.metadata)),
                    false => graph.insert(resource, &object.metadata),
                }
            };
            self.add_all(work);
            if matches!(resource.plural.as_str(), "customresourcedefinitions" | "apiservices") {
                self.rediscover.notify_one();
            }
            backoff.reset();
        }
        Ok(())
    }

    async fn work(&self) {
        let drain = &self.context.drain;
        let workers = self.context.workers(WORKERS);
        let deletes = self.deletes.run(workers, drain.clone(), |uid| async move {
            self.told(self.try_delete(&uid).await)
        });
        let orphans = self.orphans.run(workers, drain.clone(), |uid| async move {
            self.told(self.orphan_dependents(&uid).await)
        });
        tokio::join!(deletes, orphans);
    }

    fn told(&self, result: Outcome) -> Outcome {
        if let Err(err) = &result
            && !err.source.is_conflict()
            && !err.source.is_not_found()
        {
            warn!(controller = self.context.name, error = %chain(err), "sync failed");
        }
        result
    }

    fn api(&self, item: &Item) -> client::Api<MetaOnly> {
        let namespace = (!item.namespace.is_empty()).then_some(item.namespace.as_str());
        self.context.client.metadata_only((*item.resource).clone(), namespace)
    }

    /// The live object behind an item, None if it is gone.
    async fn live(&self, item: &Item) -> Result<Option<ObjectMeta>, Failed> {
        let what = || format!("look for {} {}", item.resource.kind, item.name);
        let live = self.api(item).get_opt(&item.name).await.doing(what)?;
        Ok(live.map(|live| live.metadata).filter(|meta| uid(meta) == item.uid))
    }

    fn gone(&self, uid: &str) {
        let work = self.graph.lock().remove(uid);
        self.add_all(work);
    }

    async fn try_delete(&self, item_uid: &str) -> Outcome {
        let Some(item) = self.graph.lock().get(item_uid) else { return Ok(()) };
        if item.deleting && !item.foreground {
            return Ok(());
        }
        let Some(live) = self.live(&item).await? else {
            self.gone(item_uid);
            return Ok(());
        };
        if live.deletion_timestamp.is_some() && has_finalizer(&live, FOREGROUND) {
            return self.finish_foreground(&item, &live).await;
        }
        let owners = live.owner_references.clone().unwrap_or_default();
        if owners.is_empty() || live.deletion_timestamp.is_some() {
            return Ok(());
        }
        let (mut solid, mut dangling, mut waiting) = (0, Vec::new(), Vec::new());
        for owner in &owners {
            match self.owner_state(&item, owner).await? {
                Owner::Solid => solid += 1,
                Owner::Gone => dangling.push(owner.uid.clone()),
                Owner::Waiting => waiting.push(owner.uid.clone()),
                Owner::Unknown => {
                    // Nobody knows the owner's kind now; discovery brings it back.
                    self.graph.lock().unresolved(item_uid);
                    return Ok(());
                }
                // It cannot be looked for, so that it cannot be found absent either.
                Owner::Unreachable => return Ok(()),
            }
        }
        if solid > 0 {
            dangling.extend(waiting);
            return match dangling.is_empty() {
                true => Ok(()),
                false => self.drop_owners(&item, &live, &dangling).await,
            };
        }
        let dependents = self.graph.lock().dependents(item_uid);
        let propagation = if !waiting.is_empty() && !dependents.is_empty() {
            if dependents.iter().any(|dependent| dependent.foreground) {
                // A circle of owners would wait for itself.
                self.unblock(&item, &live).await?;
            }
            Propagation::Foreground
        } else if has_finalizer(&live, ORPHAN) {
            Propagation::Orphan
        } else if has_finalizer(&live, FOREGROUND) {
            Propagation::Foreground
        } else {
            Propagation::Background
        };
        let mut params = DeleteParams::uid(item_uid).propagation(propagation);
        // New owners since we looked make it stay.
        params.resource_version = live.resource_version.clone();
        let answer = self.api(&item).delete(&item.name, &params).await;
        answer.doing(|| format!("delete {} {}", item.resource.kind, item.name)).or_gone()
    }

    async fn owner_state(&self, item: &Item, owner: &OwnerReference) -> Result<Owner, Failed> {
        let held = self.graph.lock().get(&owner.uid);
        let is_elsewhere = match &held {
            Some(held) if held.is_meant(owner, &item.namespace) => {
                return Ok(if held.foreground { Owner::Waiting } else { Owner::Solid });
            }
            Some(held) => !held.namespace.is_empty() && held.namespace != item.namespace,
            None => false,
        };
        if is_elsewhere {
            self.tell_stranger(item, owner);
        }
        let group = owner.api_version.split_once('/').map_or("", |(group, _)| group);
        let found = {
            let resources = self.resources.lock();
            let matches = |r: &&ResourceRef| r.group == group && r.kind == owner.kind;
            resources.iter().find(matches).cloned()
        };
        let Some(resource) = found else { return Ok(Owner::Unknown) };
        if resource.namespaced && item.namespace.is_empty() {
            // The owner may not have been seen yet, and nobody looks again when it is.
            if !is_elsewhere {
                self.tell_stranger(item, owner);
            }
            return Ok(Owner::Unreachable);
        }
        let namespace = if resource.namespaced { item.namespace.clone() } else { String::new() };
        let held = Item {
            resource: Arc::new(resource),
            namespace,
            name: owner.name.clone(),
            uid: owner.uid.clone(),
            deleting: false,
            foreground: false,
        };
        Ok(match self.live(&held).await? {
            None => Owner::Gone,
            Some(meta) if meta.deletion_timestamp.is_some() && has_finalizer(&meta, FOREGROUND) => {
                Owner::Waiting
            }
            Some(_) => Owner::Solid,
        })
    }

    /// Tells whoever named an owner that is in another namespace.
    fn tell_stranger(&self, item: &Item, owner: &OwnerReference) {
        let about = ObjectReference {
            api_version: Some(item.resource.api_version()),
            kind: Some(item.resource.kind.clone()),
            namespace: (!item.namespace.is_empty()).then(|| item.namespace.clone()),
            name: Some(item.name.clone()),
            uid: Some(item.uid.clone()),
            ..ObjectReference::default()
        };
        let text = format!(
            "ownerRef [{}/{}, namespace: {}, name: {}, uid: {}] does not exist in namespace {:?}",
            owner.api_version, owner.kind, item.namespace, owner.name, owner.uid, item.namespace
        );
        self.context.recorder.warning(&about, "OwnerRefInvalidNamespace", text);
    }

    /// Sends the dependents on their way; without blocking ones the owner may go.
    async fn finish_foreground(&self, item: &Item, live: &ObjectMeta) -> Outcome {
        let blocking = self.graph.lock().blocking(&item.uid);
        if blocking.is_empty() {
            return self.drop_finalizer(item, live, FOREGROUND).await;
        }
        for dependent in blocking.into_iter().filter(|dependent| !dependent.foreground) {
            self.deletes.add(dependent.uid);
        }
        Ok(())
    }

    async fn patch(&self, item: &Item, live: &ObjectMeta, meta: serde_json::Value) -> Outcome {
        let mut meta = meta;
        meta["uid"] = json!(live.uid);
        meta["resourceVersion"] = json!(live.resource_version);
        let patch = Patch::Merge(json!({"metadata": meta}));
        let answer = self.api(item).patch(&item.name, &patch).await;
        answer.doing(|| format!("patch {} {}", item.resource.kind, item.name)).or_gone()
    }

    async fn drop_finalizer(&self, item: &Item, live: &ObjectMeta, finalizer: &str) -> Outcome {
        let held = live.finalizers.iter().flatten();
        let left: Vec<&String> = held.filter(|held| *held != finalizer).collect();
        self.patch(item, live, json!({"finalizers": left})).await
    }

    async fn drop_owners(&self, item: &Item, live: &ObjectMeta, gone: &[String]) -> Outcome {
        let held = live.owner_references.iter().flatten();
        let left: Vec<&OwnerReference> = held.filter(|o| !gone.contains(&o.uid)).collect();
        self.patch(item, live, json!({"ownerReferences": left})).await
    }

    async fn unblock(&self, item: &Item, live: &ObjectMeta) -> Outcome {
        let mut owners = live.owner_references.clone().unwrap_or_default();
        for owner in &mut owners {
            owner.block_owner_deletion = Some(false);
        }
        self.patch(item, live, json!({"ownerReferences": owners})).await
    }

    /// Frees the dependents of an owner that leaves them behind, then the owner.
    async fn orphan_dependents(&self, owner_uid: &str) -> Outcome {
        let (owner, dependents) = {
            let graph = self.graph.lock();
            (graph.get(owner_uid), graph.dependents(owner_uid))
        };
        let Some(owner) = owner else { return Ok(()) };
        for dependent in dependents {
            let Some(live) = self.live(&dependent).await? else { continue };
            let owned = live.owner_references.iter().flatten().any(|o| o.uid == owner_uid);
            if owned {
                self.drop_owners(&dependent, &live, &[owner_uid.to_string()]).await?;
            }
        }
        let Some(live) = self.live(&owner).await? else {
            self.gone(owner_uid);
            return Ok(());
        };
        if has_finalizer(&live, ORPHAN) {
            debug!(name = name(&live), "dependents orphaned");
            return self.drop_finalizer(&owner, &live, ORPHAN).await;
        }
        Ok(())
    }
}

enum Owner {
    Solid,
    Gone,
    /// It waits for its dependents.
    Waiting,
    Unknown,
    /// In some namespace, while the object is in none.
    Unreachable,
}
