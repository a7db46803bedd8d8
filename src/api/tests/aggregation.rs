//! What is passed on. Extension API servers behind this one: how they are registered, found
//! out to be there or not, reached, and shown in discovery and OpenAPI; and in `proxies`
//! kubelets and what runs behind them. And in `addresses` what a service is reached under.

#![allow(clippy::unwrap_used, reason = "tests may")]

use std::time::Instant;

use api::serve::{Shared, listen};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use client::Body;
use extension::{Extension, GROUP, Mood, PATIENCE, VERSION};
use futures::StreamExt;
use http::{Method, Request};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

#[path = "aggregation/addresses.rs"]
mod addresses;
#[path = "support/extension.rs"]
mod extension;
#[path = "aggregation/proxies.rs"]
mod proxies;
#[path = "support/server.rs"]
mod support;

use support::{ask, open, send};

const API_SERVICES: &str = "/apis/apiregistration.k8s.io/v1/apiservices";
const FLUNDERS: &str = "/apis/wardle.example.com/v1alpha1/namespaces/default/flunders";
const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
/// Admission that needs controllers, which do not run here.
const DISABLED: [&str; 1] = ["ServiceAccount"];

async fn get(server: &Shared, path: &str) -> support::Answer {
    ask(server, Method::GET, path, Value::Null).await
}

async fn create(server: &Shared, object: &Value) {
    let path = match object["kind"].as_str().unwrap() {
        "Service" => "/api/v1/namespaces/default/services",
        "EndpointSlice" => return place(server, object).await,
        _ => API_SERVICES,
    };
    let made = ask(server, Method::POST, path, object.clone()).await;
    assert_eq!(made.status, 201, "{}", made.message());
}

/// Stores endpoints, which a client may not have on a loopback address.
async fn place(server: &Shared, slice: &Value) {
    const SLICES: &str = "/registry/endpointslices/";
    let key = format!("{SLICES}default/{}", slice["metadata"]["name"].as_str().unwrap());
    let mut slice = slice.clone();
    slice["metadata"]["namespace"] = json!("default");
    let value = slice.to_string().into();
    let write = match server.registry.cache.get(SLICES, &key) {
        None => store::Write::Create { key, value },
        Some(known) => store::Write::Update { key, value, expected: known.revision },
    };
    let done = server.registry.store().write(write, store::Durability::Durable).await.unwrap();
    assert!(matches!(done, store::Outcome::Done(_)));
    server.registry.cache.fresh().await.unwrap();
}

/// Reason and status of the condition, as soon as the reason is this one.
async fn becomes(server: &Shared, reason: &str) -> Value {
    let begun = Instant::now();
    loop {
        let path = format!("{API_SERVICES}/{VERSION}.{GROUP}");
        let condition = get(server, &path).await.json()["status"]["conditions"][0].clone();
        if condition["reason"] == reason {
            return condition;
        }
        assert!(begun.elapsed() < PATIENCE, "{reason} is not reached: {condition}");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

/// Asks until an answer is as wanted.
async fn until(server: &Shared, path: &str, good: impl Fn(&support::Answer) -> bool) -> Value {
    let begun = Instant::now();
    loop {
        let headers = [("accept", AGGREGATED), ("accept", "application/json")];
        let headers = if path == "/apis" { &headers[..1] } else { &headers[1..] };
        let answer = send(server, "admin", Method::GET, path, headers, "").await;
        if good(&answer) {
            return answer.json();
        }
        assert!(begun.elapsed() < PATIENCE, "{path}: {} {}", answer.status, answer.message());
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

fn proxy_ca(dir: &std::path::Path) -> String {
    pki::files::authority(dir, "proxy-ca", "proxies").unwrap().cert_pem
}

async fn registered(dir: &std::path::Path, modern: bool) -> (Shared, Extension) {
    let server = support::server_with(dir, &DISABLED, |_| {}).await;
    let extension = Extension::start("wardle", &proxy_ca(dir), modern).await;
    for object in extension.objects("wardle") {
        create(&server, &object).await;
    }
    becomes(&server, "Passed").await;
    (server, extension)
}

#[tokio::test(flavor = "multi_thread")]
async fn built_in_groups_and_definitions_have_their_services() {
    let dir = tempfile::tempdir().unwrap();
    let server = support::server_with(dir.path(), &DISABLED, |_| {}).await;
    let list = get(&server, API_SERVICES).await;
    assert!(list.warnings().is_empty());
    let list = list.json();
    let items = list["items"].as_array().unwrap();
    let named = |name: &str| items.iter().find(|item| item["metadata"]["name"] == name).unwrap();
    assert_eq!(named("v1.")["spec"]["groupPriorityMinimum"], 18_000);
    assert_eq!(named("v2.autoscaling")["spec"]["versionPriority"], 30);
    let label = &named("v1.apps")["metadata"]["labels"];
    assert_eq!(label["kube-aggregator.kubernetes.io/automanaged"], "onstart");
    assert!(items.iter().all(|item| item["status"]["conditions"][0]["reason"] == "Local"));
    assert!(!items.iter().any(|item| item["spec"]["group"] == "apiregistration.k8s.io"));

    // Somebody who changes one finds it as it was after the next start.
    let patch = json!({"spec": {"versionPriority": 7}});
    ask(&server, Method::PATCH, &format!("{API_SERVICES}/v1.apps"), patch).await;
    let mut own = named("v1.batch").clone();
    own["metadata"] = json!({"name": "v9.batch", "labels": label});
    own["kind"] = json!("APIService");
    own["spec"]["version"] = json!("v9");
    create(&server, &own).await;
    api::aggregate::local::tidy(&server.registry).await.unwrap();
    let again = get(&server, &format!("{API_SERVICES}/v1.apps")).await.json();
    assert_eq!(again["spec"]["versionPriority"], 15);
    assert_eq!(get(&server, &format!("{API_SERVICES}/v9.batch")).await.status, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn availability_follows_what_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let server = support::server_with(dir.path(), &DISABLED, |_| {}).await;
    let extension = Extension::start("wardle", &proxy_ca(dir.path()), true).await;
    let [service, slice, api_service] = extension.objects("wardle");
    create(&server, &api_service).await;
    let condition = becomes(&server, "ServiceNotFound").await;
    assert_eq!(condition["message"], "service/wardle in \"default\" is not present");
    assert_eq!(condition["status"], "False");
    let refused = get(&server, FLUNDERS).await;
    assert_eq!((refused.status, &*refused.body), (503, &b"service unavailable\n"[..]));
    assert_eq!(refused.headers["content-type"], "text/plain; charset=utf-8");

    let mut elsewhere = service.clone();
    elsewhere["spec"]["ports"][0]["port"] = json!(80);
    create(&server, &elsewhere).await;
    becomes(&server, "ServicePortError").await;
    let ports = json!({"spec": {"ports": service["spec"]["ports"]}});
    ask(&server, Method::PATCH, "/api/v1/namespaces/default/services/wardle", ports).await;
    becomes(&server, "EndpointsNotFound").await;

    let mut waiting = slice.clone();
    waiting["endpoints"][0]["conditions"]["ready"] = json!(false);
    create(&server, &waiting).await;
    becomes(&server, "MissingEndpoints").await;
    extension.set(Mood::Broken);
    create(&server, &slice).await;
    let failed = becomes(&server, "FailedDiscoveryCheck").await;
    let url = format!("https://{}/apis/{GROUP}/{VERSION}", extension.address);
    assert_eq!(
        failed["message"],
        format!("failing or missing response from {url}: bad status from {url}: 500")
    );

    // Nothing wakes it now; it asks again by itself.
    extension.set(Mood::Well);
    assert_eq!(becomes(&server, "Passed").await["message"], "all checks passed");
    assert_eq!(get(&server, FLUNDERS).await.status, 200);
    ask(&server, Method::DELETE, "/api/v1/namespaces/default/services/wardle", Value::Null).await;
    becomes(&server, "ServiceNotFound").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_are_made_listed_and_watched_behind_us() {
    let dir = tempfile::tempdir().unwrap();
    let (server, extension) = registered(dir.path(), true).await;
    let flunder = json!({"kind": "Flunder", "apiVersion": format!("{GROUP}/{VERSION}"),
        "metadata": {"name": "dory"}});
    let response = open(
        &server,
        "admin",
        Method::GET,
        &format!("{FLUNDERS}?watch=true"),
        &[("accept", "application/json")],
        "",
    )
    .await;
    let Body::Stream(mut events) = response.into_body() else { panic!("a watch is a stream") };
    let made = ask(&server, Method::POST, FLUNDERS, flunder.clone()).await;
    assert_eq!((made.status, made.json()), (201, flunder.clone()));
    let event: Value = serde_json::from_slice(&events.next().await.unwrap().unwrap()).unwrap();
    assert_eq!((&event["type"], &event["object"]), (&json!("ADDED"), &flunder));
    assert_eq!(get(&server, FLUNDERS).await.json()["items"], json!([flunder]));

    // Who asks is told in headers, which the certificate vouches for.
    let headers = [
        ("impersonate-user", "jane"),
        ("impersonate-group", "system:masters"),
        ("impersonate-extra-scopes", "dev"),
        ("x-remote-user", "root"),
        ("accept", "*/*"),
    ];
    send(&server, "admin", Method::GET, FLUNDERS, &headers, "").await;
    let told = extension.last(FLUNDERS);
    assert_eq!(told["x-remote-user"], "jane");
    assert_eq!(told["x-remote-extra-scopes"], "dev");
    let groups: Vec<_> = told.get_all("x-remote-group").iter().collect();
    assert_eq!(groups, ["system:masters", "system:authenticated"]);
    assert!(!told.contains_key("impersonate-user") && !told.contains_key("authorization"));
    let (certified, all) = extension.connections();
    assert_eq!(certified, all);
    // Who may not, is not passed on.
    let refused = send(&server, "alice", Method::GET, FLUNDERS, &[], "").await;
    assert_eq!(refused.status, 403);
    assert_eq!(extension.last(FLUNDERS)["x-remote-user"], "jane");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_with_another_certificate_is_not_believed() {
    let dir = tempfile::tempdir().unwrap();
    let (server, extension) = registered(dir.path(), true).await;
    let path = format!("{API_SERVICES}/{VERSION}.{GROUP}");
    let other = pki::authority::Authority::create("others").unwrap();
    let bundle = STANDARD.encode(&other.cert_pem);
    ask(&server, Method::PATCH, &path, json!({"spec": {"caBundle": bundle}})).await;
    let answer = until_refused(&server).await;
    assert!(answer.starts_with("error trying to reach service: tls: failed to verify"), "{answer}");
    let insecure = json!({"spec": {"caBundle": null, "insecureSkipTLSVerify": true}});
    assert_eq!(ask(&server, Method::PATCH, &path, insecure).await.status, 200);
    until(&server, FLUNDERS, |answer| answer.status == 200).await;
    drop(extension);
}

async fn until_refused(server: &Shared) -> String {
    let begun = Instant::now();
    loop {
        let answer = get(server, FLUNDERS).await;
        let text = String::from_utf8_lossy(&answer.body).to_string();
        if answer.status == 503 && text.starts_with("error") {
            return text;
        }
        assert!(begun.elapsed() < PATIENCE, "{} {text}", answer.status);
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

/// The entry of the extension's group in aggregated discovery.
fn entry(document: &Value) -> Value {
    let items = document["items"].as_array().cloned().unwrap_or_default();
    let found = items.into_iter().find(|item| item["metadata"]["name"] == GROUP);
    found.map(|item| item["versions"][0].clone()).unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn discovery_and_documents_are_merged_and_never_wait() {
    documents_of(true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_of_before_aggregated_discovery_is_shown_in_it() {
    documents_of(false).await;
}

async fn documents_of(modern: bool) {
    let dir = tempfile::tempdir().unwrap();
    let (server, extension) = registered(dir.path(), modern).await;
    let known =
        until(&server, "/apis", |answer| entry(&answer.json())["freshness"] == "Current").await;
    let resource = &entry(&known)["resources"][0];
    assert_eq!(resource["resource"], "flunders");
    assert_eq!(resource["responseKind"]["group"], GROUP);
    assert_eq!(resource.get("shortNames").is_some(), modern);
    let group = get(&server, &format!("/apis/{GROUP}")).await.json();
    assert_eq!(group["preferredVersion"]["version"], VERSION);
    let list = get(&server, &format!("/apis/{GROUP}/{VERSION}")).await.json();
    assert_eq!(list["resources"][0]["kind"], "Flunder");

    let v2 = until(&server, "/openapi/v2", |answer| {
        answer.json()["paths"].get(format!("/apis/{GROUP}/{VERSION}/flunders")).is_some()
    })
    .await;
    assert!(v2["definitions"].get("com.example.wardle.Flunder").is_some());
    assert!(v2["definitions"].get("unused").is_none());
    assert!(v2["paths"].get("/apis/other.example.com/v1/x").is_none());
    let index = get(&server, "/openapi/v3").await.json();
    let path = format!("apis/{GROUP}/{VERSION}");
    let url = index["paths"][&path]["serverRelativeURL"].as_str().unwrap();
    let document = get(&server, url).await.json();
    assert_eq!(document["openapi"], "3.0.0");
    assert_eq!(document["info"]["title"], "wardle");
    if !modern {
        // It said it in v2 only.
        let kind = &document["components"]["schemas"]["com.example.wardle.Flunder"];
        assert_eq!(kind["type"], "object");
        let answer = &document["paths"][format!("/{path}/flunders")]["get"]["responses"]["200"];
        let reference = "#/components/schemas/com.example.wardle.Flunder";
        assert_eq!(answer["content"]["application/json"]["schema"]["$ref"], reference);
        let answer = get(&server, &format!("/openapi/v3/{path}?hash=OLD")).await;
        assert_eq!((answer.status, &answer.headers["location"]), (301, &url.parse().unwrap()));
    }

    // One that stalls holds up nobody, and is stale as soon as that is known.
    extension.set(Mood::Stalling);
    let begun = Instant::now();
    for path in ["/apis", "/openapi/v2", "/openapi/v3"] {
        assert_eq!(get(&server, path).await.status, 200);
    }
    assert!(begun.elapsed() < std::time::Duration::from_secs(4));
    let touch = json!({"metadata": {"labels": {"touched": "yes"}}});
    ask(&server, Method::PATCH, "/api/v1/namespaces/default/services/wardle", touch).await;
    becomes(&server, "FailedDiscoveryCheck").await;
    let stale =
        until(&server, "/apis", |answer| entry(&answer.json())["freshness"] == "Stale").await;
    assert_eq!(entry(&stale)["resources"][0]["resource"], "flunders");
}

#[tokio::test(flavor = "multi_thread")]
async fn priorities_and_statuses_can_be_changed_by_whoever_may() {
    let dir = tempfile::tempdir().unwrap();
    let (server, _extension) = registered(dir.path(), true).await;
    let path = format!("{API_SERVICES}/{VERSION}.{GROUP}");
    let patch = json!({"spec": {"versionPriority": 400}});
    assert_eq!(
        ask(&server, Method::PATCH, &path, patch).await.json()["spec"]["versionPriority"],
        400
    );
    let mut object = get(&server, &path).await.json();
    let condition = json!({"type": "StatusUpdated", "status": "True",
        "lastTransitionTime": "2020-01-01T00:00:00Z", "reason": "E2E", "message": "Set by a test"});
    object["status"]["conditions"].as_array_mut().unwrap().push(condition.clone());
    let status = format!("{path}/status");
    let updated = ask(&server, Method::PUT, &status, object).await.json();
    assert_eq!(updated["status"]["conditions"][1], condition);
    // The controller keeps what others say.
    ask(&server, Method::DELETE, "/api/v1/namespaces/default/services/wardle", Value::Null).await;
    becomes(&server, "ServiceNotFound").await;
    assert_eq!(get(&server, &path).await.json()["status"]["conditions"][1], condition);
    let gone = format!("{API_SERVICES}?fieldSelector=metadata.name%3D{VERSION}.{GROUP}");
    assert_eq!(ask(&server, Method::DELETE, &gone, Value::Null).await.status, 200);
    until(&server, &format!("/apis/{GROUP}"), |answer| answer.status == 404).await;
}

/// A client over TLS, with an administrator's certificate.
async fn connection<B>(
    server: &Shared,
    dir: &std::path::Path,
) -> hyper::client::conn::http1::SendRequest<B>
where
    B: hyper::body::Body<Data = Bytes, Error = std::io::Error> + Send + Unpin + 'static,
{
    let ca = pki::files::authority(dir, "client-ca", "clients").unwrap();
    let leaf = pki::authority::Leaf {
        common_name: "server".into(),
        dns_names: vec!["localhost".into()],
        server: true,
        ..Default::default()
    };
    let issued = ca.issue(&leaf).unwrap();
    let hints = ca.cert_pem.as_bytes();
    let tls =
        pki::tls::open_server_config(issued.cert_pem.as_bytes(), issued.key_pem.as_bytes(), hints);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (trigger, drain) = base::drain::channel();
    std::mem::forget(trigger);
    tokio::spawn(listen::serve(server.clone(), listener, std::sync::Arc::new(tls.unwrap()), drain));
    let me = ca.issue(&pki::authority::Leaf::client("admin", "system:masters")).unwrap();
    let identity = (me.cert_pem.as_bytes(), me.key_pem.as_bytes());
    let mut tls = pki::tls::client_config(Some(hints), Some(identity), false).unwrap();
    tls.alpn_protocols = vec![b"http/1.1".to_vec()];
    let tcp = tokio::net::TcpStream::connect(address).await.unwrap();
    let connector = tokio_rustls::TlsConnector::from(std::sync::Arc::new(tls));
    let stream = connector.connect("localhost".try_into().unwrap(), tcp).await.unwrap();
    let (sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection.with_upgrades());
    sender
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_can_become_something_else() {
    let dir = tempfile::tempdir().unwrap();
    let (server, extension) = registered(dir.path(), true).await;
    let mut sender = connection(&server, dir.path()).await;
    let request = Request::get(format!("{FLUNDERS}/echo/stream"))
        .header("host", "localhost")
        .header("connection", "Upgrade")
        .header("upgrade", "echo")
        .body(http_body_util::Empty::new().map_err(|never| match never {}))
        .unwrap();
    let mut response = sender.send_request(request).await.unwrap();
    assert_eq!(response.status(), 101);
    let mut stream = TokioIo::new(hyper::upgrade::on(&mut response).await.unwrap());
    for word in ["one", "two"] {
        stream.write_all(word.as_bytes()).await.unwrap();
        let mut heard = vec![0; 6 + word.len()];
        stream.read_exact(&mut heard).await.unwrap();
        assert_eq!(String::from_utf8(heard).unwrap(), format!("heard {word}"));
    }
    let told = extension.last(&format!("{FLUNDERS}/echo/stream"));
    assert_eq!(told["x-remote-user"], "admin");
    assert_eq!(told["x-forwarded-for"], "127.0.0.1");
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_flow_while_they_arrive() {
    let dir = tempfile::tempdir().unwrap();
    let (server, _extension) = registered(dir.path(), true).await;
    let mut sender = connection(&server, dir.path()).await;
    // The second piece never comes; the first is answered all the same.
    let first = futures::stream::iter([Ok(Frame::data(Bytes::from_static(b"first")))]);
    let body = StreamBody::new(first.chain(futures::stream::pending()).boxed());
    let request = Request::put(format!("{FLUNDERS}/upload/body"))
        .header("host", "localhost")
        .body(body)
        .unwrap();
    let response = tokio::time::timeout(PATIENCE, sender.send_request(request)).await;
    let body = response.unwrap().unwrap().into_body().collect().await.unwrap().to_bytes();
    assert_eq!(&*body, b"first");
}
