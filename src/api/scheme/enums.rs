//! Which values fields of the built-in kinds may have, as OpenAPI shows them.
//!
//! Read for the making of one document, like the descriptions.

use serde_json::{Map, Value};

use super::schema::decode;

const ENUMS: &[u8] = include_bytes!("../../../embedded/enums-1.36.json.gz");

/// The values of types, and the types of fields.
pub struct Enums(Map<String, Value>);

impl Enums {
    pub fn read() -> Self {
        Self(decode(ENUMS))
    }

    /// Adds to the schema of a field what values it has, or its items have.
    pub fn add(&self, definition: &str, field: &str, schema: &mut Map<String, Value>) {
        let of = |section: &str, name: &str| self.0.get(section).and_then(|all| all.get(name));
        let found = of("fields", definition).and_then(|fields| fields.get(field));
        let Some(name) = found.and_then(Value::as_str) else { return };
        let many = name.strip_prefix("[]");
        let pairs = of("values", many.unwrap_or(name)).and_then(Value::as_array);
        let Some(pairs) = pairs else { return };
        let values: Value = pairs.iter().map(|pair| pair[0].clone()).collect();
        if many.is_some() {
            for inner in ["items", "additionalProperties"] {
                if let Some(Value::Object(inner)) = schema.get_mut(inner) {
                    inner.insert("enum".into(), values.clone());
                }
            }
            return;
        }
        schema.insert("enum".into(), values);
        let mut lines: Vec<String> = pairs.iter().map(line).collect();
        lines.sort();
        let before = schema.get("description").and_then(Value::as_str).unwrap_or("");
        let text = format!("{before}\n\nPossible enum values:\n{}", lines.join("\n"));
        schema.insert("description".into(), text.into());
    }
}

fn line(pair: &Value) -> String {
    let said = pair[1].as_str().unwrap_or("");
    let line = format!(" - `{}` {said}", pair[0]);
    line.trim_end().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn fields_show_their_values_and_lists_those_of_their_items() {
        let enums = Enums::read();
        let mut schema = Map::new();
        schema.insert("description".into(), "Which.".into());
        enums.add("api.core.v1.ContainerPort", "protocol", &mut schema);
        assert_eq!(schema["enum"], json!(["SCTP", "TCP", "UDP"]));
        assert_eq!(
            schema["description"],
            "Which.\n\nPossible enum values:\n - `\"SCTP\"` is the SCTP protocol.\n - `\"TCP\"` is the TCP protocol.\n - `\"UDP\"` is the UDP protocol."
        );
        let mut list = Map::new();
        list.insert("items".into(), json!({"type": "string"}));
        enums.add("api.core.v1.PersistentVolumeClaimSpec", "accessModes", &mut list);
        assert_eq!(list["items"]["enum"][0], "ReadOnlyMany");
        assert!(!list.contains_key("description"));
        let mut other = Map::new();
        enums.add("api.core.v1.ContainerPort", "name", &mut other);
        assert!(other.is_empty());
    }

    #[test]
    fn every_type_that_a_field_has_is_known() {
        let Enums(all) = Enums::read();
        let fields = all["fields"].as_object().unwrap().values();
        let names = fields.flat_map(|fields| fields.as_object().unwrap().values());
        for name in names.map(|name| name.as_str().unwrap().trim_start_matches("[]")) {
            assert!(all["values"][name].as_array().is_some_and(|list| !list.is_empty()), "{name}");
        }
    }
}
