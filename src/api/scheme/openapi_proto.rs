//! `/openapi/v2` in protobuf, the form kubectl asks for when it meets a kind it does not
//! know (gnostic's OpenAPIv2.proto, media type `openapi.v2@v1.0+protobuf`).
//!
//! Only what our own document holds is written; a test looks that nothing else is in it.

use serde_json::{Map, Value};

/// What clients ask for.
pub const MEDIA_TYPE: &str = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";
/// What the answer says of itself: an `@` has no place in a media type.
pub const ANSWER_TYPE: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";

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
    /// A schema, or true or false.
    SchemaOrFlag,
    /// Which of these messages it is, its `in` tells.
    Parameters,
    /// `[{"BearerToken": []}]`
    Requirements,
}

struct Message {
    fields: &'static [(&'static str, u32, Kind)],
    /// Where what begins with `x-` goes; 0 is nowhere.
    extensions: u32,
}

static DOCUMENT: Message = Message {
    fields: &[
        ("swagger", 1, Kind::Text),
        ("info", 2, Kind::One(&[], &INFO)),
        ("paths", 8, Kind::Pairs(2, &[], &PATH)),
        ("definitions", 9, Kind::Pairs(1, &[], &SCHEMA)),
        ("parameters", 10, Kind::Pairs(1, &[], &QUERY_PARAMETER)),
        ("security", 12, Kind::Requirements),
        ("securityDefinitions", 13, Kind::Pairs(1, &[2], &API_KEY)),
    ],
    extensions: 16,
};
static INFO: Message =
    Message { fields: &[("title", 1, Kind::Text), ("version", 2, Kind::Text)], extensions: 7 };
static API_KEY: Message = Message {
    fields: &[
        ("type", 1, Kind::Text),
        ("name", 2, Kind::Text),
        ("in", 3, Kind::Text),
        ("description", 4, Kind::Text),
    ],
    extensions: 5,
};
static SCHEMA: Message = Message {
    fields: &[
        ("$ref", 1, Kind::Text),
        ("format", 2, Kind::Text),
        ("title", 3, Kind::Text),
        ("description", 4, Kind::Text),
        ("uniqueItems", 16, Kind::Flag),
        ("required", 19, Kind::Texts),
        ("additionalProperties", 21, Kind::SchemaOrFlag),
        ("type", 22, Kind::TextsInside),
        ("items", 23, Kind::One(&[1], &SCHEMA)),
        ("allOf", 24, Kind::Many(&[], &SCHEMA)),
        ("properties", 25, Kind::Pairs(1, &[], &SCHEMA)),
    ],
    extensions: 31,
};
static PATH: Message = Message {
    fields: &[
        ("get", 2, Kind::One(&[], &OPERATION)),
        ("put", 3, Kind::One(&[], &OPERATION)),
        ("post", 4, Kind::One(&[], &OPERATION)),
        ("delete", 5, Kind::One(&[], &OPERATION)),
        ("options", 6, Kind::One(&[], &OPERATION)),
        ("head", 7, Kind::One(&[], &OPERATION)),
        ("patch", 8, Kind::One(&[], &OPERATION)),
        ("parameters", 9, Kind::Parameters),
    ],
    extensions: 10,
};
static OPERATION: Message = Message {
    fields: &[
        ("tags", 1, Kind::Texts),
        ("summary", 2, Kind::Text),
        ("description", 3, Kind::Text),
        ("operationId", 5, Kind::Text),
        ("produces", 6, Kind::Texts),
        ("consumes", 7, Kind::Texts),
        ("parameters", 8, Kind::Parameters),
        ("responses", 9, Kind::Pairs(1, &[1], &RESPONSE)),
        ("schemes", 10, Kind::Texts),
        ("deprecated", 11, Kind::Flag),
    ],
    extensions: 13,
};
static RESPONSE: Message = Message {
    fields: &[("description", 1, Kind::Text), ("schema", 2, Kind::One(&[1], &SCHEMA))],
    extensions: 5,
};
static BODY_PARAMETER: Message = Message {
    fields: &[
        ("description", 1, Kind::Text),
        ("name", 2, Kind::Text),
        ("in", 3, Kind::Text),
        ("required", 4, Kind::Flag),
        ("schema", 5, Kind::One(&[], &SCHEMA)),
    ],
    extensions: 6,
};
static QUERY_PARAMETER: Message = Message {
    fields: &[
        ("required", 1, Kind::Flag),
        ("in", 2, Kind::Text),
        ("description", 3, Kind::Text),
        ("name", 4, Kind::Text),
        ("type", 6, Kind::Text),
        ("format", 7, Kind::Text),
        ("minimum", 13, Kind::Whole),
        ("uniqueItems", 20, Kind::Flag),
    ],
    extensions: 23,
};
static PATH_PARAMETER: Message = Message {
    fields: &[
        ("required", 1, Kind::Flag),
        ("in", 2, Kind::Text),
        ("description", 3, Kind::Text),
        ("name", 4, Kind::Text),
        ("type", 5, Kind::Text),
        ("format", 6, Kind::Text),
        ("uniqueItems", 19, Kind::Flag),
    ],
    extensions: 22,
};

/// The document in protobuf.
pub fn encode(document: &Value) -> Vec<u8> {
    message(&DOCUMENT, document)
}

fn message(about: &Message, value: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    let empty = Map::new();
    let map = value.as_object().unwrap_or(&empty);
    for (name, number, kind) in about.fields {
        if let Some(value) = map.get(*name) {
            field(&mut out, *number, kind, value);
        }
    }
    for (name, value) in map.iter().filter(|(name, _)| name.starts_with("x-")) {
        // Its value as YAML, which JSON is as well.
        let mut any = Vec::new();
        put(&mut any, 2, value.to_string().as_bytes());
        put(&mut out, about.extensions, &pair(name, &any));
    }
    out
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
        Kind::SchemaOrFlag => {
            let mut inside = Vec::new();
            match value.as_bool() {
                Some(flag) => put_number(&mut inside, 2, u64::from(flag)),
                None => put(&mut inside, 1, &message(&SCHEMA, value)),
            }
            put(out, number, &inside);
        }
        Kind::Parameters => {
            for item in items() {
                // ParametersItem.parameter, then which parameter it is.
                let inside = match item["in"].as_str() {
                    Some("body") => wrapped(&[1, 1], message(&BODY_PARAMETER, item)),
                    Some("path") => wrapped(&[1, 2, 4], message(&PATH_PARAMETER, item)),
                    _ => wrapped(&[1, 2, 3], message(&QUERY_PARAMETER, item)),
                };
                put(out, number, &inside);
            }
        }
        Kind::Requirements => {
            for (name, _) in items().filter_map(Value::as_object).flatten() {
                put(out, number, &wrapped(&[1], pair(name, &[])));
            }
        }
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
        assert_eq!(message(&SCHEMA, &schema), expected);
    }

    /// Names in the document that the tables do not know would be lost without a word.
    fn unknown(about: &Message, value: &Value, out: &mut Vec<String>) {
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
                Kind::SchemaOrFlag if value.is_object() => unknown(&SCHEMA, value, out),
                Kind::Parameters => {
                    for item in value.as_array().into_iter().flatten() {
                        let about = match item["in"].as_str() {
                            Some("body") => &BODY_PARAMETER,
                            Some("path") => &PATH_PARAMETER,
                            _ => &QUERY_PARAMETER,
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
        unknown(&DOCUMENT, &document, &mut lost);
        lost.sort();
        lost.dedup();
        assert_eq!(lost, Vec::<String>::new());
        assert!(encode(&document).len() > 100_000);
    }
}
