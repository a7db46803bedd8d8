//! The kinds that several rooms follow, compiled here once.
//!
//! Generic code is compiled in the first crate that uses it, and taken from there by those
//! that import that crate. Rooms do not import each other, so that without this list each
//! would hold a copy of its own of what decodes and keeps a Pod. Nobody calls these.

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{
    ConfigMap, Event, Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod, Secret,
    Service, ServiceAccount,
};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::storage::v1::StorageClass;

use crate::api::{Object, ScopeOf};
use crate::cache::Shared;

pub static FOLLOWED: [fn(&Shared); 13] = [
    follow::<ConfigMap>,
    follow::<EndpointSlice>,
    follow::<Event>,
    follow::<Lease>,
    follow::<Namespace>,
    follow::<Node>,
    follow::<PersistentVolume>,
    follow::<PersistentVolumeClaim>,
    follow::<Pod>,
    follow::<Secret>,
    follow::<Service>,
    follow::<ServiceAccount>,
    follow::<StorageClass>,
];

fn follow<K>(shared: &Shared)
where
    K: Object + k8s_openapi::Resource,
    K::Scope: ScopeOf,
{
    drop(shared.cache::<K>());
}
