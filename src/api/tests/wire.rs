//! What goes over the wire in protobuf, and how watches end and begin: through the same
//! chain as any request.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::time::Duration;

use api::authn::{MASTERS, Peer, User};
use api::serve::{Shared, chain};
use bytes::Bytes;
use client::Body;
use codec::protobuf::decode;
use futures::StreamExt;
use http::{HeaderMap, Request, StatusCode};
use serde_json::{Value, json};

const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";
const CONFIG_MAPS: &str = "/api/v1/namespaces/default/configmaps";

struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Body,
}

async fn send(
    server: &Shared,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: impl Into<Bytes>,
) -> Answer {
    let mut request = Request::builder().method(method).uri(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let mut request = request.body(body.into()).unwrap();
    let peer =
        Peer { in_process: Some(Arc::new(User::new("admin", &[MASTERS]))), ..Peer::default() };
    request.extensions_mut().insert(peer);
    let (parts, body) = chain::handle(server, request).await.into_parts();
    Answer { status: parts.status, headers: parts.headers, body }
}

impl Answer {
    async fn bytes(self) -> Vec<u8> {
        match self.body {
            Body::Full(bytes) => bytes.to_vec(),
            Body::Stream(stream) => {
                let chunks: Vec<Bytes> = stream.map(|chunk| chunk.unwrap()).collect().await;
                chunks.concat()
            }
        }
    }

    async fn json(self) -> Value {
        serde_json::from_slice(&self.bytes().await).unwrap()
    }
}

async fn create(server: &Shared, name: &str, labels: Value) -> Value {
    let body = json!({"metadata": {"name": name, "labels": labels}, "data": {"k": "v"}});
    let answer = send(server, "POST", CONFIG_MAPS, &[], body.to_string()).await;
    assert_eq!(answer.status, StatusCode::CREATED);
    answer.json().await
}

/// Frames of a protobuf watch: their type and object.
fn frames(mut bytes: &[u8]) -> Vec<(String, Value)> {
    let mut out = Vec::new();
    while bytes.len() >= 4 {
        let length = u32::from_be_bytes(bytes[..4].try_into().unwrap()) as usize;
        let frame = &bytes[4..4 + length];
        bytes = &bytes[4 + length..];
        assert_eq!(frame[0], 0x0a);
        let kind = String::from_utf8(frame[2..2 + frame[1] as usize].to_vec()).unwrap();
        let at = frame.windows(4).position(|window| window == b"k8s\0").unwrap();
        out.push((kind, decode(&frame[at..]).unwrap()));
    }
    out
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_lists_and_failures_come_in_protobuf() {
    let dir = tempfile::tempdir().unwrap();
    let server = testing::serve_alone(dir.path()).await;
    let made = create(&server, "a", json!({"x": "1"})).await;
    let accept = [("accept", PROTOBUF)];
    let answer = send(&server, "GET", &format!("{CONFIG_MAPS}/a"), &accept, "").await;
    assert_eq!(answer.headers["content-type"], PROTOBUF);
    let got = decode(&answer.bytes().await).unwrap();
    assert_eq!(got["data"], made["data"]);
    assert_eq!(got["metadata"]["uid"], made["metadata"]["uid"]);
    assert_eq!(
        got["metadata"]["managedFields"][0]["fieldsV1"],
        made["metadata"]["managedFields"][0]["fieldsV1"]
    );
    let list = send(&server, "GET", CONFIG_MAPS, &accept, "").await.bytes().await;
    let list = decode(&list).unwrap();
    assert_eq!(list["kind"], "ConfigMapList");
    assert!(list["items"].as_array().unwrap().iter().any(|item| item["metadata"]["name"] == "a"));
    let partial = format!("{PROTOBUF};as=PartialObjectMetadataList;v=v1;g=meta.k8s.io");
    let list = send(&server, "GET", CONFIG_MAPS, &[("accept", &partial)], "").await.bytes().await;
    let list = decode(&list).unwrap();
    assert_eq!(list["kind"], "PartialObjectMetadataList");
    assert!(list["items"][0].get("data").is_none());
    let missing = send(&server, "GET", &format!("{CONFIG_MAPS}/nosuch"), &accept, "").await;
    assert_eq!(missing.status, StatusCode::NOT_FOUND);
    let status = decode(&missing.bytes().await).unwrap();
    assert_eq!((&status["reason"], &status["code"]), (&json!("NotFound"), &json!(404)));
    // What a client of upstream's library sends is what it got.
    let body = send(&server, "GET", &format!("{CONFIG_MAPS}/a"), &accept, "").await.bytes().await;
    let headers = [("accept", PROTOBUF), ("content-type", PROTOBUF)];
    let put = send(&server, "PUT", &format!("{CONFIG_MAPS}/a"), &headers, body).await;
    assert_eq!(put.status, StatusCode::OK);
    let put = decode(&put.bytes().await).unwrap();
    assert_eq!(put["metadata"]["resourceVersion"], made["metadata"]["resourceVersion"]);
}

/// What is sent out of the stored text is what would be written of its value, to the byte.
#[tokio::test(flavor = "multi_thread")]
async fn metadata_alone_is_the_same_however_it_is_made() {
    let dir = tempfile::tempdir().unwrap();
    let server = testing::serve_alone(dir.path()).await;
    let made = json!({"kind": "ConfigMap", "apiVersion": "v1", "data": {"metadata": "none"},
        "metadata": {"name": "a", "finalizers": ["a.example/b"], "annotations": {"q": "\"}{"},
            "labels": {"b": "2", "a": "1"}}});
    let headers = [("content-type", "application/json")];
    send(&server, "POST", CONFIG_MAPS, &headers, made.to_string()).await;
    let form = |kind: &str| format!("application/json;as={kind};v=v1;g=meta.k8s.io");
    let compact = |text: Vec<u8>| {
        let mut text = serde_json::from_slice::<Value>(&text).unwrap().to_string();
        text.push('\n');
        text
    };
    let mut items = Vec::new();
    for (path, kind) in [
        (CONFIG_MAPS.to_string(), "PartialObjectMetadataList"),
        (format!("{CONFIG_MAPS}/a"), "PartialObjectMetadata"),
    ] {
        let accept = form(kind);
        let headers = [("accept", accept.as_str())];
        let quick = send(&server, "GET", &path, &headers, "").await.bytes().await;
        // What is made pretty is made of the value.
        let slow = send(&server, "GET", &format!("{path}?pretty=true"), &headers, "").await;
        assert_eq!(String::from_utf8(quick.clone()).unwrap(), compact(slow.bytes().await));
        items.push(quick);
    }
    let path = format!(
        "{CONFIG_MAPS}?watch=1&timeoutSeconds=1&fieldSelector=metadata.name%3Da&sendInitialEvents=true&resourceVersionMatch=NotOlderThan"
    );
    let accept = form("PartialObjectMetadata");
    let watched = send(&server, "GET", &path, &[("accept", &accept)], "").await.bytes().await;
    let one = String::from_utf8(items.pop().unwrap()).unwrap();
    let want = format!("{{\"type\":\"ADDED\",\"object\":{}}}\n", one.trim_end());
    assert_eq!(String::from_utf8(watched).unwrap(), want);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_binding_leaves_the_rest_of_its_pod_as_it_stands() {
    let dir = tempfile::tempdir().unwrap();
    let server = testing::serve_alone(dir.path()).await;
    let json_type = [("content-type", "application/json")];
    let pod = json!({"kind": "Pod", "apiVersion": "v1", "metadata": {"name": "p",
            "labels": {"a": "b"}, "finalizers": ["a.example/b"]},
        "spec": {"containers": [{"name": "c", "image": "i"}]}});
    let pods = "/api/v1/namespaces/default/pods";
    let made = send(&server, "POST", pods, &json_type, pod.to_string()).await;
    let before: Value = serde_json::from_slice(&made.bytes().await).unwrap();
    let binding = json!({"kind": "Binding", "apiVersion": "v1",
        "metadata": {"name": "p", "annotations": {"by": "test"}},
        "target": {"kind": "Node", "name": "n"}});
    let path = format!("{pods}/p/binding");
    let bound = send(&server, "POST", &path, &json_type, binding.to_string()).await;
    assert_eq!(bound.status, StatusCode::CREATED);
    let after = send(&server, "GET", &format!("{pods}/p"), &[], "").await.bytes().await;
    let after: Value = serde_json::from_slice(&after).unwrap();
    assert!(before["metadata"]["managedFields"][0]["fieldsV1"]["f:spec"].is_object());
    let mut want = before.clone();
    want["spec"]["nodeName"] = "n".into();
    want["metadata"]["annotations"] = json!({"by": "test"});
    want["metadata"]["resourceVersion"] = after["metadata"]["resourceVersion"].clone();
    want["metadata"]["generation"] = after["metadata"]["generation"].clone();
    want["status"]["conditions"] = after["status"]["conditions"].clone();
    assert_eq!(after, want);
    assert_eq!(after["status"]["conditions"][0]["type"], "PodScheduled");
    let keys =
        |value: &Value| value["metadata"].as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(keys(&after).last().unwrap(), "managedFields");
}

#[tokio::test(flavor = "multi_thread")]
async fn watches_come_in_protobuf_frames() {
    let dir = tempfile::tempdir().unwrap();
    let server = testing::serve_alone(dir.path()).await;
    create(&server, "a", json!({"x": "1"})).await;
    let path = format!(
        "{CONFIG_MAPS}?watch=1&timeoutSeconds=1&sendInitialEvents=true&allowWatchBookmarks=true&resourceVersionMatch=NotOlderThan"
    );
    let accept = [("accept", PROTOBUF)];
    let watch = send(&server, "GET", &path, &accept, "").await;
    assert_eq!(watch.headers["content-type"], format!("{PROTOBUF};stream=watch"));
    let (bytes, _) = tokio::join!(watch.bytes(), async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        create(&server, "b", json!({})).await
    });
    let seen: Vec<(String, String)> = frames(&bytes)
        .into_iter()
        .map(|(kind, object)| (kind, object["metadata"]["name"].as_str().unwrap_or("").to_string()))
        .filter(|(_, name)| name != "kube-root-ca.crt")
        .collect();
    let expected = [("ADDED", "a"), ("BOOKMARK", ""), ("ADDED", "b")];
    assert_eq!(seen, expected.map(|(kind, name)| (kind.to_string(), name.to_string())));
    let old = format!(
        "{CONFIG_MAPS}?watch=1&resourceVersion=1&timeoutSeconds=1&fieldSelector=metadata.name%3Dx"
    );
    let refused = send(&server, "GET", &old, &accept, "").await;
    let refused = frames(&refused.bytes().await);
    assert!(refused.is_empty() || refused[0].0 == "ERROR");
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_initial_events_come_before_their_end() {
    const OBJECTS: usize = 10_000;
    let dir = tempfile::tempdir().unwrap();
    let server = testing::serve_alone(dir.path()).await;
    let writers = (0..64).map(|writer| {
        let server = server.clone();
        async move {
            for at in (writer..OBJECTS).step_by(64) {
                create(&server, &format!("c{at}"), json!({"bulk": "1"})).await;
            }
        }
    });
    futures::future::join_all(writers).await;
    let path = format!(
        "{CONFIG_MAPS}?watch=1&timeoutSeconds=30&sendInitialEvents=true&allowWatchBookmarks=true&resourceVersionMatch=NotOlderThan&labelSelector=bulk"
    );
    let watch = send(&server, "GET", &path, &[], "").await;
    // While a slow reader reads, others write: nothing is lost and the end comes once.
    let Body::Stream(mut stream) = watch.body else { panic!("a watch streams") };
    let (mut added, mut ended, mut changed, mut rest) = (0, 0, 0, String::new());
    while changed == 0 {
        let chunk = stream.next().await.unwrap().unwrap();
        if added == 0 {
            create(&server, "late", json!({"bulk": "1"})).await;
        }
        rest.push_str(std::str::from_utf8(&chunk).unwrap());
        while let Some(end) = rest.find('\n') {
            let event: Value = serde_json::from_str(&rest[..end]).unwrap();
            rest.drain(..=end);
            match event["type"].as_str().unwrap() {
                "ADDED" if ended == 0 => added += 1,
                "ADDED" => changed += 1,
                "BOOKMARK" => {
                    ended += 1;
                    let annotations = &event["object"]["metadata"]["annotations"];
                    assert_eq!(annotations["k8s.io/initial-events-end"], "true");
                }
                other => panic!("{other}"),
            }
        }
    }
    assert_eq!((added, ended, changed), (OBJECTS, 1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_bodies_are_refused_and_never_hurt() {
    let dir = tempfile::tempdir().unwrap();
    let server = testing::serve_alone(dir.path()).await;
    let deep = format!(
        "{{\"metadata\":{{\"name\":\"d\"}},\"data\":{}1{}}}",
        "[".repeat(10_000),
        "]".repeat(10_000)
    );
    let nan = r#"{"metadata":{"name":"n"},"data":{"a":NaN}}"#;
    let cases: [(&str, &[u8], u16); 7] = [
        ("application/json", deep.as_bytes(), 400),
        ("application/yaml", deep.as_bytes(), 400),
        ("application/json", nan.as_bytes(), 400),
        ("application/json", b"\xff\xfe", 400),
        ("application/yaml", b"\xff\xfe", 400),
        ("application/vnd.kubernetes.protobuf", b"k8s\0\x0a\xff\xff\xff\xff\xff", 400),
        ("application/cbor", b"\xd9\xd9\xf7\xa0", 415),
    ];
    for (kind, body, code) in cases {
        let body = Bytes::copy_from_slice(body);
        let answer = send(&server, "POST", CONFIG_MAPS, &[("content-type", kind)], body).await;
        assert_eq!(answer.status.as_u16(), code, "{kind}: {:?}", answer.json().await["message"]);
    }
    // A name that is no UTF-8 is read as upstream reads it, and is no name then.
    let odd = b"{\"metadata\":{\"name\":\"a\xff\"}}";
    let answer = send(&server, "POST", CONFIG_MAPS, &[], Bytes::from_static(odd)).await;
    assert_eq!(answer.status.as_u16(), 422);
}

/// Talks HTTP/1.1 to the chain without a network, and gives the client's end.
fn connect(server: &Shared) -> tokio::io::DuplexStream {
    let (client, connection) = tokio::io::duplex(64 << 10);
    let server = server.clone();
    tokio::spawn(async move {
        let service = hyper::service::service_fn(move |request: Request<hyper::body::Incoming>| {
            let server = server.clone();
            async move {
                let (parts, _) = request.into_parts();
                let mut request = Request::from_parts(parts, Bytes::new());
                let admin = Arc::new(User::new("admin", &[MASTERS]));
                request
                    .extensions_mut()
                    .insert(Peer { in_process: Some(admin), ..Peer::default() });
                let response = chain::handle(&server, request).await;
                let whole = response.map(|body| match body {
                    Body::Full(bytes) => http_body_util::Full::new(bytes),
                    Body::Stream(_) => http_body_util::Full::new(Bytes::new()),
                });
                Ok::<_, std::convert::Infallible>(whole)
            }
        });
        let io = hyper_util::rt::TokioIo::new(connection);
        let served = hyper::server::conn::http1::Builder::new().serve_connection(io, service);
        served.with_upgrades().await.unwrap();
    });
    client
}

async fn websocket_watch(server: &Shared, accept: &str) -> (Vec<u8>, Vec<u8>) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = connect(server);
    let request = format!(
        "GET {CONFIG_MAPS}?watch=1&timeoutSeconds=1&fieldSelector=metadata.name%3Da HTTP/1.1\r\nHost: x\r\nAccept: {accept}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    // A ping, masked with zeros, is answered.
    let mut all = Vec::new();
    let mut chunk = [0; 4_096];
    let mut pinged = false;
    while let Ok(read @ 1..) = stream.read(&mut chunk).await {
        all.extend_from_slice(&chunk[..read]);
        if !std::mem::replace(&mut pinged, true) {
            stream.write_all(b"\x89\x82\0\0\0\0hi").await.unwrap();
        }
    }
    let end = all.windows(4).position(|window| window == b"\r\n\r\n").unwrap() + 4;
    (all[..end].to_vec(), all[end..].to_vec())
}

#[tokio::test(flavor = "multi_thread")]
async fn watches_come_over_websockets() {
    let dir = tempfile::tempdir().unwrap();
    let server = testing::serve_alone(dir.path()).await;
    create(&server, "a", json!({})).await;
    let (head, body) = websocket_watch(&server, "application/json").await;
    let head = String::from_utf8(head).unwrap();
    assert!(
        head.starts_with("HTTP/1.1 101 ") && head.contains("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="),
        "{head}"
    );
    // A text with a length in two bytes, the answer to the ping, an orderly end.
    assert_eq!(body[..2], [0x81, 126]);
    let length = usize::from(u16::from_be_bytes([body[2], body[3]]));
    let event: Value = serde_json::from_slice(&body[4..4 + length]).unwrap();
    assert_eq!(
        (&event["type"], &event["object"]["metadata"]["name"]),
        (&json!("ADDED"), &json!("a"))
    );
    assert_eq!(&body[4 + length..], b"\x8a\x02hi\x88\x02\x03\xe8");
    let (_, body) = websocket_watch(&server, PROTOBUF).await;
    assert_eq!(body[..2], [0x82, 126]);
    let object = body.windows(4).position(|window| window == b"k8s\0").unwrap();
    let length = usize::from(u16::from_be_bytes([body[2], body[3]]));
    assert_eq!(decode(&body[object..4 + length]).unwrap()["metadata"]["name"], "a");
}

/// Clients compare what a revision holds with what Go's encoder would write, byte by byte.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_revision_holds_is_written_as_go_writes_it() {
    let dir = tempfile::tempdir().unwrap();
    let server = testing::serve_alone(dir.path()).await;
    let revisions = "/apis/apps/v1/namespaces/default/controllerrevisions";
    let body = json!({"metadata": {"name": "a"}, "revision": 1,
        "data": {"spec": {"z": "a < b && b > c", "a": "\u{2028}"}}});
    let held = r#"{"spec":{"z":"a \u003c b \u0026\u0026 b \u003e c","a":"\u2028"}}"#;
    let made = send(&server, "POST", revisions, &[], body.to_string()).await.bytes().await;
    let path = format!("{revisions}/a");
    let got = send(&server, "GET", &path, &[], "").await.bytes().await;
    let accept = [("accept", PROTOBUF)];
    let proto = send(&server, "GET", &path, &accept, "").await.bytes().await;
    let list = send(&server, "GET", revisions, &accept, "").await.bytes().await;
    for (what, bytes) in [("made", made), ("got", got), ("protobuf", proto), ("list", list)] {
        let is_in = bytes.windows(held.len()).any(|window| window == held.as_bytes());
        assert!(is_in, "{what}: {}", String::from_utf8_lossy(&bytes));
    }
}
