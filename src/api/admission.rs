//! Plugins between a request and the store: they complete objects, then they may refuse.
//!
//! Never writes to the store.

use std::collections::BTreeMap;
use std::sync::Arc;

use kinds::resources::Resource;
use parking_lot::Mutex;
use serde_json::Value;

use crate::authn::User;
use crate::error::Result;
use crate::registry::{Registry, WriteOptions};

mod configuration;
mod limits;
mod mountable;
mod namespace;
mod node;
mod pod;
pub mod policy;
mod quota;
mod runtime_class;
mod security;
mod signing;
mod storage;
mod webhook;

/// Warnings that one request may bring about.
const WARNINGS_MAX: usize = 100;
/// The plugins that are policies, under upstream's names.
const MUTATING_POLICY: &str = "MutatingAdmissionPolicy";
const QUOTA: &str = "ResourceQuota";
const VALIDATING_POLICY: &str = "ValidatingAdmissionPolicy";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    Create,
    Update,
    Delete,
    /// A stream or a proxied request; the object is its options.
    Connect,
}

/// What plugins say of a request besides yes and no.
#[derive(Debug, Default)]
pub struct Notes {
    said: Mutex<Said>,
}

#[derive(Debug, Default)]
struct Said {
    warnings: Vec<String>,
    annotations: BTreeMap<String, String>,
}

impl Notes {
    /// Tells the client; the same sentence once.
    pub fn warn(&self, text: String) {
        let mut said = self.said.lock();
        if said.warnings.len() < WARNINGS_MAX && !said.warnings.contains(&text) {
            said.warnings.push(text);
        }
    }

    /// Tells the audit log.
    pub fn annotate(&self, key: impl Into<String>, value: String) {
        self.said.lock().annotations.insert(key.into(), value);
    }

    pub fn warnings(&self) -> Vec<String> {
        self.said.lock().warnings.clone()
    }

    pub fn annotations(&self) -> BTreeMap<String, String> {
        self.said.lock().annotations.clone()
    }
}

/// What a plugin is told of a request.
#[derive(Clone)]
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
    pub notes: &'a Notes,
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
    plugin("LimitRanger", Some(limits::set_defaults), Some(limits::validate)),
    plugin("ServiceAccount", Some(pod::service_account), Some(pod::service_account_exists)),
    plugin("NodeRestriction", None, Some(node::restriction)),
    plugin("TaintNodesByCondition", Some(node::taint_new), None),
    plugin("PodSecurity", None, Some(security::validate)),
    plugin("Priority", Some(pod::priority), Some(pod::priority_class)),
    plugin("DefaultTolerationSeconds", Some(pod::default_tolerations), None),
    plugin("DefaultStorageClass", Some(storage::default_class), None),
    plugin("StorageObjectInUseProtection", Some(storage::in_use_protection), None),
    plugin("CertificateApproval", None, Some(signing::approval)),
    plugin("CertificateSigning", None, Some(signing::signing)),
    plugin("CertificateSubjectRestriction", None, Some(signing::subject)),
    plugin("RuntimeClass", Some(runtime_class::merge), Some(runtime_class::validate)),
    // Policies and webhooks change the object after all others, and see it last. The plugins
    // without code here are asked by `Admission` itself.
    plugin(MUTATING_POLICY, None, None),
    plugin("MutatingAdmissionWebhook", None, None),
    plugin(VALIDATING_POLICY, None, Some(policy::validate)),
    plugin("ValidatingAdmissionWebhook", None, None),
    // What is charged is going to be stored.
    plugin(QUOTA, None, None),
];

pub struct Admission {
    plugins: Vec<&'static Plugin>,
    pub policies: policy::Policies,
    webhooks: webhook::Webhooks,
}

impl Default for Admission {
    fn default() -> Self {
        Self {
            plugins: PLUGINS.iter().collect(),
            policies: policy::Policies::default(),
            webhooks: webhook::Webhooks::default(),
        }
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
        Ok(Self { plugins: PLUGINS.iter().filter(kept).collect(), ..Self::default() })
    }

    pub fn mutate(
        &self,
        registry: &Registry,
        attributes: &Attributes<'_>,
        object: &mut Value,
    ) -> Result<()> {
        self.mutate_built_in(registry, attributes, object)?;
        if !self.has(MUTATING_POLICY) {
            return Ok(());
        }
        // After a change everybody looks once more, but not at what that brings about.
        if policy::mutate(registry, attributes, object, false)? {
            self.mutate_built_in(registry, attributes, object)?;
            policy::mutate(registry, attributes, object, true)?;
        }
        Ok(())
    }

    /// What may only be done once everybody agrees: the quotas are charged.
    ///
    /// # Errors
    /// 403 where a quota does not allow it.
    pub async fn charge(
        &self,
        registry: &Registry,
        attributes: &Attributes<'_>,
        object: &Value,
        options: &WriteOptions,
    ) -> Result<()> {
        if !self.has(QUOTA) {
            return Ok(());
        }
        quota::charge(registry, attributes, object, options).await
    }

    /// Whether a request may be done that stores nothing of its own, such as a connection.
    /// Only policies and webhooks look at these.
    pub async fn judge(
        &self,
        registry: &Registry,
        attributes: &Attributes<'_>,
        options: &Value,
    ) -> Result<()> {
        // Policies may be brand new.
        registry.cache.fresh().await?;
        if self.has(VALIDATING_POLICY) {
            policy::validate(registry, attributes, options)?;
        }
        // What they make of the options is not used; that they refuse is.
        self.mutate_by_webhooks(registry, attributes, &mut options.clone()).await?;
        self.validate_by_webhooks(registry, attributes, options).await
    }

    fn has(&self, name: &str) -> bool {
        self.plugins.iter().any(|plugin| plugin.name == name)
    }

    fn mutate_built_in(
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
        configuration::validate(attributes, object)?;
        for plugin in &self.plugins {
            if let Some(validate) = plugin.validate {
                validate(registry, attributes, object)?;
            }
        }
        Ok(())
    }
}
