//! OpenAPI documents v2 and v3, made on demand from the embedded descriptions and the catalog.
//!
//! Nothing is kept: a document is built, sent and dropped.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use kinds::resources::{Catalog, Resource};
use ring::digest::{SHA256, digest};
use serde_json::{Map, Value, json};

use self::paths::add_paths;
pub use self::plain::{hash as plain_hash, v3 as v3_plain};
use super::enums::Enums;
use super::schema::{decode, table};

mod marks;
mod operation;
mod parameters;
mod paths;
mod plain;

pub(super) const DESCRIPTIONS: &[u8] =
    include_bytes!("../../../embedded/descriptions-1.36.json.gz");

/// Counts up when documents are written in another way, so that clients read them again.
const FORM: u32 = 2;

#[derive(Clone, Copy, PartialEq)]
enum Edition {
    V2,
    V3,
}

/// The definitions with descriptions, decoded for the making of one document.
struct Definitions {
    types: Map<String, Value>,
    words: Map<String, Value>,
    enums: Enums,
    edition: Edition,
    /// Custom kinds and what they are called, by group, version and kind.
    custom: HashMap<(String, String, String), String>,
    /// Their definitions.
    custom_schemas: Map<String, Value>,
}

/// `/openapi/v2`.
pub fn v2(catalog: &Catalog, version: &str) -> Value {
    let mut definitions = Definitions::read(Edition::V2);
    definitions.drop_unserved(catalog);
    for resource in catalog.resources() {
        for served in &resource.versions {
            definitions.add_custom(resource, served);
        }
    }
    let all: Vec<String> = definitions.types.keys().cloned().collect();
    let mut paths = Map::new();
    plain::add_all(&mut paths, catalog);
    for group in catalog.groups() {
        for served in &group.versions {
            plain::add_resources(&mut paths, catalog, (&group.name, served), Edition::V2);
            add_paths(&mut paths, catalog, &group.name, served, &definitions);
        }
    }
    paths.sort_keys();
    let parameters = parameters::refer(&mut paths);
    let mut schemas = definitions.schemas(all.iter().map(String::as_str));
    schemas.insert(plain::INFO.into(), plain::info());
    json!({
        "swagger": "2.0",
        "info": {"title": "Kubernetes", "version": version},
        "paths": paths,
        "definitions": schemas,
        "parameters": parameters,
        "securityDefinitions": {"BearerToken": {
            "description": "Bearer Token authentication",
            "type": "apiKey", "name": "authorization", "in": "header"
        }},
        "security": [{"BearerToken": []}]
    })
}

/// `/openapi/v3`: the paths of the documents with a hash of what they hold.
pub fn v3_index(catalog: &Catalog, version: &str) -> BTreeMap<String, Value> {
    let mut paths = BTreeMap::new();
    for group in catalog.groups() {
        for served in &group.versions {
            let path = document_path(&group.name, served);
            let hash = document_hash(catalog, &group.name, served, version);
            let url = format!("/openapi/v3/{path}?hash={hash}");
            paths.insert(path, json!({"serverRelativeURL": url}));
        }
    }
    for path in plain::documents(catalog) {
        let hash = plain::hash(&path, version);
        let url = format!("/openapi/v3/{path}?hash={hash}");
        paths.insert(path, json!({"serverRelativeURL": url}));
    }
    paths
}

/// The hash the index gives for a document; depends on what makes the document differ.
pub fn document_hash(catalog: &Catalog, group: &str, served: &str, version: &str) -> String {
    let mut text = format!("{version} {FORM} {group}/{served}");
    for resource in catalog.resources_of(group, served) {
        text.push_str(&format!(" {resource:?}"));
        if let Some(custom) = crate::crd::of(resource) {
            text.push_str(&custom.digest);
        }
    }
    let hash = digest(&SHA256, text.as_bytes());
    hash.as_ref().iter().map(|b| format!("{b:02X}")).collect()
}

fn document_path(group: &str, version: &str) -> String {
    match group {
        "" => format!("api/{version}"),
        group => format!("apis/{group}/{version}"),
    }
}

/// `/openapi/v3/api/v1`, `/openapi/v3/apis/apps/v1` …; `None` if it is not served.
pub fn v3(catalog: &Catalog, group: &str, served: &str, version: &str) -> Option<Vec<u8>> {
    catalog.group(group)?.versions.iter().find(|v| *v == served)?;
    let mut definitions = Definitions::read(Edition::V3);
    definitions.drop_unserved(catalog);
    for resource in catalog.resources_of(group, served) {
        definitions.add_custom(resource, served);
    }
    let mut paths = Map::new();
    plain::add_resources(&mut paths, catalog, (group, served), Edition::V3);
    add_paths(&mut paths, catalog, group, served, &definitions);
    let meta = |n: &&str| format!("apimachinery.pkg.apis.meta.v1.{n}");
    let mut todo: Vec<String> =
        ["APIResourceList", "DeleteOptions", "Patch", "Status", "WatchEvent"]
            .iter()
            .map(meta)
            .collect();
    if !definitions.custom.is_empty() {
        todo.extend(["ListMeta", "ObjectMeta"].iter().map(meta));
    }
    for (name, definition) in &definitions.types {
        let gvks = definition.get("gvk").and_then(Value::as_array);
        if gvks.into_iter().flatten().any(|gvk| gvk[0] == group && gvk[1] == served) {
            todo.push(name.clone());
        }
    }
    for resource in catalog.resources_of(group, served) {
        for sub in &resource.subresources {
            if let Some(gv) = &sub.other_gv {
                todo.extend(definitions.name_of(&gv.group, &gv.version, &sub.kind));
            }
        }
    }
    let mut wanted = BTreeSet::new();
    definitions.reach(todo, &mut wanted);
    let schemas = definitions.schemas(wanted.iter().map(String::as_str));
    Some(document_v3(paths, schemas, version))
}

fn document_v3(paths: Map<String, Value>, schemas: Map<String, Value>, version: &str) -> Vec<u8> {
    let out = json!({
        "openapi": "3.0.0",
        "info": {"title": "Kubernetes", "version": version},
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {"BearerToken": {
                "type": "apiKey",
                "description": "Bearer Token authentication",
                "name": "authorization", "in": "header"
            }}
        }
    });
    out.to_string().into_bytes()
}

fn references(value: &Value, out: &mut Vec<String>) {
    match value {
        Value::String(text) => {
            if let Some((_, name)) = text.split_once('@') {
                out.push(name.to_owned());
            }
        }
        Value::Array(items) => items.iter().for_each(|item| references(item, out)),
        Value::Object(map) => map.values().for_each(|item| references(item, out)),
        _ => {}
    }
}

impl Definitions {
    fn read(edition: Edition) -> Self {
        Self {
            types: table(),
            words: decode(DESCRIPTIONS),
            enums: Enums::read(),
            edition,
            custom: HashMap::new(),
            custom_schemas: Map::new(),
        }
    }

    /// Forgets the kinds of optional resources that are not served, and what only they need.
    fn drop_unserved(&mut self, catalog: &Catalog) {
        let mut unserved = Vec::new();
        for resource in Catalog::known().resources() {
            let (group, plural) = (&resource.group, &resource.plural);
            for version in &resource.versions {
                if catalog.by_plural(group, version, plural).is_none() {
                    unserved.extend(self.name_of(group, version, &resource.kind));
                    unserved.extend(self.name_of(group, version, &resource.list_kind));
                }
            }
        }
        if unserved.is_empty() {
            return;
        }
        let is_kind = |(name, definition): &(&String, &Value)| {
            definition.get("gvk").is_some() && !unserved.contains(name)
        };
        let others = self.types.iter().filter(is_kind).map(|(name, _)| name.clone()).collect();
        let (mut gone, mut kept) = (BTreeSet::new(), BTreeSet::new());
        self.reach(others, &mut kept);
        self.reach(unserved, &mut gone);
        self.types.retain(|name, _| kept.contains(name) || !gone.contains(name));
    }

    /// Adds a version of a custom resource; built-in ones are there.
    fn add_custom(&mut self, resource: &Resource, served: &str) {
        let version = crate::crd::of(resource).and_then(|custom| custom.version(served));
        let Some(version) = version else { return };
        let both = crate::crd::openapi::definitions(resource, version, self.edition == Edition::V2);
        let kinds = [resource.kind.clone(), format!("{}List", resource.kind)];
        for (kind, (name, schema)) in kinds.into_iter().zip(both) {
            let key = (resource.group.clone(), served.to_owned(), kind);
            self.custom.insert(key, name.clone());
            self.custom_schemas.insert(name, schema);
        }
    }

    /// What a kind is called in references.
    fn full_name(&self, group: &str, version: &str, kind: &str) -> Option<String> {
        let key = (group.to_owned(), version.to_owned(), kind.to_owned());
        if let Some(name) = self.custom.get(&key) {
            return Some(name.clone());
        }
        self.name_of(group, version, kind).map(|name| format!("io.k8s.{name}"))
    }

    fn name_of(&self, group: &str, version: &str, kind: &str) -> Option<String> {
        let found = self.types.iter().find(|(_, definition)| {
            let gvks = definition.get("gvk").and_then(Value::as_array);
            gvks.into_iter()
                .flatten()
                .any(|gvk| gvk[0] == group && gvk[1] == version && gvk[2] == kind)
        });
        found.map(|(name, _)| name.clone())
    }

    /// Adds definitions and what they refer to.
    fn reach(&self, mut todo: Vec<String>, wanted: &mut BTreeSet<String>) {
        while let Some(name) = todo.pop() {
            if let Some(definition) = self.types.get(&name)
                && wanted.insert(name)
            {
                references(definition, &mut todo);
            }
        }
    }

    /// A reference as operations have it.
    fn reference_to(&self, name: &str) -> Value {
        match self.edition {
            Edition::V2 => json!({"$ref": format!("#/definitions/{name}")}),
            Edition::V3 => json!({"$ref": format!("#/components/schemas/{name}")}),
        }
    }

    fn schemas<'a>(&self, names: impl Iterator<Item = &'a str>) -> Map<String, Value> {
        let mut out = Map::new();
        for name in names {
            if let Some(definition) = self.types.get(name) {
                out.insert(format!("io.k8s.{name}"), self.definition(name, definition));
            }
        }
        for (leaf, mut schema) in leaves(self.edition) {
            let known = leaf.strip_prefix("io.k8s.").and_then(|leaf| self.words.get(leaf));
            let own = marks::words(leaf).map(Value::from);
            if let Some(text) = known.and_then(|words| words.get("")).cloned().or(own) {
                schema["description"] = text;
            }
            out.insert(leaf.to_owned(), schema);
        }
        out.extend(self.custom_schemas.clone());
        out
    }

    fn definition(&self, name: &str, definition: &Value) -> Value {
        let words = self.words.get(name).unwrap_or(&Value::Null);
        let mut out = Map::new();
        if let Some(text) = words.get("") {
            out.insert("description".into(), text.clone());
        }
        if let Some(fields) = definition.get("p").and_then(Value::as_object) {
            out.insert("type".into(), json!("object"));
            if let Some(required) = definition.get("r") {
                out.insert("required".into(), required.clone());
            }
            let mut properties = Map::new();
            for (field, spec) in fields {
                let mut schema = self.field(name, field, spec);
                if let Some(text) = words.get(field) {
                    schema.insert("description".into(), text.clone());
                }
                if let Some(list_type) = marks::list_type(name, field) {
                    schema.insert("x-kubernetes-list-type".into(), json!(list_type));
                }
                self.enums.add(name, field, &mut schema);
                properties.insert(field.clone(), Value::Object(schema));
            }
            out.insert("properties".into(), Value::Object(properties));
        } else if definition.get("o").is_some() || name.ends_with(".RawExtension") {
            out.insert("type".into(), json!("object"));
        }
        if let Some(gvks) = definition.get("gvk").and_then(Value::as_array) {
            let gvk = |g: &Value| json!({"group": g[0], "version": g[1], "kind": g[2]});
            let gvks: Vec<Value> = match marks::everywhere(name) {
                Some(kind) => marks::group_versions()
                    .map(|(group, version)| gvk(&json!([group, version, kind])))
                    .collect(),
                None => gvks.iter().map(gvk).collect(),
            };
            out.insert("x-kubernetes-group-version-kind".into(), Value::Array(gvks));
        }
        if let Some(unions) = marks::unions(name) {
            out.insert("x-kubernetes-unions".into(), unions);
        }
        if let Some(kind) = definition.get("t") {
            out.insert("x-kubernetes-map-type".into(), kind.clone());
        }
        Value::Object(out)
    }

    fn field(&self, name: &str, field: &str, spec: &Value) -> Map<String, Value> {
        let (class, ty) = match spec {
            Value::String(text) => (&text[..1], Value::from(&text[1..])),
            other => {
                let class = other.get("c").and_then(Value::as_str).unwrap_or("o");
                (class, other.get("@").unwrap_or(other).clone())
            }
        };
        let mut out = self.type_of(&ty);
        let protocol = field == "protocol"
            && (name.ends_with(".ContainerPort") || name.ends_with(".ServicePort"));
        if self.edition == Edition::V3 {
            let default = match (class, out.get("type").and_then(Value::as_str)) {
                _ if protocol => Some(json!("TCP")),
                ("s", _) => Some(json!({})),
                ("z", Some("string")) => Some(json!("")),
                ("z", Some("integer" | "number")) => Some(json!(0)),
                ("z", Some("boolean")) => Some(json!(false)),
                _ => None,
            };
            if let Some(default) = default {
                out.insert("default".into(), default);
            }
        }
        if spec.get("@").is_some() {
            if let Some(strategy) = spec.get("ps") {
                out.insert("x-kubernetes-patch-strategy".into(), strategy.clone());
            }
            if let Some(kind) = spec.get("t") {
                out.insert("x-kubernetes-map-type".into(), kind.clone());
            }
        }
        out
    }

    fn type_of(&self, ty: &Value) -> Map<String, Value> {
        let Some(text) = ty.as_str() else { return self.composed(ty) };
        let out = match text {
            "s" => json!({"type": "string"}),
            "y" => json!({"type": "string", "format": "byte"}),
            "b" => json!({"type": "boolean"}),
            "i" => json!({"type": "integer", "format": "int32"}),
            "l" => json!({"type": "integer", "format": "int64"}),
            "f" => json!({"type": "number", "format": "double"}),
            "t" => return self.reference(TIME),
            "u" => return self.reference(MICRO_TIME),
            "q" => return self.reference(QUANTITY),
            "x" => return self.reference(INT_OR_STRING),
            other => match other.strip_prefix('@') {
                Some(name) => return self.reference(&format!("io.k8s.{name}")),
                None => json!({}),
            },
        };
        out.as_object().cloned().unwrap_or_default()
    }

    fn reference(&self, name: &str) -> Map<String, Value> {
        let mut out = Map::new();
        match self.edition {
            Edition::V2 => out.insert("$ref".into(), json!(format!("#/definitions/{name}"))),
            // A reference has no room for a description, so it stands inside.
            Edition::V3 => out
                .insert("allOf".into(), json!([{"$ref": format!("#/components/schemas/{name}")}])),
        };
        out
    }

    fn composed(&self, ty: &Value) -> Map<String, Value> {
        let mut out = Map::new();
        let Some(items) = ty.get("l") else {
            out.insert("type".into(), json!("object"));
            let values = ty.get("m").cloned().unwrap_or(Value::Null);
            if values != "*" {
                let mut element = self.element(&values);
                if let Some(map) = element.as_object_mut().filter(|_| values == "s") {
                    map.shift_remove("default");
                }
                out.insert("additionalProperties".into(), element);
            }
            if let Some(kind) = ty.get("t").filter(|_| values != "*") {
                out.insert("x-kubernetes-map-type".into(), kind.clone());
            }
            return out;
        };
        out.insert("type".into(), json!("array"));
        out.insert("items".into(), self.element(items));
        for (ours, theirs) in [
            ("t", "list-type"),
            ("k", "list-map-keys"),
            ("mk", "patch-merge-key"),
            ("ps", "patch-strategy"),
        ] {
            if let Some(value) = ty.get(ours) {
                out.insert(format!("x-kubernetes-{theirs}"), value.clone());
            }
        }
        out
    }

    fn element(&self, ty: &Value) -> Value {
        let mut out = self.type_of(ty);
        if self.edition == Edition::V3 {
            if out.contains_key("allOf") && !matches!(ty.as_str(), Some("q" | "x")) {
                out.insert("default".into(), json!({}));
            } else if ty == "s" {
                out.insert("default".into(), json!(""));
            }
        }
        Value::Object(out)
    }
}

const TIME: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.Time";
const MICRO_TIME: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.MicroTime";
const QUANTITY: &str = "io.k8s.apimachinery.pkg.api.resource.Quantity";
const INT_OR_STRING: &str = "io.k8s.apimachinery.pkg.util.intstr.IntOrString";

fn leaves(edition: Edition) -> [(&'static str, Value); 4] {
    let (quantity, either) = match edition {
        Edition::V2 => {
            (json!({"type": "string"}), json!({"type": "string", "format": "int-or-string"}))
        }
        Edition::V3 => (
            json!({"oneOf": [{"type": "string"}, {"type": "number"}]}),
            json!({
                "format": "int-or-string",
                "oneOf": [{"type": "integer"}, {"type": "string"}]
            }),
        ),
    };
    let time = json!({"type": "string", "format": "date-time"});
    [(TIME, time.clone()), (MICRO_TIME, time), (QUANTITY, quantity), (INT_OR_STRING, either)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn v3_documents_stand_alone() {
        let bytes = v3(Catalog::built_in(), "apps", "v1", "v1.36.2").unwrap();
        let document: Value = serde_json::from_slice(&bytes).unwrap();
        let path = "/apis/apps/v1/namespaces/{namespace}/deployments/{name}/scale";
        assert_eq!(
            document["paths"][path]["get"]["operationId"],
            "readAppsV1NamespacedDeploymentScale"
        );
        let schemas = document["components"]["schemas"].as_object().unwrap();
        assert_eq!(
            schemas["io.k8s.api.apps.v1.DeploymentSpec"]["required"],
            json!(["selector", "template"])
        );
        let text = document.to_string();
        for reference in text.split("\"#/components/schemas/").skip(1) {
            let name = reference.split('"').next().unwrap();
            assert!(schemas.contains_key(name), "{name}");
        }
        assert!(v3(Catalog::built_in(), "nosuch", "v1", "v1").is_none());
    }

    #[test]
    fn v2_references_resolve() {
        let document = v2(Catalog::built_in(), "v1.36.2");
        let definitions = document["definitions"].as_object().unwrap();
        let text = document.to_string();
        for reference in text.split("\"#/definitions/").skip(1) {
            let name = reference.split('"').next().unwrap();
            assert!(definitions.contains_key(name), "{name}");
        }
        assert_eq!(
            definitions["io.k8s.api.core.v1.ConfigMap"]["properties"]["data"],
            json!({
                "description": definitions["io.k8s.api.core.v1.ConfigMap"]["properties"]["data"]["description"],
                "type": "object",
                "additionalProperties": {"type": "string"}
            })
        );
    }
}
