//! Printer columns of custom resources: what a table shows of them.
//!
//! Columns were checked when the definition was stored; one whose path cannot be read
//! shows nothing.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::jsonpath::{self, Path};

/// One additional column.
#[derive(Debug, Clone)]
pub struct Column {
    name: String,
    kind: String,
    format: String,
    description: String,
    priority: i64,
    path: Option<Path>,
}

/// Reads `additionalPrinterColumns`. Without any, the age is shown.
pub fn read(columns: &Value) -> Vec<Column> {
    let text = |value: &Value| value.as_str().unwrap_or("").to_string();
    let listed = columns.as_array().map(Vec::as_slice).unwrap_or_default();
    if listed.is_empty() {
        return vec![Column {
            name: "Age".into(),
            kind: "date".into(),
            format: String::new(),
            description: AGE_WORDS.into(),
            priority: 0,
            path: Path::parse(".metadata.creationTimestamp").ok(),
        }];
    }
    listed
        .iter()
        .map(|column| {
            let path = text(&column["jsonPath"]);
            let description = match column["description"].as_str() {
                Some(words) if !words.is_empty() => words.to_string(),
                _ => format!("Custom resource definition column (in JSONPath format): {path}"),
            };
            Column {
                name: text(&column["name"]),
                kind: text(&column["type"]),
                format: text(&column["format"]),
                description,
                priority: column["priority"].as_i64().unwrap_or(0),
                path: Path::parse(&path).ok(),
            }
        })
        .collect()
}

const AGE_WORDS: &str = "CreationTimestamp is a timestamp representing the server time when this object was created. It is not guaranteed to be set in happens-before order across separate operations. Clients may not set this value. It is represented in RFC3339 form and is in UTC.\n\nPopulated by the system. Read-only. Null for lists. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#metadata";
const NAME_WORDS: &str = "Name must be unique within a namespace. Is required when creating resources, although some resources may allow a client to request the generation of an appropriate name automatically. Name is primarily intended for creation idempotence and configuration definition. Cannot be updated. More info: https://kubernetes.io/docs/concepts/overview/working-with-objects/names#names";

/// `columnDefinitions` of a table.
pub fn definitions(columns: &[Column]) -> Vec<Value> {
    let name = json!({
        "name": "Name", "type": "string", "format": "name", "description": NAME_WORDS,
        "priority": 0,
    });
    let rest = columns.iter().map(|column| {
        json!({
            "name": column.name, "type": column.kind, "format": column.format,
            "description": column.description, "priority": column.priority,
        })
    });
    std::iter::once(name).chain(rest).collect()
}

/// The cells of one object's row.
pub fn cells(columns: &[Column], object: &Value, now: Timestamp) -> Vec<Value> {
    let name = object["metadata"]["name"].clone();
    std::iter::once(name).chain(columns.iter().map(|column| cell(column, object, now))).collect()
}

fn cell(column: &Column, object: &Value, now: Timestamp) -> Value {
    let found = column.path.as_ref().and_then(|path| path.find(object).into_iter().next());
    let Some(found) = found else { return Value::Null };
    match (column.kind.as_str(), found) {
        ("string", value) => jsonpath::print(value).into(),
        (_, Value::Null) => Value::Null,
        ("integer", Value::Number(number)) => match number.as_i64() {
            Some(whole) => whole.into(),
            None => (number.as_f64().unwrap_or(0.0) as i64).into(),
        },
        ("number", Value::Number(_)) | ("boolean", Value::Bool(_)) => found.clone(),
        ("date", Value::String(text)) => match text.parse::<Timestamp>() {
            Ok(_) => kinds::table::since(text, now).into(),
            Err(_) => "<invalid>".into(),
        },
        _ => Value::Null,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_have_the_type_of_their_column() {
        let columns = read(&json!([
            {"name": "S", "type": "string", "jsonPath": ".spec.list"},
            {"name": "I", "type": "integer", "jsonPath": ".spec.float"},
            {"name": "B", "type": "boolean", "jsonPath": ".spec.missing"},
            {"name": "D", "type": "date", "jsonPath": ".spec.when"},
            {"name": "C", "type": "string", "jsonPath": ".status.conditions[?(@.type==\"Ready\")].status"},
        ]));
        let now: Timestamp = "2024-01-01T00:01:00Z".parse().unwrap();
        let object = json!({"metadata": {"name": "n"},
            "spec": {"list": ["a", 1], "float": 2.5, "when": "2024-01-01T00:00:00Z"},
            "status": {"conditions": [{"type": "A", "status": "x"}, {"type": "Ready", "status": "y"}]}});
        assert_eq!(
            cells(&columns, &object, now),
            [json!("n"), json!("[\"a\",1]"), json!(2), Value::Null, json!("60s"), json!("y"),]
        );
        assert_eq!(read(&Value::Null).len(), 1);
    }
}
