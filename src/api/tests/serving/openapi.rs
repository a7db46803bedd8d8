//! What holds of the OpenAPI documents, whatever is served: everything that is served has its
//! path, and a generator of clients finds what it needs.

use std::collections::{BTreeMap, BTreeSet};

use super::*;

const METHODS: [&str; 7] = ["get", "put", "post", "delete", "options", "head", "patch"];

/// A server with a custom resource.
async fn start(dir: &std::path::Path) -> Shared {
    let server = server_with(dir, &[], |_| {}).await;
    let definition = json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "lamps.lights.example.com"},
        "spec": {
            "group": "lights.example.com", "scope": "Namespaced",
            "names": {"plural": "lamps", "kind": "Lamp"},
            "versions": [{
                "name": "v1", "served": true, "storage": true,
                "subresources": {"status": {}, "scale": {
                    "specReplicasPath": ".spec.bulbs", "statusReplicasPath": ".status.bulbs"}},
                "schema": {"openAPIV3Schema": {"type": "object", "properties": {
                    "spec": {"type": "object", "properties": {"bulbs": {"type": "integer"}}},
                    "status": {"type": "object", "properties": {"bulbs": {"type": "integer"}}}}}},
            }],
        },
    });
    let path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    assert_eq!(ask(&server, Method::POST, path, definition).await.status, 201);
    for _ in 0..100 {
        let path = "/apis/lights.example.com/v1";
        if ask(&server, Method::GET, path, Value::Null).await.status == 200 {
            return server;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("the custom resource is not served");
}

async fn get(server: &Shared, path: &str) -> Value {
    let answer = ask(server, Method::GET, path, Value::Null).await;
    assert_eq!(answer.status, 200, "{path}");
    answer.json()
}

async fn v3_documents(server: &Shared) -> BTreeMap<String, Value> {
    let index = get(server, "/openapi/v3").await;
    let mut out = BTreeMap::new();
    for (name, entry) in index["paths"].as_object().unwrap() {
        let document = get(server, entry["serverRelativeURL"].as_str().unwrap()).await;
        out.insert(name.clone(), document);
    }
    out
}

/// Path and method of each operation.
fn operations(document: &Value) -> impl Iterator<Item = ((String, String), &Value)> {
    document["paths"].as_object().unwrap().iter().flat_map(|(path, item)| {
        let operations = METHODS.iter().filter_map(move |m| Some((*m, item.get(m)?)));
        operations.map(|(method, operation)| ((path.clone(), method.to_string()), operation))
    })
}

/// What stands behind a reference, or the value itself.
fn resolved<'a>(document: &'a Value, value: &'a Value) -> &'a Value {
    match value["$ref"].as_str() {
        Some(reference) => document.pointer(&reference[1..]).expect(reference),
        None => value,
    }
}

/// All parameters of an operation, with those of its path.
fn parameters<'a>(document: &'a Value, path: &str, method: &str) -> Vec<&'a Value> {
    let item = &document["paths"][path];
    let lists = [&item["parameters"], &item[method]["parameters"]];
    let all = lists.into_iter().flat_map(|list| list.as_array().into_iter().flatten());
    all.map(|parameter| resolved(document, parameter)).collect()
}

fn references(value: &Value, out: &mut BTreeSet<String>) {
    match value {
        Value::Object(map) => {
            out.extend(map.get("$ref").and_then(Value::as_str).map(str::to_string));
            map.values().for_each(|inner| references(inner, out));
        }
        Value::Array(items) => items.iter().for_each(|inner| references(inner, out)),
        _ => {}
    }
}

/// What must hold of a document by itself.
fn check(name: &str, document: &Value) {
    let mut found = BTreeSet::new();
    references(document, &mut found);
    for reference in found {
        let pointer = reference.strip_prefix('#').expect(&reference);
        assert!(document.pointer(pointer).is_some(), "{name}: {reference} leads nowhere");
    }
    let mut ids = BTreeMap::new();
    for ((path, method), operation) in operations(document) {
        let at = format!("{name}: {method} {path}");
        let id = operation["operationId"].as_str().expect(&at).to_string();
        if let Some(other) = ids.insert(id.clone(), at.clone()) {
            panic!("{id} is of {at} and of {other}");
        }
        assert!(operation["description"].is_string(), "{at} says nothing");
        assert!(operation["responses"]["401"].is_object(), "{at} always succeeds");
        let mut names = BTreeSet::new();
        for parameter in parameters(document, &path, &method) {
            let (name, place) = (parameter["name"].as_str(), parameter["in"].as_str());
            let (name, place) = (name.expect(&at), place.expect(&at));
            assert!(names.insert((name, place)), "{at}: {name} stands twice");
            assert_eq!(place == "path", path.contains(&format!("{{{name}}}")) && place == "path");
            if place != "body" {
                assert!(
                    !parameter["description"].as_str().unwrap_or("").is_empty(),
                    "{at}: {name}"
                );
                let schema = parameter.get("schema").unwrap_or(parameter);
                assert!(schema["type"].is_string(), "{at}: {name} has no type");
                assert_eq!(schema["uniqueItems"], true, "{at}: {name}");
            }
        }
        for piece in path.split('{').skip(1) {
            let name = piece.split('}').next().unwrap();
            assert!(names.contains(&(name, "path")), "{at}: {name} is not described");
        }
    }
}

#[tokio::test]
async fn documents_are_whole() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path()).await;
    let v2 = get(&server, "/openapi/v2").await;
    check("v2", &v2);
    let mut in_v3 = BTreeMap::new();
    for (name, document) in v3_documents(&server).await {
        check(&name, &document);
        let ids = operations(&document).map(|(at, op)| (at, op["operationId"].clone()));
        in_v3.extend(ids);
    }
    let in_v2: BTreeMap<_, _> =
        operations(&v2).map(|(at, op)| (at, op["operationId"].clone())).collect();
    assert_eq!(in_v2, in_v3);
}

#[tokio::test]
async fn everything_that_is_served_has_its_path() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path()).await;
    let v2 = get(&server, "/openapi/v2").await;
    let has = |path: &str, method: &str| v2["paths"][path][method].is_object();
    let mut roots = vec!["/api/v1".to_string()];
    for group in get(&server, "/apis").await["groups"].as_array().unwrap() {
        let versions = group["versions"].as_array().unwrap().iter();
        roots.extend(versions.map(|v| format!("/apis/{}", v["groupVersion"].as_str().unwrap())));
    }
    let mut seen = 0;
    for root in roots {
        let list = get(&server, &root).await;
        for resource in list["resources"].as_array().unwrap() {
            let (name, sub) = match resource["name"].as_str().unwrap().split_once('/') {
                Some((name, sub)) => (name, format!("/{sub}")),
                None => (resource["name"].as_str().unwrap(), String::new()),
            };
            let namespaced = resource["namespaced"] == true;
            let scope = if namespaced { "namespaces/{namespace}/" } else { "" };
            for verb in resource["verbs"].as_array().unwrap() {
                let (method, one) = match verb.as_str().unwrap() {
                    "get" => ("get", true),
                    "list" | "watch" => ("get", false),
                    "create" => ("post", !sub.is_empty()),
                    "update" => ("put", true),
                    "patch" => ("patch", true),
                    "delete" => ("delete", true),
                    "deletecollection" => ("delete", false),
                    other => panic!("{other}"),
                };
                let one = if one { "/{name}" } else { "" };
                let path = format!("{root}/{scope}{name}{one}{sub}");
                assert!(has(&path, method), "{method} {path}");
                if verb == "list" && namespaced {
                    assert!(has(&format!("{root}/{name}"), "get"), "{root}/{name}");
                }
                if verb == "watch" && !root.contains("example.com") {
                    let watch = format!("{root}/watch/{scope}{name}");
                    assert!(
                        has(&watch, "get") && has(&format!("{watch}/{{name}}"), "get"),
                        "{watch}"
                    );
                }
                seen += 1;
            }
        }
    }
    assert!(seen > 500, "{seen} verbs");
    for path in v2["paths"].as_object().unwrap().keys().filter(|path| !path.contains('{')) {
        if v2["paths"][path]["get"].is_object() && !path.contains("/watch/") {
            get(&server, path).await;
        }
    }
}

/// Which parameters of a query an operation knows, besides those of its path.
#[tokio::test]
async fn operations_know_the_parameters_of_their_options() {
    const LIST: &str = "allowWatchBookmarks continue fieldSelector labelSelector limit pretty resourceVersion resourceVersionMatch sendInitialEvents shardSelector timeoutSeconds watch";
    const DELETION: &str = "dryRun gracePeriodSeconds ignoreStoreReadErrorWithClusterBreakingPotential orphanDependents propagationPolicy";
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path()).await;
    let v2 = get(&server, "/openapi/v2").await;
    let pods = "/api/v1/namespaces/{namespace}/pods";
    let pod = format!("{pods}/{{name}}");
    let lamps = "/apis/lights.example.com/v1/namespaces/{namespace}/lamps";
    let many = LIST.replace("allowWatchBookmarks ", "").replace(" watch", "");
    let cases = [
        (pods.to_string(), "get", LIST.to_string()),
        (pods.to_string(), "delete", format!("body {many} {DELETION}")),
        (pods.to_string(), "post", "body dryRun fieldManager fieldValidation pretty".into()),
        (pod.clone(), "patch", "body dryRun fieldManager fieldValidation force pretty".into()),
        (pod.clone(), "delete", format!("body pretty {DELETION}")),
        (pod.clone(), "get", "pretty".into()),
        (format!("{pod}/exec"), "get", "command container stderr stdin stdout tty".into()),
        (format!("{pod}/attach"), "post", "container stderr stdin stdout tty".into()),
        (format!("{pod}/portforward"), "get", "ports".into()),
        (format!("{pod}/proxy/{{path}}"), "patch", "path".into()),
        (
            format!("{pod}/log"),
            "get",
            "container follow insecureSkipTLSVerifyBackend limitBytes pretty previous sinceSeconds stream tailLines timestamps".into(),
        ),
        ("/api/v1/watch/nodes".into(), "get", LIST.into()),
        (format!("{lamps}/{{name}}"), "get", "pretty resourceVersion".into()),
        (lamps.into(), "delete", LIST.into()),
    ];
    for (path, method, expected) in cases {
        let found: BTreeSet<&str> = parameters(&v2, &path, method)
            .iter()
            .filter(|parameter| parameter["in"] != "path")
            .map(|parameter| parameter["name"].as_str().unwrap())
            .collect();
        assert_eq!(found, expected.split(' ').collect(), "{method} {path}");
    }
    let patch = &v2["paths"][&pod]["patch"]["consumes"];
    assert_eq!(patch.as_array().unwrap().len(), 4);
    let removed = &v2["paths"][&pod]["delete"]["responses"]["202"]["schema"]["$ref"];
    assert_eq!(removed, "#/definitions/io.k8s.api.core.v1.Pod");
    let scale = &v2["paths"][format!("{lamps}/{{name}}/scale")];
    assert_eq!(scale["get"]["x-kubernetes-group-version-kind"]["kind"], "Lamp");
    let shape = &scale["put"]["responses"]["201"]["schema"]["$ref"];
    assert_eq!(shape, "#/definitions/io.k8s.api.autoscaling.v1.Scale");
}
