//! Brings custom objects into shape: unknown fields go, defaults come, metadata is read
//! as metadata (apiextensions-apiserver, `schema/pruning`, `defaulting`, `objectmeta`).
//!
//! Finds what the schema does not know on the way, and refuses nothing but metadata that
//! cannot be read.

use serde_json::{Map, Value};

use super::schema::Node;
use crate::scheme::{Schema, Typed, shape};

/// What every object has besides its schema.
const META: [&str; 3] = ["apiVersion", "kind", "metadata"];
/// Unknown fields told of one object.
const UNKNOWN_MAX: usize = 100;

/// The type of `metadata` everywhere.
pub fn object_meta() -> Typed<'static> {
    Schema::built_in()
        .definition("apimachinery.pkg.apis.meta.v1.ObjectMeta")
        .unwrap_or_else(Schema::untyped)
}

/// Takes away what the schema of the whole object does not know. Returns the paths of what
/// went, in upstream's order.
pub fn prune(object: &mut Value, node: &Node) -> Vec<String> {
    let mut unknown = Vec::new();
    let mut path = String::new();
    let mut walk = Pruning { path: &mut path, unknown: &mut unknown };
    if node.preserve_unknown {
        walk.skip(object, node, true);
    } else {
        walk.prune(object, Some(node), true);
    }
    unknown.sort_unstable();
    unknown
}

/// The same for a part of an object, which is no resource of its own.
pub fn prune_part(value: &mut Value, node: &Node) {
    let (mut path, mut unknown) = (String::new(), Vec::new());
    Pruning { path: &mut path, unknown: &mut unknown }.prune(value, Some(node), false);
}

struct Pruning<'a> {
    path: &'a mut String,
    unknown: &'a mut Vec<String>,
}

impl Pruning<'_> {
    fn below(&mut self, key: &str, walk: impl FnOnce(&mut Self)) {
        let length = self.path.len();
        if length > 0 {
            self.path.push('.');
        }
        self.path.push_str(key);
        walk(self);
        self.path.truncate(length);
    }

    fn at(&mut self, index: usize, walk: impl FnOnce(&mut Self)) {
        let length = self.path.len();
        self.path.push_str(&format!("[{index}]"));
        walk(self);
        self.path.truncate(length);
    }

    fn record(&mut self, key: &str) {
        if self.unknown.len() < UNKNOWN_MAX {
            let dot = if self.path.is_empty() { "" } else { "." };
            self.unknown.push(format!("{}{dot}{key}", self.path));
        }
    }

    fn prune(&mut self, value: &mut Value, node: Option<&Node>, root: bool) {
        if let Some(node) = node
            && node.preserve_unknown
        {
            return self.skip(value, node, root);
        }
        match value {
            Value::Object(map) => {
                let Some(node) = node else {
                    map.keys().for_each(|key| self.record(key));
                    map.clear();
                    return;
                };
                let resource = root || node.embedded;
                let mut gone = Vec::new();
                for (key, child) in map.iter_mut() {
                    if resource && META.contains(&key.as_str()) {
                        continue;
                    }
                    if let Some(below) = node.properties.get(key) {
                        self.below(key, |walk| walk.prune(child, Some(below), false));
                    } else if node.additional.is_said() {
                        let below = node.additional.node();
                        self.below(key, |walk| walk.prune(child, below, false));
                    } else {
                        gone.push(key.clone());
                    }
                }
                for key in gone {
                    if !META.contains(&key.as_str()) || !self.path.is_empty() {
                        self.record(&key);
                    }
                    map.shift_remove(&key);
                }
            }
            Value::Array(items) => {
                for (index, item) in items.iter_mut().enumerate() {
                    let below = node.and_then(|node| node.items.as_deref());
                    self.at(index, |walk| walk.prune(item, below, false));
                }
            }
            _ => {}
        }
    }

    /// Unknown fields stay here; known ones are looked into.
    fn skip(&mut self, value: &mut Value, node: &Node, root: bool) {
        match value {
            Value::Object(map) => {
                let resource = root || node.embedded;
                for (key, child) in map.iter_mut() {
                    if resource && META.contains(&key.as_str()) {
                        continue;
                    }
                    if let Some(below) = node.properties.get(key) {
                        self.below(key, |walk| walk.prune(child, Some(below), false));
                    } else if node.additional.is_said() {
                        let below = node.additional.node();
                        self.below(key, |walk| walk.prune(child, below, false));
                    }
                }
            }
            Value::Array(items) => {
                let Some(below) = node.items.as_deref() else { return };
                for (index, item) in items.iter_mut().enumerate() {
                    self.at(index, |walk| walk.skip(item, below, false));
                }
            }
            _ => {}
        }
    }
}

/// Takes away nulls where the schema allows none and has no default.
pub fn prune_nulls(value: &mut Value, node: Option<&Node>) {
    match value {
        Value::Object(map) => {
            map.retain(|key, child| {
                let below = node.and_then(|node| node.field(key));
                let drop = child.is_null()
                    && below.is_some_and(|below| !below.nullable && below.default.is_none());
                if !drop {
                    prune_nulls(child, below);
                }
                !drop
            });
        }
        Value::Array(items) => {
            let below = node.and_then(|node| node.items.as_deref());
            items.iter_mut().for_each(|item| prune_nulls(item, below));
        }
        _ => {}
    }
}

/// Fills in defaults: where a field is missing, and where it is null and may not be.
pub fn default(value: &mut Value, node: &Node) {
    if !node.has_defaults {
        return;
    }
    let stands_in = |value: &mut Value, node: &Node| {
        if value.is_null() && !node.nullable {
            *value = node.default.as_deref().cloned().unwrap_or(Value::Null);
        }
    };
    match value {
        Value::Object(map) => {
            for (key, below) in node.properties.iter() {
                let Some(default) = &below.default else { continue };
                let missing = match map.get(key) {
                    None => true,
                    Some(held) => held.is_null() && !below.nullable,
                };
                if missing {
                    map.insert(key.to_string(), Value::clone(default));
                }
            }
            for (key, child) in map.iter_mut() {
                if let Some(below) = node.properties.get(key) {
                    default(child, below);
                } else if let Some(below) = node.additional.node() {
                    stands_in(child, below);
                    default(child, below);
                }
            }
        }
        Value::Array(items) => {
            let Some(below) = node.items.as_deref() else { return };
            for item in items {
                stands_in(item, below);
                default(item, below);
            }
        }
        _ => {}
    }
}

/// Reads `metadata` of the object as metadata: what it does not have goes, and is told by
/// its path.
///
/// # Errors
/// The decoder's sentence for a value of a wrong type.
pub fn coerce_metadata(object: &mut Value) -> Result<Vec<String>, String> {
    let Some(metadata) = object.get_mut("metadata") else { return Ok(Vec::new()) };
    read_metadata(metadata, "metadata")
}

fn read_metadata(metadata: &mut Value, path: &str) -> Result<Vec<String>, String> {
    let typed = object_meta();
    if metadata.is_null() {
        *metadata = Value::Object(Map::new());
    }
    if !metadata.is_object() {
        let got = match metadata {
            Value::Array(_) => "array",
            Value::String(_) => "string",
            Value::Bool(_) => "bool",
            _ => "number",
        };
        return Err(format!("json: cannot unmarshal {got} into Go value of type v1.ObjectMeta"));
    }
    shape::check_types(metadata, typed, "ObjectMeta").map_err(|mismatch| mismatch.to_string())?;
    let unknown = shape::unknown_fields(metadata, typed);
    shape::normalise(metadata, typed);
    Ok(unknown.into_iter().map(|field| format!("{path}.{field}")).collect())
}

/// A resource inside an object whose metadata cannot be read.
pub struct BadEmbedded {
    pub field: String,
    pub value: Value,
    pub said: String,
}

/// Reads the metadata of resources inside the object.
///
/// # Errors
/// The first that cannot be read; with `lenient` it is taken away instead.
pub fn coerce_embedded(
    object: &mut Value,
    node: &Node,
    lenient: bool,
) -> Result<Vec<String>, BadEmbedded> {
    let mut unknown = Vec::new();
    embedded(object, node, "", false, lenient, &mut unknown)?;
    unknown.sort_unstable();
    Ok(unknown)
}

fn embedded(
    value: &mut Value,
    node: &Node,
    path: &str,
    resource: bool,
    lenient: bool,
    unknown: &mut Vec<String>,
) -> Result<(), BadEmbedded> {
    let child_path =
        |key: &str| if path.is_empty() { key.to_string() } else { format!("{path}.{key}") };
    match value {
        Value::Object(map) => {
            if resource || node.embedded {
                for key in ["apiVersion", "kind"] {
                    let Some(held) = map.get(key).filter(|held| !held.is_string()) else {
                        continue;
                    };
                    if lenient {
                        map.shift_remove(key);
                    } else {
                        return Err(BadEmbedded {
                            field: child_path(key),
                            value: held.clone(),
                            said: "must be a string".into(),
                        });
                    }
                }
                if let Some(metadata) = map.get_mut("metadata") {
                    let before = metadata.clone();
                    let at = child_path("metadata");
                    match read_metadata(metadata, &at) {
                        Ok(more) => unknown.extend(more),
                        Err(_) if lenient => {
                            map.shift_remove("metadata");
                        }
                        Err(said) => return Err(BadEmbedded { field: at, value: before, said }),
                    }
                }
            }
            for (key, child) in map.iter_mut() {
                if let Some(below) = node.properties.get(key) {
                    embedded(child, below, &child_path(key), false, lenient, unknown)?;
                } else if let Some(below) = node.additional.node() {
                    let at = format!("{path}[{key}]");
                    embedded(child, below, &at, false, lenient, unknown)?;
                }
            }
        }
        Value::Array(items) => {
            let Some(below) = node.items.as_deref() else { return Ok(()) };
            for (index, item) in items.iter_mut().enumerate() {
                embedded(item, below, &format!("{path}[{index}]"), false, lenient, unknown)?;
            }
        }
        _ => {}
    }
    Ok(())
}

/// Floats without a fraction become whole numbers, as they are once written and read again.
pub fn whole_numbers(value: &mut Value) {
    match value {
        Value::Number(number) if number.is_f64() => {
            let float = number.as_f64().unwrap_or(0.5);
            if float.fract() == 0.0 && float.abs() < 9e15 {
                *value = (float as i64).into();
            }
        }
        Value::Object(map) => map.values_mut().for_each(whole_numbers),
        Value::Array(items) => items.iter_mut().for_each(whole_numbers),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn node() -> Node {
        Node::compile(&json!({"type": "object", "properties": {
            "spec": {"type": "object", "properties": {
                "a": {"type": "string", "default": "x"},
                "n": {"type": "string", "nullable": true},
                "m": {"type": "object", "additionalProperties": {"type": "object",
                    "properties": {"k": {"type": "integer", "default": 1}}}},
                "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true,
                    "properties": {"known": {"type": "object", "properties": {}}}},
                "pod": {"type": "object", "x-kubernetes-embedded-resource": true,
                    "x-kubernetes-preserve-unknown-fields": true},
            }},
        }}))
    }

    #[test]
    fn unknown_fields_go_and_are_told() {
        let mut object = json!({"apiVersion": "v1", "kind": "A", "metadata": {"name": "n"},
            "z": 1, "spec": {"y": 1, "m": {"one": {"w": 1}},
                "free": {"any": 1, "known": {"v": 1}}}});
        assert_eq!(
            prune(&mut object, &node()),
            ["spec.free.known.v", "spec.m.one.w", "spec.y", "z"]
        );
        assert_eq!(object["spec"], json!({"m": {"one": {}}, "free": {"any": 1, "known": {}}}));
    }

    #[test]
    fn defaults_come_where_something_is_missing_or_may_not_be_null() {
        let mut object =
            json!({"spec": {"a": null, "n": null, "m": {"one": {}, "two": {"k": null}}}});
        prune_nulls(&mut object, Some(&node()));
        default(&mut object, &node());
        assert_eq!(
            object,
            json!({"spec": {"a": "x", "n": null, "m": {"one": {"k": 1}, "two": {"k": 1}}}})
        );
    }

    #[test]
    fn metadata_inside_is_read_as_metadata() {
        let mut object =
            json!({"spec": {"pod": {"kind": "Pod", "metadata": {"name": "x", "y": 1}}}});
        let unknown = coerce_embedded(&mut object, &node(), false).ok().unwrap();
        assert_eq!(unknown, ["spec.pod.metadata.y"]);
        let mut bad = json!({"spec": {"pod": {"metadata": {"labels": {"a": 1}}}}});
        assert!(coerce_embedded(&mut bad, &node(), false).is_err());
        assert!(coerce_embedded(&mut bad, &node(), true).is_ok());
    }
}
