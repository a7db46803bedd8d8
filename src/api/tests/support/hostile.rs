//! Definitions and objects drawn at random: nothing that a client sends makes a panic, and
//! what is brought into shape stays in shape.

use api::crd::schema::Node;
use api::crd::{definition, instance, jsonpath, pattern, rules, shape, structural, typed, value};
use api::scheme::shape::unknown_fields;
use serde_json::{Map, Value, json};

/// Draws; the same seed draws the same.
struct Draw(u64);

const WORDS: [&str; 30] = [
    "type",
    "object",
    "array",
    "string",
    "integer",
    "number",
    "boolean",
    "null",
    "properties",
    "items",
    "additionalProperties",
    "required",
    "default",
    "nullable",
    "format",
    "date-time",
    "x-kubernetes-preserve-unknown-fields",
    "x-kubernetes-embedded-resource",
    "x-kubernetes-int-or-string",
    "x-kubernetes-list-type",
    "map",
    "set",
    "x-kubernetes-list-map-keys",
    "x-kubernetes-validations",
    "anyOf",
    "oneOf",
    "not",
    "metadata",
    "a",
    "b",
];

impl Draw {
    fn below(&mut self, bound: usize) -> usize {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % bound
    }

    fn word(&mut self) -> String {
        WORDS[self.below(WORDS.len())].to_string()
    }

    /// Any JSON.
    fn any(&mut self, depth: usize) -> Value {
        match self.below(if depth == 0 { 6 } else { 9 }) {
            0 => Value::Null,
            1 => json!(self.below(2) == 0),
            2 => json!(self.below(20) as i64 - 5),
            3 => json!(self.below(100) as f64 / 8.0 - 3.0),
            4 | 5 => self.word().into(),
            6 => (0..self.below(4)).map(|_| self.any(depth - 1)).collect(),
            _ => Value::Object(
                (0..self.below(5)).map(|_| (self.word(), self.any(depth - 1))).collect(),
            ),
        }
    }

    /// Something that looks like a schema, and sometimes is none.
    fn schema(&mut self, depth: usize) -> Value {
        if self.below(12) == 0 {
            return self.any(2);
        }
        let types = ["object", "array", "string", "integer", "number", "boolean"];
        let ty =
            types[self.below(if depth == 0 { 6 } else { 3 }).max(if depth == 0 { 2 } else { 0 })];
        let mut out = Map::new();
        out.insert("type".into(), ty.into());
        let names = ["a", "b", "metadata", "kind"];
        if ty == "object" && depth > 0 {
            let properties = (0..self.below(4))
                .map(|_| (names[self.below(4)].to_string(), self.schema(depth - 1)));
            let properties: Map<String, Value> = properties.collect();
            if self.below(4) == 0 {
                out.insert("additionalProperties".into(), self.schema(depth - 1));
            } else {
                out.insert("properties".into(), Value::Object(properties));
            }
        }
        if ty == "array" && depth > 0 {
            out.insert("items".into(), self.schema(depth - 1));
        }
        for _ in 0..self.below(4) {
            let key = self.word();
            let value = if self.below(2) == 0 { json!(true) } else { self.any(2) };
            out.entry(key).or_insert(value);
        }
        if self.below(3) == 0 {
            out.insert("default".into(), self.any(2));
        }
        if self.below(6) == 0 {
            let of = ["anyOf", "oneOf", "allOf"][self.below(3)];
            out.insert(of.into(), json!([self.any(3), {"required": ["a"]}]));
        }
        if self.below(6) == 0 {
            out.insert(
                "x-kubernetes-validations".into(),
                json!([{"rule": "self == oldSelf"}, {"rule": "has(self.a)"}]),
            );
        }
        Value::Object(out)
    }
}

#[test]
fn random_definitions_and_objects_make_no_panic() {
    let mut draw = Draw(7);
    let mut good = 0;
    for _ in 0..3_000 {
        let mut schema = draw.schema(3);
        if let Value::Object(map) = &mut schema {
            map.insert("type".into(), "object".into());
        }
        let version = json!({"name": "v1", "served": true, "storage": true,
            "schema": {"openAPIV3Schema": schema}});
        let definition = json!({
            "metadata": {"name": "as.example.com"},
            "spec": {"group": "example.com", "scope": "Namespaced", "versions": [version],
                "names": {"plural": "as", "singular": "a", "kind": "A", "listKind": "AList"},
                "conversion": {"strategy": "None"}},
            "status": {"storedVersions": ["v1"]},
        });
        let errors = definition::create(&definition);
        definition::update(&definition, &definition);
        definition::warnings(&definition, None);
        let node = Node::compile(&schema);
        let _ = typed::schema_of(&node);
        rules::Rules::compile(&schema, true);
        for _ in 0..3 {
            let mut object = draw.any(4);
            let old = draw.any(4);
            value::check(&node, &object, Some(&old), "");
            instance::lists(&object, &node);
            instance::embedded(&object, &node);
            let _ = shape::coerce_metadata(&mut object);
            shape::prune(&mut object, &node);
            shape::prune_nulls(&mut object, Some(&node));
            let _ = shape::coerce_embedded(&mut object, &node, true);
            shape::default(&mut object, &node);
            if errors.is_empty() && structural::check(&schema, "s").is_empty() {
                good += 1;
                // Nothing is left that would be taken away the next time.
                let once = object.clone();
                shape::prune(&mut object, &node);
                shape::default(&mut object, &node);
                assert_eq!(object, once, "{schema}");
                if object.is_object() {
                    let types = typed::schema_of(&node);
                    let unknown = unknown_fields(&object, typed::root_of(&types));
                    assert!(unknown.is_empty(), "{unknown:?} in {object} of {schema}");
                }
            }
        }
    }
    assert!(good > 300, "only {good} were good");
}

#[test]
fn random_texts_are_parsed_or_refused() {
    let mut draw = Draw(11);
    let letters: Vec<char> = r#"a.b[]()*+?{}|\d^$:-,'"@=<>!&~ 1é"#.chars().collect();
    for _ in 0..20_000 {
        let text: String =
            (0..draw.below(12)).map(|_| letters[draw.below(letters.len())]).collect();
        if let Ok(path) = jsonpath::Path::parse(&text) {
            path.find(&json!({"a": [{"b": 1}, 2], "b": "x"}));
        }
        if let Ok(regex) = pattern::pattern(&text) {
            regex.is_match("aab1");
        }
    }
}
