//! Validation of object metadata, the same for every kind.

use serde_json::Value;

use super::error::FieldError;
use super::{name, selector};
use crate::value::{at, flag, has, items, text};

/// All annotations of an object together, in bytes.
pub const ANNOTATIONS_BYTES_MAX: usize = 256 * 1024;
const STANDARD_FINALIZERS: [&str; 3] = ["kubernetes", "orphan", "foregroundDeletion"];

/// How the names of a kind look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NameRule {
    Subdomain,
    Label,
    Dns1035,
    PathSegment,
    /// The kind looks at its names itself.
    Own,
}

impl NameRule {
    pub fn check(self, text: &str) -> Vec<String> {
        match self {
            NameRule::Subdomain => name::is_dns1123_subdomain(text),
            NameRule::Label => name::is_dns1123_label(text),
            NameRule::Dns1035 => name::is_dns1035_label(text),
            NameRule::PathSegment => name::is_path_segment(text),
            NameRule::Own => Vec::new(),
        }
    }
}

/// Checks the metadata of a new or changed object.
pub fn validate(object: &Value, namespaced: bool, rule: NameRule) -> Vec<FieldError> {
    let mut out = Vec::new();
    let meta = at(object, "metadata");
    let generate = text(meta, "generateName");
    if !generate.is_empty() {
        // A trailing hyphen is fine: letters follow it.
        let stem = generate.strip_suffix('-').map_or(generate.to_owned(), |s| format!("{s}a"));
        for problem in rule.check(&stem) {
            out.push(FieldError::invalid("metadata.generateName", generate, &problem));
        }
    }
    let own = text(meta, "name");
    if own.is_empty() {
        let detail = "name or generateName is required";
        out.push(FieldError::required("metadata.name", detail));
    } else {
        for problem in rule.check(own) {
            out.push(FieldError::invalid("metadata.name", own, &problem));
        }
    }
    let namespace = text(meta, "namespace");
    if namespaced {
        if namespace.is_empty() {
            out.push(FieldError::required("metadata.namespace", ""));
        } else {
            for problem in name::is_dns1123_label(namespace) {
                out.push(FieldError::invalid("metadata.namespace", namespace, &problem));
            }
        }
    } else if !namespace.is_empty() {
        let detail = "not allowed on this type";
        out.push(FieldError::forbidden("metadata.namespace", detail));
    }
    if let Some(labels) = meta.get("labels").and_then(Value::as_object) {
        out.extend(selector::validate_labels(labels, "metadata.labels"));
    }
    out.extend(annotations(meta, "metadata.annotations"));
    out.extend(owners(meta));
    out.extend(finalizers(meta));
    out
}

/// Checks a map of annotations under `field`.
pub fn annotations(meta: &Value, field: &str) -> Vec<FieldError> {
    let mut out = Vec::new();
    let mut bytes = 0;
    for (key, value) in meta.get("annotations").and_then(Value::as_object).into_iter().flatten() {
        bytes += key.len() + value.as_str().map_or(0, str::len);
        for problem in name::is_qualified(&key.to_lowercase()) {
            out.push(FieldError::invalid(field, key.as_str(), &problem));
        }
    }
    if bytes > ANNOTATIONS_BYTES_MAX {
        out.push(FieldError::too_long(field, ANNOTATIONS_BYTES_MAX));
    }
    out
}

fn owners(meta: &Value) -> Vec<FieldError> {
    let field = "metadata.ownerReferences";
    let mut out = Vec::new();
    let mut controller: Option<String> = None;
    for owner in items(meta, "ownerReferences") {
        let version = text(owner, "apiVersion");
        if version.rsplit('/').next().unwrap_or_default().is_empty() {
            let detail = "version must not be empty";
            out.push(FieldError::invalid(format!("{field}.apiVersion"), version, detail));
        }
        for key in ["kind", "name", "uid"] {
            if text(owner, key).is_empty() {
                out.push(FieldError::invalid(format!("{field}.{key}"), "", "must not be empty"));
            }
        }
        if text(owner, "kind") == "Event" && version == "v1" {
            let detail = "/v1, Kind=Event is disallowed from being an owner";
            out.push(FieldError::invalid(field, owner.clone(), detail));
        }
        if flag(owner, "controller") {
            let name = format!("{}/{}", text(owner, "kind"), text(owner, "name"));
            match &controller {
                Some(first) => out.push(FieldError::invalid(
                    field,
                    at(meta, "ownerReferences").clone(),
                    &format!(
                        "Only one reference can have Controller set to true. Found \"true\" in \
                         references for {first} and {name}"
                    ),
                )),
                None => controller = Some(name),
            }
        }
    }
    out
}

fn finalizers(meta: &Value) -> Vec<FieldError> {
    let field = "metadata.finalizers";
    let mut out = Vec::new();
    let names: Vec<&str> = items(meta, "finalizers").iter().filter_map(Value::as_str).collect();
    for (index, finalizer) in names.iter().enumerate() {
        let problems = name::is_qualified(finalizer);
        let unqualified = !finalizer.contains('/') && !STANDARD_FINALIZERS.contains(finalizer);
        if problems.is_empty() && unqualified {
            out.push(FieldError::invalid(
                format!("{field}[{index}]"),
                *finalizer,
                "name is neither a standard finalizer name nor is it fully qualified",
            ));
        }
        for problem in problems {
            out.push(FieldError::invalid(field, *finalizer, &problem));
        }
    }
    if names.contains(&"orphan") && names.contains(&"foregroundDeletion") {
        out.push(FieldError::invalid(
            field,
            at(meta, "finalizers").clone(),
            "finalizer orphan and foregroundDeletion cannot be both set",
        ));
    }
    out
}

/// Checks what an update may not change in the metadata. The caller has already filled absent
/// server-owned fields from the old object.
pub fn validate_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut out = Vec::new();
    let pair = |key: &str| (at(new, key).clone(), at(old, key).clone());
    for key in [
        "name",
        "namespace",
        "uid",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
    ] {
        let field = format!("metadata.{key}");
        let (new_value, old_value) = pair(&field);
        if new_value != old_value {
            out.push(FieldError::invalid(field, new_value, "field is immutable"));
        }
    }
    if has(old, "metadata.deletionTimestamp") {
        let known = items(old, "metadata.finalizers");
        let added: Vec<Value> = items(new, "metadata.finalizers")
            .iter()
            .filter(|f| !known.contains(f))
            .cloned()
            .collect();
        if !added.is_empty() {
            let list: Vec<&str> = added.iter().filter_map(Value::as_str).collect();
            out.push(FieldError::forbidden(
                "metadata.finalizers",
                &format!(
                    "no new finalizers can be added if the object is being deleted, found new \
                     finalizers []string{{{}}}",
                    list.iter().map(|f| format!("{f:?}")).collect::<Vec<_>>().join(", ")
                ),
            ));
        }
    }
    let meta = at(new, "metadata");
    if let Some(labels) = meta.get("labels").and_then(Value::as_object) {
        out.extend(selector::validate_labels(labels, "metadata.labels"));
    }
    out.extend(annotations(meta, "metadata.annotations"));
    out.extend(owners(meta));
    out
}
