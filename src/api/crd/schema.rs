//! A version's schema, compiled once for a revision of its definition and shared by all
//! requests.
//!
//! Reads what the definition says and judges nothing: `structural` and `rules` do, before
//! a definition is stored.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, OnceLock};

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

/// A regular expression, made when a value is first held against it: schemas have the same
/// one in hundreds of places, and most of them are never asked.
#[derive(Debug)]
pub struct Pattern {
    pub text: String,
    regex: OnceLock<Result<Regex, String>>,
}

impl Pattern {
    /// The error, for a pattern that is none.
    pub fn regex(&self) -> Result<&Regex, &str> {
        self.regex.get_or_init(|| pattern(&self.text)).as_ref().map_err(String::as_str)
    }
}

/// The fields an object names, in the order of their names. A sorted list: maps of their own
/// would take more room than what they hold.
#[derive(Debug, Clone, Default)]
pub struct Fields(Box<[(Box<str>, Node)]>);

impl Fields {
    pub fn get(&self, name: &str) -> Option<&Node> {
        let at = self.0.binary_search_by(|(known, _)| (**known).cmp(name)).ok()?;
        Some(&self.0[at].1)
    }

    pub fn contains_key(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, &Node)> {
        self.0.iter().map(|(name, node)| (&**name, node))
    }
}

/// One place of a schema.
#[derive(Debug, Clone, Default)]
pub struct Node {
    /// As the definition says it; empty where it says nothing.
    pub ty: &'static str,
    /// The types that values may have: two for `x-kubernetes-int-or-string`.
    pub types: &'static [&'static str],
    pub nullable: bool,
    /// Only formats that are known for the type.
    pub format: Box<str>,
    pub check_format: Option<fn(&str) -> bool>,
    limits: Option<Box<Limits>>,
    pub required: Box<[String]>,
    pub properties: Fields,
    pub additional: Additional,
    pub items: Option<Box<Node>>,
    pub default: Option<Box<Value>>,
    /// A default stands here or somewhere below.
    pub has_defaults: bool,
    pub preserve_unknown: bool,
    pub embedded: bool,
    pub int_or_string: bool,
    pub list_type: ListType,
    pub list_map_keys: Box<[String]>,
    pub atomic_map: bool,
}

/// What most places of a schema do not say, kept apart to keep them small.
#[derive(Debug, Clone, Default)]
pub struct Limits {
    pub maximum: Option<f64>,
    pub exclusive_maximum: bool,
    pub minimum: Option<f64>,
    pub exclusive_minimum: bool,
    pub multiple_of: Option<f64>,
    pub max_length: Option<i64>,
    pub min_length: Option<i64>,
    pub pattern: Option<Arc<Pattern>>,
    pub max_items: Option<i64>,
    pub min_items: Option<i64>,
    pub max_properties: Option<i64>,
    pub min_properties: Option<i64>,
    pub unique_items: bool,
    pub allowed: Vec<Value>,
    pub all_of: Vec<Node>,
    pub any_of: Vec<Node>,
    pub one_of: Vec<Node>,
    pub not: Option<Box<Node>>,
}

/// The keywords that `Limits` holds.
const LIMITS: [&str; 16] = [
    "maximum",
    "minimum",
    "multipleOf",
    "maxLength",
    "minLength",
    "pattern",
    "maxItems",
    "minItems",
    "maxProperties",
    "minProperties",
    "uniqueItems",
    "enum",
    "allOf",
    "anyOf",
    "oneOf",
    "not",
];

static NO_LIMITS: LazyLock<Limits> = LazyLock::new(Limits::default);

static TYPES: [&str; 7] = ["array", "boolean", "integer", "null", "number", "object", "string"];

impl Node {
    pub fn compile(schema: &Value) -> Self {
        Compiler::default().node(schema)
    }

    pub fn limits(&self) -> &Limits {
        self.limits.as_deref().unwrap_or(&NO_LIMITS)
    }

    /// The node that a field is judged by; None where the schema says nothing of it.
    pub fn field(&self, name: &str) -> Option<&Node> {
        self.properties.get(name).or_else(|| self.additional.node())
    }
}

/// What the places of one schema share.
#[derive(Default)]
struct Compiler {
    patterns: HashMap<String, Arc<Pattern>>,
}

impl Compiler {
    fn node(&mut self, schema: &Value) -> Node {
        let flag = |key: &str| schema[key] == true;
        let known = TYPES.iter().position(|known| schema["type"] == *known);
        let types = known.map_or(&[][..], |at| &TYPES[at..=at]);
        let ty = types.first().copied().unwrap_or("");
        let int_or_string = flag("x-kubernetes-int-or-string");
        let types = if int_or_string { &["integer", "string"] } else { types };
        let single = if int_or_string { "both" } else { ty };
        let format = schema["format"].as_str().filter(|f| formats::is_known(f, single));
        let format = format.unwrap_or_default();
        let additional = match &schema["additionalProperties"] {
            Value::Bool(allowed) => Additional::Any(*allowed),
            below @ Value::Object(_) => Additional::Node(Box::new(self.node(below))),
            _ => Additional::Unsaid,
        };
        let properties = schema["properties"].as_object();
        let properties = properties.into_iter().flatten();
        let mut properties: Vec<(Box<str>, Node)> =
            properties.map(|(name, below)| (name.as_str().into(), self.node(below))).collect();
        properties.sort_by(|(a, _), (b, _)| a.cmp(b));
        let default = schema.get("default").filter(|value| !value.is_null()).cloned();
        let items = self.one(&schema["items"]);
        let has_defaults = default.is_some()
            || items.as_ref().is_some_and(|node| node.has_defaults)
            || additional.node().is_some_and(|node| node.has_defaults)
            || properties.iter().any(|(_, node)| node.has_defaults);
        Node {
            ty,
            types,
            nullable: flag("nullable"),
            format: format.into(),
            check_format: formats::of_strings(format),
            limits: self.limits(schema),
            required: words(&schema["required"]),
            properties: Fields(properties.into()),
            additional,
            items,
            default: default.map(Box::new),
            has_defaults,
            preserve_unknown: flag("x-kubernetes-preserve-unknown-fields"),
            embedded: flag("x-kubernetes-embedded-resource"),
            int_or_string,
            list_type: match schema["x-kubernetes-list-type"].as_str() {
                Some("set") => ListType::Set,
                Some("map") => ListType::Map,
                _ => ListType::Atomic,
            },
            list_map_keys: words(&schema["x-kubernetes-list-map-keys"]),
            atomic_map: schema["x-kubernetes-map-type"] == "atomic",
        }
    }

    fn limits(&mut self, schema: &Value) -> Option<Box<Limits>> {
        let said = schema.as_object()?;
        if !LIMITS.iter().any(|keyword| said.contains_key(*keyword)) {
            return None;
        }
        let pattern = schema["pattern"].as_str().filter(|text| !text.is_empty());
        Some(Box::new(Limits {
            maximum: schema["maximum"].as_f64(),
            exclusive_maximum: schema["exclusiveMaximum"] == true,
            minimum: schema["minimum"].as_f64(),
            exclusive_minimum: schema["exclusiveMinimum"] == true,
            multiple_of: schema["multipleOf"].as_f64(),
            max_length: schema["maxLength"].as_i64(),
            min_length: schema["minLength"].as_i64(),
            pattern: pattern.map(|text| self.pattern(text)),
            max_items: schema["maxItems"].as_i64(),
            min_items: schema["minItems"].as_i64(),
            max_properties: schema["maxProperties"].as_i64(),
            min_properties: schema["minProperties"].as_i64(),
            unique_items: schema["uniqueItems"] == true,
            allowed: schema["enum"].as_array().cloned().unwrap_or_default(),
            all_of: self.many(&schema["allOf"]),
            any_of: self.many(&schema["anyOf"]),
            one_of: self.many(&schema["oneOf"]),
            not: self.one(&schema["not"]),
        }))
    }

    fn one(&mut self, schema: &Value) -> Option<Box<Node>> {
        schema.is_object().then(|| Box::new(self.node(schema)))
    }

    fn many(&mut self, schemas: &Value) -> Vec<Node> {
        schemas.as_array().into_iter().flatten().map(|schema| self.node(schema)).collect()
    }

    fn pattern(&mut self, text: &str) -> Arc<Pattern> {
        let made = || Arc::new(Pattern { text: text.to_string(), regex: OnceLock::new() });
        self.patterns.entry(text.to_string()).or_insert_with(made).clone()
    }
}

fn words(list: &Value) -> Box<[String]> {
    let list = list.as_array().into_iter().flatten();
    list.filter_map(|word| word.as_str().map(str::to_string)).collect()
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

    #[test]
    fn places_are_small_and_share_their_patterns() {
        assert!(size_of::<Node>() <= 200, "{}", size_of::<Node>());
        let text = json!({"type": "string", "pattern": "^a+$"});
        let schema = json!({"properties": {"b": text, "a": text, "c": {"type": "string"}}});
        let node = Node::compile(&schema);
        let pattern = |name: &str| node.properties.get(name)?.limits().pattern.clone();
        assert!(Arc::ptr_eq(&pattern("a").unwrap(), &pattern("b").unwrap()));
        assert!(pattern("c").is_none() && pattern("d").is_none());
    }
}
