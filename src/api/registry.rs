//! One registry for all kinds: create, read, list, watch, update, patch and delete are
//! written once; what differs between kinds is data and rules in `kinds`.
//!
//! Never looks at HTTP: `serve` turns requests into these calls and answers into bytes.

use std::sync::{Arc, LazyLock};

use kinds::core::pod_features::drop_disabled;
use kinds::meta::FieldError;
use kinds::resources::{Catalog, Resource};
use kinds::rules::Rules;
use parking_lot::RwLock;
use serde_json::{Map, Value};
use store::{Backend, Durability};

pub use addresses::ADDRESSES;

use crate::admission::{Admission, Attributes, Operation};
use crate::authn::User;
use crate::authz::Authorizer;
use crate::cache::{Cache, encode, splice_revision};
use crate::crd;
use crate::error::{ApiError, Cause, Result};
use crate::scheme::{Schema, Typed, shape};

mod addresses;
pub mod allocate;
mod bind;
mod certificates;
pub mod convert;
pub mod create;
pub mod delete;
pub mod list;
pub mod patch;
pub mod select;
mod selectors;
mod shown;
mod signing;
pub mod update;
pub mod watch;

/// How often a write without an expectation of its own is tried again when another
/// writer was faster.
const CONFLICT_RETRIES_MAX: usize = 20;

/// What a request is about.
#[derive(Debug, Clone)]
pub struct Target {
    pub resource: Arc<Resource>,
    /// The version of the request.
    pub version: String,
    /// Empty for cluster objects, and for lists over all namespaces.
    pub namespace: String,
    pub name: String,
    /// Empty for the object itself.
    pub subresource: String,
}

impl Target {
    pub fn prefix(&self) -> Result<&str> {
        self.resource.prefix.as_deref().ok_or_else(ApiError::method_not_allowed)
    }

    pub fn key(&self) -> Result<String> {
        self.key_of(&self.name)
    }

    pub fn key_of(&self, name: &str) -> Result<String> {
        self.resource.key(&self.namespace, name).ok_or_else(ApiError::method_not_allowed)
    }

    /// Where the keys of the namespace asked for begin.
    pub fn start(&self) -> Result<String> {
        let namespace = Some(self.namespace.as_str()).filter(|ns| !ns.is_empty());
        self.resource.key_prefix(namespace).ok_or_else(ApiError::method_not_allowed)
    }

    pub fn api_version(&self) -> String {
        self.resource.api_version(&self.version)
    }

    pub fn rules(&self) -> Rules {
        if self.resource.custom {
            return Rules { namespaced: self.resource.namespaced, ..*CUSTOM_RULES };
        }
        Rules::of(&self.resource.group, &self.resource.kind)
    }

    /// Whether what the object owns stays when a deletion says nothing of it.
    pub(crate) fn orphans_by_default(&self) -> bool {
        !self.resource.custom
            && kinds::rules::orphans_by_default(&self.resource.group, &self.resource.kind)
    }

    pub(crate) fn is_definition(&self) -> bool {
        self.resource.group == "apiextensions.k8s.io"
            && self.resource.plural == "customresourcedefinitions"
    }

    pub fn has_status(&self) -> bool {
        self.resource.subresource("status", &self.version).is_some()
    }

    /// Brings an object into the form upstream writes it in.
    pub fn normalise(&self, object: &mut Value) {
        if !self.resource.custom {
            shape::normalise(object, self.typed());
        }
    }

    /// Puts fields into the order in which upstream writes them.
    pub fn arrange(&self, object: &mut Value) {
        if !self.resource.custom {
            shape::arrange(object, self.typed());
        }
    }

    pub fn typed(&self) -> Typed<'_> {
        if let Some(version) = crd::accept::of(self) {
            return version.typed();
        }
        let (group, kind) = (&self.resource.group, &self.resource.kind);
        Schema::built_in().kind(group, &self.version, kind).unwrap_or_else(Schema::untyped)
    }
}

/// What `crd` does not decide for a custom resource.
static CUSTOM_RULES: LazyLock<Rules> = LazyLock::new(|| Rules {
    default: |_| {},
    prepare_create: |_| {},
    create_on_update: false,
    unconditional_update: false,
    ..Rules::of("", "")
});

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FieldValidation {
    Ignore,
    #[default]
    Warn,
    Strict,
}

/// How a write is to be done, and by whom.
#[derive(Debug, Clone)]
pub struct WriteOptions {
    pub user: Arc<User>,
    pub manager: String,
    pub dry_run: bool,
    pub force: bool,
    /// What admission has to say besides its decision.
    pub notes: Arc<crate::admission::Notes>,
    /// What becomes of a patch that brings fields the kind does not have.
    pub validation: FieldValidation,
    /// What is wrong with a patch's text and only a strict client cares for.
    pub strict_errors: Vec<String>,
}

/// The registry of one server.
pub struct Registry {
    pub cache: Cache,
    pub catalog: RwLock<Arc<Catalog>>,
    pub admission: Admission,
    pub authorizer: Arc<Authorizer>,
    pub allocator: allocate::Allocator,
    pub features: crate::features::Features,
}

impl Registry {
    pub fn store(&self) -> &Arc<dyn Backend> {
        self.cache.store()
    }

    /// Takes fields away that belong to features that are off.
    fn drop_disabled(&self, resource: &Resource, new: &mut Value, old: Option<&Value>) {
        if !resource.custom {
            let kind = (resource.group.as_str(), resource.kind.as_str());
            drop_disabled(kind, new, old, |gate| self.features.is_on(gate));
        }
    }

    pub fn catalog(&self) -> Arc<Catalog> {
        self.catalog.read().clone()
    }

    pub fn resource(&self, group: &str, plural: &str) -> Option<Arc<Resource>> {
        self.catalog.read().any_version(group, plural).cloned()
    }

    /// The object a target names, in the target's version.
    ///
    /// # Errors
    /// 404 if it does not exist.
    pub async fn get(&self, target: &Target) -> Result<Value> {
        let object = self.live(target).await?;
        Ok(convert::from_storage(object.value(), &target.resource, &target.version))
    }

    /// The stored object a target names, as fresh as the store.
    pub async fn live(&self, target: &Target) -> Result<Arc<crate::cache::Object>> {
        self.cache.fresh().await?;
        let object = self
            .cache
            .get(target.prefix()?, &target.key()?)
            .ok_or_else(|| ApiError::not_found(&target.resource, &target.name))?;
        self.show(target, object).await
    }

    /// A stored object in the target's version, if it is a custom one.
    async fn show(
        &self,
        target: &Target,
        object: Arc<crate::cache::Object>,
    ) -> Result<Arc<crate::cache::Object>> {
        crd::convert::show_one(&self.cache, &target.resource, &target.version, object).await
    }

    fn attributes<'a>(
        &'a self,
        target: &'a Target,
        options: &'a WriteOptions,
        operation: Operation,
        old: Option<&'a Value>,
    ) -> Attributes<'a> {
        Attributes {
            operation,
            resource: &target.resource,
            version: &target.version,
            namespace: &target.namespace,
            name: &target.name,
            subresource: &target.subresource,
            user: &options.user,
            dry_run: options.dry_run,
            old,
            notes: &options.notes,
        }
    }
}

/// Heartbeats and events may be a few minutes old after a power cut; everything else
/// is on disk before it is acknowledged.
pub(crate) fn durability(resource: &Resource) -> Durability {
    match (resource.group.as_str(), resource.plural.as_str()) {
        ("coordination.k8s.io", "leases") | ("", "events") | ("events.k8s.io", "events") => {
            Durability::Relaxed
        }
        _ => Durability::Durable,
    }
}

/// The value to store: storage version, no resourceVersion, which `value` loses as well; its
/// fields come into their order.
pub(crate) fn stored_bytes(value: &mut Value, resource: &Resource) -> bytes::Bytes {
    metadata_mut(value).shift_remove("resourceVersion");
    let mut converted;
    let value = if value["apiVersion"] == resource.storage.to_string() {
        value
    } else {
        converted = convert::to_storage(value.clone(), resource);
        &mut converted
    };
    if !resource.custom {
        let (group, version) = (&resource.storage.group, &resource.storage.version);
        if let Some(typed) = Schema::built_in().kind(group, version, &resource.kind) {
            shape::arrange(value, typed);
        }
    }
    match value {
        Value::Object(map) => encode(map).into(),
        _ => bytes::Bytes::new(),
    }
}

/// Whether a GET in the target's version sends what is stored.
fn is_plain(target: &Target) -> bool {
    !target.resource.custom && convert::is_identity(&target.resource, &target.version)
}

/// What was stored, as a GET would send it.
fn line(target: &Target, stored: &[u8], revision: u64) -> Option<bytes::Bytes> {
    is_plain(target).then(|| splice_revision(stored, revision))
}

pub(crate) fn set_revision(value: &mut Value, revision: u64) {
    metadata_mut(value).insert("resourceVersion".into(), revision.to_string().into());
}

/// `metadata`, made if it is missing.
pub fn metadata_mut(value: &mut Value) -> &mut Map<String, Value> {
    if !value.is_object() {
        *value = Value::Object(Map::new());
    }
    let metadata = &mut value["metadata"];
    if !metadata.is_object() {
        *metadata = Value::Object(Map::new());
    }
    match metadata {
        Value::Object(map) => map,
        _ => unreachable!("it was made an object above"),
    }
}

/// A text field of the metadata; empty where it is missing.
pub fn metadata_str<'a>(value: &'a Value, field: &str) -> &'a str {
    value["metadata"][field].as_str().unwrap_or("")
}

pub fn finalizers(value: &Value) -> Vec<String> {
    let list = value["metadata"]["finalizers"].as_array();
    list.map(|list| list.iter().filter_map(|f| f.as_str().map(str::to_string)).collect())
        .unwrap_or_default()
}

pub(crate) fn causes(errors: Vec<FieldError>) -> Vec<Cause> {
    errors
        .into_iter()
        .map(|error| Cause {
            reason: error.reason.cause().to_string(),
            message: error.message,
            field: error.field,
        })
        .collect()
}
