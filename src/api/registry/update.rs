//! Changing objects: PUT, the four kinds of patches, and writes to subresources.

use bytes::Bytes;
use kinds::validate::{devices, pod_parts};
use serde_json::Value;
use store::{Outcome, Write};

use super::selectors;
use super::{
    CONFLICT_RETRIES_MAX, FieldValidation, Registry, Target, WriteOptions, causes, certificates,
    convert, finalizers, metadata_mut, metadata_str, patch, set_revision, shown, signing,
};
use crate::admission::Operation;
use crate::authz::escalation;
use crate::change::apply::{ApplyError, Writer, apply, reset_fields, update_managed_fields};
use crate::change::{PatchError, go_diff};
use crate::crd;
use crate::error::{ApiError, Cause, Result};
use crate::scheme::Schema;

/// Metadata that only the server sets.
const SERVER_METADATA: [&str; 6] = [
    "uid",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "generation",
    "selfLink",
];

/// A change to make.
pub enum Change {
    /// The whole object.
    Put(Value),
    Json(Value),
    Merge(Value),
    Strategic(Value),
    Apply(Value),
    /// A change of the server's own making, given the live object.
    Edit(Box<Edit>),
}

pub type Edit = dyn Fn(&Value) -> Result<Value> + Send + Sync;

/// What became of a write.
pub struct Written {
    pub object: Value,
    /// As a GET would send it, where the version that was written is the one that is stored.
    pub line: Option<Bytes>,
    pub created: bool,
    /// Of what a patch brought that the kind does not have.
    pub warnings: Vec<String>,
}

impl Registry {
    /// Makes a change to the target, or to its subresource.
    pub async fn update(
        &self,
        target: &Target,
        mut change: Change,
        options: &WriteOptions,
    ) -> Result<Written> {
        let mut tries = 0;
        loop {
            self.cache.fresh().await?;
            let live = self.cache.get(target.prefix()?, &target.key()?);
            let Some(live) = live else {
                return self.create_by_update(target, &change, options).await;
            };
            let stale = crd::convert::is_stale(&self.cache, &target.resource, &live).await?;
            let live = self.show(target, live).await?;
            let mut warnings = Vec::new();
            let updated =
                self.update_once(target, &live, stale, &mut change, options, &mut warnings).await?;
            match updated {
                Some((object, line)) => {
                    return Ok(Written { object, line, created: false, warnings });
                }
                None => {
                    tries += 1;
                    if tries >= CONFLICT_RETRIES_MAX {
                        return Err(ApiError::modified(&target.resource, &target.name));
                    }
                }
            }
        }
    }

    async fn create_by_update(
        &self,
        target: &Target,
        change: &Change,
        options: &WriteOptions,
    ) -> Result<Written> {
        let missing = || ApiError::not_found(&target.resource, &target.name);
        if !target.subresource.is_empty() {
            return Err(missing());
        }
        let mut warnings = Vec::new();
        let (object, managed) = match change {
            Change::Put(object) if target.rules().create_on_update => {
                if !metadata_str(object, "uid").is_empty() {
                    return Err(ApiError::conflict(
                        &target.resource,
                        &target.name,
                        &format!(
                            "Precondition failed: UID in precondition: {}, UID in object meta: ",
                            metadata_str(object, "uid")
                        ),
                    ));
                }
                let mut object = object.clone();
                metadata_mut(&mut object).shift_remove("resourceVersion");
                (object, None)
            }
            Change::Apply(config) => {
                let mut object = self.apply(target, None, config, options)?;
                warnings = doubled_keys(options)?;
                let mode = options.validation;
                warnings.extend(crd::accept::patched(target, &mut object, mode, &[])?);
                (object, Some(()))
            }
            Change::Put(_)
            | Change::Json(_)
            | Change::Merge(_)
            | Change::Strategic(_)
            | Change::Edit(_) => {
                return Err(missing());
            }
        };
        let created = self.create_once(target, object, options, managed).await?;
        Ok(Written { warnings, ..created })
    }

    /// None when another writer was faster and the change may be tried again.
    async fn update_once(
        &self,
        target: &Target,
        stored: &crate::cache::Object,
        stale: bool,
        change: &mut Change,
        options: &WriteOptions,
        warnings: &mut Vec<String>,
    ) -> Result<Option<(Value, Option<Bytes>)>> {
        let resource = &target.resource;
        let live = convert::from_storage(stored.value(), resource, &target.version);
        let (mut new, of_patch) = self.changed(target, &live, change, options)?;
        warnings.extend(of_patch);
        let of_text = match change {
            Change::Json(_) | Change::Merge(_) => Some(options.strict_errors.as_slice()),
            Change::Apply(_) => Some(&[][..]),
            Change::Put(_) | Change::Strategic(_) | Change::Edit(_) => None,
        };
        if let Some(errors) = of_text {
            let mode = options.validation;
            warnings.extend(crd::accept::patched(target, &mut new, mode, errors)?);
        }
        let expects_version = check_preconditions(target, &live, &new, change)?;

        inherit_metadata(&mut new, &live, target);
        target.normalise(&mut new);
        let rules = target.rules();
        (rules.default)(&mut new);
        // Who scales has been accounted for, and who evicts owns nothing.
        let accounted = matches!(target.subresource.as_str(), "scale" | "eviction");
        if !matches!(change, Change::Apply(_)) && !accounted {
            self.account(target, &live, &mut new, options);
        }
        // Who asks in vain for a change may come to own the field all the same.
        keep_other_half(&mut new, &live, target);
        let is_request = super::create::is_signing_request(resource);
        if is_request && !target.subresource.is_empty() {
            let now = base::time::rfc3339(base::time::now());
            signing::stamp(&mut new, &live, &now);
        }
        target.normalise(&mut new);
        (rules.default)(&mut new);
        self.drop_disabled(resource, &mut new, Some(&live));
        let attributes = self.attributes(target, options, Operation::Update, Some(&live));
        self.admission.mutate(self, &attributes, &mut new)?;
        self.admission.mutate_by_webhooks(self, &attributes, &mut new).await?;
        escalation::check(&self.authorizer, &attributes, &target.name, &new)?;
        (rules.default)(&mut new);
        crd::accept::complete(target, &mut new);
        if target.is_definition() && target.subresource.is_empty() {
            crd::definition::remember_storage_version(&mut new);
        }
        bump_generation(&mut new, &live, target);
        let allocated = self.allocator.allocate(target, &mut new, Some(&live), options.dry_run)?;
        match crd::accept::check_update(target, &new, &live) {
            Ok(let_through) => warnings.extend(let_through),
            Err(error) => {
                self.allocator.release(allocated);
                return Err(error);
            }
        }
        let mut errors = match target.subresource.as_str() {
            _ if resource.custom => Vec::new(),
            "" | "status" if target.is_definition() => {
                warnings.extend(crd::definition::warnings(&new, Some(&live)));
                let mut errors = rules.check_update(&new, &live);
                errors.retain(|error| !crd::instance::is_about_domain(error));
                errors.extend(match target.subresource.as_str() {
                    "" => crd::definition::update(&new, &live),
                    _ => crd::definition::status_update(&new),
                });
                errors
            }
            // Upstream looks at the metadata of all kinds before each kind does it again.
            "" | "status" | "scale" | "approval" => {
                let mut errors = rules.check_metadata_update(&new, &live);
                errors.extend(rules.check_update(&new, &live));
                errors.extend(selectors::check(&resource.group, &resource.kind, &new, Some(&live)));
                if is_request && !target.subresource.is_empty() {
                    errors.extend(signing::check(&new, &live, &target.subresource));
                }
                errors.extend(match (target.subresource.as_str(), resource.kind.as_str()) {
                    ("status", "Pod") => pod_parts::status(&new),
                    ("status", "ResourceClaim") => devices::claim_status(&new, &live),
                    ("", "ClusterTrustBundle") => certificates::bundle_update(&new, &live),
                    ("status", "PodCertificateRequest") => {
                        certificates::status_update(self, &attributes, &new, &live)
                    }
                    _ => Vec::new(),
                });
                errors
            }
            "ephemeralcontainers" => pod_parts::ephemeral_containers(&new, &live, |old, new| {
                let name = "io.k8s.api.core.v1.EphemeralContainer";
                let typed = Schema::built_in().definition(name).unwrap_or_else(Schema::untyped);
                go_diff::diff(old, new, typed)
            }),
            "resize" => pod_parts::resize(&new, &live),
            // What these may change was decided when they were read.
            _ => kinds::meta::object::validate_update(&new, &live),
        };
        if !errors.is_empty() {
            self.allocator.release(allocated);
            shown::complete(target, &new, &mut errors);
            return Err(ApiError::invalid(resource, &target.name, &causes(errors)));
        }
        if let Err(error) = self.admission.validate(self, &attributes, &new) {
            self.allocator.release(allocated);
            return Err(error);
        }
        let mut asked = self.admission.validate_by_webhooks(self, &attributes, &new).await;
        if asked.is_ok() {
            asked = self.admission.charge(self, &attributes, &new, options).await;
        }
        if let Err(error) = asked {
            self.allocator.release(allocated);
            return Err(error);
        }
        if target.resource.custom && target.subresource.is_empty() {
            warnings.extend(crd::instance::finalizer_warnings(&new, Some(&live)));
        }
        if target.subresource.is_empty() {
            let (group, kind) = (&resource.group, &resource.kind);
            warnings.extend(kinds::warnings::of(group, kind, &new, Some(&live)));
        }
        // What is stored in an older form is written anew, even if nothing changes: so
        // objects move to another storage version.
        if !stale && unchanged(&new, &live) {
            self.allocator.release(allocated);
            let line = super::is_plain(target).then(|| stored.line.clone());
            return Ok(Some((live, line)));
        }
        if options.dry_run {
            self.allocator.release(allocated);
            return Ok(Some((new, None)));
        }
        let (key, expected) = (stored.key.to_string(), stored.revision);
        let mut bytes = None;
        let write = if is_released(&new, target) {
            Write::Delete { key, expected }
        } else {
            let converted =
                crd::convert::store(&self.cache, resource, &target.version, &mut new).await;
            let (value, back) = match converted {
                Ok(converted) => converted,
                Err(error) => {
                    self.allocator.release(allocated);
                    return Err(error);
                }
            };
            new = back.unwrap_or(new);
            bytes = Some(value.clone());
            Write::Update { key, value, expected }
        };
        let deletes = matches!(write, Write::Delete { .. });
        if let Err(error) = self.place(target, &allocated).await {
            self.allocator.release(allocated);
            return Err(error);
        }
        match self.store().write(write, super::durability(resource)).await {
            Ok(Outcome::Done(revision)) => {
                self.freed(target, &live, (!deletes).then_some(&new)).await;
                if !deletes {
                    set_revision(&mut new, revision);
                }
                let line = bytes.and_then(|bytes| super::line(target, &bytes, revision));
                Ok(Some((new, line)))
            }
            Ok(Outcome::Conflict(_)) => {
                self.give_back(target, allocated).await;
                if expects_version {
                    return Err(ApiError::modified(resource, &target.name));
                }
                Ok(None)
            }
            Err(error) => {
                self.give_back(target, allocated).await;
                Err(error.into())
            }
        }
    }

    /// The object that the change asks for, before the server's own rules, and warnings.
    fn changed(
        &self,
        target: &Target,
        live: &Value,
        change: &mut Change,
        options: &WriteOptions,
    ) -> Result<(Value, Vec<String>)> {
        match change {
            // Who names a version has one try.
            Change::Put(object) if names_version(object) => {
                Ok((std::mem::take(object), Vec::new()))
            }
            Change::Put(object) => Ok((object.clone(), Vec::new())),
            Change::Edit(edit) => Ok((edit(live)?, Vec::new())),
            Change::Apply(config) => {
                let applied = self.apply(target, Some(live), config, options)?;
                Ok((applied, doubled_keys(options)?))
            }
            Change::Json(_) | Change::Merge(_) | Change::Strategic(_) => {
                patch::patched(target, live, change, options)
            }
        }
    }

    fn apply(
        &self,
        target: &Target,
        live: Option<&Value>,
        config: &Value,
        options: &WriteOptions,
    ) -> Result<Value> {
        let now = base::time::rfc3339(base::time::now());
        let api_version = target.api_version();
        let writer = Writer {
            manager: &options.manager,
            api_version: &api_version,
            subresource: &target.subresource,
            now: &now,
            reset: reset(target),
        };
        apply(live, config, target.typed(), &writer, options.force).map_err(apply_error)
    }

    /// Records the writer as owner of what it changed.
    fn account(&self, target: &Target, live: &Value, new: &mut Value, options: &WriteOptions) {
        let now = base::time::rfc3339(base::time::now());
        let api_version = target.api_version();
        let writer = Writer {
            manager: &options.manager,
            api_version: &api_version,
            subresource: &target.subresource,
            now: &now,
            reset: reset(target),
        };
        update_managed_fields(Some(live), new, target.typed(), &writer);
    }
}

/// An applied text that names a key twice: warnings, for who does not ignore it.
///
/// # Errors
/// 400 for strict clients.
fn doubled_keys(options: &WriteOptions) -> Result<Vec<String>> {
    let doubled = &options.strict_errors;
    match options.validation {
        FieldValidation::Strict if !doubled.is_empty() => Err(ApiError::bad_request(format!(
            "error strict decoding YAML: error converting YAML to JSON: yaml: unmarshal errors:\n  {}",
            doubled.join("\n  ")
        ))),
        FieldValidation::Ignore | FieldValidation::Strict => Ok(Vec::new()),
        FieldValidation::Warn => Ok(doubled.clone()),
    }
}

pub(super) fn reset(target: &Target) -> &'static [&'static [&'static str]] {
    let resource = &target.resource;
    if resource.custom && target.subresource == "status" {
        return &[&["metadata"], &["spec"]];
    }
    reset_fields(&resource.group, &resource.kind, target.has_status(), &target.subresource)
}

pub(super) fn is_deeper(value: &Value, bound: usize) -> bool {
    match value {
        Value::Object(map) => bound == 0 || map.values().any(|below| is_deeper(below, bound - 1)),
        Value::Array(items) => bound == 0 || items.iter().any(|below| is_deeper(below, bound - 1)),
        _ => false,
    }
}

/// 0 is no version of an object, so it asks for none.
fn names_version(object: &Value) -> bool {
    !matches!(metadata_str(object, "resourceVersion"), "" | "0")
}

/// True if the caller named the version it means to change.
fn check_preconditions(
    target: &Target,
    live: &Value,
    new: &Value,
    change: &Change,
) -> Result<bool> {
    let resource = &target.resource;
    let name = metadata_str(new, "name");
    let named = !name.is_empty() || matches!(change, Change::Put(_));
    if named && name != target.name {
        return Err(ApiError::bad_request(format!(
            "the name of the object ({name}) does not match the name on the URL ({})",
            target.name
        )));
    }
    let uid = metadata_str(new, "uid");
    if !uid.is_empty() && uid != metadata_str(live, "uid") {
        if !matches!(change, Change::Put(_) | Change::Edit(_)) {
            // What a patch makes of it is a change of a field that never changes.
            let cause = Cause {
                reason: "FieldValueInvalid".into(),
                message: format!("Invalid value: {uid:?}: field is immutable"),
                field: "metadata.uid".into(),
            };
            return Err(ApiError::invalid(resource, &target.name, &[cause.clone(), cause]));
        }
        return Err(precondition(target, "UID", uid, metadata_str(live, "uid")));
    }
    let version = metadata_str(new, "resourceVersion");
    if !names_version(new) {
        if matches!(change, Change::Put(_)) && !target.rules().unconditional_update {
            let cause = Cause {
                reason: "FieldValueInvalid".into(),
                message: "Invalid value: 0: must be specified for an update".into(),
                field: "metadata.resourceVersion".into(),
            };
            // Upstream names the resource here, not the kind.
            let named = kinds::resources::Resource {
                kind: resource.plural.clone(),
                ..(**resource).clone()
            };
            return Err(ApiError::invalid(&named, &target.name, &[cause]));
        }
        return Ok(false);
    }
    if version.parse::<u64>().is_err() {
        return Err(ApiError::new(
            500,
            "",
            format!("strconv.ParseUint: parsing {version:?}: invalid syntax"),
        ));
    }
    if version != metadata_str(live, "resourceVersion") {
        return Err(ApiError::modified(resource, &target.name));
    }
    // A patch carries the live version along without meaning to.
    Ok(matches!(change, Change::Put(_)))
}

/// 409 in the words of upstream's storage; `field` is `UID` or `ResourceVersion`.
pub fn precondition(target: &Target, field: &str, wanted: &str, is: &str) -> ApiError {
    let (resource, name) = (&target.resource, &target.name);
    let key = target.key().unwrap_or_default();
    ApiError::conflict(
        resource,
        name,
        &format!(
            "StorageError: invalid object, Code: 4, Key: {key}, ResourceVersion: 0, AdditionalErrorMsg: Precondition failed: {field} in precondition: {wanted}, {field} in object meta: {is}"
        ),
    )
}

fn inherit_metadata(new: &mut Value, live: &Value, target: &Target) {
    new["apiVersion"] = target.api_version().into();
    new["kind"] = target.resource.kind.as_str().into();
    let old = &live["metadata"];
    let metadata = metadata_mut(new);
    for field in SERVER_METADATA {
        match old.get(field) {
            Some(value) => drop(metadata.insert(field.into(), value.clone())),
            // Who sets it by hand is told that it cannot be changed.
            None if field == "deletionTimestamp" => {}
            None => drop(metadata.shift_remove(field)),
        }
    }
    metadata.insert("name".into(), target.name.as_str().into());
    if let Some(namespace) = old.get("namespace") {
        metadata.insert("namespace".into(), namespace.clone());
    }
    if let Some(version) = old.get("resourceVersion") {
        metadata.insert("resourceVersion".into(), version.clone());
    }
    if metadata.get("managedFields").is_none()
        && let Some(managed) = old.get("managedFields")
    {
        metadata.insert("managedFields".into(), managed.clone());
    }
}

/// A write to the object leaves its status alone, and a write to a subresource leaves
/// everything else alone.
fn keep_other_half(new: &mut Value, live: &Value, target: &Target) {
    let rules = target.rules();
    match target.subresource.as_str() {
        "" if target.resource.custom && target.has_status() => copy_field(new, live, "status"),
        "" if target.resource.custom => {}
        "" => {
            (rules.prepare_update)(new, live);
            let resource = &target.resource;
            if resource.group.is_empty() && resource.plural == "namespaces" {
                // Only `finalize` may say that a namespace has been emptied.
                copy_field(&mut new["spec"], &live["spec"], "finalizers");
            }
            if super::create::is_signing_request(resource) {
                // A request is signed as it was made.
                copy_field(new, live, "spec");
            }
        }
        "ephemeralcontainers" => keep_but(new, live, &["ephemeralContainers"]),
        "finalize" => keep_but(new, live, &["finalizers"]),
        "resize" => {
            let wanted = new["spec"].clone();
            keep_but(new, live, &["resources"]);
            for list in ["containers", "initContainers"] {
                let count = |spec: &Value| spec[list].as_array().map_or(0, Vec::len);
                if count(&wanted) != count(&new["spec"]) {
                    // That is refused, not left alone.
                    copy_field(&mut new["spec"], &wanted, list);
                    continue;
                }
                let containers = new["spec"][list].as_array_mut().into_iter().flatten();
                for (at, container) in containers.enumerate() {
                    for field in ["name", "resources", "resizePolicy"] {
                        copy_field(container, &wanted[list][at], field);
                    }
                }
            }
        }
        "approval" => {
            let conditions = new["status"]["conditions"].clone();
            copy_field(new, live, "spec");
            copy_field(new, live, "status");
            // Who sends none takes them away, which is checked like any other change.
            if !conditions.is_null() {
                new["status"]["conditions"] = conditions;
            } else if let Some(status) = new.get_mut("status").and_then(Value::as_object_mut) {
                status.shift_remove("conditions");
            }
        }
        "status" if target.resource.custom => {
            let status = new.get("status").cloned();
            keep_but(new, live, &[]);
            copy_field(new, &serde_json::json!({"status": status}), "status");
        }
        "status" => (rules.prepare_status_update)(new, live),
        _ => {}
    }
}

/// The live object with only these fields of the new spec, and its record of managers.
fn keep_but(new: &mut Value, live: &Value, spec_fields: &[&str]) {
    let wanted = std::mem::replace(new, live.clone());
    copy_field(&mut new["metadata"], &wanted["metadata"], "managedFields");
    for field in spec_fields {
        copy_field(&mut new["spec"], &wanted["spec"], field);
    }
}

fn copy_field(new: &mut Value, live: &Value, field: &str) {
    match live.get(field) {
        Some(value) => new[field] = value.clone(),
        None => {
            if let Value::Object(map) = new {
                map.shift_remove(field);
            }
        }
    }
}

/// A new generation for a new desired state.
fn bump_generation(new: &mut Value, live: &Value, target: &Target) {
    // What was seen of an object is no new wish.
    if target.subresource == "status" {
        return;
    }
    let changed = if target.resource.custom {
        let own: &[&str] = if target.has_status() {
            &["metadata", "status", "apiVersion", "kind"]
        } else {
            &["metadata", "apiVersion", "kind"]
        };
        !same_but(new, live, own)
    } else {
        target.rules().is_new_generation(new, live)
    };
    if changed {
        let generation = live["metadata"]["generation"].as_i64().unwrap_or(0);
        metadata_mut(new).insert("generation".into(), (generation + 1).into());
    }
}

/// Whether two objects are equal but for some top-level fields.
fn same_but(a: &Value, b: &Value, fields: &[&str]) -> bool {
    let (Value::Object(a), Value::Object(b)) = (a, b) else { return a == b };
    let counts = |key: &String| !fields.contains(&key.as_str());
    a.keys().filter(|key| counts(key)).count() == b.keys().filter(|key| counts(key)).count()
        && a.iter().all(|(key, value)| !counts(key) || b.get(key) == Some(value))
}

/// Equal but for the times in managedFields.
fn unchanged(new: &Value, live: &Value) -> bool {
    fn entries(object: &Value) -> &[Value] {
        object["metadata"]["managedFields"].as_array().map(Vec::as_slice).unwrap_or_default()
    }
    same_but(new, live, &["metadata"])
        && same_but(&new["metadata"], &live["metadata"], &["managedFields"])
        && entries(new).len() == entries(live).len()
        && entries(new).iter().zip(entries(live)).all(|(a, b)| same_but(a, b, &["time"]))
}

/// A deleted object goes for good when its last finalizer has gone.
fn is_released(new: &Value, target: &Target) -> bool {
    if metadata_str(new, "deletionTimestamp").is_empty() || !finalizers(new).is_empty() {
        return false;
    }
    if new["metadata"]["deletionGracePeriodSeconds"].as_i64().unwrap_or(0) != 0 {
        return false;
    }
    if target.resource.group.is_empty() && target.resource.plural == "namespaces" {
        return new["spec"]["finalizers"].as_array().is_none_or(Vec::is_empty);
    }
    true
}

pub(crate) fn patch_error(error: &PatchError) -> ApiError {
    match error {
        PatchError::Decode(_) => ApiError::bad_request(error.to_string()),
        PatchError::Rejected => {
            let mut rejected = ApiError::new(422, "Invalid", error.to_string());
            rejected.details = Some(Box::new(serde_json::json!({})));
            rejected
        }
        PatchError::TooManyOperations { .. } => {
            ApiError::new(413, "RequestEntityTooLarge", error.to_string())
        }
        PatchError::Strategic(_) => ApiError::new(500, "", error.to_string()),
    }
}

pub(crate) fn apply_error(error: ApplyError) -> ApiError {
    let message = error.to_string();
    match error {
        ApplyError::Typed { .. } => ApiError::new(500, "", message),
        ApplyError::ManagedFieldsGiven => ApiError::bad_request(message),
        ApplyError::Conflicts(conflicts) => {
            let causes: Vec<Cause> = conflicts
                .into_iter()
                .map(|conflict| Cause {
                    reason: "FieldManagerConflict".into(),
                    message: conflict.message,
                    field: conflict.field,
                })
                .collect();
            ApiError::new(409, "Conflict", message).with_causes(&causes)
        }
    }
}
