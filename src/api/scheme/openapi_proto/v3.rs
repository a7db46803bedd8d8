//! The numbers of gnostic's OpenAPIv3.proto.

use super::{Kind, Message};

pub static DOCUMENT: Message = Message {
    fields: &[
        ("openapi", 1, Kind::Text),
        ("info", 2, Kind::One(&[], &INFO)),
        ("paths", 4, Kind::Pairs(1, &[], &PATH)),
        ("components", 5, Kind::One(&[], &COMPONENTS)),
    ],
    extensions: 9,
};
static INFO: Message =
    Message { fields: &[("title", 1, Kind::Text), ("version", 6, Kind::Text)], extensions: 7 };
static COMPONENTS: Message = Message {
    fields: &[
        ("schemas", 1, Kind::Pairs(1, &[], &SCHEMA_OR_REFERENCE)),
        ("securitySchemes", 7, Kind::Pairs(1, &[1], &SECURITY_SCHEME)),
    ],
    extensions: 10,
};
static SECURITY_SCHEME: Message = Message {
    fields: &[
        ("type", 1, Kind::Text),
        ("description", 2, Kind::Text),
        ("name", 3, Kind::Text),
        ("in", 4, Kind::Text),
    ],
    extensions: 9,
};
/// Whether it is one or the other, a `$ref` tells (`Kind::SchemaOrReference` writes it).
static SCHEMA_OR_REFERENCE: Message =
    Message { fields: &[("", 0, Kind::SchemaOrReference)], extensions: 0 };
pub static REFERENCE: Message = Message { fields: &[("$ref", 1, Kind::Text)], extensions: 0 };
pub static SCHEMA: Message = Message {
    fields: &[
        ("nullable", 1, Kind::Flag),
        ("title", 9, Kind::Text),
        ("maximum", 11, Kind::Whole),
        ("minimum", 13, Kind::Whole),
        ("maxLength", 15, Kind::Count),
        ("minLength", 16, Kind::Count),
        ("pattern", 17, Kind::Text),
        ("maxItems", 18, Kind::Count),
        ("minItems", 19, Kind::Count),
        ("uniqueItems", 20, Kind::Flag),
        ("maxProperties", 21, Kind::Count),
        ("minProperties", 22, Kind::Count),
        ("required", 23, Kind::Texts),
        ("enum", 24, Kind::Yamls),
        ("type", 25, Kind::Text),
        ("allOf", 26, Kind::Many(&[], &SCHEMA_OR_REFERENCE)),
        ("oneOf", 27, Kind::Many(&[], &SCHEMA_OR_REFERENCE)),
        ("anyOf", 28, Kind::Many(&[], &SCHEMA_OR_REFERENCE)),
        ("not", 29, Kind::One(&[], &SCHEMA)),
        // ItemsItem.schema_or_reference
        ("items", 30, Kind::One(&[1], &SCHEMA_OR_REFERENCE)),
        ("properties", 31, Kind::Pairs(1, &[], &SCHEMA_OR_REFERENCE)),
        ("additionalProperties", 32, Kind::SchemaOrFlag(&SCHEMA_OR_REFERENCE)),
        ("default", 33, Kind::Default),
        ("description", 34, Kind::Text),
        ("format", 35, Kind::Text),
    ],
    extensions: 36,
};
static PATH: Message = Message {
    fields: &[
        ("get", 4, Kind::One(&[], &OPERATION)),
        ("put", 5, Kind::One(&[], &OPERATION)),
        ("post", 6, Kind::One(&[], &OPERATION)),
        ("delete", 7, Kind::One(&[], &OPERATION)),
        ("options", 8, Kind::One(&[], &OPERATION)),
        ("head", 9, Kind::One(&[], &OPERATION)),
        ("patch", 10, Kind::One(&[], &OPERATION)),
        // ParameterOrReference.parameter
        ("parameters", 13, Kind::Many(&[1], &PARAMETER)),
    ],
    extensions: 14,
};
static OPERATION: Message = Message {
    fields: &[
        ("tags", 1, Kind::Texts),
        ("description", 3, Kind::Text),
        ("operationId", 5, Kind::Text),
        ("parameters", 6, Kind::Many(&[1], &PARAMETER)),
        // RequestBodyOrReference.request_body
        ("requestBody", 7, Kind::One(&[1], &BODY)),
        // Responses.response_or_reference, ResponseOrReference.response
        ("responses", 8, Kind::Pairs(2, &[1], &RESPONSE)),
        ("deprecated", 10, Kind::Flag),
    ],
    extensions: 13,
};
static PARAMETER: Message = Message {
    fields: &[
        ("name", 1, Kind::Text),
        ("in", 2, Kind::Text),
        ("description", 3, Kind::Text),
        ("required", 4, Kind::Flag),
        ("schema", 10, Kind::One(&[], &SCHEMA_OR_REFERENCE)),
    ],
    extensions: 14,
};
static BODY: Message = Message {
    fields: &[
        ("description", 1, Kind::Text),
        ("content", 2, Kind::Pairs(1, &[], &MEDIA)),
        ("required", 3, Kind::Flag),
    ],
    extensions: 4,
};
static RESPONSE: Message = Message {
    fields: &[("description", 1, Kind::Text), ("content", 3, Kind::Pairs(1, &[], &MEDIA))],
    extensions: 5,
};
static MEDIA: Message =
    Message { fields: &[("schema", 1, Kind::One(&[], &SCHEMA_OR_REFERENCE))], extensions: 5 };
