//! A version's schema, compiled once for a revision of its definition and shared by all
//! requests.
//!
//! Reads what the definition says and judges nothing: `structural` and `rules` do, before
//! a definition is stored.

use std::collections::BTreeMap;

use regex::Regex;
use serde_json::Value;

use super::formats;
use super::pattern::pattern;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ListType {
    #[default]
    Atomic,
    Set,
    Map,
}

/// What fields that are not named may hold.
#[derive(Debug, Clone, Default)]
pub enum Additional {
    #[default]
    Unsaid,
    Any(bool),
    Node(Box<Node>),
}

impl Additional {
    pub fn node(&self) -> Option<&Node> {
        match self {
            Self::Node(node) => Some(node),
            Self::Unsaid | Self::Any(_) => None,
        }
    }

    /// Whether fields that are not named may stand here at all.
    pub fn is_said(&self) -> bool {
        !matches!(self, Self::Unsaid)
    }
}

#[derive(Debug, Clone)]
pub struct Pattern {
    pub text: String,
    /// The error, for a pattern that is none.
    pub regex: Result<Regex, String>,
}

/// One place of a schema.
#[derive(Debug, Clone, Default)]
pub struct Node {
    /// As the definition says it; empty where it says nothing.
    pub ty: String,
    /// The types that values may have: two for `x-kubernetes-int-or-string`.
    pub types: Vec<&'static str>,
    pub nullable: bool,
    /// Only formats that are known for the type.
    pub format: String,
    pub check_format: Option<fn(&str) -> bool>,
    pub maximum: Option<f64>,
    pub exclusive_maximum: bool,
    pub minimum: Option<f64>,
    pub exclusive_minimum: bool,
    pub multiple_of: Option<f64>,
    pub max_length: Option<i64>,
    pub min_length: Option<i64>,
    pub pattern: Option<Pattern>,
    pub max_items: Option<i64>,
    pub min_items: Option<i64>,
    pub max_properties: Option<i64>,
    pub min_properties: Option<i64>,
    pub unique_items: bool,
    pub allowed: Vec<Value>,
    pub required: Vec<String>,
    pub properties: BTreeMap<String, Node>,
    pub additional: Additional,
    pub items: Option<Box<Node>>,
    pub all_of: Vec<Node>,
    pub any_of: Vec<Node>,
    pub one_of: Vec<Node>,
    pub not: Option<Box<Node>>,
    pub default: Option<Value>,
    /// A default stands here or somewhere below.
    pub has_defaults: bool,
    pub preserve_unknown: bool,
    pub embedded: bool,
    pub int_or_string: bool,
    pub list_type: ListType,
    pub list_map_keys: Vec<String>,
    pub atomic_map: bool,
}

const TYPES: [&str; 7] = ["array", "boolean", "integer", "null", "number", "object", "string"];

impl Node {
    pub fn compile(schema: &Value) -> Self {
        let text = |key: &str| schema[key].as_str().unwrap_or("").to_string();
        let flag = |key: &str| schema[key] == true;
        let many = |key: &str| -> Vec<Node> {
            schema[key].as_array().into_iter().flatten().map(Node::compile).collect()
        };
        let one = |key: &str| {
            schema.get(key).filter(|v| v.is_object()).map(|v| Box::new(Node::compile(v)))
        };
        let words = |key: &str| -> Vec<String> {
            let list = schema[key].as_array().into_iter().flatten();
            list.filter_map(|word| word.as_str().map(str::to_string)).collect()
        };
        let ty = text("type");
        let int_or_string = flag("x-kubernetes-int-or-string");
        let types = match int_or_string {
            true => vec!["integer", "string"],
            false => TYPES.iter().copied().filter(|known| *known == ty).collect(),
        };
        let single = if int_or_string { "both" } else { ty.as_str() };
        let format = Some(text("format")).filter(|f| formats::is_known(f, single));
        let format = format.unwrap_or_default();
        let additional = match &schema["additionalProperties"] {
            Value::Bool(allowed) => Additional::Any(*allowed),
            Value::Object(_) => {
                Additional::Node(Box::new(Node::compile(&schema["additionalProperties"])))
            }
            _ => Additional::Unsaid,
        };
        let properties = schema["properties"].as_object();
        let properties: BTreeMap<String, Node> = properties
            .into_iter()
            .flatten()
            .map(|(name, below)| (name.clone(), Node::compile(below)))
            .collect();
        let default = schema.get("default").filter(|value| !value.is_null()).cloned();
        let items = one("items");
        let has_defaults = default.is_some()
            || items.as_ref().is_some_and(|node| node.has_defaults)
            || additional.node().is_some_and(|node| node.has_defaults)
            || properties.values().any(|node| node.has_defaults);
        Self {
            types,
            nullable: flag("nullable"),
            check_format: formats::of_strings(&format),
            format,
            maximum: schema["maximum"].as_f64(),
            exclusive_maximum: flag("exclusiveMaximum"),
            minimum: schema["minimum"].as_f64(),
            exclusive_minimum: flag("exclusiveMinimum"),
            multiple_of: schema["multipleOf"].as_f64(),
            max_length: schema["maxLength"].as_i64(),
            min_length: schema["minLength"].as_i64(),
            pattern: Some(text("pattern"))
                .filter(|p| !p.is_empty())
                .map(|text| Pattern { regex: pattern(&text), text }),
            max_items: schema["maxItems"].as_i64(),
            min_items: schema["minItems"].as_i64(),
            max_properties: schema["maxProperties"].as_i64(),
            min_properties: schema["minProperties"].as_i64(),
            unique_items: flag("uniqueItems"),
            allowed: schema["enum"].as_array().cloned().unwrap_or_default(),
            required: words("required"),
            properties,
            additional,
            items,
            all_of: many("allOf"),
            any_of: many("anyOf"),
            one_of: many("oneOf"),
            not: one("not"),
            default,
            has_defaults,
            preserve_unknown: flag("x-kubernetes-preserve-unknown-fields"),
            embedded: flag("x-kubernetes-embedded-resource"),
            int_or_string,
            list_type: match schema["x-kubernetes-list-type"].as_str() {
                Some("set") => ListType::Set,
                Some("map") => ListType::Map,
                _ => ListType::Atomic,
            },
            list_map_keys: words("x-kubernetes-list-map-keys"),
            atomic_map: schema["x-kubernetes-map-type"] == "atomic",
            ty,
        }
    }

    /// The node that a field is judged by; None where the schema says nothing of it.
    pub fn field(&self, name: &str) -> Option<&Node> {
        self.properties.get(name).or_else(|| self.additional.node())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_deep_schema_is_compiled() {
        let mut schema = json!({"type": "string", "default": "x"});
        for _ in 0..200 {
            schema = json!({"type": "object", "properties": {"a": schema}});
        }
        assert!(Node::compile(&schema).has_defaults);
    }
}
