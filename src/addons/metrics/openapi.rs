//! The group's part of the OpenAPI document, in the form of v2.

use serde_json::{Map, Value, json};

use super::{GROUP, VERSION};

const META: &str = "#/definitions/io.k8s.apimachinery.pkg.apis.meta.v1";
const QUANTITY: &str = "#/definitions/io.k8s.apimachinery.pkg.api.resource.Quantity";

fn definition(kind: &str) -> String {
    format!("io.k8s.metrics.pkg.apis.metrics.v1beta1.{kind}")
}

fn reference(kind: &str) -> Value {
    json!({"$ref": format!("#/definitions/{}", definition(kind))})
}

fn group_version_kind(kind: &str) -> Value {
    json!({"group": GROUP, "version": VERSION, "kind": kind})
}

/// Paths and definitions; what they refer to beside is in every cluster's document.
pub fn document() -> Value {
    let mut definitions = Map::new();
    let usage = json!({
        "description": "What is used of each resource, such as cpu and memory.",
        "type": "object", "additionalProperties": {"$ref": QUANTITY},
    });
    definitions.insert(
        definition("ContainerMetrics"),
        json!({
            "description": "What a container uses.", "type": "object",
            "required": ["name", "usage"],
            "properties": {
                "name": {"description": "The container's name in its pod.", "type": "string"},
                "usage": usage,
            },
        }),
    );
    let containers = json!({
        "description": "Of each container of the pod.", "type": "array",
        "items": reference("ContainerMetrics"),
    });
    for (kind, what, field, value) in [
        ("NodeMetrics", "What a node uses.", "usage", usage),
        ("PodMetrics", "What a pod uses.", "containers", containers),
    ] {
        definitions.insert(definition(kind), of_one(kind, what, field, value));
        definitions.insert(definition(&format!("{kind}List")), of_many(kind));
    }
    json!({"paths": paths(), "definitions": definitions})
}

fn header() -> Value {
    let version = "The version of this object's form.";
    json!({
        "apiVersion": {"description": version, "type": "string"},
        "kind": {"description": "What this object is.", "type": "string"},
    })
}

fn of_one(kind: &str, what: &str, field: &str, value: Value) -> Value {
    let mut properties = header();
    properties["metadata"] = json!({"$ref": format!("{META}.ObjectMeta")});
    properties["timestamp"] = json!({
        "description": "When the window ended in which it was measured.",
        "$ref": format!("{META}.Time"),
    });
    properties["window"] = json!({
        "description": "How long it was measured, as Go writes a length of time.",
        "type": "string",
    });
    properties[field] = value;
    json!({
        "description": what, "type": "object", "required": ["timestamp", "window", field],
        "properties": properties,
        "x-kubernetes-group-version-kind": [group_version_kind(kind)],
    })
}

fn of_many(kind: &str) -> Value {
    let mut properties = header();
    properties["metadata"] = json!({"$ref": format!("{META}.ListMeta")});
    properties["items"] = json!({"type": "array", "items": reference(kind)});
    json!({
        "description": format!("A list of {kind}."), "type": "object", "required": ["items"],
        "properties": properties,
        "x-kubernetes-group-version-kind": [group_version_kind(&format!("{kind}List"))],
    })
}

fn paths() -> Value {
    let text = |name: &str, place: &str| {
        json!({"name": name, "in": place, "type": "string", "uniqueItems": true,
            "required": place == "path"})
    };
    let path = |action: &str, kind: &str, scope: &str, given: &[&str]| {
        let shown = if action == "list" { format!("{kind}List") } else { kind.to_string() };
        let verb = if action == "list" { "list" } else { "read" };
        let mut out = json!({"get": {
            "description": format!("{action} {kind}"), "tags": ["metrics_v1beta1"],
            "operationId": format!("{verb}MetricsV1beta1{scope}{kind}"),
            "produces": ["application/json"], "schemes": ["https"],
            "responses": {"200": {"description": "OK", "schema": reference(&shown)},
                "401": {"description": "Unauthorized"}},
            "x-kubernetes-action": action,
            "x-kubernetes-group-version-kind": group_version_kind(kind),
        }});
        if action == "list" {
            let selectors = ["fieldSelector", "labelSelector"].map(|name| text(name, "query"));
            out["get"]["parameters"] = Value::Array(selectors.into());
        }
        let given: Vec<Value> = given.iter().map(|name| text(name, "path")).collect();
        if !given.is_empty() {
            out["parameters"] = Value::Array(given);
        }
        out
    };
    let root = format!("/apis/{GROUP}/{VERSION}");
    let below = |rest: &str| format!("{root}/{rest}");
    json!({
        below(""): {"get": {
            "description": "get available resources", "tags": ["metrics_v1beta1"],
            "operationId": "getMetricsV1beta1APIResources",
            "produces": ["application/json"], "schemes": ["https"],
            "responses": {
                "200": {"description": "OK",
                    "schema": {"$ref": format!("{META}.APIResourceList")}},
                "401": {"description": "Unauthorized"}},
        }},
        below("nodes"): path("list", "NodeMetrics", "", &[]),
        below("nodes/{name}"): path("get", "NodeMetrics", "", &["name"]),
        below("pods"): path("list", "PodMetrics", "ForAllNamespaces", &[]),
        below("namespaces/{namespace}/pods"):
            path("list", "PodMetrics", "Namespaced", &["namespace"]),
        below("namespaces/{namespace}/pods/{name}"):
            path("get", "PodMetrics", "Namespaced", &["name", "namespace"]),
    })
}
