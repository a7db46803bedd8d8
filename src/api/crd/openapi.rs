//! Custom resources in OpenAPI documents (apiextensions-apiserver,
//! `controller/openapi/builder`).
//!
//! Version 2 of OpenAPI says less than schemas do: what it cannot say is left out of it.

use serde_json::{Map, Value, json};

use super::version::Version;

const GVK: &str = "x-kubernetes-group-version-kind";
const PRESERVE: &str = "x-kubernetes-preserve-unknown-fields";
const OBJECT_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";
const LIST_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ListMeta";
const OBJECT_META_WORDS: &str = "Standard object's metadata. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#metadata";
const LIST_META_WORDS: &str = "Standard list metadata. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#types-kinds";
const API_VERSION_WORDS: &str = "APIVersion defines the versioned schema of this representation of an object. Servers should convert recognized schemas to the latest internal value, and may reject unrecognized values. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#resources";
const KIND_WORDS: &str = "Kind is a string value representing the REST resource this object represents. Servers may infer this from the endpoint the client submits requests to. Cannot be updated. In CamelCase. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#types-kinds";
const INNER_API_VERSION_WORDS: &str = "apiVersion defines the versioned schema of this representation of an object. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#resources";
const INNER_KIND_WORDS: &str = "kind is a string value representing the type of this object. In CamelCase. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#types-kinds";

/// `com.example.v1.Widget`
pub fn model_name(group: &str, version: &str, kind: &str) -> String {
    let reversed: Vec<&str> = group.split('.').rev().collect();
    format!("{}.{version}.{kind}", reversed.join("."))
}

/// The definitions of a version's kind and of its list, by name.
pub fn definitions(
    resource: &kinds::resources::Resource,
    version: &Version,
    v2: bool,
) -> [(String, Value); 2] {
    let gvk = |kind: &str| {
        json!([{
            "group": resource.group, "version": version.name, "kind": kind,
        }])
    };
    let name = model_name(&resource.group, &version.name, &resource.kind);
    let list_name = model_name(&resource.group, &version.name, &resource.list_kind);
    let selectable: Vec<Value> =
        version.selectable.iter().map(|path| json!({"fieldPath": path})).collect();
    let mut own = object(version, v2);
    own[GVK] = gvk(&resource.kind);
    let root = if v2 { "#/definitions/" } else { "#/components/schemas/" };
    let items = json!({"$ref": format!("{root}{name}")});
    let mut list = json!({
        "description": format!("{} is a list of {}", resource.list_kind, resource.kind),
        "type": "object",
        "required": ["items"],
        "properties": {
            "apiVersion": {"description": API_VERSION_WORDS, "type": "string"},
            "items": {
                "description": format!("List of {}. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md", resource.plural),
                "type": "array",
                "items": items,
            },
            "kind": {"description": KIND_WORDS, "type": "string"},
            "metadata": reference(LIST_META, LIST_META_WORDS, v2),
        },
        GVK: gvk(&resource.list_kind),
    });
    if !selectable.is_empty() && !v2 {
        own["x-kubernetes-selectable-fields"] = Value::Array(selectable.clone());
        list["x-kubernetes-selectable-fields"] = Value::Array(selectable);
    }
    [(name, own), (list_name, list)]
}

fn reference(to: &str, words: &str, v2: bool) -> Value {
    if v2 {
        json!({"description": words, "$ref": format!("#/definitions/{to}")})
    } else {
        json!({"description": words, "allOf": [{"$ref": format!("#/components/schemas/{to}")}]})
    }
}

fn object(version: &Version, v2: bool) -> Value {
    let schema = version.schema();
    if !schema.is_object() || (v2 && schema[PRESERVE] == true) {
        return json!({"type": "object"});
    }
    let mut out = place(schema, v2);
    let properties = properties_of(&mut out);
    properties
        .insert("apiVersion".into(), json!({"description": API_VERSION_WORDS, "type": "string"}));
    properties.insert("kind".into(), json!({"description": KIND_WORDS, "type": "string"}));
    properties.insert("metadata".into(), reference(OBJECT_META, OBJECT_META_WORDS, v2));
    out
}

fn properties_of(schema: &mut Value) -> &mut Map<String, Value> {
    if !schema["properties"].is_object() {
        schema["properties"] = json!({});
    }
    match &mut schema["properties"] {
        Value::Object(map) => map,
        _ => unreachable!("it was made an object above"),
    }
}

/// One place of a schema, and everything below it.
fn place(schema: &Value, v2: bool) -> Value {
    let Value::Object(given) = schema else { return schema.clone() };
    let mut out = Map::new();
    let preserves = schema[PRESERVE] == true;
    let nullable = schema["nullable"] == true;
    let emptied = v2 && (nullable || preserves);
    for (key, value) in given {
        match key.as_str() {
            "allOf" | "anyOf" | "oneOf" | "not" | "nullable" if v2 => {}
            "items" | "properties" if emptied => {}
            "properties" => {
                let all = value.as_object().into_iter().flatten();
                let all = all.map(|(name, below)| (name.clone(), place(below, v2)));
                out.insert(key.clone(), Value::Object(all.collect()));
            }
            "items" | "additionalProperties" => {
                out.insert(key.clone(), place(value, v2));
            }
            _ => {
                out.insert(key.clone(), value.clone());
            }
        }
    }
    let is = |name: &str| schema["type"] == name;
    if v2
        && (nullable || (preserves && is("object")) || (is("array") && !out.contains_key("items")))
    {
        out.shift_remove("type");
    }
    let mut out = Value::Object(out);
    if v2 {
        not_required(schema, &mut out);
    } else if schema["x-kubernetes-int-or-string"] == true {
        either(schema, &mut out);
    }
    if schema["x-kubernetes-embedded-resource"] == true && !(v2 && preserves) {
        embedded(&mut out, v2);
    }
    out
}

/// What may be null may be missing, for those who know no null.
fn not_required(schema: &Value, out: &mut Value) {
    let nullable = |name: &Value| {
        let property = name.as_str().and_then(|name| schema["properties"].get(name));
        property.is_some_and(|property| property["nullable"] == true)
    };
    let all = schema["additionalProperties"]["nullable"] == true;
    let Some(required) = out.get_mut("required").and_then(Value::as_array_mut) else { return };
    required.retain(|name| !all && !nullable(name));
    if required.is_empty()
        && let Value::Object(map) = out
    {
        map.shift_remove("required");
    }
}

/// A number or a text, in words that everybody knows.
fn either(schema: &Value, out: &mut Value) {
    let both = json!([{"type": "integer"}, {"type": "string"}]);
    if schema["anyOf"] == both || schema["allOf"][0]["anyOf"] == both {
        return;
    }
    if schema.get("anyOf").is_none() {
        out["anyOf"] = both;
        return;
    }
    let mut all = vec![json!({"anyOf": both})];
    all.extend(schema["allOf"].as_array().into_iter().flatten().cloned());
    out["allOf"] = Value::Array(all);
}

fn embedded(out: &mut Value, v2: bool) {
    let properties = properties_of(out);
    properties.insert(
        "apiVersion".into(),
        json!({"description": INNER_API_VERSION_WORDS, "type": "string"}),
    );
    properties.insert("kind".into(), json!({"description": INNER_KIND_WORDS, "type": "string"}));
    properties.insert("metadata".into(), reference(OBJECT_META, OBJECT_META_WORDS, v2));
    let mut required = out["required"].as_array().cloned().unwrap_or_default();
    for name in ["kind", "apiVersion"] {
        if !required.iter().any(|held| held == name) {
            required.push(name.into());
        }
    }
    out["required"] = Value::Array(required);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_turned_around() {
        assert_eq!(model_name("a.example.com", "v1", "Widget"), "com.example.a.v1.Widget");
    }

    #[test]
    fn version_two_leaves_out_what_it_cannot_say() {
        let schema = json!({"type": "object", "required": ["a", "b"], "properties": {
            "a": {"type": "string", "nullable": true},
            "b": {"type": "object", PRESERVE: true, "properties": {"c": {"type": "string"}}},
            "d": {"x-kubernetes-int-or-string": true},
        }, "oneOf": [{"required": ["a"]}]});
        assert_eq!(
            place(&schema, true),
            json!({"type": "object", "required": ["b"], "properties": {
                "a": {}, "b": {PRESERVE: true}, "d": {"x-kubernetes-int-or-string": true},
            }})
        );
        let three = place(&schema, false);
        assert_eq!(three["properties"]["d"]["anyOf"][0]["type"], "integer");
        assert_eq!(three["oneOf"], schema["oneOf"]);
    }
}
