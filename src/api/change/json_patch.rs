//! JSON patch (RFC 6902) with the liberties upstream's library takes.
//!
//! `replace` of a missing key adds it, negative indices count from the end, and a `test` of a
//! missing key against null passes. Everything else that fails gives `PatchError::Rejected`.

use serde_json::{Map, Value};

use super::PatchError;

/// More operations are refused.
pub const OPERATIONS_MAX: usize = 10_000;
/// An object may not get deeper than this by a patch, or recursion would exhaust the stack.
const DEPTH_MAX: usize = 256;
/// A patch may not copy or move more JSON nodes than this.
const COPIED_NODES_MAX: usize = 1_000_000;
/// Nor may copies make more text than this many bytes (upstream's limit).
const COPIED_BYTES_MAX: usize = 3 << 20;

const FIELDS: [&str; 4] = ["op", "path", "from", "value"];

/// Applies the operations in order; on an error the object is left half-changed and to be dropped.
pub fn json_patch(object: &mut Value, patch: &Value) -> Result<(), PatchError> {
    let Value::Array(operations) = patch else {
        return Err(PatchError::Decode(format!(
            "json: cannot unmarshal {} into Go value of type []handlers.jsonPatchOp",
            super::merge_patch::json_kind(patch)
        )));
    };
    if operations.len() > OPERATIONS_MAX {
        let got = operations.len();
        return Err(PatchError::TooManyOperations { max: OPERATIONS_MAX, got });
    }
    let mut copied = Copied::default();
    for operation in operations {
        step(object, operation, &mut copied).ok_or(PatchError::Rejected)?;
    }
    Ok(())
}

/// Strict validation of the patch itself: `json patch unknown field "[0].nosuch"`.
pub fn unknown_patch_fields(patch: &Value) -> Vec<String> {
    let operations = patch.as_array().map(Vec::as_slice).unwrap_or_default();
    let mut out = Vec::new();
    for (index, operation) in operations.iter().enumerate() {
        for key in operation.as_object().into_iter().flat_map(Map::keys) {
            if !FIELDS.contains(&key.as_str()) {
                out.push(format!("json patch unknown field \"[{index}].{key}\""));
            }
        }
    }
    out
}

/// What a patch has multiplied so far.
#[derive(Default)]
struct Copied {
    nodes: usize,
    bytes: usize,
}

impl Copied {
    fn count(&mut self, value: &Value, copy: bool) -> Option<()> {
        self.nodes += nodes(value);
        if copy {
            self.bytes += bytes(value);
        }
        (self.nodes <= COPIED_NODES_MAX && self.bytes <= COPIED_BYTES_MAX).then_some(())
    }
}

fn step(object: &mut Value, operation: &Value, copied: &mut Copied) -> Option<()> {
    let word = |key| operation.get(key).and_then(Value::as_str);
    let path = pointer(word("path")?)?;
    let value = || operation.get("value").cloned().unwrap_or(Value::Null);
    match word("op")? {
        "add" => add(object, &path, value()),
        "replace" => replace(object, &path, value()),
        "remove" => remove(object, &path).map(drop),
        "test" => test(object, &path, operation.get("value")),
        "move" => {
            let moved = remove(object, &pointer(word("from")?)?)?;
            copied.count(&moved, false)?;
            add(object, &path, moved)
        }
        "copy" => {
            let copy = get(object, &pointer(word("from")?)?)?;
            copied.count(copy, true)?;
            let copy = copy.clone();
            add(object, &path, copy)
        }
        _ => None,
    }
}

fn pointer(path: &str) -> Option<Vec<String>> {
    if path.is_empty() {
        return Some(Vec::new());
    }
    let path = path.strip_prefix('/')?;
    Some(path.split('/').map(|t| t.replace("~1", "/").replace("~0", "~")).collect())
}

fn nodes(value: &Value) -> usize {
    match value {
        Value::Array(items) => 1 + items.iter().map(nodes).sum::<usize>(),
        Value::Object(map) => 1 + map.values().map(nodes).sum::<usize>(),
        _ => 1,
    }
}

/// About how long the value is as text.
fn bytes(value: &Value) -> usize {
    match value {
        Value::String(text) => text.len() + 2,
        Value::Array(items) => 2 + items.iter().map(|item| bytes(item) + 1).sum::<usize>(),
        Value::Object(map) => {
            2 + map.iter().map(|(key, value)| key.len() + bytes(value) + 4).sum::<usize>()
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => 4,
    }
}

fn depth(value: &Value) -> usize {
    match value {
        Value::Array(items) => 1 + items.iter().map(depth).max().unwrap_or(0),
        Value::Object(map) => 1 + map.values().map(depth).max().unwrap_or(0),
        _ => 0,
    }
}

fn index(token: &str, length: usize) -> Option<usize> {
    let at: i64 = token.parse().ok()?;
    let at = if at < 0 { at + length as i64 } else { at };
    usize::try_from(at).ok()
}

fn get<'a>(mut value: &'a Value, path: &[String]) -> Option<&'a Value> {
    for token in path {
        value = match value {
            Value::Object(map) => map.get(token)?,
            Value::Array(items) => items.get(index(token, items.len())?)?,
            _ => return None,
        };
    }
    Some(value)
}

fn parent<'a, 'p>(
    mut value: &'a mut Value,
    path: &'p [String],
) -> Option<(&'a mut Value, &'p str)> {
    let (last, parents) = path.split_last()?;
    for token in parents {
        value = match value {
            Value::Object(map) => map.get_mut(token)?,
            Value::Array(items) => {
                let at = index(token, items.len())?;
                items.get_mut(at)?
            }
            _ => return None,
        };
    }
    Some((value, last))
}

fn add(object: &mut Value, path: &[String], value: Value) -> Option<()> {
    if path.len() + depth(&value) > DEPTH_MAX {
        return None;
    }
    if path.is_empty() {
        *object = value;
        return Some(());
    }
    let (parent, token) = parent(object, path)?;
    match parent {
        Value::Object(map) => {
            map.insert(token.to_owned(), value);
        }
        Value::Array(items) if token == "-" => items.push(value),
        Value::Array(items) => {
            // A negative index of an addition counts from behind the last element.
            let at = index(token, items.len() + 1)?;
            if at > items.len() {
                return None;
            }
            items.insert(at, value);
        }
        _ => return None,
    }
    Some(())
}

fn replace(object: &mut Value, path: &[String], value: Value) -> Option<()> {
    if path.len() + depth(&value) > DEPTH_MAX {
        return None;
    }
    if path.is_empty() {
        *object = value;
        return Some(());
    }
    let (parent, token) = parent(object, path)?;
    match parent {
        Value::Object(map) => {
            map.insert(token.to_owned(), value);
        }
        Value::Array(items) => {
            let at = index(token, items.len())?;
            *items.get_mut(at)? = value;
        }
        _ => return None,
    }
    Some(())
}

fn remove(object: &mut Value, path: &[String]) -> Option<Value> {
    let (parent, token) = parent(object, path)?;
    match parent {
        Value::Object(map) => map.shift_remove(token),
        Value::Array(items) => {
            let at = index(token, items.len())?;
            (at < items.len()).then(|| items.remove(at))
        }
        _ => None,
    }
}

fn test(object: &Value, path: &[String], want: Option<&Value>) -> Option<()> {
    let want = want.unwrap_or(&Value::Null);
    let got = get(object, path).unwrap_or(&Value::Null);
    (got == want).then_some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn check(object: Value, patch: Value) -> Option<Value> {
        let mut object = object;
        json_patch(&mut object, &patch).ok().map(|()| object)
    }

    #[test]
    fn operations_as_upstream_does_them() {
        let object = json!({"a": "1", "l": ["x", "y"], "m~/n": 1});
        for (patch, want) in [
            (
                json!([{"op": "replace", "path": "/new", "value": 1}]),
                Some(json!({"a": "1", "l": ["x", "y"], "m~/n": 1, "new": 1})),
            ),
            (
                json!([{"op": "remove", "path": "/l/-1"}]),
                Some(json!({"a": "1", "l": ["x"], "m~/n": 1})),
            ),
            (
                json!([{"op": "add", "path": "/l/0", "value": "w"}, {"op": "add", "path": "/l/-", "value": "z"}]),
                Some(json!({"a": "1", "l": ["w", "x", "y", "z"], "m~/n": 1})),
            ),
            (
                json!([{"op": "move", "from": "/m~0~1n", "path": "/o"}, {"op": "copy", "from": "/o", "path": "/p"}]),
                Some(json!({"a": "1", "l": ["x", "y"], "o": 1, "p": 1})),
            ),
            (json!([{"op": "test", "path": "/a", "value": "2"}]), None),
            (json!([{"op": "remove", "path": "/nosuch"}]), None),
            (json!([{"op": "remove", "path": "/l/9"}]), None),
            (json!([{"op": "add", "path": "/q/r", "value": 1}]), None),
            (json!([{"op": "frobnicate", "path": "/a"}]), None),
            (json!([]), Some(json!({"a": "1", "l": ["x", "y"], "m~/n": 1}))),
        ] {
            assert_eq!(check(object.clone(), patch.clone()), want, "{patch}");
        }
        assert_eq!(
            unknown_patch_fields(&json!([{"op": "add", "path": "/a", "value": 1, "nosuch": 1}])),
            ["json patch unknown field \"[0].nosuch\""]
        );
    }

    #[test]
    fn a_patch_cannot_make_an_object_too_deep() {
        let deep = "[".repeat(100) + &"]".repeat(100);
        let value: Value = serde_json::from_str(&deep).unwrap();
        let path = |steps: usize| "/0".repeat(steps);
        let grow =
            |steps| json!({"op": "add", "path": format!("/a{}", path(steps)), "value": value});
        assert!(check(json!({}), json!([grow(0), grow(99)])).is_some());
        assert!(check(json!({}), json!([grow(0), grow(99), grow(198)])).is_none());
    }
}
