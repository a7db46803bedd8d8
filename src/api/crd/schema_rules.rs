//! What a schema may say at each of its places, beyond being structural
//! (apiextensions-apiserver, `apis/apiextensions/validation`).

use kinds::meta::FieldError;
use serde_json::Value;

use super::go_json;
use super::rules::{Correlation, Scope};
use super::structural::properties;

const TYPES: [&str; 6] = ["array", "boolean", "integer", "number", "object", "string"];
const REASONS: [&str; 4] =
    ["FieldValueDuplicate", "FieldValueForbidden", "FieldValueInvalid", "FieldValueRequired"];

/// Findings about a schema; those about rules in CEL stand apart, since rules are looked at
/// only where the schema itself is good.
#[derive(Default)]
pub struct Findings {
    pub schema: Vec<FieldError>,
    pub rules: Vec<FieldError>,
}

impl Findings {
    pub fn all(self) -> Vec<FieldError> {
        let mut all = self.schema;
        all.extend(self.rules);
        all
    }

    fn add(&mut self, other: Findings) {
        self.schema.extend(other.schema);
        self.rules.extend(other.rules);
    }
}

/// What holds for a place because of where it is.
#[derive(Clone, Default)]
struct Inside {
    no_defaults: Option<String>,
    metadata: bool,
    correlation: Correlation,
}

/// Checks the schema of a whole object. `scope` is None where rules cannot be judged, since
/// the schema is not structural.
pub fn check(schema: &Value, path: &str, scope: Option<&Scope<'_>>) -> Findings {
    place(schema, path, &Inside::default(), true, scope)
}

fn text<'a>(schema: &'a Value, name: &str) -> &'a str {
    schema[name].as_str().unwrap_or("")
}

fn set(schema: &Value, name: &str) -> bool {
    schema.get(name).is_some_and(|held| !held.is_null())
}

fn filled(schema: &Value, name: &str) -> bool {
    match &schema[name] {
        Value::Object(map) => !map.is_empty(),
        Value::Array(list) => !list.is_empty(),
        _ => false,
    }
}

fn place(
    schema: &Value,
    path: &str,
    inside: &Inside,
    root: bool,
    scope: Option<&Scope<'_>>,
) -> Findings {
    let mut out = Findings::default();
    keywords(schema, path, inside, &mut out.schema);
    children(schema, path, inside, root, scope, &mut out);
    extensions(schema, path, &mut out.schema);
    let rules =
        schema["x-kubernetes-validations"].as_array().map(Vec::as_slice).unwrap_or_default();
    for (index, rule) in rules.iter().enumerate() {
        let at = format!("{path}.x-kubernetes-validations[{index}]");
        rule_form(schema, rule, &at, &mut out.schema);
    }
    if let Some(scope) = scope
        && !rules.is_empty()
        && out.schema.is_empty()
    {
        out.rules.extend(scope.check(path, &inside.correlation));
    }
    out
}

fn keywords(schema: &Value, path: &str, inside: &Inside, errors: &mut Vec<FieldError>) {
    let ty = text(schema, "type");
    if !ty.is_empty() && !TYPES.contains(&ty) {
        errors.push(FieldError::not_supported(format!("{path}.type"), ty, &TYPES));
    }
    let mut forbid = |name: &str, said: &str| {
        errors.push(FieldError::forbidden(format!("{path}.{name}"), said));
    };
    if let (true, Some(why)) = (set(schema, "default"), &inside.no_defaults) {
        forbid("default", &format!("must not be set {why}"));
    }
    if !text(schema, "id").is_empty() {
        forbid("id", "id is not supported");
    }
    if set(schema, "additionalItems") {
        forbid("additionalItems", "additionalItems is not supported");
    }
    for name in ["patternProperties", "definitions"] {
        if filled(schema, name) {
            forbid(name, &format!("{name} is not supported"));
        }
    }
    for name in ["dependencies", "$ref"] {
        if set(schema, name) {
            forbid(name, &format!("{name} is not supported"));
        }
    }
    if ty == "null" {
        forbid("type", "type cannot be set to null, use nullable as an alternative");
    }
    if schema["items"].is_array() {
        forbid("items", "items must be a schema object and not an array");
    }
    if inside.metadata && schema["x-kubernetes-embedded-resource"] == true {
        forbid("x-kubernetes-embedded-resource", "must not be used inside of resource meta");
    }
    if schema["uniqueItems"] == true {
        let said =
            "uniqueItems cannot be set to true since the runtime complexity becomes quadratic";
        forbid("uniqueItems", said);
    }
    let additional = &schema["additionalProperties"];
    if filled(schema, "properties") && (additional.is_object() || *additional == false) {
        let said = "additionalProperties and properties are mutual exclusive";
        forbid("additionalProperties", said);
    }
}

fn children(
    schema: &Value,
    path: &str,
    inside: &Inside,
    root: bool,
    scope: Option<&Scope<'_>>,
    out: &mut Findings,
) {
    if let Some(additional) = schema.get("additionalProperties").filter(|held| held.is_object()) {
        let mut below = inside.clone();
        if inside.metadata {
            let why = "inside additionalProperties applying to object metadata";
            below.no_defaults = Some(why.into());
        }
        let scope = scope.map(|scope| scope.additional(additional));
        let at = format!("{path}.additionalProperties");
        out.add(place(additional, &at, &below, false, scope.as_ref()));
    }
    for (name, property) in properties(schema) {
        let mut below = inside.clone();
        let map_type = schema["x-kubernetes-map-type"].as_str();
        if !matches!(map_type, None | Some("granular")) {
            below.correlation.break_at(path);
        }
        let resource = root || schema["x-kubernetes-embedded-resource"] == true;
        if resource && matches!(name.as_str(), "metadata" | "kind" | "apiVersion") {
            below.metadata = true;
            if root {
                below.no_defaults = Some(format!("in top-level {name}"));
            }
        }
        let scope = scope.map(|scope| scope.property(property));
        let at = format!("{path}.properties[{name}]");
        out.add(place(property, &at, &below, false, scope.as_ref()));
    }
    if let Some(not) = schema.get("not").filter(|not| not.is_object()) {
        out.add(place(not, &format!("{path}.not"), inside, false, None));
    }
    for name in ["allOf", "oneOf", "anyOf"] {
        for (index, one) in schema[name].as_array().into_iter().flatten().enumerate() {
            out.add(place(one, &format!("{path}.{name}[{index}]"), inside, false, None));
        }
    }
    for name in ["definitions", "patternProperties"] {
        for (key, one) in schema[name].as_object().into_iter().flatten() {
            out.add(place(one, &format!("{path}.{name}[{key}]"), inside, false, None));
        }
    }
    if let Some(items) = schema.get("items").filter(|items| items.is_object()) {
        let mut below = inside.clone();
        if schema["x-kubernetes-list-type"] != "map" {
            below.correlation.break_at(path);
        }
        let scope = scope.map(|scope| scope.items(items));
        out.add(place(items, &format!("{path}.items"), &below, false, scope.as_ref()));
    }
}

fn extensions(schema: &Value, path: &str, errors: &mut Vec<FieldError>) {
    let ty = text(schema, "type");
    let preserve = "x-kubernetes-preserve-unknown-fields";
    if schema.get(preserve) == Some(&Value::Bool(false)) {
        let at = format!("{path}.{preserve}");
        errors.push(FieldError::invalid(at, false, "must be true or undefined"));
    }
    let map_type = schema["x-kubernetes-map-type"].as_str();
    let list_type = schema["x-kubernetes-list-type"].as_str();
    let must_be = |wanted: &str, name: &str| {
        let said = format!("must be {wanted} if {name} is specified");
        match ty {
            "" => FieldError::required(format!("{path}.type"), &said),
            ty => FieldError::invalid(format!("{path}.type"), ty, &said),
        }
    };
    if map_type.is_some() && ty != "object" {
        errors.push(must_be("object", "x-kubernetes-map-type"));
    }
    if let Some(other) = map_type.filter(|map| !matches!(*map, "atomic" | "granular")) {
        let at = format!("{path}.x-kubernetes-map-type");
        errors.push(FieldError::not_supported(at, other, &["atomic", "granular"]));
    }
    let items = schema.get("items").filter(|items| items.is_object());
    if list_type.is_some() && ty != "array" {
        errors.push(must_be("array", "x-kubernetes-list-type"));
    } else if let (Some("set"), Some(items)) = (list_type, items) {
        atomic_items(items, path, errors);
    }
    if let Some(other) = list_type.filter(|list| !matches!(*list, "atomic" | "set" | "map")) {
        let at = format!("{path}.x-kubernetes-list-type");
        errors.push(FieldError::not_supported(at, other, &["atomic", "set", "map"]));
    }
    if filled(schema, "x-kubernetes-list-map-keys") && list_type != Some("map") {
        let said = "must be map if x-kubernetes-list-map-keys is non-empty";
        let at = format!("{path}.x-kubernetes-list-type");
        errors.push(match list_type {
            None => FieldError::required(at, said),
            Some(other) => FieldError::invalid(at, other, said),
        });
    }
    if list_type == Some("map") {
        list_map(schema, items, path, errors);
    }
    if let (Some(list @ ("set" | "map")), Some(items)) = (list_type, items) {
        if items["nullable"] == true {
            let said = format!("cannot be nullable when x-kubernetes-list-type is {list}");
            errors.push(FieldError::forbidden(format!("{path}.items.nullable"), &said));
        }
        if list == "map" {
            map_keys(schema, items, path, errors);
        }
    }
}

/// Elements of a set are compared as wholes.
fn atomic_items(items: &Value, path: &str, errors: &mut Vec<FieldError>) {
    let said = "must be atomic as item of a list with x-kubernetes-list-type=set";
    let list_type = items["x-kubernetes-list-type"].clone();
    match text(items, "type") {
        "array" if !matches!(list_type.as_str(), None | Some("atomic")) => {
            let at = format!("{path}.items.x-kubernetes-list-type");
            errors.push(FieldError::invalid(at, list_type, said));
        }
        "object" if items["x-kubernetes-map-type"] != "atomic" => {
            let at = format!("{path}.items.x-kubernetes-map-type");
            // Upstream quotes the list type here, too.
            errors.push(FieldError::invalid(at, list_type, said));
        }
        _ => {}
    }
}

fn list_map(schema: &Value, items: Option<&Value>, path: &str, errors: &mut Vec<FieldError>) {
    let keys_at = format!("{path}.x-kubernetes-list-map-keys");
    if !filled(schema, "x-kubernetes-list-map-keys") {
        let said = "must not be empty if x-kubernetes-list-type is map";
        errors.push(FieldError::required(keys_at.as_str(), said));
    }
    let Some(items) = items else {
        let said = "must have a schema if x-kubernetes-list-type is map";
        errors.push(FieldError::required(format!("{path}.items"), said));
        return;
    };
    let ty = text(items, "type");
    if ty != "object" {
        let said = "must be object if parent array's x-kubernetes-list-type is map";
        errors.push(FieldError::invalid(format!("{path}.items.type"), ty, said));
        return;
    }
    let keys = schema["x-kubernetes-list-map-keys"].clone();
    let mut seen = Vec::new();
    for key in keys.as_array().into_iter().flatten() {
        let name = key.as_str().unwrap_or("");
        match items["properties"].get(name) {
            Some(property) if matches!(text(property, "type"), "array" | "object") => {
                let said = "must be a scalar type if parent array's x-kubernetes-list-type is map";
                let at = format!("{path}.items.properties[{name}].type");
                errors.push(FieldError::invalid(at, ty, said));
            }
            Some(_) => {}
            None => {
                let said = "entries must all be names of item properties";
                errors.push(FieldError::invalid(keys_at.as_str(), keys.clone(), said));
            }
        }
        if seen.contains(&key) {
            let said = "must not contain duplicate entries";
            errors.push(FieldError::invalid(keys_at.as_str(), keys.clone(), said));
        }
        seen.push(key);
    }
}

/// Keys of a list of maps are there in every element.
fn map_keys(schema: &Value, items: &Value, path: &str, errors: &mut Vec<FieldError>) {
    let required = items["required"].as_array().map(Vec::as_slice).unwrap_or_default();
    for key in schema["x-kubernetes-list-map-keys"].as_array().into_iter().flatten() {
        let name = key.as_str().unwrap_or("");
        let Some(property) = items["properties"].get(name) else { continue };
        let at = format!("{path}.items.properties[{name}]");
        if !required.contains(key) && !set(property, "default") {
            let said = "this property is in x-kubernetes-list-map-keys, so it must have a default or be a required property";
            errors.push(FieldError::required(format!("{at}.default"), said));
        }
        if property["nullable"] == true {
            let said = "this property is in x-kubernetes-list-map-keys, so it cannot be nullable";
            errors.push(FieldError::forbidden(format!("{at}.nullable"), said));
        }
    }
}

fn rule_form(schema: &Value, rule: &Value, path: &str, errors: &mut Vec<FieldError>) {
    let lines = |text: &str| text.contains(['\n', '\r']);
    let (expression, message) = (text(rule, "rule").trim(), text(rule, "message"));
    let at = |name: &str| format!("{path}.{name}");
    if expression.is_empty() {
        errors.push(FieldError::required(at("rule"), "rule is not specified"));
    } else if !message.is_empty() && message.trim().is_empty() {
        errors.push(FieldError::invalid(at("message"), message, "must be non-empty if specified"));
    } else if lines(message.trim()) {
        errors.push(FieldError::invalid(at("message"), message, "must not contain line breaks"));
    } else if lines(expression) && message.trim().is_empty() {
        let said = "message must be specified if rule contains line breaks";
        errors.push(FieldError::required(at("message"), said));
    }
    let expression = text(rule, "messageExpression");
    if !expression.is_empty() && expression.trim().is_empty() {
        let said = "messageExpression must be non-empty if specified";
        errors.push(FieldError::required(at("messageExpression"), said));
    }
    if let Some(reason) = rule["reason"].as_str().filter(|reason| !REASONS.contains(reason)) {
        errors.push(FieldError::not_supported(at("reason"), reason, &REASONS));
    }
    let field_path = text(rule, "fieldPath");
    if field_path.is_empty() {
        return;
    }
    let mut invalid = |said: &str| {
        errors.push(FieldError::invalid(at("fieldPath"), field_path, said));
    };
    if field_path.trim().is_empty() {
        invalid("must be non-empty if specified");
    }
    if lines(field_path) {
        invalid("must not contain line breaks");
    }
    if field_at(field_path, schema, true).is_err() {
        invalid("must be a valid path");
    }
}

/// The schema a path such as `.spec.a['b.c']` leads to, and the path in the form of field
/// errors.
///
/// # Errors
/// Upstream's sentence for a path that leads nowhere.
pub fn field_at<'a>(
    path: &str,
    schema: &'a Value,
    brackets: bool,
) -> Result<(String, &'a Value), String> {
    const NOWHERE: &str = "does not refer to a valid field";
    const END: &str = "unexpected end of JSON path";
    let mut tokens = tokens(path).into_iter();
    let mut schema = schema;
    let mut out = String::new();
    while let Some(token) = tokens.next() {
        let name = match token {
            "." => tokens.next().ok_or(END)?.to_string(),
            "[" if !brackets => return Err("array notation is not allowed".into()),
            "[" => {
                let token = tokens.next().ok_or(END)?;
                let quoted = token.strip_prefix('\'').and_then(|rest| rest.strip_suffix('\''));
                let name = quoted
                    .ok_or_else(|| format!("expected single quoted string but got {token}"))?;
                match tokens.next().ok_or(END)? {
                    "]" => name.replace("\\'", "'").replace("\\\\", "\\"),
                    other => return Err(format!("expected ] but got {other}")),
                }
            }
            other => return Err(format!("expected [ or . but got: {other}")),
        };
        if let Some(properties) = schema["properties"].as_object().filter(|map| !map.is_empty()) {
            schema = properties.get(&name).ok_or(NOWHERE)?;
            let dot = if out.is_empty() { "" } else { "." };
            out.push_str(&format!("{dot}{name}"));
        } else if schema["additionalProperties"].is_object() {
            schema = &schema["additionalProperties"];
            out.push_str(&format!("[{name}]"));
        } else {
            return Err(NOWHERE.into());
        }
    }
    Ok((out, schema))
}

/// `.`, `[` and `]`, and what stands between them; a quoted text is one token.
fn tokens(path: &str) -> Vec<&str> {
    let mut out = Vec::new();
    let mut rest = path;
    while let Some(first) = rest.chars().next() {
        let end = match first {
            '.' | '[' | ']' => 1,
            '\'' => {
                let mut before = '\'';
                let close = rest.char_indices().skip(1).find(|(_, char)| {
                    let found = *char == '\'' && before != '\\';
                    before = *char;
                    found
                });
                close.map_or(rest.len(), |(at, _)| at + 1)
            }
            _ => rest.find(['.', '[', ']']).unwrap_or(rest.len()),
        };
        out.push(&rest[..end]);
        rest = &rest[end..];
    }
    out
}

/// Only some fields may stand at the root where the status is written on its own.
pub fn root_with_status(schema: &Value, path: &str) -> Option<FieldError> {
    const ALLOWED: [&str; 22] = [
        "Description",
        "Type",
        "Format",
        "Title",
        "Maximum",
        "ExclusiveMaximum",
        "Minimum",
        "ExclusiveMinimum",
        "MaxLength",
        "MinLength",
        "Pattern",
        "MaxItems",
        "MinItems",
        "UniqueItems",
        "MultipleOf",
        "Required",
        "Items",
        "Properties",
        "ExternalDocs",
        "Example",
        "XPreserveUnknownFields",
        "XValidations",
    ];
    let ty = text(schema, "type");
    let bad_type = !matches!(ty, "" | "object");
    // Fields are looked at in order, and the first that does not fit is told.
    let first = go_json::first_set_but(schema, |name| {
        if name == "Type" { !bad_type } else { ALLOWED.contains(&name) }
    })?;
    if first == "Type" {
        let said = "only \"object\" is allowed as the type at the root of the schema if the status subresource is enabled";
        return Some(FieldError::invalid(format!("{path}.type"), ty, said));
    }
    let said = format!(
        "only [{}] fields are allowed at the root of the schema if the status subresource is enabled",
        ALLOWED.join(" ")
    );
    Some(FieldError::invalid(path, go_json::schema(schema), &said))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn paths_lead_through_properties_and_maps() {
        let schema = json!({"properties": {"a": {"properties": {"b.c": {"type": "string"}}},
            "m": {"additionalProperties": {"type": "integer"}}}});
        assert_eq!(field_at(".a['b.c']", &schema, true).unwrap().0, "a.b.c");
        assert_eq!(field_at(".m.x", &schema, true).unwrap().1["type"], "integer");
        for (path, said) in [
            (".a.x", "does not refer to a valid field"),
            ("a", "expected [ or . but got: a"),
            (".a[x]", "expected single quoted string but got x"),
            (".", "unexpected end of JSON path"),
        ] {
            assert_eq!(field_at(path, &schema, true).unwrap_err(), said, "{path}");
        }
        assert!(field_at(".a['b']", &schema, false).is_err());
    }
}
