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
use crate::flags::Flags;
use crate::metrics::admission::Watch;
use crate::registry::{Registry, WriteOptions};

mod claims;
mod configuration;
mod events;
mod features;
mod image_policy;
mod ingress;
mod limits;
mod mountable;
mod namespace;
pub mod node;
mod owners;
mod placement;
mod pod;
pub mod policy;
mod quota;
mod resize;
mod runtime_class;
mod security;
pub mod settings;
pub mod signing;
mod storage;
mod webhook;

/// Warnings that one request may bring about.
const WARNINGS_MAX: usize = 100;
/// The plugins that are policies, under upstream's names.
const MUTATING_POLICY: &str = "MutatingAdmissionPolicy";
const NODE_RESTRICTION: &str = "NodeRestriction";
const QUOTA: &str = "ResourceQuota";
const AUTO_PROVISION: &str = "NamespaceAutoProvision";
const IMAGE_POLICY: &str = "ImagePolicyWebhook";
const VALIDATING_POLICY: &str = "ValidatingAdmissionPolicy";

use settings::Settings;

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
    name: &'static str,
    by_default: bool,
    mutate: Option<Mutate>,
    validate: Option<Validate>,
}

/// A plugin that is asked unless somebody does not want it.
const fn plugin(name: &'static str, mutate: Option<Mutate>, validate: Option<Validate>) -> Plugin {
    Plugin { name, by_default: true, mutate, validate }
}

/// A plugin that is asked where somebody wants it.
const fn extra(name: &'static str, mutate: Option<Mutate>, validate: Option<Validate>) -> Plugin {
    Plugin { name, by_default: false, mutate, validate }
}

/// All plugins in the order they are asked. Those without code here are asked by `Admission`
/// itself, since they wait for somebody.
const PLUGINS: &[Plugin] = &[
    extra("AlwaysAdmit", None, None),
    extra(AUTO_PROVISION, None, None),
    plugin("NamespaceLifecycle", None, Some(namespace::lifecycle)),
    extra("NamespaceExists", None, Some(namespace::exists)),
    extra("LimitPodHardAntiAffinityTopology", None, Some(placement::hard_anti_affinity)),
    plugin("LimitRanger", Some(limits::set_defaults), Some(limits::validate)),
    plugin("ServiceAccount", Some(pod::service_account), Some(pod::service_account_exists)),
    plugin(NODE_RESTRICTION, Some(node::restrict), Some(node::restrict_deletion)),
    plugin("TaintNodesByCondition", Some(node::taint_new), None),
    extra("AlwaysPullImages", Some(pod::always_pull), Some(pod::always_pulled)),
    extra(IMAGE_POLICY, None, None),
    plugin("PodSecurity", None, Some(security::validate)),
    extra("PodNodeSelector", Some(placement::merge_selector), Some(placement::check_selector)),
    plugin("Priority", Some(pod::priority), Some(pod::priority_class)),
    plugin("DefaultTolerationSeconds", Some(pod::default_tolerations), None),
    extra(
        "PodTolerationRestriction",
        Some(placement::merge_tolerations),
        Some(placement::check_tolerations),
    ),
    extra("EventRateLimit", None, Some(events::limit)),
    extra("ExtendedResourceToleration", Some(placement::tolerate_resources), None),
    plugin("DefaultStorageClass", Some(storage::default_class), None),
    plugin("StorageObjectInUseProtection", Some(storage::in_use_protection), None),
    extra("OwnerReferencesPermissionEnforcement", None, Some(owners::may_own)),
    plugin("PersistentVolumeClaimResize", None, Some(storage::resize)),
    plugin("RuntimeClass", Some(runtime_class::merge), Some(runtime_class::validate)),
    plugin("CertificateApproval", None, Some(signing::approval)),
    plugin("CertificateSigning", None, Some(signing::signing)),
    plugin("ClusterTrustBundleAttest", None, Some(signing::attest)),
    plugin("CertificateSubjectRestriction", None, Some(signing::subject)),
    plugin("DefaultIngressClass", Some(ingress::default_class), None),
    extra("DenyServiceExternalIPs", None, Some(ingress::external_addresses)),
    plugin("PodTopologyLabels", Some(placement::topology_labels), None),
    plugin("NodeDeclaredFeatureValidator", None, Some(features::validate)),
    plugin("PodResizeValidator", None, Some(resize::validate)),
    // Policies and webhooks change the object after all others, and see it last.
    plugin(MUTATING_POLICY, None, None),
    plugin("MutatingAdmissionWebhook", None, None),
    plugin(VALIDATING_POLICY, None, Some(policy::validate)),
    plugin("ValidatingAdmissionWebhook", None, None),
    // What is charged is going to be stored.
    plugin(QUOTA, None, None),
    extra("AlwaysDeny", None, Some(namespace::deny)),
];

pub struct Admission {
    plugins: Vec<&'static Plugin>,
    pub policies: policy::Policies,
    webhooks: webhook::Webhooks,
    configured: Configured,
}

/// What the plugins are told by their configuration.
#[derive(Default)]
struct Configured {
    security: security::Defaults,
    placement: placement::Defaults,
    events: events::Limits,
    images: Option<image_policy::ImagePolicy>,
}

impl Default for Admission {
    fn default() -> Self {
        Self {
            plugins: PLUGINS.iter().filter(|plugin| plugin.by_default).collect(),
            policies: policy::Policies::default(),
            webhooks: webhook::Webhooks::default(),
            configured: Configured::default(),
        }
    }
}

impl Admission {
    /// The default plugins without the ones that are not wanted, and the wanted others.
    ///
    /// # Errors
    /// For names that no plugin has, and for configuration that is wrong.
    pub fn with(flags: &Flags) -> std::result::Result<Self, settings::Error> {
        let (on, off) = (&flags.enabled_admission, &flags.disabled_admission);
        for name in on.iter().chain(off) {
            if !PLUGINS.iter().any(|plugin| plugin.name == name) {
                return Err(settings::Error::UnknownPlugin(name.clone()));
            }
        }
        if let Some(name) = on.iter().find(|name| off.contains(name)) {
            return Err(settings::Error::Both(name.clone()));
        }
        let settings = match &flags.admission_file {
            Some(file) => Settings::load(file)?,
            None => Settings::default(),
        };
        if let Some(name) = settings.names().find(|name| !PLUGINS.iter().any(|p| p.name == *name)) {
            return Err(settings::Error::UnknownPlugin(name.to_string()));
        }
        let wanted = |plugin: &&Plugin| {
            let named = |list: &[String]| list.iter().any(|name| name == plugin.name);
            !named(off) && (plugin.by_default || named(on))
        };
        let plugins: Vec<&'static Plugin> = PLUGINS.iter().filter(wanted).collect();
        let has = |name: &str| plugins.iter().any(|plugin| plugin.name == name);
        let wrong = |plugin: &str| {
            let plugin = plugin.to_string();
            move |why: String| settings::Error::Wrong(plugin, why)
        };
        let configured = Configured {
            security: security::Defaults::read(settings.of("PodSecurity"))
                .map_err(wrong("PodSecurity"))?,
            placement: placement::Defaults::read(&settings).map_err(wrong("pods' placement"))?,
            events: events::Limits::read(settings.of("EventRateLimit"))
                .map_err(wrong("EventRateLimit"))?,
            images: match has(IMAGE_POLICY) {
                true => {
                    Some(image_policy::ImagePolicy::read(&settings).map_err(wrong(IMAGE_POLICY))?)
                }
                false => None,
            },
        };
        Ok(Self { plugins, configured, ..Self::default() })
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
    /// Only policies and webhooks look at these, and what a node may do.
    pub async fn judge(
        &self,
        registry: &Registry,
        attributes: &Attributes<'_>,
        options: &Value,
    ) -> Result<()> {
        // Policies may be brand new.
        registry.cache.fresh().await?;
        if self.has(NODE_RESTRICTION) {
            node::restrict(registry, attributes, &mut options.clone())?;
        }
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
        let mut watch = Watch::start("admit", attributes.operation);
        for plugin in &self.plugins {
            if let Some(mutate) = plugin.mutate {
                let done = mutate(registry, attributes, object);
                watch.plugin(plugin.name, done.is_err());
                if done.is_err() {
                    watch.step(true);
                    return done;
                }
            }
        }
        watch.step(false);
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
        claims::validate(registry, attributes, object)?;
        let mut watch = Watch::start("validate", attributes.operation);
        for plugin in &self.plugins {
            if let Some(validate) = plugin.validate {
                let done = validate(registry, attributes, object);
                watch.plugin(plugin.name, done.is_err());
                if done.is_err() {
                    watch.step(true);
                    return done;
                }
            }
        }
        watch.step(false);
        Ok(())
    }
}
