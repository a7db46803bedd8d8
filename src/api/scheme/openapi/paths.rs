//! The paths of a group's version with their operations: ids, parameters and bodies as
//! generators of clients expect them.

use kinds::resources::{Catalog, Resource, Subresource};
use serde_json::{Map, Value, json};

use super::{Definitions, Edition, document_path};

/// `AppsV1`, `CoreV1`, `RbacAuthorizationV1`: the middle of operation ids.
fn group_word(group: &str, version: &str) -> String {
    let group = group.strip_suffix(".k8s.io").unwrap_or(group);
    let name = if group.is_empty() { "core" } else { group };
    let capital = |word: &str| {
        let mut letters = word.chars();
        letters.next().map(|c| c.to_uppercase().chain(letters).collect()).unwrap_or_default()
    };
    let name: String = name.split('.').map(capital).collect::<Vec<String>>().concat();
    let name = name.strip_suffix("Apiserver").unwrap_or(&name);
    format!("{name}{}", capital(version))
}

/// One operation: verb of HTTP, word of the operation id, action.
const ITEM_ACTIONS: [(&str, &str, &str, &str); 4] = [
    ("get", "get", "read", "get"),
    ("update", "put", "replace", "put"),
    ("patch", "patch", "patch", "patch"),
    ("delete", "delete", "delete", "delete"),
];

/// What an operation is: its id, action, method and purpose.
struct Operation<'a> {
    /// Of the path, whatever group the kind is of.
    tag: &'a str,
    id: String,
    description: String,
    action: &'a str,
    /// Of HTTP, or `list`.
    method: &'a str,
    gvk: (&'a str, &'a str, &'a str),
}

pub(super) fn add_paths(
    paths: &mut Map<String, Value>,
    catalog: &Catalog,
    group: &str,
    version: &str,
    definitions: &Definitions,
) {
    let root = format!("/{}/", document_path(group, version));
    let tag = tag(group, version);
    for resource in catalog.resources_of(group, version) {
        let of = Place { resource, group, version, root: &root, tag: &tag, definitions };
        of.collection(paths);
        of.item(paths);
        for sub in resource.subresources.iter().filter(|s| s.served_in(version)) {
            match sub.kind.ends_with("Options") {
                true => of.connections(paths, sub),
                false => of.subresource(paths, sub),
            }
        }
        if resource.namespaced && resource.has_verb("list") {
            let kind = &resource.kind;
            let id = format!("list{}{kind}ForAllNamespaces", group_word(group, version));
            let list = json!({"get": of.list(id)});
            paths.insert(format!("{root}{}", resource.plural), list);
        }
    }
}

/// A resource in one version, whose paths are written.
struct Place<'a> {
    resource: &'a Resource,
    group: &'a str,
    version: &'a str,
    root: &'a str,
    tag: &'a str,
    definitions: &'a Definitions,
}

impl<'a> Place<'a> {
    fn path(&self) -> String {
        let scope = if self.resource.namespaced { "namespaces/{namespace}/" } else { "" };
        format!("{}{scope}{}", self.root, self.resource.plural)
    }

    fn own(&self) -> (&'a str, &'a str, &'a str) {
        (self.group, self.version, self.resource.kind.as_str())
    }

    /// `Namespaced` where it is, and the kind.
    fn scoped(&self) -> String {
        let scope = if self.resource.namespaced { "Namespaced" } else { "" };
        format!("{scope}{}", self.resource.kind)
    }

    fn word(&self) -> String {
        format!("{}{}", group_word(self.group, self.version), self.scoped())
    }

    fn operation(
        &self,
        id: String,
        description: String,
        (action, method): (&'a str, &'a str),
        gvk: (&'a str, &'a str, &'a str),
    ) -> Value {
        let operation = Operation { tag: self.tag, id, description, action, method, gvk };
        make_operation(self.definitions, operation)
    }

    fn list(&self, id: String) -> Value {
        let said = format!("list or watch objects of kind {}", self.resource.kind);
        self.operation(id, said, ("list", "list"), self.own())
    }

    /// Adds a path; `named` is the kind that its name is of.
    fn add(
        &self,
        paths: &mut Map<String, Value>,
        path: String,
        mut operations: Map<String, Value>,
        named: Option<&str>,
    ) {
        if operations.is_empty() {
            return;
        }
        let edition = self.definitions.edition;
        let mut parameters = path_parameters(self.resource.namespaced, named, edition);
        if path.ends_with("{path}") {
            parameters.push(path_parameter("path", "path to the resource", edition));
        }
        if !operations.values().any(|operation| operation["x-kubernetes-action"] == "connect") {
            let text = "If 'true', then the output is pretty printed.";
            let schema = json!({"type": "string", "uniqueItems": true});
            parameters.push(query_parameter("pretty", text, schema, edition));
        }
        operations.insert("parameters".into(), parameters.into());
        paths.insert(path, Value::Object(operations));
    }

    fn collection(&self, paths: &mut Map<String, Value>) {
        let (resource, word) = (self.resource, self.word());
        let kind = &resource.kind;
        let mut many = Map::new();
        if resource.has_verb("list") {
            many.insert("get".into(), self.list(format!("list{word}")));
        }
        if resource.has_verb("create") {
            let (id, said) = (format!("create{word}"), format!("create {}", with_article(kind)));
            many.insert("post".into(), self.operation(id, said, ("post", "post"), self.own()));
        }
        if resource.has_verb("deletecollection") {
            let group = group_word(self.group, self.version);
            let id = format!("delete{group}Collection{}", self.scoped());
            let said = format!("delete collection of {kind}");
            let action = ("deletecollection", "deletecollection");
            many.insert("delete".into(), self.operation(id, said, action, self.own()));
        }
        self.add(paths, self.path(), many, None);
    }

    fn item(&self, paths: &mut Map<String, Value>) {
        let (resource, word) = (self.resource, self.word());
        let kind = &resource.kind;
        let mut one = Map::new();
        for (verb, method, start, action) in ITEM_ACTIONS {
            if resource.has_verb(verb) {
                let said = match verb {
                    "delete" => format!("delete {}", with_article(kind)),
                    "patch" => format!("partially update the specified {kind}"),
                    _ => format!("{start} the specified {kind}"),
                };
                let id = format!("{start}{word}");
                one.insert(method.into(), self.operation(id, said, (action, method), self.own()));
            }
        }
        self.add(paths, format!("{}/{{name}}", self.path()), one, Some(kind));
    }

    fn subresource(&self, paths: &mut Map<String, Value>, sub: &'a Subresource) {
        let gvk = match &sub.other_gv {
            Some(gv) => (gv.group.as_str(), gv.version.as_str(), sub.kind.as_str()),
            None => (self.group, self.version, sub.kind.as_str()),
        };
        let (word, tail) = (self.word(), sub_word(&sub.name));
        let (kind, name) = (&self.resource.kind, &sub.name);
        let mut operations = Map::new();
        for (verb, method, start, action) in ITEM_ACTIONS {
            if sub.verbs.iter().any(|v| v == verb) {
                let start_said = if verb == "patch" { "partially update" } else { start };
                let said = format!("{start_said} {name} of the specified {kind}");
                let id = format!("{start}{word}{tail}");
                let purpose = if name == "log" { "log" } else { method };
                operations.insert(method.into(), self.operation(id, said, (action, purpose), gvk));
            }
        }
        if sub.verbs.iter().any(|v| v == "create") {
            let said = format!("create {name} of {}", with_article(kind));
            let id = format!("create{word}{tail}");
            operations.insert("post".into(), self.operation(id, said, ("post", "post"), gvk));
        }
        let path = format!("{}/{{name}}/{name}", self.path());
        self.add(paths, path, operations, Some(gvk.2));
    }

    /// Subresources that connect the client with something else.
    fn connections(&self, paths: &mut Map<String, Value>, sub: &'a Subresource) {
        let methods: &[&str] = match sub.name.as_str() {
            "proxy" => &["get", "put", "post", "delete", "options", "head", "patch"],
            _ => &["get", "post"],
        };
        let group = group_word(self.group, self.version);
        let (scoped, tail) = (self.scoped(), sub_word(&sub.name));
        let gvk = (self.group, self.version, sub.kind.as_str());
        let below: &[(&str, &str)] = match sub.name.as_str() {
            "proxy" => &[("", ""), ("/{path}", "WithPath")],
            _ => &[("", "")],
        };
        for (path, end) in below {
            let mut operations = Map::new();
            for method in methods {
                let verb = sub_word(method);
                let id = format!("connect{group}{verb}{scoped}{tail}{end}");
                let said = format!(
                    "connect {} requests to {} of {}",
                    method.to_uppercase(),
                    sub.name,
                    self.resource.kind
                );
                let made = self.operation(id, said, ("connect", "connect"), gvk);
                operations.insert((*method).to_owned(), made);
            }
            let path = format!("{}/{{name}}/{}{path}", self.path(), sub.name);
            self.add(paths, path, operations, Some(&sub.kind));
        }
    }
}

/// `a Deployment`, `an Ingress`.
fn with_article(kind: &str) -> String {
    let vowel = kind.starts_with(['A', 'E', 'I', 'O', 'U']);
    format!("{} {kind}", if vowel { "an" } else { "a" })
}

fn sub_word(name: &str) -> String {
    let mut letters = name.chars();
    letters.next().map(|c| c.to_uppercase().chain(letters).collect()).unwrap_or_default()
}

fn path_parameter(name: &str, description: &str, edition: Edition) -> Value {
    match edition {
        Edition::V2 => json!({
            "name": name, "in": "path", "required": true,
            "description": description, "type": "string", "uniqueItems": true
        }),
        Edition::V3 => json!({
            "name": name, "in": "path", "required": true,
            "description": description, "schema": {"type": "string", "uniqueItems": true}
        }),
    }
}

fn query_parameter(name: &str, description: &str, schema: Value, edition: Edition) -> Value {
    let mut out = json!({"name": name, "in": "query"});
    if !description.is_empty() {
        out["description"] = description.into();
    }
    match (edition, schema) {
        (Edition::V2, Value::Object(fields)) => {
            fields.into_iter().for_each(|(field, value)| out[field] = value);
        }
        (_, schema) => out["schema"] = schema,
    }
    out
}

fn path_parameters(namespaced: bool, named: Option<&str>, edition: Edition) -> Vec<Value> {
    let mut out = Vec::new();
    if let Some(kind) = named {
        out.push(path_parameter("name", &format!("name of the {kind}"), edition));
    }
    if namespaced {
        let text = "object name and auth scope, such as for teams and projects";
        out.push(path_parameter("namespace", text, edition));
    }
    out
}

/// What a request of each method may carry in its query.
fn query_names(method: &str) -> &'static [(&'static str, &'static str)] {
    match method {
        "list" => &[
            ("allowWatchBookmarks", "boolean"),
            ("continue", "string"),
            ("fieldSelector", "string"),
            ("labelSelector", "string"),
            ("limit", "integer"),
            ("resourceVersion", "string"),
            ("resourceVersionMatch", "string"),
            ("sendInitialEvents", "boolean"),
            ("timeoutSeconds", "integer"),
            ("watch", "boolean"),
        ],
        "post" | "put" => {
            &[("dryRun", "string"), ("fieldManager", "string"), ("fieldValidation", "string")]
        }
        "patch" => &[
            ("dryRun", "string"),
            ("fieldManager", "string"),
            ("fieldValidation", "string"),
            ("force", "boolean"),
        ],
        "log" => &[
            ("container", "string"),
            ("follow", "boolean"),
            ("insecureSkipTLSVerifyBackend", "boolean"),
            ("limitBytes", "integer"),
            ("previous", "boolean"),
            ("sinceSeconds", "integer"),
            ("stream", "string"),
            ("tailLines", "integer"),
            ("timestamps", "boolean"),
        ],
        "delete" => &[
            ("dryRun", "string"),
            ("gracePeriodSeconds", "integer"),
            ("ignoreStoreReadErrorWithClusterBreakingPotential", "boolean"),
            ("orphanDependents", "boolean"),
            ("propagationPolicy", "string"),
        ],
        "deletecollection" => &[
            ("continue", "string"),
            ("dryRun", "string"),
            ("fieldSelector", "string"),
            ("gracePeriodSeconds", "integer"),
            ("ignoreStoreReadErrorWithClusterBreakingPotential", "boolean"),
            ("labelSelector", "string"),
            ("limit", "integer"),
            ("orphanDependents", "boolean"),
            ("propagationPolicy", "string"),
            ("resourceVersion", "string"),
            ("resourceVersionMatch", "string"),
            ("sendInitialEvents", "boolean"),
            ("timeoutSeconds", "integer"),
        ],
        _ => &[],
    }
}

const PATCH_TYPES: [&str; 4] = [
    "application/apply-patch+yaml",
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
];
const MEDIA_TYPES: [&str; 3] =
    ["application/json", "application/yaml", "application/vnd.kubernetes.protobuf"];

/// What watches are answered in.
const STREAM_TYPES: [&str; 2] =
    ["application/json;stream=watch", "application/vnd.kubernetes.protobuf;stream=watch"];

fn make_operation(definitions: &Definitions, operation: Operation<'_>) -> Value {
    let Operation { tag, id, description, action, method, gvk: (group, version, kind) } = operation;
    let name = definitions.full_name(group, version, kind);
    let key = (group.to_owned(), version.to_owned(), kind.to_owned());
    let custom = definitions.custom.contains_key(&key);
    let listed = match method {
        "list" => definitions.full_name(group, version, &format!("{kind}List")),
        "delete" | "deletecollection" => {
            Some("io.k8s.apimachinery.pkg.apis.meta.v1.Status".to_owned())
        }
        // What answers is not this server.
        "connect" | "log" => None,
        _ => name.clone(),
    };
    let schema = |name: &Option<String>| match name {
        Some(name) => {
            let root = match definitions.edition {
                Edition::V2 => "#/definitions/",
                Edition::V3 => "#/components/schemas/",
            };
            json!({"$ref": format!("{root}{name}")})
        }
        None => json!({"type": "string"}),
    };
    let body = match method {
        "post" | "put" => Some(schema(&name)),
        "patch" => Some(schema(&Some("io.k8s.apimachinery.pkg.apis.meta.v1.Patch".to_owned()))),
        "delete" | "deletecollection" => {
            Some(schema(&Some("io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions".to_owned())))
        }
        _ => None,
    };
    // Custom resources know neither strategic merge patches nor protobuf.
    let patch_types = if custom { &PATCH_TYPES[..3] } else { &PATCH_TYPES[..] };
    let media_types: Vec<&str> = match (method, custom) {
        ("connect", _) => vec!["*/*"],
        ("log", _) => [&["text/plain"], &MEDIA_TYPES[..]].concat(),
        ("list", true) => [&MEDIA_TYPES[..2], &STREAM_TYPES[..1]].concat(),
        (_, true) => MEDIA_TYPES[..2].to_vec(),
        ("list", false) => [&MEDIA_TYPES[..], &STREAM_TYPES[..]].concat(),
        (_, false) => MEDIA_TYPES.to_vec(),
    };
    let media = |types: &[&str], schema: &Value| -> Value {
        let content = types.iter().map(|t| ((*t).to_owned(), json!({"schema": schema})));
        Value::Object(content.collect())
    };
    let mut parameters: Vec<Value> = query_names(method)
        .iter()
        .map(|(name, ty)| {
            let schema = json!({"type": ty, "uniqueItems": true});
            query_parameter(name, "", schema, definitions.edition)
        })
        .collect();
    let answer = schema(&listed);
    let mut out = Map::new();
    out.insert("description".into(), description.into());
    out.insert("tags".into(), json!([tag]));
    out.insert("operationId".into(), json!(id));
    let codes: &[&str] = match method {
        "post" => &["200", "201", "202"],
        "put" | "patch" => &["200", "201"],
        "delete" => &["200", "202"],
        _ => &["200"],
    };
    let mut responses = Map::new();
    for code in codes {
        let text = ["OK", "Created", "Accepted"][usize::from(code.as_bytes()[2] - b'0').min(2)];
        let response = match definitions.edition {
            Edition::V2 => json!({"description": text, "schema": answer}),
            Edition::V3 => json!({"description": text, "content": media(&media_types, &answer)}),
        };
        responses.insert((*code).to_owned(), response);
    }
    responses.insert("401".into(), json!({"description": "Unauthorized"}));
    match definitions.edition {
        Edition::V2 => {
            let consumes: &[&str] = if method == "patch" { patch_types } else { &["*/*"] };
            out.insert("consumes".into(), json!(consumes));
            out.insert("produces".into(), json!(media_types));
            out.insert("schemes".into(), json!(["https"]));
            if let Some(body) = body {
                let required = !method.starts_with("delete");
                parameters.insert(
                    0,
                    json!({"name": "body", "in": "body", "required": required, "schema": body}),
                );
            }
        }
        Edition::V3 => {
            if let Some(body) = body {
                let types: &[&str] = if method == "patch" { patch_types } else { &["*/*"] };
                out.insert("requestBody".into(), json!({"content": media(types, &body)}));
            }
        }
    }
    out.insert("parameters".into(), Value::Array(parameters));
    out.insert("responses".into(), Value::Object(responses));
    out.insert("x-kubernetes-action".into(), json!(action));
    out.insert(
        "x-kubernetes-group-version-kind".into(),
        json!({"group": group, "version": version, "kind": kind}),
    );
    Value::Object(out)
}

fn tag(group: &str, version: &str) -> String {
    let word = group_word(group, version);
    let mut out = String::new();
    for letter in word.chars() {
        if letter.is_uppercase() && !out.is_empty() {
            out.push('_');
        }
        out.extend(letter.to_lowercase());
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::v2;
    use super::*;

    #[test]
    fn operations_are_called_as_upstream_calls_them() {
        let document = v2(Catalog::built_in(), "v1.36.2");
        let pods = "/api/v1/namespaces/{namespace}/pods";
        let apps = "/apis/apps/v1/namespaces/{namespace}/deployments";
        for (path, method, id, action, kind) in [
            ("".to_string(), "get", "listAppsV1NamespacedDeployment", "list", "Deployment"),
            (
                "".into(),
                "delete",
                "deleteAppsV1CollectionNamespacedDeployment",
                "deletecollection",
                "Deployment",
            ),
            ("/{name}".into(), "put", "replaceAppsV1NamespacedDeployment", "put", "Deployment"),
            ("/{name}/scale".into(), "get", "readAppsV1NamespacedDeploymentScale", "get", "Scale"),
        ]
        .map(|(path, method, id, action, kind)| (format!("{apps}{path}"), method, id, action, kind))
        .into_iter()
        .chain(
            [
                ("/{name}/log", "get", "readCoreV1NamespacedPodLog", "get", "Pod"),
                (
                    "/{name}/exec",
                    "post",
                    "connectCoreV1PostNamespacedPodExec",
                    "connect",
                    "PodExecOptions",
                ),
                (
                    "/{name}/proxy/{path}",
                    "patch",
                    "connectCoreV1PatchNamespacedPodProxyWithPath",
                    "connect",
                    "PodProxyOptions",
                ),
                (
                    "/{name}/eviction",
                    "post",
                    "createCoreV1NamespacedPodEviction",
                    "post",
                    "Eviction",
                ),
            ]
            .map(|(path, method, id, action, kind)| {
                (format!("{pods}{path}"), method, id, action, kind)
            }),
        ) {
            let operation = &document["paths"][&path][method];
            assert_eq!(operation["operationId"], id, "{path}");
            assert_eq!(operation["x-kubernetes-action"], action, "{path}");
            assert_eq!(operation["x-kubernetes-group-version-kind"]["kind"], kind, "{path}");
            assert!(operation["description"].is_string(), "{path}");
            assert!(operation["responses"].get("401").is_some(), "{path}");
        }
        let scale = &document["paths"][format!("{apps}/{{name}}/scale")];
        assert_eq!(scale["get"]["tags"], json!(["apps_v1"]));
        assert_eq!(scale["parameters"][0]["description"], "name of the Scale");
    }

    #[test]
    fn no_id_stands_twice() {
        let document = v2(Catalog::built_in(), "v1.36.2");
        let mut seen = std::collections::HashSet::new();
        for (path, item) in document["paths"].as_object().unwrap() {
            for operation in item.as_object().unwrap().values() {
                if let Some(id) = operation["operationId"].as_str() {
                    assert!(seen.insert(id.to_string()), "{id} of {path}");
                }
            }
        }
    }
}
