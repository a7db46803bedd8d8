//! The caches that facts come from, and when what they say has changed.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use client::api::Object;
use client::volumes as claims;
use client::{Cache, Shared};
use k8s_openapi::api::apps::v1::{ReplicaSet, StatefulSet};
use k8s_openapi::api::core::v1::{
    Namespace, PersistentVolume, PersistentVolumeClaim, ReplicationController, Service,
};
use k8s_openapi::api::resource::v1::DeviceClass;
use k8s_openapi::api::storage::v1::{
    CSIDriver, CSINode, CSIStorageCapacity, StorageClass, VolumeAttachment,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1 as meta;
use kinds::meta::LabelSelector;
use parking_lot::{RwLock, RwLockReadGuard};

use crate::devices;
use crate::keys::{self, Keys};
use crate::pod::Labels;

/// Index of volumes by their class.
pub(super) const BY_CLASS: &str = "class";
/// Index of attachments by their node.
const BY_NODE: &str = "node";
/// Index of capacities by their class.
pub(super) const ROOM_BY_CLASS: &str = "class";

/// The caches that facts come from.
#[derive(Clone)]
pub struct Caches {
    pub namespaces: Cache<Namespace>,
    pub claims: Cache<PersistentVolumeClaim>,
    pub volumes: Cache<PersistentVolume>,
    pub classes: Cache<StorageClass>,
    pub drivers: Cache<CSIDriver>,
    pub capacities: Cache<CSIStorageCapacity>,
    pub csi_nodes: Cache<CSINode>,
    pub attachments: Cache<VolumeAttachment>,
    pub devices: devices::Sources,
    pub services: Cache<Service>,
    pub replica_sets: Cache<ReplicaSet>,
    pub replication_controllers: Cache<ReplicationController>,
    pub stateful_sets: Cache<StatefulSet>,
    /// Grows when something changes that facts of pods without volumes come from.
    changes: Arc<AtomicU64>,
    keys: Arc<RwLock<Keys>>,
}

impl Caches {
    pub fn new(shared: &Shared) -> Self {
        let out = Self {
            namespaces: shared.cache(),
            claims: shared.cache(),
            volumes: shared.cache(),
            classes: shared.cache(),
            drivers: shared.cache(),
            capacities: shared.cache(),
            csi_nodes: shared.cache(),
            attachments: shared.cache(),
            devices: devices::Sources::new(shared.cache(), shared.cache(), shared.cache()),
            services: shared.cache(),
            replica_sets: shared.cache(),
            replication_controllers: shared.cache(),
            stateful_sets: shared.cache(),
            changes: Arc::default(),
            keys: Arc::default(),
        };
        out.index();
        out.listen();
        out
    }

    fn index(&self) {
        self.volumes.add_index(BY_CLASS, |volume| vec![claims::class_of_volume(volume).into()]);
        self.attachments.add_index(BY_NODE, |it| vec![it.spec.node_name.clone()]);
        self.capacities.add_index(ROOM_BY_CLASS, |room| vec![room.storage_class_name.clone()]);
    }

    /// Facts of pods without volumes are the same as long as this is.
    pub fn facts_changed(&self) -> u64 {
        self.changes.load(Ordering::Acquire)
    }

    /// The labels by which services and controllers select pods.
    pub fn selected_keys(&self) -> RwLockReadGuard<'_, Keys> {
        self.keys.read()
    }

    fn listen(&self) {
        let changes = self.changes.clone();
        self.namespaces.on_change(move |old, new| {
            let labels = |it: Option<&Arc<Namespace>>| it.map(|it| it.metadata.labels.clone());
            if labels(old) != labels(new) {
                changes.fetch_add(1, Ordering::AcqRel);
            }
        });
        let changes = self.changes.clone();
        self.devices.classes.on_change(move |old, new| {
            // Which resources devices stand in for.
            let of =
                |it: Option<&Arc<DeviceClass>>| it.map(|it| it.spec.extended_resource_name.clone());
            if of(old) != of(new) {
                changes.fetch_add(1, Ordering::AcqRel);
            }
        });
        let of_service = |it: &Service| equal_to(it.spec.as_ref()?.selector.as_ref());
        self.listen_to(&self.services, of_service);
        let of_controller =
            |it: &ReplicationController| equal_to(it.spec.as_ref()?.selector.as_ref());
        self.listen_to(&self.replication_controllers, of_controller);
        self.listen_to(&self.replica_sets, |it| Some(select(&it.spec.as_ref()?.selector)));
        self.listen_to(&self.stateful_sets, |it| Some(select(&it.spec.as_ref()?.selector)));
    }

    /// Takes note of whom the objects of a cache select.
    fn listen_to<K: Object>(&self, cache: &Cache<K>, selector: fn(&K) -> Option<LabelSelector>) {
        let (changes, keys) = (self.changes.clone(), self.keys.clone());
        cache.on_change(move |old, new| {
            let of = |it: Option<&Arc<K>>| it.and_then(|it| selector(it));
            let (old, new) = (of(old), of(new));
            if old == new {
                return;
            }
            let mut keys = keys.write();
            keys.add(new.iter().flat_map(keys::of_selector));
            keys.remove(old.iter().flat_map(keys::of_selector));
            changes.fetch_add(1, Ordering::AcqRel);
        });
    }

    /// Caches that nothing feeds.
    #[cfg(test)]
    pub fn empty() -> Self {
        let out = Self {
            namespaces: Cache::new(),
            claims: Cache::new(),
            volumes: Cache::new(),
            classes: Cache::new(),
            drivers: Cache::new(),
            capacities: Cache::new(),
            csi_nodes: Cache::new(),
            attachments: Cache::new(),
            devices: devices::Sources::new(Cache::new(), Cache::new(), Cache::new()),
            services: Cache::new(),
            replica_sets: Cache::new(),
            replication_controllers: Cache::new(),
            stateful_sets: Cache::new(),
            changes: Arc::default(),
            keys: Arc::default(),
        };
        out.index();
        out.listen();
        out
    }

    /// What is attached to a node, or is to be.
    pub fn attached_to(&self, node: &str) -> Vec<Arc<VolumeAttachment>> {
        self.attachments.indexed(BY_NODE, node)
    }

    pub async fn synced(&self) {
        self.namespaces.synced().await;
        self.claims.synced().await;
        self.volumes.synced().await;
        self.classes.synced().await;
        self.drivers.synced().await;
        self.capacities.synced().await;
        self.csi_nodes.synced().await;
        self.attachments.synced().await;
        self.devices.claims.synced().await;
        self.devices.slices.synced().await;
        self.devices.classes.synced().await;
        self.services.synced().await;
        self.replica_sets.synced().await;
        self.replication_controllers.synced().await;
        self.stateful_sets.synced().await;
    }
}

/// None where nothing is selected.
fn equal_to(labels: Option<&Labels>) -> Option<LabelSelector> {
    labels.map(|labels| client::labels::equal_to(Some(labels)))
}

fn select(selector: &meta::LabelSelector) -> LabelSelector {
    client::labels::selector(Some(selector))
}
