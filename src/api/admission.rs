//! Plugins between a request and the store: they complete objects, then they may refuse.
//!
//! Never writes to the store.

use std::sync::Arc;

use kinds::resources::Resource;
use serde_json::Value;

use crate::authn::User;
use crate::error::Result;
use crate::registry::Registry;

mod namespace;
mod node;
mod pod;
mod storage;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    Create,
    Update,
    Delete,
}

/// What a plugin is told of a request.
pub struct Attributes<'a> {
    pub operation: Operation,
    pub resource: &'a Arc<Resource>,
    pub version: &'a str,
    pub namespace: &'a str,
    /// Empty for a creation that lets the server choose the name.
    pub name: &'a str,
    pub subresource: &'a str,
    pub user: &'a Arc<User>,
    pub dry_run: bool,
    pub old: Option<&'a Value>,
}

impl Attributes<'_> {
    /// Whether the request is about objects of this resource themselves.
    pub fn is(&self, group: &str, plural: &str) -> bool {
        self.resource.group == group
            && self.resource.plural == plural
            && self.subresource.is_empty()
    }

    pub fn forbidden(&self, why: impl Into<String>) -> crate::error::ApiError {
        crate::error::ApiError::forbidden(
            &self.resource.group,
            &self.resource.plural,
            self.name,
            &why.into(),
        )
    }
}

type Mutate = fn(&Registry, &Attributes<'_>, &mut Value) -> Result<()>;
type Validate = fn(&Registry, &Attributes<'_>, &Value) -> Result<()>;

/// One plugin under upstream's name.
pub struct Plugin {
    pub name: &'static str,
    mutate: Option<Mutate>,
    validate: Option<Validate>,
}

const fn plugin(name: &'static str, mutate: Option<Mutate>, validate: Option<Validate>) -> Plugin {
    Plugin { name, mutate, validate }
}

/// The default plugins in the order they are asked.
const PLUGINS: &[Plugin] = &[
    plugin("NamespaceLifecycle", None, Some(namespace::lifecycle)),
    plugin("ServiceAccount", Some(pod::service_account), Some(pod::service_account_exists)),
    plugin("NodeRestriction", None, Some(node::restriction)),
    plugin("TaintNodesByCondition", Some(node::taint_new), None),
    plugin("Priority", Some(pod::priority), Some(pod::priority_class)),
    plugin("DefaultTolerationSeconds", Some(pod::default_tolerations), None),
    plugin("DefaultStorageClass", Some(storage::default_class), None),
    plugin("StorageObjectInUseProtection", Some(storage::in_use_protection), None),
];

pub struct Admission {
    plugins: Vec<&'static Plugin>,
}

impl Default for Admission {
    fn default() -> Self {
        Self { plugins: PLUGINS.iter().collect() }
    }
}

impl Admission {
    /// The default plugins without the named ones.
    ///
    /// # Errors
    /// The first name that no plugin has.
    pub fn without(disabled: &[String]) -> std::result::Result<Self, String> {
        for name in disabled {
            if !PLUGINS.iter().any(|plugin| plugin.name == name) {
                return Err(name.clone());
            }
        }
        let kept = |plugin: &&Plugin| !disabled.iter().any(|name| name == plugin.name);
        Ok(Self { plugins: PLUGINS.iter().filter(kept).collect() })
    }

    pub fn mutate(
        &self,
        registry: &Registry,
        attributes: &Attributes<'_>,
        object: &mut Value,
    ) -> Result<()> {
        for plugin in &self.plugins {
            if let Some(mutate) = plugin.mutate {
                mutate(registry, attributes, object)?;
            }
        }
        Ok(())
    }

    /// `object` is null for deletions.
    pub fn validate(
        &self,
        registry: &Registry,
        attributes: &Attributes<'_>,
        object: &Value,
    ) -> Result<()> {
        for plugin in &self.plugins {
            if let Some(validate) = plugin.validate {
                validate(registry, attributes, object)?;
            }
        }
        Ok(())
    }
}
