//! The paths of a group's version with their operations, called as generators of clients
//! expect it.

use kinds::resources::{Catalog, Resource, Subresource};
use serde_json::{Map, Value};

use super::operation::{Operation, Verb};
use super::parameters::{self, in_path};
use super::{Definitions, document_path};

/// `AppsV1`, `CoreV1`, `RbacAuthorizationV1`: the middle of operation ids.
pub(super) fn group_word(group: &str, version: &str) -> String {
    let group = group.strip_suffix(".k8s.io").unwrap_or(group);
    let name = if group.is_empty() { "core" } else { group };
    let name: String = name.split('.').map(capital).collect();
    format!("{name}{}", capital(version))
}

/// `apps_v1`, `rbacAuthorization_v1`, `apps`: what operations are sorted by.
pub(super) fn tag(group: &str, version: &str) -> String {
    let word = group_word(group, "");
    let mut letters = word.chars();
    let name: String =
        letters.next().map(|c| c.to_lowercase().chain(letters).collect()).unwrap_or_default();
    if version.is_empty() { name } else { format!("{name}_{version}") }
}

/// Of an object: verb, method of HTTP, word of the operation id, and what it does.
const ITEM_VERBS: [(&str, &str, &str, Verb); 4] = [
    ("get", "get", "read", Verb::Get),
    ("update", "put", "replace", Verb::Put),
    ("patch", "patch", "patch", Verb::Patch),
    ("delete", "delete", "delete", Verb::Delete),
];
const WATCH_LIST_WORDS: &str =
    "deprecated: use the 'watch' parameter with a list operation instead";

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
            let id = format!("list{}{}ForAllNamespaces", of.group_word(), resource.kind);
            of.add(paths, format!("{root}{}", resource.plural), one("get", of.list(id)), None);
        }
        // Upstream does not list them for custom resources.
        if resource.has_verb("watch") && !resource.custom {
            of.watches(paths);
        }
    }
}

fn one(method: &str, operation: Value) -> Map<String, Value> {
    Map::from_iter([(method.to_owned(), operation)])
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
    /// The path of the collection, below `watch/` or nothing.
    fn path(&self, below: &str) -> String {
        let scope = if self.resource.namespaced { "namespaces/{namespace}/" } else { "" };
        format!("{}{below}{scope}{}", self.root, self.resource.plural)
    }

    fn own(&self) -> (&'a str, &'a str, &'a str) {
        (self.group, self.version, self.resource.kind.as_str())
    }

    fn group_word(&self) -> String {
        group_word(self.group, self.version)
    }

    /// `Namespaced` where it is, and the kind.
    fn scoped(&self) -> String {
        let scope = if self.resource.namespaced { "Namespaced" } else { "" };
        format!("{scope}{}", self.resource.kind)
    }

    fn word(&self) -> String {
        format!("{}{}", self.group_word(), self.scoped())
    }

    fn operation(
        &self,
        id: String,
        description: String,
        verb: Verb,
        gvk: (&'a str, &'a str, &'a str),
    ) -> Value {
        let custom = self.resource.custom;
        // A custom resource's operations are marked with its kind, whatever they read.
        let marked = custom.then(|| self.own());
        let operation = Operation { tag: self.tag, id, description, verb, gvk, marked, custom };
        operation.write(self.definitions)
    }

    fn list(&self, id: String) -> Value {
        let watch = self.resource.has_verb("watch") && !self.resource.custom;
        let what = if watch { "list or watch" } else { "list" };
        let said = format!("{what} objects of kind {}", self.resource.kind);
        self.operation(id, said, Verb::List, self.own())
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
        let mut inside = Vec::new();
        if let Some(kind) = named {
            inside.push(in_path("name", &format!("name of the {kind}"), edition));
        }
        if path.contains("/{namespace}/") {
            let text = "object name and auth scope, such as for teams and projects";
            inside.push(in_path("namespace", text, edition));
        }
        if path.ends_with("{path}") {
            inside.push(in_path("path", "path to the resource", edition));
        }
        let parameters = parameters::shared(&mut operations, inside);
        if !parameters.is_empty() {
            operations.insert("parameters".into(), parameters.into());
        }
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
            many.insert("post".into(), self.operation(id, said, Verb::Post, self.own()));
        }
        if resource.has_verb("deletecollection") {
            let id = format!("delete{}Collection{}", self.group_word(), self.scoped());
            let said = format!("delete collection of {kind}");
            let made = self.operation(id, said, Verb::DeleteCollection, self.own());
            many.insert("delete".into(), made);
        }
        self.add(paths, self.path(""), many, None);
    }

    fn item(&self, paths: &mut Map<String, Value>) {
        let (resource, word) = (self.resource, self.word());
        let kind = &resource.kind;
        let mut operations = Map::new();
        for (name, method, start, verb) in ITEM_VERBS {
            if resource.has_verb(name) {
                let said = match verb {
                    Verb::Delete => format!("delete {}", with_article(kind)),
                    Verb::Patch => format!("partially update the specified {kind}"),
                    _ => format!("{start} the specified {kind}"),
                };
                let made = self.operation(format!("{start}{word}"), said, verb, self.own());
                operations.insert(method.into(), made);
            }
        }
        self.add(paths, format!("{}/{{name}}", self.path("")), operations, Some(kind));
    }

    /// Watches by paths of their own, as clients of old ask for them.
    fn watches(&self, paths: &mut Map<String, Value>) {
        let (kind, word) = (&self.resource.kind, self.word());
        let said = format!("watch individual changes to a list of {kind}. {WATCH_LIST_WORDS}.");
        let list = |id| one("get", self.operation(id, said.clone(), Verb::WatchList, self.own()));
        if self.resource.namespaced && self.resource.has_verb("list") {
            let id = format!("watch{}{kind}ListForAllNamespaces", self.group_word());
            let path = format!("{}watch/{}", self.root, self.resource.plural);
            self.add(paths, path, list(id), None);
        }
        let path = self.path("watch/");
        self.add(paths, path.clone(), list(format!("watch{word}List")), None);
        let said = format!(
            "watch changes to an object of kind {kind}. {WATCH_LIST_WORDS}, filtered to a single item with the 'fieldSelector' parameter."
        );
        let made = self.operation(format!("watch{word}"), said, Verb::Watch, self.own());
        self.add(paths, format!("{path}/{{name}}"), one("get", made), Some(kind));
    }

    fn subresource(&self, paths: &mut Map<String, Value>, sub: &'a Subresource) {
        let gvk = match &sub.other_gv {
            Some(gv) => (gv.group.as_str(), gv.version.as_str(), sub.kind.as_str()),
            None => (self.group, self.version, sub.kind.as_str()),
        };
        let (word, tail) = (self.word(), capital(&sub.name));
        let (kind, name) = (&self.resource.kind, &sub.name);
        let mut operations = Map::new();
        for (known, method, start, verb) in ITEM_VERBS {
            if sub.verbs.iter().any(|v| v == known) {
                let start_said = if verb == Verb::Patch { "partially update" } else { start };
                let said = format!("{start_said} {name} of the specified {kind}");
                let verb = if name == "log" { Verb::Log } else { verb };
                let made = self.operation(format!("{start}{word}{tail}"), said, verb, gvk);
                operations.insert(method.into(), made);
            }
        }
        if sub.verbs.iter().any(|v| v == "create") {
            let said = format!("create {name} of {}", with_article(kind));
            let id = format!("create{word}{tail}");
            operations.insert("post".into(), self.operation(id, said, Verb::Post, gvk));
        }
        let path = format!("{}/{{name}}/{name}", self.path(""));
        let named = if self.resource.custom { kind.as_str() } else { gvk.2 };
        self.add(paths, path, operations, Some(named));
    }

    /// Subresources that connect the client with something else.
    fn connections(&self, paths: &mut Map<String, Value>, sub: &'a Subresource) {
        let methods: &[&str] = match sub.name.as_str() {
            "proxy" => &["get", "put", "post", "delete", "options", "head", "patch"],
            _ => &["get", "post"],
        };
        let group = self.group_word();
        let (scoped, tail) = (self.scoped(), capital(&sub.name));
        let gvk = (self.group, self.version, sub.kind.as_str());
        let below: &[(&str, &str)] = match sub.name.as_str() {
            "proxy" => &[("", ""), ("/{path}", "WithPath")],
            _ => &[("", "")],
        };
        for (path, end) in below {
            let mut operations = Map::new();
            for method in methods {
                let id = format!("connect{group}{}{scoped}{tail}{end}", capital(method));
                let said = format!(
                    "connect {} requests to {} of {}",
                    method.to_uppercase(),
                    sub.name,
                    self.resource.kind
                );
                let made = self.operation(id, said, Verb::Connect, gvk);
                operations.insert((*method).to_owned(), made);
            }
            let path = format!("{}/{{name}}/{}{path}", self.path(""), sub.name);
            self.add(paths, path, operations, Some(&sub.kind));
        }
    }
}

/// `a Deployment`, `an Ingress`, and just `Endpoints`, which are many.
fn with_article(kind: &str) -> String {
    if kind.ends_with('s') && !kind.ends_with("ss") {
        return kind.to_owned();
    }
    let vowel = kind.starts_with(['A', 'E', 'I', 'O', 'U']);
    format!("{} {kind}", if vowel { "an" } else { "a" })
}

fn capital(word: &str) -> String {
    let mut letters = word.chars();
    letters.next().map(|c| c.to_uppercase().chain(letters).collect()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

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
}
