//! Strategic merge patch: merges by the keys the schema names, and obeys the `$` directives.
//!
//! Knows `$patch` (replace, delete), `$retainKeys`, `$setElementOrder/…` and
//! `$deleteFromPrimitiveList/…`. Resources without a schema (custom ones) do not take it.

use serde_json::{Map, Value};

use super::PatchError;
use super::go_format::go_value;
use crate::scheme::{List, ListKind, Type, Typed};

const PATCH: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const DELETE_FROM: &str = "$deleteFromPrimitiveList/";
const SET_ORDER: &str = "$setElementOrder/";

type Object = Map<String, Value>;

/// Applies a decoded strategic merge patch, which must be an object.
pub fn strategic_merge(
    object: &mut Value,
    patch: &Value,
    typed: Typed<'_>,
) -> Result<(), PatchError> {
    let Value::Object(patch) = patch else {
        return Err(PatchError::Decode(format!(
            "json: cannot unmarshal {} into Go value of type map[string]interface {{}}",
            super::merge_patch::json_kind(patch)
        )));
    };
    let original = match object {
        Value::Object(map) => std::mem::take(map),
        _ => Map::new(),
    };
    *object = Value::Object(merge_map(original, patch.clone(), typed)?);
    Ok(())
}

fn fail<T>(message: String) -> Result<T, PatchError> {
    Err(PatchError::Strategic(message))
}

fn merge_map(
    mut original: Object,
    mut patch: Object,
    typed: Typed<'_>,
) -> Result<Object, PatchError> {
    match patch.get(PATCH) {
        None => {}
        Some(Value::String(word)) if word == "replace" => {
            patch.shift_remove(PATCH);
            return Ok(patch);
        }
        Some(Value::String(word)) if word == "delete" => return Ok(Map::new()),
        Some(word) => {
            return fail(format!(
                "unknown patch type: {} in map: {}",
                go_value(word),
                go_value(&Value::Object(patch.clone()))
            ));
        }
    }
    retain_keys(&mut original, &mut patch)?;
    set_element_orders(&mut original, &mut patch, typed)?;
    for (key, value) in patch {
        if let Some(list) = key.strip_prefix(DELETE_FROM) {
            delete_from_list(&mut original, list, &value)?;
            continue;
        }
        if value.is_null() {
            original.shift_remove(&key);
            continue;
        }
        let child = typed.child(&key).unwrap_or_else(|| typed.any());
        let merged = match original.get_mut(&key).map(Value::take) {
            None => clean(value),
            Some(Value::Object(old)) if value.is_object() => {
                let Value::Object(new) = value else { continue };
                Value::Object(merge_map(old, new, child)?)
            }
            Some(Value::Array(old)) if value.is_array() => {
                let Value::Array(new) = value else { continue };
                match child.ty() {
                    Type::List(list) if list.merge => {
                        Value::Array(merge_list(old, new, child, list)?)
                    }
                    _ => Value::Array(new),
                }
            }
            Some(_) => clean(value),
        };
        original.insert(key, merged);
    }
    Ok(original)
}

/// What a new value becomes: nulls, directives and elements to delete leave no trace.
fn clean(value: Value) -> Value {
    match value {
        Value::Object(map) => Value::Object(
            map.into_iter()
                .filter(|(key, value)| {
                    !value.is_null()
                        && key != PATCH
                        && key != RETAIN_KEYS
                        && !key.starts_with(DELETE_FROM)
                        && !key.starts_with(SET_ORDER)
                })
                .map(|(key, value)| (key, clean(value)))
                .collect(),
        ),
        Value::Array(items) => Value::Array(
            items
                .into_iter()
                .filter(|item| directive(item).is_none_or(|d| d != "delete" && d != "replace"))
                .map(clean)
                .collect(),
        ),
        other => other,
    }
}

fn directive(item: &Value) -> Option<&str> {
    item.get(PATCH).and_then(Value::as_str)
}

fn retain_keys(original: &mut Object, patch: &mut Object) -> Result<(), PatchError> {
    let Some(keys) = patch.shift_remove(RETAIN_KEYS) else { return Ok(()) };
    let Value::Array(keys) = keys else {
        return fail("expecting list of strings in $retainKeys".into());
    };
    let kept = |key: &str| keys.iter().any(|k| k.as_str() == Some(key));
    for (key, value) in patch.iter() {
        if !value.is_null() && !key.starts_with('$') && !kept(key) {
            return fail(format!(
                "patch contains fields not in retainKeys list: {}",
                go_value(&Value::Array(keys.clone()))
            ));
        }
    }
    original.retain(|key, _| kept(key));
    Ok(())
}

fn delete_from_list(original: &mut Object, key: &str, values: &Value) -> Result<(), PatchError> {
    let Value::Array(values) = values else {
        return fail(format!("expecting a list in {DELETE_FROM}{key}"));
    };
    if let Some(Value::Array(items)) = original.get_mut(key) {
        items.retain(|item| !values.contains(item));
    }
    Ok(())
}

fn set_element_orders(
    original: &mut Object,
    patch: &mut Object,
    typed: Typed<'_>,
) -> Result<(), PatchError> {
    let orders: Vec<String> = patch.keys().filter(|k| k.starts_with(SET_ORDER)).cloned().collect();
    for directive in orders {
        let Some(order) = patch.shift_remove(&directive) else { continue };
        let Value::Array(order) = order else {
            return fail(format!("expecting a list in {directive}"));
        };
        let key = &directive[SET_ORDER.len()..];
        let Some(child) = typed.child(key) else { continue };
        let Type::List(list) = child.ty() else { continue };
        let merge_key = merge_key(list);
        let changes = match patch.shift_remove(key) {
            Some(Value::Array(changes)) => changes,
            Some(Value::Null) => {
                original.shift_remove(key);
                continue;
            }
            _ => Vec::new(),
        };
        check_order(&changes, &order, merge_key, &directive)?;
        if let Some(delete) = patch.shift_remove(&format!("{DELETE_FROM}{key}")) {
            delete_from_list(original, key, &delete)?;
        }
        let live = match original.get_mut(key).map(Value::take) {
            Some(Value::Array(live)) => live,
            _ if changes.is_empty() => {
                original.shift_remove(key);
                continue;
            }
            _ => Vec::new(),
        };
        let merged = merge_list(live.clone(), changes, child, list)?;
        let (listed, others): (Vec<Value>, Vec<Value>) =
            merged.into_iter().partition(|item| position(&order, item, merge_key).is_some());
        let merged = in_order(listed, others, &order, &live, merge_key);
        original.insert(key.to_owned(), Value::Array(merged));
    }
    Ok(())
}

fn check_order(
    changes: &[Value],
    order: &[Value],
    merge_key: Option<&str>,
    name: &str,
) -> Result<(), PatchError> {
    let mut from = 0;
    for item in changes.iter().filter(|item| directive(item).is_none()) {
        match order[from..].iter().position(|other| same(item, other, merge_key)) {
            Some(found) => from += found + 1,
            None => {
                return fail(format!(
                    "The order in patch list:\n{}\n doesn't match {name} list:\n{}\n",
                    go_value(&Value::Array(changes.to_vec())),
                    go_value(&Value::Array(order.to_vec()))
                ));
            }
        }
    }
    Ok(())
}

fn merge_key(list: &List) -> Option<&str> {
    list.merge_key.as_deref().or(match &list.kind {
        ListKind::Map(keys) => keys.first().map(|k| &**k),
        _ => None,
    })
}

fn same(one: &Value, other: &Value, merge_key: Option<&str>) -> bool {
    match merge_key {
        Some(key) => one.get(key).is_some() && one.get(key) == other.get(key),
        None => one == other,
    }
}

fn position(items: &[Value], item: &Value, merge_key: Option<&str>) -> Option<usize> {
    items.iter().position(|other| same(item, other, merge_key))
}

fn merge_list(
    original: Vec<Value>,
    patch: Vec<Value>,
    typed: Typed<'_>,
    list: &List,
) -> Result<Vec<Value>, PatchError> {
    let key = merge_key(list);
    let live = original.clone();
    let (merged, patch) = match key {
        Some(key) => merge_keyed(original, patch, key, typed.at(list.items))?,
        None => {
            let mut merged = original;
            for item in &patch {
                if !merged.contains(item) {
                    merged.push(item.clone());
                }
            }
            (merged, patch)
        }
    };
    let (touched, others): (Vec<Value>, Vec<Value>) =
        merged.into_iter().partition(|item| position(&patch, item, key).is_some());
    Ok(in_order(touched, others, &patch, &live, key))
}

/// Merges the elements by key; gives the result and the patch without its directives.
fn merge_keyed(
    mut original: Vec<Value>,
    patch: Vec<Value>,
    key: &str,
    items: Typed<'_>,
) -> Result<(Vec<Value>, Vec<Value>), PatchError> {
    let mut changes = Vec::with_capacity(patch.len());
    let mut replace = false;
    for item in patch {
        match item.get(PATCH) {
            None => changes.push(item),
            Some(Value::String(word)) if word == "replace" => replace = true,
            Some(Value::String(word)) if word == "delete" => {
                if item.get(key).is_none() {
                    return missing_key(&item, key);
                }
                original.retain(|old| !same(old, &item, Some(key)));
            }
            Some(word) => {
                return fail(format!(
                    "unknown patch type: {} in map: {}",
                    go_value(word),
                    go_value(&item)
                ));
            }
        }
    }
    if replace {
        return Ok((changes.clone(), changes));
    }
    for item in &changes {
        if item.get(key).is_none() {
            return missing_key(item, key);
        }
        match position(&original, item, Some(key)) {
            Some(at) => {
                let (Value::Object(old), Value::Object(new)) = (original[at].take(), item.clone())
                else {
                    return missing_key(item, key);
                };
                original[at] = Value::Object(merge_map(old, new, items)?);
            }
            None => original.push(clean(item.clone())),
        }
    }
    Ok((original, changes))
}

fn missing_key<T>(item: &Value, key: &str) -> Result<T, PatchError> {
    fail(format!("map: {} does not contain declared merge key: {key}", go_value(item)))
}

/// Sorts the touched elements as the patch has them and weaves in the others by the live order.
fn in_order(
    mut touched: Vec<Value>,
    others: Vec<Value>,
    order: &[Value],
    live: &[Value],
    merge_key: Option<&str>,
) -> Vec<Value> {
    touched.sort_by_key(|item| position(order, item, merge_key).unwrap_or(usize::MAX));
    let mut out = Vec::with_capacity(touched.len() + others.len());
    let (mut touched, mut others) = (touched.into_iter().peekable(), others.into_iter().peekable());
    loop {
        match (others.peek(), touched.peek()) {
            (Some(other), Some(item)) => {
                let at = |value| position(live, value, merge_key);
                let first = matches!((at(other), at(item)), (Some(l), Some(r)) if l < r);
                out.extend(if first { others.next() } else { touched.next() });
            }
            (Some(_), None) => out.extend(others.next()),
            (None, Some(_)) => out.extend(touched.next()),
            (None, None) => return out,
        }
    }
}
