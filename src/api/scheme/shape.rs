//! Checks and normalises objects against their types: unknown fields, types, zero values.
//!
//! Does not default and does not validate; `kinds` does.

use kinds_json::{as_int, is_empty};
use serde_json::{Map, Value, json};

use super::schema::{Class, Field, Type, Typed};

/// Upstream reports no more than this many strict decoding errors.
const STRICT_ERRORS_MAX: usize = 100;

/// Paths of the fields that the type does not have, in document order, as
/// `spec.containers[0].foo`.
pub fn unknown_fields(value: &Value, typed: Typed<'_>) -> Vec<String> {
    let mut found = Vec::new();
    collect_unknown(value, typed, &mut String::new(), &mut found);
    found
}

/// Upstream's sentences for strict decoding: `unknown field "spec.foo"`.
pub fn unknown_field_errors(value: &Value, typed: Typed<'_>) -> Vec<String> {
    unknown_fields(value, typed).into_iter().map(|p| format!("unknown field \"{p}\"")).collect()
}

fn collect_unknown(value: &Value, typed: Typed<'_>, path: &mut String, found: &mut Vec<String>) {
    if found.len() >= STRICT_ERRORS_MAX {
        return;
    }
    match (value, typed.ty()) {
        (Value::Object(map), Type::Object(object)) => {
            for (key, child) in map {
                let length = path.len();
                if !path.is_empty() {
                    path.push('.');
                }
                path.push_str(key);
                match object.field(key) {
                    Some(field) => collect_unknown(child, typed.at(field.ty), path, found),
                    None if object.open => {}
                    None => found.push(path.clone()),
                }
                path.truncate(length);
            }
        }
        (Value::Object(map), Type::Map { values, .. }) => {
            for (key, child) in map {
                let length = path.len();
                if !path.is_empty() {
                    path.push('.');
                }
                path.push_str(key);
                collect_unknown(child, typed.at(*values), path, found);
                path.truncate(length);
            }
        }
        (Value::Array(items), Type::List(list)) => {
            for (index, child) in items.iter().enumerate() {
                let length = path.len();
                path.push_str(&format!("[{index}]"));
                collect_unknown(child, typed.at(list.items), path, found);
                path.truncate(length);
            }
        }
        _ => {}
    }
}

/// Removes the fields that the type does not have.
pub fn prune(value: &mut Value, typed: Typed<'_>) {
    match (value, typed.ty()) {
        (Value::Object(map), Type::Object(object)) => {
            if !object.open {
                map.retain(|key, _| object.field(key).is_some());
            }
            for (key, child) in map.iter_mut() {
                if let Some(field) = object.field(key) {
                    prune(child, typed.at(field.ty));
                }
            }
        }
        (Value::Object(map), Type::Map { values, .. }) => {
            map.values_mut().for_each(|child| prune(child, typed.at(*values)));
        }
        (Value::Array(items), Type::List(list)) => {
            items.iter_mut().for_each(|child| prune(child, typed.at(list.items)));
        }
        _ => {}
    }
}

/// A value of a type that the field cannot hold; `Display` is upstream's decoder's sentence.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("json: cannot unmarshal {got} into Go struct field {structure}.{path} of type {want}")]
pub struct TypeMismatch {
    got: String,
    structure: String,
    path: String,
    want: &'static str,
}

/// Checks every value against its type and gives the first mismatch.
pub fn check_types(value: &Value, typed: Typed<'_>, kind: &str) -> Result<(), TypeMismatch> {
    check(value, typed, kind, &mut Vec::new())
}

fn check(
    value: &Value,
    typed: Typed<'_>,
    kind: &str,
    path: &mut Vec<String>,
) -> Result<(), TypeMismatch> {
    let fail = |want, path: &[String]| {
        Err(TypeMismatch {
            got: describe(value),
            structure: kind.to_owned(),
            path: path.join("."),
            want,
        })
    };
    if value.is_null() {
        return Ok(());
    }
    match typed.ty() {
        Type::Any => Ok(()),
        Type::String if !value.is_string() => fail("string", path),
        Type::Bytes => match value.as_str() {
            Some(text) if is_base64(text) => Ok(()),
            Some(_) => fail("[]uint8", path),
            None => fail("[]uint8", path),
        },
        Type::Time | Type::MicroTime => match value.as_str() {
            Some(text) if text.parse::<jiff::Timestamp>().is_ok() => Ok(()),
            _ => fail("time.Time", path),
        },
        Type::Bool if !value.is_boolean() => fail("bool", path),
        Type::Int32 if as_int(value).is_none_or(|n| i32::try_from(n).is_err()) => {
            fail("int32", path)
        }
        Type::Int64 if as_int(value).is_none() => fail("int64", path),
        Type::Float if !value.is_number() => fail("float64", path),
        Type::Quantity if !value.is_string() && !value.is_number() => {
            fail("resource.Quantity", path)
        }
        Type::IntOrString if !value.is_string() && as_int(value).is_none() => fail("int32", path),
        Type::Object(object) => {
            let Value::Object(map) = value else { return fail("object", path) };
            for (key, child) in map {
                if let Some(field) = object.field(key) {
                    path.push(key.clone());
                    check(child, typed.at(field.ty), kind, path)?;
                    path.pop();
                }
            }
            Ok(())
        }
        Type::Map { values, .. } => {
            let Value::Object(map) = value else { return fail("map[string]string", path) };
            map.values().try_for_each(|child| check(child, typed.at(*values), kind, path))
        }
        Type::List(list) => {
            let Value::Array(items) = value else { return fail("[]string", path) };
            items.iter().try_for_each(|child| check(child, typed.at(list.items), kind, path))
        }
        _ => Ok(()),
    }
}

fn describe(value: &Value) -> String {
    match value {
        Value::Null => "null".into(),
        Value::Bool(_) => "bool".into(),
        Value::Number(n) if n.is_f64() => format!("number {n}"),
        Value::Number(_) => "number".into(),
        Value::String(_) => "string".into(),
        Value::Array(_) => "array".into(),
        Value::Object(_) => "object".into(),
    }
}

fn is_base64(text: &str) -> bool {
    use base64::Engine as _;
    let text: String = text.chars().filter(|c| !matches!(c, '\n' | '\r')).collect();
    base64::engine::general_purpose::STANDARD.decode(text).is_ok()
}

/// Brings an object into the form upstream's structures are written in: unknown fields and
/// nulls go, zero values of optional fields go, structures by value and required zero values
/// appear. Called after decoding; defaults come after it and rely on it.
pub fn normalise(value: &mut Value, typed: Typed<'_>) {
    match (&mut *value, typed.ty()) {
        (Value::Object(map), Type::Object(object)) => {
            if !object.open {
                map.retain(|key, _| object.field(key).is_some());
            }
            for field in &object.fields {
                normalise_field(map, field, typed);
            }
        }
        (Value::Object(map), Type::Map { values, .. }) => {
            let ty = typed.at(*values);
            for child in map.values_mut() {
                if child.is_null() {
                    *child = zero(ty);
                }
                normalise(child, ty);
            }
        }
        (Value::Array(items), Type::List(list)) => {
            let ty = typed.at(list.items);
            for child in items {
                if child.is_null() {
                    *child = zero(ty);
                }
                normalise(child, ty);
            }
        }
        (value, Type::Quantity) => canonical_quantity(value),
        (value @ Value::Number(_), Type::Int32 | Type::Int64) => {
            if let Some(n) = as_int(value) {
                *value = n.into();
            }
        }
        _ => {}
    }
}

fn normalise_field(map: &mut Map<String, Value>, field: &Field, typed: Typed<'_>) {
    let ty = typed.at(field.ty);
    let name = &*field.name;
    if map.get(name).is_some_and(Value::is_null) {
        map.remove(name);
    }
    if let Some(child) = map.get_mut(name) {
        normalise(child, ty);
    }
    match field.class {
        Class::Pointer => {}
        Class::NullPointer => {
            if !map.contains_key(name) {
                map.insert(name.to_owned(), Value::Null);
            }
        }
        Class::OmitZero => {
            if map.get(name).is_some_and(|v| is_zero(v, ty)) {
                map.remove(name);
            }
        }
        Class::Always => {
            if !map.contains_key(name) {
                map.insert(name.to_owned(), zero(ty));
            }
        }
        Class::Struct => {
            if !map.contains_key(name) {
                let mut child = Value::Object(Map::new());
                normalise(&mut child, ty);
                map.insert(name.to_owned(), child);
            }
        }
        Class::OmitStruct => {
            if map.get(name).is_some_and(is_empty) {
                map.remove(name);
            }
        }
    }
}

fn is_zero(value: &Value, typed: Typed<'_>) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(b) => !b,
        Value::Number(n) => n.as_f64() == Some(0.0),
        Value::String(s) => s.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(map) => map.is_empty() && !matches!(typed.ty(), Type::Object(_)),
    }
}

/// Puts fields into the order of their declaration and the keys of maps into that of their
/// bytes, as Go writes them.
pub fn arrange(value: &mut Value, typed: Typed<'_>) {
    match (value, typed.ty()) {
        (Value::Object(map), Type::Object(object)) => {
            let place = |key: &str| object.field(key).map_or(u16::MAX, |field| field.order);
            sort_by(map, |a, b| place(a).cmp(&place(b)));
            for (key, child) in map.iter_mut() {
                if let Some(field) = object.field(key)
                    && (child.is_object() || child.is_array())
                {
                    arrange(child, typed.at(field.ty));
                }
            }
        }
        (Value::Object(map), Type::Map { values, .. }) => {
            sort_by(map, |a, b| a.cmp(b));
            map.values_mut().for_each(|child| arrange(child, typed.at(*values)));
        }
        (Value::Array(items), Type::List(list)) => {
            items.iter_mut().for_each(|child| arrange(child, typed.at(list.items)));
        }
        _ => {}
    }
}

/// Sorts a map's entries; one that is in order is left alone.
fn sort_by(map: &mut Map<String, Value>, order: impl Fn(&str, &str) -> std::cmp::Ordering) {
    let mut keys = map.keys();
    let mut last = keys.next();
    let in_order = keys.all(|key| {
        let before = last.replace(key);
        before.is_none_or(|before| order(before, key).is_le())
    });
    if !in_order {
        let mut entries: Vec<(String, Value)> = std::mem::take(map).into_iter().collect();
        entries.sort_by(|a, b| order(&a.0, &b.0));
        map.extend(entries);
    }
}

/// What an absent field of the type reads as.
pub fn zero(typed: Typed<'_>) -> Value {
    match typed.ty() {
        Type::String => json!(""),
        Type::Bool => json!(false),
        Type::Int32 | Type::Int64 | Type::Float | Type::IntOrString => json!(0),
        Type::Quantity => json!("0"),
        Type::Object(_) => {
            let mut out = json!({});
            normalise(&mut out, typed);
            out
        }
        _ => Value::Null,
    }
}

/// The object of a kind that has nothing set, as upstream writes it.
pub fn empty(typed: Typed<'_>) -> Value {
    let mut out = json!({});
    normalise(&mut out, typed);
    out
}

fn canonical_quantity(value: &mut Value) {
    let text = match &*value {
        Value::String(text) => text.clone(),
        Value::Number(n) => n.to_string(),
        _ => return,
    };
    if let Ok(quantity) = text.parse::<kinds::meta::quantity::Quantity>() {
        *value = Value::String(quantity.to_string());
    }
}

mod kinds_json {
    use serde_json::Value;

    /// An integer, also when written as `1.0` or `1e3`.
    pub fn as_int(value: &Value) -> Option<i64> {
        let number = value.as_number()?;
        if let Some(n) = number.as_i64() {
            return Some(n);
        }
        let float = number.as_f64()?;
        (float.fract() == 0.0 && float.abs() < 9e15).then_some(float as i64)
    }

    pub fn is_empty(value: &Value) -> bool {
        match value {
            Value::Object(map) => map.values().all(is_empty),
            Value::Null => true,
            _ => false,
        }
    }
}
