//! Whether a schema is structural: it says of every place what may be there, so that
//! unknown fields can be told from known ones (apiextensions-apiserver, `schema`).

use kinds::meta::FieldError;
use serde_json::{Map, Value, json};

use super::pattern::pattern;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Level {
    Root,
    Item,
    Field,
}

/// What a schema says that no structural schema can say; the first such thing.
pub fn unsupported(schema: &Value) -> Option<String> {
    let filled = |name: &str| match schema.get(name) {
        None | Some(Value::Null) => false,
        Some(Value::String(text)) => !text.is_empty(),
        Some(Value::Object(map)) => !map.is_empty(),
        Some(_) => true,
    };
    let refused = [
        ("id", "id"),
        ("$schema", "schema"),
        ("$ref", "$ref"),
        ("patternProperties", "patternProperties"),
        ("dependencies", "dependencies"),
        ("additionalItems", "additionalItems"),
        ("definitions", "definitions"),
    ];
    for (name, said) in refused {
        if filled(name) {
            return Some(format!("OpenAPIV3Schema '{said}' is not supported"));
        }
    }
    if schema["items"].is_array() {
        return Some("OpenAPIV3Schema 'items' must be a schema, but is an array".into());
    }
    below(schema).find_map(unsupported)
}

/// All schemas directly below one.
pub fn below(schema: &Value) -> impl Iterator<Item = &Value> {
    let one = ["items", "not", "additionalProperties", "additionalItems"]
        .into_iter()
        .filter_map(|name| schema.get(name))
        .filter(|held| held.is_object());
    let lists = ["allOf", "anyOf", "oneOf", "items"]
        .into_iter()
        .filter_map(|name| schema.get(name)?.as_array())
        .flatten();
    let maps = ["properties", "patternProperties", "definitions"]
        .into_iter()
        .filter_map(|name| schema.get(name)?.as_object())
        .flat_map(Map::values);
    one.chain(lists).chain(maps)
}

/// Whether a schema or one below it fulfils a condition.
pub fn any(schema: &Value, holds: &dyn Fn(&Value) -> bool) -> bool {
    holds(schema) || below(schema).any(|schema| any(schema, holds))
}

/// Why a schema is not structural, sorted.
pub fn check(schema: &Value, path: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    invariants(schema, Level::Root, path, &mut errors);
    // What value validations speak of must be specified outside of them.
    junctors(Some(schema), schema, path, path, &mut errors);
    errors.sort_by_key(ToString::to_string);
    errors
}

fn text<'a>(schema: &'a Value, name: &str) -> &'a str {
    schema[name].as_str().unwrap_or("")
}

fn flag(schema: &Value, name: &str) -> bool {
    schema[name] == true
}

/// Properties in the order of their names.
pub fn properties(schema: &Value) -> Vec<(&String, &Value)> {
    let mut all: Vec<_> = schema["properties"].as_object().into_iter().flatten().collect();
    all.sort_unstable_by_key(|(name, _)| *name);
    all
}

const PRESERVE: &str = "x-kubernetes-preserve-unknown-fields";
const EMBEDDED: &str = "x-kubernetes-embedded-resource";
const INT_OR_STRING: &str = "x-kubernetes-int-or-string";

fn invariants(schema: &Value, level: Level, path: &str, errors: &mut Vec<FieldError>) {
    let ty = text(schema, "type");
    let items = schema.get("items").filter(|items| items.is_object());
    if ty == "array" && items.is_none() {
        errors.push(FieldError::required(format!("{path}.items"), "must be specified"));
    }
    if let Some(items) = items {
        invariants(items, Level::Item, &format!("{path}.items"), errors);
    }
    for (name, property) in properties(schema) {
        invariants(property, Level::Field, &format!("{path}.properties[{name}]"), errors);
    }
    let additional = schema.get("additionalProperties").filter(|held| !held.is_null());
    if let Some(additional) = additional {
        let at = format!("{path}.additionalProperties");
        if level == Level::Root {
            errors.push(FieldError::forbidden(at.as_str(), "must not be used at the root"));
        }
        if additional.is_object() {
            invariants(additional, Level::Field, &at, errors);
        }
    }
    let (preserve, embedded) = (flag(schema, PRESERVE), flag(schema, EMBEDDED));
    let either = flag(schema, INT_OR_STRING);
    for (name, held) in [(PRESERVE, preserve), (EMBEDDED, embedded)] {
        if either && held {
            let said = "must be false if x-kubernetes-int-or-string is true";
            errors.push(FieldError::invalid(format!("{path}.{name}"), true, said));
        }
    }
    let pattern_of = json!([{"type": "integer"}, {"type": "string"}]);
    let skip_any = schema["anyOf"] == pattern_of;
    let skip_first = schema["allOf"][0]["anyOf"] == pattern_of;
    values(schema, skip_any, skip_first, path, errors);
    let at_type = format!("{path}.type");
    if embedded && ty != "object" {
        let said = "must be object if x-kubernetes-embedded-resource is true";
        errors.push(match ty {
            "" => FieldError::required(at_type.as_str(), said),
            ty => FieldError::invalid(at_type.as_str(), ty, said),
        });
    } else if ty.is_empty() && !either && !preserve {
        let said = match level {
            Level::Root => "must not be empty at the root",
            Level::Item => "must not be empty for specified array items",
            Level::Field => "must not be empty for specified object fields",
        };
        errors.push(FieldError::required(at_type.as_str(), said));
    }
    if embedded && additional.is_some() {
        let said = "must not be used if x-kubernetes-embedded-resource is set";
        errors.push(FieldError::forbidden(format!("{path}.additionalProperties"), said));
    }
    if level == Level::Root && !ty.is_empty() && ty != "object" {
        errors.push(FieldError::invalid(at_type, ty, "must be object at the root"));
    }
    metadata(schema, level, embedded, path, errors);
    let named = schema["properties"].as_object().is_some_and(|map| !map.is_empty());
    if embedded && !preserve && !named {
        let said = "must not be empty if x-kubernetes-embedded-resource is true without x-kubernetes-preserve-unknown-fields";
        errors.push(FieldError::required(format!("{path}.properties"), said));
    }
}

/// What a resource has in any case can hardly be said again.
fn metadata(
    schema: &Value,
    level: Level,
    embedded: bool,
    path: &str,
    errors: &mut Vec<FieldError>,
) {
    let resource = level == Level::Root || embedded;
    let property = |name: &str| schema["properties"].get(name);
    for name in ["kind", "apiVersion"] {
        if let Some(held) = property(name).filter(|held| resource && text(held, "type") != "string")
        {
            let at = format!("{path}.properties[{name}].type");
            errors.push(FieldError::invalid(at, text(held, "type"), "must be string"));
        }
    }
    let Some(held) = property("metadata") else { return };
    let at = format!("{path}.properties[metadata]");
    if resource && text(held, "type") != "object" {
        let ty = text(held, "type");
        errors.push(FieldError::invalid(format!("{at}.type"), ty, "must be object"));
    }
    // Invariants see every `metadata`, but only that of the whole object is restricted.
    if level == Level::Root {
        let fits = held.as_object().is_some_and(|map| {
            map.iter().all(|(key, value)| match key.as_str() {
                "type" | "default" => true,
                "properties" => value.as_object().is_some_and(|map| {
                    map.keys().all(|name| matches!(name.as_str(), "name" | "generateName"))
                }),
                _ => value.is_null() || value == "" || *value == false,
            })
        });
        if !fits {
            let said = "must not specify anything other than name and generateName, but metadata is implicitly specified";
            errors.push(FieldError::forbidden(at, said));
        }
    }
}

fn values(
    schema: &Value,
    skip_any: bool,
    skip_first: bool,
    path: &str,
    errors: &mut Vec<FieldError>,
) {
    for (name, skip) in [("anyOf", skip_any), ("allOf", false), ("oneOf", false)] {
        let list = schema[name].as_array().map(Vec::as_slice).unwrap_or_default();
        if skip {
            continue;
        }
        for (index, one) in list.iter().enumerate() {
            let skip = name == "allOf" && index == 0 && skip_first;
            nested(one, skip, &format!("{path}.{name}[{index}]"), errors);
        }
    }
    if let Some(not) = schema.get("not").filter(|not| not.is_object()) {
        nested(not, false, &format!("{path}.not"), errors);
    }
    let expression = text(schema, "pattern");
    if !expression.is_empty()
        && let Err(why) = pattern(expression)
    {
        let said = format!("must be a valid regular expression, but isn't: {why}");
        errors.push(FieldError::invalid(format!("{path}.pattern"), expression, &said));
    }
}

fn nested(schema: &Value, skip_any: bool, path: &str, errors: &mut Vec<FieldError>) {
    values(schema, skip_any, false, path, errors);
    if let Some(items) = schema.get("items").filter(|items| items.is_object()) {
        nested(items, false, &format!("{path}.items"), errors);
    }
    for (name, property) in properties(schema) {
        nested(property, false, &format!("{path}.properties[{name}]"), errors);
    }
    let mut forbid = |name: &str, said: &str| {
        errors.push(FieldError::forbidden(format!("{path}.{name}"), said));
    };
    let set = |name: &str| schema.get(name).is_some_and(|held| !held.is_null());
    if !text(schema, "type").is_empty() {
        forbid("type", "must be empty to be structural");
    }
    if set("additionalProperties") && schema["additionalProperties"] != false {
        forbid("additionalProperties", "must be undefined to be structural");
    }
    if set("default") {
        forbid("default", "must be undefined to be structural");
    }
    for name in ["title", "description"] {
        if !text(schema, name).is_empty() {
            forbid(name, "must be empty to be structural");
        }
    }
    if flag(schema, "nullable") {
        forbid("nullable", "must be false to be structural");
    }
    if set("externalDocs") {
        forbid("externalDocs", "must be undefined to be structural");
    }
    for name in [PRESERVE, EMBEDDED, INT_OR_STRING] {
        if flag(schema, name) {
            forbid(name, "must be false to be structural");
        }
    }
    let filled = |name: &str| schema[name].as_array().is_some_and(|list| !list.is_empty());
    if filled("x-kubernetes-list-map-keys") {
        forbid("x-kubernetes-list-map-keys", "must be empty to be structural");
    }
    for name in ["x-kubernetes-list-type", "x-kubernetes-map-type"] {
        if set(name) {
            forbid(name, "must be undefined to be structural");
        }
    }
    if filled("x-kubernetes-validations") {
        forbid("x-kubernetes-validations", "must be empty to be structural");
    }
    if schema["properties"].get("metadata").is_some() {
        forbid("properties[metadata]", "must not be specified in a nested context");
    }
}

fn junctors(
    schema: Option<&Value>,
    values: &Value,
    schema_path: &str,
    path: &str,
    errors: &mut Vec<FieldError>,
) {
    for name in ["allOf", "anyOf", "oneOf"] {
        for (index, one) in values[name].as_array().into_iter().flatten().enumerate() {
            specified(schema, one, schema_path, &format!("{path}.{name}[{index}]"), errors);
        }
    }
    if let Some(not) = values.get("not").filter(|not| not.is_object()) {
        specified(schema, not, schema_path, &format!("{path}.not"), errors);
    }
}

fn specified(
    schema: Option<&Value>,
    values: &Value,
    schema_path: &str,
    path: &str,
    errors: &mut Vec<FieldError>,
) {
    let because = |errors: &mut Vec<FieldError>, at: String, path: &str| {
        errors.push(FieldError::required(at, &format!("because it is defined in {path}")));
    };
    let Some(schema) = schema else {
        because(errors, schema_path.to_string(), path);
        return;
    };
    junctors(Some(schema), values, schema_path, path, errors);
    if let Some(items) = values.get("items").filter(|items| items.is_object()) {
        let below = schema.get("items").filter(|items| items.is_object());
        specified(below, items, &format!("{schema_path}.items"), &format!("{path}.items"), errors);
    }
    for (name, property) in properties(values) {
        let below = schema["properties"].get(name);
        let (schema_at, at) =
            (format!("{schema_path}.properties[{name}]"), format!("{path}.properties[{name}]"));
        specified(below, property, &schema_at, &at, errors);
    }
}
