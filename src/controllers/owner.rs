//! Controllers and what they own.

use std::collections::BTreeMap;

use client::api::{Object, ResourceRef, ScopeOf};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

/// Index of objects by the uid of their controller.
pub const BY_CONTROLLER: &str = "controller";
/// Index of objects without a controller by their namespace.
pub const ORPHANS: &str = "orphans";

pub fn by_controller<K: Object>(object: &K) -> Vec<String> {
    controller_of(object.meta()).map(|owner| owner.uid.clone()).into_iter().collect()
}

pub fn orphans<K: Object>(object: &K) -> Vec<String> {
    match controller_of(object.meta()) {
        Some(_) => Vec::new(),
        None => vec![object.meta().namespace.clone().unwrap_or_default()],
    }
}

pub fn controller_of(meta: &ObjectMeta) -> Option<&OwnerReference> {
    meta.owner_references.iter().flatten().find(|owner| owner.controller == Some(true))
}

/// The reference that makes `owner` the controller of another object.
pub fn reference_to<K>(owner: &K) -> OwnerReference
where
    K: Object + k8s_openapi::Resource,
    K::Scope: ScopeOf,
{
    let resource = ResourceRef::of::<K>();
    OwnerReference {
        api_version: K::API_VERSION.to_string(),
        kind: resource.kind,
        name: owner.meta().name.clone().unwrap_or_default(),
        uid: owner.meta().uid.clone().unwrap_or_default(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

pub fn name(meta: &ObjectMeta) -> &str {
    meta.name.as_deref().unwrap_or_default()
}

pub fn namespace(meta: &ObjectMeta) -> &str {
    meta.namespace.as_deref().unwrap_or_default()
}

pub fn uid(meta: &ObjectMeta) -> &str {
    meta.uid.as_deref().unwrap_or_default()
}

pub fn annotation<'a>(meta: &'a ObjectMeta, key: &str) -> Option<&'a str> {
    meta.annotations.as_ref()?.get(key).map(String::as_str)
}

pub fn created(meta: &ObjectMeta) -> i64 {
    meta.creation_timestamp.as_ref().map_or(0, |time| time.0.as_second())
}

pub type Labels = BTreeMap<String, String>;
