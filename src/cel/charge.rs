//! What a call costs when it runs, by cel-go's rules and Kubernetes' for its libraries.

use crate::value::{List, Map, Value};

pub(crate) const LIST_CREATE: u64 = 10;
pub(crate) const MAP_CREATE: u64 = 30;
pub(crate) const STRUCT_CREATE: u64 = 40;
/// The cost of a character of a string that is walked.
pub(crate) const STRING_FACTOR: f64 = 0.1;
/// The cost of a character of a pattern, for each of the text.
pub(crate) const REGEX_FACTOR: f64 = 0.25;
/// An authorization check: few fit into one evaluation.
pub(crate) const CHECK: u64 = 350_000;
/// For each requirement of a selector, which has at least two characters.
pub(crate) const REQUIREMENT: u64 = LIST_CREATE + STRUCT_CREATE;

pub(crate) fn scaled(size: u64, factor: f64) -> u64 {
    let scaled = (size as f64 * factor).ceil();
    // A float as large as that saturates.
    scaled as u64
}

fn string_cost(size: u64) -> u64 {
    scaled(size, STRING_FACTOR)
}

fn pattern_cost(text: u64, pattern: u64) -> u64 {
    string_cost(text.saturating_add(1)).saturating_mul(scaled(pattern, REGEX_FACTOR))
}

/// The cost of a call of this name with these arguments (the target first).
pub(crate) fn call(name: &str, args: &[Value<'_>], result: &Value<'_>) -> u64 {
    let size = |index: usize| args.get(index).map_or(0, Value::size);
    match name {
        "check" => CHECK,
        "fieldSelector" | "labelSelector" => {
            let length = size(1);
            let requirements = scaled(length, 0.5).saturating_mul(REQUIREMENT);
            LIST_CREATE.saturating_add(string_cost(length)).saturating_add(requirements)
        }
        "isSorted" | "sum" | "max" | "min" | "indexOf" | "lastIndexOf" => {
            args.first().map_or(0, traversal)
        }
        "url"
        | "lowerAscii"
        | "upperAscii"
        | "substring"
        | "trim"
        | "jsonpatch.escapeKey"
        | "cidr"
        | "isIP"
        | "isCIDR"
        | "quantity"
        | "isQuantity"
        | "semver"
        | "isSemver" => string_cost(size(0)),
        "ip" if matches!(args.first(), Some(Value::String(_))) => string_cost(size(0)),
        "replace" | "split" | "ip.isCanonical" => scaled(size(0), 2.0 * STRING_FACTOR),
        "join" => scaled(result.size(), 2.0 * STRING_FACTOR),
        "find" | "findAll" | "matches" => pattern_cost(size(0), size(1)),
        "containsIP" | "containsCIDR" => {
            let network = size(0);
            let mut cost = string_cost(network.saturating_mul(2));
            if name == "containsCIDR" {
                cost = cost.saturating_add(string_cost(network)).saturating_add(1);
            }
            if matches!(args.get(1), Some(Value::String(_))) {
                cost = cost.saturating_add(string_cost(size(1)));
            }
            cost
        }
        "validate" => match args.first() {
            Some(Value::Format(format)) => pattern_cost(size(1), format.pattern_size),
            _ => 1,
        },
        "startsWith" | "endsWith" | "strings.quote" | "format" => string_cost(size(0)),
        "bytes" if matches!(args.first(), Some(Value::String(_))) => string_cost(size(0)),
        "string" if matches!(args.first(), Some(Value::Bytes(_))) => string_cost(size(0)),
        "@in" => match args.get(1) {
            Some(Value::List(list)) => list.len() as u64,
            _ => 1,
        },
        "_==_" | "_!=_" => match args.first() {
            Some(Value::Ip(_) | Value::Cidr(_)) => 1,
            _ => string_cost(size(0).min(size(1))),
        },
        "_<_" | "_<=_" | "_>_" | "_>=_" => match args.first() {
            Some(Value::String(_) | Value::Bytes(_)) => string_cost(size(0).min(size(1))),
            _ => 1,
        },
        "_+_" => match args.first() {
            Some(Value::String(_) | Value::Bytes(_)) => {
                string_cost(size(0).saturating_add(size(1)))
            }
            _ => 1,
        },
        "contains" => string_cost(size(0)).saturating_mul(string_cost(size(1))),
        "slice" | "lists.range" | "reverse" => list_cost(1.0, result.size()),
        "flatten" => {
            let depth = match args.get(1) {
                Some(Value::Int(depth)) => *depth as f64,
                _ => 1.0,
            };
            list_cost(depth, size(0))
        }
        "distinct" | "sort" => args.first().map_or(1, self_compare),
        "sets.contains" | "sets.intersects" => 1 + size(0).saturating_mul(size(1)),
        "sets.equivalent" => size(0).saturating_mul(size(1)).saturating_mul(2).saturating_add(1),
        _ => 1,
    }
}

fn list_cost(factor: f64, size: u64) -> u64 {
    ((size as f64 * factor) as u64).saturating_add(1 + LIST_CREATE)
}

/// The cost of comparing the elements of a list with each other.
pub(crate) fn self_compare(list: &Value<'_>) -> u64 {
    let Value::List(list) = list else { return 1 };
    self_compare_cost(list.len() as u64, list.get(0).as_ref())
}

pub(crate) fn self_compare_cost(size: u64, first: Option<&Value<'_>>) -> u64 {
    let factor = match first {
        Some(Value::String(_) | Value::Bytes(_)) => 2.0 + STRING_FACTOR,
        _ => 2.0,
    };
    list_cost(factor, size.saturating_mul(size))
}

/// The cost of walking a value as a tree.
fn traversal(value: &Value<'_>) -> u64 {
    match value {
        Value::String(text) => (text.len() as f64 * STRING_FACTOR) as u64,
        Value::Bytes(bytes) => (bytes.len() as f64 * STRING_FACTOR) as u64,
        Value::List(List::Json(items, _)) => items.iter().map(json_traversal).sum(),
        Value::List(list) => list.iter().map(|item| traversal(&item)).sum(),
        Value::Map(Map::Json(fields, _)) => {
            fields.iter().map(|(key, value)| key.len() as u64 / 10 + json_traversal(value)).sum()
        }
        Value::Map(map) => map.entries().map(|(k, v)| traversal(&k) + traversal(&v)).sum(),
        _ => 1,
    }
}

fn json_traversal(value: &serde_json::Value) -> u64 {
    match value {
        serde_json::Value::String(text) => text.len() as u64 / 10,
        serde_json::Value::Array(items) => items.iter().map(json_traversal).sum(),
        serde_json::Value::Object(fields) => {
            fields.iter().map(|(key, value)| key.len() as u64 / 10 + json_traversal(value)).sum()
        }
        _ => 1,
    }
}
