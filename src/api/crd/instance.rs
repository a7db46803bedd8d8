//! All checks of a custom object: metadata, schema, sets and maps in lists, resources
//! inside, and the paths of the scale subresource (apiextensions-apiserver,
//! `registry/customresource`).
//!
//! Rules in CEL come after these, in `rules`.

use kinds::meta::object::{self, NameRule};
use kinds::meta::{FieldError, name};
use serde_json::{Map, Value};

use super::schema::{ListType, Node};
use super::value;
use super::version::{Scale, Version};

/// Replicas are counted in 32 bits.
const REPLICAS_MAX: i64 = i32::MAX as i64;

pub fn create(version: &Version, object: &Value, namespaced: bool) -> Vec<FieldError> {
    let node = version.node();
    let mut errors = check_metadata(object, namespaced, NameRule::Subdomain);
    errors.extend(value::check(node, object, None, ""));
    errors.extend(scale_spec(version.scale.as_ref(), object));
    errors.extend(scale_status(version.scale.as_ref(), object));
    errors.extend(embedded(object, node));
    errors.extend(lists(object, node));
    errors
}

pub fn update(version: &Version, new: &Value, old: &Value, namespaced: bool) -> Vec<FieldError> {
    let node = version.node();
    let mut errors = check_metadata(new, namespaced, NameRule::Subdomain);
    errors.extend(object::validate_update(new, old));
    errors.extend(value::check(node, new, Some(old), ""));
    errors.extend(scale_spec(version.scale.as_ref(), new));
    errors.extend(scale_status(version.scale.as_ref(), new));
    errors.extend(embedded(new, node));
    if lists(old, node).is_empty() {
        errors.extend(lists(new, node));
    }
    errors
}

pub fn status_update(version: &Version, new: &Value, old: &Value) -> Vec<FieldError> {
    let node = version.node();
    let mut errors = object::validate_update(new, old);
    if let (Some(status), Some(below)) = (new.get("status"), node.properties.get("status")) {
        errors.extend(value::check(below, status, old.get("status"), "status"));
    }
    errors.extend(scale_status(version.scale.as_ref(), new));
    let found = lists(new, node);
    if !found.is_empty() && lists(old, node).is_empty() {
        errors.extend(found);
    }
    errors
}

/// The checks of metadata. That finalizers have a domain is asked of built-in kinds only.
fn check_metadata(object: &Value, namespaced: bool, rule: NameRule) -> Vec<FieldError> {
    let mut errors = object::validate(object, namespaced, rule);
    errors.retain(|error| !is_about_domain(error));
    errors
}

/// A finding about a finalizer that is no name of a domain.
pub fn is_about_domain(error: &FieldError) -> bool {
    error.field.starts_with("metadata.finalizers[")
}

/// Whether findings of this kind keep rules in CEL from being asked.
pub fn blocks_rules(errors: &[FieldError]) -> bool {
    use kinds::meta::Reason;
    errors.iter().any(|error| {
        matches!(
            error.reason,
            Reason::NotSupported
                | Reason::Required
                | Reason::TooLong
                | Reason::TooMany
                | Reason::TypeInvalid
        )
    })
}

/// What is at a simple path such as `.spec.replicas`. Null is nothing.
pub fn at_path<'a>(object: &'a Value, path: &str) -> Option<&'a Value> {
    let steps = path.trim_start_matches('.').split('.');
    steps.into_iter().try_fold(object, |value, step| value.get(step))
}

fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "<nil>",
        Value::Bool(_) => "bool",
        Value::Number(n) if n.is_i64() => "int64",
        Value::Number(_) => "float64",
        Value::String(_) => "string",
        Value::Array(_) => "[]interface {}",
        Value::Object(_) => "map[string]interface {}",
    }
}

/// A whole number at a path of a scale; the sentence if there is something else.
pub fn replicas(object: &Value, path: &str) -> Result<Option<i64>, String> {
    let Some(found) = at_path(object, path) else { return Ok(None) };
    match found.as_i64() {
        Some(number) => Ok(Some(number)),
        None => Err(format!(
            "{path} accessor error: {} is of the type {}, expected int64",
            go_value(found),
            type_name(found)
        )),
    }
}

fn go_value(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => "<nil>".into(),
        other => other.to_string(),
    }
}

fn count(object: &Value, path: &str) -> Option<FieldError> {
    match replicas(object, path) {
        Err(said) => Some(FieldError::invalid(path, 0, &said)),
        Ok(Some(n)) if n < 0 => {
            Some(FieldError::invalid(path, n, "should be a non-negative integer"))
        }
        Ok(Some(n)) if n > REPLICAS_MAX => {
            let said = format!("should be less than or equal to {REPLICAS_MAX}");
            Some(FieldError::invalid(path, n, &said))
        }
        Ok(_) => None,
    }
}

fn scale_spec(scale: Option<&Scale>, object: &Value) -> Option<FieldError> {
    count(object, &scale?.spec_replicas)
}

fn scale_status(scale: Option<&Scale>, object: &Value) -> Vec<FieldError> {
    let Some(scale) = scale else { return Vec::new() };
    let mut errors: Vec<FieldError> = count(object, &scale.status_replicas).into_iter().collect();
    if let Some(path) = &scale.label_selector
        && let Some(found) = at_path(object, path).filter(|found| !found.is_string())
    {
        let said = format!(
            "{path} accessor error: {} is of the type {}, expected string",
            go_value(found),
            type_name(found)
        );
        errors.push(FieldError::invalid(path.as_str(), "", &said));
    }
    errors
}

/// Sets with an element twice, and maps with a key twice.
pub fn lists(object: &Value, node: &Node) -> Vec<FieldError> {
    let mut errors = Vec::new();
    walk_lists(object, node, "", &mut errors);
    errors
}

fn child(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_string() } else { format!("{path}.{key}") }
}

fn walk_lists(value: &Value, node: &Node, path: &str, errors: &mut Vec<FieldError>) {
    match value {
        Value::Object(map) => {
            for (key, below) in map {
                if let Some(node) = node.properties.get(key) {
                    walk_lists(below, node, &child(path, key), errors);
                } else if let Some(node) = node.additional.node() {
                    walk_lists(below, node, &format!("{path}[{key}]"), errors);
                }
            }
        }
        Value::Array(items) => {
            match node.list_type {
                ListType::Atomic => {}
                ListType::Set => {
                    for at in repeated(items.iter().cloned()) {
                        errors.push(FieldError::duplicate(
                            format!("{path}[{at}]"),
                            items[at].clone(),
                        ));
                    }
                }
                ListType::Map => map_keys(items, node, path, errors),
            }
            if let Some(below) = &node.items {
                for (at, item) in items.iter().enumerate() {
                    walk_lists(item, below, &format!("{path}[{at}]"), errors);
                }
            }
        }
        _ => {}
    }
}

fn map_keys(items: &[Value], node: &Node, path: &str, errors: &mut Vec<FieldError>) {
    for (at, item) in items.iter().enumerate() {
        if !item.is_object() && !item.is_null() {
            errors.push(FieldError::invalid(
                format!("{path}[{at}]"),
                item.clone(),
                "must be an object for an array of list-type map",
            ));
            return;
        }
    }
    let key_of = |item: &Value| -> Value {
        let mut key = Map::new();
        for field in &node.list_map_keys {
            if let Some(value) = item.get(field) {
                key.insert(field.clone(), value.clone());
            }
        }
        Value::Object(key)
    };
    let keys: Vec<Value> = items.iter().map(key_of).collect();
    for at in repeated(keys.iter().cloned()) {
        errors.push(FieldError::duplicate(format!("{path}[{at}]"), keys[at].clone()));
    }
}

/// Where values stand for the second time; a third time is not told.
fn repeated(values: impl Iterator<Item = Value>) -> Vec<usize> {
    let mut seen = std::collections::HashMap::new();
    let mut out = Vec::new();
    for (at, value) in values.enumerate() {
        let times = seen.entry(sorted_text(&value)).or_insert(0);
        *times += 1;
        if *times == 2 {
            out.push(at);
        }
    }
    out
}

/// Equal values have equal texts, in whatever order their fields came.
fn sorted_text(value: &Value) -> String {
    let mut value = value.clone();
    value.sort_all_objects();
    value.to_string()
}

/// Resources inside the object: they need a kind, an apiVersion and good metadata.
pub fn embedded(object: &Value, node: &Node) -> Vec<FieldError> {
    let mut errors = Vec::new();
    walk_embedded(object, node, "", &mut errors);
    errors
}

fn walk_embedded(value: &Value, node: &Node, path: &str, errors: &mut Vec<FieldError>) {
    match value {
        Value::Object(map) => {
            if node.embedded {
                resource(value, path, errors);
            }
            for (key, below) in map {
                if let Some(node) = node.properties.get(key) {
                    walk_embedded(below, node, &child(path, key), errors);
                } else if let Some(node) = node.additional.node() {
                    walk_embedded(below, node, &format!("{path}[{key}]"), errors);
                }
            }
        }
        Value::Array(items) => {
            let Some(below) = &node.items else { return };
            for (at, item) in items.iter().enumerate() {
                walk_embedded(item, below, &format!("{path}[{at}]"), errors);
            }
        }
        _ => {}
    }
}

fn resource(value: &Value, path: &str, errors: &mut Vec<FieldError>) {
    for key in ["apiVersion", "kind"] {
        if value.get(key).is_none() {
            errors.push(FieldError::required(child(path, key), ""));
        }
    }
    for key in ["apiVersion", "kind"] {
        let Some(held) = value.get(key) else { continue };
        let at = child(path, key);
        let Some(text) = held.as_str() else {
            errors.push(FieldError::invalid(at, held.clone(), "must be a string"));
            continue;
        };
        if text.is_empty() {
            errors.push(FieldError::invalid(at, text, "must not be empty"));
        } else if key == "apiVersion" && text.matches('/').count() > 1 {
            let said = format!("unexpected GroupVersion string: {text}");
            errors.push(FieldError::invalid(at, text, &said));
        } else if key == "kind" {
            let problems = name::is_dns1035_label(&text.to_lowercase());
            if !problems.is_empty() {
                let said = format!(
                    "may have mixed case, but should otherwise match: {}",
                    problems.join(",")
                );
                errors.push(FieldError::invalid(at, text, &said));
            }
        }
    }
    let Some(metadata) = value.get("metadata") else { return };
    let mut read = value.clone();
    if let Err(said) = super::shape::coerce_metadata(&mut read) {
        errors.push(FieldError::invalid(child(path, "metadata"), metadata.clone(), &said));
        return;
    }
    let metadata = &read["metadata"];
    let mut whole = serde_json::json!({"metadata": metadata});
    let namespaced = metadata.get("namespace").is_some_and(|n| n != "");
    if metadata["name"].as_str().unwrap_or("").is_empty() {
        whole["metadata"]["name"] = "fakename".into();
    }
    for error in check_metadata(&whole, namespaced, NameRule::PathSegment) {
        errors.push(FieldError { field: child(path, &error.field), ..error });
    }
}

/// What a finalizer's name should rather be: warnings, for names that `old` does not have.
pub fn finalizer_warnings(new: &Value, old: Option<&Value>) -> Vec<String> {
    const STANDARD: [&str; 3] = ["orphan", "foregroundDeletion", "kubernetes"];
    let known = old.map(crate::registry::finalizers).unwrap_or_default();
    let mut added = crate::registry::finalizers(new);
    added.retain(|name| !known.contains(name));
    added.sort_unstable();
    added.dedup();
    let mut out = Vec::new();
    for finalizer in added {
        for problem in name::is_qualified(&finalizer) {
            out.push(format!("metadata.finalizers: {finalizer:?}: {problem}"));
        }
        if !finalizer.contains('/') && !STANDARD.contains(&finalizer.as_str()) {
            let path = if finalizer.contains('.') { " including a path (/)" } else { "" };
            out.push(format!(
                "metadata.finalizers: {finalizer:?}: prefer a domain-qualified finalizer name{path} to avoid accidental conflicts with other finalizer writers"
            ));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_stands_twice_is_told_once() {
        let node = Node::compile(&json!({"type": "object", "properties": {
            "s": {"type": "array", "items": {"type": "string"}, "x-kubernetes-list-type": "set"},
            "m": {"type": "array", "x-kubernetes-list-type": "map",
                "x-kubernetes-list-map-keys": ["a", "b"], "items": {"type": "object"}},
        }}));
        let object = json!({"s": ["x", "x", "x"], "m": [{"a": 1, "b": 2}, {"b": 2, "a": 1}]});
        let said: Vec<String> = lists(&object, &node).iter().map(ToString::to_string).collect();
        assert_eq!(
            said,
            [r#"s[1]: Duplicate value: "x""#, r#"m[1]: Duplicate value: {"a":1,"b":2}"#]
        );
    }

    #[test]
    fn finalizers_without_a_domain_are_warned_of() {
        let object = json!({"metadata": {"finalizers": ["a", "b.c", "b.c/d", "orphan"]}});
        assert_eq!(finalizer_warnings(&object, None).len(), 2);
        assert!(finalizer_warnings(&object, Some(&object)).is_empty());
    }
}
