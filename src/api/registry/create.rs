//! Creating objects.

use bytes::Bytes;
use serde_json::{Value, json};
use store::{Outcome, Write};

use super::update::Written;
use super::{Registry, Target, WriteOptions, causes, metadata_mut, metadata_str, set_revision};
use super::{certificates, selectors};
use crate::admission::Operation;
use crate::authz::escalation;
use crate::change::apply::{Writer, update_managed_fields};
use crate::crd;
use crate::error::{ApiError, Result};

/// Names drawn for a generateName before giving up.
const GENERATED_NAMES_MAX: usize = 8;
/// A generated name's stem is cut so that the whole fits a DNS label (63 characters).
const GENERATED_STEM_MAX: usize = 58;

impl Registry {
    /// Creates `object`, which is in the target's version. Returns it as stored.
    ///
    /// # Errors
    /// 409 AlreadyExists, 422 Invalid, 403 from admission, 404 for a missing namespace.
    pub async fn create(
        &self,
        target: &Target,
        object: Value,
        options: &WriteOptions,
    ) -> Result<Written> {
        let generated = metadata_str(&object, "name").is_empty()
            && !metadata_str(&object, "generateName").is_empty();
        if !generated {
            return self.create_once(target, object, options, None).await;
        }
        let mut tries = GENERATED_NAMES_MAX;
        loop {
            tries -= 1;
            match self.create_once(target, object.clone(), options, None).await {
                Err(error) if error.reason == "AlreadyExists" && tries > 0 => {}
                Err(mut error) if error.reason == "AlreadyExists" => {
                    error.message = format!(
                        "{}, the server was not able to generate a unique name for the object",
                        error.message
                    );
                    return Err(error);
                }
                other => return other,
            }
        }
    }

    /// `managed`: the writer has accounted for its fields already (server-side apply).
    pub(crate) async fn create_once(
        &self,
        target: &Target,
        mut object: Value,
        options: &WriteOptions,
        managed: Option<()>,
    ) -> Result<Written> {
        let resource = &target.resource;
        if !metadata_str(&object, "resourceVersion").is_empty() {
            return Err(ApiError::new(
                500,
                "",
                "resourceVersion should not be set on objects to be created",
            ));
        }
        let now = base::time::rfc3339(base::time::now());
        prepare_metadata(&mut object, target, &now);
        let target = &Target { name: metadata_str(&object, "name").to_string(), ..target.clone() };

        let attributes = self.attributes(target, options, Operation::Create, None);
        let rules = target.rules();
        (rules.default)(&mut object);
        if managed.is_none() {
            let reset = super::update::reset(target);
            let api_version = target.api_version();
            let writer = Writer {
                manager: &options.manager,
                api_version: &api_version,
                subresource: "",
                now: &now,
                reset,
            };
            update_managed_fields(None, &mut object, target.typed(), &writer);
        }
        if is_signing_request(resource) {
            set_requester(&mut object, &options.user);
        }
        // Admission looks at namespaces, accounts and classes that may be brand new.
        self.cache.fresh().await?;
        crd::accept::check_terminating(target)?;
        self.admission.mutate(self, &attributes, &mut object)?;
        self.admission.mutate_by_webhooks(self, &attributes, &mut object).await?;
        escalation::check(&self.authorizer, &attributes, &target.name, &object)?;
        (rules.default)(&mut object);
        (rules.prepare_create)(&mut object);
        self.drop_disabled(resource, &mut object, None);
        crd::accept::prepare_create(target, &mut object);
        target.normalise(&mut object);
        // Statuses have defaults too.
        (rules.default)(&mut object);
        let allocated = self.allocator.allocate(target, &mut object, None, options.dry_run)?;
        let mut checked = self.check_create(target, &object, &attributes);
        if checked.is_ok() {
            checked = self.admission.validate_by_webhooks(self, &attributes, &object).await;
        }
        if checked.is_ok() {
            checked = self.admission.charge(self, &attributes, &object, options).await;
        }
        if let Err(error) = checked {
            self.allocator.release(allocated);
            return Err(error);
        }
        if options.dry_run {
            self.allocator.release(allocated);
            let key = target.key()?;
            self.cache.fresh().await?;
            if self.cache.get(target.prefix()?, &key).is_some() {
                return Err(ApiError::already_exists(resource, &target.name));
            }
            return Ok(made(object, None));
        }
        let stored = crd::convert::store(&self.cache, resource, &target.version, &mut object).await;
        let (value, back) = match stored {
            Ok(stored) => stored,
            Err(error) => {
                self.allocator.release(allocated);
                return Err(error);
            }
        };
        if let Err(error) = self.place(target, &allocated).await {
            self.allocator.release(allocated);
            return Err(error);
        }
        let write = Write::Create { key: target.key()?, value: value.clone() };
        match self.store().write(write, super::durability(resource)).await {
            Ok(Outcome::Done(revision)) => {
                let mut object = back.unwrap_or(object);
                set_revision(&mut object, revision);
                self.created(target).await;
                Ok(made(object, super::line(target, &value, revision)))
            }
            Ok(Outcome::Conflict(there)) => {
                self.give_back(target, allocated).await;
                let deleting = there.is_some_and(|kv| {
                    serde_json::from_slice::<Value>(&kv.value)
                        .is_ok_and(|value| !metadata_str(&value, "deletionTimestamp").is_empty())
                });
                let mut error = ApiError::already_exists(resource, &target.name);
                if deleting {
                    error.message = format!("object is being deleted: {}", error.message);
                }
                Err(error)
            }
            Err(error) => {
                self.give_back(target, allocated).await;
                Err(error.into())
            }
        }
    }

    fn check_create(
        &self,
        target: &Target,
        object: &Value,
        attributes: &crate::admission::Attributes<'_>,
    ) -> Result<()> {
        if target.resource.custom {
            crd::accept::check_create(target, object)?;
            return self.admission.validate(self, attributes, object);
        }
        let mut errors = target.rules().check_create(object);
        if target.is_definition() {
            errors.retain(|error| !crd::instance::is_about_domain(error));
            errors.extend(crd::definition::create(object));
        }
        let resource = &target.resource;
        errors.extend(selectors::check(&resource.group, &resource.kind, object, None));
        certificates::check_create(resource, object, &mut errors);
        if !errors.is_empty() {
            return Err(ApiError::invalid(&target.resource, &target.name, &causes(errors)));
        }
        self.admission.validate(self, attributes, object)
    }
}

fn made(object: Value, line: Option<Bytes>) -> Written {
    Written { object, line, created: true, warnings: Vec::new() }
}

pub(super) fn is_signing_request(resource: &kinds::resources::Resource) -> bool {
    resource.group == "certificates.k8s.io" && resource.plural == "certificatesigningrequests"
}

/// The fields of a signing request that say who asks.
const REQUESTER: [&str; 4] = ["username", "uid", "groups", "extra"];

/// Who asks for a certificate is what the server knows, whatever the request says.
fn set_requester(request: &mut Value, user: &crate::authn::User) {
    let known = crate::authn::user_info(user);
    let Some(spec) = request.get_mut("spec").and_then(Value::as_object_mut) else { return };
    for field in REQUESTER {
        match known.get(field).filter(|value| !value.is_null()) {
            Some(value) => spec.insert(field.into(), value.clone()),
            None => spec.shift_remove(field),
        };
    }
}

/// Sets what the server decides of an object's identity.
fn prepare_metadata(object: &mut Value, target: &Target, now: &str) {
    let resource = &target.resource;
    object["apiVersion"] = target.api_version().into();
    object["kind"] = resource.kind.as_str().into();
    let metadata = metadata_mut(object);
    let generate = metadata.get("generateName").and_then(Value::as_str).unwrap_or("").to_string();
    let unnamed = metadata.get("name").and_then(Value::as_str).unwrap_or("").is_empty();
    if unnamed && !generate.is_empty() {
        let stem: String = generate.chars().take(GENERATED_STEM_MAX).collect();
        metadata.insert("name".into(), format!("{stem}{}", base::rng::suffix(5)).into());
    }
    if resource.namespaced {
        metadata.insert("namespace".into(), target.namespace.as_str().into());
    } else {
        metadata.shift_remove("namespace");
    }
    for field in ["deletionTimestamp", "deletionGracePeriodSeconds", "selfLink", "resourceVersion"]
    {
        metadata.shift_remove(field);
    }
    metadata.insert("uid".into(), base::rng::uuid().into());
    metadata.insert("creationTimestamp".into(), now.into());
    if resource.custom || !target.rules().generation_fields.is_empty() {
        metadata.insert("generation".into(), json!(1));
    }
}
