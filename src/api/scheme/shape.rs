//! Checks and normalises objects against their types: unknown fields, types, zero values.
//!
//! Does not default and does not validate; `kinds` does.

use kinds::meta::quantity::Quantity;
use kinds_json::{as_int, is_empty};
use serde_json::{Map, Value, json};

use super::go_time;
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

/// A value that the field cannot hold; `Display` is upstream's decoder's sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TypeMismatch {
    /// A value of another type.
    Type {
        /// `string`, `number 1.5`.
        got: String,
        /// The innermost structure.
        structure: String,
        path: String,
        /// Go's type.
        want: String,
    },
    /// A text that does not say what it should, in the words of whoever reads it.
    Text(String),
}

impl std::error::Error for TypeMismatch {}

impl std::fmt::Display for TypeMismatch {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Type { got, structure, path, want } => write!(
                out,
                "json: cannot unmarshal {got} into Go struct field {structure}.{path} of type {want}"
            ),
            Self::Text(why) => out.write_str(why),
        }
    }
}

/// Checks every value against its type and gives the first mismatch.
pub fn check_types(value: &Value, typed: Typed<'_>, kind: &str) -> Result<(), TypeMismatch> {
    check(value, typed, kind, &mut Vec::new())
}

const QUANTITY: &str =
    "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'";

fn check(
    value: &Value,
    typed: Typed<'_>,
    structure: &str,
    path: &mut Vec<String>,
) -> Result<(), TypeMismatch> {
    let fail = |path: &[String]| {
        Err(TypeMismatch::Type {
            got: describe(value, typed.ty()),
            structure: structure.to_owned(),
            path: path.join("."),
            want: go_type(typed),
        })
    };
    let said = |result: Result<(), String>| result.map_err(TypeMismatch::Text);
    let plain = |what: &str| {
        let got = describe(value, typed.ty());
        said(Err(format!("json: cannot unmarshal {got} into Go value of type {what}")))
    };
    if value.is_null() {
        return Ok(());
    }
    match typed.ty() {
        Type::Any => Ok(()),
        Type::String if !value.is_string() => fail(path),
        Type::Bytes => match value.as_str() {
            Some(text) => said(check_base64(text)),
            None => fail(path),
        },
        Type::Time => match value.as_str() {
            Some(text) => said(go_time::check(text, false)),
            None => plain("string"),
        },
        Type::MicroTime => match value.as_str() {
            Some(text) => said(go_time::check(text, true)),
            None => plain("string"),
        },
        Type::Bool if !value.is_boolean() => fail(path),
        Type::Int32 if as_int(value).is_none_or(|n| i32::try_from(n).is_err()) => fail(path),
        Type::Int64 if as_int(value).is_none() => fail(path),
        Type::Float if !value.is_number() => fail(path),
        Type::Quantity => match value {
            Value::String(text) if text.parse::<Quantity>().is_ok() => Ok(()),
            Value::Number(_) => Ok(()),
            _ => said(Err(QUANTITY.into())),
        },
        Type::IntOrString if !value.is_string() && as_int(value).is_none() => plain("int32"),
        Type::Object(object) => {
            let Value::Object(map) = value else { return fail(path) };
            let inner = typed.name().filter(|_| !path.is_empty());
            let structure = inner.and_then(|name| name.rsplit('.').next()).unwrap_or(structure);
            for (key, child) in map {
                if let Some(field) = object.field(key) {
                    path.push(key.clone());
                    check(child, typed.at(field.ty), structure, path)?;
                    path.pop();
                }
            }
            Ok(())
        }
        Type::Map { values, .. } => {
            let Value::Object(map) = value else { return fail(path) };
            map.values().try_for_each(|child| check(child, typed.at(*values), structure, path))
        }
        Type::List(list) => {
            let Value::Array(items) = value else { return fail(path) };
            items.iter().try_for_each(|child| check(child, typed.at(list.items), structure, path))
        }
        _ => Ok(()),
    }
}

/// What Go calls a type.
fn go_type(typed: Typed<'_>) -> String {
    match typed.ty() {
        Type::Any | Type::Deduced => "interface {}".into(),
        Type::String => "string".into(),
        Type::Bytes => "[]uint8".into(),
        Type::Bool => "bool".into(),
        Type::Int32 => "int32".into(),
        Type::Int64 => "int64".into(),
        Type::Float => "float64".into(),
        Type::Time => "v1.Time".into(),
        Type::MicroTime => "v1.MicroTime".into(),
        Type::Quantity => "resource.Quantity".into(),
        Type::IntOrString => "intstr.IntOrString".into(),
        Type::Map { values, .. } => format!("map[string]{}", go_type(typed.at(*values))),
        Type::List(list) => format!("[]{}", go_type(typed.at(list.items))),
        Type::Object(_) => {
            let name = typed.name().unwrap_or_default();
            let mut parts = name.rsplitn(3, '.');
            let (kind, version) = (parts.next().unwrap_or(""), parts.next().unwrap_or(""));
            format!("{version}.{kind}")
        }
    }
}

fn describe(value: &Value, wanted: &Type) -> String {
    let numeric = matches!(wanted, Type::Int32 | Type::Int64 | Type::IntOrString);
    match value {
        Value::Null => "null".into(),
        Value::Bool(_) => "bool".into(),
        // The number does not fit; elsewhere any number would be wrong.
        Value::Number(n) if numeric => format!("number {n}"),
        Value::Number(_) => "number".into(),
        Value::String(_) => "string".into(),
        Value::Array(_) => "array".into(),
        Value::Object(_) => "object".into(),
    }
}

/// Go's decoder of base64: line breaks are skipped, padding is needed.
fn check_base64(text: &str) -> Result<(), String> {
    let bad = |at: usize| Err(format!("illegal base64 data at input byte {at}"));
    let bytes = text.as_bytes();
    let (mut digits, mut at) = (0, 0);
    while at < bytes.len() {
        match bytes[at] {
            b'\n' | b'\r' => {}
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'+' | b'/' => digits += 1,
            b'=' => {
                let mut rest = (at + 1..bytes.len()).filter(|at| !b"\r\n".contains(&bytes[*at]));
                match digits % 4 {
                    2 => match rest.next() {
                        None => return bad(bytes.len()),
                        Some(next) if bytes[next] != b'=' => return bad(next),
                        Some(_) => {}
                    },
                    3 => {}
                    _ => return bad(at),
                }
                return rest.next().map_or(Ok(()), bad);
            }
            _ => return bad(at),
        }
        at += 1;
    }
    if digits % 4 == 0 { Ok(()) } else { bad(bytes.len() - digits % 4) }
}

/// Brings an object into the form upstream's structures are written in: unknown fields and
/// nulls go, zero values of optional fields go, structures by value and required zero values
/// appear. Called after decoding; defaults come after it and rely on it.
pub fn normalise(value: &mut Value, typed: Typed<'_>) {
    if typed.schema.free {
        return;
    }
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
    match map.get_mut(name) {
        Some(Value::Null) => drop(map.remove(name)),
        Some(child) => {
            normalise(child, ty);
            let goes = match field.class {
                Class::OmitZero => is_zero(child, ty),
                Class::OmitStruct => is_empty(child),
                Class::Pointer | Class::NullPointer | Class::Always | Class::Struct => false,
            };
            if goes {
                map.remove(name);
            }
            return;
        }
        None => {}
    }
    let stands_in = match field.class {
        Class::Pointer | Class::OmitZero | Class::OmitStruct => return,
        Class::NullPointer => Value::Null,
        Class::Always => zero(ty),
        Class::Struct => empty(ty),
    };
    map.insert(name.to_owned(), stands_in);
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
/// bytes, as Go writes them. Lists that are always written and have nothing in them are
/// null, which upstream's storage makes of them.
pub fn arrange(value: &mut Value, typed: Typed<'_>) {
    match (value, typed.ty()) {
        (Value::Object(map), Type::Object(object)) => {
            // A null is nothing, unless it is what the field shows of nothing.
            let shows_null = |key: &str| {
                object.field(key).is_none_or(|field| {
                    matches!(field.class, Class::Always | Class::NullPointer | Class::Struct)
                })
            };
            if map.iter().any(|(key, value)| value.is_null() && !shows_null(key)) {
                map.retain(|key, value| !value.is_null() || shows_null(key));
            }
            let place = |key: &str| object.field(key).map_or(u16::MAX, |field| field.order);
            if !map.keys().map(|key| place(key)).is_sorted() {
                let mut entries: Vec<(String, Value)> = std::mem::take(map).into_iter().collect();
                entries.sort_by_cached_key(|(key, _)| place(key));
                map.extend(entries);
            }
            for (key, child) in map.iter_mut() {
                let Some(field) = object.field(key) else { continue };
                if child.is_object() || child.is_array() {
                    arrange(child, typed.at(field.ty));
                }
                let empty = match child {
                    Value::Array(list) => list.is_empty(),
                    _ => false,
                };
                if empty && field.class == Class::Always {
                    *child = Value::Null;
                }
            }
        }
        (Value::Object(map), Type::Map { values, .. }) => {
            if !map.keys().is_sorted() {
                map.sort_keys();
            }
            map.values_mut().for_each(|child| arrange(child, typed.at(*values)));
        }
        (Value::Array(items), Type::List(list)) => {
            items.iter_mut().for_each(|child| arrange(child, typed.at(list.items)));
        }
        _ => {}
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
    if let Ok(quantity) = text.parse::<Quantity>() {
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
