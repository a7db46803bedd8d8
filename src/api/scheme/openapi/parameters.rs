//! What requests carry in their queries and paths, as OpenAPI lists it: which verb knows which
//! parameter, in words of our own. Names and types are those of upstream's option kinds.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE;
use serde_json::{Map, Value, json};

use super::Edition;
use super::operation::Verb;

/// Name, type and meaning of a parameter of a query.
type Query = (&'static str, &'static str, &'static str);

const PRETTY: Query = (
    "pretty",
    "string",
    "If 'true', the answer is indented for people to read. Browsers, curl and wget get that without asking.",
);
const RESOURCE_VERSION: Query = (
    "resourceVersion",
    "string",
    "From which resource version on an answer may be served; resourceVersionMatch says how it is meant. Unset means the newest.",
);
const LIST: [Query; 11] = [
    (
        "allowWatchBookmarks",
        "boolean",
        "Lets the server send events of type BOOKMARK in a watch, which carry a resource version only. When they come is up to the server.",
    ),
    (
        "continue",
        "string",
        "The token of an earlier list in pieces, for its next piece; the other parameters must be as they were. A token that is too old is answered with 410 and a new token, which leads on in the newest state.",
    ),
    ("fieldSelector", "string", "Restricts the objects by their fields. Defaults to all."),
    ("labelSelector", "string", "Restricts the objects by their labels. Defaults to all."),
    (
        "limit",
        "integer",
        "The most objects one answer may hold. If there are more, metadata.continue holds the token for the next piece, and all pieces show one state. Not for watches.",
    ),
    RESOURCE_VERSION,
    (
        "resourceVersionMatch",
        "string",
        "How resourceVersion is meant: Exact, or NotOlderThan. Lists that give a resource version had better say it.",
    ),
    (
        "sendInitialEvents",
        "boolean",
        "With watch, sends the objects that are there as events first, and then a bookmark with the annotation k8s.io/initial-events-end. resourceVersionMatch must be NotOlderThan.",
    ),
    (
        "shardSelector",
        "string",
        "Restricts the objects to a shard of them. Needs a feature that is in alpha.",
    ),
    (
        "timeoutSeconds",
        "integer",
        "After how many seconds the list or watch ends, however much is going on.",
    ),
    (
        "watch",
        "boolean",
        "Answers with a stream of what is added, changed and removed, from resourceVersion on.",
    ),
];
const DRY_RUN: Query = (
    "dryRun",
    "string",
    "All: everything is done but keeping the result. Any other value is an error.",
);
const FIELD_MANAGER: Query = (
    "fieldManager",
    "string",
    "The name of who makes the change, at most 128 printable characters.",
);
const APPLIER: Query = (
    "fieldManager",
    "string",
    "The name of who makes the change, at most 128 printable characters. An apply patch must have it.",
);
const FIELD_VALIDATION: Query = (
    "fieldValidation",
    "string",
    "What becomes of fields that are unknown or stand twice. Ignore: they are dropped. Warn: and each is told in a warning; this is the default. Strict: the request fails.",
);
const FORCE: Query = (
    "force",
    "boolean",
    "Takes fields over from other managers in an apply patch. Must not be set with other patches.",
);
const DELETE: [Query; 4] = [
    (
        "gracePeriodSeconds",
        "integer",
        "How many seconds the object has to end; zero is at once. Unset means what the kind, or the object itself, says.",
    ),
    (
        "ignoreStoreReadErrorWithClusterBreakingPotential",
        "boolean",
        "Removes an object that can no longer be read from the store, without finalizers and preconditions. This can break a cluster; needs a feature that is in alpha.",
    ),
    (
        "orphanDependents",
        "boolean",
        "Deprecated: use propagationPolicy. Whether dependents stay when the object goes.",
    ),
    (
        "propagationPolicy",
        "string",
        "What becomes of dependents. Orphan: they stay. Background: they are removed after the object. Foreground: they are removed before it.",
    ),
];
const LOG: [Query; 9] = [
    ("container", "string", "Whose log it is. May be left out where there is one container."),
    ("follow", "boolean", "Goes on with what is written later. Defaults to false."),
    (
        "insecureSkipTLSVerifyBackend",
        "boolean",
        "Does not check the certificate of the node. What comes then may be from somebody else.",
    ),
    ("limitBytes", "integer", "After how many bytes to stop; the last line may not be whole."),
    ("previous", "boolean", "The log of the container before it was restarted. Defaults to false."),
    ("sinceSeconds", "integer", "How many seconds back to begin. Not together with sinceTime."),
    (
        "stream",
        "string",
        "All, Stdout or Stderr; All is the default. Not together with tailLines unless it is All.",
    ),
    (
        "tailLines",
        "integer",
        "How many lines from the end to show. Unset means from the beginning, or from sinceSeconds or sinceTime.",
    ),
    ("timestamps", "boolean", "Begins each line with its time. Defaults to false."),
];
const STREAMS: [Query; 5] = [
    ("container", "string", "Which container is meant. May be left out where there is one."),
    ("stderr", "boolean", "Passes the standard error on. Defaults to true."),
    ("stdin", "boolean", "Passes the standard input on. Defaults to false."),
    ("stdout", "boolean", "Passes the standard output on. Defaults to true."),
    ("tty", "boolean", "Works on a terminal. Defaults to false."),
];
const COMMAND: Query =
    ("command", "string", "The program and its arguments, one each time. No shell reads them.");
const PORTS: Query = ("ports", "integer", "The ports to forward. WebSockets need it.");
const PROXY_PATH: Query =
    ("path", "string", "The path, with its query, to ask for behind the proxy.");

/// What a verb knows in its query. The kind tells what a connection is for.
fn known(verb: Verb, kind: &str, custom: bool) -> Vec<Query> {
    let deletion = || [DRY_RUN].into_iter().chain(DELETE);
    let changes = [DRY_RUN, FIELD_MANAGER, FIELD_VALIDATION];
    let mut out = match verb {
        Verb::List | Verb::Watch | Verb::WatchList => LIST.to_vec(),
        Verb::Get if custom => vec![RESOURCE_VERSION],
        Verb::Get => Vec::new(),
        Verb::Log => LOG.to_vec(),
        Verb::Post | Verb::Put => changes.to_vec(),
        Verb::Patch if custom => changes.to_vec(),
        Verb::Patch => vec![DRY_RUN, APPLIER, FIELD_VALIDATION, FORCE],
        Verb::Delete => deletion().collect(),
        Verb::DeleteCollection if custom => LIST.to_vec(),
        Verb::DeleteCollection => {
            let watches = ["allowWatchBookmarks", "watch"];
            let lists = LIST.into_iter().filter(|(name, ..)| !watches.contains(name));
            lists.chain(deletion()).collect()
        }
        Verb::Connect => match kind {
            "PodExecOptions" => [COMMAND].into_iter().chain(STREAMS).collect(),
            "PodAttachOptions" => STREAMS.to_vec(),
            "PodPortForwardOptions" => vec![PORTS],
            _ => vec![PROXY_PATH],
        },
    };
    if verb != Verb::Connect {
        out.push(PRETTY);
    }
    out
}

/// The parameters of a verb's query, by name.
pub(super) fn of(verb: Verb, kind: &str, custom: bool, edition: Edition) -> Vec<Value> {
    let mut known = known(verb, kind, custom);
    known.sort_by_key(|(name, ..)| *name);
    let query = |(name, ty, words): Query| {
        let mut out = json!({"description": words, "in": "query", "name": name});
        typed(&mut out, ty, edition);
        out
    };
    known.into_iter().map(query).collect()
}

/// A parameter that is a part of the path.
pub(super) fn in_path(name: &str, words: &str, edition: Edition) -> Value {
    let mut out = json!({"description": words, "in": "path", "name": name, "required": true});
    typed(&mut out, "string", edition);
    out
}

fn typed(parameter: &mut Value, ty: &str, edition: Edition) {
    match edition {
        Edition::V2 => {
            parameter["type"] = ty.into();
            parameter["uniqueItems"] = true.into();
        }
        Edition::V3 => parameter["schema"] = json!({"type": ty, "uniqueItems": true}),
    }
}

/// Takes out of the operations of a path what all of them know, together with what is in the
/// path itself, by name (kube-openapi, `findCommonParameters`).
pub(super) fn shared(operations: &mut Map<String, Value>, in_path: Vec<Value>) -> Vec<Value> {
    let is_body = |parameter: &Value| parameter["in"] == "body";
    let mut counts: BTreeMap<String, (usize, Value)> = BTreeMap::new();
    for operation in operations.values() {
        for parameter in operation["parameters"].as_array().into_iter().flatten() {
            if let Some(name) = parameter["name"].as_str().filter(|_| !is_body(parameter)) {
                counts.entry(name.into()).or_insert_with(|| (0, parameter.clone())).0 += 1;
            }
        }
    }
    counts.retain(|_, (count, _)| *count == operations.len());
    for operation in operations.values_mut() {
        let Some(own) = operation["parameters"].as_array_mut() else { continue };
        own.retain(|p| is_body(p) || p["name"].as_str().is_none_or(|n| !counts.contains_key(n)));
        if own.is_empty()
            && let Value::Object(fields) = operation
        {
            fields.shift_remove("parameters");
        }
    }
    let mut out: Vec<Value> =
        in_path.into_iter().chain(counts.into_values().map(|c| c.1)).collect();
    let key = |parameter: &Value| {
        let text = |field: &str| parameter[field].as_str().unwrap_or_default().to_owned();
        (text("name"), text("in"))
    };
    out.sort_by_key(key);
    out
}

/// Puts what many paths of a v2 document know into its `parameters`, and references in its
/// place. Those by which old clients recognise a server stay where they are, and so does what
/// is of one kind only.
pub(super) fn refer(paths: &mut Map<String, Value>) -> Map<String, Value> {
    let mut out = Map::new();
    let items = paths.values_mut().filter_map(Value::as_object_mut).flat_map(Map::values_mut);
    for item in items {
        let own = match item {
            Value::Array(own) => Some(own),
            operation => operation.get_mut("parameters").and_then(Value::as_array_mut),
        };
        for parameter in own.into_iter().flatten() {
            let Some(name) = common_name(parameter) else { continue };
            let text = parameter.to_string();
            let name = format!("{name}-{}", short_hash(&text));
            let reference = json!({"$ref": format!("#/parameters/{name}")});
            out.entry(name).or_insert(std::mem::replace(parameter, reference));
        }
    }
    out.sort_keys();
    out
}

fn common_name(parameter: &Value) -> Option<&str> {
    let name = parameter["name"].as_str()?;
    let of_a_kind = match name {
        "name" | "dryRun" | "fieldValidation" => true,
        "body" => {
            let of = parameter["schema"]["$ref"].as_str().unwrap_or_default();
            !of.starts_with("#/definitions/io.k8s.apimachinery")
        }
        _ => false,
    };
    (!of_a_kind).then_some(name)
}

/// Eight letters that tell texts apart (FNV-1).
fn short_hash(text: &str) -> String {
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    for byte in text.bytes() {
        hash = hash.wrapping_mul(0x0000_0100_0000_01b3) ^ u64::from(byte);
    }
    URL_SAFE.encode(&hash.to_be_bytes()[..6])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_all_operations_know_stands_with_the_path() {
        let query = |name: &str| json!({"name": name, "in": "query"});
        let body = json!({"name": "body", "in": "body"});
        let mut operations = Map::new();
        operations.insert("put".into(), json!({"parameters": [body, query("a"), query("b")]}));
        operations.insert("get".into(), json!({"parameters": [query("b")]}));
        let name = json!({"name": "name", "in": "path"});
        let both = shared(&mut operations, vec![name.clone()]);
        assert_eq!(both, [query("b"), name]);
        assert_eq!(operations["put"]["parameters"], json!([body, query("a")]));
        assert_eq!(operations["get"], json!({}));
    }

    #[test]
    fn hashes_are_of_the_named_kind() {
        // The published values of FNV-1 with 64 bits.
        assert_eq!(short_hash(""), "y_Kc5IQi");
        assert_eq!(short_hash("a"), "r2O9TIYB");
    }

    #[test]
    fn references_lead_to_what_they_stand_for() {
        let limit = json!({"name": "limit", "in": "query"});
        let kept = json!({"name": "dryRun", "in": "query"});
        let mut paths = Map::new();
        paths.insert("/a".into(), json!({"parameters": [limit], "get": {"parameters": [kept]}}));
        paths.insert("/b".into(), json!({"get": {"parameters": [limit]}}));
        let found = refer(&mut paths);
        let (name, parameter) = found.iter().next().unwrap();
        assert_eq!((found.len(), parameter), (1, &limit));
        let reference = json!([{"$ref": format!("#/parameters/{name}")}]);
        assert_eq!(paths["/a"]["parameters"], reference);
        assert_eq!(paths["/b"]["get"]["parameters"], reference);
        assert_eq!(paths["/a"]["get"]["parameters"], json!([kept]));
    }
}
