//! OpenAPI documents in protobuf: v2 is the form kubectl asks for when it meets a kind it does
//! not know, v3 the one of client-go (gnostic's OpenAPIv2.proto and OpenAPIv3.proto).
//!
//! Only what our own documents hold is written; tests look that nothing else is in them.

use serde_json::{Map, Value};

mod v2;
mod v3;

/// What clients ask for.
pub const MEDIA_TYPE: &str = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";
/// What the answer says of itself: an `@` has no place in a media type.
pub const ANSWER_TYPE: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";

/// The same of v3.
pub const V3_MEDIA_TYPE: &str = "application/com.github.proto-openapi.spec.v3@v1.0+protobuf";
pub const V3_ANSWER_TYPE: &str = "application/com.github.proto-openapi.spec.v3.v1.0+protobuf";

/// How a JSON value becomes a field. A list of numbers is that of the messages around it.
enum Kind {
    Text,
    Flag,
    Whole,
    Texts,
    /// One text or several, in a message of their own.
    TextsInside,
    One(&'static [u32], &'static Message),
    Many(&'static [u32], &'static Message),
    /// A map: the number of the pairs, what is around a value, and the value.
    Pairs(u32, &'static [u32], &'static Message),
    /// A whole number that is written as one.
    Count,
    /// Any value, as YAML.
    Yaml,
    Yamls,
    /// A number, true or false, or a text; others have no place.
    Default,
    /// A schema, or true or false.
    SchemaOrFlag(&'static Message),
    /// The message itself is one of two.
    SchemaOrReference,
    /// Which of these messages it is, its `in` tells; or it is a reference.
    Parameters,
    /// A map of them.
    NamedParameters,
    /// `[{"BearerToken": []}]`
    Requirements,
}

struct Message {
    fields: &'static [(&'static str, u32, Kind)],
    /// Where what begins with `x-` goes; 0 is nowhere.
    extensions: u32,
}

/// A document of v2 in protobuf.
pub fn encode(document: &Value) -> Vec<u8> {
    message(&v2::DOCUMENT, document)
}

/// A document of v3 in protobuf.
pub fn encode_v3(document: &Value) -> Vec<u8> {
    message(&v3::DOCUMENT, document)
}

fn message(about: &Message, value: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    if let [(_, _, Kind::SchemaOrReference)] = about.fields {
        match value.get("$ref") {
            Some(_) => put(&mut out, 2, &message(&v3::REFERENCE, value)),
            None => put(&mut out, 1, &message(&v3::SCHEMA, value)),
        }
        return out;
    }
    let empty = Map::new();
    let map = value.as_object().unwrap_or(&empty);
    for (name, number, kind) in about.fields {
        if let Some(value) = map.get(*name) {
            field(&mut out, *number, kind, value);
        }
    }
    for (name, value) in map.iter().filter(|(name, _)| name.starts_with("x-")) {
        put(&mut out, about.extensions, &pair(name, &yaml(value)));
    }
    out
}

/// Any value as YAML, which JSON is as well.
fn yaml(value: &Value) -> Vec<u8> {
    let mut any = Vec::new();
    put(&mut any, 2, value.to_string().as_bytes());
    any
}

fn field(out: &mut Vec<u8>, number: u32, kind: &Kind, value: &Value) {
    let items = || value.as_array().into_iter().flatten();
    let entries = || value.as_object().into_iter().flatten();
    match kind {
        Kind::Text => put(out, number, value.as_str().unwrap_or_default().as_bytes()),
        Kind::Flag => put_number(out, number, u64::from(value == true)),
        Kind::Whole => {
            varint(out, u64::from(number) << 3 | 1);
            out.extend(value.as_f64().unwrap_or_default().to_le_bytes());
        }
        Kind::Texts => {
            for text in items().filter_map(Value::as_str) {
                put(out, number, text.as_bytes());
            }
        }
        Kind::TextsInside => {
            let mut inside = Vec::new();
            for text in value.as_str().into_iter().chain(items().filter_map(Value::as_str)) {
                put(&mut inside, 1, text.as_bytes());
            }
            put(out, number, &inside);
        }
        Kind::One(around, about) => put(out, number, &wrapped(around, message(about, value))),
        Kind::Many(around, about) => {
            for item in items() {
                put(out, number, &wrapped(around, message(about, item)));
            }
        }
        Kind::Pairs(at, around, about) => {
            let mut inside = Vec::new();
            for (name, value) in entries() {
                put(&mut inside, *at, &pair(name, &wrapped(around, message(about, value))));
            }
            put(out, number, &inside);
        }
        Kind::Count => put_number(out, number, value.as_u64().unwrap_or_default()),
        Kind::Yaml => put(out, number, &yaml(value)),
        Kind::Yamls => items().for_each(|item| put(out, number, &yaml(item))),
        Kind::Default => {
            let mut inside = Vec::new();
            match value {
                Value::Number(_) => field(&mut inside, 1, &Kind::Whole, value),
                Value::Bool(flag) => put_number(&mut inside, 2, u64::from(*flag)),
                Value::String(text) => put(&mut inside, 3, text.as_bytes()),
                _ => return,
            }
            put(out, number, &inside);
        }
        Kind::SchemaOrFlag(about) => {
            let mut inside = Vec::new();
            match value.as_bool() {
                Some(flag) => put_number(&mut inside, 2, u64::from(flag)),
                None => put(&mut inside, 1, &message(about, value)),
            }
            put(out, number, &inside);
        }
        // Its message is written as a whole.
        Kind::SchemaOrReference => {}
        Kind::Parameters => {
            for item in items() {
                let inside = match item.get("$ref") {
                    Some(_) => wrapped(&[2], message(&v2::REFERENCE, item)),
                    None => wrapped(&[1], parameter(item)),
                };
                put(out, number, &inside);
            }
        }
        Kind::NamedParameters => {
            let mut inside = Vec::new();
            for (name, item) in entries() {
                put(&mut inside, 1, &pair(name, &parameter(item)));
            }
            put(out, number, &inside);
        }
        Kind::Requirements => {
            for (name, _) in items().filter_map(Value::as_object).flatten() {
                put(out, number, &wrapped(&[1], pair(name, &[])));
            }
        }
    }
}

/// Which parameter it is.
fn parameter(item: &Value) -> Vec<u8> {
    match item["in"].as_str() {
        Some("body") => wrapped(&[1], message(&v2::BODY_PARAMETER, item)),
        Some("path") => wrapped(&[2, 4], message(&v2::PATH_PARAMETER, item)),
        _ => wrapped(&[2, 3], message(&v2::QUERY_PARAMETER, item)),
    }
}

/// A message of a name and a value, as all of these maps have.
fn pair(name: &str, value: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    put(&mut out, 1, name.as_bytes());
    put(&mut out, 2, value);
    out
}

/// The message inside others, the outermost first.
fn wrapped(around: &[u32], message: Vec<u8>) -> Vec<u8> {
    around.iter().rev().fold(message, |inside, number| {
        let mut out = Vec::new();
        put(&mut out, *number, &inside);
        out
    })
}

fn put(out: &mut Vec<u8>, number: u32, bytes: &[u8]) {
    varint(out, u64::from(number) << 3 | 2);
    varint(out, bytes.len() as u64);
    out.extend(bytes);
}

fn put_number(out: &mut Vec<u8>, number: u32, value: u64) {
    varint(out, u64::from(number) << 3);
    varint(out, value);
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_schema_is_written_as_its_fields() {
        let schema = json!({
            "type": "array", "items": {"$ref": "#/a"}, "x-b": ["c"], "additionalProperties": true,
        });
        let expected: &[u8] = &[
            0xaa, 0x01, 2, 0x10, 1, // additional_properties { boolean }
            0xb2, 0x01, 7, 0x0a, 5, b'a', b'r', b'r', b'a', b'y', // type { value }
            0xba, 0x01, 7, 0x0a, 5, 0x0a, 3, b'#', b'/', b'a', // items { schema { _ref } }
            0xfa, 0x01, 14, 0x0a, 3, b'x', b'-', b'b', // vendor_extension { name
            0x12, 7, 0x12, 5, b'[', b'"', b'c', b'"', b']', // value { yaml } }
        ];
        assert_eq!(message(&v2::SCHEMA, &schema), expected);
    }

    #[test]
    fn parameters_are_written_where_they_stand_and_by_name() {
        let document = json!({"parameters": {"a": {"in": "query", "name": "b"}}});
        let expected: &[u8] = &[
            0x52, 21, 0x0a, 19, 0x0a, 1, b'a', // parameters { additional_properties { name
            0x12, 14, 0x12, 12, 0x1a, 10, // value { non_body_parameter { query {
            0x12, 5, b'q', b'u', b'e', b'r', b'y', 0x22, 1, b'b', // in, name
        ];
        assert_eq!(encode(&document), expected);
        let item = json!({"parameters": [{"$ref": "#/p"}]});
        let expected: &[u8] = &[0x4a, 7, 0x12, 5, 0x0a, 3, b'#', b'/', b'p'];
        assert_eq!(message(&v2::PATH, &item), expected);
    }

    /// Names in the document that the tables do not know would be lost without a word.
    fn unknown(about: &Message, value: &Value, out: &mut Vec<String>) {
        let about = match about.fields {
            [(_, _, Kind::SchemaOrReference)] if value.get("$ref").is_some() => &v3::REFERENCE,
            [(_, _, Kind::SchemaOrReference)] => &v3::SCHEMA,
            _ => about,
        };
        for (name, value) in value.as_object().into_iter().flatten() {
            if name.starts_with("x-") {
                continue;
            }
            let Some((_, _, kind)) = about.fields.iter().find(|(known, _, _)| known == name) else {
                out.push(format!("{name}: {value}"));
                continue;
            };
            match kind {
                Kind::One(_, about) => unknown(about, value, out),
                Kind::Many(_, about) => {
                    value.as_array().into_iter().flatten().for_each(|it| unknown(about, it, out));
                }
                Kind::Pairs(_, _, about) => {
                    value
                        .as_object()
                        .into_iter()
                        .flatten()
                        .for_each(|(_, it)| unknown(about, it, out));
                }
                Kind::SchemaOrFlag(about) if value.is_object() => unknown(about, value, out),
                Kind::Parameters | Kind::NamedParameters => {
                    let listed = value.as_array().into_iter().flatten();
                    let named = value.as_object().into_iter().flat_map(|all| all.values());
                    for item in listed.chain(named) {
                        let about = match item["in"].as_str() {
                            _ if item.get("$ref").is_some() => &v2::REFERENCE,
                            Some("body") => &v2::BODY_PARAMETER,
                            Some("path") => &v2::PATH_PARAMETER,
                            _ => &v2::QUERY_PARAMETER,
                        };
                        unknown(about, item, out);
                    }
                }
                _ => {}
            }
        }
    }

    #[test]
    fn nothing_of_our_document_is_lost() {
        let catalog = kinds::resources::Catalog::built_in();
        let document = crate::scheme::openapi::v2(catalog, "v1.36.2");
        let mut lost = Vec::new();
        unknown(&v2::DOCUMENT, &document, &mut lost);
        lost.sort();
        lost.dedup();
        assert_eq!(lost, Vec::<String>::new());
        assert!(encode(&document).len() > 100_000);
    }

    #[test]
    fn nothing_of_our_v3_documents_is_lost() {
        let catalog = kinds::resources::Catalog::built_in();
        for (group, version) in [("", "v1"), ("apps", "v1"), ("apiextensions.k8s.io", "v1")] {
            let bytes = crate::scheme::openapi::v3(catalog, group, version, "v1.36.2").unwrap();
            let document: Value = serde_json::from_slice(&bytes).unwrap();
            let mut lost = Vec::new();
            unknown(&v3::DOCUMENT, &document, &mut lost);
            lost.sort();
            lost.dedup();
            assert_eq!(lost, Vec::<String>::new());
            assert!(encode_v3(&document).len() > 10_000);
        }
    }

    #[test]
    fn a_v3_schema_is_written_as_its_fields() {
        let schema = json!({"default": "a", "allOf": [{"$ref": "#/b"}], "enum": ["c"]});
        let expected: &[u8] = &[
            0xc2, 0x01, 5, 0x12, 3, b'"', b'c', b'"', // enum { yaml }
            0xd2, 0x01, 7, 0x12, 5, 0x0a, 3, b'#', b'/',
            b'b', // all_of { reference { _ref } }
            0x8a, 0x02, 3, 0x1a, 1, b'a', // default { string }
        ];
        assert_eq!(message(&v3::SCHEMA, &schema), expected);
    }
}
