//! Counts what a namespace's objects use of its ResourceQuotas. What a request adds is
//! charged by the API server before it is stored; here is what is given back, and what
//! there was before the quota.
//!
//! `plan.rs` counts; here is the watching. A resource is watched once a quota bounds it.

#[cfg(test)]
pub(crate) mod cases;
mod plan;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use client::Queue;
use client::api::{MetaOnly, Object, ResourceRef};
use client::cache::{Cache, Key, key_of};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, ResourceQuota, Service};
use k8s_openapi::api::resource::v1::{DeviceClass, ResourceClaim};
use kinds::quota::Around;
use parking_lot::Mutex;
use serde::Serialize;
use serde_json::Value;

use crate::harness::{Context, Doing, Failed, Outcome, Settled};
use crate::owner::{name, namespace};
use client::discovery::{Discovered, discover};
use plan::{Bounded, bounded, claims_of_devices, status};

const WORKERS: usize = 2;
/// What is on its way to us is there so much later: the charge of an object that went, and a
/// resource that a new definition brings.
const SETTLE: Duration = Duration::from_secs(1);

pub async fn run(context: Context) {
    let definitions = context.shared.metadata(&ResourceRef {
        group: "apiextensions.k8s.io".into(),
        version: "v1".into(),
        plural: "customresourcedefinitions".into(),
        kind: "CustomResourceDefinition".into(),
        namespaced: false,
    });
    let me = Arc::new(Controller {
        queue: Queue::named("resourcequota_primary"),
        quotas: context.shared.cache(),
        watched: Mutex::default(),
        context,
    });
    let synced = async {
        me.quotas.synced().await;
        definitions.synced().await;
    };
    if me.context.drain.until(synced).await.is_none() {
        return;
    }
    let queue = me.queue.clone();
    let wait = me.context.config.quota_count_again;
    me.quotas.on_change(move |old, new| {
        let Some(new) = new else { return };
        match old {
            // Somebody was charged, or we counted.
            Some(old) if old.spec == new.spec => queue.add_after(key_of(&**new), wait),
            _ => queue.add(key_of(&**new)),
        }
    });
    let again = me.clone();
    definitions.on_change(move |old, new| {
        if old.is_none() != new.is_none() {
            for quota in again.quotas.list() {
                again.queue.add_after(key_of(&*quota), SETTLE);
            }
        }
    });
    me.context.work(&me.queue, WORKERS, |key| me.clone().sync(key)).await;
}

struct Controller {
    context: Context,
    queue: Queue<Key>,
    quotas: Cache<ResourceQuota>,
    watched: Mutex<HashMap<Bounded, Watched>>,
}

/// The objects of one resource that some quota bounds.
#[derive(Clone)]
enum Watched {
    Pods(Cache<Pod>),
    Services(Cache<Service>),
    Claims(Cache<PersistentVolumeClaim>),
    DeviceClaims(Cache<ResourceClaim>, Devices),
    /// Of all others only the number counts.
    Others(Cache<MetaOnly>),
}

/// What the count of claims of devices depends on.
#[derive(Clone)]
struct Devices {
    classes: Cache<DeviceClass>,
    pods: Cache<Pod>,
}

impl Around for Devices {
    fn resource_of(&self, class: &str) -> Option<String> {
        resource_of(&*self.classes.get("", class)?)
    }

    fn pod(&self, namespace: &str, name: &str) -> Option<Value> {
        client::api::value_of(&*self.pods.get(namespace, name)?).ok()
    }
}

fn resource_of(class: &DeviceClass) -> Option<String> {
    class.spec.extended_resource_name.clone().filter(|name| !name.is_empty())
}

/// The claim that was made for a pod's extended resources, as far as the pod knows.
fn made_for(pod: &Pod) -> Option<&str> {
    let made = pod.status.as_ref()?.extended_resource_claim_status.as_ref()?;
    Some(&made.resource_claim_name)
}

impl Watched {
    async fn synced(&self) {
        match self {
            Self::Pods(cache) => cache.synced().await,
            Self::Services(cache) => cache.synced().await,
            Self::Claims(cache) => cache.synced().await,
            Self::DeviceClaims(cache, devices) => {
                cache.synced().await;
                devices.classes.synced().await;
                devices.pods.synced().await;
            }
            Self::Others(cache) => cache.synced().await,
        }
    }

    fn in_namespace(&self, namespace: &str) -> Vec<Value> {
        fn values<K: Object>(cache: &Cache<K>, namespace: &str) -> Vec<Value> {
            let list = cache.list_in(namespace);
            list.iter().filter_map(|object| client::api::value_of(&**object).ok()).collect()
        }
        match self {
            Self::Pods(cache) => values(cache, namespace),
            Self::Services(cache) => values(cache, namespace),
            Self::Claims(cache) => values(cache, namespace),
            Self::DeviceClaims(cache, _) => values(cache, namespace),
            Self::Others(cache) => values(cache, namespace),
        }
    }
}

impl Controller {
    async fn sync(self: Arc<Self>, key: Key) -> Outcome {
        let Some(quota) = self.quotas.get(&key.0, &key.1) else { return Ok(()) };
        if quota.metadata.deletion_timestamp.is_some() {
            return Ok(());
        }
        let value = client::api::value_of(&*quota).unwrap_or_default();
        let mut objects = HashMap::new();
        for resource in bounded(&value) {
            let Some(watched) = self.watch(&resource).await? else { continue };
            if self.context.drain.until(watched.synced()).await.is_none() {
                return Ok(());
            }
            objects.insert(resource, watched.in_namespace(&key.0));
        }
        let counted = status(&value, &objects, &*self.around(), base::time::now());
        if value["status"] == counted {
            return Ok(());
        }
        let mut next = (*quota).clone();
        next.status = client::api::typed(&counted).ok();
        // Over the version that was counted from: a charge in between is a conflict, and
        // counting begins again.
        let api = self.context.client.api::<ResourceQuota>(Some(namespace(&quota.metadata)));
        let answer = api.replace_status(name(&quota.metadata), &next).await;
        answer.doing(|| "write what is used".into()).or_gone()
    }

    fn around(&self) -> Box<dyn Around> {
        match self.watched.lock().get(&claims_of_devices()) {
            Some(Watched::DeviceClaims(_, devices)) => Box::new(devices.clone()),
            _ => Box::new(()),
        }
    }

    /// Quotas of a namespace that bound a resource.
    fn bounding(&self, namespace: &str, resource: &Bounded) -> Vec<Arc<ResourceQuota>> {
        let mut quotas = self.quotas.list_in(namespace);
        quotas.retain(|quota| {
            let value = client::api::value_of(&**quota).unwrap_or_default();
            bounded(&value).contains(resource)
        });
        quotas
    }

    /// The objects of a resource; None where nobody serves it.
    async fn watch(self: &Arc<Self>, resource: &Bounded) -> Result<Option<Watched>, Failed> {
        if let Some(watched) = self.watched.lock().get(resource) {
            return Ok(Some(watched.clone()));
        }
        let shared = &self.context.shared;
        let watched = match (resource.group.as_str(), resource.plural.as_str()) {
            ("", "pods") => Watched::Pods(shared.cache()),
            ("", "services") => Watched::Services(shared.cache()),
            ("", "persistentvolumeclaims") => Watched::Claims(shared.cache()),
            ("resource.k8s.io", "resourceclaims") => {
                let devices = Devices { classes: shared.cache(), pods: shared.cache() };
                Watched::DeviceClaims(shared.cache(), devices)
            }
            _ => {
                let found = discover(shared.client()).await;
                let found = found.doing(|| "ask which resources there are".into())?;
                match served(&found, resource) {
                    Some(served) => Watched::Others(shared.metadata(served)),
                    None => return Ok(None),
                }
            }
        };
        let mut all = self.watched.lock();
        // Another worker may have been faster; one of us listens.
        if let Some(there) = all.get(resource) {
            return Ok(Some(there.clone()));
        }
        all.insert(resource.clone(), watched.clone());
        drop(all);
        match &watched {
            Watched::Pods(cache) => self.listen(cache, resource),
            Watched::Services(cache) => self.listen(cache, resource),
            Watched::Claims(cache) => self.listen(cache, resource),
            Watched::DeviceClaims(cache, devices) => {
                self.listen(cache, resource);
                self.listen_to(devices);
            }
            Watched::Others(cache) => self.listen(cache, resource),
        }
        Ok(Some(watched))
    }

    /// Counts again where something was given back. What was added has been charged.
    fn listen<K: Object + Serialize>(self: &Arc<Self>, cache: &Cache<K>, resource: &Bounded) {
        let (me, resource) = (self.clone(), resource.clone());
        cache.on_change(move |old, new| {
            let Some(old) = old else { return };
            let bound = me.bounding(namespace(old.meta()), &resource);
            if bound.is_empty() {
                return;
            }
            let around = me.around();
            let uses = |object: &Arc<K>| {
                let value = client::api::value_of(&**object).unwrap_or_default();
                let of = (resource.group.as_str(), resource.plural.as_str());
                kinds::quota::usage(of, &value, &*around, base::time::now())
            };
            if new.is_none_or(|new| uses(new) != uses(old)) {
                for quota in bound {
                    me.queue.add(key_of(&*quota));
                    // The charge of what was just given back may not have come to us yet.
                    me.queue.add_after(key_of(&*quota), SETTLE);
                }
            }
        });
    }

    /// Counts again where a claim counts for something else now, though it is as it was.
    fn listen_to(self: &Arc<Self>, devices: &Devices) {
        let me = self.clone();
        devices.classes.on_change(move |old, new| {
            let resource = |class: Option<&Arc<DeviceClass>>| class.and_then(|it| resource_of(it));
            if resource(old) != resource(new) {
                for quota in me.quotas.list() {
                    me.queue.add(key_of(&*quota));
                }
            }
        });
        let me = self.clone();
        devices.pods.on_change(move |old, new| {
            let Some(old) = old else { return };
            if new.is_none_or(|new| made_for(new) != made_for(old)) {
                for quota in me.bounding(namespace(old.meta()), &claims_of_devices()) {
                    me.queue.add(key_of(&*quota));
                }
            }
        });
    }
}

fn served<'a>(found: &'a Discovered, resource: &Bounded) -> Option<&'a ResourceRef> {
    let mut all = found.resources.iter().filter(|found| found.can("list") && found.can("watch"));
    let same = |of: &ResourceRef| of.group == resource.group && of.plural == resource.plural;
    all.find(|found| same(&found.resource)).map(|found| &found.resource)
}
