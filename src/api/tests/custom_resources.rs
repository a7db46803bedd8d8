//! Custom resources as clients meet them: recorded answers of upstream, and what the
//! recordings do not show.

#![allow(clippy::unwrap_used)]

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use api::serve::Shared;
use client::Body;
use futures::StreamExt;
use http::Method;
use serde_json::{Value, json};
use support::{Answer, ask};

#[path = "support/hostile.rs"]
mod hostile;
#[path = "support/server.rs"]
mod support;
#[path = "support/webhook.rs"]
mod webhook;

const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
const ESTABLISHED_MAX: Duration = Duration::from_secs(10);

/// A definition of `PLURALs.example.com` with one version.
fn definition(plural: &str, kind: &str, schema: Value) -> Value {
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": format!("{plural}.example.com")},
        "spec": {
            "group": "example.com", "scope": "Namespaced",
            "names": {"plural": plural, "kind": kind},
            "versions": [{"name": "v1", "served": true, "storage": true,
                "schema": {"openAPIV3Schema": schema}}],
        },
    })
}

fn with_spec(properties: Value) -> Value {
    json!({"type": "object", "properties": {"spec": {"type": "object", "properties": properties}}})
}

fn object(kind: &str, name: &str, spec: Value) -> Value {
    json!({"apiVersion": "example.com/v1", "kind": kind, "metadata": {"name": name}, "spec": spec})
}

fn place(plural: &str) -> String {
    format!("/apis/example.com/v1/namespaces/default/{plural}")
}

async fn get(server: &Shared, path: &str) -> Answer {
    ask(server, Method::GET, path, Value::Null).await
}

async fn post(server: &Shared, path: &str, body: Value) -> Answer {
    ask(server, Method::POST, path, body).await
}

async fn patch(server: &Shared, path: &str, body: Value) -> Answer {
    ask(server, Method::PATCH, path, body).await
}

/// Waits until `holds` of what is at a path.
async fn until(server: &Shared, path: &str, holds: impl Fn(&Answer) -> bool) -> Answer {
    let begun = Instant::now();
    loop {
        let answer = get(server, path).await;
        if holds(&answer) {
            return answer;
        }
        let got = String::from_utf8_lossy(&answer.body).into_owned();
        assert!(begun.elapsed() < ESTABLISHED_MAX, "{path}: {} {got}", answer.status);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn condition(definition: &Value, kind: &str) -> String {
    let conditions = definition["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let found = conditions.iter().find(|c| c["type"] == kind);
    found.map_or(String::new(), |c| c["status"].as_str().unwrap().to_string())
}

async fn define(server: &Shared, definition: Value) {
    let name = definition["metadata"]["name"].as_str().unwrap().to_string();
    let made = post(server, DEFINITIONS, definition).await;
    assert_eq!(made.status, 201, "{}", made.message());
    let path = format!("{DEFINITIONS}/{name}");
    until(server, &path, |answer| condition(&answer.json(), "Established") == "True").await;
}

/// Reads lines of a watch until `count` events have come, or the watch ends.
async fn events(response: http::Response<Body>, count: usize) -> Vec<Value> {
    let Body::Stream(mut stream) = response.into_body() else { panic!("a watch is a stream") };
    let mut held = String::new();
    let mut out = Vec::new();
    while out.len() < count {
        let Some(chunk) = stream.next().await else { break };
        held.push_str(std::str::from_utf8(&chunk.unwrap()).unwrap());
        while let Some((line, rest)) = held.split_once('\n') {
            out.push(serde_json::from_str(line).unwrap());
            held = rest.to_string();
        }
    }
    out
}

async fn open_watch(server: &Shared, path: &str) -> http::Response<Body> {
    let path =
        format!("{path}{}watch=true&timeoutSeconds=20", if path.contains('?') { '&' } else { '?' });
    support::open(server, "admin", Method::GET, &path, &[], "").await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_definitions_at_once_are_served_soon() {
    let dir = tempfile::tempdir().unwrap();
    let server = support::server_with(dir.path(), &["ServiceAccount"], |_| {}).await;
    let begun = Instant::now();
    let all = (0..100).map(|n| {
        let server = &server;
        async move {
            let schema = with_spec(json!({"n": {"type": "integer", "maximum": n}}));
            let made =
                post(server, DEFINITIONS, definition(&format!("as{n}"), &format!("A{n}"), schema))
                    .await;
            assert_eq!(made.status, 201, "{}", made.message());
        }
    });
    futures::future::join_all(all).await;
    for n in 0..100 {
        let list = place(&format!("as{n}"));
        until(&server, &list, |answer| answer.status == 200).await;
        let made = post(&server, &list, object(&format!("A{n}"), "x", json!({"n": n}))).await;
        assert_eq!(made.status, 201, "{}", made.message());
        let refused =
            post(&server, &list, object(&format!("A{n}"), "y", json!({"n": n + 1}))).await;
        assert_eq!(refused.status, 422);
    }
    assert!(begun.elapsed() < Duration::from_secs(30), "it took {:?}", begun.elapsed());
    let listed = get(&server, "/apis/example.com/v1").await.json();
    assert_eq!(listed["resources"].as_array().unwrap().len(), 100);
    let document = get(&server, "/openapi/v3/apis/example.com/v1").await.json();
    assert!(document["components"]["schemas"].get("com.example.v1.A99").is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_server_defined_is_served_at_once_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_path_buf();
    let hash = |index: &Value| index["paths"]["apis/example.com/v1"]["serverRelativeURL"].clone();
    // A server of its own runtime, which ends with everything that runs on it.
    let first = std::thread::spawn(move || {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async {
            let server = support::server_with(&path, &["ServiceAccount"], |_| {}).await;
            let schema = with_spec(json!({"a": {"type": "string"}}));
            define(&server, definition("things", "Thing", schema)).await;
            let thing = object("Thing", "one", json!({"a": "b"}));
            assert_eq!(post(&server, &place("things"), thing).await.status, 201);
            hash(&get(&server, "/openapi/v3").await.json())
        })
    });
    let before = tokio::task::spawn_blocking(|| first.join().unwrap()).await.unwrap();
    assert!(before.is_string());
    let second = support::server_with(dir.path(), &["ServiceAccount"], |_| {}).await;
    let read = get(&second, &format!("{}/one", place("things"))).await;
    assert_eq!(read.json()["spec"], json!({"a": "b"}), "{}", read.message());
    let group = get(&second, "/apis/example.com").await;
    assert_eq!(group.json()["preferredVersion"]["version"], "v1");
    assert_eq!(hash(&get(&second, "/openapi/v3").await.json()), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn names_in_use_are_free_again_when_their_owner_goes() {
    let dir = tempfile::tempdir().unwrap();
    let server = support::server_with(dir.path(), &["ServiceAccount"], |_| {}).await;
    let schema = with_spec(json!({}));
    define(&server, definition("firsts", "Same", schema.clone())).await;
    let made = post(&server, DEFINITIONS, definition("seconds", "Same", schema)).await;
    assert_eq!(made.status, 201);
    let second = format!("{DEFINITIONS}/seconds.example.com");
    let waiting =
        until(&server, &second, |a| condition(&a.json(), "NamesAccepted") == "False").await;
    assert_eq!(waiting.json()["status"]["conditions"][0]["reason"], "ListKindConflict");
    assert_eq!(condition(&waiting.json(), "Established"), "False");
    assert_eq!(get(&server, &place("seconds")).await.status, 404);
    let gone =
        ask(&server, Method::DELETE, &format!("{DEFINITIONS}/firsts.example.com"), Value::Null)
            .await;
    assert_eq!(gone.status, 200);
    until(&server, &second, |a| condition(&a.json(), "Established") == "True").await;
    assert_eq!(get(&server, &place("seconds")).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_definition_waits_for_its_instances_and_their_finalizers() {
    let dir = tempfile::tempdir().unwrap();
    let server = support::server_with(dir.path(), &["ServiceAccount"], |_| {}).await;
    define(&server, definition("helds", "Held", with_spec(json!({})))).await;
    let mut held = object("Held", "held", json!({}));
    held["metadata"]["finalizers"] = json!(["example.com/wait"]);
    let made = post(&server, &place("helds"), held).await;
    assert_eq!(made.status, 201, "{}", made.message());
    assert_eq!(post(&server, &place("helds"), object("Held", "free", json!({}))).await.status, 201);
    let watch = open_watch(&server, &place("helds")).await;
    let name = format!("{DEFINITIONS}/helds.example.com");
    let deleted = ask(&server, Method::DELETE, &name, Value::Null).await.json();
    assert_eq!(
        deleted["metadata"]["finalizers"],
        json!(["customresourcecleanup.apiextensions.k8s.io"])
    );
    until(&server, &format!("{}/free", place("helds")), |a| a.status == 404).await;
    let waiting = get(&server, &name).await;
    assert_eq!(condition(&waiting.json(), "Terminating"), "True");
    let refused = post(&server, &place("helds"), object("Held", "late", json!({}))).await;
    assert_eq!(refused.status, 403, "{}", refused.message());
    assert!(
        refused
            .message()
            .contains("create not allowed while custom resource definition is terminating")
    );
    let freed = patch(
        &server,
        &format!("{}/held", place("helds")),
        json!({"metadata": {"finalizers": null}}),
    )
    .await;
    assert_eq!(freed.status, 200, "{}", freed.message());
    until(&server, &name, |a| a.status == 404).await;
    until(&server, &place("helds"), |a| a.status == 404).await;
    assert_eq!(get(&server, "/apis/example.com").await.status, 404);
    // Who watched learns that it is over.
    tokio::time::timeout(Duration::from_secs(10), events(watch, 1_000)).await.unwrap();
    // The same name may be defined again, and begins empty.
    define(&server, definition("helds", "Held", with_spec(json!({})))).await;
    assert_eq!(get(&server, &place("helds")).await.json()["items"], json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_stored_reads_as_the_schema_of_today_says() {
    let dir = tempfile::tempdir().unwrap();
    let server = support::server_with(dir.path(), &["ServiceAccount"], |_| {}).await;
    let old = with_spec(json!({"a": {"type": "string"}, "b": {"type": "string"}}));
    define(&server, definition("olds", "Old", old)).await;
    let made = post(&server, &place("olds"), object("Old", "x", json!({"a": "1", "b": "2"}))).await;
    assert_eq!(made.status, 201);
    let new = with_spec(json!({"a": {"type": "string"}, "c": {"type": "string", "default": "3"}}));
    let versions = json!([{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": new}}]);
    let name = format!("{DEFINITIONS}/olds.example.com");
    let changed = patch(&server, &name, json!({"spec": {"versions": versions}})).await;
    assert_eq!(changed.status, 200, "{}", changed.message());
    let path = format!("{}/x", place("olds"));
    let read = until(&server, &path, |a| a.json()["spec"].get("c").is_some()).await;
    assert_eq!(read.json()["spec"], json!({"a": "1", "c": "3"}));
    let listed = get(&server, &place("olds")).await.json();
    assert_eq!(listed["items"][0]["spec"], json!({"a": "1", "c": "3"}));
    // The next write stores it that way.
    let written = patch(&server, &path, json!({"spec": {"a": "4"}})).await.json();
    assert_eq!(written["spec"], json!({"a": "4", "c": "3"}));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_wrong_before_may_stay_but_not_come() {
    let dir = tempfile::tempdir().unwrap();
    let server = support::server_with(dir.path(), &["ServiceAccount"], |_| {}).await;
    let schema = |most: i64| {
        with_spec(json!({
        "n": {"type": "integer", "maximum": most}, "m": {"type": "integer", "maximum": most}}))
    };
    define(&server, definition("rs", "R", schema(100))).await;
    let made = post(&server, &place("rs"), object("R", "x", json!({"n": 50, "m": 1}))).await;
    assert_eq!(made.status, 201);
    let versions = json!([{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema(10)}}]);
    patch(
        &server,
        &format!("{DEFINITIONS}/rs.example.com"),
        json!({"spec": {"versions": versions}}),
    )
    .await;
    let list = place("rs");
    let begun = Instant::now();
    while post(&server, &list, object("R", "y", json!({"n": 50}))).await.status != 422 {
        ask(&server, Method::DELETE, &format!("{list}/y"), Value::Null).await;
        assert!(begun.elapsed() < ESTABLISHED_MAX);
    }
    let path = format!("{list}/x");
    let kept = patch(&server, &path, json!({"spec": {"m": 2}})).await;
    assert_eq!(kept.status, 200, "{}", kept.message());
    let refused = patch(&server, &path, json!({"spec": {"n": 51}})).await;
    assert_eq!(refused.status, 422);
    let labelled = patch(&server, &path, json!({"metadata": {"labels": {"a": "b"}}})).await;
    assert_eq!(labelled.status, 200);
    assert_eq!(labelled.json()["metadata"]["generation"], 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_schemas_and_objects_cost_little() {
    let dir = tempfile::tempdir().unwrap();
    let server = support::server_with(dir.path(), &["ServiceAccount"], |_| {}).await;
    // A schema and an object nested deep.
    let (mut schema, mut value) = (json!({"type": "string"}), json!("leaf"));
    for _ in 0..200 {
        schema = json!({"type": "object", "properties": {"a": schema}});
        value = json!({"a": value});
    }
    define(&server, definition("deeps", "Deep", with_spec(json!({"a": schema})))).await;
    let made = post(&server, &place("deeps"), object("Deep", "x", json!({"a": value}))).await;
    assert_eq!(made.status, 201, "{}", made.message());
    assert!(made.json().pointer(&format!("/spec{}", "/a".repeat(201))).is_some());
    let mut body = String::from(
        "{\"apiVersion\":\"example.com/v1\",\"kind\":\"Deep\",\"metadata\":{\"name\":\"y\"},\"spec\":",
    );
    body.push_str(&"{\"a\":".repeat(10_000));
    body.push('1');
    body.push_str(&"}".repeat(10_001));
    let headers = [("content-type", "application/json")];
    let refused =
        support::send(&server, "admin", Method::POST, &place("deeps"), &headers, body).await;
    assert_eq!(refused.status, 400);

    // A pattern that would backtrack for ever.
    let pattern = json!({"a": {"type": "string", "pattern": "^(a+)+$"}});
    define(&server, definition("backs", "Back", with_spec(pattern))).await;
    let begun = Instant::now();
    let spec = json!({"a": format!("{}b", "a".repeat(200_000))});
    let refused = post(&server, &place("backs"), object("Back", "x", spec)).await;
    assert_eq!(refused.status, 422);
    assert!(begun.elapsed() < Duration::from_secs(5), "it took {:?}", begun.elapsed());

    // A pattern that would take all memory.
    let huge = json!({"a": {"type": "string", "pattern": "((a{100}){100}){100}"}});
    let refused = post(&server, DEFINITIONS, definition("huges", "Huge", with_spec(huge))).await;
    assert_eq!(refused.status, 422);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_over_the_limit_is_refused_unread() {
    use std::sync::Arc;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let dir = tempfile::tempdir().unwrap();
    let server = support::server_with(dir.path(), &["ServiceAccount"], |_| {}).await;
    define(&server, definition("bigs", "Big", with_spec(json!({"a": {"type": "string"}})))).await;
    let authority = pki::authority::Authority::create("ca").unwrap();
    let leaf = pki::authority::Leaf {
        common_name: "api".into(),
        addresses: vec!["127.0.0.1".parse().unwrap()],
        server: true,
        ..Default::default()
    };
    let issued = authority.issue(&leaf).unwrap();
    let (cert, key) = (issued.cert_pem.as_bytes(), issued.key_pem.as_bytes());
    let tls = Arc::new(pki::tls::server_config(cert, key, None).unwrap());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (_trigger, drain) = base::drain::channel();
    tokio::spawn(api::serve::listen::serve(server, listener, tls, drain));
    let ca = authority.cert_pem.as_bytes();
    let mut config = pki::tls::client_config(Some(ca), None, false).unwrap();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let tcp = tokio::net::TcpStream::connect(address).await.unwrap();
    let name = rustls_pki_types::ServerName::try_from("127.0.0.1").unwrap();
    let stream = connector.connect(name, tcp).await.unwrap();
    let (mut reader, mut writer) = tokio::io::split(stream);
    let size = 4 << 20;
    let sending = tokio::spawn(async move {
        let head = format!(
            "POST {} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {size}\r\n\r\n",
            place("bigs")
        );
        // The server may hang up while we still talk.
        let _ = writer.write_all(head.as_bytes()).await;
        let _ = writer.write_all(&vec![b' '; size]).await;
        writer
    });
    let mut answer = vec![0; 4_096];
    let count = reader.read(&mut answer).await.unwrap();
    let text = String::from_utf8_lossy(&answer[..count]).into_owned();
    assert!(text.starts_with("HTTP/1.1 413"), "{text}");
    sending.abort();
}

fn two_versions(hook: &webhook::Webhook) -> Value {
    let version = |name: &str, storage: bool, properties: Value| {
        json!({"name": name, "served": true, "storage": storage,
            "selectableFields": [{"jsonPath": format!(".spec.{}", properties.as_object().unwrap().keys().next().unwrap())}],
            "schema": {"openAPIV3Schema": with_spec(properties)}})
    };
    let text = json!({"type": "string"});
    let mut out = definition("hosts", "Host", json!({}));
    out["spec"]["versions"] = json!([
        version("v1", true, json!({"hostPort": text})),
        version("v2", false, json!({"host": text, "port": text})),
    ]);
    out["spec"]["conversion"] = json!({"strategy": "Webhook", "webhook": {
        "conversionReviewVersions": ["v1"],
        "clientConfig": {
            "url": format!("https://127.0.0.1:{}/convert", hook.address.port()),
            "caBundle": hook.bundle,
        },
    }});
    out
}

#[tokio::test(flavor = "multi_thread")]
async fn a_webhook_converts_between_versions() {
    let dir = tempfile::tempdir().unwrap();
    let server = support::server_with(dir.path(), &["ServiceAccount"], |_| {}).await;
    let hook = webhook::Webhook::start().await;
    define(&server, two_versions(&hook)).await;
    let (v1, v2) = (place("hosts"), "/apis/example.com/v2/namespaces/default/hosts");
    let made = post(&server, &v1, object("Host", "a", json!({"hostPort": "x:1"}))).await;
    assert_eq!(made.status, 201, "{}", made.message());
    assert_eq!(hook.asked.load(Ordering::SeqCst), 0, "nothing to convert");

    let read = get(&server, &format!("{v2}/a")).await.json();
    assert_eq!(read["spec"], json!({"host": "x", "port": "1"}));
    assert_eq!(read["metadata"]["labels"], json!({"converted-to": "v2"}));
    assert_eq!(read["metadata"]["uid"], made.json()["metadata"]["uid"]);
    let asked = hook.asked.load(Ordering::SeqCst);
    get(&server, &format!("{v2}/a")).await;
    assert_eq!(hook.asked.load(Ordering::SeqCst), asked, "a conversion is made once");

    // Written in one version, stored and read in the other.
    let mut b = object("Host", "b", json!({"host": "y", "port": "2"}));
    b["apiVersion"] = "example.com/v2".into();
    let made = post(&server, v2, b).await;
    assert_eq!(made.status, 201, "{}", made.message());
    assert_eq!(made.json()["spec"], json!({"host": "y", "port": "2"}));
    assert_eq!(get(&server, &format!("{v1}/b")).await.json()["spec"], json!({"hostPort": "y:2"}));
    let patched = patch(&server, &format!("{v2}/b"), json!({"spec": {"port": "3"}})).await;
    assert_eq!(patched.json()["spec"]["port"], "3", "{}", patched.message());
    assert_eq!(get(&server, &format!("{v1}/b")).await.json()["spec"], json!({"hostPort": "y:3"}));

    let listed = get(&server, v2).await.json();
    assert_eq!(listed["apiVersion"], "example.com/v2");
    let hosts: Vec<&Value> =
        listed["items"].as_array().unwrap().iter().map(|item| &item["spec"]["host"]).collect();
    assert_eq!(hosts, ["x", "y"]);
    let selected = get(&server, &format!("{v2}?fieldSelector=spec.host%3Dy")).await.json();
    assert_eq!(selected["items"].as_array().unwrap().len(), 1);

    let watch = open_watch(&server, v2).await;
    patch(&server, &format!("{v1}/a"), json!({"spec": {"hostPort": "z:9"}})).await;
    let seen = events(watch, 3).await;
    assert_eq!(seen[2]["type"], "MODIFIED");
    assert_eq!(seen[2]["object"]["spec"], json!({"host": "z", "port": "9"}));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_webhook_that_fails_is_told_in_upstreams_words() {
    let dir = tempfile::tempdir().unwrap();
    let server = support::server_with(dir.path(), &["ServiceAccount"], |_| {}).await;
    let hook = webhook::Webhook::start().await;
    define(&server, two_versions(&hook)).await;
    let v2 = "/apis/example.com/v2/namespaces/default/hosts/a";
    post(&server, &place("hosts"), object("Host", "a", json!({"hostPort": "x:1"}))).await;
    for (mood, said) in [
        (webhook::REFUSING, "conversion webhook for example.com/v1, Kind=Host failed: not today"),
        (
            webhook::FORGETFUL,
            "conversion webhook for example.com/v1, Kind=Host returned 0 objects, expected 1",
        ),
        (
            webhook::RENAMING,
            "conversion webhook for example.com/v1, Kind=Host returned invalid object: must have the same name: a != other",
        ),
    ] {
        hook.mood.store(mood, Ordering::SeqCst);
        let failed = get(&server, v2).await;
        assert_eq!((failed.status, failed.message().as_str()), (500, said));
    }
    hook.mood.store(webhook::WELL, Ordering::SeqCst);
    assert_eq!(get(&server, v2).await.status, 200);
    // Nobody listens where the definition points now; what needs no conversion goes on.
    let nowhere = json!({"spec": {"conversion": {"webhook": {"clientConfig": {"url": "https://127.0.0.1:1/x"}}}}});
    patch(&server, &format!("{DEFINITIONS}/hosts.example.com"), nowhere).await;
    let failed = until(&server, v2, |answer| answer.status == 500).await;
    let start = "conversion webhook for example.com/v1, Kind=Host failed: Post \"https://127.0.0.1:1/x?timeout=30s\": dial tcp 127.0.0.1:1:";
    assert!(failed.message().starts_with(start), "{}", failed.message());
    assert_eq!(get(&server, &format!("{}/a", place("hosts"))).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_storage_version_moves_and_the_old_one_can_go() {
    let dir = tempfile::tempdir().unwrap();
    let server = support::server_with(dir.path(), &["ServiceAccount"], |_| {}).await;
    let schema = with_spec(json!({"a": {"type": "string"}}));
    define(&server, definition("moves", "Move", schema.clone())).await;
    post(&server, &place("moves"), object("Move", "x", json!({"a": "1"}))).await;
    let version = |name: &str, served: bool, storage: bool| json!({"name": name, "served": served, "storage": storage, "schema": {"openAPIV3Schema": schema}});
    let name = format!("{DEFINITIONS}/moves.example.com");
    let versions = json!([version("v1", true, false), version("v2", true, true)]);
    let moved = patch(&server, &name, json!({"spec": {"versions": versions}})).await.json();
    assert_eq!(moved["status"]["storedVersions"], json!(["v1", "v2"]));
    let v2 = "/apis/example.com/v2/namespaces/default/moves/x";
    let read = until(&server, v2, |answer| answer.status == 200).await.json();
    assert_eq!(read["apiVersion"], "example.com/v2");
    let group = get(&server, "/apis/example.com").await.json();
    assert_eq!(group["preferredVersion"]["version"], "v2");
    // v1 cannot go while something may be stored in it.
    let only = json!({"spec": {"versions": [version("v2", true, true)]}});
    assert_eq!(patch(&server, &name, only.clone()).await.status, 422);
    // A write that changes nothing moves the object to the new version.
    let before = get(&server, v2).await.json();
    let put = ask(&server, Method::PUT, v2, before.clone()).await.json();
    let revision = |object: &Value| object["metadata"]["resourceVersion"].clone();
    assert_ne!(revision(&put), revision(&before));
    let again = ask(&server, Method::PUT, v2, put.clone()).await.json();
    assert_eq!(revision(&again), revision(&put));
    let status = json!({"status": {"storedVersions": ["v2"]}});
    let migrated = patch(&server, &format!("{name}/status"), status).await;
    assert_eq!(migrated.status, 200, "{}", migrated.message());
    let done = patch(&server, &name, only).await;
    assert_eq!(done.status, 200, "{}", done.message());
    until(&server, &place("moves"), |answer| answer.status == 404).await;
    assert_eq!(get(&server, v2).await.json()["spec"]["a"], "1");
}

#[tokio::test(flavor = "multi_thread")]
async fn scales_columns_and_selectable_fields_are_the_definitions() {
    let dir = tempfile::tempdir().unwrap();
    let server = support::server_with(dir.path(), &["ServiceAccount"], |_| {}).await;
    let mut wanted = definition(
        "sets",
        "Set",
        json!({"type": "object", "properties": {
            "spec": {"type": "object", "properties": {
                "size": {"type": "object", "properties": {"wanted": {"type": "integer"}}},
                "color": {"type": "string"}}},
            "status": {"type": "object", "properties": {
                "is": {"type": "integer"}, "selector": {"type": "string"}}},
        }}),
    );
    wanted["spec"]["scope"] = "Cluster".into();
    wanted["spec"]["versions"][0]["subresources"] = json!({"status": {}, "scale": {
        "specReplicasPath": ".spec.size.wanted", "statusReplicasPath": ".status.is",
        "labelSelectorPath": ".status.selector"}});
    wanted["spec"]["versions"][0]["selectableFields"] = json!([{"jsonPath": ".spec.color"}]);
    wanted["spec"]["versions"][0]["deprecated"] = true.into();
    define(&server, wanted).await;
    let sets = "/apis/example.com/v1/sets";
    let made = post(&server, sets, object("Set", "a", json!({"color": "red"}))).await;
    assert_eq!(made.status, 201, "{}", made.message());
    assert_eq!(made.warnings(), ["299 - \"example.com/v1 Set is deprecated\""]);
    assert!(made.json()["metadata"].get("namespace").is_none());
    let missing = get(&server, &format!("{sets}/a/scale")).await;
    assert_eq!(missing.status, 500);
    assert!(
        missing.message().contains("the spec replicas field \".spec.size.wanted\" does not exist")
    );
    patch(&server, &format!("{sets}/a"), json!({"spec": {"size": {"wanted": 2}}})).await;
    patch(&server, &format!("{sets}/a/status"), json!({"status": {"is": 1, "selector": "x=y"}}))
        .await;
    let scale = get(&server, &format!("{sets}/a/scale")).await.json();
    assert_eq!(
        (&scale["spec"]["replicas"], &scale["status"]),
        (&json!(2), &json!({"replicas": 1, "selector": "x=y"}))
    );
    let mut bigger = scale.clone();
    bigger["spec"]["replicas"] = 7.into();
    let put = ask(&server, Method::PUT, &format!("{sets}/a/scale"), bigger).await;
    assert_eq!(put.json()["spec"]["replicas"], 7, "{}", put.message());
    let whole = get(&server, &format!("{sets}/a")).await.json();
    assert_eq!(whole["spec"]["size"]["wanted"], 7);
    assert_eq!(whole["metadata"]["generation"], 3, "a status makes no generation");
    let negative =
        patch(&server, &format!("{sets}/a/scale"), json!({"spec": {"replicas": -1}})).await;
    assert_eq!(negative.status, 422);

    let watch = open_watch(&server, &format!("{sets}?fieldSelector=spec.color%3Dblue")).await;
    patch(&server, &format!("{sets}/a"), json!({"spec": {"color": "blue"}})).await;
    patch(&server, &format!("{sets}/a"), json!({"spec": {"color": "green"}})).await;
    let seen = events(watch, 2).await;
    assert_eq!((&seen[0]["type"], &seen[1]["type"]), (&json!("ADDED"), &json!("DELETED")));
    let unknown = get(&server, &format!("{sets}?fieldSelector=metadata.namespace%3Dx")).await;
    assert_eq!(unknown.message(), "field label not supported: metadata.namespace");

    let table = [("accept", "application/json;as=Table;v=v1;g=meta.k8s.io")];
    let table = support::send(&server, "admin", Method::GET, sets, &table, "").await.json();
    assert_eq!(table["columnDefinitions"][1]["name"], "Age");
    let dry = post(&server, &format!("{sets}?dryRun=All"), object("Set", "b", json!({}))).await;
    assert_eq!(dry.status, 201);
    assert_eq!(get(&server, &format!("{sets}/b")).await.status, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn patches_with_fields_nobody_knows_are_warned_of_or_refused() {
    let dir = tempfile::tempdir().unwrap();
    let server = support::server_with(dir.path(), &["ServiceAccount"], |_| {}).await;
    define(&server, definition("ps", "P", with_spec(json!({"a": {"type": "string"}})))).await;
    post(&server, &place("ps"), object("P", "x", json!({"a": "1"}))).await;
    let path = format!("{}/x", place("ps"));
    let wild = json!({"spec": {"a": "2", "zzz": 1}});
    let warned = patch(&server, &path, wild.clone()).await;
    assert_eq!(warned.status, 200);
    assert_eq!(warned.warnings(), ["299 - \"unknown field \\\"spec.zzz\\\"\""]);
    assert_eq!(warned.json()["spec"], json!({"a": "2"}));
    let refused = patch(&server, &format!("{path}?fieldValidation=Strict"), wild.clone()).await;
    assert_eq!(refused.status, 422);
    assert!(
        refused.message().contains("strict decoding error: unknown field \"spec.zzz\""),
        "{}",
        refused.message()
    );
    let silent = patch(&server, &format!("{path}?fieldValidation=Ignore"), wild).await;
    assert!(silent.status == 200 && silent.warnings().is_empty());
    let finalizers = json!({"metadata": {"finalizers": ["a.b"]}});
    let warned = patch(&server, &path, finalizers).await;
    assert_eq!(warned.status, 200, "{}", warned.message());
    assert!(
        warned.warnings()[0].contains("prefer a domain-qualified finalizer name including a path")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn patches_that_name_a_field_twice_are_warned_of_or_refused() {
    let dir = tempfile::tempdir().unwrap();
    let server = support::server_with(dir.path(), &["ServiceAccount"], |_| {}).await;
    define(&server, definition("ps", "P", with_spec(json!({"a": {"type": "string"}})))).await;
    post(&server, &place("ps"), object("P", "x", json!({"a": "1"}))).await;
    let merge = ("application/merge-patch+json", r#"{"spec": {"a": "2", "a": "3", "z": 1}}"#);
    let text = "apiVersion: example.com/v1\nkind: P\nspec:\n  a: '4'\n  a: '5'\n";
    let apply = ("application/apply-patch+yaml", text);
    let send = async |name: &str, mode: &str, (media, body): (&str, &'static str)| {
        let query = format!("fieldManager=t&force=true&fieldValidation={mode}");
        let query = if media.contains("merge") { query.replace("force=true&", "") } else { query };
        let path = format!("{}/{name}?{query}", place("ps"));
        support::send(&server, "admin", Method::PATCH, &path, &[("content-type", media)], body)
            .await
    };

    let refused = send("x", "Strict", merge).await;
    assert_eq!(refused.status, 422);
    let end = "strict decoding error: duplicate field \"spec.a\", unknown field \"spec.z\"";
    assert!(refused.message().ends_with(end), "{}", refused.message());
    let quoted =
        "Invalid value: \"{\\\"apiVersion\\\":\\\"example.com/v1\\\",\\\"kind\\\":\\\"P\\\"";
    assert!(refused.message().contains(quoted), "{}", refused.message());
    let warned = send("x", "Warn", merge).await;
    let told = ["duplicate field \\\"spec.a\\\"", "unknown field \\\"spec.z\\\""];
    assert_eq!(warned.warnings(), told.map(|text| format!("299 - \"{text}\"")));

    for name in ["x", "new"] {
        let refused = send(name, "Strict", apply).await;
        assert_eq!(refused.status, 400);
        assert_eq!(
            refused.message(),
            "error strict decoding YAML: error converting YAML to JSON: yaml: unmarshal errors:\n  line 5: key \"a\" already set in map"
        );
        let warned = send(name, "Warn", apply).await;
        assert!(warned.status < 300, "{}", warned.message());
        let told = "299 - \"line 5: key \\\"a\\\" already set in map\"";
        assert_eq!(warned.warnings(), [told]);
        let silent = send(name, "Ignore", apply).await;
        assert!(silent.status == 200 && silent.warnings().is_empty());
    }
}

/// A property with one rule.
fn ruled(mut schema: Value, rule: Value) -> Value {
    schema["x-kubernetes-validations"] = json!([rule]);
    schema
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_see_the_old_value_and_let_pass_what_they_let_pass_before() {
    let dir = tempfile::tempdir().unwrap();
    let server = support::server_with(dir.path(), &["ServiceAccount"], |_| {}).await;
    let schema = |most: i64| {
        let mut schema = with_spec(json!({
            "n": ruled(json!({"type": "integer"}), json!({"rule": format!("self < {most}")})),
            "m": {"type": "string"},
            "once": ruled(json!({"type": "string"}), json!({
                "rule": "!oldSelf.hasValue() || self == oldSelf.value()",
                "optionalOldSelf": true, "message": "set once"})),
            "l": {"type": "array", "maxItems": 9, "x-kubernetes-list-type": "map",
                "x-kubernetes-list-map-keys": ["k"], "items": {
                    "type": "object", "required": ["k"], "properties": {
                        "k": {"type": "string", "maxLength": 9},
                        "v": ruled(json!({"type": "integer"}), json!({"rule": "self >= oldSelf"})),
                    }}},
        }));
        schema["x-kubernetes-validations"] = json!([
            {"rule": "self.metadata.name != 'forbidden'", "fieldPath": ".spec.m", "reason": "FieldValueForbidden", "message": "that name"},
            {"rule": "!has(self.spec.m) || self.spec.m != 'x'", "messageExpression": "self.spec.m.substring(0, 9)", "message": "not x"},
        ]);
        schema
    };
    define(&server, definition("rules", "Rule", schema(100))).await;
    let list = place("rules");
    let made = post(
        &server,
        &list,
        object(
            "Rule",
            "a",
            json!({"n": 50, "once": "1", "l": [{"k": "a", "v": 1}, {"k": "b", "v": 5}]}),
        ),
    )
    .await;
    assert_eq!(made.status, 201, "{}", made.message());
    let refused = post(&server, &list, object("Rule", "forbidden", json!({"m": "x"}))).await;
    assert_eq!(
        refused.json()["details"]["causes"],
        json!([
            {"reason": "FieldValueForbidden", "message": "Forbidden: that name", "field": "spec.m"},
            // The message's expression fails, so the fixed one is told.
            {"reason": "FieldValueInvalid", "message": "Invalid value: not x", "field": "<nil>"},
        ])
    );
    let path = format!("{list}/a");
    let twice = patch(&server, &path, json!({"spec": {"once": "2"}})).await;
    assert_eq!(twice.json()["details"]["causes"][0]["message"], "Invalid value: \"2\": set once");
    // Elements are told apart by their keys, wherever they stand.
    let moved = json!({"spec": {"l": [{"k": "b", "v": 5}, {"k": "a", "v": 0}]}});
    let moved = patch(&server, &path, moved).await;
    assert_eq!(moved.json()["details"]["causes"][0]["field"], "spec.l[1].v", "{}", moved.message());

    let versions = json!([{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema(10)}}]);
    patch(
        &server,
        &format!("{DEFINITIONS}/rules.example.com"),
        json!({"spec": {"versions": versions}}),
    )
    .await;
    let begun = Instant::now();
    while post(&server, &list, object("Rule", "b", json!({"n": 50}))).await.status != 422 {
        ask(&server, Method::DELETE, &format!("{list}/b"), Value::Null).await;
        assert!(begun.elapsed() < ESTABLISHED_MAX);
    }
    let kept = patch(&server, &path, json!({"spec": {"m": "y"}})).await;
    assert_eq!(kept.status, 200, "{}", kept.message());
    assert_eq!(kept.warnings(), ["299 - \"spec.n: Invalid value: 50: failed rule: self < 10\""]);
    let refused = patch(&server, &path, json!({"spec": {"n": 51}})).await;
    assert_eq!(
        refused.json()["details"]["causes"][0]["message"],
        "Invalid value: 51: failed rule: self < 10"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_that_run_long_are_stopped() {
    let dir = tempfile::tempdir().unwrap();
    let server = support::server_with(dir.path(), &["ServiceAccount"], |_| {}).await;
    let numbers = json!({"type": "array", "maxItems": 100, "items": {"type": "integer"}});
    let costly = "self.a.all(x, self.a.all(y, self.a.all(z, x + y + z >= 0)))";
    let mut schema = with_spec(json!({"a": numbers}));
    schema["properties"]["spec"]["x-kubernetes-validations"] = json!([{"rule": costly}]);
    define(&server, definition("slows", "Slow", schema.clone())).await;
    let begun = Instant::now();
    let some = json!({"a": vec![1; 10]});
    let made = post(&server, &place("slows"), object("Slow", "a", some)).await;
    assert_eq!(made.status, 201, "{}", made.message());
    let all = json!({"a": vec![1; 100]});
    let stopped = post(&server, &place("slows"), object("Slow", "b", all)).await;
    assert_eq!(stopped.status, 422);
    assert_eq!(
        stopped.json()["details"]["causes"][0]["message"],
        format!(
            "Invalid value: \"object\": 'operation cancelled: actual cost limit exceeded': no further validation rules will be run due to call cost exceeds limit for rule: {costly}"
        )
    );
    assert!(begun.elapsed() < Duration::from_secs(10), "it took {:?}", begun.elapsed());
    // Without bounds it is not stored.
    schema["properties"]["spec"]["properties"]["a"] =
        json!({"type": "array", "items": {"type": "integer"}});
    let refused = post(&server, DEFINITIONS, definition("wilds", "Wild", schema)).await;
    assert_eq!(refused.status, 422);
    assert!(
        refused
            .message()
            .contains("estimated rule cost exceeds budget by factor of more than 100x"),
        "{}",
        refused.message()
    );
    // A default has to fulfil the rules of its place.
    let bad = with_spec(
        json!({"a": ruled(json!({"type": "integer", "default": 3}), json!({"rule": "self > 5"}))}),
    );
    let refused = post(&server, DEFINITIONS, definition("bads", "Bad", bad)).await;
    assert_eq!(
        refused.json()["details"]["causes"][0],
        json!({"reason": "FieldValueInvalid", "message": "Invalid value: 3: failed rule: self > 5",
            "field": "spec.validation.openAPIV3Schema.properties[spec].properties[a].default"})
    );
}
