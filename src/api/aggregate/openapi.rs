//! The parts of other servers in our OpenAPI v2 document.
//!
//! Only paths of their own groups are taken. A definition that is called like another but
//! is another gets a name of its own.

use std::collections::BTreeSet;
use std::io::{Read, Write};

use bytes::Bytes;
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use serde_json::{Map, Value, json};

/// What is kept of one server's document, packed; a larger one is left out.
const PACKED_BYTES_MAX: usize = 4 << 20;
/// And unpacked.
const BYTES_MAX: u64 = 64 << 20;
/// Sections whose entries are referred to.
const SECTIONS: [&str; 2] = ["definitions", "parameters"];

/// The part of a document below `root` (`/apis/GROUP/VERSION`), with what it refers to.
pub fn part(document: &Value, root: &str) -> Value {
    let below = format!("{root}/");
    let paths = document["paths"].as_object().into_iter().flatten();
    let paths: Map<String, Value> = paths
        .filter(|(path, _)| *path == root || path.starts_with(&below))
        .map(|(path, item)| (path.clone(), item.clone()))
        .collect();
    let mut out = json!({
        "info": document["info"], "paths": paths, "definitions": {}, "parameters": {},
        "securityDefinitions": document["securityDefinitions"],
    });
    let mut seen = BTreeSet::new();
    let mut todo = Vec::new();
    references(&out["paths"], &mut todo);
    while let Some(reference) = todo.pop() {
        let Some((section, name)) = split(&reference) else { continue };
        if !seen.insert(reference.clone()) {
            continue;
        }
        if let Some(found) = document[section].get(name) {
            references(found, &mut todo);
            out[section][name] = found.clone();
        }
    }
    out
}

/// `#/definitions/NAME`
fn split(reference: &str) -> Option<(&'static str, &str)> {
    SECTIONS.iter().find_map(|section| {
        let name = reference.strip_prefix("#/")?.strip_prefix(section)?.strip_prefix('/')?;
        Some((*section, name))
    })
}

fn references(value: &Value, out: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            if let Some(reference) = map.get("$ref").and_then(Value::as_str) {
                out.push(reference.to_string());
            }
            map.values().for_each(|inner| references(inner, out));
        }
        Value::Array(items) => items.iter().for_each(|inner| references(inner, out)),
        _ => {}
    }
}

/// Puts a part into a document; paths that are there already stay as they are.
pub fn merge(document: &mut Value, mut part: Value) {
    for section in SECTIONS {
        let entries = part[section].as_object().cloned().unwrap_or_default();
        for (name, entry) in entries {
            let known = document[section].get(&name);
            if known.is_none_or(|known| *known == entry) {
                continue;
            }
            let free = (2u32..).map(|n| format!("{name}_v{n}")).find(|free| {
                document[section].get(free).is_none() && part[section].get(free).is_none()
            });
            let Some(free) = free else { continue };
            if let Some(map) = part[section].as_object_mut() {
                map.shift_remove(&name);
                map.insert(free.clone(), entry);
            }
            let (from, to) = (format!("#/{section}/{name}"), format!("#/{section}/{free}"));
            rename(&mut part, &from, &to);
        }
    }
    for section in ["definitions", "parameters", "paths"] {
        let (Some(into), Value::Object(entries)) =
            (document[section].as_object_mut(), part[section].take())
        else {
            continue;
        };
        for (name, entry) in entries {
            into.entry(name).or_insert(entry);
        }
    }
}

fn rename(value: &mut Value, from: &str, to: &str) {
    match value {
        Value::Object(map) => {
            if map.get("$ref").is_some_and(|reference| reference == from) {
                map.insert("$ref".into(), to.into());
            }
            map.values_mut().for_each(|inner| rename(inner, from, to));
        }
        Value::Array(items) => items.iter_mut().for_each(|inner| rename(inner, from, to)),
        _ => {}
    }
}

/// A part as it is kept; None if there is nothing, or too much.
pub fn pack(part: &Value) -> Option<Bytes> {
    part["paths"].as_object().filter(|paths| !paths.is_empty())?;
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(part.to_string().as_bytes()).ok()?;
    let packed = encoder.finish().ok()?;
    (packed.len() <= PACKED_BYTES_MAX).then(|| packed.into())
}

/// What tells one part from another.
pub fn hash(packed: &[u8]) -> String {
    let hash = ring::digest::digest(&ring::digest::SHA256, packed);
    hash.as_ref().iter().map(|byte| format!("{byte:02X}")).collect()
}

/// What [`pack`] packed.
pub fn unpack(packed: &[u8]) -> Option<Value> {
    let mut text = Vec::new();
    GzDecoder::new(packed).take(BYTES_MAX).read_to_end(&mut text).ok()?;
    serde_json::from_slice(&text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn theirs() -> Value {
        let path =
            |name: &str| json!({"get": {"schema": {"$ref": format!("#/definitions/{name}")}}});
        json!({
            "paths": {
                "/apis/a/v1/": path("A"), "/apis/a/v1/things": path("Thing"),
                "/apis/a/v10/things": path("Other"), "/api/v1/pods": path("Pod"),
            },
            "definitions": {
                "A": {"type": "string"},
                "Thing": {"properties": {"meta": {"$ref": "#/definitions/Meta"}}},
                "Meta": {"properties": {"self": {"$ref": "#/definitions/Meta"}}},
                "Other": {}, "Pod": {},
            },
        })
    }

    #[test]
    fn only_a_groups_own_part_is_taken() {
        let part = part(&theirs(), "/apis/a/v1");
        let keys = |section: &str| -> Vec<String> {
            let mut keys: Vec<String> =
                part[section].as_object().unwrap().keys().cloned().collect();
            keys.sort();
            keys
        };
        assert_eq!(keys("paths"), ["/apis/a/v1/", "/apis/a/v1/things"]);
        assert_eq!(keys("definitions"), ["A", "Meta", "Thing"]);
        assert_eq!(unpack(&pack(&part).unwrap()).unwrap(), part);
        assert!(pack(&self::part(&theirs(), "/apis/b/v1")).is_none());
    }

    #[test]
    fn what_is_called_the_same_but_is_not_gets_another_name() {
        let mut ours = json!({"paths": {"/apis/a/v1/": "ours"}, "parameters": {},
            "definitions": {"A": {"type": "string"}, "Meta": {"type": "object"}}});
        merge(&mut ours, part(&theirs(), "/apis/a/v1"));
        assert_eq!(ours["paths"]["/apis/a/v1/"], "ours");
        assert!(ours["paths"]["/apis/a/v1/things"].is_object());
        let definitions = ours["definitions"].as_object().unwrap();
        assert_eq!(definitions.len(), 4);
        assert_eq!(definitions["Meta"], json!({"type": "object"}));
        assert_eq!(definitions["Thing"]["properties"]["meta"]["$ref"], "#/definitions/Meta_v2");
        assert_eq!(definitions["Meta_v2"]["properties"]["self"]["$ref"], "#/definitions/Meta_v2");
    }
}
