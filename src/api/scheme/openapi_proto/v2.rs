//! The numbers of gnostic's OpenAPIv2.proto.

use super::{Kind, Message};

pub static DOCUMENT: Message = Message {
    fields: &[
        ("swagger", 1, Kind::Text),
        ("info", 2, Kind::One(&[], &INFO)),
        ("paths", 8, Kind::Pairs(2, &[], &PATH)),
        ("definitions", 9, Kind::Pairs(1, &[], &SCHEMA)),
        ("parameters", 10, Kind::NamedParameters),
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
pub static SCHEMA: Message = Message {
    fields: &[
        ("$ref", 1, Kind::Text),
        ("format", 2, Kind::Text),
        ("title", 3, Kind::Text),
        ("description", 4, Kind::Text),
        ("default", 5, Kind::Yaml),
        ("maximum", 7, Kind::Whole),
        ("minimum", 9, Kind::Whole),
        ("maxLength", 11, Kind::Count),
        ("minLength", 12, Kind::Count),
        ("pattern", 13, Kind::Text),
        ("maxItems", 14, Kind::Count),
        ("minItems", 15, Kind::Count),
        ("uniqueItems", 16, Kind::Flag),
        ("maxProperties", 17, Kind::Count),
        ("minProperties", 18, Kind::Count),
        ("required", 19, Kind::Texts),
        ("enum", 20, Kind::Yamls),
        ("additionalProperties", 21, Kind::SchemaOrFlag(&SCHEMA)),
        ("type", 22, Kind::TextsInside),
        ("items", 23, Kind::One(&[1], &SCHEMA)),
        ("allOf", 24, Kind::Many(&[], &SCHEMA)),
        ("properties", 25, Kind::Pairs(1, &[], &SCHEMA)),
    ],
    extensions: 31,
};
pub static PATH: Message = Message {
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
pub static REFERENCE: Message = Message { fields: &[("$ref", 1, Kind::Text)], extensions: 0 };
pub static BODY_PARAMETER: Message = Message {
    fields: &[
        ("description", 1, Kind::Text),
        ("name", 2, Kind::Text),
        ("in", 3, Kind::Text),
        ("required", 4, Kind::Flag),
        ("schema", 5, Kind::One(&[], &SCHEMA)),
    ],
    extensions: 6,
};
pub static QUERY_PARAMETER: Message = Message {
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
pub static PATH_PARAMETER: Message = Message {
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
