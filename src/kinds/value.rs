//! Small verbs for reading and filling JSON objects, shared by the rules of all kinds.

use serde_json::{Map, Value};

/// Sets a field if it is absent (or null).
pub(crate) fn fill(object: &mut Value, key: &str, value: impl Into<Value>) {
    if let Some(map) = object.as_object_mut() {
        match map.get(key) {
            Some(old) if !old.is_null() => {}
            _ => {
                map.insert(key.to_owned(), value.into());
            }
        }
    }
}

/// Sets a field that has no distinct absence: empty text and zero count as absent.
pub(crate) fn fill_zero(object: &mut Value, key: &str, value: impl Into<Value>) {
    let zero = match object.get(key) {
        None | Some(Value::Null) => true,
        Some(Value::String(text)) => text.is_empty(),
        Some(Value::Number(number)) => number.as_f64() == Some(0.0),
        _ => false,
    };
    if let (true, Some(map)) = (zero, object.as_object_mut()) {
        map.insert(key.to_owned(), value.into());
    }
}

/// The child object, made if absent.
pub(crate) fn object<'a>(parent: &'a mut Value, key: &str) -> &'a mut Value {
    if !parent.is_object() {
        *parent = Value::Object(Map::new());
    }
    let child = &mut parent[key];
    if child.is_null() {
        *child = Value::Object(Map::new());
    }
    child
}

/// The elements of a list, none if it is absent.
pub(crate) fn items_mut<'a>(
    parent: &'a mut Value,
    key: &str,
) -> impl Iterator<Item = &'a mut Value> + use<'a> {
    parent.get_mut(key).and_then(Value::as_array_mut).into_iter().flatten()
}

pub(crate) fn items<'a>(parent: &'a Value, path: &str) -> &'a [Value] {
    at(parent, path).as_array().map(Vec::as_slice).unwrap_or_default()
}

/// A nested value by a dotted path; null if anything on the way is absent.
pub(crate) fn at<'a>(value: &'a Value, path: &str) -> &'a Value {
    path.split('.').filter(|p| !p.is_empty()).fold(value, |value, key| &value[key])
}

pub(crate) fn text<'a>(value: &'a Value, path: &str) -> &'a str {
    at(value, path).as_str().unwrap_or_default()
}

pub(crate) fn number(value: &Value, path: &str) -> i64 {
    at(value, path).as_i64().unwrap_or_default()
}

pub(crate) fn flag(value: &Value, path: &str) -> bool {
    at(value, path).as_bool().unwrap_or_default()
}

pub(crate) fn has(value: &Value, path: &str) -> bool {
    !at(value, path).is_null()
}
