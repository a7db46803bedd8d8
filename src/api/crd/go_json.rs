//! Values of definitions as upstream's messages quote them: its internal structures have
//! no names of their own in JSON, so the fields stand under their names in Go.

use serde_json::{Map, Value, json};

#[derive(Clone, Copy)]
enum Kind {
    Text,
    Flag,
    /// Null where it is missing.
    Pointer,
    Schema,
    Schemas,
    Properties,
    OrBool,
    OrArray,
    Rules,
    Docs,
}

/// Fields of a schema: name in Go, name in JSON.
const SCHEMA: [(&str, &str, Kind); 44] = [
    ("ID", "id", Kind::Text),
    ("Schema", "$schema", Kind::Text),
    ("Ref", "$ref", Kind::Pointer),
    ("Description", "description", Kind::Text),
    ("Type", "type", Kind::Text),
    ("Nullable", "nullable", Kind::Flag),
    ("Format", "format", Kind::Text),
    ("Title", "title", Kind::Text),
    ("Default", "default", Kind::Pointer),
    ("Maximum", "maximum", Kind::Pointer),
    ("ExclusiveMaximum", "exclusiveMaximum", Kind::Flag),
    ("Minimum", "minimum", Kind::Pointer),
    ("ExclusiveMinimum", "exclusiveMinimum", Kind::Flag),
    ("MaxLength", "maxLength", Kind::Pointer),
    ("MinLength", "minLength", Kind::Pointer),
    ("Pattern", "pattern", Kind::Text),
    ("MaxItems", "maxItems", Kind::Pointer),
    ("MinItems", "minItems", Kind::Pointer),
    ("UniqueItems", "uniqueItems", Kind::Flag),
    ("MultipleOf", "multipleOf", Kind::Pointer),
    ("Enum", "enum", Kind::Pointer),
    ("MaxProperties", "maxProperties", Kind::Pointer),
    ("MinProperties", "minProperties", Kind::Pointer),
    ("Required", "required", Kind::Pointer),
    ("Items", "items", Kind::OrArray),
    ("AllOf", "allOf", Kind::Schemas),
    ("OneOf", "oneOf", Kind::Schemas),
    ("AnyOf", "anyOf", Kind::Schemas),
    ("Not", "not", Kind::Schema),
    ("Properties", "properties", Kind::Properties),
    ("AdditionalProperties", "additionalProperties", Kind::OrBool),
    ("PatternProperties", "patternProperties", Kind::Properties),
    ("Dependencies", "dependencies", Kind::Pointer),
    ("AdditionalItems", "additionalItems", Kind::OrBool),
    ("Definitions", "definitions", Kind::Properties),
    ("ExternalDocs", "externalDocs", Kind::Docs),
    ("Example", "example", Kind::Pointer),
    ("XPreserveUnknownFields", "x-kubernetes-preserve-unknown-fields", Kind::Pointer),
    ("XEmbeddedResource", "x-kubernetes-embedded-resource", Kind::Flag),
    ("XIntOrString", "x-kubernetes-int-or-string", Kind::Flag),
    ("XListMapKeys", "x-kubernetes-list-map-keys", Kind::Pointer),
    ("XListType", "x-kubernetes-list-type", Kind::Pointer),
    ("XMapType", "x-kubernetes-map-type", Kind::Pointer),
    ("XValidations", "x-kubernetes-validations", Kind::Rules),
];

/// The first field of a schema, in upstream's order, that is set and of which `allowed`
/// does not hold. Names are those in Go.
pub fn first_set_but(schema: &Value, allowed: impl Fn(&str) -> bool) -> Option<&'static str> {
    let set = |name: &str| match schema.get(name) {
        None | Some(Value::Null | Value::Bool(false)) => {
            // A pointer to false is set; a plain false is not.
            schema.get(name) == Some(&Value::Bool(false))
                && name == "x-kubernetes-preserve-unknown-fields"
        }
        Some(Value::String(text)) => !text.is_empty(),
        Some(Value::Array(_) | Value::Object(_) | Value::Number(_) | Value::Bool(true)) => true,
    };
    SCHEMA.iter().find(|(go, name, _)| set(name) && !allowed(go)).map(|(go, ..)| *go)
}

pub fn schema(value: &Value) -> Value {
    let mut out = Map::new();
    for (go, name, kind) in SCHEMA {
        let held = value.get(name).unwrap_or(&Value::Null);
        out.insert(go.into(), field(held, kind));
    }
    Value::Object(out)
}

fn field(held: &Value, kind: Kind) -> Value {
    match (kind, held) {
        (Kind::Text, Value::Null) => json!(""),
        (Kind::Flag, Value::Null) => json!(false),
        (_, Value::Null) => Value::Null,
        (Kind::Schema, held) => schema(held),
        (Kind::Schemas, Value::Array(items)) => items.iter().map(schema).collect(),
        (Kind::Properties, Value::Object(map)) => {
            let mut names: Vec<&String> = map.keys().collect();
            names.sort_unstable();
            Value::Object(names.into_iter().map(|n| (n.clone(), schema(&map[n]))).collect())
        }
        (Kind::OrBool, Value::Bool(allowed)) => json!({"Allows": allowed, "Schema": null}),
        (Kind::OrBool, held) => json!({"Allows": true, "Schema": schema(held)}),
        (Kind::OrArray, Value::Array(items)) => {
            json!({"Schema": null, "JSONSchemas": items.iter().map(schema).collect::<Vec<_>>()})
        }
        (Kind::OrArray, held) => json!({"Schema": schema(held), "JSONSchemas": null}),
        (Kind::Rules, Value::Array(rules)) => rules.iter().map(rule).collect(),
        (Kind::Docs, docs) => json!({
            "Description": docs["description"].as_str().unwrap_or(""),
            "URL": docs["url"].as_str().unwrap_or(""),
        }),
        (_, held) => held.clone(),
    }
}

/// A rule of `x-kubernetes-validations`.
pub fn rule(rule: &Value) -> Value {
    let text = |name: &str| rule[name].as_str().unwrap_or("");
    json!({
        "Rule": text("rule"), "Message": text("message"),
        "MessageExpression": text("messageExpression"), "Reason": rule["reason"],
        "FieldPath": text("fieldPath"), "OptionalOldSelf": rule["optionalOldSelf"],
    })
}

/// The versions of a definition, whose common parts have been taken away.
pub fn versions(versions: &[Value]) -> Value {
    let one = |version: &Value| {
        let flag = |name: &str| version[name] == true;
        let schema = match version.get("schema") {
            Some(held) if held.is_object() => {
                json!({"OpenAPIV3Schema": held.get("openAPIV3Schema").map(schema)})
            }
            _ => Value::Null,
        };
        let subresources = version.get("subresources").filter(|held| held.is_object());
        let subresources = subresources.map(|held| {
            let scale = held.get("scale").filter(|scale| scale.is_object()).map(|scale| {
                json!({
                    "SpecReplicasPath": scale["specReplicasPath"],
                    "StatusReplicasPath": scale["statusReplicasPath"],
                    "LabelSelectorPath": scale["labelSelectorPath"],
                })
            });
            json!({"Status": held.get("status").map(|_| json!({})), "Scale": scale})
        });
        let columns = version["additionalPrinterColumns"].as_array().map(|columns| {
            let columns = columns.iter().map(|column| {
                let text = |name: &str| column[name].as_str().unwrap_or("");
                json!({
                    "Name": text("name"), "Type": text("type"), "Format": text("format"),
                    "Description": text("description"),
                    "Priority": column["priority"].as_i64().unwrap_or(0),
                    "JSONPath": text("jsonPath"),
                })
            });
            columns.collect::<Vec<_>>()
        });
        let selectable = version["selectableFields"].as_array().map(|fields| {
            fields.iter().map(|f| json!({"JSONPath": f["jsonPath"]})).collect::<Vec<_>>()
        });
        json!({
            "Name": version["name"], "Served": flag("served"), "Storage": flag("storage"),
            "Deprecated": flag("deprecated"),
            "DeprecationWarning": version["deprecationWarning"],
            "Schema": schema, "Subresources": subresources,
            "AdditionalPrinterColumns": columns, "SelectableFields": selectable,
        })
    };
    versions.iter().map(one).collect()
}
