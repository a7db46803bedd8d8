//! OpenAPI v3 of servers that only speak v2: what they said is said again in the newer form
//! (kube-openapi, `openapiconv`).
//!
//! Pure. What refers to nothing stays as it is; parameters that many share are written where
//! they are used, for v3 documents have no place of ours for them.

use serde_json::{Map, Value, json};

const DEFINITIONS: &str = "#/definitions/";
const SCHEMAS: &str = "#/components/schemas/";
const METHODS: [&str; 7] = ["get", "put", "post", "delete", "options", "head", "patch"];

/// A document of v3 from one of v2, or from a part of one.
pub fn convert(v2: &Value) -> Value {
    let info = v2.get("info").filter(|info| info.is_object()).cloned();
    let each = |section: &str, convert: &dyn Fn(&Value) -> Value| -> Map<String, Value> {
        let entries = v2[section].as_object().into_iter().flatten();
        entries.map(|(name, value)| (name.clone(), convert(value))).collect()
    };
    json!({
        "openapi": "3.0.0",
        "info": info.unwrap_or_else(|| json!({"title": "", "version": ""})),
        "paths": each("paths", &|item| path_item(v2, item)),
        "components": {
            "schemas": each("definitions", &schema),
            "securitySchemes": each("securityDefinitions", &security_scheme),
        },
    })
}

/// A schema, with references to where definitions are in v3. A reference with something beside
/// it is put inside `allOf`, for beside a reference nothing counts.
fn schema(given: &Value) -> Value {
    let Value::Object(given) = given else { return given.clone() };
    let mut out = Map::new();
    let mut reference = None;
    for (key, value) in given {
        let value = match (key.as_str(), value) {
            ("$ref", Value::String(to)) => {
                let to = to.strip_prefix(DEFINITIONS).map(|name| format!("{SCHEMAS}{name}"));
                reference = to;
                continue;
            }
            ("properties", Value::Object(all)) => Value::Object(
                all.iter().map(|(name, below)| (name.clone(), schema(below))).collect(),
            ),
            ("items" | "additionalProperties" | "additionalItems", Value::Object(_)) => {
                schema(value)
            }
            ("items" | "allOf", Value::Array(all)) => all.iter().map(schema).collect(),
            _ => value.clone(),
        };
        out.insert(key.clone(), value);
    }
    if let Some(to) = reference {
        if out.is_empty() {
            return json!({"$ref": to});
        }
        out.insert("allOf".into(), json!([{"$ref": to}]));
    }
    Value::Object(out)
}

fn security_scheme(v2: &Value) -> Value {
    let mut out = taken(v2, &["type", "description", "name", "in"]);
    if let Some(flow) = v2["flow"].as_str().filter(|flow| !flow.is_empty()) {
        let about = taken(v2, &["authorizationUrl", "tokenUrl", "scopes"]);
        out.insert("flows".into(), json!({flow: about}));
    }
    Value::Object(out)
}

/// Some fields of an object, and what begins with `x-`.
fn taken(from: &Value, fields: &[&str]) -> Map<String, Value> {
    let all = from.as_object().into_iter().flatten();
    let wanted = all.filter(|(key, _)| key.starts_with("x-") || fields.contains(&key.as_str()));
    wanted.map(|(key, value)| (key.clone(), value.clone())).collect()
}

fn path_item(v2: &Value, item: &Value) -> Value {
    let mut out = taken(item, &["$ref"]);
    for method in METHODS {
        if let Some(given) = item.get(method) {
            out.insert(method.into(), operation(v2, given));
        }
    }
    let (parameters, _) = parameters(v2, &item["parameters"]);
    if !parameters.is_empty() {
        out.insert("parameters".into(), parameters.into());
    }
    Value::Object(out)
}

fn operation(v2: &Value, given: &Value) -> Value {
    let mut out = taken(
        given,
        &["description", "externalDocs", "tags", "summary", "deprecated", "operationId"],
    );
    let (parameters, body) = parameters(v2, &given["parameters"]);
    if !parameters.is_empty() {
        out.insert("parameters".into(), parameters.into());
    }
    if let Some(body) = body {
        let mut request = json!({"content": content(&given["consumes"], &body["schema"])});
        if body["required"] == true {
            request["required"] = true.into();
        }
        out.insert("requestBody".into(), request);
    }
    let responses = given["responses"].as_object().into_iter().flatten();
    let responses: Map<String, Value> = responses
        .map(|(code, response)| {
            let mut out = taken(response, &["description"]);
            if let Some(schema) = response.get("schema") {
                out.insert("content".into(), content(&given["produces"], schema));
            }
            (code.clone(), Value::Object(out))
        })
        .collect();
    out.insert("responses".into(), responses.into());
    Value::Object(out)
}

/// A schema under each of the media types.
fn content(types: &Value, of: &Value) -> Value {
    let of = json!({"schema": schema(of)});
    let types = types.as_array().into_iter().flatten().filter_map(Value::as_str);
    Value::Object(types.map(|name| (name.to_owned(), of.clone())).collect())
}

/// Parameters as v3 has them, and the one that is the body.
fn parameters(v2: &Value, given: &Value) -> (Vec<Value>, Option<Value>) {
    let (mut out, mut body) = (Vec::new(), None);
    for parameter in given.as_array().into_iter().flatten() {
        let shared = parameter["$ref"].as_str().and_then(|to| to.strip_prefix("#/parameters/"));
        let parameter = shared.and_then(|name| v2["parameters"].get(name)).unwrap_or(parameter);
        if parameter["in"] == "body" {
            body = Some(parameter.clone());
            continue;
        }
        let mut one =
            taken(parameter, &["name", "description", "in", "required", "allowEmptyValue"]);
        let simple = taken(parameter, &["type", "format", "uniqueItems", "items"]);
        let typed = simple.into_iter().filter(|(key, _)| !key.starts_with("x-")).collect();
        one.insert("schema".into(), Value::Object(typed));
        out.push(Value::Object(one));
    }
    (out, body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_is_said_again_in_the_newer_form() {
        let v2 = json!({
            "swagger": "2.0", "info": {"title": "wardle", "version": "v1"},
            "paths": {"/a": {
                "parameters": [{"$ref": "#/parameters/limit"}],
                "post": {
                    "operationId": "make", "consumes": ["*/*"], "produces": ["a/b", "c/d"],
                    "x-kubernetes-action": "post", "schemes": ["https"],
                    "parameters": [
                        {"name": "body", "in": "body", "required": true,
                            "schema": {"$ref": "#/definitions/A"}},
                        {"name": "n", "in": "path", "required": true, "type": "string",
                            "uniqueItems": true}],
                    "responses": {"200": {"description": "OK", "schema": {"$ref": "#/definitions/A"}},
                        "401": {"description": "no"}},
                },
            }},
            "parameters": {"limit": {"name": "limit", "in": "query", "type": "integer"}},
            "definitions": {"A": {"type": "object", "x-b": 1, "properties": {
                "one": {"description": "d", "$ref": "#/definitions/A"},
                "many": {"type": "array", "items": {"$ref": "#/definitions/A"}},
                "map": {"additionalProperties": {"$ref": "#/definitions/A"}}}}},
            "securityDefinitions": {"BearerToken": {
                "type": "apiKey", "name": "authorization", "in": "header"}},
        });
        let a = json!({"$ref": "#/components/schemas/A"});
        let of_a = json!({"schema": a});
        let expected = json!({
            "openapi": "3.0.0", "info": {"title": "wardle", "version": "v1"},
            "paths": {"/a": {
                "parameters": [{"name": "limit", "in": "query", "schema": {"type": "integer"}}],
                "post": {
                    "operationId": "make", "x-kubernetes-action": "post",
                    "parameters": [{"name": "n", "in": "path", "required": true,
                        "schema": {"type": "string", "uniqueItems": true}}],
                    "requestBody": {"content": {"*/*": of_a}, "required": true},
                    "responses": {
                        "200": {"description": "OK", "content": {"a/b": of_a, "c/d": of_a}},
                        "401": {"description": "no"}},
                },
            }},
            "components": {
                "schemas": {"A": {"type": "object", "x-b": 1, "properties": {
                    "one": {"description": "d", "allOf": [a]},
                    "many": {"type": "array", "items": a},
                    "map": {"additionalProperties": a}}}},
                "securitySchemes": {"BearerToken": {
                    "type": "apiKey", "name": "authorization", "in": "header"}},
            },
        });
        assert_eq!(convert(&v2), expected);
    }

    #[test]
    fn nonsense_is_no_document_but_no_harm() {
        for nonsense in [
            json!(null),
            json!({"paths": 1, "definitions": ["a"], "info": "x"}),
            json!({"paths": {"/a": {"get": {"parameters": [1, {"$ref": "#/parameters/none"}],
                "responses": 3}}}, "definitions": {"A": {"$ref": 1, "properties": 2}}}),
        ] {
            assert_eq!(convert(&nonsense)["openapi"], "3.0.0");
        }
    }
}
