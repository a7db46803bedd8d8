//! A small API server in memory: objects by path, merge patches, watches, reviews that
//! know one user. Enough for a kubelet, and deliberately no more.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use client::{Body, Transport};
use futures::StreamExt;
use serde_json::{Value, json};
use tokio::sync::broadcast;

#[derive(Default)]
struct Held {
    objects: BTreeMap<String, Value>,
    revision: u64,
}

pub struct ApiServer {
    held: std::sync::Mutex<Held>,
    changes: broadcast::Sender<(String, Value)>,
}

fn status(code: u16, reason: &str) -> http::Response<Body> {
    let body = json!({"kind": "Status", "status": "Failure", "reason": reason, "message": reason, "code": code});
    answer(code, &body)
}

fn answer(code: u16, body: &Value) -> http::Response<Body> {
    http::Response::builder().status(code).body(Body::Full(body.to_string().into())).unwrap()
}

/// Conditions are a list by type, or one like any other (`whole`), as the kind of patch has it.
fn merge(into: &mut Value, from: &Value, whole: bool) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                if value.is_null() {
                    into.remove(key);
                } else if key == "conditions" && !whole {
                    let held = into.entry(key).or_insert(json!([])).as_array_mut().unwrap();
                    for new in value.as_array().unwrap() {
                        let place = held.iter().position(|old| old["type"] == new["type"]);
                        if new["$patch"] == "delete" {
                            place.map(|place| held.remove(place));
                            continue;
                        }
                        match place {
                            Some(place) => merge(&mut held[place], new, whole),
                            None => held.push(new.clone()),
                        }
                    }
                } else {
                    merge(into.entry(key).or_insert(Value::Null), value, whole);
                }
            }
        }
        (into, Value::Array(list)) => {
            *into = list.iter().filter(|it| it.get("$patch").is_none()).cloned().collect();
        }
        (into, from) => {
            if !into.is_object() && from.is_object() {
                *into = json!({});
                merge(into, from, whole);
            } else {
                *into = from.clone();
            }
        }
    }
}

impl ApiServer {
    pub fn new() -> Arc<Self> {
        Arc::new(Self { held: Default::default(), changes: broadcast::channel(4096).0 })
    }

    pub fn get(&self, path: &str) -> Option<Value> {
        self.held.lock().unwrap().objects.get(path).cloned()
    }

    /// Every change from now on, with the path of its object.
    pub fn follow(&self) -> broadcast::Receiver<(String, Value)> {
        self.changes.subscribe()
    }

    pub fn forget_events(&self) {
        self.held.lock().unwrap().objects.retain(|path, _| !path.contains("/events/"));
    }

    pub fn events(&self) -> Vec<String> {
        self.events_where(|_| true)
    }

    /// Those of objects of that name.
    pub fn events_about(&self, name: &str) -> Vec<String> {
        self.events_where(|event| event["involvedObject"]["name"] == name)
    }

    fn events_where(&self, wanted: impl Fn(&Value) -> bool) -> Vec<String> {
        let held = self.held.lock().unwrap();
        held.objects
            .iter()
            .filter(|(path, event)| path.contains("/events/") && wanted(event))
            .map(|(_, event)| {
                format!(
                    "{}: {}",
                    event["reason"].as_str().unwrap(),
                    event["message"].as_str().unwrap()
                )
            })
            .collect()
    }

    pub fn put(&self, path: &str, mut object: Value) -> Value {
        let mut held = self.held.lock().unwrap();
        held.revision += 1;
        object["metadata"]["resourceVersion"] = json!(held.revision.to_string());
        if object["metadata"]["uid"].is_null() {
            object["metadata"]["uid"] = json!(format!("uid-{}", held.revision));
        }
        let kind = if held.objects.contains_key(path) { "MODIFIED" } else { "ADDED" };
        held.objects.insert(path.to_owned(), object.clone());
        let _ = self.changes.send((path.to_owned(), json!({"type": kind, "object": object})));
        object
    }

    /// Paths of what is directly below one.
    pub fn below(&self, path: &str) -> Vec<String> {
        let held = self.held.lock().unwrap();
        held.objects.keys().filter(|at| is_in(path, at)).cloned().collect()
    }

    /// As a merge patch of somebody else.
    pub fn patch(&self, path: &str, body: &Value) {
        let mut object = self.get(path).unwrap();
        merge(&mut object, body, false);
        self.put(path, object);
    }

    pub fn delete(&self, path: &str) -> bool {
        let mut held = self.held.lock().unwrap();
        held.revision += 1;
        match held.objects.remove(path) {
            Some(object) => {
                let event = json!({"type": "DELETED", "object": object});
                let _ = self.changes.send((path.to_owned(), event));
                true
            }
            None => false,
        }
    }

    /// As a client deletes a pod: the node removes the object when it has ended.
    pub fn delete_gracefully(&self, path: &str, seconds: u64) {
        let mut object = self.get(path).unwrap();
        object["metadata"]["deletionTimestamp"] = json!("2026-01-02T00:00:00Z");
        object["metadata"]["deletionGracePeriodSeconds"] = json!(seconds);
        self.put(path, object);
    }

    fn list(&self, path: &str, fields: &str) -> Value {
        let held = self.held.lock().unwrap();
        let items: Vec<&Value> = held
            .objects
            .iter()
            .filter(|(at, object)| is_in(path, at) && matches(object, fields))
            .map(|(_, object)| object)
            .collect();
        json!({"metadata": {"resourceVersion": held.revision.to_string()}, "items": items})
    }
}

/// Whether the object at `at` is in the collection `path`, in one namespace or in all.
fn is_in(path: &str, at: &str) -> bool {
    let (collection, _) = at.rsplit_once('/').unwrap();
    if collection == path {
        return true;
    }
    let (prefix, plural) = path.rsplit_once('/').unwrap();
    collection.starts_with(&format!("{prefix}/namespaces/"))
        && collection.ends_with(&format!("/{plural}"))
}

fn matches(object: &Value, fields: &str) -> bool {
    fields.split(',').filter(|it| !it.is_empty()).all(|term| {
        let (path, value) = term.split_once('=').unwrap();
        object.pointer(&format!("/{}", path.replace('.', "/"))) == Some(&json!(value))
    })
}

fn decode(text: &str) -> String {
    text.replace("%3D", "=").replace("%2C", ",").replace("%2F", "/")
}

#[async_trait]
impl Transport for ApiServer {
    async fn send(
        &self,
        request: http::Request<Bytes>,
    ) -> client::error::Result<http::Response<Body>> {
        let path = request.uri().path().to_owned();
        let query = request.uri().query().unwrap_or_default().to_owned();
        let get = |name: &str| {
            query
                .split('&')
                .find_map(|pair| pair.strip_prefix(&format!("{name}=")))
                .map(decode)
                .unwrap_or_default()
        };
        let body: Value = serde_json::from_slice(request.body()).unwrap_or(Value::Null);
        let kind = request.headers().get(http::header::CONTENT_TYPE);
        let whole = kind.is_some_and(|kind| kind == "application/merge-patch+json");
        let fields = get("fieldSelector");
        Ok(match request.method().as_str() {
            "GET" if get("watch") == "true" => {
                let changes = self.changes.subscribe();
                // Changes between the list and this watch are replayed as additions.
                let since: u64 = get("resourceVersion").parse().unwrap_or(0);
                let missed: Vec<Value> = self.list(&path, &fields)["items"]
                    .as_array()
                    .unwrap()
                    .iter()
                    .filter(|it| {
                        let revision = it["metadata"]["resourceVersion"].as_str().unwrap();
                        revision.parse::<u64>().unwrap() > since
                    })
                    .map(|it| json!({"type": "MODIFIED", "object": it}))
                    .collect();
                let live = futures::stream::unfold(changes, move |mut changes| {
                    let (path, fields) = (path.clone(), fields.clone());
                    async move {
                        loop {
                            let (at, event) = changes.recv().await.ok()?;
                            if is_in(&path, &at) && matches(&event["object"], &fields) {
                                return Some((event, changes));
                            }
                        }
                    }
                });
                let lines = futures::stream::iter(missed)
                    .chain(live)
                    .map(|event| Ok(Bytes::from(format!("{event}\n"))));
                http::Response::new(Body::Stream(Box::pin(lines)))
            }
            "GET" => match self.get(&path) {
                Some(object) => answer(200, &object),
                None if is_collection(&path) => answer(200, &self.list(&path, &fields)),
                None => status(404, "NotFound"),
            },
            "POST" if path.ends_with("/tokenreviews") => {
                let good = body["spec"]["token"] == "good";
                answer(201, &json!({"status": {"authenticated": good, "user": {"username": "u"}}}))
            }
            "POST" if path.ends_with("/subjectaccessreviews") => {
                answer(201, &json!({"status": {"allowed": body["spec"]["user"] == "u"}}))
            }
            "POST" if path.ends_with("/token") => {
                let until = jiff_in_an_hour();
                answer(201, &json!({"status": {"token": "a-token", "expirationTimestamp": until}}))
            }
            "POST" => {
                let mut body = body;
                if let Some(prefix) = body["metadata"]["generateName"].as_str() {
                    let suffix = base::rng::suffix(5);
                    body["metadata"]["name"] = json!(format!("{prefix}{suffix}"));
                }
                let name = body["metadata"]["name"].as_str().unwrap_or_default();
                let at = format!("{path}/{name}");
                if self.get(&at).is_some() {
                    status(409, "AlreadyExists")
                } else {
                    answer(201, &self.put(&at, body))
                }
            }
            "PUT" => answer(200, &self.put(&path, body)),
            "PATCH" => {
                let path = path.strip_suffix("/status").unwrap_or(&path);
                match self.get(path) {
                    Some(mut object) => {
                        let uid = &body["metadata"]["uid"];
                        if uid.is_string() && *uid != object["metadata"]["uid"] {
                            return Ok(status(409, "Conflict"));
                        }
                        merge(&mut object, &body, whole);
                        answer(200, &self.put(path, object))
                    }
                    None => status(404, "NotFound"),
                }
            }
            "DELETE" if self.delete(&path) => answer(200, &json!({"status": "Success"})),
            "DELETE" if is_collection(&path) => {
                let held = self.list(&path, &fields);
                for item in held["items"].as_array().unwrap() {
                    self.delete(&format!("{path}/{}", item["metadata"]["name"].as_str().unwrap()));
                }
                answer(200, &json!({"status": "Success"}))
            }
            "DELETE" => status(404, "NotFound"),
            other => panic!("{other} {path}"),
        })
    }
}

fn is_collection(path: &str) -> bool {
    let parts: Vec<&str> = path.split('/').filter(|it| !it.is_empty()).collect();
    let head = if parts[0] == "api" { 2 } else { 3 };
    matches!((parts.len() - head, parts.get(head)), (1, _) | (3, Some(&"namespaces")))
}

fn jiff_in_an_hour() -> String {
    let later = base::time::now().checked_add(std::time::Duration::from_secs(3600)).unwrap();
    base::time::rfc3339(later)
}
