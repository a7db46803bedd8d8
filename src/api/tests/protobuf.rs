//! Every kind, from JSON to protobuf and back, without a loss.

#![allow(clippy::unwrap_used)]

use api::scheme::schema::Type;
use api::scheme::{Schema, Typed, shape};
use codec::protobuf::decode;
use codec::protobuf::encode::Encoder;
use kinds::resources::Catalog;
use serde_json::{Map, Value, json};

/// Objects of a type are made up to this depth.
const DEPTH_MAX: usize = 14;

/// Draws values; the same seed draws the same ones.
struct Draw {
    seed: u64,
    /// Everything is set, rather than every other thing.
    full: bool,
}

impl Draw {
    fn number(&mut self) -> u64 {
        self.seed = self.seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        self.seed >> 33
    }

    fn pick<T: Clone>(&mut self, from: &[T]) -> T {
        from[self.number() as usize % from.len()].clone()
    }

    fn text(&mut self) -> Value {
        self.pick(&["a", "b-1", "é\n\"\\", "\u{1f600}", "x".repeat(200).as_str()]).into()
    }

    fn value(&mut self, typed: Typed<'_>, name: &str, depth: usize) -> Value {
        match typed.ty() {
            Type::Any | Type::Deduced => self.any(name),
            Type::String => self.text(),
            Type::Bytes => self.pick(&["", "AQID", "/+8="]).into(),
            Type::Bool => self.pick(&[true, false]).into(),
            Type::Int32 => self.pick(&[0, 1, -1, i32::MAX, i32::MIN]).into(),
            Type::Int64 => self.pick(&[0, 1, -7, i64::MAX, i64::MIN]).into(),
            Type::Float => self.pick(&[0.5, -1e9, 3.25]).into(),
            Type::Time => self.pick(&["2024-01-02T03:04:05Z", "1960-01-01T00:00:00Z"]).into(),
            Type::MicroTime => {
                self.pick(&["2024-01-02T03:04:05.123456Z", "1969-12-31T23:59:59.250000Z"]).into()
            }
            Type::Quantity => self.pick(&["0", "1500m", "3Gi", "-2"]).into(),
            Type::IntOrString => self.pick(&[json!(0), json!(8080), json!("http"), json!("50%")]),
            Type::Map { values, .. } => {
                let keys: &[&str] = if self.full { &["b", "a/é", "c"] } else { &["k"] };
                let entry = |key: &&str| (key.to_string(), typed.at(*values));
                if name == "status" {
                    // An empty message (the status subresource of a custom resource).
                    return json!({});
                }
                let made: Vec<(String, Typed<'_>)> = keys.iter().map(entry).collect();
                let made =
                    made.into_iter().map(|(key, typed)| (key, self.value(typed, "", depth + 1)));
                Value::Object(made.collect())
            }
            Type::List(list) => {
                let count = 1 + self.number() % 2;
                (0..count).map(|_| self.value(typed.at(list.items), name, depth + 1)).collect()
            }
            Type::Object(object) => {
                let mut out = Map::new();
                // Messages have no room for the type of an embedded object.
                let whole = object.field("metadata").is_some();
                for field in &object.fields {
                    if whole && matches!(&*field.name, "apiVersion" | "kind") {
                        continue;
                    }
                    let inner = typed.at(field.ty);
                    if depth > DEPTH_MAX && !matches!(inner.ty(), Type::String | Type::Bool) {
                        continue;
                    }
                    if self.full || self.number().is_multiple_of(2) {
                        out.insert(
                            field.name.to_string(),
                            self.value(inner, &field.name, depth + 1),
                        );
                    }
                }
                Value::Object(out)
            }
        }
    }

    /// What may be anything, and what is one of two things (schemas of custom resources).
    fn any(&mut self, name: &str) -> Value {
        let schema = json!({"type": "string", "maxLength": 3});
        match name {
            "items" => self.pick(&[schema.clone(), json!([schema])]),
            "additionalProperties" | "additionalItems" => {
                self.pick(&[json!(true), json!(false), schema])
            }
            "" => self.pick(&[schema, json!(["a", "b"])]),
            _ => self.pick(&[json!({"a": [1, null, "x"]}), json!({})]),
        }
    }
}

fn check_round_trip(seed: u64, full: bool) {
    for resource in Catalog::built_in().resources() {
        for version in &resource.versions {
            let api_version = resource.api_version(version);
            let typed = Schema::built_in().kind(&resource.group, version, &resource.kind).unwrap();
            let depth = if resource.kind == "CustomResourceDefinition" { 4 } else { 0 };
            let mut object = Draw { seed, full }.value(typed, "", depth);
            object["apiVersion"] = api_version.as_str().into();
            object["kind"] = resource.kind.as_str().into();
            shape::normalise(&mut object, typed);
            let text = object.to_string();
            let encoder = Encoder::of(&api_version, &resource.kind).unwrap();
            let bytes = encoder.object(&api_version, &resource.kind, text.as_bytes()).unwrap();
            let mut back = decode(&bytes).unwrap();
            shape::normalise(&mut back, typed);
            let differences = differences(&object, &back, "");
            assert!(differences.is_empty(), "{api_version} {}: {differences:#?}", resource.kind);
            let again = encoder.object(&api_version, &resource.kind, back.to_string().as_bytes());
            assert!(
                bytes == again.unwrap(),
                "{api_version} {} is written in two ways",
                resource.kind
            );
        }
    }
}

fn differences(one: &Value, other: &Value, path: &str) -> Vec<String> {
    match (one, other) {
        (Value::Object(a), Value::Object(b)) => {
            let mut out = Vec::new();
            for (key, value) in a {
                let path = format!("{path}.{key}");
                match b.get(key) {
                    Some(other) => out.extend(differences(value, other, &path)),
                    None => out.push(format!("{path} is lost: {value}")),
                }
            }
            out.extend(
                b.keys()
                    .filter(|key| !a.contains_key(*key))
                    .map(|key| format!("{path}.{key} is new")),
            );
            out
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => a
            .iter()
            .zip(b)
            .enumerate()
            .flat_map(|(at, (a, b))| differences(a, b, &format!("{path}[{at}]")))
            .collect(),
        _ if one == other => Vec::new(),
        _ => vec![format!("{path}: {one} became {other}")],
    }
}

#[test]
fn every_kind_with_everything_set_survives() {
    check_round_trip(1, true);
}

#[test]
fn every_kind_with_anything_set_survives() {
    for seed in 0..12 {
        check_round_trip(seed * 7919, false);
    }
}

#[test]
fn an_object_is_written_as_go_writes_it() {
    let text = json!({
        "kind": "ConfigMap", "apiVersion": "v1", "data": {"b": "2", "a": "1"},
        "metadata": {"name": "n", "creationTimestamp": "1970-01-01T00:00:01Z"},
    });
    let encoder = Encoder::of("v1", "ConfigMap").unwrap();
    let got = encoder.object("v1", "ConfigMap", text.to_string().as_bytes()).unwrap();
    // name, five empty texts, generation 0, the time in seconds and nanoseconds.
    let metadata =
        b"\x0a\x01n\x12\x00\x1a\x00\x22\x00\x2a\x00\x32\x00\x38\x00\x42\x04\x08\x01\x10\x00";
    let mut message = vec![0x0a, metadata.len() as u8];
    message.extend_from_slice(metadata);
    message.extend_from_slice(b"\x12\x06\x0a\x01a\x12\x011\x12\x06\x0a\x01b\x12\x012");
    let mut expected = b"k8s\0\x0a\x0f\x0a\x02v1\x12\x09ConfigMap".to_vec();
    expected.extend_from_slice(&[0x12, message.len() as u8]);
    expected.extend_from_slice(&message);
    expected.extend_from_slice(&[0x1a, 0, 0x22, 0]);
    assert_eq!(got, expected);
}

#[test]
fn damaged_json_is_an_error_and_never_a_panic() {
    let typed = Schema::built_in().kind("", "v1", "Pod").unwrap();
    let mut pod = Draw { seed: 3, full: true }.value(typed, "", 0);
    shape::normalise(&mut pod, typed);
    let text = pod.to_string().into_bytes();
    let encoder = Encoder::of("v1", "Pod").unwrap();
    let mut seed = 1u64;
    for _ in 0..300 {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let mut junk = text.clone();
        let at = (seed >> 33) as usize % junk.len();
        junk[at] = (seed >> 20) as u8;
        let _ = encoder.message(&junk);
        let _ = encoder.message(&text[..at]);
    }
}
